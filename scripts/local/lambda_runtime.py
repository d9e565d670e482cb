"""The process in which a function runs on the laptop: AWS's own runtime interface client for Python.

MiniStack starts it once per execution environment and serves the Lambda Runtime API to it, so a function is
imported, called, timed and logged (JSON or text, level, request id) by the code that does it on AWS, errors included.
Never imported: the launcher runs it with the interpreter of the local AWS, whatever Runtime the function names.

Source of the interface: Lambda developer guide, "Using the Lambda runtime API for custom runtimes".
"""

import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from awslambdaric import bootstrap
from awslambdaric.lambda_runtime_client import InvocationRequest, LambdaRuntimeClient

API = "/2018-06-01/runtime/invocation"
PARENT_CHECK_SECONDS = 0.5
# Content, on which no permission depends; everything else says what a call touches.
CONTENT = {"Body", "Message", "MessageAttributes", "MultipartUpload", "Subject"}


class RuntimeClient(LambdaRuntimeClient):  # type: ignore[misc]  # the package has no types
    """The published client, with its requests in Python, as its C extension exists for Linux only."""

    def wait_next_invocation(self) -> InvocationRequest:
        """Blocks until there is an event. Ends the process when the launcher is gone or stops it."""
        connection = http.client.HTTPConnection(self.lambda_runtime_address)
        try:
            connection.request("GET", f"{API}/next")
            response = connection.getresponse()
            body = response.read()
        except OSError:
            sys.exit("the launcher is gone")
        finally:
            connection.close()
        if response.status != http.client.OK:
            sys.exit(0)
        return InvocationRequest(
            invoke_id=response.headers["Lambda-Runtime-Aws-Request-Id"],
            x_amzn_trace_id=response.headers.get("Lambda-Runtime-Trace-Id"),
            invoked_function_arn=response.headers.get("Lambda-Runtime-Invoked-Function-Arn"),
            deadline_time_in_ms=int(response.headers["Lambda-Runtime-Deadline-Ms"]),
            client_context=None,
            cognito_identity=None,
            tenant_id=None,
            content_type="application/json",
            event_body=body,
            invocation_id=None,
        )

    def post_invocation_result(
        self, invoke_id: str, result_data: Any, content_type: str = "application/json", invocation_id: Any = None
    ) -> None:
        """Sends what the handler returned: JSON text, or bytes as they are."""
        self._post(f"{API}/{invoke_id}/response", result_data, content_type)

    def post_invocation_error(
        self, invoke_id: str, error_response_data: str, xray_fault: str, invocation_id: Any = None
    ) -> None:
        """Sends the error document (JSON text); there is no X-Ray on the laptop."""
        self._post(f"{API}/{invoke_id}/error", error_response_data, "application/json")

    def _post(self, path: str, body: str | bytes, content_type: str) -> None:
        # Everything that the handler has logged is in the pipe before this line, and the launcher reads up to it.
        print(os.environ["END_OF_INVOCATION"], flush=True)
        connection = http.client.HTTPConnection(self.lambda_runtime_address)
        try:
            data = body.encode() if isinstance(body, str) else body
            connection.request("POST", path, data, {"Content-Type": content_type})
            connection.getresponse().read()
        except OSError:
            sys.exit("the launcher is gone")
        finally:
            connection.close()


def end_with_parent() -> None:
    """Ends this process, handler running or not, soon after the launcher has died without stopping it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def record_calls(folder: str) -> None:
    """Records each call that the function makes to AWS, one JSON object a line, in a file of this process's own."""
    import boto3

    function = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
    notes = Path(folder, f"{function}-{os.getpid()}.jsonl")

    def note(params: dict[str, Any], model: Any, **_: object) -> None:
        frame = sys._getframe()
        while frame.f_back and frame.f_globals["__name__"] != "handler":
            frame = frame.f_back
        call = {
            "handler": function,
            "function": frame.f_code.co_name,
            "service": model.service_model.service_name,
            "operation": model.name,
            "parameters": {name: value for name, value in params.items() if name not in CONTENT},
        }
        with notes.open("a") as file:
            file.write(json.dumps(call, default=str) + "\n")

    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register("provide-client-params.*.*", note)


if __name__ == "__main__":
    end_with_parent()
    if "RECORD_FUNCTION_CALLS" in os.environ:
        record_calls(os.environ["RECORD_FUNCTION_CALLS"])
    # A function finds its own code and what is installed, as on AWS, and none of this project's programs.
    scripts = str(Path(__file__).resolve().parents[1])
    sys.path[:] = [os.environ["LAMBDA_TASK_ROOT"], *(folder for folder in sys.path if folder != scripts)]
    bootstrap.run(os.environ["_HANDLER"], RuntimeClient(os.environ["AWS_LAMBDA_RUNTIME_API"]))
