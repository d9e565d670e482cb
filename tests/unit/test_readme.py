"""The READMEs: their links, commands, emails, states and costs are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from dev import docs
from mlops.records import DeploymentState

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "scripts/README.md",
    "scripts/local/README.md",
    "scripts/training/README.md",
    "terraform/README.md",
    "tests/README.md",
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
COSTS = (ROOT / "terraform/README.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "scripts/README.md").read_text(encoding="utf-8")
README_MAX_LINES = 170

# US dollars, us-east-1: the sources stand below the table in terraform/README.md.
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
    [found] = [line for line in COSTS.splitlines() if line.startswith(f"| {beginning}")]
    return found


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings: lower case, dashes for spaces, no punctuation."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> Iterator[str]:
    """The targets of a page's links, without those to other sites."""
    found = re.findall(r"\]\(([^)\s]+)\)", page)
    yield from (target for target in found if not re.match(r"[a-z]+:", target))


def table_column(page: str, heading: str) -> list[str]:
    """The first cells of the table whose first heading is this one."""
    [table] = re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[ -|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]


def test_every_readme_is_checked() -> None:
    folders = ("lambda", "scripts", "terraform", "tests")
    found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.md")]
    # Terraform and pytest keep files of their own in hidden folders.
    ours = {str(path) for path in found if not any(part.startswith(".") for part in path.parts)}

    assert ours | {"README.md"} == set(PAGES)


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= README_MAX_LINES


@pytest.mark.parametrize("name", PAGES[1:])
def test_every_page_is_linked_from_the_readme(name: str) -> None:
    assert f"]({name})" in README


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    path = ROOT / name
    page = path.read_text(encoding="utf-8")

    for link in links(page):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", PAGES)
def test_every_make_command_is_a_target(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    page = (ROOT / name).read_text(encoding="utf-8")
    code = re.findall(r"```sh\n(.*?)```", page, re.DOTALL) + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page)
    named = {target for text in code for target in re.findall(r"(?:^|\n)make ([a-z-]+)", text)}

    assert named <= targets, f"{name} names targets that the Makefile does not have: {named - targets}"


def test_every_email_in_the_table_is_one_that_a_function_sends() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("lambda/*/handler.py"))
    subjects = table_column(README, "subject begins")

    assert len(subjects) == len(set(subjects)) > 0
    for subject in subjects:
        assert subject in sources, subject


def test_every_setting_in_the_table_is_a_variable_of_terraform(defaults: dict[str, str | None]) -> None:
    settings = table_column(COSTS, "setting")

    assert settings
    assert {name.strip("`") for name in settings} <= defaults.keys()


def test_the_states_of_a_deployment_in_the_table_are_those_of_its_record() -> None:
    states = [state.strip("`") for state in table_column(OPERATING, "state")]

    assert sorted(states) == sorted(get_args(DeploymentState))


def test_the_sample_csv_is_ten_lines_of_the_demos() -> None:
    [sample] = re.findall(r"```csv\n(.*?)```", README, re.DOTALL)
    support = (ROOT / "scripts/sample/support.csv").read_text(encoding="utf-8").splitlines()

    assert len(sample.splitlines()) == 10
    for line in sample.splitlines():
        assert line in support


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
    assert f"${jobs * hours * TRAINING_HOUR:.2f} |" in row("a day of training")


def test_an_endpoint_costs_what_its_defaults_make_it_cost(defaults: dict[str, str | None]) -> None:
    assert defaults["endpoint_instance_count"] == "1"
    text = f"`{defaults['endpoint_instance_type']}`, ${ENDPOINT_HOUR} an hour".replace('"', "")
    assert text in row("an endpoint on instances")
    month = ENDPOINT_HOUR * HOURS_A_MONTH
    assert f"${ENDPOINT_HOUR} an hour, or ${month:.0f} a month" in row("an endpoint on instances")


def test_predictions_cost_what_their_memory_makes_them_cost(defaults: dict[str, str | None]) -> None:
    assert defaults["serverless_memory_mb"] == "3072"
    assert f"3 GB, ${SERVERLESS_SECOND:.5f} per second" in row("1,000 serverless")
    thousand = 1000 * SERVERLESS_SECOND
    assert f"${thousand:.2f} × seconds per prediction: ${thousand * 0.2:.3f} at 0.2 s" in row("1,000 serverless")


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
    assert f"ten CloudWatch alarms at ${ALARM_MONTH:.2f} a month; the sweeps' 8,640" in row("an idle stack")
    assert f"about ${alarms * ALARM_MONTH:.0f} a month" in row("an idle stack")
    assert f"about ${alarms * ALARM_MONTH:.0f} a month" in README
