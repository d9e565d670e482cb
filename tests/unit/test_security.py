"""scripts/dev/security.py: what of checkov's report counts as wrong."""

from __future__ import annotations

from typing import Any

import pytest

from dev import security


def check(result: str, **more: Any) -> dict[str, Any]:
    return {
        "check_id": "CKV_AWS_18",
        "check_name": "access logging",
        "resource": "aws_s3_bucket.this",
        "file_path": "/modules/s3/main.tf",
        "file_line_range": [9, 16],
        "check_result": {"result": result, **more},
    }


def report(**checks: list[Any]) -> dict[str, Any]:
    kinds = ("passed_checks", "failed_checks", "skipped_checks", "parsing_errors")
    return {"results": {kind: [] for kind in kinds} | {"passed_checks": [check("PASSED")]} | checks}


def test_exceptions_are_counted_by_reason() -> None:
    skipped = [check("SKIPPED", suppress_comment=" the account's trail records who read what")] * 2

    wrong, lines = security.judge(report(skipped_checks=skipped))

    assert wrong == []
    assert lines == [
        "  CKV_AWS_18 x 2  access logging",
        "      the account's trail records who read what",
        "checkov: 1 passed, 0 failed, 2 skipped",
    ]


def test_a_failed_check_is_named_with_its_place() -> None:
    wrong, _ = security.judge(report(failed_checks=[check("FAILED")]))

    assert wrong == ["CKV_AWS_18 aws_s3_bucket.this (terraform/modules/s3/main.tf:9): access logging"]


@pytest.mark.parametrize("comment", ["", None, "No comment provided", "later"])
def test_an_exception_without_a_reason_is_wrong(comment: str | None) -> None:
    wrong, _ = security.judge(report(skipped_checks=[check("SKIPPED", suppress_comment=comment)]))

    assert wrong == ["CKV_AWS_18 aws_s3_bucket.this: skipped without a reason"]


def test_a_file_that_cannot_be_read_is_wrong() -> None:
    wrong, _ = security.judge(report(parsing_errors=["/main.tf"]))

    assert wrong == ["cannot be read: /main.tf"]


def test_a_scan_of_nothing_is_wrong() -> None:
    wrong, _ = security.judge(report(passed_checks=[]))

    assert wrong == ["no check passed: was anything scanned?"]
