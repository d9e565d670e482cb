"""The one reader: any file a person would call good, and for the others a line, what was found and what to do."""

import gzip
import importlib
import itertools
import os
import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csv_files import any_files, good_files, in_chunks, randoms

dataset = importlib.import_module("dataset")
reader = importlib.import_module("reader")

TWO_WAYS = "can be read in two ways"
# Of files, for each test; more of them: EXAMPLES=10000 pytest tests/unit/test_reader.py -k fuzz
EXAMPLES = int(os.environ.get("EXAMPLES", "100"))
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


# ---- findings

FOUR = "1,ham\n2,ham\n3,spam\n4,spam\n"


def test_what_is_left_out_is_counted_with_its_first_lines():
    text = "text,label\n" + "a,b,c\n" * 7 + ",ham\n\n,\nhi,\nhi\ntext,label\n" + FOUR
    _, found = read(text.encode())
    assert found.left_out == {"too many fields": 7, "no text": 1, "no label": 2}
    assert found.left_out_lines == {"too many fields": [2, 3, 4, 5, 6], "no text": [9], "no label": [12, 13]}
    assert (found.rows, found.used, found.blank_rows, found.repeated_headers) == (14, 4, 2, 1)


def test_line_numbers_are_those_of_an_editor():
    rows, _ = read(b'text,label\r\n"a\r\nb\n\nc",x\r\rd,y\n')
    assert [line for line, *_ in rows] == [2, 7]


@pytest.mark.parametrize("rows", [0, 5, 100, 200_000])
def test_a_byte_of_another_encoding_is_named_with_its_line_in_whichever_block_it_stands(rows):
    content = b"text,label\n" + b"hello,ham\n" * rows + "café,ham\n".encode("latin-1")
    with pytest.raises(reader.Unreadable, match=f"^line {rows + 2}: byte 0xe9 is not UTF-8"):
        read(content)


@pytest.mark.parametrize(("share", "refused"), [(0.05, False), (0.049, True)])
def test_more_rows_left_out_than_allowed_refuse_the_file(share, refused):
    _, found = read(b"text,label\na,b,c\n" + b"".join(b"%d,%d\n" % (n, n % 2) for n in range(19)))
    if refused:
        with pytest.raises(reader.Unreadable, match=r"1 of 20 rows cannot be used \(too many fields: 1 \(line 2\)\)"):
            reader.check_trainable(found, share)
    else:
        reader.check_trainable(found, share)


def test_duplicates_conflicts_and_texts_of_each_label_are_exact():
    _, found = read(b"text,label\na,x\na,x\na,y\nb,x\nb,y\nb,x\nc,y\nd,z\nd,w\n")
    assert (found.duplicates, found.conflicts) == (5, 3)
    assert found.labels == {"x": 4, "y": 3, "w": 1, "z": 1}
    assert found.texts_of_label == {"x": 2, "y": 1, "w": 1, "z": 0}


def test_with_more_texts_than_are_remembered_figures_are_lower_bounds():
    texts = b"".join(b"%d,x\n%d,x\n" % (n, n) for n in range(1000))
    content = b"text,label\n" + texts + b"p,rare\np,rare\n" + b"q,two\nr,two\n"
    whole, _ = read(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BLOCK_BYTES", 1024)
        rows, found = read(content, max_texts=100)
    assert rows == whole
    assert not found.exact
    assert 0 < found.duplicates < 1000
    assert found.labels == {"x": 2000, "rare": 2, "two": 2}
    assert (found.texts_of_label["rare"], found.texts_of_label["two"]) == (1, 2)
    with pytest.raises(reader.Unreadable, match='"rare" has 1'):
        reader.check_trainable(found)


@pytest.mark.parametrize(
    ("labels", "alike"),
    [
        (["Ham", "ham", "HAM"], 1),
        (["1", "1.0", "01", "+1", "1,0"], 1),
        (["0.5", "0.50"], 1),
        (["café", "cafe\u0301"], 1),
        (["ham", "ham\u200b", "'ham'", "“ham”"], 1),
        (["ａ", "a"], 1),
        (["a  b", "a\xa0b"], 1),
        (["1", "10", "0.1", "-1", "1e1", "a", "ä", "12345678901234567890", "12345678901234567891"], 0),
    ],
)
def test_labels_that_look_alike_are_told(labels, alike):
    _, found = read(("text;label\n" + "".join(f"a;{label}\n" for label in labels)).encode())
    assert len(found.look_alikes) == alike
    assert sorted(itertools.chain(*found.look_alikes)) == (sorted(labels) if alike else [])


def test_labels_that_look_like_a_missing_value_are_told():
    assert read(b"text,label\na,NaN\nb,None\nc,N/A\nd,name\n")[1].null_like == ["N/A", "NaN", "None"]


def test_a_column_of_the_exact_name_wins():
    assert read(b"Text,text,LABEL\na,b,c\n")[0] == [(2, "b", "c")]


def test_a_label_of_the_columns_name_is_a_label_and_only_a_whole_header_is_passed_over():
    rows, found = read(b"text,label,id\na,label,1\nb,Label,2\ntext,label,id\nc,label,3\n")
    assert [text for _, text, _ in rows] == ["a", "b", "c"]
    assert found.repeated_headers == 1


def test_rows_with_other_first_fields_than_numbers_have_too_many_fields_and_no_names():
    _, found = read(b"text,label\nhi,you,ham\nhi,me,spam\n")
    assert not found.row_names
    assert found.left_out == {"too many fields": 2}


def test_no_text_of_a_row_stands_in_a_reason():
    for row in [
        '"my "secret" word",ham',
        '"my secret,ham',
        "my secret,b,c",
        ",my secret",
        "my secret,",
        "my secret \xff,x",
    ]:
        for header in ("text,label\n", "text,label\na,b\n", ""):
            reason = outcome_or_verdict((header + row + "\n").encode("latin-1"))
            assert isinstance(reason, str)
            assert "secret" not in reason or not header


def outcome_or_verdict(content):
    try:
        return verdict(content)
    except reader.Unreadable as reason:
        return str(reason)


def test_a_first_line_of_sentences_is_not_quoted():
    reason = outcome_or_verdict(b"please call my mother back soon,+49 170 1234567,bob@example.com,ham\n")
    assert reason.endswith('has: …, …, …, "ham"')


def test_a_long_label_is_not_shown_in_a_reason():
    reason = outcome_or_verdict(f"text,label\na,{'x' * 500}\n".encode())
    assert reason == "there is only one label, (a label of 500 characters); add rows with other labels"


def test_a_long_name_of_a_column_is_cut_in_a_reason():
    found = reader.Reader([b"text,label\n"], "x" * 1000, "label")
    with pytest.raises(reader.Unreadable, match=f'no column "{"x" * 40}…"; '):
        list(found)


def test_labels_that_may_be_each_row_s_own_text_are_not_shown_in_a_reason():
    reason = outcome_or_verdict(b"text,label\n1,a\n2,a\n" + b"".join(b"%d,my secret %d\n" % (n, n) for n in range(6)))
    assert reason == ("6 of 7 labels have fewer than 2 different texts; is the label column the column of the texts?")


# ---- limits


def endless(start, piece):
    """Chunks without end; counts the bytes that were taken."""
    taken = [0]

    def chunks():
        yield start
        while True:
            taken[0] += len(piece)
            yield piece

    return chunks(), taken


@pytest.mark.parametrize(
    ("start", "piece", "reason"),
    [
        (b"", b"a" * 1000, "line 1: the row that begins here has more than 2,097,152 characters"),
        (b"text,label\n", b"a," * 1000, "line 2: the row that begins here has more than 2,097,152 characters"),
        (b'text,label\na,b\n"', b"a,b\n" * 1000, "line 3: the row that begins here has more than 2,097,152 characters"),
        (b"text,label\n", "é".encode() * 1000, "line 2: the row that begins here"),
    ],
)
def test_a_row_without_end_is_refused_with_its_line_after_a_few_megabytes(start, piece, reason):
    chunks, taken = endless(start, piece)
    with pytest.raises(reader.Unreadable, match=reason):
        read(chunks)
    assert taken[0] < 10 * 1024**2


def test_the_longest_row_is_read_and_one_character_more_is_not():
    text = "x" * (reader.MAX_ROW_CHARACTERS - 4)
    assert read(f"text,label\n{text},ab\n".encode())[0] == [(2, text, "ab")]
    with pytest.raises(reader.Unreadable, match="line 2: the row"):
        read(f"text,label\n{text}x,ab\n".encode())


def test_seven_thousand_labels_and_more_are_read_and_a_column_of_texts_is_no_label_column():
    content = "text,label\n" + "".join(f"{n},{n // 2}\n" for n in range(2 * reader.MAX_LABELS))
    assert len(verdict(content.encode())[1].labels) == reader.MAX_LABELS >= 7_000
    with pytest.raises(reader.Unreadable, match=f'line {2 * reader.MAX_LABELS + 2}: more than .* is "label" the label'):
        read((content + "a,b\n").encode())


def test_labels_are_bounded_in_characters_together():
    label = "x" * 507
    with pytest.raises(reader.Unreadable, match=r"line 16386: more than .* 8,388,608 characters"):
        read(("text,label\n" + "".join(f"a,{label}{n:05}\n" for n in range(17_000))).encode())


def test_a_label_of_512_characters_is_the_longest(block):
    longest = "x" * 512
    assert read(f"text,label\na,{longest}\n".encode())[0] == [(2, "a", longest)]
    with pytest.raises(reader.Unreadable) as refused:
        read(f"text,label\na,b\nc,{longest}x\n".encode())
    assert str(refused.value) == (
        'line 3: the label has 513 characters, more than 512; shorten it; or is "label" not the label column?'
    )


@pytest.fixture(scope="module")
def bomb():
    """The start of a gzip file, and a piece of about a kilobyte that unpacks to a megabyte, as often as one likes."""
    gzip = zlib.compressobj(9, wbits=31)
    start = gzip.compress(b"text,label\n") + gzip.flush(zlib.Z_FULL_FLUSH)
    gzip.compress(b"")
    return start, gzip.compress((b"a" * 1021 + b",b\n") * 1024) + gzip.flush(zlib.Z_FULL_FLUSH)


def test_a_bomb_is_refused_when_it_has_unpacked_sixteen_megabytes(bomb):
    chunks, taken = endless(*bomb)
    with pytest.raises(reader.Unreadable, match="unpacks to more than 200 times its size"):
        read(chunks)
    assert taken[0] <= reader.BLOCK_BYTES + len(bomb[1])


def test_memory_does_not_grow_with_the_file(monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 16 * 1024)
    peaks = []
    for pieces in (20, 100):
        piece = b"".join(b'"some words, number %d",%d\n' % (n, n % 3) for n in range(300))
        tracemalloc.start()
        found = reader.Reader(itertools.chain([b"text,label\n"], itertools.repeat(piece, pieces)), "text", "label")
        assert sum(len(rows) for rows in found.batches()) == 300 * pieces
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_texts_are_remembered_up_to_a_number():
    rows = b"text,label\n" + b"".join(b"%d,x\n" % n for n in range(50_000))
    found = reader.Reader([rows], "text", "label", max_texts=1000)
    for _ in found.batches():
        assert len(found._first) < 1000 + reader.BLOCK_BYTES


def test_the_chunks_may_say_at_their_end_that_there_is_more():
    def chunks():
        yield b"text,label\na,b\nc,"
        found.complete = False

    found = reader.Reader(chunks(), "text", "label")
    assert list(found) == [(2, "a", "b")]
    assert not found.findings.complete
    reader.check_trainable(found.findings)


# ---- the first evidence decides how quotes are read, over blocks as well


def filler(rows):
    return "".join(f"text {n},x\n" for n in range(rows))


def test_backslashes_are_understood_wherever_the_first_one_stands():
    text = "text,label\n" + filler(30_000) + '"a \\"b\\" c",y\n' + filler(30_000) + '"\\"d\\"",y\n'
    rows, found = read(text.encode())
    assert [text for _, text, label in rows if label == "y"] == ['a "b" c', '"d"']
    assert found.quoting == reader.QUOTES_ESCAPED


def test_a_later_row_against_the_first_evidence_is_refused_with_its_line():
    text = 'text,label\n"a \\"b\\" c",y\n' + filler(30_000) + '"C:\\",y\n"d",y\n'
    with pytest.raises(reader.Unreadable, match=r"line 30003: .* goes on to line 30004, .*not everywhere"):
        read(text.encode())


def test_a_backslash_at_the_end_of_a_field_is_text_though_another_way_stays_open_for_long():
    text = 'text,label\n"C:\\",y\n' + filler(100_000)
    rows, _ = read(text.encode())
    assert rows[0] == (2, "C:\\", "y")
    assert len(rows) == 100_001


def test_two_ways_to_read_a_backslash_with_other_rows_are_refused():
    with pytest.raises(reader.Unreadable, match="line 2: a backslash before a quote can be read in two ways"):
        read(b'text,label\n"a\\",b"\n')


def test_spaces_before_quotes_are_separators_of_words_once_a_text_begins_with_them():
    text = 'label,text\nx, "Yes" she said\n' + 'y, "a, b"\n'
    rows, found = read(text.encode())
    assert rows == [(2, '"Yes" she said', "x")]
    assert found.left_out == {"too many fields": 1}


def test_a_row_that_two_ways_end_on_other_lines_waits_for_the_next_block(monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 64)
    start = "text,label\n" + "f" * 45 + ",x\n" + '"a\\"\n'
    assert len(start) == 64
    rows, _ = read((start + 'b",x\n"say \\"yes\\" now",y\n').encode())
    assert rows[1:] == [(3, 'a"\nb', "x"), (5, 'say "yes" now', "y")]


# ---- what people are told

LONG = "a text of more than forty characters, which is no label"


def told(content, complete=True, **options):
    return reader.told(read(content, complete, **options)[1])


def test_people_are_told_what_a_file_holds():
    lines = [
        "text;label",
        *["a;ham"] * 3,
        "a;Ham",
        "b;NULL",
        "c;",
        "d;;e",
        "e;",
        ";;",
        "",
        "text;label",
        "f;1",
        "g;1.0",
    ]
    assert told(("\ufeff" + "\r\n".join(lines)).encode()) == {
        "format": "UTF-8, separated by semicolon",
        "rows": "10 read, 7 used",
        "rows left out": "no label: 2 (line 7, 9); too many fields: 1 (line 8)",
        "passed over": "2 blank rows, 1 repeated header lines",
        "labels": '5: "ham" 3, "1" 1, "1.0" 1, "Ham" 1, "NULL" 1',
        "labels that look alike": '"ham" / "Ham", "1" / "1.0"',
        "labels like empty cells": '"NULL"',
        "repeated texts": "3 rows",
        "texts with several labels": "1",
        "longest text": "1 characters",
    }


def test_of_a_good_file_people_are_told_no_more_than_its_rows_and_labels():
    assert told(b"text,label\nhi,ham\nho,spam\n").keys() == {"format", "rows", "labels", "longest text"}


def test_people_are_told_of_the_first_twenty_labels_and_how_many_more_there_are():
    rows = "".join(f"text {n},label {n}\n" for n in range(1, 1236))
    labels = told(f"text,label\n{rows}".encode())["labels"]
    assert labels.startswith('1,235: "label 1" 1, "label 10" 1')
    assert labels.endswith(", and 1,215 more")
    assert labels.count('"') == 40


def test_people_are_told_when_only_a_part_was_read():
    assert "only a part" in told(b"text,label\nhi,ham\n", complete=False)["checked"]


def test_people_are_told_that_a_count_is_a_lower_bound():
    rows = b"".join(b"text %d,ham\n" % (n // 2) for n in range(40))
    assert told(b"text,label\n" + rows)["repeated texts"] == "20 rows"
    assert told(b"text,label\n" + rows, max_texts=10)["repeated texts"].startswith("at least ")


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ("text\tlabel\nhi\tham\n".encode("utf-16"), "UTF-16-LE, separated by tab"),
        (gzip.compress(b"text|label\nhi|ham\n", mtime=0), "UTF-8, gzip, separated by bar"),
        (b'text\tlabel\n"hi\tham\n', "UTF-8, separated by tab, quotes are text"),
        (b'text,label\n"a \\"b\\" c, d",ham\n', "UTF-8, separated by comma, quotes escaped by a backslash"),
        (
            b"text,label\n1,hi,ham\n2,ho,ham\n",
            "UTF-8, separated by comma, its first column, without a name, is left out",
        ),
    ],
)
def test_people_are_told_how_a_file_was_read(content, form):
    assert told(content)["format"] == form


def test_people_are_not_told_a_long_label():
    said = told(f'text,label\na,"{LONG}"\nb,"{LONG.upper()}"\n'.encode())
    assert "labels that look alike" in said
    assert LONG[:10].casefold() not in str(said).casefold()
