"""What Terraform makes of terraform/ with the real AWS provider, planned offline: fake credentials, the provider's own
start-up checks off, and a loopback stand-in for the one call that remains, STS GetCallerIdentity."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import package
from world import BUCKET, REGION

ROOT = Path(__file__).resolve().parents[1]
ACCOUNT = "123456789012"
RUN_SECONDS = 300
# What a person's own stack leaves beside the configuration.
NOT_CONFIGURATION = (".terraform*", "*.tfstate*", "*.tfvars", "*.tfvars.json", "backend.tf", "provider*.tf")

CALLER_IDENTITY = """<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>arn:aws:iam::{account}:user/test</Arn><UserId>AIDATEST</UserId><Account>{account}</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata><RequestId>00000000-0000-0000-0000-000000000000</RequestId></ResponseMetadata>
</GetCallerIdentityResponse>"""


def function_address(name: str, resource: str = "aws_lambda_function") -> str:
    """Where Terraform keeps a function, or what belongs to it, by the name of its folder under lambda/."""
    return f"module.lambda_{name}.module.function.{resource}.this"


class Plan:
    """A plan as JSON: what it would create, by address, and how that was configured."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        self.resources = {change["address"]: change["change"]["after"] for change in shown["resource_changes"]}
        self.configuration = shown["configuration"]["root_module"]["module_calls"]

    def __getitem__(self, address: str) -> dict[str, Any]:
        found: dict[str, Any] = self.resources[address]
        return found

    def instances(self, address: str) -> dict[str, dict[str, Any]]:
        """The instances of a resource with for_each, by key."""
        return {
            name.removeprefix(address)[2:-2]: after
            for name, after in self.resources.items()
            if name.startswith(f"{address}[")
        }

    def expression(self, module: str, resource: str, attribute: str) -> list[str]:
        """What an attribute refers to in a module's configuration: for what is known only after apply."""
        resources = self.configuration[module]["module"]["resources"]
        found = next(item for item in resources if item["address"] == resource)
        references: list[str] = found["expressions"][attribute]["references"]
        return references


@contextmanager
def sts(account: str = ACCOUNT) -> Iterator[str]:
    """The address of a server that says who the caller is."""
    body = CALLER_IDENTITY.format(account=account).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output to the test."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def plan(folder: Path, **variables: object) -> Plan:
    """Plan a stack in an empty folder; the bucket is the tests' one unless it is said otherwise."""
    package.build(ROOT, folder / "build")
    root = folder / "terraform"
    shutil.copytree(ROOT / "terraform", root, ignore=shutil.ignore_patterns(*NOT_CONFIGURATION))
    (root / "test.auto.tfvars.json").write_text(json.dumps({"bucket_name": BUCKET} | variables))
    with sts() as address:
        provider = {
            "region": REGION,
            "access_key": "test",
            "secret_key": "test",
            "skip_credentials_validation": True,
            "skip_metadata_api_check": True,
            "skip_requesting_account_id": True,
            "endpoints": [{"sts": address}],
        }
        (root / "provider.tf.json").write_text(json.dumps({"provider": {"aws": provider}}))
        terraform(root, "plan", "-input=false", "-no-color", "-out=plan")
    return Plan(json.loads(terraform(root, "show", "-json", "plan")))


def terraform(root: Path, *arguments: str) -> str:
    """Run scripts/terraform.py, which fails in words where Terraform is missing; returns what it says."""
    foreign = ("AWS_", "TF_VAR_", "TF_CLI_ARGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # The region is asked for by commands that reach AWS.
    command = [sys.executable, str(ROOT / "scripts" / "terraform.py"), "--dir", str(root), *arguments]
    answer = subprocess.run(
        command,
        env=environment | {"AWS_REGION": REGION},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout
