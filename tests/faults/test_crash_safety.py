"""A crash between any two calls to AWS, or a duplicate event at any moment, ends where an undisturbed run does.

For each path through a handler: the path is run once undisturbed; then once for every call in it, with the process
killed after the call's effect, with AWS failing instead of the call, and with a duplicate of the event handled in
between. After a crash the same event comes again with the same request id, as Lambda retries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ClientError

from test_deployment_orchestrator import (
    ARTIFACT,
    FIRST,
    PING_FAILED,
    SECOND,
    THIRD,
    approved_key,
    decide,
    make_foreign_endpoint,
)
from test_model_evaluator import JOB, WEIGHTS, complete, metrics_file, record_start, start_job
from test_spend_guards import SWEEP, end
from test_spend_guards import upload as upload_of_minute
from world import BUCKET, ENDPOINT, Context, Interruption, Killed, World, broken_connection, killed, tar_gz

READS = ("Get", "Head", "List", "Describe", "Invoke")

Event = dict[str, Any]
Handlers = dict[str, ModuleType]


@dataclass(frozen=True)
class Path:
    """One path through a handler: what the world looks like before, and the event that sets it off.

    sweeps: how many sweeps it takes after the event until nothing moves any more.
    """

    handler: str
    prepare: Callable[[World, Handlers], Event]
    copy_in_parts: bool = False
    sweeps: int = 0


def upload(content: bytes) -> Callable[[World, Handlers], Event]:
    return lambda world, _: world.upload("data/train/reviews/x.csv", content)


def upload_over_quota(world: World, _: Handlers) -> Event:
    world.sagemaker.training_quota = 0
    return world.upload("data/train/x.csv")


def one_slot(world: World, handlers: Handlers) -> Event:
    """Both slots are taken, and an upload of a minute later comes."""
    for minute in (1, 2):
        handlers["training_orchestrator"].lambda_handler(upload_of_minute(world, minute), Context(f"minute {minute}"))
    return upload_of_minute(world, 3)


def waiting(world: World, handlers: Handlers) -> None:
    """Both slots are taken, and a third and a fourth upload wait."""
    for minute, sent in ((3, one_slot(world, handlers)), (4, upload_of_minute(world, 4))):
        handlers["training_orchestrator"].lambda_handler(sent, Context(f"minute {minute}"))


def job_ended(world: World, handlers: Handlers) -> Event:
    waiting(world, handlers)
    return end(world, 1)


def events_lost(world: World, handlers: Handlers) -> Event:
    waiting(world, handlers)
    for minute in (1, 2):
        end(world, minute)
    return SWEEP


def quota_while_waiting(quota: int) -> Callable[[World, Handlers], Event]:
    def prepare(world: World, handlers: Handlers) -> Event:
        sent = job_ended(world, handlers)
        world.sagemaker.training_quota = quota
        return sent

    return prepare


def paused_upload(world: World, _: Handlers) -> Event:
    world.put("control/paused.json", {"schema": 1})
    return upload_of_minute(world, 1)


def resumed(world: World, handlers: Handlers) -> Event:
    handlers["training_orchestrator"].lambda_handler(paused_upload(world, handlers), Context("paused"))
    world.s3.delete_object(Bucket=BUCKET, Key="control/paused.json")
    return SWEEP


def tried_in_vain(world: World, handlers: Handlers) -> Event:
    """An upload waits whose job could not be started as often as it is tried."""
    sent = resumed(world, handlers)
    world.sagemaker.before_create = lambda _: broken_connection()
    for number in range(handlers["training_orchestrator"].GIVE_UP_TRIES):
        with pytest.raises(ClientError):
            handlers["training_orchestrator"].lambda_handler(sent, Context(f"try {number}"))
        world.wait(hours=2)
    return sent


def event_lost(world: World, _: Handlers) -> Event:
    complete(world, None, tar_gz([metrics_file(), WEIGHTS]))
    record_start(world)
    return SWEEP


def deleted_job(world: World, _: Handlers) -> Event:
    start_job(world)
    record_start(world)
    del world.sagemaker.jobs[JOB]
    return SWEEP


def completed(**metrics: object) -> Callable[[World, Handlers], Event]:
    def prepare(world: World, _: Handlers) -> Event:
        complete(world, None, tar_gz([metrics_file(**metrics), WEIGHTS]))
        return world.job_event(JOB)

    return prepare


def completed_beside_a_live_model(accuracy: float) -> Callable[[World, Handlers], Event]:
    """The job was compared with the live model, and with one that was approved meanwhile."""

    def figures(value: float) -> dict[str, Any]:
        sets = [
            {"name": "hold-out of the live model", "rows": 50, "live": {"accuracy": 0.9}, "new": {"accuracy": value}}
        ]
        return {"job": FIRST, "compared": True, "note": "", "sets": sets}

    def prepare(world: World, _: Handlers) -> Event:
        rival = "training-job-20261123-110000-0123abcd"
        world.put(f"models/approved/default/{rival}/model.tar.gz", ARTIFACT)
        world.put(f"models/decisions/{rival}.json", {"schema": 1, "job": rival, "champion": figures(0.91)})
        complete(world, tar_gz([metrics_file(champion=figures(accuracy))]), tar_gz([WEIGHTS]))
        return world.job_event(JOB)

    return prepare


def upload_beside_a_live_model(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return world.upload("data/train/x.csv", b"text,label\na,b\n")


def failed_job(world: World, _: Handlers) -> Event:
    start_job(world)
    world.sagemaker.end_job(JOB, "Failed", reason="All rows have the label 'ham'")
    return world.job_event(JOB, "Failed")


def stopped_job(world: World, _: Handlers) -> Event:
    start_job(world)
    world.sagemaker.end_job(JOB, "Stopped", secondary="MaxRuntimeExceeded")
    return world.job_event(JOB, "Stopped")


def approval(job: str, artifact: bytes = ARTIFACT) -> Callable[[World, Handlers], Event]:
    return lambda world, _: world.upload(approved_key(job), artifact)


def rollout(job: str = FIRST) -> Callable[[World, Handlers], Event]:
    """A model's deployment is asked for and under way."""

    def prepare(world: World, handlers: Handlers) -> Event:
        handlers["deployment_orchestrator"].lambda_handler(approval(job)(world, handlers), Context(f"rollout of {job}"))
        return world.endpoint_event()

    return prepare


def arrival(job: str = FIRST) -> Callable[[World, Handlers], Event]:
    """The endpoint came into service with the model."""

    def prepare(world: World, handlers: Handlers) -> Event:
        sent = rollout(job)(world, handlers)
        world.sagemaker.come_up(ENDPOINT)
        return sent

    return prepare


def live(world: World, handlers: Handlers) -> None:
    """The first model is in service, and that was told."""
    handlers["deployment_orchestrator"].lambda_handler(arrival()(world, handlers), Context("live"))


def update(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return approval(SECOND)(world, handlers)


def update_arrived(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return arrival(SECOND)(world, handlers)


def rolled_back(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    sent = rollout(SECOND)(world, handlers)
    world.sagemaker.roll_back(ENDPOINT, PING_FAILED)
    return sent


def failed_endpoint(world: World, handlers: Handlers) -> Event:
    sent = rollout()(world, handlers)
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    return sent


def next_in_line(world: World, handlers: Handlers) -> Event:
    """The first model came up while the second was already approved."""
    sent = rollout()(world, handlers)
    approval(SECOND)(world, handlers)
    world.sagemaker.come_up(ENDPOINT)
    return sent


def bad_artifact(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return approval(SECOND, b"no archive")(world, handlers)


def foreign_endpoint(world: World, handlers: Handlers) -> Event:
    make_foreign_endpoint(world)
    return approval(FIRST)(world, handlers)


def endpoint_quota(world: World, handlers: Handlers) -> Event:
    world.sagemaker.endpoint_quota_message = "The account-level service limit 'serverless' is 0"
    return approval(FIRST)(world, handlers)


def settled(job: str, world: World, handlers: Handlers) -> None:
    """The model is in service, and that was told."""
    handlers["deployment_orchestrator"].lambda_handler(arrival(job)(world, handlers), Context(f"arrival of {job}"))


def wrong_answers(world: World, handlers: Handlers) -> Event:
    """The second model came up, and answers otherwise than it did in training."""
    live(world, handlers)
    decide(world, SECOND)
    world.sagemaker.answers[SECOND] = ("spam", 0.9)
    return arrival(SECOND)(world, handlers)


def first_answers_wrongly(world: World, handlers: Handlers) -> Event:
    decide(world, FIRST)
    world.sagemaker.answers[FIRST] = ("spam", 0.9)
    return arrival()(world, handlers)


def right_answers(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    decide(world, SECOND)
    return arrival(SECOND)(world, handlers)


def restored(world: World, handlers: Handlers) -> Event:
    sent = wrong_answers(world, handlers)
    handlers["deployment_orchestrator"].lambda_handler(sent, Context("wrong answers"))
    world.sagemaker.come_up(ENDPOINT)
    return sent


def failed_update(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    sent = rollout(SECOND)(world, handlers)
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    return sent


def failed_live_endpoint(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    world.sagemaker.fail(ENDPOINT, "The instance failed")
    return world.endpoint_event(status="FAILED")


def deleted_by_hand(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    world.sagemaker.vanish(ENDPOINT)
    return {"source": "sweep"}


def approved_after_deletion(world: World, handlers: Handlers) -> Event:
    handlers["deployment_orchestrator"].lambda_handler(deleted_by_hand(world, handlers), Context("deleted"))
    return approval(SECOND)(world, handlers)


def third_arrived(world: World, handlers: Handlers) -> Event:
    """The third model came up; two are kept, so the first goes."""
    settled(FIRST, world, handlers)
    settled(SECOND, world, handlers)
    return arrival(THIRD)(world, handlers)


def from_instances_to_serverless(world: World, handlers: Handlers) -> Event:
    deployer = handlers["deployment_orchestrator"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ENDPOINT_TYPE", "instance")
        deployer.settings.cache_clear()
        live(world, handlers)
    deployer.settings.cache_clear()
    return approval(SECOND)(world, handlers)


PATHS = {
    "start": Path("training_orchestrator", upload(b"text,label\na,b\n")),
    "start, large": Path("training_orchestrator", upload(b"text,label\na,b\n"), copy_in_parts=True),
    "refuse a bad upload": Path("training_orchestrator", upload(b"text;label\n")),
    "start over quota": Path("training_orchestrator", upload_over_quota),
    "wait for a slot": Path("training_orchestrator", one_slot),
    "next in line": Path("training_orchestrator", job_ended),
    "sweep: slots to free, jobs to start": Path("training_orchestrator", events_lost),
    "wait for quota": Path("training_orchestrator", quota_while_waiting(1)),
    "quota of 0 while waiting": Path("training_orchestrator", quota_while_waiting(0)),
    "wait for resume": Path("training_orchestrator", paused_upload),
    "resume": Path("training_orchestrator", resumed),
    "give up": Path("training_orchestrator", tried_in_vain),
    "sweep: approve": Path("model_evaluator", event_lost),
    "sweep: deleted job": Path("model_evaluator", deleted_job),
    "approve": Path("model_evaluator", completed()),
    "approve, large": Path("model_evaluator", completed(), copy_in_parts=True),
    "approve beside a live model": Path("model_evaluator", completed_beside_a_live_model(0.91)),
    "reject beside a live model": Path("model_evaluator", completed_beside_a_live_model(0.9)),
    "start beside a live model": Path("training_orchestrator", upload_beside_a_live_model),
    "reject": Path("model_evaluator", completed(accuracy=0.1)),
    "job failed": Path("model_evaluator", failed_job),
    "job stopped": Path("model_evaluator", stopped_job),
    "create": Path("deployment_orchestrator", approval(FIRST)),
    "confirm": Path("deployment_orchestrator", arrival()),
    "update": Path("deployment_orchestrator", update),
    "confirm update": Path("deployment_orchestrator", update_arrived),
    "rolled back": Path("deployment_orchestrator", rolled_back),
    "failed endpoint": Path("deployment_orchestrator", failed_endpoint, sweeps=1),
    "right answers": Path("deployment_orchestrator", right_answers),
    "wrong answers": Path("deployment_orchestrator", wrong_answers),
    "wrong answers of the first model": Path("deployment_orchestrator", first_answers_wrongly, sweeps=1),
    "restored": Path("deployment_orchestrator", restored),
    "failed update": Path("deployment_orchestrator", failed_update, sweeps=1),
    "failed live endpoint": Path("deployment_orchestrator", failed_live_endpoint, sweeps=1),
    "deleted by hand": Path("deployment_orchestrator", deleted_by_hand),
    "approved after a deletion by hand": Path("deployment_orchestrator", approved_after_deletion),
    "clean up": Path("deployment_orchestrator", third_arrived),
    "replace": Path("deployment_orchestrator", from_instances_to_serverless, sweeps=1),
    "confirm, then update": Path("deployment_orchestrator", next_in_line),
    "bad artifact": Path("deployment_orchestrator", bad_artifact),
    "endpoint of another stack": Path("deployment_orchestrator", foreign_endpoint),
    "endpoint quota": Path("deployment_orchestrator", endpoint_quota),
}


class Run:
    """One path in a fresh world, up to its event."""

    def __init__(self, path: Path, make_world: Callable[[], World], handlers: Handlers) -> None:
        self.world = make_world()
        self.event = path.prepare(self.world, handlers)
        self._handler = handlers[path.handler]
        self._sweeps = path.sweeps
        self._emails_before = len(self.world.emails())
        self._calls_before = len(self.world.around.calls)

    def invoke(self, request_id: str = "request") -> None:
        self._handler.lambda_handler(self.event, Context(request_id))

    def sweep(self) -> None:
        """The sweeps that follow, in which nothing goes wrong."""
        for number in range(self._sweeps):
            self._handler.lambda_handler({"source": "sweep"}, Context(f"sweep {number}"))

    def interrupt(self, call: int, action: Callable[[], object], after_the_effect: bool = False) -> None:
        """Arm the interruption of the n-th call from here (from 0)."""
        self.world.around.interruption = Interruption(self._calls_before + call, action, after_the_effect)

    @property
    def calls(self) -> list[str]:
        return self.world.around.calls[self._calls_before :]

    @property
    def emails(self) -> Counter[str]:
        return Counter(email.subject for email in self.world.emails()[self._emails_before :])


@pytest.fixture(params=PATHS)
def start(
    request: pytest.FixtureRequest,
    make_world: Callable[[], World],
    handlers: Handlers,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Run]:
    """Gives the path in a fresh world at each call."""
    path = PATHS[request.param]
    if path.copy_in_parts:
        monkeypatch.setattr(handlers[path.handler], "COPY_OBJECT_MAX_BYTES", 0)
    return lambda: Run(path, make_world, handlers)


@pytest.fixture
def undisturbed(start: Callable[[], Run]) -> tuple[dict[str, Any], Counter[str], list[str]]:
    """Final state, emails and calls of the path when nothing goes wrong."""
    run = start()
    run.invoke()
    calls = run.calls
    run.sweep()
    assert run.emails
    assert set(run.emails.values()) == {1}
    return run.world.final_state(), run.emails, calls


@pytest.mark.parametrize(
    ("fault", "error", "after_the_effect"),
    [(killed, Killed, True), (broken_connection, ClientError, False)],
    ids=["killed after it", "AWS fails instead"],
)
def test_a_crash_at_any_call_and_a_retry_end_as_if_nothing_had_happened(
    start: Callable[[], Run],
    undisturbed: tuple[dict[str, Any], Counter[str], list[str]],
    fault: Callable[[], None],
    error: type[BaseException],
    after_the_effect: bool,
) -> None:
    state, emails, calls = undisturbed
    for call, operation in enumerate(calls):
        if operation.startswith(READS) and (after_the_effect or (call > 0 and calls[call - 1].startswith(READS))):
            continue  # it has no effect: the same as a failure of the call after it, or before it
        run = start()
        run.interrupt(call, fault, after_the_effect)
        with pytest.raises(error):
            run.invoke()
        at = f"call {call}: {operation}"
        run.invoke()
        run.sweep()
        assert run.world.final_state() == state, at
        assert run.emails.keys() == emails.keys(), at
        assert run.emails.total() <= emails.total() + 1, at


def test_a_duplicate_event_handled_at_any_call_changes_nothing_and_mails_nobody_twice(
    start: Callable[[], Run], undisturbed: tuple[dict[str, Any], Counter[str], list[str]]
) -> None:
    state, emails, calls = undisturbed
    for call, operation in enumerate(calls):
        run = start()
        run.interrupt(call, lambda run=run: run.invoke("another request"))  # type: ignore[misc]
        run.invoke()
        run.sweep()
        at = f"call {call}: {operation}"
        assert run.world.final_state() == state, at
        assert run.emails == emails, at


def test_a_duplicate_event_afterwards_changes_nothing_and_mails_nobody(
    start: Callable[[], Run], undisturbed: tuple[dict[str, Any], Counter[str], list[str]]
) -> None:
    state, emails, _ = undisturbed
    run = start()
    run.invoke()
    run.invoke("another request")
    run.sweep()
    assert run.world.final_state() == state
    assert run.emails == emails
