"""The deployment orchestrator: brings an endpoint to the newest approved model, and says how it went."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from fake_sagemaker import check_request, model_error, refusal
from world import (
    BUCKET,
    ENDPOINT,
    ENVIRONMENT,
    ROLE_ARN,
    Context,
    Interruption,
    World,
    broken_connection,
    event,
    tar_gz,
)

ARTIFACT = tar_gz([("config.json", b"{}"), ("model.safetensors", b"weights")])
FIRST, SECOND, THIRD = (f"training-job-2026112{day}-120000-0123abcd" for day in (1, 2, 3))
GOLDEN = [{"text": f"text {number}", "label": "ham", "score": 0.9} for number in range(20)]
PING_FAILED = "The primary container for production variant AllTraffic did not pass the ping health check."


def approved_key(job: str, model: str = "default") -> str:
    return f"models/approved/{model}/{job}/model.tar.gz"


@pytest.fixture
def approve(world: World) -> Callable[..., dict[str, Any]]:
    """Put an approved model there; returns the event that S3 sends."""

    def put(job: str = FIRST, model: str = "default", artifact: bytes = ARTIFACT) -> dict[str, Any]:
        return world.upload(approved_key(job, model), artifact)

    return put


@pytest.fixture
def run(deployer: ModuleType, world: World) -> Callable[..., str]:
    """Invoke the handler with an event (default: the endpoint came into service); returns the outcome."""

    def invoke(sent: dict[str, Any] | None = None, request_id: str = "first") -> str:
        return str(deployer.lambda_handler(sent or world.endpoint_event(), Context(request_id))["outcome"])

    return invoke


@pytest.fixture
def sweep(run: Callable[..., str]) -> Callable[..., str]:
    """Invoke the handler as the schedule does; returns the outcome."""
    numbers = itertools.count()
    return lambda: run({"source": "sweep"}, f"sweep {next(numbers)}")


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What endpoints run on, where a test does not say: serverless."""
    value = str(getattr(request, "param", "serverless"))
    monkeypatch.setenv("ENDPOINT_TYPE", value)
    return value


@pytest.fixture
def live(world: World, kind: str, approve: Callable[..., dict[str, Any]], run: Callable[..., str]) -> str:
    """The config of the first model, in service and told so; the mailbox holds its two emails."""
    run(approve(FIRST))
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    return served(world)


def served(world: World, endpoint: str = ENDPOINT) -> str:
    return str(world.sagemaker.endpoints[endpoint]["EndpointConfigName"])


def record_of(world: World, job: str) -> dict[str, Any]:
    (key,) = world.keys(f"models/deployments/{job}-")
    return world.record(key)


def decide(world: World, job: str, golden: list[dict[str, Any]] = GOLDEN) -> None:
    """The evaluator's decision on a job, as far as the deployer reads it."""
    world.put(f"models/decisions/{job}.json", {"schema": 1, "job": job, "golden": golden})


def subjects(world: World) -> list[str]:
    return [email.subject.partition(":")[0] for email in world.emails()]


def make_foreign_endpoint(world: World, name: str = ENDPOINT) -> None:
    """An endpoint of another stack under our name, in service."""
    world.sagemaker.create_model(
        ModelName="theirs",
        ExecutionRoleArn=ROLE_ARN,
        PrimaryContainer={"Image": "i", "ModelDataUrl": "s3://b/m.tar.gz"},
    )
    variant = {"VariantName": "AllTraffic", "ModelName": "theirs", "InstanceType": "ml.m5.large"}
    variants = [variant | {"InitialInstanceCount": 1}]
    world.sagemaker.create_endpoint_config(EndpointConfigName="their-config", ProductionVariants=variants)
    tags = [{"Key": "Stack", "Value": "another-stack"}]
    world.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="their-config", Tags=tags)
    world.sagemaker.come_up(name)


# --- create -----------------------------------------------------------------------------------------


def test_the_first_approved_model_gets_an_endpoint(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    assert run(approve()) == "started"
    endpoint = world.sagemaker.endpoints[ENDPOINT]
    config = world.sagemaker.configs[endpoint["EndpointConfigName"]]
    (variant,) = config["ProductionVariants"]
    model = world.sagemaker.models[variant["ModelName"]]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 3072, "MaxConcurrency": 5}
    assert model["PrimaryContainer"]["ModelDataUrl"] == f"s3://{BUCKET}/{approved_key(FIRST)}"
    assert model["PrimaryContainer"]["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    expected = {"Project": "mlops", "Stack": BUCKET, "Model": "default", "TrainingJob": FIRST}
    for thing in (endpoint, config, model):
        assert {tag["Key"]: tag["Value"] for tag in thing["Tags"]} == expected
    email = world.only_email()
    assert email.subject == f"Deployment started: default ({ENDPOINT})"
    assert email.attributes == {"stage": "deployment", "status": "started", "model": "default"}
    assert "What next: nothing to do" in email.body
    assert record_of(world, FIRST)["state"] == "started"


def test_another_model_gets_an_endpoint_of_its_own(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    assert run(approve(SECOND, model="reviews")) == "started"
    assert world.sagemaker.endpoints[f"{ENDPOINT}-reviews"]["EndpointStatus"] == "Creating"
    assert served(world) == live


def test_an_endpoint_on_instances_takes_their_type_and_count(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPOINT_TYPE", "instance")
    monkeypatch.setenv("ENDPOINT_INSTANCE_COUNT", "2")
    run(approve())
    (variant,) = world.sagemaker.configs[served(world)]["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.m5.large", 2)
    assert "ServerlessConfig" not in variant


def test_success_is_told_when_the_endpoint_serves_what_was_asked_and_not_before(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve())
    assert run(world.endpoint_event(status="CREATING")) == "busy: Creating"
    assert subjects(world) == ["Deployment started"]
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert subjects(world) == ["Deployment started", "Deployment successful"]
    assert f"--endpoint-name {ENDPOINT}" in world.emails()[-1].body
    assert record_of(world, FIRST)["state"] == "confirmed"


# --- update -----------------------------------------------------------------------------------------


def test_a_newer_model_updates_the_endpoint_which_keeps_serving(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    assert run(approve(SECOND)) == "started"
    assert world.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] == "Updating"
    assert served(world) == live
    assert "keeps serving the previous model" in world.emails()[-1].body
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world).startswith(SECOND)
    assert subjects(world)[2:] == ["Deployment started", "Deployment successful"]


def test_an_older_model_approved_late_changes_nothing(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND))
    world.sagemaker.come_up(ENDPOINT)
    run()
    assert run(approve(FIRST)) == "in service"
    assert served(world).startswith(SECOND)
    assert len(world.emails()) == 2


def test_a_model_approved_during_a_rollout_waits_for_its_end_in_silence(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(FIRST))
    assert run(approve(SECOND)) == "busy: Creating"
    assert subjects(world) == ["Deployment started"]
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "started"
    assert world.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] == "Updating"
    assert subjects(world) == ["Deployment started", "Deployment successful", "Deployment started"]


def test_of_two_models_approved_during_a_rollout_the_newest_is_next(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(FIRST))
    run(approve(THIRD))
    run(approve(SECOND))
    world.sagemaker.come_up(ENDPOINT)
    run()
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world).startswith(THIRD)
    assert world.keys(f"models/deployments/{SECOND}") == []


@pytest.mark.parametrize("came_up_after", range(3), ids=lambda number: f"came up after {number} approvals")
@pytest.mark.parametrize("order", [(SECOND, THIRD), (THIRD, SECOND)], ids=["older first", "newer first"])
def test_two_models_approved_while_another_rolls_out_end_with_the_newest_and_no_busy_endpoint_reaches_a_person(
    run: Callable[..., str],
    world: World,
    approve: Callable[..., dict[str, Any]],
    order: tuple[str, str],
    came_up_after: int,
) -> None:
    def start_to_change() -> None:
        """Just before the next update, SageMaker patches the endpoint."""
        world.sagemaker.fail(ENDPOINT, status="SystemUpdating")

    run(approve(FIRST))
    events = [approve(job) for job in order]
    world.around.interruption = Interruption("UpdateEndpoint", start_to_change)
    for number in range(3):
        if number == came_up_after:
            world.sagemaker.come_up(ENDPOINT)
            run(request_id="came up")
        run(events[number % 2], f"approval {number}")
    for settled in range(3):
        world.sagemaker.come_up(ENDPOINT)
        run(request_id=f"settled {settled}")
        run(events[settled % 2], f"again {settled}")
    assert world.around.interruption is None
    assert served(world).startswith(THIRD)
    assert record_of(world, THIRD)["state"] == "confirmed"
    told = world.emails()
    assert not any("in-progress" in email.body or "busy" in email.body.lower() for email in told)
    assert {email.attributes["status"] for email in told} == {"started", "successful"}
    assert set(Counter((email.subject, email.body) for email in told).values()) == {1}


def test_a_model_approved_while_a_success_is_told_is_not_forgotten(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(FIRST))
    world.sagemaker.come_up(ENDPOINT)
    outcomes: list[str] = []
    world.around.interruption = Interruption("Publish", lambda: outcomes.append(run(approve(SECOND), "second")))
    assert run() == "started"
    assert outcomes == ["under way"]
    assert world.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] == "Updating"


@pytest.mark.parametrize("status", ["SystemUpdating", "RollingBack", "Deleting"])
def test_a_busy_endpoint_is_left_alone(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]], status: str
) -> None:
    world.sagemaker.fail(ENDPOINT, status=status)
    assert run(approve(SECOND)) == f"busy: {status}"
    assert len(world.emails()) == 2


def test_an_endpoint_that_became_busy_just_now_is_left_until_it_settles(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    world.around.interruption = Interruption(
        "UpdateEndpoint", lambda: world.sagemaker.fail(ENDPOINT, status="SystemUpdating")
    )
    assert run(approve(SECOND)) == "busy"
    assert len(world.emails()) == 2
    world.sagemaker.fail(ENDPOINT, status="InService")
    assert run() == "started"
    assert subjects(world)[2:] == ["Deployment started"]


def test_an_update_whose_answer_was_lost_and_that_the_sdk_made_again_is_our_own(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    def made_before() -> None:
        world.around.interruption = None
        config = sorted(world.sagemaker.configs)[-1]
        world.sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName=config)

    world.around.interruption = Interruption("UpdateEndpoint", made_before)
    assert run(approve(SECOND)) == "started"
    world.sagemaker.roll_back(ENDPOINT, PING_FAILED)
    assert run() == "in service"
    assert subjects(world)[2:] == ["Deployment started", "Deployment rolled back"]
    assert served(world) == live


def test_an_endpoint_out_of_service_is_told_once_each_time(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    world.sagemaker.fail(ENDPOINT, "No capacity", status="OutOfService")
    assert run() == "busy: OutOfService"
    assert run(approve(SECOND), "second") == "busy: OutOfService"
    assert subjects(world)[2:] == ["Endpoint out of service"]
    email = world.emails()[-1]
    assert "Why: No capacity" in email.body
    assert "make resume MODEL=default" in email.body
    assert email.attributes["status"] == "endpoint-out-of-service"
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "started"
    world.sagemaker.come_up(ENDPOINT)
    run()
    world.sagemaker.fail(ENDPOINT, status="OutOfService")
    run()
    assert subjects(world)[-1] == "Endpoint out of service"


def test_an_endpoint_of_another_stack_out_of_service_is_none_of_ours(
    run: Callable[..., str], world: World, live: str
) -> None:
    world.sagemaker.vanish(ENDPOINT)
    make_foreign_endpoint(world)
    world.sagemaker.fail(ENDPOINT, status="OutOfService")
    assert run() == "busy: OutOfService"
    assert len(world.emails()) == 2


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "new_model", "new_config"),
    [
        ("SERVERLESS_MEMORY_MB", "4096", False, True),
        ("SERVERLESS_MAX_CONCURRENCY", "6", False, True),
        ("ENDPOINT_TYPE", "instance", True, True),
        ("INFERENCE_IMAGE", "another-image", True, True),
        ("MODEL_ROLE_ARN", ROLE_ARN + "-2", True, True),
        ("ENDPOINT_INSTANCE_COUNT", "3", False, False),
        ("PROJECT", "another", False, False),
    ],
)
def test_names_change_with_exactly_the_settings_that_go_into_the_thing(
    deployer: ModuleType, world: World, variable: str, value: str, new_model: bool, new_config: bool
) -> None:
    environment = ENVIRONMENT["deployment_orchestrator"]
    names = []
    for env in (environment, environment | {variable: value}):
        requests = deployer.new_record(deployer.Settings.from_env(env), "default", FIRST, "etag", 1).requests
        names.append((requests["model"]["ModelName"], requests["config"]["EndpointConfigName"]))
    assert (names[0][0] != names[1][0], names[0][1] != names[1][1]) == (new_model, new_config)


@pytest.mark.parametrize(("kind", "isolated"), [("instance", True), ("serverless", None)])
def test_a_model_on_instances_has_no_network_which_serverless_does_not_support(
    run: Callable[..., str],
    world: World,
    deployer: ModuleType,
    approve: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    isolated: bool | None,
) -> None:
    monkeypatch.setenv("ENDPOINT_TYPE", kind)
    deployer.settings.cache_clear()
    run(approve())
    [model] = world.sagemaker.models.values()
    assert model.get("EnableNetworkIsolation") is isolated


def test_changed_settings_are_deployed_under_a_new_name(
    run: Callable[..., str], world: World, deployer: ModuleType, live: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERLESS_MEMORY_MB", "2048")
    deployer.settings.cache_clear()
    assert run() == "started"
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world) != live
    assert served(world).startswith(FIRST)


@given(model=st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True), etag=st.text(max_size=40))
def test_names_are_legal_and_a_models_endpoint_is_found_again_by_its_name(
    deployer: ModuleType, model: str, etag: str
) -> None:
    config = deployer.Settings.from_env(ENVIRONMENT["deployment_orchestrator"])
    requests = deployer.new_record(config, model, FIRST, etag, 1).requests
    assert len(requests["model"]["ModelName"]) <= 63
    assert len(requests["config"]["EndpointConfigName"]) <= 63
    assert config.model_of(config.endpoint_of(model)) == model


# --- rolled back, failed, superseded ----------------------------------------------------------------


@pytest.mark.parametrize("reason", [PING_FAILED, ""], ids=["with a reason", "without"])
def test_a_rollback_is_told_once_and_the_model_not_tried_again(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]], reason: str
) -> None:
    run(approve(SECOND))
    world.sagemaker.roll_back(ENDPOINT, reason)
    assert run() == "in service"
    assert subjects(world)[2:] == ["Deployment started", "Deployment rolled back"]
    email = world.emails()[-1]
    assert email.attributes["status"] == "rolled-back"
    assert (reason or "SageMaker gave no reason") in email.body
    assert f"keeps serving {live}" in email.body
    assert f"make logs ENDPOINT={ENDPOINT}" in email.body
    assert record_of(world, SECOND)["state"] == "rolled back"
    assert run(request_id="later") == "in service"
    assert served(world) == live
    assert len(world.emails()) == 4


def test_after_a_rollback_a_newer_model_is_deployed(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND))
    world.sagemaker.roll_back(ENDPOINT)
    assert run(approve(THIRD)) == "started"
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world).startswith(THIRD)


def test_an_endpoint_that_failed_to_come_up_is_told_once_and_deleted(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve())
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    assert run(world.endpoint_event(status="FAILED")) == "failed endpoint deleted"
    assert world.sagemaker.endpoints == {}
    assert subjects(world) == ["Deployment started", "Deployment failed"]
    assert PING_FAILED in world.emails()[-1].body
    assert run(world.endpoint_event(status="FAILED"), "later") == "nothing to deploy"
    assert world.sagemaker.endpoints == {}
    assert len(world.emails()) == 2


def test_after_a_failed_endpoint_the_next_model_gets_a_new_one(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(FIRST))
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    run(world.endpoint_event(status="FAILED"))
    assert run(approve(SECOND)) == "started"
    assert served(world).startswith(SECOND)


def test_two_events_of_one_failed_endpoint_delete_it_once_without_an_error(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve())
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    outcomes: list[str] = []
    world.around.interruption = Interruption("DeleteEndpoint", lambda: outcomes.append(run(request_id="second")))
    assert [run(), *outcomes] == ["failed endpoint deleted"] * 2
    assert subjects(world) == ["Deployment started", "Deployment failed"]


def test_a_failed_endpoint_stays_until_its_failure_was_told(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve())
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    outcomes: list[str] = []
    world.around.interruption = Interruption("Publish", lambda: outcomes.append(run(request_id="second")))
    run()
    assert outcomes == ["under way"]


def test_a_rollback_that_failed_is_told_as_failed_and_ends_on_the_model_before(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND))
    world.sagemaker.fail(ENDPOINT, status="UpdateRollbackFailed")
    # In service with a mix of both models: neither is right.
    assert run(world.endpoint_event(status="UPDATE_ROLLBACK_FAILED")) == "failed endpoint deleted"
    assert record_of(world, SECOND)["state"] == "failed"
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    sweep()
    assert served(world) == live
    assert subjects(world)[2:] == ["Deployment started", "Deployment failed", "Deployment restored"]


def test_a_rollback_that_failed_under_somebody_elses_hands_is_theirs_to_mend(
    run: Callable[..., str], world: World, live: str
) -> None:
    world.sagemaker.fail(ENDPOINT, status="UpdateRollbackFailed")
    assert run(world.endpoint_event(status="UPDATE_ROLLBACK_FAILED")) == "in service"
    assert ENDPOINT in world.sagemaker.endpoints
    assert len(world.emails()) == 2


def test_a_deployment_that_somebody_overtook_is_recorded_and_not_told_as_success_or_rollback(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND))
    (variant,) = world.sagemaker.configs[live]["ProductionVariants"]
    world.sagemaker.create_endpoint_config(EndpointConfigName="by-hand", ProductionVariants=[variant])
    world.sagemaker.roll_back(ENDPOINT)
    world.sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName="by-hand")
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "left as somebody made it"
    assert record_of(world, SECOND)["state"] == "superseded"
    assert subjects(world)[2:] == ["Deployment started"]
    assert served(world) == "by-hand"


def test_an_update_by_somebody_else_is_not_taken_for_our_own(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND))
    endpoint = world.sagemaker.endpoints[ENDPOINT]
    endpoint["PendingDeploymentSummary"] = {"EndpointConfigName": "by-hand"}
    assert run() == "busy: Updating"
    assert record_of(world, SECOND)["state"] == "started"


def test_an_endpoint_that_somebody_deleted_after_it_was_live_is_told_once_and_not_recreated(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str
) -> None:
    world.sagemaker.vanish(ENDPOINT)
    assert run() == "deleted by hand"
    assert world.sagemaker.endpoints == {}
    assert subjects(world)[2:] == ["Endpoint deleted by hand"]
    email = world.emails()[-1]
    assert email.attributes["status"] == "endpoint-deleted-by-hand"
    assert "run make resume MODEL=default. It recreates the endpoint" in email.body
    assert "keeps serving" not in email.body
    before = world.final_state()
    assert sweep() == "1 models swept"
    assert world.final_state() == before
    assert len(world.emails()) == 3


def test_an_endpoint_deleted_during_its_deployment_is_told_so_once(
    run: Callable[..., str],
    world: World,
    deployer: ModuleType,
    approve: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(approve())
    world.sagemaker.vanish(ENDPOINT)
    later = datetime.now(UTC) + timedelta(minutes=5)
    monkeypatch.setattr(deployer, "now", lambda: later)
    assert run() == "deleted by hand"
    assert run() == "deleted by hand"
    assert subjects(world) == ["Deployment started", "Endpoint deleted by hand"]
    body = world.emails()[-1].body
    assert "deleted while this model was being deployed" in body
    assert "keeps serving" not in body


def test_a_new_endpoint_that_is_not_visible_yet_is_not_taken_for_deleted(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve())
    endpoint = world.sagemaker.endpoints.pop(ENDPOINT)
    assert run(world.endpoint_event(status="CREATING")) == "under way"
    world.sagemaker.endpoints[ENDPOINT] = endpoint
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert subjects(world) == ["Deployment started", "Deployment successful"]


def test_an_update_that_is_not_visible_yet_is_not_taken_for_a_rollback(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    stale = dict(world.sagemaker.endpoints[ENDPOINT])
    run(approve(SECOND))
    updating, world.sagemaker.endpoints[ENDPOINT] = world.sagemaker.endpoints[ENDPOINT], stale
    assert run() == "under way"
    assert record_of(world, SECOND)["state"] == "started"
    world.sagemaker.endpoints[ENDPOINT] = updating
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert subjects(world)[2:] == ["Deployment started", "Deployment successful"]


# --- not made, or made unseen -----------------------------------------------------------------------


@pytest.mark.parametrize("retry", ["first", "another, after the lease"])
def test_a_crash_before_the_call_is_told_from_a_rollback(
    run: Callable[..., str],
    world: World,
    live: str,
    deployer: ModuleType,
    approve: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    retry: str,
) -> None:
    world.around.interruption = Interruption("UpdateEndpoint", broken_connection)
    sent = approve(SECOND)
    with pytest.raises(ClientError):
        run(sent)
    if retry != "first":
        assert run(sent, retry) == "under way"
        later = datetime.now(UTC) + timedelta(seconds=deployer.LEASE_SECONDS + 1)
        monkeypatch.setattr(deployer, "now", lambda: later)
    assert run(sent, retry) == "started"
    assert subjects(world)[2:] == ["Deployment started"]


def test_a_call_whose_answer_was_lost_is_found_by_its_effect(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    world.around.interruption = Interruption("UpdateEndpoint", broken_connection, after_the_effect=True)
    sent = approve(SECOND)
    with pytest.raises(ClientError):
        run(sent)
    world.sagemaker.come_up(ENDPOINT)
    assert run(sent) == "in service"
    assert subjects(world)[2:] == ["Deployment started", "Deployment successful"]


# --- not ours ---------------------------------------------------------------------------------------


def test_an_endpoint_of_another_stack_is_left_alone_and_told_once(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    make_foreign_endpoint(world)
    before = dict(world.sagemaker.endpoints[ENDPOINT])
    sent = approve()
    assert run(sent) == "waiting"
    assert run(world.endpoint_event(), "later") == "waiting"
    assert world.sagemaker.endpoints[ENDPOINT] == before
    email = world.only_email()
    assert email.subject == f"Deployment waiting: default ({ENDPOINT})"
    assert "that this stack did not create. Find out who uses it" in email.body


def test_a_failed_endpoint_of_another_stack_is_not_deleted(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    make_foreign_endpoint(world)
    world.sagemaker.fail(ENDPOINT)
    assert run(approve()) == "failed endpoint of somebody else"
    assert ENDPOINT in world.sagemaker.endpoints


@pytest.mark.parametrize("name", ["unrelated", "mlops-endpoint-", "mlops-endpoint-default", "mlops-endpointx"])
def test_an_event_of_an_unrelated_endpoint_has_no_effect(run: Callable[..., str], world: World, name: str) -> None:
    assert run(world.endpoint_event(name)) == "ignored"
    assert world.around.calls == []


def test_an_endpoint_with_a_name_like_ours_but_no_model_has_no_effect(run: Callable[..., str], world: World) -> None:
    make_foreign_endpoint(world, f"{ENDPOINT}-reviews")
    before = world.final_state()
    assert run(world.endpoint_event(f"{ENDPOINT}-reviews")) == "nothing approved"
    assert world.final_state() == before
    assert world.emails() == []


@pytest.mark.parametrize(
    "key",
    [
        "models/approved/default/notes.txt",
        f"models/approved/default/{FIRST}/other.tar.gz",
        "models/approved/default/by-hand/model.tar.gz",
        f"models/approved/Default/{FIRST}/model.tar.gz",
        f"models/approved/{FIRST}/model.tar.gz",
    ],
)
def test_another_object_under_the_approved_prefix_is_ignored(
    run: Callable[..., str], world: World, live: str, key: str
) -> None:
    assert run(world.upload(key)) == "ignored"
    assert run() == "in service"
    assert len(world.emails()) == 2


def test_an_event_of_another_bucket_is_ignored(run: Callable[..., str], world: World) -> None:
    sent = event("s3_object_created_approved")
    sent["detail"]["bucket"]["name"] = "somebody-elses"
    assert run(sent) == "ignored"


@pytest.mark.parametrize(
    "name", ["s3_object_created_approved"] + [f"sagemaker_endpoint_{s}" for s in ("in_service", "failed", "minimal")]
)
def test_the_documented_event_shapes_are_understood(deployer: ModuleType, world: World, name: str) -> None:
    assert deployer.model_of_event(event(name), deployer.settings()) == "default"


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ({}, "detail"),
        ({"detail": {}}, "detail"),
        ({"detail": {"EndpointName": 7}}, "EndpointName"),
        ({"source": "aws.s3", "detail": {"object": {"key": "k"}}}, "bucket"),
        ({"source": "aws.s3", "detail": {"bucket": {"name": BUCKET}, "object": {}}}, "object"),
        ({"source": "aws.s3", "detail": {"bucket": {"name": BUCKET}, "object": {"key": 1}}}, "key"),
    ],
)
def test_an_event_that_is_off_is_named(deployer: ModuleType, world: World, sent: dict[str, Any], named: str) -> None:
    with pytest.raises(deployer.EventError, match=f"field '{named}'"):
        deployer.model_of_event(sent, deployer.settings())


# --- the artifact -----------------------------------------------------------------------------------


def tar_block(size: bytes, kind: bytes) -> bytes:
    info = tarfile.TarInfo("member")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    return bytes(block)


BAD_ARTIFACTS = {
    "empty": (b"", r"empty \(0 bytes\)"),
    "no gzip": (b"PK\x03\x04 zip", "not a gzip-compressed tar"),
    "gzip of something else": (gzip.compress(b"x" * 2000), "not a gzip-compressed tar"),
    "no files": (tar_gz([]), "an archive without any file"),
    "cut off": (gzip.compress(b"x" * 100), "cut off"),
    "only a folder": (gzip.compress(tar_block(b"%011o\0" % 0, tarfile.DIRTYPE)), "has no file in its first"),
    "absurd size": (gzip.compress(tar_block(b"\x80" + b"\xff" * 11, b"Z")), "not a gzip-compressed tar"),
    "headers in headers": (
        gzip.compress(tar_block(b"%011o\0" % 0, tarfile.GNUTYPE_LONGNAME) * 2000),
        "not a gzip-compressed tar",
    ),
    "negative size": (gzip.compress(tar_block(b"\xff" * 10 + b"\xfe\x00", tarfile.DIRTYPE)), "negative size"),
}


@pytest.mark.parametrize("name", BAD_ARTIFACTS)
def test_an_artifact_that_cannot_be_served_fails_before_the_endpoint_is_touched(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]], name: str
) -> None:
    artifact, reason = BAD_ARTIFACTS[name]
    before = world.sagemaker.state()
    assert run(approve(SECOND, artifact=artifact)) == "in service"
    assert record_of(world, SECOND)["state"] == "failed"
    email = world.emails()[-1]
    assert email.subject == f"Deployment failed: default ({ENDPOINT})"
    assert re.search(reason, email.body)
    assert world.sagemaker.state() == before
    assert run(request_id="later") == "in service"
    assert len(world.emails()) == 3


def test_an_artifact_replaced_after_the_listing_is_not_deployed(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    sent = approve()
    world.around.interruption = Interruption("PutObject", lambda: world.put(approved_key(FIRST), tar_gz([("x", b"")])))
    # The new one's own event may have come and gone: it is looked at now.
    assert run(sent) == "started"
    assert subjects(world) == ["Deployment failed", "Deployment started"]
    assert "deleted or replaced after it was approved" in world.emails()[0].body


def test_a_large_artifact_is_not_read_whole(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]], deployer: ModuleType
) -> None:
    artifact = tar_gz([("model.safetensors", bytes(range(256)) * 40_000)]) + b"\xff" * deployer.ARTIFACT_HEAD_BYTES
    assert run(approve(artifact=artifact)) == "started"


# --- quotas -----------------------------------------------------------------------------------------


def test_a_quota_that_is_used_up_is_told_once_and_tried_again_at_the_next_event(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    quota = "The account-level service limit 'Maximum serverless memory size (MB)' is 0"
    world.sagemaker.endpoint_quota_message = quota
    sent = approve()
    assert run(sent) == "waiting"
    assert run(sent, "later") == "waiting"
    assert subjects(world) == ["Deployment waiting"]
    assert quota in world.only_email().body
    world.sagemaker.endpoint_quota_message = ""
    assert run(sent, "later still") == "started"
    assert subjects(world) == ["Deployment waiting", "Deployment started"]


# --- the golden rows --------------------------------------------------------------------------------


@pytest.fixture
def second_comes_up(world: World, run: Callable[..., str], approve: Callable[..., dict[str, Any]]) -> Callable[[], str]:
    """Deploys the second model, whose decision has golden rows, over the first; returns what the handler made of it."""

    def come_up() -> str:
        decide(world, SECOND)
        run(approve(SECOND))
        world.sagemaker.come_up(ENDPOINT)
        return run()

    return come_up


def test_golden_rows_that_are_answered_as_in_training_confirm_the_deployment(
    world: World, live: str, second_comes_up: Callable[[], str]
) -> None:
    assert second_comes_up() == "in service"
    assert world.around.calls.count("InvokeEndpoint") == 1
    assert subjects(world)[2:] == ["Deployment started", "Deployment successful"]
    assert "20 of 20 answered as in training" in world.emails()[-1].body
    assert record_of(world, SECOND)["state"] == "confirmed"


def test_the_golden_rows_of_another_model_are_asked_of_its_own_endpoint(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    endpoint = f"{ENDPOINT}-reviews"
    decide(world, FIRST)
    world.sagemaker.answers[FIRST] = (GOLDEN[0]["label"], GOLDEN[0]["score"])
    run(approve(FIRST, model="reviews"))
    world.sagemaker.come_up(endpoint)
    run(world.endpoint_event(endpoint))
    assert "InvokeEndpoint" in world.around.calls
    assert record_of(world, FIRST)["endpoint"] == endpoint


def test_a_model_without_golden_rows_is_confirmed_and_said_to_be_unchecked(world: World, live: str) -> None:
    assert "not checked" in world.emails()[-1].body
    assert record_of(world, FIRST)["state"] == "confirmed"
    assert "InvokeEndpoint" not in world.around.calls


WRONG = {
    "another label": ("spam", 0.9),
    "another score": ("ham", 0.8),
    "an answer of another form": ("ham", "much"),
    "an exception in the model's code": model_error(400),
}
# On a serverless endpoint, these may be a cold start.
WRONG_ON_INSTANCES = {"a server error that lasts": model_error(500), "a time-out that lasts": model_error(0)}


@pytest.mark.parametrize(
    ("kind", "answer"),
    [("serverless", answer) for answer in WRONG.values()] + [("instance", one) for one in WRONG_ON_INSTANCES.values()],
    ids=[*WRONG, *WRONG_ON_INSTANCES],
    indirect=["kind"],
)
def test_a_model_that_answers_wrongly_is_taken_back_and_the_one_before_restored(
    run: Callable[..., str], world: World, live: str, second_comes_up: Callable[[], str], answer: Any
) -> None:
    world.sagemaker.answers[SECOND] = answer
    assert second_comes_up() == "started"
    assert record_of(world, SECOND)["state"] == "rolled back"
    told = world.emails()[-1]
    assert told.subject == f"Deployment rolled back: default ({ENDPOINT})"
    assert f"The pipeline puts {live} back" in told.body
    assert world.sagemaker.endpoints[ENDPOINT]["PendingDeploymentSummary"] == {"EndpointConfigName": live}
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world) == live
    assert record_of(world, FIRST)["state"] == "confirmed"
    assert subjects(world)[2:] == ["Deployment started", "Deployment rolled back", "Deployment restored"]
    assert f"after {record_of(world, SECOND)['config']} was taken back" in world.emails()[-1].body
    before = world.final_state()
    assert run(request_id="later") == "in service"
    assert world.final_state() == before
    assert len(world.emails()) == 5


def test_a_first_model_that_answers_wrongly_is_told_as_failed_and_its_endpoint_deleted(
    run: Callable[..., str], sweep: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    decide(world, FIRST)
    world.sagemaker.answers[FIRST] = ("spam", 0.9)
    run(approve(FIRST))
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "failed endpoint deleted"
    assert world.sagemaker.endpoints == {}
    assert subjects(world) == ["Deployment started", "Deployment failed"]
    assert "no earlier model to restore, so the endpoint is deleted" in world.emails()[-1].body
    sweep()
    assert world.sagemaker.endpoints == {}
    assert len(world.emails()) == 2


BUSY = {
    "throttling": ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "InvokeEndpoint"),
    "a cold start": ClientError({"Error": {"Code": "ModelNotReadyException", "Message": "Wait"}}, "InvokeEndpoint"),
}
PASSING = {"an error of AWS": ClientError({"Error": {"Code": "InternalFailure", "Message": "Oh"}}, "InvokeEndpoint")}
PASSING_ON_INSTANCES = {"a time-out at first": model_error(0), "a server error at first": model_error(503)}


@pytest.mark.parametrize(
    ("kind", "error"),
    [("serverless", error) for error in PASSING.values()]
    + [("instance", one) for one in PASSING_ON_INSTANCES.values()],
    ids=[*PASSING, *PASSING_ON_INSTANCES],
    indirect=["kind"],
)
def test_a_failure_that_may_pass_is_no_verdict(
    run: Callable[..., str],
    world: World,
    live: str,
    second_comes_up: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    deployer: ModuleType,
    error: ClientError,
) -> None:
    monkeypatch.setattr(deployer, "CHECK_PATIENCE_SECONDS", 10**9)
    world.sagemaker.answers[SECOND] = error
    with pytest.raises(ClientError):
        second_comes_up()
    assert record_of(world, SECOND)["state"] == "started"
    assert subjects(world)[2:] == ["Deployment started"]
    del world.sagemaker.answers[SECOND]
    assert run() == "in service"
    assert record_of(world, SECOND)["state"] == "confirmed"


@pytest.mark.parametrize("error", BUSY.values(), ids=BUSY)
def test_a_busy_endpoint_is_asked_again_by_the_next_event_and_nothing_is_raised(
    run: Callable[..., str],
    world: World,
    live: str,
    second_comes_up: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    deployer: ModuleType,
    error: ClientError,
) -> None:
    monkeypatch.setattr(deployer, "BUSY_PATIENCE_SECONDS", 10**9)
    world.sagemaker.answers[SECOND] = error
    assert second_comes_up() == "under way"
    for number in range(10):
        assert run({"source": "sweep"}, f"sweep {number}") == "1 models swept"
    assert record_of(world, SECOND)["state"] == "started"
    assert subjects(world)[2:] == ["Deployment started"]
    del world.sagemaker.answers[SECOND]
    assert run() == "in service"
    assert record_of(world, SECOND)["state"] == "confirmed"


def test_an_endpoint_that_is_busy_for_a_day_is_confirmed_unchecked_and_the_email_says_so(
    world: World, live: str, second_comes_up: Callable[[], str], deployer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployer, "BUSY_PATIENCE_SECONDS", 0)
    world.sagemaker.answers[SECOND] = BUSY["throttling"]
    assert second_comes_up() == "in service"
    assert "NOT CHECKED: this function could not ask the endpoint. AWS said: Rate exceeded" in world.emails()[-1].body


def cold(world: World, deployer: ModuleType, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The second model answers this long after it is asked first; until then it is asked for 60 seconds in vain."""
    ready = world.time + timedelta(seconds=seconds)
    ask = world.sagemaker.runtime.invoke_endpoint

    def invoke(**request: Any) -> dict[str, Any]:
        if "EndpointConfigName" in world.sagemaker.endpoints[ENDPOINT] and world.time < ready:
            world.time = min(world.time + timedelta(seconds=60), max(ready, world.time))
            if world.time < ready:
                raise model_error(0)
        return dict(ask(**request))

    monkeypatch.setattr(deployer, "now", world.now)
    world.sagemaker.clock = world.now
    monkeypatch.setattr(deployer, "runtime", lambda: SimpleNamespace(invoke_endpoint=invoke))


@pytest.mark.parametrize("seconds", [70, 170])
def test_a_cold_start_of_minutes_is_confirmed_in_the_invocation_that_asks(
    world: World,
    live: str,
    second_comes_up: Callable[[], str],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
) -> None:
    cold(world, deployer, monkeypatch, seconds)
    assert second_comes_up() == "in service"
    assert record_of(world, SECOND)["state"] == "confirmed"
    assert "20 of 20 answered as in training" in world.emails()[-1].body
    assert subjects(world)[2:] == ["Deployment started", "Deployment successful"]


@pytest.mark.parametrize("status", [0, 500, 503])
def test_a_serverless_model_that_does_not_answer_is_asked_again_by_the_next_event_and_nothing_is_raised(
    run: Callable[..., str], world: World, live: str, second_comes_up: Callable[[], str], status: int
) -> None:
    world.sagemaker.answers[SECOND] = model_error(status)
    assert second_comes_up() == "under way"
    for number in range(4):
        assert run({"source": "sweep"}, f"sweep {number}") == "1 models swept"
    assert record_of(world, SECOND)["state"] == "started"
    assert record_of(world, SECOND)["unanswered"] == 5
    assert subjects(world)[2:] == ["Deployment started"]
    del world.sagemaker.answers[SECOND]
    assert run() == "in service"
    assert record_of(world, SECOND)["state"] == "confirmed"


def test_a_serverless_model_that_answers_in_none_of_six_invocations_is_taken_back(
    run: Callable[..., str], world: World, live: str, second_comes_up: Callable[[], str], deployer: ModuleType
) -> None:
    world.sagemaker.answers[SECOND] = model_error(0)
    second_comes_up()
    for number in range(deployer.UNANSWERED_MAX - 1):
        assert record_of(world, SECOND)["state"] == "started"
        run(request_id=f"event {number}")
    assert record_of(world, SECOND)["state"] == "rolled back"
    assert "the new model does not answer. SageMaker said: Your invocation timed out" in world.emails()[-1].body


def test_an_endpoint_is_asked_only_while_the_function_has_time_for_the_answer(
    world: World, live: str, second_comes_up: Callable[[], str], deployer: ModuleType
) -> None:
    world.sagemaker.answers[SECOND] = model_error(0)
    second_comes_up()
    asked = world.around.calls.count("InvokeEndpoint")
    deployer.lambda_handler(world.endpoint_event(), Context("late", remaining_milliseconds=90_000))
    assert world.around.calls.count("InvokeEndpoint") == asked
    assert record_of(world, SECOND)["unanswered"] == 1


DENIED = refusal("InvokeEndpoint", "AccessDeniedException", "not authorized to perform: sagemaker:InvokeEndpoint", 403)


def test_a_denial_to_ask_the_endpoint_may_pass_as_a_new_policy_spreads(
    run: Callable[..., str],
    world: World,
    live: str,
    second_comes_up: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    deployer: ModuleType,
) -> None:
    monkeypatch.setattr(deployer, "CHECK_PATIENCE_SECONDS", 10**9)
    world.sagemaker.answers[SECOND] = DENIED
    with pytest.raises(ClientError, match="AccessDenied"):
        second_comes_up()
    assert record_of(world, SECOND)["state"] == "started"
    world.sagemaker.answers[SECOND] = ("spam", 0.9)
    assert run() == "started"
    assert record_of(world, SECOND)["state"] == "rolled back"


def test_a_denial_to_ask_the_endpoint_that_lasts_is_told_and_neither_asked_for_ever_nor_held_against_the_model(
    run: Callable[..., str], world: World, live: str, second_comes_up: Callable[[], str]
) -> None:
    world.sagemaker.answers[SECOND] = DENIED
    assert second_comes_up() == "in service"
    assert record_of(world, SECOND)["state"] == "confirmed"
    assert "golden rows" in world.emails()[-1].body
    assert "NOT CHECKED: this function could not ask the endpoint" in world.emails()[-1].body
    asked = world.around.calls.count("InvokeEndpoint")
    assert run() == "in service"
    assert world.around.calls.count("InvokeEndpoint") == asked


def test_a_wrong_answer_counts_only_when_it_stays(world: World, live: str, second_comes_up: Callable[[], str]) -> None:
    def mend() -> None:
        world.sagemaker.answers.clear()

    world.sagemaker.answers[SECOND] = ("spam", 0.9)
    world.around.interruption = Interruption("InvokeEndpoint", mend, after_the_effect=True)
    assert second_comes_up() == "in service"
    assert world.around.calls.count("InvokeEndpoint") == 2


def test_a_model_that_was_restored_is_checked_as_well_and_the_next_one_tried(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    for job in (FIRST, SECOND, THIRD):
        decide(world, job)
        if job == THIRD:
            world.sagemaker.answers |= {SECOND: ("spam", 0.9), THIRD: ("spam", 0.9)}
        run(approve(job))
        world.sagemaker.come_up(ENDPOINT)
        run()
    world.sagemaker.come_up(ENDPOINT)  # the second again
    assert run() == "started"
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world).startswith(FIRST)
    assert [record_of(world, job)["state"] for job in (FIRST, SECOND, THIRD)] == [
        "confirmed",
        "rolled back",
        "rolled back",
    ]


@given(st.lists(st.tuples(st.sampled_from(["ham", "spam"]), st.floats(0.5, 1)), min_size=1, max_size=20), st.data())
def test_answers_within_the_tolerance_agree_and_one_beyond_it_does_not(
    deployer: ModuleType, rows: list[tuple[str, float]], data: st.DataObject
) -> None:
    golden = [{"text": "t", "label": label, "score": score} for label, score in rows]
    shift = st.floats(-0.9 * deployer.SCORE_TOLERANCE, 0.9 * deployer.SCORE_TOLERANCE)
    answers = [{"label": row["label"], "score": row["score"] + data.draw(shift)} for row in golden]
    assert deployer.difference(golden, answers) == ""
    at = data.draw(st.integers(0, len(rows) - 1))
    answers[at] = answers[at] | {"score": golden[at]["score"] - 1.1 * deployer.SCORE_TOLERANCE}
    assert deployer.difference(golden, answers).startswith(f"1 of {len(rows)} golden rows")


@pytest.mark.parametrize(("flipped", "score", "agree"), [(2, 0.52, True), (3, 0.52, False), (1, 0.58, False)], ids=str)
def test_labels_may_change_places_only_where_they_nearly_tied_and_in_few_rows(
    deployer: ModuleType, flipped: int, score: float, agree: bool
) -> None:
    golden = [{"text": "t", "label": "ham", "score": score} for _ in range(20)]
    answers = [{"label": "spam" if row < flipped else "ham", "score": score - 0.01} for row in range(20)]
    assert (deployer.difference(golden, answers) == "") == agree


@pytest.mark.parametrize(
    "answers", [None, {}, [], ["ham"] * 20, [{"label": "ham"}] * 20, [{"score": True}] * 20], ids=repr
)
def test_answers_of_another_form_do_not_agree(deployer: ModuleType, answers: object) -> None:
    assert deployer.difference(GOLDEN, answers).startswith("the endpoint ")


def test_a_score_that_is_not_a_number_does_not_agree(deployer: ModuleType) -> None:
    assert deployer.difference(GOLDEN, [{"label": "ham", "score": float("nan")}] * 20) != ""


# --- back to the last confirmed model ---------------------------------------------------------------


def fail_live_endpoint(world: World) -> None:
    world.sagemaker.fail(ENDPOINT, "The instance failed")


def test_a_live_endpoint_that_fails_is_told_deleted_and_made_anew(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str
) -> None:
    fail_live_endpoint(world)
    assert run(world.endpoint_event(status="FAILED")) == "failed endpoint deleted"
    assert world.sagemaker.endpoints == {}
    sweep()
    assert world.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] == "Creating"
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world) == live
    assert subjects(world)[2:] == ["Endpoint failed", "Deployment restored"]


def test_after_an_update_that_failed_for_good_the_model_before_comes_back(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND))
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    assert run(world.endpoint_event(status="FAILED")) == "failed endpoint deleted"
    assert f"deletes it and restores {live}" in world.emails()[-1].body
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    sweep()
    assert served(world) == live
    assert record_of(world, SECOND)["state"] == "failed"
    assert subjects(world)[2:] == ["Deployment started", "Deployment failed", "Deployment restored"]


def test_a_model_that_fails_when_it_is_brought_back_is_not_tried_for_ever(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str
) -> None:
    for _ in range(3):
        if ENDPOINT in world.sagemaker.endpoints:
            world.sagemaker.fail(ENDPOINT, PING_FAILED)
        sweep()
        sweep()
    assert world.sagemaker.endpoints == {}
    assert record_of(world, FIRST)["state"] == "failed"
    assert subjects(world)[2:] == ["Endpoint failed", "Deployment failed"]


def test_a_model_comes_back_with_the_config_that_it_had_even_if_settings_changed(
    run: Callable[..., str],
    sweep: Callable[..., str],
    world: World,
    live: str,
    approve: Callable[..., dict[str, Any]],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVERLESS_MEMORY_MB", "1024")
    deployer.settings.cache_clear()
    decide(world, SECOND)
    world.sagemaker.answers[SECOND] = model_error(400)
    run(approve(SECOND))
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "started"
    world.sagemaker.come_up(ENDPOINT)
    run()
    assert "Deployment restored" in subjects(world)
    assert served(world) == live


def withdraw(world: World, job: str) -> None:
    (key,) = world.keys(f"models/deployments/{job}-")
    world.put(key, world.record(key) | {"state": "withdrawn"})


def test_an_endpoint_that_serves_a_withdrawn_model_is_put_back_and_stays_so(
    sweep: Callable[..., str], world: World, live: str, second_comes_up: Callable[[], str]
) -> None:
    second_comes_up()
    withdraw(world, SECOND)
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    sweep()
    assert served(world) == live
    assert subjects(world)[4:] == ["Deployment restored"]
    sweep()
    assert served(world) == live


def test_a_withdrawn_model_stays_so_when_settings_change(
    run: Callable[..., str],
    world: World,
    live: str,
    second_comes_up: Callable[[], str],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second_comes_up()
    withdraw(world, SECOND)
    monkeypatch.setenv("SERVERLESS_MEMORY_MB", "2048")
    deployer.settings.cache_clear()
    run()
    world.sagemaker.come_up(ENDPOINT)
    run()
    assert served(world).startswith(FIRST)


# --- deleted by hand --------------------------------------------------------------------------------


def test_a_model_approved_after_a_deletion_by_hand_waits_until_somebody_asks_for_it(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    world.sagemaker.vanish(ENDPOINT)
    sweep()
    assert run(approve(SECOND)) == "deleted by hand"
    sweep()
    assert world.sagemaker.endpoints == {}
    assert subjects(world)[2:] == ["Endpoint deleted by hand", "Deployment waiting"]
    assert "does not recreate it until it is told to" in world.emails()[-1].body
    (key,) = world.keys(f"models/deployments/{SECOND}-")
    world.put(key, world.record(key) | {"state": "waiting", "reason": "asked for with make resume"})
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert served(world).startswith(SECOND)


def test_a_model_that_waited_for_a_quota_is_not_deployed_once_the_endpoint_was_deleted_by_hand(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    world.sagemaker.endpoint_quota_message = "The account-level service limit is 0"
    run(approve(SECOND))
    world.sagemaker.vanish(ENDPOINT)
    world.sagemaker.endpoint_quota_message = ""
    sweep()
    sweep()
    assert world.sagemaker.endpoints == {}
    assert subjects(world)[2:] == ["Deployment waiting", "Endpoint deleted by hand"]


def test_an_endpoint_deleted_by_hand_after_the_pipeline_deleted_one_is_not_recreated(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str
) -> None:
    fail_live_endpoint(world)
    sweep()
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    sweep()
    world.sagemaker.vanish(ENDPOINT)
    sweep()
    sweep()
    assert world.sagemaker.endpoints == {}
    assert subjects(world)[2:] == ["Endpoint failed", "Deployment restored", "Endpoint deleted by hand"]


# --- the states of a deployment ---------------------------------------------------------------------


def test_the_table_of_states_is_closed_and_what_is_never_tried_again_ends_there(deployer: ModuleType) -> None:
    follow = {state: following for state, (_, following) in deployer.STATES.items()}
    assert {state for following in follow.values() for state in following} <= set(follow)
    assert {state for state, following in follow.items() if not following} == set(deployer.NOT_AGAIN)
    reached = {"new"}
    for _ in follow:
        reached |= {state for known in reached for state in follow[known]}
    # A person's command makes the last one.
    assert set(follow) - reached == {"withdrawn"}


def test_a_move_that_the_table_does_not_have_is_refused(deployer: ModuleType, world: World, live: str) -> None:
    step = deployer.Step(deployer.settings(), "default", "request", lambda: 300_000)
    record = deployer.read_record(BUCKET, f"models/deployments/{live}.json")
    before = world.final_state()
    with pytest.raises(ValueError, match="no move from 'confirmed' to 'started'"):
        step.move(record, "started")
    assert world.final_state() == before


# --- sweep and pause --------------------------------------------------------------------------------


def test_a_sweep_over_a_healthy_system_makes_three_calls_for_each_model_and_changes_nothing(
    run: Callable[..., str], sweep: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND, model="reviews"))
    world.sagemaker.come_up(f"{ENDPOINT}-reviews")
    run(world.endpoint_event(f"{ENDPOINT}-reviews"))
    before, emails, calls = world.final_state(), len(world.emails()), len(world.around.calls)
    assert sweep() == "2 models swept"
    per_model = ["DescribeEndpoint", "ListObjectsV2", "GetObject"]
    assert world.around.calls[calls:] == ["ListObjectsV2", *per_model, *per_model]
    assert world.final_state() == before
    assert len(world.emails()) == emails


# What a record of the live model under other settings may be.
SIBLINGS = ("waiting", "held", "requested", "withdrawn", "superseded", "rolled back", "removed")


@pytest.mark.parametrize("state", SIBLINGS)
def test_a_sweep_looks_at_each_record_of_a_live_model_as_an_event_does(
    make_world: Callable[[], World], deployer: ModuleType, state: str
) -> None:
    ends = []
    for sent in ({"source": "sweep"}, None):
        world = make_world()
        for arrived in (world.upload(approved_key(FIRST), ARTIFACT), None):
            deployer.lambda_handler(arrived or world.endpoint_event(), Context("live"))
            world.sagemaker.come_up(ENDPOINT)
        live = served(world)
        other = f"{live[:-8]}00000000"
        more = {"config": other, "state": state, "at": "2026-11-01T00:00:00+00:00", "withdrawn": {"to": ""}}
        world.put(f"models/deployments/{other}.json", world.record(f"models/deployments/{live}.json") | more)
        deployer.lambda_handler(sent or world.endpoint_event(), Context("later"))
        ends.append((world.final_state(), world.emails()))
    assert ends[0] == ends[1]


def test_a_sweep_does_what_lost_events_left_undone(
    sweep: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    approve(FIRST)
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    sweep()
    assert subjects(world) == ["Deployment started", "Deployment successful"]


def test_one_models_error_does_not_keep_a_sweep_from_the_others_and_is_raised(
    sweep: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    approve(FIRST, model="books")
    approve(SECOND, model="films")
    world.around.interruption = Interruption("CreateModel", broken_connection)
    with pytest.raises(ClientError):
        sweep()
    assert list(world.sagemaker.endpoints) == [f"{ENDPOINT}-films"]


def test_a_sweep_passes_over_folders_that_are_no_models(sweep: Callable[..., str], world: World) -> None:
    world.put("models/approved/Not A Model/x", b"x")
    calls = len(world.around.calls)
    sweep()
    assert len(world.around.calls) == calls + 1


@pytest.mark.parametrize("by", ["event", "sweep"])
def test_while_paused_nothing_is_done(
    run: Callable[..., str], sweep: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]], by: str
) -> None:
    world.put("control/paused.json", {"schema": 1, "endpoints": []})
    sent = approve(FIRST)
    before = world.final_state()
    assert (run(sent) if by == "event" else sweep()) == "paused"
    assert world.final_state() == before
    assert world.emails() == []


def test_a_deployment_that_fails_again_and_again_is_given_up_and_the_email_quotes_the_last_error(
    run: Callable[..., str],
    world: World,
    approve: Callable[..., dict[str, Any]],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployer, "now", world.now)
    monkeypatch.setattr(deployer, "GIVE_UP_TRIES", 3)
    sent = approve(FIRST)
    for number in range(3):
        # With Lambda's two retries.
        for _ in range(3):
            world.around.interruption = Interruption("CreateEndpoint", broken_connection)
            with pytest.raises(ClientError):
                run(sent, f"event {number}")
        world.wait(seconds=deployer.LEASE_SECONDS)
    for number in range(2):
        assert run(sent, f"later event {number}") == "nothing to deploy"
    assert world.around.calls.count("CreateEndpoint") == 3 * 3
    assert subjects(world) == ["Deployment failed"]
    assert "3 attempts failed. The last error: An error occurred (InternalError)" in world.only_email().body
    assert "There is no endpoint for this model now" in world.only_email().body


def test_a_quota_is_waited_for_without_end_at_every_event_first_and_once_an_hour_later(
    sweep: Callable[..., str],
    world: World,
    approve: Callable[..., dict[str, Any]],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployer, "now", world.now)
    world.sagemaker.endpoint_quota_message = "The account-level service limit is 0"
    approve(FIRST)
    for _ in range(11):
        sweep()
        world.wait(minutes=5)
    assert world.around.calls.count("CreateEndpoint") == deployer.EAGER_TRIES
    for _ in range(2 * deployer.GIVE_UP_TRIES):
        world.wait(hours=1)
        sweep()
    assert world.around.calls.count("CreateEndpoint") == deployer.EAGER_TRIES + 2 * deployer.GIVE_UP_TRIES
    assert subjects(world) == ["Deployment waiting"]
    world.sagemaker.endpoint_quota_message = ""
    world.wait(hours=1)
    sweep()
    assert subjects(world) == ["Deployment waiting", "Deployment started"]


REFUSALS = {
    "a missing image": (
        "CreateModel",
        refusal("CreateModel", "ValidationException", "Requested image x/pytorch:v2 not found."),
        "Set inference_image",
    ),
    "no role to assume": (
        "CreateModel",
        refusal("CreateModel", "ValidationException", "Could not access model data. Could not assume role x"),
        "Run make deploy",
    ),
    "a denied config": (
        "CreateEndpointConfig",
        refusal("CreateEndpointConfig", "AccessDeniedException", "User: x is not authorized to perform: x"),
        "Run make deploy",
    ),
    "no such type in the region": (
        "CreateEndpoint",
        refusal("CreateEndpoint", "ResourceLimitExceeded", "endpoint/ml.x is not available in this region"),
        "Set endpoint_instance_type",
    ),
    "an update that is refused": (
        "UpdateEndpoint",
        refusal("UpdateEndpoint", "ValidationException", "One or more variants are not valid"),
        "Change what AWS names",
    ),
}


@pytest.mark.parametrize(("operation", "error", "advice"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_emailed_once_in_awss_words_retried_hourly_and_ends_with_its_cause(
    sweep: Callable[..., str],
    run: Callable[..., str],
    world: World,
    approve: Callable[..., dict[str, Any]],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    error: ClientError,
    advice: str,
) -> None:
    monkeypatch.setattr(deployer, "now", world.now)
    if operation == "UpdateEndpoint":
        run(approve(FIRST))
        world.sagemaker.come_up(ENDPOINT)
        run()
    before = len(world.emails())
    world.sagemaker.refusals[operation] = error
    assert run(approve(SECOND)) == "waiting"
    hours = 3 * 24
    for _ in range(hours * 4):
        world.wait(minutes=15)
        sweep()
    assert deployer.EAGER_TRIES <= world.around.calls.count(operation) <= deployer.EAGER_TRIES + hours
    assert subjects(world)[before:] == ["Deployment waiting"]
    email = world.emails()[-1]
    assert re.search(rf"Why: .*\. {advice}.*\. AWS said: {error.response['Error']['Message']}\n", email.body)
    assert record_of(world, SECOND)["reason"] in email.body
    del world.sagemaker.refusals[operation]
    world.wait(hours=2)
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert subjects(world)[before:] == ["Deployment waiting", "Deployment started", "Deployment successful"]


@pytest.mark.parametrize("operation", ["CreateEndpoint", "UpdateEndpoint"])
def test_a_new_endpoint_config_that_sagemaker_does_not_see_yet_is_described_and_asked_for_again(
    run: Callable[..., str],
    world: World,
    approve: Callable[..., dict[str, Any]],
    request: pytest.FixtureRequest,
    operation: str,
) -> None:
    if operation == "UpdateEndpoint":
        request.getfixturevalue("live")

    def unseen() -> None:
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:endpoint-config/{list(world.sagemaker.configs)[-1]}"
        raise refusal(operation, "ValidationException", f'Could not find endpoint configuration "{arn}".')

    world.around.interruption = Interruption(operation, unseen)
    before, calls = len(world.emails()), len(world.around.calls)
    assert run(approve(SECOND)) == "started"
    made = [call for call in world.around.calls[calls:] if "Endpoint" in call][1:]
    assert made == ["CreateEndpointConfig", operation, "DescribeEndpointConfig", operation]
    assert subjects(world)[before:] == ["Deployment started"]


@pytest.mark.parametrize("kind", ["serverless", "instance"])
def test_an_endpoint_config_in_use_that_somebody_deleted_is_created_again_and_the_update_goes_on(
    world: World,
    approve: Callable[..., dict[str, Any]],
    run: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setenv("ENDPOINT_TYPE", kind)
    run(approve(FIRST))
    world.sagemaker.come_up(ENDPOINT)
    run()
    live = served(world)
    before = (dict(world.sagemaker.configs), dict(world.sagemaker.models))
    world.sagemaker.configs.clear()
    world.sagemaker.models.clear()
    assert run(approve(SECOND)) == "started"
    assert world.sagemaker.configs[live] == before[0][live]
    assert before[1].items() <= world.sagemaker.models.items()
    world.sagemaker.come_up(ENDPOINT)
    assert run() == "in service"
    assert subjects(world)[2:] == ["Deployment started", "Deployment successful"]


def test_an_endpoint_config_in_use_that_nobody_recorded_is_waited_for(
    world: World, live: str, approve: Callable[..., dict[str, Any]], run: Callable[..., str]
) -> None:
    world.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"] = "made-by-hand"
    world.put(f"models/deployments/{live}.json", world.record(f"models/deployments/{live}.json") | {"state": "removed"})
    assert run(approve(SECOND)) == "waiting"
    assert subjects(world)[2:] == ["Deployment waiting"]
    assert "Somebody deleted that endpoint config. Create it again under the same name" in world.emails()[-1].body


def test_after_any_number_of_refusals_one_attempt_that_fails_is_not_the_last(
    run: Callable[..., str],
    world: World,
    approve: Callable[..., dict[str, Any]],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployer, "now", world.now)
    sent = approve(FIRST)
    world.sagemaker.endpoint_quota_message = "The account-level service limit is 0"
    for number in range(deployer.GIVE_UP_TRIES + 1):
        assert run(sent, f"refused {number}") == "waiting"
        world.wait(hours=2)
    world.around.interruption = Interruption("CreateEndpoint", broken_connection)
    with pytest.raises(ClientError):
        run(sent, "failed")
    world.wait(hours=2)
    for number in range(2):
        assert run(sent, f"refused again {number}") == "waiting"
        world.wait(hours=2)
    assert world.around.calls.count("CreateEndpoint") == deployer.GIVE_UP_TRIES + 1 + 2
    assert subjects(world) == ["Deployment waiting"]


def test_another_number_in_a_quotas_text_is_no_new_cause(
    run: Callable[..., str], sweep: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    approve(FIRST)
    for used in (3, 4):
        world.sagemaker.endpoint_quota_message = f"The limit 'x' is 5, with current utilization of {used}"
        sweep()
    assert subjects(world) == ["Deployment waiting"]
    world.sagemaker.endpoint_quota_message = "The limit 'y' is 5"
    sweep()
    assert subjects(world) == ["Deployment waiting"] * 2


def test_a_model_approved_while_another_was_given_up_is_deployed_in_the_same_invocation(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    outcomes: list[str] = []
    sent = approve(FIRST, artifact=b"no archive")
    world.around.interruption = Interruption("Publish", lambda: outcomes.append(run(approve(SECOND), "second")))
    assert run(sent) == "started"
    assert outcomes == ["under way"]
    assert served(world).startswith(SECOND)


# --- cleaning up ------------------------------------------------------------------------------------


def jobs(count: int) -> list[str]:
    return [f"training-job-202611{day:02}-120000-0123abcd" for day in range(1, count + 1)]


@pytest.fixture
def deploy_all(run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Deploys models one after the other, each successfully."""

    def deploy(*names: str) -> None:
        for job in names:
            run(approve(job))
            world.sagemaker.come_up(ENDPOINT)
            assert run() == "in service"

    return deploy


def jobs_of(things: dict[str, Any]) -> list[str]:
    return sorted(name.rpartition("-")[0] for name in things)


def test_after_a_success_the_last_models_stay_and_older_ones_go(
    world: World, deploy_all: Callable[..., None], sweep: Callable[..., str]
) -> None:
    names = jobs(4)
    deploy_all(*names)
    assert jobs_of(world.sagemaker.models) == names[2:]
    assert jobs_of(world.sagemaker.configs) == names[2:]
    states = [record_of(world, job)["state"] for job in names]
    assert states == ["removed", "removed", "confirmed", "confirmed"]
    assert len(world.keys("models/approved/")) == 4
    before = world.final_state()
    sweep()
    assert world.final_state() == before


def test_models_that_were_taken_back_go_with_the_deployments_of_their_time(
    run: Callable[..., str], world: World, deploy_all: Callable[..., None], approve: Callable[..., dict[str, Any]]
) -> None:
    names = jobs(5)
    deploy_all(names[0])
    run(approve(names[1]))
    world.sagemaker.roll_back(ENDPOINT)
    run()
    deploy_all(*names[2:4])
    assert names[1] not in jobs_of(world.sagemaker.configs)
    assert (record_of(world, names[1])["state"], record_of(world, names[1])["gone"]) == ("rolled back", True)
    deploy_all(names[4])
    assert jobs_of(world.sagemaker.models) == names[3:]


def test_nothing_is_cleaned_up_before_the_deployment_is_confirmed(
    run: Callable[..., str], world: World, deploy_all: Callable[..., None], approve: Callable[..., dict[str, Any]]
) -> None:
    names = jobs(3)
    deploy_all(*names[:2])
    run(approve(names[2]))
    assert jobs_of(world.sagemaker.configs) == names
    world.sagemaker.roll_back(ENDPOINT)
    run()
    assert jobs_of(world.sagemaker.configs) == names


def test_a_model_that_two_configs_share_stays_while_one_of_them_does(
    run: Callable[..., str],
    world: World,
    deploy_all: Callable[..., None],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deploy_all(FIRST)
    for memory in ("2048", "4096"):
        monkeypatch.setenv("SERVERLESS_MEMORY_MB", memory)
        deployer.settings.cache_clear()
        run()
        world.sagemaker.come_up(ENDPOINT)
        run()
    assert len(world.sagemaker.configs) == 2
    assert len(world.sagemaker.models) == 1


def test_what_has_no_tag_of_this_stack_is_never_deleted(world: World, deploy_all: Callable[..., None]) -> None:
    names = jobs(3)
    deploy_all(*names[:2])
    for things in (world.sagemaker.models, world.sagemaker.configs):
        for name in things:
            things[name]["Tags"] = [{"Key": "Stack", "Value": "another-stack"}]
    deploy_all(names[2])
    assert jobs_of(world.sagemaker.models) == jobs_of(world.sagemaker.configs) == names


def test_what_is_gone_already_does_not_disturb_the_cleaning_up(world: World, deploy_all: Callable[..., None]) -> None:
    names = jobs(3)
    deploy_all(*names[:2])
    for things in (world.sagemaker.models, world.sagemaker.configs):
        for name in [name for name in things if name.startswith(names[0])]:
            del things[name]
    deploy_all(names[2])
    assert record_of(world, names[0])["gone"] is True


# --- instances --------------------------------------------------------------------------------------

CANARY = {
    "BlueGreenUpdatePolicy": {
        "TrafficRoutingConfiguration": {
            "Type": "CANARY",
            "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 25},
            "WaitIntervalInSeconds": 300,
        },
        "TerminationWaitInSeconds": 300,
        "MaximumExecutionTimeoutInSeconds": 3600,
    },
    "AutoRollbackConfiguration": {
        "Alarms": [{"AlarmName": f"{ENDPOINT}/5xx"}, {"AlarmName": f"{ENDPOINT}-reviews/5xx"}],
    },
}


@pytest.fixture
def on_instances(deployer: ModuleType, monkeypatch: pytest.MonkeyPatch, world: World) -> Callable[..., None]:
    """Endpoints on instances from now on, with a canary."""

    def switch(count: int = 4) -> None:
        monkeypatch.setenv("ENDPOINT_TYPE", "instance")
        monkeypatch.setenv("ENDPOINT_INSTANCE_COUNT", str(count))
        monkeypatch.setenv("DEPLOYMENT_POLICY", json.dumps(CANARY))
        deployer.settings.cache_clear()

    return switch


def test_every_update_on_instances_carries_the_deployment_settings_and_the_endpoints_own_alarms(
    world: World, on_instances: Callable[..., None], deploy_all: Callable[..., None]
) -> None:
    on_instances()
    deploy_all(*jobs(1))
    for job in jobs(3)[1:]:
        deploy_all(job)
        sent = world.sagemaker.endpoints[ENDPOINT]["LastDeploymentConfig"]
        assert sent["BlueGreenUpdatePolicy"] == CANARY["BlueGreenUpdatePolicy"]
        assert sent["AutoRollbackConfiguration"] == {"Alarms": [{"AlarmName": f"{ENDPOINT}/5xx"}]}


def test_a_rollback_without_a_reason_names_the_alarms_that_may_have_gone_off(
    run: Callable[..., str],
    world: World,
    on_instances: Callable[..., None],
    deploy_all: Callable[..., None],
    approve: Callable[..., dict[str, Any]],
) -> None:
    first, second = jobs(2)
    on_instances()
    deploy_all(first)
    run(approve(second))
    world.sagemaker.roll_back(ENDPOINT, "")
    run()
    email = world.emails()[-1]
    assert email.subject.startswith("Deployment rolled back")
    assert f"an alarm went off while traffic moved to it ({ENDPOINT}/5xx)" in email.body


def test_the_update_of_another_model_carries_that_models_alarms(
    run: Callable[..., str],
    world: World,
    on_instances: Callable[..., None],
    approve: Callable[..., dict[str, Any]],
) -> None:
    endpoint = f"{ENDPOINT}-reviews"
    on_instances()
    for job in jobs(2):
        run(approve(job, model="reviews"))
        world.sagemaker.come_up(endpoint)
        assert run(world.endpoint_event(endpoint)) == "in service"
    sent = world.sagemaker.endpoints[endpoint]["LastDeploymentConfig"]
    assert sent["AutoRollbackConfiguration"] == {"Alarms": [{"AlarmName": f"{endpoint}/5xx"}]}


def test_a_config_that_somebody_made_is_read_before_the_update_away_from_it(
    run: Callable[..., str],
    world: World,
    on_instances: Callable[..., None],
    deploy_all: Callable[..., None],
    approve: Callable[..., dict[str, Any]],
) -> None:
    on_instances()
    deploy_all(FIRST)
    variant = {"VariantName": "AllTraffic", "ModelName": next(iter(world.sagemaker.models))}
    variant |= {"InstanceType": "ml.m5.large", "InitialInstanceCount": 2}
    world.sagemaker.create_endpoint_config(EndpointConfigName="by-hand", ProductionVariants=[variant])
    world.sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName="by-hand")
    world.sagemaker.come_up(ENDPOINT)
    assert run(approve(SECOND)) == "started"
    # Its own count of instances is not the setting's: that counts.
    assert world.sagemaker.endpoints[ENDPOINT]["PendingDeploymentSummary"]["EndpointConfigName"].startswith(SECOND)


def test_a_serverless_update_carries_no_deployment_settings(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    assert run(approve(SECOND)) == "started"
    assert world.sagemaker.endpoints[ENDPOINT]["LastDeploymentConfig"] is None


def test_what_autoscaling_arrived_at_survives_an_update_and_a_changed_count_applies(
    run: Callable[..., str],
    world: World,
    on_instances: Callable[..., None],
    deploy_all: Callable[..., None],
    approve: Callable[..., dict[str, Any]],
) -> None:
    first, second, third = jobs(3)
    on_instances()
    deploy_all(first)
    world.sagemaker.endpoints[ENDPOINT]["scaled_to"] = 8
    deploy_all(second)
    assert world.sagemaker.endpoints[ENDPOINT]["scaled_to"] == 8
    on_instances(count=5)
    run(approve(third))
    assert "scaled_to" not in world.sagemaker.endpoints[ENDPOINT]


def test_a_fleet_that_autoscaling_left_too_small_for_a_canary_is_updated_all_at_once(
    world: World, on_instances: Callable[..., None], deploy_all: Callable[..., None]
) -> None:
    first, second = jobs(2)
    on_instances()
    deploy_all(first)
    world.sagemaker.endpoints[ENDPOINT]["scaled_to"] = 1
    deploy_all(second)
    sent = world.sagemaker.endpoints[ENDPOINT]["LastDeploymentConfig"]
    routing = sent["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert routing == {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 300}
    assert sent["AutoRollbackConfiguration"]["Alarms"]


@pytest.mark.parametrize("policy", [{}, CANARY, {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "x/5xx"}]}}])
@pytest.mark.parametrize("instances", [1, 4])
def test_deployment_settings_are_legal_whatever_the_policy(
    deployer: ModuleType, policy: dict[str, Any], instances: int
) -> None:
    sent = deployer.deployment_policy(policy, ENDPOINT, instances)
    request: dict[str, Any] = {"EndpointName": ENDPOINT, "EndpointConfigName": "c"}
    check_request("UpdateEndpoint", request | ({"DeploymentConfig": sent} if sent else {}))
    assert "reviews" not in json.dumps(sent)


def test_serverless_becomes_instances_in_place(
    run: Callable[..., str], world: World, live: str, on_instances: Callable[..., None]
) -> None:
    on_instances()
    assert run() == "started"
    assert world.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] == "Updating"


def test_instances_become_serverless_by_a_new_endpoint_which_is_announced_once(
    run: Callable[..., str],
    sweep: Callable[..., str],
    world: World,
    on_instances: Callable[..., None],
    deploy_all: Callable[..., None],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_instances()
    deploy_all(FIRST)
    old = served(world)
    monkeypatch.setenv("ENDPOINT_TYPE", "serverless")
    deployer.settings.cache_clear()
    assert run() == "replacing"
    assert world.sagemaker.endpoints == {}
    assert "DOES NOT ANSWER UNTIL THEN" in world.emails()[-1].body
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    sweep()
    assert served(world) != old
    assert "ServerlessConfig" in world.sagemaker.configs[served(world)]["ProductionVariants"][0]
    assert subjects(world)[2:] == ["Deployment started", "Deployment successful"]


def test_a_replacement_that_does_not_come_up_ends_on_the_old_endpoint(
    run: Callable[..., str],
    sweep: Callable[..., str],
    world: World,
    on_instances: Callable[..., None],
    deploy_all: Callable[..., None],
    deployer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_instances()
    deploy_all(FIRST)
    old = served(world)
    monkeypatch.setenv("ENDPOINT_TYPE", "serverless")
    deployer.settings.cache_clear()
    run()
    sweep()
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    sweep()
    sweep()
    world.sagemaker.come_up(ENDPOINT)
    for _ in range(3):
        sweep()
    assert served(world) == old
    assert world.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] == "InService"
    assert subjects(world)[2:] == ["Deployment started", "Deployment failed", "Deployment restored"]


def test_an_instance_endpoint_of_another_stack_is_not_replaced(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    make_foreign_endpoint(world)
    assert run(approve()) == "waiting"
    assert ENDPOINT in world.sagemaker.endpoints


# --- duplicates -------------------------------------------------------------------------------------


def test_a_duplicate_event_changes_nothing(
    run: Callable[..., str], world: World, approve: Callable[..., dict[str, Any]]
) -> None:
    sent = approve()
    run(sent, "first")
    before = world.final_state()
    assert run(sent, "second") == "busy: Creating"
    assert world.final_state() == before
    assert len(world.emails()) == 1
