"""Write the inputs and outputs of the Terraform root and its modules into terraform/README.md.

    python -m dev.docs

Everything between the page's two marks is generated from the variables.tf, outputs.tf and resources of each folder;
the rest of the page is written by hand. A test fails when the page is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcl2
from lark.exceptions import LarkError

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "<!-- made by `make docs` from here on -->"
END = "<!-- end of what `make docs` makes -->"


class DocsError(Exception):
    """The page cannot be made."""


@dataclass(frozen=True)
class Input:
    """A variable of a module. default: as it is written in Terraform, or None where the variable is required."""

    name: str
    type: str
    description: str
    default: str | None


@dataclass(frozen=True)
class Module:
    """What a folder of Terraform takes, creates and gives. outputs: descriptions by name."""

    inputs: list[Input]
    resources: list[str]
    outputs: dict[str, str]


def text_of(value: object) -> str:
    """Return a quoted string of the parser without its quotes and escapes, or an expression without its ${}."""
    text = str(value)
    if text.startswith('"') and text.endswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text.removeprefix("${").removesuffix("}") if text.startswith("${") else text


def as_terraform(value: object) -> str:
    """Return a default on one line, as one would write it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case dict() if value:
            return "{ " + ", ".join(f"{text_of(key)} = {as_terraform(item)}" for key, item in value.items()) + " }"
        case dict():
            return "{}"
        case list():
            return "[" + ", ".join(as_terraform(item) for item in value) + "]"
        case _:
            return str(value)


def parse(path: Path) -> dict[str, Any]:
    """Return the blocks of a file, by kind. Raises DocsError when it cannot be parsed."""
    try:
        return hcl2.loads(path.read_text(encoding="utf-8"))
    except LarkError as error:
        raise DocsError(f"{path} cannot be read as Terraform: {error}") from error


def blocks(files: Iterable[dict[str, Any]], kind: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the labels and the content of all blocks of one kind ("variable", "resource")."""
    for block in (block for file in files for block in file.get(kind, [])):
        labels = []
        while "__is_block__" not in block:
            [(label, block)] = block.items()
            labels.append(text_of(label))
        yield labels, block


def read_module(folder: Path) -> Module:
    """Return what a folder takes, creates and gives.

    Raises DocsError when a file cannot be parsed, or a variable or an output has no description.
    """
    files = [parse(path) for path in sorted(folder.glob("*.tf"))]
    inputs = []
    for [name], block in blocks(files, "variable"):
        if not {"type", "description"} <= block.keys():
            raise DocsError(f'{folder}: the variable "{name}" needs a type and a description')
        default = as_terraform(block["default"]) if "default" in block else None
        inputs.append(Input(name, text_of(block["type"]), text_of(block["description"]), default))
    outputs = {}
    for [name], block in blocks(files, "output"):
        if "description" not in block:
            raise DocsError(f'{folder}: the output "{name}" needs a description')
        outputs[name] = text_of(block["description"])
    resources = sorted({labels[0] for labels, _ in blocks(files, "resource")})
    return Module(sorted(inputs, key=lambda item: item.name), resources, dict(sorted(outputs.items())))


def cell(text: str) -> str:
    """Return a text for a cell of a table: what Markdown would take for a tag or a border is escaped."""
    parts = text.replace("\n", " ").replace("|", "\\|").split("`")
    # Every second part is between backticks, where Markdown shows < as it is.
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def section(module: Module) -> Iterator[str]:
    """Yield the lines of a module: a table of inputs, a table of outputs, what it creates."""
    if module.resources:
        yield "Makes: " + ", ".join(f"`{name}`" for name in module.resources) + "."
        yield ""
    yield from ("| input | type | default | |", "| --- | --- | --- | --- |")
    for item in module.inputs:
        default = "required" if item.default is None else f"`{item.default}`"
        yield f"| `{item.name}` | `{cell(item.type)}` | {cell(default)} | {cell(item.description)} |"
    yield ""
    if module.outputs:
        yield from ("| output | |", "| --- | --- |")
        for name, description in module.outputs.items():
            yield f"| `{name}` | {cell(description)} |"
        yield ""


def reference(terraform: Path) -> str:
    """Return the generated part of the page: the root, then the module for uploads, then the root's own modules."""
    lines = ["", "## Inputs and outputs", "", *section(read_module(terraform))]
    lines += ["## The role for uploads from GitHub: `github_upload_role`", ""]
    lines += section(read_module(terraform / "github_upload_role"))
    lines += ["## The root's own modules", "", "They are wired by the root and not meant to be used alone.", ""]
    for folder in sorted((terraform / "modules").iterdir()):
        lines += [f"### `modules/{folder.name}`", "", *section(read_module(folder))]
    return "\n".join(lines)


def renew(page: str, made: str) -> str:
    """Return the page with its generated part replaced. Raises DocsError unless each mark is there once."""
    match page.split(BEGIN):
        case [before, rest] if rest.count(END) == 1:
            return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"
    raise DocsError(f"the page must hold {BEGIN!r} and, after it, {END!r}, each once")


def main() -> int:
    """Write the page and return the exit code."""
    page = ROOT / "terraform" / "README.md"
    try:
        old = page.read_text(encoding="utf-8")
        new = renew(old, reference(page.parent))
    except DocsError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 1
    if new != old:
        page.write_text(new, encoding="utf-8")
    print(f"{page.relative_to(ROOT)}: {'rewritten' if new != old else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
