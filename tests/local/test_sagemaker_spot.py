"""Managed spot training of the local SageMaker, and jobs on several hosts: tiny programs, as AWS would treat them."""

import contextlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sagemaker_fixtures import (  # noqa: F401  fixtures
    LocalSageMaker,
    Receiver,
    Start,
    aws,
    interrupt,
    receiver,
    refusal,
    server,
    start,
    wait_for,
)

SPOT = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 300, "MaxWaitTimeInSeconds": 600},
}
# Writes down what it finds of those before it, says that it is there, and waits: in its first container for ever.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

kept = Path(os.environ["CHECKPOINT_DIR"])
found = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
(kept / "rounds").mkdir(exist_ok=True)
(kept / "rounds" / str(len(found))).write_text("x" * len(found))
Path(os.environ["SM_MODEL_DIR"], "found.json").write_text(json.dumps(found))

def told(number, frame):
    (kept / "told").write_text(str(number))
    sys.exit()

signal.signal(signal.SIGTERM, told)
Path(READY + str(len(found))).touch()
while not found and not os.path.exists(READY + "go"):
    time.sleep(0.01)
"""


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}  # type: ignore[union-attr]


def steps(job: dict[str, Any]) -> list[str]:
    return [step["Status"] for step in job["SecondaryStatusTransitions"]]


def checkpoints(server: LocalSageMaker, name: str) -> dict[str, bytes]:  # noqa: F811
    """What S3 has of a job's checkpoints."""
    prefix = f"checkpoints/{name}/"
    listed = server.s3.list_objects_v2(Bucket=server.bucket, Prefix=prefix).get("Contents", [])
    kept = {}
    for item in listed:
        with contextlib.suppress(ClientError):  # it may be deleted meanwhile
            kept[item["Key"].removeprefix(prefix)] = server.get(item["Key"])
    return kept


def spot_job(server: LocalSageMaker, name: str, program: str, **changes: Any) -> None:  # noqa: F811
    config = {"S3Uri": f"s3://{server.bucket}/checkpoints/{name}", "LocalPath": "/opt/ml/checkpoints"}
    given = {"CheckpointConfig": config, "Environment": {"CHECKPOINT_DIR": "/opt/ml/checkpoints"}, **SPOT, **changes}
    server.api.create_training_job(**server.job_request(name, program, **given))


@pytest.fixture
def begin(server: LocalSageMaker, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """Start PROGRAM as a spot job, and wait until it runs; its file `0` is there then, `1` in its second container."""

    def begin(name: str, on: LocalSageMaker = server, program: str = PROGRAM, **changes: Any) -> Path:
        ready = tmp_path / f"{name}."
        spot_job(on, name, program.replace("READY", repr(str(ready))), **changes)
        wait_for("the program runs", Path(f"{ready}0").exists)
        return ready

    return begin


# ---- an interruption


def test_an_interrupted_job_goes_on_in_a_new_container_with_its_checkpoints(
    server: LocalSageMaker,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    begin("going-on")
    assert interrupt(server.url, "going-on") == 200
    job = server.wait_job("going-on", "Completed")
    once = ["Starting", "Downloading", "Training"]
    assert steps(job) == [*once, "Interrupted", *once, "Uploading", "Completed"]
    # No program is told (aws/sagemaker-training-toolkit#173): it was killed when the grace was over.
    found = members(server.get("models/going-on/output/model.tar.gz"))["found.json"]
    assert json.loads(found) == ["rounds/0"]
    assert checkpoints(server, "going-on") == {"rounds/0": b"", "rounds/1": b"x"}
    assert job["TrainingStartTime"] < job["SecondaryStatusTransitions"][4]["StartTime"]
    assert 1 <= job["BillableTimeInSeconds"] < job["TrainingTimeInSeconds"]
    assert not job.keys() & {"Attempts", "RunSeconds", "ContainerStartTime"}
    assert "SM_MODEL_DIR" not in str(job)


def test_a_program_of_an_image_that_passes_sigterm_on_is_told(
    server: LocalSageMaker,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    begin("told")
    assert interrupt(server.url, "told", hears=True) == 200
    server.wait_job("told", "Completed")
    found = members(server.get("models/told/output/model.tar.gz"))["found.json"]
    assert json.loads(found) == ["rounds/0", "told"]


def test_a_program_that_ends_well_within_the_grace_has_completed(
    server: LocalSageMaker,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    ready = begin("just-in-time")
    interrupt(server.url, "just-in-time")
    Path(f"{ready}go").touch()
    job = server.wait_job("just-in-time", "Completed")
    assert steps(job) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]


def test_each_step_of_an_interruption_is_an_event(
    start: Start,  # noqa: F811
    receiver: Receiver,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    server = start("--events-url", receiver.url, "--stop-grace-seconds", "0")  # noqa: F811
    begin("evented", on=server)
    interrupt(server.url, "evented")
    server.wait_job("evented", "Completed")
    wait_for("the last event", lambda: len(receiver.of("Training Job", "evented")) == 9)
    seen = [
        (detail["TrainingJobStatus"], detail["SecondaryStatus"]) for detail in receiver.of("Training Job", "evented")
    ]
    assert seen[3:5] == [("InProgress", "Interrupted"), ("InProgress", "Starting")]


def test_a_job_that_waits_for_capacity_can_be_stopped(
    server: LocalSageMaker,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    begin("no-capacity")
    interrupt(server.url, "no-capacity", seconds=1000)
    wait_for("it waits", lambda: server.job("no-capacity")["SecondaryStatus"] == "Interrupted")
    server.api.stop_training_job(TrainingJobName="no-capacity")
    job = server.wait_job("no-capacity", "Stopped")
    assert steps(job)[-3:] == ["Interrupted", "Stopping", "Stopped"]
    assert "ModelArtifacts" not in job


def test_a_stop_during_the_grace_of_an_interruption_is_a_stop(
    server: LocalSageMaker,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    ready = begin("both")
    interrupt(server.url, "both")
    server.api.stop_training_job(TrainingJobName="both")
    Path(f"{ready}go").touch()
    job = server.wait_job("both", "Stopped")
    assert steps(job)[-3:] == ["Stopping", "Uploading", "Stopped"]


def test_only_a_spot_job_that_runs_is_interrupted(
    server: LocalSageMaker,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    assert interrupt(server.url, "nobody") == 400
    on_demand = {"EnableManagedSpotTraining": False, "StoppingCondition": {"MaxRuntimeInSeconds": 300}}
    ready = begin("on-demand", **on_demand)
    assert interrupt(server.url, "on-demand") == 400
    Path(f"{ready}go").touch()
    job = server.wait_job("on-demand", "Completed")
    assert job["BillableTimeInSeconds"] == job["TrainingTimeInSeconds"]
    begin("gone-already")
    interrupt(server.url, "gone-already", seconds=1000)
    wait_for("it waits", lambda: server.job("gone-already")["SecondaryStatus"] == "Interrupted")
    assert interrupt(server.url, "gone-already") == 400
    server.api.stop_training_job(TrainingJobName="gone-already")
    server.wait_job("gone-already", "Stopped")


# ---- limits


def test_the_wait_counts_the_running_and_the_waiting(
    server: LocalSageMaker,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    begin("waiting-long", StoppingCondition={"MaxRuntimeInSeconds": 6, "MaxWaitTimeInSeconds": 6})
    interrupt(server.url, "waiting-long", seconds=1000)
    job = server.wait_job("waiting-long", "Stopped")
    assert (job["SecondaryStatus"], steps(job)[-2]) == ("MaxWaitTimeExceeded", "Interrupted")
    assert job["TrainingTimeInSeconds"] <= 6
    assert "FailureReason" not in job


def test_a_job_that_never_gets_an_instance_is_stopped_when_its_wait_is_over(
    start: Start,  # noqa: F811
    begin: Callable[..., Path],
) -> None:
    server = start("--stop-grace-seconds", "0")  # noqa: F811
    begin("first", on=server)
    limits = {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1}
    spot_job(server, "second", "", StoppingCondition=limits)
    job = server.wait_job("second", "Stopped")
    assert steps(job) == ["Pending", "MaxWaitTimeExceeded"]
    assert not job.keys() & {"TrainingStartTime", "TrainingTimeInSeconds", "BillableTimeInSeconds"}
    server.api.stop_training_job(TrainingJobName="first")
    server.wait_job("first", "Stopped")


def test_the_runtime_counts_what_all_containers_took(start: Start, begin: Callable[..., Path]) -> None:  # noqa: F811
    server = start("--stop-grace-seconds", "4")  # noqa: F811
    begin("too-long", on=server, StoppingCondition={"MaxRuntimeInSeconds": 4, "MaxWaitTimeInSeconds": 60})
    interrupt(server.url, "too-long")
    job = server.wait_job("too-long", "Stopped")
    # The grace took what was left: there is no second container.
    assert steps(job)[-2:] == ["Interrupted", "MaxRuntimeExceeded"]
    assert job["TrainingTimeInSeconds"] >= 4


def test_a_running_job_ends_with_its_wait(server: LocalSageMaker, begin: Callable[..., Path]) -> None:  # noqa: F811
    limits = {"MaxRuntimeInSeconds": 3, "MaxWaitTimeInSeconds": 3}
    begin("over", StoppingCondition=limits)
    job = server.wait_job("over", "Stopped")
    # The wait began with the call, the runtime with the container.
    assert job["SecondaryStatus"] == "MaxWaitTimeExceeded"
    assert job["ModelArtifacts"]["S3ModelArtifacts"].endswith("/over/output/model.tar.gz")


def test_a_wait_shorter_than_the_runtime_is_refused(server: LocalSageMaker) -> None:  # noqa: F811
    limits = {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59}
    request = server.job_request("short", "", EnableManagedSpotTraining=True, StoppingCondition=limits)
    code, message = refusal(server.api.create_training_job, **request)
    assert code == "ValidationException"
    assert message.startswith("Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to")


def test_spot_instances_have_a_quota_of_their_own(start: Start) -> None:  # noqa: F811
    server = start("--quota", "ml.m5.xlarge for spot training job usage=1")  # noqa: F811
    resources = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    code, message = refusal(
        server.api.create_training_job, **server.job_request("two", "", **SPOT, ResourceConfig=resources)
    )
    assert code == "ResourceLimitExceeded"
    assert "'ml.m5.xlarge for spot training job usage' is 1 Instances" in message
    assert "a request delta of 2 Instances" in message
    server.train("on-demand", "")


# ---- checkpoints


def test_checkpoints_are_copied_while_the_program_runs(
    server: LocalSageMaker,  # noqa: F811
    tmp_path: Path,
) -> None:
    server.put("checkpoints/copied/deep/before", "from before")
    program = f"""
import os, time
from pathlib import Path
def step(name):
    Path({str(tmp_path)!r}, name + ".done").touch()
    while not Path({str(tmp_path)!r}, name).exists():
        time.sleep(0.01)
kept = Path(os.environ["CHECKPOINT_DIR"])
assert (kept / "deep/before").read_text() == "from before"
(kept / "deep/new").write_text("one")
step("first")
(kept / "deep/new").write_text("two, and longer")
(kept / "deep/before").unlink()
step("second")
assert not (kept / "late").exists()
"""
    spot_job(server, "copied", program)
    wait_for("it is copied", lambda: checkpoints(server, "copied").get("deep/new") == b"one")
    server.put("checkpoints/copied/late", "by somebody else")
    (tmp_path / "first").touch()
    kept = {"deep/new": b"two, and longer", "late": b"by somebody else"}
    wait_for("the change and the deletion are copied", lambda: checkpoints(server, "copied") == kept)
    (tmp_path / "second").touch()
    server.wait_job("copied", "Completed")
    assert checkpoints(server, "copied") == kept


def test_what_was_written_last_is_copied_too(server: LocalSageMaker) -> None:  # noqa: F811
    spot_job(server, "last", "import os\nopen(os.environ['CHECKPOINT_DIR'] + '/last', 'w').write('x')")
    server.wait_job("last", "Completed")
    assert checkpoints(server, "last") == {"last": b"x"}


def test_the_container_is_told_where_its_checkpoints_are(server: LocalSageMaker) -> None:  # noqa: F811
    program = """
import json, os
told = json.load(open(os.path.join(os.environ["SM_INPUT_CONFIG_DIR"], "checkpointconfig.json")))
assert os.path.samefile(told["LocalPath"], os.environ["CHECKPOINT_DIR"])
assert os.environ["OTHER"] == "/opt/mlx"
"""
    environment = {"CHECKPOINT_DIR": "/opt/ml/elsewhere", "OTHER": "/opt/mlx"}
    config = {"S3Uri": f"s3://{server.bucket}/checkpoints/elsewhere/", "LocalPath": "/opt/ml/elsewhere/"}
    spot_job(server, "elsewhere", program, Environment=environment, CheckpointConfig=config)
    server.wait_job("elsewhere", "Completed")


def test_checkpoints_that_cannot_be_read_fail_the_job(server: LocalSageMaker) -> None:  # noqa: F811
    spot_job(server, "unread", "", CheckpointConfig={"S3Uri": "s3://no-such-bucket/x"})
    job = server.wait_job("unread", "Failed")
    assert job["FailureReason"].startswith("ClientError: Checkpoint download failed: s3://no-such-bucket/x/: ")


def test_after_a_kill_a_retried_job_has_its_checkpoints(start: Start, begin: Callable[..., Path]) -> None:  # noqa: F811
    server = start()  # noqa: F811
    ready = begin("again", on=server, RetryStrategy={"MaximumRetryAttempts": 1})
    wait_for("it is copied", lambda: "rounds/0" in checkpoints(server, "again"))
    server.kill()
    server.start()
    server.wait_job("again", "Completed")
    assert Path(f"{ready}1").exists()


def test_after_a_kill_a_job_that_waited_for_capacity_goes_on(start: Start, begin: Callable[..., Path]) -> None:  # noqa: F811
    server = start("--stop-grace-seconds", "0")  # noqa: F811
    ready = begin("patient", on=server)
    interrupt(server.url, "patient", seconds=1000)
    wait_for("it waits", lambda: server.job("patient")["SecondaryStatus"] == "Interrupted")
    server.kill()
    server.start()
    server.wait_job("patient", "Completed")
    assert Path(f"{ready}1").exists()


def test_an_interruption_is_no_attempt_of_the_retry_strategy(start: Start, begin: Callable[..., Path]) -> None:  # noqa: F811
    server = start("--stop-grace-seconds", "0")  # noqa: F811
    # Its second container waits, too.
    program = PROGRAM.replace("while not found", "while len(found) < 2")
    ready = begin("counted", on=server, program=program, RetryStrategy={"MaximumRetryAttempts": 1})
    interrupt(server.url, "counted")
    wait_for("the second container", Path(f"{ready}1").exists)
    wait_for("it is copied", lambda: "rounds/1" in checkpoints(server, "counted"))
    server.kill()
    server.start()
    job = server.wait_job("counted", "Completed")
    assert steps(job).count("Interrupted") == steps(job).count("Restarting") == 1


# ---- several hosts

HOSTS = """
import json, os, socket, sys
from pathlib import Path

names = ("SM_CURRENT_HOST", "SM_HOSTS", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE",
         "LOCAL_WORLD_SIZE", "GROUP_RANK")
seen = {name: os.environ.get(name) for name in names}
seen["resources"] = json.loads(os.environ["SM_RESOURCE_CONFIG"])
seen["data"] = Path(os.environ["SM_CHANNEL_TRAIN"], "data.csv").read_text()
print("I am", seen["SM_CURRENT_HOST"])
where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if os.environ["RANK"] == "0":
    with socket.create_server(where) as listening:
        connection, _ = listening.accept()
        with connection, connection.makefile() as lines:
            other = json.loads(lines.readline())
    Path(os.environ["SM_MODEL_DIR"], "seen.json").write_text(json.dumps([seen, other]))
else:
    while True:
        try:
            connection = socket.create_connection(where)
            break
        except ConnectionRefusedError:
            pass
    with connection:
        connection.sendall(json.dumps(seen).encode() + b"\\n")
"""
TWO = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
TORCHRUN = {"sagemaker_torch_distributed_enabled": "true", "sagemaker_instance_type": "ml.m5.xlarge"}


def test_two_hosts_run_the_program_as_under_torchrun_and_reach_each_other(server: LocalSageMaker) -> None:  # noqa: F811
    job = server.train("two-hosts", HOSTS, ResourceConfig=TWO, parameters=TORCHRUN)
    assert job["ResourceConfig"]["InstanceCount"] == 2
    first, second = json.loads(members(server.get("models/two-hosts/output/model.tar.gz"))["seen.json"])
    assert (first["SM_CURRENT_HOST"], second["SM_CURRENT_HOST"]) == ("algo-1", "algo-2")
    assert first["SM_HOSTS"] == second["SM_HOSTS"] == '["algo-1","algo-2"]'
    ranks = ("RANK", "GROUP_RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    assert [first[name] for name in ranks] == ["0", "0", "0", "2", "1"]
    assert [second[name] for name in ranks] == ["1", "1", "0", "2", "1"]
    assert [seen["resources"]["current_host"] for seen in (first, second)] == ["algo-1", "algo-2"]
    assert first["data"] == second["data"] == "text,label\nhello,a\n"
    logs = server.state / "logs"
    assert "I am algo-1\n" in (logs / "two-hosts.log").read_text()
    assert "I am algo-2\n" in (logs / "two-hosts.algo-2.log").read_text()


def test_without_torchrun_the_hosts_have_no_ranks(server: LocalSageMaker) -> None:  # noqa: F811
    program = "import os\nassert 'RANK' not in os.environ\nassert os.environ['SM_HOSTS'].count('algo') == 2"
    server.train("no-ranks", program, ResourceConfig=TWO)


def test_one_host_can_run_under_torchrun_too(server: LocalSageMaker) -> None:  # noqa: F811
    program = "import os\nassert (os.environ['RANK'], os.environ['WORLD_SIZE']) == ('0', '1')"
    server.train("alone", program, parameters=TORCHRUN)


@pytest.mark.parametrize("host", ["algo-1", "algo-2"])
def test_a_host_that_fails_ends_the_others_and_gives_the_reason(server: LocalSageMaker, host: str) -> None:  # noqa: F811
    program = f"""
import os, sys, time
from pathlib import Path
if os.environ["SM_CURRENT_HOST"] == {host!r}:
    Path(os.environ["SM_OUTPUT_DIR"], "failure").write_text("no memory on {host}")
    sys.exit(1)
while True:
    time.sleep(0.01)
"""
    job = server.train(f"failing-{host}", program, "Failed", ResourceConfig=TWO, parameters=TORCHRUN)
    assert job["FailureReason"] == f"AlgorithmError: no memory on {host}, exit code: 1"
    assert not [line for line in server.processes() if f"failing-{host}" in line]


def test_output_of_another_host_is_refused(server: LocalSageMaker) -> None:  # noqa: F811
    program = "import os\nopen(os.environ['SM_MODEL_DIR'] + '/' + os.environ['SM_CURRENT_HOST'], 'w').close()"
    job = server.train("two-models", program, "Failed", ResourceConfig=TWO)
    assert job["FailureReason"].endswith("output of other hosts than algo-1: algo-2 has some")


def test_an_interruption_takes_all_hosts_and_all_find_the_checkpoints(
    server: LocalSageMaker,  # noqa: F811
    tmp_path: Path,
) -> None:
    program = f"""
import os, time
from pathlib import Path
kept, host = Path(os.environ["CHECKPOINT_DIR"]), os.environ["SM_CURRENT_HOST"]
found = sorted(path.name for path in kept.iterdir())
(kept / host).touch()
Path({str(tmp_path)!r}, host).touch()
while not found:
    time.sleep(0.01)
print("found", *found)
"""
    spot_job(server, "all-hosts", program, ResourceConfig=TWO, parameters=TORCHRUN)
    wait_for("both run", lambda: all((tmp_path / host).exists() for host in ("algo-1", "algo-2")))
    interrupt(server.url, "all-hosts")
    server.wait_job("all-hosts", "Completed")
    for file in ("all-hosts.log", "all-hosts.algo-2.log"):
        assert "found algo-1 algo-2\n" in (server.state / "logs" / file).read_text()


def test_every_instance_counts_against_the_quota(start: Start) -> None:  # noqa: F811
    server = start("--quota", "ml.m5.xlarge for training job usage=1")  # noqa: F811
    with pytest.raises(ClientError, match="a request delta of 2 Instances"):
        server.api.create_training_job(**server.job_request("two", "", ResourceConfig=TWO))
