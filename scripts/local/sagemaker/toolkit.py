"""The container contract of SageMaker's framework images, as far as a training program can see it.

Source: aws/sagemaker-training-toolkit (environment.py, mapping.py, entry_point.py, files.py). The paths are
those of /opt/ml, below the job's own folder.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HOST = "algo-1"
_DEFAULT_LOG_LEVEL = 20
_RESERVED = "sagemaker_"
# What a child gets from this server's own environment: enough to find programs, a home and certificates.
_INHERITED = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
)  # fmt: skip


def base_environment(python: str, region: str, aws_endpoint: str | None, pass_env: tuple[str, ...]) -> dict[str, str]:
    """What every container has: a path that starts with its interpreter, a region, unbuffered output."""
    environment = {name: os.environ[name] for name in (*_INHERITED, *pass_env) if name in os.environ}
    folder = str(Path(python).parent)
    environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
    environment.update(
        {
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
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
    start = f"/bin/sh -c ./{program}" if program.endswith(".sh") else f"{shlex.quote(python)} {program}"
    return " ".join([start, *program_arguments(hyperparameters)])


def write_config(root: Path, job: Mapping[str, Any]) -> None:
    """The /opt/ml tree below `root`, with input/config/*.json."""
    for folder in ("input/config", "input/data", "model", "output/data", "output/intermediate", "code"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in _configuration(job).items():
        (root / f"input/config/{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _configuration(job: Mapping[str, Any]) -> dict[str, Any]:
    instance_type = job["ResourceConfig"]["InstanceType"]
    return {
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
            "current_host": _HOST,
            "current_instance_type": instance_type,
            "current_group_name": "homogeneousCluster",
            "hosts": [_HOST],
            "instance_groups": [
                {
                    "instance_group_name": "homogeneousCluster",
                    "instance_type": instance_type,
                    "hosts": [_HOST],
                }
            ],
            "network_interface_name": "lo" if sys.platform == "linux" else "lo0",
        },
    }


def training_environment(root: Path, job: Mapping[str, Any]) -> dict[str, str]:
    """The SM_* variables. Names are upper-cased only: channel ``a-b`` gives SM_CHANNEL_A-B."""
    hyperparameters = job.get("HyperParameters", {})
    own = {key: decode(value) for key, value in hyperparameters.items() if not key.startswith(_RESERVED)}
    configuration = _configuration(job)
    program = program_name(hyperparameters)
    channels = {name: str(root / "input/data" / name) for name in sorted(configuration["inputdataconfig"])}
    module = program.removesuffix(".py")
    values: dict[str, Any] = {
        "hosts": [_HOST],
        "current_host": _HOST,
        "network_interface_name": configuration["resourceconfig"]["network_interface_name"],
        "hps": own,
        "user_entry_point": program,
        "framework_params": {},
        "resource_config": configuration["resourceconfig"],
        "input_data_config": configuration["inputdataconfig"],
        "output_data_dir": str(root / "output/data"),
        "output_intermediate_dir": str(root / "output/intermediate"),
        "output_dir": str(root / "output"),
        "channels": list(channels),
        "module_name": module,
        "module_dir": decode(hyperparameters.get("sagemaker_submit_directory", str(root / "code"))),
        "log_level": decode(hyperparameters.get("sagemaker_container_log_level", str(_DEFAULT_LOG_LEVEL))),
        "input_dir": str(root / "input"),
        "input_config_dir": str(root / "input/config"),
        "model_dir": str(root / "model"),
        "num_cpus": os.cpu_count() or 1,
        "num_gpus": 0,
        "num_neurons": 0,
        "user_args": program_arguments(hyperparameters),
    }
    values["training_env"] = {
        **values,
        "job_name": job["TrainingJobName"],
        "channel_input_dirs": channels,
        "hyperparameters": own,
        "is_master": True,
        "master_hostname": _HOST,
    }
    values.update({f"channel_{name}": path for name, path in channels.items()})
    values.update({f"hp_{name}": value for name, value in own.items()})
    environment = {f"SM_{name}".upper(): _text(value) for name, value in values.items()}
    environment["TRAINING_JOB_NAME"] = job["TrainingJobName"]
    environment["TRAINING_JOB_ARN"] = job["TrainingJobArn"]
    environment["CURRENT_HOST"] = _HOST
    environment["PYTHONPATH"] = str(root / "code")
    return environment


def program_name(hyperparameters: Mapping[str, str]) -> str:
    """``sagemaker_program``; the SageMaker SDK writes it as a JSON string, others as plain text."""
    return str(decode(hyperparameters["sagemaker_program"]))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
