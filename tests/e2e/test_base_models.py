"""Base models of other kinds than BERT: trained, saved and served, or refused before anything is trained."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import base_model as base_models
import inference
import tiny_model
import train

torch.set_num_threads(1)

SMALL = {"num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
KINDS = {
    "BART": lambda words: transformers.BartConfig(
        vocab_size=words,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=3,
    ),
    "T5": lambda words: transformers.T5Config(
        vocab_size=words,
        d_model=32,
        d_kv=16,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    ),
    "XLNet": lambda words: transformers.XLNetConfig(vocab_size=words, d_model=32, n_layer=1, n_head=2, d_inner=32),
    "RoBERTa": lambda words: transformers.RobertaConfig(
        vocab_size=words, max_position_embeddings=34, pad_token_id=1, **SMALL
    ),
}
CLASSES = {"BART": "BartModel", "T5": "T5Model", "XLNet": "XLNetModel", "RoBERTa": "RobertaModel"}


def save_tokenizer(folder: Path, pad: int = 0, more: int = 0) -> int:
    """The tiny model's tokenizer, with an end token; returns how many tokens it has. pad: the padding token's id."""
    begin = ("[UNK]", "[PAD]") if pad else ("[PAD]", "[UNK]")
    return tiny_model.save_tokenizer(folder, begin, more, eos_token="[SEP]")


def save_model(folder: Path, kind: str, words: int) -> None:
    torch.manual_seed(0)
    config = KINDS[kind](words)
    getattr(transformers, CLASSES[kind])(config).save_pretrained(folder)


@pytest.fixture
def job(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """The environment of a job on texts that are longer than any of these models takes."""

    def make(base_model: Path) -> dict[str, str]:
        chance = random.Random(3)
        rows = [
            (" ".join(chance.choices(words, k=60)), label)
            for label, words in zip(("sky", "food", "ride"), tiny_model.WORDS, strict=False)
            for _ in range(6)
        ]
        (tmp_path / "train").mkdir()
        with (tmp_path / "train" / "data.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        return {
            "SM_CHANNEL_TRAIN": str(tmp_path / "train"),
            "SM_MODEL_DIR": str(tmp_path / "model"),
            "SM_OUTPUT_DATA_DIR": str(tmp_path / "output" / "data"),
            "SM_OUTPUT_DIR": str(tmp_path / "output"),
            "BASE_MODEL": str(base_model),
            "TEXT_COLUMN": "text",
            "LABEL_COLUMN": "label",
            "CANDIDATES": "fine-tuned",
        }

    return make


def served_length(model_dir: str) -> int:
    """The most tokens of a text that the model of a folder reads."""
    [member] = inference.model_fn(model_dir).members
    assert isinstance(member, inference.EncoderMember)
    return int(member.encoder.tokenizer.model_max_length)


def run(environment: dict[str, str], *arguments: str) -> str:
    """Train; returns the reason of a failure."""
    status = train.main(["--epochs", "1", "--batch_size", "8", *arguments], environment)
    return "" if status == 0 else (Path(environment["SM_OUTPUT_DIR"]) / "failure").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "length"), [("BART", 32), ("T5", 128), ("XLNet", 128), ("RoBERTa", 32)], ids=lambda it: str(it)
)
def test_a_base_model_of_another_kind_is_trained_on_as_many_tokens_as_it_takes(
    tmp_path: Path, job: Callable[[Path], dict[str, str]], kind: str, length: int
) -> None:
    save_model(tmp_path / "base", kind, save_tokenizer(tmp_path / "base", pad=int(kind == "RoBERTa")))
    environment = job(tmp_path / "base")
    assert run(environment) == ""
    metrics = json.loads((tmp_path / "output" / "data" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["max_length"] == length
    served = inference.model_fn(environment["SM_MODEL_DIR"])
    assert served_length(environment["SM_MODEL_DIR"]) == length
    [answer] = inference.predict_fn({"inputs": ["rain " * 500]}, served)
    assert answer["label"] in ("sky", "food", "ride")


@pytest.mark.parametrize("asked", [33, 34, 128])
def test_the_last_positions_that_a_roberta_cannot_use_are_not_used(
    tmp_path: Path, job: Callable[[Path], dict[str, str]], asked: int
) -> None:
    save_model(tmp_path / "base", "RoBERTa", save_tokenizer(tmp_path / "base", pad=1))
    environment = job(tmp_path / "base")
    assert run(environment, "--max_length", str(asked)) == ""
    assert served_length(environment["SM_MODEL_DIR"]) == 32


def refused(reason: str, environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """The reason, of a job in which nothing was trained."""
    assert " out of fold" not in capsys.readouterr().out
    assert not Path(environment["SM_MODEL_DIR"]).exists()
    return reason


def test_a_tokenizer_of_another_model_is_refused_before_training(
    tmp_path: Path, job: Callable[[Path], dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = save_tokenizer(tmp_path / "base", more=9)
    save_model(tmp_path / "base", "T5", words - 9)
    # In vain it is not: words alone would do.
    environment = job(tmp_path / "base") | {"CANDIDATES": "auto"}
    reason = refused(run(environment), environment, capsys)
    assert f"the tokenizer has {words} tokens, and the model knows {words - 9}" in reason


def test_a_model_that_breaks_at_full_length_is_refused_before_training(
    tmp_path: Path,
    job: Callable[[Path], dict[str, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(tmp_path / "base", "RoBERTa", save_tokenizer(tmp_path / "base", pad=1))
    whole = transformers.RobertaModel.forward

    def forward(self: Any, input_ids: Any, **options: Any) -> Any:
        if input_ids.shape[1] > 8:
            raise RuntimeError("shapes do not fit")
        return whole(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.RobertaModel, "forward", forward)
    # In vain it is not: words alone would do.
    environment = job(tmp_path / "base") | {"CANDIDATES": "auto"}
    reason = refused(run(environment), environment, capsys)
    assert "does not take texts of 34 tokens (RuntimeError: shapes do not fit). Set a smaller max_length" in reason


def test_a_base_model_with_a_sentencepiece_vocabulary_alone_is_trained_and_served_without_it(
    tmp_path: Path, job: Callable[[Path], dict[str, str]]
) -> None:
    """The serving image may lack sentencepiece: what is served has a tokenizer.json."""
    import sentencepiece

    base = tmp_path / "base"
    base.mkdir()
    chance = random.Random(3)
    words = [word for words in tiny_model.WORDS for word in words]
    sentences = [" ".join(chance.choices(words, k=12)) for _ in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(base / "spm"), vocab_size=60, hard_vocab_limit=False
    )
    (base / "spm.vocab").unlink()
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer", "vocab_type": "spm"}')
    config = transformers.DebertaV2Config(vocab_size=80, max_position_embeddings=64, type_vocab_size=0, **SMALL)
    transformers.DebertaV2Model(config).save_pretrained(base)
    environment = job(base)
    assert run(environment) == ""
    assert (Path(environment["SM_MODEL_DIR"]) / "tokenizer.json").is_file()
    assert not [*Path(environment["SM_MODEL_DIR"]).glob("*.model")]


# --- chosen by the texts ----------------------------------------------------------------------------


@pytest.fixture
def two_models(tmp_path: Path) -> dict[str, str]:
    """The settings of a job that chooses between two: one knows the tiny model's words, the other one some more."""
    folders = {name: tmp_path / name for name in ("english", "multilingual")}
    for name, folder in folders.items():
        save_model(folder, "RoBERTa", save_tokenizer(folder, pad=1, more=9 if name == "multilingual" else 0))
    return {
        "BASE_MODEL": "auto",
        "BASE_MODEL_ENGLISH": f"{folders['english']}@",
        "BASE_MODEL_MULTILINGUAL": f"{folders['multilingual']}@",
    }


def metrics_of(environment: dict[str, str]) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(Path(environment["SM_OUTPUT_DATA_DIR"], "metrics.json").read_text("utf-8"))
    return metrics


def write_texts(environment: dict[str, str], texts: dict[str, list[str]]) -> None:
    with Path(environment["SM_CHANNEL_TRAIN"], "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, label) for label in texts for text in texts[label])])


def test_texts_that_the_english_tokenizer_suits_get_the_english_model(
    tmp_path: Path, job: Callable[[Path], dict[str, str]], two_models: dict[str, str]
) -> None:
    environment = job(tmp_path) | two_models | {"CANDIDATES": "frozen"}
    assert run(environment) == ""
    metrics = metrics_of(environment)
    english = str(tmp_path / "english")
    assert (metrics["base_model"], metrics["base_model_revision"]) == (english, None)
    told = metrics["told"]["base model"]
    assert re.fullmatch(rf"{english} \(0\.0 % of the tokens unknown, 0\.2\d tokens per character\)", told)


@pytest.mark.parametrize("words", ["снег дождь ветер туча", "雪 雨 風 雲", "tuyết mưa gió mây", "s n o w"], ids=str)
def test_texts_that_it_does_not_suit_get_the_multilingual_model_and_that_is_told(
    tmp_path: Path, job: Callable[[Path], dict[str, str]], two_models: dict[str, str], words: str
) -> None:
    environment = job(tmp_path) | two_models | {"CANDIDATES": "frozen"}
    chance = random.Random(3)
    texts = {
        label: [" ".join(chance.choices(own, k=20)) for _ in range(6)]
        for label, own in (("sky", words.split()), ("food", [*words.split(), "x"]))
    }
    write_texts(environment, texts)
    assert run(environment) == ""
    metrics = metrics_of(environment)
    assert metrics["base_model"] == str(tmp_path / "multilingual")
    told = metrics["told"]["base model"]
    assert told.startswith(f"{tmp_path / 'multilingual'} ({tmp_path / 'english'} was made for other texts: ")
    assert " % of the tokens unknown, " in told


def test_more_tokens_than_an_english_text_has_are_another_language_too(tmp_path: Path) -> None:
    tiny_model.save_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert base_models.measure(["rain cloud storm"], tokenizer).good
    assert base_models.measure(["a " * 50], tokenizer) == (0, 1)  # one token of one character each
    assert not base_models.measure(["a " * 50], tokenizer).good
    assert base_models.measure(["\u200b "], tokenizer).tokens_per_character <= 1


def test_what_the_choice_needs_is_named(
    tmp_path: Path, job: Callable[[Path], dict[str, str]], two_models: dict[str, str]
) -> None:
    job_environment = job(tmp_path)
    for name in ("BASE_MODEL_ENGLISH", "BASE_MODEL_MULTILINGUAL"):
        environment = {**job_environment, **two_models, name: ""}
        assert run(environment) == f"BASE_MODEL=auto needs {name}, which the training orchestrator sets."


def test_a_revision_follows_the_name() -> None:
    read = base_models.Source.read
    assert read("org/name@0123abc") == ("org/name", "0123abc", None)
    assert read("org/name") == read("org/name@") == ("org/name", None, None)
