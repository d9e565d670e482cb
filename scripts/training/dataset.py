"""Labelled texts: read from files and divided into training and hold-out examples.

Standard library only, so that the rules below can be tested without a machine-learning framework.
"""

import csv
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reader import (
    BLOCK_BYTES,
    FILE_ENDINGS,
    MAX_LEFT_OUT,
    MIN_LABELS,
    MIN_TEXTS_PER_LABEL,
    Findings,
    Reader,
    Unreadable,
    check_trainable,
)

NAMES_IN_A_REASON = 5  # labels listed in an error, so that it stays readable
MAX_SHOWN_LABEL_CHARACTERS = 40  # a longer one may be somebody's text, which belongs in no email


class DataError(ValueError):
    """The data cannot be trained on; the text says why and what to do, for the person who made the file."""


class Example(NamedTuple):
    """One labelled text. Both are stripped of surrounding white space and neither is empty."""

    text: str
    label: str


def read_channel(folder: Path, text_column: str, label_column: str) -> tuple[list[Example], dict[str, Findings]]:
    """Read every CSV file of a channel's folder, in the order of their names.

    Returns the examples in file order, and by the file's name what was found in it.
    Raises DataError when there is no CSV file or one of them cannot be read.
    """
    files = sorted(path for path in folder.glob("*") if path.name.lower().endswith(FILE_ENDINGS) and path.is_file())
    if not files:
        raise DataError(f"There is no .csv file in the channel {folder.name!r}. Upload a CSV file and train again.")
    examples: list[Example] = []
    found: dict[str, Findings] = {}
    for path in files:
        with path.open("rb") as file:
            reader = Reader(iter(partial(file.read, BLOCK_BYTES), b""), text_column, label_column)
            try:
                examples += [Example(text, label) for _, text, label in reader]
            except Unreadable as error:
                raise DataError(f"{path.name}: {error}.") from error
        found[path.name] = reader.findings
    return examples, found


def check_channel(
    examples: Sequence[Example], found: Mapping[str, Findings], max_left_out: float = MAX_LEFT_OUT
) -> None:
    """Raise DataError unless what read_channel returned can be divided and trained on.

    max_left_out: the share of rows, 0 to 1, that may be left out.
    """
    name, whole = "the files", Findings()
    if len(found) == 1:
        [(name, whole)] = found.items()
    else:
        for file, findings in found.items():
            whole.rows, whole.used = whole.rows + findings.rows, whole.used + findings.used
            for reason, rows in findings.left_out.items():
                whole.left_out[f"{file}, {reason}"] = rows
                whole.left_out_lines[f"{file}, {reason}"] = findings.left_out_lines[reason]
        whole.labels = dict(Counter(example.label for example in examples).most_common())
        texts = Counter(example.label for example in one_label_per_text(examples))
        whole.texts_of_label = {label: texts[label] for label in whole.labels}
    try:
        check_trainable(whole, max_left_out)
    except Unreadable as error:
        raise DataError(f"{name}: {error}.") from error


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


def split(
    examples: Sequence[Example], fraction: float, seed: int, held_out_before: Collection[str] = frozenset()
) -> tuple[list[Example], list[Example]]:
    """Divide examples into training and hold-out, stratified by label; the same arguments give the same result.

    Rows with the same text (exactly, after stripping) stay together, so that no hold-out text has been trained on.
    Such a group belongs to its most frequent label. Of each label's groups the nearest whole number to `fraction`
    (0 to 1, exclusive) is held out, at least one and never all. Both parts keep the order of `examples`.

    Which ones depends on the text and the seed alone, so that a text that is held out of this upload is held out of the
    next one as well, except a few at the edge; texts that were `held_out_before` come first: all of them are held out.

    Raises DataError when there are fewer than two labels, a label has fewer than two distinct texts (check_channel
    names all of them), or all of its texts were held out before.
    """
    check_labels(examples)
    texts_of_label: dict[str, list[str]] = {label: [] for label in sorted_labels(examples)}
    for text, label in one_label_per_text(examples):
        texts_of_label[label].append(text)

    held_out: set[str] = set()
    for label, texts in texts_of_label.items():
        if len(texts) < MIN_TEXTS_PER_LABEL:
            raise DataError(f"The label {shown_label(label)} has fewer than {MIN_TEXTS_PER_LABEL} different texts.")
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
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([Example._fields, *examples])


def read_csv(path: Path) -> list[Example]:
    """Read back what write_csv wrote. Raises DataError when it is another file."""
    csv.field_size_limit(2**31 - 1)  # the csv module's own limit is 131,072; the largest that fits a C long anywhere
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path.name} is not a CSV file of this program.") from error
    if any(len(row) != 2 for row in rows) or header != list(Example._fields):
        raise DataError(f"{path.name} does not have the columns text and label alone.")
    return [Example(*row) for row in rows]


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
    return repr(label) if len(label) <= MAX_SHOWN_LABEL_CHARACTERS else f"(a label of {len(label)} characters)"


def listed_names(names: Iterable[str]) -> str:
    """Return the first few names as a text, and how many more there are."""
    shown = list(names)
    rest = len(shown) - NAMES_IN_A_REASON
    return ", ".join(shown[:NAMES_IN_A_REASON]) + (f" and {rest} more" if rest > 0 else "")
