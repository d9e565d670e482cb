"""The bucket in memory that the fault harness uses answers as moto's does, with the refusals of AWS added to that."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_s3 import FakeS3
from world import BUCKET, World

NAMES = ("a", "a/b", "a b+é.csv", "b")
BODIES = (b"", b"one", b"two, longer")
ANY_ETAG = '"00000000000000000000000000000000"'
numbers = itertools.count()


class Side:
    """One of the two buckets, and the versions and ETags that it gave out, by number."""

    def __init__(self, s3: Any, prefix: str) -> None:
        self.s3, self.prefix = s3, prefix
        self.versions: list[str] = ["no-such-version"]
        self.etags: list[str] = [ANY_ETAG]

    def where(self, name: str) -> dict[str, str]:
        return {"Bucket": BUCKET, "Key": self.prefix + name}

    def of(self, kind: str, number: int | None) -> dict[str, str]:
        """A precondition or a version, by the number of what this side gave out."""
        given_out = self.versions if kind == "VersionId" else self.etags
        return {} if number is None else {kind: given_out[number % len(given_out)]}

    def written(self, answer: dict[str, Any]) -> None:
        self.versions.append(answer["VersionId"])
        self.etags.append(answer.get("CopyObjectResult", answer)["ETag"])

    # --- the calls, with what the handlers read of the answer ---------------------------------------

    def put(self, name: str, body: bytes, none: bool, match: int | None) -> object:
        condition = {"IfNoneMatch": "*"} if none else self.of("IfMatch", match)
        answer = self.s3.put_object(**self.where(name), Body=body, Metadata={"n": str(len(body))}, **condition)
        self.written(answer)
        return answer["ETag"]

    def get(self, name: str, version: int | None, match: int | None, part: bool) -> object:
        which = self.of("VersionId", version) | self.of("IfMatch", match) | ({"Range": "bytes=0-2"} if part else {})
        answer = self.s3.get_object(**self.where(name), **which)
        return answer["Body"].read(), answer["ETag"], answer["ContentLength"], answer["Metadata"]

    def head(self, name: str) -> object:
        answer = self.s3.head_object(**self.where(name))
        return answer["ETag"], answer["ContentLength"], answer["Metadata"]

    def copy(self, name: str, to: str, version: int | None, match: int | None) -> object:
        answer = self.s3.copy_object(
            **self.where(to), CopySource=self.where(name) | self.of("VersionId", version),
            MetadataDirective="REPLACE", TaggingDirective="REPLACE", Metadata={"copied": "yes"},
            **self.of("CopySourceIfMatch", match),
        )  # fmt: skip
        self.written(answer)
        return answer["CopyObjectResult"]["ETag"]

    def copy_in_parts(self, name: str, to: str, match: int | None) -> object:
        size = self.s3.head_object(**self.where(name))["ContentLength"]
        if size == 0:
            return None  # S3 refuses a range of nothing, moto does not
        upload = self.s3.create_multipart_upload(**self.where(to), Metadata={"copied": "in parts"})["UploadId"]
        part = self.s3.upload_part_copy(
            **self.where(to), UploadId=upload, PartNumber=1, CopySource=self.where(name),
            CopySourceRange=f"bytes=0-{size - 1}", **self.of("CopySourceIfMatch", match),
        )  # fmt: skip
        parts = [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]
        answer = self.s3.complete_multipart_upload(**self.where(to), UploadId=upload, MultipartUpload={"Parts": parts})
        self.written(answer)
        return answer["ETag"]

    def managed_copy(self, name: str, to: str, version: int | None, match: int | None, in_parts: bool) -> object:
        """boto3's own copy, as the handlers call it (copy_object)."""
        replaced = {"MetadataDirective": "REPLACE", "TaggingDirective": "REPLACE", "Metadata": {"copied": "managed"}}
        self.s3.copy(
            self.where(name) | self.of("VersionId", version), BUCKET, self.prefix + to,
            ExtraArgs=replaced | self.of("CopySourceIfMatch", match),
            Config=TransferConfig(multipart_threshold=1 if in_parts else 1024, use_threads=False),
        )  # fmt: skip
        answer = self.s3.head_object(**self.where(to))
        self.written(answer)
        return answer["ETag"], answer["ContentLength"], answer["Metadata"]

    def delete(self, name: str) -> object:
        self.s3.delete_object(**self.where(name))
        return None

    def list(self, within: str, after: str, delimiter: bool) -> object:
        prefix = self.prefix + within
        more = {"Delimiter": "/"} if delimiter else {}
        paginator = self.s3.get_paginator("list_objects_v2")
        pages = list(paginator.paginate(Bucket=BUCKET, Prefix=prefix, StartAfter=prefix + after, **more))
        found = [(item["Key"], item["Size"], item["ETag"]) for page in pages for item in page.get("Contents", [])]
        return found, [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]


name, number = st.sampled_from(NAMES), st.none() | st.integers(0, 5)
CALLS = st.one_of(
    st.tuples(st.just("put"), name, st.sampled_from(BODIES), st.booleans(), number),
    st.tuples(st.just("get"), name, number, number, st.booleans()),
    st.tuples(st.just("head"), name),
    st.tuples(st.just("copy"), name, name, number, number),
    st.tuples(st.just("copy_in_parts"), name, name, number),
    st.tuples(st.just("managed_copy"), name, name, number, number, st.booleans()),
    st.tuples(st.just("delete"), name),
    st.tuples(st.just("list"), st.sampled_from(("", "a", "a/")), st.sampled_from(("", "a", "b")), st.booleans()),
)


def outcome(call: Callable[..., object], arguments: tuple[Any, ...]) -> object:
    try:
        return call(*arguments)
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(calls=st.lists(CALLS, min_size=1, max_size=12))
def test_the_bucket_in_memory_answers_as_motos(world: World, calls: list[tuple[Any, ...]]) -> None:
    prefix = f"{next(numbers)}/"
    moto = Side(world.client("s3"), prefix)
    memory = Side(FakeS3(BUCKET, lambda _: lambda: None), prefix)
    for method, *arguments in calls:
        expected = outcome(getattr(moto, method), tuple(arguments))
        assert outcome(getattr(memory, method), tuple(arguments)) == expected, (method, arguments)
