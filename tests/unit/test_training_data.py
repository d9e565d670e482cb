"""Reading, splitting and scoring in the training program: the parts that need no machine-learning framework."""

import csv
import gzip
import importlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SAMPLE = Path(__file__).resolve().parents[2] / "scripts" / "sample" / "support.csv"
dataset = importlib.import_module("dataset")
metrics = importlib.import_module("metrics")
Example = dataset.Example
DataError = dataset.DataError

# A lone surrogate cannot be written as UTF-8; everything else may stand in a file.
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
filled_text = any_text.map(str.strip).filter(bool)


@pytest.fixture
def write(tmp_path):
    """Write bytes or text as data.csv and return its path."""

    def write(content):
        path = tmp_path / "data.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path, text_column="text", label_column="label"):
    """Return the examples and the rows left out, of a channel with this one file."""
    examples, found = dataset.read_channel(path.parent, text_column, label_column)
    return examples, left_out(found)


def left_out(found):
    """The rows that were left out of a channel's files, by reason."""
    return sum((Counter(findings.left_out) for findings in found.values()), Counter())


def skipped(too_many_fields=0, empty_text=0, empty_label=0):
    return +Counter({"too many fields": too_many_fields, "no text": empty_text, "no label": empty_label})


# ---- reading


# With line feeds and minimal quoting, Python 3.11's writer leaves a lone carriage return unquoted: not a fair file.
@given(
    rows=st.lists(st.tuples(any_text, any_text, any_text)),
    style=st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_ALL)]),
    mark=st.booleans(),
)
def test_whatever_a_csv_writer_wrote_is_read_back(tmp_path_factory, rows, style, mark):
    path = tmp_path_factory.mktemp("csv") / "data.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=style[0], quoting=style[1])
        writer.writerows([("label", " text ", "note"), *rows])

    examples, skipped_rows = read(path)

    stripped = [(text.strip(), label.strip(), note.strip()) for label, text, note in rows]
    assert examples == [(text, label) for text, label, _ in stripped if text and label]
    assert skipped_rows == skipped(
        empty_text=sum(not text and bool(label or note) for text, label, note in stripped),
        empty_label=sum(bool(text) and not label for text, label, _ in stripped),
    )


def test_a_byte_order_mark_spaced_headers_crlf_and_further_columns_do_not_matter(write):
    path = write('\ufeffid, label ,text\r\n1,spam,"Win ""now"",\r\ntoday"\r\n2, ham ,  hello  \r\n')
    assert read(path) == ([('Win "now",\r\ntoday', "spam"), ("hello", "ham")], skipped())


def test_missing_fields_are_empty_and_neither_blank_lines_nor_rows_of_empty_fields_are_rows(write):
    examples, skipped_rows = read(write("text,label\nonly a text\n\n,spam\n,\nhello,ham\n"))
    assert examples == [("hello", "ham")]
    assert skipped_rows == skipped(empty_text=1, empty_label=1)


def test_a_row_shifted_by_an_unquoted_comma_is_left_out_and_counted(write):
    examples, skipped_rows = read(write("text,label\nhello, dear,ham\nhello,ham,,\n"))
    assert examples == [("hello", "ham")]
    assert skipped_rows == skipped(too_many_fields=1)


def test_a_field_beyond_the_csv_modules_default_limit_is_read(write):
    long = "a" * 200_000
    assert read(write(f"text,label\n{long},ham\n"))[0] == [(long, "ham")]


def test_other_column_names_are_a_setting(write):
    assert read(write("body,class\nhello,1\n"), "body", "class")[0] == [("hello", "1")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty, or blank; upload a CSV with a header line and rows"),
        (
            b"message,label\nhello,ham\n",
            'line 1: there is no column "text"; this line must name the columns, and has: "message", "label"',
        ),
        (
            b"My card is 4111 1111,ham\nhello,ham\n",
            'line 1: there is no column "text" and no column "label"; '
            'this line must name the columns, and has: …, "ham"',
        ),
        (b"text,label,text\nhello,ham,x\n", 'line 1: 2 columns are named "text"; rename all but one'),
        (b"text,label\nhello,ham\ncaf\xe9,ham\n", 'line 3: byte 0xe9 is not UTF-8; save the file as "CSV UTF-8"'),
        (
            b'text,label\nhello,ham\n"never closed,ham\nhi,ham\n',
            "line 3: a quote opens here and is never closed; close each quote, double each quote in a quoted field "
            '(""), and leave no space behind a closing one',
        ),
        (
            b'text,label\n"so "called" friend",ham\n',
            "line 2: a quote in a quoted field is neither doubled nor before a separator; close each quote, double "
            'each quote in a quoted field (""), and leave no space behind a closing one',
        ),
    ],
)
def test_an_unreadable_file_is_named_with_its_reason(write, content, reason):
    with pytest.raises(DataError, match=f"^{re.escape(f'data.csv: {reason}.')}$"):
        read(write(content))


def test_a_file_that_changes_its_encoding_behind_what_the_upload_was_checked_for_is_named_with_the_line(write):
    rows = b"hello,ham\n" * 200_000
    with pytest.raises(DataError, match=r"^data.csv: line 200002: byte 0xe9 is not UTF-8;"):
        read(write(b"text,label\n" + rows + "café,ham\n".encode("latin-1")))


def test_nul_bytes_and_a_line_of_two_million_characters_are_texts_like_any_other(write):
    long = "a " * 1_000_000 + "b"
    content = f"text,label\nhel\0lo,ham\n{long},spam\n"
    assert read(write(content))[0] == [("hel\0lo", "ham"), (long, "spam")]


def test_a_line_of_100_mb_is_refused_with_its_number(write):
    with pytest.raises(DataError, match=r"^data.csv: line 3: the row that begins here has more than 2,097,152 char"):
        read(write("text,label\nhello,ham\n" + "a " * 50 * 1024**2 + ",spam\n"))


def test_all_csv_files_of_a_channel_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.csv").write_text("text,label\nsecond,1\n,1\n")
    (tmp_path / "a.CSV").write_text("text,label\nfirst,0\n,0\n")
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(b"label\ttext\n1\tthird\n"))
    (tmp_path / "notes.txt").write_text("not data")
    examples, found = dataset.read_channel(tmp_path, "text", "label")
    assert [example.text for example in examples] == ["first", "second", "third"]
    assert list(found) == ["a.CSV", "b.csv", "c.tsv.gz"]
    assert left_out(found) == skipped(empty_text=2)


def test_a_channel_without_a_csv_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no \.csv file in the channel"):
        dataset.read_channel(tmp_path, "text", "label")


# ---- labels


def labels_of(*labels):
    return dataset.sorted_labels([Example("x", label) for label in labels])


def test_labels_that_are_all_numbers_sort_by_value_and_others_as_text():
    assert labels_of("10", "2", "0", "1", "2") == ["0", "1", "2", "10"]
    assert labels_of("0.5", "-1", "10") == ["-1", "0.5", "10"]
    assert labels_of("10", "2", "b") == ["10", "2", "b"]
    assert labels_of("nan", "10", "2") == ["10", "2", "nan"]


# ---- splitting


@st.composite
def splittable(draw):
    """Rows in which every label has two texts or more of its own, some rows twice, and some texts with any labels."""
    labels = draw(st.lists(filled_text, min_size=2, max_size=4, unique=True))
    own = [
        Example(f"{number} {text}", label)
        for number, label in enumerate(labels)
        for text in draw(st.lists(filled_text, min_size=2, max_size=12, unique=True))
    ]
    repeated = draw(st.lists(st.sampled_from(own), max_size=5))
    shared = draw(st.lists(st.builds(Example, text=st.sampled_from("ab"), label=st.sampled_from(labels)), max_size=6))
    return draw(st.permutations(own + repeated + shared)), Counter(label for _, label in own), bool(shared)


@given(splittable(), st.floats(0.01, 0.9), st.integers(0, 2**32 - 1))
def test_a_split_is_stratified_complete_repeatable_and_never_shares_a_text(data, fraction, seed):
    examples, own_texts, has_shared = data

    train, holdout = dataset.split(examples, fraction, seed)

    assert Counter(train) + Counter(holdout) == Counter(examples)
    assert not {e.text for e in train} & {e.text for e in holdout}
    assert dataset.split(examples, fraction, seed) == (train, holdout)
    if not has_shared:  # a text with several labels may belong to any of them
        for label, texts in own_texts.items():
            held_out = len({e.text for e in holdout if e.label == label})
            assert 1 <= held_out < texts
            assert abs(held_out - fraction * texts) <= 0.5 or held_out in (1, texts - 1)


def rows(label, count):
    return [Example(f"{label} {number}", label) for number in range(count)]


def test_a_rare_label_stands_on_both_sides():
    train, holdout = dataset.split(rows("ham", 1000) + rows("spam", 2), 0.2, 42)
    assert Counter(e.label for e in holdout) == {"ham": 200, "spam": 1}
    assert Counter(e.label for e in train) == {"ham": 800, "spam": 1}


def test_another_seed_holds_out_other_texts():
    examples = rows("ham", 50) + rows("spam", 50)
    assert dataset.split(examples, 0.2, 1)[1] != dataset.split(examples, 0.2, 2)[1]


def test_what_is_held_out_once_stays_held_out_as_the_data_grows_or_shrinks():
    examples = rows("ham", 1000) + rows("spam", 500)
    held_out = set(dataset.split(examples, 0.2, 42)[1])
    for other in (rows("ham", 2000) + rows("spam", 600), rows("ham", 500) + rows("spam", 100), examples[::-1]):
        kept = set(dataset.split(other, 0.2, 42)[1]) & held_out
        there = held_out & set(other)
        assert len(kept) >= 0.9 * len(there)


def test_a_relabelled_text_stays_on_its_side():
    examples = rows("ham", 1000) + rows("spam", 1000)
    swapped = [Example(e.text, "ham" if e.label == "spam" else "spam") for e in examples]
    assert {e.text for e in dataset.split(examples, 0.2, 1)[1]} == {e.text for e in dataset.split(swapped, 0.2, 1)[1]}


@given(splittable(), st.floats(0.01, 0.9), st.data())
def test_texts_held_out_before_are_never_trained_on_again(data, fraction, draw):
    examples, own_texts, has_shared = data
    before = draw.draw(st.sets(st.sampled_from([e.text for e in examples])))
    try:
        train, holdout = dataset.split(examples, fraction, 42, before)
    except DataError as error:
        assert "all belong to the hold-out" in str(error)  # noqa: PT017 - only some examples raise
        return
    assert Counter(train) + Counter(holdout) == Counter(examples)
    assert not {e.text for e in train} & ({e.text for e in holdout} | before)
    if not has_shared:
        for label, texts in own_texts.items():
            held_out = {e.text for e in holdout if e.label == label}
            known = {e.text for e in examples if e.label == label} & before
            usual = min(max(round(fraction * texts), 1), texts - 1)
            assert len(held_out) == max(usual, len(known))


def test_a_label_whose_texts_were_all_held_out_before_is_named():
    with pytest.raises(DataError, match=r"label 'spam' is left to train on: its 3 texts all belong to the hold-out"):
        dataset.split(rows("ham", 9) + rows("spam", 3), 0.2, 42, {e.text for e in rows("spam", 3)})


def test_a_text_with_conflicting_labels_stays_on_one_side():
    examples = rows("ham", 5) + rows("spam", 5) + [Example("both", "ham"), Example("both", "spam")] * 2
    for seed in range(20):
        train, _ = dataset.split(examples, 0.3, seed)
        assert sum(e.text == "both" for e in train) in (0, 4)


@pytest.mark.parametrize(
    ("examples", "reason"),
    [
        ([], "No row with a text and a label"),
        (rows("ham", 9), "All 9 rows have the label 'ham'; a classifier needs at least 2"),
        (rows("ham", 9) + rows("spam", 1) * 3, "The label 'spam' has fewer than 2 different texts"),
        ([*rows("ham", 9), Example("ham 0", "spam")], "The label 'spam' has fewer than 2 different texts"),
    ],
)
def test_data_that_cannot_be_split_is_refused_with_the_reason(examples, reason):
    with pytest.raises(DataError, match=reason):
        dataset.split(examples, 0.2, 42)


# ---- data that suffices


@pytest.fixture
def check(tmp_path):
    """Write each list of rows as a file of a channel, read the channel and check it."""

    def check(*files):
        for name, rows in zip(("a.csv", "b.csv"), files, strict=False):
            with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        dataset.check_channel(*dataset.read_channel(tmp_path, "text", "label"))

    return check


@pytest.mark.parametrize(
    ("examples", "reason"),
    [
        ([], "no row has a text and a label (there are no rows); check the columns and the separators"),
        (rows("ham", 9), 'there is only one label, "ham"; add rows with other labels'),
        (
            rows("ham", 9) + rows("spam", 1) * 3,
            "1 of 2 labels have fewer than 2 different texts, each counted for its most frequent label: "
            '"spam" has 1 (3 rows); add rows with these labels, or take them out',
        ),
        (
            [row for n in range(12) for row in rows(f"label {n}", 1 + n // 6)],
            "6 of 12 labels have fewer than 2 different texts, each counted for its most frequent label: "
            + ", ".join(f'"label {n}" has 1 (1 rows)' for n in range(5))
            + " and 1 more; add rows with these labels, or take them out",
        ),
        (
            [*rows("ham", 9), Example("ham 0", "spam")],
            "1 of 2 labels have fewer than 2 different texts, each counted for its most frequent label: "
            '"spam" has 0 (1 rows); add rows with these labels, or take them out',
        ),
        (
            [*rows("ham", 9), *rows("spam", 9), ("a", ""), ("b", "")],
            "2 of 20 rows cannot be used (no label: 2 (line 20, 21)), more than 5 %; complete these rows, put quotes "
            "around texts that contain the separator, or delete the rows",
        ),
    ],
)
def test_data_that_does_not_suffice_is_refused_with_the_reason(check, examples, reason):
    with pytest.raises(DataError, match=f"^{re.escape(f'a.csv: {reason}.')}$"):
        check(examples)


def test_files_of_one_channel_are_judged_together(check):
    check(rows("ham", 9), rows("spam", 9))
    lost = [("a", "")]
    reason = "the files: 2 of 20 rows cannot be used (a.csv, no label: 1 (line 11); b.csv, no label: 1 (line 11)), more"
    with pytest.raises(DataError, match=f"^{re.escape(reason)}"):
        check(rows("ham", 9) + lost, rows("spam", 9) + lost)
    with pytest.raises(DataError, match=r'^the files: 1 of 2 labels .*: "spam" has 1 \(2 rows\);'):
        check(rows("ham", 9) + rows("spam", 1), rows("spam", 1))
    with pytest.raises(DataError, match=r'^the files: there is only one label, "ham";'):
        check(rows("ham", 9), rows("ham", 9))


LONG = "a text of more than forty characters, which is no label"


@pytest.mark.parametrize(
    "refuse",
    {
        "each its own": lambda check: check([(f"{n}", f"call me {n}") for n in range(9)]),
        "a rare one": lambda check: check([*rows("ham", 9), ("x", LONG)]),
        "only one": lambda check: check([(f"{n}", LONG) for n in range(9)]),
        "in quotes": lambda check: check([(f"{n}", f"'{LONG}'") for n in range(9)]),
        "each its own, split": lambda _: dataset.split([Example(f"{n}", LONG + f"{n}") for n in range(9)], 0.2, 42),
        "only one, split": lambda _: dataset.split([Example(f"{n}", LONG) for n in range(9)], 0.2, 42),
        "held out": lambda _: dataset.split(
            [*rows("ham", 9), Example("x", LONG), Example("y", LONG)], 0.2, 42, {"x", "y"}
        ),
        "unknown": lambda _: dataset.apply_holdout(rows("ham", 9) + rows("spam", 9), [Example("x", LONG)]),
    }.items(),
    ids=lambda case: case[0],
)
def test_no_text_of_a_row_is_in_a_reason_though_it_stands_in_the_label_column(check, refuse):
    with pytest.raises(DataError) as reason:
        refuse[1](check)
    assert "call" not in str(reason.value)
    assert LONG[:10] not in str(reason.value)


# ---- choosing a few


def test_a_few_rows_are_spread_over_the_labels_evenly_or_in_proportion():
    examples = rows("ham", 900) + rows("spam", 90) + rows("rare", 1)
    even = Counter(e.label for e in dataset.spread(examples, 20, even=True))
    assert even == {"ham": 10, "spam": 9, "rare": 1}
    proportional = Counter(e.label for e in dataset.spread(examples, 100, even=False))
    assert proportional["rare"] == 1
    assert 88 <= proportional["ham"] <= 92
    assert dataset.spread(examples[::-1], 20, even=True) == dataset.spread(examples, 20, even=True)
    assert set(dataset.spread(examples, 10_000, even=False)) == set(examples)


def test_rows_that_come_last_are_taken_only_when_their_label_has_no_others():
    chosen = dataset.spread(rows("ham", 10) + rows("spam", 10), 12, even=True, last=lambda e: e.text > "spam 2")
    assert {e.text for e in chosen if e.label == "spam"} >= {"spam 0", "spam 1", "spam 2"}
    first = dataset.spread(rows("spam", 10), 3, even=True, last=lambda e: e.text > "spam 2")
    assert {e.text for e in first} == {"spam 0", "spam 1", "spam 2"}


def test_a_text_with_several_labels_counts_once_for_its_most_frequent_one():
    examples = [Example("a", "x"), Example("b", "y"), Example("a", "z"), Example("a", "z"), Example("b", "x")]
    assert dataset.one_label_per_text(examples) == [Example("a", "z"), Example("b", "x")]


@given(st.lists(st.builds(Example, text=filled_text, label=filled_text)))
def test_written_examples_are_read_back(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("csv") / "holdout.csv"
    dataset.write_csv(path, examples)
    assert dataset.read_csv(path) == examples


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"text,label\nx\n", b"text,label\n\xe9,x\n", b'text,label\n"x'])
def test_what_the_program_did_not_write_is_not_read_back(write, content):
    with pytest.raises(DataError, match=r"^data\.csv "):
        dataset.read_csv(write(content))


# ---- a hold-out that was given


def test_training_rows_that_stand_in_a_given_holdout_are_left_out():
    train = rows("ham", 3) + rows("spam", 3)
    assert dataset.apply_holdout(train, [Example("ham 1", "ham")]) == [e for e in train if e.text != "ham 1"]


def test_training_rows_that_were_held_out_before_are_left_out_beside_a_given_holdout():
    train = rows("ham", 3) + rows("spam", 3)
    remaining = dataset.apply_holdout(train, [Example("ham 1", "ham")], {"spam 2", "elsewhere"})
    assert remaining == [e for e in train if e.text not in ("ham 1", "spam 2")]


@pytest.mark.parametrize(
    ("holdout", "reason"),
    [
        ([], "test channel has no row"),
        ([Example("x", "eggs"), Example("y", "ham")], "training data does not have: 'eggs'"),
        (rows("spam", 3), "All 3 rows have the label 'ham'"),
    ],
)
def test_a_holdout_that_does_not_fit_is_refused_with_the_reason(holdout, reason):
    with pytest.raises(DataError, match=reason):
        dataset.apply_holdout(rows("ham", 3) + rows("spam", 3), holdout)


# ---- figures


def test_figures_are_those_worked_out_by_hand():
    # label 0: 2 of 3 found, 2 of 3 right; label 1: 1 of 2 found, 1 of 2 right; label 2: never predicted
    figures = metrics.classification_metrics([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 3, 0])
    assert figures == {
        "accuracy": pytest.approx(3 / 6),
        "macro_f1": pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4),
        "macro_precision": pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4),
        "macro_recall": pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4),
    }


def test_averages_over_given_labels_do_not_count_others():
    figures = metrics.classification_metrics(["a", "a", "b", "b"], ["a", "c", "b", "b"], labels={"a", "b"})
    assert figures["accuracy"] == 3 / 4
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.classification_metrics(["a"], ["a"], labels={"a", "b"})["macro_f1"] == 0.5


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_figures_are_from_0_to_1_and_1_only_when_all_is_right(pairs):
    figures = metrics.classification_metrics([e for e, _ in pairs], [p for _, p in pairs])
    assert all(0 <= figure <= 1 for figure in figures.values())
    assert (min(figures.values()) == 1) == all(e == p for e, p in pairs)


def test_the_metrics_file_is_strict_json_in_every_folder(tmp_path):
    metrics.write_metrics({"accuracy": 0.5, "told": {"labels": "é"}}, tmp_path / "a", tmp_path / "b")
    for folder in ("a", "b"):
        content = json.loads((tmp_path / folder / "metrics.json").read_bytes())
        assert content == {"schema": 2, "accuracy": 0.5, "told": {"labels": "é"}}
    with pytest.raises(ValueError, match="JSON"):
        metrics.write_metrics({"eval_loss": float("nan")}, tmp_path / "c")
    assert not (tmp_path / "c").exists()


# ---- the project's own sample


def test_the_sample_has_three_balanced_labels_duplicates_and_rows_to_skip():
    examples, found = dataset.read_channel(SAMPLE.parent, "text", "label")
    [findings] = found.values()
    counts = Counter(example.label for example in examples)
    assert sorted(counts) == ["billing", "shipping", "technical"]
    assert min(counts.values()) >= 80
    assert left_out(found) == skipped(empty_text=2)
    assert findings.duplicates == len(examples) - len({e.text for e in examples}) > 0
    assert findings.conflicts == 0
    assert any("\n" in e.text for e in examples)
    assert any('"' in e.text for e in examples)
