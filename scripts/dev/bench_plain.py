"""The plain way to a model's metrics, in a process of its own: download model.tar.gz, extract it, read metrics.json.

python scripts/dev/bench_plain.py <bucket> <key>...
Prints what the last key took as one line of JSON; those before it warm the process up. Files go to a temporary folder.
"""

from __future__ import annotations

import gc
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3

from dev.bench_invocation import forget_peak, peak_bytes


def plain(s3: Any, bucket: str, key: str) -> dict[str, Any]:
    """The metrics, and the bytes that were written."""
    with tempfile.TemporaryDirectory() as folder:
        packed, unpacked = Path(folder, "model.tar.gz"), Path(folder, "model")
        s3.download_file(bucket, key, str(packed))
        with tarfile.open(packed) as archive:
            archive.extractall(unpacked, filter="data")
        metrics = json.loads((unpacked / "metrics.json").read_text())
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"metrics": metrics, "written": written}


def main() -> None:
    bucket, *before, key = sys.argv[1:]
    s3 = boto3.client("s3")
    for warming in before:
        plain(s3, bucket, warming)
    gc.collect()
    forget_peak()
    begin = time.perf_counter()
    found = plain(s3, bucket, key)
    print(json.dumps(found | {"seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
