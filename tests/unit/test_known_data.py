"""The training orchestrator does not pay for the same data twice: equal bytes for a model start no second job, as long
as the settings and the training program make the same of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ClientError

from world import BUCKET, CSV, PROGRAM_KEY, Interruption, World, broken_connection, csv_number, in_memory, runner

KNOWN = "already trained on"
# From an empty stack to a training job, when nothing goes wrong.
CALLS_OF_A_FIRST_UPLOAD = 20


@pytest.fixture
def world(training: ModuleType, environment: None, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("MAX_CONCURRENT_TRAINING_JOBS", "50")
    return in_memory(training, monkeypatch)


@pytest.fixture
def run(training: ModuleType, world: World) -> Callable[..., str]:
    return runner(training, world)


def upload(world: World, name: str = "x.csv", body: bytes = CSV) -> dict[str, Any]:
    return world.upload(f"data/train/reviews/{name}", body, time=f"{world.time:%Y-%m-%dT%H:%M:%SZ}")


def known(world: World) -> list[dict[str, Any]]:
    """The records of the uploads that were not trained on."""
    return [world.record(key) for key in world.keys("data/rejected/")]


def subjects(world: World) -> Counter[str]:
    return Counter(email.subject for email in world.emails())


def test_the_same_bytes_start_no_second_job_and_one_email_names_the_job_that_has_them(
    run: Callable[..., str], world: World
) -> None:
    assert run(upload(world)) == "started"
    (job,) = world.sagemaker.jobs
    world.wait(hours=1)
    assert run(upload(world, "another name.tsv")) == KNOWN
    assert list(world.sagemaker.jobs) == [job]
    email = world.emails()[-1]
    assert email.subject == "Training not repeated: reviews (another name.tsv)"
    assert email.attributes == {"stage": "training", "status": "already-trained-on", "model": "reviews"}
    assert f"  make retrain JOB={job}\n" in email.body
    assert f'the job {job} of the model "reviews" has the same bytes, with the same settings' in email.body
    (record,) = known(world)
    assert record["known_job"] == job
    assert record["told"]["rows"] == "4 read, 4 used"


def test_later_events_and_sweeps_leave_known_data_alone(run: Callable[..., str], world: World) -> None:
    run(upload(world))
    again = upload(world, "again.csv")
    run(again)
    before = world.final_state(), world.emails()
    for _ in range(2):
        world.wait(minutes=21)
        assert run(again) == "already rejected"
        assert run() == "started 0, waiting 0"
    assert (world.final_state(), world.emails()) == before


def test_the_same_bytes_for_another_model_are_trained_on(run: Callable[..., str], world: World) -> None:
    run(upload(world))
    assert run(world.upload("data/train/x.csv", CSV)) == "started"


MAKES_ANOTHER_MODEL = {
    "HYPERPARAMETERS": '{"epochs": "4", "learning_rate": "5e-5", "seed": "42"}',
    "BASE_MODEL": "bert-base-cased",
    "BASE_MODEL_REVISION": "0" * 40,
    "TRAINING_IMAGE": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.14.0-cpu-sagemaker",
    "CANDIDATES": "words",
    "TEXT_COLUMN": "Text",
    "LABEL_COLUMN": "Label",
}
MAKES_THE_SAME = {
    "MAX_ROWS_LEFT_OUT": "0.1",
    "MAX_MODELS": "9",
    "TRAINING_INSTANCE_TYPE": "ml.m5.2xlarge",
    "TRAINING_INSTANCE_COUNT": "2",
    "TRAINING_MAX_RUNTIME_SECONDS": "3600",
    "TRAINING_MAX_WAIT_SECONDS": "10000",
    "BASE_MODEL_ENGLISH": "org/another@v1",  # of auto, which is not the base model here
}


@pytest.mark.parametrize("name", [*MAKES_ANOTHER_MODEL, *MAKES_THE_SAME])
def test_with_a_setting_that_makes_another_model_the_same_bytes_are_trained_on_again(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run(upload(world))
    monkeypatch.setenv(name, (MAKES_ANOTHER_MODEL | MAKES_THE_SAME)[name])
    training.settings.cache_clear()
    assert run(upload(world, "again.csv")) == ("started" if name in MAKES_ANOTHER_MODEL else KNOWN)


def test_with_another_encoder_to_choose_from_the_same_bytes_are_trained_on_again(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_MODEL", "auto")
    run(upload(world))
    monkeypatch.setenv("BASE_MODEL_MULTILINGUAL", "org/another@v1")
    training.settings.cache_clear()
    assert run(upload(world, "again.csv")) == "started"


def test_the_order_of_the_hyperparameters_makes_no_other_model(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(upload(world))
    monkeypatch.setenv("HYPERPARAMETERS", '{"seed": "42", "learning_rate": "5e-5", "epochs": "3"}')
    training.settings.cache_clear()
    assert run(upload(world, "again.csv")) == KNOWN


def test_with_another_training_program_the_same_bytes_are_trained_on_again(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(upload(world))
    monkeypatch.setenv("TRAINING_SOURCE_HASH", "1" * 64)
    training.settings.cache_clear()
    assert run(upload(world, "again.csv")) == "started"


def test_without_a_training_program_the_upload_is_an_error_and_not_its_person_s_fault(
    run: Callable[..., str], world: World
) -> None:
    world.s3.delete_object(Bucket=BUCKET, Key=PROGRAM_KEY)
    with pytest.raises(ClientError, match="NoSuchKey"):
        run(upload(world))
    assert known(world) == []


# --- many -------------------------------------------------------------------------------------------


def test_the_same_file_a_hundred_times_is_one_job_and_two_emails(run: Callable[..., str], world: World) -> None:
    outcomes = Counter(run(upload(world, f"{number}.csv")) for number in range(100))
    assert outcomes == {"started": 1, KNOWN: 99}
    world.wait(minutes=21)
    run()
    assert len(world.emails()) == 3
    assert world.emails()[-1].subject.startswith("Training not repeated: reviews (")
    assert world.emails()[-1].subject.endswith(".csv) and 97 more")
    assert "  uploads of known data  98\n" in world.emails()[-1].body


def test_known_data_and_bad_files_share_no_email(run: Callable[..., str], world: World) -> None:
    run(upload(world))
    for number in range(3):
        run(upload(world, f"{number}.csv"))
        run(upload(world, f"bad {number}.csv", b"text;label\n"))
    world.wait(minutes=21)
    run()
    told = [email for email in world.emails() if email.attributes["status"] != "started"]
    assert Counter(email.attributes["status"] for email in told) == {"already-trained-on": 2, "rejected": 2}
    assert all(("make retrain" in email.body) == (email.attributes["status"] != "rejected") for email in told)


def test_known_data_of_many_models_shares_an_email_that_is_not_of_bad_files(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for round_ in range(2):
        monkeypatch.setenv("MAX_MODELS", "2")
        for model in "abcd":
            monkeypatch.setenv("MODELS", "a b c d")
            training.settings.cache_clear()
            run(world.upload(f"data/train/{model}/{round_}.csv", CSV))
    crowds = world.record("slots/training.json")["rejected"]
    assert sorted(crowds) == [f"/{KNOWN}", f"a/{KNOWN}", f"b/{KNOWN}"]
    assert "" not in crowds


# --- what a claim is worth --------------------------------------------------------------------------


def gone(world: World, *names: str) -> None:
    """Files of the only job's snapshot were deleted: by their age, or by make erase."""
    for key in world.keys("data/snapshots/"):
        if not names or key.rsplit("/", 1)[-1] in names:
            world.s3.delete_object(Bucket=BUCKET, Key=key)


@pytest.mark.parametrize("names", [(), ("data.csv",)], ids=["all", "its data"])
def test_data_whose_snapshot_is_gone_is_trained_on(
    run: Callable[..., str], world: World, names: tuple[str, ...]
) -> None:
    run(upload(world))
    gone(world, *names)
    world.wait(days=2)
    assert run(upload(world, "again.csv")) == "started"
    assert len(world.sagemaker.jobs) == 2
    assert run(upload(world, "once more.csv")) == KNOWN
    assert known(world)[0]["known_job"] == max(world.sagemaker.jobs)


@pytest.mark.parametrize(("hours", "outcome"), [(23, KNOWN), (25, "started")])
def test_a_job_that_never_got_its_data_has_it_for_a_day(
    run: Callable[..., str], world: World, hours: int, outcome: str
) -> None:
    world.around.interruption = Interruption("CopyObject", broken_connection)
    with pytest.raises(ClientError):
        run(upload(world))
    world.wait(hours=hours)
    assert run(upload(world, "again.csv")) == outcome


def test_a_job_that_was_refused_after_all_has_no_data(run: Callable[..., str], world: World) -> None:
    sent = world.unversioned_upload("data/train/reviews/x.csv", CSV)
    world.around.interruption = Interruption("CopyObject", lambda: world.put("data/train/reviews/x.csv", csv_number(1)))
    assert run(sent) == "rejected"
    assert run(upload(world)) == "started"


@pytest.mark.parametrize("call", range(CALLS_OF_A_FIRST_UPLOAD))
@pytest.mark.parametrize("after_the_effect", [False, True])
def test_an_upload_that_broke_off_finds_its_data_to_be_its_own(
    run: Callable[..., str], world: World, call: int, after_the_effect: bool
) -> None:
    sent = upload(world)
    world.around.interruption = Interruption(call, broken_connection, after_the_effect)
    try:
        run(sent, "the event")
    except ClientError:
        run(sent, "the event")
    run()
    assert len(world.sagemaker.jobs) == 1
    assert known(world) == []


@pytest.mark.parametrize("call", range(CALLS_OF_A_FIRST_UPLOAD))
def test_two_uploads_of_the_same_bytes_at_once_are_one_job(run: Callable[..., str], world: World, call: int) -> None:
    first, second = upload(world), upload(world, "again.csv")
    outcomes: list[str] = []
    world.around.interruption = Interruption(call, lambda: outcomes.append(run(second, "second")))
    outcomes.append(run(first, "first"))
    for _ in range(2):
        world.wait(minutes=21)
        run()
    assert len(world.sagemaker.jobs) == 1
    (record,) = known(world)
    assert [record["known_job"]] == list(world.sagemaker.jobs)
    assert sorted(subjects(world).values()) == [1, 1]


def test_of_a_file_that_was_read_in_part_the_size_and_the_etag_say_whether_it_is_the_same(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PREFLIGHT_SECONDS", -1)
    large = CSV + b"hello,ham\n" * 50_000
    bodies = [large, large, large + b"more,ham\n"]
    assert [run(upload(world, f"{n}.csv", body)) for n, body in enumerate(bodies)] == ["started", KNOWN, "started"]


def test_a_job_that_is_trained_again_on_a_person_s_word_is_started_whatever_has_its_data(
    run: Callable[..., str], world: World
) -> None:
    """What make retrain leaves: another job's snapshot with the same data."""
    run(upload(world))
    (job,) = world.sagemaker.jobs
    new = f"{job[:-8]}00000000"
    source = world.record(f"data/snapshots/{job}/source.json")
    world.put(f"data/snapshots/{new}/data.csv", CSV)
    world.put(f"data/snapshots/{new}/source.json", json.loads(json.dumps(source | {"job": new, "retrain_of": job})))
    assert run() == "started 1, waiting 0"
    assert new in world.sagemaker.jobs
