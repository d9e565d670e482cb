"""The whole pipeline, deployed once for all end-to-end tests: real functions, events, training and serving.

Only the base model is small: a randomly initialised network of a few thousand weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import package
from deployed import KMS_KEY_ARN, Pipeline
from pipeline import connect, stack
from tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The pipeline, deployed with the project's Terraform to a local AWS of its own."""
    folder = tmp_path_factory.mktemp("e2e")
    base_model = build_tiny_model(folder / "tiny-model")
    package.build(package.ROOT, folder / "build")
    os.environ["LOCAL_STATE"] = str(folder / "state")
    try:
        stack.up(
            variables={
                "base_model": str(base_model),
                "package_dir": str(folder / "build"),
                "kms_key_arn": KMS_KEY_ARN,
                # All end-to-end tests share this stack, on one day.
                "max_training_jobs_per_day": 500,
                "hyperparameters": {"epochs": "12", "learning_rate": "5e-3", "batch_size": "16", "max_length": "32"},
            }
        )
        yield Pipeline(connect("local"))
    finally:
        stack.down()
        del os.environ["LOCAL_STATE"]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model name of the test's own, so that tests share the pipeline without seeing each other."""
    name = request.node.name.removeprefix("test_").lower()
    return "".join(character if character.isalnum() else "-" for character in name)[:32].strip("-")
