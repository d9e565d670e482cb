"""mlops redrive: send the events that failed to their functions again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from mlops.target import SWEEP, Target, error_code, invoke
from mlops.text import say

# Longer than one message takes; a command that is interrupted gives its messages back after this time.
IN_HAND_SECONDS = 120
# A long poll asks all of SQS's servers; a short one may find nothing where there is something (ReceiveMessage).
POLL_SECONDS = 2


class LeftAlone(Exception):
    """A message of the failed-events queue that is not sent again; the text says why."""


@dataclass(frozen=True)
class FailedEvent:
    """A message of the failed-events queue: what to invoke with what, and what it was about, for people.

    identities: what identifies the same event when it comes back: its own id, the id of the request that failed.
    """

    function: str
    payload: dict[str, Any]
    text: str
    identities: set[str]


def parse_failed(target: Target, sqs_message: Mapping[str, Any]) -> FailedEvent:
    """Read a message of either shape. Raises LeftAlone, saying what is odd about it.

    EventBridge's dead letter: the event, with the attributes RULE_ARN, TARGET_ARN, ERROR_CODE, ERROR_MESSAGE
    (EventBridge user guide, "Using dead-letter queues"). Lambda's record of a failed asynchronous invocation:
    requestContext, requestPayload, responsePayload (Lambda developer guide, "Capturing records").
    """
    try:
        body = json.loads(sqs_message["Body"])
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise LeftAlone("its body is not a JSON object")
    attributes = {
        name: value.get("StringValue", "") for name, value in sqs_message.get("MessageAttributes", {}).items()
    }
    if "TARGET_ARN" in attributes:
        function = own_function(target, attributes["TARGET_ARN"])
        # A schedule's own event in place of the constant text that its target gets.
        payload = dict(SWEEP) if body.get("source") == "aws.events" else body
        why = f"EventBridge could not deliver it: {attributes.get('ERROR_CODE', 'unknown reason')}"
        return FailedEvent(function, payload, f"{describe_event(body)} ({why})", event_ids(function, body))
    context, event = body.get("requestContext"), body.get("requestPayload")
    if not isinstance(context, dict) or not isinstance(event, dict):
        raise LeftAlone("it is neither an event that EventBridge could not deliver nor Lambda's record of a failure")
    function = own_function(target, str(context.get("functionArn", "")))
    request_id = str(context.get("requestId", ""))
    if not request_id:
        raise LeftAlone("Lambda's record lacks the requestId")
    # Sent again before, and failed again: the request that failed first counts, as it holds the leases.
    while isinstance(event.get("event"), dict) and "redrive_of" in event:
        request_id, event = str(event["redrive_of"]), event["event"]
    response = body.get("responsePayload")
    error = response.get("errorMessage", "") if isinstance(response, dict) else ""
    why = f"failed: {error or context.get('condition', 'unknown reason')}"
    payload = {"redrive_of": request_id, "event": event}
    identities = {request_id} | event_ids(function, event)
    return FailedEvent(function, payload, f"{describe_event(event)} ({why:.200})", identities)


def event_ids(function: str, event: Mapping[str, Any]) -> set[str]:
    """The event's own id, for one function: an event may fail in several."""
    return {f"{function} {event['id']}"} if event.get("id") else set()


def own_function(target: Target, arn: str) -> str:
    """The name of one of this stack's functions from its ARN, qualified or not. Raises LeftAlone for any other."""
    partition, _, region, account = str(target.outputs["topic_arn"]).split(":")[1:5]
    prefix = f"arn:{partition}:lambda:{region}:{account}:function:"
    name = arn.removeprefix(prefix).split(":")[0] if arn.startswith(prefix) else ""
    if name not in target.functions.values():
        raise LeftAlone(f"it is for {arn or 'no function'}, which is none of this stack's")
    return name


def describe_event(event: Mapping[str, Any]) -> str:
    """An event in a few words: its kind, and the thing that it is about."""
    detail = event.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    thing = detail.get("object")
    key = thing.get("key") if isinstance(thing, dict) else None
    about = key or detail.get("TrainingJobName") or detail.get("EndpointName") or ""
    return f"{event.get('detail-type') or event.get('source') or 'event'} {about}".strip()


def redrive(target: Target) -> int:
    """Send every failed event to its function again; the exit status: 1 when messages are left in the queue.

    A message is deleted once Lambda has accepted its event: interrupted in between, the event is sent twice,
    which is harmless. What fails again comes back to the queue, and stays there for the next run.
    """
    sqs, url = target.client("sqs"), target.outputs["failure_queue_url"]
    short = {function: name for name, function in target.functions.items()}
    sent: set[str] = set()
    done: set[str] = set()
    left: dict[str, str] = {}
    while True:
        answer = sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            VisibilityTimeout=IN_HAND_SECONDS,
            WaitTimeSeconds=POLL_SECONDS,
        )
        messages = answer.get("Messages", [])
        if not messages:
            break
        for item in messages:
            if item["MessageId"] in done:
                # SQS delivers at least once, now and then even a deleted message.
                continue
            try:
                failed = parse_failed(target, item)
                if failed.identities & sent:
                    raise LeftAlone(f"it was sent again just now, and failed again: {failed.text}")
            except LeftAlone as reason:
                if item["MessageId"] not in left:
                    say(f"left        message {item['MessageId']}: {reason}")
                left[item["MessageId"]] = item["ReceiptHandle"]
                continue
            invoke(target, failed.function, failed.payload)
            sqs.delete_message(QueueUrl=url, ReceiptHandle=item["ReceiptHandle"])
            sent |= failed.identities
            done.add(item["MessageId"])
            say(f"sent again  {short[failed.function]:<10} {failed.text}")
    for handle in left.values():
        give_back(sqs, url, handle)
    if not done and not left:
        say("the queue of failed events is empty: nothing to send again")
    else:
        say(f"{len(done)} sent again, {len(left)} left" + ("; make logs shows the results" if done else ""))
    return 1 if left else 0


def give_back(sqs: Any, url: str, handle: str) -> None:
    """Make a message visible to others at once, unless it has become so already."""
    try:
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
    except ClientError as error:
        if not error_code(error).endswith("MessageNotInflight"):
            raise
