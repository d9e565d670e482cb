"""Which model a new one is compared with: the training orchestrator's choice, and what the job gets of it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from world import BUCKET, CSV, Context, World

OLD, MIDDLE, NEW = (f"training-job-202611{day}-120000-0123abcd" for day in ("01", "02", "03"))


@pytest.fixture
def job_of(training: ModuleType, world: World) -> Callable[..., dict[str, Any]]:
    """Upload a CSV and return the training job that it becomes."""

    def upload(key: str = "data/train/x.csv") -> dict[str, Any]:
        training.lambda_handler(world.upload(key), Context("first"))
        (job,) = world.sagemaker.jobs.values()
        return job

    return upload


def deployed(world: World, job: str, *states: str, model: str = "default", data: bool = True) -> None:
    """An approved job with a deployment record in each of the states."""
    world.put(f"models/approved/{model}/{job}/model.tar.gz", b"model")
    for number, state in enumerate(states):
        world.put(f"models/deployments/{job}-{number:08x}.json", {"schema": 1, "job": job, "state": state})
    if data:
        world.put(f"data/snapshots/{job}/data.csv", CSV)


def channels(job: dict[str, Any]) -> dict[str, str]:
    return {item["ChannelName"]: item["DataSource"]["S3DataSource"]["S3Uri"] for item in job["InputDataConfig"]}


def live_job(job: dict[str, Any]) -> str | None:
    """The live model that a job was given; the name and the channel are there together or not at all."""
    name: str | None = job["Environment"].get("CHAMPION_JOB")
    assert (name is not None) == ("champion" in channels(job))
    return name


def test_the_job_gets_the_live_model_and_what_that_was_trained_on(
    job_of: Callable[..., dict[str, Any]], world: World
) -> None:
    deployed(world, OLD, "confirmed")
    job = job_of()
    assert live_job(job) == OLD
    found = channels(job)
    assert found.pop("train").startswith(f"s3://{BUCKET}/data/snapshots/")
    assert found == {
        "champion": f"s3://{BUCKET}/models/approved/default/{OLD}/model.tar.gz",
        "champion_data": f"s3://{BUCKET}/data/snapshots/{OLD}/data.csv",
    }


def test_the_first_model_has_none_beside_it(job_of: Callable[..., dict[str, Any]]) -> None:
    assert live_job(job_of()) is None


def test_data_that_is_gone_is_no_channel(job_of: Callable[..., dict[str, Any]], world: World) -> None:
    deployed(world, OLD, "confirmed", data=False)
    job = job_of()
    assert live_job(job) == OLD
    assert "champion_data" not in channels(job)


@pytest.mark.parametrize(
    "states",
    [(), ("started",), ("rolled back",), ("withdrawn",), ("failed",), ("superseded",), ("removed",), ("waiting",)],
    ids=str,
)
def test_a_newer_model_that_is_not_live_is_passed_over(
    job_of: Callable[..., dict[str, Any]], world: World, states: tuple[str, ...]
) -> None:
    deployed(world, OLD, "confirmed")
    deployed(world, MIDDLE, "rolled back", "confirmed")
    deployed(world, NEW, *states)
    assert live_job(job_of()) == MIDDLE


def test_another_models_live_model_and_odd_names_do_not_count(
    job_of: Callable[..., dict[str, Any]], world: World
) -> None:
    deployed(world, NEW, "confirmed", model="default-2")
    deployed(world, OLD, "confirmed", model="reviews")
    deployed(world, "by-hand", "confirmed", model="reviews")
    world.put(f"models/approved/reviews/{NEW}/model.tar.gz.bak", b"x")
    assert live_job(job_of("data/train/reviews/x.csv")) == OLD
