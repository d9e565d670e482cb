"""The stack that the commands talk to: where it is, its clients, its outputs, and what several commands do with it.

That is the local AWS while one is running (make local-up), else AWS with your usual credentials; TARGET=aws or
TARGET=local decides it. The first line on stderr says which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

import terraform
from local import stack
from mlops.records import DEFAULT_MODEL, MODEL_NAME
from mlops.text import complain, plain, say

TRAINING_LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDPOINT_LOG_GROUP = "/aws/sagemaker/Endpoints/"
# The event on which a function looks for whatever an undelivered event left behind.
SWEEP = {"source": "sweep"}
# What AWS says of a queue, a bucket or a function that is no longer there.
GONE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NoSuchBucket", "ResourceNotFoundException")

# An account with much in it throttles lists of it: the SDK slows down, and asks more often than its usual 4 times.
RETRIES = Config(retries={"mode": "adaptive", "total_max_attempts": 10})


class UsageError(Exception):
    """Something that the person at the shell can correct; the text says how."""


class NothingDeployed(UsageError):
    """Terraform knows of no stack here."""


@dataclass(frozen=True)
class Target:
    """A deployed stack: where it is, and the names of its parts, from Terraform's outputs.

    environment: of a local AWS; {} on AWS. folder: of its Terraform configuration and, unless that is in S3, its state.
    """

    where: str
    session: boto3.Session
    environment: Mapping[str, str]
    outputs: Mapping[str, Any]
    clients: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    folder: Path = terraform.ROOT / "terraform"

    def client(self, service: str) -> Any:
        """The client of a service on this stack's AWS; endpoints of the local one come from its environment."""
        if service not in self.clients:
            name = {"sagemaker": "SAGEMAKER", "sagemaker-runtime": "SAGEMAKER_RUNTIME"}.get(service, "")
            url = self.environment.get(f"AWS_ENDPOINT_URL_{name}") or self.environment.get("AWS_ENDPOINT_URL")
            self.clients[service] = self.session.client(service, endpoint_url=url, config=None if url else RETRIES)
        return self.clients[service]

    @property
    def bucket(self) -> str:
        return str(self.outputs["bucket_name"])

    @property
    def functions(self) -> dict[str, str]:
        """The functions' names by a short name for each."""
        short = {
            "training": "training_orchestrator",
            "evaluator": "model_evaluator",
            "deployer": "deployment_orchestrator",
        }
        return {name: str(self.outputs[f"{function}_name"]) for name, function in short.items()}

    def endpoint_of(self, model: str) -> str:
        """The name of a model's endpoint."""
        name = str(self.outputs["endpoint_name"])
        return name if model == DEFAULT_MODEL else f"{name}-{model}"


def connect(target: str = "") -> Target:
    """The stack to talk to. Raises UsageError when there is none."""
    if target not in ("", "aws", "local"):
        raise UsageError(f"TARGET={target}: it is aws or local")
    running = stack.running() if target in ("", "local") else None
    if running is not None:
        environment = stack.environment(running)
        # The shell's profile is for AWS, and may not exist here.
        os.environ.pop("AWS_PROFILE", None)
        session = boto3.Session(
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_REGION"],
        )
        folder = stack.state_folder() / "terraform"
        return Target("the local AWS", session, environment, running["outputs"], folder=folder)
    if target == "local":
        raise UsageError("no local AWS is running: start one with make local-up, or make demo KEEP=1")
    answer = subprocess.run(terraform.own_command("output", "-json"), capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise UsageError(f"terraform output failed:\n{answer.stderr.strip()}")
    outputs = {name: output["value"] for name, output in json.loads(answer.stdout or "{}").items()}
    if "bucket_name" not in outputs:
        raise NothingDeployed("nothing is deployed from here: run make deploy first, or make local-up for a local AWS")
    return Target("AWS", boto3.Session(region_name=outputs["region_name"]), {}, outputs)


def error_code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code", ""))


def is_denied(error: ClientError) -> bool:
    """Whether whoever runs this command is not allowed to make a call; services name that differently."""
    return "AccessDenied" in error_code(error) or error_code(error) in ("403", "AuthorizationError", "Forbidden")


def error_message(error: ClientError) -> str:
    return str(error.response["Error"].get("Message", ""))


def model_name(name: str) -> str:
    """The name, checked; "" is the default model. Raises UsageError."""
    name = name or DEFAULT_MODEL
    if not MODEL_NAME.fullmatch(name):
        raise UsageError(
            f'MODEL={plain(name)}: a model name has 1 to 32 of a-z, 0-9 and "-", beginning and ending with a letter or '
            "digit"
        )
    return name


def who(target: Target) -> str:
    """Whoever runs this command, as AWS knows them: the ARN of their user or role."""
    return str(target.client("sts").get_caller_identity()["Arn"])


def invoke(target: Target, function: str, payload: Mapping[str, Any]) -> None:
    """Hand a payload to a function, by its name; it runs, and is retried, after this returns."""
    target.client("lambda").invoke(FunctionName=function, InvocationType="Event", Payload=json.dumps(payload).encode())


def check_functions(target: Target, function: str = "deployer") -> None:
    """Raises UsageError when the stack's functions are gone: a bucket that make destroy kept is no stack.

    function: which of them is looked for, by its short name.
    """
    try:
        name = target.functions[function]
    except KeyError:
        raise UsageError(f"of this stack only {target.bucket} is left: make deploy takes it up again") from None
    try:
        target.client("lambda").invoke(FunctionName=name, InvocationType="DryRun", Payload=b"{}")
    except ClientError as error:
        if error_code(error) != "ResourceNotFoundException":
            raise
        raise UsageError(
            f"the function {name} is gone: this stack was destroyed. make deploy takes its bucket up again; "
            "then rerun this"
        ) from error


def confirm(target: Target, yes: bool, beforehand: str = "YES=1") -> None:
    """Ask for the bucket's name. Raises UsageError unless it was typed, or confirmed beforehand (yes)."""
    if yes:
        return
    try:
        typed = input(f"Type the bucket's name, {target.bucket}, to go on: ")
    except EOFError:
        say()
        raise UsageError(
            f"nobody is there to confirm: nothing was changed ({beforehand} confirms for a script)"
        ) from None
    if typed.strip() != target.bucket:
        raise UsageError(f"{typed.strip()!r} is not {target.bucket}: nothing was changed")


def reported(command: Callable[[], int]) -> int:
    """Run a command; returns its exit status, or that of a UsageError, of Ctrl-C or of a closed pipe."""
    try:
        status = command()
        sys.stdout.flush()
    except UsageError as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        complain("\ninterrupted")
        return 130
    except BrokenPipeError:
        # The reader, a pager or head, has seen enough. What is still buffered must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def on_stack(where: str, command: Callable[[Target], int], find: Callable[[str], Target] | None = None) -> int:
    """Run a command on the stack, as `reported` does; 1 when AWS refuses something.

    `find` looks for the stack in another way than `connect`.
    """

    def run() -> int:
        name = "AWS"
        try:
            target = (find or connect)(where)
            name = target.where
            say(f"({name})", sys.stderr)
            return command(target)
        except (Boto3Error, BotoCoreError, ClientError) as error:
            say(f"error: {name} refused: {error}", sys.stderr)
            if isinstance(error, ClientError) and error_code(error) in GONE:
                complain("after a make destroy, make deploy takes the stack's bucket up again")
            return 1

    return reported(run)
