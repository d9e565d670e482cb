"""The faults that a call to AWS can meet, each as the SDK shows it to a handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

from fake_sagemaker import AnswerLost, refusal
from world import Killed

READS = ("Get", "Head", "List", "Describe", "Invoke")
S3_CALLS = ("Object", "Multipart", "UploadPart")
# What ends an invocation by a fault.
ERRORS = (ClientError, BotoCoreError, Killed)


@dataclass(frozen=True)
class Fault:
    """What a call to AWS meets: the error that the SDK raises after its own retries, before or after the effect."""

    name: str
    error: Callable[[str], BaseException]
    after_the_effect: bool = False

    def strike(self, operation: str) -> None:
        raise self.error(operation)


def answer(code: str, text: str, status: int) -> Callable[[str], BaseException]:
    """An error answer of AWS. One to a HEAD request has no body, so the SDK knows no more than the status."""

    def error(operation: str) -> BaseException:
        return refusal(operation, str(status) if operation.startswith("Head") else code, text, status)

    return error


def faults_of(operation: str) -> Iterator[Fault]:
    """The faults that a call can meet, with the errors of its service (API references: common errors, Publish)."""
    throttled, broken, denied = answers(operation)
    yield Fault("throttled", throttled)
    yield Fault("5xx", broken)
    yield Fault("access denied", denied)
    yield Fault("connect time-out", lambda _: ConnectTimeoutError(endpoint_url="https://aws"))
    yield Fault("killed before it", lambda _: Killed())
    yield from conflicts(operation)
    if operation.startswith(READS):
        yield Fault("read time-out", lambda _: ReadTimeoutError(endpoint_url="https://aws"))
        return
    yield Fault("read time-out after the effect", lambda _: ReadTimeoutError(endpoint_url="https://aws"), True)
    yield Fault("5xx after the effect", broken, True)
    # The SDK's first try went through, and its answer was lost; its last one was throttled.
    yield Fault("throttled after the effect", throttled, True)
    yield Fault("answer lost, call repeated by the SDK", lambda _: AnswerLost(), True)
    yield Fault("killed after it", lambda _: Killed(), True)


def answers(operation: str) -> tuple[Callable[[str], BaseException], ...]:
    """How the service of an operation says: throttled, an internal error, access denied."""
    if any(part in operation for part in S3_CALLS):
        return (
            answer("SlowDown", "Please reduce your request rate.", 503),
            answer("InternalError", "We encountered an internal error. Please try again.", 500),
            answer("AccessDenied", "Access Denied", 403),
        )
    if operation == "Publish":
        return (
            answer("Throttled", "Rate exceeded", 429),
            answer("InternalError", "Internal server error", 500),
            answer("AuthorizationError", "User is not authorized to perform: SNS:Publish", 403),
        )
    return (
        answer("ThrottlingException", "Rate exceeded", 400),
        answer("InternalFailure", "The request processing has failed because of an unknown error.", 500),
        answer("AccessDeniedException", f"User is not authorized to perform: sagemaker:{operation}", 400),
    )


def conflicts(operation: str) -> Iterator[Fault]:
    """What a call meets when another one is just at the same thing, even if that comes to nothing."""
    if operation in ("PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject"):
        yield Fault("conflict", answer("OperationAborted", "A conflicting conditional operation is in progress", 409))
    if operation == "PutObject":
        text = "The conditional request cannot succeed due to a conflicting operation against this resource."
        yield Fault("conflict of conditional writes", answer("ConditionalRequestConflict", text, 409))
    if operation in ("UpdateEndpoint", "DeleteEndpoint"):
        text = 'Cannot update in-progress endpoint "arn:aws:sagemaker:us-east-1:123456789012:endpoint/x".'
        yield Fault("conflict", answer("ValidationException", text, 400))
