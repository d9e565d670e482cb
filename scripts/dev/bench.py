"""How much memory the functions need for archives and uploads that are hostile, damaged or huge: make bench.

Each case is one invocation of a function's real handler, in a fresh process that has handled a small, healthy one
before and may write to no file, against a stand-in for AWS that generates huge objects while it sends them. Its peak
memory is compared with that of a small, healthy case of the same run; exit status 1 when it is more than MEMORY_RATIO
times that, when a file was written, or when the outcome is wrong. The seconds are for information only.
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
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
INVOCATION = Path(__file__).with_name("bench_invocation.py")
READING = Path(__file__).with_name("bench_reading.py")
CHECK = str(ROOT / "lambda" / "training_orchestrator" / "handler.py")
INVOCATION_SECONDS = 600
MEMORY_RATIO = 1.1
# Of uploads a few blocks are in memory at a time, whatever is in them.
UPLOAD_MEMORY_RATIO = 1.5
MB = 1024**2

BUCKET = "bench-bucket"
JOB = "training-job-20261123-120000-0123abcd"
WARMING_JOB = "training-job-20261122-120000-0123abcd"
UPLOAD = "data/train/upload.csv"
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
        "TRAINING_VOLUME_GB": "30",
        "TRAINING_MAX_RUNTIME_SECONDS": "7200",
        "MAX_CONCURRENT_TRAINING_JOBS": "2",
        "MAX_MODELS": "5",
        "MAX_TRAINING_JOBS_PER_DAY": "20",
        "MODELS": "",
        "HYPERPARAMETERS": '{"epochs": "3"}',
        "BASE_MODEL": "distilbert-base-uncased",
        "BASE_MODELS": "{}",
        "BASE_MODEL_REVISION": "",
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


# --- a stand-in for AWS -----------------------------------------------------------------------------

# When every object was written, and every job had ended (in seconds since 1970).
WRITTEN, ENDED = "Mon, 23 Nov 2026 12:00:00 GMT", 1795435200


@dataclass
class Aws:
    """The objects by key, and what was asked."""

    objects: dict[str, Content] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def put(self, key: str, body: bytes) -> None:
        self.objects[key] = [(body, 1)]

    def size(self, key: str) -> int:
        return sum(len(block) * times for block, times in self.objects[key])

    def etag(self, key: str) -> str:
        digest = md5(usedforsecurity=False)
        for block, times in self.objects[key]:
            digest.update(block + str(times).encode())
        return f'"{digest.hexdigest()}"'

    def record(self, key: str) -> dict[str, Any]:
        return dict(json.loads(joined(self.objects.get(key, [(b"{}", 1)]))))


def raw(job: str) -> str:
    return f"models/raw/{job}/output/"


def sagemaker(operation: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The answer of SageMaker: one completed job, no endpoint, and every creation succeeds."""
    if operation == "DescribeTrainingJob":
        name = request["TrainingJobName"]
        artifact = {"S3ModelArtifacts": f"s3://{BUCKET}/{raw(name)}model.tar.gz"}
        status = {"TrainingJobStatus": "Completed", "TrainingEndTime": ENDED}
        return 200, {"TrainingJobName": name, "ModelArtifacts": artifact, **status}
    if operation == "DescribeEndpoint":
        text = f"Could not find endpoint {request['EndpointName']}"
        return 400, {"__type": "ValidationException", "message": text}
    kind = operation.removeprefix("Create")
    return 200, {f"{kind}Arn": f"arn:aws:sagemaker:us-east-1:123456789012:{kind.lower()}/x"}


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
        left = self.aws.size(key)
        limited = re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", ""))
        if limited:
            left = min(left, int(limited[1]) + 1)
        self.answer(206 if limited else 200, size=left, ETag=self.aws.etag(key), Last_Modified=WRITTEN)
        for block, times in self.aws.objects[key]:
            for _ in range(times):
                self.wfile.write(block[:left])
                left -= len(block[:left])
                if not left:
                    return

    def list_objects(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        prefix, after = query.get("prefix", [""])[0], query.get("start-after", [""])[0]
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><ETag>{escape(self.aws.etag(key))}</ETag>"
            f"<Size>{self.aws.size(key)}</Size></Contents>"
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
            status, content = sagemaker(target.removeprefix("SageMaker."), json.loads(body))
            self.answer(status, json.dumps(content).encode(), Content_Type="application/x-amz-json-1.1")
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


@dataclass(frozen=True)
class Result:
    """The result of one case. problem: what is wrong with it, "" when nothing."""

    name: str
    outcome: str
    megabytes: float
    seconds: float
    problem: str = ""


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
        return {"answer": {"outcome": "failed"}, "seconds": 0.0, "peak_bytes": 0}, lines[-1]
    took = dict(json.loads(done.stdout))
    return took, f"it opened files for writing: {took['opened']}" if took["opened"] else ""


def result(name: str, expected: str, outcome: str, took: dict[str, Any], problem: str) -> Result:
    if not problem and not re.match(expected, outcome):
        problem = f"the outcome must be {expected!r}"
    return Result(name, outcome, took["peak_bytes"] / MB, took["seconds"], problem)


def ended_job(aws: Aws, job: str, case: Case) -> dict[str, Any]:
    """A training job that left the case's archives; returns the event of its end."""
    aws.put(f"data/snapshots/{job}/source.json", json.dumps(source(job)).encode())
    aws.objects[f"{raw(job)}model.tar.gz"] = archive(case.model)
    if case.output:
        aws.objects[f"{raw(job)}output.tar.gz"] = archive(case.output)
    if case.mangle:
        aws.put(f"{raw(job)}model.tar.gz", case.mangle(joined(archive(case.model))))
    return {"source": "aws.sagemaker", "detail": {"TrainingJobName": job, "TrainingJobStatus": "Completed"}}


def source(job: str, model: str = "default") -> dict[str, Any]:
    return {"schema": 1, "job": job, "model": model, "bucket": BUCKET, "key": UPLOAD, "size": 1}


def evaluate(case: Case) -> Result:
    """The evaluator on one archive."""
    aws = Aws()
    events = [ended_job(aws, WARMING_JOB, HEALTHY_CASE), ended_job(aws, JOB, case)]
    took, problem = invoke("model_evaluator", aws, *events)
    decision = aws.record(f"models/decisions/{JOB}.json")
    outcome = f"{decision.get('verdict', 'no decision')}: {decision.get('reason', '')}"
    return result(case.name, case.outcome, outcome, took, problem)


def approved(aws: Aws, job: str, model: str, members: Sequence[Member]) -> dict[str, Any]:
    """An approved model; returns the event of its copy."""
    key = f"models/approved/{model}/{job}/model.tar.gz"
    decision = {"schema": 1, "job": job, "verdict": "approved", "golden": [], "data": source(job, model)}
    aws.put(f"models/decisions/{job}.json", json.dumps(decision).encode())
    aws.objects[key] = archive(members)
    return {"source": "aws.s3", "detail": {"bucket": {"name": BUCKET}, "object": {"key": key}}}


def deploy(name: str, model: Sequence[Member]) -> Result:
    """The deployer on an approved model."""
    aws = Aws()
    events = [approved(aws, WARMING_JOB, "warming", (WEIGHTS,)), approved(aws, JOB, "default", model)]
    took, problem = invoke("deployment_orchestrator", aws, *events)
    created = aws.calls.count("SageMaker.CreateEndpoint") == len(events)
    return result(name, "endpoint created", "endpoint created" if created else "no endpoint", took, problem)


def uploaded(aws: Aws, key: str, content: Content, sequencer: str) -> dict[str, Any]:
    """An upload; returns its event."""
    aws.objects[key] = content
    about = {"key": key, "size": aws.size(key), "etag": aws.etag(key).strip('"'), "sequencer": sequencer}
    detail = {"bucket": {"name": BUCKET}, "object": about}
    return {"source": "aws.s3", "time": "2026-11-23T12:00:00Z", "detail": detail}


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


def show(title: str, results: Sequence[Result]) -> None:
    print(f"\n{title}\n")
    print(f"  {'':34}{'peak MB':>8}{'ratio':>7}{'time ratio':>12}  outcome")
    for one, ratio in judged(results):
        seconds = one.seconds / results[0].seconds if results[0].seconds else 0.0
        print(f"  {one.name:34}{one.megabytes:8.1f}{ratio:7.2f}{seconds:12.1f}  {one.outcome:.90}")


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


def compare_readers() -> None:
    """Print what the check of an upload takes, beside Python's bare reader and pandas, at several sizes."""
    print("\nTraining orchestrator: reading different texts; memory beyond that of the imports\n")
    print(f"  {'':34}{'peak MB':>8}{'ratio':>7}{'seconds':>9}{'ratio':>7}  found")
    for megabytes in SIZES_MB:
        content = different_texts(megabytes)
        check = None
        for name, way in (("check", CHECK), ("csv.reader", "csv"), ("pandas.read_csv", "pandas")):
            if (took := read(content, way)) is None:
                print(f"  {f'{megabytes} MB, {name}':34}  is not installed")
                continue
            check = check or took
            memory, seconds = took["bytes"] / max(check["bytes"], 1), took["seconds"] / check["seconds"]
            shown = f"{took['bytes'] / MB:8.1f}{memory:7.2f}{took['seconds']:9.2f}{seconds:7.2f}"
            print(f"  {f'{megabytes} MB, {name}':34}{shown}  {took['found']}")


def main() -> int:
    small, large = (WEIGHTS,), (Member("model.safetensors", os.urandom(16 * MB), 140, level=0),)
    groups = {
        "Model evaluator: archives": [evaluate(case) for case in archives()],
        "Deployment orchestrator: models": [deploy("1 MB", small), deploy("2 GB", large)],
        "Training orchestrator: uploads": [preflight(*upload) for upload in UPLOADS],
    }
    for title, results in groups.items():
        show(title, results)
    compare_readers()
    *others, uploads = groups.values()
    wrong = [line for results in others for line in problems(results)] + problems(uploads, UPLOAD_MEMORY_RATIO)
    print("\n" + ("\n".join(wrong) or "Every outcome is as it must be, memory is bounded, and no file was written."))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
