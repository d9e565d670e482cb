"""mlops doctor: what is wrong, or would go wrong, in one line each; before and after a deployment, local or on AWS.

Exit status: 0, or 1 where a line says FAIL. It changes nothing. What may not be asked, or cannot be (offline), is a
warning that says so.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

import mlops.target
import package
import terraform
from local import stack
from mlops import account, deploy
from mlops.account import Line, Settings, ask
from mlops.target import NothingDeployed, Target, error_code
from mlops.text import say

MINIMUM_PYTHON = (3, 11)
MINIMUM_MAKE = (3, 81)


@dataclass(frozen=True)
class Patient:
    """What is looked at. target: None before a deployment; plan: None where Terraform does not say."""

    session: boto3.Session
    client: Callable[[str], Any]
    local: bool
    target: Target | None
    plan: deploy.Plan | None

    @property
    def settings(self) -> Settings | None:
        return self.plan.settings if self.plan else None


# --- this machine ------------------------------------------------------------------------------------


def check_tools() -> Iterator[Line]:
    """The versions of what runs here."""
    version = sys.version_info[:3]
    yield tool("Python", version, MINIMUM_PYTHON)
    try:
        binary, _ = terraform.find_terraform(terraform.clean_environment(os.environ))
        said = subprocess.run([binary, "version"], cwd="/", capture_output=True, text=True, check=False).stdout
        found = re.search(r"Terraform v([0-9.]+)", said)
        yield Line("ok", "Terraform", found[1] if found else said.strip())
    except terraform.TerraformError as error:
        yield Line("FAIL", "Terraform", str(error))
    try:
        said = subprocess.run(["make", "--version"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        yield Line("warn", "make", "is not installed: .venv/bin/mlops has the same commands")
    else:
        found = re.search(r"GNU Make ([0-9.]+)", said)
        yield tool("make", terraform.as_version(found[1]) if found else (), MINIMUM_MAKE)


def tool(name: str, version: tuple[int, ...], minimum: tuple[int, ...]) -> Line:
    said, needed = (".".join(map(str, numbers)) or "unknown" for numbers in (version, minimum))
    if version < minimum:
        return Line("FAIL", name, f"{said}: {needed} or later is needed")
    return Line("ok", name, said)


# --- whose account -----------------------------------------------------------------------------------


def check_identity(patient: Patient) -> Iterator[Line]:
    try:
        caller = patient.client("sts").get_caller_identity()
    except NoCredentialsError:
        yield Line("FAIL", "credentials", "there are none: log in (aws sso login, aws configure), or set AWS_PROFILE")
        return
    except (BotoCoreError, ClientError) as error:
        yield Line("FAIL", "credentials", f"AWS does not take them: {error}")
        return
    yield Line("ok", "credentials", caller["Arn"])
    yield Line("ok", "account", f"{caller['Account']} in {patient.session.region_name}")


def check_region(patient: Patient) -> Iterator[Line]:
    """Whether the shell's region is the stack's: make deploy refuses another one."""
    try:
        region = terraform.find_region(os.environ)
    except terraform.TerraformError as error:
        yield Line("warn", "region", str(error))
        return
    if region != patient.session.region_name:
        stacks = patient.session.region_name
        yield Line("warn", "region", f"your AWS settings say {region}, the stack is in {stacks}: AWS_REGION={stacks}")


# --- the bucket --------------------------------------------------------------------------------------


def check_bucket(patient: Patient) -> Iterator[Line]:
    """The bucket's name is free, or the bucket is ours; its events reach EventBridge."""
    plan, s3 = patient.plan, patient.client("s3")
    if plan is None:
        return
    if plan.bucket is None:
        identity = patient.client("sts").get_caller_identity()
        plan = replace(plan, bucket=f"atml-models-{identity['Account']}-{patient.session.region_name}")
    bucket = str(plan.bucket)
    try:
        deploy.check_names(plan)
        for warning in deploy.check_bucket(s3, plan):
            yield Line("warn", "bucket", warning)
    except deploy.Refused as error:
        yield Line("FAIL", "bucket", str(error))
        return
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error_code(error) not in ("404", "NoSuchBucket"):
            raise
        if deploy.BUCKET in plan.managed:
            yield Line("FAIL", "bucket", f"{bucket} is gone, and its data with it: make deploy creates an empty one")
        else:
            yield Line("ok", "bucket", f"the name {bucket} is free: make deploy creates it")
        return
    if deploy.BUCKET in plan.managed:
        yield whose(s3, bucket)
    else:
        yield Line("ok", "bucket", f"{bucket}, an existing one")
    if patient.target is None:
        return
    if "EventBridgeConfiguration" in s3.get_bucket_notification_configuration(Bucket=bucket):
        yield Line("ok", "S3 events", "are sent to EventBridge")
    else:
        command = deploy.switch_on(bucket, deploy.other_notifications(s3, bucket))
        text = f"are not sent to EventBridge, so no upload starts a training: make deploy, or {command}"
        yield Line("FAIL", "S3 events", text)


def whose(s3: Any, bucket: str) -> Line:
    """Whether a bucket that Terraform's state names has this stack's tag."""
    try:
        tags = s3.get_bucket_tagging(Bucket=bucket)["TagSet"]
    except ClientError as error:
        if error_code(error) != "NoSuchTagSet":
            raise
        tags = []
    if {"Key": "Stack", "Value": bucket} in tags:
        return Line("ok", "bucket", f"{bucket}, this stack's")
    return Line("warn", "bucket", f"{bucket} has not this stack's tag (Stack={bucket}): make deploy sets it")


# --- the stack ---------------------------------------------------------------------------------------


def check_functions(patient: Patient, target: Target) -> Iterator[Line]:
    """Whether the functions are there, and run this checkout's code."""
    outdated = []
    for name in package.FUNCTIONS:
        function = str(target.outputs[f"{name}_name"])
        try:
            found = patient.client("lambda").get_function_configuration(FunctionName=function)
        except ClientError as error:
            if error_code(error) != "ResourceNotFoundException":
                raise
            yield Line("FAIL", "function", f"{function} is gone: make deploy creates it")
            continue
        if found.get("State", "Active") != "Active":
            yield Line("FAIL", "function", f"{function} is {found['State']}: {found.get('StateReason', 'no reason')}")
        elif found["CodeSha256"] != code_sha256(name):
            outdated.append(name)
        else:
            yield Line("ok", "function", f"{function}: this checkout's")
    if outdated:
        yield Line("warn", "function", f"{', '.join(outdated)}: not this checkout's code: make deploy updates it")


def code_sha256(name: str) -> str:
    """What Lambda calls CodeSha256, of the zip that make package builds."""
    content = package.zip_bytes(package.read_sources(package.ROOT / "lambda" / name, ["handler.py"]))
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def check_emails(patient: Patient, target: Target) -> Iterator[Line]:
    """Every address of notification_emails is subscribed, and has confirmed; an address can lose that at any time."""
    pages = patient.client("sns").get_paginator("list_subscriptions_by_topic").paginate(
        TopicArn=target.outputs["topic_arn"]
    )  # fmt: skip
    found = {item["Endpoint"]: item["SubscriptionArn"] for page in pages for item in page["Subscriptions"]}
    wanted = patient.settings.notification_emails if patient.settings else tuple(sorted(found))
    if not wanted:
        yield Line("warn", "emails", "nobody gets any: set notification_emails, then make deploy")
    for address in wanted:
        state = found.get(address, "Deleted")
        if state == "PendingConfirmation":
            text = f"{address} is not confirmed: click the link in AWS's email, or make deploy after three days"
            yield Line("FAIL", "emails", text)
        elif state == "Deleted":
            text = (
                f"{address} is not subscribed, or no longer: mail systems that open every link unsubscribe people. "
                "make deploy subscribes it again; scripts/README.md says how to keep it (Emails that stop)"
            )
            yield Line("FAIL", "emails", text)
        else:
            yield Line("ok", "emails", f"{address} is confirmed")


def check_queue(patient: Patient, target: Target) -> Iterator[Line]:
    answer = patient.client("sqs").get_queue_attributes(
        QueueUrl=target.outputs["failure_queue_url"], AttributeNames=["ApproximateNumberOfMessages"]
    )
    failed = int(answer["Attributes"]["ApproximateNumberOfMessages"])
    if failed:
        text = f"{failed} wait: make logs shows the errors; once the cause is fixed, make redrive"
        yield Line("FAIL", "failed events", text)
    else:
        yield Line("ok", "failed events", "none")


def check_alarms(patient: Patient, target: Target) -> Iterator[Line]:
    """The stack's alarms, which are known by what they watch and by the topic that they notify."""
    queue = str(target.outputs["failure_queue_url"]).rpartition("/")[2]
    prefixes = [*target.functions.values(), queue, str(target.outputs["endpoint_name"])]
    alarms: dict[str, Mapping[str, Any]] = {}
    for prefix in prefixes:
        for page in patient.client("cloudwatch").get_paginator("describe_alarms").paginate(AlarmNamePrefix=prefix):
            ours = (item for item in page["MetricAlarms"] if target.outputs["topic_arn"] in item["AlarmActions"])
            alarms |= {item["AlarmName"]: item for item in ours}
    for name, item in alarms.items():
        if item["StateValue"] == "ALARM":
            yield Line("FAIL", "alarm", f"{name}: {item.get('AlarmDescription') or item.get('StateReason', '')}")
    if not alarms:
        yield Line("FAIL", "alarm", "there are none: make deploy creates them")
    elif all(item["StateValue"] != "ALARM" for item in alarms.values()):
        yield Line("ok", "alarms", f"{len(alarms)}, none is on")


# --- all of it ---------------------------------------------------------------------------------------


def examine(patient: Patient) -> Iterator[Line]:
    """Every line on an account, and on the stack where there is one."""
    yield from ask("bucket", lambda: check_bucket(patient))
    settings, target = patient.settings, patient.target
    if patient.local:
        yield Line("ok", "image", "not on the local AWS")
        yield Line("ok", "quota", "not on the local AWS")
    elif settings:
        yield from account.check_account(patient.session, settings)
    if settings:
        found = settings
        yield from ask(
            "base model", lambda: account.check_base_model(lambda: patient.client("s3"), found, patient.local)
        )
    if target is None:
        yield Line("ok", "stack", "not deployed yet: make deploy")
        return
    for subject, check in (
        ("function", check_functions),
        ("emails", check_emails),
        ("failed events", check_queue),
        ("alarms", check_alarms),
    ):
        yield from ask(subject, lambda check=check: check(patient, target))  # type: ignore[misc]


def find_plan(target: Target | None) -> deploy.Plan:
    """What Terraform says of the stack, or of the one to come. Raises deploy.Refused and terraform.TerraformError."""
    if target is not None and target.environment:
        return deploy.read_plan(target.folder, stack.terraform_environment(target.environment))
    return deploy.read_plan(target.folder if target else terraform.ROOT / "terraform", os.environ)


def patient_of(target: Target) -> Patient:
    """A deployed stack, to be looked at. Raises deploy.Refused and terraform.TerraformError."""
    return Patient(target.session, target.client, bool(target.environment), target, find_plan(target))


def diagnose(where: str) -> Iterator[Line]:
    """Every line. Raises UsageError when the stack that was asked for cannot be one."""
    for line in check_tools():
        yield line
        if line.subject == "Terraform" and line.level == "FAIL":
            return
    target = None
    try:
        target = mlops.target.connect(where)
        session = target.session
    except NothingDeployed:
        try:
            session = boto3.Session(region_name=terraform.find_region(os.environ))
        except (BotoCoreError, terraform.TerraformError) as error:
            yield Line("FAIL", "region", str(error))
            return
    local = target is not None and bool(target.environment)
    patient = Patient(session, target.client if target else session.client, local, target, None)
    if target is not None and not local:
        yield from check_region(patient)
    for line in check_identity(patient):
        yield line
        if line.level == "FAIL":
            return
    try:
        patient = replace(patient, plan=find_plan(target))
    except (deploy.Refused, terraform.TerraformError) as error:
        yield Line("FAIL", "settings", str(error))
    yield from examine(patient)


def run(where: str) -> int:
    """Print every line as it is found; the exit status. Raises UsageError."""
    failed = False
    for line in diagnose(where):
        failed = failed or line.level == "FAIL"
        for text in str(line).split("\n"):
            say(text, sys.stdout)
    return 1 if failed else 0
