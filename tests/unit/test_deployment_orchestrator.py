"""The deployment orchestrator: brings an endpoint to the newest approved model, and says how it went."""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

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
def live(world: World, approve: Callable[..., dict[str, Any]], run: Callable[..., str]) -> str:
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
    assert "keeps answering with the model before" in world.emails()[-1].body
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


@pytest.mark.parametrize("status", ["SystemUpdating", "RollingBack", "Deleting", "OutOfService"])
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
    artifact = deployer.Approved("default", FIRST, approved_key(FIRST), "etag", 1)
    names = []
    for env in (environment, environment | {variable: value}):
        model, config = deployer.requests(deployer.Settings.from_env(env), artifact)
        names.append((model["ModelName"], config["EndpointConfigName"]))
    assert (names[0][0] != names[1][0], names[0][1] != names[1][1]) == (new_model, new_config)


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
    requests = deployer.requests(config, deployer.Approved(model, FIRST, approved_key(FIRST, model), etag, 1))
    assert len(requests[0]["ModelName"]) <= 63
    assert len(requests[1]["EndpointConfigName"]) <= 63
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
    assert f"goes on serving {live}" in email.body
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


def test_a_rollback_that_failed_is_told_as_failed(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]]
) -> None:
    run(approve(SECOND))
    world.sagemaker.fail(ENDPOINT, status="UpdateRollbackFailed")
    run(world.endpoint_event(status="UPDATE_ROLLBACK_FAILED"))
    assert subjects(world)[2:] == ["Deployment started", "Deployment failed"]
    assert record_of(world, SECOND)["state"] == "failed"


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


def test_an_endpoint_that_somebody_deleted_after_it_was_live_is_not_recreated(
    run: Callable[..., str], world: World, live: str
) -> None:
    world.sagemaker.vanish(ENDPOINT)
    assert run() == "left as somebody made it"
    assert world.sagemaker.endpoints == {}


def test_an_endpoint_deleted_during_its_deployment_is_told_as_failed(
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
    assert run() == "nothing to deploy"
    assert "was deleted while the model was being deployed" in world.emails()[-1].body


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
    assert "that this stack did not make: set endpoint_name" in email.body


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
    "no gzip": (b"PK\x03\x04 zip", "no gzip-compressed tar"),
    "gzip of something else": (gzip.compress(b"x" * 2000), "no gzip-compressed tar"),
    "no files": (tar_gz([]), "an archive without any file"),
    "cut off": (gzip.compress(b"x" * 100), "cut off"),
    "only a folder": (gzip.compress(tar_block(b"%011o\0" % 0, tarfile.DIRTYPE)), "has no file in its first"),
    "negative size": (gzip.compress(tar_block(b"\xff" * 10 + b"\xfe\x00", tarfile.DIRTYPE)), "negative size"),
}


@pytest.mark.parametrize("name", BAD_ARTIFACTS)
def test_an_artifact_that_cannot_be_served_fails_before_the_endpoint_is_touched(
    run: Callable[..., str], world: World, live: str, approve: Callable[..., dict[str, Any]], name: str
) -> None:
    artifact, reason = BAD_ARTIFACTS[name]
    before = world.sagemaker.state()
    assert run(approve(SECOND, artifact=artifact)) == "failed"
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
    assert run(sent) == "failed"
    assert "deleted or replaced after it was approved" in world.only_email().body


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
