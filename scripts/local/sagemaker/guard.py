"""Runs one command, and never outlives the server: ``python guard.py [--portable] COMMAND ARGUMENT...``.

The server starts every child through this small process. Its standard input is a pipe that only the server
holds: when the pipe closes, the server is gone (however it died) or wants the command gone, and the guard
kills the command with everything that it started. SIGTERM is passed on to the command's process group, whose
members may take their time to end. When the command ends on its own, what it left running is killed, and
the guard ends as the command did: with its exit code, or by the same signal.

On Linux nothing escapes: orphans of the command become children of the guard, and a guard that is killed takes the
command with it. No other system has that. There, and with --portable, which the tests use on Linux, orphans are
found by the command's session and by a mark in their environment. Only an orphan with neither is missed: it began a
session of its own, and its environment was cleared, or is hidden by macOS, as that of Apple's programs in /bin is.

A separate process rather than PR_SET_PDEATHSIG in the server: that signal follows the death of the *thread*
that forked, reaches only direct children, and needs code between fork and exec in a threaded process. The
guard has one thread, so it can use the signal for its own child.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time

import psutil

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_MARK = "LOCAL_SAGEMAKER_GUARD"
_POLL_SECONDS = 0.05
_KILLED = 128 + signal.SIGKILL


def main(command: list[str], portable: bool) -> int:
    """Run the command; returns its exit code, -N after signal N."""
    libc = None if portable else ctypes.CDLL(None, use_errno=True)
    mark = f"{os.getpid()} {time.time()}" if portable else ""
    if libc is not None:
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
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, _MARK: mark} if mark else None,
            start_new_session=True,
            preexec_fn=die_with_guard,
        )
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
            _kill_all(pid, mark)
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
        if code is not None and not (terminated and _signal_group(pid, 0)):
            _kill_all(pid, mark)
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


def _signal_group(pid: int, number: int) -> bool:
    """Signal a process group; False when nobody is left in it."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS raises PermissionError for a group of zombies
        return False
    return True


def _kill_all(pid: int, mark: str) -> None:
    """Kill the command's group and everything else that it started; return when all are gone."""
    left = _started(pid, mark)  # before the group's end makes orphans
    _signal_group(pid, signal.SIGKILL)
    while left:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _reap(pid)
        psutil.wait_procs(left, timeout=_POLL_SECONDS)
        left = [process for process in _started(pid, mark) if _lives(process)]


def _started(pid: int, mark: str) -> list[psutil.Process]:
    """The guard's descendants; with a mark, also the orphans among those that the command started."""
    found = psutil.Process().children(recursive=True)
    if mark:
        found += [process for process in psutil.process_iter() if _is_ours(process, pid, mark)]
    return found


def _is_ours(process: psutil.Process, session: int, mark: str) -> bool:
    try:
        return os.getsid(process.pid) == session or process.environ().get(_MARK) == mark
    except (ProcessLookupError, PermissionError, psutil.Error):  # ended meanwhile, or somebody else's
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    chosen = sys.argv[1] == "--portable"
    _end(main(sys.argv[2 if chosen else 1 :], chosen or sys.platform != "linux"))
