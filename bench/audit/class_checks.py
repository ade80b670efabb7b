"""One class: accuracies that a constant answer would have, and attacks that break nothing.

The limits are those of the collapse rule (`bench.results.collapse`); published tables seldom print
what it needs beside accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.audit.attack_order import AUTOATTACK, is_gradient_attack
from bench.audit.cells import Cell, Sizes, case_of, grouped, known_test_set
from bench.audit.order_checks import clean_of
from bench.audit.table_findings import Count, TableFinding, finding

NEAR_CONSTANT = 0.5
"""Points around a constant answer's accuracy in which all numbers lie, clean and attacked."""

BY_CHANCE = 0.002
"""Chance of a number to be the size of a class, above which nothing is made of it."""

MANY_IMAGES = 1_000
"""So many make it telling that not one of them is broken."""


def constant_answers(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Accuracies that always answering one class would have."""
    for group in grouped(cells, case_of).values():
        counts = known_test_set(group[0].reference.dataset).counts
        told = [cell for cell in group if cell.value > 0 and not cell.is_mean]
        attacked = [cell for cell in told if cell.attacked]
        if not counts or not attacked:
            continue
        constant = _constant(told, counts) if len(attacked) < len(told) else None
        if constant:
            yield constant
        else:
            yield from _one_class_left(attacked, counts)


def _constant(group: Sequence[Cell], counts: tuple[int, ...]) -> TableFinding | None:
    """Clean and attacked accuracies that all lie at the share of one class."""
    values = [cell.value for cell in group]
    size = sum(counts)
    count = min(counts, key=lambda one: max(abs(value - 100 * one / size) for value in values))
    share = 100 * count / size
    distance = max(abs(value - share) for value in values)
    if distance > NEAR_CONSTANT:
        return None
    images = round(distance * size / 100)
    away = f"no more than {images:,} images away from" if images else "which is"
    return finding(
        "constant",
        "fail",
        group,
        f"all {len(group)} numbers, clean and attacked, lie between {min(values):.2f} and "
        f"{max(values):.2f}, {away} {share:.2f}, the accuracy of "
        f"always answering {_classes(group[0], count)} ({count:,} of {size:,} test images).",
        measured=(distance, NEAR_CONSTANT),
        images=images,
        counts=(_whole_class(group[0], count, size),),
    )


def _one_class_left(attacked: Sequence[Cell], counts: tuple[int, ...]) -> Iterator[TableFinding]:
    """Different attacks that leave the same number, the size of one class."""
    size = sum(counts)
    for group in grouped(attacked, lambda cell: cell.printed).values():
        cell = group[0]
        names = sorted({one.reference.attack for one in group})
        matching = [count for count in counts if cell.is_share(count, size)]
        # As many printed values are the size of a class as classes have different sizes.
        by_chance = len(set(counts)) * cell.unit / 100
        if len(names) < 2 or not matching or by_chance > BY_CHANCE:
            continue
        yield finding(
            "constant",
            "fail",
            group,
            f"{' and '.join(names)} leave {cell.printed} alike, which is {matching[0]:,} of "
            f"{size:,} test images: as many as {_classes(cell, matching[0])} has. What is left may "
            "be one constant answer.",
            measured=(cell.value, 100 * matching[0] / size),
            images=matching[0],
            counts=(_whole_class(cell, matching[0], size),),
        )


def _whole_class(cell: Cell, count: int, size: int) -> Count:
    fits = "rounded" if cell.is_share(count, size) else "no"
    return Count.model_validate(
        {"count": count, "size": size, "share": 100 * count / size, "fits": fits}
    )


def _classes(cell: Cell, count: int) -> str:
    """The classes with this many test images, in words."""
    known = known_test_set(cell.reference.dataset)
    labels = [label for label, one in enumerate(known.counts) if one == count]
    if len(labels) > 1:
        return "one class"
    name = known.names[labels[0]] if known.names else str(labels[0])
    return f"class {labels[0]}" + f" ({name})" * (name != str(labels[0]))


def below_constant(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Clean accuracy below that of the best constant answer."""
    for cell in cells:
        counts = known_test_set(cell.reference.dataset).counts
        if cell.attacked or cell.draws or not counts or cell.is_mean or cell.stated_size:
            continue
        share = 100 * max(counts) / sum(counts)
        if share - cell.value > cell.unit / 2:
            yield finding(
                "below-constant",
                "warn",
                [cell],
                f"{cell.printed} without attack; always answering {_classes(cell, max(counts))} "
                f"would have {share:.2f}.",
                measured=(cell.value, share),
                images=round((share - cell.value) * sum(counts) / 100),
            )


def unmoved(cells: Sequence[Cell]) -> Iterator[TableFinding]:
    """Clean accuracy and accuracy under attack that are equal to the last digit."""
    sizes = Sizes(cells)
    for group in grouped(cells, case_of).values():
        for cell in group:
            clean = clean_of(cell, group) if cell.attacked and cell.value else None
            if clean is None or cell.printed != clean.printed:
                continue
            attack = cell.reference.attack
            strong = is_gradient_attack(attack) or AUTOATTACK.fullmatch(attack)
            many = cell.digits >= 2 and sizes.of(cell).images >= MANY_IMAGES
            yield finding(
                "unmoved",
                "fail" if strong and many else "warn",
                [clean, cell],
                f"{attack} leaves {cell.printed}, as much as was right without attack.",
                measured=(0.0, cell.unit),
                images=0,
            )
