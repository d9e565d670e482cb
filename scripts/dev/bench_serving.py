"""Latencies of one model in a process of its own: python -m dev.bench_serving served|int8|pipeline FOLDER BASE.

FOLDER: what bench_models trained in. pipeline: a plain transformers pipeline with a head on BASE. Answers are given one
at a time, as a model server's worker does; clients wait for each other. Prints one line of JSON, in milliseconds.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.bench_baseline import read

TEXTS = 300  # that are asked for, one by one
CLIENTS = (1, 8)


def load(what: str, folder: Path, base: str) -> Callable[[str], Any]:
    """Return what answers one text."""
    if what == "pipeline":
        import transformers

        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        asked = transformers.pipeline("text-classification", model=model, tokenizer=base, device="cpu")
        return lambda text: asked(text, truncation=True)
    spec = importlib.util.spec_from_file_location("inference", folder / "model" / "code" / "inference.py")
    assert spec
    assert spec.loader
    inference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inference)
    model_dir = folder / "model"
    if what == "int8":
        model_dir = Path(tempfile.mkdtemp()) / "model"
        shutil.copytree(folder / "model", model_dir)
        details = json.loads((model_dir / "model.json").read_text())
        (model_dir / "model.json").write_text(json.dumps({**details, "int8": True}))
    served = inference.model_fn(model_dir)
    if what == "int8":
        shutil.rmtree(model_dir.parent)
    return lambda text: inference.predict_fn({"inputs": text}, served)


def main(what: str, folder: str, base: str) -> None:
    texts = read(f"{folder}/test/data.csv")[0][:TEXTS]
    started = time.perf_counter()
    answer = load(what, Path(folder), base)
    loaded = time.perf_counter()
    answer(texts[0])
    figures = {"load": 1000 * (loaded - started), "first": 1000 * (time.perf_counter() - loaded)}
    for text in texts[:20]:
        answer(text)
    for clients in CLIENTS:
        took, turn = list[float](), threading.Lock()

        def client(own: list[str], took: list[float] = took, turn: threading.Lock = turn) -> None:
            for text in own:
                asked = time.perf_counter()
                with turn:
                    answer(text)
                took.append(1000 * (time.perf_counter() - asked))

        threads = [threading.Thread(target=client, args=(texts[at::clients],)) for at in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took.sort()
        figures |= {f"p50_{clients}": took[len(took) // 2], f"p99_{clients}": took[len(took) * 99 // 100]}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
