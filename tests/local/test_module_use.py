"""terraform/ as others use it: from a git source, with a release's packages or its own build; and the two examples.

Plans only, offline, with the real AWS provider: see test_terraform.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_terraform import RUN_SECONDS, SCRIPT, sts_url  # noqa: F401  (the fixture)

ROOT = Path(__file__).resolve().parents[2]
VERSION = "v1.0.0"
MODULE = ".terraform/modules/pipeline"


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    # Nothing of the person who runs the tests: no AWS settings, no Terraform variables, no git settings.
    mine = ("AWS_", "TF_VAR_", "TF_CLI_ARGS", "GIT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    arguments = [str(part) for part in command]
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )


def plan(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, SCRIPT, "--dir", folder, "plan", "-input=false", "-no-color", *options, folder=folder)


def words(text: str) -> str:
    """Terraform breaks its messages into lines, behind a bar."""
    return " ".join(text.replace("│", " ").split())


def offline_provider(sts: str) -> str:
    return f'''
provider "aws" {{
  region                      = "eu-west-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true

  endpoints {{
    sts = "{sts}"
  }}
}}
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's sources, without anything that was built."""
    folder = tmp_path_factory.mktemp("project") / "repository"
    generated = shutil.ignore_patterns(
        ".terraform*", "*.tfstate*", "*.tfvars", "backend.tf", "*override.tf*", "__pycache__", "local"
    )
    for name in ("lambda", "scripts", "terraform"):
        shutil.copytree(ROOT / name, folder / name, ignore=generated)
    return folder


@pytest.fixture(scope="module")
def consumer(checkout: Path, tmp_path_factory: pytest.TempPathFactory, sts_url: str) -> Path:  # noqa: F811
    """Another repository's configuration, which uses the project at a tag."""
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message=x"],
        ["tag", VERSION],
    ):
        answer = run("git", *command, folder=checkout)
        assert answer.returncode == 0, answer.stderr
    folder = tmp_path_factory.mktemp("consumer")
    (folder / "main.tf").write_text(
        f"""
module "pipeline" {{
  source              = "git::file://{checkout}//terraform?ref={VERSION}"
  notification_emails = ["ml-team@example.com"]
  package_dir         = var.package_dir
}}

variable "package_dir" {{
  type    = string
  default = null
}}
"""
    )
    (folder / "provider.tf").write_text(offline_provider(sts_url))
    return folder


def test_a_git_source_without_packages_says_what_to_do(consumer: Path) -> None:
    answer = plan(consumer)

    assert answer.returncode == 1
    missing = f"{MODULE}/terraform/../build/model_evaluator.zip does not exist: "
    way_out = "run `make package`, or set package_dir to the folder of a release's packages."
    assert missing + way_out in words(answer.stderr)


def test_a_git_source_takes_the_packages_of_a_release(consumer: Path, checkout: Path, tmp_path: Path) -> None:
    run(sys.executable, checkout / "scripts" / "package.py", "--output", tmp_path, folder=checkout)

    answer = plan(consumer, f"-var=package_dir={tmp_path}")

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert " 0 to change, 0 to destroy." in answer.stdout


def test_a_git_source_can_build_its_own_packages_with_python_alone(consumer: Path) -> None:
    run(sys.executable, SCRIPT, "--dir", consumer, "init", "-input=false", folder=consumer)
    # -I and -S: no packages but Python's own.
    built = run(sys.executable, "-I", "-S", consumer / MODULE / "scripts" / "package.py", folder=consumer)
    assert built.returncode == 0, built.stderr

    try:
        answer = plan(consumer)
    finally:
        shutil.rmtree(consumer / MODULE / "build")

    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("example", ["minimal", "full"])
def test_an_example_can_be_planned(example: str, checkout: Path, sts_url: str) -> None:  # noqa: F811
    run(sys.executable, checkout / "scripts" / "package.py", folder=checkout)
    folder = checkout / "terraform" / "examples" / example
    (folder / "offline_override.tf").write_text(offline_provider(sts_url))

    answer = plan(folder)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert " 0 to change, 0 to destroy." in answer.stdout
