"""mlops status: what it shows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mlops import cli
from shell import FUNCTIONS, SWEEP, Shell, dead_letter
from test_deployment_orchestrator import FIRST, SECOND, THIRD
from world import BUCKET, ENDPOINT


def test_status_shows_the_pause_what_waits_and_what_was_withdrawn(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST, SECOND)
    for job in (FIRST, SECOND):
        source = {"job": job, "model": "default", "bucket": BUCKET, "key": f"data/train/{job[-8:]}.csv"}
        shell.world.put(f"data/snapshots/{job}/source.json", source)
        decision = {"job": job, "verdict": "approved", "checks": [{"metric": "accuracy", "value": 0.91}]}
        shell.world.put(f"models/decisions/{job}.json", decision)
    shell.world.put(f"data/snapshots/{THIRD}/source.json", {"job": THIRD, "model": "default", "key": "later.csv"})
    shell.world.put(f"data/snapshots/{THIRD}/waiting.json", {"job": THIRD, "for": "a free slot"})
    ledger = {
        "schema": 1,
        "jobs": {FIRST: {"state": "ended"}, THIRD: {"state": "held"}},
        "day": {"date": f"{datetime.now(UTC):%Y-%m-%d}", "jobs": [FIRST, SECOND, THIRD]},
        "never": {"instance_type": "ml.g5.xlarge", "at": "2026-12-01T10:00:00+00:00"},
    }
    shell.world.put("slots/training.json", ledger)
    dead_letter(shell, SWEEP, FUNCTIONS["deployer"])
    shell.run("rollback", "--model", "default", "--reason", "rude answers")
    shell.settle()
    shell.run("pause", "--yes")
    capsys.readouterr()
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "PAUSED     since 2026-12-01" in shown
    assert "training   1 running, 3 started today (UTC); the quota of ml.g5.xlarge is 0\n" in shown
    assert f"endpoint   {ENDPOINT}: none while the pipeline is paused" in shown
    assert f"{THIRD}  waiting     later.csv  for a free slot" in shown
    assert f"{SECOND}  approved    withdrawn" in shown
    assert ": rude answers" in shown
    assert "1 failed events wait" in shown
    assert "make redrive" in shown


def test_status_knows_the_states_and_the_ledger_of_schema_2(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"schema": 2, "job": FIRST, "model": "default", "bucket": BUCKET, "key": "data/train/x.csv"}
    shell.world.put(f"data/snapshots/{FIRST}/source.json", source)
    decision = {"schema": 2, "job": FIRST, "verdict": "approved", "checks": [{"metric": "accuracy", "value": 0.91}]}
    shell.world.put(f"models/decisions/{FIRST}.json", decision)
    deployment = {"schema": 2, "endpoint": ENDPOINT, "job": FIRST, "state": "held", "deleted_by": "", "emails": {}}
    shell.world.put(f"models/deployments/{FIRST}-0123abcd.json", deployment)
    day = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "jobs": [FIRST]}
    ledger = {"schema": 2, "jobs": {FIRST: {"state": "ended"}}, "day": day, "oldest_waiting": "", "emails": {}}
    ledger |= {"quota": {"instance_type": "ml.g5.xlarge", "is_0": True}}
    shell.world.put("slots/training.json", ledger)
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "training   0 running, 1 started today (UTC); the quota of ml.g5.xlarge is 0\n" in shown
    assert f"{FIRST}  approved    held         x.csv  accuracy 0.910" in shown
