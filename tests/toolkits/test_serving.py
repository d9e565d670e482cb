"""The trained model under AWS's own model server, and on the local SageMaker: the same answers."""

from __future__ import annotations

import http.client
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from account import Account
from containers import Answer, ModelServer, Trained, fetch, serving

from sagemaker_fixtures import archive, wait_for
from world import BUCKET, ENDPOINT, event

TEXT = b'{"inputs": "My parcel has not arrived"}'
JSON = {"Content-Type": "application/json"}
REQUESTS: dict[str, tuple[bytes, dict[str, str]]] = {
    "one text": (TEXT, JSON),
    "a list": ('{"inputs": ["Where is it?", "é\'<&>=", ""]}'.encode(), JSON),
    "top_k": (b'{"inputs": "Where is it?", "parameters": {"top_k": 2}}', JSON),
    "top_k, many": (b'{"inputs": ["a", "b"], "parameters": {"top_k": 99}}', JSON),
    "no texts": (b'{"inputs": []}', JSON),
    "Accept */*": (TEXT, JSON | {"Accept": "*/*"}),
    "Accept JSON": (TEXT, JSON | {"Accept": "application/json"}),
    "Accept CSV": (TEXT, JSON | {"Accept": "text/csv"}),
    "Accept CSV, top_k": (b'{"inputs": "a", "parameters": {"top_k": 2}}', JSON | {"Accept": "text/csv"}),
    "Accept a list": (TEXT, JSON | {"Accept": "application/json, text/plain, */*"}),
    "Accept HTML": (TEXT, JSON | {"Accept": "text/html"}),
    "CSV": (b"inputs\nWhere is it?\n", {"Content-Type": "text/csv"}),
    "CSV without inputs": (b"text\nWhere is it?\n", {"Content-Type": "text/csv"}),
    "CSV, empty": (b"", {"Content-Type": "text/csv"}),
    "charset": (TEXT, {"Content-Type": "application/json; charset=utf-8"}),
    "text": (b"Where is it?", {"Content-Type": "text/plain"}),
    "form": (TEXT, {"Content-Type": "application/x-www-form-urlencoded"}),
    "no content type": (TEXT, {}),
    "nothing": (b"", JSON),
    "not JSON": (b"{'inputs': 'x'}", JSON),
    "not UTF-8": (b'{"inputs": "\xff"}', JSON),
    "a JSON list": (b'["x"]', JSON),
    "no inputs": (b'{"text": "x"}', JSON),
    "a number": (b'{"inputs": 3}', JSON),
    "a number in the list": (b'{"inputs": ["x", 3]}', JSON),
    "NaN": (b'{"inputs": "x", "parameters": {"top_k": NaN}}', JSON),
    "top_k 0": (b'{"inputs": "x", "parameters": {"top_k": 0}}', JSON),
    "another parameter": (b'{"inputs": "x", "parameters": {"truncation": true}}', JSON),
}
ONE_WORKER = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
# The toolkit's own functions around a model_fn, and what a model can do wrong.
ODD = """
import os, sys

def model_fn(model_dir, context):
    def model(inputs, **parameters):
        if inputs == "nan":
            return float("nan")
        if inputs == "object":
            return object()
        if inputs == "die":
            os._exit(3)
        if inputs == "exit":
            sys.exit("bye")
        return {"inputs": inputs, "parameters": parameters, "model_dir": os.path.basename(model_dir)}
    return model
"""
ODD_REQUESTS: dict[str, tuple[bytes, dict[str, str]]] = {
    "default functions": (b'{"inputs": "x", "parameters": {"a": 1}}', JSON),
    "no inputs": (b'{"text": "x"}', JSON),
    "null parameters": (b'{"inputs": "x", "parameters": null}', JSON),
    "a JSON list": (b'["x"]', JSON),
    "CSV": (b"inputs,b\nx,1\ny,2\n", {"Content-Type": "text/csv"}),
    "CSV of a question": (b"question,context\nx,1\n", {"Content-Type": "text/csv"}),
    "NaN": (b'{"inputs": "nan"}', JSON),
    "an object": (b'{"inputs": "object"}', JSON),
    "a worker that dies": (b'{"inputs": "die"}', JSON),
    "afterwards": (b'{"inputs": "x"}', JSON),
    "a worker that exits": (b'{"inputs": "exit"}', JSON),
    "and again": (b'{"inputs": "x"}', JSON),
}


def ask(url: str, body: bytes, headers: dict[str, str]) -> Answer:
    """POST /invocations with these headers and no others of a client."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/invocations", skip_accept_encoding=True)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        connection.putheader(name, value)
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = Answer(answer.status, answer.headers["Content-Type"], answer.read())
    connection.close()
    return found


def server_of(account: Account, endpoint: str) -> str:
    """The address of the model server behind an endpoint of the local SageMaker."""
    (port,) = (account.sagemaker.state / "servers").glob(f"{endpoint}.*/port")
    return f"http://127.0.0.1:{port.read_text()}"


@pytest.fixture(scope="module")
def deployed(account: Account, job: dict[str, Any]) -> dict[str, Any]:
    """The model that the evaluator approves and the deployment orchestrator deploys, as DescribeModel has it."""
    ended = event("sagemaker_training_job_completed")
    ended["detail"] |= {"TrainingJobName": job["TrainingJobName"]}
    account.call("model_evaluator", ended)
    key = f"models/approved/default/{job['TrainingJobName']}/model.tar.gz"
    approved = event("s3_object_created_approved")
    approved["detail"]["object"] |= {"key": key}
    account.call("deployment_orchestrator", approved)
    account.sagemaker.wait_endpoint(ENDPOINT, "InService")
    (summary,) = account.sagemaker.api.list_models()["Models"]
    model: dict[str, Any] = account.sagemaker.api.describe_model(ModelName=summary["ModelName"])
    return model


@pytest.fixture(scope="module")
def real(
    account: Account,
    deployed: dict[str, Any],
    trained: Trained,
    container: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ModelServer]:
    """AWS's model server with the model that AWS's training toolkit made, set up as the deployer asks."""
    folder = tmp_path_factory.mktemp("real")
    packed = folder / "model.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for path in (trained.root / "model").iterdir():
            tar.add(path, arcname=path.name)
    settings = deployed["PrimaryContainer"]["Environment"]
    with serving(folder, packed, settings, container, account.aws) as server:
        yield server


@pytest.mark.parametrize("request_name", REQUESTS)
def test_the_same_answer(account: Account, real: ModelServer, request_name: str) -> None:
    body, headers = REQUESTS[request_name]
    expected = ask(real.url, body, headers)
    assert ask(server_of(account, ENDPOINT), body, headers) == expected


def test_answers_reach_who_invokes_the_endpoint(account: Account, real: ModelServer) -> None:
    answer = account.sagemaker.runtime.invoke_endpoint(EndpointName=ENDPOINT, ContentType="application/json", Body=TEXT)
    expected = ask(real.url, TEXT, JSON)
    assert (answer["ContentType"], answer["Body"].read()) == (expected.content_type, expected.body)
    with pytest.raises(account.sagemaker.runtime.exceptions.ModelError) as caught:
        account.sagemaker.runtime.invoke_endpoint(EndpointName=ENDPOINT, ContentType="text/plain", Body=TEXT)
    refused = ask(real.url, TEXT, {"Content-Type": "text/plain"})
    assert caught.value.response["OriginalStatusCode"] == refused.status
    assert caught.value.response["OriginalMessage"] == refused.body.decode()


def deploy(account: Account, name: str, packed: bytes) -> str:
    """An endpoint of the local SageMaker with this archive; returns its model server's address."""
    account.put(f"models/{name}.tar.gz", packed)
    api = account.sagemaker.api
    image = {"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/image:1"}
    image["ModelDataUrl"] = f"s3://{BUCKET}/models/{name}.tar.gz"
    api.create_model(ModelName=name, PrimaryContainer=image, ExecutionRoleArn="arn:aws:iam::123456789012:role/model")
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
    variants = [{"VariantName": "AllTraffic", "ModelName": name, "ServerlessConfig": serverless}]
    api.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    api.create_endpoint(EndpointName=name, EndpointConfigName=name)
    account.sagemaker.wait_endpoint(name, "InService")
    return server_of(account, name)


def test_the_toolkits_own_functions_and_a_models_failures(
    account: Account, container: Path, trained: Trained, tmp_path: Path
) -> None:
    packed = archive(code__inference_py=ODD)
    local = deploy(account, "odd", packed)
    (tmp_path / "model.tar.gz").write_bytes(packed)
    with serving(tmp_path, tmp_path / "model.tar.gz", ONE_WORKER, container, account.aws) as server:
        for name, (body, headers) in ODD_REQUESTS.items():
            assert (name, ask(local, body, headers)) == (name, ask(server.url, body, headers))


def test_a_model_that_cannot_be_loaded_is_healthy_and_every_request_tries_again(
    account: Account, container: Path, trained: Trained, tmp_path: Path
) -> None:
    packed = archive(code__inference_py="def model_fn(model_dir):\n    raise PermissionError('no weights for you')\n")
    local = deploy(account, "unloadable", packed)
    (tmp_path / "model.tar.gz").write_bytes(packed)
    with serving(tmp_path, tmp_path / "model.tar.gz", ONE_WORKER, container, account.aws) as server:
        for _ in range(2):
            expected = ask(server.url, TEXT, JSON)
            assert b"no weights for you" in expected.body
            assert ask(local, TEXT, JSON) == expected
            assert [fetch(f"{url}/ping").status for url in (local, server.url)] == [200, 200]


def test_a_model_whose_worker_dies_at_every_load_is_healthy_too(
    account: Account, container: Path, trained: Trained, tmp_path: Path
) -> None:
    packed = archive(code__inference_py="import os\n\ndef model_fn(model_dir):\n    os._exit(3)\n")
    local = deploy(account, "doomed", packed)
    (tmp_path / "model.tar.gz").write_bytes(packed)
    with serving(tmp_path, tmp_path / "model.tar.gz", ONE_WORKER, container, account.aws) as server:
        log = tmp_path / "serve.log"
        wait_for("the load has failed", lambda: "Load model failed: model, error: Worker died." in log.read_text(), 120)
        assert [fetch(f"{url}/ping").status for url in (local, server.url)] == [200, 200]
        assert "Retry worker" in log.read_text()
