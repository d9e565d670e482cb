"""mlops demo: the whole pipeline on this machine, shown as it happens.

Starts the local AWS, applies the project's Terraform to it, uploads a CSV with an ordinary S3 client, follows
the run to the end, asks the endpoint, prints the timeline and the numbers, and stops everything (KEEP=1 leaves
it running). One message of each label is held back from the upload, so that the predictions at the end are on
texts that the model never saw. Exits 0, or 1 after saying which stage failed and where its log is.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from local import stack
from mlops import bucket
from mlops.data_check import Check, Settings, check, rows_of, show
from mlops.logs import function_events, log_events, show_event
from mlops.predict import predict
from mlops.records import DECISION_PREFIX, decision
from mlops.target import TRAINING_LOG_GROUP, Target, UsageError, connect, model_name
from mlops.text import complain, plain, say
from mlops.upload import look_at, upload

SAMPLE = stack.ROOT / "scripts" / "sample" / "support.csv"
# Large data may train for hours on a laptop; the local SageMaker has a limit of its own for the model server.
LIMIT_SECONDS = 4 * 3600
HELD_BACK_LABELS = 3
# Holding back a text of a rarer label would change what is trained.
HELD_BACK_MIN_TEXTS = 20
LAST_STATUS = {
    "successful": True,
    "rejected": False,
    "held": False,
    "failed": False,
    "stopped": False,
    "rolled-back": False,
    "waiting": False,
    "given-up": False,
}


class DemoFailed(Exception):
    """A stage failed; the text says which, and where its log is."""


@dataclass
class Timeline:
    """Seconds per stage, and the clock that every line of output starts with."""

    began: float = field(default_factory=time.monotonic)
    stages: list[tuple[str, float]] = field(default_factory=list)
    mark: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        say(f"[{time.monotonic() - self.began:6.1f} s]  {text}", sys.stdout)

    def done(self, stage: str) -> None:
        """End a stage that started when the one before ended."""
        moment = time.monotonic()
        self.stages.append((stage, moment - self.mark))
        self.mark = moment

    def table(self) -> list[str]:
        width = max(len(stage) for stage, _ in self.stages)
        rows = [f"  {stage:<{width}}  {seconds:7.1f} s" for stage, seconds in self.stages]
        return [*rows, f"  {'total':<{width}}  {time.monotonic() - self.began:7.1f} s"]


def hold_back(data: Path, copy: Path, found: Check) -> list[tuple[str, str]]:
    """Write a copy of the file without one text of each label; returns those texts as (text, label).

    A file with rows that the pipeline leaves out is copied as it is: the emails are to say so.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    labels = found.findings.texts_of_label if found.findings else {}
    wanted = [label for label, texts in labels.items() if texts >= HELD_BACK_MIN_TEXTS][:HELD_BACK_LABELS]
    held: dict[str, str] = {}
    for _, text, label in rows_of(data, found.settings):
        if label in wanted and len(held) < len(wanted):
            held.setdefault(label, text)
    texts = set(held.values())
    with copy.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow((found.settings.text_column, found.settings.label_column))
        writer.writerows((text, label) for _, text, label in rows_of(data, found.settings) if text not in texts)
    if not held or check(copy, found.settings).refused:
        shutil.copyfile(data, copy)
        return []
    return [(text, label) for label, text in held.items()]


class Inbox:
    """What subscribers to the notifications get: a queue of the demo's own, subscribed to the topic."""

    def __init__(self, target: Target) -> None:
        self.sqs = target.client("sqs")
        self.url = self.sqs.create_queue(QueueName=f"demo-inbox-{int(time.time())}")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        target.client("sns").subscribe(TopicArn=target.outputs["topic_arn"], Protocol="sqs", Endpoint=arn)

    def receive(self) -> Iterator[dict[str, Any]]:
        """The notifications that have arrived: {"Subject", "Message", "MessageAttributes"}; waits up to a second."""
        answer = self.sqs.receive_message(QueueUrl=self.url, WaitTimeSeconds=1, MaxNumberOfMessages=10)
        for message in answer.get("Messages", []):
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
            yield json.loads(message["Body"])


def show_email(timeline: Timeline, email: dict[str, Any]) -> None:
    timeline.say(f"✉  {email['Subject']}")
    for line in email["Message"].rstrip().splitlines():
        say(f"            │ {line}", sys.stdout)


class TrainingLog:
    """The lines of the running training job, each shown once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.since = datetime.now(UTC)
        self.seen = 0

    def show_new(self, timeline: Timeline) -> None:
        lines = list(log_events(self.target, TRAINING_LOG_GROUP, self.since))
        for _, line in lines[self.seen :]:
            timeline.say(f"   training: {line}")
        self.seen = len(lines)


def follow(target: Target, timeline: Timeline, inbox: Inbox, log: TrainingLog, model: str) -> None:
    """Show the run until the endpoint serves the new model. Raises DemoFailed when a stage ends otherwise."""
    stages = {"training": "training", "evaluation": "evaluation", "deployment": "deployment"}
    closes = {"started": "upload to start", "approved": "training and evaluation", "successful": "deployment"}
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        for email in inbox.receive():
            log.show_new(timeline)
            show_email(timeline, email)
            attributes = {name: value["Value"] for name, value in email["MessageAttributes"].items()}
            stage, status = attributes["stage"], attributes["status"]
            if (stage, status) != ("deployment", "started") and status in closes:
                timeline.done(closes[status])
            if status in LAST_STATUS:
                if LAST_STATUS[status]:
                    return
                raise DemoFailed(f"{stages[stage]} of the model {model}: {email['Subject']}")
        log.show_new(timeline)
        queue = target.outputs["failure_queue_url"]
        waiting = inbox.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["ApproximateNumberOfMessages"])
        if int(waiting["Attributes"]["ApproximateNumberOfMessages"]):
            for event in function_events(target, log.since):
                show_event(*event)
            raise DemoFailed("a function failed three times (its log is above)")
    raise DemoFailed(f"no end after {LIMIT_SECONDS} s")


def show_predictions(target: Target, model: str, held: list[tuple[str, str]]) -> None:
    """Ask the endpoint about the texts that were held back; when there are none, about a fixed one."""
    if not held:
        answer = predict(target, model, "Hello, could you help me?")
        say('  "Hello, could you help me?"')
        say(f"      predicted {plain(answer['label'])} with score {answer['score']:.4f}")
    for text, label in held:
        answer = predict(target, model, text)
        verdict = "right" if answer["label"] == label else f"WRONG, it is {label}"
        say(f'  "{text[:100]}"')
        say(f"      predicted {plain(answer['label'])} with score {answer['score']:.4f}: {verdict}")


def show_numbers(target: Target, model: str) -> None:
    """Print the metrics of the newest decision on a model."""
    decisions = [record.value for record in bucket.read_all(target, DECISION_PREFIX, decision)]
    newest = max((record for record in decisions if record["model"] == model), key=lambda record: record["job"])
    for name, value in newest["metrics"].items():
        if name != "schema" and isinstance(value, (int, float)):
            say(f"  {name:<18} {value:.4f}" if value % 1 else f"  {name:<18} {value:g}")


def keep_logs(target: Target, log: TrainingLog) -> None:
    """Copy the logs of the jobs, the model servers and the functions to where they outlive the local AWS."""
    logs = stack.state_folder() / "logs"
    for path in (stack.state_folder() / "sagemaker" / "logs").glob("*.log"):
        shutil.copy(path, logs)
    for short, function in target.functions.items():
        lines = (line for _, line in log_events(target, f"/aws/lambda/{function}", log.since))
        (logs / f"function-{short}.log").write_text("\n".join(lines) + "\n")


def play(timeline: Timeline, target: Target, log: TrainingLog, found: Check, model: str) -> None:
    """Upload, follow, predict, and show the results. Raises DemoFailed or UsageError."""
    inbox = Inbox(target)
    data = found.file
    copy = stack.state_folder() / "demo" / data.name
    held = hold_back(data, copy, found)
    if held:
        timeline.say(f"{len(held)} messages, one of each label, are held back for the predictions at the end")
        if found.findings and (left_out := found.findings.left_out):
            timeline.say(f"{sum(left_out.values())} rows without a text or a label are left out")
    timeline.mark = time.monotonic()
    timeline.say(f"uploaded {data.name} to {upload(target, copy, model)}")
    follow(target, timeline, inbox, log, model)
    say()
    say("predictions by the endpoint, on texts that were not in the upload")
    show_predictions(target, model, held)
    timeline.done("predictions")
    say()
    say("the new model on its hold-out")
    show_numbers(target, model)
    say()
    for line in ("timeline", *timeline.table()):
        say(line)


def run(data: str, model: str, base_model: str, keep: bool) -> int:
    """Run the demo; returns the exit status. data, model, base_model: "" for the sample, "default" and a small one."""
    timeline = Timeline()
    started, status = False, 1
    stack.end_orderly_on_signals()
    try:
        model = model_name(model)
        file = Path(data or SAMPLE)
        look_at(file)
        found = check(file, Settings())
        if data or found.refused:
            show(found, with_estimate=False)
        if found.refused:
            raise UsageError("the pipeline would not train on this file")
        stack.up(report=lambda stage, text: timeline.say(text) if text else timeline.done(stage), base_model=base_model)
        started = True
        target = connect("local")
        log = TrainingLog(target)
        try:
            play(timeline, target, log, found, model)
        except DemoFailed:
            keep_logs(target, log)
            raise
        status = 0
    except (UsageError, stack.AlreadyRunning) as error:
        complain(f"error: {error}")
        status = 2
    except (DemoFailed, stack.StackError, Boto3Error, BotoCoreError, ClientError) as error:
        complain(f"\nFAILED: {error}\nlogs: {stack.state_folder() / 'logs'}/")
    except KeyboardInterrupt:
        complain("\ninterrupted: stopping everything")
        keep, status = False, 130
    finally:
        if started and keep:
            say()
            say("left running: make upload, predict, status, logs; stop it with make local-down")
        elif started:
            stack.down(keep_logs=status != 0)
    return status
