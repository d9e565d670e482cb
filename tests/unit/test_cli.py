"""The command line: what is refused, with which words and exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
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
def test_a_destroyed_stack_is_named_as_such_and_stays_paused(
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
        (("data-check",), "say which file: make data-check DATA="),
        (("data-check", "--data", "nowhere.csv"), "there is no such file"),
        (("data-check", "--data", "README.md", "--model", "A"), "a model name has"),
        (("predict", "--text", "  "), "say which text"),
        (("predict", "--text", "hello", "--model", "a/b"), "a model name has"),
        (("logs", "--minutes", "soon"), "MINUTES=soon"),
        (("logs", "--minutes", "0"), "MINUTES=0"),
    ],
)
def test_a_mistake_is_explained_in_one_line(
    shell: Shell, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert cli.main(list(arguments)) == 2
    assert reason in capsys.readouterr().err


# --- what Typer refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("stauts",), "no such command 'stauts'. Did you mean 'status'?"),
        (("upload", "--modle", "x"), "no such option: --modle (Possible options: --model)"),
        (("upload", "--data"), "option '--data' requires an argument"),
        (("upload", "x.csv"), "unexpected extra argument(s) (x.csv)"),
        (("plan", "-auto-approve"), "no such option: -a"),
    ],
)
def test_a_mistyped_command_line_is_refused_with_what_helps(
    shell: Shell, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    before = len(shell.world.around.calls)
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[0].startswith("error: ")
    assert reason in said.err
    assert "--help shows what there is" in said.err
    assert len(shell.world.around.calls) == before


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_a_flag_in_the_environment_is_1_or_0(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("YES", value)
    assert shell.run("pause") == 2
    assert f"YES={value}: it is 1 or 0" in capsys.readouterr().err
    assert not shell.is_paused()


@pytest.mark.parametrize(("value", "asks"), [("1", False), ("0", True), ("", True)])
def test_a_flag_in_the_environment_counts(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, value: str, asks: bool
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "no")
    monkeypatch.setenv("YES", value)
    assert shell.run("pause") == (2 if asks else 0)
    assert shell.is_paused() != asks


def test_an_option_can_come_from_the_environment_and_the_command_line_wins(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", "environment.csv")
    assert shell.run("upload") == 2
    assert "DATA=environment.csv: there is no such file" in capsys.readouterr().err
    assert shell.run("upload", "--data", "typed.csv") == 2
    assert "DATA=typed.csv: there is no such file" in capsys.readouterr().err


def test_an_empty_variable_is_as_good_as_none(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """make passes every variable, set or not."""
    for name in ("DATA", "MODEL", "TARGET", "MINUTES"):
        monkeypatch.setenv(name, "")
    assert shell.run("upload") == 2
    assert "say which file" in capsys.readouterr().err


def test_without_a_command_there_is_help_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert "rollback" in said.out + said.err
    assert "error" not in said.out + said.err


def test_help_names_the_option_and_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["upload", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--model" in said
    assert "[env var: MODEL]" in said


def test_the_installed_program_is_the_same() -> None:
    program = Path(sys.executable).with_name("mlops")
    ended = subprocess.run([program, "stauts"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Did you mean 'status'?" in ended.stderr


def test_a_command_imports_nothing_of_the_others() -> None:
    """boto3 and Terraform's wrapper are slow to import; --help needs neither."""
    code = "import sys; from mlops import cli; cli.main(['upload', '--help']); print('boto3' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False"
