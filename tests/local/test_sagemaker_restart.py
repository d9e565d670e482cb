"""What is left of the local SageMaker after SIGKILL, SIGTERM and Ctrl-C, and how it goes on."""

import signal
from pathlib import Path

import pytest

from local.sagemaker.processes import PORTABLE_GUARD
from sagemaker_fixtures import (  # noqa: F401  fixtures
    INFERENCE,
    LocalSageMaker,
    Receiver,
    Start,
    aws,
    receiver,
    start,
    wait_for,
)


def waiting_program(folder: Path) -> str:
    """Says that it runs, starts a process in a group of its own, and waits for a file."""
    return f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
open({str(folder / "runs")!r}, "a").write("x")
while not os.path.exists({str(folder / "go")!r}):
    time.sleep(0.01)
"""


def waiting_inference(folder: Path) -> str:
    return (
        f"import os, time\nopen({str(folder / 'loads')!r}, 'w').close()\n"
        f"while not os.path.exists({str(folder / 'go')!r}): time.sleep(0.01)\n{INFERENCE}"
    )


@pytest.mark.parametrize("portable", ["", "1"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_end_of_the_server_leaves_no_process(
    start: Start,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    portable: str,
) -> None:
    monkeypatch.setenv(PORTABLE_GUARD, portable)
    server = start("--parallel", "2")
    server.serve("live", server.config("live"))
    server.config("loading", waiting_inference(tmp_path))
    server.api.create_endpoint(EndpointName="loading", EndpointConfigName="loading")
    server.api.create_training_job(**server.job_request("busy", waiting_program(tmp_path)))
    wait_for("all run", lambda: (tmp_path / "runs").exists() and (tmp_path / "loads").exists())
    assert any("time.sleep(300)" in line for line in server.processes())
    assert any("guard.py --portable" in line for line in server.processes()) == bool(portable)
    server.process.send_signal(number)
    code = server.process.wait(20)
    assert code == (-number if number == signal.SIGKILL else 0)
    wait_for("no process left", lambda: not server.processes(), 5)


def test_second_server_on_the_same_state_does_not_start(start: Start) -> None:  # noqa: F811
    server = start()
    first = server.process
    with pytest.raises(AssertionError, match="another local SageMaker uses"):
        server.start()
    server.process = first
    assert first.poll() is None
    server.train("undisturbed", "pass")


def test_running_job_fails_and_waiting_job_runs_after_a_kill(start: Start, tmp_path: Path) -> None:  # noqa: F811
    server = start()
    for name in ("running", "waiting"):
        server.api.create_training_job(**server.job_request(name, waiting_program(tmp_path)))
    wait_for("the first runs", (tmp_path / "runs").exists)
    server.kill()
    (tmp_path / "go").touch()
    server.start()
    job = server.wait_job("running", "Failed")
    assert job["FailureReason"] == "InternalServerError: We encountered an internal error. Please try again."
    assert job["TrainingEndTime"] > job["TrainingStartTime"]
    server.wait_job("waiting", "Completed")


def test_job_with_a_retry_strategy_runs_again_after_a_kill(start: Start, tmp_path: Path) -> None:  # noqa: F811
    server = start()
    request = server.job_request("stubborn", waiting_program(tmp_path), RetryStrategy={"MaximumRetryAttempts": 1})
    server.api.create_training_job(**request)
    wait_for("first attempt", lambda: (tmp_path / "runs").exists())
    server.kill()
    (tmp_path / "go").touch()
    server.start()
    job = server.wait_job("stubborn", "Completed")
    assert "Restarting" in [step["Status"] for step in job["SecondaryStatusTransitions"]]
    assert (tmp_path / "runs").read_text() == "xx"


def test_stopping_job_is_stopped_after_a_kill(start: Start, tmp_path: Path) -> None:  # noqa: F811
    server = start()
    program = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + waiting_program(tmp_path)
    server.api.create_training_job(**server.job_request("stopping", program))
    wait_for("it runs", (tmp_path / "runs").exists)
    server.api.stop_training_job(TrainingJobName="stopping")
    server.kill()
    server.start()
    assert server.wait_job("stopping", "Stopped")["SecondaryStatus"] == "Stopped"


def test_endpoint_in_service_answers_again_after_a_kill(start: Start) -> None:  # noqa: F811
    server = start()
    server.serve("steady", server.config("steady"))
    before = server.endpoint("steady")
    # Neither is needed any more once the endpoint serves.
    server.api.delete_endpoint_config(EndpointConfigName="steady")
    server.api.delete_model(ModelName="steady")
    server.kill()
    server.start()
    after = server.endpoint("steady")
    assert after["EndpointStatus"] == "InService"
    assert after["LastModifiedTime"] == before["LastModifiedTime"]
    wait_for("it serves", lambda: "endpoint steady: serving again" in server.log.read_text())
    assert server.ask("steady") == {"answer": "steady"}


def two_servers(server: LocalSageMaker, endpoint: str) -> bool:
    """Whether the guards of two model servers of an endpoint run, the old one's and the new one's."""
    return sum("guard.py" in line and f"/servers/{endpoint}." in line for line in server.processes()) == 2


def test_update_in_flight_rolls_back_after_a_kill(start: Start, receiver: Receiver, tmp_path: Path) -> None:  # noqa: F811
    gate = tmp_path / "gate"
    gate.touch()
    server = start("--events-url", receiver.url, "--start-gate", str(gate))
    server.serve("updated", server.config("old"))
    server.config("new")
    gate.unlink()
    server.api.update_endpoint(EndpointName="updated", EndpointConfigName="new")
    wait_for("new server starts", lambda: two_servers(server, "updated"))
    server.kill()
    gate.touch()
    server.start()
    endpoint = server.wait_endpoint("updated", "InService")
    assert endpoint["EndpointConfigName"] == "old"
    assert server.ask("updated") == {"answer": "old"}
    statuses = ["CREATING", "IN_SERVICE", "UPDATING", "ROLLING_BACK", "IN_SERVICE"]
    wait_for("events", lambda: len(receiver.of("Endpoint", "updated")) >= len(statuses))
    assert [detail["EndpointStatus"] for detail in receiver.of("Endpoint", "updated")] == statuses


def test_rollback_to_a_model_that_is_gone_ends_as_failed(start: Start, tmp_path: Path) -> None:  # noqa: F811
    gate = tmp_path / "gate"
    gate.touch()
    server = start("--start-gate", str(gate))
    server.serve("lost", server.config("lost-old"))
    server.config("lost-new")
    gate.unlink()
    server.api.update_endpoint(EndpointName="lost", EndpointConfigName="lost-new")
    wait_for("new server starts", lambda: two_servers(server, "lost"))
    server.kill()
    server.s3.delete_object(Bucket=server.bucket, Key="models/lost-old.tar.gz")
    server.start()
    endpoint = server.wait_endpoint("lost", "Failed")
    assert endpoint["EndpointConfigName"] == "lost-old"
    assert endpoint["FailureReason"].startswith("Failed to download model data")


def test_creation_in_flight_starts_over_after_a_kill(start: Start, tmp_path: Path) -> None:  # noqa: F811
    gate = tmp_path / "gate"
    server = start("--start-gate", str(gate))
    server.config("late")
    server.api.create_endpoint(EndpointName="late", EndpointConfigName="late")
    wait_for("server starts", lambda: [line for line in server.processes() if "/servers/late." in line])
    server.kill()
    gate.touch()
    server.start()
    server.wait_endpoint("late", "InService")
    assert server.ask("late") == {"answer": "late"}


@pytest.mark.parametrize("gently", [True, False])
def test_undelivered_events_are_delivered_after_a_restart(
    start: Start,  # noqa: F811
    receiver: Receiver,  # noqa: F811
    gently: bool,
) -> None:
    receiver.status = 503
    server = start("--events-url", receiver.url)
    server.train("told", "pass")
    wait_for("an attempt", lambda: receiver.attempts)
    if gently:
        assert server.stop() == 0
    else:
        server.kill()
    receiver.status = 200
    server.start()
    order = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    wait_for("all events", lambda: len(receiver.of("Training Job", "told")) == len(order))
    assert [detail["SecondaryStatus"] for detail in receiver.of("Training Job", "told")] == order


def test_damaged_state_is_named_and_not_overwritten(start: Start) -> None:  # noqa: F811
    server = start()
    server.train("one", "pass")
    assert server.stop() == 0
    damaged = server.state / "training-jobs/one.json"
    damaged.write_text("{")
    with pytest.raises(AssertionError, match=r"one\.json is not a state file"):
        server.start()
    assert damaged.read_text() == "{"
