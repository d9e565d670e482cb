"""The paths through the handlers, and the rollback command, that the fault harness plays with faults at every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

import mlops.target
from fake_sagemaker import model_error, refusal
from mlops import bucket
from shell import FUNCTIONS, Shell
from test_deployment_orchestrator import (
    ARTIFACT,
    FIRST,
    PING_FAILED,
    SECOND,
    THIRD,
    approved_key,
    decide,
    make_foreign_endpoint,
)
from test_model_evaluator import ARTIFACT as ARTIFACT_KEY
from test_model_evaluator import JOB, WEIGHTS, complete, metrics_file, record_start, start_job
from test_spend_guards import SWEEP, end
from test_spend_guards import upload as upload_of_minute
from world import BUCKET, CSV, ENDPOINT, Context, World, broken_connection, tar_gz

Event = dict[str, Any]
Handlers = dict[str, ModuleType]
Command = Callable[[], None]


class CommandFailedError(Exception):
    """A person's command ended with an error; they run it again."""


@dataclass(frozen=True)
class Path:
    """One path: what the world looks like before, and the event, or the person's command, that sets it off.

    environment: what is set otherwise than in world.py; afterwards: what AWS delivers once the command has ended.
    """

    handler: str
    prepare: Callable[[World, Handlers], Event | Command]
    copy_in_parts: bool = False
    read_in_part: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    afterwards: Callable[[World, Handlers], None] | None = None


def upload(content: bytes) -> Callable[[World, Handlers], Event]:
    return lambda world, _: world.upload("data/train/reviews/x.csv", content)


def upload_with(settings: dict[str, Any]) -> Callable[[World, Handlers], Event]:
    """An upload beside a settings.json."""

    def uploaded(world: World, _: Handlers) -> Event:
        world.put("data/train/reviews/settings.json", settings)
        return world.upload("data/train/reviews/x.csv", CSV)

    return uploaded


def bad_settings(world: World, _: Handlers) -> Event:
    return world.upload("data/train/reviews/settings.json", b'{"epochs": 0}')


def upload_over_quota(world: World, _: Handlers) -> Event:
    world.sagemaker.training_quota = 0
    return world.upload("data/train/x.csv")


def one_slot(world: World, handlers: Handlers) -> Event:
    """Both slots are taken, and an upload of a minute later comes."""
    for minute in (1, 2):
        handlers["training_orchestrator"].lambda_handler(upload_of_minute(world, minute), Context(f"minute {minute}"))
    return upload_of_minute(world, 3)


def waiting(world: World, handlers: Handlers) -> None:
    """Both slots are taken, and a third and a fourth upload wait."""
    for minute, sent in ((3, one_slot(world, handlers)), (4, upload_of_minute(world, 4))):
        handlers["training_orchestrator"].lambda_handler(sent, Context(f"minute {minute}"))


def job_ended(world: World, handlers: Handlers) -> Event:
    waiting(world, handlers)
    return end(world, 1)


def events_lost(world: World, handlers: Handlers) -> Event:
    waiting(world, handlers)
    for minute in (1, 2):
        end(world, minute)
    return SWEEP


def quota_while_waiting(quota: int) -> Callable[[World, Handlers], Event]:
    def prepare(world: World, handlers: Handlers) -> Event:
        sent = job_ended(world, handlers)
        world.sagemaker.training_quota = quota
        return sent

    return prepare


def quota_raised(world: World, handlers: Handlers) -> Event:
    """Two uploads waited for a quota of 0, and it was raised."""
    world.sagemaker.training_quota = 0
    for minute in (1, 2):
        handlers["training_orchestrator"].lambda_handler(upload_of_minute(world, minute), Context(f"minute {minute}"))
    world.sagemaker.training_quota = None
    return SWEEP


def known_upload(world: World, handlers: Handlers) -> Event:
    """The same bytes as those of a job of a minute ago."""
    handlers["training_orchestrator"].lambda_handler(upload(CSV)(world, handlers), Context("first"))
    world.wait(minutes=1)
    return world.upload("data/train/reviews/again.tsv", CSV)


def crowd_of_known_uploads(world: World, handlers: Handlers) -> Event:
    for number in range(2):
        handlers["training_orchestrator"].lambda_handler(known_upload(world, handlers), Context(f"again {number}"))
    world.wait(minutes=21)
    return SWEEP


def known_upload_lost(world: World, handlers: Handlers) -> Event:
    """The same bytes as those of a job, and their event never came."""
    known_upload(world, handlers)
    world.wait(minutes=11)
    return SWEEP


def claim_of_a_job_that_is_gone(world: World, handlers: Handlers) -> Event:
    """The same bytes as those of a job of long ago, whose snapshot has expired."""
    sent = known_upload(world, handlers)
    for key in world.keys("data/snapshots/"):
        world.s3.delete_object(Bucket=BUCKET, Key=key)
    return sent


def of_another_kind(world: World, _: Handlers) -> Event:
    return world.upload("data/train/reviews/x.xlsx", b"PK")


def large_upload(world: World, _: Handlers) -> Event:
    """More than is read in the time that there is."""
    return world.upload("data/train/reviews/x.csv", CSV + (b"x" * 1000 + b",ham\n") * 600 + b"\xff")


def paused_upload(world: World, _: Handlers) -> Event:
    world.put("control/paused.json", {"schema": 1})
    return upload_of_minute(world, 1)


def resumed(world: World, handlers: Handlers) -> Event:
    handlers["training_orchestrator"].lambda_handler(paused_upload(world, handlers), Context("paused"))
    world.s3.delete_object(Bucket=BUCKET, Key="control/paused.json")
    return SWEEP


def tried_in_vain(world: World, handlers: Handlers) -> Event:
    """An upload waits whose job could not be started as often as it is tried."""
    sent = resumed(world, handlers)
    world.sagemaker.before_create = lambda _: broken_connection()
    for number in range(handlers["training_orchestrator"].GIVE_UP_TRIES):
        with pytest.raises(ClientError):
            handlers["training_orchestrator"].lambda_handler(sent, Context(f"try {number}"))
        world.wait(hours=2)
    return sent


def event_lost(world: World, _: Handlers) -> Event:
    complete(world, None, tar_gz([metrics_file(), WEIGHTS]))
    record_start(world)
    return SWEEP


def deleted_job(world: World, _: Handlers) -> Event:
    start_job(world)
    record_start(world)
    del world.sagemaker.jobs[JOB]
    return SWEEP


def completed(**metrics: object) -> Callable[[World, Handlers], Event]:
    def prepare(world: World, _: Handlers) -> Event:
        complete(world, None, tar_gz([metrics_file(**metrics), WEIGHTS]))
        return world.job_event(JOB)

    return prepare


def completed_beside_a_live_model(accuracy: float) -> Callable[[World, Handlers], Event]:
    """The job was compared with the live model, and with one that was approved meanwhile."""

    def figures(value: float) -> dict[str, Any]:
        sets = [
            {"name": "hold-out of the live model", "rows": 50, "live": {"accuracy": 0.9}, "new": {"accuracy": value}}
        ]
        return {"job": FIRST, "compared": True, "note": "", "sets": sets}

    def prepare(world: World, _: Handlers) -> Event:
        rival = "training-job-20261123-110000-0123abcd"
        world.put(f"models/approved/default/{rival}/model.tar.gz", ARTIFACT)
        world.put(f"models/decisions/{rival}.json", {"schema": 1, "job": rival, "champion": figures(0.91)})
        complete(world, tar_gz([metrics_file(champion=figures(accuracy))]), tar_gz([WEIGHTS]))
        return world.job_event(JOB)

    return prepare


def completed_without_its_comparison(world: World, _: Handlers) -> Event:
    """The job was given the live model, which does not load."""
    champion = {"job": FIRST, "status": "cannot be loaded", "compared": False, "note": "", "sets": []}
    complete(world, tar_gz([metrics_file(champion=champion)]), tar_gz([WEIGHTS]))
    record_start(world)
    return world.job_event(JOB)


def completed_in_another_spelling(accuracy: float) -> Callable[[World, Handlers], Event]:
    """The job's labels are the live model's, spelled differently; what its data holds is told."""

    def prepare(world: World, _: Handlers) -> Event:
        figures = {"live": {"accuracy": 0.9}, "new": {"accuracy": accuracy}}
        champion = {"job": FIRST, "status": "respelt labels", "compared": True, "note": "", "respelt": '"A" for "a"'}
        champion["sets"] = [{"name": "hold-out of the live model", "rows": 50, **figures}]
        told = {"rows": "30 read, 20 used", "rows left out": "too many fields: 10 (line 22, 23, 24, 25, 26, …)"}
        complete(world, tar_gz([metrics_file(champion=champion, told=told)]), tar_gz([WEIGHTS]))
        record_start(world)
        return world.job_event(JOB)

    return prepare


def replaced_archive(world: World, _: Handlers) -> Event:
    """Something wrote the model's archive after the job had ended."""
    complete(world, None, tar_gz([metrics_file(), WEIGHTS]))
    world.wait(minutes=1)
    world.put(ARTIFACT_KEY, tar_gz([metrics_file(accuracy=0.99), WEIGHTS]))
    return world.job_event(JOB)


def upload_beside_a_live_model(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return world.upload("data/train/x.csv", CSV)


def failed_job(world: World, _: Handlers) -> Event:
    start_job(world)
    world.sagemaker.end_job(JOB, "Failed", reason="All rows have the label 'ham'")
    return world.job_event(JOB, "Failed")


def stopped_job(world: World, _: Handlers) -> Event:
    start_job(world)
    world.sagemaker.end_job(JOB, "Stopped", secondary="MaxRuntimeExceeded")
    return world.job_event(JOB, "Stopped")


def spot_job_completed(world: World, handlers: Handlers) -> Event:
    """A job on spot instances, started by the orchestrator, has ended; SageMaker says what it saved."""
    sent = upload(CSV)(world, handlers)
    handlers["training_orchestrator"].lambda_handler(sent, Context("the start"))
    (job,) = world.sagemaker.jobs
    artifact = f"models/raw/{job}/output/model.tar.gz"
    world.put(artifact, tar_gz([metrics_file(), WEIGHTS]))
    world.sagemaker.end_job(job, artifact=f"s3://{BUCKET}/{artifact}")
    return world.job_event(job)


def spot_job_without_capacity(world: World, _: Handlers) -> Event:
    start_job(world)
    world.sagemaker.jobs[JOB]["StoppingCondition"]["MaxWaitTimeInSeconds"] = 14400
    world.sagemaker.end_job(JOB, "Stopped", secondary="MaxWaitTimeExceeded")
    return world.job_event(JOB, "Stopped")


def approval(job: str, artifact: bytes = ARTIFACT) -> Callable[[World, Handlers], Event]:
    return lambda world, _: world.upload(approved_key(job), artifact)


def rollout(job: str = FIRST) -> Callable[[World, Handlers], Event]:
    """A model's deployment is asked for and under way."""

    def prepare(world: World, handlers: Handlers) -> Event:
        handlers["deployment_orchestrator"].lambda_handler(approval(job)(world, handlers), Context(f"rollout of {job}"))
        return world.endpoint_event()

    return prepare


def arrival(job: str = FIRST) -> Callable[[World, Handlers], Event]:
    """The endpoint came into service with the model."""

    def prepare(world: World, handlers: Handlers) -> Event:
        sent = rollout(job)(world, handlers)
        world.sagemaker.come_up(ENDPOINT)
        return sent

    return prepare


def live(world: World, handlers: Handlers) -> None:
    """The first model is in service, and that was told."""
    handlers["deployment_orchestrator"].lambda_handler(arrival()(world, handlers), Context("live"))


def update(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return approval(SECOND)(world, handlers)


def update_arrived(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return arrival(SECOND)(world, handlers)


def rolled_back(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    sent = rollout(SECOND)(world, handlers)
    world.sagemaker.roll_back(ENDPOINT, PING_FAILED)
    return sent


def failed_endpoint(world: World, handlers: Handlers) -> Event:
    sent = rollout()(world, handlers)
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    return sent


def next_in_line(world: World, handlers: Handlers) -> Event:
    """The first model came up while the second was already approved."""
    sent = rollout()(world, handlers)
    approval(SECOND)(world, handlers)
    world.sagemaker.come_up(ENDPOINT)
    return sent


def bad_artifact(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    return approval(SECOND, b"no archive")(world, handlers)


def foreign_endpoint(world: World, handlers: Handlers) -> Event:
    make_foreign_endpoint(world)
    return approval(FIRST)(world, handlers)


def endpoint_quota(world: World, handlers: Handlers) -> Event:
    world.sagemaker.endpoint_quota_message = "The account-level service limit 'serverless' is 0"
    return approval(FIRST)(world, handlers)


def lost_upload(content: bytes) -> Callable[[World, Handlers], Event]:
    """An upload whose event never came, after the time for it."""

    def prepare(world: World, _: Handlers) -> Event:
        world.upload("data/train/reviews/x.csv", content)
        world.wait(minutes=11)
        return SWEEP

    return prepare


def refused_upload(world: World, _: Handlers) -> Event:
    """SageMaker refuses the job of every upload."""
    text = "Requested image 123456789012.dkr.ecr.us-east-1.amazonaws.com/x:1 not found"
    world.sagemaker.refusals["CreateTrainingJob"] = refusal("CreateTrainingJob", "ValidationException", text)
    return upload_of_minute(world, 1)


def refusal_mended(world: World, handlers: Handlers) -> Event:
    handlers["training_orchestrator"].lambda_handler(refused_upload(world, handlers), Context("refused"))
    world.sagemaker.refusals.clear()
    return SWEEP


def refused_model(world: World, handlers: Handlers) -> Event:
    text = "Requested image 123456789012.dkr.ecr.us-east-1.amazonaws.com/x:1 not found"
    world.sagemaker.refusals["CreateModel"] = refusal("CreateModel", "ValidationException", text)
    return approval(FIRST)(world, handlers)


def refused_model_mended(world: World, handlers: Handlers) -> Event:
    handlers["deployment_orchestrator"].lambda_handler(refused_model(world, handlers), Context("refused"))
    world.sagemaker.refusals.clear()
    return SWEEP


def config_in_use_deleted(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    world.sagemaker.configs.clear()
    world.sagemaker.models.clear()
    return approval(SECOND)(world, handlers)


def settled(job: str, world: World, handlers: Handlers) -> None:
    """The model is in service, and that was told."""
    handlers["deployment_orchestrator"].lambda_handler(arrival(job)(world, handlers), Context(f"arrival of {job}"))


def wrong_answers(world: World, handlers: Handlers) -> Event:
    """The second model came up, and answers otherwise than it did in training."""
    live(world, handlers)
    decide(world, SECOND)
    world.sagemaker.answers[SECOND] = ("spam", 0.9)
    return arrival(SECOND)(world, handlers)


def first_answers_wrongly(world: World, handlers: Handlers) -> Event:
    decide(world, FIRST)
    world.sagemaker.answers[FIRST] = ("spam", 0.9)
    return arrival()(world, handlers)


def right_answers(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    decide(world, SECOND)
    return arrival(SECOND)(world, handlers)


def silent(invocations: int) -> Callable[[World, Handlers], Event]:
    """The second model is up and does not answer, in this many invocations so far."""

    def prepare(world: World, handlers: Handlers) -> Event:
        sent = right_answers(world, handlers)
        world.sagemaker.answers[SECOND] = model_error(0)
        for number in range(invocations):
            handlers["deployment_orchestrator"].lambda_handler(sent, Context(f"silent {number}"))
        return sent

    return prepare


def answers_at_last(world: World, handlers: Handlers) -> Event:
    sent = silent(5)(world, handlers)
    world.sagemaker.answers.clear()
    return sent


def restored(world: World, handlers: Handlers) -> Event:
    sent = wrong_answers(world, handlers)
    handlers["deployment_orchestrator"].lambda_handler(sent, Context("wrong answers"))
    world.sagemaker.come_up(ENDPOINT)
    return sent


def failed_update(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    sent = rollout(SECOND)(world, handlers)
    world.sagemaker.fail(ENDPOINT, PING_FAILED)
    return sent


def failed_live_endpoint(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    world.sagemaker.fail(ENDPOINT, "The instance failed")
    return world.endpoint_event(status="FAILED")


def deleted_by_hand(world: World, handlers: Handlers) -> Event:
    live(world, handlers)
    world.sagemaker.vanish(ENDPOINT)
    return {"source": "sweep"}


def approved_after_deletion(world: World, handlers: Handlers) -> Event:
    handlers["deployment_orchestrator"].lambda_handler(deleted_by_hand(world, handlers), Context("deleted"))
    return approval(SECOND)(world, handlers)


def third_arrived(world: World, handlers: Handlers) -> Event:
    """The third model came up; two are kept, so the first goes."""
    settled(FIRST, world, handlers)
    settled(SECOND, world, handlers)
    return arrival(THIRD)(world, handlers)


def from_instances_to_serverless(world: World, handlers: Handlers) -> Event:
    deployer = handlers["deployment_orchestrator"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ENDPOINT_TYPE", "instance")
        deployer.settings.cache_clear()
        live(world, handlers)
    deployer.settings.cache_clear()
    return approval(SECOND)(world, handlers)


def lost_event_of(prepare: Callable[[World, Handlers], Event | Command]) -> Callable[[World, Handlers], Event]:
    """The same, but the event that told of it was never delivered: the sweep comes by."""

    def prepared(world: World, handlers: Handlers) -> Event:
        prepare(world, handlers)
        return SWEEP

    return prepared


def newest_of_two_next(world: World, handlers: Handlers) -> Event:
    """The first model came up; two were approved meanwhile."""
    sent = rollout()(world, handlers)
    for job in (THIRD, SECOND):
        handlers["deployment_orchestrator"].lambda_handler(
            approval(job)(world, handlers), Context(f"approval of {job}")
        )
    world.sagemaker.come_up(ENDPOINT)
    return sent


def capped(world: World, handlers: Handlers) -> Event:
    """The day's one job was started, and two uploads came after it."""
    for minute in (1, 2):
        handlers["training_orchestrator"].lambda_handler(upload_of_minute(world, minute), Context(f"minute {minute}"))
    return upload_of_minute(world, 3)


def next_day(world: World, handlers: Handlers) -> Event:
    handlers["training_orchestrator"].lambda_handler(capped(world, handlers), Context("capped"))
    world.sagemaker.end_job(next(iter(world.sagemaker.jobs)), "Failed")
    world.wait(hours=13)
    return SWEEP


def one_model_too_many(world: World, handlers: Handlers) -> Event:
    handlers["training_orchestrator"].lambda_handler(world.upload("data/train/first/x.csv"), Context("first"))
    return world.upload("data/train/second/x.csv")


def stored_as(**how: str) -> Callable[[World, Handlers], Event]:
    return lambda world, _: world.upload("data/train/reviews/x.csv", **how)


def second_bad_upload(world: World, handlers: Handlers) -> Event:
    handlers["training_orchestrator"].lambda_handler(world.upload("data/train/1.csv", b"text;label\n"), Context("1"))
    return world.upload("data/train/2.csv", b"text;label\n")


def crowd_of_bad_uploads(world: World, handlers: Handlers) -> Event:
    for number in range(2, 4):
        sent = second_bad_upload(world, handlers)
        handlers["training_orchestrator"].lambda_handler(sent, Context(f"{number}"))
    world.wait(minutes=21)
    return SWEEP


# --- a person's rollback ----------------------------------------------------------------------------


def at_a_shell(world: World, handlers: Handlers) -> Shell:
    """A person at a shell, two models after the first, with the third one live."""
    sqs = SimpleNamespace(create_queue=lambda **_: {"QueueUrl": "queue"})
    sts = SimpleNamespace(get_caller_identity=lambda: {"Arn": "arn:aws:sts::123456789012:assumed-role/people/ada"})
    shell = Shell(world, handlers["deployment_orchestrator"], sqs, sts)
    world.sagemaker.clock = world.now
    shell.go_live(FIRST, SECOND, THIRD)
    return shell


def rollback_command(*options: str) -> Callable[[World, Handlers], Command]:
    def prepare(world: World, handlers: Handlers) -> Command:
        shell = world.shell = at_a_shell(world, handlers)  # type: ignore[attr-defined]

        def run() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(mlops.target, "connect", lambda _: shell.target)
                patch.setattr(bucket, "now", world.now)
                if shell.run("rollback", "--model", "default", *options) != 0:
                    raise CommandFailedError

        return run

    return prepare


def deliver_to_the_deployer(world: World, handlers: Handlers) -> None:
    """What the command sent to the function arrives."""
    for number, (function, payload) in enumerate(world.shell.functions.sent):  # type: ignore[attr-defined]
        assert function == FUNCTIONS["deployer"]
        handlers["deployment_orchestrator"].lambda_handler(payload, Context(f"sent by the command, {number}"))


def rollback_asked_for(world: World, handlers: Handlers) -> Event:
    rollback_command()(world, handlers)()
    ((_, payload),) = world.shell.functions.sent  # type: ignore[attr-defined]
    return dict(payload)


def rollback_arrived(world: World, handlers: Handlers) -> Event:
    handlers["deployment_orchestrator"].lambda_handler(rollback_asked_for(world, handlers), Context("rollback"))
    world.sagemaker.come_up(ENDPOINT)
    return world.endpoint_event()


ON_INSTANCES = {
    "ENDPOINT_TYPE": "instance",
    "ENDPOINT_INSTANCE_COUNT": "2",
    "DEPLOYMENT_POLICY": '{"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": {"Type": "CANARY", '
    '"CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 50}, "WaitIntervalInSeconds": 60}}}',
}
ON_SPOT = {"TRAINING_INSTANCE_COUNT": "2", "TRAINING_MAX_WAIT_SECONDS": "14400", "BASE_MODEL": "auto"}
ONE_A_DAY = {"MAX_TRAINING_JOBS_PER_DAY": "1"}
PATHS = {
    "start": Path("training_orchestrator", upload(CSV)),
    "start, large": Path("training_orchestrator", upload(CSV), copy_in_parts=True),
    "start, read in part": Path("training_orchestrator", large_upload, read_in_part=True),
    "refuse a file of another kind": Path("training_orchestrator", of_another_kind),
    "known data": Path("training_orchestrator", known_upload),
    "sweep: email a crowd of known data": Path("training_orchestrator", crowd_of_known_uploads),
    "sweep: adopt known data": Path("training_orchestrator", known_upload_lost),
    "known data whose snapshot is gone": Path("training_orchestrator", claim_of_a_job_that_is_gone),
    "refuse a bad upload": Path("training_orchestrator", upload(b"text;label\n")),
    "start with settings": Path("training_orchestrator", upload_with({"epochs": 5, "max_length": 64})),
    "start with settings, on spot instances": Path(
        "training_orchestrator",
        upload_with({"base_model": "auto", "candidates": "words,frozen"}),
        environment=ON_SPOT | {"BASE_MODEL": "org/name"},
    ),
    "start on spot instances": Path("training_orchestrator", upload(CSV), environment=ON_SPOT),
    "start over quota of spot instances": Path("training_orchestrator", upload_over_quota, environment=ON_SPOT),
    "approve from spot instances": Path("model_evaluator", spot_job_completed, environment=ON_SPOT),
    "no capacity of spot instances": Path("model_evaluator", spot_job_without_capacity),
    "refuse an upload for its settings": Path("training_orchestrator", upload_with({"epoch": 5})),
    "refuse settings": Path("training_orchestrator", bad_settings),
    "refuse one model too many": Path("training_orchestrator", one_model_too_many, environment={"MAX_MODELS": "1"}),
    "refuse an archived file": Path("training_orchestrator", stored_as(StorageClass="GLACIER")),
    "refuse a file with a foreign key": Path(
        "training_orchestrator", stored_as(SSEKMSKeyId="arn:aws:kms:::key/theirs")
    ),
    "refuse a second bad upload": Path("training_orchestrator", second_bad_upload),
    "sweep: email a crowd of refusals": Path("training_orchestrator", crowd_of_bad_uploads),
    "start over quota": Path("training_orchestrator", upload_over_quota),
    "wait for a slot": Path("training_orchestrator", one_slot),
    "next in line": Path("training_orchestrator", job_ended),
    "sweep: slots to free, jobs to start": Path("training_orchestrator", events_lost),
    "wait for quota": Path("training_orchestrator", quota_while_waiting(1)),
    "quota of 0 while waiting": Path("training_orchestrator", quota_while_waiting(0)),
    "quota raised": Path("training_orchestrator", quota_raised),
    "wait for resume": Path("training_orchestrator", paused_upload),
    "resume": Path("training_orchestrator", resumed),
    "give up": Path("training_orchestrator", tried_in_vain),
    "sweep: approve": Path("model_evaluator", event_lost),
    "sweep: deleted job": Path("model_evaluator", deleted_job),
    "approve": Path("model_evaluator", completed()),
    "approve, large": Path("model_evaluator", completed(), copy_in_parts=True),
    "approve beside a live model": Path("model_evaluator", completed_beside_a_live_model(0.91)),
    "reject beside a live model": Path("model_evaluator", completed_beside_a_live_model(0.9)),
    "start beside a live model": Path("training_orchestrator", upload_beside_a_live_model),
    "reject": Path("model_evaluator", completed(accuracy=0.1)),
    "hold": Path("model_evaluator", completed_without_its_comparison),
    "sweep: hold": Path("model_evaluator", lost_event_of(completed_without_its_comparison)),
    "accept uncompared": Path(
        "model_evaluator", completed_without_its_comparison, environment={"ACCEPT_UNCOMPARED": "default"}
    ),
    "hold another spelling": Path("model_evaluator", completed_in_another_spelling(0.91)),
    "accept another spelling": Path(
        "model_evaluator", completed_in_another_spelling(0.91), environment={"ACCEPT_UNCOMPARED": "default"}
    ),
    "reject another spelling": Path(
        "model_evaluator", completed_in_another_spelling(0.5), environment={"ACCEPT_UNCOMPARED": "default"}
    ),
    "reject a replaced archive": Path("model_evaluator", replaced_archive),
    "job failed": Path("model_evaluator", failed_job),
    "job stopped": Path("model_evaluator", stopped_job),
    "create": Path("deployment_orchestrator", approval(FIRST)),
    "confirm": Path("deployment_orchestrator", arrival()),
    "update": Path("deployment_orchestrator", update),
    "confirm update": Path("deployment_orchestrator", update_arrived),
    "rolled back": Path("deployment_orchestrator", rolled_back),
    "failed endpoint": Path("deployment_orchestrator", failed_endpoint),
    "right answers": Path("deployment_orchestrator", right_answers),
    "wrong answers": Path("deployment_orchestrator", wrong_answers),
    "wrong answers of the first model": Path("deployment_orchestrator", first_answers_wrongly),
    "no answer yet": Path("deployment_orchestrator", silent(4)),
    "no answer at all": Path("deployment_orchestrator", silent(5)),
    "an answer at last": Path("deployment_orchestrator", answers_at_last),
    "restored": Path("deployment_orchestrator", restored),
    "failed update": Path("deployment_orchestrator", failed_update),
    "failed live endpoint": Path("deployment_orchestrator", failed_live_endpoint),
    "deleted by hand": Path("deployment_orchestrator", deleted_by_hand),
    "approved after a deletion by hand": Path("deployment_orchestrator", approved_after_deletion),
    "clean up": Path("deployment_orchestrator", third_arrived),
    "replace": Path("deployment_orchestrator", from_instances_to_serverless),
    "confirm, then update": Path("deployment_orchestrator", next_in_line),
    "bad artifact": Path("deployment_orchestrator", bad_artifact),
    "endpoint of another stack": Path("deployment_orchestrator", foreign_endpoint),
    "endpoint quota": Path("deployment_orchestrator", endpoint_quota),
    "sweep: adopt": Path("training_orchestrator", lost_upload(CSV)),
    "sweep: adopt, large": Path("training_orchestrator", lost_upload(CSV), copy_in_parts=True),
    "sweep: adopt and reject": Path("training_orchestrator", lost_upload(b"text;label\n")),
    "refused": Path("training_orchestrator", refused_upload),
    "refused, then mended": Path("training_orchestrator", refusal_mended),
    "deployment refused": Path("deployment_orchestrator", refused_model),
    "deployment refused, then mended": Path("deployment_orchestrator", refused_model_mended),
    "config in use deleted": Path("deployment_orchestrator", config_in_use_deleted),
    "wait for the next day": Path("training_orchestrator", capped, environment=ONE_A_DAY),
    "the next day": Path("training_orchestrator", next_day, environment=ONE_A_DAY),
    "sweep: reject": Path("model_evaluator", lost_event_of(completed(accuracy=0.1))),
    "sweep: job failed": Path("model_evaluator", lost_event_of(failed_job)),
    "sweep: create": Path("deployment_orchestrator", lost_event_of(approval(FIRST))),
    "sweep: update": Path("deployment_orchestrator", lost_event_of(update)),
    "sweep: confirm": Path("deployment_orchestrator", lost_event_of(update_arrived)),
    "sweep: rolled back": Path("deployment_orchestrator", lost_event_of(rolled_back)),
    "sweep: failed endpoint": Path("deployment_orchestrator", lost_event_of(failed_endpoint)),
    "newest of two next": Path("deployment_orchestrator", newest_of_two_next),
    "update on instances": Path("deployment_orchestrator", update, environment=ON_INSTANCES),
    "rollback command": Path("a person", rollback_command(), afterwards=deliver_to_the_deployer),
    "rollback command, further": Path("a person", rollback_command("--to", FIRST), afterwards=deliver_to_the_deployer),
    "rollback by a person": Path("deployment_orchestrator", rollback_asked_for),
    "rollback by a person arrived": Path("deployment_orchestrator", rollback_arrived),
}
