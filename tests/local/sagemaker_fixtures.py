"""The real local SageMaker as a process, an S3 and CloudWatch Logs for it (moto's server), and its events."""

import contextlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from local.sagemaker.processes import PORTABLE_GUARD
from local.sagemaker.quotas import SERVERLESS_CONCURRENCY

ACCOUNT = "123456789012"
REGION = "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/sagemaker"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/image:1"
MANY_ENDPOINTS = ("--quota", f"{SERVERLESS_CONCURRENCY}=1000")
USUAL_MODES: Mapping[str, int] = MappingProxyType({})  # 0644
MARK = "LOCAL_SAGEMAKER_TEST"

# A model server that answers what it was made with, and misbehaves on demand.
INFERENCE = """
import json, os, time

def model_fn(model_dir):
    with open(os.path.join(model_dir, "answer.txt")) as file:
        return file.read()

def predict_fn(data, model):
    if data.get("fail"):
        raise ValueError("bad input")
    if data.get("nan"):
        return float("nan")
    if data.get("exit"):
        os._exit(3)
    if data.get("until"):
        open(data["until"] + ".seen", "w").close()
        while not os.path.exists(data["until"]):
            time.sleep(0.01)
    return {"answer": model}
"""
# A model that cannot be loaded, and one whose server does not come up: requirements are installed before it starts.
BROKEN_INFERENCE = "raise RuntimeError('cannot load')\n"
UNMET_REQUIREMENTS = "surely-not-installed==1\n"


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The condition's first true value; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {what}")


def refusal(call: Callable[..., Any], **arguments: Any) -> tuple[str, str]:
    """(code, message) of the refused call."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def archive(modes: Mapping[str, int] = USUAL_MODES, **files: str) -> bytes:
    """A gzip tar; ``code__inference_py`` names ``code/inference.py``. `modes` are those of other files than 0644."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_py", ".py").replace("_txt", ".txt"))
            info.size = len(text.encode())
            info.mode = modes.get(info.name, info.mode)
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def interrupt(url: str, job: str, **how: Any) -> int:
    """Have a local SageMaker take a spot job's instances away; the HTTP status. how: `hears` and `seconds`."""
    body = json.dumps({"job": job, **how}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(f"{url}/_local/interrupt", body), timeout=20) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


class Receiver:
    """Takes EventBridge envelopes over HTTP; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.received: list[dict[str, Any]] = []
        self.attempts = 0
        self.on_receive: Callable[[dict[str, Any]], None] = lambda envelope: None
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                envelope = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.attempts += 1
                if receiver.status == 200:
                    receiver.on_receive(envelope)
                    receiver.received.append(envelope)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/events"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Details of the events of one resource, as they came."""
        return [
            event["detail"]
            for event in self.received
            if event["detail-type"] == f"SageMaker {kind} State Change"
            and event["resources"][0].endswith(f"/{name.lower()}")
        ]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class LocalSageMaker:
    """The server as a child process, and clients for it."""

    def __init__(self, state: Path, endpoint: str, bucket: str, *options: str) -> None:
        self.state = state
        self.bucket = bucket
        self.mark = uuid.uuid4().hex
        self.log = state.with_suffix(".log")
        self._options = [
            "--state",
            str(state),
            "--aws-endpoint",
            endpoint,
            "--pass-env",
            MARK,
            "--image",
            IMAGE,
            *options,
        ]
        self._endpoint = endpoint
        self.s3 = self._client("s3", endpoint)
        self.logs = self._client("logs", endpoint)
        self.start()

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.state.parent),
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": "test",
            "HF_HOME": "/nowhere",
            MARK: self.mark,
            PORTABLE_GUARD: os.environ.get(PORTABLE_GUARD, ""),
        }
        (self.state / "server.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local.sagemaker", *self._options], env=environment, stderr=log
            )
        try:
            wait_for("server address", self._ready)
        except BaseException:
            self.process.kill()
            raise
        url = json.loads((self.state / "server.json").read_text())["url"]
        self.url = url
        self.api = self._client("sagemaker", url)
        self.runtime = self._client("sagemaker-runtime", url)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return (self.state / "server.json").exists()

    @staticmethod
    def _client(service: str, url: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=ACCOUNT,
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
        )

    def processes(self) -> list[str]:
        """Command lines of everything that this server started and that lives."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != self.process.pid and process.environ().get(MARK) == self.mark:
                    found.append(" ".join(process.cmdline()))
        return found

    def is_alone(self) -> bool:
        return not self.processes()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)

    # ---- Things to work with -----------------------------------------------------------------------------

    def put(self, key: str, body: bytes | str) -> str:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        return f"s3://{self.bucket}/{key}"

    def get(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def job_request(self, name: str, program: str = "", **changes: Any) -> dict[str, Any]:
        """CreateTrainingJob of a program given as text; `changes` replace members."""
        files = changes.pop("files", {})
        source = self.put(f"code/{name}.tar.gz", archive(train_py=program, **files))
        data = self.put(f"data/{name}/data.csv", "text,label\nhello,a\n")
        parameters = changes.pop("parameters", {})
        request = {
            "TrainingJobName": name,
            "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
            "RoleArn": ROLE,
            "InputDataConfig": [
                {
                    "ChannelName": "train",
                    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": data}},
                    "ContentType": "text/csv",
                }
            ],
            "OutputDataConfig": {"S3OutputPath": f"s3://{self.bucket}/models/"},
            "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
            "StoppingCondition": {"MaxRuntimeInSeconds": 300},
            "HyperParameters": {
                "sagemaker_program": "train.py",
                "sagemaker_submit_directory": source,
                **parameters,
            },
            "Tags": [{"Key": "Project", "Value": "test"}],
        }
        return {**request, **changes}

    def job(self, name: str) -> dict[str, Any]:
        description: dict[str, Any] = self.api.describe_training_job(TrainingJobName=name)
        return description

    def wait_job(self, name: str, status: str, seconds: float = 20.0) -> dict[str, Any]:
        """The job's description once it has the status; another final status fails the test."""

        def reached() -> dict[str, Any] | None:
            job = self.job(name)
            now = job["TrainingJobStatus"]
            assert now == status or now in ("InProgress", "Stopping"), job
            return job if now == status else None

        result: dict[str, Any] = wait_for(f"{name} is {status}", reached, seconds)
        return result

    def train(self, name: str, program: str, status: str = "Completed", **changes: Any) -> dict[str, Any]:
        self.api.create_training_job(**self.job_request(name, program, **changes))
        return self.wait_job(name, status)

    def model(
        self,
        name: str,
        inference: str = INFERENCE,
        requirements: str = "",
        modes: Mapping[str, int] = USUAL_MODES,
        **container: Any,
    ) -> str:
        files = {"answer_txt": name, "code__inference_py": inference, "code__requirements_txt": requirements}
        url = self.put(f"models/{name}.tar.gz", archive(modes, **files))
        self.api.create_model(
            ModelName=name,
            PrimaryContainer={"Image": IMAGE, "ModelDataUrl": url} | container,
            ExecutionRoleArn=ROLE,
        )
        return name

    def config(self, name: str, inference: str = INFERENCE, concurrency: int | None = 5, requirements: str = "") -> str:
        """A model and an endpoint config of one name; serverless, or on an instance with None."""
        self.model(name, inference, requirements)
        self.api.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant(name, concurrency)])
        return name

    def endpoint(self, name: str) -> dict[str, Any]:
        description: dict[str, Any] = self.api.describe_endpoint(EndpointName=name)
        return description

    def wait_endpoint(self, name: str, status: str, seconds: float = 20.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            endpoint = self.endpoint(name)
            return endpoint if endpoint["EndpointStatus"] == status else None

        result: dict[str, Any] = wait_for(f"{name} is {status}", reached, seconds)
        return result

    def serve(self, name: str, config: str) -> None:
        self.api.create_endpoint(EndpointName=name, EndpointConfigName=config)
        self.wait_endpoint(name, "InService")

    def ask(self, name: str, **question: Any) -> Any:
        answer = self.runtime.invoke_endpoint(
            EndpointName=name, ContentType="application/json", Body=json.dumps(question)
        )
        return json.loads(answer["Body"].read())


def variant(model: str, concurrency: int | None = 5, **changes: Any) -> dict[str, Any]:
    kind: dict[str, Any] = {"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": concurrency}}
    if concurrency is None:
        kind = {"InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    return {"VariantName": "AllTraffic", "ModelName": model, **kind, **changes}


@pytest.fixture(scope="session")
def aws() -> Iterator[str]:
    """URL of an S3 and CloudWatch Logs."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


Start = Callable[..., LocalSageMaker]


def _starter(aws: str, folder: Path) -> Iterator[Start]:
    started: list[LocalSageMaker] = []

    def start(*options: str) -> LocalSageMaker:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        LocalSageMaker._client("s3", aws).create_bucket(Bucket=bucket)
        server = LocalSageMaker(folder / bucket, aws, bucket, *options)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            assert server.stop() == 0
        wait_for("no process left", server.is_alone)


@pytest.fixture
def start(aws: str, tmp_path: Path) -> Iterator[Start]:
    """Starts servers with options; at the end they stop with exit code 0 and leave no process."""
    yield from _starter(aws, tmp_path)


@pytest.fixture(scope="module")
def server(aws: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    """One server for the tests of a module; they share it by using names of their own."""
    for start in _starter(aws, tmp_path_factory.mktemp("sagemaker")):
        yield start(*MANY_ENDPOINTS, "--parallel", "4", "--stop-grace-seconds", "1", "--health-check-seconds", "10")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()
