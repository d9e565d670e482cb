"""scripts/dev/docs.py: the page of inputs and outputs is what Terraform's files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dev import docs

PAGE = docs.ROOT / "terraform" / "README.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main.tf").write_text('resource "aws_sns_topic" "this" {\n  name = var.name\n}\n')
    return tmp_path


def table(folder: Path) -> str:
    return "\n".join(docs.section(docs.read_module(folder)))


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert docs.renew(page, docs.reference(PAGE.parent)) == page, "terraform/README.md is stale: run `make docs`"


def test_every_input_and_output_of_every_module_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    declared = re.compile(r'^(?:variable|output) "(\w+)"', re.MULTILINE)
    terraform = PAGE.parent

    for folder in [terraform, terraform / "github_upload_role", *(terraform / "modules").iterdir()]:
        for path in folder.glob("*.tf"):
            for name in declared.findall(path.read_text()):
                assert f"| `{name}` |" in page, f"{path}: {name}"


def test_an_input_without_a_default_is_required_and_a_null_default_is_not(folder: Path) -> None:
    (folder / "variables.tf").write_text(
        'variable "name" {\n  type = string\n  description = "Its name."\n}\n'
        'variable "key" {\n  type = string\n  description = "Its key."\n  default = null\n}\n'
    )

    assert "| `name` | `string` | required | Its name. |" in table(folder)
    assert "| `key` | `string` | `null` | Its key. |" in table(folder)


def test_types_and_defaults_read_as_they_are_written(folder: Path) -> None:
    (folder / "variables.tf").write_text(
        """
variable "thresholds" {
  type = map(object({
    max = optional(number)
    min = optional(number)
  }))
  description = "What to reach."
  default = {
    accuracy = { min = 0.8 }
  }
}

variable "enabled" {
  type        = bool
  description = "Whether."
  default     = false
}

variable "models" {
  type        = list(string)
  description = "Which."
  default     = ["a", "b"]
}
"""
    )

    page = table(folder)
    assert (
        "| `thresholds` | `map(object({max = optional(number), min = optional(number)}))` "
        "| `{ accuracy = { min = 0.8 } }` | What to reach. |" in page
    )
    assert "| `enabled` | `bool` | `false` | Whether. |" in page
    assert '| `models` | `list(string)` | `["a", "b"]` | Which. |' in page


def test_a_description_cannot_break_the_table(folder: Path) -> None:
    (folder / "outputs.tf").write_text('output "uri" {\n  description = "<b> | \\"x\\" | `a<b>`"\n  value = 1\n}\n')

    assert '| `uri` | &lt;b> \\| "x" \\| `a<b>` |' in table(folder)


def test_what_a_module_makes_is_listed_once(folder: Path) -> None:
    (folder / "more.tf").write_text('resource "aws_sns_topic" "other" {}\nresource "aws_iam_role" "this" {}\n')

    assert "Makes: `aws_iam_role`, `aws_sns_topic`." in table(folder)


@pytest.mark.parametrize("kind", ["variable", "output"])
def test_one_without_a_description_is_refused(folder: Path, kind: str) -> None:
    (folder / "more.tf").write_text(f'{kind} "silent" {{\n  type = string\n}}\n')

    with pytest.raises(docs.DocsError, match='"silent" needs'):
        docs.read_module(folder)


def test_a_file_that_is_no_terraform_is_named(folder: Path) -> None:
    (folder / "broken.tf").write_text('variable "x" {')

    with pytest.raises(docs.DocsError, match=r"broken\.tf cannot be read as Terraform"):
        docs.read_module(folder)


def test_what_is_written_by_hand_stays() -> None:
    assert docs.renew(f"before\n{docs.BEGIN}\nold\n{docs.END}\nafter\n", "new") == (
        f"before\n{docs.BEGIN}\nnew\n{docs.END}\nafter\n"
    )


@pytest.mark.parametrize("page", ["", docs.BEGIN, docs.END, f"{docs.END}{docs.BEGIN}"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(docs.DocsError, match="the page must hold"):
        docs.renew(page, "new")
