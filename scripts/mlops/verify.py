"""mlops verify-aws: the pipeline, once through, in a real account: deploy, use, compare with the local AWS, delete.

It deploys a stack of its own (mlops-verify-<6 hex>), whose Terraform state lies in .verify and nowhere near yours,
plays mlops.scenario with it, writes down where AWS differs from the local AWS (scripts/verify/local.txt), deletes the
stack and looks whether anything is left. It can be cut off anywhere: the next run begins by deleting what there is.
Exit status: 0 the pipeline works, and nothing is left; 1 it does not, or something is; 2 it cannot be carried out as
given; 130 Ctrl-C, after deleting the stack.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

import mlops.target
import terraform
from local import stack
from mlops import account, deploy, destroy, scenario
from mlops.endpoints import PAGES
from mlops.prices import HOURLY
from mlops.target import Target, UsageError, confirm, error_code, on_stack
from mlops.text import complain, say

ADDED = stack.ROOT / "scripts" / "verify" / "inbox.tf"
BASELINE = stack.ROOT / "scripts" / "verify" / "local.txt"
NAME = "mlops-verify-"

# --- what it costs --------------------------------------------------------------------------------------

# List prices of us-east-1 in US dollars, September 2026: terraform/README.md, Costs, has the sources.
INSTANCE_TYPE = "ml.m5.xlarge"
INSTANCE_HOUR = HOURLY[INSTANCE_TYPE]
SERVERLESS_MB, SERVERLESS_SECOND = 3072, 0.00006
# Ten alarms for some hours, requests, logs, storage.
EVERYTHING_ELSE = 0.25
# InvokeEndpoint gives a model 60 seconds.
REQUEST_SECONDS = 60
TRAINING_SECONDS = 3600
# A run takes one to two hours. After this long, the stack is deleted, whatever it is doing.
RUN_SECONDS = 4 * 3600
DEFAULT_LIMIT = 5.0

# A deleted queue is listed for up to a minute, and model servers log for a while after their endpoint's end.
GONE_SECONDS = 5 * 60.0
POLL_SECONDS = 10.0
KINDS = ("EndpointConfig", "Model")
STATE = "terraform.tfstate"
INTERRUPTED = "interrupted; the stack is deleted now (Ctrl-C again leaves it)"


def variables(name: str) -> dict[str, Any]:
    """The stack's settings: the defaults that people get, with limits for what this run may spend."""
    return {
        "bucket_name": name,
        "endpoint_name": name,
        "package_dir": str(stack.ROOT / "build"),
        "training_instance_type": INSTANCE_TYPE,
        "training_max_runtime_seconds": TRAINING_SECONDS,
        "max_concurrent_training_jobs": 1,
        "max_training_jobs_per_day": scenario.TRAININGS,
        "endpoint_type": "serverless",
        "serverless_memory_mb": SERVERLESS_MB,
        # Whether a small model is a good one is not the question here.
        "thresholds": {"accuracy": {"min": 0.1}},
        "champion_margin": 1,
        "log_retention_days": 1,
    }


def costs() -> list[tuple[str, float]]:
    """What a run costs at most, in US dollars. The stack itself keeps to it, even if this machine dies."""
    hours = scenario.TRAININGS * TRAINING_SECONDS / 3600
    return [
        # The daily limit starts anew at midnight, UTC.
        (f"training: {hours:g} hours of {INSTANCE_TYPE} a day, and two days", 2 * hours * INSTANCE_HOUR),
        (
            f"serverless endpoint: {scenario.PREDICTIONS} requests of at most {REQUEST_SECONDS} s",
            scenario.PREDICTIONS * REQUEST_SECONDS * SERVERLESS_SECOND,
        ),
        ("alarms, logs, storage, requests", EVERYTHING_ELSE),
    ]


def read_limit(limit: str) -> float:
    """The most that a run may cost, in US dollars, as typed. Raises UsageError."""
    try:
        dollars = float(limit) if limit else DEFAULT_LIMIT
    except ValueError:
        raise UsageError(f"LIMIT={limit}: an amount in US dollars is needed, such as 5") from None
    most = sum(dollars for _, dollars in costs())
    if not most <= dollars:
        raise UsageError(f"LIMIT={limit}: a run may cost up to ${most:.2f}. Nothing was done")
    return dollars


def show_costs(limit: float) -> None:
    say()
    say("This costs at most, in US dollars (us-east-1, September 2026; other regions differ):")
    for what, dollars in costs():
        say(f"  {dollars:5.2f}  {what}")
    say(f"  {sum(dollars for _, dollars in costs()):5.2f}  in all (LIMIT={limit:g}); about 0.30 when all goes well")
    say(f"It takes one to two hours; after {RUN_SECONDS // 3600} hours the stack is deleted, whatever it is doing.")
    say("Should your credentials expire before that, log in again and rerun this: it deletes the stack.")
    say()


# --- the run's own folder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """run.json: a stack that exists, or did when this was last written. Written before anything is created."""

    name: str
    account: str
    region: str


def record_file(target: Target) -> Path:
    return target.folder.parent / "run.json"


def read_record(target: Target) -> Record | None:
    try:
        return Record(**json.loads(record_file(target).read_text()))
    except FileNotFoundError:
        return None


def write_configuration(target: Target) -> None:
    """A copy of the project's Terraform with the run's variables, and what it adds."""
    shutil.rmtree(target.folder, ignore_errors=True)
    shutil.copytree(stack.ROOT / "terraform", target.folder, ignore=shutil.ignore_patterns(*stack.NOT_CONFIGURATION))
    shutil.copy(ADDED, target.folder / ADDED.name)
    chosen = variables(target.bucket)
    running = stack.running()
    if target.environment and running:
        # The local AWS has no Hub: the base model is that of the stack which it runs.
        own = json.loads((stack.state_folder() / "terraform" / "local.auto.tfvars.json").read_text())
        chosen |= {variable: own[variable] for variable in ("base_model", "hyperparameters") if variable in own}
        (target.folder / "provider.tf.json").write_text(json.dumps(stack.local_provider(running), indent=2))
    (target.folder / "verify.auto.tfvars.json").write_text(json.dumps(chosen, indent=2))


# --- the account ----------------------------------------------------------------------------------------


def find_account(where: str) -> Target:
    """The account, with no stack in it yet. where: aws, or local for the local AWS that is running."""
    if where == "local":
        running = mlops.target.connect("local")
        return replace(running, outputs={}, clients={}, folder=stack.state_folder() / "verify" / "terraform")
    if where not in ("", "aws"):
        raise UsageError(f"TARGET={where}: it is aws or local")
    # The shell's settings for people's own stack must not reach this one.
    for variable in os.environ.keys() - stack.terraform_environment(os.environ).keys():
        del os.environ[variable]
    try:
        region = terraform.find_region(os.environ)
    except terraform.TerraformError as error:
        raise UsageError(str(error)) from error
    os.environ["AWS_REGION"] = region
    return Target("AWS", boto3.Session(region_name=region), {}, {}, folder=stack.ROOT / ".verify" / "terraform")


def run_terraform(target: Target, *arguments: str) -> int:
    """Run one Terraform command on the run's stack; its exit status."""
    environment = stack.terraform_environment(target.environment or os.environ)
    sys.stdout.flush()
    return terraform.finish(terraform.own_command(*arguments, directory=target.folder), environment)


def deployed(target: Target) -> Target:
    """The stack with its outputs, as far as there are any: an apply that was cut off leaves some out."""
    environment = stack.terraform_environment(target.environment or os.environ)
    command = terraform.own_command("output", "-json", directory=target.folder)
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    outputs = {name: output["value"] for name, output in json.loads(answer.stdout or "{}").items()}
    return replace(target, outputs=outputs if "rule_names" in outputs else {"bucket_name": target.bucket})


def check(target: Target) -> None:
    """Raises UsageError when the account would refuse what the run needs; prints what may be wrong."""
    environment = stack.terraform_environment(target.environment or os.environ)
    plan = deploy.read_plan(target.folder, environment)
    deploy.check_bucket(target.client("s3"), plan)
    if target.environment or plan.settings is None:
        return
    lines = [*account.check_account(target.session, plan.settings)]
    lines += account.check_base_model(lambda: target.client("s3"), plan.settings, False)
    for line in lines:
        say(line)
    if any(line.level == "FAIL" for line in lines):
        raise UsageError("the run would fail, see above. Nothing was created")


def left(target: Target, name: str) -> dict[str, list[str]]:
    """Everything whose name contains this, or that has the stack's tag: {kind: names}."""

    def named(service: str, operation: str, member: str, key: str, **options: Any) -> list[str]:
        pages = target.client(service).get_paginator(operation).paginate(**options)
        return sorted(text for page in pages for item in page.get(member, []) if name in (text := str(item[key])))

    buckets = [item["Name"] for item in target.client("s3").list_buckets()["Buckets"]]
    # Without a size of its pages, SQS lists 1,000 queues and says nothing of the others.
    queues = target.client("sqs").get_paginator("list_queues").paginate(PaginationConfig={"PageSize": 1000})
    found = {
        "bucket": [bucket for bucket in buckets if name in bucket],
        "function": named("lambda", "list_functions", "Functions", "FunctionName"),
        "rule": named("events", "list_rules", "Rules", "Name"),
        "topic": named("sns", "list_topics", "Topics", "TopicArn"),
        "subscription": named("sns", "list_subscriptions", "Subscriptions", "TopicArn"),
        "queue": [url for page in queues for url in page.get("QueueUrls", []) if name in url],
        "role": named("iam", "list_roles", "Roles", "RoleName"),
        "alarm": named("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
        "log": named("logs", "describe_log_groups", "logGroups", "logGroupName"),
        "endpoint": named("sagemaker", "list_endpoints", "Endpoints", "EndpointName", **PAGES),
    }
    if name == target.outputs.get("bucket_name"):
        # Their names are the training jobs'; the tag says whose they are.
        found |= {kind: destroy.owned(target, kind) for kind in KINDS}
        found["running job"] = list(destroy.unfinished_jobs(target))
    return {kind: names for kind, names in found.items() if names}


# --- the run --------------------------------------------------------------------------------------------


def tear_down(target: Target) -> int:
    """Delete the run's stack and look what is left; the exit status. Can be repeated. Raises what AWS raises."""
    say()
    say(f"deleting the stack {target.bucket}")
    status = 0
    # Without a state, nothing was created.
    if (target.folder / STATE).exists():
        target = deployed(target)
        status = destroy.destroy(target, "delete", target.bucket)
    deadline = time.monotonic() + GONE_SECONDS
    while remaining := left(target, target.bucket):
        # SageMaker makes an endpoint's log group again for lines that come after the endpoint's end.
        for group in remaining.get("log", []):
            delete_log(target, group)
        if time.monotonic() > deadline or status != 0:
            break
        time.sleep(POLL_SECONDS if not target.environment else 0.5)
    if status != 0 or remaining:
        for kind, names in remaining.items():
            say(f"LEFT  {kind:<12} {', '.join(names)}")
        say(
            "not everything is deleted: rerun make verify-aws, which begins with that. What stays even then was being "
            "created when Terraform was killed: delete it by hand",
            sys.stderr,
        )
        return 1
    shutil.rmtree(target.folder, ignore_errors=True)
    record_file(target).unlink()
    say(f"nothing is left of {target.bucket}, except what AWS does not delete: its training jobs in SageMaker's list")
    return 0


def delete_log(target: Target, group: str) -> None:
    try:
        target.client("logs").delete_log_group(logGroupName=group)
    except ClientError as error:
        if error_code(error) != "ResourceNotFoundException":
            raise


def start(target: Target, limit: float, yes: bool) -> Target:
    """Show, ask, and deploy; returns the stack. Raises UsageError when nothing was created, Failed."""
    write_configuration(target)
    check(target)
    if run_terraform(target, "plan", "-input=false", "-out=verify.tfplan") != 0:
        raise UsageError("terraform plan failed, see above. Nothing was created")
    show_costs(limit)
    confirm(target, yes)
    if run_terraform(target, "apply", "-input=false", "verify.tfplan") != 0:
        raise scenario.Failed("terraform apply failed, see above")
    return deployed(target)


def provider_version(directory: Path) -> str:
    """The release of the AWS provider that Terraform has chosen."""
    found = re.search(r'version\s+= "([^"]+)"', (directory / ".terraform.lock.hcl").read_text())
    return found[1] if found else "unknown"


def report(results: Path, notes: scenario.Notes) -> int:
    """Write down what was seen and where it differs from the local AWS; how many lines differ."""
    local = BASELINE.read_text().splitlines() if BASELINE.exists() else []
    difference = list(difflib.unified_diff(local, notes.facts, "the local AWS", "here", lineterm="", n=0))
    (results / "seen.txt").write_text("".join(f"{line}\n" for line in notes.facts))
    (results / "measured.txt").write_text("".join(f"{line}\n" for line in notes.measured))
    (results / "differences.txt").write_text("".join(f"{line}\n" for line in difference))
    return sum(line[:1] in "+-" for line in difference[2:])


def delete_leftovers(target: Target, here: Record, yes: bool) -> int:
    """Delete what a run that was cut off has left; the exit status. Raises UsageError when it is elsewhere."""
    record = read_record(target)
    if record is None:
        return 0
    if replace(record, name="") != here:
        raise UsageError(
            f"an earlier run left the stack {record.name} in account {record.account}, {record.region}: log in there, "
            "and rerun this, which deletes it"
        )
    earlier = replace(target, outputs={"bucket_name": record.name})
    say(f"an earlier run was cut off and left the stack {record.name}: it is deleted first")
    confirm(earlier, yes)
    return tear_down(earlier)


def attempt(target: Target, notes: scenario.Notes, results: Path, limit: float, yes: bool) -> str:
    """Deploy, and play the scenario; why it did not get through, or "". Raises UsageError when nothing was created."""
    try:
        ready = start(target, limit, yes)
        notes.measure("AWS provider", provider_version(target.folder))
        inbox = scenario.Inbox(ready, results / "messages.jsonl")
        scenario.play(scenario.Run(ready, inbox, notes, time.monotonic() + RUN_SECONDS))
    except (UsageError, deploy.Refused, terraform.TerraformError) as error:
        if not (target.folder / STATE).exists():
            shutil.rmtree(target.folder, ignore_errors=True)
            results.rmdir()
            record_file(target).unlink()
            raise UsageError(str(error)) from error
        return str(error)
    except (scenario.Failed, BotoCoreError, ClientError) as error:
        return str(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return ""


def verify(target: Target, limit: float, yes: bool) -> int:
    """One run; the exit status. Raises UsageError."""
    caller = target.client("sts").get_caller_identity()
    here = Record("", caller["Account"], str(target.session.region_name))
    say(f"account {here.account}, {here.region}, as {caller['Arn']}")
    if delete_leftovers(target, here, yes) != 0:
        return 1
    for kind, names in left(target, NAME).items():
        say(f"warning: {kind} {', '.join(names)}: another run's, now or from another machine; it is left alone")
    record = replace(here, name=f"{NAME}{secrets.token_hex(3)}")
    target = replace(target, outputs={"bucket_name": record.name})
    results = target.folder.parent / record.name
    results.mkdir(parents=True)
    record_file(target).write_text(json.dumps(asdict(record)))
    replaced = scenario.Names({record.name: "<stack>", record.account: "<account>", record.region: "<region>"})
    notes = scenario.Notes(replaced)
    try:
        why = attempt(target, notes, results, limit, yes)
        if why:
            say()
            say(f"FAILED: {why}", sys.stderr)
            notes.facts.append(f"FAILED: {replaced.plain(why)}")
        differences = report(results, notes)
        status = tear_down(target)
    except (KeyboardInterrupt, BotoCoreError, ClientError) as error:
        say()
        complain(error)
        complain(f"{record.name} is still there: rerun make verify-aws, which deletes it")
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    say(f"{differences} lines differ from the local AWS: {results}/differences.txt")
    say("beside it: seen.txt, measured.txt, messages.jsonl (every email and event)")
    if why == INTERRUPTED:
        return 130
    return 1 if why else status


def run(where: str, limit: str, yes: bool) -> int:
    """Check the arguments, find the account, and verify; the exit status."""
    try:
        dollars = read_limit(limit)
    except UsageError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    # SIGTERM and SIGHUP are Ctrl-C, too: the stack is to be deleted.
    stack.end_orderly_on_signals()
    return on_stack(where, lambda target: verify(target, dollars, yes), find_account)
