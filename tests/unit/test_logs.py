"""mlops logs: whose lines it shows, and how."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlops.logs import readable, show_logs
from shell import Shell
from test_deployment_orchestrator import FIRST, SECOND


def test_logs_of_a_job_are_its_own(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """The local AWS does not know logStreamNamePrefix."""
    events = [
        {"timestamp": 1, "message": f"line of {job}", "logStreamName": f"{job}/algo-1-1"} for job in (FIRST, SECOND)
    ]
    pages = SimpleNamespace(paginate=lambda **_: [{"events": events}])
    client = shell.target.client
    shell.target.client = lambda name: (
        SimpleNamespace(get_paginator=lambda _: pages) if name == "logs" else client(name)
    )
    show_logs(shell.target, FIRST, "", "30")
    assert f"line of {FIRST}" in (shown := capsys.readouterr().out)
    assert SECOND not in shown


def test_a_log_line_that_only_looks_like_json_is_shown_as_it_is() -> None:
    assert readable("{cut off") == ["{cut off"]
