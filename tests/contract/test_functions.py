"""What Terraform deploys is what the handlers expect: their settings, and zips that run on their own."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import package
from needs import KMS_KEY_ARN, SECRET_ARN
from rendered import Plan, function_address, plan
from world import ENVIRONMENT, HANDLERS, ROOT, Watched

# Where Lambda puts boto3 and what it needs (requirements of its wheel); everything else is the standard library.
RUNTIME_PACKAGES = {"boto3", "botocore", "dateutil", "jmespath", "s3transfer", "six", "urllib3"}


def variables_of(stack: Plan, name: str) -> dict[str, str]:
    """The environment of a function; all of it is known in the plan, since ARNs are made from names."""
    variables: dict[str, str] = stack[function_address(name)]["environment"][0]["variables"]
    return variables


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_reads_exactly_the_variables_that_its_function_has(
    stack: Plan, handlers: dict[str, ModuleType], name: str
) -> None:
    environment = Watched(variables_of(stack, name))

    handlers[name].Settings.from_env(environment)

    assert environment.asked == set(environment)


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_reads_its_environment_in_settings_only(name: str) -> None:
    tree = ast.parse((ROOT / "lambda" / name / "handler.py").read_text())
    reads = [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(ast.unparse(node) in ("os.environ", "os.getenv") for node in ast.walk(function))
    ]

    assert reads == ["settings"]


@pytest.mark.parametrize("name", HANDLERS)
def test_the_unit_tests_run_with_the_functions_variables(stack: Plan, name: str) -> None:
    assert set(ENVIRONMENT[name]) == set(variables_of(stack, name))


# Other values than Terraform's defaults, so that a setting which went astray, or never left its default, is seen.
CHOSEN: dict[str, str] = {
    "ACCEPT_UNCOMPARED": "reviews,spam",
    "BASE_MODEL": "org/name",
    "BASE_MODELS": '{"org/other": "v1"}',
    "BASE_MODEL_REVISION": "main",
    "CANDIDATES": "words,blend",
    "CHAMPION_MARGIN": "0.0125",
    "ENDPOINT_INSTANCE_COUNT": "2",
    "ENDPOINT_INSTANCE_TYPE": "ml.m5.xlarge",
    "ENDPOINT_NAME": "reviews",
    "ENDPOINT_TYPE": "instance",
    "HUB_TOKEN_SECRET_ARN": SECRET_ARN,
    "HYPERPARAMETERS": json.dumps(
        {
            "batch_size": "8",
            "epochs": "5",
            "holdout_fraction": "0.3",
            "learning_rate": "2e-5",
            "max_length": "64",
            "seed": "1",
            "weight_decay": "0.1",
        }
    ),
    "INFERENCE_IMAGE": "123456789012.dkr.ecr.us-east-1.amazonaws.com/ours/serve:1",
    "KEEP_MODELS": "7",
    "KMS_KEY_ARN": KMS_KEY_ARN,
    "LABEL_COLUMN": "kind",
    "MAX_CONCURRENT_TRAINING_JOBS": "3",
    "MAX_MODELS": "6",
    "MAX_TRAINING_JOBS_PER_DAY": "21",
    "MODELS": "default reviews",
    "MODEL_THRESHOLDS": '{"spam": {"eval_loss": {"max": 0.2}}}',
    "PROJECT": "reviews",
    "SERVERLESS_MAX_CONCURRENCY": "6",
    "SERVERLESS_MEMORY_MB": "2048",
    "TEXT_COLUMN": "message",
    "THRESHOLDS": '{"accuracy": {"min": 0.9}, "f1": {"max": 0.99, "min": 0.5}}',
    "TRAINING_IMAGE": "123456789012.dkr.ecr.us-east-1.amazonaws.com/ours/train:1",
    "TRAINING_INSTANCE_COUNT": "2",
    "TRAINING_INSTANCE_TYPE": "ml.m5.2xlarge",
    "TRAINING_MAX_RUNTIME_SECONDS": "3600",
    "TRAINING_MAX_WAIT_SECONDS": "5400",
    "TRAINING_VOLUME_GB": "31",
}
# Lists in Terraform; commas stand between their members in an environment.
LISTS = {"ACCEPT_UNCOMPARED"}


def as_read(variables: Mapping[str, str]) -> dict[str, Any]:
    """An environment with its JSON parsed: the order of members and the spaces mean nothing to a handler."""
    return {name: json.loads(value) if value.startswith("{") else value for name, value in variables.items()}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A stack whose variables are all set: those of the unit tests' environment, by name, changed by CHOSEN."""
    declared = re.findall(r'^variable "(\w+)"', (ROOT / "terraform" / "variables.tf").read_text(), re.MULTILINE)
    chosen = {name: value for environment in ENVIRONMENT.values() for name, value in environment.items()} | CHOSEN
    wanted = as_read(chosen) | {name: chosen[name].split(",") for name in LISTS}
    variables = {name.lower(): value for name, value in wanted.items() if name.lower() in declared}
    assert {name.lower() for name in CHOSEN} <= variables.keys()
    variables["models"] = variables["models"].split()
    # Without spot, there is no time to wait for it.
    return plan(tmp_path_factory.mktemp("chosen"), deployment_alarm_models=[], training_use_spot=True, **variables)


@pytest.mark.parametrize("name", HANDLERS)
def test_every_setting_arrives_at_its_function_as_it_was_set(chosen: Plan, zips: dict[str, Path], name: str) -> None:
    program = zips[name].with_name("training.tar.gz").read_bytes()
    wanted = CHOSEN | {"TRAINING_SOURCE_HASH": hashlib.sha256(program).hexdigest()}
    expected = {variable: wanted.get(variable, value) for variable, value in ENVIRONMENT[name].items()}

    assert as_read(variables_of(chosen, name)) == as_read(expected)


@pytest.mark.parametrize("name", HANDLERS)
def test_an_own_key_encrypts_the_log_of_a_function(stack: Plan, name: str) -> None:
    assert stack[function_address(name, "aws_cloudwatch_log_group")]["kms_key_id"] == KMS_KEY_ARN


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The zips that are deployed, built now, by function."""
    folder = tmp_path_factory.mktemp("zips")
    package.build(ROOT, folder)
    return {name: folder / f"{name}.zip" for name in HANDLERS}


@pytest.mark.parametrize("name", HANDLERS)
def test_a_zip_holds_the_handler_of_this_checkout_and_nothing_else(zips: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(zips[name]) as archive:
        assert archive.namelist() == ["handler.py"]
        assert archive.read("handler.py") == (ROOT / "lambda" / name / "handler.py").read_bytes()


def test_two_builds_are_the_same_bytes(zips: dict[str, Path], tmp_path: Path) -> None:
    package.build(ROOT, tmp_path)

    for name, path in zips.items():
        again = tmp_path / f"{name}.zip"
        assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()


# Runs without site-packages and without the environment: what is imported comes from the zip, the standard library
# or the packages that Lambda has, which are linked into a folder of their own.
IMPORT = """
import importlib, json, sys
path, runtime, entry = sys.argv[1:]
sys.path[:0] = [path]
sys.path.append(runtime)
module, _, function = entry.rpartition(".")
handler = getattr(importlib.import_module(module), function)
print(json.dumps({"file": sys.modules[module].__file__, "callable": callable(handler),
                  "parameters": list(handler.__code__.co_varnames[:handler.__code__.co_argcount])}))
"""


@pytest.mark.parametrize("name", HANDLERS)
def test_a_zip_runs_with_nothing_but_boto3(stack: Plan, zips: dict[str, Path], tmp_path: Path, name: str) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for entry in sys.path:
        for found in (Path(entry, each) for each in RUNTIME_PACKAGES):
            # six is one file, the others are folders.
            source = found if found.is_dir() else found.with_suffix(".py")
            if source.exists() and not (runtime / source.name).exists():
                (runtime / source.name).symlink_to(source)
    assert {path.stem for path in runtime.iterdir()} == RUNTIME_PACKAGES
    entry_point = stack[function_address(name)]["handler"]

    command = [sys.executable, "-I", "-S", "-c", IMPORT, str(zips[name]), str(runtime), entry_point]
    answer = subprocess.run(command, capture_output=True, text=True, env={}, cwd=tmp_path, check=False)

    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    loaded = json.loads(answer.stdout)
    assert loaded == {"file": f"{zips[name]}/handler.py", "callable": True, "parameters": ["event", "context"]}
