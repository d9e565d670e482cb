"""mlops doctor: a healthy stack, and one line for each planted fault. Most services are moto's; what moto lacks
(images and quotas of AWS's accounts, a bucket's EventBridge setting, unconfirmed emails) are small stand-ins."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import NoCredentialsError
from moto import mock_aws
from moto.core.models import DEFAULT_ACCOUNT_ID

import mlops.target
import package
import terraform
from fake_sagemaker import refusal
from mlops import account, cli, deploy, doctor
from mlops.account import SERVERLESS_CONCURRENCY, Line, Settings
from mlops.deploy import Plan
from mlops.target import Target

REGION, BUCKET = "eu-west-1", "team-models"
EMAILS = ("ml@example.com", "ops@example.com")
TRAINING = "ml.m5.xlarge for training job usage"
ENDPOINT = "ml.m5.large for endpoint usage"
SETTINGS = Settings(
    image_accounts={"eu-south-1": "692866216735"},
    training_image=None,
    default_training_image="pytorch:2.13.0-cpu",
    inference_image=None,
    default_inference_image="huggingface-pytorch-inference:2.6.0",
    training_instance_type="ml.m5.xlarge",
    training_instance_count=1,
    training_use_spot=False,
    max_concurrent_training_jobs=2,
    endpoint_type="serverless",
    endpoint_instance_type="ml.m5.large",
    endpoint_instance_count=1,
    serverless_max_concurrency=5,
    base_model="distilbert-base-uncased",
    base_model_revision=None,
    auto_base_models=("org/english@0a1b", "org/multilingual@2c3d"),
    hub_token_secret_arn=None,
    notification_emails=EMAILS,
)
FUNCTIONS = {f"{name}_name": f"mlops-{name.replace('_', '-')}-{BUCKET}" for name in package.FUNCTIONS}


def pages(**answer: Any) -> Any:
    return SimpleNamespace(paginate=lambda **_: iter([answer]))


class Ecr:
    """AWS's registries: the images that are there, as account/repository:tag."""

    def __init__(self) -> None:
        self.images = {
            f"{account.IMAGE_ACCOUNT}/{name}"
            for name in (SETTINGS.default_training_image, SETTINGS.default_inference_image)
        }

    def batch_get_image(
        self, registryId: str, repositoryName: str, imageIds: list[dict[str, str]], acceptedMediaTypes: list[str]
    ) -> dict[str, Any]:
        (image,) = imageIds
        name = f"{registryId}/{repositoryName}:{image['imageTag']}"
        if name in self.images:
            return {"images": [{"imageManifest": "{}"}], "failures": []}
        if not any(known.startswith(f"{registryId}/{repositoryName}:") for known in self.images):
            raise refusal("BatchGetImage", "RepositoryNotFoundException", "The repository does not exist")
        return {"images": [], "failures": [{"imageId": image, "failureCode": "ImageNotFound"}]}


class Quotas:
    """Service Quotas: what the account has, and AWS's defaults."""

    def __init__(self) -> None:
        self.applied = {TRAINING: 15.0, SERVERLESS_CONCURRENCY: 10.0}
        self.defaults = {TRAINING: 0.0, ENDPOINT: 2.0}

    def get_paginator(self, operation: str) -> Any:
        values = self.applied if operation == "list_service_quotas" else self.defaults
        items = [
            {"QuotaName": name, "QuotaCode": f"L-{number:08X}", "Value": value}
            for number, (name, value) in enumerate(values.items())
        ]
        return pages(Quotas=items)


class Sns:
    """A topic whose subscriptions a test sets: {address: ARN}."""

    def __init__(self) -> None:
        self.subscriptions = {address: f"arn:aws:sns:{REGION}:1:topic:{address}" for address in EMAILS}

    def get_paginator(self, operation: str) -> Any:
        assert operation == "list_subscriptions_by_topic"
        items = [{"Endpoint": address, "SubscriptionArn": arn} for address, arn in self.subscriptions.items()]
        return pages(Subscriptions=items)


class S3:
    """moto's, which takes a notification to EventBridge but does not give it back."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.notifications: dict[str, Any] = {"EventBridgeConfiguration": {}}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_bucket_notification_configuration(self, *, Bucket: str) -> dict[str, Any]:
        return {"ResponseMetadata": {}, **self.notifications}


class Clinic:
    """A deployed stack in a healthy account, and what a test may break of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        moto = {name: boto3.client(name, region_name=REGION) for name in ("sts", "sqs", "lambda", "cloudwatch", "iam")}
        self.ecr, self.quotas, self.sns = Ecr(), Quotas(), Sns()
        self.s3 = S3(boto3.client("s3", region_name=REGION))
        self.clients: dict[str, Any] = {
            **moto, "ecr": self.ecr, "service-quotas": self.quotas, "sns": self.sns, "s3": self.s3
        }  # fmt: skip
        self.topic = f"arn:aws:sns:{REGION}:{DEFAULT_ACCOUNT_ID}:topic"
        self.queue = moto["sqs"].create_queue(QueueName=f"mlops-failures-{BUCKET}")["QueueUrl"]
        self.create_bucket(BUCKET)
        for name in package.FUNCTIONS:
            self.create_function(name)
        self.create_alarm(f"{FUNCTIONS['model_evaluator_name']}-errors")
        outputs = {"bucket_name": BUCKET, "endpoint_name": "mlops-endpoint", "region_name": REGION}
        outputs |= {"failure_queue_url": self.queue, "topic_arn": self.topic, **FUNCTIONS}
        session: Any = SimpleNamespace(region_name=REGION, client=lambda name, **_: self.clients[name])
        self.target: Target | None = Target("AWS", session, {}, outputs, self.clients)
        managed = frozenset({deploy.BUCKET, deploy.NOTIFICATION, "module.lambda_deployment_orchestrator.x"})
        names = {"bucket_name": BUCKET, "endpoint_name": "mlops-endpoint"}
        self.plan = Plan(BUCKET, True, False, managed, "mlops-endpoint", None, names, SETTINGS)
        monkeypatch.setattr(doctor, "check_tools", lambda: iter([Line("ok", "Python", "3.12.3")]))
        monkeypatch.setattr(mlops.target, "connect", self._connect)
        monkeypatch.setattr(deploy, "read_plan", lambda *_: self.plan)
        monkeypatch.setattr(doctor.boto3, "Session", lambda **_: session)
        monkeypatch.setattr(account, "check_hub", lambda *_: Line("ok", "base model", "distilbert-base-uncased"))

    def _connect(self, where: str) -> Target:
        if self.target is None:
            raise mlops.target.NothingDeployed("nothing is deployed from here")
        return self.target

    def create_bucket(self, name: str) -> None:
        self.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": "Stack", "Value": name}]})

    def create_function(self, name: str, code: bytes | None = None) -> None:
        role = f"role-{name}"
        self.clients["iam"].create_role(RoleName=role, AssumeRolePolicyDocument="{}")
        handler = package.read_sources(package.ROOT / "lambda" / name, ["handler.py"])
        self.clients["lambda"].create_function(
            FunctionName=FUNCTIONS[f"{name}_name"],
            Role=f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/{role}",
            Runtime="python3.13",
            Handler="handler.lambda_handler",
            Code={"ZipFile": code or package.zip_bytes(handler)},
        )

    def create_alarm(self, name: str, topic: str = "", state: str = "OK") -> None:
        self.clients["cloudwatch"].put_metric_alarm(
            AlarmName=name,
            AlarmDescription=f"{name} failed.",
            AlarmActions=[topic or self.topic],
            MetricName="Errors",
            Namespace="AWS/Lambda",
            EvaluationPeriods=1,
            ComparisonOperator="GreaterThanThreshold",
            Period=60,
            Statistic="Sum",
            Threshold=0,
        )
        self.clients["cloudwatch"].set_alarm_state(AlarmName=name, StateValue=state, StateReason="a test")

    def before_the_deployment(self, bucket: str | None = "not-there-yet") -> None:
        self.target = None
        self.plan = replace(self.plan, bucket=bucket, managed=frozenset(), outputs={})

    def set(self, **changed: Any) -> None:
        self.plan = replace(self.plan, settings=replace(SETTINGS, **changed))

    def refuse(self, service: str, method: str, code: str = "AccessDeniedException") -> None:
        """Have a service refuse a call; its operation is in CamelCase."""
        operation = "".join(part.capitalize() for part in method.split("_")).replace("Aws", "AWS")

        def refused(*_: Any, **__: Any) -> Any:
            raise refusal(operation, code, "You are not authorized", 403)

        known = self.clients[service]

        class Refusing:
            def __getattr__(self, name: str) -> Any:
                if name == method:
                    return refused
                if name == "get_paginator":
                    return lambda listed: SimpleNamespace(
                        paginate=refused if listed == method else known.get_paginator(listed).paginate
                    )
                return getattr(known, name)

        self.clients[service] = Refusing()


@pytest.fixture
def clinic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clinic]:
    with mock_aws():
        monkeypatch.setenv("AWS_REGION", REGION)
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield Clinic(monkeypatch)


def lines(capsys: pytest.CaptureFixture[str], status: int, level: str) -> list[str]:
    """The lines of one level of a doctor that ends with a status."""
    capsys.readouterr()
    assert cli.main(["doctor"]) == status
    said = capsys.readouterr()
    assert said.err == ""
    return [line for line in said.out.splitlines() if line.startswith(f"{level} ")]


def findings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The one bad line or several; there is at least one."""
    found = lines(capsys, 1, "FAIL")
    assert found
    return found


# --- healthy ------------------------------------------------------------------------------------------


def test_a_healthy_stack_has_only_good_lines(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    good = lines(capsys, 0, "ok")
    said = "\n".join(re.sub(r" +", " ", line) for line in good)
    for text in (
        "ok Python 3.12.3",
        f"ok account {DEFAULT_ACCOUNT_ID} in {REGION}",
        f"ok bucket {BUCKET}, this stack's",
        "ok S3 events are sent to EventBridge",
        f"ok image training: {account.IMAGE_ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/pytorch:2.13.0-cpu",
        f"ok image serving: {account.IMAGE_ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/huggingface-pytorch-inference:2.6.0",
        f"ok quota {TRAINING}: 15",
        f"ok quota {SERVERLESS_CONCURRENCY}: 10",
        "ok base model distilbert-base-uncased",
        f"ok function mlops-model-evaluator-{BUCKET}: this checkout's",
        "ok emails ml@example.com is confirmed",
        "ok emails ops@example.com is confirmed",
        "ok failed events none",
        "ok alarms 1, none is on",
    ):
        assert text in said
    assert lines(capsys, 0, "warn") == []


def test_before_a_deployment_it_says_what_can_be_known(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.before_the_deployment()
    said = "\n".join(lines(capsys, 0, "ok"))
    assert "the name not-there-yet is free: make deploy creates it" in said
    assert "not deployed yet: make deploy" in said
    assert "emails" not in said
    assert "quota" in said


def test_the_default_bucket_name_is_looked_for_too(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.before_the_deployment(bucket=None)
    said = "\n".join(lines(capsys, 0, "ok"))
    assert f"the name atml-models-{DEFAULT_ACCOUNT_ID}-{REGION} is free" in said


def test_on_the_local_aws_there_are_no_images_and_no_quotas(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clinic.target is not None
    clinic.target = replace(clinic.target, environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    clinic.refuse("ecr", "batch_get_image")
    good = lines(capsys, 0, "ok")
    assert len([line for line in good if line.endswith("not on the local AWS")]) == 2


# --- one fault each -----------------------------------------------------------------------------------


def test_every_instance_of_a_job_counts_against_the_quota_of_spot_or_of_other_instances() -> None:
    def training(**changed: Any) -> tuple[str, int, int]:
        need = account.needs(replace(SETTINGS, **changed))[0]
        return need.quota, need.least, need.better

    assert training() == (TRAINING, 1, 2)
    assert training(training_instance_count=4) == (TRAINING, 4, 8)
    assert training(training_use_spot=True) == ("ml.m5.xlarge for spot training job usage", 1, 2)


def test_a_quota_of_0_is_named_with_the_request(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.quotas.applied[TRAINING] = 0.0
    (line,) = findings(capsys)
    assert f"{TRAINING} is 0, and 1 needed: request 2" in line
    assert "servicequotas/home/services/sagemaker/quotas/L-00000000?region=eu-west-1" in line
    assert '"Training and serving text classifiers with an event-driven pipeline"' in line


@pytest.mark.parametrize(
    ("value", "level", "text"),
    [
        (4.0, "FAIL", "is 4, and 5 needed: request 10"),
        (5.0, "warn", "is 5: it takes one model, and an update or a second one may wait; request 10"),
    ],
)
def test_a_quota_of_serverless_concurrency_that_is_small_is_named(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], value: float, level: str, text: str
) -> None:
    clinic.quotas.applied[SERVERLESS_CONCURRENCY] = value
    (line,) = lines(capsys, 1 if level == "FAIL" else 0, level)
    assert f"{SERVERLESS_CONCURRENCY} {text}" in line


def test_endpoints_on_instances_need_twice_their_number_to_be_updated(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic.set(endpoint_type="instance")
    assert lines(capsys, 0, "warn") == []
    clinic.set(endpoint_type="instance", endpoint_instance_count=2)
    (line,) = lines(capsys, 0, "warn")
    assert f"{ENDPOINT} is 2: a new model cannot replace a live one; request 4" in line


def test_a_quota_that_there_is_not_is_a_type_that_the_region_may_lack(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic.set(training_instance_type="ml.p9.large")
    (line,) = lines(capsys, 0, "warn")
    assert "'ml.p9.large for training job usage': is this instance type in eu-west-1?" in line


@pytest.mark.parametrize("repository_too", [False, True])
def test_a_missing_image_is_named(clinic: Clinic, capsys: pytest.CaptureFixture[str], repository_too: bool) -> None:
    clinic.ecr.images.discard(f"{account.IMAGE_ACCOUNT}/pytorch:2.13.0-cpu")
    if not repository_too:
        clinic.ecr.images.add(f"{account.IMAGE_ACCOUNT}/pytorch:another")
    (line,) = findings(capsys)
    assert "pytorch:2.13.0-cpu does not exist: set training_image, or choose another region" in line


def test_an_image_of_ones_own_is_looked_for_where_it_is(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    own = f"111122223333.dkr.ecr.{REGION}.amazonaws.com/team/serving:1"
    clinic.set(inference_image=own)
    assert f"serving: {own} does not exist: set inference_image" in findings(capsys)[0]
    clinic.ecr.images.add("111122223333/team/serving:1")
    assert lines(capsys, 0, "FAIL") == []
    clinic.set(inference_image="docker.io/team/serving:1")
    assert "is in no ECR repository" in lines(capsys, 0, "warn")[0]


def test_an_image_is_in_the_account_of_its_region(clinic: Clinic) -> None:
    session: Any = SimpleNamespace(region_name="eu-south-1")
    assert account.default_image(session, SETTINGS, "a:1") == "692866216735.dkr.ecr.eu-south-1.amazonaws.com/a:1"


def test_the_account_of_the_other_regions_is_terraforms() -> None:
    text = (terraform.ROOT / "terraform" / "images.tf").read_text()
    assert re.findall(r'lookup\(local\.image_accounts, local\.region, "([0-9]+)"\)', text) == [account.IMAGE_ACCOUNT]


def test_an_address_that_has_not_confirmed_is_named(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.sns.subscriptions["ml@example.com"] = "PendingConfirmation"
    (line,) = findings(capsys)
    assert "ml@example.com is not confirmed: click the link in AWS's email" in line


@pytest.mark.parametrize("deleted", [True, False])
def test_an_address_that_is_no_longer_subscribed_is_named(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], deleted: bool
) -> None:
    if deleted:
        clinic.sns.subscriptions["ops@example.com"] = "Deleted"
    else:
        del clinic.sns.subscriptions["ops@example.com"]
    (line,) = findings(capsys)
    assert "ops@example.com is not subscribed, or no longer" in line
    assert "make deploy subscribes it again" in line


def test_a_stack_that_emails_nobody_is_warned_of(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.set(notification_emails=())
    (line,) = lines(capsys, 0, "warn")
    assert "nobody gets any: set notification_emails" in line


def test_a_taken_bucket_name_is_named(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.before_the_deployment()
    clinic.refuse("s3", "head_bucket", "403")
    (line,) = findings(capsys)
    assert "the bucket name not-there-yet is taken by another account: choose another bucket_name" in line


def test_a_bucket_that_the_state_does_not_know_is_named(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.before_the_deployment(bucket=BUCKET)
    assert f"the bucket {BUCKET} exists already" in "\n".join(lines(capsys, 1, "FAIL"))


def test_a_bucket_that_is_gone_is_named(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.s3.delete_bucket(Bucket=BUCKET)
    assert f"{BUCKET} is gone, and its data with it" in findings(capsys)[0]


def test_a_bucket_without_the_stacks_tag_is_warned_of(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.s3.delete_bucket_tagging(Bucket=BUCKET)
    assert f"{BUCKET} has not this stack's tag (Stack={BUCKET})" in lines(capsys, 0, "warn")[0]


def test_s3_events_that_are_off_are_named_with_the_command(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.s3.notifications = {}
    (line,) = findings(capsys)
    assert "are not sent to EventBridge, so no upload starts a training" in line
    assert "aws s3api put-bucket-notification-configuration" in line


def test_failed_events_are_named(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.clients["sqs"].send_message(QueueUrl=clinic.queue, MessageBody="{}")
    (line,) = findings(capsys)
    assert "failed events 1 wait: make logs shows the errors; once the cause is fixed, make redrive" in line


def test_an_alarm_is_named_and_those_of_others_are_not(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    others = f"{clinic.topic}-of-others"
    clinic.create_alarm("mlops-endpoint-of-others/latency", topic=others, state="ALARM")
    assert lines(capsys, 0, "FAIL") == []
    clinic.create_alarm("mlops-endpoint-tickets/latency", state="ALARM")
    clinic.create_alarm(f"mlops-failures-{BUCKET}-not-empty", state="ALARM")
    found = findings(capsys)
    assert len(found) == 2
    assert "mlops-endpoint-tickets/latency: mlops-endpoint-tickets/latency failed." in "\n".join(found)


def test_alarms_that_are_gone_are_named(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.clients["cloudwatch"].delete_alarms(AlarmNames=[f"{FUNCTIONS['model_evaluator_name']}-errors"])
    assert "there are none: make deploy creates them" in findings(capsys)[0]


def test_a_function_of_another_version_is_warned_of(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    code = package.zip_bytes({"handler.py": b"old = True\n"})
    clinic.clients["lambda"].update_function_code(FunctionName=FUNCTIONS["model_evaluator_name"], ZipFile=code)
    (line,) = lines(capsys, 0, "warn")
    assert "model_evaluator: not this checkout's code: make deploy updates it" in line


def test_a_function_that_is_gone_is_named(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.clients["lambda"].delete_function(FunctionName=FUNCTIONS["training_orchestrator_name"])
    (line,) = findings(capsys)
    assert f"mlops-training-orchestrator-{BUCKET} is gone: make deploy creates it" in line


def test_another_region_in_the_shell_is_warned_of(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    (line,) = lines(capsys, 0, "warn")
    assert "your AWS settings say us-east-1, the stack is in eu-west-1: AWS_REGION=eu-west-1" in line


def test_without_credentials_nothing_else_is_asked(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    def nobody() -> None:
        raise NoCredentialsError

    clinic.clients["sts"] = SimpleNamespace(get_caller_identity=nobody)
    assert cli.main(["doctor"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "FAIL  credentials   there are none: log in (aws sso login, aws configure)" in last


def test_settings_that_terraform_refuses_are_named_and_the_stack_is_still_looked_at(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> Plan:
        raise deploy.Refused("terraform does not say what its variables are:\nInvalid value for variable")

    monkeypatch.setattr(deploy, "read_plan", refused)
    clinic.clients["sqs"].send_message(QueueUrl=clinic.queue, MessageBody="{}")
    found = findings(capsys)
    assert ["settings" in found[0], "failed events" in found[1]] == [True, True]


@pytest.mark.parametrize(
    ("service", "method", "permission"),
    [
        ("ecr", "batch_get_image", "ecr:BatchGetImage"),
        ("service-quotas", "list_service_quotas", "servicequotas:ListServiceQuotas"),
        ("sns", "list_subscriptions_by_topic", "sns:ListSubscriptionsByTopic"),
        ("sqs", "get_queue_attributes", "sqs:GetQueueAttributes"),
        ("lambda", "get_function_configuration", "lambda:GetFunctionConfiguration"),
        ("cloudwatch", "describe_alarms", "cloudwatch:DescribeAlarms"),
        ("s3", "get_bucket_tagging", "s3:GetBucketTagging"),
        ("s3", "get_bucket_notification_configuration", "s3:GetBucketNotification"),
        ("s3", "head_bucket", "s3:ListBucket"),
    ],
)
def test_what_may_not_be_asked_is_a_line_with_the_permission(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], service: str, method: str, permission: str
) -> None:
    clinic.refuse(service, method)
    found = lines(capsys, 0, "warn")
    assert len(found) == (2 if service == "ecr" else 1)
    assert f"not allowed to ask: needs {permission}" in found[0]


def test_what_else_aws_answers_is_a_line_and_no_traceback(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.refuse("sqs", "get_queue_attributes", "AWS.SimpleQueueService.NonExistentQueue")
    assert "failed events AWS does not answer: An error occurred" in findings(capsys)[0]


def test_a_target_that_there_is_not_is_a_mistake_of_the_command(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "check_tools", lambda: iter(()))
    assert cli.main(["doctor", "--target", "locl"]) == 2
    assert "TARGET=locl: it is aws or local" in capsys.readouterr().err


# --- the base model -----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A Hub in HF_ENDPOINT: the status of each path; 401 for others, as the real one answers."""
    statuses: dict[str, int] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(statuses.get(self.path, 401))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield statuses
    server.shutdown()
    thread.join()
    server.server_close()


def base_model(local: bool = False, s3: Callable[[], Any] = dict, **changed: Any) -> Line:
    (line,) = account.check_base_model(s3, replace(SETTINGS, **changed), local)
    return line


def test_a_model_of_the_hub_and_its_revision_are_looked_for(hub: dict[str, int]) -> None:
    path = "/api/models/distilbert-base-uncased"
    hub |= {path: 200, f"{path}/revision/main": 200, f"{path}/revision/nowhere": 404}
    assert base_model().level == "ok"
    assert "base_model_revision pins it" in base_model().text
    assert base_model(base_model_revision="main") == Line("ok", "base model", "distilbert-base-uncased at main")
    missing = base_model(base_model_revision="nowhere")
    assert missing.level == "FAIL"
    assert "the Hub has no distilbert-base-uncased at nowhere" in missing.text


def test_both_models_that_training_chooses_from_are_looked_for(hub: dict[str, int]) -> None:
    english, multilingual = "/api/models/org/english/revision/0a1b", "/api/models/org/multilingual/revision/2c3d"
    hub |= {english: 200, multilingual: 200}
    good = base_model(base_model="auto")
    assert good == Line("ok", "base model", "auto: org/english at 0a1b; org/multilingual at 2c3d")
    hub[multilingual] = 404
    bad = base_model(base_model="auto")
    assert (bad.level, "the Hub has no org/multilingual at 2c3d" in bad.text) == ("FAIL", True)
    hub[multilingual] = 503
    assert base_model(base_model="auto").level == "warn"


def test_a_model_that_the_hub_does_not_show_may_be_private(hub: dict[str, int]) -> None:
    assert base_model(base_model="nobody/nothing").level == "FAIL"
    private = base_model(base_model="nobody/nothing", hub_token_secret_arn="arn:aws:secretsmanager:x")
    assert (private.level, "only a training can tell" in private.text) == ("warn", True)


def test_a_hub_that_fails_or_is_out_of_reach_is_a_warning(hub: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    hub["/api/models/distilbert-base-uncased"] = 503
    assert (base_model().level, "answers with 503" in base_model().text) == ("warn", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert (base_model().level, "not reachable from here" in base_model().text) == ("warn", True)


def test_a_model_in_s3_is_looked_for(clinic: Clinic) -> None:
    model = f"s3://{BUCKET}/base/mini/"
    assert base_model(base_model=model, s3=lambda: clinic.s3).level == "FAIL"
    clinic.s3.put_object(Bucket=BUCKET, Key="base/mini/config.json", Body=b"{}")
    assert base_model(base_model=model, s3=lambda: clinic.s3).level == "ok"


def test_a_model_in_a_folder_is_looked_for_on_the_local_aws(tmp_path: Path) -> None:
    assert base_model(base_model=str(tmp_path), local=True).level == "FAIL"
    (tmp_path / "config.json").write_text("{}")
    assert base_model(base_model=str(tmp_path), local=True).level == "ok"
    assert "only a training can tell" in base_model(base_model="/opt/model").text


# --- tools --------------------------------------------------------------------------------------------


def tools() -> dict[str, Line]:
    return {line.subject: line for line in doctor.check_tools()}


def test_the_versions_of_the_tools_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "terraform"
    binary.write_text("#!/bin/sh\necho Terraform v1.11.4\n")
    binary.chmod(0o755)
    monkeypatch.setattr(terraform, "find_terraform", lambda _: (str(binary), "linux_amd64"))
    assert tools()["Terraform"] == Line("ok", "Terraform", "1.11.4")
    assert tools()["Python"].text == ".".join(map(str, sys.version_info[:3]))
    assert tools()["make"].level == "ok"


def test_what_is_too_old_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "terraform is not installed" in tools()["Terraform"].text
    assert (tools()["Terraform"].level, tools()["make"].level) == ("FAIL", "warn")
    assert doctor.tool("Python", (3, 10, 1), (3, 11)) == Line("FAIL", "Python", "3.10.1: 3.11 or later is needed")


# --- make deploy --------------------------------------------------------------------------------------


def test_deploy_warns_of_what_the_account_lacks_before_it_plans(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic.quotas.applied[TRAINING] = 0.0
    clinic.ecr.images.clear()
    monkeypatch.setattr(deploy.boto3, "client", lambda name, **_: clinic.clients[name])
    monkeypatch.setattr(terraform, "run", lambda *_: print("planning") or 0)  # type: ignore[func-returns-value]
    assert deploy.run("plan", [], Path("terraform")) == 0
    said = capsys.readouterr()
    assert said.out == "planning\n"
    warnings = said.err.splitlines()
    assert [line.split(": ")[:2] for line in warnings] == [["warning", "image"]] * 2 + [["warning", "quota"]]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert deploy.run("plan", [], Path("terraform")) == 0
    assert capsys.readouterr().err == ""
