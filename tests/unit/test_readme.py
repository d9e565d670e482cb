"""README.md: what it says of costs follows from Terraform's defaults, and its one picture has every part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dev import docs

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# US dollars, us-east-1: the sources stand below the table in the README.
TRAINING_HOUR = 0.23
ENDPOINT_HOUR = 0.115
SERVERLESS_SECOND = 0.00006
ALARM_MONTH = 0.10
HOURS_A_MONTH = 730


@pytest.fixture(scope="module")
def defaults() -> dict[str, str | None]:
    return {item.name: item.default for item in docs.read_module(ROOT / "terraform").inputs}


def row(beginning: str) -> str:
    """The row of the cost table that begins so."""
    [found] = [line for line in README.splitlines() if line.startswith(f"| {beginning}")]
    return found


def test_there_is_one_picture_and_it_has_every_function() -> None:
    [picture] = re.findall(r"```mermaid\n(.*?)```", README, re.DOTALL)

    for folder in (ROOT / "lambda").iterdir():
        assert folder.name.replace("_", " ") in picture


def test_a_training_costs_what_its_defaults_make_it_cost(defaults: dict[str, str | None]) -> None:
    hours = int(defaults["training_max_runtime_seconds"] or 0) / 3600
    jobs = int(defaults["max_training_jobs_per_day"] or 0)

    assert (hours, jobs) == (2, 20)
    assert f"`{defaults['training_instance_type']}`, ${TRAINING_HOUR} an hour".replace('"', "") in row("one training")
    assert f"${TRAINING_HOUR / 3:.2f} for 20 minutes, ${hours * TRAINING_HOUR:.2f} at most" in row("one training")
    assert f"${jobs * hours * TRAINING_HOUR:.2f} |" in row("all trainings of a day")


def test_an_endpoint_costs_what_its_defaults_make_it_cost(defaults: dict[str, str | None]) -> None:
    assert defaults["endpoint_instance_count"] == "1"
    text = f"`{defaults['endpoint_instance_type']}`, ${ENDPOINT_HOUR} an hour".replace('"', "")
    assert text in row("an hour of an endpoint")
    assert f"${ENDPOINT_HOUR}, or ${ENDPOINT_HOUR * HOURS_A_MONTH:.0f} a month" in row("an hour of an endpoint")


def test_predictions_cost_what_their_memory_makes_them_cost(defaults: dict[str, str | None]) -> None:
    assert defaults["serverless_memory_mb"] == "3072"
    assert f"3 GB, ${SERVERLESS_SECOND:.5f} for each second" in row("1,000 serverless")
    thousand = 1000 * SERVERLESS_SECOND
    assert f"${thousand:.2f} × seconds of one: ${thousand * 0.2:.3f} at 0.2 s" in row("1,000 serverless")


def test_idle_costs_are_those_of_the_alarms_and_sweeps_that_there_are(defaults: dict[str, str | None]) -> None:
    functions = len(list((ROOT / "lambda").iterdir()))
    # One alarm for the queue, three for each function; those of endpoints come with instances.
    blocks = re.findall(
        r'resource "aws_cloudwatch_metric_alarm" "\w+" \{\n(.*)',
        (ROOT / "terraform/modules/monitoring/main.tf").read_text(),
    )
    alarms = sum(functions if "var.functions" in first else "for_each" not in first for first in blocks)

    assert defaults["sweep_schedule"] == '"rate(15 minutes)"'
    assert (alarms, f"{functions * 96 * 30:,}") == (10, "8,640")
    assert f"ten CloudWatch alarms at ${ALARM_MONTH:.2f} a month; the sweeps' 8,640" in row("idle")
    assert f"about ${alarms * ALARM_MONTH:.0f} a month" in row("idle")
