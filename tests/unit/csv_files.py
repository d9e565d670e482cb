"""Files as people's programs write them, with what stands in them: hypothesis strategies.

They choose by a random.Random, which hypothesis can shrink; the long run gives them a plain one, which is faster.
"""

import codecs
import gzip
import re
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st

# What makes quotes, line ends or encodings go wrong, among ordinary letters.
MARKS = [
    " ",
    '"',
    '"',
    "'",
    "\\",
    ",",
    ";",
    "\t",
    "|",
    "\n",
    "\r",
    "\r\n",
    "\u2028",
    "\x85",
    "\x0b",
    "\0",
    "\ufeff",
    "\xa0",
]
LETTERS = [*"abcXYZ019", "é", "ß", "字", "🙂"]
LABELS = ["ham", "spam", "ham", "spam", "Ham", "1", "1.0", "true", "", " ", "NULL", "a,b", 'the "x"']
CLEAR = 'say "yes" now'  # where backslashes escape quotes, this cannot be read in another way
ENCODINGS = [
    (b"", "utf-8"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF8 * 2, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
# Pieces of CSV: in any order they make no good file, mostly.
PIECES = [*LABELS[:4], *' 12";\t\n\n\réN\\\0', '""', '\\"', ',"', '",', '"\n', ",", ",", "\r\n", "text", "label"]
HEADERS = [
    "text,label\n",
    "text,label\n",
    "text;label\r\n",
    "text\tlabel\n",
    "a,text,label\n",
    "sep=,\ntext,label\n",
    "",
]


@dataclass
class File:
    """A file's bytes, its text, and what a person would say stands in it."""

    separator: str
    content: bytes = b""
    text: str = ""
    rows: list[tuple[int, str, str]] = field(default_factory=list)  # line, text, label
    left_out: Counter = field(default_factory=Counter)
    blank_rows: int = 0
    repeated_headers: int = 0


@dataclass
class Style:
    """How a program writes fields: csv.writer, Spark, people."""

    separator: str
    line_end: str
    quote_all: bool
    backslashes: bool
    spaces: str  # behind each separator

    def field(self, text: str) -> str:
        special = ("\n", "\r", '"', self.separator, *([" "] if text[:1] == " " else []))
        if not self.quote_all and not any(mark in text for mark in special):
            return text
        if self.backslashes:
            text = re.sub(r'\\+(?="|\Z)', lambda run: run[0] * 2, text).replace('"', '\\"')
        else:
            text = text.replace('"', '""')
        return f'"{text}"'

    def row(self, cells: list[str]) -> str:
        return (self.separator + self.spaces).join(map(self.field, cells)) + self.line_end


def some_text(rnd: Random) -> str:
    return "".join(rnd.choice(MARKS if rnd.random() < 0.3 else LETTERS) for _ in range(rnd.randrange(12)))


def some_label(rnd: Random, labels: list[str]) -> str:
    label = rnd.choice(labels) if rnd.random() < 0.8 else some_text(rnd)
    return "ham" if label.strip().casefold() == "label" else label


def encoded(rnd: Random, text: str) -> bytes:
    mark, encoding = rnd.choice(ENCODINGS)
    content = mark + text.encode(encoding)
    packing = rnd.choice(["", "", "", "gzip", "members"])
    if packing == "gzip":
        return gzip.compress(content, 1, mtime=0)
    if packing == "members":
        half = len(content) // 2
        members = gzip.compress(content[:half], 1, mtime=0) + gzip.compress(content[half:], 1, mtime=0)
        return members + bytes(rnd.randrange(4))
    return content


def line_ends(text: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", text))


def good_file(rnd: Random) -> File:
    """A file that a person would call good, but for rows that lack a text or a label or have too many fields."""
    style = Style(
        separator=rnd.choice(",;\t|"),
        line_end=rnd.choice(["\n", "\r\n", "\r"]),
        quote_all=rnd.random() < 0.5,
        backslashes=rnd.random() < 0.3,
        spaces=rnd.choice(["", "", " ", "  "]),
    )
    text_name = rnd.choice(["text", "Text", " TEXT", "text\u200b", "\xa0text ", "ｔｅｘｔ"])
    label_name = rnd.choice(["label", "LABEL ", "la\u00adbel"])
    header = [text_name, label_name, *rnd.choice([[], ["id"], ["", "a note"]])]
    rnd.shuffle(header)
    text_at, label_at, width = header.index(text_name), header.index(label_name), len(header)
    file, labels = File(style.separator), rnd.choice([LABELS, LABELS, ["ham", "spam"]])
    out = rnd.choice(["", "", f"sep={style.separator}{style.line_end}", style.line_end * 2])
    if out and rnd.random() < 0.5:
        out += style.separator * (width - 1) + style.line_end
    out += style.row(header)
    kinds = ["clear"] * style.backslashes
    weights = {"row": 12, "shifted": 1, "short": 1, "empty": 1, "blank": 1, "header": 1, "long": 1}
    kinds += rnd.choices(list(weights), list(weights.values()), k=rnd.randrange(9 if labels is LABELS else 30))
    for kind in kinds:
        if kind == "header":
            file.repeated_headers += 1
            out += style.row(header)
            continue
        if kind == "blank":
            file.blank_rows += 1
            out += rnd.choice([style.line_end, style.separator * (width - 1) + style.line_end])
            continue
        line, cells = line_ends(out) + 1, [some_text(rnd) for _ in header]
        cells[text_at], cells[label_at] = CLEAR if kind == "clear" else some_text(rnd), some_label(rnd, labels)
        if kind == "shifted":
            cells.append("x")
        elif kind == "long":
            cells += [""] * rnd.randint(1, 3)
        elif kind == "short":
            cells = cells[: rnd.randint(1, width - 1)]
        elif kind == "empty":
            cells[rnd.choice([text_at, label_at])] = " "
        out += style.row(cells)
        padded = cells + [""] * (width - len(cells))
        text, label = padded[text_at].strip(), padded[label_at].strip()
        if kind == "shifted":
            file.left_out["too many fields"] += 1
        elif text and label:
            file.rows.append((line, text, label))
        elif any(cell.strip() for cell in cells):
            file.left_out["no label" if text else "no text"] += 1
        else:
            file.blank_rows += 1
    if not out.endswith(style.line_end * 2) and rnd.random() < 0.5:
        out = out.removesuffix(style.line_end)
    file.content, file.text = encoded(rnd, out), out
    return file


def any_bytes(rnd: Random) -> bytes:
    """Pieces of CSV in any order, mostly behind a good header; some with a few bytes put in anywhere."""
    content = encoded(rnd, rnd.choice(HEADERS) + "".join(rnd.choices(PIECES, k=rnd.randrange(40))))
    if rnd.random() < 0.1:
        at = rnd.randint(0, len(content))
        content = content[:at] + rnd.randbytes(rnd.randrange(4)) + content[at:]
    return content


def in_chunks(rnd: Random, content: bytes) -> list[bytes]:
    ends = sorted(rnd.randint(0, len(content)) for _ in range(rnd.randrange(6)))
    return [content[a:b] for a, b in zip([0, *ends], [*ends, len(content)], strict=True)]


randoms = st.randoms(use_true_random=False)
good_files = randoms.map(good_file)
any_files = st.one_of(good_files.map(lambda file: file.content), randoms.map(any_bytes))
