"""Fixtures of the handlers' unit tests: the three modules, and a fresh world for each test.

What the fault harness (tests/faults) played is counted, and said at the end. That is here, and not in its own
conftest.py, since the process that prints for pytest-xdist collects no tests and reads no other one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from moto import mock_aws

from world import ENVIRONMENT, HANDLERS, REGION, Clients, World, load_handler

# How fast a loaded machine makes examples says nothing about the code.
settings.register_profile("any load", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")

COUNTS = "what the fault harness played"
played: Counter[str] = Counter()


@pytest.fixture(scope="session")
def handlers() -> dict[str, ModuleType]:
    modules = {name: load_handler(name) for name in HANDLERS}
    for module in modules.values():
        module.CONFLICT_PAUSE_SECONDS = 0  # type: ignore[attr-defined]
        module.COPY_THREADS = 1  # type: ignore[attr-defined]  # the calls of a copy in parts stay in order
    return modules


@pytest.fixture(scope="session")
def training(handlers: dict[str, ModuleType]) -> ModuleType:
    return handlers["training_orchestrator"]


@pytest.fixture(scope="session")
def evaluator(handlers: dict[str, ModuleType]) -> ModuleType:
    return handlers["model_evaluator"]


@pytest.fixture(scope="session")
def deployer(handlers: dict[str, ModuleType]) -> ModuleType:
    return handlers["deployment_orchestrator"]


@pytest.fixture(scope="session")
def clients() -> Clients:
    with mock_aws():
        return Clients()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Terraform sets for the functions."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for variables in ENVIRONMENT.values():
        for name, value in variables.items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def make_world(
    monkeypatch: pytest.MonkeyPatch, handlers: dict[str, ModuleType], clients: Clients, environment: None
) -> Iterator[Callable[[], World]]:
    """Gives a fresh world at each call; the one before is gone then."""
    with ExitStack() as mocks:

        def fresh() -> World:
            # Entering moto anew empties its account.
            mocks.close()
            mocks.enter_context(mock_aws())
            world = World(clients)
            for module in handlers.values():
                module.settings.cache_clear()
                monkeypatch.setattr(module, "client", world.client)
                monkeypatch.setattr(module, "now", world.now)
            deployer = handlers["deployment_orchestrator"]
            monkeypatch.setattr(deployer, "runtime", lambda: world.sagemaker.runtime)
            monkeypatch.setattr(deployer, "CHECK_PAUSE_SECONDS", 0)
            return world

        yield fresh
    for module in handlers.values():
        module.settings.cache_clear()


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    return make_world()


# --- what the fault harness played -------------------------------------------------------------------


@pytest.fixture(scope="session")
def count() -> Callable[..., None]:
    """Count what was played and ended as it should: count({"cases": 1})."""
    return played.update


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of pytest-xdist: hand the figures to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[COUNTS] = dict(played)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    played.update(getattr(node, "workeroutput", {}).get(COUNTS, {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if played:
        terminalreporter.section("fault harness")
        for what, number in sorted(played.items()):
            _, part_of, part = what.partition(": ")
            terminalreporter.line(f"{number:15,}  {part}" if part_of else f"{number:7,}  {what}")
