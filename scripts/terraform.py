"""Run Terraform in this project, with or without a registry in reach.

    python scripts/terraform.py [--dir terraform] <init|validate|fmt|plan|apply|destroy|output|...> [its own options]

`init` installs the AWS provider from a mirror on disk where there is one, else from the registry; every command that
needs an initialised folder is preceded by it. A mirror is looked for in $TF_PLUGIN_MIRROR, then where Terraform
looks anyway, then below /opt. A Terraform configuration file of your own that says where providers come from wins.
`plan`, `apply` and `destroy` need a region, and refuse one that is not the stack's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError

ROOT = Path(__file__).resolve().parent.parent
PROVIDER = Path("registry.terraform.io", "hashicorp", "aws")
# The same limits as in terraform/versions.tf.
MINIMUM_TERRAFORM = (1, 9)
MINIMUM_PROVIDER = (5, 100)
BELOW_PROVIDER = (7,)
NO_INIT = frozenset({"fmt", "init", "version"})
NEEDS_REGION = frozenset({"apply", "destroy", "plan", "refresh"})


class TerraformError(Exception):
    """Terraform cannot be run as asked."""


def as_version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version ("5.100.0" gives (5, 100, 0)), or () where there are none."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def holds_provider(folder: Path, platform: str) -> bool:
    """Tell whether a mirror has a release of the AWS provider that fits, for a platform such as linux_amd64.

    Both layouts count, packed (a zip) and unpacked (a folder per version and platform):
    https://developer.hashicorp.com/terraform/cli/config/config-file#filesystem_mirror
    """
    packed = (path.name.split("_")[1] for path in folder.glob(f"{PROVIDER}/terraform-provider-aws_*_{platform}.zip"))
    unpacked = (path.parent.name for path in folder.glob(f"{PROVIDER}/*/{platform}"))
    return any(MINIMUM_PROVIDER <= as_version(version) < BELOW_PROVIDER for version in (*packed, *unpacked))


def mirror_candidates(environment: Mapping[str, str], opt: Path = Path("/opt")) -> Iterable[Path]:
    """Yield the folders where a mirror may be, the likeliest first.

    Terraform's own list: https://developer.hashicorp.com/terraform/cli/config/config-file#implied-local-mirror-directories
    """
    home = Path(environment.get("HOME", "~")).expanduser()
    yield home / ".terraform.d/plugins"
    yield Path(environment.get("XDG_DATA_HOME") or home / ".local/share") / "terraform/plugins"
    for share in (environment.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":"):
        if share:
            yield Path(share) / "terraform/plugins"
    yield from sorted(path.parent for path in opt.glob("*/registry.terraform.io"))


def find_mirror(environment: Mapping[str, str], platform: str, opt: Path = Path("/opt")) -> Path | None:
    """Return the first folder that holds the AWS provider for the platform, or None to use the registry.

    Raises TerraformError when TF_PLUGIN_MIRROR is set to a folder that does not hold it.
    """
    chosen = environment.get("TF_PLUGIN_MIRROR")
    if chosen:
        if not holds_provider(Path(chosen), platform):
            raise TerraformError(
                f"TF_PLUGIN_MIRROR={chosen} holds no hashicorp/aws from 5.100 to below 7.0 for {platform}: expected "
                f"{PROVIDER}/<version>/{platform}/ in it. Correct it, or unset it to use the registry."
            )
        return Path(chosen).resolve()
    for folder in mirror_candidates(environment, opt):
        if holds_provider(folder, platform):
            return folder
    return None


def configures_installation(environment: Mapping[str, str]) -> bool:
    """Tell whether the user's own Terraform configuration says where providers come from."""
    path = Path(
        environment.get("TF_CLI_CONFIG_FILE") or Path(environment.get("HOME", "~")) / ".terraformrc"
    ).expanduser()
    return path.is_file() and "provider_installation" in path.read_text(errors="replace")


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without a TF_CLI_CONFIG_FILE that names no file: Terraform would warn at every call."""
    cleaned = dict(environment)
    if not Path(cleaned.get("TF_CLI_CONFIG_FILE", "")).is_file():
        cleaned.pop("TF_CLI_CONFIG_FILE", None)
    return cleaned


def find_terraform(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the path of terraform and its platform (such as linux_amd64).

    Raises TerraformError when it is missing, does not run or is too old.
    """
    minimum = ".".join(map(str, MINIMUM_TERRAFORM))
    binary = shutil.which("terraform", path=environment.get("PATH"))
    if binary is None:
        raise TerraformError(
            f"terraform is not installed. Install version {minimum} or later "
            "(https://developer.hashicorp.com/terraform/install) and see that it is on the PATH."
        )
    # In a folder without a configuration: a half-written one must not keep it from answering.
    answer = subprocess.run([binary, "version", "-json"], env=environment, cwd="/", capture_output=True, text=True)
    if answer.returncode != 0:
        raise TerraformError(f"`{binary} version` failed:\n{answer.stderr.strip()}")
    facts = json.loads(answer.stdout)
    if as_version(facts["terraform_version"]) < MINIMUM_TERRAFORM:
        raise TerraformError(
            f"{binary} is version {facts['terraform_version']}; this project needs {minimum} or later."
        )
    return binary, facts["platform"]


def init_arguments(environment: Mapping[str, str], platform: str) -> list[str]:
    """Return the options of `terraform init` that choose where the provider comes from."""
    if not environment.get("TF_PLUGIN_MIRROR") and configures_installation(environment):
        return []
    mirror = find_mirror(environment, platform)
    return [f"-plugin-dir={mirror}"] if mirror else []


def find_region(environment: Mapping[str, str]) -> str:
    """Return the region that the AWS provider will use: AWS_REGION, AWS_DEFAULT_REGION or the profile's.

    Raises TerraformError when there is none.
    """
    try:
        region = environment.get("AWS_REGION") or botocore.session.Session().get_config_variable("region")
    except BotoCoreError as error:
        raise TerraformError(f"your AWS settings cannot be read: {error}") from error
    if not region:
        raise TerraformError(
            "no AWS region is configured, and the stack is created where your AWS settings point. Set one, as in "
            "`AWS_REGION=eu-west-1 make deploy`, or give your profile one: aws configure set region eu-west-1"
        )
    return str(region)


def check_region(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
    """Refuse to work without a region, or in one that is not the stack's: that would create a second stack.

    A folder with a provider block of its own is left alone: the region may be in it.
    """
    if any('provider "aws"' in path.read_text() for path in directory.glob("*.tf")):
        return
    region = find_region(environment)
    output = subprocess.run(
        [*command, "output", "-json"], env={**environment, "TF_CLI_ARGS": ""}, capture_output=True, text=True
    )
    stack = json.loads(output.stdout or "{}").get("region_name", {}).get("value", region)
    if stack != region:
        raise TerraformError(
            f"this stack is in {stack}, but your AWS settings say {region}. For this stack: AWS_REGION={stack} make "
            "deploy. For one in another region, use a Terraform workspace or state of its own."
        )


def recover_state(directory: Path) -> None:
    """Give a state file on disk that was emptied, and not written again, what it held before the last command.

    Terraform empties the file for some milliseconds after each resource that it changes: killed just then, it would
    have forgotten everything that it has created. Its own backup is from before the command; a plan finds what changed.
    """
    state, backup = directory / "terraform.tfstate", directory / "terraform.tfstate.backup"
    # A move to a backend empties the file, too; init keeps there which one.
    backend = read_json(directory / ".terraform" / "terraform.tfstate").get("backend")
    if backend or not state.exists() or read_json(state) or not read_json(backup):
        return
    shutil.copy(backup, state)
    print(
        f"{state} was cut off when Terraform was killed: restored to what it was before that command", file=sys.stderr
    )


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; {} when it is missing or cut off."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content


def own_command(*arguments: str, directory: Path | None = None) -> list[str]:
    """The command line of this program with these arguments. directory: by default terraform/."""
    chosen = [] if directory is None else ["--dir", str(directory)]
    return [sys.executable, str(Path(__file__).resolve()), *chosen, *arguments]


def run(arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> int:
    """Run one Terraform command in a folder, after `init` where it needs that, and return its exit code.

    Raises TerraformError when terraform is missing or too old, `init` fails, or the region is missing or wrong.
    """
    environment = clean_environment(environment)
    binary, platform = find_terraform(environment)
    command = [binary, f"-chdir={directory}"]
    name = arguments[0]
    if name == "init":
        return subprocess.run(
            [*command, "init", *init_arguments(environment, platform), *arguments[1:]], env=environment
        ).returncode
    if name not in NO_INIT:
        recover_state(directory)
        # Validating needs the provider but no state, hence no credentials.
        backend = ["-backend=false"] if name == "validate" else []
        init = subprocess.run(
            [*command, "init", "-input=false", *backend, *init_arguments(environment, platform)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if init.returncode != 0:
            raise TerraformError(f"terraform init failed:\n{init.stdout}{init.stderr}".rstrip())
    if name in NEEDS_REGION:
        check_region(command, directory, environment)
    return finish([*command, *arguments], environment)


def finish(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit code.

    Ctrl-C reaches it, too; Terraform then completes the call that it is making and writes its state. Killed in the
    middle, it would forget what it has created.
    """
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Run Terraform in this project, with or without a registry in reach.")
    parser.add_argument("--dir", type=Path, default=ROOT / "terraform", help="configuration (default: terraform/)")
    parser.add_argument("command", help="init, validate, fmt, plan, apply, destroy, output, ...")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="Terraform's own options of that command")
    given = parser.parse_args(arguments)
    try:
        return run([given.command, *given.options], given.dir, os.environ)
    except TerraformError as error:
        print(f"terraform.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
