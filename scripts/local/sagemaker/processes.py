"""Child processes: started under a guard, watched line by line, gone with the server."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

# Set by tests on Linux, so that children are guarded there as they are on other systems.
PORTABLE_GUARD = "PORTABLE_GUARD"
_GUARD = [str(Path(__file__).with_name("guard.py")), *(["--portable"] if os.environ.get(PORTABLE_GUARD) else [])]
# Longest line that is passed on; a longer one is split (CloudWatch Logs takes 256 KB events everywhere).
_MAX_LINE_BYTES = 200_000


class Child:
    """A command in a process group of its own; `on_line` gets its output, stdout and stderr as one.

    With `on_error`, that gets the lines of stderr instead, in a thread of its own.
    """

    def __init__(
        self,
        command: list[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        on_line: Callable[[str], None],
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", *_GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if on_error is None else subprocess.PIPE,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
        self.ended = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, args=(on_line, on_error), name="child-output", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """Exit code once `ended` is set (-N after signal N), else None."""
        return self._process.returncode if self.ended.is_set() else None

    def terminate(self) -> None:
        """SIGTERM to the command's process group."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the command and everything that it started; `ended` is set when all are gone."""
        with self._lock:
            if self._process.stdin and not self._process.stdin.closed:
                self._process.stdin.close()

    def stop(self, grace_seconds: float) -> None:
        """Ask, wait up to `grace_seconds`, kill; returns when it has ended."""
        self.terminate()
        if not self.ended.wait(grace_seconds):
            self.kill()
            self.ended.wait()

    def _watch(self, on_line: Callable[[str], None], on_error: Callable[[str], None] | None) -> None:
        errors = None
        if on_error is not None:
            errors = threading.Thread(target=_read, args=(self._process.stderr, on_error), daemon=True)
            errors.start()
        _read(self._process.stdout, on_line)
        if errors is not None:
            errors.join()
        self._process.wait()
        self.kill()
        self.ended.set()


def _read(stream: IO[bytes] | None, on_line: Callable[[str], None]) -> None:
    assert stream is not None
    while line := stream.readline(_MAX_LINE_BYTES):
        on_line(line.decode("utf-8", "replace").rstrip("\r\n"))
    stream.close()
