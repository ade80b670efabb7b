"""Completion in bash, which takes `pgd:steps=5` for five words."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence

ASKED = "_BENCH_COMPLETE"
"""By this variable a shell asks for completions."""

_BREAKS = ":="


def in_bash() -> bool:
    """Whether bash asks for completions."""
    return os.environ.get(ASKED) == "complete_bash"


def complete(run: Callable[[], object]) -> None:
    """Answer bash: words that it broke at `:` and `=` are joined before the command is asked, and
    of each answer the part is printed that stands behind the last break.

    Args:
        run: asks the command, which prints a line for each answer.
    """
    words, at = joined(os.environ["COMP_WORDS"].split(), int(os.environ["COMP_CWORD"]))
    os.environ.update(COMP_WORDS=" ".join(words), COMP_CWORD=str(at))
    typed = words[at] if at < len(words) else ""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            run()
    finally:
        for line in out.getvalue().splitlines():
            print(rest(line, typed))


def joined(words: Sequence[str], at: int) -> tuple[list[str], int]:
    """The words as the user wrote them, and which of them the word number `at` lies in."""
    whole: list[str] = []
    place, glue = len(words), False
    for number, word in enumerate(words):
        breaks = set(word) <= set(_BREAKS)
        if whole and (breaks or glue):
            whole[-1] += word
        else:
            whole.append(word)
        glue = breaks
        if number == at:
            place = len(whole) - 1
    return whole, place if at < len(words) else len(whole)


def rest(answer: str, typed: str) -> str:
    """The part of an answer behind the last break in what was typed."""
    value = typed.partition("=")[2] if typed.startswith("-") else typed
    broken = max(map(value.rfind, _BREAKS)) + 1
    return answer[broken:] if answer.startswith(value[:broken]) else answer
