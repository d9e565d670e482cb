"""The whole pipeline, deployed once for all end-to-end tests: real functions, events, training and serving.

Only the base model is small: a randomly initialised network of a few thousand weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deployed import Pipeline, deploy


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The pipeline as most end-to-end tests use it, with the default settings."""
    # They share this stack, on one day.
    with deploy(tmp_path_factory.mktemp("e2e"), {"max_training_jobs_per_day": 500}) as deployed:
        yield deployed


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model name of the test's own, so that tests share the pipeline without seeing each other."""
    name = request.node.name.removeprefix("test_").lower()
    return "".join(character if character.isalnum() else "-" for character in name)[:32].strip("-")
