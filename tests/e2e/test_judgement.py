"""What the training program hands over, as the model evaluator judges it: real training runs of a tiny model."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

import frozen
import inference
from dataset import Example
from test_champion import JOB as LIVE
from test_champion import WORDS, make_rows, pack, relabelled
from test_champion import base_model as base_model
from test_champion import fit as fit
from test_model_evaluator import ARTIFACT, BUCKET, DECISION, JOB, OUTPUT, start_job
from world import Context, tar_gz

CLASSES = 7_000


@pytest.fixture
def judge(evaluator, world, monkeypatch, tmp_path):
    """Hand a run's files over as SageMaker does, and return the decision and the email."""

    def judge(run, live=False, accepted=""):
        monkeypatch.setenv("THRESHOLDS", '{"accuracy": {"min": 0}}')
        monkeypatch.setenv("ACCEPT_UNCOMPARED", accepted)
        evaluator.settings.cache_clear()
        start_job(world)
        world.sagemaker.jobs[JOB]["Environment"] = {"CHAMPION_JOB": LIVE} if live else {}
        files = [(path.name, path.read_bytes()) for path in sorted((run.folder / "output").iterdir())]
        world.put(OUTPUT, tar_gz(files))
        pack(run.folder / "model", tmp_path / "model.tar.gz")
        world.put(ARTIFACT, (tmp_path / "model.tar.gz").read_bytes())
        world.sagemaker.end_job(JOB, artifact=f"s3://{BUCKET}/{ARTIFACT}")
        evaluator.lambda_handler(world.job_event(JOB), Context("first"))
        return world.record(DECISION), world.only_email().body

    return judge


def written(rows, **labels):
    """Rows with their labels in other words."""
    return [(text, labels.get(label, label)) for text, label in rows]


NUMBERS = {"rainy": "0", "tasty": "1"}
FLOATS = {"rainy": "0.0", "tasty": "1.0"}


@pytest.fixture(scope="module")
def numbers(fit):
    """The live model: its labels are 0 and 1."""
    return fit(written(make_rows(), **NUMBERS))


@pytest.fixture(scope="module")
def floats(fit, numbers):
    return fit(written(make_rows(), **FLOATS), live=numbers)


# ---- labels that the live model spells differently


@pytest.mark.parametrize("accepted", ["", "default"], ids=["without the operator's word", "with it"])
def test_shuffled_labels_in_another_spelling_are_refused_by_the_comparison(fit, judge, numbers, accepted):
    shuffled = fit(written(relabelled(make_rows(), 0.5), **FLOATS), live=numbers)
    decision, email = judge(shuffled, live=True, accepted=accepted)
    assert decision["verdict"] == "rejected"
    assert "accuracy on the hold-out of the live model (48 rows) is 0." in decision["reason"]
    assert '"0.0" for "0", "1.0" for "1"' in decision["reason"]
    assert decision["champion"]["status"] == "respelt labels"
    assert decision["reason"] in email


def test_a_good_model_in_another_spelling_is_held_though_it_compares_well(judge, floats):
    decision, email = judge(floats, live=True)
    assert decision["verdict"] == "held"
    assert decision["reason"] == (
        'its labels are spelled differently from the live model\'s: "0.0" for "0", "1.0" for "1"'
    )
    assert all(check["passed"] for check in decision["checks"])
    assert "What next: spell these labels as the live model does" in email


def test_a_good_model_in_another_spelling_goes_live_with_the_operators_word(judge, floats):
    decision, _ = judge(floats, live=True, accepted="default")
    assert decision["verdict"] == "approved"
    assert decision["reason"].startswith(
        "every metric is within its threshold; accept_uncompared allows that its labels"
    )


def test_the_spelling_of_labels_costs_a_model_nothing_in_the_comparison(floats, numbers):
    assert floats.champion["kept"] == 1
    assert {name: judged["rows"] for name, judged in floats.sets().items()} == {
        "new hold-out": 48,
        "hold-out of the live model": 48,
    }
    for judged in floats.sets().values():
        assert judged["new"] == pytest.approx(judged["live"], abs=1e-6)


def test_the_live_models_holdout_is_carried_on_in_the_new_spelling(fit, numbers, floats):
    kept = {Example(text, f"{label}.0") for text, label in numbers.holdout}
    assert set(floats.holdout) == kept
    shuffled = fit(written(relabelled(make_rows(), 0.5), **FLOATS), live=numbers)
    assert kept <= set(shuffled.holdout)


def test_labels_of_which_some_are_respelt_some_kept_and_some_new(fit, numbers):
    rows = written(make_rows("rainy", "tasty", "moving"), rainy="0.0", tasty="1", moving="2")
    run = fit(rows, live=numbers)
    assert (run.champion["status"], run.champion["respelt"]) == ("respelt labels", '"0.0" for "0"')
    assert "New labels: '2'." in run.champion["note"]
    assert "does not know: " not in run.champion["note"].replace("The live model does not know them", "")
    assert run.sets()["hold-out of the live model"]["new"]["accuracy"] > 0.95
    assert Counter(example.label for example in run.holdout) == {"0.0": 24, "1": 24, "2": 24}


# ---- any number of classes, any length of text


def test_seven_thousand_classes_are_trained_judged_and_checked(fit, judge, deployer, monkeypatch):
    # How well is not asked: there is one text of each.
    monkeypatch.setattr(frozen, "ITERATIONS", 1)
    monkeypatch.setattr(frozen, "STRENGTHS", frozen.STRENGTHS[:1])
    words = [word for words in WORDS.values() for word in words]
    rows = [
        (f"{words[at % 15]} {words[at // 15 % 15]} {words[at // 225 % 15]} {at} {which}", f"Küche > 分類 > {at:05}")
        for at in range(CLASSES)
        for which in ("one", "some")
    ]
    run = fit(rows, candidates="frozen")
    decision, email = judge(run)
    assert decision["verdict"] == "approved", decision["reason"]
    assert run.metrics["label_count"] == decision["metrics"]["label_count"] == CLASSES
    assert (run.metrics["train_examples"], run.metrics["holdout_examples"]) == (CLASSES, CLASSES)
    assert (run.folder / "output" / "metrics.json").stat().st_size < 8_000
    assert decision["told"]["labels"].startswith('7,000: "Küche > 分類 > 00000" 2, ')
    assert decision["told"]["labels"].endswith(", and 6,980 more")
    assert decision["told"]["labels"] in email
    assert len(json.loads((run.folder / "model" / "model.json").read_text())["labels"]) == CLASSES
    assert len(decision["golden"]) == 20
    assert len(run.holdout) == 5_000
    assert not deployer.difference(decision["golden"], answers(run, decision["golden"]))


def answers(run, golden):
    """What the saved model answers, as the deployment orchestrator asks its endpoint."""
    return inference.predict_fn({"inputs": [row["text"] for row in golden]}, inference.model_fn(run.folder / "model"))


def test_golden_rows_of_long_texts_are_cut_and_answered_as_cut(fit, judge, deployer):
    rows = [(f"{text} " + f"{text} the " * (20_000 // len(text)), label) for text, label in make_rows(per_label=30)]
    rows = [(text[:20_000], label) for text, label in rows]
    assert {len(text) for text, _ in rows} == {20_000}
    run = fit(rows, candidates="frozen")
    decision, email = judge(run)
    assert decision["verdict"] == "approved"
    assert decision["golden"] == run.golden
    texts = {text[:512].strip() for text, _ in rows}
    assert len(run.golden) == run.metrics["holdout_examples"] == 12
    assert {row["text"] for row in run.golden} <= texts
    assert not deployer.difference(run.golden, answers(run, run.golden))
    assert "golden rows" not in email
    assert decision["told"]["texts cut"] == "60 of 60 (100.0 %), at 16 tokens"
    assert "unknown tokens" in decision["told"]


def test_the_largest_labels_and_texts_fit_what_the_evaluator_reads(fit, judge):
    """512 characters each, of those that take the most in JSON."""
    labels = {"rainy": "\x01" * 510 + "ab", "tasty": "\x01" * 510 + "cd"}
    rows = written([(text + "\x01" * 5000, label) for text, label in make_rows()], **labels)
    run = fit(rows)
    decision, _ = judge(run)
    assert (decision["verdict"], decision["golden_note"]) == ("approved", "")
    assert len(decision["golden"]) == 20
    assert max(len(row["text"]) for row in decision["golden"]) == 512


# ---- rows that were left out


def test_rows_that_were_left_out_reach_the_record_and_the_email(fit, judge):
    rows = make_rows(per_label=100)
    shifted = [(text, "and a comma", label) for text, label in make_rows(per_label=5, start=500)]
    decision, email = judge(fit([*rows, *shifted]))
    assert decision["told"]["rows"] == "210 read, 200 used"
    assert decision["told"]["rows left out"] == "too many fields: 10 (line 202, 203, 204, 205, 206, …)"
    assert "  rows left out  too many fields: 10 (line 202, " in email
    assert "  chosen model   words\n" in email
    assert re.search(r"\n  candidates     words: macro F1 1\.000, log loss 0\.000, \d+ s\n", email)
