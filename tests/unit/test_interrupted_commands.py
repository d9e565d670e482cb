"""The commands that intervene, interrupted at any call and run again, and met by an event at any call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mlops import redrive
from shell import FUNCTIONS, READS, Shell, dead_letter, ended_job, envelope, send, snapshots, waiting_messages
from test_deployment_orchestrator import FIRST, SECOND, THIRD
from world import ENDPOINT, Interruption, Killed, killed


def prepare_rollback(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND, THIRD)


def prepare_resume(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    shell.run("pause", "--yes")


def prepare_deleted(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.sagemaker.vanish(ENDPOINT)


def prepare_redrive(shell: Shell) -> None:
    dead_letter(shell, shell.world.upload("data/train/x.csv"), FUNCTIONS["training"])
    send(shell, envelope(FUNCTIONS["evaluator"], shell.world.job_event(FIRST)))


COMMANDS: dict[str, tuple[Callable[[Shell], object], tuple[str, ...]]] = {
    "rollback": (prepare_rollback, ("rollback", "--model", "default")),
    "rollback to": (prepare_rollback, ("rollback", "--model", "default", "--to", FIRST)),
    "retrain": (ended_job, ("retrain", "--job", FIRST)),
    "pause": (prepare_rollback, ("pause", "--yes")),
    "resume": (prepare_resume, ("resume",)),
    "resume a model": (prepare_deleted, ("resume", "--model", "default")),
    "redrive": (prepare_redrive, ("redrive",)),
}


def outcome(shell: Shell) -> dict[str, Any]:
    """What a command has done in the end, without times and the name of the one job that it may have made."""
    world = shell.world
    if ENDPOINT in shell.sagemaker.endpoints:
        shell.settle()
    names = snapshots(shell)
    new = names[-1] if len(names) > 1 else "none"

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {plain(name): plain(item) for name, item in value.items() if name not in ("at", "by", "started_at")}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value.replace(new, "NEW") if isinstance(value, str) else value

    sent = {json.dumps([function, plain(payload)], sort_keys=True) for function, payload in shell.functions.sent}
    state = plain(world.final_state()) | {"sent": sent, "queue": waiting_messages(shell), "snapshots": len(names)}
    return state | {"emails": {email.subject for email in world.emails()}}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> tuple[Callable[[Shell], object], tuple[str, ...]]:
    return COMMANDS[request.param]


def test_a_command_interrupted_at_any_call_and_run_again_ends_as_if_nothing_had_happened(
    make_shell: Callable[[], Shell],
    command: tuple[Callable[[Shell], object], tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare, arguments = command
    # A message that was received is invisible for a while; here it is there again at once.
    monkeypatch.setattr(redrive, "IN_HAND_SECONDS", 0)
    shell = make_shell()
    prepare(shell)
    before = len(shell.world.around.calls)
    assert shell.run(*arguments) == 0
    calls = shell.world.around.calls[before:]
    expected = outcome(shell)
    for call, operation in enumerate(calls):
        # After a read is before the call that follows it.
        for after_the_effect in (False,) if operation.startswith(READS) else (False, True):
            shell = make_shell()
            prepare(shell)
            at = len(shell.world.around.calls) + call
            shell.world.around.interruption = Interruption(at, killed, after_the_effect)
            with pytest.raises(Killed):
                shell.run(*arguments)
            assert shell.run(*arguments) == 0, (call, operation)
            assert outcome(shell) == expected, (call, operation, after_the_effect)


@pytest.mark.parametrize("name", ["rollback", "rollback to"])
def test_an_endpoint_event_at_any_moment_of_a_rollback_changes_nothing(
    make_shell: Callable[[], Shell], name: str
) -> None:
    prepare, arguments = COMMANDS[name]
    shell = make_shell()
    prepare(shell)
    before = len(shell.world.around.calls)
    assert shell.run(*arguments) == 0
    calls = shell.world.around.calls[before:]
    expected = outcome(shell)
    for call, operation in enumerate(calls):
        shell = make_shell()
        prepare(shell)
        at = len(shell.world.around.calls) + call
        shell.world.around.interruption = Interruption(
            at, lambda shell=shell: shell.deploy(shell.world.endpoint_event())
        )  # type: ignore[misc]
        assert shell.run(*arguments) == 0, (call, operation)
        assert outcome(shell) == expected, (call, operation)
