"""Model evaluator: judges a finished training job and approves its model or does not.

Triggers: EventBridge, SageMaker "Training Job State Change" to Completed, Failed or Stopped, and a schedule
("sweep"), which finds the jobs that ended without their event.
It reads the metrics out of the job's archives as a stream, compares each with its threshold and with what the
live model reaches on the same rows, copies an approved model inside S3 to models/approved/, tells people, and
writes the decision record.
It never unpacks an archive to disk, never holds a model in memory, and leaves other people's jobs alone.
"""

from __future__ import annotations

import functools
import gzip
import json
import logging
import math
import os
import random
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError


METRICS_FILE = "metrics.json"
# JSON takes some thirty times its bytes in memory: with these limits, little beside what the process takes itself.
METRICS_MAX_BYTES = 128 * 1024
GOLDEN_FILE = "golden.json"
GOLDEN_MAX_BYTES = 128 * 1024
GOLDEN_MAX_ROWS = 20
# Of a text or a label.
GOLDEN_MAX_CHARACTERS = 512
NOTE_MAX_CHARACTERS = 1000
METRIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
LESS_IS_BETTER = ("eval_loss",)
NEW_HOLDOUT = "new hold-out"
LIVE_HOLDOUT = "hold-out of the live model"
# Of the live model's training rows: with so many of them in the new data, that is more of the same.
KEPT_SHARE = 0.95
# One-sided 95 % of a normal distribution, in standard errors.
CONFIDENCE = 1.645
# How many times the margin may be lost to chance, by data that has the live model's in it.
MOST_MARGINS = 2
# A difference of two figures is not exact: a loss of just the margin is within it.
ROUNDING = 1e-9
RIVALS_NAMED = 5
# A pax header or a long name above this is no archive that SageMaker wrote.
TAR_EXTENSION_MAX_BYTES = 64 * 1024
TAR_BLOCK_BYTES = 512
READ_BYTES = 256 * 1024
# What is left of the function's time when the search for the metrics ends, for telling and recording.
RESERVE_MILLISECONDS = 60_000
# A sweep begins a further evaluation only with this much time left, so that the search for the metrics has enough.
SWEEP_MILLISECONDS = 240_000

DELETED = "the training job does not exist any more: somebody deleted it in SageMaker"
GIVEN_UP = (
    f"its evaluation failed {GIVE_UP_TRIES} times; the reason is in the log of the model evaluator (make logs). "
    "Once that is mended, make retrain trains again on the same data"
)


class ArchiveError(Exception):
    """The job's archive or its metrics cannot be used; the text is a reason that a person can read."""


Thresholds = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """What the function reads from its environment, once. Thresholds: {metric: {"min" and/or "max": number}}.

    champion_margin: what a model may be worse than the live one, in units of each metric.
    """

    bucket: str
    project: str
    topic_arn: str
    thresholds: Thresholds
    model_thresholds: dict[str, Thresholds]
    champion_margin: float

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings. Raises ConfigError naming the variable that is missing or malformed."""
        per_model = json_object(env, "MODEL_THRESHOLDS")
        return cls(
            bucket=required(env, "BUCKET"),
            project=required(env, "PROJECT"),
            topic_arn=required(env, "TOPIC_ARN"),
            thresholds=parse_thresholds("THRESHOLDS", json_object(env, "THRESHOLDS")),
            model_thresholds={
                model: parse_thresholds(f"MODEL_THRESHOLDS[{model}]", gate) for model, gate in per_model.items()
            },
            champion_margin=number_from_zero(env, "CHAMPION_MARGIN"),
        )

    def gate(self, model: str) -> Thresholds:
        """The thresholds for a model: its own set where it has one, else the default set."""
        return self.model_thresholds.get(model, self.thresholds)


@dataclass(frozen=True)
class Check:
    """One metric against one bound: a threshold, or what the live model reaches on the same rows.

    live: the live model's value, None where a threshold is checked; rows: what both were judged on.
    The reason is a sentence for people.
    """

    metric: str
    direction: str
    threshold: float
    value: float | None
    passed: bool
    reason: str
    rows: str = "hold-out"
    live: float | None = None


# --- settings ---------------------------------------------------------------------------------------


def number_from_zero(env: Mapping[str, str], name: str) -> float:
    """The variable as a number of at least zero. Raises ConfigError otherwise."""
    value = required(env, name)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?([eE]-[0-9]{1,2})?", value):
        raise ConfigError(f"environment variable {name} must be a number of at least 0, not {value!r}")
    return float(value)


def parse_thresholds(name: str, value: object) -> Thresholds:
    """Check a set of thresholds. Raises ConfigError naming the metric that is off."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{name} must name at least one metric, not {value!r}")
    for metric, bounds in value.items():
        if not isinstance(bounds, dict) or not bounds or set(bounds) - {"min", "max"}:
            raise ConfigError(f'{name}: {metric} must have "min", "max" or both, not {bounds!r}')
        for direction, bound in bounds.items():
            if number(bound) is None:
                raise ConfigError(f"{name}: {metric}: {direction} must be a finite number, not {bound!r}")
    return value


# --- reading archives -------------------------------------------------------------------------------


def read_exactly(stream: BinaryIO | gzip.GzipFile, size: int) -> bytes:
    """Read size bytes. Raises ArchiveError when the stream ends before."""
    parts = []
    while size > 0:
        part = stream.read(min(size, READ_BYTES))
        if not part:
            raise ArchiveError("the archive is cut off")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def skip(stream: gzip.GzipFile, size: int, check_time: Callable[[], None]) -> None:
    """Read and forget size bytes. Raises ArchiveError when the stream or the time ends before."""
    while size > 0:
        check_time()
        part = stream.read(min(size, READ_BYTES))
        if not part:
            raise ArchiveError("the archive is cut off")
        size -= len(part)


def padded(size: int) -> int:
    return -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES


def pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax extended header, "<length> <key>=<value>\\n" each (POSIX pax)."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length[:9]) <= len(data):
            raise ArchiveError("the archive has a malformed extended header")
        key, _, value = data[len(length) + 1 : int(length) - 1].decode(errors="replace").partition("=")
        records[key] = value
        data = data[int(length) :]
    return records


def find_file(body: Any, wanted: str, max_bytes: int, out_of_time: Callable[[], bool]) -> bytes | None:
    """The bytes of a file at the root of a gzip-compressed tar; None when there is none of that name.

    body: a readable stream of bytes. Stops at the first hit, so its cost is that of what stands before it.
    Memory is constant whatever the archive claims: the standard library's tarfile would read an extended
    header of any size into memory and keep every member, so only its parser of one 512-byte header is used.
    Raises ArchiveError when the archive is damaged, no gzip tar, hostile, or too large for the time left, or the file
    has more than max_bytes.
    """

    def check_time() -> None:
        if out_of_time():
            raise ArchiveError(f"the archive was too large to be searched for {wanted} in time")

    long_name, long_size = "", 0
    try:
        with gzip.GzipFile(fileobj=body) as stream:
            while True:
                check_time()
                block = read_exactly(stream, TAR_BLOCK_BYTES)
                if not block.strip(b"\0"):
                    return None
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if member.size < 0:
                    raise ArchiveError("the archive has a member of negative size")
                if member.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                    if member.size > TAR_EXTENSION_MAX_BYTES:
                        raise ArchiveError(f"the archive has an extended header of {member.size} bytes")
                    data = read_exactly(stream, padded(member.size))[: member.size]
                    if member.type == tarfile.GNUTYPE_LONGNAME:
                        long_name = data.rstrip(b"\0").decode(errors="replace")
                    else:
                        records = pax_records(data)
                        long_name = records.get("path", "")
                        size_text = records.get("size", "0")
                        if not re.fullmatch(r"[0-9]{1,18}", size_text):
                            raise ArchiveError("the archive has a malformed extended header")
                        long_size = int(size_text)
                    continue
                name = (long_name or member.name).removeprefix("./")
                size = long_size or member.size
                long_name, long_size = "", 0
                if name == wanted and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    if size > max_bytes:
                        raise ArchiveError(f"{wanted} has {size} bytes; at most {max_bytes} are read")
                    return read_exactly(stream, size)
                # Links, devices and folders have no content, whatever their header's size says.
                if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.XGLTYPE, tarfile.CONTTYPE,
                                   tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE):  # fmt: skip
                    skip(stream, padded(size), check_time)
    except (gzip.BadGzipFile, zlib.error, EOFError, tarfile.HeaderError, ValueError) as error:
        raise ArchiveError(f"the archive is no intact .tar.gz: {error}") from error


def parse_json(data: bytes, name: str) -> Any:
    """The content of a JSON file, which is named in the reason. Raises ArchiveError when it is no plain JSON."""

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


def parse_metrics(data: bytes) -> dict[str, Any]:
    """The metrics as a dictionary. Raises ArchiveError when they are no plain JSON object."""
    metrics = parse_json(data, METRICS_FILE)
    if not isinstance(metrics, dict):
        raise ArchiveError(f"{METRICS_FILE} is no JSON object but {type(metrics).__name__}")
    return metrics


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise ArchiveError(reason)


def parse_champion(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What metrics.json says of the live model, checked; None when there was none.

    {"job", "compared", "note", "kept": share of the live model's training rows that the new one had, or None,
    "sets": [{"name", "rows", "live": {metric: value}, "new": {metric: value}, "error": {metric: standard error of
    their difference}}]}.
    Raises ArchiveError when it is anything else: the project's own training program writes it.
    """
    block = metrics.get("champion")
    if block is None:
        return None
    where = f'{METRICS_FILE}: "champion"'
    require(isinstance(block, dict), f"{where} is no object")
    job, compared, note, sets = (block.get(name) for name in ("job", "compared", "note", "sets"))
    require(isinstance(job, str) and JOB_NAME.fullmatch(job) is not None, f"{where}: the job is {job!r:.80}")
    plain = isinstance(note, str) and len(note) <= NOTE_MAX_CHARACTERS and note.isprintable()
    require(plain, f"{where}: the note is no single line of at most {NOTE_MAX_CHARACTERS} characters")
    require(isinstance(sets, list) and len(sets) <= 2, f"{where}: the sets are no list of at most two")
    kept = block.get("kept")
    share = number(kept)
    require(kept is None or (share is not None and 0 <= share <= 1), f"{where}: the share kept is {kept!r:.40}")
    found: dict[str, dict[str, Any]] = {}
    for item in sets:
        require(isinstance(item, dict), f"{where}: a set is no object")
        name, rows = item.get("name"), item.get("rows")
        require(name in (NEW_HOLDOUT, LIVE_HOLDOUT) and name not in found, f"{where}: a set is named {name!r:.80}")
        require(type(rows) is int and 0 < rows <= 10**9, f"{where}: {name}: the rows are {rows!r:.80}")
        live, new = (parse_figures(item.get(which), f"{where}: {name}: {which}") for which in ("live", "new"))
        require(live.keys() == new.keys(), f"{where}: {name}: the two models have different metrics")
        error = parse_figures(item["error"], f"{where}: {name}: error") if "error" in item else dict.fromkeys(live, 0.0)
        require(error.keys() == live.keys() and min(error.values()) >= 0, f"{where}: {name}: the errors are off")
        found[name] = {"name": name, "rows": rows, "live": live, "new": new, "error": error}
    require(compared is bool(found), f"{where}: it says compared: {compared!r:.80}, with {len(found)} sets")
    return {"job": job, "compared": compared, "note": note, "kept": share, "sets": list(found.values())}


def parse_figures(value: object, where: str) -> dict[str, float]:
    """A few finite numbers by metric. Raises ArchiveError otherwise."""
    require(isinstance(value, dict) and 0 < len(value) <= 20, f"{where} is no object of 1 to 20 metrics")
    figures = {}
    for metric, figure in value.items():  # type: ignore[attr-defined]
        finite = number(figure)
        if not METRIC_NAME.fullmatch(metric) or finite is None:
            raise ArchiveError(f"{where}: {metric!r:.80} is {figure!r:.40}, not a finite number")
        figures[metric] = finite
    return figures


def parse_golden(data: bytes) -> list[dict[str, Any]]:
    """The golden rows: texts, each with the label and the score (0 to 1) that the endpoint is to answer.

    Raises ArchiveError when they are anything else.
    """
    rows = parse_json(data, GOLDEN_FILE)
    few = isinstance(rows, list) and 0 < len(rows) <= GOLDEN_MAX_ROWS
    require(few, f"{GOLDEN_FILE} is no list of 1 to {GOLDEN_MAX_ROWS} rows")
    for at, row in enumerate(rows):
        where = f"{GOLDEN_FILE}: row {at}"
        require(isinstance(row, dict) and row.keys() == {"text", "label", "score"}, f"{where} is no text, label, score")
        for name in ("text", "label"):
            value = row[name]
            # A lone surrogate is no text: it cannot be sent as UTF-8.
            good = isinstance(value, str) and value and not re.search("[\ud800-\udfff]", value)
            require(bool(good), f"{where}: the {name} is no text")
            require(len(value) <= GOLDEN_MAX_CHARACTERS, f"{where}: the {name} has {len(value)} characters")
        score = number(row["score"])
        require(score is not None and 0 <= score <= 1, f"{where}: the score is {row['score']!r:.40}")
    return list(rows)


# --- the gate ---------------------------------------------------------------------------------------


def number(value: object) -> float | None:
    """The value as a finite float; None for anything else, booleans, NaN and infinities included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def judge(metrics: Mapping[str, Any], gate: Thresholds) -> list[Check]:
    """Compare the metrics with the gate, a check for each bound; a metric that is no finite number fails."""
    checks = []
    for metric, bounds in sorted(gate.items()):
        value = number(metrics.get(metric))
        for direction, bound in sorted(bounds.items(), reverse=True):
            wanted = f"{'at least' if direction == 'min' else 'at most'} {bound:g}"
            if value is None:
                passed = False
                got = f"is {metrics[metric]!r:.40}, not a finite number" if metric in metrics else "is missing"
                reason = f"{metric} {got}; required is {wanted}"
            else:
                passed = value >= bound if direction == "min" else value <= bound
                reason = f"{metric} is {value:.6g}; required is {wanted}"
            checks.append(Check(metric, direction, float(bound), value, passed, reason))
    return checks


def compare(
    champion: Mapping[str, Any],
    gate: Thresholds,
    margin: float,
    below_best: Mapping[str, float],
    rivals: Mapping[str, Mapping[str, float]],
) -> tuple[list[Check], dict[str, float]]:
    """Compare the new model with the live one: a check for each metric of the gate on each set of rows.

    No metric may be worse than the live model's by more than the margin; where the new data has the live model's in it
    and a loss is within one standard error, up to MOST_MARGINS of it: a few hundred rows do not tell apart models that
    differ by a point, and data that grows is not to be refused for that. On the live model's own hold-out, which is
    handed on from model to model, three more things count, or small losses would add up:
    below_best: {metric: what the live model is itself worse than the best before it}, which the margin covers, too;
    rivals: {job: figures on that hold-out} of models that were approved after the live one;
    and unless the new data has the live model's in it, the loss must be ruled out, not just not be seen.
    Returns the checks, and what the new model is worse than the best of them: the next one's below_best.
    """
    checks = []
    lost = dict(below_best)
    more_of_the_same = (champion["kept"] or 0.0) >= KEPT_SHARE
    for judged in champion["sets"]:
        rows = f"{judged['name']} ({judged['rows']} rows)"
        for metric in sorted(gate.keys() & judged["new"].keys()):
            sign = -1 if metric in LESS_IS_BETTER else 1
            live, value = judged["live"][metric], judged["new"][metric]
            allowed = max(margin, min(judged["error"][metric], MOST_MARGINS * margin)) if more_of_the_same else margin
            bound = live - sign * allowed
            lose = f"at most {allowed:.4g} may be lost" + (", as that much is chance" if allowed > margin else "")
            said = f"the live model has {live:.6g}, and {lose}"
            if judged["name"] == LIVE_HOLDOUT:
                # What was lost under a larger margin than today's was meant to be.
                before = below_best.get(metric, 0.0)
                if before > MOST_MARGINS * margin + ROUNDING:
                    before = 0.0
                best = live + sign * before
                if before:
                    bound = best - sign * allowed
                    said += f", of which {before:.6g} are lost already since the best model before it"
                for job, figures in rivals.items():
                    if metric in figures and sign * figures[metric] > sign * best:
                        best = figures[metric]
                        bound = best - sign * allowed
                        said = f"{job}, approved meanwhile, has {best:.6g}, and {lose}"
                lost[metric] = max(sign * (best - value), 0.0)
                chance = 0.0 if more_of_the_same else CONFIDENCE * judged["error"][metric]
                if chance:
                    bound += sign * chance
                    said += f", and {chance:.6g} could be chance, as the new data has not the live model's in it"
            passed = sign * value >= sign * bound - ROUNDING
            reason = f"{metric} on the {rows} is {value:.6g}; {said}"
            checks.append(Check(metric, "min" if sign == 1 else "max", bound, value, passed, reason, rows, live))
    return checks, lost


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the metrics, at most 100: what is worth keeping in a decision record."""
    numbers = {str(name)[:100]: number(value) for name, value in metrics.items()}
    return {name: value for name, value in list(numbers.items())[:100] if value is not None}


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


def artifact_key(bucket: str, job: str, description: Mapping[str, Any]) -> str:
    """The key of the job's model.tar.gz. Raises ArchiveError when the job left none where it belongs."""
    uri = (description.get("ModelArtifacts") or {}).get("S3ModelArtifacts") or ""
    prefix = f"s3://{bucket}/{RAW_MODEL_PREFIX}{job}/"
    if not uri:
        raise ArchiveError("the job completed without a model artifact")
    if not uri.startswith(prefix):
        raise ArchiveError(f"the job's model artifact is at {uri:.200}, not under {prefix}")
    return str(uri.removeprefix(f"s3://{bucket}/"))


def read_metrics(bucket: str, model_key: str, out_of_time: Callable[[], bool]) -> dict[str, Any]:
    """The job's metrics: from the small output archive, else from the model archive. Raises ArchiveError."""
    for key in (model_key.rsplit("/", 1)[0] + "/output.tar.gz", model_key):
        try:
            body = client("s3").get_object(Bucket=bucket, Key=key)["Body"]
        except ClientError as error:
            if error_code(error) in ("NoSuchKey", "404"):
                continue
            raise
        with body:
            data = find_file(body, METRICS_FILE, METRICS_MAX_BYTES, out_of_time)
        if data is not None:
            return parse_metrics(data)
    raise ArchiveError(f"neither the output archive nor the model archive has a {METRICS_FILE} at its root")


def read_golden(bucket: str, model_key: str, out_of_time: Callable[[], bool]) -> list[dict[str, Any]]:
    """The job's golden rows, from the output archive. Raises ArchiveError when there are none that can be used."""
    try:
        body = client("s3").get_object(Bucket=bucket, Key=model_key.rsplit("/", 1)[0] + "/output.tar.gz")["Body"]
    except ClientError as error:
        if error_code(error) in ("NoSuchKey", "404"):
            raise ArchiveError("the job wrote no output archive") from error
        raise
    with body:
        data = find_file(body, GOLDEN_FILE, GOLDEN_MAX_BYTES, out_of_time)
    if data is None:
        raise ArchiveError(f"the job wrote no {GOLDEN_FILE}")
    return parse_golden(data)


def approved_since(bucket: str, model: str, job: str) -> list[str]:
    """The names of the model's jobs approved so far that are newer than the given one (names sort by time)."""
    prefix = f"{APPROVED_PREFIX}{model}/"
    pages = client("s3").get_paginator("list_objects_v2").paginate(
        # "~" sorts behind every key of the job itself.
        Bucket=bucket, Prefix=prefix, StartAfter=f"{prefix}{job}/~"
    )  # fmt: skip
    names = {item["Key"].removeprefix(prefix).split("/")[0] for page in pages for item in page.get("Contents", [])}
    return sorted(name for name in names if JOB_NAME.fullmatch(name))


def champion_of(decision: Mapping[str, Any] | None) -> dict[str, Any]:
    return ((decision or {}).get("champion")) or {}


def read_rivals(config: Settings, source: Mapping[str, Any], job: str) -> dict[str, dict[str, float]]:
    """Models that were approved while this one trained, one of which may be live by now, with their figures on the
    hold-out of the live model (that of the job, "" for none): {} where they were not compared with the same one."""
    rivals: dict[str, dict[str, float]] = {}
    for name in approved_since(config.bucket, source["model"], job):
        if name == source["job"]:
            continue
        rival = champion_of(read_json(config.bucket, f"{DECISION_PREFIX}{name}.json")[0])
        sets = rival["sets"] if rival.get("job") == job else []
        rivals[name] = next((judged["new"] for judged in sets if judged["name"] == LIVE_HOLDOUT), {})
    return rivals


def approve(config: Settings, source: Mapping[str, Any], artifact: Mapping[str, Any]) -> str:
    """Copy the artifact to the approved models, once, and return the key there."""
    key = f"{APPROVED_PREFIX}{source['model']}/{source['job']}/model.tar.gz"
    metadata = {"source-etag": artifact["etag"], "training-job": source["job"]}
    try:
        present = client("s3").head_object(Bucket=config.bucket, Key=key)["Metadata"]
        if present.get("source-etag") == artifact["etag"]:
            return key
    except ClientError as error:
        if error_code(error) not in ("404", "NoSuchKey"):
            raise
    copy_object(
        config.bucket,
        key,
        {"Bucket": config.bucket, "Key": artifact["key"]},
        artifact["size"],
        f'"{artifact["etag"]}"',
        metadata,
    )
    return key


def evaluate(
    config: Settings, source: Mapping[str, Any], description: Mapping[str, Any], out_of_time: Callable[[], bool]
) -> dict[str, Any]:
    """The decision on a terminal job: verdict approved, rejected, failed or stopped, and why."""
    decision: dict[str, Any] = {
        "schema": SCHEMA,
        "job": source["job"],
        "model": source["model"],
        "data": {name: source.get(name) for name in ("bucket", "key", "version_id", "etag", "size")},
        "artifact": None,
        "metrics": {},
        "thresholds": config.gate(source["model"]),
        "checks": [],
        "champion": None,
        "rivals": {},
        "golden": [],
        "golden_note": "",
        "approved_key": None,
    }
    status = description["TrainingJobStatus"]
    if status == "Failed":
        reason = description.get("FailureReason") or "SageMaker gave no reason; see the job's log"
        return decision | {"verdict": "failed", "reason": reason}
    if status == "Stopped":
        secondary = description.get("SecondaryStatus", "Stopped")
        limit = description.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 0)
        reason = (
            f"it reached its time limit of {limit / 3600:g} h (training_max_runtime_seconds)"
            if secondary in ("MaxRuntimeExceeded", "MaxWaitTimeExceeded")
            else "somebody stopped it"
        )
        return decision | {"verdict": "stopped", "reason": reason}
    try:
        key = artifact_key(config.bucket, source["job"], description)
        try:
            head = client("s3").head_object(Bucket=config.bucket, Key=key)
        except ClientError as error:
            if error_code(error) in ("404", "NoSuchKey"):
                raise ArchiveError(f"the model artifact s3://{config.bucket}/{key} is gone") from error
            raise
        decision["artifact"] = {"key": key, "size": head["ContentLength"], "etag": head["ETag"].strip('"')}
        metrics = read_metrics(config.bucket, key, out_of_time)
        champion = parse_champion(metrics)
        job = (description.get("Environment") or {}).get("CHAMPION_JOB")
        if champion is None and job:
            note = f"The training program wrote no comparison into {METRICS_FILE}."
            champion = {"job": job, "compared": False, "note": note, "kept": None, "sets": []}
        elif champion is not None and job and champion["job"] != job:
            raise ArchiveError(f"{METRICS_FILE} compares with {champion['job']}, not with the live model {job}")
    except ArchiveError as error:
        return decision | {"verdict": "rejected", "reason": str(error)}
    checks = judge(metrics, decision["thresholds"])
    rivals = read_rivals(config, source, champion["job"] if champion is not None else "")
    if champion is not None and champion["compared"]:
        live, _ = read_json(config.bucket, f"{DECISION_PREFIX}{champion['job']}.json")
        below_best = champion_of(live).get("below_best", {})
        compared, lost = compare(champion, decision["thresholds"], config.champion_margin, below_best, rivals)
        checks += compared
        champion |= {"margin": config.champion_margin, "below_best": lost}
    failed = [check.reason for check in checks if not check.passed]
    if not failed:
        try:
            decision["golden"] = read_golden(config.bucket, key, out_of_time)
        except ArchiveError as error:
            decision["golden_note"] = str(error)
    return decision | {
        "metrics": plain_metrics(metrics),
        "checks": [asdict(check) for check in checks],
        "champion": champion,
        "rivals": rivals,
        "verdict": "rejected" if failed else "approved",
        "reason": "; ".join(failed) or "every metric is within its threshold",
    }


def check_table(checks: Sequence[Mapping[str, Any]]) -> str:
    """The gate's checks as aligned lines for an email."""
    rows = [("metric", "on", "new", "live", "required", "")]
    for check in checks:
        value = "none" if check["value"] is None else f"{check['value']:.6g}"
        live = "" if check["live"] is None else f"{check['live']:.6g}"
        wanted = f"{'at least' if check['direction'] == 'min' else 'at most'} {check['threshold']:.6g}"
        verdict = "passed" if check["passed"] else "NOT PASSED"
        rows.append((check["metric"], check["rows"], value, live, wanted, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip() for row in rows
    )


def rivals_text(decision: Mapping[str, Any]) -> str:
    """What people should know of approved models that this one was not compared with; "" when there are none."""
    unknown = [job for job, figures in decision["rivals"].items() if not figures]
    if not unknown or decision["verdict"] != "approved":
        return ""
    rest = len(unknown) - RIVALS_NAMED
    names = ", ".join(unknown[:RIVALS_NAMED]) + (f" and {rest} more" if rest > 0 else "")
    return (
        f"Approved by now, but not live when this training began, and so not compared with: {names}. The newest upload "
        f"is the one that serves; for another: make rollback MODEL={decision['model']} TO=<job>.\n"
    )


def champion_text(champion: Mapping[str, Any] | None) -> str:
    """What the comparison with the live model was, for an email."""
    if champion is None:
        return "There was no live model to compare with when this training began: the thresholds alone count."
    if not champion["compared"]:
        return f"Not compared with the live model {champion['job']}: the thresholds alone count. {champion['note']}"
    return (
        f"Compared with the live model {champion['job']}, both on the same rows, which neither was trained on. "
        f"{champion['note']}"
    ).rstrip()


def tell(config: Settings, decision: Mapping[str, Any]) -> None:
    """The notification on a decision."""
    job, model, reason = decision["job"], decision["model"], decision["reason"]
    data = decision["data"]
    rows: list[tuple[str, object]] = [
        ("model", model),
        ("training job", job),
        ("data", f"s3://{data['bucket']}/{data['key']}"),
    ]
    champion = decision["champion"]
    compared = f"{champion_text(champion)}\n{rivals_text(decision)}"
    numbers = f"\n{check_table(decision['checks'])}\n\n{compared}" if decision["checks"] else ""
    counts = [
        (name.replace("_", " "), f"{decision['metrics'][name]:.0f}")
        for name in ("train_examples", "holdout_examples")
        if name in decision["metrics"]
    ]
    anyway = (
        "A CSV with the live model's rows and the new ones together makes a better model most surely.\n"
        "If this one is to replace the live model although that one does better: raise champion_margin in Terraform, "
        f"deploy, and upload the data again; or upload it for a model of its own, to {UPLOAD_PREFIX}<name>/.\n"
        if any(check["live"] is not None and not check["passed"] for check in decision["checks"])
        else ""
    )
    unaffected = "The endpoint is not touched: it keeps serving what it serves now."
    watch = f"See the log: make logs JOB={job}\n"
    name = data["key"].rsplit("/", 1)[-1]
    if decision["verdict"] == "approved":
        rows += [*counts, ("artifact", f"{human_bytes(decision['artifact']['size'])}")]
        if decision["golden_note"]:
            rows.append(
                ("golden rows", f"none, so the endpoint's answers will not be checked: {decision['golden_note']}")
            )
        subject = f"Model approved: {model} ({name})"
        newer = max(decision["rivals"], default="")
        then = (
            f"{newer}, of a later upload, is approved already and goes first: this one is for when that one fails."
            if newer > job
            else "It is deployed now; the next email says when that begins."
        )
        text = (
            f"The new model passed every check on rows that it was not trained on.\n\n{table(rows)}\n{numbers}\n"
            f"What next: nothing to do. {then}\n"
        )
    elif decision["verdict"] == "rejected":
        subject = f"Model rejected: {model} ({name})"
        text = (
            f"The training completed, but its model is not approved, so it is not deployed.\n\n"
            f"{table([*rows, *counts])}\n{numbers}\nWhy: {reason}.\n\n{unaffected}\n"
            f"What next: look at the data (are the labels right? are there enough rows of each?) and upload a "
            f"better CSV, or change the thresholds in Terraform.\n{anyway}{watch}"
        )
    else:
        ended = "failed" if decision["verdict"] == "failed" else "was stopped"
        subject = f"Training failed: {model} ({name})"
        text = (
            f"The training job {ended}; there is no new model.\n\n{table(rows)}\n\nWhy: {reason}\n\n{unaffected}\n"
            f"What next: correct what the reason names, then upload the CSV again.\n{watch}"
        )
    stage = "training" if decision["verdict"] in ("failed", "stopped") else "evaluation"
    publish(config.topic_arn, subject, text, stage=stage, status=decision["verdict"], model=model)


def describe(job: str) -> dict[str, Any] | None:
    """The training job as SageMaker has it; None when it has none of that name."""
    try:
        answer: dict[str, Any] = client("sagemaker").describe_training_job(TrainingJobName=job)
    except ClientError as error:
        if error_code(error) == "ValidationException" and "not found" in str(error):
            return None
        raise
    return answer


def handle(job: str, config: Settings, request_id: str, out_of_time: Callable[[], bool], given_up: bool = False) -> str:
    """Decide on one job; returns the outcome in a word. given_up: it could not be evaluated, and that is the verdict.

    The order is what makes a crash harmless: do it, tell people, write the record that says so.
    """
    source, _ = read_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/source.json")
    if source is None:
        return "not ours"
    decision_key = f"{DECISION_PREFIX}{job}.json"
    if read_json(config.bucket, decision_key)[0] is not None:
        return "already decided"
    description = describe(job)
    if description is None:
        # A job that was started a moment ago may not be seen yet.
        started, _ = read_json(config.bucket, f"{SNAPSHOT_PREFIX}{job}/started.json")
        if started is None or age(started["started_at"]) < LEASE_SECONDS:
            return "not ended"
        description = {"TrainingJobStatus": "Failed", "FailureReason": DELETED}
    if given_up:
        description = {"TrainingJobStatus": "Failed", "FailureReason": GIVEN_UP}
    if description["TrainingJobStatus"] not in TERMINAL:
        return "not ended"
    if not claim(config.bucket, "evaluate", job, request_id):
        return "in hand"
    decision = evaluate(config, source, description, out_of_time)
    if decision["verdict"] == "approved":
        decision["approved_key"] = approve(config, source, decision["artifact"])
    tell(config, decision)
    put_json(config.bucket, decision_key, decision | {"decided_at": now().isoformat()})
    return str(decision["verdict"])


def undecided(bucket: str) -> list[str]:
    """The jobs that were started and have no decision, oldest first, as far back as a sweep looks."""
    since = look_back()
    snapshots = [key.removeprefix(SNAPSHOT_PREFIX) for key in list_keys(bucket, SNAPSHOT_PREFIX, since)]
    decisions = [key.removeprefix(DECISION_PREFIX) for key in list_keys(bucket, DECISION_PREFIX, since)]
    started = {key.removesuffix("/started.json") for key in snapshots if key.endswith("/started.json")}
    return sorted(job for job in started - {key.removesuffix(".json") for key in decisions} if JOB_NAME.fullmatch(job))


def sweep(config: Settings, request_id: str, milliseconds_left: Callable[[], int]) -> str:
    """Decide on the jobs that ended and whose event was lost, or could not be handled; returns the outcome in words.

    Tries are counted before they are made, so that one that kills the function counts too; those that were tried
    more often come later, and keep nobody waiting.
    """
    if exists(config.bucket, PAUSED_KEY):
        return "paused"
    ended = []
    for job in undecided(config.bucket):
        description = describe(job)
        if description is None or description["TrainingJobStatus"] in TERMINAL:
            record, _ = read_json(config.bucket, f"claims/tries/{job}.json")
            ended.append((record["tries"] if record else 0, record["at"] if record else "", job))
    outcomes: list[str] = []
    for tries, at, job in sorted(ended):
        if tries >= EAGER_TRIES and age(at) < LATER_TRIES_SECONDS:
            continue
        if outcomes and milliseconds_left() < SWEEP_MILLISECONDS:
            break
        tried = {"schema": SCHEMA, "tries": tries + 1, "at": now().isoformat()}
        put_json(config.bucket, f"claims/tries/{job}.json", tried)
        outcome = handle(
            job, config, request_id, lambda: milliseconds_left() < RESERVE_MILLISECONDS, tries >= GIVE_UP_TRIES
        )
        log.info("training job handled by the sweep: %s", outcome, extra={"training_job": job})
        outcomes.append(outcome)
    return ", ".join(outcomes) or "nothing undecided"


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the job's name and the outcome; raises when AWS fails, so that Lambda retries."""
    config = settings()
    event, request_id = unwrap(event, context)
    if event.get("source") == "sweep":
        outcome = sweep(config, request_id, context.get_remaining_time_in_millis)
        log.info("sweep: %s", outcome, extra={"training_job": None})
        return {"training_job": "", "outcome": outcome}
    job = field(field(event, "detail", dict), "TrainingJobName", str)
    outcome = "not ours"
    if JOB_NAME.fullmatch(job):
        outcome = handle(
            job,
            config,
            request_id,
            lambda: context.get_remaining_time_in_millis() < RESERVE_MILLISECONDS,
        )
    log.info("training job handled: %s", outcome, extra={"training_job": job})
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
