"""What `mlops verify-aws` does with a stack, and notes of it: the same on AWS and on the local AWS.

Each step does what people do with the pipeline, and waits for the email that says how it ended. What it sees becomes
lines of text, "step: fact: value". Names, times and numbers are replaced, so that two runs compare: whatever then
differs between AWS and the local AWS is a fault of the local one, or of the pipeline. A step fails only when the
pipeline does not get on; everything else is noted.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from mlops import bucket, doctor, pause, retrain, rollback, status
from mlops.deployments import deployments
from mlops.endpoints import describe_endpoint
from mlops.logs import log_events
from mlops.records import (
    DEFAULT_MODEL,
    JOB_NAME,
    SCHEMA,
    UPLOAD_PREFIX,
    Source,
    decision,
    decision_key,
    job_of_config,
    snapshot_key,
)
from mlops.target import ENDPOINT_LOG_GROUP, SWEEP, TRAINING_LOG_GROUP, Target, error_code, error_message, invoke
from mlops.text import say
from mlops.upload import upload

SAMPLE = Path(__file__).resolve().parents[1] / "sample" / "support.csv"
# Every training that a run asks for: a failing one, the first model, the second.
TRAININGS = 3
# Every request to an endpoint that a run makes. InvokeEndpoint gives a model 60 seconds for each.
PREDICTIONS = 300
# S3 sends events about five minutes after that was switched on.
EVENTS_WAIT = timedelta(minutes=20)
PROBE_SECONDS = 30.0
# CloudWatch shows lines some seconds after they were written.
LOGS_WAIT = timedelta(minutes=5)
# Their keys are settings.
MAPS = ("Environment", "HyperParameters", "Tags")
# A function writes its record within seconds of the email.
RECORD_WAIT = timedelta(minutes=5)
EVER = datetime.fromtimestamp(0, UTC)
OBJECT_CREATED = "Object Created"
JOB_CHANGED = "SageMaker Training Job State Change"
ENDPOINT_CHANGED = "SageMaker Endpoint State Change"
# A job waits for its instance, installs what it needs, and trains; an endpoint takes minutes, with a cold start more.
STEP_WAIT = timedelta(minutes=75)
LABELS = ("billing", "shipping", "technical")
TEXTS = ("I was charged twice for my plan this month.", "My parcel has not arrived.", "The app crashes when I open it.")
# What an email begins with when waiting for a better one is in vain.
FATAL = (
    "Training data rejected",
    "Training failed",
    "Training given up",
    "Training not started",
    "Model rejected",
    "Deployment failed",
    "Deployment rolled back",
    "Endpoint failed",
    "Endpoint out of service",
)
# Which of them comes after a rollback or a pause depends on what was in the way, and is noted.
LIVE = ("Deployment restored", "Deployment successful")


class Failed(Exception):
    """The pipeline does not get on; the text says what was waited for, and what came instead."""


@dataclass
class Names:
    """Replaces what differs from run to run. known: {text: what stands for it}."""

    known: dict[str, str]
    jobs: dict[str, str] = field(default_factory=dict)

    def plain(self, text: str) -> str:
        """The text with a word for each name, time, id and decimal number."""
        for name, word in self.known.items():
            text = text.replace(name, word)
        text = JOB_NAME.sub(self._job, text)
        text = re.sub(r"(<job [0-9]+>)-[0-9a-f]{8}\b", r"\1-<hash>", text)
        text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", "<time>", text)
        text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<id>", text)
        return re.sub(r"\b\d+\.\d+\b", "<number>", text)

    def _job(self, match: re.Match[str]) -> str:
        return self.jobs.setdefault(match[0], f"<job {len(self.jobs) + 1}>")


@dataclass
class Notes:
    """What was seen. facts: to be compared, without what differs from run to run; measured: times and counts."""

    names: Names
    facts: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)

    def fact(self, name: str, value: Any) -> None:
        """One line, or one for each item of a list. None is noted, too: that something is missing is a fact."""
        for item in value if isinstance(value, list) else [value]:
            line = self.names.plain(f"{name}: {item}").replace("\n", " \\n ")
            self.facts.append(line)
            say(f"    {line}")

    def measure(self, name: str, value: Any) -> None:
        line = f"{name}: {value}"
        self.measured.append(line)
        say(f"    {line}")


def shape(value: Any, path: str = "") -> Iterator[str]:
    """One line for each member of an answer or event: its path and type. Lists: what their items have."""
    if path.rpartition(".")[2] in MAPS:
        yield f"{path}: map"
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from shape(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for item in value:
            yield from shape(item, f"{path}[]")
    else:
        kinds = {bool: "boolean", int: "number", float: "number", str: "text", list: "empty list", datetime: "time"}
        yield f"{path}: {kinds.get(type(value), 'null')}"


class Inbox:
    """The queue with every email and every event of the stack: standard queues deliver twice, and in any order."""

    def __init__(self, target: Target, raw: Path) -> None:
        self.sqs = target.client("sqs")
        self.url = target.outputs["inbox_url"]
        # A long poll costs one request; the local AWS has nothing to wait for.
        self.wait_seconds = 1 if target.environment else 10
        self.raw = raw
        self.emails: dict[str, dict[str, str]] = {}
        self.events: dict[str, dict[str, Any]] = {}

    def receive(self) -> int:
        """Take what has arrived, and keep it as it came; how many messages that were."""
        answer = self.sqs.receive_message(QueueUrl=self.url, WaitTimeSeconds=self.wait_seconds, MaxNumberOfMessages=10)
        messages = answer.get("Messages", [])
        for message in messages:
            body = json.loads(message["Body"])
            with self.raw.open("a") as file:
                file.write(json.dumps(body) + "\n")
            if "detail-type" in body:
                self.events[body["id"]] = body
            else:
                # CloudWatch's emails on alarms carry no attributes.
                attributes = {name: item["Value"] for name, item in body.get("MessageAttributes", {}).items()}
                email = {"at": body["Timestamp"], "subject": body.get("Subject", ""), "text": body["Message"]}
                self.emails[body["MessageId"]] = {"model": "", **attributes, **email}
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return len(messages)

    def emails_of(self, model: str) -> list[dict[str, str]]:
        """A model's emails, oldest first."""
        return sorted((email for email in self.emails.values() if email["model"] == model), key=lambda item: item["at"])

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, oldest change first."""
        found = [event for event in self.events.values() if event["detail-type"] == kind]
        # The envelope's time has seconds only. AWS documents times in the detail as numbers and as text.
        return sorted(found, key=lambda event: (float(event["detail"].get("LastModifiedTime", 0)), event["time"]))


@dataclass
class Run:
    """One run of the scenario.

    deadline: of time.monotonic(), for all of it. jobs: those whose models were live. followed: how many emails on a
    model were waited for.
    """

    target: Target
    inbox: Inbox
    notes: Notes
    deadline: float
    predictions: int = 0
    step: str = ""
    jobs: list[str] = field(default_factory=list)
    followed: dict[str, int] = field(default_factory=dict)

    def fact(self, name: str, value: Any) -> None:
        self.notes.fact(f"{self.step}: {name}", value)

    def measure(self, name: str, value: Any) -> None:
        self.notes.measure(f"{self.step}: {name}", value)

    # --- waiting ---

    def wait(self, what: str, condition: Callable[[], Any], at_most: timedelta = STEP_WAIT) -> Any:
        """Wait until the condition holds; returns its value. Raises Failed."""
        own = time.monotonic() + at_most.total_seconds()
        while True:
            self.inbox.receive()
            if value := condition():
                return value
            if time.monotonic() > min(own, self.deadline):
                whole = "the run's time is over" if own > self.deadline else f"not within {at_most}"
                last = [email["subject"] for email in self.inbox.emails.values()][-3:]
                raise Failed(f"{what}: {whole}; the last emails: {last}")

    def follow(self, model: str, *ends_with: str, asking: bool = False) -> str:
        """Wait until an email on the model begins with one of these, note all that came, and return that one's text.

        asking: meanwhile its endpoint is asked, and has to answer. Raises Failed.
        """
        seen = self.followed.get(model, 0)
        failures: set[str] = set()

        def ended() -> str:
            if asking:
                failures.add(self.refusal(self.ask, ""))
            for email in self.inbox.emails_of(model)[seen:]:
                if email["subject"].startswith(ends_with):
                    return email["text"]
                if email["subject"].startswith(FATAL):
                    raise Failed(
                        f"instead of {' or '.join(ends_with)}, this email came:\n{email['subject']}\n{email['text']}"
                    )
            return ""

        text: str = self.wait(f"the email {' or '.join(ends_with)} on the model {model}", ended)
        emails = self.inbox.emails_of(model)
        self.fact("email", [email["subject"] for email in emails[seen:]])
        for earlier, later in itertools.pairwise(emails):
            if later in emails[seen:]:
                seconds = (datetime.fromisoformat(later["at"]) - datetime.fromisoformat(earlier["at"])).total_seconds()
                self.measure(f"seconds until {later['subject'].split(':')[0]!r}", round(seconds))
        self.followed[model] = len(emails)
        if asking:
            self.fact("requests that failed meanwhile", sorted(failures - {""}) or "none")
        return text

    # --- the endpoint and the jobs ---

    def invoke(self, body: bytes, content_type: str = "application/json", model: str = DEFAULT_MODEL) -> Any:
        """An endpoint's answer. Raises Failed when a run has asked too often: requests are paid for."""
        self.predictions += 1
        if self.predictions > PREDICTIONS:
            raise Failed(f"more than {PREDICTIONS} requests to the endpoint: the run would cost more than was said")
        answer = self.target.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=self.target.endpoint_of(model), ContentType=content_type, Body=body
        )
        return json.loads(answer["Body"].read())

    def ask(self, text: str = TEXTS[0]) -> dict[str, Any]:
        """The label of a text, and its score."""
        answer: dict[str, Any] = self.invoke(json.dumps({"inputs": text}).encode())[0]
        return answer

    def refusal(self, call: Callable[[], Any], otherwise: str = "no error") -> str:
        """How AWS refuses a call: HTTP status, code, and the text."""
        try:
            call()
        except ClientError as error:
            answer: Mapping[str, Any] = error.response
            model = f" (model: {answer['OriginalStatusCode']})" if "OriginalStatusCode" in answer else ""
            status_code = answer["ResponseMetadata"]["HTTPStatusCode"]
            return f"{status_code} {error_code(error)}{model}: {error_message(error):.300}"
        except BotoCoreError as error:
            return type(error).__name__
        return otherwise

    def note_endpoint(self, job: str) -> None:
        """The endpoint as SageMaker describes it, and whether it serves the model of this job."""
        # An email is sent before the record says that it was.
        self.wait("the record of the deployment", lambda: self.states(job) == {"confirmed"}, RECORD_WAIT)
        endpoint = self.target.client("sagemaker").describe_endpoint(
            EndpointName=self.target.endpoint_of(DEFAULT_MODEL)
        )
        self.fact("endpoint", endpoint["EndpointStatus"])
        self.fact("endpoint serves the expected job", job_of_config(endpoint["EndpointConfigName"]) == job)

    def states(self, job: str) -> set[str]:
        """What became of a job's model, by the deployment's records."""
        found = deployments(self.target, job, self.target.endpoint_of(DEFAULT_MODEL))
        return {record.value["state"] for record in found}

    def note_shape(self, operation: str, answer: dict[str, Any]) -> None:
        members = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
        self.fact(f"{operation} has", sorted(set(shape(members))))

    def note_job(self, job: str) -> None:
        """A job as SageMaker describes it, and what is in its log."""
        found = self.target.client("sagemaker").describe_training_job(TrainingJobName=job)
        self.fact("job", f"{found['TrainingJobStatus']}/{found['SecondaryStatus']}")
        self.fact("FailureReason", found.get("FailureReason"))
        stages = [item["Status"] for item in found["SecondaryStatusTransitions"]]
        self.fact("job's stages", " ".join(stage for at, stage in enumerate(stages) if stage not in stages[:at]))
        self.measure("billable seconds", found.get("BillableTimeInSeconds"))
        lines = self.wait(
            "the job's log", lambda: [*log_events(self.target, TRAINING_LOG_GROUP, EVER, f"{job}/")], LOGS_WAIT
        )
        self.measure("lines in the job's log", len(lines))


def job_in(text: str) -> str:
    """The training job that an email is about. Raises Failed when it names none."""
    match = JOB_NAME.search(text)
    if match is None:
        raise Failed(f"this email names no training job:\n{text}")
    return match[0]


# --- the steps --------------------------------------------------------------------------------------


def s3_events(run: Run) -> None:
    """S3 needs minutes until it sends events: objects that nobody else looks at are written until one is announced."""
    s3, probes = run.target.client("s3"), list[float]()

    def announced() -> bool:
        if not probes or time.monotonic() - probes[-1] > PROBE_SECONDS:
            probes.append(time.monotonic())
            s3.put_object(Bucket=run.target.bucket, Key=f"verify/probe-{len(probes)}", Body=b"")
        return bool(run.inbox.events_of(OBJECT_CREATED))

    began = time.monotonic()
    run.wait("an event by S3", announced, EVENTS_WAIT)
    run.measure("seconds until the first", round(time.monotonic() - began))
    run.measure("objects written until then", len(probes))


def bad_upload(run: Run) -> None:
    """A file without labels: one email, no job."""
    put(run, f"{UPLOAD_PREFIX}bad/no-labels.csv", "text,class\nhello,1\n")
    run.follow("bad", "Training data rejected")


def failing_job(run: Run) -> None:
    """Rows of one label, in a snapshot, for an upload of them is refused: the job fails, and the email says why."""
    rows = "".join(f"this is message number {number},same\n" for number in range(20))
    data, moment = f"text,label\n{rows}", bucket.now()
    job = f"training-job-{moment:%Y%m%d-%H%M%S}-00000000"
    record: Source = {
        "schema": SCHEMA,
        "job": job,
        "model": "failing",
        "bucket": run.target.bucket,
        "key": f"{UPLOAD_PREFIX}failing/one-label.csv",
        "version_id": None,
        "etag": "",
        "sequencer": "",
        "size": len(data),
        "uploaded_at": moment.isoformat(),
    }
    put(run, snapshot_key(job, "data.csv"), data)
    put(run, snapshot_key(job, "source.json"), json.dumps(record))
    invoke(run.target, run.target.functions["training"], SWEEP)
    text = run.follow("failing", "Training failed")
    run.fact("why, in the email", [line for line in text.splitlines() if line.startswith("Why")])
    run.note_job(job_in(text))


def first_model(run: Run) -> None:
    """The sample becomes a served model."""
    upload(run.target, SAMPLE, DEFAULT_MODEL)
    job = job_in(run.follow(DEFAULT_MODEL, "Deployment successful"))
    run.jobs.append(job)
    run.note_job(job)
    run.note_endpoint(job)
    sagemaker, name = run.target.client("sagemaker"), run.target.endpoint_of(DEFAULT_MODEL)
    run.note_shape("DescribeTrainingJob", sagemaker.describe_training_job(TrainingJobName=job))
    run.note_shape("DescribeEndpoint", sagemaker.describe_endpoint(EndpointName=name))
    verdict = bucket.read(run.target, decision_key(job), decision)
    run.fact("verdict", verdict.value["verdict"] if verdict else None)
    run.measure("metrics", verdict.value["metrics"] if verdict else None)
    group = ENDPOINT_LOG_GROUP + name
    lines = run.wait("the endpoint's log", lambda: list(log_events(run.target, group, EVER)), LOGS_WAIT)
    run.measure("lines in the endpoint's log", len(lines))


def predictions(run: Run) -> None:
    """Right and wrong requests, and an endpoint that there is not."""
    run.wait("an answer, after a cold start", lambda: run.refusal(run.ask) == "no error")
    for text in TEXTS:
        began = time.monotonic()
        answer = run.ask(text)
        run.fact("label is one of the sample's", answer["label"] in LABELS)
        seconds = round(time.monotonic() - began, 2)
        run.measure(repr(text), f"{answer['label']} {answer['score']:.4f}, in {seconds} s")
    run.fact("answer has", sorted(set(shape(answer))))
    body = json.dumps({"inputs": list(TEXTS)}).encode()
    run.fact("answers to a list of three", len(run.invoke(body)))
    run.fact("not JSON", run.refusal(lambda: run.invoke(b"not json")))
    run.fact("no inputs", run.refusal(lambda: run.invoke(b"{}")))
    run.fact("another content type", run.refusal(lambda: run.invoke(b"x", "application/pdf")))
    run.fact("no such endpoint", run.refusal(lambda: run.invoke(body, model="missing")))
    sagemaker = run.target.client("sagemaker")
    run.fact("describing it", run.refusal(lambda: sagemaker.describe_endpoint(EndpointName="missing")))


def second_model(run: Run) -> None:
    """The same data once more: the second model replaces the first, and the endpoint answers all the time."""
    retrain.run(run.target, run.jobs[0])
    job = job_in(run.follow(DEFAULT_MODEL, "Deployment started"))
    run.jobs.append(job)
    run.follow(DEFAULT_MODEL, "Deployment successful", asking=True)
    run.note_endpoint(job)


def back_to_the_first(run: Run) -> None:
    rollback.run(run.target, DEFAULT_MODEL, "", "make verify-aws")
    run.follow(DEFAULT_MODEL, *LIVE, asking=True)
    run.note_endpoint(run.jobs[0])


def pause_and_resume(run: Run) -> None:
    name = run.target.endpoint_of(DEFAULT_MODEL)
    run.fact("exit status of pause", pause.pause(run.target, True, False))
    run.wait("the endpoint to be deleted", lambda: describe_endpoint(run.target, name) is None)
    run.fact("a request meanwhile", run.refusal(run.ask))
    run.fact("exit status of resume", pause.resume(run.target))
    run.follow(DEFAULT_MODEL, *LIVE)
    run.note_endpoint(run.jobs[0])
    run.fact("a request afterwards", run.refusal(run.ask))


def what_people_see(run: Run) -> None:
    """make status and make doctor, and what the functions logged."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        status.show_status(run.target)
    said = [line for line in shown.getvalue().splitlines() if line]
    # How many jobs were started today depends on when midnight is.
    run.fact("status", [line for line in said if not line.startswith("training ")])
    run.measure("status", [line for line in said if line.startswith("training ")])
    lines = list(doctor.examine(doctor.patient_of(run.target)))
    # The account's own lines have its images and quotas.
    run.fact("doctor", sorted({f"{line.level} {line.subject}" for line in lines}))
    for short, function in run.target.functions.items():
        records = [
            json.loads(text) for _, text in log_events(run.target, f"/aws/lambda/{function}", EVER) if text[:1] == "{"
        ]
        ours = [record for record in records if "level" in record]
        run.measure(f"lines in the log of {short}", len(ours))
        worse = {f"{item['level']} {item.get('message')}" for item in ours if item["level"] not in ("DEBUG", "INFO")}
        run.fact(f"warnings and errors of {short}", sorted(worse) or "none")
    run.fact("emails on alarms", sorted(email["subject"] for email in run.inbox.emails_of("")) or "none")


def events(run: Run) -> None:
    """What EventBridge delivered: the shape of each kind, and each job's and the endpoint's states in their order."""
    while run.inbox.receive():
        pass
    endpoint = run.target.endpoint_of(DEFAULT_MODEL)
    # An event of a job may be another stack's.
    ours = {*run.notes.names.jobs, endpoint}
    states: dict[str, list[str]] = {}
    for event in run.inbox.events_of(JOB_CHANGED) + run.inbox.events_of(ENDPOINT_CHANGED):
        detail = event["detail"]
        name = detail.get("TrainingJobName") or detail["EndpointName"]
        parts = ("TrainingJobStatus", "SecondaryStatus", "EndpointStatus")
        state = "/".join(detail[part] for part in parts if part in detail)
        # SageMaker may send several events for one change.
        if name in ours and states.setdefault(name, [""])[-1] != state:
            states[name].append(state)
    for name, passed in states.items():
        run.fact(f"of {name}", " ".join(passed[1:]))
    for kind in sorted({event["detail-type"] for event in run.inbox.events.values()}):
        found = run.inbox.events_of(kind)
        run.measure(f"{kind}: how many", len(found))
        mine = [event for event in found if event["detail"].get("TrainingJobName", endpoint) in ours]
        members = {line for event in mine for line in shape(event)}
        run.fact(f"{kind} has", sorted(members))


STEPS: tuple[Callable[[Run], None], ...] = (
    s3_events,
    bad_upload,
    failing_job,
    first_model,
    predictions,
    second_model,
    back_to_the_first,
    pause_and_resume,
    what_people_see,
    events,
)


def put(run: Run, key: str, text: str) -> None:
    run.target.client("s3").put_object(Bucket=run.target.bucket, Key=key, Body=text.encode())


def play(run: Run) -> None:
    """Run every step. Raises Failed, UsageError and what AWS raises; there are notes of all that came before."""
    for step in STEPS:
        run.step = step.__name__.replace("_", " ")
        say()
        say(f"{datetime.now():%H:%M:%S}  {run.step}")
        began = time.monotonic()
        step(run)
        run.measure("seconds", round(time.monotonic() - began))
