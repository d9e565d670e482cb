"""Why the variables on make's command line cannot be taken, in one sentence; prints nothing when they can.

    python3 scripts/dev/make_variables.py <goal>... -- <variable>...

Run by the Makefile before there is a .venv, so it needs nothing but Python. A target takes the variables that its line
of help in the Makefile names, as in "## Upload a CSV: DATA=file.csv [MODEL=name]".
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"
HELP_LINE = re.compile(r"([a-z][a-z-]*):.*? ## (.*)")
VARIABLE = re.compile(r"\b([A-Z_]+)=")


def variables(makefile: str) -> dict[str, set[str]]:
    """The variables that each target takes, by target."""
    lines = (HELP_LINE.fullmatch(line) for line in makefile.splitlines())
    return {line[1]: set(VARIABLE.findall(line[2])) for line in lines if line}


def refusal(goals: Sequence[str], given: Sequence[str], taken: dict[str, set[str]]) -> str:
    """Why these variables are not taken by these goals; "" when they are. taken: by target."""
    known = set().union(*(taken.get(goal, set()) for goal in goals or ["help"]))
    everywhere = set().union(*taken.values())
    command = " ".join(["make", *goals])
    for name in sorted(set(given) - known):
        nearest = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.5)
        nearest = nearest or difflib.get_close_matches(name.upper(), sorted(everywhere), n=1)
        if name in everywhere:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            return f"{command} does not take {name}: {takes}; nothing was done"
        guess = f"did you mean {nearest[0]}?" if nearest else "make help shows those there are;"
        return f"there is no variable {name}: {guess} Nothing was done"
    return ""


if __name__ == "__main__":
    separator = sys.argv.index("--")
    print(refusal(sys.argv[1:separator], sys.argv[separator + 1 :], variables(MAKEFILE.read_text(encoding="utf-8"))))
