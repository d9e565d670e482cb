"""The world that a handler acts on, for tests: SageMaker is the strict fake; S3 and SNS are moto, or FastClients.

moto lacks some of AWS's refusals that the handlers rely on; they are added here: CopySourceIfMatch, and the rules
for an SNS subject. Conditional PutObject and GetObject work in moto as they do on AWS. FastClients are in memory, and
for tests that run a handler thousands of times.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_api._internal import mock_random
from moto.s3.models import FakeDeleteMarker, s3_backends
from moto.sns.models import sns_backends

from calls import HANDLERS as HANDLERS
from calls import record
from fake_s3 import FakeS3, FakeSNS, check_publish
from fake_sagemaker import FakeSageMaker, refusal

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "atml-models-bucket"
PROGRAM_KEY = "code/training.tar.gz"  # Terraform writes it
REGION = "us-east-1"
ENDPOINT = "mlops-endpoint"
SWEEP = {"source": "sweep"}
# The names that Terraform makes for this bucket.
TOPIC_ARN = f"arn:aws:sns:{REGION}:{DEFAULT_ACCOUNT_ID}:mlops-notifications-{BUCKET}"
TRAINING_ROLE_ARN = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/mlops-training-{BUCKET}"
ROLE_ARN = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/mlops-model-{BUCKET}"

COMMON = {"BUCKET": BUCKET, "PROJECT": "mlops", "TOPIC_ARN": TOPIC_ARN}
ENVIRONMENT = {
    "training_orchestrator": COMMON
    | {
        "TRAINING_ROLE_ARN": TRAINING_ROLE_ARN,
        "TRAINING_IMAGE": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.13.0-cpu-amzn2023-sagemaker",
        "TRAINING_SOURCE_HASH": "0" * 64,
        "TRAINING_SOURCE_URI": f"s3://{BUCKET}/{PROGRAM_KEY}",
        "TRAINING_INSTANCE_TYPE": "ml.m5.xlarge",
        "TRAINING_INSTANCE_COUNT": "1",
        "TRAINING_VOLUME_GB": "30",
        "TRAINING_MAX_RUNTIME_SECONDS": "7200",
        "TRAINING_MAX_WAIT_SECONDS": "",
        "MAX_CONCURRENT_TRAINING_JOBS": "2",
        "MAX_TRAINING_JOBS_PER_DAY": "20",
        "MAX_MODELS": "5",
        "MODELS": "",
        "HYPERPARAMETERS": '{"epochs": "3", "learning_rate": "5e-5", "seed": "42"}',
        "BASE_MODEL": "distilbert-base-uncased",
        "BASE_MODELS": "{}",
        "BASE_MODEL_ENGLISH": "sentence-transformers/all-MiniLM-L6-v2@c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "BASE_MODEL_MULTILINGUAL": "intfloat/multilingual-e5-small@c007d7ef6fd86656326059b28395a7a03a7c5846",
        "BASE_MODEL_REVISION": "",
        "CANDIDATES": "auto",
        "TEXT_COLUMN": "text",
        "LABEL_COLUMN": "label",
        "MAX_ROWS_LEFT_OUT": "0.05",
        "HUB_TOKEN_SECRET_ARN": "",
        "KMS_KEY_ARN": "",
    },
    "model_evaluator": COMMON
    | {
        "THRESHOLDS": '{"accuracy": {"min": 0.8}, "eval_loss": {"max": 0.5}}',
        "MODEL_THRESHOLDS": '{"strict": {"accuracy": {"min": 0.99}}}',
        "CHAMPION_MARGIN": "0.005",
        "ACCEPT_UNCOMPARED": "",
    },
    "deployment_orchestrator": COMMON
    | {
        "ENDPOINT_NAME": ENDPOINT,
        "MODEL_ROLE_ARN": ROLE_ARN,
        "INFERENCE_IMAGE": "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-inference:2.6.0",
        "ENDPOINT_TYPE": "serverless",
        "SERVERLESS_MEMORY_MB": "3072",
        "SERVERLESS_MAX_CONCURRENCY": "5",
        "ENDPOINT_INSTANCE_TYPE": "ml.m5.large",
        "ENDPOINT_INSTANCE_COUNT": "1",
        "KEEP_MODELS": "2",
        "DEPLOYMENT_POLICY": "{}",
    },
}
# What differs between two equal runs: times, request ids, the number of tries.
VOLATILE = ("at", "by", "tries", "unanswered", "ended", "started_at", "decided_at", "rejected_at")
GOOD_METRICS = {"accuracy": 0.9, "eval_loss": 0.3, "train_examples": 80, "holdout_examples": 20}
CSV = b"text,label\nhello,ham\nsee you at noon,ham\nwin a prize,spam\nyou have won,spam\n"


class Watched(Mapping[str, str]):
    """An environment that remembers which of its variables were asked for."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def load_handler(name: str) -> ModuleType:
    """A handler under a name of its own: all three files are called handler.py, and lambda is a keyword."""
    spec = importlib.util.spec_from_file_location(f"{name}_handler", ROOT / "lambda" / name / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up while the file runs.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def event(name: str) -> dict[str, Any]:
    """A sample event by its file's name, after the samples in AWS's documentation."""
    return dict(json.loads((ROOT / "tests" / "events" / f"{name}.json").read_text()))


def tar_gz(members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A .tar.gz of regular files, in the order given: the same bytes each time."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tar_format) as archive,
    ):
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def csv_number(number: int) -> bytes:
    """A file to train on, another one for each number: CSV for 0."""
    return CSV + (f"note {number},ham\n".encode() if number else b"")


class Killed(BaseException):
    """The function's process ends here: no handler's except clause sees it."""


@dataclass(frozen=True)
class Context:
    """What of Lambda's context object the handlers use."""

    aws_request_id: str
    remaining_milliseconds: int = 300_000

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_milliseconds


@dataclass(frozen=True)
class Email:
    subject: str
    body: str
    attributes: dict[str, str]


@dataclass
class Interruption:
    """What happens at one call that a handler makes to AWS, the n-th (from 0) or the first of a name: before it or
    after its effect."""

    call: int | str
    action: Callable[[], object]
    after_the_effect: bool = False


@dataclass
class Around:
    """Stands around every call that a handler makes to AWS: counts it and interrupts it."""

    calls: list[str] = field(default_factory=list)
    interruption: Interruption | None = None

    def __call__(self, operation: str) -> Callable[[], None]:
        names = (len(self.calls), operation)
        self.calls.append(operation)
        self._interrupt(names, after_the_effect=False)
        return lambda: self._interrupt(names, after_the_effect=True)

    def _interrupt(self, names: tuple[int, str], after_the_effect: bool) -> None:
        due = self.interruption
        if due is not None and due.call in names and due.after_the_effect == after_the_effect:
            self.interruption = None
            due.action()


class Clients:
    """boto3 clients for moto, made once: the handlers' own are watched, the test's are not."""

    def __init__(self) -> None:
        self.plain_s3 = boto3.client("s3", region_name=REGION)
        self.plain_sns = boto3.client("sns", region_name=REGION)
        self.s3 = boto3.client("s3", region_name=REGION)
        self.sns = boto3.client("sns", region_name=REGION)
        self.around: Callable[[str], Callable[[], None]] = Around()
        for client in (self.s3, self.sns):
            events = client.meta.events
            events.register_first("provide-client-params.*.*", self._keep_parameters)
            events.register_first("before-call.*.*", self._before)
            events.register_last("after-call.*.*", self._after)

    def _keep_parameters(self, params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
        context["parameters"] = dict(params)

    def _before(self, model: Any, context: dict[str, Any], **_: object) -> None:
        record(model.service_model.service_name, model.name, context["parameters"])
        context["after"] = self.around(model.name)
        self._refuse_as_aws(model.name, context["parameters"])

    def _refuse_as_aws(self, operation: str, params: dict[str, Any]) -> None:
        """What AWS refuses and moto does not."""
        if operation in ("CopyObject", "UploadPartCopy") and "CopySourceIfMatch" in params:
            try:
                source = self.plain_s3.head_object(**params["CopySource"])
            except ClientError:
                return  # moto says that it is missing
            if source["ETag"].strip('"') != params["CopySourceIfMatch"].strip('"'):
                raise refusal(operation, "PreconditionFailed", "A pre-condition did not hold", 412)
        if operation == "Publish":
            check_publish(params)

    def _after(self, context: dict[str, Any], **_: object) -> None:
        context["after"]()

    def begin(self, around: Callable[[str], Callable[[], None]]) -> None:
        """A new account, with the stack's bucket and topic; around stands around the handlers' calls."""
        mock_random.seed(1)  # version ids go into job names: the same ones in each world
        self.around = around
        self.plain_s3.create_bucket(Bucket=BUCKET)
        self.plain_s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        self.plain_sns.create_topic(Name=TOPIC_ARN.rsplit(":", 1)[-1])

    def emails(self) -> list[Email]:
        topic = sns_backends[DEFAULT_ACCOUNT_ID][REGION].topics[TOPIC_ARN]
        return [
            Email(subject, body, {name: value["Value"] for name, value in attributes.items()})
            for _, body, subject, attributes, _ in topic.sent_notifications
        ]

    def stored(self) -> dict[str, list[bytes | None]]:
        """The bucket, straight from moto's memory: each key's versions, oldest first, None for a delete marker."""
        keys = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[BUCKET].keys
        return {
            key: [None if isinstance(version, FakeDeleteMarker) else version.value for version in keys.getlist(key)]
            for key in keys
        }

    def keys(self) -> list[str]:
        return list(s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[BUCKET].keys)


class FastClients:
    """The same with S3 and SNS in memory."""

    def begin(self, around: Callable[[str], Callable[[], None]]) -> None:
        self.s3, self.sns = FakeS3(BUCKET, around), FakeSNS(TOPIC_ARN, around)
        self.plain_s3 = self.s3.unwatched()

    def emails(self) -> list[Email]:
        return [Email(*sent) for sent in self.sns.sent]

    def stored(self) -> dict[str, list[bytes | None]]:
        return {key: [version.body for version in versions] for key, versions in self.s3.versions.items()}

    def keys(self) -> list[str]:
        return list(self.s3.versions)


class World:
    """A fresh account with the stack's bucket (versioned) and topic; what a test does to it and sees of it."""

    def __init__(self, clients: Clients | FastClients) -> None:
        self.around = Around()
        clients.begin(self.around)
        self._clients = clients
        self.s3: Any = clients.plain_s3
        self.sagemaker = FakeSageMaker(REGION, DEFAULT_ACCOUNT_ID, self.around)
        self._uploads = self._files = 0
        self.time = datetime(2026, 11, 23, 12, 0, 5, tzinfo=UTC)
        if isinstance(clients, FastClients):
            clients.s3.clock[0] = self.sagemaker.s3_clock = lambda: self.time
        self.put(PROGRAM_KEY, b"the training program")

    def now(self) -> datetime:
        """Stands in for now() of the handlers that compare times with those of uploads; no two moments are the same."""
        self.time += timedelta(microseconds=1)
        return self.time

    def wait(self, **duration: float) -> None:
        """Let time pass: wait(minutes=20)."""
        self.time += timedelta(**duration)

    def client(self, service: str) -> Any:
        """Stands in for the handlers' client()."""
        return {"s3": self._clients.s3, "sns": self._clients.sns, "sagemaker": self.sagemaker}[service]

    # --- objects ------------------------------------------------------------------------------------

    def put(self, key: str, body: bytes | dict[str, Any]) -> str:
        """Write an object and return its ETag without quotes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return str(self.s3.put_object(Bucket=BUCKET, Key=key, Body=data)["ETag"].strip('"'))

    def read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def record(self, key: str) -> dict[str, Any]:
        return dict(json.loads(self.read(key)))

    def keys(self, prefix: str = "") -> list[str]:
        return [item["Key"] for item in self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]

    def versions(self, key: str) -> int:
        """How many times the object was written."""
        return len(self.bodies(key))

    def bodies(self, key: str) -> list[bytes | None]:
        """What was written there, each time; None for a deletion."""
        return self._clients.stored().get(key, [])

    # --- events -------------------------------------------------------------------------------------

    def upload(
        self, key: str, body: bytes | None = None, time: str = "2026-11-23T12:00:00Z", **stored_as: str
    ) -> dict[str, Any]:
        """Upload a file and return the event that S3 sends; stored_as: StorageClass and the like, as in PutObject.

        body: as a default another file each time, CSV at first, since the same data is not trained on twice.
        """
        if body is None:
            body, self._files = csv_number(self._files), self._files + 1
        answer = self.s3.put_object(Bucket=BUCKET, Key=key, Body=body, **stored_as)
        self._uploads += 1
        sent = event("s3_object_created") | {"time": time}
        sent["detail"]["object"] = {
            "key": key,
            "size": len(body),
            "etag": answer["ETag"].strip('"'),
            "version-id": answer["VersionId"],
            "sequencer": f"{self._uploads:018X}",
        }
        return sent

    def unversioned_upload(self, key: str, body: bytes | None = None) -> dict[str, Any]:
        sent = self.upload(key, body)
        del sent["detail"]["object"]["version-id"]
        return sent

    def job_event(self, job: str, status: str = "Completed") -> dict[str, Any]:
        sent = event("sagemaker_training_job_completed")
        sent["detail"] |= {"TrainingJobName": job, "TrainingJobStatus": status}
        return sent

    def endpoint_event(self, name: str = ENDPOINT, status: str = "IN_SERVICE") -> dict[str, Any]:
        sent = event("sagemaker_endpoint_in_service")
        sent["detail"] |= {"EndpointName": name, "EndpointStatus": status}
        return sent

    # --- what the handlers did ----------------------------------------------------------------------

    def emails(self) -> list[Email]:
        """Everything published so far, in order."""
        return self._clients.emails()

    def only_email(self) -> Email:
        emails = self.emails()
        assert len(emails) == 1, [email.subject for email in emails]
        return emails[0]

    def stored_keys(self) -> list[str]:
        """All keys that were ever written, without a call that anybody watches."""
        return self._clients.keys()

    def final_state(self) -> dict[str, Any]:
        """All that lasts, without what differs between two equal runs: times, request ids and leases."""
        objects: dict[str, Any] = {}
        for key, versions in self._clients.stored().items():
            body = versions[-1] if versions else None
            if key.startswith("claims/") or body is None:
                continue
            objects[key] = body
            if key.endswith(".json"):
                objects[key] = json.loads(
                    body, object_hook=lambda record: {n: v for n, v in record.items() if n not in VOLATILE}
                )
            if key.startswith("models/approved/"):
                objects[key] = (body, len(versions))
        return {"objects": objects, "sagemaker": self.sagemaker.state()}


def in_memory(handler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world for one handler whose objects are in memory, as their times are those of its clock then."""
    fresh = World(FastClients())
    handler.settings.cache_clear()
    monkeypatch.setattr(handler, "client", fresh.client)
    monkeypatch.setattr(handler, "now", fresh.now)
    return fresh


def runner(handler: ModuleType, world: World) -> Callable[..., str]:
    """Invokes a handler (default: with the sweep), each time as another request; returns the outcome."""

    def invoke(sent: dict[str, Any] = SWEEP, request_id: str = "") -> str:
        return str(handler.lambda_handler(sent, Context(request_id or f"at {world.now()}"))["outcome"])

    return invoke


def broken_connection() -> None:
    """AWS failed after the SDK's own retries."""
    raise ClientError({"Error": {"Code": "InternalError", "Message": "We encountered an internal error"}}, "AnyCall")


def killed() -> None:
    raise Killed
