"""What the three handlers have in common: each stands alone, and what is repeated is repeated word for word."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import sys
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fake_sagemaker import refusal
from world import BUCKET, ENVIRONMENT, HANDLERS, ROOT, Interruption, Watched, World

SHARED = "# --- shared: "
# What each handler has one of, with a content of its own.
OWN = {"EMAILS", "Settings", "lambda_handler"}
MAY_BE_EMPTY = {
    "ACCEPT_UNCOMPARED",
    "BASE_MODEL_REVISION",
    "HUB_TOKEN_SECRET_ARN",
    "KMS_KEY_ARN",
    "MODELS",
    "TRAINING_MAX_WAIT_SECONDS",
}
NUMBERS = {
    "TRAINING_INSTANCE_COUNT",
    "TRAINING_VOLUME_GB",
    "TRAINING_MAX_RUNTIME_SECONDS",
    "TRAINING_MAX_WAIT_SECONDS",
    "MAX_CONCURRENT_TRAINING_JOBS",
    "MAX_TRAINING_JOBS_PER_DAY",
    "MAX_MODELS",
    "SERVERLESS_MEMORY_MB",
    "SERVERLESS_MAX_CONCURRENCY",
    "ENDPOINT_INSTANCE_COUNT",
    "KEEP_MODELS",
}
OBJECTS = {"BASE_MODELS", "HYPERPARAMETERS", "THRESHOLDS", "MODEL_THRESHOLDS", "DEPLOYMENT_POLICY"}


def source(name: str) -> str:
    return (ROOT / "lambda" / name / "handler.py").read_text(encoding="utf-8")


def definitions(text: str) -> set[str]:
    """The names of the functions, classes and constants at the top level of a source."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_handlers_end_in_the_same_block() -> None:
    blocks = {name: source(name).split(SHARED)[1:] for name in HANDLERS}

    assert [len(block) for block in blocks.values()] == [1, 1, 1]
    assert len({block[0] for block in blocks.values()}) == 1
    assert {"notify", "put_json", "read_json", "client", "SCHEMA"} <= definitions(
        blocks[HANDLERS[0]][0].partition("\n")[2]
    )


def test_the_training_orchestrator_reads_uploads_as_the_training_program_does() -> None:
    program = (ROOT / "scripts" / "training" / "reader.py").read_text(encoding="utf-8")
    begin, end = "# --- the reader: ", "# --- the end of the reader ---"
    blocks = [text.partition(begin)[2].partition(end) for text in (program, source("training_orchestrator"))]

    assert [marks for _, marks, _ in blocks] == [end, end]
    assert blocks[0][0] == blocks[1][0]
    assert {"Reader", "check_trainable", "told"} <= definitions(blocks[0][0].partition("\n")[2])


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(HANDLERS, 2)))
def test_outside_the_shared_block_two_handlers_define_nothing_of_the_same_name(one: str, other: str) -> None:
    ours, theirs = (definitions(source(name).split(SHARED)[0]) for name in (one, other))

    assert ours & theirs <= OWN


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


# --- conditional writes -----------------------------------------------------------------------------

# A record that each handler may write.
RECORD_KEYS = {
    "training_orchestrator": "slots/training.json",
    "model_evaluator": "models/decisions/record.json",
    "deployment_orchestrator": "models/deployments/record.json",
}


@pytest.mark.parametrize("name", HANDLERS)
def test_a_conditional_write_that_the_sdk_made_again_is_found_to_be_our_own(
    handlers: dict[str, ModuleType], world: World, name: str
) -> None:
    record = {"schema": 1, "by": "request", "parts": ("a", 1.5, None)}

    def made_before() -> None:
        world.put(RECORD_KEYS[name], json.loads(json.dumps(record)))

    world.around.interruption = Interruption("PutObject", made_before)
    etag = handlers[name].put_json(BUCKET, RECORD_KEYS[name], record, IfNoneMatch="*")
    assert etag == world.s3.head_object(Bucket=BUCKET, Key=RECORD_KEYS[name])["ETag"]


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize("condition", [{"IfNoneMatch": "*"}, {"IfMatch": '"another"'}], ids=str)
def test_a_condition_that_does_not_hold_is_said(
    handlers: dict[str, ModuleType], world: World, name: str, condition: dict[str, str]
) -> None:
    world.put(RECORD_KEYS[name], {"by": "somebody else"})
    assert handlers[name].put_json(BUCKET, RECORD_KEYS[name], {"by": "us"}, **condition) is None
    assert world.record(RECORD_KEYS[name]) == {"by": "somebody else"}


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize(("conflicts", "written"), [(1, True), (4, True), (5, False)])
def test_a_conflict_of_writes_is_tried_again_a_few_times_and_then_an_error(
    handlers: dict[str, ModuleType], world: World, name: str, conflicts: int, written: bool
) -> None:
    left = iter(range(conflicts))

    def conflict() -> None:
        if next(left, None) is not None:
            world.around.interruption = Interruption("PutObject", conflict)
            raise refusal("PutObject", "ConditionalRequestConflict", "Please try again", 409)

    world.around.interruption = Interruption("PutObject", conflict)
    outcome = contextlib.nullcontext() if written else pytest.raises(ClientError, match="ConditionalRequestConflict")
    with outcome:
        handlers[name].put_json(BUCKET, RECORD_KEYS[name], {}, IfNoneMatch="*")
    assert (RECORD_KEYS[name] in set(world.keys())) == written


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HANDLERS)
def test_the_settings_are_exactly_the_variables_that_terraform_sets(handlers: dict[str, ModuleType], name: str) -> None:
    environment = Watched(ENVIRONMENT[name])
    handlers[name].Settings.from_env(environment)
    assert environment.asked == set(ENVIRONMENT[name])


@pytest.mark.parametrize("name", HANDLERS)
def test_valid_settings_arrive(handlers: dict[str, ModuleType], name: str) -> None:
    assert handlers[name].Settings.from_env(ENVIRONMENT[name]).bucket == BUCKET


VARIABLES = [(name, variable) for name in HANDLERS for variable in ENVIRONMENT[name]]


@pytest.mark.parametrize(("name", "variable"), [pair for pair in VARIABLES if pair[1] not in MAY_BE_EMPTY])
def test_a_missing_variable_is_named(handlers: dict[str, ModuleType], name: str, variable: str) -> None:
    environment = {key: value for key, value in ENVIRONMENT[name].items() if key != variable}
    with pytest.raises(handlers[name].ConfigError, match=rf"\b{variable} is missing"):
        handlers[name].Settings.from_env(environment)


@pytest.mark.parametrize(("name", "variable"), [pair for pair in VARIABLES if pair[1] not in MAY_BE_EMPTY])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_named(handlers: dict[str, ModuleType], name: str, variable: str, empty: str) -> None:
    with pytest.raises(handlers[name].ConfigError, match=rf"\b{variable} is missing or empty"):
        handlers[name].Settings.from_env(ENVIRONMENT[name] | {variable: empty})


@pytest.mark.parametrize(("name", "variable"), [pair for pair in VARIABLES if pair[1] in MAY_BE_EMPTY])
def test_a_variable_that_may_be_empty_reads_as_empty_when_it_is_missing(
    handlers: dict[str, ModuleType], name: str, variable: str
) -> None:
    environment = {key: value for key, value in ENVIRONMENT[name].items() if key != variable}
    read = handlers[name].Settings.from_env(environment)
    assert read == handlers[name].Settings.from_env(ENVIRONMENT[name] | {variable: ""})
    assert getattr(read, variable.lower()) == ""


MALFORMED = {
    **{variable: ["0", "-1", "1.5", "many", "٣", "1" * 10, " 7"] for variable in NUMBERS},
    **{variable: ["{", "[]", '"text"', "null"] for variable in OBJECTS},
    "ENDPOINT_TYPE": ["Serverless", "none"],
    "ACCEPT_UNCOMPARED": ["A", "a, b", "a,", ",a", "a,,b", "-a", "a b", "a\n", '["a"]', "x" * 33],
    "MAX_ROWS_LEFT_OUT": ["-0.1", "1.1", "nan", "5 %", "0,05", "٣", " 0.1", ".5", "1e5"],
    "CANDIDATES": ["all", "words, frozen", "words,", ",words", "auto,words", "Words", "fine tuned", "words\n"],
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
# A spot job could never run as long as it may.
MALFORMED["TRAINING_MAX_WAIT_SECONDS"] = [*MALFORMED["TRAINING_MAX_WAIT_SECONDS"], "7199"]
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
