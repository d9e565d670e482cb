"""Deployment orchestrator: brings a model's endpoint to the newest approved model, one step at a time.

Triggers: EventBridge, S3 "Object Created" under models/approved/, SageMaker "Endpoint State Change", and a schedule
({"source": "sweep"}: every model in turn). Whatever the event, it looks at the world: which model is the newest
approved one, what the endpoint serves, what the deployment records say was asked for; then it takes the next step,
tells people and returns. It never waits for an endpoint, never touches one that is not this stack's, never retries
a model that was rolled back, and never undoes what a person did: an endpoint that somebody deleted stays deleted.

A deployment record goes through these states (they are its lock, too: every change is a conditional write):

  requested ─▶ started ─▶ settling ─▶ confirmed | rolled back | failed | superseded
      └─▶ waiting (asked at a bad moment: the next event or sweep asks again)

A person's command makes a record "withdrawn" (never again) or "waiting" (asked for). "removed" is one whose model
and endpoint config were cleaned up. When the endpoint serves a model that is not to be served, or had to be deleted,
the newest confirmed one is asked for again: its record begins anew, and says what it "restores".
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

VARIANT_NAME = "AllTraffic"

# Enough to see whether a gzip tar begins here and has a file in it.
ARTIFACT_HEAD_BYTES = 64 * 1024
TAR_BLOCK_BYTES = 512
# SageMaker's reads are eventually consistent (CreateEndpoint reference): a new endpoint may not be seen at once.
VISIBLE_SECONDS = 60

# Approved models that are looked at, newest first: bounds what one invocation reads.
LOOK_BACK_MODELS = 50
# Steps that one invocation takes for one model; the sweep goes on from there.
STEPS_MAX = 20
# What is refused is asked again at each event and sweep: a week of them, at the default of one in 15 minutes.
TRIES_MAX = 7 * 24 * 4

# The same weights on another machine, with other kernels or another padding, move a score by 0.001, at half
# precision by 0.01; other weights move most of them by much more.
SCORE_TOLERANCE = 0.05
# Labels whose scores nearly tie may change places by that; with weights that are the right ones, hardly ever.
TIES_MAX_SHARE = 0.1
CHECK_ASKS = 3
CHECK_PAUSE_SECONDS = 2.0
# A container has 60 seconds to answer (developer guide, inference code); three times that fits the function's 300.
INVOKE_READ_SECONDS = 65
# A model that answers with timeouts or server errors may be starting still, for this long after the endpoint settled.
# As long, a denial to ask it fails the function (retries, alarm); then the deployment counts, and its email says so.
CHECK_PATIENCE_SECONDS = 10 * 60

OPEN = ("requested", "started", "settling")
SETTLED = ("InService", "UpdateRollbackFailed")
NOT_AGAIN = ("rolled back", "failed", "withdrawn", "removed")
AGAIN = "look again"
HELD = "the endpoint was deleted by hand"


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
    def config(self) -> str:
        """The endpoint config whose deployment this is."""
        return str(self.data["config"])

    @property
    def asked_for(self) -> bool:
        """Whether it waits for its turn, and not for a person who deleted the endpoint."""
        return self.state == "waiting" and self.data["reason"] != HELD

    @property
    def is_withdrawn(self) -> bool:
        """Whether a person said no to the model, even if it was cleaned up since."""
        return "withdrawn" in (self.state, self.data.get("was"))

    @property
    def age(self) -> float:
        """Seconds since the record's last change."""
        return (now() - datetime.fromisoformat(self.data["at"])).total_seconds()

    def in_hand(self, request_id: str) -> bool:
        """Whether another invocation, which may still be alive, is working on this record."""
        return self.data["by"] != request_id and self.age < LEASE_SECONDS


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


# --- settings ---------------------------------------------------------------------------------------


@functools.cache
def runtime() -> Any:
    """The client that asks endpoints: an attempt may take as long as a model may, so there are few."""
    config = Config(read_timeout=INVOKE_READ_SECONDS, retries={"mode": "standard", "total_max_attempts": 3})
    return boto3.client("sagemaker-runtime", config=config)


# --- records and notifications (the same in each handler) ------------------------------------------


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


def read_record(bucket: str, config_name: str) -> Record | None:
    """The deployment record of an endpoint config; None where the pipeline has none."""
    data, etag = read_json(bucket, record_key(config_name))
    return None if data is None or etag is None else Record(data, etag)


def move(config: Settings, record: Record, request_id: str, state: str, **more: Any) -> bool:
    """Take a record to a state, unless somebody else changed it since it was read; True when it was taken."""
    data = record.data | more | {"state": state, "by": request_id, "at": now().isoformat()}
    etag = put_json(config.bucket, record_key(data["config"]), data, IfMatch=record.etag)
    if etag is None:
        return False
    record.data, record.etag = data, etag
    return True


def started_at(record: Record) -> str:
    """When SageMaker began with a deployment, as text that sorts by time; "" when it did not."""
    return str(record.data.get("started_at") or "")


def newest_started(records: Iterable[Record]) -> Record | None:
    """The record whose deployment SageMaker began last."""
    return max((record for record in records if started_at(record)), key=started_at, default=None)


# --- notifications ----------------------------------------------------------------------------------


def capacity_text(config: Settings) -> str:
    if config.endpoint_type == "serverless":
        return f"serverless, {config.serverless_memory_mb} MB, up to {config.serverless_max_concurrency} at a time"
    return f"{config.endpoint_instance_count} x {config.endpoint_instance_type}"


def standing(endpoint: Mapping[str, Any] | None) -> str:
    """What people's calls meet now, in a sentence."""
    if endpoint is not None and endpoint["EndpointStatus"] in SETTLED:
        return f"The endpoint goes on serving {endpoint['EndpointConfigName']}."
    return "There is no endpoint for this model now."


def tell(config: Settings, record: Mapping[str, Any], outcome: str, reason: str = "", then: str = "") -> None:
    """The notification on what became of a deployment or its endpoint; then: what the endpoint does now."""
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
    if record.get("checked"):
        rows.append(("golden rows", record["checked"]))
    predict = f'make predict MODEL={model} TEXT="some text"'
    cli = (
        f"aws sagemaker-runtime invoke-endpoint --endpoint-name {endpoint} --content-type application/json "
        f'--cli-binary-format raw-in-base64-out --body \'{{"inputs": "some text"}}\' answer.json'
    )
    meanwhile = "It is new: it answers as soon as it is up."
    if record.get("replaces"):
        meanwhile = (
            "An endpoint on instances cannot become serverless in place, so it is replaced: it is deleted now and made "
            "anew by the next sweep. IT DOES NOT ANSWER UNTIL THEN, commonly for 10 to 30 minutes."
        )
    elif previous:
        meanwhile = "It keeps answering with the model before until the new one is up."
    logs = f"See the model server's log: make logs ENDPOINT={endpoint}"
    after = f"{record.get('restores')} was taken back"
    if record.get("restores") == record["config"]:
        after = "the endpoint had failed"
    again = f"This model is not tried again. {logs}; mend the cause, then upload again."
    come_back = f"make resume MODEL={model} brings it back, with the newest approved model."
    subject, opening, following = {
        "started": (
            "Deployment started",
            f"The approved model is on its way to the endpoint ({capacity_text(config)}).\n{meanwhile}",
            "nothing to do. The next email says how it ended, commonly in 5 to 10 minutes.",
        ),
        "confirmed": (
            "Deployment successful",
            "The endpoint is in service and serves the new model.",
            f"try it:\n\n  {predict}\n\nor, with the AWS CLI:\n\n  {cli}",
        ),
        "restored": (
            "Deployment restored",
            f"The endpoint is in service and serves this model again, after {after}.",
            f"nothing to do. Try it:\n\n  {predict}",
        ),
        "rolled back": ("Deployment rolled back", "The new model was taken back.", f"{then} {again}"),
        "failed": ("Deployment failed", "The new model could not be deployed.", f"{then} {again}"),
        "waiting": (
            "Deployment waiting",
            "The new model cannot be deployed just now.",
            f"{then} Remove the cause; the pipeline tries again by itself, with every sweep.",
        ),
        "held": (
            "Deployment waiting",
            "The new model is approved, but not deployed: somebody deleted the endpoint, and no upload undoes that.",
            come_back,
        ),
        "deleted by hand": (
            "Endpoint deleted by hand",
            "Somebody deleted the endpoint. It stays deleted, and costs nothing: no upload brings it back.",
            f"nothing, if that is meant. {come_back}",
        ),
        "endpoint failed": (
            "Endpoint failed",
            "The endpoint was in service, and has failed since. It is deleted: nothing else can be done with it.",
            f"nothing to do: the pipeline makes it anew, with the last confirmed model. {logs}",
        ),
        "out of service": (
            "Endpoint out of service",
            "SageMaker took the endpoint out of service: it does not answer. The pipeline leaves it as it is.",
            f"look at the endpoint in the SageMaker console, and at {logs[:1].lower() + logs[1:]}\nIf it does not come "
            f"back: delete it, then make resume MODEL={model} makes it anew.",
        ),
    }[outcome]
    why = f"Why: {reason}\n\n" if reason else ""
    publish(
        config.topic_arn,
        f"{subject}: {model} ({endpoint})",
        f"{opening}\n\n{table(rows)}\n\n{why}What next: {following}\n",
        stage="deployment",
        status=subject.removeprefix("Deployment ").lower().replace(" ", "-"),
        model=model,
    )


# --- does the right model answer? -------------------------------------------------------------------


def difference(golden: Sequence[Mapping[str, Any]], answers: object) -> str:
    """How an endpoint's answers differ from the golden rows, {"text", "label", "score"}, in words; "" when they agree.

    Labels and scores agree within SCORE_TOLERANCE. A label that nearly tied with another one in training may give
    way to it, in few rows. The words hold no text of the rows: they go into an email.
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
        ties += close and row["score"] <= 0.5 + SCORE_TOLERANCE
        if not close or row["score"] > 0.5 + SCORE_TOLERANCE or ties > TIES_MAX_SHARE * len(golden):
            wrong.append(f"{label} {score:.3f} instead of {row['label']} {row['score']:.3f}")
    if not wrong:
        return ""
    return (
        f"{len(wrong)} of {len(golden)} golden rows are answered otherwise than by the model that was trained "
        f"(for instance {wrong[0]}): the endpoint serves other weights, or a broken copy"
    )


def ask(endpoint_name: str, texts: Sequence[str]) -> object:
    """The endpoint's decoded answer to texts. Raises ClientError; ValueError when the answer is no JSON."""
    answer = runtime().invoke_endpoint(
        EndpointName=endpoint_name, ContentType="application/json", Body=json.dumps({"inputs": texts}).encode()
    )
    return json.loads(answer["Body"].read())


def check_answers(config: Settings, record: Record, endpoint: Mapping[str, Any]) -> tuple[str, str] | None:
    """Ask the endpoint the golden rows of the model's decision: (what is wrong, or ""; what was checked, in words).

    None when the endpoint cannot be asked: it was deleted since it was looked at, or is not to be seen yet.
    Raises what AWS raises on a failure that may pass (throttling, a cold start that takes too long, no capacity):
    Lambda's retry or the sweep asks again. A model whose own code answers with errors does not pass: the HuggingFace
    server turns every exception in it into a 400 (handler_service.py), and 5xx and timeouts that last count as well.
    """
    decision, _ = read_json(config.bucket, f"{DECISION_PREFIX}{record.data['job']}.json")
    golden = (decision or {}).get("golden") or []
    if not golden:
        return "", "not checked: the training job gave none"
    for attempt in range(CHECK_ASKS):
        if attempt:
            time.sleep(CHECK_PAUSE_SECONDS)
        try:
            wrong = difference(golden, ask(record.data["endpoint"], [row["text"] for row in golden]))
        except ValueError as error:
            wrong = f"the endpoint does not answer with JSON: {error}"
        except ClientError as error:
            if error_code(error) == "ValidationError" and "not found" in message(error):
                return None
            settled_for = (now() - endpoint["LastModifiedTime"]).total_seconds()
            if error_code(error) == "AccessDeniedException" and settled_for >= CHECK_PATIENCE_SECONDS:
                # A new policy may take minutes to hold. A denial that lasts says nothing about the model.
                return "", f"NOT CHECKED: this function may not ask the endpoint. AWS said: {message(error):.500}"
            if error_code(error) != "ModelError":
                raise
            answer: Mapping[str, Any] = error.response
            by_the_model = 400 <= answer.get("OriginalStatusCode", 0) < 500
            if not by_the_model and settled_for < CHECK_PATIENCE_SECONDS:
                raise
            wrong = f"the new model does not answer. SageMaker said: {message(error):.500}"
        if not wrong:
            return "", f"{len(golden)} of {len(golden)} answered as in training"
    return wrong, ""


# --- what became of a deployment --------------------------------------------------------------------


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


def why_rolled_back(endpoint: Mapping[str, Any]) -> str:
    """What may have led to a rollback of which SageMaker gives no reason, which is common."""
    rollback = (endpoint.get("LastDeploymentConfig") or {}).get("AutoRollbackConfiguration", {})
    alarms = ", ".join(alarm["AlarmName"] for alarm in rollback.get("Alarms", []))
    if not alarms:
        return "SageMaker gave no reason; the model server's log tells more"
    return (
        "SageMaker gave no reason: either the new model's server did not come up, which its log tells, or an alarm "
        f"went off while traffic moved to it ({alarms})"
    )


def outcome_of(record: Record, endpoint: Mapping[str, Any]) -> tuple[str, str] | None:
    """What became of a deployment that was started: (state, reason); None while it is under way."""
    status, served = endpoint["EndpointStatus"], endpoint.get("EndpointConfigName")
    reason = str(endpoint.get("FailureReason") or "")
    if status == "InService" and served == record.config:
        return "confirmed", ""
    if not was_made(record, endpoint):
        return None
    if status == "InService" and served == record.data["previous_config"]:
        return "rolled back", reason or why_rolled_back(endpoint)
    if status == "InService":
        return "superseded", f"the endpoint serves {served}"
    if status in ("Failed", "UpdateRollbackFailed"):
        return "failed", reason or f"SageMaker gave no reason; the endpoint is {status}"
    return None


def confirmed_before(config: Settings, record: Record) -> str:
    """The endpoint config that the pipeline goes back to from a deployment that went wrong; "" when there is none."""
    for artifact in approved_models(config.bucket, record.data["model"])[:LOOK_BACK_MODELS]:
        found = records_of(config.bucket, artifact.job, record.data["endpoint"])
        if any(other.is_withdrawn for other in found):
            continue
        for other in found:
            if other.state == "confirmed" and other.config != record.config:
                return other.config
    return ""


def vanished(config: Settings, record: Record, request_id: str) -> bool:
    """The endpoint of an open deployment is gone: told once, and held; True when that ended it."""
    if record.state == "started" and record.age < VISIBLE_SECONDS:
        return False
    if not move(config, record, request_id, "settling"):
        return False
    tell(config, record.data, "deleted by hand", "it was deleted while this model was being deployed")
    return move(config, record, request_id, "waiting", reason=HELD, deleted="somebody")


def settle(config: Settings, record: Record, endpoint: Mapping[str, Any] | None, request_id: str) -> bool:
    """Take an open record as far as the endpoint allows, and tell people, once; True when that ended it."""
    if record.state in ("requested", "settling") and record.in_hand(request_id):
        return False
    if record.state in ("requested", "waiting"):
        # Served, though nobody knows that it was asked for: the answer to the call was lost.
        served = endpoint is not None and endpoint["EndpointConfigName"] == record.config
        if record.state == "waiting" and not served:
            return False
        if not served and record.data.get("replaces") == "delete":
            deleted = endpoint is None or endpoint["EndpointStatus"] == "Deleting"
            if deleted:
                tell(config, record.data, "started")
            move(config, record, request_id, "waiting", replaces="create" if deleted else "")
            return False
        if not served and not was_made(record, endpoint):
            move(config, record, request_id, "waiting")
            return False
        # Whoever asked died before people were told.
        if not start(config, record, request_id):
            return False
    if endpoint is None:
        return vanished(config, record, request_id)
    ended = outcome_of(record, endpoint)
    if ended is None:
        return False
    state, reason = ended
    then, more = standing(endpoint), {"checked": "", "ended": last_modified(endpoint)}
    if state == "confirmed":
        answered = check_answers(config, record, endpoint)
        if answered is None:
            return False
        reason, more["checked"] = answered
        if reason:
            before = confirmed_before(config, record)
            state = "rolled back" if before else "failed"
            then = f"The pipeline puts {before} back; an email says when it serves."
            if not before:
                then = "There is no confirmed model to go back to, so the endpoint is deleted: it answers wrongly."
    elif state == "failed":
        before = confirmed_before(config, record)
        then = "A failed endpoint can only be deleted, so the pipeline deletes it"
        then += f" and brings {before} back." if before else ". There is no confirmed model to bring back."
    if not move(config, record, request_id, "settling"):
        return False
    if state != "superseded":
        told = "restored" if state == "confirmed" and record.data.get("restores") else state
        tell(config, record.data | more, told, reason, then)
    log.info("deployment settled: %s", state, extra={"training_job": record.data["job"], "reason": reason})
    return move(config, record, request_id, state, reason=reason, cleaned=state != "confirmed", **more)


def start(config: Settings, record: Record, request_id: str) -> bool:
    """SageMaker was asked: tell people, and note it; True when it was noted."""
    # What is restored was told when it became necessary, what is replaced when the old endpoint was deleted.
    if not record.data.get("restores") and record.data.get("replaces") != "create":
        tell(config, record.data, "started")
    return move(config, record, request_id, "started", started_at=now().isoformat())


# --- asking SageMaker -------------------------------------------------------------------------------


def create_once(call: Any, request: Mapping[str, Any]) -> None:
    """Create a model or an endpoint config; one that exists under this name is the same, by its name.

    AWS answers "Cannot create already existing ..." to a second config; the text for a model is unconfirmed.
    """
    try:
        call(**request)
    except ClientError as error:
        if error_code(error) != "ValidationException" or "already exist" not in message(error):
            raise


def variant_of(config_request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one production variant of a CreateEndpointConfig request or a DescribeEndpointConfig answer."""
    variant: Mapping[str, Any] = config_request["ProductionVariants"][0]
    return variant


def is_replacement(choice: Choice, endpoint: Mapping[str, Any] | None) -> bool:
    """Whether the endpoint must be made anew: AWS refuses to turn instances into serverless in place.

    (Developer guide, Serverless Inference: a serverless endpoint can become one on instances, not the reverse.)
    """
    if endpoint is None or "ServerlessConfig" not in variant_of(choice.config_request):
        return False
    return any("CurrentServerlessConfig" not in variant for variant in endpoint.get("ProductionVariants", []))


def deployment_policy(policy: Mapping[str, Any], endpoint_name: str, instances: int) -> dict[str, Any]:
    """The DeploymentConfig for one endpoint: the stack's policy with the endpoint's own alarms, {} for none.

    Alarms are named <endpoint>/<what>. Steps are a share of the fleet; one that is too small for them, as
    autoscaling may leave it, takes its traffic all at once.
    """
    own: dict[str, Any] = json.loads(json.dumps(policy))
    alarms = own.get("AutoRollbackConfiguration", {}).get("Alarms", [])
    alarms = [alarm for alarm in alarms if alarm["AlarmName"].startswith(f"{endpoint_name}/")]
    own.pop("AutoRollbackConfiguration", None)
    if alarms:
        own["AutoRollbackConfiguration"] = {"Alarms": alarms}
    routing = own.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    size = routing.get("CanarySize") or routing.get("LinearStepSize")
    if size and instances * size["Value"] < 100:
        wait = routing["WaitIntervalInSeconds"]
        own["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"] = {
            "Type": "ALL_AT_ONCE",
            "WaitIntervalInSeconds": wait,
        }
    return own


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


def cause(reason: str) -> str:
    """A reason without its numbers: the utilisation in a quota's text changes, the cause does not."""
    return re.sub(r"[0-9]+", "#", reason)


def blank_record(config: Settings, choice: Choice, endpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record of a deployment that begins, all but its state."""
    waiting = choice.record.data if choice.record and choice.record.state == "waiting" else {}
    return {
        "schema": SCHEMA,
        "config": choice.config,
        "endpoint": config.endpoint_of(choice.artifact.model),
        "model": choice.artifact.model,
        "model_name": choice.model_request["ModelName"],
        "job": choice.artifact.job,
        "artifact": {"key": choice.artifact.key, "etag": choice.artifact.etag, "size": choice.artifact.size},
        "requests": {"model": choice.model_request, "config": choice.config_request},
        "endpoint_last_modified": last_modified(endpoint),
        "previous_config": endpoint["EndpointConfigName"] if endpoint else None,
        "reason": waiting.get("reason", ""),
        "tries": waiting.get("tries", 0) + 1,
        "restores": waiting.get("restores", ""),
        "replaces": waiting.get("replaces", "") if endpoint is None else "",
        "started_at": "",
        "deleted": "",
    }


def deploy(
    config: Settings,
    choice: Choice,
    endpoint: Mapping[str, Any] | None,
    last: Record | None,
    request_id: str,
    restores: str = "",
) -> str:
    """Ask for the chosen model on its endpoint; returns the outcome in a word.

    The record is written before the call, with the endpoint as it was seen: after a crash it tells
    whether the call was made. last: the deployment before, whose endpoint it is.
    """
    data = blank_record(config, choice, endpoint)
    data["restores"] = restores or data["restores"]
    if is_replacement(choice, endpoint):
        data["replaces"] = "delete"
    data |= {"state": "requested", "by": request_id, "at": now().isoformat()}
    condition = {"IfMatch": choice.record.etag} if choice.record else {"IfNoneMatch": "*"}
    etag = put_json(config.bucket, record_key(choice.config), data, **condition)
    if etag is None:
        return "in hand"
    record = Record(data, etag)

    def give_up(state: str, reason: str) -> str:
        # A cause that lasts is told once, not at every event that finds it still there.
        if cause(data["reason"]) != cause(reason):
            tell(config, data, state, reason, standing(endpoint))
        move(config, record, request_id, state, reason=reason)
        return AGAIN if state == "failed" else state

    try:
        foreign = endpoint is not None and not is_ours(config, endpoint)
    except ClientError as error:
        if not is_missing(error):
            raise
        # It was deleted since it was looked at.
        before = choice.record.data.get("replaces", "") if choice.record else ""
        move(config, record, request_id, "waiting", replaces=before)
        return "busy"
    if foreign:
        return give_up(
            "waiting",
            f"an endpoint {data['endpoint']} exists that this stack did not make: "
            "set endpoint_name in Terraform to another name and apply, or delete that endpoint",
        )
    if data["tries"] > TRIES_MAX:
        return give_up("failed", f"it was asked for {TRIES_MAX} times in vain; at last: {data['reason'] or 'an error'}")
    try:
        check_artifact(config, choice.artifact)
    except ArtifactError as error:
        return give_up("failed", str(error))
    sagemaker = client("sagemaker")
    try:
        create_once(sagemaker.create_model, choice.model_request)
        create_once(sagemaker.create_endpoint_config, choice.config_request)
        # CreateEndpoint may not see a new config yet; AWS advises to describe it first (CreateEndpoint reference).
        sagemaker.describe_endpoint_config(EndpointConfigName=choice.config)
        if endpoint is None:
            tags = choice.config_request["Tags"]
            sagemaker.create_endpoint(EndpointName=data["endpoint"], EndpointConfigName=choice.config, Tags=tags)
        elif data["replaces"]:
            if last is None or move(config, last, request_id, last.state, deleted="pipeline"):
                sagemaker.delete_endpoint(EndpointName=data["endpoint"])
                tell(config, data, "started")
                move(config, record, request_id, "waiting", replaces="create")
                return "replacing"
            move(config, record, request_id, "waiting", replaces="")
            return "in hand"
        else:
            update(config, choice, endpoint)
    except ClientError as error:
        if error_code(error) == "ResourceLimitExceeded":
            return give_up("waiting", f"a quota of the account is used up. SageMaker said: {message(error)}")
        busy = ("Cannot update in-progress endpoint", "Cannot create already existing endpoint")
        if error_code(error) == "ValidationException" and message(error).startswith(busy):
            found = describe_endpoint(data["endpoint"]) or {}
            if found.get("PendingDeploymentSummary", found).get("EndpointConfigName") == choice.config:
                # Our own call was faster: its answer was lost, so the SDK made it again.
                start(config, record, request_id)
                return "started"
            # Somebody was faster; the event that ends their change brings this one's turn.
            move(config, record, request_id, "waiting")
            return "busy"
        raise
    start(config, record, request_id)
    return "started"


# --- an endpoint that goes, or is gone --------------------------------------------------------------


def note_deletion(
    config: Settings, record: Record, request_id: str, by: str, *, told: str = "", about: Record | None = None
) -> bool:
    """Note in a record who deleted its endpoint ("pipeline" or "somebody") and tell people, once; True when noted."""
    deleted = record.data.get("deleted")
    if deleted == by:
        return True
    if told:
        if deleted == "telling" and record.in_hand(request_id):
            return False
        if not move(config, record, request_id, record.state, deleted="telling"):
            return False
        tell(config, (about or record).data, told)
    return move(config, record, request_id, record.state, deleted=by)


def take_down(config: Settings, endpoint: Mapping[str, Any], last: Record | None, request_id: str) -> str:
    """Delete an endpoint that failed or answers wrongly, noting before that it is the pipeline's own doing.

    Nothing else can be done with a failed one (DescribeEndpoint reference, EndpointStatus).
    """
    try:
        if not is_ours(config, endpoint):
            return "failed endpoint of somebody else"
        if last is not None:
            # It was live and fine, and nobody was told: only a deployment that fails tells so itself.
            told = "endpoint failed" if last.state == "confirmed" else ""
            if not note_deletion(config, last, request_id, "pipeline", told=told):
                return "in hand"
        client("sagemaker").delete_endpoint(EndpointName=endpoint["EndpointName"])
    except ClientError as error:
        # A duplicate event's invocation was faster.
        if not is_missing(error) and not message(error).startswith("Cannot update in-progress endpoint"):
            raise
    return "failed endpoint deleted"


def report_outage(config: Settings, last: Record, endpoint: Mapping[str, Any], request_id: str) -> None:
    """Tell, once, that SageMaker took the endpoint out of service; what may be done then, no documentation says."""
    since, noted = last_modified(endpoint), last.data.get("outage") or {}
    if noted.get("since") == since and (noted["told"] or last.in_hand(request_id)):
        return
    if not is_ours(config, endpoint):
        return
    if move(config, last, request_id, last.state, outage={"since": since, "told": False}):
        tell(config, last.data, "out of service", str(endpoint.get("FailureReason") or ""))
        move(config, last, request_id, last.state, outage={"since": since, "told": True})


def hold(config: Settings, choice: Choice, request_id: str, quietly: bool) -> None:
    """Note that a model waits for the person who deleted the endpoint, and tell, once."""
    record = choice.record
    if record is not None and record.state != "waiting":
        return
    if record is not None and record.data["reason"] == HELD:
        untold = record.data.get("told") == "telling" and not record.in_hand(request_id)
        if not untold or not move(config, record, request_id, "waiting"):
            return
    else:
        data = blank_record(config, choice, None)
        data |= {"state": "waiting", "reason": HELD, "by": request_id, "at": now().isoformat()}
        data["told"] = "quietly" if quietly else "telling"
        condition = {"IfMatch": record.etag} if record else {"IfNoneMatch": "*"}
        etag = put_json(config.bucket, record_key(choice.config), data, **condition)
        if etag is None or quietly:
            return
        record = Record(data, etag)
    tell(config, record.data, "held")
    move(config, record, request_id, "waiting", told="yes")


def without_endpoint(
    config: Settings, considered: Sequence[tuple[Approved, list[Record]]], last: Record | None, request_id: str
) -> str:
    """There is no endpoint: make one, unless a person deleted it. Returns the outcome in a word."""
    ours = last is not None and last.data.get("deleted") == "pipeline"
    choice = choose(config, considered, as_it_was=ours)
    known = choice.record if choice else None
    # Asked for when there was no endpoint already, or by a person after it was deleted.
    asked = known is not None and known.asked_for
    wanted = known is not None and asked and known.data["endpoint_last_modified"] is None
    wanted = wanted or (asked and last is not None and last.data.get("deleted") == "somebody")
    if last is None or ours or wanted:
        if choice is None:
            return "nothing to deploy"
        back = known is not None and known.state == "confirmed" and last is not None
        return deploy(config, choice, None, last, request_id, restores=last.config if last and back else "")
    news = last.data.get("deleted") != "somebody"
    if choice is not None:
        hold(config, choice, request_id, quietly=news)
    if news:
        live = next((record for _, found in considered for record in found if record.state == "confirmed"), last)
        note_deletion(config, last, request_id, "somebody", told="deleted by hand", about=live)
    return "deleted by hand"


# --- cleaning up ------------------------------------------------------------------------------------


def remove(config: Settings, kind: str, name: str) -> None:
    """Delete a model ("Model") or an endpoint config ("EndpointConfig") that this stack made; gone is fine, too."""
    sagemaker, snake = client("sagemaker"), "model" if kind == "Model" else "endpoint_config"
    try:
        described = getattr(sagemaker, f"describe_{snake}")(**{f"{kind}Name": name})
        tags = sagemaker.list_tags(ResourceArn=described[f"{kind}Arn"])["Tags"]
        if {"Key": "Stack", "Value": config.bucket} not in tags:
            log.warning("not of this stack, left alone", extra={"name_of_it": name, "kind": kind})
            return
        getattr(sagemaker, f"delete_{snake}")(**{f"{kind}Name": name})
    except ClientError as error:
        if not is_missing(error):
            raise


def clean_up(config: Settings, record: Record, endpoint: Mapping[str, Any], request_id: str) -> None:
    """After a confirmed deployment: delete the models and configs of deployments before the last ones that are kept.

    A record is marked before its model and config go, so that nothing asks for them meanwhile. Artifacts stay.
    """
    artifacts = approved_models(config.bucket, record.data["model"])[:LOOK_BACK_MODELS]
    found = [
        other
        for artifact in artifacts
        for other in records_of(config.bucket, artifact.job, record.data["endpoint"])
        if not other.data.get("gone")
    ]
    confirmed = sorted((other for other in found if other.state == "confirmed"), key=started_at, reverse=True)
    kept = confirmed[: config.keep_models]
    if len(kept) == config.keep_models:
        in_use = {other.config for other in kept} | {record.config, endpoint["EndpointConfigName"]}
        in_use.add(endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName", ""))
        for other in found:
            if other.state in (*OPEN, "waiting"):
                in_use |= {other.config, other.data["previous_config"]}

        def outlived(other: Record) -> bool:
            ended_before = other.state == "removed" or str(other.data["at"]) < started_at(kept[-1])
            return other.config not in in_use and (other.state == "confirmed" or ended_before)

        models_in_use = {other.data["model_name"] for other in found if not outlived(other)}
        for other in [other for other in found if outlived(other)]:
            if other.state != "removed" and not move(config, other, request_id, "removed", was=other.state):
                continue
            remove(config, "EndpointConfig", other.config)
            if other.data["model_name"] not in models_in_use:
                remove(config, "Model", other.data["model_name"])
            move(config, other, request_id, "removed", gone=True)
    move(config, record, request_id, record.state, cleaned=True)


# --- one model, one step ----------------------------------------------------------------------------


def choose(
    config: Settings, considered: Sequence[tuple[Approved, list[Record]]], *, as_it_was: bool = False
) -> Choice | None:
    """The newest approved model that may be deployed; None when there is none.

    as_it_was: a model that was live comes back with the config that it had then, even if settings changed since.
    """
    for artifact, found in considered:
        if any(record.is_withdrawn for record in found):
            continue
        present = requests(config, artifact)
        known = next((record for record in found if record.config == present[1]["EndpointConfigName"]), None)
        live = [record for record in found if record.state == "confirmed"]
        usable = known is None or known.state not in NOT_AGAIN
        if live and (not usable or (as_it_was and (known is None or known.state != "waiting"))):
            record = max(live, key=started_at)
            asked = record.data["requests"]
            job = Approved(artifact.model, artifact.job, **record.data["artifact"])
            return Choice(job, asked["model"], asked["config"], record)
        if usable:
            return Choice(artifact, *present, known)
    return None


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
            if record.state in (*OPEN, "waiting") and settle(config, record, endpoint, request_id):
                # Whatever arrived meanwhile found this deployment open and left: look again for it.
                return AGAIN
        considered.append((artifact, found))
        if any(record.state == "confirmed" for record in found):
            break
    records = {record.config: record for _, found in considered for record in found}
    last = newest_started(records.values())
    status = endpoint["EndpointStatus"] if endpoint is not None else ""

    if endpoint is not None and status == "OutOfService" and last is not None:
        report_outage(config, last, endpoint, request_id)
    if endpoint is not None and status not in (*SETTLED, "Failed"):
        return f"busy: {status}"
    if any(record.state in OPEN for record in records.values()):
        return "under way"
    if endpoint is None:
        outcome = without_endpoint(config, considered, last, request_id)
    elif status == "Failed" or (
        # By a deployment of ours; one that a person made is theirs to mend.
        status == "UpdateRollbackFailed"
        and last is not None
        and last.state == "failed"
        and last.data.get("ended") == last_modified(endpoint)
    ):
        return take_down(config, endpoint, last, request_id)
    else:
        outcome = with_endpoint(config, considered, records, endpoint, request_id)
    if outcome in ("waiting", "busy") and approved_models(config.bucket, model)[0].job > artifacts[0].job:
        # It was approved while this one was in hand, and left to us.
        return AGAIN
    return outcome


def with_endpoint(
    config: Settings,
    considered: Sequence[tuple[Approved, list[Record]]],
    records: Mapping[str, Record],
    endpoint: Mapping[str, Any],
    request_id: str,
) -> str:
    """The endpoint has settled: leave it, update it, or put it back. Returns the outcome in a word, or AGAIN."""
    served = endpoint["EndpointConfigName"]
    choice = choose(config, considered)
    bad = None
    if choice is None or choice.config != served:
        bad = records.get(served) or read_record(config.bucket, served)
        if bad is not None and bad.state not in ("rolled back", "failed", "withdrawn"):
            bad = None
        if bad is not None:
            choice = choose(config, considered, as_it_was=True)
    if choice is None:
        if bad is not None and bad.state != "withdrawn":
            return take_down(config, endpoint, newest_started(records.values()) or bad, request_id)
        return "nothing to deploy"
    known = choice.record
    if choice.config == served:
        if known is not None and known.state == "confirmed" and not known.data.get("cleaned", True):
            clean_up(config, known, endpoint, request_id)
        return "in service"
    if bad is None and known is not None and known.state in ("confirmed", "superseded"):
        # It was live, or on its way, and somebody switched the endpoint. That is theirs to undo.
        return "left as somebody made it"
    last = newest_started(record for record in records.values() if record is not known)
    restores = bad.config if bad is not None and known is not None and known.state == "confirmed" else ""
    return deploy(config, choice, endpoint, last, request_id, restores)


def reconcile(config: Settings, model: str, request_id: str) -> str:
    """Bring a model's endpoint as far towards the newest approved model as it goes now; returns that in a word."""
    for _ in range(STEPS_MAX):
        outcome = step(config, model, request_id)
        if outcome != AGAIN:
            return outcome
    return "more to do: left to the next event or sweep"


# --- events -----------------------------------------------------------------------------------------


def model_of_event(event: Mapping[str, Any], config: Settings) -> str | None:
    """The model whose endpoint the event concerns; None when it is not this stack's. Raises EventError."""
    detail = field(event, "detail", dict)
    if event.get("source") == "aws.s3":
        if field(field(detail, "bucket", dict), "name", str) != config.bucket:
            return None
        match = APPROVED_KEY.fullmatch(field(field(detail, "object", dict), "key", str))
        return match["model"] if match else None
    return config.model_of(field(detail, "EndpointName", str))


def sweep(config: Settings, request_id: str) -> str:
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


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the model and the step taken; raises when AWS fails, so that Lambda retries."""
    config = settings()
    event, request_id = unwrap(event, context)
    swept = event.get("source") == "sweep"
    model = None if swept else model_of_event(event, config)
    if model is None and not swept:
        log.info("event of nothing that this stack deploys, ignored", extra={"resources": event.get("resources")})
        return {"model": "", "outcome": "ignored"}
    if read_json(config.bucket, PAUSED_KEY)[0] is not None:
        log.info("paused: nothing is done until make resume", extra={"model": model or "all"})
        return {"model": model or "", "outcome": "paused"}
    if model is None:
        return {"model": "", "outcome": sweep(config, request_id)}
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

    Lambda keeps the request id through its retries, so a retry finds its own lease. Schema 1 has "request_id" for "by".
    """
    by_another = entry and request_id not in (entry.get("by"), entry.get("request_id"))
    return bool(entry and by_another and age(entry["at"]) < LEASE_SECONDS)


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
