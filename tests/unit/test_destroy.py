"""make destroy: what goes, what stays, in which order, and killed at any call. SageMaker is the strict fake, the bucket
and the rules are moto's, and Terraform is its state alone; tests/e2e/test_lifecycle.py has the real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

import mlops.target
from fake_sagemaker import refusal
from mlops import cli, deploy, destroy
from mlops.records import PAUSED_KEY
from mlops.target import ENDPOINT_LOG_GROUP
from shell import READS, Account, Shell, Watched
from test_deployment_orchestrator import FIRST, SECOND, make_foreign_endpoint
from world import BUCKET, ENDPOINT, REGION, Interruption, Killed, World, killed

RULES = {"uploads": "mlops-uploads", "sweep": "mlops-sweep"}
FUNCTION = "module.lambda_model_evaluator.module.function.aws_lambda_function.this"
SOURCE = "module.s3.aws_s3_object.training_source"
VERSIONING = "module.s3.aws_s3_bucket_versioning.this[0]"
RUNNING, FOREIGN_JOB = "training-job-20261124-000000-00000001", "training-job-20261124-000000-00000002"
LOG = ENDPOINT_LOG_GROUP + ENDPOINT
POLL_SECONDS = destroy.POLL_SECONDS


class Cloud(Account):
    """The fake with the listings of what bills."""

    def _list_training_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        jobs = [job for job in self.jobs.values() if job["TrainingJobStatus"] == request["StatusEquals"]]
        return {"TrainingJobSummaries": jobs}

    def _list_endpoint_configs(self, request: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in self.configs if request.get("NameContains", "") in name]
        arn = f"{self._arn}endpoint-config/"
        return {"EndpointConfigs": [{"EndpointConfigName": name, "EndpointConfigArn": arn + name} for name in names]}

    def _list_models(self, request: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in self.models if request.get("NameContains", "") in name]
        return {"Models": [{"ModelName": name, "ModelArn": f"{self._arn}model/{name}"} for name in names]}


class Terraform:
    """Terraform's state of a stack; applying a plan to destroy takes addresses out of it, and the real bucket away."""

    def __init__(self, world: World, own_bucket: bool = True) -> None:
        self.world = world
        self.resources = {
            FUNCTION: {"function_name": "mlops-model-evaluator"},
            'module.eventbridge.aws_cloudwatch_event_rule.this["sweep"]': {"name": "mlops-sweep"},
            'module.eventbridge.aws_lambda_permission.this["sweep/model_evaluator"]': {},
            SOURCE: {"bucket": BUCKET},
            **({deploy.BUCKET: {"bucket": BUCKET}, VERSIONING: {"bucket": BUCKET}} if own_bucket else {}),
        }
        self.planned: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, target: Any, *arguments: str, quiet: bool = False) -> str:
        command, options = arguments[0], arguments[1:]
        after = self.world.around(f"Show{command}" if command == "show" else f"Terraform {command}")
        if command == "show":
            items = [
                {"address": address, "mode": "managed", "type": address.split(".")[-2], "values": values}
                for address, values in self.resources.items()
            ]
            return json.dumps({"values": {"root_module": {"child_modules": [{"resources": items}]}}})
        if command == "plan":
            assert "-destroy" in options
            self.planned = [option.removeprefix("-target=") for option in options if option.startswith("-target=")]
        elif command == "apply":
            self.meanwhile()
            for address in self.planned or list(self.resources):
                del self.resources[address]
                if address == deploy.BUCKET:
                    self.world.s3.delete_bucket(Bucket=BUCKET)
        else:
            assert (command, options[0]) == ("state", "rm")
            del self.resources[options[1]]
        after()
        return ""


@pytest.fixture(scope="session")
def clients_for_destroy() -> dict[str, Any]:
    with mock_aws():
        return {name: boto3.client(name, region_name=REGION) for name in ("sqs", "sts", "events", "logs")}


@pytest.fixture
def make_end(
    make_world: Callable[[], World],
    deployer: ModuleType,
    clients_for_destroy: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Shell]:
    """Gives, at each call, a fresh stack that is at work: live models, a running job, things of others beside it."""
    monkeypatch.setattr(destroy, "POLL_SECONDS", 0)

    def fresh(own_bucket: bool = True, live: tuple[str, ...] = (FIRST, SECOND)) -> Shell:
        world = make_world()
        shell = Shell(world, deployer, clients_for_destroy["sqs"], clients_for_destroy["sts"])
        shell.sagemaker = world.sagemaker = Cloud(REGION, world.sagemaker._arn.split(":")[4], world.around)
        events, logs = clients_for_destroy["events"], clients_for_destroy["logs"]
        services = {"sagemaker": shell.sagemaker, "s3": world.client("s3"), "sts": clients_for_destroy["sts"]}
        services |= {"events": Watched(events, world.around), "logs": SimpleNamespace(
            get_paginator=logs.get_paginator, delete_log_group=Watched(logs, world.around).delete_log_group
        )}  # fmt: skip
        shell.target.client = services.__getitem__
        shell.target.environment = {}
        shell.target.outputs |= {"bucket_name": BUCKET, "endpoint_name": ENDPOINT, "rule_names": RULES}
        for name in RULES.values():
            events.put_rule(Name=name, ScheduleExpression="rate(1 day)")
        logs.create_log_group(logGroupName=LOG)
        logs.create_log_group(logGroupName=f"{LOG}-of-others")
        shell.go_live(*live)
        shell.sagemaker.run_job(RUNNING)
        shell.sagemaker.run_job(FOREIGN_JOB, stack="another")
        make_foreign_endpoint(world, f"{ENDPOINT}-theirs")
        world.put("data/train/odd \t é.csv", b"text,label\n")
        world.put("data/train/twice.csv", b"1")
        world.put("data/train/twice.csv", b"2")
        world.s3.delete_object(Bucket=BUCKET, Key="data/train/twice.csv")
        shell.terraform = Terraform(world, own_bucket)  # type: ignore[attr-defined]
        monkeypatch.setattr(destroy, "run_terraform", shell.terraform)  # type: ignore[attr-defined]
        monkeypatch.setattr(mlops.target, "connect", lambda _: shell.target)
        world.around.calls.clear()
        return shell

    return fresh


def terraform_of(shell: Shell) -> Terraform:
    fake: Terraform = shell.terraform  # type: ignore[attr-defined]
    return fake


def run(*arguments: str) -> int:
    return cli.main(["destroy", "--confirm", BUCKET, *arguments])


def bucket_exists(shell: Shell) -> bool:
    return BUCKET in [bucket["Name"] for bucket in shell.world.s3.list_buckets()["Buckets"]]


def outcome(shell: Shell) -> dict[str, Any]:
    """All that lasts after a destroy."""
    state = shell.world.final_state() if bucket_exists(shell) else {"sagemaker": shell.sagemaker.state()}
    return state | {"terraform": sorted(terraform_of(shell).resources)}


def others(shell: Shell) -> tuple[list[str], list[str]]:
    jobs = [name for name, job in shell.sagemaker.jobs.items() if job["TrainingJobStatus"] == "InProgress"]
    return list(shell.sagemaker.endpoints), jobs


def test_what_bills_goes_and_the_bucket_stays(
    make_end: Callable[..., Shell], capsys: pytest.CaptureFixture[str]
) -> None:
    shell = make_end()
    data = set(shell.world.keys())
    assert run() == 0
    assert others(shell) == ([f"{ENDPOINT}-theirs"], [FOREIGN_JOB])
    assert [name for name in shell.sagemaker.models if name.startswith((FIRST, SECOND))] == []
    assert [name for name in shell.sagemaker.configs if name.startswith((FIRST, SECOND))] == []
    assert sorted(terraform_of(shell).resources) == [deploy.BUCKET, VERSIONING]
    assert set(shell.world.keys()) == data | {PAUSED_KEY}
    said = capsys.readouterr().out
    going, _, staying = said.partition("It keeps the bucket")
    for name in (ENDPOINT, FIRST, SECOND, RUNNING, "mlops-model-evaluator", "mlops-sweep"):
        assert name in going
    assert staying.startswith(f" {BUCKET}: ")
    assert FOREIGN_JOB not in said
    assert "theirs" not in said


def test_an_endpoint_that_was_made_under_another_endpoint_name_goes_too(make_end: Callable[..., Shell]) -> None:
    shell = make_end()
    shell.target.outputs["endpoint_name"] = "renamed"
    assert run() == 0
    assert others(shell)[0] == [f"{ENDPOINT}-theirs"]


def test_rules_stop_before_anything_is_deleted(make_end: Callable[..., Shell]) -> None:
    shell = make_end()
    run()
    writes = [call for call in shell.world.around.calls if not call.startswith((*READS, "Show"))]
    assert writes[:3] == ["DisableRule", "DisableRule", "PutObject"]


def test_what_was_live_is_remembered_for_resume(make_end: Callable[..., Shell]) -> None:
    shell = make_end()
    live = shell.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"]
    run()
    (remembered,) = shell.world.record(PAUSED_KEY)["endpoints"]
    assert (remembered["name"], remembered["config"]) == (ENDPOINT, live)


def test_with_the_data_nothing_is_left_but_what_is_others(
    make_end: Callable[..., Shell], clients_for_destroy: dict[str, Any]
) -> None:
    shell = make_end()
    assert run("--data", "delete") == 0
    assert not bucket_exists(shell)
    assert terraform_of(shell).resources == {}
    assert others(shell) == ([f"{ENDPOINT}-theirs"], [FOREIGN_JOB])
    groups = clients_for_destroy["logs"].describe_log_groups()["logGroups"]
    assert [group["logGroupName"] for group in groups] == [f"{LOG}-of-others"]


@pytest.mark.parametrize("data", ["", "delete"])
def test_killed_at_any_call_and_run_again_ends_as_if_nothing_had_happened(
    make_end: Callable[..., Shell], data: str
) -> None:
    shell = make_end(live=(FIRST,))
    assert run("--data", data) == 0
    calls = list(shell.world.around.calls)
    expected = outcome(shell)
    for call, operation in enumerate(calls):
        for after_the_effect in (False,) if operation.startswith((*READS, "Show")) else (False, True):
            shell = make_end(live=(FIRST,))
            shell.world.around.interruption = Interruption(call, killed, after_the_effect)
            with pytest.raises(Killed):
                run("--data", data)
            assert run("--data", data) == 0, (call, operation)
            assert outcome(shell) == expected, (call, operation, after_the_effect)


def test_destroy_again_has_nothing_to_do_and_asks_nothing(
    make_end: Callable[..., Shell], capsys: pytest.CaptureFixture[str]
) -> None:
    shell = make_end()
    run()
    before = outcome(shell)
    capsys.readouterr()
    assert cli.main(["destroy"]) == 0
    assert "nothing is deployed from here: there is nothing to destroy" in capsys.readouterr().out
    assert outcome(shell) == before
    assert run("--data", "delete") == 0
    assert not bucket_exists(shell)
    capsys.readouterr()
    assert cli.main(["destroy", "--data", "delete"]) == 0
    assert "there is nothing to destroy" in capsys.readouterr().out


def test_an_endpoint_that_is_being_changed_is_waited_for(
    make_end: Callable[..., Shell], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = make_end()
    shell.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] = "Updating"

    def sleep(_: float) -> None:
        if ENDPOINT in shell.sagemaker.endpoints:
            shell.sagemaker.come_up(ENDPOINT)

    monkeypatch.setattr(destroy.time, "sleep", sleep)
    assert run() == 0
    assert ENDPOINT not in shell.sagemaker.endpoints


def test_one_that_does_not_settle_is_named_and_terraform_is_not_begun(
    make_end: Callable[..., Shell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = make_end()
    shell.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] = "Updating"
    monkeypatch.setattr(destroy, "WAIT_SECONDS", 0)
    assert run() == 1
    assert f"{ENDPOINT}: still there" in capsys.readouterr().err
    assert FUNCTION in terraform_of(shell).resources


def test_what_a_function_had_just_begun_ends_too(make_end: Callable[..., Shell]) -> None:
    shell = make_end()
    late = "training-job-20261124-000001-00000009"
    terraform_of(shell).meanwhile = lambda: shell.sagemaker.run_job(late)
    assert run() == 0
    assert shell.sagemaker.jobs[late]["TrainingJobStatus"] == "Stopped"


def test_an_existing_bucket_is_never_emptied(
    make_end: Callable[..., Shell], capsys: pytest.CaptureFixture[str]
) -> None:
    shell = make_end(own_bucket=False)
    before = outcome(shell)
    assert run("--data", "delete") == 2
    assert "was not made by this stack (create_bucket = false)" in capsys.readouterr().err
    assert outcome(shell) == before
    assert run() == 0
    assert terraform_of(shell).resources == {}
    assert bucket_exists(shell)


@pytest.mark.parametrize("shared", [True, False])
def test_an_existing_buckets_notifications_stay_when_others_have_joined_them(
    make_end: Callable[..., Shell], shared: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = make_end(own_bucket=False)
    terraform_of(shell).resources[deploy.NOTIFICATION] = {"bucket": BUCKET}
    others = {"QueueConfigurations": [{}]} if shared else {}
    monkeypatch.setattr(deploy, "other_notifications", lambda s3, bucket: others)
    assert run() == 0
    assert terraform_of(shell).resources == {}
    assert ("Terraform state" in shell.world.around.calls) == shared
    assert ("left      the notifications" in capsys.readouterr().out) == shared


def test_a_version_that_s3_does_not_delete_is_named(
    make_end: Callable[..., Shell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = make_end()
    locked = {
        "Errors": [{"Key": "data/train/a.csv", "Message": "Access Denied because object protected by object lock"}]
    }
    s3 = shell.target.client("s3")
    client = SimpleNamespace(**{name: getattr(s3, name) for name in dir(s3) if not name.startswith("_")})
    client.delete_objects = lambda **_: locked
    services = shell.target.client
    shell.target.client = lambda name: client if name == "s3" else services(name)
    assert run("--data", "delete") == 1
    assert "S3 does not delete data/train/a.csv: Access Denied because object protected" in capsys.readouterr().err
    assert bucket_exists(shell)


def test_a_state_without_outputs_is_destroyed_to_its_end(
    make_end: Callable[..., Shell], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = make_end()
    assert run() == 0

    def connect(_: str) -> Any:
        raise mlops.target.NothingDeployed("nothing is deployed from here")

    monkeypatch.setattr(mlops.target, "connect", connect)
    monkeypatch.setattr(
        destroy.boto3, "Session", lambda **_: SimpleNamespace(client=lambda name, **_: shell.target.client(name))
    )
    assert run("--data", "delete") == 0
    assert not bucket_exists(shell)
    assert cli.main(["destroy"]) == 0


def test_what_aws_refuses_is_one_line_and_exit_status_1(
    make_end: Callable[..., Shell], capsys: pytest.CaptureFixture[str]
) -> None:
    def denied() -> None:
        raise refusal("DisableRule", "AccessDeniedException", "You are not authorized")

    shell = make_end()
    shell.world.around.interruption = Interruption("DisableRule", denied)
    assert run() == 1
    assert "You are not authorized" in capsys.readouterr().err


@pytest.mark.parametrize("foreign", [50, 300])
def test_the_endpoints_of_others_are_looked_at_once_however_long_ours_take(
    make_end: Callable[..., Shell], monkeypatch: pytest.MonkeyPatch, foreign: int
) -> None:
    shell = make_end()
    for number in range(foreign):
        name = f"theirs-{number}"
        tags = [{"Key": "Stack", "Value": "another-stack"}]
        shell.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="their-config", Tags=tags)
        shell.sagemaker.come_up(name)
    shell.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] = "Updating"
    rounds = iter(range(20))

    def sleep(_: float) -> None:
        if next(rounds, None) == 19:
            shell.sagemaker.come_up(ENDPOINT)

    monkeypatch.setattr(destroy.time, "sleep", sleep)
    calls = shell.world.around.calls
    calls.clear()
    assert run() == 0
    assert ENDPOINT not in shell.sagemaker.endpoints
    # 20 rounds with a look at our own endpoint and job in each, and then at their configs and models.
    assert foreign < calls.count("ListTags") <= foreign + 60
    assert calls.count("DescribeEndpoint") <= 25
    assert calls.count("ListEndpoints") <= 25


def test_an_endpoint_of_ours_under_the_name_of_one_of_others_that_has_gone_is_found(
    make_end: Callable[..., Shell],
) -> None:
    shell = make_end()
    name = f"{ENDPOINT}-theirs"

    def take_its_name() -> None:
        shell.sagemaker.endpoints[name] |= {"Tags": [{"Key": "Stack", "Value": BUCKET}], "CreationTime": "later"}

    terraform_of(shell).meanwhile = take_its_name
    assert run() == 0
    assert others(shell)[0] == []


@pytest.mark.parametrize(("settings", "seconds"), [({}, 15), ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, 2)])
def test_aws_is_asked_less_often_than_the_local_one(
    make_end: Callable[..., Shell], monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], seconds: int
) -> None:
    shell = make_end()
    slept: list[float] = []

    def sleep(time: float) -> None:
        slept.append(time)
        if ENDPOINT in shell.sagemaker.endpoints:
            shell.sagemaker.come_up(ENDPOINT)

    monkeypatch.setattr(destroy, "POLL_SECONDS", POLL_SECONDS)
    monkeypatch.setattr(destroy.time, "sleep", sleep)
    shell.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] = "Updating"
    shell.target.environment = settings
    assert run() == 0
    assert slept == [seconds] * 2


def test_aws_throttling_is_waited_out_and_the_local_aws_is_not_waited_for() -> None:
    session = boto3.Session(region_name=REGION)
    on_aws = mlops.target.Target("AWS", session, {}, {}).client("sagemaker").meta.config
    assert on_aws.retries == {"mode": "adaptive", "total_max_attempts": 10}
    url = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    local = mlops.target.Target("the local AWS", session, url, {}).client("sagemaker").meta.config
    assert local.retries["mode"] == "legacy"
