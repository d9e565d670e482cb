"""What AWS refuses, the local SageMaker refuses, with AWS's error code and text."""

import json
import urllib.error
import urllib.request
import zlib
from typing import Any

import pytest

from local.sagemaker import images
from local.sagemaker.quotas import SERVERLESS_CONCURRENCY
from sagemaker_fixtures import (  # noqa: F401  fixtures
    IMAGE,
    ROLE,
    LocalSageMaker,
    Start,
    aws,
    refusal,
    server,
    start,
    variant,
    wait_for,
)

NOTHING = "pass"


@pytest.fixture(scope="module")
def live(server: LocalSageMaker) -> LocalSageMaker:  # noqa: F811
    """A server with a finished job `done`, and models, configs and endpoints to collide with."""
    server.train("done", NOTHING)
    server.config("serverless")
    server.config("instances", concurrency=None)
    server.config("other", concurrency=None)
    server.serve("on-instances", "instances")
    return server


def set_path(request: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    part: Any = request
    for name in parents:
        part = part[int(name)] if name.isdigit() else part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return request


INVALID_JOB_MEMBERS = {
    "a 64-character name": ("TrainingJobName", "n" * 64, "length less than or equal to 63"),
    "an underscore in the name": ("TrainingJobName", "a_b", "regular expression pattern"),
    "a name ending in a dash": ("TrainingJobName", "ab-", "regular expression pattern"),
    "an empty name": ("TrainingJobName", "", "length greater than or equal to 1"),
    "no role": ("RoleArn", ..., "'roleArn' failed to satisfy constraint: Member must not be null"),
    "something that is no role": ("RoleArn", "arn:aws:iam::123456789012:user/someone", "regular expression"),
    "no output path": ("OutputDataConfig.S3OutputPath", ..., "Value null at 'outputDataConfig.s3OutputPath'"),
    "no instance type": ("ResourceConfig.InstanceType", ..., "Value null at 'resourceConfig.instanceType'"),
    "no stopping condition": ("StoppingCondition", ..., "Value null at 'stoppingCondition'"),
    "an unknown input mode": ("AlgorithmSpecification.TrainingInputMode", "Tape", "satisfy enum value set"),
    "an unknown instance type": ("ResourceConfig.InstanceType", "ml.m99.huge", "satisfy enum value set"),
    "a runtime of zero": ("StoppingCondition.MaxRuntimeInSeconds", 0, "value greater than or equal to 1"),
    "a long hyperparameter": ("HyperParameters.note", "x" * 2501, "Map value must satisfy constraint"),
    "a long hyperparameter name": ("HyperParameters." + "k" * 257, "v", "Map keys must satisfy constraint"),
    "101 environment entries": (
        "Environment",
        {f"K{number}": "v" for number in range(101)},
        "length less than or equal to 100",
    ),
    "a bad environment name": ("Environment", {"A-B": "v"}, "Map keys must satisfy constraint"),
    "a nested bad channel": ("InputDataConfig.0.ChannelName", "a b", "inputDataConfig.1.member.channelName"),
    "a nested unknown enum": ("InputDataConfig.0.DataSource.S3DataSource.S3DataType", "Tape", "enum value set"),
    "no channels in the list": ("InputDataConfig", [], "length greater than or equal to 1"),
    "a tag outside the charset": ("Tags", [{"Key": "a", "Value": "1;2"}], "tags.1.member.value"),
    "a tag value of 257": ("Tags", [{"Key": "a", "Value": "x" * 257}], "length less than or equal to 256"),
    "51 tags": (
        "Tags",
        [{"Key": f"k{number}", "Value": ""} for number in range(51)],
        "length less than or equal to 50",
    ),
    "an aws: tag": ("Tags", [{"Key": "aws:x", "Value": ""}], "aws: prefixed tag key names are not allowed"),
    "a tag twice": ("Tags", [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}], "Duplicate tag keys"),
    "an https output path": ("OutputDataConfig.S3OutputPath", "https://b/k", "Member must be an s3:// URI"),
    "spot without a wait": ("EnableManagedSpotTraining", True, "Invalid MaxWaitTimeInSeconds"),
    "a wait without spot": (
        "StoppingCondition",
        {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
        "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true",
    ),
    "checkpoints on https": ("CheckpointConfig", {"S3Uri": "https://b/k"}, "Member must be an s3:// URI"),
    "checkpoints elsewhere": (
        "CheckpointConfig",
        {"S3Uri": "s3://b/k", "LocalPath": "/opt/ml/../x"},
        "Local SageMaker does not support checkpoints in /opt/ml/../x",
    ),
    "no instances": ("ResourceConfig.InstanceCount", 0, "Local SageMaker does not support"),
    "nine instances": ("ResourceConfig.InstanceCount", 9, "Local SageMaker does not support"),
    "pipe mode": ("AlgorithmSpecification.TrainingInputMode", "Pipe", "Local SageMaker does not support"),
    "no program": ("HyperParameters.sagemaker_program", ..., "Local SageMaker does not support"),
}


@pytest.mark.parametrize(("path", "value", "text"), INVALID_JOB_MEMBERS.values(), ids=INVALID_JOB_MEMBERS)
def test_training_job_is_refused_with(live: LocalSageMaker, path: str, value: Any, text: str) -> None:
    request = set_path(live.job_request("refused", NOTHING), path, value)
    code, message = refusal(live.api.create_training_job, **request)
    assert code == "ValidationException"
    assert text in message
    assert refusal(live.api.describe_training_job, TrainingJobName="refused")[0] == "ValidationException"


def test_constraint_message_reads_as_on_aws(live: LocalSageMaker) -> None:
    _, message = refusal(live.api.describe_training_job, TrainingJobName="a_b")
    assert message == (
        "1 validation error detected: Value 'a_b' at 'trainingJobName' failed to satisfy constraint: Member must "
        "satisfy regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
    )


def test_all_broken_constraints_are_reported_at_once(live: LocalSageMaker) -> None:
    _, message = refusal(live.api.create_model, PrimaryContainer={"Image": "", "Mode": "Odd"})
    assert message.startswith("3 validation errors detected: ")


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"TrainingJobName": 5}, "SerializationException", "trainingJobName"),
        ({"TrainingJobName": "done", "Colour": "red"}, "ValidationException", "Colour"),
        ([], "SerializationException", "not a JSON object"),
    ],
)
def test_request_that_no_sdk_sends(live: LocalSageMaker, body: Any, code: str, text: str) -> None:
    request = urllib.request.Request(
        live.url,
        data=json.dumps(body).encode(),
        headers={"X-Amz-Target": "SageMaker.DescribeTrainingJob"},
        method="POST",
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    answer = json.loads(caught.value.read())
    assert answer["__type"] == code
    assert text in answer["message"]


def test_boundary_values_are_accepted(live: LocalSageMaker) -> None:
    name = "n" * 63
    tags = [{"Key": f"clé {number}", "Value": "a b+é_.:/=-@"} for number in range(50)]
    live.train(name, NOTHING, parameters={"note": "x" * 2500}, Tags=tags)
    arn = live.job(name)["TrainingJobArn"]
    assert sorted(tag["Key"] for tag in live.api.list_tags(ResourceArn=arn)["Tags"]) == sorted(
        tag["Key"] for tag in tags
    )


def test_unknown_operation(live: LocalSageMaker) -> None:
    assert refusal(live.api.create_domain, DomainName="d")[0] == "UnknownOperationException"


def test_duplicate_training_job(live: LocalSageMaker) -> None:
    code, message = refusal(live.api.create_training_job, **live.job_request("done", NOTHING))
    assert code == "ResourceInUse"
    assert message.startswith("Job name must be unique within an AWS account and region, and a job with this name")


def test_duplicate_model_config_and_endpoint(live: LocalSageMaker) -> None:
    prefix = "Cannot create already existing"
    code, message = refusal(live.model, name="serverless")
    assert (code, message.startswith(f'{prefix} model "arn:aws:sagemaker:')) == ("ValidationException", True)
    code, message = refusal(
        live.api.create_endpoint_config,
        EndpointConfigName="serverless",
        ProductionVariants=[variant("serverless")],
    )
    assert code == "ValidationException"
    assert message == (
        f'{prefix} endpoint configuration "arn:aws:sagemaker:us-east-1:123456789012:endpoint-config/serverless".'
    )
    code, message = refusal(live.api.create_endpoint, EndpointName="on-instances", EndpointConfigName="instances")
    assert (code, message.startswith(f'{prefix} endpoint "arn:aws:sagemaker:')) == ("ValidationException", True)


@pytest.mark.parametrize(
    ("call", "arguments", "text"),
    [
        ("describe_training_job", {"TrainingJobName": "no"}, "Requested resource not found"),
        ("stop_training_job", {"TrainingJobName": "no"}, "Requested resource not found"),
        ("describe_model", {"ModelName": "no"}, "Could not find model"),
        ("delete_model", {"ModelName": "no"}, "Could not find model"),
        ("describe_endpoint_config", {"EndpointConfigName": "no"}, "Could not find endpoint configuration"),
        ("delete_endpoint_config", {"EndpointConfigName": "no"}, "Could not find endpoint configuration"),
        ("describe_endpoint", {"EndpointName": "no"}, "Could not find endpoint"),
        ("delete_endpoint", {"EndpointName": "no"}, "Could not find endpoint"),
        (
            "update_endpoint",
            {"EndpointName": "no", "EndpointConfigName": "instances"},
            "Could not find endpoint",
        ),
        (
            "update_endpoint",
            {"EndpointName": "on-instances", "EndpointConfigName": "no"},
            "Could not find endpoint configuration",
        ),
        (
            "create_endpoint",
            {"EndpointName": "new", "EndpointConfigName": "no"},
            "Could not find endpoint configuration",
        ),
        (
            "create_endpoint_config",
            {"EndpointConfigName": "new", "ProductionVariants": [variant("no")]},
            "Could not find model",
        ),
    ],
)
def test_unknown_resource(live: LocalSageMaker, call: str, arguments: dict[str, Any], text: str) -> None:
    code, message = refusal(getattr(live.api, call), **arguments)
    assert code == "ValidationException"
    assert message.startswith(text)


def test_stop_of_a_finished_job(live: LocalSageMaker) -> None:
    code, message = refusal(live.api.stop_training_job, TrainingJobName="done")
    assert code == "ValidationException"
    assert message == "The request was rejected because the training job is in status Completed."


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://{bucket}/nothing/model.tar.gz", "Could not find model data at s3://"),
        ("s3://{bucket}/code/done.zip", "tar archive"),
        (None, "Local SageMaker does not support a model without ModelDataUrl"),
    ],
)
def test_model_data_that_cannot_be(live: LocalSageMaker, url: str | None, text: str) -> None:
    container = {"Image": IMAGE}
    if url:
        container["ModelDataUrl"] = url.format(bucket=live.bucket)
    code, message = refusal(live.api.create_model, ModelName="bad", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    assert code == "ValidationException"
    assert text in message


@pytest.mark.parametrize(
    ("variants", "more", "text"),
    [
        ([variant("serverless", ServerlessConfig={"MemorySizeInMB": 1500, "MaxConcurrency": 1})], {}, "1500"),
        (
            [variant("serverless", ServerlessConfig={"MemorySizeInMB": 8192, "MaxConcurrency": 1})],
            {},
            "value less than or equal to 6144",
        ),
        ([variant("serverless", 201)], {}, "value less than or equal to 200"),
        ([variant("serverless", InstanceType="ml.m5.xlarge")], {}, "not both"),
        ([variant("serverless")], {"VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}}, "Vpc"),
        ([variant("serverless", VariantName="a"), variant("serverless", VariantName="b")], {}, "multiple"),
        ([{"VariantName": "a", "ModelName": "serverless"}], {}, "instanceType"),
        ([], {}, "length greater than or equal to 1"),
    ],
)
def test_endpoint_config_that_cannot_be(
    live: LocalSageMaker, variants: list[dict[str, Any]], more: dict[str, Any], text: str
) -> None:
    code, message = refusal(
        live.api.create_endpoint_config, EndpointConfigName="bad", ProductionVariants=variants, **more
    )
    assert code == "ValidationException"
    assert text in message


def test_serverless_refuses_deployment_settings(live: LocalSageMaker) -> None:
    code, message = refusal(
        live.api.create_endpoint,
        EndpointName="bad",
        EndpointConfigName="serverless",
        DeploymentConfig={"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": _routing("ALL_AT_ONCE")}},
    )
    assert (code, "serverless" in message) == ("ValidationException", True)


def test_canary_does_not_fit_one_instance(live: LocalSageMaker) -> None:
    routing = {**_routing("CANARY"), "CanarySize": {"Type": "INSTANCE_COUNT", "Value": 1}}
    code, message = refusal(
        live.api.update_endpoint,
        EndpointName="on-instances",
        EndpointConfigName="other",
        DeploymentConfig={"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}},
    )
    assert (code, "CanarySize" in message) == ("ValidationException", True)


def _routing(kind: str) -> dict[str, Any]:
    return {"Type": kind, "WaitIntervalInSeconds": 0}


def test_update_to_the_config_in_use_and_from_instances_to_serverless(live: LocalSageMaker) -> None:
    for config, text in (("instances", "already uses"), ("serverless", "instance-based endpoint to a serverless")):
        code, message = refusal(live.api.update_endpoint, EndpointName="on-instances", EndpointConfigName=config)
        assert code == "ValidationException"
        assert text in message
    assert live.endpoint("on-instances")["EndpointStatus"] == "InService"


def test_update_after_the_old_config_was_deleted(live: LocalSageMaker) -> None:
    live.config("forgotten")
    live.serve("orphan", "forgotten")
    live.api.delete_endpoint_config(EndpointConfigName="forgotten")
    code, message = refusal(live.api.update_endpoint, EndpointName="orphan", EndpointConfigName="serverless")
    assert code == "ValidationException"
    assert message.startswith("Could not find endpoint configuration")
    assert live.ask("orphan") == {"answer": "forgotten"}


def test_quota_of_a_type_that_new_accounts_do_not_have(live: LocalSageMaker) -> None:
    request = set_path(live.job_request("gpu", NOTHING), "ResourceConfig.InstanceType", "ml.g5.xlarge")
    code, message = refusal(live.api.create_training_job, **request)
    assert code == "ResourceLimitExceeded"
    assert message.startswith(
        "The account-level service limit 'ml.g5.xlarge for training job usage' is 0 Instances, with current "
        "utilization of 0 Instances and a request delta of 1 Instances."
    )


def test_quota_of_serverless_memory(live: LocalSageMaker) -> None:
    big = variant("serverless", ServerlessConfig={"MemorySizeInMB": 4096, "MaxConcurrency": 1})
    live.api.create_endpoint_config(EndpointConfigName="big", ProductionVariants=[big])
    code, message = refusal(live.api.create_endpoint, EndpointName="big", EndpointConfigName="big")
    assert code == "ResourceLimitExceeded"
    assert "'Memory size in MB per serverless endpoint' is 3072 MBs" in message


def test_quotas_are_configurable_and_freed(start: Start, tmp_path: Any) -> None:  # noqa: F811
    server = start(  # noqa: F811
        "--quota",
        "ml.m5.xlarge for training job usage=1",
        "--quota",
        "ml.m5.xlarge for endpoint usage=1",
    )
    go = tmp_path / "go"
    waiting = f"import os\nwhile not os.path.exists({str(go)!r}): pass"
    server.api.create_training_job(**server.job_request("first", waiting))
    code, message = refusal(server.api.create_training_job, **server.job_request("second", NOTHING))
    assert code == "ResourceLimitExceeded"
    assert "is 1 Instances, with current utilization of 1 Instances and a request delta of 1" in message
    go.touch()
    server.wait_job("first", "Completed")
    server.train("second", NOTHING)

    server.config("one", concurrency=None)
    server.config("two", concurrency=None)
    server.serve("fleet", "one")
    # Blue/green needs the second fleet while the first one serves.
    code, _ = refusal(server.api.update_endpoint, EndpointName="fleet", EndpointConfigName="two")
    assert code == "ResourceLimitExceeded"


def test_quota_of_the_concurrency_of_all_serverless_endpoints(start: Start) -> None:  # noqa: F811
    server = start()  # noqa: F811
    for name, concurrency in {"first": 5, "second": 4, "third": 2, "update": 1, "big-update": 2}.items():
        server.config(name, concurrency=concurrency)
    server.serve("first", "first")
    server.serve("second", "second")
    code, message = refusal(server.api.create_endpoint, EndpointName="third", EndpointConfigName="third")
    assert code == "ResourceLimitExceeded"
    assert message.startswith(
        "The account-level service limit 'Maximum total concurrency that can be allocated across all serverless "
        "endpoints' is 10 Invocations, with current utilization of 9 Invocations and a request delta of 2 Invocations."
    )
    # While an update lasts, both sides count.
    code, _ = refusal(server.api.update_endpoint, EndpointName="second", EndpointConfigName="big-update")
    assert code == "ResourceLimitExceeded"
    server.api.update_endpoint(EndpointName="second", EndpointConfigName="update")
    server.wait_endpoint("second", "InService")
    server.serve("third", "third")
    # An instance takes none of it.
    server.serve("instance", server.config("instance", concurrency=None))


def test_quota_of_serverless_concurrency_is_configurable(start: Start) -> None:  # noqa: F811
    server = start("--quota", f"{SERVERLESS_CONCURRENCY}=4")  # noqa: F811
    server.config("wide")
    code, message = refusal(server.api.create_endpoint, EndpointName="wide", EndpointConfigName="wide")
    assert (code, "endpoints' is 4 Invocations" in message) == ("ResourceLimitExceeded", True)


RIGHTS = (
    f"and role {ROLE} has proper pull permissions for SageMaker: ecr:BatchCheckLayerAvailability, ecr:BatchGetImage, "
    "ecr:GetDownloadUrlForLayer"
)
REGISTRY = "763104351884.dkr.ecr.us-east-1.amazonaws.com"
DIGEST = f"sha256:{'0' * 64}"
UNKNOWN_IMAGES = {
    "a tag that AWS has not": (
        f"{REGISTRY}/pytorch:0.1-cpu",
        f"Cannot find the requested image: {REGISTRY}/pytorch:0.1-cpu with tag: 0.1-cpu and digest: null. Please check "
        f"if your ECR image exists {RIGHTS}",
    ),
    "no tag": (
        f"{REGISTRY}/pytorch",
        f"Cannot find the requested image: {REGISTRY}/pytorch with tag: latest and digest: null. Please check if your "
        f"ECR image exists {RIGHTS}",
    ),
    "a digest": (
        f"{REGISTRY}/pytorch@{DIGEST}",
        f"Cannot find the requested image: {REGISTRY}/pytorch@{DIGEST} with tag: null and digest: {DIGEST}. Please "
        f"check if your ECR image exists {RIGHTS}",
    ),
    "an image of one's own": (
        "111122223333.dkr.ecr.us-east-1.amazonaws.com/ours/train:1",
        "Cannot find repository: ours/train in registry ID: 111122223333 Please check if your ECR repository exists "
        f"{RIGHTS}",
    ),
    "an image of Docker's": (
        "ubuntu:latest",
        "Invalid training image. Please provide a valid Amazon Elastic Container Registry path of the Docker image to "
        "run.",
    ),
}


@pytest.mark.parametrize(("image", "text"), UNKNOWN_IMAGES.values(), ids=UNKNOWN_IMAGES)
def test_image_that_does_not_exist(live: LocalSageMaker, image: str, text: str) -> None:
    request = set_path(live.job_request("unknown-image", NOTHING), "AlgorithmSpecification.TrainingImage", image)
    code, message = refusal(live.api.create_training_job, **request)
    assert (code, message.startswith(text)) == ("ValidationException", True), message
    code, message = refusal(live.model, name="unknown-image", Image=image)
    assert (code, message.startswith(f"Requested image {image} not found.")) == ("ValidationException", True), message


def test_own_image_is_refused_with_the_option_that_adds_it(live: LocalSageMaker) -> None:
    _, message = refusal(live.model, name="own", Image="111122223333.dkr.ecr.us-east-1.amazonaws.com/ours/serve:1")
    assert message.endswith("The local SageMaker knows the images of terraform/images.tf; --image IMAGE adds one.)")


@pytest.mark.parametrize("image", sorted(images.published("us-east-1")))
def test_image_of_this_projects_terraform_exists(live: LocalSageMaker, image: str) -> None:
    name = f"known-{zlib.crc32(image.encode())}"
    live.model(name, Image=image)
    request = set_path(live.job_request(name, NOTHING), "AlgorithmSpecification.TrainingImage", image)
    live.api.create_training_job(**request)


def test_instance_type_that_the_region_does_not_have(start: Start) -> None:  # noqa: F811
    server = start("--missing-type", "ml.p2.xlarge", "--missing-type", "ml.m5.xlarge")  # noqa: F811
    request = set_path(server.job_request("old", NOTHING), "ResourceConfig.InstanceType", "ml.p2.xlarge")
    assert refusal(server.api.create_training_job, **request) == (
        "ResourceLimitExceeded",
        "The requested resource training-job/ml.p2.xlarge is not available in this region",
    )
    server.config("instances", concurrency=None)
    assert refusal(server.api.create_endpoint, EndpointName="e", EndpointConfigName="instances") == (
        "ResourceLimitExceeded",
        "The requested resource endpoint/ml.m5.xlarge is not available in this region",
    )


def test_listing_filters_sorts_and_pages(live: LocalSageMaker) -> None:
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        live.api.create_training_job(**live.job_request(name, NOTHING))
    for name in names:
        live.wait_job(name, "Completed")

    def listed(**arguments: Any) -> list[str]:
        pages = live.api.get_paginator("list_training_jobs").paginate(**arguments)
        return [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]

    assert listed(NameContains="page-", PaginationConfig={"PageSize": 2}) == names
    assert listed(NameContains="page-", SortOrder="Descending", MaxResults=2) == names[::-1]
    assert listed(NameContains="page-", StatusEquals="Failed") == []
    middle = live.job("page-2")["CreationTime"]
    assert listed(NameContains="page-", CreationTimeAfter=middle, SortBy="Name") == ["page-3", "page-4"]
    assert refusal(live.api.list_training_jobs, NextToken="bogus")[0] == "ValidationException"
    endpoints = live.api.list_endpoints(NameContains="on-inst")["Endpoints"]
    assert [item["EndpointStatus"] for item in endpoints] == ["InService"]
    assert live.api.list_models(NameContains="nothing")["Models"] == []


def test_tags_are_added_replaced_and_deleted(live: LocalSageMaker) -> None:
    arn = live.api.describe_model(ModelName="other")["ModelArn"]
    live.api.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "1"}])
    live.api.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "2"}])
    live.api.delete_tags(ResourceArn=arn, TagKeys=["b"])
    assert live.api.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "a", "Value": "2"}]
    assert refusal(live.api.list_tags, ResourceArn=arn + "x")[0] == "ValidationException"


def test_invocation_of_an_unknown_endpoint_and_of_too_much(live: LocalSageMaker) -> None:
    code, message = refusal(live.runtime.invoke_endpoint, EndpointName="no", Body=b"{}")
    assert (code, message) == ("ValidationError", "Endpoint no of account 123456789012 not found.")
    code, message = refusal(live.runtime.invoke_endpoint, EndpointName="on-instances", Body=b" " * 6291457)
    assert code == "ValidationError"
    assert message.endswith("has oversize body.")
    question = b'{"pad": "' + b"x" * (6291456 - 11) + b'"}'
    answer = live.runtime.invoke_endpoint(EndpointName="on-instances", Body=question, ContentType="application/json")
    assert json.loads(answer["Body"].read()) == {"answer": "instances"}


def test_health(live: LocalSageMaker) -> None:
    with urllib.request.urlopen(f"{live.url}/health") as answer:
        assert json.load(answer)["status"] == "ok"
    assert wait_for("log line", lambda: "listening on" in live.log.read_text())
