"""Tables of texts in Markdown."""

from bench.report.tables import markdown, markdown_rows, percent, without_empty_columns


def test_columns_that_are_empty_or_missing_everywhere_go():
    table = without_empty_columns(
        [{"a": "1", "b": "", "c": ""}, {"a": "2", "c": "x"}, {"a": "3", "b": ""}]
    )
    assert list(table.columns) == ["a", "c"] and list(table["c"]) == ["", "x", ""]


def test_rows_become_the_same_text_without_a_frame():
    rows = [{"a": "1", "b": "", "c": ""}, {"a": "2", "c": "x|y", "d": "3"}, {"a": "<b>", "b": ""}]
    assert markdown_rows(rows) == markdown(without_empty_columns(rows))


def test_texts_keep_their_digits():
    assert markdown(without_empty_columns([{"value": "1.50"}])).splitlines() == [
        "| value   |",
        "|---------|",
        "| 1.50    |",
    ]


def test_percent():
    assert [percent(share) for share in (0, 0.0512, 1)] == ["0.0", "5.1", "100.0"]
