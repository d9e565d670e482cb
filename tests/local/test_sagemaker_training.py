"""Training jobs of the local SageMaker: real programs under the container contract."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sagemaker_fixtures import (  # noqa: F401  fixtures
    LocalSageMaker,
    Receiver,
    Start,
    archive,
    aws,
    receiver,
    server,
    start,
    wait_for,
)

PROGRAM = """
import json, os, sys
root = os.environ["SM_MODEL_DIR"]
with open(os.path.join(root, "seen.json"), "w") as file:
    json.dump({"args": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(),
               "files": sorted(os.path.relpath(os.path.join(folder, name), os.environ["SM_INPUT_DIR"])
                               for folder, _, names in os.walk(os.environ["SM_INPUT_DIR"]) for name in names)}, file)
with open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "metrics.json"), "w") as file:
    json.dump({"accuracy": 0.9}, file)
print("accuracy=0.5")
print("accuracy=0.9")
print("to stderr", file=sys.stderr)
"""


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}  # type: ignore[union-attr]


def test_program_runs_under_the_container_contract(server: LocalSageMaker) -> None:  # noqa: F811
    server.put("many/a.csv", "1")
    server.put("many/deep/b é+%.csv", "2")
    request = server.job_request(
        "contract",
        PROGRAM,
        parameters={"epochs": "3", "lr": "5e-5", "on": "true", "n": "1", "sagemaker_region": "us-east-1"},
        Environment={"BASE_MODEL": "some/model"},
    )
    request["AlgorithmSpecification"]["MetricDefinitions"] = [
        {"Name": "accuracy", "Regex": "accuracy=([0-9.]+)"},
        {"Name": "absent", "Regex": "nothing=([0-9.]+)"},
    ]
    prefix = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{server.bucket}/many"}
    request["InputDataConfig"].append({"ChannelName": "extra", "DataSource": {"S3DataSource": prefix}})
    server.api.create_training_job(**request)
    job = server.wait_job("contract", "Completed")

    assert job["SecondaryStatus"] == "Completed"
    assert [step["Status"] for step in job["SecondaryStatusTransitions"]] == [
        "Starting",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert all("EndTime" in step for step in job["SecondaryStatusTransitions"])
    assert job["CreationTime"] <= job["TrainingStartTime"] < job["TrainingEndTime"]
    assert job["BillableTimeInSeconds"] >= 1
    metrics = {metric["MetricName"]: metric["Value"] for metric in job["FinalMetricDataList"]}
    assert metrics == {"accuracy": pytest.approx(0.9)}
    assert job["HyperParameters"] == request["HyperParameters"]
    assert "Tags" not in job

    model_uri = f"s3://{server.bucket}/models/contract/output/model.tar.gz"
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == model_uri
    seen = json.loads(members(server.get("models/contract/output/model.tar.gz"))["seen.json"])
    assert members(server.get("models/contract/output/output.tar.gz")) == {"metrics.json": b'{"accuracy": 0.9}'}
    assert seen["args"] == ["--epochs", "3", "--lr", "5e-05", "-n", "1", "--on", "True"]
    env = seen["env"]
    assert seen["cwd"].endswith("/opt/ml/code")
    assert env["SM_CHANNEL_TRAIN"].endswith("/opt/ml/input/data/train")
    assert env["SM_CHANNEL_EXTRA"].endswith("/opt/ml/input/data/extra")
    assert json.loads(env["SM_CHANNELS"]) == ["extra", "train"]
    assert json.loads(env["SM_HPS"]) == {"epochs": 3, "lr": 5e-05, "n": 1, "on": True}
    assert (env["SM_HP_EPOCHS"], env["SM_HP_ON"]) == ("3", "true")
    assert env["BASE_MODEL"] == "some/model"
    assert env["TRAINING_JOB_NAME"] == "contract"
    assert env["AWS_REGION"] == "us-east-1"
    assert seen["files"] == [
        "config/hyperparameters.json",
        "config/inputdataconfig.json",
        "config/resourceconfig.json",
        "data/extra/a.csv",
        "data/extra/deep/b é+%.csv",
        "data/train/data.csv",
    ]


def test_output_reaches_cloudwatch_logs_and_a_file(server: LocalSageMaker) -> None:  # noqa: F811
    server.train("logged", "import sys\nprint('one')\nprint()\nprint('twö', file=sys.stderr)")
    group = "/aws/sagemaker/TrainingJobs"

    def lines() -> list[str]:
        streams = server.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="logged/algo-1-")
        return [
            event["message"]
            for stream in streams["logStreams"]
            for event in server.logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
        ]

    wait_for("log events", lambda: len(lines()) == 4)
    command, *sent = lines()
    assert command.startswith("Invoking script with the following command: ")
    kept = (server.state / "logs/logged.log").read_text().splitlines()[1:]
    # As in AWS's toolkit, stdout and stderr are two pipes: the order within each is all that is kept.
    for printed in (sent, kept):
        printed.remove("twö")
    assert (sent, kept) == (["one", " "], ["one", ""])


def test_hyperparameters_go_through_a_shell_without_quotes(server: LocalSageMaker) -> None:  # noqa: F811
    program = "import os, sys\nprint(sys.argv[1:])"
    server.train("shell", program, parameters={"a": "hello world", "b": "x; echo INJECTED > $SM_MODEL_DIR/hole"})
    log = (server.state / "logs/shell.log").read_text()
    assert "['-a', 'hello', 'world', '-b', 'x']" in log
    assert members(server.get("models/shell/output/model.tar.gz")) == {"hole": b"INJECTED\n"}


def test_failure_file_becomes_the_reason(server: LocalSageMaker) -> None:  # noqa: F811
    program = """
import os, sys
with open(os.path.join(os.environ["SM_OUTPUT_DIR"], "failure"), "w") as file:
    file.write("only one class in the data" + " " * 2000)
sys.exit(3)
"""
    job = server.train("failing", program, "Failed")
    assert job["SecondaryStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: only one class in the data")
    assert len(job["FailureReason"]) == 1024
    short = program.replace('" " * 2000', '""')
    assert server.train("failing-short", short, "Failed")["FailureReason"] == (
        "AlgorithmError: only one class in the data, exit code: 1"
    )


def test_without_a_failure_file_the_reason_has_exit_code_and_output(server: LocalSageMaker) -> None:  # noqa: F811
    job = server.train("crash", "raise ValueError('no such column')", "Failed")
    assert "ExecuteUserScriptError" in job["FailureReason"]
    assert "ValueError: no such column" in job["FailureReason"]
    assert job["FailureReason"].endswith(", exit code: 1")
    assert "ModelArtifacts" not in job


def test_nothing_in_the_model_folder_gives_no_model_object(server: LocalSageMaker) -> None:  # noqa: F811
    job = server.train("empty", "print('nothing to keep')")
    assert job["ModelArtifacts"]["S3ModelArtifacts"].endswith("/models/empty/output/model.tar.gz")
    assert server.s3.list_objects_v2(Bucket=server.bucket, Prefix="models/empty/")["KeyCount"] == 0


def test_missing_input_fails_while_downloading(server: LocalSageMaker) -> None:  # noqa: F811
    request = server.job_request("no-data", "pass")
    uri = f"s3://{server.bucket}/not/there"
    request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = uri
    server.api.create_training_job(**request)
    job = server.wait_job("no-data", "Failed")
    assert job["FailureReason"].startswith(
        f'ClientError: Data download failed: No S3 objects found under S3 URL "{uri}" given in input data source.'
    )
    assert [step["Status"] for step in job["SecondaryStatusTransitions"]] == ["Starting", "Downloading", "Failed"]


def test_source_that_is_no_gzip_tar_fails(server: LocalSageMaker) -> None:  # noqa: F811
    source = server.put("other/rubbish.tar.gz", "not an archive")
    job = server.train("rubbish", "pass", "Failed", parameters={"sagemaker_submit_directory": source})
    assert job["FailureReason"].startswith("AlgorithmError: Framework Error: \nTraceback (most recent call last):\n")
    assert job["FailureReason"].endswith("not a valid gzip tar: not a gzip file, exit code: 1")
    assert f"cannot use sagemaker_submit_directory {source}: " in (server.state / "logs/rubbish.log").read_text()


def test_source_archive_cannot_leave_its_folder(server: LocalSageMaker) -> None:  # noqa: F811
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../../../escaped"))
    source = server.put("other/escape.tar.gz", buffer.getvalue())
    job = server.train("escape", "pass", "Failed", parameters={"sagemaker_submit_directory": source})
    assert "not a valid gzip tar" in job["FailureReason"]


@pytest.mark.parametrize(
    ("requirements", "said", "quoted"),
    [
        ("boto3==0.0.1\n", "No matching distribution found for boto3==0.0.1", ""),
        (
            "# a comment\nsurely-not-installed>=1 # why\n",
            "No matching distribution found for surely-not-installed>=1",
            "",
        ),
        ("this is not a requirement\n", "Invalid requirement", "ERROR: Invalid requirement: 'this is not a req"),
    ],
)
def test_unmet_requirements_fail_as_pip_would(
    server: LocalSageMaker,  # noqa: F811
    requirements: str,
    said: str,
    quoted: str,
) -> None:
    """The toolkit's reason quotes lines that name a Python error: "No matching distribution" stands in the log only."""
    name = f"unmet-{abs(hash(requirements))}"
    job = server.train(name, "pass", "Failed", files={"requirements_txt": requirements})
    beginning = f'AlgorithmError: InstallRequirementsError:\nExitCode 1\nErrorMessage "{quoted}'
    assert job["FailureReason"].startswith(beginning if quoted else f'{beginning}"\n')
    assert said in (server.state / f"logs/{name}.log").read_text()


def test_met_requirements_pass(server: LocalSageMaker) -> None:  # noqa: F811
    lines = "--index-url https://example.invalid/simple\nboto3>=1.0\nnowhere==1 ; python_version < '3'\n"
    server.train("met", "pass", files={"requirements_txt": lines})


def test_program_is_stopped_at_its_maximum_runtime(server: LocalSageMaker) -> None:  # noqa: F811
    program = """
import os, signal, sys, time
def save(*_):
    open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w").close()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
open(os.path.join(os.environ["SM_MODEL_DIR"], "begun"), "w").close()
while True:
    time.sleep(0.01)
"""
    job = server.train("too-long", program, "Stopped", StoppingCondition={"MaxRuntimeInSeconds": 2})
    assert job["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert "FailureReason" not in job
    assert set(members(server.get("models/too-long/output/model.tar.gz"))) == {"begun"}


def test_no_program_is_told_of_a_stop(server: LocalSageMaker, tmp_path: Path) -> None:  # noqa: F811
    """SIGTERM ends at the container's first process; the program is killed when the grace is over."""
    ready = tmp_path / "ready"
    program = f"""
import os, signal, sys, time
def save(*_):
    open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(os.path.join(os.environ["SM_MODEL_DIR"], "begun"), "w").close()
open({str(ready)!r}, "w").close()
while True:
    time.sleep(0.01)
"""
    server.api.create_training_job(**server.job_request("stubborn", program))
    wait_for("program runs", ready.exists)
    server.api.stop_training_job(TrainingJobName="stubborn")
    assert server.job("stubborn")["TrainingJobStatus"] == "Stopping"
    job = server.wait_job("stubborn", "Stopped")
    assert job["SecondaryStatus"] == "Stopped"
    assert [step["Status"] for step in job["SecondaryStatusTransitions"]][-3:] == ["Stopping", "Uploading", "Stopped"]
    assert set(members(server.get("models/stubborn/output/model.tar.gz"))) == {"begun"}


def test_a_stopped_program_that_ends_within_the_grace_keeps_its_model(
    server: LocalSageMaker,  # noqa: F811
    tmp_path: Path,
) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    program = f"""
import os, time
open({str(ready)!r}, "w").close()
while not os.path.exists({str(go)!r}):
    time.sleep(0.01)
open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w").close()
"""
    # The second command keeps a shell between the guard and the program.
    request = server.job_request("saving", program, parameters={"z": "1; true"})
    server.api.create_training_job(**request)
    wait_for("program runs", ready.exists)
    server.api.stop_training_job(TrainingJobName="saving")
    go.touch()
    server.wait_job("saving", "Stopped")
    assert set(members(server.get("models/saving/output/model.tar.gz"))) == {"saved"}


def test_what_a_program_leaves_running_is_ended_with_it(server: LocalSageMaker) -> None:  # noqa: F811
    sleep = "[sys.executable, '-c', 'import time; time.sleep(300)']"
    program = f"import subprocess, sys\nsubprocess.Popen({sleep}, start_new_session=True)"
    server.train("litter", program)
    assert not [line for line in server.processes() if "time.sleep(300)" in line]


def test_second_job_waits_its_turn_and_can_be_stopped_there(start: Start, tmp_path: Path) -> None:  # noqa: F811
    server = start("--stop-grace-seconds", "1")  # noqa: F811
    go = tmp_path / "go"
    program = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    for name in ("first", "second", "third"):
        server.api.create_training_job(**server.job_request(name, program))
    wait_for("first trains", lambda: server.job("first")["SecondaryStatus"] == "Training")
    assert [server.job(name)["SecondaryStatus"] for name in ("second", "third")] == ["Pending", "Pending"]
    server.api.stop_training_job(TrainingJobName="second")
    assert server.job("second")["TrainingJobStatus"] == "Stopped"
    go.touch()
    server.wait_job("first", "Completed")
    steps = [step["Status"] for step in server.wait_job("third", "Completed")["SecondaryStatusTransitions"]]
    assert steps == ["Pending", "Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert "TrainingStartTime" not in server.job("second")


def test_events_come_in_order_and_after_the_status_is_visible(start: Start, receiver: Receiver) -> None:  # noqa: F811
    server = start("--events-url", receiver.url)  # noqa: F811
    behind: list[str] = []
    order = ["Starting", "Downloading", "Training", "Uploading", "Completed"]

    def compare(envelope: dict[str, Any]) -> None:
        detail = envelope["detail"]
        visible = server.job(detail["TrainingJobName"])["SecondaryStatus"]
        if order.index(visible) < order.index(detail["SecondaryStatus"]):
            behind.append(detail["SecondaryStatus"])

    receiver.on_receive = compare
    job = server.train("evented", "print('x')", Tags=[{"Key": "Model", "Value": "m"}])
    wait_for("last event", lambda: len(receiver.of("Training Job", "evented")) == len(order))
    details = receiver.of("Training Job", "evented")
    assert [detail["SecondaryStatus"] for detail in details] == order
    assert behind == []
    envelope = receiver.received[-1]
    assert {key: envelope[key] for key in ("version", "source", "account", "region", "resources")} == {
        "version": "0",
        "source": "aws.sagemaker",
        "account": "123456789012",
        "region": "us-east-1",
        "resources": [job["TrainingJobArn"]],
    }
    assert envelope["detail-type"] == "SageMaker Training Job State Change"
    assert len({event["id"] for event in receiver.received}) == len(receiver.received)
    last = details[-1]
    assert last["TrainingJobStatus"] == "Completed"
    assert last["Tags"] == {"Model": "m"}
    assert last["CreationTime"] == round(job["CreationTime"].timestamp() * 1000)
    assert last["TrainingEndTime"] == last["LastModifiedTime"] == round(job["TrainingEndTime"].timestamp() * 1000)
    assert last["InputDataConfig"] == job["InputDataConfig"]
    assert "ModelArtifacts" not in last


def test_events_are_tried_again_and_a_final_refusal_is_given_up(start: Start, receiver: Receiver) -> None:  # noqa: F811
    receiver.status = 503
    server = start("--events-url", receiver.url)  # noqa: F811
    server.train("again", "pass")
    wait_for("more attempts", lambda: receiver.attempts >= 3)
    assert receiver.received == []
    receiver.status = 200
    wait_for("all events", lambda: len(receiver.of("Training Job", "again")) == 5)
    receiver.status = 400
    server.train("refused", "pass")
    wait_for("log line", lambda: server.log.read_text().count("event given up after 1 attempts") == 5)


def test_helper_archives_are_readable() -> None:
    assert members(archive(train_py="x", code__inference_py="y")) == {"train.py": b"x", "code/inference.py": b"y"}
