"""mlops pause and resume, followed to their end by the real deployment orchestrator."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlops.records import PAUSED_KEY
from shell import FUNCTIONS, SWEEP, Shell, paused, switched_by_hand
from test_deployment_orchestrator import ARTIFACT, FIRST, SECOND, approved_key, make_foreign_endpoint
from world import BUCKET, ENDPOINT, Interruption, Killed, killed


def test_pause_deletes_our_endpoints_and_resume_brings_them_back_as_they_were(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    make_foreign_endpoint(shell.world, f"{ENDPOINT}-theirs")
    before = shell.sagemaker.state()["endpoints"]
    assert shell.run("pause", "--yes") == 0
    assert list(shell.sagemaker.endpoints) == [f"{ENDPOINT}-theirs"]
    assert shell.functions.sent == []
    assert shell.run("resume") == 0
    emails = len(shell.world.emails())
    shell.settle()
    assert shell.sagemaker.state()["endpoints"] == before
    assert not shell.is_paused()
    assert [payload for _, payload in shell.functions.sent] == [SWEEP] * 3
    assert {function for function, _ in shell.functions.sent} == set(FUNCTIONS.values())
    assert shell.state_of(SECOND) == "confirmed"
    assert shell.subjects()[emails:] == ["Deployment restored"]
    assert "serves this model again, after a pause" in shell.world.emails()[-1].body


def test_the_pause_is_written_before_an_endpoint_is_deleted(shell: Shell) -> None:
    shell.go_live(FIRST)
    config = shell.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"]
    shell.world.around.interruption = Interruption("DeleteEndpoint", killed)
    with pytest.raises(Killed):
        shell.run("pause", "--yes")
    (endpoint,) = shell.world.record(PAUSED_KEY)["endpoints"]
    assert (endpoint["name"], endpoint["model"], endpoint["config"]) == (ENDPOINT, "default", config)
    assert ENDPOINT in shell.sagemaker.endpoints


@pytest.mark.parametrize("typed", ["", "y", "atml-models"])
def test_pause_that_is_not_confirmed_changes_nothing(
    shell: Shell, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    before = shell.world.final_state()
    monkeypatch.setattr("builtins.input", lambda _: typed)
    assert shell.run("pause") == 2
    assert "nothing was changed" in capsys.readouterr().err
    assert shell.world.final_state() == before


def test_pause_is_confirmed_by_typing_the_buckets_name(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.go_live(FIRST)
    monkeypatch.setattr("builtins.input", lambda _: BUCKET)
    assert shell.run("pause") == 0
    assert shell.sagemaker.endpoints == {}


def test_without_a_terminal_pause_asks_for_yes(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    assert shell.run("pause") == 2
    assert not shell.is_paused()


def test_pause_leaves_running_jobs_and_says_so_unless_they_are_to_be_stopped(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.sagemaker.run_job(FIRST)
    shell.sagemaker.run_job(SECOND, stack="another-stack")
    assert shell.run("pause", "--yes") == 0
    said = capsys.readouterr().out
    assert "1 training jobs run on to their end" in said
    assert FIRST in said
    assert SECOND not in said
    assert shell.run("pause", "--yes", "--stop-jobs") == 0
    assert [job["TrainingJobStatus"] for job in shell.sagemaker.jobs.values()] == ["Stopped", "InProgress"]
    assert shell.run("pause", "--yes") == 0
    assert "already paused, since 2026-12-01" in capsys.readouterr().out


def test_an_endpoint_that_is_being_changed_is_deleted_by_the_next_pause(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    shell.deploy(shell.world.upload(approved_key(SECOND), ARTIFACT))
    assert shell.run("pause", "--yes") == 1
    assert f"{ENDPOINT}: just being changed" in capsys.readouterr().out
    shell.sagemaker.come_up(ENDPOINT)
    assert shell.run("pause", "--yes") == 0
    assert shell.sagemaker.endpoints == {}
    (endpoint,) = shell.world.record(PAUSED_KEY)["endpoints"]
    assert endpoint["config"].startswith(SECOND)


def test_resume_without_a_pause_says_so(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.go_live(FIRST)
    before = shell.world.final_state()
    assert shell.run("resume") == 0
    assert "not paused" in capsys.readouterr().out
    assert shell.world.final_state() == before
    assert [payload for _, payload in shell.functions.sent] == [SWEEP] * 3


def test_pause_and_resume_can_be_repeated(shell: Shell) -> None:
    shell.go_live(FIRST)
    for _ in range(3):
        assert shell.run("pause", "--yes") == 0
        assert shell.run("resume") == 0
        shell.settle()
        assert shell.served() == FIRST


def test_an_endpoint_without_room_is_left_to_the_deployer_to_try_again(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    shell.run("pause", "--yes")
    shell.sagemaker.endpoint_quota_message = "The account-level service limit 'x' is 0"
    assert shell.run("resume") == 0
    assert f"not yet        {ENDPOINT}: The account-level service limit" in capsys.readouterr().out
    shell.sagemaker.endpoint_quota_message = ""
    shell.settle()
    assert shell.served() == FIRST


def test_an_endpoint_whose_config_is_gone_is_recreated_by_the_deployer(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.run("pause", "--yes")
    shell.sagemaker.configs.clear()
    assert shell.run("resume") == 0
    shell.settle()
    assert shell.served() == FIRST


def test_an_endpoint_that_cannot_come_back_is_named(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    switched_by_hand(shell)
    shell.run("pause", "--yes")
    assert shell.run("resume") == 1
    assert f"NOT RESTORED   {ENDPOINT}: Could not find" in capsys.readouterr().out


def test_a_withdrawn_model_that_was_live_comes_back_withdrawn(shell: Shell) -> None:
    """A rollback whose target did not come up: the endpoint keeps serving the withdrawn model."""
    shell.go_live(FIRST, SECOND)
    shell.run("rollback", "--model", "default")
    shell.deploy(shell.functions.sent[0][1])
    shell.sagemaker.roll_back(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    shell.run("pause", "--yes")
    assert shell.run("resume") == 0
    shell.sagemaker.come_up(ENDPOINT)
    assert shell.served() == SECOND
    assert shell.state_of(SECOND) == "withdrawn"


def test_resume_while_an_endpoint_is_being_deleted_asks_for_a_rerun(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.go_live(FIRST)
    endpoint = shell.sagemaker.endpoints[ENDPOINT]
    shell.run("pause", "--yes")
    shell.sagemaker.endpoints[ENDPOINT] = endpoint | {"EndpointStatus": "Deleting"}
    assert shell.run("resume") == 2
    assert "is still being deleted" in capsys.readouterr().err
    assert shell.is_paused()


def test_an_endpoint_that_was_deleted_by_hand_comes_back_when_somebody_asks(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.sagemaker.vanish(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    assert shell.sagemaker.endpoints == {}
    for _ in range(2):
        assert shell.run("resume", "--model", "default") == 0
    shell.settle()
    assert shell.served() == SECOND
    assert shell.state_of(SECOND) == "confirmed"
    expected = {"Project": "mlops", "Stack": BUCKET, "Model": "default", "TrainingJob": SECOND}
    assert {tag["Key"]: tag["Value"] for tag in shell.sagemaker.endpoints[ENDPOINT]["Tags"]} == expected


def test_a_model_that_was_approved_while_the_endpoint_was_deleted_follows_the_one_that_comes_back(
    shell: Shell,
) -> None:
    shell.go_live(FIRST)
    shell.sagemaker.vanish(ENDPOINT)
    shell.deploy(shell.world.endpoint_event())
    shell.deploy(shell.world.upload(approved_key(SECOND), ARTIFACT))
    assert shell.state_of(SECOND) == "held"
    assert shell.run("resume", "--model", "default") == 0
    shell.settle()
    shell.settle()
    assert shell.served() == SECOND


def test_an_endpoint_that_vanished_before_its_first_model_was_live_is_requested_again(shell: Shell) -> None:
    shell.sagemaker.endpoint_quota_message = "The account-level service limit 'x' is 0"
    shell.deploy(shell.world.upload(approved_key(FIRST), ARTIFACT))
    shell.sagemaker.endpoint_quota_message = ""
    assert shell.run("resume", "--model", "default") == 0
    (sent,) = shell.functions.sent
    assert shell.deploy(sent[1]) == "started"


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda shell: None, "was ever approved"),
        (lambda shell: shell.world.upload(approved_key(FIRST), ARTIFACT), "no model that may be deployed"),
        (paused, "make resume, without MODEL"),
    ],
)
def test_an_endpoint_that_cannot_be_recreated_is_explained(
    shell: Shell, capsys: pytest.CaptureFixture[str], prepare: Callable[[Shell], object], reason: str
) -> None:
    prepare(shell)
    assert shell.run("resume", "--model", "default") == 2
    assert reason in capsys.readouterr().err
    assert shell.functions.sent == []


# --- records of schema 2 ------------------------------------------------------------------------------


def put_deployment(shell: Shell, job: str, state: str, **more: object) -> str:
    """An approved model and the record of its deployment, as the functions write it today; returns the record's key."""
    shell.world.upload(approved_key(job), ARTIFACT)
    config = f"{job}-0123abcd"
    record = {"schema": 2, "config": config, "endpoint": ENDPOINT, "model": "default", "job": job, "state": state}
    sent = {"by": "request-1", "at": "2026-12-01T10:00:00+00:00", "done": True}
    record |= {"by": "request-1", "at": "2026-12-01T10:00:00+00:00", "reason": "", "tries": 3, "restores": ""}
    record |= {"deleted_by": "", "emails": {"held": sent}, **more}
    shell.world.put(f"models/deployments/{config}.json", record)
    return f"models/deployments/{config}.json"


def test_a_held_model_is_deployed_when_somebody_asks(shell: Shell) -> None:
    key = put_deployment(shell, FIRST, "held")
    assert shell.run("resume", "--model", "default") == 0
    record = shell.world.record(key)
    assert (record["schema"], record["state"], record["tries"]) == (2, "waiting", 0)
    assert (record["deleted_by"], record["emails"]) == ("pipeline", {})
    assert "deleted" not in record
    assert [function for function, _ in shell.functions.sent] == [FUNCTIONS["deployer"]]


def test_a_model_that_was_live_before_a_held_one_comes_back_first(shell: Shell) -> None:
    shell.go_live(FIRST)
    (live,) = shell.world.keys("models/deployments/")
    sent = {"by": "request-1", "at": "2026-12-01T10:00:00+00:00", "done": True}
    written = shell.world.record(live) | {"schema": 2, "deleted_by": "", "emails": {"successful": sent}}
    shell.world.put(live, written)
    shell.sagemaker.vanish(ENDPOINT)
    held = put_deployment(shell, SECOND, "held")
    before = shell.world.record(held)
    assert shell.run("resume", "--model", "default") == 0
    record = shell.world.record(live)
    assert (record["state"], record["restores"], record["emails"]) == ("started", "it was deleted by hand", {})
    assert shell.world.record(held) == before
    assert shell.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"] == record["config"]
