"""Does this interpreter have what a requirements.txt asks for? ``python requirements_check.py FILE``.

Run by the interpreter in question. Exit code 0 when it does; else 1, with pip's own sentence for the first
line that is not met. Names and versions are compared, markers honoured; extras, hashes, index options and
editable installs are ignored.
"""

import importlib.metadata
import sys
from pathlib import Path

try:
    from packaging.requirements import InvalidRequirement, Requirement
except ImportError:
    # Every virtual environment with pip has a copy.
    from pip._vendor.packaging.requirements import (  # type: ignore[assignment]
        InvalidRequirement,
        Requirement,
    )


def unmet(path: Path) -> str | None:
    """The first requirement that is not met, as pip says it, or None. Raises OSError, UnicodeError."""
    text = path.read_text(encoding="utf-8-sig")
    for number, line in logical_lines(text):
        line = line.split(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith(("-r ", "--requirement ", "-c ", "--constraint ")):
            option, name = line.split(maxsplit=1)
            problem = unmet(path.parent / name) if option in ("-r", "--requirement") else None
        elif line.startswith("-"):
            continue
        else:
            problem = _unmet_line(line.split(" --")[0], f"line {number} of {path.name}")
        if problem:
            return problem
    return None


def logical_lines(text: str) -> list[tuple[int, str]]:
    """Each line with the number of its first one; a backslash at a line's end joins it with the next."""
    lines: list[tuple[int, str]] = []
    joined = False
    for number, line in enumerate(text.splitlines(), 1):
        if joined:
            lines[-1] = (lines[-1][0], lines[-1][1] + line)
        else:
            lines.append((number, line))
        joined = line.endswith("\\")
        if joined:
            lines[-1] = (lines[-1][0], lines[-1][1][:-1])
    return lines


def _unmet_line(line: str, where: str) -> str | None:
    try:
        wanted = Requirement(line)
    except InvalidRequirement as exc:
        return f"ERROR: Invalid requirement: {line!r}: {exc} (from {where})"
    if wanted.marker and not wanted.marker.evaluate():
        return None
    try:
        have = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return (
            f"ERROR: Could not find a version that satisfies the requirement {line} (from versions: none)\n"
            f"ERROR: No matching distribution found for {line}"
        )
    if not wanted.specifier.contains(have, prereleases=True):
        return (
            f"ERROR: Could not find a version that satisfies the requirement {line} (from versions: {have})\n"
            f"ERROR: No matching distribution found for {line}"
        )
    return None


if __name__ == "__main__":
    message = unmet(Path(sys.argv[1]))
    if message:
        print(message)
        sys.exit(1)
