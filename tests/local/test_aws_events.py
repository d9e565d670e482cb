"""EventBridge and asynchronous invocations on the local AWS: what MiniStack alone loses."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from launcher import ACCOUNT, REGION, LocalAws, eventually, function_arn, local_aws, package

FAILING = """
import logging
log = logging.getLogger()
def lambda_handler(event, context):
    log.info("attempt", extra={"attempt_of": context.aws_request_id})
    raise ValueError("no good")
"""
REPORTING = """
import json, os, time, boto3
sqs = boto3.client("sqs")
def lambda_handler(event, context):
    time.sleep(event.get("detail", {}).get("seconds", 0))
    body = json.dumps({"event": event, "request_id": context.aws_request_id, "process": os.getpid()})
    sqs.send_message(QueueUrl=os.environ["QUEUE"], MessageBody=body)
"""
JSON_LOGS = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with local_aws(tmp_path_factory.mktemp("aws")) as running:
        yield running


def put_event(aws: LocalAws, source: str, detail: dict[str, Any]) -> None:
    entry = {"Source": source, "DetailType": "Test", "Detail": json.dumps(detail)}
    assert aws.client("events").put_events(Entries=[entry])["FailedEntryCount"] == 0


def request_ids_of_attempts(aws: LocalAws, name: str) -> list[str]:
    records = [json.loads(line) for line in aws.log_lines(name) if line.startswith("{")]
    return [record["attempt_of"] for record in records if record.get("message") == "attempt"]


def failing_function(aws: LocalAws) -> tuple[str, str]:
    """A function that raises, with a queue as failure destination: its name and the queue's URL."""
    name = aws.function(FAILING, LoggingConfig=JSON_LOGS)
    url, arn = aws.queue()
    aws.client("lambda").put_function_event_invoke_config(
        FunctionName=name, MaximumRetryAttempts=2, DestinationConfig={"OnFailure": {"Destination": arn}}
    )
    return name, url


def assert_documented_record(message: dict[str, Any], name: str, request_id: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(message["Body"])
    assert set(record) == {
        "version",
        "timestamp",
        "requestContext",
        "requestPayload",
        "responseContext",
        "responsePayload",
    }
    assert record["version"] == "1.0"
    assert record["requestContext"] == {
        "requestId": request_id,
        "functionArn": f"{function_arn(name)}:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 3,
    }
    assert record["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    }
    assert record["responsePayload"]["errorType"] == "ValueError"
    assert record["responsePayload"]["errorMessage"] == "no good"
    assert "handler.py" in record["responsePayload"]["stackTrace"][0]
    return record


def test_an_event_for_a_failing_function_is_tried_three_times_then_put_in_its_queue(aws: LocalAws) -> None:
    name, url = failing_function(aws)
    source = f"test.{name}"
    rule_arn = aws.rule({"source": [source]}, function_arn(name))
    put_event(aws, source, {"n": 1})
    [message] = aws.messages(url)
    attempts = request_ids_of_attempts(aws, name)
    assert len(attempts) == 3
    assert len(set(attempts)) == 1
    record = assert_documented_record(message, name, attempts[0])
    assert record["requestPayload"]["detail"] == {"n": 1}
    assert record["requestPayload"]["source"] == source
    assert rule_arn


def test_an_asynchronous_invoke_takes_the_same_way(aws: LocalAws) -> None:
    name, url = failing_function(aws)
    aws.client("lambda").invoke(FunctionName=name, InvocationType="Event", Payload=b'{"n": 2}')
    [message] = aws.messages(url)
    attempts = request_ids_of_attempts(aws, name)
    assert len(attempts) == 3
    assert_documented_record(message, name, attempts[0])


def test_the_functions_errors_are_counted_in_cloudwatch(aws: LocalAws) -> None:
    name, url = failing_function(aws)
    source = f"test.{name}"
    aws.rule({"source": [source]}, function_arn(name))
    put_event(aws, source, {})
    aws.messages(url)
    now = time.time()
    statistics = aws.client("cloudwatch").get_metric_statistics(
        Namespace="AWS/Lambda",
        MetricName="Errors",
        Dimensions=[{"Name": "FunctionName", "Value": name}],
        StartTime=now - 600,
        EndTime=now + 600,
        Period=3600,
        Statistics=["Sum"],
    )
    assert sum(point["Sum"] for point in statistics["Datapoints"]) == 3


def test_a_dead_letter_queue_of_the_function_gets_the_bare_event(aws: LocalAws) -> None:
    url, arn = aws.queue()
    name = aws.function(FAILING, DeadLetterConfig={"TargetArn": arn})
    aws.client("lambda").invoke(FunctionName=name, InvocationType="Event", Payload=b'{"n": 3}')
    [message] = aws.messages(url)
    assert json.loads(message["Body"]) == {"n": 3}
    assert message["MessageAttributes"]["ErrorMessage"]["StringValue"] == "no good"


def test_a_burst_at_the_concurrency_limit_loses_nothing(aws: LocalAws) -> None:
    url, _ = aws.queue()
    name = aws.function(REPORTING, Environment={"Variables": {"QUEUE": url}}, Timeout=30)
    aws.client("lambda").put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=2)
    source = f"test.{name}"
    aws.rule({"source": [source]}, function_arn(name))
    for number in range(60):
        put_event(aws, source, {"n": number, "seconds": 0.01})
    bodies = [json.loads(message["Body"]) for message in aws.messages(url, 60)]
    assert sorted(body["event"]["detail"]["n"] for body in bodies) == list(range(60))
    assert len({body["process"] for body in bodies}) <= 2


def test_a_burst_runs_in_a_bounded_number_of_processes(aws: LocalAws) -> None:
    url, _ = aws.queue()
    name = aws.function(REPORTING, Environment={"Variables": {"QUEUE": url}}, Timeout=30)
    source = f"test.{name}"
    aws.rule({"source": [source]}, function_arn(name))
    for number in range(60):
        put_event(aws, source, {"n": number, "seconds": 0.05})
    bodies = [json.loads(message["Body"]) for message in aws.messages(url, 60)]
    assert sorted(body["event"]["detail"]["n"] for body in bodies) == list(range(60))
    assert len({body["process"] for body in bodies}) <= 8


def test_an_event_without_permission_to_invoke_goes_to_the_targets_dead_letter_queue(aws: LocalAws) -> None:
    reports, _ = aws.queue()
    dead_letters, dead_letters_arn = aws.queue()
    name = aws.function(REPORTING, Environment={"Variables": {"QUEUE": reports}})
    source = f"test.{name}"
    arn = aws.rule({"source": [source]}, function_arn(name), allow=False, DeadLetterConfig={"Arn": dead_letters_arn})
    put_event(aws, source, {"n": 4})
    [message] = aws.messages(dead_letters)
    assert json.loads(message["Body"])["detail"] == {"n": 4}
    attributes = {key: value["StringValue"] for key, value in message["MessageAttributes"].items()}
    assert attributes["RULE_ARN"] == arn
    assert attributes["TARGET_ARN"] == function_arn(name)
    assert attributes["ERROR_CODE"] == "NO_PERMISSIONS"
    assert arn in attributes["ERROR_MESSAGE"]
    assert not log_group_exists(aws, name), "the function ran"


def log_group_exists(aws: LocalAws, name: str) -> bool:
    groups = aws.client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{name}")
    return bool(groups["logGroups"])


def test_a_permission_for_another_rule_does_not_count(aws: LocalAws) -> None:
    dead_letters, dead_letters_arn = aws.queue()
    name = aws.function(FAILING)
    source = f"test.{name}"
    aws.client("lambda").add_permission(
        FunctionName=name,
        StatementId="other",
        Action="lambda:InvokeFunction",
        Principal="events.amazonaws.com",
        SourceArn=f"arn:aws:events:{REGION}:{ACCOUNT}:rule/other",
    )
    aws.rule({"source": [source]}, function_arn(name), allow=False, DeadLetterConfig={"Arn": dead_letters_arn})
    put_event(aws, source, {})
    [message] = aws.messages(dead_letters)
    assert message["MessageAttributes"]["ERROR_CODE"]["StringValue"] == "NO_PERMISSIONS"


def test_an_event_for_a_function_that_is_gone_goes_to_the_targets_dead_letter_queue(aws: LocalAws) -> None:
    dead_letters, dead_letters_arn = aws.queue()
    source = f"test.{uuid.uuid4().hex}"
    aws.rule({"source": [source]}, function_arn("gone"), allow=False, DeadLetterConfig={"Arn": dead_letters_arn})
    put_event(aws, source, {})
    [message] = aws.messages(dead_letters)
    assert message["MessageAttributes"]["ERROR_CODE"]["StringValue"] == "NO_RESOURCE"


def service_event(**changes: Any) -> dict[str, Any]:
    event = {
        "version": "0",
        "id": "844e2571-85d4-695f-b930-0153b71dcb42",
        "detail-type": "SageMaker Training Job State Change",
        "source": "aws.sagemaker",
        "account": ACCOUNT,
        "time": "2026-10-06T12:26:13Z",
        "region": REGION,
        "resources": [f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/one"],
        "detail": {"TrainingJobName": "one", "TrainingJobStatus": "Completed"},
    }
    return {**event, **changes}


def post_event(aws: LocalAws, body: bytes, method: str = "POST") -> dict[str, Any]:
    request = Request(f"{aws.url}/_local/events", data=body, method=method)
    with urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def test_a_services_event_reaches_the_rules_unchanged(aws: LocalAws) -> None:
    reports, _ = aws.queue()
    name = aws.function(REPORTING, Environment={"Variables": {"QUEUE": reports}})
    pattern = {"source": ["aws.sagemaker"], "detail": {"TrainingJobStatus": ["Completed"]}}
    aws.rule(pattern, function_arn(name))
    assert post_event(aws, json.dumps(service_event()).encode()) == {"delivered": True}
    [message] = aws.messages(reports)
    assert json.loads(message["Body"])["event"] == service_event()


def test_put_events_still_refuses_the_sources_of_aws(aws: LocalAws) -> None:
    entry = {"Source": "aws.sagemaker", "DetailType": "Test", "Detail": "{}"}
    answer = aws.client("events").put_events(Entries=[entry])
    assert answer["Entries"][0]["ErrorCode"] == "NotAuthorizedForSourceException"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "lacks id"),
        (b'{"id": "1", "detail-type": "T", "source": "s", "account": "a"}', "lacks time, region, resources, detail"),
    ],
)
def test_an_incomplete_event_is_refused_with_what_is_missing(aws: LocalAws, body: bytes, said: str) -> None:
    with pytest.raises(HTTPError) as refused:
        post_event(aws, body)
    assert refused.value.code == 400
    assert said in json.load(refused.value)["message"]


def test_a_retry_runs_the_code_of_its_own_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    with local_aws(tmp_path_factory.mktemp("slow"), LAMBDA_ASYNC_RETRY_BASE_SECONDS="1") as aws:
        url, _ = aws.queue()
        name = aws.function(FAILING, Environment={"Variables": {"QUEUE": url}})
        aws.client("lambda").invoke(FunctionName=name, InvocationType="Event", Payload=b'{"n": 5}')
        eventually(lambda: log_group_exists(aws, name), "first attempt")
        aws.client("lambda").update_function_code(FunctionName=name, ZipFile=package(REPORTING))
        [message] = aws.messages(url)
        assert json.loads(message["Body"])["event"] == {"n": 5}
