"""The container contract of SageMaker's framework images, as far as a training program can see it.

Source: sagemaker-training 5.1.1 (environment.py, mapping.py, entry_point.py, process.py, errors.py) and
sagemaker-pytorch-training 3.0.0; tests/toolkits runs both beside this and compares. The paths are those of /opt/ml,
below the job's own folder.
"""

import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CONTAINER_ROOT = "/opt/ml"
CHECKPOINTS = f"{CONTAINER_ROOT}/checkpoints/"
_LOOPBACK = "127.0.0.1"
_DEFAULT_LOG_LEVEL = 20
_RESERVED = "sagemaker_"
# The hyperparameters that the toolkit takes for itself; others of that beginning are the framework's.
_TOOLKITS_OWN = (
    "sagemaker_program", "sagemaker_submit_directory", "sagemaker_enable_cloudwatch_metrics", "sagemaker_region",
    "sagemaker_container_log_level", "sagemaker_job_name", "sagemaker_s3_output",
)  # fmt: skip
_GROUP = "homogeneousCluster"
# The hyperparameter with which the toolkit starts a program with torchrun.
_TORCHRUN = "sagemaker_torch_distributed_enabled"
_FRAMEWORK_MODULE = "sagemaker_pytorch_container.training:main"
_MASTER_PORT = "7777"
# What the training image sets beyond base_environment (aws/deep-learning-containers, docker/pytorch/Dockerfile.cpu).
TRAINING_IMAGE = {"DLC_CONTAINER_TYPE": "training", "SAGEMAKER_TRAINING_MODULE": _FRAMEWORK_MODULE}
# A job's reason quotes a program's output from the first line on that holds one of these (sagemaker_training,
# _PYTHON_ERRORS_ and _MPI_ERRORS_).
_TELLING = (
    "BaseException", "Exception", "ArithmeticError", "AssertionError", "AttributeError", "BlockingIOError",
    "BrokenPipeError", "BufferError", "ChildProcessError", "ConnectionAbortedError", "ConnectionError",
    "ConnectionRefusedError", "ConnectionResetError", "EOFError", "EnvironmentError", "FileExistsError",
    "FileNotFoundError", "FloatingPointError", "IOError", "ImportError", "IndentationError", "IndexError",
    "InterruptedError", "IsADirectoryError", "KeyError", "LookupError", "MemoryError", "ModuleNotFoundError",
    "NameError", "NotADirectoryError", "NotImplementedError", "OSError", "OverflowError", "PermissionError",
    "ProcessLookupError", "RecursionError", "ReferenceError", "RuntimeError", "SyntaxError", "SystemError", "TabError",
    "TimeoutError", "TypeError", "UnboundLocalError", "UnicodeDecodeError", "UnicodeEncodeError", "UnicodeError",
    "UnicodeTranslateError", "ValueError", "ZeroDivisionError", "Invalid requirement", "ResourceExhaustedError",
    "OutOfRangeError", "InvalidArgumentError", "mpirun.real", "ORTE",
)  # fmt: skip
# What a child gets from this server's own environment: enough to find programs, a home and certificates.
_INHERITED = (
    "PATH", "HOME", "USER", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
)  # fmt: skip


def base_environment(python: str, region: str, aws_endpoint: str | None, pass_env: tuple[str, ...]) -> dict[str, str]:
    """What every container has: a path that starts with its interpreter, a region, unbuffered output.

    AWS_REGION is all that a container is sure to have: no AWS_DEFAULT_REGION, which boto3 would find by itself.
    """
    environment = {name: os.environ[name] for name in (*_INHERITED, *pass_env) if name in os.environ}
    folder = str(Path(python).parent)
    environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
    environment.update(
        {
            "AWS_REGION": region,
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    )
    if aws_endpoint:
        environment["AWS_ENDPOINT_URL"] = aws_endpoint
    return environment


def decode(value: str) -> Any:
    """A hyperparameter as the toolkit reads it: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def program_arguments(hyperparameters: Mapping[str, str]) -> list[str]:
    """Sorted ``--key value`` pairs (``-k`` for one letter); ``sagemaker_*`` keys are left out.

    >>> program_arguments({"lr": "5e-5", "n": "3", "on": "true", "sagemaker_program": "train.py"})
    ['--lr', '5e-05', '-n', '3', '--on', 'True']
    """
    arguments: list[str] = []
    for key in sorted(hyperparameters):
        if not key.startswith(_RESERVED):
            value = decode(hyperparameters[key])
            if isinstance(value, dict):
                text = ",".join(f"{name}={value[name]}" for name in sorted(value))
            else:
                text = "" if value is None else str(value)
            arguments += [f"--{key}" if len(key) > 1 else f"-{key}", text]
    return arguments


def shell_command(python: str, program: str, hyperparameters: Mapping[str, str]) -> str:
    """The line that is given to ``sh -c``. The arguments are NOT quoted, as in the toolkit: see the package."""
    arguments = program_arguments(hyperparameters)
    if program.endswith(".sh"):
        return f'/bin/sh -c "./{program} {" ".join(map(shlex.quote, arguments))}"'
    return " ".join([shlex.quote(python), program, *arguments])


@functools.cache
def torch_version(python: str) -> str | None:
    """The version of torch that an interpreter has, which the PyTorch images tell the program; None without it."""
    code = "import importlib.metadata as m\nprint(m.version('torch'))"
    run = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def telling_lines(output: Iterable[str]) -> str:
    """What a job's reason quotes of one stream of a program: the lines from the first that names an error."""
    kept: list[str] = []
    for line in output:
        if kept or any(name in line for name in _TELLING):
            kept.append(line.strip(" :\n") + "\n")
    return " ".join(kept)


def failure_text(error: str, code: int, command: str, streams: Iterable[Iterable[str]]) -> str:
    """What the toolkit writes into output/failure of a program that failed and wrote none: `error` is its class.

    code: as subprocess has it, -N after signal N. streams: the lines of standard output and of standard error.
    """
    quoted = " ".join(telling_lines(lines) for lines in streams)
    quoted = "\n".join(dict.fromkeys(quoted.split("\n"))).strip()
    extra = '\nExtraInfo "OutOfMemory: Process killed by SIGKILL (signal 9)"' if code == 137 else ""
    return f'{error}:\nExitCode {code}\nErrorMessage "{quoted}"{extra}\nCommand "{command}"'


def hosts_of(job: Mapping[str, Any]) -> list[str]:
    """The names of a job's containers, as each of them knows them."""
    return [f"algo-{number}" for number in range(1, job["ResourceConfig"]["InstanceCount"] + 1)]


def local_path(path: str, root: Path) -> str:
    """A path below /opt/ml where it is here, below `root`; any other text as it is."""
    below = path.removeprefix(CONTAINER_ROOT)
    return f"{root}{below}" if below != path and (not below or below.startswith("/")) else path


def checkpoint_path(job: Mapping[str, Any], root: Path) -> str:
    """The folder of a container's checkpoints here."""
    return local_path(job["CheckpointConfig"].get("LocalPath", CHECKPOINTS), root)


def write_config(root: Path, job: Mapping[str, Any], host: str) -> None:
    """The /opt/ml tree below `root`, with input/config/*.json."""
    for folder in ("input/config", "input/data", "model", "output/data", "output/intermediate", "code"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in _configuration(job, host, root).items():
        (root / f"input/config/{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _configuration(job: Mapping[str, Any], host: str, root: Path) -> dict[str, Any]:
    instance_type, hosts = job["ResourceConfig"]["InstanceType"], hosts_of(job)
    kept = {"checkpointconfig": {"LocalPath": checkpoint_path(job, root)}} if "CheckpointConfig" in job else {}
    return {
        **kept,
        "hyperparameters": job.get("HyperParameters", {}),
        "inputdataconfig": {
            channel["ChannelName"]: {
                "TrainingInputMode": "File",
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
                **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
            }
            for channel in job.get("InputDataConfig", [])
        },
        "resourceconfig": {
            "current_host": host,
            "current_instance_type": instance_type,
            "current_group_name": _GROUP,
            "hosts": hosts,
            "instance_groups": [
                {
                    "instance_group_name": _GROUP,
                    "instance_type": instance_type,
                    "hosts": hosts,
                }
            ],
            "network_interface_name": "lo" if sys.platform == "linux" else "lo0",
        },
    }


def training_environment(root: Path, job: Mapping[str, Any], python: str, host: str, port: int) -> dict[str, str]:
    """What the toolkit adds to a container's variables. Names are upper-cased only: channel ``a-b``: SM_CHANNEL_A-B.

    port: where the first of several hosts, all of this machine, meets the others.
    """
    hosts = hosts_of(job)
    hyperparameters = job.get("HyperParameters", {})
    decoded = {key: decode(value) for key, value in hyperparameters.items()}
    own = {key: value for key, value in decoded.items() if not key.startswith(_RESERVED)}
    configuration = _configuration(job, host, root)
    resources = configuration["resourceconfig"]
    program = program_name(hyperparameters)
    channels = {name: str(root / "input/data" / name) for name in configuration["inputdataconfig"]}
    framework = {key: value for key, value in decoded.items() if key.startswith(_RESERVED) and key not in _TOOLKITS_OWN}
    is_distributed = bool(decoded.get(_TORCHRUN))
    values: dict[str, Any] = {
        "hosts": hosts,
        "current_host": host,
        "current_instance_type": resources["current_instance_type"],
        "current_instance_group": _GROUP,
        "current_instance_group_hosts": hosts,
        "instance_groups": [_GROUP],
        "instance_groups_dict": {_GROUP: resources["instance_groups"][0]},
        "distribution_instance_groups": [_GROUP] if is_distributed else [],
        "is_hetero": False,
        "network_interface_name": resources["network_interface_name"],
        "user_entry_point": program,
        "resource_config": resources,
        "input_data_config": configuration["inputdataconfig"],
        "output_data_dir": str(root / "output/data"),
        "output_intermediate_dir": str(root / "output/intermediate"),
        "output_dir": str(root / "output"),
        "module_name": program.removesuffix(".py"),
        "module_dir": str(decoded["sagemaker_submit_directory"]),
        "framework_module": _FRAMEWORK_MODULE,
        "log_level": decoded.get("sagemaker_container_log_level", _DEFAULT_LOG_LEVEL),
        "input_dir": str(root / "input"),
        "input_config_dir": str(root / "input/config"),
        "model_dir": str(root / "model"),
        "num_cpus": os.cpu_count() or 1,
        "num_gpus": 0,
        "num_neurons": 0,
    }
    training_env = {
        **values,
        "additional_framework_parameters": framework,
        "channel_input_dirs": channels,
        "distribution_hosts": hosts if is_distributed else [],
        "hyperparameters": own,
        "is_master": host == hosts[0],
        "is_modelparallel_enabled": None,
        "is_smddpmprun_installed": False,
        "is_smddprun_installed": False,
        "job_name": job["TrainingJobName"],
        "master_hostname": hosts[0],
        "topology": [],
    }
    values.update(
        {
            "hps": own,
            "framework_params": framework,
            "channels": sorted(channels),
            "user_args": program_arguments(hyperparameters),
            "training_env": training_env,
            **{f"channel_{name}": path for name, path in channels.items()},
            **{f"hp_{name}": value for name, value in own.items()},
        }
    )
    environment = {f"SM_{name}".upper(): _text(value) for name, value in values.items()}
    environment.update(
        {
            "TRAINING_JOB_NAME": job["TrainingJobName"],
            "TRAINING_JOB_ARN": job["TrainingJobArn"],
            "CURRENT_HOST": host,
            "SAGEMAKER_JOB_NAME": _text(decoded.get("sagemaker_job_name", "")),
            "SAGEMAKER_REGION": _text(decoded.get("sagemaker_region", "")),
            # The names of several hosts mean nothing to this machine.
            "MASTER_ADDR": hosts[0] if len(hosts) == 1 else _LOOPBACK,
            "MASTER_PORT": _MASTER_PORT if len(hosts) == 1 else str(port),
            "NCCL_SOCKET_IFNAME": resources["network_interface_name"],
            "NCCL_IB_DISABLE": "1",
            "NCCL_DEBUG": "WARN",
            "PYTHONPATH": str(root / "code"),
        }
    )
    if is_distributed:
        environment.update(_torchrun_environment(hosts.index(host), len(hosts)))
    version = torch_version(python)
    if version is not None:
        environment["SM_DLC_TORCH_VERSION"] = version
    return environment


def _torchrun_environment(rank: int, count: int) -> dict[str, str]:
    """What torchrun tells a program, one on each of `count` hosts (torch, local_elastic_agent.py).

    There is no torchrun here: it would need torch. So the first program opens the port itself.
    """
    ranks = {"RANK": rank, "GROUP_RANK": rank, "ROLE_RANK": rank, "LOCAL_RANK": 0}
    sizes = {"WORLD_SIZE": count, "GROUP_WORLD_SIZE": count, "ROLE_WORLD_SIZE": count, "LOCAL_WORLD_SIZE": 1}
    restarts = {"TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0}
    numbers = {name: str(number) for name, number in {**ranks, **sizes, **restarts}.items()}
    return {**numbers, "ROLE_NAME": "default", "TORCHELASTIC_RUN_ID": "none"}


def program_name(hyperparameters: Mapping[str, str]) -> str:
    """``sagemaker_program``; the SageMaker SDK writes it as a JSON string, others as plain text."""
    return str(decode(hyperparameters["sagemaker_program"]))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
