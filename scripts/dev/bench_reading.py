"""One way to read a CSV of rows, in a process of its own: what it finds, and the time and memory that it takes.

python scripts/dev/bench_reading.py <bytes> <way> < data.csv, with the way a path (the training orchestrator's
handler.py, whose check of an upload is run), "csv" (Python's reader, which gives lists and knows no rules) or "pandas"
(read_csv). Prints one line of JSON.
"""

from __future__ import annotations

import csv
import gc
import importlib
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from dev.bench_invocation import forget_peak, peak_bytes


def preflight(path: str, size: int) -> Callable[[], object]:
    spec = importlib.util.spec_from_file_location("handler", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while the file runs
    spec.loader.exec_module(module)

    class Config:
        text_column, label_column, training_volume_gb, max_rows_left_out = "text", "label", 30, 0.05

    answer = {"Body": sys.stdin.buffer, "ContentLength": size, "ETag": '"bench"'}
    return lambda: module.check(answer, Config()).told["rows"]


def bare_csv() -> str:
    rows = csv.reader(io.TextIOWrapper(sys.stdin.buffer, "utf-8", newline=""))
    return f"{sum(1 for _ in rows) - 1:,} read"


def main() -> None:
    size, way = int(sys.argv[1]), sys.argv[2]
    if way == "pandas":
        pandas = importlib.import_module("pandas")  # only where somebody installed it
        read: Callable[[], object] = lambda: f"{len(pandas.read_csv(sys.stdin.buffer)):,} read"  # noqa: E731
    else:
        read = bare_csv if way == "csv" else preflight(way, size)
    gc.collect()
    forget_peak()
    before, begin = peak_bytes(), time.perf_counter()
    found = read()
    seconds = time.perf_counter() - begin
    print(json.dumps({"found": found, "seconds": seconds, "bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main()
