"""The training program with real torch and transformers, on a randomly initialised model of a few thousand weights."""

import csv
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

import inference
import tiny_model
import train
from dataset import Example
from reader import Reader

TRAINING = Path(__file__).resolve().parents[2] / "scripts" / "training"

# Two threads that wait for each other are slower than one at this size, far slower on a busy machine.
torch.set_num_threads(1)

WORDS = dict(zip(("0", "2", "10"), tiny_model.WORDS, strict=False))
FAST = ["--epochs", "12", "--learning_rate", "5e-3", "--batch_size", "8", "--max_length", "16"]


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
    """The program run as SageMaker runs it, in a process of its own: its environment and standard output."""
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


# ---- odd texts


def test_a_very_long_text_and_nul_bytes_are_trained_on(job):
    environment = job([*make_rows(), ("bread " * 300_000, "2"), ("ri\0ce \0", "2")])
    assert train.main(FAST, environment) == 0
    metrics = metrics_of(environment)
    assert metrics["train_examples"] + metrics["holdout_examples"] == len(make_rows()) + 2


def test_a_tokenizer_is_given_no_more_of_a_text_than_it_can_use_and_few_texts_at_once(classifier):
    calls = []

    class Recorder:
        model_max_length = classifier.tokenizer.model_max_length

        def __call__(self, texts, **options):
            calls.append((len(texts), max(map(len, texts))))
            return classifier.tokenizer(texts, **options)

    endless = Example("snow " * 1_000_000, "0")
    items = train.encode([endless] * 300, ["0", "1"], Recorder())
    most = 100 * Recorder.model_max_length
    assert calls == [(256, most), (44, most)]
    assert items[0] == items[-1]
    assert items[0]["input_ids"] == classifier.tokenizer(endless.text, truncation=True)["input_ids"]


# ---- a run that succeeds


def test_metrics_tell_the_figures_the_counts_and_what_the_data_holds(trained):
    metrics = metrics_of(trained[0])
    assert metrics == json.loads((Path(trained[0]["SM_MODEL_DIR"]) / "metrics.json").read_text())
    seconds, figures = metrics.pop("train_seconds"), {name: metrics.pop(name) for name in list(metrics)[1:6]}
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
    assert not (Path(trained[0]["SM_OUTPUT_DIR"]) / "failure").exists()


def test_every_user_may_read_the_model_whatever_wrote_it(trained):
    """A serverless endpoint's container does not run as root."""
    folder = Path(trained[0]["SM_MODEL_DIR"])
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    folders = {folder.name, "code"}
    assert modes == {name: 0o755 if name in folders else 0o644 for name in modes}
    assert modes.keys() >= {"model.safetensors", "config.json", "inference.py", "golden.json", "holdout.csv"}


def test_progress_is_printed_as_it_trains(trained):
    lines = trained[1].splitlines()
    progress = [line for line in lines if line.startswith("epoch ")]
    assert progress[0].startswith("epoch 1/12  step 5/108  loss ")
    assert progress[-1].startswith("epoch 12/12  step 105/108  loss ")
    assert "data: data.csv: rows: 93 read, 90 used" in lines
    left_out = next(line for line in lines if line.startswith("data: data.csv: rows left out: "))
    assert "no label: 2 (line 93, 94)" in left_out
    assert any(line.startswith("hold-out:  accuracy 1.0000  macro_f1 1.0000") for line in lines)


def test_the_model_folder_serves_by_itself_in_a_process_that_knows_only_the_folder(trained):
    model_dir = trained[0]["SM_MODEL_DIR"]
    assert (Path(model_dir) / "model.safetensors").is_file()
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1] + '/code'); import inference;"
        "m = inference.model_fn(sys.argv[1]);"
        "print(json.dumps(inference.predict_fn({'inputs': ['ferry tram bus', 'soup rice bread']}, m)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, model_dir], capture_output=True, text=True, timeout=60, check=True
    )
    answers = json.loads(run.stdout)
    assert [answer["label"] for answer in answers] == ["10", "2"]
    assert all(0.5 < answer["score"] <= 1 for answer in answers)


def test_the_same_seed_gives_the_same_model_and_another_does_not(job):
    def weights(seed):
        environment = job(make_rows())
        assert train.main([*FAST, "--epochs", "1", "--seed", seed], environment) == 0
        return load_file(Path(environment["SM_MODEL_DIR"]) / "model.safetensors")

    first, second, other = weights("7"), weights("7"), weights("8")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_given_test_channel_is_the_holdout_and_its_texts_are_not_trained_on(job, capsys):
    rows = make_rows(("0", "2"))
    environment = job(rows, test_rows=[*rows[:4], ("soup soup", "2")])
    assert train.main([*FAST, "--epochs", "1"], environment) == 0
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
    environment = job(make_rows(("0", "2")), BASE_MODEL="s3://bucket/base/", SM_CHANNEL_BASE_MODEL=str(base_model))
    assert train.main([*FAST, "--epochs", "1"], environment) == 0
    assert metrics_of(environment)["base_model"] == "s3://bucket/base/"


def test_a_max_length_beyond_the_model_is_cut_to_it(job, capsys):
    environment = job(make_rows(("0", "2")))
    assert train.main([*FAST, "--epochs", "1", "--max_length", "512"], environment) == 0
    assert "max_length 512 is more than the base model takes: 32 tokens are used" in capsys.readouterr().out
    assert inference.model_fn(environment["SM_MODEL_DIR"]).tokenizer.model_max_length == 32


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
    assert len(told) == 18  # two more are about the tokens
    assert [*told.items()][-1] == ("more", "33 more lines, in the job's log")
    assert f"0{'x' * 58}…: rows left out" in told
    assert max(map(len, told)) <= 100


def test_a_text_is_cut_when_it_has_more_tokens_than_the_model_takes(classifier):
    fits, cut = "snow " * 14, "snow " * 15  # beside the two special ones
    examples = [Example(text, "0") for text in (fits, cut, "snow " * 3_000_000, "snow")]
    items = train.encode(examples, ["0"], classifier.tokenizer)
    seen = train.seen_tokens(examples, items, classifier.tokenizer)
    assert seen == {"max_length": 16, "cut_texts": 2, "unknown_token_share": 0}
    assert train.told_tokens(seen, 4) == {"texts cut": "2 of 4 (50.0 %), at 16 tokens"}


@pytest.mark.parametrize(
    ("text", "share", "told"),
    [
        ("snow rain", 0, None),
        ("snow 雪", 0.5, "50.0 % of the texts' tokens"),
        ("snow " * 13 + "雪", 1 / 14, "7.1 % of"),
    ],
)
def test_the_share_of_tokens_that_the_base_model_does_not_know_is_that_of_the_texts_own_tokens(
    classifier, text, share, told
):
    examples = [Example(text, "0")]
    seen = train.seen_tokens(examples, train.encode(examples, ["0"], classifier.tokenizer), classifier.tokenizer)
    assert seen["unknown_token_share"] == pytest.approx(share, abs=1e-6)
    assert told is None or train.told_tokens(seen, 1)["unknown tokens"].startswith(told)


@pytest.mark.parametrize(("share", "shown"), [(0.00001, "less than 0.1 %"), (0.001, "0.1 %")])
def test_a_small_share_of_unknown_tokens_is_not_shown_as_none(share, shown):
    told = train.told_tokens({"max_length": 16, "cut_texts": 0, "unknown_token_share": share}, 1)
    assert told["unknown tokens"].startswith(f"{shown} of")


# ---- a run that fails, with its reason


def test_the_share_of_rows_that_may_be_left_out_is_a_setting(job):
    rows = [*make_rows(("0", "2")), *[("", "0")] * 5]
    assert "5 of 65 rows cannot be used (no text: 5 (line 62, 63, 64, 65, 66)), more than 5 %" in failure_of(job(rows))
    assert "more than 7 %" in failure_of(job(rows, MAX_ROWS_LEFT_OUT="0.07"))
    assert train.main([*FAST, "--epochs", "1"], job(rows, MAX_ROWS_LEFT_OUT="0.08")) == 0


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
    assert not (Path(environment["SM_MODEL_DIR"]) / "model.safetensors").exists()


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


def test_a_diverging_loss_is_a_failure_and_writes_no_metrics(job, base_model, tmp_path):
    for file in base_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(base_model / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file(
        {**weights, name: torch.full_like(weights[name], math.inf)}, tmp_path / "model.safetensors", {"format": "pt"}
    )

    environment = job(make_rows(), BASE_MODEL=str(tmp_path))

    assert "training loss became nan" in failure_of(environment)
    assert not Path(environment["SM_OUTPUT_DATA_DIR"], "metrics.json").exists()


def test_a_base_model_that_is_not_there_is_named_with_its_revision(job, tmp_path, monkeypatch):
    assert f"BASE_MODEL={tmp_path} is not a model" in failure_of(job(make_rows(), BASE_MODEL=str(tmp_path)))
    assert "needs the channel 'base_model'" in failure_of(job(make_rows(), BASE_MODEL="s3://bucket/base"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reason = failure_of(job(make_rows(), BASE_MODEL="someone/unknown-model", BASE_MODEL_REVISION="v9"))
    assert "BASE_MODEL=someone/unknown-model, revision v9" in reason
    assert "HUB_TOKEN_SECRET_ARN" in reason


def test_a_base_model_without_safetensors_is_refused_in_words(job, base_model, tmp_path):
    for path in base_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    reason = failure_of(job(make_rows(), BASE_MODEL=str(tmp_path)))
    assert f"BASE_MODEL={tmp_path}, revision not set, has no weights as model.safetensors" in reason
    assert "pytorch_model.bin, can run code when they are loaded" in reason


def test_the_code_of_a_base_model_is_not_run(job, base_model, tmp_path):
    for path in base_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "theirs"}
    config["auto_map"] = {"AutoConfig": "theirs.X", "AutoModelForSequenceClassification": "theirs.X"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert "contains custom code" in failure_of(job(make_rows(), BASE_MODEL=str(tmp_path)))
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
    reason = failure_of(job(make_rows(("0", "2"))), "--epochs", "1")
    assert reason.startswith("Training stopped with an unexpected RuntimeError: the disk is full xxx")
    assert "Traceback" in capsys.readouterr().err


def test_a_saved_model_that_answers_otherwise_is_not_handed_over(job, monkeypatch):
    def save_spoilt(classifier, model_dir):
        with torch.no_grad():
            classifier.model.classifier.weight.neg_()
            classifier.model.classifier.bias.neg_()
        saved(classifier, model_dir)

    saved = train.save
    monkeypatch.setattr(train, "save", save_spoilt)
    assert "does not answer as the trained one" in failure_of(job(make_rows()))


# ---- the Hub token


@mock_aws
@pytest.mark.parametrize("content", ["hf_secret", '{"token": "hf_secret"}', " hf_secret\n"])
def test_the_hub_token_is_read_from_the_secret_plain_or_as_json(monkeypatch, content):
    client = boto3.client("secretsmanager", "eu-west-1")
    arn = client.create_secret(Name="hub", SecretString=content)["ARN"]
    assert train.read_hub_token(arn) == "hf_secret"


@mock_aws
def test_a_secret_without_a_token_is_an_error_that_does_not_show_it():
    arn = boto3.client("secretsmanager", "eu-west-1").create_secret(Name="hub", SecretString='{"key": "hf_secret"}')
    with pytest.raises(train.TrainingError, match="holds no token") as caught:
        train.read_hub_token(arn["ARN"])
    assert "hf_secret" not in str(caught.value)


@mock_aws
@pytest.mark.parametrize("arn", ["arn:aws:secretsmanager:eu-west-1:123456789012:secret:gone-abc", "nonsense"])
def test_a_secret_that_cannot_be_read_is_named(arn):
    with pytest.raises(train.TrainingError, match=f"HUB_TOKEN_SECRET_ARN={arn}"):
        train.read_hub_token(arn)


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


# Prints the device that the trainer is given on a Mac whose GPU torch could use.
ON_A_MAC = """
import sys, types
import torch, transformers
import train
torch.backends.mps.is_available = torch.backends.mps.is_built = lambda: True
torch.cuda.is_available = lambda: False
def trainer(model, arguments, **others):
    sys.exit(f"device: {arguments.device}")
transformers.Trainer = trainer
settings = types.SimpleNamespace(epochs=1, batch_size=8, max_length=16, learning_rate=1e-3, seed=1)
train.fine_tune(settings, types.SimpleNamespace(model=None, tokenizer=None), [{}])
"""


def test_the_gpu_of_a_mac_is_not_used_as_the_model_server_does_not_use_it_either():
    done = subprocess.run([sys.executable, "-c", ON_A_MAC], cwd=TRAINING, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "device: cpu"
