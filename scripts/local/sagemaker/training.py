"""Training jobs: the API calls, and the run of a job under the container contract."""

import logging
import math
import queue
import re
import shlex
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import images, quotas, s3, toolkit
from .errors import ApiError, constraint, null_member, unsupported, validation
from .events import training_event
from .logs import LogShipper, LogStream
from .processes import Child
from .settings import Settings, later_than, now
from .store import TRAINING_JOBS, Record, Store

log = logging.getLogger("local.sagemaker")

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
# Longest FailureReason in the API, and how much of output/failure SageMaker reads.
_MAX_REASON_CHARACTERS = 1024
_DEFAULT_MAX_RUNTIME_SECONDS = 86_400
_POLL_SECONDS = 0.1
_SHUTDOWN_SECONDS = 5.0
# The toolkit's own exit code when the program fails, whatever that one's is.
_TOOLKIT_FAILED = 1
INTERNAL_ERROR = "InternalServerError: We encountered an internal error. Please try again."
_REQUIREMENTS_CHECK = str(Path(__file__).with_name("requirements_check.py"))

# Message of each secondary status, as DescribeTrainingJob shows it.
_MESSAGES = {
    "Starting": "Starting the training job",
    "Pending": "Training job waiting for capacity",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Restarting": "Restarting the training job after an internal error",
}
_SUMMARY = (
    "TrainingJobName",
    "TrainingJobArn",
    "CreationTime",
    "TrainingEndTime",
    "LastModifiedTime",
    "TrainingJobStatus",
    "SecondaryStatus",
)
_TERMINAL = ("Completed", "Failed", "Stopped")
# What this server would have to ignore, by path in the request.
_UNSUPPORTED = (
    ("CheckpointConfig",),
    ("TensorBoardOutputConfig",),
    ("ServerlessJobConfig",),
    ("ModelPackageConfig",),
    ("MlflowConfig",),
    ("SessionChainingConfig",),
    ("AlgorithmSpecification", "AlgorithmName"),
    ("AlgorithmSpecification", "ContainerEntrypoint"),
    ("AlgorithmSpecification", "ContainerArguments"),
    ("ResourceConfig", "InstanceGroups"),
    ("ResourceConfig", "TrainingPlanArn"),
    ("ResourceConfig", "KeepAlivePeriodInSeconds"),
)


class _JobFailed(Exception):
    """The job ends as Failed with this FailureReason."""


class _JobStopped(Exception):
    """Someone called StopTrainingJob."""


class _ServerStopping(Exception):
    """The server is shutting down; the next start decides about the job."""


class _Run:
    """A job while it runs, and whether it was asked to end."""

    def __init__(self) -> None:
        self.stop_requested = threading.Event()


class Training:
    """The training half of the service. `parallel` jobs run at once; the others wait as Pending."""

    def __init__(self, settings: Settings, store: Store, s3_client: Any, logs: LogShipper) -> None:
        self._settings = settings
        self._store = store
        self._s3 = s3_client
        self._logs = logs
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._runs: dict[str, _Run] = {}
        self._shutdown = threading.Event()
        self._workers = [
            threading.Thread(target=self._work, name=f"training-{number}", daemon=True)
            for number in range(settings.parallel)
        ]

    # ---- API -------------------------------------------------------------------------------------------

    def create(self, request: Record) -> Record:
        """CreateTrainingJob. The request is already valid against the service model."""
        _check_request(request)
        name = request["TrainingJobName"]
        arn = self._settings.arn("training-job", name)
        with self._store.lock:
            if self._store.get(TRAINING_JOBS, name):
                raise ApiError(
                    "ResourceInUse",
                    "Job name must be unique within an AWS account and region, and a job with this name "
                    f"already exists ({arn})",
                )
            image = request["AlgorithmSpecification"]["TrainingImage"]
            images.check_training(self._settings.images, image, request["RoleArn"])
            self._check_quota(request["ResourceConfig"])
            created = now()
            job = {
                **request,
                "TrainingJobArn": arn,
                "CreationTime": created,
                "LastModifiedTime": created,
                "SecondaryStatusTransitions": [],
                "Attempts": 0,
            }
            busy = sum(other["TrainingJobStatus"] not in _TERMINAL for other in self._store.all(TRAINING_JOBS))
            self._move(job, "InProgress", "Starting" if busy < self._settings.parallel else "Pending")
            self._queue.put(name)
        return {"TrainingJobArn": arn}

    def describe(self, request: Record) -> Record:
        job = self._existing(request["TrainingJobName"])
        return {name: value for name, value in job.items() if name not in ("Tags", "Attempts")}

    def summary(self, job: Record) -> Record:
        return {name: job[name] for name in _SUMMARY if name in job}

    def stop(self, request: Record) -> Record:
        """StopTrainingJob: SIGKILL after the grace; a job that waits stops at once.

        SageMaker sends SIGTERM to a container's first process, which in the framework images is a shell that does
        not react to it: no program hears of it (aws/sagemaker-training-toolkit#125), though it may still end in time.
        """
        name = request["TrainingJobName"]
        with self._store.lock:
            job = self._existing(name)
            if job["TrainingJobStatus"] in _TERMINAL:
                raise validation(
                    f"The request was rejected because the training job is in status {job['TrainingJobStatus']}."
                )
            if job["TrainingJobStatus"] == "Stopping":
                return {}
            self._move(job, "Stopping", "Stopping")
            run = self._runs.get(name)
            if run is None:
                self._move(job, "Stopped", "Stopped")
            else:
                run.stop_requested.set()
        return {}

    def _existing(self, name: str) -> Record:
        job = self._store.get(TRAINING_JOBS, name)
        if job is None:
            raise validation("Requested resource not found.")
        return job

    def _check_quota(self, resources: Record) -> None:
        kind = resources["InstanceType"]
        quotas.check_region(self._settings.missing_types, "training-job", kind)
        used = sum(
            job["ResourceConfig"]["InstanceCount"]
            for job in self._store.all(TRAINING_JOBS)
            if job["TrainingJobStatus"] not in _TERMINAL and job["ResourceConfig"]["InstanceType"] == kind
        )
        quotas.check(self._settings.quotas, f"{kind} for training job usage", used, resources["InstanceCount"])

    # ---- Life of the service ---------------------------------------------------------------------------

    def start(self) -> None:
        """Continue what an earlier server left, oldest first, then run jobs."""
        with self._store.lock:
            jobs = sorted(self._store.all(TRAINING_JOBS), key=lambda job: job["CreationTime"])
            for job in jobs:
                if job["TrainingJobStatus"] in _TERMINAL:
                    continue
                name = job["TrainingJobName"]
                retries = job.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
                if job["TrainingJobStatus"] == "Stopping":
                    self._move(job, "Stopped", "Stopped")
                elif "TrainingStartTime" not in job:
                    self._queue.put(name)
                elif job["Attempts"] <= retries:
                    self._move(job, "InProgress", "Restarting")
                    self._queue.put(name)
                else:
                    self._move(job, "Failed", "Failed", INTERNAL_ERROR)
        for worker in self._workers:
            worker.start()

    def shutdown(self) -> None:
        """Kill what runs; the jobs stay as they are, and the next start decides about them."""
        self._shutdown.set()
        for _ in self._workers:
            self._queue.put("")
        for worker in self._workers:
            # A worker inside an S3 call cannot be interrupted; its job's record is as it was, which is enough.
            worker.join(_SHUTDOWN_SECONDS)

    def _work(self) -> None:
        while True:
            name = self._queue.get()
            if self._shutdown.is_set():
                return
            run = _Run()
            with self._store.lock:
                job = self._store.get(TRAINING_JOBS, name)
                if job is None or job["TrainingJobStatus"] != "InProgress":
                    continue
                self._runs[name] = run
            try:
                self._run(job, run)
            except _ServerStopping:
                return
            finally:
                with self._store.lock:
                    del self._runs[name]

    # ---- One job ---------------------------------------------------------------------------------------

    def _run(self, job: Record, run: _Run) -> None:
        """A job from its first status to its last. `job` is only read here: the store has the current one."""
        name = job["TrainingJobName"]
        folder = self._settings.state / "jobs" / f"{name}.{job['Attempts']}"
        root = folder / "opt/ml"
        stream = self._logs.open(
            LOG_GROUP, f"{name}/algo-1-{int(time.time())}", self._settings.state / "logs" / f"{name}.log"
        )
        try:
            if job["SecondaryStatus"] == "Pending":
                self._advance(name, run, "Starting")
            # "Has started" and the attempt are one write: a restart must not rerun a job on its own.
            started = now()
            self._advance(name, run, "Downloading", TrainingStartTime=started, Attempts=job["Attempts"] + 1)
            self._prepare(job, run, root, stream)
            self._advance(name, run, "Training")
            over, failure = self._train(job, run, root, stream, started)
            self._change(name, None, "Uploading")
            self._upload(job, folder, with_model=failure is None)
            if failure is not None:
                raise _JobFailed(failure)
            shutil.rmtree(folder)
            if over:
                self._change(name, "Stopped", "MaxRuntimeExceeded")
            else:
                self._complete(name, run)
        except _JobStopped:
            self._change(name, "Stopped", "Stopped")
        except _JobFailed as exc:
            self._change(name, "Failed", "Failed", str(exc)[:_MAX_REASON_CHARACTERS])
            log.info("training job %s: its folder is kept: %s", name, folder)
        except _ServerStopping:
            log.info("training job %s interrupted: the server stops", name)
            raise
        except Exception:
            log.exception("training job %s: error of this server", name)
            self._change(name, "Failed", "Failed", INTERNAL_ERROR)
        finally:
            stream.close()

    def _move(self, job: Record, status: str, secondary: str, reason: str | None = None) -> None:
        """Give `job` a status with its transition, and store it with its event. Hold the store's lock."""
        at = later_than(job["LastModifiedTime"])
        if job["SecondaryStatusTransitions"]:
            job["SecondaryStatusTransitions"][-1].setdefault("EndTime", at)
        transition = {"Status": secondary, "StartTime": at, "StatusMessage": _MESSAGES[secondary]}
        job["TrainingJobStatus"] = status
        job["SecondaryStatus"] = secondary
        job["LastModifiedTime"] = at
        if status in _TERMINAL:
            transition["EndTime"] = at
            if reason:
                job["FailureReason"] = transition["StatusMessage"] = reason
            if "TrainingStartTime" in job:
                job["TrainingEndTime"] = at
                seconds = max(1, math.ceil(at - job["TrainingStartTime"]))
                job["TrainingTimeInSeconds"] = job["BillableTimeInSeconds"] = seconds
        job["SecondaryStatusTransitions"].append(transition)
        self._store.put(TRAINING_JOBS, job["TrainingJobName"], job, training_event(self._settings, job))
        log.info(
            "training job %s: %s/%s%s",
            job["TrainingJobName"], status, secondary, ": " + reason.replace("\n", " ") if reason else "",
        )  # fmt: skip

    def _change(self, name: str, status: str | None, secondary: str, reason: str | None = None, **members: Any) -> None:
        """Move the stored job on, and set `members`; a status of None stays as it is."""
        with self._store.lock:
            job = self._existing(name)
            job.update(members)
            self._move(job, status or job["TrainingJobStatus"], secondary, reason)

    def _advance(self, name: str, run: _Run, secondary: str, **members: Any) -> None:
        """The next step of a running job, unless it is to stop."""
        with self._store.lock:
            self._check_stop(run)
            self._change(name, None, secondary, **members)

    def _complete(self, name: str, run: _Run) -> None:
        with self._store.lock:
            if run.stop_requested.is_set():
                self._change(name, "Stopped", "Stopped")
            else:
                self._change(name, "Completed", "Completed")

    def _check_stop(self, run: _Run) -> None:
        if self._shutdown.is_set():
            raise _ServerStopping
        if run.stop_requested.is_set():
            raise _JobStopped

    def _prepare(self, job: Record, run: _Run, root: Path, stream: LogStream) -> None:
        """Everything that is there before the program starts: tree, channels, code, requirements."""
        toolkit.write_config(root, job)
        for channel in job.get("InputDataConfig", []):
            self._check_stop(run)
            self._download(channel, job["RoleArn"], root)
        parameters = job["HyperParameters"]
        source = str(toolkit.decode(parameters["sagemaker_submit_directory"]))
        archive = root.parent / "source.tar.gz"
        try:
            s3.download(self._s3, source, archive)
            s3.unpack(archive, root / "code")
        except (s3.S3Error, s3.ArchiveError) as exc:
            stream.write(f"cannot use sagemaker_submit_directory {source}: {exc}")
            raise _framework_error(exc) from exc
        if (root / "code/setup.py").exists():
            raise _JobFailed("Local SageMaker does not support a training source with a setup.py")
        program = toolkit.program_name(parameters)
        if program.endswith(".sh"):
            try:
                (root / "code" / program).chmod(0o777)
            except OSError as exc:
                raise _framework_error(exc) from exc
        elif (root / "code/requirements.txt").is_file():
            self._check_requirements(root, run, stream)

    def _download(self, channel: Record, role: str, root: Path) -> None:
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        try:
            count = s3.download_prefix(self._s3, uri, root / "input/data" / channel["ChannelName"])
            problem = "" if count else "no objects"
        except s3.S3Error as exc:
            problem = str(exc)
        if problem:
            log.info("channel %s: %s: %s", channel["ChannelName"], uri, problem)
            bucket = s3.split_uri(uri)[0]
            raise _JobFailed(
                f'ClientError: Data download failed: No S3 objects found under S3 URL "{uri}" given in input '
                "data source. Please ensure that the bucket exists in the selected region "
                f"({self._settings.region}), that objects exist under that S3 prefix, and that the role "
                f'"{role}" has "s3:ListBucket" permissions on bucket "{bucket}".'
            )

    def _check_requirements(self, root: Path, run: _Run, stream: LogStream) -> None:
        """What pip would do, without installing: see requirements_check.py."""
        lines: list[str] = []
        command = [self._settings.python, _REQUIREMENTS_CHECK, str(root / "code/requirements.txt")]
        child = Child(command, env=self._environment({}), cwd=root, on_line=lines.append)
        while not child.ended.wait(_POLL_SECONDS):
            if run.stop_requested.is_set() or self._shutdown.is_set():
                child.kill()
        self._check_stop(run)
        for line in lines:
            stream.write(line)
        if child.exit_code:
            pip = f"{self._settings.python} -m pip install -r requirements.txt"
            reason = toolkit.failure_text("InstallRequirementsError", child.exit_code, pip, [[], lines])
            raise _JobFailed(f"AlgorithmError: {reason}, exit code: {_TOOLKIT_FAILED}")

    def _train(self, job: Record, run: _Run, root: Path, stream: LogStream, started: float) -> tuple[bool, str | None]:
        """Run the program: (ended for its MaxRuntimeInSeconds, FailureReason when it failed on its own)."""
        parameters = job["HyperParameters"]
        line = toolkit.shell_command(self._settings.python, toolkit.program_name(parameters), parameters)
        metrics = _Metrics(job["AlgorithmSpecification"].get("MetricDefinitions", []))
        printed: tuple[list[str], list[str]] = ([], [])
        lock = threading.Lock()

        def on_line(text: str, lines: list[str]) -> None:
            with lock:
                stream.write(text)
                metrics.read(text)
            lines.append(text)

        stream.write(f"Invoking script with the following command: {line}")
        environment = self._environment({**toolkit.TRAINING_IMAGE, **job.get("Environment", {})})
        environment.update(toolkit.training_environment(root, job, self._settings.python))
        child = Child(
            ["/bin/sh", "-c", line],
            env=environment,
            cwd=root / "code",
            on_line=lambda text: on_line(text, printed[0]),
            on_error=lambda text: on_line(text, printed[1]),
        )
        limit = job["StoppingCondition"].get("MaxRuntimeInSeconds", _DEFAULT_MAX_RUNTIME_SECONDS)
        deadline = started + limit
        over = False
        kill_at: float | None = None
        while not child.ended.wait(_POLL_SECONDS):
            if self._shutdown.is_set():
                child.kill()
            elif kill_at is None and (run.stop_requested.is_set() or time.time() >= deadline):
                over = not run.stop_requested.is_set()
                kill_at = time.monotonic() + self._settings.stop_grace_seconds
            elif kill_at is not None and time.monotonic() >= kill_at:
                child.kill()
        if self._shutdown.is_set():
            raise _ServerStopping
        self._set_members(job["TrainingJobName"], FinalMetricDataList=metrics.final())
        code = child.exit_code
        if not code or kill_at is not None:
            return over, None
        failure = _failure(root / "output/failure", "ExecuteUserScriptError", code, line, printed)
        return False, f"AlgorithmError: {failure}, exit code: {_TOOLKIT_FAILED}"

    def _environment(self, own: dict[str, str]) -> dict[str, str]:
        settings = self._settings
        base = toolkit.base_environment(settings.python, settings.region, settings.aws_endpoint, settings.pass_env)
        return {**base, **own}

    def _set_members(self, name: str, **members: Any) -> None:
        """Set members of the stored job that do not change its status."""
        with self._store.lock:
            self._store.put(TRAINING_JOBS, name, {**self._existing(name), **members})

    def _upload(self, job: Record, folder: Path, with_model: bool) -> None:
        """The two archives. An empty model folder gives no object, but still a ModelArtifacts, as on AWS."""
        target = f"{job['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/output"
        archives = {"output.tar.gz": folder / "opt/ml/output/data"}
        if with_model:
            artifacts = {"S3ModelArtifacts": f"{target}/model.tar.gz"}
            self._set_members(job["TrainingJobName"], ModelArtifacts=artifacts)
            archives["model.tar.gz"] = folder / "opt/ml/model"
        try:
            for name, content in archives.items():
                if s3.pack(content, folder / name):
                    s3.upload(self._s3, folder / name, f"{target}/{name}")
        except s3.S3Error as exc:
            raise _JobFailed(f"ClientError: Artifact upload failed: {exc}") from exc


class _Metrics:
    """The last match of each MetricDefinition; like SageMaker, only those that matched are listed."""

    def __init__(self, definitions: list[Record]) -> None:
        self._patterns = [(item["Name"], re.compile(item["Regex"])) for item in definitions]
        self._last: dict[str, Record] = {}

    def read(self, line: str) -> None:
        for name, pattern in self._patterns:
            found = pattern.search(line)
            if found and found.groups():
                try:
                    value = float(found.group(1))
                except (TypeError, ValueError):
                    continue
                if math.isfinite(value):
                    self._last[name] = {"MetricName": name, "Value": value, "Timestamp": now()}

    def final(self) -> list[Record]:
        return list(self._last.values())


def _framework_error(error: Exception) -> _JobFailed:
    """How a job ends when the toolkit itself raises: with a traceback, which is not copied here."""
    code = getattr(error, "errno", _TOOLKIT_FAILED)
    return _JobFailed(
        "AlgorithmError: Framework Error: \nTraceback (most recent call last):\n"
        f"{type(error).__name__}: {error}\n\n{error}, exit code: {code}"
    )


def _failure(path: Path, error: str, code: int, command: str, printed: Iterable[Iterable[str]]) -> str:
    """The program's own reason, or what the toolkit writes when there is none."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_REASON_CHARACTERS)
    return toolkit.failure_text(error, code, command, printed)


def _check_request(request: Record) -> None:
    """What the service model cannot say about CreateTrainingJob."""
    for path in _UNSUPPORTED:
        value: Any = request
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value:
            raise unsupported(".".join(path))
    for member in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if request.get(member) is None:
            raise null_member(member[:1].lower() + member[1:])
    _check_resources(request["ResourceConfig"])
    algorithm = request["AlgorithmSpecification"]
    if not algorithm.get("TrainingImage"):
        raise null_member("algorithmSpecification.trainingImage")
    if algorithm["TrainingInputMode"] == "Pipe":
        raise unsupported("TrainingInputMode Pipe")
    if request.get("EnableNetworkIsolation"):
        raise unsupported("EnableNetworkIsolation")
    if request["OutputDataConfig"].get("CompressionType", "GZIP") != "GZIP":
        raise unsupported("OutputDataConfig.CompressionType NONE")
    _check_s3(request["OutputDataConfig"]["S3OutputPath"], "outputDataConfig.s3OutputPath")
    _check_stopping(request)
    _check_channels(request.get("InputDataConfig", []))
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error as exc:
            raise validation(f"Invalid regex {definition['Regex']!r} for metric {definition['Name']}: {exc}") from exc
    _check_program(request.get("HyperParameters", {}))


def _check_resources(resources: Record) -> None:
    for member in ("InstanceType", "InstanceCount", "VolumeSizeInGB"):
        if resources.get(member) is None:
            raise null_member("resourceConfig." + member[:1].lower() + member[1:])
    if resources["InstanceCount"] != 1:
        raise unsupported(f"{resources['InstanceCount']} training instances, only 1")


def _check_program(parameters: dict[str, str]) -> None:
    for key in ("sagemaker_program", "sagemaker_submit_directory"):
        if key not in parameters:
            raise unsupported(f"an algorithm that is only an image: give the hyperparameter {key}")
    program = toolkit.program_name(parameters)
    if not program.endswith((".py", ".sh")) or shlex.quote(program) != program:
        raise unsupported(f"the program name {program!r}: a plain .py or .sh path")
    source = str(toolkit.decode(parameters["sagemaker_submit_directory"]))
    if not source.startswith("s3://"):
        raise unsupported(f"sagemaker_submit_directory {source!r}: an s3:// URI")


def _check_stopping(request: Record) -> None:
    stopping = request["StoppingCondition"]
    if request.get("EnableManagedSpotTraining"):
        wait = stopping.get("MaxWaitTimeInSeconds")
        if wait is None or wait < stopping.get("MaxRuntimeInSeconds", _DEFAULT_MAX_RUNTIME_SECONDS):
            raise validation(
                "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
            )
    elif "MaxWaitTimeInSeconds" in stopping:
        raise validation("MaxWaitTimeInSeconds above 0 is not supported when spot training is not enabled")


def _check_channels(channels: list[Record]) -> None:
    names = [channel["ChannelName"] for channel in channels]
    if len(set(names)) != len(names):
        raise validation(f"Channel names must be unique: {', '.join(names)}")
    for number, channel in enumerate(channels, 1):
        source = channel["DataSource"].get("S3DataSource")
        if source is None:
            raise unsupported("data sources other than S3DataSource")
        if source["S3DataType"] != "S3Prefix":
            raise unsupported(f"S3DataType {source['S3DataType']}")
        if channel.get("CompressionType", "None") != "None":
            raise unsupported(f"channel CompressionType {channel['CompressionType']}")
        if channel.get("InputMode", "File") == "Pipe":
            raise unsupported("InputMode Pipe")
        if channel["ChannelName"] in (".", ".."):
            raise unsupported(f"the channel name {channel['ChannelName']!r}")
        _check_s3(source["S3Uri"], f"inputDataConfig.{number}.member.dataSource.s3DataSource.s3Uri")


def _check_s3(uri: str, path: str) -> None:
    try:
        s3.split_uri(uri)
    except ValueError as exc:
        raise constraint(uri, path, "Member must be an s3:// URI") from exc
