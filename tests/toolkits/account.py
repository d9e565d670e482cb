"""The stack's bucket and topic, the local SageMaker, and the handlers on them, as the tests use them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from sagemaker_fixtures import LocalSageMaker, wait_for
from world import BUCKET, Context, event

JOB_SECONDS = 120.0


@dataclass
class Account:
    """The stack's bucket and topic, the local SageMaker, and the handlers on them."""

    aws: str
    sagemaker: LocalSageMaker
    handlers: dict[str, ModuleType]

    @property
    def s3(self) -> Any:
        return self.sagemaker.s3

    def put(self, key: str, body: bytes) -> dict[str, Any]:
        """Write an object and return the event that S3 sends."""
        answer = self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        sent = event("s3_object_created")
        sent["detail"]["object"] |= {
            "key": key,
            "size": len(body),
            "etag": answer["ETag"].strip('"'),
            "version-id": answer["VersionId"],
        }
        return sent

    def call(self, handler: str, event: dict[str, Any]) -> None:
        self.handlers[handler].lambda_handler(event, Context("request"))

    def train(self, name: str, changes: Callable[[dict[str, Any]], None], job: dict[str, Any]) -> dict[str, Any]:
        """Run a changed copy of a job on the local SageMaker to its end; returns its description."""
        operation = self.sagemaker.api.meta.service_model.operation_model("CreateTrainingJob")
        members = operation.input_shape.members
        request = {member: copy.deepcopy(value) for member, value in job.items() if member in members}
        request["TrainingJobName"] = name
        changes(request)
        self.sagemaker.api.create_training_job(**request)
        return self.ended(name)

    def ended(self, name: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            job = self.sagemaker.job(name)
            return job if job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped") else None

        found: dict[str, Any] = wait_for(f"end of {name}", look, JOB_SECONDS)
        return found

    def log(self, name: str) -> str:
        """The job's log of the local SageMaker."""
        return (self.sagemaker.state / "logs" / f"{name}.log").read_text()
