"""What the contract tests share: the stack as Terraform renders it, the calls that the test suite recorded, and the
table of permissions at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlops import verify
from needs import KMS_KEY_ARN, SECRET_ARN
from rendered import Plan, plan
from world import HANDLERS, ROOT

table = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A stack with every option that adds a permission: its own key, a base model in S3, a token, rollback alarms, spot
    training."""
    return plan(
        tmp_path_factory.mktemp("stack"),
        base_model="s3://weights/minilm/",
        deployment_alarm_models=["default", "reviews"],
        endpoint_instance_count=4,
        endpoint_type="instance",
        hub_token_secret_arn=SECRET_ARN,
        kms_key_arn=KMS_KEY_ARN,
        training_use_spot=True,
    )


@pytest.fixture(scope="session")
def calls() -> list[dict[str, Any]]:
    """The calls that the handlers made in the test run before this one, with the handler's name."""
    folder = Path(os.environ.get("RECORD_CALLS", "build/calls"))
    missing = "run make permissions (or make test), which records them first"
    # A test of the failed events' queue gives a function a topic that does not exist.
    broken_on_purpose = "-of-nobody"
    # make verify-aws brings a stack of its own to the local AWS of the end-to-end tests.
    of_another_stack = f"-{verify.NAME}"
    found = []
    for path in sorted(path for path in folder.glob("*.jsonl") if of_another_stack not in path.name):
        for line in path.read_text().splitlines():
            if broken_on_purpose in line:
                continue
            call = json.loads(line)
            # The local AWS knows functions by their full names.
            named = [name for name in HANDLERS if name in call["handler"].replace("-", "_")]
            found.append(call | {"handler": named[0]})
    assert found, f"no recorded calls in {folder}: {missing}"
    recorded = min(path.stat().st_mtime for path in folder.glob("*.jsonl"))
    changed = [name for name in HANDLERS if (ROOT / "lambda" / name / "handler.py").stat().st_mtime > recorded]
    assert not changed, f"the calls in {folder} are older than the handlers {changed}: {missing}"
    return found


@pytest.fixture(scope="session")
def permissions_table(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are written to build/permissions.txt and, but for the single resources, printed after the tests."""
    lines: list[str] = []
    request.config.stash[table] = lines
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(table, [])
    if lines:
        file = ROOT / "build" / "permissions.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines))
        terminalreporter.section(f"permissions (with every resource: {file.relative_to(ROOT)})")
        for line in lines:
            if not line.startswith("      "):
                terminalreporter.write_line(line)
