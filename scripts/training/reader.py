"""The one reader of labelled texts: what people call a CSV, read block by block in constant memory.

The training program and the training orchestrator's check of an upload carry the same block of text, so that they give
the same verdict on the same file. Nothing in it depends on the file's name or on the chunks it arrives in.

  what a file has                          what is done
  gzip, by its first bytes                 unpacked: several members, zeros behind them; at most 5 GiB, 200 to 1
                                           (the ratio from 16 MiB on); cut off, damaged, anything behind it: refused
  encoding                                 UTF-8 with or without byte order marks, UTF-16 with one; else refused (line)
  zip, Excel, Parquet, PDF, UTF-32         refused by name; a NUL byte in the header as well. Elsewhere NUL is text
  line ends                                LF, CRLF, CR, mixed. U+2028, U+0085, VT and FF are text
  blank lines, rows of empty fields        passed over, counted
  sep=; in the first line                  the separator. Else: comma, semicolon, tab or bar, the one that separates a
                                           header with both columns. Several do, or none: refused
  column names                             the same name; else the same but for case, Unicode form, spaces and invisible
                                           characters. Two that fit: refused
  a header line again                      passed over, counted
  every row one field longer than the      R's row names, if the first fields are different whole numbers;
    header                                 else these rows have too many fields
  more fields than the header              left out, counted; empty fields at the end do not matter
  fewer fields                             the missing ones are empty
  no text, no label (after strip)          left out, counted
  a quote after separator and spaces       begins a quoted field, if the block in which one first stands can be read
                                           so; else it is text
  a quote behind a backslash               escaped, or the backslash is text: what the first block with one can be read
                                           as; both, with other rows: refused with the line
  tab-separated, quotes unbalanced         quotes are text, if every row of that block then has the header's width
  any other broken quote                   refused with the line of the row, and where its quote opens
  a later row against what was decided     refused with the line
  rows above 2 Mi characters               refused with the line
  labels above 512 characters              refused with the line
  more than 20,000 labels, or 8 Mi         refused with the line
    characters of them
  NULL, nan, N/A ... as a label            kept, told
  incomplete (the head of a large file)    a row that is cut off is passed over; no verdict on what the rest may change

No message has the text of a row; a header's cell only where it looks like a name; a label only if it has at most 40
characters, and none where each row may have its own.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import operator
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, NoReturn

# --- the reader: the same in scripts/training/reader.py and lambda/training_orchestrator/handler.py ---

FILE_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BLOCK_BYTES = 256 * 1024
MAX_ROW_CHARACTERS = 2 * 1024**2
UNDECIDED_CHARACTERS = 2 * BLOCK_BYTES  # how far two ways to read quotes are followed before one is taken
MAX_LABELS, MAX_LABELS_CHARACTERS = 20_000, 8 * 1024**2
MAX_LABEL_CHARACTERS = 512
MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO, RATIO_FROM_BYTES = 5 * 1024**3, 200, 16 * 1024**2
MIN_LABELS, MIN_TEXTS_PER_LABEL = 2, 2  # of each label, one text to train on and one to hold out
MAX_LEFT_OUT = 0.05  # share of the rows
LINES_SHOWN, NAMES_SHOWN, LABELS_SHOWN = 5, 5, 20
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
QUOTES_DOUBLED, QUOTES_ESCAPED, QUOTES_ARE_TEXT = "doubled", "quotes escaped by a backslash", "quotes are text"
NULL_LIKE = {"null", "none", "nan", "n/a", "na", "#n/a", "\\n", "nil", "undefined", "-", "?", "<na>", "(null)"}
QUOTE_PAIRS = {"''", '""', "``", "“”", "‘’", "«»", "„“"}
NOT_CSV = {
    "UTF-32 text": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "a zip archive or an Excel workbook": (b"PK\x03\x04",),
    "an old Excel workbook": (b"\xd0\xcf\x11\xe0",),
    "a Parquet file": (b"PAR1",),
    "a PDF": (b"%PDF",),
}
LINE_NUMBER = operator.attrgetter("line_num")
PLAIN_BACKSLASHES = re.compile(r'\\+(?!["\\])')  # a run that escapes no quote is text
BLANK = ' \t\r\n\ufeff,;|"'  # what a line of empty fields is made of
NUMBER = re.compile(r"\+?(-?)0*(\d+)(?:[.,](\d*?)0*)?")
# Up to three words. What else stands in a first line may be somebody's text.
COLUMN_NAME = re.compile(r"(?=.{1,30}\Z)[^\W\d]\w*(?:[ ._/-][^\W\d]\w*){0,2}")
Rows = list[tuple[list[str], int]]  # each with the line it ends on, counted from the first of the lines given
Example = tuple[int, str, str]  # the line a row begins on, from 1; text and label, stripped, neither empty


class Unreadable(ValueError):
    """The file cannot be trained on. The text: where (line: from 1; 0: all of it), what is wrong, what to do."""

    def __init__(self, line: int, found: str, to_do: str) -> None:
        super().__init__(f"{f'line {line}: ' if line else ''}{found}; {to_do}")
        self.line = line


class Findings:
    """What a file holds, as far as it was read."""

    def __init__(self) -> None:
        self.encoding = self.separator = self.quoting = ""
        self.compressed = self.row_names = False
        self.complete = self.exact = True  # not exact: duplicates, conflicts and texts_of_label are lower bounds
        self.rows = self.used = self.blank_rows = self.repeated_headers = self.longest_text = 0
        self.left_out: dict[str, int] = {}  # rows by reason
        self.left_out_lines: dict[str, list[int]] = {}  # the first few
        self.duplicates = self.conflicts = 0  # rows with an earlier row's text; texts with several labels
        self.labels: dict[str, int] = {}  # rows of each, most first
        self.texts_of_label: dict[str, int] = {}  # different ones; a text counts for its most frequent label
        self.look_alikes: list[list[str]] = []
        self.null_like: list[str] = []


class Way(NamedTuple):
    """A way to read quotes: do they count behind spaces, does a backslash escape them, are they but text."""

    spaced: bool = False
    escaped: bool = False
    bare: bool = False


class Reading:
    """The rows of lines, read in one way, up to the first problem. What is open at the end is one if that is final."""

    def __init__(self, way: Way, lines: list[str], separator: str, ended: bool) -> None:
        self.way, self.rows, self.problem, self.problem_line = way, Rows(), "", 0
        escaped = (PLAIN_BACKSLASHES.sub(lambda run: run[0] * 2, line) for line in lines)
        reader = csv.reader(
            escaped if way.escaped else lines,
            delimiter=separator,
            escapechar="\\" if way.escaped else None,
            quoting=csv.QUOTE_NONE if way.bare else csv.QUOTE_MINIMAL,
            skipinitialspace=way.spaced,
            strict=True,
        )
        try:
            self.rows.extend(zip(reader, map(LINE_NUMBER, itertools.repeat(reader)), strict=False))
        except csv.Error as error:
            if ended or str(error) != "unexpected end of data":
                self.problem, self.problem_line = str(error), reader.line_num


class Reader:
    """Reads a file once. Iterate over it, or over batches(); afterwards findings says what was found.

    chunks: the file's bytes, in pieces of any size. complete: may be set to False until they end: there is more.
    stopped: may be set to True, and complete to False with it: no further block is read, or unpacked.
    max_texts: how many different or repeated texts are remembered, at about 100 bytes each. Raises Unreadable.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        text_column: str,
        label_column: str,
        complete: bool = True,
        max_texts: float = float("inf"),
    ) -> None:
        self.complete, self.stopped, self.findings = complete, False, Findings()
        self._chunks, self._columns, self._max_texts = chunks, (text_column, label_column), max_texts
        self._rest, self._ahead, self._before = "", "", 0  # text that is not read yet, and the lines before it
        self._separator, self._header, self._text_at, self._label_at = "", list[str](), 0, 0
        self._way, self._undecided = Way(), {"spaced", "escaped"}
        self._names, self._label_characters = dict[str, str](), 0  # labels that no header line has, each by itself
        self._rows_of, self._texts_of = Counter[str](), dict[str, set[int]]()  # by label; of texts no more than two
        self._first, self._again = (
            dict[int, str](),
            Counter[tuple[int, str]](),
        )  # by text
        csv.field_size_limit(2**31 - 1)  # the process's; rows are bounded by MAX_ROW_CHARACTERS

    def __iter__(self) -> Iterator[Example]:
        return itertools.chain.from_iterable(self.batches())

    def batches(self) -> Iterator[list[Example]]:
        """The rows of one block after the other."""
        for text in self._texts():
            rows, self._ahead = self._read(self._ahead, False), text
            yield rows
        rows = self._read(self._ahead, True)
        self._conclude()
        yield rows

    def _texts(self) -> Iterator[str]:
        blocks = in_blocks(self._chunks)
        first = next(blocks, b"")
        if first.startswith(b"\x1f\x8b"):
            self.findings.compressed = True
            blocks = in_blocks(self._unpacked(itertools.chain([first], blocks)))
            first = next(blocks, b"")
        if len(first) < 4 and not self.complete:
            return  # the mark of an encoding may be cut
        for what, beginnings in NOT_CSV.items():
            if first.startswith(beginnings):
                raise Unreadable(0, f"the file is {what}", 'save it as CSV (in Excel: "CSV UTF-8")')
        utf16 = {codecs.BOM_UTF16_LE: "UTF-16-LE", codecs.BOM_UTF16_BE: "UTF-16-BE"}
        encoding = self.findings.encoding = utf16.get(first[:2], "UTF-8")
        decoder = codecs.getincrementaldecoder(encoding)()
        more = iter(lambda: b"" if self.stopped else next(blocks, b""), b"")
        for block in itertools.chain([first], more, [b""]):
            try:
                text = decoder.decode(block, not block and self.complete)
            except UnicodeDecodeError as error:
                lines = split_lines(f"{self._rest}{self._ahead}{error.object[: error.start].decode(encoding)}.")
                found = f"byte 0x{error.object[error.start]:02x} is not {encoding}"
                raise Unreadable(self._before + len(lines), found, 'save the file as "CSV UTF-8"') from error
            if text:
                yield text

    def _unpacked(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The content of gzip members one after the other, in pieces of at most a block."""
        member, begun, later, taken, given = zlib.decompressobj(31), False, False, 0, 0
        for data in blocks:
            taken += len(data)
            piece = b""
            while data or len(piece) == BLOCK_BYTES:
                if later and not begun and not (data := data.lstrip(b"\0")):
                    break
                try:
                    piece, begun = member.decompress(data, BLOCK_BYTES), True
                except zlib.error as error:
                    found = "the compressed file is damaged, or something stands behind its end"
                    raise Unreadable(0, found, "compress it again, or upload it uncompressed") from error
                given += len(piece)
                if given > min(MAX_UNPACKED_BYTES, max(RATIO_FROM_BYTES, MAX_UNPACKED_RATIO * taken)):
                    found = f"the file unpacks to more than {MAX_UNPACKED_RATIO} times its size, or than 5 GiB"
                    raise Unreadable(0, found, "upload less of it, or uncompressed")
                yield piece
                data = member.unconsumed_tail
                if member.eof:
                    data, member, begun, later = member.unused_data, zlib.decompressobj(31), False, True
        if begun and self.complete:
            raise Unreadable(0, "the compressed file is cut off", "upload it again")

    def _read(self, new: str, last: bool) -> list[Example]:
        """The rows to train on that end in the new text."""
        text, ended = self._rest + new, last and self.complete
        # A carriage return at the end may be half of a line end.
        cut = len(text) if ended else max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
        lines, rows = split_lines(text[:cut]), list[Example]()
        at = 0 if self._header else self._find_header(lines, ended)
        if self._header:
            self._before += at
            lines = lines[at:] if at else lines
            found = self._parse(lines, text[:cut], last, ended)
            at = found[-1][1] if found else 0
            if len(text) > MAX_ROW_CHARACTERS:
                for begin, end in itertools.pairwise([0, *(end for _, end in found)]):
                    self._check_length(sum(map(len, lines[begin:end])), begin + 1)
            rows = self._take(found)
        self._before += at
        self._rest = "".join(lines[at:]) + text[cut:]
        self._check_length(len(self._rest), 1)
        return rows

    def _check_length(self, characters: int, line: int) -> None:
        if characters > MAX_ROW_CHARACTERS:
            found = f"the row that begins here has more than {MAX_ROW_CHARACTERS:,} characters"
            raise Unreadable(self._before + line, found, "close the quote that is open in it, or shorten its text")

    def _find_header(self, lines: list[str], ended: bool) -> int:
        """Find the header and what separates the columns; returns the number of lines to its end, 0 if not there."""
        at, separators = 0, list(SEPARATORS)
        while at < len(lines) and not lines[at].strip(BLANK):
            at += 1
        if at < len(lines) and (hint := re.fullmatch(r'"?sep=(.)"?[,;|\s]*', lines[at].strip("\ufeff"), re.IGNORECASE)):
            if hint[1] not in SEPARATORS:
                raise Unreadable(at + 1, "sep= names an unknown separator", "separate columns by , or ; or | or tabs")
            at, separators = at + 1, [hint[1]]
            while at < len(lines) and not lines[at].strip(BLANK):
                at += 1
        if at == len(lines):
            if ended:
                raise Unreadable(0, "the file is empty, or blank", "upload a CSV with a header line and rows")
            return 0
        lines[at] = lines[at].lstrip("\ufeff")
        if "\0" in lines[at]:
            found = "the header has a NUL byte: the file is binary, or UTF-16 without a byte order mark"
            raise Unreadable(at + 1, found, 'save it as "CSV UTF-8"')
        headers, fits, taken = dict[str, list[str]](), list[tuple[str, int, int]](), 0
        for separator in separators:
            reader = csv.reader(lines[at:], delimiter=separator, skipinitialspace=True, strict=True)
            try:
                headers[separator] = [name.strip("\ufeff").strip() for name in next(reader)]
            except csv.Error:
                continue
            text_at, label_at = (find_column(headers[separator], name, at + 1) for name in self._columns)
            if min(text_at, label_at) >= 0 and text_at != label_at:
                fits.append((separator, text_at, label_at))
                taken = reader.line_num
        if len(fits) > 1:
            found = f"the header can be divided by {' and by '.join(SEPARATORS[separator] for separator, *_ in fits)}"
            raise Unreadable(at + 1, found, "use one separator")
        if not fits:
            if not headers and not ended:
                return 0
            names = max(headers.values(), key=len, default=[])
            missing = [name for name in self._columns if find_column(names, name, at + 1) < 0] or self._columns
            found = f"there is no column {' and no column '.join(map(clipped, missing))}"
            shown = shown_names(clipped(n) if COLUMN_NAME.fullmatch(n.strip("\"'`")) else "…" for n in names)
            raise Unreadable(
                at + 1, found, f"this line must name the columns, and has: {shown or 'a quote not closed'}"
            )
        self._separator, self._text_at, self._label_at = fits[0]
        self._header = [alike(name).strip('"') for name in headers[self._separator]]
        self.findings.separator = SEPARATORS[self._separator]
        return at + taken

    def _parse(self, lines: list[str], content: str, last: bool, ended: bool) -> Rows:
        """The rows that end in the lines; content: the lines in one.

        Quotes behind spaces and backslashes before quotes are read in both ways until one of them breaks; a file in
        which it never does is read with quotes behind spaces as quotes, and with backslashes as text.
        """
        sep, tried = re.escape(self._separator), list[str]()
        quote = rf' "(?!"[^"\r\n{sep}])'  # opens a field, for in one it would be doubled
        if "spaced" in self._undecided and re.search(quote, content):
            tried += ["spaced"] if re.search(rf"(?:\A|[\r\n{sep}]) *{quote}", content) else []
        if "escaped" in self._undecided and '\\"' in content:
            tried += ["escaped"]
        readings = [
            Reading(self._way._replace(**dict(zip(tried, values, strict=True))), lines, self._separator, ended)
            for values in itertools.product(
                *({"spaced": (True, False), "escaped": (False, True)}[name] for name in tried)
            )
        ]
        good = [reading for reading in readings if not reading.problem]
        if not good and self._separator == "\t":
            literal = Reading(Way(bare=True), lines, self._separator, ended)
            if {len(row) for row, _ in literal.rows if any(row)} == {len(self._header)}:
                self._way, self._undecided = literal.way, set()
                return literal.rows
        if not good:
            self._refuse_quotes(max(readings, key=lambda reading: reading.problem_line), lines)
        for name in tried:
            value = getattr(good[0].way, name)
            rival = next((reading for reading in good if getattr(reading.way, name) != value), None)
            line = first_difference(good[0].rows, rival.rows) if rival else 0
            if line and name == "escaped" and (ended or not last):
                found = "a backslash before a quote can be read in two ways"
                raise Unreadable(self._before + line, found, 'double each quote in a quoted field ("")')
            if rival and not line and not last and len(rival.rows) != len(good[0].rows):
                if len(content) < UNDECIDED_CHARACTERS:
                    return good[0].rows[: len(rival.rows)]
                value = getattr(max(rival, good[0], key=lambda reading: len(reading.rows)).way, name)
                line = 1
            if line or not rival:
                self._way = self._way._replace(**{name: value})
                self._undecided.discard(name)
            good = [reading for reading in good if getattr(reading.way, name) == value]
        return good[0].rows

    def _refuse_quotes(self, reading: Reading, lines: list[str]) -> NoReturn:
        begin, at = (reading.rows[-1][1] if reading.rows else 0), reading.problem_line
        to_do = 'close each quote, double each quote in a quoted field (""), and leave no space behind a closing one'
        if reading.problem == "unexpected end of data":
            row = next(csv.reader(lines[begin:], delimiter=self._separator, skipinitialspace=reading.way.spaced))
            opened = len(lines) - max(1, len(split_lines(row[-1]))) + 1
            raise Unreadable(self._before + opened, "a quote opens here and is never closed", to_do)
        found = "a quote in a quoted field is neither doubled nor before a separator"
        if at > begin + 1:
            found = f"the row that begins here goes on to line {self._before + at}, where {found}"
        if any('\\"' in line for line in lines[begin:at]):
            found += " (and not everywhere does a backslash escape it)"
        raise Unreadable(self._before + begin + 1, found, to_do)

    def _take(self, rows: Rows) -> list[Example]:
        """Count rows, and return those to train on."""
        findings, taken, end = self.findings, list[Example](), 0
        if not findings.rows and has_row_names(rows, len(self._header)):
            findings.row_names, self._header = True, ["", *self._header]
            self._text_at, self._label_at = self._text_at + 1, self._label_at + 1
        width, text_at, label_at = len(self._header), self._text_at, self._label_at
        names = self._names
        for row, at in rows:
            line, end = self._before + end + 1, at
            if len(row) == width and (text := row[text_at].strip()) and (name := names.get(row[label_at].strip())):
                taken.append((line, text, name))
                continue
            if any(map(str.strip, row[width:])):
                self._leave_out("too many fields", line)
                continue
            row = row[:width] + [""] * (width - len(row))
            text, name = row[text_at].strip(), row[label_at].strip()
            if text and name:
                if [alike(cell).strip('"') for cell in row] == self._header:
                    findings.repeated_headers += 1
                else:
                    self._add_label(name, line)
                    taken.append((line, text, name))
            elif any(map(str.strip, row)):
                self._leave_out("no label" if text else "no text", line)
            else:
                findings.blank_rows += 1
        self._count(taken)
        return taken

    def _count(self, taken: list[Example]) -> None:
        findings, first, again = self.findings, self._first, self._again
        findings.rows, findings.used = findings.rows + len(taken), findings.used + len(taken)
        self._rows_of.update(map(operator.itemgetter(2), taken))
        lengths = map(len, map(operator.itemgetter(1), taken))
        findings.longest_text = max(findings.longest_text, max(lengths, default=0))
        for _, text, name in taken if findings.exact else ():
            key = hash(text)
            if key in first:
                again[key, name] += 1
            else:
                first[key] = name
        for _, text, name in () if findings.exact else taken:
            if len(self._texts_of[name]) < MIN_TEXTS_PER_LABEL:
                self._texts_of[name].add(hash(text))
        if findings.exact and len(first) + len(again) > self._max_texts:
            findings.exact = False
            for key, name in itertools.chain(first.items(), again):
                if len(self._texts_of[name]) < MIN_TEXTS_PER_LABEL:
                    self._texts_of[name].add(key)

    def _leave_out(self, reason: str, line: int) -> None:
        self.findings.rows += 1
        self.findings.left_out[reason] = self.findings.left_out.get(reason, 0) + 1
        lines = self.findings.left_out_lines.setdefault(reason, [])
        lines += [line] if len(lines) < LINES_SHOWN else []

    def _add_label(self, name: str, line: int) -> None:
        if name in self._texts_of:
            return
        if len(name) > MAX_LABEL_CHARACTERS:
            found = f"the label has {len(name):,} characters, more than {MAX_LABEL_CHARACTERS}"
            raise Unreadable(line, found, f"shorten it; or is {clipped(self._columns[1])} not the label column?")
        self._texts_of[name] = set()
        if alike(name).strip('"') != self._header[self._label_at]:
            self._names[name] = name
        self._label_characters += len(name)
        if len(self._texts_of) > MAX_LABELS or self._label_characters > MAX_LABELS_CHARACTERS:
            found = f"more than {MAX_LABELS:,} labels up to here, or {MAX_LABELS_CHARACTERS:,} characters of them"
            raise Unreadable(line, found, f"is {clipped(self._columns[1])} the label column?")

    def _conclude(self) -> None:
        findings, texts = self.findings, Counter[str]()
        findings.complete = self.complete
        escaped = QUOTES_ESCAPED if self._way.escaped else QUOTES_DOUBLED
        findings.quoting = QUOTES_ARE_TEXT if self._way.bare else escaped
        findings.duplicates = self._again.total()
        texts.update(self._first.values())
        labels_of = dict[int, Counter[str]]()
        for (key, name), rows in self._again.items():
            labels_of.setdefault(key, Counter([self._first[key]]))[name] += rows
        for key, found in labels_of.items():
            findings.conflicts += len(found) > 1
            texts[self._first[key]] -= 1
            texts[min(found, key=lambda name: (-found[name], name))] += 1
        findings.labels = dict(sorted(self._rows_of.items(), key=lambda item: (-item[1], item[0])))
        few = {} if findings.exact else self._texts_of
        findings.texts_of_label = {name: max(texts[name], len(few.get(name, ()))) for name in findings.labels}
        spellings = dict[str, list[str]]()
        for name in findings.labels:
            spellings.setdefault(spelling(name), []).append(name)
        findings.look_alikes = [names for names in spellings.values() if len(names) > 1]
        findings.null_like = [name for name in findings.labels if name.casefold() in NULL_LIKE]


def check_trainable(found: Findings, max_left_out: float = MAX_LEFT_OUT) -> None:
    """Raise Unreadable where a whole file cannot be trained on: for its labels, or for what had to be left out.

    max_left_out: the share of rows, 0 to 1, that may be. Of an incomplete file nothing is said: the rest may change it.
    """
    if not found.complete:
        return
    left_out = sum(found.left_out.values())
    reasons = left_out_reasons(found)
    if not found.used:
        why = f"no row has a text and a label ({reasons or 'there are no rows'})"
        raise Unreadable(0, why, "check the columns and the separators")
    if left_out > max_left_out * found.rows:
        why = f"{left_out:,} of {found.rows:,} rows cannot be used ({reasons}), more than {100 * max_left_out:g} %"
        to_do = "complete these rows, put quotes around texts that contain the separator, or delete the rows"
        raise Unreadable(0, why, to_do)
    if all(len(name) > 2 and name[0] + name[-1] in QUOTE_PAIRS for name in found.labels):
        shown = shown_names(map(shown_label, found.labels))
        raise Unreadable(
            0, f"every label stands in quotes that belong to it: {shown}", 'quote fields with " or not at all'
        )
    if len(found.labels) < MIN_LABELS:
        shown = shown_label(next(iter(found.labels)))
        raise Unreadable(0, f"there is only one label, {shown}", "add rows with other labels")
    few = [name for name, texts in found.texts_of_label.items() if texts < MIN_TEXTS_PER_LABEL]
    if few:
        shown = shown_names(
            f"{shown_label(name)} has {found.texts_of_label[name]} ({found.labels[name]} rows)" for name in few
        )
        why = f"{len(few):,} of {len(found.labels):,} labels have fewer than {MIN_TEXTS_PER_LABEL} different texts"
        if len(few) > max(NAMES_SHOWN, len(found.labels) / 2):  # then the labels are people's texts
            raise Unreadable(0, why, "is the label column the column of the texts?")
        why += f", each counted for its most frequent label: {shown}"
        raise Unreadable(0, why, "add rows with these labels, or take them out")


def told(found: Findings) -> dict[str, str]:
    """What a file holds, as the rows of a table: the same in emails, records, logs and before an upload.

    None has a row's text, or a label of more than 40 characters.
    """
    least = "" if found.exact else "at least "
    form = [found.encoding, "gzip" if found.compressed else "", f"separated by {found.separator}"]
    form += [found.quoting if found.quoting != QUOTES_DOUBLED else ""]
    form += ["its first column, without a name, is left out" if found.row_names else ""]
    passed = [f"{found.blank_rows:,} blank rows" if found.blank_rows else ""]
    passed += [f"{found.repeated_headers:,} repeated header lines" if found.repeated_headers else ""]
    labels = ", ".join(f"{shown_label(name)} {rows:,}" for name, rows in [*found.labels.items()][:LABELS_SHOWN])
    more = f", and {len(found.labels) - LABELS_SHOWN:,} more" if len(found.labels) > LABELS_SHOWN else ""
    alike_labels = [" / ".join(map(shown_label, names[:NAMES_SHOWN])) for names in found.look_alikes]
    said = {
        "checked": "" if found.complete else "only a part of the file, so the rest may hold more of everything",
        "format": ", ".join(filter(None, form)),
        "rows": f"{found.rows:,} read, {found.used:,} used",
        "rows left out": left_out_reasons(found),
        "passed over": ", ".join(filter(None, passed)),
        "labels": f"{len(found.labels):,}: {labels}{more}" if found.labels else "",
        "labels that look alike": shown_names(alike_labels),
        "labels like empty cells": shown_names(map(shown_label, found.null_like)),
        "repeated texts": f"{least}{found.duplicates:,} rows" if found.duplicates else "",
        "texts with several labels": f"{least}{found.conflicts:,}" if found.conflicts else "",
        "longest text": f"{found.longest_text:,} characters" if found.longest_text else "",
    }
    return {name: text for name, text in said.items() if text}


def left_out_reasons(found: Findings) -> str:
    """The rows that are not used, by reason, with the first lines of each."""
    return "; ".join(
        f"{reason}: {rows:,} (line {', '.join(map(str, lines))}{', …' if rows > len(lines) else ''})"
        for (reason, rows), lines in zip(found.left_out.items(), found.left_out_lines.values(), strict=True)
    )


def in_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks of any size as blocks of one size, so that nothing depends on how a file arrives; the last is shorter."""
    kept, size = list[bytes](), 0
    for chunk in chunks:
        kept.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            whole, end = b"".join(kept), size - size % BLOCK_BYTES
            yield from (whole[at : at + BLOCK_BYTES] for at in range(0, end, BLOCK_BYTES))
            kept, size = [whole[end:]], size - end
    if size:
        yield b"".join(kept)


def split_lines(text: str) -> list[str]:
    """The lines with their ends: line feed, carriage return or both. (str.splitlines knows more of them.)"""
    return io.StringIO(text, newline="").readlines()


def first_difference(some: Rows, other: Rows) -> int:
    """The line on which the first row ends that two readings give differently (but for backslashes), 0 if none."""
    for (row, end), (other_row, other_end) in zip(some, other, strict=False):
        if end != other_end or [c.replace("\\", "") for c in row] != [c.replace("\\", "") for c in other_row]:
            return end
    return 0


def has_row_names(rows: Rows, width: int) -> bool:
    """Whether all rows have one field more than the header, the first of them a number: R's names of rows."""
    filled = [row for row, _ in rows if any(row)]
    names = {row[0] for row in filled if len(row) == width + 1 and row[0].isdecimal()}
    return 1 < len(filled) == len(names) and any(row[-1].strip() for row in filled)


def find_column(header: Sequence[str], name: str, line: int) -> int:
    """Where a column is, -1 if nowhere. Raises Unreadable when two columns have the name."""
    for same in (lambda text: text == name, lambda text: alike(text) == alike(name)):
        places = [at for at, found in enumerate(header) if same(found)]
        if len(places) > 1:
            raise Unreadable(line, f"{len(places)} columns are named {clipped(name)}", "rename all but one")
        if places:
            return places[0]
    return -1


def alike(text: str) -> str:
    """A text without what nobody sees: case, Unicode form, invisible characters, kinds and number of spaces."""
    if not text.isascii():
        text = "".join(mark for mark in unicodedata.normalize("NFKC", text) if unicodedata.category(mark) != "Cf")
    return " ".join(text.split()).casefold()


def spelling(label: str) -> str:
    """What two labels have in common that differ in case, Unicode form, spelling of a number, or quotes."""
    text = alike(label)
    text = text[1:-1].strip() if len(text) > 2 and text[0] + text[-1] in QUOTE_PAIRS else text
    number = NUMBER.fullmatch(text)
    return f"{number[1]}{number[2]}.{number[3] or ''}" if number else text


def clipped(text: str) -> str:
    """A name or label in quotes, for a message: one line, at most 40 characters."""
    shown = "".join(mark if mark.isprintable() else f"\\u{ord(mark):04x}" for mark in text[:40])
    return f'"{shown}{"…" if len(text) > 40 else ""}"'


def shown_label(label: str) -> str:
    """A label in quotes, or what stands for one that is too long to be one: that may be somebody's text."""
    return clipped(label) if len(label) <= 40 else f"(a label of {len(label):,} characters)"


def shown_names(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = len(every) - NAMES_SHOWN
    return ", ".join(every[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


# --- the end of the reader ---
