"""scripts/package.py: the same sources give the same bytes, in archives that Lambda and SageMaker can open."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "package.py"
PACKAGES = ["deployment_orchestrator.zip", "model_evaluator.zip", "training.tar.gz", "training_orchestrator.zip"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("project_package", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


package = load()


def make_project(root: Path) -> Path:
    """Write the sources that the packages are made of."""
    for name in package.FUNCTIONS:
        folder = root / "lambda" / name
        folder.mkdir(parents=True)
        (folder / "handler.py").write_text(f'"""{name}"""\n')
    training = root / "scripts" / "training"
    training.mkdir(parents=True)
    (training / "train.py").write_text("import dataset\n")
    (training / "dataset.py").write_text("ROWS = 3\n")
    (training / "inference.py").write_text("MODEL = None\n")
    (training / "requirements.txt").write_text("transformers\n")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_sources_give_same_bytes_whatever_their_times_modes_and_place(tmp_path: Path) -> None:
    first = make_project(tmp_path / "one")
    second = make_project(tmp_path / "elsewhere" / "two")
    for path in second.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))

    package.build(first, tmp_path / "build1")
    package.build(second, tmp_path / "build2")

    assert sorted(contents(tmp_path / "build1")) == PACKAGES
    assert contents(tmp_path / "build1") == contents(tmp_path / "build2")


def test_a_changed_source_changes_its_own_package_only(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    package.build(root, tmp_path / "build")
    before = contents(tmp_path / "build")

    (root / "lambda" / "model_evaluator" / "handler.py").write_text("changed = True\n")
    package.build(root, tmp_path / "build")

    after = contents(tmp_path / "build")
    assert {name for name in PACKAGES if before[name] != after[name]} == {"model_evaluator.zip"}


def test_a_function_zip_holds_just_its_handler_readable_by_lambda(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    (root / "lambda" / "model_evaluator" / "notes.txt").write_text("not for Lambda")

    package.build(root, tmp_path / "build")

    with zipfile.ZipFile(tmp_path / "build" / "model_evaluator.zip") as archive:
        assert archive.namelist() == ["handler.py"]
        assert archive.testzip() is None
        assert archive.read("handler.py") == b'"""model_evaluator"""\n'
        # Lambda runs as another user, who must be able to read the file.
        assert archive.infolist()[0].external_attr >> 16 == 0o644


def test_the_training_source_holds_every_module_at_its_root(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    cache = root / "scripts" / "training" / "__pycache__"
    cache.mkdir()
    (cache / "train.cpython-311.pyc").write_bytes(b"\0")

    package.build(root, tmp_path / "build")

    with tarfile.open(tmp_path / "build" / "training.tar.gz", "r:gz") as archive:
        members = archive.getmembers()
        program = archive.extractfile("train.py")
        assert program is not None
        assert program.read() == b"import dataset\n"
    assert [member.name for member in members] == ["dataset.py", "inference.py", "requirements.txt", "train.py"]
    assert {(member.mtime, member.mode, member.uid, member.uname) for member in members} == {(0, 0o644, 0, "")}


def test_a_missing_source_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    missing = root / "scripts" / "training" / "inference.py"
    missing.unlink()

    with pytest.raises(package.PackageError, match=r"inference\.py not found"):
        package.build(root, tmp_path / "build")

    assert not (tmp_path / "build").exists()


def test_the_command_packages_this_project(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stderr
    assert sorted(contents(tmp_path)) == PACKAGES
    assert all(name in answer.stdout for name in PACKAGES)


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(65_535))
@example(bytes(65_536))
@example(bytes(200_000))
def test_stored_gzip_reads_back_as_it_was(data: bytes) -> None:
    packed = package.gzip_stored(data)

    assert gzip.decompress(packed) == data
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        stream.read()
        assert stream.mtime == 0
