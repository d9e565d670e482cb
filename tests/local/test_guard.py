"""The guard of a child process, as it works on Linux and as it works elsewhere, which Linux can do, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher import WAIT_SECONDS, eventually, processes_with
from local.sagemaker import guard

LINUX = sys.platform == "linux"
GUARDS = ([], ["--portable"]) if LINUX else ([],)
# A program that starts another one, in its session or in one of its own, and goes on or ends.
STARTS = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]], start_new_session={own_session})
print("ready", flush=True)
time.sleep({seconds})
"""


class Guarded:
    """A command under the guard, which a test can leave in every way that the server can."""

    def __init__(self, options: list[str], program: str) -> None:
        self.mark = f"guarded-{uuid.uuid4().hex}"
        command = [sys.executable, "-I", str(Path(guard.__file__)), *options, sys.executable, "-c", program, self.mark]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def members(self) -> list[int]:
        """The command and what it started."""
        return [pid for pid in processes_with(self.mark) if pid != self.process.pid]


@pytest.fixture(params=GUARDS, ids=lambda options: "portable" if options or not LINUX else "linux")
def options(request: pytest.FixtureRequest) -> list[str]:
    chosen: list[str] = request.param
    return chosen


@pytest.fixture
def started() -> Iterator[list[Guarded]]:
    """What a test starts; nothing of it is left running, even when the guard fails."""
    all_started: list[Guarded] = []
    yield all_started
    for each in all_started:
        each.process.kill()
        each.process.wait()
        for pid in processes_with(each.mark):
            os.kill(pid, signal.SIGKILL)
        assert each.process.stdout is not None
        each.process.stdout.close()


@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("seconds", [0, 600])
def test_when_the_server_is_gone_everything_that_the_command_started_is(
    started: list[Guarded], options: list[str], own_session: bool, seconds: int
) -> None:
    """Orphans too: with a shell in front, the guard still has a command when the orphan's parent has ended."""
    starts = STARTS.format(own_session=own_session, seconds=seconds)
    in_front = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {starts!r}, sys.argv[1]])\n"
    guarded = Guarded(options, f"{in_front}time.sleep(600)\n")
    started.append(guarded)
    guarded.wait_until_ready()
    expected = 2 if seconds == 0 else 3
    eventually(lambda: len(guarded.members()) == expected, "the command and what it started")
    guarded.close()
    assert guarded.process.wait(WAIT_SECONDS) == 128 + signal.SIGKILL
    assert guarded.members() == []


@pytest.mark.parametrize("own_session", [False, True])
def test_what_a_command_leaves_running_ends_with_it(
    started: list[Guarded], options: list[str], own_session: bool
) -> None:
    guarded = Guarded(options, STARTS.format(own_session=own_session, seconds=0))
    started.append(guarded)
    assert guarded.process.wait(WAIT_SECONDS) == 0
    assert guarded.members() == []


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
def test_it_ends_as_the_command_did(started: list[Guarded], options: list[str], program: str, code: int) -> None:
    guarded = Guarded(options, program)
    started.append(guarded)
    assert guarded.process.wait(WAIT_SECONDS) == code


def test_a_request_to_end_reaches_the_group_and_waits_for_its_last_member(
    started: list[Guarded], options: list[str], tmp_path: Path
) -> None:
    last = (
        "import os, signal, sys, time\n"
        "asked = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: asked.append(1))\n"
        "print('ready', flush=True)\n"
        f"while not (asked and os.path.exists({str(tmp_path / 'go')!r})): time.sleep(0.01)\n"
        f"open({str(tmp_path / 'saved')!r}, 'w').close()\n"
    )
    guarded = Guarded(options, f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {last!r}, sys.argv[1]])")
    started.append(guarded)
    guarded.wait_until_ready()
    first = psutil.Process(guarded.process.pid).children()[0]
    guarded.process.terminate()
    eventually(lambda: not first.is_running(), "end of the first process of the group")
    (tmp_path / "go").touch()
    assert guarded.process.wait(WAIT_SECONDS) == -signal.SIGTERM
    assert (tmp_path / "saved").exists()


def test_a_stranger_is_left_alone(started: list[Guarded], options: list[str]) -> None:
    """Even one of the same program, which is nobody's child any more."""
    stranger = Guarded(options, STARTS.format(own_session=True, seconds=600))
    guarded = Guarded(options, STARTS.format(own_session=True, seconds=600))
    started.extend([stranger, guarded])
    for each in (stranger, guarded):
        each.wait_until_ready()
    before = stranger.members()
    guarded.close()
    guarded.process.wait(WAIT_SECONDS)
    assert len(before) == 2
    assert stranger.members() == before


if LINUX:

    def test_a_killed_guard_takes_the_command_with_it(started: list[Guarded]) -> None:
        """On Linux only: nothing else can do that."""
        guarded = Guarded([], "print('ready', flush=True)\nimport time; time.sleep(600)")
        started.append(guarded)
        guarded.wait_until_ready()
        guarded.process.kill()
        eventually(lambda: not guarded.members(), "end of the command")
