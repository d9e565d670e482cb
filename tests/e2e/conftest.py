"""The whole pipeline, deployed once for all end-to-end tests: real functions, events, training and serving.

Only the base model is small: a randomly initialised network of a few thousand weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deployed import KMS_KEY_ARN, Pipeline, deploy


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The pipeline as most end-to-end tests use it, with the default settings and a key of its own."""
    # They share this stack, on one day.
    variables = {"kms_key_arn": KMS_KEY_ARN, "max_training_jobs_per_day": 500}
    with deploy(tmp_path_factory.mktemp("e2e"), variables) as deployed:
        yield deployed


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model name of the test's own, so that tests share the pipeline without seeing each other."""
    name = request.node.name.removeprefix("test_").lower()
    return "".join(character if character.isalnum() else "-" for character in name)[:32].strip("-")
