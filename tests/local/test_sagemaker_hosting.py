"""Endpoints of the local SageMaker: real model servers, blue/green updates, rollbacks."""

import io
import json
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sagemaker_fixtures import (  # noqa: F401  fixtures
    BROKEN_INFERENCE,
    IMAGE,
    INFERENCE,
    ROLE,
    UNMET_REQUIREMENTS,
    LocalSageMaker,
    Receiver,
    Start,
    aws,
    receiver,
    refusal,
    server,
    start,
    variant,
    wait_for,
)

HEALTH_CHECK = "did not pass the ping health check. Please check CloudWatch logs for this endpoint."


def test_model_goes_from_training_to_a_prediction(server: LocalSageMaker) -> None:  # noqa: F811
    program = f"""
import os
root = os.environ["SM_MODEL_DIR"]
os.mkdir(os.path.join(root, "code"))
with open(os.path.join(root, "answer.txt"), "w") as file:
    file.write("trained")
with open(os.path.join(root, "code", "inference.py"), "w") as file:
    file.write({INFERENCE!r})
"""
    job = server.train("whole", program)
    url = job["ModelArtifacts"]["S3ModelArtifacts"]
    container = {"Image": IMAGE, "ModelDataUrl": url}
    server.api.create_model(ModelName="whole", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    server.api.create_endpoint_config(EndpointConfigName="whole", ProductionVariants=[variant("whole")])
    server.serve("whole", "whole")
    answer = server.runtime.invoke_endpoint(
        EndpointName="whole", ContentType="application/json", Body=b'{"inputs": "x"}'
    )
    assert json.loads(answer["Body"].read()) == {"answer": "trained"}
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["ContentType"] == "application/json"

    endpoint = server.endpoint("whole")
    assert endpoint["EndpointConfigName"] == "whole"
    assert endpoint["ProductionVariants"][0]["CurrentServerlessConfig"] == {
        "MemorySizeInMB": 2048,
        "MaxConcurrency": 5,
    }
    assert endpoint["CreationTime"] < endpoint["LastModifiedTime"]
    assert endpoint["EndpointArn"] == "arn:aws:sagemaker:us-east-1:123456789012:endpoint/whole"


def test_endpoint_on_instances_says_how_many(server: LocalSageMaker) -> None:  # noqa: F811
    server.serve("counted", server.config("counted", concurrency=None))
    summary = server.endpoint("counted")["ProductionVariants"][0]
    assert (summary["CurrentInstanceCount"], summary["DesiredInstanceCount"]) == (1, 1)


def test_creating_endpoint_is_busy_and_answers_nobody(start: Start, tmp_path: Path) -> None:  # noqa: F811
    gate = tmp_path / "go"
    server = start("--start-gate", str(gate))  # noqa: F811
    server.config("slow")
    server.config("slow-next")
    server.api.create_endpoint(EndpointName="slow", EndpointConfigName="slow")
    assert server.endpoint("slow")["EndpointStatus"] == "Creating"
    for call, arguments in (
        (server.api.update_endpoint, {"EndpointName": "slow", "EndpointConfigName": "slow-next"}),
        (server.api.delete_endpoint, {"EndpointName": "slow"}),
    ):
        code, message = refusal(call, **arguments)
        assert code == "ValidationException"
        assert message.startswith('Cannot update in-progress endpoint "arn:aws:sagemaker:')
    code, message = refusal(server.runtime.invoke_endpoint, EndpointName="slow", Body=b"{}")
    assert (code, message) == ("ValidationError", "Endpoint slow of account 123456789012 not found.")
    gate.touch()
    server.wait_endpoint("slow", "InService")


def test_failed_creation_has_a_reason_and_can_only_be_deleted(server: LocalSageMaker) -> None:  # noqa: F811
    server.config("broken", requirements=UNMET_REQUIREMENTS)
    server.api.create_endpoint(EndpointName="broken", EndpointConfigName="broken")
    endpoint = server.wait_endpoint("broken", "Failed")
    assert endpoint["FailureReason"].endswith(HEALTH_CHECK)
    # The server was started three times, and its output is in the endpoint's log.
    log = (server.state / "logs/endpoint-broken.log").read_text()
    assert log.count("No matching distribution found for surely-not-installed==1") == 3
    server.config("broken-next")
    code, message = refusal(server.api.update_endpoint, EndpointName="broken", EndpointConfigName="broken-next")
    assert code == "ValidationException"
    assert "DeleteEndpoint is the only operation that can be performed on a failed endpoint" in message
    server.api.delete_endpoint(EndpointName="broken")
    wait_for("gone", lambda: not server.api.list_endpoints(NameContains="broken")["Endpoints"])


def test_server_that_never_answers_fails_after_the_health_check(start: Start, tmp_path: Path) -> None:  # noqa: F811
    server = start("--health-check-seconds", "0.5", "--start-gate", str(tmp_path / "never"))  # noqa: F811
    server.config("silent")
    server.api.create_endpoint(EndpointName="silent", EndpointConfigName="silent")
    assert server.wait_endpoint("silent", "Failed")["FailureReason"].endswith(HEALTH_CHECK)
    wait_for("no process", lambda: not server.processes())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("delete", "Failed to download model data"), ("rubbish", "Failed to extract model data archive")],
)
def test_model_data_that_cannot_be_used(server: LocalSageMaker, damage: str, reason: str) -> None:  # noqa: F811
    server.config(damage)
    if damage == "delete":
        server.s3.delete_object(Bucket=server.bucket, Key=f"models/{damage}.tar.gz")
    else:
        server.put(f"models/{damage}.tar.gz", "not an archive")
    server.api.create_endpoint(EndpointName=damage, EndpointConfigName=damage)
    assert server.wait_endpoint(damage, "Failed")["FailureReason"].startswith(reason)


def test_archive_with_a_link_out_of_its_folder_is_not_extracted(server: LocalSageMaker) -> None:  # noqa: F811
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("weights")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    server.config("linked")
    server.put("models/linked.tar.gz", buffer.getvalue())
    server.api.create_endpoint(EndpointName="linked", EndpointConfigName="linked")
    reason = server.wait_endpoint("linked", "Failed")["FailureReason"]
    assert reason.startswith("Failed to extract model data archive")


class Asker:
    """Asks an endpoint every 20 ms from a thread and keeps what it hears."""

    def __init__(self, server: LocalSageMaker, name: str) -> None:  # noqa: F811
        self.answers: list[str] = []
        self.errors: list[ClientError] = []
        self._stop = threading.Event()
        self._server, self._name = server, name
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.answers.append(self._server.ask(self._name)["answer"])
            except ClientError as exc:
                self.errors.append(exc)

    def __enter__(self) -> "Asker":
        self._thread.start()
        wait_for("first answer", lambda: self.answers or self.errors)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_update_switches_without_a_failed_request(start: Start, tmp_path: Path) -> None:  # noqa: F811
    gate = tmp_path / "go"
    gate.touch()
    server = start("--start-gate", str(gate))  # noqa: F811
    server.serve("blue-green", server.config("blue"))
    before = server.endpoint("blue-green")["LastModifiedTime"]
    gate.unlink()
    server.config("green")
    with Asker(server, "blue-green") as asker:
        server.api.update_endpoint(EndpointName="blue-green", EndpointConfigName="green")
        during = server.endpoint("blue-green")
        assert (during["EndpointStatus"], during["EndpointConfigName"]) == ("Updating", "blue")
        assert during["PendingDeploymentSummary"]["EndpointConfigName"] == "green"
        code, _ = refusal(server.api.update_endpoint, EndpointName="blue-green", EndpointConfigName="green")
        assert code == "ValidationException"
        count = len(asker.answers)
        wait_for("answers while updating", lambda: len(asker.answers) > count + 5)
        gate.touch()
        after = server.wait_endpoint("blue-green", "InService")
        wait_for("answer of the new model", lambda: asker.answers[-1] == "green")
    assert asker.errors == []
    # One switch: never back to the old model once the new one has answered.
    first_green = asker.answers.index("green")
    assert set(asker.answers[:first_green]) == {"blue"}
    assert set(asker.answers[first_green:]) == {"green"}
    assert after["EndpointConfigName"] == "green"
    assert after["LastModifiedTime"] > before
    assert "PendingDeploymentSummary" not in after
    wait_for("old server gone", lambda: len([p for p in server.processes() if "/servers/blue-green." in p]) == 3)


def test_request_in_flight_is_answered_by_the_old_server(server: LocalSageMaker, tmp_path: Path) -> None:  # noqa: F811
    server.serve("draining", server.config("drain-old"))
    server.config("drain-new")
    finish = tmp_path / "finish"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.ask, "draining", until=str(finish))
        wait_for("request in flight", (tmp_path / "finish.seen").exists)
        server.api.update_endpoint(EndpointName="draining", EndpointConfigName="drain-new")
        server.wait_endpoint("draining", "InService")
        assert server.ask("draining") == {"answer": "drain-new"}
        finish.touch()
        assert slow.result() == {"answer": "drain-old"}


def test_update_that_does_not_come_up_rolls_back(start: Start, receiver: Receiver) -> None:  # noqa: F811
    server = start("--events-url", receiver.url)  # noqa: F811
    server.serve("safe", server.config("good"))
    before = server.endpoint("safe")
    server.config("bad", requirements=UNMET_REQUIREMENTS)
    with Asker(server, "safe") as asker:
        server.api.update_endpoint(EndpointName="safe", EndpointConfigName="bad")
        after = server.wait_endpoint("safe", "InService")
    assert asker.errors == []
    assert set(asker.answers) == {"good"}
    assert after["EndpointConfigName"] == "good"
    assert after["LastModifiedTime"] > before["LastModifiedTime"]
    assert "FailureReason" not in after
    statuses = ["CREATING", "IN_SERVICE", "UPDATING", "ROLLING_BACK", "IN_SERVICE"]
    wait_for("events", lambda: len(receiver.of("Endpoint", "safe")) == len(statuses))
    assert [detail["EndpointStatus"] for detail in receiver.of("Endpoint", "safe")] == statuses
    # A rollback leaves room for the next try.
    server.config("better")
    server.api.update_endpoint(EndpointName="safe", EndpointConfigName="better")
    wait_for("new model", lambda: server.endpoint("safe")["EndpointConfigName"] == "better")
    assert server.ask("safe") == {"answer": "better"}


def on_two_instances(server: LocalSageMaker, name: str) -> None:  # noqa: F811
    """A model and an endpoint config of one name, on two instances."""
    server.model(name)
    variants = [variant(name, None, InitialInstanceCount=2)]
    server.api.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)


def in_steps(kind: str, wait: int, last_wait: int, *alarms: str) -> dict[str, Any]:
    """A DeploymentConfig that moves half of the traffic, then the rest."""
    size = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}[kind]
    routing = {"Type": kind, "WaitIntervalInSeconds": wait, size: {"Type": "CAPACITY_PERCENT", "Value": 50}}
    policy = {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": last_wait}
    rollback = {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in alarms]}} if alarms else {}
    return {"BlueGreenUpdatePolicy": policy, **rollback}


def set_alarm(server: LocalSageMaker, name: str, state: str) -> None:  # noqa: F811
    cloudwatch = server._client("cloudwatch", server._endpoint)
    cloudwatch.put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        MetricName="Invocation5XXErrors",
        Statistic="Average",
        Period=60,
        EvaluationPeriods=1,
        Threshold=0,
        ComparisonOperator="GreaterThanThreshold",
    )
    cloudwatch.set_alarm_state(AlarmName=name, StateValue=state, StateReason="a test")


def is_baking(server: LocalSageMaker, name: str) -> bool:  # noqa: F811
    summary = server.endpoint(name).get("PendingDeploymentSummary")
    return bool(summary) and summary["ProductionVariants"][0]["VariantStatus"][0]["Status"] == "Baking"


@pytest.mark.parametrize("kind", ["CANARY", "LINEAR"])
def test_deployment_in_steps_serves_both_models_and_then_the_new_one(server: LocalSageMaker, kind: str) -> None:  # noqa: F811
    name = f"steps-{kind.lower()}"
    on_two_instances(server, f"{name}-old")
    on_two_instances(server, f"{name}-new")
    server.serve(name, f"{name}-old")
    set_alarm(server, f"{name}/5xx", "OK")
    deployment = in_steps(kind, 2, 0, f"{name}/5xx")
    with Asker(server, name) as asker:
        server.api.update_endpoint(EndpointName=name, EndpointConfigName=f"{name}-new", DeploymentConfig=deployment)
        wait_for("the first step", lambda: is_baking(server, name))
        wait_for("an answer of the new model", lambda: f"{name}-new" in asker.answers)
        first = asker.answers.index(f"{name}-new")
        wait_for("an answer of the old model after it", lambda: f"{name}-old" in asker.answers[first:])
        after = server.wait_endpoint(name, "InService")
        count = len(asker.answers)
        wait_for("more answers", lambda: len(asker.answers) > count + 10)
    assert asker.errors == []
    assert set(asker.answers[count + 1 :]) == {f"{name}-new"}
    assert after["EndpointConfigName"] == f"{name}-new"
    assert after["LastDeploymentConfig"] == deployment


@pytest.mark.parametrize(("wait", "last_wait"), [(600, 0), (0, 600)], ids=["canary", "after-the-last-step"])
def test_alarm_during_a_deployment_rolls_it_back(start: Start, receiver: Receiver, wait: int, last_wait: int) -> None:  # noqa: F811
    server = start("--events-url", receiver.url)  # noqa: F811
    on_two_instances(server, "old")
    on_two_instances(server, "new")
    server.serve("watched", "old")
    alarm = f"watched/5xx-{wait}"
    set_alarm(server, alarm, "OK")
    with Asker(server, "watched") as asker:
        server.api.update_endpoint(
            EndpointName="watched",
            EndpointConfigName="new",
            DeploymentConfig=in_steps("CANARY", wait, last_wait, alarm),
        )
        wait_for("an answer of the new model", lambda: "new" in asker.answers)
        assert server.endpoint("watched")["EndpointStatus"] == "Updating"
        set_alarm(server, alarm, "ALARM")
        after = server.wait_endpoint("watched", "InService")
        count = len(asker.answers)
        wait_for("more answers", lambda: len(asker.answers) > count + 10)
    assert asker.errors == []
    assert set(asker.answers[count + 1 :]) == {"old"}
    assert after["EndpointConfigName"] == "old"
    statuses = ["CREATING", "IN_SERVICE", "UPDATING", "ROLLING_BACK", "IN_SERVICE"]
    wait_for("events", lambda: len(receiver.of("Endpoint", "watched")) == len(statuses))
    assert [detail["EndpointStatus"] for detail in receiver.of("Endpoint", "watched")] == statuses
    wait_for("the new server gone", lambda: len([p for p in server.processes() if "/servers/watched." in p]) == 3)


def test_deleted_endpoint_is_gone_with_its_server(start: Start, receiver: Receiver) -> None:  # noqa: F811
    server = start("--events-url", receiver.url)  # noqa: F811
    server.serve("brief", server.config("brief"))
    server.api.delete_endpoint(EndpointName="brief")
    wait_for("gone", lambda: not server.api.list_endpoints()["Endpoints"])
    assert refusal(server.api.describe_endpoint, EndpointName="brief")[0] == "ValidationException"
    assert refusal(server.runtime.invoke_endpoint, EndpointName="brief", Body=b"{}")[0] == "ValidationError"
    wait_for("no process", lambda: not server.processes())
    wait_for("events", lambda: len(receiver.of("Endpoint", "brief")) == 3)
    assert [detail["EndpointStatus"] for detail in receiver.of("Endpoint", "brief")] == [
        "CREATING",
        "IN_SERVICE",
        "DELETING",
    ]
    server.serve("brief", "brief")
    assert server.ask("brief") == {"answer": "brief"}


def test_events_of_models_configs_and_endpoints_have_the_documented_shape(
    start: Start,  # noqa: F811
    receiver: Receiver,  # noqa: F811
) -> None:
    server = start("--events-url", receiver.url)  # noqa: F811
    server.config("shape", concurrency=None)
    tags = [{"Key": "Model", "Value": "default"}]
    server.api.create_endpoint(EndpointName="shape", EndpointConfigName="shape", Tags=tags)
    endpoint = server.wait_endpoint("shape", "InService")
    wait_for("events", lambda: len(receiver.received) == 4)
    assert [event["detail-type"] for event in receiver.received] == [
        "SageMaker Model State Change",
        "SageMaker Endpoint Config State Change",
        "SageMaker Endpoint State Change",
        "SageMaker Endpoint State Change",
    ]
    assert receiver.of("Model", "shape")[0]["PrimaryContainer"]["Image"] == IMAGE
    last = receiver.received[-1]
    assert last["resources"] == [endpoint["EndpointArn"]]
    time.strptime(last["time"], "%Y-%m-%dT%H:%M:%SZ")
    assert last["detail"] == {
        "EndpointName": "shape",
        "EndpointArn": endpoint["EndpointArn"],
        "EndpointConfigName": "shape",
        "ProductionVariants": [{"VariantName": "AllTraffic", "DesiredWeight": 1.0, "DesiredInstanceCount": 1}],
        "EndpointStatus": "IN_SERVICE",
        "CreationTime": round(endpoint["CreationTime"].timestamp() * 1000),
        "LastModifiedTime": round(endpoint["LastModifiedTime"].timestamp() * 1000),
        "Tags": {"Model": "default"},
    }


@pytest.mark.parametrize(
    ("question", "text"), [('{"fail": true}', "bad input"), ('{"nan": true}', "JSON compliant"), ("{", "Expecting")]
)
def test_error_in_user_code_is_a_model_error_400(server: LocalSageMaker, question: str, text: str) -> None:  # noqa: F811
    if not server.api.list_endpoints(NameContains="errors")["Endpoints"]:
        server.serve("errors", server.config("errors"))
    with pytest.raises(server.runtime.exceptions.ModelError) as caught:
        server.runtime.invoke_endpoint(EndpointName="errors", ContentType="application/json", Body=question)
    answer = caught.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert answer["OriginalStatusCode"] == 400
    problem = json.loads(answer["OriginalMessage"])
    assert (problem["code"], problem["type"]) == (400, "InternalServerException")
    assert text in problem["message"]
    assert answer["Error"]["Message"].startswith("Received client error (400) from primary with message")


def test_worker_that_dies_answers_500_and_is_started_again(server: LocalSageMaker) -> None:  # noqa: F811
    server.serve("mortal", server.config("mortal"))
    with pytest.raises(server.runtime.exceptions.ModelError) as caught:
        server.ask("mortal", exit=True)
    assert caught.value.response["OriginalStatusCode"] == 500
    assert json.loads(caught.value.response["OriginalMessage"]) == {
        "code": 500,
        "type": "InternalServerException",
        "message": "Worker died.",
    }
    assert server.ask("mortal") == {"answer": "mortal"}


@pytest.mark.parametrize(
    "inference", [BROKEN_INFERENCE, "def model_fn(model_dir):\n    raise RuntimeError('cannot load')\n"]
)
def test_model_that_cannot_be_loaded_is_in_service_and_answers_400(
    server: LocalSageMaker,  # noqa: F811
    inference: str,
) -> None:
    """As with the real model server, whose /ping answers 200 whatever becomes of the model."""
    name = f"unloadable-{len(inference)}"
    server.serve(name, server.config(name, inference))
    for _ in range(2):
        with pytest.raises(server.runtime.exceptions.ModelError) as caught:
            server.ask(name)
        assert caught.value.response["OriginalStatusCode"] == 400
        assert json.loads(caught.value.response["OriginalMessage"])["message"] == "cannot load"
    log = server.state / f"logs/endpoint-{name}.log"
    # The answer to a request may be here before the line of the log that was written first.
    wait_for("the third reason", lambda: log.read_text().count("RuntimeError: cannot load") >= 3)
    assert log.read_text().count("RuntimeError: cannot load") == 3
    assert server.endpoint(name)["EndpointStatus"] == "InService"


def test_model_whose_worker_dies_at_every_load_is_in_service_and_never_answers(start: Start) -> None:  # noqa: F811
    server = start("--invoke-seconds", "0.5")  # noqa: F811
    server.serve("doomed", server.config("doomed", "import os\nprint('dies', flush=True)\nos._exit(3)\n"))
    for _ in range(2):
        with pytest.raises(server.runtime.exceptions.ModelError) as caught:
            server.ask("doomed")
        assert caught.value.response["OriginalStatusCode"] == 0
        assert "timed out" in caught.value.response["OriginalMessage"]
    log = server.state / "logs/endpoint-doomed.log"
    wait_for("the next worker", lambda: log.read_text().count("dies") > 1)
    assert "Worker died. Retry worker in 1 seconds." in log.read_text()
    assert server.endpoint("doomed")["EndpointStatus"] == "InService"


def test_requests_wait_for_a_model_that_is_being_loaded(server: LocalSageMaker, tmp_path: Path) -> None:  # noqa: F811
    loading, gate = tmp_path / "loading", tmp_path / "go"
    wait = f"open({str(loading)!r}, 'w').close()\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    server.serve("cold", server.config("cold", INFERENCE + wait))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, "cold")
        wait_for("the load has begun", loading.exists)
        assert not asked.done()
        gate.touch()
        assert asked.result() == {"answer": "cold"}


def test_worker_that_loads_for_too_long_is_ended_and_started_again(
    server: LocalSageMaker,  # noqa: F811
    tmp_path: Path,
) -> None:
    """By default that is an hour: MMS reads SAGEMAKER_MODEL_SERVER_TIMEOUT, 60, as minutes."""
    gate = tmp_path / "go"
    hang = f"if not os.path.exists({str(gate)!r}):\n    open({str(gate)!r}, 'w').close()\n    time.sleep(600)\n"
    server.model("late", INFERENCE + hang, Environment={"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "1"})
    server.api.create_endpoint_config(EndpointConfigName="late", ProductionVariants=[variant("late")])
    server.serve("late", "late")
    assert server.ask("late") == {"answer": "late"}
    assert "Backend worker did not respond in given time" in (server.state / "logs/endpoint-late.log").read_text()


def test_serverless_concurrency_is_limited(server: LocalSageMaker, tmp_path: Path) -> None:  # noqa: F811
    server.serve("narrow", server.config("narrow", concurrency=1))
    finish = tmp_path / "finish"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.ask, "narrow", until=str(finish))
        wait_for("request in flight", (tmp_path / "finish.seen").exists)
        assert refusal(server.ask, name="narrow")[0] == "ThrottlingException"
        finish.touch()
        assert slow.result() == {"answer": "narrow"}
    assert server.ask("narrow") == {"answer": "narrow"}


def test_transform_fn_content_types_and_context(server: LocalSageMaker) -> None:  # noqa: F811
    inference = """
def model_fn(model_dir, context):
    return context.system_properties["model_dir"] == model_dir
def transform_fn(model, data, content_type, accept):
    return repr([model, data, content_type, accept])
"""
    server.serve("transform", server.config("transform", inference))

    def ask(**headers: str) -> tuple[str, str]:
        answer = server.runtime.invoke_endpoint(EndpointName="transform", Body=b"a,b", **headers)
        return answer["Body"].read().decode(), answer["ContentType"]

    assert ask(ContentType="text/csv", Accept="text/csv") == ("[True, 'a,b', 'text/csv', 'text/csv']", "text/csv")
    octets = "application/octet-stream"
    assert ask(ContentType=octets) == (f"[True, b'a,b', '{octets}', 'application/json']", "application/json")


def test_function_with_the_wrong_number_of_arguments_is_not_loaded(server: LocalSageMaker) -> None:  # noqa: F811
    server.serve("arity", server.config("arity", "def model_fn():\n    return 1\n"))
    log = server.state / "logs/endpoint-arity.log"
    wait_for("the reason", lambda: "takes 1 or 2 arguments but has 0" in log.read_text())


def test_unmet_requirements_of_the_inference_code_do_not_come_up(server: LocalSageMaker) -> None:  # noqa: F811
    server.config("wanting")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        text = b"boto3==0.0.1\n"
        info = tarfile.TarInfo("code/requirements.txt")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    server.put("models/wanting.tar.gz", buffer.getvalue())
    server.api.create_endpoint(EndpointName="wanting", EndpointConfigName="wanting")
    server.wait_endpoint("wanting", "Failed")
    log = (server.state / "logs/endpoint-wanting.log").read_text()
    assert "No matching distribution found for boto3==0.0.1" in log


def test_environment_of_the_model_reaches_its_code(server: LocalSageMaker) -> None:  # noqa: F811
    inference = "import os\ndef model_fn(d): return os.environ['COLOUR']\ndef predict_fn(data, model): return model\n"
    server.model("coloured", inference, Environment={"COLOUR": "red"})
    server.api.create_endpoint_config(EndpointConfigName="coloured", ProductionVariants=[variant("coloured")])
    server.serve("coloured", "coloured")
    assert server.ask("coloured") == "red"


def test_output_of_the_server_reaches_cloudwatch_logs(server: LocalSageMaker) -> None:  # noqa: F811
    server.serve("talking", server.config("talking", "print('hello from the server')\n" + INFERENCE))

    def lines() -> list[str]:
        group = "/aws/sagemaker/Endpoints/talking"
        try:
            events = server.logs.filter_log_events(logGroupName=group, logStreamNamePrefix="AllTraffic/")
        except server.logs.exceptions.ResourceNotFoundException:
            return []
        return [event["message"] for event in events["events"]]

    wait_for("log events", lambda: "hello from the server" in lines())
