"""mlops plan and deploy: terraform plan or apply, after a look at what Terraform cannot see: the bucket as it is.

Refuses where the deployment would overwrite an existing bucket's notifications, or where no event would ever reach
it, and says what to do instead.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

import terraform
from mlops import account
from mlops.text import complain, say

BUCKET_RESOURCES = "module.s3.aws_s3_bucket"
BUCKET = f"{BUCKET_RESOURCES}.this[0]"
# "It takes around five minutes for the changes to take effect": S3 user guide, "Enabling Amazon EventBridge".
EVENTS_NEED = timedelta(minutes=6)
DEPLOYER = "module.lambda_deployment_orchestrator."
NOTIFICATION = f"{BUCKET_RESOURCES}_notification.this[0]"
# The answer is null where it depends on the account, as the default bucket name does: nothing is deployed yet.
ASKED = (
    "jsonencode({ bucket = var.bucket_name, create = var.create_bucket, endpoint = var.endpoint_name, "
    f"key = var.kms_key_arn, notify = var.manage_bucket_notification, settings = {account.ASKED} }})"
)


class Refused(Exception):
    """The deployment would do harm, or nothing at all; the text says what to do instead."""


@dataclass(frozen=True)
class Plan:
    """What the variables ask for, and what Terraform manages already (outputs: of the last deployment)."""

    bucket: str | None
    create: bool
    notify: bool
    managed: frozenset[str]
    endpoint: str = ""
    key: str | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)
    settings: account.Settings | None = None


def read_plan(directory: Path, environment: Mapping[str, str]) -> Plan:
    """Ask Terraform for its variables, wherever they come from. Raises Refused when it does not say."""
    console = terraform.own_command("console", directory=directory)
    answer = subprocess.run(console, input=ASKED, env=environment, capture_output=True, text=True, check=False)
    # Warnings, of a misspelt variable for instance, come before it.
    last_line = answer.stdout.strip().rpartition("\n")[2]
    try:
        asked = json.loads(json.loads(last_line))
    except ValueError:
        said = f"{answer.stdout.strip()}\n{answer.stderr.strip()}".strip()
        raise Refused(f"terraform does not say what its variables are:\n{said}") from None
    # The console has initialised the folder. Without a state, this fails: then nothing is managed.
    environment = terraform.clean_environment(environment)
    binary = [terraform.find_terraform(environment)[0], f"-chdir={directory}"]
    listing = subprocess.run([*binary, "state", "list"], env=environment, capture_output=True, text=True, check=False)
    managed = frozenset(listing.stdout.split())
    outputs = {}
    if managed:
        answer = subprocess.run(
            [*binary, "output", "-json"], env=environment, capture_output=True, text=True, check=True
        )
        outputs = {name: output["value"] for name, output in json.loads(answer.stdout).items()}
    return Plan(
        asked["bucket"],
        asked["create"],
        asked["notify"],
        managed,
        asked["endpoint"],
        asked["key"],
        outputs,
        account.settings(asked["settings"]),
    )


def check_names(plan: Plan) -> None:
    """Raises Refused where a changed name would leave endpoints behind that no command finds."""
    if not any(address.startswith(DEPLOYER) for address in plan.managed):
        return
    for name, asked in (("endpoint_name", plan.endpoint), ("bucket_name", plan.bucket)):
        deployed = plan.outputs.get(name, asked)
        if asked and asked != deployed:
            raise Refused(
                f"{name} is {deployed} now and would become {asked}: endpoints under the old name would keep costing "
                "money, and no command would find them. make destroy first (it keeps the data), then change it"
            )


def other_notifications(s3: Any, bucket: str) -> dict[str, Any]:
    """A bucket's notifications other than to EventBridge, as put-bucket-notification-configuration takes them."""
    answer: Mapping[str, Any] = s3.get_bucket_notification_configuration(Bucket=bucket)
    return {name: value for name, value in answer.items() if name.endswith("Configurations") and value}


def switch_on(bucket: str, others: Mapping[str, Any]) -> str:
    """The command that has a bucket send its events to EventBridge, too, and keeps its other notifications."""
    configuration = json.dumps({**others, "EventBridgeConfiguration": {}})
    return (
        f"aws s3api put-bucket-notification-configuration --bucket {bucket} "
        f"--notification-configuration {shlex.quote(configuration)}"
    )


def check_bucket(s3: Any, plan: Plan) -> list[str]:
    """The warnings. Raises Refused, saying what to do instead."""
    bucket = plan.bucket
    if BUCKET in plan.managed and not plan.create:
        raise Refused(
            "create_bucket = false would delete this stack's own bucket, or its settings where there is data in it. To "
            "keep it, take it out of Terraform's hands first:\n  .venv/bin/python scripts/terraform.py state rm "
            + " ".join(shlex.quote(address) for address in sorted(plan.managed) if address.startswith(BUCKET_RESOURCES))
        )
    if bucket is None or BUCKET in plan.managed:
        return []
    try:
        region = s3.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    except ClientError as error:
        if error.response["Error"]["Code"] == "404" and plan.create:
            return []
        raise Refused(no_access(error, plan)) from error
    if plan.create:
        raise Refused(
            f"the bucket {bucket} exists already, and this folder's Terraform state does not know it. If it was kept "
            "by a make destroy, or its state is lost, take it up again:\n"
            f"  .venv/bin/python scripts/terraform.py import {shlex.quote(BUCKET)} {bucket}\n"
            "If it is another one, use it with create_bucket = false, or choose another bucket_name"
        )
    if region and region != s3.meta.region_name:
        raise Refused(
            f"the bucket {bucket} is in {region}, and the stack would be in {s3.meta.region_name}: its events do not "
            f"cross regions. AWS_REGION={region} make deploy"
        )
    check_notifications(s3, plan, bucket)
    warnings = []
    key = encryption_key(s3, bucket)
    if key and key != plan.key:
        warnings.append(
            f"the bucket {bucket} encrypts with {key}: unless that is AWS's own key for S3, the functions may not use "
            "it, and every write of theirs is denied. kms_key_arn gives it to them"
        )
    if s3.get_bucket_versioning(Bucket=bucket).get("Status") != "Enabled":
        warnings.append(
            f"the bucket {bucket} keeps no versions: an upload that is overwritten before its training starts is lost. "
            f"aws s3api put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled"
        )
    return warnings


def encryption_key(s3: Any, bucket: str) -> str:
    """The KMS key that a bucket's objects get by default; "" for S3's own keys."""
    try:
        answer = s3.get_bucket_encryption(Bucket=bucket)
    except ClientError as error:
        # AWS has a default for every bucket since January 2023; not every local S3 has.
        if error.response["Error"]["Code"] != "ServerSideEncryptionConfigurationNotFoundError":
            raise
        return ""
    rules = answer["ServerSideEncryptionConfiguration"]["Rules"]
    keys = [rule.get("ApplyServerSideEncryptionByDefault", {}).get("KMSMasterKeyID") for rule in rules]
    return next((str(key) for key in keys if key and "alias/aws/s3" not in key), "")


def no_access(error: ClientError, plan: Plan) -> str:
    """Why a bucket does not answer, for people: HEAD has no text, only a status."""
    status = error.response["Error"]["Code"]
    if status == "404":
        return f"the bucket {plan.bucket} does not exist, and create_bucket = false wants an existing one"
    if status == "403" and plan.create:
        return f"the bucket name {plan.bucket} is taken by another account: choose another bucket_name"
    if status == "403":
        return f"the bucket {plan.bucket} is another account's, or you may not look at it (s3:ListBucket)"
    return f"the bucket {plan.bucket} does not answer: {error}"


def check_notifications(s3: Any, plan: Plan, bucket: str) -> None:
    """Raises Refused unless an existing bucket's events reach EventBridge, or can be sent there without harm."""
    others = other_notifications(s3, bucket)
    if plan.notify and others:
        raise Refused(
            f"manage_bucket_notification = true would delete other notifications of the bucket {bucket}: "
            f"{', '.join(others)}. Leave it unset, and add EventBridge to them yourself:\n"
            f"  {switch_on(bucket, others)}"
        )
    sends = "EventBridgeConfiguration" in s3.get_bucket_notification_configuration(Bucket=bucket)
    if plan.notify and sends and NOTIFICATION not in plan.managed:
        raise Refused(
            f"the bucket {bucket} sends its events to EventBridge already. Leave manage_bucket_notification unset: "
            "with it, make destroy would switch them off for everybody"
        )
    if not plan.notify and not sends and NOTIFICATION not in plan.managed:
        way_out = "Add EventBridge to its notifications" if others else "Set manage_bucket_notification = true, or"
        raise Refused(
            f"the bucket {bucket} does not send its events to EventBridge, so no upload would ever start a training. "
            f"{way_out}:\n  {switch_on(bucket, others)}\nS3 then needs about five minutes before it sends events"
        )


def warn_of_account(plan: Plan, region: str) -> None:
    """What the account lacks: images that do not exist, quotas that are too low. The local AWS has neither."""
    if plan.settings is None or os.environ.get("AWS_ENDPOINT_URL"):
        return
    for line in account.check_account(boto3.Session(region_name=region), plan.settings):
        if line.level != "ok":
            complain(f"warning: {line.subject}: {line.text}")


def run(command: str, options: Sequence[str], directory: Path) -> int:
    """Check, then run Terraform's plan or apply with its own options; the exit code."""
    try:
        region = terraform.find_region(os.environ)
        plan = read_plan(directory, os.environ)
        if plan.bucket is None and plan.create and BUCKET not in plan.managed:
            number = boto3.client("sts", region_name=region).get_caller_identity()["Account"]
            plan = replace(plan, bucket=f"atml-models-{number}-{region}")
        check_names(plan)
        for warning in check_bucket(boto3.client("s3", region_name=region), plan):
            complain(f"warning: {warning}")
        warn_of_account(plan, region)
        status = terraform.run([command, *options], directory, os.environ)
        if command == "apply" and status == 0 and (plan.create or plan.notify) and NOTIFICATION not in plan.managed:
            # Terraform has just switched S3's events on.
            moment = datetime.now() + EVENTS_NEED
            say(f"S3 needs about five minutes before it sends events: upload after {moment:%H:%M}")
        return status
    except NoCredentialsError:
        complain(
            "error: no AWS credentials: log in (aws sso login, aws configure), or set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        return 1
    except (Refused, terraform.TerraformError, BotoCoreError, ClientError) as error:
        complain(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        complain("\ninterrupted")
        return 130
