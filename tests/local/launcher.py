"""Starts scripts/local/aws.py as a process, and makes functions, rules and queues in it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import urlopen

import boto3
import psutil

PROGRAM = [sys.executable, "-P", "-m", "local.aws"]
ACCOUNT = "123456789012"
REGION = "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/test"
START_SECONDS = 30.0
WAIT_SECONDS = 20.0

T = TypeVar("T")


def eventually(look: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Calls `look` until it returns something truthy; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


@dataclass
class LocalAws:
    """A running launcher."""

    process: subprocess.Popen[bytes]
    url: str
    state: Path
    output: Path

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ACCOUNT,
            aws_secret_access_key="test",
        )

    def function(self, code: str, **settings: Any) -> str:
        """Creates a function from the source of its handler module; returns its name."""
        name = settings.pop("FunctionName", f"function-{uuid.uuid4().hex[:8]}")
        client = self.client("lambda")
        client.create_function(
            FunctionName=name,
            Runtime="python3.13",
            Role=ROLE,
            Handler="handler.lambda_handler",
            Code={"ZipFile": package(code)},
            **settings,
        )
        client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})
        return name

    def queue(self) -> tuple[str, str]:
        """Creates a queue; returns its URL and ARN."""
        name = f"queue-{uuid.uuid4().hex[:8]}"
        url = self.client("sqs").create_queue(QueueName=name)["QueueUrl"]
        return url, f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"

    def messages(self, url: str, count: int = 1) -> list[dict[str, Any]]:
        """Waits for `count` messages and takes them from the queue."""
        client = self.client("sqs")
        taken: list[dict[str, Any]] = []

        def enough() -> bool:
            answer = client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], VisibilityTimeout=600
            )
            taken.extend(answer.get("Messages", []))
            return len(taken) >= count

        eventually(enough, f"{count} messages")
        return taken

    def rule(self, pattern: dict[str, Any], target: str, *, allow: bool = True, **settings: Any) -> str:
        """Creates a rule with one target; for a function also the permission. Returns the rule's ARN."""
        name = f"rule-{uuid.uuid4().hex[:8]}"
        events = self.client("events")
        arn: str = events.put_rule(Name=name, EventPattern=json.dumps(pattern))["RuleArn"]
        events.put_targets(Rule=name, Targets=[{"Id": "it", "Arn": target, **settings}])
        if allow and target.startswith("arn:aws:lambda:"):
            self.client("lambda").add_permission(
                FunctionName=target,
                StatementId=name,
                Action="lambda:InvokeFunction",
                Principal="events.amazonaws.com",
                SourceArn=arn,
            )
        return arn

    def log_lines(self, name: str) -> list[str]:
        """Every log line of a function so far, oldest first."""
        pages = self.client("logs").get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{name}")
        return [event["message"] for page in pages for event in page["events"]]

    def runtimes(self) -> list[int]:
        """The process ids of the running functions."""
        return processes_with(str(self.state))


def package(code: str) -> bytes:
    """A deployment package with `code` as its handler module."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("handler.py", code)
    return packed.getvalue()


def function_arn(name: str) -> str:
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"


def processes_with(text: str) -> list[int]:
    """The ids of the processes of this machine whose working folder or command line contains `text`."""
    found = []
    for process in psutil.process_iter(["status", "cmdline", "cwd"], ad_value=None):
        where = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(text in part for part in where):
            found.append(process.pid)
    return found


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/_ministack/health", timeout=2) as response:
            return bool(response.status == 200)
    except (URLError, TimeoutError, ConnectionError):
        return False


@contextmanager
def local_aws(folder: Path, **environment: str) -> Iterator[LocalAws]:
    """Runs the launcher on a free port until the block ends."""
    output = folder / "aws.log"
    state = folder / "state"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [*PROGRAM, "--port", "0", "--state", str(state)],
            env={**os.environ, "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "0.05", **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def address() -> str:
        assert process.poll() is None, output.read_text()
        said = [line for line in output.read_text().splitlines() if line.startswith("local AWS on ")]
        return said[0].removeprefix("local AWS on ") if said else ""

    try:
        url = eventually(address, "address of the local AWS", START_SECONDS)
        eventually(lambda: answers(url), "health of the local AWS", START_SECONDS)
        yield LocalAws(process, url, state, output)
    finally:
        process.terminate()
        process.wait(timeout=WAIT_SECONDS)
