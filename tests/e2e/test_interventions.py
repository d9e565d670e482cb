"""The commands for people in charge, against the deployed pipeline: real functions, trainings and model servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployed import Pipeline, make_rows, to_csv
from mlops import cli
from mlops.endpoints import own_endpoints
from mlops.predict import predict
from mlops.records import job_of_config
from mlops.status import newest_jobs, show_status

FIRST = ("ham", "spam")


def run(*arguments: str) -> int:
    return cli.main([*arguments, "--target", "local"])


def served_job(pipeline: Pipeline, model: str) -> str:
    return job_of_config(pipeline.endpoint(model)["EndpointConfigName"])


def test_rollback_serves_the_previous_model_again_and_status_shows_it(
    pipeline: Pipeline, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(FIRST, 120, seed=40)
    pipeline.train_and_deploy(model, rows, name="first.csv")
    first = served_job(pipeline, model)
    pipeline.train_and_deploy(model, rows + make_rows(FIRST, 40, seed=41), name="second.csv")
    second = served_job(pipeline, model)
    assert second != first
    assert run("rollback", "--model", model, "--reason", "rude answers") == 0
    pipeline.wait_for_email(model, "Deployment restored")
    assert served_job(pipeline, model) == first
    assert predict(pipeline.target, model, rows[0][0])["label"] == rows[0][1]
    capsys.readouterr()
    assert run("rollback", "--model", model) == 0
    assert "already so" in capsys.readouterr().out
    show_status(pipeline.target)
    shown = capsys.readouterr().out
    assert f"{second}  approved    withdrawn" in shown
    assert ": rude answers" in shown
    assert run("rollback", "--model", model, "--to", second) == 0
    pipeline.wait_for("the second model again", lambda: served_job(pipeline, model) == second)


def test_retrain_gives_a_failed_run_a_new_job_on_the_same_data(pipeline: Pipeline, model: str) -> None:
    rows = [(text, "ham") for text, _ in make_rows(FIRST, 60, seed=42)]
    old = pipeline.keep(model, rows)
    pipeline.wait_for_email(model, "Training failed")
    source = pipeline.json_at(f"data/snapshots/{old}/source.json")
    pipeline.wait_for("the decision", lambda: pipeline.keys(f"models/decisions/{old}.json"))
    assert run("retrain", "--job", old) == 0
    assert run("retrain", "--job", old) == 0
    pipeline.wait_for_email(model, "Training failed", count=2)
    assert pipeline.subjects_of(model) == ["Training started", "Training failed"] * 2
    new = pipeline.json_at(f"data/snapshots/{old}/retrained.json")["job"]
    assert pipeline.json_at(f"data/snapshots/{new}/source.json") == source | {"job": new, "retrain_of": old}


def test_pause_stops_everything_and_resume_restores_it(
    pipeline: Pipeline, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(FIRST, 120, seed=43)
    pipeline.train_and_deploy(model, rows)
    before = {endpoint["name"]: endpoint["config"] for endpoint in own_endpoints(pipeline.target)}
    assert run("pause", "--yes") == 0
    pipeline.wait_for("no endpoint", lambda: not own_endpoints(pipeline.target))
    pipeline.upload(f"data/train/{model}/later.csv", to_csv(rows + make_rows(FIRST, 40, seed=44)))
    pipeline.wait_for_email(model, "Training waiting")
    show_status(pipeline.target)
    shown = capsys.readouterr().out
    assert "PAUSED     since 20" in shown
    assert "none while the pipeline is paused" in shown
    assert "waiting     later.csv" in shown
    assert run("resume") == 0
    pipeline.wait_for_email(model, "Deployment restored")
    pipeline.wait_for_email(model, "Deployment successful", count=2)
    after = {endpoint["name"]: endpoint["config"] for endpoint in own_endpoints(pipeline.target)}
    changed = {name for name, config in before.items() if after.get(name) != config}
    assert changed == {pipeline.target.endpoint_of(model)}
    assert served_job(pipeline, model) == newest_jobs(pipeline.target)[0]


def test_redrive_sends_what_failed_in_a_function_again_once_the_cause_is_mended(pipeline: Pipeline, model: str) -> None:
    functions = pipeline.target.client("lambda")
    name = pipeline.target.functions["training"]
    variables = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    broken = variables | {"TOPIC_ARN": f"{variables['TOPIC_ARN']}-of-nobody"}
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": broken})
    try:
        pipeline.upload(f"data/train/{model}/empty.csv", b"")
        pipeline.wait_for("the failed event", pipeline.failed_events)
    finally:
        functions.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
    assert pipeline.subjects_of(model) == []
    assert run("redrive") == 0
    pipeline.wait_for_email(model, "Training data rejected")
    assert pipeline.failed_events() == []
    assert pipeline.subjects_of(model) == ["Training data rejected"]


def test_redrive_sends_what_eventbridge_could_not_deliver_once_it_may(pipeline: Pipeline, model: str) -> None:
    functions = pipeline.target.client("lambda")
    name = pipeline.target.functions["training"]
    uploads = pipeline.target.outputs["rule_names"]["uploads"]

    def is_for_uploads(statement: dict[str, Any]) -> bool:
        return str(statement.get("Condition", {})).find(f"rule/{uploads}'") > 0

    policy = json.loads(functions.get_policy(FunctionName=name)["Policy"])
    (statement,) = filter(is_for_uploads, policy["Statement"])
    functions.remove_permission(FunctionName=name, StatementId=statement["Sid"])
    try:
        pipeline.upload(f"data/train/{model}/empty.csv", b"")
        pipeline.wait_for("the failed event", pipeline.failed_events)
    finally:
        (source_arn,) = (arn for arns in statement["Condition"].values() for arn in arns.values())
        functions.add_permission(
            FunctionName=name,
            StatementId=statement["Sid"],
            Action="lambda:InvokeFunction",
            Principal="events.amazonaws.com",
            SourceArn=source_arn,
        )
    assert run("redrive") == 0
    pipeline.wait_for_email(model, "Training data rejected")
    assert pipeline.failed_events() == []


def test_doctor_finds_the_deployed_stack_in_order(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    run("doctor")
    said = capsys.readouterr().out
    # Events of other tests may have failed; what follows holds whatever they do.
    wanted = [f"{pipeline.target.bucket}, this stack's", "are sent to EventBridge", "none is on"]
    wanted += [f"{name}: this checkout's" for name in pipeline.target.functions.values()]
    assert [text for text in wanted if text not in said] == []
    assert "does not answer" not in said
