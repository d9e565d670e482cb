"""The whole pipeline, deployed once for all end-to-end tests: real functions, events, training and serving.

Only the base model is small: a randomly initialised network of a few thousand weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployed import KMS_KEY_ARN, Pipeline, deploy


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The pipeline as most end-to-end tests use it, with the default settings and a key of its own."""
    calls = os.environ.get("RECORD_CALLS")
    if calls:
        Path(calls).mkdir(parents=True, exist_ok=True)
        os.environ["RECORD_FUNCTION_CALLS"] = str(Path(calls).resolve())
    # They share this stack, on one day, each with a model of its own.
    variables = {"kms_key_arn": KMS_KEY_ARN, "max_models": 100, "max_training_jobs_per_day": 500}
    try:
        with deploy(tmp_path_factory.mktemp("e2e"), variables) as deployed:
            # Of this stack only: others that tests start have other names.
            os.environ.pop("RECORD_FUNCTION_CALLS", None)
            yield deployed
            assert not calls or list(Path(calls).glob("mlops-*.jsonl")), f"the functions noted no calls in {calls}"
    finally:
        os.environ.pop("RECORD_FUNCTION_CALLS", None)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model name of the test's own, so that tests share the pipeline without seeing each other."""
    name = request.node.name.removeprefix("test_").lower()
    return "".join(character if character.isalnum() else "-" for character in name)[:32].strip("-")
