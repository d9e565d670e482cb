""".github/workflows: what actionlint does not ask for. Pinned actions, least permissions, nothing typed by people in a
shell's text, and the steps of an upload run as they stand in the file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from terraform import mirror_candidates

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
NAMES = ["ci.yml", "release.yml", "upload-data.yml"]
# A commit, and the version that it is in words.
PINNED = re.compile(r"uses: [\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def read(name: str) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load((WORKFLOWS / name).read_text())
    return workflow


def jobs(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(name)["jobs"]
    return found


def step(name: str) -> dict[str, Any]:
    """The step with this name, of all workflows."""
    every = [step for workflow in NAMES for job in jobs(workflow).values() for step in job.get("steps", [])]
    [found] = [step for step in every if step.get("name") == name]
    return dict(found)


def test_the_workflows_are_those_that_are_tested_here() -> None:
    assert sorted(path.name for path in WORKFLOWS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_action_is_pinned_to_a_commit_and_says_its_version(name: str) -> None:
    for line in (WORKFLOWS / name).read_text().splitlines():
        if re.match(r"\s*(- )?uses:", line) and "uses: ./" not in line:
            assert PINNED.search(line), line


def test_an_action_has_one_commit_in_all_workflows() -> None:
    used = re.findall(r"uses: ([\w./-]+)@([0-9a-f]{40})", "".join((WORKFLOWS / name).read_text() for name in NAMES))

    assert len({action for action, _ in used}) == len(set(used))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_permitted_but_by_a_job(name: str) -> None:
    assert read(name)["permissions"] == {}
    assert all("permissions" in job for job in jobs(name).values())


def test_only_publishing_may_write_and_only_uploading_may_ask_for_a_token() -> None:
    beyond_reading = {
        (name, job, scope): access
        for name in NAMES
        for job, content in jobs(name).items()
        for scope, access in content["permissions"].items()
        if (scope, access) != ("contents", "read")
    }

    assert beyond_reading == {
        ("release.yml", "publish", "contents"): "write",
        ("upload-data.yml", "upload", "id-token"): "write",
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_run_ends_and_does_not_race_another(name: str) -> None:
    assert "concurrency" in read(name)
    assert all("timeout-minutes" in job for job in jobs(name).values() if "uses" not in job)


@pytest.mark.parametrize("name", NAMES)
def test_no_expression_stands_in_the_text_of_a_script(name: str) -> None:
    for job in jobs(name).values():
        for step in job.get("steps", []):
            assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_read_and_no_checkout_leaves_a_token_behind(name: str) -> None:
    text = (WORKFLOWS / name).read_text()

    assert "secrets." not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_within_a_pipe_counts(name: str) -> None:
    # GitHub's own default is bash without pipefail.
    assert read(name)["defaults"] == {"run": {"shell": "bash"}}


def test_everything_is_checked_with_the_oldest_terraform_and_provider_and_with_the_newest_terraform() -> None:
    versions = (ROOT / "terraform" / "versions.tf").read_text()
    [terraform] = re.findall(r'required_version = ">= ([\d.]+)"', versions)
    [provider] = re.findall(r'version = ">= ([\d.]+), < 7.0"', versions)
    rows = jobs("ci.yml")["check"]["strategy"]["matrix"]["include"]

    checked = [(row["terraform"], row["provider"]) for row in rows if row["target"] == "check"]
    assert checked == [(f"{terraform}.0", f"{provider}.0"), ("latest", f"{provider}.0")]


def test_terraform_is_checked_with_the_newest_provider_that_the_module_allows() -> None:
    rows = jobs("ci.yml")["check"]["strategy"]["matrix"]["include"]

    assert ("terraform", "latest", ">= 6.0, < 7.0") in [
        (row["target"], row["terraform"], row["provider"]) for row in rows
    ]


def test_the_local_suite_runs_on_macos_with_the_oldest_provider() -> None:
    job = jobs("ci.yml")["macos"]
    made = {step["name"]: step for step in job["steps"] if "run" in step}

    assert job["runs-on"] == "macos-latest"
    assert "continue-on-error" not in job
    assert made["Test"]["run"].splitlines() == [
        "make .venv/.training package",
        ".venv/bin/python -m pytest tests/unit tests/local",
    ]
    assert made["Demo"]["run"] == "make demo"
    versions = (ROOT / "terraform" / "versions.tf").read_text()
    assert f">= {made['Keep the provider on macOS']['env']['PROVIDER'].removesuffix('.0')}," in versions


def test_the_provider_is_kept_where_terraform_looks_for_it(tmp_path: Path) -> None:
    stand_in = tmp_path / "terraform"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)

    answer = run_step(
        "Keep the provider where every configuration of the tests finds it",
        tmp_path,
        HOME="/home/runner",
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        PROVIDER=">= 6.0, < 7.0",
        RUNNER_TEMP=str(tmp_path),
    )

    kept = "/home/runner/.terraform.d/plugins"
    assert answer.stdout.splitlines() == [f"-chdir={tmp_path}/provider", "providers", "mirror", kept]
    assert next(iter(mirror_candidates({"HOME": "/home/runner"}))) == Path(kept)
    wanted = json.loads((tmp_path / "provider" / "main.tf.json").read_text())["terraform"]["required_providers"]
    assert wanted == {"aws": {"source": "hashicorp/aws", "version": ">= 6.0, < 7.0"}}


def test_an_upload_asks_for_the_same_by_hand_and_from_another_workflow() -> None:
    # YAML takes the key `on` for true.
    triggers = read("upload-data.yml")[True]
    by_hand, by_call = (triggers[name]["inputs"] for name in ("workflow_dispatch", "workflow_call"))

    assert by_hand.keys() == by_call.keys()
    for name, given in by_hand.items():
        assert {**given, "description": ""} == {**by_call[name], "description": ""}


def run_step(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step in a folder as GitHub does: its text in a file, its settings in the environment."""
    path = folder / "step"
    path.write_text(step(name)["run"])
    settings = {"PATH": os.environ["PATH"], "FOLDER": str(folder), "BUCKET": "b", "MODEL": "", **environment}
    command = ["bash", "-eo", "pipefail", str(path)]
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The sources of the packages, without a build."""
    for name in ("lambda", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def first_build(checkout: Path) -> str:
    """What the first machine gives to the second: the output `sums`."""
    outputs = checkout / "outputs"
    assert run_step("Build", checkout, GITHUB_OUTPUT=str(outputs)).returncode == 0
    shutil.rmtree(checkout / "build")
    [first, *sums, last] = outputs.read_text().splitlines()
    assert (first, last) == ("sums<<END_OF_SUMS", "END_OF_SUMS")
    return "\n".join(sums)


def test_a_release_holds_every_package_and_their_checksums(checkout: Path) -> None:
    answer = run_step("Build again and compare", checkout, SUMS=first_build(checkout))

    assert answer.returncode == 0, answer.stdout + answer.stderr
    published = {
        path.name for pattern in ("*.zip", "*.tar.gz", "SHA256SUMS") for path in checkout.glob(f"build/{pattern}")
    }
    assert published == {path.name for path in (checkout / "build").iterdir()}
    assert len(published) == 5
    checked = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=checkout / "build", capture_output=True, text=True
    )
    assert checked.stdout.count(": OK\n") == 4, checked.stderr


def test_nothing_is_released_when_two_machines_build_different_bytes(checkout: Path) -> None:
    sums = first_build(checkout)
    (checkout / "lambda" / "model_evaluator" / "handler.py").write_text("CHANGED = True\n")

    answer = run_step("Build again and compare", checkout, SUMS=sums)

    assert answer.returncode == 1
    assert "::error::the packages are not reproducible" in answer.stdout


def test_a_package_that_cannot_be_built_is_not_released(checkout: Path) -> None:
    sums = first_build(checkout)
    (checkout / "lambda" / "model_evaluator" / "handler.py").unlink()

    assert run_step("Build again and compare", checkout, SUMS=sums).returncode == 1


def check_csv(folder: Path, content: bytes, file: str = "data.csv") -> subprocess.CompletedProcess[str]:
    (folder / file).write_bytes(content)
    return run_check(folder, file)


def run_check(folder: Path, file: str) -> subprocess.CompletedProcess[str]:
    columns = {"TEXT_COLUMN": "text", "LABEL_COLUMN": "label"}
    return run_step("Check the CSV", folder, FILE=file, PYTHONPATH=str(ROOT / "scripts"), **columns)


def annotations(answer: subprocess.CompletedProcess[str]) -> list[str]:
    """The errors that GitHub shows: between stop-commands and its end it takes no line for a command."""
    [silenced] = re.findall(r"::stop-commands::(\w+)\n.*?\n::\1::\n", answer.stdout, re.DOTALL) or [""]
    heard = re.sub(rf"::stop-commands::{silenced}\n.*?\n::{silenced}::\n", "", answer.stdout, flags=re.DOTALL)
    return re.findall(r"^::error::(.*)$", heard, re.MULTILINE)


GOOD = b"text,label\na,x\nb,x\nc,y\nd,y\n"


def test_a_file_is_checked_by_the_reader_of_the_pipeline(tmp_path: Path) -> None:
    """test_data_check.py has the module that it runs on every shape of a file."""
    assert '-m mlops.data_check "$FOLDER/$FILE" "$TEXT_COLUMN" "$LABEL_COLUMN"' in step("Check the CSV")["run"]
    good = check_csv(tmp_path, "text;label\r\na;x\r\nb;x\r\nc;y\r\nd;y\r\n".encode("utf-16"), "a b;$(id).csv")

    assert (good.returncode, annotations(good)) == (0, [])
    assert "4 read, 4 used" in good.stdout

    bad = check_csv(tmp_path, b"text,class\na,x\n")

    assert bad.returncode == 2
    assert annotations(bad) == [
        f'refused: {tmp_path}/data.csv: line 1: there is no column "label"; this line must name the columns, and has: '
        '"text", "class"'
    ]


def test_the_check_needs_nothing_but_python(tmp_path: Path) -> None:
    """The runner's Python has none of the packages of requirements.txt."""
    code = "import sys; import mlops.data_check as c; c.main([sys.argv[1]]); print(*sys.modules)"
    (tmp_path / "data.csv").write_bytes(GOOD)
    ended = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code, str(tmp_path / "data.csv")],
        env={"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert not {"boto3", "typer", "rich"} & {*ended.stdout.split()}


def test_the_reader_is_of_the_commit_that_the_workflow_is_of() -> None:
    first, second = (
        item["with"] for item in jobs("upload-data.yml")["upload"]["steps"] if "checkout" in item.get("uses", "")
    )

    assert (first["path"], "repository" in first) == ("repository", False)
    assert second == {
        "path": "pipeline",
        "persist-credentials": False,
        "ref": "${{ fromJSON(toJSON(job)).workflow_sha }}",
        "repository": "${{ fromJSON(toJSON(job)).workflow_repository }}",
        "sparse-checkout": "scripts",
    }


def test_what_a_file_holds_is_no_command_to_github(tmp_path: Path) -> None:
    label = "::error::x"
    answer = check_csv(tmp_path, GOOD.replace(b"y", label.encode()))

    silenced = re.fullmatch(r"::stop-commands::([0-9a-f]{32})\n(.*)::\1::\n", answer.stdout, re.DOTALL)
    assert silenced is not None
    assert label in silenced[2]


def test_an_upload_refuses_a_file_of_another_kind_or_none(tmp_path: Path) -> None:
    assert "only files named .csv" in annotations(check_csv(tmp_path, GOOD, "data.txt"))[0]
    assert "there is no such file" in annotations(run_check(tmp_path, "none.csv"))[0]


@pytest.mark.parametrize("file", ["../secret.csv", "data/../../secret.csv", "link.csv", "link/secret.csv"])
def test_a_file_outside_the_checkout_is_refused(tmp_path: Path, file: str) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "data").mkdir(parents=True)
    (tmp_path / "secret.csv").write_bytes(GOOD)
    (checkout / "link.csv").symlink_to(tmp_path / "secret.csv")
    (checkout / "link").symlink_to(tmp_path)

    answer = run_check(checkout, file)

    assert (answer.returncode, answer.stdout) == (1, "::error::the file is not in the repository\n")


def test_what_is_checked_is_what_is_uploaded_when_the_path_is_absolute(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    good = tmp_path / "good.csv"
    good.write_bytes(GOOD)

    # The last step would take the file of this path below the checkout, of which there is none.
    assert "there is no such file" in annotations(run_check(checkout, str(good)))[0]


def test_the_log_shows_no_cell_of_a_file_without_a_header(tmp_path: Path) -> None:
    answer = check_csv(tmp_path, b"My name is Jane Roe and my card 4111,spam\nhello,ham\n")

    assert answer.returncode == 2
    assert "Jane" not in answer.stdout + answer.stderr


def test_a_runner_that_does_not_say_the_commit_is_named(tmp_path: Path) -> None:
    answer = run_step("Check the settings", tmp_path, REGION="r", ROLE="a", WORKFLOW_COMMIT="")

    assert answer.returncode == 1
    assert "::error::the runner does not say which commit" in answer.stdout


@pytest.mark.parametrize("model", ["", "a", "spam-2", "a" * 32])
def test_a_model_name_is_taken(tmp_path: Path, model: str) -> None:
    answer = run_step("Check the settings", tmp_path, REGION="r", ROLE="a", MODEL=model, WORKFLOW_COMMIT="c")

    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("model", ["A", "-a", "a-", "a/b", "../x", "a" * 33, "a\nb", "a$(id)"])
def test_what_is_no_model_name_is_refused(tmp_path: Path, model: str) -> None:
    answer = run_step("Check the settings", tmp_path, REGION="r", ROLE="a", MODEL=model, WORKFLOW_COMMIT="c")

    assert answer.returncode == 1
    assert "::error::not a model name" in answer.stdout


@pytest.mark.parametrize("missing", ["AWS_REGION", "BUCKET", "UPLOAD_ROLE_ARN"])
def test_a_variable_that_is_not_set_is_named(tmp_path: Path, missing: str) -> None:
    settings = {"AWS_REGION": "REGION", "BUCKET": "BUCKET", "UPLOAD_ROLE_ARN": "ROLE"}
    given = {variable: "" if name == missing else "x" for name, variable in settings.items()}

    answer = run_step("Check the settings", tmp_path, WORKFLOW_COMMIT="c", **given)

    assert answer.returncode == 1
    assert f"::error::the variable {missing} is not set" in answer.stdout


@pytest.mark.parametrize(
    ("model", "key"), [("", "data/train/default/a b;$(id).csv"), ("spam", "data/train/spam/a b;$(id).csv")]
)
def test_the_file_goes_where_the_pipeline_looks_whatever_its_name(tmp_path: Path, model: str, key: str) -> None:
    stand_in = tmp_path / "bin" / "aws"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    file = "data/a b;$(id).csv"

    answer = run_step(
        "Upload",
        tmp_path,
        FILE=file,
        MODEL=model,
        BUCKET="my-bucket",
        PATH=f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary"),
    )

    assert answer.stdout.splitlines() == ["s3", "cp", "--no-progress", f"{tmp_path}/{file}", f"s3://my-bucket/{key}"]
    assert key in (tmp_path / "summary").read_text()
