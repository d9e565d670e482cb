"""The one reader: any file a person would call good, and for the others a line, what was found and what to do."""

import importlib
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csv_files import any_files, good_files, in_chunks, randoms

dataset = importlib.import_module("dataset")
reader = importlib.import_module("reader")

TWO_WAYS = "can be read in two ways"
# More of them: EXAMPLES=300000 pytest tests/unit/test_reader.py -k fuzz
EXAMPLES = int(os.environ.get("EXAMPLES", "400"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, derandomize=False, suppress_health_check=list(HealthCheck))


def read(content, complete=True, text_column="text", label_column="label", **options):
    chunks = [content] if isinstance(content, bytes) else content
    found = reader.Reader(chunks, text_column, label_column, complete, **options)
    return list(found), found.findings


def outcome(content, complete=True):
    """The rows and findings, or the reason."""
    try:
        rows, findings = read(content, complete)
    except reader.Unreadable as reason:
        return str(reason)
    return rows, vars(findings)


def verdict(content):
    rows, findings = read(content)
    reader.check_trainable(findings)
    return rows, findings


@pytest.fixture(params=[None, 64], ids=["one block", "blocks of 64 bytes"])
def block(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(reader, "BLOCK_BYTES", request.param)
        monkeypatch.setattr(reader, "UNDECIDED_CHARACTERS", 2**20)


# ---- fuzz


@fuzz
@given(good_files)
def test_fuzz_rows_put_in_are_rows_read_out(block, file):
    try:
        rows, findings = read(file.content)
    except reader.Unreadable as reason:
        assert TWO_WAYS in str(reason)  # noqa: PT017 - only some files
        assert "\\" in file.text
        return
    assert findings.separator == reader.SEPARATORS[file.separator]
    assert same(rows) == same(file.rows)
    assert findings.left_out == file.left_out
    assert (findings.blank_rows, findings.repeated_headers) == (file.blank_rows, file.repeated_headers)
    assert findings.used + sum(findings.left_out.values()) == findings.rows


def same(rows):
    """Rows but for backslashes: where nothing breaks, they are text."""
    return [(line, text.replace("\\", ""), label.replace("\\", "")) for line, text, label in rows]


@fuzz
@given(any_files, randoms)
def test_fuzz_chunks_do_not_matter(block, content, rnd):
    assert outcome(content) == outcome(in_chunks(rnd, content))


@fuzz
@given(any_files, st.floats(0, 1))
def test_fuzz_the_head_of_a_file_is_never_refused_when_the_file_is_not(block, content, share):
    if not isinstance(outcome(content), str):
        _, findings = read(content[: int(len(content) * share)], complete=False)
        reader.check_trainable(findings)


@fuzz
@given(any_files)
def test_fuzz_the_verdict_is_that_of_the_training_programs_split(content):
    try:
        rows, findings = read(content)
    except reader.Unreadable:
        return
    try:
        dataset.split([dataset.Example(text, label) for _, text, label in rows], 0.2, 42)
        trainable = True
    except dataset.DataError:
        trainable = False
    try:
        reader.check_trainable(findings, max_left_out=1)
    except reader.Unreadable as reason:
        assert not trainable or "stands in quotes" in str(reason)  # noqa: PT017 - only some files
    else:
        assert trainable
