"""State changes as EventBridge sends them, and their delivery.

Shapes: AWS documentation, "Events that Amazon SageMaker AI sends to Amazon EventBridge". Times inside
`detail` are epoch milliseconds, tags are a map, and an endpoint's status is UPPER_SNAKE (``IN_SERVICE``)
although the API says ``InService``.
"""

import datetime
import http.client
import json
import logging
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable
from typing import Any

from .settings import Settings
from .store import Record, Store

log = logging.getLogger("local.sagemaker")

_ATTEMPTS = 12
_FIRST_DELAY_SECONDS = 0.1
_MAX_DELAY_SECONDS = 5.0
_POST_TIMEOUT_SECONDS = 30.0

_TRAINING_MEMBERS = (
    "TrainingJobName",
    "TrainingJobArn",
    "TrainingJobStatus",
    "SecondaryStatus",
    "FailureReason",
    "HyperParameters",
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "StoppingCondition",
)
_TRAINING_TIMES = ("CreationTime", "TrainingStartTime", "TrainingEndTime", "LastModifiedTime")


def training_event(settings: Settings, job: Record) -> Record | None:
    detail = {name: job[name] for name in _TRAINING_MEMBERS if name in job}
    detail.update({name: _millis(job[name]) for name in _TRAINING_TIMES if name in job})
    detail["SecondaryStatusTransitions"] = [
        {key: _millis(value) if key.endswith("Time") else value for key, value in transition.items()}
        for transition in job["SecondaryStatusTransitions"]
    ]
    return _envelope(settings, "SageMaker Training Job State Change", job["TrainingJobArn"], detail, job)


def endpoint_event(settings: Settings, endpoint: Record) -> Record | None:
    variants = []
    for variant in endpoint["Served"]["Config"]["ProductionVariants"]:
        summary = {"VariantName": variant["VariantName"], "DesiredWeight": variant["InitialVariantWeight"]}
        if "ServerlessConfig" in variant:
            summary["DesiredServerlessConfig"] = variant["ServerlessConfig"]
        else:
            summary["DesiredInstanceCount"] = variant["InitialInstanceCount"]
        variants.append(summary)
    detail = {
        "EndpointName": endpoint["EndpointName"],
        "EndpointArn": endpoint["EndpointArn"],
        "EndpointConfigName": endpoint["EndpointConfigName"],
        "ProductionVariants": variants,
        "EndpointStatus": _upper_snake(endpoint["EndpointStatus"]),
        "CreationTime": _millis(endpoint["CreationTime"]),
        "LastModifiedTime": _millis(endpoint["LastModifiedTime"]),
    }
    if "FailureReason" in endpoint:
        detail["FailureReason"] = endpoint["FailureReason"]
    return _envelope(settings, "SageMaker Endpoint State Change", endpoint["EndpointArn"], detail, endpoint)


def model_event(settings: Settings, model: Record) -> Record | None:
    members = ("ModelName", "PrimaryContainer", "Containers", "ExecutionRoleArn", "VpcConfig", "ModelArn")
    detail = {name: model[name] for name in members if name in model}
    detail["CreationTime"] = _millis(model["CreationTime"])
    return _envelope(settings, "SageMaker Model State Change", model["ModelArn"], detail, model)


def endpoint_config_event(settings: Settings, config: Record) -> Record | None:
    members = ("EndpointConfigName", "EndpointConfigArn", "ProductionVariants", "DataCaptureConfig")
    detail = {name: config[name] for name in members if name in config}
    detail["CreationTime"] = _millis(config["CreationTime"])
    return _envelope(settings, "SageMaker Endpoint Config State Change", config["EndpointConfigArn"], detail, config)


def tag_map(tags: Iterable[Record]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}


def _envelope(settings: Settings, kind: str, arn: str, detail: Record, owner: Record) -> Record | None:
    """The full envelope, or None when nobody listens."""
    if settings.events_url is None:
        return None
    detail["Tags"] = tag_map(owner.get("Tags", []))
    time = datetime.datetime.now(datetime.UTC)
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": kind,
        "source": "aws.sagemaker",
        "account": settings.account,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": settings.region,
        "resources": [arn],
        "detail": detail,
    }


def _millis(seconds: float) -> int:
    return round(seconds * 1000)


def _upper_snake(status: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", status).upper()


class EventSender:
    """Background thread: POSTs the store's undelivered events, oldest first, one at a time.

    An event that cannot be delivered is tried `_ATTEMPTS` times with growing pauses (about half a minute),
    then dropped with a log line: SageMaker's own delivery is best effort too. A 4xx answer is final.
    """

    def __init__(self, store: Store, url: str) -> None:
        self._store = store
        self._url = url
        # A proxy from the environment must not be used for a local receiver.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Deliver what is there for up to the given time, then end; the rest stays in the store."""
        with self._store.changed:
            self._store.changed.wait_for(lambda: self._store.next_event() is None, timeout_seconds)
            self._stop.set()
            self._store.changed.notify_all()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._store.changed:
                self._store.changed.wait_for(lambda: self._stop.is_set() or self._store.next_event())
                event = self._store.next_event()
            if self._stop.is_set() or event is None:
                return
            seq, envelope = event
            if self._deliver(envelope):
                with self._store.changed:
                    self._store.event_done(seq)
                    self._store.changed.notify_all()

    def _deliver(self, envelope: dict[str, Any]) -> bool:
        """True when the event was delivered or dropped; False when the sender was stopped before."""
        body = json.dumps(envelope).encode()
        delay = _FIRST_DELAY_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            request = urllib.request.Request(
                self._url, data=body, headers={"Content-Type": "application/json"}, method="POST"
            )
            try:
                with self._opener.open(request, timeout=_POST_TIMEOUT_SECONDS):
                    return True
            except urllib.error.HTTPError as exc:
                problem, final = f"answered {exc.code}", 400 <= exc.code < 500 and exc.code not in (408, 429)
                exc.close()
            except (OSError, http.client.HTTPException) as exc:
                problem, final = f"{exc}", False
            if final or attempt == _ATTEMPTS:
                log.error(
                    "event given up after %d attempts: %s %s: %s %s",
                    attempt, envelope["detail-type"], envelope["resources"][0], self._url, problem,
                )  # fmt: skip
                return True
            if self._stop.wait(delay):
                return False
            delay = min(delay * 2, _MAX_DELAY_SECONDS)
        raise AssertionError("unreachable: the last attempt returns")
