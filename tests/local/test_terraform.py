"""terraform/, with the real AWS provider: format, validity, and what a plan would make. No AWS account, no network.

What single modules make, and which settings are refused, is in terraform/**/tests (make terraform).

The plan runs offline: fake credentials, the provider's own start-up checks off, and a loopback stand-in for the one
call that remains, STS GetCallerIdentity.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from rendered import function_address, sts
from world import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "terraform.py"
PACKAGES = ("training_orchestrator.zip", "model_evaluator.zip", "deployment_orchestrator.zip", "training.tar.gz")
ACCOUNT = "111122223333"
BUCKET = "team.models"
RUN_SECONDS = 300

# What each function is for, its memory in MB and its timeout in seconds.
FUNCTIONS = {
    "training_orchestrator": ("Checks uploads and starts training jobs", 1769, 900),
    "model_evaluator": ("Judges trained models and approves them", 1024, 300),
    "deployment_orchestrator": ("Deploys approved models and reports what became of it", 512, 300),
}


def terraform(*arguments: str, folder: Path = ROOT / "terraform") -> subprocess.CompletedProcess[str]:
    """Run scripts/terraform.py, which fails in words where Terraform is missing."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--dir", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
        env={
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_VAR_", "TF_CLI_ARGS"))
        },
    )


@pytest.fixture(scope="module")
def sts_url() -> Iterator[str]:
    """The address of a server that says who the caller is."""
    with sts(ACCOUNT) as address:
        yield address


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory, sts_url: str) -> Path:
    """A copy of terraform/ whose provider stays offline, beside stand-ins for the packages."""
    root = tmp_path_factory.mktemp("stack")
    (root / "build").mkdir()
    for name in PACKAGES:
        (root / "build" / name).write_text(name)
    # Whatever the checkout holds of a person's own stack stays out.
    private = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars", "backend.tf", "provider*.tf")
    folder = root / "terraform"
    shutil.copytree(ROOT / "terraform", folder, ignore=private)
    (folder / "provider.tf").write_text(
        f"""provider "aws" {{
  region                      = "us-east-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true

  endpoints {{
    sts = "{sts_url}"
  }}
}}
"""
    )
    return folder


@pytest.fixture(scope="module")
def plan(configuration: Path) -> dict[str, Any]:
    """What `apply` would create, by address: {"after": known values, "after_unknown": what AWS decides}."""
    settings = [
        "-var=bucket_name=" + BUCKET,
        "-var=endpoint_name=sentiment",
        '-var=notification_emails=["ml-team@example.com"]',
        "-var=model_thresholds={spam={accuracy={min=0.95},eval_loss={max=0.2}}}",
        "-var=hyperparameters={epochs=5}",
        "-var=log_level=DEBUG",
        "-var=log_retention_days=14",
    ]
    made = terraform("plan", "-input=false", "-no-color", "-out=all.tfplan", *settings, folder=configuration)
    assert made.returncode == 0, made.stderr
    shown = terraform("show", "-json", "all.tfplan", folder=configuration)
    assert shown.returncode == 0, shown.stderr
    return {change["address"]: change["change"] for change in json.loads(shown.stdout)["resource_changes"]}


def function_of(plan: dict[str, Any], name: str) -> dict[str, Any]:
    after: dict[str, Any] = plan[function_address(name)]["after"]
    return after


def statements(policy: str) -> dict[str, dict[str, Any]]:
    """A policy's statements, by Sid."""
    return {statement["Sid"]: statement for statement in json.loads(policy)["Statement"]}


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_every_file_is_formatted() -> None:
    answer = terraform("fmt", "-check", "-recursive", "-diff", "-no-color")

    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_configuration_is_valid_without_warnings(configuration: Path) -> None:
    answer = terraform("validate", "-json", folder=configuration)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    result = json.loads(answer.stdout)
    assert (result["valid"], result["diagnostics"]) == (True, [])


def test_a_plan_without_packages_says_what_to_run(configuration: Path, tmp_path: Path) -> None:
    answer = terraform("plan", "-input=false", "-no-color", f"-var=package_dir={tmp_path}", folder=configuration)

    assert answer.returncode == 1
    # The training orchestrator is not planned once the training source is missing.
    for name in ("training.tar.gz", "model_evaluator.zip", "deployment_orchestrator.zip"):
        assert f"{name} does not exist: run `make package`, or set package_dir" in " ".join(answer.stderr.split())


def test_a_plan_in_a_region_without_the_images_says_what_to_set(configuration: Path, tmp_path: Path) -> None:
    shutil.copytree(configuration.parent, tmp_path / "stack", symlinks=True)
    provider = tmp_path / "stack" / "terraform" / "provider.tf"
    provider.write_text(provider.read_text().replace('"us-east-1"', '"mx-central-1"'))
    gpu = "-var=training_instance_type=ml.g5.xlarge"

    answer = terraform("plan", "-input=false", "-no-color", gpu, folder=provider.parent)

    assert answer.returncode == 1
    # Terraform draws a line at the left of what it says.
    words = " ".join(answer.stderr.replace("\u2502", " ").split())
    for image in ("inference_image", "training_image"):
        assert f"in mx-central-1. Set {image} to an image in an ECR repository of this region" in words


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gets_exactly_its_variables(plan: dict[str, Any], name: str) -> None:
    variables = function_of(plan, name)["environment"][0]["variables"]

    assert set(variables) == set(ENVIRONMENT[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_runs_as_designed(plan: dict[str, Any], name: str) -> None:
    function = function_of(plan, name)
    full_name = f"mlops-{name.replace('_', '-')}-team-models"

    assert function["function_name"] == full_name
    assert function["role"] == f"arn:aws:iam::{ACCOUNT}:role/{full_name}"
    assert (function["handler"], function["runtime"]) == ("handler.lambda_handler", "python3.13")
    assert function["architectures"] == ["arm64"]
    assert (function["description"], function["memory_size"], function["timeout"]) == FUNCTIONS[name]
    package = hashlib.sha256(f"{name}.zip".encode()).digest()
    assert function["source_code_hash"] == base64.b64encode(package).decode()
    assert function["logging_config"] == [
        {
            "application_log_level": "DEBUG",
            "log_format": "JSON",
            "log_group": f"/aws/lambda/{full_name}",
            "system_log_level": "INFO",
        }
    ]
    log = plan[function_address(name, "aws_cloudwatch_log_group")]["after"]
    assert (log["name"], log["retention_in_days"], log["kms_key_id"]) == (f"/aws/lambda/{full_name}", 14, None)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_failed_event_is_retried_and_then_goes_to_the_queue_once(plan: dict[str, Any], name: str) -> None:
    retries = plan[function_address(name, "aws_lambda_function_event_invoke_config")]["after"]

    assert retries["function_name"] == f"mlops-{name.replace('_', '-')}-team-models"
    assert (retries["maximum_retry_attempts"], retries["maximum_event_age_in_seconds"]) == (2, 21600)
    queue = f"arn:aws:sqs:us-east-1:{ACCOUNT}:mlops-failures-team-models"
    assert retries["destination_config"] == [{"on_failure": [{"destination": queue}], "on_success": []}]
    # With a dead-letter queue as well, every failed event would arrive twice.
    assert function_of(plan, name)["dead_letter_config"] == []


def test_settings_reach_the_functions_in_the_agreed_form(plan: dict[str, Any]) -> None:
    training = function_of(plan, "training_orchestrator")["environment"][0]["variables"]
    evaluator = function_of(plan, "model_evaluator")["environment"][0]["variables"]

    assert json.loads(training["HYPERPARAMETERS"]) == {
        "batch_size": "16",
        "epochs": "5",
        "holdout_fraction": "0.2",
        "learning_rate": "5e-5",
        "max_length": "128",
        "seed": "42",
    }
    assert (training["BASE_MODEL"], training["HUB_TOKEN_SECRET_ARN"]) == ("auto", "")
    assert (training["BASE_MODEL_REVISION"], training["CANDIDATES"]) == ("", "auto")
    assert re.fullmatch(r"sentence-transformers/all-MiniLM-L6-v2@[0-9a-f]{40}", training["BASE_MODEL_ENGLISH"])
    # Spot is a choice.
    assert (training["TRAINING_INSTANCE_COUNT"], training["TRAINING_MAX_WAIT_SECONDS"]) == ("1", "")
    assert evaluator["CHAMPION_MARGIN"] == "0.005"
    assert json.loads(evaluator["THRESHOLDS"]) == {"accuracy": {"min": 0.8}, "macro_f1": {"min": 0.7}}
    assert json.loads(evaluator["MODEL_THRESHOLDS"]) == {"spam": {"accuracy": {"min": 0.95}, "eval_loss": {"max": 0.2}}}


def test_rules_match_the_events_of_this_stack(plan: dict[str, Any]) -> None:
    rules = {
        address.split('"')[1]: json.loads(change["after"]["event_pattern"])
        for address, change in plan.items()
        if ".aws_cloudwatch_event_rule.this[" in address and change["after"]["event_pattern"]
    }

    def created(prefix: str) -> dict[str, Any]:
        return {
            "source": ["aws.s3"],
            "account": [ACCOUNT],
            "detail-type": ["Object Created"],
            "detail": {"bucket": {"name": [BUCKET]}, "object": {"key": [{"prefix": prefix}]}},
        }

    endpoint = rules.pop("endpoint")
    assert rules == {
        "uploads": created("data/train/"),
        "approved": created("models/approved/"),
        "training_ended": {
            "source": ["aws.sagemaker"],
            "account": [ACCOUNT],
            "detail-type": ["SageMaker Training Job State Change"],
            "detail": {
                "OutputDataConfig": {"S3OutputPath": [{"prefix": f"s3://{BUCKET}/"}, {"exists": False}]},
                "TrainingJobName": [{"prefix": "training-job-"}],
                "TrainingJobStatus": ["Completed", "Failed", "Stopped"],
            },
        },
    }
    assert (endpoint["source"], endpoint["detail-type"]) == (["aws.sagemaker"], ["SageMaker Endpoint State Change"])
    # Not the bare prefix: that would match another stack's "sentiment2".
    assert endpoint["detail"]["EndpointName"] == ["sentiment", {"prefix": "sentiment-"}]
    assert {"IN_SERVICE", "InService", "FAILED", "Failed"} <= set(endpoint["detail"]["EndpointStatus"])


def test_the_sweep_comes_on_schedule(plan: dict[str, Any]) -> None:
    rule = plan['module.eventbridge.aws_cloudwatch_event_rule.this["sweep"]']["after"]

    assert (rule["schedule_expression"], rule["event_pattern"]) == ("rate(15 minutes)", None)


def test_every_target_retries_and_has_a_permission_of_its_own(plan: dict[str, Any]) -> None:
    targets = {address.split('"')[1] for address in plan if ".aws_cloudwatch_event_target.this[" in address}
    assert targets == {
        "approved/deployment_orchestrator",
        "endpoint/deployment_orchestrator",
        "sweep/deployment_orchestrator",
        "sweep/model_evaluator",
        "sweep/training_orchestrator",
        "training_ended/model_evaluator",
        "training_ended/training_orchestrator",
        "uploads/training_orchestrator",
    }
    for name in targets:
        target = plan[f'module.eventbridge.aws_cloudwatch_event_target.this["{name}"]']
        permission = plan[f'module.eventbridge.aws_lambda_permission.this["{name}"]']
        is_sweep = name.startswith("sweep/")
        assert target["after"]["input"] == ('{"source":"sweep"}' if is_sweep else None)
        assert target["after"]["retry_policy"] == [
            {"maximum_event_age_in_seconds": 900, "maximum_retry_attempts": 3}
            if is_sweep
            else {"maximum_event_age_in_seconds": 86400, "maximum_retry_attempts": 185}
        ]
        function = name.split("/")[1].replace("_", "-")
        assert permission["after"]["function_name"] == f"mlops-{function}-team-models"
        assert target["after"]["dead_letter_config"] == [
            {"arn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:mlops-failures-team-models"}
        ]
        assert permission["after"]["principal"] == "events.amazonaws.com"
        assert permission["after_unknown"]["source_arn"] is True


def test_whatever_takes_tags_has_them_from_the_stack(plan: dict[str, Any]) -> None:
    taggable = {address: change["after"]["tags"] for address, change in plan.items() if "tags" in change["after"]}
    # Objects take ten tags at most, so that a caller's default tags could break them.
    del taggable["module.s3.aws_s3_object.training_source"]

    assert len(taggable) > 20
    assert {address: tags for address, tags in taggable.items() if tags != {"Project": "atml", "Stack": BUCKET}} == {}


def test_a_star_resource_stands_only_where_aws_has_nothing_narrower(plan: dict[str, Any]) -> None:
    starred = set()
    for address, change in plan.items():
        if ".aws_iam_role_policy." in address:
            for statement in statements(change["after"]["policy"]).values():
                assert not [action for action in as_list(statement["Action"]) if "*" in action], address
                if "*" in as_list(statement["Resource"]):
                    starred.update(as_list(statement["Action"]))

    assert starred == {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}


def test_what_an_option_needs_is_granted_with_the_option_only(plan: dict[str, Any]) -> None:
    granted = {
        sid
        for address, change in plan.items()
        if ".aws_iam_role_policy." in address
        for sid in statements(change["after"]["policy"])
    }

    # Of kms_key_arn, base_model = "s3://...", hub_token_secret_arn, deployment_alarm_models and training_use_spot.
    assert not granted & {
        "KeepCheckpoints",
        "ListCheckpoints",
        "UseKey",
        "EncryptModel",
        "ReadBaseModel",
        "ListBaseModel",
        "ReadHubToken",
        "SeeRollbackAlarms",
    }


def test_a_training_job_may_read_the_live_model_and_what_that_was_trained_on(plan: dict[str, Any]) -> None:
    training = statements(plan["module.iam.aws_iam_role_policy.training"]["after"]["policy"])
    read = training["ReadDataSourceAndLiveModel"]["Resource"]
    listed = training["ListChannels"]["Condition"]["StringLike"]["s3:prefix"]

    files = ["data/snapshots/*/data.csv", "models/approved/*/model.tar.gz"]
    assert listed == files
    program = "data/snapshots/*/training.tar.gz"
    assert sorted(read) == sorted(f"arn:aws:s3:::{BUCKET}/{name}" for name in (*files, program))


def test_roles_are_passed_to_sagemaker_only(plan: dict[str, Any]) -> None:
    passed = {}
    for name in FUNCTIONS:
        policy = plan[f'module.iam.aws_iam_role_policy.function["{name}"]']["after"]["policy"]
        for statement in statements(policy).values():
            if statement["Action"] == "iam:PassRole":
                assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
                passed[name] = statement["Resource"]

    assert passed == {
        "training_orchestrator": f"arn:aws:iam::{ACCOUNT}:role/mlops-training-team-models",
        "deployment_orchestrator": f"arn:aws:iam::{ACCOUNT}:role/mlops-model-team-models",
    }


@pytest.fixture(scope="module")
def canary_plan(configuration: Path) -> dict[str, Any]:
    """What `apply` would create for endpoints on four instances with a canary, by address."""
    settings = [
        "-var=bucket_name=" + BUCKET,
        "-var=endpoint_type=instance",
        "-var=endpoint_instance_count=4",
        "-var=deployment_strategy=canary",
        "-var=deployment_step_percent=25",
        '-var=deployment_alarm_models=["default","reviews"]',
    ]
    made = terraform("plan", "-input=false", "-no-color", "-out=canary.tfplan", *settings, folder=configuration)
    assert made.returncode == 0, made.stderr
    shown = terraform("show", "-json", "canary.tfplan", folder=configuration)
    assert shown.returncode == 0, shown.stderr
    return {change["address"]: change["change"] for change in json.loads(shown.stdout)["resource_changes"]}


def test_serverless_endpoints_get_no_deployment_settings(plan: dict[str, Any]) -> None:
    variables = function_of(plan, "deployment_orchestrator")["environment"][0]["variables"]

    assert (variables["DEPLOYMENT_POLICY"], variables["KEEP_MODELS"]) == ("{}", "3")
    assert not [address for address in plan if "metric_alarm.endpoint" in address]


def test_a_canary_reaches_the_function_as_sagemaker_takes_it(canary_plan: dict[str, Any]) -> None:
    variables = function_of(canary_plan, "deployment_orchestrator")["environment"][0]["variables"]
    policy = json.loads(variables["DEPLOYMENT_POLICY"])

    shape = botocore.session.get_session().get_service_model("sagemaker").shape_for("DeploymentConfig")
    assert not ParamValidator().validate(policy, shape).has_errors()
    assert policy["BlueGreenUpdatePolicy"] == {
        "TrafficRoutingConfiguration": {
            "Type": "CANARY",
            "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 25},
            "WaitIntervalInSeconds": 300,
        },
        "TerminationWaitInSeconds": 300,
        "MaximumExecutionTimeoutInSeconds": 4500,
    }
    names = [alarm["AlarmName"] for alarm in policy["AutoRollbackConfiguration"]["Alarms"]]
    checks = ("4xx-errors", "5xx-errors", "latency")
    assert names == sorted(f"mlops-endpoint{suffix}/{check}" for suffix in ("", "-reviews") for check in checks)


def test_an_alarm_watches_its_endpoint_and_reaches_people(canary_plan: dict[str, Any]) -> None:
    alarm = canary_plan['module.monitoring.aws_cloudwatch_metric_alarm.endpoint["mlops-endpoint/4xx-errors"]']["after"]

    assert (alarm["namespace"], alarm["metric_name"]) == ("AWS/SageMaker", "Invocation4XXErrors")
    assert alarm["dimensions"] == {"EndpointName": "mlops-endpoint", "VariantName": "AllTraffic"}
    assert alarm["treat_missing_data"] == "notBreaching"
    topic = canary_plan["module.monitoring.aws_sns_topic_policy.this"]["after"]["policy"]
    allowed = statements(topic)["Alarms"]["Condition"]["ArnLike"]["aws:SourceArn"]
    assert f"arn:aws:cloudwatch:us-east-1:{ACCOUNT}:alarm:mlops-endpoint-reviews/*" in allowed


def test_only_what_carries_the_stacks_tag_may_be_cleaned_up(plan: dict[str, Any]) -> None:
    policy = plan['module.iam.aws_iam_role_policy.function["deployment_orchestrator"]']["after"]["policy"]

    for action in ("DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"):
        clean_up = statements(policy)[action]
        assert clean_up["Action"] == f"sagemaker:{action}"
        assert clean_up["Condition"] == {"StringEquals": {"aws:ResourceTag/Stack": BUCKET}}
