"""Runs one command, and never outlives the server: ``python guard.py COMMAND ARGUMENT...``.

The server starts every child through this small process. Its standard input is a pipe that only the server
holds: when the pipe closes, the server is gone (however it died) or wants the command gone, and the guard
kills the command with everything that it started. SIGTERM is passed on to the command's process group, whose
members may take their time to end. When the command ends on its own, what it left running is killed, and
the guard ends as the command did: with its exit code, or by the same signal.

A separate process rather than PR_SET_PDEATHSIG in the server: that signal follows the death of the *thread*
that forked, reaches only direct children, and needs code between fork and exec in a threaded process. The
guard has one thread, so it can use the signal for its own child.
"""

import ctypes
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_POLL_SECONDS = 0.05
_KILLED = 128 + signal.SIGKILL


def main(command: list[str]) -> int:
    """Run the command; returns its exit code, -N after signal N."""
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True) if linux else None
    if libc is not None:
        # Orphans of the command become children of the guard, so that they are found and killed.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    guard_pid = os.getpid()

    def die_with_guard() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != guard_pid:
                os._exit(_KILLED)

    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_guard)
    except OSError as exc:
        print(f"cannot start {command[0]}: {exc}", flush=True)
        return 127
    # The guard reaps children itself: Popen must not, or an exit code could go to the wrong place.
    pid = child.pid
    child.returncode = 0

    terminated = False
    code: int | None = None
    while True:
        ready, _, _ = select.select([0, wakeup_read], [], [], None if code is None else _POLL_SECONDS)
        if 0 in ready and os.read(0, 1) == b"":
            _kill_all(pid, linux)
            return _KILLED
        if wakeup_read in ready:
            numbers = os.read(wakeup_read, 512)
            if signal.SIGTERM in numbers:
                terminated = True
                _signal_group(pid, signal.SIGTERM)
        status = _reap(pid)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
        # After SIGTERM a shell may be gone while the program that it runs still saves its work.
        if code is not None and not (terminated and _group_lives(pid)):
            _kill_all(pid, linux)
            return code


def _reap(pid: int) -> int | None:
    """Collect every dead child; the wait status of `pid` when it is among them."""
    found = None
    while True:
        try:
            reaped, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if reaped == 0:
            return found
        if reaped == pid:
            found = status


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_all(pid: int, linux: bool) -> None:
    """Kill the command's group and, on Linux, every descendant; return when all are gone."""
    _signal_group(pid, signal.SIGKILL)
    while linux:
        for descendant in _descendants(os.getpid()):
            try:
                os.kill(descendant, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            # The command name is in brackets and may contain spaces: fields count from its end.
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found.extend(child for child, parent in parents.items() if parent == process)
    return found[1:]


def _end(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
