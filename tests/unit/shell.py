"""A person at a shell, before a stack in a fresh world: for the tests of the commands.

The bucket, queue and identity are moto's, SageMaker is the strict fake, and what is sent to the functions is kept;
rollback and resume are followed to their end by the real deployment orchestrator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID

from fake_sagemaker import FakeSageMaker, refusal
from mlops import cli
from mlops.records import PAUSED_KEY
from test_deployment_orchestrator import ARTIFACT, FIRST, SECOND, approved_key, record_of
from world import BUCKET, ENDPOINT, REGION, TOPIC_ARN, Around, Context, World

READS = ("Get", "Head", "List", "Describe")
FUNCTIONS = {"training": "train-function", "evaluator": "judge-function", "deployer": "deploy-function"}
RULES = {"uploads": "rule-uploads", "sweep": "rule-sweep"}
FUNCTION_ARN = f"arn:aws:lambda:{REGION}:{DEFAULT_ACCOUNT_ID}:function"
SWEEP = {"source": "sweep"}
CREATED = datetime(2026, 11, 24, tzinfo=UTC)


class Account(FakeSageMaker):
    """The fake with the calls that only people's commands make."""

    def get_paginator(self, operation: str) -> Any:
        def paginate(PaginationConfig: dict[str, int] | None = None, **request: Any) -> Iterator[dict[str, Any]]:
            """All in one page: PaginationConfig is the SDK's, and goes to no AWS."""
            return iter([getattr(self, operation)(**request)])

        return SimpleNamespace(paginate=paginate)

    def _list_endpoints(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted = [item for name, item in self.endpoints.items() if request.get("NameContains", "") in name]
        names = ("EndpointName", "EndpointArn", "EndpointStatus", "CreationTime")
        return {
            "Endpoints": [
                {"CreationTime": CREATED, **{name: item[name] for name in names if name in item}} for item in wanted
            ]
        }

    def _list_training_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        jobs = [job for job in self.jobs.values() if job["TrainingJobStatus"] == request["StatusEquals"]]
        return {"TrainingJobSummaries": jobs}

    def _stop_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.jobs[request["TrainingJobName"]]["TrainingJobStatus"] != "InProgress":
            raise refusal("StopTrainingJob", "ValidationException", "The request was rejected: not in progress")
        self.end_job(request["TrainingJobName"], "Stopped")
        return {}

    def _list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        for job in self.jobs.values():
            if job["TrainingJobArn"] == request["ResourceArn"]:
                return {"Tags": job["Tags"]}
        return super()._list_tags(request)

    def run_job(self, name: str, stack: str = BUCKET) -> None:
        """A training job that runs; only what the commands look at."""
        self.jobs[name] = {
            "TrainingJobName": name,
            "TrainingJobArn": f"{self._arn}training-job/{name}",
            "TrainingJobStatus": "InProgress",
            "Tags": [{"Key": "Stack", "Value": stack}],
        }


class Watched:
    """A client whose calls can be interrupted, as those of the handlers."""

    def __init__(self, client: Any, around: Around) -> None:
        self._client, self._around = client, around

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**request: Any) -> Any:
            after = self._around("".join(part.capitalize() for part in name.split("_")))
            answer = getattr(self._client, name)(**request)
            after()
            return answer

        return call


class Lambda:
    """Keeps what is sent to functions."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.environment: dict[str, str] = {"TEXT_COLUMN": "text", "LABEL_COLUMN": "label"}

    def get_function_configuration(self, *, FunctionName: str) -> dict[str, Any]:
        assert FunctionName == FUNCTIONS["training"]
        return {"FunctionName": FunctionName, "Environment": {"Variables": self.environment}}

    def invoke(self, *, FunctionName: str, InvocationType: str, Payload: bytes) -> dict[str, int]:
        if InvocationType == "DryRun":
            return {"StatusCode": 204}
        assert InvocationType == "Event"
        self.sent.append((FunctionName, json.loads(Payload)))
        return {"StatusCode": 202}


class Events:
    """EventBridge's rules on which an upload is seen. faults: "disabled", "gone" or "no target", by rule."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}

    def _check(self, operation: str, rule: str) -> None:
        assert rule in RULES.values()
        if self.faults.get(rule) == "gone":
            raise refusal(operation, "ResourceNotFoundException", f"Rule {rule} does not exist on EventBus default.")

    def describe_rule(self, *, Name: str) -> dict[str, str]:
        self._check("DescribeRule", Name)
        return {"Name": Name, "State": "DISABLED" if self.faults.get(Name) == "disabled" else "ENABLED"}

    def list_targets_by_rule(self, *, Rule: str) -> dict[str, Any]:
        self._check("ListTargetsByRule", Rule)
        names = ("deployer",) if self.faults.get(Rule) == "no target" else FUNCTIONS
        return {"Targets": [{"Id": name, "Arn": f"{FUNCTION_ARN}:{FUNCTIONS[name]}"} for name in names]}


class Shell:
    """A person at a shell, before a stack in a fresh world."""

    def __init__(self, world: World, deployer: ModuleType, sqs: Any, sts: Any) -> None:
        self.world = world
        self.sagemaker = world.sagemaker = Account(REGION, DEFAULT_ACCOUNT_ID, world.around)
        self.functions = Lambda()
        self.events = Events()
        self.sqs = sqs
        self.queue = self.sqs.create_queue(QueueName="failures")["QueueUrl"]
        clients = {
            "sagemaker": self.sagemaker,
            "s3": world.client("s3"),
            "events": Watched(self.events, world.around),
            "lambda": Watched(self.functions, world.around),
            "sqs": Watched(self.sqs, world.around),
            "sts": sts,
            "sns": world.client("sns"),
        }
        self.target = SimpleNamespace(
            where="a test",
            bucket=BUCKET,
            functions=FUNCTIONS,
            environment={},
            outputs={
                "topic_arn": TOPIC_ARN,
                "failure_queue_url": self.queue,
                "project_name": "mlops",
                "rule_names": RULES,
            },
            endpoint_of=lambda model: ENDPOINT if model == "default" else f"{ENDPOINT}-{model}",
            client=clients.__getitem__,
        )
        self._deployer = deployer
        self._delivered = 0

    # --- what a person does -------------------------------------------------------------------------

    def run(self, *arguments: str) -> int:
        return cli.main(list(arguments))

    # --- what happens meanwhile ---------------------------------------------------------------------

    def deploy(self, event: dict[str, Any]) -> str:
        return str(self._deployer.lambda_handler(event, Context(f"request {len(self.world.around.calls)}"))["outcome"])

    def go_live(self, *jobs: str) -> None:
        """Models are approved, deployed and confirmed, one after the other."""
        for job in jobs:
            self.deploy(self.world.upload(approved_key(job), ARTIFACT))
            self.settle()
            assert self.served() == job

    def settle(self) -> None:
        """What was sent to the deployment orchestrator arrives, the endpoint comes up, and its event arrives."""
        for function, payload in self.functions.sent[self._delivered :]:
            if function == FUNCTIONS["deployer"] and payload != SWEEP:
                self.deploy(payload)
        self._delivered = len(self.functions.sent)
        if self.sagemaker.endpoints[ENDPOINT]["EndpointStatus"] != "InService":
            self.sagemaker.come_up(ENDPOINT)
        self.deploy(self.world.endpoint_event())

    def served(self) -> str:
        endpoint = self.sagemaker.endpoints[ENDPOINT]
        assert endpoint["EndpointStatus"] == "InService"
        return str(endpoint["EndpointConfigName"].rpartition("-")[0])

    def state_of(self, job: str) -> str:
        return str(record_of(self.world, job)["state"])

    def is_paused(self) -> bool:
        return bool(self.world.keys(PAUSED_KEY))

    def subjects(self) -> list[str]:
        return [email.subject.partition(":")[0] for email in self.world.emails()]


# --- what the tests prepare ---------------------------------------------------------------------------


def switched_by_hand(shell: Shell) -> None:
    shell.go_live(FIRST)
    shell.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"] = "by-hand"


def paused(shell: Shell) -> None:
    shell.go_live(FIRST, SECOND)
    assert shell.run("pause", "--yes") == 0


def ended_job(shell: Shell, job: str = FIRST, verdict: str = "failed") -> str:
    """A training job with its snapshot and its decision."""
    source = {"schema": 1, "job": job, "model": "reviews", "key": "data/train/reviews/x.csv", "size": 4}
    shell.world.put(f"data/snapshots/{job}/data.csv", b"text,label\n")
    shell.world.put(f"data/snapshots/{job}/source.json", source)
    shell.world.put(f"data/snapshots/{job}/started.json", {"job": job})
    decide(shell, job, verdict)
    return job


def decide(shell: Shell, job: str, verdict: str = "failed") -> None:
    shell.world.put(f"models/decisions/{job}.json", {"job": job, "verdict": verdict})


def snapshots(shell: Shell) -> list[str]:
    return sorted({key.split("/")[2] for key in shell.world.keys("data/snapshots/")})


def envelope(function: str, payload: Any, request_id: str = "request-1") -> dict[str, Any]:
    """Lambda's record of a failed asynchronous invocation."""
    context = {
        "requestId": request_id,
        "functionArn": f"{FUNCTION_ARN}:{function}:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 3,
    }
    response = {"errorMessage": "AccessDenied", "errorType": "ClientError"}
    return {"version": "1.0", "requestContext": context, "requestPayload": payload, "responsePayload": response}


def send(shell: Shell, body: Any, **attributes: str) -> None:
    typed = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
    text = body if isinstance(body, str) else json.dumps(body)
    shell.sqs.send_message(QueueUrl=shell.queue, MessageBody=text, MessageAttributes=typed)


def dead_letter(shell: Shell, event: dict[str, Any], function: str) -> None:
    """What EventBridge leaves in the queue when it cannot invoke a function."""
    rule = f"arn:aws:events:{REGION}:{DEFAULT_ACCOUNT_ID}:rule/uploads"
    send(shell, event, RULE_ARN=rule, TARGET_ARN=f"{FUNCTION_ARN}:{function}", ERROR_CODE="NO_PERMISSIONS")


def waiting_messages(shell: Shell) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = shell.sqs.get_queue_attributes(QueueUrl=shell.queue, AttributeNames=names)["Attributes"]
    return sum(int(value) for value in attributes.values())
