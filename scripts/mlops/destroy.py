"""mlops destroy: delete a stack, everything that costs money and everything that Terraform created; keep its data.

In this order, so that nothing comes back: the rules stop, the pipeline is paused, training jobs and endpoints of
this stack (by its tag) end, their configs and models go, then Terraform's resources except the bucket. With
DATA=delete the bucket follows, with every version of every object. Each step looks for what it still has to do, so
the command can be interrupted anywhere and rerun. Exit status: 0 done, or there was nothing to do; 1 AWS refused,
or something is left; 2 the command cannot be carried out as given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import ClientError

import mlops.target
import terraform
from local import stack
from mlops import bucket, deploy
from mlops.endpoints import (
    PAGES,
    Endpoint,
    delete_endpoint,
    is_missing,
    own_endpoints,
    own_tags,
    running_jobs,
    stop_job,
)
from mlops.pause import note_pause
from mlops.records import DEPLOYMENT_PREFIX, PAUSED_KEY, deployment, paused
from mlops.target import (
    ENDPOINT_LOG_GROUP,
    TRAINING_LOG_GROUP,
    NothingDeployed,
    Target,
    UsageError,
    confirm,
    error_code,
    on_stack,
)
from mlops.text import complain, say

# An endpoint that is being changed can be deleted only when that has ended, and a crash-looping one takes about 25
# minutes to end; a training job has two minutes between the request to stop and its end.
WAIT_SECONDS = 40 * 60
POLL_SECONDS = 15
LOCAL_POLL_SECONDS = 2
DELETE_AT_ONCE = 1000  # keys in one DeleteObjects
# Terraform's resources that people know by a name of their own, and the attribute with it; others belong to these.
SHOWN = {
    "aws_cloudwatch_event_rule": ("rule", "name"),
    "aws_lambda_function": ("function", "function_name"),
    "aws_sns_topic": ("topic", "name"),
    "aws_sqs_queue": ("queue", "name"),
    "aws_iam_role": ("role", "name"),
    "aws_cloudwatch_metric_alarm": ("alarm", "alarm_name"),
    "aws_cloudwatch_log_group": ("log", "name"),
}


class Unfinished(Exception):
    """Something is left to do; the text says what, and that the command can be run again."""


@dataclass(frozen=True)
class Contents:
    """What a bucket holds: every version counts, and is billed."""

    objects: int = 0
    versions: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.objects} objects, {self.versions} versions, {self.size / 1e6:.1f} MB"


# --- Terraform --------------------------------------------------------------------------------------


def run_terraform(target: Target, *arguments: str, quiet: bool = False) -> str:
    """Run one Terraform command on the stack; returns what it printed, when quiet. Raises Unfinished when it fails."""
    command = terraform.own_command(*arguments, directory=target.folder)
    if target.environment:
        environment = stack.terraform_environment(target.environment)
    else:
        # The stack's own region, whatever the shell's is now.
        region = target.outputs.get("region_name")
        environment = {**os.environ, **({"AWS_REGION": region} if region else {})}
    status, output = 0, ""
    if quiet:
        answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        status, output = answer.returncode, answer.stdout
    else:
        sys.stdout.flush()
        status = terraform.finish(command, environment)
    if status != 0:
        raise Unfinished(f"terraform {arguments[0]} failed, see above; once the cause is fixed, rerun make destroy")
    return output


def terraform_destroy(target: Target, *options: str) -> None:
    """Destroy with a plan that is not shown: thousands of lines would hide the summary before it."""
    run_terraform(target, "plan", "-destroy", "-input=false", "-out=destroy.tfplan", *options, quiet=True)
    run_terraform(target, "apply", "-input=false", "-compact-warnings", "destroy.tfplan")


def managed(target: Target) -> dict[str, dict[str, Any]]:
    """What Terraform knows that it created: {address: {"type", "values"}}."""
    found: dict[str, dict[str, Any]] = {}
    modules = [json.loads(run_terraform(target, "show", "-json", quiet=True)).get("values", {}).get("root_module", {})]
    for module in modules:
        modules += module.get("child_modules", [])
        found |= {item["address"]: item for item in module.get("resources", []) if item["mode"] == "managed"}
    return found


def find(where: str) -> Target:
    """The stack to destroy: as for every command, or what an interrupted destroy has left without its outputs."""
    try:
        return mlops.target.connect(where)
    except NothingDeployed:
        target = Target("AWS", boto3.Session(region_name=os.environ.get("AWS_REGION")), {}, {})
    try:
        names = [item["values"]["bucket"] for item in managed(target).values() if "bucket" in item["values"]]
    except Unfinished as error:
        raise UsageError(str(error)) from error
    return Target(target.where, target.session, {}, {"bucket_name": names[0]} if names else {})


# --- what there is ----------------------------------------------------------------------------------


def owned(target: Target, kind: str) -> list[str]:
    """The names of this stack's endpoint configs or models. kind: EndpointConfig or Model."""
    operation = {"EndpointConfig": "list_endpoint_configs", "Model": "list_models"}[kind]
    pages = target.client("sagemaker").get_paginator(operation).paginate(NameContains="training-job-", **PAGES)
    items = [item for page in pages for item in page[f"{kind}s"]]
    return [item[f"{kind}Name"] for item in items if own_tags(target, item[f"{kind}Arn"])]


def unfinished_jobs(target: Target) -> dict[str, str]:
    """This stack's training jobs that still cost money: {name: status}."""
    return {job: status for status in ("InProgress", "Stopping") for job in running_jobs(target, status)}


def bucket_exists(target: Target) -> bool:
    try:
        target.client("s3").head_bucket(Bucket=target.bucket)
    except ClientError as error:
        if error_code(error) in ("404", "NoSuchBucket"):
            return False
        raise
    return True


def versions(target: Target) -> Iterator[dict[str, Any]]:
    """Every version and every delete marker in the bucket; a marker has no Size."""
    for page in target.client("s3").get_paginator("list_object_versions").paginate(Bucket=target.bucket):
        yield from page.get("Versions", [])
        yield from page.get("DeleteMarkers", [])


def contents(target: Target) -> Contents:
    objects = count = size = 0
    for item in versions(target):
        if "Size" in item:
            objects, count, size = objects + bool(item["IsLatest"]), count + 1, size + item["Size"]
    return Contents(objects, count, size)


def endpoint_logs(target: Target) -> list[str]:
    """The log groups of every endpoint that this stack ever had, by its deployment records; some may not exist."""
    records = bucket.read_all(target, DEPLOYMENT_PREFIX, deployment)
    return sorted({ENDPOINT_LOG_GROUP + record.value["endpoint"] for record in records})


# --- destroy ----------------------------------------------------------------------------------------


class Destroy:
    """The end of one stack. Every step can be repeated."""

    def __init__(self, target: Target, delete_data: bool) -> None:
        self.target = target
        self.state = managed(target)
        self.delete_data = delete_data
        self.own_bucket = deploy.BUCKET in self.state
        self.has_bucket = bool(target.outputs.get("bucket_name")) and bucket_exists(target)
        # The very last step removes the outputs; only the emptied bucket is left then.
        self.known = "endpoint_name" in target.outputs
        # Endpoints that are not this stack's: each is looked at once.
        self.others: set[Any] = set()
        if delete_data and self.state and not self.own_bucket and self.has_bucket:
            raise UsageError(
                f"DATA=delete: {target.bucket} was not made by this stack (create_bucket = false), so it is not this "
                "stack's to empty. Nothing was changed: run make destroy without it, then delete there what you want"
            )

    def run(self, confirmed: str) -> int:
        """Show, ask, and destroy; the exit status. Raises UsageError and Unfinished."""
        kept = {address for address in self.state if self.stays(address)}
        nothing = not self.state.keys() - kept and not self.costing()
        if nothing and not (self.delete_data and kept):
            say("nothing is deployed from here: there is nothing to destroy")
            if kept:
                say(f"kept  {self.target.bucket} ({contents(self.target)}): make destroy DATA=delete deletes it")
            return 0
        self.show(kept)
        if confirmed and confirmed != self.target.bucket:
            raise UsageError(f"CONFIRM={confirmed} is not {self.target.bucket}: nothing was changed")
        confirm(self.target, bool(confirmed), f"CONFIRM={self.target.bucket}")
        if self.known:
            self.stop_rules()
            self.pause()
            self.clear()
        logs = endpoint_logs(self.target) if self.delete_data and self.known and self.has_bucket else []
        self.spare_notifications()
        self.destroy_all_but(kept)
        if self.known:
            # What a function started before its rules stopped.
            self.clear()
        if self.delete_data:
            self.delete_logs(logs)
            if self.has_bucket:
                self.empty()
            terraform_destroy(self.target)
        self.conclude()
        return 0

    def stays(self, address: str) -> bool:
        """Whether a resource is one of the bucket's, and the bucket is the stack's own."""
        return self.own_bucket and address.startswith(deploy.BUCKET_RESOURCES)

    def costing(self) -> list[tuple[str, str]]:
        """(kind, name) of what the functions created, and what costs money."""
        if not self.known:
            return []
        target = self.target
        return [
            *(("training job", f"{job} ({status}): is stopped") for job, status in unfinished_jobs(target).items()),
            *(("endpoint", f"{item['name']} ({item['config']})") for item in self.endpoints()),
            *(("endpoint config", name) for name in owned(target, "EndpointConfig")),
            *(("model", name) for name in owned(target, "Model")),
        ]

    def endpoints(self) -> list[Endpoint]:
        """This stack's endpoints, whatever their names."""
        return own_endpoints(self.target, every_name=True, others=self.others)

    def show(self, kept: set[str]) -> None:
        """Name what is deleted, and what stays."""
        say(f"make destroy deletes the stack {self.target.bucket}:")
        for kind, name in self.costing():
            say(f"  {kind:<16} {name}")
        others = 0
        for address in sorted(self.state.keys() - kept):
            item = self.state[address]
            if item["type"] in SHOWN:
                kind, attribute = SHOWN[item["type"]]
                say(f"  {kind:<16} {item['values'][attribute]}")
            else:
                others += 1
        say(f"  and {others} policies, permissions and settings that belong to these")
        if not self.has_bucket:
            return
        data = f"{self.target.bucket}: {contents(self.target)}"
        if self.delete_data:
            say(f"  bucket           {data}. ALL OF IT, every version; it cannot be restored")
        else:
            say(f"It keeps the bucket {data}, and the logs of training jobs and endpoints")

    def stop_rules(self) -> None:
        events = self.target.client("events")
        for name in self.target.outputs["rule_names"].values():
            try:
                events.disable_rule(Name=name)
            except ClientError as error:
                if error_code(error) != "ResourceNotFoundException":
                    raise
        say("stopped   the rules")

    def pause(self) -> None:
        """Keep functions that are running from starting anything, and remember what was live for make resume."""
        if not self.has_bucket:
            return
        record = bucket.read(self.target, PAUSED_KEY, paused)
        live = [item for item in own_endpoints(self.target) if item["status"] != "Deleting"]
        note_pause(self.target, record, live)

    def clear(self) -> None:
        """Stop and delete what costs money, and wait until it is gone. Raises Unfinished when that takes too long."""
        target = self.target
        asked: set[str] = set()
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            jobs, endpoints = unfinished_jobs(target), self.endpoints()
            for job in jobs.keys() - asked:
                stop_job(target, job)
                say(f"stopping  training job {job}")
            for item in endpoints:
                if item["status"] != "Deleting" and delete_endpoint(target, item["name"]):
                    say(f"deleting  endpoint {item['name']}")
            asked |= jobs.keys()
            if not jobs and not endpoints:
                break
            if time.monotonic() > deadline:
                left = ", ".join([*jobs, *(item["name"] for item in endpoints)])
                raise Unfinished(f"{left}: still there after {WAIT_SECONDS // 60} minutes; rerun make destroy later")
            time.sleep(LOCAL_POLL_SECONDS if target.environment else POLL_SECONDS)
        for kind, delete in (("EndpointConfig", "delete_endpoint_config"), ("Model", "delete_model")):
            for name in owned(target, kind):
                try:
                    getattr(target.client("sagemaker"), delete)(**{f"{kind}Name": name})
                except ClientError as error:
                    if not is_missing(error):
                        raise
                say(f"deleted   {'endpoint config' if kind == 'EndpointConfig' else 'model'} {name}")

    def spare_notifications(self) -> None:
        """Keep Terraform from emptying the notifications of an existing bucket when others have been added to ours."""
        if self.own_bucket or deploy.NOTIFICATION not in self.state or not self.has_bucket:
            return
        if deploy.other_notifications(self.target.client("s3"), self.target.bucket):
            run_terraform(self.target, "state", "rm", deploy.NOTIFICATION, quiet=True)
            self.state.pop(deploy.NOTIFICATION)
            say(f"left      the notifications of {self.target.bucket}: others have been added to this stack's")

    def destroy_all_but(self, kept: set[str]) -> None:
        """Everything of Terraform's except the bucket, which its state still knows: make deploy goes on with it."""
        targets = [f"-target={address}" for address in sorted(self.state.keys() - kept)]
        if targets and kept:
            say("Terraform warns below that its run is partial: the bucket is left out")
        if targets:
            terraform_destroy(self.target, *(targets if kept else ()))

    def delete_logs(self, groups: list[str]) -> None:
        for name in groups:
            try:
                self.target.client("logs").delete_log_group(logGroupName=name)
            except ClientError as error:
                if error_code(error) != "ResourceNotFoundException":
                    raise
            else:
                say(f"deleted   log {name}")

    def empty(self) -> None:
        """Delete every version and every delete marker in the bucket. Raises Unfinished where S3 refuses one."""
        s3, count = self.target.client("s3"), 0
        batch: list[dict[str, str]] = []
        for item in versions(self.target):
            version = {"Key": item["Key"], "VersionId": item["VersionId"]}
            count += 1
            if not item["Key"].isprintable():
                # XML cannot carry every character that a key may have; a URL can.
                s3.delete_object(Bucket=self.target.bucket, **version)
                continue
            batch.append(version)
            if len(batch) == DELETE_AT_ONCE:
                self.delete_versions(batch)
                batch = []
        if batch:
            self.delete_versions(batch)
        say(f"deleted   {count} versions and delete markers in {self.target.bucket}")

    def delete_versions(self, batch: list[dict[str, str]]) -> None:
        answer = self.target.client("s3").delete_objects(
            Bucket=self.target.bucket, Delete={"Objects": batch, "Quiet": True}
        )
        for problem in answer.get("Errors", []):
            raise Unfinished(f"S3 does not delete {problem['Key']}: {problem.get('Message') or problem.get('Code')}")

    def conclude(self) -> None:
        if self.delete_data:
            say("destroyed, with all data")
        else:
            say(f"destroyed; kept: {self.target.bucket}, {contents(self.target)}")
            if self.target.environment:
                say("make local-down forgets it")
            elif self.own_bucket:
                say(
                    "make deploy reuses it, and make resume then brings back what was live; "
                    "make destroy DATA=delete deletes it as well"
                )
        say(f"the log group {TRAINING_LOG_GROUP} stays: it belongs to every training job of the account")


def destroy(target: Target, data: str, confirmed: str) -> int:
    """Destroy the stack; the exit status. Raises UsageError."""
    if data not in ("", "delete"):
        raise UsageError(f"DATA={data}: it is delete, or unset to keep the data")
    try:
        return Destroy(target, data == "delete").run(confirmed)
    except Unfinished as error:
        complain(f"error: {error}")
        return 1


def run(where: str, data: str, confirmed: str) -> int:
    """Find the stack, and destroy it; the exit status."""
    return on_stack(where, lambda target: destroy(target, data, confirmed), find)
