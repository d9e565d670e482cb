"""The training orchestrator's spend guards, its line of waiting uploads, and its sweep."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fake_sagemaker import refusal
from world import BUCKET, PROGRAM_KEY, Context, Interruption, World

SWEEP = {"source": "sweep"}
LEDGER = "slots/training.json"


@pytest.fixture
def run(training: ModuleType, world: World) -> Callable[..., str]:
    """Invoke the handler with an event, each time as another request; returns the outcome."""

    def invoke(sent: dict[str, Any], request_id: str = "") -> str:
        name = request_id or f"request after {len(world.around.calls)} calls"
        return str(training.lambda_handler(sent, Context(name))["outcome"])

    return invoke


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, training: ModuleType) -> Callable[..., None]:
    """Change the guards, as Terraform would: limit(jobs=1, a_day=5)."""

    def change(jobs: int = 2, a_day: int = 20, instance_type: str = "ml.m5.xlarge") -> None:
        monkeypatch.setenv("MAX_CONCURRENT_TRAINING_JOBS", str(jobs))
        monkeypatch.setenv("MAX_TRAINING_JOBS_PER_DAY", str(a_day))
        monkeypatch.setenv("TRAINING_INSTANCE_TYPE", instance_type)
        training.settings.cache_clear()

    return change


def upload(world: World, minute: int, model: str = "default", hour: int = 11) -> dict[str, Any]:
    """An upload of its minute: <minute>.csv."""
    folder = "" if model == "default" else f"{model}/"
    return world.upload(f"data/train/{folder}{minute}.csv", time=f"2026-11-23T{hour:02}:{minute:02}:00Z")


def minutes(world: World) -> list[int]:
    """The minutes of the uploads whose jobs exist, in the order in which they were started."""
    return [int(name[24:26]) for name in world.sagemaker.jobs]


def job_of(world: World, minute: int) -> str:
    (job,) = (name for name in world.sagemaker.jobs if int(name[24:26]) == minute)
    return job


def end(world: World, minute: int, status: str = "Completed") -> dict[str, Any]:
    """The upload's job ends; returns the event."""
    job = job_of(world, minute)
    world.sagemaker.end_job(job, status)
    return world.job_event(job, status)


def subjects(world: World) -> list[str]:
    return [email.subject for email in world.emails()]


# --- how many run at the same time ------------------------------------------------------------------


def test_what_exceeds_the_slots_waits_and_is_started_in_order_as_jobs_end(
    run: Callable[..., str], world: World
) -> None:
    uploads = [upload(world, minute) for minute in (1, 2, 3, 4)]
    assert [run(sent) for sent in uploads] == ["started", "started", "waiting for a slot", "waiting for a slot"]
    assert minutes(world) == [1, 2]
    assert run(end(world, 2)) == "started 1, waiting 1 for a slot"
    assert run(end(world, 1, "Failed")) == "started 1, waiting 0"
    assert minutes(world) == [1, 2, 3, 4]


def test_one_email_says_what_a_crowd_waits_for(run: Callable[..., str], world: World) -> None:
    for minute in range(1, 8):
        run(upload(world, minute))
    (waiting,) = [email for email in world.emails() if email.attributes["status"] == "waiting"]
    assert waiting.subject == "Training waiting: default (3.csv)"
    taken = "every training slot is taken: max_concurrent_training_jobs is 2."
    for fact in (
        taken,
        "the oldest upload goes first",
        "make status",
        "in the next 20 minutes get no email of their own",
    ):
        assert fact in waiting.body


def test_who_joins_the_line_later_is_emailed_too_and_a_duplicate_is_not(run: Callable[..., str], world: World) -> None:
    uploads = [upload(world, minute) for minute in (1, 2, 3, 4)]
    for sent in uploads[:3]:
        run(sent)
    world.wait(minutes=21)
    assert run(uploads[2]) == "waiting for a slot"
    run(uploads[3])
    assert subjects(world)[2:] == [
        "Training waiting: default (3.csv)",
        "Training waiting: default (4.csv) and 1 more",
    ]
    assert run(SWEEP) == "started 0, waiting 2 for a slot"
    assert len(world.emails()) == 4


def test_a_waiting_upload_is_recorded_with_what_it_waits_for(run: Callable[..., str], world: World) -> None:
    for minute in (1, 2, 3):
        run(upload(world, minute, "reviews"))
    (key,) = [key for key in world.keys("data/snapshots/") if key.endswith("waiting.json")]
    assert key.startswith("data/snapshots/training-job-20261123-110300-")
    assert (world.record(key)["for"], world.record(key)["model"]) == ("a slot", "reviews")


def test_a_slot_whose_job_ended_is_freed_by_the_sweep_when_the_event_is_lost(
    run: Callable[..., str], world: World
) -> None:
    for minute in (1, 2, 3):
        run(upload(world, minute))
    end(world, 1)
    assert run(SWEEP) == "started 1, waiting 0"
    assert minutes(world) == [1, 2, 3]


def test_a_job_that_is_still_running_keeps_its_slot_whatever_an_event_says(
    run: Callable[..., str], world: World
) -> None:
    for minute in (1, 2, 3):
        run(upload(world, minute))
    assert run(world.job_event(job_of(world, 1))) == "started 0, waiting 1 for a slot"
    assert minutes(world) == [1, 2]


def test_the_end_of_somebody_elses_job_is_passed_over(run: Callable[..., str], world: World) -> None:
    for job in ("training-job-20261123-110000-0123abcd", "training-job-of-theirs"):
        assert run(world.job_event(job)) == "not ours"
    assert world.keys() == [PROGRAM_KEY]


def test_a_lower_and_a_higher_maximum_hold_at_once(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    limit(jobs=3)
    for minute in (1, 2, 3, 4, 5, 6):
        run(upload(world, minute))
    limit(jobs=1)
    assert run(end(world, 1)) == "started 0, waiting 3 for a slot"
    assert run(end(world, 2)) == "started 0, waiting 3 for a slot"
    assert run(end(world, 3)) == "started 1, waiting 2 for a slot"
    limit(jobs=5)
    assert run(SWEEP) == "started 2, waiting 0"
    assert minutes(world) == [1, 2, 3, 4, 5, 6]


def test_a_slot_that_was_taken_and_never_used_is_freed_once_its_holder_must_be_dead(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    limit(jobs=1)
    world.sagemaker.before_create = lambda _: (_ for _ in ()).throw(ConnectionError("lost"))
    with pytest.raises(ConnectionError):
        run(upload(world, 1))
    world.sagemaker.before_create = None
    assert run(upload(world, 2)) == "waiting for a slot"
    world.wait(minutes=21)
    # The job may be started by whoever comes first; it holds its slot already.
    assert run(SWEEP) == "started 1, waiting 1 for a slot"
    assert len(minutes(world)) == 1


def test_a_snapshot_that_somebody_else_made_is_started_by_the_sweep(run: Callable[..., str], world: World) -> None:
    run(upload(world, 1))
    (job,) = world.sagemaker.jobs
    again = "training-job-20261123-115900-0123abcd"
    world.put(f"data/snapshots/{again}/data.csv", world.read(f"data/snapshots/{job}/data.csv"))
    world.put(f"data/snapshots/{again}/source.json", world.record(f"data/snapshots/{job}/source.json") | {"job": again})
    assert run(SWEEP) == "started 1, waiting 0"
    assert again in world.sagemaker.jobs


def test_an_upload_older_than_the_look_back_is_started_while_it_is_in_line(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    limit(jobs=1)
    for minute in (1, 2):
        run(upload(world, minute))
    world.wait(days=30)
    assert run(end(world, 1)) == "started 1, waiting 0"


# --- how many are started on a day ------------------------------------------------------------------


@pytest.fixture
def full_day(run: Callable[..., str], world: World, limit: Callable[..., None]) -> None:
    """Room for two a day: minutes 1 and 2 were started and ended, 3, 4, 5, 6 wait, 4 and 6 of another model."""
    limit(jobs=9, a_day=2)
    for minute, model in enumerate(("default", "default", "default", "reviews", "default", "reviews"), start=1):
        run(upload(world, minute, model))
    for minute in (1, 2):
        assert run(end(world, minute)) == "started 0, waiting 4 for the next day"


@pytest.mark.usefixtures("full_day")
def test_the_daily_limit_holds_until_midnight_utc_and_then_the_oldest_go_first(
    run: Callable[..., str], world: World
) -> None:
    assert minutes(world) == [1, 2]
    world.time = datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)
    assert run(SWEEP) == "started 0, waiting 4 for the next day"
    world.time += timedelta(seconds=1)
    assert run(SWEEP) == "started 2, waiting 2 for the next day"
    assert minutes(world) == [1, 2, 3, 4]
    world.time += timedelta(days=1)
    assert run(SWEEP) == "started 2, waiting 0"
    assert minutes(world) == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("full_day")
def test_the_email_on_the_daily_limit_says_when_and_in_which_order_it_goes_on(world: World) -> None:
    (waiting,) = [email for email in world.emails() if email.attributes["status"] == "waiting"]
    assert "no more jobs may start today (UTC): max_training_jobs_per_day is 2." in waiting.body
    assert "after midnight UTC; the oldest upload goes first" in waiting.body


@pytest.mark.usefixtures("full_day")
def test_once_nothing_waits_any_more_the_ledger_says_so(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    world.time += timedelta(days=1)
    limit(jobs=9)
    oldest = min(key.split("/")[2] for key in world.keys("data/snapshots/") if key.endswith("waiting.json"))
    assert world.record(LEDGER)["oldest_waiting"] == oldest
    assert run(SWEEP) == "started 4, waiting 0"
    assert run(SWEEP) == "started 0, waiting 0"
    assert world.record(LEDGER)["oldest_waiting"] == ""


def test_a_line_that_begins_to_wait_for_the_next_day_is_emailed_though_nobody_joins_it(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    limit(jobs=1, a_day=2)
    for minute in (1, 2, 3, 4):
        run(upload(world, minute))
    run(end(world, 1))
    assert run(end(world, 2)) == "started 0, waiting 2 for the next day"
    assert subjects(world) == [
        "Training started: default (1.csv)",
        "Training waiting: default (2.csv)",
        "Training started: default (2.csv)",
        "Training waiting: default (3.csv) and 1 more",
    ]


# --- quotas -----------------------------------------------------------------------------------------


def test_a_quota_that_is_used_up_is_tried_again_when_a_job_ends_and_emailed_once(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    limit(jobs=5)
    world.sagemaker.training_quota = 2
    for minute in (1, 2, 3, 4):
        run(upload(world, minute))
    world.sagemaker.training_quota = 1  # another figure in the message is no other reason
    for _ in range(5):
        assert run(SWEEP) == "started 0, waiting 2 for quota"
    world.sagemaker.training_quota = 2
    assert run(end(world, 1)) == "started 1, waiting 1 for quota"
    assert run(end(world, 2)) == "started 1, waiting 0"
    assert Counter(email.attributes["status"] for email in world.emails()) == {"started": 4, "waiting": 1}
    assert world.record(LEDGER)["day"]["jobs"] == sorted(world.sagemaker.jobs)


@pytest.mark.parametrize("quota", [0, 1])
def test_a_quota_is_asked_a_few_times_at_once_and_then_once_an_hour(
    run: Callable[..., str], world: World, training: ModuleType, quota: int
) -> None:
    world.sagemaker.training_quota = 1
    for minute in range(1, quota + 1):
        assert run(upload(world, minute)) == "started"
    world.sagemaker.training_quota = quota
    waits_for = "quota" if quota else "a quota above 0"
    uploads = [upload(world, minute) for minute in (11, 12)]
    before = world.around.calls.count("CreateTrainingJob")
    for sent in (*uploads, *uploads, uploads[0]):
        assert run(sent) == f"waiting for {waits_for}"
    assert world.around.calls.count("CreateTrainingJob") == before + training.EAGER_TRIES
    for _ in range(24 * 4):
        assert run(SWEEP) == f"started 0, waiting 2 for {waits_for}"
        world.wait(minutes=15)
    asked = world.around.calls.count("CreateTrainingJob") - before - training.EAGER_TRIES
    # Each time a little more than an hour after the last: at every fifth sweep, and at the fourth in between.
    assert 24 * 4 // 5 <= asked <= 24


def test_a_line_that_waits_for_a_quota_of_0_is_emailed_once_a_day(run: Callable[..., str], world: World) -> None:
    world.sagemaker.training_quota = 0
    for minute in (1, 2):
        assert run(upload(world, minute)) == "waiting for a quota above 0"
    for _ in range(3 * 6):
        world.wait(hours=4)
        run(SWEEP)
    assert subjects(world) == ["Training not started: default: instance quota is 0"] * 4


def test_who_joins_a_line_for_a_quota_of_0_later_is_emailed_too(run: Callable[..., str], world: World) -> None:
    world.sagemaker.training_quota = 0
    run(upload(world, 1))
    world.wait(minutes=21)
    run(upload(world, 30, "reviews"))
    assert subjects(world) == [
        "Training not started: default: instance quota is 0",
        "Training not started: reviews: instance quota is 0",
    ]


def test_once_a_quota_is_above_0_the_next_upload_takes_the_line_along(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    limit(jobs=5)
    world.sagemaker.training_quota = 0
    run(upload(world, 1))
    world.sagemaker.training_quota = None
    assert run(upload(world, 2)) == "started"
    assert minutes(world) == [1, 2]


def test_another_instance_type_is_tried_by_the_next_sweep(
    run: Callable[..., str], world: World, limit: Callable[..., None], training: ModuleType
) -> None:
    world.sagemaker.training_quota = 0
    run(upload(world, 1))
    for _ in range(training.EAGER_TRIES):
        run(SWEEP)
    world.sagemaker.training_quota = None
    assert run(SWEEP) == "started 0, waiting 1 for a quota above 0"
    limit(instance_type="ml.c5.xlarge")
    assert run(SWEEP) == "started 1, waiting 0"


def test_refusals_for_want_of_quota_never_make_an_upload_given_up(
    run: Callable[..., str], world: World, training: ModuleType
) -> None:
    world.sagemaker.training_quota = 0
    run(upload(world, 1))
    for _ in range(2 * training.GIVE_UP_TRIES):
        world.wait(hours=2)
        assert run(SWEEP) == "started 0, waiting 1 for a quota above 0"
    world.sagemaker.training_quota = None
    world.wait(hours=2)
    assert run(SWEEP) == "started 1, waiting 0"


def test_an_upload_that_waited_already_is_emailed_when_its_quota_turns_out_to_be_0(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    limit(jobs=1)
    for minute in (1, 2):
        run(upload(world, minute))
    world.sagemaker.training_quota = 0
    assert run(end(world, 1)) == "started 0, waiting 1 for a quota above 0"
    assert subjects(world)[-1] == "Training not started: default: instance quota is 0"


# --- pause ------------------------------------------------------------------------------------------


def test_while_paused_nothing_is_started_and_resuming_starts_what_waits(run: Callable[..., str], world: World) -> None:
    run(upload(world, 1))
    world.put("control/paused.json", {"schema": 1})
    assert run(upload(world, 2)) == "waiting for resume"
    assert run(upload(world, 3)) == "waiting for resume"
    assert "make resume" in world.emails()[1].body
    before = world.final_state()
    assert run(SWEEP) == "paused"
    assert world.final_state() == before
    run(end(world, 1))
    assert minutes(world) == [1]
    assert len(world.emails()) == 2
    world.s3.delete_object(Bucket=BUCKET, Key="control/paused.json")
    world.wait(days=9)
    assert run(SWEEP) == "started 2, waiting 0"


# --- the sweep --------------------------------------------------------------------------------------


def test_a_sweep_over_a_healthy_system_makes_a_handful_of_calls_writes_nothing_and_mails_nobody(
    run: Callable[..., str], world: World
) -> None:
    for minute in range(1, 6):
        run(upload(world, minute))
        run(end(world, minute))
    run(upload(world, 6))
    before, state, mails = len(world.around.calls), world.final_state(), len(world.emails())
    assert run(SWEEP) == "started 0, waiting 0"
    # The last one looks for uploads whose event never came.
    calls = ["GetObject", "DescribeTrainingJob", "ListObjectsV2", "ListObjectsV2"]
    assert world.around.calls[before:] == calls
    assert (world.final_state(), len(world.emails())) == (state, mails)


def test_a_sweep_over_a_new_stack_is_silent(run: Callable[..., str], world: World) -> None:
    assert run(SWEEP) == "started 0, waiting 0"
    assert world.around.calls == ["GetObject", "ListObjectsV2", "ListObjectsV2"]
    assert world.keys() == [PROGRAM_KEY]


@pytest.fixture
def refused_upload(run: Callable[..., str], world: World) -> str:
    """Minute 1 waits, and SageMaker refuses its job for a reason that lasts; returns the job."""
    world.put("control/paused.json", {"schema": 1})
    run(upload(world, 1))
    world.s3.delete_object(Bucket=BUCKET, Key="control/paused.json")
    (job,) = {key.split("/")[2] for key in world.keys("data/snapshots/")}

    def refuse(name: str) -> None:
        if name == job:
            raise refusal("CreateTrainingJob", "ValidationException", "Could not assume role")

    world.sagemaker.before_create = refuse
    return job


def test_what_cannot_be_started_is_tried_a_bounded_number_of_times_then_given_up_with_one_email(
    run: Callable[..., str], world: World, training: ModuleType, refused_upload: str
) -> None:
    refused = 0
    for _ in range(200):
        refused += run(SWEEP).endswith(", refused 1")
        world.wait(minutes=15)
    assert refused == training.GIVE_UP_TRIES
    assert world.around.calls.count("CreateTrainingJob") == training.GIVE_UP_TRIES
    email = world.emails()[-1]
    assert email.subject == "Training given up: default (1.csv)"
    assert f"make retrain JOB={refused_upload}" in email.body
    assert (
        f"AWS did not start it in {training.GIVE_UP_TRIES} tries. Its last answer: Could not assume role" in email.body
    )
    assert subjects(world) == [
        "Training waiting: default (1.csv)",
        "Training not started: default: AWS refused it (1.csv)",
        "Training given up: default (1.csv)",
    ]
    given_up = world.record(f"data/snapshots/{refused_upload}/given_up.json")
    assert (given_up["tries"], given_up["reason"]) == (training.GIVE_UP_TRIES, "Could not assume role")


def test_what_cannot_be_started_keeps_nobody_waiting(
    run: Callable[..., str], world: World, limit: Callable[..., None], refused_upload: str
) -> None:
    limit(jobs=1)
    assert run(SWEEP) == "started 0, waiting 0, refused 1"
    assert run(upload(world, 2)) == "started"
    assert minutes(world) == [2]
    world.sagemaker.before_create = None
    assert run(end(world, 2)) == "started 1, waiting 0"
    assert refused_upload in world.sagemaker.jobs


def test_a_refusal_is_emailed_again_only_when_its_words_change(
    run: Callable[..., str], world: World, refused_upload: str
) -> None:
    def say(text: str) -> None:
        world.sagemaker.before_create = lambda _: (_ for _ in ()).throw(
            refusal("CreateTrainingJob", "ValidationException", text)
        )

    for said in (
        "No image (request 0a1b2c3d-0000-4000-8000-0123456789ab, try 1)",
        "No image (request ffffffff-0000-4000-8000-0123456789ab, try 22)",
        "No such key",
        "No such key",
    ):
        say(said)
        assert run(SWEEP) == "started 0, waiting 0, refused 1"
    assert [email.body.partition("AWS said: ")[2].partition("\n")[0] for email in world.emails()[1:]] == [
        "No image (request 0a1b2c3d-0000-4000-8000-0123456789ab, try 1)",
        "No such key",
    ]


def test_a_refused_upload_starts_by_itself_once_the_cause_is_gone(
    run: Callable[..., str], world: World, refused_upload: str
) -> None:
    for _ in range(2):
        run(SWEEP)
    world.sagemaker.before_create = None
    assert run(SWEEP) == "started 1, waiting 0"
    assert world.around.calls.count("CreateTrainingJob") == 3
    assert subjects(world)[1:] == [
        "Training not started: default: AWS refused it (1.csv)",
        "Training started: default (1.csv)",
    ]


def test_while_a_refusal_is_emailed_nobody_else_tries_the_upload(run: Callable[..., str], world: World) -> None:
    sent = upload(world, 1)
    world.sagemaker.refusals["CreateTrainingJob"] = refusal("CreateTrainingJob", "ValidationException", "No image")
    outcomes: list[str] = []
    world.around.interruption = Interruption("Publish", lambda: outcomes.append(run(sent, "another")))
    assert run(sent, "first") == "refused"
    assert outcomes == ["in hand"]
    assert len(world.emails()) == 1


def test_the_event_of_an_upload_that_was_given_up_can_be_sent_again(
    run: Callable[..., str], world: World, training: ModuleType, refused_upload: str
) -> None:
    world.put(f"data/snapshots/{refused_upload}/given_up.json", {"schema": 1})
    world.sagemaker.before_create = None
    sent = world.upload("data/train/1.csv")
    sent["detail"]["object"] = {
        name.replace("_", "-"): world.record(f"data/snapshots/{refused_upload}/source.json")[name]
        for name in ("key", "etag", "version_id", "sequencer", "size")
    }
    sent["time"] = "2026-11-23T11:01:00Z"
    assert run(sent) == "started"
    assert refused_upload in world.sagemaker.jobs


# --- sent again -------------------------------------------------------------------------------------


def test_a_failed_event_that_is_sent_again_takes_up_what_the_dead_invocation_holds(
    run: Callable[..., str], world: World
) -> None:
    sent = upload(world, 1)
    world.around.interruption = Interruption("CopyObject", lambda: (_ for _ in ()).throw(ConnectionError("lost")))
    with pytest.raises(ConnectionError):
        run(sent, "the dead one")
    assert run(sent, "another") == "in hand"
    again = {"redrive_of": "the dead one", "event": sent}
    assert run(again, "a new one") == "started"
    assert run(again, "one more") == "already started"


@pytest.mark.parametrize("broken", [{"redrive_of": 1, "event": {"a": 1}}, {"redrive_of": "r"}, {"redrive_of": ""}])
def test_a_redriven_event_that_is_off_is_named(training: ModuleType, broken: dict[str, Any]) -> None:
    with pytest.raises(training.EventError, match=r"redrive_of|event"):
        training.unwrap(broken, Context("r"))


def test_a_job_that_was_started_by_a_try_before_the_one_that_was_throttled_holds_its_slot(
    run: Callable[..., str], world: World, limit: Callable[..., None]
) -> None:
    def throttled() -> None:
        raise refusal("CreateTrainingJob", "ThrottlingException", "Rate exceeded")

    limit(jobs=1)
    first = upload(world, 1)
    world.around.interruption = Interruption("CreateTrainingJob", throttled, after_the_effect=True)
    with pytest.raises(ClientError, match="Throttling"):
        run(first, "first")
    assert run(upload(world, 2)) == "waiting for a slot"
    assert run(first, "first") == "started"
    assert minutes(world) == [1]


# --- many at once -----------------------------------------------------------------------------------


class OneAtATime:
    """AWS under many threads: each call takes effect as a whole, as on AWS; moto's do not."""

    def __init__(self, world: World) -> None:
        self._lock = threading.RLock()
        self._world = world
        self.most_running = 0

    def client(self, service: str) -> Any:
        wrapped = self._world.client(service)

        def method(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **request: Any) -> Any:
                with self._lock:
                    answer = getattr(wrapped, name)(*arguments, **request)
                    self.most_running = max(self.most_running, self._world.sagemaker.running())
                    return answer

            return call

        names = ("get_object", "put_object", "head_object", "copy", "copy_object", "publish")
        calls = {name: method(name) for name in (*names, "create_training_job", "describe_training_job")}
        pages = SimpleNamespace(paginate=self._paginate)
        return SimpleNamespace(**calls, meta=wrapped.meta, get_paginator=lambda _: pages)

    def _paginate(self, Bucket: str, Prefix: str, StartAfter: str = "") -> list[dict[str, Any]]:
        """Straight from memory: every invocation lists up to 800 keys."""
        with self._lock:
            keys = sorted(self._world.stored_keys())
        found = [key for key in keys if key.startswith(Prefix) and key > StartAfter]
        item = {"ETag": '""', "Size": 1, "LastModified": self._world.time}
        return [{"Contents": [{"Key": key, **item} for key in found]}]


class Day:
    """Events handled by many workers in random order, as Lambda would; a job ends some time after it was started."""

    def __init__(self, training: ModuleType, world: World, uploads: list[dict[str, Any]], seed: int) -> None:
        self._training, self._world = training, world
        self._events, self._random = list(uploads), random.Random(seed)
        self._at_work = 0
        self._changed = threading.Condition()
        world.sagemaker.before_create = self._plan_end

    def _plan_end(self, job: str) -> None:
        if job not in self._world.sagemaker.jobs:
            with self._changed:
                self._events.append(self._world.job_event(job))
                self._changed.notify()

    def work(self) -> None:
        """Handle events until there are none and nobody is at one that may bring more."""
        while True:
            with self._changed:
                while not self._events and self._at_work:
                    self._changed.wait(timeout=60)
                if not self._events:
                    self._changed.notify_all()
                    return
                sent = self._events.pop(self._random.randrange(len(self._events)))
                self._at_work += 1
                number = len(self._world.around.calls)
            try:
                job = sent["detail"].get("TrainingJobName")
                if job in self._world.sagemaker.jobs:
                    self._world.sagemaker.end_job(job)
                self._training.lambda_handler(sent, Context(f"{number} {self._random.random()}"))
            finally:
                with self._changed:
                    self._at_work -= 1
                    self._changed.notify_all()


def test_200_uploads_at_once_with_room_for_5_never_run_more_and_lose_and_double_none(
    training: ModuleType, world: World, limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(jobs=5, a_day=200)
    uploads = [upload(world, number % 60, hour=7 + number // 60) for number in range(200)]
    one_at_a_time = OneAtATime(world)
    monkeypatch.setattr(training, "client", one_at_a_time.client)
    day = Day(training, world, uploads, seed=1)
    with ThreadPoolExecutor(20) as pool:
        for worker in [pool.submit(day.work) for _ in range(20)]:
            worker.result()
    for _ in range(2):
        for name, job in list(world.sagemaker.jobs.items()):
            if job["TrainingJobStatus"] == "InProgress":
                world.sagemaker.end_job(name)
        training.lambda_handler(SWEEP, Context(f"sweep after {len(world.around.calls)}"))

    assert one_at_a_time.most_running == 5
    assert len(world.sagemaker.jobs) == 200
    assert set(world.sagemaker.jobs) == {training.parse_upload(sent)["job"] for sent in uploads}
    told = Counter(subjects(world))
    assert sum(told[subject] for subject in told if subject.startswith("Training waiting")) == 1
    assert sum(told.values()) == 201
    assert len([key for key in world.stored_keys() if key.endswith("/started.json")]) == 200
    assert len(world.record(LEDGER)["day"]["jobs"]) == 200
