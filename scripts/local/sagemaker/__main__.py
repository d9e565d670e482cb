"""Command line: ``python -m local.sagemaker --help``."""

import argparse
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from . import images, quotas
from .api import Server, Service
from .events import EventSender
from .hosting import Hosting
from .logs import LogShipper
from .settings import Settings
from .store import Store
from .training import Training

log = logging.getLogger("local.sagemaker")

# How long the server, when it ends, waits for events to be delivered and for log lines to be accepted.
_EVENTS_SECONDS = 2.0
_LOGS_SECONDS = 5.0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="local.sagemaker", description="A SageMaker that trains and serves on this machine."
    )
    parser.add_argument("--port", type=int, default=0, help="loopback port (default: a free one)")
    parser.add_argument("--state", type=Path, required=True, help="folder for everything that is kept")
    parser.add_argument("--aws-endpoint", help="URL of S3 and CloudWatch Logs")
    parser.add_argument("--events-url", help="where EventBridge envelopes are POSTed")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--account", default="123456789012", help="12 digits")
    parser.add_argument("--python", default=sys.executable, help="interpreter that plays every image")
    parser.add_argument(
        "--quota",
        action="append",
        default=[],
        type=quotas.parse,
        metavar="NAME=N",
        help='account quota, e.g. "ml.m5.xlarge for training job usage=2"',
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        help="container image that exists too, beside those of terraform/images.tf in this region",
    )
    parser.add_argument(
        "--missing-type",
        action="append",
        default=[],
        metavar="TYPE",
        help="instance type that this region does not have, e.g. ml.p2.xlarge",
    )
    parser.add_argument("--parallel", type=int, default=1, help="training jobs that run at once")
    parser.add_argument("--health-check-seconds", type=float, default=480.0, help="time for a model server to come up")
    parser.add_argument("--invoke-seconds", type=float, default=60.0, help="time for a model to answer an invocation")
    parser.add_argument(
        "--cold-start-seconds",
        type=float,
        default=0.0,
        help="time until a serverless endpoint that is cold answers, on top of the model's own",
    )
    parser.add_argument(
        "--idle-seconds", type=float, default=300.0, help="time without a request after which it is cold again"
    )
    parser.add_argument(
        "--start-gate", type=Path, help="endpoints come up only while there is this file: for tests of what is Creating"
    )
    parser.add_argument(
        "--stop-grace-seconds",
        type=float,
        default=120.0,
        help="time from the stop of a training, or from its interruption, to its SIGKILL",
    )
    parser.add_argument(
        "--spot-price", type=float, default=0.3, help="what spot instances are billed at, of the price on demand"
    )
    parser.add_argument(
        "--pass-env", action="append", default=[], metavar="NAME", help="variable handed on to every program"
    )
    arguments = parser.parse_args(argv)
    if arguments.parallel < 1:
        parser.error("--parallel must be at least 1")
    if not (len(arguments.account) == 12 and arguments.account.isdigit()):
        parser.error(f"--account must be 12 digits, not {arguments.account!r}")
    return arguments


def main(argv: list[str]) -> int:
    arguments = _arguments(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, level=logging.WARNING)
    log.setLevel(logging.INFO)
    settings = Settings(
        state=arguments.state.resolve(),
        region=arguments.region,
        account=arguments.account,
        # Not resolved: the path of a virtual environment's interpreter is what makes it one.
        python=str(Path(shutil.which(arguments.python) or arguments.python).absolute()),
        aws_endpoint=arguments.aws_endpoint,
        events_url=arguments.events_url,
        quotas=dict(arguments.quota),
        parallel=arguments.parallel,
        health_check_seconds=arguments.health_check_seconds,
        invoke_seconds=arguments.invoke_seconds,
        cold_start_seconds=arguments.cold_start_seconds,
        idle_seconds=arguments.idle_seconds,
        images=images.published(arguments.region) | set(arguments.image),
        missing_types=frozenset(arguments.missing_type),
        start_gate=arguments.start_gate,
        stop_grace_seconds=arguments.stop_grace_seconds,
        spot_price=arguments.spot_price,
        pass_env=tuple(arguments.pass_env),
    )
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("another local SageMaker uses %s", settings.state)
            return 1
        return _serve(settings, arguments.port)


def _serve(settings: Settings, port: int) -> int:
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        # A second signal ends it at once: the guards end every child when this process is gone.
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)

    store = Store(settings.state)
    logs = LogShipper(settings.client("logs"))
    s3_client = settings.client("s3")
    training = Training(settings, store, s3_client, logs)
    hosting = Hosting(settings, store, s3_client, logs)
    try:
        server = Server(port, Service(settings, store, training, hosting))
    except OSError as exc:
        log.error("cannot listen on port %d: %s", port, exc)
        return 1
    hosting.start()
    training.start()
    sender = EventSender(store, settings.events_url) if settings.events_url else None
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    _write_address(settings.state / "server.json", url)
    log.info("listening on %s, state in %s, images played by %s", url, settings.state, settings.python)

    stop.wait()
    log.info("stopping")
    server.shutdown()
    training.shutdown()
    hosting.shutdown()
    if sender:
        sender.stop(_EVENTS_SECONDS)
    logs.stop(_LOGS_SECONDS)
    (settings.state / "server.json").unlink(missing_ok=True)
    log.info("stopped")
    return 0


def _write_address(path: Path, url: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
