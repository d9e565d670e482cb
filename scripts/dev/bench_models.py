"""A section of the bench: the models, beside what people would train and serve instead.

Trained on SMS messages, CLINC150 and UCI sentences (the folder BENCH_DATA, by default ../shared/data; tests/README.md
says where they come from) and on the sample. All start from the laptop's base model, and what trains gets the machine
to itself. Seconds are those of the training alone; ours has the choice among the candidates in it. SEEDS=3 repeats it.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dev.bench import ROOT, Row
from dev.bench_serving import CLIENTS, TEXTS
from local.stack import BASE_MODEL_PACKAGE

DATA = Path(os.environ.get("BENCH_DATA") or ROOT.parent / "shared" / "data")
TRAINING = ROOT / "scripts" / "training"
SAMPLE = ROOT / "scripts" / "sample" / "support.csv"
SEEDS = [42, 43, 44][: int(os.environ.get("SEEDS") or 1)]
HOLDOUT, SPLIT_SEED = 0.2, 42
POINTS = 0.003  # that the served model may be worse than the best of the others


class Example(NamedTuple):
    """A labelled text."""

    text: str
    label: str


@dataclass(frozen=True)
class Goal:
    """What the served model must reach on a data set."""

    metric: str
    least: float


GOALS = {
    "SMS": Goal("macro_f1", 0.985),
    "CLINC150": Goal("accuracy", 0.957),
    "UCI": Goal("accuracy", 0.915),
    "sample": Goal("macro_f1", 0.96),
}


def data_sets() -> Iterator[tuple[str, list[Example], list[Example]]]:
    """Name, training rows and test rows of each data set."""
    benchmarks = DATA / "benchmarks"
    for name, file in (("UCI", "uci_sentences"), ("CLINC150", "clinc150")):
        yield name, examples(benchmarks / f"{file}_train.csv"), examples(benchmarks / f"{file}_test.csv")
    for name, path in (("SMS", DATA / "sms_spam.csv"), ("sample", SAMPLE)):
        yield name, *split(examples(path))


def split(rows: list[Example]) -> tuple[list[Example], list[Example]]:
    """Training and test rows: of each label a fifth of the texts, the ones that the training program holds out."""
    of_label: dict[str, set[str]] = {}
    for row in rows:
        of_label.setdefault(row.label, set()).add(row.text)
    test: set[str] = set()
    for texts in of_label.values():
        order = sorted(texts, key=lambda text: hashlib.sha256(f"{SPLIT_SEED} {text}".encode()).digest())
        test.update(order[: round(HOLDOUT * len(order))])
    return [row for row in rows if row.text not in test], [row for row in rows if row.text in test]


def write(path: Path, rows: list[Example]) -> None:
    """Write a CSV file."""
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([Example._fields, *rows])


def examples(path: Path) -> list[Example]:
    """The rows of a file that have a text and a label."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [Example(row["text"].strip(), row["label"].strip()) for row in csv.DictReader(file)]
    return [row for row in rows if row.text and row.label]


def measure() -> tuple[list[Row], list[str]]:
    """The rows of the table, and what is wrong."""
    if not DATA.is_dir():
        return [], [f"There is no data in {DATA}: set BENCH_DATA to the folder with sms_spam.csv and benchmarks/."]
    base = str(Path(importlib.util.find_spec(BASE_MODEL_PACKAGE).origin).parent / "model")  # type: ignore[union-attr,arg-type]
    systems = ["tfidf", "trainer", *(["setfit"] if importlib.util.find_spec("setfit") else [])]
    rows, means = list[Row](), dict[str, list[float]]()
    serving: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, train, test in data_sets():
            folder = Path(scratch) / name
            for channel, content in (("train", train), ("test", test)):
                write(folder / channel / "data.csv", content)
            took = {what: mean([baseline(what, folder, seed, base) for seed in SEEDS]) for what in systems}
            took["ours"] = mean([ours(folder, seed, base) for seed in SEEDS])
            rows += of_data_set(name, took, chosen(folder))
            for what, figures in took.items():
                means.setdefault(what, []).append(figures["accuracy"])
            if name == "UCI":
                serving = of_serving(folder, base)
    best = max(statistics.mean(of) for what, of in means.items() if what != "ours")
    found = statistics.mean(means["ours"])
    rows.append(
        Row(
            "Models",
            "all data sets: mean accuracy",
            "",
            found,
            "best other",
            best,
            "above the best other",
            found > best,
        )
    )
    if "setfit" not in systems:
        rows.append(
            Row("Models", "SetFit", "", 0, note="not installed: its datasets and sentence-transformers are missing")
        )
    return rows + serving, []


def of_data_set(name: str, took: dict[str, dict[str, float]], what: str) -> list[Row]:
    """The rows of one data set."""
    rows, of_ours, goal = [], took["ours"], GOALS[name]
    for metric in ("accuracy", "macro_f1"):
        best = max((figures[metric], system) for system, figures in took.items() if system != "ours")
        met = of_ours[metric] >= best[0] - POINTS
        rows.append(
            Row(
                "Models",
                f"{name}: {metric}",
                "",
                of_ours[metric],
                best[1],
                best[0],
                "at most 0.3 points below",
                met,
                what,
            )
        )
        if metric == goal.metric:
            rows.append(
                Row("Models", f"{name}: {metric}", "", of_ours[metric], "", None, f"at least {goal.least}",
                    of_ours[metric] >= goal.least)
            )  # fmt: skip
        for system, figures in took.items():
            if system != "ours":
                rows.append(Row("Models", f"{name}: {metric}, {system}", "", figures[metric]))
    share, words = (2 / 3, "at most two thirds") if "fine-tuned" in what else (0.2, "at most a fifth")
    seconds = took["trainer"]["seconds"]
    rows.append(
        Row("Models", f"{name}: training", "s", of_ours["seconds"], "trainer", seconds, words,
            of_ours["seconds"] <= share * seconds, what)
    )  # fmt: skip
    rows += [
        Row("Models", f"{name}: training, {system}", "s", figures["seconds"])
        for system, figures in took.items()
        if system != "ours"
    ]
    return rows


def mean(runs: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {key: statistics.mean(run[key] for run in runs) for key in runs[0]}


def baseline(what: str, folder: Path, seed: int, base: str) -> dict[str, float]:
    """Seconds, accuracy and macro F1 of another system."""
    files = [str(folder / channel / "data.csv") for channel in ("train", "test")]
    return dict(last_line([sys.executable, "-m", "dev.bench_baseline", what, *files, str(seed), base], {}))


def ours(folder: Path, seed: int, base: str) -> dict[str, float]:
    """The same of the training program."""
    environment = {
        "SM_CHANNEL_TRAIN": str(folder / "train"),
        "SM_CHANNEL_TEST": str(folder / "test"),
        "SM_MODEL_DIR": str(folder / "model"),
        "SM_OUTPUT_DATA_DIR": str(folder / "output"),
        "BASE_MODEL": base,
        "TEXT_COLUMN": "text",
        "LABEL_COLUMN": "label",
    }
    run([sys.executable, str(TRAINING / "train.py"), "--seed", str(seed)], environment)
    metrics = json.loads((folder / "output" / "metrics.json").read_text())
    return {"seconds": metrics["train_seconds"], **{key: metrics[key] for key in ("accuracy", "macro_f1")}}


def chosen(folder: Path) -> str:
    """What the ladder chose, in words."""
    metrics = json.loads((folder / "output" / "metrics.json").read_text())
    [entry] = [entry for entry in metrics["candidates"] if entry["chosen"]]
    return " + ".join(f"{weight:.0%} {member}" for member, weight in entry["members"].items())


def of_serving(folder: Path, base: str) -> list[Row]:
    """Latencies of the model that was trained last, and of int8 alone, beside a plain pipeline on the same base."""
    rows = []
    took = {
        what: last_line([sys.executable, "-m", "dev.bench_serving", what, str(folder), base], {})
        for what in ("served", "int8", "pipeline")
    }
    for clients in CLIENTS:
        for share in ("p50", "p99"):
            of_pipeline = took["pipeline"][f"{share}_{clients}"]
            for what in ("served", "int8"):
                value = took[what][f"{share}_{clients}"]
                goal = ("at most half", value <= of_pipeline / 2) if (what, share) == ("int8", "p50") else ("", None)
                label = f"{what}: {share} of {TEXTS} texts, {clients} client{'s' * (clients > 1)}"
                rows.append(Row("Serving", label, "ms", value, "pipeline", of_pipeline, *goal))
    for what in ("served", "int8"):
        for part in ("load", "first"):
            label = {"load": "loading, in a new process", "first": "first answer"}[part]
            rows.append(Row("Serving", f"{what}: {label}", "ms", took[what][part], "pipeline", took["pipeline"][part]))
    return rows


def last_line(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What a process prints last, as JSON."""
    return dict(json.loads(run(command, environment).splitlines()[-1]))


def run(command: list[str], environment: dict[str, str]) -> str:
    """The output of a process; raises what it says where it fails."""
    done = subprocess.run(
        command, env={**os.environ, **environment, "PYTHONPATH": str(ROOT / "scripts")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout
