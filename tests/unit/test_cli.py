"""The command line: what is refused, with which words and exit status."""

from __future__ import annotations

from typing import Any

import pytest

from fake_sagemaker import refusal
from mlops import cli
from shell import Shell
from test_deployment_orchestrator import FIRST
from world import Interruption


def test_a_mistyped_target_is_refused_and_not_taken_for_aws(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["redrive", "--target", "locl"]) == 2
    assert "TARGET=locl: it is aws or local" in capsys.readouterr().err


def test_what_aws_refuses_is_one_line_and_exit_status_1(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    def denied() -> None:
        raise refusal("GetObject", "AccessDenied", "You are not authorized")

    shell.world.around.interruption = Interruption("GetObject", denied)
    assert shell.run("resume") == 1
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: a test refused: An error occurred (AccessDenied)")
    )


def test_ctrl_c_is_no_traceback(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert shell.run("pause") == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("resume",), ("resume", "--model", "default"), ("retrain", "--job", FIRST)])
def test_a_stack_that_was_destroyed_is_said_to_be_and_stays_paused(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    shell.go_live(FIRST)
    shell.run("pause", "--yes")
    before = shell.world.keys()

    def invoke(**_: Any) -> None:
        raise refusal("Invoke", "ResourceNotFoundException", "Function not found", 404)

    monkeypatch.setattr(shell.functions, "invoke", invoke)
    assert shell.run(*command) == 2
    assert "this stack was destroyed. make deploy takes its bucket up again" in capsys.readouterr().err
    assert shell.world.keys() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("upload",), "say which file"),
        (("upload", "--data", "nowhere.csv"), "there is no such file"),
        (("upload", "--data", "README.md"), "only files named .csv"),
        (("upload", "--data", "README.md", "--model", "A"), "a model name has"),
        (("predict", "--text", "  "), "say which text"),
        (("predict", "--text", "hello", "--model", "a/b"), "a model name has"),
        (("logs", "--minutes", "soon"), "MINUTES=soon"),
        (("logs", "--minutes", "0"), "MINUTES=0"),
    ],
)
def test_what_was_mistyped_is_said_in_one_line(
    shell: Shell, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert cli.main(list(arguments)) == 2
    assert reason in capsys.readouterr().err
