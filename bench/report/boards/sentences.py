"""What stands above a board: what was attacked and how, and what to take home."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.boards.model import Row, Setup
from bench.report.boards.names import split
from bench.report.tables import percent

_SHOWN = 4
_LONGEST = 48


def sentences(setup: Setup, rows: Sequence[Row]) -> tuple[str, str]:
    """Two of them; the second is about ranked rows alone."""
    return _attacked(setup, rows), _best(rows)


def _attacked(setup: Setup, rows: Sequence[Row]) -> str:
    """Names of attacks without their settings: the table of attacks has those."""
    defended = [row for row in rows if not row.base]
    faced = [_names(row) for row in rows]
    names = list(dict.fromkeys(name for own in faced for name in own))
    shown = names if len(names) <= _SHOWN else [*names[:_SHOWN], f"{len(names) - _SHOWN} more"]
    all_faced = all(set(own) == set(names) for own in faced)
    some = "" if all_faced else " (not every row by each)"
    how = (
        f"attacked inside {setup.threat} by {joined(shown)}{some}"
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


def _names(row: Row) -> list[str]:
    attacks = (one.attack for one in row.attacks if not one.control)
    return list(dict.fromkeys(one.partition(" (")[0].partition(":")[0] for one in attacks))


def _best(rows: Sequence[Row]) -> str:
    placed = [row for row in rows if row.rank is not None]
    if not placed:
        reasons = dict.fromkeys(row.unranked for row in rows)
        return f"No row is ranked ({'; '.join(reasons)})."
    first = [row for row in placed if row.rank == 1]
    base = next((row for row in placed if row.base), None)
    if base in first:
        return _no_better(base, first, placed, rows)
    best, *others = first
    against = f" (of the undefended classifier {base.robust} %)" if base else ""
    tied = f"; its interval overlaps {_intervals_of([_noted(row) for row in others])}"
    alone = "the only ranked row" if len(placed) == 1 else "the most robust"
    said = (
        f"{_noted(best)} is {alone}: {best.robust} % of the images survive these attacks"
        f"{against}{_known(best)}{tied if others else ''}; {_audited(first)}."
    )
    return _beside_constant(best) + said


def _known(row: Row) -> str:
    """What is left under noise that the attacker knows, where that was tried."""
    replayed = row.extras.replayed
    return f", and {replayed} % where the attacker knows the noise" if replayed else ""


def _intervals_of(names: Sequence[str]) -> str:
    return f"{'that' if len(names) == 1 else 'those'} of {joined(list(names))}"


def _beside_constant(row: Row) -> str:
    """What always answering one class gets, where the first row is not clearly above it."""
    if row.robust.low > row.constant:
        return ""
    than = "as good as" if row.robust.high < row.constant else "clearly better than"
    return f"No row is {than} a constant answer, which gets {percent(row.constant)} %. "


def _no_better(
    base: Row | None, first: Sequence[Row], placed: Sequence[Row], rows: Sequence[Row]
) -> str:
    """Where the undefended classifier is among the first."""
    assert base is not None
    if len(placed) == 1:
        return (
            f"Undefended, {base.robust} % of the images survive these attacks; "
            f"{_unranked(rows)}; {_audited(first)}."
        )
    best = max(placed, key=lambda row: row.robust.value)
    higher = percent(best.robust.value) != percent(base.robust.value)
    more = f"; the highest is {_short(best)} with {best.robust} %" if higher else ""
    gain = best.gain
    if gain is not None and gain.low > 0:
        # Of the same images intervals that overlap do not say that nothing can be told.
        return (
            f"{_noted(best)} is better than the undefended classifier: {best.robust} % of the "
            f"images survive these attacks, of that {base.robust} %; the intervals overlap, but on "
            f"the same images that is {gain} points more; {_audited(first)}."
        )
    return (
        f"No defense can be told from the undefended classifier, of which {base.robust} % of the "
        f"images survive these attacks{more}; {_audited(first)}."
    )


def _short(row: Row) -> str:
    """The name; of a long spec with those settings alone that tell it from other rows."""
    if len(row.defense) <= _LONGEST:
        return row.defense
    return ":".join(filter(None, [split(row.defense)[0], ",".join(row.own)]))


def _unranked(rows: Sequence[Row]) -> str:
    """What stands beside the undefended classifier where that alone is ranked."""
    told = [
        f"{_short(row)} ({f'{row.robust} %, ' * row.attacked}{row.unranked.partition(':')[0]})"
        for row in rows
        if not row.base
    ]
    return f"no defense is ranked beside it: {joined(told)}" if told else "no defense was tried"


def _noted(row: Row) -> str:
    """The name, and that something is noted of it."""
    return _short(row) + " (see its notes)" * bool(row.notes)


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
