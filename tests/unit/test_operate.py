"""The commands for people in charge, as typed in a shell: rollback, retrain, pause, resume, redrive.

The bucket, queue and identity are moto's, SageMaker is the strict fake, and what is sent to the functions is kept;
rollback and resume are followed to their end by the real deployment orchestrator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.core.models import DEFAULT_ACCOUNT_ID

import operate
import pipeline
from fake_sagemaker import FakeSageMaker, refusal
from test_deployment_orchestrator import ARTIFACT, FIRST, SECOND, THIRD, approved_key, make_foreign_endpoint, record_of
from world import BUCKET, ENDPOINT, REGION, TOPIC_ARN, Around, Context, Interruption, Killed, World, killed

READS = ("Get", "Head", "List", "Describe")
FUNCTIONS = {"training": "train-function", "evaluator": "judge-function", "deployer": "deploy-function"}
FUNCTION_ARN = f"arn:aws:lambda:{REGION}:{DEFAULT_ACCOUNT_ID}:function"
SWEEP = {"source": "sweep"}


class Account(FakeSageMaker):
    """The fake with the calls that only people's commands make."""

    def get_paginator(self, operation: str) -> Any:
        return SimpleNamespace(paginate=lambda **request: iter([getattr(self, operation)(**request)]))

    def _list_endpoints(self, request: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in self.endpoints if request.get("NameContains", "") in name]
        return {"Endpoints": [{"EndpointName": name} for name in names]}

    def _list_training_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        jobs = [job for job in self.jobs.values() if job["TrainingJobStatus"] == request["StatusEquals"]]
        return {"TrainingJobSummaries": jobs}

    def _stop_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.jobs[request["TrainingJobName"]]["TrainingJobStatus"] != "InProgress":
            raise refusal("StopTrainingJob", "ValidationException", "The request was rejected: not in progress")
        self.end_job(request["TrainingJobName"], "Stopped")
        return {}

    def _list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        for job in self.jobs.values():
            if job["TrainingJobArn"] == request["ResourceArn"]:
                return {"Tags": job["Tags"]}
        return super()._list_tags(request)

    def run_job(self, name: str, stack: str = BUCKET) -> None:
        """A training job that runs; only what the commands look at."""
        self.jobs[name] = {
            "TrainingJobName": name,
            "TrainingJobArn": f"{self._arn}training-job/{name}",
            "TrainingJobStatus": "InProgress",
            "Tags": [{"Key": "Stack", "Value": stack}],
        }


class Watched:
    """A client whose calls can be interrupted, as those of the handlers."""

    def __init__(self, client: Any, around: Around) -> None:
        self._client, self._around = client, around

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**request: Any) -> Any:
            after = self._around("".join(part.capitalize() for part in name.split("_")))
            answer = getattr(self._client, name)(**request)
            after()
            return answer

        return call


class Lambda:
    """Keeps what is sent to functions."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def invoke(self, *, FunctionName: str, InvocationType: str, Payload: bytes) -> dict[str, int]:
        if InvocationType == "DryRun":
            return {"StatusCode": 204}
        assert InvocationType == "Event"
        self.sent.append((FunctionName, json.loads(Payload)))
        return {"StatusCode": 202}


class Shell:
    """A person at a shell, before a stack in a fresh world."""

    def __init__(self, world: World, deployer: ModuleType, sqs: Any, sts: Any) -> None:
        self.world = world
        self.sagemaker = world.sagemaker = Account(REGION, DEFAULT_ACCOUNT_ID, world.around)
        self.functions = Lambda()
        self.sqs = sqs
        self.queue = self.sqs.create_queue(QueueName="failures")["QueueUrl"]
        clients = {
            "sagemaker": self.sagemaker,
            "s3": world.client("s3"),
            "lambda": Watched(self.functions, world.around),
            "sqs": Watched(self.sqs, world.around),
            "sts": sts,
            "sns": world.client("sns"),
        }
        self.target = SimpleNamespace(
            where="a test",
            bucket=BUCKET,
            functions=FUNCTIONS,
            outputs={"topic_arn": TOPIC_ARN, "failure_queue_url": self.queue, "project_name": "mlops"},
            endpoint_of=lambda model: ENDPOINT if model == "default" else f"{ENDPOINT}-{model}",
            client=clients.__getitem__,
        )
        self._deployer = deployer
        self._delivered = 0

    # --- what a person does -------------------------------------------------------------------------

    def run(self, *arguments: str) -> int:
        return operate.main(list(arguments))

    # --- what happens meanwhile ---------------------------------------------------------------------

    def deploy(self, event: dict[str, Any]) -> str:
        return str(self._deployer.lambda_handler(event, Context(f"request {len(self.world.around.calls)}"))["outcome"])

    def go_live(self, *jobs: str) -> None:
        """Models are approved, deployed and confirmed, one after the other."""
        for job in jobs:
            self.deploy(self.world.upload(approved_key(job), ARTIFACT))
            self.settle()
            assert self.served() == job

    def settle(self) -> None:
        """What was sent to the deployment orchestrator arrives, the endpoint comes up, and that is told."""
        for function, payload in self.functions.sent[self._delivered :]:
            if function == FUNCTIONS["deployer"] and payload != SWEEP:
                self.deploy(payload)
        self._delivered = len(self.functions.sent)
        if self.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] != "InService":
            self.sagemaker.come_up(ENDPOINT)
        self.deploy(self.world.endpoint_event())

    def served(self) -> str:
        endpoint = self.sagemaker.endpoints[ENDPOINT]
        assert endpoint["EndpointStatus"] == "InService"
        return str(endpoint["EndpointConfigName"].rpartition("-")[0])

    def state_of(self, job: str) -> str:
        return str(record_of(self.world, job)["state"])

    def is_paused(self) -> bool:
        return bool(self.world.keys(operate.PAUSED_KEY))

    def subjects(self) -> list[str]:
        return [email.subject.partition(":")[0] for email in self.world.emails()]


@pytest.fixture(scope="session")
def queue_and_identity() -> tuple[Any, Any]:
    with mock_aws():
        return boto3.client("sqs", region_name=REGION), boto3.client("sts", region_name=REGION)


@pytest.fixture
def make_shell(
    make_world: Callable[[], World],
    deployer: ModuleType,
    queue_and_identity: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Shell]:
    """Gives a fresh world with a person at a shell at each call; their clock never stands still."""
    moments: Iterator[datetime] = (datetime(2026, 12, 1, tzinfo=UTC) + timedelta(seconds=n) for n in range(1_000_000))
    monkeypatch.setattr(operate, "now", lambda: next(moments))

    def fresh() -> Shell:
        shell = Shell(make_world(), deployer, *queue_and_identity)
        monkeypatch.setattr(pipeline, "connect", lambda _: shell.target)
        return shell

    return fresh


@pytest.fixture
def shell(make_shell: Callable[[], Shell]) -> Shell:
    return make_shell()


# --- rollback ---------------------------------------------------------------------------------------


def test_rollback_returns_to_the_previous_confirmed_model_and_people_are_told(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST, SECOND)
    before = len(shell.world.emails())
    assert shell.run("rollback", "--model", "default", "--reason", "rude answers") == 0
    shell.settle()
    assert shell.served() == FIRST
    assert (shell.state_of(FIRST), shell.state_of(SECOND)) == ("confirmed", "withdrawn")
    withdrawn = record_of(shell.world, SECOND)["withdrawn"]
    assert withdrawn["reason"] == "rude answers"
    assert withdrawn["by"].startswith("arn:aws:sts::")
    assert shell.subjects()[before:] == ["Deployment restored"]
    said = capsys.readouterr().out
    assert f"withdrawn     {SECOND}" in said
    assert f"make rollback MODEL=default TO={SECOND}" in said


def test_a_withdrawn_model_stays_so_whatever_event_arrives(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.settle()
    before = shell.world.final_state()
    shell.deploy(operate.approved_event(shell.target, "default", SECOND))  # type: ignore[arg-type]
    shell.deploy(shell.world.endpoint_event())
    assert shell.world.final_state() == before


def test_the_current_model_is_withdrawn_before_the_endpoint_is_touched(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    endpoint = dict(shell.sagemaker.endpoints[ENDPOINT])
    shell.world.around.interruption = Interruption("PutObject", killed, after_the_effect=True)
    with pytest.raises(Killed):
        shell.run("rollback", "--model", "default")
    assert shell.state_of(SECOND) == "withdrawn"
    assert shell.sagemaker.endpoints[ENDPOINT] == endpoint


def test_rollback_again_says_that_it_is_under_way_and_then_that_it_is_so(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST, SECOND, THIRD)
    shell.run("rollback", "--model", "default")
    (sent,) = shell.functions.sent
    shell.deploy(sent[1])
    capsys.readouterr()
    assert shell.run("rollback", "--model", "default") == 0
    assert f"already under way: {SECOND}" in capsys.readouterr().out
    shell.settle()
    before = shell.world.final_state()
    assert shell.run("rollback", "--model", "default") == 0
    said = capsys.readouterr().out
    assert f"already so: {ENDPOINT} serves {SECOND}" in said
    assert f"to go back further: make rollback MODEL=default TO={FIRST}" in said
    assert shell.world.final_state() == before


def test_rollback_further_back_withdraws_what_lies_between(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND, THIRD)
    shell.run("rollback", "--model", "default", "--to", FIRST)
    shell.settle()
    assert shell.served() == FIRST
    assert [shell.state_of(job) for job in (FIRST, SECOND, THIRD)] == ["confirmed", "withdrawn", "withdrawn"]


def test_rollback_can_be_taken_back(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.settle()
    assert shell.run("rollback", "--model", "default", "--to", SECOND) == 0
    shell.settle()
    assert shell.served() == SECOND
    assert "withdrawn" not in record_of(shell.world, SECOND)


def test_after_a_newer_model_rollback_passes_over_the_withdrawn_one(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.settle()
    shell.go_live(THIRD)
    shell.run("rollback", "--model", "default")
    shell.settle()
    assert shell.served() == FIRST


def test_a_model_that_sagemaker_rolled_back_is_tried_again_when_somebody_asks(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.deploy(shell.world.upload(approved_key(SECOND), ARTIFACT))
    shell.sagemaker.roll_back(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    assert shell.state_of(SECOND) == "rolled back"
    assert shell.run("rollback", "--model", "default", "--to", SECOND) == 0
    shell.settle()
    assert shell.served() == SECOND


def test_a_newer_model_that_waits_is_withdrawn_with_the_served_one(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.sagemaker.endpoint_quota_message = "The account-level service limit 'x' is 0"
    assert shell.deploy(shell.world.upload(approved_key(THIRD), ARTIFACT)) == "waiting"
    shell.sagemaker.endpoint_quota_message = ""
    shell.run("rollback", "--model", "default")
    shell.settle()
    assert shell.served() == FIRST
    assert shell.state_of(THIRD) == "withdrawn"


def approve_only(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.world.upload(approved_key(THIRD), ARTIFACT)


def roll_out(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.deploy(shell.world.upload(approved_key(THIRD), ARTIFACT))


def delete_by_hand(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.sagemaker.vanish(ENDPOINT)


def foreign(shell: Shell) -> None:
    shell.world.upload(approved_key(FIRST), ARTIFACT)
    make_foreign_endpoint(shell.world)


def switched_by_hand(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"] = "by-hand"


def paused(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    assert shell.run("pause", "--yes") == 0


@pytest.mark.parametrize(
    ("prepare", "arguments", "reason"),
    [
        (lambda shell: None, ("--model", "default"), "no model of this name was ever approved"),
        (lambda shell: None, ("--model", "No Model"), "a model name has"),
        (lambda shell: None, (), "say which model"),
        (lambda shell: shell.go_live(FIRST), ("--model", "default"), f"no confirmed model before {FIRST}"),
        (lambda shell: shell.go_live(FIRST), ("--model", "default", "--to", SECOND), "is no approved model"),
        (approve_only, ("--model", "default"), f"{THIRD} was approved just now"),
        (roll_out, ("--model", "default"), f"{ENDPOINT} is Updating"),
        (delete_by_hand, ("--model", "default"), "has no endpoint"),
        (foreign, ("--model", "default"), "was not made by this stack"),
        (switched_by_hand, ("--model", "default"), "which this pipeline did not deploy"),
        (paused, ("--model", "default"), "make resume first"),
    ],
)
def test_a_rollback_that_cannot_be_says_why_and_changes_nothing(
    shell: Shell,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Shell], None],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    prepare(shell)
    before = shell.world.final_state()
    assert shell.run("rollback", *arguments) == 2
    assert reason in capsys.readouterr().err
    assert shell.world.final_state() == before
    assert shell.functions.sent == []


# --- retrain ----------------------------------------------------------------------------------------


def ended_job(shell: Shell, job: str = FIRST, verdict: str = "failed") -> str:
    """A training job with its snapshot and its decision."""
    source = {"schema": 1, "job": job, "model": "reviews", "key": "data/train/reviews/x.csv", "size": 4}
    shell.world.put(f"data/snapshots/{job}/data.csv", b"text,label\n")
    shell.world.put(f"data/snapshots/{job}/source.json", source)
    shell.world.put(f"data/snapshots/{job}/started.json", {"job": job})
    decide(shell, job, verdict)
    return job


def decide(shell: Shell, job: str, verdict: str = "failed") -> None:
    shell.world.put(f"models/decisions/{job}.json", {"job": job, "verdict": verdict})


def snapshots(shell: Shell) -> list[str]:
    return sorted({key.split("/")[2] for key in shell.world.keys("data/snapshots/")})


@pytest.mark.parametrize("verdict", ["failed", "stopped", "rejected", "approved"])
def test_a_job_that_has_ended_gets_a_new_one_on_the_same_data(
    shell: Shell, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_job(shell, verdict=verdict)
    assert shell.run("retrain", "--job", FIRST) == 0
    old, new = snapshots(shell)
    assert operate.JOB_NAME.fullmatch(new)
    assert shell.world.read(f"data/snapshots/{new}/data.csv") == b"text,label\n"
    assert shell.world.record(f"data/snapshots/{new}/source.json") == shell.world.record(
        f"data/snapshots/{old}/source.json"
    ) | {"job": new, "retrain_of": old}
    assert not shell.world.keys(f"data/snapshots/{new}/started.json")
    assert shell.functions.sent == [(FUNCTIONS["training"], SWEEP)]
    assert f"make logs JOB={new}" in capsys.readouterr().out


def test_retrain_twice_makes_one_job_until_that_one_has_ended(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    ended_job(shell)
    shell.run("retrain", "--job", FIRST)
    _, second = snapshots(shell)
    capsys.readouterr()
    assert shell.run("retrain", "--job", FIRST) == 0
    assert f"already so: {FIRST} is being trained again as {second}" in capsys.readouterr().out
    assert snapshots(shell) == [FIRST, second]
    decide(shell, second)
    assert shell.run("retrain", "--job", FIRST) == 0
    _, _, third = snapshots(shell)
    assert shell.world.record(f"data/snapshots/{third}/source.json")["retrain_of"] == second


def test_an_upload_that_was_given_up_can_be_trained_again(shell: Shell) -> None:
    undecided(shell)
    shell.world.put(f"data/snapshots/{FIRST}/given_up.json", {"job": FIRST})
    assert shell.run("retrain", "--job", FIRST) == 0
    assert len(snapshots(shell)) == 2


def test_retrain_while_paused_says_that_it_starts_after_resume(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_job(shell)
    shell.run("pause", "--yes")
    assert shell.run("retrain", "--job", FIRST) == 0
    assert "it starts after make resume" in capsys.readouterr().out


def undecided(shell: Shell) -> None:
    ended_job(shell)
    shell.world.s3.delete_object(Bucket=BUCKET, Key=f"models/decisions/{FIRST}.json")


def refused(shell: Shell) -> None:
    shell.world.put(f"data/rejected/{FIRST}.json", {"job": FIRST, "reason": "the file is empty (0 bytes)"})


def expired(shell: Shell) -> None:
    ended_job(shell)
    shell.world.s3.delete_object(Bucket=BUCKET, Key=f"data/snapshots/{FIRST}/data.csv")


@pytest.mark.parametrize(
    ("prepare", "job", "reason"),
    [
        (undecided, FIRST, "has not ended yet"),
        (refused, FIRST, "its file was refused: the file is empty (0 bytes)"),
        (expired, FIRST, "its data is gone"),
        (lambda shell: None, FIRST, "there is no snapshot of its data"),
        (lambda shell: None, "job-7/../x", "is not the name of a training job"),
        (lambda shell: None, "", "say which training job"),
    ],
)
def test_a_retraining_that_cannot_be_says_why_and_changes_nothing(
    shell: Shell, capsys: pytest.CaptureFixture[str], prepare: Callable[[Shell], None], job: str, reason: str
) -> None:
    prepare(shell)
    before = shell.world.final_state()
    assert shell.run("retrain", "--job", job) == 2
    assert reason in capsys.readouterr().err
    assert shell.world.final_state() == before
    assert shell.functions.sent == []


# --- pause and resume -------------------------------------------------------------------------------


def test_pause_deletes_our_endpoints_and_resume_brings_them_back_as_they_were(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    make_foreign_endpoint(shell.world, f"{ENDPOINT}-theirs")
    before = shell.sagemaker.state()["endpoints"]
    assert shell.run("pause", "--yes") == 0
    assert list(shell.sagemaker.endpoints) == [f"{ENDPOINT}-theirs"]
    assert shell.functions.sent == []
    assert shell.run("resume") == 0
    emails = len(shell.world.emails())
    shell.settle()
    assert shell.sagemaker.state()["endpoints"] == before
    assert not shell.is_paused()
    assert [payload for _, payload in shell.functions.sent] == [SWEEP] * 3
    assert {function for function, _ in shell.functions.sent} == set(FUNCTIONS.values())
    assert shell.state_of(SECOND) == "confirmed"
    assert shell.subjects()[emails:] == ["Deployment restored"]
    assert "serves this model again, after a pause" in shell.world.emails()[-1].body


def test_the_pause_is_written_before_an_endpoint_is_deleted(shell: Shell) -> None:
    shell.go_live(FIRST)
    config = shell.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"]
    shell.world.around.interruption = Interruption("DeleteEndpoint", killed)
    with pytest.raises(Killed):
        shell.run("pause", "--yes")
    (endpoint,) = shell.world.record(operate.PAUSED_KEY)["endpoints"]
    assert (endpoint["name"], endpoint["model"], endpoint["config"]) == (ENDPOINT, "default", config)
    assert ENDPOINT in shell.sagemaker.endpoints


@pytest.mark.parametrize("typed", ["", "y", "atml-models"])
def test_pause_that_is_not_confirmed_changes_nothing(
    shell: Shell, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    before = shell.world.final_state()
    monkeypatch.setattr("builtins.input", lambda _: typed)
    assert shell.run("pause") == 2
    assert "nothing was changed" in capsys.readouterr().err
    assert shell.world.final_state() == before


def test_pause_is_confirmed_by_typing_the_buckets_name(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.go_live(FIRST)
    monkeypatch.setattr("builtins.input", lambda _: BUCKET)
    assert shell.run("pause") == 0
    assert shell.sagemaker.endpoints == {}


def test_without_a_terminal_pause_asks_for_yes(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    assert shell.run("pause") == 2
    assert not shell.is_paused()


def test_pause_leaves_running_jobs_and_says_so_unless_they_are_to_be_stopped(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.sagemaker.run_job(FIRST)
    shell.sagemaker.run_job(SECOND, stack="another-stack")
    assert shell.run("pause", "--yes") == 0
    said = capsys.readouterr().out
    assert "1 training jobs run on to their end" in said
    assert FIRST in said
    assert SECOND not in said
    assert shell.run("pause", "--yes", "--stop-jobs") == 0
    assert [job["TrainingJobStatus"] for job in shell.sagemaker.jobs.values()] == ["Stopped", "InProgress"]
    assert shell.run("pause", "--yes") == 0
    assert "already paused, since 2026-12-01" in capsys.readouterr().out


def test_an_endpoint_that_is_being_changed_is_deleted_by_the_next_pause(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    shell.deploy(shell.world.upload(approved_key(SECOND), ARTIFACT))
    assert shell.run("pause", "--yes") == 1
    assert f"{ENDPOINT}: just being changed" in capsys.readouterr().out
    shell.sagemaker.come_up(ENDPOINT)
    assert shell.run("pause", "--yes") == 0
    assert shell.sagemaker.endpoints == {}
    (endpoint,) = shell.world.record(operate.PAUSED_KEY)["endpoints"]
    assert endpoint["config"].startswith(SECOND)


def test_resume_without_a_pause_says_so(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.go_live(FIRST)
    before = shell.world.final_state()
    assert shell.run("resume") == 0
    assert "not paused" in capsys.readouterr().out
    assert shell.world.final_state() == before
    assert [payload for _, payload in shell.functions.sent] == [SWEEP] * 3


def test_pause_and_resume_can_follow_each_other_for_ever(shell: Shell) -> None:
    shell.go_live(FIRST)
    for _ in range(3):
        assert shell.run("pause", "--yes") == 0
        assert shell.run("resume") == 0
        shell.settle()
        assert shell.served() == FIRST


def test_an_endpoint_without_room_is_left_to_the_deployer_to_try_again(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    shell.run("pause", "--yes")
    shell.sagemaker.endpoint_quota_message = "The account-level service limit 'x' is 0"
    assert shell.run("resume") == 0
    assert f"not yet        {ENDPOINT}: The account-level service limit" in capsys.readouterr().out
    shell.sagemaker.endpoint_quota_message = ""
    shell.settle()
    assert shell.served() == FIRST


def test_an_endpoint_whose_config_is_gone_is_made_anew_by_the_deployer(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.run("pause", "--yes")
    shell.sagemaker.configs.clear()
    assert shell.run("resume") == 0
    shell.settle()
    assert shell.served() == FIRST


def test_an_endpoint_that_cannot_come_back_is_named(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    switched_by_hand(shell)
    shell.run("pause", "--yes")
    assert shell.run("resume") == 1
    assert f"NOT RESTORED   {ENDPOINT}: Could not find" in capsys.readouterr().out


def test_a_withdrawn_model_that_was_live_comes_back_withdrawn(shell: Shell) -> None:
    """A rollback whose target did not come up: the endpoint goes on serving the withdrawn model."""
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.deploy(shell.functions.sent[0][1])
    shell.sagemaker.roll_back(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    shell.run("pause", "--yes")
    assert shell.run("resume") == 0
    shell.sagemaker.come_up(ENDPOINT)
    assert shell.served() == SECOND
    assert shell.state_of(SECOND) == "withdrawn"


def test_resume_while_an_endpoint_is_being_deleted_asks_to_come_again(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    endpoint = shell.sagemaker.endpoints[ENDPOINT]
    shell.run("pause", "--yes")
    shell.sagemaker.endpoints[ENDPOINT] = endpoint | {"EndpointStatus": "Deleting"}
    assert shell.run("resume") == 2
    assert "is still being deleted" in capsys.readouterr().err
    assert shell.is_paused()


def test_an_endpoint_that_was_deleted_by_hand_comes_back_when_somebody_asks(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.sagemaker.vanish(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    assert shell.sagemaker.endpoints == {}
    for _ in range(2):
        assert shell.run("resume", "--model", "default") == 0
    shell.settle()
    assert shell.served() == SECOND
    assert shell.state_of(SECOND) == "confirmed"
    expected = {"Project": "mlops", "Stack": BUCKET, "Model": "default", "TrainingJob": SECOND}
    assert {tag["Key"]: tag["Value"] for tag in shell.sagemaker.endpoints[ENDPOINT]["Tags"]} == expected


def test_a_model_that_was_approved_while_the_endpoint_was_deleted_follows_the_one_that_comes_back(
    shell: Shell,
) -> None:
    shell.go_live(FIRST)
    shell.sagemaker.vanish(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    shell.deploy(shell.world.upload(approved_key(SECOND), ARTIFACT))
    assert shell.state_of(SECOND) == "held"
    assert shell.run("resume", "--model", "default") == 0
    shell.settle()
    shell.settle()
    assert shell.served() == SECOND


def test_an_endpoint_that_vanished_before_its_first_model_was_live_is_asked_for_again(shell: Shell) -> None:
    shell.sagemaker.endpoint_quota_message = "The account-level service limit 'x' is 0"
    shell.deploy(shell.world.upload(approved_key(FIRST), ARTIFACT))
    shell.sagemaker.endpoint_quota_message = ""
    assert shell.run("resume", "--model", "default") == 0
    (sent,) = shell.functions.sent
    assert shell.deploy(sent[1]) == "started"


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda shell: None, "was ever approved"),
        (lambda shell: shell.world.upload(approved_key(FIRST), ARTIFACT), "no model that may be deployed"),
        (paused, "make resume, without MODEL"),
    ],
)
def test_an_endpoint_that_cannot_be_brought_back_is_said(
    shell: Shell, capsys: pytest.CaptureFixture[str], prepare: Callable[[Shell], object], reason: str
) -> None:
    prepare(shell)
    assert shell.run("resume", "--model", "default") == 2
    assert reason in capsys.readouterr().err
    assert shell.functions.sent == []


# --- redrive ----------------------------------------------------------------------------------------


def envelope(function: str, payload: Any, request_id: str = "request-1") -> dict[str, Any]:
    """Lambda's record of a failed asynchronous invocation."""
    context = {
        "requestId": request_id,
        "functionArn": f"{FUNCTION_ARN}:{function}:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 3,
    }
    response = {"errorMessage": "AccessDenied", "errorType": "ClientError"}
    return {"version": "1.0", "requestContext": context, "requestPayload": payload, "responsePayload": response}


def send(shell: Shell, body: Any, **attributes: str) -> None:
    typed = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
    text = body if isinstance(body, str) else json.dumps(body)
    shell.sqs.send_message(QueueUrl=shell.queue, MessageBody=text, MessageAttributes=typed)


def dead_letter(shell: Shell, event: dict[str, Any], function: str) -> None:
    """What EventBridge leaves in the queue when it cannot invoke a function."""
    rule = f"arn:aws:events:{REGION}:{DEFAULT_ACCOUNT_ID}:rule/uploads"
    send(shell, event, RULE_ARN=rule, TARGET_ARN=f"{FUNCTION_ARN}:{function}", ERROR_CODE="NO_PERMISSIONS")


def waiting_messages(shell: Shell) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = shell.sqs.get_queue_attributes(QueueUrl=shell.queue, AttributeNames=names)["Attributes"]
    return sum(int(value) for value in attributes.values())


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "POLL_SECONDS", 0)


def test_redrive_sends_both_shapes_to_the_function_that_failed(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    upload, job = shell.world.upload("data/train/x.csv"), shell.world.job_event(FIRST)
    dead_letter(shell, upload, FUNCTIONS["training"])
    send(shell, envelope(FUNCTIONS["evaluator"], job))
    assert shell.run("redrive") == 0
    assert sorted(shell.functions.sent, key=str) == sorted(
        [
            (FUNCTIONS["training"], upload),
            (FUNCTIONS["evaluator"], {"redrive_of": "request-1", "event": job}),
        ],
        key=str,
    )
    assert waiting_messages(shell) == 0
    said = capsys.readouterr().out
    assert "training   Object Created data/train/x.csv (EventBridge could not deliver it: NO_PERMISSIONS)" in said
    assert f"evaluator  SageMaker Training Job State Change {FIRST} (failed: AccessDenied)" in said
    assert "2 sent again, 0 left" in said


def test_an_event_that_failed_again_keeps_the_request_that_failed_first(shell: Shell) -> None:
    event = shell.world.job_event(FIRST)
    twice = {"redrive_of": "request-2", "event": {"redrive_of": "request-1", "event": event}}
    send(shell, envelope(FUNCTIONS["evaluator"], twice, "request-3"))
    shell.run("redrive")
    assert shell.functions.sent == [(FUNCTIONS["evaluator"], {"redrive_of": "request-1", "event": event})]


def test_a_schedule_that_could_not_be_delivered_becomes_a_sweep(shell: Shell) -> None:
    scheduled = {"id": "1", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
    dead_letter(shell, scheduled, FUNCTIONS["deployer"])
    shell.run("redrive")
    assert shell.functions.sent == [(FUNCTIONS["deployer"], SWEEP)]


@pytest.mark.parametrize(
    ("body", "attributes", "reason"),
    [
        ("no json", {}, "its body is not a JSON object"),
        ("[1]", {}, "its body is not a JSON object"),
        ("[" * 100_000, {}, "its body is not a JSON object"),
        ({"hello": "world"}, {}, "it is neither an event"),
        ({"requestContext": {}, "requestPayload": "text"}, {}, "it is neither an event"),
        ({"requestContext": {"requestId": "1"}, "requestPayload": {}}, {}, "it is for no function"),
        (envelope("other-function", {}), {}, "which is none of this stack's"),
        (envelope(FUNCTIONS["training"], {}, request_id=""), {}, "lacks the requestId"),
        ({"id": "1"}, {"TARGET_ARN": "arn:aws:lambda:eu-west-1:1:function:train-function"}, "none of this stack's"),
        ({"id": "1"}, {"TARGET_ARN": f"{FUNCTION_ARN}:"}, "none of this stack's"),
    ],
)
def test_an_unknown_message_is_shown_and_left(
    shell: Shell, capsys: pytest.CaptureFixture[str], body: Any, attributes: dict[str, str], reason: str
) -> None:
    send(shell, body, **attributes)
    assert shell.run("redrive") == 1
    said = capsys.readouterr().out
    assert reason in said
    assert "0 sent again, 1 left" in said
    assert shell.functions.sent == []
    assert shell.run("redrive") == 1, "the message is there for the next one at once"


def test_an_empty_queue_is_said(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("redrive") == 0
    assert "nothing to send again" in capsys.readouterr().out


def test_an_event_that_fails_again_at_once_is_not_sent_for_ever(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cause is not mended: each invocation fails and comes back while the queue is being emptied."""
    keep = shell.functions.invoke

    def invoke(**request: Any) -> dict[str, int]:
        count = len(shell.functions.sent)
        assert count < 10
        send(shell, envelope(request["FunctionName"], json.loads(request["Payload"]), f"later-{count}"))
        return keep(**request)

    monkeypatch.setattr(shell.functions, "invoke", invoke)
    send(shell, envelope(FUNCTIONS["evaluator"], shell.world.job_event(FIRST)))
    dead_letter(shell, shell.world.upload("data/train/x.csv"), FUNCTIONS["training"])
    dead_letter(shell, SWEEP, FUNCTIONS["deployer"])
    assert shell.run("redrive") == 1
    assert "failed again" in capsys.readouterr().out


# --- interrupted anywhere ---------------------------------------------------------------------------


def prepare_rollback(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND, THIRD)


def prepare_resume(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("pause", "--yes")


def prepare_deleted(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.sagemaker.vanish(ENDPOINT)


def prepare_redrive(shell: Shell) -> None:
    dead_letter(shell, shell.world.upload("data/train/x.csv"), FUNCTIONS["training"])
    send(shell, envelope(FUNCTIONS["evaluator"], shell.world.job_event(FIRST)))


COMMANDS: dict[str, tuple[Callable[[Shell], object], tuple[str, ...]]] = {
    "rollback": (prepare_rollback, ("rollback", "--model", "default")),
    "rollback to": (prepare_rollback, ("rollback", "--model", "default", "--to", FIRST)),
    "retrain": (ended_job, ("retrain", "--job", FIRST)),
    "pause": (prepare_rollback, ("pause", "--yes")),
    "resume": (prepare_resume, ("resume",)),
    "resume a model": (prepare_deleted, ("resume", "--model", "default")),
    "redrive": (prepare_redrive, ("redrive",)),
}


def outcome(shell: Shell) -> dict[str, Any]:
    """What a command has done in the end, without times and the name of the one job that it may have made."""
    world = shell.world
    if ENDPOINT in shell.sagemaker.endpoints:
        shell.settle()
    names = snapshots(shell)
    new = names[-1] if len(names) > 1 else "none"

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {plain(name): plain(item) for name, item in value.items() if name not in ("at", "by", "started_at")}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value.replace(new, "NEW") if isinstance(value, str) else value

    sent = {json.dumps([function, plain(payload)], sort_keys=True) for function, payload in shell.functions.sent}
    state = plain(world.final_state()) | {"sent": sent, "queue": waiting_messages(shell), "snapshots": len(names)}
    return state | {"emails": {email.subject for email in world.emails()}}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> tuple[Callable[[Shell], object], tuple[str, ...]]:
    return COMMANDS[request.param]


def test_a_command_interrupted_at_any_call_and_run_again_ends_as_if_nothing_had_happened(
    make_shell: Callable[[], Shell],
    command: tuple[Callable[[Shell], object], tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare, arguments = command
    # A message that was received is invisible for a while; here it is there again at once.
    monkeypatch.setattr(operate, "IN_HAND_SECONDS", 0)
    shell = make_shell()
    prepare(shell)
    before = len(shell.world.around.calls)
    assert shell.run(*arguments) == 0
    calls = shell.world.around.calls[before:]
    expected = outcome(shell)
    for call, operation in enumerate(calls):
        # After a read is before the call that follows it.
        for after_the_effect in (False,) if operation.startswith(READS) else (False, True):
            shell = make_shell()
            prepare(shell)
            at = len(shell.world.around.calls) + call
            shell.world.around.interruption = Interruption(at, killed, after_the_effect)
            with pytest.raises(Killed):
                shell.run(*arguments)
            assert shell.run(*arguments) == 0, (call, operation)
            assert outcome(shell) == expected, (call, operation, after_the_effect)


@pytest.mark.parametrize("name", ["rollback", "rollback to"])
def test_an_endpoint_event_at_any_moment_of_a_rollback_changes_nothing(
    make_shell: Callable[[], Shell], name: str
) -> None:
    prepare, arguments = COMMANDS[name]
    shell = make_shell()
    prepare(shell)
    before = len(shell.world.around.calls)
    assert shell.run(*arguments) == 0
    calls = shell.world.around.calls[before:]
    expected = outcome(shell)
    for call, operation in enumerate(calls):
        shell = make_shell()
        prepare(shell)
        at = len(shell.world.around.calls) + call
        shell.world.around.interruption = Interruption(
            at, lambda shell=shell: shell.deploy(shell.world.endpoint_event())
        )  # type: ignore[misc]
        assert shell.run(*arguments) == 0, (call, operation)
        assert outcome(shell) == expected, (call, operation)


# --- the command line -------------------------------------------------------------------------------


def test_a_mistyped_target_is_refused_and_not_taken_for_aws(capsys: pytest.CaptureFixture[str]) -> None:
    assert operate.main(["--target", "locl", "redrive"]) == 2
    assert "TARGET=locl: it is aws or local" in capsys.readouterr().err


def test_what_aws_refuses_is_one_line_and_exit_status_1(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    def denied() -> None:
        raise refusal("GetObject", "AccessDenied", "You are not authorized")

    shell.world.around.interruption = Interruption("GetObject", denied)
    assert shell.run("resume") == 1
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: a test refused: An error occurred (AccessDenied)")
    )


def test_ctrl_c_is_no_traceback(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert shell.run("pause") == 130
    assert "interrupted" in capsys.readouterr().err


# --- the daily commands -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("resume",), ("resume", "--model", "default"), ("retrain", "--job", FIRST)])
def test_a_stack_that_was_destroyed_is_said_to_be_and_stays_paused(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    shell.go_live(FIRST)
    shell.run("pause", "--yes")
    before = shell.world.keys()

    def invoke(**_: Any) -> None:
        raise refusal("Invoke", "ResourceNotFoundException", "Function not found", 404)

    monkeypatch.setattr(shell.functions, "invoke", invoke)
    assert shell.run(*command) == 2
    assert "this stack was destroyed. make deploy takes its bucket up again" in capsys.readouterr().err
    assert shell.world.keys() == before


def test_logs_of_a_job_are_its_own(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """The local AWS does not know logStreamNamePrefix."""
    events = [
        {"timestamp": 1, "message": f"line of {job}", "logStreamName": f"{job}/algo-1-1"} for job in (FIRST, SECOND)
    ]
    pages = SimpleNamespace(paginate=lambda **_: [{"events": events}])
    client = shell.target.client
    shell.target.client = lambda name: (
        SimpleNamespace(get_paginator=lambda _: pages) if name == "logs" else client(name)
    )
    pipeline.show_logs(shell.target, FIRST, "", 30)
    assert f"line of {FIRST}" in (shown := capsys.readouterr().out)
    assert SECOND not in shown


def test_status_shows_the_pause_what_waits_and_what_was_withdrawn(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST, SECOND)
    for job in (FIRST, SECOND):
        source = {"job": job, "model": "default", "bucket": BUCKET, "key": f"data/train/{job[-8:]}.csv"}
        shell.world.put(f"data/snapshots/{job}/source.json", source)
        decision = {"job": job, "verdict": "approved", "checks": [{"metric": "accuracy", "value": 0.91}]}
        shell.world.put(f"models/decisions/{job}.json", decision)
    shell.world.put(f"data/snapshots/{THIRD}/source.json", {"job": THIRD, "model": "default", "key": "later.csv"})
    shell.world.put(f"data/snapshots/{THIRD}/waiting.json", {"job": THIRD, "for": "a free slot"})
    ledger = {
        "schema": 1,
        "jobs": {FIRST: {"state": "ended"}, THIRD: {"state": "held"}},
        "day": {"date": f"{datetime.now(UTC):%Y-%m-%d}", "jobs": [FIRST, SECOND, THIRD]},
        "never": {"instance_type": "ml.g5.xlarge", "at": "2026-12-01T10:00:00+00:00"},
    }
    shell.world.put("slots/training.json", ledger)
    dead_letter(shell, SWEEP, FUNCTIONS["deployer"])
    shell.run("rollback", "--model", "default", "--reason", "rude answers")
    shell.settle()
    shell.run("pause", "--yes")
    capsys.readouterr()
    assert pipeline.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "PAUSED     since 2026-12-01" in shown
    assert "training   1 running, 3 started today (UTC); the quota of ml.g5.xlarge is 0\n" in shown
    assert f"endpoint   {ENDPOINT}: none while the pipeline is paused" in shown
    assert f"{THIRD}  waiting     later.csv  for a free slot" in shown
    assert f"{SECOND}  approved    withdrawn" in shown
    assert ": rude answers" in shown
    assert "1 failed events wait" in shown
    assert "make redrive" in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("upload",), "say which file"),
        (("upload", "--data", "nowhere.csv"), "there is no such file"),
        (("upload", "--data", "README.md"), "only files named .csv"),
        (("upload", "--data", "README.md", "--model", "A"), "a model name has"),
        (("predict", "--text", "  "), "say which text"),
        (("predict", "--text", "hello", "--model", "a/b"), "a model name has"),
        (("logs", "--minutes", "soon"), "MINUTES=soon"),
        (("logs", "--minutes", "0"), "MINUTES=0"),
    ],
)
def test_what_was_mistyped_is_said_in_one_line(
    shell: Shell, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert pipeline.main(list(arguments)) == 2
    assert reason in capsys.readouterr().err


def test_an_upload_that_is_denied_is_one_line(shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def denied() -> None:
        raise refusal("PutObject", "AccessDenied", "You are not authorized")

    data = tmp_path / "x.csv"
    data.write_text("text,label\n")
    shell.world.around.interruption = Interruption("PutObject", denied)
    assert pipeline.main(["upload", "--data", str(data)]) == 1
    assert "AccessDenied" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "caf\udce9.csv"
    data.write_text("text,label\n")
    with pytest.raises(pipeline.UsageError, match="is not UTF-8"):
        pipeline.check_upload(data)


def test_a_log_line_that_only_looks_like_json_is_shown_as_it_is() -> None:
    assert pipeline.readable("{cut off") == "{cut off"
