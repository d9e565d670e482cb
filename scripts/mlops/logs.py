"""mlops logs: the log of a training job, of an endpoint, or of the three functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from mlops.target import ENDPOINT_LOG_GROUP, TRAINING_LOG_GROUP, Target, UsageError, error_code
from mlops.text import say


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


def readable(line: str) -> list[str]:
    """An event of a function's JSON log for people: a line, and those of its stack trace; none where the runtime itself
    logged it."""
    if not line.startswith("{"):
        return [] if line.startswith(("START ", "END ", "REPORT ")) else [line]
    try:
        record = json.loads(line)
    except ValueError:
        return [line]
    if str(record.get("type", "")).startswith("platform."):
        return []
    fixed = ("timestamp", "level", "message", "logger", "requestId", "location", "stackTrace")
    extra = "  ".join(f"{key}={value}" for key, value in record.items() if key not in fixed)
    trace = "".join(record.get("stackTrace") or []).splitlines()
    message = record.get("message", record.get("errorMessage", ""))
    return [f"{record.get('level', ''):<7} {message}  {extra}".rstrip(), *trace]


def function_events(target: Target, since: datetime) -> list[tuple[datetime, str, list[str]]]:
    """What the functions have logged since a moment, in order: (UTC time, the function's short name, lines)."""
    found = [
        (moment, short, readable(line))
        for short, function in target.functions.items()
        for moment, line in log_events(target, f"/aws/lambda/{function}", since)
    ]
    return sorted((event for event in found if event[2]), key=lambda event: event[0])


def show_event(moment: datetime, short: str, lines: list[str]) -> None:
    """Print an event of a function's log. Only its first line begins with a time."""
    say(f"{moment:%H:%M:%S}  {short:<10} {lines[0]}")
    for line in lines[1:]:
        say(f"{'':<20} {line}")


def show_logs(target: Target, job: str, endpoint: str, minutes: str) -> int:
    """Print the log of a training job, of an endpoint, or of the three functions; the exit status.

    minutes: how far back, as typed. Raises UsageError when it is not a number.
    """
    if not re.fullmatch(r"[0-9]{1,6}", minutes) or not int(minutes):
        raise UsageError(f"MINUTES={minutes}: a whole number above 0 is needed")
    since = datetime.now(UTC) - timedelta(minutes=int(minutes))
    lines: list[tuple[datetime, str]] = []
    if job:
        lines = list(log_events(target, TRAINING_LOG_GROUP, datetime.fromtimestamp(0, UTC), f"{job}/"))
    elif endpoint:
        lines = list(log_events(target, ENDPOINT_LOG_GROUP + endpoint, since))
    events = [] if job or endpoint else function_events(target, since)
    if not lines and not events:
        window = "" if job else f" in the last {minutes} minutes (MINUTES=600 for more)"
        say(f"no log of {job or endpoint or 'the functions'}{window}")
    for moment, line in lines:
        say(f"{moment:%H:%M:%S}  {line}")
    for event in events:
        show_event(*event)
    return 0
