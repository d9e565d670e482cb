"""The model evaluator: from a job's end to one decision, and an approved copy where the metrics allow it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import re
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from s3transfer.exceptions import S3CopyFailedError

from world import (
    BUCKET,
    GOOD_METRICS,
    Context,
    Interruption,
    World,
    broken_connection,
    event,
    in_memory,
    tar_gz,
)

JOB = "training-job-20261123-120000-0123abcd"
OUTPUT = f"models/raw/{JOB}/output/output.tar.gz"
ARTIFACT = f"models/raw/{JOB}/output/model.tar.gz"
DECISION = f"models/decisions/{JOB}.json"
APPROVED = f"models/approved/default/{JOB}/model.tar.gz"
WEIGHTS = ("model.safetensors", b"weights" * 100)


def metrics_file(**metrics: object) -> tuple[str, bytes]:
    return "metrics.json", json.dumps(GOOD_METRICS | metrics).encode()


def start_job(world: World, name: str = JOB, model: str = "default") -> None:
    """A training job of this stack, running."""
    source = {
        "schema": 1,
        "job": name,
        "model": model,
        "bucket": BUCKET,
        "key": "data/train/support.csv",
        "version_id": "v1",
        "etag": "e1",
        "sequencer": "1",
        "size": 36,
        "uploaded_at": "2026-11-23T12:00:00+00:00",
    }
    world.put(f"data/snapshots/{name}/source.json", source)
    start_foreign_job(world, name)


def start_foreign_job(world: World, name: str) -> None:
    where = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/data/snapshots/{name}/data.csv"}
    world.sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn="arn:aws:iam::123456789012:role/mlops",
        AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
        InputDataConfig=[{"ChannelName": "train", "DataSource": {"S3DataSource": where}}],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/models/raw/"},
        ResourceConfig={"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 7200},
    )


def complete(world: World, output: bytes | None, model: bytes | None, of_model: str = "default") -> None:
    """A completed job with these archives."""
    start_job(world, model=of_model)
    for key, archive in ((OUTPUT, output), (ARTIFACT, model)):
        if archive is not None:
            world.put(key, archive)
    world.sagemaker.end_job(JOB, artifact=f"s3://{BUCKET}/{ARTIFACT}")


@pytest.fixture
def run(evaluator: ModuleType, world: World) -> Callable[..., str]:
    """Invoke the handler for a job; returns the outcome."""

    def invoke(job: str = JOB, request_id: str = "first") -> str:
        return str(evaluator.lambda_handler(world.job_event(job), Context(request_id))["outcome"])

    return invoke


def never() -> bool:
    return False


def find(
    evaluator: ModuleType, archive: bytes | io.BytesIO, max_bytes: int = 0, out_of_time: Callable[[], bool] = never
) -> bytes | None:
    """The first metrics.json of an archive. Raises ArchiveError."""
    stream = archive if isinstance(archive, io.BytesIO) else io.BytesIO(archive)
    found = evaluator.find_files(stream, ("metrics.json",), max_bytes or evaluator.JSON_MAX_BYTES, out_of_time)
    _, content = next(found, ("", None))
    if isinstance(content, evaluator.ArchiveError):
        raise content
    return content  # type: ignore[no-any-return]


# --- reading the archives ---------------------------------------------------------------------------

FORMATS = {"pax": tarfile.PAX_FORMAT, "GNU": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["metrics.json", "./metrics.json"])
def test_metrics_are_found_at_the_root_of_an_archive(evaluator: ModuleType, name: str, tar_format: int) -> None:
    archive = tar_gz([("config.json", b"{}"), (name, b'{"a": 1}'), WEIGHTS], tar_format)
    assert find(evaluator, archive) == b'{"a": 1}'


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "GNU"])
def test_metrics_are_found_behind_a_long_name(evaluator: ModuleType, tar_format: int) -> None:
    archive = tar_gz([("checkpoint/" * 30 + "x", b"x" * 700), ("metrics.json", b"{}")], tar_format)
    assert find(evaluator, archive) == b"{}"


def test_metrics_are_found_behind_a_pax_header_of_their_own(evaluator: ModuleType) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("metrics.json")
        info.size, info.pax_headers = 2, {"mtime": "1795435200.123", "comment": "größe"}
        archive.addfile(info, io.BytesIO(b"{}"))
    assert find(evaluator, buffer.getvalue()) == b"{}"


@pytest.mark.parametrize("name", ["code/metrics.json", "/metrics.json", "../metrics.json", "metrics.json.bak"])
def test_a_file_elsewhere_is_not_the_metrics(evaluator: ModuleType, name: str) -> None:
    assert find(evaluator, tar_gz([(name, b"{}")])) is None


def test_the_first_of_two_metrics_files_counts_and_the_rest_is_not_read(evaluator: ModuleType) -> None:
    archive = tar_gz([("metrics.json", b"1"), ("metrics.json", b"2")])
    assert find(evaluator, archive[:-20]) == b"1"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_folder_named_like_the_metrics_is_passed_over(evaluator: ModuleType, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        decoy = tarfile.TarInfo("metrics.json")
        decoy.type, decoy.linkname = kind, "/etc/passwd"
        archive.addfile(decoy)
        real = tarfile.TarInfo("metrics.json")
        real.size = 2
        archive.addfile(real, io.BytesIO(b"{}"))
    assert find(evaluator, buffer.getvalue()) == b"{}"


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One tar header that claims a size, with nothing behind it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def negative(name: str) -> bytes:
    """A tar header of negative size, which only the binary form of the number can hold."""
    block = bytearray(header(name, 0))
    block[124:136] = b"\xff" * 12
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    return bytes(block)


DAMAGED = {
    "empty": (b"", "cut off|no intact"),
    "no gzip": (b"PK\x03\x04 not a gzip", "no intact .tar.gz"),
    "gzip of something else": (gzip.compress(b"hello" * 200), "no intact .tar.gz"),
    "gzip of nothing": (gzip.compress(b""), "cut off"),
    "truncated": (tar_gz([("weights", bytes(range(256)) * 4000), ("metrics.json", b"{}")])[:600], "no intact"),
    "damaged in the middle": (
        tar_gz([("weights", bytes(range(256)) * 4000), ("metrics.json", b"{}")])[:40] + b"\xff" * 500,
        "no intact",
    ),
    "without its end": (gzip.compress(header("weights", 0)), "cut off"),
    "negative size": (gzip.compress(negative("weights")), "negative size"),
    "metrics too large": (gzip.compress(header("metrics.json", 128 * 1024 + 1)), "has 131073 bytes; at most 131072"),
    "metrics shorter than said": (gzip.compress(header("metrics.json", 100) + b"{}"), "cut off"),
    "extended header too large": (gzip.compress(header("x", 10**9, tarfile.XHDTYPE)), "header of 1000000000 bytes"),
    "long name too large": (gzip.compress(header("x", 10**9, tarfile.GNUTYPE_LONGNAME)), "header of 1000000000 bytes"),
    "extended header malformed": (
        gzip.compress(header("x", 10, tarfile.XHDTYPE) + b"no length".ljust(512, b"\0")),
        "malformed extended header",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_hostile_archive_is_refused_with_a_reason(evaluator: ModuleType, name: str) -> None:
    archive, reason = DAMAGED[name]
    with pytest.raises(evaluator.ArchiveError, match=reason):
        find(evaluator, archive)


@given(data=st.binary(max_size=1500))
def test_any_bytes_end_in_an_answer_or_a_reason(evaluator: ModuleType, data: bytes) -> None:
    for archive in (data, gzip.compress(data, 1), gzip.compress(header("x", len(data), tarfile.XHDTYPE) + data, 1)):
        with contextlib.suppress(evaluator.ArchiveError):
            assert find(evaluator, archive) is None


def bomb(megabytes: int) -> bytes:
    """An archive with one huge member of zeros before the metrics: a thousandth of its content in size."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as archive:
        archive.write(header("bomb", megabytes * 1024**2))
        for _ in range(megabytes):
            archive.write(bytes(1024**2))
        archive.write(header("metrics.json", 2) + b"{}".ljust(512, b"\0") + bytes(1024))
    return buffer.getvalue()


def test_a_bomb_takes_no_more_memory_than_a_small_archive(evaluator: ModuleType) -> None:
    peaks = []
    for stream in (io.BytesIO(bomb(2)), io.BytesIO(bomb(200))):
        tracemalloc.start()
        assert find(evaluator, stream, 1024) == b"{}"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.1


def test_the_search_ends_when_time_runs_out(evaluator: ModuleType) -> None:
    answers = iter([False] * 5 + [True])
    with pytest.raises(evaluator.ArchiveError, match="too large to be searched"):
        find(evaluator, bomb(10), 1024, lambda: next(answers))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is no JSON"),
        (b"accuracy: 0.9", "is no JSON"),
        (b"[0.9]", "is no JSON object but list"),
        (b"\xff\xfe\xff", "is no JSON"),
        (b'{"accuracy": 0.1, "accuracy": 0.9}', "key 'accuracy' more than once"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' more than once"),
        (b'{"a":' * 100_000, "is no JSON"),
        (b'{"accuracy": ' + b"9" * 5000 + b"}", "is no JSON"),
    ],
    ids=["empty", "text", "list", "not UTF-8", "duplicate key", "nested duplicate", "deeply nested", "5000 digits"],
)
def test_metrics_that_are_no_plain_json_object_are_refused(evaluator: ModuleType, data: bytes, reason: str) -> None:
    with pytest.raises(evaluator.ArchiveError, match=reason):
        evaluator.parse_metrics(data)


def test_metrics_of_the_largest_size_full_of_keys_are_read_at_once(evaluator: ModuleType) -> None:
    keys = [f'"{number}":1' for number in range(90_000)]
    data = ("{" + ",".join([*keys, keys[-1]]) + "}").encode()
    begin = time.perf_counter()
    with pytest.raises(evaluator.ArchiveError, match="'89999' more than once"):
        evaluator.parse_metrics(data)
    assert time.perf_counter() - begin < 5


# --- the gate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "value", "passed"),
    [
        ("min", 0.85, True),
        ("min", math.nextafter(0.85, 0), False),
        ("min", 1, True),
        ("max", 0.85, True),
        ("max", math.nextafter(0.85, 1), False),
        ("max", 0, True),
    ],
)
def test_a_value_on_the_threshold_passes_and_one_beyond_it_does_not(
    evaluator: ModuleType, direction: str, value: float, passed: bool
) -> None:
    (check,) = evaluator.judge({"accuracy": value}, {"accuracy": {direction: 0.85}})
    assert check.passed is passed


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "true", "null", '"0.9"', "[0.9]", "9" * 400])
@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_value_that_is_not_a_finite_number_fails(evaluator: ModuleType, text: str, direction: str) -> None:
    metrics = evaluator.parse_metrics(f'{{"accuracy": {text}}}'.encode())
    (check,) = evaluator.judge(metrics, {"accuracy": {direction: 0.5}})
    assert not check.passed
    assert "not a finite number" in check.reason


def test_a_missing_metric_fails_and_says_so(evaluator: ModuleType) -> None:
    (check,) = evaluator.judge({}, {"accuracy": {"min": 0.85}})
    assert not check.passed
    assert check.reason == "accuracy is missing; it must be at least 0.85"


def test_each_bound_of_a_metric_is_a_check_of_its_own(evaluator: ModuleType) -> None:
    checks = evaluator.judge({"f1": 0.99}, {"f1": {"min": 0.5, "max": 0.98}})
    assert [(check.direction, check.passed) for check in checks] == [("min", True), ("max", False)]


@given(value=st.floats(), bound=st.floats(allow_nan=False, allow_infinity=False))
def test_a_gate_passes_exactly_the_finite_values_on_its_side(evaluator: ModuleType, value: float, bound: float) -> None:
    low, high = evaluator.judge({"m": value}, {"m": {"min": bound, "max": bound}})
    assert low.passed is (math.isfinite(value) and value >= bound)
    assert high.passed is (math.isfinite(value) and value <= bound)


# --- the decision -----------------------------------------------------------------------------------


def test_a_good_model_is_approved_copied_emailed_and_recorded(run: Callable[..., str], world: World) -> None:
    model = tar_gz([WEIGHTS])
    complete(world, tar_gz([metrics_file()]), model)
    assert run() == "approved"
    assert world.read(APPROVED) == model
    email = world.only_email()
    assert email.subject == "Model approved: default (support.csv)"
    assert email.attributes == {"stage": "evaluation", "status": "approved", "model": "default"}
    for fact in (JOB, f"s3://{BUCKET}/data/train/support.csv", "at least 0.8", "0.9", "What next: nothing to do"):
        assert fact in email.body
    decision = world.record(DECISION)
    assert decision.pop("decided_at")
    assert decision.pop("artifact")["size"] == len(model)
    assert decision == {
        "cost": {"training_seconds": 600, "billable_seconds": 600, "instances": 1, "saving_percent": None},
        "schema": 2,
        "job": JOB,
        "model": "default",
        "data": {"bucket": BUCKET, "key": "data/train/support.csv", "version_id": "v1", "etag": "e1", "size": 36},
        "metrics": GOOD_METRICS,
        "told": {},
        "thresholds": {"accuracy": {"min": 0.8}, "eval_loss": {"max": 0.5}},
        "checks": [
            {
                "metric": "accuracy",
                "direction": "min",
                "threshold": 0.8,
                "value": 0.9,
                "passed": True,
                "reason": "accuracy is 0.9; it must be at least 0.8",
                "rows": "hold-out",
                "live": None,
            },
            {
                "metric": "eval_loss",
                "direction": "max",
                "threshold": 0.5,
                "value": 0.3,
                "passed": True,
                "reason": "eval_loss is 0.3; it must be at most 0.5",
                "rows": "hold-out",
                "live": None,
            },
        ],
        "champion": None,
        "rivals": {},
        "golden": [],
        "golden_note": "there is no output archive with a golden.json at its root",
        "approved_key": APPROVED,
        "verdict": "approved",
        "reason": "every metric is within its threshold",
    }


def test_without_an_output_archive_the_model_archive_is_searched(run: Callable[..., str], world: World) -> None:
    complete(world, None, tar_gz([WEIGHTS, metrics_file()]))
    assert run() == "approved"


def test_an_output_archive_without_metrics_is_no_verdict_yet(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([("notes.txt", b"")]), tar_gz([metrics_file()]))
    assert run() == "approved"


def test_the_output_archive_counts_before_the_model_archive(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([metrics_file(accuracy=0.1)]), tar_gz([metrics_file()]))
    assert run() == "rejected"


REJECTED = {
    "accuracy too low": (tar_gz([metrics_file(accuracy=0.79)]), "accuracy is 0.79; it must be at least 0.8"),
    "loss too high": (tar_gz([metrics_file(eval_loss=0.51)]), "eval_loss is 0.51; it must be at most 0.5"),
    "no accuracy": (tar_gz([("metrics.json", b'{"eval_loss": 0.1}')]), "accuracy is missing"),
    "NaN": (tar_gz([("metrics.json", b'{"accuracy": NaN, "eval_loss": 0.1}')]), "accuracy is nan, not a finite"),
    "no metrics anywhere": (tar_gz([]), "neither the output archive nor the model archive has a metrics.json"),
    "no JSON": (tar_gz([("metrics.json", b"oops")]), "metrics.json is no JSON"),
    "damaged archive": (b"oops", "no intact .tar.gz"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_model_that_is_not_good_enough_is_rejected_with_the_reason_and_not_copied(
    run: Callable[..., str], world: World, name: str
) -> None:
    output, reason = REJECTED[name]
    complete(world, output, tar_gz([WEIGHTS]))
    assert run() == "rejected"
    email = world.only_email()
    assert email.subject == "Model rejected: default (support.csv)"
    assert reason in email.body.partition("Why: ")[2]
    assert "The live model, if there is one, is not affected" in email.body
    assert world.record(DECISION)["verdict"] == "rejected"
    assert world.keys("models/approved/") == []


def test_every_failed_check_is_in_the_reason(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([metrics_file(accuracy=0.1, eval_loss=9)]), tar_gz([WEIGHTS]))
    run()
    assert world.record(DECISION)["reason"] == (
        "accuracy is 0.1; it must be at least 0.8; eval_loss is 9; it must be at most 0.5"
    )


def test_a_model_with_thresholds_of_its_own_is_judged_by_these_alone(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([metrics_file(accuracy=0.985, eval_loss=9)]), tar_gz([WEIGHTS]), of_model="strict")
    assert run() == "rejected"
    assert world.record(DECISION)["reason"] == "accuracy is 0.985; it must be at least 0.99"


# --- whose archives they are ------------------------------------------------------------------------


@pytest.fixture
def timed_world(evaluator: ModuleType, environment: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """In memory, as its objects' times are those of its clock: a job has just ended with good archives."""
    fresh = in_memory(evaluator, monkeypatch)
    good_job(fresh)
    return fresh


@pytest.mark.parametrize("key", [OUTPUT, ARTIFACT])
def test_an_archive_that_was_replaced_after_the_job_had_ended_is_refused(
    run: Callable[..., str], timed_world: World, key: str
) -> None:
    """Every training job may write there."""
    timed_world.wait(seconds=6)
    timed_world.put(key, tar_gz([metrics_file(accuracy=0.99), WEIGHTS]))
    assert run() == "rejected"
    assert timed_world.record(DECISION)["reason"] == (
        f"{key} was written at 2026-11-23 12:00:11 UTC, after the job had ended (2026-11-23 12:00:05 UTC), so it is "
        "not the job's own"
    )
    assert timed_world.keys("models/approved/") == []
    assert f"make retrain JOB={JOB}" in timed_world.only_email().body


def test_golden_rows_are_read_together_with_the_metrics_and_not_from_what_replaces_them(
    run: Callable[..., str], timed_world: World
) -> None:
    rows = [[{"text": text, "label": "ham", "score": 1}] for text in ("the job's own", "another")]
    own, late = (tar_gz([metrics_file(), ("golden.json", json.dumps(golden).encode())]) for golden in rows)
    timed_world.put(OUTPUT, own)
    timed_world.wait(seconds=6)
    timed_world.around.interruption = Interruption("ListObjectsV2", lambda: timed_world.put(OUTPUT, late))
    assert run() == "approved"
    assert timed_world.record(DECISION)["golden"] == rows[0]


def test_the_clocks_of_s3_and_sagemaker_may_differ_by_five_seconds(run: Callable[..., str], timed_world: World) -> None:
    timed_world.wait(seconds=5)
    for key in (OUTPUT, ARTIFACT):
        timed_world.put(key, tar_gz([metrics_file(), WEIGHTS]))
    assert run() == "approved"


@pytest.mark.parametrize(
    ("artifact", "reason"),
    [
        ("", "completed without a model artifact"),
        (f"s3://{BUCKET}/models/raw/another-job/output/model.tar.gz", "is at s3://.*another-job.*, not under"),
        ("s3://another-bucket/model.tar.gz", "is at s3://another-bucket/model.tar.gz, not under"),
        (f"s3://{BUCKET}/{ARTIFACT}", "is gone"),
    ],
    ids=["none", "another job's", "another bucket's", "deleted"],
)
def test_an_artifact_that_is_not_where_it_belongs_is_rejected(
    run: Callable[..., str], world: World, artifact: str, reason: str
) -> None:
    start_job(world)
    world.sagemaker.end_job(JOB, artifact=artifact)
    assert run() == "rejected"
    assert re.search(reason, world.record(DECISION)["reason"])


@pytest.mark.parametrize(
    ("status", "details", "reason"),
    [
        ("Failed", {"reason": "AlgorithmError: All 30 rows have the label 'ham'"}, "All 30 rows have the label 'ham'"),
        ("Failed", {}, "SageMaker gave no reason; see the job's log"),
        ("Stopped", {"secondary": "MaxRuntimeExceeded"}, "reached its time limit of 2 h"),
        ("Stopped", {}, "somebody stopped it"),
    ],
    ids=["failed", "failed without a reason", "out of time", "stopped"],
)
def test_a_job_that_did_not_complete_is_emailed_with_its_reason(
    run: Callable[..., str], world: World, status: str, details: dict[str, str], reason: str
) -> None:
    start_job(world)
    world.sagemaker.end_job(JOB, status, **details)
    assert run() == status.lower()
    email = world.only_email()
    assert email.subject == "Training failed: default (support.csv)"
    assert email.attributes["status"] == status.lower()
    assert reason in email.body
    assert world.record(DECISION)["verdict"] == status.lower()


def test_a_spot_job_without_capacity_is_told_what_would_help(run: Callable[..., str], world: World) -> None:
    start_job(world)
    world.sagemaker.jobs[JOB]["StoppingCondition"]["MaxWaitTimeInSeconds"] = 18000
    world.sagemaker.end_job(JOB, "Stopped", secondary="MaxWaitTimeExceeded")
    assert run() == "stopped"
    why = "it was not done after 5 h, with waiting for spot instances (training_max_wait_seconds)"
    assert world.record(DECISION)["reason"] == why
    assert "raise training_max_wait_seconds or set training_use_spot to false" in world.only_email().body


# --- what it cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "cost", "told"),
    [
        ({}, (600, 600, 1, None), "600 s"),
        ({"EnableManagedSpotTraining": True, "BillableTimeInSeconds": 204}, (600, 204, 1, 66.0), "204 s; spot ins"),
        ({"EnableManagedSpotTraining": True, "BillableTimeInSeconds": 600}, (600, 600, 1, 0.0), "saved 0 %"),
        ({"ResourceConfig": {"InstanceCount": 4}}, (600, 600, 4, None), "600 s for each of 4 instances"),
    ],
    ids=["on demand", "spot", "spot at the full price", "several instances"],
)
def test_a_verdict_says_what_the_job_cost(
    run: Callable[..., str], world: World, changed: dict[str, Any], cost: tuple[object, ...], told: str
) -> None:
    complete(world, None, tar_gz([metrics_file(), WEIGHTS]))
    world.sagemaker.jobs[JOB] |= changed
    assert run() == "approved"
    names = ("training_seconds", "billable_seconds", "instances", "saving_percent")
    assert world.record(DECISION)["cost"] == dict(zip(names, cost, strict=True))
    rows = dict(re.findall(r"(?m)^ +(training time|billed time) +(.+)$", world.only_email().body))
    assert rows["training time"] == "600 s"
    assert told in rows["billed time"]


def test_what_sagemaker_does_not_say_is_not_told(run: Callable[..., str], world: World) -> None:
    complete(world, None, tar_gz([metrics_file(), WEIGHTS]))
    for name in ("BillableTimeInSeconds", "EnableManagedSpotTraining", "ResourceConfig"):
        world.sagemaker.jobs[JOB].pop(name, None)
    assert run() == "approved"
    assert world.record(DECISION)["cost"] is None
    assert "billed time" not in world.only_email().body


@pytest.mark.parametrize(
    ("reason", "is_awss"),
    [
        ("CapacityError: Unable to provision requested ML compute capacity. Please retry", True),
        ("InternalServerError: We encountered an internal error.  Please try again.", True),
        ("ClientError: Please use an instance type with more memory, or retry", False),
        ("ClientError: Artifact upload failed: please retry", True),
        ("ClientError: Data download failed. Please try again later", True),
        ("AlgorithmError: ExitCode 1: the hub says: please retry", False),
        ("ClientError: NoSuchKey", False),
    ],
)
def test_only_a_failure_of_awss_own_says_that_nothing_is_wrong_with_the_data(
    run: Callable[..., str], world: World, reason: str, is_awss: bool
) -> None:
    start_job(world)
    world.sagemaker.end_job(JOB, "Failed", reason=reason)
    run()
    body = world.only_email().body
    assert f"Why: {reason}\n" in body
    assert (f"nothing is wrong with your data. To train again, run: make retrain JOB={JOB}\n" in body) == is_awss
    assert ("upload the CSV again" in body) != is_awss


def test_counts_of_millions_are_written_out(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([metrics_file(train_examples=12_345_678)]), tar_gz([WEIGHTS]))
    run()
    assert "12345678" in world.only_email().body


def test_the_record_keeps_finite_numbers_only(run: Callable[..., str], world: World) -> None:
    odd = b'{"accuracy": 0.9, "eval_loss": 0.1, "x": NaN, "y": true, "labels": ["a"], "z": 1e999}'
    complete(world, tar_gz([("metrics.json", odd)]), tar_gz([WEIGHTS]))
    run()
    assert world.record(DECISION)["metrics"] == {"accuracy": 0.9, "eval_loss": 0.1}


# --- approval ---------------------------------------------------------------------------------------


def test_an_artifact_above_the_limit_of_one_copy_is_copied_in_parts_with_its_metadata(
    run: Callable[..., str], world: World, evaluator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 * 1024 * 1024
    monkeypatch.setattr(evaluator, "COPY_OBJECT_MAX_BYTES", part)
    monkeypatch.setattr(evaluator, "COPY_PART_BYTES", part)
    model = tar_gz([WEIGHTS]) + bytes(2 * part)
    complete(world, tar_gz([metrics_file()]), model)
    assert run() == "approved"
    assert world.read(APPROVED) == model
    assert world.around.calls.count("UploadPartCopy") == 3
    etag = world.record(DECISION)["artifact"]["etag"]
    metadata = world.s3.head_object(Bucket=BUCKET, Key=APPROVED)["Metadata"]
    assert metadata == {"source-etag": etag, "training-job": JOB}


@pytest.mark.parametrize(
    ("limit", "call", "error", "text"),
    [
        (5 * 1024**3, "CopyObject", ClientError, "PreconditionFailed"),
        (0, "UploadPartCopy", S3CopyFailedError, f"{ARTIFACT}.* did not match expected ETag"),
    ],
)
def test_an_artifact_that_changes_before_the_copy_is_not_approved_unseen(
    run: Callable[..., str],
    world: World,
    evaluator: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    call: str,
    error: type[Exception],
    text: str,
) -> None:
    monkeypatch.setattr(evaluator, "COPY_OBJECT_MAX_BYTES", limit)
    complete(world, tar_gz([metrics_file()]), tar_gz([WEIGHTS]))
    world.around.interruption = Interruption(call, lambda: world.put(ARTIFACT, tar_gz([("other", b"")])))
    with pytest.raises(error, match=text):
        run()
    assert world.keys("models/approved/") == []
    assert world.emails() == []
    assert world.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_an_approved_copy_is_not_made_twice(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([metrics_file()]), tar_gz([WEIGHTS]))
    world.around.interruption = Interruption("Publish", broken_connection)
    with pytest.raises(ClientError):
        run()
    assert run() == "approved"
    assert world.versions(APPROVED) == 1
    assert len(world.emails()) == 1


# --- whose job, and when ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["somebody-elses-job", "training-job-20261123-120000-ffffffff"])
def test_other_peoples_jobs_are_left_alone(run: Callable[..., str], world: World, name: str) -> None:
    start_foreign_job(world, name)
    world.sagemaker.end_job(name)
    before = world.final_state()
    assert run(name) == "not ours"
    assert world.emails() == []
    assert world.final_state() == before


def test_a_job_that_still_runs_is_left_alone_whatever_the_event_says(run: Callable[..., str], world: World) -> None:
    start_job(world)
    assert run() == "not ended"
    assert world.emails() == []
    assert world.keys("models/decisions/") == []


@pytest.mark.parametrize(
    ("name", "status", "outcome"),
    [
        ("completed", "Completed", "rejected"),
        ("failed", "Failed", "failed"),
        ("stopped", "Stopped", "stopped"),
        ("minimal", "Completed", "rejected"),
    ],
)
def test_the_documented_event_shapes_are_understood(
    evaluator: ModuleType, world: World, name: str, status: str, outcome: str
) -> None:
    start_job(world)
    world.sagemaker.end_job(JOB, status)
    sent = event(f"sagemaker_training_job_{name}")
    assert evaluator.lambda_handler(sent, Context("first")) == {"training_job": JOB, "outcome": outcome}


@pytest.mark.parametrize("detail", [None, "x", {}, {"TrainingJobName": 7}, {"TrainingJobName": ""}])
def test_an_event_without_a_job_name_is_refused(evaluator: ModuleType, world: World, detail: object) -> None:
    with pytest.raises(evaluator.EventError, match=r"detail|TrainingJobName"):
        evaluator.lambda_handler({"detail": detail}, Context("first"))


def test_a_duplicate_event_gives_no_second_decision_or_email(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([metrics_file()]), tar_gz([WEIGHTS]))
    run(request_id="first")
    before = world.final_state()
    assert run(request_id="second") == "already decided"
    assert len(world.emails()) == 1
    assert world.final_state() == before


def test_while_one_invocation_decides_another_leaves_it(run: Callable[..., str], world: World) -> None:
    complete(world, tar_gz([metrics_file()]), tar_gz([WEIGHTS]))
    outcomes: list[str] = []
    world.around.interruption = Interruption("CopyObject", lambda: outcomes.append(run(request_id="second")))
    assert run(request_id="first") == "approved"
    assert outcomes == ["in hand"]
    assert len(world.emails()) == 1


def test_a_search_out_of_time_still_ends_in_a_decision(evaluator: ModuleType, world: World) -> None:
    complete(world, None, tar_gz([WEIGHTS]))
    context: Any = Context("first", remaining_milliseconds=evaluator.RESERVE_MILLISECONDS - 1)
    assert evaluator.lambda_handler(world.job_event(JOB), context)["outcome"] == "rejected"
    assert "too large to be searched for metrics.json in time" in world.record(DECISION)["reason"]


# --- the sweep --------------------------------------------------------------------------------------

OTHER = "training-job-20261123-115900-0123abcd"


@pytest.fixture
def sweep(evaluator: ModuleType, world: World) -> Callable[..., str]:
    """Invoke the handler by the schedule; returns the outcome."""

    def invoke(milliseconds: int = 300_000) -> str:
        context = Context(f"sweep after {len(world.around.calls)} calls", milliseconds)
        return str(evaluator.lambda_handler({"source": "sweep"}, context)["outcome"])

    return invoke


def record_start(world: World, job: str = JOB) -> None:
    record = {"schema": 1, "job": job, "started_at": "2026-11-23T11:00:00+00:00"}
    world.put(f"data/snapshots/{job}/started.json", record)


def good_job(world: World) -> None:
    complete(world, tar_gz([metrics_file()]), tar_gz([WEIGHTS]))
    record_start(world)


def test_a_job_whose_event_was_lost_is_decided_by_the_sweep(sweep: Callable[..., str], world: World) -> None:
    good_job(world)
    assert sweep() == "approved"
    assert world.only_email().subject == "Model approved: default (support.csv)"
    assert sweep() == "nothing undecided"
    assert len(world.emails()) == 1


def test_an_event_that_comes_before_sagemaker_shows_the_end_is_made_up_for_by_the_sweep(
    run: Callable[..., str], sweep: Callable[..., str], world: World
) -> None:
    start_job(world)
    record_start(world)
    assert run() == "not ended"
    assert sweep() == "nothing undecided"
    world.sagemaker.end_job(JOB, "Failed", reason="All rows have the label 'ham'")
    assert sweep() == "failed"


def test_a_sweep_over_decided_and_running_jobs_describes_the_running_and_writes_nothing(
    run: Callable[..., str], sweep: Callable[..., str], world: World
) -> None:
    good_job(world)
    run()
    start_job(world, OTHER)
    record_start(world, OTHER)
    before, state = len(world.around.calls), world.final_state()
    assert sweep() == "nothing undecided"
    assert world.around.calls[before:] == ["HeadObject", "ListObjectsV2", "ListObjectsV2", "DescribeTrainingJob"]
    assert world.final_state() == state
    assert len(world.emails()) == 1


def test_while_paused_nothing_is_swept(sweep: Callable[..., str], world: World) -> None:
    good_job(world)
    world.put("control/paused.json", {"schema": 1})
    before = len(world.around.calls)
    assert sweep() == "paused"
    assert world.around.calls[before:] == ["HeadObject"]


@pytest.mark.parametrize("days", [0, 6, 8, 400])
def test_the_event_of_a_decided_job_changes_nothing_however_late_it_comes(
    run: Callable[..., str], evaluator: ModuleType, timed_world: World, days: int
) -> None:
    assert run() == "approved"
    timed_world.wait(days=days)
    if days > evaluator.LOOK_BACK_DAYS:  # S3 deletes them
        for key in timed_world.keys("claims/"):
            timed_world.s3.delete_object(Bucket=BUCKET, Key=key)
    before = timed_world.final_state()
    for late in ("late", "later"):
        assert run(request_id=late) == "already decided"
    assert timed_world.final_state() == before
    assert len(timed_world.emails()) == 1


def test_a_job_that_somebody_deleted_is_decided_as_failed(sweep: Callable[..., str], world: World) -> None:
    start_job(world)
    record_start(world)
    del world.sagemaker.jobs[JOB]
    assert sweep() == "failed"
    assert "the training job is gone: somebody deleted it in SageMaker" in world.only_email().body


def test_a_job_that_is_not_seen_yet_is_not_taken_for_deleted(
    run: Callable[..., str], sweep: Callable[..., str], world: World
) -> None:
    start_job(world)
    del world.sagemaker.jobs[JOB]
    assert run() == "not ended"
    world.put(f"data/snapshots/{JOB}/started.json", {"started_at": world.time.isoformat()})
    assert sweep() == "not ended"
    assert world.emails() == []


@pytest.mark.parametrize("key", [f"data/snapshots/{JOB}/other.json", "data/snapshots/mine/started.json"])
def test_a_snapshot_that_was_not_started_is_left_alone(sweep: Callable[..., str], world: World, key: str) -> None:
    world.put(key, {})
    assert sweep() == "nothing undecided"


def test_what_cannot_be_decided_is_tried_a_bounded_number_of_times_and_then_decided_as_failed(
    sweep: Callable[..., str], world: World, evaluator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    good_job(world)
    monkeypatch.setattr(evaluator, "evaluate", refuse_good_jobs(evaluator))
    failures = 0
    for _ in range(400):
        try:
            sweep()
        except OSError:
            failures += 1
        world.wait(minutes=21)
    assert 0 < failures <= evaluator.GIVE_UP_TRIES
    assert world.only_email().subject == "Training failed: default (support.csv)"
    assert "its evaluation failed 24 times, most recently with: OSError: broken." in world.only_email().body


def test_what_cannot_be_decided_keeps_nobody_waiting(
    sweep: Callable[..., str], world: World, evaluator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    good_job(world)
    monkeypatch.setattr(evaluator, "evaluate", refuse_good_jobs(evaluator))
    with pytest.raises(OSError, match="broken"):
        sweep()
    start_job(world, OTHER)
    record_start(world, OTHER)
    world.sagemaker.end_job(OTHER, "Stopped")
    world.wait(minutes=21)
    with pytest.raises(OSError, match="broken"):
        sweep()
    assert world.keys("models/decisions/") == [f"models/decisions/{OTHER}.json"]


def test_a_sweep_leaves_to_the_next_one_what_it_has_no_time_for(sweep: Callable[..., str], world: World) -> None:
    good_job(world)
    start_job(world, OTHER)
    record_start(world, OTHER)
    world.sagemaker.end_job(OTHER, "Stopped")
    assert sweep(milliseconds=239_999) in ("stopped", "approved")
    assert len(world.keys("models/decisions/")) == 1
    sweep()
    assert len(world.keys("models/decisions/")) == 2


def refuse_good_jobs(evaluator: ModuleType) -> Callable[..., Any]:
    """evaluate(), but that of a completed job breaks."""
    real = evaluator.evaluate

    def evaluate(config: Any, source: Any, description: Any, out_of_time: Any) -> Any:
        if description["TrainingJobStatus"] == "Completed":
            raise OSError("broken")
        return real(config, source, description, out_of_time)

    return evaluate
