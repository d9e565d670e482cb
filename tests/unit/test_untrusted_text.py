"""Text from outside (keys, header cells, labels, reasons, endpoints' answers) is shown as text, wherever it comes out.

A value never changes which lines an email has; nothing that was written or printed moves a cursor, reorders or hides.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import example, given
from hypothesis import strategies as st

import mlops.text
import text
from mlops import cli
from mlops.logs import show_logs
from shell import FUNCTIONS, Shell, envelope, send
from test_deployment_orchestrator import ARTIFACT, FIRST, GOLDEN, SECOND, approved_key, decide
from test_model_evaluator import APPROVED, JOB, WEIGHTS, complete, metrics_file, start_job
from world import BUCKET, ENDPOINT, ENVIRONMENT, HANDLERS, ROOT, Context, World, tar_gz

# What a key, a label or a reason may hold to pass for something else.
EVIL = "q3.csv\r\n\nWhat next: log in at https://evil.example\x1b[2J\x9b2J\u202e\u200b\u3164\u2028\x85\t{table}"
SHOWN = r"q3.csv\r\n\nWhat next: log in at https://evil.example\x1b[2J\x9b2J\u202e\u200b\u3164\u2028\x85\t{table}"
pieces = st.sampled_from(
    [EVIL, "\n", "\r", "\x1b[2J", "\u202e", "\u2028", "\x85", "\x0c", "{", "}", "{0.x}", "%s", "\ud800"]
)
# Never empty, as an empty value may leave a line out, and never white space at its ends.
hostile = st.lists(pieces | st.text(), max_size=6).map(lambda parts: f"x{''.join(parts)}x")
TAME = "¤"


# --- one function -----------------------------------------------------------------------------------


@given(value=st.text() | hostile, limit=st.integers(1, 60))
@example(value="\u034f\u115f\u1160\u17b4\u2800\u3164\ufe0f\uffa0\U000e0041\U000e0100", limit=2000)
def test_plain_text_is_one_line_of_visible_characters_and_no_longer_than_asked(value: str, limit: int) -> None:
    shown = mlops.text.plain(value, limit)
    assert shown.isprintable()
    assert not mlops.text.UNSEEN.search(shown)
    assert len(shown) <= limit
    assert shown.splitlines() in ([shown], [])
    assert mlops.text.plain(shown, limit) == shown


@given(value=st.text(st.characters(exclude_categories=["C", "Z", "M"]), max_size=60))
def test_what_is_plain_already_stays_as_it_is(value: str) -> None:
    visible = mlops.text.UNSEEN.sub("", value)
    assert mlops.text.plain(f"a {visible} b") == f"a {visible} b"


def test_plain_text_says_what_it_hides_and_that_it_is_cut() -> None:
    assert mlops.text.plain(EVIL) == SHOWN
    assert mlops.text.plain("x" * 300_170, 40) == "x" * 39 + "…"
    assert mlops.text.plain("größe 日本 🙂 a  b") == "größe 日本 🙂 a  b"


@given(value=st.text() | hostile | st.integers() | st.none(), limit=st.integers(1, 60))
def test_the_functions_the_commands_and_the_training_program_have_the_same(
    handlers: dict[str, ModuleType], value: object, limit: int
) -> None:
    others = [text.plain(value, limit), *(module.plain(value, limit) for module in handlers.values())]
    assert others == [mlops.text.plain(value, limit)] * 4
    assert {text.PLAIN_MAX, mlops.text.PLAIN_MAX, *(module.PLAIN_MAX for module in handlers.values())} == {2000}


# --- emails: the same lines, whatever the values ------------------------------------------------------


@dataclasses.dataclass
class Sent:
    subject: str
    body: str


def sent_by(module: ModuleType, send: Any, *arguments: Any, **values: Any) -> Sent:
    """What a handler's function publishes."""
    requests: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        publisher = SimpleNamespace(publish=lambda **request: requests.append(request))
        patch.setattr(module, "client", lambda service: {"sns": publisher}[service])
        send(*arguments, **values)
    (request,) = requests
    return Sent(request["Subject"], request["Message"])


def assert_same_lines(tame: Sent, evil: Sent) -> None:
    """Each line of one is that of the other, but for what stands in place of TAME."""
    lines, shown = (re.sub(" +", " ", email.body).splitlines() for email in (tame, evil))
    assert len(lines) == len(shown), evil.body
    for line, other in zip(lines, shown, strict=True):
        pattern = ".+".join(map(re.escape, line.split(TAME)))
        assert re.fullmatch(pattern, other), (line, other)
        assert other.isprintable()
    assert evil.subject.isprintable()
    assert evil.subject.isascii()
    assert evil.subject.startswith(tame.subject.partition("?")[0])


def all_values(value: str) -> dict[str, Any]:
    """Every value that a template of an email may name, by name."""
    config = SimpleNamespace(
        text_column=value, label_column=value, max_concurrent_training_jobs=2, max_training_jobs_per_day=20
    )
    names = ("file", "job", "reason", "tries", "and_more", "minutes", "advice", "verdict", "next", "checks")
    names += ("endpoint", "capacity", "then", "why", "restores", "known_job", "most_left_out")
    return dict.fromkeys(names, value) | {"config": config, "quota": {"name": value, "reason": value}}


@pytest.mark.parametrize("name", HANDLERS)
@given(value=hostile)
def test_no_value_changes_the_lines_of_any_email(handlers: dict[str, ModuleType], name: str, value: str) -> None:
    """Whatever the callers pass: a template's fields are made plain where they are filled."""
    module = handlers[name]
    for email in module.EMAILS.values():
        tame, evil = (
            sent_by(module, module.notify, "arn", email, "default", [("data", it), ("more", it)], **all_values(it))
            for it in (TAME, value)
        )
        assert_same_lines(tame, evil)


def source_of(value: str) -> dict[str, Any]:
    key = f"data/train/{value}.csv"
    source = {"schema": 2, "job": JOB, "model": "default", "bucket": BUCKET, "key": key, "version_id": value}
    return source | {"etag": "e", "sequencer": "1", "size": 36, "uploaded_at": "2026-11-23T12:00:00+00:00"}


@given(value=hostile)
def test_no_value_changes_the_lines_of_what_the_training_orchestrator_sends(training: ModuleType, value: str) -> None:
    settings = training.Settings.from_env(ENVIRONMENT["training_orchestrator"])
    for kind in training.EMAILS:
        tame, evil = (
            sent_by(
                training,
                training.send,
                kind,
                dataclasses.replace(settings, text_column=it, label_column=it),
                source_of(it),
                [("base model", it)],
                **{name: one for name, one in all_values(it).items() if name not in ("config", "file", "job")},
            )
            for it in (TAME, value)
        )
        assert_same_lines(tame, evil)


def decisions(evaluator: ModuleType, value: str) -> Iterator[Any]:
    """A decision of every kind, with a value from outside wherever one goes."""
    champion = {"job": JOB, "note": value, "respelt": value, "kept": None, "sets": []}
    statuses = {"too few rows": False, "compared": True, "respelt labels": True}
    against = [None, *(champion | {"status": name, "compared": compared} for name, compared in statuses.items())]
    checks = [
        evaluator.Check(value, "min", 0.8, None, False, value),
        evaluator.Check(value, "max", 0.5, 0.3, True, value, "new hold-out (20 rows)", 0.2),
    ]
    for verdict in evaluator.EMAILS:
        for compared in against if verdict in ("approved", "rejected", "held") else [None]:
            yield evaluator.Decision(
                job=JOB,
                model="default",
                data=source_of(value),
                thresholds={},
                verdict=verdict,
                schema=2,
                reason=value,
                artifact={"key": value, "etag": "e", "size": 5},
                metrics={"train_examples": 80.0, value: 1.0},
                told={"rows": value},
                checks=checks if verdict in ("approved", "rejected") else [],
                champion=compared,
                rivals={SECOND: {}},
                golden_note=value,
            )


@given(value=hostile)
def test_no_value_changes_the_lines_of_what_the_model_evaluator_sends(evaluator: ModuleType, value: str) -> None:
    for tame, evil in zip(decisions(evaluator, TAME), decisions(evaluator, value), strict=True):
        assert_same_lines(*(sent_by(evaluator, evaluator.email_decision, "arn", it) for it in (tame, evil)))


@given(value=hostile)
def test_no_value_changes_the_lines_of_what_the_deployment_orchestrator_sends(deployer: ModuleType, value: str) -> None:
    config = deployer.Settings.from_env(ENVIRONMENT["deployment_orchestrator"])

    def send(kind: str, it: str) -> None:
        record = deployer.new_record(config, "default", FIRST, "etag", 5)
        record.previous_config = record.checked = record.restores = it
        deployer.send_email(config, record, deployer.EMAILS[kind], source_of(it), reason=it, then=it)

    for kind in deployer.EMAILS:
        assert_same_lines(*(sent_by(deployer, send, kind, it) for it in (TAME, value)))


# --- from each way in to each way out -----------------------------------------------------------------

# What Python calls printable, and nobody sees.
UNSEEN_CHAMPION = {
    "job": JOB,
    "status": "respelt labels",
    "compared": True,
    "note": "a\u3164b",
    "respelt": "a\u3164 for a",
    "sets": [{"name": "new hold-out", "rows": 50, "live": {"accuracy": 0.9}, "new": {"accuracy": 0.9}}],
}
# What is kept as it came: it identifies an upload, or is what the endpoint is asked.
EXACT = ("key", "text", "label")


def strings(value: Any, name: str = "") -> Iterator[str]:
    """Every text in a record that people read."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, name)
    elif isinstance(value, str) and name not in EXACT:
        yield value


def assert_everything_is_plain(world: World, caplog: pytest.LogCaptureFixture, *prefixes: str) -> None:
    """Emails, the records under these prefixes, and the log."""
    emails = world.emails()
    assert emails
    for email in emails:
        for line in (email.subject, *email.body.split("\n")):
            assert mlops.text.plain(line) == line
    keys = [key for key in world.stored_keys() if key.startswith(prefixes) and key.endswith(".json")]
    assert keys
    for said in strings([json.loads(body) for key in keys for body in world.bodies(key) if body]):
        assert mlops.text.plain(said) == said
    lines = [record for record in caplog.records if record.name == "root"]
    assert lines
    for said in strings([{"message": record.getMessage(), **vars(record)} for record in lines]):
        assert mlops.text.plain(said) == said


def test_a_key_comes_out_as_text(training: ModuleType, world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for number, key in enumerate((f"data/train/{EVIL}.csv", f"data/train/reviews/{EVIL[:20]}.csv")):
        training.lambda_handler(world.upload(key), Context(f"request {number}"))
    assert [email.subject.partition(":")[0] for email in world.emails()] == [
        "Training data rejected",
        "Training started",
    ]
    assert_everything_is_plain(world, caplog, "data/rejected/", "slots/")
    assert {world.record(key)["key"] for key in world.keys("data/rejected/")} == {f"data/train/{EVIL}.csv"}


@pytest.mark.parametrize(
    "header",
    [f'"{EVIL}",b', f'"{EVIL};b"', f'text,"{EVIL}"', f'text,Label,"{EVIL}"'],
    ids=["no column", "another separator", "one column", "another case"],
)
def test_a_header_cell_comes_out_as_text(
    training: ModuleType, world: World, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    sent = world.upload("data/train/x.csv", f"{header}\na,b\n".encode())
    assert training.lambda_handler(sent, Context("request"))["outcome"] == "rejected"
    assert_everything_is_plain(world, caplog, "data/rejected/")


def test_a_failure_reason_comes_out_as_text(
    evaluator: ModuleType, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    start_job(world)
    world.sagemaker.end_job(JOB, "Failed", reason=EVIL)
    evaluator.lambda_handler(world.job_event(JOB), Context("request"))
    assert f"Why: {SHOWN}\n" in world.only_email().body
    assert world.record(f"models/decisions/{JOB}.json")["reason"] == SHOWN
    assert_everything_is_plain(world, caplog, "models/decisions/")


@pytest.mark.parametrize(
    ("metrics", "golden"),
    [
        ({"accuracy": EVIL}, None),
        ({EVIL: 0.5}, None),
        ({"champion": EVIL}, None),
        ({"champion": UNSEEN_CHAMPION}, None),
        ({"told": {EVIL: EVIL}}, None),
        ({"told": EVIL}, None),
        ({}, [{"text": EVIL, "label": EVIL, "score": EVIL}]),
        ({}, [{"text": EVIL, "label": EVIL, "score": 0.9}]),
    ],
    ids=[
        "a metric",
        "a metric's name",
        "the comparison",
        "the comparison's words",
        "words about the data",
        "no words about the data",
        "a golden score",
        "golden rows",
    ],
)
def test_what_a_job_wrote_comes_out_as_text(
    evaluator: ModuleType, world: World, caplog: pytest.LogCaptureFixture, metrics: dict[str, Any], golden: Any
) -> None:
    caplog.set_level(logging.INFO)
    files = [metrics_file(**metrics), *([("golden.json", json.dumps(golden).encode())] if golden else [])]
    complete(world, tar_gz(files), tar_gz([metrics_file(**metrics), WEIGHTS]))
    evaluator.lambda_handler(world.job_event(JOB), Context("request"))
    assert_everything_is_plain(world, caplog, "models/decisions/")
    assert bool(world.keys(APPROVED)) == (metrics in ({}, {EVIL: 0.5}, {"told": {EVIL: EVIL}}))


@pytest.mark.parametrize(
    "answer",
    [(EVIL, 0.2), (EVIL * 2000, 0.2), (EVIL, EVIL), (EVIL, 10**400)],
    ids=["short", "long", "no score", "huge"],
)
def test_what_an_endpoint_answers_comes_out_as_text(
    deployer: ModuleType, world: World, caplog: pytest.LogCaptureFixture, answer: tuple[str, Any]
) -> None:
    caplog.set_level(logging.INFO)
    decide(world, FIRST, [{**row, "label": EVIL} for row in GOLDEN])
    world.sagemaker.answers[FIRST] = answer
    deployer.lambda_handler(world.upload(approved_key(FIRST), ARTIFACT), Context("first"))
    world.sagemaker.come_up(ENDPOINT)
    deployer.lambda_handler(world.endpoint_event(), Context("second"))
    email = world.emails()[-1]
    assert email.subject.startswith("Deployment failed")
    assert len(email.body) < 2000
    assert_everything_is_plain(world, caplog, "models/deployments/")


def test_why_an_endpoint_failed_comes_out_as_text(
    deployer: ModuleType, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deployer.lambda_handler(world.upload(approved_key(FIRST), ARTIFACT), Context("first"))
    world.sagemaker.fail(ENDPOINT, EVIL)
    deployer.lambda_handler(world.endpoint_event(status="FAILED"), Context("second"))
    assert f"Why: {SHOWN}\n" in world.emails()[-1].body
    assert_everything_is_plain(world, caplog, "models/deployments/")


# --- the terminal ------------------------------------------------------------------------------------


def assert_terminal_is_left_alone(shown: str) -> None:
    """What was printed has no control characters but line ends, and no line that a value began."""
    assert SHOWN[:40] in shown
    assert all(line.isprintable() and not line.startswith("What next") for line in shown.split("\n"))


def test_only_one_function_of_the_commands_prints() -> None:
    printing = {
        path.name
        for path in (ROOT / "scripts" / "mlops").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    }
    assert printing == {"text.py"}


def test_status_shows_text_from_outside_as_text(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what a function of an earlier version wrote."""
    key, reason = f"data/train/{EVIL}.csv", EVIL
    for job, verdict in ((FIRST, "failed"), (SECOND, "rejected")):
        shell.world.put(f"data/snapshots/{job}/source.json", {"job": job, "model": "default", "key": key})
        decision = {"job": job, "verdict": verdict, "checks": [{"metric": EVIL, "value": 0.5}], "reason": reason}
        shell.world.put(f"models/decisions/{job}.json", decision)
    record = {"schema": 2, "job": FIRST, "key": key, "etag": "e", "reason": reason, "rejected_at": "2026-12-01"}
    shell.world.put(f"data/rejected/{FIRST}.json", record)
    ledger = {"jobs": {}, "day": {"date": "", "jobs": []}, "quota": {"instance_type": EVIL, "is_0": True}}
    shell.world.put("slots/training.json", {"schema": 2} | ledger)
    shell.world.put("control/paused.json", {"at": "2026-12-01", "by": EVIL, "endpoints": []})
    assert cli.main(["status"]) == 0
    assert_terminal_is_left_alone(capsys.readouterr().out)


def test_logs_show_text_from_outside_as_text(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    trace = ['  File "handler.py", line 1\n    raise EventError\n', EVIL]
    lines = [
        json.dumps({"level": "WARNING", "message": f"rejected: {EVIL}", "key": EVIL}),
        json.dumps({"level": "ERROR", "errorMessage": EVIL, "stackTrace": trace}),
        EVIL,
    ]
    events = [{"timestamp": 1, "message": line, "logStreamName": f"{FIRST}/algo-1"} for line in lines]
    pages = SimpleNamespace(paginate=lambda **_: [{"events": events}])
    shell.target.client = lambda name: SimpleNamespace(get_paginator=lambda _: pages)
    for job, endpoint in (("", ""), (FIRST, ""), ("", ENDPOINT)):
        show_logs(shell.target, job, endpoint, "30")
        assert_terminal_is_left_alone(shown := capsys.readouterr().out)
        forged = [line for line in shown.splitlines() if not re.match(r"00:00:00  | {20}", line)]
        assert forged == []


def test_predict_shows_a_label_as_text(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = shell.sagemaker.runtime
    shell.go_live(FIRST)
    shell.sagemaker.answers[FIRST] = (EVIL, 0.9)
    client = shell.target.client
    shell.target.client = lambda name: runtime if name == "sagemaker-runtime" else client(name)
    assert cli.main(["predict", "--text", "hello"]) == 0
    assert capsys.readouterr().out == f"{SHOWN}  0.9000\n"


def test_an_error_of_aws_is_shown_as_text(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"Error": {"Code": "ValidationError", "Message": EVIL}}
    refused = ClientError(error, "InvokeEndpoint")  # type: ignore[arg-type]

    def refuse(**_: object) -> None:
        raise refused

    shell.target.client = lambda name: SimpleNamespace(invoke_endpoint=refuse)
    assert cli.main(["predict", "--text", "hello"]) == 2
    assert_terminal_is_left_alone(capsys.readouterr().err)
    error["Error"]["Code"] = "ServiceUnavailable"
    assert cli.main(["predict", "--text", "hello"]) == 1
    assert_terminal_is_left_alone(capsys.readouterr().err)


def test_redrive_shows_a_key_and_an_error_as_text(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    event = {"source": "aws.s3", "detail-type": "Object Created", "detail": {"object": {"key": EVIL}}}
    body = envelope(FUNCTIONS["training"], event) | {"responsePayload": {"errorMessage": EVIL}}
    send(shell, body)
    send(shell, {"requestContext": {"functionArn": EVIL}, "requestPayload": {}})
    assert cli.main(["redrive"]) == 1
    assert_terminal_is_left_alone(capsys.readouterr().out)


def test_an_upload_that_was_refused_is_not_retrained_and_its_reason_shown_as_text(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"schema": 2, "job": FIRST, "key": "k", "etag": "e", "reason": EVIL, "rejected_at": "2026-12-01"}
    shell.world.put(f"data/rejected/{FIRST}.json", record)
    assert cli.main(["retrain", "--job", FIRST]) == 2
    assert_terminal_is_left_alone(capsys.readouterr().err)
