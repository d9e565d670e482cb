"""The launcher as a process: where it listens, how it ends, and what it refuses to run with."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from hypercorn.config import Config

import local.aws
from launcher import PROGRAM, WAIT_SECONDS, LocalAws, eventually, local_aws

SLEEPING = """
import time
def lambda_handler(event, context):
    print("running")
    time.sleep(600)
"""


def with_a_running_function(aws: LocalAws) -> None:
    """One function idle, another in the middle of its handler."""
    idle = aws.function("def lambda_handler(event, context):\n    return 1\n")
    aws.client("lambda").invoke(FunctionName=idle)
    busy = aws.function(SLEEPING, Timeout=900)
    aws.client("lambda").invoke(FunctionName=busy, InvocationType="Event", Payload=b"{}")
    # The launcher itself, and the two functions.
    eventually(lambda: len(aws.runtimes()) == 3, "two functions")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_its_end_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    with local_aws(tmp_path) as aws:
        with_a_running_function(aws)
        aws.process.send_signal(number)
        aws.process.wait(timeout=WAIT_SECONDS)
        eventually(lambda: not aws.runtimes(), "end of the functions")
    assert aws.process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)


def test_it_listens_on_loopback_only_and_on_one_port(tmp_path: Path) -> None:
    with local_aws(tmp_path) as aws:
        listening = listening_addresses(aws.process.pid)
        port = aws.url.rpartition(":")[2]
        assert listening == {f"127.0.0.1:{port}"}


def listening_addresses(pid: int) -> set[str]:
    """The TCP addresses a process listens on."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {f"{each.laddr.ip}:{each.laddr.port}" for each in connections if each.status == psutil.CONN_LISTEN}


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [*PROGRAM, "--port", str(port), "--state", str(tmp_path / "state")],
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_another_ministack_is_refused_by_name_and_version(tmp_path: Path) -> None:
    changed = tmp_path / "start.py"
    changed.write_text(
        "import importlib.metadata, runpy, sys\n"
        "import ministack.services.s3 as s3\n"
        "importlib.metadata.version = lambda name: '9.9.9'\n"
        "s3._copy_object = lambda bucket, key: None\n"
        f"sys.argv = ['aws.py', '--port', '0', '--state', {str(tmp_path / 'state')!r}]\n"
        "runpy.run_module('local.aws', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, str(changed)], capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert ended.returncode == 1
    assert "ministack 9.9.9: services.s3._copy_object takes ('bucket', 'key')" in ended.stderr
    assert "1.5.33" in ended.stderr


def test_temporary_files_stay_in_its_state_folder(tmp_path: Path) -> None:
    with local_aws(tmp_path) as aws:
        name = aws.function("import tempfile\ndef lambda_handler(e, c):\n    return tempfile.gettempdir()\n")
        answer = aws.client("lambda").invoke(FunctionName=name)
        assert json.load(answer["Payload"]) == str(aws.state / "tmp")


def test_many_requests_at_once_are_answered(tmp_path: Path) -> None:
    with local_aws(tmp_path) as aws:
        name = aws.function("def lambda_handler(event, context):\n    return event\n", Timeout=30)
        answers: list[int] = []

        def invoke(number: int) -> None:
            payload = aws.client("lambda").invoke(FunctionName=name, Payload=str(number).encode())["Payload"]
            answers.append(json.load(payload))

        threads = [threading.Thread(target=invoke, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        assert sorted(answers) == list(range(8))


def test_a_connection_stays_open_for_longer_than_any_client_keeps_it_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []

    async def serve(app: object, config: Config, shutdown_trigger: object) -> None:
        configs.append(config)

    monkeypatch.setattr("hypercorn.asyncio.serve", serve)
    with socket.socket() as listener:
        asyncio.run(local.aws.serve(no_app, listener))
    # Go's default transport, which the Terraform provider uses: net/http, DefaultTransport.IdleConnTimeout.
    idle_connection_seconds = 90
    assert configs[0].keep_alive_timeout > 100 * idle_connection_seconds


async def no_app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nobody calls it")


def test_a_request_that_a_client_sends_again_is_logged(tmp_path: Path) -> None:
    with local_aws(tmp_path) as aws_process:
        request = Request(f"{aws_process.url}/_ministack/health", headers={"amz-sdk-request": "attempt=2; max=5"})
        with urlopen(request, timeout=WAIT_SECONDS) as answer:
            answer.read()
        eventually(lambda: "attempt 2 of a client" in aws_process.output.read_text(), "log of the second attempt")
