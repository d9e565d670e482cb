"""Training orchestrator: turns an uploaded CSV into one SageMaker training job.

Triggers: an S3 "Object Created" event under data/train/, a SageMaker "Training Job State Change" event when a job
ends, and a schedule (the sweep), which picks up what an undelivered event left behind.
It reads an upload as the training program will, as far as that goes in PREFLIGHT_SECONDS, and copies that exact version
to the job's snapshot, unless a job has the same data already. After any trigger it starts waiting snapshots, oldest
first, while the spend guards leave room. Each start is emailed and recorded.
It never waits for a job, never holds a whole upload in memory, and never writes under data/train/.

The spend guards live in one object, the ledger (slots/training.json). Each change is a conditional write of the whole,
so they hold exactly, however many invocations run at once. A job's entry in it is also the lease on starting it:

  state   meaning                            next state, and when
  (none)  not tried yet, or over             held: its turn has come and there is room (take_slot)
  held    has a slot: starting or running    ended: SageMaker says so (free_slots); (none): no quota (note_failure);
                                             failed: refused (note_failure), or not there when its lease expired
  ended   its start may not be recorded yet  (none): its lease has expired (free_slots)
  failed  could not be started               held: tried again (take_slot), until it is given up (give_up);
                                             (none): LOOK_BACK_DAYS later (free_slots)

It also holds the names of the models that were ever let in (admit), so that they stay within their maximum.

Below the story stand two blocks that others have as well, byte for byte: the reader, which the training program has,
and what the three handlers share.
"""

# ruff: noqa: UP013 (small records are defined on one line)
from __future__ import annotations

import codecs
import copy
import csv
import difflib
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import operator
import os
import random
import re
import string
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn, NotRequired, TypedDict, TypeVar, cast

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

LEDGER_KEY = "slots/training.json"
UPLOAD_CLAIM_PREFIX = "claims/snapshot/upload-"
# S3 delivers an event within seconds. An upload that nobody claimed for this long is adopted by the sweep.
EVENT_SECONDS = 10 * 60
DATA_CLAIM_PREFIX = "data/claims/"
SETTINGS_FILE = "settings.json"
# How long an upload is read, and how many different texts are remembered meanwhile, at about 100 bytes each: labels and
# texts beyond that are counted less exactly.
PREFLIGHT_SECONDS, PREFLIGHT_TEXTS = 20, 2_000_000
DAY_SECONDS = 24 * 60 * 60

# Beside a model's CSVs: how it is trained, chosen by who uploads it. So no value of it reaches a shell, a path or the
# gate: names are matched or travel by Environment, numbers are written anew.
SETTINGS_MAX_BYTES = 4096
COLUMN_MAX = 256  # characters
# Its numbers, each with the least and the most that the training program takes; whole where the least is written whole.
NUMBERS: dict[str, tuple[float, float]] = {
    "epochs": (1, 1000),
    "holdout_fraction": (0.01, 0.9),
    "learning_rate": (1e-8, 1.0),
    "max_length": (4, 100_000),
    "seed": (0, 2**32 - 1),
}
# What the training program tries, cheapest first; "auto" leaves the choice to it.
CANDIDATES = re.compile(r"auto|(words|frozen|fine-tuned|blend)(,(words|frozen|fine-tuned|blend))*")
CANDIDATES_RULE = '"auto", or some of words, frozen, fine-tuned and blend, with commas between'
# A base model that the training program chooses by the texts: an English or a multilingual encoder.
AUTO = "auto"
# Where a spot job keeps what it needs to go on after an interruption: in S3, and in its container. SageMaker copies it
# back and forth (developer guide, "Checkpoints").
CHECKPOINT_PREFIX = "models/checkpoints/"
CHECKPOINT_DIR = "/opt/ml/checkpoints"
GPU_INSTANCE = re.compile(r"ml\.[gp]\d")
# Races for the ledger lost in a row before the invocation fails and Lambda retries it.
LEDGER_TRIES = 200

# The largest file, as a share of the job's disk. The live model's data, which may be as large, takes as much again; the
# rest is for the models and what training writes.
LARGEST_FILE = 1 / 3

# What the line of uploads can wait for.
A_SLOT, THE_NEXT_DAY, RESUME = "a slot", "the next day", "resume"
QUOTA, QUOTA_ABOVE_0 = "quota", "a quota above 0"
# What can become of a job whose turn it is, besides waiting; and of an upload.
STARTED, REFUSED, REJECTED, KNOWN = "started", "refused", "rejected", "already trained on"
# An upload whose snapshot is complete; a sweep that has something to do, while a person paused the pipeline.
KEPT, PAUSED = "kept", "paused"
# What an upload is, by its name: rows to train on, a model's settings, something else; "": none of people's business.
DATA, SETTINGS, OTHER = "data", "settings", "other"

# The training program's last line is "hold-out:  accuracy 0.9812  macro_f1 ..."; SageMaker charts what these find.
METRIC_DEFINITIONS = [
    {"Name": f"holdout:{name}", "Regex": rf"hold-out:.* {name} ([0-9.]+)"}
    for name in ("accuracy", "macro_f1", "macro_precision", "macro_recall", "eval_loss")
]
# The container's toolkit passes names and values through a shell, unquoted (sagemaker-training-toolkit).
SHELL_SAFE = re.compile(r"[A-Za-z0-9._+-]+")
Result = TypeVar("Result")


def training_email(status: str, subject: str, *paragraphs: str) -> dict[str, str]:
    """One of EMAILS; the table comes after the first paragraph."""
    body = "\n\n".join([paragraphs[0], "{table}", *paragraphs[1:]])
    return {"stage": "training", "status": status, "subject": subject, "body": f"{body}\n"}


def waiting(why: str, what_next: str, subject: str = "Training waiting: {model} ({file}){and_more}") -> dict[str, str]:
    """One of EMAILS, on a line that waits."""
    what = (
        "No training job has been started for this upload yet. Its data is kept, and it keeps its place in the queue."
    )
    later = (
        "Uploads that join it in the next {minutes} minutes get no email of their own. To list them, run: make status"
    )
    return training_email("waiting", subject, what, f"Why: {why}", f"What next: {what_next}\n{later}")


EMAILS = {
    "started": training_email(
        "started",
        "Training started: {model} ({file})",
        "A training job was started for this upload.",
        "What next: nothing to do. The next email says whether the new model is approved. The live model, if there is "
        "one, is not affected.\nTo follow the job, run: make logs JOB={job}",
    ),
    REJECTED: training_email(
        "rejected",
        "Training data rejected: {file}{and_more}",
        "This file was not used for training, and no training job was started.",
        "Why: {reason}.",
        "Every file must be a CSV: in UTF-8, or in UTF-16 with a byte order mark; separated by commas, semicolons, "
        'tabs or bars; compressed with gzip or not. It needs a header line, a column "{config.text_column}" for the '
        'text, a column "{config.label_column}" for its label, and at least two labels, with two different texts each. '
        "At most {most_left_out} of the rows may lack a text or a label, or have too many fields.\n"
        "What next: correct what the reason names, and upload the file again under the same name. The live model, if "
        "there is one, is not affected.\n"
        "Files that are rejected in the next {minutes} minutes share one email. To list them, run: make status",
    ),
    KNOWN: training_email(
        KNOWN.replace(" ", "-"),
        "Training not repeated: {model} ({file}){and_more}",
        "No training job was started for this upload: another job has the same data, which is not paid for twice.",
        "Why: {reason}.",
        "What next: nothing to do. That job's emails say what becomes of it, and so does make status. To train on the "
        "same data once more, run:\n\n  make retrain JOB={known_job}\n\n"
        "The live model, if there is one, is not affected.\n"
        "Such uploads in the next {minutes} minutes share one email. To list them, run: make status",
    ),
    "given up": training_email(
        "given-up",
        "Training given up: {model} ({file})",
        "No training job could be started for this upload, and the pipeline has stopped trying.",
        "Why: AWS did not start it in {tries} tries. {reason}",
        "What next: fix the cause if it is on your side (an internal error of AWS is not). Then run:\n\n"
        "  make retrain JOB={job}\n\nThe data is kept. The live model, if there is one, is not affected.",
    ),
    REFUSED: training_email(
        "waiting",
        "Training not started: {model}: AWS refused it ({file})",
        "No training job was started for this upload yet. Its data is kept, and so is its place in the line.",
        "Why: AWS refused to start the training job. AWS said: {reason}",
        "What next: {advice}\nThe upload is retried by itself, {tries} times within about a day: it needs no second "
        "upload. The live model is not affected.",
    ),
    A_SLOT: waiting(
        "every training slot is taken: max_concurrent_training_jobs is {config.max_concurrent_training_jobs}.",
        "nothing to do. Training starts by itself when a slot is free; the oldest upload goes first.",
    ),
    THE_NEXT_DAY: waiting(
        "no more jobs may start today (UTC): max_training_jobs_per_day is {config.max_training_jobs_per_day}.",
        "nothing to do. Training continues after midnight UTC; the oldest upload goes first.",
    ),
    RESUME: waiting(
        "the pipeline is paused.", "run make resume. Training then continues; the oldest upload goes first."
    ),
    QUOTA: waiting(
        'the account\'s quota "{quota[name]}" is fully used right now.\nSageMaker said: {quota[reason]}',
        "nothing to do if other jobs use the quota: the upload is retried at least once an hour. Otherwise request an "
        'increase of "{quota[name]}" in the AWS console under Service Quotas, Amazon SageMaker.',
    ),
    QUOTA_ABOVE_0: waiting(
        'the account\'s quota "{quota[name]}" is {too_small}. It stays so until you request an increase.\n'
        "SageMaker said: {quota[reason]}",
        'request an increase of "{quota[name]}" in the AWS console under Service Quotas, Amazon SageMaker; or set '
        "training_instance_type to a type whose quota is large enough, and deploy. The upload is retried every hour.",
        "Training not started: {model}: instance quota is {too_small}",
    ),
}

# What to do about a refusal, by what AWS says.
TRAINING_ADVICE = {
    "not available in this region": "set training_instance_type in Terraform to a type of this region, and apply.",
    r"[Ii]mage|[Rr]epository": "set training_image in Terraform to an image that exists in this region, and apply.",
    r"not authorized|[Aa]ssume|[Aa]ccess ?denied": "run make deploy, which restores the stack's roles. If AWS refuses "
    "it again, ask whoever manages the account: a policy of theirs may deny it.",
    "": "fix what AWS names: change that variable in Terraform, and apply.",
}


# --- records and errors -----------------------------------------------------------------------------


class ModelSettings(TypedDict, total=False):
    """What a model's settings.json sets; what it does not is Terraform's (scripts/mlops/settings.schema.json)."""

    text_column: str
    label_column: str
    base_model: str
    candidates: str
    epochs: int
    holdout_fraction: float
    learning_rate: float
    max_length: int
    seed: int
    base_model_revision: str  # of base_model, as Terraform had it then


class Source(TypedDict):
    """data/snapshots/<job>/source.json: where the data comes from. Written last, it makes the snapshot complete."""

    schema: int
    job: str  # the upload's training job, whether it is started or not
    model: str  # "" where the folder is not a model name: those are rejected
    bucket: str
    key: str
    version_id: str | None  # None where the bucket has no versions
    etag: str  # without quotes
    sequencer: str  # S3's order of the events of one key
    size: int  # bytes
    uploaded_at: str
    settings: NotRequired[ModelSettings]  # of the model, when this was uploaded; absent where it had none
    told: NotRequired[dict[str, str]]  # what the file holds, as the rows of a table; absent where it could not be read
    retrain_of: NotRequired[str]  # the job whose data this is (make retrain)


class Rejection(Source):
    """data/rejected/<job>.json: why an upload is not trained on; that was emailed."""

    reason: str
    rejected_at: str
    known_job: str  # the job that has the same data, where that is why; else ""


# data/snapshots/<job>/started.json: the job exists, and that was emailed.
Started = TypedDict("Started", {"schema": int, "job": str, "started_at": str})
# data/snapshots/<job>/given_up.json: the job is not tried any more, and that was emailed; reason: AWS's last words.
GivenUp = TypedDict("GivenUp", {"schema": int, "job": str, "tries": int, "at": str, "reason": str})
# data/snapshots/<job>/waiting.json: the upload joined the line; for: what that waited for then (A_SLOT, ...).
Waiting = TypedDict("Waiting", {"schema": int, "job": str, "model": str, "for": str, "at": str})

# Parts of the ledger: SageMaker's refusals for want of quota since a job last ended (instance_type: what a job runs on,
# in words; is_0: the quota is less than one job takes); the jobs that count against the daily limit (of a date in UTC);
# and the last email that the line waits, which is leased until done.
Quota = TypedDict("Quota", {"name": str, "instance_type": str, "tries": int, "at": str, "reason": str, "is_0": bool})
Starts = TypedDict("Starts", {"date": str, "jobs": list[str]})
LineEmail = TypedDict("LineEmail", {"by": str, "at": str, "done": bool})
# The last email on rejections that share one, and the jobs that are to be in the next.
Crowd = TypedDict("Crowd", {"by": str, "at": str, "done": bool, "jobs": list[str]})


# claims/snapshot/upload-<hash of key and ETag>.json: the jobs of an upload's versions ("": none), by whoever saw them
# first, their event or the sweep.
UploadClaim = TypedDict("UploadClaim", {"schema": int, "jobs": dict[str, str]})
# data/claims/<hash of data, settings and training source>.json: the job that has them, and since when.
DataClaim = TypedDict("DataClaim", {"schema": int, "job": str, "at": str})


class Slot(TypedDict):
    """A job's entry in the ledger."""

    state: str
    by: str
    at: str
    tries: int
    reason: NotRequired[str]  # what AWS said last
    emailed: NotRequired[str]  # the refusal that people were emailed: its cause


class Ledger(TypedDict):
    """slots/training.json: what the spend guards know. make status and make upload read it."""

    schema: int
    jobs: dict[str, Slot]
    day: Starts
    oldest_waiting: str  # a job; "" when none waits
    quota: Quota | None
    emails: dict[str, LineEmail]  # by what the line waited for
    models: list[str]  # that were ever let in; [] before the first upload
    rejected: dict[str, Crowd]  # by model and what is told, "" in place of a model for what has no crowd of its own


class Snapshot(NamedTuple):
    """A snapshot that was just taken, and the ledger, with its ETag, as it was before."""

    source: Source
    ledger: tuple[Ledger, str | None]


class Rejected(Exception):
    """The upload cannot be trained on; the text is the reason for the person who uploaded it.

    told: what it holds, where it could be read. known_job: the job that has the same data, where that is why.
    """

    def __init__(self, reason: str, told: Mapping[str, str] | None = None, known_job: str = "") -> None:
        super().__init__(reason)
        self.told, self.known_job = dict(told or {}), known_job


class NoRoom(Rejected):
    """The upload's model may not be trained."""


class Checked(NamedTuple):
    """An upload that was read: what it holds for people, and what identifies its bytes."""

    told: dict[str, str]
    identity: str


@dataclass(frozen=True)
class Settings:
    """The environment, read once: each field is the variable of its name; those with a default may be missing."""

    bucket: str
    project: str
    topic_arn: str
    training_role_arn: str
    training_image: str
    training_source_uri: str
    training_source_hash: str
    training_instance_type: str
    training_instance_count: int
    training_volume_gb: int
    training_max_runtime_seconds: int
    max_concurrent_training_jobs: int
    max_training_jobs_per_day: int
    max_models: int
    hyperparameters: dict[str, str]
    base_model: str
    base_model_english: str  # what AUTO chooses from: <Hub id>@<commit>
    base_model_multilingual: str
    base_models: dict[str, str]  # further ones that a settings.json may choose, and their revisions
    candidates: str
    text_column: str
    label_column: str
    max_rows_left_out: float  # share, 0 to 1
    training_max_wait_seconds: str = ""  # of spot jobs, in all; "": jobs run on demand
    base_model_revision: str = ""
    hub_token_secret_arn: str = ""
    kms_key_arn: str = ""
    models: str = ""  # names, separated by spaces

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings. Raises ConfigError naming the variable that is missing or malformed."""
        readers: dict[Any, Callable[..., Any]] = {"str": required, "int": positive_int, "dict[str, str]": json_object}
        readers["float"] = share
        values: dict[str, Any] = {}
        for item in fields(cls):
            name = item.name.upper()
            values[item.name] = readers[item.type](env, name) if item.default is MISSING else env.get(name, "")
        for name, value in values["hyperparameters"].items():
            if not isinstance(value, str) or not SHELL_SAFE.fullmatch(value) or not SHELL_SAFE.fullmatch(name):
                raise ConfigError(f"HYPERPARAMETERS: {name!r}: {value!r}: both must be of letters, digits and . _ + -")
        if not CANDIDATES.fullmatch(values["candidates"]):
            raise ConfigError(f"CANDIDATES must be {CANDIDATES_RULE}, not {values['candidates']!r}")
        if (wait := values["training_max_wait_seconds"]) and (
            positive_int(env, "TRAINING_MAX_WAIT_SECONDS") < values["training_max_runtime_seconds"]
        ):
            raise ConfigError(f"TRAINING_MAX_WAIT_SECONDS is less than TRAINING_MAX_RUNTIME_SECONDS: {wait}")
        return cls(**values)


def share(env: Mapping[str, str], name: str) -> float:
    """The variable as a number from 0 to 1. Raises ConfigError otherwise."""
    value = required(env, name)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(e-[0-9]+)?", value) or float(value) > 1:
        raise ConfigError(f"environment variable {name} must be a number from 0 to 1, not {value!r}")
    return float(value)


# --- what comes in ----------------------------------------------------------------------------------


def parse_upload(event: Mapping[str, Any]) -> Source:
    """The upload that an S3 "Object Created" event from EventBridge reports.

    The key arrives raw, not URL-encoded, and version-id is absent on unversioned buckets (S3 user guide, EventBridge
    event message structure). Raises EventError when what identifies the upload is missing or of the wrong type.
    """
    detail = field(event, "detail", dict)
    item = field(detail, "object", dict)
    bucket, key = field(field(detail, "bucket", dict), "name", str), field(item, "key", str)
    version_id, etag = item.get("version-id"), str(item.get("etag", "")).strip('"')
    if version_id is not None and not isinstance(version_id, str):
        raise EventError(f"the event's version-id must be text, not {version_id!r}")
    text, sequencer = field(event, "time", str), str(item.get("sequencer", ""))
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise EventError(f"the event's time is not ISO 8601: {text!r}") from error
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return upload_of(bucket, key, version_id, etag, sequencer, item.get("size", 0), time)


def upload_of(
    bucket: str, key: str, version_id: str | None, etag: str, sequencer: str, size: int, time: datetime
) -> Source:
    """The upload of an object; size in bytes. sequencer: "" where it is known from a listing, without an event."""
    # The same for every delivery of an event; names sort by time.
    digest = hashlib.sha256(json.dumps([bucket, key, version_id or etag, sequencer]).encode()).hexdigest()
    folder, slash, _ = key.removeprefix(UPLOAD_PREFIX).partition("/")
    model = folder if slash else DEFAULT_MODEL
    return {
        "schema": SCHEMA,
        "job": f"training-job-{time:%Y%m%d-%H%M%S}-{digest[:8]}",
        "model": model if MODEL_NAME.fullmatch(model) else "",
        "bucket": bucket,
        "key": key,
        "version_id": version_id,
        "etag": etag,
        "sequencer": sequencer,
        "size": size,
        "uploaded_at": time.isoformat(),
    }


def kind_of(key: str, size: int) -> str:
    """What an upload is: DATA, SETTINGS, OTHER, or "" for what is passed over in silence: folder placeholders of the
    console and of Hadoop, README files, hidden files."""
    name = key.rpartition("/")[2].lower()
    if name.startswith(".") or not name:
        return ""
    if name.endswith(FILE_ENDINGS):
        return DATA
    if name == SETTINGS_FILE:
        return SETTINGS
    return "" if name.startswith("readme") or (not size and "." not in name) else OTHER


# --- a model's own settings -------------------------------------------------------------------------


def settings_key(upload_key: str) -> str:
    """Where the settings of an upload's model are: in the model's folder."""
    folder, slash, _ = upload_key.removeprefix(UPLOAD_PREFIX).partition("/")
    return f"{UPLOAD_PREFIX}{folder}/{SETTINGS_FILE}" if slash else f"{UPLOAD_PREFIX}{SETTINGS_FILE}"


def read_settings(config: Settings, upload_key: str) -> ModelSettings:
    """The settings of an upload's model, {} where there are none. Raises Rejected."""
    where = {"Bucket": config.bucket, "Key": settings_key(upload_key)}
    try:
        answer = client("s3").get_object(**where)
        with answer["Body"]:
            content = answer["Body"].read(SETTINGS_MAX_BYTES + 1)
    except ClientError as error:
        if is_gone(error):
            return {}
        if reason := why_unreadable(error, where, config):
            raise Rejected(f"{SETTINGS_FILE}: {reason}") from error
        raise
    return parse_settings(content, config)


def parse_settings(content: bytes, config: Settings) -> ModelSettings:
    """What a settings.json says. Raises Rejected, with what it may say."""
    if len(content) > SETTINGS_MAX_BYTES:
        raise Rejected(f"{SETTINGS_FILE} has more than {SETTINGS_MAX_BYTES:,} bytes")
    try:
        pairs = json.loads(content, object_pairs_hook=Pairs, parse_constant=float)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{SETTINGS_FILE} is not JSON: {str(error)[:200] or 'nested too deeply'}") from error
    if not isinstance(pairs, Pairs):
        raise Rejected(f'{SETTINGS_FILE} must be a JSON object, such as {{"text_column": "message"}}')
    checks: dict[str, Callable[[str, object, Settings], Any]] = dict.fromkeys(NUMBERS, number_setting)
    checks |= dict.fromkeys(("text_column", "label_column"), column_setting)
    checks |= {"base_model": base_model_setting, "candidates": candidates_setting}
    checks |= {"$schema": lambda *_: None}  # for editors
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name not in checks:
            raise Rejected(f"{SETTINGS_FILE}: {clipped(name)} is not a setting{suggestion(name, checks)}")
        if name in found:
            raise Rejected(f"{SETTINGS_FILE} has {clipped(name)} more than once: delete one")
        found[name] = checks[name](name, value, config)
    found.pop("$schema", None)
    columns = {"text_column": config.text_column, "label_column": config.label_column} | found
    if "base_model" in found:
        revisions = {config.base_model: config.base_model_revision, AUTO: "", **config.base_models}
        found["base_model_revision"] = revisions[found["base_model"]]
    if columns["text_column"] == columns["label_column"]:
        raise Rejected(f"{SETTINGS_FILE}: text_column and label_column are both {clipped(columns['text_column'])}")
    return cast(ModelSettings, found)


def with_settings(config: Settings, chosen: ModelSettings) -> Settings:
    """The settings that hold for an upload: Terraform's, but for what its model's settings.json chose."""
    numbers = {name: str(value) for name, value in chosen.items() if name in NUMBERS}
    names: dict[str, Any] = {name: value for name, value in chosen.items() if name not in NUMBERS}
    return replace(config, hyperparameters=config.hyperparameters | numbers, **names)


class Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as they stand, more than once too."""


def column_setting(name: str, value: object, config: Settings) -> str:
    """A column's name, as Terraform takes it. Raises Rejected."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() and 0 < len(value) <= COLUMN_MAX:
        return value
    rule = f"1 to {COLUMN_MAX} printable characters, without spaces at its ends"
    raise Rejected(f"{SETTINGS_FILE}: {name} must be the name of a column: {rule}")


def number_setting(name: str, value: object, config: Settings) -> int | float:
    """A number of NUMBERS. Raises Rejected."""
    least, most = NUMBERS[name]
    kinds = (int,) if isinstance(least, int) else (int, float)
    if type(value) in kinds and least <= cast(float, value) <= most:
        return cast(float, value)
    kind = "a whole number" if isinstance(least, int) else "a number"
    raise Rejected(
        f"{SETTINGS_FILE}: {name} must be {kind} from {least:g} to {most:.10g}, not {clipped(json.dumps(value))}"
    )


def base_model_setting(name: str, value: object, config: Settings) -> str:
    """One of the base models that Terraform allows. Raises Rejected."""
    allowed = {config.base_model: "", AUTO: "", **config.base_models}
    if isinstance(value, str) and value in allowed:
        return value
    way_out = "others can be allowed by base_models in Terraform"
    said = suggestion(value, allowed) if isinstance(value, str) else ""
    raise Rejected(f"{SETTINGS_FILE}: {name} {clipped(str(value))} is not allowed{said}; {way_out}")


def candidates_setting(name: str, value: object, config: Settings) -> str:
    """Candidates, as Terraform takes them. Raises Rejected."""
    if isinstance(value, str) and CANDIDATES.fullmatch(value):
        return value
    raise Rejected(f"{SETTINGS_FILE}: {name} must be {CANDIDATES_RULE}, not {clipped(json.dumps(value))}")


def suggestion(name: str, names: Collection[str]) -> str:
    """What somebody may have meant, and all that there is."""
    near = difflib.get_close_matches(name, names, 1)
    meant = f": did you mean {clipped(near[0])}?" if near else ""
    return f"{meant} ({', '.join(sorted(name for name in names if name != '$schema'))})"


# --- the steps: from an upload to its snapshot, from the snapshots that wait to training jobs -------


def handle_upload(upload: Source, config: Settings, request_id: str) -> str:
    """Take an upload as far as it goes now; returns the outcome in words."""
    # The order makes a crash harmless, here and below: do it, email it, write the record that says so.
    kind = kind_of(upload["key"], upload["size"])
    if not kind:
        return "ignored"
    snapshot, so_far = None, what_became_of(upload, config.bucket, request_id)
    if not so_far:
        snapshot, so_far = keep_upload(upload, config, request_id)
    if so_far != KEPT:
        return so_far
    return start_waiting(config, request_id, own=upload["job"], snapshot=snapshot)


def what_became_of(upload: Source, bucket: str, request_id: str) -> str:
    """Find out which job an upload has, and what became of it so far, in words; "": nothing yet, and this invocation
    has the lease on its snapshot."""
    job, is_claimed_now = claim_upload(bucket, upload)
    upload["job"] = job
    lease = take_lease(bucket, "snapshot", job, request_id) if is_claimed_now else None
    # S3 keeps leases for LOOK_BACK_DAYS: where none was left of an upload since then, nothing became of it.
    if lease == LEASED and age(upload["uploaded_at"]) < LOOK_BACK_DAYS * DAY_SECONDS:
        return ""
    there = files_of(bucket, job)
    if "started.json" in there:
        return "already started"
    if "source.json" in there:
        return KEPT
    if exists(bucket, f"{REJECTED_PREFIX}{job}.json"):
        return "already rejected"
    if lease is None:
        lease = take_lease(bucket, "snapshot", job, request_id)
    return "" if lease else "in hand"


def files_of(bucket: str, job: str) -> set[str]:
    """The names of the files of a job's snapshot."""
    prefix = f"{SNAPSHOT_PREFIX}{job}/"
    return {key.removeprefix(prefix) for key in list_keys(bucket, prefix)}


def claim_key(key: str, etag: str) -> str:
    """The claim on an upload's key and ETag, which is all that a listing of S3 says."""
    return f"{UPLOAD_CLAIM_PREFIX}{hashlib.sha256(json.dumps([key, etag]).encode()).hexdigest()[:32]}.json"


def claim_upload(bucket: str, upload: Source) -> tuple[str, bool]:
    """The job of an upload: the one that was claimed for its version, or else its own, which is claimed now (True)."""
    claim, version = claim_key(upload["key"], upload["etag"]), upload["version_id"] or ""
    jobs, etag = dict[str, str](), ""  # mostly it is the first one
    for _ in range(LEDGER_TRIES):
        record: UploadClaim = {"schema": SCHEMA, "jobs": jobs | {version: upload["job"]}}
        if put_json(bucket, claim, record, **({"IfMatch": etag} if etag else {"IfNoneMatch": "*"})):
            return upload["job"], True
        found, seen = read_json(bucket, claim)
        jobs, etag = (found["jobs"] if found else {}), seen or ""
        if version in jobs:
            return jobs[version], False
    raise TimeoutError(f"{claim}: other invocations were faster {LEDGER_TRIES} times in a row; try again later")


def keep_upload(upload: Source, config: Settings, request_id: str) -> tuple[Snapshot | None, str]:
    """Take the snapshot of an upload, or reject it; returns the snapshot, and the outcome in words."""
    try:
        snapshot = take_snapshot(upload, config)
        return snapshot, KEPT if snapshot else SETTINGS
    except Rejected as reason:
        outcome = KNOWN if reason.known_job else REJECTED
        job, bucket = upload["job"], config.bucket
        log.warning("upload %s: %s", outcome, reason, extra={"training_job": job, "key": upload["key"]})
        why, at = plain(reason), now().isoformat()
        record: Rejection = {**upload, "reason": why, "rejected_at": at, "known_job": reason.known_job}
        if reason.told:
            record["told"] = reason.told
        model = "" if isinstance(reason, NoRoom) else upload["model"]
        join = functools.partial(join_crowd, job=job, model=model, kind=outcome, config=config, request_id=request_id)
        email_rejections(config, update_ledger(bucket, join), request_id, record)
        put_json(bucket, f"{REJECTED_PREFIX}{job}.json", record)
        return None, outcome


def crowd_name(model: str, kind: str) -> str:
    """The crowd of a model's uploads that are REJECTED or KNOWN. (No model's name has a slash.)"""
    return f"{model}/{KNOWN}" if kind == KNOWN else model


def join_crowd(ledger: Ledger, job: str, model: str, kind: str, config: Settings, request_id: str) -> str:
    """Note that a rejection is to be emailed; returns the crowd that it belongs to.

    Each model has its own, and as many as there may be models are open at a time; all others share one. What is
    REJECTED and what is KNOWN already is told apart.
    """
    crowds = {name: it for name, it in ledger["rejected"].items() if it["jobs"] or age(it["at"]) < LEASE_SECONDS}
    own, alike = crowd_name(model, kind), [name for name in crowds if name.endswith(f"/{KNOWN}") == (kind == KNOWN)]
    name = own if own in crowds or len(alike) < config.max_models else crowd_name("", kind)
    new: Crowd = {"by": request_id, "at": now().isoformat(), "done": False, "jobs": []}
    crowd = crowds.setdefault(name, new)
    crowd["jobs"] = sorted({*crowd["jobs"], job})
    ledger["rejected"] = crowds
    return name


def email_rejections(config: Settings, crowd: str, request_id: str, own: Rejection | None = None) -> None:
    """Email a crowd's rejections, if due: the first one at once, those of the next LEASE_SECONDS together after that.

    own: the rejection in hand, which is not recorded yet.
    """

    def take(ledger: Ledger) -> list[str]:
        last = ledger["rejected"].get(crowd)
        if not last or not last["jobs"]:
            return []
        if (last["done"] or last["by"] != request_id) and age(last["at"]) < LEASE_SECONDS:
            return []
        last |= {"by": request_id, "at": now().isoformat(), "done": False}
        return last["jobs"]

    def close(ledger: Ledger) -> None:
        last = ledger["rejected"][crowd]
        last |= {"done": True, "jobs": [job for job in last["jobs"] if job not in due]}

    due = update_ledger(config.bucket, take)
    keys = (f"{REJECTED_PREFIX}{job}.json" for job in due)
    # Another invocation's may not be recorded yet.
    shown = own if due and own else next((found for key in keys if (found := read_json(config.bucket, key)[0])), None)
    if shown:
        more, minutes = f" and {len(due) - 1} more" if len(due) > 1 else "", LEASE_SECONDS // 60
        known_job = shown.get("known_job", "")  # not in records from before
        kind, counted = (KNOWN, "uploads of known data") if known_job else (REJECTED, "files rejected")
        rows = [*([("its training job", known_job)] if known_job else []), (counted, str(len(due)))]
        values = {"reason": shown["reason"], "and_more": more, "minutes": minutes, "known_job": known_job}
        send(kind, config, shown, rows, **values)
        update_ledger(config.bucket, close)


def overdue_uploads(config: Settings) -> list[dict[str, Any]]:
    """The uploads whose event did not come in time, as they are listed, oldest first; "Claimed": whether somebody saw
    them all the same.

    S3 sends no events for some minutes after they are switched on (S3 user guide, Enabling Amazon EventBridge). Their
    event may still come: whoever claims an upload's version first names its job.
    """
    time = now()
    found = {
        claim_key(item["Key"], item["ETag"].strip('"')): item
        for item in list_objects(config.bucket, UPLOAD_PREFIX)
        if kind_of(item["Key"], item["Size"]) in (DATA, OTHER)
        and EVENT_SECONDS < (time - item["LastModified"]).total_seconds() < LOOK_BACK_DAYS * DAY_SECONDS
    }
    claims = list_objects(config.bucket, UPLOAD_CLAIM_PREFIX) if found else []
    claimed_at = {item["Key"]: item["LastModified"] for item in claims}
    overdue = [
        item | {"Claimed": claim in claimed_at}
        for claim, item in found.items()
        if not 0 <= (claimed_at.get(claim, time) - item["LastModified"]).total_seconds() <= EVENT_SECONDS
    ]
    return sorted(overdue, key=operator.itemgetter("LastModified"))


def adopt_uploads(config: Settings, overdue: Sequence[Mapping[str, Any]], request_id: str) -> int:
    """Take snapshots of uploads whose event never came; returns how many there are now.

    One upload's error does not keep the others waiting: the first error is raised after the last upload.
    """
    taken, errors = 0, list[Exception]()
    earlier = {} if all(item["Claimed"] for item in overdue) else earlier_uploads(config.bucket)
    for item in overdue:
        try:
            taken += adopt(config, item, earlier, request_id)
        except (BotoCoreError, ClientError) as error:
            log.exception("sweep: upload not adopted", extra={"key": item["Key"]})
            errors.append(error)
    if errors:
        raise errors[0]
    return taken


def adopt(config: Settings, item: Mapping[str, Any], earlier: Mapping[tuple[str, str], str], request_id: str) -> bool:
    """Take the snapshot of an object as it was listed, unless it was; True when it is a new one.

    earlier: the jobs of uploads that versions without claims handled.
    """
    try:
        head = client("s3").head_object(Bucket=config.bucket, Key=item["Key"], IfMatch=item["ETag"])
    except ClientError as error:
        if is_gone(error) or error_code(error) in ("PreconditionFailed", "412"):
            return False  # deleted or replaced just now
        if error_code(error) != "400":
            raise
        head = {}  # encrypted with the uploader's own key; HEAD has no text that says so, GET has
    etag, version = item["ETag"].strip('"'), head.get("VersionId")
    upload = upload_of(config.bucket, item["Key"], version, etag, "", item["Size"], item["LastModified"])
    upload["job"] = earlier.get((upload["key"], version or etag), upload["job"])
    return not what_became_of(upload, config.bucket, request_id) and bool(keep_upload(upload, config, request_id)[0])


def earlier_uploads(bucket: str) -> dict[tuple[str, str], str]:
    """The jobs of the uploads since the look-back that were kept or rejected, by key and version (or ETag)."""
    snapshots = (key for key in list_keys(bucket, SNAPSHOT_PREFIX, look_back()) if key.endswith("/source.json"))
    records = (read_json(bucket, key)[0] for key in (*snapshots, *list_keys(bucket, REJECTED_PREFIX, look_back())))
    return {(found["key"], found["version_id"] or found["etag"]): found["job"] for found in records if found}


def take_snapshot(upload: Source, config: Settings) -> Snapshot | None:
    """Check the upload, copy its exact version to the job's snapshot, and write source.json; None for settings, which
    have no snapshot. Raises Rejected."""
    kind = kind_of(upload["key"], upload["size"])
    if kind == OTHER:
        endings = f"{', '.join(FILE_ENDINGS[:-1])} or {FILE_ENDINGS[-1]}"
        raise Rejected(f'only files named {endings} are trained on: save it as CSV (in Excel: "CSV UTF-8")')
    if not upload["model"]:
        folder = upload["key"].removeprefix(UPLOAD_PREFIX).partition("/")[0]
        rule = 'use 1 to 32 of a-z, 0-9 and "-", beginning and ending with a letter or digit'
        raise Rejected(f'the folder "{plain(folder, 80)}" is not a model name: {rule}')
    if kind == SETTINGS and upload["key"] != (place := settings_key(upload["key"])):
        raise Rejected(f"the settings of this model are read from {plain(place)} alone: upload them there")
    chosen = read_settings(config, upload["key"])
    if kind == SETTINGS:
        return None  # each file beside it takes them
    if chosen:
        upload["settings"], config = chosen, with_settings(config, chosen)
    version = {"VersionId": upload["version_id"]} if upload["version_id"] else {}
    where = {"Bucket": upload["bucket"], "Key": upload["key"], **version}
    pinned = {"IfMatch": f'"{upload["etag"]}"'} if upload["etag"] and not version else {}
    snapshot = f"{SNAPSHOT_PREFIX}{upload['job']}"
    try:
        answer = client("s3").get_object(**where, **pinned)
        checked = check(answer, config)
        size, etag = int(answer["ContentLength"]), str(answer["ETag"])
    except ClientError as error:
        if reason := why_unreadable(error, where, config):
            raise Rejected(reason) from error
        raise
    ledger = admit(config, upload["model"])
    claim_data(config, upload, checked)
    try:
        copy_object(config.bucket, f"{snapshot}/data.csv", where, etag, size, {})
    except ClientError as error:
        if reason := why_unreadable(error, where, config):
            raise Rejected(reason) from error
        raise
    source: Source = {**upload, "etag": etag.strip('"'), "size": size, "told": checked.told}
    put_json(config.bucket, f"{snapshot}/source.json", source)
    return Snapshot(source, ledger)


def check(answer: Mapping[str, Any], config: Settings) -> Checked:
    """Read an upload as the training program does, all of it if that takes no longer than PREFLIGHT_SECONDS.

    answer: GetObject's. Raises Rejected where it cannot be trained on; of the rest of a larger file nothing is known.
    """
    size, until = int(answer["ContentLength"]), time.monotonic() + PREFLIGHT_SECONDS
    digest, taken = hashlib.sha256(), 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        # Not "as body": that is the raw stream, which takes a broken connection for the end of the file.
        while chunk := answer["Body"].read(BLOCK_BYTES):
            digest.update(chunk)
            taken += len(chunk)
            yield chunk

    reader = Reader(chunks(), config.text_column, config.label_column, max_texts=PREFLIGHT_TEXTS)
    told_so_far: dict[str, str] = {}
    with answer["Body"]:
        if size > (largest := LARGEST_FILE * config.training_volume_gb * 1e9):
            most = f"a third of a job's disk, {human_bytes(int(largest))}: raise training_volume_gb in Terraform"
            raise Rejected(f"the file has {human_bytes(size)}, and may have at most {most}, or upload fewer rows")
        try:
            for _ in reader.batches():  # the rows are the training program's; here they are counted
                if time.monotonic() > until and (taken < size or reader.findings.compressed):
                    reader.complete, reader.stopped = False, True
            told_so_far = told(reader.findings)
            check_trainable(reader.findings, config.max_rows_left_out)
        except Unreadable as error:
            raise Rejected(str(error), told_so_far) from error
    if reader.findings.complete:
        return Checked(told_so_far, digest.hexdigest())
    told_so_far["checked"] += f" (the first {human_bytes(taken)} of {human_bytes(size)})"
    return Checked(told_so_far, f"{str(answer['ETag']).strip(chr(34))} {size}")


def claim_data(config: Settings, upload: Source, checked: Checked) -> None:
    """Claim the data for the upload's job. Raises Rejected where another job has the same data.

    The same: equal bytes, for the same model, under settings and a training source that make the same of them.
    """
    names = ("hyperparameters", "base_model", "base_model_revision", "text_column", "label_column", "training_image")
    program = config.training_source_hash
    same = [checked.identity, upload["model"], program, *(getattr(config, name) for name in names)]
    same += [config.candidates, encoders(config)]
    claim = f"{DATA_CLAIM_PREFIX}{hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:32]}.json"
    mine: DataClaim = {"schema": SCHEMA, "job": upload["job"], "at": now().isoformat()}
    condition = {"IfNoneMatch": "*"}
    for _ in range(LEDGER_TRIES):
        if put_json(config.bucket, claim, mine, **condition):
            return
        found, etag = read_json(config.bucket, claim)
        if found and found["job"] == upload["job"]:
            return  # from an attempt that broke off
        if found and still_has(config.bucket, found):
            since = f"{datetime.fromisoformat(found['at']):%Y-%m-%d %H:%M} UTC"
            why = f'since {since}, the job {found["job"]} of the model "{upload["model"]}" has the same bytes'
            reason = f"{why}, with the same settings and the same training program"
            raise Rejected(reason, checked.told, found["job"])
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    raise TimeoutError(f"{claim}: other invocations were faster {LEDGER_TRIES} times in a row; try again later")


def still_has(bucket: str, claim: DataClaim) -> bool:
    """Whether the job of a claim has its data, or may be about to. (Snapshots are kept for a limited time.)"""
    there = files_of(bucket, claim["job"])
    if "source.json" in there:
        return "data.csv" in there
    return age(claim["at"]) < DAY_SECONDS and not exists(bucket, f"{REJECTED_PREFIX}{claim['job']}.json")


def why_unreadable(error: ClientError, where: Mapping[str, str], config: Settings) -> str:
    """Why S3 does not hand out this one object; "" where not the object is to blame.

    Archived: InvalidObjectState (S3 API reference, GetObject). A key of the uploader's own: InvalidRequest, which names
    server-side encryption. A KMS key that is not the stack's: AccessDenied, with or without the key in its text, or
    KMS.<what is wrong with it>. A HEAD request takes the same permission on the object, and names the key; where it is
    denied as well, the error stands.
    """
    if is_gone(error) or error_code(error) in ("PreconditionFailed", "412"):
        return "the file was deleted or overwritten before it could be read; if overwritten, the newer one is used"
    code = error_code(error) if error.operation_name == "GetObject" else ""
    if code == "InvalidObjectState":
        return "the file is in an archive storage class, which S3 cannot read at once: upload it in the class STANDARD"
    if code == "InvalidRequest" and "server side encryption" in error_message(error).lower():
        return "the file is encrypted with a key of the uploader's own (SSE-C): upload it without one"
    if code != "AccessDenied" and not code.startswith("KMS."):
        return ""
    try:
        key = client("s3").head_object(**where).get("SSEKMSKeyId")
    except ClientError as denied:
        if error_code(denied) not in ("403", "400"):
            raise
        return ""
    if not key or key == config.kms_key_arn:
        return ""
    return (
        "the file is encrypted with a KMS key that the pipeline may not use: upload it with the bucket's own settings"
    )


def admit(config: Settings, model: str) -> tuple[Ledger, str | None]:
    """Let the model in, for good; returns the ledger and its ETag. Raises NoRoom where a new one has no room."""
    ledger, etag = read_ledger(config.bucket)
    models = config.models.split()
    if model in ledger["models"] and has_room(model, models, config.max_models, ledger["models"]):
        return ledger, etag
    earlier = set[str]() if ledger["models"] else earlier_models(config.bucket)

    def enter(ledger: Ledger) -> tuple[bool, list[str]]:
        known = {*ledger["models"], *earlier}
        admitted = has_room(model, models, config.max_models, known)
        ledger["models"] = sorted(known | ({model} if admitted else set()))
        return admitted, ledger["models"]

    admitted, known = update_ledger(config.bucket, enter, (ledger, etag))
    if admitted:
        return read_ledger(config.bucket)
    if config.models:
        raise NoRoom(f'"{model}" may not be trained: add it to models in Terraform, and apply')
    shown = ", ".join(known[:20])
    way_out = "to train one more, raise max_models in Terraform, or name in models those that may be trained, and apply"
    raise NoRoom(f'"{model}" would be a new model, and max_models is {config.max_models} ({shown}); {way_out}')


def has_room(model: str, models: Collection[str], max_models: int, known: Collection[str]) -> bool:
    """Whether a model may be trained: it is in the list, or without one, known or within the maximum. mlops.records has
    the same (tests/contract/test_one_definition.py)."""
    return model in models if models else model in known or len(known) < max_models


def earlier_models(bucket: str) -> set[str]:
    """The models of a stack from before they were counted: those with a snapshot or an approved archive."""
    snapshots = (key for key in list_keys(bucket, SNAPSHOT_PREFIX) if key.endswith("/source.json"))
    sources = (read_json(bucket, key)[0] for key in snapshots)
    approved = map(APPROVED_KEY.fullmatch, list_keys(bucket, APPROVED_PREFIX))
    return {source["model"] for source in sources if source} | {match["model"] for match in approved if match}


def send(kind: str, config: Settings, source: Source, rows: Sequence[tuple[str, object]], **values: object) -> None:
    """Send one of EMAILS about an upload; rows: what its table has beside the data and, where that matters, what the
    file holds."""
    uploaded = f"{datetime.fromisoformat(source['uploaded_at']):%Y-%m-%d %H:%M:%S} UTC"
    data = {"data": f"s3://{source['bucket']}/{source['key']}", "version": source["version_id"], "uploaded": uploaded}
    if kind not in (REJECTED, KNOWN):
        data |= {"size": human_bytes(source["size"]), "model": source["model"], "training job": source["job"]}
    config = with_settings(config, source.get("settings", {}))
    values |= {"most_left_out": f"{100 * config.max_rows_left_out:g} %"}
    values |= {"config": config, "file": source["key"].rsplit("/", 1)[-1], "job": source["job"]}
    held = source.get("told", {}).items() if kind in (STARTED, REJECTED) else ()
    shown = [*((name, value) for name, value in data.items() if value), *rows, *held]
    notify(config.topic_arn, EMAILS[kind], source["model"] or "none", shown, **values)


def start_waiting(
    config: Settings, request_id: str, own: str = "", ended: str = "", snapshot: Snapshot | None = None
) -> str:
    """Start what waits, in turn, while there is room; returns the outcome in words.

    own: the uploaded file's job, with its snapshot when that was just taken; ended: the job that ended. Neither: a
    sweep, which checks every slot.
    """
    sweep = not own and not ended
    seen = snapshot.ledger if snapshot else read_ledger(config.bucket)
    ledger = seen[0]
    if ended and ended not in ledger["jobs"] and not exists(config.bucket, f"{SNAPSHOT_PREFIX}{ended}/source.json"):
        return "not ours"
    for crowd in [name for name, it in ledger["rejected"].items() if it["jobs"]]:
        email_rejections(config, crowd, request_id)
    held = [job for job, entry in ledger["jobs"].items() if entry["state"] == "held"]
    free_slots(config, seen, held if sweep else [job for job in held if job == ended])
    # What waits or is being started, though older than the look-back, is in the ledger.
    known = [look_back(), *ledger["jobs"], *filter(None, [ledger["oldest_waiting"]])]
    snapshots = waiting_snapshots(config.bucket, min(known))
    if own and own not in snapshots:
        if exists(config.bucket, f"{SNAPSHOT_PREFIX}{own}/started.json"):
            return "already started"
        snapshots[own] = set()  # an event sent again: its job is older than the look-back, or was given up
    line = sorted(snapshots)
    done, waiting, waits_for = dict[str, str](), list[str](), RESUME
    paused = bool(line) and exists(config.bucket, PAUSED_KEY)
    if paused and sweep:
        return PAUSED
    if not paused:
        give_up(config, ledger, line, request_id, own)
        done, waits_for = start_in_turn(config, line, request_id, own, snapshot)
    if line and waits_for:
        # Another upload's own invocation says that it waits; where that died, the sweep does.
        newcomers = [job for job in line if "waiting.json" not in snapshots[job] and (sweep or job == own)]
        waiting = wait_in_line(config, line, newcomers, waits_for, request_id)
    elif ledger["oldest_waiting"]:
        update_ledger(config.bucket, lambda ledger: ledger.update({"oldest_waiting": ""}))
    if not own:
        started, refused = (list(done.values()).count(what) for what in (STARTED, REFUSED))
        text = f"started {started}, waiting {len(waiting)}" + (f" for {waits_for}" if waiting else "")
        return text + (f", refused {refused}" if refused else "")
    if own in done:
        return done[own]
    return f"waiting for {waits_for}" if own in waiting else "in hand"


def waiting_snapshots(bucket: str, start_after: str) -> dict[str, set[str]]:
    """The jobs whose snapshot is complete and that were neither started nor given up: {job: names of its files}."""
    found: dict[str, set[str]] = {}
    for key in list_keys(bucket, SNAPSHOT_PREFIX, start_after):
        job, _, name = key.removeprefix(SNAPSHOT_PREFIX).partition("/")
        if JOB_NAME.fullmatch(job):
            found.setdefault(job, set()).add(name)
    over = {"started.json", "given_up.json"}
    return {job: names for job, names in found.items() if "source.json" in names and names.isdisjoint(over)}


def read_source(bucket: str, job: str) -> Source:
    """The source record of a snapshot. Raises LookupError when it is gone."""
    source: Source | None = read_json(bucket, f"{SNAPSHOT_PREFIX}{job}/source.json")[0]
    if source is None:
        raise LookupError(f"{SNAPSHOT_PREFIX}{job}/source.json was there a moment ago and is gone")
    return source


def give_up(config: Settings, ledger: Ledger, line: list[str], request_id: str, own: str) -> None:
    """Take jobs out of the line that could not be started in GIVE_UP_TRIES tries; email and record that.

    Not own: whoever sends an upload's event again wants it tried.
    """
    tries = {job: entry["tries"] for job, entry in ledger["jobs"].items()}
    for job in [job for job in line if job != own and tries.get(job, 0) >= GIVE_UP_TRIES]:
        entry = read_ledger(config.bucket)[0]["jobs"].get(job)
        if entry is None or being_started(entry, request_id):
            continue  # somebody sent its event again just now
        line.remove(job)
        if take_lease(config.bucket, "give-up", job, request_id):
            source, reason = read_source(config.bucket, job), entry.get("reason", "")
            said = f"Its last answer: {reason}" if reason else "The training orchestrator's log says why: make logs"
            send("given up", config, source, [], tries=tries[job], reason=said)
            at = now().isoformat()
            record: GivenUp = {"schema": SCHEMA, "job": job, "tries": tries[job], "at": at, "reason": reason}
            put_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/given_up.json", record)


def start_in_turn(
    config: Settings, line: list[str], request_id: str, own: str, snapshot: Snapshot | None
) -> tuple[dict[str, str], str]:
    """Start jobs and take them out of the line while there is room. snapshot: own's, when that was just taken.

    Returns those that were STARTED or REFUSED, and what the others wait for.
    """
    done: dict[str, str] = {}
    waits_for = ""
    seen = snapshot.ledger if snapshot else None
    while line and not waits_for:
        take = functools.partial(take_slot, line=line, config=config, request_id=request_id, own=own)
        (job, tries, waits_for), seen = update_ledger(config.bucket, take, seen), None
        if not job:
            break
        source = snapshot.source if snapshot and job == own else read_source(config.bucket, job)
        outcome = create_job(config, source, tries)
        if outcome in (STARTED, REFUSED):
            done[job] = outcome
            line.remove(job)
        else:
            waits_for = outcome
    return done, waits_for


def create_job(config: Settings, source: Source, tries: int) -> str:
    """Create the training job, email it, record it; returns STARTED, REFUSED, or which quota it waits for.

    tries: how often that was tried, with this time.
    """
    job, chosen = source["job"], source.get("settings", {})
    config = with_settings(config, chosen)
    try:
        program_uri = keep_program(config, job, tries)
        client("sagemaker").create_training_job(**training_job_request(config, source, program_uri))
    except ClientError as error:
        # The name follows from the event: an existing job is this upload's, created by an attempt that crashed.
        if error_code(error) != "ResourceInUse":
            if is_refused(error):
                email_refusal(config, source, error_message(error))
            note = functools.partial(note_failure, job=job, error=error, config=config)
            if outcome := update_ledger(config.bucket, note):
                return outcome
            raise
    log.info("training job created", extra={"training_job": job})
    limit = f"at most {config.training_max_runtime_seconds / 3600:g} h"
    if config.training_max_wait_seconds:
        limit += f", and {int(config.training_max_wait_seconds) / 3600:g} h with waiting for spot capacity"
    choice = " or ".join(encoders(config).values())
    model = f"{config.base_model}: {choice}" if choice else config.base_model
    rows = [("base model", model), ("instance", f"{instances(config)}, {limit}")]
    if chosen:
        shown = ", ".join(f"{name} {value}" for name, value in sorted(chosen.items()))
        rows.append((SETTINGS_FILE, shown))
    send("started", config, source, rows)
    record: Started = {"schema": SCHEMA, "job": job, "started_at": now().isoformat()}
    put_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/started.json", record)
    return STARTED


def email_refusal(config: Settings, source: Source, reason: str) -> None:
    """Email that AWS refused a job, once for each cause. It still has its slot, so nobody else is at it."""
    entry = read_ledger(config.bucket)[0]["jobs"].get(source["job"])
    if entry is None or entry.get("emailed") != cause(reason):
        advice = next(advice for said, advice in TRAINING_ADVICE.items() if re.search(said, reason))
        send(REFUSED, config, source, [], reason=reason, advice=advice, tries=GIVE_UP_TRIES)


def keep_program(config: Settings, job: str, tries: int) -> str:
    """Copy the training program to the job's snapshot, unless an earlier try did; returns its address.

    A job that waits for its instance reads its program when it gets one. By then a deploy may have replaced it.
    """
    key = f"{SNAPSHOT_PREFIX}{job}/training.tar.gz"
    if tries == 1 or not exists(config.bucket, key):
        newest = {"Bucket": config.bucket, "Key": config.training_source_uri.removeprefix(f"s3://{config.bucket}/")}
        bare = {"MetadataDirective": "REPLACE", "TaggingDirective": "REPLACE"}
        client("s3").copy_object(Bucket=config.bucket, Key=key, CopySource=newest, **bare)
    return f"s3://{config.bucket}/{key}"


def training_job_request(config: Settings, source: Source, program_uri: str) -> dict[str, Any]:
    """The CreateTrainingJob request for a snapshot.

    Free text goes by Environment or the channel: hyperparameters pass through a shell, unquoted (SHELL_SAFE).
    """
    job, live = source["job"], live_model(config, source["model"])
    inputs = {"train": f"s3://{config.bucket}/{SNAPSHOT_PREFIX}{job}/data.csv"}
    if config.base_model.startswith("s3://"):
        inputs["base_model"] = config.base_model
    inputs |= {name: live[name] for name in ("champion", "champion_data") if name in live}
    where = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    channels: list[dict[str, Any]] = [
        {"ChannelName": name, "DataSource": {"S3DataSource": where | {"S3Uri": uri}}} for name, uri in inputs.items()
    ]
    channels[0]["ContentType"] = "text/csv"
    program = {
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": program_uri,
        "sagemaker_region": client("sagemaker").meta.region_name,
        "sagemaker_job_name": job,
        "sagemaker_container_log_level": "20",
    }
    if config.training_instance_count > 1 or GPU_INSTANCE.match(config.training_instance_type):
        # For the toolkit, which then starts the program with torchrun, once per GPU; its older versions need the type.
        program["sagemaker_torch_distributed_enabled"] = "true"
        program["sagemaker_instance_type"] = config.training_instance_type
    names = ("base_model", "base_model_revision", "candidates", "text_column", "label_column", "hub_token_secret_arn")
    environment = {name.upper(): getattr(config, name) for name in names} | encoders(config)
    environment |= {"CHAMPION_JOB": live.get("job", ""), "MAX_ROWS_LEFT_OUT": str(config.max_rows_left_out)}
    stopping = {"MaxRuntimeInSeconds": config.training_max_runtime_seconds}
    environment["MAX_RUNTIME_SECONDS"] = str(config.training_max_runtime_seconds)
    spot: dict[str, Any] = {}
    if config.training_max_wait_seconds:
        checkpoints = {"S3Uri": f"s3://{config.bucket}/{CHECKPOINT_PREFIX}{job}/", "LocalPath": CHECKPOINT_DIR}
        spot = {"EnableManagedSpotTraining": True, "CheckpointConfig": checkpoints}
        stopping["MaxWaitTimeInSeconds"] = int(config.training_max_wait_seconds)
        environment["CHECKPOINT_DIR"] = CHECKPOINT_DIR
    tags = {"Project": config.project, "Stack": config.bucket, "Model": source["model"], "TrainingJob": job}
    # Without a key, SageMaker takes the account's default key of S3, not the bucket's.
    key = {"KmsKeyId": config.kms_key_arn} if config.kms_key_arn else {}
    return {
        "TrainingJobName": job,
        "RoleArn": config.training_role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": config.training_image,
            "TrainingInputMode": "File",
            "MetricDefinitions": METRIC_DEFINITIONS,
        },
        "HyperParameters": config.hyperparameters | program,
        "InputDataConfig": channels,
        "OutputDataConfig": {"S3OutputPath": f"s3://{config.bucket}/{RAW_MODEL_PREFIX.rstrip('/')}", **key},
        "ResourceConfig": {
            "InstanceType": config.training_instance_type,
            "InstanceCount": config.training_instance_count,
            "VolumeSizeInGB": config.training_volume_gb,
        },
        "StoppingCondition": stopping,
        **spot,
        # SageMaker's own failures (InternalServerError) only; the limits hold for all attempts together.
        "RetryStrategy": {"MaximumRetryAttempts": 2},
        "Environment": {name: value for name, value in environment.items() if value},
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


def encoders(config: Settings) -> dict[str, str]:
    """The base models that the training program chooses from, as its environment; {} where the base model is set."""
    names = ("base_model_english", "base_model_multilingual") if config.base_model == AUTO else ()
    return {name.upper(): getattr(config, name) for name in names}


def instances(config: Settings) -> str:
    """What a job runs on, in words."""
    count = f"{config.training_instance_count} x " if config.training_instance_count > 1 else ""
    return f"{count}{config.training_instance_type}{' (spot)' if config.training_max_wait_seconds else ''}"


def live_model(config: Settings, model: str) -> dict[str, str]:
    """The newest approved job whose deployment is confirmed: what a new model is compared with; {} without one.

    Returns its "job", and the s3:// addresses "champion" (its archive) and "champion_data", unless that is gone.
    """
    approved = map(APPROVED_KEY.fullmatch, list_keys(config.bucket, f"{APPROVED_PREFIX}{model}/"))
    for match in reversed([match for match in approved if match]):
        job, data = match["job"], f"{SNAPSHOT_PREFIX}{match['job']}/data.csv"
        for key in list_keys(config.bucket, f"{DEPLOYMENT_PREFIX}{job}-"):
            record = read_json(config.bucket, key)[0]
            if record is not None and record["state"] == "confirmed":
                live = {"job": job, "champion": f"s3://{config.bucket}/{match[0]}"}
                return live | ({"champion_data": f"s3://{config.bucket}/{data}"} if exists(config.bucket, data) else {})
    return {}


def wait_in_line(
    config: Settings, line: Sequence[str], newcomers: Sequence[str], waits_for: str, request_id: str
) -> list[str]:
    """Email that the line waits, if that is due, and record it for the newcomers; returns who waits."""

    def join(ledger: Ledger) -> tuple[list[str], bool, Quota | None]:
        jobs, last = ledger["jobs"], ledger["emails"].get(waits_for)
        waiting = [job for job in line if job not in jobs or not being_started(jobs[job], request_id)]
        due = not leased_by_another(last, request_id)
        if last and last["done"]:  # once a day; where there are newcomers, once for a crowd of them
            due = age(last["at"]) > (LEASE_SECONDS if set(newcomers) & set(waiting) else DAY_SECONDS)
        # The quota may have been forgotten meanwhile, since a job ended.
        due = due and bool(waiting) and (ledger["quota"] is not None or waits_for not in (QUOTA, QUOTA_ABOVE_0))
        if waiting:
            ledger["oldest_waiting"] = min(waiting[0], ledger["oldest_waiting"] or waiting[0])
        if due:
            ledger["emails"][waits_for] = {"by": request_id, "at": now().isoformat(), "done": False}
        return waiting, due, ledger["quota"]

    waiting, due, quota = update_ledger(config.bucket, join)
    sources = [read_source(config.bucket, job) for job in newcomers if job in waiting]
    if due:
        source = sources[0] if sources else read_source(config.bucket, waiting[0])
        more, rows = f" and {len(waiting) - 1} more" if len(waiting) > 1 else "", [("uploads waiting", len(waiting))]
        too_small = "0" if config.training_instance_count == 1 else f"below {config.training_instance_count}"
        words = {"and_more": more, "minutes": LEASE_SECONDS // 60, "quota": quota, "too_small": too_small}
        send(waits_for, config, source, rows, **words)
        update_ledger(config.bucket, lambda ledger: ledger["emails"][waits_for].update({"done": True}))
    for source in sources:
        job, model, at = source["job"], source["model"], now().isoformat()
        record: Waiting = {"schema": SCHEMA, "job": job, "model": model, "for": waits_for, "at": at}
        put_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/waiting.json", record)
    return waiting


# --- the ledger -------------------------------------------------------------------------------------


def read_ledger(bucket: str) -> tuple[Ledger, str | None]:
    """The ledger in this version's shape, and its ETag, None where there is none yet.

    Schema 1 had "told" (emails), "line" ({"oldest": job, ...}), and "never" (a quota of 0 was emailed; {"at", ...}).
    """
    found, etag = read_json(bucket, LEDGER_KEY)
    ledger: Any = {"jobs": {}, "day": {"date": "", "jobs": []}, "oldest_waiting": "", "quota": None, "emails": {}}
    ledger |= {"models": [], "rejected": {}}
    ledger |= found or {}
    line, told, never = (ledger.pop(name, None) for name in ("line", "told", "never"))
    ledger["oldest_waiting"] = line["oldest"] if line else ledger["oldest_waiting"]
    ledger["emails"] |= told or {}
    if never:
        ledger["emails"][QUOTA_ABOVE_0] = {"by": "", "at": never["at"], "done": True}
    return ledger | {"schema": SCHEMA}, etag


def update_ledger(
    bucket: str, change: Callable[[Ledger], Result], seen: tuple[Ledger, str | None] | None = None
) -> Result:
    """Change the ledger and return what change returns; where it alters nothing, nothing is written.

    change alters the ledger in place and does nothing else: it is called again after each lost race. seen: the ledger
    as it was read before; that a change can be written shows that it still is so.
    """
    for _ in range(LEDGER_TRIES):
        before, etag = seen or read_ledger(bucket)
        ledger = copy.deepcopy(before)
        result = change(ledger)
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        if (ledger == before and not seen) or (ledger != before and put_json(bucket, LEDGER_KEY, ledger, **condition)):
            return result
        seen = None
    raise TimeoutError(f"{LEDGER_KEY}: other invocations were faster {LEDGER_TRIES} times in a row; try again later")


def being_started(entry: Slot, request_id: str) -> bool:
    """Whether another invocation, which may still be alive, is starting the job, or recording its start."""
    return entry["state"] != "failed" and leased_by_another(entry, request_id)


def take_slot(ledger: Ledger, line: Sequence[str], config: Settings, request_id: str, own: str) -> tuple[str, int, str]:
    """Give a slot to the job whose turn it is, oldest first: (job, its tries, ""), or ("", 0, what the line waits for).

    What failed goes last, when it is due again; own always is. A retry resumes its own job first: the order stays.
    """
    jobs, today = ledger["jobs"], f"{now():%Y-%m-%d}"
    if ledger["day"]["date"] != today:
        ledger["day"] = {"date": today, "jobs": []}
    untried: Slot = {"state": "failed", "by": "", "at": "", "tries": 0}
    entries = [(jobs.get(job, untried), job) for job in line]
    waits_for = ""
    for entry, job in sorted(entries, key=lambda item: (item[0]["by"] != request_id, item[0]["tries"], item[1])):
        if being_started(entry, request_id) or not (job == own or due_again(entry["tries"], entry["at"])):
            continue
        state, at = entry["state"], now().isoformat()
        if state == "failed":  # otherwise it has its slot, and whoever was starting it is dead
            if full := what_is_full(ledger, job, config):
                waits_for = waits_for or full
                continue
            state = "held"
            ledger["day"]["jobs"] = sorted({*ledger["day"]["jobs"], job})
        jobs[job] = {"state": state, "by": request_id, "at": at, "tries": entry["tries"] + 1}
        if "emailed" in entry:
            jobs[job]["emailed"] = entry["emailed"]
        return job, entry["tries"] + 1, ""
    return "", 0, waits_for


def what_is_full(ledger: Ledger, job: str, config: Settings) -> str:
    """What a job without a slot must wait for; "": there is room for it."""
    started_today, quota = ledger["day"]["jobs"], ledger["quota"]
    if quota and quota["instance_type"] == instances(config) and not due_again(quota["tries"], quota["at"]):
        return QUOTA_ABOVE_0 if quota["is_0"] else QUOTA
    if job not in started_today and len(started_today) >= config.max_training_jobs_per_day:
        return THE_NEXT_DAY
    held = sum(entry["state"] == "held" for entry in ledger["jobs"].values())
    return A_SLOT if held >= config.max_concurrent_training_jobs else ""


def note_failure(ledger: Ledger, job: str, error: ClientError, config: Settings) -> str:
    """Note that SageMaker did not create a job; returns the quota that it waits for, REFUSED, or "" when AWS failed.

    After a failure of AWS or a throttled call (an earlier try of the SDK), the job may exist, and keeps its slot.
    """
    entry, before, at, reason = ledger["jobs"][job], ledger["quota"], now().isoformat(), error_message(error)
    if over_quota(error):
        give_slot_back(ledger, job)
        what, use = instances(config), "spot training" if config.training_max_wait_seconds else "training"
        tries = before["tries"] + 1 if before and before["instance_type"] == what else 1
        said = re.search(r"service limit '(.+?)' is (\d+)", reason)
        usual = f"{config.training_instance_type} for {use} job usage"
        name, is_0 = (said[1], int(said[2]) < config.training_instance_count) if said else (usual, False)
        ledger["quota"] = Quota(name=name, instance_type=what, tries=tries, at=at, reason=reason, is_0=is_0)
        return QUOTA_ABOVE_0 if is_0 else QUOTA
    ledger["jobs"][job] = entry | {"reason": reason}
    if not is_refused(error):
        return ""
    give_slot_back(ledger, job)
    ledger["jobs"][job] = entry | {"state": "failed", "reason": reason, "emailed": cause(reason)}
    return REFUSED


def give_slot_back(ledger: Ledger, job: str) -> None:
    """Take a job that was not started out of the ledger, and out of the day's count."""
    del ledger["jobs"][job]
    ledger["day"]["jobs"] = [other for other in ledger["day"]["jobs"] if other != job]


def free_slots(config: Settings, seen: tuple[Ledger, str | None], held: Sequence[str]) -> None:
    """Free the slots of those jobs that ended, or never came to exist, as SageMaker says now; forget old entries.
    seen: the ledger and its ETag."""
    status: dict[str, str] = {}
    for job in held:
        try:
            status[job] = client("sagemaker").describe_training_job(TrainingJobName=job)["TrainingJobStatus"]
        except ClientError as error:
            if error_code(error) != "ValidationException" or "not found" not in str(error):
                raise
            status[job] = "missing"

    def close(ledger: Ledger) -> None:
        jobs = ledger["jobs"]
        for job, entry in [(job, jobs[job]) for job in status if job in jobs and jobs[job]["state"] == "held"]:
            if status[job] in TERMINAL:
                entry["state"] = "ended"
                ledger["quota"] = None  # there may be room again, so it is asked at once
            elif status[job] == "missing" and age(entry["at"]) > LEASE_SECONDS:  # before that, it may be about to come
                give_slot_back(ledger, job)
                jobs[job] = {**entry, "state": "failed"}
        kept_seconds = {"ended": LEASE_SECONDS, "failed": LOOK_BACK_DAYS * DAY_SECONDS, "held": math.inf}
        ledger["jobs"] = {job: entry for job, entry in jobs.items() if age(entry["at"]) <= kept_seconds[entry["state"]]}

    if not {*TERMINAL, "missing"}.isdisjoint(status.values()):
        update_ledger(config.bucket, close, seen)


def catch_up(config: Settings, request_id: str) -> str:
    """Do what undelivered events left undone; returns the outcome in words."""
    outcome = start_waiting(config, request_id)
    if outcome == PAUSED or not (overdue := overdue_uploads(config)):
        return outcome
    if exists(config.bucket, PAUSED_KEY):
        return PAUSED
    return start_waiting(config, request_id) if adopt_uploads(config, overdue, request_id) else outcome


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the job's name and the outcome; raises when AWS fails, so that Lambda retries."""
    config, (event, request_id) = settings(), unwrap(event, context)
    if event.get("source") == "sweep":
        job, outcome = "", catch_up(config, request_id)
    elif event.get("source") == "aws.sagemaker":
        job, outcome = field(field(event, "detail", dict), "TrainingJobName", str), "not ours"
        if JOB_NAME.fullmatch(job):
            outcome = start_waiting(config, request_id, ended=job)
    else:
        upload = parse_upload(event)
        if upload["bucket"] != config.bucket or not upload["key"].startswith(UPLOAD_PREFIX):
            where = f"s3://{upload['bucket']}/{plain(upload['key'], 200)}"
            raise EventError(f"not an upload of this stack: {where} (see the EventBridge rule's pattern)")
        outcome = handle_upload(upload, config, request_id)
        job = upload["job"]  # the sweep may have given it another name
    log.info("%s event handled: %s", event.get("source"), outcome, extra={"training_job": job or None})
    return {"training_job": job, "outcome": outcome}


# --- the reader: the same in scripts/training/reader.py and lambda/training_orchestrator/handler.py ---

FILE_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BLOCK_BYTES = 256 * 1024
MAX_ROW_CHARACTERS = 2 * 1024**2
UNDECIDED_CHARACTERS = 2 * BLOCK_BYTES  # how far two ways to read quotes are followed before one is taken
MAX_LABELS, MAX_LABELS_CHARACTERS = 20_000, 8 * 1024**2
MAX_LABEL_CHARACTERS = 512
MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO, RATIO_FROM_BYTES = 5 * 1024**3, 200, 16 * 1024**2
MIN_LABELS, MIN_TEXTS_PER_LABEL = 2, 2  # of each label, one text to train on and one to hold out
MAX_LEFT_OUT = 0.05  # share of the rows
LINES_SHOWN, NAMES_SHOWN, LABELS_SHOWN = 5, 5, 20
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
QUOTES_DOUBLED, QUOTES_ESCAPED, QUOTES_ARE_TEXT = "doubled", "quotes escaped by a backslash", "quotes are text"
NULL_LIKE = {"null", "none", "nan", "n/a", "na", "#n/a", "\\n", "nil", "undefined", "-", "?", "<na>", "(null)"}
QUOTE_PAIRS = {"''", '""', "``", "“”", "‘’", "«»", "„“"}
NOT_CSV = {
    "UTF-32 text": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "a zip archive or an Excel workbook": (b"PK\x03\x04",),
    "an old Excel workbook": (b"\xd0\xcf\x11\xe0",),
    "a Parquet file": (b"PAR1",),
    "a PDF": (b"%PDF",),
}
LINE_NUMBER = operator.attrgetter("line_num")
PLAIN_BACKSLASHES = re.compile(r'\\+(?!["\\])')  # a run that escapes no quote is text
BLANK = ' \t\r\n\ufeff,;|"'  # what a line of empty fields is made of
NUMBER = re.compile(r"\+?(-?)0*(\d+)(?:[.,](\d*?)0*)?")
# Up to three words. What else stands in a first line may be somebody's text.
COLUMN_NAME = re.compile(r"(?=.{1,30}\Z)[^\W\d]\w*(?:[ ._/-][^\W\d]\w*){0,2}")
Rows = list[tuple[list[str], int]]  # each with the line it ends on, counted from the first of the lines given
Example = tuple[int, str, str]  # the line a row begins on, from 1; text and label, stripped, neither empty


class Unreadable(ValueError):
    """The file cannot be trained on. The text: where (line: from 1; 0: all of it), what is wrong, what to do."""

    def __init__(self, line: int, found: str, to_do: str) -> None:
        super().__init__(f"{f'line {line}: ' if line else ''}{found}; {to_do}")
        self.line = line


class Findings:
    """What a file holds, as far as it was read."""

    def __init__(self) -> None:
        self.encoding = self.separator = self.quoting = ""
        self.compressed = self.row_names = False
        self.complete = self.exact = True  # not exact: duplicates, conflicts and texts_of_label are lower bounds
        self.rows = self.used = self.blank_rows = self.repeated_headers = self.longest_text = 0
        self.left_out: dict[str, int] = {}  # rows by reason
        self.left_out_lines: dict[str, list[int]] = {}  # the first few
        self.duplicates = self.conflicts = 0  # rows with an earlier row's text; texts with several labels
        self.labels: dict[str, int] = {}  # rows of each, most first
        self.texts_of_label: dict[str, int] = {}  # different ones; a text counts for its most frequent label
        self.look_alikes: list[list[str]] = []
        self.null_like: list[str] = []


class Way(NamedTuple):
    """A way to read quotes: do they count behind spaces, does a backslash escape them, are they but text."""

    spaced: bool = False
    escaped: bool = False
    bare: bool = False


class Reading:
    """The rows of lines, read in one way, up to the first problem. What is open at the end is one if that is final."""

    def __init__(self, way: Way, lines: list[str], separator: str, ended: bool) -> None:
        self.way, self.rows, self.problem, self.problem_line = way, Rows(), "", 0
        escaped = (PLAIN_BACKSLASHES.sub(lambda run: run[0] * 2, line) for line in lines)
        reader = csv.reader(
            escaped if way.escaped else lines,
            delimiter=separator,
            escapechar="\\" if way.escaped else None,
            quoting=csv.QUOTE_NONE if way.bare else csv.QUOTE_MINIMAL,
            skipinitialspace=way.spaced,
            strict=True,
        )
        try:
            self.rows.extend(zip(reader, map(LINE_NUMBER, itertools.repeat(reader)), strict=False))
        except csv.Error as error:
            if ended or str(error) != "unexpected end of data":
                self.problem, self.problem_line = str(error), reader.line_num


class Reader:
    """Reads a file once. Iterate over it, or over batches(); afterwards findings says what was found.

    chunks: the file's bytes, in pieces of any size. complete: may be set to False until they end: there is more.
    stopped: may be set to True, and complete to False with it: no further block is read, or unpacked.
    max_texts: how many different or repeated texts are remembered, at about 100 bytes each. Raises Unreadable.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        text_column: str,
        label_column: str,
        complete: bool = True,
        max_texts: float = float("inf"),
    ) -> None:
        self.complete, self.stopped, self.findings = complete, False, Findings()
        self._chunks, self._columns, self._max_texts = chunks, (text_column, label_column), max_texts
        self._rest, self._ahead, self._before = "", "", 0  # text that is not read yet, and the lines before it
        self._separator, self._header, self._text_at, self._label_at = "", list[str](), 0, 0
        self._way, self._undecided = Way(), {"spaced", "escaped"}
        self._names, self._label_characters = dict[str, str](), 0  # labels that no header line has, each by itself
        self._rows_of, self._texts_of = Counter[str](), dict[str, set[int]]()  # by label; of texts no more than two
        self._first, self._again = (
            dict[int, str](),
            Counter[tuple[int, str]](),
        )  # by text
        csv.field_size_limit(2**31 - 1)  # the process's; rows are bounded by MAX_ROW_CHARACTERS

    def __iter__(self) -> Iterator[Example]:
        return itertools.chain.from_iterable(self.batches())

    def batches(self) -> Iterator[list[Example]]:
        """The rows of one block after the other."""
        for text in self._texts():
            rows, self._ahead = self._read(self._ahead, False), text
            yield rows
        rows = self._read(self._ahead, True)
        self._conclude()
        yield rows

    def _texts(self) -> Iterator[str]:
        blocks = in_blocks(self._chunks)
        first = next(blocks, b"")
        if first.startswith(b"\x1f\x8b"):
            self.findings.compressed = True
            blocks = in_blocks(self._unpacked(itertools.chain([first], blocks)))
            first = next(blocks, b"")
        if len(first) < 4 and not self.complete:
            return  # the mark of an encoding may be cut
        for what, beginnings in NOT_CSV.items():
            if first.startswith(beginnings):
                raise Unreadable(0, f"the file is {what}", 'save it as CSV (in Excel: "CSV UTF-8")')
        utf16 = {codecs.BOM_UTF16_LE: "UTF-16-LE", codecs.BOM_UTF16_BE: "UTF-16-BE"}
        encoding = self.findings.encoding = utf16.get(first[:2], "UTF-8")
        decoder = codecs.getincrementaldecoder(encoding)()
        more = iter(lambda: b"" if self.stopped else next(blocks, b""), b"")
        for block in itertools.chain([first], more, [b""]):
            try:
                text = decoder.decode(block, not block and self.complete)
            except UnicodeDecodeError as error:
                lines = split_lines(f"{self._rest}{self._ahead}{error.object[: error.start].decode(encoding)}.")
                found = f"byte 0x{error.object[error.start]:02x} is not {encoding}"
                raise Unreadable(self._before + len(lines), found, 'save the file as "CSV UTF-8"') from error
            if text:
                yield text

    def _unpacked(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The content of gzip members one after the other, in pieces of at most a block."""
        member, begun, later, taken, given = zlib.decompressobj(31), False, False, 0, 0
        for data in blocks:
            taken += len(data)
            piece = b""
            while data or len(piece) == BLOCK_BYTES:
                if later and not begun and not (data := data.lstrip(b"\0")):
                    break
                try:
                    piece, begun = member.decompress(data, BLOCK_BYTES), True
                except zlib.error as error:
                    found = "the compressed file is damaged, or something stands behind its end"
                    raise Unreadable(0, found, "compress it again, or upload it uncompressed") from error
                given += len(piece)
                if given > min(MAX_UNPACKED_BYTES, max(RATIO_FROM_BYTES, MAX_UNPACKED_RATIO * taken)):
                    found = f"the file unpacks to more than {MAX_UNPACKED_RATIO} times its size, or than 5 GiB"
                    raise Unreadable(0, found, "upload less of it, or uncompressed")
                yield piece
                data = member.unconsumed_tail
                if member.eof:
                    data, member, begun, later = member.unused_data, zlib.decompressobj(31), False, True
        if begun and self.complete:
            raise Unreadable(0, "the compressed file is cut off", "upload it again")

    def _read(self, new: str, last: bool) -> list[Example]:
        """The rows to train on that end in the new text."""
        text, ended = self._rest + new, last and self.complete
        # A carriage return at the end may be half of a line end.
        cut = len(text) if ended else max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
        lines, rows = split_lines(text[:cut]), list[Example]()
        at = 0 if self._header else self._find_header(lines, ended)
        if self._header:
            self._before += at
            lines = lines[at:] if at else lines
            found = self._parse(lines, text[:cut], last, ended)
            at = found[-1][1] if found else 0
            if len(text) > MAX_ROW_CHARACTERS:
                for begin, end in itertools.pairwise([0, *(end for _, end in found)]):
                    self._check_length(sum(map(len, lines[begin:end])), begin + 1)
            rows = self._take(found)
        self._before += at
        self._rest = "".join(lines[at:]) + text[cut:]
        self._check_length(len(self._rest), 1)
        return rows

    def _check_length(self, characters: int, line: int) -> None:
        if characters > MAX_ROW_CHARACTERS:
            found = f"the row that begins here has more than {MAX_ROW_CHARACTERS:,} characters"
            raise Unreadable(self._before + line, found, "close the quote that is open in it, or shorten its text")

    def _find_header(self, lines: list[str], ended: bool) -> int:
        """Find the header and what separates the columns; returns the number of lines to its end, 0 if not there."""
        at, separators = 0, list(SEPARATORS)
        while at < len(lines) and not lines[at].strip(BLANK):
            at += 1
        if at < len(lines) and (hint := re.fullmatch(r'"?sep=(.)"?[,;|\s]*', lines[at].strip("\ufeff"), re.IGNORECASE)):
            if hint[1] not in SEPARATORS:
                raise Unreadable(at + 1, "sep= names an unknown separator", "separate columns by , or ; or | or tabs")
            at, separators = at + 1, [hint[1]]
            while at < len(lines) and not lines[at].strip(BLANK):
                at += 1
        if at == len(lines):
            if ended:
                raise Unreadable(0, "the file is empty, or blank", "upload a CSV with a header line and rows")
            return 0
        lines[at] = lines[at].lstrip("\ufeff")
        if "\0" in lines[at]:
            found = "the header has a NUL byte: the file is binary, or UTF-16 without a byte order mark"
            raise Unreadable(at + 1, found, 'save it as "CSV UTF-8"')
        headers, fits, taken = dict[str, list[str]](), list[tuple[str, int, int]](), 0
        for separator in separators:
            reader = csv.reader(lines[at:], delimiter=separator, skipinitialspace=True, strict=True)
            try:
                headers[separator] = [name.strip("\ufeff").strip() for name in next(reader)]
            except csv.Error:
                continue
            text_at, label_at = (find_column(headers[separator], name, at + 1) for name in self._columns)
            if min(text_at, label_at) >= 0 and text_at != label_at:
                fits.append((separator, text_at, label_at))
                taken = reader.line_num
        if len(fits) > 1:
            found = f"the header can be divided by {' and by '.join(SEPARATORS[separator] for separator, *_ in fits)}"
            raise Unreadable(at + 1, found, "use one separator")
        if not fits:
            if not headers and not ended:
                return 0
            names = max(headers.values(), key=len, default=[])
            missing = [name for name in self._columns if find_column(names, name, at + 1) < 0] or self._columns
            found = f"there is no column {' and no column '.join(map(clipped, missing))}"
            shown = shown_names(clipped(n) if COLUMN_NAME.fullmatch(n.strip("\"'`")) else "…" for n in names)
            raise Unreadable(
                at + 1, found, f"this line must name the columns, and has: {shown or 'a quote not closed'}"
            )
        self._separator, self._text_at, self._label_at = fits[0]
        self._header = [alike(name).strip('"') for name in headers[self._separator]]
        self.findings.separator = SEPARATORS[self._separator]
        return at + taken

    def _parse(self, lines: list[str], content: str, last: bool, ended: bool) -> Rows:
        """The rows that end in the lines; content: the lines in one.

        Quotes behind spaces and backslashes before quotes are read in both ways until one of them breaks; a file in
        which it never does is read with quotes behind spaces as quotes, and with backslashes as text.
        """
        sep, tried = re.escape(self._separator), list[str]()
        quote = rf' "(?!"[^"\r\n{sep}])'  # opens a field, for in one it would be doubled
        if "spaced" in self._undecided and re.search(quote, content):
            tried += ["spaced"] if re.search(rf"(?:\A|[\r\n{sep}]) *{quote}", content) else []
        if "escaped" in self._undecided and '\\"' in content:
            tried += ["escaped"]
        readings = [
            Reading(self._way._replace(**dict(zip(tried, values, strict=True))), lines, self._separator, ended)
            for values in itertools.product(
                *({"spaced": (True, False), "escaped": (False, True)}[name] for name in tried)
            )
        ]
        good = [reading for reading in readings if not reading.problem]
        if not good and self._separator == "\t":
            literal = Reading(Way(bare=True), lines, self._separator, ended)
            if {len(row) for row, _ in literal.rows if any(row)} == {len(self._header)}:
                self._way, self._undecided = literal.way, set()
                return literal.rows
        if not good:
            self._refuse_quotes(max(readings, key=lambda reading: reading.problem_line), lines)
        for name in tried:
            value = getattr(good[0].way, name)
            rival = next((reading for reading in good if getattr(reading.way, name) != value), None)
            line = first_difference(good[0].rows, rival.rows) if rival else 0
            if line and name == "escaped" and (ended or not last):
                found = "a backslash before a quote can be read in two ways"
                raise Unreadable(self._before + line, found, 'double each quote in a quoted field ("")')
            if rival and not line and not last and len(rival.rows) != len(good[0].rows):
                if len(content) < UNDECIDED_CHARACTERS:
                    return good[0].rows[: len(rival.rows)]
                value = getattr(max(rival, good[0], key=lambda reading: len(reading.rows)).way, name)
                line = 1
            if line or not rival:
                self._way = self._way._replace(**{name: value})
                self._undecided.discard(name)
            good = [reading for reading in good if getattr(reading.way, name) == value]
        return good[0].rows

    def _refuse_quotes(self, reading: Reading, lines: list[str]) -> NoReturn:
        begin, at = (reading.rows[-1][1] if reading.rows else 0), reading.problem_line
        to_do = 'close each quote, double each quote in a quoted field (""), and leave no space behind a closing one'
        if reading.problem == "unexpected end of data":
            row = next(csv.reader(lines[begin:], delimiter=self._separator, skipinitialspace=reading.way.spaced))
            opened = len(lines) - max(1, len(split_lines(row[-1]))) + 1
            raise Unreadable(self._before + opened, "a quote opens here and is never closed", to_do)
        found = "a quote in a quoted field is neither doubled nor before a separator"
        if at > begin + 1:
            found = f"the row that begins here goes on to line {self._before + at}, where {found}"
        if any('\\"' in line for line in lines[begin:at]):
            found += " (and not everywhere does a backslash escape it)"
        raise Unreadable(self._before + begin + 1, found, to_do)

    def _take(self, rows: Rows) -> list[Example]:
        """Count rows, and return those to train on."""
        findings, taken, end = self.findings, list[Example](), 0
        if not findings.rows and has_row_names(rows, len(self._header)):
            findings.row_names, self._header = True, ["", *self._header]
            self._text_at, self._label_at = self._text_at + 1, self._label_at + 1
        width, text_at, label_at = len(self._header), self._text_at, self._label_at
        names = self._names
        for row, at in rows:
            line, end = self._before + end + 1, at
            if len(row) == width and (text := row[text_at].strip()) and (name := names.get(row[label_at].strip())):
                taken.append((line, text, name))
                continue
            if any(map(str.strip, row[width:])):
                self._leave_out("too many fields", line)
                continue
            row = row[:width] + [""] * (width - len(row))
            text, name = row[text_at].strip(), row[label_at].strip()
            if text and name:
                if [alike(cell).strip('"') for cell in row] == self._header:
                    findings.repeated_headers += 1
                else:
                    self._add_label(name, line)
                    taken.append((line, text, name))
            elif any(map(str.strip, row)):
                self._leave_out("no label" if text else "no text", line)
            else:
                findings.blank_rows += 1
        self._count(taken)
        return taken

    def _count(self, taken: list[Example]) -> None:
        findings, first, again = self.findings, self._first, self._again
        findings.rows, findings.used = findings.rows + len(taken), findings.used + len(taken)
        self._rows_of.update(map(operator.itemgetter(2), taken))
        lengths = map(len, map(operator.itemgetter(1), taken))
        findings.longest_text = max(findings.longest_text, max(lengths, default=0))
        for _, text, name in taken if findings.exact else ():
            key = hash(text)
            if key in first:
                again[key, name] += 1
            else:
                first[key] = name
        for _, text, name in () if findings.exact else taken:
            if len(self._texts_of[name]) < MIN_TEXTS_PER_LABEL:
                self._texts_of[name].add(hash(text))
        if findings.exact and len(first) + len(again) > self._max_texts:
            findings.exact = False
            for key, name in itertools.chain(first.items(), again):
                if len(self._texts_of[name]) < MIN_TEXTS_PER_LABEL:
                    self._texts_of[name].add(key)

    def _leave_out(self, reason: str, line: int) -> None:
        self.findings.rows += 1
        self.findings.left_out[reason] = self.findings.left_out.get(reason, 0) + 1
        lines = self.findings.left_out_lines.setdefault(reason, [])
        lines += [line] if len(lines) < LINES_SHOWN else []

    def _add_label(self, name: str, line: int) -> None:
        if name in self._texts_of:
            return
        if len(name) > MAX_LABEL_CHARACTERS:
            found = f"the label has {len(name):,} characters, more than {MAX_LABEL_CHARACTERS}"
            raise Unreadable(line, found, f"shorten it; or is {clipped(self._columns[1])} not the label column?")
        self._texts_of[name] = set()
        if alike(name).strip('"') != self._header[self._label_at]:
            self._names[name] = name
        self._label_characters += len(name)
        if len(self._texts_of) > MAX_LABELS or self._label_characters > MAX_LABELS_CHARACTERS:
            found = f"more than {MAX_LABELS:,} labels up to here, or {MAX_LABELS_CHARACTERS:,} characters of them"
            raise Unreadable(line, found, f"is {clipped(self._columns[1])} the label column?")

    def _conclude(self) -> None:
        findings, texts = self.findings, Counter[str]()
        findings.complete = self.complete
        escaped = QUOTES_ESCAPED if self._way.escaped else QUOTES_DOUBLED
        findings.quoting = QUOTES_ARE_TEXT if self._way.bare else escaped
        findings.duplicates = self._again.total()
        texts.update(self._first.values())
        labels_of = dict[int, Counter[str]]()
        for (key, name), rows in self._again.items():
            labels_of.setdefault(key, Counter([self._first[key]]))[name] += rows
        for key, found in labels_of.items():
            findings.conflicts += len(found) > 1
            texts[self._first[key]] -= 1
            texts[min(found, key=lambda name: (-found[name], name))] += 1
        findings.labels = dict(sorted(self._rows_of.items(), key=lambda item: (-item[1], item[0])))
        few = {} if findings.exact else self._texts_of
        findings.texts_of_label = {name: max(texts[name], len(few.get(name, ()))) for name in findings.labels}
        spellings = dict[str, list[str]]()
        for name in findings.labels:
            spellings.setdefault(spelling(name), []).append(name)
        findings.look_alikes = [names for names in spellings.values() if len(names) > 1]
        findings.null_like = [name for name in findings.labels if name.casefold() in NULL_LIKE]


def check_trainable(found: Findings, max_left_out: float = MAX_LEFT_OUT) -> None:
    """Raise Unreadable where a whole file cannot be trained on: for its labels, or for what had to be left out.

    max_left_out: the share of rows, 0 to 1, that may be. Of an incomplete file nothing is said: the rest may change it.
    """
    if not found.complete:
        return
    left_out = sum(found.left_out.values())
    reasons = left_out_reasons(found)
    if not found.used:
        why = f"no row has a text and a label ({reasons or 'there are no rows'})"
        raise Unreadable(0, why, "check the columns and the separators")
    if left_out > max_left_out * found.rows:
        why = f"{left_out:,} of {found.rows:,} rows cannot be used ({reasons}), more than {100 * max_left_out:g} %"
        to_do = "complete these rows, put quotes around texts that contain the separator, or delete the rows"
        raise Unreadable(0, why, to_do)
    if all(len(name) > 2 and name[0] + name[-1] in QUOTE_PAIRS for name in found.labels):
        shown = shown_names(map(shown_label, found.labels))
        raise Unreadable(
            0, f"every label stands in quotes that belong to it: {shown}", 'quote fields with " or not at all'
        )
    if len(found.labels) < MIN_LABELS:
        shown = shown_label(next(iter(found.labels)))
        raise Unreadable(0, f"there is only one label, {shown}", "add rows with other labels")
    few = [name for name, texts in found.texts_of_label.items() if texts < MIN_TEXTS_PER_LABEL]
    if few:
        shown = shown_names(
            f"{shown_label(name)} has {found.texts_of_label[name]} ({found.labels[name]} rows)" for name in few
        )
        why = f"{len(few):,} of {len(found.labels):,} labels have fewer than {MIN_TEXTS_PER_LABEL} different texts"
        if len(few) > max(NAMES_SHOWN, len(found.labels) / 2):  # then the labels are people's texts
            raise Unreadable(0, why, "is the label column the column of the texts?")
        why += f", each counted for its most frequent label: {shown}"
        raise Unreadable(0, why, "add rows with these labels, or take them out")


def told(found: Findings) -> dict[str, str]:
    """What a file holds, as the rows of a table: the same in emails, records, logs and before an upload.

    None has a row's text, or a label of more than 40 characters.
    """
    least = "" if found.exact else "at least "
    form = [found.encoding, "gzip" if found.compressed else "", f"separated by {found.separator}"]
    form += [found.quoting if found.quoting != QUOTES_DOUBLED else ""]
    form += ["its first column, without a name, is left out" if found.row_names else ""]
    passed = [f"{found.blank_rows:,} blank rows" if found.blank_rows else ""]
    passed += [f"{found.repeated_headers:,} repeated header lines" if found.repeated_headers else ""]
    labels = ", ".join(f"{shown_label(name)} {rows:,}" for name, rows in [*found.labels.items()][:LABELS_SHOWN])
    more = f", and {len(found.labels) - LABELS_SHOWN:,} more" if len(found.labels) > LABELS_SHOWN else ""
    alike_labels = [" / ".join(map(shown_label, names[:NAMES_SHOWN])) for names in found.look_alikes]
    said = {
        "checked": "" if found.complete else "only a part of the file, so the rest may hold more of everything",
        "format": ", ".join(filter(None, form)),
        "rows": f"{found.rows:,} read, {found.used:,} used",
        "rows left out": left_out_reasons(found),
        "passed over": ", ".join(filter(None, passed)),
        "labels": f"{len(found.labels):,}: {labels}{more}" if found.labels else "",
        "labels that look alike": shown_names(alike_labels),
        "labels like empty cells": shown_names(map(shown_label, found.null_like)),
        "repeated texts": f"{least}{found.duplicates:,} rows" if found.duplicates else "",
        "texts with several labels": f"{least}{found.conflicts:,}" if found.conflicts else "",
        "longest text": f"{found.longest_text:,} characters" if found.longest_text else "",
    }
    return {name: text for name, text in said.items() if text}


def left_out_reasons(found: Findings) -> str:
    """The rows that are not used, by reason, with the first lines of each."""
    return "; ".join(
        f"{reason}: {rows:,} (line {', '.join(map(str, lines))}{', …' if rows > len(lines) else ''})"
        for (reason, rows), lines in zip(found.left_out.items(), found.left_out_lines.values(), strict=True)
    )


def in_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks of any size as blocks of one size, so that nothing depends on how a file arrives; the last is shorter."""
    kept, size = list[bytes](), 0
    for chunk in chunks:
        kept.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            whole, end = b"".join(kept), size - size % BLOCK_BYTES
            yield from (whole[at : at + BLOCK_BYTES] for at in range(0, end, BLOCK_BYTES))
            kept, size = [whole[end:]], size - end
    if size:
        yield b"".join(kept)


def split_lines(text: str) -> list[str]:
    """The lines with their ends: line feed, carriage return or both. (str.splitlines knows more of them.)"""
    return io.StringIO(text, newline="").readlines()


def first_difference(some: Rows, other: Rows) -> int:
    """The line on which the first row ends that two readings give differently (but for backslashes), 0 if none."""
    for (row, end), (other_row, other_end) in zip(some, other, strict=False):
        if end != other_end or [c.replace("\\", "") for c in row] != [c.replace("\\", "") for c in other_row]:
            return end
    return 0


def has_row_names(rows: Rows, width: int) -> bool:
    """Whether all rows have one field more than the header, the first of them a number: R's names of rows."""
    filled = [row for row, _ in rows if any(row)]
    names = {row[0] for row in filled if len(row) == width + 1 and row[0].isdecimal()}
    return 1 < len(filled) == len(names) and any(row[-1].strip() for row in filled)


def find_column(header: Sequence[str], name: str, line: int) -> int:
    """Where a column is, -1 if nowhere. Raises Unreadable when two columns have the name."""
    for same in (lambda text: text == name, lambda text: alike(text) == alike(name)):
        places = [at for at, found in enumerate(header) if same(found)]
        if len(places) > 1:
            raise Unreadable(line, f"{len(places)} columns are named {clipped(name)}", "rename all but one")
        if places:
            return places[0]
    return -1


def alike(text: str) -> str:
    """A text without what nobody sees: case, Unicode form, invisible characters, kinds and number of spaces."""
    if not text.isascii():
        text = "".join(mark for mark in unicodedata.normalize("NFKC", text) if unicodedata.category(mark) != "Cf")
    return " ".join(text.split()).casefold()


def spelling(label: str) -> str:
    """What two labels have in common that differ in case, Unicode form, spelling of a number, or quotes."""
    text = alike(label)
    text = text[1:-1].strip() if len(text) > 2 and text[0] + text[-1] in QUOTE_PAIRS else text
    number = NUMBER.fullmatch(text)
    return f"{number[1]}{number[2]}.{number[3] or ''}" if number else text


def clipped(text: str) -> str:
    """A name or label in quotes, for a message: one line, at most 40 characters."""
    shown = "".join(mark if mark.isprintable() else f"\\u{ord(mark):04x}" for mark in text[:40])
    return f'"{shown}{"…" if len(text) > 40 else ""}"'


def shown_label(label: str) -> str:
    """A label in quotes, or what stands for one that is too long to be one: that may be somebody's text."""
    return clipped(label) if len(label) <= 40 else f"(a label of {len(label):,} characters)"


def shown_names(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = len(every) - NAMES_SHOWN
    return ", ".join(every[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


# --- the end of the reader ---


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
LEASED, LEASED_AGAIN = "leased", "leased again"
# How far back a sweep looks, by the time in the jobs' names.
LOOK_BACK_DAYS = 7
# What fails is tried again at every event at first, then once an hour, then given up: about a day in all.
EAGER_TRIES, LATER_TRIES_SECONDS, GIVE_UP_TRIES = 5, 60 * 60, 24
# A conditional write may meet another one on its way. A conflict that lasts is an error.
CONFLICT_TRIES, CONFLICT_PAUSE_SECONDS = 5, 0.2
# CopyObject refuses a larger source (S3 API reference, CopyObject), so larger ones are copied in parts.
COPY_OBJECT_MAX_BYTES = 5 * 1024**3
COPY_PART_BYTES = 512 * 1024**2
COPY_THREADS = 8
# Seen in examples of CreateTrainingJob (amazon-sagemaker-examples#1001).
NOT_IN_REGION = "is not available in this region"
# The calls whose refusal is an outcome, which people are emailed.
REFUSABLE = ("CreateTrainingJob", "CreateModel", "CreateEndpointConfig", "CreateEndpoint", "UpdateEndpoint")
THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded")
# Characters that Python calls printable, and nobody sees: those of Unicode's Default_Ignorable_Code_Point, a blank.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# In characters: an S3 key has at most 1,024 bytes, a FailureReason 1,024 characters.
PLAIN_MAX = 2000
# SNS: a subject has less than 100 characters and no line breaks, a message at most 262,144 bytes (Publish).
SUBJECT_MAX_CHARACTERS, MESSAGE_MAX_BYTES = 99, 262_144

log = logging.getLogger()
# At INFO, botocore logs where it found its credentials and endpoints.
logging.getLogger("botocore").setLevel(logging.WARNING)


def plain(value: object, limit: int = PLAIN_MAX) -> str:
    """A value from outside, on one line of at most limit characters: what would break the line, reorder it, or not be
    seen, is shown as an escape (\\n, \\x1b, \\u202e). What is plain already stays as it is."""
    shown = "".join(c if c.isprintable() and not UNSEEN.match(c) else ascii(c)[1:-1] for c in str(value)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def plain_record(record: logging.LogRecord) -> bool:
    """Make a log record plain. (Lambda's JSON escapes what is below a space, and nothing else.)"""
    record.msg, record.args = record.getMessage(), ()
    vars(record).update({name: plain(value) for name, value in vars(record).items() if isinstance(value, str)})
    return True


log.addFilter(plain_record)


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

    `make redrive` wraps a failed event with the id of the invocation that failed, to take over its leases.
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
    return plain(error.response.get("Error", {}).get("Message", ""))


def over_quota(error: ClientError) -> bool:
    """Whether a quota of the account is used up. The same code says that a region lacks an instance type."""
    return error_code(error) == "ResourceLimitExceeded" and NOT_IN_REGION not in error_message(error)


def is_refused(error: ClientError) -> bool:
    """Whether SageMaker refuses to do what it is asked for: unlike its own faults, that does not pass by itself."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    is_client_error = 400 <= status < 500 and error_code(error) not in THROTTLED
    return error.operation_name in REFUSABLE and is_client_error and not over_quota(error)


def cause(reason: str) -> str:
    """What AWS said without ids and numbers: a request's id or a quota's use change, the cause does not."""
    return re.sub(r"[0-9]+", "#", re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "#", reason))


def is_gone(error: ClientError) -> bool:
    """Whether S3 says that the object does not exist.

    It says so only to a role with s3:ListBucket on the bucket; to others it is 403 (S3 API reference, GetObject).
    """
    return error_code(error) in ("NoSuchKey", "NoSuchVersion", "404")


def list_objects(bucket: str, prefix: str, start_after: str = "") -> Iterator[dict[str, Any]]:
    """The objects under a prefix whose keys sort after prefix + start_after: Key, ETag, Size and LastModified."""
    pages = client("s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=prefix + start_after):
        yield from page.get("Contents", [])


def list_keys(bucket: str, prefix: str, start_after: str = "") -> Iterator[str]:
    """The keys under a prefix that sort after prefix + start_after."""
    return (item["Key"] for item in list_objects(bucket, prefix, start_after))


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


def take_lease(bucket: str, step: str, job: str, request_id: str) -> str:
    """Take the lease on one step of a job: LEASED, or LEASED_AGAIN where somebody had it before and may have done it.

    "": another invocation holds it; leave the step to that one.
    """
    key = f"claims/{step}/{job}.json"
    mine = {"schema": SCHEMA, "by": request_id, "at": now().isoformat()}
    if put_json(bucket, key, mine, IfNoneMatch="*"):
        return LEASED
    held, etag = read_json(bucket, key)
    if held is None or etag is None or leased_by_another(held, request_id):
        return ""
    return LEASED_AGAIN if put_json(bucket, key, mine, IfMatch=etag) else ""


def due_again(tries: int, at: str) -> bool:
    """Whether what failed that many times, the last time at a moment, is to be tried again now."""
    return tries < EAGER_TRIES or age(at) > LATER_TRIES_SECONDS


def copy_object(
    bucket: str, key: str, source: Mapping[str, str], etag: str, size: int, metadata: dict[str, str]
) -> None:
    """Copy an object of any size (in bytes) inside S3, pinned to its ETag, without its tags.

    Raises ClientError PreconditionFailed when the source is no longer the one with that ETag.
    """
    request: dict[str, Any] = {"MetadataDirective": "REPLACE", "Metadata": metadata, "TaggingDirective": "REPLACE"}
    request["CopySourceIfMatch"] = etag
    if size <= COPY_OBJECT_MAX_BYTES:
        client("s3").copy_object(Bucket=bucket, Key=key, CopySource=dict(source), **request)
        return
    transfer = TransferConfig(
        multipart_threshold=COPY_OBJECT_MAX_BYTES + 1,
        multipart_chunksize=COPY_PART_BYTES,
        max_concurrency=COPY_THREADS,
        use_threads=COPY_THREADS > 1,
    )
    client("s3").copy(dict(source), bucket, key, ExtraArgs=request, Config=transfer)


class Wording(str):
    """A text of ours, which may have several lines. Its values are plain, so it goes into another one as it is."""


class Filler(string.Formatter):
    """Makes each value plain that goes into a text, so that no value changes its lines."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return value if isinstance(value, Wording) else plain(format(value, format_spec))


def fill(template: str, /, **values: object) -> Wording:
    """A text with its values, which are named in it as in str.format."""
    return Wording(Filler().vformat(template, (), values))


def table(rows: Sequence[tuple[str, object]]) -> Wording:
    """Rows of (name, value) as indented, aligned lines for a plain-text email."""
    width = max(len(name) for name, _ in rows)
    return Wording("\n".join(f"  {name:<{width}}  {plain(value)}" for name, value in rows))


def human_bytes(size: int) -> str:
    """A size in bytes for people: 512 bytes, 1.4 MB."""
    if size < 1000:
        return f"{size} bytes"
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= s)
    return f"{size / scale:.1f} {unit}"


def notify(
    topic_arn: str, email: Mapping[str, str], model: str, rows: Sequence[tuple[str, object]], **values: object
) -> None:
    """Send an email: "subject" and "body" are filled with values, and {table} with rows; no value changes its lines.
    People filter their subscription by "stage", "status" and model."""
    values |= {"model": model, "table": table(rows)}
    subject = fill(email["subject"], **values).encode("ascii", "replace").decode()
    body = fill(email["body"], **values)
    attributes = {"stage": email["stage"], "status": email["status"], "model": model}
    client("sns").publish(
        TopicArn=topic_arn,
        Subject=subject[:SUBJECT_MAX_CHARACTERS],
        Message=body.encode()[:MESSAGE_MAX_BYTES].decode(errors="ignore"),
        MessageAttributes={name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()},
    )
