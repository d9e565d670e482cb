"""What make deploy looks at before Terraform runs: the bucket, as moto has it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

import terraform
from mlops import deploy
from mlops.deploy import Plan, Refused

REGION, BUCKET = "eu-west-1", "team-data"
QUEUE = "arn:aws:sqs:eu-west-1:123456789012:uploads"
OTHERS = [{"Id": "theirs", "QueueArn": QUEUE, "Events": ["s3:ObjectCreated:*"]}]
EXISTING = Plan(BUCKET, create=False, notify=False, managed=frozenset())
NOTIFYING = Plan(BUCKET, create=False, notify=True, managed=frozenset())


class S3:
    """moto's, which takes a notification to EventBridge but does not give it back."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._configuration: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_bucket_notification_configuration(self, *, Bucket: str, NotificationConfiguration: dict[str, Any]) -> None:
        self._client.put_bucket_notification_configuration(
            Bucket=Bucket, NotificationConfiguration=NotificationConfiguration
        )
        self._configuration = NotificationConfiguration

    def get_bucket_notification_configuration(self, *, Bucket: str) -> dict[str, Any]:
        return {"ResponseMetadata": {}, **self._configuration}


@pytest.fixture
def s3() -> Iterator[Any]:
    """S3 with an existing, versioned bucket that notifies nobody."""
    with mock_aws():
        boto3.client("sqs", region_name=REGION).create_queue(QueueName="uploads")
        client = boto3.client("s3", region_name=REGION)
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        yield S3(client)


def notify(s3: Any, **configuration: Any) -> None:
    s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=configuration)


def refusal(s3: Any, plan: Plan) -> str:
    with pytest.raises(Refused) as caught:
        deploy.check_bucket(s3, plan)
    return str(caught.value)


def carry_out(s3: Any, text: str) -> None:
    """Do what the command in the text says, as the AWS CLI would."""
    (command,) = re.findall(r"aws s3api put-bucket-notification-configuration .*", text)
    words = shlex.split(command)
    assert words[3::2] == ["--bucket", "--notification-configuration"]
    s3.put_bucket_notification_configuration(Bucket=words[4], NotificationConfiguration=json.loads(words[6]))


def test_a_bucket_that_terraform_makes_or_has_made_is_not_looked_at(s3: Any) -> None:
    new = Plan("not-there-yet", create=True, notify=False, managed=frozenset())
    assert deploy.check_bucket(s3, new) == []
    made = Plan(BUCKET, create=True, notify=False, managed=frozenset({deploy.BUCKET}))
    assert deploy.check_bucket(s3, made) == []
    assert deploy.check_bucket(s3, Plan(None, create=True, notify=False, managed=frozenset())) == []


def test_a_bucket_that_is_there_without_its_state_is_to_be_imported(s3: Any) -> None:
    text = refusal(s3, Plan(BUCKET, create=True, notify=False, managed=frozenset()))
    assert f"scripts/terraform.py import 'module.s3.aws_s3_bucket.this[0]' {BUCKET}" in text


def test_the_stacks_own_bucket_is_not_let_go_by_a_deployment(s3: Any) -> None:
    managed = frozenset({deploy.BUCKET, deploy.NOTIFICATION, "module.iam.aws_iam_role.model"})
    text = refusal(s3, Plan(BUCKET, create=False, notify=False, managed=managed))
    assert f"state rm '{deploy.BUCKET}' '{deploy.NOTIFICATION}'" in text
    assert "aws_iam_role" not in text


@pytest.mark.parametrize(
    ("changed", "name"), [({"endpoint": "other"}, "endpoint_name"), ({"bucket": "other"}, "bucket_name")]
)
def test_a_changed_name_is_refused_while_functions_are_deployed(changed: dict[str, str], name: str) -> None:
    deployed = Plan(
        BUCKET,
        create=True,
        notify=False,
        managed=frozenset({"module.lambda_deployment_orchestrator.module.function.aws_lambda_function.this"}),
        endpoint="mlops-endpoint",
        outputs={"bucket_name": BUCKET, "endpoint_name": "mlops-endpoint"},
    )
    deploy.check_names(deployed)
    deploy.check_names(replace(deployed, managed=frozenset({deploy.BUCKET}), **changed))  # type: ignore[arg-type]
    with pytest.raises(Refused, match=f"{name} is .* now and would become other"):
        deploy.check_names(replace(deployed, **changed))  # type: ignore[arg-type]


def test_a_bucket_under_a_key_that_the_functions_may_not_use_is_warned_of(s3: Any) -> None:
    notify(s3, EventBridgeConfiguration={})
    key = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
    s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    (warning,) = deploy.check_bucket(s3, EXISTING)
    assert f"encrypts with {key}" in warning
    assert deploy.check_bucket(s3, replace(EXISTING, key=key)) == []


def test_a_missing_bucket_is_refused_when_it_should_exist(s3: Any) -> None:
    assert "nowhere does not exist" in refusal(s3, Plan("nowhere", create=False, notify=False, managed=frozenset()))


def test_a_bucket_of_another_region_is_refused(s3: Any) -> None:
    elsewhere = boto3.client("s3", region_name="us-east-1")
    assert "is in eu-west-1, and the stack would be in us-east-1" in refusal(elsewhere, EXISTING)


def test_a_bucket_without_events_is_refused_with_the_command_that_switches_them_on(s3: Any) -> None:
    text = refusal(s3, EXISTING)
    assert "no upload would ever start a training" in text
    assert "manage_bucket_notification = true" in text
    carry_out(s3, text)
    assert deploy.check_bucket(s3, EXISTING) == []


def test_the_command_keeps_the_notifications_that_are_there(s3: Any) -> None:
    notify(s3, QueueConfigurations=OTHERS)
    text = refusal(s3, EXISTING)
    assert "manage_bucket_notification" not in text
    carry_out(s3, text)
    assert deploy.check_bucket(s3, EXISTING) == []
    assert deploy.other_notifications(s3, BUCKET) == {"QueueConfigurations": OTHERS}


def test_terraform_may_switch_events_on_where_there_are_no_notifications(s3: Any) -> None:
    assert deploy.check_bucket(s3, NOTIFYING) == []


def test_terraform_may_not_overwrite_others_notifications(s3: Any) -> None:
    notify(s3, QueueConfigurations=OTHERS)
    text = refusal(s3, NOTIFYING)
    assert "would delete other notifications of the bucket team-data: QueueConfigurations" in text
    carry_out(s3, text)
    assert deploy.check_bucket(s3, EXISTING) == []


def test_notifications_that_others_added_later_are_not_overwritten_either(s3: Any) -> None:
    notify(s3, QueueConfigurations=OTHERS, EventBridgeConfiguration={})
    managed = Plan(BUCKET, create=False, notify=True, managed=frozenset({deploy.NOTIFICATION}))
    assert "would delete other notifications" in refusal(s3, managed)


def test_events_that_somebody_else_switched_on_are_not_taken_over(s3: Any) -> None:
    notify(s3, EventBridgeConfiguration={})
    assert "sends its events to EventBridge already" in refusal(s3, NOTIFYING)
    managed = Plan(BUCKET, create=False, notify=True, managed=frozenset({deploy.NOTIFICATION}))
    assert deploy.check_bucket(s3, managed) == []


def test_a_bucket_without_versions_is_warned_of(s3: Any) -> None:
    notify(s3, EventBridgeConfiguration={})
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"})
    (warning,) = deploy.check_bucket(s3, EXISTING)
    assert "keeps no versions" in warning
    assert "Status=Enabled" in warning


# --- from when on events flow -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "switches_on", "managed", "status", "said"),
    [
        ("apply", {"create": True}, set(), 0, True),
        ("apply", {"notify": True}, set(), 0, True),
        ("apply", {"create": True}, {deploy.BUCKET}, 0, True),
        ("apply", {"create": True}, {deploy.BUCKET, deploy.NOTIFICATION}, 0, False),
        ("apply", {"create": True}, set(), 1, False),
        ("apply", {}, set(), 0, False),
        ("plan", {"create": True}, set(), 0, False),
    ],
)
def test_the_deployment_that_switches_events_on_says_from_when_on_they_flow(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    switches_on: dict[str, bool],
    managed: set[str],
    status: int,
    said: bool,
) -> None:
    asked = {"create": False, "notify": False} | switches_on
    plan = Plan(BUCKET, **asked, managed=frozenset(managed))
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setattr(terraform, "run", lambda *_: status)
    monkeypatch.setattr(deploy, "read_plan", lambda *_: plan)
    monkeypatch.setattr(deploy, "check_bucket", lambda s3, plan: [])
    monkeypatch.setattr(deploy, "datetime", SimpleNamespace(now=lambda: datetime(2026, 12, 1, 23, 55)))
    assert deploy.run(command, [], Path("terraform")) == status
    sentence = "S3 needs about five minutes before it sends events: upload after 00:01\n"
    assert (sentence in capsys.readouterr().out) == said
