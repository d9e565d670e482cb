"""A section of the bench: how much memory the functions need for archives and uploads, hostile, damaged or huge.

Each case is one invocation in a process that has handled a small, healthy one before. Its peak memory is compared with
that of a small, healthy case of the same run. It is a problem when it is more than MEMORY_RATIO times that, when a file
was written, or when the outcome is wrong.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.bench import (
    APPROVAL,
    CHAMPION,
    GOLDEN,
    HEALTHY,
    HEALTHY_CASE,
    INVOCATION_SECONDS,
    JOB,
    MB,
    ROOT,
    UPLOAD,
    WARMING_JOB,
    WEIGHTS,
    Aws,
    Case,
    Content,
    Member,
    Row,
    approved,
    ended_job,
    invoke,
    metrics,
    uploaded,
)

READERS = "Training orchestrator: reading different texts"
READING = Path(__file__).with_name("bench_reading.py")
CHECK = str(ROOT / "lambda" / "training_orchestrator" / "handler.py")
MEMORY_RATIO = 1.1
# Of uploads a few blocks are in memory at a time, whatever is in them.
UPLOAD_MEMORY_RATIO = 1.5


def with_metrics(name: str, reason: str, text: str) -> Case:
    return Case(name, f"rejected: {reason}", output=(metrics(text), GOLDEN))


def archives(scale: float = 1.0) -> list[Case]:
    """The archives for the evaluator, the healthy one first. scale: factor for the sizes of the huge ones."""

    def megabytes(size: int) -> int:
        return max(int(size * scale), 1)

    none = "rejected: neither the output archive nor the model archive has a metrics.json"
    bomb = Member("bomb", bytes(16 * MB), megabytes(10 * 1024) // 16)
    weights = Member("model.safetensors", os.urandom(16 * MB), megabytes(2200) // 16, level=0)
    full = 128 * 1024 - 100  # the evaluator reads no larger metrics.json or golden.json
    lists = f'{{"accuracy": 0.9, "a": [{"[]," * (full // 3 - 10)}[]]}}'
    return [
        HEALTHY_CASE,
        Case("traversal names", none, (Member("../metrics.json", b"{}"), Member("/metrics.json", b"{}"), WEIGHTS)),
        Case(
            "links named metrics.json",
            none,
            (
                Member("metrics.json", kind=tarfile.SYMTYPE, link="/etc/passwd"),
                Member("metrics.json", kind=tarfile.LNKTYPE, link="../../etc/passwd"),
                Member("metrics.json", kind=tarfile.FIFOTYPE),
                Member("metrics.json", kind=tarfile.CHRTYPE),
            ),
        ),
        Case("a bomb", none, (bomb, Member("more", b"x"))),
        Case("a bomb in an extended header", "rejected: the archive has an extended header of", (
            Member("x", bytes(16 * MB), megabytes(1024) // 16, tarfile.XHDTYPE), HEALTHY)),
        Case("a million empty members", none, (Member("x", Member("x").header() * 10_000, megabytes(100), size=0),)),
        Case("truncated", "rejected: the archive", (WEIGHTS, HEALTHY), mangle=lambda data: data[: len(data) // 2]),
        Case("wrong magic", "rejected: the archive is no intact .tar.gz", mangle=lambda data: b"PK\3\4" + data),
        Case("metrics.json of 1 GB", "rejected: metrics.json has [0-9]+ bytes; at most",
             (Member("metrics.json", b" " * 16 * MB, megabytes(1024) // 16),)),
        Case("metrics.json that claims 8 EB", "rejected: metrics.json has 9223372036854775807 bytes; at most",
             (Member("metrics.json", b"{}", size=2**63 - 1),)),
        with_metrics("deeply nested", "metrics.json is no JSON", '{"a":' * 25_000),
        with_metrics("deeply nested lists", "metrics.json is no JSON", "[" * 120_000),
        Case("nothing but empty lists", f"approved: {APPROVAL}",
             output=(metrics(lists), Member("golden.json", f'[{"[]," * (full // 3)}[]]'.encode()))),
        with_metrics("nothing but empty objects", "accuracy is missing", f'{{"a": [{"{}," * (full // 3)}{{}}]}}'),
        with_metrics("nothing but keys", "accuracy is missing",
                     json.dumps({f"{at:x}": {} for at in range(full // 11)}, separators=(",", ":"))),
        with_metrics("NaN", "accuracy is nan, not a finite number", '{"accuracy": NaN}'),
        with_metrics("Infinity", "accuracy is inf, not a finite number", '{"accuracy": Infinity}'),
        with_metrics("a boolean", "accuracy is True, not a finite number", '{"accuracy": true}'),
        with_metrics("an integer of 4,000 digits", "accuracy is 9+.*, not a finite number",
                     f'{{"accuracy": {"9" * 4000}}}'),
        with_metrics("an integer of 100,000 digits", "metrics.json is no JSON", f'{{"accuracy": {"9" * 100_000}}}'),
        with_metrics("duplicate keys", "metrics.json has the key 'accuracy' more than once",
                     '{"accuracy": 0.1, "accuracy": 0.9}'),
        with_metrics("words of a data set without end", 'metrics.json: "told" must be at most 20 texts',
                     json.dumps({"accuracy": 0.9, "told": {"rows": "x" * (full - 50)}})),
        with_metrics("words about nothing but rows", 'metrics.json: "told" must be at most 20 texts',
                     json.dumps({"accuracy": 0.9, "told": {f"{at:x}": "" for at in range(full // 13)}})),
        with_metrics("lists for words about a data set", 'metrics.json: "told" must be at most 20 texts',
                     f'{{"accuracy": 0.9, "told": [{"[]," * (full // 3 - 20)}[]]}}'),
        with_metrics("spelling without end", 'metrics.json: "champion": respelt must be a line of up to 1000',
                     json.dumps({"accuracy": 0.9, "champion": CHAMPION | {"respelt": "x" * (full - 300)}})),
        with_metrics("a spelling that is nested", 'metrics.json: "champion": respelt must be a line of up to 1000',
                     json.dumps({"accuracy": 0.9, "champion": CHAMPION | {"respelt": [{"a": "b"}] * 9}})),
        Case("2 GB model, small output archive", f"approved: {APPROVAL}", (weights,), (HEALTHY, GOLDEN)),
        Case("2 GB model, metrics first", f"approved: {APPROVAL}", (HEALTHY, weights)),
        Case("2 GB model, metrics last", f"approved: {APPROVAL}", (weights, HEALTHY)),
    ]  # fmt: skip


ROWS = b"see you at noon,ham\nthe train is late,ham\nyou have won,spam\nclaim your prize,spam\n" * 12_000  # 0.9 MB
HEADER = b"text,label\n"
FEW = b"a,ham\nb,ham\nc,spam\nd,spam\n"
TOO_LONG = "the row that begins here has more than"
# The baseline for the rest is what some blocks take, not a file of four rows. None has many different texts: what those
# take is measured below.
UPLOADS: list[tuple[str, str, Content]] = [
    ("2 MB, healthy", "started", [(HEADER, 1), (ROWS, 2)]),
    ("four rows", "started", [(HEADER + FEW, 1)]),
    ("2 GB, healthy, read in part", "started", [(HEADER, 1), (ROWS, 2200)]),
    ("one line of 100 MB", f"rejected: line 1: {TOO_LONG}", [(b"x" * MB, 100)]),
    ("100 MB in one field", f"rejected: line 2: {TOO_LONG}", [(HEADER + b'"', 1), (b"x" * MB, 100), (b'",ham\n', 1)]),
    ("100 MB of short column names", f"rejected: line 1: {TOO_LONG}", [(b"ab," * (MB // 3), 100)]),
    ("NUL bytes", "started", [(HEADER + FEW + b"a\0b,ham\n", 1)]),
    ("100 MB of NUL bytes", f"rejected: line 1: {TOO_LONG}", [(bytes(MB), 100)]),
    ("mixed encodings", "rejected: line 3: byte 0xe9 is not UTF-8",
     [(HEADER, 1), ("café,ham\n".encode(), 1), ("café,ham\n".encode("latin-1"), 1)]),
    ("emoji", "started", [(HEADER + FEW, 1), ("🙂 it is,ham\n".encode() * 10_000, 50)]),
    ("gzip, 2 MB unpacked", "started", [(gzip.compress(HEADER + ROWS * 2), 1)]),
    ("a bomb of 20 MB in 20 kB", "rejected: the file unpacks to more than 200 times its size",
     [(gzip.compress(HEADER + FEW + (b"x" * 5000 + b",ham\n") * 4000), 1)]),
]  # fmt: skip
SIZES_MB = (1, 10, 100)


@dataclass(frozen=True)
class Result:
    """The result of one case. problem: what is wrong with it, "" when nothing."""

    name: str
    outcome: str
    megabytes: float
    seconds: float
    problem: str = ""


def result(name: str, expected: str, outcome: str, took: dict[str, Any], problem: str) -> Result:
    if not problem and not re.match(expected, outcome):
        problem = f"the outcome must be {expected!r}"
    return Result(name, outcome, took["peak_bytes"] / MB, took["seconds"], problem)


def evaluate(case: Case) -> Result:
    """The evaluator on one archive."""
    aws = Aws()
    events = [ended_job(aws, WARMING_JOB, HEALTHY_CASE), ended_job(aws, JOB, case)]
    took, problem = invoke("model_evaluator", aws, *events)
    decision = aws.record(f"models/decisions/{JOB}.json")
    outcome = f"{decision.get('verdict', 'no decision')}: {decision.get('reason', '')}"
    return result(case.name, case.outcome, outcome, took, problem)


def deploy(name: str, model: Sequence[Member]) -> Result:
    """The deployer on an approved model."""
    aws = Aws()
    events = [approved(aws, WARMING_JOB, "warming", (WEIGHTS,)), approved(aws, JOB, "default", model)]
    took, problem = invoke("deployment_orchestrator", aws, *events)
    created = aws.calls.count("SageMaker.CreateEndpoint") == len(events)
    return result(name, "endpoint created", "endpoint created" if created else "no endpoint", took, problem)


def preflight(name: str, expected: str, content: Content) -> Result:
    """The training orchestrator on one upload."""
    aws = Aws()
    aws.put("code/training.tar.gz", b"the training program")
    small = [(HEADER + FEW + b"warming,ham\n", 1)]
    events = [uploaded(aws, "data/train/warming.csv", small, "01"), uploaded(aws, UPLOAD, content, "02")]
    took, problem = invoke("training_orchestrator", aws, *events)
    reasons = [aws.record(key)["reason"] for key in aws.objects if key.startswith("data/rejected/")]
    return result(name, expected, ": ".join([took["answer"]["outcome"], *reasons]), took, problem)


def judged(results: Sequence[Result]) -> list[tuple[Result, float]]:
    """Each result with its memory as a multiple of the first one's, which is the baseline."""
    return [(one, one.megabytes / results[0].megabytes if results[0].megabytes else 0.0) for one in results]


def problems(results: Sequence[Result], most: float = MEMORY_RATIO) -> list[str]:
    """What is wrong with a group of results, in words. most: of the first one's memory."""
    wrong = [f"{one.name}: {one.problem} ({one.outcome})" for one in results if one.problem]
    return wrong + [
        f"{one.name}: {ratio:.2f} times the memory of {results[0].name!r}; at most {most:g} is allowed"
        for one, ratio in judged(results)
        if ratio > most
    ]


def different_texts(megabytes: int) -> bytes:
    """A CSV of that size in which no text is repeated."""
    rows = (b"row %d asks what became of order %x,label %d\n" % (at, at * at, at % 20) for at in itertools.count())
    parts, size = [HEADER], len(HEADER)
    while size < megabytes * 1e6:
        parts.append(next(rows))
        size += len(parts[-1])
    return b"".join(parts)


def read(content: bytes, way: str) -> dict[str, Any] | None:
    """What one way to read a CSV finds and takes, None where it is not installed."""
    command = [sys.executable, str(READING), str(len(content)), way]
    done = subprocess.run(command, input=content, capture_output=True, timeout=INVOCATION_SECONDS, check=False)
    if b"No module named" in done.stderr:
        return None
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return dict(json.loads(done.stdout))


def against_readers(megabytes: int) -> list[Row]:
    """What the check of an upload takes, beside Python's bare reader and pandas, where that is installed."""
    content = different_texts(megabytes)
    check = read(content, CHECK)
    assert check is not None
    size, found = f"{megabytes} MB", f"{check['found']}, beside what is found by"
    rows = [Row(READERS, f"{size}, memory beyond the imports'", "MB", check["bytes"] / MB)]
    for name, way in (("csv.reader", "csv"), ("pandas.read_csv", "pandas")):
        if took := read(content, way):
            note = f"{found} {name}: {took['found']}"
            rows.append(Row(READERS, f"{size}, time", "s", check["seconds"], name, took["seconds"], note=note))
            if way == "pandas":  # csv.reader keeps nothing
                rows.append(Row(READERS, f"{size}, memory", "MB", check["bytes"] / MB, name, took["bytes"] / MB))
    return rows


def rows_of(title: str, results: Sequence[Result], most: float) -> list[Row]:
    return [
        Row(title, one.name, "MB", one.megabytes, results[0].name, results[0].megabytes, f"at most {most:g}",
            ratio <= most, one.outcome[:60])
        for one, ratio in judged(results)
    ]  # fmt: skip


def measure() -> tuple[list[Row], list[str]]:
    """The rows, and in words what is wrong."""
    small, large = (WEIGHTS,), (Member("model.safetensors", os.urandom(16 * MB), 140, level=0),)
    groups = {
        "Model evaluator: memory for archives": [evaluate(case) for case in archives()],
        "Deployment orchestrator: memory for models": [deploy("1 MB", small), deploy("2 GB", large)],
        "Training orchestrator: memory for uploads": [preflight(*upload) for upload in UPLOADS],
    }
    rows, wrong = list[Row](), list[str]()
    for title, results in groups.items():
        most = UPLOAD_MEMORY_RATIO if "uploads" in title else MEMORY_RATIO
        rows += rows_of(title, results, most)
        wrong += problems(results, most)
    return rows + [row for megabytes in SIZES_MB for row in against_readers(megabytes)], wrong
