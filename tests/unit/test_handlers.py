"""What the three handlers have in common: each stands alone, and what is repeated is repeated word for word."""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest

from world import BUCKET, ENVIRONMENT, HANDLERS, ROOT

# The parts that each handler has of its own.
OWN = {"Settings", "handle", "lambda_handler", "start", "sweep", "tell"}
MAY_BE_EMPTY = {"BASE_MODEL_REVISION", "HUB_TOKEN_SECRET_ARN", "KMS_KEY_ARN"}
NUMBERS = {
    "TRAINING_VOLUME_GB",
    "TRAINING_MAX_RUNTIME_SECONDS",
    "MAX_CONCURRENT_TRAINING_JOBS",
    "MAX_TRAINING_JOBS_PER_DAY",
    "SERVERLESS_MEMORY_MB",
    "SERVERLESS_MAX_CONCURRENCY",
    "ENDPOINT_INSTANCE_COUNT",
    "KEEP_MODELS",
}
OBJECTS = {"HYPERPARAMETERS", "THRESHOLDS", "MODEL_THRESHOLDS", "DEPLOYMENT_POLICY"}


def source(name: str) -> str:
    return (ROOT / "lambda" / name / "handler.py").read_text(encoding="utf-8")


def definitions(name: str) -> dict[str, str]:
    """The handler's functions, classes and constants: {name: source}."""
    text = source(name)
    found = {}
    for node in ast.parse(text).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        for defined in names:
            segment = ast.get_source_segment(text, node)
            assert segment is not None
            decorators = getattr(node, "decorator_list", [])
            found[defined] = "\n".join([*map(ast.unparse, decorators), segment])
    return found


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(HANDLERS, 2)))
def test_what_two_handlers_repeat_is_identical(one: str, other: str) -> None:
    ours, theirs = definitions(one), definitions(other)
    repeated = ours.keys() & theirs.keys() - OWN
    assert {"publish", "put_json", "read_json", "client", "SCHEMA"} <= repeated
    assert {name: ours[name] for name in repeated} == {name: theirs[name] for name in repeated}


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_imports_the_standard_library_and_boto3_only(name: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"boto3", "botocore"}


@pytest.mark.parametrize("name", HANDLERS)
def test_importing_a_handler_makes_no_client_and_reads_no_environment(
    handlers: dict[str, ModuleType], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = ast.parse(source(name))
    at_import = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    called = {ast.unparse(call.func) for node in at_import for call in ast.walk(node) if isinstance(call, ast.Call)}
    assert not called & {"boto3.client", "client", "settings", "os.environ.get", "os.getenv"}
    assert "os.environ" not in " ".join(ast.unparse(node) for node in at_import)


def test_clients_retry_in_the_sdk_and_are_made_once(training: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    sagemaker = training.client("sagemaker")
    assert sagemaker is training.client("sagemaker")
    assert sagemaker.meta.config.retries == {"mode": "standard", "total_max_attempts": 6}
    training.client.cache_clear()


# --- settings ---------------------------------------------------------------------------------------


class Watched(Mapping[str, str]):
    """An environment that remembers which of its variables were asked for."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


@pytest.mark.parametrize("name", HANDLERS)
def test_the_settings_are_exactly_the_variables_that_terraform_sets(handlers: dict[str, ModuleType], name: str) -> None:
    environment = Watched(ENVIRONMENT[name])
    handlers[name].Settings.from_env(environment)
    assert environment.asked == set(ENVIRONMENT[name])


@pytest.mark.parametrize("name", HANDLERS)
def test_valid_settings_arrive(handlers: dict[str, ModuleType], name: str) -> None:
    assert handlers[name].Settings.from_env(ENVIRONMENT[name]).bucket == BUCKET


VARIABLES = [(name, variable) for name in HANDLERS for variable in ENVIRONMENT[name]]


@pytest.mark.parametrize(("name", "variable"), VARIABLES)
def test_a_missing_variable_is_named(handlers: dict[str, ModuleType], name: str, variable: str) -> None:
    environment = {key: value for key, value in ENVIRONMENT[name].items() if key != variable}
    with pytest.raises(handlers[name].ConfigError, match=rf"\b{variable} is missing"):
        handlers[name].Settings.from_env(environment)


@pytest.mark.parametrize(("name", "variable"), [pair for pair in VARIABLES if pair[1] not in MAY_BE_EMPTY])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_named(handlers: dict[str, ModuleType], name: str, variable: str, empty: str) -> None:
    with pytest.raises(handlers[name].ConfigError, match=rf"\b{variable} is missing or empty"):
        handlers[name].Settings.from_env(ENVIRONMENT[name] | {variable: empty})


MALFORMED = {
    **{variable: ["0", "-1", "1.5", "many", "٣", "1" * 10, " 7"] for variable in NUMBERS},
    **{variable: ["{", "[]", '"text"', "null"] for variable in OBJECTS},
    "ENDPOINT_TYPE": ["Serverless", "none"],
    "CHAMPION_MARGIN": ["-0.1", "nan", "inf", "1e999", "a little", "0,005", "٣", " 0.1", "1_0", ".5"],
}
MALFORMED["HYPERPARAMETERS"] = [
    *MALFORMED["HYPERPARAMETERS"],
    '{"epochs": 3}',
    '{"epochs": "3; echo"}',
    '{"epochs": ""}',
    '{"$HOME": "3"}',
    '{"epochs": "{}"}',
]
MALFORMED["THRESHOLDS"] = [
    *MALFORMED["THRESHOLDS"],
    "{}",
    '{"accuracy": 0.8}',
    '{"accuracy": {}}',
    '{"accuracy": {"least": 0.8}}',
    '{"accuracy": {"min": "0.8"}}',
    '{"accuracy": {"min": true}}',
    '{"accuracy": {"min": NaN}}',
    '{"accuracy": {"max": Infinity}}',
]
MALFORMED["MODEL_THRESHOLDS"] = [
    *MALFORMED["MODEL_THRESHOLDS"],
    '{"reviews": {}}',
    '{"reviews": {"accuracy": 1}}',
]


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        (name, variable, value)
        for name in HANDLERS
        for variable in ENVIRONMENT[name]
        for value in MALFORMED.get(variable, [])
    ],
)
def test_a_malformed_variable_is_named(handlers: dict[str, ModuleType], name: str, variable: str, value: str) -> None:
    with pytest.raises(handlers[name].ConfigError, match=rf"\b{variable}\b"):
        handlers[name].Settings.from_env(ENVIRONMENT[name] | {variable: value})


@pytest.mark.parametrize(
    "value", ["5e-5", "42", "0.2", "linear", "cosine_with_restarts", "fp16-O1", "1e+3"], ids=lambda value: value
)
def test_a_hyperparameter_that_a_shell_leaves_alone_is_taken(training: ModuleType, value: str) -> None:
    environment: dict[str, Any] = ENVIRONMENT["training_orchestrator"] | {"HYPERPARAMETERS": f'{{"x": "{value}"}}'}
    assert training.Settings.from_env(environment).hyperparameters == {"x": value}
