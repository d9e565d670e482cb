"""mlops upload: what it says about what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fake_sagemaker import refusal
from mlops.records import LEDGER_KEY, PAUSED_KEY
from shell import Shell
from test_deployment_orchestrator import FIRST
from world import BUCKET, ENDPOINT, Interruption


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "tickets.csv"
    file.write_text("text,label\nhello,greeting\n")
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
