"""Figures that do not match: no count of images, another figure elsewhere, columns or rows that
changed places, numbers that stand twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product
from typing import Any

from bench.audit.cells import (
    Cell,
    Size,
    Sizes,
    ball_of,
    case_of,
    fits,
    grouped,
    measured_alike,
    nearest_counts,
    noise,
)
from bench.audit.table_findings import Count, TableFinding, finding

CLEAR_ROWS, OPPOSED_ROWS = 3, 2
"""Rows of one table in which two columns must clearly differ one way, and of the other in which
they must differ the other way.
"""

SPREAD, BY_CHANCE = 10.0, 0.01
"""Points over which a column's numbers spread at least, and the chance of a table to have two cases
with the same numbers, above which nothing is made of it.
"""

Pair = tuple[Cell, Cell]


# Counts -------------------------------------------------------------------------------------------


def impossible_counts(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Numbers that no count of test images gives, for every size that the test set may have.

    Nothing is said of means; of tables of which one size gives all numbers; and of tables of which
    half the numbers or more fit no size: those rest on other images.
    """
    shares = [cell for cell in cells if not cell.is_mean and cell.sizes]

    def same(cell: Cell) -> tuple[Any, ...]:
        return (*measured_alike(cell), cell.sizes)

    for group in grouped(shares, same).values():
        sizes = group[0].sizes
        misfits = {size: [cell for cell in group if not fits(cell, size)] for size in sizes}
        fewest = min(len(cells) for cells in misfits.values())
        if not fewest or 2 * fewest >= len(group):
            continue
        for cell in group:
            if any(cell in misfits[size] for size in sizes):
                yield _misfit(cell, sizes, len(group))


def _misfit(cell: Cell, sizes: Sequence[int], among: int) -> TableFinding:
    by_size = {
        size: [_count(cell, count, size) for count in dict.fromkeys(nearest_counts(cell, size))]
        for size in sizes
    }
    counts = tuple(count for near in by_size.values() for count in near)
    nowhere = all(count.fits != "rounded" for count in counts)
    told = "; ".join(_told(size, near) for size, near in by_size.items())
    others = f" No one size gives all {among} numbers of this table."
    return finding(
        "count",
        "fail" if all(count.fits == "no" for count in counts) else "warn",
        [cell],
        f"{cell.printed} is {told}.{'' if nowhere else others}",
        measured=(cell.value, min(abs(count.share - cell.value) for count in counts)),
        counts=counts,
    )


def _told(size: int, near: Sequence[Count]) -> str:
    rounded = [count for count in near if count.fits == "rounded"]
    cut = [count for count in near if count.fits == "cut"]
    if rounded:
        return f"{rounded[0]}"
    shares = " and ".join(f"{count.count:,} give {count.share:.4f}" for count in near)
    unless = f" unless digits are cut off ({cut[0]})" if cut else ""
    return f"no count of {size:,} images{unless}: {shares}"


def _count(cell: Cell, count: int, size: int) -> Count:
    cut = "cut" if cell.is_cut(count, size) else "no"
    how = "rounded" if cell.is_share(count, size) else cut
    share = round(100 * count / size, 6)
    return Count.model_validate({"count": count, "size": size, "share": share, "fits": how})


# Columns and rows that changed places -------------------------------------------------------------


def swapped_columns(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Two attacks whose order is one way in a table and the other way in another table of the same
    source, in every row where they differ by more than chance.
    """
    sizes = Sizes(cells)
    attacked = [cell for cell in cells if cell.attacked]
    for source in grouped(attacked, lambda cell: cell.reference.source).values():
        tables = grouped(source, lambda cell: (cell.reference.metric, cell.reference.table))
        for (one, more), (two, fewer) in permutations(tables.items(), 2):
            if one[0] != two[0]:
                continue
            for names in combinations(sorted({cell.reference.attack for cell in fewer}), 2):
                clear = _clear_gaps(more, names, sizes)
                opposed = _clear_gaps(fewer, names, sizes)
                enough = len(clear) >= CLEAR_ROWS and len(opposed) >= OPPOSED_ROWS
                if enough and len(clear) > len(opposed) and _are_opposed(clear, opposed):
                    yield _swap(clear, opposed, fewer)


def _clear_gaps(table: Sequence[Cell], names: tuple[str, str], sizes: Sizes) -> list[Pair]:
    """The cells under two attacks, row by row, where they differ by more than chance."""
    rows = grouped(table, lambda cell: (case_of(cell), cell.reference.protocol, ball_of(cell)))
    pairs = []
    for row in rows.values():
        by_attack = {cell.reference.attack: cell for cell in row}
        first, second = (by_attack.get(name) for name in names)
        if first and second:
            chance = noise(first, second, sizes.of(first).images)
            if abs(first.value - second.value) > chance:
                pairs.append((first, second))
    return pairs


def _are_opposed(clear: Sequence[Pair], opposed: Sequence[Pair]) -> bool:
    there = {first.value > second.value for first, second in clear}
    here = {first.value > second.value for first, second in opposed}
    return len(there) == len(here) == 1 and there != here


def _swap(clear: Sequence[Pair], opposed: Sequence[Pair], table: Sequence[Cell]) -> TableFinding:
    larger, smaller = sorted(clear[0], key=lambda cell: -cell.value)
    names = larger.reference.attack, smaller.reference.attack
    least = min(abs(first.value - second.value) for first, second in clear)
    here = []
    for pair in opposed:
        low, high = sorted(pair, key=lambda cell: cell.value)
        here.append(f"{low.reference.dataset} {low.printed} and {high.printed}")
    found = finding(
        "swapped",
        "warn",
        [cell for cell in table if cell.reference.attack in names],
        f"in {larger.reference.table!r} {names[0]} leaves more than {names[1]} in all "
        f"{len(clear)} rows, by {least:.2f} points or more. Here it leaves less in every row where "
        f"the two differ by more than chance ({'; '.join(here)}): the columns may have changed "
        "places.",
        measured=(max(abs(first.value - second.value) for first, second in opposed), least),
    )
    there = [place for pair in clear for cell in pair for place in cell.places]
    return found.model_copy(update={"rows": tuple(dict.fromkeys((*found.rows, *there)))})


def exchanged_rows(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Two defenses with two numbers in one table and each other's numbers in another."""

    def column(cell: Cell) -> tuple[str, ...]:
        row = cell.reference
        return (row.source, row.dataset, row.architecture, row.attack, *ball_of(cell))

    fine = [cell for cell in cells if cell.digits >= 2 and 0 < cell.value < 100]
    for group in grouped(fine, column).values():
        by_names: dict[tuple[str, str], list[Pair]] = defaultdict(list)
        rows = grouped(group, lambda cell: (cell.reference.table, cell.reference.protocol))
        for row in rows.values() if len(rows) > 1 else ():
            ordered = sorted(row, key=lambda cell: cell.reference.defense)
            for one, other in combinations(ordered, 2):
                by_names[one.reference.defense, other.reference.defense].append((one, other))
        for (first, second), pairs in by_names.items():
            for (a, b), (c, d) in combinations(pairs, 2):
                crossed = (a.printed, b.printed) == (d.printed, c.printed)
                if first != second and crossed and a.printed != b.printed:
                    yield finding(
                        "exchanged",
                        "warn",
                        [a, b, c, d],
                        f"{first} has {a.printed} and {second} {b.printed} in {_place(a)}, "
                        f"{c.printed} and {d.printed} in {_place(c)}: one of the two tables may "
                        "have them in each other's row.",
                        measured=(abs(a.value - b.value), a.unit),
                    )


def _place(cell: Cell) -> str:
    row = cell.reference
    return f"{row.table or row.source}" + f" ({row.protocol})" * bool(row.protocol)


# Two figures --------------------------------------------------------------------------------------


def clean_differs(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Two clean accuracies of one model in two tables of one source.

    Tables of different norms may hold different models of one name, and are not compared.
    """
    norms = {
        case: {cell.reference.norm for cell in group if cell.attacked and cell.reference.norm}
        for case, group in grouped(cells, case_of).items()
    }

    def same(cell: Cell) -> tuple[str, ...]:
        row = cell.reference
        return (row.source, row.dataset, row.architecture, row.defense, row.protocol, row.metric)

    own = [cell for cell in cells if not cell.attacked and "secondary" not in cell.reference.badges]
    for group in grouped([cell for cell in own if cell.reference.architecture], same).values():
        for one, other in combinations(group, 2):
            first, second = norms[case_of(one)], norms[case_of(other)]
            if not first or not second or first & second:
                yield from _two("clean-differs", one, other)


def two_figures(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Two figures in two sources for what reads as the same case."""

    def same(cell: Cell) -> tuple[str, ...]:
        row = cell.reference
        names = (row.dataset, row.architecture, row.defense, row.attack, row.protocol)
        return (*names, row.metric, *ball_of(cell))

    named = [
        cell
        for cell in cells
        if cell.attacked and cell.reference.architecture and cell.reference.defense != "undefended"
    ]
    for group in grouped(named, same).values():
        by_figure = grouped(group, lambda cell: (cell.reference.source, cell.printed))
        once = [_merged(figures) for figures in by_figure.values()]
        for one, other in combinations(once, 2):
            yield from _two("two-figures", one, other)


def _merged(figures: Sequence[Cell]) -> Cell:
    """One cell for a figure that its source prints in several tables."""
    places = tuple(place for cell in figures for place in cell.places)
    return Cell(figures[0].reference, figures[0].digits, places)


def _two(check: str, one: Cell, other: Cell) -> Iterator[TableFinding]:
    low, high = sorted((one, other), key=lambda cell: cell.value)
    if not high.exceeds(low):
        return
    gap = high.value - low.value
    known = one.sizes or other.sizes
    size = Size(known[0], "all") if known else Size(0, "unknown")
    what = f"under {one.reference.attack}" if one.attacked else "without attack"
    yield finding(
        check,
        "warn",
        [one, other],
        f"{one.printed} {what} in {_source(one)}, {other.printed} in {_source(other)}: "
        f"{gap:.2f} points{size.told(gap)}.",
        measured=(gap, (one.unit + other.unit) / 2),
        images=round(gap * known[0] / 100) if known else None,
    )


def _source(cell: Cell) -> str:
    row = cell.reference
    return ", ".join(filter(None, [row.source, row.table]))


def copied_rows(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Two cases of one table that share two different numbers or more, in the same columns, to the
    last of their two digits.
    """

    def column(cell: Cell) -> tuple[str, ...]:
        row = cell.reference
        return (row.attack, row.protocol, row.metric, *ball_of(cell))

    fine = [cell for cell in cells if cell.digits >= 2 and 0 < cell.value < 100]
    tables = grouped(fine, lambda cell: (cell.reference.source, cell.reference.table))
    sizes = Sizes(cells)
    for table in tables.values():
        pairs = list(combinations(grouped(table, case_of).values(), 2))
        for one, other in pairs:
            equal = [
                (first, second)
                for first, second in product(one, other)
                if column(first) == column(second) and first.printed == second.printed
            ]
            values = list(dict.fromkeys(first.printed for first, _ in equal))
            # That two numbers of one column are equal, were they spread evenly over `SPREAD`.
            step = max([100 / sizes.of(cell).images for cell in one] + [cell.unit for cell in one])
            by_chance = len(pairs) * (step / SPREAD) ** len(values)
            if len(values) >= 2 and by_chance < BY_CHANCE:
                cases = [", ".join(filter(None, case_of(cell)[2:])) for cell in equal[0]]
                yield finding(
                    "copied",
                    "warn",
                    [cell for pair in equal for cell in pair],
                    f"{cases[0]} and {cases[1]} share {', '.join(values)}.",
                    measured=(len(values), 2),
                )
