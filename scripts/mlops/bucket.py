"""Reading and writing the records in a stack's bucket. Every write is conditional on what was read before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from mlops.target import Target, UsageError, error_code

# CopyObject ends at 5 GiB (S3 API reference); what is larger is copied in parts, all inside S3.
COPY_IN_PARTS = TransferConfig(multipart_threshold=5 * 1024**3, multipart_chunksize=512 * 1024**2, use_threads=False)

Shape = TypeVar("Shape")
Reader = Callable[[Mapping[str, Any]], Shape]


class Changed(UsageError):
    """Somebody else changed a record between our reading and our writing."""

    def __init__(self, key: str) -> None:
        super().__init__(f"somebody else has just changed {key}: look at make status, then run this again")


@dataclass(frozen=True)
class Record(Generic[Shape]):
    """A record with the ETag under which it was read.

    value: in today's shape, for reading; stored: as it is in the bucket, for writing it back.
    """

    key: str
    value: Shape
    stored: dict[str, Any]
    etag: str


def now() -> datetime:
    return datetime.now(UTC)


def read(target: Target, key: str, reader: Reader[Shape]) -> Record[Shape] | None:
    """The record under a key; None where there is none. reader: one of records.py, for the record's shape."""
    try:
        answer = target.client("s3").get_object(Bucket=target.bucket, Key=key)
    except ClientError as error:
        if error_code(error) in ("NoSuchKey", "404"):
            return None
        raise
    stored = json.loads(answer["Body"].read())
    return Record(key, reader(stored), stored, answer["ETag"])


def read_all(target: Target, prefix: str, reader: Reader[Shape]) -> list[Record[Shape]]:
    """The records under a prefix."""
    found = (read(target, key, reader) for key in list_keys(target, prefix) if key.endswith(".json"))
    return [record for record in found if record is not None]


def write(
    target: Target, key: str, data: Mapping[str, Any], replaced: Record[Any] | None, reader: Reader[Shape]
) -> Record[Shape]:
    """Write a record in place of the one that was read, or of none. Raises Changed when that is no longer so."""
    condition = {"IfMatch": replaced.etag} if replaced else {"IfNoneMatch": "*"}
    try:
        answer = target.client("s3").put_object(
            Bucket=target.bucket, Key=key, Body=as_json(data), ContentType="application/json", **condition
        )
    except ClientError as error:
        if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412"):
            raise Changed(key) from error
        raise
    return Record(key, reader(data), dict(data), answer["ETag"])


def as_json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1).encode()


def exists(target: Target, key: str) -> bool:
    try:
        target.client("s3").head_object(Bucket=target.bucket, Key=key)
    except ClientError as error:
        if error_code(error) in ("NoSuchKey", "404"):
            return False
        raise
    return True


def list_keys(target: Target, prefix: str) -> Iterator[str]:
    pages = target.client("s3").get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=prefix)
    return (item["Key"] for page in pages for item in page.get("Contents", []))
