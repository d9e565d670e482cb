"""mlops logs: the log of a training job, of an endpoint, or of the three functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from mlops.target import ENDPOINT_LOG_GROUP, TRAINING_LOG_GROUP, Target, UsageError, error_code


def log_events(target: Target, group: str, since: datetime, prefix: str = "") -> Iterator[tuple[datetime, str]]:
    """The events of a log group since a moment, as (UTC time, text); none when the group does not exist."""
    arguments: dict[str, Any] = {"logGroupName": group, "startTime": int(since.timestamp() * 1000)}
    if prefix:
        arguments["logStreamNamePrefix"] = prefix
    try:
        for page in target.client("logs").get_paginator("filter_log_events").paginate(**arguments):
            for event in page["events"]:
                # The local AWS ignores the prefix.
                if not event["logStreamName"].startswith(prefix):
                    continue
                yield datetime.fromtimestamp(event["timestamp"] / 1000, UTC), event["message"].rstrip()
    except ClientError as error:
        if error_code(error) != "ResourceNotFoundException":
            raise


def readable(line: str) -> str:
    """A line of a function's JSON log for people; what the runtime itself logs becomes empty."""
    if not line.startswith("{"):
        return "" if line.startswith(("START ", "END ", "REPORT ")) else line
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if str(record.get("type", "")).startswith("platform."):
        return ""
    fixed = ("timestamp", "level", "message", "logger", "requestId", "location", "stackTrace")
    extra = "  ".join(f"{key}={value}" for key, value in record.items() if key not in fixed)
    trace = "".join(record.get("stackTrace") or [])
    message = record.get("message", record.get("errorMessage", ""))
    return f"{record.get('level', ''):<7} {message}  {extra}\n{trace}".rstrip()


def show_logs(target: Target, job: str, endpoint: str, minutes: str) -> int:
    """Print the log of a training job, of an endpoint, or of the three functions; the exit status.

    minutes: how far back, as typed. Raises UsageError when it is not a number.
    """
    if not re.fullmatch(r"[0-9]{1,6}", minutes) or not int(minutes):
        raise UsageError(f"MINUTES={minutes}: a whole number above 0 is needed")
    since = datetime.now(UTC) - timedelta(minutes=int(minutes))
    if job:
        lines = list(log_events(target, TRAINING_LOG_GROUP, datetime.fromtimestamp(0, UTC), f"{job}/"))
    elif endpoint:
        lines = list(log_events(target, ENDPOINT_LOG_GROUP + endpoint, since))
    else:
        lines = []
        for short, function in target.functions.items():
            for moment, line in log_events(target, f"/aws/lambda/{function}", since):
                if text := readable(line):
                    lines.append((moment, f"{short:<10} {text}"))
        lines.sort()
    if not lines:
        window = "" if job else f" in the last {minutes} minutes (MINUTES=600 for more)"
        print(f"no log of {job or endpoint or 'the functions'}{window}")
    for moment, line in lines:
        print(f"{moment:%H:%M:%S}  {line}")
    return 0
