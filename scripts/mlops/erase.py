"""mlops erase: remove one text from the data that the pipeline keeps, in every version; say what is out of reach.

It looks everywhere first, shows what it found, and asks. Old versions go last, one at a time, so whoever is
interrupted finds the rest by running it again.

    uploads, outputs of jobs         deleted: a rewritten upload would be trained on; the evaluator takes no output that
                                     was written after its job, and has copied what it approved
    snapshots, approved models,      written again without the rows; all else in them stays as it is
    golden rows in decisions

An approved model's archive has a new ETag then. The deployment orchestrator takes it for new settings of the same
model, and updates the endpoint: that is how the text leaves the endpoint's containers. Records of earlier deployments
get the new ETag, so that they can be restored; a model that was rolled back or failed is withdrawn first, so that it is
not tried again.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import mmap
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from botocore.exceptions import ClientError

from mlops import bucket
from mlops.data_check import reader
from mlops.deployments import move
from mlops.endpoints import running_jobs
from mlops.records import (
    APPROVED_PREFIX,
    DECISION_PREFIX,
    DEPLOYMENT_PREFIX,
    OPEN,
    RAW_PREFIX,
    SNAPSHOT_PREFIX,
    UPLOAD_PREFIX,
    Deployment,
    changed,
    decision_key,
    deployment,
)
from mlops.target import Target, UsageError, confirm, error_code, who
from mlops.text import plain, say

MAX_FIELD_CHARACTERS = 2**31 - 1  # as the training program reads
GOLDEN_MAX_CHARACTERS = 512  # where training cuts the text of a golden row
GZIP_MARK, UTF16_MARKS = b"\x1f\x8b", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Of an archive, unpacked, as the training program reads a live model's.
ARCHIVE_MAX_MEMBERS, ARCHIVE_MAX_BYTES = 1000, 20 * 1024**3
UNREADABLE = (
    tarfile.TarError,
    zlib.error,
    csv.Error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    RecursionError,
)
# S3's words for an object that it does not hand out: archived, a customer's own key, a foreign key.
WITHHELD = ("InvalidObjectState", "InvalidRequest", "AccessDenied")
OUT_OF_REACH = """
Out of reach of this command:
  the weights of models that were trained on it: make retrain JOB=… on the cleaned data, then delete the old models
  containers of live endpoints, until the update that follows has ended: wait for "Deployment successful"
  emails, and logs of your own programs (the pipeline puts no text into either, but older versions of it may have)
  copies that people, replication or backups have made, and the file on the uploader's machine: it may come back
"""


def normal(text: str) -> str:
    """A text as it is compared: as the training program strips it, whichever line breaks the file has."""
    return text.replace("\r\n", "\n").strip()


def is_row(row: list[str], text: str, separator: str) -> bool:
    """Whether one field of a row is the text, or several are, because the separators in it are not quoted."""
    widths = {1, text.count(separator) + 1}
    return any(normal(separator.join(row[at : at + width])) == text for width in widths for at in range(len(row)))


# --- what holds texts: each function copies a file without the text, and returns how many rows that were --------


@contextmanager
def unpacked(source: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file as it is, or, where it is compressed, what is in it. Raises OSError, zlib.error and ValueError."""
    mark = source.read(len(GZIP_MARK))
    source.seek(0)
    if mark != GZIP_MARK:
        yield source
        return
    with gzip.GzipFile(fileobj=source) as packed, TemporaryFile() as inside:
        while block := packed.read(reader.BLOCK_BYTES):
            inside.write(block)
            if inside.tell() > reader.MAX_UNPACKED_BYTES:
                raise ValueError(f"it unpacks to more than {reader.MAX_UNPACKED_BYTES} bytes")
        inside.seek(0)
        yield inside


def csv_without(source: IO[bytes], kept: IO[bytes], text: str) -> int:
    """A CSV file with any columns, encoded, separated and compressed in any way that the pipeline reads.

    It is written again in UTF-8, not compressed. Raises csv.Error and UnicodeDecodeError where quotes or the encoding
    are not as they should be.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with unpacked(source) as inside:
        mark = inside.read(2)
        inside.seek(0)
        lines = io.TextIOWrapper(inside, encoding="utf-16" if mark in UTF16_MARKS else "utf-8-sig", newline="")
        out = io.TextIOWrapper(kept, encoding="utf-8", newline="")
        try:
            separator = separator_of(lines)
            removed, writer = 0, csv.writer(out, delimiter=separator)
            for row in csv.reader(lines, delimiter=separator, strict=True):
                if is_row(row, text, separator):
                    removed += 1
                else:
                    writer.writerow(row)
        finally:
            # They would close the files.
            lines.detach()
            out.detach()
    return removed


def separator_of(lines: IO[str]) -> str:
    """What separates the columns: what the first line has most of."""
    first = lines.readline()
    lines.seek(0)
    return max(reader.SEPARATORS, key=first.count)


def is_golden(row: dict[str, Any], text: str) -> bool:
    """Whether a golden row is the text, or as much of it as training takes."""
    forms = (text, text.replace("\n", "\r\n"))
    return normal(row["text"]) in {text, *(normal(form[:GOLDEN_MAX_CHARACTERS]) for form in forms)}


def golden_without(source: IO[bytes], kept: IO[bytes], text: str) -> int:
    """golden.json, a list of rows."""
    rows = json.load(source)
    left = [row for row in rows if not is_golden(row, text)]
    kept.write(json.dumps(left).encode())
    return len(rows) - len(left)


def decision_without(source: IO[bytes], kept: IO[bytes], text: str) -> int:
    """A decision, with the golden rows in it."""
    record = json.load(source)
    rows = record.get("golden") or []
    left = [row for row in rows if not is_golden(row, text)]
    if rows and not left:
        record["golden_note"] = "they were erased"
    kept.write(bucket.as_json(record | {"golden": left}))
    return len(rows) - len(left)


IN_ARCHIVES = {"holdout.csv": csv_without, "golden.json": golden_without}


def archive_without(source: IO[bytes], kept: IO[bytes], text: str) -> int:
    """A model's or a job's archive; the same one always gives the same bytes. What else is in it stays as it is.

    Nothing is written when the text is not in it. Raises ValueError when it is larger than a model can be.
    """
    with tarfile.open(fileobj=source, mode="r:gz") as old:
        removed = sum(cleaned[1] for member in bounded(old) if (cleaned := clean(old, member, text)))
    if removed:
        source.seek(0)
        with (
            tarfile.open(fileobj=source, mode="r:gz") as old,
            gzip.GzipFile("", "wb", compresslevel=6, fileobj=kept, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
        ):
            for member in bounded(old):
                if cleaned := clean(old, member, text):
                    member.size = len(cleaned[0])
                    new.addfile(member, io.BytesIO(cleaned[0]))
                else:
                    new.addfile(member, old.extractfile(member) if member.isreg() else None)
    return removed


def bounded(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive. Raises ValueError when there are too many, or too much in them."""
    size = 0
    for number, member in enumerate(archive, 1):
        size += abs(member.size)
        if number > ARCHIVE_MAX_MEMBERS or size > ARCHIVE_MAX_BYTES:
            raise ValueError(f"it has more than {ARCHIVE_MAX_MEMBERS} members or {ARCHIVE_MAX_BYTES} bytes")
        yield member


def clean(archive: tarfile.TarFile, member: tarfile.TarInfo, text: str) -> tuple[bytes, int] | None:
    """A member without the text, and how many rows that were; None when it holds no texts, or not this one."""
    without = IN_ARCHIVES.get(member.name.removeprefix("./"))
    content = archive.extractfile(member) if without and member.isreg() else None
    if without is None or content is None:
        return None
    kept = io.BytesIO()
    removed = without(content, kept, text)
    return (kept.getvalue(), removed) if removed else None


# (prefix, end of the key, what copies it without the text, whether it is written again)
PLACES: tuple[tuple[str, str, Callable[[IO[bytes], IO[bytes], str], int], bool], ...] = (
    (UPLOAD_PREFIX, "", csv_without, False),
    (SNAPSHOT_PREFIX, "/data.csv", csv_without, True),
    (RAW_PREFIX, ".tar.gz", archive_without, False),
    (APPROVED_PREFIX, "/model.tar.gz", archive_without, True),
    (DECISION_PREFIX, ".json", decision_without, True),
)


def contains(source: IO[bytes], text: str) -> bool:
    """Whether a file that cannot be read as a CSV has the text in it, in a usual encoding."""
    source.seek(0)
    try:
        with unpacked(source) as inside:
            return has_bytes_of(inside, text)
    except UNREADABLE:
        return has_bytes_of(source, text)


def has_bytes_of(file: IO[bytes], text: str) -> bool:
    """Whether a file has the text in it, with its quotes as they are, doubled or escaped."""
    spellings = {text, text.replace('"', '""'), text.replace('"', '\\"')}
    with suppress(ValueError), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # nothing maps 0 bytes
        for spelt, encoding in itertools.product(spellings, ("utf-8", "utf-16-le", "utf-16-be", "cp1252")):
            with suppress(UnicodeEncodeError):
                if data.find(spelt.encode(encoding)) >= 0:
                    return True
    return False


def job_of(key: str) -> str:
    """The training job of an object under models/."""
    return key.split("/")[-2 if key.startswith(APPROVED_PREFIX) else 2]


# --- the command ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A version of an object with the text in it. rows: 0 in a file that cannot be read as a CSV."""

    key: str
    version: str
    is_latest: bool
    etag: str
    rows: int
    is_rewritten: bool  # else it is deleted

    def __str__(self) -> str:
        found = f"{self.rows} {'row' if self.rows == 1 else 'rows'}" if self.rows else "not a readable CSV"
        then = "written again without it" if self.is_rewritten else "deleted"
        return f"  {plain(self.key)}: {found}; {then if self.is_latest else 'an old version, deleted'}"


class Erasure:
    """One text, and where it is."""

    def __init__(self, target: Target, text: str) -> None:
        self.target, self.text, self.s3 = target, text, target.client("s3")
        self.left: list[str] = []  # what could not be looked into, or must wait; for people
        self.records: dict[str, list[bucket.Record[Deployment]]] = {}

    def find(self) -> list[Place]:
        """Every version of every object that holds the text. Raises UsageError while one of the models is deployed."""
        found: list[Place] = []
        for prefix, end, without, is_rewritten in PLACES:
            pages = self.s3.get_paginator("list_object_versions").paginate(Bucket=self.target.bucket, Prefix=prefix)
            for item in (item for page in pages for item in page.get("Versions", [])):
                if item["Key"].endswith(end) and (place := self.look_into(item, without, is_rewritten)):
                    found.append(place)
        return [place for place in found if self.may_go(place.key)]

    def look_into(
        self, item: dict[str, Any], without: Callable[[IO[bytes], IO[bytes], str], int], is_rewritten: bool
    ) -> Place | None:
        key, version = item["Key"], item["VersionId"]
        with TemporaryFile() as source, TemporaryFile() as kept:
            if not self.fetch(key, version, source):
                return None
            try:
                rows = without(source, kept, self.text)
                is_there = rows > 0
            except UNREADABLE as error:
                if without is not csv_without:
                    self.left.append(f"{plain(key)} cannot be read ({plain(error, 200)}): look into it yourself")
                    return None
                rows, is_rewritten, is_there = 0, False, contains(source, self.text)
        etag = item["ETag"]
        return Place(key, version, item["IsLatest"], etag, rows, is_rewritten) if is_there else None

    def fetch(self, key: str, version: str, into: IO[bytes]) -> bool:
        """Copy a version to a file; False when it has gone meanwhile, or S3 does not hand it out."""
        try:
            answer = self.s3.get_object(Bucket=self.target.bucket, Key=key, VersionId=version)
        except ClientError as error:
            if error_code(error) in WITHHELD:
                self.left.append(f"{plain(key)} cannot be read ({plain(error, 200)}): look into it yourself")
            elif error_code(error) not in ("NoSuchVersion", "NoSuchKey"):
                raise
            return False
        with answer["Body"] as body:
            shutil.copyfileobj(body, into)
        into.seek(0)
        return True

    def may_go(self, key: str) -> bool:
        """Whether nobody is at work on an object. Raises UsageError while a model is on its way to an endpoint."""
        job = job_of(key)
        if key.startswith(RAW_PREFIX) and not bucket.exists(self.target, decision_key(job)):
            self.left.append(f"{job} has not been judged yet: wait for its email")
            return False
        if key.startswith(APPROVED_PREFIX) and job not in self.records:
            self.records[job] = bucket.read_all(self.target, f"{DEPLOYMENT_PREFIX}{job}-", deployment)
            if any(record.value["state"] in OPEN for record in self.records[job]):
                raise UsageError(f"{job} is on its way to an endpoint: wait for the email on it, then rerun this")
        return True

    def erase(self, places: list[Place]) -> None:
        """Remove the text from the versions of one object. Raises Changed."""
        key = places[0].key
        records = self.records[job_of(key)] if key.startswith(APPROVED_PREFIX) else []
        states = {record.value["state"] for record in records}
        if states and states <= {"rolled back", "failed"}:
            by = who(self.target)
            why = {"by": by, "at": bucket.now().isoformat(), "reason": "a text was erased from its archive", "to": ""}
            records = [move(self.target, record, by, "withdrawn", withdrawn=why) for record in records]
        written = ""
        for place in places:
            if place.is_latest and place.is_rewritten:
                written = self.rewrite(place)
            elif place.is_latest:
                # First of all a marker: an older version must not come back into force.
                self.s3.delete_object(Bucket=self.target.bucket, Key=key)
        if records:
            self.note_archive(key, records)
        for place in places:
            # In a bucket without versions there is nothing but what was just written.
            if place.version != written:
                self.s3.delete_object(Bucket=self.target.bucket, Key=key, VersionId=place.version)

    def rewrite(self, place: Place) -> str:
        """Write an object again without the text; returns its version. Raises Changed."""
        without = next(without for prefix, _, without, _ in PLACES if place.key.startswith(prefix))
        where = {"Bucket": self.target.bucket, "Key": place.key}
        head = self.s3.head_object(**where, VersionId=place.version)
        kind = {name: head[name] for name in ("ContentType", "Metadata") if name in head}
        with TemporaryFile() as source, TemporaryFile() as kept:
            if not self.fetch(place.key, place.version, source):
                raise bucket.Changed(place.key)
            without(source, kept, self.text)
            kept.seek(0)
            try:
                answer = self.s3.put_object(**where, **kind, Body=kept, IfMatch=place.etag)
            except ClientError as error:
                if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412"):
                    raise bucket.Changed(place.key) from error
                raise
        return str(answer.get("VersionId", "null"))

    def note_archive(self, key: str, records: list[bucket.Record[Deployment]]) -> None:
        """Have the records of an archive's deployments name it as it is now. Raises Changed."""
        if not bucket.exists(self.target, key):
            return
        head = self.s3.head_object(Bucket=self.target.bucket, Key=key)
        now = {"key": key, "etag": head["ETag"].strip('"'), "size": head["ContentLength"]}
        for record in records:
            if record.value["artifact"]["etag"] != now["etag"]:
                bucket.write(self.target, record.key, changed(record.stored, artifact=now), record, deployment)


def given_text(text: str, file: str) -> str:
    """The text that is to go, from either option. Raises UsageError."""
    if bool(text) == bool(file):
        raise UsageError('say which text: make erase TEXT="…", or FILE=… with nothing but the text in it')
    try:
        found = normal(text or Path(file).read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"FILE={plain(file)} cannot be read as UTF-8: {plain(error, 200)}") from error
    if not found:
        raise UsageError("the text is empty")
    return found


def run(target: Target, text: str, file: str, yes: bool) -> int:
    """Erase a text, without printing it; the exit status, 1 when something is left to do. Raises UsageError."""
    erasure = Erasure(target, given_text(text, file))
    places = sorted(erasure.find(), key=lambda place: place.key)
    jobs = running_jobs(target)
    if places:
        say(f"A text of {len(erasure.text)} characters is in:")
        for place in places:
            say(place)
        confirm(target, yes)
        for _, versions in itertools.groupby(places, key=lambda place: place.key):
            erasure.erase(list(versions))
        say(f"erased from {len(places)} versions of objects; nothing brings them back")
    else:
        say("no upload, snapshot, model or decision has a row with exactly this text")
    for line in OUT_OF_REACH.strip("\n").split("\n"):
        say(line)
    left = dict.fromkeys([*erasure.left, *(f"{job} runs, and may have read it: wait for its email" for job in jobs)])
    for line in left:
        say(f"LEFT: {line}, then rerun this")
    return 1 if left else 0
