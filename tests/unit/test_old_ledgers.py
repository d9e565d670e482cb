"""What an earlier version left in the bucket is understood: the training orchestrator's part.

tests/records/schema_1/ledger_*.json were written by the handler of commit 2039508, in the world of these tests.
daily_limit: with room for three jobs at a time and three a day, job 1 ended, 2 and 4 run, the start of 3 was refused,
5 and 6 came when the day was full, and the invocation for 7 was killed while it took the snapshot.
quota_of_0: two uploads wait for a quota that is 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from test_spend_guards import LEDGER, SWEEP, minutes, subjects
from world import BUCKET, CSV, ROOT, Context, FastClients, World


@pytest.fixture
def left(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, environment: None
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Load what an earlier version left: left("daily_limit"); the world is in its "world"."""

    def load(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (ROOT / "tests" / "records" / "schema_1" / f"ledger_{name}.json").read_text()
        )
        clients = FastClients()
        world = World(clients)
        world.time = datetime.fromisoformat(found["now"]) + timedelta(seconds=1)
        for key, body in found["objects"].items():
            # Whose rows were too few for today's check.
            dead = "dead" in found and key == found["dead"]["detail"]["object"]["key"]
            world.put(key, body if isinstance(body, dict) else CSV if dead else body.encode())
        for job, status in found["training_jobs"].items():
            world.sagemaker.jobs[job] = {"TrainingJobName": job, "TrainingJobStatus": status}
        for key, body in found["objects"].items():
            if key.endswith("/source.json") and body["key"] in clients.s3.versions:
                clients.s3.versions[body["key"]][0].id = body["version_id"]
        if "dead" in found:
            upload = found["dead"]["detail"]["object"]
            clients.s3.versions[upload["key"]][0].id = upload["version-id"]
        monkeypatch.setattr(training, "client", world.client)
        monkeypatch.setattr(training, "now", world.now)
        return found | {"world": world}

    yield load
    training.settings.cache_clear()


@pytest.fixture
def run(training: ModuleType) -> Callable[..., str]:
    """Invoke the handler with an event, each time as another request; returns the outcome."""
    numbers = iter(range(1000))

    def invoke(sent: dict[str, Any], request_id: str = "") -> str:
        context = Context(request_id or f"new request {next(numbers)}")
        return str(training.lambda_handler(sent, context)["outcome"])

    return invoke


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, training: ModuleType, environment: None) -> None:
    """Room for three jobs at a time and three a day."""
    monkeypatch.setenv("MAX_CONCURRENT_TRAINING_JOBS", "3")
    monkeypatch.setenv("MAX_TRAINING_JOBS_PER_DAY", "3")
    training.settings.cache_clear()


@pytest.mark.usefixtures("three")
def test_a_line_that_the_daily_limit_held_up_is_started_on_the_next_day_in_order_of_upload(
    left: Callable[[str], dict[str, Any]], run: Callable[..., str]
) -> None:
    found = left("daily_limit")
    world: World = found["world"]
    # The sweep would adopt it: no claim says that its event came.
    world.s3.delete_object(Bucket=BUCKET, Key=found["dead"]["detail"]["object"]["key"])
    assert run(SWEEP) == "started 0, waiting 3 for the next day"
    assert (subjects(world), minutes(world)) == ([], [1, 2, 4])
    for job in world.sagemaker.jobs.values():
        job["TrainingJobStatus"] = "Completed"
    world.wait(hours=13)
    assert run(SWEEP) == "started 3, waiting 0"
    # What was refused goes last.
    assert minutes(world) == [1, 2, 4, 5, 6, 3]
    assert [subject.split(":")[0] for subject in subjects(world)] == ["Training started"] * 3
    ledger = world.record(LEDGER)
    assert (ledger["schema"], ledger["oldest_waiting"]) == (2, "")
    assert ledger.keys() == {"schema", "jobs", "day", "oldest_waiting", "quota", "emails", "models", "rejected"}


@pytest.mark.usefixtures("three")
def test_a_job_that_is_held_or_ended_is_not_started_again_by_a_late_event(
    left: Callable[[str], dict[str, Any]], run: Callable[..., str]
) -> None:
    world: World = left("daily_limit")["world"]
    for job, description in list(world.sagemaker.jobs.items()):
        assert run(world.job_event(job)) == "started 0, waiting 3 for the next day"
        assert world.sagemaker.jobs[job] is description
    assert (subjects(world), minutes(world)) == ([], [1, 2, 4])
    states = {job[24:26]: entry["state"] for job, entry in world.record(LEDGER)["jobs"].items()}
    assert states == {"01": "ended", "02": "held", "03": "failed", "04": "held"}


@pytest.mark.usefixtures("three")
def test_a_retry_takes_up_the_lease_that_its_dead_attempt_left_and_another_request_does_not(
    left: Callable[[str], dict[str, Any]], run: Callable[..., str]
) -> None:
    found = left("daily_limit")
    assert run(found["dead"], "another") == "in hand"
    assert run(found["dead"], "the dead one") == "waiting for the next day"
    world: World = found["world"]
    assert minutes(world) == [1, 2, 4]


def test_a_line_that_waits_for_a_quota_of_0_is_not_emailed_again_and_starts_once_there_is_room(
    left: Callable[[str], dict[str, Any]], run: Callable[..., str]
) -> None:
    world: World = left("quota_of_0")["world"]
    world.sagemaker.training_quota = 0
    assert run(SWEEP) == "started 0, waiting 2 for a quota above 0"
    assert subjects(world) == []
    world.sagemaker.training_quota = None
    assert run(SWEEP) == "started 2, waiting 0"
    assert minutes(world) == [1, 2]
    assert subjects(world) == ["Training started: default (1.csv)", "Training started: default (2.csv)"]
