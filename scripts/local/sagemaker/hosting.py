"""Models, endpoint configs and endpoints: the API calls, and the servers behind an endpoint.

An endpoint's record has `Served`: the config and models that answer, or will answer, as they were when it
was created or updated. So neither a restart nor a rollback needs a config or model that has been deleted since.
`Pending`, while an update is under way, is the same for the new side, with the deployment settings of the update.
"""

import dataclasses
import http.client
import logging
import math
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from . import images, quotas, s3, toolkit
from .errors import ApiError, already_exists, not_found, null_member, unsupported, validation
from .events import endpoint_config_event, endpoint_event, model_event
from .logs import LogShipper
from .processes import Child
from .settings import Settings, later_than, now
from .store import ENDPOINT_CONFIGS, ENDPOINTS, MODELS, Record, Store

log = logging.getLogger("local.sagemaker")

_SERVE = str(Path(__file__).with_name("serve.py"))
_MEMORY_STEPS_MB = (1024, 2048, 3072, 4096, 5120, 6144)
# Environment of a container: total size, keys and values (ContainerDefinition, API reference).
_MAX_ENVIRONMENT_BYTES = 32 * 1024
# A container has 2 seconds to answer /ping (developer guide, inference code).
_PING_SECONDS = 2.0
_POLL_SECONDS = 0.05
# How often a server that exits before it is healthy is started, in all.
_STARTS = 3
_STOP_GRACE_SECONDS = 5.0
_MAX_RESTART_DELAY_SECONDS = 30.0
_ALARM_POLL_SECONDS = 0.25
_BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_DESCRIPTION = (
    "EndpointName",
    "EndpointArn",
    "EndpointConfigName",
    "EndpointStatus",
    "FailureReason",
    "CreationTime",
    "LastModifiedTime",
    "LastDeploymentConfig",
)
_UNSUPPORTED_VARIANT = (
    "AcceleratorType",
    "CoreDumpConfig",
    "InstancePools",
    "ManagedInstanceScaling",
    "CapacityReservationConfig",
)
_UNSUPPORTED_CONFIG = ("AsyncInferenceConfig", "ExplainerConfig", "ShadowProductionVariants")


class _Unhealthy(Exception):
    """A variant did not come up; the text is the endpoint's FailureReason."""


class _Alarmed(Exception):
    """An alarm of the deployment settings went off while traffic moved; the text says which, for the log."""


class _Cancelled(Exception):
    """The server is shutting down."""


class _Variant:
    """The running server of one production variant."""

    def __init__(
        self, settings: Settings, logs: LogShipper, s3_client: Any, endpoint: str, variant: Record, model: Record
    ) -> None:
        self.name = variant["VariantName"]
        self.weight = variant["InitialVariantWeight"]
        self._serverless = variant.get("ServerlessConfig")
        self.max_concurrency = self._serverless and self._serverless["MaxConcurrency"]
        self.in_flight = 0
        # On time.monotonic()'s clock: when a cold start is over, and when the container sleeps again.
        self._ready_at = self._asleep_at = -math.inf
        self._settings = settings
        self._s3 = s3_client
        self._variant = variant
        container = model.get("PrimaryContainer") or model["Containers"][0]
        self._model_url = container["ModelDataUrl"]
        self._environment = container.get("Environment", {})
        self._id = uuid.uuid4().hex[:17]
        self._folder = settings.state / "servers" / f"{endpoint}.{self._id}"
        self._port_file = self._folder / "port"
        self._model_folder = self._folder / "model"
        # What a serverless container has instead of this user's own.
        self._home, self._temporary = self._folder / "home", self._folder / "tmp"
        self._child: Child | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        group = f"/aws/sagemaker/Endpoints/{endpoint}"
        path = settings.state / "logs" / f"endpoint-{endpoint}.log"
        self._log = logs.open(group, f"{self.name}/{self._id}", path)

    def start(self, cancelled: threading.Event) -> None:
        """Download, start, wait until healthy; raises _Unhealthy or _Cancelled.

        Healthy is a server that answers /ping, whether or not its model is loaded or ever will be: see serve.py.
        """
        self._fetch()
        gate = self._settings.start_gate
        seconds = self._variant.get("ContainerStartupHealthCheckTimeoutInSeconds", self._settings.health_check_seconds)
        deadline = time.monotonic() + seconds
        unhealthy = (
            f"The primary container for production variant {self.name} did not pass the ping health check. "
            "Please check CloudWatch logs for this endpoint."
        )
        for attempt in range(1, _STARTS + 1):
            self._launch()
            assert self._child is not None
            while not self._child.ended.wait(_POLL_SECONDS):
                if cancelled.is_set():
                    raise _Cancelled
                if (gate is None or gate.exists()) and self._ping():
                    return
                if time.monotonic() >= deadline:
                    raise _Unhealthy(unhealthy)
            log.warning(
                "endpoint server %s: exit code %s at start %d of %d",
                self._log.stream, self._child.exit_code, attempt, _STARTS,
            )  # fmt: skip
        raise _Unhealthy(unhealthy)

    def watch(self) -> None:
        """Keep a healthy server alive: restart it, with growing pauses, whenever it exits."""
        threading.Thread(target=self._watch, name="endpoint-watch", daemon=True).start()

    def invoke(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of the model's answer; raises OSError, TimeoutError or HTTPException."""
        left = self._settings.invoke_seconds - self._wait_for_cold_start()
        if left <= 0:
            raise TimeoutError("the cold start took longer than an invocation may")
        connection = self._connect(left)
        try:
            connection.request("POST", "/invocations", body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()
            with self._lock:
                self._asleep_at = time.monotonic() + self._settings.idle_seconds

    def _wait_for_cold_start(self) -> float:
        """Wait until a serverless container is warm, at most as long as an invocation may last; returns the seconds.

        A cold start goes on when the caller's time is over: who asks again later waits for the rest of it.
        """
        if not self._serverless:
            return 0.0
        with self._lock:
            began = time.monotonic()
            if began >= self._asleep_at:
                self._ready_at = began + self._settings.cold_start_seconds
                self._asleep_at = self._ready_at + self._settings.idle_seconds
            seconds = max(0.0, self._ready_at - began)
        self._stopping.wait(min(seconds, self._settings.invoke_seconds))
        return seconds

    def stop(self) -> None:
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is not None:
            child.stop(_STOP_GRACE_SECONDS)
        self._log.close()
        s3.remove(self._folder)

    def _fetch(self) -> None:
        archive = self._folder / "model.tar.gz"
        try:
            s3.download(self._s3, self._model_url, archive)
        except s3.S3Error as exc:
            log.warning("model data: %s", exc)
            raise _Unhealthy(
                f'Failed to download model data for container "container_1" from URL: "{self._model_url}". '
                "Please ensure that there is an object located at the URL and that the role passed to "
                "CreateModel has permissions to download the object."
            ) from exc
        try:
            modes = s3.unpack(archive, self._model_folder)
        except s3.ArchiveError as exc:
            log.warning("model data %s: %s", self._model_url, exc)
            raise _Unhealthy(
                'Failed to extract model data archive for container "container_1" from URL '
                f'"{self._model_url}". Please ensure that the object located at the URL is a valid tar.gz '
                "archive."
            ) from exc
        archive.unlink()
        if self._serverless:
            s3.restrict_to_others(self._model_folder, modes)
            self._home.mkdir(mode=0o555)
            self._temporary.mkdir()
            self._temporary.chmod(0o1777)

    def _launch(self) -> None:
        settings = self._settings
        environment = toolkit.base_environment(
            settings.python, settings.region, settings.aws_endpoint, settings.pass_env
        )
        command = [settings.python, _SERVE]
        command += ["--model-dir", str(self._model_folder), "--port-file", str(self._port_file)]
        if self._serverless:
            # Its only folder to write to is /tmp; caches that follow HOME are not writable, as on AWS.
            environment.update(HOME=str(self._home), TMPDIR=str(self._temporary))
            environment.pop("HF_HOME", None)
            command += ["--serverless-mb", str(self._serverless["MemorySizeInMB"])]
        environment.update(self._environment)
        environment.setdefault("SAGEMAKER_REGION", settings.region)
        self._port_file.unlink(missing_ok=True)
        self._child = Child(command, env=environment, cwd=self._model_folder, on_line=self._log.write)

    def _watch(self) -> None:
        delay = 1.0
        while True:
            assert self._child is not None
            self._child.ended.wait()
            if self._stopping.is_set():
                return
            log.warning("endpoint server %s: exit code %s, starting again", self._log.stream, self._child.exit_code)
            if self._stopping.wait(delay):
                return
            delay = min(delay * 2, _MAX_RESTART_DELAY_SECONDS)
            with self._lock:
                if self._stopping.is_set():
                    return
                self._launch()

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        try:
            port = int(self._port_file.read_text(encoding="ascii"))
        except FileNotFoundError as exc:
            raise ConnectionRefusedError("the model server is not up") from exc
        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def _ping(self) -> bool:
        try:
            connection = self._connect(_PING_SECONDS)
        except ConnectionRefusedError:
            return False
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclasses.dataclass
class _Fleet:
    """The servers of one deployment of an endpoint.

    While an update moves the traffic step by step, `next` are the new servers, and `share` is their part of it.
    """

    variants: list[_Variant]
    instances: int
    next: "_Fleet | None" = None
    share: float = 0.0


class Hosting:
    """The hosting half of the service."""

    def __init__(self, settings: Settings, store: Store, s3_client: Any, logs: LogShipper) -> None:
        self._settings = settings
        self._store = store
        self._s3 = s3_client
        self._logs = logs
        self._cloudwatch = settings.client("cloudwatch")
        self._fleets: dict[str, _Fleet] = {}
        self._idle = threading.Condition(store.lock)
        self._shutdown = threading.Event()
        self._threads: set[threading.Thread] = set()

    # ---- Models ----------------------------------------------------------------------------------------

    def create_model(self, request: Record) -> Record:
        containers = [request["PrimaryContainer"]] if request.get("PrimaryContainer") else []
        containers += request.get("Containers") or []
        if not containers:
            raise null_member("primaryContainer")
        if len(containers) > 1:
            raise unsupported(f"{len(containers)} containers in a model, only 1")
        self._check_container(containers[0])
        name = request["ModelName"]
        arn = self._settings.arn("model", name)
        with self._store.lock:
            if self._store.get(MODELS, name):
                raise already_exists("model", arn)
            model = {**request, "ModelArn": arn, "CreationTime": now()}
            self._store.put(MODELS, name, model, model_event(self._settings, model))
        log.info("model %s created", name)
        return {"ModelArn": arn}

    def _check_container(self, container: Record) -> None:
        for member in ("ModelPackageName", "MultiModelConfig", "ModelDataSource", "AdditionalModelDataSources"):
            if container.get(member):
                raise unsupported(f"PrimaryContainer.{member}")
        if container.get("Mode", "SingleModel") != "SingleModel":
            raise unsupported(f"container mode {container['Mode']}")
        if not container.get("Image"):
            raise null_member("primaryContainer.image")
        images.check_model(self._settings.images, container["Image"])
        size = sum(len(key) + len(value) for key, value in container.get("Environment", {}).items())
        if size > _MAX_ENVIRONMENT_BYTES:
            raise validation(f"Environment is {size} bytes, more than {_MAX_ENVIRONMENT_BYTES}.")
        url = container.get("ModelDataUrl")
        if not url:
            raise unsupported("a model without ModelDataUrl")
        try:
            s3.split_uri(url)
        except ValueError as exc:
            raise unsupported(f"ModelDataUrl {url!r}: an s3:// URI") from exc
        if not url.endswith(".tar.gz"):
            raise validation(
                f"Invalid ModelDataUrl {url}: the model data must be a single gzip compressed tar archive "
                "(.tar.gz suffix)."
            )
        try:
            found = s3.exists(self._s3, url)
        except s3.S3Error as exc:
            raise ApiError("InternalFailure", f"S3 does not answer: {exc}", status=500) from exc
        if not found:
            raise validation(f"Could not find model data at {url}.")

    def describe_model(self, request: Record) -> Record:
        return _without_tags(self._model(request["ModelName"]))

    def delete_model(self, request: Record) -> Record:
        with self._store.lock:
            model = self._model(request["ModelName"])
            self._store.delete(MODELS, model["ModelName"], model_event(self._settings, model))
        log.info("model %s deleted", model["ModelName"])
        return {}

    def _model(self, name: str) -> Record:
        model = self._store.get(MODELS, name)
        if model is None:
            raise not_found("model", self._settings.arn("model", name))
        return model

    # ---- Endpoint configs ------------------------------------------------------------------------------

    def create_endpoint_config(self, request: Record) -> Record:
        for member in _UNSUPPORTED_CONFIG:
            if request.get(member):
                raise unsupported(member)
        name = request["EndpointConfigName"]
        arn = self._settings.arn("endpoint-config", name)
        variants = [{"InitialVariantWeight": 1.0, **variant} for variant in request["ProductionVariants"]]
        names = [variant["VariantName"] for variant in variants]
        if len(set(names)) != len(names):
            raise validation(f"Duplicate variant names in the endpoint configuration: {', '.join(names)}")
        with self._store.lock:
            if self._store.get(ENDPOINT_CONFIGS, name):
                raise already_exists("endpoint configuration", arn)
            for number, variant in enumerate(variants, 1):
                self._check_variant(request, variant, f"productionVariants.{number}.member")
            config = {
                **request,
                "ProductionVariants": variants,
                "EndpointConfigArn": arn,
                "CreationTime": now(),
            }
            self._store.put(ENDPOINT_CONFIGS, name, config, endpoint_config_event(self._settings, config))
        log.info("endpoint config %s created", name)
        return {"EndpointConfigArn": arn}

    def _check_variant(self, request: Record, variant: Record, path: str) -> None:
        for member in _UNSUPPORTED_VARIANT:
            if variant.get(member):
                raise unsupported(f"ProductionVariants.{member}")
        if not variant.get("ModelName"):
            raise null_member(f"{path}.modelName")
        model = self._model(variant["ModelName"])
        serverless = variant.get("ServerlessConfig")
        if serverless is None:
            for member in ("InstanceType", "InitialInstanceCount"):
                if not variant.get(member):
                    raise null_member(f"{path}.{member[:1].lower()}{member[1:]}")
            return
        if variant.get("InstanceType") or variant.get("InitialInstanceCount"):
            raise validation(
                "A production variant has either ServerlessConfig or InstanceType and InitialInstanceCount, not both."
            )
        if serverless["MemorySizeInMB"] not in _MEMORY_STEPS_MB:
            raise validation(
                f"Invalid MemorySizeInMB {serverless['MemorySizeInMB']} for variant {variant['VariantName']}: "
                f"must be one of {', '.join(map(str, _MEMORY_STEPS_MB))}."
            )
        if serverless.get("ProvisionedConcurrency", 0) > serverless["MaxConcurrency"]:
            raise validation("ProvisionedConcurrency must not be greater than MaxConcurrency.")
        # Developer guide, "Serverless Inference", feature exclusions.
        excluded = {
            "multiple production variants": len(request["ProductionVariants"]) > 1,
            "VpcConfig": bool(request.get("VpcConfig") or model.get("VpcConfig")),
            "network isolation": bool(request.get("EnableNetworkIsolation") or model.get("EnableNetworkIsolation")),
            "DataCaptureConfig": bool(request.get("DataCaptureConfig")),
        }
        for what, used in excluded.items():
            if used:
                raise validation(f"Serverless Inference does not support {what}.")

    def describe_endpoint_config(self, request: Record) -> Record:
        return _without_tags(self._config(request["EndpointConfigName"]))

    def delete_endpoint_config(self, request: Record) -> Record:
        with self._store.lock:
            config = self._config(request["EndpointConfigName"])
            event = endpoint_config_event(self._settings, config)
            self._store.delete(ENDPOINT_CONFIGS, config["EndpointConfigName"], event)
        log.info("endpoint config %s deleted", config["EndpointConfigName"])
        return {}

    def _config(self, name: str) -> Record:
        config = self._store.get(ENDPOINT_CONFIGS, name)
        if config is None:
            raise not_found("endpoint configuration", self._settings.arn("endpoint-config", name))
        return config

    # ---- Endpoints -------------------------------------------------------------------------------------

    def create_endpoint(self, request: Record) -> Record:
        name = request["EndpointName"]
        arn = self._settings.arn("endpoint", name)
        with self._store.lock:
            # Names are case-insensitive in CreateEndpoint (API reference).
            if any(other["EndpointName"].lower() == name.lower() for other in self._store.all(ENDPOINTS)):
                raise already_exists("endpoint", arn)
            served = self._resolve(request["EndpointConfigName"])
            _check_deployment(request, served)
            self._check_quotas(served, None)
            created = now()
            endpoint = {
                "EndpointName": name,
                "EndpointArn": arn,
                "EndpointConfigName": request["EndpointConfigName"],
                "CreationTime": created,
                "LastModifiedTime": created,
                "Tags": request.get("Tags", []),
                "Served": served,
            }
            if request.get("DeploymentConfig"):
                endpoint["LastDeploymentConfig"] = request["DeploymentConfig"]
            self._move(endpoint, "Creating")
            self._spawn(self._create, name)
        return {"EndpointArn": arn}

    def update_endpoint(self, request: Record) -> Record:
        name = request["EndpointName"]
        config_name = request["EndpointConfigName"]
        with self._store.lock:
            endpoint = self._endpoint(name)
            self._check_idle(endpoint)
            if endpoint["EndpointStatus"] == "Failed":
                raise validation(
                    f'Cannot update failed endpoint "{endpoint["EndpointArn"]}". DeleteEndpoint is the only '
                    "operation that can be performed on a failed endpoint."
                )
            pending = self._resolve(config_name)
            if config_name == endpoint["EndpointConfigName"]:
                raise validation(
                    f'Cannot update endpoint "{endpoint["EndpointArn"]}" with the endpoint configuration '
                    f'"{pending["Config"]["EndpointConfigArn"]}" that it already uses.'
                )
            # Seen on AWS: an update needs the old configuration too.
            self._config(endpoint["EndpointConfigName"])
            if _is_serverless(pending) and not _is_serverless(endpoint["Served"]):
                raise validation(
                    f'Cannot update an instance-based endpoint to a serverless endpoint: "{endpoint["EndpointArn"]}".'
                )
            _check_deployment(request, pending)
            self._check_quotas(pending, endpoint)
            if request.get("DeploymentConfig"):
                endpoint["LastDeploymentConfig"] = request["DeploymentConfig"]
            elif not request.get("RetainDeploymentConfig"):
                endpoint.pop("LastDeploymentConfig", None)
            if request.get("RetainAllVariantProperties"):
                _retain(endpoint["Served"], pending, request.get("ExcludeRetainedVariantProperties", []))
            endpoint["Pending"] = {
                **pending,
                "StartTime": now(),
                "DeploymentConfig": endpoint.get("LastDeploymentConfig", {}),
                "VariantStatus": {"Status": "Creating", "StartTime": now()},
            }
            self._move(endpoint, "Updating")
            self._spawn(self._update, name)
        return {"EndpointArn": endpoint["EndpointArn"]}

    def delete_endpoint(self, request: Record) -> Record:
        name = request["EndpointName"]
        with self._store.lock:
            endpoint = self._endpoint(name)
            self._check_idle(endpoint)
            self._move(endpoint, "Deleting")
            self._spawn(self._delete, name)
        return {}

    def describe_endpoint(self, request: Record) -> Record:
        endpoint = self._endpoint(request["EndpointName"])
        answer = {name: endpoint[name] for name in _DESCRIPTION if name in endpoint}
        config = endpoint["Served"]["Config"]
        if "DataCaptureConfig" in config:
            captured = config["DataCaptureConfig"]
            answer["DataCaptureConfig"] = {
                "EnableCapture": captured.get("EnableCapture", False),
                "CaptureStatus": "Stopped",
                "CurrentSamplingPercentage": captured["InitialSamplingPercentage"],
                "DestinationS3Uri": captured["DestinationS3Uri"],
                "KmsKeyId": captured.get("KmsKeyId", ""),
            }
        if endpoint["EndpointStatus"] not in ("Creating", "Failed"):
            answer["ProductionVariants"] = [_variant_summary(item) for item in _variants(endpoint["Served"])]
        pending = endpoint.get("Pending")
        if pending:
            answer["PendingDeploymentSummary"] = {
                "EndpointConfigName": pending["Config"]["EndpointConfigName"],
                "StartTime": pending["StartTime"],
                "ProductionVariants": [
                    {**_variant_summary(item), "VariantStatus": [pending["VariantStatus"]]}
                    for item in _variants(pending)
                ],
            }
        return answer

    def _endpoint(self, name: str) -> Record:
        endpoint = self._store.get(ENDPOINTS, name)
        if endpoint is None:
            raise not_found("endpoint", self._settings.arn("endpoint", name))
        return endpoint

    def _check_idle(self, endpoint: Record) -> None:
        if endpoint["EndpointStatus"] in _BUSY:
            raise validation(f'Cannot update in-progress endpoint "{endpoint["EndpointArn"]}".')

    def _resolve(self, config_name: str) -> Record:
        config = self._config(config_name)
        models = {item["ModelName"]: self._model(item["ModelName"]) for item in config["ProductionVariants"]}
        return {"Config": config, "Models": models}

    def _check_quotas(self, wanted: Record, updating: Record | None) -> None:
        """Instances per type, serverless memory, count and concurrency.

        While an update lasts, its second fleet counts beside the first one. Whether AWS counts concurrency like that is
        not known; if it does not, it is less strict than this.
        """
        live = [item for item in self._store.all(ENDPOINTS) if item["EndpointStatus"] != "Failed"]
        in_use = [other for item in live for other in [*_variants(item["Served"]), *_variants(item.get("Pending"))]]
        for variant in wanted["Config"]["ProductionVariants"]:
            serverless = variant.get("ServerlessConfig")
            if serverless:
                quotas.check(self._settings.quotas, quotas.SERVERLESS_MEMORY, 0, serverless["MemorySizeInMB"], "MBs")
                if updating is None:
                    used = sum(_is_serverless(item["Served"]) for item in live)
                    quotas.check(self._settings.quotas, quotas.SERVERLESS_ENDPOINTS, used, 1, "Endpoints")
                used = sum(other.get("ServerlessConfig", {}).get("MaxConcurrency", 0) for other in in_use)
                wanted_count = serverless["MaxConcurrency"]
                quotas.check(self._settings.quotas, quotas.SERVERLESS_CONCURRENCY, used, wanted_count, "Invocations")
                continue
            kind = variant["InstanceType"]
            quotas.check_region(self._settings.missing_types, "endpoint", kind)
            used = sum(other.get("InitialInstanceCount", 0) for other in in_use if other.get("InstanceType") == kind)
            wanted_count = variant["InitialInstanceCount"]
            quotas.check(self._settings.quotas, f"{kind} for endpoint usage", used, wanted_count)

    # ---- Invocation ------------------------------------------------------------------------------------

    def invoke(self, name: str, body: bytes, headers: dict[str, str], target: str | None) -> Record:
        """InvokeEndpoint: {"Body", "ContentType", "Variant", "CustomAttributes"?}; raises ApiError.

        `headers` go to the container; `target` is the TargetVariant.
        """
        variant = self._take(name, target)
        try:
            status, answer, answered = variant.invoke(body, headers)
        except TimeoutError as exc:
            raise self._model_error(
                name, 0, "Your invocation timed out while waiting for a response from container primary. "
                "Review the latency metrics for each container in Amazon CloudWatch, resolve the issue, and "
                "try again.",
            ) from exc  # fmt: skip
        except ConnectionRefusedError as exc:
            raise _unavailable(name) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise self._model_error(name, 500, f"The container closed the connection: {exc!r}") from exc
        finally:
            with self._idle:
                variant.in_flight -= 1
                self._idle.notify_all()
        if status >= 400:
            raise self._model_error(name, status, answer.decode("utf-8", "replace"))
        result = {
            "Body": answer,
            "ContentType": answered.get("Content-Type", "application/json"),
            "Variant": variant.name,
        }
        if "X-Amzn-SageMaker-Custom-Attributes" in answered:
            result["CustomAttributes"] = answered["X-Amzn-SageMaker-Custom-Attributes"]
        return result

    def _take(self, name: str, target: str | None) -> _Variant:
        """The variant for a request, counted as in flight in the same step as it is chosen."""
        with self._idle:
            endpoint = self._store.get(ENDPOINTS, name)
            if endpoint is None or endpoint["EndpointStatus"] in ("Creating", "Failed", "Deleting"):
                raise ApiError("ValidationError", f"Endpoint {name} of account {self._settings.account} not found.")
            fleet = self._fleets.get(name)
            if fleet is None:
                raise _unavailable(name)
            if fleet.next is not None and random.random() < fleet.share:
                fleet = fleet.next
            variants = fleet.variants
            if target:
                variants = [item for item in variants if item.name == target]
                if not variants:
                    raise ApiError("ValidationError", f"Variant {target} not found for request.")
            weights = [item.weight for item in variants]
            if sum(weights) == 0:
                weights = [1.0] * len(variants)
            variant = random.choices(variants, weights)[0]
            if variant.max_concurrency is not None and variant.in_flight >= variant.max_concurrency:
                raise ApiError(
                    "ThrottlingException",
                    f"Rate exceeded: endpoint {name} runs its {variant.max_concurrency} concurrent invocations.",
                )
            variant.in_flight += 1
            return variant

    def _model_error(self, name: str, status: int, text: str) -> ApiError:
        side = "client" if 400 <= status < 500 else "server"
        region, account = self._settings.region, self._settings.account
        return ApiError(
            "ModelError",
            f'Received {side} error ({status}) from primary with message "{text}". See https://{region}.console.'
            f"aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group=/aws/sagemaker/Endpoints/{name} "
            f"in account {account} for more information.",
            status=424,
            OriginalStatusCode=status,
            OriginalMessage=text,
            LogStreamArn=f"arn:aws:logs:{region}:{account}:log-group:/aws/sagemaker/Endpoints/{name}",
        )

    # ---- Life of endpoints -----------------------------------------------------------------------------

    def start(self) -> None:
        """Continue what an earlier server left; the package says what happens in each status."""
        s3.remove(self._settings.state / "servers")
        with self._store.lock:
            for endpoint in self._store.all(ENDPOINTS):
                name, status = endpoint["EndpointName"], endpoint["EndpointStatus"]
                if status == "Creating":
                    self._spawn(self._create, name)
                elif status == "Deleting":
                    self._spawn(self._delete, name)
                elif status == "InService":
                    self._spawn(self._recover, name)
                elif status in ("Updating", "RollingBack"):
                    if status == "Updating":
                        endpoint.pop("Pending")
                        self._move(endpoint, "RollingBack")
                    self._spawn(self._recover, name)

    def shutdown(self) -> None:
        """Stop every server. The records stay: the next start brings them up again."""
        self._shutdown.set()
        with self._store.lock:
            threads = list(self._threads)
            fleets = list(self._fleets.values())
            self._fleets.clear()
        stoppers = [threading.Thread(target=_stop_fleet, args=(fleet,)) for fleet in fleets]
        for stopper in stoppers:
            stopper.start()
        for thread in [*threads, *stoppers]:
            thread.join(2 * _STOP_GRACE_SECONDS)

    def _spawn(self, work: Any, name: str) -> None:
        def run() -> None:
            try:
                work(name)
            except _Cancelled:
                log.info("endpoint %s interrupted: the server stops", name)
            except Exception:
                log.exception("endpoint %s: error of this server", name)
                self._give_up(name)
            finally:
                with self._store.lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=f"endpoint-{name}", daemon=True)
        with self._store.lock:
            self._threads.add(thread)
        thread.start()

    def _give_up(self, name: str) -> None:
        """After an error of this server: nothing may stay busy forever."""
        with self._store.lock:
            endpoint = self._store.get(ENDPOINTS, name)
            if not endpoint or endpoint["EndpointStatus"] not in _BUSY:
                return
            endpoint.pop("Pending", None)
            if name in self._fleets:
                self._move(endpoint, "InService")
            else:
                endpoint["FailureReason"] = "Request to service failed: error of the local SageMaker, see its log."
                self._move(endpoint, "Failed")

    def _move(self, endpoint: Record, status: str) -> None:
        """Give the endpoint a status and store it with its event. Hold the store's lock."""
        endpoint["EndpointStatus"] = status
        endpoint["LastModifiedTime"] = later_than(endpoint["LastModifiedTime"])
        name = endpoint["EndpointName"]
        self._store.put(ENDPOINTS, name, endpoint, endpoint_event(self._settings, endpoint))
        reason = f": {endpoint['FailureReason']}" if "FailureReason" in endpoint else ""
        log.info("endpoint %s: %s, config %s%s", name, status, endpoint["EndpointConfigName"], reason)

    def _create(self, name: str) -> None:
        endpoint = self._endpoint(name)
        try:
            fleet = self._bring_up(name, endpoint["Served"])
        except _Unhealthy as exc:
            with self._store.lock:
                endpoint = self._endpoint(name)
                endpoint["FailureReason"] = str(exc)
                self._move(endpoint, "Failed")
            return
        with self._store.lock:
            self._fleets[name] = fleet
            self._move(self._endpoint(name), "InService")

    def _update(self, name: str) -> None:
        """Blue/green: the old servers answer until the new ones are healthy, then the traffic moves."""
        try:
            pending = self._endpoint(name)["Pending"]
            fleet = self._bring_up(name, pending)
            self._move_traffic(name, fleet, pending["DeploymentConfig"])
        except (_Unhealthy, _Alarmed) as exc:
            log.warning("endpoint %s: update failed, rolling back: %s", name, exc)
            with self._store.lock:
                endpoint = self._endpoint(name)
                endpoint.pop("Pending")
                self._move(endpoint, "RollingBack")
            with self._store.lock:
                served = name in self._fleets
                if served:
                    self._move(self._endpoint(name), "InService")
            if not served:
                self._recover(name)
            return
        with self._store.lock:
            endpoint = self._endpoint(name)
            pending = endpoint.pop("Pending")
            endpoint["Served"] = {"Config": pending["Config"], "Models": pending["Models"]}
            endpoint["EndpointConfigName"] = pending["Config"]["EndpointConfigName"]
            endpoint.pop("FailureReason", None)
            old = self._fleets.get(name)
            self._fleets[name] = fleet
            self._move(endpoint, "InService")
        if old is not None:
            self._drain(old)

    def _move_traffic(self, name: str, fleet: _Fleet, deployment: Record) -> None:
        """Give the new servers their traffic in the steps of the deployment settings, watching the alarms.

        Between two steps WaitIntervalInSeconds pass, after the last one TerminationWaitInSeconds. The old servers
        stay until then, and get all traffic back when an alarm is in ALARM at any moment (developer guide,
        "Auto-Rollback Configuration and Monitoring"). Raises _Alarmed; then, as after any error, `fleet` is stopped.
        """
        policy = deployment.get("BlueGreenUpdatePolicy", {})
        routing = policy.get("TrafficRoutingConfiguration", {})
        alarms = [alarm["AlarmName"] for alarm in deployment.get("AutoRollbackConfiguration", {}).get("Alarms", [])]
        shares = _shares(routing, fleet)
        waits = [routing.get("WaitIntervalInSeconds", 0)] * (len(shares) - 1)
        try:
            for share, seconds in zip(shares, [*waits, policy.get("TerminationWaitInSeconds", 0)], strict=True):
                with self._store.lock:
                    old = self._fleets.get(name)
                    if old is not None:
                        old.next, old.share = fleet, share
                    endpoint = self._endpoint(name)
                    endpoint["Pending"]["VariantStatus"] = {"Status": "Baking", "StartTime": now()}
                    self._store.put(ENDPOINTS, name, endpoint)
                log.info("endpoint %s: %.0f %% of the traffic on the new servers", name, 100 * share)
                self._bake(seconds, alarms)
        except BaseException:
            with self._idle:
                if old is not None:
                    old.next, old.share = None, 0.0
            self._drain(fleet)
            raise

    def _bake(self, seconds: float, alarms: list[str]) -> None:
        """Wait while traffic flows. Raises _Alarmed as soon as an alarm is in ALARM, or cannot be read."""
        deadline = time.monotonic() + seconds
        while True:
            if alarms:
                try:
                    found = self._cloudwatch.describe_alarms(AlarmNames=alarms)["MetricAlarms"]
                except (BotoCoreError, ClientError) as exc:
                    raise _Alarmed(f"the alarms cannot be read: {exc}") from exc
                names = [alarm["AlarmName"] for alarm in found if alarm["StateValue"] == "ALARM"]
                if names:
                    raise _Alarmed(f"in ALARM: {', '.join(names)}")
            left = deadline - time.monotonic()
            if self._shutdown.wait(min(_ALARM_POLL_SECONDS, max(0.0, left))):
                raise _Cancelled
            if left <= 0:
                return

    def _delete(self, name: str) -> None:
        with self._store.lock:
            fleet = self._fleets.pop(name, None)
        if fleet is not None:
            self._drain(fleet)
        with self._store.lock:
            self._store.delete(ENDPOINTS, name)
        log.info("endpoint %s deleted", name)

    def _recover(self, name: str) -> None:
        """Bring the servers up again after a restart of this server, for as long as it takes."""
        config_name = self._endpoint(name)["EndpointConfigName"]
        delay = 1.0
        while True:
            with self._store.lock:
                endpoint = self._to_recover(name, config_name)
            if endpoint is None:
                return
            try:
                fleet = self._bring_up(name, endpoint["Served"])
                break
            except _Unhealthy as exc:
                if self._rollback_failed(name, config_name, str(exc)):
                    return
                log.warning("endpoint %s does not come up after the restart, still trying: %s", name, exc)
            if self._shutdown.wait(delay):
                raise _Cancelled
            delay = min(delay * 2, _MAX_RESTART_DELAY_SECONDS)
        with self._store.lock:
            endpoint = self._to_recover(name, config_name)
            if endpoint is not None:
                self._fleets[name] = fleet
                if endpoint["EndpointStatus"] == "RollingBack":
                    self._move(endpoint, "InService")
                log.info("endpoint %s: serving again", name)
                return
        _stop_fleet(fleet)

    def _rollback_failed(self, name: str, config_name: str, reason: str) -> bool:
        """An endpoint that is rolling back must end in some status: Failed, when its old servers do not come up."""
        with self._store.lock:
            endpoint = self._to_recover(name, config_name)
            if endpoint is None or endpoint["EndpointStatus"] != "RollingBack":
                return False
            endpoint["FailureReason"] = reason
            self._move(endpoint, "Failed")
            return True

    def _to_recover(self, name: str, config_name: str) -> Record | None:
        """The endpoint, unless it has been deleted, updated or recovered since. Hold the store's lock."""
        endpoint = self._store.get(ENDPOINTS, name)
        if endpoint is None or endpoint["EndpointStatus"] == "Deleting" or name in self._fleets:
            return None
        return endpoint if endpoint["EndpointConfigName"] == config_name else None

    def _bring_up(self, name: str, side: Record) -> _Fleet:
        """Servers for every variant, all healthy; on failure none is left. Raises _Unhealthy, _Cancelled."""
        fleet = _Fleet([], instances=min(variant.get("InitialInstanceCount", 1) for variant in _variants(side)))
        try:
            for variant in _variants(side):
                server = _Variant(
                    self._settings, self._logs, self._s3, name, variant, side["Models"][variant["ModelName"]]
                )
                fleet.variants.append(server)
                server.start(self._shutdown)
            if self._shutdown.is_set():
                raise _Cancelled
        except BaseException:
            _stop_fleet(fleet)
            raise
        for server in fleet.variants:
            server.watch()
        return fleet

    def _drain(self, fleet: _Fleet) -> None:
        """Stop a fleet that gets no new requests, once those in flight are answered."""
        with self._idle:
            self._idle.wait_for(
                lambda: not any(variant.in_flight for variant in fleet.variants) or self._shutdown.is_set(),
                self._settings.invoke_seconds,
            )
        _stop_fleet(fleet)


def _stop_fleet(fleet: _Fleet) -> None:
    for variant in fleet.variants:
        variant.stop()


def _unavailable(name: str) -> ApiError:
    return ApiError(
        "ServiceUnavailable", f"The model server of endpoint {name} is starting again; try later.", status=503
    )


def _without_tags(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "Tags"}


def _variants(side: Record | None) -> list[Record]:
    return side["Config"]["ProductionVariants"] if side else []


def _is_serverless(side: Record) -> bool:
    return any("ServerlessConfig" in variant for variant in _variants(side))


def _variant_summary(variant: Record) -> Record:
    weight = variant["InitialVariantWeight"]
    summary = {"VariantName": variant["VariantName"], "CurrentWeight": weight, "DesiredWeight": weight}
    if "ServerlessConfig" in variant:
        summary["CurrentServerlessConfig"] = summary["DesiredServerlessConfig"] = variant["ServerlessConfig"]
        summary["CurrentInstanceCount"] = 0
    else:
        count = variant["InitialInstanceCount"]
        summary["CurrentInstanceCount"] = summary["DesiredInstanceCount"] = count
    return summary


def _shares(routing: Record, fleet: _Fleet) -> list[float]:
    """The new servers' part of the traffic after each step of a TrafficRoutingConfiguration; the last one is 1."""
    size = routing.get("CanarySize") or routing.get("LinearStepSize")
    if routing.get("Type") not in ("CANARY", "LINEAR") or not size:
        return [1.0]
    step = size["Value"] / (100 if size["Type"] == "CAPACITY_PERCENT" else fleet.instances)
    steps = math.ceil(1 / step) if routing["Type"] == "LINEAR" else 2
    return [*(step * number for number in range(1, steps)), 1.0]


def _retain(old: Record, new: Record, excluded: list[Record]) -> None:
    """RetainAllVariantProperties: the new side keeps weights and counts of variants of the same name."""
    names = {item["VariantPropertyType"] for item in excluded}
    before = {item["VariantName"]: item for item in _variants(old)}
    for variant in _variants(new):
        previous = before.get(variant["VariantName"])
        if previous is None:
            continue
        if "DesiredWeight" not in names:
            variant["InitialVariantWeight"] = previous["InitialVariantWeight"]
        if "DesiredInstanceCount" not in names and "InitialInstanceCount" in previous and "InstanceType" in variant:
            variant["InitialInstanceCount"] = previous["InitialInstanceCount"]


def _check_deployment(request: Record, side: Record) -> None:
    """DeploymentConfig: not with serverless, one policy, a canary that fits (deployment guardrails)."""
    deployment = request.get("DeploymentConfig")
    if not deployment:
        return
    if _is_serverless(side):
        raise validation("DeploymentConfig is not supported for serverless endpoints.")
    if deployment.get("BlueGreenUpdatePolicy") and deployment.get("RollingUpdatePolicy"):
        raise validation("Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy can be specified.")
    routing = deployment.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    for kind, member in (("CANARY", "CanarySize"), ("LINEAR", "LinearStepSize")):
        if routing.get("Type") != kind:
            continue
        size = routing.get(member)
        if size is None:
            raise validation(f"{member} is required for traffic routing type {kind}.")
        count = min(variant["InitialInstanceCount"] for variant in _variants(side))
        share = size["Value"] if size["Type"] == "CAPACITY_PERCENT" else 100 * size["Value"] / count
        if share > 50 or (size["Type"] == "CAPACITY_PERCENT" and count * size["Value"] < 100):
            raise validation(
                f"{member} {size['Value']} ({size['Type']}) does not fit {count} instances: it must be at least "
                "one instance and at most 50% of the capacity."
            )
