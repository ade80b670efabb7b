"""More is left than can be: stronger attacks, larger balls, several draws.

A difference counts where rounding cannot make it; between attacks of which one need not contain
the other, where chance cannot. It fails where other seeds cannot make it either: by `FEW_IMAGES`
images and `FEW_POINTS` points, of a defense that is not random.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import permutations

from bench.audit.attack_order import AUTOATTACK, NOTHING, PLAIN_PGD, Order, order
from bench.audit.cells import Cell, Sizes, ball_of, case_of, grouped, noise
from bench.audit.table_findings import TableFinding, finding
from bench.results.comparisons import BEATS_GAIN

FEW_IMAGES = 7
"""So many images at least make one attack beat another (`bench.results.comparisons.beats`)."""

FEW_POINTS = 100 * BEATS_GAIN

WEAK = 10.0
"""Points by which PGD is known to stay behind AutoAttack only where its gradients do not lead."""


def violations(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """A stronger attack that leaves more than a weaker one in the same table and ball."""
    sizes = Sizes(cells)
    for group in _rows(cells).values():
        for stronger, weaker in permutations(group, 2):
            relation = order(stronger.reference.attack, weaker.reference.attack)
            if relation is None or not stronger.exceeds(weaker):
                continue
            chance = noise(stronger, weaker, sizes.of(stronger).images)
            if relation.contains or stronger.value - weaker.value > chance:
                yield _excess("order", stronger, weaker, relation, sizes)


def weak_attacks(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """PGD that leaves far more than AutoAttack."""
    sizes = Sizes(cells)
    for group in _rows(cells).values():
        for weak, strong in permutations(group, 2):
            names = weak.reference.attack, strong.reference.attack
            gap = weak.value - strong.value
            known = PLAIN_PGD.fullmatch(names[0]) and AUTOATTACK.fullmatch(names[1])
            if known and gap > WEAK + noise(weak, strong, sizes.of(weak).images):
                yield finding(
                    "weak-attack",
                    "warn",
                    [weak, strong],
                    f"{names[0]} leaves {weak.printed}, {names[1]} {strong.printed}: "
                    f"{gap:.2f} points less{sizes.of(weak).told(gap)}.",
                    measured=(gap, WEAK),
                )


def _rows(cells: Sequence[Cell]) -> dict[tuple[str, ...], list[Cell]]:
    """Attacked cells that differ in their attack alone."""

    def same(cell: Cell) -> tuple[str, ...]:
        row = cell.reference
        return (*case_of(cell), row.protocol, row.metric, *ball_of(cell))

    return grouped([cell for cell in cells if cell.attacked], same)


def above_clean(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """An attack that leaves more than there was."""
    sizes = Sizes(cells)
    relation = Order(True, "can only break what is right without attack, as it is usually counted")
    for group in grouped(cells, case_of).values():
        for cell in group:
            clean = clean_of(cell, group) if cell.attacked else None
            if clean and cell.exceeds(clean):
                yield _excess("clean", cell, clean, relation, sizes)


def clean_of(cell: Cell, group: Sequence[Cell]) -> Cell | None:
    """The clean accuracy that belongs to an attacked one: of the same protocol where there is one,
    else the largest.
    """
    clean = [one for one in group if not one.attacked and one.draws in ("", cell.draws)]
    alike = [one for one in clean if one.reference.protocol == cell.reference.protocol]
    of_draws = [one for one in alike or clean if one.draws == cell.draws]
    return max(of_draws or alike or clean, key=lambda one: one.value, default=None)


def larger_balls(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """The same attack in a larger ball that leaves more."""
    sizes = Sizes(cells)
    relation = Order(True, "may use every point of the smaller ball")

    def same(cell: Cell) -> tuple[str, ...]:
        row = cell.reference
        return (*case_of(cell), row.attack, row.protocol, row.metric, row.norm)

    stated = [cell for cell in cells if cell.attacked and cell.eps]
    for group in grouped(stated, same).values():
        for larger, smaller in permutations(group, 2):
            if larger.eps > smaller.eps and larger.exceeds(smaller):
                yield _excess("ball", larger, smaller, relation, sizes)


def more_draws(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Right in all draws more often than in the mean of draws, or in most of them."""
    sizes = Sizes(cells)

    def same(cell: Cell) -> tuple[str, ...]:
        row = cell.reference
        protocol = re.sub(r"\b(worst|majority|mean)\b", "", row.protocol)
        return (*case_of(cell), row.attack, protocol, *ball_of(cell), str(cell.attacked))

    for group in grouped(cells, same).values():
        for all_right, other in permutations(group, 2):
            compared = all_right.draws == "all" and other.draws in ("mean", "majority")
            if compared and all_right.exceeds(other):
                gap = all_right.value - other.value
                size = sizes.of(all_right)
                yield finding(
                    "draws",
                    "fail" if gap > FEW_POINTS else "warn",
                    [all_right, other],
                    f"{all_right.printed} are right in all draws, {other.printed} in the "
                    f"{other.draws} of draws: {gap:.2f} points more{size.told(gap)}.",
                    measured=(gap, FEW_POINTS),
                )


def _excess(check: str, larger: Cell, smaller: Cell, relation: Order, sizes: Sizes) -> TableFinding:
    size = sizes.of(larger)
    gap = larger.value - smaller.value
    limit = max(FEW_POINTS, 100 * (FEW_IMAGES - 0.5) / size.images)
    names = [_named(larger, smaller), _named(smaller, larger)]
    random = larger.reference.protocol != "" and check == "order"
    caveat = " The defense is random, and the two may have been judged on other draws." * random
    return finding(
        check,
        "fail" if gap > limit and not random else "warn",
        [larger, smaller],
        f"{names[0]} leaves {larger.printed}, {names[1]} {smaller.printed}: "
        f"{gap:.2f} points more{size.told(gap)}. {names[0]} {relation.why}.{caveat}",
        measured=(gap, limit),
        images=None if size.how == "unknown" else round(gap * size.images / 100),
    )


def _named(cell: Cell, beside: Cell) -> str:
    """The attack, with its radius where two cells differ in it."""
    name = cell.reference.attack if cell.reference.attack not in NOTHING else "no attack"
    return name if cell.eps == beside.eps or not cell.eps else f"{name} at {cell.reference.eps}"
