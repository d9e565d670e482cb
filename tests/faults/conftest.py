"""The fault harness's worlds: in memory, with a clock of their own. What was played is counted and said at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from world import FastClients, World

COUNTS = "what the fault harness played"
played: Counter[str] = Counter()


@pytest.fixture
def make_world(
    monkeypatch: pytest.MonkeyPatch, handlers: dict[str, ModuleType], environment: None
) -> Iterator[Callable[[], World]]:
    """Gives a fresh world at each call; the one before is gone then. Its time is what its wait() makes it."""

    def fresh() -> World:
        world = World(FastClients())
        world.sagemaker.clock = world.now
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
