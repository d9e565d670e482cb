"""Deployment orchestrator: brings a model's endpoint to the newest approved model, one step at a time.

Triggers: EventBridge, S3 "Object Created" under models/approved/ and SageMaker "Endpoint State Change".
Whatever the event, it looks at the world: which model is the newest approved one, what the endpoint serves,
what the deployment records say was asked for; then it takes the next step, tells people and returns.
It never waits for an endpoint, never touches one that is not this stack's, and never retries a model that
was rolled back.

A deployment record goes through these states (they are its lock, too: every change is a conditional write):

  requested ─▶ started ─▶ settling ─▶ confirmed | rolled back | failed | superseded
      └─▶ waiting (asked at a bad moment: the next event asks again)
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

SNAPSHOT_PREFIX = "data/snapshots/"
APPROVED_PREFIX = "models/approved/"
DEPLOYMENT_PREFIX = "models/deployments/"
DEFAULT_MODEL = "default"
MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
APPROVED_KEY = re.compile(
    rf"{APPROVED_PREFIX}(?P<model>{MODEL_NAME.pattern})/"
    r"(?P<job>training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8})/model\.tar\.gz"
)
VARIANT_NAME = "AllTraffic"

SCHEMA = 1
# Enough to see whether a gzip tar begins here and has a file in it.
ARTIFACT_HEAD_BYTES = 64 * 1024
TAR_BLOCK_BYTES = 512
# Longer than the longest function timeout (900 s), so that whoever held an expired lease is dead.
LEASE_SECONDS = 20 * 60
# SageMaker's reads are eventually consistent (CreateEndpoint reference): a new endpoint may not be seen at once.
VISIBLE_SECONDS = 60
# SNS: a subject has less than 100 characters and no line breaks, a message at most 262,144 bytes (Publish).
SUBJECT_MAX_CHARACTERS = 99
MESSAGE_MAX_BYTES = 262_144

OPEN = ("requested", "started", "settling")
SETTLED = ("InService", "UpdateRollbackFailed")
NOT_AGAIN = ("rolled back", "failed", "withdrawn")

log = logging.getLogger()
# It logs where it found credentials and endpoints, at INFO.
logging.getLogger("botocore").setLevel(logging.WARNING)


class ConfigError(ValueError):
    """An environment variable is missing or malformed; the text names it."""


class EventError(ValueError):
    """The event lacks a field or has one of another type; the text names it."""


class ArtifactError(Exception):
    """The approved artifact cannot be deployed; the text is a reason that a person can read."""


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
        )

    def endpoint_of(self, model: str) -> str:
        """The name of a model's endpoint."""
        return self.endpoint_name if model == DEFAULT_MODEL else f"{self.endpoint_name}-{model}"

    def model_of(self, endpoint: str) -> str | None:
        """The model that an endpoint's name stands for; None when it is no name of this stack's."""
        if endpoint == self.endpoint_name:
            return DEFAULT_MODEL
        model = endpoint.removeprefix(f"{self.endpoint_name}-")
        return model if model != endpoint and model != DEFAULT_MODEL and MODEL_NAME.fullmatch(model) else None


@dataclass(frozen=True)
class Approved:
    """An approved model artifact as the listing shows it; size in bytes."""

    model: str
    job: str
    key: str
    etag: str
    size: int


@dataclass
class Record:
    """A deployment record with the ETag under which it was read."""

    data: dict[str, Any]
    etag: str

    @property
    def state(self) -> str:
        return str(self.data["state"])

    @property
    def age(self) -> float:
        """Seconds since the record's last change."""
        return (now() - datetime.fromisoformat(self.data["at"])).total_seconds()

    def in_hand(self, request_id: str) -> bool:
        """Whether another invocation, which may still be alive, is working on this record."""
        return self.data["by"] != request_id and self.age < LEASE_SECONDS


# --- settings ---------------------------------------------------------------------------------------


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


@functools.cache
def settings() -> Settings:
    return Settings.from_env(os.environ)


@functools.cache
def client(service: str) -> Any:
    return boto3.client(service, config=Config(retries={"mode": "standard", "max_attempts": 5}))


def field(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    """One field of an event. Raises EventError when it is missing, empty or not of that type."""
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(value, kind) or not value:
        raise EventError(f"the event's field {name!r} must be a non-empty {kind.__name__}, not {value!r:.100}")
    return value


def unwrap(event: Mapping[str, Any], context: Any) -> tuple[Mapping[str, Any], str]:
    """The event proper, and the request id under which to work on it.

    A failed event that is sent again comes as {"redrive_of": <request id of the invocation that failed>, "event":
    {...}}: under that id it takes up what the dead invocation holds, as Lambda's own retries do. Raises EventError.
    """
    if "redrive_of" not in event:
        return event, context.aws_request_id
    return field(event, "event", dict), field(event, "redrive_of", str)


# --- records and notifications (the same in each handler) ------------------------------------------


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def now() -> datetime:
    return datetime.now(UTC)


def read_json(bucket: str, key: str) -> tuple[dict[str, Any], str] | tuple[None, None]:
    """A record and its ETag, or (None, None) where there is none.

    A missing key answers 404 only to a role with s3:ListBucket on the bucket (S3 API reference, GetObject).
    """
    try:
        answer = client("s3").get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error_code(error) in ("NoSuchKey", "404"):
            return None, None
        raise
    return json.loads(answer["Body"].read()), answer["ETag"]


def put_json(bucket: str, key: str, record: Mapping[str, Any], **condition: str) -> str | None:
    """Write a record and return its ETag; condition: IfNoneMatch="*" or IfMatch=<etag>, None when it did not hold."""
    body = json.dumps(record, indent=1, allow_nan=False).encode()
    try:
        answer = client("s3").put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json", **condition)
    except ClientError as error:
        if condition and error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
            return None
        raise
    return str(answer["ETag"])


def publish(topic_arn: str, subject: str, body: str, *, stage: str, status: str, model: str) -> None:
    """Send one notification; people filter their subscription by the attributes stage, status and model."""
    printable = "".join(character if character.isprintable() else " " for character in subject)
    line = " ".join(printable.encode("ascii", "replace").decode().split())
    text = body.encode()[:MESSAGE_MAX_BYTES].decode(errors="ignore")
    attributes = {"stage": stage, "status": status, "model": model}
    client("sns").publish(
        TopicArn=topic_arn,
        Subject=line[:SUBJECT_MAX_CHARACTERS],
        Message=text,
        MessageAttributes={name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()},
    )


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


# --- what is approved, what is served ---------------------------------------------------------------


def approved_models(bucket: str, model: str) -> list[Approved]:
    """A model's approved artifacts, newest first; other names under the prefix are reported and ignored."""
    found = []
    pages = client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{APPROVED_PREFIX}{model}/")
    for item in (item for page in pages for item in page.get("Contents", [])):
        match = APPROVED_KEY.fullmatch(item["Key"])
        if match is None:
            log.warning("no model artifact of a training job, ignored", extra={"key": item["Key"]})
            continue
        found.append(Approved(model, match["job"], item["Key"], item["ETag"].strip('"'), item["Size"]))
    return sorted(found, key=lambda artifact: artifact.job, reverse=True)


def digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def requests(config: Settings, artifact: Approved) -> tuple[dict[str, Any], dict[str, Any]]:
    """The CreateModel and CreateEndpointConfig requests for an artifact under the present settings.

    Both kinds cannot be changed once made, so each name ends in a hash of all that goes into it:
    changed settings are a new name.
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


def is_missing(error: ClientError) -> bool:
    """Whether SageMaker says that the thing does not exist: a ValidationException, told by its text alone."""
    return error_code(error) == "ValidationException" and message(error).startswith("Could not find")


def message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


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


def is_ours(config: Settings, endpoint: Mapping[str, Any]) -> bool:
    """Whether this stack made the endpoint: another stack in the account may use the same name."""
    tags = client("sagemaker").list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
    return {"Key": "Stack", "Value": config.bucket} in tags


def check_artifact(config: Settings, artifact: Approved) -> None:
    """Raises ArtifactError unless the artifact is there, begins a gzip tar and has a file in it."""
    if artifact.size == 0:
        raise ArtifactError("the artifact is empty (0 bytes)")
    try:
        answer = client("s3").get_object(
            Bucket=config.bucket,
            Key=artifact.key,
            IfMatch=f'"{artifact.etag}"',
            Range=f"bytes=0-{ARTIFACT_HEAD_BYTES - 1}",
        )
    except ClientError as error:
        if error_code(error) in ("NoSuchKey", "404", "PreconditionFailed", "412"):
            raise ArtifactError("the artifact was deleted or replaced after it was approved") from error
        raise
    try:
        data = io.BytesIO(zlib.decompressobj(wbits=31).decompress(answer["Body"].read(), 1024 * 1024))
        while block := data.read(TAR_BLOCK_BYTES):
            if not block.strip(b"\0"):
                raise ArtifactError("the artifact is an archive without any file")
            if len(block) < TAR_BLOCK_BYTES:
                raise ArtifactError("the artifact is cut off")
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if member.size < 0:
                raise ArtifactError("the artifact has a member of negative size")
            if member.isreg():
                return
            data.seek(-(-member.size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES, io.SEEK_CUR)
    except (zlib.error, tarfile.HeaderError, ValueError) as error:
        raise ArtifactError(f"the artifact is no gzip-compressed tar: {error}") from error
    raise ArtifactError(f"the artifact has no file in its first {ARTIFACT_HEAD_BYTES} bytes")


# --- deployment records -----------------------------------------------------------------------------


def record_key(config_name: str) -> str:
    return f"{DEPLOYMENT_PREFIX}{config_name}.json"


def records_of(bucket: str, job: str, endpoint: str) -> list[Record]:
    """The deployment records of a training job's model on an endpoint: one for each set of settings."""
    found = []
    prefix = f"{DEPLOYMENT_PREFIX}{job}-"
    pages = client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for item in (item for page in pages for item in page.get("Contents", [])):
        data, etag = read_json(bucket, item["Key"])
        if data is not None and etag is not None and data["endpoint"] == endpoint:
            found.append(Record(data, etag))
    return found


def move(config: Settings, record: Record, request_id: str, state: str, **more: Any) -> bool:
    """Take a record to a state, unless somebody else changed it since it was read; True when it was taken."""
    data = record.data | more | {"state": state, "by": request_id, "at": now().isoformat()}
    etag = put_json(config.bucket, record_key(data["config"]), data, IfMatch=record.etag)
    if etag is None:
        return False
    record.data, record.etag = data, etag
    return True


# --- notifications ----------------------------------------------------------------------------------


def capacity_text(config: Settings) -> str:
    if config.endpoint_type == "serverless":
        return f"serverless, {config.serverless_memory_mb} MB, up to {config.serverless_max_concurrency} at a time"
    return f"{config.endpoint_instance_count} x {config.endpoint_instance_type}"


def tell(config: Settings, record: Mapping[str, Any], outcome: str, reason: str = "") -> None:
    """The notification on what became of a deployment."""
    model, endpoint, previous = record["model"], record["endpoint"], record["previous_config"]
    source, _ = read_json(config.bucket, f"{SNAPSHOT_PREFIX}{record['job']}/source.json")
    rows: list[tuple[str, object]] = [
        ("model", model),
        ("endpoint", endpoint),
        ("data", f"s3://{source['bucket']}/{source['key']}" if source else "unknown"),
        ("training job", record["job"]),
        ("endpoint config", record["config"]),
        ("artifact", f"s3://{config.bucket}/{record['artifact']['key']} ({human_bytes(record['artifact']['size'])})"),
    ]
    if previous:
        rows.append(("before", previous))
    predict = f'make predict MODEL={model} TEXT="some text"'
    cli = (
        f"aws sagemaker-runtime invoke-endpoint --endpoint-name {endpoint} --content-type application/json "
        f'--cli-binary-format raw-in-base64-out --body \'{{"inputs": "some text"}}\' answer.json'
    )
    meanwhile = (
        "It keeps answering with the model before until the new one is up."
        if previous
        else "It is new: it answers as soon as it is up."
    )
    unaffected = f"The endpoint goes on serving {previous}." if previous else "There is no endpoint for this model now."
    logs = f"See the model server's log: make logs ENDPOINT={endpoint}"
    subjects = {
        "started": "Deployment started",
        "confirmed": "Deployment successful",
        "rolled back": "Deployment rolled back",
        "failed": "Deployment failed",
        "waiting": "Deployment waiting",
    }
    openings = {
        "started": f"The approved model is on its way to the endpoint ({capacity_text(config)}).\n{meanwhile}",
        "confirmed": "The endpoint is in service and serves the new model.",
        "rolled back": "The new model did not come up, so SageMaker put the endpoint back to the model before.",
        "failed": "The new model could not be deployed.",
        "waiting": "The new model cannot be deployed just now.",
    }
    nexts = {
        "started": "nothing to do. The next email says how it ended, commonly in 5 to 10 minutes.",
        "confirmed": f"try it:\n\n  {predict}\n\nor, with the AWS CLI:\n\n  {cli}",
        "rolled back": f"{unaffected} This model is not tried again. {logs}; mend the cause, then upload again.",
        "failed": f"{unaffected} This model is not tried again. {logs}; mend the cause, then upload again.",
        "waiting": f"{unaffected} Remove the cause; the next upload or endpoint event tries again.",
    }
    why = f"Why: {reason}\n\n" if reason else ""
    publish(
        config.topic_arn,
        f"{subjects[outcome]}: {model} ({endpoint})",
        f"{openings[outcome]}\n\n{table(rows)}\n\n{why}What next: {nexts[outcome]}\n",
        stage="deployment",
        status=subjects[outcome].removeprefix("Deployment ").replace(" ", "-"),
        model=model,
    )


# --- the steps --------------------------------------------------------------------------------------


def was_made(record: Record, endpoint: Mapping[str, Any] | None) -> bool:
    """Whether the endpoint shows that the call of a record was made.

    The record holds the endpoint's last-modified time as it was before the call: an unchanged time means
    that the call was never made, or is not visible yet. A pending deployment of another config was asked
    for by somebody else.
    """
    if endpoint is None or last_modified(endpoint) == record.data["endpoint_last_modified"]:
        return False
    pending = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName", record.data["config"])
    return bool(pending == record.data["config"])


def outcome_of(record: Record, endpoint: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """What became of a deployment that was started: (state, reason); None while it is under way."""
    if endpoint is None:
        if record.state == "started" and record.age < VISIBLE_SECONDS:
            return None
        return "failed", "the endpoint was deleted while the model was being deployed"
    status, served = endpoint["EndpointStatus"], endpoint.get("EndpointConfigName")
    reason = str(endpoint.get("FailureReason") or "")
    if status == "InService" and served == record.data["config"]:
        return "confirmed", ""
    if not was_made(record, endpoint):
        return None
    if status == "InService" and served == record.data["previous_config"]:
        return "rolled back", reason or "SageMaker gave no reason; the model server's log tells more"
    if status == "InService":
        return "superseded", f"the endpoint serves {served}"
    if status in ("Failed", "UpdateRollbackFailed"):
        return "failed", reason or f"SageMaker gave no reason; the endpoint is {status}"
    return None


def settle(config: Settings, record: Record, endpoint: Mapping[str, Any] | None, request_id: str) -> bool:
    """Take an open record as far as the endpoint allows, and tell people, once; True when that ended it."""
    if record.state in ("requested", "settling") and record.in_hand(request_id):
        return False
    if record.state in ("requested", "waiting"):
        # Served, though nobody knows that it was asked for: the answer to the call was lost.
        served = endpoint is not None and endpoint["EndpointConfigName"] == record.data["config"]
        if record.state == "waiting" and not served:
            return False
        if not served and not was_made(record, endpoint):
            move(config, record, request_id, "waiting")
            return False
        # Whoever asked died before people were told.
        tell(config, record.data, "started")
        if not move(config, record, request_id, "started"):
            return False
    ended = outcome_of(record, endpoint)
    if ended is None:
        return False
    state, reason = ended
    if not move(config, record, request_id, "settling"):
        return False
    if state != "superseded":
        tell(config, record.data, state, reason)
    log.info("deployment settled: %s", state, extra={"training_job": record.data["job"], "reason": reason})
    return move(config, record, request_id, state, reason=reason)


def create_once(call: Any, request: Mapping[str, Any]) -> None:
    """Create a model or an endpoint config; one that exists under this name is the same, by its name.

    AWS answers "Cannot create already existing ..." to a second config; the text for a model is unconfirmed.
    """
    try:
        call(**request)
    except ClientError as error:
        if error_code(error) != "ValidationException" or "already exist" not in message(error):
            raise


def deploy(
    config: Settings,
    artifact: Approved,
    record: Record | None,
    endpoint: Mapping[str, Any] | None,
    request_id: str,
) -> str:
    """Ask for the artifact on its endpoint; returns the outcome in a word.

    The record is written before the call, with the endpoint as it was seen: after a crash it tells
    whether the call was made.
    """
    model_request, config_request = requests(config, artifact)
    name = config_request["EndpointConfigName"]
    data = {
        "schema": SCHEMA,
        "config": name,
        "endpoint": config.endpoint_of(artifact.model),
        "model": artifact.model,
        "model_name": model_request["ModelName"],
        "job": artifact.job,
        "artifact": {"key": artifact.key, "etag": artifact.etag, "size": artifact.size},
        "endpoint_last_modified": last_modified(endpoint),
        "previous_config": endpoint["EndpointConfigName"] if endpoint else None,
        "reason": record.data["reason"] if record else "",
    }
    data |= {"state": "requested", "by": request_id, "at": now().isoformat()}
    condition = {"IfMatch": record.etag} if record else {"IfNoneMatch": "*"}
    etag = put_json(config.bucket, record_key(name), data, **condition)
    if etag is None:
        return "in hand"
    record = Record(data, etag)

    def give_up(state: str, reason: str) -> str:
        # A cause that lasts is told once, not at every event that finds it still there.
        if data["reason"] != reason:
            tell(config, data, state, reason)
        move(config, record, request_id, state, reason=reason)
        return state

    if endpoint is not None and not is_ours(config, endpoint):
        return give_up(
            "waiting",
            f"an endpoint {data['endpoint']} exists that this stack did not make: "
            "set endpoint_name in Terraform to another name and apply, or delete that endpoint",
        )
    try:
        check_artifact(config, artifact)
    except ArtifactError as error:
        return give_up("failed", str(error))
    sagemaker = client("sagemaker")
    try:
        create_once(sagemaker.create_model, model_request)
        create_once(sagemaker.create_endpoint_config, config_request)
        # CreateEndpoint may not see a new config yet; AWS advises to describe it first (CreateEndpoint reference).
        sagemaker.describe_endpoint_config(EndpointConfigName=name)
        if endpoint is None:
            sagemaker.create_endpoint(
                EndpointName=data["endpoint"], EndpointConfigName=name, Tags=config_request["Tags"]
            )
        else:
            sagemaker.update_endpoint(EndpointName=data["endpoint"], EndpointConfigName=name)
    except ClientError as error:
        if error_code(error) == "ResourceLimitExceeded":
            return give_up("waiting", f"a quota of the account is used up. SageMaker said: {message(error)}")
        busy = ("Cannot update in-progress endpoint", "Cannot create already existing endpoint")
        if error_code(error) == "ValidationException" and message(error).startswith(busy):
            # Somebody was faster; the event that ends their change brings this one's turn.
            move(config, record, request_id, "waiting")
            return "busy"
        raise
    tell(config, data, "started")
    move(config, record, request_id, "started")
    return "started"


def delete_failed(config: Settings, endpoint: Mapping[str, Any]) -> str:
    """Delete a failed endpoint: nothing else can be done with it (DescribeEndpoint reference, EndpointStatus)."""
    try:
        if not is_ours(config, endpoint):
            return "failed endpoint of somebody else"
        client("sagemaker").delete_endpoint(EndpointName=endpoint["EndpointName"])
    except ClientError as error:
        # A duplicate event's invocation was faster.
        if not is_missing(error) and not message(error).startswith("Cannot update in-progress endpoint"):
            raise
    return "failed endpoint deleted"


def reconcile(config: Settings, model: str, request_id: str) -> str:
    """Take the next step towards the newest approved model on the model's endpoint; returns it in a word."""
    artifacts = approved_models(config.bucket, model)
    if not artifacts:
        return "nothing approved"
    name = config.endpoint_of(model)
    endpoint = describe_endpoint(name)
    records: dict[str, Record] = {}
    considered = []
    for artifact in artifacts:
        considered.append(artifact)
        found = records_of(config.bucket, artifact.job, name)
        for record in found:
            if record.state in (*OPEN, "waiting") and settle(config, record, endpoint, request_id):
                # Whatever arrived meanwhile found this deployment open and left: look again for it.
                return reconcile(config, model, request_id)
            records[record.data["config"]] = record
        if any(record.state == "confirmed" for record in found):
            break

    if endpoint is not None and endpoint["EndpointStatus"] not in (*SETTLED, "Failed"):
        return f"busy: {endpoint['EndpointStatus']}"
    if any(record.state in OPEN for record in records.values()):
        return "under way"
    if endpoint is not None and endpoint["EndpointStatus"] == "Failed":
        return delete_failed(config, endpoint)
    for artifact in considered:
        config_name = requests(config, artifact)[1]["EndpointConfigName"]
        known = records.get(config_name)
        if known is not None and known.state in NOT_AGAIN:
            continue
        if endpoint is not None and endpoint["EndpointConfigName"] == config_name:
            return "in service"
        if known is not None and known.state in ("confirmed", "superseded"):
            # It was live, or on its way: somebody deleted the endpoint or switched it. That is theirs to undo.
            return "left as somebody made it"
        return deploy(config, artifact, known, endpoint, request_id)
    return "nothing to deploy"


def model_of_event(event: Mapping[str, Any], config: Settings) -> str | None:
    """The model whose endpoint the event concerns; None when it is not this stack's. Raises EventError."""
    detail = field(event, "detail", dict)
    if event.get("source") == "aws.s3":
        if field(field(detail, "bucket", dict), "name", str) != config.bucket:
            return None
        match = APPROVED_KEY.fullmatch(field(field(detail, "object", dict), "key", str))
        return match["model"] if match else None
    return config.model_of(field(detail, "EndpointName", str))


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the model and the step taken; raises when AWS fails, so that Lambda retries."""
    config = settings()
    event, request_id = unwrap(event, context)
    model = model_of_event(event, config)
    if model is None:
        log.info("event of nothing that this stack deploys, ignored", extra={"resources": event.get("resources")})
        return {"model": "", "outcome": "ignored"}
    outcome = reconcile(config, model, request_id)
    log.info("endpoint handled: %s", outcome, extra={"model": model, "endpoint": config.endpoint_of(model)})
    return {"model": model, "outcome": outcome}
