"""What strangers wrote, made harmless: one function for each place where text is printed.

Records, plugins and files hold names and messages that anybody may have written. Each function
changes only what its place would take for more than text.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape

_DIRECTIONS = {"\u200e", "\u200f", "\u061c", *map(chr, [*range(0x202A, 0x202F)])}
_DIRECTIONS |= set(map(chr, range(0x2066, 0x206A)))
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

# A run of backslashes before the mark is doubled, so that none of them is read as ours. `]` is no
# mark in an interval such as [97.2, 98.9]: only before what makes a link of it.
_MARKS = re.compile(r"(\\*)([|<]|\](?=[(\[:]))")

_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def terminal(text: str, *, lines: bool = False) -> str:
    """Text for a terminal: control characters, and those that turn the direction of writing, are
    shown as `\\x1b`.

    Args:
        text: what is printed.
        lines: whether line breaks stay; else they are shown, too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if lines and char == "\n" else _shown(char) for char in text)


def _shown(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    kind = unicodedata.category(char)
    if kind not in ("Cc", "Cs", "Zl", "Zp") and char not in _DIRECTIONS:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def markdown(text: str) -> str:
    """Text for one line or one table cell of Markdown: no HTML, no link, no other cell."""
    return _MARKS.sub(lambda found: found[1] * 2 + "\\" + found[2], terminal(text))


def html(text: str) -> str:
    """Text between two tags of HTML, or in quotes inside one."""
    return escape(terminal(text))


def csv(value: object) -> object:
    """A value for a cell of CSV: a text that a spreadsheet would compute begins with an apostrophe,
    unless it is a number.
    """
    if not isinstance(value, str):
        return value
    begins = value.lstrip()
    computed = begins.startswith(_FORMULA) or value.startswith(("\t", "\r"))
    harmless = _NUMBER.fullmatch(begins) or len(begins) == 1
    return ("'" if computed and not harmless else "") + terminal(value)
