"""Check terraform/ without an AWS account or a network: valid, without warnings, and every `terraform test` run green.

    python -m dev.terraform_check

With the AWS provider that terraform.py finds (or installs), in a copy, so that your own settings, state and backend
have no effect. The root module also with version 6, for which stand-ins of the provider are used: $OFFLINE_PROVIDERS,
by default ../shared/tools/offline-providers beside the project. Without them it says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import terraform

ROOT = terraform.ROOT
STAND_INS = ROOT.parent / "shared" / "tools" / "offline-providers"
PRIVATE = (".terraform*", "*.tfstate*", "*.tfplan", "terraform.tfvars", "*.auto.tfvars*", "backend.tf", "provider*.tf")
# A provider from a mirror on disk: about this machine, not about the configuration.
MIRROR_WARNING = "Incomplete lock file information for providers"
AT_ONCE = 2
RUN_SECONDS = 600


class CheckError(Exception):
    """A command could not be run at all; the text has its output."""


@dataclass
class Result:
    """The result of one folder."""

    folder: str
    provider: str = ""
    runs: int = 0
    assertions: int = 0
    refusals: int = 0
    problems: list[str] = field(default_factory=list)


def messages(output: str) -> list[dict[str, Any]]:
    """The JSON lines of a command's output; others are left out."""
    found = []
    for line in output.splitlines():
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(message, dict):
            found.append(message)
    return found


def describe(diagnostic: Mapping[str, Any]) -> str:
    place = diagnostic.get("range") or {}
    where = f" ({place['filename']}:{place['start']['line']})" if place else ""
    return f"{diagnostic['severity']}: {diagnostic['summary']}: {diagnostic.get('detail', '')}{where}".rstrip(": ")


def count_checks(folder: Path, tests: str) -> tuple[int, int]:
    """The assertions, and the objects that are expected to fail, in a folder's tests."""
    text = "\n".join(path.read_text() for path in sorted(folder.glob(f"tests/{tests}")))
    expected = re.findall(r"expect_failures\s*=\s*\[(.*?)\]", text, re.DOTALL)
    return len(re.findall(r"^\s*assert \{", text, re.MULTILINE)), sum(
        len(re.findall(r"\w\.\w", each)) for each in expected
    )


def check(
    folder: Path, name: str, tests: str, binary: str, init: Sequence[str], environment: Mapping[str, str]
) -> Result:
    """Initialise one folder with some options, validate it, and run those of its tests that a pattern names."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [binary, f"-chdir={folder}", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )

    result = Result(name)
    begun = run("init", "-input=false", "-no-color", "-backend=false", *init)
    if begun.returncode != 0:
        raise CheckError(f"terraform init failed in {name}:\n{begun.stdout}{begun.stderr}")
    warnings = re.findall(r"Warning: (.*)", begun.stdout + begun.stderr)
    result.problems += [f"init warns: {warning}" for warning in warnings if warning != MIRROR_WARNING]
    lock = (folder / ".terraform.lock.hcl").read_text()
    result.provider = ", ".join(re.findall(r'version\s*=\s*"([^"]+)"', lock))
    valid = json.loads(run("validate", "-json").stdout)
    result.problems += [describe(diagnostic) for diagnostic in valid["diagnostics"]]
    filters = [f"-filter=tests/{path.name}" for path in sorted(folder.glob(f"tests/{tests}"))]
    tested = run("test", "-json", *filters)
    for message in messages(tested.stdout):
        if message["type"] == "diagnostic":
            where = f"{message.get('@testfile', '')} {message.get('@testrun', '')}: "
            result.problems.append(where + describe(message["diagnostic"]))
        elif message["type"] == "test_summary":
            summary = message["test_summary"]
            result.runs = summary.get("passed", 0)
            undone = summary.get("failed", 0) + summary.get("errored", 0) + summary.get("skipped", 0)
            if undone:
                result.problems.append(f"{undone} runs failed or were left out")
    if tested.returncode != 0 and not result.problems:
        result.problems.append(f"terraform test ended with {tested.returncode}:\n{tested.stdout}{tested.stderr}")
    if filters and not result.runs:
        result.problems.append("no run passed: were there any?")
    result.assertions, result.refusals = count_checks(folder, tests)
    return result


def copy_configuration(target: Path) -> Path:
    """Copy terraform/, without personal settings and state, to where it finds the packages."""
    shutil.copytree(ROOT / "terraform", target / "terraform", ignore=shutil.ignore_patterns(*PRIVATE))
    (target / "build").symlink_to(ROOT / "build", target_is_directory=True)
    return target / "terraform"


def stand_ins(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which Terraform uses the stand-ins of provider 6, or None where there are none."""
    tools = Path(environment.get("OFFLINE_PROVIDERS") or STAND_INS)
    if not (tools / "install.sh").is_file():
        return None
    target = ROOT / ".offline-providers"
    made = subprocess.run([tools / "install.sh", target], env=environment, capture_output=True, text=True)
    found = re.search(r"TF_CLI_CONFIG_FILE=['\"]?([^'\"\n]+)", made.stdout)
    if made.returncode != 0 or found is None:
        raise CheckError(f"{tools}/install.sh failed:\n{made.stdout}{made.stderr}")
    return {**environment, "TF_CLI_CONFIG_FILE": found[1].strip()}


def report(result: Result) -> bool:
    """Print the result of a folder, and return whether it is good."""
    print(
        f"  {'ok' if not result.problems else 'FAILED':6} {result.folder:48} aws {result.provider:8} "
        f"{result.runs:3} runs {result.assertions:4} assertions {result.refusals:4} refusals",
        flush=True,
    )
    for problem in result.problems:
        print(f"         {problem}", file=sys.stderr)
    return not result.problems


def main() -> int:
    """Run all checks and return the exit status."""
    own = ("AWS_", "TF_VAR_", "TF_CLI_ARGS", "TF_WORKSPACE", "TF_DATA_DIR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    try:
        environment = terraform.clean_environment(environment)
        binary, platform = terraform.find_terraform(environment)
        init = terraform.init_arguments(environment, platform)
        with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(AT_ONCE) as pool:
            first = copy_configuration(Path(temporary, "5"))
            others = [*sorted(first.glob("examples/*/")), first / "github_upload_role"]
            folders = [first, *sorted(path.parent for path in first.glob("modules/*/tests")), *others]
            names = [str(folder.relative_to(first.parent)) for folder in folders]
            work = [
                pool.submit(check, folder, name, "*.tftest.hcl", binary, init, environment)
                for folder, name in zip(folders, names, strict=True)
            ]
            sixth = stand_ins(environment)
            if sixth is not None:
                second = copy_configuration(Path(temporary, "6"))
                for name, tests in (("", "stack.tftest.hcl"), ("/examples/full", "*.tftest.hcl")):
                    folder = Path(f"{second}{name}")
                    work.append(pool.submit(check, folder, f"terraform{name}", tests, binary, [], sixth))
            results = [each.result() for each in work]
    except (CheckError, terraform.TerraformError) as error:
        print(f"terraform_check.py: {error}", file=sys.stderr)
        return 1
    well = [report(result) for result in results]
    sums = [sum(getattr(result, name) for result in results) for name in ("runs", "assertions", "refusals")]
    print("terraform test: {} runs, {} assertions, {} expected refusals".format(*sums))
    if sixth is None:
        print(
            f"NOT CHECKED: version 6 of the AWS provider. There are no stand-ins for it at {STAND_INS}; "
            "OFFLINE_PROVIDERS=<folder> names another place.",
            file=sys.stderr,
        )
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
