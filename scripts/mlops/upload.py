"""mlops data-check and upload: check a file as the pipeline does, and send it, which starts a training."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from botocore.exceptions import BotoCoreError, ClientError
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

import mlops.target
from mlops import bucket
from mlops.data_check import Check, Settings, check, check_file, show
from mlops.records import (
    DEFAULT_MODEL,
    LEDGER_KEY,
    PAUSED_KEY,
    SETTINGS_FILE,
    SETTINGS_MAX_BYTES,
    UPLOAD_PREFIX,
    ModelSettings,
    has_room,
    ledger,
    paused,
)
from mlops.target import NothingDeployed, Target, UsageError, check_functions, error_code, is_denied, model_name
from mlops.text import complain, plain, say

SCHEMA = Path(__file__).with_name("settings.schema.json")  # of a settings.json
# The rules on which an upload is seen: at once, or else by a later sweep.
AT_ONCE, LATER = "uploads", "sweep"
SENT_IN_ONE_PIECE = 8 * 1024**2  # bytes: of a larger object, the ETag is no MD5


# --- the check ---------------------------------------------------------------------------------------


def deployed_settings(target: Target) -> Settings:
    """The settings that the stack's preflight has. Who may not read them gets the defaults, which say so."""
    gone = Settings(source="the defaults: the stack was destroyed")
    try:
        answer = target.client("lambda").get_function_configuration(FunctionName=target.functions["training"])
    except KeyError:
        return gone
    except ClientError as error:
        if error_code(error) == "ResourceNotFoundException":
            return gone
        if not is_denied(error):
            raise
        return Settings(source="the defaults: you may not read the stack's settings (lambda:GetFunctionConfiguration)")
    # Without permission on a key of one's own, an error stands in place of the variables.
    variables = answer.get("Environment", {}).get("Variables")
    if not variables:
        return Settings(source="the defaults: you may not read the stack's settings (its KMS key)")
    return Settings.read(variables, f"the settings of the stack {target.bucket}", bool(target.environment))


def find_settings(where: str, model: str) -> Settings:
    """A model's settings in the stack that commands talk to, or the defaults where there is none; that is said.

    Raises UsageError when a stack that was asked for is not there.
    """
    try:
        target = mlops.target.connect(where)
        return with_chosen(deployed_settings(target), read_chosen(target, model)[0])
    except NothingDeployed:
        return Settings(source="the defaults: nothing is deployed from here")
    except UsageError as error:
        if where:
            raise
        why = str(error)
    except (BotoCoreError, ClientError) as error:
        why = str(error)
    return Settings(source=f"the defaults: no stack can be asked ({plain(' '.join(why.split()), 200)})")


def with_columns(settings: Settings, text: str, label: str) -> Settings:
    """The settings, with the columns that were given. Raises UsageError when they are one."""
    columns = text or settings.text_column, label or settings.label_column
    if columns[0] == columns[1]:
        raise UsageError(f"the column {plain(columns[0])} cannot have both the texts and the labels")
    if tuple(map(str.casefold, columns)) == (settings.text_column.casefold(), settings.label_column.casefold()):
        return settings
    return replace(
        settings,
        text_column=columns[0],
        label_column=columns[1],
        source=f"your options and {settings.source}",
    )


def look_at(file: Path) -> None:
    """Raises UsageError unless there is a file that can be checked and sent."""
    if why := check_file(file):
        raise UsageError(f"DATA={plain(file)}: {why}")


def checked(file: Path, settings: Settings) -> Check:
    """Check a file, and show what is in it, and by which settings."""
    columns = f'"{plain(settings.text_column)}" and "{plain(settings.label_column)}"'
    say(f"columns {columns}, at most {100 * settings.max_left_out:g} % of the rows left out ({settings.source})")
    say()
    found = check(file, settings)
    show(found)
    return found


def run_check(data: str, model: str, text: str, label: str, where: str) -> int:
    """Check a file without sending it; the exit status: 0 the pipeline would train on it, 2 it would not.

    Raises UsageError.
    """
    if not data:
        raise UsageError("say which file: make data-check DATA=file.csv [TEXT=column LABEL=column]")
    model = model_name(model)
    look_at(Path(data))
    settings = find_settings(where, model)
    found = checked(Path(data), with_columns(settings, text, label))
    if not found.refused and (found.settings != settings):
        say(
            f'note: without these options the pipeline looks for "{plain(settings.text_column)}" and '
            f'"{plain(settings.label_column)}": give them to make upload as well, which writes them into the '
            "model's settings.json"
        )
    elif "there is no column" in found.refused:
        complain("TEXT=column LABEL=column tries other columns")
    return 2 if found.refused else 0


# --- a model's own settings --------------------------------------------------------------------------


def settings_key(model: str) -> str:
    """Where the settings of a model's files are."""
    return f"{folder_of(model)}{SETTINGS_FILE}"


def read_chosen(target: Target, model: str) -> tuple[ModelSettings, str]:
    """What a model's settings.json chooses, and its ETag; ({}, "") where there is none, or one may not look.

    Raises UsageError when it says what the training orchestrator would refuse.
    """
    key = settings_key(model)
    try:
        answer = target.client("s3").get_object(Bucket=target.bucket, Key=key)
    except ClientError as error:
        if error_code(error) != "NoSuchKey" and not is_denied(error):
            raise
        return {}, ""
    with answer["Body"] as body:
        content = body.read(SETTINGS_MAX_BYTES + 1)
    try:
        chosen = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"s3://{target.bucket}/{key} is not JSON: {plain(error, 200)}") from error
    if wrong := best_match(Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).iter_errors(chosen)):
        raise UsageError(f"s3://{target.bucket}/{key}: {plain(f'{wrong.json_path}: {wrong.message}', 300)}")
    return cast(ModelSettings, chosen), str(answer["ETag"])


def with_chosen(settings: Settings, chosen: ModelSettings) -> Settings:
    """The settings, with what a model's settings.json chooses of them."""
    known = {item.name for item in fields(Settings)} - {"source"}
    taken: dict[str, Any] = {name: value for name, value in chosen.items() if name in known}
    return replace(settings, **taken, source=f"the model's settings.json and {settings.source}") if taken else settings


def choose_columns(target: Target, model: str, columns: ModelSettings, chosen: ModelSettings, etag: str) -> None:
    """Write columns into a model's settings.json; all else in it stays. Raises UsageError when it changed meanwhile.

    chosen, etag: what the file was checked by (read_chosen).
    """
    if chosen == chosen | columns:
        return
    key, condition = settings_key(model), {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    body = json.dumps(chosen | columns, indent=1).encode()
    try:
        target.client("s3").put_object(Bucket=target.bucket, Key=key, Body=body, **condition)
    except ClientError as error:
        if error_code(error) not in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise
        raise UsageError(f"somebody else has just changed s3://{target.bucket}/{key}: run this again") from error
    say(f"written to s3://{target.bucket}/{key}: {', '.join(f'{name} {plain(it)}' for name, it in columns.items())}")


# --- the upload --------------------------------------------------------------------------------------


def folder_of(model: str) -> str:
    """Where the files of a model go in the bucket."""
    return UPLOAD_PREFIX if model == DEFAULT_MODEL else f"{UPLOAD_PREFIX}{model}/"


def key_of(file: Path, model: str) -> str:
    """Where a file of a model goes in the bucket."""
    return f"{folder_of(model)}{file.name}"


def upload(target: Target, data: Path, model: str) -> str:
    """Upload a file for a model; returns its S3 URI."""
    key = key_of(data, model)
    target.client("s3").upload_file(str(data), target.bucket, key)
    return f"s3://{target.bucket}/{key}"


def check_room(target: Target, model: str) -> None:
    """Raises UsageError when the training orchestrator would refuse the model. An older stack has no maximum."""
    models, most = target.outputs.get("models", []), target.outputs.get("max_models", math.inf)
    found = bucket.read(target, LEDGER_KEY, ledger)
    known = found.value["models"] if found else []
    if has_room(model, models, most, known):
        return
    if models:
        raise UsageError(f"MODEL={model} may not be trained: add it to models in Terraform, and make deploy")
    raise UsageError(
        f"MODEL={model} would be a new model, and max_models is {most} ({', '.join(known)}); to train one more, raise "
        "max_models in Terraform, or name in models those that may be trained, and make deploy"
    )


def rule_fault(target: Target, rule: str) -> str:
    """What keeps a rule from invoking the training orchestrator, "" if nothing."""
    events, name, function = target.client("events"), target.outputs["rule_names"][rule], target.functions["training"]
    try:
        if events.describe_rule(Name=name)["State"] == "DISABLED":
            return f"the rule {name} is disabled"
        targets = events.list_targets_by_rule(Rule=name)["Targets"]
    except ClientError as error:
        if error_code(error) != "ResourceNotFoundException":
            raise
        return f"the rule {name} is gone"
    if any(item["Arn"].endswith(f":{function}") for item in targets):
        return ""
    return f"the rule {name} has lost its target"


def outlook(target: Target, model: str) -> str:
    """What becomes of an upload now. Raises UsageError when nothing ever would: the functions are gone or refuse it, or
    no rule invokes them.

    Who may only upload is not allowed to look.
    """
    try:
        check_functions(target, "training")
        check_room(target, model)
        pause = bucket.read(target, PAUSED_KEY, paused)
        at_once = rule_fault(target, AT_ONCE)
        later = rule_fault(target, LATER) if at_once else ""
    except ClientError as error:
        if not is_denied(error):
            raise
        return f"starts now, if the stack is there and not paused: you may not look ({error.operation_name})"
    if at_once and later:
        raise UsageError(
            f"nothing would start a training: {at_once}, {later}. This stack is being destroyed, or that was "
            "interrupted: make destroy goes on with it, make deploy takes it up again"
        )
    if pause is not None:
        at, by = pause.value["at"][:16], pause.value["by"]
        return f"waits: the pipeline is paused, since {at} by {by}; make resume starts it"
    if at_once:
        return f"waits for a sweep, in half an hour or so: {at_once}; make deploy restores it"
    return "starts now"


def same_bytes(target: Target, file: Path, model: str) -> str:
    """Since when the same bytes lie where a file would go, "" if they do not, or it cannot be told cheaply."""
    if file.stat().st_size >= SENT_IN_ONE_PIECE:
        return ""
    try:
        head = target.client("s3").head_object(Bucket=target.bucket, Key=key_of(file, model))
    except ClientError as error:
        if error_code(error) not in ("NoSuchKey", "404", "403") and not is_denied(error):
            raise
        return ""
    digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return f"{head['LastModified']:%Y-%m-%d %H:%M} UTC" if head["ETag"].strip('"') == digest else ""


def confirm_warnings(found: Check, yes: bool) -> None:
    """Ask whether a file with warnings is to be sent. Raises UsageError unless it is."""
    if yes or not found.warnings:
        return
    try:
        typed = input("Send it nevertheless? [y/N] ")
    except EOFError:
        say()
        raise UsageError(
            "nobody is there to answer: nothing was sent (YES=1 sends a file with warnings for a script)"
        ) from None
    if typed.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was sent")


def run(target: Target, data: str, model: str, text: str, label: str, yes: bool) -> int:
    """Check a file, upload it and say what follows; the exit status, 2 for one that is refused. Raises UsageError.

    text, label: the columns, which become the model's.
    """
    if not data:
        raise UsageError("say which file: make upload DATA=file.csv [MODEL=name] [TEXT=column LABEL=column]")
    model, file = model_name(model), Path(data)
    look_at(file)
    then = outlook(target, model)
    chosen, etag = read_chosen(target, model)
    settings = with_chosen(deployed_settings(target), chosen)
    found = checked(file, with_columns(settings, text, label))
    if found.refused:
        if not text and "there is no column" in found.refused:
            complain("TEXT=column LABEL=column names other columns, for this model from now on")
        complain("nothing was sent")
        return 2
    say(f"it goes to the model {model}, for the endpoint {target.endpoint_of(model)}")
    if since := same_bytes(target, file, model):
        say(f"the same bytes lie there since {since}; make retrain JOB=... trains on them again")
    sys.stdout.flush()
    confirm_warnings(found, yes)
    columns = ModelSettings()
    if text:
        columns["text_column"] = text
    if label:
        columns["label_column"] = label
    choose_columns(target, model, columns, chosen, etag)
    say(f"uploaded {upload(target, file, model)}")
    say(f"the training of the model {model} {then}")
    say(f"if the new model is good enough, {target.endpoint_of(model)} serves it (make status, make logs)")
    return 0
