"""Deployment records of schema 1, as commit 2039508 wrote them, are understood, and the deployer goes on from there.

tests/records/schema_1/deployment_*.json are buckets and SageMakers as that version of the handler left them in the
fake world of these tests: {"time", "environment" of the function, "objects": {key: a record, or {"base64": bytes}},
"sagemaker"}. The mailbox is empty at the start, so that every email that is repeated shows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from types import ModuleType
from typing import Any

import pytest

from test_deployment_orchestrator import ARTIFACT, FIRST, SECOND, THIRD, approved_key, jobs, record_of, served, subjects
from world import BUCKET, ENDPOINT, ROOT, Context, World

RECORDS = ROOT / "tests" / "records" / "schema_1"
SWEEP = {"source": "sweep"}
# The records' states as they are understood today, oldest job first.
STATES = {
    "live": ["confirmed"],
    "rolled_back": ["confirmed", "rolled back"],
    "waiting": ["waiting"],
    "held": ["confirmed", "held"],
    "withdrawn": ["confirmed", "withdrawn"],
    "removed": ["removed", "rolled back", "withdrawn", "removed", "confirmed", "confirmed"],
    "replaced_halfway": ["confirmed", "waiting"],
    "replaced_and_cut_off": ["confirmed", "waiting"],
    "settling": ["started"],
    "out_of_service": ["confirmed"],
    "endpoint_failed": ["confirmed"],
}


@pytest.fixture
def left_as(world: World, deployer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Bring the world to what the old version left, by the name of its file."""

    def restore(name: str) -> None:
        left = json.loads((RECORDS / f"deployment_{name}.json").read_text())
        for variable, value in left["environment"].items():
            monkeypatch.setenv(variable, value)
        deployer.settings.cache_clear()
        world.time = datetime.fromisoformat(left["time"])
        world.sagemaker.clock = world.now
        monkeypatch.setattr(deployer, "now", world.now)
        for key, content in left["objects"].items():
            world.put(key, base64.b64decode(content["base64"]) if "base64" in content else content)
        things = left["sagemaker"]
        for endpoint in things["endpoints"].values():
            endpoint["LastModifiedTime"] = datetime.fromisoformat(endpoint["LastModifiedTime"])
        world.sagemaker.models, world.sagemaker.configs = things["models"], things["configs"]
        world.sagemaker.endpoints, world.sagemaker.endpoint_quota_message = things["endpoints"], things["quota"]

    return restore


@pytest.fixture
def run(deployer: ModuleType, world: World) -> Callable[..., str]:
    """Invoke the handler, with a sweep when no event is given; returns the outcome."""

    def invoke(sent: dict[str, Any] = SWEEP, request_id: str = "") -> str:
        world.wait(minutes=15)
        context = Context(request_id or f"at {world.now()}")
        return str(deployer.lambda_handler(sent, context)["outcome"])

    return invoke


def approve(world: World, job: str) -> dict[str, Any]:
    return world.upload(approved_key(job), ARTIFACT)


def come_up(world: World, run: Callable[..., str]) -> None:
    world.sagemaker.come_up(ENDPOINT)
    assert run(world.endpoint_event()) == "in service"


def test_every_file_is_looked_at() -> None:
    assert sorted(STATES) == sorted(path.stem.removeprefix("deployment_") for path in RECORDS.glob("deployment_*.json"))


@pytest.mark.parametrize("name", STATES)
def test_every_record_is_read_in_todays_shape(
    left_as: Callable[[str], None], world: World, deployer: ModuleType, name: str
) -> None:
    left_as(name)
    keys = world.keys("models/deployments/")
    assert all(world.record(key)["schema"] == 1 for key in keys)
    records = [deployer.read_record(BUCKET, key) for key in keys]
    assert sorted(record.state for record in records) == sorted(STATES[name])
    assert {record.schema for record in records} == {deployer.SCHEMA}
    assert {record.state for record in records} <= set(deployer.STATES)


@pytest.mark.parametrize("name", ["live", "rolled_back", "held", "withdrawn", "removed", "out_of_service"])
def test_what_was_settled_stays_so_and_nobody_is_emailed_again(
    left_as: Callable[[str], None], run: Callable[..., str], world: World, name: str
) -> None:
    left_as(name)
    before = world.final_state()
    for _ in range(2):
        run()
    assert world.final_state() == before
    assert world.emails() == []


def test_a_live_model_is_followed_by_the_next_one(
    left_as: Callable[[str], None], run: Callable[..., str], world: World
) -> None:
    left_as("live")
    assert run(approve(world, SECOND)) == "started"
    come_up(world, run)
    assert served(world).startswith(SECOND)
    assert subjects(world) == ["Deployment started", "Deployment successful"]


def test_a_model_that_was_rolled_back_is_passed_over(
    left_as: Callable[[str], None], run: Callable[..., str], world: World
) -> None:
    left_as("rolled_back")
    assert run(world.endpoint_event()) == "in service"
    assert served(world).startswith(FIRST)
    assert run(approve(world, THIRD)) == "started"
    assert record_of(world, SECOND)["state"] == "rolled back"


def test_a_model_that_waits_for_a_quota_is_deployed_once_there_is_room(
    left_as: Callable[[str], None], run: Callable[..., str], world: World
) -> None:
    left_as("waiting")
    run()
    assert world.around.calls.count("CreateEndpoint") == 1
    assert world.emails() == []
    world.sagemaker.endpoint_quota_message = ""
    run()
    come_up(world, run)
    assert subjects(world) == ["Deployment started", "Deployment successful"]


def test_a_model_that_is_held_is_deployed_when_somebody_asks(
    left_as: Callable[[str], None], run: Callable[..., str], world: World
) -> None:
    left_as("held")
    (key,) = world.keys(f"models/deployments/{SECOND}-")
    # As make resume of that version asked for it.
    asked = {"state": "waiting", "reason": "", "tries": 0, "endpoint_last_modified": None, "deleted": "pipeline"}
    world.put(key, world.record(key) | asked)
    run()
    come_up(world, run)
    assert served(world).startswith(SECOND)
    assert subjects(world) == ["Deployment started", "Deployment successful"]


def test_an_endpoint_that_was_deleted_by_hand_and_reported_is_not_reported_again_with_the_next_model(
    left_as: Callable[[str], None], run: Callable[..., str], world: World
) -> None:
    left_as("held")
    assert run(approve(world, THIRD)) == "deleted by hand"
    assert subjects(world) == ["Deployment waiting"]


def test_a_withdrawn_model_stays_so_when_settings_change(
    left_as: Callable[[str], None],
    run: Callable[..., str],
    world: World,
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left_as("withdrawn")
    monkeypatch.setenv("SERVERLESS_MEMORY_MB", "2048")
    deployer.settings.cache_clear()
    run()
    come_up(world, run)
    assert served(world).startswith(FIRST)
    assert record_of(world, SECOND)["withdrawn"]["reason"] == "rude answers"


def test_cleaning_up_goes_on_after_the_last_models_that_were_kept(
    left_as: Callable[[str], None], run: Callable[..., str], world: World, deployer: ModuleType
) -> None:
    left_as("removed")
    *older, last = jobs(7)
    run(approve(world, last))
    come_up(world, run)
    states = [deployer.read_record(BUCKET, key).state for key in sorted(world.keys("models/deployments/"))]
    assert states == [*STATES["removed"][:4], "removed", "confirmed", "confirmed"]
    assert sorted(name.rpartition("-")[0] for name in world.sagemaker.configs) == [older[-1], last]


@pytest.mark.parametrize(
    ("name", "announced"), [("replaced_halfway", []), ("replaced_and_cut_off", ["Deployment started"])]
)
def test_an_endpoint_that_was_being_replaced_is_created_and_announced_once(
    left_as: Callable[[str], None], run: Callable[..., str], world: World, name: str, announced: list[str]
) -> None:
    left_as(name)
    run()
    come_up(world, run)
    assert "ServerlessConfig" in world.sagemaker.configs[served(world)]["ProductionVariants"][0]
    assert subjects(world) == [*announced, "Deployment successful"]


@pytest.mark.parametrize("request_id", ["cut off", "another, after the lease"])
def test_a_deployment_that_was_being_settled_is_settled_and_emailed(
    left_as: Callable[[str], None], run: Callable[..., str], world: World, request_id: str
) -> None:
    left_as("settling")
    if request_id != "cut off":
        assert run(world.endpoint_event(), "another, before that") == "under way"
        world.wait(minutes=20)
    assert run(world.endpoint_event(), request_id) == "in service"
    assert record_of(world, FIRST)["state"] == "confirmed"
    assert subjects(world) == ["Deployment successful"]


def test_another_outage_is_reported(left_as: Callable[[str], None], run: Callable[..., str], world: World) -> None:
    left_as("out_of_service")
    world.sagemaker.come_up(ENDPOINT)
    run()
    world.sagemaker.fail(ENDPOINT, "No capacity", status="OutOfService")
    run()
    assert subjects(world) == ["Endpoint out of service"]


def test_an_endpoint_that_failed_and_was_deleted_comes_back(
    left_as: Callable[[str], None], run: Callable[..., str], world: World
) -> None:
    left_as("endpoint_failed")
    run()
    come_up(world, run)
    assert served(world).startswith(FIRST)
    assert subjects(world) == ["Deployment restored"]
