"""The live model beside the new one: both answer the same rows, so that their figures can be compared.

Figures from different hold-outs do not say which model is better, and a small or stale upload has a hold-out
as small and stale as itself. So every model's archive carries holdout.csv, the rows that it and the models before it
were judged on; nobody trains on them, and the next model must do as well on them as the live one.

A few hundred rows cannot separate two models by half a point: which of them answers a few rows better is chance. So
the differences come with their standard errors, and with the share of the live model's training rows that the new one
had as well: a model with more of the same data is expected to be no worse, any other has to prove it.
"""

import json
import math
import random
import re
import statistics
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import inference
from dataset import DataError, Example, listed_names, one_label_per_text, read_channel, read_csv, spread
from metrics import classification_metrics

HOLDOUT_FILE = "holdout.csv"
HOLDOUT_MAX_ROWS = 5000
MIN_ROWS = 20  # with fewer, a single row is worth five points or more
NEW_HOLDOUT = "new hold-out"
LIVE_HOLDOUT = "hold-out of the live model"
# A label that a model does not know has the probability 0, whose logarithm is infinite.
LEAST_PROBABILITY = 1e-7
# What came of the comparison: the model evaluator holds a new model back unless it was compared.
COMPARED = "compared"
NO_SHARED_LABEL = "no shared label"
NOT_LOADED = "cannot be loaded"
NOT_READ = "cannot be read"
TOO_FEW_ROWS = "too few rows"
# What is unpacked of a live model's archive: data, beside its folders. Its code stays in it.
ARCHIVE_FILE = re.compile(r"(\./)?(holdout\.csv|\w[\w.-]*\.(json|model|safetensors|txt))")
ARCHIVE_MAX_MEMBERS = 1000  # an archive of ours has about ten
ARCHIVE_MAX_BYTES = 20 * 1024**3  # unpacked: four times the largest model that fits a serverless endpoint's disk (5 GB)
NOTE_MAX_CHARACTERS = 1000
LABEL_CHARACTERS = 40  # of a label in a note
RESAMPLES = 200  # of the rows: a standard error to a twentieth of itself


class Answer(NamedTuple):
    """A model's answer to one labelled text."""

    label: str
    loss: float  # negative natural logarithm of the true label's probability


@dataclass(frozen=True)
class Champion:
    """The live model, or as much of it as can be read."""

    job: str
    folder: Path  # its unpacked archive
    labels: tuple[str, ...] = ()
    holdout: tuple[Example, ...] = ()  # what it was judged on, each text once
    trained_on: frozenset[Example] | None = None  # None when that is not known
    status: str = COMPARED  # or NOT_READ, NO_SHARED_LABEL
    problem: str = ""  # why it is not compared with; a sentence

    @property
    def held_out(self) -> frozenset[str]:
        """The texts that nobody trains on."""
        return frozenset(example.text for example in self.holdout)


def read_champion(
    job: str, channel: Path, data: Path | None, folder: Path, columns: tuple[str, str], labels: Collection[str]
) -> Champion:
    """Unpack the live model's archive into a folder and read what is beside the weights.

    channel: the folder with its model.tar.gz; data: the one with the CSV that it was trained on, columns: text and
    label in that; labels: those of the upload. What cannot be read is a `problem`, not an error: a broken live model
    is no reason to keep it.
    """
    champion = Champion(job, folder)
    try:
        unpack(channel / "model.tar.gz", folder)
        config = json.loads((folder / "config.json").read_bytes())
        known = tuple(str(label) for label in config["id2label"].values())
        holdout: list[Example] = []
        if (folder / HOLDOUT_FILE).is_file():
            holdout = read_csv(folder / HOLDOUT_FILE)
    except Exception as error:  # noqa: BLE001 - a dozen types for one condition, and none may stop the job
        return replace(champion, status=NOT_READ, problem=f"The live model cannot be read ({_words(error)}).")
    if not set(known) & set(labels):
        problem = f"The live model has none of these labels, only {_listed(known)}: this is a new task."
        return replace(champion, status=NO_SHARED_LABEL, problem=problem)

    champion = replace(champion, labels=known, holdout=tuple(one_label_per_text(holdout)))
    if data is None:
        return champion
    try:
        examples, _ = read_channel(data, *columns)
    except DataError:
        return champion  # the columns' names are a setting, and may have been different then
    held_out = champion.held_out
    return replace(champion, trained_on=frozenset(example for example in examples if example.text not in held_out))


def unpack(path: Path, folder: Path) -> None:
    """Unpack what is read of a live model's archive: regular files at its root, of the kinds that hold data.

    Raises ValueError when the archive is larger than a model can be, and what tarfile raises when it is none.
    """
    size = 0
    with tarfile.open(path, "r:gz") as archive:
        for number, member in enumerate(archive, 1):
            # What is passed over is decompressed as well.
            size += abs(member.size)
            if number > ARCHIVE_MAX_MEMBERS or size > ARCHIVE_MAX_BYTES:
                limits = f"{ARCHIVE_MAX_MEMBERS} members or {ARCHIVE_MAX_BYTES} bytes"
                raise ValueError(f"its archive has more than {limits}")
            if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and ARCHIVE_FILE.fullmatch(member.name):
                archive.extract(member, folder, filter="data")


def carry_forward(champion: Champion | None, holdout: Sequence[Example], labels: Collection[str]) -> list[Example]:
    """Return the rows that the next model is to be judged on: the live model's and the new hold-out's, each text once.

    Where both have a text, the live model's label counts: an upload must not rewrite what it is judged on.
    Labels that the new model does not know are dropped. At most HOLDOUT_MAX_ROWS, in the labels' proportions.
    """
    rows = {example.text: example for example in one_label_per_text(holdout)}
    rows |= {example.text: example for example in (champion.holdout if champion else ()) if example.label in labels}
    return spread(rows.values(), HOLDOUT_MAX_ROWS, even=False)


def compare(
    champion: Champion,
    challenger: inference.Classifier,
    labels: Collection[str],
    train: Collection[Example],
    holdout: Sequence[Example],
) -> dict[str, Any]:
    """Score both models on the same rows. Returns metrics.json's "champion".

    labels, train and holdout: those of the challenger. Two sets of rows are compared separately: the rows of the new
    hold-out that neither model was trained on, with labels that the live one knows; and the live model's own hold-out.
    """
    rows_of, notes = _rows_to_compare_on(champion, labels, holdout)
    sets: list[dict[str, Any]] = []
    status = champion.status
    if not rows_of and status == COMPARED:
        status = TOO_FEW_ROWS
    if rows_of:
        try:
            classifier = inference.model_fn(champion.folder)
            live = {name: answer(classifier, rows) for name, rows in rows_of.items()}
        except Exception as error:  # noqa: BLE001 - whatever ails the live model must not stop its successor
            status = NOT_LOADED
            notes.append(f"The live model cannot be loaded ({_words(error)}).")
        else:
            for name, rows in rows_of.items():
                new = answer(challenger, rows)
                judged = {"name": name, "rows": len(rows), "live": figures(rows, live[name]), "new": figures(rows, new)}
                sets.append(judged | {"error": standard_errors(rows, live[name], new)})
    note = " ".join(notes)
    if len(note) > NOTE_MAX_CHARACTERS:
        note = note[: NOTE_MAX_CHARACTERS - 1] + "…"
    return {
        "job": champion.job,
        "status": status,
        "compared": bool(sets),
        "note": note,
        "kept": kept_share(champion, [*train, *holdout]),
        "sets": sets,
    }


def kept_share(champion: Champion, examples: Collection[Example]) -> float | None:
    """Return the share (0 to 1) of the live model's training rows that are in the upload with the same label.

    None when those are not known.
    """
    if not champion.trained_on:
        return None
    return len(champion.trained_on & set(examples)) / len(champion.trained_on)


def _rows_to_compare_on(
    champion: Champion, labels: Collection[str], holdout: Sequence[Example]
) -> tuple[dict[str, list[Example]], list[str]]:
    """Return the sets of rows by name, and what people should know about them, in sentences."""
    if champion.problem:
        return {}, [champion.problem]
    notes = []
    rows_of = {LIVE_HOLDOUT: list(champion.holdout)}
    if champion.trained_on is None:
        notes.append("The rows that the live model was trained on are gone, so only its own hold-out is compared on.")
    else:
        seen = {example.text for example in champion.trained_on}
        unseen = [example for example in holdout if example.text not in seen]
        rows_of = {NEW_HOLDOUT: [example for example in unseen if example.label in champion.labels], **rows_of}
    came = [label for label in labels if label not in champion.labels]
    if came:
        notes.append(f"New labels: {_listed(came)}. The live model does not know them, so their rows are left out.")
    went = [label for label in champion.labels if label not in labels]
    if went:
        notes.append(
            f"Labels that the new model does not know: {_listed(went)}. It has every row with one of them wrong in the "
            "live model's hold-out. Upload rows with these labels as well, or give the data another model name."
        )
    for name, rows in rows_of.items():
        if len(rows) < MIN_ROWS:
            notes.append(
                f"Not compared on the {name}: it has {len(rows)} rows for that, and at least {MIN_ROWS} are needed."
            )
    return {name: rows for name, rows in rows_of.items() if len(rows) >= MIN_ROWS}, notes


def answer(classifier: inference.Classifier, examples: Sequence[Example]) -> list[Answer]:
    """Return a model's answers to labelled texts, as its endpoint would give them.

    Raises ValueError when one of them is not a finite number.
    """
    answers = [Answer("", 0.0)] * len(examples)
    parameters = {"top_k": len(classifier.model.config.id2label)}
    by_length = sorted(range(len(examples)), key=lambda row: len(examples[row].text))  # less padding
    for start in range(0, len(examples), inference.TEXTS_PER_PASS):
        rows = by_length[start : start + inference.TEXTS_PER_PASS]
        request = {"inputs": [examples[row].text for row in rows], "parameters": parameters}
        for row, ranked in zip(rows, inference.predict_fn(request, classifier), strict=True):
            scores = {one["label"]: one["score"] for one in ranked}
            if not all(map(math.isfinite, scores.values())):
                raise ValueError(f"it answers {ranked[0]['score']} for a text")
            probability = scores.get(examples[row].label, 0.0)
            answers[row] = Answer(ranked[0]["label"], -math.log(max(probability, LEAST_PROBABILITY)))
    return answers


def figures(examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, float]:
    """Return the figures of a model's answers.

    Averages are over the labels that the examples have: a model is not punished for knowing a label more.
    """
    expected = [example.label for example in examples]
    result = classification_metrics(expected, [answer.label for answer in answers], labels=set(expected))
    return result | {"eval_loss": math.fsum(answer.loss for answer in answers) / len(answers)}


def standard_errors(examples: Sequence[Example], live: Sequence[Answer], new: Sequence[Answer]) -> dict[str, float]:
    """Return by metric the standard error of the difference between two models' figures on the same rows.

    By a paired bootstrap (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6), with a
    fixed seed; 0 where the models answer every row alike.
    """
    chance = random.Random(0)
    differences: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        rows = chance.choices(range(len(examples)), k=len(examples))
        drawn = [examples[row] for row in rows]
        of_live, of_new = (figures(drawn, [answers[row] for row in rows]) for answers in (live, new))
        for metric, value in of_new.items():
            differences.setdefault(metric, []).append(value - of_live[metric])
    return {metric: statistics.stdev(values) for metric, values in differences.items()}


def _listed(labels: Sequence[str]) -> str:
    return listed_names(repr(label[:LABEL_CHARACTERS]) for label in labels)


def _words(error: BaseException) -> str:
    text = "".join(character if character.isprintable() else " " for character in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
