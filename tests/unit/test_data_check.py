"""mlops data-check: the verdict of the pipeline's reader in its own words, and what it sees beyond that."""

from __future__ import annotations

import gzip
import importlib
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

import mlops.target
from dev import docs
from fake_sagemaker import refusal
from mlops import cli, data_check, prices
from mlops.data_check import Settings, check
from mlops.target import NothingDeployed, UsageError
from mlops.upload import deployed_settings
from shell import Shell
from test_reader_shapes import GOOD, REFUSED, TEXTS, rows

ROOT = Path(__file__).resolve().parents[2]
# As the training program knows it.
reader: Any = importlib.import_module("reader")
SHAPES = {
    **GOOD,
    **{
        f"text: {name}": rows((written, "x"), ("1", "x"), ("2", "y"), ("3", "y"))
        for name, (written, _) in TEXTS.items()
    },
    **{f"refused: {name}": content for name, (content, _) in REFUSED.items()},
}
PLAIN = "text,label\na 1,x\nb 2,x\nc 3,y\nd 4,y\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


@pytest.fixture
def no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(where: str) -> None:
        if where:
            raise UsageError("no local AWS is running")
        raise NothingDeployed("nothing is deployed from here: run make deploy first")

    monkeypatch.setattr(mlops.target, "connect", connect)


def verdict(content: bytes) -> tuple[str, dict[str, str]]:
    """What the training program says of a file: why it is refused, "" if it is not, and what it holds."""
    found, told = reader.Reader([content], "text", "label"), {}
    try:
        for _ in found:
            pass
        told = reader.told(found.findings)
        reader.check_trainable(found.findings)
    except reader.Unreadable as error:
        return str(error), told
    return "", told


@pytest.mark.parametrize("name", SHAPES)
def test_data_check_and_the_workflow_say_what_the_training_program_says(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The workflow's step runs main (test_workflows.py)."""
    path = write(SHAPES[name])
    refused, told = verdict(path.read_bytes())

    status = data_check.main([str(path), "text", "label"])

    said = capsys.readouterr()
    assert (status, said.err) == ((2, f"refused: {path}: {refused}\n") if refused else (0, ""))
    lines = [line.split(maxsplit=0)[0] for line in said.out.splitlines() if line]
    for row, text in told.items():
        assert any(line.startswith(f"{row} ") and line.endswith(f" {text}") for line in lines), row


# --- what people want to see -------------------------------------------------------------------------


def test_repeated_contradicting_and_nearly_repeated_texts_have_their_lines(write: Callable[..., Path]) -> None:
    path = write("text,label\na b,x\nc,x\na b,x\na b,y\nA  b,x\nd,y\ne,y\nA  b,y\n")

    seen = check(path, Settings()).seen

    assert (seen.repeated.first, seen.repeated.rows) == ((4, 5, 9), 3)
    assert seen.contradicting.first == (5, 9)
    assert seen.nearly_repeated.first == (6,)


def test_as_many_rows_repeat_a_text_as_the_reader_counts(write: Callable[..., Path]) -> None:
    path = write("text,label\n" + "".join(f"{n % 7} {'A' if n % 3 else 'a'},{'xy'[n % 2]}\n" for n in range(60)))

    checked = check(path, Settings())

    assert checked.findings is not None
    assert checked.seen.repeated.rows == checked.findings.duplicates > 40


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (PLAIN + "e 5,\n" + "".join(f"f {n},x\n" for n in range(30)), "1 of 35 rows are left out"),
        (PLAIN + "e,X\nf,X\n", "labels that look alike"),
        (PLAIN + "e,nan\nf,nan\n", 'labels like empty cells are labels: "nan"'),
        (PLAIN + "a 1,y\n", "1 texts have several labels (line 6)"),
        (PLAIN + "A 1,x\n", "1 rows differ from an earlier one only in case, spaces or Unicode form (line 6)"),
        (
            "text,label\n" + "".join(f"{n} is SPAM!,spam\nno {n},ham\n" for n in range(6)),
            'a label\'s name stands in nearly every one of its texts: "spam" in 6 of 6 (line 2, 4, 6, 8, 10, …)',
        ),
        ("text,label\n" + "".join(f"id-{n},{'xy'[n % 2]}\n" for n in range(9)), "9 texts are one word with a digit"),
    ],
)
def test_a_good_file_has_a_warning_of_its_own(write: Callable[..., Path], content: str, warning: str) -> None:
    checked = check(write(content), Settings())

    assert checked.refused == ""
    assert len(checked.warnings) == 1
    assert warning in checked.warnings[0]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN + "a 1,x\n",  # a text twice, with one label
        "text,label\n" + "".join(f"{n} spammer,spam\nno {n},ham\n" for n in range(6)),
        "text,label\n" + "".join(f"a {n} is good,a\nno {n},b\n" for n in range(6)),
    ],
)
def test_what_is_usual_is_no_warning(write: Callable[..., Path], content: str) -> None:
    assert check(write(content), Settings()).warnings == []


def test_longest_and_cut_texts_have_their_lines(write: Callable[..., Path]) -> None:
    path = write(PLAIN + f"{'a ' * 50},x\n{'b ' * 300},y\n")

    seen = check(path, Settings(max_length=100)).seen

    assert [(length, -line) for length, line in seen.longest[:2]] == [(599, 7), (99, 6)]
    assert (seen.max_characters, seen.cut.first) == (320, (7,))


def test_no_text_and_no_long_label_is_shown(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    secret, label = "my card is 4111", "L" * 41
    path = write(f"text,label\n{secret},{label}\n{secret} 2,{label}\n{secret},y\nb,y\nc,y\n")

    assert data_check.main([str(path)]) == 0

    said = capsys.readouterr().out
    assert "card" not in said
    assert "LLL" not in said
    assert "(a label of 41 characters)" in said


def test_a_terminal_gets_the_same_words(write: Callable[..., Path]) -> None:
    path = write(PLAIN.replace(",x", ",[red]x\x1b"))
    end, terminal = pty.openpty()
    command = [sys.executable, "-m", "mlops.data_check", str(path)]
    subprocess.run(command, stdout=terminal, check=True, env={**os.environ, "COLUMNS": "100", "TERM": "dumb"})
    os.close(terminal)

    shown = os.read(end, 100_000).decode()

    os.close(end)
    assert '"[red]x\\u001b"' in shown
    assert "4 read, 4 used" in shown
    assert "\x1b" not in shown


def test_a_table_is_one_line_a_row_where_there_is_no_terminal(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data_check.main([str(write(PLAIN))])
    assert '  labels        2: "x" 2, "y" 2\n' in capsys.readouterr().out


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.csv", "there is no such file"),
        (".", "this is a folder"),
        ("data.xlsx", "only files named .csv, .tsv, .csv.gz or .tsv.gz are trained on: save it as CSV"),
        ("data.gz", "only files named"),
    ],
)
def test_what_is_no_file_to_train_on_is_named(
    write: Callable[..., Path], no_stack: None, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    write(PLAIN, "data.xlsx")
    path = write(PLAIN, "data.gz").parent / name

    assert cli.main(["data-check", "--data", str(path)]) == 2

    assert f"error: DATA={path}: {reason}" in capsys.readouterr().err
    assert reason in check(path, Settings()).refused


@pytest.mark.parametrize("name", ["a.TSV", "a.csv.gz", "a.tsv.gz", "a.CSV"])
def test_the_endings_of_the_pipeline_are_taken(write: Callable[..., Path], name: str) -> None:
    content = gzip.compress(PLAIN.encode()) if name.endswith("gz") else PLAIN
    assert check(write(content, name), Settings()).refused == ""


# --- whose settings ------------------------------------------------------------------------------------


def test_without_a_stack_the_defaults_count_and_that_is_said(
    write: Callable[..., Path], no_stack: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data-check", "--data", str(write(PLAIN))]) == 0
    said = capsys.readouterr().out
    assert (
        'columns "text" and "label", at most 5 % of the rows left out (the defaults: nothing is deployed from here)\n'
        in said
    )
    assert "up to 2 epochs on a ml.m5.xlarge" in said
    assert said.endswith(f"good: the pipeline trains on {write(PLAIN)}\n")


@pytest.mark.parametrize("error", [NoCredentialsError(), EndpointConnectionError(endpoint_url="https://x")])
def test_without_credentials_or_a_network_the_defaults_count(
    write: Callable[..., Path],
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr(shell.functions, "get_function_configuration", fails)
    assert cli.main(["data-check", "--data", str(write(PLAIN))]) == 0
    assert f"(the defaults: no stack can be asked ({error}))" in capsys.readouterr().out


def test_a_stack_that_was_asked_for_must_be_there(
    write: Callable[..., Path], no_stack: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data-check", "--data", str(write(PLAIN)), "--target", "local"]) == 2
    assert "error: no local AWS is running" in capsys.readouterr().err


def test_the_stacks_settings_count(
    write: Callable[..., Path], shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.functions.environment = {
        "TEXT_COLUMN": "Message",
        "LABEL_COLUMN": "Category",
        "MAX_ROWS_LEFT_OUT": "0.2",
        "TRAINING_INSTANCE_TYPE": "ml.g5.xlarge",
        "HYPERPARAMETERS": '{"epochs": "7", "max_length": "many"}',
    }
    path = write("Message;Category\na;x\nb;x\nc;y\nd;y\ne;\n")

    assert cli.main(["data-check", "--data", str(path)]) == 0

    said = capsys.readouterr().out
    assert 'columns "Message" and "Category", at most 20 % of the rows left out (the settings of the stack' in said
    assert "the speed of a ml.g5.xlarge was never measured ($1.408 an hour)" in said
    assert deployed_settings(shell.target).epochs == 7  # type: ignore[arg-type]
    shell.functions.environment["MAX_ROWS_LEFT_OUT"] = "0.1"
    assert cli.main(["data-check", "--data", str(path)]) == 2
    assert "1 of 5 rows cannot be used (no label: 1 (line 6)), more than 10 %" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("AccessDeniedException", "you may not read the stack's settings"),
        ("ResourceNotFoundException", "was destroyed"),
    ],
)
def test_settings_that_cannot_be_read_are_the_defaults(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    def fails(**_: Any) -> None:
        raise refusal("GetFunctionConfiguration", code, "No.", 403)

    monkeypatch.setattr(shell.functions, "get_function_configuration", fails)
    found = deployed_settings(shell.target)  # type: ignore[arg-type]
    assert why in found.source
    assert found == Settings(source=found.source)


def test_other_columns_can_be_tried(
    write: Callable[..., Path], no_stack: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("\ufeffMessage;Category\r\n" + "".join(f"a {n};{'xy'[n % 2]}\r\n" for n in range(8)))

    assert cli.main(["data-check", "--data", str(path)]) == 2
    said = capsys.readouterr().err
    assert (
        'no column "text" and no column "label"; this line must name the columns, and has: "Message", "Category"'
        in said
    )
    assert "TEXT=column LABEL=column tries other columns" in said
    assert cli.main(["data-check", "--data", str(path), "--text", "message", "--label", "category"]) == 0
    assert 'note: without these options the pipeline looks for "text" and "label"' in capsys.readouterr().out
    assert cli.main(["data-check", "--data", str(path), "--text", "label"]) == 2
    assert "the column label cannot have both the texts and the labels" in capsys.readouterr().err


def test_the_defaults_are_terraforms() -> None:
    defaults = {item.name: (item.default or "").strip('"') for item in docs.read_module(ROOT / "terraform").inputs}
    settings = Settings()

    for name in ("text_column", "label_column", "base_model"):
        assert defaults[name] == getattr(settings, name)
    assert defaults["training_instance_type"] == settings.instance_type
    assert float(defaults["training_max_runtime_seconds"]) == settings.max_seconds


# --- minutes and dollars --------------------------------------------------------------------------------


def test_twice_the_texts_take_twice_the_time_beyond_the_start() -> None:
    low, likely, high = prices.START_MINUTES
    one = prices.estimate(10**6, 3, 0.2, "distilbert-base-uncased", "ml.m5.xlarge")
    two = prices.estimate(2 * 10**6, 3, 0.2, "distilbert-base-uncased", "ml.m5.xlarge")

    assert two.minutes[1] - likely == pytest.approx(2 * (one.minutes[1] - likely))
    assert one.minutes[0] - low < one.minutes[1] - likely < one.minutes[2] - high
    assert one.dollars[1] == pytest.approx(one.minutes[1] / 60 * prices.HOURLY["ml.m5.xlarge"])


def test_each_instance_of_a_job_is_paid_for() -> None:
    one, four = (prices.estimate(10**6, 3, 0.2, "auto", "ml.m5.xlarge", instances=count) for count in (1, 4))
    start = prices.START_MINUTES[1]

    assert four.minutes[1] - start == pytest.approx((one.minutes[1] - start) / 4)
    assert four.dollars[1] == pytest.approx(four.minutes[1] / 60 * 4 * prices.HOURLY["ml.m5.xlarge"])
    assert "up to 3 epochs on 4 x ml.m5.xlarge" in four.assumed
    assert "a multilingual model takes twice as long" in four.assumed
    assert "spot" not in four.assumed
    spot = prices.estimate(10**6, 3, 0.2, "auto", "ml.m5.xlarge", is_spot=True)
    assert spot.assumed.endswith("November 2026 on demand: spot instances cost less, and may have to wait")


def test_what_a_stack_s_function_says_of_instances_is_read() -> None:
    environment = {"TRAINING_INSTANCE_COUNT": "4", "TRAINING_MAX_WAIT_SECONDS": "7200"}
    found = Settings.read(environment, "a stack", False)

    assert (found.instances, found.is_spot) == (4, True)
    assert (Settings.read({}, "an older stack", False).instances, Settings().is_spot) == (1, False)


def test_what_is_not_known_is_said() -> None:
    assert "taken to be as large as BERT's base" in str(prices.estimate(10, 3, 0.2, "someones/model", "ml.m5.xlarge"))
    assert str(prices.estimate(10, 3, 0.2, "x", "ml.x9.huge")) == (
        "not known: the speed of a ml.x9.huge was never measured (its price is not in the table either)"
    )
    here = str(prices.estimate(10, 3, 0.2, "x", "ml.m5.xlarge", cores=2))
    assert "2 cores of this machine" in here
    assert "$" not in here


def test_a_training_that_will_not_get_to_fine_tuning_is_a_warning(write: Callable[..., Path]) -> None:
    [warning] = check(write(PLAIN), Settings(max_seconds=100)).warnings
    assert "can hardly fine-tune the base model within 0.0278 hours" in warning


def test_every_type_with_a_speed_has_a_price() -> None:
    assert prices.CORES.keys() < prices.HOURLY.keys()
