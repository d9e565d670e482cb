"""The training job of the pipeline under AWS's own training toolkit, and on the local SageMaker: no difference."""

from __future__ import annotations

import io
import json
import re
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from account import Account
from containers import Trained, end_group, run_training, start_training, write_platform_files

from sagemaker_fixtures import archive, wait_for
from world import BUCKET, ROOT

# Prints what a training program can see, as JSON into its model folder, and a little of everything.
PROBE = """
import json, os, sys
from pathlib import Path

root = Path(os.environ["SM_MODEL_DIR"]).parent
def text(path):
    return path.read_text() if path.suffix == ".json" and "config" in path.parts else path.stat().st_size
seen = {
    "arguments": sys.argv[1:],
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "program": sys.argv[0],
    "files": {str(path.relative_to(root)): text(path) for path in sorted(root.rglob("*")) if path.is_file()},
    "standard input": os.readlink("/proc/self/fd/0"),
    "umask": os.umask(0o022),
}
Path(os.environ["SM_MODEL_DIR"], "seen.json").write_text(json.dumps(seen))
"""
STOPPED = """
import os, signal, time
from pathlib import Path

model = Path(os.environ["SM_MODEL_DIR"])
signal.signal(signal.SIGTERM, lambda *_: (model / "told").touch())
while True:
    with open(model / "beats", "a") as file:
        file.write("x")
    time.sleep(0.02)
"""
# What only one of the two has, and why.
ONLY_REAL = {
    "SAGEMAKER_BASE_DIR": "the test's own /opt/ml",
    "SM_STUDIO_LOCAL_MODE": "no host name algo-1 on this machine",
}
ONLY_LOCAL = {
    "LOCAL_SAGEMAKER_TEST": "the mark of the test's processes",
    "TMPDIR": "passed on, as is what else a laptop needs to find its way",
    "USER": "likewise",
    "SSL_CERT_FILE": "likewise",
}
# Whose values are the machine's, or the shell's own.
ANY_VALUE = ("HOME", "PATH", "PYTHONPATH", "TZ", "_", "OLDPWD", "PWD", "SHLVL")


def source(account: Account, name: str, program: str, **files: str) -> Callable[[dict[str, Any]], None]:
    """A change to a job's request: another training source."""
    key = f"code/{name}.tar.gz"
    account.put(key, archive(train_py=program, **files))

    def change(request: dict[str, Any]) -> None:
        request["HyperParameters"]["sagemaker_submit_directory"] = f"s3://{BUCKET}/{key}"

    return change


@pytest.fixture
def both(
    account: Account, job: dict[str, Any], container: Path, trained: Trained, tmp_path: Path
) -> Callable[..., tuple[Trained, dict[str, Any]]]:
    """Run a changed copy of the job under AWS's toolkit and on the local SageMaker."""

    def run(name: str, change: Callable[[dict[str, Any]], None]) -> tuple[Trained, dict[str, Any]]:
        local = account.train(name, change, job)
        return run_training(tmp_path, local, container, account.aws, account.s3), local

    return run


def members(account: Account, job: dict[str, Any], name: str) -> dict[str, bytes]:
    bucket, _, key = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("s3://").partition("/")
    key = key.replace("model.tar.gz", name)
    body = account.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}  # type: ignore[union-attr]


# ---- the pipeline's own job


def test_the_packaged_program_trains_under_the_toolkit(trained: Trained) -> None:
    assert trained.exit_code == 0, trained.output
    assert "Reporting training SUCCESS" in trained.output
    assert "train.py --epochs 3 --learning_rate 0.005 --seed 42\n" in trained.output
    assert "Successfully installed" in trained.output


def test_both_train_the_same_model(account: Account, job: dict[str, Any], trained: Trained) -> None:
    assert job["TrainingJobStatus"] == "Completed", job
    local = members(account, job, "model.tar.gz")
    model = trained.root / "model"
    assert sorted(local) == sorted(str(path.relative_to(model)) for path in model.rglob("*") if path.is_file())
    for name in ("config.json", "golden.json", "holdout.csv", "tokenizer.json", "code/inference.py"):
        assert local[name] == (model / name).read_bytes(), name
    timeless = [
        {**json.loads(text), "train_seconds": 0}
        for text in (local["metrics.json"], (model / "metrics.json").read_text())
    ]
    assert timeless[0] == timeless[1]
    output = trained.root / "output" / "data"
    assert sorted(members(account, job, "output.tar.gz")) == sorted(path.name for path in output.iterdir())


def test_a_job_installs_what_is_pinned_and_nothing_else(trained: Trained, container: Path) -> None:
    """What the image holds already is in tests/toolkits/requirements.txt, in the versions of its lock."""
    lines = (ROOT / "scripts/training/requirements.txt").read_text().splitlines()
    pinned = sorted(line for line in lines if line and not line.startswith("#"))
    (own,) = container.parent.parent.glob("lib/python*/site-packages")
    installed = [found.name.removesuffix(".dist-info").split("-") for found in own.glob("*.dist-info")]
    assert sorted(f"{name.replace('_', '-').lower()}=={version}" for name, version in installed) == pinned


def test_every_user_may_read_the_model(account: Account, job: dict[str, Any], trained: Trained) -> None:
    """The containers of serverless endpoints do not run as root; a mode survives the archive."""
    real = {str(path.relative_to(trained.root)): path for path in (trained.root / "model").rglob("*")}
    assert {name: oct(path.stat().st_mode & 0o777) for name, path in real.items()} == {
        name: "0o755" if path.is_dir() else "0o644" for name, path in real.items()
    }
    bucket, _, key = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("s3://").partition("/")
    body = account.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        modes = {item.name: oct(item.mode) for item in tar}
        assert modes == {item.name: "0o755" if item.isdir() else "0o644" for item in tar}
    assert len(modes) > 5


def test_metrics_are_read_from_the_program_and_not_from_the_toolkits_own_log(
    job: dict[str, Any], trained: Trained
) -> None:
    last = {
        definition["Name"]: float(found[-1])
        for definition in job["AlgorithmSpecification"]["MetricDefinitions"]
        if (found := re.findall(definition["Regex"], trained.output))
    }
    assert last == {metric["MetricName"]: pytest.approx(metric["Value"]) for metric in job["FinalMetricDataList"]}


def test_every_line_of_the_program_is_one_line_of_the_log(
    account: Account, job: dict[str, Any], trained: Trained
) -> None:
    """The toolkit turns what it reads at once into lines: a line end written by itself becomes a blank line."""
    program = trained.output[trained.output.index("\ndata: ") + 1 :].partition("Waiting for the process")[0]
    lines = [line for line in program.splitlines()[:-1] if not line.startswith("done:")]
    local = account.log(job["TrainingJobName"]).splitlines()
    assert lines == [line for line in local if not line.startswith(("Invoking", "done:"))]


# ---- what a program sees


def test_a_program_sees_the_same(account: Account, both: Callable[..., tuple[Trained, dict[str, Any]]]) -> None:
    real, local = both("probe", source(account, "probe", PROBE))
    assert (real.exit_code, local["TrainingJobStatus"]) == (0, "Completed"), (real.output, local)
    root = str(real.root)
    expected = json.loads((real.root / "model/seen.json").read_text().replace(root, "/opt/ml"))
    text = members(account, local, "model.tar.gz")["seen.json"].decode()
    local_root = Path(json.loads(text)["environment"]["SM_MODEL_DIR"]).parent
    seen = json.loads(text.replace(str(local_root), "/opt/ml"))

    environments = [
        # pip's settings are this machine's, for the step that installs from its index.
        {name: value for name, value in one.pop("environment").items() if not name.startswith("PIP_")}
        for one in (expected, seen)
    ]
    assert set(environments[0]) - set(environments[1]) == set(ONLY_REAL)
    assert set(environments[1]) - set(environments[0]) - set(ONLY_LOCAL) == set()
    for environment in environments:
        assert environment["PYTHONPATH"].split(":")[0] == "/opt/ml/code"
    shared = [
        {name: value for name, value in environment.items() if name not in {*ONLY_REAL, *ONLY_LOCAL, *ANY_VALUE}}
        for environment in environments
    ]
    assert shared[1] == shared[0]
    assert seen == expected


# ---- how jobs end

ENDS = {
    "exception": "print('starts')\nraise ValueError('no such column:\\n  é')",
    "exit": "import sys\nprint('on the way out', file=sys.stderr)\nsys.exit(3)",
    "output": "import sys\nsys.stdout.write('KeyError: in the output\\n  more: \\nmore:\\n')\nsys.exit('no more')",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "crashed": "import os, signal\nprint('RuntimeError: before', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)",
    "shell-killed": "import os\nos._exit(137)",
    "failure-file": "import os\nopen(os.environ['SM_OUTPUT_DIR'] + '/failure', 'w').write('because')\nos._exit(1)",
    "no-requirement": "",
    "bad-requirement": "",
    "no-program": "",
    "no-source": "",
    "no-archive": "",
}
REQUIREMENTS = {"no-requirement": "surely-not-on-pypi-at-all==1.0\n", "bad-requirement": "this is no requirement\n"}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_fails_has_the_same_reason(
    account: Account, both: Callable[..., tuple[Trained, dict[str, Any]]], end: str
) -> None:
    files = {"requirements_txt": REQUIREMENTS[end]} if end in REQUIREMENTS else {}
    change = source(account, end, ENDS[end], **files)

    def changed(request: dict[str, Any]) -> None:
        change(request)
        if end == "no-program":
            request["HyperParameters"]["sagemaker_program"] = "other.py"
        elif end == "no-source":
            request["HyperParameters"]["sagemaker_submit_directory"] = f"s3://{BUCKET}/code/nothing.tar.gz"
        elif end == "no-archive":
            request["HyperParameters"]["sagemaker_submit_directory"] = f"s3://{BUCKET}/data/train/support.csv"

    real, local = both(f"fails-{end}", changed)
    assert local["TrainingJobStatus"] == "Failed"
    reason = comparable(f"AlgorithmError: {real.failure}, exit code: {real.exit_code}"[:1024])
    assert comparable(local["FailureReason"]) == reason


def comparable(reason: str) -> str:
    """A reason without the interpreter's path, a job's folder and what follows the first line of a toolkit's traceback.

    And without white space and colons: the toolkit strips them from the ends of each piece that it reads, and into how
    many pieces a line falls depends on the moment.
    """
    reason = re.sub(r"/\S+/(jobs|trained|test_)\S*?/opt/ml", "/opt/ml", reason)
    reason = re.sub(r"/\S+/bin/python[0-9.]*", "python", reason)
    reason = re.sub(r"(?s)(Framework Error: \nTraceback \(most recent call last\):\n).*", r"\1", reason)
    return re.sub(r"[\s:]+", " ", reason)


def test_sigterm_does_not_reach_the_program(
    account: Account, job: dict[str, Any], container: Path, trained: Trained, tmp_path: Path
) -> None:
    """Even where it reaches the toolkit, which on AWS stands behind a shell: so the local SageMaker sends none."""
    request = {**job, "HyperParameters": dict(job["HyperParameters"])}
    source(account, "deaf", STOPPED)(request)
    root = tmp_path / "opt" / "ml"
    write_platform_files(root, request, account.s3)
    toolkit = start_training(root, request, container, account.aws, tmp_path / "output.log")
    try:
        beats = root / "model" / "beats"
        wait_for("the program runs", lambda: beats.exists() and beats.stat().st_size, 60)
        toolkit.terminate()
        assert toolkit.wait(60) == -signal.SIGTERM
        so_far = beats.stat().st_size
        wait_for("the program still runs", lambda: beats.stat().st_size > so_far)
        assert not (root / "model" / "told").exists()
        assert not (root / "output" / "failure").exists()
    finally:
        end_group(toolkit)
