"""Functions on the local AWS run, log, fail and end as under Lambda's Python runtime."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from launcher import WAIT_SECONDS, LocalAws, eventually, local_aws

HANDLER = """
import logging, os, sys, time
log = logging.getLogger("module")
log.info("imported")
def lambda_handler(event, context):
    log.info("handled %s", "it", extra={"training_job": "job-1", "rows": 3})
    log.debug("too detailed")
    print("printed")
    if event.get("raise"):
        raise ValueError("no good")
    if event.get("hang"):
        time.sleep(600)
    if event.get("exit"):
        os._exit(3)
    return {
        "environment": dict(os.environ),
        "request_id": context.aws_request_id,
        "function": context.function_name,
        "arn": context.invoked_function_arn,
        "milliseconds_left": context.get_remaining_time_in_millis(),
        "path": sys.path,
    }
"""
JSON_LOGS = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    folder = tmp_path_factory.mktemp("aws")
    with local_aws(folder, SHELL_SETTING="x", AWS_ENDPOINT_URL_SAGEMAKER="http://127.0.0.1:1") as running:
        yield running


def invoke(aws: LocalAws, name: str, **event: Any) -> dict[str, Any]:
    answer = aws.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event).encode())
    return {"error": answer.get("FunctionError"), "payload": json.load(answer["Payload"])}


def records(aws: LocalAws, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in aws.log_lines(name) if line.startswith("{")]


def test_json_logs_keep_info_records_their_extra_fields_and_the_request_id(aws: LocalAws) -> None:
    name = aws.function(HANDLER, LoggingConfig=JSON_LOGS)
    request_id = invoke(aws, name)["payload"]["request_id"]
    [record] = [record for record in records(aws, name) if record["message"] == "handled it"]
    assert record["level"] == "INFO"
    assert record["logger"] == "module"
    assert record["training_job"] == "job-1"
    assert record["rows"] == 3
    assert record["requestId"] == request_id
    assert "timestamp" in record


def test_the_level_is_the_functions_setting(aws: LocalAws) -> None:
    quiet = aws.function(HANDLER, LoggingConfig={"LogFormat": "JSON", "ApplicationLogLevel": "WARN"})
    chatty = aws.function(HANDLER, LoggingConfig={"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"})
    invoke(aws, quiet)
    invoke(aws, chatty)
    assert records(aws, quiet) == []
    assert "too detailed" in [record["message"] for record in records(aws, chatty)]


def test_an_uncaught_exception_is_logged_and_answered_as_by_lambda(aws: LocalAws) -> None:
    name = aws.function(HANDLER, LoggingConfig=JSON_LOGS)
    answer = invoke(aws, name, **{"raise": True})
    assert answer["error"] == "Unhandled"
    assert answer["payload"]["errorType"] == "ValueError"
    assert answer["payload"]["errorMessage"] == "no good"
    [record] = [record for record in records(aws, name) if record["level"] == "ERROR"]
    assert record["errorType"] == "ValueError"
    assert record["errorMessage"] == "no good"
    assert record["requestId"] == answer["payload"]["requestId"]
    assert 'raise ValueError("no good")' in "".join(record["stackTrace"])


def test_text_logs_have_lambdas_text_format(aws: LocalAws) -> None:
    name = aws.function(HANDLER.replace("log.info", "log.warning"))
    request_id = invoke(aws, name)["payload"]["request_id"]
    [line] = [line for line in aws.log_lines(name) if "handled it" in line]
    level, timestamp, written_id, message = line.split("\t")
    assert (level, written_id, message) == ("[WARNING]", request_id, "handled it")
    assert timestamp.endswith("Z")


def test_prints_are_logged_as_they_are(aws: LocalAws) -> None:
    name = aws.function(HANDLER, LoggingConfig=JSON_LOGS)
    invoke(aws, name)
    assert "printed" in aws.log_lines(name)


def test_every_line_is_logged_under_its_own_invocation(aws: LocalAws) -> None:
    name = aws.function("def lambda_handler(event, context):\n    for n in range(500):\n        print(n)\n")
    invoke(aws, name)
    lines = aws.log_lines(name)
    assert lines[0].startswith("START")
    assert lines[1:501] == [str(n) for n in range(500)]
    assert lines[501].startswith("END")


def test_a_module_is_imported_once_for_many_invocations(aws: LocalAws) -> None:
    name = aws.function(HANDLER, LoggingConfig=JSON_LOGS)
    for _ in range(3):
        invoke(aws, name)
    messages = [record["message"] for record in records(aws, name)]
    assert messages.count("imported") == 1
    assert messages.count("handled it") == 3


def test_a_module_that_does_not_import_answers_and_logs_the_reason(aws: LocalAws) -> None:
    name = aws.function("import not_in_the_zip\n", LoggingConfig=JSON_LOGS)
    answer = invoke(aws, name)
    assert answer["error"] == "Unhandled"
    assert answer["payload"]["errorType"] == "Runtime.ImportModuleError"
    assert "No module named 'not_in_the_zip'" in answer["payload"]["errorMessage"]
    assert any("not_in_the_zip" in line for line in aws.log_lines(name))


def test_a_function_is_stopped_at_its_timeout_and_works_again(aws: LocalAws) -> None:
    name = aws.function(HANDLER, LoggingConfig=JSON_LOGS, Timeout=1)
    started = time.monotonic()
    answer = invoke(aws, name, hang=True)
    assert time.monotonic() - started < 5
    assert answer["payload"] == {
        "errorMessage": "Task timed out after 1.00 seconds",
        "errorType": "Sandbox.Timedout",
    }
    assert any("Task timed out after 1.00 seconds" in line for line in aws.log_lines(name))
    assert "handled it" in [record.get("message") for record in records(aws, name)]
    assert invoke(aws, name)["error"] is None


def test_a_process_that_ends_itself_is_a_function_error(aws: LocalAws) -> None:
    name = aws.function(HANDLER)
    answer = invoke(aws, name, exit=True)
    assert answer["error"] == "Unhandled"
    assert answer["payload"]["errorType"] == "Runtime.ExitError"
    assert invoke(aws, name)["error"] is None


def test_the_context_names_the_function_and_its_time(aws: LocalAws) -> None:
    name = aws.function(HANDLER, Timeout=10)
    payload = invoke(aws, name)["payload"]
    assert payload["function"] == name
    assert payload["arn"].endswith(f":function:{name}")
    assert 5000 < payload["milliseconds_left"] <= 10000


def test_a_function_sees_its_own_settings_and_nothing_of_the_shell(aws: LocalAws) -> None:
    assert os.environ.get("PATH")
    name = aws.function(HANDLER, Environment={"Variables": {"BUCKET": "models", "TMPDIR": "/tmp/mine"}})
    payload = invoke(aws, name)["payload"]
    environment = payload["environment"]
    assert environment["BUCKET"] == "models"
    assert environment["TMPDIR"] == "/tmp/mine"
    assert "SHELL_SETTING" not in environment
    assert "PYTHONPATH" not in environment
    assert environment["AWS_ENDPOINT_URL"] == aws.url
    assert environment["AWS_ENDPOINT_URL_SAGEMAKER"] == "http://127.0.0.1:1"
    assert environment["AWS_REGION"] == "us-east-1"
    assert not any(folder.endswith(("scripts", "scripts/local")) for folder in payload["path"])


def test_the_end_of_a_deleted_functions_invocation_brings_no_log_group_back(aws: LocalAws) -> None:
    name = aws.function("import time\ndef lambda_handler(event, context):\n    time.sleep(2)\n", Timeout=30)
    group = f"/aws/lambda/{name}"
    logs = aws.client("logs")
    logs.create_log_group(logGroupName=group)
    asking = threading.Thread(target=lambda: aws.client("lambda").invoke(FunctionName=name, Payload=b"{}"))
    asking.start()
    eventually(lambda: len(aws.runtimes()) > 1, "the running function")
    logs.delete_log_group(logGroupName=group)
    aws.client("lambda").delete_function(FunctionName=name)
    asking.join(timeout=WAIT_SECONDS)
    assert not asking.is_alive()
    assert logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"] == []
