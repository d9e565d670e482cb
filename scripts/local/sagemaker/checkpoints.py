"""A job's checkpoints: S3 to its containers before they start, and back while they run.

Source: developer guide, "Checkpoints in Amazon SageMaker AI". A file that a program deletes is deleted in S3, too; what
others write to S3 meanwhile does not reach the program. The containers of a job share one prefix.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from . import s3

log = logging.getLogger("local.sagemaker")

_SYNC_SECONDS = 0.2


class Checkpoints:
    """The checkpoint folder of one container, and its copy in S3."""

    def __init__(self, client: Any, uri: str, folder: Path) -> None:
        self._client = client
        self._uri = uri.rstrip("/") + "/"
        self._folder = folder
        self._copied: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def start(self) -> None:
        """Bring what S3 has into the folder, then copy what changes there. Raises S3Error."""
        s3.download_prefix(self._client, self._uri, self._folder)
        self._copied = self._files()
        self._thread.start()

    def stop(self) -> None:
        """Copy what changed last, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _files(self) -> dict[str, tuple[int, int]]:
        """What tells a changed file, by name: its modification time and its size."""
        found = {}
        for path in self._folder.rglob("*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # deleted or renamed meanwhile
                continue
            if path.is_file():
                found[str(path.relative_to(self._folder))] = (status.st_mtime_ns, status.st_size)
        return found

    def _run(self) -> None:
        while not self._stop.wait(_SYNC_SECONDS):
            self._copy()
        self._copy()

    def _copy(self) -> None:
        """Make S3 as the folder is. What fails is tried again with the next copy."""
        there = self._files()
        try:
            for name, version in there.items():
                if self._copied.get(name) != version and (self._folder / name).is_file():
                    s3.upload(self._client, self._folder / name, f"{self._uri}{name}")
                    self._copied[name] = version
            for name in self._copied.keys() - there.keys():
                s3.delete(self._client, f"{self._uri}{name}")
                del self._copied[name]
        except s3.S3Error as exc:
            log.warning("checkpoints are not copied, still trying: %s", exc)
