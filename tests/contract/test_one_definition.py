"""What several programs must agree on: a value that stands in two places is held equal here.

Terraform, the handlers, the training program and the local AWS share no code: the handlers stand alone, the training
program runs in its own container, and the local AWS imports nothing of the project.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hcl2
import pytest

from mlops import erase, records, status
from world import ROOT

TERRAFORM = ROOT / "terraform"
TRAINING = ROOT / "scripts" / "training"
LOCAL = ROOT / "scripts" / "local"
VARIABLES = (TERRAFORM / "variables.tf").read_text(encoding="utf-8")


def constants(path: Path) -> dict[str, Any]:
    """The constants of a Python file that are written out, by name. Nothing is imported: torch takes seconds."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # computed
    return found


def local_program(name: str) -> dict[str, Any]:
    """The constants of a file of the local AWS, wherever it is below scripts/local."""
    [path] = LOCAL.rglob(name)
    return constants(path)


def plain(value: Any) -> Any:
    """A value of the HCL parser without the quotes that it leaves around text."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return value[1:-1] if isinstance(value, str) and value.startswith('"') else value


def hcl(path: Path) -> dict[str, Any]:
    return hcl2.loads(path.read_text(encoding="utf-8"))


def locals_of(path: Path) -> dict[str, Any]:
    return {name: plain(value) for block in hcl(path)["locals"] for name, value in block.items()}


@pytest.fixture(scope="module")
def variables() -> dict[str, dict[str, Any]]:
    """The stack's variables: {name: {"default", "description", ...}}."""
    found = {}
    for block in hcl(TERRAFORM / "variables.tf")["variable"]:
        [(name, content)] = block.items()
        found[plain(name)] = plain(content)
    return found


def pinned(path: Path) -> dict[str, str]:
    """The packages that a requirements file pins: {name: version}."""
    return dict(re.findall(r"^([\w-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE))


# --- what a job trains with -------------------------------------------------------------------------


def arguments_of_the_training_program() -> Iterator[tuple[str, Any]]:
    tree = ast.parse((TRAINING / "train.py").read_text(encoding="utf-8"))
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".add_argument"):
            default = next(keyword.value for keyword in call.keywords if keyword.arg == "default")
            yield ast.literal_eval(call.args[0]).removeprefix("--"), ast.literal_eval(default)


def test_a_run_by_hand_has_the_hyperparameters_of_a_stack(variables: dict[str, dict[str, Any]]) -> None:
    text = (TERRAFORM / "locals.tf").read_text(encoding="utf-8")
    [block] = re.findall(r"hyperparameters = merge\(\{\n(.*?)\}, var\.hyperparameters\)", text, re.DOTALL)
    deployed = {name: float(value) for name, value in re.findall(r'(\w+) += "(.*)"', block)}
    described = re.findall(r"([a-z_]+) ([\d.e-]*\d)", variables["hyperparameters"]["description"])

    assert len(deployed) == 6
    assert dict(arguments_of_the_training_program()) == deployed
    assert {name: float(value) for name, value in described} == deployed


def test_the_base_model_that_people_see_is_the_default(variables: dict[str, dict[str, Any]]) -> None:
    default = variables["base_model"]["default"]

    assert f'# base_model = "{default}"\n' in (TERRAFORM / "terraform.tfvars.example").read_text(encoding="utf-8")
    assert f"{default}, a Hub id (distilbert-base-uncased, org/name)" in VARIABLES


def test_the_revision_that_people_see_is_that_of_a_default_model() -> None:
    default = locals_of(TERRAFORM / "locals.tf")["auto_base_models"]
    name, pinned_to = default["multilingual"].split("@")

    assert f'base_model                   = "{name}"' in (TERRAFORM / "examples/full/main.tf").read_text()
    for path in ("terraform.tfvars.example", "examples/full/main.tf"):
        shown = re.findall(r'base_model_revision += "(.*)"', (TERRAFORM / path).read_text(encoding="utf-8"))
        assert shown == [pinned_to], path


def test_the_numbers_that_people_see_are_the_defaults(variables: dict[str, dict[str, Any]]) -> None:
    example = (TERRAFORM / "terraform.tfvars.example").read_text(encoding="utf-8")
    shown = re.findall(r"^# (\w+) += ([\d.]+)$", example, re.MULTILINE)

    assert len(shown) > 10
    assert {name: float(value) for name, value in shown} == {name: variables[name]["default"] for name, _ in shown}


def test_the_training_program_has_no_columns_of_its_own() -> None:
    read = re.findall(r'environment(?:\.get\(|\[)"(\w+_COLUMN)"(.)(.*)', (TRAINING / "train.py").read_text())

    # Read, never defaulted: the columns are those of the stack, or named by whoever runs it by hand.
    assert read == [("TEXT_COLUMN", "]", ","), ("LABEL_COLUMN", "]", ",")]


def test_the_samples_have_the_default_columns(variables: dict[str, dict[str, Any]]) -> None:
    columns = ",".join(variables[name]["default"] for name in ("text_column", "label_column"))
    samples = list((ROOT / "scripts" / "sample").glob("*.csv"))

    assert samples
    for sample in samples:
        assert sample.read_text(encoding="utf-8").partition("\n")[0].strip() == columns


# --- images and packages ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> dict[str, re.Match[str]]:
    """The parts of the four image tags, by use and processor."""
    tag = re.compile(
        r"(?P<repository>[a-z-]+):(?P<torch>[\d.]+)(-transformers(?P<transformers>[\d.]+))?-(?P<processor>cpu|gpu)-.+"
    )
    chosen = locals_of(TERRAFORM / "images.tf")
    found = {}
    for use in ("training", "inference"):
        for processor, image in chosen[f"{use}_images"].items():
            match = tag.fullmatch(image)
            assert match is not None, image
            assert match["processor"] == processor
            found[f"{use} {processor}"] = match
    return found


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_the_images_are_those_of_their_use(images: dict[str, re.Match[str]]) -> None:
    assert {use: image["repository"] for use, image in images.items()} == {
        "training cpu": "pytorch",
        "training gpu": "huggingface-pytorch-training",
        "inference cpu": "huggingface-pytorch-inference",
        "inference gpu": "huggingface-pytorch-inference",
    }


def test_a_job_trains_with_the_transformers_release_that_serves_its_model(images: dict[str, re.Match[str]]) -> None:
    trains = pinned(TRAINING / "requirements.txt")["transformers"]

    assert images["inference cpu"]["transformers"] == trains
    assert images["inference gpu"]["transformers"] == trains
    # The requirements file replaces the image's own release, and must not be a step back.
    assert version(images["training gpu"]["transformers"]) <= version(trains)


def test_a_laptop_trains_with_the_torch_of_the_training_image(images: dict[str, re.Match[str]]) -> None:
    # The tag names the minor release, of which AWS has one image.
    assert pinned(LOCAL / "requirements-training.txt")["torch"].rpartition(".")[0] == images["training cpu"]["torch"]


# --- what a job hands to the model evaluator --------------------------------------------------------


def test_what_training_writes_the_evaluator_reads(evaluator: ModuleType) -> None:
    train, champion, metrics = (constants(TRAINING / f"{name}.py") for name in ("train", "champion", "metrics"))

    assert metrics["FILE_NAME"] == evaluator.METRICS_FILE
    assert train["GOLDEN_FILE"] == evaluator.GOLDEN_FILE
    assert train["GOLDEN_ROWS"] == evaluator.GOLDEN_MAX_ROWS
    assert train["GOLDEN_MAX_CHARACTERS"] == evaluator.TEXT_MAX == erase.GOLDEN_MAX_CHARACTERS
    assert train["GOLDEN_MAX_CHARACTERS"] == constants(TRAINING / "reader.py")["MAX_LABEL_CHARACTERS"]
    assert train["TOLD_MAX_ROWS"] == evaluator.TOLD_MAX_ROWS
    assert train["TOLD_MAX_CHARACTERS"] == evaluator.TOLD_MAX
    assert champion["NOTE_MAX_CHARACTERS"] == evaluator.NOTE_MAX
    written = [champion[name] for name in ("NO_SHARED_LABEL", "NOT_READ", "NOT_LOADED", "TOO_FEW_ROWS")]
    assert {*written, "not said", "not written", "another model"} == evaluator.UNCOMPARED.keys()
    assert (champion["COMPARED"], champion["RESPELT"]) == (evaluator.COMPARED, evaluator.RESPELT)
    assert (champion["NEW_HOLDOUT"], champion["LIVE_HOLDOUT"]) == (evaluator.NEW_HOLDOUT, evaluator.LIVE_HOLDOUT)


def test_sagemaker_keeps_the_whole_reason_of_a_failure() -> None:
    assert (
        constants(TRAINING / "train.py")["MAX_REASON_CHARACTERS"]
        <= local_program("training.py")["_MAX_REASON_CHARACTERS"]
    )


# --- what Terraform accepts -------------------------------------------------------------------------


def test_the_evaluator_takes_the_metric_names_that_terraform_takes(evaluator: ModuleType) -> None:
    # thresholds and model_thresholds.
    [pattern, same] = re.findall(r'regex\("\^(.*)\$", metric\)', VARIABLES)
    [more] = re.findall(r"\{0,(\d+)\}$", pattern)

    assert pattern == same
    assert 1 + int(more) <= evaluator.NAME_MAX


def test_terraform_and_the_upload_workflow_take_the_model_names_that_the_handlers_take(
    training: ModuleType, deployer: ModuleType
) -> None:
    name = training.MODEL_NAME.pattern.replace("(?:", "(")
    workflow = (ROOT / ".github" / "workflows" / "upload-data.yml").read_text(encoding="utf-8")

    assert deployer.MODEL_NAME == training.MODEL_NAME
    # accept_uncompared, deployment_alarm_models, model_thresholds and models; and the upload role's models.
    assert VARIABLES.count(f'regex("^{name}$", model)') == 4
    assert f'regex("^{name}$", model)' in (TERRAFORM / "github_upload_role" / "variables.tf").read_text(
        encoding="utf-8"
    )
    assert f"model_name='^({name})?$'" in workflow


@pytest.mark.parametrize("model", ["a", "b", "new"])
@pytest.mark.parametrize("models", [[], ["a"], ["a", "new"]])
@pytest.mark.parametrize("known", [[], ["a"], ["a", "b"], ["a", "b", "c"]])
def test_make_upload_refuses_the_models_that_the_training_orchestrator_refuses(
    training: ModuleType, model: str, models: list[str], known: list[str]
) -> None:
    for most in (1, 2, 3):
        assert records.has_room(model, models, most, known) == training.has_room(model, models, most, known)


def test_the_files_that_are_trained_on_are_the_same_everywhere(training: ModuleType) -> None:
    assert training.FILE_ENDINGS == status.DATA_ENDINGS


def test_the_share_of_rows_that_may_be_left_out_is_the_training_program_s(
    training: ModuleType, variables: dict[str, dict[str, Any]]
) -> None:
    assert variables["max_rows_left_out"]["default"] == training.MAX_LEFT_OUT


def test_what_names_a_snapshot_s_data_is_kept_as_long_as_the_snapshot(training: ModuleType) -> None:
    rules = (TERRAFORM / "modules" / "s3" / "main.tf").read_text(encoding="utf-8")

    assert f'prefix = "{training.DATA_CLAIM_PREFIX}", days = var.snapshot_retention_days' in rules


def test_settings_json_takes_the_numbers_that_the_training_program_takes(training: ModuleType) -> None:
    program = (TRAINING / "train.py").read_text(encoding="utf-8")
    taken = {
        name: (kind == "int", float(least), float(eval(most)))  # a literal, or a power of two less one
        for name, kind, least, most in re.findall(r'"--(\w+)", type=_number\((\w+), ([^,]+), (.+?)\)', program)
    }
    allowed = {
        name: (isinstance(least, int), float(least), float(most)) for name, (least, most) in training.NUMBERS.items()
    }

    assert {name: limits for name, limits in taken.items() if name != "batch_size"} == allowed


def test_the_published_schema_of_settings_json_is_what_the_training_orchestrator_takes(training: ModuleType) -> None:
    schema = json.loads((ROOT / "scripts" / "mlops" / "settings.schema.json").read_text(encoding="utf-8"))
    kinds = {"integer": True, "number": False}
    numbers = {
        name: (kinds[it["type"]], it["minimum"], it["maximum"])
        for name, it in schema["properties"].items()
        if it.get("type") in kinds
    }

    assert numbers == {name: (isinstance(least, int), least, most) for name, (least, most) in training.NUMBERS.items()}
    assert schema["$defs"]["column"]["maxLength"] == training.COLUMN_MAX
    settings = records.ModelSettings.__annotations__.keys() - {"base_model_revision"}
    assert settings == schema["properties"].keys() - {"$schema"}


def test_the_candidates_are_the_same_everywhere(training: ModuleType) -> None:
    schema = json.loads((ROOT / "scripts" / "mlops" / "settings.schema.json").read_text(encoding="utf-8"))
    [pattern] = re.findall(r'regex\("(.*)", var\.candidates\)', VARIABLES)

    assert schema["properties"]["candidates"]["pattern"] == pattern == f"^({training.CANDIDATES.pattern})$"


def test_the_checkpoints_of_a_job_are_below_its_whole_name(training: ModuleType) -> None:
    policy = (TERRAFORM / "modules" / "iam" / "sagemaker.tf").read_text(encoding="utf-8")
    [granted] = re.findall(r'checkpoints = "(.*)\*"', policy)
    rules = (TERRAFORM / "modules" / "s3" / "main.tf").read_text(encoding="utf-8")
    job = "training-job-20261123-120000-0123abcd"

    assert training.JOB_NAME.fullmatch(job)
    assert re.fullmatch(granted.replace("?", "."), f"{training.CHECKPOINT_PREFIX}{job}")
    assert f'prefix = "{training.CHECKPOINT_PREFIX}"' in rules


def test_a_column_of_settings_json_is_as_long_as_one_of_terraform(training: ModuleType) -> None:
    [longest] = re.findall(r"\{1,(\d+)\}\$\", var\.label_column\)", VARIABLES)

    assert int(longest) == training.COLUMN_MAX


def test_terraform_takes_the_hyperparameters_that_the_training_orchestrator_takes(training: ModuleType) -> None:
    [value] = re.findall(r'regex\("\^(.*)\{1,256\}\$", value\)', VARIABLES)
    ascii_characters = [chr(code) for code in range(128)]

    assert [each for each in ascii_characters if re.fullmatch(value, each)] == [
        each for each in ascii_characters if training.SHELL_SAFE.fullmatch(each)
    ]
    assert f'!startswith(key, "{local_program("toolkit.py")["_RESERVED"]}")' in VARIABLES


def test_terraform_takes_the_memory_sizes_that_sagemaker_takes(variables: dict[str, dict[str, Any]]) -> None:
    sizes = ", ".join(map(str, local_program("hosting.py")["_MEMORY_STEPS_MB"]))
    [quotas] = LOCAL.rglob("quotas.py")

    assert f"contains([{sizes}], var.serverless_memory_mb)" in VARIABLES
    assert f"must be one of {sizes}." in VARIABLES
    # The most that a new account gets.
    assert f"SERVERLESS_MEMORY: {variables['serverless_memory_mb']['default']}," in quotas.read_text(encoding="utf-8")


# --- times ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timeouts() -> dict[str, int]:
    """The functions' timeouts, in seconds."""
    found: dict[str, int] = locals_of(TERRAFORM / "functions.tf")["timeouts"]
    return found


def test_a_lease_outlasts_whoever_took_it(handlers: dict[str, ModuleType], timeouts: dict[str, int]) -> None:
    for handler in handlers.values():
        assert max(timeouts.values()) < handler.LEASE_SECONDS


def test_reading_an_upload_leaves_most_of_the_time_for_copying_it(
    training: ModuleType, timeouts: dict[str, int]
) -> None:
    assert timeouts["training_orchestrator"] > 10 * training.PREFLIGHT_SECONDS


def test_a_sweep_of_the_evaluator_has_time_for_an_evaluation(evaluator: ModuleType, timeouts: dict[str, int]) -> None:
    limit = timeouts["model_evaluator"] * 1000

    assert evaluator.RESERVE_MILLISECONDS < evaluator.SWEEP_MILLISECONDS < limit


def test_what_a_sweep_looks_back_for_is_still_there(
    training: ModuleType, evaluator: ModuleType, variables: dict[str, dict[str, Any]]
) -> None:
    [least] = re.findall(r"var\.raw_model_retention_days >= (\d+)", VARIABLES)
    rules = (TERRAFORM / "modules" / "s3" / "main.tf").read_text(encoding="utf-8")
    [claims] = re.findall(r'prefix = "claims/", days = (\d+)', rules)
    [records] = re.findall(r"var\.data_retention_days\).*days >= (\d+)", VARIABLES)

    assert training.LOOK_BACK_DAYS == evaluator.LOOK_BACK_DAYS
    assert int(least) >= evaluator.LOOK_BACK_DAYS
    assert int(claims) >= evaluator.LOOK_BACK_DAYS
    assert int(records) >= evaluator.LOOK_BACK_DAYS


# --- names and versions -----------------------------------------------------------------------------


def test_the_alarms_watch_the_variant_that_the_deployer_makes() -> None:
    handler = (ROOT / "lambda" / "deployment_orchestrator" / "handler.py").read_text(encoding="utf-8")
    monitoring = (TERRAFORM / "modules" / "monitoring" / "main.tf").read_text(encoding="utf-8")

    assert re.findall(r'VariantName = "(\w+)"', monitoring) == re.findall(r'"VariantName": "(\w+)"', handler)


def test_every_folder_of_terraform_asks_for_the_same_versions() -> None:
    [script] = (ROOT / "scripts").rglob("terraform.py")
    limits = constants(script)
    terraform, least, below = (
        ".".join(map(str, limits[name])) for name in ("MINIMUM_TERRAFORM", "MINIMUM_PROVIDER", "BELOW_PROVIDER")
    )
    asked = {}
    for path in TERRAFORM.rglob("*.tf"):
        text = path.read_text(encoding="utf-8")
        if "required_version" in text and ".terraform" not in path.parts:
            asked[path] = (
                re.findall(r'required_version = "(.*)"', text),
                re.findall(r'^\s+version = "(.*)"', text, re.MULTILINE),
            )

    assert len(asked) == len(list((TERRAFORM / "modules").iterdir())) + 5  # root, upload role, two examples, a test
    for path, found in asked.items():
        assert found == ([f">= {terraform}"], [f">= {least}, < {below}.0"]), path
