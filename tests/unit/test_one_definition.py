"""What has to be written down in two places, because two programs stand alone: the places agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev import docs
from mlops import records

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "scripts" / "training"
WORKFLOW = ROOT / ".github" / "workflows" / "upload-data.yml"


@pytest.fixture(scope="module")
def defaults() -> dict[str, str]:
    """The defaults of the Terraform variables that are texts."""
    inputs = docs.read_module(ROOT / "terraform").inputs
    return {item.name: item.default.strip('"') for item in inputs if (item.default or "").startswith('"')}


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())
    return content


def constants(path: Path) -> dict[str, Any]:
    """The literals at the top of a program, without running it."""
    body = ast.parse(path.read_text()).body
    found = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    return {ast.unparse(node.targets[0]): node.value.value for node in found if isinstance(node.value, ast.Constant)}


def test_the_default_base_model(defaults: dict[str, str]) -> None:
    assert constants(TRAINING / "train.py")["DEFAULT_BASE_MODEL"] == defaults["base_model"]


def test_the_default_columns(defaults: dict[str, str], workflow: dict[str, Any]) -> None:
    for column in ("text_column", "label_column"):
        (in_training,) = re.findall(
            rf'environment\.get\("{column.upper()}"\) or "(\w+)"', (TRAINING / "train.py").read_text()
        )
        # YAML takes the key "on" for a boolean.
        in_workflow = {trigger["inputs"][column]["default"] for trigger in workflow[True].values()}
        assert {in_training, *in_workflow} == {defaults[column]}


def test_the_release_of_transformers_is_that_of_the_serving_images() -> None:
    (trains,) = re.findall(r"^transformers==([\d.]+)$", (TRAINING / "requirements.txt").read_text(), re.MULTILINE)
    images = (ROOT / "terraform" / "images.tf").read_text()
    serve = re.findall(r'"huggingface-pytorch-inference:[\d.]+-transformers([\d.]+)-', images)
    assert len(serve) == 2
    assert set(serve) == {trains}


def test_the_release_of_torch_is_that_of_the_training_image() -> None:
    laptop = (ROOT / "scripts" / "local" / "requirements-training.txt").read_text()
    (on_a_laptop,) = re.findall(r"^torch==([\d.]+)$", laptop, re.MULTILINE)
    (on_aws,) = re.findall(r'"pytorch:([\d.]+)-cpu-', (ROOT / "terraform" / "images.tf").read_text())
    assert on_a_laptop == on_aws


def test_the_pattern_of_a_models_name(workflow: dict[str, Any]) -> None:
    (pattern,) = re.findall(r"model_name='\^\((.+)\)\?\$'", WORKFLOW.read_text())
    assert pattern.replace("(", "(?:") == records.MODEL_NAME.pattern
