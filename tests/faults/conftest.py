"""The fault harness's worlds: in memory, with a clock of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from world import FastClients, World


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
