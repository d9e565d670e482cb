"""The model server: ``python serve.py --model-dir DIR --port-file FILE``. A child of the local SageMaker.

It follows the HuggingFace inference toolkit (aws/sagemaker-huggingface-inference-toolkit, handler_service.py):
``code/inference.py`` (or SAGEMAKER_PROGRAM) may have model_fn(model_dir), and either transform_fn(model, data,
content_type, accept) or any of input_fn(data, content_type), predict_fn(data, model), output_fn(prediction,
accept), each with an optional last argument `context`. Without model_fn a transformers pipeline is built, for
HF_TASK or the architecture in config.json. Errors in user code answer 400, as there; JSON is written without
NaN. The model is loaded before the port is opened, so GET /ping answers 200 from the first moment on.
One prediction runs at a time (fast tokenizers are not safe for concurrent use).
"""

import argparse
import csv
import http.server
import importlib
import importlib.util
import inspect
import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_JSON = "application/json"
_TEXT_TYPES = (_JSON, "text/csv", "text/plain")
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
        self._lock = threading.Lock()
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

    def respond(self, data: bytes, content_type: str, accept: str) -> tuple[bytes, str]:
        """Body and content type of the answer; raises whatever user code raises."""
        if accept in ("", "*/*"):
            accept = _JSON
        decoded: Any = data.decode("utf-8") if content_type.split(";")[0] in _TEXT_TYPES else data
        functions = self._functions
        with self._lock:
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
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
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


def _decode(data: Any, content_type: str) -> Any:
    kind = content_type.split(";")[0]
    if kind == _JSON:
        return json.loads(data)
    if kind == "text/csv":
        return {"inputs": [dict(row) for row in csv.DictReader(io.StringIO(data))]}
    if kind == "text/plain":
        return {"inputs": data}
    raise ValueError(f"Content type {content_type} is not supported by this framework.")


def _predict(data: Any, model: Any) -> Any:
    if not isinstance(data, dict):
        return model(data)
    inputs = data.pop("inputs", data)
    parameters = data.pop("parameters", None) or {}
    return model(inputs, **parameters)


def _encode(prediction: Any, accept: str) -> str:
    if accept.split(";")[0] != _JSON:
        raise ValueError(f"Accept type {accept} is not supported by this framework.")

    def plain(value: Any) -> Any:
        """numpy and torch values know how to become Python's own."""
        return value.tolist()

    return json.dumps(prediction, ensure_ascii=False, allow_nan=False, default=plain)


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    handler: Handler

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/ping" else 404, b"{}", _JSON)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/invocations":
            self._answer(404, b"{}", _JSON)
            return
        try:
            answer, kind = self.handler.respond(
                body, self.headers.get("Content-Type") or _JSON, self.headers.get("Accept") or ""
            )
        except Exception as exc:  # noqa: BLE001  user code may raise anything; the toolkit answers 400 to all
            traceback.print_exc()
            problem = {"code": 400, "type": "InternalServerException", "message": str(exc)}
            self._answer(400, json.dumps(problem, indent=2).encode() + b"\n", _JSON)
        else:
            self._answer(200, answer, kind)

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
    parser.add_argument("--port-file", type=Path, required=True)
    arguments = parser.parse_args()
    requirements = arguments.model_dir / "code/requirements.txt"
    if requirements.is_file():
        problem = importlib.import_module("requirements_check").unmet(requirements)
        if problem:
            sys.exit(problem)
    _Request.handler = Handler(arguments.model_dir)
    server = _Server(("127.0.0.1", 0), _Request)
    temporary = arguments.port_file.with_suffix(".tmp")
    temporary.write_text(str(server.server_address[1]), encoding="ascii")
    temporary.replace(arguments.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
