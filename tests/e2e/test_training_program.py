"""The training program with real torch and transformers, on a randomly initialised model of a few thousand weights.

How it chooses among its candidates is in test_ladder.py. Where a test is about something else, the candidate is given:
words needs no base model and takes a tenth of a second.
"""

import csv
import dataclasses
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import torch
from moto import mock_aws
from safetensors.torch import load_file, save_file

import base_model as base_models
import fine_tuned
import inference
import tiny_model
import train
from reader import Reader

TRAINING = Path(__file__).resolve().parents[2] / "scripts" / "training"

# Two threads that wait for each other are slower than one at this size, far slower on a busy machine.
torch.set_num_threads(1)

WORDS = dict(zip(("0", "2", "10"), tiny_model.WORDS, strict=False))
FAST = ["--epochs", "2", "--learning_rate", "5e-3", "--batch_size", "8", "--max_length", "16"]


def make_rows(labels=tuple(WORDS), per_label=30):
    """Rows that can be learnt: each label has words of its own."""
    chance = random.Random(3)
    return [
        (" ".join(chance.choices(WORDS[label], k=5)) + f" {number}", label)
        for label in labels
        for number in range(per_label)
    ]


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """A folder with a tiny BERT and a word-level tokenizer."""
    return tiny_model.build_tiny_model(tmp_path_factory.mktemp("base_model"))


@pytest.fixture
def job(tmp_path_factory, base_model):
    """Make the environment of a training job that has these rows in its channels, in folders of its own."""

    def make(rows, test_rows=None, **settings):
        folder = tmp_path_factory.mktemp("job")
        channels = {"train": rows} | ({"test": test_rows} if test_rows is not None else {})
        for name, content in channels.items():
            (folder / name).mkdir()
            with (folder / name / "data.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *content])
        return {
            **{f"SM_CHANNEL_{name.upper()}": str(folder / name) for name in channels},
            "SM_MODEL_DIR": str(folder / "model"),
            "SM_OUTPUT_DATA_DIR": str(folder / "output" / "data"),
            "SM_OUTPUT_DIR": str(folder / "output"),
            "BASE_MODEL": str(base_model),
            "TEXT_COLUMN": "text",
            "LABEL_COLUMN": "label",
            "CANDIDATES": "words",
            **settings,
        }

    return make


def failure_of(environment, *arguments):
    """Run the program, expect it to fail, and return the reason that it left."""
    assert train.main([*FAST, *arguments], environment) == 1
    reason = (Path(environment["SM_OUTPUT_DIR"]) / "failure").read_text()
    assert len(reason) <= 1000
    return reason


def metrics_of(environment):
    return json.loads((Path(environment["SM_OUTPUT_DATA_DIR"]) / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base_model):
    """The program run as SageMaker runs it, in a process of its own: its environment and standard output.

    Its model is a frozen encoder with a head.
    """
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train").mkdir()
    with (folder / "train" / "data.csv").open("w", encoding="utf-8-sig", newline="") as file:
        rows = [(label, f" {text} ", "x") for text, label in make_rows()]
        header = (" kind", "message", "note")
        csv.writer(file).writerows([header, *rows, ("2", " ", ""), ("", "bread", ""), ("", "rice", "")])
    environment = {
        "SM_CHANNEL_TRAIN": str(folder / "train"),
        "SM_MODEL_DIR": str(folder / "model"),
        "SM_OUTPUT_DATA_DIR": str(folder / "output" / "data"),
        "SM_OUTPUT_DIR": str(folder / "output"),
        "BASE_MODEL": str(base_model),
        "BASE_MODEL_REVISION": "",
        "TEXT_COLUMN": "message",
        "LABEL_COLUMN": "kind",
        "CANDIDATES": "frozen",
    }
    command = [sys.executable, str(TRAINING / "train.py"), *FAST]
    run = subprocess.run(
        command,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return environment, run.stdout


@pytest.fixture(scope="module")
def classifier(trained):
    return inference.model_fn(trained[0]["SM_MODEL_DIR"])


@pytest.fixture(scope="module")
def tokenizer(classifier):
    return classifier.members[0].encoder.tokenizer


# ---- odd texts


@pytest.mark.parametrize("candidate", ["words", "frozen", "fine-tuned"])
def test_a_very_long_text_and_nul_bytes_are_trained_on(job, candidate):
    environment = job([*make_rows(), ("bread " * 300_000, "2"), ("ri\0ce \0", "2")], CANDIDATES=candidate)
    assert train.main(FAST, environment) == 0
    metrics = metrics_of(environment)
    assert metrics["train_examples"] + metrics["holdout_examples"] == len(make_rows()) + 2


def test_a_tokenizer_is_given_no_more_of_a_text_than_it_can_use_and_few_texts_at_once(tokenizer):
    calls = []

    class Recorder:
        model_max_length = tokenizer.model_max_length

        def __call__(self, texts, **options):
            calls.append((len(texts), max(map(len, texts))))
            return tokenizer(texts, **options)

    endless = "snow " * 100_000
    items = fine_tuned._tokens([endless] * 300, Recorder())
    most = 100 * Recorder.model_max_length
    assert calls == [(256, most), (44, most)]
    assert items[0] == items[-1]
    assert items[0]["input_ids"] == tokenizer(endless, truncation=True)["input_ids"]


# ---- a run that succeeds


def test_metrics_tell_the_figures_the_counts_and_what_the_data_holds(trained):
    metrics = metrics_of(trained[0])
    assert metrics == json.loads((Path(trained[0]["SM_MODEL_DIR"]) / "metrics.json").read_text())
    seconds, figures = metrics.pop("train_seconds"), {name: metrics.pop(name) for name in list(metrics)[1:6]}
    [candidate], int8 = metrics.pop("candidates"), metrics.pop("int8")
    assert metrics["told"].pop("candidates").startswith("frozen: macro F1 1.000, log loss 0.0")
    assert metrics == {
        "schema": 2,
        "train_examples": 72,
        "holdout_examples": 18,
        "label_count": 3,
        "max_length": 16,
        "cut_texts": 0,
        "unknown_token_share": pytest.approx(1 / 6, abs=1e-6),  # the number at the end of each text
        "told": {
            "format": "UTF-8, separated by comma",
            "rows": "93 read, 90 used",
            "rows left out": "no text: 1 (line 92); no label: 2 (line 93, 94)",
            "labels": '3: "0" 30, "10" 30, "2" 30',
            "longest text": "36 characters",
            "unknown tokens": "16.7 % of the texts' tokens stand for words that the base model does not know",
            "chosen model": "frozen",
        },
        "base_model": trained[0]["BASE_MODEL"],
        "base_model_revision": None,
        "seed": 42,
        "champion": None,
    }
    assert list(figures) == ["accuracy", "macro_f1", "macro_precision", "macro_recall", "eval_loss"]
    assert figures["accuracy"] == figures["macro_f1"] == 1.0
    assert 0 < figures["eval_loss"] < 1
    assert seconds > 0
    assert (candidate["name"], candidate["members"], candidate["chosen"]) == ("frozen", {"frozen": 1}, True)
    assert set(int8) == {"served", "changed", "milliseconds", "milliseconds_before"}
    assert not (Path(trained[0]["SM_OUTPUT_DIR"]) / "failure").exists()


def test_every_user_may_read_the_model_whatever_wrote_it(trained):
    """A serverless endpoint's container does not run as root."""
    folder = Path(trained[0]["SM_MODEL_DIR"])
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    folders = {folder.name, "code"}
    assert modes == {name: 0o755 if name in folders else 0o644 for name in modes}
    assert modes.keys() >= {"model.safetensors", "config.json", "model.json", "encoder.safetensors", "inference.py"}
    assert modes.keys() >= {"golden.json", "holdout.csv", "metrics.json"}


def test_what_it_read_and_found_is_printed(trained):
    lines = trained[1].splitlines()
    assert "data: data.csv: rows: 93 read, 90 used" in lines
    left_out = next(line for line in lines if line.startswith("data: data.csv: rows left out: "))
    assert "no label: 2 (line 93, 94)" in left_out
    assert any(re.match(r"frozen: log loss 0\.\d+, macro F1 1\.0000 on 72 rows out of fold, ", line) for line in lines)
    assert any(line.startswith("hold-out:  accuracy 1.0000  macro_f1 1.0000") for line in lines)


def test_progress_is_printed_as_it_trains(job, capsys):
    assert train.main(FAST, job(make_rows(per_label=10), CANDIDATES="fine-tuned")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fine-tuned: step ")]
    # Five folds of 24 rows, one leg or two of each; and all rows.
    assert lines[0].startswith("fine-tuned: step 1/6  log loss ")
    assert lines[-1] == "fine-tuned: step 6/6 on all rows"


def test_the_same_seed_gives_the_same_model_and_another_does_not(job, monkeypatch):
    # The faster of two precisions is measured.
    monkeypatch.setattr(fine_tuned, "faster_precision", lambda *_: None)

    def weights(seed):
        environment = job(make_rows(per_label=10), CANDIDATES="fine-tuned")
        assert train.main([*FAST, "--epochs", "1", "--seed", seed], environment) == 0
        folder = Path(environment["SM_MODEL_DIR"])
        return load_file(folder / "model.safetensors") | load_file(folder / "encoder.safetensors")

    first, second, other = weights("7"), weights("7"), weights("8")
    assert all(torch.equal(first[name], second[name]) for name in first)
    layer = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(first[layer], other[layer])
    assert not torch.equal(first["weight"], other["weight"])


def test_a_given_test_channel_is_the_holdout_and_its_texts_are_not_trained_on(job, capsys):
    rows = make_rows(("0", "2"))
    environment = job(rows, test_rows=[*rows[:4], ("soup soup", "2")])
    assert train.main(FAST, environment) == 0
    metrics = metrics_of(environment)
    assert (metrics["train_examples"], metrics["holdout_examples"]) == (56, 5)
    assert metrics["told"]["data.csv: rows"] == "60 read, 60 used"
    assert metrics["told"]["test/data.csv: rows"] == "5 read, 5 used"
    log = capsys.readouterr().out
    for name, rows in {"data.csv": 60, "test/data.csv": 5}.items():
        assert f"data: {name}: format: UTF-8, separated by comma\n" in log
        assert f"data: {name}: rows: {rows} read, {rows} used\n" in log
    assert "4 training rows left out" in log


def test_the_base_model_channel_wins_over_the_name_and_the_name_is_recorded(job, base_model):
    channel = {"BASE_MODEL": "s3://bucket/base/", "SM_CHANNEL_BASE_MODEL": str(base_model)}
    environment = job(make_rows(("0", "2")), CANDIDATES="frozen", **channel)
    assert train.main(FAST, environment) == 0
    assert metrics_of(environment)["base_model"] == "s3://bucket/base/"


def test_a_max_length_beyond_the_model_is_cut_to_it(job, capsys):
    environment = job(make_rows(("0", "2")), CANDIDATES="frozen")
    assert train.main([*FAST, "--max_length", "512"], environment) == 0
    assert "max_length 512 is more than the base model takes: 32 tokens are used" in capsys.readouterr().out
    [member] = inference.model_fn(environment["SM_MODEL_DIR"]).members
    assert member.encoder.tokenizer.model_max_length == 32


# ---- what is said of the data


def found_in(*names):
    found = {}
    for name in names:
        found_by = Reader([b"text,label\na,b\nc,d,e\n"], "text", "label")
        list(found_by)
        found[name] = found_by.findings
    return found


def test_of_many_files_as_much_is_told_as_the_evaluator_takes_and_that_there_is_more():
    told = train.told_rows(found_in(*(f"{at}{'x' * 200}.csv" for at in range(10))))
    assert len(told) == 15  # two more are about the tokens, three about the model
    assert [*told.items()][-1] == ("more", "36 more lines, in the job's log")
    assert f"0{'x' * 58}…: rows left out" in told
    assert max(map(len, told)) <= 100


@pytest.fixture(scope="module")
def settings(trained):
    return train.Settings.read(FAST, trained[0])


def test_a_text_is_cut_when_it_has_more_tokens_than_the_model_takes(settings, tokenizer):
    fits, cut = "snow " * 14, "snow " * 15  # beside the two special ones
    seen = train.seen_tokens([fits, cut, "snow " * 3_000_000, "snow"], settings, tokenizer)
    assert seen == {"max_length": 16, "cut_texts": 2, "unknown_token_share": 0}
    assert train.told_tokens(seen, 4, False) == {"texts cut": "2 of 4 (50.0 %), at 16 tokens"}


def test_a_model_of_words_cuts_texts_at_a_number_of_characters(settings):
    most = inference.WORDS_MAX_CHARACTERS
    seen = train.seen_tokens(["a" * most, "a" * (most + 1)], settings, None)
    assert seen == {"max_length": 16, "cut_texts": 1, "unknown_token_share": 0}
    assert train.told_tokens(seen, 2, True) == {"texts cut": "1 of 2 (50.0 %), at 20,000 characters"}


@pytest.mark.parametrize(
    ("text", "share", "told"),
    [
        ("snow rain", 0, None),
        ("snow 雪", 0.5, "50.0 % of the texts' tokens"),
        ("snow " * 13 + "雪", 1 / 14, "7.1 % of"),
    ],
)
def test_the_share_of_tokens_that_the_base_model_does_not_know_is_that_of_the_texts_own_tokens(
    settings, tokenizer, text, share, told
):
    seen = train.seen_tokens([text], settings, tokenizer)
    assert seen["unknown_token_share"] == pytest.approx(share, abs=1e-6)
    assert told is None or train.told_tokens(seen, 1, False)["unknown tokens"].startswith(told)


@pytest.mark.parametrize(("share", "shown"), [(0.00001, "less than 0.1 %"), (0.001, "0.1 %")])
def test_a_small_share_of_unknown_tokens_is_not_shown_as_none(share, shown):
    told = train.told_tokens({"max_length": 16, "cut_texts": 0, "unknown_token_share": share}, 1, False)
    assert told["unknown tokens"].startswith(f"{shown} of")


# ---- a run that fails, with its reason


def test_the_share_of_rows_that_may_be_left_out_is_a_setting(job):
    rows = [*make_rows(("0", "2")), *[("", "0")] * 5]
    assert "5 of 65 rows cannot be used (no text: 5 (line 62, 63, 64, 65, 66)), more than 5 %" in failure_of(job(rows))
    assert "more than 7 %" in failure_of(job(rows, MAX_ROWS_LEFT_OUT="0.07"))
    assert train.main(FAST, job(rows, MAX_ROWS_LEFT_OUT="0.08")) == 0


@pytest.mark.parametrize("share", ["5", "-0.1", "nan", "five", "5 %", "1e999"])
def test_a_share_of_rows_that_is_none_is_named(job, share):
    reason = failure_of(job(make_rows(("0", "2")), MAX_ROWS_LEFT_OUT=share))
    assert reason == (
        f"MAX_ROWS_LEFT_OUT must be a number from 0 to 1, not '{share}': it is a share of the rows. Correct it in "
        "Terraform."
    )


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (make_rows(("0",)), '^data.csv: there is only one label, "0"; add rows with other labels.$'),
        (
            [*make_rows(("0",)), ("bread", "2")],
            '^data.csv: 1 of 2 labels have fewer than 2 different texts, .*: "2" has 1 \\(1 rows\\); ',
        ),
        ([], "^data.csv: no row has a text and a label"),
    ],
)
def test_data_that_does_not_suffice_is_refused_in_words(job, rows, reason):
    environment = job(rows)
    assert re.search(reason, failure_of(environment))
    assert not Path(environment["SM_MODEL_DIR"]).exists()


def test_a_label_that_only_the_test_channel_has_is_named(job):
    assert "'10'" in failure_of(job(make_rows(("0", "2")), test_rows=[("bus", "10")]))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--epochs", "2.5"], "argument --epochs: must be a whole number from 1 to 1000, not '2.5'"),
        (["--holdout_fraction", "1"], "argument --holdout_fraction: must be a number from 0.01 to 0.9, not '1'"),
        (["--learning_rate", "nan"], "argument --learning_rate: must be a number"),
        (["--epoch", "2"], "unrecognized arguments: --epoch 2"),
    ],
)
def test_a_wrong_hyperparameter_is_named(job, arguments, reason):
    assert reason in failure_of(job(make_rows()), *arguments)


def test_a_missing_channel_is_named(job):
    environment = job(make_rows())
    del environment["SM_CHANNEL_TRAIN"]
    assert "lacks SM_CHANNEL_TRAIN" in failure_of(environment)


@pytest.mark.parametrize("name", ["BASE_MODEL", "LABEL_COLUMN", "TEXT_COLUMN"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_setting_that_only_terraform_has_a_default_for_is_named(job, name, empty):
    environment = job(make_rows())
    del environment[name]
    assert f"lacks {name}, which the training orchestrator sets" in failure_of(
        environment | ({name: ""} if empty else {})
    )


def copy_of(base_model, folder):
    for file in base_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_base_model_whose_answers_are_no_numbers_is_refused_and_writes_no_metrics(job, base_model, tmp_path):
    weights = load_file(copy_of(base_model, tmp_path) / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file(
        {**weights, name: torch.full_like(weights[name], math.inf)}, tmp_path / "model.safetensors", {"format": "pt"}
    )

    environment = job(make_rows(), BASE_MODEL=str(tmp_path), CANDIDATES="auto")

    assert f"BASE_MODEL={tmp_path} gives (2, 32) numbers for 2 texts, or some that are none" in failure_of(environment)
    assert not Path(environment["SM_OUTPUT_DATA_DIR"], "metrics.json").exists()


def test_a_base_model_that_is_not_there_is_named_with_its_revision(job, tmp_path, monkeypatch):
    def reason_of(name, **settings):
        return failure_of(job(make_rows(), BASE_MODEL=name, CANDIDATES="auto", **settings))

    assert f"BASE_MODEL={tmp_path} is not a model" in reason_of(str(tmp_path))
    assert "needs the channel 'base_model'" in reason_of("s3://bucket/base")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reason = reason_of("someone/unknown-model", BASE_MODEL_REVISION="v9")
    assert "BASE_MODEL=someone/unknown-model, revision v9" in reason
    assert "HUB_TOKEN_SECRET_ARN" in reason


def test_a_base_model_without_safetensors_is_refused_in_words(job, base_model, tmp_path):
    torch.save(load_file(copy_of(base_model, tmp_path) / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    reason = failure_of(job(make_rows(), BASE_MODEL=str(tmp_path), CANDIDATES="auto"))
    assert f"BASE_MODEL={tmp_path}, revision not set, has no weights as model.safetensors" in reason
    assert "pytorch_model.bin, can run code when they are loaded" in reason


def test_the_code_of_a_base_model_is_not_run(job, base_model, tmp_path):
    config = json.loads((copy_of(base_model, tmp_path) / "config.json").read_text()) | {"model_type": "theirs"}
    config["auto_map"] = {"AutoConfig": "theirs.X", "AutoModel": "theirs.X"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    environment = job(make_rows(), BASE_MODEL=str(tmp_path), CANDIDATES="auto")
    assert "contains custom code" in failure_of(environment)
    assert not ran.exists()


def test_a_reason_is_one_line_of_plain_text_that_sagemaker_keeps_whole(tmp_path, capsys):
    train.write_failure(f"'a\n\x1b[2J\u202e' {'x' * 2000}", {"SM_OUTPUT_DIR": str(tmp_path)})
    reason = (tmp_path / "failure").read_text()
    assert re.fullmatch(r"'a\\n\\x1b\[2J\\u202e' x+…", reason)
    assert len(reason) == train.MAX_REASON_CHARACTERS
    assert capsys.readouterr().err == f"failed: {reason}\n"


def test_an_unexpected_error_leaves_its_type_in_one_line_and_the_traceback_in_the_log(job, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("the disk\nis full " + "x" * 2000)

    monkeypatch.setattr(train, "save", broken)
    reason = failure_of(job(make_rows(("0", "2"))))
    assert reason.startswith("Training stopped with an unexpected RuntimeError: the disk is full xxx")
    assert "Traceback" in capsys.readouterr().err


def test_a_saved_model_that_answers_otherwise_is_not_handed_over(job, monkeypatch):
    def save_spoilt(classifier, model_dir):
        [member] = classifier.members
        spoilt = dataclasses.replace(member, head=inference.Head(-member.head.weight, -member.head.bias))
        saved(dataclasses.replace(classifier, members=[spoilt]), model_dir)

    saved = train.save
    monkeypatch.setattr(train, "save", save_spoilt)
    environment = job(make_rows())
    assert "does not answer as the trained one" in failure_of(environment)
    assert not Path(environment["SM_OUTPUT_DATA_DIR"]).exists()


# ---- the Hub token


@mock_aws
@pytest.mark.parametrize("content", ["hf_secret", '{"token": "hf_secret"}', " hf_secret\n"])
def test_the_hub_token_is_read_from_the_secret_plain_or_as_json(monkeypatch, content):
    client = boto3.client("secretsmanager", "eu-west-1")
    arn = client.create_secret(Name="hub", SecretString=content)["ARN"]
    assert base_models.read_hub_token(arn) == "hf_secret"


@mock_aws
def test_a_secret_without_a_token_is_an_error_that_does_not_show_it():
    arn = boto3.client("secretsmanager", "eu-west-1").create_secret(Name="hub", SecretString='{"key": "hf_secret"}')
    with pytest.raises(base_models.BaseModelError, match="holds no token") as caught:
        base_models.read_hub_token(arn["ARN"])
    assert "hf_secret" not in str(caught.value)


@mock_aws
@pytest.mark.parametrize("arn", ["arn:aws:secretsmanager:eu-west-1:123456789012:secret:gone-abc", "nonsense"])
def test_a_secret_that_cannot_be_read_is_named(arn):
    with pytest.raises(base_models.BaseModelError, match=f"HUB_TOKEN_SECRET_ARN={arn}"):
        base_models.read_hub_token(arn)


# ---- serving


def test_one_text_a_list_and_an_empty_list_are_answered_one_for_one(classifier):
    assert [a["label"] for a in inference.predict_fn({"inputs": "snow wind rain"}, classifier)] == ["0"]
    assert inference.predict_fn({"inputs": []}, classifier) == []
    texts = ["rice soup", "bus tram ferry", "cloud storm"] * 30  # more than one pass
    assert [a["label"] for a in inference.predict_fn({"inputs": texts}, classifier)] == ["2", "10", "0"] * 30


def test_top_k_returns_the_best_labels_of_each_text_in_order(classifier):
    (ranked,) = inference.predict_fn({"inputs": "rice soup", "parameters": {"top_k": 9}}, classifier)
    assert ranked[0]["label"] == "2"
    assert sorted(answer["label"] for answer in ranked) == ["0", "10", "2"]
    assert [a["score"] for a in ranked] == sorted((a["score"] for a in ranked), reverse=True)
    assert sum(answer["score"] for answer in ranked) == pytest.approx(1, abs=1e-5)


def test_a_text_beyond_the_models_length_is_cut(classifier):
    assert inference.predict_fn({"inputs": "snow " * 10_000}, classifier)[0]["label"] == "0"


@pytest.mark.parametrize(
    ("request_body", "reason"),
    [
        ("a text", "must be a JSON object"),
        ({"input": "a text"}, "must be a JSON object"),
        ({"inputs": None}, "must be a text or a list of texts, not NoneType"),
        ({"inputs": ["a", 3]}, r'"inputs"\[1\] must be a text, not int'),
        ({"inputs": "a", "parameters": {"top": 3}}, 'may only hold "top_k"'),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "at least 1, not 0"),
        ({"inputs": "a", "parameters": {"top_k": True}}, "at least 1, not True"),
    ],
)
def test_a_request_of_another_shape_is_refused_in_words(classifier, request_body, reason):
    with pytest.raises(ValueError, match=reason):
        inference.predict_fn(request_body, classifier)


def test_the_gpu_of_a_mac_is_not_used_as_the_model_server_does_not_use_it_either(job, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    used = set()

    class Noted(inference.Encoder):
        def pooled(self, encoded):
            used.add(self.model.device.type)
            return super().pooled(encoded)

    for module in (base_models, fine_tuned, inference):
        monkeypatch.setattr(module, "Encoder", Noted)
    environment = job(make_rows(("0", "2"), per_label=5), CANDIDATES="fine-tuned")
    assert train.main(FAST, environment) == 0
    assert used == {"cpu"}
