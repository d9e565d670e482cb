"""The local services answer programs of this machine and no web page, on every path; nothing is created."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from launcher import LocalAws, local_aws
from sagemaker_fixtures import LocalSageMaker, aws, server, start  # noqa: F401  fixtures

# What a browser sends for a page that somebody visits; the last is a page whose name was rebound to loopback.
FROM_A_PAGE: dict[str, dict[str, str]] = {
    "a page's script": {"Origin": "https://page.example"},
    "a sandboxed page": {"Origin": "null"},
    "a page of another local port": {"Origin": "http://localhost:3000"},
    "an image on a page": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    "an old browser": {"User-Agent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"},
    "a rebound name": {"Host": "page.example:{port}"},
    "a rebound name that looks local": {"Host": "localhost.page.example:{port}"},
    "another port": {"Host": "localhost:1"},
    "no port": {"Host": "localhost"},
}
FUNCTION = {"FunctionName": "theirs", "Runtime": "python3.13", "Role": "arn:aws:iam::123456789012:role/x"}
AWS_REQUESTS = [
    ("POST", "/2015-03-31/functions", json.dumps(FUNCTION | {"Handler": "x.y", "Code": {"ZipFile": ""}})),
    ("GET", "/?Action=CreateQueue&QueueName=theirs&Version=2012-11-05", ""),
    ("POST", "/", "Action=CreateTopic&Name=theirs&Version=2010-03-31"),
    ("PUT", "/theirs", ""),
    ("POST", "/_local/events", json.dumps({"source": "aws.sagemaker"})),
    ("GET", "/_ministack/health", ""),
    ("OPTIONS", "/2015-03-31/functions", ""),
    ("DELETE", "/kept", ""),
]
SAGEMAKER_REQUESTS = [
    ("POST", "/", "{}"),
    ("POST", "/endpoints/some/invocations", '{"inputs": "x"}'),
    ("POST", "/_local/interrupt", '{"job": "some"}'),
    ("GET", "/health", ""),
    ("OPTIONS", "/", ""),
    ("PUT", "/anything", ""),
]


def ask(port: int, method: str, path: str, body: str, headers: dict[str, str]) -> int:
    """The status of a request with exactly these headers beside Host, as no SDK would send it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {name: value.format(port=port) for name, value in headers.items()})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with local_aws(tmp_path_factory.mktemp("aws")) as running:
        running.client("s3").create_bucket(Bucket="kept")
        yield running


def made(gateway: LocalAws) -> list[Any]:
    return [
        [function["FunctionName"] for function in gateway.client("lambda").list_functions()["Functions"]],
        gateway.client("sqs").list_queues().get("QueueUrls", []),
        gateway.client("sns").list_topics()["Topics"],
        [bucket["Name"] for bucket in gateway.client("s3").list_buckets()["Buckets"]],
    ]


@pytest.mark.parametrize("page", FROM_A_PAGE)
def test_the_local_aws_refuses_what_a_page_sends_and_makes_nothing(gateway: LocalAws, page: str) -> None:
    port = int(gateway.url.rpartition(":")[2])
    statuses = [ask(port, *request, FROM_A_PAGE[page]) for request in AWS_REQUESTS]
    assert statuses == [403] * len(AWS_REQUESTS)
    assert made(gateway) == [[], [], [], ["kept"]]


@pytest.mark.parametrize("page", FROM_A_PAGE)
def test_the_local_sagemaker_refuses_what_a_page_sends(server: LocalSageMaker, page: str) -> None:  # noqa: F811
    port = int(server.url.rpartition(":")[2])
    statuses = [ask(port, *request, FROM_A_PAGE[page]) for request in SAGEMAKER_REQUESTS]
    assert statuses == [403] * len(SAGEMAKER_REQUESTS)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "kept.localhost", "kept.s3.us-east-1.localhost"])
def test_names_of_the_loopback_address_are_answered(gateway: LocalAws, server: LocalSageMaker, name: str) -> None:  # noqa: F811
    ports = [int(service.url.rpartition(":")[2]) for service in (gateway, server)]
    assert ask(ports[0], "GET", "/_ministack/health", "", {"Host": f"{name}:{{port}}"}) == 200
    assert ask(ports[1], "GET", "/health", "", {"Host": f"{name}:{{port}}"}) == 200


def test_a_websocket_from_a_page_is_refused(gateway: LocalAws) -> None:
    port = int(gateway.url.rpartition(":")[2])
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": "https://page.example"}
    assert ask(port, "GET", "/", "", upgrade | key) == 403


def test_a_client_that_puts_the_bucket_into_the_host_is_answered(gateway: LocalAws) -> None:
    port = gateway.url.rpartition(":")[2]
    client = boto3.client(
        "s3", endpoint_url=f"http://localhost:{port}", region_name="us-east-1",
        aws_access_key_id="123456789012", aws_secret_access_key="test",
    )  # fmt: skip
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["kept"]
