"""What stands above a board: what was attacked and how, and what to take home."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.boards.model import Row, Setup
from bench.report.tables import percent

_SHOWN = 4
_LONGEST = 48


def sentences(setup: Setup, rows: Sequence[Row]) -> tuple[str, str]:
    """Two of them; the second is about ranked rows alone."""
    return _attacked(setup, rows), _best(rows)


def _attacked(setup: Setup, rows: Sequence[Row]) -> str:
    """Names of attacks without their settings: the table of attacks has those."""
    defended = [row for row in rows if not row.base]
    names = [
        *dict.fromkeys(
            _name(one.attack) for row in rows for one in row.attacks if not (one.control)
        )
    ]
    shown = names if len(names) <= _SHOWN else [*names[:_SHOWN], f"{len(names) - _SHOWN} more"]
    how = (
        f"attacked inside {setup.threat} by {joined(shown)}"
        if names
        else (f"not attacked inside {setup.threat}: only controls ran")
    )
    many = f"{setup.n} of {setup.available}" if setup.n < setup.available else f"all {setup.n}"
    what = (
        f"{counted(len(defended), 'defense')} of {setup.classifier}"
        if defended
        else (f"{setup.classifier}, undefended,")
    )
    return f"{what} on {many} images of {setup.dataset}, {how}."


def _name(attack: str) -> str:
    return attack.partition(" (")[0].partition(":")[0]


def _best(rows: Sequence[Row]) -> str:
    placed = [row for row in rows if row.rank is not None]
    if not placed:
        reasons = dict.fromkeys(row.unranked for row in rows)
        return f"No row is ranked ({'; '.join(reasons)})."
    first = [row for row in placed if row.rank == 1]
    base = next((row for row in placed if row.base), None)
    if base in first:
        return _no_better(base, first, placed)
    best, *others = first
    against = f" (the undefended classifier: {base.robust} %)" if base else ""
    tied = f"; its interval overlaps {_intervals_of([_short(row) for row in others])}"
    alone = "the only ranked row" if len(placed) == 1 else "the most robust"
    return (
        f"{_short(best)} is {alone}: at most {best.robust} % of the images survive"
        f"{against}{_known(best)}{tied if others else ''}; {_beside_constant(best)}"
        f"{_audited(first)}."
    )


def _known(row: Row) -> str:
    """What is left under noise that the attacker knows, where that was tried."""
    replayed = row.extras.replayed
    return f", and {replayed} % where the attacker knows the noise" if replayed else ""


def _intervals_of(names: Sequence[str]) -> str:
    return f"{'that' if len(names) == 1 else 'those'} of {joined(list(names))}"


def _beside_constant(row: Row) -> str:
    """What always answering one class gets, where the row is not clearly above it."""
    if row.robust.low > row.constant:
        return ""
    where = "more" if row.robust.high < row.constant else "not clearly less"
    return f"a constant answer gets {percent(row.constant)}, which is {where}; "


def _no_better(base: Row | None, first: Sequence[Row], placed: Sequence[Row]) -> str:
    """Where the undefended classifier is among the first."""
    assert base is not None
    if len(placed) == 1:
        return (
            f"Undefended, at most {base.robust} % of the images survive, and no defended row is "
            f"ranked beside it; {_audited(first)}."
        )
    best = max(placed, key=lambda row: row.robust.value)
    higher = percent(best.robust.value) != percent(base.robust.value)
    more = f": the highest is {_short(best)} with {best.robust} %" if higher else ""
    gain = best.gain
    if gain is not None and gain.low > 0:
        # Of the same images intervals that overlap do not say that nothing can be told.
        return (
            f"No interval lies above that of the undefended classifier, of which at most "
            f"{base.robust} % of the images survive{more}, which is {gain} points more of the same "
            f"images; {_audited(first)}."
        )
    return (
        f"No defense can be told from the undefended classifier, of which at most {base.robust} % "
        f"of the images survive{more}; {_audited(first)}."
    )


def _short(row: Row) -> str:
    """The name; of a long spec without its settings."""
    return row.defense if len(row.defense) <= _LONGEST else row.defense.partition(":")[0]


def _audited(rows: Sequence[Row]) -> str:
    states = dict.fromkeys(row.audit.state for row in rows)
    if len(states) > 1:
        return "audits: " + ", ".join(f"{_short(row)} {row.audit.state}" for row in rows)
    (state,) = states
    return state if state == "not audited" else f"audit: {state}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def joined(words: Sequence[str]) -> str:
    """As in a sentence: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
