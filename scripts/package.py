"""Build the packages that Terraform uploads: one zip per Lambda function, one tar.gz of the training program.

The same sources give the same bytes on every machine, so `terraform plan` shows a change only where the code changed.
Hence fixed names, order, times and modes, and no compression: zlib's output differs between its versions, and the
sources are small.

    python scripts/package.py [--output build]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = ("training_orchestrator", "model_evaluator", "deployment_orchestrator")
TRAINING_ENTRY_POINTS = ("inference.py", "requirements.txt", "train.py")

FILE_MODE = 0o644
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that the zip format knows
ZIP_UNIX = 3  # "made by Unix": the mode is read from external_attr
DEFLATE_STORED_MAX = 65_535  # bytes in one stored block, RFC 1951 section 3.2.4


class PackageError(Exception):
    """A package cannot be built."""


def read_sources(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return the content of the named files of a folder, by name.

    Raises PackageError when one of them is missing.
    """
    missing = [str(folder / name) for name in names if not (folder / name).is_file()]
    if missing:
        raise PackageError(f"{', '.join(missing)} not found: is the checkout complete?")
    return {name: (folder / name).read_bytes() for name in names}


def zip_bytes(files: dict[str, bytes]) -> bytes:
    """Return a zip with the files at its root."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, date_time=ZIP_EPOCH)
            info.create_system = ZIP_UNIX
            info.external_attr = FILE_MODE << 16
            archive.writestr(info, files[name])
    return buffer.getvalue()


def tar_gz_bytes(files: dict[str, bytes]) -> bytes:
    """Return a gzip tar with the files at its root, as SageMaker's script mode expects it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            info.mode = FILE_MODE
            archive.addfile(info, io.BytesIO(files[name]))
    return gzip_stored(buffer.getvalue())


def gzip_stored(data: bytes) -> bytes:
    """Return data as a gzip member of stored blocks (RFC 1952), with no time and no name in its header."""
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    # An empty input still needs one block.
    starts = range(0, max(len(data), 1), DEFLATE_STORED_MAX)
    blocks = []
    for start in starts:
        chunk = data[start : start + DEFLATE_STORED_MAX]
        last = start == starts[-1]
        blocks.append(struct.pack("<BHH", last, len(chunk), len(chunk) ^ 0xFFFF) + chunk)
    return header + b"".join(blocks) + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def build(root: Path, output: Path) -> list[Path]:
    """Write every package of the project at root into output and return their paths.

    Raises PackageError when a source is missing; then nothing is written.
    """
    packages = {f"{name}.zip": zip_bytes(read_sources(root / "lambda" / name, ["handler.py"])) for name in FUNCTIONS}
    training = root / "scripts" / "training"
    modules = (path.name for path in training.glob("*.py"))
    packages["training.tar.gz"] = tar_gz_bytes(read_sources(training, sorted({*TRAINING_ENTRY_POINTS, *modules})))

    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in packages.items():
        path = output / name
        # Replaced in one step: a Terraform run at the same time sees the old package or the new one.
        partial = output / f".{name}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(path)
        paths.append(path)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the packages and print name, size and hash of each. Return the exit code."""
    parser = argparse.ArgumentParser(description="Build the packages that Terraform uploads.")
    parser.add_argument("--output", type=Path, default=ROOT / "build", help="folder to write to (default: build/)")
    options = parser.parse_args(arguments)
    try:
        paths = build(ROOT, options.output)
    except PackageError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    for path in paths:
        content = path.read_bytes()
        print(f"{path.name:<30} {len(content):>8} bytes  sha256 {hashlib.sha256(content).hexdigest()[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
