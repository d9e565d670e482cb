"""What SageMaker has of a stack: its endpoints and running training jobs, identified by their Stack tag."""

from __future__ import annotations

from typing import Any, TypedDict

from botocore.exceptions import ClientError

from mlops.records import DEFAULT_MODEL, JOB_NAME, MODEL_NAME
from mlops.target import Target, error_code, error_message

# SageMaker's lists have 10 items a page unless asked for more, 100 at most (ListEndpoints, MaxResults).
PAGES = {"PaginationConfig": {"PageSize": 100}}


class Endpoint(TypedDict):
    """An endpoint of this stack's. model: None where the name does not say; config: the endpoint config it serves."""

    name: str
    model: str | None
    status: str
    config: str
    tags: list[dict[str, str]]


def is_missing(error: ClientError) -> bool:
    """Whether SageMaker says that the thing does not exist: a ValidationException that only its text sets apart."""
    return error_code(error) == "ValidationException" and error_message(error).startswith("Could not find")


def describe_endpoint(target: Target, name: str) -> dict[str, Any] | None:
    """The endpoint as it is now; None when there is none."""
    try:
        answer: dict[str, Any] = target.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return answer


def own_tags(target: Target, arn: str) -> list[dict[str, str]]:
    """The tags of something that this stack created; none when another did, or when it is gone by now.

    AWS's own tags cannot be set again.
    """
    try:
        tags = target.client("sagemaker").list_tags(ResourceArn=arn)["Tags"]
    except ClientError as error:
        if is_missing(error):
            return []
        raise
    if {"Key": "Stack", "Value": target.bucket} not in tags:
        return []
    return [tag for tag in tags if not tag["Key"].startswith("aws:")]


def model_of_endpoint(target: Target, name: str) -> str | None:
    """The model in an endpoint's name; None when the name is not one that this stack gives."""
    default = target.endpoint_of(DEFAULT_MODEL)
    if name == default:
        return DEFAULT_MODEL
    model = name.removeprefix(f"{default}-")
    return model if model != name and MODEL_NAME.fullmatch(model) else None


def own_endpoints(target: Target, every_name: bool = False, others: set[Any] | None = None) -> list[Endpoint]:
    """This stack's endpoints, by name.

    every_name: by their tag alone, as endpoint_name may have changed since. others: filled with the endpoints of
    others, which are not asked for their tags again when it is given again: an account may have hundreds.
    """
    found: list[Endpoint] = []
    others = set() if others is None else others
    names = {} if every_name else {"NameContains": target.endpoint_of(DEFAULT_MODEL)}
    pages = target.client("sagemaker").get_paginator("list_endpoints").paginate(**names, **PAGES)
    for item in [item for page in pages for item in page["Endpoints"]]:
        name, model = item["EndpointName"], model_of_endpoint(target, item["EndpointName"])
        # A later endpoint of the same name has the same ARN.
        identity = (item["EndpointArn"], item["CreationTime"])
        if identity in others or not (model or every_name):
            continue
        if not (tags := own_tags(target, item["EndpointArn"])):
            others.add(identity)
            continue
        endpoint = describe_endpoint(target, name)
        if endpoint is not None:
            status, config = endpoint["EndpointStatus"], endpoint["EndpointConfigName"]
            found.append({"name": name, "model": model, "status": status, "config": config, "tags": tags})
    return sorted(found, key=lambda endpoint: endpoint["name"])


def running_jobs(target: Target, status: str = "InProgress") -> list[str]:
    """The names of this stack's training jobs that run now, or have another status."""
    pages = (
        target.client("sagemaker")
        .get_paginator("list_training_jobs")
        .paginate(StatusEquals=status, NameContains="training-job-", **PAGES)
    )
    jobs = [
        (item["TrainingJobName"], item["TrainingJobArn"]) for page in pages for item in page["TrainingJobSummaries"]
    ]
    return [name for name, arn in jobs if JOB_NAME.fullmatch(name) and own_tags(target, arn)]


def delete_endpoint(target: Target, name: str) -> bool:
    """Delete an endpoint; False when it cannot be deleted just now, because it is being changed."""
    try:
        target.client("sagemaker").delete_endpoint(EndpointName=name)
    except ClientError as error:
        if error_message(error).startswith("Cannot update in-progress endpoint"):
            return False
        if not is_missing(error):
            raise
    return True


def stop_job(target: Target, job: str) -> None:
    """Stop a training job. One that has just ended answers with a ValidationException (StopTrainingJob)."""
    try:
        target.client("sagemaker").stop_training_job(TrainingJobName=job)
    except ClientError as error:
        if error_code(error) != "ValidationException":
            raise
