"""What people's tools write, by name: the rows that are read, or the reason why not.

Most of the files hold the same four rows; the others say what is theirs.
"""

import gzip
import importlib

import pytest

reader = importlib.import_module("reader")

ROWS = [("hi there", "ham"), ("see you, Bob", "ham"), ('win "cash"', "spam"), ("buy now", "spam")]
PLAIN = 'text,label\nhi there,ham\n"see you, Bob",ham\n"win ""cash""",spam\nbuy now,spam\n'
SEMICOLON = 'text;label\r\nhi there;ham\r\nsee you, Bob;ham\r\n"win ""cash""";spam\r\nbuy now;spam\r\n'
TAB = 'text\tlabel\nhi there\tham\nsee you, Bob\tham\n"win ""cash"""\tspam\nbuy now\tspam\n'
BAR = TAB.replace("\t", "|")
ALL = '"text","label"\n"hi there","ham"\n"see you, Bob","ham"\n"win ""cash""","spam"\n"buy now","spam"\n'
BACKSLASH = ALL.replace('""cash""', '\\"cash\\"')
CRLF = PLAIN.replace("\n", "\r\n")


def with_column(name, cells, plain=PLAIN, separator=","):
    """The rows with a further column in front."""
    lines = plain.splitlines(keepends=True)
    return "".join(f"{cell}{separator}{line}" for cell, line in zip([name, *cells], lines, strict=True))


def rows(*pairs):
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in pairs)


GOOD = {
    # Spreadsheets
    "Excel, CSV UTF-8, US": "\ufeff" + CRLF,
    "Excel, CSV UTF-8, Germany": "\ufeff" + SEMICOLON,
    "Excel, CSV UTF-8, France, with an id": "\ufeff" + with_column("N°", "1234", SEMICOLON, ";"),
    "Excel, CSV UTF-8, Japan, full-width names": "\ufeff" + CRLF.replace("text,label", "ｔｅｘｔ,ｌａｂｅｌ"),
    "Excel, Unicode text": ("\ufeff" + TAB).encode("utf-16-le"),
    "Excel, Unicode text on a big-endian machine": ("\ufeff" + TAB).encode("utf-16-be"),
    "Excel, sep=; in the first line": "sep=;\r\n" + SEMICOLON,
    "Excel, sep=, behind a mark": "\ufeffsep=,\r\n" + CRLF,
    "Excel, SEP= a tab": "SEP=\t\n" + TAB,
    "Excel, sep= in quotes": '"sep=,"\n' + PLAIN,
    "Excel, saved again with sep=": "sep=,,\r\n" + with_column("id", "1234", CRLF),
    "Excel, a blank row above the header": ",\r\n" + CRLF,
    "Excel, two blank lines above the header": "\r\n\r\n" + CRLF,
    "Excel, rows of separators at the end": CRLF + ",\r\n" * 50,
    "Excel, empty columns at the right": PLAIN.replace("\n", ",,,\n"),
    "Excel, empty columns at the right of rows only": PLAIN.replace("\n", ",,\n").replace("label,,", "label"),
    "Excel for Mac, old: CR": PLAIN.replace("\n", "\r"),
    "Google Sheets, csv": CRLF.removesuffix("\r\n"),
    "Google Sheets, tsv": TAB.replace('"win ""cash"""', 'win "cash"').replace("\n", "\r\n"),
    "Google Sheets, tsv, a text begins with a quote": TAB.replace('"win ""cash"""', '"win" cash'),
    "LibreOffice, quote all text cells": ALL,
    "LibreOffice, bar": BAR,
    "Numbers, semicolon": SEMICOLON.replace("\r\n", "\n"),
    "Airtable, with a mark and quoted names": "\ufeff" + ALL,
    # Python
    "pandas to_csv(index=False)": PLAIN,
    "pandas to_csv(), its index without a name": with_column("", "0123"),
    "pandas, index read and written again": with_column("Unnamed: 0", "0123"),
    "pandas, encoding=utf-8-sig twice": "\ufeff\ufeff" + PLAIN,
    "pandas, quoting=QUOTE_ALL": ALL,
    "pandas, quoting=QUOTE_NONNUMERIC": ALL,
    "pandas, sep=tab": TAB,
    "pandas, sep=|": BAR,
    "pandas, doublequote=False, escapechar=backslash": BACKSLASH,
    "pandas, lineterminator=CRLF": CRLF,
    "pandas, compression=gzip": gzip.compress(PLAIN.encode()),
    "pandas, encoding=utf-16": PLAIN.encode("utf-16"),
    "pandas, mode=a, header each time": PLAIN + PLAIN,
    "csv.writer": CRLF,
    "csv.DictWriter, other order": 'label,text\nham,hi there\nham,"see you, Bob"\nspam,"win ""cash"""\nspam,buy now\n',
    "csv.writer without newline='', on Windows": CRLF.replace("\r\n", "\r\r\n"),
    "polars write_csv": PLAIN,
    "datasets to_csv with an idx": with_column("idx", "0123"),
    # Databases and big data
    "Spark, escape=backslash": BACKSLASH,
    "Spark, a backslash at the end of a quoted text": BACKSLASH.replace("buy now", "buy now\\\\"),
    "Spark, a path and a quote": BACKSLASH.replace("buy now", "c:\\new"),
    "Spark, escape=quote": PLAIN,
    "Spark, part file, gzip, quoteAll": gzip.compress(ALL.encode()),
    "Hadoop, parts in one gzip, member by member": gzip.compress(PLAIN[:30].encode())
    + gzip.compress(PLAIN[30:].encode()),
    "gsutil, padded gzip": gzip.compress(PLAIN.encode()) + b"\0" * 512,
    "BigQuery export": PLAIN,
    "BigQuery export, gzip, tab": gzip.compress(TAB.encode()),
    "Athena, everything quoted": ALL,
    "Redshift UNLOAD, HEADER, bar": BAR,
    "Snowflake COPY, gzip": gzip.compress(BACKSLASH.encode()),
    "MySQL INTO OUTFILE, enclosed, tab": BACKSLASH.replace('","', '"\t"'),
    "MySQL, a line break behind a backslash": BACKSLASH.replace("buy now", "buy\\\nnow"),
    "MySQL Workbench, semicolon": SEMICOLON.replace("\r\n", "\n"),
    "phpMyAdmin, CSV for Excel": "\ufeff" + ALL.replace('","', '";"'),
    "PostgreSQL COPY CSV HEADER": PLAIN,
    "SQL Server, bcp -w": ("\ufeff" + TAB).replace("\n", "\r\n").encode("utf-16-le"),
    "SSMS, results to file, mark": "\ufeff" + CRLF,
    "Oracle SQL Developer": ALL.replace('"text","label"', '"TEXT","LABEL"'),
    "DBeaver": ALL,
    "sqlite3 -csv -header": CRLF,
    "SAS PROC EXPORT": CRLF.replace("text,label", "Text,Label"),
    "Stata export delimited, tab": TAB,
    "SPSS, semicolon, mark": "\ufeff" + SEMICOLON,
    # R, PowerShell, JavaScript and others
    "R write.csv": with_column('""', ['"1"', '"2"', '"3"', '"4"'], ALL),
    "R write.table(sep=','), no name for the row names": ALL.replace('\n"', '\n"{}","').format(1, 2, 3, 4),
    "R write.csv(row.names=FALSE)": ALL,
    "R write.csv2": with_column('""', ['"1"', '"2"', '"3"', '"4"'], ALL.replace('","', '";"'), ";"),
    "R readr write_excel_csv": "\ufeff" + PLAIN,
    "R fwrite": PLAIN,
    "PowerShell Export-Csv, the type in a column": with_column(
        '"Id"', ['"a"', '"b"', '"c"', '"d"'], ALL.replace("\n", "\r\n")
    ),
    "PowerShell Export-Csv -Encoding Unicode": ("\ufeff" + ALL.replace("\n", "\r\n")).encode("utf-16-le"),
    "PowerShell Export-Csv -UseCulture": "\ufeff" + ALL.replace('","', '";"').replace("\n", "\r\n"),
    "json-2-csv": BACKSLASH,
    "PapaParse": CRLF.removesuffix("\r\n"),
    "vue-json-excel with sep=": "sep=,\n" + ALL,
    "Java, opencsv": ALL,
    "Go encoding/csv": PLAIN,
    "Ruby CSV": PLAIN,
    "csvkit": PLAIN,
    "MATLAB writetable": PLAIN.replace("text,label", "text,label "),
    "cat of files with marks": ("\ufeff" + PLAIN) * 3,
    "cat of files with marks, all quoted": ("\ufeff" + ALL) * 2,
    "cat of a CRLF and an LF file": CRLF + PLAIN,
    # By hand
    "by hand, a space behind each comma": ALL.replace('","', '", "'),
    "by hand, spaces only in the rows": ALL.replace('","', '",  "').replace('text",  "', 'text","'),
    "by hand, a name in capitals": PLAIN.replace("text,label", "TEXT, Label"),
    "by hand, a name with a no-break space": PLAIN.replace("text,", "text\xa0,"),
    "by hand, a name with a zero-width space": PLAIN.replace("label\n", "label\u200b\n", 1),
    "by hand, blank lines between rows": PLAIN.replace("\n", "\n\n"),
    "by hand, no line end at the end": PLAIN.rstrip("\n"),
    "by hand, spaces around fields": PLAIN.replace("buy now,", " buy now , "),
}

# What the first field of a row has, and the text that it is.
TEXTS = {
    "pandas, JSON in a text": ('"{""a"": ""b \\""c\\""""}"', '{"a": "b \\"c\\""}'),
    "pandas, a Windows path": ('"C:\\a, b\\"', "C:\\a, b\\"),
    "a text with a line break": ('"a\r\nb"', "a\r\nb"),
    "inches": ('5" screen', '5" screen'),
    "a NUL": ("a\0b", "a\0b"),
    "U+2028, U+0085 and a vertical tab": ("a\u2028b\x85c\x0bd", "a\u2028b\x85c\x0bd"),
    "NULL in a database": ("\\N", "\\N"),
    "a backslash before a quote, unquoted": ('5\\" screen', '5\\" screen'),
    "a space and words in quotes": (' "Yes" she said', '"Yes" she said'),
}

REFUSED = {
    "Excel, workbook named .csv": (b"PK\x03\x04" + bytes(99), "a zip archive or an Excel workbook; save it as CSV"),
    "Excel, old workbook named .csv": (b"\xd0\xcf\x11\xe0" + bytes(99), "an old Excel workbook"),
    "Excel, CSV in Windows-1252": (
        "text;label\r\nschön;gut\r\n".encode("cp1252"),
        'line 2: byte 0xf6 is not UTF-8; save the file as "CSV UTF-8"',
    ),
    "Excel, CSV in Shift JIS": ("text,label\n日本,x\n".encode("shift_jis"), "line 2: byte 0x93 is not UTF-8"),
    "Parquet": (b"PAR1" + bytes(99), "a Parquet file"),
    "JSON lines": ('{"text": "hi", "label": "ham"}\n', "line 1: there is no column"),
    "UTF-32": (PLAIN.encode("utf-32"), "UTF-32"),
    "UTF-16 without its mark": (PLAIN.encode("utf-16-le"), "line 1: the header has a NUL byte"),
    "Cloud SQL, NULL as a quote and N": (
        'text,label\nhi,ham\nyou,"N\nsee,"spam"\n',
        "line 3: the row that begins here goes on to line 4",
    ),
    "a stray quote": ('text,label\n"so "called" friend",ham\n', "line 2: a quote in a quoted field is neither doubled"),
    "a quote that is never closed": (
        'text,label\nhi,ham\n"you,spam\nsee,ham\n',
        "line 3: a quote opens here and is never closed",
    ),
    "a space behind the closing quote": ('text,label\n"hi" ,"ham"\n', "line 2: .*no space behind a closing one"),
    "backslashes, then not": (
        'text,label\n"a \\"b\\" c",x\n"C:\\",y\n"see you",y\n',
        "line 3: .*not everywhere does a backslash escape",
    ),
    "a third of the rows shifted": (
        rows(("hi, Bob", "x"), ("a", "x"), ("b", "y")),
        r"1 of 3 rows .*too many fields: 1 \(line 2\)",
    ),
    "no header": ("are you coming to lunch,ham\n", 'line 1: there is no column "text" and no column "label"'),
    "other names": ("Message;Category\nhi;ham\n", 'line 1: there is no column "text" .* has: "Message", "Category"'),
    "two columns of a name": ("text,text,label\na,b,c\n", 'line 1: 2 columns are named "text"'),
    "two that differ in case": ("Text,TEXT,label\na,b,c\n", 'line 1: 2 columns are named "text"'),
    "sep= something else": ("sep=#\ntext#label\n", "line 1: sep= names an unknown separator"),
    "spaces as separators": ("text label\nhi ham\n", 'no column "text"'),
    "two separators": ("text,label,x;text;label\n", "line 1: the header can be divided by comma and by semicolon"),
    "single quotes": ("'text','label'\n'hi','ham'\n", "line 1: there is no column .* has: \"'text'\", \"'label'\""),
    "single quotes under a plain header": (
        rows(("'a'", "'x'"), ("'b'", "'x'"), ("'c'", "'y'"), ("'d'", "'y'")),
        "every label stands in quotes",
    ),
    "one label": (rows(("a", "x"), ("b", "x")), 'there is only one label, "x"'),
    "a label with one text": (rows(*zip("abcc", "xxyy", strict=True)), r'1 of 2 labels .*"y" has 1 \(2 rows\)'),
    "one text": (rows(*[("a", "x"), ("a", "y")] * 5), "2 of 2 labels"),
    "no labels": (rows(("a", ""), ("b", "")), r"no row has a text and a label \(no label: 2 \(line 2, 3\)\)"),
    "no rows": ("text,label\n", "no row has a text and a label"),
    "nothing": ("", "the file is empty"),
    "a mark and nothing": ("\ufeff\r\n", "the file is empty, or blank"),
    "gzip, cut off": (gzip.compress(PLAIN.encode())[:-4], "the compressed file is cut off"),
    "gzip, something behind": (
        gzip.compress(PLAIN.encode()) + b"text\n",
        "damaged, or something stands behind its end",
    ),
    "gzip in gzip": (gzip.compress(gzip.compress(PLAIN.encode())), "byte 0x8b is not UTF-8"),
}


def verdict(content):
    found = reader.Reader([content.encode() if isinstance(content, str) else content], "text", "label")
    examples = [(text, label) for _, text, label in found]
    reader.check_trainable(found.findings)
    return examples


def expected(name):
    """The four rows, as often as the file has them and as the tool changes them."""
    changes = {
        "Google Sheets, tsv, a text begins with a quote": ('win "cash"', '"win" cash'),
        "Spark, a backslash at the end of a quoted text": ("buy now", "buy now\\"),
        "Spark, a path and a quote": ("buy now", "c:\\new"),
        "MySQL, a line break behind a backslash": ("buy now", "buy\\\nnow"),
    }
    before, after = changes.get(name, ("", ""))
    times = {"cat of files with marks": 3, "pandas, mode=a, header each time": 2}.get(
        name, 2 if name.startswith("cat ") else 1
    )
    return [(after if text == before else text, label) for text, label in ROWS] * times


@pytest.mark.parametrize("name", GOOD)
def test_what_a_tool_wrote_is_read(name):
    assert verdict(GOOD[name]) == expected(name)


@pytest.mark.parametrize("name", GOOD)
def test_no_head_of_what_a_tool_wrote_is_refused(name):
    content = GOOD[name].encode() if isinstance(GOOD[name], str) else GOOD[name]
    whole = expected(name)
    for end in range(len(content)):
        found = reader.Reader([content[:end]], "text", "label", complete=False)
        examples = [(text, label) for _, text, label in found]
        reader.check_trainable(found.findings)
        assert len(examples) <= len(whole)


@pytest.mark.parametrize("name", TEXTS)
def test_what_stands_in_a_text_is_read(name):
    written, text = TEXTS[name]
    others = [("1", "x"), ("2", "y"), ("3", "y")]
    assert verdict(rows((written, "x"), *others)) == [(text, "x"), *others]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason(name):
    content, reason = REFUSED[name]
    with pytest.raises(reader.Unreadable, match=reason):
        verdict(content)


def test_there_are_as_many_shapes_as_were_asked_for():
    assert len(GOOD) + len(TEXTS) + len(REFUSED) >= 92
