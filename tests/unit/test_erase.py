"""mlops erase: a text planted in every place that the pipeline keeps is gone afterwards, and all else is as it was."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from fake_sagemaker import refusal
from mlops import erase
from shell import READS, Shell
from test_deployment_orchestrator import FIRST, SECOND, THIRD, approved_key
from world import BUCKET, ENDPOINT, Interruption, Killed, killed, tar_gz

SECRET = 'Ask Bob Smith, 12 Elm St: "why me?"'
# What stays: commas, quotes, line breaks and spaces as they were.
KEPT = [
    ["text", "label"],
    ["a, b", "ham"],
    ['say "hi"\r\nto me', "spam"],
    ["  spaces ", "ham"],
    [SECRET + " Why?", "x"],
]
ROWS = [*KEPT[:2], [f"  {SECRET} ", "ham"], *KEPT[2:], [SECRET, "spam"]]
GOLDEN = [{"text": "a, b", "label": "ham", "score": 0.9}]
WITH_SECRET = [{"text": SECRET, "label": "ham", "score": 0.9}, *GOLDEN]
UPLOAD = "data/train/x.csv"
LAST_UPLOADED = b"text,label\nanother,ham\n"


def as_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().encode()


def archive(number: int, secret: bool = True) -> bytes:
    """A model's archive; number tells it from others."""
    return tar_gz(
        [
            ("./config.json", b"{}"),
            ("./golden.json", json.dumps(WITH_SECRET if secret else GOLDEN).encode()),
            ("./holdout.csv", as_csv(ROWS if secret else KEPT)),
            ("./model.safetensors", b"weights %d" % number),
            ("code/inference.py", b"import torch"),
        ]
    )


def unpacked(packed: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def spelt(body: bytes) -> str:
    """All that is in an object, as one text without quoting."""
    if body.startswith(b"\x1f\x8b"):
        return "".join(map(spelt, unpacked(body).values()))
    return body.decode("latin-1").replace('""', '"').replace('\\"', '"')


def holding(shell: Shell) -> list[str]:
    """The keys with a version that has the text in it, but not only as a part of another text."""
    return sorted(
        key
        for key in shell.world.stored_keys()
        if any(SECRET in spelt(body).replace(f"{SECRET} Why?", "") for body in shell.world.bodies(key) if body)
    )


def live(shell: Shell, job: str, number: int) -> None:
    """A model with the text in its archive, its output, its decision and its snapshot goes live."""
    world = shell.world
    golden = {"job": job, "verdict": "approved", "golden": WITH_SECRET}
    world.put(f"data/snapshots/{job}/data.csv", as_csv(ROWS))
    world.put(f"data/snapshots/{job}/source.json", {"job": job, "bucket": BUCKET, "key": UPLOAD})
    for name in ("model.tar.gz", "output.tar.gz"):
        world.put(f"models/raw/{job}/output/{name}", archive(number))
    world.put(f"models/decisions/{job}.json", golden)
    shell.deploy(world.upload(approved_key(job), archive(number)))
    shell.settle()
    assert shell.served() == job


def plant(shell: Shell) -> None:
    """The text in every place, in versions that are old, deleted and current."""
    world = shell.world
    live(shell, FIRST, 1)
    live(shell, SECOND, 2)
    world.put(UPLOAD, as_csv(ROWS))
    world.put(UPLOAD, LAST_UPLOADED)
    world.put("data/train/tickets/y.csv", as_csv(KEPT))
    world.put("data/train/tickets/y.csv", as_csv(ROWS))
    world.put("data/train/gone.csv", as_csv(ROWS))
    world.s3.delete_object(Bucket=BUCKET, Key="data/train/gone.csv")
    world.put("data/train/not utf-8 é.csv", as_csv(ROWS) + b"\xff")
    # The commas are not quoted, so that it is several fields.
    world.put("data/train/shifted.csv", b"text,label\n" + SECRET.encode() + b",ham\n")


@pytest.fixture
def planted(shell: Shell) -> Shell:
    plant(shell)
    assert len(holding(shell)) == 15
    return shell


def run(shell: Shell, *arguments: str) -> int:
    return shell.run("erase", "--text", SECRET, "--yes", *arguments)


def test_a_text_in_every_place_is_gone_from_every_version(planted: Shell) -> None:
    assert run(planted) == 0
    assert holding(planted) == []


def test_all_other_rows_stay_as_they_were(planted: Shell) -> None:
    run(planted)
    snapshot = planted.world.read(f"data/snapshots/{SECOND}/data.csv").decode()
    assert list(csv.reader(io.StringIO(snapshot, newline=""))) == KEPT
    assert planted.world.record(f"models/decisions/{SECOND}.json")["golden"] == GOLDEN


def test_an_approved_archive_keeps_all_its_other_files_and_its_metadata(planted: Shell) -> None:
    told = {"source-etag": "1234", "training-job": FIRST}
    planted.world.s3.put_object(Bucket=BUCKET, Key=approved_key(FIRST), Body=archive(1), Metadata=told)
    run(planted)
    answer = planted.world.s3.get_object(Bucket=BUCKET, Key=approved_key(FIRST))
    packed = answer["Body"].read()
    files, expected = unpacked(packed), unpacked(archive(1, secret=False))
    assert list(files) == list(expected)
    for name in ("./config.json", "./model.safetensors", "code/inference.py"):
        assert files[name] == expected[name]
    assert json.loads(files["./golden.json"]) == GOLDEN
    assert list(csv.reader(io.StringIO(files["./holdout.csv"].decode(), newline=""))) == KEPT
    assert answer["Metadata"] == told
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        assert {member.mode for member in opened} == {0o644}


def test_an_older_version_of_an_upload_does_not_come_back_into_force(planted: Shell) -> None:
    run(planted)
    assert planted.world.keys("data/train/") == [UPLOAD]
    assert planted.world.read(UPLOAD) == LAST_UPLOADED


def test_the_live_endpoint_is_updated_to_the_archive_without_it(planted: Shell) -> None:
    before = planted.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"]
    run(planted)
    planted.settle()
    planted.settle()
    assert planted.served() == SECOND
    assert planted.sagemaker.endpoints[ENDPOINT]["EndpointConfigName"] != before
    assert planted.subjects()[-2:] == ["Deployment started", "Deployment successful"]


def test_a_model_before_the_live_one_can_still_be_gone_back_to(planted: Shell) -> None:
    run(planted)
    planted.settle()
    planted.settle()
    assert planted.run("rollback", "--model", "default", "--to", FIRST) == 0
    planted.settle()
    planted.settle()
    assert planted.served() == FIRST
    assert "Deployment failed" not in planted.subjects()


def test_a_model_that_comes_back_as_it_was_takes_its_archive_without_it(planted: Shell) -> None:
    run(planted)
    assert planted.run("rollback", "--model", "default") == 0
    planted.settle()
    planted.settle()
    assert planted.served() == FIRST
    assert "Deployment failed" not in planted.subjects()


def test_a_model_that_was_rolled_back_is_not_tried_again(shell: Shell) -> None:
    live(shell, FIRST, 1)
    shell.world.put(f"models/decisions/{THIRD}.json", {"job": THIRD, "verdict": "approved", "golden": WITH_SECRET})
    shell.sagemaker.answers[THIRD] = ("spam", 0.9)
    shell.deploy(shell.world.upload(approved_key(THIRD), archive(3)))
    shell.settle()
    shell.settle()
    assert (shell.state_of(THIRD), shell.served()) == ("rolled back", FIRST)
    assert run(shell) == 0
    shell.settle()
    shell.settle()
    assert (shell.state_of(THIRD), shell.served()) == ("withdrawn", FIRST)


def plant_little(shell: Shell) -> None:
    """One of each kind: a live model with all that belongs to it, and an upload with an older version."""
    live(shell, FIRST, 1)
    shell.world.put(UPLOAD, LAST_UPLOADED)
    shell.world.put(UPLOAD, as_csv(ROWS))


def test_killed_before_or_after_any_write_and_run_again_it_ends_as_if_nothing_had_happened(
    make_shell: Callable[[], Shell],
) -> None:
    shell = make_shell()
    plant_little(shell)
    before = len(shell.world.around.calls)
    assert run(shell) == 0
    calls, expected = shell.world.around.calls[before:], shell.world.final_state()["objects"]
    writes = [call for call, operation in enumerate(calls) if not operation.startswith(READS)]
    assert len(writes) == 13
    for call in writes:
        for after_the_effect in (False, True):
            shell = make_shell()
            plant_little(shell)
            at = len(shell.world.around.calls) + call
            shell.world.around.interruption = Interruption(at, killed, after_the_effect)
            with pytest.raises(Killed):
                run(shell)
            assert run(shell) == 0, (call, calls[call])
            assert holding(shell) == [], (call, calls[call], after_the_effect)
            assert shell.world.final_state()["objects"] == expected, (call, calls[call], after_the_effect)


def test_what_is_found_is_shown_but_not_the_text_and_nothing_is_changed_until_it_is_confirmed(
    planted: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "no")
    before = holding(planted)
    assert planted.run("erase", "--text", SECRET) == 2
    said = capsys.readouterr()
    assert holding(planted) == before
    assert f"  data/snapshots/{SECOND}/data.csv: 2 rows; written again without it" in said.out
    assert "  data/train/x.csv: 2 rows; an old version, deleted" in said.out
    assert "nothing was changed" in said.err
    assert "Bob" not in said.out + said.err


def test_again_there_is_nothing_to_do_and_nothing_is_asked(planted: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    run(planted)
    capsys.readouterr()
    assert planted.run("erase", "--text", SECRET) == 0
    assert "no upload, snapshot, model or decision has a row with exactly this text" in capsys.readouterr().out


def test_what_it_cannot_reach_is_said(planted: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    run(planted)
    said = capsys.readouterr().out
    for words in ("the weights of models", "containers of live endpoints", "emails, and logs", "copies that people"):
        assert words in said


def separated_by(separator: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(ROWS)
    return text.getvalue()


FORMS = {
    "semicolons": separated_by(";").encode(),
    "Excel's first line": b"sep=|\r\n" + separated_by("|").encode(),
    "UTF-16, tabs": separated_by("\t").encode("utf-16"),
    "UTF-16, big-endian": ("\ufeff" + separated_by(",")).encode("utf-16-be"),
    "compressed": gzip.compress(as_csv(ROWS), mtime=0),
    "quotes escaped by backslashes": separated_by(",").replace('""', '\\"').encode(),
    "compressed, not a readable CSV": gzip.compress(as_csv(ROWS) + b"\xff", mtime=0),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_found_in_whatever_form_the_pipeline_reads(shell: Shell, form: str) -> None:
    shell.world.put(UPLOAD, FORMS[form])
    assert run(shell) == 0
    assert shell.world.keys("data/train/") == []


@pytest.mark.parametrize("form", ["semicolons", "UTF-16, tabs", "compressed"])
def test_a_snapshot_in_another_form_keeps_its_other_rows(shell: Shell, form: str) -> None:
    key = f"data/snapshots/{FIRST}/data.csv"
    shell.world.put(key, FORMS[form])
    assert run(shell) == 0
    separator = {"semicolons": ";", "UTF-16, tabs": "\t"}.get(form, ",")
    assert list(csv.reader(io.StringIO(shell.world.read(key).decode(), newline=""), delimiter=separator)) == KEPT


def test_a_file_gives_a_text_of_several_lines(shell: Shell, tmp_path: Path) -> None:
    shell.world.put(UPLOAD, as_csv([["text", "label"], ["one\r\ntwo", "ham"]]))
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert shell.run("erase", "--file", str(tmp_path / "text.txt"), "--yes") == 0
    assert shell.world.keys("data/train/") == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "say which text"),
        (("--text", "a", "--file", "b"), "say which text"),
        (("--text", "  \n"), "the text is empty"),
        (("--file", "nowhere.txt"), "FILE=nowhere.txt cannot be read as UTF-8"),
    ],
)
def test_without_exactly_one_text_nothing_is_looked_at(
    shell: Shell, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert shell.run("erase", "--yes", *arguments) == 2
    assert reason in capsys.readouterr().err
    assert shell.world.around.calls == []


def test_a_model_on_its_way_to_its_endpoint_is_waited_for(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    live(shell, FIRST, 1)
    shell.deploy(shell.world.upload(approved_key(SECOND), archive(2)))
    before = holding(shell)
    assert run(shell) == 2
    assert f"{SECOND} is on its way to an endpoint" in capsys.readouterr().err
    assert holding(shell) == before


def test_the_output_of_a_job_that_is_not_judged_yet_is_left_and_named(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.world.put(f"models/raw/{FIRST}/output/model.tar.gz", archive(1))
    assert run(shell) == 1
    assert f"LEFT: {FIRST} has not been judged yet" in capsys.readouterr().out
    assert holding(shell) == [f"models/raw/{FIRST}/output/model.tar.gz"]


def test_a_job_that_runs_may_have_read_it(planted: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    planted.sagemaker.run_job(THIRD)
    assert run(planted) == 1
    assert f"LEFT: {THIRD} runs, and may have read it" in capsys.readouterr().out
    assert holding(planted) == []


LONG = "Dear Bob,\nmy address is 12 Elm St. " * 50


@pytest.mark.parametrize("text", [LONG.strip(), LONG.replace("\n", "\r\n").strip()], ids=["LF", "CRLF"])
@pytest.mark.parametrize("erasing", [erase.golden_without, erase.decision_without])
def test_a_golden_row_that_was_cut_is_erased_with_its_text(
    erasing: Callable[[IO[bytes], IO[bytes], str], int], text: str
) -> None:
    rows = [{"text": text[:512].strip()}, {"text": "Dear Bob,"}, {"text": text[:500]}]
    record = rows if erasing is erase.golden_without else {"golden": rows}
    kept = io.BytesIO()
    assert erasing(io.BytesIO(json.dumps(record).encode()), kept, erase.normal(text)) == 1
    left = json.loads(kept.getvalue())
    assert (left if isinstance(left, list) else left["golden"]) == rows[1:]


@pytest.mark.parametrize("body", [b"no archive", archive(1)[:200], tar_gz([("golden.json", b"[3]")])])
def test_an_archive_that_cannot_be_read_is_left_and_named(
    shell: Shell, capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    shell.world.put(approved_key(FIRST), body)
    assert run(shell) == 1
    assert f"LEFT: {approved_key(FIRST)} cannot be read" in capsys.readouterr().out
    assert shell.world.read(approved_key(FIRST)) == body


def test_an_object_that_s3_does_not_hand_out_is_left_and_named(
    planted: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = erase.Erasure.fetch

    def fetch(self: Any, key: str, version: str, into: Any) -> bool:
        if key == UPLOAD:
            planted.world.around.interruption = Interruption("GetObject", archived)
        return shown(self, key, version, into)

    def archived() -> None:
        raise refusal("GetObject", "InvalidObjectState", "The operation is not valid for the object's storage class")

    monkeypatch.setattr(erase.Erasure, "fetch", fetch)
    assert run(planted) == 1
    assert f"LEFT: {UPLOAD} cannot be read" in capsys.readouterr().out
    assert holding(planted) == [UPLOAD]


def test_what_somebody_has_just_replaced_is_not_overwritten(planted: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    key = f"data/snapshots/{FIRST}/data.csv"
    planted.world.around.interruption = Interruption("PutObject", lambda: planted.world.put(key, b"text,label\n"))
    assert run(planted) == 2
    assert f"somebody else has just changed {key}" in capsys.readouterr().err
    assert planted.world.read(key) == b"text,label\n"
