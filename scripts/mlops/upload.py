"""mlops upload: send a CSV to the bucket, which starts a training."""

from __future__ import annotations

import math
import os
from pathlib import Path

from botocore.exceptions import ClientError

from mlops import bucket
from mlops.records import DEFAULT_MODEL, LEDGER_KEY, PAUSED_KEY, UPLOAD_PREFIX, has_room, ledger, paused
from mlops.target import Target, UsageError, check_functions, is_denied, model_name
from mlops.text import plain, say


def check_upload(data: Path) -> None:
    """Raises UsageError unless there is such a file, and it can be read and uploaded under its name."""
    if not data.is_file():
        raise UsageError(f"DATA={plain(data)}: there is no such file")
    if data.suffix.lower() != ".csv":
        raise UsageError(f"DATA={plain(data)}: only files named .csv are trained on")
    if not os.access(data, os.R_OK):
        raise UsageError(f"DATA={plain(data)}: you may not read this file")
    try:
        data.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"DATA={str(data)!a}: the file's name is not UTF-8, so S3 cannot take it") from None


def upload(target: Target, data: Path, model: str) -> str:
    """Upload a CSV for a model; returns its S3 URI. Raises UsageError when the file cannot be uploaded."""
    check_upload(data)
    folder = "" if model == DEFAULT_MODEL else f"{model}/"
    key = f"{UPLOAD_PREFIX}{folder}{data.name}"
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


def outlook(target: Target, model: str) -> str:
    """What becomes of an upload now. Raises UsageError when nothing ever would: the functions are gone, or refuse it.

    Who may only upload is not allowed to look.
    """
    try:
        check_functions(target, "training")
        check_room(target, model)
        pause = bucket.read(target, PAUSED_KEY, paused)
    except ClientError as error:
        if not is_denied(error):
            raise
        return f"starts now, if the stack is there and not paused: you may not look ({error.operation_name})"
    if pause is None:
        return "starts now"
    return (
        f"waits: the pipeline is paused, since {pause.value['at'][:16]} by {pause.value['by']}; make resume starts it"
    )


def run(target: Target, data: str, model: str) -> int:
    """Upload a file and say what follows; the exit status. Raises UsageError."""
    if not data:
        raise UsageError("say which file: make upload DATA=file.csv [MODEL=name]")
    model, file = model_name(model), Path(data)
    check_upload(file)
    then = outlook(target, model)
    say(f"uploaded {upload(target, file, model)}")
    say(f"the training of the model {model} {then}")
    say(f"if the new model is good enough, {target.endpoint_of(model)} serves it (make status, make logs)")
    return 0
