"""Scan terraform/ with checkov and print what it found: passed, failed, and every exception with its reason.

    python -m dev.security

Offline: nothing is downloaded or uploaded. Exceptions are comments in the resources:
`#checkov:skip=<check>: <reason>`.
Exit status 1 for any failed check, an exception without a reason, a file that cannot be read, or nothing to scan.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHECKOV = ROOT / ".checkov" / "bin" / "checkov"
NO_REASON = "No comment provided"
SHORTEST_REASON = 20  # characters


def scan(folder: Path) -> dict[str, Any]:
    """Return checkov's report on a folder. Raises OSError when it is not installed, ValueError when it breaks."""
    options = ["--framework", "terraform", "--download-external-modules", "false", "--skip-download"]
    # Without a key checkov contacts no platform; these variables could give it one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BC_", "PRISMA_", "CKV_"))}
    done = subprocess.run(
        [CHECKOV, "--directory", folder, *options, "--output", "json", "--compact", "--soft-fail"],
        env=environment,
        capture_output=True,
        text=True,
    )
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise ValueError(f"checkov ended with {done.returncode}:\n{done.stdout}{done.stderr}") from None
    if not isinstance(report, dict) or "results" not in report:
        raise ValueError(f"checkov scanned nothing in {folder}: {report}")
    return report


def reason_of(check: dict[str, Any]) -> str:
    return str(check["check_result"].get("suppress_comment") or "").strip()


def judge(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what is wrong, and the lines that report the rest."""
    results = report["results"]
    wrong = [f"cannot be read: {path}" for path in results["parsing_errors"]]
    for check in results["failed_checks"]:
        where = f"terraform{check['file_path']}:{check['file_line_range'][0]}"
        wrong.append(f"{check['check_id']} {check['resource']} ({where}): {check['check_name']}")
    excepted: dict[tuple[str, str, str], int] = {}
    for check in results["skipped_checks"]:
        reason = reason_of(check)
        if reason == NO_REASON or len(reason) < SHORTEST_REASON:
            wrong.append(f"{check['check_id']} {check['resource']}: skipped without a reason")
        kind = (check["check_id"], check["check_name"], reason)
        excepted[kind] = excepted.get(kind, 0) + 1
    lines = []
    for (name, title, reason), count in sorted(excepted.items()):
        lines += [f"  {name} x {count}  {title}", f"      {reason}"]
    counts = {kind: len(results[f"{kind}_checks"]) for kind in ("passed", "failed", "skipped")}
    lines.append(f"checkov: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if not counts["passed"]:
        wrong.append("no check passed: was anything scanned?")
    return wrong, lines


def main() -> int:
    """Run the scan and return the exit status."""
    try:
        wrong, lines = judge(scan(ROOT / "terraform"))
    except FileNotFoundError:
        print(f"security: {CHECKOV} is missing: run make security", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"security: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
