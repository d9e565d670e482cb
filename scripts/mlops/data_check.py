"""What a file holds, and whether the pipeline would train on it: the verdict of an upload, from the same reader.

Needs nothing but the standard library, so that it also runs where mlops is not installed, as in the GitHub workflow:

    PYTHONPATH=scripts python3 -P -m mlops.data_check FILE [TEXT_COLUMN LABEL_COLUMN]

Exit status: 0 the file is good, if with warnings; 2 it is refused, and stderr says in one line why.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from mlops import prices
from mlops.text import complain, plain, say, show_table

if TYPE_CHECKING:
    # The training program knows it by this name, and mypy allows a file only one.
    import reader as reader
else:
    from training import reader as reader

BAR_CHARACTERS = 30
LONGEST_SHOWN = 3
MANY_NEARLY_REPEATED = 0.01  # of the rows
NEARLY_EVERY = 0.9  # of a label's texts, or of all texts
NAME_MIN_CHARACTERS, NAME_MIN_ROWS = 3, 5  # of a label that is looked for in its texts


@dataclass(frozen=True)
class Settings:
    """What the check depends on: the training function's settings; the defaults are Terraform's. source: in words."""

    text_column: str = "text"
    label_column: str = "label"
    max_left_out: float = reader.MAX_LEFT_OUT  # share of the rows
    base_model: str = "auto"
    instance_type: str = "ml.m5.xlarge"
    instances: int = 1  # of a job
    is_spot: bool = False
    max_seconds: float = 14_400
    epochs: float = 2
    max_length: float = 128  # tokens
    holdout_fraction: float = 0.2
    source: str = "the defaults"
    is_local: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str], source: str, is_local: bool) -> Settings:
        """The settings in a training function's environment; what an older one does not have is the default."""
        known = json.loads(environment.get("HYPERPARAMETERS") or "{}")
        return cls(
            text_column=environment.get("TEXT_COLUMN", cls.text_column),
            label_column=environment.get("LABEL_COLUMN", cls.label_column),
            max_left_out=number(environment.get("MAX_ROWS_LEFT_OUT"), cls.max_left_out),
            base_model=environment.get("BASE_MODEL", cls.base_model),
            instance_type=environment.get("TRAINING_INSTANCE_TYPE", cls.instance_type),
            instances=int(number(environment.get("TRAINING_INSTANCE_COUNT"), cls.instances)),
            is_spot=bool(environment.get("TRAINING_MAX_WAIT_SECONDS")),
            max_seconds=number(environment.get("TRAINING_MAX_RUNTIME_SECONDS"), cls.max_seconds),
            epochs=number(known.get("epochs"), cls.epochs),
            max_length=number(known.get("max_length"), cls.max_length),
            holdout_fraction=number(known.get("holdout_fraction"), cls.holdout_fraction),
            source=source,
            is_local=is_local,
        )


def number(text: str | None, default: float) -> float:
    """A number that was written down; the default where it is none."""
    try:
        return default if text is None else float(text)
    except ValueError:
        return default


class Lines(NamedTuple):
    """How many rows there are of a kind, and the first lines that they begin on."""

    first: tuple[int, ...] = ()
    rows: int = 0

    def __str__(self) -> str:
        more = ", …" if self.rows > len(self.first) else ""
        return f"line {', '.join(map(str, self.first))}{more}"

    def add(self, line: int) -> Lines:
        return Lines((*self.first, line) if self.rows < reader.LINES_SHOWN else self.first, self.rows + 1)


class Seen:
    """What people want to know of a file beyond what the pipeline says. max_characters: the model reads of a text."""

    def __init__(self, max_characters: int) -> None:
        self.max_characters, self.characters = max_characters, 0  # that the model reads of all texts
        self.repeated = self.contradicting = Lines()  # an earlier row's text; and that with another label
        self.nearly_repeated = self.cut = Lines()
        self.like_numbers = Lines()  # texts of one word with a digit in it, as ids are
        self.named: dict[str, Lines] = {}  # texts with their label's name in them, by label
        self.longest: list[tuple[int, int]] = []  # characters, and minus the line
        self._label_of: dict[int, str] = {}  # of each text, as its first row has it
        self._forms: set[int] = set()  # of texts, without what nobody sees
        self._names: dict[str, str] = {}  # of labels, as they are looked for

    def add(self, rows: Sequence[reader.Example]) -> None:
        """Take further rows into account. Called for every block, so it does little for a row that is like most."""
        lengths = [len(text) for _, text, _ in rows]
        self.longest = heapq.nlargest(
            LONGEST_SHOWN, [*self.longest, *((length, -row[0]) for length, row in zip(lengths, rows, strict=True))]
        )
        limit, label_of, forms, names = self.max_characters, self._label_of, self._forms, self._names
        self.characters += sum(min(length, limit) for length in lengths)
        if max(lengths, default=0) > limit:
            for length, (line, _, _) in zip(lengths, rows, strict=True):
                self.cut = self.cut.add(line) if length > limit else self.cut
        for line, text, label in rows:
            form = reader.alike(text)
            if " " not in form and any(map(str.isdecimal, form)):
                self.like_numbers = self.like_numbers.add(line)
            if label not in names:
                names[label] = name_in_texts(label)
            if (name := names[label]) and name in form and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", form):
                self.named[label] = self.named.get(label, Lines()).add(line)
            key = hash(text)
            if key in label_of:
                self.repeated = self.repeated.add(line)
                if label_of[key] != label:
                    self.contradicting = self.contradicting.add(line)
                continue
            label_of[key] = label
            form_key = key if form == text else hash(form)
            if form_key in forms:
                self.nearly_repeated = self.nearly_repeated.add(line)
            forms.add(form_key)


def name_in_texts(label: str) -> str:
    """A label's name as it is looked for in its texts; "" for one that stands in many texts anyway."""
    name = reader.alike(label)
    return "" if len(name) < NAME_MIN_CHARACTERS or name.isdecimal() else name


class Check(NamedTuple):
    """refused: why, in the words of the email; "" for a good file. findings: None where it was not read to its end."""

    file: Path
    settings: Settings
    refused: str
    findings: reader.Findings | None
    seen: Seen
    warnings: list[str]


# --- the check ---------------------------------------------------------------------------------------


def check_file(file: Path) -> str:
    """Why a file cannot be read, or uploaded under its name; "" if it can."""
    if file.is_dir():
        return "this is a folder: name one file in it"
    if not file.is_file():
        return "there is no such file"
    if not file.name.lower().endswith(reader.FILE_ENDINGS):
        endings = f"{', '.join(reader.FILE_ENDINGS[:-1])} or {reader.FILE_ENDINGS[-1]}"
        return f'only files named {endings} are trained on: save it as CSV (in Excel: "CSV UTF-8")'
    if not os.access(file, os.R_OK):
        return "you may not read this file"
    try:
        file.name.encode()
    except UnicodeEncodeError:
        return "the file's name is not UTF-8, so S3 cannot take it"
    return ""


def reader_of(content: IO[bytes], settings: Settings) -> reader.Reader:
    chunks = iter(partial(content.read, reader.BLOCK_BYTES), b"")
    return reader.Reader(chunks, settings.text_column, settings.label_column)


def rows_of(file: Path, settings: Settings) -> Iterator[reader.Example]:
    """The rows that are trained on. Raises Unreadable."""
    with file.open("rb") as content:
        yield from reader_of(content, settings)


def check(file: Path, settings: Settings) -> Check:
    """Read a file as the pipeline does, once, in constant memory but for what it counts."""
    seen = Seen(int(settings.max_length * prices.CHARACTERS_PER_TOKEN))
    findings: reader.Findings | None = None
    if why := check_file(file):
        return Check(file, settings, why, findings, seen, [])
    try:
        with file.open("rb") as content:
            file_reader = reader_of(content, settings)
            for rows in file_reader.batches():
                seen.add(rows)
        findings = file_reader.findings
        reader.check_trainable(findings, settings.max_left_out)
    except reader.Unreadable as error:
        return Check(file, settings, str(error), findings, seen, [])
    except OSError as error:
        return Check(file, settings, f"the file cannot be read: {error.strerror}", None, seen, [])
    return Check(file, settings, "", findings, seen, [*warnings_of(findings, seen, settings)])


def warnings_of(found: reader.Findings, seen: Seen, settings: Settings) -> list[str]:
    """What a person should know before a good file is trained on."""
    warnings = []
    if found.left_out:
        warnings.append(f"{sum(found.left_out.values()):,} of {found.rows:,} rows are left out")
    if found.look_alikes:
        warnings.append("labels that look alike are different labels: spell them alike if they are one")
    if found.null_like:
        warnings.append(
            f"labels like empty cells are labels: {reader.shown_names(map(reader.shown_label, found.null_like))}"
        )
    if found.conflicts:
        warnings.append(f"{found.conflicts:,} texts have several labels ({seen.contradicting})")
    if seen.nearly_repeated.rows >= MANY_NEARLY_REPEATED * found.used:
        warnings.append(
            f"{seen.nearly_repeated.rows:,} rows differ from an earlier one only in case, spaces or Unicode form "
            f"({seen.nearly_repeated}): one may be trained on and the other tested on, so the scores look too good"
        )
    if told_apart := [*labels_in_their_texts(found, seen)]:
        shown = reader.shown_names(
            f"{reader.shown_label(label)} in {lines.rows:,} of {found.labels[label]:,} ({lines})"
            for label, lines in ((label, seen.named[label]) for label in told_apart)
        )
        warnings.append(f"a label's name stands in nearly every one of its texts: {shown}; the scores look too good")
    if seen.like_numbers.rows >= NEARLY_EVERY * found.used:
        warnings.append(
            f"{seen.like_numbers.rows:,} texts are one word with a digit ({seen.like_numbers}): "
            f'is "{plain(settings.text_column, 40)}" the column of the texts?'
        )
    likely = estimate_of(seen, settings).minutes[1:2]
    if min(likely, default=0) * 60 > settings.max_seconds:
        limit = f"{settings.max_seconds / 3600:.3g} hours (training_max_runtime_seconds)"
        warnings.append(
            f"the training can hardly fine-tune the base model within {limit}, and then ends with a simpler model: a "
            "larger instance or a higher limit helps"
        )
    return warnings


def labels_in_their_texts(found: reader.Findings, seen: Seen) -> list[str]:
    return [
        label
        for label, lines in seen.named.items()
        if lines.rows >= max(NAME_MIN_ROWS, NEARLY_EVERY * found.labels[label])
    ]


def estimate_of(seen: Seen, settings: Settings) -> prices.Estimate:
    cores = (os.cpu_count() or 1) if settings.is_local else 0
    instances = 1 if settings.is_local else settings.instances
    known = (settings.epochs, settings.holdout_fraction, settings.base_model, settings.instance_type, cores)
    return prices.estimate(seen.characters, *known, instances, settings.is_spot)


# --- what is shown -----------------------------------------------------------------------------------


def show(checked: Check, with_estimate: bool = True) -> None:
    """What was found, to stdout; why a file is refused, in one line to stderr."""
    found, settings, seen = checked.findings, checked.settings, checked.seen
    if found is not None:
        show_table([*reader.told(found).items()])
        if len(found.labels) > 1:
            say()
            show_labels(found)
        say()
        show_table([*details(seen, settings)])
    if checked.refused:
        complain(f"refused: {plain(checked.file)}: {checked.refused}")
        return
    say()
    if with_estimate:
        say(f"training takes {estimate_of(seen, settings)}")
    for warning in checked.warnings:
        say(f"warning: {warning}")
    many = len(checked.warnings)
    but = f", with {many} warning{'s' if many > 1 else ''}" if many else ""
    say(f"good{but}: the pipeline trains on {plain(checked.file)}")


def show_labels(found: reader.Findings) -> None:
    """How many rows the most frequent labels have."""
    most = max(found.labels.values())
    shown = [*found.labels.items()][: reader.LABELS_SHOWN]
    bars = ["▇" * max(1, round(BAR_CHARACTERS * rows / most)) for _, rows in shown]
    show_table(
        [
            (reader.shown_label(name), f"{rows:,}", f"{100 * rows / found.used:.1f} %", bar)
            for (name, rows), bar in zip(shown, bars, strict=True)
        ]
    )


def details(seen: Seen, settings: Settings) -> list[tuple[str, str]]:
    """What was seen beyond what the pipeline says, as the rows of a table."""
    said = {
        "longest texts": ", ".join(f"{length:,} characters (line {-line})" for length, line in seen.longest),
        "cut texts": f"about {seen.cut.rows:,} ({seen.cut}): the model reads {settings.max_length:g} tokens, about "
        f"{seen.max_characters:,} characters"
        if seen.cut.rows
        else "",
        "rows that repeat a text": str(seen.repeated) if seen.repeated.rows else "",
        "rows with another label": str(seen.contradicting) if seen.contradicting.rows else "",
        "nearly repeated texts": f"{seen.nearly_repeated.rows:,} rows ({seen.nearly_repeated})"
        if seen.nearly_repeated.rows
        else "",
    }
    return [(name, text) for name, text in said.items() if text]


def main(arguments: Sequence[str]) -> int:
    """Check one file, without a stack; the exit status."""
    if len(arguments) not in (1, 3):
        complain("usage: python3 -m mlops.data_check FILE [TEXT_COLUMN LABEL_COLUMN]")
        return 2
    file, text_column, label_column = (*arguments, Settings.text_column, Settings.label_column)[:3]
    checked = check(Path(file), Settings(text_column, label_column))
    show(checked, with_estimate=False)
    return 2 if checked.refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
