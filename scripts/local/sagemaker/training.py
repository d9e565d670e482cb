"""Training jobs: the API calls, and the run of a job under the container contract."""

import logging
import math
import queue
import re
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from . import images, quotas, s3, toolkit
from .checkpoints import Checkpoints
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
_MAX_INSTANCES = 8
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
    "Interrupted": "The managed spot training instances were interrupted",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
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
# Of the stored job, what nobody is told: how often it began, for how long it has run in containers that are gone, and
# when the present one began.
_HIDDEN = ("Tags", "Attempts", "RunSeconds", "ContainerStartTime")
# What this server would have to ignore, by path in the request.
_UNSUPPORTED = (
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
    """Someone called StopTrainingJob, or a limit has passed while the job was waiting: then its SecondaryStatus."""


class _Interrupted(Exception):
    """The job's spot instances are gone."""


class _ServerStopping(Exception):
    """The server is shutting down; the next start decides about the job."""


class _Run:
    """A job while it runs, and whether it was asked to end, or has to; the rest: see Training.interrupt."""

    def __init__(self) -> None:
        self.stop_requested = threading.Event()
        self.interrupted = threading.Event()
        self.hears = False
        self.capacity_seconds = 0.0


class _Ended(NamedTuple):
    """How the programs of a job ended: for which limit ("": for none), and the FailureReason ("": well, or stopped)."""

    limit: str
    failure: str


class _Container(NamedTuple):
    """One host of a job, with its own folders."""

    host: str
    folder: Path
    root: Path  # what /opt/ml is
    stream: LogStream


class Training:
    """The training half of the service. `parallel` jobs run at once; the others wait as Pending."""

    def __init__(self, settings: Settings, store: Store, s3_client: Any, logs: LogShipper) -> None:
        self._settings = settings
        self._store = store
        self._s3 = s3_client
        self._logs = logs
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._runs: dict[str, _Run] = {}
        self._waiting: dict[str, threading.Timer] = {}
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
            self._check_quota(request)
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
            self._enqueue(job)
        return {"TrainingJobArn": arn}

    def describe(self, request: Record) -> Record:
        job = self._existing(request["TrainingJobName"])
        return {name: value for name, value in job.items() if name not in _HIDDEN}

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

    def interrupt(self, name: str, hears: bool = False, capacity_seconds: float = 0.0) -> None:
        """Take a running job's spot instances away, as AWS does at any time; new ones come after `capacity_seconds`.

        SageMaker announces it with SIGTERM, 120 seconds before (the grace). In the framework images no program hears of
        it, see stop (aws/sagemaker-training-toolkit#173); with `hears` it does, as in an image of one's own. Raises
        ApiError where there is nothing to interrupt.
        """
        with self._store.lock:
            job = self._existing(name)
            run = self._runs.get(name)
            if not job.get("EnableManagedSpotTraining"):
                raise validation(f"{name} is no spot training job")
            if run is None or job["SecondaryStatus"] not in ("Downloading", "Training"):
                raise validation(f"{name} has no instances to take away: {job['SecondaryStatus']}")
            run.hears, run.capacity_seconds = hears, capacity_seconds
            run.interrupted.set()

    def _existing(self, name: str) -> Record:
        job = self._store.get(TRAINING_JOBS, name)
        if job is None:
            raise validation("Requested resource not found.")
        return job

    def _check_quota(self, request: Record) -> None:
        kind, is_spot = request["ResourceConfig"]["InstanceType"], bool(request.get("EnableManagedSpotTraining"))
        quotas.check_region(self._settings.missing_types, "training-job", kind)
        used = sum(
            job["ResourceConfig"]["InstanceCount"]
            for job in self._store.all(TRAINING_JOBS)
            if job["TrainingJobStatus"] not in _TERMINAL
            and job["ResourceConfig"]["InstanceType"] == kind
            and bool(job.get("EnableManagedSpotTraining")) == is_spot
        )
        name = f"{kind} for {'spot ' if is_spot else ''}training job usage"
        quotas.check(self._settings.quotas, name, used, request["ResourceConfig"]["InstanceCount"])

    def _enqueue(self, job: Record) -> None:
        """Have a worker run the job; one that still waits for its instances when its time is over is stopped."""
        self._queue.put(job["TrainingJobName"])
        if until := _waits_until(job):
            timer = threading.Timer(max(0.0, until - time.time()), self._end_waiting, [job["TrainingJobName"]])
            timer.daemon = True
            timer.start()
            self._waiting[job["TrainingJobName"]] = timer

    def _end_waiting(self, name: str) -> None:
        with self._store.lock:
            job = self._existing(name)
            if self._waiting.pop(name, None) and job["TrainingJobStatus"] == "InProgress":
                self._move(job, "Stopped", "MaxWaitTimeExceeded")

    # ---- Life of the service ---------------------------------------------------------------------------

    def start(self) -> None:
        """Continue what an earlier server left, oldest first, then run jobs."""
        with self._store.lock:
            jobs = sorted(self._store.all(TRAINING_JOBS), key=lambda job: job["CreationTime"])
            for job in jobs:
                if job["TrainingJobStatus"] in _TERMINAL:
                    continue
                retries = job.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
                interruptions = [step["Status"] for step in job["SecondaryStatusTransitions"]].count("Interrupted")
                if job["TrainingJobStatus"] == "Stopping":
                    self._move(job, "Stopped", "Stopped")
                elif "ContainerStartTime" not in job:  # not yet, or not again
                    self._enqueue(job)
                elif job["Attempts"] - interruptions <= retries:
                    self._leave_container(job, job["LastModifiedTime"])  # what is known of it
                    self._move(job, "InProgress", "Restarting")
                    self._enqueue(job)
                else:
                    self._move(job, "Failed", "Failed", INTERNAL_ERROR)
        for worker in self._workers:
            worker.start()

    def shutdown(self) -> None:
        """Kill what runs; the jobs stay as they are, and the next start decides about them."""
        self._shutdown.set()
        with self._store.lock:
            self._waiting.clear()
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
                if timer := self._waiting.pop(name, None):
                    timer.cancel()
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
        try:
            if job["SecondaryStatus"] == "Pending":
                self._advance(name, run, "Starting")
            while True:
                try:
                    self._run_once(self._existing(name), run)
                    return
                except _Interrupted:
                    self._wait_for_capacity(name, run)
        except _JobStopped as exc:
            self._change(name, "Stopped", str(exc) or "Stopped")
        except _JobFailed as exc:
            self._change(name, "Failed", "Failed", str(exc)[:_MAX_REASON_CHARACTERS])
        except _ServerStopping:
            log.info("training job %s interrupted: the server stops", name)
            raise
        except Exception:
            log.exception("training job %s: error of this server", name)
            self._change(name, "Failed", "Failed", INTERNAL_ERROR)

    def _run_once(self, job: Record, run: _Run) -> None:
        """A job in new containers, one for each of its hosts, to its end. Raises _Interrupted."""
        name = job["TrainingJobName"]
        folder = self._settings.state / "jobs" / f"{name}.{job['Attempts']}"
        containers = [self._container(name, folder, host) for host in toolkit.hosts_of(job)]
        try:
            # "Has started" and the attempt are one write: a restart must not rerun a job on its own.
            started = now()
            begun = {"TrainingStartTime": job.get("TrainingStartTime", started), "ContainerStartTime": started}
            self._advance(name, run, "Downloading", **begun, Attempts=job["Attempts"] + 1)
            checkpoints: list[Checkpoints] = []
            try:
                for container in containers:
                    self._prepare(job, run, container)
                    checkpoints += self._restore(job, container)
                self._advance(name, run, "Training")
                ended = self._train(job, run, containers, started)
            finally:
                for each in checkpoints:
                    each.stop()
            self._change(name, None, "Uploading")
            self._upload(job, containers, with_model=not ended.failure)
            if ended.failure:
                raise _JobFailed(ended.failure)
            shutil.rmtree(folder)
            if ended.limit:
                self._change(name, "Stopped", ended.limit)
            else:
                self._complete(name, run)
        except _JobFailed:
            log.info("training job %s: its folder is kept: %s", name, folder)
            raise
        except _Interrupted:
            shutil.rmtree(folder)
            raise
        finally:
            for container in containers:
                container.stream.close()

    def _container(self, name: str, folder: Path, host: str) -> _Container:
        """The first host's folder is the job's; those of the others are in it."""
        is_first = host == "algo-1"
        folder, file = (folder, f"{name}.log") if is_first else (folder / host, f"{name}.{host}.log")
        stream = self._logs.open(LOG_GROUP, f"{name}/{host}-{int(time.time())}", self._settings.state / "logs" / file)
        return _Container(host, folder, folder / "opt/ml", stream)

    def _restore(self, job: Record, container: _Container) -> list[Checkpoints]:
        """Start copying a container's checkpoints, from S3 first; [] for a job without."""
        if "CheckpointConfig" not in job:
            return []
        folder = Path(toolkit.checkpoint_path(job, container.root))
        checkpoints = Checkpoints(self._s3, job["CheckpointConfig"]["S3Uri"], folder)
        try:
            checkpoints.start()
        except s3.S3Error as exc:
            raise _JobFailed(f"ClientError: Checkpoint download failed: {exc}") from exc
        return [checkpoints]

    def _wait_for_capacity(self, name: str, run: _Run) -> None:
        """From an interruption to the next instances. Raises _JobStopped when somebody or a limit ends that."""
        with self._store.lock:
            job = self._existing(name)
            self._leave_container(job, now())
            self._move(job, job["TrainingJobStatus"], "Interrupted")
            capacity_at = time.monotonic() + run.capacity_seconds
            run.interrupted.clear()
        if job["RunSeconds"] >= _max_runtime(job):
            raise _JobStopped("MaxRuntimeExceeded")
        until = _waits_until(job)
        while (left := capacity_at - time.monotonic()) > 0:
            run.stop_requested.wait(min(left, _POLL_SECONDS))
            self._check_stop(run)
            if until and time.time() >= until:
                raise _JobStopped("MaxWaitTimeExceeded")
        self._advance(name, run, "Starting")

    def _leave_container(self, job: Record, at: float) -> None:
        """Add the time in the present container, until `at`, to that of those before."""
        began = job.pop("ContainerStartTime", at)
        job["RunSeconds"] = job.get("RunSeconds", 0.0) + max(0.0, at - began)

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
                self._leave_container(job, at)
                price = self._settings.spot_price if job.get("EnableManagedSpotTraining") else 1.0
                job["TrainingTimeInSeconds"] = max(1, math.ceil(job["RunSeconds"]))
                job["BillableTimeInSeconds"] = max(1, math.ceil(job["RunSeconds"] * price))
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
        if run.interrupted.is_set():
            raise _Interrupted

    def _prepare(self, job: Record, run: _Run, container: _Container) -> None:
        """Everything that is there before the program starts: tree, channels, code, requirements."""
        host, _, root, stream = container
        toolkit.write_config(root, job, host)
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
        child = Child(command, env=_environment(self._settings), cwd=root, on_line=lines.append)
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

    def _train(self, job: Record, run: _Run, containers: list[_Container], started: float) -> _Ended:
        """Run the program in each container, until all have ended or one has failed. Raises _Interrupted."""
        metrics = _Metrics(job["AlgorithmSpecification"].get("MetricDefinitions", []))
        port = _free_port()
        programs = [_Program(self._settings, job, container, port, metrics) for container in containers]
        limits = {"MaxRuntimeExceeded": started + _max_runtime(job) - job.get("RunSeconds", 0.0)}
        if until := _waits_until(job):
            limits["MaxWaitTimeExceeded"] = until
        why, failed = self._watch(run, programs, limits)
        if self._shutdown.is_set():
            raise _ServerStopping
        # Those that were told end as they like.
        if why == "interrupted" and (failed or run.hears) and not run.stop_requested.is_set():
            raise _Interrupted
        self._set_members(job["TrainingJobName"], FinalMetricDataList=metrics.final())
        return _Ended(why if why in limits else "", failed.reason() if failed and not why else "")

    def _watch(self, run: _Run, programs: list["_Program"], limits: dict[str, float]) -> tuple[str, "_Program | None"]:
        """Wait until every program has ended: why they had to, and the first that has failed, which ends the others.

        Why: "" of their own accord, "stopped", "interrupted" or the limit that has passed.
        """
        why, failed = "", None
        kill_at: float | None = None
        while running := [program for program in programs if not program.child.ended.is_set()]:
            running[0].child.ended.wait(_POLL_SECONDS)
            failed = failed or next((program for program in programs if program.has_failed), None)
            if not why and not failed:
                passed = [limit for limit, at in limits.items() if time.time() >= at]
                if run.stop_requested.is_set():
                    why = "stopped"
                elif passed:
                    why = min(passed, key=limits.__getitem__)
                elif run.interrupted.is_set():
                    why = "interrupted"
                if why:
                    kill_at = time.monotonic() + self._settings.stop_grace_seconds
                if why == "interrupted" and run.hears:
                    for program in running:
                        program.child.terminate()
            is_over = kill_at is not None and time.monotonic() >= kill_at
            if self._shutdown.is_set() or is_over or (failed and not why):
                for program in running:
                    program.child.kill()
        return why, failed or next((program for program in programs if program.has_failed), None)

    def _set_members(self, name: str, **members: Any) -> None:
        """Set members of the stored job that do not change its status."""
        with self._store.lock:
            self._store.put(TRAINING_JOBS, name, {**self._existing(name), **members})

    def _upload(self, job: Record, containers: list[_Container], with_model: bool) -> None:
        """The two archives. An empty model folder gives no object, but still a ModelArtifacts, as on AWS.

        SageMaker puts the folders of all hosts together; this server refuses what is not on the first one.
        """
        for host, _, root, _ in containers[1:]:
            if any(path for name in ("model", "output/data") for path in (root / name).iterdir()):
                raise _JobFailed(f"Local SageMaker does not support output of other hosts than algo-1: {host} has some")
        folder = containers[0].folder
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


class _Program:
    """The training program in one container, as the toolkit runs it."""

    def __init__(self, settings: Settings, job: Record, container: _Container, port: int, metrics: "_Metrics") -> None:
        host, _, self._root, self._stream = container
        self._metrics = metrics
        self._printed: tuple[list[str], list[str]] = ([], [])
        self._lock = threading.Lock()
        parameters = job["HyperParameters"]
        self._line = toolkit.shell_command(settings.python, toolkit.program_name(parameters), parameters)
        self._stream.write(f"Invoking script with the following command: {self._line}")
        own = {name: toolkit.local_path(value, self._root) for name, value in job.get("Environment", {}).items()}
        environment = _environment(settings) | toolkit.TRAINING_IMAGE | own
        self.child = Child(
            ["/bin/sh", "-c", self._line],
            env=environment | toolkit.training_environment(self._root, job, settings.python, host, port),
            cwd=self._root / "code",
            on_line=lambda text: self._on_line(text, self._printed[0]),
            on_error=lambda text: self._on_line(text, self._printed[1]),
        )

    def _on_line(self, text: str, lines: list[str]) -> None:
        with self._lock:
            self._stream.write(text)
            self._metrics.read(text)
        lines.append(text)

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, and not well."""
        return bool(self.child.exit_code)

    def reason(self) -> str:
        """The FailureReason of a program that has failed on its own."""
        code = self.child.exit_code or 0
        text = _failure(self._root / "output/failure", "ExecuteUserScriptError", code, self._line, self._printed)
        return f"AlgorithmError: {text}, exit code: {_TOOLKIT_FAILED}"


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


def _environment(settings: Settings) -> dict[str, str]:
    """What every container has."""
    return toolkit.base_environment(settings.python, settings.region, settings.aws_endpoint, settings.pass_env)


def _free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _max_runtime(job: Record) -> int:
    """How many seconds a job may run, in all its containers."""
    seconds: int = job["StoppingCondition"].get("MaxRuntimeInSeconds", _DEFAULT_MAX_RUNTIME_SECONDS)
    return seconds


def _waits_until(job: Record) -> float:
    """When a spot job must be done, in epoch seconds; 0: it is none."""
    wait = job["StoppingCondition"].get("MaxWaitTimeInSeconds", 0)
    return float(job["CreationTime"] + wait) if wait else 0.0


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
    _check_checkpoints(request.get("CheckpointConfig"))
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
    if not 1 <= resources["InstanceCount"] <= _MAX_INSTANCES:
        raise unsupported(f"{resources['InstanceCount']} training instances, only 1 to {_MAX_INSTANCES}")


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
        # Text: aws/amazon-sagemaker-examples issue 869, aws/sagemaker-python-sdk issue 4140.
        raise validation(
            "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true"
        )


def _check_checkpoints(config: Record | None) -> None:
    if config is None:
        return
    _check_s3(config["S3Uri"], "checkpointConfig.s3Uri")
    path = config.get("LocalPath", toolkit.CHECKPOINTS)
    if ".." in Path(path).parts or not path.startswith(f"{toolkit.CONTAINER_ROOT}/"):
        raise unsupported(f"checkpoints in {path}, outside {toolkit.CONTAINER_ROOT}")


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
