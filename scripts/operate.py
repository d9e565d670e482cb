"""When people want to intervene: go back to an earlier model, train again, pause, resume, send failed events again.

    python scripts/operate.py rollback | retrain | pause | resume | redrive

Talks to the same stack as pipeline.py. Each command writes down what it is about to do before it does it, so it can
be interrupted anywhere and run again: the end is the same. What takes time (a training, an endpoint) is left to the
deployed functions, which tell people how it ended. Exit status: 0 done, or it was so already; 1 AWS refused, or
something is left to do; 2 the command cannot be carried out as given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

import pipeline
from pipeline import PAUSED_KEY, Target, UsageError

APPROVED_PREFIX = "models/approved/"
DEPLOYMENT_PREFIX = "models/deployments/"
SNAPSHOT_PREFIX = "data/snapshots/"
JOB_NAME = re.compile(r"training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
SCHEMA = 1

# The states of a deployment record are the deployment orchestrator's (lambda/deployment_orchestrator/handler.py).
OPEN = ("requested", "started", "settling")
NOT_AGAIN = ("rolled back", "failed", "withdrawn")
SETTLED = ("InService", "UpdateRollbackFailed")

# CopyObject ends at 5 GiB (S3 API reference); what is larger is copied in parts.
COPY_IN_PARTS = TransferConfig(multipart_threshold=5 * 1024**3, multipart_chunksize=512 * 1024**2, use_threads=False)
SWEEP = {"source": "sweep"}
# Longer than one message takes; a command that is interrupted gives its messages back after this time.
IN_HAND_SECONDS = 120
# A long poll asks all of SQS's servers; a short one may find nothing where there is something (ReceiveMessage).
POLL_SECONDS = 2


class LeftAlone(Exception):
    """A message of the failed-events queue that is not sent again; the text says why."""


class Changed(UsageError):
    """Somebody else changed a record between our reading and our writing."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} was changed by somebody else just now: look at make status, then run this again")


# --- records ----------------------------------------------------------------------------------------


@dataclass
class Record:
    """A JSON record in the bucket, with the ETag under which it was read."""

    key: str
    data: dict[str, Any]
    etag: str

    @property
    def state(self) -> str:
        return str(self.data["state"])


def now() -> datetime:
    return datetime.now(UTC)


def read_record(target: Target, key: str) -> Record | None:
    """The record under a key; None where there is none."""
    try:
        answer = target.client("s3").get_object(Bucket=target.bucket, Key=key)
    except ClientError as error:
        if pipeline.error_code(error) in ("NoSuchKey", "404"):
            return None
        raise
    return Record(key, json.loads(answer["Body"].read()), answer["ETag"])


def write_record(target: Target, key: str, data: Mapping[str, Any], replaced: Record | None) -> Record:
    """Write a record in place of the one that was read, or of none. Raises Changed when that is no longer so."""
    condition = {"IfMatch": replaced.etag} if replaced else {"IfNoneMatch": "*"}
    body = json.dumps(data, indent=1).encode()
    try:
        answer = target.client("s3").put_object(
            Bucket=target.bucket, Key=key, Body=body, ContentType="application/json", **condition
        )
    except ClientError as error:
        if pipeline.error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412"):
            raise Changed(key) from error
        raise
    return Record(key, dict(data), answer["ETag"])


def move(target: Target, record: Record, by: str, state: str, **more: Any) -> Record:
    """Take a deployment record to another state. Raises Changed."""
    data = record.data | {"state": state, "by": by, "at": now().isoformat()} | more
    return write_record(target, record.key, data, record)


def ask_again(target: Target, record: Record, by: str, **more: Any) -> Record:
    """Have the deployment orchestrator deploy what a record stands for, whatever became of it. Raises Changed."""
    data = {name: value for name, value in record.data.items() if name not in ("withdrawn", "was")}
    data |= {"state": "waiting", "reason": "", "tries": 0, "restores": "", "emails": {}, "deleted_by": ""}
    data |= {"gone": False, "by": by, "at": now().isoformat()} | more
    return write_record(target, record.key, data, record)


def exists(target: Target, key: str) -> bool:
    try:
        target.client("s3").head_object(Bucket=target.bucket, Key=key)
    except ClientError as error:
        if pipeline.error_code(error) in ("NoSuchKey", "404"):
            return False
        raise
    return True


def list_keys(target: Target, prefix: str) -> Iterator[str]:
    pages = target.client("s3").get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=prefix)
    return (item["Key"] for page in pages for item in page.get("Contents", []))


def who(target: Target) -> str:
    """Whoever runs this command, as AWS knows them: the ARN of their user or role."""
    return str(target.client("sts").get_caller_identity()["Arn"])


def invoke(target: Target, function: str, payload: Mapping[str, Any]) -> None:
    """Hand a payload to a function, by its name; it runs, and is retried, after this returns."""
    target.client("lambda").invoke(FunctionName=function, InvocationType="Event", Payload=json.dumps(payload).encode())


def check_functions(target: Target) -> None:
    """Raises UsageError when the stack's functions are gone: a bucket that make destroy kept is no stack."""
    name = target.functions["deployer"]
    try:
        target.client("lambda").invoke(FunctionName=name, InvocationType="DryRun", Payload=b"{}")
    except ClientError as error:
        if pipeline.error_code(error) != "ResourceNotFoundException":
            raise
        raise UsageError(
            f"the function {name} is gone: this stack was destroyed. make deploy takes its bucket up again; then again"
        ) from error


def approved_event(target: Target, model: str, job: str) -> dict[str, Any]:
    """What S3 sent when the model was approved, as far as the deployment orchestrator reads it."""
    key = f"{APPROVED_PREFIX}{model}/{job}/model.tar.gz"
    return {"source": "aws.s3", "detail": {"bucket": {"name": target.bucket}, "object": {"key": key}}}


# --- endpoints --------------------------------------------------------------------------------------


def is_missing(error: ClientError) -> bool:
    """Whether SageMaker says that the thing does not exist: a ValidationException, told by its text alone."""
    return pipeline.error_code(error) == "ValidationException" and message(error).startswith("Could not find")


def message(error: ClientError) -> str:
    return str(error.response["Error"].get("Message", ""))


def describe_endpoint(target: Target, name: str) -> dict[str, Any] | None:
    """The endpoint as it is now; None when there is none."""
    try:
        answer: dict[str, Any] = target.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return answer


def own_tags(target: Target, arn: str) -> list[dict[str, str]]:
    """The tags of something that this stack made; none when another made it. AWS's own tags cannot be set again."""
    tags = target.client("sagemaker").list_tags(ResourceArn=arn)["Tags"]
    if {"Key": "Stack", "Value": target.bucket} not in tags:
        return []
    return [tag for tag in tags if not tag["Key"].startswith("aws:")]


def model_of_endpoint(target: Target, name: str) -> str | None:
    """The model that an endpoint's name stands for; None when it is no name of this stack's."""
    default = target.endpoint_of(pipeline.DEFAULT_MODEL)
    if name == default:
        return pipeline.DEFAULT_MODEL
    model = name.removeprefix(f"{default}-")
    return model if model != name and pipeline.MODEL_NAME.fullmatch(model) else None


def own_endpoints(target: Target, every_name: bool = False) -> list[dict[str, Any]]:
    """This stack's endpoints: {"name", "model", "status", "config", "tags"}.

    every_name: by their tag alone, as endpoint_name may have changed; the model is None where the name tells none.
    """
    found = []
    names = {} if every_name else {"NameContains": target.endpoint_of(pipeline.DEFAULT_MODEL)}
    for page in target.client("sagemaker").get_paginator("list_endpoints").paginate(**names):
        for item in page["Endpoints"]:
            name, model = item["EndpointName"], model_of_endpoint(target, item["EndpointName"])
            endpoint = describe_endpoint(target, name) if model or every_name else None
            if endpoint is None or not (tags := own_tags(target, endpoint["EndpointArn"])):
                continue
            status, config = endpoint["EndpointStatus"], endpoint["EndpointConfigName"]
            found.append({"name": name, "model": model, "status": status, "config": config, "tags": tags})
    return sorted(found, key=lambda endpoint: str(endpoint["name"]))


def running_jobs(target: Target, status: str = "InProgress") -> list[str]:
    """The names of this stack's training jobs that run now, or have another status."""
    pages = (
        target.client("sagemaker")
        .get_paginator("list_training_jobs")
        .paginate(StatusEquals=status, NameContains="training-job-")
    )
    jobs = [
        (item["TrainingJobName"], item["TrainingJobArn"]) for page in pages for item in page["TrainingJobSummaries"]
    ]
    return [name for name, arn in jobs if JOB_NAME.fullmatch(name) and own_tags(target, arn)]


# --- rollback ---------------------------------------------------------------------------------------


def approved_jobs(target: Target, model: str) -> list[str]:
    """The training jobs whose models are approved, newest first."""
    prefix = f"{APPROVED_PREFIX}{model}/"
    parts = (key.removeprefix(prefix).split("/") for key in list_keys(target, prefix))
    jobs = [part[0] for part in parts if part[1:] == ["model.tar.gz"] and JOB_NAME.fullmatch(part[0])]
    return sorted(jobs, reverse=True)


def deployments(target: Target, job: str, endpoint: str) -> list[Record]:
    """The deployment records of a job's model on an endpoint: one for each set of settings."""
    keys = list(list_keys(target, f"{DEPLOYMENT_PREFIX}{job}-"))
    found = [record for record in (read_record(target, key) for key in keys) if record is not None]
    return [record for record in found if record.data["endpoint"] == endpoint]


def job_of_config(config: str) -> str:
    """The training job in the name of an endpoint config that the deployment orchestrator made; else the name."""
    match = re.fullmatch(rf"({JOB_NAME.pattern})-[0-9a-f]{{8}}", config)
    return match[1] if match else config


class Rollback:
    """One model's way back: which model is served, which one is wanted, and what stands between.

    The deployment orchestrator deploys the newest approved model that is not withdrawn, rolled back or failed, and
    takes a withdrawn one off its endpoint. So going back is: withdraw everything that is newer than the wanted
    model, and wake the function. It makes what is missing, updates the endpoint with the deployment settings of the
    stack, checks the result and tells people.
    """

    def __init__(self, target: Target, model: str, to: str) -> None:
        """Looks at everything and changes nothing. Raises UsageError when there is no way."""
        self.target, self.model = target, model
        self.endpoint = target.endpoint_of(model)
        if read_record(target, PAUSED_KEY):
            raise UsageError("the pipeline is paused and has no endpoints: make resume first")
        self.jobs = approved_jobs(target, model)
        if not self.jobs:
            raise UsageError(
                f"MODEL={model}: no model of this name was ever approved (make status shows those there are)"
            )
        described = describe_endpoint(target, self.endpoint)
        if described is None:
            raise UsageError(f"MODEL={model} has no endpoint ({self.endpoint}), so there is nothing to go back from")
        if not own_tags(target, described["EndpointArn"]):
            raise UsageError(f"the endpoint {self.endpoint} was not made by this stack: it is left alone")
        self.status = str(described["EndpointStatus"])
        self.served = job_of_config(described["EndpointConfigName"])
        self.records: dict[str, list[Record]] = {}
        self.wanted = self.check(to) if to else self.choose()
        self.newer = [job for job in self.jobs if job > self.wanted]

    def of(self, job: str) -> list[Record]:
        """The records of a job, read once."""
        if job not in self.records:
            self.records[job] = deployments(self.target, job, self.endpoint)
        return self.records[job]

    def states(self, job: str) -> set[str]:
        return {record.state for record in self.of(job)}

    def withdrawn_for(self, job: str) -> str:
        """The job that a withdrawn one was to give way to; "" when it is not withdrawn."""
        return next((record.data["withdrawn"]["to"] for record in self.of(job) if record.state == "withdrawn"), "")

    def check(self, to: str) -> str:
        """Raises UsageError unless the job's model is an approved one of this model's."""
        if to not in self.jobs:
            raise UsageError(f"{to} is no approved model of {self.model}; there are: {', '.join(self.jobs[:5])}")
        return to

    def choose(self) -> str:
        """The job to go back to when nobody says: the newest that was confirmed before the served one."""
        if given_way := self.withdrawn_for(self.served):
            # An attempt that did not come to its end: it is finished, not begun anew from where it got to.
            return self.check(given_way)
        for job in self.jobs:
            if job > self.served and self.withdrawn_for(job) == self.served:
                return self.served
        if self.served not in self.jobs:
            raise UsageError(
                f"{self.endpoint} serves {self.served}, which this pipeline did not deploy: "
                f"say where to go back to with TO={self.jobs[0]} (or another approved model)"
            )
        older = [job for job in self.jobs if job < self.served]
        confirmed = [job for job in older if "confirmed" in self.states(job)]
        if confirmed:
            return confirmed[0]
        others = f"; approved, but not confirmed: {', '.join(older[:5])} (TO=<job> takes one)" if older else ""
        raise UsageError(f"MODEL={self.model}: there is no confirmed model before {self.served} to go back to{others}")

    def run(self, by: str, reason: str) -> None:
        """Go back, and say what was done. Raises UsageError when something is under way, Changed."""
        obstacles = [job for job in self.newer if not self.states(job) <= set(NOT_AGAIN) or not self.of(job)]
        if not obstacles and self.served == self.wanted and self.status in SETTLED:
            print(f"already so: {self.endpoint} serves {self.served}, and nothing newer will replace it by itself")
            older = [job for job in self.jobs if job < self.served]
            if older:
                print(f"to go back further: make rollback MODEL={self.model} TO={older[0]}")
            return
        if not obstacles and self.states(self.wanted) & set(OPEN):
            print(f"already under way: {self.wanted} is on its way to {self.endpoint}; an email says how it ended")
            return
        if self.status not in SETTLED:
            raise UsageError(f"{self.endpoint} is {self.status}: wait for the email that says how it ended, then again")
        for job in obstacles:
            if not self.of(job):
                raise UsageError(
                    f"{job} was approved just now and is about to be deployed: wait for its email, then again"
                )
            if self.states(job) & set(OPEN):
                raise UsageError(f"{job} is on its way to {self.endpoint}: wait for the email on it, then again")
        # The served one last: once it is withdrawn, what the function brings back is the wanted one.
        for job in sorted(obstacles, key=lambda job: (job == self.served, job)):
            self.withdraw(job, by, reason)
        if self.served != self.wanted:
            self.ask_for(self.wanted, by)

    def withdraw(self, job: str, by: str, reason: str) -> None:
        for record in self.of(job):
            if record.state not in NOT_AGAIN:
                withdrawn = {"by": by, "at": now().isoformat(), "reason": reason, "to": self.wanted}
                move(self.target, record, by, "withdrawn", withdrawn=withdrawn, reason=reason)
        print(f"withdrawn     {job}: it is not deployed again, whatever event arrives")

    def ask_for(self, job: str, by: str) -> None:
        for record in deployments(self.target, job, self.endpoint):
            # A confirmed model is what the function restores by itself, now that the one after it is withdrawn.
            if record.state not in OPEN and (record.state != "confirmed" or job > self.served):
                ask_again(self.target, record, by)
        invoke(self.target, self.target.functions["deployer"], approved_event(self.target, self.model, job))
        print(f"asked for     {job}")
        print(
            f"\nThe endpoint {self.endpoint} answers with {self.served} until the other model is up, commonly 5 to 10 "
            f"minutes\non AWS; emails say when that begins and how it ended. To take it back: "
            f"make rollback MODEL={self.model} TO={self.served}"
        )


# --- retrain ----------------------------------------------------------------------------------------


def retrain(target: Target, job: str, by: str) -> None:
    """Train again on the snapshot of a job that has ended, under a new name.

    A job has at most one successor, named in its retrained.json before anything is copied: whoever runs this
    again finds it there. Once the successor has ended as well, it is the one that is trained again.
    Raises UsageError when the job is unknown or has not ended.
    """
    given = job
    if not JOB_NAME.fullmatch(job):
        raise UsageError(f"JOB={job} is not the name of a training job of this pipeline: see make status")
    while (successor := read_record(target, f"{SNAPSHOT_PREFIX}{job}/retrained.json")) is not None:
        if not exists(target, f"{SNAPSHOT_PREFIX}{successor.data['job']}/source.json"):
            break
        job = successor.data["job"]
    paused = read_record(target, PAUSED_KEY) is not None
    then = "the pipeline is paused: it starts after make resume" if paused else "an email says when it starts"
    if successor is None:
        source = read_record(target, f"{SNAPSHOT_PREFIX}{job}/source.json")
        if source is None:
            refused = read_record(target, f"data/rejected/{job}.json")
            why = f"its file was refused: {refused.data['reason']}" if refused else "there is no snapshot of its data"
            raise UsageError(f"JOB={job} cannot be trained again: {why}; upload a file instead")
        ended = (f"models/decisions/{job}.json", f"{SNAPSHOT_PREFIX}{job}/given_up.json")
        if not any(exists(target, key) for key in ended):
            if job == given:
                raise UsageError(f"JOB={job} has not ended yet: see make status and make logs JOB={job}")
            invoke(target, target.functions["training"], SWEEP)
            print(f"already so: {given} is being trained again as {job}; {then}\nfollow it: make logs JOB={job}")
            return
        if not exists(target, f"{SNAPSHOT_PREFIX}{job}/data.csv"):
            raise UsageError(
                f"JOB={job}: its data is gone (snapshots are kept for a limited time): upload a file instead"
            )
        moment = now()
        digest = hashlib.sha256(json.dumps([job, moment.isoformat()]).encode()).hexdigest()[:8]
        name = f"training-job-{moment:%Y%m%d-%H%M%S}-{digest}"
        data = {"schema": SCHEMA, "job": name, "by": by, "at": moment.isoformat()}
        successor = write_record(target, f"{SNAPSHOT_PREFIX}{job}/retrained.json", data, None)
    new = str(successor.data["job"])
    copy_snapshot(target, job, new)
    invoke(target, target.functions["training"], SWEEP)
    print(f"{job} is trained again, on the same data, as {new}; {then}\nfollow it: make logs JOB={new}")


def copy_snapshot(target: Target, job: str, new: str) -> None:
    """Copy a job's data under a new job's name. source.json comes last: with it, the snapshot is whole."""
    source = read_record(target, f"{SNAPSHOT_PREFIX}{job}/source.json")
    if source is None:
        raise Changed(f"{SNAPSHOT_PREFIX}{job}/source.json")
    # Any size, inside S3. Tags would take permissions that nothing needs.
    target.client("s3").copy(
        {"Bucket": target.bucket, "Key": f"{SNAPSHOT_PREFIX}{job}/data.csv"},
        target.bucket,
        f"{SNAPSHOT_PREFIX}{new}/data.csv",
        ExtraArgs={"TaggingDirective": "REPLACE"},
        Config=COPY_IN_PARTS,
    )
    record = source.data | {"job": new, "retrain_of": job}
    target.client("s3").put_object(
        Bucket=target.bucket,
        Key=f"{SNAPSHOT_PREFIX}{new}/source.json",
        Body=json.dumps(record, indent=1).encode(),
        ContentType="application/json",
    )


# --- pause and resume -------------------------------------------------------------------------------


def confirm(target: Target, yes: bool, beforehand: str = "YES=1") -> None:
    """Ask for the bucket's name. Raises UsageError unless it was typed, or agreed to beforehand."""
    if yes:
        return
    try:
        typed = input(f"Type the bucket's name, {target.bucket}, to go on: ")
    except EOFError:
        print()
        raise UsageError(
            f"nobody is there to confirm: nothing was changed ({beforehand} confirms for a script)"
        ) from None
    if typed.strip() != target.bucket:
        raise UsageError(f"{typed.strip()!r} is not {target.bucket}: nothing was changed")


def pause(target: Target, by: Callable[[], str], yes: bool, stop_jobs: bool) -> int:
    """Stop everything that costs money without being asked for, and remember what was live; the exit status.

    control/paused.json is written before anything is deleted: from then on the functions start nothing, and
    resume knows what to restore.
    """
    record = read_record(target, PAUSED_KEY)
    endpoints = own_endpoints(target)
    jobs = running_jobs(target)
    to_delete = [endpoint for endpoint in endpoints if endpoint["status"] != "Deleting"]
    if record is not None and not to_delete and not (stop_jobs and jobs):
        print(f"already paused, since {record.data['at'][:16]} by {record.data['by']}")
        tell_running(jobs)
        return 0
    print("From now on: no new training jobs, no deployments, no sweep, until make resume.")
    for endpoint in to_delete:
        print(f"  endpoint {endpoint['name']} ({endpoint['config']}) is deleted: it does not answer until make resume")
    if stop_jobs:
        print("".join(f"  {job} is stopped; make retrain JOB={job} trains again\n" for job in jobs), end="")
    confirm(target, yes)
    note_pause(target, record, to_delete, by)
    busy = [endpoint["name"] for endpoint in to_delete if not delete_endpoint(target, endpoint["name"])]
    if stop_jobs:
        for job in jobs:
            stop_job(target, job)
    print("paused; make resume brings back what was live")
    if not stop_jobs:
        tell_running(jobs)
    if busy:
        print(
            f"{', '.join(busy)}: just being changed, and cannot be deleted before that ends: run make pause again then"
        )
    return 1 if busy else 0


def note_pause(target: Target, record: Record | None, to_delete: list[dict[str, Any]], by: Callable[[], str]) -> None:
    """Write down that the pipeline is paused, and which endpoints resume is to bring back. Raises Changed."""
    live = {endpoint["name"]: endpoint for endpoint in (record.data["endpoints"] if record else [])}
    for endpoint in to_delete:
        live[endpoint["name"]] = {name: endpoint[name] for name in ("name", "model", "config", "tags")}
    if record is None:
        data = {"schema": SCHEMA, "by": by(), "at": now().isoformat(), "endpoints": list(live.values())}
        write_record(target, PAUSED_KEY, data, None)
    elif list(live.values()) != record.data["endpoints"]:
        write_record(target, PAUSED_KEY, record.data | {"endpoints": list(live.values())}, record)


def tell_running(jobs: list[str]) -> None:
    if jobs:
        print(f"{len(jobs)} training jobs run on to their end, at most some hours (make pause STOP_JOBS=1 stops them):")
    for job in jobs:
        print(f"  {job}")


def delete_endpoint(target: Target, name: str) -> bool:
    """Delete an endpoint; False when it cannot be deleted just now, because it is being changed."""
    try:
        target.client("sagemaker").delete_endpoint(EndpointName=name)
    except ClientError as error:
        if message(error).startswith("Cannot update in-progress endpoint"):
            return False
        if not is_missing(error):
            raise
    return True


def stop_job(target: Target, job: str) -> None:
    """Stop a training job. One that has ended meanwhile answers with a ValidationException (StopTrainingJob)."""
    try:
        target.client("sagemaker").stop_training_job(TrainingJobName=job)
    except ClientError as error:
        if pipeline.error_code(error) != "ValidationException":
            raise


@dataclass
class Restored:
    """What became of the endpoints that were live before the pause."""

    again: list[dict[str, Any]] = field(default_factory=list)  # left to the deployment orchestrator
    lost: list[str] = field(default_factory=list)


def resume(target: Target, by: Callable[[], str]) -> int:
    """Bring back what was live before the pause, then let the functions go on; the exit status.

    control/paused.json goes last: until then the command can be run again.
    """
    paused = read_record(target, PAUSED_KEY)
    restored, name = Restored(), by()
    for endpoint in paused.data["endpoints"] if paused else []:
        restore(target, endpoint, name, restored, after="a pause")
    if paused:
        target.client("s3").delete_object(Bucket=target.bucket, Key=PAUSED_KEY)
    # Also when it is not paused: an attempt before this one may have ended just here.
    for function in target.functions.values():
        invoke(target, function, SWEEP)
    wake_for(target, restored)
    print(
        "resumed: what was uploaded or approved meanwhile is taken up now (make status)"
        if paused
        else "not paused: there is nothing to resume (make status)"
    )
    return 1 if restored.lost else 0


def bring_back(target: Target, model: str, by: str) -> int:
    """Make an endpoint anew that somebody deleted by hand, as it was; the exit status. Raises UsageError.

    The deployment orchestrator then takes it on to the newest approved model, where that is another one.
    """
    name = target.endpoint_of(model)
    if read_record(target, PAUSED_KEY):
        raise UsageError("the pipeline is paused: make resume, without MODEL, brings everything back")
    jobs = approved_jobs(target, model)
    if not jobs:
        raise UsageError(f"MODEL={model}: no model of this name was ever approved (make status shows those there are)")
    restored = Restored()
    for job in jobs:
        records = deployments(target, job, name)
        states = {record.state for record in records}
        record = next((record for record in records if record.state in ("confirmed", *OPEN)), None)
        if not records or "withdrawn" in states or (record is None and states & {*NOT_AGAIN, "removed"}):
            continue
        if record is None:
            # It was approved, and waits for whoever deleted the endpoint; what was live before it comes first.
            restored.again.append({"model": model, "config": records[0].data["config"], "records": records})
            continue
        tags = {"Project": target.outputs["project_name"], "Stack": target.bucket, "Model": model, "TrainingJob": job}
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        endpoint = {"name": name, "model": model, "config": record.data["config"], "tags": listed}
        restored.again.clear()
        restore(target, endpoint, by, restored, after="it was deleted by hand")
        break
    else:
        if not restored.again:
            raise UsageError(f"MODEL={model} has no model that may be deployed (make status): upload data for it")
        for record in restored.again[0]["records"]:
            ask_again(target, record, by, endpoint_last_modified=None, deleted_by="pipeline")
        print(f"asked for      {name}; an email says how it goes on")
    wake_for(target, restored)
    return 1 if restored.lost else 0


def wake_for(target: Target, restored: Restored) -> None:
    """Have the deployment orchestrator try what could not be restored just now."""
    for endpoint in restored.again:
        event = approved_event(target, endpoint["model"], job_of_config(endpoint["config"]))
        invoke(target, target.functions["deployer"], event)


def restore(target: Target, endpoint: Mapping[str, Any], by: str, restored: Restored, after: str) -> None:
    """Create an endpoint with the config that it had, and have the deployment orchestrator tell how it ended.

    endpoint: {"name", "model", "config", "tags"}; after: what it comes back from, for the email on it.
    Raises UsageError while the endpoint is still being deleted.
    """
    name, config = endpoint["name"], endpoint["config"]
    record = read_record(target, f"{DEPLOYMENT_PREFIX}{config}.json")
    # What was withdrawn or rolled back, and live nevertheless, comes back as it was: live, and not to be tried again.
    follow = record is not None and record.state not in NOT_AGAIN
    present = describe_endpoint(target, name)
    if present is not None and present["EndpointStatus"] == "Deleting":
        raise UsageError(f"{name} is still being deleted, nothing is lost: run make resume again in a minute")
    if present is not None:
        print(f"there already  {name}")
        if record is not None and record.state == "requested" and record.data["by"] == by:
            move(target, record, by, "started", started_at=now().isoformat())
        return
    if follow and record is not None:
        begun: dict[str, Any] = {"endpoint_last_modified": None, "previous_config": None, "reason": "", "emails": {}}
        begun["deleted_by"] = ""
        record = move(target, record, by, "requested", **begun, restores=after)
    try:
        target.client("sagemaker").create_endpoint(
            EndpointName=name, EndpointConfigName=config, Tags=list(endpoint["tags"])
        )
    except ClientError as error:
        if pipeline.error_code(error) != "ResourceLimitExceeded" and not is_missing(error):
            raise
        if follow and record is not None:
            # As if the pipeline itself had deleted it: it was no person who did not want it any more.
            ask_again(target, record, by, deleted_by="pipeline")
            restored.again.append(dict(endpoint))
            print(f"not yet        {name}: {message(error)} The deployment orchestrator tries again.")
        else:
            restored.lost.append(name)
            print(f"NOT RESTORED   {name}: {message(error)}")
        return
    if follow and record is not None:
        move(target, record, by, "started", started_at=now().isoformat())
    print(f"created again  {name} ({config})" + ("; an email says when it answers" if follow else ""))


# --- redrive ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailedEvent:
    """A message of the failed-events queue: what to invoke with what, and what it was about, for people.

    identities: by what the same event is known when it comes back: its own id, the id of the request that failed.
    """

    function: str
    payload: dict[str, Any]
    text: str
    identities: set[str]


def parse_failed(target: Target, sqs_message: Mapping[str, Any]) -> FailedEvent:
    """Read a message of either shape. Raises LeftAlone, saying what is odd about it.

    EventBridge's dead letter: the event, with the attributes RULE_ARN, TARGET_ARN, ERROR_CODE, ERROR_MESSAGE
    (EventBridge user guide, "Using dead-letter queues"). Lambda's record of a failed asynchronous invocation:
    requestContext, requestPayload, responsePayload (Lambda developer guide, "Capturing records").
    """
    try:
        body = json.loads(sqs_message["Body"])
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise LeftAlone("its body is not a JSON object")
    attributes = {
        name: value.get("StringValue", "") for name, value in sqs_message.get("MessageAttributes", {}).items()
    }
    if "TARGET_ARN" in attributes:
        function = own_function(target, attributes["TARGET_ARN"])
        # A schedule's own event in place of the constant text that its target gets.
        payload = dict(SWEEP) if body.get("source") == "aws.events" else body
        why = f"EventBridge could not deliver it: {attributes.get('ERROR_CODE', 'unknown reason')}"
        return FailedEvent(function, payload, f"{describe_event(body)} ({why})", event_ids(function, body))
    context, event = body.get("requestContext"), body.get("requestPayload")
    if not isinstance(context, dict) or not isinstance(event, dict):
        raise LeftAlone("it is neither an event that EventBridge could not deliver nor Lambda's record of a failure")
    function = own_function(target, str(context.get("functionArn", "")))
    request_id = str(context.get("requestId", ""))
    if not request_id:
        raise LeftAlone("Lambda's record lacks the requestId")
    # Sent again before, and failed again: what counts is the request that failed first. Its leases are still its own.
    while isinstance(event.get("event"), dict) and "redrive_of" in event:
        request_id, event = str(event["redrive_of"]), event["event"]
    response = body.get("responsePayload")
    error = response.get("errorMessage", "") if isinstance(response, dict) else ""
    why = f"failed: {error or context.get('condition', 'unknown reason')}"
    payload = {"redrive_of": request_id, "event": event}
    identities = {request_id} | event_ids(function, event)
    return FailedEvent(function, payload, f"{describe_event(event)} ({why:.200})", identities)


def event_ids(function: str, event: Mapping[str, Any]) -> set[str]:
    """The event's own id, for one function: an event may fail in several."""
    return {f"{function} {event['id']}"} if event.get("id") else set()


def own_function(target: Target, arn: str) -> str:
    """The name of one of this stack's functions from its ARN, qualified or not. Raises LeftAlone for any other."""
    partition, _, region, account = str(target.outputs["topic_arn"]).split(":")[1:5]
    prefix = f"arn:{partition}:lambda:{region}:{account}:function:"
    name = arn.removeprefix(prefix).split(":")[0] if arn.startswith(prefix) else ""
    if name not in target.functions.values():
        raise LeftAlone(f"it is for {arn or 'no function'}, which is none of this stack's")
    return name


def describe_event(event: Mapping[str, Any]) -> str:
    """An event in a few words: its kind, and the thing that it is about."""
    detail = event.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    thing = detail.get("object")
    key = thing.get("key") if isinstance(thing, dict) else None
    about = key or detail.get("TrainingJobName") or detail.get("EndpointName") or ""
    return f"{event.get('detail-type') or event.get('source') or 'event'} {about}".strip()


def redrive(target: Target) -> int:
    """Send every failed event to its function again; the exit status: 1 when messages are left in the queue.

    A message is deleted once Lambda has accepted its event: interrupted in between, the event is sent twice,
    which is harmless. What fails again comes back to the queue, and is left there for the next time.
    """
    sqs, url = target.client("sqs"), target.outputs["failure_queue_url"]
    short = {function: name for name, function in target.functions.items()}
    sent: set[str] = set()
    done: set[str] = set()
    left: dict[str, str] = {}
    while True:
        answer = sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            VisibilityTimeout=IN_HAND_SECONDS,
            WaitTimeSeconds=POLL_SECONDS,
        )
        messages = answer.get("Messages", [])
        if not messages:
            break
        for item in messages:
            if item["MessageId"] in done:
                # SQS delivers at least once, now and then a deleted message too.
                continue
            try:
                failed = parse_failed(target, item)
                if failed.identities & sent:
                    raise LeftAlone(f"it was sent again just now, and failed again: {failed.text}")
            except LeftAlone as reason:
                if item["MessageId"] not in left:
                    print(f"left        message {item['MessageId']}: {reason}")
                left[item["MessageId"]] = item["ReceiptHandle"]
                continue
            invoke(target, failed.function, failed.payload)
            sqs.delete_message(QueueUrl=url, ReceiptHandle=item["ReceiptHandle"])
            sent |= failed.identities
            done.add(item["MessageId"])
            print(f"sent again  {short[failed.function]:<10} {failed.text}")
    for handle in left.values():
        give_back(sqs, url, handle)
    if not done and not left:
        print("the queue of failed events is empty: nothing to send again")
    else:
        print(f"{len(done)} sent again, {len(left)} left" + ("; make logs shows what comes of them" if done else ""))
    return 1 if left else 0


def give_back(sqs: Any, url: str, handle: str) -> None:
    """Make a message visible to others at once, unless it has become so by itself."""
    try:
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
    except ClientError as error:
        if not pipeline.error_code(error).endswith("MessageNotInflight"):
            raise


# --- the command line -------------------------------------------------------------------------------


def run(target: Target, options: argparse.Namespace) -> int:
    """Carry out the command; the exit status. Raises UsageError."""
    if options.command in ("rollback", "retrain", "resume"):
        check_functions(target)
    if options.command == "rollback":
        Rollback(target, pipeline.model_name(options.model), options.to).run(who(target), options.reason)
    elif options.command == "retrain":
        retrain(target, options.job, who(target))
    elif options.command == "pause":
        return pause(target, lambda: who(target), options.yes, options.stop_jobs)
    elif options.command == "resume" and options.model:
        return bring_back(target, pipeline.model_name(options.model), who(target))
    elif options.command == "resume":
        return resume(target, lambda: who(target))
    else:
        return redrive(target)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    environment = os.environ
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=environment.get("TARGET", ""))
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("rollback", help="back to the previous confirmed model; it sticks")
    command.add_argument("--model", default=environment.get("MODEL", ""))
    command.add_argument("--to", default=environment.get("TO", ""), help="training job of the model to go back to")
    command.add_argument("--reason", default=environment.get("REASON", ""), help="kept in the record")
    command = commands.add_parser("retrain", help="train again on the data of a job that has ended")
    command.add_argument("--job", default=environment.get("JOB", ""))
    command = commands.add_parser("pause", help="no new jobs, no endpoints, until resume")
    command.add_argument("--yes", action="store_true", default=pipeline.flag("YES"), help="do not ask")
    command.add_argument("--stop-jobs", action="store_true", default=pipeline.flag("STOP_JOBS"))
    command = commands.add_parser("resume", help="bring back what was live before the pause, and go on")
    command.add_argument("--model", default=environment.get("MODEL", ""), help="an endpoint that was deleted by hand")
    commands.add_parser("redrive", help="send the failed events again")
    options = parser.parse_args(arguments)

    def checked(target: Target) -> int:
        return run(target, options)

    if options.command == "retrain" and not options.job:
        print(
            "error: say which training job: make retrain JOB=training-job-... (make status shows them)", file=sys.stderr
        )
        return 2
    if options.command == "rollback" and not options.model:
        print("error: say which model: make rollback MODEL=default [TO=training-job-...]", file=sys.stderr)
        return 2
    return pipeline.on_stack(options.target, checked)


if __name__ == "__main__":
    sys.exit(main())
