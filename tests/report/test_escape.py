"""What strangers wrote is text wherever it is printed."""

import io
import re
from pathlib import Path

import pandas as pd
import pytest

from bench.report import escape
from bench.report.boards.forms import FORMS, Made
from bench.report.boards.make import boards
from bench.report.boards.markdown import page
from bench.report.rows import rows_table
from bench.report.show import render
from bench.results.findings import Finding
from bench.results.record import Failure
from tests.helpers import call
from tests.report.helpers import HALF, made, stored

HOSTILE = 'a|b\n<img src=x onerror=alert(1)> [x](javascript:alert(1)) \x1b[31mred\x1b[0m \x9b1m "'


def csv(records, form="csv"):
    return FORMS[form].write(Made(boards(records), [], Path(), ""))


def hostile_record(text=HOSTILE):
    one = made(HALF)
    title = {**one.title, "defense": text, "dataset": text, "classifier": text, "attack": text}
    findings = [
        Finding(name="built", verdict="note", message=text),
        Finding(name=text, verdict="fail", message=text),
    ]
    return one.model_copy(update={"title": title, "findings": findings})


def test_a_terminal_gets_no_control_characters():
    assert escape.terminal("a\x1b[0m\nb\x9b\u202ec\udcff") == r"a\x1b[0m\nb\x9b\u202ec\udcff"
    assert escape.terminal("a\nb\r", lines=True) == "a\nb\\r"
    assert escape.terminal("näive → 日本 é") == "näive → 日本 é"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("<img onerror>", r"\<img onerror>"),
        (r"\<img>", r"\\\<img>"),
        ("[x](javascript:y)", r"[x\](javascript:y)"),
        ("![x](http://y)", r"![x\](http://y)"),
        ("[x][y]", r"[x\][y]"),
        ("[y]: javascript:x", r"[y\]: javascript:x"),
        ("a\nb", r"a\nb"),
        ("98.2 [97.2, 98.9]", "98.2 [97.2, 98.9]"),
        ("~~name~~ 3 -> 4, `p`", "~~name~~ 3 -> 4, `p`"),
    ],
)
def test_markdown_is_one_cell_of_text(text, shown):
    assert escape.markdown(text) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|x", "'+cmd|x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2+3", "'-2+3"),
        (" =1", "' =1"),
        ("\t=1", r"'\t=1"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("-", "-"),
        ("a=1", "a=1"),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_a_spreadsheet_computes_nothing(value, shown):
    assert escape.csv(value) == shown


def test_nothing_gets_out_of_a_page_of_boards():
    one = hostile_record()
    failure = Failure(id=one.id, title=one.title, error=HOSTILE, traceback="", finished="now")
    nowhere = Path("/")
    clean = page(boards([hostile_record("name")]), [failure], folder=nowhere)
    board = page(boards([one]), [failure], folder=nowhere)
    for text in (board, rows_table([one], [failure])):
        assert "\x1b" not in text and "\x9b" not in text
        # In a fenced block and between backticks nothing is more than text.
        told = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        assert "<img" not in told.replace(r"\<img", "") and "](" not in told.replace(r"\](", "")
        for table in text.split("\n\n"):
            lines = [line for line in table.splitlines() if line.startswith("|")]
            bars = {line.replace(r"\|", "").count("|") for line in lines}
            assert len(bars) <= 1, "every row has as many cells"
    assert board.count("\n| ") == clean.count("\n| ") and board.count("\n#") == clean.count("\n#")


def test_nothing_gets_out_of_what_is_shown(capsys, tmp_path):
    one = hostile_record()
    text = render([one])
    assert "\x1b" not in text and "\x9b" not in text and "\u202e" not in text
    several = render([one, hostile_record().model_copy(update={"id": "0" * 16})])
    assert "\x1b" not in several
    paths = stored(tmp_path, one)
    for command in (["show", *paths], ["compare", *paths], ["leaderboard", str(tmp_path)]):
        _, out, err = call(capsys, *command)
        assert "\x1b" not in out + err and "\x9b" not in out + err


def test_a_csv_board_reads_back_with_apostrophes():
    title = {**made(HALF).title, "defense": '=HYPERLINK("http://x")'}
    for form in ("csv", "csv-wide"):
        text = csv([made(HALF).model_copy(update={"title": title})], form)
        table = pd.read_csv(io.StringIO(text))
        assert table["defense"].tolist() == ['\'=HYPERLINK("http://x")']


def test_errors_are_one_line_without_control_characters(capsys):
    code, _, told = call(capsys, "show", "no\x1b[31m\nsuch")
    assert code == 2 and told.count("\n") == 1 and "\x1b" not in told
    code, _, told = call(capsys, "run", "--defense", "x\x1b[31my\n")
    assert code == 2 and told.count("\n") == 1 and "\x1b" not in told


def test_boards_of_committed_records_do_not_change(monkeypatch):
    from bench.results.store import read_all
    from tests.report.helpers import RECORDS

    records, failures = read_all([RECORDS])
    escaped = page(boards(records), failures), csv(records)
    for name in ("markdown", "csv"):
        monkeypatch.setattr(escape, name, lambda text: text)
    assert escaped == (page(boards(records), failures), csv(records))
