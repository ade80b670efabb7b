"""Colours of a terminal: the words stay, heads and statuses are marked, nothing else is."""

import io
import re

import pytest

from bench.report.colours import coloured, wanted

TABLE = "a note\n\n| defense | robust |\n|---|---|\n| ~~one~~ | 3.0 [1.0, 5.0] |\n\n1 failed"
PLAIN = "defense  robust\n-------  ------\none      3.0\nFAIL  x\nok    y\nbench: note: z"


@pytest.mark.parametrize("text", [TABLE, PLAIN, "", "no table [x] :smile: [bold]\\[/]", "|-"])
def test_the_words_stay(text):
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured(text)) == text


def test_heads_and_statuses_are_marked():
    bold, end = "\x1b[1m", "\x1b[0m"
    assert f"{bold}| defense | robust |{end}" in coloured(TABLE)
    assert f"{bold}defense  robust{end}" in coloured(PLAIN)
    assert "\x1b[31m~~one~~" in coloured(TABLE) and "\x1b[1;31m1 failed" in coloured(TABLE)
    assert "\x1b[1;31mFAIL" in coloured(PLAIN) and "\x1b[32mok" in coloured(PLAIN)
    assert "\x1b[33mbench: note:" in coloured(PLAIN) and coloured("0 failed") == "0 failed"


def test_only_a_terminal_without_no_color_wants_them():
    terminal = io.StringIO()
    assert not wanted(terminal, {})
    terminal.isatty = lambda: True
    assert wanted(terminal, {}) and wanted(terminal, {"NO_COLOR": ""})
    assert not wanted(terminal, {"NO_COLOR": "1"}) and not wanted(terminal, {"TERM": "dumb"})
