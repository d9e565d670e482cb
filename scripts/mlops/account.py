"""What a deployment needs of an AWS account and Terraform does not look at: images, quotas, the base model.

`doctor` shows every line; `deploy` prints those that are not ok as warnings before it plans.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from mlops.target import error_code, is_denied

# The account of the images in every region that terraform/images.tf does not name.
IMAGE_ACCOUNT = "763104351884"
IMAGE = re.compile(r"([0-9]{12})\.dkr\.ecr\.([a-z0-9-]+)\.[a-z.]+/([^:@]+)(?::([^@]+)|@(.+))")
MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)
SERVERLESS_CONCURRENCY = "Maximum total concurrency that can be allocated across all serverless endpoints"
HUB = "https://huggingface.co"
HUB_SECONDS = 5.0
# What a call needs where that is not named as the call. IAM: Service Authorization Reference.
SERVICES = {
    "BatchGetImage": "ecr",
    "DescribeAlarms": "cloudwatch",
    "GetFunctionConfiguration": "lambda",
    "GetQueueAttributes": "sqs",
    "ListAWSDefaultServiceQuotas": "servicequotas",
    "ListServiceQuotas": "servicequotas",
    "ListSubscriptionsByTopic": "sns",
}
PERMISSIONS = {
    "GetBucketNotificationConfiguration": "s3:GetBucketNotification",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
}

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Line:
    """One finding. level: warn is for what need not be wrong, or could not be asked."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.subject:<13} {self.text}"


@dataclass(frozen=True)
class Settings:
    """Terraform's variables, as far as they are looked at here. Images: None for the default, which is name:tag."""

    image_accounts: Mapping[str, str]
    training_image: str | None
    default_training_image: str
    inference_image: str | None
    default_inference_image: str
    training_instance_type: str
    training_instance_count: int
    training_use_spot: bool
    max_concurrent_training_jobs: int
    endpoint_type: str
    endpoint_instance_type: str
    endpoint_instance_count: int
    serverless_max_concurrency: int
    base_model: str
    base_model_revision: str | None
    auto_base_models: tuple[str, ...]  # <Hub id>@<commit>
    hub_token_secret_arn: str | None
    notification_emails: tuple[str, ...]


# The members of Settings in Terraform's language. None depends on the account: they are known before a deployment.
ASKED = """{
  image_accounts = local.image_accounts,
  training_image = var.training_image,
  default_training_image = local.training_images[local.training_gpu ? "gpu" : "cpu"],
  inference_image = var.inference_image,
  default_inference_image = local.inference_images[local.inference_gpu ? "gpu" : "cpu"],
  training_instance_type = var.training_instance_type,
  training_instance_count = var.training_instance_count,
  training_use_spot = var.training_use_spot,
  max_concurrent_training_jobs = var.max_concurrent_training_jobs,
  endpoint_type = var.endpoint_type,
  endpoint_instance_type = var.endpoint_instance_type,
  endpoint_instance_count = var.endpoint_instance_count,
  serverless_max_concurrency = var.serverless_max_concurrency,
  base_model = var.base_model,
  base_model_revision = var.base_model_revision,
  auto_base_models = values(local.auto_base_models),
  hub_token_secret_arn = var.hub_token_secret_arn,
  notification_emails = var.notification_emails
}""".replace("\n", " ")


def settings(answer: Mapping[str, Any]) -> Settings:
    """What Terraform answers to ASKED."""
    lists = {name: tuple(answer[name]) for name in ("auto_base_models", "notification_emails")}
    return Settings(**{**answer, **lists})


def ask(subject: str, check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a check. What AWS does not answer is one more line, with the permission where that is missing."""
    try:
        yield from check()
    except ClientError as error:
        operation = error.operation_name
        if is_denied(error):
            needs = PERMISSIONS.get(operation) or f"{SERVICES.get(operation, 's3')}:{operation}"
            yield Line("warn", subject, f"not allowed to ask: needs {needs}")
        else:
            yield Line("FAIL", subject, f"AWS does not answer: {error}")
    except BotoCoreError as error:
        yield Line("FAIL", subject, f"AWS does not answer: {error}")


def check_account(session: boto3.Session, asked: Settings) -> Iterator[Line]:
    """What concerns a deployment that has yet to be made: the images and the quotas, on AWS."""
    images = {
        "training": asked.training_image or default_image(session, asked, asked.default_training_image),
        "serving": asked.inference_image or default_image(session, asked, asked.default_inference_image),
    }
    for use, image in images.items():
        yield from ask("image", lambda use=use, image=image: check_image(session, use, image))  # type: ignore[misc]
    yield from ask("quota", lambda: check_quotas(session, asked))


# --- images ------------------------------------------------------------------------------------------


def default_image(session: boto3.Session, asked: Settings, name: str) -> str:
    """The URI of one of AWS's own images in this region, as terraform/images.tf makes it."""
    region = session.region_name
    account = asked.image_accounts.get(region, IMAGE_ACCOUNT)
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{account}.dkr.ecr.{region}.{suffix}/{name}"


def check_image(session: boto3.Session, use: str, image: str) -> Iterator[Line]:
    """Whether an image can be pulled in its region: SageMaker says so only when it starts the job or the endpoint."""
    parts = IMAGE.fullmatch(image)
    if parts is None:
        yield Line("warn", "image", f"{use}: {image} is in no ECR repository, so it cannot be looked for")
        return
    account, region, repository, tag, digest = parts.groups()
    wanted = {"imageTag": tag} if tag else {"imageDigest": digest}
    found = False
    try:
        answer = session.client("ecr", region_name=region).batch_get_image(
            registryId=account, repositoryName=repository, imageIds=[wanted], acceptedMediaTypes=list(MANIFESTS)
        )
        found = bool(answer.get("images"))
    except ClientError as error:
        if error_code(error) != "RepositoryNotFoundException":
            raise
    if found:
        yield Line("ok", "image", f"{use}: {image}")
    else:
        variable = "training_image" if use == "training" else "inference_image"
        yield Line("FAIL", "image", f"{use}: {image} does not exist: set {variable}, or choose another region")


# --- quotas ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """What a quota must allow. least: less than that and nothing runs; better: what runs without waiting."""

    quota: str
    least: int
    better: int
    otherwise: str  # what happens between the two


def needs(asked: Settings) -> list[Need]:
    jobs, count = asked.max_concurrent_training_jobs, asked.endpoint_instance_count
    of_a_job, use = asked.training_instance_count, "spot training" if asked.training_use_spot else "training"
    quota = f"{asked.training_instance_type} for {use} job usage"
    training = Need(quota, of_a_job, jobs * of_a_job, "further trainings wait")
    if asked.endpoint_type == "serverless":
        concurrency = asked.serverless_max_concurrency
        text = "it takes one model, and an update or a second one may wait"
        return [training, Need(SERVERLESS_CONCURRENCY, concurrency, 2 * concurrency, text)]
    # During an update the new instances run beside the old ones.
    text = "a new model cannot replace a live one"
    return [training, Need(f"{asked.endpoint_instance_type} for endpoint usage", count, 2 * count, text)]


def find_quotas(session: boto3.Session, names: set[str]) -> dict[str, Any]:
    """SageMaker's quotas of these names; AWS's default where the account has none of its own."""
    client, found = session.client("service-quotas"), dict[str, Any]()
    # "If the applied quota value is not available for a quota, the quota is not retrieved": ListServiceQuotas.
    for operation in ("list_service_quotas", "list_aws_default_service_quotas"):
        for page in client.get_paginator(operation).paginate(ServiceCode="sagemaker"):
            found = {item["QuotaName"]: item for item in page["Quotas"] if item["QuotaName"] in names} | found
        if found.keys() == names:
            break
    return found


def check_quotas(session: boto3.Session, asked: Settings) -> Iterator[Line]:
    """Whether the account may run what the variables ask for. A young account has many quotas of 0."""
    wanted = needs(asked)
    found = find_quotas(session, {need.quota for need in wanted})
    for need in wanted:
        if need.quota not in found:
            text = f"there is none named {need.quota!r}: is this instance type in {session.region_name}?"
            yield Line("warn", "quota", text)
            continue
        value, code = int(found[need.quota]["Value"]), found[need.quota]["QuotaCode"]
        request = (
            f'request {need.better} ("Request increase at account level"; if asked why: "Training and serving text '
            'classifiers with an event-driven pipeline") at https://console.aws.amazon.com/servicequotas/home/services/'
            f"sagemaker/quotas/{code}?region={session.region_name}"
        )
        if value < need.least:
            yield Line("FAIL", "quota", f"{need.quota} is {value}, and {need.least} needed: {request}")
        elif value < need.better:
            yield Line("warn", "quota", f"{need.quota} is {value}: {need.otherwise}; {request}")
        else:
            yield Line("ok", "quota", f"{need.quota}: {value}")


# --- base model --------------------------------------------------------------------------------------


def check_base_model(s3: Callable[[], Any], asked: Settings, local: bool) -> Iterator[Line]:
    """Whether the base model is where training looks for it. Offline, that stays open."""
    model = asked.base_model
    if model.startswith("s3://"):
        bucket, _, prefix = model.removeprefix("s3://").partition("/")
        try:
            s3().head_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}/config.json")
        except ClientError as error:
            if error_code(error) not in ("404", "NoSuchKey", "NoSuchBucket"):
                raise
            yield Line("FAIL", "base model", f"{model} has no config.json: copy the model there")
            return
        yield Line("ok", "base model", model)
    elif model.startswith("/"):
        if not local:
            yield Line("ok", "base model", f"{model}, in the training image: only a training can tell")
        elif (Path(model) / "config.json").is_file():
            yield Line("ok", "base model", model)
        else:
            yield Line("FAIL", "base model", f"{model} has no config.json: choose another base_model")
    elif model == "auto":
        split = (pinned.partition("@") for pinned in asked.auto_base_models)
        found = [check_hub(name, revision, has_token=False) for name, _, revision in split]
        levels = {line.level for line in found}
        level: Level = "FAIL" if "FAIL" in levels else "warn" if "warn" in levels else "ok"
        yield Line(level, "base model", "auto: " + "; ".join(line.text for line in found))
    else:
        yield check_hub(model, asked.base_model_revision, bool(asked.hub_token_secret_arn))


def check_hub(model: str, revision: str | None, has_token: bool) -> Line:
    """Whether the Hub has a model and its revision. The Hub answers 401 where there is none, or where it is private."""
    name = f"{model} at {revision}" if revision else f"{model} (the latest: base_model_revision pins it)"
    url = f"{os.environ.get('HF_ENDPOINT') or HUB}/api/models/{model}" + (f"/revision/{revision}" if revision else "")
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_SECONDS):
            return Line("ok", "base model", name)
    except urllib.error.HTTPError as error:
        if error.code == 404 or (error.code in (401, 403) and not has_token):
            text = f"the Hub has no {name}; or it is private, and needs hub_token_secret_arn"
            return Line("FAIL", "base model", text)
        if error.code in (401, 403):
            return Line("warn", "base model", f"{name}: private, so only a training can tell")
        return Line("warn", "base model", f"{name}: the Hub answers with {error.code}, try again later")
    except OSError as error:
        return Line(
            "warn", "base model", f"{name}: the Hub is not reachable from here ({getattr(error, 'reason', error)})"
        )
