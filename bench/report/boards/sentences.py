"""What stands above a board: what was attacked and how, and what to take home."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.boards.model import Row, Setup

_SHOWN = 6


def sentences(setup: Setup, rows: Sequence[Row]) -> tuple[str, str]:
    """Two of them, from the ranked rows."""
    return _attacked(setup, rows), _best(rows)


def _attacked(setup: Setup, rows: Sequence[Row]) -> str:
    defended = [row for row in rows if not row.base]
    names = dict.fromkeys(
        attack.attack for row in rows for attack in row.attacks if not attack.control
    )
    attacks = [*names][:_SHOWN] + [f"{len(names) - _SHOWN} more"] * (len(names) > _SHOWN)
    images = (
        f"{setup.n} of {setup.available} images"
        if setup.n < setup.available
        else (f"all {setup.n} images")
    )
    what = (
        f"{_count(len(defended), 'defense')} of {setup.classifier}"
        if defended
        else (f"{setup.classifier}, without a defense,")
    )
    how = (
        f"inside {setup.threat} by {_joined(attacks)}"
        if attacks
        else ("by nothing: only controls ran")
    )
    return f"{what} on {images} of {setup.dataset}, attacked {how}."


def _best(rows: Sequence[Row]) -> str:
    ranked = [row for row in rows if row.rank is not None]
    if not ranked:
        reasons = dict.fromkeys(row.unranked.partition(":")[0] for row in rows)
        return f"No row is ranked: {_joined([*reasons])}."
    best, *others = [row for row in ranked if row.rank == 1]
    base = next((row for row in rows if row.base), None)
    robust = f"at most {best.robust} % of its answers stay right under attack"
    against = (
        f", against {base.robust} % of the undefended classifier's"
        if base is not None and base is not best and base.attacked
        else ""
    )
    tied = (
        f" These images cannot tell it from {_joined([r.defense for r in others])}."
        if (others)
        else ""
    )
    alone = "the only ranked row" if len(ranked) == 1 else "the most robust"
    return f"{best.defense} is {alone}: {robust}{against}; {best.audit.state}.{tied}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
