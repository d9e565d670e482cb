"""What the functions and the models take, and what others take for the same: make bench.

Every figure is a ratio, or stands beside its baseline of the same run. Sections (SECTIONS) add their rows to one table,
which is also written to build/bench.json. A goal that is missed is said; what makes the bench fail, with exit status 1,
is what a section calls wrong.

The functions' own figures come from their real handlers, each in a fresh process that may write to no file, against the
stand-in for AWS below, which generates huge objects while it sends them.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
INVOCATION = Path(__file__).with_name("bench_invocation.py")
RESULTS = ROOT / "build" / "bench.json"
# Modules beside this one: measure() gives the rows of each, and in words what is wrong, which makes the bench fail.
SECTIONS = ("bench_memory", "bench_functions", "bench_models")
INVOCATION_SECONDS = 600
MB = 1024**2

BUCKET = "bench-bucket"
JOB = "training-job-20261123-120000-0123abcd"
WARMING_JOB = "training-job-20261122-120000-0123abcd"
UPLOAD = "data/train/upload.csv"
ARN = "arn:aws:sagemaker:us-east-1:123456789012"
COMMON = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
    "BUCKET": BUCKET,
    "PROJECT": "mlops",
    "TOPIC_ARN": "arn:aws:sns:us-east-1:123456789012:mlops",
}
ROLE_ARN = "arn:aws:iam::123456789012:role/mlops"
ENVIRONMENT = {
    "training_orchestrator": COMMON
    | {
        "TRAINING_ROLE_ARN": ROLE_ARN,
        "TRAINING_IMAGE": "123456789012.dkr.ecr.us-east-1.amazonaws.com/training:1",
        "TRAINING_SOURCE_HASH": "0" * 64,
        "TRAINING_SOURCE_URI": f"s3://{BUCKET}/code/training.tar.gz",
        "TRAINING_INSTANCE_TYPE": "ml.m5.xlarge",
        "TRAINING_INSTANCE_COUNT": "1",
        "TRAINING_VOLUME_GB": "30",
        "TRAINING_MAX_RUNTIME_SECONDS": "7200",
        "MAX_CONCURRENT_TRAINING_JOBS": "2",
        "MAX_MODELS": "5",
        "MAX_TRAINING_JOBS_PER_DAY": "20",
        "MODELS": "",
        "HYPERPARAMETERS": '{"epochs": "3"}',
        "BASE_MODEL": "distilbert-base-uncased",
        "BASE_MODELS": "{}",
        "BASE_MODEL_ENGLISH": "org/english@v1",
        "BASE_MODEL_MULTILINGUAL": "org/multilingual@v1",
        "BASE_MODEL_REVISION": "",
        "CANDIDATES": "auto",
        "HUB_TOKEN_SECRET_ARN": "",
        "KMS_KEY_ARN": "",
        "TEXT_COLUMN": "text",
        "LABEL_COLUMN": "label",
        "MAX_ROWS_LEFT_OUT": "0.05",
    },
    "model_evaluator": COMMON
    | {
        "THRESHOLDS": '{"accuracy": {"min": 0.8}}',
        "MODEL_THRESHOLDS": "{}",
        "CHAMPION_MARGIN": "0.005",
        "ACCEPT_UNCOMPARED": "",
    },
    "deployment_orchestrator": COMMON
    | {
        "ENDPOINT_NAME": "mlops-endpoint",
        "MODEL_ROLE_ARN": ROLE_ARN,
        "INFERENCE_IMAGE": "123456789012.dkr.ecr.us-east-1.amazonaws.com/inference:1",
        "ENDPOINT_TYPE": "serverless",
        "SERVERLESS_MEMORY_MB": "3072",
        "SERVERLESS_MAX_CONCURRENCY": "5",
        "ENDPOINT_INSTANCE_TYPE": "ml.m5.large",
        "ENDPOINT_INSTANCE_COUNT": "1",
        "KEEP_MODELS": "3",
        "DEPLOYMENT_POLICY": "{}",
    },
}


# --- archives and uploads ---------------------------------------------------------------------------


# An object: blocks of bytes, and how often each is repeated.
Content = list[tuple[bytes, int]]


def joined(content: Content) -> bytes:
    return b"".join(block * times for block, times in content)


def between(content: Content, begin: int, end: int) -> Iterator[bytes]:
    """The bytes from one place to another, in parts."""
    at = 0
    for block, times in content:
        skipped = min(max(begin - at, 0) // len(block), times) if block else times
        at += skipped * len(block)
        for _ in range(times - skipped):
            if at >= end:
                return
            yield block[max(begin - at, 0) : end - at]
            at += len(block)


@dataclass(frozen=True)
class Member:
    """One member of a tar: its content is a block of bytes, repeated; size: what the header claims."""

    name: str
    block: bytes = b""
    times: int = 1
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    size: int | None = None
    level: int = 9  # of compression; 0 stores

    def header(self) -> bytes:
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname = self.kind, self.link
        info.size = len(self.block) * self.times if self.size is None else self.size
        return info.tobuf(tarfile.GNU_FORMAT)


def archive(members: Sequence[Member]) -> Content:
    """A .tar.gz of the members, of any size at no cost: parts of a gzip file may follow each other (RFC 1952)."""
    content: Content = []
    for member in members:
        padding = bytes(-len(member.block) * member.times % 512)
        content += [(gzip.compress(member.header()), 1), (gzip.compress(member.block, member.level), member.times)]
        content += [(gzip.compress(padding), 1)]
    return [*content, (gzip.compress(bytes(1024)), 1)]


def metrics(text: str) -> Member:
    return Member("metrics.json", text.encode())


HEALTHY = metrics('{"accuracy": 0.9}')
GOLDEN = Member("golden.json", b'[{"text": "a", "label": "b", "score": 0.5}]')
WEIGHTS = Member("model.safetensors", os.urandom(MB))
CHAMPION = {"job": "training-job-20261123-110000-0123abcd", "status": "respelt labels", "compared": True, "note": ""}
APPROVAL = "every metric is within its threshold"


@dataclass(frozen=True)
class Case:
    """An archive or upload, and the outcome that it must have: how verdict and reason start, as a pattern."""

    name: str
    outcome: str
    model: Sequence[Member] = (WEIGHTS,)
    output: Sequence[Member] = ()
    mangle: Callable[[bytes], bytes] | None = None  # what is done to the model's archive


HEALTHY_CASE = Case("small and healthy", f"approved: {APPROVAL}", output=(HEALTHY, GOLDEN))


# --- a stand-in for AWS -----------------------------------------------------------------------------

# When every object was written, and every job had ended: a moment ago for a look-back, long ago for a sweep.
WHEN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
WRITTEN, ENDED = format_datetime(WHEN, usegmt=True), WHEN.timestamp()


@dataclass
class Aws:
    """The objects by key, the configs of the endpoints, which are in service at once, and what was asked; sent: bytes
    by key."""

    objects: dict[str, Content] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    digests: dict[int, tuple[Content, str]] = field(default_factory=dict)

    def put(self, key: str, body: bytes) -> None:
        self.objects[key] = [(body, 1)]

    def size(self, key: str) -> int:
        return sum(len(block) * times for block, times in self.objects[key])

    def etag(self, key: str) -> str:
        content = self.objects[key]
        if id(content) not in self.digests:  # made once, as S3 does, however large it is
            digest = md5(usedforsecurity=False)
            for block, times in content:
                digest.update(block + str(times).encode())
            self.digests[id(content)] = content, f'"{digest.hexdigest()}"'
        return self.digests[id(content)][1]

    def record(self, key: str) -> dict[str, Any]:
        return dict(json.loads(joined(self.objects.get(key, [(b"{}", 1)]))))


def raw(job: str) -> str:
    return f"models/raw/{job}/output/"


def sagemaker(aws: Aws, operation: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The answer of SageMaker: every job has completed, and every creation succeeds."""
    endpoint = request.get("EndpointName", "")
    if operation == "DescribeTrainingJob":
        name = request["TrainingJobName"]
        artifact = {"S3ModelArtifacts": f"s3://{BUCKET}/{raw(name)}model.tar.gz"}
        status = {"TrainingJobStatus": "Completed", "TrainingEndTime": ENDED}
        return 200, {"TrainingJobName": name, "ModelArtifacts": artifact, **status}
    if operation == "DescribeEndpoint" and endpoint not in aws.endpoints:
        return 400, {"__type": "ValidationException", "message": f"Could not find endpoint {endpoint}"}
    if operation == "DescribeEndpoint":
        status = {"EndpointStatus": "InService", "CreationTime": ENDED, "LastModifiedTime": ENDED}
        variants = [
            {"VariantName": "AllTraffic", "CurrentServerlessConfig": {"MemorySizeInMB": 3072, "MaxConcurrency": 5}}
        ]
        name = {"EndpointName": endpoint, "EndpointArn": f"{ARN}:endpoint/{endpoint}"}
        return 200, name | status | {"EndpointConfigName": aws.endpoints[endpoint], "ProductionVariants": variants}
    if operation == "ListTags":
        return 200, {"Tags": [{"Key": "Stack", "Value": BUCKET}]}
    if operation in ("CreateEndpoint", "UpdateEndpoint"):
        aws.endpoints[endpoint] = request["EndpointConfigName"]
        return 200, {"EndpointArn": f"{ARN}:endpoint/{endpoint}"}
    kind = operation.removeprefix("Create")
    return 200, {f"{kind}Arn": f"{ARN}:{kind.lower()}/x"}


class Handler(BaseHTTPRequestHandler):
    """S3 with path-style addresses, SageMaker and SNS, as far as the three functions call them."""

    protocol_version = "HTTP/1.1"
    aws: Aws

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes = b"", size: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def key(self) -> str:
        self.aws.calls.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").removeprefix("/")

    def do_HEAD(self) -> None:
        key = self.key()
        if key in self.aws.objects:
            self.answer(200, size=self.aws.size(key), ETag=self.aws.etag(key), Last_Modified=WRITTEN)
        else:
            self.answer(404)

    def do_GET(self) -> None:
        key = self.key()
        if not key:
            self.list_objects()
            return
        if key not in self.aws.objects:
            self.refuse(404, "NoSuchKey")
            return
        size = self.aws.size(key)
        headers: dict[str, Any] = {"ETag": self.aws.etag(key), "Last_Modified": WRITTEN}
        first, last = 0, size - 1
        if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(ranged[1]), min(int(ranged[2] or last), last)
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
        self.answer(206 if ranged else 200, size=last - first + 1, **headers)
        for part in between(self.aws.objects[key], first, last + 1):
            self.wfile.write(part)
            self.aws.sent[key] += len(part)

    def list_objects(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        prefix, after = query.get("prefix", [""])[0], query.get("start-after", [""])[0]
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><ETag>{escape(self.aws.etag(key))}</ETag>"
            f"<Size>{self.aws.size(key)}</Size><LastModified>{WHEN:%Y-%m-%dT%H:%M:%SZ}</LastModified></Contents>"
            for key in sorted(self.aws.objects)
            if key.startswith(prefix) and key > after
        )
        listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        self.answer(200, listing.encode(), Content_Type="application/xml")

    def do_PUT(self) -> None:
        key = self.key()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("If-None-Match") == "*" and key in self.aws.objects:
            self.refuse(412, "PreconditionFailed")
            return
        source = unquote(self.headers.get("x-amz-copy-source", "")).split("?")[0]
        if source:
            self.aws.objects[key] = self.aws.objects[source.removeprefix("/").removeprefix(f"{BUCKET}/")]
            etag = f"<CopyObjectResult><ETag>{escape(self.aws.etag(key))}</ETag></CopyObjectResult>"
            self.answer(200, etag.encode())
            return
        self.aws.put(key, body)
        self.answer(200, ETag=self.aws.etag(key))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        target = self.headers.get("X-Amz-Target", "")
        self.aws.calls.append(target or f"POST {self.path}")
        if target.startswith("SageMaker."):
            status, content = sagemaker(self.aws, target.removeprefix("SageMaker."), json.loads(body))
            self.answer(status, json.dumps(content).encode(), Content_Type="application/x-amz-json-1.1")
            return
        if self.path.endswith("/invocations"):
            answers = [{"label": "b", "score": 0.5} for _ in json.loads(body)["inputs"]]
            self.answer(200, json.dumps(answers).encode(), Content_Type="application/json")
            return
        published = "<PublishResponse><PublishResult><MessageId>1</MessageId></PublishResult></PublishResponse>"
        self.answer(200, published.encode(), Content_Type="text/xml")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has read enough closes the connection, as it should. Other errors are shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(aws: Aws) -> Iterator[str]:
    """Serve it on a free loopback port; gives the address."""
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"aws": aws}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# --- a run ------------------------------------------------------------------------------------------


def invoke(function: str, aws: Aws, *events: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Invoke a function's handler in a process of its own; returns the figures of the last event, and what is wrong."""
    with serving(aws) as address, tempfile.TemporaryDirectory() as home:
        environment = ENVIRONMENT[function] | {
            "AWS_ENDPOINT_URL": address, "HOME": home, "TMPDIR": home, "PYTHONDONTWRITEBYTECODE": "1"
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, INVOCATION, ROOT / "lambda" / function / "handler.py"],
            input=json.dumps(events), env=environment, cwd=home, capture_output=True, text=True,
            timeout=INVOCATION_SECONDS, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"answer": {"outcome": "failed"}, "seconds": 0.0, "each": [], "peak_bytes": 0}, lines[-1]
    took = dict(json.loads(done.stdout))
    return took, f"it opened files for writing: {took['opened']}" if took["opened"] else ""


def ended_job(aws: Aws, job: str, case: Case, model: str = "default") -> dict[str, Any]:
    """A training job that left the case's archives; returns the event of its end."""
    aws.put(f"data/snapshots/{job}/source.json", json.dumps(source(job, model)).encode())
    aws.objects[f"{raw(job)}model.tar.gz"] = archive(case.model)
    if case.output:
        aws.objects[f"{raw(job)}output.tar.gz"] = archive(case.output)
    if case.mangle:
        aws.put(f"{raw(job)}model.tar.gz", case.mangle(joined(archive(case.model))))
    return {"source": "aws.sagemaker", "detail": {"TrainingJobName": job, "TrainingJobStatus": "Completed"}}


def source(job: str, model: str = "default") -> dict[str, Any]:
    return {"schema": 1, "job": job, "model": model, "bucket": BUCKET, "key": UPLOAD, "size": 1}


def approved(aws: Aws, job: str, model: str, members: Sequence[Member]) -> dict[str, Any]:
    """An approved model; returns the event of its copy."""
    key = f"models/approved/{model}/{job}/model.tar.gz"
    decision = {"schema": 1, "job": job, "verdict": "approved", "golden": [], "data": source(job, model)}
    aws.put(f"models/decisions/{job}.json", json.dumps(decision).encode())
    aws.objects[key] = archive(members)
    return {"source": "aws.s3", "detail": {"bucket": {"name": BUCKET}, "object": {"key": key}}}


def uploaded(aws: Aws, key: str, content: Content, sequencer: str, when: datetime = WHEN) -> dict[str, Any]:
    """An upload; returns its event."""
    aws.objects[key] = content
    about = {"key": key, "size": aws.size(key), "etag": aws.etag(key).strip('"'), "sequencer": sequencer}
    detail = {"bucket": {"name": BUCKET}, "object": about}
    return {"source": "aws.s3", "time": when.isoformat(), "detail": detail}


# --- the table --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A figure of the table: what was measured, in which unit, and what it stands beside.

    against: what the baseline is; goal: in words, with is_met, None where there is none; note: a plain word, such as
    why a goal is missed.
    """

    section: str
    what: str
    unit: str
    value: float
    against: str = ""
    baseline: float | None = None
    goal: str = ""
    is_met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of the baseline."""
        return self.value / self.baseline if self.baseline else None


def number(value: float) -> str:
    """A figure with three digits that say something."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned lines, under their sections."""
    columns = ("", "value", "beside", "ratio", "goal", "")
    cells: list[tuple[str, ...] | str] = []
    for at, row in enumerate(rows):
        if at == 0 or row.section != rows[at - 1].section:
            cells += [row.section, columns]
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        beside = "" if row.baseline is None else f"{number(row.baseline)} {row.against}"
        goal = f"{row.goal}: {'met' if row.is_met else 'MISSED'}" if row.goal else ""
        cells.append((row.what, f"{number(row.value)} {row.unit}", beside, ratio, goal, row.note))
    widths = [max(len(cell[column]) for cell in cells if isinstance(cell, tuple)) for column in range(5)]
    lines = [
        f"\n{cell}\n" if isinstance(cell, str) else "  ".join([*map(str.ljust, cell, widths), cell[-1]]).rstrip()
        for cell in cells
    ]
    return "\n".join(f"  {line}" if not line.startswith("\n") else line for line in lines)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1) + "\n")


def main() -> int:
    rows, wrong = list[Row](), list[str]()
    for name in SECTIONS:
        begin = time.monotonic()
        found, trouble = importlib.import_module(f"dev.{name}").measure()
        rows, wrong = rows + found, wrong + trouble
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    write(rows, RESULTS)
    print(table(rows))
    missed = sum(bool(row.goal) and not row.is_met for row in rows)
    print(f"\n{missed} of {sum(bool(row.goal) for row in rows)} goals missed. In JSON: {RESULTS.relative_to(ROOT)}")
    print("\n".join(wrong) or "Every outcome is as it must be, memory is bounded, and no file was written.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
