"""The table of a notebook."""

from bench.report.boards.make import boards
from bench.report.notebook import table
from bench.results.record import Failure
from tests.report.helpers import HALF, RIGHT, record


def test_a_notebook_shows_a_row_a_record_and_what_failed():
    one = record("<img onerror=x>", HALF)
    failure = Failure(id="0", title=one.title, error="it <b>broke", traceback="", finished="")
    text = table([one, record("b", RIGHT)], [failure])
    assert text.count("<tr>") == 3 and "<td>50.0 [40.4, 59.6]</td>" in text
    assert "<img" not in text and "<b>" not in text and "&lt;img onerror=x&gt;" in text
    assert "error (it &lt;b&gt;broke)" in text
    assert table([one] * 50).count("<tr>") == 41 and "10 more rows" in table([one] * 50)


def test_a_notebook_shows_a_board():
    (board,) = boards([record("a", HALF), record("<b>", RIGHT)])
    text = board._repr_html_()
    assert text.count("<tr>") == 3 and "<td>-</td><td>a</td>" in text
    assert (
        "<td>50.0 [40.4, 59.6]</td>" in text and "<td>&lt;b&gt;</td>" in text and "<b>" not in text
    )
    assert "incomplete: lacks any attack (eot)" in text
    assert repr(board).startswith("<Board: mnist5k") and len(repr(board)) < 100
    assert "rank  defense" in str(board)
