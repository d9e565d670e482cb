"""The ladder of candidates, climbed for real with a base model of a few thousand weights."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import base_model
import fine_tuned
import frozen
import inference
import ladder
import linear
import tiny_model
import train
import words
from base_model import Source
from dataset import Example

# Two threads that wait for each other are slower than one at this size, far slower on a busy machine.
torch.set_num_threads(1)

LABELS = ("sky", "food", "ride")
ALL = frozenset(ladder.NAMES)


def make_rows(per_label: int = 20, wrong: float = 0.0) -> list[Example]:
    """Rows that can be learnt, no text twice, a share of them with a wrong label."""
    chance = random.Random(3)
    return [
        Example(
            " ".join(chance.choices(own, k=3) + chance.choices(tiny_model.WORDS[3], k=3)) + f" {at}",
            chance.choice(LABELS) if chance.random() < wrong else label,
        )
        for at in range(per_label)
        for label, own in zip(LABELS, tiny_model.WORDS, strict=False)
    ]


@pytest.fixture(autouse=True)
def one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster of two is measured, which comes out one way or the other."""
    monkeypatch.setattr(fine_tuned, "faster_precision", lambda *_: None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_tiny_model(tmp_path_factory.mktemp("base_model"))


@pytest.fixture(scope="session")
def encoder(folder: Path) -> inference.Encoder:
    return base_model.load(Source(str(folder)), 16, None, lambda _: None)


@dataclass
class Climb:
    """Climbs the ladder; what it says is in lines."""

    encoder: inference.Encoder
    epochs: int = 1
    rate: float = 5e-3
    lines: list[str] = field(default_factory=list)

    def __call__(self, rows: Sequence[Example], candidates: str, **settings: Any) -> ladder.Outcome:
        task = ladder.Task(
            rows,
            sorted({row.label for row in rows}),
            ALL if candidates == "auto" else frozenset(candidates.split(",")),
            lambda: self.encoder,
            lambda precision: fine_tuned.Plan(self.epochs, self.rate, 8, 42, precision),
            math.inf,
            0,
            None,
            self.lines.append,
        )
        return ladder.climb(replace(task, **settings))


@pytest.fixture
def climb(encoder: inference.Encoder) -> Climb:
    return Climb(encoder)


@pytest.fixture
def job(tmp_path: Path, folder: Path) -> Callable[..., dict[str, str]]:
    """The environment of a training job, in a folder of its own."""
    numbers = itertools.count()

    def make(rows: Sequence[Example], holdout: Sequence[Example] = (), **settings: str) -> dict[str, str]:
        own = tmp_path / f"job{next(numbers)}"
        channels = {"train": rows} | ({"test": holdout} if holdout else {})
        for name, content in channels.items():
            (own / name).mkdir(parents=True)
            with (own / name / "data.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([Example._fields, *content])
        return {
            **{f"SM_CHANNEL_{name.upper()}": str(own / name) for name in channels},
            "SM_MODEL_DIR": str(own / "model"),
            "SM_OUTPUT_DATA_DIR": str(own / "output"),
            "SM_OUTPUT_DIR": str(own),
            "BASE_MODEL": str(folder),
            "TEXT_COLUMN": "text",
            "LABEL_COLUMN": "label",
            **settings,
        }

    return make


def run(environment: dict[str, str]) -> dict[str, Any]:
    """Run the program; returns its metrics."""
    arguments = ["--epochs", "1", "--learning_rate", "5e-3", "--batch_size", "8", "--max_length", "16"]
    status = train.main(arguments, environment)
    assert status == 0, (Path(environment["SM_OUTPUT_DIR"]) / "failure").read_text(encoding="utf-8")
    metrics: dict[str, Any] = json.loads((Path(environment["SM_OUTPUT_DATA_DIR"]) / "metrics.json").read_text("utf-8"))
    return metrics


# --- what is served is what was trained -------------------------------------------------------------

ODD = [
    "",
    " ",
    "a",
    "☃",
    "rain\x00",
    "雪が降る",
    "Straße İstanbul",
    "snow " * 3000,
    "x" * 30_000,
    "rain bread tram " * 9,
]
# Reads only the folders of the models, each with its own code, where what the serving image may lack is not there.
SERVE = """
import importlib.util, json, sys
sys.modules.update(dict.fromkeys(("sklearn", "scipy", "transformers", "train", "ladder", "linear")))
folders, texts = json.load(sys.stdin)
found = {}
for name, folder in folders.items():
    if name != "words":
        sys.modules.pop("transformers", None)  # a model of words alone starts without it
    spec = importlib.util.spec_from_file_location("inference", folder + "/code/inference.py")
    sys.modules["inference"] = inference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inference)
    model = inference.model_fn(folder)
    turned, threes = texts[::-1], [texts[at : at + 3] for at in range(0, len(texts), 3)]
    found[name] = {
        "together": model.probabilities(texts).tolist(),
        "turned": model.probabilities(turned).tolist()[::-1],
        "alone": [model.probabilities([text]).tolist()[0] for text in texts],
        "in threes": [row for some in threes for row in model.probabilities(some).tolist()],
        "best": inference.predict_fn({"inputs": texts, "parameters": {"top_k": 9}}, model),
    }
assert not {"sklearn", "scipy"} & {name for name, module in sys.modules.items() if module}
print(json.dumps(found))
"""
KINDS = ("words", "frozen", "fine-tuned", "words and frozen", "words and fine-tuned", "8 bits", "words and 8 bits")


@pytest.fixture(scope="module")
def served(
    encoder: inference.Encoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[inference.Classifier, dict[str, Any]]]:
    """By kind: the trained model, and what the saved one answers in another process."""
    climb, rows = Climb(encoder), make_rows()
    found: dict[str, inference.Classifier] = {}
    for name in ("words", "frozen", "fine-tuned"):
        found[name] = climb(rows, name).classifier
    for name in ("frozen", "fine-tuned"):
        members = [found[one].members[0] for one in ("words", name)]
        found[f"words and {name}"] = inference.Classifier(LABELS, members, [0.3, 0.7], [0.8, 1.3])
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    for name, of in (("8 bits", "frozen"), ("words and 8 bits", "words and frozen")):
        found[name] = found[of]
    for name in KINDS:
        train.save(found[name], folders[name])
        if "8 bits" in name:
            details = json.loads((folders[name] / "model.json").read_text())
            train.write_details({**details, "int8": True}, folders[name])
            found[name] = inference.model_fn(folders[name])
    texts = ODD + [row.text for row in rows]
    done = subprocess.run(
        [sys.executable, "-I", "-c", SERVE],
        input=json.dumps([{name: str(folder) for name, folder in folders.items()}, texts]),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {name: (found[name], answers[name]) for name in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_answers_as_the_trained_one_in_a_process_that_has_only_its_folder(
    served: dict[str, Any], kind: str
) -> None:
    trained, answers = served[kind]
    texts = ODD + [row.text for row in make_rows()]
    expected = trained.probabilities(texts)
    assert expected.sum(dim=-1).tolist() == pytest.approx([1] * len(texts), abs=1e-5)
    assert (torch.tensor(answers["together"]) - expected).abs().max() <= 1e-5
    assert not torch.allclose(expected[:5], expected[-5:], atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_texts_answer_does_not_depend_on_the_texts_beside_it(served: dict[str, Any], kind: str) -> None:
    _, answers = served[kind]
    for way in ("turned", "alone", "in threes"):
        assert (torch.tensor(answers[way]) - torch.tensor(answers["together"])).abs().max() <= 1e-5, way


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_the_labels_by_their_probability(served: dict[str, Any], kind: str) -> None:
    trained, answers = served[kind]
    for ranked, probabilities in zip(answers["best"], answers["together"], strict=True):
        expected = sorted(zip(probabilities, trained.labels, strict=True), reverse=True)
        assert [(one["score"], one["label"]) for one in ranked] == [
            (pytest.approx(score, abs=1e-6), label) for score, label in expected
        ]


# --- 8-bit integers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen_model(encoder: inference.Encoder) -> inference.Classifier:
    return Climb(encoder)(make_rows(), "frozen").classifier


def try_int8(
    model: inference.Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float]
) -> tuple[inference.Classifier, dict[str, Any] | None, dict[str, Any]]:
    """Try it where an answer takes so many seconds, without and with it. Also returns what model.json says."""
    now, times = 0.0, itertools.count()

    def perf_counter() -> float:
        nonlocal now
        at = next(times)  # start and end of an answer without, start and end of one with
        now += seconds[at % 4 // 2] if at % 2 else 0
        return now

    train.save(model, folder)
    served = inference.model_fn(folder)
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=perf_counter))
    found, facts = train.try_int8(served, folder, make_rows())
    return found, facts, json.loads((folder / "model.json").read_text(encoding="utf-8"))


def test_8_bits_are_served_where_they_answer_alike_and_faster(
    frozen_model: inference.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, facts, details = try_int8(frozen_model, tmp_path, monkeypatch, (0.010, 0.004))
    assert facts == {"served": True, "changed": 0, "milliseconds": 4, "milliseconds_before": 10}
    assert details["int8"] is found.details["int8"] is True
    layers = {type(layer).__module__ for layer in inference.model_fn(tmp_path).members[0].encoder.model.modules()}
    assert any("quantized" in name for name in layers)


@pytest.mark.parametrize("after", [0.0091, 0.010, 0.02])
def test_8_bits_that_are_hardly_faster_are_not_served(
    frozen_model: inference.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: float
) -> None:
    found, facts, details = try_int8(frozen_model, tmp_path, monkeypatch, (0.010, after))
    assert facts is not None
    assert facts["served"] is details["int8"] is found.details["int8"] is False
    texts = [row.text for row in make_rows()]
    assert torch.allclose(found.probabilities(texts), frozen_model.probabilities(texts), atol=1e-5)


def test_8_bits_that_answer_otherwise_are_not_served(
    frozen_model: inference.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(encoder: inference.Encoder) -> None:
        with torch.no_grad():
            encoder.model.get_input_embeddings().weight.neg_()

    monkeypatch.setattr(inference, "quantize", spoil)
    _, facts, details = try_int8(frozen_model, tmp_path, monkeypatch, (0.010, 0.001))
    assert facts is not None
    assert facts["changed"] > train.INT8_MAX_CHANGED
    assert facts["served"] is details["int8"] is False


def test_a_model_of_words_alone_has_nothing_to_put_into_8_bits(
    encoder: inference.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Climb(encoder)(make_rows(), "words").classifier
    _, facts, details = try_int8(model, tmp_path, monkeypatch, (0.010, 0.001))
    assert (facts, details["int8"]) == (None, False)


# --- the hold-out judges, and chooses nothing -------------------------------------------------------


@pytest.mark.parametrize("candidates", ["auto", "words,blend", "fine-tuned"])
def test_the_holdouts_labels_change_nothing_in_the_model(
    job: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, candidates: str
) -> None:
    monkeypatch.setattr(train, "INT8_LEAST_GAIN", -math.inf)  # its speed is measured; else it may be served
    rows = make_rows(per_label=30, wrong=0.1)
    train_rows, holdout = rows[:60], rows[60:]
    other = dict(zip(LABELS, LABELS[1:] + LABELS[:1], strict=True))
    runs = {}
    for which, shown in {
        "right": holdout,
        "wrong": [Example(text, other[label]) for text, label in holdout],
    }.items():
        environment = job(train_rows, shown, CANDIDATES=candidates)
        metrics = run(environment)
        judged = {"holdout.csv", "golden.json", "metrics.json"}
        saved = {
            path.name: path.read_bytes() for path in Path(environment["SM_MODEL_DIR"]).rglob("*") if path.is_file()
        }
        table = [{**row, "seconds": None} for row in metrics["candidates"]]
        int8 = metrics["int8"] and {name: metrics["int8"][name] for name in ("served", "changed")}
        runs[which] = {name: saved[name] for name in saved.keys() - judged}, table, int8
        accuracy = metrics["accuracy"]
        assert accuracy > 0.6 if which == "right" else accuracy < 0.4
    assert runs["right"] == runs["wrong"]


# --- the candidates that a person allows ------------------------------------------------------------

SOME = [",".join(names) for size in (1, 2, 3) for names in itertools.combinations(ladder.NAMES, size)]


@pytest.mark.parametrize("candidates", SOME)
def test_only_what_is_allowed_is_chosen(climb: Climb, monkeypatch: pytest.MonkeyPatch, candidates: str) -> None:
    loaded = []
    fitted = []
    monkeypatch.setattr(words.WordsCandidate, "fit", noted(words.WordsCandidate.fit, fitted))
    climb.encoder = inference.Encoder(climb.encoder.tokenizer, climb.encoder.model)
    task_encoder = climb.encoder

    outcome = climb(make_rows(per_label=10, wrong=0.2), candidates, encoder=lambda: loaded.append(1) or task_encoder)
    allowed = set(candidates.split(","))
    assert outcome.chosen.name in allowed
    assert {row["name"] for row in outcome.table if row["members"]} <= allowed
    assert [row["name"] for row in outcome.table if row["chosen"]] == [outcome.chosen.name]
    assert bool(loaded) == (allowed != {"words"})
    assert bool(fitted) == bool({"words", "blend"} & allowed)
    kinds = [type(member).__name__ for member in outcome.classifier.members]
    assert kinds == ["WordsMember" if name == "words" else "EncoderMember" for name in outcome.chosen.members]


def noted(method: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """A method that notes its calls."""

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return method(*arguments, **named)

    return call


@pytest.mark.parametrize("candidates", ["wordz", "words,", "words, frozen", "Words", "auto,words"])
def test_a_candidate_that_there_is_none_of_is_named(job: Callable[..., dict[str, str]], candidates: str) -> None:
    environment = job(make_rows(), CANDIDATES=candidates)
    assert train.main([], environment) == 1
    reason = (Path(environment["SM_OUTPUT_DIR"]) / "failure").read_text(encoding="utf-8")
    [unknown] = {*candidates.split(",")} - {*ladder.NAMES}
    assert reason == (
        f"CANDIDATES has {unknown!r}: it must be auto, or some of words, frozen, fine-tuned, blend, with commas "
        "between. Correct it in Terraform or in settings.json."
    )


# --- the time limit ---------------------------------------------------------------------------------


class Clock:
    """A clock that goes on only where the work of a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.per_text = self.per_step = 0.0  # seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The ladder's clock, which embedding and fine-tuning take time by."""
    clock, embed, fine_tune = Clock(), frozen.embed, fine_tuned.fine_tune

    def slow_embed(encoder: Any, texts: Sequence[str], *others: Any) -> torch.Tensor:
        clock.now += clock.per_text * len(texts)
        return embed(encoder, texts, *others)

    def slow_fine_tune(
        base: Any, head: Any, texts: Any, targets: Any, plan: Any, after_leg: Any, resume: Any = None
    ) -> Any:
        before = resume[0] if resume else 0

        def after_slow_leg(done: int, member: Any) -> bool:
            nonlocal before
            clock.now += clock.per_step * (done - before)
            before = done
            return bool(after_leg(done, member))

        return fine_tune(base, head, texts, targets, plan, after_slow_leg, resume)

    monkeypatch.setattr(ladder, "time", clock)
    monkeypatch.setattr(frozen, "embed", slow_embed)
    monkeypatch.setattr(fine_tuned, "fine_tune", slow_fine_tune)
    return clock


ROWS = make_rows(per_label=40)
# Two folds are tried: runs of 36 steps, in legs that end after 9, 16, 22, 29 and 36; the last run has 45.
BOTH_FOLDS = 2 * 36 + 45


@pytest.fixture
def weak_heads(climb: Climb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words and the frozen encoder learn next to nothing, so that fine-tuning is worth its time."""
    climb.epochs = 3
    for module in (words, frozen):
        monkeypatch.setattr(module, "STRENGTHS", (1e-6,))
    monkeypatch.setattr(ladder, "FINE_TUNED_JUDGED_ROWS", 30)  # 24 in a fold


def notes(outcome: ladder.Outcome) -> dict[str, str]:
    return {row["name"]: row["note"] for row in outcome.table if row["note"]}


def test_without_a_limit_the_best_is_fine_tuned_here(climb: Climb, weak_heads: None) -> None:
    outcome = climb(ROWS, "words,frozen,fine-tuned")
    assert (outcome.chosen.name, notes(outcome)) == ("fine-tuned", {})


def test_an_encoder_that_would_take_too_long_is_left_out_and_said(climb: Climb, clock: Clock) -> None:
    clock.per_text = 2.0
    outcome = climb(ROWS, "auto", deadline=400.0)
    assert (outcome.chosen.name, outcome.chosen.members) == ("words", ["words"])
    assert notes(outcome) == {
        "frozen": "left out: its 120 texts would take about 4 minutes",
        "fine-tuned": "left out: it starts from the frozen candidate, which was left out",
    }
    assert "frozen: left out: its 120 texts would take about 4 minutes" in climb.lines


def test_time_is_kept_for_the_texts_that_the_chosen_model_has_yet_to_answer(climb: Climb, clock: Clock) -> None:
    clock.per_text = 1.0
    enough = 60 + 1 + 60 / ladder.MARGIN + 1
    assert notes(climb(make_rows(), "words,frozen", deadline=clock.now + enough)) == {}
    left_out = climb(make_rows(), "words,frozen", deadline=clock.now + enough, texts_after=10)
    assert "frozen" in notes(left_out)


def test_fine_tuning_that_would_take_too_long_is_given_up_and_said(
    climb: Climb, clock: Clock, weak_heads: None
) -> None:
    clock.per_step = 10.0
    outcome = climb(ROWS, "words,frozen,fine-tuned", deadline=1000.0)
    assert outcome.chosen.name in ("words", "frozen")
    assert notes(outcome) == {"fine-tuned": "given up after 9 of 36 steps: it would take 18 minutes more"}
    enough = 1.3 * BOTH_FOLDS * clock.per_step
    assert climb(ROWS, "words,frozen,fine-tuned", deadline=clock.now + enough).chosen.name == "fine-tuned"


def test_fine_tuning_alone_that_would_take_too_long_leaves_what_it_starts_from(
    climb: Climb, clock: Clock, weak_heads: None
) -> None:
    clock.per_step = 10.0
    outcome = climb(ROWS, "fine-tuned", deadline=1000.0)
    assert outcome.chosen.name == "frozen"
    assert notes(outcome) == {"fine-tuned": "given up after 9 of 36 steps: it would take 18 minutes more"}


def test_where_the_last_run_is_late_the_model_of_a_fold_is_served_and_said(
    climb: Climb, clock: Clock, weak_heads: None
) -> None:
    clock.per_step = 10.0
    say = climb.lines.append

    def slower(line: str) -> None:
        if line.endswith("on all rows"):
            clock.now += 5000
        say(line)

    outcome = climb(ROWS, "words,frozen,fine-tuned", deadline=1600.0, say=slower)
    assert outcome.chosen.name == "fine-tuned"
    assert notes(outcome) == {"fine-tuned": "trained on 80 % of the rows: time ran out"}
    found = outcome.classifier.probabilities([row.text for row in ROWS]).argmax(dim=-1)
    right = sum(sorted(LABELS)[at] == row.label for at, row in zip(found.tolist(), ROWS, strict=True))
    assert right > 100


def test_heads_are_fitted_on_the_rows_that_time_suffices_for_and_said(climb: Climb, clock: Clock) -> None:
    rows = make_rows(per_label=100)
    outcome = climb(rows, "words", deadline=0.01)
    [row] = outcome.table
    fitted = int(row["note"].split()[5])
    assert 3 < fitted < 200
    assert row["note"] == f"its head is fitted on {fitted:,} of 300 rows, to save time and memory"
    assert f"words: {row['note']}" in climb.lines
    assert row["macro_f1"] > 0.9


def test_a_limit_that_is_over_at_once_still_ends_with_a_judged_model(job: Callable[..., dict[str, str]]) -> None:
    environment = job(make_rows(), MAX_RUNTIME_SECONDS="1")
    metrics = run(environment)
    assert metrics["accuracy"] > 0.5
    assert (Path(environment["SM_MODEL_DIR"]) / "model.json").is_file()


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "nan", "inf"])
def test_a_limit_that_is_none_is_named(job: Callable[..., dict[str, str]], limit: str) -> None:
    environment = job(make_rows(), MAX_RUNTIME_SECONDS=limit)
    assert train.main([], environment) == 1
    reason = (Path(environment["SM_OUTPUT_DIR"]) / "failure").read_text(encoding="utf-8")
    assert reason == (
        f"MAX_RUNTIME_SECONDS must be a number from 1 to 1e+09, not '{limit}', in seconds. Correct it in Terraform."
    )


# --- what cannot be fitted --------------------------------------------------------------------------


def test_fine_tuning_that_diverges_is_left_out_and_said(
    climb: Climb, monkeypatch: pytest.MonkeyPatch, weak_heads: None
) -> None:
    monkeypatch.setattr(climb, "rate", 1e6)
    outcome = climb(make_rows(), "frozen,fine-tuned")
    assert outcome.chosen.name == "frozen"
    assert notes(outcome) == {"fine-tuned": "left out: its loss became nan. Lower learning_rate (now 1e+06)"}


def test_fine_tuning_alone_that_diverges_leaves_what_it_starts_from_and_says_why(
    job: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fine_tuned.fine_tune

    def fine_tune(base: Any, head: Any, texts: Any, targets: Any, plan: Any, *others: Any) -> Any:
        return real(base, head, texts, targets, replace(plan, learning_rate=1e6), *others)

    monkeypatch.setattr(fine_tuned, "fine_tune", fine_tune)
    metrics = run(job(make_rows(), CANDIDATES="fine-tuned"))
    assert metrics["told"]["chosen model"] == "frozen"
    assert metrics["told"]["candidates"].endswith("left out: its loss became nan. Lower learning_rate (now 0.005)")


def test_an_encoder_whose_vectors_are_no_numbers_is_left_out_and_said(
    climb: Climb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some texts only: with others it was tried before."""
    real = frozen.embed

    def embed(encoder: Any, texts: Sequence[str], *others: Any) -> torch.Tensor:
        found = real(encoder, texts, *others)
        found[[row for row, text in enumerate(texts) if text.endswith(" 7")]] = math.nan
        return found

    monkeypatch.setattr(frozen, "embed", embed)
    outcome = climb(make_rows(), "auto")
    assert outcome.chosen.name == "words"
    assert notes(outcome)["frozen"].startswith("left out: ")
    with pytest.raises(ladder.NoCandidate, match="frozen: left out: "):
        climb(make_rows(), "frozen")


# --- interruptions ----------------------------------------------------------------------------------


class Interrupted(BaseException):
    """The instance is taken away."""


@dataclass
class Work:
    """What was computed."""

    sparse_fits: int = 0
    dense_fits: int = 0
    steps: int = 0
    texts: int = 0

    def __sub__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work, fit, embed, clip = Work(), linear.fit, frozen.embed, torch.nn.utils.clip_grad_norm_

    def counted_fit(features: torch.Tensor, *others: Any) -> inference.Head:
        if features.layout == torch.sparse_csr:
            work.sparse_fits += 1
        else:
            work.dense_fits += 1
        return fit(features, *others)

    def counted_embed(encoder: Any, texts: Sequence[str], *others: Any) -> torch.Tensor:
        work.texts += len(texts)
        return embed(encoder, texts, *others)

    def counted_clip(*arguments: Any) -> torch.Tensor:
        work.steps += 1
        return clip(*arguments)

    monkeypatch.setattr(linear, "fit", counted_fit)
    monkeypatch.setattr(frozen, "embed", counted_embed)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counted_clip)
    return work


def interrupt(monkeypatch: pytest.MonkeyPatch, after: str, times: int = 1) -> None:
    """The instance is taken away once that checkpoint was written so many times."""
    write, seen = ladder.Checkpoints.write, []

    def write_and_go(self: ladder.Checkpoints, name: str, *others: Any) -> None:
        write(self, name, *others)
        seen.append(name)
        if seen.count(after) == times:
            raise Interrupted

    monkeypatch.setattr(ladder.Checkpoints, "write", write_and_go)


def compared(outcome: ladder.Outcome) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in outcome.table]


# Of the sample that the speed is measured on, and of one text for the width.
MEASURED = len(ROWS) + 1
# After a run that was finished before, its fold is answered once more.
JUDGED_AGAIN = 24
# After which checkpoint, and how many times it was written.
MOMENTS = {
    "after words": ("words", 1),
    "after the frozen encoder": ("frozen", 1),
    "in a fold's run": ("fine-tuned-0", 2),
    "in another fold's run": ("fine-tuned-1", 1),
    "after fine-tuning": ("fine-tuned", 1),
    "in the last run": ("fine-tuned-all", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_run_goes_on_where_it_was(
    climb: Climb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak_heads: None, work: Work, moment: str
) -> None:
    whole = climb(ROWS, "words,frozen,fine-tuned", checkpoints=tmp_path / "whole")
    of_whole = replace(work)
    name, times = MOMENTS[moment]
    with monkeypatch.context() as patched:
        interrupt(patched, name, times)
        with pytest.raises(Interrupted):
            climb(ROWS, "words,frozen,fine-tuned", checkpoints=tmp_path / "own")
    before = replace(work) - of_whole
    outcome = climb(ROWS, "words,frozen,fine-tuned", checkpoints=tmp_path / "own")
    after = replace(work) - of_whole - before

    assert outcome.chosen.name == whole.chosen.name == "fine-tuned"
    # No step, and no fit of words, is done twice; of the frozen encoder, no text.
    assert before.steps + after.steps == of_whole.steps == BOTH_FOLDS
    assert before.sparse_fits == of_whole.sparse_fits > after.sparse_fits == 0
    if moment != "after words":
        assert before.texts + after.texts <= of_whole.texts + MEASURED + JUDGED_AGAIN
    for row, of_row in zip(compared(outcome), compared(whole), strict=True):
        if row["name"] == "fine-tuned":
            # The optimizer's state is not kept.
            assert row["macro_f1"] == pytest.approx(of_row["macro_f1"], abs=0.05)
            assert row["log_loss"] == pytest.approx(of_row["log_loss"], abs=0.1)
        else:
            assert row == of_row
    if moment in ("after words", "after the frozen encoder"):
        assert compared(outcome) == compared(whole)


def test_nothing_is_computed_again_once_all_is_done(climb: Climb, tmp_path: Path, weak_heads: None, work: Work) -> None:
    first = climb(ROWS, "words,frozen,fine-tuned", checkpoints=tmp_path)
    before = replace(work)
    again = climb(ROWS, "words,frozen,fine-tuned", checkpoints=tmp_path)
    assert replace(work) - before == Work(texts=MEASURED)
    assert compared(again) == compared(first)
    texts = [row.text for row in ROWS]
    assert torch.equal(again.classifier.probabilities(texts), first.classifier.probabilities(texts))


@pytest.mark.parametrize("damage", ["half of it", "nothing", "another kind of file", "tensors alone"])
def test_a_checkpoint_that_cannot_be_read_is_computed_again(climb: Climb, tmp_path: Path, damage: str) -> None:
    rows = make_rows()
    first = climb(rows, "words,frozen", checkpoints=tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        content = path.read_bytes()
        path.unlink()
        if damage == "tensors alone":
            ladder.save_file({"scores": torch.zeros(2, 2)}, path)
        else:
            path.write_bytes({"half of it": content[: len(content) // 2], "nothing": b""}.get(damage, b"PK" * 900))
    assert compared(climb(rows, "words,frozen", checkpoints=tmp_path)) == compared(first)


def test_what_was_half_written_is_no_checkpoint(climb: Climb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = climb(make_rows(), "words,frozen")

    def save_half(tensors: Any, path: Path, facts: Any) -> None:
        path.write_bytes(b"half")
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(ladder, "save_file", save_half)
        with pytest.raises(Interrupted):
            climb(make_rows(), "words,frozen", checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".words"]
    assert compared(climb(make_rows(), "words,frozen", checkpoints=tmp_path)) == compared(expected)


def test_the_seconds_of_interrupted_runs_count(
    climb: Climb, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak_heads: None
) -> None:
    clock.per_step = 10.0
    with monkeypatch.context() as patched:
        interrupt(patched, "fine-tuned-0", 2)
        with pytest.raises(Interrupted):
            climb(ROWS, "words,frozen,fine-tuned", checkpoints=tmp_path / "kept")
    assert clock.now == 160
    # At the next leg there are 95 steps to do. Of the limit, 60 seconds are used; and the 160 before.
    enough = 950 / ladder.MARGIN + 60
    for limit, chosen in ((enough + 100, "frozen"), (enough + 170, "fine-tuned")):
        shutil.copytree(tmp_path / "kept", tmp_path / chosen)
        clock.now = 0  # another instance
        outcome = climb(ROWS, "frozen,fine-tuned", deadline=limit, checkpoints=tmp_path / chosen)
        assert outcome.chosen.name == chosen


def test_a_finished_rung_is_not_left_out_where_little_time_remains(
    climb: Climb, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "STRENGTHS", (1e-6,))
    clock.per_text = 1.0
    first = climb(make_rows(), "words,frozen", deadline=200.0, checkpoints=tmp_path)
    assert first.chosen.name == "frozen"
    clock.now = 0  # another instance, with 200 - 121 seconds: too few to embed the texts once more
    again = climb(make_rows(), "words,frozen", deadline=200.0, checkpoints=tmp_path)
    assert again.chosen.name == "frozen"
    assert compared(again) == compared(first)


def test_a_job_keeps_what_is_finished_in_the_folder_that_outlives_it(
    job: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = job(make_rows(), CHECKPOINT_DIR=str(tmp_path / "kept"), CANDIDATES="words,frozen")
    with monkeypatch.context() as patched:
        interrupt(patched, "frozen")
        with pytest.raises(Interrupted):
            run(environment)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert kept.keys() == {"words.safetensors", "frozen.safetensors"}
    assert not any(row.text.encode() in content for row in make_rows() for content in kept.values())
    assert run(environment)["accuracy"] > 0.9
