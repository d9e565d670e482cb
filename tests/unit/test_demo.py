"""mlops demo: what it does before the local AWS starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from local import stack
from mlops import cli, demo
from mlops.data_check import Settings, check, rows_of


def hold_back(data: Path) -> tuple[list[tuple[str, str]], Path]:
    copy = data.parent / "copy" / data.name
    return demo.hold_back(data, copy, check(data, Settings())), copy


def test_a_text_of_each_label_is_held_back_from_any_file_that_is_read(tmp_path: Path) -> None:
    rows = [(f"text {n}", "xy"[n % 2]) for n in range(60)]
    data = tmp_path / "data.tsv"
    lines = ["id\tText\tLabel", *(f"{n}\t{text}\t{label}" for n, (text, label) in enumerate([*rows, *rows]))]
    data.write_text("\r\n".join([*lines, "121\t\tx"]), encoding="utf-16")

    held, copy = hold_back(data)

    assert held == [("text 0", "x"), ("text 1", "y")]
    assert [(text, label) for _, text, label in rows_of(copy, Settings())] == [*rows[2:], *rows[2:]]


def test_nothing_is_held_back_of_rare_labels(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"text {n % 19},x\nother {n % 19},y\n" for n in range(60)))

    held, copy = hold_back(data)

    assert (held, copy.read_bytes()) == ([], data.read_bytes())


def test_what_would_be_refused_is_so_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def up(**_: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(stack, "up", up)
    monkeypatch.setattr(stack, "end_orderly_on_signals", lambda: None)
    data = tmp_path / "data.csv"
    data.write_text("text,label\na,x\n")

    assert cli.main(["demo", "--data", str(data)]) == 2

    assert 'there is only one label, "x"; add rows with other labels' in capsys.readouterr().err
    assert cli.main(["demo", "--data", str(tmp_path)]) == 2
    assert "this is a folder" in capsys.readouterr().err
