"""Training orchestrator: turns an uploaded CSV into one SageMaker training job.

Trigger: EventBridge, S3 "Object Created" under data/train/.
It checks the first part of the upload, copies the exact version to a snapshot, starts a training
job whose name follows from the event alone, tells people, records that it did, and returns.
It never waits for the job, never reads a whole upload, and never writes under data/train/.
"""

from __future__ import annotations

import codecs
import csv
import functools
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

UPLOAD_PREFIX = "data/train/"
SNAPSHOT_PREFIX = "data/snapshots/"
REJECTED_PREFIX = "data/rejected/"
RAW_MODEL_PREFIX = "models/raw/"
APPROVED_PREFIX = "models/approved/"
DEPLOYMENT_PREFIX = "models/deployments/"
DEFAULT_MODEL = "default"
MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")

SCHEMA = 1
PREFLIGHT_BYTES = 1024 * 1024
# Longer than the longest function timeout (900 s), so that whoever held an expired lease is dead.
LEASE_SECONDS = 20 * 60
# CopyObject refuses a larger source with InvalidRequest (S3 API reference, CopyObject).
COPY_OBJECT_MAX_BYTES = 5 * 1024**3
COPY_PART_BYTES = 512 * 1024**2
COPY_THREADS = 8
# SNS: a subject has less than 100 characters and no line breaks, a message at most 262,144 bytes (Publish).
SUBJECT_MAX_CHARACTERS = 99
MESSAGE_MAX_BYTES = 262_144

# The training program prints one line "hold-out:  accuracy 0.9812  macro_f1 ..." at its end; SageMaker charts it.
METRIC_DEFINITIONS = [
    {"Name": f"holdout:{name}", "Regex": rf"hold-out:.* {name} ([0-9.]+)"}
    for name in ("accuracy", "macro_f1", "macro_precision", "macro_recall", "eval_loss")
]

# The container's toolkit passes names and values through a shell, unquoted (sagemaker-training-toolkit).
SHELL_SAFE = re.compile(r"[A-Za-z0-9._+-]+")

# What people upload by mistake, by its first bytes.
KNOWN_BINARIES = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"PAR1", "a Parquet file"),
    (b"%PDF", "a PDF"),
)
WIDE_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

csv.field_size_limit(PREFLIGHT_BYTES + 1)
log = logging.getLogger()
# It logs where it found credentials and endpoints, at INFO.
logging.getLogger("botocore").setLevel(logging.WARNING)


class ConfigError(ValueError):
    """An environment variable is missing or malformed; the text names it."""


class EventError(ValueError):
    """The event lacks a field or has one of another type; the text names it."""


class Rejected(Exception):
    """The upload cannot be trained on; the text is the reason for the person who uploaded it."""


@dataclass(frozen=True)
class Settings:
    """What the function reads from its environment, once."""

    bucket: str
    project: str
    topic_arn: str
    training_role_arn: str
    training_image: str
    training_source_uri: str
    training_instance_type: str
    training_volume_gb: int
    training_max_runtime_seconds: int
    hyperparameters: dict[str, str]
    base_model: str
    base_model_revision: str
    text_column: str
    label_column: str
    hub_token_secret_arn: str

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings. Raises ConfigError naming the variable that is missing or malformed."""
        hyperparameters = json_object(env, "HYPERPARAMETERS")
        for name, value in hyperparameters.items():
            if not isinstance(value, str) or not SHELL_SAFE.fullmatch(value) or not SHELL_SAFE.fullmatch(name):
                raise ConfigError(
                    f"HYPERPARAMETERS: {name!r}: {value!r}: both must be text of letters, digits and . _ + -"
                )
        return cls(
            bucket=required(env, "BUCKET"),
            project=required(env, "PROJECT"),
            topic_arn=required(env, "TOPIC_ARN"),
            training_role_arn=required(env, "TRAINING_ROLE_ARN"),
            training_image=required(env, "TRAINING_IMAGE"),
            training_source_uri=required(env, "TRAINING_SOURCE_URI"),
            training_instance_type=required(env, "TRAINING_INSTANCE_TYPE"),
            training_volume_gb=positive_int(env, "TRAINING_VOLUME_GB"),
            training_max_runtime_seconds=positive_int(env, "TRAINING_MAX_RUNTIME_SECONDS"),
            hyperparameters=hyperparameters,
            base_model=required(env, "BASE_MODEL"),
            base_model_revision=optional(env, "BASE_MODEL_REVISION"),
            text_column=required(env, "TEXT_COLUMN"),
            label_column=required(env, "LABEL_COLUMN"),
            hub_token_secret_arn=optional(env, "HUB_TOKEN_SECRET_ARN"),
        )


@dataclass(frozen=True)
class Upload:
    """One S3 "Object Created" event: the object version that somebody uploaded."""

    bucket: str
    key: str
    etag: str
    version_id: str | None
    sequencer: str
    time: datetime

    @property
    def job(self) -> str:
        """The training job's name: the same for every delivery of this event, sorting by time."""
        identity = json.dumps([self.bucket, self.key, self.version_id or self.etag, self.sequencer])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        return f"training-job-{self.time:%Y%m%d-%H%M%S}-{digest}"

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


# --- settings ---------------------------------------------------------------------------------------


def required(env: Mapping[str, str], name: str) -> str:
    """The variable's value. Raises ConfigError when it is missing or empty."""
    value = env.get(name, "")
    if not value.strip():
        raise ConfigError(f"environment variable {name} is missing or empty: set it in Terraform and apply")
    return value


def optional(env: Mapping[str, str], name: str) -> str:
    """The variable's value, which may be empty. Raises ConfigError when it is missing altogether."""
    if name not in env:
        raise ConfigError(f"environment variable {name} is missing: set it, if only to an empty text")
    return env[name]


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


# --- what an upload is ------------------------------------------------------------------------------


def parse_upload(event: Mapping[str, Any]) -> Upload:
    """The upload that an S3 "Object Created" event from EventBridge tells of.

    The key arrives raw, not URL-encoded, and version-id is absent on unversioned buckets
    (S3 user guide, EventBridge event message structure). Unknown fields are ignored.
    Raises EventError when a field that identifies the upload is missing or of another type.
    """
    detail = field(event, "detail", dict)
    bucket = field(detail, "bucket", dict)
    item = field(detail, "object", dict)
    version_id = item.get("version-id")
    if version_id is not None and not isinstance(version_id, str):
        raise EventError(f"the event's version-id must be text, not {version_id!r}")
    time = field(event, "time", str)
    try:
        moment = datetime.fromisoformat(time)
    except ValueError as error:
        raise EventError(f"the event's time is not ISO 8601: {time!r}") from error
    return Upload(
        bucket=field(bucket, "name", str),
        key=field(item, "key", str),
        etag=str(item.get("etag", "")).strip('"'),
        version_id=version_id,
        sequencer=str(item.get("sequencer", "")),
        time=moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC),
    )


def field(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    """One field of an event. Raises EventError when it is missing, empty or not of that type."""
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(value, kind) or not value:
        raise EventError(f"the event's field {name!r} must be a non-empty {kind.__name__}, not {value!r:.100}")
    return value


def is_csv(key: str) -> bool:
    """Whether a key under data/train/ is meant as training data: not a folder placeholder, not a README."""
    return key.lower().endswith(".csv")


def model_of(key: str) -> str:
    """The model that a key under data/train/ belongs to: its first folder, or "default" without one.

    Raises Rejected when the folder is not a legal model name.
    """
    folder, slash, _ = key.removeprefix(UPLOAD_PREFIX).partition("/")
    if not slash:
        return DEFAULT_MODEL
    if not MODEL_NAME.fullmatch(folder):
        raise Rejected(
            f'the folder "{folder:.80}" is not a model name: use 1 to 32 of a-z, 0-9 and "-", '
            "beginning and ending with a letter or digit"
        )
    return folder


def check_csv(head: bytes, complete: bool, text_column: str, label_column: str) -> None:
    """Check the beginning of a CSV.

    head: the first bytes (at most PREFLIGHT_BYTES); complete: whether that is the whole file.
    Raises Rejected with a reason that says what to do.
    """
    if not head:
        raise Rejected("the file is empty (0 bytes)")
    for bom, encoding in WIDE_ENCODINGS:
        if head.startswith(bom):
            raise Rejected(f'the file is encoded as {encoding}: save it as UTF-8 (in Excel "CSV UTF-8")')
    for magic, name in KNOWN_BINARIES:
        if head.startswith(magic):
            raise Rejected(f"the file is {name}, not a CSV: export it as CSV in UTF-8")
    if b"\0" in head:
        raise Rejected(
            f"the file is binary or UTF-16: it has a NUL byte at position {head.index(0)}; save it as CSV in UTF-8"
        )
    content = head.removeprefix(codecs.BOM_UTF8)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=complete)
    except UnicodeDecodeError as error:
        position = len(head) - len(content) + error.start
        raise Rejected(
            f"the file is not UTF-8: byte 0x{head[position]:02x} at position {position}; save it as CSV in UTF-8"
        ) from error
    if not text.strip():
        raise Rejected("the file holds nothing but white space")
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(rows)]
        check_header(header, text_column, label_column)
        has_rows = any(any(cell.strip() for cell in row) for row in rows)
    except csv.Error as error:
        raise Rejected(f"the file cannot be read as CSV: line {rows.line_num}: {error}") from error
    if complete and not has_rows:
        raise Rejected("the file has a header but no rows")


def check_header(header: Sequence[str], text_column: str, label_column: str) -> None:
    """Raises Rejected unless both columns are in the header, once."""
    found = ", ".join(f'"{name:.40}"' for name in header[:10]) + (", …" if len(header) > 10 else "")
    for column in (text_column, label_column):
        if header.count(column) > 1:
            raise Rejected(f'the column "{column}" appears {header.count(column)} times in the header: {found}')
        if column in header:
            continue
        if len(header) == 1:
            for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
                if separator in header[0]:
                    raise Rejected(f"the columns are separated by {name}; separate them by commas: {found}")
        alike = [name for name in header if name.casefold() == column.casefold()]
        hint = f'; "{alike[0]}" differs in upper or lower case' if alike else ""
        raise Rejected(f'there is no column "{column}"{hint}; the first line has: {found}')


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


def claim(bucket: str, step: str, name: str, request_id: str) -> bool:
    """Take the lease on one step of one job, so that duplicate events in parallel do not both take it.

    True for the first to come, for the retry of the invocation that holds it (Lambda keeps the request id
    through its retries), and for anyone once it has expired. False: somebody else is at it; leave it to them.
    """
    key = f"claims/{step}/{name}.json"
    mine = {"schema": SCHEMA, "request_id": request_id, "at": now().isoformat()}
    if put_json(bucket, key, mine, IfNoneMatch="*"):
        return True
    held, etag = read_json(bucket, key)
    if held is None or etag is None:
        return put_json(bucket, key, mine, IfNoneMatch="*") is not None
    age = (now() - datetime.fromisoformat(held["at"])).total_seconds()
    if held["request_id"] != request_id and age < LEASE_SECONDS:
        return False
    return put_json(bucket, key, mine, IfMatch=etag) is not None


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


def copy_object(
    bucket: str, key: str, source: Mapping[str, str], size: int, etag: str, metadata: dict[str, str]
) -> None:
    """Copy an object of any size inside S3, pinned to its ETag; tags of the source are left behind.

    Above COPY_OBJECT_MAX_BYTES the copy is made in parts of COPY_PART_BYTES. Raises ClientError
    PreconditionFailed when the source is no longer the one with that ETag.
    """
    s3 = client("s3")
    if size <= COPY_OBJECT_MAX_BYTES:
        s3.copy_object(
            Bucket=bucket, Key=key, CopySource=dict(source), CopySourceIfMatch=etag,
            MetadataDirective="REPLACE", TaggingDirective="REPLACE", Metadata=metadata,
        )  # fmt: skip
        return
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key=key, Metadata=metadata)["UploadId"]

    def copy_part(number: int) -> dict[str, Any]:
        first = (number - 1) * COPY_PART_BYTES
        last = min(first + COPY_PART_BYTES, size) - 1
        answer = s3.upload_part_copy(
            Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, CopySource=dict(source),
            CopySourceIfMatch=etag, CopySourceRange=f"bytes={first}-{last}",
        )  # fmt: skip
        return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

    try:
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            parts = list(pool.map(copy_part, range(1, -(-size // COPY_PART_BYTES) + 1)))
        s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts})
    except Exception:
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
        raise


# --- the steps --------------------------------------------------------------------------------------


def exists(bucket: str, key: str) -> bool:
    """Whether the object is there (404 and not 403 takes s3:ListBucket)."""
    try:
        client("s3").head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error_code(error) in ("404", "NoSuchKey"):
            return False
        raise
    return True


def snapshot(upload: Upload, config: Settings) -> dict[str, Any]:
    """Check the upload, copy its exact version to the job's snapshot, and return the source record.

    source.json is written last: with it, the snapshot is whole. Raises Rejected.
    """
    source_key = f"{SNAPSHOT_PREFIX}{upload.job}/source.json"
    source, _ = read_json(config.bucket, source_key)
    if source is not None:
        return source
    model = model_of(upload.key)
    which = {"VersionId": upload.version_id} if upload.version_id else {}
    pinned = which or ({"IfMatch": f'"{upload.etag}"'} if upload.etag else {})
    try:
        answer = client("s3").get_object(Bucket=upload.bucket, Key=upload.key, **pinned)
        # Not "as body": that is the raw stream, which takes a broken connection for the end of the file.
        with answer["Body"]:
            head = answer["Body"].read(PREFLIGHT_BYTES)
        size, etag = int(answer["ContentLength"]), str(answer["ETag"])
        check_csv(head, size <= len(head), config.text_column, config.label_column)
        copy_object(
            config.bucket,
            f"{SNAPSHOT_PREFIX}{upload.job}/data.csv",
            {"Bucket": upload.bucket, "Key": upload.key, **which},
            size,
            etag,
            {},
        )
    except ClientError as error:
        if error_code(error) in ("NoSuchKey", "NoSuchVersion", "PreconditionFailed", "404", "412"):
            raise Rejected(
                "the file was deleted or overwritten before it could be read: "
                "if an overwrite, the newer file is handled by itself; if not, upload it again"
            ) from error
        raise
    source = {
        "schema": SCHEMA,
        "job": upload.job,
        "model": model,
        "bucket": upload.bucket,
        "key": upload.key,
        "version_id": upload.version_id,
        "etag": etag.strip('"'),
        "sequencer": upload.sequencer,
        "size": size,
        "uploaded_at": upload.time.isoformat(),
    }
    put_json(config.bucket, source_key, source)
    return source


def live_model(config: Settings, model: str) -> dict[str, str]:
    """The live model that a new one is compared with: the newest approved job whose deployment is confirmed.

    Returns {"job": name, "champion": s3:// address of its archive, "champion_data": that of what it was trained on},
    without the last where that is gone, and {} when no model is live.
    """

    def keys(prefix: str) -> list[str]:
        pages = client("s3").get_paginator("list_objects_v2").paginate(Bucket=config.bucket, Prefix=prefix)
        return [str(item["Key"]) for page in pages for item in page.get("Contents", [])]

    pattern = re.compile(rf"{APPROVED_PREFIX}{model}/(training-job-[0-9]{{8}}-[0-9]{{6}}-[0-9a-f]{{8}})/model\.tar\.gz")
    for key in reversed(keys(f"{APPROVED_PREFIX}{model}/")):
        match = pattern.fullmatch(key)
        if match is None:
            continue
        job = match[1]
        records = [read_json(config.bucket, record)[0] for record in keys(f"{DEPLOYMENT_PREFIX}{job}-")]
        if any(record is not None and record["state"] == "confirmed" for record in records):
            live = {"job": job, "champion": f"s3://{config.bucket}/{key}"}
            data = f"{SNAPSHOT_PREFIX}{job}/data.csv"
            return live | ({"champion_data": f"s3://{config.bucket}/{data}"} if exists(config.bucket, data) else {})
    return {}


def training_job_request(
    config: Settings, source: Mapping[str, Any], region: str, live: Mapping[str, str]
) -> dict[str, Any]:
    """The CreateTrainingJob request for a snapshot; live: what live_model() found.

    Hyperparameters hold no text from people: the container's toolkit passes them through a shell unquoted
    (sagemaker-training-toolkit). Whatever is free text goes by Environment or the channel.
    """
    job = source["job"]

    def channel(name: str, uri: str) -> dict[str, Any]:
        where = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
        return {"ChannelName": name, "DataSource": {"S3DataSource": where}}

    channels = [channel("train", f"s3://{config.bucket}/{SNAPSHOT_PREFIX}{job}/data.csv") | {"ContentType": "text/csv"}]
    if config.base_model.startswith("s3://"):
        channels.append(channel("base_model", config.base_model))
    channels += [channel(name, live[name]) for name in ("champion", "champion_data") if name in live]
    environment = {
        "BASE_MODEL": config.base_model,
        "BASE_MODEL_REVISION": config.base_model_revision,
        "TEXT_COLUMN": config.text_column,
        "LABEL_COLUMN": config.label_column,
        "HUB_TOKEN_SECRET_ARN": config.hub_token_secret_arn,
        "CHAMPION_JOB": live.get("job", ""),
    }
    tags = {"Project": config.project, "Stack": config.bucket, "Model": source["model"], "TrainingJob": job}
    return {
        "TrainingJobName": job,
        "RoleArn": config.training_role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": config.training_image,
            "TrainingInputMode": "File",
            "MetricDefinitions": METRIC_DEFINITIONS,
        },
        "HyperParameters": config.hyperparameters
        | {
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": config.training_source_uri,
            "sagemaker_region": region,
            "sagemaker_job_name": job,
            "sagemaker_container_log_level": "20",
        },
        "InputDataConfig": channels,
        "OutputDataConfig": {"S3OutputPath": f"s3://{config.bucket}/{RAW_MODEL_PREFIX}"},
        "ResourceConfig": {
            "InstanceType": config.training_instance_type,
            "InstanceCount": 1,
            "VolumeSizeInGB": config.training_volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": config.training_max_runtime_seconds},
        "Environment": {name: value for name, value in environment.items() if value},
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


def describe_upload(upload: Upload) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("data", upload.uri)]
    if upload.version_id:
        rows.append(("version", upload.version_id))
    rows.append(("uploaded", f"{upload.time:%Y-%m-%d %H:%M:%S} UTC"))
    return rows


def reject(upload: Upload, config: Settings, reason: str) -> None:
    """Tell people why an upload is not trained on, and record that they were told."""
    try:
        model = model_of(upload.key)
    except Rejected:
        model = "none"
    name = upload.key.rsplit("/", 1)[-1]
    publish(
        config.topic_arn,
        f"Training data rejected: {name}",
        f"This file was not used for training, and no training job was started:\n\n"
        f"{table(describe_upload(upload))}\n\n"
        f"Why: {reason}.\n\n"
        f'What is needed: a CSV in UTF-8 with a header line, a column "{config.text_column}" with the text, '
        f'a column "{config.label_column}" with its label, and at least one row.\n'
        f"What next: correct the file and upload it again under the same name. "
        f"The model in service is not affected.\n",
        stage="training",
        status="rejected",
        model=model,
    )
    record = {
        "schema": SCHEMA,
        "job": upload.job,
        "model": model,
        "key": upload.key,
        "version_id": upload.version_id,
        "etag": upload.etag,
        "reason": reason,
        "rejected_at": now().isoformat(),
    }
    put_json(config.bucket, f"{REJECTED_PREFIX}{upload.job}.json", record)


def tell_started(upload: Upload, config: Settings, source: Mapping[str, Any]) -> None:
    hours = config.training_max_runtime_seconds / 3600
    rows = [
        *describe_upload(upload),
        ("size", human_bytes(source["size"])),
        ("model", source["model"]),
        ("training job", upload.job),
        ("base model", config.base_model),
        ("instance", f"{config.training_instance_type}, at most {hours:g} h"),
    ]
    publish(
        config.topic_arn,
        f"Training started: {source['model']} ({upload.key.rsplit('/', 1)[-1]})",
        f"A new CSV arrived, and a training job was started for it.\n\n"
        f"{table(rows)}\n\n"
        f"What next: nothing to do. The next email says whether the new model is approved; "
        f"until it is deployed, the endpoint keeps serving what it serves now.\n"
        f"Watch it: make logs JOB={upload.job}\n",
        stage="training",
        status="started",
        model=source["model"],
    )


def tell_quota(upload: Upload, config: Settings, source: Mapping[str, Any], message: str) -> None:
    named = re.search(r"service limit '([^']+)'", message)
    quota = named[1] if named else f"{config.training_instance_type} for training job usage"
    never = re.search(r"is 0 Instances\b", message) is not None
    why = (
        f'the account\'s quota "{quota}" is 0, so this job can never start as things are'
        if never
        else f'the account\'s quota "{quota}" is used up just now'
    )
    rows = [*describe_upload(upload), ("model", source["model"]), ("training job", upload.job)]
    publish(
        config.topic_arn,
        f"Training not started: {source['model']}: instance quota",
        f"No training job was started for this file:\n\n{table(rows)}\n\n"
        f"Why: {why}.\nSageMaker said: {message}\n\n"
        f'What next: raise "{quota}" in the AWS console under Service Quotas, Amazon SageMaker '
        f"(or set training_instance_type to a type that the account may use, and apply), "
        f"then upload the file again. Its data is kept under {SNAPSHOT_PREFIX}{upload.job}/.\n",
        stage="training",
        status="waiting",
        model=source["model"],
    )


def handle(upload: Upload, config: Settings, request_id: str) -> str:
    """Take an upload as far as it goes now; returns the outcome in a word.

    The order is what makes a crash harmless: do it, tell people, write the record that says so.
    """
    if not is_csv(upload.key):
        return "ignored"
    started_key = f"{SNAPSHOT_PREFIX}{upload.job}/started.json"
    if exists(config.bucket, started_key):
        return "already started"
    if exists(config.bucket, f"{REJECTED_PREFIX}{upload.job}.json"):
        return "already rejected"
    if not claim(config.bucket, "start", upload.job, request_id):
        return "in hand"
    try:
        source = snapshot(upload, config)
    except Rejected as reason:
        reject(upload, config, str(reason))
        log.warning("upload rejected: %s", reason, extra={"training_job": upload.job, "key": upload.key})
        return "rejected"
    sagemaker = client("sagemaker")
    live = live_model(config, source["model"])
    try:
        sagemaker.create_training_job(**training_job_request(config, source, sagemaker.meta.region_name, live))
    except ClientError as error:
        if error_code(error) == "ResourceLimitExceeded":
            tell_quota(upload, config, source, error.response["Error"]["Message"])
            return "waiting for quota"
        # The name follows from the event: an existing job is this upload's, started by an attempt that crashed.
        if error_code(error) != "ResourceInUse":
            raise
    tell_started(upload, config, source)
    put_json(config.bucket, started_key, {"schema": SCHEMA, "job": upload.job, "started_at": now().isoformat()})
    return "started"


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the job's name and the outcome; raises when AWS fails, so that Lambda retries."""
    config = settings()
    upload = parse_upload(event)
    if upload.bucket != config.bucket or not upload.key.startswith(UPLOAD_PREFIX):
        raise EventError(f"not an upload of this stack: {upload.uri:.200} (see the EventBridge rule's pattern)")
    outcome = handle(upload, config, context.aws_request_id)
    log.info("upload handled: %s", outcome, extra={"training_job": upload.job, "key": upload.key})
    return {"training_job": upload.job, "outcome": outcome}
