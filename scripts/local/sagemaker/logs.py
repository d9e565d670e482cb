"""Log lines of jobs and endpoints: to a file at once, to CloudWatch Logs in batches."""

import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

log = logging.getLogger("local.sagemaker")

_BATCH_SECONDS = 1.0
# PutLogEvents takes 10,000 events and 1,048,576 bytes, counting 26 bytes for each event.
_BATCH_EVENTS = 5_000
_BATCH_BYTES = 900_000
_EVENT_OVERHEAD_BYTES = 26
# Lines kept per stream while CloudWatch Logs does not answer; older ones stay in the file only.
_MAX_WAITING_LINES = 50_000


class LogStream:
    """One log stream and its copy in a file. `write` may be called from any thread."""

    def __init__(self, shipper: "LogShipper", group: str, stream: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.group = group
        self.stream = stream
        self.path = path
        self.created = False
        self.closed = False
        self.waiting: deque[tuple[int, str]] = deque(maxlen=_MAX_WAITING_LINES)
        self._shipper = shipper
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        with self._lock:
            if self.closed:
                return
            self._file.write(line + "\n")
            self._file.flush()
            # CloudWatch Logs refuses empty messages.
            self.waiting.append((int(time.time() * 1000), line or " "))

    def close(self) -> None:
        with self._lock:
            if not self.closed:
                self.closed = True
                self._file.close()
        self._shipper.wake()


class LogShipper:
    """Background thread that sends what the streams hold. A failing call is logged once and retried."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._streams: list[LogStream] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def open(self, group: str, stream: str, path: Path) -> LogStream:
        """A stream; group and stream are created with the first lines."""
        opened = LogStream(self, group, stream, path)
        with self._lock:
            self._streams.append(opened)
        return opened

    def wake(self) -> None:
        self._wake.set()

    def stop(self, timeout_seconds: float) -> None:
        """Send what is waiting, within the time, and end."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            self._wake.wait(_BATCH_SECONDS)
            self._wake.clear()
            stopping = self._stopping
            with self._lock:
                streams = list(self._streams)
            for stream in streams:
                closed = stream.closed
                sent = self._send(stream)
                if closed and sent:
                    with self._lock:
                        self._streams.remove(stream)
            if stopping:
                return

    def _send(self, stream: LogStream) -> bool:
        """Send everything that waits in a stream; False when CloudWatch Logs did not accept it."""
        while stream.waiting:
            batch: list[tuple[int, str]] = []
            size = 0
            while stream.waiting and len(batch) < _BATCH_EVENTS:
                line_bytes = len(stream.waiting[0][1].encode()) + _EVENT_OVERHEAD_BYTES
                if batch and size + line_bytes > _BATCH_BYTES:
                    break
                batch.append(stream.waiting.popleft())
                size += line_bytes
            try:
                self._create(stream)
                self._client.put_log_events(
                    logGroupName=stream.group,
                    logStreamName=stream.stream,
                    logEvents=[{"timestamp": at, "message": text} for at, text in batch],
                )
            except (BotoCoreError, ClientError) as exc:
                if not self._failing:
                    log.warning("CloudWatch Logs does not accept lines, still trying: %s", exc)
                self._failing = True
                stream.waiting.extendleft(reversed(batch))
                return False
            self._failing = False
        return True

    def _create(self, stream: LogStream) -> None:
        if stream.created:
            return
        for call, names in (
            (self._client.create_log_group, {"logGroupName": stream.group}),
            (
                self._client.create_log_stream,
                {"logGroupName": stream.group, "logStreamName": stream.stream},
            ),
        ):
            try:
                call(**names)
            except ClientError as exc:
                if exc.response["Error"]["Code"] != "ResourceAlreadyExistsException":
                    raise
        stream.created = True
