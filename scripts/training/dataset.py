"""Labelled texts: read from CSV files and divided into training and hold-out examples.

Standard library only, so that the rules below can be tested without a machine-learning framework.
"""

import csv
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

MAX_FIELD_CHARACTERS = 2**31 - 1  # the csv module's own limit is 131,072; the largest that fits a C long anywhere
MIN_LABELS = 2
MIN_TEXTS_PER_LABEL = 2  # one to train on and one to hold out
NAMES_IN_A_REASON = 5  # labels or columns listed in an error, so that it stays readable
MAX_LABEL_CHARACTERS = 40  # a longer one may be somebody's text, which belongs in no email
# Up to three words. What else stands in a first line may be somebody's text.
COLUMN_NAME = re.compile(r"(?=.{1,30}\Z)[^\W\d]\w*(?:[ ._/-][^\W\d]\w*){0,2}")


class DataError(ValueError):
    """The data cannot be trained on; the text says why and what to do, for the person who made the file."""


class Example(NamedTuple):
    """One labelled text. Both are stripped of surrounding white space and neither is empty."""

    text: str
    label: str


class Skipped(NamedTuple):
    """Rows that were left out, by reason. A row counts once, under the first reason that applies."""

    too_many_fields: int = 0
    empty_text: int = 0
    empty_label: int = 0


def read_channel(folder: Path, text_column: str, label_column: str) -> tuple[list[Example], Skipped]:
    """Read every *.csv file of a channel's folder, in the order of their names.

    Returns the examples in file order and the rows left out.
    Raises DataError when there is no CSV file or one of them cannot be read.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".csv" and path.is_file())
    if not files:
        raise DataError(f"There is no .csv file in the channel {folder.name!r}. Upload a CSV file and train again.")
    examples: list[Example] = []
    skipped = Skipped()
    for path in files:
        found, left_out = read_csv(path, text_column, label_column)
        examples += found
        skipped = Skipped(*(a + b for a, b in zip(skipped, left_out, strict=True)))
    return examples, skipped


def read_csv(path: Path, text_column: str, label_column: str) -> tuple[list[Example], Skipped]:
    """Read one CSV file: UTF-8 with or without a byte order mark, a header line, any further columns.

    A missing field is an empty one. Blank lines are skipped. A row with more fields than the header is left out:
    an unquoted comma has shifted its label.
    Quotes must be closed and, inside quotes, doubled: read leniently, one stray quote swallows the rows that follow it.

    Raises DataError when the file is not UTF-8, a column is missing or named twice, or the quoting is broken.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    examples: list[Example] = []
    too_many_fields = empty_text = empty_label = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            text_at, label_at = _column(header, text_column, path), _column(header, label_column, path)
            for row in reader:
                if not row:
                    continue
                if any(field.strip() for field in row[len(header) :]):
                    too_many_fields += 1
                    continue
                text = row[text_at].strip() if text_at < len(row) else ""
                label = row[label_at].strip() if label_at < len(row) else ""
                if not text:
                    empty_text += 1
                elif not label:
                    empty_label += 1
                else:
                    examples.append(Example(text, label))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path.name} is not UTF-8 text (byte {error.object[error.start]:#04x} on line {_undecodable(path)}). "
                "Save it as 'CSV UTF-8' and upload it again."
            ) from error
        except csv.Error as error:
            raise DataError(
                f"{path.name} has broken quoting in the row that ends on line {reader.line_num} ({error}). A field "
                'with commas, line breaks or quotes stands in quotes, and a quote inside it is doubled ("").'
            ) from error
    return examples, Skipped(too_many_fields, empty_text, empty_label)


def _undecodable(path: Path) -> int:
    """Return the first line, from 1, that is not UTF-8. (A decoder that reads ahead does not know.)"""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise ValueError(f"{path.name} is UTF-8 text")


def _column(header: Sequence[str], name: str, path: Path) -> int:
    count = header.count(name)
    if count == 1:
        return header.index(name)
    if count > 1:
        raise DataError(f"{path.name} has {count} columns named {name!r}. Rename all but one.")
    found = f"its columns are {listed_names(header) or 'none: the file is empty'}"
    if not all(map(COLUMN_NAME.fullmatch, header[:NAMES_IN_A_REASON])):
        found = f"its first line has {len(header)} fields and looks like data, not like names of columns"
    raise DataError(
        f"{path.name} has no column {name!r}; {found}. Rename the column, or set TEXT_COLUMN and LABEL_COLUMN."
    )


def sorted_labels(examples: Iterable[Example]) -> list[str]:
    """Return the distinct labels: by value when all of them are finite numbers (2 before 10), else as text."""
    labels = {example.label for example in examples}
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        return sorted(labels)
    if not all(math.isfinite(number) for number in numbers.values()):
        return sorted(labels)
    return sorted(labels, key=lambda label: (numbers[label], label))


def count_conflicts(examples: Iterable[Example]) -> int:
    """Return how many distinct texts occur with more than one label."""
    labels_of_text: dict[str, set[str]] = {}
    for text, label in examples:
        labels_of_text.setdefault(text, set()).add(label)
    return sum(len(labels) > 1 for labels in labels_of_text.values())


def split(
    examples: Sequence[Example], fraction: float, seed: int, held_out_before: Collection[str] = frozenset()
) -> tuple[list[Example], list[Example]]:
    """Divide examples into training and hold-out, stratified by label; the same arguments give the same result.

    Rows with the same text (exactly, after stripping) stay together, so that no hold-out text has been trained on.
    Such a group belongs to its most frequent label. Of each label's groups the nearest whole number to `fraction`
    (0 to 1, exclusive) is held out, at least one and never all. Both parts keep the order of `examples`.

    Which ones depends on the text and the seed alone, so that a text that is held out of this upload is held out of the
    next one as well, except a few at the edge; texts that were `held_out_before` come first: all of them are held out.

    Raises DataError when there are fewer than two labels, a label has fewer than two distinct texts, or all of its
    texts were held out before.
    """
    check_labels(examples)
    texts_of_label: dict[str, list[str]] = {label: [] for label in sorted_labels(examples)}
    for text, label in one_label_per_text(examples):
        texts_of_label[label].append(text)

    too_few = {label: texts for label, texts in texts_of_label.items() if len(texts) < MIN_TEXTS_PER_LABEL}
    if too_few:
        rows = Counter(example.label for example in examples)
        found = (f"{shown_label(label)} has {len(texts)} ({rows[label]} rows)" for label, texts in too_few.items())
        listed = f": {listed_names(found)}. A text with several labels counts for its most frequent one"
        if len(too_few) > max(NAMES_IN_A_REASON, len(texts_of_label) / 2):
            listed = " (is LABEL_COLUMN the column of the texts?)"  # then the labels are people's texts
        raise DataError(
            f"Too few rows for a hold-out: every label needs at least {MIN_TEXTS_PER_LABEL} different texts, one to "
            f"train on and one to hold out, and {len(too_few)} of {len(texts_of_label)} labels have fewer{listed}. "
            "Add rows for these labels, or take them out."
        )

    held_out: set[str] = set()
    for label, texts in texts_of_label.items():
        before = sum(text in held_out_before for text in texts)
        if before == len(texts):
            raise DataError(
                f"No row with the label {shown_label(label)} is left to train on: its {before} texts all belong to the "
                "hold-out that the live model is judged on, and nobody trains on those. Add other rows with this label."
            )
        count = max(min(max(round(fraction * len(texts)), 1), len(texts) - 1), before)
        texts.sort(key=lambda text: (text not in held_out_before, digest(f"{seed} {text}")))
        held_out.update(texts[:count])
    train = [example for example in examples if example.text not in held_out]
    holdout = [example for example in examples if example.text in held_out]
    return train, holdout


def digest(text: str) -> bytes:
    """Return the SHA-256 of a text: a random order, the same everywhere, in which no text depends on another."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def one_label_per_text(examples: Iterable[Example]) -> list[Example]:
    """Return each text once, with its most frequent label, in the order of first appearance."""
    labels_of_text: dict[str, Counter[str]] = {}
    for text, label in examples:
        labels_of_text.setdefault(text, Counter())[label] += 1
    return [
        Example(text, min(labels, key=lambda label: (-labels[label], label))) for text, labels in labels_of_text.items()
    ]


def spread(
    examples: Iterable[Example], rows: int, even: bool, last: Callable[[Example], bool] = lambda _: False
) -> list[Example]:
    """Return at most `rows` of the examples, every label among them as long as there is room; the same ones each time.

    even: as many of each label as there are; else in the proportions of the examples.
    last: examples that are taken only when their label has no others left.
    """
    of_label: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: (last(example), digest(example.text))):
        of_label[example.label].append(example)
    turns = [
        (at if even else at / len(found), digest(example.text), example)
        for found in of_label.values()
        for at, example in enumerate(found)
    ]
    return [example for *_, example in sorted(turns)[:rows]]


def write_csv(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as a CSV file with the columns text and label, which read_csv reads back as they are."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *examples])


def apply_holdout(
    train: Sequence[Example], holdout: Sequence[Example], held_out_before: Collection[str] = frozenset()
) -> list[Example]:
    """Return the training examples whose text is neither in a given hold-out nor was held out before.

    Raises DataError when the hold-out is empty or has a label that training does not know, or when fewer than two
    labels remain to train on.
    """
    if not holdout:
        raise DataError("The test channel has no row with a text and a label. Give it rows, or leave the channel out.")
    held_out = {example.text for example in holdout}
    remaining = [e for e in train if e.text not in held_out and e.text not in held_out_before]
    check_labels(remaining)
    unknown = sorted({example.label for example in holdout} - {example.label for example in remaining})
    if unknown:
        raise DataError(
            "The test channel has labels that the training data does not have: "
            f"{listed_names(map(shown_label, unknown))}. (Training rows whose text stands in the test channel are not "
            "used.) Correct them, or add training rows."
        )
    return remaining


def check_labels(examples: Sequence[Example]) -> None:
    """Raise DataError unless the examples have at least two different labels."""
    labels = sorted_labels(examples)
    if not labels:
        raise DataError("No row with a text and a label is left to train on. Check the file's text and label columns.")
    if len(labels) < MIN_LABELS:
        raise DataError(
            f"All {len(examples)} rows have the label {shown_label(labels[0])}; a classifier needs at least "
            f"{MIN_LABELS} different labels. Add rows with other labels, or check that LABEL_COLUMN names the right "
            "column."
        )


def shown_label(label: str) -> str:
    """Return a label in quotes, or what stands for one that is too long to be one."""
    return repr(label) if len(label) <= MAX_LABEL_CHARACTERS else f"(a label of {len(label)} characters)"


def listed_names(names: Iterable[str]) -> str:
    """Return the first few names as a text, and how many more there are."""
    shown = list(names)
    rest = len(shown) - NAMES_IN_A_REASON
    return ", ".join(shown[:NAMES_IN_A_REASON]) + (f" and {rest} more" if rest > 0 else "")
