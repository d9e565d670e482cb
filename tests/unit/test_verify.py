"""`make verify-aws`: what it may cost, what it compares, and that it deletes its stack however it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core.models import DEFAULT_ACCOUNT_ID

from local import stack
from mlops import cli, destroy, scenario, verify
from mlops.target import Target, UsageError

REGION = "eu-west-1"
NAME = "mlops-verify-0a1b2c"
HERE = {"account": DEFAULT_ACCOUNT_ID, "region": REGION}


# --- what it may cost -----------------------------------------------------------------------------------


def test_the_bound_is_that_of_the_limits_that_the_stack_gets() -> None:
    settings = verify.variables(NAME)
    hours = settings["max_training_jobs_per_day"] * settings["training_max_runtime_seconds"] / 3600
    # At midnight (UTC), the day's limit starts anew.
    training = 2 * hours * verify.INSTANCE_HOUR
    requests = scenario.PREDICTIONS * 60 * verify.SERVERLESS_SECOND
    assert [dollars for _, dollars in verify.costs()] == pytest.approx([training, requests, verify.EVERYTHING_ELSE])
    assert (settings["training_instance_type"], settings["serverless_memory_mb"]) == ("ml.m5.xlarge", 3072)


def test_the_prices_are_those_of_the_table_of_costs() -> None:
    page = (stack.ROOT / "terraform" / "README.md").read_text()
    assert f"`{verify.INSTANCE_TYPE}`, ${verify.INSTANCE_HOUR} an hour" in page
    assert f"3 GB, ${verify.SERVERLESS_SECOND:.5f} per second" in page


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("1", "LIMIT=1: a run may cost up to $2.71"),
        ("nan", "LIMIT=nan: a run may cost up to $2.71"),
        ("five", "LIMIT=five: an amount in US dollars is needed, such as 5"),
    ],
)
def test_a_limit_below_the_bound_is_refused_before_anything_is_looked_at(
    limit: str, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "find_account", lambda where: pytest.fail("it was looked for"))
    assert cli.main(["verify-aws", "--limit", limit]) == 2
    assert reason in capsys.readouterr().err


def test_a_limit_at_the_bound_is_accepted() -> None:
    most = sum(dollars for _, dollars in verify.costs())
    assert verify.read_limit(str(most)) == most
    assert verify.read_limit("") == 5.0


def test_a_run_makes_no_more_requests_than_it_pays_for(account: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "PREDICTIONS", 0)
    run = scenario.Run(account, None, scenario.Notes(scenario.Names({})), 0.0)  # type: ignore[arg-type]
    with pytest.raises(scenario.Failed, match="more than 0 requests"):
        run.invoke(b"{}")


# --- what is compared -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (f"s3://{NAME}/x in {REGION}", "s3://<stack>/x in <region>"),
        ("training-job-20261126-101112-0a1b2c3d waits", "<job 1> waits"),
        ("serves training-job-20261126-101112-0a1b2c3d-00ff00ff.", "serves <job 1>-<hash>."),
        ("since 2026-11-26T10:11 by", "since <time> by"),
        ("at 2026-11-26T10:11:12.123456+00:00", "at <time>"),
        ("at 2026-11-26T10:11:12Z", "at <time>"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id <id>"),
        ("accuracy 0.941  macro_f1 0.9411", "accuracy <number>  macro_f1 <number>"),
        ("400 ValidationError: Endpoint x not found", "400 ValidationError: Endpoint x not found"),
    ],
)
def test_what_differs_from_run_to_run_is_replaced_and_nothing_else(text: str, plain: str) -> None:
    assert scenario.Names({NAME: "<stack>", REGION: "<region>"}).plain(text) == plain


def test_jobs_are_numbered_as_they_appear() -> None:
    first, second = "training-job-20261126-101112-0a1b2c3d", "training-job-20261126-101113-0a1b2c3e"
    names = scenario.Names({})
    assert [names.plain(text) for text in (second, first, second)] == ["<job 1>", "<job 2>", "<job 1>"]


def test_a_shape_has_paths_and_types_but_no_values() -> None:
    document = {
        "a": {"b": 1, "c": 1.5, "d": None},
        "list": [{"x": "text"}, {"y": True}],
        "none": [],
        "at": datetime.now(UTC),
        "Tags": {"of": "anybody"},
    }
    assert sorted(scenario.shape(document)) == [
        "Tags: map",
        "a.b: number",
        "a.c: number",
        "a.d: null",
        "at: time",
        "list[].x: text",
        "list[].y: boolean",
        "none: empty list",
    ]


@pytest.mark.parametrize(
    ("seen", "differences"),
    [
        (["a: 1", "b: 2"], []),
        (["a: 1"], ["-b: 2"]),
        (["a: 1", "b: 3"], ["-b: 2", "+b: 3"]),
        (["a: 1", "b: 2", "c: 4"], ["+c: 4"]),
    ],
)
def test_the_file_has_exactly_the_lines_that_differ_from_the_local_aws(
    seen: list[str], differences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "BASELINE", tmp_path / "local.txt")
    (tmp_path / "local.txt").write_text("a: 1\nb: 2\n")
    assert verify.report(tmp_path, scenario.Notes(scenario.Names({}), facts=seen)) == len(differences)
    written = (tmp_path / "differences.txt").read_text().splitlines()
    assert [line for line in written[2:] if not line.startswith("@@")] == differences
    assert written == [] if not differences else written[:2] == ["--- the local AWS", "+++ here"]


# --- however it ends, the stack is deleted --------------------------------------------------------------


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Target]:
    """An empty account of moto's, and a folder for the run."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(verify, "GONE_SECONDS", 0.0)
    with mock_aws():
        yield Target("AWS", boto3.Session(region_name=REGION), {}, {}, folder=tmp_path / "terraform")


class Played:
    """What stands for Terraform, the scenario and destroy; each notes that it was called."""

    def __init__(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target = target
        self.calls: list[str] = []
        self.status = 0
        monkeypatch.setattr(verify, "start", self.start)
        monkeypatch.setattr(verify, "provider_version", lambda folder: "5.100.0")
        monkeypatch.setattr(verify, "deployed", lambda target: target)
        monkeypatch.setattr(scenario, "Inbox", lambda *arguments: None)
        monkeypatch.setattr(scenario, "play", self.play)
        monkeypatch.setattr(destroy, "destroy", self.destroy)
        self.in_start: Callable[[], Any] = lambda: None
        self.in_play: Callable[[], Any] = lambda: None
        self.in_destroy: Callable[[], Any] = lambda: None

    def start(self, target: Target, limit: float, yes: bool) -> Target:
        self.calls.append("start")
        target.folder.mkdir(exist_ok=True)
        self.in_start()
        (target.folder / "terraform.tfstate").write_text("{}")
        return target

    def play(self, run: scenario.Run) -> None:
        self.calls.append("play")
        self.in_play()

    def destroy(self, target: Target, data: str, confirmed: str) -> int:
        self.calls.append(f"destroy {data}")
        assert confirmed == target.bucket
        self.in_destroy()
        return self.status

    @property
    def record(self) -> Path:
        return self.target.folder.parent / "run.json"


@pytest.fixture
def played(account: Target, monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(account, monkeypatch)


def raises(error: BaseException) -> Callable[[], Any]:
    def call() -> None:
        raise error

    return call


DENIED = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DescribeEndpoint")


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        (lambda: None, 0, ""),
        (raises(scenario.Failed("no email came")), 1, "FAILED: no email came"),
        (raises(UsageError("no model to go back to")), 1, "FAILED: no model to go back to"),
        (raises(DENIED), 1, "FAILED: An error occurred (AccessDenied)"),
        (raises(KeyboardInterrupt()), 130, "FAILED: interrupted"),
    ],
    ids=["well", "a step failed", "a command refused", "AWS refused", "Ctrl-C"],
)
def test_the_stack_is_deleted_however_the_scenario_ends(
    played: Played, ends: Callable[[], Any], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    played.in_play = ends
    assert verify.verify(played.target, 5.0, True) == status
    assert played.calls == ["start", "play", "destroy delete"]
    assert said in capsys.readouterr().err
    assert not played.record.exists()
    (results,) = played.record.parent.glob("mlops-verify-*")
    assert sorted(path.name for path in results.iterdir()) == ["differences.txt", "measured.txt", "seen.txt"]
    if said:
        assert (results / "seen.txt").read_text().startswith(said)


@pytest.mark.parametrize(
    ("ends", "status"), [(raises(KeyboardInterrupt()), 130), (raises(DENIED), 1)], ids=["Ctrl-C", "AWS refused"]
)
def test_a_deletion_that_is_cut_off_says_how_to_finish_it_and_the_next_run_does(
    played: Played, ends: Callable[[], Any], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    played.in_destroy = ends
    assert verify.verify(played.target, 5.0, True) == status
    name = json.loads(played.record.read_text())["name"]
    assert f"{name} is still there: rerun make verify-aws, which deletes it" in capsys.readouterr().err
    played.in_destroy = lambda: None
    played.calls.clear()
    assert verify.verify(played.target, 5.0, True) == 0
    assert played.calls == ["destroy delete", "start", "play", "destroy delete"]
    assert f"left the stack {name}: it is deleted first" in capsys.readouterr().out


def test_nothing_is_started_while_an_earlier_stack_cannot_be_deleted(played: Played) -> None:
    played.in_destroy = raises(KeyboardInterrupt())
    verify.verify(played.target, 5.0, True)
    played.in_destroy, played.status = lambda: None, 1
    played.calls.clear()
    assert verify.verify(played.target, 5.0, True) == 1
    assert played.calls == ["destroy delete"]


def test_what_is_left_is_named_and_the_run_fails(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    sqs = played.target.client("sqs")
    played.in_play = lambda: sqs.create_queue(QueueName=f"{json.loads(played.record.read_text())['name']}-inbox")
    assert verify.verify(played.target, 5.0, True) == 1
    shown = capsys.readouterr()
    assert re.search(r"LEFT  queue +\S+/mlops-verify-[0-9a-f]{6}-inbox\n", shown.out)
    assert "delete it by hand" in shown.err
    assert played.record.exists()


def test_log_groups_that_come_again_after_the_deletion_are_deleted(played: Played) -> None:
    logs = played.target.client("logs")

    def log_again() -> None:
        name = json.loads(played.record.read_text())["name"]
        logs.create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{name}")

    played.in_destroy = log_again
    verify.verify(played.target, 5.0, True)
    assert logs.describe_log_groups()["logGroups"] == []


def test_a_refused_plan_leaves_neither_a_record_nor_a_folder(played: Played) -> None:
    played.in_start = raises(UsageError("nobody is there to confirm"))
    with pytest.raises(UsageError, match="nobody is there to confirm"):
        verify.verify(played.target, 5.0, False)
    assert list(played.record.parent.iterdir()) == []


def test_a_stack_in_another_account_is_not_looked_for_here(played: Played) -> None:
    played.record.write_text(json.dumps({"name": NAME, **HERE, "account": "999999999999"}))
    with pytest.raises(UsageError, match=f"left the stack {NAME} in account 999999999999, {REGION}: log in there"):
        verify.verify(played.target, 5.0, True)
    assert played.calls == []
    assert played.record.exists()


def test_another_machines_run_is_named_and_left_alone(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    played.target.client("sqs").create_queue(QueueName="mlops-verify-ffffff-inbox")
    assert verify.verify(played.target, 5.0, True) == 0
    assert re.search(r"warning: queue \S+/mlops-verify-ffffff-inbox: another run's", capsys.readouterr().out)
    assert len(played.target.client("sqs").list_queues()["QueueUrls"]) == 1


def test_everything_of_a_stack_is_found_by_its_name(account: Target) -> None:
    def client(service: str) -> Any:
        return account.client(service)

    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    client("s3").create_bucket(Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": REGION})
    client("events").put_rule(Name=f"mlops-uploads-{NAME}", ScheduleExpression="rate(1 day)")
    topic = client("sns").create_topic(Name=f"mlops-notifications-{NAME}")["TopicArn"]
    queue = client("sqs").create_queue(QueueName=f"{NAME}-inbox")["QueueUrl"]
    client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=f"arn:aws:sqs:{REGION}:1:{NAME}-inbox")
    role = client("iam").create_role(RoleName=f"mlops-model-{NAME}", AssumeRolePolicyDocument=trust)["Role"]
    client("cloudwatch").put_metric_alarm(
        AlarmName=f"{NAME}-alarm", ComparisonOperator="GreaterThanThreshold", EvaluationPeriods=1, Threshold=1.0
    )
    client("logs").create_log_group(logGroupName=f"/aws/lambda/{NAME}")
    sagemaker, tags = client("sagemaker"), [{"Key": "Stack", "Value": NAME}]
    job = "training-job-20261126-101112-0a1b2c3d"
    sagemaker.create_model(ModelName=f"{job}-m", ExecutionRoleArn=role["Arn"], Tags=tags)
    variant = {"VariantName": "one", "ModelName": f"{job}-m", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(EndpointConfigName=f"{job}-c", ProductionVariants=[variant], Tags=tags)
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=f"{job}-c", Tags=tags)
    found = verify.left(Target("AWS", account.session, {}, {"bucket_name": NAME}), NAME)
    assert found == {
        "bucket": [NAME],
        "rule": [f"mlops-uploads-{NAME}"],
        "topic": [topic],
        "subscription": [topic],
        "queue": [queue],
        "role": [f"mlops-model-{NAME}"],
        "alarm": [f"{NAME}-alarm"],
        "log": [f"/aws/lambda/{NAME}"],
        "endpoint": [NAME],
        "EndpointConfig": [f"{job}-c"],
        "Model": [f"{job}-m"],
    }


def test_the_settings_of_peoples_own_stack_do_not_reach_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_VAR_bucket_name", "our-models")
    monkeypatch.setenv("TF_WORKSPACE", "production")
    monkeypatch.setenv("AWS_REGION", REGION)
    target = verify.find_account("")
    assert [name for name in verify.os.environ if name.startswith(("TF_VAR_", "TF_WORKSPACE"))] == []
    assert (target.where, target.session.region_name, target.folder) == (
        "AWS",
        REGION,
        stack.ROOT / ".verify/terraform",
    )


def test_the_runs_configuration_has_neither_the_state_nor_the_settings_of_peoples_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    (root / "terraform").mkdir(parents=True)
    for name in ("main.tf", "terraform.tfvars", "terraform.tfstate", "backend.tf"):
        (root / "terraform" / name).write_text("")
    monkeypatch.setattr(stack, "ROOT", root)
    target = Target("AWS", None, {}, {"bucket_name": NAME}, folder=tmp_path / "run" / "terraform")  # type: ignore[arg-type]
    verify.write_configuration(target)
    assert sorted(path.name for path in target.folder.iterdir()) == ["inbox.tf", "main.tf", "verify.auto.tfvars.json"]
    assert json.loads((target.folder / "verify.auto.tfvars.json").read_text())["bucket_name"] == NAME
