"""The approved models of a stack and the records of their deployments, for the commands that intervene."""

from __future__ import annotations

from typing import Any

from mlops import bucket
from mlops.bucket import Record
from mlops.records import (
    APPROVED_PREFIX,
    DEPLOYMENT_PREFIX,
    JOB_NAME,
    Deployment,
    DeploymentState,
    artifact_key,
    changed,
    deployment,
)
from mlops.target import Target


def approved_jobs(target: Target, model: str) -> list[str]:
    """The training jobs whose models are approved, newest first."""
    prefix = f"{APPROVED_PREFIX}{model}/"
    parts = (key.removeprefix(prefix).split("/") for key in bucket.list_keys(target, prefix))
    jobs = [part[0] for part in parts if part[1:] == ["model.tar.gz"] and JOB_NAME.fullmatch(part[0])]
    return sorted(jobs, reverse=True)


def deployments(target: Target, job: str, endpoint: str) -> list[Record[Deployment]]:
    """The deployment records of a job's model on an endpoint: one for each set of settings."""
    found = bucket.read_all(target, f"{DEPLOYMENT_PREFIX}{job}-", deployment)
    return [record for record in found if record.value["endpoint"] == endpoint]


def move(
    target: Target, record: Record[Deployment], by: str, state: DeploymentState, **more: Any
) -> Record[Deployment]:
    """Take a deployment to another state. Raises Changed."""
    data = changed(record.stored, state=state, by=by, at=bucket.now().isoformat(), **more)
    return bucket.write(target, record.key, data, record, deployment)


def deploy_again(target: Target, record: Record[Deployment], by: str, **more: Any) -> Record[Deployment]:
    """Have the deployment orchestrator deploy a model, whatever became of it before. Raises Changed."""
    history = ("withdrawn", "was", "gone")  # of a model that was withdrawn, or cleaned up
    stored = {name: value for name, value in record.stored.items() if name not in history}
    fresh = {"state": "waiting", "reason": "", "tries": 0, "restores": "", "emails": {}, "deleted_by": ""}
    data = changed(stored, **(fresh | more), by=by, at=bucket.now().isoformat())
    return bucket.write(target, record.key, data, record, deployment)


def approved_event(target: Target, model: str, job: str) -> dict[str, Any]:
    """What S3 sent when the model was approved, as far as the deployment orchestrator reads it."""
    key = artifact_key(model, job)
    return {"source": "aws.s3", "detail": {"bucket": {"name": target.bucket}, "object": {"key": key}}}
