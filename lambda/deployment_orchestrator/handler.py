"""Deployment orchestrator: brings a model's endpoint to the newest approved model, one step at a time.

Triggers, all through EventBridge: S3 "Object Created" under models/approved/, SageMaker "Endpoint State Change", and a
schedule ({"source": "sweep"}: every model in turn).

Whatever the event, it looks at the world: which model is the newest approved one, what the endpoint serves, what the
deployment records say was asked for. Then it takes the next step, emails people and returns. It never waits for an
endpoint, never touches one that is not this stack's, and never retries a model that was rolled back. It never undoes
what a person did: an endpoint that somebody deleted stays deleted.

Every deployment has a record, models/deployments/<endpoint config>.json, which goes through STATES. Every change to it
is a conditional write, so it is the lock as well.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import random
import re
import string
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

# State: (what it means; where this function may take a deployment from there). A person's command may take any record
# to "withdrawn" (make rollback), and to "waiting" or "requested" (make rollback to that model, make resume).
STATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "new": ("approved; not recorded yet", ("requested", "held")),
    "requested": ("SageMaker is being asked, by whoever wrote this", ("started", "waiting", "failed")),
    "started": ("SageMaker works on it", ("confirmed", "rolled back", "failed", "superseded", "held")),
    "waiting": ("it was refused for now, or the attempt failed: retried", ("requested", "started", "held")),
    "held": ("somebody deleted the endpoint: waits for make resume", ("requested", "started")),
    "confirmed": ("it was in service, and answered as in training", ("requested", "removed")),
    "superseded": ("somebody else's update overtook it", ("requested", "removed")),
    "rolled back": ("it did not come up, or gave other answers than in training: never again", ()),
    "failed": ("it cannot be deployed: never again", ()),
    "withdrawn": ("a person said no to the model: never again", ()),
    "removed": ("it was live; its model and endpoint config were cleaned up", ()),
}
OPEN = ("requested", "started")
UNSETTLED = (*OPEN, "waiting", "held")
BAD = ("rolled back", "failed", "withdrawn")
NOT_AGAIN = (*BAD, "removed")
# The outcome of a step after which there may be more to do at once.
AGAIN = "look again"

# Enough to see whether a gzip tar begins here and has a file in it.
ARTIFACT_HEAD_BYTES = 64 * 1024
ARTIFACT_HEAD_UNPACKED_BYTES = 1024 * 1024
# SageMaker's reads are eventually consistent (CreateEndpoint reference): a new endpoint may not be visible at once.
VISIBLE_SECONDS = 60
# How many approved models are looked at, newest first: bounds what one invocation reads.
LOOK_BACK_MODELS = 50
# How many steps one invocation takes for one model; the sweep continues from there.
STEPS_MAX = 20
# The same weights on another machine, with other kernels or another padding, move a score by 0.001, at half
# precision by 0.01. Other weights move most scores by much more.
SCORE_TOLERANCE = 0.05
# Of a label in an email, in characters.
LABEL_MAX = 40
# Labels whose scores nearly tie may swap places within that tolerance. With the right weights, few do.
TIES_MAX_SHARE = 0.1
CHECK_ATTEMPTS = 3
CHECK_PAUSE_SECONDS = 2.0
# A container has 60 seconds to answer (developer guide, inference code). Three attempts fit the function's 300.
INVOKE_READ_SECONDS = 65
# An attempt begins only with this much of the function's time left besides, for the email and the record.
CHECK_RESERVE_SECONDS = 30
# For this long after the endpoint settled, a timeout or server error may mean that the model is still starting, and a
# denied call that a new policy has not spread yet: the function fails, and is retried.
CHECK_PATIENCE_SECONDS = 10 * 60
# Others' requests may take all that a serverless endpoint answers at a time, or it is starting. The next event or sweep
# asks again, for a day.
BUSY, BUSY_PATIENCE_SECONDS = ("ModelNotReadyException", "ThrottlingException"), 24 * 60 * 60
# A serverless endpoint starts its container when it is asked, which can take minutes. Its model counts as one that
# does not answer after this many invocations without an answer.
UNANSWERED_MAX = 6


class Unanswered(Exception):
    """The model did not answer, and may be starting. The text, for people, says what SageMaker said."""


class CannotDeploy(Exception):
    """The model cannot be deployed now. The text, for people, says why.

    state: "busy" while somebody else changes the endpoint, "waiting" when it is refused for now, "failed" for good.
    """

    def __init__(self, state: str, reason: str = "") -> None:
        super().__init__(reason)
        self.state = state


@dataclass(frozen=True)
class Settings:
    """What the function reads from its environment, once: each field from the variable of its name. Memory in MB."""

    bucket: str
    project: str
    topic_arn: str
    endpoint_name: str
    model_role_arn: str
    inference_image: str
    endpoint_type: str
    serverless_memory_mb: int
    serverless_max_concurrency: int
    endpoint_instance_type: str
    endpoint_instance_count: int
    keep_models: int
    deployment_policy: dict[str, Any]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings. Raises ConfigError naming the variable that is missing or malformed."""
        read: dict[Any, Any] = {"str": required, "int": positive_int, "dict[str, Any]": json_object}
        config = cls(**{item.name: read[item.type](env, item.name.upper()) for item in dataclasses.fields(cls)})
        if config.endpoint_type not in ("serverless", "instance"):
            raise ConfigError(f"ENDPOINT_TYPE must be serverless or instance, not {config.endpoint_type!r}")
        return config

    @property
    def capacity(self) -> str:
        """What an endpoint runs on, in words."""
        if self.endpoint_type == "serverless":
            most = self.serverless_max_concurrency
            return f"serverless, {self.serverless_memory_mb} MB, up to {most} concurrent requests"
        return f"{self.endpoint_instance_count} x {self.endpoint_instance_type}"

    def endpoint_of(self, model: str) -> str:
        """The name of a model's endpoint."""
        return self.endpoint_name if model == DEFAULT_MODEL else f"{self.endpoint_name}-{model}"

    def model_of(self, endpoint: str) -> str | None:
        """The model that an endpoint's name stands for; None when it is no name of this stack's."""
        model = DEFAULT_MODEL if endpoint == self.endpoint_name else endpoint.removeprefix(f"{self.endpoint_name}-")
        return model if MODEL_NAME.fullmatch(model) and self.endpoint_of(model) == endpoint else None


# --- what comes in ----------------------------------------------------------------------------------


def model_of_event(event: Mapping[str, Any], config: Settings) -> str | None:
    """The model whose endpoint the event concerns; None when it is not this stack's. Raises EventError."""
    detail = field(event, "detail", dict)
    if event.get("source") != "aws.s3":
        return config.model_of(field(detail, "EndpointName", str))
    if field(field(detail, "bucket", dict), "name", str) != config.bucket:
        return None
    match = APPROVED_KEY.fullmatch(field(field(detail, "object", dict), "key", str))
    return match["model"] if match else None


def approved_models(config: Settings, model: str = "", most: int = LOOK_BACK_MODELS) -> dict[str, list[Record]]:
    """A new record for each approved artifact of a model ("": of all), newest first, by model; at most so many of each.
    Other names there are logged and ignored."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for item in list_objects(config.bucket, f"{APPROVED_PREFIX}{model}/" if model else APPROVED_PREFIX):
        if match := APPROVED_KEY.fullmatch(item["Key"]):
            found.setdefault(match["model"], []).append((match["job"], item["ETag"].strip('"'), item["Size"]))
        else:
            log.warning("not the model artifact of a training job, ignored", extra={"key": item["Key"]})
    return {
        name: [new_record(config, name, *artifact) for artifact in sorted(artifacts, reverse=True)[:most]]
        for name, artifacts in found.items()
    }


def describe_endpoint(name: str) -> dict[str, Any] | None:
    """The endpoint as it is now; None when there is none."""
    try:
        return dict(client("sagemaker").describe_endpoint(EndpointName=name))
    except ClientError as error:
        if is_missing(error):
            return None
        raise


def is_missing(error: ClientError) -> bool:
    """Whether SageMaker says that the thing does not exist: a ValidationException with a text of its own."""
    return error_code(error) == "ValidationException" and error_message(error).startswith("Could not find")


def last_modified(endpoint: Mapping[str, Any] | None) -> str | None:
    return endpoint["LastModifiedTime"].astimezone(UTC).isoformat() if endpoint else None


# --- deployment records -----------------------------------------------------------------------------


@dataclass(kw_only=True)
class Deployment:
    """A deployment record: what was asked of an endpoint, and what became of it. Times are ISO 8601, UTC.

    Written here; changed by make rollback and make resume; read by make status, and by the training orchestrator,
    which looks for the live model.
    """

    config: str  # the endpoint config, which also names the record
    endpoint: str
    model: str
    model_name: str  # of the SageMaker model
    job: str
    artifact: dict[str, Any]  # key, etag, size in bytes
    requests: dict[str, Any]  # model, config: the CreateModel and CreateEndpointConfig requests
    schema: int
    state: str = "new"  # one of STATES
    by: str = ""  # who changed the record last: a request id, or the ARN of a person
    at: str = ""  # when
    reason: str = ""  # why it is in its state; of one that is requested or waiting, what the last attempt met
    tries: int = 0  # attempts (events) that failed; those that were refused count up to EAGER_TRIES
    endpoint_last_modified: str | None = None  # of the endpoint, before SageMaker was asked
    previous_config: str | None = None  # what the endpoint served then
    restores: str = ""  # of a model that comes back, after what: "the endpoint had failed"
    started_at: str = ""  # when SageMaker began
    ended: str | None = ""  # the endpoint's last-modified time when SageMaker had ended
    checked: str = ""  # what the golden rows showed
    unanswered: int = 0  # invocations that asked them of a serverless endpoint, and got no answer
    cleaned: bool = True  # False: older models are still to be cleaned up
    deleted_by: str = ""  # "pipeline" when the pipeline deleted the endpoint of this deployment
    # What people were emailed: {what: {by, at, done}}; while done is False, the invocation `by` is sending it.
    emails: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    gone: bool = False  # whether its model and endpoint config were deleted
    withdrawn: dict[str, str] | None = None  # by make rollback: by, at, reason, to (the job to go back to)


@dataclass(kw_only=True)
class Record(Deployment):
    """A deployment record with the ETag under which it was read; "" for one that is not written yet."""

    etag: str = ""

    def failed_with(self, endpoint: Mapping[str, Any]) -> bool:
        """Whether the endpoint is as this deployment left it when it failed."""
        return self.state == "failed" and self.ended == last_modified(endpoint)

    def emailed(self, what: str) -> bool:
        return what in self.emails and self.emails[what]["done"]

    def leased_by_another(self, request_id: str) -> bool:
        """Whether another invocation, which may still be alive, asks SageMaker or sends an email for this record."""
        leases = [email for email in self.emails.values() if not email["done"]]
        leases += [{"by": self.by, "at": self.at}] if self.state == "requested" else []
        return any(leased_by_another(lease, request_id) for lease in leases)


def read_record(bucket: str, key: str) -> Record | None:
    """The deployment record under a key; None where there is none."""
    data, etag = read_json(bucket, key)
    return None if data is None or etag is None else Record(**up_to_date(data), etag=etag)


def up_to_date(old: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record, whatever version wrote it. Schema 1 had more states, and a flag for each email."""
    new = {name: value for name, value in old.items() if name in Deployment.__dataclass_fields__}
    if old["schema"] == SCHEMA:
        return new
    state, reason, restores = old["state"], old.get("reason", ""), old.get("restores", "")
    held = state == "waiting" and reason == DELETED_BY_HAND
    deleted = held or (old.get("deleted") == "somebody" and state != "waiting")
    outage = old.get("outage") or {"since": "", "told": False}
    sent = {
        "started": old.get("replaces") == "create",
        "deleted by hand": deleted and old.get("told") != "telling",
        f"waiting: {cause(reason)}": state == "waiting" and reason != "" and not held,
        f"out of service since {outage['since']}": outage["told"],
    }
    emails = {what: {"by": old["by"], "at": old["at"], "done": True} for what, done in sent.items() if done}
    deleted_by = "pipeline" if old.get("deleted") == "pipeline" else ""
    new = {"emails": emails, "deleted_by": deleted_by} | new
    if state == "settling":
        # Whichever email is being sent.
        new |= {"state": "started", "emails": {"settling": {"by": old["by"], "at": old["at"], "done": False}}}
    elif held:
        new["state"] = "held"
    elif state == "requested" and old.get("replaces") == "delete":
        new["state"] = "waiting"
    elif state == "removed" and old.get("was") in BAD:
        new["state"] = old["was"]
    if restores and " " not in restores:
        new["restores"] = back_after(restores, old["config"])
    return new | {"schema": SCHEMA, "tries": min(old.get("tries", 0), EAGER_TRIES)}


def keys_of(new: Record, keys: Iterable[str]) -> list[str]:
    """Those of the keys that are of an approved model's deployment records."""
    return [key for key in keys if key.startswith(f"{DEPLOYMENT_PREFIX}{new.job}-")]


def read_records(config: Settings, new: Record, keys: Iterable[str]) -> list[Record]:
    """The deployment records of an approved model on its endpoint: those of the keys that are its own."""
    found = (read_record(config.bucket, key) for key in keys_of(new, keys))
    return [record for record in found if record is not None and record.endpoint == new.endpoint]


def newest_started(records: Iterable[Record]) -> Record | None:
    """The record whose deployment SageMaker began last."""
    return max((r for r in records if r.started_at), key=lambda record: record.started_at, default=None)


# --- the steps --------------------------------------------------------------------------------------


def reconcile_all(config: Settings, request_id: str, left: Callable[[], int]) -> str:
    """Reconcile every model that has approved artifacts, which finishes what a lost event left; returns how many.

    One model's error does not keep the others waiting: the first error is raised after the last model.
    """
    newest = {model: found[0] for model, found in approved_models(config, most=1).items()}
    outcome, errors = f"{len(newest)} models swept", list[Exception]()
    for model, new in newest.items():
        try:
            if is_in_service(config, new):
                continue
            if is_paused(config):
                outcome = "paused"
                break
            # It looks for itself: this look may be minutes old.
            reconcile(config, model, request_id, left)
        except (BotoCoreError, ClientError) as error:
            log.exception("sweep: model not reconciled", extra={"model": model})
            errors.append(error)
    if errors:
        raise errors[0]
    return outcome


def is_in_service(config: Settings, new: Record) -> bool:
    """Whether the endpoint serves the newest approved model, and nothing is left to do: what Step would find, too."""
    endpoint = describe_endpoint(new.endpoint)
    if not endpoint or (endpoint["EndpointStatus"], endpoint["EndpointConfigName"]) != ("InService", new.config):
        return False
    records = read_records(config, new, list_keys(config.bucket, f"{DEPLOYMENT_PREFIX}{new.job}-"))
    served = next((record for record in records if record.config == new.config), None)
    quiet = all(record.state not in (*UNSETTLED, "withdrawn") for record in records)
    return quiet and served is not None and served.state == "confirmed" and served.cleaned


def reconcile(config: Settings, model: str, request_id: str, left: Callable[[], int]) -> str:
    """Bring a model's endpoint as far towards the newest approved model as it goes now; returns that in a word.

    left: milliseconds.
    """
    for _ in range(STEPS_MAX):
        outcome = Step(config, model, request_id, left).take()
        if outcome != AGAIN:
            break
    log.info("endpoint handled: %s", outcome, extra={"model": model, "endpoint": config.endpoint_of(model)})
    return outcome


class Step:
    """One look at a model's endpoint, and the step that follows from it towards the newest approved model.

    Its parts return the outcome in a word; AGAIN when there may be more to do at once.
    """

    def __init__(self, config: Settings, model: str, request_id: str, left: Callable[[], int]) -> None:
        self.config, self.request_id, self.name = config, request_id, config.endpoint_of(model)
        self.left = left  # milliseconds
        self.approved = approved_models(config, model).get(model, [])
        self.endpoint = describe_endpoint(self.name) if self.approved else None
        # The keys of the deployment records since a job.
        self.keys, self.since = list[str](), "~"  # it sorts after every job
        # The approved models down to the newest that was confirmed, each with its records.
        self.considered: list[tuple[Record, list[Record]]] = []
        self.decisions: dict[str, Mapping[str, Any]] = {}  # by job

    def take(self) -> str:
        for new in self.approved:
            found = self.records_of(new)
            for record in found:
                if record.state in UNSETTLED and self.settle(record):
                    return self.after(record, alone=found == [record])
            self.considered.append((new, found))
            if any(record.state == "confirmed" for record in found):
                break
        if not self.approved:
            return "nothing approved"
        outcome = self.without_endpoint() if self.endpoint is None else self.with_endpoint(self.endpoint)
        if outcome in ("waiting", "busy"):
            # What was approved while this one was in hand was left to us.
            return outcome if self.is_newest(self.approved[0]) else AGAIN
        return outcome

    def after(self, record: Record, alone: bool) -> str:
        """A deployment ended. Whatever arrived meanwhile found it open and left: look again on its behalf.

        alone: the model has no other record. When it is the newest one and answers, nothing but a newer one can follow.
        """
        endpoint, is_wanted = self.endpoint, alone and record.config == self.approved[0].config
        if endpoint is None or record.state != "confirmed" or not is_wanted or not self.is_newest(record):
            return AGAIN
        if not record.cleaned:
            self.clean_up(record, endpoint)
        return "in service"

    def is_newest(self, record: Record) -> bool:
        """Whether no model was approved since this look at the endpoint that is newer than a record's."""
        now_approved = approved_models(self.config, record.model, most=1).get(record.model, [])
        return all(new.job <= record.job for new in now_approved)

    def records_of(self, new: Record) -> list[Record]:
        """The deployment records of an approved model on the endpoint: one for each set of settings."""
        if new.job < self.since:
            # With the next older model's, which mostly is the live one: names sort by time.
            self.list_records(next((other for other in self.approved if other.job < new.job), new))
        return read_records(self.config, new, self.keys)

    def list_records(self, oldest: Record) -> None:
        """List the deployment records of the approved models down to this one."""
        self.keys, self.since = list(list_keys(self.config.bucket, DEPLOYMENT_PREFIX, oldest.job)), oldest.job

    @property
    def records(self) -> list[Record]:
        return [record for _, found in self.considered for record in found]

    def with_endpoint(self, endpoint: Mapping[str, Any]) -> str:
        """There is an endpoint: leave it, delete it, or bring it to a model."""
        status, served, last = endpoint["EndpointStatus"], endpoint["EndpointConfigName"], newest_started(self.records)
        if status == "OutOfService":
            self.report_outage(endpoint, last)
        if status not in ("InService", "UpdateRollbackFailed", "Failed"):
            return f"busy: {status}"
        if any(record.state in OPEN for record in self.records):
            return "under way"
        # A rollback that failed leaves a mix of both models. One after a person's update is theirs to fix.
        if status == "Failed" or (status == "UpdateRollbackFailed" and last and last.failed_with(endpoint)):
            return self.take_down(endpoint, last)
        choice = self.choose()
        if choice is not None and choice.config == served:
            if choice.state == "confirmed" and not choice.cleaned:
                self.clean_up(choice, endpoint)
            return "in service"
        known = next((record for record in self.records if record.config == served), None)
        bad = known or read_record(self.config.bucket, f"{DEPLOYMENT_PREFIX}{served}.json")
        if bad is not None and bad.state in BAD:
            choice = self.choose(as_it_was=True)
            if choice is None and bad.state != "withdrawn":
                return self.take_down(endpoint, last or bad)
        elif choice is not None and choice.state in ("confirmed", "superseded"):
            # It was live, or on its way, and somebody switched the endpoint. That is theirs to undo.
            return "left as somebody made it"
        return self.deploy(choice) if choice else "nothing to deploy"

    def without_endpoint(self) -> str:
        """There is no endpoint: create one, unless a person deleted it."""
        if any(record.state in OPEN for record in self.records):
            return "under way"
        last = newest_started(self.records)
        by_us = last is None or last.deleted_by == "pipeline"
        choice = self.choose(as_it_was=last is not None and by_us)
        if choice is None and by_us:
            return "nothing to deploy"
        # It was asked for when there was no endpoint already.
        asked = choice is not None and choice.state == "waiting" and choice.endpoint_last_modified is None
        if choice is not None and (by_us or asked):
            return self.deploy(choice)
        if last is not None:
            self.leave_deleted(choice, last)
        return "deleted by hand"

    def leave_deleted(self, choice: Record | None, last: Record) -> None:
        """A person deleted the endpoint: email that, once, and have the chosen model wait for them."""
        is_news = not last.emailed("deleted by hand")
        if choice is not None and choice.state in ("new", "waiting"):
            # When the deletion is news, its email says enough.
            lease = {"by": self.request_id, "at": now().isoformat(), "done": is_news}
            self.begin(choice, "held", emails={"deleted by hand": lease}, reason=DELETED_BY_HAND)
        if choice is not None and choice.state == "held":
            self.email_once(choice, "deleted by hand", "held", alone=True)
        if is_news:
            live = next((record for record in self.records if record.state == "confirmed"), last)
            self.email_once(last, "deleted by hand", about=live, alone=True)

    def choose(self, *, as_it_was: bool = False) -> Record | None:
        """The deployment of the newest approved model that may be deployed; None when there is none.

        as_it_was: a model that was live comes back with the config that it had then, even if settings changed since.
        """
        for new, found in self.considered:
            if any(record.state == "withdrawn" for record in found):
                continue
            record = next((record for record in found if record.config == new.config), new)
            live = newest_started(record for record in found if record.state == "confirmed")
            if live and (record.state in NOT_AGAIN or (as_it_was and record.state != "waiting")):
                return live
            if record.state not in NOT_AGAIN:
                return record
        return None

    def deploy(self, record: Record) -> str:
        """Ask SageMaker for a model on the endpoint.

        The record is written before the call, with the endpoint as it was: after a crash it tells whether the call
        was made.
        """
        if record.state == "waiting" and not due_again(record.tries, record.at):
            return "waiting"
        endpoint, last = self.endpoint, newest_started(other for other in self.records if other is not record)
        more = {}
        if record.state == "confirmed":
            latest = newest_started(self.records) or record
            more["restores"] = back_after(endpoint["EndpointConfigName"] if endpoint else latest.config, record.config)
        if not self.begin(record, "requested", **more):
            return "in hand"
        try:
            if endpoint is not None and not self.is_ours(endpoint["EndpointArn"]):
                raise CannotDeploy("waiting", FOREIGN.format(endpoint=self.name))
            if record.tries >= GIVE_UP_TRIES:
                raise CannotDeploy("failed", f"{record.tries} attempts failed. The last error: {record.reason}")
            check_artifact(self.config, record.artifact)
            replaces = not ask_sagemaker(self.config, record, endpoint)
        except CannotDeploy as obstacle:
            return self.put_off(record, obstacle.state, plain(obstacle))
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and is_refused(error):
                return self.put_off(record, "waiting", refusal_text(error))
            # It stays requested, as the call may have been made. The email on giving up quotes the reason.
            self.move(record, "requested", reason=plain(error))
            raise
        if endpoint is None or not replaces:
            self.note_started(record)
            return "started"
        # It waits before the endpoint is deleted: whoever finds that gone, finds what is to follow.
        self.email_once(record, "started", then=REPLACING)
        is_gone = self.move(record, "waiting", tries=0) and self.delete(endpoint, last)
        return "replacing" if is_gone else "in hand"

    def begin(self, record: Record, state: str, **more: Any) -> bool:
        """Begin a deployment, or begin it again; False when somebody else changed the record.

        One that waited keeps what its attempts met and what people were emailed.
        """
        new: dict[str, Any] = {"started_at": "", "ended": "", "checked": "", "cleaned": True, "gone": False}
        new |= {"unanswered": 0, "deleted_by": "", "endpoint_last_modified": last_modified(self.endpoint)}
        new["previous_config"] = self.endpoint["EndpointConfigName"] if self.endpoint else None
        if record.state == "waiting":
            new["emails"] = {what: email for what, email in record.emails.items() if email["done"]}
        else:
            new |= {"reason": "", "tries": 0, "restores": "", "emails": {}}
        return self.move(record, state, **(new | more))

    def put_off(self, record: Record, state: str, reason: str) -> str:
        """Note why the model cannot be deployed (CannotDeploy), and email it once for each cause.

        A refusal is not a failed attempt: it makes the next ones hourly, and is retried without end.
        """
        if state == "busy":
            # The event that ends somebody else's change comes here.
            self.move(record, "waiting", tries=0)
            return state
        what = f"waiting: {cause(reason)}" if state == "waiting" else state
        self.email_once(record, what, state, reason=reason, then=endpoint_summary(self.endpoint))
        self.move(record, state, reason=reason, tries=min(record.tries + 1, EAGER_TRIES))
        return AGAIN if state == "failed" else state

    def note_started(self, record: Record) -> bool:
        """SageMaker was asked: email people, and note it; True when it was noted."""
        # When a model comes back, people were emailed when that became necessary.
        then = UPDATING if record.previous_config else CREATING
        if not record.restores and not self.email_once(record, "started", then=then):
            return False
        return self.move(record, "started", started_at=now().isoformat(), reason="")

    def settle(self, record: Record) -> bool:
        """Take a record as far as the endpoint allows, and email people, once; True when that ended the deployment."""
        if record.leased_by_another(self.request_id):
            return False
        if record.state != "started" and not self.take_up(record):
            return False
        if self.endpoint is None:
            if age(record.started_at) < VISIBLE_SECONDS:
                return False
            reason = "it was deleted while this model was being deployed"
            emailed = self.email_once(record, "deleted by hand", reason=reason)
            return emailed and self.move(record, "held", reason=reason)
        outcome = self.outcome_of(record, self.endpoint)
        if outcome is None:
            return False
        state, reason, then, record.checked = outcome
        email = "restored" if state == "confirmed" and record.restores else state
        if state != "superseded" and not self.email_once(record, state, email, reason=reason, then=then):
            return False
        log.info("deployment settled: %s", state, extra={"training_job": record.job, "reason": reason})
        ended, cleaned = last_modified(self.endpoint), state != "confirmed" or self.has_few_records()
        return self.move(record, state, reason=reason, cleaned=cleaned, ended=ended)

    def has_few_records(self) -> bool:
        """Whether the approved models are known to have no more records than are kept: none is to be cleaned up."""
        keys = [key for new in self.approved for key in keys_of(new, self.keys)]
        return self.since <= self.approved[-1].job and len(keys) <= self.config.keep_models

    def take_up(self, record: Record) -> bool:
        """Look at a record that SageMaker is not known to work on; True when it does after all."""
        served = self.endpoint is not None and self.endpoint["EndpointConfigName"] == record.config
        if served or (record.state == "requested" and was_made(record, self.endpoint)):
            # The answer to the call was lost, or whoever made it died before people were emailed.
            return self.note_started(record)
        if record.state == "requested":
            # Whoever was to make the call died before that. An event and its retries by Lambda are one attempt.
            tries = record.tries + (record.by != self.request_id)
            self.move(record, "waiting", tries=tries, reason=record.reason or CUT_OFF)
        return False

    def outcome_of(self, record: Record, endpoint: Mapping[str, Any]) -> tuple[str, str, str, str] | None:
        """What became of a deployment that was started; None while it is under way.

        (state; why; what happens to the endpoint now; what the golden rows showed)
        """
        status, served = endpoint["EndpointStatus"], endpoint.get("EndpointConfigName")
        reason = plain(endpoint.get("FailureReason") or "")
        if status == "InService" and served == record.config:
            try:
                golden = self.decision_on(record).get("golden") or []
                answers = check_answers(record, golden, endpoint, self.left)
            except Unanswered as silence:
                answers = (str(silence), "")
                if record.unanswered + 1 < UNANSWERED_MAX:
                    self.move(record, record.state, unanswered=record.unanswered + 1)
                    answers = None
            if answers is None:
                return None
            wrong, checked = answers
            if not wrong:
                return "confirmed", "", "", checked
            before = self.confirmed_before(record)
            then = PUT_BACK.format(before=before) if before else WRONG_AND_ALONE
            return "rolled back" if before else "failed", wrong, then, ""
        if not was_made(record, endpoint):
            return None
        if status == "InService" and served == record.previous_config:
            return "rolled back", reason or why_rolled_back(endpoint), endpoint_summary(endpoint), ""
        if status == "InService":
            return "superseded", f"the endpoint serves {served}", "", ""
        if status in ("Failed", "UpdateRollbackFailed"):
            before = self.confirmed_before(record)
            then = RECREATED.format(before=before) if before else FAILED_AND_ALONE
            return "failed", reason or f"SageMaker gave no reason; the endpoint is {status}", then, ""
        return None

    def decision_on(self, record: Record) -> Mapping[str, Any]:
        """The evaluator's decision on a record's model, {} where there is none. It is read once."""
        if record.job not in self.decisions:
            self.decisions[record.job] = read_json(self.config.bucket, f"{DECISION_PREFIX}{record.job}.json")[0] or {}
        return self.decisions[record.job]

    def data_of(self, record: Record) -> Mapping[str, Any] | None:
        """The upload that a record's model was trained on; None where that is not recorded."""
        decided: Mapping[str, Any] | None = self.decisions.get(record.job, {}).get("data")
        return decided or read_json(self.config.bucket, f"{SNAPSHOT_PREFIX}{record.job}/source.json")[0]

    def confirmed_before(self, record: Record) -> str:
        """The endpoint config that the pipeline goes back to from a deployment that went wrong; "" for none."""
        self.list_records(self.approved[-1])
        for new in self.approved:
            found = self.records_of(new)
            live = [other for other in found if other.state == "confirmed" and other.config != record.config]
            if live and all(other.state != "withdrawn" for other in found):
                return live[0].config
        return ""

    def is_ours(self, arn: str) -> bool:
        """Whether this stack made a thing: another one may use the same names. Of a thing that is gone: True."""
        try:
            tags = client("sagemaker").list_tags(ResourceArn=arn)["Tags"]
        except ClientError as error:
            if is_missing(error):
                return True
            raise
        return {"Key": "Stack", "Value": self.config.bucket} in tags

    def take_down(self, endpoint: Mapping[str, Any], last: Record | None) -> str:
        """Delete an endpoint that failed or gives wrong answers."""
        if not self.is_ours(endpoint["EndpointArn"]):
            return "failed endpoint of somebody else"
        return "failed endpoint deleted" if self.delete(endpoint, last) else "in hand"

    def delete(self, endpoint: Mapping[str, Any], last: Record | None) -> bool:
        """Delete an endpoint of ours, noting before that the pipeline does it; False: another invocation is at it.

        Nothing else can be done with a failed one (DescribeEndpoint reference, EndpointStatus).
        """
        if last is not None and last.deleted_by != "pipeline":
            # One that failed after it was live is news. A deployment that fails has its own email.
            is_news = endpoint["EndpointStatus"] == "Failed" and last.state == "confirmed"
            if is_news and not self.email_once(last, "endpoint failed"):
                return False
            if not self.move(last, last.state, deleted_by="pipeline"):
                return False
        try:
            client("sagemaker").delete_endpoint(EndpointName=endpoint["EndpointName"])
        except ClientError as error:
            # A duplicate event's invocation was faster.
            if not is_missing(error) and not error_message(error).startswith("Cannot update in-progress endpoint"):
                raise
        return True

    def report_outage(self, endpoint: Mapping[str, Any], last: Record | None) -> None:
        """Email people, once, that SageMaker took the endpoint out of service: no documentation says what helps."""
        what = f"out of service since {last_modified(endpoint)}"
        if last is not None and not last.emailed(what) and self.is_ours(endpoint["EndpointArn"]):
            reason = plain(endpoint.get("FailureReason") or "")
            self.email_once(last, what, "out of service", alone=True, reason=reason)

    def clean_up(self, record: Record, endpoint: Mapping[str, Any]) -> None:
        """After a confirmed deployment: delete the models and configs of those before the last ones that are kept.

        A record is marked before its model and config go, so that nothing asks for them meanwhile. Artifacts stay.
        """
        self.list_records(self.approved[-1])
        found = [other for new in self.approved for other in self.records_of(new) if not other.gone]
        confirmed = sorted(other.started_at for other in found if other.state == "confirmed")
        if len(confirmed) >= self.config.keep_models:
            in_use = {record.config, endpoint["EndpointConfigName"]}
            for other in (other for other in found if other.state in UNSETTLED):
                in_use |= {other.config, str(other.previous_config)}
            oldest_kept = confirmed[-self.config.keep_models]
            old = [o for o in found if o.started_at < oldest_kept and o.config not in in_use]
            models_in_use = {other.model_name for other in found if other not in old}
            for other in old:
                state = "removed" if other.state in ("confirmed", "superseded") else other.state
                if self.move(other, state):
                    self.remove("endpoint_config", "EndpointConfig", other.config)
                    if other.model_name not in models_in_use:
                        self.remove("model", "Model", other.model_name)
                    self.move(other, state, gone=True)
        self.move(record, record.state, cleaned=True)

    def remove(self, thing: str, member: str, name: str) -> None:
        """Delete a model or an endpoint config of this stack, if it is there."""
        sagemaker, request = client("sagemaker"), {f"{member}Name": name}
        try:
            arn = getattr(sagemaker, f"describe_{thing}")(**request)[f"{member}Arn"]
            if self.is_ours(arn):
                getattr(sagemaker, f"delete_{thing}")(**request)
            else:
                log.warning("not of this stack, left alone", extra={"arn": arn})
        except ClientError as error:
            if not is_missing(error):
                raise

    def move(self, record: Record, state: str, **more: Any) -> bool:
        """Change a record, and take it to a state that may follow or stay; False when somebody else changed it.

        Raises ValueError on a move that STATES does not have.
        """
        if state not in (record.state, *STATES[record.state][1]):
            raise ValueError(f"{record.config}: STATES has no move from {record.state!r} to {state!r}")
        changed = dataclasses.replace(record, **more, state=state, by=self.request_id, at=now().isoformat())
        unset = ("etag",) if changed.withdrawn else ("etag", "withdrawn")
        data = {name: value for name, value in vars(changed).items() if name not in unset}
        condition = {"IfMatch": record.etag} if record.etag else {"IfNoneMatch": "*"}
        etag = put_json(self.config.bucket, f"{DEPLOYMENT_PREFIX}{record.config}.json", data, **condition)
        if etag is not None:
            vars(record).update(vars(changed), etag=etag)
        return etag is not None

    def email_once(
        self, record: Record, what: str, email: str = "", about: Record | None = None, alone: bool = False, **text: str
    ) -> bool:
        """Email people about a record, unless they were; False: leave it, another invocation is at it.

        what: the key under which the record keeps it; email: its key in EMAILS, when that is another; about: the record
        that it describes, when that is another. Before it is sent, the invocation takes a lease; a record that it
        requested itself is one. The record's next move writes down that it was sent; alone: there is none, so that is
        done here. It is sent again only after a crash in between.
        """
        if record.emailed(what):
            return True
        entry = record.emails.get(what)
        if leased_by_another(entry, self.request_id):
            return False
        lease = {"by": self.request_id, "at": now().isoformat(), "done": False}
        by = record.by if record.state == "requested" else (entry or {}).get("by")
        if by != self.request_id and not self.move(record, record.state, emails=record.emails | {what: lease}):
            return False
        shown = about or record
        send_email(self.config, shown, EMAILS[email or what], self.data_of(shown), **text)
        record.emails[what] = lease | {"done": True}
        return self.move(record, record.state) if alone else True


# --- parts of the steps -----------------------------------------------------------------------------


def new_record(config: Settings, model: str, job: str, etag: str, size: int) -> Record:
    """The deployment of an approved artifact (size in bytes) under the present settings.

    Neither the model nor the endpoint config can be changed once created, so each name ends in a hash of all that goes
    into it: changed settings give a new name.
    """
    key = f"{APPROVED_PREFIX}{model}/{job}/model.tar.gz"
    environment = {
        "HF_TASK": "text-classification",
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
    }
    if config.endpoint_type == "serverless":
        # One worker: each loads the whole model, and a serverless container has at most 6 GB.
        environment["SAGEMAKER_MODEL_SERVER_WORKERS"] = "1"
        memory = {"MemorySizeInMB": config.serverless_memory_mb, "MaxConcurrency": config.serverless_max_concurrency}
        capacity: dict[str, Any] = {"ServerlessConfig": memory}
        # Serverless Inference does not support network isolation (developer guide, feature exclusions).
        isolation = {}
    else:
        # The container needs no network: it gets the model from SageMaker, and its packages are in the image.
        isolation = {"EnableNetworkIsolation": True}
        capacity = {"InstanceType": config.endpoint_instance_type, "InitialVariantWeight": 1.0}
        capacity["InitialInstanceCount"] = config.endpoint_instance_count
    tags = {"Project": config.project, "Stack": config.bucket, "Model": model, "TrainingJob": job}
    tag_list = [{"Key": name, "Value": value} for name, value in tags.items()]
    parts = [key, etag, config.inference_image, config.model_role_arn, environment, *isolation]
    model_name, config_name = (
        f"{job}-{hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]}"
        for hashed in (parts, [*parts, capacity])
    )
    location = f"s3://{config.bucket}/{key}"
    container = {"Image": config.inference_image, "ModelDataUrl": location, "Environment": environment}
    variants = [{"VariantName": "AllTraffic", "ModelName": model_name, **capacity}]
    made_of = {"PrimaryContainer": container, "ExecutionRoleArn": config.model_role_arn, **isolation}
    requests: dict[str, dict[str, Any]] = {
        "model": {"ModelName": model_name, **made_of},
        "config": {"EndpointConfigName": config_name, "ProductionVariants": variants},
    }
    return Record(
        schema=SCHEMA,
        config=config_name,
        endpoint=config.endpoint_of(model),
        model=model,
        model_name=model_name,
        job=job,
        artifact={"key": key, "etag": etag, "size": size},
        requests={what: request | {"Tags": tag_list} for what, request in requests.items()},
    )


def check_artifact(config: Settings, artifact: Mapping[str, Any]) -> None:
    """Raises CannotDeploy unless the artifact is there, begins a gzip tar and has a file in it."""
    if artifact["size"] == 0:
        raise CannotDeploy("failed", "the artifact is empty (0 bytes)")
    head = {"Range": f"bytes=0-{ARTIFACT_HEAD_BYTES - 1}", "IfMatch": f'"{artifact["etag"]}"'}
    try:
        packed = client("s3").get_object(Bucket=config.bucket, Key=artifact["key"], **head)["Body"].read()
    except ClientError as error:
        if not is_gone(error) and error_code(error) not in ("PreconditionFailed", "412"):
            raise
        raise CannotDeploy("failed", "the artifact was deleted or replaced after it was approved") from error
    try:
        data = zlib.decompressobj(wbits=31).decompress(packed, ARTIFACT_HEAD_UNPACKED_BYTES)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    raise CannotDeploy("failed", "the artifact has a member of negative size")
                if member.isreg():
                    return
    except (zlib.error, tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        text = f"the artifact is not a gzip-compressed tar, or it is cut off: {error}"
        raise CannotDeploy("failed", text) from error
    text = f"the artifact is an archive without any file: it has no file in its first {ARTIFACT_HEAD_BYTES} bytes"
    raise CannotDeploy("failed", text)


def ask_sagemaker(config: Settings, record: Record, endpoint: Mapping[str, Any] | None) -> bool:
    """Create the model, its config and the endpoint, or update that; False: the endpoint must be replaced.

    Raises CannotDeploy, ClientError.
    """
    new = record.requests["config"]
    create_parts(record)
    variants = endpoint.get("ProductionVariants", []) if endpoint else []
    was_serverless = all("CurrentServerlessConfig" in variant for variant in variants)
    if "ServerlessConfig" in new["ProductionVariants"][0] and not was_serverless:
        # A serverless endpoint can become one on instances, not the reverse (developer guide, Serverless Inference).
        return False

    def ask() -> None:
        if endpoint is None:
            name = {"EndpointName": record.endpoint, "EndpointConfigName": record.config}
            client("sagemaker").create_endpoint(**name, Tags=new["Tags"])
        else:
            update_endpoint(config, record, endpoint)

    try:
        try:
            ask()
        except ClientError as error:
            if not is_missing(error) or record.config not in error_message(error):
                raise
            # It may not see a config that is new. Then AWS advises to describe it, and to ask again (CreateEndpoint).
            client("sagemaker").describe_endpoint_config(EndpointConfigName=record.config)
            ask()
    except ClientError as error:
        if over_quota(error):
            text = f"a quota of the account is used up. SageMaker said: {error_message(error)}"
            raise CannotDeploy("waiting", text) from error
        busy = ("Cannot update in-progress", "Cannot create already existing endpoint", 'Could not find endpoint "')
        if error_code(error) != "ValidationException" or not error_message(error).startswith(busy):
            raise
        found = describe_endpoint(record.endpoint) or {}
        # Unless our own call was faster: its answer was lost, so the SDK repeated it.
        if found.get("PendingDeploymentSummary", found).get("EndpointConfigName") != record.config:
            raise CannotDeploy("busy") from error
    return True


def create_parts(record: Record) -> None:
    """Create the model and the endpoint config of a record, where they do not exist. Raises ClientError."""
    sagemaker, model, new = client("sagemaker"), record.requests["model"], record.requests["config"]
    for create, request in ((sagemaker.create_model, model), (sagemaker.create_endpoint_config, new)):
        try:
            create(**request)
        except ClientError as error:
            # What exists under this name is the same. (The text for a config is seen, that for a model unconfirmed.)
            if error_code(error) != "ValidationException" or "already exist" not in error_message(error):
                raise


def update_endpoint(config: Settings, record: Record, endpoint: Mapping[str, Any]) -> None:
    """Update an endpoint. Raises ClientError, CannotDeploy.

    SageMaker needs the endpoint config in use, too (seen in hashicorp/terraform-provider-aws#40048). One that somebody
    deleted is created again from its record.
    """
    try:
        client("sagemaker").update_endpoint(**update_request(config, record, endpoint))
    except ClientError as error:
        text = error_message(error)
        if not is_missing(error) or "endpoint configuration" not in text or record.config in text:
            raise
        in_use = read_record(config.bucket, f"{DEPLOYMENT_PREFIX}{endpoint['EndpointConfigName']}.json")
        if in_use is None:
            raise CannotDeploy("waiting", refusal_text(error)) from error
        create_parts(in_use)
        client("sagemaker").update_endpoint(**update_request(config, record, endpoint))


def update_request(config: Settings, record: Record, endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The UpdateEndpoint request that brings an endpoint to the chosen config.

    On instances, the deployment settings go with every update: SageMaker forgets them otherwise (UpdateEndpoint,
    RetainDeploymentConfig). The number of instances that autoscaling arrived at is kept, unless the setting for it
    changed: then that counts.
    """
    request: dict[str, Any] = {"EndpointName": endpoint["EndpointName"], "EndpointConfigName": record.config}
    new = record.requests["config"]["ProductionVariants"][0]
    if "ServerlessConfig" in new:
        return request
    served = client("sagemaker").describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    old = served["ProductionVariants"][0]
    keep = all(old.get(name) == new[name] for name in ("VariantName", "InstanceType", "InitialInstanceCount"))
    running = [variant.get("CurrentInstanceCount", 1) for variant in endpoint.get("ProductionVariants", [])]
    instances = min(running, default=1) if keep else new["InitialInstanceCount"]
    policy = deployment_policy(config.deployment_policy, endpoint["EndpointName"], instances)
    return request | {"RetainAllVariantProperties": keep} | ({"DeploymentConfig": policy} if policy else {})


def deployment_policy(policy: Mapping[str, Any], endpoint_name: str, instances: int) -> dict[str, Any]:
    """The DeploymentConfig for one endpoint: the stack's policy with the endpoint's own alarms, {} for none.

    Alarms are named <endpoint>/<what>. Steps are a share of the fleet; one that autoscaling left too small for them
    gets its traffic all at once.
    """
    own: dict[str, Any] = json.loads(json.dumps(policy))
    alarms = own.pop("AutoRollbackConfiguration", {}).get("Alarms", [])
    alarms = [alarm for alarm in alarms if alarm["AlarmName"].startswith(f"{endpoint_name}/")]
    if alarms:
        own["AutoRollbackConfiguration"] = {"Alarms": alarms}
    routing = own.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    size = routing.get("CanarySize") or routing.get("LinearStepSize")
    if size and instances * size["Value"] < 100:
        at_once = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": routing["WaitIntervalInSeconds"]}
        own["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"] = at_once
    return own


def was_made(record: Record, endpoint: Mapping[str, Any] | None) -> bool:
    """Whether the endpoint shows that the call of a record was made.

    The record holds the endpoint's last-modified time as it was before the call: an unchanged time means that the call
    was never made, or is not visible yet. A pending deployment of another config is somebody else's.
    """
    if endpoint is None or last_modified(endpoint) == record.endpoint_last_modified:
        return False
    pending = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName", record.config)
    return bool(pending == record.config)


def back_after(last: str, config: str) -> str:
    """After what a model comes back, for its email; last: the config that was deployed last, config: its own."""
    return "the endpoint had failed" if last == config else f"{last} was taken back"


def why_rolled_back(endpoint: Mapping[str, Any]) -> str:
    """What may have led to a rollback for which SageMaker gives no reason, which is common."""
    rollback = (endpoint.get("LastDeploymentConfig") or {}).get("AutoRollbackConfiguration", {})
    alarms = ", ".join(alarm["AlarmName"] for alarm in rollback.get("Alarms", []))
    why = "SageMaker gave no reason: the new model's server did not come up (see its log)"
    return f"{why}, or an alarm went off while traffic moved to it ({alarms})" if alarms else why


# --- does the right model answer? -------------------------------------------------------------------


@functools.cache
def runtime() -> Any:
    """The client that asks endpoints. An attempt may take as long as a model may, so there are few."""
    config = Config(read_timeout=INVOKE_READ_SECONDS, retries={"mode": "standard", "total_max_attempts": 3})
    return boto3.client("sagemaker-runtime", config=config)


def check_answers(
    record: Record, golden: Sequence[Mapping[str, Any]], endpoint: Mapping[str, Any], left: Callable[[], int]
) -> tuple[str, str] | None:
    """Ask the endpoint the golden rows of the model's decision: (what is wrong, or ""; what was checked, in words).

    None when the endpoint cannot be asked now: it was deleted since it was looked at, is not visible yet, is busy, or
    the function has too little time left (milliseconds).
    Raises what AWS raises on a failure that may pass: Lambda's retry or the sweep asks again; and Unanswered for a
    serverless model that does not answer. A model whose own code answers with errors does not pass: the HuggingFace
    server turns every exception in it into a 400 (handler_service.py). On instances, 5xx and timeouts that last count
    as well.
    """
    is_serverless = "ServerlessConfig" in record.requests["config"]["ProductionVariants"][0]
    wrong = unanswered = ""
    if not golden:
        return "", "none, so the answers were not checked against training"
    body = json.dumps({"inputs": [row["text"] for row in golden]}).encode()
    request = {"EndpointName": record.endpoint, "ContentType": "application/json", "Body": body}
    for attempt in range(CHECK_ATTEMPTS):
        if left() < (INVOKE_READ_SECONDS + CHECK_RESERVE_SECONDS) * 1000:
            break
        time.sleep(CHECK_PAUSE_SECONDS if attempt else 0)
        try:
            wrong = difference(golden, json.loads(runtime().invoke_endpoint(**request)["Body"].read()))
        except ValueError as error:
            wrong = f"the endpoint does not answer with JSON: {error}"
        except ClientError as error:
            code, text = error_code(error), f"{error_message(error):.500}"
            if code == "ValidationError" and "not found" in text:
                return None
            age_seconds = (now() - endpoint["LastModifiedTime"]).total_seconds()
            lasts = age_seconds >= CHECK_PATIENCE_SECONDS
            if code in BUSY and age_seconds < BUSY_PATIENCE_SECONDS:
                wrong = ""
                continue
            if code in BUSY or (code == "AccessDeniedException" and lasts):
                # It says nothing about the model.
                return "", f"NOT CHECKED: this function could not ask the endpoint. AWS said: {text}"
            status: Any = error.response.get("OriginalStatusCode", 0)
            silence = f"the new model does not answer. SageMaker said: {text}"
            if is_serverless and code == "ModelError" and not 400 <= status < 500:
                unanswered = silence
                continue
            if code != "ModelError" or (not 400 <= status < 500 and not lasts):
                raise
            wrong = silence
        if not wrong:
            return "", f"{len(golden)} of {len(golden)} answered as in training"
    if unanswered:
        raise Unanswered(unanswered)
    return (wrong, "") if wrong else None


def difference(golden: Sequence[Mapping[str, Any]], answers: object) -> str:
    """How an endpoint's answers differ from the golden rows, {"text", "label", "score"}, in words; "" when they agree.

    Labels and scores agree within SCORE_TOLERANCE. A label that nearly tied with another one in training may give way
    to it, in few rows. The words hold no text of the rows: they go into an email.
    """
    if not isinstance(answers, list) or len(answers) != len(golden):
        return f"the endpoint does not answer {len(golden)} texts with as many labels, but with {plain(answers, 100)}"
    wrong, ties = [], 0
    for row, answer in zip(golden, answers, strict=True):
        label, score = (answer.get("label"), answer.get("score")) if isinstance(answer, Mapping) else (None, None)
        if not isinstance(score, int | float) or isinstance(score, bool) or not -1 < score < 2:
            return f"the endpoint answers in another form than label and score: {plain(answer, 100)}"
        close = abs(score - row["score"]) <= SCORE_TOLERANCE
        if close and label == row["label"]:
            continue
        # The second best label has at most what the best one leaves.
        tied = close and row["score"] <= 0.5 + SCORE_TOLERANCE
        ties += tied
        if not tied or ties > TIES_MAX_SHARE * len(golden):
            labels = plain(label, LABEL_MAX), plain(row["label"], LABEL_MAX)
            wrong.append(f"{labels[0]} {score:.3f} instead of {labels[1]} {row['score']:.3f}")
    text = f"{len(wrong)} of {len(golden)} golden rows get other answers than in training"
    serves = "the endpoint serves other weights, or a broken copy"
    return f"{text} (for instance {wrong[0]}): {serves}" if wrong else ""


# --- emails -----------------------------------------------------------------------------------------


def email_text(subject: str, news: str, what_next: str) -> dict[str, str]:
    """An email: its subject up to the colon, what happened, and what to do next."""
    status = subject.removeprefix("Deployment ").lower().replace(" ", "-")
    body = f"{news}\n\n{{table}}\n\n{{why}}What next: {what_next}\n"
    return {"stage": "deployment", "status": status, "subject": f"{subject}: {{model}} ({{endpoint}})", "body": body}


PREDICT = 'make predict MODEL={model} TEXT="some text"'
INVOKE = (
    "aws sagemaker-runtime invoke-endpoint --endpoint-name {endpoint} --content-type application/json "
    '--cli-binary-format raw-in-base64-out --body \'{{"inputs": "some text"}}\' answer.json'
)
NOT_TRIED_AGAIN = (
    "find out why the new model failed (make logs ENDPOINT={endpoint}), fix it, and upload again. The pipeline does "
    "not try this model again."
)
COMES_BACK = (
    "run make resume MODEL={model}. It recreates the endpoint with the model that was live; a newer approved model "
    "follows."
)
EMAILS = {
    "started": email_text(
        "Deployment started",
        "The approved model is being deployed to the endpoint ({capacity}).\n{then}",
        "nothing to do. The next email, usually 5 to 10 minutes from now, tells you the result.",
    ),
    "confirmed": email_text(
        "Deployment successful",
        "The endpoint is in service with the new model.",
        f"try it:\n\n  {PREDICT}\n\nor, with the AWS CLI:\n\n  {INVOKE}",
    ),
    "restored": email_text(
        "Deployment restored",
        "The endpoint is in service and serves this model again, after {restores}.",
        f"nothing to do. Try it:\n\n  {PREDICT}",
    ),
    "rolled back": email_text(
        "Deployment rolled back", "The endpoint does not keep the new model. {then}", NOT_TRIED_AGAIN
    ),
    "failed": email_text("Deployment failed", "The new model could not be deployed. {then}", NOT_TRIED_AGAIN),
    "waiting": email_text(
        "Deployment waiting",
        "The new model cannot be deployed at the moment. {then}",
        "fix the cause. The pipeline tries again at least once an hour, so there is nothing to rerun.",
    ),
    "held": email_text(
        "Deployment waiting",
        "The new model is approved but not deployed: somebody deleted the endpoint, and the pipeline does not recreate "
        "it until it is told to.",
        f"if the endpoint is wanted, {COMES_BACK}",
    ),
    "deleted by hand": email_text(
        "Endpoint deleted by hand",
        "Somebody deleted the endpoint. It stays deleted, whatever is uploaded, and costs nothing. Calls to it fail.",
        f"nothing to do if that was intended. If it was a mistake, {COMES_BACK}",
    ),
    "endpoint failed": email_text(
        "Endpoint failed",
        "The endpoint was in service and has failed. Calls to it fail until it is recreated.",
        "nothing to do. SageMaker cannot repair a failed endpoint, so the pipeline deletes it and recreates it with "
        'the last confirmed model. "Deployment restored" tells you when it answers again.\n'
        "To find the cause, see the model server's log: make logs ENDPOINT={endpoint}",
    ),
    "out of service": email_text(
        "Endpoint out of service",
        "SageMaker took the endpoint out of service: it does not answer. The pipeline leaves it alone.",
        "look at the endpoint in the SageMaker console and at its log: make logs ENDPOINT={endpoint}\n"
        "If it does not come back, delete it. Then make resume MODEL={model} recreates it.",
    ),
}

# {then}: what happens to the endpoint.
CREATING = "The endpoint is new: it answers once it is in service."
UPDATING = "It keeps serving the previous model until the new one is up."
REPLACING = (
    "An endpoint on instances cannot become serverless in place, so it is replaced: it is deleted now, and the next "
    "sweep creates the new one. IT DOES NOT ANSWER UNTIL THEN, usually for 10 to 30 minutes."
)
PUT_BACK = "The pipeline puts {before} back; the next email says when it is in service."
WRONG_AND_ALONE = (
    "It gives wrong answers, and there is no earlier model to restore, so the endpoint is deleted. Calls to it "
    "fail now."
)
RECREATED = (
    "SageMaker cannot repair a failed endpoint, so the pipeline deletes it and restores {before}. Calls fail until "
    "then."
)
FAILED_AND_ALONE = (
    "The failed endpoint is deleted, and there is no earlier model to restore: calls fail until a new model is "
    "deployed."
)
# {why}: why a model cannot be deployed.
FOREIGN = (
    "an endpoint {endpoint} exists that this stack did not create. Find out who uses it. If nobody does, delete it; if "
    "somebody does, destroy this stack, which keeps its data, and deploy it with another endpoint_name"
)
CUT_OFF = "the function was cut off; see make logs"
DELETED_BY_HAND = "the endpoint was deleted by hand"


# What to do about a refusal, by what AWS says.
DEPLOYMENT_ADVICE = {
    "not available in this region": "Set endpoint_instance_type in Terraform to a type of this region, and apply",
    "find endpoint configuration": "Somebody deleted that endpoint config. Create it again under the same name, or "
    "delete the endpoint and run make resume MODEL=<model>",
    r"[Ii]mage|[Rr]epository": "Set inference_image in Terraform to an image that exists in this region, and apply",
    r"not authorized|[Aa]ssume|[Aa]ccess ?denied": "Run make deploy, which restores the stack's roles. If AWS refuses "
    "it again, ask whoever manages the account: a policy of theirs may deny it",
    "": "Change what AWS names in Terraform, and apply",
}


def refusal_text(error: ClientError) -> str:
    """What AWS said when it refused a call, and what to do, on one line."""
    text = error_message(error)
    advice = next(advice for said, advice in DEPLOYMENT_ADVICE.items() if re.search(said, text))
    return f"AWS refused it ({error.operation_name}). {advice}. AWS said: {text}"


def send_email(
    config: Settings,
    record: Record,
    email: Mapping[str, str],
    data: Mapping[str, Any] | None,
    reason: str = "",
    then: str = "",
) -> None:
    """Fill an email of EMAILS with what a record says, and send it. data: what the model was trained on."""
    size = human_bytes(record.artifact["size"])
    rows = {
        "model": record.model,
        "endpoint": record.endpoint,
        "data": f"s3://{data['bucket']}/{data['key']}" if data else "not recorded",
        "training job": record.job,
        "endpoint config": record.config,
        "artifact": f"s3://{config.bucket}/{record.artifact['key']} ({size})",
        "previous config": record.previous_config,
        "golden rows": record.checked,
    }
    values = {"endpoint": record.endpoint, "capacity": config.capacity, "restores": record.restores, "then": then}
    values["why"] = fill("Why: {reason}\n\n", reason=reason) if reason else ""
    notify(config.topic_arn, email, record.model, [(name, value) for name, value in rows.items() if value], **values)


def endpoint_summary(endpoint: Mapping[str, Any] | None) -> str:
    """What callers of the endpoint get now, in a sentence."""
    if endpoint is not None and endpoint["EndpointStatus"] in ("InService", "UpdateRollbackFailed"):
        return f"The endpoint keeps serving {endpoint['EndpointConfigName']}."
    return "There is no endpoint for this model now."


# --- the function -----------------------------------------------------------------------------------


def is_paused(config: Settings) -> bool:
    """Whether a person paused the pipeline."""
    paused = exists(config.bucket, PAUSED_KEY)
    if paused:
        log.info("paused: nothing is done until make resume")
    return paused


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, str]:
    """Entry point. Returns the model and the step taken; raises when AWS fails, so that Lambda retries."""
    config = settings()
    event, request_id = unwrap(event, context)
    model = "" if event.get("source") == "sweep" else model_of_event(event, config)
    if model is None:
        log.info("event of nothing that this stack deploys, ignored", extra={"resources": event.get("resources")})
        return {"model": "", "outcome": "ignored"}
    left = context.get_remaining_time_in_millis
    if not model:
        outcome = reconcile_all(config, request_id, left)
        log.info("sweep: %s", outcome)
    elif is_paused(config):
        outcome = "paused"
    else:
        outcome = reconcile(config, model, request_id, left)
    return {"model": model, "outcome": outcome}


# --- shared: from here on the three handlers are the same, byte for byte (tests/unit/test_handlers.py) --------------

UPLOAD_PREFIX = "data/train/"
SNAPSHOT_PREFIX = "data/snapshots/"
REJECTED_PREFIX = "data/rejected/"
RAW_MODEL_PREFIX = "models/raw/"
DECISION_PREFIX = "models/decisions/"
APPROVED_PREFIX = "models/approved/"
DEPLOYMENT_PREFIX = "models/deployments/"
PAUSED_KEY = "control/paused.json"
DEFAULT_MODEL = "default"
MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
JOB_NAME = re.compile(r"training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
APPROVED_KEY = re.compile(
    rf"{APPROVED_PREFIX}(?P<model>{MODEL_NAME.pattern})/(?P<job>{JOB_NAME.pattern})/model\.tar\.gz"
)
TERMINAL = ("Completed", "Failed", "Stopped")

# The shape of the records that this version writes (scripts/mlops/records.py).
SCHEMA = 2
# Longer than the longest function timeout (900 s): whoever holds an expired lease is dead.
LEASE_SECONDS = 20 * 60
LEASED, LEASED_AGAIN = "leased", "leased again"
# How far back a sweep looks, by the time in the jobs' names.
LOOK_BACK_DAYS = 7
# What fails is tried again at every event at first, then once an hour, then given up: about a day in all.
EAGER_TRIES, LATER_TRIES_SECONDS, GIVE_UP_TRIES = 5, 60 * 60, 24
# A conditional write may meet another one on its way. A conflict that lasts is an error.
CONFLICT_TRIES, CONFLICT_PAUSE_SECONDS = 5, 0.2
# CopyObject refuses a larger source (S3 API reference, CopyObject), so larger ones are copied in parts.
COPY_OBJECT_MAX_BYTES = 5 * 1024**3
COPY_PART_BYTES = 512 * 1024**2
COPY_THREADS = 8
# Seen in examples of CreateTrainingJob (amazon-sagemaker-examples#1001).
NOT_IN_REGION = "is not available in this region"
# The calls whose refusal is an outcome, which people are emailed.
REFUSABLE = ("CreateTrainingJob", "CreateModel", "CreateEndpointConfig", "CreateEndpoint", "UpdateEndpoint")
THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded")
# Characters that Python calls printable, and nobody sees: those of Unicode's Default_Ignorable_Code_Point, a blank.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# In characters: an S3 key has at most 1,024 bytes, a FailureReason 1,024 characters.
PLAIN_MAX = 2000
# SNS: a subject has less than 100 characters and no line breaks, a message at most 262,144 bytes (Publish).
SUBJECT_MAX_CHARACTERS, MESSAGE_MAX_BYTES = 99, 262_144

log = logging.getLogger()
# At INFO, botocore logs where it found its credentials and endpoints.
logging.getLogger("botocore").setLevel(logging.WARNING)


def plain(value: object, limit: int = PLAIN_MAX) -> str:
    """A value from outside, on one line of at most limit characters: what would break the line, reorder it, or not be
    seen, is shown as an escape (\\n, \\x1b, \\u202e). What is plain already stays as it is."""
    shown = "".join(c if c.isprintable() and not UNSEEN.match(c) else ascii(c)[1:-1] for c in str(value)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def plain_record(record: logging.LogRecord) -> bool:
    """Make a log record plain. (Lambda's JSON escapes what is below a space, and nothing else.)"""
    record.msg, record.args = record.getMessage(), ()
    vars(record).update({name: plain(value) for name, value in vars(record).items() if isinstance(value, str)})
    return True


log.addFilter(plain_record)


class ConfigError(ValueError):
    """An environment variable is missing or malformed; the text names it."""


class EventError(ValueError):
    """The event lacks a field or has one of the wrong type; the text names it."""


def required(env: Mapping[str, str], name: str) -> str:
    """The variable's value. Raises ConfigError when it is missing or empty."""
    value = env.get(name, "")
    if not value.strip():
        raise ConfigError(f"environment variable {name} is missing or empty: set it in Terraform and apply")
    return value


def positive_int(env: Mapping[str, str], name: str) -> int:
    """The variable as a whole number above zero. Raises ConfigError otherwise."""
    value = required(env, name)
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) == 0:
        raise ConfigError(f"environment variable {name} must be a whole number above 0, not {value!r}")
    return int(value)


def json_object(env: Mapping[str, str], name: str) -> dict[str, Any]:
    """The variable as a JSON object. Raises ConfigError otherwise."""
    value = required(env, name)
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ConfigError(f"environment variable {name} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ConfigError(f"environment variable {name} must be a JSON object, not {value!r}")
    return parsed


@functools.cache
def settings() -> Settings:
    return Settings.from_env(os.environ)


@functools.cache
def client(service: str) -> Any:
    return boto3.client(service, config=Config(retries={"mode": "standard", "max_attempts": 5}))


def field(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    """One field of an event. Raises EventError when it is missing, empty or of another type."""
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(value, kind) or not value:
        raise EventError(f"the event's field {name!r} must be a non-empty {kind.__name__}, not {value!r:.100}")
    return value


def unwrap(event: Mapping[str, Any], context: Any) -> tuple[Mapping[str, Any], str]:
    """The event proper, and the request id to work under. Raises EventError.

    `make redrive` wraps a failed event with the id of the invocation that failed, to take over its leases.
    """
    if "redrive_of" not in event:
        return event, context.aws_request_id
    return field(event, "event", dict), field(event, "redrive_of", str)


def now() -> datetime:
    return datetime.now(UTC)


def age(at: str) -> float:
    """Seconds since a time in a record."""
    return (now() - datetime.fromisoformat(at)).total_seconds()


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def error_message(error: ClientError) -> str:
    return plain(error.response.get("Error", {}).get("Message", ""))


def over_quota(error: ClientError) -> bool:
    """Whether a quota of the account is used up. The same code says that a region lacks an instance type."""
    return error_code(error) == "ResourceLimitExceeded" and NOT_IN_REGION not in error_message(error)


def is_refused(error: ClientError) -> bool:
    """Whether SageMaker refuses to do what it is asked for: unlike its own faults, that does not pass by itself."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    is_client_error = 400 <= status < 500 and error_code(error) not in THROTTLED
    return error.operation_name in REFUSABLE and is_client_error and not over_quota(error)


def cause(reason: str) -> str:
    """What AWS said without ids and numbers: a request's id or a quota's use change, the cause does not."""
    return re.sub(r"[0-9]+", "#", re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "#", reason))


def is_gone(error: ClientError) -> bool:
    """Whether S3 says that the object does not exist.

    It says so only to a role with s3:ListBucket on the bucket; to others it is 403 (S3 API reference, GetObject).
    """
    return error_code(error) in ("NoSuchKey", "NoSuchVersion", "404")


def list_objects(bucket: str, prefix: str, start_after: str = "") -> Iterator[dict[str, Any]]:
    """The objects under a prefix whose keys sort after prefix + start_after: Key, ETag, Size and LastModified."""
    pages = client("s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=prefix + start_after):
        yield from page.get("Contents", [])


def list_keys(bucket: str, prefix: str, start_after: str = "") -> Iterator[str]:
    """The keys under a prefix that sort after prefix + start_after."""
    return (item["Key"] for item in list_objects(bucket, prefix, start_after))


def look_back() -> str:
    """A job's name as of LOOK_BACK_DAYS ago: names sort by time."""
    return f"training-job-{now() - timedelta(days=LOOK_BACK_DAYS):%Y%m%d-%H%M%S}"


def exists(bucket: str, key: str) -> bool:
    try:
        client("s3").head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_gone(error):
            return False
        raise
    return True


def read_json(bucket: str, key: str) -> tuple[Any, str] | tuple[None, None]:
    """A record and its ETag, or (None, None) where there is none."""
    try:
        answer = client("s3").get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_gone(error):
            return None, None
        raise
    return json.loads(answer["Body"].read()), answer["ETag"]


def put_json(bucket: str, key: str, record: Mapping[str, Any], **condition: str) -> str | None:
    """Write a record and return its ETag; condition: IfNoneMatch="*" or IfMatch=<etag>, None when it did not hold."""
    body = json.dumps(record, indent=1, allow_nan=False).encode()
    request = {"Bucket": bucket, "Key": key, "Body": body, "ContentType": "application/json", **condition}
    for tries_left in reversed(range(CONFLICT_TRIES)):
        try:
            return str(client("s3").put_object(**request)["ETag"])
        except ClientError as error:
            # Another write is under way and may come to nothing: S3 asks to try again (PutObject, If-None-Match).
            if error_code(error) == "ConditionalRequestConflict" and tries_left:
                time.sleep(random.uniform(0, CONFLICT_PAUSE_SECONDS))
                continue
            if error_code(error) != "PreconditionFailed":
                raise
            break
    # Or it held and the answer was lost: the SDK repeated the call and met our own record.
    present, etag = read_json(bucket, key)
    return etag if present == json.loads(body) else None


def leased_by_another(entry: Mapping[str, Any] | None, request_id: str) -> bool:
    """Whether another invocation, which may still be alive, holds an entry with "by" (request id) and "at" (time).

    Lambda keeps the request id through its retries, so a retry finds its own lease. Schema 1 has "request_id" for "by".
    """
    by_another = entry and request_id not in (entry.get("by"), entry.get("request_id"))
    return bool(entry and by_another and age(entry["at"]) < LEASE_SECONDS)


def take_lease(bucket: str, step: str, job: str, request_id: str) -> str:
    """Take the lease on one step of a job: LEASED, or LEASED_AGAIN where somebody had it before and may have done it.

    "": another invocation holds it; leave the step to that one.
    """
    key = f"claims/{step}/{job}.json"
    mine = {"schema": SCHEMA, "by": request_id, "at": now().isoformat()}
    if put_json(bucket, key, mine, IfNoneMatch="*"):
        return LEASED
    held, etag = read_json(bucket, key)
    if held is None or etag is None or leased_by_another(held, request_id):
        return ""
    return LEASED_AGAIN if put_json(bucket, key, mine, IfMatch=etag) else ""


def due_again(tries: int, at: str) -> bool:
    """Whether what failed that many times, the last time at a moment, is to be tried again now."""
    return tries < EAGER_TRIES or age(at) > LATER_TRIES_SECONDS


def copy_object(
    bucket: str, key: str, source: Mapping[str, str], etag: str, size: int, metadata: dict[str, str]
) -> None:
    """Copy an object of any size (in bytes) inside S3, pinned to its ETag, without its tags.

    Raises ClientError PreconditionFailed when the source is no longer the one with that ETag.
    """
    request: dict[str, Any] = {"MetadataDirective": "REPLACE", "Metadata": metadata, "TaggingDirective": "REPLACE"}
    request["CopySourceIfMatch"] = etag
    if size <= COPY_OBJECT_MAX_BYTES:
        client("s3").copy_object(Bucket=bucket, Key=key, CopySource=dict(source), **request)
        return
    transfer = TransferConfig(
        multipart_threshold=COPY_OBJECT_MAX_BYTES + 1,
        multipart_chunksize=COPY_PART_BYTES,
        max_concurrency=COPY_THREADS,
        use_threads=COPY_THREADS > 1,
    )
    client("s3").copy(dict(source), bucket, key, ExtraArgs=request, Config=transfer)


class Wording(str):
    """A text of ours, which may have several lines. Its values are plain, so it goes into another one as it is."""


class Filler(string.Formatter):
    """Makes each value plain that goes into a text, so that no value changes its lines."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return value if isinstance(value, Wording) else plain(format(value, format_spec))


def fill(template: str, /, **values: object) -> Wording:
    """A text with its values, which are named in it as in str.format."""
    return Wording(Filler().vformat(template, (), values))


def table(rows: Sequence[tuple[str, object]]) -> Wording:
    """Rows of (name, value) as indented, aligned lines for a plain-text email."""
    width = max(len(name) for name, _ in rows)
    return Wording("\n".join(f"  {name:<{width}}  {plain(value)}" for name, value in rows))


def human_bytes(size: int) -> str:
    """A size in bytes for people: 512 bytes, 1.4 MB."""
    if size < 1000:
        return f"{size} bytes"
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= s)
    return f"{size / scale:.1f} {unit}"


def notify(
    topic_arn: str, email: Mapping[str, str], model: str, rows: Sequence[tuple[str, object]], **values: object
) -> None:
    """Send an email: "subject" and "body" are filled with values, and {table} with rows; no value changes its lines.
    People filter their subscription by "stage", "status" and model."""
    values |= {"model": model, "table": table(rows)}
    subject = fill(email["subject"], **values).encode("ascii", "replace").decode()
    body = fill(email["body"], **values)
    attributes = {"stage": email["stage"], "status": email["status"], "model": model}
    client("sns").publish(
        TopicArn=topic_arn,
        Subject=subject[:SUBJECT_MAX_CHARACTERS],
        Message=body.encode()[:MESSAGE_MAX_BYTES].decode(errors="ignore"),
        MessageAttributes={name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()},
    )
