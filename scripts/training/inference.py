"""Serve a trained classifier: this file travels in every model archive as code/inference.py.

SageMaker's HuggingFace inference container calls model_fn once and predict_fn per request; the container itself decodes
and encodes the JSON (handler_service.py of sagemaker-huggingface-inference-toolkit), and answers 400 with the text of
what predict_fn raises. The training program uses the same classes to train, so that what is served is what was judged.

Request:  {"inputs": "a text" | ["a text", ...], "parameters": {"top_k": 3}}    (parameters are optional)
Response: [{"label": "spam", "score": 0.99}, ...], one per text; with top_k, a list of the k best per text.

The model's folder has one of these formats, which a model_fn of any later release still loads:
  1  no model.json: a transformers model for sequence classification, with its tokenizer
  2  model.json: labels and members, whose probabilities are averaged by weight. A member is a linear head on top of
     words (words.json, words.safetensors) or of the encoder (a transformers model, its tokenizer, encoder.safetensors)
"""

import itertools
import json
import math
import re
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import load_file

FORMAT = 2
CHARACTERS_PER_TOKEN = 100  # no text has that many per token on average, long runs of white space aside
TEXTS_PER_PASS = 32  # through the model at once: bounds the memory of a request with many texts
# Of a text, for the words: the encoder stops at its maximum length, which is fewer.
WORDS_MAX_CHARACTERS = 20_000
WORD = re.compile(r"\w\w+")
WORD_MAX_CHARACTERS = 100  # what is longer is no word: an address, or a picture as base64
CHARACTER_GRAMS = range(2, 6)  # characters


class RequestError(ValueError):
    """The request does not have the documented shape; the text says how, for the caller."""


class Rows(NamedTuple):
    """Sparse rows, one after the other: row i has the values[starts[i] : starts[i + 1]] at the columns `indices`."""

    starts: "array[int]"
    indices: "array[int]"
    values: "array[float]"

    @classmethod
    def none(cls) -> "Rows":
        """Return no row."""
        return cls(array("q", [0]), array("q"), array("f"))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return starts (one more than there are rows), indices and values."""
        starts, indices, values = (torch.from_numpy(np.array(part)) for part in self)
        return starts, indices, values


class Words:
    """Texts as weights of their words, pairs of words, and parts of words (TF-IDF).

    Two blocks, each of length 1: words and pairs of words; and 2 to 5 characters within a word and its edges. A weight
    is (1 + ln n) of a gram's n occurrences, times the rarity of the gram.
    """

    def __init__(self, words: Sequence[str], characters: Sequence[str], rarity: Sequence[float]) -> None:
        """words, characters: the grams of either block; rarity: the factor of each, words first."""
        self.words = {gram: column for column, gram in enumerate(words)}
        self.characters = {gram: column for column, gram in enumerate(characters, len(words))}
        self.rarity = rarity
        self._parts: dict[str, list[int]] = {}

    def rows(self, texts: Sequence[str]) -> Rows:
        """Return the texts as rows with a column for each gram; what is unknown is left out."""
        rows = Rows.none()
        for text in texts:
            words = text[:WORDS_MAX_CHARACTERS].lower()
            self._add(rows, Counter(at for gram in word_grams(words) if (at := self.words.get(gram)) is not None))
            self._add(rows, Counter(at for word in words.split() for at in self._parts_of(word)))
            rows.starts.append(len(rows.indices))
        return rows

    def _add(self, rows: Rows, counts: Mapping[int, int]) -> None:
        weights = [(1 + math.log(n)) * self.rarity[column] for column, n in counts.items()]
        length = math.sqrt(math.fsum(weight * weight for weight in weights))
        rows.indices.extend(counts)
        rows.values.extend(weight / length for weight in weights)

    def _parts_of(self, word: str) -> list[int]:
        if word not in self._parts:
            if len(self._parts) > 100_000:  # requests without end have words without end
                self._parts.clear()
            self._parts[word] = [at for gram in character_grams(word) if (at := self.characters.get(gram)) is not None]
        return self._parts[word]


def word_grams(text: str) -> list[str]:
    """Return the words of a text in lower case, of two characters or more, and the pairs that follow each other."""
    words = [word[:WORD_MAX_CHARACTERS] for word in WORD.findall(text)]
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


def character_grams(word: str) -> list[str]:
    """Return the parts of a word, of 2 to 5 characters; a blank stands for its edge."""
    padded = f" {word[:WORD_MAX_CHARACTERS]} "
    return [
        padded[start : start + length]
        for length in CHARACTER_GRAMS
        for start in range(max(len(padded) - length + 1, 0))
    ]


class Encoder:
    """Texts as vectors: the mean of a transformers model's last hidden states over a text's tokens."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        """tokenizer: its model_max_length is the tokens of a text that are used; model: a transformers base model."""
        self.tokenizer = tokenizer
        self.model = model
        self._reads = model.get_encoder() if model.config.is_encoder_decoder else model

    def pooled(self, encoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the vectors of tokenized, padded texts: texts x width."""
        states: torch.Tensor = self._reads(**encoded)[0].float()
        mask = encoded["attention_mask"].unsqueeze(-1)
        return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the vectors of texts, on the CPU: texts x width."""
        encoded = tokenize(texts, self.tokenizer, padding=True, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            return self.pooled(encoded).cpu()


class Head(NamedTuple):
    """A linear layer: features x labels, and one bias per label."""

    weight: torch.Tensor
    bias: torch.Tensor


class Member(Protocol):
    """A part of a classifier that answers by itself."""

    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """Return texts x labels, whose softmax is the probabilities."""


@dataclass
class WordsMember:
    """A linear head on words."""

    words: Words
    head: Head

    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """Return texts x labels."""
        starts, indices, values = self.words.rows(texts).tensors()
        summed = torch.nn.functional.embedding_bag(
            indices, self.head.weight, starts[:-1], mode="sum", per_sample_weights=values
        )
        return summed + self.head.bias


@dataclass
class EncoderMember:
    """A linear head on an encoder's vectors."""

    encoder: Encoder
    head: Head

    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """Return texts x labels."""
        return self.encoder.vectors(texts) @ self.head.weight + self.head.bias


@dataclass
class SequenceClassifier:
    """A transformers model for sequence classification: format 1."""

    tokenizer: Any
    model: Any

    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """Return texts x labels."""
        encoded = tokenize(texts, self.tokenizer, padding=True, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            scores: torch.Tensor = self.model(**encoded).logits.float().cpu()
        return scores


@dataclass
class Classifier:
    """What is served."""

    labels: Sequence[str]
    members: Sequence[Member]
    weights: Sequence[float] = (1.0,)  # of the members; their sum is 1
    temperatures: Sequence[float] = (1.0,)  # of the members: what their scores are divided by
    details: Mapping[str, Any] = field(default_factory=dict)  # model.json

    def probabilities(self, texts: Sequence[str]) -> torch.Tensor:
        """Return each label's probability for each text: texts x labels, in the texts' order.

        The texts go through the members by length, TEXTS_PER_PASS at a time: less padding, bounded memory. In 8-bit
        integers it is one at a time: the encoder's scale depends on all that goes through it at once.
        """
        found = torch.empty(len(texts), len(self.labels))
        by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        at_once = 1 if self.details.get("int8") else TEXTS_PER_PASS
        for start in range(0, len(texts), at_once):
            rows = by_length[start : start + at_once]
            some = [texts[row] for row in rows]
            found[rows] = sum(
                weight * (member.scores(some) / temperature).softmax(dim=-1)
                for member, weight, temperature in zip(self.members, self.weights, self.temperatures, strict=True)
            )
        return found


def model_fn(model_dir: str | Path) -> Classifier:
    """Load the classifier from the unpacked archive, of whatever format, onto the GPU where there is one."""
    folder = Path(model_dir)
    if not (folder / "model.json").is_file():
        return _load_format_1(folder)
    details = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if details["format"] != FORMAT:
        raise ValueError(f"model.json has the format {details['format']!r}, and this release reads {FORMAT} and 1")
    parts = details["members"]
    return Classifier(
        details["labels"],
        [LOADERS[part["kind"]](folder, details) for part in parts],
        [part["weight"] for part in parts],
        [part["temperature"] for part in parts],
        details,
    )


def read_labels(folder: Path) -> tuple[str, ...]:
    """Return the labels of the model in a folder, of whatever format. Raises TypeError where they are no texts."""
    if (folder / "model.json").is_file():
        labels = json.loads((folder / "model.json").read_text(encoding="utf-8"))["labels"]
        if not all(isinstance(label, str) for label in labels):
            raise TypeError("model.json has labels that are no texts")
        return tuple(labels)
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    return tuple(str(known[str(at)]) for at in range(len(known)))


def _load_format_1(folder: Path) -> Classifier:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # Neither code nor pickles out of an archive.
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    member = SequenceClassifier(
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False), model.to(_device()).eval()
    )
    return Classifier(read_labels(folder), [member])


def _load_words(folder: Path, _: Mapping[str, Any]) -> WordsMember:
    grams = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "words.safetensors")
    words = Words(grams["words"], grams["characters"], tensors["rarity"].tolist())
    return WordsMember(words, Head(tensors["weight"], tensors["bias"]))


def _load_encoder(folder: Path, details: Mapping[str, Any]) -> EncoderMember:
    # Late: a model of words alone starts without transformers.
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), model.to(_device()).eval())
    if details["int8"]:
        quantize(encoder)
    return EncoderMember(encoder, Head(**load_file(folder / "encoder.safetensors")))


LOADERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Member]] = {"words": _load_words, "encoder": _load_encoder}


def quantize(encoder: Encoder) -> None:
    """Let the encoder multiply in 8-bit integers, on the CPU: weights now, by output; activations as they come."""
    quantization: Any = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated; the image's PyTorch has it
        quantization.quantize_dynamic(
            encoder.model.cpu(), {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}, inplace=True
        )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def tokenize(texts: Sequence[str], tokenizer: Any, max_length: int | None = None, **options: Any) -> Any:
    """Turn texts into tokens, each cut at the tokenizer's maximum length, the same in training and in serving.

    max_length: tokens, instead of the tokenizer's. Text far beyond that is cut before: a tokenizer reads all of it
    first, and needs 150 bytes per character.
    """
    longest = max_length or tokenizer.model_max_length
    return tokenizer(
        [text[: longest * CHARACTERS_PER_TOKEN] for text in texts], truncation=True, max_length=longest, **options
    )


def predict_fn(data: Any, model: Classifier) -> list[Any]:
    """Classify the texts of one decoded request; a text beyond the model's maximum length is cut at its end.

    Returns one {"label", "score"} per text, or per text a list of the top_k of them, best first. Scores are from 0 to 1
    and sum to 1 over all labels.
    Raises RequestError when the request does not have the shape above.
    """
    texts, top_k = _parse(data)
    best = model.probabilities(texts).topk(min(top_k or 1, len(model.labels)), dim=-1)
    results: list[Any] = []
    for scores, columns in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        ranked = [{"label": model.labels[at], "score": score} for at, score in zip(columns, scores, strict=True)]
        results.append(ranked[0] if top_k is None else ranked)
    return results


def _parse(data: Any) -> tuple[list[str], int | None]:
    if not isinstance(data, dict) or "inputs" not in data:
        raise RequestError('the request must be a JSON object with "inputs": a text or a list of texts')
    inputs = data["inputs"]
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list):
        raise RequestError(f'"inputs" must be a text or a list of texts, not {type(inputs).__name__}')
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f'"inputs"[{position}] must be a text, not {type(text).__name__}')

    parameters = data.get("parameters") or {}
    if not isinstance(parameters, dict) or set(parameters) - {"top_k"}:
        raise RequestError('"parameters" may only hold "top_k": the number of labels to return per text')
    top_k = parameters.get("top_k")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise RequestError(f'"top_k" must be a whole number of at least 1, not {top_k!r}')
    return [text.strip() for text in texts], top_k
