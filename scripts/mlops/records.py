"""Every JSON record in the bucket: its key, its shape, its states. The commands' one definition of them.

The functions (lambda/*/handler.py) stand alone, so they repeat what they need of this; a test compares the two.
`schema` is the version of a record's shape. SCHEMA is what the functions write now. A bucket may still hold records of
schema 1, and the functions that are deployed may still write them: a reader here (`deployment`, `ledger`, ...) gives
any record in today's shape, and `changed` writes a deployment back in the schema that it came in.

Times are ISO 8601 in UTC ("2026-12-01T10:00:00+00:00"), sizes are bytes, ETags have no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, NotRequired, TypedDict, cast

SCHEMA = 2

# --- names -------------------------------------------------------------------------------------------

DEFAULT_MODEL = "default"
# 1 to 32 characters, a letter or digit at both ends.
MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
JOB_NAME = re.compile(r"training-job-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
# The endpoint config of a deployment: the job, and a hash of everything that goes into the model and the config.
CONFIG_NAME = re.compile(rf"({JOB_NAME.pattern})-[0-9a-f]{{8}}")

# --- keys --------------------------------------------------------------------------------------------

UPLOAD_PREFIX = "data/train/"
SNAPSHOT_PREFIX = "data/snapshots/"
REJECTED_PREFIX = "data/rejected/"
RAW_PREFIX = "models/raw/"
APPROVED_PREFIX = "models/approved/"
DECISION_PREFIX = "models/decisions/"
DEPLOYMENT_PREFIX = "models/deployments/"
PAUSED_KEY = "control/paused.json"
LEDGER_KEY = "slots/training.json"
SETTINGS_FILE = "settings.json"  # beside a model's files
SETTINGS_MAX_BYTES = 4096


def snapshot_key(job: str, name: str) -> str:
    """A file of a job's snapshot: data.csv, source.json, started.json, waiting.json, given_up.json, retrained.json."""
    return f"{SNAPSHOT_PREFIX}{job}/{name}"


def rejected_key(job: str) -> str:
    return f"{REJECTED_PREFIX}{job}.json"


def decision_key(job: str) -> str:
    return f"{DECISION_PREFIX}{job}.json"


def deployment_key(config: str) -> str:
    return f"{DEPLOYMENT_PREFIX}{config}.json"


def artifact_key(model: str, job: str) -> str:
    """An approved model's archive."""
    return f"{APPROVED_PREFIX}{model}/{job}/model.tar.gz"


def job_of_config(config: str) -> str:
    """The training job in the name of an endpoint config that this pipeline made; else the name itself."""
    match = CONFIG_NAME.fullmatch(config)
    return match[1] if match else config


# --- an upload and its training job ------------------------------------------------------------------


class Sending(TypedDict):
    """One email, inside a ledger or a deployment record: a function enters it, sends the email, then sets `done`.

    Another invocation sends the email again only where `done` is false and whoever entered it must be dead.
    """

    by: str  # Lambda's request id
    at: str  # when it was entered
    done: bool


class ModelSettings(TypedDict, total=False):
    """What the settings.json beside a model's CSVs chose (settings.schema.json); the rest is Terraform's.

    Written by whoever uploads the data, and into source.json by the training orchestrator.
    """

    text_column: str
    label_column: str
    base_model: str
    candidates: str
    epochs: int
    holdout_fraction: float
    learning_rate: float
    max_length: int
    seed: int
    base_model_revision: str  # not chosen: that of base_model, as Terraform had it then


class Source(TypedDict):
    """data/snapshots/<job>/source.json: where the data of a job came from. Written once, before the job starts.

    Written by the training orchestrator, and by `retrain` for a new job on old data; with it, the snapshot is
    complete. Read by all three functions and by `status`.
    """

    schema: int
    job: str
    model: str
    bucket: str
    key: str  # of the upload, raw (not URL-encoded)
    version_id: str | None  # None in a bucket without versions
    etag: str
    sequencer: str  # S3's, from the upload event
    size: int
    uploaded_at: str
    told: NotRequired[dict[str, str]]  # what the file holds, as the rows of a table; not in older records
    settings: NotRequired[ModelSettings]  # those that it came with, and is trained with; not in older records
    retrain_of: NotRequired[str]  # the job whose data this is


class Started(TypedDict):
    """data/snapshots/<job>/started.json: CreateTrainingJob was accepted.

    Written by the training orchestrator; read by the training orchestrator, the evaluator's sweep and `status`.
    """

    schema: int
    job: str
    started_at: str


# "for" is a keyword of Python's, so this one cannot be a class.
Waiting = TypedDict("Waiting", {"schema": int, "job": str, "model": str, "for": str, "at": NotRequired[str]})
"""data/snapshots/<job>/waiting.json: the job waits; `for` is what it waits for, in words. Schema 1 has no `at`.

Written by the training orchestrator; read by `status`.
"""


class GivenUp(TypedDict):
    """data/snapshots/<job>/given_up.json: the job could not be started, and is not tried again.

    Written by the training orchestrator; read by the training orchestrator, `status` and `retrain`.
    """

    schema: int
    job: str
    tries: int  # how often starting it failed
    at: str
    reason: NotRequired[str]  # what AWS said the last time; not in schema 1


class Retrained(TypedDict):
    """data/snapshots/<job>/retrained.json: somebody had the job's data trained on again.

    Written by `retrain` before it copies anything, so that a job has one successor however often the command runs;
    read by `retrain`.
    """

    schema: int
    job: str  # the new job
    by: str  # ARN of the person
    at: str


class Rejected(TypedDict):
    """data/rejected/<job>.json: an upload that is not trained on; there is no snapshot and no job of that name.

    Written by the training orchestrator; read by the training orchestrator, `status` and `retrain`.
    """

    schema: int
    job: str
    model: str  # "" where the folder is not a model name
    bucket: NotRequired[str]  # not in schema 1, as are sequencer, size and uploaded_at
    key: str
    version_id: str | None
    etag: str
    sequencer: NotRequired[str]
    size: NotRequired[int]
    uploaded_at: NotRequired[str]
    told: NotRequired[dict[str, str]]  # what the file holds, as the rows of a table, where it could be read
    settings: NotRequired[ModelSettings]  # those that it came with
    reason: str  # a sentence for people
    rejected_at: str
    known_job: NotRequired[str]  # the job that has the same data, where that is why, else ""; not in older records


class LedgerJob(TypedDict):
    """A training job in the ledger: held (it takes a slot), ended, or failed (it could not be started)."""

    state: Literal["held", "ended", "failed"]
    by: str  # Lambda's request id
    at: str  # of the last change
    tries: int
    reason: NotRequired[str]  # of a failed one: what AWS said
    emailed: NotRequired[str]  # the refusal by AWS that people were emailed, without its ids and numbers


class LedgerDay(TypedDict):
    """What the daily limit counts: the jobs that were started on a UTC day."""

    date: str  # YYYY-MM-DD, "" before the first job
    jobs: list[str]


class LedgerQuota(TypedDict):
    """SageMaker's refusals because of a quota, since a job last ended."""

    name: str  # the quota's, as in Service Quotas
    instance_type: str  # what a job runs on, in words: with their number and "(spot)"
    tries: int
    at: str  # of the last one
    reason: str  # what AWS said
    is_0: bool  # it is less than one job takes: waiting does not help


class Crowd(Sending):
    """The last email on rejections that share one."""

    jobs: list[str]  # that are to be in the next


class Ledger(TypedDict):
    """slots/training.json: what makes the spend guards exact. Every change is a conditional write.

    Written and read by the training orchestrator; read by `status` and `upload`.
    """

    schema: int
    jobs: dict[str, LedgerJob]
    day: LedgerDay
    oldest_waiting: str  # job, or "" when no upload waits
    quota: LedgerQuota | None  # None: no refusal
    emails: dict[str, Sending]  # by what the line waits for
    models: list[str]  # that were ever let in, which stay so; [] before the first upload. Not before max_models
    rejected: dict[str, Crowd]  # by model and what is told, "" for what has no crowd of its own. Not before max_models


def ledger(record: Mapping[str, Any]) -> Ledger:
    """A ledger in today's shape. Schema 1 has line {oldest, capped}, told and never {instance_type, at}."""
    current = dict(record)
    line, told, never = (current.pop(name, None) for name in ("line", "told", "never"))
    zero = never and {"name": "", "tries": 0, "reason": "", "is_0": True} | never
    current = {"oldest_waiting": line["oldest"] if line else "", "quota": zero, "emails": told or {}} | current
    return cast(Ledger, {"models": [], "rejected": {}} | current)


def has_room(model: str, models: Collection[str], max_models: int, known: Collection[str]) -> bool:
    """Whether a model may be trained: it is in the list, or without one, known or within the maximum.

    The training orchestrator has the same (tests/contract/test_one_definition.py).
    """
    return model in models if models else model in known or len(known) < max_models


class Tries(TypedDict):
    """claims/tries/<job>.json: how often the evaluator's sweep has tried to decide on a job.

    Written and read by the model evaluator.
    """

    schema: int
    tries: int
    at: str  # of the last try
    reason: NotRequired[str]  # what went wrong then; not in schema 1


class Claim(TypedDict):
    """claims/<step>/<job>.json: an invocation's lease on one step of one job.

    Written and read by the training orchestrator and the model evaluator.
    """

    schema: int
    by: NotRequired[str]  # Lambda's request id
    request_id: NotRequired[str]  # what schema 1 has in place of `by`
    at: str


class UploadClaim(TypedDict):
    """claims/snapshot/upload-<hash of key and ETag>.json: the jobs of an upload, by its version ("": none).

    Whoever sees a version first, its event or the sweep, names its job. Written and read by the training orchestrator.
    """

    schema: int
    jobs: dict[str, str]


class DataClaim(TypedDict):
    """data/claims/<hash of data, settings and training source>.json: the job that trains on them.

    An upload that meets another job's claim is not trained on as long as that job has its snapshot. Written and read by
    the training orchestrator.
    """

    schema: int
    job: str
    at: str  # since when


# --- what training and evaluation found --------------------------------------------------------------


Figures = dict[str, float]  # by metric


class ComparedSet(TypedDict):
    """The live and the new model on the same rows, and the standard errors of their differences."""

    name: str
    rows: int
    live: Figures
    new: Figures
    error: Figures


class Champion(TypedDict):
    """The comparison of a new model with the live one, by the training program; the evaluator adds the last two."""

    job: str  # the live model's
    status: NotRequired[str]  # "compared", "respelt labels", or why it was not compared; not in schema 1
    compared: bool
    note: str  # a line for people
    respelt: NotRequired[str]  # labels that the live model spells differently: new for old; not in older records
    kept: float | None  # share (0 to 1) of the live model's training rows in the new data; None: unknown
    sets: list[ComparedSet]
    margin: NotRequired[float]  # how much worse the new model may be, in units of each metric
    below_best: NotRequired[Figures]  # how far the new model trails the best one so far


class Metrics(TypedDict, total=False):
    """metrics.json, in the job's output archive and in model.tar.gz. Has a schema of its own.

    Written by the training program, read by the model evaluator, which copies the numbers, `told` and `champion` into
    its decision. The labels themselves are in the model's config.json: there may be thousands. What another training
    program writes need not hold more than the metrics that have a threshold.
    """

    schema: int
    accuracy: float  # 0 to 1, as all of these but eval_loss
    macro_f1: float
    macro_precision: float
    macro_recall: float
    eval_loss: float
    train_examples: int
    holdout_examples: int
    label_count: int
    max_length: int  # tokens
    cut_texts: int  # of both kinds of examples, how many have more tokens
    unknown_token_share: float  # of the tokens that are left: those of what the base model does not know
    told: dict[str, str]  # what the data holds, as rows for people: at most 20, of at most 1,200 characters
    base_model: str
    base_model_revision: str
    seed: int
    train_seconds: float
    champion: Champion | None  # None: no model was live


class Check(TypedDict):
    """One metric against one bound: a threshold, or what the live model reaches on the same rows."""

    metric: str
    direction: Literal["min", "max"]
    threshold: float
    value: float | None  # None: missing, or not a finite number
    passed: bool
    reason: str  # a sentence for people
    rows: str  # what was judged on: "hold-out" is the job's own
    live: float | None  # the live model's value; None where the bound is a threshold


class Cost(TypedDict):
    """What SageMaker says that a training job took, and bills."""

    training_seconds: int
    billable_seconds: int  # of each instance; of spot ones, as many as they would be at the usual price
    instances: int
    saving_percent: float | None  # of spot instances; None: they were on demand


class Decision(TypedDict):
    """models/decisions/<job>.json: the verdict on a training job that has ended, whatever it was.

    Written once, by the model evaluator; read by all three functions, `status`, `retrain` and `demo`.
    """

    schema: int
    job: str
    model: str
    data: dict[str, Any]  # of the source: bucket, key, version_id, etag, size
    artifact: dict[str, Any] | None  # of model.tar.gz: key, etag, size; None where there is none
    metrics: Figures  # the finite ones
    told: NotRequired[dict[str, str]]  # what the data holds, as rows for people; not in older ones
    thresholds: dict[str, Figures]  # {"accuracy": {"min": 0.85}}
    checks: list[Check]
    champion: Champion | None  # None: no model was live
    rivals: dict[str, Figures]  # by job: models that were approved since the training began, on the same rows
    golden: list[dict[str, Any]]  # hold-out rows (text, label, score) with the answers that the endpoint must give
    golden_note: str  # why there are none
    cost: NotRequired[Cost | None]  # None: SageMaker does not say; not in older ones
    approved_key: str | None  # where the archive was copied to
    verdict: Literal["approved", "rejected", "held", "failed", "stopped"]  # held: not compared with the live model
    reason: str  # a sentence for people
    decided_at: str


# --- deployments -------------------------------------------------------------------------------------

DeploymentState = Literal[
    "requested",  # entered in the record; SageMaker may not have been called yet
    "started",  # SageMaker accepted the call; the endpoint is changing
    "waiting",  # refused or postponed: the next event or sweep tries again
    "held",  # somebody deleted the endpoint: waits for `make resume MODEL=...`
    "confirmed",  # the endpoint served it, and its answers were right
    "rolled back",  # SageMaker went back to the model before
    "failed",  # it did not come up, or answered wrongly
    "superseded",  # another model took its place before it was confirmed
    "withdrawn",  # a person said no
    "removed",  # its model and endpoint config were cleaned up
]
# On its way to the endpoint.
OPEN = ("requested", "started")
# Not deployed again unless a person asks for it.
BAD = ("rolled back", "failed", "withdrawn")
# The reason of schema 1's "waiting" that is "held" today.
DELETED_BY_HAND = "the endpoint was deleted by hand"


class Withdrawn(TypedDict):
    """Who said no to a model, and which job's model was to be served instead."""

    by: str  # ARN of the person
    at: str
    reason: str
    to: str


class Deployment(TypedDict):
    """models/deployments/<endpoint config>.json: what was asked of an endpoint, and what became of it.

    Written by the deployment orchestrator, and by `rollback` and `resume`; every change is a conditional write. Read by
    these, the training orchestrator, `status` and `destroy`.
    """

    schema: int
    config: str
    endpoint: str
    model: str
    model_name: str  # SageMaker's model; `model` is the pipeline's
    job: str
    artifact: dict[str, Any]  # key, etag, size
    requests: dict[str, Any]  # the calls as sent: model (CreateModel), config (CreateEndpointConfig)
    state: DeploymentState
    by: str  # who changed the record last: Lambda's request id, or a person's ARN
    at: str  # when
    reason: str
    tries: int
    endpoint_last_modified: str | None  # before the call; None where there was no endpoint
    previous_config: str | None  # what the endpoint served then
    restores: str  # why a model that was live before is deployed again; "" for a new one
    started_at: str  # "" before that
    ended: NotRequired[str | None]  # the endpoint's last-modified time when the deployment was over; "" before
    checked: NotRequired[str]  # what came of the golden rows, for people
    unanswered: NotRequired[int]  # invocations that asked them of a serverless endpoint and got no answer
    cleaned: NotRequired[bool]  # false: older models are still to be cleaned up after it
    deleted_by: Literal[
        "", "pipeline"
    ]  # "pipeline": the endpoint was deleted by a function, or not recreated by resume
    emails: dict[str, Sending]  # by what they say, of this attempt
    gone: NotRequired[bool]  # its model and endpoint config were deleted
    withdrawn: NotRequired[Withdrawn]


def deployment(record: Mapping[str, Any]) -> Deployment:
    """A deployment record in today's shape.

    Schema 1 has a state "settling" (started, with the email on its end being sent), "waiting" with the reason
    DELETED_BY_HAND, "requested" while the endpoint is deleted to be replaced, and the flags deleted ("", "telling",
    "somebody", "pipeline"), told, replaces, outage and was (a removed one's state before).
    """
    current = dict(record)
    flags = ("deleted", "told", "replaces", "outage", "was")
    deleted, _, replaces, _, was = (current.pop(flag, "") for flag in flags)
    state = current["state"]
    if state == "settling":
        current["state"] = "started"
    elif state == "waiting" and current.get("reason") == DELETED_BY_HAND:
        current["state"] = "held"
    elif state == "requested" and replaces == "delete":
        current["state"] = "waiting"
    elif state == "removed" and was in BAD:
        current["state"] = was
    current = {"deleted_by": "pipeline" if deleted == "pipeline" else "", "emails": {}} | current
    return cast(Deployment, current)


def changed(record: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A deployment record with some of its fields changed, as the functions that wrote it understand it.

    A checkout may be newer than what is deployed: a record of schema 1 stays one. Fields are named as in Deployment.
    """
    data = dict(record)
    if data.get("schema", 1) < 2:
        changes.pop("emails", None)
        if "deleted_by" in changes:
            changes["deleted"] = changes.pop("deleted_by")
    return data | changes


# --- a pause -----------------------------------------------------------------------------------------


class PausedEndpoint(TypedDict):
    """An endpoint that was live before a pause, as resume recreates it."""

    name: str
    model: str
    config: str
    tags: list[dict[str, str]]  # as CreateEndpoint takes them


class Paused(TypedDict):
    """control/paused.json: while it is there, the functions start nothing.

    Written by `pause` and `destroy` before they delete anything; deleted by `resume`, last. Read by all three functions
    (whether it is there), `status`, `rollback` and `retrain`.
    """

    schema: int
    by: str  # ARN of the person
    at: str
    endpoints: list[PausedEndpoint]


def paused(record: Mapping[str, Any]) -> Paused:
    return cast(Paused, dict(record))


def source(record: Mapping[str, Any]) -> Source:
    return cast(Source, dict(record))


def waiting(record: Mapping[str, Any]) -> Waiting:
    return cast(Waiting, dict(record))


def given_up(record: Mapping[str, Any]) -> GivenUp:
    return cast(GivenUp, dict(record))


def retrained(record: Mapping[str, Any]) -> Retrained:
    return cast(Retrained, dict(record))


def rejected(record: Mapping[str, Any]) -> Rejected:
    return cast(Rejected, dict(record))


def decision(record: Mapping[str, Any]) -> Decision:
    return cast(Decision, dict(record))
