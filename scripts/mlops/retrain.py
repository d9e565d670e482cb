"""mlops retrain: train again on the data of a job that has ended."""

from __future__ import annotations

import hashlib
import json

from mlops import bucket
from mlops.records import (
    JOB_NAME,
    PAUSED_KEY,
    SCHEMA,
    Retrained,
    decision_key,
    paused,
    rejected,
    rejected_key,
    retrained,
    snapshot_key,
    source,
)
from mlops.target import SWEEP, Target, UsageError, check_functions, invoke, who
from mlops.text import plain, say


def retrain(target: Target, job: str, by: str) -> None:
    """Train again on the snapshot of a job that has ended, under a new name.

    A job has at most one successor, named in its retrained.json before anything is copied: whoever reruns this
    finds it there. Once the successor has ended as well, its data is trained on again.
    Raises UsageError when the job is unknown or has not ended.
    """
    given = job
    if not JOB_NAME.fullmatch(job):
        raise UsageError(f"JOB={job} is not the name of a training job of this pipeline: see make status")
    while (successor := bucket.read(target, snapshot_key(job, "retrained.json"), retrained)) is not None:
        if not bucket.exists(target, snapshot_key(successor.value["job"], "source.json")):
            break
        job = successor.value["job"]
    is_paused = bucket.read(target, PAUSED_KEY, paused) is not None
    then = "the pipeline is paused: it starts after make resume" if is_paused else "an email says when it starts"
    if successor is None:
        if not has_ended(target, job):
            if job == given:
                raise UsageError(f"JOB={job} has not ended yet: see make status and make logs JOB={job}")
            invoke(target, target.functions["training"], SWEEP)
            say(f"already so: {given} is being trained again as {job}; {then}")
            say(f"follow it: make logs JOB={job}")
            return
        new = name_successor(target, job, by)
    else:
        new = successor.value["job"]
    copy_snapshot(target, job, new)
    invoke(target, target.functions["training"], SWEEP)
    say(f"{job} is trained again, on the same data, as {new}; {then}")
    say(f"follow it: make logs JOB={new}")


def has_ended(target: Target, job: str) -> bool:
    """Whether a job with a snapshot has ended. Raises UsageError when it has none."""
    if not bucket.exists(target, snapshot_key(job, "source.json")):
        refused = bucket.read(target, rejected_key(job), rejected)
        if refused and (known := refused.value.get("known_job")):
            raise UsageError(f"JOB={job} was never started: {known} has the same data; run make retrain JOB={known}")
        why = (
            f"its file was refused: {plain(refused.value['reason'])}" if refused else "there is no snapshot of its data"
        )
        raise UsageError(f"JOB={job} cannot be trained again: {why}; upload a file instead")
    return any(bucket.exists(target, key) for key in (decision_key(job), snapshot_key(job, "given_up.json")))


def name_successor(target: Target, job: str, by: str) -> str:
    """Write down the name of the job that follows; returns it. Raises UsageError when there is no data any more."""
    if not bucket.exists(target, snapshot_key(job, "data.csv")):
        raise UsageError(f"JOB={job}: its data is gone (snapshots are kept for a limited time): upload a file instead")
    moment = bucket.now()
    digest = hashlib.sha256(json.dumps([job, moment.isoformat()]).encode()).hexdigest()[:8]
    name = f"training-job-{moment:%Y%m%d-%H%M%S}-{digest}"
    record: Retrained = {"schema": SCHEMA, "job": name, "by": by, "at": moment.isoformat()}
    bucket.write(target, snapshot_key(job, "retrained.json"), record, None, retrained)
    return name


def copy_snapshot(target: Target, job: str, new: str) -> None:
    """Copy a job's data under a new job's name. source.json comes last: with it, the snapshot is complete."""
    record = bucket.read(target, snapshot_key(job, "source.json"), source)
    if record is None:
        raise bucket.Changed(snapshot_key(job, "source.json"))
    # Tags would take permissions that nothing needs.
    target.client("s3").copy(
        {"Bucket": target.bucket, "Key": snapshot_key(job, "data.csv")},
        target.bucket,
        snapshot_key(new, "data.csv"),
        ExtraArgs={"TaggingDirective": "REPLACE"},
        Config=bucket.COPY_IN_PARTS,
    )
    target.client("s3").put_object(
        Bucket=target.bucket,
        Key=snapshot_key(new, "source.json"),
        Body=bucket.as_json(record.stored | {"job": new, "retrain_of": job}),
        ContentType="application/json",
    )


def run(target: Target, job: str) -> int:
    """Retrain a job; the exit status. Raises UsageError."""
    check_functions(target)
    retrain(target, job, who(target))
    return 0
