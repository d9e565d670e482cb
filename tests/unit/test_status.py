"""mlops status: what it shows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest

from mlops import bucket, cli
from shell import FUNCTIONS, SWEEP, Shell, dead_letter
from test_deployment_orchestrator import FIRST, SECOND, THIRD
from world import BUCKET, ENDPOINT, World


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
    assert "training   1 running, 3 started today (UTC); the quota is too small for ml.g5.xlarge\n" in shown
    assert f"endpoint   {ENDPOINT}: none while the pipeline is paused" in shown
    assert f"{THIRD}  waiting     later.csv  for a free slot" in shown
    assert f"{SECOND}  approved    withdrawn" in shown
    assert ": rude answers" in shown
    assert "1 failed events wait" in shown
    assert "make redrive" in shown


def test_status_shows_that_a_model_is_held_and_why(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"job": FIRST, "model": "default", "key": "data/train/other.csv"}
    shell.world.put(f"data/snapshots/{FIRST}/source.json", source)
    reason = "the new data has none of the live model's labels"
    decision = {"job": FIRST, "verdict": "held", "reason": reason, "checks": [{"metric": "accuracy", "value": 0.91}]}
    shell.world.put(f"models/decisions/{FIRST}.json", decision)
    assert cli.main(["status"]) == 0
    assert f"{FIRST}  held        -            other.csv  accuracy 0.910  {reason}\n" in capsys.readouterr().out


def test_status_says_once_what_became_of_a_model_whose_settings_changed(
    shell: Shell, deployer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bucket, "now", deployer.now)
    shell.go_live(FIRST, SECOND)
    for job in (FIRST, SECOND):
        source = {"job": job, "model": "default", "bucket": BUCKET, "key": "data/train/x.csv"}
        shell.world.put(f"data/snapshots/{job}/source.json", source)
        shell.world.put(f"models/decisions/{job}.json", {"job": job, "verdict": "approved", "checks": []})
    shell.run("rollback", "--model", "default")
    shell.settle()
    monkeypatch.setenv("SERVERLESS_MAX_CONCURRENCY", "7")
    deployer.settings.cache_clear()
    shell.deploy(SWEEP)
    shell.settle()
    shell.run("rollback", "--model", "default", "--to", SECOND)
    shell.settle()
    capsys.readouterr()
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert f"{FIRST}  approved    deployed     x.csv" in shown
    assert f"{SECOND}  approved    deployed     x.csv" in shown


@pytest.mark.parametrize(
    ("given_up", "shown"),
    [
        (None, "not started later.csv  tried 3 times: Requested image pytorch:2.13 not found"),
        ({"reason": "Could not assume role"}, "given up    later.csv  Could not assume role\n"),
        ({}, "given up    later.csv\n"),
    ],
)
def test_status_says_why_a_job_was_not_started(
    shell: Shell, capsys: pytest.CaptureFixture[str], given_up: dict[str, str] | None, shown: str
) -> None:
    shell.world.put(f"data/snapshots/{THIRD}/source.json", {"job": THIRD, "model": "default", "key": "later.csv"})
    refused = {"state": "failed", "tries": 3, "reason": "Requested image pytorch:2.13 not found"}
    ledger = {"schema": 2, "jobs": {THIRD: refused}, "day": {"date": "", "jobs": []}, "quota": None}
    shell.world.put("slots/training.json", ledger)
    if given_up is not None:
        shell.world.put(f"data/snapshots/{THIRD}/given_up.json", given_up)
    assert cli.main(["status"]) == 0
    assert f"{THIRD}  {shown}" in capsys.readouterr().out


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
    assert "training   0 running, 1 started today (UTC); the quota is too small for ml.g5.xlarge\n" in shown
    assert f"{FIRST}  approved    held         x.csv  accuracy 0.910" in shown


# --- uploads that nothing has seen --------------------------------------------------------------------

KEY = "data/train/tickets/week 1.csv"
JOB = "training-job-{:%Y%m%d-%H%M%S}-0123abcd"


def snapshot(world: World, etag: str) -> None:
    job = JOB.format(datetime.now(UTC))
    record = {"schema": 2, "job": job, "model": "tickets", "bucket": BUCKET, "key": KEY, "etag": etag}
    world.put(f"data/snapshots/{job}/source.json", record)


def reject(world: World, etag: str) -> None:
    job = JOB.format(datetime.now(UTC))
    record = {"schema": 2, "job": job, "key": KEY, "etag": etag, "reason": "it is empty", "rejected_at": "2026-12-01"}
    world.put(f"data/rejected/{job}.json", record)


def shown_after(shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **age: int) -> str:
    monkeypatch.setattr(bucket, "now", lambda: datetime.now(UTC) + timedelta(**age))
    assert cli.main(["status"]) == 0
    return capsys.readouterr().out


def test_an_upload_whose_event_is_lost_is_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.world.put(KEY, b"text,label\n")
    assert f"{KEY} was never seen: the event of its upload is late or lost" in shown_after(
        shell, monkeypatch, capsys, minutes=11
    )


@pytest.mark.parametrize("age", [{"minutes": 9}, {"days": 7, "minutes": 1}])
def test_an_upload_that_is_new_or_old_is_not_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], age: dict[str, int]
) -> None:
    shell.world.put(KEY, b"text,label\n")
    assert "never seen" not in shown_after(shell, monkeypatch, capsys, **age)


@pytest.mark.parametrize("take", [snapshot, reject])
def test_an_upload_that_was_taken_or_rejected_is_not_named_and_a_later_version_is(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    take: Callable[[World, str], None],
) -> None:
    take(shell.world, shell.world.put(KEY, b"text,label\n"))
    assert "never seen" not in shown_after(shell, monkeypatch, capsys, minutes=11)
    shell.world.put(KEY, b"text,label\nhello,greeting\n")
    assert f"{KEY} was never seen" in shown_after(shell, monkeypatch, capsys, minutes=11)


def test_what_is_no_csv_is_not_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("data/train/tickets/", "data/train/README.md"):
        shell.world.put(key, b"")
    assert "never seen" not in shown_after(shell, monkeypatch, capsys, minutes=11)
