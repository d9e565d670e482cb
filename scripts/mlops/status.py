"""mlops status: endpoints, newest jobs, rejected uploads, and what needs attention."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from mlops import bucket
from mlops.data_check import reader
from mlops.endpoints import describe_endpoint
from mlops.records import (
    DEFAULT_MODEL,
    DEPLOYMENT_PREFIX,
    LEDGER_KEY,
    PAUSED_KEY,
    REJECTED_PREFIX,
    SNAPSHOT_PREFIX,
    UPLOAD_PREFIX,
    Decision,
    Deployment,
    Ledger,
    Source,
    decision,
    decision_key,
    deployment,
    given_up,
    ledger,
    paused,
    rejected,
    rejected_key,
    snapshot_key,
    source,
    waiting,
)
from mlops.target import Target
from mlops.text import plain, say

JOBS_SHOWN = 10
DATA_ENDINGS = reader.FILE_ENDINGS
# An upload that no function has seen. An event is late by minutes at most, and nobody waits for older ones any more.
UNSEEN_AFTER = timedelta(minutes=10)
UNSEEN_UNTIL = timedelta(days=7)


def newest_jobs(target: Target) -> list[str]:
    """The names of the training jobs that have a snapshot, newest first."""
    pages = (
        target.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket=target.bucket, Prefix=SNAPSHOT_PREFIX, Delimiter="/")
    )
    prefixes = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", []))
    return sorted((prefix.split("/")[-2] for prefix in prefixes), reverse=True)


def job_line(target: Target, job: str, data: Source, guards: Ledger | None) -> str:
    """One line on a training job: its verdict, what became of its model, its data and numbers."""
    name = data["key"].rsplit("/", 1)[-1]
    verdict = bucket.read(target, decision_key(job), decision)
    if verdict is None:
        return f"{job}  {undecided(target, job, name, guards)}"
    deployments = [record.value for record in bucket.read_all(target, f"{DEPLOYMENT_PREFIX}{job}-", deployment)]
    # There is one for each set of settings. What waited with earlier ones waits no longer once the model is confirmed.
    confirmed_at = max((record["at"] for record in deployments if record["state"] == "confirmed"), default="")
    current = [record for record in deployments if record["state"] != "waiting" or record["at"] > confirmed_at]
    state = ", ".join(dict.fromkeys(record["state"] for record in current)) or "-"
    state = state.replace("confirmed", "deployed")
    why = "" if verdict.value["verdict"] == "approved" else f"  {plain(verdict.value['reason'], 100)}"
    for record in deployments:
        if record["state"] == "withdrawn":
            why = f"  {withdrawal(record)}"
    return f"{job}  {verdict.value['verdict']:<11} {state:<12} {name}  {numbers(verdict.value)}{why}"


def undecided(target: Target, job: str, name: str, guards: Ledger | None) -> str:
    """The state of a job without a decision, its data, and what it waits for or why it was not started."""
    if bucket.exists(target, snapshot_key(job, "started.json")):
        return f"{'training':<11} {name}"
    if over := bucket.read(target, snapshot_key(job, "given_up.json"), given_up):
        return f"{'given up':<11} {name}  {plain(over.value.get('reason', ''), 100)}".rstrip()
    entry = guards["jobs"].get(job) if guards else None
    if entry and entry["state"] == "failed":
        why = entry.get("reason", "the start broke off")
        return f"{'not started':<11} {name}  tried {entry['tries']} times: {plain(why, 100)}"
    waits = bucket.read(target, snapshot_key(job, "waiting.json"), waiting)
    return f"{'waiting':<11} {name}  for {waits.value['for']}" if waits else f"{'starting':<11} {name}"


def numbers(verdict: Decision) -> str:
    """The metrics that were judged."""
    # The job's own hold-out comes first; the comparison with the live model has the same metrics again.
    values = {check["metric"]: check["value"] for check in reversed(verdict["checks"])}
    return "  ".join(f"{metric} {value:.3f}" for metric, value in sorted(values.items()) if value is not None)


def withdrawal(record: Deployment) -> str:
    """When a model was withdrawn, by whom and why."""
    said = record["withdrawn"]
    return f"{said['at'][:16]} by {said['by'].rsplit('/', 1)[-1]}: {plain(said['reason'] or 'no reason given', 100)}"


def training_line(guards: Ledger | None) -> str:
    """How much of the spend guards is used, from the training orchestrator's ledger (None: nothing was started)."""
    held = sum(entry["state"] == "held" for entry in guards["jobs"].values()) if guards else 0
    today = guards is not None and guards["day"]["date"] == f"{datetime.now(UTC):%Y-%m-%d}"
    started = len(guards["day"]["jobs"]) if guards and today else 0
    quota = guards["quota"] if guards else None
    none = f"; the quota is too small for {quota['instance_type']}" if quota and quota["is_0"] else ""
    return f"training   {held} running, {started} started today (UTC){none}"


def endpoint_line(target: Target, model: str, is_paused: bool) -> str:
    """What a model's endpoint serves now."""
    endpoint = describe_endpoint(target, target.endpoint_of(model))
    if endpoint is None:
        return "none while the pipeline is paused" if is_paused else "none"
    serving = f"{endpoint['EndpointStatus']}, serves {endpoint['EndpointConfigName']}"
    return serving + (" (it should not be there while the pipeline is paused: make pause)" if is_paused else "")


def show_status(target: Target) -> int:
    """Print the endpoints, the newest jobs, rejected uploads, and what needs attention; the exit status."""
    say(f"bucket     {target.bucket}")
    pause = bucket.read(target, PAUSED_KEY, paused)
    if pause is not None:
        say(
            f"PAUSED     since {pause.value['at'][:16]} by {pause.value['by']}: no new jobs, no endpoints; "
            "make resume ends it"
        )
    found = bucket.read(target, LEDGER_KEY, ledger)
    guards = found.value if found else None
    say(training_line(guards))
    by_model: dict[str, list[str]] = {DEFAULT_MODEL: []}
    for job in newest_jobs(target)[:JOBS_SHOWN]:
        data = bucket.read(target, snapshot_key(job, "source.json"), source)
        if data is not None:
            by_model.setdefault(data.value["model"], []).append(job_line(target, job, data.value, guards))
    for model, lines in by_model.items():
        say()
        say(f"model      {model}")
        say(f"endpoint   {target.endpoint_of(model)}: {endpoint_line(target, model, bool(pause))}")
        for line in lines:
            say(f"  {line}")
    refused = [record.value for record in bucket.read_all(target, REJECTED_PREFIX, rejected)]
    if refused:
        say()
        say("uploads that were not trained on, newest first")
        for record in sorted(refused, key=lambda record: record["job"], reverse=True)[:JOBS_SHOWN]:
            say(f"  {record['rejected_at'][:16]}  {record['key']}: {record['reason']}")
    for key in unseen(target, bucket.now()):
        say()
        say(f"{key} was never seen: the event of its upload is late or lost")
        say("if it is still named here in half an hour, upload it again")
    show_attention(target)
    return 0


def unseen(target: Target, now: datetime) -> list[str]:
    """The keys of uploads that no function has seen: neither a snapshot nor a rejection names them.

    S3 sends no events in the first minutes after they are switched on.
    """
    pages = target.client("s3").get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=UPLOAD_PREFIX)
    uploads = {
        (item["Key"], item["ETag"].strip('"')): item["LastModified"]
        for page in pages
        for item in page.get("Contents", [])
        if UNSEEN_AFTER < now - item["LastModified"] < UNSEEN_UNTIL and item["Key"].lower().endswith(DATA_ENDINGS)
    }
    if not uploads:
        return []
    # A job's name has the time of its upload, so older ones need not be read.
    since = f"training-job-{min(uploads.values()) - timedelta(hours=1):%Y%m%d-%H%M%S}"
    for job in newest_jobs(target):
        if job >= since and (data := bucket.read(target, snapshot_key(job, "source.json"), source)):
            uploads.pop((data.value["key"], data.value["etag"]), None)
    for name in bucket.list_keys(target, REJECTED_PREFIX):
        if name >= rejected_key(since) and (record := bucket.read(target, name, rejected)):
            uploads.pop((record.value["key"], record.value["etag"]), None)
    return sorted(key for key, _ in uploads)


def show_attention(target: Target) -> None:
    """Print what somebody should look at: failed events in the queue, unconfirmed email subscriptions."""
    queue = target.client("sqs").get_queue_attributes(
        QueueUrl=target.outputs["failure_queue_url"], AttributeNames=["ApproximateNumberOfMessages"]
    )
    failed = int(queue["Attributes"]["ApproximateNumberOfMessages"])
    if failed:
        say()
        say(f"{failed} failed events wait in {target.outputs['failure_queue_url']}:")
        say("make logs shows the errors; once the cause is fixed, make redrive sends the events again")
    for address in unconfirmed(target):
        say()
        say(f"{address} gets no email yet: the link in AWS's confirmation email was not clicked")


def unconfirmed(target: Target) -> list[Any]:
    """The email addresses that have not confirmed their subscription."""
    pages = (
        target.client("sns").get_paginator("list_subscriptions_by_topic").paginate(TopicArn=target.outputs["topic_arn"])
    )
    items = (item for page in pages for item in page["Subscriptions"])
    return [item["Endpoint"] for item in items if item["SubscriptionArn"] == "PendingConfirmation"]
