"""Tables and statuses in colour and bold, for people at a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

STYLES = {
    # A table's head stands above a rule, in Markdown and in plain tables.
    r"(?m)^.+(?=\n(?:\|-|-{2,}(?:  -|$)))": "bold",
    r"(?m)^(?:\|[-|]+|-{2,}(?:  -+)*)$": "dim",
    r"\[-?\d+\.\d+, -?\d+\.\d+\]": "dim",
    r"~~[^~\n]+~~": "red",
    r"\b(?:COLLAPSED|FAIL|masking-evidence)\b|\b[1-9]\d* failed\b": "bold red",
    r"\b(?:incomplete|inconclusive|not attacked|not audited)\b": "yellow",
    r"\bno-evidence-found\b|(?m:^ok\b)": "green",
    r"(?m)^bench: note:": "yellow",
    r"(?m)^bench:(?! note:)": "bold red",
}
"""What is found in a text, and how it looks. The words stay as they are."""


def wanted(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal whose reader has not asked for plain text (`NO_COLOR`)."""
    plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
    return stream.isatty() and not plain


def coloured(text: str) -> str:
    """The text with the codes of a terminal. Take them out, and it is the text.

    Args:
        text: without control characters of its own.
    """
    import io

    from rich.console import Console
    from rich.text import Text

    styled = Text(text)
    for pattern, style in STYLES.items():
        styled.highlight_regex(pattern, style)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", no_color=False)
    console.print(styled, end="", soft_wrap=True, highlight=False, markup=False, emoji=False)
    return out.getvalue()
