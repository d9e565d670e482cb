"""Hostile, damaged and huge archives: the evaluator's memory is that for a small healthy one, no file is written, and
each ends in a decision with its reason. The same as `make bench`, with the huge ones a twentieth as large."""

from __future__ import annotations

from types import ModuleType

import pytest

from dev import bench, bench_functions, bench_memory

CASES = {case.name: case for case in bench_memory.archives(scale=0.05)}
HEALTHY = next(iter(CASES))


@pytest.fixture(scope="module")
def healthy() -> bench_memory.Result:
    return bench_memory.evaluate(CASES[HEALTHY])


@pytest.mark.parametrize("name", CASES)
def test_an_archive_ends_in_a_decision_with_the_memory_of_a_small_healthy_one(
    healthy: bench_memory.Result, name: str
) -> None:
    assert bench_memory.problems([healthy, bench_memory.evaluate(CASES[name])]) == []


@pytest.mark.parametrize("name", bench.ENVIRONMENT)
def test_the_bench_sets_what_each_handler_reads(handlers: dict[str, ModuleType], name: str) -> None:
    assert handlers[name].Settings.from_env(bench.ENVIRONMENT[name]).bucket == bench.BUCKET


@pytest.mark.parametrize("where", ["metrics in the output archive", "metrics first in the model's archive"])
def test_the_evaluator_and_the_plain_way_find_the_same_metrics(where: str) -> None:
    case = bench_functions.cases(3)[where]
    ours, plain = bench_functions.evaluated(case), bench_functions.extracted(case)
    assert ours["problem"] == ""
    assert plain["metrics"] == {"accuracy": 0.9}
    assert plain["written"] > 5 * bench.MB
    rows = bench_functions.against_plain("", 3, ours, plain)
    assert [row.what for row in rows] == ["3 MB", "3 MB, peak memory", "3 MB, fetched", "3 MB, written to disk"]
    assert rows[-1].value == 0
