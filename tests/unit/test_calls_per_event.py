"""How many calls to AWS an event takes when nothing goes wrong, so that they do not creep up unseen.

Two models of a stack, from the upload to the endpoint, and the sweeps that find nothing to do. What each call is for
stands in tests/README.md; that it is needed, other tests hold.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from test_known_data import CALLS_OF_A_FIRST_UPLOAD
from world import BUCKET, ENDPOINT, GOOD_METRICS, SWEEP, Context, FastClients, World, tar_gz

# By event, for the first model of a stack and for one beside a live model.
UPLOAD = {"first": CALLS_OF_A_FIRST_UPLOAD, "beside a live model": 19}
JOB_ENDED = 4  # the training orchestrator's part: the slot is free
JUDGED = {"first": 9, "beside a live model": 10}
APPROVED = {"first": 12, "beside a live model": 14}
IN_SERVICE = 11
# While nothing is to be done: uploads were made in the last days, and one model is live.
IDLE_SWEEP = {"training_orchestrator": 4, "model_evaluator": 3, "deployment_orchestrator": 4}
MODELS = ("first", "beside a live model")

Count = Callable[[str, dict[str, Any]], tuple[str, list[str]]]


@pytest.fixture
def world(handlers: dict[str, ModuleType], environment: None, monkeypatch: pytest.MonkeyPatch) -> World:
    fresh = World(FastClients())
    fresh.sagemaker.clock = fresh.now
    for handler in handlers.values():
        handler.settings.cache_clear()
        monkeypatch.setattr(handler, "client", fresh.client)
        monkeypatch.setattr(handler, "now", fresh.now)
    monkeypatch.setattr(handlers["deployment_orchestrator"], "runtime", lambda: fresh.sagemaker.runtime)
    return fresh


@pytest.fixture
def count(handlers: dict[str, ModuleType], world: World) -> Count:
    """Have a handler handle an event; returns the outcome and its calls."""

    def handle(handler: str, sent: dict[str, Any]) -> tuple[str, list[str]]:
        before = len(world.around.calls)
        answer = handlers[handler].lambda_handler(sent, Context(f"after {before} calls"))
        return answer["outcome"], world.around.calls[before:]

    return handle


def complete(world: World, job: str) -> None:
    """A job's end, with all that our training program writes."""
    live = world.sagemaker.jobs[job]["Environment"].get("CHAMPION_JOB")
    figures = {"rows": 50, "live": {"accuracy": 0.9}, "new": {"accuracy": 0.95}}
    champion = {"job": live, "compared": True, "note": "", "sets": [{"name": "hold-out of the live model", **figures}]}
    metrics = json.dumps(GOOD_METRICS | {"champion": champion if live else None}).encode()
    golden = json.dumps([{"text": "hello", "label": "ham", "score": 0.9}]).encode()
    folder = f"models/raw/{job}/output"
    world.put(f"{folder}/output.tar.gz", tar_gz([("golden.json", golden), ("metrics.json", metrics)]))
    world.put(f"{folder}/model.tar.gz", tar_gz([("model.safetensors", b"weights")]))
    world.sagemaker.end_job(job, artifact=f"s3://{BUCKET}/{folder}/model.tar.gz")


def approval(world: World, job: str) -> dict[str, Any]:
    key = f"models/approved/default/{job}/model.tar.gz"
    return {"source": "aws.s3", "detail": {"bucket": {"name": BUCKET}, "object": {"key": key}}}


def test_an_event_takes_no_more_calls_than_it_did(world: World, count: Count) -> None:
    for which in MODELS:
        world.wait(hours=1)
        sent = world.upload(f"data/train/{which}.csv", time=f"{world.time:%Y-%m-%dT%H:%M:%SZ}")
        outcome, calls = count("training_orchestrator", sent)
        assert (outcome, len(calls)) == ("started", UPLOAD[which]), calls
        job = max(world.sagemaker.jobs)
        complete(world, job)
        outcome, calls = count("training_orchestrator", world.job_event(job))
        assert (outcome, len(calls)) == ("started 0, waiting 0", JOB_ENDED), calls
        outcome, calls = count("model_evaluator", world.job_event(job))
        assert (outcome, len(calls)) == ("approved", JUDGED[which]), calls
        outcome, calls = count("deployment_orchestrator", approval(world, job))
        assert (outcome, len(calls)) == ("started", APPROVED[which]), calls
        world.sagemaker.come_up(ENDPOINT)
        outcome, calls = count("deployment_orchestrator", world.endpoint_event())
        assert (outcome, len(calls)) == ("in service", IN_SERVICE), calls
        assert Counter(calls)["InvokeEndpoint"] == 1
        world.wait(hours=1)
        for handler, most in IDLE_SWEEP.items():
            _, calls = count(handler, SWEEP)
            assert len(calls) == most, (handler, calls)
    assert len(world.emails()) == 2 * len(["started", "approved", "deployment started", "deployment successful"])


def test_the_calls_of_an_idle_sweep_do_not_grow_with_what_there_was(world: World, count: Count) -> None:
    """Ten models later, of which two are kept."""
    for number in range(10):
        world.wait(hours=2)
        count("training_orchestrator", world.upload("data/train/x.csv", time=f"{world.time:%Y-%m-%dT%H:%M:%SZ}"))
        job = max(world.sagemaker.jobs)
        complete(world, job)
        for handler in ("training_orchestrator", "model_evaluator"):
            count(handler, world.job_event(job))
        count("deployment_orchestrator", approval(world, job))
        world.sagemaker.come_up(ENDPOINT)
        assert count("deployment_orchestrator", world.endpoint_event())[0] == "in service", number
    world.wait(hours=1)
    for handler, most in IDLE_SWEEP.items():
        _, calls = count(handler, SWEEP)
        assert len(calls) == most, (handler, calls)
