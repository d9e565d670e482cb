"""A SageMaker in memory, control plane and InvokeEndpoint, for unit tests: strict where moto is lax.

Requests are checked by the code of the local SageMaker that `make local-up` runs (botocore's service model: required
members, types, enums, patterns, lengths; tags; quotas); duplicates, unknown names and busy endpoints are refused with
AWS's codes and texts. Nothing takes its course by itself: the test ends jobs and moves endpoints.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.exceptions import ClientError, ParamValidationError
from botocore.validate import ParamValidator

from calls import record
from local.sagemaker import api, quotas, training, validation
from local.sagemaker.errors import ApiError

MODEL = botocore.session.get_session().get_service_model("sagemaker")
RUNTIME = botocore.session.get_session().get_service_model("sagemaker-runtime")
OPERATIONS = {xform_name(name): name for name in MODEL.operation_names}
IN_PROGRESS = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


class AnswerLost(BaseException):
    """The call took effect and its answer never came: the SDK makes the call again, as after any 5xx or time-out."""


def take_effect(after: Callable[[], None], effect: Callable[[], Any]) -> Any:
    """Make a call whose effect may be followed by something that a test wants (see Around in world.py)."""
    try:
        try:
            answer = effect()
        finally:
            after()
    except AnswerLost:
        answer = effect()
    return answer


def refusal(operation: str, code: str, text: str, status: int = 400) -> ClientError:
    """The error that boto3 raises when AWS refuses a call."""
    answer = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)  # type: ignore[arg-type]


def check_request(operation: str, request: dict[str, Any]) -> None:
    """Raise what boto3 or AWS raises on a request that the service model does not allow.

    What AWS checks is checked by the local SageMaker's own code.
    """
    shape = (RUNTIME if operation == "InvokeEndpoint" else MODEL).operation_model(operation).input_shape
    assert shape is not None
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())
    if operation == "InvokeEndpoint":
        return  # its body is no JSON of the model's, and its name is checked as it is looked for
    try:
        validation.check_request(shape, request)
        if "Tags" in request:
            api._check_tags(request["Tags"])
    except ApiError as error:
        raise refusal(operation, error.code, error.message, error.status) from error


def model_error(status: int) -> ClientError:
    """What InvokeEndpoint raises when the container answers with an error; status 0: it did not answer in time."""
    text = f"Received client error ({status}) from primary" if status else "Your invocation timed out"
    answer = {"Error": {"Code": "ModelError", "Message": text}, "OriginalStatusCode": status}
    return ClientError(answer, "InvokeEndpoint")  # type: ignore[arg-type]


class FakeSageMaker:
    """What boto3.client("sagemaker") is to the handlers, for the calls that they make.

    around(operation) is called before each call takes effect and returns what to call after it did.
    """

    def __init__(self, region: str, account: str, around: Callable[[str], Callable[[], None]]) -> None:
        self.meta = SimpleNamespace(region_name=region)
        self.training_quota: int | None = None
        self.endpoint_quota_message = ""
        # By operation: what AWS refuses until the test takes it out.
        self.refusals: dict[str, Exception] = {}
        self.before_create: Callable[[str], None] | None = None
        self.jobs: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}
        # What the models answer to every text, by training job: (label, score), or the error that is raised.
        self.answers: dict[str, tuple[str, float] | Exception] = {}
        self._around = around
        self._arn = f"arn:aws:sagemaker:{region}:{account}:"
        # What time it is; None: later at each change, and that is all.
        self.clock: Callable[[], datetime] | None = None
        self._last_change = datetime(2026, 11, 1, tzinfo=UTC)
        # What time it is in S3: that of a job's end is compared with those of its archives.
        self.s3_clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        if name not in OPERATIONS:
            raise AttributeError(name)
        return self._strict(OPERATIONS[name], getattr(type(self), f"_{name}"))

    @property
    def runtime(self) -> SimpleNamespace:
        """What boto3.client("sagemaker-runtime") is to the handlers."""
        return SimpleNamespace(invoke_endpoint=self._strict("InvokeEndpoint", type(self)._invoke_endpoint))

    def _strict(self, operation: str, effect: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        service = "sagemaker-runtime" if operation == "InvokeEndpoint" else "sagemaker"

        def call(**request: Any) -> dict[str, Any]:
            def checked() -> dict[str, Any]:
                check_request(operation, request)
                record(service, operation, request)
                if operation in self.refusals:
                    raise self.refusals[operation]
                return effect(self, request)

            answer: dict[str, Any] = take_effect(self._around(operation), checked)
            return answer

        return call

    # --- what a test does ---------------------------------------------------------------------------

    def end_job(
        self, name: str, status: str = "Completed", *, secondary: str = "", reason: str = "", artifact: str = ""
    ) -> None:
        """Take a job to its end; artifact: the s3:// address of its model.tar.gz."""
        job = self.jobs[name]
        job |= {"TrainingJobStatus": status, "SecondaryStatus": secondary or status}
        job |= {"LastModifiedTime": self._tick(), "TrainingEndTime": self.s3_clock()}
        billed = 180 if job.get("EnableManagedSpotTraining") else 600
        job |= {"TrainingTimeInSeconds": 600, "BillableTimeInSeconds": billed}
        if reason:
            job["FailureReason"] = reason
        if artifact:
            job["ModelArtifacts"] = {"S3ModelArtifacts": artifact}

    def running(self) -> int:
        """How many training jobs run."""
        return sum(job["TrainingJobStatus"] == "InProgress" for job in self.jobs.values())

    def come_up(self, name: str) -> None:
        """The endpoint's pending deployment succeeds."""
        endpoint = self.endpoints[name]
        pending = endpoint.pop("PendingDeploymentSummary", None)
        if pending:
            endpoint["EndpointConfigName"] = pending["EndpointConfigName"]
        self._move(name, "InService")

    def roll_back(self, name: str, reason: str = "") -> None:
        """The endpoint's update fails and SageMaker returns it to the config before."""
        del self.endpoints[name]["PendingDeploymentSummary"]
        self._move(name, "InService", reason)

    def fail(self, name: str, reason: str = "", status: str = "Failed") -> None:
        self.endpoints[name].pop("PendingDeploymentSummary", None)
        self._move(name, status, reason)

    def vanish(self, name: str) -> None:
        """Somebody deleted the endpoint, and the deletion is over."""
        del self.endpoints[name]

    def state(self) -> dict[str, Any]:
        """Everything that exists, but for times, for comparing two worlds."""
        endpoints = {
            name: {key: endpoint.get(key) for key in ("EndpointStatus", "EndpointConfigName", "Tags")}
            for name, endpoint in self.endpoints.items()
        }
        jobs = {
            name: {key: value for key, value in job.items() if key not in ("LastModifiedTime", "TrainingEndTime")}
            for name, job in self.jobs.items()
        }
        return {"jobs": jobs, "models": self.models, "configs": self.configs, "endpoints": endpoints}

    def _tick(self) -> datetime:
        self._last_change = self.clock() if self.clock else self._last_change + timedelta(seconds=1)
        return self._last_change

    def _move(self, name: str, status: str, reason: str = "") -> None:
        endpoint = self.endpoints[name]
        endpoint |= {"EndpointStatus": status, "LastModifiedTime": self._tick()}
        endpoint.pop("FailureReason", None)
        if reason:
            endpoint["FailureReason"] = reason

    # --- the calls ----------------------------------------------------------------------------------

    def _find(self, operation: str, kind: str, things: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
        if name not in things:
            arn = self._arn + kind.replace("configuration", "config").replace(" ", "-")
            raise refusal(operation, "ValidationException", f'Could not find {kind} "{arn}/{name}".')
        return things[name]

    def _refuse_existing(self, operation: str, kind: str, things: dict[str, dict[str, Any]], name: str) -> None:
        if name in things:
            arn = self._arn + kind.replace("configuration", "config").replace(" ", "-")
            raise refusal(operation, "ValidationException", f'Cannot create already existing {kind} "{arn}/{name}".')

    def _create_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        name, operation = request["TrainingJobName"], "CreateTrainingJob"
        if self.before_create:
            self.before_create(name)
        arn = f"{self._arn}training-job/{name}"
        if name in self.jobs:
            text = "Job name must be unique within an AWS account and region, and a job with this name already exists"
            raise refusal(operation, "ResourceInUse", f"{text} ({arn})")
        resources = request["ResourceConfig"]
        use = "spot training" if request.get("EnableManagedSpotTraining") else "training"
        quota = f"{resources['InstanceType']} for {use} job usage"
        limits = {} if self.training_quota is None else {quota: self.training_quota}
        try:
            training._check_stopping(request)
            quotas.check(limits, quota, self.running() * resources["InstanceCount"], resources["InstanceCount"])
        except ApiError as error:
            raise refusal(operation, error.code, error.message) from error
        status = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting"}
        self.jobs[name] = request | {"TrainingJobArn": arn, "LastModifiedTime": self._tick()} | status
        return {"TrainingJobArn": arn}

    def _describe_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["TrainingJobName"] not in self.jobs:
            raise refusal("DescribeTrainingJob", "ValidationException", "Requested resource not found.")
        return dict(self.jobs[request["TrainingJobName"]])

    def _create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["ModelName"]
        self._refuse_existing("CreateModel", "model", self.models, name)
        self.models[name] = request
        return {"ModelArn": f"{self._arn}model/{name}"}

    def _describe_model(self, request: dict[str, Any]) -> dict[str, Any]:
        model = self._find("DescribeModel", "model", self.models, request["ModelName"])
        return model | {"ModelArn": f"{self._arn}model/{request['ModelName']}"}

    def _delete_model(self, request: dict[str, Any]) -> dict[str, Any]:
        self._find("DeleteModel", "model", self.models, request["ModelName"])
        del self.models[request["ModelName"]]
        return {}

    def _delete_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        self._find("DeleteEndpointConfig", "endpoint configuration", self.configs, name)
        pending = [endpoint.get("PendingDeploymentSummary", {}) for endpoint in self.endpoints.values()]
        in_use = [*self.endpoints.values(), *pending]
        # AWS allows it, and the endpoint cannot be updated any more: here it is the handler's error.
        assert name not in [endpoint.get("EndpointConfigName") for endpoint in in_use], f"{name} is in use"
        del self.configs[name]
        return {}

    def _create_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        name, operation = request["EndpointConfigName"], "CreateEndpointConfig"
        self._refuse_existing(operation, "endpoint configuration", self.configs, name)
        for variant in request["ProductionVariants"]:
            self._find(operation, "model", self.models, variant["ModelName"])
        self.configs[name] = request
        return {"EndpointConfigArn": f"{self._arn}endpoint-config/{name}"}

    def _describe_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        found = self._find("DescribeEndpointConfig", "endpoint configuration", self.configs, name)
        return found | {"EndpointConfigArn": f"{self._arn}endpoint-config/{name}"}

    def _create_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name, operation = request["EndpointName"], "CreateEndpoint"
        self._refuse_existing(operation, "endpoint", self.endpoints, name)
        self._find(operation, "endpoint configuration", self.configs, request["EndpointConfigName"])
        if self.endpoint_quota_message:
            raise refusal(operation, "ResourceLimitExceeded", self.endpoint_quota_message)
        arn = f"{self._arn}endpoint/{name}"
        self.endpoints[name] = {"Tags": []} | request | {"EndpointArn": arn}
        self._move(name, "Creating")
        return {"EndpointArn": arn}

    def _refuse_busy(self, operation: str, endpoint: dict[str, Any]) -> None:
        if endpoint["EndpointStatus"] in IN_PROGRESS:
            text = f'Cannot update in-progress endpoint "{endpoint["EndpointArn"]}".'
            raise refusal(operation, "ValidationException", text)

    def _update_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name, config, operation = request["EndpointName"], request["EndpointConfigName"], "UpdateEndpoint"
        endpoint = self._find(operation, "endpoint", self.endpoints, name)
        self._refuse_busy(operation, endpoint)
        if endpoint["EndpointStatus"] == "Failed":
            text = "DeleteEndpoint is the only operation that can be performed on a failed endpoint."
            raise refusal(operation, "ValidationException", text)
        new = self._find(operation, "endpoint configuration", self.configs, config)
        # Seen on AWS: an update needs the old configuration too.
        old = self._find(operation, "endpoint configuration", self.configs, endpoint["EndpointConfigName"])
        self._refuse_deployment(operation, old["ProductionVariants"][0], new["ProductionVariants"][0], request)
        if endpoint["EndpointConfigName"] == config:
            text = f'Cannot update endpoint "{name}" to the endpoint configuration that it has.'
            raise refusal(operation, "ValidationException", text)
        if self.endpoint_quota_message:
            raise refusal(operation, "ResourceLimitExceeded", self.endpoint_quota_message)
        endpoint["PendingDeploymentSummary"] = {"EndpointConfigName": config}
        endpoint["LastDeploymentConfig"] = request.get("DeploymentConfig")
        if not request.get("RetainAllVariantProperties"):
            endpoint.pop("scaled_to", None)
        self._move(name, "Updating")
        return {"EndpointArn": endpoint["EndpointArn"]}

    def _refuse_deployment(
        self, operation: str, old: dict[str, Any], new: dict[str, Any], request: dict[str, Any]
    ) -> None:
        """Developer guide: Serverless Inference, feature exclusions; deployment guardrails."""
        problem = ""
        deployment = request.get("DeploymentConfig", {})
        if "ServerlessConfig" in new and "ServerlessConfig" not in old:
            problem = "Cannot update an instance-based endpoint to a serverless endpoint."
        if "ServerlessConfig" in new and (deployment or request.get("RetainAllVariantProperties")):
            problem = "DeploymentConfig is not supported for serverless endpoints."
        routing = deployment.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
        size = routing.get("CanarySize") or routing.get("LinearStepSize")
        scaled = self.endpoints[request["EndpointName"]].get("scaled_to")
        count = scaled if scaled and request.get("RetainAllVariantProperties") else new.get("InitialInstanceCount", 0)
        if size and not (size["Value"] <= 50 and count * size["Value"] >= 100):
            problem = f"The step of {size['Value']} % does not fit {count} instances."
        if problem:
            raise refusal(operation, "ValidationException", problem)

    def _delete_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._find("DeleteEndpoint", "endpoint", self.endpoints, request["EndpointName"])
        self._refuse_busy("DeleteEndpoint", endpoint)
        del self.endpoints[request["EndpointName"]]
        return {}

    def _describe_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self._find("DescribeEndpoint", "endpoint", self.endpoints, request["EndpointName"])
        config = self.configs.get(endpoint["EndpointConfigName"], {"ProductionVariants": []})
        variants: list[dict[str, Any]] = []
        for variant in config["ProductionVariants"]:
            shown = {"VariantName": variant["VariantName"]}
            if "ServerlessConfig" in variant:
                shown["CurrentServerlessConfig"] = variant["ServerlessConfig"]
            else:
                shown["CurrentInstanceCount"] = endpoint.get("scaled_to", variant["InitialInstanceCount"])
            variants.append(shown)
        shown = {key: value for key, value in endpoint.items() if key not in ("Tags", "scaled_to")}
        return shown | {"ProductionVariants": variants}

    def _invoke_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self.endpoints.get(request["EndpointName"])
        if endpoint is None or endpoint["EndpointStatus"] in ("Creating", "Failed", "Deleting"):
            text = f"Endpoint {request['EndpointName']} of account {self._arn.split(':')[4]} not found."
            raise refusal("InvokeEndpoint", "ValidationError", text)
        job = endpoint["EndpointConfigName"].rpartition("-")[0]
        answer = self.answers.get(job, ("ham", 0.9))
        if isinstance(answer, Exception):
            raise answer
        answers = [{"label": answer[0], "score": answer[1]} for _ in json.loads(request["Body"])["inputs"]]
        return {"Body": io.BytesIO(json.dumps(answers).encode())}

    def _list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        kind, _, name = request["ResourceArn"].removeprefix(self._arn).partition("/")
        things = {"endpoint": self.endpoints, "endpoint-config": self.configs, "model": self.models}[kind]
        return {"Tags": self._find("ListTags", kind, things, name).get("Tags", [])}
