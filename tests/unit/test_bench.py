"""The bench: its table, its stand-in for AWS, and a system that cannot measure what it measures."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dev import bench

ROWS = [
    bench.Row("speed", "500 MB", "s", 0.2, "plain", 10.0, "20 times faster", True, "50 times faster"),
    bench.Row("speed", "5 MB", "s", 0.2),
    bench.Row("calls", "an upload", "calls", 1234, "goal", 5, "at most 5", False),
]


def test_every_section_can_be_measured() -> None:
    for name in bench.SECTIONS:
        assert callable(importlib.import_module(f"dev.{name}").measure)


def test_the_table_has_each_figure_beside_its_baseline_and_says_which_goals_are_missed() -> None:
    lines = [" ".join(line.split()) for line in bench.table(ROWS).splitlines()]
    assert lines == [
        "", "speed", "",
        "value beside ratio goal",
        "500 MB 0.2 s 10 plain 0.02 20 times faster: met 50 times faster",
        "5 MB 0.2 s",
        "", "calls", "",
        "value beside ratio goal",
        "an upload 1,234 calls 5 goal 247 at most 5: MISSED",
    ]  # fmt: skip


def test_the_figures_are_written_as_json_too(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    bench.write(ROWS, path)
    found = json.loads(path.read_text())
    assert [(row["what"], row["ratio"]) for row in found] == [("500 MB", 0.02), ("5 MB", None), ("an upload", 246.8)]
    assert [bench.Row(**{name: row[name] for name in row if name != "ratio"}) for row in found] == ROWS


CONTENTS = st.lists(st.tuples(st.binary(max_size=4), st.integers(0, 3)), max_size=5)


@given(content=CONTENTS, begin=st.integers(0, 70), end=st.integers(0, 70))
def test_any_part_of_an_object_is_sent_as_it_is(content: bench.Content, begin: int, end: int) -> None:
    assert b"".join(bench.between(content, begin, end)) == bench.joined(content)[begin:end]


def test_elsewhere_than_on_linux_it_says_that_it_needs_linux() -> None:
    handler = bench.ROOT / "lambda" / "model_evaluator" / "handler.py"
    program = (
        "import runpy, sys\n"
        "sys.platform = 'darwin'\n"
        f"sys.argv = [{str(bench.INVOCATION)!r}, {str(handler)!r}]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input="[]", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("which only Linux can tell: run it there\n")
