"""Training orchestrator: turns an uploaded CSV into one SageMaker training job.

Triggers: EventBridge, S3 "Object Created" under data/train/, SageMaker "Training Job State Change" to an end,
and a schedule ("sweep").
It checks the first part of an upload and copies the exact version to a snapshot. Whatever the event, it then
starts waiting snapshots, oldest first, while the spend guards leave room; each start is told and recorded.
It never waits for a job, never reads a whole upload, and never writes under data/train/.

Who holds a slot, how many started today, and what people were told of the line is one small object, the ledger
(slots/training.json). Every change is a conditional write of the whole, so the guards hold exactly, whoever comes
at the same time; a slot is also the lease on starting its job:

  {"jobs": {job: {"state": held | ended | failed, "by": request id, "at": time, "tries": number}},
   "day": {"date", "jobs": started on it}, "line": {"oldest": job, "capped": by the daily limit} or null,
   "told": {what is waited for: {"by", "at", "done"}}, "never": {"instance_type", "at"} or null: a quota of 0}
"""

from __future__ import annotations

import codecs
import copy
import csv
import functools
import hashlib
import io
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

LEDGER_KEY = "slots/training.json"

PREFLIGHT_BYTES = 1024 * 1024
# A quota of 0 is asked about again once a day, and a line that still waits is told of again at most as often.
DAY_SECONDS = 24 * 60 * 60
# Lost races for the ledger in a row before the invocation fails and Lambda tries it again.
LEDGER_TRIES = 200
INTERNAL_ERROR_RETRIES = 2

# What a line of uploads can wait for.
A_SLOT = "a slot"
THE_NEXT_DAY = "the next day"
QUOTA = "quota"
QUOTA_ABOVE_0 = "a quota above 0"
RESUME = "resume"

EMPTY_LEDGER: dict[str, Any] = {
    "schema": SCHEMA,
    "jobs": {},
    "day": {"date": "", "jobs": []},
    "line": None,
    "told": {},
    "never": None,
}

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
Result = TypeVar("Result")


class Rejected(Exception):
    """The upload cannot be trained on; the text is the reason for the person who uploaded it."""


class LedgerBusyError(RuntimeError):
    """The ledger could not be changed: other invocations were always faster."""


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
    max_concurrent_training_jobs: int
    max_training_jobs_per_day: int
    hyperparameters: dict[str, str]
    base_model: str
    base_model_revision: str
    text_column: str
    label_column: str
    hub_token_secret_arn: str
    kms_key_arn: str

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
            max_concurrent_training_jobs=positive_int(env, "MAX_CONCURRENT_TRAINING_JOBS"),
            max_training_jobs_per_day=positive_int(env, "MAX_TRAINING_JOBS_PER_DAY"),
            hyperparameters=hyperparameters,
            base_model=required(env, "BASE_MODEL"),
            base_model_revision=optional(env, "BASE_MODEL_REVISION"),
            text_column=required(env, "TEXT_COLUMN"),
            label_column=required(env, "LABEL_COLUMN"),
            hub_token_secret_arn=optional(env, "HUB_TOKEN_SECRET_ARN"),
            kms_key_arn=optional(env, "KMS_KEY_ARN"),
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


@dataclass(frozen=True)
class Turn:
    """What is to be done with the line next.

    job: whose turn it is, None when it is nobody's; give_up: it was tried often enough; waits_for: what holds the
    line up, "" when nothing does; quota_was_0: the ledger says that an earlier job met a quota of 0.
    """

    job: str | None
    give_up: bool = False
    waits_for: str = ""
    quota_was_0: bool = False


# --- settings ---------------------------------------------------------------------------------------


def optional(env: Mapping[str, str], name: str) -> str:
    """The variable's value, which may be empty. Raises ConfigError when it is missing altogether."""
    if name not in env:
        raise ConfigError(f"environment variable {name} is missing: set it, if only to an empty text")
    return env[name]


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


# --- the steps --------------------------------------------------------------------------------------


def snapshot(upload: Upload, config: Settings) -> None:
    """Check the upload, copy its exact version to the job's snapshot, and write the source record.

    source.json is written last: with it, the snapshot is whole. Raises Rejected.
    """
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
    put_json(config.bucket, f"{SNAPSHOT_PREFIX}{upload.job}/source.json", source)


def live_model(config: Settings, model: str) -> dict[str, str]:
    """The live model that a new one is compared with: the newest approved job whose deployment is confirmed.

    Returns {"job": name, "champion": s3:// address of its archive, "champion_data": that of what it was trained on},
    without the last where that is gone, and {} when no model is live.
    """
    pattern = re.compile(rf"{APPROVED_PREFIX}{model}/({JOB_NAME.pattern})/model\.tar\.gz")
    for key in reversed(list(list_keys(config.bucket, f"{APPROVED_PREFIX}{model}/", ""))):
        match = pattern.fullmatch(key)
        if match is None:
            continue
        job = match[1]
        records = [
            read_json(config.bucket, record)[0] for record in list_keys(config.bucket, f"{DEPLOYMENT_PREFIX}{job}-", "")
        ]
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
        # Without a key, SageMaker takes the account's default key of S3, not the bucket's.
        "OutputDataConfig": {"S3OutputPath": f"s3://{config.bucket}/{RAW_MODEL_PREFIX}"}
        | ({"KmsKeyId": config.kms_key_arn} if config.kms_key_arn else {}),
        "ResourceConfig": {
            "InstanceType": config.training_instance_type,
            "InstanceCount": 1,
            "VolumeSizeInGB": config.training_volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": config.training_max_runtime_seconds},
        # SageMaker's own failures (InternalServerError) only; the runtime limit holds for all attempts together.
        "RetryStrategy": {"MaximumRetryAttempts": INTERNAL_ERROR_RETRIES},
        "Environment": {name: value for name, value in environment.items() if value},
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


def describe_data(uri: str, version_id: str | None, uploaded: datetime) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("data", uri)]
    if version_id:
        rows.append(("version", version_id))
    rows.append(("uploaded", f"{uploaded:%Y-%m-%d %H:%M:%S} UTC"))
    return rows


def describe_source(source: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [
        *describe_data(
            f"s3://{source['bucket']}/{source['key']}",
            source["version_id"],
            datetime.fromisoformat(source["uploaded_at"]),
        ),
        ("size", human_bytes(source["size"])),
        ("model", source["model"]),
        ("training job", source["job"]),
    ]


def file_name(source: Mapping[str, Any]) -> str:
    return str(source["key"]).rsplit("/", 1)[-1]


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
        f"{table(describe_data(upload.uri, upload.version_id, upload.time))}\n\n"
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


def tell_started(config: Settings, source: Mapping[str, Any]) -> None:
    hours = config.training_max_runtime_seconds / 3600
    rows = [
        *describe_source(source),
        ("base model", config.base_model),
        ("instance", f"{config.training_instance_type}, at most {hours:g} h"),
    ]
    publish(
        config.topic_arn,
        f"Training started: {source['model']} ({file_name(source)})",
        f"A new CSV arrived, and a training job was started for it.\n\n"
        f"{table(rows)}\n\n"
        f"What next: nothing to do. The next email says whether the new model is approved; "
        f"until it is deployed, the endpoint keeps serving what it serves now.\n"
        f"Watch it: make logs JOB={source['job']}\n",
        stage="training",
        status="started",
        model=source["model"],
    )


def quota_name(config: Settings, message: str) -> str:
    """The quota that SageMaker's refusal names; its utilisation figures change from call to call."""
    named = re.search(r"service limit '([^']+)'", message)
    return named[1] if named else f"{config.training_instance_type} for training job usage"


def tell_waiting(config: Settings, source: Mapping[str, Any], waits_for: str, in_line: int, message: str) -> None:
    """Tell that the line waits. source: one upload of it; in_line: how many there are; message: SageMaker's refusal."""
    quota = quota_name(config, message)
    jobs, jobs_a_day = config.max_concurrent_training_jobs, config.max_training_jobs_per_day
    reasons = {
        A_SLOT: f"{jobs} training job(s) run already, as many as max_concurrent_training_jobs allows",
        THE_NEXT_DAY: f"{jobs_a_day} training job(s) were started today, as many as max_training_jobs_per_day allows",
        QUOTA: f'the account\'s quota "{quota}" is used up just now.\nSageMaker said: {message}',
        RESUME: "the pipeline is paused",
    }
    nexts = {
        A_SLOT: "nothing to do. It is started as soon as a job has ended and its turn has come, in order of upload.",
        THE_NEXT_DAY: "nothing to do. The line goes on after midnight UTC. Of several waiting uploads of one model "
        "the newest goes first, the others after it.",
        QUOTA: "nothing to do if other jobs use the quota: the line goes on as they end. Otherwise raise "
        f'"{quota}" in the AWS console under Service Quotas, Amazon SageMaker.',
        RESUME: "make resume, when training may cost money again. The line then goes on in order of upload.",
    }
    also = f" and {in_line - 1} more" if in_line > 1 else ""
    publish(
        config.topic_arn,
        f"Training waiting: {source['model']} ({file_name(source)}){also}",
        f"No training job is started for this upload yet. Its data is kept, and it keeps its place in the line.\n\n"
        f"{table([*describe_source(source), ('waiting in all', f'{in_line} upload(s)')])}\n\n"
        f"Why: {reasons[waits_for]}.\n\n"
        f"What next: {nexts[waits_for]}\n"
        f"Uploads that join the line in the next {LEASE_SECONDS // 60} minutes are not told one by one: "
        f"make status shows them.\n",
        stage="training",
        status="waiting",
        model=source["model"],
    )


def tell_quota_of_0(config: Settings, source: Mapping[str, Any], message: str) -> None:
    quota = quota_name(config, message)
    publish(
        config.topic_arn,
        f"Training not started: {source['model']}: instance quota is 0",
        f"No training job can be started for this upload as things are:\n\n{table(describe_source(source))}\n\n"
        f'Why: the account\'s quota "{quota}" is 0. That never frees by itself.\nSageMaker said: {message}\n\n'
        f'What next: raise "{quota}" in the AWS console under Service Quotas, Amazon SageMaker, or set '
        f"training_instance_type to a type that the account may use, and apply. The upload keeps its place: it is "
        f"tried again within a day, and with the next upload or changed type.\n",
        stage="training",
        status="waiting",
        model=source["model"],
    )


def tell_given_up(config: Settings, source: Mapping[str, Any]) -> None:
    publish(
        config.topic_arn,
        f"Training given up: {source['model']} ({file_name(source)})",
        f"A training job for this upload could not be started, and it is not tried any more:\n\n"
        f"{table(describe_source(source))}\n\n"
        f"Why: AWS failed or refused {GIVE_UP_TRIES} times. The reason is in the log of the training orchestrator: "
        f"make logs\n\n"
        f"What next: mend the cause, then make retrain JOB={source['job']}. The data is kept. "
        f"The model in service is not affected.\n",
        stage="training",
        status="given-up",
        model=source["model"],
    )


# --- the ledger: slots, the day, the line -----------------------------------------------------------


def update_ledger(bucket: str, change: Callable[[dict[str, Any]], Result]) -> Result:
    """Change the ledger and return what change returns; where it alters nothing, nothing is written.

    change alters the ledger in place and does nothing else: it is called anew after each lost race.
    Raises LedgerBusyError when LEDGER_TRIES races in a row were lost.
    """
    for _ in range(LEDGER_TRIES):
        found, etag = read_json(bucket, LEDGER_KEY)
        ledger = copy.deepcopy(EMPTY_LEDGER if found is None else found)
        result = change(ledger)
        if ledger == (EMPTY_LEDGER if found is None else found):
            return result
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        if put_json(bucket, LEDGER_KEY, ledger, **condition):
            return result
    raise LedgerBusyError(f"{LEDGER_KEY}: {LEDGER_TRIES} changes in a row were overtaken by others")


def in_hand(entry: Mapping[str, Any] | None, request_id: str) -> bool:
    """Whether another invocation, which may still be alive, is starting the job, or started it."""
    return (
        entry is not None
        and entry["state"] != "failed"
        and entry["by"] != request_id
        and age(entry["at"]) < LEASE_SECONDS
    )


def take_turn(
    ledger: dict[str, Any],
    line: Sequence[str],
    config: Settings,
    request_id: str,
    own: str | None,
    model_of_job: Callable[[str], str],
) -> Turn:
    """Give a slot to the job of the line whose turn it is, if there is room for one.

    line: the waiting jobs, oldest first. own: the upload that this invocation is about; it is tried whatever became
    of it before. A retry first ends what it began, even if that was refused, so that the order of uploads stays; what
    failed before goes last. Once the daily limit held the line up, each model's newest goes first.
    """
    jobs: dict[str, Any] = ledger["jobs"]

    def tries(job: str) -> int:
        return int(jobs[job]["tries"]) if job in jobs else 0

    def due(job: str) -> bool:
        return job == own or tries(job) < EAGER_TRIES or age(jobs[job]["at"]) > LATER_TRIES_SECONDS

    never = ledger["never"]
    today = f"{now():%Y-%m-%d}"
    started_today = ledger["day"]["jobs"] if ledger["day"]["date"] == today else []
    quota_is_0 = never and never["instance_type"] == config.training_instance_type and age(never["at"]) < DAY_SECONDS
    day_is_full = len(started_today) >= config.max_training_jobs_per_day
    slots_are_full = sum(entry["state"] == "held" for entry in jobs.values()) >= config.max_concurrent_training_jobs

    def begun(job: str) -> bool:
        return job in jobs and jobs[job]["by"] == request_id

    def order(job: str) -> tuple[bool, int, str]:
        return not begun(job), tries(job), job

    waits_for = ""
    candidates = []
    for job in sorted((job for job in line if not in_hand(jobs.get(job), request_id)), key=order):
        if tries(job) >= GIVE_UP_TRIES and job != own:
            return Turn(job, give_up=True)
        if not due(job):
            continue
        if job in jobs and jobs[job]["state"] != "failed":
            candidates.append(job)  # it has its slot; whoever was starting it is dead
        elif quota_is_0 and job != own:
            waits_for = waits_for or QUOTA_ABOVE_0
        elif day_is_full and job not in started_today:
            waits_for = waits_for or THE_NEXT_DAY
        elif slots_are_full:
            waits_for = waits_for or A_SLOT
        else:
            candidates.append(job)
    if not candidates:
        return Turn(None, waits_for=waits_for)
    job = candidates[0]
    if ledger["line"] and ledger["line"]["capped"] and not begun(job):
        newest_first = sorted(candidates, key=lambda job: (-tries(job), job), reverse=True)
        job = next(other for other in newest_first if model_of_job(other) == model_of_job(job))
    resumed = job in jobs and jobs[job]["state"] != "failed"
    state = jobs[job]["state"] if resumed else "held"
    jobs[job] = {"state": state, "by": request_id, "at": now().isoformat(), "tries": tries(job) + 1}
    if not resumed and job not in started_today:
        ledger["day"] = {"date": today, "jobs": [*started_today, job]}
    return Turn(job, quota_was_0=never is not None)


def give_back(ledger: dict[str, Any], job: str, failed: bool) -> None:
    """Take back a slot and the day's share of a job that was certainly not started. failed: the try counts."""
    entry = ledger["jobs"].pop(job)
    if failed:
        ledger["jobs"][job] = entry | {"state": "failed"}
    ledger["day"]["jobs"] = [other for other in ledger["day"]["jobs"] if other != job]


def close_slots(ledger: dict[str, Any], ended: Sequence[str], missing: Sequence[str]) -> None:
    """Free the slots of jobs that ended, and of those that never came to exist.

    An ended job stays in the ledger while whoever started it may be recording that: its lease. A slot that somebody
    took again since it was looked at is left alone.
    """
    jobs = ledger["jobs"]
    for job in ended:
        if job in jobs and jobs[job]["state"] == "held":
            jobs[job]["state"] = "ended"
    for job in missing:
        if job in jobs and jobs[job]["state"] == "held" and age(jobs[job]["at"]) > LEASE_SECONDS:
            give_back(ledger, job, failed=True)
    kept_seconds = {"ended": LEASE_SECONDS, "failed": LOOK_BACK_DAYS * DAY_SECONDS, "held": math.inf}
    for job in [job for job, entry in jobs.items() if age(entry["at"]) > kept_seconds[entry["state"]]]:
        del jobs[job]


def join_line(
    ledger: dict[str, Any], line: Sequence[str], waits_for: str, untold: set[str], request_id: str
) -> tuple[list[str], bool]:
    """Note that the line waits: who of it really does, and whether people are to be told by this invocation.

    They are told of a line when it begins to wait for something, and of newcomers (untold), but not of each one in
    a crowd: at most once in LEASE_SECONDS.
    """
    waiting = [job for job in line if not in_hand(ledger["jobs"].get(job), request_id)]
    if not waiting:
        return [], False
    before = ledger["line"] or {"oldest": waiting[0], "capped": False}
    ledger["line"] = {
        "oldest": min(before["oldest"], waiting[0]),
        "capped": before["capped"] or waits_for == THE_NEXT_DAY,
    }
    if waits_for == QUOTA_ABOVE_0:
        return waiting, False  # told to each one as it is refused
    told = ledger["told"].get(waits_for)
    if told and told["done"]:
        due = age(told["at"]) > (DAY_SECONDS if untold.isdisjoint(waiting) else LEASE_SECONDS)
    else:
        due = told is None or told["by"] == request_id or age(told["at"]) > LEASE_SECONDS
    if due:
        ledger["told"][waits_for] = {"by": request_id, "at": now().isoformat(), "done": False}
    return waiting, due


def mark_told(ledger: dict[str, Any], waits_for: str, request_id: str) -> None:
    if ledger["told"][waits_for]["by"] == request_id:
        ledger["told"][waits_for]["done"] = True


# --- starting what waits ----------------------------------------------------------------------------


def pending(bucket: str, start_after: str) -> tuple[list[str], set[str]]:
    """The jobs whose snapshot is whole and that were not started, oldest first; and which of them were not told of."""
    found: dict[str, set[str]] = {}
    for key in list_keys(bucket, SNAPSHOT_PREFIX, start_after):
        job, _, name = key.removeprefix(SNAPSHOT_PREFIX).partition("/")
        if JOB_NAME.fullmatch(job):
            found.setdefault(job, set()).add(name)
    line = [job for job in sorted(found) if "source.json" in found[job]]
    line = [job for job in line if not found[job] & {"started.json", "given_up.json"}]
    return line, {job for job in line if "waiting.json" not in found[job]}


def read_source(bucket: str, job: str) -> dict[str, Any]:
    """The source record of a snapshot. Raises LookupError when it is gone."""
    source, _ = read_json(bucket, f"{SNAPSHOT_PREFIX}{job}/source.json")
    if source is None:
        raise LookupError(f"{SNAPSHOT_PREFIX}{job}/source.json was there a moment ago and is gone")
    return source


def record_waiting(bucket: str, source: Mapping[str, Any], waits_for: str) -> None:
    record = {"schema": SCHEMA, "job": source["job"], "model": source["model"], "for": waits_for}
    put_json(bucket, f"{SNAPSHOT_PREFIX}{source['job']}/waiting.json", record | {"at": now().isoformat()})


def start(config: Settings, source: Mapping[str, Any]) -> tuple[str, str]:
    """Start the job that has its slot, tell people, record it; ("", "") or what it waits for and SageMaker's refusal.

    A refused job gives its slot back, but only after people were told: the slot is the lease.
    """
    job = source["job"]
    sagemaker = client("sagemaker")
    request = training_job_request(config, source, sagemaker.meta.region_name, live_model(config, source["model"]))
    try:
        sagemaker.create_training_job(**request)
    except ClientError as error:
        message = str(error.response["Error"].get("Message", ""))
        if error_code(error) == "ResourceLimitExceeded":
            if re.search(r"is 0 Instances\b", message) is None:
                update_ledger(config.bucket, lambda ledger: give_back(ledger, job, failed=False))
                return QUOTA, message
            waiting, _ = read_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/waiting.json")
            if waiting is None or waiting["for"] != QUOTA_ABOVE_0:
                tell_quota_of_0(config, source, message)
                record_waiting(config.bucket, source, QUOTA_ABOVE_0)

            def refuse(ledger: dict[str, Any]) -> None:
                give_back(ledger, job, failed=False)
                ledger["never"] = {"instance_type": config.training_instance_type, "at": now().isoformat()}

            update_ledger(config.bucket, refuse)
            return QUOTA_ABOVE_0, message
        # The name follows from the event: an existing job is this upload's, started by an attempt that crashed.
        if error_code(error) != "ResourceInUse":
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            if 400 <= status < 500 and error_code(error) != "ThrottlingException":
                # Refused, so certainly not started; after anything else the job may exist, and holds its slot: a try
                # of the SDK before the one that was throttled may have gone through.
                update_ledger(config.bucket, lambda ledger: give_back(ledger, job, failed=True))
            raise
    tell_started(config, source)
    record = {"schema": SCHEMA, "job": job, "started_at": now().isoformat()}
    put_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/started.json", record)
    return "", ""


def give_up(config: Settings, source: Mapping[str, Any], request_id: str) -> None:
    """Tell that a job could not be started in GIVE_UP_TRIES tries, and record it, which takes it out of the line."""
    if claim(config.bucket, "give-up", source["job"], request_id):
        tell_given_up(config, source)
        record = {"schema": SCHEMA, "job": source["job"], "tries": GIVE_UP_TRIES, "at": now().isoformat()}
        put_json(config.bucket, f"{SNAPSHOT_PREFIX}{source['job']}/given_up.json", record)


def start_in_turn(
    config: Settings, line: list[str], request_id: str, own: str | None, source_of: Callable[[str], dict[str, Any]]
) -> tuple[list[str], str, str]:
    """Start jobs of the line while there is room, and take them out of it.

    Returns the jobs that were started, what the rest waits for ("": nothing, or others have it in hand), and
    SageMaker's refusal where it is that.
    """
    started: list[str] = []

    def take(ledger: dict[str, Any]) -> Turn:
        return take_turn(ledger, line, config, request_id, own, lambda job: str(source_of(job)["model"]))

    while line:
        turn = update_ledger(config.bucket, take)
        if turn.job is None:
            return started, turn.waits_for, ""
        source = source_of(turn.job)
        if turn.give_up:
            give_up(config, source, request_id)
            line.remove(turn.job)
            continue
        refused, message = start(config, source)
        if turn.job != own:
            outcome = f"waits for {refused}" if refused else "started"
            log.info("training job %s", outcome, extra={"training_job": turn.job})
        # The attempt of the upload that this is about tells people about it: it is still to come.
        if refused and not (refused == QUOTA_ABOVE_0 and own in line and turn.job != own):
            return started, refused, message
        if not refused:
            started.append(turn.job)
            line.remove(turn.job)
            if turn.quota_was_0:
                update_ledger(config.bucket, lambda ledger: ledger.update(never=None))
    return started, "", ""


def wait_in_line(
    config: Settings,
    line: Sequence[str],
    waits_for: str,
    untold: set[str],
    request_id: str,
    source_of: Callable[[str], dict[str, Any]],
    message: str,
) -> list[str]:
    """Tell people that the line waits, if that is due, and record it of the newcomers (untold); returns who waits."""
    waiting, due = update_ledger(config.bucket, lambda ledger: join_line(ledger, line, waits_for, untold, request_id))
    newcomers = [job for job in waiting if job in untold]
    if due:
        tell_waiting(config, source_of((newcomers or waiting)[0]), waits_for, len(waiting), message)
        update_ledger(config.bucket, lambda ledger: mark_told(ledger, waits_for, request_id))
    for job in newcomers:
        if waits_for != QUOTA_ABOVE_0:  # recorded as it was refused
            record_waiting(config.bucket, source_of(job), waits_for)
    return waiting


def start_pending(config: Settings, request_id: str, own: str | None = None, sweep: bool = False) -> str:
    """Start what waits, in turn, while there is room; returns the outcome in words.

    own: the job whose upload brought this about: the outcome is about it, and it counts as a newcomer of the line.
    sweep: look at every slot first, since the event that a job ended may have been lost; all that nobody was told
    of are newcomers.
    """
    paused = exists(config.bucket, PAUSED_KEY)
    if paused and sweep:
        return "paused"
    ledger = read_json(config.bucket, LEDGER_KEY)[0] or EMPTY_LEDGER
    if sweep:
        free_slots(config, [job for job, entry in ledger["jobs"].items() if entry["state"] == "held"])
    # What is older than the look-back, since it waits or is being started for so long, is in the ledger.
    waited = [ledger["line"]["oldest"]] if ledger["line"] else []
    line, untold = pending(config.bucket, min([look_back(), *waited, *ledger["jobs"]]))
    if own is not None and own not in line:
        if exists(config.bucket, f"{SNAPSHOT_PREFIX}{own}/started.json"):
            return "already started"
        line = sorted([*line, own])  # an event sent again: its job is beyond the look-back, or was given up

    source_of = functools.cache(functools.partial(read_source, config.bucket))
    started: list[str] = []
    waits_for, message = RESUME, ""
    if not paused:
        started, waits_for, message = start_in_turn(config, line, request_id, own, source_of)
    if waited and not waits_for:
        update_ledger(config.bucket, lambda ledger: ledger.update(line=None))
    waiting: list[str] = []
    if line and waits_for:
        untold &= set(line) if sweep else {own}
        waiting = wait_in_line(config, line, waits_for, untold, request_id, source_of, message)
    if own is None:
        return f"started {len(started)}, waiting {len(waiting)}" + (f" for {waits_for}" if waiting else "")
    if own in started:
        return "started"
    return f"waiting for {waits_for}" if own in waiting else "in hand"


def free_slots(config: Settings, jobs: Sequence[str]) -> None:
    """Free the slots of those jobs that ended, or never came to exist, as SageMaker says now."""
    ended, missing = [], []
    for job in jobs:
        try:
            description = client("sagemaker").describe_training_job(TrainingJobName=job)
        except ClientError as error:
            if error_code(error) != "ValidationException" or "not found" not in str(error):
                raise
            missing.append(job)
            continue
        if description["TrainingJobStatus"] in TERMINAL:
            ended.append(job)
    if ended or missing:
        update_ledger(config.bucket, lambda ledger: close_slots(ledger, ended, missing))


def handle_upload(upload: Upload, config: Settings, request_id: str) -> str:
    """Take an upload as far as it goes now; returns the outcome in a word.

    The order is what makes a crash harmless: do it, tell people, write the record that says so.
    """
    if not is_csv(upload.key):
        return "ignored"
    if exists(config.bucket, f"{SNAPSHOT_PREFIX}{upload.job}/started.json"):
        return "already started"
    if exists(config.bucket, f"{REJECTED_PREFIX}{upload.job}.json"):
        return "already rejected"
    if not exists(config.bucket, f"{SNAPSHOT_PREFIX}{upload.job}/source.json"):
        if not claim(config.bucket, "snapshot", upload.job, request_id):
            return "in hand"
        try:
            snapshot(upload, config)
        except Rejected as reason:
            reject(upload, config, str(reason))
            log.warning("upload rejected: %s", reason, extra={"training_job": upload.job, "key": upload.key})
            return "rejected"
    return start_pending(config, request_id, own=upload.job)


def handle_ended(job: str, config: Settings, request_id: str) -> str:
    """A training job ended: its slot is free for what waits. Returns the outcome in words."""
    ledger = read_json(config.bucket, LEDGER_KEY)[0] or EMPTY_LEDGER
    if ledger["jobs"].get(job, {}).get("state") != "held":
        # Not ours, or freed already; a retry of an invocation that died after freeing it still starts what waits.
        if not JOB_NAME.fullmatch(job) or not exists(config.bucket, f"{SNAPSHOT_PREFIX}{job}/source.json"):
            return "not ours"
    else:
        free_slots(config, [job])
    return start_pending(config, request_id)


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the job's name and the outcome; raises when AWS fails, so that Lambda retries."""
    config = settings()
    event, request_id = unwrap(event, context)
    if event.get("source") == "sweep":
        outcome = start_pending(config, request_id, sweep=True)
        log.info("sweep: %s", outcome, extra={"training_job": None})
        return {"training_job": "", "outcome": outcome}
    if event.get("source") == "aws.sagemaker":
        job = field(field(event, "detail", dict), "TrainingJobName", str)
        outcome = handle_ended(job, config, request_id)
        log.info("end of a training job handled: %s", outcome, extra={"training_job": job})
        return {"training_job": job, "outcome": outcome}
    upload = parse_upload(event)
    if upload.bucket != config.bucket or not upload.key.startswith(UPLOAD_PREFIX):
        raise EventError(f"not an upload of this stack: {upload.uri:.200} (see the EventBridge rule's pattern)")
    outcome = handle_upload(upload, config, request_id)
    log.info("upload handled: %s", outcome, extra={"training_job": upload.job, "key": upload.key})
    return {"training_job": upload.job, "outcome": outcome}


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
