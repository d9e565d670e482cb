"""The queue of asynchronous invocations: what Lambda does between "202 Accepted" and the function's code.

A bounded number of workers run the invocations that are due. A function error is retried after a delay, a
throttle until the event is too old; an invocation that waits for its next attempt occupies no worker. This module
knows neither AWS nor MiniStack: how to run an invocation, and where a failed one goes, is passed in.

Source: Lambda developer guide, "How Lambda handles errors and retries with asynchronous invocation".
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# On AWS the second attempt comes after 60 s and the third 120 s later; a throttled event is retried after
# 1 s, doubling up to 300 s. Both scale with the one setting, the delay before the second attempt.
AWS_RETRY_BASE_SECONDS = 60.0
AWS_FIRST_THROTTLE_SECONDS = 1.0
AWS_LAST_THROTTLE_SECONDS = 300.0

DEFAULT_RETRIES = 2
DEFAULT_MAX_AGE_SECONDS = 21600

RETRIES_EXHAUSTED = "RetriesExhausted"
EVENT_AGE_EXCEEDED = "EventAgeExceeded"

log = logging.getLogger(__name__)


@dataclass
class Invocation:
    """One accepted event: the same `request_id` on every attempt, as on AWS."""

    function_arn: str
    event: Any
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    accepted_at: float = 0.0
    attempts: int = 0
    throttles: int = 0


@dataclass(frozen=True)
class Attempt:
    """The result of one attempt, and the function's settings at that moment.

    `error` is the error document of a function error (None: it returned), `throttled` that the function never
    ran. The first attempt is not counted as a retry; the age is in seconds since the event was accepted.
    """

    throttled: bool = False
    error: dict[str, Any] | None = None
    max_retries: int = DEFAULT_RETRIES
    max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS


class InvocationQueue:
    """Runs invocations in `workers` threads.

    `run(invocation)` makes one attempt. `give_up(invocation, attempt, condition)` gets an invocation that ended
    without success, with the condition as AWS names it. `retry_base_seconds` is the delay before the second
    attempt.
    """

    def __init__(
        self,
        run: Callable[[Invocation], Attempt],
        give_up: Callable[[Invocation, Attempt, str], None],
        *,
        workers: int,
        retry_base_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._give_up = give_up
        self._retry_base_seconds = retry_base_seconds
        self._clock = clock
        self._waiting: list[tuple[float, int, Invocation]] = []  # heap of (due, order of arrival, invocation)
        self._arrivals = itertools.count()
        self._changed = threading.Condition()
        for number in range(workers):
            threading.Thread(target=self._work, name=f"invocation-{number}", daemon=True).start()

    def submit(self, invocation: Invocation) -> None:
        """Accepts an invocation and returns at once."""
        invocation.accepted_at = self._clock()
        self._put(invocation, delay=0.0)

    def run_due(self) -> bool:
        """Makes one attempt at the first invocation that is due; False when none is."""
        with self._changed:
            if not self._waiting or self._waiting[0][0] > self._clock():
                return False
            invocation = heapq.heappop(self._waiting)[2]
        self._attempt(invocation)
        return True

    def _put(self, invocation: Invocation, delay: float) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (self._clock() + delay, next(self._arrivals), invocation))
            self._changed.notify()

    def _work(self) -> None:
        while True:
            try:
                if not self.run_due():
                    self._wait()
            except Exception:
                # Giving up failed as well, for example because the destination is missing. AWS, too, drops the event.
                log.exception("asynchronous invocation: a failed event could not be delivered")

    def _wait(self) -> None:
        with self._changed:
            until_due = self._waiting[0][0] - self._clock() if self._waiting else None
            if until_due is None or until_due > 0:
                self._changed.wait(until_due)

    def _attempt(self, invocation: Invocation) -> None:
        try:
            attempt = self._run(invocation)
        except Exception:
            # Not the function's error but the emulator's: Lambda's own errors are retried as throttles are.
            log.exception("asynchronous invocation of %s: attempt broke off", invocation.function_arn)
            attempt = Attempt(throttled=True)
        if attempt.throttled:
            invocation.throttles += 1
            scale = self._retry_base_seconds / AWS_RETRY_BASE_SECONDS
            doubling = AWS_FIRST_THROTTLE_SECONDS * 2.0 ** min(invocation.throttles - 1, 10)
            delay = min(doubling, AWS_LAST_THROTTLE_SECONDS) * scale
        else:
            invocation.attempts += 1
            if attempt.error is None:
                return
            if invocation.attempts > attempt.max_retries:
                self._give_up(invocation, attempt, RETRIES_EXHAUSTED)
                return
            delay = self._retry_base_seconds * 2.0 ** (invocation.attempts - 1)
        if self._clock() + delay - invocation.accepted_at > attempt.max_age_seconds:
            self._give_up(invocation, attempt, EVENT_AGE_EXCEEDED)
            return
        self._put(invocation, delay)
