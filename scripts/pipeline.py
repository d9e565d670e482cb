"""Daily use from a shell: upload a CSV, ask the endpoint, read logs, see where everything stands.

Talks to the local AWS while one is running (make local-up), else to AWS with your usual credentials;
the first line on stderr says which. TARGET=aws or TARGET=local decides it. Every option can be given as an
environment variable in capitals, which is how the Makefile passes them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "local"))

import stack  # noqa: E402  (scripts/local/stack.py; the path is set just above)

MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
DEFAULT_MODEL = "default"
TRAINING_LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDPOINT_LOG_GROUP = "/aws/sagemaker/Endpoints/"
PAUSED_KEY = "control/paused.json"
LEDGER_KEY = "slots/training.json"
JOBS_SHOWN = 10
# What AWS says of a queue, a bucket or a function that is no longer there.
GONE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NoSuchBucket", "ResourceNotFoundException")


class UsageError(Exception):
    """Something that the person at the shell can put right; the text says how."""


class NothingDeployed(UsageError):
    """Terraform knows of no stack here."""


@dataclass(frozen=True)
class Target:
    """A deployed stack: where it is and what Terraform says that its parts are called."""

    where: str
    session: boto3.Session
    environment: Mapping[str, str]
    outputs: Mapping[str, Any]

    def client(self, service: str) -> Any:
        """A client of this stack's AWS; endpoints of the local one come from its environment."""
        name = {"sagemaker": "SAGEMAKER", "sagemaker-runtime": "SAGEMAKER_RUNTIME"}.get(service, "")
        url = self.environment.get(f"AWS_ENDPOINT_URL_{name}") or self.environment.get("AWS_ENDPOINT_URL")
        return self.session.client(service, endpoint_url=url)

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
        return Target("the local AWS", session, environment, running["outputs"])
    if target == "local":
        raise UsageError("no local AWS is running: start one with make local-up, or make demo KEEP=1")
    command = [sys.executable, str(ROOT / "scripts" / "terraform.py"), "output", "-json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise UsageError(f"terraform output failed:\n{answer.stderr.strip()}")
    outputs = {name: output["value"] for name, output in json.loads(answer.stdout or "{}").items()}
    if "bucket_name" not in outputs:
        raise NothingDeployed("nothing is deployed from here: run make deploy first, or make local-up for a local AWS")
    return Target("AWS", boto3.Session(region_name=outputs["region_name"]), {}, outputs)


def flag(variable: str) -> bool:
    """Whether an environment variable says yes: anything but empty and 0."""
    return os.environ.get(variable, "") not in ("", "0")


def error_code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code", ""))


def model_name(name: str) -> str:
    """The name, checked. Raises UsageError."""
    name = name or DEFAULT_MODEL
    if not MODEL_NAME.fullmatch(name):
        raise UsageError(
            f'MODEL={name}: a model name has 1 to 32 of a-z, 0-9 and "-", beginning and ending with a letter or digit'
        )
    return name


def check_upload(data: Path) -> None:
    """Raises UsageError unless there is such a file, and it can be read and uploaded under its name."""
    if not data.is_file():
        raise UsageError(f"DATA={data}: there is no such file")
    if data.suffix.lower() != ".csv":
        raise UsageError(f"DATA={data}: only files named .csv are trained on")
    if not os.access(data, os.R_OK):
        raise UsageError(f"DATA={data}: this file may not be read")
    try:
        data.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"DATA={str(data)!a}: the file's name is not UTF-8, so S3 cannot take it") from None


def upload(target: Target, data: Path, model: str) -> str:
    """Upload a CSV for a model; returns its S3 URI. Raises UsageError when the file cannot be uploaded."""
    check_upload(data)
    folder = "" if model == DEFAULT_MODEL else f"{model}/"
    key = f"data/train/{folder}{data.name}"
    target.client("s3").upload_file(str(data), target.bucket, key)
    return f"s3://{target.bucket}/{key}"


def predict(target: Target, model: str, text: str) -> dict[str, Any]:
    """Ask a model's endpoint for the label of a text: {"label": str, "score": float}. Raises UsageError."""
    endpoint = target.endpoint_of(model)
    try:
        answer = target.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=endpoint, ContentType="application/json", Body=json.dumps({"inputs": text})
        )
    except ClientError as error:
        problem = error.response["Error"]
        if problem["Code"] == "ValidationError":
            raise UsageError(
                f"the endpoint {endpoint} does not answer: {problem['Message']}; see make status"
            ) from error
        raise
    result: dict[str, Any] = json.loads(answer["Body"].read())[0]
    return result


def log_events(target: Target, group: str, since: datetime, prefix: str = "") -> Iterator[tuple[datetime, str]]:
    """The events of a log group since a moment, as (UTC time, text); none when the group does not exist."""
    arguments: dict[str, Any] = {"logGroupName": group, "startTime": int(since.timestamp() * 1000)}
    if prefix:
        arguments["logStreamNamePrefix"] = prefix
    try:
        for page in target.client("logs").get_paginator("filter_log_events").paginate(**arguments):
            for event in page["events"]:
                # The local AWS knows no prefix.
                if not event["logStreamName"].startswith(prefix):
                    continue
                yield datetime.fromtimestamp(event["timestamp"] / 1000, UTC), event["message"].rstrip()
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise


def readable(line: str) -> str:
    """A line of a function's JSON log for people; what the runtime itself logs becomes empty."""
    if not line.startswith("{"):
        return "" if line.startswith(("START ", "END ", "REPORT ")) else line
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if str(record.get("type", "")).startswith("platform."):
        return ""
    fixed = ("timestamp", "level", "message", "logger", "requestId", "location", "stackTrace")
    extra = "  ".join(f"{key}={value}" for key, value in record.items() if key not in fixed)
    trace = "".join(record.get("stackTrace") or [])
    message = record.get("message", record.get("errorMessage", ""))
    return f"{record.get('level', ''):<7} {message}  {extra}\n{trace}".rstrip()


def show_logs(target: Target, job: str, endpoint: str, minutes: int) -> None:
    """Print the log of a training job, of an endpoint, or of the three functions."""
    since = datetime.now(UTC) - timedelta(minutes=minutes)
    if job:
        lines = list(log_events(target, TRAINING_LOG_GROUP, datetime.fromtimestamp(0, UTC), f"{job}/"))
    elif endpoint:
        lines = list(log_events(target, ENDPOINT_LOG_GROUP + endpoint, since))
    else:
        lines = []
        for short, function in target.functions.items():
            for moment, line in log_events(target, f"/aws/lambda/{function}", since):
                if text := readable(line):
                    lines.append((moment, f"{short:<10} {text}"))
        lines.sort()
    if not lines:
        window = "" if job else f" in the last {minutes} minutes (MINUTES=600 for more)"
        print(f"no log of {job or endpoint or 'the functions'}{window}")
    for moment, line in lines:
        print(f"{moment:%H:%M:%S}  {line}")


def read_records(target: Target, prefix: str) -> dict[str, dict[str, Any]]:
    """The JSON records under a prefix, by key."""
    s3 = target.client("s3")
    keys = [
        item["Key"]
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=prefix)
        for item in page.get("Contents", [])
        if item["Key"].endswith(".json")
    ]
    return {key: json.loads(s3.get_object(Bucket=target.bucket, Key=key)["Body"].read()) for key in keys}


def newest_jobs(target: Target) -> list[str]:
    """The names of the training jobs that have a snapshot, newest first."""
    pages = (
        target.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket=target.bucket, Prefix="data/snapshots/", Delimiter="/")
    )
    prefixes = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", []))
    return sorted((prefix.split("/")[-2] for prefix in prefixes), reverse=True)


def job_line(target: Target, job: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """One line on a training job: its verdict, what became of its model, its data and numbers."""
    source = records.get(f"data/snapshots/{job}/source.json", {})
    decision = read_records(target, f"models/decisions/{job}.json").get(f"models/decisions/{job}.json")
    name = str(source.get("key", "?")).rsplit("/", 1)[-1]
    if decision is None and f"data/snapshots/{job}/started.json" in records:
        return f"{job}  {'training':<11} {name}"
    if decision is None:
        waiting = records.get(f"data/snapshots/{job}/waiting.json")
        state = "starting" if waiting is None else "waiting"
        if f"data/snapshots/{job}/given_up.json" in records:
            state = "given up"
        return f"{job}  {state:<11} {name}" + (f"  for {waiting['for']}" if waiting else "")
    deployments = read_records(target, f"models/deployments/{job}-").values()
    state = ", ".join(str(record["state"]) for record in deployments) or "-"
    state = state.replace("confirmed", "deployed")
    withdrawn = [record["withdrawn"] for record in deployments if record["state"] == "withdrawn"]
    # Its own hold-out comes first; the comparison with the live model has the same metrics again.
    values = {check["metric"]: check["value"] for check in reversed(decision["checks"]) if check["value"] is not None}
    numbers = "  ".join(f"{metric} {value:.3f}" for metric, value in sorted(values.items()))
    why = "" if decision["verdict"] == "approved" else f"  {decision['reason']:.100}"
    for record in withdrawn:
        why = (
            f"  {record['at'][:16]} by {record['by'].rsplit('/', 1)[-1]}: {record['reason'] or 'no reason given':.100}"
        )
    return f"{job}  {decision['verdict']:<11} {state:<12} {name}  {numbers}{why}"


def training_line(ledger: Mapping[str, Any] | None) -> str:
    """How much of the spend guards is taken, from the training orchestrator's ledger (None: nothing was started)."""
    held = sum(entry["state"] == "held" for entry in ledger["jobs"].values()) if ledger else 0
    on_this_day = ledger is not None and ledger["day"]["date"] == f"{datetime.now(UTC):%Y-%m-%d}"
    started = len(ledger["day"]["jobs"]) if ledger and on_this_day else 0
    never = f"; the quota of {ledger['never']['instance_type']} is 0" if ledger and ledger["never"] else ""
    return f"training   {held} running, {started} started today (UTC){never}"


def show_status(target: Target) -> None:
    """Print the endpoints, the newest jobs, rejected uploads, and what needs somebody's attention."""
    print(f"bucket     {target.bucket}")
    paused = read_records(target, PAUSED_KEY).get(PAUSED_KEY)
    if paused is not None:
        print(f"PAUSED     since {paused['at'][:16]} by {paused['by']}: no new jobs, no endpoints; make resume ends it")
    print(training_line(read_records(target, LEDGER_KEY).get(LEDGER_KEY)))
    jobs = newest_jobs(target)[:JOBS_SHOWN]
    by_model: dict[str, list[str]] = {DEFAULT_MODEL: []}
    for job in jobs:
        records = read_records(target, f"data/snapshots/{job}/")
        source = records.get(f"data/snapshots/{job}/source.json")
        if source is not None:
            by_model.setdefault(source["model"], []).append(job_line(target, job, records))
    sagemaker = target.client("sagemaker")
    for model, lines in by_model.items():
        endpoint = target.endpoint_of(model)
        try:
            answer = sagemaker.describe_endpoint(EndpointName=endpoint)
            serving = f"{answer['EndpointStatus']}, serves {answer['EndpointConfigName']}"
        except ClientError as error:
            if not error.response["Error"]["Message"].startswith("Could not find"):
                raise
            serving = "none while the pipeline is paused" if paused else "none"
        else:
            if paused:
                serving += " (it should not be there while the pipeline is paused: make pause)"
        print(f"\nmodel      {model}\nendpoint   {endpoint}: {serving}")
        for line in lines:
            print(f"  {line}")
    rejected = read_records(target, "data/rejected/")
    if rejected:
        print("\nrejected uploads, newest first")
        for record in sorted(rejected.values(), key=lambda record: record["job"], reverse=True)[:JOBS_SHOWN]:
            print(f"  {record['rejected_at'][:16]}  {record['key']}: {record['reason']}")
    attention(target)


def attention(target: Target) -> None:
    """Print what somebody should look at: failed events in the queue, unconfirmed email subscriptions."""
    queue = target.client("sqs").get_queue_attributes(
        QueueUrl=target.outputs["failure_queue_url"], AttributeNames=["ApproximateNumberOfMessages"]
    )
    failed = int(queue["Attributes"]["ApproximateNumberOfMessages"])
    if failed:
        print(f"\n{failed} failed events wait in {target.outputs['failure_queue_url']}:")
        print("make logs shows the errors; once the cause is mended, make redrive sends the events again")
    pages = (
        target.client("sns").get_paginator("list_subscriptions_by_topic").paginate(TopicArn=target.outputs["topic_arn"])
    )
    for subscription in (item for page in pages for item in page["Subscriptions"]):
        if subscription["SubscriptionArn"] == "PendingConfirmation":
            print(
                f"\n{subscription['Endpoint']} gets no email yet: the link in AWS's confirmation mail was not clicked"
            )


def on_stack(where: str, command: Callable[[Target], int], find: Callable[[str], Target] | None = None) -> int:
    """Run a command on the stack; returns its exit status, or that of an error which a person can read.

    `find` looks for the stack in another way than `connect`.
    """
    name = "AWS"
    try:
        target = (find or connect)(where)
        name = target.where
        print(f"({name})", file=sys.stderr)
        status = command(target)
        sys.stdout.flush()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Boto3Error, BotoCoreError, ClientError) as error:
        print(f"error: {name} refused: {error}", file=sys.stderr)
        if isinstance(error, ClientError) and error_code(error) in GONE:
            print("after a make destroy, make deploy takes the stack's bucket up again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, a pager or head, has seen enough. What is still buffered must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        return status
    return 0


def run(target: Target, options: argparse.Namespace) -> int:
    """Carry out one of this module's commands; the exit status. Raises UsageError."""
    if options.command == "upload":
        if not options.data:
            raise UsageError("say which file: make upload DATA=file.csv [MODEL=name]")
        uri = upload(target, Path(options.data), model_name(options.model))
        print(f"uploaded {uri}\na training starts now; follow it with make status and make logs")
    elif options.command == "predict":
        if not options.text.strip():
            raise UsageError('say which text: make predict TEXT="some text" [MODEL=name]')
        answer = predict(target, model_name(options.model), options.text)
        print(f"{answer['label']}  {answer['score']:.4f}")
    elif options.command == "logs":
        if not re.fullmatch(r"[0-9]{1,6}", options.minutes) or not int(options.minutes):
            raise UsageError(f"MINUTES={options.minutes}: a whole number above 0 is needed")
        show_logs(target, options.job, options.endpoint, int(options.minutes))
    else:
        show_status(target)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    environment = os.environ
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=environment.get("TARGET", ""))
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("upload", help="upload a CSV: a training starts")
    command.add_argument("--data", default=environment.get("DATA", ""))
    command.add_argument("--model", default=environment.get("MODEL", ""))
    command = commands.add_parser("predict", help="ask a model's endpoint for the label of a text")
    command.add_argument("--model", default=environment.get("MODEL", ""))
    command.add_argument("--text", default=environment.get("TEXT", ""))
    command = commands.add_parser("logs", help="the log of a training job, an endpoint, or the functions")
    command.add_argument("--job", default=environment.get("JOB", ""))
    command.add_argument("--endpoint", default=environment.get("ENDPOINT", ""))
    command.add_argument("--minutes", default=environment.get("MINUTES") or "30")
    commands.add_parser("status", help="endpoints, newest jobs, and what needs attention")
    options = parser.parse_args(arguments)
    return on_stack(options.target, lambda target: run(target, options))


if __name__ == "__main__":
    sys.exit(main())
