"""A day of uploads whose events arrive late, three times, in any order, or never, ends like a quiet day.

Each schedule plays ten uploads for two models: of some the training fails, of some the gate refuses the model, of
some the model server does not come up; some come twice, under two names. What happens next (an upload, the delivery of
one of the events under way, the end of a job, the endpoint settling) is drawn at random.
SCHEDULES=1000 plays more than the 200 of each kind; -s prints each schedule's seed.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from faults import ERRORS, faults_of
from world import BUCKET, ENDPOINT, GOOD_METRICS, Context, Interruption, World, csv_number, tar_gz

SCHEDULES = int(os.environ.get("SCHEDULES", "200"))
UPLOADS = 10
DELIVERIES = 3
# Lambda's, of one asynchronous event.
ATTEMPTS = 3
# About as many as most make.
CALLS_OF_AN_INVOCATION = 15
# A bound for "until nothing moves any more": far above what any schedule takes.
MAX_STEPS = 2000
FATES = ("good", "good", "good", "refused", "training fails", "does not come up")
MODELS = ("default", "default", "reviews")
SWEEP = {"source": "sweep"}
JOB_NAME = re.compile(r"training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
ONE_PER_JOB = ("Training started", "Training failed", "Model rejected", "Model approved")
# How many of SageMaker's events are lost, and in how many of the attempts at an event a call meets a fault.
KINDS = {
    "three deliveries": (0.0, 0.0),
    "three deliveries, 30 % lost": (0.3, 0.0),
    "three deliveries, 30 % lost, faults": (0.3, 0.3),
}


def endpoint_of(model: str) -> str:
    return ENDPOINT if model == "default" else f"{ENDPOINT}-{model}"


class Day:
    """Uploads and what comes of them; everything random comes from one seed."""

    def __init__(
        self, world: World, handlers: dict[str, ModuleType], seed: int, lost: float, faulty: float = 0
    ) -> None:
        self.world = world
        self.handlers = handlers
        self.random = random.Random(seed)
        self.lost = lost
        self.faulty = faulty
        self.faults = 0
        self.under_way: list[tuple[str, dict[str, Any]]] = []
        self.fates: dict[str, str] = {}
        self.models: dict[str, str] = {}
        self.twins: list[tuple[str, str]] = []  # jobs of the same data, of which one is started
        self.uploads = 0
        self.requests = 0
        self.sweeps = 0

    # --- what happens -------------------------------------------------------------------------------

    def send(self, handler: str, event: dict[str, Any]) -> None:
        """Put an event on its way, DELIVERIES times; SageMaker's are best effort, so some are lost altogether."""
        if event["source"] == "aws.sagemaker" and self.random.random() < self.lost:
            return
        self.under_way += [(handler, event)] * DELIVERIES

    def upload(self) -> None:
        number, model, fate = self.uploads, self.random.choice(MODELS), self.random.choice(FATES)
        self.uploads += 1
        jobs = [
            self.upload_as(name, number, model, fate) for name in self.random.choice([("",), ("",), ("", " again")])
        ]
        if len(jobs) == 2:
            self.twins.append((jobs[0], jobs[1]))

    def upload_as(self, name: str, number: int, model: str, fate: str) -> str:
        """Upload the data of that number under a name; returns the job that it would be."""
        folder = "" if model == "default" else f"{model}/"
        event = self.world.upload(f"data/train/{folder}{number}{name}.csv", csv_number(number))
        event["time"] = f"2026-11-23T12:{number:02}:{len(name):02}Z"
        job = str(self.handlers["training_orchestrator"].parse_upload(event)["job"])
        self.fates[job], self.models[job] = fate, model
        self.send("training_orchestrator", event)
        return job

    def trained(self) -> dict[str, str]:
        """The fates of the jobs that there must be: of twins, the one whose upload came first."""
        jobs = self.world.sagemaker.jobs
        left = {first if second in jobs else second for first, second in self.twins}
        return {job: fate for job, fate in self.fates.items() if job not in left}

    def deliver(self, handler: str, event: dict[str, Any]) -> None:
        before = set(self.world.keys("models/approved/"))
        self.requests += 1
        request_id = f"request {self.requests}"
        for _ in range(ATTEMPTS):
            self.world.wait(minutes=1) if self.faulty else self.world.wait(seconds=1)
            if self.random.random() < self.faulty:
                self.arm()
            try:
                self.handlers[handler].lambda_handler(event, Context(request_id))
            except ERRORS:
                continue
            break
        else:
            # It is in the queue of failed events, until somebody sends it again.
            first = event.get("redrive_of", request_id)
            self.under_way.append((handler, {"redrive_of": first, "source": "", "event": event.get("event", event)}))
        for key in sorted(set(self.world.keys("models/approved/")) - before):
            self.send("deployment_orchestrator", self.approval(key))

    def arm(self) -> None:
        """One of the calls to come meets one of the faults that it can meet."""
        after_the_effect = self.random.random() < 0.5

        def strike() -> None:
            operation = self.world.around.calls[-1]
            faults = [fault for fault in faults_of(operation) if fault.after_the_effect == after_the_effect]
            if faults:
                self.faults += 1
                self.random.choice(faults).strike(operation)

        call = len(self.world.around.calls) + self.random.randrange(CALLS_OF_AN_INVOCATION)
        self.world.around.interruption = Interruption(call, strike, after_the_effect)

    def approval(self, key: str) -> dict[str, Any]:
        """The event of an approved model that is there already: the evaluator wrote it."""
        event = self.world.job_event("any")
        etag = self.world.s3.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"')
        return event | {
            "source": "aws.s3",
            "detail-type": "Object Created",
            "detail": {"bucket": {"name": BUCKET}, "object": {"key": key, "etag": etag, "size": 1, "sequencer": "1"}},
        }

    def end(self, job: str) -> None:
        """A running training job ends as its fate wants it."""
        fate = self.fates[job]
        status = "Failed" if fate == "training fails" else "Completed"
        accuracy = 0.1 if fate == "refused" else 0.9
        key = f"models/raw/{job}/output/model.tar.gz"
        metrics = GOOD_METRICS | {"accuracy": accuracy, "champion": self.comparison(job)}
        self.world.put(key, tar_gz([("metrics.json", json.dumps(metrics).encode()), ("w", job.encode())]))
        self.world.sagemaker.end_job(job, status, artifact=f"s3://{BUCKET}/{key}" if status == "Completed" else "")
        event = self.world.job_event(job, status)
        self.send("model_evaluator", event)
        self.send("training_orchestrator", event)

    def comparison(self, job: str) -> dict[str, Any] | None:
        """What the job writes of the live model that it was given: both are as good as each other."""
        live = self.world.sagemaker.jobs[job]["Environment"].get("CHAMPION_JOB")
        figures = {"accuracy": 0.9}
        rows = {"name": "hold-out of the live model", "rows": 50, "live": figures, "new": figures}
        compared = {"status": "compared", "compared": True, "note": "", "kept": 1, "sets": [rows]}
        return {"job": live, **compared} if live else None

    def settle(self, endpoint: str) -> None:
        """An endpoint that is busy comes up, or goes back, as the fate of its new model wants it."""
        found = self.world.sagemaker.endpoints[endpoint]
        wanted = found.get("PendingDeploymentSummary", found)["EndpointConfigName"]
        breaks = self.fates[wanted.rsplit("-", 1)[0]] == "does not come up"
        if found["EndpointStatus"] == "Creating" and breaks:
            self.world.sagemaker.fail(endpoint)
            status = "FAILED"
        elif breaks:
            self.world.sagemaker.roll_back(endpoint)
            status = "IN_SERVICE"
        else:
            self.world.sagemaker.come_up(endpoint)
            status = "IN_SERVICE"
        self.send("deployment_orchestrator", self.world.endpoint_event(endpoint, status))

    # --- what may happen next -----------------------------------------------------------------------

    def moves(self) -> Iterator[Callable[[], None]]:
        """All that could happen next, apart from an upload."""
        for index in range(len(self.under_way)):
            yield lambda index=index: self.deliver(*self.under_way.pop(index))  # type: ignore[misc]
        for job, description in self.world.sagemaker.jobs.items():
            if description["TrainingJobStatus"] == "InProgress":
                yield lambda job=job: self.end(job)  # type: ignore[misc]
        for name, endpoint in self.world.sagemaker.endpoints.items():
            if endpoint["EndpointStatus"] in ("Creating", "Updating"):
                yield lambda name=name: self.settle(name)  # type: ignore[misc]

    def play(self) -> None:
        """Ten uploads, and everything that comes of them, in random order, until nothing moves."""
        for _ in range(MAX_STEPS):
            moves = list(self.moves())
            if self.uploads < UPLOADS and (not moves or self.random.random() < 0.1):
                self.upload()
            elif moves:
                self.random.choice(moves)()
            else:
                return
        raise AssertionError(f"still moving after {MAX_STEPS} steps")

    def sweep(self) -> None:
        """One round of the schedule, and all that it sets off."""
        self.sweeps += 1
        self.world.wait(minutes=15)
        for handler in self.handlers:
            self.deliver(handler, SWEEP)
        self.play()

    def all_ended(self) -> bool:
        jobs = self.world.sagemaker.jobs.values()
        return len(jobs) == UPLOADS and all(job["TrainingJobStatus"] != "InProgress" for job in jobs)

    def deployments(self) -> dict[str, str]:
        """The states of all deployments, by the keys of their records."""
        return {key: self.world.record(key)["state"] for key in self.world.keys("models/deployments/")}

    # --- what must hold -----------------------------------------------------------------------------

    def check(self) -> None:
        jobs, decisions = self.world.sagemaker.jobs, self.world.keys("models/decisions/")
        trained = self.trained()
        assert sorted(jobs) == sorted(trained)
        assert decisions == [f"models/decisions/{job}.json" for job in sorted(trained)]
        for twins in self.twins:
            (left,) = set(twins) - trained.keys()
            assert {self.world.record(f"data/rejected/{left}.json")["known_job"], left} == set(twins)
        # Once, but for a call that the SDK made again.
        assert {len(set(self.world.bodies(key))) for key in decisions} == {1}
        for model in set(self.models.values()):
            working = [job for job in trained if self.models[job] == model and trained[job] == "good"]
            endpoint = self.world.sagemaker.endpoints.get(endpoint_of(model))
            if working:
                assert endpoint is not None, model
                assert endpoint["EndpointConfigName"].startswith(max(working)), model
                assert endpoint["EndpointStatus"] == "InService", model

    def check_emails(self) -> None:
        """Everybody was told everything; once, where nothing crashed."""
        told = Counter((email.subject.split(":")[0], email.body) for email in self.world.emails())
        # An email that is sent again after a crash says how things stand by then: it is the same one with another body.
        about = {(subject, JOB_NAME.findall(body)[0]) for subject, body in told if subject in ONE_PER_JOB}
        ends = Counter(subject for subject, _ in about)
        if not self.faults:
            assert set(told.values()) == {1}
            assert len(about) == sum(subject in ONE_PER_JOB for subject, _ in told)
            known = [int(number) for _, body in told for number in re.findall(r"uploads of known data  (\d+)", body)]
            assert sum(known) == len(self.twins)
        fates = Counter(self.trained().values())
        assert ends["Training started"] == UPLOADS
        assert ends["Training failed"] == fates["training fails"]
        assert ends["Model rejected"] == fates["refused"]
        assert ends["Model approved"] == fates["good"] + fates["does not come up"]


@settings(
    max_examples=SCHEDULES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize(("lost", "faulty"), KINDS.values(), ids=KINDS)
def test_any_order_of_events_ends_with_the_newest_working_model_in_service(
    seed: int,
    lost: float,
    faulty: float,
    make_world: Callable[[], World],
    handlers: dict[str, ModuleType],
    count: Callable[..., None],
) -> None:
    note(f"seed {seed}, lost {lost}, faulty {faulty}")
    day = Day(make_world(), handlers, seed, lost, faulty)
    day.play()
    # The schedule comes by as long as the day's jobs take.
    for _ in range(UPLOADS):
        if day.all_ended():
            break
        day.sweep()
    # Once all have ended, two more rounds are enough (three, where a dead invocation's lease outlives the first), and
    # one for each newer model that went back without anybody hearing of it: only then the next one has its turn.
    rounds, day.faulty = (3, 0) if faulty else (2, 0)
    before: dict[str, str] = {}
    for number in range(rounds + UPLOADS):
        if number >= rounds and before == day.deployments():
            break
        before = day.deployments()
        day.sweep()
    print(f"seed {seed:10}: {day.requests} deliveries, {day.sweeps} sweeps, {Counter(day.fates.values())}")
    day.check()
    day.check_emails()
    kind = f"schedules, {lost:.0%} of SageMaker's events lost, {faulty:.0%} of attempts with a fault"
    figures = {
        "uploads": len(day.fates),
        "of known data": len(day.twins),
        "deliveries": day.requests,
        "faults": day.faults,
    }
    count({kind: 1} | {f"{kind}: {what}": number for what, number in figures.items() if number})
