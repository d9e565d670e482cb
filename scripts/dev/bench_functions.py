"""A section of the bench: how fast the functions are, beside what people would write instead.

- The evaluator on a finished job, all of its invocation, beside the plain way to a model's metrics (bench_plain.py),
  which does nothing else: download, extract, read.
- The cold start of each function: importing the handler, as Lambda has it (without bytecode), and making its clients,
  beside boto3 making the same clients.
- The calls to AWS that an event takes when nothing goes wrong (tests/README.md says what each is for).
"""

from __future__ import annotations

import array
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from dev.bench import (
    BUCKET,
    COMMON,
    GOLDEN,
    HEALTHY,
    HEALTHY_CASE,
    INVOCATION_SECONDS,
    JOB,
    MB,
    ROOT,
    WARMING_JOB,
    WEIGHTS,
    WHEN,
    Aws,
    Case,
    Member,
    Row,
    archive,
    ended_job,
    invoke,
    metrics,
    raw,
    serving,
    uploaded,
)

PLAIN = Path(__file__).with_name("bench_plain.py")
SIZES_MB = (5, 500, 5000)
# The plain way takes minutes with 5 GB, and twice that on the disk.
LARGEST_PLAIN_MB = 500
# Processes, and invocations in each.
EVALUATIONS, IN_EACH, PLAIN_RUNS = 3, 7, 3
TIMES_FASTER, NO_SLOWER = 20, 1.1
STARTS, STARTS_RATIO = 21, 1.1
CLIENTS = {
    "training_orchestrator": ("s3", "sagemaker", "sns"),
    "model_evaluator": ("s3", "sagemaker", "sns"),
    "deployment_orchestrator": ("s3", "sagemaker", "sns", "sagemaker-runtime"),
}
# Both print the seconds of processor and of clock from their first line on: what comes before is Python's own start.
BEGIN = "import time; processor, clock = time.process_time(), time.perf_counter()\n"
END = "print(time.process_time() - processor, time.perf_counter() - clock)\n"
BARE = f"""{BEGIN}
import sys
import boto3
for service in sys.argv[2:]:
    boto3.client(service)
{END}"""
HANDLER = f"""{BEGIN}
import sys
sys.path.insert(0, sys.argv[1])
import handler
for service in sys.argv[2:]:
    handler.runtime() if service == "sagemaker-runtime" else handler.client(service)
{END}"""
MOST_CALLS = {"training_orchestrator": 5, "model_evaluator": 8, "deployment_orchestrator": 9}
MOST_CALLS_OF_A_SWEEP = 4
# What is over.
WHY_MORE = {
    "training_orchestrator": "five are the file, its copy, the job, the email and a record: the others are the guards",
    "model_evaluator": "over: the lease, and other approved models, to be compared with and not to be copied twice",
    "deployment_orchestrator": "over: pause, artifact, golden rows, whose endpoint, what was approved meanwhile",
}


# --- the evaluator and the plain way ----------------------------------------------------------------


def weights(megabytes: int) -> Member:
    """A file like a model's weights: numbers of a normal distribution, which gzip makes a little smaller."""
    chooser = random.Random(megabytes)
    block = array.array("f", (chooser.gauss(0, 0.02) for _ in range(MB // 4))).tobytes()
    return Member("model.safetensors", block, megabytes, level=6)


def cases(megabytes: int) -> dict[str, Case]:
    """The two places where metrics are found early, in a job of this size."""
    model = weights(megabytes)
    return {
        "metrics in the output archive": Case("", "", (model, HEALTHY), (HEALTHY, GOLDEN)),
        "metrics first in the model's archive": Case("", "", (HEALTHY, model)),
    }


def archives_sent(aws: Aws, job: str) -> int:
    return sum(sent for key, sent in aws.sent.items() if key.startswith(raw(job)))


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose time is the median."""
    return sorted(runs, key=lambda took: float(took["seconds"]))[len(runs) // 2]


def evaluated(case: Case) -> dict[str, Any]:
    """Invocations of the evaluator for the first jobs of as many models; Lambda keeps a process for many. The seconds
    are their median, the rest is the last one's."""
    aws, jobs = Aws(), [f"{JOB[:22]}12{minute:02}00{JOB[28:]}" for minute in range(IN_EACH)]
    events = [ended_job(aws, WARMING_JOB, HEALTHY_CASE, "warming")]
    events += [ended_job(aws, job, case, f"model-{at}") for at, job in enumerate(jobs)]
    took, problem = invoke("model_evaluator", aws, *events)
    verdicts = {aws.record(f"models/decisions/{job}.json").get("verdict", "no decision") for job in jobs}
    problem = problem or ("" if verdicts == {"approved"} else f"the verdicts are {verdicts}")
    seconds = statistics.median(took["each"][1:] or [0.0])
    return took | {"seconds": seconds, "sent": archives_sent(aws, jobs[-1]), "problem": problem}


def extracted(case: Case) -> dict[str, Any]:
    """The plain way, likewise in a process that went it before."""
    aws = Aws()
    ended_job(aws, WARMING_JOB, Case("", "", (HEALTHY,)))
    ended_job(aws, JOB, case)
    keys = [f"{raw(job)}model.tar.gz" for job in (WARMING_JOB, JOB)]
    with serving(aws) as address, tempfile.TemporaryDirectory() as home:
        environment = COMMON | {"AWS_ENDPOINT_URL": address, "HOME": home, "TMPDIR": home}
        done = subprocess.run(
            [sys.executable, str(PLAIN), BUCKET, *keys], env=environment, cwd=home, capture_output=True, text=True,
            timeout=INVOCATION_SECONDS, check=True,
        )  # fmt: skip
    return dict(json.loads(done.stdout)) | {"sent": archives_sent(aws, JOB)}


def against_plain(title: str, megabytes: int, ours: dict[str, Any], plain: dict[str, Any]) -> list[Row]:
    """The evaluator's figures at one size beside the plain way's."""
    size, faster = f"{megabytes:,} MB", plain["seconds"] / ours["seconds"]
    is_goal = megabytes == LARGEST_PLAIN_MB
    goal, is_met = (f"{TIMES_FASTER} times faster", faster >= TIMES_FASTER) if is_goal else ("", None)
    note = f"{faster:.3g} times faster" if faster > 1 else "all of an invocation, beside reading alone"
    rows = [Row(title, size, "s", ours["seconds"], "plain", plain["seconds"], goal, is_met, note)]
    for what, name in (("peak memory", "peak_bytes"), ("fetched", "sent")):
        rows.append(Row(title, f"{size}, {what}", "MB", ours[name] / MB, "plain", plain[name] / MB))
    # The evaluator's process may not write to any file, and a try would be a problem.
    none = Row(title, f"{size}, written to disk", "MB", 0, "plain", plain["written"] / MB, "none", not ours["problem"])
    return [*rows, none]


def evaluator() -> tuple[list[Row], list[str]]:
    """The evaluator on archives of several sizes: time, memory, bytes fetched and written."""
    rows, wrong = list[Row](), list[str]()
    jobs = {megabytes: cases(megabytes) for megabytes in SIZES_MB}
    for where in jobs[SIZES_MB[0]]:
        title = f"Model evaluator: {where}"
        runs: dict[int, list[dict[str, Any]]] = {megabytes: [] for megabytes in SIZES_MB}
        for _ in range(EVALUATIONS):
            for megabytes, taken in runs.items():
                taken.append(evaluated(jobs[megabytes][where]))
        ours = {megabytes: middle(taken) for megabytes, taken in runs.items()}
        wrong += [f"{title}, {size} MB: {took['problem']}" for size, took in ours.items() if took["problem"]]
        for megabytes in (size for size in SIZES_MB if size <= LARGEST_PLAIN_MB):
            plain = middle([extracted(jobs[megabytes][where]) for _ in range(PLAIN_RUNS)])
            rows += against_plain(title, megabytes, ours[megabytes], plain)
        small, large, size = ours[SIZES_MB[0]], ours[SIZES_MB[-1]], f"{SIZES_MB[-1]:,} MB"
        figures = (large["seconds"], f"at {SIZES_MB[0]} MB", small["seconds"], f"at most {NO_SLOWER:g} times")
        is_met, left_out = large["seconds"] <= NO_SLOWER * small["seconds"], "the plain way takes minutes: left out"
        rows.append(Row(title, size, "s", *figures, is_met, left_out))
        for what, name in (("peak memory", "peak_bytes"), ("fetched", "sent")):
            rows.append(Row(title, f"{size}, {what}", "MB", large[name] / MB, f"at {SIZES_MB[0]} MB", small[name] / MB))
    return rows, wrong


# --- cold starts ------------------------------------------------------------------------------------


def started(program: str, folder: Path, services: Sequence[str]) -> tuple[float, ...]:
    """The seconds of processor and of clock that a program takes in a fresh process."""
    environment = COMMON | {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *services], env=environment, cwd=folder, capture_output=True,
        text=True, timeout=INVOCATION_SECONDS, check=True,
    )  # fmt: skip
    return tuple(map(float, done.stdout.split()))


def cold_starts() -> list[Row]:
    """Each handler beside bare boto3, turn and turn about. In processor time: it is all that a start takes, and other
    programs on the machine blur the clock's."""
    rows = []
    for function, services in CLIENTS.items():
        taken: dict[str, list[tuple[float, ...]]] = {BARE: [], HANDLER: []}
        with tempfile.TemporaryDirectory() as folder:
            handler = Path(folder, "handler.py")
            handler.write_bytes((ROOT / "lambda" / function / "handler.py").read_bytes())
            for at in range(STARTS):
                for program in (BARE, HANDLER) if at % 2 else (HANDLER, BARE):
                    taken[program].append(started(program, handler.parent, services))
        (bare, bare_clock), (ours, our_clock) = (
            [statistics.median(times) * 1000 for times in zip(*starts, strict=True)] for starts in taken.values()
        )
        goal = (f"at most {STARTS_RATIO:g} times", ours / bare <= STARTS_RATIO)
        note = f"by the clock {our_clock:.0f} beside {bare_clock:.0f} ms"
        rows.append(Row("Cold start: import and clients", function, "ms", ours, "bare boto3", bare, *goal, note))
    return rows


# --- calls to AWS -----------------------------------------------------------------------------------


def calls_of(function: str, aws: Aws, event: dict[str, Any]) -> int:
    """How many calls a function makes for an event."""
    before = len(aws.calls)
    _, problem = invoke(function, aws, event)
    assert not problem, problem
    return len(aws.calls) - before


def complete(aws: Aws, job: str, live: str) -> None:
    """What a job leaves at its end; live: the job of the live model that it was compared with, "" for none."""
    figures = {"rows": 50, "live": {"accuracy": 0.9}, "new": {"accuracy": 0.95}}
    sets = [{"name": "hold-out of the live model", **figures}]
    champion = {"job": live, "compared": True, "note": "", "sets": sets} if live else None
    output = metrics(json.dumps({"accuracy": 0.9, "champion": champion}))
    aws.objects[f"{raw(job)}output.tar.gz"] = archive((GOLDEN, output))
    aws.objects[f"{raw(job)}model.tar.gz"] = archive((WEIGHTS,))


def calls() -> list[Row]:
    """The events from an upload to its endpoint, for a first model and one beside it, and then a sweep of each."""
    aws, rows, job = Aws(), list[Row](), ""
    aws.put("code/training.tar.gz", b"the training program")

    def count(function: str, what: str, event: dict[str, Any], most: int) -> None:
        made = calls_of(function, aws, event)
        row = ("calls", made, "goal", most, f"at most {most}", made <= most, "" if made <= most else WHY_MORE[function])
        rows.append(Row(f"Calls to AWS: {function.replace('_', ' ')}", what, *row))

    for minute, which in enumerate(("first model", "beside a live model")):
        text = f"text,label\na,ham\nb {minute},ham\nc,spam\nd,spam\n".encode()
        upload = uploaded(aws, f"data/train/{minute}.csv", [(text, 1)], "", WHEN + timedelta(minutes=minute))
        count("training_orchestrator", f"an upload, {which}", upload, MOST_CALLS["training_orchestrator"])
        live, job = job, max(key.split("/")[2] for key in aws.objects if key.endswith("/started.json"))
        complete(aws, job, live)
        ended = {"source": "aws.sagemaker", "detail": {"TrainingJobName": job, "TrainingJobStatus": "Completed"}}
        count("training_orchestrator", f"a job ended, {which}", ended, MOST_CALLS["training_orchestrator"])
        count("model_evaluator", f"a job ended, {which}", ended, MOST_CALLS["model_evaluator"])
        key = f"models/approved/default/{job}/model.tar.gz"
        copied = {"source": "aws.s3", "detail": {"bucket": {"name": BUCKET}, "object": {"key": key}}}
        count("deployment_orchestrator", f"a model approved, {which}", copied, MOST_CALLS["deployment_orchestrator"])
        in_service = {"source": "aws.sagemaker", "detail": {"EndpointName": "mlops-endpoint"}}
        count("deployment_orchestrator", f"in service, {which}", in_service, MOST_CALLS["deployment_orchestrator"])
    for function in MOST_CALLS:
        count(function, "a sweep with nothing to do", {"source": "sweep"}, MOST_CALLS_OF_A_SWEEP)
    return sorted(rows, key=lambda row: list(MOST_CALLS).index(row.section.partition(": ")[2].replace(" ", "_")))


def measure() -> tuple[list[Row], list[str]]:
    """The rows, and in words what is wrong."""
    rows, wrong = evaluator()
    return rows + cold_starts() + calls(), wrong
