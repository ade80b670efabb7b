"""Checks by searches of the audit's own: none of them trusts the row's attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.audit.limits import NOISE_IMAGES, SILENT_SQUARE
from bench.audit.row import AuditedRow, Comparison, Rows
from bench.audit.verdicts import checked, graded, not_applicable, of_comparison
from bench.losses import margin
from bench.maximise import Reading, ascend
from bench.results.audit import AuditCheck
from bench.results.extra import BASE_POINTS
from bench.searches import SearchResult, by_answers, margin_steps, random_points, smoothed, square

_RESTART = (1 << 14) + 1


def _searched(
    row: AuditedRow, search: Callable[..., SearchResult], budget: dict[str, int], rows: Rows
) -> Tensor:
    asked = row.victim(rows, gradient="full")
    at = torch.as_tensor(rows, device=row.images.device)
    places = torch.arange(len(rows), device=row.images.device)
    done = search(
        asked, row.images[at], row.labels[at], places, row.threat, restart=_RESTART, **budget
    )
    return done.points


def _rising(
    row: AuditedRow, check: str, search: Callable[..., SearchResult], word: str, budgets: list[int]
) -> Comparison:
    """A search with rising budgets: it ends where a smaller one has beaten the row's attack."""
    comparison: Comparison | None = None
    for budget in budgets:
        again = row.compare(
            check, partial(_searched, row, search, {word: budget}), most=row.scale.searched
        )
        if comparison is None or again.only_search >= comparison.only_search:
            comparison = again
        if again.beats and again.complete:
            break
    assert comparison is not None
    return comparison


def squares(row: AuditedRow) -> Iterator[AuditCheck]:
    """S6: random search with squares, and a search that reads answers alone."""
    queries = row.scale.queries
    comparison = _rising(row, "S6", square, "queries", [queries // 5, queries])
    told = "random search with squares"
    if row.scale.answers and row.threat.norm != "l1":
        asked = row.compare("S6", partial(_answered, row), most=row.scale.searched)
        comparison, told = max(
            (comparison, told), (asked, "a search by answers alone"), key=lambda one: one[0].gain
        )
    yield of_comparison(row, "S6", told, comparison, fails=True, silent=SILENT_SQUARE)


def _answered(row: AuditedRow, rows: Rows) -> Tensor:
    asked = row.victim(rows, gradient="full")
    at = torch.as_tensor(rows, device=row.images.device)
    places = torch.arange(len(rows), device=row.images.device)
    arguments = (asked, row.images[at], row.labels[at], places, row.threat)
    return by_answers(*arguments, queries=row.scale.answers, restart=_RESTART).inside


def along_values(row: AuditedRow) -> Iterator[AuditCheck]:
    """Ascent along a gradient that is estimated from function values."""
    comparison = _rising(row, "smoothed", smoothed, "steps", [row.scale.smoothing])
    told = "ascent along a gradient of function values"
    yield of_comparison(row, "smoothed", told, comparison, fails=True)


def on_the_margin(row: AuditedRow) -> Iterator[AuditCheck]:
    """Many steps on the margin, under the row's own gradient and draws."""

    def search(rows: Rows) -> Tensor:
        asked = row.victim(rows)
        at = torch.as_tensor(rows, device=row.images.device)
        places = torch.arange(len(rows), device=row.images.device)
        arguments = (asked, row.images[at], row.labels[at], places, row.threat)
        return margin_steps(*arguments, steps=row.scale.margin, restart=_RESTART).points

    comparison = row.compare("margin", search, most=row.scale.repeated)
    told = f"{row.scale.margin} steps on the margin"
    yield of_comparison(row, "margin", told, comparison, fails=False)


def noise(row: AuditedRow) -> Iterator[AuditCheck]:
    """S7: random points of the ball break nothing that a search leaves."""
    left = row.sample(row.left, row.scale.searched)
    if not len(left):
        yield checked("S7", "pass", "the row's attack left nothing")
        return
    share = row.offer("S7", _searched(row, random_points, {"points": row.scale.points}, left), left)
    won = left[row.wins(share, row.share[left])]
    told = (
        f"{row.scale.points} random points an image broke {len(won)} of {len(left)} images that "
        "the row's attack left"
    )
    verdict = graded(fail=len(won) >= NOISE_IMAGES, warn=len(won) > 0)
    yield checked(
        "S7",
        verdict,
        told,
        value=float(len(won)),
        threshold=float(NOISE_IMAGES),
        images=row.ids_at(won),
    )


def transfer(row: AuditedRow) -> Iterator[AuditCheck]:
    """S8: points that the same attack, or steps on the margin, find on the undefended base."""
    if row.base is None:
        yield not_applicable("S8", "the row has no base")
        return
    points, _ = row.base
    best = row.compare("S8", lambda rows: points[torch.as_tensor(rows, device=points.device)])
    stored = row.record.extra_correct().get(BASE_POINTS)
    told = "points of the base under the same attack"
    if stored is not None:
        best = _better(best, _stored(row, stored[row.positions].mean(1)))
    if row.undefended.stochastic:
        yield of_comparison(row, "S8", told, best, fails=True, silent=0.0)
        return
    onto = row.compare("S8", partial(far_points, row))
    if onto.only_search - onto.only_row > best.only_search - best.only_row:
        best, told = onto, "points of steps on the base's margin"
    yield of_comparison(row, "S8", told, best, fails=True, silent=0.0)


def together(row: AuditedRow) -> Iterator[AuditCheck]:
    """What all searches broke, each where it is strong: the worst case over them against the number
    that the row's attack gave.
    """
    told = "the searches of the audit together"
    yield of_comparison(row, "together", told, row.together(), fails=False)


def _better(a: Comparison, b: Comparison) -> Comparison:
    return a if a.only_search - a.only_row >= b.only_search - b.only_row else b


def _stored(row: AuditedRow, share: np.ndarray[Any, np.dtype[np.float64]]) -> Comparison:
    """What the run itself found of the base's points."""
    won, lost = row.wins(share, row.share), row.wins(row.share, share)
    rows = np.flatnonzero(won)
    return Comparison(rows, len(rows), int(lost.sum()), len(row), complete=True)


def far_points(row: AuditedRow, rows: Rows) -> Tensor:
    """Points of large margin on the base: a search that ends at its first success stays too near
    to the base's boundary to break another function as well. Several checks ask for them; they are
    made once.
    """
    if row.far is None:
        size, every = row.execution.batch_size, np.arange(len(row))
        blocks = [every[first : first + size] for first in range(0, len(row), size)]
        row.far = torch.cat([_far_block(row, block) for block in blocks])
    return row.far[torch.as_tensor(rows, device=row.far.device)]


def _far_block(row: AuditedRow, rows: Rows) -> Tensor:
    asked = row.victim(rows, defended=row.undefended, gradient="full")
    at = torch.as_tensor(rows, device=row.images.device)
    images, labels = row.images[at], row.labels[at]
    function, never = asked.as_function(images), torch.zeros(len(rows), dtype=torch.bool)

    def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
        leaf = x.detach().requires_grad_()
        value = margin(function(leaf), labels)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        return Reading(value.detach(), slope.nan_to_num(0.0, 0.0, 0.0), never.to(x.device))

    size = min(2.5 / row.steps, 1.0) * row.threat.eps
    return ascend(read, images, images, row.threat, steps=row.steps, size=size).points
