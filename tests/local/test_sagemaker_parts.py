"""The pure parts of the local SageMaker: patterns of the service model, names of files, arguments."""

import io
import stat
import tarfile
from pathlib import Path

import botocore.session
import hcl2
import pytest
from botocore.model import Shape
from hypothesis import given
from hypothesis import strategies as st

from local.sagemaker import images, quotas, s3, toolkit, validation
from local.sagemaker.errors import ApiError

OPERATIONS = ("CreateTrainingJob", "CreateModel", "CreateEndpointConfig", "CreateEndpoint", "UpdateEndpoint", "AddTags")


def shapes(shape: Shape, seen: dict[str, Shape]) -> dict[str, Shape]:
    """Every shape below `shape`, by name."""
    if shape.name not in seen:
        seen[shape.name] = shape
        children = [*getattr(shape, "members", {}).values()] if shape.type_name == "structure" else []
        for member in ("member", "key", "value"):
            if shape.type_name in ("list", "map") and hasattr(shape, member):
                children.append(getattr(shape, member))
        for child in children:
            shapes(child, seen)
    return seen


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_pattern_and_type_of_the_service_model_is_understood(operation: str) -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    request = model.operation_model(operation).input_shape
    assert request is not None
    found = shapes(request, {})
    patterns = [shape.metadata["pattern"] for shape in found.values() if "pattern" in shape.metadata]
    assert patterns
    for pattern in patterns:
        validation._pattern(pattern)
    assert {shape.type_name for shape in found.values()} <= set(validation._JSON_TYPES)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", "a--b", True),
        (r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", "ab-", False),
        (r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", "ab\n", False),
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "clé 7 名前", True),
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "a&b", False),
        (r"\d+K", "٣K", False),
    ],
)
def test_java_patterns_mean_what_they_mean_in_java(pattern: str, text: str, matches: bool) -> None:
    assert bool(validation._pattern(pattern).fullmatch(text)) is matches


@pytest.mark.parametrize(
    ("prefix", "key", "name"),
    [
        ("data/x/data.csv", "data/x/data.csv", "data.csv"),
        ("data/x", "data/x/deep/a.csv", "deep/a.csv"),
        ("data/x/", "data/x/a.csv", "a.csv"),
        ("data/x/", "data/x/", ""),
        ("data/x", "data/x-old/a.csv", "x-old/a.csv"),
        ("data/part-", "data/part-0.csv", "part-0.csv"),
        ("", "a/b.csv", "a/b.csv"),
        ("a.csv", "a.csv", "a.csv"),
    ],
)
def test_name_of_a_key_inside_its_channel(prefix: str, key: str, name: str) -> None:
    assert s3.relative_name(prefix, key) == name


@given(prefix=st.text(alphabet="ab/.", max_size=6), rest=st.text(alphabet="ab/.", max_size=6))
def test_name_inside_a_channel_is_relative_and_an_ending_of_the_key(prefix: str, rest: str) -> None:
    name = s3.relative_name(prefix, prefix + rest)
    assert not name.startswith("/")
    assert (prefix + rest).rstrip("/").endswith(name)


@given(bucket=st.text(alphabet="ab-", min_size=1, max_size=5), key=st.text(alphabet="ab/?#%+ é", max_size=8))
def test_uri_is_split_without_loss(bucket: str, key: str) -> None:
    assert s3.split_uri(f"s3://{bucket}/{key}") == (bucket, key)


@pytest.mark.parametrize("uri", ["http://b/k", "s3:///k", "b/k", ""])
def test_what_is_no_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not an s3:// URI"):
        s3.split_uri(uri)


def test_hyperparameters_become_arguments_as_in_the_toolkit() -> None:
    parameters = {
        "b": "1",
        "alpha": '{"y": 2, "x": 1}',
        "off": "null",
        "words": "two words",
        "sagemaker_program": "t.py",
    }
    assert toolkit.program_arguments(parameters) == [
        "--alpha", "x=1,y=2", "-b", "1", "--off", "", "--words", "two words",
    ]  # fmt: skip


def packed(path: Path, *members: tuple[str, int, bytes, str]) -> Path:
    """A gzip tar of (name, mode, type, link target)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, mode, kind, target in members:
            info = tarfile.TarInfo(name)
            info.mode, info.type, info.linkname = mode, kind, target
            tar.addfile(info, io.BytesIO() if kind == tarfile.REGTYPE else None)
    return path


def test_files_of_a_serverless_model_have_the_rights_of_others_and_cannot_be_written(tmp_path: Path) -> None:
    archive = packed(
        tmp_path / "model.tar.gz",
        (".", 0o700, tarfile.DIRTYPE, ""),
        ("./open.txt", 0o666, tarfile.REGTYPE, ""),
        ("run.sh", 0o755, tarfile.REGTYPE, ""),
        ("mine.txt", 0o600, tarfile.REGTYPE, ""),
        ("/ours.txt", 0o640, tarfile.REGTYPE, ""),
        ("link.txt", 0o777, tarfile.SYMTYPE, "mine.txt"),
        ("shut", 0o750, tarfile.DIRTYPE, ""),
        ("shut/in.txt", 0o644, tarfile.REGTYPE, ""),
        ("unlisted/in.txt", 0o644, tarfile.REGTYPE, ""),
    )
    folder = tmp_path / "model"
    s3.restrict_to_others(folder, s3.unpack(archive, folder))

    def mode(name: str) -> int:
        return stat.S_IMODE((folder / name).lstat().st_mode)

    # The folder itself is the platform's, whatever the archive says of it.
    assert mode("") == 0o555
    assert {name: mode(name) for name in ("open.txt", "run.sh", "mine.txt", "ours.txt", "shut", "unlisted")} == {
        "open.txt": 0o444,
        "run.sh": 0o555,
        "mine.txt": 0,
        "ours.txt": 0,
        "shut": 0,
        "unlisted": 0o555,
    }
    s3.remove(folder)
    assert not folder.exists()


def test_removing_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    s3.remove(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("region", "image"),
    [
        ("us-east-1", "763104351884.dkr.ecr.us-east-1.amazonaws.com/{}"),
        ("eu-south-1", "692866216735.dkr.ecr.eu-south-1.amazonaws.com/{}"),
        ("cn-north-1", "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/{}"),
    ],
)
def test_published_images_are_those_of_terraform_in_the_account_of_the_region(region: str, image: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "terraform/images.tf").read_text(encoding="utf-8")
    [found] = hcl2.loads(text)["locals"]
    names = [value.strip('"') for use in ("training", "inference") for value in found[f"{use}_images"].values()]
    assert len([*filter(lambda name: ":" in name, names)]) == 4
    assert images.published(region) == {image.format(name) for name in names if ":" in name}


@pytest.mark.parametrize("text", ["ml.m5.xlarge", "=3", "x=many", "x=-1"])
def test_quota_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        quotas.parse(text)


def test_quota_at_its_limit_is_accepted_and_above_refused() -> None:
    name, limit = quotas.parse("ml.m5.xlarge for endpoint usage=2")
    quotas.check({name: limit}, name, used=1, wanted=1)
    with pytest.raises(ApiError, match=r"is 2 Instances, with current utilization of 2 Instances"):
        quotas.check({name: limit}, name, used=2, wanted=1)
