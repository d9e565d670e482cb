"""scripts/terraform.py: where the provider comes from, and what is said when Terraform cannot run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "terraform.py"
PLATFORM = "linux_amd64"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("project_terraform", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


terraform = load()


def make_mirror(folder: Path, version: str = "5.100.0", platform: str = PLATFORM) -> Path:
    """Make an unpacked mirror with an empty provider in it."""
    (folder / terraform.PROVIDER / version / platform).mkdir(parents=True)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing outside tmp_path is looked at."""
    return {"HOME": str(tmp_path / "home"), "XDG_DATA_DIRS": str(tmp_path / "share")}


def find(environment: dict[str, str], tmp_path: Path) -> Path | None:
    result: Path | None = terraform.find_mirror(environment, PLATFORM, opt=tmp_path / "opt")
    return result


def test_without_any_mirror_the_registry_is_used(environment: dict[str, str], tmp_path: Path) -> None:
    assert find(environment, tmp_path) is None


@pytest.mark.parametrize(
    "place",
    ["home/.terraform.d/plugins", "home/.local/share/terraform/plugins", "share/terraform/plugins", "opt/mirror"],
)
def test_a_mirror_is_found_in_every_usual_place(environment: dict[str, str], tmp_path: Path, place: str) -> None:
    mirror = make_mirror(tmp_path / place)

    assert find(environment, tmp_path) == mirror


def test_the_named_mirror_wins_over_the_usual_places(environment: dict[str, str], tmp_path: Path) -> None:
    make_mirror(tmp_path / "home/.terraform.d/plugins")
    named = make_mirror(tmp_path / "named")

    assert find({**environment, "TF_PLUGIN_MIRROR": str(named)}, tmp_path) == named


def test_a_named_mirror_without_the_provider_is_an_error_that_names_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(terraform.TerraformError, match=r"TF_PLUGIN_MIRROR=.*/empty"):
        find({**environment, "TF_PLUGIN_MIRROR": str(tmp_path / "empty")}, tmp_path)


@pytest.mark.parametrize("version", ["5.99.1", "4.0.0", "7.0.0", "7.1.0"])
def test_a_mirror_of_an_unfit_version_is_passed_over(environment: dict[str, str], tmp_path: Path, version: str) -> None:
    make_mirror(tmp_path / "home/.terraform.d/plugins", version)
    fit = make_mirror(tmp_path / "opt/mirror", "6.69.1")

    assert find(environment, tmp_path) == fit


def test_a_mirror_for_another_platform_is_passed_over(environment: dict[str, str], tmp_path: Path) -> None:
    make_mirror(tmp_path / "opt/mirror", platform="darwin_arm64")

    assert find(environment, tmp_path) is None


def test_a_packed_mirror_counts_too(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "opt/packed" / terraform.PROVIDER
    folder.mkdir(parents=True)
    (folder / f"terraform-provider-aws_5.100.0_{PLATFORM}.zip").touch()

    assert find(environment, tmp_path) == tmp_path / "opt/packed"


def test_a_configuration_that_installs_providers_itself_is_left_alone(
    environment: dict[str, str], tmp_path: Path
) -> None:
    mirror = make_mirror(tmp_path / "home/.terraform.d/plugins")
    config = tmp_path / "terraformrc"
    config.write_text('provider_installation {\n  network_mirror { url = "https://mirror.example/" }\n}\n')

    assert terraform.init_arguments(environment, PLATFORM) == [f"-plugin-dir={mirror}"]
    assert terraform.init_arguments({**environment, "TF_CLI_CONFIG_FILE": str(config)}, PLATFORM) == []


def test_a_configuration_file_that_does_not_exist_is_not_passed_on(tmp_path: Path) -> None:
    config = tmp_path / "terraformrc"
    environment = {"TF_CLI_CONFIG_FILE": str(config), "LANG": "C"}

    assert terraform.clean_environment(environment) == {"LANG": "C"}
    config.touch()
    assert terraform.clean_environment(environment) == environment


def test_a_missing_terraform_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert terraform.main(["validate"]) == 1

    assert "terraform is not installed" in capsys.readouterr().err


def make_terraform(folder: Path, version: str) -> None:
    """Make a stand-in that answers `terraform version -json`."""
    binary = folder / "terraform"
    binary.write_text(f'#!/bin/sh\necho \'{{"terraform_version": "{version}", "platform": "{PLATFORM}"}}\'\n')
    binary.chmod(0o755)


def test_an_old_terraform_is_refused_with_both_versions(tmp_path: Path) -> None:
    make_terraform(tmp_path, "1.8.5")

    with pytest.raises(terraform.TerraformError, match=r"is version 1\.8\.5; this project needs 1\.9 or later"):
        terraform.find_terraform({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})


def test_the_oldest_supported_terraform_is_taken(tmp_path: Path) -> None:
    make_terraform(tmp_path, "1.9.0")

    found = terraform.find_terraform({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})

    assert found == (str(tmp_path / "terraform"), PLATFORM)
