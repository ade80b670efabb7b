"""A self-contained HTML document: one file that asks for nothing from outside.

Scripts and styles stand in it, and a Content-Security-Policy names each by its hash: nothing that a
record smuggled in would run, and nothing can be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from bench.report import escape

_HERE = Path(__file__).parent

_ENDS = re.compile(r"</(script|style)|<!--", re.IGNORECASE)
"""What would end a script or style inside HTML, or turn it into a comment."""

_LEAVE_TEXT = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"}


def document(
    title: str,
    body: str,
    *,
    data: object = None,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    beside: bool = False,
) -> str:
    """A page that reads from a file, light and dark, on paper and on a phone.

    A script finds the data with `JSON.parse(document.getElementById("data").textContent)`. It may
    neither fetch anything nor use `eval`, and HTML has no handlers and no `style` attributes.

    Args:
        title: as text; it is escaped here.
        body: HTML of the whole body, in which the caller has escaped every text. An element of
            class `controls` is hidden without scripts, and on paper.
        data: what JSON has, without NaN; None where no script asks for data.
        scripts: source texts, run in this order at the end of the body.
        styles: source texts, behind those of every page.
        beside: whether it may show pictures that lie beside it, and where it is served, fetch data
            from its server; else it is whole in its one file.

    Raises:
        ValueError: where a script or style holds what ends it in HTML, or data has NaN.
    """
    running, painting = [source("page.js"), *scripts], [source("page.css"), *styles]
    policy = _policy(running, painting, beside=beside)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape.html(title)}</title>",
        *(f"<style>{_inline(one)}</style>" for one in painting),
        "</head>",
        "<body>",
        body,
        *([_data(data)] if data is not None else []),
        *(f"<script>{_inline(one)}</script>" for one in running),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


@cache
def source(name: str) -> str:
    """A script or style beside this module; `vendor/plot.min.js` is one of a library's."""
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(scripts: Iterable[str], styles: Iterable[str], *, beside: bool) -> str:
    # A page from a file has no origin of its own in some browsers, and `self` is nothing there.
    around = ["img-src 'self' file: data:", "connect-src 'self'"] if beside else ["img-src data:"]
    directives = [
        "default-src 'none'",
        f"script-src {' '.join(map(_hash, scripts))}",
        f"style-src {' '.join(map(_hash, styles))}",
        *around,
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(directives)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _inline(text: str) -> str:
    found = _ENDS.search(text)
    if found or "\r" in text:
        raise ValueError(f"a script or style may not hold {found[0] if found else 'CR'!r}")
    return text


def _data(data: object) -> str:
    """As ASCII, without a character that ends the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for char, escaped in _LEAVE_TEXT.items():
        text = text.replace(char, escaped)
    return f'<script type="application/json" id="data">{text}</script>'
