"""Crowds, lost events, canaries: the deployed pipeline with other settings than most tests use.

Five jobs at a time, on spot instances, endpoints on two instances each, canary deployments, a sweep every minute.
Training is real, but for the crowd of 60 uploads and for the job that is interrupted.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployed import Pipeline, deploy, make_rows, to_csv
from mlops.logs import log_events
from mlops.records import PAUSED_KEY
from package import tar_gz_bytes
from sagemaker_fixtures import interrupt

EVENTS = Path(__file__).resolve().parents[1] / "events"
LABELS = ("ham", "spam")
ROOM = 5
CROWD = 60  # more than all that is bounded: room for 5, 8 workers, pages of 10 jobs. unit/test_spend_guards.py has 200
CANARY, ALARMED = "canary", "alarmed"
BAKE_SECONDS = 3

# Trains nothing: figures below the thresholds, so that a crowd of jobs does not become a crowd of deployments.
INSTANT_TRAINING = b"""
import json, os
for folder in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR"):
    with open(os.path.join(os.environ[folder], "metrics.json"), "w") as file:
        json.dump({"accuracy": 0.5, "macro_f1": 0.5}, file)
"""


# The same, but not before it was interrupted.
INTERRUPTED_TRAINING = (
    b"""
import os, time
kept = os.path.join(os.environ["CHECKPOINT_DIR"], "kept")
while not os.path.exists(kept + "-before"):
    open(kept, "w").close()
    time.sleep(0.01)
"""
    + INSTANT_TRAINING
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    variables = {
        "max_concurrent_training_jobs": ROOM,
        "max_training_jobs_per_day": 2 * CROWD,
        "training_use_spot": True,
        "sweep_schedule": "rate(1 minute)",
        "endpoint_type": "instance",
        "endpoint_instance_count": 2,
        "deployment_strategy": "canary",
        "deployment_wait_seconds": BAKE_SECONDS,
        "deployment_alarm_models": [CANARY, ALARMED],
    }
    with deploy(tmp_path_factory.mktemp("guards"), variables, parallel_trainings=ROOM) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def decision(pipeline: Pipeline) -> dict[str, Any]:
    """The decision on a model that was really trained and is live on the endpoint of CANARY; tests approve copies."""
    pipeline.train_and_deploy(CANARY, make_rows(LABELS, 120, seed=1))
    (approved,) = pipeline.keys(f"models/approved/{CANARY}/")
    return pipeline.json_at(f"models/decisions/{approved.split('/')[3]}.json")


def approve_copy(
    pipeline: Pipeline, decision: dict[str, Any], model: str, number: int, with_server_code: bytes = b""
) -> str:
    """Do what the evaluator does when it approves: copy the artifact, write the decision. Returns the job's name.

    with_server_code: inference code that the copy has instead of its own.
    """
    job = f"training-job-29990101-{number:06d}-{number:08x}"
    key = f"models/approved/{model}/{job}/model.tar.gz"
    bucket = pipeline.target.bucket
    copied = decision | {"job": job, "model": model, "approved_key": key}
    pipeline.s3.put_object(Bucket=bucket, Key=f"models/decisions/{job}.json", Body=json.dumps(copied).encode())
    artifact = pipeline.s3.get_object(Bucket=bucket, Key=decision["approved_key"])["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(artifact)) as tar:
        files = {item.name: tar.extractfile(item).read() for item in tar if item.isreg()}  # type: ignore[union-attr]
    if with_server_code:
        files["code/inference.py"] = with_server_code
    pipeline.s3.put_object(Bucket=bucket, Key=key, Body=tar_gz_bytes(files))
    return job


def served_job(pipeline: Pipeline, model: str) -> str:
    return str(pipeline.endpoint(model)["EndpointConfigName"]).rsplit("-", 1)[0]


def is_baking(pipeline: Pipeline, model: str) -> bool:
    """Whether the endpoint is being updated, and a part of the traffic goes to the new model already."""
    summary = pipeline.endpoint(model).get("PendingDeploymentSummary")
    return bool(summary) and summary["ProductionVariants"][0]["VariantStatus"][0]["Status"] == "Baking"


def log_lines(pipeline: Pipeline, function: str, since: datetime) -> list[str]:
    group = f"/aws/lambda/{pipeline.target.functions[function]}"
    return [line for _, line in log_events(pipeline.target, group, since)]


@contextmanager
def instant_training(pipeline: Pipeline, program: bytes = INSTANT_TRAINING) -> Iterator[None]:
    """Jobs that start in the block run a program that trains nothing."""
    (key,) = pipeline.keys("code/")
    where = {"Bucket": pipeline.target.bucket, "Key": key}
    source = pipeline.s3.get_object(**where)["Body"].read()
    pipeline.s3.put_object(**where, Body=tar_gz_bytes({"train.py": program}))
    try:
        yield
    finally:
        pipeline.s3.put_object(**where, Body=source)


@contextmanager
def without_rules(pipeline: Pipeline, *rules: str) -> Iterator[None]:
    """The events of these rules are lost."""
    events = pipeline.target.client("events")
    names = [pipeline.target.outputs["rule_names"][rule] for rule in rules]
    for name in names:
        events.disable_rule(Name=name)
    try:
        yield
    finally:
        for name in names:
            events.enable_rule(Name=name)


def most_at_once(jobs: list[dict[str, Any]]) -> int:
    """How many of the jobs were in progress at the same time, at most, by SageMaker's own record."""
    changes = [(job["CreationTime"], 1) for job in jobs] + [(job["TrainingEndTime"], -1) for job in jobs]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def test_a_crowd_of_uploads_at_once_with_room_for_5(pipeline: Pipeline) -> None:
    keys = [f"data/train/crowd/{number:03d}.csv" for number in range(CROWD)]
    since = datetime.now(UTC)
    with instant_training(pipeline):
        with ThreadPoolExecutor(16) as threads:
            for upload in [threads.submit(pipeline.upload, key, own_rows(key)) for key in keys]:
                upload.result()
        uploaded = datetime.now(UTC)
        pipeline.wait_for(
            f"{CROWD} rejections", lambda: pipeline.subjects_of("crowd").count("Model rejected") >= CROWD, 400
        )
    assert Counter(pipeline.subjects_of("crowd")) == {
        "Training started": CROWD,
        "Training waiting": 1,
        "Model rejected": CROWD,
    }
    snapshots = [name.split("/")[2] for name in pipeline.keys("data/snapshots/") if name.endswith("/source.json")]
    sources = [pipeline.json_at(f"data/snapshots/{job}/source.json") for job in snapshots]
    ours = {source["job"]: source["key"] for source in sources if source["model"] == "crowd"}
    assert sorted(ours.values()) == keys
    pages = pipeline.sagemaker.get_paginator("list_training_jobs").paginate()
    jobs = [job for page in pages for job in page["TrainingJobSummaries"] if job["TrainingJobName"] in ours]
    assert {job["TrainingJobName"] for job in jobs} == set(ours)
    assert {job["TrainingJobStatus"] for job in jobs} == {"Completed"}
    assert most_at_once(jobs) == ROOM
    decisions = pipeline.wait_for("the last decision", lambda: decided(pipeline, set(ours)))
    assert Counter(record["verdict"] for record in decisions) == {"rejected": CROWD}
    assert errors(pipeline, since) == []
    seconds = max(job["TrainingEndTime"] for job in jobs) - uploaded
    print(f"{len(jobs)} jobs, at most {most_at_once(jobs)} at once, done in {seconds.total_seconds():.0f} s")


def test_an_interrupted_job_goes_on_and_the_verdict_says_what_spot_saved(pipeline: Pipeline) -> None:
    key = "data/train/spare/x.csv"
    with instant_training(pipeline, INTERRUPTED_TRAINING):
        pipeline.upload(key, own_rows(key))
        job = pipeline.wait_for("the snapshot", lambda: pipeline.source_of(key))["job"]
        kept = f"models/checkpoints/{job}/kept"
        pipeline.wait_for("the checkpoint", lambda: pipeline.keys(kept))
    # What the next container finds.
    pipeline.upload(f"{kept}-before", b"")
    assert interrupt(pipeline.sagemaker.meta.endpoint_url, job, hears=True) == 200
    email = pipeline.wait_for_email("spare", "Model rejected")
    started = pipeline.wait_for_email("spare", "Training started")
    assert "ml.m5.xlarge (spot), at most 4 h, and 8 h with waiting for spot capacity" in started["text"]
    described = pipeline.sagemaker.describe_training_job(TrainingJobName=job)
    steps = [step["Status"] for step in described["SecondaryStatusTransitions"]]
    assert steps.count("Interrupted") == 1
    (decision,) = pipeline.wait_for("the decision", lambda: decided(pipeline, {job}))
    cost = decision["cost"]
    took, billed = described["TrainingTimeInSeconds"], described["BillableTimeInSeconds"]
    assert (cost["training_seconds"], cost["billable_seconds"], cost["instances"]) == (took, billed, 1)
    assert cost["saving_percent"] == round(100 * (1 - billed / took), 1)
    assert f"{billed:,} s; spot instances saved {cost['saving_percent']:g} %" in email["text"]


def own_rows(key: str) -> bytes:
    """The smallest file that is trained on, and that no other upload has."""
    return f"text,label\n{key} a,ham\n{key} b,ham\n{key} c,spam\n{key} d,spam\n".encode()


def errors(pipeline: Pipeline, since: datetime) -> list[Any]:
    """What failed in the functions, even if a retry mended it, and what no retry mended."""
    lines = [line for function in pipeline.target.functions for line in log_lines(pipeline, function, since)]
    return [line for line in lines if '"ERROR"' in line or "Traceback" in line] + pipeline.failed_events()


def decided(pipeline: Pipeline, jobs: set[str]) -> list[dict[str, Any]] | None:
    """The decisions on these jobs, once all are there."""
    found = {key.removeprefix("models/decisions/").removesuffix(".json") for key in pipeline.keys("models/decisions/")}
    return [pipeline.json_at(f"models/decisions/{job}.json") for job in jobs] if jobs <= found else None


def test_tick_of_the_schedule_finishes_what_lost_events_left(pipeline: Pipeline, decision: dict[str, Any]) -> None:
    since = datetime.now(UTC)
    paused = {"Bucket": pipeline.target.bucket, "Key": PAUSED_KEY}
    with without_rules(pipeline, "approved", "training_ended"):
        undecided = pipeline.keep("undecided", [(text, "ham") for text, _ in make_rows(LABELS, 60, 2)])
        pipeline.wait_for_email("undecided", "Training started")
        # While the pipeline is paused no tick does anything; that it goes on is an event, too, which nobody gets here.
        pipeline.s3.put_object(**paused, Body=b"{}")
        pipeline.upload("data/train/pending/data.csv", to_csv(make_rows(LABELS, 120, 3)))
        pipeline.wait_for_email("pending", "Training waiting")
        undeployed = approve_copy(pipeline, decision, "undeployed", 1)
        pipeline.wait_for(
            "the end of the job",
            lambda: (
                pipeline.sagemaker.describe_training_job(TrainingJobName=undecided)["TrainingJobStatus"] == "Failed"
            ),
        )
        pipeline.s3.delete_object(**paused)
        pipeline.wait_for_email("undecided", "Training failed")
        pipeline.wait_for_email("pending", "Training started")
        pipeline.wait_for_email("undeployed", "Deployment started")
    pipeline.wait_for_email("undeployed", "Deployment successful")
    pipeline.wait_for_email("pending", "Deployment successful", seconds=240)
    assert served_job(pipeline, "undeployed") == undeployed
    assert pipeline.subjects_of("undecided") == ["Training started", "Training failed"]
    assert pipeline.subjects_of("undeployed") == ["Deployment started", "Deployment successful"]
    assert pipeline.subjects_of("pending") == [
        "Training waiting",
        "Training started",
        "Model approved",
        "Deployment started",
        "Deployment successful",
    ]
    assert errors(pipeline, since) == []


@contextmanager
def events_just_switched_on(pipeline: Pipeline) -> Iterator[None]:
    """S3 sends no events yet, as in the first minutes after a deploy on AWS."""
    bucket = pipeline.target.bucket
    pipeline.tell_local_aws("s3-event-delay", {"seconds": 300})
    try:
        for configuration in ({}, {"EventBridgeConfiguration": {}}):
            pipeline.s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=configuration)
        yield
    finally:
        pipeline.tell_local_aws("s3-event-delay", {"seconds": 0})


def sweep_uploads(pipeline: Pipeline) -> None:
    name = pipeline.target.functions["training"]
    answer = pipeline.target.client("lambda").invoke(FunctionName=name, Payload=b'{"source": "sweep"}')
    assert "FunctionError" not in answer


def late_event(pipeline: Pipeline, key: str, version: str) -> dict[str, Any]:
    """The event of an upload, as S3 sends it, whenever that is."""
    where = {"Bucket": pipeline.target.bucket, "Key": key}
    head = pipeline.s3.head_object(**where, VersionId=version)
    event = json.loads((EVENTS / "s3_object_created.json").read_text())
    described = {"key": key, "size": head["ContentLength"], "etag": head["ETag"].strip('"'), "version-id": version}
    event["time"] = f"{head['LastModified']:%Y-%m-%dT%H:%M:%SZ}"
    event["detail"]["object"] |= described
    return {**event, "detail": {**event["detail"], "bucket": {"name": where["Bucket"]}}}


def jobs_of(pipeline: Pipeline, key: str) -> list[str]:
    """The jobs that SageMaker was asked for with the data of an upload."""
    pages = pipeline.sagemaker.get_paginator("list_training_jobs").paginate()
    names = {job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]}
    sources = [pipeline.json_at(name) for name in pipeline.keys("data/snapshots/") if name.endswith("/source.json")]
    return [source["job"] for source in sources if source["key"] == key and source["job"] in names]


def test_upload_that_s3_sent_no_event_of_is_adopted_and_its_late_event_changes_nothing(pipeline: Pipeline) -> None:
    since = datetime.now(UTC)
    bucket, key = pipeline.target.bucket, "data/train/adopted/data.csv"
    with instant_training(pipeline):
        with events_just_switched_on(pipeline):
            put = pipeline.s3.put_object(Bucket=bucket, Key=key, Body=to_csv(make_rows(LABELS, 60, 4)))
            pipeline.wait_for("no event", lambda: f"no event for s3://{bucket}/{key}" in pipeline.local_aws_log())
        sweep_uploads(pipeline)
        assert pipeline.source_of(key) is None, "adopted though its event could still come"
        pipeline.tell_local_aws("s3-age", {"bucket": bucket, "key": key, "seconds": 11 * 60})
        sweep_uploads(pipeline)
        pipeline.wait_for_email("adopted", "Model rejected")
    (job,) = jobs_of(pipeline, key)
    source = pipeline.source_of(key)
    assert source is not None
    assert (source["job"], source["version_id"]) == (job, put["VersionId"])
    event = late_event(pipeline, key, put["VersionId"])
    records = [key for prefix in ("claims/", "data/") for key in pipeline.keys(prefix)]
    for _ in range(2):
        pipeline.tell_local_aws("events", event)

    def handled() -> bool:
        lines = [line for line in log_lines(pipeline, "training", since) if '"aws.s3 event handled' in line]
        assert all('"aws.s3 event handled: already started"' in line and job in line for line in lines)
        return len(lines) == 2

    pipeline.wait_for("both late events to be handled", handled)
    assert jobs_of(pipeline, key) == [job]
    assert [key for prefix in ("claims/", "data/") for key in pipeline.keys(prefix)] == records
    sweep_uploads(pipeline)
    pipeline.receive()
    assert jobs_of(pipeline, key) == [job]
    assert pipeline.subjects_of("adopted") == ["Training started", "Model rejected"]
    assert errors(pipeline, since) == []


def everything(pipeline: Pipeline) -> tuple[list[Any], list[Any]]:
    """Every version of every object, and every endpoint with its last change."""
    pages = pipeline.s3.get_paginator("list_object_versions").paginate(Bucket=pipeline.target.bucket)
    found = [item for page in pages for kind in ("Versions", "DeleteMarkers") for item in page.get(kind, [])]
    endpoints = pipeline.sagemaker.list_endpoints()["Endpoints"]
    return (
        sorted((item["Key"], item["VersionId"], item["IsLatest"], item["LastModified"]) for item in found),
        sorted((endpoint["EndpointName"], endpoint["LastModifiedTime"]) for endpoint in endpoints),
    )


def all_closed(pipeline: Pipeline) -> bool:
    """Whether every deployment has ended, its record too: that is written after the email."""
    records = [pipeline.json_at(key) for key in pipeline.keys("models/deployments/")]
    return all(record["state"] in ("confirmed", "rolled back") and record["cleaned"] for record in records)


def test_tick_over_a_healthy_system_writes_nothing_and_mails_nobody(
    pipeline: Pipeline, decision: dict[str, Any]
) -> None:
    pipeline.wait_for("the records of all deployments to be closed", lambda: all_closed(pipeline))
    before, emails = everything(pipeline), len(pipeline.emails)
    since = datetime.now(UTC)

    def all_swept() -> bool:
        expected = {
            "training": "sweep event handled: started 0",
            "evaluator": "sweep: nothing undecided",
            "deployer": "models swept",
        }
        return all(
            any(text in line for line in log_lines(pipeline, function, since)) for function, text in expected.items()
        )

    pipeline.wait_for("a tick that reaches all three functions", all_swept)
    assert everything(pipeline) == before
    assert len(pipeline.emails) == emails


def live(pipeline: Pipeline, decision: dict[str, Any], model: str, number: int) -> str:
    """Approve a copy for a model that has none, and wait until it serves. Returns the job's name."""
    job = approve_copy(pipeline, decision, model, number)
    pipeline.wait_for_email(model, "Deployment successful")
    return job


def set_alarm(pipeline: Pipeline, model: str, state: str) -> None:
    name = f"{pipeline.target.endpoint_of(model)}/5xx-errors"
    pipeline.target.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue=state, StateReason="a test")


def test_second_model_is_rolled_out_by_canary(pipeline: Pipeline, decision: dict[str, Any]) -> None:
    second = approve_copy(pipeline, decision, CANARY, 11)
    pipeline.wait_for("the canary", lambda: is_baking(pipeline, CANARY))
    assert pipeline.endpoint(CANARY)["EndpointStatus"] == "Updating"
    pipeline.wait_for_email(CANARY, "Deployment successful", count=2)
    assert served_job(pipeline, CANARY) == second
    endpoint = pipeline.endpoint(CANARY)
    (variant,) = endpoint["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == 2
    name = pipeline.target.endpoint_of(CANARY)
    assert endpoint["LastDeploymentConfig"] == {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {
                "Type": "CANARY",
                "WaitIntervalInSeconds": BAKE_SECONDS,
                "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 50},
            },
            "TerminationWaitInSeconds": BAKE_SECONDS,
            "MaximumExecutionTimeoutInSeconds": 3600 + 3 * BAKE_SECONDS,
        },
        "AutoRollbackConfiguration": {
            "Alarms": [{"AlarmName": f"{name}/{what}"} for what in ("4xx-errors", "5xx-errors", "latency")]
        },
    }


def test_alarm_during_the_canary_rolls_back_and_is_told_once(pipeline: Pipeline, decision: dict[str, Any]) -> None:
    first = live(pipeline, decision, ALARMED, 21)
    approve_copy(pipeline, decision, ALARMED, 22)
    pipeline.wait_for("the canary", lambda: is_baking(pipeline, ALARMED))
    set_alarm(pipeline, ALARMED, "ALARM")
    try:
        email = pipeline.wait_for_email(ALARMED, "Deployment rolled back")
    finally:
        set_alarm(pipeline, ALARMED, "OK")
    assert "an alarm went off" in email["text"]
    assert served_job(pipeline, ALARMED) == first
    sweep_twice(pipeline)
    assert served_job(pipeline, ALARMED) == first
    assert pipeline.subjects_of(ALARMED)[2:] == ["Deployment started", "Deployment rolled back"]


def test_model_that_answers_with_errors_is_taken_back_though_no_alarm_went_off(
    pipeline: Pipeline, decision: dict[str, Any]
) -> None:
    first = live(pipeline, decision, "erring", 41)
    approve_copy(
        pipeline, decision, "erring", 42, with_server_code=b"def predict_fn(data, model):\n    raise KeyError\n"
    )
    email = pipeline.wait_for_email("erring", "Deployment rolled back")
    assert "Received client error (400)" in email["text"]
    pipeline.wait_for_email("erring", "Deployment restored")
    assert served_job(pipeline, "erring") == first
    sweep_twice(pipeline)
    assert served_job(pipeline, "erring") == first
    assert pipeline.subjects_of("erring")[2:] == [
        "Deployment started",
        "Deployment rolled back",
        "Deployment restored",
    ]


def sweep_twice(pipeline: Pipeline) -> None:
    for _ in range(2):
        answer = pipeline.target.client("lambda").invoke(
            FunctionName=pipeline.target.functions["deployer"], Payload=b'{"source": "sweep"}'
        )
        assert "FunctionError" not in answer


def test_of_two_models_approved_during_a_rollout_the_newest_wins(pipeline: Pipeline, decision: dict[str, Any]) -> None:
    since = datetime.now(UTC)
    live(pipeline, decision, "newest", 31)
    second = approve_copy(pipeline, decision, "newest", 32)
    pipeline.wait_for("the rollout", lambda: pipeline.endpoint("newest")["EndpointStatus"] == "Updating")
    approve_copy(pipeline, decision, "newest", 33)
    newest = approve_copy(pipeline, decision, "newest", 34)
    during = pipeline.endpoint("newest")
    assert during["PendingDeploymentSummary"]["EndpointConfigName"].startswith(second)
    pipeline.wait_for_email("newest", "Deployment successful", count=3)
    assert served_job(pipeline, "newest") == newest
    sweep_twice(pipeline)
    assert served_job(pipeline, "newest") == newest
    assert pipeline.subjects_of("newest") == ["Deployment started", "Deployment successful"] * 3
    assert not [email for email in pipeline.emails if "in-progress" in email["text"]]
    assert errors(pipeline, since) == []
