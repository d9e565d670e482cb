"""The evaluator understands the records of schema 1 that an earlier version left in people's buckets.

tests/records/schema_1/ holds records as commit 2039508 wrote them: two models that were approved and one that was
rejected (each with its comparison with the live model), a lease, and the tries of a job that could not be evaluated.
"""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from test_champion_gate import GOLDEN, LIVE, LIVE_SET, RIVAL, comparison, end
from test_model_evaluator import DECISION, JOB, good_job
from world import ROOT, Context, World, in_memory

DECISIONS = ("decision_of_the_live_model", "decision_approved", "decision_rejected")


def old(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "tests" / "records" / "schema_1" / f"{name}.json").read_text()))


def outcome(evaluator: ModuleType, world: World, request_id: str = "first") -> str:
    return str(evaluator.lambda_handler(world.job_event(JOB), Context(request_id))["outcome"])


@pytest.mark.parametrize("days", [0, 8])
@pytest.mark.parametrize("name", DECISIONS)
def test_a_job_that_was_decided_stays_decided(
    evaluator: ModuleType, environment: None, monkeypatch: pytest.MonkeyPatch, name: str, days: int
) -> None:
    world = in_memory(evaluator, monkeypatch)
    good_job(world)
    world.put(DECISION, old(name))
    if days <= evaluator.LOOK_BACK_DAYS:  # S3 deletes it then
        world.put(f"claims/evaluate/{JOB}.json", old("claim_evaluate"))
    world.wait(days=days)
    assert outcome(evaluator, world) == "already decided"
    assert world.record(DECISION) == old(name)
    assert world.emails() == []


def test_what_the_live_model_trails_the_best_one_by_is_read(evaluator: ModuleType, world: World) -> None:
    world.put(f"models/decisions/{LIVE}.json", old("decision_of_the_live_model"))
    end(world, comparison(0.946, 0.944))
    assert outcome(evaluator, world) == "rejected"
    assert "the live model has 0.946, the best model before it had 0.95" in world.record(DECISION)["reason"]


def test_the_figures_of_a_model_that_was_approved_meanwhile_are_read(evaluator: ModuleType, world: World) -> None:
    world.put(f"models/decisions/{RIVAL}.json", old("decision_approved"))
    world.put(f"models/approved/default/{RIVAL}/model.tar.gz", b"model")
    end(world, comparison(0.946, 0.95))
    assert outcome(evaluator, world) == "rejected"
    assert world.record(DECISION)["rivals"] == {RIVAL: {"accuracy": 0.96}}
    assert f"{RIVAL}, approved meanwhile, has 0.96" in world.record(DECISION)["reason"]


def test_a_lease_keeps_others_out_until_it_expires(evaluator: ModuleType, world: World) -> None:
    good_job(world)
    key = f"claims/evaluate/{JOB}.json"
    world.put(key, old("claim_evaluate") | {"at": world.time.isoformat()})
    assert outcome(evaluator, world) == "in hand"
    world.wait(minutes=21)
    assert outcome(evaluator, world) == "approved"
    assert world.record(key)["by"] == "first"


def test_a_job_that_was_tried_too_often_is_given_up(evaluator: ModuleType, world: World) -> None:
    good_job(world)
    tries = f"claims/tries/{JOB}.json"
    world.put(tries, old("claim_tries"))
    world.wait(days=3)
    assert evaluator.lambda_handler({"source": "sweep"}, Context("sweep"))["outcome"] == "failed"
    assert "failed 24 times, most recently with: an error that was not recorded" in world.only_email().body
    assert world.record(tries)["tries"] == old("claim_tries")["tries"] + 1


def test_a_new_decision_has_every_field_that_an_old_one_has(evaluator: ModuleType, world: World) -> None:
    """Whoever reads decisions finds in a new one what was in the old."""
    end(world, comparison(0.95, 0.95), golden=GOLDEN[:2])
    assert outcome(evaluator, world) == "approved"
    new, before = world.record(DECISION), old("decision_approved")
    assert new.keys() == before.keys() | {"told", "cost"}
    assert new["schema"] == 2
    for name in ("data", "artifact"):
        assert new[name].keys() == before[name].keys()
    assert new["champion"].keys() == before["champion"].keys() | {"status", "respelt"}
    for name in ("checks", "golden"):
        assert new[name][0].keys() == before[name][0].keys()
    assert new["champion"]["sets"][0].keys() == before["champion"]["sets"][0].keys()
    assert new["champion"]["sets"][0]["name"] == LIVE_SET
