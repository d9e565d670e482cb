"""What the commands print: text from outside is shown as text, and cannot move the cursor, hide or forge lines."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TextIO

# Characters that Python calls printable, and nobody sees: those of Unicode's Default_Ignorable_Code_Point, a blank.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
PLAIN_MAX = 2000  # characters


def plain(value: object, limit: int = PLAIN_MAX) -> str:
    """A value from outside, on one line of at most limit characters: what would break the line, reorder it, or not be
    seen, is shown as an escape (\\n, \\x1b, \\u202e). What is plain stays as it is. The functions have the same.
    """
    shown = "".join(c if c.isprintable() and not UNSEEN.match(c) else ascii(c)[1:-1] for c in str(value)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def say(line: object = "", to: TextIO | None = None) -> None:
    """Print one line, of any length, whatever is in it. to: stdout unless given."""
    print(plain(line, sys.maxsize - 1), file=to, flush=True)


def complain(text: object) -> None:
    """Print a message to stderr that may have several lines of ours. Values from outside in it must be plain."""
    for line in str(text).split("\n"):
        say(line, sys.stderr)


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print the rows of a table: wrapped to the window at a terminal, else each on one line."""
    if not rows:
        return
    widths = [max(len(plain(row[at])) for row in rows) for at in range(len(rows[0]))]
    if not sys.stdout.isatty():
        for row in rows:
            say("  ".join(["", *(plain(cell).ljust(width) for cell, width in zip(row, widths, strict=True))]).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=True)
    for at in range(len(rows[0])):
        table.add_column(overflow="fold", no_wrap=at == 0 and widths[0] <= 50)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)
