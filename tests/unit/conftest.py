"""Fixtures for the tests of the commands: a person at a shell (shell.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import boto3
import pytest
from moto import mock_aws

import mlops.target
from mlops import bucket, redrive
from shell import Shell
from world import REGION, World


@pytest.fixture(scope="session")
def queue_and_identity() -> tuple[Any, Any]:
    with mock_aws():
        return boto3.client("sqs", region_name=REGION), boto3.client("sts", region_name=REGION)


@pytest.fixture
def make_shell(
    make_world: Callable[[], World],
    deployer: ModuleType,
    queue_and_identity: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Shell]:
    """Gives a fresh world with a person at a shell at each call; their clock never stands still."""
    moments: Iterator[datetime] = (datetime(2026, 12, 1, tzinfo=UTC) + timedelta(seconds=n) for n in range(1_000_000))
    monkeypatch.setattr(bucket, "now", lambda: next(moments))
    monkeypatch.setattr(redrive, "POLL_SECONDS", 0)

    def fresh() -> Shell:
        shell = Shell(make_world(), deployer, *queue_and_identity)
        monkeypatch.setattr(mlops.target, "connect", lambda _: shell.target)
        return shell

    return fresh


@pytest.fixture
def shell(make_shell: Callable[[], Shell]) -> Shell:
    return make_shell()
