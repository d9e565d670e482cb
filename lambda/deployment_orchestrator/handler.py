"""Deployment orchestrator: brings a model's endpoint to the newest approved model, one step at a time.

Triggers, all through EventBridge: S3 "Object Created" under models/approved/, SageMaker "Endpoint State Change", and a
schedule ({"source": "sweep"}: every model in turn).

Whatever the event, it looks at the world: which model is the newest approved one, what the endpoint serves, what the
deployment records say was asked for. Then it takes the next step, emails people and returns.

It never waits for an endpoint, never touches one that is not this stack's, and never retries a model that was rolled
back. It never undoes what a person did: an endpoint that somebody deleted stays deleted.

Every deployment has a record, models/deployments/<endpoint config>.json (Deployment). The states that it goes through
are listed in STATES. Every change is a conditional write, so the record is the lock as well.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import random
import re
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

VARIANT_NAME = "AllTraffic"
# Enough to see whether a gzip tar begins here and has a file in it.
ARTIFACT_HEAD_BYTES = 64 * 1024
ARTIFACT_HEAD_UNPACKED_BYTES = 1024 * 1024
# SageMaker's reads are eventually consistent (CreateEndpoint reference): a new endpoint may not be visible at once.
VISIBLE_SECONDS = 60
# How many approved models are looked at, newest first: bounds what one invocation reads.
LOOK_BACK_MODELS = 50
# How many steps one invocation takes for one model; the sweep continues from there.
STEPS_MAX = 20

# The same weights on another machine, with other kernels or another padding, move a score by 0.001, at half
# precision by 0.01. Other weights move most scores by much more.
SCORE_TOLERANCE = 0.05
# Labels whose scores nearly tie may swap places within that tolerance. With the right weights, few do.
TIES_MAX_SHARE = 0.1
CHECK_ATTEMPTS = 3
CHECK_PAUSE_SECONDS = 2.0
# A container has 60 seconds to answer (developer guide, inference code). Three attempts fit the function's 300.
INVOKE_READ_SECONDS = 65
# For this long after the endpoint settled, timeouts and server errors may mean that the model is still starting, and
# a denied call that a new policy has not spread yet: the function fails, and is retried.
CHECK_PATIENCE_SECONDS = 10 * 60


class State(NamedTuple):
    """A state of a deployment: what it means, and where this function may take it from there."""

    meaning: str
    next: tuple[str, ...]


# People's commands may move a record from any state: make rollback to "withdrawn" (or "waiting", for the model to go
# back to), make resume to "waiting" or "requested".
STATES = {
    "requested": State("written before SageMaker is asked: somebody is doing that", ("started", "waiting", "failed")),
    "started": State("SageMaker works on it", ("confirmed", "rolled back", "failed", "superseded", "held")),
    "waiting": State("asked at a bad moment, or the attempt died: retried", ("requested", "started", "held")),
    "held": State("somebody deleted the endpoint: waits for make resume", ("requested", "started")),
    "confirmed": State("it was in service and answered as in training", ("requested", "removed")),
    "superseded": State("somebody else's update overtook it", ("requested", "removed")),
    "rolled back": State("it did not come up, or answered differently than in training: never again", ()),
    "failed": State("it cannot be deployed: never again", ()),
    "withdrawn": State("a person said no to the model: never again", ()),
    "removed": State("its model and endpoint config were cleaned up", ()),
}
OPEN = ("requested", "started")
UNSETTLED = (*OPEN, "waiting", "held")
NOT_AGAIN = ("rolled back", "failed", "withdrawn", "removed")
# What is taken off an endpoint that serves it.
BAD = ("rolled back", "failed", "withdrawn")
# What step() returns when there may be more to do at once.
AGAIN = "look again"


class CannotDeploy(Exception):
    """The model cannot be deployed. state: "waiting" when that may change, else "failed"; the text is for people."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state


class EndpointBusy(Exception):
    """Somebody else is changing the endpoint, or has just deleted it: the event that ends that comes back here."""


@dataclass(frozen=True)
class Settings:
    """What the function reads from its environment, once. Memory in MB."""

    bucket: str
    project: str
    topic_arn: str
    endpoint_name: str
    model_role_arn: str
    inference_image: str
    endpoint_type: str
    serverless_memory_mb: int
    serverless_max_concurrency: int
    endpoint_instance_type: str
    endpoint_instance_count: int
    keep_models: int
    deployment_policy: dict[str, Any]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings. Raises ConfigError naming the variable that is missing or malformed."""
        endpoint_type = required(env, "ENDPOINT_TYPE")
        if endpoint_type not in ("serverless", "instance"):
            raise ConfigError(f"ENDPOINT_TYPE must be serverless or instance, not {endpoint_type!r}")
        return cls(
            bucket=required(env, "BUCKET"),
            project=required(env, "PROJECT"),
            topic_arn=required(env, "TOPIC_ARN"),
            endpoint_name=required(env, "ENDPOINT_NAME"),
            model_role_arn=required(env, "MODEL_ROLE_ARN"),
            inference_image=required(env, "INFERENCE_IMAGE"),
            endpoint_type=endpoint_type,
            serverless_memory_mb=positive_int(env, "SERVERLESS_MEMORY_MB"),
            serverless_max_concurrency=positive_int(env, "SERVERLESS_MAX_CONCURRENCY"),
            endpoint_instance_type=required(env, "ENDPOINT_INSTANCE_TYPE"),
            endpoint_instance_count=positive_int(env, "ENDPOINT_INSTANCE_COUNT"),
            keep_models=positive_int(env, "KEEP_MODELS"),
            deployment_policy=json_object(env, "DEPLOYMENT_POLICY"),
        )

    @property
    def capacity(self) -> str:
        """What an endpoint runs on, in words."""
        if self.endpoint_type == "serverless":
            return f"serverless, {self.serverless_memory_mb} MB, up to {self.serverless_max_concurrency} at a time"
        return f"{self.endpoint_instance_count} x {self.endpoint_instance_type}"

    def endpoint_of(self, model: str) -> str:
        """The name of a model's endpoint."""
        return self.endpoint_name if model == DEFAULT_MODEL else f"{self.endpoint_name}-{model}"

    def model_of(self, endpoint: str) -> str | None:
        """The model that an endpoint's name stands for; None when it is no name of this stack's."""
        if endpoint == self.endpoint_name:
            return DEFAULT_MODEL
        model = endpoint.removeprefix(f"{self.endpoint_name}-")
        return model if model != endpoint and model != DEFAULT_MODEL and MODEL_NAME.fullmatch(model) else None


# --- what comes in ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Approved:
    """An approved model artifact as the listing shows it; size in bytes."""

    model: str
    job: str
    key: str
    etag: str
    size: int


def model_of_event(event: Mapping[str, Any], config: Settings) -> str | None:
    """The model whose endpoint the event concerns; None when it is not this stack's. Raises EventError."""
    detail = field(event, "detail", dict)
    if event.get("source") == "aws.s3":
        if field(field(detail, "bucket", dict), "name", str) != config.bucket:
            return None
        match = APPROVED_KEY.fullmatch(field(field(detail, "object", dict), "key", str))
        return match["model"] if match else None
    return config.model_of(field(detail, "EndpointName", str))


def approved_models(bucket: str, model: str) -> list[Approved]:
    """A model's approved artifacts, newest first; other names under the prefix are logged and ignored."""
    found = []
    pages = client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{APPROVED_PREFIX}{model}/")
    for item in (item for page in pages for item in page.get("Contents", [])):
        match = APPROVED_KEY.fullmatch(item["Key"])
        if match is None:
            log.warning("not the model artifact of a training job, ignored", extra={"key": item["Key"]})
            continue
        found.append(Approved(model, match["job"], item["Key"], item["ETag"].strip('"'), item["Size"]))
    return sorted(found, key=lambda artifact: artifact.job, reverse=True)


def describe_endpoint(name: str) -> dict[str, Any] | None:
    """The endpoint as it is now; None when there is none."""
    try:
        answer: dict[str, Any] = client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return answer


def last_modified(endpoint: Mapping[str, Any] | None) -> str | None:
    return endpoint["LastModifiedTime"].astimezone(UTC).isoformat() if endpoint else None


def is_missing(error: ClientError) -> bool:
    """Whether SageMaker says that the thing does not exist: a ValidationException with a text of its own."""
    return error_code(error) == "ValidationException" and error_message(error).startswith("Could not find")


def is_ours(config: Settings, endpoint: Mapping[str, Any]) -> bool:
    """Whether this stack made the endpoint: another stack in the account may use the same name."""
    tags = client("sagemaker").list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
    return {"Key": "Stack", "Value": config.bucket} in tags


# --- deployment records -----------------------------------------------------------------------------


class Email(TypedDict):
    """That an email about a deployment is being sent (done: false; a lease), or was sent; by: the request id."""

    by: str
    at: str
    done: bool


class Deployment(TypedDict):
    """A deployment record: what was asked of an endpoint, and what became of it. Times are ISO 8601, UTC.

    This function writes it; make rollback and make resume change it; make status and the training orchestrator (which
    looks for the live model) read it.
    """

    schema: int
    config: str  # the endpoint config, which also names the record
    endpoint: str
    model: str
    model_name: str  # of the SageMaker model
    job: str
    artifact: dict[str, Any]  # key, etag, size in bytes
    requests: dict[str, Any]  # model, config: the CreateModel and CreateEndpointConfig requests
    state: str  # one of STATES
    by: str  # who changed the record last: the request id, or the ARN of a person
    at: str  # when
    reason: str  # why it is in its state, in words; while it is waiting or requested, what the last attempt met
    tries: int  # attempts that died or, up to EAGER_TRIES, were refused
    endpoint_last_modified: str | None  # of the endpoint as it was before SageMaker was asked
    previous_config: str | None  # what the endpoint served then
    restores: str  # after what the model comes back, in words; "" when it is new
    started_at: str  # when SageMaker began; "" when it did not
    ended: str | None  # the endpoint's last-modified time when SageMaker had ended; "" before
    checked: str  # what became of the golden rows, in words
    cleaned: bool  # whether older models were cleaned up after it was confirmed
    deleted_by: str  # "pipeline" when the pipeline deletes the endpoint that this deployment led to
    emails: dict[str, Email]  # what people were emailed about it
    gone: bool  # whether its model and endpoint config were deleted
    withdrawn: NotRequired[dict[str, str]]  # make rollback: by, at, reason, to (the job to go back to)


@dataclass
class Record:
    """A deployment record with the ETag under which it was read."""

    data: Deployment
    etag: str

    @property
    def state(self) -> str:
        return self.data["state"]

    @property
    def config(self) -> str:
        """The endpoint config whose deployment this is."""
        return self.data["config"]

    def emailed(self, what: str) -> bool:
        """Whether people were emailed about this."""
        return what in self.data["emails"] and self.data["emails"][what]["done"]

    def leased_by_another(self, request_id: str) -> bool:
        """Whether another invocation, which may still be alive, asks SageMaker or sends an email for this record."""
        leases: list[Mapping[str, Any]] = [email for email in self.data["emails"].values() if not email["done"]]
        if self.state == "requested":
            leases.append({"by": self.data["by"], "at": self.data["at"]})
        return any(leased_by_another(lease, request_id) for lease in leases)


def record_key(config_name: str) -> str:
    return f"{DEPLOYMENT_PREFIX}{config_name}.json"


def read_record(bucket: str, key: str) -> Record | None:
    """The deployment record under a key; None where there is none."""
    data, etag = read_json(bucket, key)
    return None if data is None or etag is None else Record(up_to_date(data), etag)


def records_of(bucket: str, job: str, endpoint: str) -> list[Record]:
    """The deployment records of a training job's model on an endpoint: one for each set of settings."""
    found = (read_record(bucket, key) for key in list_keys(bucket, f"{DEPLOYMENT_PREFIX}{job}-"))
    return [record for record in found if record is not None and record.data["endpoint"] == endpoint]


def up_to_date(old: Mapping[str, Any]) -> Deployment:
    """A record in today's shape. Schema 1 had more states, a flag of its own for each email, and `deleted` for who did.

    Where such a record has an email under way, it is not known which: all those that it may be are leased.
    """
    if old["schema"] == SCHEMA:
        return cast(Deployment, old)
    state, reason, deleted = old["state"], old["reason"], old.get("deleted")
    held = state == "waiting" and reason == "the endpoint was deleted by hand"
    outage = old.get("outage") or {"since": "", "told": None}
    # What was emailed: True; what is being emailed: False; what was not: None.
    sent = {
        "started": True if old.get("replaces") == "create" else None,
        "confirmed": False if state == "settling" else None,
        "deleted by hand": old.get("told") != "telling"
        if held
        else {"somebody": True, "telling": False}.get(str(deleted)),
        "endpoint failed": False if deleted == "telling" else None,
        f"waiting: {cause(reason)}": True if state == "waiting" and reason and not held else None,
        f"out of service since {outage['since']}": outage["told"],
    }
    new = {"ended": "", "checked": "", "cleaned": True, "gone": False, **old}
    new["emails"] = {
        what: {"by": old["by"], "at": old["at"], "done": done} for what, done in sent.items() if done is not None
    }
    new |= {"schema": SCHEMA, "tries": min(old["tries"], EAGER_TRIES)}
    new["deleted_by"] = "pipeline" if deleted == "pipeline" else ""
    if held or state == "settling":
        new["state"] = "held" if held else "started"
    elif state == "removed":
        new["state"] = old["was"] if old.get("was") in BAD else "removed"
    elif state == "requested" and old.get("replaces") == "delete":
        new["state"] = "waiting"
    if new["restores"] and " " not in new["restores"]:
        new["restores"] = back_after(old["restores"], old["config"])
    return cast(Deployment, {name: value for name, value in new.items() if name in Deployment.__annotations__})


def write_record(config: Settings, data: Deployment, replaced: Record | None) -> Record | None:
    """Write a record in place of the one that was read, or of none; None when somebody else changed it since.

    Raises ValueError on a move that STATES does not have.
    """
    if replaced is not None and data["state"] not in (replaced.state, *STATES[replaced.state].next):
        raise ValueError(f"deployment {data['config']}: {replaced.state!r} cannot become {data['state']!r} (STATES)")
    condition = {"IfMatch": replaced.etag} if replaced else {"IfNoneMatch": "*"}
    etag = put_json(config.bucket, record_key(data["config"]), data, **condition)
    return None if etag is None else Record(data, etag)


def move(config: Settings, record: Record, request_id: str, state: str, **more: Any) -> bool:
    """Change a record, and take it to a state that may follow or stay; False when somebody else changed it."""
    data = cast(Deployment, record.data | more | {"state": state, "by": request_id, "at": now().isoformat()})
    written = write_record(config, data, record)
    if written is None:
        return False
    record.data, record.etag = written.data, written.etag
    return True


def newest_started(records: Iterable[Record]) -> Record | None:
    """The record whose deployment SageMaker began last."""
    started = (record for record in records if record.data["started_at"])
    return max(started, key=lambda record: record.data["started_at"], default=None)


# --- the steps --------------------------------------------------------------------------------------


def reconcile_all(config: Settings, request_id: str) -> str:
    """Reconcile every model that has approved artifacts, which finishes what a lost event left; returns how many.

    One model's error does not keep the others waiting: the first error is raised after the last model.
    """
    pages = client("s3").get_paginator("list_objects_v2")
    prefixes = [
        str(item["Prefix"])
        for page in pages.paginate(Bucket=config.bucket, Prefix=APPROVED_PREFIX, Delimiter="/")
        for item in page.get("CommonPrefixes", [])
    ]
    models = [prefix.removeprefix(APPROVED_PREFIX).rstrip("/") for prefix in prefixes]
    errors: list[Exception] = []
    for model in (model for model in models if MODEL_NAME.fullmatch(model)):
        try:
            outcome = reconcile(config, model, request_id)
        except (BotoCoreError, ClientError) as error:
            log.exception("sweep: model not reconciled", extra={"model": model})
            errors.append(error)
        else:
            log.info("endpoint swept: %s", outcome, extra={"model": model, "endpoint": config.endpoint_of(model)})
    if errors:
        raise errors[0]
    return f"{len(models)} models swept"


def reconcile(config: Settings, model: str, request_id: str) -> str:
    """Bring a model's endpoint as far towards the newest approved model as it goes now; returns that in a word."""
    for _ in range(STEPS_MAX):
        outcome = step(config, model, request_id)
        if outcome != AGAIN:
            return outcome
    return "more to do: left to the next event or sweep"


def step(config: Settings, model: str, request_id: str) -> str:
    """Take one step towards the newest approved model on the model's endpoint; returns it in a word, or AGAIN."""
    artifacts = approved_models(config.bucket, model)
    if not artifacts:
        return "nothing approved"
    name = config.endpoint_of(model)
    endpoint = describe_endpoint(name)
    considered = []
    for artifact in artifacts[:LOOK_BACK_MODELS]:
        found = records_of(config.bucket, artifact.job, name)
        for record in found:
            if record.state in UNSETTLED and settle(config, record, endpoint, request_id):
                # Whatever arrived meanwhile found this deployment open and left: look again on its behalf.
                return AGAIN
        considered.append((artifact, found))
        if any(record.state == "confirmed" for record in found):
            break
    records = [record for _, found in considered for record in found]
    last = newest_started(records)
    if endpoint is None:
        if any(record.state in OPEN for record in records):
            return "under way"
        outcome = without_endpoint(config, considered, last, request_id)
    else:
        outcome = with_endpoint(config, considered, records, last, endpoint, request_id)
    if outcome in ("waiting", "busy") and approved_models(config.bucket, model)[0].job > artifacts[0].job:
        # It was approved while this one was in hand, and left to us.
        return AGAIN
    return outcome


def with_endpoint(
    config: Settings,
    considered: Sequence[tuple[Approved, list[Record]]],
    records: Sequence[Record],
    last: Record | None,
    endpoint: Mapping[str, Any],
    request_id: str,
) -> str:
    """There is an endpoint: leave it, update it, put it back or delete it. Returns the outcome in a word."""
    status = endpoint["EndpointStatus"]
    if status == "OutOfService" and last is not None:
        report_outage(config, last, endpoint, request_id)
    if status not in ("InService", "UpdateRollbackFailed", "Failed"):
        return f"busy: {status}"
    if any(record.state in OPEN for record in records):
        return "under way"
    # A rollback that failed leaves a mix of both models. One that a person's update led to is theirs to fix.
    ended_here = last is not None and last.state == "failed" and last.data["ended"] == last_modified(endpoint)
    if status == "Failed" or (status == "UpdateRollbackFailed" and ended_here):
        return take_down(config, endpoint, last, request_id)
    served = endpoint["EndpointConfigName"]
    choice = choose(config, considered)
    bad = None
    if choice is None or choice.config != served:
        bad = next((record for record in records if record.config == served), None)
        bad = bad or read_record(config.bucket, record_key(served))
        bad = bad if bad is not None and bad.state in BAD else None
    if bad is not None:
        choice = choose(config, considered, as_it_was=True)
        if choice is None and bad.state != "withdrawn":
            return take_down(config, endpoint, last or bad, request_id)
    if choice is None:
        return "nothing to deploy"
    return bring_to(config, choice, endpoint, bad, records, request_id)


def bring_to(
    config: Settings,
    choice: Choice,
    endpoint: Mapping[str, Any],
    bad: Record | None,
    records: Sequence[Record],
    request_id: str,
) -> str:
    """Bring an endpoint that has settled to the chosen model; bad: what it serves and must not. Returns the outcome."""
    known = choice.record
    if choice.config == endpoint["EndpointConfigName"]:
        if known is not None and known.state == "confirmed" and not known.data["cleaned"]:
            clean_up(config, known, endpoint, request_id)
        return "in service"
    if bad is None and known is not None and known.state in ("confirmed", "superseded"):
        # It was live, or on its way, and somebody switched the endpoint. That is theirs to undo.
        return "left as somebody made it"
    last = newest_started(record for record in records if record is not known)
    restores = back_after(bad.config) if bad and known and known.state == "confirmed" else ""
    return deploy(config, choice, endpoint, last, request_id, restores)


def without_endpoint(
    config: Settings, considered: Sequence[tuple[Approved, list[Record]]], last: Record | None, request_id: str
) -> str:
    """There is no endpoint: create one, unless a person deleted it. Returns the outcome in a word."""
    ours = last is not None and last.data["deleted_by"] == "pipeline"
    choice = choose(config, considered, as_it_was=ours)
    known = choice.record if choice else None
    # It was asked for when there was no endpoint already.
    asked = known is not None and known.state == "waiting" and known.data["endpoint_last_modified"] is None
    if last is None or ours or asked:
        if choice is None:
            return "nothing to deploy"
        back = last is not None and known is not None and known.state == "confirmed"
        restores = back_after(last.config, choice.config) if last and back else ""
        return deploy(config, choice, None, last, request_id, restores)
    is_news = not last.emailed("deleted by hand")
    if choice is not None:
        hold(config, choice, request_id, quietly=is_news)
    if is_news:
        live = next((record for _, found in considered for record in found if record.state == "confirmed"), last)
        email_alone(config, last, "deleted by hand", request_id, about=live)
    return "deleted by hand"


def back_after(bad_config: str, config: str = "") -> str:
    """After what a model comes back, for the email on it; config: its own."""
    return "the endpoint had failed" if bad_config == config else f"{bad_config} was taken back"


def hold(config: Settings, choice: Choice, request_id: str, quietly: bool) -> None:
    """Have a model wait for the person who deleted the endpoint. quietly: the email on the deletion says so as well."""
    record = choice.record
    if record is None or record.state == "waiting":
        lease: Email = {"by": request_id, "at": now().isoformat(), "done": quietly}
        record = begin(config, choice, None, request_id, "held", emails={"deleted by hand": lease})
    if record is not None and record.state == "held":
        email_alone(config, record, "deleted by hand", request_id, "held")


# --- which model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The model that the endpoint is to serve: its artifact, its requests, and the record of their deployment."""

    artifact: Approved
    model_request: dict[str, Any]
    config_request: dict[str, Any]
    record: Record | None

    @property
    def config(self) -> str:
        return str(self.config_request["EndpointConfigName"])


def choose(
    config: Settings, considered: Sequence[tuple[Approved, list[Record]]], *, as_it_was: bool = False
) -> Choice | None:
    """The newest approved model that may be deployed; None when there is none.

    as_it_was: a model that was live comes back with the config that it had then, even if settings changed since.
    """
    for artifact, found in considered:
        if any(record.state == "withdrawn" for record in found):
            continue
        present = requests(config, artifact)
        known = next((record for record in found if record.config == present[1]["EndpointConfigName"]), None)
        live = [record for record in found if record.state == "confirmed"]
        usable = known is None or known.state not in NOT_AGAIN
        if live and (not usable or (as_it_was and (known is None or known.state != "waiting"))):
            record = max(live, key=lambda record: record.data["started_at"])
            asked = record.data["requests"]
            job = Approved(artifact.model, artifact.job, **record.data["artifact"])
            return Choice(job, asked["model"], asked["config"], record)
        if usable:
            return Choice(artifact, *present, known)
    return None


def requests(config: Settings, artifact: Approved) -> tuple[dict[str, Any], dict[str, Any]]:
    """The CreateModel and CreateEndpointConfig requests for an artifact under the present settings.

    Neither thing can be changed once created, so each name ends in a hash of all that goes into it: changed settings
    give a new name.
    """
    environment = {
        "HF_TASK": "text-classification",
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
    }
    if config.endpoint_type == "serverless":
        # One worker: each loads the whole model, and a serverless container has at most 6 GB.
        environment["SAGEMAKER_MODEL_SERVER_WORKERS"] = "1"
        capacity: dict[str, Any] = {
            "ServerlessConfig": {
                "MemorySizeInMB": config.serverless_memory_mb,
                "MaxConcurrency": config.serverless_max_concurrency,
            }
        }
    else:
        capacity = {
            "InstanceType": config.endpoint_instance_type,
            "InitialInstanceCount": config.endpoint_instance_count,
            "InitialVariantWeight": 1.0,
        }
    tags = [
        {"Key": "Project", "Value": config.project},
        {"Key": "Stack", "Value": config.bucket},
        {"Key": "Model", "Value": artifact.model},
        {"Key": "TrainingJob", "Value": artifact.job},
    ]
    model_parts = [artifact.key, artifact.etag, config.inference_image, config.model_role_arn, environment]
    model_name = f"{artifact.job}-{digest(model_parts)}"
    model_request = {
        "ModelName": model_name,
        "PrimaryContainer": {
            "Image": config.inference_image,
            "ModelDataUrl": f"s3://{config.bucket}/{artifact.key}",
            "Environment": environment,
        },
        "ExecutionRoleArn": config.model_role_arn,
        "Tags": tags,
    }
    config_request = {
        "EndpointConfigName": f"{artifact.job}-{digest([*model_parts, capacity])}",
        "ProductionVariants": [{"VariantName": VARIANT_NAME, "ModelName": model_name, **capacity}],
        "Tags": tags,
    }
    return model_request, config_request


def digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


# --- asking SageMaker -------------------------------------------------------------------------------


def deploy(
    config: Settings,
    choice: Choice,
    endpoint: Mapping[str, Any] | None,
    last: Record | None,
    request_id: str,
    restores: str,
) -> str:
    """Ask for the chosen model on its endpoint; returns the outcome in a word, or AGAIN.

    The record is written before the call, with the endpoint as it was: after a crash it tells whether the call was
    made. last: the deployment before, whose endpoint it is.
    """
    known = choice.record
    if known is not None and known.state == "waiting" and not due_again(known.data["tries"], known.data["at"]):
        return "waiting"
    record = begin(config, choice, endpoint, request_id, "requested", **({"restores": restores} if restores else {}))
    if record is None:
        return "in hand"
    replaces = is_replacement(choice, endpoint)
    try:
        check_endpoint(config, record, endpoint)
        check_artifact(config, choice.artifact)
        create_config(choice)
        if not replaces:
            create_or_update(config, choice, endpoint)
    except CannotDeploy as obstacle:
        return put_off(config, record, endpoint, request_id, obstacle)
    except EndpointBusy:
        move(config, record, request_id, "waiting", tries=0)
        return "busy"
    except (BotoCoreError, ClientError) as error:
        # It stays requested, as the call may have been made. The email on giving up quotes the reason.
        move(config, record, request_id, "requested", reason=str(error))
        raise
    if replaces and endpoint is not None:
        return replace_endpoint(config, record, endpoint, last, request_id)
    note_started(config, record, request_id)
    return "started"


def begin(
    config: Settings,
    choice: Choice,
    endpoint: Mapping[str, Any] | None,
    request_id: str,
    state: str,
    **more: Any,
) -> Record | None:
    """Begin the record of a deployment, or begin it again; None when somebody else changed it.

    One that waited keeps what its attempts met and what people were emailed.
    """
    record = choice.record
    waited = record.data if record is not None and record.state == "waiting" else None
    data: Deployment = {
        "schema": SCHEMA,
        "config": choice.config,
        "endpoint": config.endpoint_of(choice.artifact.model),
        "model": choice.artifact.model,
        "model_name": choice.model_request["ModelName"],
        "job": choice.artifact.job,
        "artifact": {"key": choice.artifact.key, "etag": choice.artifact.etag, "size": choice.artifact.size},
        "requests": {"model": choice.model_request, "config": choice.config_request},
        "state": state,
        "by": request_id,
        "at": now().isoformat(),
        "reason": waited["reason"] if waited else "",
        "tries": waited["tries"] if waited else 0,
        "endpoint_last_modified": last_modified(endpoint),
        "previous_config": endpoint["EndpointConfigName"] if endpoint else None,
        "restores": waited["restores"] if waited else "",
        "started_at": "",
        "ended": "",
        "checked": "",
        "cleaned": True,
        "deleted_by": "",
        "emails": {what: email for what, email in waited["emails"].items() if email["done"]} if waited else {},
        "gone": False,
    }
    return write_record(config, cast(Deployment, data | more), record)


def check_endpoint(config: Settings, record: Record, endpoint: Mapping[str, Any] | None) -> None:
    """Raises CannotDeploy when the endpoint is another stack's, or the attempts are used up; EndpointBusy."""
    try:
        foreign = endpoint is not None and not is_ours(config, endpoint)
    except ClientError as error:
        if not is_missing(error):
            raise
        raise EndpointBusy from error
    if foreign:
        raise CannotDeploy(
            "waiting",
            f"an endpoint {record.data['endpoint']} exists that this stack did not make: "
            "set endpoint_name in Terraform to another name and apply, or delete that endpoint",
        )
    if record.data["tries"] >= GIVE_UP_TRIES:
        last_error = record.data["reason"] or "none was recorded: see make logs"
        raise CannotDeploy("failed", f"{record.data['tries']} attempts failed. The last error: {last_error}")


def check_artifact(config: Settings, artifact: Approved) -> None:
    """Raises CannotDeploy unless the artifact is there, begins a gzip tar and has a file in it."""
    if artifact.size == 0:
        raise CannotDeploy("failed", "the artifact is empty (0 bytes)")
    try:
        answer = client("s3").get_object(
            Bucket=config.bucket,
            Key=artifact.key,
            IfMatch=f'"{artifact.etag}"',
            Range=f"bytes=0-{ARTIFACT_HEAD_BYTES - 1}",
        )
    except ClientError as error:
        if not is_gone(error) and error_code(error) not in ("PreconditionFailed", "412"):
            raise
        raise CannotDeploy("failed", "the artifact was deleted or replaced after it was approved") from error
    try:
        head = zlib.decompressobj(wbits=31).decompress(answer["Body"].read(), ARTIFACT_HEAD_UNPACKED_BYTES)
        with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    raise CannotDeploy("failed", "the artifact has a member of negative size")
                if member.isreg():
                    return
    except (zlib.error, tarfile.TarError, ValueError, RecursionError) as error:
        text = f"the artifact is not a gzip-compressed tar, or it is cut off: {error}"
        raise CannotDeploy("failed", text) from error
    raise CannotDeploy(
        "failed",
        f"the artifact is an archive without any file: it has no file in its first {ARTIFACT_HEAD_BYTES} bytes",
    )


def create_config(choice: Choice) -> None:
    """Create the model and its endpoint config, unless they exist: what exists under this name is the same.

    AWS answers "Cannot create already existing ..." to a second config; its text for a model is unconfirmed.
    """
    sagemaker = client("sagemaker")
    for create, request in (
        (sagemaker.create_model, choice.model_request),
        (sagemaker.create_endpoint_config, choice.config_request),
    ):
        try:
            create(**request)
        except ClientError as error:
            if error_code(error) != "ValidationException" or "already exist" not in error_message(error):
                raise
    # CreateEndpoint may not see a new config yet; AWS advises to describe it first (CreateEndpoint reference).
    sagemaker.describe_endpoint_config(EndpointConfigName=choice.config)


def create_or_update(config: Settings, choice: Choice, endpoint: Mapping[str, Any] | None) -> None:
    """Ask SageMaker to create the endpoint, or to update it. Raises CannotDeploy, EndpointBusy, ClientError."""
    sagemaker, name = client("sagemaker"), config.endpoint_of(choice.artifact.model)
    try:
        if endpoint is None:
            tags = choice.config_request["Tags"]
            sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=choice.config, Tags=tags)
        else:
            update(config, choice, endpoint)
    except ClientError as error:
        if error_code(error) == "ResourceLimitExceeded":
            text = f"a quota of the account is used up. SageMaker said: {error_message(error)}"
            raise CannotDeploy("waiting", text) from error
        busy = ("Cannot update in-progress endpoint", "Cannot create already existing endpoint")
        if error_code(error) != "ValidationException" or not error_message(error).startswith(busy):
            raise
        found = describe_endpoint(name) or {}
        # Unless our own call was faster: its answer was lost, so the SDK repeated it.
        if found.get("PendingDeploymentSummary", found).get("EndpointConfigName") != choice.config:
            raise EndpointBusy from error


def update(config: Settings, choice: Choice, endpoint: Mapping[str, Any]) -> None:
    """Ask SageMaker to bring the endpoint to the chosen config. Raises ClientError.

    On instances, the deployment settings go with every update: SageMaker forgets them otherwise (UpdateEndpoint,
    RetainDeploymentConfig). The number of instances that autoscaling arrived at is kept, unless the setting for it
    changed: then that counts.
    """
    sagemaker, name = client("sagemaker"), endpoint["EndpointName"]
    request: dict[str, Any] = {"EndpointName": name, "EndpointConfigName": choice.config}
    new = variant_of(choice.config_request)
    if "ServerlessConfig" not in new:
        served = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
        same = ("VariantName", "InstanceType", "InitialInstanceCount")
        keep = all(variant_of(served).get(member) == new[member] for member in same)
        running = [variant.get("CurrentInstanceCount", 1) for variant in endpoint.get("ProductionVariants", [])]
        instances = min(running, default=1) if keep else new["InitialInstanceCount"]
        request["RetainAllVariantProperties"] = keep
        policy = deployment_policy(config.deployment_policy, name, instances)
        if policy:
            request["DeploymentConfig"] = policy
    sagemaker.update_endpoint(**request)


def deployment_policy(policy: Mapping[str, Any], endpoint_name: str, instances: int) -> dict[str, Any]:
    """The DeploymentConfig for one endpoint: the stack's policy with the endpoint's own alarms, {} for none.

    Alarms are named <endpoint>/<what>. Steps are a share of the fleet; one that autoscaling left too small for them
    gets its traffic all at once.
    """
    own: dict[str, Any] = json.loads(json.dumps(policy))
    alarms = own.pop("AutoRollbackConfiguration", {}).get("Alarms", [])
    alarms = [alarm for alarm in alarms if alarm["AlarmName"].startswith(f"{endpoint_name}/")]
    if alarms:
        own["AutoRollbackConfiguration"] = {"Alarms": alarms}
    routing = own.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    size = routing.get("CanarySize") or routing.get("LinearStepSize")
    if size and instances * size["Value"] < 100:
        wait = routing["WaitIntervalInSeconds"]
        all_at_once = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": wait}
        own["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"] = all_at_once
    return own


def variant_of(config_request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one production variant of a CreateEndpointConfig request or a DescribeEndpointConfig answer."""
    variant: Mapping[str, Any] = config_request["ProductionVariants"][0]
    return variant


def is_replacement(choice: Choice, endpoint: Mapping[str, Any] | None) -> bool:
    """Whether the endpoint must be replaced: AWS refuses to turn instances into serverless in place.

    (Developer guide, Serverless Inference: a serverless endpoint can become one on instances, not the reverse.)
    """
    if endpoint is None or "ServerlessConfig" not in variant_of(choice.config_request):
        return False
    return any("CurrentServerlessConfig" not in variant for variant in endpoint.get("ProductionVariants", []))


def put_off(
    config: Settings, record: Record, endpoint: Mapping[str, Any] | None, request_id: str, obstacle: CannotDeploy
) -> str:
    """Note why the model cannot be deployed, and email it once for each cause. Returns the outcome.

    A refusal that may end is not a failed try: it makes the next ones hourly, and is retried without end.
    """
    state, reason = obstacle.state, str(obstacle)
    what = f"waiting: {cause(reason)}" if state == "waiting" else state
    email_once(config, record, what, request_id, state, reason=reason, then=endpoint_summary(endpoint))
    tries = min(record.data["tries"] + 1, EAGER_TRIES)
    move(config, record, request_id, state, reason=reason, tries=tries)
    return AGAIN if state == "failed" else state


def cause(reason: str) -> str:
    """A reason without its numbers: the utilisation in a quota's text changes, the cause does not."""
    return re.sub(r"[0-9]+", "#", reason)


def note_started(config: Settings, record: Record, request_id: str) -> bool:
    """SageMaker was asked: email people, and note it; True when it was noted."""
    # That a model comes back was emailed when it became necessary.
    then = UPDATING if record.data["previous_config"] else CREATING
    if not record.data["restores"] and not email_once(config, record, "started", request_id, then=then):
        return False
    return move(config, record, request_id, "started", started_at=now().isoformat(), reason="")


# --- what became of it ------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of a deployment: the state, why, what happens to the endpoint now, what the golden rows said."""

    state: str
    reason: str = ""
    then: str = ""
    checked: str = ""


def settle(config: Settings, record: Record, endpoint: Mapping[str, Any] | None, request_id: str) -> bool:
    """Take a record as far as the endpoint allows, and email people, once; True when that ended the deployment."""
    if record.leased_by_another(request_id):
        return False
    if record.state != "started" and not take_up(config, record, endpoint, request_id):
        return False
    if endpoint is None:
        return note_vanished(config, record, request_id)
    outcome = outcome_of(config, record, endpoint)
    if outcome is None:
        return False
    state, reason, then, record.data["checked"] = outcome
    wording = "restored" if state == "confirmed" and record.data["restores"] else state
    if state != "superseded" and not email_once(config, record, state, request_id, wording, reason=reason, then=then):
        return False
    log.info("deployment settled: %s", state, extra={"training_job": record.data["job"], "reason": reason})
    cleaned = state != "confirmed"
    return move(config, record, request_id, state, reason=reason, cleaned=cleaned, ended=last_modified(endpoint))


def take_up(config: Settings, record: Record, endpoint: Mapping[str, Any] | None, request_id: str) -> bool:
    """Look at a record that SageMaker is not known to work on; True when it does, and that is noted now."""
    served = endpoint is not None and endpoint["EndpointConfigName"] == record.config
    if served or (record.state == "requested" and was_made(record, endpoint)):
        # The answer to the call was lost, or whoever made it died before people were emailed.
        return note_started(config, record, request_id)
    if record.state == "requested":
        # Whoever was to make the call died before that.
        move(config, record, request_id, "waiting", tries=record.data["tries"] + 1)
    return False


def was_made(record: Record, endpoint: Mapping[str, Any] | None) -> bool:
    """Whether the endpoint shows that the call of a record was made.

    The record holds the endpoint's last-modified time as it was before the call: an unchanged time means that the call
    was never made, or is not visible yet. A pending deployment of another config is somebody else's.
    """
    if endpoint is None or last_modified(endpoint) == record.data["endpoint_last_modified"]:
        return False
    pending = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName", record.config)
    return bool(pending == record.config)


def outcome_of(config: Settings, record: Record, endpoint: Mapping[str, Any]) -> Outcome | None:
    """What became of a deployment that was started; None while it is under way."""
    status, served = endpoint["EndpointStatus"], endpoint.get("EndpointConfigName")
    reason = str(endpoint.get("FailureReason") or "")
    if status == "InService" and served == record.config:
        return verdict(config, record, endpoint)
    if not was_made(record, endpoint):
        return None
    if status == "InService" and served == record.data["previous_config"]:
        return Outcome("rolled back", reason or why_rolled_back(endpoint), endpoint_summary(endpoint))
    if status == "InService":
        return Outcome("superseded", f"the endpoint serves {served}")
    if status in ("Failed", "UpdateRollbackFailed"):
        before = confirmed_before(config, record)
        then = RECREATED.format(before=before) if before else FAILED_AND_ALONE
        return Outcome("failed", reason or f"SageMaker gave no reason; the endpoint is {status}", then)
    return None


def verdict(config: Settings, record: Record, endpoint: Mapping[str, Any]) -> Outcome | None:
    """What the answers of the new model make of its deployment; None when it cannot be asked."""
    answers = check_answers(config, record, endpoint)
    if answers is None:
        return None
    wrong, checked = answers
    if not wrong:
        return Outcome("confirmed", checked=checked)
    before = confirmed_before(config, record)
    if before:
        return Outcome("rolled back", wrong, PUT_BACK.format(before=before))
    return Outcome("failed", wrong, WRONG_AND_ALONE)


def why_rolled_back(endpoint: Mapping[str, Any]) -> str:
    """What may have led to a rollback for which SageMaker gives no reason, which is common."""
    rollback = (endpoint.get("LastDeploymentConfig") or {}).get("AutoRollbackConfiguration", {})
    alarms = ", ".join(alarm["AlarmName"] for alarm in rollback.get("Alarms", []))
    if not alarms:
        return "SageMaker gave no reason; the model server's log may"
    return (
        "SageMaker gave no reason: either the new model's server did not come up (its log says why), or an alarm "
        f"went off while traffic moved to it ({alarms})"
    )


def confirmed_before(config: Settings, record: Record) -> str:
    """The endpoint config that the pipeline goes back to from a deployment that went wrong; "" when there is none."""
    for artifact in approved_models(config.bucket, record.data["model"])[:LOOK_BACK_MODELS]:
        found = records_of(config.bucket, artifact.job, record.data["endpoint"])
        if any(other.state == "withdrawn" for other in found):
            continue
        for other in found:
            if other.state == "confirmed" and other.config != record.config:
                return other.config
    return ""


def note_vanished(config: Settings, record: Record, request_id: str) -> bool:
    """The endpoint of an open deployment is gone: email people, once, and wait for one; True when that ended it."""
    if record.state == "started" and age(record.data["at"]) < VISIBLE_SECONDS:
        return False
    reason = "it was deleted while this model was being deployed"
    if not email_once(config, record, "deleted by hand", request_id, reason=reason):
        return False
    return move(config, record, request_id, "held", reason=reason)


# --- does the right model answer? -------------------------------------------------------------------


@functools.cache
def runtime() -> Any:
    """The client that asks endpoints. An attempt may take as long as a model may, so there are few."""
    config = Config(read_timeout=INVOKE_READ_SECONDS, retries={"mode": "standard", "total_max_attempts": 3})
    return boto3.client("sagemaker-runtime", config=config)


def check_answers(config: Settings, record: Record, endpoint: Mapping[str, Any]) -> tuple[str, str] | None:
    """Ask the endpoint the golden rows of the model's decision: (what is wrong, or ""; what was checked, in words).

    None when the endpoint cannot be asked: it was deleted since it was looked at, or is not visible yet.
    Raises what AWS raises on a failure that may pass (throttling, a slow cold start, no capacity): Lambda's retry or
    the sweep asks again. A model whose own code answers with errors does not pass: the HuggingFace server turns every
    exception in it into a 400 (handler_service.py). 5xx and timeouts that last count as well.
    """
    decision, _ = read_json(config.bucket, f"{DECISION_PREFIX}{record.data['job']}.json")
    golden = (decision or {}).get("golden") or []
    if not golden:
        return "", "not checked: the training job gave none"
    for attempt in range(CHECK_ATTEMPTS):
        if attempt:
            time.sleep(CHECK_PAUSE_SECONDS)
        try:
            wrong = difference(golden, ask(record.data["endpoint"], [row["text"] for row in golden]))
        except ValueError as error:
            wrong = f"the endpoint does not answer with JSON: {error}"
        except ClientError as error:
            if error_code(error) == "ValidationError" and "not found" in error_message(error):
                return None
            settled_for = (now() - endpoint["LastModifiedTime"]).total_seconds()
            if error_code(error) == "AccessDeniedException" and settled_for >= CHECK_PATIENCE_SECONDS:
                # A denial that lasts is no new policy that has yet to spread. It says nothing about the model.
                return "", f"NOT CHECKED: this function may not ask the endpoint. AWS said: {error_message(error):.500}"
            if error_code(error) != "ModelError":
                raise
            answer: Mapping[str, Any] = error.response
            by_the_model = 400 <= answer.get("OriginalStatusCode", 0) < 500
            if not by_the_model and settled_for < CHECK_PATIENCE_SECONDS:
                raise
            wrong = f"the new model does not answer. SageMaker said: {error_message(error):.500}"
        if not wrong:
            return "", f"{len(golden)} of {len(golden)} answered as in training"
    return wrong, ""


def ask(endpoint_name: str, texts: Sequence[str]) -> object:
    """The endpoint's decoded answer to texts. Raises ClientError; ValueError when the answer is not JSON."""
    answer = runtime().invoke_endpoint(
        EndpointName=endpoint_name, ContentType="application/json", Body=json.dumps({"inputs": texts}).encode()
    )
    return json.loads(answer["Body"].read())


def difference(golden: Sequence[Mapping[str, Any]], answers: object) -> str:
    """How an endpoint's answers differ from the golden rows, {"text", "label", "score"}, in words; "" when they agree.

    Labels and scores agree within SCORE_TOLERANCE. A label that nearly tied with another one in training may give way
    to it, in few rows. The words hold no text of the rows: they go into an email.
    """
    if not isinstance(answers, list) or len(answers) != len(golden):
        return f"the endpoint does not answer {len(golden)} texts with as many labels, but with {answers!r:.100}"
    wrong, ties = [], 0
    for row, answer in zip(golden, answers, strict=True):
        label, score = (answer.get("label"), answer.get("score")) if isinstance(answer, Mapping) else (None, None)
        if not isinstance(score, int | float) or isinstance(score, bool):
            return f"the endpoint answers in another form than label and score: {answer!r:.100}"
        close = abs(score - row["score"]) <= SCORE_TOLERANCE
        if close and label == row["label"]:
            continue
        # The second best label has at most what the best one leaves.
        tied = close and row["score"] <= 0.5 + SCORE_TOLERANCE
        ties += tied
        if not tied or ties > TIES_MAX_SHARE * len(golden):
            wrong.append(f"{label} {score:.3f} instead of {row['label']} {row['score']:.3f}")
    if not wrong:
        return ""
    return (
        f"{len(wrong)} of {len(golden)} golden rows get other answers than in training (for instance {wrong[0]}): "
        "the endpoint serves other weights, or a broken copy"
    )


# --- an endpoint that goes --------------------------------------------------------------------------


def replace_endpoint(
    config: Settings, record: Record, endpoint: Mapping[str, Any], last: Record | None, request_id: str
) -> str:
    """Delete an endpoint that cannot become what is asked for; the next sweep finds none, and creates it.

    The record waits before that: whoever finds the endpoint deleted, finds what is to follow.
    """
    if not email_once(config, record, "started", request_id, then=REPLACING):
        return "in hand"
    if not move(config, record, request_id, "waiting", tries=0):
        return "in hand"
    return "replacing" if delete_endpoint(config, endpoint, last, request_id) else "in hand"


def take_down(config: Settings, endpoint: Mapping[str, Any], last: Record | None, request_id: str) -> str:
    """Delete an endpoint that failed or gives wrong answers. Returns the outcome in a word."""
    try:
        if not is_ours(config, endpoint):
            return "failed endpoint of somebody else"
    except ClientError as error:
        if not is_missing(error):
            raise
    return "failed endpoint deleted" if delete_endpoint(config, endpoint, last, request_id) else "in hand"


def delete_endpoint(config: Settings, endpoint: Mapping[str, Any], last: Record | None, request_id: str) -> bool:
    """Delete an endpoint of ours, noting before that the pipeline does it; False: another invocation is at it.

    Nothing else can be done with a failed one (DescribeEndpoint reference, EndpointStatus).
    """
    if last is not None and last.data["deleted_by"] != "pipeline":
        # One that failed after it was live: nobody was emailed. A deployment that fails has its own email.
        is_news = endpoint["EndpointStatus"] == "Failed" and last.state == "confirmed"
        if is_news and not email_once(config, last, "endpoint failed", request_id):
            return False
        if not move(config, last, request_id, last.state, deleted_by="pipeline"):
            return False
    try:
        client("sagemaker").delete_endpoint(EndpointName=endpoint["EndpointName"])
    except ClientError as error:
        # A duplicate event's invocation was faster.
        if not is_missing(error) and not error_message(error).startswith("Cannot update in-progress endpoint"):
            raise
    return True


def report_outage(config: Settings, last: Record, endpoint: Mapping[str, Any], request_id: str) -> None:
    """Email people, once, that SageMaker took the endpoint out of service. No documentation says what can be done."""
    what = f"out of service since {last_modified(endpoint)}"
    if not last.emailed(what) and is_ours(config, endpoint):
        reason = str(endpoint.get("FailureReason") or "")
        email_alone(config, last, what, request_id, "out of service", reason=reason)


# --- cleaning up ------------------------------------------------------------------------------------


def clean_up(config: Settings, record: Record, endpoint: Mapping[str, Any], request_id: str) -> None:
    """After a confirmed deployment: delete the models and configs of deployments before the last ones that are kept.

    A record is marked before its model and config go, so that nothing asks for them meanwhile. Artifacts stay.
    """
    artifacts = approved_models(config.bucket, record.data["model"])[:LOOK_BACK_MODELS]
    found = [
        other
        for artifact in artifacts
        for other in records_of(config.bucket, artifact.job, record.data["endpoint"])
        if not other.data["gone"]
    ]
    confirmed = [other for other in found if other.state == "confirmed"]
    kept = sorted((other.data["started_at"] for other in confirmed), reverse=True)[: config.keep_models]
    if len(kept) == config.keep_models:
        in_use = {other.config for other in confirmed if other.data["started_at"] in kept}
        in_use |= {record.config, endpoint["EndpointConfigName"]}
        in_use.add(endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName", ""))
        for other in (other for other in found if other.state in UNSETTLED):
            in_use |= {other.config, str(other.data["previous_config"])}
        # A deployment that began before the last one that is kept.
        old = [other for other in found if other.config not in in_use and other.data["started_at"] < kept[-1]]
        models_in_use = {other.data["model_name"] for other in found if other not in old}
        for other in old:
            state = "removed" if other.state in ("confirmed", "superseded") else other.state
            if not move(config, other, request_id, state):
                continue
            remove("EndpointConfig", other.config, config.bucket)
            if other.data["model_name"] not in models_in_use:
                remove("Model", other.data["model_name"], config.bucket)
            move(config, other, request_id, state, gone=True)
    move(config, record, request_id, record.state, cleaned=True)


def remove(kind: str, name: str, stack: str) -> None:
    """Delete a model ("Model") or an endpoint config ("EndpointConfig") of this stack, if it is there."""
    sagemaker, snake = client("sagemaker"), "model" if kind == "Model" else "endpoint_config"
    try:
        described = getattr(sagemaker, f"describe_{snake}")(**{f"{kind}Name": name})
        tags = sagemaker.list_tags(ResourceArn=described[f"{kind}Arn"])["Tags"]
        if {"Key": "Stack", "Value": stack} not in tags:
            log.warning("not of this stack, left alone", extra={"name_of_it": name, "kind": kind})
            return
        getattr(sagemaker, f"delete_{snake}")(**{f"{kind}Name": name})
    except ClientError as error:
        if not is_missing(error):
            raise


# --- emails -----------------------------------------------------------------------------------------

# What happens to the endpoint, for {then} in the emails.
CREATING = "The endpoint is new: it answers once it is in service."
UPDATING = "It keeps serving the previous model until the new one is up."
REPLACING = (
    "An endpoint on instances cannot become serverless in place, so it is replaced: it is deleted now, and the next "
    "sweep creates the new one. IT DOES NOT ANSWER UNTIL THEN, usually for 10 to 30 minutes."
)
PUT_BACK = "The pipeline puts {before} back; the next email says when it is in service."
WRONG_AND_ALONE = "There is no confirmed model to go back to, so the endpoint is deleted: it gives wrong answers."
RECREATED = "A failed endpoint can only be deleted, so the pipeline deletes it and brings {before} back."
FAILED_AND_ALONE = "A failed endpoint can only be deleted, so the pipeline deletes it. There is no confirmed model yet."

EMAILS = {
    "started": {
        "stage": "deployment",
        "status": "started",
        "subject": "Deployment started: {model} ({endpoint})",
        "body": """The approved model is being deployed to the endpoint ({capacity}).
{then}

{table}

What next: nothing to do. The next email says how it ended, usually in 5 to 10 minutes.
""",
    },
    "confirmed": {
        "stage": "deployment",
        "status": "successful",
        "subject": "Deployment successful: {model} ({endpoint})",
        "body": """The endpoint is in service with the new model.

{table}

What next: try it:

  make predict MODEL={model} TEXT="some text"

or, with the AWS CLI:

  aws sagemaker-runtime invoke-endpoint --endpoint-name {endpoint} --content-type application/json \
--cli-binary-format raw-in-base64-out --body '{{"inputs": "some text"}}' answer.json
""",
    },
    "restored": {
        "stage": "deployment",
        "status": "restored",
        "subject": "Deployment restored: {model} ({endpoint})",
        "body": """The endpoint is in service and serves this model again, after {restores}.

{table}

What next: nothing to do. Try it:

  make predict MODEL={model} TEXT="some text"
""",
    },
    "rolled back": {
        "stage": "deployment",
        "status": "rolled-back",
        "subject": "Deployment rolled back: {model} ({endpoint})",
        "body": """The new model was rolled back.

{table}

{why}What next: {then} This model is not tried again. See the model server's log: make logs ENDPOINT={endpoint}
Fix the cause, then upload again.
""",
    },
    "failed": {
        "stage": "deployment",
        "status": "failed",
        "subject": "Deployment failed: {model} ({endpoint})",
        "body": """The new model could not be deployed.

{table}

{why}What next: {then} This model is not tried again. See the model server's log: make logs ENDPOINT={endpoint}
Fix the cause, then upload again.
""",
    },
    "waiting": {
        "stage": "deployment",
        "status": "waiting",
        "subject": "Deployment waiting: {model} ({endpoint})",
        "body": """The new model cannot be deployed at the moment.

{table}

{why}What next: {then} Fix the cause. The pipeline keeps trying by itself, at least once an hour.
""",
    },
    "held": {
        "stage": "deployment",
        "status": "waiting",
        "subject": "Deployment waiting: {model} ({endpoint})",
        "body": """The new model is approved but not deployed: somebody deleted the endpoint, and no upload undoes that.

{table}

What next: make resume MODEL={model} brings it back, with the newest approved model.
""",
    },
    "deleted by hand": {
        "stage": "deployment",
        "status": "endpoint-deleted-by-hand",
        "subject": "Endpoint deleted by hand: {model} ({endpoint})",
        "body": """Somebody deleted the endpoint. It stays deleted and costs nothing: no upload brings it back.

{table}

{why}What next: nothing, if that was intended. make resume MODEL={model} brings it back, with the newest approved model.
""",
    },
    "endpoint failed": {
        "stage": "deployment",
        "status": "endpoint-failed",
        "subject": "Endpoint failed: {model} ({endpoint})",
        "body": """The endpoint was in service and has failed. The pipeline deletes it: nothing else can be done with it.

{table}

What next: nothing to do. The pipeline recreates it with the last confirmed model.
To find the cause, see the model server's log: make logs ENDPOINT={endpoint}
""",
    },
    "out of service": {
        "stage": "deployment",
        "status": "endpoint-out-of-service",
        "subject": "Endpoint out of service: {model} ({endpoint})",
        "body": """SageMaker took the endpoint out of service: it does not answer. The pipeline leaves it alone.

{table}

{why}What next: look at the endpoint in the SageMaker console and at its log (make logs ENDPOINT={endpoint}).
If it does not come back, delete it. Then make resume MODEL={model} recreates it.
""",
    },
}


def email_once(
    config: Settings,
    record: Record,
    what: str,
    request_id: str,
    wording: str = "",
    *,
    about: Record | None = None,
    reason: str = "",
    then: str = "",
) -> bool:
    """Email people about a record, unless they were; False: leave it, another invocation is at it.

    what: the key under which the record keeps it; wording: in EMAILS, when it is another; about: the record that the
    email describes, when it is another. The next move of the record writes down that the email was sent, so it is sent
    again only after a crash in between. Before, the invocation takes a lease, unless it has one: the record that it
    requested itself is one.
    """
    if record.emailed(what):
        return True
    lease: Email = {"by": request_id, "at": now().isoformat(), "done": False}
    entry = record.data["emails"].get(what)
    if leased_by_another(entry, request_id):
        return False
    requested = record.state == "requested" and record.data["by"] == request_id
    if entry is None or (entry["by"] != request_id and not requested):
        emails = record.data["emails"] | {what: lease}
        if not requested and not move(config, record, request_id, record.state, emails=emails):
            return False
    send_email(config, (about or record).data, EMAILS[wording or what], reason, then)
    record.data["emails"][what] = {**lease, "done": True}
    return True


def email_alone(config: Settings, record: Record, what: str, request_id: str, wording: str = "", **more: Any) -> None:
    """Email people about a record whose state that does not change, unless they were."""
    if not record.emailed(what) and email_once(config, record, what, request_id, wording, **more):
        move(config, record, request_id, record.state)


def send_email(config: Settings, record: Deployment, email: Mapping[str, str], reason: str, then: str) -> None:
    """Fill an email of EMAILS with what a record says, and send it."""
    source, _ = read_json(config.bucket, f"{SNAPSHOT_PREFIX}{record['job']}/source.json")
    artifact = record["artifact"]
    rows: list[tuple[str, object]] = [
        ("model", record["model"]),
        ("endpoint", record["endpoint"]),
        ("data", f"s3://{source['bucket']}/{source['key']}" if source else "unknown"),
        ("training job", record["job"]),
        ("endpoint config", record["config"]),
        ("artifact", f"s3://{config.bucket}/{artifact['key']} ({human_bytes(artifact['size'])})"),
        ("previous config", record["previous_config"]),
        ("golden rows", record["checked"]),
    ]
    notify(
        config.topic_arn,
        email,
        record["model"],
        [(name, value) for name, value in rows if value],
        endpoint=record["endpoint"],
        capacity=config.capacity,
        restores=record["restores"],
        why=f"Why: {reason}\n\n" if reason else "",
        then=then,
    )


def endpoint_summary(endpoint: Mapping[str, Any] | None) -> str:
    """What callers of the endpoint get now, in a sentence."""
    if endpoint is not None and endpoint["EndpointStatus"] in ("InService", "UpdateRollbackFailed"):
        return f"The endpoint goes on serving {endpoint['EndpointConfigName']}."
    return "There is no endpoint for this model now."


# --- the function -----------------------------------------------------------------------------------


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the model and the step taken; raises when AWS fails, so that Lambda retries."""
    config = settings()
    event, request_id = unwrap(event, context)
    is_sweep = event.get("source") == "sweep"
    model = None if is_sweep else model_of_event(event, config)
    if model is None and not is_sweep:
        log.info("event of nothing that this stack deploys, ignored", extra={"resources": event.get("resources")})
        return {"model": "", "outcome": "ignored"}
    if read_json(config.bucket, PAUSED_KEY)[0] is not None:
        log.info("paused: nothing is done until make resume", extra={"model": model or "all"})
        return {"model": model or "", "outcome": "paused"}
    if model is None:
        return {"model": "", "outcome": reconcile_all(config, request_id)}
    outcome = reconcile(config, model, request_id)
    log.info("endpoint handled: %s", outcome, extra={"model": model, "endpoint": config.endpoint_of(model)})
    return {"model": model, "outcome": outcome}


# --- shared: from here on the three handlers are the same, byte for byte (tests/unit/test_handlers.py) --------------

UPLOAD_PREFIX = "data/train/"
SNAPSHOT_PREFIX = "data/snapshots/"
REJECTED_PREFIX = "data/rejected/"
RAW_MODEL_PREFIX = "models/raw/"
DECISION_PREFIX = "models/decisions/"
APPROVED_PREFIX = "models/approved/"
DEPLOYMENT_PREFIX = "models/deployments/"
PAUSED_KEY = "control/paused.json"
DEFAULT_MODEL = "default"
MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
JOB_NAME = re.compile(r"training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
APPROVED_KEY = re.compile(
    rf"{APPROVED_PREFIX}(?P<model>{MODEL_NAME.pattern})/(?P<job>{JOB_NAME.pattern})/model\.tar\.gz"
)
TERMINAL = ("Completed", "Failed", "Stopped")

# The shape of the records that this version writes (scripts/mlops/records.py).
SCHEMA = 2
# Longer than the longest function timeout (900 s): whoever holds an expired lease is dead.
LEASE_SECONDS = 20 * 60
# How far back a sweep looks, by the time in the jobs' names.
LOOK_BACK_DAYS = 7
# What fails is tried again at every event at first, then once an hour, then given up: about a day in all.
EAGER_TRIES = 5
LATER_TRIES_SECONDS = 60 * 60
GIVE_UP_TRIES = 24
# A conditional write may meet another one on its way. A conflict that lasts is an error.
CONFLICT_TRIES = 5
CONFLICT_PAUSE_SECONDS = 0.2
# CopyObject refuses a larger source (S3 API reference, CopyObject), so larger ones are copied in parts.
COPY_OBJECT_MAX_BYTES = 5 * 1024**3
COPY_PART_BYTES = 512 * 1024**2
COPY_THREADS = 8
# SNS: a subject has less than 100 characters and no line breaks, a message at most 262,144 bytes (Publish).
SUBJECT_MAX_CHARACTERS = 99
MESSAGE_MAX_BYTES = 262_144

log = logging.getLogger()
# At INFO, botocore logs where it found its credentials and endpoints.
logging.getLogger("botocore").setLevel(logging.WARNING)


class ConfigError(ValueError):
    """An environment variable is missing or malformed; the text names it."""


class EventError(ValueError):
    """The event lacks a field or has one of the wrong type; the text names it."""


def required(env: Mapping[str, str], name: str) -> str:
    """The variable's value. Raises ConfigError when it is missing or empty."""
    value = env.get(name, "")
    if not value.strip():
        raise ConfigError(f"environment variable {name} is missing or empty: set it in Terraform and apply")
    return value


def positive_int(env: Mapping[str, str], name: str) -> int:
    """The variable as a whole number above zero. Raises ConfigError otherwise."""
    value = required(env, name)
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) == 0:
        raise ConfigError(f"environment variable {name} must be a whole number above 0, not {value!r}")
    return int(value)


def json_object(env: Mapping[str, str], name: str) -> dict[str, Any]:
    """The variable as a JSON object. Raises ConfigError otherwise."""
    value = required(env, name)
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ConfigError(f"environment variable {name} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"environment variable {name} must be a JSON object, not {value!r}")
    return parsed


@functools.cache
def settings() -> Settings:
    return Settings.from_env(os.environ)


@functools.cache
def client(service: str) -> Any:
    return boto3.client(service, config=Config(retries={"mode": "standard", "max_attempts": 5}))


def field(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    """One field of an event. Raises EventError when it is missing, empty or of another type."""
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(value, kind) or not value:
        raise EventError(f"the event's field {name!r} must be a non-empty {kind.__name__}, not {value!r:.100}")
    return value


def unwrap(event: Mapping[str, Any], context: Any) -> tuple[Mapping[str, Any], str]:
    """The event proper, and the request id to work under. Raises EventError.

    `make redrive` sends a failed event as {"redrive_of": <request id of the invocation that failed>, "event": {...}}.
    Under that id it takes over the dead invocation's leases, as Lambda's own retries do.
    """
    if "redrive_of" not in event:
        return event, context.aws_request_id
    return field(event, "event", dict), field(event, "redrive_of", str)


def now() -> datetime:
    return datetime.now(UTC)


def age(at: str) -> float:
    """Seconds since a time in a record."""
    return (now() - datetime.fromisoformat(at)).total_seconds()


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def error_message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


def is_gone(error: ClientError) -> bool:
    """Whether S3 says that the object does not exist.

    It says so only to a role with s3:ListBucket on the bucket; to others it is 403 (S3 API reference, GetObject).
    """
    return error_code(error) in ("NoSuchKey", "NoSuchVersion", "404")


def list_keys(bucket: str, prefix: str, start_after: str = "") -> Iterator[str]:
    """The keys under a prefix that sort after prefix + start_after."""
    pages = client("s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=prefix + start_after):
        yield from (item["Key"] for item in page.get("Contents", []))


def look_back() -> str:
    """A job's name as of LOOK_BACK_DAYS ago: names sort by time."""
    return f"training-job-{now() - timedelta(days=LOOK_BACK_DAYS):%Y%m%d-%H%M%S}"


def exists(bucket: str, key: str) -> bool:
    try:
        client("s3").head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_gone(error):
            return False
        raise
    return True


def read_json(bucket: str, key: str) -> tuple[Any, str] | tuple[None, None]:
    """A record and its ETag, or (None, None) where there is none."""
    try:
        answer = client("s3").get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_gone(error):
            return None, None
        raise
    return json.loads(answer["Body"].read()), answer["ETag"]


def put_json(bucket: str, key: str, record: Mapping[str, Any], **condition: str) -> str | None:
    """Write a record and return its ETag; condition: IfNoneMatch="*" or IfMatch=<etag>, None when it did not hold."""
    body = json.dumps(record, indent=1, allow_nan=False).encode()
    request = {"Bucket": bucket, "Key": key, "Body": body, "ContentType": "application/json", **condition}
    for tries_left in reversed(range(CONFLICT_TRIES)):
        try:
            return str(client("s3").put_object(**request)["ETag"])
        except ClientError as error:
            # Another write is under way and may come to nothing: S3 asks to try again (PutObject, If-None-Match).
            if error_code(error) == "ConditionalRequestConflict" and tries_left:
                time.sleep(random.uniform(0, CONFLICT_PAUSE_SECONDS))
                continue
            if error_code(error) != "PreconditionFailed":
                raise
            break
    # Or it held and the answer was lost: the SDK repeated the call and met our own record.
    present, etag = read_json(bucket, key)
    return etag if present == json.loads(body) else None


def leased_by_another(entry: Mapping[str, Any] | None, request_id: str) -> bool:
    """Whether another invocation, which may still be alive, holds an entry with "by" (request id) and "at" (time).

    Lambda keeps the request id through its retries, so a retry finds its own lease.
    """
    return entry is not None and entry.get("by") != request_id and age(entry["at"]) < LEASE_SECONDS


def take_lease(bucket: str, step: str, job: str, request_id: str) -> bool:
    """Take the lease on one step of a job. False: another invocation holds it; leave the step to that one."""
    key = f"claims/{step}/{job}.json"
    mine = {"schema": SCHEMA, "by": request_id, "at": now().isoformat()}
    if put_json(bucket, key, mine, IfNoneMatch="*"):
        return True
    held, etag = read_json(bucket, key)
    if held is None or etag is None or leased_by_another(held, request_id):
        return False
    return put_json(bucket, key, mine, IfMatch=etag) is not None


def due_again(tries: int, at: str) -> bool:
    """Whether what failed that many times, the last time at a moment, is to be tried again now."""
    return tries < EAGER_TRIES or age(at) > LATER_TRIES_SECONDS


def copy_object(bucket: str, key: str, source: Mapping[str, str], etag: str, metadata: dict[str, str]) -> None:
    """Copy an object of any size inside S3, pinned to its ETag, without its tags.

    Raises ClientError PreconditionFailed when the source is no longer the one with that ETag.
    """
    replaced = {"MetadataDirective": "REPLACE", "Metadata": metadata, "TaggingDirective": "REPLACE"}
    transfer = TransferConfig(
        multipart_threshold=COPY_OBJECT_MAX_BYTES + 1,
        multipart_chunksize=COPY_PART_BYTES,
        max_concurrency=COPY_THREADS,
        use_threads=COPY_THREADS > 1,
    )
    client("s3").copy(dict(source), bucket, key, ExtraArgs={"CopySourceIfMatch": etag, **replaced}, Config=transfer)


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Rows of (name, value) as indented, aligned lines for a plain-text email."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def human_bytes(size: int) -> str:
    """A size in bytes for people: 512 bytes, 1.4 MB."""
    if size < 1000:
        return f"{size} bytes"
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= s)
    return f"{size / scale:.1f} {unit}"


def notify(
    topic_arn: str, email: Mapping[str, str], model: str, rows: Sequence[tuple[str, object]], **values: object
) -> None:
    """Send one email: a wording filled with values.

    email: "stage", "status" (people filter their subscription by these and by model), "subject", and "body", in which
    {table} stands for the rows.
    """
    values |= {"model": model, "table": table(rows)}
    subject = "".join(c if c.isprintable() else " " for c in email["subject"].format_map(values))
    subject = " ".join(subject.encode("ascii", "replace").decode().split())
    body = email["body"].format_map(values)
    attributes = {"stage": email["stage"], "status": email["status"], "model": model}
    client("sns").publish(
        TopicArn=topic_arn,
        Subject=subject[:SUBJECT_MAX_CHARACTERS],
        Message=body.encode()[:MESSAGE_MAX_BYTES].decode(errors="ignore"),
        MessageAttributes={name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()},
    )
