"""The model server: ``python serve.py --model-dir DIR --port-file FILE``. A child of the local SageMaker.

It follows the HuggingFace inference toolkit (sagemaker-huggingface-inference-toolkit 2.6.0, handler_service.py and
decoder_encoder.py) and the multi-model-server 1.1.11 that runs it; tests/toolkits runs both beside this and compares.
``code/inference.py`` (or SAGEMAKER_PROGRAM) may have model_fn(model_dir), and either transform_fn(model, data,
content_type, accept) or any of input_fn(data, content_type), predict_fn(data, model), output_fn(prediction,
accept), each with an optional last argument `context`. Without model_fn a transformers pipeline is built, for
HF_TASK or the architecture in config.json. Errors in user code answer 400, as there; JSON is written without
NaN. One worker, a process of its own, has the model and takes one request at a time.

GET /ping answers 200 from the first moment on, whether the model is loaded or cannot be: so does the real one
(awslabs/multi-model-server#1027). Until the load has ended, requests wait; when it raised, each request tries again and
answers 400 with what it raises. A worker that dies is started again, each time later, and its request answers 500.
Only requirements that are not met end the server.

With ``--serverless-mb`` it plays the container of a serverless endpoint, which does not run as root and has only so
much memory: it runs as nobody, and a worker that takes more is killed. The local SageMaker prepares the files for it.
"""

import argparse
import csv
import ctypes
import http
import http.server
import importlib
import importlib.util
import inspect
import io
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil

# This file runs as a script, in the interpreter that plays the container.
callers = importlib.import_module("callers")

_JSON = "application/json"
_CSV = "text/csv"
_UNSUPPORTED = (
    "Content type %s is not supported by this framework.\n\n"
    "            Please implement input_fn to to deserialize the request data or an output_fn to\n"
    "            serialize the response. For more information, see the SageMaker Python SDK README."
)
# Pauses before a worker is started, after none, one, two ... that died (WorkerThread.java); the last one stays.
_BACKOFF_SECONDS = (0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597)
_KILL_SECONDS = 1.0
_WORKER_MINUTES = "60"
_MEMORY_POLL_SECONDS = 0.1
# Whoever runs this must be able to see these paths.
_PROBE = "import os, sys\nfor path in sys.argv[1:]: os.stat(path)"
# linux/capability.h, linux/prctl.h, linux/securebits.h
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_SECBIT_NOROOT_LOCKED = 0b11
# Arguments of each function of the toolkit, without the optional context.
_ARITIES = {"model_fn": 1, "input_fn": 2, "predict_fn": 2, "output_fn": 2, "transform_fn": 4}
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
}


class Handler:
    """One loaded model and the functions around it."""

    def __init__(self, model_dir: Path) -> None:
        self._context = SimpleNamespace(system_properties={"model_dir": str(model_dir), "gpu_id": None}, manifest={})
        self._functions: dict[str, Callable[..., Any]] = {}
        module = _user_module(model_dir)
        if module is not None:
            self._functions = {
                name: _with_context(getattr(module, name), arity, self._context)
                for name, arity in _ARITIES.items()
                if hasattr(module, name)
            }
        parts = {"input_fn", "predict_fn", "output_fn"}
        if "transform_fn" in self._functions and parts & set(self._functions):
            raise ValueError("Cannot use transform_fn implementation with input_fn, predict_fn or output_fn")
        load: Callable[..., Any] = self._functions.get("model_fn", _load_pipeline)
        self._model = load(str(model_dir))

    def respond(self, data: bytes, content_type: str | None, accept: str | None) -> tuple[bytes, str]:
        """Body and content type of the answer; raises whatever user code raises."""
        if not accept or accept == "*/*":
            accept = _JSON
        decoded: Any = data.decode("utf-8") if content_type in (_JSON, _CSV) else data
        functions = self._functions
        if "transform_fn" in functions:
            result = functions["transform_fn"](self._model, decoded, content_type, accept)
        else:
            decode: Callable[..., Any] = functions.get("input_fn", _decode)
            predict: Callable[..., Any] = functions.get("predict_fn", _predict)
            encode: Callable[..., Any] = functions.get("output_fn", _encode)
            result = encode(predict(decode(decoded, content_type), self._model), accept)
        if isinstance(result, str):
            result = result.encode("utf-8")
        elif not isinstance(result, bytes):
            result = json.dumps(result, allow_nan=False).encode("utf-8")
        return result, accept


def _with_context(function: Callable[..., Any], arity: int, context: Any) -> Callable[..., Any]:
    count = len(inspect.signature(function).parameters)
    if count == arity:
        return function
    if count == arity + 1:
        return lambda *arguments: function(*arguments, context)
    raise TypeError(f"{function.__name__} definition takes {arity} or {arity + 1} arguments but has {count}")


def _user_module(model_dir: Path) -> ModuleType | None:
    code = model_dir / "code"
    path = code / os.environ.get("SAGEMAKER_PROGRAM", "inference.py")
    if not path.is_file():
        return None
    sys.path.insert(0, str(code))
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _load_pipeline(model_dir: str) -> Any:
    task = os.environ.get("HF_TASK")
    if not task:
        config = json.loads((Path(model_dir) / "config.json").read_text(encoding="utf-8"))
        architecture = (config.get("architectures") or [""])[0]
        task = next((name for suffix, name in _TASKS.items() if architecture.endswith(suffix)), None)
        if task is None:
            raise ValueError(f"Task couldn't be inferred from {architecture!r}: set HF_TASK")
    pipeline = importlib.import_module("transformers").pipeline
    return pipeline(task, model=model_dir, tokenizer=model_dir)


def _decode(data: Any, content_type: str | None) -> Any:
    if content_type == _JSON:
        return json.loads(data)
    if content_type == _CSV:
        if not any(header in data.splitlines()[0].lower() for header in ("question", "context", "inputs")):
            raise ValueError(
                "You need to provide the correct CSV with Header columns to use it with the inference toolkit default "
                "handler. : 400"
            )
        rows = list(csv.DictReader(io.StringIO(data)))
        return {"inputs": [row["inputs"] for row in rows] if "inputs" in rows[0] else rows}
    raise ValueError(_UNSUPPORTED % content_type)


def _predict(data: Any, model: Any) -> Any:
    inputs = data.pop("inputs", data)
    parameters = data.pop("parameters", None)
    return model(inputs) if parameters is None else model(inputs, **parameters)


def _encode(prediction: Any, accept: str) -> str:
    if accept == _JSON:
        return json.dumps(
            prediction, ensure_ascii=False, allow_nan=False, indent=None, separators=(",", ":"), default=_plain
        )
    if accept == _CSV:
        rows = prediction if isinstance(prediction, list) else list(prediction)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()
    raise ValueError(_UNSUPPORTED % accept)


def _plain(value: Any) -> Any:
    """numpy and torch values know how to become Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return json.JSONEncoder().default(value)


def _work(model_dir: Path, connection: Connection) -> None:
    """A worker: load the model, then answer requests one by one until the server is gone."""
    handler: Handler | None = None
    try:
        handler = Handler(model_dir)
    except Exception:  # noqa: BLE001  as mms/model_loader.py does; the first request tries again
        traceback.print_exc()
    connection.send("loaded")
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            handler = handler or Handler(model_dir)
            answer = (200, *handler.respond(*request))
        except Exception as exc:  # noqa: BLE001  user code may raise anything; the toolkit answers 400 to all
            traceback.print_exc()
            answer = (400, _problem(400, str(exc)), _JSON)
        connection.send(answer)


def _problem(code: int, message: str) -> bytes:
    """An error as the multi-model-server writes it: with Gson, which escapes what HTML could mistake."""
    text = json.dumps({"code": code, "type": "InternalServerException", "message": message}, indent=2)
    for character in "<>&='":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode() + b"\n"


class _Worker:
    """The worker process, as the server sees it. It is killed when a load or an answer takes too long.

    It is killed too when it takes more than `memory_mb`, if that is not None.
    """

    def __init__(self, model_dir: Path, memory_mb: int | None) -> None:
        self._model_dir = model_dir
        # For a load as for an answer. The first is meant in seconds and read as minutes (ConfigManager.java).
        minutes = os.environ.get("SAGEMAKER_MODEL_SERVER_TIMEOUT", _WORKER_MINUTES)
        self._seconds = int(os.environ.get("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", 60 * int(minutes)))
        self._deaths = 0  # since a model was last loaded
        # Held until the model is loaded, then by one request at a time.
        self._lock = threading.Lock()
        self._lock.acquire()
        self._process: subprocess.Popen[bytes] | None = None
        self._restart()
        if memory_mb is not None:
            threading.Thread(target=self._watch_memory, args=(memory_mb,), name="memory", daemon=True).start()

    def ask(self, request: tuple[bytes, str | None, str | None]) -> tuple[int, bytes, str]:
        """Status, body and content type of the answer. Waits until the model is loaded, which may be never."""
        self._lock.acquire()
        try:
            self._connection.send(request)
            answer: tuple[int, bytes, str] = self._receive()
        except (EOFError, OSError):
            code = self._end()
            self._restart()  # which lets go of the lock
            status = http.HTTPStatus.INSUFFICIENT_STORAGE if code == -signal.SIGKILL else 500
            return status, _problem(status, "Worker died."), _JSON
        self._lock.release()
        return answer

    def _restart(self) -> None:
        threading.Thread(target=self._load, name="worker", daemon=True).start()

    def _load(self) -> None:
        while True:
            seconds = _BACKOFF_SECONDS[min(self._deaths, len(_BACKOFF_SECONDS) - 1)]
            if seconds:
                print(f"Worker died. Retry worker in {seconds} seconds.", flush=True)
            threading.Event().wait(seconds)
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, __file__, "--model-dir", str(self._model_dir), "--worker"]
                self._process = subprocess.Popen([*command, str(theirs.fileno())], pass_fds=[theirs.fileno()])
            self._connection = Connection(ours.detach())
            try:
                self._receive()
            except (EOFError, OSError):
                self._end()
                continue
            self._deaths = 0
            self._lock.release()
            return

    def _watch_memory(self, memory_mb: int) -> None:
        """Kill the worker when it has more in memory than its container may.

        What counts is what is resident, as in a container. The kernel's own limits count something else: RLIMIT_AS and
        RLIMIT_DATA count what is reserved, which for torch is far more, and refuse memory to a program instead of
        killing it. Processes that the worker starts are not counted.
        """
        while True:
            threading.Event().wait(_MEMORY_POLL_SECONDS)
            process = self._process
            if process is None:
                continue
            try:
                megabytes = psutil.Process(process.pid).memory_info().rss >> 20
            except psutil.Error:
                continue  # it has ended; the next worker is another process
            if megabytes > memory_mb:
                print(f"Worker killed: it took {megabytes} MB, and the endpoint has {memory_mb} MB.", flush=True)
                process.kill()

    def _receive(self) -> Any:
        if not self._connection.poll(self._seconds):
            print("Backend worker did not respond in given time", flush=True)
            raise EOFError
        return self._connection.recv()

    def _end(self) -> int:
        """Count the worker as dead and see that it is; returns its exit code, that of SIGTERM for a slow one."""
        assert self._process is not None
        self._deaths += 1
        self._connection.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -signal.SIGTERM


def _give_up_root(model_dir: Path) -> None:
    """Become a user who may only do what everybody may, for good. Who is not root stays who they are.

    That user is nobody, where nobody can reach the interpreter and the model. Where they are in a folder of root's
    own, this stays root, but without root's privileges (capabilities): then the modes of files count for root too.
    """
    if os.geteuid() != 0:
        return
    nobody = pwd.getpwnam("nobody")
    probe = [sys.executable, "-c", _PROBE, __file__, str(model_dir)]
    try:
        subprocess.run(
            probe, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], check=True, stderr=subprocess.DEVNULL
        )
    except (PermissionError, subprocess.CalledProcessError):
        if sys.platform != "linux":
            sys.exit(f"nobody but root can reach {sys.executable} and {model_dir}: start the local AWS as another user")
        _drop_capabilities()
        return
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
    if sys.platform == "linux":
        # Another user is no longer sent the signal that guard.py asked for.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _drop_capabilities() -> None:
    """Take root's privileges from this process and from all that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT_LOCKED, 0, 0, 0) or libc.capset(header, none):
        sys.exit(f"cannot give up root's privileges: {os.strerror(ctypes.get_errno())}")


class _Request(callers.GuardedRequest):  # type: ignore[name-defined,misc]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    worker: _Worker

    def do_GET(self) -> None:
        if self.path == "/ping":
            self._answer(200, b'{\n  "status": "Healthy"\n}\n', _JSON)
        else:
            self._answer(404, b"{}", _JSON)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/invocations":
            self._answer(404, b"{}", _JSON)
            return
        self._answer(*self.worker.ask((body, self.headers.get("Content-Type"), self.headers.get("Accept"))))

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        if self.path != "/ping":
            print(format % args, flush=True)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--port-file", type=Path)
    parser.add_argument("--serverless-mb", type=int, help="be the container of a serverless endpoint of this memory")
    parser.add_argument("--worker", type=int, help="be the worker, on this file descriptor")
    arguments = parser.parse_args()
    if arguments.worker is not None:
        _work(arguments.model_dir, Connection(arguments.worker))
        return
    server = _Server(("127.0.0.1", 0), _Request)
    temporary = arguments.port_file.with_suffix(".tmp")
    temporary.write_text(str(server.server_address[1]), encoding="ascii")
    temporary.replace(arguments.port_file)
    # From here on, requests wait.
    if arguments.serverless_mb is not None:
        _give_up_root(arguments.model_dir)
    requirements = arguments.model_dir / "code/requirements.txt"
    if os.path.isfile(requirements):  # noqa: PTH113  is_file() raises where the folder may not be read
        problem = importlib.import_module("requirements_check").unmet(requirements)
        if problem:
            sys.exit(problem)
    _Request.worker = _Worker(arguments.model_dir, arguments.serverless_mb)
    server.serve_forever()


if __name__ == "__main__":
    main()
