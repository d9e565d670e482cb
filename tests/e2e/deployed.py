"""The deployed pipeline as its users see it, and the data that the end-to-end tests upload."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

import package
from local import stack
from local.sagemaker.quotas import SERVERLESS_CONCURRENCY
from mlops.target import SWEEP, Target, connect, invoke
from tiny_model import WORDS, build_tiny_model

Rows = list[tuple[str, str]]
# What makes the tiny model learn in seconds.
HYPERPARAMETERS = {"epochs": "12", "learning_rate": "5e-3", "batch_size": "16", "max_length": "32"}
# The local AWS encrypts nothing, but keeps what it was told; so all end-to-end tests go the way of an own key.
KMS_KEY_ARN = f"arn:aws:kms:{stack.REGION}:{stack.ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
# The tests' many models share one account, whose quota would be full with five of them.
SAGEMAKER_OPTIONS = shlex.join(["--quota", f"{SERVERLESS_CONCURRENCY}=1000"])


def make_rows(labels: tuple[str, ...], count: int, seed: int) -> Rows:
    """Rows that even a tiny model learns: each label has words of its own among common ones."""
    chooser = random.Random(seed)
    rows = []
    for index in range(count):
        label_at = index % len(labels)
        own = chooser.choices(WORDS[label_at], k=4)
        common = chooser.choices(WORDS[-1], k=3)
        words = own + common
        chooser.shuffle(words)
        rows.append((" ".join(words), labels[label_at]))
    return rows


def to_csv(rows: Rows) -> bytes:
    lines = io.StringIO()
    csv.writer(lines).writerows([("text", "label"), *rows])
    return lines.getvalue().encode()


class Pipeline:
    """The deployed pipeline as its users see it: uploads, emails, endpoints, records."""

    def __init__(self, target: Target, inbox: str = "inbox") -> None:
        self.target = target
        self.s3 = target.client("s3")
        self.sagemaker = target.client("sagemaker")
        self.sqs = target.client("sqs")
        self.emails: list[dict[str, Any]] = []
        self.inbox = self.sqs.create_queue(QueueName=inbox)["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.inbox, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        target.client("sns").subscribe(TopicArn=target.outputs["topic_arn"], Protocol="sqs", Endpoint=arn)

    def upload(self, key: str, body: bytes) -> None:
        self.s3.put_object(Bucket=self.target.bucket, Key=key, Body=body)

    def receive(self) -> None:
        """Take what has arrived in the inbox; waits up to a second."""
        answer = self.sqs.receive_message(QueueUrl=self.inbox, WaitTimeSeconds=1, MaxNumberOfMessages=10)
        for message in answer.get("Messages", []):
            self.sqs.delete_message(QueueUrl=self.inbox, ReceiptHandle=message["ReceiptHandle"])
            body = json.loads(message["Body"])
            # CloudWatch's own emails on alarms carry none.
            attributes = {name: value["Value"] for name, value in body.get("MessageAttributes", {}).items()}
            self.emails.append({"model": "", "subject": body["Subject"], "text": body["Message"], **attributes})

    def keep(self, model: str, rows: Rows) -> str:
        """Leave a snapshot of rows that the check of an upload would refuse, as it once did not, and have it trained
        on; returns the job."""
        body, moment = to_csv(rows), datetime.now(UTC)
        job = f"training-job-{moment:%Y%m%d-%H%M%S}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
        source = {"schema": 2, "job": job, "model": model, "bucket": self.target.bucket, "version_id": None}
        source |= {"key": f"data/train/{model}/one.csv", "etag": "", "sequencer": "", "size": len(body)}
        self.upload(f"data/snapshots/{job}/data.csv", body)
        record = json.dumps(source | {"uploaded_at": moment.isoformat()})
        self.upload(f"data/snapshots/{job}/source.json", record.encode())
        invoke(self.target, self.target.functions["training"], SWEEP)
        return job

    def emails_of(self, model: str) -> list[dict[str, Any]]:
        return [email for email in self.emails if email["model"] == model]

    def subjects_of(self, model: str) -> list[str]:
        """What each email on a model begins with, in the order of arrival."""
        return [email["subject"].split(":")[0] for email in self.emails_of(model)]

    def wait_for(self, what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait until the condition holds and return its value; fails after the bound, naming it."""
        deadline = time.monotonic() + seconds
        while True:
            self.receive()
            if value := condition():
                return value
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; emails: {self.emails[-5:]}"

    def wait_for_email(self, model: str, beginning: str, count: int = 1, seconds: float = 120) -> dict[str, Any]:
        """The count-th email on a model whose subject begins so."""

        def arrived() -> Any:
            found = [email for email in self.emails_of(model) if email["subject"].startswith(beginning)]
            return found[count - 1] if len(found) >= count else None

        email: dict[str, Any] = self.wait_for(f"email {count} on {model}: {beginning}", arrived, seconds)
        return email

    def train_and_deploy(self, model: str, rows: Rows, name: str = "data.csv") -> None:
        """Upload rows for a model and wait until its endpoint serves the result."""
        before = sum(subject == "Deployment successful" for subject in self.subjects_of(model))
        folder = "" if model == "default" else f"{model}/"
        self.upload(f"data/train/{folder}{name}", to_csv(rows))
        self.wait_for_email(model, "Deployment successful", before + 1)

    def keys(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.target.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def json_at(self, key: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.s3.get_object(Bucket=self.target.bucket, Key=key)["Body"].read())
        return record

    def source_of(self, key: str) -> dict[str, Any] | None:
        """The snapshot's record of an upload, once it is there."""
        for name in self.keys("data/snapshots/"):
            if name.endswith("/source.json"):
                record = self.json_at(name)
                if record["key"] == key:
                    return record
        return None

    def tell_local_aws(self, path: str, body: Mapping[str, Any]) -> None:
        """Ask the local AWS itself for something: POST /_local/<path> (scripts/local/README.md)."""
        gateway = self.s3.meta.endpoint_url
        with urlopen(Request(f"{gateway}/_local/{path}", json.dumps(body).encode()), timeout=10) as answer:
            answer.read()

    def local_aws_log(self) -> str:
        return (stack.state_folder() / "logs" / "aws.log").read_text(errors="replace")

    def endpoint(self, model: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.sagemaker.describe_endpoint(EndpointName=self.target.endpoint_of(model))
        return answer

    def failed_events(self) -> list[dict[str, Any]]:
        """The messages in the queue of failed events, left in it."""
        answer = self.sqs.receive_message(
            QueueUrl=self.target.outputs["failure_queue_url"],
            VisibilityTimeout=0,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
        )
        return [json.loads(message["Body"]) for message in answer.get("Messages", [])]


@contextmanager
def deploy(folder: Path, variables: Mapping[str, Any], parallel_trainings: int = 1) -> Iterator[Pipeline]:
    """The pipeline, deployed with the project's Terraform to a local AWS of its own, for the time of the block."""
    base_model = build_tiny_model(folder / "tiny-model")
    package.build(package.ROOT, folder / "build")
    own = {"base_model": str(base_model), "package_dir": str(folder / "build"), "hyperparameters": HYPERPARAMETERS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_STATE", str(folder / "state"))
        patch.setenv("LOCAL_SAGEMAKER_OPTIONS", SAGEMAKER_OPTIONS)
        try:
            stack.up(variables={**own, **variables}, parallel_trainings=parallel_trainings)
            yield Pipeline(connect("local"))
        finally:
            stack.down()
