"""mlops redrive: failed events go to their functions again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shell import FUNCTION_ARN, FUNCTIONS, SWEEP, Shell, dead_letter, envelope, send, waiting_messages
from test_deployment_orchestrator import FIRST


def test_redrive_sends_both_shapes_to_the_function_that_failed(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    upload, job = shell.world.upload("data/train/x.csv"), shell.world.job_event(FIRST)
    dead_letter(shell, upload, FUNCTIONS["training"])
    send(shell, envelope(FUNCTIONS["evaluator"], job))
    assert shell.run("redrive") == 0
    assert sorted(shell.functions.sent, key=str) == sorted(
        [
            (FUNCTIONS["training"], upload),
            (FUNCTIONS["evaluator"], {"redrive_of": "request-1", "event": job}),
        ],
        key=str,
    )
    assert waiting_messages(shell) == 0
    said = capsys.readouterr().out
    assert "training   Object Created data/train/x.csv (EventBridge could not deliver it: NO_PERMISSIONS)" in said
    assert f"evaluator  SageMaker Training Job State Change {FIRST} (failed: AccessDenied)" in said
    assert "2 sent again, 0 left" in said


def test_an_event_that_failed_again_keeps_the_request_that_failed_first(shell: Shell) -> None:
    event = shell.world.job_event(FIRST)
    twice = {"redrive_of": "request-2", "event": {"redrive_of": "request-1", "event": event}}
    send(shell, envelope(FUNCTIONS["evaluator"], twice, "request-3"))
    shell.run("redrive")
    assert shell.functions.sent == [(FUNCTIONS["evaluator"], {"redrive_of": "request-1", "event": event})]


def test_a_schedule_that_could_not_be_delivered_becomes_a_sweep(shell: Shell) -> None:
    scheduled = {"id": "1", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
    dead_letter(shell, scheduled, FUNCTIONS["deployer"])
    shell.run("redrive")
    assert shell.functions.sent == [(FUNCTIONS["deployer"], SWEEP)]


@pytest.mark.parametrize(
    ("body", "attributes", "reason"),
    [
        ("no json", {}, "its body is not a JSON object"),
        ("[1]", {}, "its body is not a JSON object"),
        ("[" * 100_000, {}, "its body is not a JSON object"),
        ({"hello": "world"}, {}, "it is neither an event"),
        ({"requestContext": {}, "requestPayload": "text"}, {}, "it is neither an event"),
        ({"requestContext": {"requestId": "1"}, "requestPayload": {}}, {}, "it is for no function"),
        (envelope("other-function", {}), {}, "which is none of this stack's"),
        (envelope(FUNCTIONS["training"], {}, request_id=""), {}, "lacks the requestId"),
        ({"id": "1"}, {"TARGET_ARN": "arn:aws:lambda:eu-west-1:1:function:train-function"}, "none of this stack's"),
        ({"id": "1"}, {"TARGET_ARN": f"{FUNCTION_ARN}:"}, "none of this stack's"),
    ],
)
def test_an_unknown_message_is_shown_and_left(
    shell: Shell, capsys: pytest.CaptureFixture[str], body: Any, attributes: dict[str, str], reason: str
) -> None:
    send(shell, body, **attributes)
    assert shell.run("redrive") == 1
    said = capsys.readouterr().out
    assert reason in said
    assert "0 sent again, 1 left" in said
    assert shell.functions.sent == []
    assert shell.run("redrive") == 1, "the message is there for the next one at once"


def test_an_empty_queue_is_reported(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("redrive") == 0
    assert "nothing to send again" in capsys.readouterr().out


def test_an_event_that_fails_again_at_once_is_not_sent_forever(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cause is not fixed: each invocation fails and comes back while the queue is being emptied."""
    keep = shell.functions.invoke

    def invoke(**request: Any) -> dict[str, int]:
        count = len(shell.functions.sent)
        assert count < 10
        send(shell, envelope(request["FunctionName"], json.loads(request["Payload"]), f"later-{count}"))
        return keep(**request)

    monkeypatch.setattr(shell.functions, "invoke", invoke)
    send(shell, envelope(FUNCTIONS["evaluator"], shell.world.job_event(FIRST)))
    dead_letter(shell, shell.world.upload("data/train/x.csv"), FUNCTIONS["training"])
    dead_letter(shell, SWEEP, FUNCTIONS["deployer"])
    assert shell.run("redrive") == 1
    assert "failed again" in capsys.readouterr().out
