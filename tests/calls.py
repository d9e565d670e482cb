"""Notes the calls that the handlers make to AWS, for the proof of least privilege in tests/permissions.

With RECORD_CALLS=<folder>, every process of the test suite writes its calls to a file of its own there, one JSON object
a line. What differs only in numbers and hashes (job names, versions, ETags) is noted once.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

HANDLERS = ("training_orchestrator", "model_evaluator", "deployment_orchestrator")
# As tests load them, see world.load_handler.
MODULES = {f"{name}_handler": name for name in HANDLERS}
# What is sent, as opposed to what is touched: no permission depends on it.
CONTENT = {"Body", "Message", "MessageAttributes", "MultipartUpload", "Subject"}
NUMBER_OR_HASH = re.compile(r"\b[0-9a-f]*[0-9][0-9a-f]*\b")


@functools.cache
def seen() -> set[str]:
    return set()


def caller(frame: FrameType | None) -> tuple[str, str] | None:
    """The handler that is calling, and the function in it; None when it is a test."""
    while frame is not None:
        handler = MODULES.get(frame.f_globals.get("__name__", ""))
        if handler and not frame.f_code.co_name.startswith("<"):
            return handler, frame.f_code.co_name
        frame = frame.f_back
    return None


def record(service: str, operation: str, parameters: dict[str, Any]) -> None:
    """Note a call, made somewhere up the stack by a handler, where RECORD_CALLS asks for it."""
    folder = os.environ.get("RECORD_CALLS")
    made_by = caller(sys._getframe(1)) if folder else None
    if not folder or made_by is None:
        return
    kept = {name: value for name, value in parameters.items() if name not in CONTENT}
    call = {"handler": made_by[0], "function": made_by[1], "service": service, "operation": operation}
    line = json.dumps(call | {"parameters": kept}, default=str)
    kind = NUMBER_OR_HASH.sub("#", line)
    if kind not in seen():
        seen().add(kind)
        Path(folder).mkdir(parents=True, exist_ok=True)
        with Path(folder, f"tests-{os.getpid()}.jsonl").open("a") as file:
            file.write(line + "\n")
