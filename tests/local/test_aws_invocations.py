"""The queue of asynchronous invocations, with a clock of its own and no threads unless a test needs them."""

from __future__ import annotations

import itertools
import threading

import pytest

from local.invocations import EVENT_AGE_EXCEEDED, RETRIES_EXHAUSTED, Attempt, Invocation, InvocationQueue

FAILED = Attempt(error={"errorMessage": "no", "errorType": "ValueError"})
THROTTLED = Attempt(throttled=True)
DONE = Attempt()


class Clock:
    """Seconds, moved by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Recorded:
    """A queue whose attempts are played from a list, with what happened and when."""

    def __init__(self, *outcomes: Attempt) -> None:
        self.outcomes = list(outcomes)
        self.clock = Clock()
        self.attempts: list[tuple[float, str]] = []
        self.given_up: list[tuple[Invocation, Attempt, str]] = []
        self.queue = InvocationQueue(
            self.run,
            lambda invocation, attempt, condition: self.given_up.append((invocation, attempt, condition)),
            workers=0,
            retry_base_seconds=60.0,
            clock=self.clock,
        )

    def run(self, invocation: Invocation) -> Attempt:
        self.attempts.append((self.clock.now, invocation.request_id))
        return self.outcomes.pop(0)

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            while self.queue.run_due():
                pass
            self.clock.now += 1

    def times(self) -> list[float]:
        return [when for when, _ in self.attempts]


def test_an_error_is_tried_again_after_one_and_two_minutes_then_given_up() -> None:
    recorded = Recorded(FAILED, FAILED, FAILED)
    recorded.queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(1000)
    assert recorded.times() == [0, 60, 180]
    [(invocation, attempt, condition)] = recorded.given_up
    assert (invocation.attempts, attempt, condition) == (3, FAILED, RETRIES_EXHAUSTED)


def test_every_attempt_has_the_same_request_id() -> None:
    recorded = Recorded(FAILED, THROTTLED, DONE)
    recorded.queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(1000)
    assert len(recorded.attempts) == 3
    assert len({request_id for _, request_id in recorded.attempts}) == 1


def test_two_invocations_have_different_request_ids() -> None:
    assert Invocation("arn", {}).request_id != Invocation("arn", {}).request_id


def test_success_ends_the_invocation() -> None:
    recorded = Recorded(FAILED, DONE)
    recorded.queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(1000)
    assert (recorded.times(), recorded.given_up) == ([0, 60], [])


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_the_number_of_retries_is_the_functions_setting(retries: int) -> None:
    recorded = Recorded(*[Attempt(error={}, max_retries=retries)] * 5)
    recorded.queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(1000)
    assert len(recorded.attempts) == retries + 1


def test_a_throttle_doubles_its_delay_and_counts_as_no_attempt() -> None:
    recorded = Recorded(*[THROTTLED] * 4, FAILED, FAILED, FAILED)
    recorded.queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(1000)
    assert recorded.times() == [0, 1, 3, 7, 15, 75, 195]
    assert recorded.given_up[0][0].attempts == 3


def test_throttles_are_tried_every_five_minutes_at_most_until_the_event_is_too_old() -> None:
    recorded = Recorded(*[Attempt(throttled=True, max_age_seconds=1800)] * 100)
    recorded.queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(4000)
    times = recorded.times()
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) == 300
    assert times[-1] <= 1800
    assert [condition for _, _, condition in recorded.given_up] == [EVENT_AGE_EXCEEDED]


def test_a_retry_that_would_come_too_late_is_given_up_for_its_age() -> None:
    recorded = Recorded(Attempt(error={}, max_age_seconds=60), Attempt(error={}, max_age_seconds=60))
    recorded.queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(1000)
    assert recorded.times() == [0, 60]
    assert recorded.given_up[0][2] == EVENT_AGE_EXCEEDED


def test_an_attempt_that_breaks_off_is_tried_again() -> None:
    recorded = Recorded()

    def run(invocation: Invocation) -> Attempt:
        recorded.attempts.append((recorded.clock.now, invocation.request_id))
        if len(recorded.attempts) == 1:
            raise OSError("no more processes")
        return DONE

    queue = InvocationQueue(run, lambda *_: None, workers=0, retry_base_seconds=60.0, clock=recorded.clock)
    recorded.queue = queue
    queue.submit(Invocation("arn", {}))
    recorded.pass_seconds(10)
    assert recorded.times() == [0, 1]


def test_a_waiting_retry_occupies_no_worker() -> None:
    done: list[str] = []
    finished = threading.Event()

    def run(invocation: Invocation) -> Attempt:
        if invocation.event == "fails":
            return FAILED
        done.append(invocation.event)
        if len(done) == 20:
            finished.set()
        return DONE

    queue = InvocationQueue(run, lambda *_: None, workers=1, retry_base_seconds=3600.0)
    for _ in range(5):
        queue.submit(Invocation("arn", "fails"))
    for number in range(20):
        queue.submit(Invocation("arn", f"event-{number}"))
    assert finished.wait(10)
    assert done == [f"event-{number}" for number in range(20)]


def test_no_more_invocations_run_at_once_than_there_are_workers() -> None:
    lock = threading.Lock()
    gate = threading.Semaphore(0)
    running, peak, done = 0, 0, 0
    three_started, all_done = threading.Event(), threading.Event()

    def run(invocation: Invocation) -> Attempt:
        nonlocal running, peak, done
        with lock:
            running += 1
            peak = max(peak, running)
            if running == 3:
                three_started.set()
        assert gate.acquire(timeout=10)
        with lock:
            running -= 1
            done += 1
            if done == 30:
                all_done.set()
        return DONE

    queue = InvocationQueue(run, lambda *_: None, workers=3, retry_base_seconds=1.0)
    for _ in range(30):
        queue.submit(Invocation("arn", {}))
    assert three_started.wait(10)
    gate.release(30)
    assert all_done.wait(10)
    assert peak == 3
