"""mlops upload: what it checks, and what it says about what follows."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fake_sagemaker import refusal
from mlops import records, upload
from mlops.records import LEDGER_KEY, PAUSED_KEY
from shell import Shell
from test_deployment_orchestrator import FIRST
from world import BUCKET, ENDPOINT, Interruption

GOOD = "text,label\nhello there,greeting\nhi,greeting\nbye,farewell\nsee you,farewell\n"
WARNED = f"{GOOD}hi,farewell\nhi,greeting\n"


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "tickets.csv"
    file.write_text(GOOD)
    return str(file)


def test_upload_names_the_model_and_its_endpoint(shell: Shell, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("upload", "--data", data, "--model", "tickets") == 0
    said = capsys.readouterr().out
    assert f"uploaded s3://{BUCKET}/data/train/tickets/tickets.csv\n" in said
    assert "the training of the model tickets starts now" in said
    assert f"if the new model is good enough, {ENDPOINT}-tickets serves it" in said
    assert shell.run("upload", "--data", data) == 0
    assert (
        f"the model default starts now\nif the new model is good enough, {ENDPOINT} serves" in capsys.readouterr().out
    )


def test_while_the_pipeline_is_paused_an_upload_waits(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("pause", "--yes")
    capsys.readouterr()
    assert shell.run("upload", "--data", data) == 0
    said = capsys.readouterr().out
    assert "starts now" not in said
    assert "waits: the pipeline is paused, since 2026-12-01" in said
    assert "make resume starts it" in said
    assert shell.world.keys("data/train/") == ["data/train/tickets.csv"]


def test_nothing_is_uploaded_to_the_bucket_of_a_destroyed_stack(
    shell: Shell, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """make destroy keeps the bucket, and leaves the note of a pause in it."""

    def invoke(FunctionName: str, **_: Any) -> None:
        assert FunctionName == "train-function"
        raise refusal("Invoke", "ResourceNotFoundException", "Function not found", 404)

    shell.world.put(PAUSED_KEY, {"schema": 2, "by": "me", "at": "2026-12-01T10:00:00+00:00", "endpoints": []})
    monkeypatch.setattr(shell.functions, "invoke", invoke)
    assert shell.run("upload", "--data", data) == 2
    said = capsys.readouterr()
    assert "this stack was destroyed. make deploy takes its bucket up again" in said.err
    assert "starts" not in said.out
    assert shell.world.keys("data/train/") == []


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"models": [], "max_models": 2}, "would be a new model, and max_models is 2 (a, b); to train one more, raise"),
        ({"models": ["a"], "max_models": 9}, "may not be trained: add it to models in Terraform"),
    ],
)
def test_a_model_that_would_be_refused_is_not_uploaded(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str], outputs: dict[str, Any], said: str
) -> None:
    shell.target.outputs.update(outputs)
    shell.world.put(LEDGER_KEY, {"schema": 2, "models": ["a", "b"]})
    assert shell.run("upload", "--data", data, "--model", "c") == 2
    assert f"MODEL=c {said}" in capsys.readouterr().err
    assert shell.world.keys("data/train/") == []
    assert shell.run("upload", "--data", data, "--model", "a") == 0


@pytest.mark.parametrize(("call", "code"), [("Invoke", "AccessDeniedException"), ("GetObject", "AccessDenied")])
def test_who_may_only_upload_can_still_do_so(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str], call: str, code: str
) -> None:
    def denied() -> None:
        raise refusal(call, code, "You are not authorized", 403)

    shell.world.around.interruption = Interruption(call, denied)
    assert shell.run("upload", "--data", data) == 0
    assert f"if the stack is there and not paused: you may not look ({call})" in capsys.readouterr().out
    assert shell.world.keys("data/train/") == ["data/train/tickets.csv"]


def test_what_else_aws_refuses_is_an_error(shell: Shell, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    def busy() -> None:
        raise refusal("GetObject", "SlowDown", "Please reduce your request rate.", 503)

    shell.go_live(FIRST)
    shell.world.around.interruption = Interruption("GetObject", busy)
    assert shell.run("upload", "--data", data) == 1
    assert "SlowDown" in capsys.readouterr().err
    assert shell.world.keys("data/train/") == []


# --- the check comes first ------------------------------------------------------------------------------


def nobody(_: str) -> str:
    raise EOFError


def uploads(shell: Shell) -> list[str]:
    return shell.world.keys("data/train/")


@pytest.mark.parametrize("options", [(), ("--yes",)])
def test_a_file_that_will_be_refused_is_not_sent(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    Path(data).write_text("text,label\nhello,greeting\n")
    assert shell.run("upload", "--data", data, *options) == 2
    said = capsys.readouterr().err
    assert f'refused: {data}: there is only one label, "greeting"; add rows with other labels\n' in said
    assert "nothing was sent\n" in said
    assert uploads(shell) == []


def test_it_is_checked_as_the_stack_is_set(shell: Shell, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    shell.functions.environment["TEXT_COLUMN"] = "message"
    assert shell.run("upload", "--data", data) == 2
    assert 'no column "message"' in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "sent"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_a_file_with_warnings_is_asked_about(
    shell: Shell, data: str, monkeypatch: pytest.MonkeyPatch, answer: str, sent: bool
) -> None:
    Path(data).write_text(WARNED)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert shell.run("upload", "--data", data) == (0 if sent else 2)
    assert bool(uploads(shell)) == sent


def test_a_script_must_say_yes_to_warnings(
    shell: Shell, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(data).write_text(WARNED)
    monkeypatch.setattr("builtins.input", nobody)
    assert shell.run("upload", "--data", data) == 2
    said = capsys.readouterr()
    assert "warning: 1 texts have several labels (line 6)" in said.out
    assert "nothing was sent (YES=1 sends a file with warnings for a script)" in said.err
    assert uploads(shell) == []
    monkeypatch.setenv("YES", "1")
    assert shell.run("upload", "--data", data) == 0
    assert uploads(shell) == ["data/train/tickets.csv"]


def test_a_good_file_is_not_asked_about(shell: Shell, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", nobody)
    assert shell.run("upload", "--data", data) == 0


def test_the_same_bytes_again_are_noticed(shell: Shell, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run("upload", "--data", data)
    assert "the same bytes" not in capsys.readouterr().out
    shell.run("upload", "--data", data)
    assert "the same bytes lie there since 20" in capsys.readouterr().out
    Path(data).write_text(GOOD + "hello,greeting\n")
    shell.run("upload", "--data", data)
    assert "the same bytes" not in capsys.readouterr().out


# --- what state the stack is in -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("disabled", "the rule rule-uploads is disabled"),
        ("gone", "the rule rule-uploads is gone"),
        ("no target", "the rule rule-uploads has lost its target"),
    ],
)
def test_without_its_rule_an_upload_waits_for_a_sweep_and_without_both_for_ever(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str], fault: str, said: str
) -> None:
    shell.events.faults = {"rule-uploads": fault}
    assert shell.run("upload", "--data", data) == 0
    assert f"waits for a sweep, in half an hour or so: {said}; make deploy restores it" in capsys.readouterr().out
    shell.world.client("s3").delete_object(Bucket=BUCKET, Key="data/train/tickets.csv")
    shell.events.faults["rule-sweep"] = fault
    assert shell.run("upload", "--data", data) == 2
    errors = capsys.readouterr().err
    assert f"nothing would start a training: {said}" in errors
    assert "This stack is being destroyed, or that was interrupted" in errors
    assert uploads(shell) == []


def test_a_destroy_under_way_is_not_taken_for_a_pause(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops the rules first, and then leaves the note of a pause."""
    shell.run("pause", "--yes")
    shell.events.faults = {"rule-uploads": "disabled", "rule-sweep": "disabled"}
    capsys.readouterr()
    assert shell.run("upload", "--data", data) == 2
    assert "make resume" not in capsys.readouterr().out


def test_a_stack_of_which_only_the_bucket_is_left_is_named(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.target.functions = {}
    assert shell.run("upload", "--data", data) == 2
    assert f"of this stack only {BUCKET} is left: make deploy takes it up again" in capsys.readouterr().err
    assert uploads(shell) == []


# --- columns of other names ---------------------------------------------------------------------------

MESSAGES = GOOD.replace("text,label", "Message;Category").replace(",", ";")
COLUMNS = ("--text", "Message", "--label", "Category")


@pytest.fixture
def messages(tmp_path: Path) -> str:
    file = tmp_path / "messages.csv"
    file.write_text(MESSAGES)
    return str(file)


def settings_of(shell: Shell, model: str = "tickets") -> dict[str, Any]:
    return shell.world.record(f"data/train/{model}/settings.json")


def test_columns_that_are_given_become_the_models_before_its_file_is_sent(shell: Shell, messages: str) -> None:
    assert shell.run("upload", "--data", messages, "--model", "tickets", *COLUMNS) == 0
    assert settings_of(shell) == {"text_column": "Message", "label_column": "Category"}
    sent = [call for call in shell.world.around.calls if call in ("PutObject", "UploadFile", "CreateMultipartUpload")]
    assert len(sent) == 2
    assert shell.world.keys("data/train/") == ["data/train/tickets/messages.csv", "data/train/tickets/settings.json"]


def test_the_models_columns_need_not_be_given_again(
    shell: Shell, messages: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("upload", "--data", messages, "--model", "tickets", *COLUMNS)
    capsys.readouterr()
    assert shell.run("upload", "--data", messages, "--model", "tickets", "--yes") == 0
    said = capsys.readouterr().out
    assert 'columns "Message" and "Category"' in said
    assert "the model's settings.json and" in said
    assert "written to" not in said
    assert shell.run("upload", "--data", messages, "--model", "others") == 2


def test_the_models_other_settings_stay(shell: Shell, messages: str) -> None:
    shell.world.put("data/train/tickets/settings.json", {"epochs": 7, "text_column": "old"})
    assert shell.run("upload", "--data", messages, "--model", "tickets", *COLUMNS) == 0
    assert settings_of(shell) == {"epochs": 7, "text_column": "Message", "label_column": "Category"}


def test_settings_that_the_pipeline_would_refuse_are_named_and_nothing_is_sent(
    shell: Shell, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.world.put("data/train/settings.json", {"epoch": 7})
    assert shell.run("upload", "--data", data) == 2
    assert f"s3://{BUCKET}/data/train/settings.json: $: Additional properties" in capsys.readouterr().err
    assert shell.world.keys("data/train/") == ["data/train/settings.json"]


def test_settings_that_change_meanwhile_are_not_overwritten(
    shell: Shell, messages: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"epochs": 2}
    shell.world.around.interruption = Interruption(
        "PutObject", lambda: shell.world.put("data/train/tickets/settings.json", theirs)
    )
    assert shell.run("upload", "--data", messages, "--model", "tickets", *COLUMNS) == 2
    assert "somebody else has just changed" in capsys.readouterr().err
    assert shell.world.keys("data/train/") == ["data/train/tickets/settings.json"]
    assert settings_of(shell) == theirs


def test_the_settings_are_where_the_training_orchestrator_reads_them(training: ModuleType) -> None:
    for model in ("default", "tickets"):
        key = upload.key_of(Path("x.csv"), model)
        assert upload.settings_key(model) == training.settings_key(key)
    assert training.SETTINGS_MAX_BYTES == records.SETTINGS_MAX_BYTES
