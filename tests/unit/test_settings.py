"""settings.json beside a model's CSVs: what it may say, how it reaches the job, and that it reaches nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from world import BUCKET, ENVIRONMENT, ROOT, Context, World

SCHEMA = json.loads((ROOT / "scripts" / "mlops" / "settings.schema.json").read_text(encoding="utf-8"))
DEFAULT_BASE, OTHER_BASE, REVISION = "distilbert-base-uncased", "org/multilingual", "abc123"
ENVIRONMENT_WITH_BASES = ENVIRONMENT["training_orchestrator"] | {"BASE_MODELS": json.dumps({OTHER_BASE: REVISION})}
CSV = b"message,intent\n" + b"".join(b"say %d,greet\nleave %d,bye\n" % (n, n) for n in range(20))
SETTINGS = {"text_column": "message", "label_column": "intent", "epochs": 7, "learning_rate": 1e-5, "seed": 1}


@pytest.fixture
def parse(training: ModuleType) -> Callable[[object], dict[str, Any]]:
    config = training.Settings.from_env(ENVIRONMENT_WITH_BASES)

    def parse(settings: object) -> dict[str, Any]:
        content = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
        found: dict[str, Any] = training.parse_settings(content, config)
        return found

    return parse


@pytest.fixture
def run(training: ModuleType, world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    monkeypatch.setenv("BASE_MODELS", json.dumps({OTHER_BASE: REVISION}))
    invocations = iter(range(100))
    return lambda sent: str(training.lambda_handler(sent, Context(f"request-{next(invocations)}"))["outcome"])


# ---- what it may say


def test_every_setting_is_taken_as_it_is_written(parse: Callable[[object], dict[str, Any]]) -> None:
    every = SETTINGS | {"base_model": OTHER_BASE, "holdout_fraction": 0.5, "max_length": 64} | {"candidates": "words"}
    found = parse(every | {"$schema": "https://example.com/settings.schema.json"})
    assert found == every | {"base_model_revision": REVISION}
    assert every.keys() | {"$schema"} == SCHEMA["properties"].keys()


names = st.sampled_from([*SCHEMA["properties"], "epoch", "thresholds", "instance_type", ""])
numbers = (
    st.integers(-1, 10**10) | st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 1) | st.integers(0, 9)
)
values = numbers | st.text(max_size=5) | st.none() | st.booleans() | st.lists(st.integers(), max_size=1)
columns = st.text(st.characters(codec="ascii"), max_size=4) | st.just("c" * 256) | st.just("c" * 257)


candidates = st.sampled_from(["auto", "words", "frozen,blend", "words,", "auto,words", "fine-tuned, blend"])


@given(settings=st.dictionaries(names, values | columns | candidates | st.just(OTHER_BASE), max_size=3))
def test_what_the_published_schema_allows_is_taken_and_nothing_else(
    training: ModuleType, settings: dict[str, Any]
) -> None:
    config = training.Settings.from_env(ENVIRONMENT_WITH_BASES)
    allowed = jsonschema.Draft202012Validator(SCHEMA).is_valid(settings)
    chosen = {"text_column": "text", "label_column": "label"} | settings
    allowed = allowed and chosen["text_column"] != chosen["label_column"]
    allowed = allowed and settings.get("base_model", DEFAULT_BASE) in (DEFAULT_BASE, OTHER_BASE, "auto")
    # JSON Schema takes 3.0 for a whole number, and knows nothing of invisible characters.
    allowed = allowed and not any(
        isinstance(value, float) and SCHEMA["properties"].get(name, {}).get("type") == "integer"
        for name, value in settings.items()
    )
    allowed = allowed and all(str(chosen[name]).isprintable() for name in ("text_column", "label_column"))
    try:
        found = training.parse_settings(json.dumps(settings).encode(), config)
    except training.Rejected:
        found = None
    assert (found is not None) == allowed
    if found is not None:
        assert found.keys() - {"base_model_revision"} == settings.keys() - {"$schema"}
        assert all(found[name] == value for name, value in settings.items() if name != "$schema")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epoch": 3}, '"epoch" is not a setting: did you mean "epochs"? (base_model, candidates, epochs, '),
        ({"thresholds": {}}, '"thresholds" is not a setting (base_model, '),
        ({"training_instance_type": "ml.p4d.24xlarge"}, '"training_instance_type" is not a setting'),
        (b'{"epochs": 3, "epochs": 30}', 'has "epochs" more than once'),
        ({"epochs": 0}, 'epochs must be a whole number from 1 to 1000, not "0"'),
        ({"epochs": 2.5}, 'epochs must be a whole number from 1 to 1000, not "2.5"'),
        ({"epochs": True}, 'epochs must be a whole number from 1 to 1000, not "true"'),
        ({"epochs": "3; rm -rf /"}, "epochs must be a whole number from 1 to 1000"),
        (b'{"learning_rate": NaN}', 'learning_rate must be a number from 1e-08 to 1, not "NaN"'),
        (b'{"learning_rate": 1e999}', "learning_rate must be a number from 1e-08 to 1"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295"),
        ({"base_model": "s3://theirs/model"}, 'base_model "s3://theirs/model" is not allowed'),
        ({"base_model": "/opt/ml/input"}, 'base_model "/opt/ml/input" is not allowed'),
        ({"base_model": "org/multilingal"}, 'is not allowed: did you mean "org/multilingual"?'),
        ({"base_model": ["x"]}, "is not allowed"),
        ({"candidates": "all"}, 'candidates must be "auto", or some of words, frozen, fine-tuned and blend, with comm'),
        ({"candidates": "words, blend"}, 'with commas between, not "'),
        ({"candidates": ["words"]}, 'candidates must be "auto"'),
        ({"text_column": ""}, "text_column must be the name of a column"),
        ({"text_column": "a\nb"}, "text_column must be the name of a column"),
        ({"label_column": "text"}, 'text_column and label_column are both "text"'),
        ([], "must be a JSON object"),
        (b"{", "is not JSON: "),
        (b"\xff", "is not JSON: "),
        (b"[" * 4000, "is not JSON: "),
        (b" " * 4097, "has more than 4,096 bytes"),
    ],
)
def test_what_it_may_not_say_is_named_with_what_it_may(
    training: ModuleType, parse: Callable[[object], dict[str, Any]], settings: object, reason: str
) -> None:
    with pytest.raises(training.Rejected) as refusal:
        parse(settings)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith("settings.json")


# ---- how it reaches the job


def test_a_job_is_trained_as_the_settings_beside_its_file_say(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    world.put("data/train/intents/settings.json", SETTINGS | {"base_model": OTHER_BASE})
    sent = world.upload("data/train/intents/week 1.csv", CSV)
    assert run(sent) == "started"
    [job] = world.sagemaker.jobs.values()
    assert job["HyperParameters"] | {"epochs": "7", "learning_rate": "1e-05", "seed": "1"} == job["HyperParameters"]
    chosen = {"TEXT_COLUMN": "message", "LABEL_COLUMN": "intent", "BASE_MODEL": OTHER_BASE}
    assert job["Environment"] | chosen | {"BASE_MODEL_REVISION": REVISION} == job["Environment"]


def test_a_model_may_have_candidates_and_a_base_model_chosen_by_its_texts(
    run: Callable[[dict[str, Any]], str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_MODEL_REVISION", "of-the-stack-s-own-model")
    world.put("data/train/intents/settings.json", SETTINGS | {"base_model": "auto", "candidates": "words,frozen"})
    assert run(world.upload("data/train/intents/week 1.csv", CSV)) == "started"
    [job] = world.sagemaker.jobs.values()
    assert (job["Environment"]["BASE_MODEL"], job["Environment"]["CANDIDATES"]) == ("auto", "words,frozen")
    assert "BASE_MODEL_REVISION" not in job["Environment"]
    assert job["Environment"]["BASE_MODEL_ENGLISH"].startswith("sentence-transformers/all-MiniLM-L6-v2@")
    assert "candidates words,frozen" in world.only_email().body


def test_settings_stand_in_the_snapshots_record_and_in_the_email(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    world.put("data/train/intents/settings.json", SETTINGS)
    run(world.upload("data/train/intents/week 1.csv", CSV))
    [key] = [key for key in world.keys("data/snapshots/") if key.endswith("/source.json")]
    assert world.record(key)["settings"] == SETTINGS
    body = world.only_email().body
    assert "settings.json" in body
    assert "epochs 7, label_column intent, learning_rate 1e-05, seed 1, text_column message" in body


def test_a_job_that_waited_is_trained_as_the_settings_were_when_its_file_came(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    world.put("control/paused.json", {"schema": 2, "by": "me", "at": "2026-11-27T00:00:00+00:00"})
    world.put("data/train/intents/settings.json", SETTINGS)
    run(world.upload("data/train/intents/week 1.csv", CSV))
    world.put("data/train/intents/settings.json", SETTINGS | {"epochs": 1})
    world.s3.delete_object(Bucket=BUCKET, Key="control/paused.json")
    run({"source": "sweep"})
    [job] = world.sagemaker.jobs.values()
    assert job["HyperParameters"]["epochs"] == "7"


def test_the_settings_of_files_outside_a_folder_lie_beside_them(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    world.put("data/train/settings.json", SETTINGS)
    assert run(world.upload("data/train/week 1.csv", CSV)) == "started"


def test_another_models_settings_are_not_read(run: Callable[[dict[str, Any]], str], world: World) -> None:
    world.put("data/train/intents/settings.json", SETTINGS)
    assert run(world.upload("data/train/others/week 1.csv", CSV)) == "rejected"
    assert 'no column "text"' in world.only_email().body


def test_a_column_with_a_shells_characters_travels_by_environment(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    column = "$(rm -rf /); `x`"
    world.put("data/train/intents/settings.json", {"text_column": column, "label_column": "intent"})
    assert run(world.upload("data/train/intents/x.csv", CSV.replace(b"message", column.encode()))) == "started"
    [job] = world.sagemaker.jobs.values()
    assert job["Environment"]["TEXT_COLUMN"] == column
    assert column not in str(job["HyperParameters"])


# ---- what is wrong with it


def test_a_file_beside_bad_settings_is_rejected_and_nothing_is_trained(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    world.put("data/train/intents/settings.json", {"epoch": 3})
    assert run(world.upload("data/train/intents/x.csv", CSV)) == "rejected"
    assert 'Why: settings.json: "epoch" is not a setting: did you mean "epochs"?' in world.only_email().body
    assert world.sagemaker.jobs == {}


def test_bad_settings_are_emailed_as_soon_as_they_are_uploaded(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    sent = world.upload("data/train/intents/settings.json", b'{"epochs": 0}')
    assert run(sent) == "rejected"
    assert run(sent) == "already rejected"
    assert "epochs must be a whole number" in world.only_email().body


def test_good_settings_alone_start_nothing_and_send_no_email(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    assert run(world.upload("data/train/intents/settings.json", json.dumps(SETTINGS).encode())) == "settings"
    assert world.emails() == []
    assert world.keys("data/snapshots/") == []


def test_settings_elsewhere_in_the_models_folder_are_not_passed_over_in_silence(
    run: Callable[[dict[str, Any]], str], world: World
) -> None:
    assert run(world.upload("data/train/intents/2026/settings.json", json.dumps(SETTINGS).encode())) == "rejected"
    assert "are read from data/train/intents/settings.json alone" in world.only_email().body


def test_settings_that_s3_does_not_hand_out_are_named(run: Callable[[dict[str, Any]], str], world: World) -> None:
    sent = world.upload("data/train/intents/x.csv", CSV)
    body = json.dumps(SETTINGS).encode()
    world.s3.put_object(Bucket=BUCKET, Key="data/train/intents/settings.json", Body=body, StorageClass="GLACIER")
    assert run(sent) == "rejected"
    assert "settings.json: the file is in an archive storage class" in world.only_email().body
