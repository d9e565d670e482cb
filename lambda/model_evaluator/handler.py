"""Model evaluator: judges every finished training job: approves its model, rejects it or holds it back.

Triggers: EventBridge, SageMaker "Training Job State Change" to Completed, Failed or Stopped, and a schedule
("sweep"), which picks up the jobs whose event was lost or could not be handled.
It streams the metrics out of the job's archives, checks them against the thresholds and against the live model's on
the same rows, copies an approved model inside S3 to models/approved/, emails people, and writes the decision record.
It never unpacks an archive to disk, never holds a model in memory, and leaves other people's jobs alone.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import logging
import os
import random
import re
import reprlib
import string
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired, TypedDict

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

METRICS_FILE = "metrics.json"
GOLDEN_FILE = "golden.json"
# JSON takes about thirty times its size in memory: with this limit, little beside the process itself.
JSON_MAX_BYTES = 128 * 1024
METRICS_MAX = 1000
GOLDEN_MAX_ROWS = 20
# In characters.
NAME_MAX, TEXT_MAX, NOTE_MAX, TOLD_MAX = 100, 512, 1000, 1200
# Rows of what the training program tells of its data.
TOLD_MAX_ROWS = 20
LESS_IS_BETTER = ("eval_loss",)
# What no metric can exceed: losses 0, and shares of the rows 1. Where a figure is above 1, it is in percent, say.
SHARES = re.compile(r"(^|[^a-z])(accuracy|auc|f1|precision|recall)($|[^a-z])")
# What a metric is measured on: the job's hold-out, for the thresholds; and for the comparison with the live model, the
# rows of it that the live model was not trained on either, and the live model's own hold-out.
OWN_HOLDOUT = "hold-out"
NEW_HOLDOUT = "new hold-out"
LIVE_HOLDOUT = "hold-out of the live model"
# What the training program (scripts/training/champion.py) says of the comparison: it was made, or why it was not.
COMPARED = "compared"
RESPELT = "respelt labels"  # it was made, after mapping: the new data spells the live model's labels differently
UNCOMPARED = {
    "no shared label": "the new data has none of the live model's labels",
    "cannot be read": "the live model's archive cannot be read",
    "cannot be loaded": "the live model cannot be loaded, or gives no scores",
    "too few rows": "there are too few rows that neither model was trained on: upload more",
    # By this function: the program is of an earlier version, of somebody else's, or was given another live model.
    "not said": "the training program does not say why there is no comparison",
    "not written": f"the training program wrote no comparison into {METRICS_FILE}",
    "another model": f"{METRICS_FILE} compares with another model",
}
# New data with this share of the live model's training rows extends the old.
EXTENDS_SHARE = 0.95
# When it does, the largest drop, in margins, that is excused as noise.
NOISE_MARGINS = 2
# One-sided 95 % of a normal distribution, in standard errors.
CONFIDENCE = 1.645
# The difference of two floats is not exact: a drop of exactly the margin is within it.
ROUNDING = 1e-9
# SageMaker writes no larger pax header or long name.
TAR_EXTENSION_MAX_BYTES = 64 * 1024
TAR_EXTENSION_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
# Links, devices and folders have no content, whatever size their header claims.
TAR_CONTENT_TYPES = (*tarfile.REGULAR_TYPES, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
UNPACK_BYTES = 256 * 1024
# The search for a file ends with this much of the function's time left, for the email and the record.
RESERVE_MILLISECONDS = 60_000
# SageMaker notes a job's end once its artifacts are uploaded (DescribeTrainingJob, TrainingEndTime). S3 notes when an
# upload began, to the second. So these are the seconds by which the two services' clocks may differ.
CLOCKS_SECONDS = 5
# A sweep starts another evaluation only with this much time left.
SWEEP_MILLISECONDS = 240_000

EMAILS = {
    "approved": {
        "stage": "evaluation",
        "status": "approved",
        "subject": "Model approved: {model} ({file})",
        "body": "The new model passed every check, on rows that it was not trained on.\n\n{table}\n{checks}\n"
        "What next: nothing to do. {next}\n",
    },
    "rejected": {
        "stage": "evaluation",
        "status": "rejected",
        "subject": "Model rejected: {model} ({file})",
        "body": "Training completed, but the new model was rejected, so it will not be deployed.\n\n{table}\n{checks}\n"
        "Why: {reason}.\n\nThe live model, if there is one, is not affected.\nWhat next: {next}"
        "To see the log, run: make logs JOB={job}\n",
    },
    "held": {
        "stage": "evaluation",
        "status": "held",
        "subject": "Model held: {model} ({file})",
        "body": "The new model passed every check that could be made, but it is held: it will not be deployed.\n\n"
        "{table}\n{checks}\nWhy: {reason}.\n\nThe live model is not affected.\n"
        "What next: {next}To see the log, run: make logs JOB={job}\n",
    },
    "failed": {
        "stage": "training",
        "status": "failed",
        "subject": "Training failed: {model} ({file})",
        "body": "There is no new model: the training job {verdict}.\n\n{table}\n\nWhy: {reason}\n\n"
        "The live model, if there is one, is not affected.\n"
        "What next: {next}\nTo see the log, run: make logs JOB={job}\n",
    },
}
EMAILS["stopped"] = EMAILS["failed"] | {"status": "stopped"}
# Parts of these emails, and reasons in them and in decisions.
WORDINGS = {
    "no live model": "No model was live when this training began, so only the thresholds were checked.",
    "not compared": "Not compared with the live model {job}: only the thresholds were checked. {note}",
    "accepted": "Not compared with the live model {job}: only the thresholds were checked, as accept_uncompared "
    "allows. {note}",
    "compared": "Compared with the live model {job}, both on the same rows, which neither was trained on. {note}",
    "rivals": "Approved by now, but not live when this training began, and so not compared with: {rivals}. The newest "
    "upload is the one that serves. To serve another one: make rollback MODEL={model} TO=<job>.\n",
    "newest": "The pipeline deploys it now; the next email says that deployment has started.",
    "not newest": "{newer}, of a later upload, is already approved and goes first. This model is the fallback.",
    "bad figures": "check the data (are the labels right? are there enough rows for each label?) and upload a better "
    "CSV, or change the thresholds in Terraform.\n",
    "no model": "this is not about the rows of your CSV: the job left nothing that can be judged. Look at the log, fix "
    "the cause, then run: make retrain JOB={job}\n",
    "fix": "fix the cause given above, then upload the CSV again.",
    "no capacity": "raise training_max_wait_seconds or set training_use_spot to false in Terraform, deploy, then run: "
    "make retrain JOB={job}",
    "too slow": "raise training_max_runtime_seconds or choose a faster training_instance_type in Terraform, deploy, "
    "then run: make retrain JOB={job}",
    "was stopped": "if that was a mistake, run: make retrain JOB={job}",
    "worse than live": "A CSV with the live model's rows and the new ones together is the surest improvement.\n"
    "To replace the live model although it scores better: raise champion_margin in Terraform, deploy, and upload the "
    "data again. Or upload it for a model of its own, to data/train/<name>/.\n",
    "held": "if this is data for another task, upload it for a model of its own: make upload DATA=<file> "
    'MODEL=<another name>\nTo have it judged by its thresholds alone, add "{model}" to accept_uncompared in Terraform, '
    "deploy, then run: make retrain JOB={job}\n",
    "keep the spelling": "spell these labels as the live model does, and upload the data again. In the new spelling, "
    'the endpoint\'s answers would change for everyone who calls it.\nTo have that all the same, add "{model}" to '
    "accept_uncompared in Terraform, deploy, then run: make retrain JOB={job}\n",
    "respelt": "its labels are spelled differently from the live model's: {respelt}",
    "no reason": "SageMaker gave no reason; see the job's log",
    "AWS failed": "the fault is AWS's; nothing is wrong with your data. To train again, run: make retrain JOB={job}",
    "timed out": "it reached its time limit of {hours:g} h (training_max_runtime_seconds)",
    "waited too long": "it was not done after {hours:g} h, with waiting for spot instances (training_max_wait_seconds)",
    "stopped": "somebody stopped it",
    "deleted": "the training job is gone: somebody deleted it in SageMaker",
    "given up": "its evaluation failed {tries} times, most recently with: {error}. The model evaluator's log has the "
    "details (make logs). Once that is fixed, make retrain trains again on the same data",
}
# What to do about a job that a limit has stopped, by the limit in its reason.
LIMITS = {"training_max_runtime_seconds": "too slow", "training_max_wait_seconds": "no capacity"}
# The reasons of failed jobs that are AWS's own.
AWS_FAILED = re.compile(r"(CapacityError|InternalServerError)\b|ClientError\b.*[Pp]lease (retry|try again)", re.DOTALL)
AT = {"min": "at least", "max": "at most"}
ROW_COUNTS = {"train_examples": "training rows", "holdout_examples": "hold-out rows"}

Figures = dict[str, float]  # by metric
Thresholds = dict[str, Figures]  # {metric: {"min" and/or "max": number}}
OutOfTime = Callable[[], bool]


class ArchiveError(Exception):
    """The job's archive or its metrics cannot be used; the text is a reason that a person can read."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One metric against one bound: a threshold, or what the live model reaches on the same rows."""

    metric: str
    direction: str  # "min" or "max"
    threshold: float
    value: float | None  # None: missing, or not a finite number
    passed: bool
    reason: str  # for people
    rows: str = OWN_HOLDOUT
    live: float | None = None  # the live model's value; None where the bound is a threshold


class ComparedSet(TypedDict):
    """The live and the new model on the same rows, and the standard errors of their differences."""

    name: str  # NEW_HOLDOUT or LIVE_HOLDOUT
    rows: int
    live: Figures
    new: Figures
    error: Figures


class Champion(TypedDict):
    """The comparison with the live model: metrics.json's "champion", by the training program, and two additions."""

    job: str  # the live model's
    status: str  # COMPARED, RESPELT or one of UNCOMPARED
    compared: bool
    note: str  # one line for people
    respelt: str  # the first few labels that the live model spells differently, for people: new for old; "": none
    kept: float | None  # share (0 to 1) of the live model's training rows in the new data; None: unknown
    sets: list[ComparedSet]
    margin: NotRequired[float]  # how much worse the new model may be, in units of each metric
    below_best: NotRequired[Figures]  # by how much the new model trails the best one so far, on LIVE_HOLDOUT


class Cost(TypedDict):
    """What SageMaker says that a job took, and bills."""

    training_seconds: int
    billable_seconds: int  # of each instance; of spot ones, as many as they would be at the usual price
    instances: int
    saving_percent: float | None  # of spot instances; None: they were on demand


@dataclasses.dataclass
class Decision:
    """models/decisions/<job>.json: the verdict on a finished job. The deployer and the commands read it, too."""

    job: str
    model: str
    data: dict[str, Any]  # the upload: bucket, key, version_id, etag, size in bytes
    thresholds: Thresholds
    verdict: str  # "approved", "rejected", "held", "failed" or "stopped"
    schema: int
    reason: str = ""
    artifact: dict[str, Any] | None = None  # the job's model.tar.gz: key, etag, size in bytes
    metrics: Figures = dataclasses.field(default_factory=dict)  # the finite ones
    told: dict[str, str] = dataclasses.field(default_factory=dict)  # what the data holds, as rows for people
    checks: list[Check] = dataclasses.field(default_factory=list)
    champion: Champion | None = None  # None: there was no live model
    rivals: dict[str, Figures] = dataclasses.field(default_factory=dict)  # see read_rivals
    golden: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # rows: text, label, score (0 to 1)
    golden_note: str = ""  # why an approved model has no golden rows
    cost: Cost | None = None  # None: SageMaker does not say
    approved_key: str | None = None
    decided_at: str = ""  # ISO 8601, UTC


# claims/tries/<job>.json: how often this function's sweep tried to decide on a job, last at a time (ISO 8601, UTC), and
# the last error.
Tries = TypedDict("Tries", {"schema": int, "tries": int, "at": str, "reason": NotRequired[str]})  # noqa: UP013


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the function reads from its environment, once."""

    bucket: str
    project: str
    topic_arn: str
    thresholds: Thresholds
    model_thresholds: dict[str, Thresholds]
    champion_margin: float  # how much worse than the live model a new one may be, in units of each metric
    accept_uncompared: str  # the models whose thresholds are enough where there is no comparison: names, commas between

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings. Raises ConfigError naming the variable that is missing or malformed."""
        margin, models = required(env, "CHAMPION_MARGIN"), json_object(env, "MODEL_THRESHOLDS")
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?([eE]-[0-9]{1,2})?", margin):
            raise ConfigError(f"environment variable CHAMPION_MARGIN must be a number of at least 0, not {margin!r}")
        accepted = env.get("ACCEPT_UNCOMPARED", "")
        if accepted and not all(map(MODEL_NAME.fullmatch, accepted.split(","))):
            raise ConfigError(f"ACCEPT_UNCOMPARED must be names of models with commas between, not {accepted!r}")
        return cls(
            bucket=required(env, "BUCKET"),
            project=required(env, "PROJECT"),
            topic_arn=required(env, "TOPIC_ARN"),
            thresholds=parse_thresholds("THRESHOLDS", json_object(env, "THRESHOLDS")),
            model_thresholds={name: parse_thresholds(f"MODEL_THRESHOLDS[{name}]", models[name]) for name in models},
            champion_margin=float(margin),
            accept_uncompared=accepted,
        )


def parse_thresholds(name: str, value: object) -> Thresholds:
    """Check a set of thresholds. Raises ConfigError naming the metric at fault."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{name} must name at least one metric, not {value!r}")
    for metric, bounds in value.items():
        named = isinstance(bounds, dict) and bounds and bounds.keys() <= AT.keys()
        if not named or None in map(finite, bounds.values()):
            raise ConfigError(f'{name}: {metric} must have a finite "min", "max" or both, not {bounds!r}')
    return value


# --- from a job's end to its decision -------------------------------------------------------------------------------


def decide(job: str, config: Settings, request_id: str, left: Callable[[], int], given_up: str = "") -> str:
    """Decide on one job; returns the outcome in a word.

    left: milliseconds. given_up: the reason, when the job is to fail without an evaluation.
    The order makes a crash harmless: act, email people, then write the record that says it is done.
    """
    source, _ = read_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/source.json")
    if source is None:
        return "not ours"
    description = describe_job(job)
    if description is None:
        # A job that was started a moment ago may not be visible yet.
        started, _ = read_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/started.json")
        if started is None or age(started["started_at"]) < LEASE_SECONDS:
            return "not ended"
        description = {"TrainingJobStatus": "Failed", "FailureReason": WORDINGS["deleted"]}
    if given_up:
        description = {"TrainingJobStatus": "Failed", "FailureReason": given_up}
    if description["TrainingJobStatus"] not in TERMINAL:
        return "not ended"
    lease = take_lease(config.bucket, "evaluate", job, request_id)
    # S3 keeps leases for LOOK_BACK_DAYS: where none was left of a job that ended since, nobody decided on it.
    ended = description.get("TrainingEndTime")
    is_new = lease == LEASED and ended is not None and now() - ended < timedelta(days=LOOK_BACK_DAYS)
    if not is_new and exists(config.bucket, f"{DECISION_PREFIX}{job}.json"):
        return "already decided"
    if not lease:
        return "in hand"
    decision = evaluate(config, source, description, lambda: left() < RESERVE_MILLISECONDS)
    if decision.verdict == "approved":
        approve(config.bucket, decision)
    email_decision(config.topic_arn, decision)
    decision.decided_at = now().isoformat()
    put_json(config.bucket, f"{DECISION_PREFIX}{job}.json", dataclasses.asdict(decision))
    return decision.verdict


def describe_job(job: str) -> dict[str, Any] | None:
    """The training job as SageMaker describes it; None when there is none of that name."""
    try:
        return dict(client("sagemaker").describe_training_job(TrainingJobName=job))
    except ClientError as error:
        if error_code(error) == "ValidationException" and "not found" in error_message(error):
            return None
        raise


def evaluate(
    config: Settings, source: Mapping[str, Any], description: Mapping[str, Any], out_of_time: OutOfTime
) -> Decision:
    """The decision on a finished job, not yet carried out."""
    decision = Decision(
        job=source["job"],
        model=source["model"],
        data={name: source.get(name) for name in ("bucket", "key", "version_id", "etag", "size")},
        thresholds=config.model_thresholds.get(source["model"], config.thresholds),
        verdict=description["TrainingJobStatus"].lower(),
        schema=SCHEMA,
        cost=cost_of(description),
    )
    if decision.verdict == "failed":
        decision.reason = plain(description.get("FailureReason") or WORDINGS["no reason"])
    elif decision.verdict == "stopped":
        limits = {
            "MaxRuntimeExceeded": ("timed out", "MaxRuntimeInSeconds"),
            "MaxWaitTimeExceeded": ("waited too long", "MaxWaitTimeInSeconds"),
        }
        why, limit = limits.get(str(description.get("SecondaryStatus")), ("stopped", ""))
        seconds = (description.get("StoppingCondition") or {}).get(limit, 0)
        decision.reason = WORDINGS[why].format(hours=seconds / 3600)
    else:
        try:
            pass_gate(config, description, out_of_time, decision)
        except ArchiveError as error:
            decision.verdict, decision.reason = "rejected", plain(error)
    return decision


def cost_of(description: Mapping[str, Any]) -> Cost | None:
    """What a job took and is billed, and what spot instances saved (DescribeTrainingJob, BillableTimeInSeconds)."""
    took, billed = description.get("TrainingTimeInSeconds"), description.get("BillableTimeInSeconds")
    if not took or billed is None:
        return None
    instances = (description.get("ResourceConfig") or {}).get("InstanceCount") or 1
    saved = round(100 * (1 - billed / took), 1) if description.get("EnableManagedSpotTraining") else None
    return Cost(training_seconds=took, billable_seconds=billed, instances=instances, saving_percent=saved)


def pass_gate(config: Settings, description: Mapping[str, Any], out_of_time: OutOfTime, decision: Decision) -> None:
    """Judge a completed job's model, into the decision. Raises ArchiveError."""
    bucket, gate, ended = config.bucket, decision.thresholds, description["TrainingEndTime"]
    decision.artifact = find_artifact(bucket, decision.job, description)
    model_key = decision.artifact["key"]
    # SageMaker puts the small archive of the job's output folder beside the model.
    output_key = model_key.rsplit("/", 1)[0] + "/output.tar.gz"
    written, golden = read_archives(bucket, output_key, model_key, ended, out_of_time)
    metrics = parse_metrics(written)
    decision.told = parse_told(metrics)
    champion = parse_champion(metrics, (description.get("Environment") or {}).get("CHAMPION_JOB"))
    live = champion["job"] if champion else ""
    # With this job's own: an attempt that broke off may have copied it.
    approved = list(list_keys(bucket, f"{APPROVED_PREFIX}{decision.model}/", min(live, decision.job)))
    rivals = read_rivals(bucket, decision, live, approved)
    compared: list[Check] = []
    if champion and champion["compared"]:
        below_best = read_champion(bucket, champion["job"]).get("below_best", {})
        compared, trails = compare(champion, gate, config.champion_margin, below_best, rivals)
        champion["margin"], champion["below_best"] = config.champion_margin, trails
    checks = judge(metrics, gate) + compared
    failed = [check.reason for check in checks if not check.passed]
    figures = [(plain(name, NAME_MAX), it) for name, value in metrics.items() if (it := finite(value)) is not None]
    decision.metrics = dict(figures[:METRICS_MAX])
    decision.checks, decision.champion, decision.rivals = checks, champion, rivals
    why = doubt(champion, compared) if champion else ""
    if failed:
        decision.verdict, reasons = "rejected", failed + ([why] if why and compared else [])
    elif why and decision.model not in config.accept_uncompared.split(","):
        decision.verdict, reasons = "held", [why]
    else:
        decision.verdict, reasons = "approved", ["every metric is within its threshold"]
        if why:
            allowed = why if compared else "it was not compared with the live model"
            reasons.append(f"accept_uncompared allows that {allowed}")
    decision.reason = plain("; ".join(reasons))
    if decision.verdict == "approved":
        decision.approved_key = key if (key := approved_key(decision)) in approved else None
        try:
            decision.golden = parse_golden(golden)
        except ArchiveError as error:
            decision.golden_note = plain(error)


def doubt(champion: Champion, compared: Sequence[Check]) -> str:
    """Why a model that passed every check is not to go live by itself; "" when nothing speaks against it."""
    if not compared:
        return UNCOMPARED.get(champion["status"], "no metric that has a threshold was compared")
    return fill(WORDINGS["respelt"], **champion) if champion["status"] == RESPELT else ""


def find_artifact(bucket: str, job: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """The job's model.tar.gz: key, size and ETag. Raises ArchiveError when there is none where it belongs."""
    uri = str((description.get("ModelArtifacts") or {}).get("S3ModelArtifacts") or "")
    prefix = f"s3://{bucket}/{RAW_MODEL_PREFIX}{job}/"
    if not uri:
        raise ArchiveError("the job completed without a model artifact")
    if not uri.startswith(prefix):
        raise ArchiveError(f"the job's model artifact is at {uri:.200}, not under {prefix}")
    key = uri.removeprefix(f"s3://{bucket}/")
    try:
        head = client("s3").head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_gone(error):
            raise ArchiveError(f"the model artifact {uri} is gone") from error
        raise
    check_written(key, head["LastModified"], description["TrainingEndTime"])
    return {"key": key, "size": head["ContentLength"], "etag": head["ETag"].strip('"')}


def check_written(key: str, written: datetime, ended: datetime) -> None:
    """Raises ArchiveError for an archive written after its job's end: any training job may write any other's.

    S3 notes when an upload began (user guide, "Working with object metadata", Last-Modified): one in parts that began
    before the job's end passes.
    """
    if written > ended + timedelta(seconds=CLOCKS_SECONDS):
        at, end = (f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" for when in (written, ended))
        raise ArchiveError(f"{key} was written at {at}, after the job had ended ({end}), so it is not the job's own")


def read_archives(
    bucket: str, output_key: str, model_key: str, ended: datetime, out_of_time: OutOfTime
) -> tuple[bytes, bytes | ArchiveError]:
    """The metrics, from the job's output archive or else from its model's; and the golden rows, from the former, or why
    there are none. Each archive is read once, as far as needed; ended: when the job did.

    Raises ArchiveError when there are no metrics.
    """
    files: dict[str, bytes | ArchiveError] = {}
    for key, wanted in ((output_key, (METRICS_FILE, GOLDEN_FILE)), (model_key, (METRICS_FILE,))):
        if METRICS_FILE in files:
            break
        try:
            answer = client("s3").get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if is_gone(error):
                continue
            raise
        with answer["Body"] as body:
            check_written(key, answer["LastModified"], ended)
            try:
                for name, content in find_files(body, wanted, JSON_MAX_BYTES, out_of_time):
                    files.setdefault(name, content)
                    if files.keys() >= {*wanted} or isinstance(files.get(METRICS_FILE), ArchiveError):
                        break
            except ArchiveError as error:
                if METRICS_FILE not in files:
                    raise
                files.setdefault(GOLDEN_FILE, error)
    neither = f"neither the output archive nor the model archive has a {METRICS_FILE} at its root"
    metrics = files.get(METRICS_FILE, ArchiveError(neither))
    if isinstance(metrics, ArchiveError):
        raise metrics
    missing = f"there is no output archive with a {GOLDEN_FILE} at its root"
    return metrics, files.get(GOLDEN_FILE, ArchiveError(missing))


def read_champion(bucket: str, job: str) -> Mapping[str, Any]:
    """How an earlier model compared with the one that was live then; {} when it did not."""
    decision, _ = read_json(bucket, f"{DECISION_PREFIX}{job}.json")
    return (decision or {}).get("champion") or {}


def read_rivals(bucket: str, decision: Decision, live: str, approved: Sequence[str]) -> dict[str, Figures]:
    """The other models approved since the live one ("": none), any of which may be live by now: {job: figures on the
    live model's hold-out}, {} for a job that was not compared with the same live model. approved: keys."""
    rivals: dict[str, Figures] = {}
    for match in filter(None, map(APPROVED_KEY.fullmatch, approved)):
        if match["job"] > live and match["job"] != decision.job:
            champion = read_champion(bucket, match["job"])
            sets = champion["sets"] if champion.get("job") == live else []
            rivals[match["job"]] = next((one["new"] for one in sets if one["name"] == LIVE_HOLDOUT), {})
    return rivals


def approved_key(decision: Decision) -> str:
    return f"{APPROVED_PREFIX}{decision.model}/{decision.job}/model.tar.gz"


def approve(bucket: str, decision: Decision) -> None:
    """Copy the artifact to the approved models, once."""
    artifact: Mapping[str, Any] = decision.artifact or {}
    key = approved_key(decision)
    if decision.approved_key:
        present = client("s3").head_object(Bucket=bucket, Key=key)["Metadata"]
        if present.get("source-etag") == artifact["etag"]:
            return
    metadata = {"source-etag": artifact["etag"], "training-job": decision.job}
    source = {"Bucket": bucket, "Key": artifact["key"]}
    copy_object(bucket, key, source, f'"{artifact["etag"]}"', artifact["size"], metadata)
    decision.approved_key = key


def finite(value: object) -> float | None:
    """The value as a finite float; None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)


def judge(metrics: Mapping[str, Any], gate: Thresholds) -> list[Check]:
    """Compare the metrics with the thresholds, one check for each; a metric that is not a finite number fails."""
    checks = []
    for metric, bounds in sorted(gate.items()):
        value = finite(metrics.get(metric))
        got = f"is {value:.6g}" if value is not None else "is missing"
        if value is None and metric in metrics:
            got = f"is {reprlib.repr(metrics[metric])}, not a finite number"
        for direction, bound in sorted(bounds.items(), reverse=True):
            passed = value is not None and (value >= bound if direction == "min" else value <= bound)
            reason = plain(f"{metric} {got}; it must be {AT[direction]} {bound:g}")
            checks.append(Check(metric, direction, float(bound), value, passed, reason))
    return checks


def compare(
    champion: Champion, gate: Thresholds, margin: float, below_best: Figures, rivals: dict[str, Figures]
) -> tuple[list[Check], Figures]:
    """Compare the new model with the live one: one check for each metric of the gate on each set of rows.

    No metric may be worse than the live model's by more than the margin. When the new data extends the old, a drop
    within one standard error is excused up to NOISE_MARGINS: a few hundred rows cannot tell apart models a point apart.
    The live model's own hold-out is handed on from model to model. There small drops must not add up, so the best
    figure so far counts (best_so_far); and unless the new data extends the old, a larger drop than the margin must be
    unlikely (CONFIDENCE), not merely unseen. No bound is beyond what the metric can reach: there, only that passes.
    below_best: by how much the live model trails the best one before it. Returns the checks, and by how much the new
    model trails the best one: the next comparison's below_best.
    """
    checks = []
    trails = dict(below_best)
    extends = (champion["kept"] or 0.0) >= EXTENDS_SHARE
    for judged in champion["sets"]:
        rows = f"{judged['name']} ({judged['rows']} rows)"
        for metric in sorted(gate.keys() & judged["new"].keys()):
            sign = -1 if metric in LESS_IS_BETTER else 1
            live, value, error = judged["live"][metric], judged["new"][metric], judged["error"][metric]
            allowed = max(margin, min(error, NOISE_MARGINS * margin)) if extends else margin
            best, whose, chance = live, f"the live model has {live:.6g}", 0.0
            if judged["name"] == LIVE_HOLDOUT:
                before = below_best.get(metric, 0.0)
                # What was lost under a larger margin than today's was accepted deliberately.
                before = 0.0 if before > NOISE_MARGINS * margin + ROUNDING else before
                best, whose = best_so_far(metric, sign, live, before, rivals)
                trails[metric] = max(sign * (best - value), 0.0)
                chance = 0.0 if extends else CONFIDENCE * error
            bound, most = best - sign * (allowed - chance), reach(metric, best, value)
            out_of_reach = most is not None and sign * bound > sign * most
            bound = most if most is not None and out_of_reach else bound
            passed = sign * value >= sign * bound - ROUNDING
            reason = f"{metric} on the {rows} is {value:.6g}; {whose}"
            reason += f", and at most {allowed:.4g} worse than that is allowed"
            reason += " (one standard error)" if allowed > margin else ""
            if chance:
                reason += f", with {chance:.4g} to spare to rule out chance: the new data lacks the live model's rows"
            if out_of_reach:
                reason += f"; that is more than any model can reach, so only {bound:g} passes"
            checks.append(Check(metric, "min" if sign == 1 else "max", bound, value, passed, reason, rows, live))
    return checks, trails


def reach(metric: str, *figures: float) -> float | None:
    """The best that a model can have of a metric with such figures; None where that is not known."""
    if metric in LESS_IS_BETTER:
        return 0.0
    return 1.0 if SHARES.search(metric) and max(figures) <= 1 + ROUNDING else None


def best_so_far(metric: str, sign: int, live: float, before: float, rivals: dict[str, Figures]) -> tuple[float, str]:
    """The best figure on the live model's hold-out, and whose it is: the live model's, that of the best model before it
    (better by before), or of one approved since. sign: 1 where more is better, -1 where less is."""
    best, whose = live + sign * before, f"the live model has {live:.6g}"
    if before:
        whose += f", the best model before it had {best:.6g}"
    for job, figures in rivals.items():
        if metric in figures and sign * figures[metric] > sign * best:
            best, whose = figures[metric], f"{job}, approved meanwhile, has {figures[metric]:.6g}"
    return best, whose


def email_decision(topic_arn: str, decision: Decision) -> None:
    """Email people the decision."""
    job, model, data, metrics = decision.job, decision.model, decision.data, decision.metrics
    rows = [("model", model), ("training job", job), ("data", f"s3://{data['bucket']}/{data['key']}")]
    rows += [(text, f"{metrics[name]:.0f}") for name, text in ROW_COUNTS.items() if name in metrics]
    rows += [*decision.told.items(), *cost_rows(decision.cost)]
    if decision.artifact and decision.verdict == "approved":
        rows.append(("artifact", human_bytes(decision.artifact["size"])))
    if note := decision.golden_note:
        rows.append(("golden rows", f"none, so the endpoint's answers will not be checked: {note}"))
    compared = champion_text(decision.champion, decision.verdict)
    parts = check_table(decision.checks), compared, rivals_text(decision)
    checks = Wording("\n{}\n\n{}\n{}".format(*parts) if decision.checks else "")
    texts = {"job": job, "verdict": decision.verdict, "reason": decision.reason, "next": what_next(decision)}
    texts |= {"file": data["key"].rsplit("/", 1)[-1], "checks": checks}
    notify(topic_arn, EMAILS[decision.verdict], model, rows, **texts)


def cost_rows(cost: Cost | None) -> list[tuple[str, str]]:
    """What a job took and is billed, as rows for people."""
    if cost is None:
        return []
    billed = f"{cost['billable_seconds']:,} s"
    billed += f" for each of {cost['instances']} instances" if cost["instances"] > 1 else ""
    saved = cost["saving_percent"]
    billed += "" if saved is None else f"; spot instances saved {saved:g} %"
    return [("training time", f"{cost['training_seconds']:,} s"), ("billed time", billed)]


def what_next(decision: Decision) -> Wording:
    """What people should do about a decision."""
    job, reason, newer = decision.job, decision.reason, max(decision.rivals, default="")
    is_worse = any(check.live is not None and not check.passed for check in decision.checks)
    is_deleted = reason == WORDINGS["deleted"]
    is_respelt = decision.champion is not None and decision.champion["status"] == RESPELT
    kinds = {
        "approved": ["not newest" if newer > job else "newest"],
        "held": ["keep the spelling" if is_respelt else "held"],
        "rejected": ["bad figures", *(["worse than live"] if is_worse else [])] if decision.checks else ["no model"],
        "stopped": [next((kind for name, kind in LIMITS.items() if name in reason), "was stopped")],
        "failed": ["was stopped" if is_deleted else "AWS failed" if AWS_FAILED.match(reason) else "fix"],
    }
    wording = "".join(WORDINGS[kind] for kind in kinds[decision.verdict])
    return fill(wording, newer=newer, job=job, model=decision.model)


def check_table(checks: Sequence[Check]) -> str:
    """The checks as indented, aligned lines."""
    rows = [("metric", "on", "new", "live", "required", "")]
    for check in checks:
        value = "none" if check.value is None else f"{check.value:.6g}"
        live = "" if check.live is None else f"{check.live:.6g}"
        wanted = f"{AT[check.direction]} {check.threshold:.6g}"
        rows.append((plain(check.metric), check.rows, value, live, wanted, "passed" if check.passed else "NOT PASSED"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def champion_text(champion: Champion | None, verdict: str) -> str:
    """How the model was compared with the live one."""
    uncompared = "accepted" if verdict == "approved" else "not compared"
    kind = "no live model" if champion is None else "compared" if champion["compared"] else uncompared
    return fill(WORDINGS[kind], **dict(champion or {})).rstrip()


def rivals_text(decision: Decision) -> str:
    """The approved models that an approved one was not compared with; "" when there are none."""
    unknown = [job for job, figures in decision.rivals.items() if not figures]
    if not unknown or decision.verdict != "approved":
        return ""
    return fill(WORDINGS["rivals"], rivals=", ".join(unknown), model=decision.model)


def decide_overdue(config: Settings, request_id: str, left: Callable[[], int]) -> str:
    """Decide on the finished jobs whose event was lost or could not be handled; returns the outcome in words.
    left: milliseconds. A try is counted first, so one that kills the function counts too."""
    if exists(config.bucket, PAUSED_KEY):
        return "paused"
    bucket, since = config.bucket, look_back()
    started = {key.split("/")[2] for key in list_keys(bucket, SNAPSHOT_PREFIX, since) if key.endswith("/started.json")}
    decided = {key.removesuffix(".json").split("/")[-1] for key in list_keys(bucket, DECISION_PREFIX, since)}
    overdue: list[tuple[int, str, str, str]] = []
    for job in filter(JOB_NAME.fullmatch, sorted(started - decided)):
        description = describe_job(job)
        if description is None or description["TrainingJobStatus"] in TERMINAL:
            tried: Tries | None = read_json(bucket, f"claims/tries/{job}.json")[0]
            tried = tried or {"schema": SCHEMA, "tries": 0, "at": ""}
            overdue.append((tried["tries"], tried["at"], job, tried.get("reason", "")))
    outcomes: list[str] = []
    for tries, at, job, reason in sorted(overdue):
        if not due_again(tries, at):
            continue
        if outcomes and left() < SWEEP_MILLISECONDS:
            break
        tried = {"schema": SCHEMA, "tries": tries + 1, "at": now().isoformat(), "reason": reason}
        put_json(bucket, f"claims/tries/{job}.json", tried)
        given_up = WORDINGS["given up"].format(tries=tries, error=reason or "an error that was not recorded")
        try:
            outcome = decide(job, config, request_id, left, given_up if tries >= GIVE_UP_TRIES else "")
        except Exception as error:
            tried["reason"] = f"{type(error).__name__}: {plain(error, 300)}"
            put_json(bucket, f"claims/tries/{job}.json", tried)
            raise
        log.info("training job handled by the sweep: %s", outcome, extra={"training_job": job})
        outcomes.append(outcome)
    return ", ".join(outcomes) or "nothing undecided"


# --- archives, and what the training program writes into them -------------------------------------------------------


def find_files(
    body: Any, wanted: Collection[str], max_bytes: int, out_of_time: OutOfTime
) -> Iterator[tuple[str, bytes | ArchiveError]]:
    """The files of these names at the root of a gzip-compressed tar, each with its content, or with an error where that
    is larger than max_bytes.

    body: a readable stream, which is read no further than asked for. Memory is constant whatever the archive claims:
    tarfile parses the headers but does not walk the archive, as it takes a damaged header or a missing end for the end,
    and holds any number of extension headers of any size in memory. Raises ArchiveError when the archive is damaged,
    not a gzip tar, hostile, or too large for the time left.
    """

    def take(size: int, keep: bool = True) -> bytes:
        """The next size bytes, b"" unless kept; the padding to whole blocks is skipped."""
        left, parts = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, []
        while left > 0:
            if out_of_time():
                raise ArchiveError(f"the archive was too large to be searched for {' and '.join(wanted)} in time")
            part = stream.read(min(left, UNPACK_BYTES))
            if not part:
                raise ArchiveError("the archive is cut off")
            left -= len(part)
            if keep:
                parts.append(part)
        return b"".join(parts)[:size]

    extended: dict[bytes, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=body) as stream:
            while (block := take(tarfile.BLOCKSIZE)).strip(b"\0"):
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if member.size < 0:
                    raise ArchiveError("the archive has a member of negative size")
                if member.type in TAR_EXTENSION_TYPES:
                    if member.size > TAR_EXTENSION_MAX_BYTES:
                        raise ArchiveError(f"the archive has an extended header of {member.size} bytes")
                    extended = parse_extension(member.type, take(member.size))
                    continue
                name = extended.get(b"path", member.name.encode(errors="replace")).decode(errors="replace")
                size = int(extended.get(b"size", member.size))
                extended = {}
                name = name.removeprefix("./")
                is_wanted = name in wanted and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                if is_wanted and size <= max_bytes:
                    yield name, take(size)
                    continue
                if is_wanted:
                    yield name, ArchiveError(f"{name} has {size} bytes; at most {max_bytes} are read")
                if member.type in TAR_CONTENT_TYPES:
                    take(size, keep=False)
    except (gzip.BadGzipFile, zlib.error, EOFError, tarfile.HeaderError, ValueError) as error:
        raise ArchiveError(f"the archive is no intact .tar.gz: {error}") from error


def parse_extension(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """What an extension header says of the next member's path and size. Raises ArchiveError when it is malformed."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {b"path": data.rstrip(b"\0")}
    # POSIX pax: "<length> <key>=<value>\n" each.
    if not re.match(rb"[0-9]+ [^=]+=", data):
        raise ArchiveError("the archive has a malformed extended header")
    return dict(re.findall(rb"(?m)^[0-9]{1,9} (path|size)=(.*)$", data))


def parse_json(data: bytes, name: str) -> Any:
    """The content of a JSON file, which errors name. Raises ArchiveError when it is not plain JSON."""

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ArchiveError(f"{name} has the key {key!r:.80} more than once")
            result[key] = value
        return result

    try:
        return json.loads(data, object_pairs_hook=reject_duplicates)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name} is no JSON: {error!s:.200}") from error


def is_figures(it: dict[str, Any]) -> bool:
    named = all(0 < len(name) <= NAME_MAX and name.isprintable() for name in it)
    # Larger numbers are finite, but their differences may not be.
    return named and 0 < len(it) <= METRICS_MAX and all(abs(finite(value)) < 1e300 for value in it.values())  # type: ignore[arg-type]


# The fields of a JSON object: what each must be, and its test. One that raises is not passed, so none asks for types.
Fields = Mapping[str, tuple[str, Callable[[Any], object]]]
FIGURES = (f"1 to {METRICS_MAX} finite numbers, named in at most {NAME_MAX} characters", is_figures)
# Without lone surrogates, which cannot be sent as UTF-8.
GOLDEN_TEXT = (f"a text of 1 to {TEXT_MAX} characters", re.compile(f"[^\ud800-\udfff]{{1,{TEXT_MAX}}}").fullmatch)
SHARE = ("a number from 0 to 1", lambda it: 0 <= finite(it) <= 1)  # type: ignore[operator]
STATUSES = (COMPARED, RESPELT, *UNCOMPARED)
CHAMPION_FIELDS: Fields = {
    "job": ("the name of a training job", lambda it: JOB_NAME.fullmatch(it)),  # type: ignore[has-type]
    "status": (f"one of {', '.join(STATUSES)}", STATUSES.__contains__),
    "compared": ("true or false", lambda it: type(it) is bool),
    "note": (f"a line of up to {NOTE_MAX} characters", lambda it: len(it) <= NOTE_MAX and it.isprintable()),
    "respelt": (f"a line of up to {NOTE_MAX} characters", lambda it: len(it) <= NOTE_MAX and it.isprintable()),
    "kept": ("null or a number from 0 to 1", lambda it: it is None or SHARE[1](it)),
    "sets": ("at most two objects", lambda it: type(it) is list and len(it) <= 2 and {*map(type, it)} <= {dict}),
}
COMPARED_SET_FIELDS: Fields = {
    "name": (f"{NEW_HOLDOUT} or {LIVE_HOLDOUT}", lambda it: it in (NEW_HOLDOUT, LIVE_HOLDOUT)),
    "rows": ("a number of rows", lambda it: type(it) is int and 0 < it <= 10**9),
    "live": FIGURES,
    "new": FIGURES,
    "error": (f"{FIGURES[0]} of at least 0", lambda it: it == {} or (is_figures(it) and min(it.values()) >= 0)),
}
GOLDEN_FIELDS: Fields = {"text": GOLDEN_TEXT, "label": GOLDEN_TEXT, "score": SHARE}


def checked(value: Any, fields: Fields, where: str) -> Any:
    """These fields of a JSON object; a missing one is null. Raises ArchiveError naming the place and the value."""
    if not isinstance(value, dict):
        raise ArchiveError(f"{where} must be an object, not {reprlib.repr(value)}")
    for name, (what, test) in fields.items():
        try:
            good = test(value.get(name))
        except (AttributeError, TypeError):
            good = False
        if not good:
            raise ArchiveError(f"{where}: {name} must be {what}, not {reprlib.repr(value.get(name))}")
    return {name: value.get(name) for name in fields}


def parse_metrics(data: bytes) -> dict[str, Any]:
    """The metrics. Raises ArchiveError when they are not a plain JSON object."""
    metrics = parse_json(data, METRICS_FILE)
    if isinstance(metrics, dict):
        return metrics
    raise ArchiveError(f"{METRICS_FILE} is no JSON object but {type(metrics).__name__}")


def parse_told(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What metrics.json tells of the data, as rows (name, text), plain; {} when it says nothing: programs of an earlier
    version, or of somebody else's. Raises ArchiveError when it is malformed."""
    told = metrics.get("told")
    if told is None:
        return {}
    what = f"at most {TOLD_MAX_ROWS} texts of up to {TOLD_MAX} characters, named in 1 to {NAME_MAX}"
    if not isinstance(told, dict) or len(told) > TOLD_MAX_ROWS:
        raise ArchiveError(f'{METRICS_FILE}: "told" must be {what}, not {reprlib.repr(told)}')
    for name, text in told.items():
        if not 0 < len(name) <= NAME_MAX or not isinstance(text, str) or len(text) > TOLD_MAX:
            raise ArchiveError(f'{METRICS_FILE}: "told" must be {what}, not {reprlib.repr({name: text})}')
    return {plain(name, NAME_MAX): plain(text, TOLD_MAX) for name, text in told.items()}


def parse_champion(metrics: Mapping[str, Any], live: str | None = None) -> Champion | None:
    """What metrics.json says of the live model; None when there was none. live: the one that the job was given.
    Raises ArchiveError when it is malformed."""
    written = metrics.get("champion")
    if written is None:
        return no_comparison(live, "not written") if live else None
    where = f'{METRICS_FILE}: "champion"'
    if isinstance(written, dict):
        # Programs of an earlier version say nothing but whether they compared.
        written = {"status": COMPARED if written.get("sets") else "not said", "respelt": ""} | written
    champion: Champion = checked(written, CHAMPION_FIELDS, where)
    champion["note"], champion["respelt"] = (plain(champion[line], NOTE_MAX) for line in ("note", "respelt"))
    for at, one in enumerate(champion["sets"]):
        judged: ComparedSet = checked({"error": {}} | one, COMPARED_SET_FIELDS, f"{where}: set {at}")
        judged["error"] = judged["error"] or dict.fromkeys(judged["live"], 0.0)
        champion["sets"][at] = judged
        if not judged["live"].keys() == judged["new"].keys() == judged["error"].keys():
            raise ArchiveError(f"{where}: set {at}: live, new and error have different metrics")
    names, status = [judged["name"] for judged in champion["sets"]], champion["status"]
    if not champion["compared"] == (status in (COMPARED, RESPELT)) == bool(names) or len(names) > len(set(names)):
        raise ArchiveError(f"{where}: compared is {champion['compared']}, status {status}, and the sets are {names}")
    if champion["compared"] and bool(champion["respelt"]) != (status == RESPELT):
        raise ArchiveError(f"{where}: status is {status}, and respelt is {champion['respelt']!r:.100}")
    if live and champion["job"] != live:
        return no_comparison(live, "another model", f"{METRICS_FILE} compares with {champion['job']}.")
    return champion


def no_comparison(live: str, status: str, note: str = "") -> Champion:
    return Champion(job=live, status=status, compared=False, note=note, respelt="", kept=None, sets=[])


def parse_golden(data: bytes | ArchiveError) -> list[dict[str, Any]]:
    """The golden rows: text, label and score. Raises ArchiveError when there are none that can be used."""
    if isinstance(data, ArchiveError):
        raise data
    rows = parse_json(data, GOLDEN_FILE)
    if not isinstance(rows, list) or not 0 < len(rows) <= GOLDEN_MAX_ROWS:
        raise ArchiveError(f"{GOLDEN_FILE} is no list of 1 to {GOLDEN_MAX_ROWS} rows")
    for at, row in enumerate(rows):
        if checked(row, GOLDEN_FIELDS, f"{GOLDEN_FILE}: row {at}") != row:
            raise ArchiveError(f"{GOLDEN_FILE}: row {at} has more than a text, a label and a score")
    return rows


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the job's name and the outcome; raises when AWS fails, so that Lambda retries."""
    config = settings()
    event, request_id = unwrap(event, context)
    if event.get("source") == "sweep":
        job, outcome = "", decide_overdue(config, request_id, context.get_remaining_time_in_millis)
    else:
        job, outcome = field(field(event, "detail", dict), "TrainingJobName", str), "not ours"
        if JOB_NAME.fullmatch(job):
            outcome = decide(job, config, request_id, context.get_remaining_time_in_millis)
    log.info("%s: %s", "training job handled" if job else "sweep", outcome, extra={"training_job": job or None})
    return {"training_job": job, "outcome": outcome}


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
