"""The figures of a trained classifier, and the file that carries them to the model evaluator."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

FILE_NAME = "metrics.json"
SCHEMA = 2
# A label that a model does not know has the probability 0, whose logarithm is infinite.
LEAST_PROBABILITY = 1e-7
RESAMPLES = 200  # of the rows: a standard error to a twentieth of itself

Label = TypeVar("Label", int, str)


def classification_metrics(
    expected: Sequence[Label], predicted: Sequence[Label], labels: Collection[Label] | None = None
) -> dict[str, float]:
    """Return accuracy and the macro averages of precision, recall and f1, each from 0 to 1.

    `expected` and `predicted` are labels (or their indices) of the same rows, at least one. As in scikit-learn, the
    averages are over `labels`, by default those that occur in either, and a quotient with nothing to divide by is 0.
    """
    n_expected, n_predicted = Counter(expected), Counter(predicted)
    hits = Counter(e for e, p in zip(expected, predicted, strict=True) if e == p)
    labels = sorted(labels or n_expected.keys() | n_predicted.keys())
    precisions = [hits[label] / n_predicted[label] if n_predicted[label] else 0.0 for label in labels]
    recalls = [hits[label] / n_expected[label] if n_expected[label] else 0.0 for label in labels]
    f1s = [2 * hits[label] / max(n_expected[label] + n_predicted[label], 1) for label in labels]
    return {
        "accuracy": hits.total() / len(expected),
        "macro_f1": sum(f1s) / len(f1s),
        "macro_precision": sum(precisions) / len(precisions),
        "macro_recall": sum(recalls) / len(recalls),
    }


def metrics_of_arrays(expected: Any, predicted: Any) -> dict[str, float]:
    """Return the same figures, averaged over the labels that are expected: fast enough for every resample of the rows.

    Both are arrays of labels' indices.
    """
    n_labels = int(expected.max()) + 1
    right = expected == predicted
    hits, n_expected, n_predicted = (
        np.bincount(labels, minlength=n_labels)[:n_labels] for labels in (expected[right], expected, predicted)
    )
    had = n_expected > 0
    hits, n_expected, n_predicted = hits[had], n_expected[had], n_predicted[had]
    return {
        "accuracy": right.mean(),
        "macro_f1": (2 * hits / (n_expected + n_predicted)).mean(),
        "macro_precision": (hits / n_predicted.clip(min=1)).mean(),
        "macro_recall": (hits / n_expected).mean(),
    }


def write_metrics(metrics: Mapping[str, Any], *folders: Path) -> None:
    """Write metrics.json into each folder, as write_json does."""
    write_json(FILE_NAME, {"schema": SCHEMA, **metrics}, *folders)


def write_json(name: str, content: Any, *folders: Path) -> None:
    """Write a file of that name into each folder as strict JSON.

    Raises ValueError when a figure is NaN or infinite: JSON has no such numbers.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")
