"""The rules take the events that AWS documents, and no near miss.

Two engines judge, and have to agree: MiniStack's, which the local AWS delivers with, and moto's.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from ministack.services.eventbridge import _test_event_pattern
from moto.events.models import EventPattern

from rendered import Plan
from world import ENDPOINT, ROOT, event

Event = dict[str, Any]
RULES = ("approved", "endpoint", "training_ended", "uploads")
# The samples in tests/events, by the rule that is to take them; "" for none.
SAMPLES = {
    "s3_object_created": "uploads",
    "s3_object_created_approved": "approved",
    "s3_object_created_full": "uploads",
    "s3_object_created_minimal": "uploads",
    "s3_object_created_unversioned": "uploads",
    "sagemaker_endpoint_failed": "endpoint",
    "sagemaker_endpoint_in_service": "endpoint",
    "sagemaker_endpoint_minimal": "endpoint",
    "sagemaker_endpoint_updating": "",
    "sagemaker_training_job_completed": "training_ended",
    "sagemaker_training_job_failed": "training_ended",
    "sagemaker_training_job_minimal": "training_ended",
    "sagemaker_training_job_stopped": "training_ended",
}
# The API's spelling (EndpointStatus in botocore) of what an endpoint's event may say; events write it IN_SERVICE.
SETTLED = ("Failed", "InService", "OutOfService", "RollingBack", "UpdateRollbackFailed")
ON_THE_WAY = ("Creating", "Deleting", "SystemUpdating", "Updating")


def event_spelling(status: str) -> str:
    """InService as events write it: IN_SERVICE."""
    return "".join(f"_{letter}" if letter.isupper() and at else letter for at, letter in enumerate(status)).upper()


def changed(sample: str, path: str, value: object) -> Event:
    """A sample event with one field, a/b/c, set to another value; None takes it away."""
    made = copy.deepcopy(event(sample))
    *holders, name = path.split("/")
    holder = made
    for part in holders:
        holder = holder[part]
    assert name in holder
    holder[name] = value
    if value is None:
        del holder[name]
    return made


@pytest.fixture(scope="module")
def taken_by(stack: Plan) -> Callable[[Event], list[str]]:
    """The rules that take an event, by both engines."""
    rules = stack.instances("module.eventbridge.aws_cloudwatch_event_rule.this")
    patterns = {name: rule["event_pattern"] for name, rule in rules.items() if rule["event_pattern"]}
    assert sorted(patterns) == sorted(RULES)

    def matches(pattern: str, given: Event) -> bool:
        status, _, body = _test_event_pattern({"EventPattern": pattern, "Event": json.dumps(given)})
        assert status == 200, body
        answer = bool(json.loads(body)["Result"])
        assert EventPattern.load(pattern).matches_event(given) == answer, (pattern, given)  # type: ignore[arg-type]
        return answer

    return lambda given: [name for name in RULES if matches(patterns[name], given)]


def test_every_sample_is_listed() -> None:
    assert sorted(SAMPLES) == sorted(path.stem for path in (ROOT / "tests" / "events").glob("*.json"))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_documented_event_reaches_its_rule_only(taken_by: Callable[[Event], list[str]], sample: str) -> None:
    assert taken_by(event(sample)) == [rule for rule in [SAMPLES[sample]] if rule]


@pytest.mark.parametrize("status", ["Completed", "Failed", "Stopped"])
def test_every_end_of_a_job_is_taken(taken_by: Callable[[Event], list[str]], status: str) -> None:
    given = changed("sagemaker_training_job_completed", "detail/TrainingJobStatus", status)
    assert taken_by(given) == ["training_ended"]


@pytest.mark.parametrize("status", [*SETTLED, *map(event_spelling, SETTLED)])
@pytest.mark.parametrize("endpoint", [ENDPOINT, f"{ENDPOINT}-reviews"])
def test_an_endpoint_that_settles_is_taken_in_either_spelling(
    taken_by: Callable[[Event], list[str]], endpoint: str, status: str
) -> None:
    given = changed("sagemaker_endpoint_in_service", "detail/EndpointStatus", status)
    given["detail"]["EndpointName"] = endpoint
    assert taken_by(given) == ["endpoint"]


@pytest.mark.parametrize(
    "key", ["data/train/a b+é%20.csv", "data/train/reviews/x.csv", "data/train/", "data/train/x.txt"]
)
def test_every_upload_is_taken_whatever_its_name(taken_by: Callable[[Event], list[str]], key: str) -> None:
    assert taken_by(changed("s3_object_created", "detail/object/key", key)) == ["uploads"]


def near_misses() -> list[tuple[str, str, object]]:
    """(sample, path of the field, the value in it that is not ours)."""
    objects = itertools.product(
        ["s3_object_created", "s3_object_created_approved"],
        [
            ("detail/bucket/name", "atml-models-bucket-2"),
            ("detail/bucket/name", "my-atml-models-bucket"),
            ("detail/bucket/name", "Atml-Models-Bucket"),
            ("detail/bucket/name", None),
            ("detail/object/key", "data/training/x.csv"),
            ("detail/object/key", "data/train"),
            ("detail/object/key", "data/train.csv"),
            ("detail/object/key", "Data/train/x.csv"),
            ("detail/object/key", "old/data/train/x.csv"),
            ("detail/object/key", "data/snapshots/training-job-20261123-120000-0123abcd/data.csv"),
            ("detail/object/key", "data/rejected/training-job-20261123-120000-0123abcd.json"),
            ("detail/object/key", "models/raw/training-job-20261123-120000-0123abcd/output/model.tar.gz"),
            ("detail/object/key", "models/decisions/training-job-20261123-120000-0123abcd.json"),
            ("detail/object/key", "models/deployments/training-job-20261123-120000-0123abcd-0123abcd.json"),
            ("detail/object/key", "models/approved"),
            ("detail/object/key", None),
            ("detail-type", "Object Deleted"),
            ("detail-type", "Object Tags Added"),
            ("account", "111122223333"),
            ("account", None),
            ("source", "aws.s3control"),
            ("source", "my.s3"),
        ],
    )
    jobs = [
        ("detail/TrainingJobStatus", "InProgress"),
        ("detail/TrainingJobStatus", "Stopping"),
        ("detail/TrainingJobStatus", "COMPLETED"),
        ("detail/TrainingJobStatus", None),
        ("detail/TrainingJobName", "kmeans-1"),
        ("detail/TrainingJobName", "my-training-job-20261123-120000-0123abcd"),
        ("detail/TrainingJobName", "training-jobs"),
        ("detail-type", "SageMaker Processing Job State Change"),
        ("detail-type", "SageMaker HyperParameter Tuning Job State Change"),
        ("account", "111122223333"),
        ("account", None),
        ("source", "aws.sagemakerruntime"),
    ]
    endpoints = [
        *(("detail/EndpointStatus", status) for status in ON_THE_WAY),
        *(("detail/EndpointStatus", event_spelling(status)) for status in ON_THE_WAY),
        ("detail/EndpointStatus", "in_service"),
        ("detail/EndpointStatus", "INSERVICE"),
        ("detail/EndpointStatus", None),
        ("detail/EndpointName", f"{ENDPOINT}2"),
        ("detail/EndpointName", f"{ENDPOINT}s-reviews"),
        ("detail/EndpointName", f"my-{ENDPOINT}"),
        ("detail/EndpointName", ENDPOINT[:-1]),
        ("detail/EndpointName", ENDPOINT.upper()),
        ("detail-type", "SageMaker Endpoint Deployment State Change"),
        ("detail-type", "SageMaker Endpoint Config State Change"),
        ("account", "111122223333"),
        ("account", None),
        ("source", "aws.s3"),
    ]
    return [
        *((sample, path, value) for sample, (path, value) in objects),
        *(("sagemaker_training_job_completed", path, value) for path, value in jobs),
        *(("sagemaker_endpoint_in_service", path, value) for path, value in endpoints),
    ]


@pytest.mark.parametrize(("sample", "path", "value"), near_misses())
def test_a_near_miss_is_refused(taken_by: Callable[[Event], list[str]], sample: str, path: str, value: object) -> None:
    assert taken_by(changed(sample, path, value)) == []
