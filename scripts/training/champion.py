"""The live model beside the new one: both answer the same rows, so that their figures can be compared.

Figures from different hold-outs do not say which model is better, and a small or stale upload has a hold-out
as small and stale as itself. So every model's archive carries holdout.csv, the rows that it and the models before it
were judged on; nobody trains on them, and the next model must do as well on them as the live one.

A few hundred rows cannot separate two models by half a point: which of them answers a few rows better is chance. So
the differences come with their standard errors, and with the share of the live model's training rows that the new one
had as well: a model with more of the same data is expected to be no worse, any other has to prove it.

A label that the live model has in another spelling (Ham and ham, 1.0 and 1) is the live model's: the comparison is made
in the live model's spelling, and the status says so, since the endpoint's answers would change.
"""

import math
import re
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import inference
import reader
from dataset import DataError, Example, listed_names, one_label_per_text, read_channel, read_csv, shown_label, spread
from metrics import LEAST_PROBABILITY, RESAMPLES, classification_metrics, metrics_of_arrays
from text import plain

HOLDOUT_FILE = "holdout.csv"
HOLDOUT_MAX_ROWS = 5000
MIN_ROWS = 20  # with fewer, a single row is worth five points or more
NEW_HOLDOUT = "new hold-out"
LIVE_HOLDOUT = "hold-out of the live model"
# What came of the comparison: the model evaluator holds a new model back unless it was compared.
COMPARED = "compared"
RESPELT = "respelt labels"  # it was made, after mapping
NO_SHARED_LABEL = "no shared label"
NOT_LOADED = "cannot be loaded"
NOT_READ = "cannot be read"
TOO_FEW_ROWS = "too few rows"
# What is unpacked of a live model's archive: data, beside its folders. Its code stays in it.
ARCHIVE_FILE = re.compile(r"(\./)?(holdout\.csv|\w[\w.-]*\.(json|model|safetensors|txt))")
ARCHIVE_MAX_MEMBERS = 1000  # an archive of ours has about ten
ARCHIVE_MAX_BYTES = 20 * 1024**3  # unpacked: four times the largest model that fits a serverless endpoint's disk (5 GB)
NOTE_MAX_CHARACTERS = 1000


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
    respelt: Mapping[str, str] = field(default_factory=dict)  # the upload's labels that it has in another spelling: its
    trained_on: frozenset[Example] | None = None  # None when that is not known
    status: str = COMPARED  # or NOT_READ, NO_SHARED_LABEL
    problem: str = ""  # why it is not compared with; a sentence

    @property
    def held_out(self) -> frozenset[str]:
        """The texts that nobody trains on."""
        return frozenset(example.text for example in self.holdout)

    def spelt(self, examples: Iterable[Example]) -> list[Example]:
        """Examples of the upload, with their labels as the live model writes them."""
        return [Example(text, self.respelt.get(label, label)) for text, label in examples]


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
        known = inference.read_labels(folder)
        holdout: list[Example] = []
        if (folder / HOLDOUT_FILE).is_file():
            holdout = read_csv(folder / HOLDOUT_FILE)
    except Exception as error:  # noqa: BLE001 - a dozen types for one condition, and none may stop the job
        return replace(champion, status=NOT_READ, problem=f"The live model cannot be read ({_words(error)}).")
    respelt = respelt_labels(known, labels)
    if not set(known) & set(labels) and not respelt:
        problem = f"The live model has none of these labels, only {_listed(known)}: this is a new task."
        return replace(champion, status=NO_SHARED_LABEL, problem=problem)

    champion = replace(champion, labels=known, holdout=tuple(one_label_per_text(holdout)), respelt=respelt)
    if data is None:
        return champion
    try:
        examples, _ = read_channel(data, *columns)
    except DataError:
        return champion  # the columns' names are a setting, and may have been different then
    held_out = champion.held_out
    return replace(champion, trained_on=frozenset(example for example in examples if example.text not in held_out))


def respelt_labels(live: Collection[str], new: Iterable[str]) -> dict[str, str]:
    """Return the new labels that a live model has in another spelling, each with the live model's.

    One whose spelling several of the live model's labels share is none of them: it could be either.
    """
    of_spelling: dict[str, set[str]] = {}
    for label in live:
        of_spelling.setdefault(reader.spelling(label), set()).add(label)
    as_written, respelt = set(live), {}
    for label in new:
        found = of_spelling.get(reader.spelling(label), set())
        if label not in as_written and len(found) == 1:
            respelt[label] = next(iter(found))
    return respelt


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

    Where both have a text, the live model's label counts, in the new model's spelling: an upload must not rewrite what
    it is judged on. Labels that the new model does not know are dropped. At most HOLDOUT_MAX_ROWS, in the labels'
    proportions.
    """
    rows = {example.text: example for example in one_label_per_text(holdout)}
    if champion:
        spelt = {champion.respelt[label]: label for label in sorted(champion.respelt, reverse=True)}
        spelt |= {label: label for label in labels}  # where both spellings are left, the live model's
        rows |= {text: Example(text, spelt[label]) for text, label in champion.holdout if label in spelt}
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
    Labels are compared in the live model's spelling.
    """
    rows_of, notes = _rows_to_compare_on(champion, labels, holdout)
    sets: list[dict[str, Any]] = []
    status = RESPELT if champion.respelt else champion.status
    if not rows_of and status in (COMPARED, RESPELT):
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
                new = answer(challenger, rows, champion.respelt)
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
        "respelt": respelt_text(champion.respelt),
        "kept": kept_share(champion, [*train, *holdout]),
        "sets": sets,
    }


def kept_share(champion: Champion, examples: Collection[Example]) -> float | None:
    """Return the share (0 to 1) of the live model's training rows that are in the upload with the same label.

    None when those are not known.
    """
    if not champion.trained_on:
        return None
    return len(champion.trained_on & set(champion.spelt(examples))) / len(champion.trained_on)


def respelt_text(respelt: Mapping[str, str]) -> str:
    """Return the first few respelt labels for people, on one line; "" when there are none."""
    pairs = (f"{reader.shown_label(new)} for {reader.shown_label(live)}" for new, live in respelt.items())
    return plain(reader.shown_names(pairs), NOTE_MAX_CHARACTERS)


def _rows_to_compare_on(
    champion: Champion, labels: Collection[str], holdout: Sequence[Example]
) -> tuple[dict[str, list[Example]], list[str]]:
    """Return the sets of rows by name, and what people should know about them, in sentences."""
    if champion.problem:
        return {}, [champion.problem]
    notes = []
    known = set(champion.labels)
    rows_of = {LIVE_HOLDOUT: list(champion.holdout)}
    if champion.trained_on is None:
        notes.append("The rows that the live model was trained on are gone, so only its own hold-out is compared on.")
    else:
        seen = {example.text for example in champion.trained_on}
        unseen = champion.spelt(example for example in holdout if example.text not in seen)
        rows_of = {NEW_HOLDOUT: [example for example in unseen if example.label in known], **rows_of}
    if champion.respelt:
        notes.append(
            f"Labels spelled differently than in the live model: {respelt_text(champion.respelt)}. They are compared "
            "as the live model's."
        )
    spelt = {champion.respelt.get(label, label): label for label in labels}
    came = [label for name, label in spelt.items() if name not in known]
    if came:
        notes.append(f"New labels: {_listed(came)}. The live model does not know them, so their rows are left out.")
    went = [label for label in champion.labels if label not in spelt]
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


def answer(
    classifier: inference.Classifier, examples: Sequence[Example], respelt: Mapping[str, str] | None = None
) -> list[Answer]:
    """Return a model's answers to labelled texts, as its endpoint would give them.

    respelt: the spelling in which some of its labels count; several may count as one. Raises ValueError when an answer
    is not a finite number.
    """
    answers = [Answer("", 0.0)] * len(examples)
    names = [(respelt or {}).get(label, label) for label in classifier.labels]
    labels = list(dict.fromkeys(names))
    at = {label: column for column, label in enumerate(labels)}
    columns = torch.tensor([at[name] for name in names])
    by_length = sorted(range(len(examples)), key=lambda row: len(examples[row].text))  # less padding
    for start in range(0, len(examples), inference.TEXTS_PER_PASS):
        rows = by_length[start : start + inference.TEXTS_PER_PASS]
        found = classifier.probabilities([examples[row].text for row in rows])
        if not found.isfinite().all():
            raise ValueError(f"it answers {float(found.max())} for a text")
        scores = torch.zeros(len(rows), len(labels)).index_add(1, columns, found)
        for row, of_labels, best in zip(rows, scores, scores.argmax(dim=-1).tolist(), strict=True):
            column = at.get(examples[row].label)
            probability = 0.0 if column is None else float(of_labels[column])
            answers[row] = Answer(labels[best], -math.log(max(probability, LEAST_PROBABILITY)))
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
    at = {label: index for index, label in enumerate(dict.fromkeys(example.label for example in examples))}
    expected = np.array([at[example.label] for example in examples])
    models = [
        (np.array([at.get(answer.label, len(at)) for answer in answers]), np.array([answer.loss for answer in answers]))
        for answers in (live, new)
    ]
    chance = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        rows = chance.integers(len(examples), size=len(examples))
        of_live, of_new = (_figures(expected[rows], labels[rows], losses[rows]) for labels, losses in models)
        differences.append([of_new[metric] - of_live[metric] for metric in of_new])
    return dict(zip(of_new, np.std(differences, axis=0, ddof=1).tolist(), strict=True))


def _figures(expected: Any, predicted: Any, losses: Any) -> dict[str, float]:
    """Return the same as figures, of arrays of the labels' indices: fast enough for every resample."""
    return metrics_of_arrays(expected, predicted) | {"eval_loss": losses.mean()}


def _listed(labels: Sequence[str]) -> str:
    return listed_names(map(shown_label, labels))


def _words(error: BaseException) -> str:
    text = "".join(character if character.isprintable() else " " for character in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
