"""mlops predict: ask a model's endpoint for the label of a text."""

from __future__ import annotations

import json
from typing import Any

from botocore.exceptions import ClientError

from mlops.target import Target, UsageError, error_code, error_message, model_name
from mlops.text import plain, say


def predict(target: Target, model: str, text: str) -> dict[str, Any]:
    """Ask a model's endpoint for the label of a text: {"label": str, "score": float}. Raises UsageError."""
    endpoint = target.endpoint_of(model)
    try:
        answer = target.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=endpoint, ContentType="application/json", Body=json.dumps({"inputs": text})
        )
    except ClientError as error:
        if error_code(error) == "ValidationError":
            reason = plain(error_message(error)).rstrip(".")
            raise UsageError(f"the endpoint {endpoint} does not answer: {reason}; see make status") from error
        raise
    result: dict[str, Any] = json.loads(answer["Body"].read())[0]
    return result


def run(target: Target, model: str, text: str) -> int:
    """Print the label and its score; the exit status. Raises UsageError."""
    if not text.strip():
        raise UsageError('say which text: make predict TEXT="some text" [MODEL=name]')
    answer = predict(target, model_name(model), text)
    say(f"{plain(answer['label'])}  {answer['score']:.4f}")
    return 0
