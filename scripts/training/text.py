"""Text from outside, shown as text: in the log and in the job's FailureReason."""

import re

# Characters that Python calls printable, and nobody sees: those of Unicode's Default_Ignorable_Code_Point, a blank.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
PLAIN_MAX = 2000  # characters


def plain(value: object, limit: int = PLAIN_MAX) -> str:
    """A value from outside, on one line of at most limit characters: what would break the line, reorder it, or not be
    seen, is shown as an escape (\\n, \\x1b, \\u202e). What is plain stays as it is. The functions have the same.
    """
    shown = "".join(c if c.isprintable() and not UNSEEN.match(c) else ascii(c)[1:-1] for c in str(value)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
