"""S3 objects and tar archives: what goes into a container's folders and what comes out of them."""

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

# Bounds on an extracted archive: far above any model that a laptop serves, far below what a bomb fills a disk with.
_MAX_EXTRACTED_BYTES = 50 * 1024**3
_MAX_MEMBERS = 100_000


class S3Error(Exception):
    """An object or prefix could not be read or written; the text says which and why."""


class ArchiveError(Exception):
    """An archive is not a gzip tar, is damaged, or would leave its folder."""


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/some/key`` -> ("bucket", "some/key"). Raises ValueError for anything else."""
    parts = urlsplit(uri, allow_fragments=False)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"{uri!r} is not an s3:// URI")
    # A key may hold '?', which urlsplit takes for a query.
    return parts.netloc, uri[len(f"s3://{parts.netloc}/") :]


def exists(client: Any, uri: str) -> bool:
    """Whether there is such an object (and it can be read). Raises S3Error when S3 does not answer."""
    bucket, key = split_uri(uri)
    try:
        client.head_object(Bucket=bucket, Key=key)
    except ClientError as exc:
        if exc.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403, 404):
            return False
        raise S3Error(f"{uri}: {exc}") from exc
    except BotoCoreError as exc:
        raise S3Error(f"{uri}: {exc}") from exc
    return True


def download(client: Any, uri: str, path: Path) -> None:
    """One object to a file; raises S3Error."""
    bucket, key = split_uri(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        client.download_file(bucket, key, str(path))
    except (BotoCoreError, ClientError, OSError) as exc:
        raise S3Error(f"{uri}: {exc}") from exc


def upload(client: Any, path: Path, uri: str) -> None:
    """A file to one object; raises S3Error. Large files go up in parts."""
    bucket, key = split_uri(uri)
    try:
        client.upload_file(str(path), bucket, key)
    except (BotoCoreError, ClientError, boto3.exceptions.S3UploadFailedError, OSError) as exc:
        raise S3Error(f"{uri}: {exc}") from exc


def delete(client: Any, uri: str) -> None:
    """Delete one object, whether or not it is there; raises S3Error."""
    bucket, key = split_uri(uri)
    try:
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as exc:
        raise S3Error(f"{uri}: {exc}") from exc


def download_prefix(client: Any, uri: str, folder: Path) -> int:
    """Every key that begins with the prefix, under `folder`; returns how many objects came.

    A key keeps what follows the prefix as its path (``s3://b/data`` with ``data/x/y.csv`` gives ``x/y.csv``);
    where the prefix ends inside a name, or is the key itself, all of the name is kept.
    Raises S3Error, also for keys that cannot be files (``..`` parts, a file where a folder is needed).
    """
    bucket, prefix = split_uri(uri)
    count = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                count += 1
                key = item["Key"]
                name = relative_name(prefix, key)
                target = folder / name
                if not name or key.endswith("/"):
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                if ".." in PurePosixPath(name).parts:
                    raise S3Error(f"s3://{bucket}/{key}: the key leaves the channel's folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, key, str(target))
    except (BotoCoreError, ClientError, OSError) as exc:
        raise S3Error(f"{uri}: {exc}") from exc
    return count


def relative_name(prefix: str, key: str) -> str:
    """Path of a key inside a channel whose S3Prefix is `prefix`; "" for the prefix's own folder marker."""
    if prefix and key != prefix and (prefix.endswith("/") or key[len(prefix) :].startswith("/")):
        return key[len(prefix) :].strip("/")
    if key == prefix and key.endswith("/"):
        return ""
    return key[prefix.rfind("/") + 1 :].strip("/")


def pack(folder: Path, archive: Path) -> bool:
    """The folder's content as a gzip tar, names sorted; False, and no archive, when the folder is empty."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    if not paths:
        return False
    # Weights hardly compress: the fastest level costs little space and saves most of the time.
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in paths:
            tar.add(path, arcname=path.name)
    return True


def unpack(archive: Path, folder: Path) -> dict[Path, int]:
    """Extract a gzip tar that is not trusted; raises ArchiveError. Returns the mode that it has for each path.

    tarfile's "data" filter refuses absolute names, names and links that leave the folder, and devices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    modes: dict[Path, int] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for number, member in enumerate(tar, 1):
                total += member.size
                if number > _MAX_MEMBERS or total > _MAX_EXTRACTED_BYTES:
                    raise ArchiveError(f"more than {_MAX_MEMBERS} files or {_MAX_EXTRACTED_BYTES} bytes")
                tar.extract(member, folder, filter="data")
                modes[folder / member.name.lstrip("/")] = member.mode
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        raise ArchiveError(f"not a valid gzip tar: {exc}") from exc
    return modes


def restrict_to_others(folder: Path, modes: Mapping[Path, int]) -> None:
    """Leave everybody, the owner included, only what `modes` grants to "other", and no right to write.

    The kernel looks at the owner's rights first, so a program that runs as whoever extracted the files has those of
    "other" too, unless it is root. `folder` itself, and folders that the archive does not list, are readable.
    """
    readable = 0o755
    for path in sorted([folder, *folder.rglob("*")], reverse=True):  # what is in a folder comes before the folder
        if not path.is_symlink():
            mode = readable if path == folder else modes.get(path, readable)
            path.chmod((mode & 0o5) * 0o111)


def remove(folder: Path) -> None:
    """Delete a folder, if there is one, with all that is in it, what the owner may not write or list included."""
    if folder.is_dir():
        _unlock(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _unlock(folder: Path) -> None:
    folder.chmod(0o700)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _unlock(path)
