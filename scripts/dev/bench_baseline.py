"""A classifier of texts as others write it, trained and tested.

python -m dev.bench_baseline WHAT TRAIN TEST SEED BASE

WHAT: tfidf (scikit-learn users' TF-IDF with logistic regression), trainer (transformers.Trainer with its defaults: 3
epochs, batches of 8), or setfit. Prints one line of JSON: seconds of training, accuracy, macro_f1.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Predict = Callable[[Sequence[str]], Any]


def read(path: str) -> tuple[list[str], list[str]]:
    """The texts and labels of a CSV file."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def tfidf(texts: list[str], labels: list[str], seed: int, _: str) -> Predict:
    """Words and pairs of words, in one pipeline, as the tutorials have it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=30, max_iter=1000, random_state=seed),
    )
    return model.fit(texts, labels).predict  # type: ignore[no-any-return]


def trainer(texts: list[str], labels: list[str], seed: int, base: str) -> Predict:
    """A head for the labels, and the defaults of TrainingArguments."""
    import torch
    import transformers

    names = sorted(set(labels))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(names))
    encoded = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    rows = [{"input_ids": ids, "labels": names.index(label)} for ids, label in zip(encoded, labels, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
        )
        transformers.Trainer(
            model, arguments, train_dataset=rows, data_collator=transformers.DataCollatorWithPadding(tokenizer)
        ).train()
    model.eval()

    def predict(some: Sequence[str]) -> list[str]:
        found = []
        for start in range(0, len(some), 64):
            batch = tokenizer(
                list(some[start : start + 64]), truncation=True, max_length=128, padding=True, return_tensors="pt"
            )
            with torch.inference_mode():
                found += [names[at] for at in model(**batch).logits.argmax(dim=-1).tolist()]
        return found

    return predict


def setfit(texts: list[str], labels: list[str], seed: int, base: str) -> Predict:
    """SetFit's defaults: pairs of texts, then logistic regression."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(base, labels=sorted(set(labels)))
    data = Dataset.from_dict({"text": texts, "label": labels})
    Trainer(model, TrainingArguments(seed=seed, report_to="none"), train_dataset=data).train()
    return model.predict  # type: ignore[no-any-return]


SYSTEMS = {"tfidf": tfidf, "trainer": trainer, "setfit": setfit}


def main(what: str, train: str, test: str, seed: str, base: str) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    texts, labels = read(train)
    started = time.perf_counter()
    predict = SYSTEMS[what](texts, labels, int(seed), base)
    seconds = time.perf_counter() - started
    texts, labels = read(test)
    found = list(predict(texts))
    figures = {"accuracy": accuracy_score(labels, found), "macro_f1": f1_score(labels, found, average="macro")}
    print(json.dumps({"seconds": seconds, **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
