"""scripts/terraform.py: where a stack goes, and that it stays there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import terraform


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's own AWS settings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def make_terraform(folder: Path, outputs: dict[str, object]) -> list[str]:
    """Make a stand-in that answers `terraform output -json`."""
    binary = folder / "terraform"
    binary.write_text(f"#!/bin/sh\necho '{json.dumps(outputs)}'\n")
    binary.chmod(0o755)
    return [str(binary)]


@pytest.mark.usefixtures("no_settings")
def test_without_a_region_it_says_how_to_set_one() -> None:
    with pytest.raises(terraform.TerraformError, match=r"no AWS region is configured.*AWS_REGION=.* make deploy"):
        terraform.find_region({})


@pytest.mark.usefixtures("no_settings")
def test_the_region_is_that_of_the_environment_or_of_the_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[profile team]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_PROFILE", "team")

    assert terraform.find_region(os.environ) == "eu-west-3"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert terraform.find_region(os.environ) == "eu-west-2"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert terraform.find_region(os.environ) == "eu-west-1"


@pytest.mark.usefixtures("no_settings")
def test_an_unknown_profile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "tema")

    with pytest.raises(terraform.TerraformError, match="tema"):
        terraform.find_region(os.environ)


def test_a_stack_is_not_made_again_in_another_region(tmp_path: Path) -> None:
    command = make_terraform(tmp_path, {"region_name": {"value": "eu-west-1"}})

    terraform.check_region(command, tmp_path, {"AWS_REGION": "eu-west-1"})
    with pytest.raises(terraform.TerraformError, match=r"is in eu-west-1, but your AWS settings say us-east-1"):
        terraform.check_region(command, tmp_path, {"AWS_REGION": "us-east-1"})


def test_a_first_deployment_goes_where_the_settings_point(tmp_path: Path) -> None:
    terraform.check_region(make_terraform(tmp_path, {}), tmp_path, {"AWS_REGION": "us-east-1"})


@pytest.mark.usefixtures("no_settings")
def test_a_folder_with_a_provider_of_its_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "provider.tf").write_text('provider "aws" {\n  region = "eu-west-1"\n}\n')

    terraform.check_region(["no-such-program"], tmp_path, {})
