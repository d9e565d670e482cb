"""The training orchestrator: from an upload's event to one training job, or one reason why there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import example, given
from hypothesis import strategies as st

from fake_sagemaker import refusal
from world import BUCKET, CSV, ENVIRONMENT, PROGRAM_KEY, Context, Interruption, World, broken_connection, event

JOB_NAME = re.compile(r"training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
KEYS = [
    "data/train/support.csv",
    "data/train/a b.csv",
    "data/train/a+b.csv",
    "data/train/100%25 %.csv",
    "data/train/é ü 日本.csv",
    "data/train/reviews/UPPER.CSV",
    "data/train/x; rm -rf $HOME; 'q'.csv",
    "data/train/" + "k" * (900 - len("data/train/.csv")) + ".csv",
]


@pytest.fixture
def run(training: ModuleType, world: World) -> Callable[..., str]:
    """Invoke the handler with an event; returns the outcome."""

    def invoke(sent: dict[str, Any], request_id: str = "first") -> str:
        return str(training.lambda_handler(sent, Context(request_id))["outcome"])

    return invoke


def job_of(training: ModuleType, sent: dict[str, Any]) -> str:
    return str(training.parse_upload(sent)["job"])


# --- names ------------------------------------------------------------------------------------------

texts = st.text(min_size=1, max_size=40)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC))


def job_name(training: ModuleType, **upload: Any) -> str:
    """The job of an upload; what is not given is the same in each."""
    given = {"bucket": BUCKET, "key": "data/train/a.csv", "etag": "e", "version": "v1", "sequencer": "1"} | upload
    thing = {name: given[name] for name in ("key", "etag", "sequencer")}
    thing |= {"version-id": given["version"]} if given["version"] else {}
    time = given.get("time", datetime(2026, 11, 23, 12, tzinfo=UTC)).isoformat()
    sent = {"time": time, "detail": {"bucket": {"name": given["bucket"]}, "object": thing}}
    return str(training.parse_upload(sent)["job"])


@given(key=texts, version=st.none() | texts, etag=texts, sequencer=st.text(max_size=20), time=moments)
def test_a_job_name_follows_from_the_event_alone_and_is_legal(
    training: ModuleType, key: str, version: str | None, etag: str, sequencer: str, time: datetime
) -> None:
    upload = {"key": key, "version": version, "etag": etag, "sequencer": sequencer, "time": time}
    first, again = (job_name(training, **upload) for _ in range(2))
    assert first == again
    assert JOB_NAME.fullmatch(first)
    assert len(first) <= 63


@given(earlier=moments, later=moments)
def test_job_names_sort_by_time(training: ModuleType, earlier: datetime, later: datetime) -> None:
    names = [job_name(training, time=time) for time in (earlier, later)]
    seconds = [time.replace(microsecond=0) for time in (earlier, later)]
    if seconds[0] < seconds[1]:
        assert names[0] < names[1]


@pytest.mark.parametrize(
    "change",
    [{"key": "data/train/b.csv"}, {"version": "v2"}, {"sequencer": "2"}, {"bucket": "another-bucket"}],
    ids=lambda change: next(iter(change)),
)
def test_two_uploads_in_one_second_have_distinct_names(training: ModuleType, change: dict[str, str]) -> None:
    assert job_name(training) != job_name(training, **change)


def test_without_a_version_id_the_etag_tells_uploads_apart(training: ModuleType) -> None:
    assert job_name(training, version=None, etag="e1") != job_name(training, version=None, etag="e2")


@pytest.mark.parametrize("name", ["", "_full", "_unversioned", "_minimal"])
def test_the_documented_event_shapes_are_understood(training: ModuleType, name: str) -> None:
    upload = training.parse_upload(event(f"s3_object_created{name}"))
    assert upload["key"] == "data/train/support.csv"
    assert upload["job"].startswith("training-job-20261123-120000-")


def test_the_time_of_another_zone_is_taken_to_utc(training: ModuleType) -> None:
    sent = event("s3_object_created") | {"time": "2026-11-23T01:30:00+02:00"}
    assert job_of(training, sent).startswith("training-job-20261122-233000-")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("detail",), None, "detail"),
        (("detail", "bucket"), "b", "bucket"),
        (("detail", "bucket", "name"), 7, "name"),
        (("detail", "object"), [], "object"),
        (("detail", "object", "key"), "", "key"),
        (("detail", "object", "version-id"), 3, "version-id"),
        (("time",), 1795435200000, "time"),
        (("time",), "yesterday", "yesterday"),
    ],
)
def test_an_event_that_is_off_is_named(training: ModuleType, path: tuple[str, ...], value: object, named: str) -> None:
    sent = event("s3_object_created")
    holder = sent
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = value
    with pytest.raises(training.EventError, match=named):
        training.parse_upload(sent)


def test_an_event_of_another_bucket_is_refused(training: ModuleType, run: Callable[..., str]) -> None:
    sent = event("s3_object_created")
    sent["detail"]["bucket"]["name"] = "somebody-elses"
    with pytest.raises(training.EventError, match="not an upload of this stack"):
        run(sent)


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("data/train/x.csv", "default"),
        ("data/train/reviews/x.csv", "reviews"),
        ("data/train/reviews/2026/x.csv", "reviews"),
        ("data/train/a/x.csv", "a"),
        (f"data/train/{'m' * 32}/x.csv", "m" * 32),
    ],
)
def test_the_first_folder_is_the_model(training: ModuleType, key: str, model: str) -> None:
    sent = event("s3_object_created")
    sent["detail"]["object"]["key"] = key
    assert training.parse_upload(sent)["model"] == model


@pytest.mark.parametrize("folder", ["Reviews", "-a", "a-", "a_b", "m" * 33, "", "ü"])
def test_an_illegal_model_folder_is_rejected_by_name(
    run: Callable[..., str], world: World, training: ModuleType, folder: str
) -> None:
    assert run(world.upload(f"data/train/{folder}/x.csv")) == "rejected"
    assert f'the folder "{folder}" is not a model name' in world.only_email().body
    assert world.sagemaker.jobs == {}


# --- the world moves on -----------------------------------------------------------------------------


def test_an_overwritten_upload_is_still_trained_on_when_its_version_is_known(
    run: Callable[..., str], world: World
) -> None:
    sent = world.upload("data/train/x.csv")
    world.put("data/train/x.csv", b"something else")
    assert run(sent) == "started"
    (job,) = world.sagemaker.jobs
    assert world.read(f"data/snapshots/{job}/data.csv") == CSV


def test_an_overwritten_upload_without_versions_is_rejected_rather_than_taken_for_the_newer(
    run: Callable[..., str], world: World
) -> None:
    sent = world.unversioned_upload("data/train/x.csv")
    world.put("data/train/x.csv", b"text,label\nother,ham\n")
    assert run(sent) == "rejected"
    assert "deleted or overwritten before it could be read" in world.only_email().body


def test_an_upload_overwritten_between_check_and_copy_is_rejected(run: Callable[..., str], world: World) -> None:
    sent = world.unversioned_upload("data/train/x.csv")
    world.around.interruption = Interruption(
        "CopyObject", lambda: world.put("data/train/x.csv", b"text,label\nother,ham\n")
    )
    assert run(sent) == "rejected"
    assert world.around.interruption is None
    assert world.keys("data/snapshots/") == []


@pytest.mark.parametrize("versioned", [True, False])
def test_an_upload_deleted_before_it_could_be_read_is_rejected(
    run: Callable[..., str], world: World, versioned: bool
) -> None:
    sent = (world.upload if versioned else world.unversioned_upload)("data/train/x.csv")
    version = sent["detail"]["object"].get("version-id")
    world.s3.delete_object(Bucket=BUCKET, Key="data/train/x.csv", **({"VersionId": version} if version else {}))
    assert run(sent) == "rejected"
    assert "deleted or overwritten" in world.only_email().body


# --- the job ----------------------------------------------------------------------------------------


def test_the_source_record_says_where_the_data_came_from(run: Callable[..., str], world: World) -> None:
    sent = world.upload("data/train/reviews/a b+é.csv")
    run(sent)
    (job,) = world.sagemaker.jobs
    uploaded = sent["detail"]["object"]
    assert world.record(f"data/snapshots/{job}/source.json") == {
        "schema": 2,
        "job": job,
        "model": "reviews",
        "bucket": BUCKET,
        "key": "data/train/reviews/a b+é.csv",
        "version_id": uploaded["version-id"],
        "etag": uploaded["etag"],
        "sequencer": uploaded["sequencer"],
        "size": len(CSV),
        "uploaded_at": "2026-11-23T12:00:00+00:00",
        "told": {
            "format": "UTF-8, separated by comma",
            "rows": "4 read, 4 used",
            "labels": '2: "ham" 2, "spam" 2',
            "longest text": "15 characters",
        },
    }


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:30])
def test_any_legal_key_gives_a_job_and_stays_out_of_it(run: Callable[..., str], world: World, key: str) -> None:
    assert run(world.upload(key)) == "started"
    ((name, job),) = world.sagemaker.jobs.items()
    assert world.read(f"data/snapshots/{name}/data.csv") == CSV
    assert key.rsplit("/", 1)[-1] not in json.dumps(job, default=str, ensure_ascii=False)
    assert f"s3://{BUCKET}/{key}\n" in world.only_email().body


def test_a_job_that_waits_for_its_instance_keeps_the_program_of_its_start(
    run: Callable[..., str], world: World, training: ModuleType
) -> None:
    sent = world.upload("data/train/reviews/x.csv")
    run(sent)
    world.put(PROGRAM_KEY, b"a newer training program")
    source = world.sagemaker.jobs[job_of(training, sent)]["HyperParameters"]["sagemaker_submit_directory"]
    assert world.read(source.removeprefix(f"s3://{BUCKET}/")) == b"the training program"


def test_a_start_that_broke_off_keeps_its_program_when_it_is_tried_again(
    run: Callable[..., str], world: World, training: ModuleType
) -> None:
    sent = world.upload("data/train/reviews/x.csv")
    world.around.interruption = Interruption("CreateTrainingJob", broken_connection, after_the_effect=True)
    with pytest.raises(ClientError, match="InternalError"):
        run(sent, "an invocation")
    world.put(PROGRAM_KEY, b"a newer training program")
    assert run(sent, "an invocation") == "started"
    assert world.read(f"data/snapshots/{job_of(training, sent)}/training.tar.gz") == b"the training program"


def test_the_job_request_is_what_the_training_program_is_promised(
    run: Callable[..., str], world: World, training: ModuleType
) -> None:
    sent = world.upload("data/train/reviews/x.csv")
    run(sent)
    name = job_of(training, sent)
    job = world.sagemaker.jobs[name]
    assert job["HyperParameters"] == {
        "epochs": "3",
        "learning_rate": "5e-5",
        "seed": "42",
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": f"s3://{BUCKET}/data/snapshots/{name}/training.tar.gz",
        "sagemaker_region": "us-east-1",
        "sagemaker_job_name": name,
        "sagemaker_container_log_level": "20",
    }
    (channel,) = job["InputDataConfig"]
    assert channel["ChannelName"] == "train"
    assert channel["ContentType"] == "text/csv"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == f"s3://{BUCKET}/data/snapshots/{name}/data.csv"
    assert job["OutputDataConfig"] == {"S3OutputPath": f"s3://{BUCKET}/models/raw"}
    assert job["ResourceConfig"] == {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200}
    assert job["Environment"] == {
        "BASE_MODEL": "distilbert-base-uncased",
        "CANDIDATES": "auto",
        "TEXT_COLUMN": "text",
        "LABEL_COLUMN": "label",
        "MAX_ROWS_LEFT_OUT": "0.05",
        "MAX_RUNTIME_SECONDS": "7200",
    }
    assert not job.keys() & {"EnableManagedSpotTraining", "CheckpointConfig"}
    assert {tag["Key"]: tag["Value"] for tag in job["Tags"]} == {
        "Project": "mlops",
        "Stack": BUCKET,
        "Model": "reviews",
        "TrainingJob": name,
    }


def test_with_an_own_key_the_model_is_written_under_it(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    monkeypatch.setenv("KMS_KEY_ARN", key)
    run(world.upload("data/train/x.csv"))
    (job,) = world.sagemaker.jobs.values()
    assert job["OutputDataConfig"] == {"S3OutputPath": f"s3://{BUCKET}/models/raw", "KmsKeyId": key}


def test_the_secret_of_a_hub_token_goes_to_the_job_by_name(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "arn:aws:secretsmanager:us-east-1:123456789012:secret:hub-token-AbCdEf"
    monkeypatch.setenv("HUB_TOKEN_SECRET_ARN", secret)
    run(world.upload("data/train/x.csv"))
    (job,) = world.sagemaker.jobs.values()
    assert job["Environment"]["HUB_TOKEN_SECRET_ARN"] == secret


def test_a_base_model_in_s3_becomes_a_channel(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_MODEL", "s3://weights/minilm/")
    run(world.upload("data/train/x.csv"))
    (job,) = world.sagemaker.jobs.values()
    uris = {
        channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in job["InputDataConfig"]
    }
    assert uris["base_model"] == "s3://weights/minilm/"


def test_the_program_is_given_the_base_models_that_it_chooses_from(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_MODEL", "auto")
    run(world.upload("data/train/x.csv"))
    (job,) = world.sagemaker.jobs.values()
    names = ("BASE_MODEL", "BASE_MODEL_ENGLISH", "BASE_MODEL_MULTILINGUAL")
    english, multilingual = (ENVIRONMENT["training_orchestrator"][name] for name in names[1:])
    assert [job["Environment"][name] for name in names] == ["auto", english, multilingual]
    assert f"auto: {english} or {multilingual}\n" in world.only_email().body


def test_a_spot_job_keeps_checkpoints_and_may_wait(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_MAX_WAIT_SECONDS", "14400")
    sent = world.upload("data/train/x.csv")
    run(sent)
    name = job_of(training, sent)
    job = world.sagemaker.jobs[name]
    assert job["EnableManagedSpotTraining"] is True
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    checkpoints = {"S3Uri": f"s3://{BUCKET}/models/checkpoints/{name}/", "LocalPath": "/opt/ml/checkpoints"}
    assert job["CheckpointConfig"] == checkpoints
    # The program's limit is on running, as it was.
    assert job["Environment"]["MAX_RUNTIME_SECONDS"] == "7200"
    assert job["Environment"]["CHECKPOINT_DIR"] == "/opt/ml/checkpoints"
    limits = "ml.m5.xlarge (spot), at most 2 h, and 4 h with waiting for spot capacity\n"
    assert limits in world.only_email().body


def test_several_instances_train_under_sagemakers_own_launcher(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_INSTANCE_COUNT", "4")
    run(world.upload("data/train/x.csv"))
    (job,) = world.sagemaker.jobs.values()
    assert job["ResourceConfig"]["InstanceCount"] == 4
    assert job["HyperParameters"]["sagemaker_torch_distributed_enabled"] == "true"
    assert job["HyperParameters"]["sagemaker_instance_type"] == "ml.m5.xlarge"
    assert "4 x ml.m5.xlarge, at most 2 h\n" in world.only_email().body


@pytest.mark.parametrize(("instance_type", "launched"), [("ml.g5.12xlarge", "true"), ("ml.m5.xlarge", None)])
def test_every_gpu_of_an_instance_is_used_under_sagemakers_own_launcher(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch, instance_type: str, launched: str | None
) -> None:
    monkeypatch.setenv("TRAINING_INSTANCE_TYPE", instance_type)
    world.sagemaker.training_quota = 1  # of GPUs, new accounts have none
    run(world.upload("data/train/x.csv"))
    (job,) = world.sagemaker.jobs.values()
    assert job["HyperParameters"].get("sagemaker_torch_distributed_enabled") == launched


def test_a_quota_below_the_instances_of_a_job_is_one_that_waiting_does_not_free(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_INSTANCE_COUNT", "4")
    world.sagemaker.training_quota = 3
    assert run(world.upload("data/train/x.csv")) == "waiting for a quota above 0"
    assert world.only_email().subject == "Training not started: default: instance quota is below 4"


def test_a_quota_of_spot_instances_says_nothing_of_others(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_MAX_WAIT_SECONDS", "7200")
    world.sagemaker.training_quota = 0
    assert run(world.upload("data/train/x.csv")) == "waiting for a quota above 0"
    assert 'quota "ml.m5.xlarge for spot training job usage" is 0.' in world.only_email().body
    for _ in range(training.EAGER_TRIES):
        run({"source": "sweep"})
    world.sagemaker.training_quota = None
    assert run({"source": "sweep"}) == "started 0, waiting 1 for a quota above 0"  # it is asked once an hour by now
    monkeypatch.setenv("TRAINING_MAX_WAIT_SECONDS", "")
    training.settings.cache_clear()
    assert run({"source": "sweep"}) == "started 1, waiting 0"


def test_the_metric_definitions_find_every_figure_in_the_programs_last_line(training: ModuleType) -> None:
    line = "hold-out:  accuracy 0.9812  macro_f1 0.9423  macro_precision 0.9501  macro_recall 0.9398  eval_loss 0.0712"
    found = {item["Name"]: re.search(item["Regex"], line) for item in training.METRIC_DEFINITIONS}
    assert {name: match and match[1] for name, match in found.items()} == {
        "holdout:accuracy": "0.9812",
        "holdout:macro_f1": "0.9423",
        "holdout:macro_precision": "0.9501",
        "holdout:macro_recall": "0.9398",
        "holdout:eval_loss": "0.0712",
    }


def test_the_started_email_says_what_and_what_next(run: Callable[..., str], world: World) -> None:
    run(world.upload("data/train/reviews/x.csv"))
    (job,) = world.sagemaker.jobs
    email = world.only_email()
    assert email.subject == "Training started: reviews (x.csv)"
    assert email.attributes == {"stage": "training", "status": "started", "model": "reviews"}
    for fact in (f"s3://{BUCKET}/data/train/reviews/x.csv", job, "ml.m5.xlarge, at most 2 h", "What next: nothing"):
        assert fact in email.body
    assert f"make logs JOB={job}" in email.body


def test_an_upload_above_the_limit_of_one_copy_is_copied_in_parts(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 * 1024 * 1024
    monkeypatch.setattr(training, "COPY_OBJECT_MAX_BYTES", part)
    monkeypatch.setattr(training, "COPY_PART_BYTES", part)
    content = CSV + b"more,ham\n" * (part // 8)
    assert run(world.upload("data/train/large.csv", content)) == "started"
    (job,) = world.sagemaker.jobs
    assert world.read(f"data/snapshots/{job}/data.csv") == content
    assert world.around.calls.count("UploadPartCopy") == 2


# --- refusals of SageMaker --------------------------------------------------------------------------


def test_a_job_that_exists_already_is_this_uploads_own(
    run: Callable[..., str], world: World, training: ModuleType
) -> None:
    sent = world.upload("data/train/x.csv")
    world.around.interruption = Interruption("CreateTrainingJob", broken_connection, after_the_effect=True)
    with pytest.raises(ClientError, match="InternalError"):
        run(sent)
    assert run(sent) == "started"
    assert list(world.sagemaker.jobs) == [job_of(training, sent)]


def test_a_quota_that_is_used_up_is_named_and_no_job_is_recorded(run: Callable[..., str], world: World) -> None:
    world.sagemaker.training_quota = 1
    run(world.upload("data/train/first.csv"))
    assert run(world.upload("data/train/second.csv")) == "waiting for quota"
    email = world.emails()[-1]
    assert email.subject == "Training waiting: default (second.csv)"
    assert email.attributes["status"] == "waiting"
    assert '"ml.m5.xlarge for training job usage" is fully used right now' in email.body
    assert "Service Quotas" in email.body
    assert len([key for key in world.keys("data/snapshots/") if key.endswith("started.json")]) == 1


def test_the_email_on_a_quota_of_zero_says_that_it_does_not_free_by_itself(
    run: Callable[..., str], world: World
) -> None:
    world.sagemaker.training_quota = 0
    assert run(world.upload("data/train/x.csv")) == "waiting for a quota above 0"
    assert world.only_email().subject == "Training not started: default: instance quota is 0"
    for fact in (
        'quota "ml.m5.xlarge for training job usage" is 0. It stays so until you request an increase.',
        "SageMaker said: The account-level service limit 'ml.m5.xlarge for training job usage' is 0 Instances",
        "Service Quotas",
        "training_instance_type",
    ):
        assert fact in world.only_email().body


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (
            "The account-level service limit 'Total number of instances across training jobs' is 4 Instances, with",
            "Total number of instances across training jobs",
        ),
        ("No room.", "ml.m5.xlarge for training job usage"),
    ],
    ids=["another quota", "no quota named"],
)
def test_the_email_on_a_quota_names_the_one_that_sagemaker_named(
    run: Callable[..., str], world: World, message: str, name: str
) -> None:
    def refuse(_: str) -> None:
        raise refusal("CreateTrainingJob", "ResourceLimitExceeded", message)

    world.sagemaker.before_create = refuse
    assert run(world.upload("data/train/x.csv")) == "waiting for quota"
    assert f'the account\'s quota "{name}" is fully used right now' in world.only_email().body
    assert f"SageMaker said: {message}\n" in world.only_email().body


def test_a_request_that_sagemaker_refuses_is_an_outcome_in_its_own_words(
    run: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_ROLE_ARN", "not-an-arn-but-long-enough")
    assert run(world.upload("data/train/x.csv")) == "refused"
    assert "roleArn" in world.only_email().body


NOT_IN_REGION = "The requested resource training-job/ml.p2.xlarge is not available in this region"
REFUSALS = {
    "a missing image": ("ValidationException", "Requested image x/pytorch:9.9 not found.", "set training_image"),
    "a call denied": ("AccessDeniedException", "User: x is not authorized to perform: x", "run make deploy"),
    "no role to assume": ("ValidationException", "Could not assume role arn:aws:iam::1:role/x", "run make deploy"),
    "no such type in the region": ("ResourceLimitExceeded", NOT_IN_REGION, "set training_instance_type"),
    "anything else": ("ValidationException", "1 validation error detected", "fix what AWS names"),
}


@pytest.mark.parametrize(("code", "said", "advice"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_emailed_at_once_in_awss_words_with_what_to_do_and_gives_the_slot_back(
    run: Callable[..., str], world: World, code: str, said: str, advice: str
) -> None:
    world.sagemaker.refusals["CreateTrainingJob"] = refusal("CreateTrainingJob", code, said)
    assert run(world.upload("data/train/x.csv")) == "refused"
    email = world.only_email()
    assert email.subject == "Training not started: default: AWS refused it (x.csv)"
    assert email.attributes["status"] == "waiting"
    assert f"AWS said: {said}\n" in email.body
    assert f"What next: {advice}" in email.body
    ledger = world.record("slots/training.json")
    assert [entry["state"] for entry in ledger["jobs"].values()] == ["failed"]
    assert (ledger["day"]["jobs"], ledger["quota"]) == ([], None)


@pytest.mark.parametrize(
    "error",
    [
        refusal("CreateTrainingJob", "ThrottlingException", "Rate exceeded"),
        refusal("CreateTrainingJob", "InternalFailure", "An unknown error.", 500),
    ],
    ids=["throttled", "5xx"],
)
def test_a_fault_of_aws_is_raised_and_emailed_to_nobody(
    run: Callable[..., str], world: World, error: ClientError
) -> None:
    world.sagemaker.refusals["CreateTrainingJob"] = error
    with pytest.raises(ClientError):
        run(world.upload("data/train/x.csv"))
    assert world.emails() == []


# --- duplicates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [CSV, b""], ids=["good", "bad"])
def test_a_duplicate_event_sends_no_second_email(run: Callable[..., str], world: World, content: bytes) -> None:
    sent = world.upload("data/train/x.csv", content)
    first = run(sent, "first")
    assert run(sent, "second") == f"already {first}"
    assert len(world.emails()) == 1


def test_while_one_invocation_has_the_upload_in_hand_another_leaves_it(run: Callable[..., str], world: World) -> None:
    sent = world.upload("data/train/x.csv")
    world.around.interruption = Interruption("CopyObject", broken_connection)
    with pytest.raises(ClientError):
        run(sent, "first")
    assert run(sent, "second") == "in hand"
    assert world.emails() == []
    assert run(sent, "first") == "started"


def test_a_lease_that_expired_is_taken_over(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = world.upload("data/train/x.csv")
    world.around.interruption = Interruption("CopyObject", broken_connection)
    with pytest.raises(ClientError):
        run(sent, "first")
    later = datetime.now(UTC) + timedelta(seconds=training.LEASE_SECONDS + 1)
    monkeypatch.setattr(training, "now", lambda: later)
    assert run(sent, "second") == "started"


def test_the_lease_outlives_the_longest_timeout_of_a_function(training: ModuleType) -> None:
    assert training.LEASE_SECONDS > 900


# --- subjects ---------------------------------------------------------------------------------------


@given(subject=st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
@example(subject="a\r\nBcc: x\x1b[2J\x7f")
@example(subject="é" * 300)
def test_any_subject_is_one_that_sns_takes(training: ModuleType, subject: str) -> None:
    sent: list[dict[str, Any]] = []
    publisher = SimpleNamespace(publish=lambda **request: sent.append(request))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "client", lambda service: publisher)
        email = {"stage": "s", "status": "t", "subject": "Training started: {file}", "body": "{table}"}
        training.notify("arn", email, "m", [("data", "x")], file=subject)
    assert re.fullmatch(r"[A-Z][\x20-\x7e]{0,98}", sent[0]["Subject"])


def test_a_key_with_control_characters_is_emailed_like_any_other(run: Callable[..., str], world: World) -> None:
    assert run(world.upload("data/train/a\x07\x1b[2J\nb.csv")) == "started"
    assert world.only_email().subject == r"Training started: default (a\x07\x1b[2J\nb.csv)"


def test_a_body_is_cut_at_the_limit_between_characters(training: ModuleType, world: World) -> None:
    email = {"stage": "s", "status": "t", "subject": "Subject", "body": "{table}"}
    training.notify(training.settings().topic_arn, email, "m", [("é", "é" * training.PLAIN_MAX)] * 100)
    body = world.only_email().body
    assert training.MESSAGE_MAX_BYTES - 1 <= len(body.encode()) <= training.MESSAGE_MAX_BYTES
    assert set(body) == {"é", " ", "\n"}


def test_every_log_line_carries_the_job(
    run: Callable[..., str], world: World, training: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sent = world.upload("data/train/x.csv")
    run(sent)
    run(world.upload("data/train/y.csv", b""))
    lines = [record for record in caplog.records if record.name == "root"]
    assert len(lines) == 4
    assert all(JOB_NAME.fullmatch(vars(record)["training_job"]) for record in lines)
