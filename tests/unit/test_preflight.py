"""What the training orchestrator takes an upload for, by its name, and what it finds in it before money is spent."""

from __future__ import annotations

import codecs
import gzip
import io
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import IncompleteReadError
from botocore.response import StreamingBody
from hypothesis import example, given

import dataset
from csv_files import any_files
from world import CSV, ENVIRONMENT, World, in_memory, runner

MB = 1024**2
TEN = ["lunch at noon", "see you at nine", "the train is late", "call me back", "all the notes", "we are out of milk"]
WINS = ["win a cruise", "claim your prize", "free money now", "a gift for you", "you have won", "cheap loans today"]
ROWS = [*((text, "ham") for text in TEN), *((text, "spam") for text in WINS)]


@pytest.fixture
def world(training: ModuleType, environment: None, monkeypatch: pytest.MonkeyPatch) -> World:
    return in_memory(training, monkeypatch)


@pytest.fixture
def run(training: ModuleType, world: World) -> Callable[..., str]:
    return runner(training, world)


def lines(*more: str, separator: str = ",", rows: list[tuple[str, str]] = ROWS) -> bytes:
    """A CSV of ROWS, and more lines behind them."""
    return "\n".join([f"text{separator}label", *map(separator.join, rows), *more, ""]).encode()


def reason(world: World) -> str:
    """Why the only upload was rejected, as its record and its email say."""
    (key,) = world.keys("data/rejected/")
    why = str(world.record(key)["reason"])
    assert f"Why: {why}.\n" in world.only_email().body
    return why


def told(world: World) -> dict[str, str]:
    """What the only job's file holds, as the record says, and the email."""
    (job,) = world.sagemaker.jobs
    found = dict(world.record(f"data/snapshots/{job}/source.json")["told"])
    for name, text in found.items():
        assert any(line.split(maxsplit=len(name.split())) == [*name.split(), text] for line in table(world))
    return found


def table(world: World) -> list[str]:
    return [line for line in world.only_email().body.splitlines() if line.startswith("  ")]


# --- by its name ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True], ids=["event", "sweep"])
@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.tsv", "x.Tsv", "x.csv.gz", "x.CSV.GZ", "x.tsv.gz", "README.csv"])
def test_a_file_is_trained_on_whatever_of_its_endings_it_has(
    run: Callable[..., str], world: World, name: str, lost: bool
) -> None:
    content = lines(separator="\t" if "tsv" in name.lower() else ",")
    content = gzip.compress(content, mtime=0) if name.lower().endswith(".gz") else content
    sent = world.upload(f"data/train/reviews/{name}", content)
    if lost:
        world.wait(minutes=11)
    assert run() == "started 1, waiting 0" if lost else run(sent) == "started"
    (job,) = world.sagemaker.jobs
    assert world.read(f"data/snapshots/{job}/data.csv") == content


OTHERS = ["xlsx", "xls", "json", "jsonl", "parquet", "txt", "zip", "gz", "csv.zip", "csv ", "pdf"]


@pytest.mark.parametrize("lost", [False, True], ids=["event", "sweep"])
@pytest.mark.parametrize("name", [*(f"tickets.{ending}" for ending in OTHERS), "part-00000", "x/settings.json.bak"])
def test_a_file_of_another_kind_gives_one_email_and_is_not_read(
    run: Callable[..., str], world: World, name: str, lost: bool
) -> None:
    sent = world.upload(f"data/train/{name}", CSV, StorageClass="GLACIER")
    world.wait(minutes=11 if lost else 0)
    assert run() == "started 0, waiting 0" if lost else run(sent) == "rejected"
    assert reason(world) == (
        'only files named .csv, .tsv, .csv.gz or .tsv.gz are trained on: save it as CSV (in Excel: "CSV UTF-8")'
    )
    world.wait(minutes=21)
    run()
    assert run(sent) == "already rejected"
    assert world.only_email().subject == f"Training data rejected: {name.rsplit('/', 1)[-1]}"


def test_an_empty_workbook_is_no_placeholder(run: Callable[..., str], world: World) -> None:
    assert run(world.upload("data/train/x.xlsx", b"")) == "rejected"


SILENT = {
    "data/train/": b"",
    "data/train/reviews/": b"",
    "data/train/x.csv/": b"",
    "data/train/reviews_$folder$": b"",
    "data/train/_SUCCESS": b"",
    "data/train/README.md": b"what this is",
    "data/train/reviews/readme": b"what this is",
    "data/train/.DS_Store": b"\0\0\0\1",
    "data/train/._tickets.csv": b"\0\5\x16\7",
}


@pytest.mark.parametrize("lost", [False, True], ids=["event", "sweep"])
@pytest.mark.parametrize("key", SILENT)
def test_folders_notes_and_hidden_files_are_passed_over_in_silence(
    run: Callable[..., str], world: World, key: str, lost: bool
) -> None:
    sent = world.upload(key, SILENT[key])
    world.wait(minutes=11)
    before = world.final_state()
    assert run() == "started 0, waiting 0" if lost else run(sent) == "ignored"
    assert world.emails() == []
    assert world.final_state() == before


@pytest.mark.parametrize("key", ["data/train/settings.json", "data/train/reviews/settings.json"])
def test_a_model_s_settings_are_no_upload_to_train_on(run: Callable[..., str], world: World, key: str) -> None:
    sent = world.upload(key, b"{}")
    before = world.final_state()
    assert run(sent) == "settings"
    world.wait(minutes=11)
    assert run() == "started 0, waiting 0"
    assert world.emails() == []
    assert world.final_state() == before


# --- by what is in it -------------------------------------------------------------------------------

BAD_UPLOADS = {
    "empty": (b"", "the file is empty, or blank"),
    "white space": (b" \r\n\t\n", "the file is empty, or blank"),
    "byte order mark only": (codecs.BOM_UTF8, "the file is empty, or blank"),
    "header only": (b"text,label\n", "no row has a text and a label (there are no rows)"),
    "no label column": (b"text,class\na,b\n", 'line 1: there is no column "label"; this line must name the columns'),
    "column twice": (b"text,label,label\na,b,c\n", 'line 1: 2 columns are named "label"'),
    "NUL in the header": (bytes(range(1, 10)) + b"\0", "line 1: the header has a NUL byte"),
    "UTF-16 without mark": (CSV.decode().encode("utf-16-le"), "line 1: the header has a NUL byte"),
    "UTF-32": (CSV.decode().encode("utf-32"), "the file is UTF-32 text"),
    "Latin-1": (CSV + "café,ham\n".encode("latin-1"), "line 6: byte 0xe9 is not UTF-8"),
    "mixed encodings": (CSV + "café,ham\n".encode() + "café,b\n".encode("latin-1"), "line 7: byte 0xe9 is not UTF-8"),
    "no header": (b"My name is Jane Roe,ham\nhello,ham\n", 'and has: …, "ham"'),
    "column names without an end": (b"ab," * MB, "line 1: the row that begins here has more than 2,097,152 characters"),
    "cut character": (CSV + "é".encode()[:-1], "line 6: byte 0xc3 is not UTF-8"),
    "workbook": (b"PK\x03\x04" + b"\0" * 60, "the file is a zip archive or an Excel workbook"),
    "old workbook": (b"\xd0\xcf\x11\xe0" + b"\0" * 60, "the file is an old Excel workbook"),
    "broken gzip": (b"\x1f\x8b\x08\0" + b"\0" * 60, "the compressed file is damaged"),
    "cut gzip": (gzip.compress(CSV)[:-9], "the compressed file is cut off"),
    "gzip bomb": (
        gzip.compress(CSV + (b"x" * 5000 + b",ham\n") * 9000),
        "the file unpacks to more than 200 times its size",
    ),
    "Parquet": (b"PAR1\x15\x04", "the file is a Parquet file"),
    "PDF": (b"%PDF-1.7\n", "the file is a PDF"),
    # Excel, a stray quote, one never closed (case 01).
    "stray quote": (lines('"the 12" screen",ham'), "line 14: a quote in a quoted field is neither doubled nor before"),
    "space after closing quote": (lines('"hello" ,"ham"'), "line 14: a quote in a quoted field is neither doubled"),
    "quote never closed": (lines('"hello,ham', "more,ham"), "line 14: a quote opens here and is never closed"),
    "both escapes": (lines('"say \\"yes\\" now",ham', '"say ""no"" now",ham', '"C:\\",ham'), "line 1"),
    # A third of the texts have an unquoted comma (case 02).
    "shifted rows": (
        lines(*(f"one, two {n},ham" for n in range(6))),
        "6 of 18 rows cannot be used (too many fields: 6 (line 14, 15, 16, 17, 18, …)), more than 5 %",
    ),
    "labels in single quotes": (
        lines(rows=[(text, f"'{label}'") for text, label in ROWS]),
        "every label stands in quotes that belong to it",
    ),
    # Too few of something (case 06).
    "one row": (b"text,label\nhello,ham\n", 'there is only one label, "ham"'),
    "one label": (lines(rows=ROWS[:6]), 'there is only one label, "ham"'),
    "one row of a label": (lines("a text,rare"), "1 of 3 labels have fewer than 2 different texts"),
    "one text of a label": (lines("a text,rare", "a text,rare"), '"rare" has 1 (2 rows)'),
    "no labels": (lines(rows=[(text, " ") for text, _ in ROWS]), "no row has a text and a label (no label: 12"),
    "no texts": (lines(rows=[("", label) for _, label in ROWS]), "no row has a text and a label (no text: 12"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_upload_gives_one_email_with_the_reason_and_no_job(
    run: Callable[..., str], world: World, name: str
) -> None:
    content, why = BAD_UPLOADS[name]
    assert run(world.upload("data/train/bad.csv", content)) == "rejected"
    assert why in reason(world)
    assert world.only_email().subject == "Training data rejected: bad.csv"
    assert world.sagemaker.jobs == {}
    assert world.keys("data/snapshots/") == []


GOOD_UPLOADS = {
    "byte order mark": (codecs.BOM_UTF8 + CSV, {}),
    "two byte order marks": (codecs.BOM_UTF8 * 2 + CSV, {}),
    "UTF-16": (CSV.decode().encode("utf-16"), {"format": "UTF-16-LE, separated by comma"}),
    "accents": (lines("café 日本 🙂,ham"), {"format": "UTF-8, separated by comma"}),
    "Windows line ends": (CSV.replace(b"\n", b"\r\n"), {}),
    "quoted newline, comma and quote": (lines('"a\nb, ""c""",ham'), {"rows": "13 read, 13 used"}),
    "further columns in another order": (
        b"id,Label,note, TEXT\n1,ham,,a\n2,ham,,b\n3,spam,,c\n4,spam,,d\n",
        {"labels": '2: "ham" 2, "spam" 2'},
    ),
    "no newline at the end": (CSV[:-1], {}),
    "semicolons": (lines(separator=";"), {"format": "UTF-8, separated by semicolon"}),
    "gzip": (gzip.compress(lines(), mtime=0), {"format": "UTF-8, gzip, separated by comma"}),
    # Spark's quotes (case 01).
    "quotes escaped by a backslash": (
        lines('"say \\"yes\\" now",ham'),
        {"format": "UTF-8, separated by comma, quotes escaped by a backslash"},
    ),
    "one row in 25 is shifted": (
        lines(*(f"text {n},ham" for n in range(12)), "one, two,ham"),
        {"rows": "25 read, 24 used", "rows left out": "too many fields: 1 (line 26)"},
    ),
    # A space behind each comma (case 04).
    "spaces behind separators": (
        b'text, label\n"a, b", "ham"\n"c", "ham"\nd, spam\ne, "spam"\n',
        {"labels": '2: "ham" 2, "spam" 2'},
    ),
    # Case 08.
    "labels that look alike": (
        lines("a,Ham", "b,Ham", "c,SPAM", "d,SPAM", "e,1", "f,1", "g,1.0", "h,1.0"),
        {"labels that look alike": '"ham" / "Ham", "spam" / "SPAM", "1" / "1.0"'},
    ),
    # Case 11.
    "a NUL byte in a text": (lines("a\0b,ham"), {"rows": "13 read, 13 used"}),
    # Case 12.
    "Excel's separator hint": (b"sep=;\r\n" + lines(separator=";"), {"format": "UTF-8, separated by semicolon"}),
    "texts repeated, and with two labels": (
        lines("win a cruise,spam", "win a cruise,ham", ",", "text,label"),
        {
            "repeated texts": "2 rows",
            "texts with several labels": "1",
            "passed over": "1 blank rows, 1 repeated header lines",
            "longest text": "18 characters",
        },
    ),
}


@pytest.mark.parametrize("name", GOOD_UPLOADS)
def test_a_good_upload_starts_a_job_on_exactly_its_bytes_and_says_what_it_holds(
    run: Callable[..., str], world: World, name: str
) -> None:
    content, holds = GOOD_UPLOADS[name]
    assert run(world.upload("data/train/good.csv", content)) == "started"
    (job,) = world.sagemaker.jobs
    assert world.read(f"data/snapshots/{job}/data.csv") == content
    assert told(world).items() >= holds.items()


def test_what_a_refused_file_holds_is_said_where_it_could_be_read(run: Callable[..., str], world: World) -> None:
    run(world.upload("data/train/bad.csv", lines(*(f"one, two {n},ham" for n in range(6)))))
    (key,) = world.keys("data/rejected/")
    held = world.record(key)["told"]
    assert held["rows"] == "18 read, 12 used"
    assert {" ".join(line.split()) for line in table(world)} > {f"{name} {text}" for name, text in held.items()}


def test_the_share_of_rows_that_may_be_left_out_is_a_setting(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted = lines(*(f"one, two {n},ham" for n in range(6)))
    monkeypatch.setenv("MAX_ROWS_LEFT_OUT", "0.34")
    training.settings.cache_clear()
    assert run(world.upload("data/train/bad.csv", shifted)) == "started"
    (job,) = world.sagemaker.jobs.values()
    assert job["Environment"]["MAX_ROWS_LEFT_OUT"] == "0.34"
    monkeypatch.setenv("MAX_ROWS_LEFT_OUT", "0.33")
    training.settings.cache_clear()
    assert run(world.upload("data/train/b/bad.csv", shifted)) == "rejected"
    assert "At most 33 % of the rows may lack a text" in world.emails()[-1].body


# --- how much of it ---------------------------------------------------------------------------------


class Generated:
    """A body that is made while it is read: beginning, then a block again and again, up to a size."""

    def __init__(self, beginning: bytes, block: Callable[[int], bytes], size: int) -> None:
        self.size, self.taken, self._kept, self._block, self._number = size, 0, beginning, block, 0

    def __enter__(self) -> Generated:
        return self

    def __exit__(self, *_: object) -> None:
        self.size = 0

    def read(self, amount: int) -> bytes:
        amount = min(amount, self.size - self.taken)
        while len(self._kept) < amount:
            self._number += 1
            self._kept += self._block(self._number)
        given, self._kept = self._kept[:amount], self._kept[amount:]
        self.taken += amount
        return given


def answer(body: Generated | bytes) -> dict[str, Any]:
    """What GetObject answers."""
    generated = body if isinstance(body, Generated) else Generated(body, lambda _: b"", len(body))
    return {"Body": generated, "ContentLength": generated.size, "ETag": '"etag"'}


@pytest.fixture(scope="module")
def config(training: ModuleType) -> Any:
    return training.Settings.from_env(ENVIRONMENT["training_orchestrator"])


def test_what_takes_longer_than_the_function_has_is_checked_in_part_and_that_is_said(
    run: Callable[..., str], world: World, training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PREFLIGHT_SECONDS", -1)
    content = lines(*(f"text {number},ham" for number in range(30_000))) + b"\xff"
    assert run(world.upload("data/train/large.csv", content)) == "started"
    part = f"the first 262.1 kB of {len(content) / 1000:.1f} kB"
    assert told(world)["checked"] == f"only a part of the file, so the rest may hold more of everything ({part})"


def test_of_a_part_nothing_is_refused_that_the_rest_may_mend(
    training: ModuleType, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lines(*(f"one, two {number},ham" for number in range(30_000)), rows=ROWS[:1])
    with pytest.raises(training.Rejected):
        training.check(answer(content), config)
    monkeypatch.setattr(training, "PREFLIGHT_SECONDS", -1)
    assert "checked" in training.check(answer(content), config).told


def test_a_part_that_cannot_be_read_is_refused_however_much_is_left(
    training: ModuleType, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PREFLIGHT_SECONDS", -1)
    with pytest.raises(training.Rejected, match="line 15: byte 0xff is not UTF-8"):
        training.check(answer(lines("\N{LATIN SMALL LETTER E WITH ACUTE}") + bytes([255]) + b"x" * MB), config)


def test_time_is_looked_at_while_a_compressed_file_is_unpacked(
    training: ModuleType, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = gzip.compress(CSV + b"hello,ham\n" * 200_000 + bytes([255]))
    monkeypatch.setattr(training, "PREFLIGHT_SECONDS", -1)
    assert len(content) < 10_000
    assert training.check(answer(content), config).told["checked"].startswith("only a part of the file")


def test_a_file_whose_last_byte_came_in_time_s_last_moment_is_checked_whole(
    training: ModuleType, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PREFLIGHT_SECONDS", -1)
    assert "checked" not in training.check(answer(CSV), config).told


def test_a_connection_that_breaks_is_not_the_end_of_the_file(training: ModuleType, config: Any) -> None:
    broken = {"Body": StreamingBody(io.BytesIO(CSV), len(CSV) + 1), "ContentLength": len(CSV) + 1, "ETag": '"etag"'}
    with pytest.raises(IncompleteReadError):
        training.check(broken, config)


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_for_a_check_does_not_grow_with_the_file(
    training: ModuleType, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PREFLIGHT_TEXTS", 5_000)
    monkeypatch.setattr(training, "PREFLIGHT_SECONDS", 600)

    def block(number: int) -> bytes:
        return b"".join(b"%d %d and what there is to say about it,ham\n" % (number, row) for row in range(1000))

    small, large = (
        peak_bytes(lambda size=size: training.check(answer(Generated(CSV, block, size)), config))  # type: ignore[misc]
        for size in (2 * MB, 8 * MB)
    )
    assert large < 1.1 * small


@pytest.mark.parametrize("begin", [b"", b"text,label\n", b'text,label\n"', b"text,label\nx,"], ids=ascii)
@pytest.mark.parametrize("block", [b"x", b" ", b"\0", b'"', b"\\", b'\\"', b",", b"ab,"], ids=ascii)
def test_a_line_without_an_end_is_given_up_after_a_few_megabytes(
    training: ModuleType, config: Any, begin: bytes, block: bytes
) -> None:
    body = Generated(begin, lambda _: block * (MB // len(block)), 100 * MB)
    with pytest.raises(training.Rejected):
        training.check(answer(body), config)
    assert body.taken <= 5 * MB


# --- the training program's verdict -----------------------------------------------------------------


def verdict_of_the_program(folder: Path, content: bytes) -> str:
    """Why the training program refuses a file, "" where it trains on it."""
    (folder / "data.csv").write_bytes(content)
    try:
        examples, found = dataset.read_channel(folder, "text", "label")
        dataset.check_channel(examples, found)
        dataset.split(examples, 0.2, 42)
    except dataset.DataError as error:
        return str(error).removeprefix("data.csv: ").removesuffix(".")
    return ""


def verdict_of_the_check(training: ModuleType, config: Any, content: bytes) -> str:
    try:
        training.check(answer(content), config)
    except training.Rejected as reason:
        return str(reason)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("channel")


@given(content=any_files)
@example(content=CSV)
@example(content=b"text,label\na,b\n")
def test_of_a_whole_file_the_check_has_the_verdict_of_the_training_program(
    training: ModuleType, config: Any, folder: Path, content: bytes
) -> None:
    assert verdict_of_the_check(training, config, content) == verdict_of_the_program(folder, content)


@given(choose=...)
def test_of_few_rows_and_labels_the_check_has_the_verdict_of_the_training_program(
    training: ModuleType, config: Any, folder: Path, choose: random.Random
) -> None:
    """Files about as often good as not: what makes the difference is how many texts each label has."""
    texts = [f"text {number}" for number in range(choose.randint(2, 12))]
    rows = [f"{choose.choice(texts)},{choose.choice('abc')}" for _ in range(choose.randint(1, 30))]
    content = "\n".join(["text,label", *rows]).encode()
    assert verdict_of_the_check(training, config, content) == verdict_of_the_program(folder, content)
