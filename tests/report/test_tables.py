"""Tables of texts in Markdown."""

from bench.report.tables import fit, fitted, markdown, markdown_rows, percent, without_empty_columns


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


def test_a_table_gives_way_in_its_widest_column_and_keeps_intervals_whole():
    rows = [{"name": "pgd:steps=40,step=eps/10", "robust": "70.0 [63.3, 75.9]", "empty": ""}]
    assert fitted(rows, 80).splitlines() == [
        "name                      robust",
        "------------------------  -----------------",
        "pgd:steps=40,step=eps/10  70.0 [63.3, 75.9]",
    ]
    assert max(map(len, fitted(rows, 26).splitlines())) <= 26
    assert "[63.3, 75.9]" in fitted(rows, 26)


def test_a_table_that_fits_is_left_and_a_wider_one_goes_without_what_matters_least():
    rows = [{"defense": "a|b", "robust": "70.0", "macro-F1": "1.0 -> 0.0", "base": "0.0"}]
    text = f"above\n\n{markdown_rows(rows)}\n\nbelow"
    assert fit(text, 80) == text
    narrow = fit(text, 24)
    assert narrow.splitlines()[2:5] == ["defense  robust  base", "-------  ------  ----",
                                        "a|b      70.0    0.0"]  # fmt: skip
    assert "(a wider terminal shows macro-F1)" in narrow
    assert narrow.startswith("above\n\n") and narrow.endswith("\n\nbelow")
