"""Child processes: started under a guard, watched line by line, gone with the server."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

_GUARD = str(Path(__file__).with_name("guard.py"))
# Longest line that is passed on; a longer one is split (CloudWatch Logs takes 256 KB events everywhere).
_MAX_LINE_BYTES = 200_000


class Child:
    """A command in a process group of its own; `on_line` gets its output, stdout and stderr as one."""

    def __init__(
        self, command: list[str], *, env: Mapping[str, str], cwd: Path, on_line: Callable[[str], None]
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
        self.ended = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._read, args=(on_line,), name="child-output", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """Exit code once `ended` is set (128 + N after signal N), else None."""
        if not self.ended.is_set():
            return None
        code = self._process.returncode
        # Negative: SIGTERM came before the guard was ready to pass it on.
        return code if code >= 0 else 128 - code

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

    def _read(self, on_line: Callable[[str], None]) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while line := stdout.readline(_MAX_LINE_BYTES):
            on_line(line.decode("utf-8", "replace").rstrip("\r\n"))
        stdout.close()
        self._process.wait()
        self.kill()
        self.ended.set()
