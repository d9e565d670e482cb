"""mlops/records.py: records of schema 1 are read in today's shape, and deployments go back in their own."""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest

from mlops import records

SENDING = {"by": "request-1", "at": "2026-12-01T10:00:00+00:00", "done": True}
DEPLOYMENT: dict[str, Any] = {
    "config": "training-job-20261123-120000-0123abcd-89abcdef",
    "endpoint": "mlops-endpoint",
    "model": "default",
    "model_name": "training-job-20261123-120000-0123abcd-01234567",
    "job": "training-job-20261123-120000-0123abcd",
    "artifact": {"key": "k", "etag": "e", "size": 1},
    "requests": {"model": {}, "config": {}},
    "by": "request-1",
    "at": "2026-12-01T10:00:00+00:00",
    "reason": "",
    "tries": 1,
    "endpoint_last_modified": None,
    "previous_config": None,
    "restores": "",
    "started_at": "2026-12-01T10:00:00+00:00",
}
TODAY = {"schema": 2, **DEPLOYMENT, "state": "confirmed", "deleted_by": "", "emails": {"successful": SENDING}}


def schema_1(state: str, **more: Any) -> dict[str, Any]:
    return {"schema": 1, **DEPLOYMENT, "state": state, "deleted": "", "replaces": "", **more}


def test_a_record_of_today_is_read_as_it_is() -> None:
    assert records.deployment(TODAY) == TODAY
    ledger = {
        "schema": 2,
        "jobs": {},
        "day": {"date": "", "jobs": []},
        "oldest_waiting": "",
        "quota": None,
        "emails": {},
        "models": ["reviews"],
        "rejected": {},
    }
    assert records.ledger(ledger) == ledger


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (schema_1("settling"), {"state": "started"}),
        (schema_1("waiting", reason="The quota is 0"), {"state": "waiting", "reason": "The quota is 0"}),
        (schema_1("waiting", reason=records.DELETED_BY_HAND, deleted="somebody", told="yes"), {"state": "held"}),
        (schema_1("failed", deleted="pipeline"), {"state": "failed", "deleted_by": "pipeline"}),
        (schema_1("confirmed", deleted="telling"), {"state": "confirmed", "deleted_by": ""}),
        (schema_1("removed", was="withdrawn", gone=True), {"state": "withdrawn", "gone": True}),
        (schema_1("removed", was="confirmed", gone=True), {"state": "removed", "gone": True}),
        (schema_1("requested", replaces="delete"), {"state": "waiting"}),
        (schema_1("confirmed", outage={"since": "x", "told": True}), {"state": "confirmed"}),
    ],
)
def test_a_deployment_of_schema_1_is_read_in_todays_shape(stored: dict[str, Any], expected: dict[str, Any]) -> None:
    before = dict(stored)
    read = dict(records.deployment(stored))
    assert read.keys() == TODAY.keys() | expected.keys()
    assert {name: read[name] for name in expected} == expected
    assert stored == before


def test_a_deployment_is_changed_in_the_schema_that_it_came_in() -> None:
    changes = {"state": "waiting", "deleted_by": "pipeline", "emails": {}}
    old = schema_1("confirmed")
    assert records.changed(old, **changes) == old | {"state": "waiting", "deleted": "pipeline"}
    assert records.changed(TODAY, **changes) == TODAY | changes


def test_a_ledger_of_schema_1_is_read_in_todays_shape() -> None:
    stored: dict[str, Any] = {
        "schema": 1,
        "jobs": {"job-1": {"state": "held", "by": "request-1", "at": "2026-12-01T10:00:00+00:00", "tries": 0}},
        "day": {"date": "2026-12-01", "jobs": ["job-1"]},
        "line": {"oldest": "job-2", "capped": False},
        "told": {"a slot": SENDING},
        "never": {"instance_type": "ml.g5.xlarge", "at": "2026-12-01T10:00:00+00:00"},
    }
    assert records.ledger(stored) == {
        "schema": 1,
        "jobs": stored["jobs"],
        "day": stored["day"],
        "oldest_waiting": "job-2",
        "quota": {"name": "", "tries": 0, "reason": "", "is_0": True, **stored["never"]},
        "emails": {"a slot": SENDING},
        "models": [],
        "rejected": {},
    }


def test_a_ledger_of_schema_1_in_which_nothing_waits() -> None:
    stored = {"schema": 1, "jobs": {}, "day": {"date": "", "jobs": []}, "line": None, "told": {}, "never": None}
    read = records.ledger(stored)
    assert (read["oldest_waiting"], read["quota"], read["emails"]) == ("", None, {})


def test_every_state_is_in_the_list_of_states() -> None:
    assert {*records.OPEN, *records.BAD} < set(get_args(records.DeploymentState))


def test_every_record_says_who_writes_and_reads_it() -> None:
    names = [name for name, value in vars(records).items() if is_typeddict(value) and "schema" in get_type_hints(value)]
    assert {"Source", "Waiting", "Decision", "Deployment", "Ledger", "Paused", "Claim", "Metrics"} <= set(names)
    text = inspect.getsource(records)
    for name in names:
        documented = text.split(f"class {name}(TypedDict" if name != "Waiting" else "Waiting = TypedDict")[1]
        docstring = documented.split('"""')[1]
        assert "ritten" in docstring, name
        assert "ead by" in docstring or "read by" in docstring or "Written and read" in docstring, name
