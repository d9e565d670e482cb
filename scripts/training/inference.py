"""Serve the fine-tuned classifier.

SageMaker's HuggingFace inference container loads this file from code/inference.py in the model archive and calls
model_fn once and predict_fn per request; the container itself decodes and encodes the JSON (handler_service.py of
sagemaker-huggingface-inference-toolkit), and answers 400 with the text of what predict_fn raises. The training program
calls the same two functions before it hands a model over.

Request:  {"inputs": "a text" | ["a text", ...], "parameters": {"top_k": 3}}    (parameters are optional)
Response: [{"label": "spam", "score": 0.99}, ...], one per text; with top_k, a list of the k best per text.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

CHARACTERS_PER_TOKEN = 100  # no text has that many per token on average, long runs of white space aside
TEXTS_PER_PASS = 32  # through the model at once: bounds the memory of a request with many texts


class RequestError(ValueError):
    """The request does not have the documented shape; the text says how, for the caller."""


class Classifier(NamedTuple):
    """A fine-tuned model, on its device and in evaluation mode, and its tokenizer."""

    tokenizer: Any
    model: Any


def model_fn(model_dir: str | Path) -> Classifier:
    """Load the model and tokenizer from the unpacked archive, onto the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Neither code nor pickles out of an archive.
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, trust_remote_code=False, use_safetensors=True)
    return Classifier(AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False), model.to(device).eval())


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
    id2label = model.model.config.id2label
    results: list[Any] = []
    for scores in probabilities(texts, model):
        best = scores.topk(min(top_k or 1, len(id2label)), dim=-1)
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            ranked = [{"label": id2label[index], "score": score} for index, score in zip(indices, values, strict=True)]
            results.append(ranked[0] if top_k is None else ranked)
    return results


def probabilities(texts: Sequence[str], model: Classifier) -> Iterator[torch.Tensor]:
    """Yield each label's probability for each text: texts x labels, TEXTS_PER_PASS texts at a time, on the CPU."""
    for start in range(0, len(texts), TEXTS_PER_PASS):
        encoded = tokenize(texts[start : start + TEXTS_PER_PASS], model.tokenizer, padding=True, return_tensors="pt")
        encoded = encoded.to(model.model.device)
        with torch.inference_mode():
            scores = model.model(**encoded).logits.float().softmax(dim=-1).cpu()
        yield scores


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
