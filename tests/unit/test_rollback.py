"""mlops rollback, followed to its end by the real deployment orchestrator."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlops.deployments import approved_event
from shell import Shell, paused, switched_by_hand
from test_deployment_orchestrator import ARTIFACT, FIRST, SECOND, THIRD, approved_key, make_foreign_endpoint, record_of
from world import ENDPOINT, Interruption, Killed, killed


def test_rollback_returns_to_the_previous_confirmed_model_and_emails_it(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST, SECOND)
    before = len(shell.world.emails())
    assert shell.run("rollback", "--model", "default", "--reason", "rude answers") == 0
    shell.settle()
    assert shell.served() == FIRST
    assert (shell.state_of(FIRST), shell.state_of(SECOND)) == ("confirmed", "withdrawn")
    withdrawn = record_of(shell.world, SECOND)["withdrawn"]
    assert withdrawn["reason"] == "rude answers"
    assert withdrawn["by"].startswith("arn:aws:sts::")
    assert shell.subjects()[before:] == ["Deployment restored"]
    said = capsys.readouterr().out
    assert f"withdrawn     {SECOND}" in said
    assert f"make rollback MODEL=default TO={SECOND}" in said


def test_a_withdrawn_model_stays_so_whatever_event_arrives(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.settle()
    before = shell.world.final_state()
    shell.deploy(approved_event(shell.target, "default", SECOND))  # type: ignore[arg-type]
    shell.deploy(shell.world.endpoint_event())
    assert shell.world.final_state() == before


def test_the_current_model_is_withdrawn_before_the_endpoint_is_touched(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    endpoint = dict(shell.sagemaker.endpoints[ENDPOINT])
    shell.world.around.interruption = Interruption("PutObject", killed, after_the_effect=True)
    with pytest.raises(Killed):
        shell.run("rollback", "--model", "default")
    assert shell.state_of(SECOND) == "withdrawn"
    assert shell.sagemaker.endpoints[ENDPOINT] == endpoint


def test_a_second_rollback_says_that_it_is_under_way_and_then_that_it_is_done(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST, SECOND, THIRD)
    shell.run("rollback", "--model", "default")
    (sent,) = shell.functions.sent
    shell.deploy(sent[1])
    capsys.readouterr()
    assert shell.run("rollback", "--model", "default") == 0
    assert f"already under way: {SECOND}" in capsys.readouterr().out
    shell.settle()
    before = shell.world.final_state()
    assert shell.run("rollback", "--model", "default") == 0
    said = capsys.readouterr().out
    assert f"already so: {ENDPOINT} serves {SECOND}" in said
    assert f"to go back further: make rollback MODEL=default TO={FIRST}" in said
    assert shell.world.final_state() == before


def test_rollback_further_back_withdraws_what_lies_between(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND, THIRD)
    shell.run("rollback", "--model", "default", "--to", FIRST)
    shell.settle()
    assert shell.served() == FIRST
    assert [shell.state_of(job) for job in (FIRST, SECOND, THIRD)] == ["confirmed", "withdrawn", "withdrawn"]


def test_a_rollback_can_be_undone(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.settle()
    assert shell.run("rollback", "--model", "default", "--to", SECOND) == 0
    shell.settle()
    assert shell.served() == SECOND
    assert "withdrawn" not in record_of(shell.world, SECOND)


def test_after_a_newer_model_rollback_passes_over_the_withdrawn_one(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.settle()
    shell.go_live(THIRD)
    shell.run("rollback", "--model", "default")
    shell.settle()
    assert shell.served() == FIRST


def test_a_model_that_sagemaker_rolled_back_is_tried_again_when_somebody_asks(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.deploy(shell.world.upload(approved_key(SECOND), ARTIFACT))
    shell.sagemaker.roll_back(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    assert shell.state_of(SECOND) == "rolled back"
    assert shell.run("rollback", "--model", "default", "--to", SECOND) == 0
    shell.settle()
    assert shell.served() == SECOND


def test_a_newer_model_that_waits_is_withdrawn_with_the_served_one(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.sagemaker.endpoint_quota_message = "The account-level service limit 'x' is 0"
    assert shell.deploy(shell.world.upload(approved_key(THIRD), ARTIFACT)) == "waiting"
    shell.sagemaker.endpoint_quota_message = ""
    shell.run("rollback", "--model", "default")
    shell.settle()
    assert shell.served() == FIRST
    assert shell.state_of(THIRD) == "withdrawn"


def approve_only(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.world.upload(approved_key(THIRD), ARTIFACT)


def roll_out(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.deploy(shell.world.upload(approved_key(THIRD), ARTIFACT))


def delete_by_hand(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.sagemaker.vanish(ENDPOINT)


def foreign(shell: Shell) -> None:
    shell.world.upload(approved_key(FIRST), ARTIFACT)
    make_foreign_endpoint(shell.world)


@pytest.mark.parametrize(
    ("prepare", "arguments", "reason"),
    [
        (lambda shell: None, ("--model", "default"), "no model of this name was ever approved"),
        (lambda shell: None, ("--model", "No Model"), "a model name has"),
        (lambda shell: None, (), "say which model"),
        (lambda shell: shell.go_live(FIRST), ("--model", "default"), f"no confirmed model before {FIRST}"),
        (lambda shell: shell.go_live(FIRST), ("--model", "default", "--to", SECOND), "is no approved model"),
        (approve_only, ("--model", "default"), f"{THIRD} was approved just now"),
        (roll_out, ("--model", "default"), f"{ENDPOINT} is Updating"),
        (delete_by_hand, ("--model", "default"), "has no endpoint"),
        (foreign, ("--model", "default"), "was not made by this stack"),
        (switched_by_hand, ("--model", "default"), "which this pipeline did not deploy"),
        (paused, ("--model", "default"), "make resume first"),
    ],
)
def test_an_impossible_rollback_says_why_and_changes_nothing(
    shell: Shell,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Shell], None],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    prepare(shell)
    before = shell.world.final_state()
    assert shell.run("rollback", *arguments) == 2
    assert reason in capsys.readouterr().err
    assert shell.world.final_state() == before
    assert shell.functions.sent == []
