"""The Makefile, with the real make: which variables a target takes, and that values reach the program as typed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from dev import make_variables
from mlops import cli

ROOT = Path(__file__).resolve().parents[2]
# Writes down its arguments and environment.
PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys
pathlib.Path("ran.json").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the real Makefile, and a program in place of mlops."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "requirements.txt", "scripts/local/requirements.txt", "scripts/dev/x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    shutil.copy(ROOT / "scripts" / "dev" / "make_variables.py", tmp_path / "scripts" / "dev")
    program = tmp_path / ".venv" / "bin" / "mlops"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / ".venv" / ".tools").touch()
    return tmp_path


def make(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *arguments],
        cwd=project,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def ran(project: Path) -> tuple[list[str], dict[str, str]] | None:
    """The arguments and the environment of the program; None when it did not run."""
    note = project / "ran.json"
    if not note.exists():
        return None
    arguments, environment = json.loads(note.read_text())
    return arguments, environment


def test_a_target_runs_its_command_with_the_variables_it_takes(project: Path) -> None:
    done = make(project, "upload", "DATA=x.csv", "MODEL=tickets", "TARGET=local")
    assert done.returncode == 0, done.stderr
    arguments, environment = ran(project) or ([], {})
    assert arguments == ["upload"]
    assert {name: environment[name] for name in ("DATA", "MODEL", "TARGET", "REASON")} == {
        "DATA": "x.csv",
        "MODEL": "tickets",
        "TARGET": "local",
        "REASON": "",
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("upload", "DATA=x.csv", "MODLE=pizza"), "there is no variable MODLE: did you mean MODEL?"),
        (("upload", "DATA=x.csv", "model=pizza"), "there is no variable model: did you mean MODEL?"),
        (("upload", "DATA=x.csv", "Model=pizza"), "there is no variable Model: did you mean MODEL?"),
        (("pause", "STOP_JOB=1"), "there is no variable STOP_JOB: did you mean STOP_JOBS?"),
        (("status", "MODEL=pizza"), "make status does not take MODEL: it takes none"),
        (("resume", "JOB=x"), "make resume does not take JOB: it takes MODEL"),
        (("upload", "DATA=x.csv", "QQQQQ=1"), "there is no variable QQQQQ: make help shows those there are"),
        (("upload", "DATA=x.csv", "a'b=1"), "there is no variable a'b"),
        (("DATA=x.csv",), "make does not take DATA"),
        (("upload", "DATA=x.csv", "RUN=echo"), "there is no variable RUN"),
    ],
)
def test_a_variable_that_a_target_does_not_take_is_refused_before_anything_runs(
    project: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = make(project, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert ran(project) is None


@pytest.mark.parametrize("setting", ["AWS_REGION=eu-west-1", "TF_VAR_alert=x", "PYTHON=python3", "LOCAL_STATE=/tmp/x"])
def test_what_other_programs_read_passes(project: Path, setting: str) -> None:
    done = make(project, "status", setting)
    assert done.returncode == 0, done.stderr
    assert ran(project) is not None


def test_two_targets_take_what_either_takes(project: Path) -> None:
    assert make(project, "status", "upload", "DATA=x.csv").returncode == 0


@pytest.mark.parametrize(
    "value",
    [
        "$(shell touch expanded)",
        "${shell touch expanded}",
        "`touch expanded`",
        "$HOME $$HOME $(DATA)",
        'it\'s "quoted" \\ # not a comment; & | > x',
        "two  spaces, a\ttab",
        "grüße 漢字",
        "--model",
        "a=b",
    ],
)
def test_a_value_reaches_the_program_as_it_was_typed(project: Path, value: str) -> None:
    done = make(project, "rollback", "MODEL=default", f"REASON={value}")
    assert done.returncode == 0, done.stderr
    _, environment = ran(project) or ([], {})
    assert environment["REASON"] == value
    assert not (project / "expanded").exists()


def test_a_value_in_the_environment_reaches_the_program_as_it_is(project: Path) -> None:
    done = make(project, "rollback", MODEL="default", REASON="$(shell touch expanded)")
    assert done.returncode == 0, done.stderr
    _, environment = ran(project) or ([], {})
    assert environment["REASON"] == "$(shell touch expanded)"
    assert not (project / "expanded").exists()


def test_a_refused_command_is_a_refused_make(project: Path) -> None:
    (project / ".venv" / "bin" / "mlops").write_text(f"#!{sys.executable}\nraise SystemExit(2)\n")
    assert make(project, "status").returncode == 2


# --- the same variables on both sides -----------------------------------------------------------------

TAKEN = make_variables.variables((ROOT / "Makefile").read_text(encoding="utf-8"))
COMMANDS = get_command(cli.app).commands  # type: ignore[attr-defined]


def read_by(command: str) -> set[str]:
    """The variables that a command reads."""
    return {parameter.envvar for parameter in COMMANDS[command].params if parameter.envvar}


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"local-status"}))
def test_a_commands_variables_are_in_its_line_of_make_help(command: str) -> None:
    assert TAKEN[command] == read_by(command) - {"TARGET"}


def test_make_passes_every_variable_that_a_command_reads() -> None:
    passed = re.search(r"foreach name,([A-Z_ ]+),\$\(eval \$\(call passed", (ROOT / "Makefile").read_text())
    assert passed is not None
    assert set(passed[1].split()) == set().union(*(read_by(command) for command in COMMANDS))


def test_every_option_has_a_help_text() -> None:
    without = [
        (command, parameter.name)
        for command, options in COMMANDS.items()
        for parameter in options.params
        if not getattr(parameter, "help", "")
    ]
    assert without == []


@pytest.mark.parametrize(
    "recipe", ["false; touch went-on", "false | true; touch went-on", 'echo "$$NOT_SET"; touch went-on']
)
def test_a_recipe_ends_at_its_first_error(project: Path, recipe: str) -> None:
    """macOS comes with make 3.81, which does not know .SHELLFLAGS."""
    with (project / "Makefile").open("a") as makefile:
        makefile.write(f"\nx:\n\t@{recipe}\n")
    assert make(project, "x").returncode == 2
    assert not (project / "went-on").exists()
