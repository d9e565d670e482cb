"""Serverless endpoints of the local SageMaker: rights, memory and cold starts of their containers, as on AWS."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import sagemaker
from sagemaker_fixtures import (  # noqa: F401  fixtures
    INFERENCE,
    USUAL_MODES,
    LocalSageMaker,
    Start,
    aws,
    server,
    start,
    variant,
    wait_for,
)

# What a container may do, asked of itself.
RIGHTS = """
import os, tempfile
from pathlib import Path

def outcome(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

def model_fn(model_dir):
    return Path(model_dir)

def predict_fn(data, model):
    return {
        "add to the model": outcome(lambda: (model / "new").write_text("")),
        "change the model": outcome(lambda: (model / "answer.txt").write_text("")),
        "add to the code": outcome(lambda: (model / "code" / "new").write_text("")),
        "write to HOME": outcome(lambda: (Path.home() / ".cache").mkdir()),
        "write to /tmp": outcome(lambda: (Path(tempfile.gettempdir()) / "new").write_text("")),
        "HF_HOME": os.environ.get("HF_HOME"),
        "/tmp": tempfile.gettempdir(),
        "user": os.getuid(),
    }
"""
ONLY_TMP = {
    "add to the model": "PermissionError",
    "change the model": "PermissionError",
    "add to the code": "PermissionError",
    "write to HOME": "PermissionError",
    "write to /tmp": "done",
    "HF_HOME": None,
}
GREEDY = """
import threading

def model_fn(model_dir):
    return []

def predict_fn(data, model):
    if data["megabytes"]:
        model.append(b"x" * (data["megabytes"] << 20))
        threading.Event().wait(30)
    return "alive"
"""


def serve_on(
    server: LocalSageMaker,  # noqa: F811
    name: str,
    concurrency: int | None,
    inference: str = INFERENCE,
    modes: Any = USUAL_MODES,
) -> None:
    """An endpoint, serverless or, with None, on an instance; its archive holds files of these modes."""
    server.model(name, inference, modes=modes)
    server.api.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant(name, concurrency)])
    server.serve(name, name)


@pytest.mark.parametrize("file", ["answer.txt", "code/inference.py"])
@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_file_that_others_may_not_read_fails_on_a_serverless_endpoint_and_not_on_an_instance(
    server: LocalSageMaker,  # noqa: F811
    file: str,
    mode: int,
) -> None:
    """The endpoint is in service, as with every model that the model server cannot load, and answers 400."""
    name = f"unreadable-{Path(file).stem}-{mode:o}"
    serve_on(server, name, 5, modes={file: mode})
    with pytest.raises(server.runtime.exceptions.ModelError) as caught:
        server.ask(name)
    assert caught.value.response["OriginalStatusCode"] == 400
    message = json.loads(caught.value.response["OriginalMessage"])["message"]
    assert message.startswith("[Errno 13] Permission denied: '")
    assert message.endswith(f"/model/{file}'")
    serve_on(server, f"{name}-instance", None, modes={file: mode})
    assert server.ask(f"{name}-instance") == {"answer": f"{name}-instance"}


def test_serverless_container_writes_to_tmp_only(start: Start) -> None:  # noqa: F811
    server = start("--pass-env", "HF_HOME")  # noqa: F811
    serve_on(server, "strict", 5, RIGHTS)
    answer = server.ask("strict")
    [folder] = (server.state / "servers").glob("strict.*")
    assert answer["/tmp"] == f"{folder}/tmp"
    assert {name: answer[name] for name in ONLY_TMP} == ONLY_TMP


def test_container_on_an_instance_keeps_this_users_rights(server: LocalSageMaker) -> None:  # noqa: F811
    serve_on(server, "roomy", None, RIGHTS)
    answer = server.ask("roomy")
    assert answer["add to the model"] == answer["change the model"] == answer["add to the code"] == "done"
    assert answer["user"] == os.getuid()


def test_nothing_is_left_of_a_deleted_serverless_endpoint(server: LocalSageMaker) -> None:  # noqa: F811
    serve_on(server, "leftover", 5, modes={"code/inference.py": 0})
    assert [*(server.state / "servers").glob("leftover.*")]
    server.api.delete_endpoint(EndpointName="leftover")
    wait_for("its folder gone", lambda: not [*(server.state / "servers").glob("leftover.*")])


def test_memory_of_a_serverless_endpoint_is_the_limit_of_its_server(server: LocalSageMaker) -> None:  # noqa: F811
    serve_on(server, "limited", 5)
    serve_on(server, "unlimited", None)

    def commands(name: str) -> list[str]:
        return [line for line in server.processes() if f"/servers/{name}." in line and "--port-file" in line]

    assert all("--serverless-mb 2048" in line for line in commands("limited"))
    assert commands("unlimited")
    assert not any("--serverless-mb" in line for line in commands("unlimited"))


# --- the model server alone ---------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def may_run(python: str, user: int) -> bool:
    try:
        return subprocess.run([python, "-c", ""], user=user, check=False, stderr=subprocess.DEVNULL).returncode == 0
    except PermissionError:
        return False


def everybodys_python(folder: Path, user: int) -> str:
    """An interpreter with psutil that this user may run. The one that runs the tests may be in a folder of root's."""
    python = next(one for one in (sys.executable, "/usr/bin/python3") if may_run(one, user))
    if python == sys.executable:
        return python
    subprocess.run([python, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    shutil.copytree(Path(psutil.__file__).parent, packages / "psutil")
    return str(folder / "venv/bin/python")


@contextmanager
def serving(folder: Path, python: str, inference: str, megabytes: int) -> Iterator[str]:
    """The address of a model server of its own, started as the local SageMaker starts it."""
    code = folder / "model/code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text(inference)
    (folder / "model/answer.txt").write_text("")
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    (folder / "home").mkdir()
    program = Path(shutil.copytree(Path(sagemaker.__file__).parent, folder / "programs")) / "serve.py"
    command = [python, str(program), "--model-dir", str(folder / "model"), "--port-file", str(folder / "port")]
    environment = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PATH": os.environ["PATH"]}
    process = subprocess.Popen([*command, "--serverless-mb", str(megabytes)], env=environment)
    try:
        wait_for("the server", lambda: process.poll() is not None or (folder / "port").exists())
        yield f"http://127.0.0.1:{(folder / 'port').read_text()}"
    finally:
        process.terminate()
        process.wait(10)


def ask(url: str, question: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_server_of_a_serverless_endpoint_does_not_run_as_root(open_folder: Path) -> None:
    """Started by root it becomes nobody, who has the rights of "other" on root's files."""
    user = pwd.getpwnam("nobody").pw_uid if os.getuid() == 0 else os.getuid()
    with serving(open_folder, everybodys_python(open_folder, user), RIGHTS, 1024) as url:
        status, answer = ask(url, {})
    assert status == 200
    assert answer["user"] == user
    assert answer["write to /tmp"] == "done"
    if os.getuid() == 0:
        assert {name: answer[name] for name in ONLY_TMP} == ONLY_TMP


def test_worker_that_takes_more_memory_than_its_endpoint_has_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, sys.executable, GREEDY, 150) as url:
        assert ask(url, {"megabytes": 0}) == (200, "alive")
        status, problem = ask(url, {"megabytes": 200})
        assert (status, problem["message"]) == (507, "Worker died.")
        assert ask(url, {"megabytes": 0}) == (200, "alive")


# --- cold starts --------------------------------------------------------------------------------------------


def test_cold_start_longer_than_an_invocation_may_take_times_out_and_goes_on(start: Start) -> None:  # noqa: F811
    """On AWS: 70 seconds, of which InvokeEndpoint waits 60."""
    server = start("--cold-start-seconds", "4", "--invoke-seconds", "3")  # noqa: F811
    serve_on(server, "cold", 5, f"print('loaded')\n{INFERENCE}")
    serve_on(server, "instance", None)
    wait_for("the model", lambda: "loaded" in (server.state / "logs/endpoint-cold.log").read_text())
    assert server.ask("instance") == {"answer": "instance"}
    with pytest.raises(server.runtime.exceptions.ModelError) as caught:
        server.ask("cold")
    assert caught.value.response["OriginalStatusCode"] == 0
    assert "timed out" in caught.value.response["OriginalMessage"]
    # The next one waits for the rest only.
    assert server.ask("cold") == {"answer": "cold"}
    began = time.monotonic()
    assert server.ask("cold") == {"answer": "cold"}
    assert time.monotonic() - began < 4


def test_serverless_endpoint_is_cold_again_after_it_was_idle(start: Start) -> None:  # noqa: F811
    server = start("--cold-start-seconds", "0.5", "--idle-seconds", "0")  # noqa: F811
    serve_on(server, "sleepy", 5)
    for _ in range(2):
        began = time.monotonic()
        assert server.ask("sleepy") == {"answer": "sleepy"}
        assert time.monotonic() - began >= 0.5
