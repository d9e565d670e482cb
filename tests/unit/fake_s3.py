"""S3 and SNS in memory, for the thousands of runs of tests/faults: what moto answers, in a hundredth of the time.

Requests are checked against botocore's own service model, preconditions as the S3 API reference has them; calls that
the handlers do not make are missing. tests/unit/test_fake_s3.py compares it with moto.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import boto3.s3.inject
import botocore.session
from botocore import xform_name
from botocore.exceptions import ParamValidationError
from botocore.hooks import HierarchicalEmitter
from botocore.model import Shape
from botocore.validate import ParamValidator

from calls import record
from fake_sagemaker import refusal, take_effect

PAGE_KEYS = 1000
COPY_OBJECT_MAX_BYTES = 5 * 1024**3
PART_MIN_BYTES = 5 * 1024**2
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
MODIFIED = datetime(2026, 11, 23, tzinfo=UTC)
Request = dict[str, Any]


@functools.cache
def operations(service: str) -> dict[str, tuple[str, Shape]]:
    """A service's operations by their method's name: (name, shape of the request)."""
    model = botocore.session.get_session().get_service_model(service)
    return {xform_name(name): (name, model.operation_model(name).input_shape) for name in model.operation_names}


class Service:
    """What boto3.client(...) is to the handlers: each method _name(request) is an operation."""

    name = ""
    is_watched = True

    def __init__(self, around: Callable[[str], Callable[[], None]]) -> None:
        self.around = around

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_") or method not in operations(self.name):
            raise AttributeError(method)
        operation, shape = operations(self.name)[method]
        effect = getattr(type(self), f"_{method}")

        def call(**request: Any) -> Any:
            def checked() -> Any:
                # boto3 makes text of a source that is given by its parts.
                source = {"CopySource": "bucket/key"} if isinstance(request.get("CopySource"), dict) else {}
                report = ParamValidator().validate(request | source, shape)
                if report.has_errors():
                    raise ParamValidationError(report=report.generate_report())
                if self.is_watched:
                    record(self.name, operation, request)
                return effect(self, request)

            return take_effect(self.around(operation), checked)

        self.__dict__[method] = call
        return call


class Body(io.BytesIO):
    """The stream of an answer; like boto3's, it can be used in a with statement."""


@dataclass
class Version:
    """One version of an object; body None: a delete marker."""

    id: str
    body: bytes | None
    etag: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    modified: datetime = MODIFIED
    storage_class: str = "STANDARD"
    uploaders_key: bool = False  # SSE-C
    kms_key: str = ""


class FakeS3(Service):
    """One versioned bucket."""

    name = "s3"
    # boto3's own, which makes the calls below.
    copy = boto3.s3.inject.copy

    def __init__(self, bucket: str, around: Callable[[str], Callable[[], None]]) -> None:
        super().__init__(around)
        self.meta = SimpleNamespace(events=HierarchicalEmitter())
        self.versions: dict[str, list[Version]] = {}
        # What time it is, to the second; one thing for all that share the bucket.
        self.clock: list[Callable[[], datetime]] = [lambda: MODIFIED]
        # The KMS keys that the handlers' roles may use.
        self.kms_keys: set[str] = set()
        self._bucket = bucket
        self._uploads: dict[str, tuple[Request, dict[int, bytes]]] = {}
        self._number = itertools.count(1)

    def unwatched(self) -> FakeS3:
        """The same bucket, for what a test does: nothing stands around its calls, and they are not recorded."""
        other = copy.copy(self)
        other.around, other.is_watched = lambda _: lambda: None, False
        return other

    def get_paginator(self, method: str) -> SimpleNamespace:
        def pages(**request: Any) -> Iterator[dict[str, Any]]:
            while True:
                page = getattr(self, method)(**request)
                yield page
                if not page["IsTruncated"]:
                    return
                request["ContinuationToken"] = page["NextContinuationToken"]

        return SimpleNamespace(paginate=pages)

    # --- what is there --------------------------------------------------------------------------------

    def _present(self, operation: str, request: Request) -> Version | None:
        """The version that a request means; None where there is none."""
        if request["Bucket"] != self._bucket:
            raise refusal(operation, "NoSuchBucket", "The specified bucket does not exist", 404)
        versions = self.versions.get(request["Key"], [])
        if "VersionId" in request:
            found = [version for version in versions if version.id == request["VersionId"]]
            if not found and operation != "HeadObject":
                raise refusal(operation, "NoSuchVersion", "The specified version does not exist.", 404)
            return found[0] if found else None
        return versions[-1] if versions and versions[-1].body is not None else None

    def _readable(self, operation: str, request: Request) -> tuple[Version, bytes]:
        """The version that is read, with its body; refuses as S3 does, a HEAD request without a text."""
        found = self._present(operation, request)
        head = operation == "HeadObject"
        if found is None or found.body is None:
            code, text = ("404", "Not Found") if head else ("NoSuchKey", "The specified key does not exist.")
            raise refusal(operation, code, text, 404)
        if "IfMatch" in request and request["IfMatch"].strip('"') != found.etag:
            raise self._precondition(operation, head)
        self._check_access(operation, found)
        return found, found.body

    def _check_access(self, operation: str, found: Version) -> None:
        """Refuse what S3 cannot hand out. A HEAD request reads nothing, and is told without a text."""
        if found.uploaders_key:
            text = (
                "The object was stored using a form of Server Side Encryption. The correct parameters must be provided "
                "to retrieve the object."
            )
            code, text = ("400", "Bad Request") if operation == "HeadObject" else ("InvalidRequest", text)
            raise refusal(operation, code, text, 400)
        if operation == "HeadObject":
            return
        if found.storage_class in ARCHIVES:
            text = "The operation is not valid for the object's storage class"
            raise refusal(operation, "InvalidObjectState", text, 403)
        if found.kms_key and found.kms_key not in self.kms_keys:
            raise refusal(operation, "AccessDenied", "Access Denied", 403)

    def _precondition(self, operation: str, head: bool = False) -> Exception:
        code, text = ("412", "Precondition Failed") if head else ("PreconditionFailed", "A pre-condition did not hold")
        return refusal(operation, code, text, 412)

    def _check_write(self, operation: str, request: Request) -> None:
        """Conditions on what a write replaces."""
        present = self._present(operation, {"Bucket": request["Bucket"], "Key": request["Key"]})
        if request.get("IfNoneMatch", "*") != "*":
            raise refusal(operation, "NotImplemented", "A header you provided implies functionality", 501)
        if "IfNoneMatch" in request and present is not None:
            raise self._precondition(operation)
        if "IfMatch" in request:
            if present is None:
                raise refusal(operation, "NoSuchKey", "The specified key does not exist.", 404)
            if request["IfMatch"].strip('"') != present.etag:
                raise self._precondition(operation)

    def _write(self, request: Request, body: bytes | None, etag: str = "") -> Version:
        etag = etag or hashlib.md5(body or b"", usedforsecurity=False).hexdigest()
        modified = self.clock[0]().replace(microsecond=0)
        version = Version(f"version-{next(self._number):08}", body, etag, request.get("Metadata", {}), modified)
        version.storage_class = request.get("StorageClass", "STANDARD")
        version.uploaders_key, version.kms_key = "SSECustomerKey" in request, request.get("SSEKMSKeyId", "")
        self.versions.setdefault(request["Key"], []).append(version)
        return version

    def _source(self, operation: str, request: Request) -> bytes:
        source = request["CopySource"]
        found = self._present(operation, source)
        if found is None or found.body is None:
            raise refusal(operation, "NoSuchKey", "The specified key does not exist.", 404)
        if request.get("CopySourceIfMatch", found.etag).strip('"') != found.etag:
            raise self._precondition(operation)
        self._check_access(operation, found)
        return found.body

    # --- the calls ------------------------------------------------------------------------------------

    def _get_object(self, request: Request) -> dict[str, Any]:
        found, body = self._readable("GetObject", request)
        if "Range" in request:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", request["Range"]).groups())  # type: ignore[union-attr]
            if first >= len(body):
                raise refusal("GetObject", "InvalidRange", "The requested range is not satisfiable", 416)
            body = body[first : last + 1]
        shown = {"ContentLength": len(body), "ETag": f'"{found.etag}"', "Metadata": found.metadata}
        return shown | {"Body": Body(body), "VersionId": found.id, "LastModified": found.modified}

    def _head_object(self, request: Request) -> dict[str, Any]:
        found, body = self._readable("HeadObject", request)
        shown = {"ContentLength": len(body), "ETag": f'"{found.etag}"', "Metadata": found.metadata}
        shown |= {"SSEKMSKeyId": found.kms_key} if found.kms_key else {}
        shown |= {"StorageClass": found.storage_class} if found.storage_class != "STANDARD" else {}
        return shown | {"VersionId": found.id, "LastModified": found.modified}

    def _put_object(self, request: Request) -> dict[str, Any]:
        self._check_write("PutObject", request)
        written = self._write(request, bytes(request.get("Body", b"")))
        return {"ETag": f'"{written.etag}"', "VersionId": written.id}

    def _delete_object(self, request: Request) -> dict[str, Any]:
        if "VersionId" in request:
            kept = [version for version in self.versions[request["Key"]] if version.id != request["VersionId"]]
            self.versions[request["Key"]] = kept
            return {}
        self._write(request, None)
        return {"DeleteMarker": True}

    def _copy_object(self, request: Request) -> dict[str, Any]:
        body = self._source("CopyObject", request)
        self._check_write("CopyObject", request)
        if len(body) > COPY_OBJECT_MAX_BYTES:
            raise refusal("CopyObject", "InvalidRequest", "The specified copy source is larger than the maximum")
        # Without REPLACE, tags come along, which takes permissions that the handlers lack.
        if request.get("TaggingDirective") != "REPLACE" or request.get("MetadataDirective") != "REPLACE":
            raise refusal("CopyObject", "AccessDenied", "Access Denied", 403)
        written = self._write(request, body)
        return {"CopyObjectResult": {"ETag": f'"{written.etag}"'}, "VersionId": written.id}

    def _create_multipart_upload(self, request: Request) -> dict[str, Any]:
        upload = f"upload-{next(self._number)}"
        self._uploads[upload] = (request, {})
        return {"UploadId": upload}

    def _upload(self, operation: str, request: Request) -> tuple[Request, dict[int, bytes]]:
        if request["UploadId"] not in self._uploads:
            raise refusal(operation, "NoSuchUpload", "The specified upload does not exist.", 404)
        return self._uploads[request["UploadId"]]

    def _upload_part_copy(self, request: Request) -> dict[str, Any]:
        body, (_, parts) = self._source("UploadPartCopy", request), self._upload("UploadPartCopy", request)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", request["CopySourceRange"]).groups())  # type: ignore[union-attr]
        if last >= len(body):
            raise refusal("UploadPartCopy", "InvalidArgument", "Range specified is not valid for source object")
        parts[request["PartNumber"]] = body[first : last + 1]
        etag = hashlib.md5(parts[request["PartNumber"]], usedforsecurity=False).hexdigest()
        return {"CopyPartResult": {"ETag": f'"{etag}"'}}

    def _complete_multipart_upload(self, request: Request) -> dict[str, Any]:
        created, parts = self._upload("CompleteMultipartUpload", request)
        named = [part["PartNumber"] for part in request["MultipartUpload"]["Parts"]]
        if sorted(named) != sorted(parts):
            raise refusal("CompleteMultipartUpload", "InvalidPart", "One or more of the parts could not be found")
        if any(len(parts[number]) < PART_MIN_BYTES for number in sorted(named)[:-1]):
            raise refusal("CompleteMultipartUpload", "EntityTooSmall", "Your proposed upload is too small")
        del self._uploads[request["UploadId"]]
        digests = b"".join(hashlib.md5(parts[number], usedforsecurity=False).digest() for number in named)
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(named)}"
        written = self._write(created, b"".join(parts[number] for number in named), etag)
        return {"ETag": f'"{written.etag}"', "VersionId": written.id}

    def _abort_multipart_upload(self, request: Request) -> dict[str, Any]:
        self._upload("AbortMultipartUpload", request)
        del self._uploads[request["UploadId"]]
        return {}

    def _list_objects_v2(self, request: Request) -> dict[str, Any]:
        """Keys in the order of their UTF-8; one page, with the common prefixes of a Delimiter."""
        prefix, delimiter = request.get("Prefix", ""), request.get("Delimiter", "")
        after = request.get("ContinuationToken", request.get("StartAfter", "")).encode()
        items: dict[str, dict[str, Any] | None] = {}
        for key in sorted(self.versions, key=str.encode):
            last = self.versions[key][-1:]
            if not key.startswith(prefix) or key.encode() <= after or not last or last[0].body is None:
                continue
            rest, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
            if found:
                items[f"{prefix}{rest}{delimiter}"] = None
            else:
                shown = {"Key": key, "Size": len(last[0].body), "ETag": f'"{last[0].etag}"'}
                items[key] = shown | {"LastModified": last[0].modified}
        page = list(items.items())[: request.get("MaxKeys", PAGE_KEYS)]
        answer: dict[str, Any] = {"IsTruncated": len(page) < len(items), "KeyCount": len(page)}
        contents = [item for _, item in page if item is not None]
        prefixes = [{"Prefix": name} for name, item in page if item is None]
        answer |= ({"Contents": contents} if contents else {}) | ({"CommonPrefixes": prefixes} if prefixes else {})
        if answer["IsTruncated"]:
            # Nothing of a common prefix sorts behind this.
            answer["NextContinuationToken"] = page[-1][0] + ("\U0010ffff" if page[-1][1] is None else "")
        return answer


class FakeSNS(Service):
    """One topic; what is published is kept."""

    name = "sns"

    def __init__(self, topic_arn: str, around: Callable[[str], Callable[[], None]]) -> None:
        super().__init__(around)
        self.sent: list[tuple[str, str, dict[str, str]]] = []
        self._topic_arn = topic_arn

    def _publish(self, request: Request) -> dict[str, Any]:
        check_publish(request)
        if request["TopicArn"] != self._topic_arn:
            raise refusal("Publish", "NotFound", "Topic does not exist", 404)
        attributes = {name: value["StringValue"] for name, value in request["MessageAttributes"].items()}
        self.sent.append((request["Subject"], request["Message"], attributes))
        return {"MessageId": f"message-{len(self.sent)}"}


def check_publish(request: Request) -> None:
    """What SNS refuses of a message (Publish: Subject, Message, MessageAttributes), and moto in part does not."""
    subject = request["Subject"]
    if not (subject.isascii() and subject.isprintable() and subject.strip() and len(subject) < 100):
        raise refusal("Publish", "InvalidParameter", f"Invalid parameter: Subject: {subject!r}")
    if not 0 < len(request["Message"].encode()) <= 262_144:
        raise refusal("Publish", "InvalidParameter", "Invalid parameter: Message too long or empty")
    for name, value in request["MessageAttributes"].items():
        if not value["StringValue"]:
            raise refusal("Publish", "InvalidParameterValue", f"The message attribute {name!r} is empty")
