"""The evaluator's comparison with the live model, and the golden rows: what the decision and the email make of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_model_evaluator import (
    ARTIFACT,
    DECISION,
    GOOD_METRICS,
    JOB,
    OUTPUT,
    WEIGHTS,
    complete,
    metrics_file,
    start_job,
)
from world import BUCKET, Context, World, tar_gz

LIVE = "training-job-20261101-080000-aaaaaaaa"
RIVAL = "training-job-20261122-080000-bbbbbbbb"
NEWER = "training-job-20261124-080000-ffffffff"
NEW_SET, LIVE_SET = "new hold-out", "hold-out of the live model"
GATE = {"accuracy": {"min": 0.8}, "eval_loss": {"max": 0.5}}
GOLDEN = [{"text": f"text {at}", "label": "ham", "score": 0.75} for at in range(20)]

Run = Callable[..., str]


@pytest.fixture
def run(evaluator: ModuleType, world: World) -> Run:
    """Invoke the handler for the job; returns the outcome."""
    return lambda: str(evaluator.lambda_handler(world.job_event(JOB), Context("first"))["outcome"])


def judged(name: str, live: object, new: object, rows: object = 200, **error: object) -> dict[str, Any]:
    return {"name": name, "rows": rows, "live": live, "new": new} | error


def block(*sets: dict[str, Any], note: str = "", **changes: object) -> dict[str, Any]:
    status = "compared" if sets else "cannot be loaded"
    compared = {"job": LIVE, "status": status, "compared": bool(sets), "note": note, "respelt": "", "kept": 1}
    return compared | {"sets": list(sets)} | changes


def comparison(live: float, new: float, name: str = LIVE_SET) -> dict[str, Any]:
    return block(judged(name, {"accuracy": live}, {"accuracy": new}))


def end(world: World, champion: object, golden: object = GOLDEN, **metrics: object) -> None:
    """The job completed, with this in its output archive."""
    files = [metrics_file(champion=champion, **metrics)]
    if golden is not None:
        files.append(("golden.json", golden if isinstance(golden, bytes) else json.dumps(golden).encode()))
    complete(world, tar_gz(files), tar_gz([WEIGHTS]))


def decided(world: World, job: str, champion: object, approved: bool = True) -> None:
    """An earlier decision on another job."""
    world.put(f"models/decisions/{job}.json", {"schema": 1, "job": job, "champion": champion})
    if approved:
        world.put(f"models/approved/default/{job}/model.tar.gz", b"model")


# --- the margin -------------------------------------------------------------------------------------


def checks_of(evaluator: ModuleType, champion: dict[str, Any], **more: Any) -> list[Any]:
    arguments = {"gate": GATE, "margin": 0.005, "below_best": {}, "rivals": {}} | more
    checks: list[Any] = evaluator.compare(evaluator.parse_champion({"champion": champion}), **arguments)[0]
    return checks


@pytest.mark.parametrize(
    ("metric", "live", "new", "passed"),
    [
        ("accuracy", 0.905, 0.9, True),
        ("accuracy", 0.905, 0.8999, False),
        ("accuracy", 0.905, 0.99, True),
        ("eval_loss", 0.3, 0.305, True),
        ("eval_loss", 0.3, 0.3051, False),
        ("eval_loss", 0.3, 0.01, True),
    ],
)
@pytest.mark.parametrize("name", [NEW_SET, LIVE_SET])
def test_a_loss_of_the_margin_passes_and_a_larger_one_does_not(
    evaluator: ModuleType, name: str, metric: str, live: float, new: float, passed: bool
) -> None:
    (check,) = checks_of(evaluator, block(judged(name, {metric: live}, {metric: new})))
    assert check.passed is passed
    assert (check.live, check.value, check.rows) == (live, new, f"{name} (200 rows)")


@given(live=st.floats(0, 1), new=st.floats(0, 1), margin=st.floats(0, 1))
def test_the_comparison_is_the_margin_to_a_rounding(
    evaluator: ModuleType, live: float, new: float, margin: float
) -> None:
    (check,) = checks_of(evaluator, comparison(live, new), margin=margin)
    if abs(new - (live - margin)) > 1e-8:
        assert check.passed is (new >= live - margin)


def test_only_metrics_of_the_gate_are_compared_whatever_side_their_threshold_is_on(evaluator: ModuleType) -> None:
    figures = {"accuracy": 0.9, "macro_f1": 0.9}
    worse = {"accuracy": 0.99, "macro_f1": 0.1}
    gate = {"accuracy": {"min": 0.5, "max": 0.995}, "train_examples": {"min": 100}}
    (check,) = checks_of(evaluator, block(judged(NEW_SET, figures, worse)), gate=gate)
    assert (check.metric, check.direction, check.passed) == ("accuracy", "min", True)


def test_small_losses_do_not_add_up(evaluator: ModuleType) -> None:
    accuracy, below_best = 0.95, {}
    for _ in range(20):
        champion = evaluator.parse_champion({"champion": comparison(accuracy, accuracy - 0.002)})
        checks, lost = evaluator.compare(champion, GATE, 0.005, below_best, {})
        if all(check.passed for check in checks):
            accuracy, below_best = accuracy - 0.002, lost
    assert accuracy == pytest.approx(0.946)
    assert "the best model before it had 0.95" in checks[0].reason
    champion = evaluator.parse_champion({"champion": comparison(accuracy, 0.96)})
    checks, lost = evaluator.compare(champion, GATE, 0.005, below_best, {})
    assert checks[0].passed
    assert lost == {"accuracy": 0}


def test_a_loss_of_just_the_margin_is_not_forgotten(evaluator: ModuleType) -> None:
    champion = evaluator.parse_champion({"champion": comparison(0.905, 0.9)})
    _, lost = evaluator.compare(champion, GATE, 0.005, {}, {})
    assert lost["accuracy"] > 0.005
    (check,) = checks_of(evaluator, comparison(0.9, 0.899), below_best=lost)
    assert not check.passed


@given(st.lists(st.tuples(st.floats(-0.05, 0.05), st.floats(0, 0.1), st.sampled_from([0, 0.5, 0.95, 1])), max_size=30))
def test_whatever_is_uploaded_twice_the_margin_is_the_most_that_the_best_model_can_lose(
    evaluator: ModuleType, uploads: list[tuple[float, float, float]]
) -> None:
    best = accuracy = 0.9
    below_best: dict[str, float] = {}
    for difference, error, kept in uploads:
        new = accuracy + difference
        figures = judged(LIVE_SET, {"accuracy": accuracy}, {"accuracy": new}, error={"accuracy": error})
        champion = evaluator.parse_champion({"champion": block(figures, kept=kept)})
        checks, lost = evaluator.compare(champion, GATE, 0.005, below_best, {})
        if all(check.passed for check in checks):
            accuracy, below_best = new, lost
        best = max(best, accuracy)
        assert accuracy >= best - 0.01 - 1e-8


def test_a_drop_under_a_larger_margin_counts_as_accepted_deliberately(evaluator: ModuleType) -> None:
    (check,) = checks_of(evaluator, comparison(0.8, 0.796), below_best={"accuracy": 0.1})
    assert check.passed


def test_a_model_that_was_approved_meanwhile_counts_on_the_live_models_holdout(evaluator: ModuleType) -> None:
    champion = block(*(judged(name, {"accuracy": 0.9}, {"accuracy": 0.91}) for name in (NEW_SET, LIVE_SET)))
    new, live = checks_of(evaluator, champion, rivals={RIVAL: {"accuracy": 0.95}, "another": {"accuracy": 0.2}})
    assert (new.passed, live.passed) == (True, False)
    assert live.reason == (
        f"accuracy on the {LIVE_SET} (200 rows) is 0.91; {RIVAL}, approved meanwhile, has 0.95, and at most 0.005 "
        "worse than that is allowed"
    )


@pytest.mark.parametrize(
    ("name", "kept", "new", "passed"),
    [
        (LIVE_SET, 0.95, 0.895, True),
        (LIVE_SET, 0.94, 0.9, False),
        (LIVE_SET, None, 0.9, False),
        (LIVE_SET, 0, 0.9114, False),
        (LIVE_SET, 0, 0.9115, True),
        (NEW_SET, 0, 0.895, True),
    ],
)
def test_without_the_live_models_data_a_loss_must_be_ruled_out_on_its_holdout(
    evaluator: ModuleType, name: str, kept: float | None, new: float, passed: bool
) -> None:
    figures = judged(name, {"accuracy": 0.9}, {"accuracy": new}, error={"accuracy": 0.01})
    champion = evaluator.parse_champion({"champion": block(figures, kept=kept)})
    (check,) = evaluator.compare(champion, GATE, 0.005, {}, {})[0]
    assert check.passed is passed
    assert ("0.01645 to spare to rule out chance" in check.reason) is (name == LIVE_SET and kept != 0.95)


@pytest.mark.parametrize(
    ("error", "new", "passed"),
    [
        (0.004, 0.895, True),
        (0.004, 0.8949, False),
        (0.008, 0.892, True),
        (0.008, 0.8919, False),
        (0.02, 0.89, True),
        (0.02, 0.8899, False),
    ],
)
@pytest.mark.parametrize("name", [NEW_SET, LIVE_SET])
def test_data_that_grows_may_lose_what_chance_explains_up_to_twice_the_margin(
    evaluator: ModuleType, name: str, error: float, new: float, passed: bool
) -> None:
    figures = judged(name, {"accuracy": 0.9}, {"accuracy": new}, error={"accuracy": error})
    champion = evaluator.parse_champion({"champion": block(figures, kept=1)})
    (check,) = evaluator.compare(champion, GATE, 0.005, {}, {})[0]
    assert check.passed is passed
    assert ("(one standard error)" in check.reason) is (error > 0.005)


@pytest.mark.parametrize(
    ("metric", "live", "new", "error", "bound", "capped"),
    [
        ("accuracy", 1, 1, 0.1, 1, True),
        ("macro_f1", 0.9, 1, 0.2, 1, True),
        ("recall, label 3", 0.9, 1, 0.2, 1, True),
        ("eval_loss", 0.1, 0, 0.2, 0, True),
        ("accuracy", 0.9, 1, 0.01, 0.91145, False),
        ("accuracy", 90, 100, 6, 99.865, False),
        ("beauty", 0.9, 1.3, 0.2, 1.224, False),
    ],
)
def test_no_bound_is_beyond_what_the_metric_can_reach_and_that_passes(
    evaluator: ModuleType, metric: str, live: float, new: float, error: float, bound: float, capped: bool
) -> None:
    figures = judged(LIVE_SET, {metric: live}, {metric: new}, error={metric: error})
    (check,) = checks_of(evaluator, block(figures, kept=0), gate={metric: {"min": 0}})
    assert check.threshold == pytest.approx(bound)
    assert check.passed
    assert ("that is more than any model can reach" in check.reason) is capped


def test_where_the_bound_is_beyond_reach_only_the_best_figure_passes_and_that_is_said(evaluator: ModuleType) -> None:
    figures = judged(LIVE_SET, {"accuracy": 1}, {"accuracy": 0.995}, error={"accuracy": 0.1})
    (check,) = checks_of(evaluator, block(figures, kept=0))
    assert not check.passed
    assert check.reason == (
        f"accuracy on the {LIVE_SET} (200 rows) is 0.995; the live model has 1, and at most 0.005 worse than that is "
        "allowed, with 0.1645 to spare to rule out chance: the new data lacks the live model's rows; that is more than "
        "any model can reach, so only 1 passes"
    )


# --- the decision -----------------------------------------------------------------------------------


def test_a_model_worse_than_the_live_one_is_rejected_with_both_figures(run: Run, world: World) -> None:
    end(world, comparison(0.95, 0.9))
    assert run() == "rejected"
    decision = world.record(DECISION)
    assert decision["reason"] == (
        f"accuracy on the {LIVE_SET} (200 rows) is 0.9; the live model has 0.95, and at most 0.005 worse than that is "
        "allowed"
    )
    assert decision["champion"]["job"] == LIVE
    assert decision["golden"] == []
    assert world.keys("models/approved/") == []
    email = world.only_email()
    assert f"Compared with the live model {LIVE}, both on the same rows" in email.body
    assert "raise champion_margin in Terraform" in email.body


def test_a_model_as_good_as_the_live_one_is_approved_and_both_columns_are_shown(run: Run, world: World) -> None:
    note = "New labels: 'eggs'. The live model does not know them, so their rows are left out."
    champion = comparison(0.9, 0.8975) | {"note": note}
    end(world, champion)
    assert run() == "approved"
    decision = world.record(DECISION)
    assert decision["champion"].pop("sets") == [champion.pop("sets")[0] | {"error": {"accuracy": 0}}]
    assert decision["champion"] == champion | {"margin": 0.005, "below_best": {"accuracy": pytest.approx(0.0025)}}
    lines = world.only_email().body.splitlines()
    (row,) = [line.split("  ") for line in lines if LIVE_SET in line and "accuracy" in line]
    assert [cell.strip() for cell in row if cell.strip()] == [
        "accuracy",
        f"{LIVE_SET} (200 rows)",
        "0.8975",
        "0.9",
        "at least 0.895",
        "passed",
    ]
    assert note in world.only_email().body


def test_the_first_model_is_judged_by_its_thresholds_and_that_is_said(run: Run, world: World) -> None:
    end(world, None)
    assert run() == "approved"
    assert world.record(DECISION)["champion"] is None
    body = world.only_email().body
    assert "No model was live when this training began, so only the thresholds were checked" in body
    assert "Approved by now" not in body
    assert "The pipeline deploys it now" in body


def test_a_second_first_model_is_judged_by_its_thresholds_and_that_it_replaces_another_unseen_is_said(
    run: Run, world: World
) -> None:
    decided(world, RIVAL, None)
    end(world, None)
    assert run() == "approved"
    assert world.record(DECISION)["rivals"] == {RIVAL: {}}
    body = world.only_email().body
    assert f"Approved by now, but not live when this training began, and so not compared with: {RIVAL}." in body
    assert "make rollback MODEL=default TO=<job>" in body
    assert "The pipeline deploys it now" in body


def test_an_older_upload_that_is_approved_after_a_newer_one_is_said_not_to_be_deployed(run: Run, world: World) -> None:
    decided(world, NEWER, None)
    end(world, None)
    assert run() == "approved"
    assert f"{NEWER}, of a later upload, is already approved and goes first" in world.only_email().body


def test_the_thresholds_still_count_beside_the_comparison(run: Run, world: World) -> None:
    end(world, comparison(0.5, 0.6), accuracy=0.6)
    assert run() == "rejected"
    assert world.record(DECISION)["reason"] == "accuracy is 0.6; it must be at least 0.8"
    assert "champion_margin" not in world.only_email().body


def test_the_line_of_the_live_model_is_read_from_its_decision(run: Run, world: World) -> None:
    decided(world, LIVE, comparison(0.95, 0.946) | {"below_best": {"accuracy": 0.004}})
    end(world, comparison(0.946, 0.944))
    assert run() == "rejected"
    assert "the live model has 0.946, the best model before it had 0.95" in world.record(DECISION)["reason"]


def test_a_rival_approved_meanwhile_is_found_and_others_are_not(run: Run, world: World) -> None:
    decided(world, "training-job-20261121-080000-cccccccc", comparison(0.9, 0.99), approved=False)
    decided(world, "training-job-20261121-080000-dddddddd", comparison(0.9, 0.99) | {"job": RIVAL})
    decided(world, "training-job-20261121-080000-eeeeeeee", None)
    decided(world, RIVAL, comparison(0.9, 0.93))
    end(world, comparison(0.9, 0.91))
    assert run() == "rejected"
    assert f"{RIVAL}, approved meanwhile, has 0.93" in world.record(DECISION)["reason"]


def test_a_rival_on_another_holdout_is_named_as_not_compared_with(run: Run, world: World) -> None:
    decided(world, RIVAL, comparison(0.9, 0.9))
    decided(world, NEWER, comparison(0.9, 0.99) | {"job": RIVAL})
    end(world, comparison(0.9, 0.91))
    assert run() == "approved"
    assert world.record(DECISION)["rivals"] == {RIVAL: {"accuracy": 0.9}, NEWER: {}}
    assert f"and so not compared with: {NEWER}. The newest" in world.only_email().body


def test_a_retry_after_its_own_approval_is_no_rival_of_itself(run: Run, world: World) -> None:
    end(world, comparison(0.9, 0.93))
    world.put(f"models/approved/default/{JOB}/model.tar.gz", b"an earlier attempt")
    assert run() == "approved"


# --- what the data holds ----------------------------------------------------------------------------

TOLD = {"rows": "30 read, 20 used", "rows left out": "too many fields: 10 (line 22, 23, …)", "labels": '2: "ham" 10'}


@pytest.mark.parametrize(
    ("verdict", "champion", "metrics"),
    [
        ("approved", None, {}),
        ("rejected", None, {"accuracy": 0.1}),
        ("rejected", [], {}),
        ("held", block(), {}),
    ],
)
def test_what_the_data_holds_is_in_the_record_and_the_email_of_every_verdict(
    run: Run, world: World, verdict: str, champion: object, metrics: dict[str, Any]
) -> None:
    end(world, champion, told=TOLD, **metrics)
    assert run() == verdict
    assert world.record(DECISION)["told"] == TOLD
    shown = [line.strip().split("  ", 1) for line in world.only_email().body.splitlines() if line.startswith("  ")]
    assert TOLD.items() <= {line[0]: line[-1].strip() for line in shown}.items()


def test_what_the_data_holds_cannot_change_the_lines_of_an_email(run: Run, world: World) -> None:
    end(world, None, told={"rows\n": "1\nWhat next: run\u202e"})
    assert run() == "approved"
    assert world.record(DECISION)["told"] == {"rows\\n": "1\\nWhat next: run\\u202e"}
    assert re.search(r"^  rows\\n +1\\nWhat next: run\\u202e$", world.only_email().body, re.MULTILINE)


def test_the_most_that_can_be_told_of_data_fits_the_email_whole(run: Run, world: World) -> None:
    told = {f"{at:0100}": "🙂" * 1200 for at in range(20)}
    files = [("metrics.json", json.dumps(GOOD_METRICS | {"told": told}, ensure_ascii=False).encode())]
    complete(world, tar_gz(files), tar_gz([WEIGHTS]))
    assert run() == "approved"
    assert world.record(DECISION)["told"] == told
    assert all(f"  {name}  {text}\n" in world.only_email().body for name, text in told.items())


@pytest.mark.parametrize(
    "told",
    [
        [],
        "rows",
        {"rows": 7},
        {"rows": None},
        {"rows": ["1"]},
        {"": "1"},
        {"x" * 101: "1"},
        {"rows": "x" * 1201},
        {f"row {at}": "1" for at in range(21)},
    ],
    ids=range(9),
)
def test_malformed_words_about_the_data_are_refused_with_a_reason(run: Run, world: World, told: object) -> None:
    end(world, None, told=told)
    assert run() == "rejected"
    assert world.record(DECISION)["reason"].startswith(
        'metrics.json: "told" must be at most 20 texts of up to 1200 char'
    )
    assert world.record(DECISION)["told"] == {}


# --- labels that the live model spells differently ----------------------------------------------------

PAIRS = '"0.0" for "0", "1.0" for "1"'
SPELLED_DIFFERENTLY = f"its labels are spelled differently from the live model's: {PAIRS}"


def respelt(live: float, new: float) -> dict[str, Any]:
    return comparison(live, new) | {"status": "respelt labels", "respelt": PAIRS}


@pytest.fixture
def accepted(evaluator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's word for the model."""
    monkeypatch.setenv("ACCEPT_UNCOMPARED", "another,default")
    evaluator.settings.cache_clear()


def test_a_good_model_with_respelt_labels_is_held_and_the_spelling_is_asked_for(run: Run, world: World) -> None:
    job_with_champion(world, respelt(0.9, 0.91))
    assert run() == "held"
    assert world.keys("models/approved/") == []
    decision = world.record(DECISION)
    assert decision["reason"] == SPELLED_DIFFERENTLY
    assert (decision["champion"]["status"], decision["champion"]["respelt"]) == ("respelt labels", PAIRS)
    assert decision["champion"]["sets"][0]["new"] == {"accuracy": 0.91}
    assert [check["passed"] for check in decision["checks"]] == [True, True, True]
    body = world.only_email().body
    assert f"Why: {SPELLED_DIFFERENTLY}.\n" in body
    assert "What next: spell these labels as the live model does, and upload the data again." in body
    assert f'add "default" to accept_uncompared in Terraform, deploy, then run: make retrain JOB={JOB}\n' in body
    assert f"Compared with the live model {LIVE}, both on the same rows" in body


def test_with_the_operators_word_a_good_model_with_respelt_labels_is_approved_and_that_is_recorded(
    run: Run, world: World, accepted: None
) -> None:
    job_with_champion(world, respelt(0.9, 0.91))
    assert run() == "approved"
    decision = world.record(DECISION)
    assert decision["reason"] == (
        f"every metric is within its threshold; accept_uncompared allows that {SPELLED_DIFFERENTLY}"
    )
    assert decision["champion"]["status"] == "respelt labels"


@pytest.mark.parametrize("word", [False, True], ids=["without the operator's word", "with it"])
def test_a_worse_model_with_respelt_labels_is_rejected_with_both_reasons(
    run: Run, world: World, word: bool, request: pytest.FixtureRequest
) -> None:
    if word:
        request.getfixturevalue("accepted")
    job_with_champion(world, respelt(1, 0.5))
    assert run() == "rejected"
    assert world.record(DECISION)["reason"] == (
        f"accuracy on the {LIVE_SET} (200 rows) is 0.5; the live model has 1, and at most 0.005 worse than that is "
        f"allowed; {SPELLED_DIFFERENTLY}"
    )


# --- a live model that was not compared with --------------------------------------------------------


def job_with_champion(world: World, champion: object) -> None:
    start_job(world)
    world.sagemaker.jobs[JOB]["Environment"] = {"CHAMPION_JOB": LIVE}
    world.put(OUTPUT, tar_gz([metrics_file(champion=champion), ("golden.json", json.dumps(GOLDEN).encode())]))
    world.put(ARTIFACT, tar_gz([WEIGHTS]))
    world.sagemaker.end_job(JOB, artifact=f"s3://{BUCKET}/{ARTIFACT}")


def by_an_older_program(*sets: dict[str, Any], note: str = "") -> dict[str, Any]:
    """What the program wrote before there was a status."""
    written = block(*sets, note=note)
    del written["status"], written["respelt"]
    return written


# What the training program wrote, the status in the decision, and why the model is held.
NOT_COMPARED = {
    "no shared label": (block(status="no shared label"), "the new data has none of the live model's labels"),
    "cannot be read": (block(status="cannot be read"), "the live model's archive cannot be read"),
    "cannot be loaded": (block(status="cannot be loaded"), "the live model cannot be loaded, or gives no scores"),
    "too few rows": (
        block(status="too few rows"),
        "there are too few rows that neither model was trained on: upload more",
    ),
    "not said": (by_an_older_program(), "the training program does not say why there is no comparison"),
    "not written": (None, "the training program wrote no comparison into metrics.json"),
    "another model": (comparison(0.9, 0.99) | {"job": RIVAL}, "metrics.json compares with another model"),
}


@pytest.mark.parametrize("status", NOT_COMPARED)
def test_a_model_that_was_not_compared_with_the_live_one_is_held(run: Run, world: World, status: str) -> None:
    written, reason = NOT_COMPARED[status]
    job_with_champion(world, written)
    assert run() == "held"
    assert world.keys("models/approved/") == []
    decision = world.record(DECISION)
    assert (decision["verdict"], decision["reason"], decision["approved_key"]) == ("held", reason, None)
    assert {name: decision["champion"][name] for name in ("job", "status", "compared", "sets")} == {
        "job": LIVE,
        "status": status,
        "compared": False,
        "sets": [],
    }


def test_the_email_says_why_a_model_is_held_and_the_two_ways_out(run: Run, world: World) -> None:
    note = "The live model has none of these labels, only 'ham', 'spam': this is a new task."
    job_with_champion(world, block(note=note, status="no shared label"))
    run()
    email = world.only_email()
    assert email.subject == "Model held: default (support.csv)"
    assert email.attributes == {"stage": "evaluation", "status": "held", "model": "default"}
    assert f"Not compared with the live model {LIVE}: only the thresholds were checked. {note}" in email.body
    assert "Why: the new data has none of the live model's labels." in email.body
    assert "make upload DATA=<file> MODEL=<another name>" in email.body
    assert f'add "default" to accept_uncompared in Terraform, deploy, then run: make retrain JOB={JOB}' in email.body
    assert "make logs" in email.body


@pytest.mark.parametrize("status", NOT_COMPARED)
def test_a_model_that_terraform_accepts_uncompared_is_judged_by_its_thresholds_and_that_is_said(
    evaluator: ModuleType, run: Run, world: World, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPT_UNCOMPARED", "another,default")
    evaluator.settings.cache_clear()
    job_with_champion(world, NOT_COMPARED[status][0])
    assert run() == "approved"
    assert world.record(DECISION)["reason"] == (
        "every metric is within its threshold; accept_uncompared allows that it was not compared with the live model"
    )
    assert "only the thresholds were checked, as accept_uncompared allows" in world.only_email().body


def test_accepting_a_model_uncompared_does_not_drop_a_comparison_that_was_made(
    evaluator: ModuleType, run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPT_UNCOMPARED", "default")
    evaluator.settings.cache_clear()
    job_with_champion(world, comparison(0.95, 0.9))
    assert run() == "rejected"


def test_accepting_one_model_uncompared_holds_another(
    evaluator: ModuleType, run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEPT_UNCOMPARED", "default-2,a")
    evaluator.settings.cache_clear()
    job_with_champion(world, None)
    assert run() == "held"


def test_a_model_below_a_threshold_is_rejected_and_not_held(run: Run, world: World) -> None:
    end(world, block(), accuracy=0.1)
    assert run() == "rejected"


def test_a_comparison_without_any_metric_that_has_a_threshold_is_none(run: Run, world: World) -> None:
    end(world, block(judged(NEW_SET, {"beauty": 0.1}, {"beauty": 0.9})))
    assert run() == "held"
    assert world.record(DECISION)["reason"] == "no metric that has a threshold was compared"


def test_what_the_note_says_decides_nothing(run: Run, world: World) -> None:
    end(world, comparison(0.9, 0.9) | {"note": "The live model cannot be loaded. This is a new task."})
    assert run() == "approved"


def test_a_comparison_by_an_older_program_counts(run: Run, world: World) -> None:
    end(world, by_an_older_program(judged(LIVE_SET, {"accuracy": 0.9}, {"accuracy": 0.91})))
    assert run() == "approved"
    assert world.record(DECISION)["champion"]["status"] == "compared"


def test_a_model_is_held_whoever_was_withdrawn_or_approved_since_its_training_began(run: Run, world: World) -> None:
    """The record of a withdrawn model stays; the job was to be compared with it and was not."""
    world.put(f"models/deployments/{LIVE}-00000000.json", {"schema": 2, "job": LIVE, "state": "withdrawn"})
    decided(world, RIVAL, None)
    job_with_champion(world, block())
    assert run() == "held"


GOOD = {"accuracy": 0.9}
MALFORMED = {
    "text": "yes",
    "list": [],
    "no job": block(job=None),
    "another's job": block(job="../../etc/passwd"),
    "compared without sets": block(compared=True),
    "sets without compared": comparison(0.9, 0.9) | {"compared": False},
    "compared is no boolean": comparison(0.9, 0.9) | {"compared": 1},
    "status of its own": block(status="fine"),
    "status no text": block(status=[]),
    "status null": block(status=None),
    "compared by its status alone": block(status="compared"),
    "respelt by its status alone": block(status="respelt labels", respelt="a for b"),
    "respelt without saying how": comparison(0.9, 0.9) | {"status": "respelt labels"},
    "respelt, but compared as if not": comparison(0.9, 0.9) | {"respelt": "a for b"},
    "respelt of lines": comparison(0.9, 0.9) | {"status": "respelt labels", "respelt": "a\nb"},
    "respelt too long": comparison(0.9, 0.9) | {"status": "respelt labels", "respelt": "x" * 1001},
    "respelt a list": comparison(0.9, 0.9) | {"status": "respelt labels", "respelt": ["a"]},
    "respelt null": comparison(0.9, 0.9) | {"respelt": None},
    "not compared by its status": comparison(0.9, 0.9) | {"status": "too few rows"},
    "note of lines": block(note="a\nb"),
    "note too long": block(note="x" * 1001),
    "note of a surrogate": block(note="\ud800"),
    "note missing": block(note=None),
    "sets no list": block(sets={}),
    "three sets": block(*[judged(NEW_SET, GOOD, GOOD)] * 3),
    "set twice": block(*[judged(NEW_SET, GOOD, GOOD)] * 2),
    "set of another name": block(judged("my own rows", GOOD, GOOD)),
    "set of an unhashable name": block(judged([], GOOD, GOOD)),  # type: ignore[arg-type]
    "set no object": block(sets=[7], compared=True),
    "no rows": block(judged(NEW_SET, GOOD, GOOD, rows=0)),
    "rows a truth": block(judged(NEW_SET, GOOD, GOOD, rows=True)),
    "rows huge": block(judged(NEW_SET, GOOD, GOOD, rows=10**30)),
    "no figures": block(judged(NEW_SET, {}, {})),
    "figures a list": block(judged(NEW_SET, [0.9], [0.9])),
    "other metrics": block(judged(NEW_SET, GOOD, {"macro_f1": 0.9})),
    "NaN": block(judged(NEW_SET, GOOD, {"accuracy": math.nan})),
    "infinite": block(judged(NEW_SET, {"accuracy": -math.inf}, GOOD)),
    "text for a number": block(judged(NEW_SET, GOOD, {"accuracy": "0.9"})),
    "a truth for a number": block(judged(NEW_SET, GOOD, {"accuracy": True})),
    "finite with an infinite difference": block(judged(LIVE_SET, {"accuracy": 1e308}, {"accuracy": -1e308})),
    "huge number": block(judged(NEW_SET, GOOD, {"accuracy": 10**400})),
    "other errors": block(judged(NEW_SET, GOOD, GOOD, error={"macro_f1": 0.1})),
    "negative error": block(judged(NEW_SET, GOOD, GOOD, error={"accuracy": -0.1})),
    "error no object": block(judged(NEW_SET, GOOD, GOOD, error=None)),
    "kept more than all": block(kept=1.5),
    "kept less than nothing": block(kept=-1),
    "kept a text": block(kept="all"),
    "kept NaN": block(kept=math.nan),
    "metric of two lines": block(judged(NEW_SET, {"a\nb": 1}, {"a\nb": 1})),
    "metric of a surrogate": block(judged(NEW_SET, {"\ud800": 1}, {"\ud800": 1})),
    "metric without a name": block(judged(NEW_SET, {"": 1}, {"": 1})),
    "metric of a long name": block(judged(NEW_SET, {"m" * 101: 1}, {"m" * 101: 1})),
    "many metrics": block(judged(NEW_SET, *[{f"m{at}": 1 for at in range(1001)}] * 2)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_comparison_is_refused_with_a_reason(run: Run, world: World, name: str) -> None:
    end(world, MALFORMED[name])
    assert run() == "rejected"
    assert '"champion"' in world.record(DECISION)["reason"]
    assert world.record(DECISION)["reason"] in world.only_email().body
    assert world.keys("models/approved/") == []


def test_a_metric_for_each_of_many_labels_may_be_compared(run: Run, world: World) -> None:
    figures = {"accuracy": 0.9} | {f"recall, label {at}: größe & co.": 0.5 for at in range(999)}
    end(world, block(judged(NEW_SET, figures, figures)))
    assert run() == "approved"
    (judged_on,) = world.record(DECISION)["champion"]["sets"]
    assert judged_on["new"] == figures
    assert "recall" not in world.only_email().body


@pytest.mark.parametrize("name", ["label: größe & co.", "a b", "m" * 100])
def test_a_metric_of_any_printable_name_may_be_compared(evaluator: ModuleType, name: str) -> None:
    champion = block(judged(NEW_SET, {name: 0.9}, {name: 0.8}))
    (check,) = checks_of(evaluator, champion, gate={name: {"min": 0.5}})
    assert (check.metric, check.passed) == (name, False)


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (block(job="../../etc/passwd"), "job must be the name of a training job, not '../../etc/passwd'"),
        (block(kept=1.5), "kept must be null or a number from 0 to 1, not 1.5"),
        (block(judged("my own rows", 1, 1)), f"set 0: name must be {NEW_SET} or {LIVE_SET}, not 'my own rows'"),
        (block(judged(NEW_SET, {"accuracy": "0.9"}, {})), "live must be 1 to 1000 finite numbers, .*'0.9'"),
    ],
)
def test_the_reason_names_the_file_the_place_and_the_value(
    evaluator: ModuleType, champion: object, reason: str
) -> None:
    with pytest.raises(evaluator.ArchiveError, match=f'^metrics.json: "champion": .*{reason}'):
        evaluator.parse_champion({"champion": champion})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
nearly = st.fixed_dictionaries(
    {"job": st.just(LIVE) | anything, "compared": anything, "note": anything},
    optional={
        "status": st.sampled_from(["compared", "respelt labels", "too few rows"]),
        "respelt": st.sampled_from(["", "a for b"]) | anything,
        "sets": anything
        | st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from([NEW_SET, LIVE_SET]), "rows": anything, "live": anything, "new": anything}
            ),
            max_size=3,
        ),
    },
)


@given(champion=anything | nearly)
def test_any_comparison_is_taken_or_refused_with_a_reason(evaluator: ModuleType, champion: object) -> None:
    try:
        taken = evaluator.parse_champion({"champion": champion})
    except evaluator.ArchiveError as error:
        assert str(error).isprintable()  # noqa: PT017 - only some examples raise
        return
    if taken is not None:
        evaluator.compare(taken, GATE, 0.005, {}, {})
        json.dumps(taken, allow_nan=False)
        assert evaluator.champion_text(taken, "held").isprintable()


# --- golden rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 20])
def test_golden_rows_go_into_the_decision(run: Run, world: World, count: int) -> None:
    end(world, None, golden=GOLDEN[:count])
    assert run() == "approved"
    decision = world.record(DECISION)
    assert decision["golden"] == GOLDEN[:count]
    assert decision["golden_note"] == ""
    assert "golden" not in world.only_email().body


def row(**changes: object) -> list[dict[str, Any]]:
    return [GOLDEN[0] | changes]


ODD_GOLDEN = {
    "none": (None, "there is no output archive with a golden.json"),
    "no JSON": (b"oops", "golden.json is no JSON"),
    "empty": ([], "no list of 1 to 20 rows"),
    "an object": ({}, "no list of 1 to 20 rows"),
    "too many": ([*GOLDEN, GOLDEN[0]], "no list of 1 to 20 rows"),
    "row no object": (["text"], "row 0 must be an object, not 'text'"),
    "further field": (row(more=1), "row 0 has more than a text, a label and a score"),
    "duplicate key": (b'[{"text": "a", "text": "b", "label": "ham", "score": 1}]', "more than once"),
    "text a number": (row(text=7), "row 0: text must be a text of 1 to 512 characters, not 7"),
    "empty text": (row(text=""), "row 0: text must be a text of 1 to 512 characters, not ''"),
    "lone surrogate": (row(text="\ud800"), "row 0: text must be a text of 1 to 512 characters, not '\\ud800'"),
    "long text": (
        row(text="x" * 513),
        "row 0: text must be a text of 1 to 512 characters, not 'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
    ),
    "long label": (
        row(label="x" * 513),
        "row 0: label must be a text of 1 to 512 characters, not 'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
    ),
    "score above 1": (row(score=1.1), "row 0: score must be a number from 0 to 1, not 1.1"),
    "score below 0": (row(score=-0.1), "row 0: score must be a number from 0 to 1, not -0.1"),
    "NaN": (row(score=math.nan), "row 0: score must be a number from 0 to 1, not nan"),
    "a truth": (row(score=True), "row 0: score must be a number from 0 to 1, not True"),
    "huge": (b"[" + b" " * 128 * 1024 + b"]", "golden.json has 131074 bytes; at most 131072 are read"),
    "deeply nested": (b"[" * 100_000, "golden.json is no JSON"),
}


@pytest.mark.parametrize("name", ODD_GOLDEN)
def test_odd_golden_rows_are_none_and_that_is_said(run: Run, world: World, name: str) -> None:
    content, reason = ODD_GOLDEN[name]
    end(world, None, golden=content)
    assert run() == "approved"
    decision = world.record(DECISION)
    assert decision["golden"] == []
    assert reason in decision["golden_note"]
    assert f"none, so the endpoint's answers will not be checked: {decision['golden_note']}" in world.only_email().body


def test_an_archive_damaged_behind_its_metrics_has_no_golden_rows(run: Run, world: World) -> None:
    whole = tar_gz([metrics_file(champion=None), ("notes", bytes(range(256)) * 2000), ("golden.json", b"[]")])
    complete(world, whole[: len(whole) // 2], tar_gz([WEIGHTS]))
    assert run() == "approved"
    assert "the archive is no intact .tar.gz" in world.record(DECISION)["golden_note"]


def test_golden_rows_are_found_in_front_of_the_metrics(run: Run, world: World) -> None:
    archive = tar_gz([("golden.json", json.dumps(GOLDEN).encode()), metrics_file(champion=None)])
    complete(world, archive, tar_gz([WEIGHTS]))
    assert run() == "approved"
    assert world.record(DECISION)["golden"] == GOLDEN


def test_huge_golden_rows_in_front_of_the_metrics_are_passed_over(run: Run, world: World) -> None:
    archive = tar_gz([("golden.json", b" " * 200_000), metrics_file(champion=None)])
    complete(world, archive, tar_gz([WEIGHTS]))
    assert run() == "approved"
    assert "golden.json has 200000 bytes" in world.record(DECISION)["golden_note"]


def test_without_an_output_archive_there_are_no_golden_rows(run: Run, world: World) -> None:
    complete(world, None, tar_gz([metrics_file(), ("golden.json", json.dumps(GOLDEN).encode())]))
    assert run() == "approved"
    assert world.record(DECISION)["golden_note"] == "there is no output archive with a golden.json at its root"
