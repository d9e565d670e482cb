"""scripts/terraform.py: Terraform interrupted, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import terraform

# Terraform's way: after Ctrl-C it waits for the call that it is making, writes its state, and fails.
STAND_IN = """#!/usr/bin/env python3
import signal, sys, time
from pathlib import Path
if sys.argv[1] == "version":
    print('{"terraform_version": "1.11.4", "platform": "linux_amd64"}')
elif sys.argv[2] == "show":
    def interrupted(number, frame):
        time.sleep(1)
        Path("state").write_text("written")
        sys.exit(1)
    signal.signal(signal.SIGINT, interrupted)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_after_ctrl_c_terraform_still_writes_its_state(tmp_path: Path) -> None:
    binary = tmp_path / "terraform"
    binary.write_text(STAND_IN)
    binary.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, terraform.__file__, "--dir", str(tmp_path), "show"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        # As a terminal does it: to all processes at once.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 1
    assert (tmp_path / "state").read_text() == "written"


WHOLE = '{"version": 4, "resources": [{"name": "made"}]}'


@pytest.mark.parametrize("left", ["", WHOLE[:20]])
def test_a_state_that_a_kill_has_cut_off_is_as_before_the_command(tmp_path: Path, left: str) -> None:
    (tmp_path / "terraform.tfstate").write_text(left)
    (tmp_path / "terraform.tfstate.backup").write_text(WHOLE)
    terraform.recover_state(tmp_path)
    assert (tmp_path / "terraform.tfstate").read_text() == WHOLE


def test_a_state_that_came_back_from_a_backend_counts_again(tmp_path: Path) -> None:
    (tmp_path / "terraform.tfstate").write_text("")
    (tmp_path / "terraform.tfstate.backup").write_text(WHOLE)
    (tmp_path / ".terraform").mkdir()
    (tmp_path / ".terraform" / "terraform.tfstate").write_text('{"version": 3}')
    terraform.recover_state(tmp_path)
    assert (tmp_path / "terraform.tfstate").read_text() == WHOLE


def test_a_whole_state_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "terraform.tfstate").write_text('{"version": 4, "resources": []}')
    (tmp_path / "terraform.tfstate.backup").write_text(WHOLE)
    terraform.recover_state(tmp_path)
    assert (tmp_path / "terraform.tfstate").read_text() == '{"version": 4, "resources": []}'


def test_a_state_that_was_moved_to_a_backend_does_not_come_back(tmp_path: Path) -> None:
    (tmp_path / "terraform.tfstate").write_text("")
    (tmp_path / "terraform.tfstate.backup").write_text(WHOLE)
    (tmp_path / ".terraform").mkdir()
    (tmp_path / ".terraform" / "terraform.tfstate").write_text('{"backend": {"type": "s3"}}')
    terraform.recover_state(tmp_path)
    assert (tmp_path / "terraform.tfstate").read_text() == ""
