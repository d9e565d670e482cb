"""Records are what mlops/records.py says: what the handlers declare, and what they write on every path."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, get_args, is_typeddict

import pytest
from test_crash_safety import Run
from test_crash_safety import start as start
from typeguard import check_type

from mlops import records

# What a handler declares, by the name that records.py has for it.
DECLARED = {
    "training_orchestrator": {
        "Source": "Source",
        "ModelSettings": "ModelSettings",
        "Started": "Started",
        "Waiting": "Waiting",
        "GivenUp": "GivenUp",
        "Rejected": "Rejection",
        "Ledger": "Ledger",
        "LedgerJob": "Slot",
        "LedgerDay": "Starts",
        "LedgerQuota": "Quota",
        "Crowd": "Crowd",
        "Sending": "LineEmail",
        "UploadClaim": "UploadClaim",
        "DataClaim": "DataClaim",
    },
    "model_evaluator": {
        "Decision": "Decision",
        "Check": "Check",
        "Champion": "Champion",
        "ComparedSet": "ComparedSet",
        "Cost": "Cost",
        "Tries": "Tries",
    },
    "deployment_orchestrator": {"Deployment": "Deployment"},
}
# The record under a key.
KEYS = {
    r"data/snapshots/[^/]+/source\.json": records.Source,
    r"data/snapshots/[^/]+/started\.json": records.Started,
    r"data/snapshots/[^/]+/waiting\.json": records.Waiting,
    r"data/snapshots/[^/]+/given_up\.json": records.GivenUp,
    r"data/rejected/[^/]+\.json": records.Rejected,
    r"data/claims/[0-9a-f]{32}\.json": records.DataClaim,
    r"slots/training\.json": records.Ledger,
    r"models/decisions/[^/]+\.json": records.Decision,
    r"models/deployments/[^/]+\.json": records.Deployment,
    r"claims/tries/[^/]+\.json": records.Tries,
    r"claims/snapshot/upload-[0-9a-f]{32}\.json": records.UploadClaim,
    r"claims/(?!tries/)[^/]+/(?!upload-)[^/]+\.json": records.Claim,
}
# A state of the program, never written.
ONLY_IN_MEMORY = {"new"}


def fields_of(kind: type) -> set[str]:
    return (
        {field.name for field in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(kind)
        else {*kind.__annotations__}
    )


@pytest.mark.parametrize(
    ("handler", "name", "declared"),
    [(handler, name, declared) for handler, names in DECLARED.items() for name, declared in names.items()],
)
def test_a_handler_declares_the_fields_of_a_record_as_the_commands_do(
    handlers: dict[str, ModuleType], handler: str, name: str, declared: str
) -> None:
    ours = getattr(handlers[handler], declared)
    theirs = getattr(records, name)

    # zero_quota: only the commands read it, from an older ledger. retrain_of: no upload that is refused has it.
    assert fields_of(ours) - ({"retrain_of"} if name == "Rejected" else set()) == fields_of(theirs) - {"zero_quota"}


def test_every_record_that_a_handler_declares_is_compared(handlers: dict[str, ModuleType]) -> None:
    for handler, names in DECLARED.items():
        module = handlers[handler]
        declared = {name for name, value in vars(module).items() if is_typeddict(value)}
        assert declared <= set(names.values())


def test_a_deployment_has_the_states_that_the_commands_know(deployer: ModuleType) -> None:
    assert set(deployer.STATES) - ONLY_IN_MEMORY == set(get_args(records.DeploymentState))
    assert set(deployer.OPEN) == set(records.OPEN)
    assert set(deployer.BAD) == set(records.BAD)


def kind_of(key: str) -> Any:
    [kind] = [kind for pattern, kind in KEYS.items() if re.fullmatch(pattern, key)]
    return kind


def test_every_record_that_a_path_writes_has_the_shape_that_the_commands_read(start: Callable[[], Run]) -> None:
    run = start()
    world = run.world
    before = {key: world.versions(key) for key in world.stored_keys()}

    run.invoke()
    run.finish()

    for key in (key for key in world.stored_keys() if key.endswith(".json")):
        for body in filter(None, world.bodies(key)[before.get(key, 0) :]):
            check_type(json.loads(body), kind_of(key))
