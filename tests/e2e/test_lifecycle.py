"""A stack from its first apply to its end, beside another one in the same local account and region.

One local AWS for all of it, in the order of the file: apply twice, small changes, two stacks at work, destroy.
The first stack makes its bucket, the second is given one that exists. `-s` prints the plans and listings.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import package
from deployed import Pipeline, make_rows
from local import stack
from mlops import cli
from mlops.predict import predict
from mlops.records import PAUSED_KEY, job_of_config
from mlops.status import newest_jobs
from mlops.target import Target, connect
from rendered import function_address
from tiny_model import build_tiny_model

FIRST, SECOND = "first-models", "second-data"
LABELS = ("ham", "spam")
ROWS = make_rows(LABELS, 120, seed=50)
TRAINING_LOG = "/aws/sagemaker/TrainingJobs"


@contextmanager
def at(folder: Path) -> Iterator[None]:
    """The stack whose state lies in this folder is the one that commands talk to."""
    before = os.environ.get("LOCAL_STATE")
    os.environ["LOCAL_STATE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_STATE"]
        else:
            os.environ["LOCAL_STATE"] = before


@dataclass
class Deployment:
    """One stack: its state folder, and the pipeline as its users see it."""

    folder: Path
    pipeline: Pipeline

    @property
    def target(self) -> Target:
        return self.pipeline.target

    def terraform(self, *arguments: str) -> str:
        """Run one Terraform command; returns what it printed."""
        with at(self.folder):
            command = stack.terraform_command(*arguments)
        environment = stack.terraform_environment(self.target.environment)
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def plan(self, *options: str) -> dict[str, dict[str, Any]]:
        """What an apply would change, by address: {"actions", "changed": the attributes that differ}. Printed, too."""
        text = self.terraform("plan", "-input=false", "-no-color", "-out=test.tfplan", *options)
        shown = [line for line in text.splitlines() if line.startswith(("  # ", "Plan:", "No changes"))]
        print("\n".join(["", *shown]))
        changes = {}
        for change in json.loads(self.terraform("show", "-json", "test.tfplan"))["resource_changes"]:
            actions, before, after = (change["change"][part] for part in ("actions", "before", "after"))
            if change["mode"] == "managed" and actions != ["no-op"]:
                unknown = change["change"]["after_unknown"]
                names = {name for name in after or {} if (before or {}).get(name) != after[name]}
                names |= {name for name, value in unknown.items() if value is True}
                changes[change["address"]] = {"actions": actions, "changed": names}
        return changes

    def moves(self) -> dict[str, str]:
        """What the last plan takes from one address to another."""
        changes = json.loads(self.terraform("show", "-json", "test.tfplan"))["resource_changes"]
        return {change["previous_address"]: change["address"] for change in changes if "previous_address" in change}

    @property
    def variables(self) -> dict[str, Any]:
        """The stack's Terraform variables."""
        known: dict[str, Any] = json.loads((self.folder / "terraform" / "local.auto.tfvars.json").read_text())
        return known

    def run(self, *arguments: str) -> int:
        """Run a command of mlops; returns its exit status."""
        with at(self.folder):
            return cli.main([*arguments, "--target", "local"])

    def log_lines(self) -> dict[str, int]:
        """How many lines each of the functions has logged: none as long as it was never invoked."""
        logs = self.target.client("logs")
        counts = {}
        for function in self.target.functions.values():
            pages = logs.get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{function}")
            counts[function] = sum(len(page["events"]) for page in pages)
        return counts


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny-model")


@pytest.fixture(scope="module")
def settings(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The variables that both stacks share."""
    packages = tmp_path_factory.mktemp("packages")
    package.build(package.ROOT, packages)
    return {
        "base_model": str(base_model),
        "package_dir": str(packages),
        "hyperparameters": {"epochs": "12", "learning_rate": "5e-3", "batch_size": "16", "max_length": "32"},
        # Only events call the functions here, so that each invocation has a cause that the test knows.
        "sweep_schedule": "rate(1 day)",
    }


@pytest.fixture(scope="module")
def first(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack with a bucket of its own, in a local AWS of its own."""
    folder = tmp_path_factory.mktemp("first") / "state"
    with at(folder):
        stack.up(variables=settings | {"bucket_name": FIRST, "endpoint_name": "first"})
    try:
        with at(folder):
            target = connect("local")
        yield Deployment(folder, Pipeline(target, inbox="inbox-first"))
    finally:
        with at(folder):
            stack.down()


@pytest.fixture(scope="module")
def second(
    first: Deployment, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A stack in the same account and region, with a bucket that existed before it."""
    s3 = first.target.client("s3")
    s3.create_bucket(Bucket=SECOND)
    s3.put_bucket_versioning(Bucket=SECOND, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=SECOND, Key="of/others.txt", Body=b"theirs")
    folder = tmp_path_factory.mktemp("second") / "state"
    with at(first.folder):
        running = stack.running()
    own = {"bucket_name": SECOND, "endpoint_name": "second", "create_bucket": False, "manage_bucket_notification": True}
    with at(folder):
        stack.up(variables=settings | own, beside=running)
        target = connect("local")
    yield Deployment(folder, Pipeline(target, inbox="inbox-second"))
    with at(folder):
        stack.down()


def listing(target: Target) -> dict[str, list[str]]:
    """Everything there is in the account, by service."""
    sagemaker, logs, s3 = (target.client(name) for name in ("sagemaker", "logs", "s3"))

    def all_of(service: str, operation: str, member: str, name: str) -> list[str]:
        pages = target.client(service).get_paginator(operation).paginate()
        return sorted(item[name].rsplit(":", 1)[-1] for page in pages for item in page[member])

    def alive(status: str) -> list[str]:
        pages = sagemaker.get_paginator("list_training_jobs").paginate(StatusEquals=status)
        return [item["TrainingJobName"] for page in pages for item in page["TrainingJobSummaries"]]

    queues = target.client("sqs").list_queues().get("QueueUrls", [])
    groups = [group for page in logs.get_paginator("describe_log_groups").paginate() for group in page["logGroups"]]
    found = {
        "S3 buckets": sorted(bucket["Name"] for bucket in s3.list_buckets()["Buckets"]),
        "Lambda functions": all_of("lambda", "list_functions", "Functions", "FunctionName"),
        "EventBridge rules": all_of("events", "list_rules", "Rules", "Name"),
        "SNS topics": all_of("sns", "list_topics", "Topics", "TopicArn"),
        "SQS queues": sorted(url.rsplit("/", 1)[-1] for url in queues),
        "IAM roles": all_of("iam", "list_roles", "Roles", "RoleName"),
        "CloudWatch alarms": all_of("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
        "log groups": sorted(group["logGroupName"] for group in groups),
        "SageMaker endpoints": all_of("sagemaker", "list_endpoints", "Endpoints", "EndpointName"),
        "SageMaker endpoint configs": all_of(
            "sagemaker", "list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"
        ),
        "SageMaker models": all_of("sagemaker", "list_models", "Models", "ModelName"),
        "SageMaker training jobs that run": alive("InProgress") + alive("Stopping"),
    }
    print("\n" + "\n".join(f"  {service:<34} {', '.join(names) or '-'}" for service, names in found.items()))
    return found


def of_first(found: dict[str, list[str]], jobs: set[str]) -> dict[str, list[str]]:
    """What a listing has of the first stack, by its name or one of its jobs."""
    marks = (FIRST, "/Endpoints/first", *jobs)
    mine = {
        service: [name for name in names if name == "first" or any(mark in name for mark in marks)]
        for service, names in found.items()
    }
    return {service: names for service, names in mine.items() if names}


def jobs_of(deployment: Deployment) -> set[str]:
    return set(newest_jobs(deployment.target))


def bucket_keys(deployment: Deployment) -> set[str]:
    return set(deployment.pipeline.keys(""))


# --- applied once more, and changed -----------------------------------------------------------------


def test_a_second_apply_changes_nothing(first: Deployment) -> None:
    assert first.plan() == {}


# What a function's module held itself, before the functions had a module in common.
MOVED = ("aws_cloudwatch_log_group", "aws_lambda_function", "aws_lambda_function_event_invoke_config")


@pytest.mark.parametrize("module", ["", "module.pipeline."], ids=["the root", "a module"])
def test_a_stack_from_before_the_functions_had_a_module_in_common_is_only_moved(
    first: Deployment, tmp_path: Path, module: str
) -> None:
    deployed, folder = first.folder / "terraform", tmp_path / "terraform"
    stack_folder = folder / "stack" if module else folder
    configuration = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfplan", "*.json")
    shutil.copytree(deployed, stack_folder, ignore=configuration)
    shutil.copy(deployed / "provider.tf.json", folder)
    if module:
        pipeline = {"source": "./stack", **first.variables}
        (folder / "main.tf.json").write_text(json.dumps({"module": {"pipeline": pipeline}}))
    else:
        shutil.copy(deployed / "local.auto.tfvars.json", folder)
    # The state as the version before left it: this one's, with its addresses.
    state = json.loads((deployed / "terraform.tfstate").read_text().replace(".module.function", ""))
    for resource in state["resources"]:
        resource["module"] = f"{module}{resource.get('module', '')}".rstrip(".")
        if not resource["module"]:
            del resource["module"]
        for instance in resource["instances"]:
            instance["dependencies"] = [f"{module}{address}" for address in instance.get("dependencies", [])]
    (folder / "terraform.tfstate").write_text(json.dumps(state | ({"outputs": {}} if module else {})))
    before = Deployment(tmp_path, first.pipeline)

    # Nothing was changed since the test above, so it need not be read again.
    assert before.plan("-refresh=false") == {}
    assert before.moves() == {
        f"{module}module.lambda_{name}.{resource}.this": f"{module}{function_address(name, resource)}"
        for name in package.FUNCTIONS
        for resource in MOVED
    }


# Makes a change to a stack, with a folder for what it needs, until it is left.
Change = Callable[[Deployment, Path], AbstractContextManager[None]]


def one_line_more(source: str) -> Change:
    """A source file gets a line more, and the packages are built anew."""

    @contextmanager
    def change(deployment: Deployment, folder: Path) -> Iterator[None]:
        for part in ("lambda", "scripts/training"):
            shutil.copytree(package.ROOT / part, folder / part)
        with (folder / source).open("a") as file:
            file.write("# one line more\n")
        packages = Path(deployment.variables["package_dir"])
        package.build(folder, packages)
        try:
            yield
        finally:
            package.build(package.ROOT, packages)

    return change


def changed_to(**variables: Any) -> Change:
    """Variables of Terraform get other values."""

    @contextmanager
    def change(deployment: Deployment, folder: Path) -> Iterator[None]:
        path = deployment.folder / "terraform" / "local.auto.tfvars.json"
        before = path.read_text()
        path.write_text(json.dumps(deployment.variables | variables))
        try:
            yield
        finally:
            path.write_text(before)

    return change


EVALUATOR = function_address("model_evaluator")
TRAINER = function_address("training_orchestrator")
DEPLOYER = function_address("deployment_orchestrator")
SOURCE = "module.s3.aws_s3_object.training_source"


@pytest.mark.parametrize(
    ("change", "attributes"),
    [
        pytest.param(
            changed_to(thresholds={"accuracy": {"min": 0.9}, "macro_f1": {"min": 0.7}}),
            {EVALUATOR: "environment"},
            id="one threshold",
        ),
        pytest.param(
            changed_to(training_instance_type="ml.m5.2xlarge"), {TRAINER: "environment"}, id="one instance type"
        ),
        pytest.param(
            one_line_more("lambda/deployment_orchestrator/handler.py"),
            {DEPLOYER: "source_code_hash"},
            id="one line of a handler",
        ),
        pytest.param(
            one_line_more("scripts/training/train.py"),
            # The function is told which program there is, to know data that this program has trained on.
            {SOURCE: "source_hash", TRAINER: "environment"},
            id="one line of the training program",
        ),
    ],
)
def test_the_plan_of_a_small_change_touches_exactly_that(
    first: Deployment,
    tmp_path: Path,
    change: Change,
    attributes: dict[str, str],
) -> None:
    # Nobody has changed anything since the test above, so it need not be read again.
    with change(first, tmp_path):
        changes = first.plan("-refresh=false")
    # AWS says anew when a function was changed, and which version of an object this is.
    incidental = {"last_modified", "version_id"}
    assert {name: item["actions"] for name, item in changes.items()} == {name: ["update"] for name in attributes}
    changed = {name: item["changed"] - incidental for name, item in changes.items()}
    assert changed == {name: {attribute} for name, attribute in attributes.items()}


def test_the_state_moves_to_s3_by_the_example_and_is_locked_there(first: Deployment) -> None:
    s3 = first.target.client("s3")
    s3.create_bucket(Bucket="my-team-terraform-state")
    resources = first.terraform("state", "list")
    backend = first.folder / "terraform" / "backend.tf"
    local = f"""
    endpoints                   = {{ s3 = "{first.target.environment["AWS_ENDPOINT_URL"]}" }}
    skip_credentials_validation = true
    skip_requesting_account_id  = true
    use_path_style              = true
    use_lockfile"""
    example = (package.ROOT / "terraform" / "backend.tf.example").read_text()
    backend.write_text(example.replace("    use_lockfile", local))
    first.terraform("init", "-migrate-state", "-force-copy", "-input=false")
    assert first.terraform("state", "list") == resources
    s3.put_object(Bucket="my-team-terraform-state", Key="atml/terraform.tfstate.tflock", Body=b'{"ID": "somebody"}')
    with pytest.raises(AssertionError, match="Error acquiring the state lock"):
        first.plan()
    s3.delete_object(Bucket="my-team-terraform-state", Key="atml/terraform.tfstate.tflock")
    backend.unlink()
    first.terraform("init", "-migrate-state", "-force-copy", "-input=false")
    assert first.terraform("state", "list") == resources
    s3.delete_object(Bucket="my-team-terraform-state", Key="atml/terraform.tfstate")
    s3.delete_bucket(Bucket="my-team-terraform-state")


# --- two stacks -------------------------------------------------------------------------------------


def test_two_stacks_in_one_account_each_handle_their_own(first: Deployment, second: Deployment) -> None:
    assert set(second.log_lines().values()) == {0}
    first.pipeline.train_and_deploy("default", ROWS)
    assert set(second.log_lines().values()) == {0}
    quiet = first.log_lines()
    assert 0 not in quiet.values()

    second.pipeline.train_and_deploy("default", make_rows(LABELS, 120, seed=51))
    assert first.log_lines() == quiet
    assert 0 not in second.log_lines().values()

    assert not jobs_of(first) & jobs_of(second)
    for deployment, endpoint in ((first, "first"), (second, "second")):
        pipeline = deployment.pipeline
        (job,) = jobs_of(deployment)
        assert pipeline.subjects_of("default") == [
            "Training started",
            "Model approved",
            "Deployment started",
            "Deployment successful",
        ]
        assert all(job in email["text"] for email in pipeline.emails)
        assert pipeline.keys("models/decisions/") == [f"models/decisions/{job}.json"]
        described = pipeline.sagemaker.describe_endpoint(EndpointName=endpoint)
        assert job_of_config(described["EndpointConfigName"]) == job
        tags = pipeline.sagemaker.list_tags(ResourceArn=described["EndpointArn"])["Tags"]
        assert {"Key": "Stack", "Value": deployment.target.bucket} in tags
        assert pipeline.failed_events() == []
        # The model servers' first lines arrive a little later: then there is all that the listings below should have.
        pipeline.wait_for("the endpoint's log", partial(log_of, deployment, endpoint))


def log_of(deployment: Deployment, endpoint: str) -> list[Any]:
    logs, name = deployment.target.client("logs"), f"/aws/sagemaker/Endpoints/{endpoint}"
    found: list[Any] = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    return found


# --- destroy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--confirm", SECOND], f"CONFIRM={SECOND} is not {FIRST}: nothing was changed"),
        ([], f"nothing was changed (CONFIRM={FIRST} confirms for a script)"),
        (["--data", "all", "--confirm", FIRST], "DATA=all: it is delete, or unset to keep the data"),
    ],
)
def test_destroy_without_the_buckets_name_changes_nothing(
    first: Deployment,
    arguments: list[str],
    reason: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        before = listing(first.target)
        capfd.readouterr()
        assert first.run("destroy", *arguments) == 2
    assert reason in capfd.readouterr().err
    assert listing(first.target) == before


def test_destroy_names_what_goes_and_leaves_the_data_and_the_other_stack(
    first: Deployment, second: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs, data = jobs_of(first), bucket_keys(first)
    before = listing(first.target)
    capfd.readouterr()
    began = time.monotonic()
    assert first.run("destroy", "--confirm", FIRST) == 0
    seconds = time.monotonic() - began
    said = capfd.readouterr().out
    with capfd.disabled():
        print(f"\nmake destroy, {seconds:.0f} s\n{said}")
        after = listing(first.target)
    going = said.partition("It keeps the bucket")[0]
    mine = of_first(before, jobs)
    missing = {
        name
        for service, names in mine.items()
        if service != "S3 buckets"
        for name in names
        if name not in going and not name.startswith("/aws/sagemaker/")
    }
    assert missing == set()
    assert of_first(after, jobs) == {"S3 buckets": [FIRST], "log groups": ["/aws/sagemaker/Endpoints/first"]}
    assert bucket_keys(first) == data - {"code/training.tar.gz"} | {PAUSED_KEY}
    others = {
        service: [name for name in names if name not in mine.get(service, [])] for service, names in before.items()
    }
    left = {service: [name for name in names if name not in mine.get(service, [])] for service, names in after.items()}
    assert left == others
    answer = predict(second.target, "default", ROWS[0][0])
    assert answer["label"] == ROWS[0][1]


def test_destroy_again_says_that_there_is_nothing_left(first: Deployment, capfd: pytest.CaptureFixture[str]) -> None:
    assert first.run("destroy") == 0
    said = capfd.readouterr().out
    assert "nothing is deployed from here: there is nothing to destroy" in said
    assert f"kept  {FIRST}" in said


def test_deploy_takes_the_kept_bucket_up_again_and_resume_brings_back_what_was_live(first: Deployment) -> None:
    data = bucket_keys(first)
    changes = first.plan()
    assert {address for address in changes if address.startswith("module.s3.aws_s3_bucket")} == set()
    first.terraform("apply", "-auto-approve", "-input=false", "-no-color")
    assert data <= bucket_keys(first)
    # The topic is a new one: whoever listened to the old one subscribes again, as with an email address.
    first.pipeline = Pipeline(first.target, inbox="inbox-first")
    assert first.run("resume") == 0
    first.pipeline.wait_for_email("default", "Deployment successful")
    assert predict(first.target, "default", ROWS[0][0])["label"] == ROWS[0][1]


def test_a_bucket_whose_state_is_lost_is_refused_until_it_is_imported(first: Deployment) -> None:
    deploy = [sys.executable, "-m", "mlops", "plan", "--dir", str(first.folder / "terraform")]
    deploy += ["--", "-input=false", "-no-color"]
    environment = stack.terraform_environment(first.target.environment)
    first.terraform("state", "rm", "module.s3.aws_s3_bucket.this[0]")
    refused = subprocess.run(deploy, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"the bucket {FIRST} exists already" in refused.stderr
    assert f"terraform.py import 'module.s3.aws_s3_bucket.this[0]' {FIRST}" in refused.stderr
    first.terraform("import", "-input=false", "-no-color", "module.s3.aws_s3_bucket.this[0]", FIRST)
    changes = {address: item for address, item in first.plan().items() if "aws_s3_bucket" in address}
    # What S3 does not know cannot be read back: force_destroy is Terraform's own.
    assert {name: item["changed"] for name, item in changes.items()} in (
        {},
        {"module.s3.aws_s3_bucket.this[0]": {"force_destroy"}},
    )


def test_destroy_with_the_data_killed_half_way_and_run_again_leaves_nothing(
    first: Deployment, second: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(first)
    for key in ("odd/a b+é&<.csv", "odd/tab\there"):
        first.pipeline.upload(key, b"text,label\n")
    events = first.target.client("events")
    with at(first.folder):
        command = [sys.executable, "-m", "mlops", "destroy", "--confirm", FIRST, "--data", "delete"]
        killed = subprocess.Popen([*command, "--target", "local"], start_new_session=True)

    def rules() -> list[str]:
        return [rule["Name"] for rule in events.list_rules()["Rules"] if FIRST in rule["Name"]]

    deadline = time.monotonic() + 120
    while len(rules()) == 5:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert of_first(listing(first.target), jobs)["S3 buckets"] == [FIRST]
    capfd.readouterr()
    assert first.run("destroy", "--confirm", FIRST, "--data", "delete") == 0
    with capfd.disabled():
        print("\nmake destroy DATA=delete, after a kill\n" + capfd.readouterr().out)
        after = listing(first.target)
    assert of_first(after, jobs) == {}
    assert TRAINING_LOG in after["log groups"]
    assert first.run("destroy", "--data", "delete") == 0
    assert "there is nothing to destroy" in capfd.readouterr().out
    assert predict(second.target, "default", ROWS[0][0])["label"] == ROWS[0][1]


def test_destroy_leaves_an_existing_bucket_as_it_found_it_but_for_the_data(
    second: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    s3, data = second.pipeline.s3, bucket_keys(second)
    assert second.run("destroy", "--confirm", SECOND, "--data", "delete") == 2
    assert "was not made by this stack" in capfd.readouterr().err
    assert second.run("destroy", "--confirm", SECOND) == 0
    said = capfd.readouterr().out
    for name in ("inbox-first", "inbox-second"):
        second.pipeline.sqs.delete_queue(QueueUrl=second.pipeline.sqs.get_queue_url(QueueName=name)["QueueUrl"])
    with capfd.disabled():
        print(f"\nmake destroy of the second stack\n{said}")
        left = listing(second.target)
    assert {service: names for service, names in left.items() if names} == {
        "S3 buckets": [SECOND],
        "log groups": ["/aws/sagemaker/Endpoints/second", TRAINING_LOG],
    }
    assert bucket_keys(second) == data - {"code/training.tar.gz"} | {PAUSED_KEY}
    assert s3.get_bucket_versioning(Bucket=SECOND)["Status"] == "Enabled"
    assert "EventBridgeConfiguration" not in s3.get_bucket_notification_configuration(Bucket=SECOND)
