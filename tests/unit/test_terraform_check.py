"""scripts/dev/terraform_check.py: what of Terraform's output counts as a problem."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dev import terraform_check

TESTS = """
run "least" {
  expect_failures = [var.one, aws_lambda_function.this]
}

run "most" {
  assert {
    condition = true
  }
}
"""
GREEN = {"type": "test_summary", "test_summary": {"passed": 2, "failed": 0, "errored": 0, "skipped": 0}}
VALID = {"valid": True, "diagnostics": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "some.tftest.hcl").write_text(TESTS)
    return tmp_path


def run(folder: Path, tested: list[dict[str, Any]], validated: dict[str, Any] = VALID, init: str = "") -> Any:
    """Check a folder with a stand-in for Terraform that answers as told."""
    answers = {"test": "\n".join(map(json.dumps, tested)), "validate": json.dumps(validated), "init": init}
    for name, answer in answers.items():
        (folder / name).write_text(answer)
    binary = folder / "terraform"
    binary.write_text(
        f'#!/bin/sh\ncd {folder}\necho \'  version = "5.100.0"\' > .terraform.lock.hcl\ncat "$2"\n', encoding="utf-8"
    )
    binary.chmod(0o755)
    return terraform_check.check(folder, "s3", "*.tftest.hcl", str(binary), [], os.environ)


def test_green_tests_are_counted(folder: Path) -> None:
    result = run(folder, [GREEN])

    assert (result.problems, result.provider) == ([], "5.100.0")
    assert (result.runs, result.assertions, result.refusals) == (2, 1, 2)


def test_a_failed_run_is_told_with_its_place(folder: Path) -> None:
    failed = {
        "type": "diagnostic",
        "@testfile": "tests/some.tftest.hcl",
        "@testrun": "most",
        "diagnostic": {
            "severity": "error",
            "summary": "Test assertion failed",
            "detail": "The bucket is public.",
            "range": {"filename": "tests/some.tftest.hcl", "start": {"line": 7}},
        },
    }
    red = {"type": "test_summary", "test_summary": {"passed": 1, "failed": 1}}

    assert run(folder, [failed, red]).problems == [
        "tests/some.tftest.hcl most: error: Test assertion failed: The bucket is public. (tests/some.tftest.hcl:7)",
        "1 runs failed or were left out",
    ]


@pytest.mark.parametrize("way", ["test", "validate"])
def test_a_warning_is_a_problem(folder: Path, way: str) -> None:
    warning = {"severity": "warning", "summary": "Deprecated attribute"}
    if way == "test":
        result = run(folder, [{"type": "diagnostic", "diagnostic": warning}, GREEN])
    else:
        result = run(folder, [GREEN], {"valid": True, "diagnostics": [warning]})

    assert [problem.strip(" :") for problem in result.problems] == ["warning: Deprecated attribute"]


def test_init_may_only_say_that_the_provider_is_from_a_mirror(folder: Path) -> None:
    warnings = "Warning: Incomplete lock file information for providers\n\nWarning: Something else\n"

    assert run(folder, [GREEN], init=warnings).problems == ["init warns: Something else"]


def test_runs_that_were_left_out_are_a_problem(folder: Path) -> None:
    summary = {"type": "test_summary", "test_summary": {"passed": 1, "skipped": 3}}

    assert run(folder, [summary]).problems == ["3 runs failed or were left out"]


def test_no_run_at_all_is_a_problem(folder: Path) -> None:
    summary = {"type": "test_summary", "test_summary": {"passed": 0}}

    assert run(folder, [summary]).problems == ["no run passed: were there any?"]
