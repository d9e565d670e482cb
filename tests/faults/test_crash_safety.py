"""A fault at any call to AWS, or a duplicate event at any moment, ends where an undisturbed run does.

For each path: it is run once undisturbed; then once for every call in it and every fault that the call can meet: an
error before it takes effect, one after it did, the process killed before or after, a duplicate of the event handled in
between. After an error the same event comes again with the same request id, as Lambda retries; or, if all its attempts
fail, a person sends it again. Then the sweep comes by, endpoints that are under way come up, and the sweep once more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from paths import PATHS, CommandFailedError, Handlers, Path

from fake_sagemaker import AnswerLost
from faults import ERRORS, Fault, answers, faults_of
from world import HANDLERS, Context, Interruption, World

# Longer than a lease: whoever held one is dead.
BETWEEN_SWEEPS_MINUTES = 21
SWEEP = {"source": "sweep"}
JOB_NAME = re.compile(r"training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
# What SageMaker denies is no fault but an outcome: people are emailed once, and it is retried.
REFUSED = {
    "CreateTrainingJob": "Training not started",
    "CreateModel": "Deployment waiting",
    "CreateEndpointConfig": "Deployment waiting",
    "CreateEndpoint": "Deployment waiting",
    "UpdateEndpoint": "Deployment waiting",
}
CASES = f"cases of (handler, path, call, fault) over {len(PATHS)} paths, all as undisturbed"


class Run:
    """One path in a fresh world, up to its event."""

    def __init__(self, path: Path, make_world: Callable[[], World], handlers: Handlers) -> None:
        self.world = make_world()
        self._handlers = handlers
        self._path = path
        self.event = path.prepare(self.world, handlers)
        self._emails_before = len(self.world.emails())
        self._calls_before = len(self.world.around.calls)

    # --- what happens -------------------------------------------------------------------------------

    def attempt(self, request_id: str = "request") -> bool:
        """The event is handled, or the command is run; whether that went well."""
        try:
            self.invoke(request_id)
        except (*ERRORS, CommandFailedError):
            return False
        return True

    def invoke(self, request_id: str = "request", envelope: bool = False) -> None:
        self.world.wait(seconds=1)
        if callable(self.event):
            self.event()
            return
        sent = {"redrive_of": "request", "event": self.event} if envelope else self.event
        self._handlers[self._path.handler].lambda_handler(sent, Context(request_id))

    def finish(self) -> None:
        """All that follows, in which nothing goes wrong: sweeps, and what is under way comes up."""
        if self._path.afterwards:
            self._path.afterwards(self.world, self._handlers)
        for round_ in range(3):
            self.world.wait(minutes=BETWEEN_SWEEPS_MINUTES)
            for handler in HANDLERS:
                self._handlers[handler].lambda_handler(SWEEP, Context(f"sweep {round_}"))
            for name, endpoint in list(self.world.sagemaker.endpoints.items()):
                if endpoint["EndpointStatus"] in ("Creating", "Updating"):
                    self.world.sagemaker.come_up(name)
                    sent = self.world.endpoint_event(name)
                    self._handlers["deployment_orchestrator"].lambda_handler(sent, Context(f"{name} {round_}"))

    def interrupt(self, call: int, action: Callable[[], object], after_the_effect: bool = False) -> None:
        """Arm the interruption of the n-th call from here (from 0)."""
        self.world.around.interruption = Interruption(self._calls_before + call, action, after_the_effect)

    # --- what came of it ----------------------------------------------------------------------------

    @property
    def calls(self) -> list[str]:
        return self.world.around.calls[self._calls_before :]

    @property
    def emails(self) -> Counter[str]:
        """What was told since, by subject and training job."""
        sent = self.world.emails()[self._emails_before :]
        return Counter(f"{email.subject} {'/'.join(JOB_NAME.findall(email.body)[:1])}" for email in sent)

    def state(self, copies: bool = True, refused: bool = False) -> dict[str, Any]:
        """What lasts; copies: with how often each approved model was written; refused: without what was emailed."""
        state = self.world.final_state()
        for key, body in state["objects"].items() if refused else ():
            if key.startswith("models/deployments/"):
                del body["emails"]
            if key == "slots/training.json":
                for entry in body["jobs"].values():
                    entry.pop("emailed", None)
        if not copies:
            objects = state["objects"].items()
            state["objects"] = {key: body[0] if isinstance(body, tuple) else body for key, body in objects}
        return state

    def difference(self, other: Run, copies: bool = True) -> dict[str, Any]:
        """What is otherwise than in another run: {what: (here, there)}."""
        ours, theirs = ({**run.state(copies)["objects"], **run.state()["sagemaker"]} for run in (self, other))
        both = {what: (ours.get(what), theirs.get(what)) for what in sorted(ours.keys() | theirs.keys())}
        return {what: pair for what, pair in both.items() if pair[0] != pair[1]} | {
            "emails": (self.emails - other.emails, other.emails - self.emails)
        }


@dataclass
class Undisturbed:
    """How a path ends when nothing goes wrong."""

    calls: list[str]
    emails: Counter[str]
    run: Run


@pytest.fixture(params=PATHS)
def start(
    request: pytest.FixtureRequest,
    make_world: Callable[[], World],
    handlers: Handlers,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Run]:
    """Gives the path in a fresh world at each call."""
    path = PATHS[request.param]
    for name, value in path.environment.items():
        monkeypatch.setenv(name, value)
    if path.read_in_part:
        monkeypatch.setattr(handlers[path.handler], "PREFLIGHT_SECONDS", -1)
    if path.copy_in_parts:
        monkeypatch.setattr(handlers[path.handler], "COPY_OBJECT_MAX_BYTES", 0)
    return lambda: Run(path, make_world, handlers)


@pytest.fixture
def undisturbed(start: Callable[[], Run]) -> Undisturbed:
    run = start()
    run.invoke()
    calls = run.calls
    run.finish()
    assert set(run.emails.values()) <= {1}
    return Undisturbed(calls, run.emails, run)


def test_a_fault_at_any_call_and_a_retry_end_as_if_nothing_had_happened(
    start: Callable[[], Run], undisturbed: Undisturbed, count: Callable[..., None]
) -> None:
    wrong = []
    for call, operation in enumerate(undisturbed.calls):
        for fault in faults_of(operation):
            if fault.name == "access denied" and operation in REFUSED:
                continue
            run = start()
            run.interrupt(call, partial(fault.strike, operation), fault.after_the_effect)
            went_well = run.attempt()
            told = run.emails
            if not went_well:
                run.invoke()
            run.finish()
            copies = not isinstance(fault.error(operation), AnswerLost)
            repeated = not copies and operation == "Publish"
            # Nobody is told twice, but of what the attempt that failed had told last.
            twice = run.emails - undisturbed.emails
            if (
                run.state(copies) != undisturbed.run.state(copies)
                or run.emails.keys() != undisturbed.emails.keys()
                or twice.total() > (1 if repeated or not went_well else 0)
                or not twice <= told
            ):
                wrong.append(f"call {call}: {operation}: {fault.name}: {run.difference(undisturbed.run, copies)}")
            count({CASES: 1, f"{CASES}: {fault.name}": 1})
    assert not wrong, "\n".join(wrong)


# Here others wait for the turn of an upload that is refused, and one of them takes it.
LINES = ("next in line", "wait for quota", "quota of 0 while waiting", "the next day")


@pytest.mark.parametrize("start", LINES, indirect=True)
def test_a_refusal_gives_the_turn_to_the_next_in_line_and_loses_nothing(
    start: Callable[[], Run], undisturbed: Undisturbed, count: Callable[..., None]
) -> None:
    call = undisturbed.calls.index("CreateTrainingJob")
    run = start()
    run.interrupt(call, lambda: (_ for _ in ()).throw(answers("CreateTrainingJob")[2]("CreateTrainingJob")))
    assert run.attempt()
    run.finish()
    refusals = [subject for subject in run.emails.elements() if "AWS refused it" in subject]
    assert len(refusals) == 1
    assert set(run.emails.values()) == {1}
    jobs, snapshots = run.world.sagemaker.jobs, run.world.keys("data/snapshots/")
    assert len(jobs) == len(undisturbed.run.world.sagemaker.jobs)
    assert [key for key in snapshots if key.endswith("/source.json")] == [
        key for key in undisturbed.run.world.keys("data/snapshots/") if key.endswith("/source.json")
    ]
    assert {key.split("/")[2] for key in snapshots if key.endswith("/started.json")} == jobs.keys()
    assert not [key for key in snapshots if key.endswith("/given_up.json")]
    count({CASES: 1, f"{CASES}: refused": 1})


@pytest.mark.parametrize("start", [name for name in PATHS if name not in LINES], indirect=True)
def test_a_refusal_at_any_call_is_emailed_once_and_ends_as_if_nothing_had_happened(
    start: Callable[[], Run], undisturbed: Undisturbed, count: Callable[..., None]
) -> None:
    for call, operation in enumerate(undisturbed.calls):
        if operation not in REFUSED:
            continue
        run = start()
        run.interrupt(call, lambda operation=operation: (_ for _ in ()).throw(answers(operation)[2](operation)))
        assert run.attempt(), f"call {call}: {operation}"
        run.finish()
        more = run.emails - undisturbed.emails
        expected = undisturbed.run.state(refused=True)
        assert run.state(refused=True) == expected, (call, operation, run.difference(undisturbed.run))
        assert [subject.partition(":")[0] for subject in more.elements()] == [REFUSED[operation]], (call, operation)
        assert not undisturbed.emails - run.emails, (call, operation)
        count({CASES: 1, f"{CASES}: refused": 1})


def die(run: Run, call: int, operation: str) -> None:
    """The event fails at a call, and again in both of Lambda's retries."""
    broken = Fault("5xx", lambda operation: answers(operation)[1](operation))
    for attempt in range(3):
        run.interrupt(call if attempt == 0 else len(run.calls), partial(broken.strike, operation))
        run.attempt()


def test_a_dead_event_that_is_sent_again_twice_ends_as_if_nothing_had_happened(
    start: Callable[[], Run], undisturbed: Undisturbed, count: Callable[..., None]
) -> None:
    for call, operation in enumerate(undisturbed.calls):
        run = start()
        die(run, call, operation)
        run.world.wait(minutes=1)
        for again in (1, 2):
            run.invoke(f"sent again {again}", envelope=True)
        run.finish()
        at = f"call {call}: {operation}"
        assert run.state() == undisturbed.run.state(), at
        assert run.emails.keys() == undisturbed.emails.keys(), at
        assert run.emails.total() <= undisturbed.emails.total() + 1, at
        count({CASES: 1, f"{CASES}: dead event sent again, twice": 1})


# An upload whose event died before its snapshot was made waits in the queue for make redrive: it is no sweep's.
LEFT_TO_THE_SWEEP = [
    name for name, path in PATHS.items() if path.handler in ("model_evaluator", "deployment_orchestrator")
]


@pytest.mark.parametrize("start", LEFT_TO_THE_SWEEP, indirect=True)
def test_what_a_dead_event_left_is_finished_by_the_sweep(
    start: Callable[[], Run], undisturbed: Undisturbed, count: Callable[..., None]
) -> None:
    for call, operation in enumerate(undisturbed.calls):
        run = start()
        die(run, call, operation)
        run.finish()
        at = f"call {call}: {operation}"
        assert run.state() == undisturbed.run.state(), (at, run.difference(undisturbed.run))
        assert run.emails.keys() == undisturbed.emails.keys(), at
        assert run.emails.total() <= undisturbed.emails.total() + 1, at
        count({CASES: 1, f"{CASES}: dead event, left to the sweep": 1})


def test_a_duplicate_event_handled_at_any_call_changes_nothing_and_mails_nobody_twice(
    start: Callable[[], Run], undisturbed: Undisturbed, count: Callable[..., None]
) -> None:
    for call, operation in enumerate(undisturbed.calls):
        run = start()
        run.interrupt(call, partial(run.invoke, "another request"))
        run.attempt()
        run.finish()
        at = f"call {call}: {operation}"
        assert run.state() == undisturbed.run.state(), at
        assert run.emails == undisturbed.emails, at
        count({CASES: 1, f"{CASES}: duplicate event meanwhile": 1})


def test_a_duplicate_event_afterwards_changes_nothing_and_mails_nobody(
    start: Callable[[], Run], undisturbed: Undisturbed
) -> None:
    run = start()
    run.invoke()
    run.invoke("another request")
    run.finish()
    assert run.state() == undisturbed.run.state()
    assert run.emails == undisturbed.emails
