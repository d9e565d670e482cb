"""HTTP: the control plane (JSON 1.1, X-Amz-Target) and the runtime's InvokeEndpoint on one port."""

import base64
import binascii
import http.server
import json
import logging
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import botocore.session

from .callers import GuardedRequest
from .errors import ApiError, constraint, unsupported, validation
from .hosting import Hosting
from .settings import Settings
from .store import ENDPOINT_CONFIGS, ENDPOINTS, MODELS, TRAINING_JOBS, Record, Store
from .training import Training
from .validation import check_request

log = logging.getLogger("local.sagemaker")

_TARGET_PREFIX = "SageMaker."
# InvokeEndpoint body, and what is read off the connection of a larger one before it is refused.
_MAX_INVOCATION_BYTES = 6_291_456
_MAX_DRAIN_BYTES = 256 * 1024 * 1024
_MAX_REQUEST_BYTES = 4 * 1024 * 1024
_PAGE = 10
_TAG_PAGE = 50
_MAX_TAGS = 50
_INVOCATION = re.compile(r"/endpoints/([^/]+)/invocations")
_ENDPOINT_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_INTERRUPT_PATH = "/_local/interrupt"
_CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
# ARN resource type -> kind in the store.
_KIND_OF_ARN = {
    "training-job": TRAINING_JOBS,
    "model": MODELS,
    "endpoint-config": ENDPOINT_CONFIGS,
    "endpoint": ENDPOINTS,
}


class Service:
    """The operations by name, over training and hosting."""

    def __init__(self, settings: Settings, store: Store, training: Training, hosting: Hosting) -> None:
        self.settings = settings
        self.hosting = hosting
        self.training = training
        self._store = store
        self._model = botocore.session.get_session().get_service_model("sagemaker")
        self._operations: dict[str, Callable[[Record], Record]] = {
            "CreateTrainingJob": training.create,
            "DescribeTrainingJob": training.describe,
            "StopTrainingJob": training.stop,
            "ListTrainingJobs": self._lister(
                TRAINING_JOBS, "TrainingJobSummaries", "TrainingJob", training.summary, "Ascending"
            ),
            "CreateModel": hosting.create_model,
            "DescribeModel": hosting.describe_model,
            "DeleteModel": hosting.delete_model,
            "ListModels": self._lister(
                MODELS, "Models", "Model", _picker("ModelName", "ModelArn", "CreationTime"), "Descending"
            ),
            "CreateEndpointConfig": hosting.create_endpoint_config,
            "DescribeEndpointConfig": hosting.describe_endpoint_config,
            "DeleteEndpointConfig": hosting.delete_endpoint_config,
            "ListEndpointConfigs": self._lister(
                ENDPOINT_CONFIGS,
                "EndpointConfigs",
                "EndpointConfig",
                _picker("EndpointConfigName", "EndpointConfigArn", "CreationTime"),
                "Descending",
            ),
            "CreateEndpoint": hosting.create_endpoint,
            "DescribeEndpoint": hosting.describe_endpoint,
            "UpdateEndpoint": hosting.update_endpoint,
            "DeleteEndpoint": hosting.delete_endpoint,
            "ListEndpoints": self._lister(
                ENDPOINTS,
                "Endpoints",
                "Endpoint",
                _picker("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus"),
                "Descending",
            ),
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
        }

    def call(self, operation: str, body: bytes) -> Record:
        """Answer of a control-plane call; raises ApiError."""
        handler = self._operations.get(operation)
        if handler is None:
            raise ApiError("UnknownOperationException", f"Local SageMaker has no operation {operation!r}.")
        try:
            request = json.loads(body or b"{}")
        except ValueError as exc:
            raise ApiError("SerializationException", f"The request body is not JSON: {exc}") from exc
        check_request(self._model.operation_model(operation).input_shape, request)
        request = _without_nulls(request)
        if operation == "AddTags" or operation.startswith("Create"):
            _check_tags(request.get("Tags", []))
        return handler(request)

    # ---- Lists -----------------------------------------------------------------------------------------

    def _lister(
        self, kind: str, member: str, noun: str, summary: Callable[[Record], Record], order: str
    ) -> Callable[[Record], Record]:
        """A List operation: filters, order (`order` by default) and pages, all by AWS's member names."""
        name_member, status_member = f"{noun}Name", f"{noun}Status"

        def sort_key(record: Record, by: str) -> list[Any]:
            first = {"Name": name_member, "Status": status_member}.get(by, "CreationTime")
            return [record[first], record[name_member]]

        def run(request: Record) -> Record:
            for member_ignored in ("WarmPoolStatusEquals", "TrainingPlanArnEquals"):
                if member_ignored in request:
                    raise unsupported(member_ignored)
            by = request.get("SortBy", "CreationTime")
            descending = request.get("SortOrder", order) == "Descending"
            records = [
                record
                for record in self._store.all(kind)
                if request.get("NameContains", "") in record[name_member]
                and request.get("StatusEquals") in (None, record.get(status_member))
                and _in_time(request, record)
            ]
            records.sort(key=lambda record: sort_key(record, by), reverse=descending)
            if "NextToken" in request:
                last = _decode_token(request["NextToken"], str if by != "CreationTime" else float, str)
                records = [
                    record
                    for record in records
                    if (sort_key(record, by) < last if descending else sort_key(record, by) > last)
                ]
            size = request.get("MaxResults", _PAGE)
            answer: Record = {member: [summary(record) for record in records[:size]]}
            if len(records) > size:
                answer["NextToken"] = _encode_token(sort_key(records[size - 1], by))
            return answer

        return run

    # ---- Tags ------------------------------------------------------------------------------------------

    def _add_tags(self, request: Record) -> Record:
        with self._store.lock:
            kind, name, record = self._tagged(request["ResourceArn"])
            tags = {tag["Key"]: tag for tag in [*record.get("Tags", []), *request["Tags"]]}
            if len(tags) > _MAX_TAGS:
                raise validation(f"Number of tags {len(tags)} exceeds the maximum of {_MAX_TAGS} per resource.")
            record["Tags"] = list(tags.values())
            self._store.put(kind, name, record)
        return {"Tags": record["Tags"]}

    def _list_tags(self, request: Record) -> Record:
        tags = self._tagged(request["ResourceArn"])[2].get("Tags", [])
        start = _decode_token(request["NextToken"], int)[0] if "NextToken" in request else 0
        end = start + request.get("MaxResults", _TAG_PAGE)
        answer: Record = {"Tags": tags[start:end]}
        if len(tags) > end:
            answer["NextToken"] = _encode_token([end])
        return answer

    def _delete_tags(self, request: Record) -> Record:
        with self._store.lock:
            kind, name, record = self._tagged(request["ResourceArn"])
            record["Tags"] = [tag for tag in record.get("Tags", []) if tag["Key"] not in request["TagKeys"]]
            self._store.put(kind, name, record)
        return {}

    def _tagged(self, arn: str) -> tuple[str, str, Record]:
        """Kind, name and record of an ARN; AWS writes names in ARNs in lower case."""
        resource, _, lower_name = arn.split(":", 5)[5].partition("/")
        kind = _KIND_OF_ARN.get(resource)
        if kind is not None and arn == self.settings.arn(resource, lower_name):
            member = "".join(word.capitalize() for word in resource.split("-")) + "Name"
            for record in self._store.all(kind):
                if record[member].lower() == lower_name.lower():
                    return kind, record[member], record
        raise validation(f'Could not find resource "{arn}".')


def _without_nulls(value: Any) -> Any:
    """A member that is null is a member that is not there."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _picker(*members: str) -> Callable[[Record], Record]:
    return lambda record: {name: record[name] for name in members}


def _in_time(request: Record, record: Record) -> bool:
    for member in ("CreationTime", "LastModifiedTime"):
        after, before = request.get(f"{member}After"), request.get(f"{member}Before")
        if after is not None and not record[member] > after:
            return False
        if before is not None and not record[member] < before:
            return False
    return True


def _encode_token(position: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def _decode_token(token: str, *types: type) -> list[Any]:
    """The position that `_encode_token` wrote, with members of these types."""
    try:
        position = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError) as exc:
        raise validation("Invalid NextToken.") from exc
    if not isinstance(position, list) or tuple(type(item) for item in position) != types:
        raise validation("Invalid NextToken.")
    return position


def _check_tags(tags: list[Record]) -> None:
    """What the service model cannot say: unique keys, none of AWS's own."""
    keys = [tag["Key"] for tag in tags]
    if any(key.lower().startswith("aws:") for key in keys):
        raise validation("aws: prefixed tag key names are not allowed for external use.")
    if len(set(keys)) != len(keys):
        raise validation("Duplicate tag keys are not allowed.")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, service: Service) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.service = service


class _Request(GuardedRequest):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "LocalSageMaker"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200, json.dumps({"status": "ok", "service": "local-sagemaker"}).encode())
        else:
            self._refuse(ApiError("UnknownOperationException", f"No such path: {self.path}", status=404))

    def do_POST(self) -> None:
        invocation = _INVOCATION.fullmatch(self.path.split("?")[0])
        try:
            if invocation:
                self._invoke(unquote(invocation.group(1)))
            elif self.path == _INTERRUPT_PATH:
                self._interrupt()
            else:
                self._control()
        except ApiError as exc:
            if exc.status >= 500 or not invocation:
                log.info("refused: %s", str(exc).replace("\n", " ")[:500])
            self._refuse(exc)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as exc:
            log.exception("error of this server")
            self._refuse(ApiError("InternalFailure", f"Error of the local SageMaker: {exc!r}", status=500))

    def _control(self) -> None:
        body = self._body(_MAX_REQUEST_BYTES)
        if body is None:
            raise ApiError("SerializationException", f"The request is larger than {_MAX_REQUEST_BYTES} bytes.")
        target = self.headers.get("X-Amz-Target", "")
        if not target.startswith(_TARGET_PREFIX):
            raise ApiError("UnknownOperationException", f"No operation in X-Amz-Target: {target!r}")
        answer = self.server.service.call(target.removeprefix(_TARGET_PREFIX), body)
        self._answer(200, json.dumps(answer).encode())

    def _interrupt(self) -> None:
        """``{"job": ..., "hears": false, "seconds": 0}``: see Training.interrupt. On AWS, spot capacity does it."""
        try:
            asked = json.loads(self._body(_MAX_REQUEST_BYTES) or b"")
            job, hears, seconds = str(asked["job"]), bool(asked.get("hears")), float(asked.get("seconds", 0))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ApiError("SerializationException", f"The body must be JSON with the name of a job: {exc!r}") from exc
        self.server.service.training.interrupt(job, hears, seconds)
        self._answer(200, b"{}")

    def _invoke(self, name: str) -> None:
        body = self._body(_MAX_INVOCATION_BYTES)
        if body is None:
            raise ApiError("ValidationError", f"Request {uuid.uuid4()} has oversize body.")
        if not _ENDPOINT_NAME.fullmatch(name) or len(name) > 63:
            problem = constraint(name, "endpointName", f"Member must satisfy {_ENDPOINT_NAME.pattern}")
            raise ApiError("ValidationError", problem.message)
        passed = {
            header: self.headers[header]
            for header in ("Content-Type", "Accept", _CUSTOM_ATTRIBUTES)
            if self.headers.get(header)
        }
        target = self.headers.get("X-Amzn-SageMaker-Target-Variant")
        answer = self.server.service.hosting.invoke(name, body, passed, target)
        headers = {"x-Amzn-Invoked-Production-Variant": answer["Variant"]}
        if "CustomAttributes" in answer:
            headers[_CUSTOM_ATTRIBUTES] = answer["CustomAttributes"]
        self._answer(200, answer["Body"], answer["ContentType"], headers)

    def _body(self, limit: int) -> bytes | None:
        """The request body, or None when it is longer than `limit` bytes."""
        try:
            length = int(self.headers.get("Content-Length", 0))
        except ValueError as exc:
            self.close_connection = True
            raise ApiError("SerializationException", "Content-Length is not a number.") from exc
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise ApiError("SerializationException", "Chunked requests are not supported.")
        if length < 0:
            self.close_connection = True
            raise ApiError("SerializationException", "Content-Length is negative.")
        if length <= limit:
            return self.rfile.read(length)
        if length > _MAX_DRAIN_BYTES:
            self.close_connection = True
        else:
            # The client reads the answer only when it has sent everything.
            while length > 0:
                length -= len(self.rfile.read(min(length, 1 << 20))) or length
        return None

    def _refuse(self, error: ApiError) -> None:
        # Modelled errors spell it "Message", the common ones "message"; SDKs read both.
        body = {"__type": error.code, "message": error.message, "Message": error.message, **error.members}
        self._answer(error.status, json.dumps(body).encode(), headers={"x-amzn-ErrorType": error.code})

    def _answer(
        self,
        status: int,
        body: bytes,
        kind: str = "application/x-amz-json-1.1",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No access log: the parts of the service say what matters."""
