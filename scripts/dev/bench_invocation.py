"""Invocations of a function's handler, in a process of its own that may write to no file.

python scripts/dev/bench_invocation.py lambda/<function>/handler.py < events.json (a list)
Prints what the last one answered and took as one line of JSON, and the seconds of each; those before it warm the
process up, as Lambda keeps one for many events. Imports little: its own memory blurs the comparison. On Linux only.
"""

import gc
import importlib.util
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

LAMBDA_SECONDS = 300


class Context:
    """What of Lambda's context object the handlers use."""

    aws_request_id = "bench"

    def __init__(self) -> None:
        self.ends = time.monotonic() + LAMBDA_SECONDS

    def get_remaining_time_in_millis(self) -> int:
        return int((self.ends - time.monotonic()) * 1000)


def peak_bytes() -> int:
    """The most memory that this process had at once, since forget_peak().

    Not getrusage's ru_maxrss: through fork and exec that starts with the memory of the parent process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def forget_peak() -> None:
    """Count from what is in use now: loading botocore's models in the first invocation takes most, and would hide a
    later one's. (proc(5), /proc/pid/clear_refs; no file, so the limit on those does not count.)"""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def note_files(opened: list[str]) -> None:
    """From now on, add the name of every file that is opened for writing. Writing to one fails."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> None:
    if sys.platform != "linux":
        # Not even psutil can: elsewhere a system keeps no peak that can be reset.
        sys.exit("the bench measures the most memory that a function uses, which only Linux can tell: run it there")
    spec = importlib.util.spec_from_file_location("handler", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while the file runs
    spec.loader.exec_module(module)
    *before, event = json.load(sys.stdin)
    each: list[float] = []

    def handle(sent: Any) -> Any:
        begin = time.perf_counter()
        answer = module.lambda_handler(sent, Context())
        each.append(time.perf_counter() - begin)
        return answer

    for warming in before:
        handle(warming)
    gc.collect()
    forget_peak()
    opened: list[str] = []
    note_files(opened)
    found = {"answer": handle(event), "seconds": each[-1], "each": each}
    print(json.dumps(found | {"peak_bytes": peak_bytes(), "opened": opened}))


if __name__ == "__main__":
    main()
