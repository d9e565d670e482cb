"""Runs MiniStack, a local AWS, on a loopback port, and fixes where it differs from AWS.

    python -m local.aws --port 4566 --state .local/aws

MiniStack 1.5.33 delivers an EventBridge event to a function once and never retries it, leaves the version-id out of S3
events, and runs functions without Lambda's logging. This launcher replaces those parts inside the running
emulator; each `patch_*` function below fixes one difference and says what AWS does. What it replaces or calls is
checked first: with another version of MiniStack it refuses to start.

Settings from the environment (all optional): LAMBDA_ASYNC_RETRY_BASE_SECONDS, LAMBDA_ASYNC_WORKERS,
S3_MAX_COPY_BYTES, MINISTACK_ACCOUNT_ID, MINISTACK_REGION, and RECORD_FUNCTION_CALLS, a folder in which the functions
record their calls to AWS. Variables named AWS_ENDPOINT_URL_<SERVICE> reach the functions. All state is in memory and
ends with the process. What tests change while it runs: POST /_local/s3-event-delay and /_local/s3-age (README.md).
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import importlib
import importlib.metadata
import inspect
import json
import logging
import math
import os
import queue
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape, unescape

import boto3

from local.invocations import DEFAULT_MAX_AGE_SECONDS, DEFAULT_RETRIES, Attempt, Invocation, InvocationQueue
from local.sagemaker import callers

MINISTACK_VERSION = "1.5.33"
HOST = "127.0.0.1"
ACCOUNT = "123456789012"
REGION = "us-east-1"

ASYNC_WORKERS = 8
RETRY_BASE_SECONDS = 1.0  # AWS: 60 s. A local run should not take minutes until a failure is in its queue.
MAX_COPY_BYTES = 5 * 1024**3  # CopyObject ends here; larger objects need UploadPartCopy.
LOG_DRAIN_SECONDS = 5.0
SHUTDOWN_SECONDS = 1.0
# Clients end idle connections, Go's after 90 s. Hypercorn, when its own timeout for one ends, still executes a request
# that arrives at that moment, and closes without an answer: Terraform's retry then conflicts with its own first try.
KEEP_ALIVE_SECONDS = 24 * 60 * 60
S3_EVENT_VERSION = "1.1"
# What the launcher itself answers, beside MiniStack.
EVENTS_PATH = "/_local/events"
S3_EVENT_DELAY_PATH = "/_local/s3-event-delay"
S3_AGE_PATH = "/_local/s3-age"
END_OF_INVOCATION = "<end of invocation>"
RUNTIME_PROGRAM = Path(__file__).resolve().parent / "lambda_runtime.py"

# What a function gets of this process's environment, besides AWS_*: on AWS it gets nothing of anybody's shell.
INHERITED = {"HOME", "LANG", "LC_ALL", "PATH", "RECORD_FUNCTION_CALLS", "TMPDIR", "TZ"}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# Gets the body, which was JSON; the answer is sent as JSON. Raises RequestRefused.
Route = Callable[[Any], dict[str, Any]]

log = logging.getLogger("local.aws")


class IncompatibleMiniStack(RuntimeError):
    """The installed MiniStack does not have the functions that this launcher expects."""


class RequestRefused(ValueError):
    """A request to one of the launcher's own paths lacks something; the text says what."""


def ministack(module: str, **parameters: tuple[str, ...]) -> ModuleType:
    """Imports `ministack.<module>` after checking that its functions take exactly the named parameters.

    Raises IncompatibleMiniStack, naming the function and both versions.
    """
    installed = importlib.metadata.version("ministack")
    advice = f"this launcher was written for {MINISTACK_VERSION}: pip install -r scripts/local/requirements.txt"
    loaded = importlib.import_module(f"ministack.{module}")
    for name, expected in parameters.items():
        function = getattr(loaded, name, None)
        if function is None:
            raise IncompatibleMiniStack(f"ministack {installed} has no {module}.{name}; {advice}")
        found = tuple(inspect.signature(function).parameters)
        if found != expected:
            raise IncompatibleMiniStack(
                f"ministack {installed}: {module}.{name} takes {found}, not {expected}; {advice}"
            )
    return loaded


class Sender:
    """Sends records to queues, topics and functions of this local AWS, through its public API.

    Never called on the server's own thread, which has to answer the request.
    """

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway

    def send(self, arn: str, body: str, attributes: dict[str, str], credentials: dict[str, str]) -> None:
        """Sends `body` to an SQS queue, SNS topic or function, with string message attributes.

        `credentials` are the environment variables of a function's role. Raises ValueError for another kind of
        ARN, botocore's ClientError when the target is missing or refuses.
        """
        service, region, account, name = arn.split(":", 5)[2:]
        client = boto3.session.Session(
            aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=credentials.get("AWS_SESSION_TOKEN") or None,
            region_name=region,
        ).client(service, endpoint_url=self._gateway)
        typed = {key: {"DataType": "String", "StringValue": value} for key, value in attributes.items()}
        if service == "sqs":
            url = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
            client.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=typed)
        elif service == "sns":
            client.publish(TopicArn=arn, Message=body, MessageAttributes=typed)
        elif service == "lambda":
            client.invoke(FunctionName=arn, InvocationType="Event", Payload=body.encode())
        else:
            raise ValueError(f"cannot deliver to {arn}: the local AWS knows SQS, SNS and Lambda as destinations")


def patch_asynchronous_invocation(gateway: str) -> None:
    """Functions behind EventBridge, and Invoke with InvocationType Event, share one bounded queue.

    MiniStack starts a thread per EventBridge event: no retry, no failure destination, and what meets a concurrency
    limit is lost. Here as on AWS: function errors are retried (MaximumRetryAttempts), throttles until
    MaximumEventAgeInSeconds, all attempts with one request id, then the on-failure destination gets the record
    documented in "Capturing records of Lambda asynchronous invocations" and a dead-letter queue the bare event.
    """
    events = ministack("services.eventbridge", _dispatch_to_lambda=("arn", "payload"))
    scopes = ministack("core.responses", request_scope=("account_id", "region"))
    runtime = ministack("core.lambda_runtime", execution_credentials=("config",))
    functions = ministack(
        "services.lambda_svc",
        invoke_async_with_retry=("func", "event"),
        _acquire_execution_slot=("func", "config"),
        _release_execution_slot=("key",),
        _execute_function_dispatch=("func", "config", "event", "request_id", "started"),
        _execution_record_for_config=("func", "config"),
        _get_func_record_for_ref=("function_ref",),
        _get_base_func_record_for_ref=("function_ref",),
        _event_invoke_config=("func", "qualifier"),
        _emit_lambda_metrics=("function_name", "duration_ms", "error", "throttle"),
    )
    sender = Sender(gateway)

    def settings(arn: str) -> dict[str, Any]:
        base, _, _ = functions._get_base_func_record_for_ref(arn)
        return functions._event_invoke_config(base, qualifier(arn)) or {} if base else {}

    def run(invocation: Invocation) -> Attempt:
        arn = invocation.function_arn
        with scopes.request_scope(*account_and_region(arn)):
            # Looked up for every attempt: a retry runs with the code and the settings that are current by then.
            func, config, name = functions._get_func_record_for_ref(arn)
            if func is None:
                log.warning("asynchronous invocation %s: %s no longer exists", invocation.request_id, arn)
                return Attempt()
            limits = settings(arn)
            retries = limits.get("MaximumRetryAttempts", DEFAULT_RETRIES)
            age = limits.get("MaximumEventAgeInSeconds", DEFAULT_MAX_AGE_SECONDS)
            record = functions._execution_record_for_config(func, config)
            started = time.time()
            slot, _ = functions._acquire_execution_slot(record, config)
            result: dict[str, Any] = {"throttle": True}
            if slot is not None:
                try:
                    result = functions._execute_function_dispatch(
                        record, config, invocation.event, invocation.request_id, started
                    )
                finally:
                    functions._release_execution_slot(slot)
            throttled, failed = bool(result.get("throttle")), bool(result.get("error"))
            functions._emit_lambda_metrics(
                name, duration_ms=(time.time() - started) * 1000, error=failed and not throttled, throttle=throttled
            )
            return Attempt(throttled, result.get("body") if failed else None, retries, age)

    def give_up(invocation: Invocation, attempt: Attempt, condition: str) -> None:
        arn = invocation.function_arn
        with scopes.request_scope(*account_and_region(arn)):
            _, config, _ = functions._get_func_record_for_ref(arn)
            if config is None:
                return
            destination = (settings(arn).get("DestinationConfig") or {}).get("OnFailure", {}).get("Destination")
            dead_letters = (config.get("DeadLetterConfig") or {}).get("TargetArn")
            credentials = runtime.execution_credentials(config)
        log.warning("%s: event %s given up (%s)", arn, invocation.request_id, condition)
        if destination:
            record = failure_record(invocation, attempt, condition, config["Version"])
            sender.send(destination, json.dumps(record), {}, credentials)
        if dead_letters:
            message = str((attempt.error or {}).get("errorMessage", condition))
            attributes = {"RequestID": invocation.request_id, "ErrorCode": "200", "ErrorMessage": message[:1024]}
            sender.send(dead_letters, json.dumps(invocation.event), attributes, credentials)

    accepted = InvocationQueue(
        run,
        give_up,
        workers=int(os.environ.get("LAMBDA_ASYNC_WORKERS", ASYNC_WORKERS)),
        retry_base_seconds=float(os.environ.get("LAMBDA_ASYNC_RETRY_BASE_SECONDS", RETRY_BASE_SECONDS)),
    )

    def dispatch_to_lambda(arn: str, payload: str) -> None:
        accepted.submit(Invocation(arn, json.loads(payload)))

    def invoke_async_with_retry(func: dict[str, Any], event: Any) -> None:
        accepted.submit(Invocation((func.get("config") or func)["FunctionArn"], event))

    events._dispatch_to_lambda = dispatch_to_lambda  # type: ignore[attr-defined]
    functions.invoke_async_with_retry = invoke_async_with_retry  # type: ignore[attr-defined]


def account_and_region(arn: str) -> tuple[str, str]:
    """The account and the region in an ARN."""
    region, account = arn.split(":")[3:5]
    return account, region


def qualifier(function_arn: str) -> str | None:
    """The version or alias at the end of a function's ARN, None without one."""
    parts = function_arn.split(":")
    return parts[7] if len(parts) > 7 else None


def failure_record(invocation: Invocation, attempt: Attempt, condition: str, version: str) -> dict[str, Any]:
    """The record that an on-failure destination gets. If no attempt ran, it has no response."""
    arn = invocation.function_arn
    record = {
        "version": "1.0",
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "requestContext": {
            "requestId": invocation.request_id,
            "functionArn": arn if qualifier(arn) else f"{arn}:$LATEST",
            "condition": condition,
            "approximateInvokeCount": invocation.attempts,
        },
        "requestPayload": invocation.event,
    }
    if attempt.error is not None:
        record["responseContext"] = {
            "statusCode": 200,
            "executedVersion": version,
            "functionError": "Unhandled",
        }
        record["responsePayload"] = attempt.error
    return record


def patch_invoke_permission(gateway: str) -> None:
    """EventBridge may call a function only when the function's policy lets this rule do so.

    MiniStack calls any function that exists and drops the event for one that does not. On AWS both go straight to
    the target's dead-letter queue, if there is one (EventBridge user guide, "Using dead-letter queues to
    process undelivered events"; the error codes are from there).
    """
    events = ministack(
        "services.eventbridge",
        _invoke_target=("target", "event", "rule", "view"),
        _pattern_event_view=("event",),
    )
    functions = ministack(
        "services.lambda_svc",
        _get_func_record_for_ref=("function_ref",),
        function_policy_for_arn=("resource_arn",),
    )
    policies = ministack(
        "core.iam_evaluator",
        evaluate_resource_policy=("doc", "ctx", "service", "named_only", "direct_only"),
    )
    sender = Sender(gateway)
    dead_letters = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dead-letters")
    original = events._invoke_target

    def refusal(arn: str, rule: dict[str, Any]) -> tuple[str, str] | None:
        func, _, _ = functions._get_func_record_for_ref(arn)
        if func is None:
            return "NO_RESOURCE", f"Function not found: {arn}"
        policy, account = functions.function_policy_for_arn(arn)
        context = policies.EvalContext(
            principal_arn="*",
            principal_type="Service",
            principal_account="",
            action="lambda:InvokeFunction",
            resource_arn=arn,
            region=account_and_region(arn)[1],
            service_context={"aws:sourcearn": rule["Arn"], "aws:sourceaccount": account},
        )
        verdict = policies.evaluate_resource_policy(policy, context, service="events.amazonaws.com")
        if verdict.decision == "Allow":
            return None
        return "NO_PERMISSIONS", f"No statement of the function's policy lets {rule['Arn']} invoke {arn}"

    def send_dead_letter(queue_arn: str, body: str, attributes: dict[str, str]) -> None:
        account = account_and_region(queue_arn)[0]
        try:
            sender.send(queue_arn, body, attributes, {"AWS_ACCESS_KEY_ID": account, "AWS_SECRET_ACCESS_KEY": "test"})
        except Exception:
            log.exception("dead-letter queue %s: event of %s lost", queue_arn, attributes["RULE_ARN"])

    def invoke_target(target: dict[str, Any], event: dict[str, Any], rule: dict[str, Any], view: Any = None) -> None:
        arn = target.get("Arn", "")
        refused = refusal(arn, rule) if arn.startswith("arn:aws:lambda:") else None
        if refused is None:
            original(target, event, rule, view)
            return
        code, message = refused
        log.warning("EventBridge: event not delivered: %s: %s", code, message)
        queue_arn = (target.get("DeadLetterConfig") or {}).get("Arn")
        if queue_arn:
            view = view or events._pattern_event_view(event)
            attributes = {"RULE_ARN": rule["Arn"], "TARGET_ARN": arn, "ERROR_CODE": code, "ERROR_MESSAGE": message}
            dead_letters.submit(send_dead_letter, queue_arn, json.dumps(view.event_with_detail()), attributes)

    events._invoke_target = invoke_target  # type: ignore[attr-defined]


def python_environment_class(runtime: ModuleType) -> type:
    """MiniStack's worker for custom runtimes, as the execution environment of a Python function."""

    class PythonEnvironment(runtime.ProvidedWorker):  # type: ignore[misc, name-defined]
        """An execution environment of a Python function."""

        def invoke(self, event: Any, request_id: str, **context: Any) -> dict[str, Any]:
            try:
                result: dict[str, Any] = super().invoke(event, request_id, **context)
            except RuntimeError as failure:  # the module did not import, or the process ended while starting
                error = self._init_error or {"errorMessage": str(failure), "errorType": "Runtime.ExitError"}
                return {"status": "error", "error_payload": error, "log": self._drain_stderr()}
            error = result.get("error_payload")
            if isinstance(error, dict) and error.get("errorType") in ("Sandbox.Timedout", "Runtime.ExitError"):
                # The process is gone and cannot say so; on AWS the platform writes this line.
                now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                result["log"] = f"{result['log']}\n{now} {request_id} {error['errorMessage']}".lstrip("\n")
            return result

        def _drain_stderr_bounded(self, *args: Any, **kwargs: Any) -> str:
            lines = []
            deadline = time.monotonic() + LOG_DRAIN_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                try:
                    line: str = self._stderr_queue.get(timeout=left)
                except queue.Empty:
                    break
                if line.endswith(END_OF_INVOCATION):
                    lines.append(line.removesuffix(END_OF_INVOCATION))
                    break
                lines.append(line)
            return "\n".join(line for line in lines if line)

        def _init_log_suffix(self) -> str:
            return ""  # the result gets the whole log, see invoke

    return PythonEnvironment


def patch_function_runtime() -> None:
    """Python functions run under AWS's runtime interface client, see lambda_runtime.py.

    MiniStack's own worker has no log handler, so INFO records and `extra` are lost, and it knows no error types. It
    serves the Lambda Runtime API to custom runtimes, which is all that AWS's client needs. It also passes on the
    whole environment of the launcher, so that a variable missing in Terraform could come from somebody's shell.
    The log of an invocation that ends after its function was deleted would recreate a deleted log group; on AWS
    that needs a role that may create log groups. Functions with layers keep MiniStack's worker, which unpacks them.
    """
    runtime = ministack("core.lambda_runtime", _worker_class_for=("config",))
    functions = ministack(
        "services.lambda_svc",
        _emit_lambda_logs=("func", "request_id", "log_text", "error", "duration_ms", "log_source"),
        _execute_function_warm=("func", "event", "request_id"),
        _execute_function_provided_warm=("func", "event", "request_id"),
        _provided_runtime_code_dir=("code_zip",),
        _provided_worker_env=("config", "code_dir", "port"),
        _runtime_env_vars=("config",),
    )
    worker_class_for = runtime._worker_class_for
    execute_with_worker_script = functions._execute_function_warm
    emit_logs = functions._emit_lambda_logs
    unpack = functions._provided_runtime_code_dir
    worker_environment = functions._provided_worker_env

    python_environment = python_environment_class(runtime)

    def is_ours(config: dict[str, Any]) -> bool:
        return config.get("Runtime", "").startswith("python") and not config.get("Layers")

    def emit_logs_of_existing(func: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if (func.get("config") or func)["FunctionName"] in functions._functions:
            emit_logs(func, *args, **kwargs)

    def environment_class(config: dict[str, Any]) -> type:
        chosen: type = python_environment if is_ours(config) else worker_class_for(config)
        return chosen

    def execute_warm(func: dict[str, Any], event: Any, request_id: str) -> dict[str, Any]:
        ours = is_ours(func.get("config") or func)
        execute = functions._execute_function_provided_warm if ours else execute_with_worker_script
        result: dict[str, Any] = execute(func, event, request_id)
        return result

    def code_dir(code_zip: bytes) -> str:
        folder: str = unpack(code_zip)
        bootstrap = Path(folder, "bootstrap")
        # Under the lock that MiniStack holds while it starts a process, for the reason in its comment on ETXTBSY.
        with functions._provided_code_lock:
            if not bootstrap.exists():
                bootstrap.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{RUNTIME_PROGRAM}"\n')
                bootstrap.chmod(bootstrap.stat().st_mode | stat.S_IXUSR)
        return folder

    def environment(config: dict[str, Any], folder: str, port: int) -> dict[str, str]:
        full: dict[str, str] = worker_environment(config, folder, port)
        own = functions._runtime_env_vars(config)
        kept = {
            name: value
            for name, value in full.items()
            if name in own or name in INHERITED or name.startswith("AWS_") or os.environ.get(name) != value
        }
        if not is_ours(config):
            return kept
        logging_config = config.get("LoggingConfig") or {}
        kept["AWS_LAMBDA_LOG_FORMAT"] = logging_config.get("LogFormat", "Text")
        if "ApplicationLogLevel" in logging_config:
            kept["AWS_LAMBDA_LOG_LEVEL"] = logging_config["ApplicationLogLevel"]
        name = config["FunctionName"]
        kept["AWS_LAMBDA_LOG_GROUP_NAME"] = logging_config.get("LogGroup") or f"/aws/lambda/{name}"
        kept["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{config['Runtime']}"
        kept["END_OF_INVOCATION"] = END_OF_INVOCATION
        return kept

    runtime._worker_class_for = environment_class  # type: ignore[attr-defined]
    functions._emit_lambda_logs = emit_logs_of_existing  # type: ignore[attr-defined]
    functions._execute_function_warm = execute_warm  # type: ignore[attr-defined]
    functions._provided_runtime_code_dir = code_dir  # type: ignore[attr-defined]
    functions._provided_worker_env = environment  # type: ignore[attr-defined]


def patch_s3_events() -> Route:
    """S3's EventBridge events carry the version-id on versioned buckets, and a time in whole seconds.

    Source: Amazon S3 user guide, "EventBridge event message structure".

    Returns the route `POST /_local/s3-event-delay`: from now on, buckets send no events for `seconds` after
    EventBridge was switched on for them, also those for which it was switched on earlier. On AWS that is about five
    minutes, and what is uploaded meanwhile never gets an event (S3 user guide, "Enabling Amazon EventBridge").
    Here it is 0 unless a test sets it, so that nobody waits.
    """
    s3 = ministack(
        "services.s3",
        _fire_s3_event=(
            "bucket_name",
            "key",
            "event_name",
            "size",
            "etag",
            "deletion_type",
            "restore_event_data",
            "version_id",
            "sequencer",
            "object_extra",
            "record_extra",
        ),
        _put_bucket_notification=("name", "body", "headers"),
    )
    events = ministack("services.eventbridge", _dispatch_event=("event", "view"))
    fire, dispatch, configure = s3._fire_s3_event, events._dispatch_event, s3._put_bucket_notification
    version_of_this_event: contextvars.ContextVar[str | None] = contextvars.ContextVar("version", default=None)
    switched_on: dict[str, float] = {}  # when, by bucket
    delay_seconds = 0.0

    def sends_events(bucket: str) -> bool:
        return "EventBridgeConfiguration" in s3._bucket_notifications.get(bucket, "")

    def put_bucket_notification(name: str, *args: Any, **kwargs: Any) -> Any:
        before = sends_events(name)
        answer = configure(name, *args, **kwargs)
        if sends_events(name) and not before:
            switched_on[name] = time.monotonic()
        return answer

    def fire_s3_event(*args: Any, version_id: str | None = None, **kwargs: Any) -> None:
        # MiniStack builds the event and dispatches it in one call, so the version is passed around it.
        token = version_of_this_event.set(version_id)
        try:
            fire(*args, version_id=version_id, **kwargs)
        finally:
            version_of_this_event.reset(token)

    def dispatch_event(event: dict[str, Any], view: Any = None) -> None:
        if event.get("Source") == "aws.s3" and view is None:
            detail = json.loads(event["Detail"])
            bucket, key = detail["bucket"]["name"], detail["object"]["key"]
            if time.monotonic() - switched_on.get(bucket, -math.inf) < delay_seconds:
                log.warning("S3: no event for s3://%s/%s: too soon after they were switched on", bucket, key)
                return
            detail["event-version"] = S3_EVENT_VERSION
            version_id = version_of_this_event.get()
            if version_id:
                detail["object"]["version-id"] = version_id
            whole_seconds = re.sub(r"\.\d+Z$", "Z", str(event["Time"]))
            event = {**event, "Detail": json.dumps(detail), "Time": whole_seconds}
        dispatch(event, view)

    def set_delay(body: Any) -> dict[str, Any]:
        nonlocal delay_seconds
        [delay_seconds] = required(body, "seconds")
        return {"seconds": delay_seconds}

    s3._fire_s3_event = fire_s3_event  # type: ignore[attr-defined]
    s3._put_bucket_notification = put_bucket_notification  # type: ignore[attr-defined]
    events._dispatch_event = dispatch_event  # type: ignore[attr-defined]
    return set_delay


def patch_copy_object() -> None:
    """CopyObject respects IfMatch and IfNoneMatch on its destination, and refuses a source above 5 GB.

    Source: S3 API reference, CopyObject; the error text is the one that S3 answers.
    """
    s3 = ministack(
        "services.s3",
        _copy_object=("bucket_name", "dest_key", "headers"),
        _check_put_preconditions=("headers", "existing_obj"),
        _ensure_bucket=("name",),
        _error=("code", "message", "status", "resource", "extra", "headers"),
    )
    copy = s3._copy_object
    limit = int(os.environ.get("S3_MAX_COPY_BYTES", MAX_COPY_BYTES))

    def source_bytes(copy_source: str) -> int:
        path, _, query = copy_source.lstrip("/").partition("?")
        bucket_name, _, key = unquote(path).partition("/")
        version = parse_qs(query).get("versionId", [""])[0]
        if version:
            versions = s3._object_versions.get((bucket_name, key), [])
            return next((entry["size"] for entry in versions if entry["version_id"] == version), 0)
        bucket = s3._ensure_bucket(bucket_name) or {"objects": {}}
        return int(bucket["objects"].get(key, {"size": 0})["size"])

    def copy_object(bucket_name: str, dest_key: str, headers: dict[str, str]) -> Any:
        if source_bytes(headers.get("x-amz-copy-source", "")) > limit:
            message = f"The specified copy source is larger than the maximum allowable size for a copy source: {limit}"
            return s3._error("InvalidRequest", message, 400)
        bucket = s3._ensure_bucket(bucket_name)
        refused = s3._check_put_preconditions(headers, bucket["objects"].get(dest_key)) if bucket else None
        return refused or copy(bucket_name, dest_key, headers)

    s3._copy_object = copy_object  # type: ignore[attr-defined]


def patch_alarm_evaluation() -> None:
    """An alarm changes its state only when somebody sets it.

    MiniStack looks at an alarm when it is put, and then at the metrics of all functions in the account, whatever the
    alarm's dimensions are: one stack's errors set off the new alarms of another.
    """
    cloudwatch = ministack("services.cloudwatch", _evaluate_alarm=("alarm",))
    cloudwatch._evaluate_alarm = lambda alarm: None  # type: ignore[attr-defined]


def patch_described_alarms() -> None:
    """DescribeAlarms returns everything that was put to Terraform's provider, which speaks the Query protocol.

    MiniStack leaves most members out of the XML, so every plan would change every alarm.
    Source: CloudWatch API reference, MetricAlarm.
    """
    cloudwatch = ministack("services.cloudwatch", _describe_alarms=("params", "cbor_data", "is_cbor", "is_json"))
    describe = cloudwatch._describe_alarms

    def as_xml(value: Any) -> str:
        if isinstance(value, dict):
            return "".join(f"<{name}>{as_xml(item)}</{name}>" for name, item in value.items() if item is not None)
        if isinstance(value, list):
            return "".join(f"<member>{as_xml(item)}</member>" for item in value)
        return escape(str(value).lower() if isinstance(value, bool) else str(value))

    def member(found: re.Match[str]) -> str:
        alarm = cloudwatch._alarms[unescape(found["name"])]
        moments = {
            name: datetime.fromtimestamp(value, UTC).isoformat()
            for name, value in alarm.items()
            if name.endswith("Timestamp")
        }
        return f"<member>{as_xml(alarm | moments)}</member>"

    def describe_alarms(params: Any, cbor_data: Any, is_cbor: bool, is_json: bool = False) -> Any:
        answer = describe(params, cbor_data, is_cbor, is_json)
        if is_cbor or is_json or answer[0] != 200:
            return answer
        status, headers, body = answer
        before, opening, rest = body.decode().partition("<MetricAlarms>")
        members, closing, after = rest.partition("</MetricAlarms>")
        whole = re.sub(r"<member><AlarmName>(?P<name>.*?)</AlarmName>.*?</member>", member, members, flags=re.DOTALL)
        return status, headers, "".join((before, opening, whole, closing, after)).encode()

    cloudwatch._describe_alarms = describe_alarms  # type: ignore[attr-defined]


def required(body: Any, *names: str) -> list[Any]:
    """The members of a JSON object with these names. Raises RequestRefused, which lists those that are missing."""
    missing = [name for name in names if not isinstance(body, dict) or name not in body]
    if missing:
        raise RequestRefused(f"the body lacks {', '.join(missing)}")
    return [body[name] for name in names]


def events_route() -> Route:
    """`POST /_local/events`: puts an event of an AWS service on the default bus. The body is the whole envelope.

    PutEvents refuses sources that begin with "aws.", as it does on AWS; so a local service needs another way in.
    """
    events = ministack(
        "services.eventbridge",
        _dispatch_event=("event", "view"),
        _ensure_default_bus=(),
    )
    scopes = ministack("core.responses", request_scope=("account_id", "region"))

    def deliver(event: Any) -> dict[str, Any]:
        required(event, "id", "detail-type", "source", "account", "time", "region", "resources", "detail")
        record = {
            "Version": event.get("version", "0"),
            "EventId": event["id"],
            "Source": event["source"],
            "DetailType": event["detail-type"],
            "Detail": json.dumps(event["detail"]),
            "EventBusName": "default",
            "Time": event["time"],
            "Resources": event["resources"],
            "Account": event["account"],
            "Region": event["region"],
        }
        with scopes.request_scope(event["account"], event["region"]):
            events._ensure_default_bus()
            events._dispatch_event(record)
        return {"delivered": True}

    return deliver


def s3_age_route() -> Route:
    """`POST /_local/s3-age`: the newest version of an object looks as if it had been uploaded `seconds` ago.

    For tests of what happens to old objects. On AWS, time does it.
    """
    s3 = ministack("services.s3", _ensure_bucket=("name",))
    scopes = ministack("core.responses", request_scope=("account_id", "region"))

    def set_age(body: Any) -> dict[str, Any]:
        bucket_name, key, seconds = required(body, "bucket", "key", "seconds")
        time_then = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
        last_modified = time_then.replace("+00:00", "Z")
        with scopes.request_scope(os.environ["MINISTACK_ACCOUNT_ID"], os.environ["MINISTACK_REGION"]):
            bucket = s3._ensure_bucket(bucket_name)
            if bucket is None or key not in bucket["objects"]:
                raise RequestRefused(f"there is no object s3://{bucket_name}/{key}")
            bucket["objects"][key]["last_modified"] = last_modified
            for version in s3._object_versions.get((bucket_name, key), []):
                if version["is_latest"]:
                    version["last_modified"] = last_modified
        return {"last_modified": last_modified}

    return set_age


def with_routes(app: App, routes: Mapping[str, Route]) -> App:
    """Adds paths that take a JSON object by POST and answer 200, or 400 with a message."""

    def answer_to(path: str, method: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if method != "POST":
            return 405, {"message": f"{path} takes POST"}
        try:
            content = json.loads(body)
        except ValueError as error:
            return 400, {"message": f"the body is not JSON: {error}"}
        try:
            return 200, routes[path](content)
        except RequestRefused as refused:
            return 400, {"message": str(refused)}

    async def with_route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in routes:
            await app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        status, answer = answer_to(scope["path"], scope["method"], body)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return with_route


def prepare_environment(port: int, state: Path) -> str:
    """Sets the variables that MiniStack reads when it is imported; returns the gateway's URL.

    The credentials are set to those of the local account, so no real ones reach a function.
    """
    gateway = f"http://{HOST}:{port}"
    scratch = state / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "PERSIST_STATE", "S3_PERSIST", "USE_SSL"):
        os.environ.pop(name, None)
    account = os.environ.setdefault("MINISTACK_ACCOUNT_ID", ACCOUNT)
    region = os.environ.setdefault("MINISTACK_REGION", REGION)
    os.environ.update(
        {
            "AWS_ACCESS_KEY_ID": account,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            "AWS_ENDPOINT_URL": gateway,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "BIND_HOST": HOST,
            "GATEWAY_PORT": str(port),
            "TMPDIR": str(scratch),
            # Services that listen on fixed ports, and that nobody needs here.
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            # No containers: otherwise MiniStack would clean up in a Docker daemon that happens to run here.
            "DOCKER_HOST": f"unix://{scratch}/no-docker.sock",
        }
    )
    return gateway


def patched_app(gateway: str) -> App:
    """MiniStack's application with every patch applied. Raises IncompatibleMiniStack."""
    patch_asynchronous_invocation(gateway)
    patch_invoke_permission(gateway)
    patch_function_runtime()
    set_s3_event_delay = patch_s3_events()
    patch_copy_object()
    patch_alarm_evaluation()
    patch_described_alarms()
    app: App = ministack("app", app=("scope", "receive", "send")).app
    routes = {EVENTS_PATH: events_route(), S3_EVENT_DELAY_PATH: set_s3_event_delay, S3_AGE_PATH: s3_age_route()}
    logged = with_repeated_requests_logged(with_routes(app, routes))
    return for_own_callers_only(logged, int(gateway.rpartition(":")[2]))


def for_own_callers_only(app: App, port: int) -> App:
    """Refuses what a web page sends, on every path, before anything else looks at it: see local.sagemaker.callers."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        why = callers.refusal(headers, port)
        if not why:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "reason": why})
        else:
            kind = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": callers.FORBIDDEN, "headers": kind})
            await send({"type": "http.response.body", "body": json.dumps({"message": why}).encode()})

    return guarded


def with_repeated_requests_logged(app: App) -> App:
    """Logs what an SDK retries after an error or a lost answer: a retry can conflict with its first try."""

    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        sent = dict(scope.get("headers", [])).get(b"amz-sdk-request", b"").decode("latin-1")
        attempt = re.search(r"attempt=(\d+)", sent)
        if attempt and int(attempt[1]) > 1:
            log.warning("%s %s: attempt %s of a client", scope["method"], scope["path"], attempt[1])
        await app(scope, receive, send)

    return logged


async def serve(app: App, listener: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT."""
    from hypercorn.asyncio import serve as hypercorn_serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.graceful_timeout = SHUTDOWN_SECONDS
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def stopped() -> None:
        await stop.wait()

    await hypercorn_serve(app, config, shutdown_trigger=stopped)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True, help="loopback port to listen on; 0 takes a free one")
    parser.add_argument("--state", type=Path, required=True, help="folder for temporary files")
    arguments = parser.parse_args()

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, arguments.port))
    except OSError as error:
        sys.exit(f"aws.py: cannot listen on {HOST}:{arguments.port}: {error.strerror}")
    gateway = prepare_environment(listener.getsockname()[1], arguments.state.resolve())
    try:
        app = patched_app(gateway)
    except IncompatibleMiniStack as error:
        sys.exit(f"aws.py: {error}")
    print(f"local AWS on {gateway}", flush=True)
    try:
        asyncio.run(serve(app, listener))
    finally:
        ministack("core.lambda_runtime", reset=()).reset()
    # Threads of MiniStack may still be waiting for functions that were just stopped; there is nothing to save.
    os._exit(0)


if __name__ == "__main__":
    main()
