"""Two processes that train as one, as torchrun starts them: same candidate and metrics as one process has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import fine_tuned
import tiny_model
import train
from dataset import Example, write_csv
from test_ladder import make_rows

torch.set_num_threads(1)

TRAINING = Path(train.__file__).parent
ARGUMENTS = ["--epochs", "3", "--learning_rate", "5e-3", "--batch_size", "8", "--max_length", "16"]
RUNS = ("auto", "fine-tuned", "fine-tuned again")
# Runs the program once for each of the environments, one after the other. What is measured to be faster is not asked:
# it comes out one way or the other.
PROCESS = """
import json, os, sys
import fine_tuned, train
fine_tuned.faster_precision = lambda *_: None
train.INT8_LEAST_GAIN = 1
arguments, environments = json.load(sys.stdin)
for environment in environments:
    os.environ.update(environment)
    status = train.main(arguments, os.environ)
    print(f"status {status}", flush=True)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment_of(folder: Path, name: str, base_model: Path, rows: Sequence[Example]) -> dict[str, str]:
    """The environment of a job; in folder/<name> is what it writes."""
    if not (folder / "train").is_dir():
        (folder / "train").mkdir()
        write_csv(folder / "train" / "data.csv", rows)
    return {
        "SM_CHANNEL_TRAIN": str(folder / "train"),
        "SM_MODEL_DIR": str(folder / name / "model"),
        "SM_OUTPUT_DATA_DIR": str(folder / name / "output"),
        "SM_OUTPUT_DIR": str(folder / name),
        "BASE_MODEL": str(base_model),
        "TEXT_COLUMN": "text",
        "LABEL_COLUMN": "label",
        "CANDIDATES": name.split()[0],
        "CHECKPOINT_DIR": str(folder / "kept") if name.startswith("fine-tuned") else "",
    }


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "output" / "metrics.json").read_text(encoding="utf-8"))
    return metrics


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Two processes' folder (0 and 1 in it are theirs), beside alone/; and what each of them printed."""
    folder = tmp_path_factory.mktemp("processes")
    base_model = tiny_model.build_tiny_model(tmp_path_factory.mktemp("base_model"))
    rows = make_rows(per_label=30, wrong=0.1)
    for name in ("alone", "0", "1"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fine_tuned, "faster_precision", lambda *_: None)
        patched.setattr(train, "INT8_LEAST_GAIN", 1)
        for name in RUNS[:2]:
            assert train.main(ARGUMENTS, environment_of(folder / "alone", name, base_model, rows)) == 0
    ports = [str(free_port()) for _ in RUNS]
    started = []
    for rank in ("0", "1"):
        jobs = [environment_of(folder / rank, name, base_model, rows) for name in RUNS]
        for job, port in zip(jobs, ports, strict=True):
            job |= {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            cwd=TRAINING,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps([ARGUMENTS, jobs]))
        process.stdin.close()
        process.stdin = None
        started.append(process)
    try:
        printed = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for text in printed:
        assert text.count("status 0") == len(RUNS), text
    return folder, printed


@pytest.mark.parametrize("name", RUNS[:2])
def test_two_processes_choose_what_one_chooses(together: Any, name: str) -> None:
    folder, _ = together
    one, two = (metrics_of(folder / which / name) for which in ("alone", "0"))
    assert [row["name"] for row in two["candidates"]] == [row["name"] for row in one["candidates"]]
    for row_of_one, row_of_two in zip(one["candidates"], two["candidates"], strict=True):
        assert row_of_two["chosen"] == row_of_one["chosen"]
        if row_of_one["log_loss"] is not None:
            # Fine-tuning halves each batch, which changes what dropout drops.
            near = 0.15 if "fine-tuned" in row_of_one["members"] else 1e-3
            assert row_of_two["log_loss"] == pytest.approx(row_of_one["log_loss"], abs=near)
            assert row_of_two["macro_f1"] == pytest.approx(row_of_one["macro_f1"], abs=near)
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.12)
    assert two["train_examples"] == one["train_examples"]


def test_fine_tuning_learns_in_two_processes(together: Any) -> None:
    folder, _ = together
    metrics = metrics_of(folder / "0" / "fine-tuned")
    assert metrics["told"]["chosen model"] == "fine-tuned"
    assert metrics["accuracy"] > 0.75  # a tenth of the labels is wrong


def test_only_the_first_process_writes_and_speaks(together: Any) -> None:
    folder, (first, second) = together
    assert not [path for name in RUNS for path in (folder / "1" / name).rglob("*")]
    assert {path.name for path in (folder / "1").iterdir()} <= {"train"}
    assert "hold-out:  accuracy " in first
    assert [line for line in second.splitlines() if not line.startswith("status ")] == []


def test_what_two_processes_had_finished_they_do_not_do_again(together: Any) -> None:
    folder, (first, _) = together
    again = first.split("status 0\n")[2]
    assert "fine-tuned: step" not in again
    assert "fine-tuned: log loss " in again
    one, two = (metrics_of(folder / "0" / name) for name in RUNS[1:])
    assert two["accuracy"] == one["accuracy"]
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-5)
