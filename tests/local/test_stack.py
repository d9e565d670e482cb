"""Starting and stopping the local AWS: real processes, and no Terraform run to its end (tests/e2e has that)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher import WAIT_SECONDS, answers, eventually, processes_with
from local import stack

ROOT = stack.ROOT
# Starts a stack as the demo does, with settings that need nothing installed or built.
START = """
import sys
from local import stack
stack.end_orderly_on_signals()
stack.up(variables={"package_dir": sys.argv[1], "base_model": "tiny"})
"""
SLEEPER = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of the test's own; nothing of it is left running."""
    state = tmp_path / "state"
    monkeypatch.setenv("LOCAL_STATE", str(state))
    yield state
    stack.down()
    assert processes_with(str(state)) == []


def record(**changes: Any) -> stack.Stack:
    return {
        "status": "up",
        "gateway": "http://127.0.0.1:4566",
        "sagemaker": "http://127.0.0.1:4567",
        "region": "us-east-1",
        "account": "123456789012",
        "bucket": "b",
        "outputs": {},
        "pids": {},
        **changes,
    }


def write(folder: Path, contents: stack.Stack) -> None:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "stack.json").write_text(json.dumps(contents))


def start_sleeper(folder: Path, contents: stack.Stack, name: str = "aws") -> subprocess.Popen[bytes]:
    """A process with a child of its own, recorded as a part of the stack; both have the folder in their command."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    process = stack.start(contents, name, [sys.executable, "-c", SLEEPER, str(folder)], os.environ)
    eventually(lambda: sleeping_in_group(process.pid), "the process's own child")
    return process


def sleeping_in_group(group: int) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    return [row[2] for row in rows if row[0] == str(group) and row[2] == "sleep 600" and not row[1].startswith("Z")]


# --- settings ---


def test_the_state_is_in_the_project_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LOCAL_STATE", raising=False)
    assert stack.state_folder() == ROOT / ".local"
    monkeypatch.setenv("LOCAL_STATE", str(tmp_path / "elsewhere"))
    assert stack.state_folder() == tmp_path / "elsewhere"


def test_the_environment_reaches_the_local_aws_and_nothing_of_anybodys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "real")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com")
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.setenv("OTHER", "kept")
    variables = stack.environment(record())
    assert {"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"}.isdisjoint(variables)
    assert variables["OTHER"] == "kept"
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4566"
    assert variables["AWS_ENDPOINT_URL_SAGEMAKER"] == "http://127.0.0.1:4567"
    assert variables["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] == "http://127.0.0.1:4567"
    assert (variables["AWS_ACCESS_KEY_ID"], variables["AWS_REGION"]) == ("123456789012", "us-east-1")
    assert variables["NO_PROXY"] == "example.com,127.0.0.1,localhost"


def test_a_chosen_base_model_comes_with_the_default_hyperparameters(
    tmp_path: Path,
) -> None:
    assert stack.laptop_variables({"package_dir": "/p"}, "org/model") == {
        "bucket_name": "atml-models-bucket",
        "package_dir": "/p",
        "base_model": "org/model",
    }
    assert stack.laptop_variables({"package_dir": "/p"}, str(tmp_path))["base_model"] == str(tmp_path)


def test_without_the_packaged_base_model_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BASE_MODEL_PACKAGE", "no_such_model")
    with pytest.raises(stack.StackError, match="no-such-model"):
        stack.laptop_variables({"package_dir": "/p"})


def test_every_service_of_the_provider_is_the_gateway() -> None:
    provider = stack.local_provider(record())["provider"]["aws"]
    assert set(provider["endpoints"][0].values()) == {"http://127.0.0.1:4566"}
    assert {"s3", "lambda", "events", "sqs", "sns", "iam", "logs", "cloudwatch", "sts"} <= set(provider["endpoints"][0])
    assert provider["s3_use_path_style"] is True
    assert provider["region"] == "us-east-1"


# --- processes ---


def test_a_process_is_ours_only_with_its_start_time() -> None:
    ours = stack.identity(os.getpid())
    assert stack.is_alive(ours)
    assert not stack.is_alive({**ours, "started": "1"})
    assert not stack.is_alive({"pid": ours["pid"], "started": ""})


if psutil.LINUX:

    def test_a_process_stays_ours_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
        """Linux knows when a process was started since the boot, and psutil adds when that was."""
        ours = stack.identity(os.getpid())
        boot = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600)
        assert stack.is_alive(ours)


def test_an_ended_process_is_not_alive_although_nobody_has_waited_for_it() -> None:
    process = subprocess.Popen(["sleep", "600"])
    recorded = stack.identity(process.pid)
    assert stack.is_alive(recorded)
    process.kill()
    eventually(lambda: not stack.is_alive(recorded), "end of the process")
    process.wait()


def test_down_ends_a_process_with_its_children_and_removes_the_state(folder: Path) -> None:
    contents = record()
    process = start_sleeper(folder, contents)
    (folder / "terraform").mkdir()
    assert stack.running() == contents
    assert stack.down() is True
    assert process.poll() == -signal.SIGTERM
    assert sleeping_in_group(process.pid) == []
    assert not folder.exists()
    assert stack.running() is None
    assert stack.down() is False


def test_down_ends_a_process_that_ignores_requests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "STOP_SECONDS", 0.5)
    contents = record()
    (folder / "logs").mkdir(parents=True)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(600)"
    )
    process = stack.start(contents, "aws", [sys.executable, "-c", stubborn, str(folder)], os.environ)
    eventually(lambda: (folder / "logs" / "aws.log").read_text(), "start")
    stack.down()
    assert process.poll() == -signal.SIGKILL


def test_down_leaves_a_stranger_alone_that_got_a_recorded_id(folder: Path) -> None:
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        write(folder, record(pids={"aws": {"pid": stranger.pid, "started": "1"}}))
        stack.down()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_down_removes_nothing_that_is_not_its_own_and_keeps_logs_when_asked(folder: Path) -> None:
    write(folder, record())
    (folder / "mine.txt").write_text("mine")
    stack.down(keep_logs=True)
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "mine.txt"]
    stack.down()
    assert sorted(path.name for path in folder.iterdir()) == ["mine.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_for_the_end_of_an_uninterrupted_block(number: signal.Signals) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with stack.uninterrupted():
            signal.raise_signal(number)
            assert came == []
        assert came == [number]
    finally:
        signal.signal(number, before)


def test_an_uninterrupted_block_works_outside_the_main_thread() -> None:
    done: list[bool] = []

    def block() -> None:
        with stack.uninterrupted():
            done.append(True)

    thread = threading.Thread(target=block)
    thread.start()
    thread.join(WAIT_SECONDS)
    assert done == [True]


# --- up ---


def test_a_second_up_says_that_one_runs_and_where(folder: Path) -> None:
    start_sleeper(folder, record())
    with pytest.raises(stack.AlreadyRunning, match=r"http://127\.0\.0\.1:4566") as said:
        stack.up(variables={"package_dir": "/p", "base_model": "tiny"})
    assert str(folder) in str(said.value)
    assert stack.running() is not None


def test_an_up_beside_another_that_is_starting_says_so(folder: Path) -> None:
    write(folder, record(status="starting", pids={"starter": stack.identity(os.getpid())}))
    with pytest.raises(stack.AlreadyRunning, match=f"process {os.getpid()}"):
        stack.up(variables={"package_dir": "/p", "base_model": "tiny"})


def test_of_two_starts_at_the_same_moment_one_gives_way(folder: Path) -> None:
    folder.mkdir()
    stack.create_record(record(status="starting"))
    with pytest.raises(stack.AlreadyRunning):
        stack.create_record(record(status="starting"))


@pytest.mark.parametrize("status", ["starting", "up"])
def test_what_a_crash_left_is_cleared_away(folder: Path, status: str) -> None:
    contents = record(status=status, pids={"starter": {"pid": 1, "started": "gone"}})
    left = start_sleeper(folder, contents)
    (folder / "aws").mkdir()
    said: list[str] = []
    stack.clear_leftovers(lambda stage, text: said.append(text))
    assert left.poll() is not None
    assert not folder.exists()
    assert "did not end orderly" in said[0]


def test_what_a_reboot_left_is_cleared_away(folder: Path) -> None:
    write(folder, record(pids={"aws": {"pid": os.getpid(), "started": "before the reboot"}}))
    stack.clear_leftovers(lambda stage, text: None)
    assert not folder.exists()


def test_a_service_that_does_not_start_is_named_with_its_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {"sagemaker": ["-c", "import time; time.sleep(600)"]}
    monkeypatch.setattr(stack, "PROGRAMS", programs | {"aws": ["-c", "raise SystemExit('no MiniStack here')"]})
    with pytest.raises(stack.StackError, match="aws ended while starting:\n  no MiniStack here\nlog: "):
        stack.up(lambda stage, text: None, {"package_dir": "/p", "base_model": "tiny"})
    assert processes_with(str(folder)) == []
    assert (folder / "logs" / "aws.log").exists()
    assert not (folder / "stack.json").exists()


def test_nobody_else_can_look_into_the_state_even_where_the_folder_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(stack, "PROGRAMS", {"aws": ["-c", "raise SystemExit(1)"], "sagemaker": ["-c", "pass"]})
    with pytest.raises(stack.StackError):
        stack.up(lambda stage, text: None, {"package_dir": "/p", "base_model": "tiny"})
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_service_that_never_answers_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = ["-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(stack, "PROGRAMS", {"aws": sleeper, "sagemaker": sleeper})
    monkeypatch.setattr(stack, "START_SECONDS", 0.5)
    with pytest.raises(stack.StackError, match="aws does not answer at http"):
        stack.up(lambda stage, text: None, {"package_dir": "/p", "base_model": "tiny"})
    assert processes_with(str(folder)) == []


def test_a_failing_terraform_is_shown_and_everything_is_stopped(folder: Path) -> None:
    stages: list[tuple[str, str]] = []
    with pytest.raises(stack.StackError, match="terraform apply failed") as failed:
        stack.up(
            lambda stage, text: stages.append((stage, text)),
            {"package_dir": "/p", "base_model": "tiny", "bucket_name": "Not A Bucket"},
        )
    assert "bucket_name must follow S3's naming rules" in str(failed.value)
    assert str(folder / "logs" / "terraform.log") in str(failed.value)
    assert processes_with(str(folder)) == []
    assert stages[0] == ("local AWS", "starting the local AWS")
    assert ("local AWS", "") in stages
    assert ("terraform apply", "") not in stages


# --- interruptions ---


def start_stack(folder: Path, packages: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(packages)],
        env={**os.environ, "LOCAL_STATE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("build")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "package.py"), "--output", str(target)], check=True)
    return target


def services_start(folder: Path) -> bool:
    return len(processes_with(str(folder))) >= 2


def services_answer(folder: Path) -> bool:
    contents = stack.read_record()
    return contents is not None and answers(contents["gateway"])


def provider_runs(folder: Path) -> bool:
    """Terraform is in the middle of its apply, with its provider working."""
    log = folder / "logs" / "terraform.log"
    return log.exists() and "Creating..." in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", [services_start, services_answer])
def test_an_interrupted_start_leaves_no_process(
    folder: Path, packages: Path, number: signal.Signals, moment: Callable[[Path], bool]
) -> None:
    starting = start_stack(folder, packages)
    eventually(lambda: moment(folder), "the moment to interrupt", 60)
    starting.send_signal(number)
    output, _ = starting.communicate(timeout=60)
    assert starting.returncode != 0, output
    assert processes_with(str(folder)) == []
    assert not (folder / "stack.json").exists()


def test_an_interrupted_terraform_leaves_no_process_not_even_its_provider(folder: Path, packages: Path) -> None:
    starting = start_stack(folder, packages)
    eventually(lambda: provider_runs(folder), "terraform at work", 90)
    working = processes_with(str(folder))
    assert len(working) >= 5, "two services, Terraform's wrapper, Terraform, its provider"
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)
    assert processes_with(str(folder)) == []


def test_after_a_killed_start_the_next_down_clears_everything_away(folder: Path, packages: Path) -> None:
    starting = start_stack(folder, packages)
    eventually(lambda: provider_runs(folder), "terraform at work", 90)
    starting.kill()
    starting.communicate(timeout=60)
    assert processes_with(str(folder)) != []
    stack.down()
    assert processes_with(str(folder)) == []
    assert not folder.exists()
