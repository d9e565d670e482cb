"""mlops retrain: a new job on the data of one that has ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlops.records import JOB_NAME
from shell import FUNCTIONS, SWEEP, Shell, decide, ended_job, snapshots
from test_deployment_orchestrator import FIRST
from world import BUCKET


@pytest.mark.parametrize("verdict", ["failed", "stopped", "rejected", "held", "approved"])
def test_a_job_that_has_ended_gets_a_new_one_on_the_same_data(
    shell: Shell, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_job(shell, verdict=verdict)
    assert shell.run("retrain", "--job", FIRST) == 0
    old, new = snapshots(shell)
    assert JOB_NAME.fullmatch(new)
    assert shell.world.read(f"data/snapshots/{new}/data.csv") == b"text,label\n"
    assert shell.world.record(f"data/snapshots/{new}/source.json") == shell.world.record(
        f"data/snapshots/{old}/source.json"
    ) | {"job": new, "retrain_of": old}
    assert not shell.world.keys(f"data/snapshots/{new}/started.json")
    assert shell.functions.sent == [(FUNCTIONS["training"], SWEEP)]
    assert f"make logs JOB={new}" in capsys.readouterr().out


def test_retrain_twice_makes_one_job_until_that_one_has_ended(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    ended_job(shell)
    shell.run("retrain", "--job", FIRST)
    _, second = snapshots(shell)
    capsys.readouterr()
    assert shell.run("retrain", "--job", FIRST) == 0
    assert f"already so: {FIRST} is being trained again as {second}" in capsys.readouterr().out
    assert snapshots(shell) == [FIRST, second]
    decide(shell, second)
    assert shell.run("retrain", "--job", FIRST) == 0
    _, _, third = snapshots(shell)
    assert shell.world.record(f"data/snapshots/{third}/source.json")["retrain_of"] == second


def test_an_upload_that_was_given_up_can_be_trained_again(shell: Shell) -> None:
    undecided(shell)
    shell.world.put(f"data/snapshots/{FIRST}/given_up.json", {"job": FIRST})
    assert shell.run("retrain", "--job", FIRST) == 0
    assert len(snapshots(shell)) == 2


def test_retrain_while_paused_says_that_it_starts_after_resume(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_job(shell)
    shell.run("pause", "--yes")
    assert shell.run("retrain", "--job", FIRST) == 0
    assert "it starts after make resume" in capsys.readouterr().out


def undecided(shell: Shell) -> None:
    ended_job(shell)
    shell.world.s3.delete_object(Bucket=BUCKET, Key=f"models/decisions/{FIRST}.json")


def refused(shell: Shell) -> None:
    shell.world.put(f"data/rejected/{FIRST}.json", {"job": FIRST, "reason": "the file is empty (0 bytes)"})


def expired(shell: Shell) -> None:
    ended_job(shell)
    shell.world.s3.delete_object(Bucket=BUCKET, Key=f"data/snapshots/{FIRST}/data.csv")


@pytest.mark.parametrize(
    ("prepare", "job", "reason"),
    [
        (undecided, FIRST, "has not ended yet"),
        (refused, FIRST, "its file was refused: the file is empty (0 bytes)"),
        (expired, FIRST, "its data is gone"),
        (lambda shell: None, FIRST, "there is no snapshot of its data"),
        (lambda shell: None, "job-7/../x", "is not the name of a training job"),
        (lambda shell: None, "", "say which training job"),
    ],
)
def test_an_impossible_retraining_says_why_and_changes_nothing(
    shell: Shell, capsys: pytest.CaptureFixture[str], prepare: Callable[[Shell], None], job: str, reason: str
) -> None:
    prepare(shell)
    before = shell.world.final_state()
    assert shell.run("retrain", "--job", job) == 2
    assert reason in capsys.readouterr().err
    assert shell.world.final_state() == before
    assert shell.functions.sent == []
