"""S3 on the local AWS: the events of a versioned bucket, and CopyObject's conditions."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

from launcher import ACCOUNT, LocalAws, eventually, local_aws

COPY_LIMIT = 1000  # bytes


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with local_aws(tmp_path_factory.mktemp("aws"), S3_MAX_COPY_BYTES=str(COPY_LIMIT)) as running:
        yield running


@pytest.fixture
def bucket(aws: LocalAws) -> str:
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3 = aws.client("s3")
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration={"EventBridgeConfiguration": {}})
    return name


def queue_of_events(aws: LocalAws, bucket: str) -> str:
    url, arn = aws.queue()
    aws.rule({"source": ["aws.s3"], "detail": {"bucket": {"name": [bucket]}}}, arn)
    return url


def test_an_upload_to_a_versioned_bucket_is_told_with_its_version(aws: LocalAws, bucket: str) -> None:
    url = queue_of_events(aws, bucket)
    key = "data/train/a b+é%20.csv"
    put = aws.client("s3").put_object(Bucket=bucket, Key=key, Body=b"text,label\n")
    event = json.loads(aws.messages(url)[0]["Body"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["time"])
    assert event["source"] == "aws.s3"
    assert event["detail-type"] == "Object Created"
    assert event["account"] == ACCOUNT
    assert event["resources"] == [f"arn:aws:s3:::{bucket}"]
    assert event["detail"]["version"] == "0"
    assert event["detail"]["event-version"] == "1.1"
    assert event["detail"]["reason"] == "PutObject"
    described = event["detail"]["object"]
    assert described.pop("sequencer")
    assert described == {
        "key": key,
        "size": 11,
        "etag": put["ETag"].strip('"'),
        "version-id": put["VersionId"],
    }


def test_a_copy_and_a_multipart_upload_are_told_with_their_versions(aws: LocalAws, bucket: str) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=bucket, Key="source", Body=b"1")
    url = queue_of_events(aws, bucket)
    copied = s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "source"})
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=b"2")
    joined = s3.complete_multipart_upload(
        Bucket=bucket,
        Key="parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    told = {}
    for message in aws.messages(url, 2):
        detail = json.loads(message["Body"])["detail"]
        told[detail["reason"]] = detail["object"]["version-id"]
    assert told == {"CopyObject": copied["VersionId"], "CompleteMultipartUpload": joined["VersionId"]}


def test_an_upload_to_an_unversioned_bucket_has_no_version(aws: LocalAws) -> None:
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3 = aws.client("s3")
    s3.create_bucket(Bucket=name)
    s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration={"EventBridgeConfiguration": {}})
    url = queue_of_events(aws, name)
    s3.put_object(Bucket=name, Key="k", Body=b"1")
    assert "version-id" not in json.loads(aws.messages(url)[0]["Body"])["detail"]["object"]


def refused(call: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    response = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_a_copy_with_if_none_match_does_not_overwrite(aws: LocalAws, bucket: str) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=bucket, Key="source", Body=b"new")
    copy = {"Bucket": bucket, "Key": "target", "CopySource": {"Bucket": bucket, "Key": "source"}, "IfNoneMatch": "*"}
    s3.copy_object(**copy)
    s3.put_object(Bucket=bucket, Key="source", Body=b"newer")
    assert refused(s3.copy_object, **copy) == ("PreconditionFailed", 412)
    assert s3.get_object(Bucket=bucket, Key="target")["Body"].read() == b"new"


def test_a_copy_above_the_size_limit_is_refused(aws: LocalAws, bucket: str) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=bucket, Key="fits", Body=b"x" * COPY_LIMIT)
    large = s3.put_object(Bucket=bucket, Key="too large", Body=b"x" * (COPY_LIMIT + 1))
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "fits"})
    source = {"Bucket": bucket, "Key": "too large"}
    assert refused(s3.copy_object, Bucket=bucket, Key="copy", CopySource=source) == ("InvalidRequest", 400)
    version = {**source, "VersionId": large["VersionId"]}
    assert refused(s3.copy_object, Bucket=bucket, Key="copy", CopySource=version) == ("InvalidRequest", 400)


def test_parts_of_a_large_source_can_still_be_copied(aws: LocalAws, bucket: str) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=bucket, Key="large", Body=b"x" * (COPY_LIMIT + 1))
    upload = s3.create_multipart_upload(Bucket=bucket, Key="copy")["UploadId"]
    part = s3.upload_part_copy(
        Bucket=bucket,
        Key="copy",
        UploadId=upload,
        PartNumber=1,
        CopySource={"Bucket": bucket, "Key": "large"},
    )["CopyPartResult"]
    s3.complete_multipart_upload(
        Bucket=bucket,
        Key="copy",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    assert s3.head_object(Bucket=bucket, Key="copy")["ContentLength"] == COPY_LIMIT + 1


def test_a_copy_of_nothing_is_still_not_found(aws: LocalAws, bucket: str) -> None:
    source = {"Bucket": bucket, "Key": "nothing"}
    assert refused(aws.client("s3").copy_object, Bucket=bucket, Key="copy", CopySource=source) == ("NoSuchKey", 404)


# --- what only tests ask for ---


def tell(aws: LocalAws, path: str, **body: Any) -> dict[str, Any]:
    request = Request(f"{aws.url}/_local/{path}", data=json.dumps(body).encode(), method="POST")
    with urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


@pytest.fixture
def no_events_yet(aws: LocalAws) -> Iterator[None]:
    """Events take five minutes, as on AWS, until they are switched on for a bucket."""
    tell(aws, "s3-event-delay", seconds=300)
    yield
    tell(aws, "s3-event-delay", seconds=0)


def keys_of_events(aws: LocalAws, url: str, count: int) -> list[str]:
    return [json.loads(message["Body"])["detail"]["object"]["key"] for message in aws.messages(url, count)]


@pytest.mark.usefixtures("no_events_yet")
def test_an_upload_soon_after_events_were_switched_on_never_gets_one(aws: LocalAws, bucket: str) -> None:
    url = queue_of_events(aws, bucket)
    aws.client("s3").put_object(Bucket=bucket, Key="lost", Body=b"1")
    eventually(lambda: f"no event for s3://{bucket}/lost" in aws.output.read_text(), "its loss in the log")
    tell(aws, "s3-event-delay", seconds=0)
    aws.client("s3").put_object(Bucket=bucket, Key="told", Body=b"1")
    assert keys_of_events(aws, url, 1) == ["told"]


def test_events_that_were_on_already_are_not_delayed_again(aws: LocalAws, bucket: str) -> None:
    s3 = aws.client("s3")
    url = queue_of_events(aws, bucket)
    tell(aws, "s3-event-delay", seconds=0.5)

    def told() -> Any:
        s3.put_bucket_notification_configuration(
            Bucket=bucket, NotificationConfiguration={"EventBridgeConfiguration": {}}
        )
        s3.put_object(Bucket=bucket, Key="told", Body=b"1")
        return aws.client("sqs").receive_message(QueueUrl=url).get("Messages")

    try:
        eventually(told, "an event")
    finally:
        tell(aws, "s3-event-delay", seconds=0)


def test_an_object_can_be_made_to_look_old(aws: LocalAws, bucket: str) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=bucket, Key="a b+é", Body=b"first")
    newest = s3.put_object(Bucket=bucket, Key="a b+é", Body=b"second")["VersionId"]
    before = datetime.now(UTC)
    told = datetime.fromisoformat(tell(aws, "s3-age", bucket=bucket, key="a b+é", seconds=3600)["last_modified"])
    assert abs((before - told).total_seconds() - 3600) < 60
    whole = told.replace(microsecond=0)
    head = s3.head_object(Bucket=bucket, Key="a b+é")
    assert head["LastModified"] == whole
    assert s3.get_object(Bucket=bucket, Key="a b+é", VersionId=newest)["LastModified"] == whole
    (listed,) = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert listed["LastModified"] == told
    ages = {
        version["IsLatest"]: version["LastModified"] for version in s3.list_object_versions(Bucket=bucket)["Versions"]
    }
    assert ages[True] == told
    assert ages[False] > told


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("s3-event-delay", {}, "the body lacks seconds"),
        ("s3-age", {"key": "k"}, "the body lacks bucket, seconds"),
        ("s3-age", {"bucket": "b", "key": "k", "seconds": 1}, "there is no object s3://b/k"),
    ],
)
def test_what_cannot_be_done_is_refused(aws: LocalAws, path: str, body: dict[str, Any], said: str) -> None:
    with pytest.raises(HTTPError) as error:
        tell(aws, path, **body)
    assert (error.value.code, json.load(error.value)["message"]) == (400, said)
