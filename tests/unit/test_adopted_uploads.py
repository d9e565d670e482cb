"""The training orchestrator's sweep adopts uploads whose event never came; the event may still come, late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ClientError

from world import CSV, Context, Interruption, World, broken_connection, in_memory, runner

QUIET = ["GetObject", "ListObjectsV2", "ListObjectsV2"]


@pytest.fixture
def world(training: ModuleType, environment: None, monkeypatch: pytest.MonkeyPatch) -> World:
    return in_memory(training, monkeypatch)


@pytest.fixture
def run(training: ModuleType, world: World) -> Callable[..., str]:
    return runner(training, world)


def upload(world: World, key: str = "data/train/x.csv", body: bytes | None = None) -> dict[str, Any]:
    """Upload a file now; returns its event, which S3 may never deliver."""
    return world.upload(key, body, time=f"{world.time:%Y-%m-%dT%H:%M:%SZ}")


def subjects(world: World) -> Counter[str]:
    return Counter(email.subject for email in world.emails())


def test_an_upload_without_an_event_is_trained_on_and_its_late_event_changes_nothing(
    run: Callable[..., str], world: World
) -> None:
    late = upload(world, "data/train/reviews/x.csv")
    world.wait(minutes=9)
    assert run() == "started 0, waiting 0"
    world.wait(minutes=2)
    assert run() == "started 1, waiting 0"
    (job,) = world.sagemaker.jobs
    source = world.record(f"data/snapshots/{job}/source.json")
    assert (source["model"], source["key"]) == ("reviews", late["detail"]["object"]["key"])
    assert source["version_id"] == late["detail"]["object"]["version-id"]
    before = world.final_state()
    for _ in range(2):
        assert run(late) == "already started"
        world.wait(minutes=15)
        assert run() == "started 0, waiting 0"
    assert world.final_state() == before
    assert subjects(world) == {"Training started: reviews (x.csv)": 1}


def test_the_late_event_of_an_adopted_upload_is_answered_with_the_job_that_has_it(
    run: Callable[..., str], training: ModuleType, world: World
) -> None:
    late = upload(world, "data/train/reviews/x.csv")
    late["detail"]["object"]["sequencer"] = "a sequencer, which the sweep does not know"
    world.wait(minutes=11)
    run()
    assert training.lambda_handler(late, Context("late"))["training_job"] in world.sagemaker.jobs


def test_an_adopted_upload_that_cannot_be_trained_on_is_rejected_once(run: Callable[..., str], world: World) -> None:
    late = upload(world, body=b"text;label\n")
    world.wait(minutes=11)
    for _ in range(3):
        assert run() == "started 0, waiting 0"
        world.wait(minutes=15)
    assert run(late) == "already rejected"
    assert subjects(world) == {"Training data rejected: x.csv": 1}


def test_uploads_whose_event_came_cost_a_sweep_two_listings(run: Callable[..., str], world: World) -> None:
    for number in range(5):
        run(upload(world, f"data/train/{number}.csv"))
        for job in world.sagemaker.jobs:
            world.sagemaker.end_job(job)
            run(world.job_event(job))
    world.wait(minutes=15)
    run()
    calls = len(world.around.calls)
    run()
    assert world.around.calls[calls:] == [*QUIET, "ListObjectsV2"]


@pytest.mark.parametrize("days", [7.1, 30])
def test_an_old_upload_is_left_alone(run: Callable[..., str], world: World, days: float) -> None:
    upload(world)
    world.wait(days=days)
    calls = len(world.around.calls)
    assert run() == "started 0, waiting 0"
    assert world.around.calls[calls:] == QUIET


def test_what_is_no_data_is_not_adopted(run: Callable[..., str], world: World) -> None:
    upload(world, "data/train/README.md")
    world.wait(minutes=11)
    assert run() == "started 0, waiting 0"
    assert world.keys("claims/") == []


def test_while_paused_nothing_is_adopted(run: Callable[..., str], world: World) -> None:
    upload(world)
    world.put("control/paused.json", {"schema": 1})
    world.wait(minutes=11)
    assert run() == "paused"
    world.s3.delete_object(Bucket="atml-models-bucket", Key="control/paused.json")
    assert run() == "started 1, waiting 0"


def test_the_same_bytes_uploaded_again_are_an_upload_of_their_own(run: Callable[..., str], world: World) -> None:
    events = [upload(world, body=CSV)]
    assert run(events[0]) == "started"
    world.wait(minutes=30)
    events.append(upload(world, body=CSV))  # its event is lost
    world.wait(minutes=11)
    assert run() == "started 0, waiting 0"
    world.wait(minutes=30)
    assert [run(sent) for sent in events] == ["already started", "already rejected"]
    assert run() == "started 0, waiting 0"
    assert subjects(world) == {"Training started: default (x.csv)": 1, "Training not repeated: default (x.csv)": 1}


def test_an_upload_that_a_version_without_claims_handled_is_not_adopted(run: Callable[..., str], world: World) -> None:
    events = [upload(world, "data/train/good.csv"), upload(world, "data/train/bad.csv", b"text;label\n")]
    for sent in events:
        run(sent)
    for key in world.keys("claims/snapshot/upload-"):
        world.s3.delete_object(Bucket="atml-models-bucket", Key=key)
    before, emails = world.final_state(), len(world.emails())
    world.wait(minutes=15)
    assert run() == "started 0, waiting 0"
    assert [run(sent) for sent in events] == ["already started", "already rejected"]
    assert (world.final_state(), len(world.emails())) == (before, emails)


def test_an_upload_that_was_replaced_is_adopted_as_it_is_now(run: Callable[..., str], world: World) -> None:
    upload(world)
    upload(world, body=CSV + b"more,ham\n")
    world.wait(minutes=11)
    assert run() == "started 1, waiting 0"
    (job,) = world.sagemaker.jobs
    assert world.read(f"data/snapshots/{job}/data.csv") == CSV + b"more,ham\n"


@pytest.mark.parametrize("call", range(10))
def test_the_event_coming_while_the_sweep_adopts_makes_one_job(
    run: Callable[..., str], world: World, call: int
) -> None:
    late = upload(world)
    world.wait(minutes=11)
    world.around.interruption = Interruption(call, lambda: run(late, "late"))
    run()
    for _ in range(3):
        world.wait(minutes=21)
        run()
    assert len(world.sagemaker.jobs) == 1
    assert subjects(world) == {"Training started: default (x.csv)": 1}


def test_one_uploads_error_does_not_keep_the_others_waiting_and_is_raised(
    run: Callable[..., str], world: World
) -> None:
    upload(world, "data/train/1.csv")
    world.wait(seconds=1)
    upload(world, "data/train/2.csv")
    world.wait(minutes=11)
    world.around.interruption = Interruption("CopyObject", broken_connection)
    with pytest.raises(ClientError):
        run()
    world.wait(minutes=21)
    assert run().startswith("started 1")
    assert run().startswith("started 0")
    assert len(world.sagemaker.jobs) == 2
