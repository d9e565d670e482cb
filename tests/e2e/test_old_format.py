"""Models of the first format, as the training program of commit 2039508 saved them: served, and compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import champion
import inference
import linear
from dataset import Example, write_csv
from test_champion import JOB, Run, make_rows, write_rows
from test_champion import base_model as base_model
from test_champion import fit as fit
from test_champion import pack as pack

torch.set_num_threads(1)

ROWS = make_rows()  # of the labels rainy and tasty
HELD_OUT = [Example(*row) for at, row in enumerate(ROWS) if at % 5 == 0]


def save_format_1(folder: Path, base_model: Path, labels: tuple[str, ...]) -> Any:
    """Write such a model, trained on the rows that are not held out; returns its own answers to texts."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base_model)
    tokenizer.model_max_length = 16
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base_model,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
        dtype=torch.float32,
    ).eval()
    trained = [row for at, row in enumerate(ROWS) if at % 5]

    def encoded(texts: list[str]) -> Any:
        return tokenizer(texts, truncation=True, max_length=16, padding=True, return_tensors="pt")

    with torch.no_grad():
        pooled = model.bert(**encoded([text for text, _ in trained])).pooler_output
    targets = torch.tensor([("rainy", "tasty").index(label) for _, label in trained])
    head = linear.fit_dense(pooled, targets, len(labels), 1.0, 60)
    with torch.no_grad():
        model.classifier.weight.copy_(head.weight.T)
        model.classifier.bias.copy_(head.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_csv(
        folder / "holdout.csv",
        [Example(text, dict(zip(("rainy", "tasty"), labels, strict=False))[label]) for text, label in HELD_OUT],
    )
    (folder / "code").mkdir()
    (folder / "code" / "inference.py").write_text("raise SystemExit('its own code is not run')\n")

    def answers(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return model(**encoded(texts)).logits.softmax(dim=-1)

    return answers


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> tuple[Run, Callable[[list[str]], torch.Tensor]]:
    """The run that wrote such a model, and what the model itself answers."""
    folder = tmp_path_factory.mktemp("old")
    write_rows(folder / "train", ROWS)
    (folder / "model").mkdir()
    return Run(folder), save_format_1(folder / "model", base_model, ("rainy", "tasty"))


@pytest.fixture(scope="module")
def respelt(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Run:
    """The same, with labels in other letters."""
    folder = tmp_path_factory.mktemp("respelt")
    write_rows(folder / "train", [(text, label.upper()) for text, label in ROWS])
    (folder / "model").mkdir()
    save_format_1(folder / "model", base_model, ("RAINY", "TASTY"))
    return Run(folder)


TEXTS = ["rain cloud storm", "soup", "", "snow " * 200, "rice bread the some", "雪"]


def test_it_answers_as_it_did(old: Any) -> None:
    run, own = old
    served = inference.model_fn(run.folder / "model")
    assert served.labels == ("rainy", "tasty")
    assert torch.allclose(served.probabilities(TEXTS), own(TEXTS), atol=1e-5)
    assert torch.allclose(served.probabilities(TEXTS[::-1]), own(TEXTS).flip(0), atol=1e-5)
    best, ranked = (
        inference.predict_fn({"inputs": TEXTS[:2]}, served),
        inference.predict_fn({"inputs": "soup", "parameters": {"top_k": 5}}, served),
    )
    assert [answer["label"] for answer in best] == ["rainy", "tasty"]
    assert [answer["label"] for answer in ranked[0]] == ["tasty", "rainy"]
    assert best[1] == ranked[0][0]


def test_it_is_served_in_a_process_of_its_own_by_todays_code(old: Any) -> None:
    """As after a rollback of the code alone, or of a deployment that carries today's inference.py."""
    run, own = old
    program = (
        "import importlib.util, json, sys\n"
        "sys.modules.update(dict.fromkeys(('sklearn', 'scipy')))\n"
        "spec = importlib.util.spec_from_file_location('inference', sys.argv[1])\n"
        "sys.modules['inference'] = inference = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(inference)\n"
        "print(json.dumps(inference.predict_fn(json.loads(sys.argv[3]), inference.model_fn(sys.argv[2]))))\n"
    )
    request = json.dumps({"inputs": TEXTS})
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, inference.__file__, str(run.folder / "model"), request],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    scores = [answer["score"] for answer in json.loads(done.stdout)]
    assert scores == pytest.approx(own(TEXTS).max(dim=-1).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("candidates", ["words", "frozen", "fine-tuned"])
def test_a_new_model_is_compared_with_it(fit: Any, old: Any, candidates: str) -> None:
    live, own = old
    new = fit(ROWS, live=live, candidates=candidates)
    assert (new.champion["status"], new.champion["compared"], new.champion["note"]) == ("compared", True, "")
    assert new.champion["kept"] == 1
    judged = new.sets()["hold-out of the live model"]
    assert judged["rows"] == len(HELD_OUT) == 48
    found = own([example.text for example in HELD_OUT]).argmax(dim=-1).tolist()
    right = sum(("rainy", "tasty")[at] == example.label for at, example in zip(found, HELD_OUT, strict=True))
    assert judged["live"]["accuracy"] == pytest.approx(right / 48)
    assert judged["live"]["accuracy"] > 0.9
    # What it was judged on, nobody trains on.
    assert {*HELD_OUT} <= {*new.holdout}


@pytest.mark.parametrize("candidates", ["words", "frozen"])
def test_it_is_compared_with_a_live_model_of_today(fit: Any, old: Any, candidates: str, tmp_path: Path) -> None:
    """The other way round, as when an old model would replace a new one."""
    run, _ = old
    live = fit(ROWS, candidates=candidates)
    (tmp_path / "channel").mkdir()
    pack(live.folder / "model", tmp_path / "channel" / "model.tar.gz")
    columns, labels = ("text", "label"), ["rainy", "tasty"]
    found = champion.read_champion(
        JOB, tmp_path / "channel", live.folder / "train", tmp_path / "unpacked", columns, labels
    )
    assert (found.labels, found.status, len(found.holdout)) == (("rainy", "tasty"), "compared", 48)
    challenger = inference.model_fn(run.folder / "model")
    comparison = champion.compare(found, challenger, labels, [Example(*row) for row in ROWS], live.holdout)
    assert (comparison["status"], comparison["compared"]) == ("compared", True)
    judged = {each["name"]: each for each in comparison["sets"]}["hold-out of the live model"]
    assert judged["live"]["accuracy"] == pytest.approx(live.metrics["accuracy"])
    assert judged["new"] == champion.figures(live.holdout, champion.answer(challenger, live.holdout))


def test_its_labels_in_another_spelling_are_compared_as_its_own(fit: Any, respelt: Run) -> None:
    new = fit(ROWS, live=respelt)
    assert (new.champion["status"], new.champion["compared"]) == ("respelt labels", True)
    assert new.champion["respelt"] == '"rainy" for "RAINY", "tasty" for "TASTY"'
    judged = new.sets()["hold-out of the live model"]
    assert judged["live"]["accuracy"] > 0.9
    assert judged["new"]["accuracy"] > 0.9
    assert {*HELD_OUT} <= {*new.holdout}


def test_a_new_models_labels_in_another_spelling_are_compared_as_its_own(
    fit: Any, respelt: Run, tmp_path: Path
) -> None:
    live = fit(ROWS)
    (tmp_path / "channel").mkdir()
    pack(live.folder / "model", tmp_path / "channel" / "model.tar.gz")
    columns, labels = ("text", "label"), ["RAINY", "TASTY"]
    found = champion.read_champion(JOB, tmp_path / "channel", None, tmp_path / "unpacked", columns, labels)
    assert found.respelt == {"RAINY": "rainy", "TASTY": "tasty"}
    comparison = champion.compare(found, inference.model_fn(respelt.folder / "model"), labels, [], [])
    assert comparison["status"] == "respelt labels"
    [judged] = comparison["sets"]
    assert judged["new"]["accuracy"] > 0.9


def test_more_than_ten_labels_stay_in_their_order(tmp_path: Path) -> None:
    """In JSON, they are keyed by text: 10 comes before 2 where somebody sorted them."""
    names = [f"label {at}" for at in range(12)]
    keyed = dict(sorted((str(at), name) for at, name in enumerate(names)))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": keyed}))
    assert inference.read_labels(tmp_path) == tuple(names)
