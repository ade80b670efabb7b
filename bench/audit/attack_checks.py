"""Checks that run the row's attack again, with other parameters, another ball or another loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from bench.audit.limits import FLAT, FLAT_ABOVE, FLAT_BELOW, MASKED_GAIN, MOST_STEPS, ONE_STEP_ONLY
from bench.audit.row import AuditedRow, Comparison, Rows
from bench.audit.verdicts import checked, graded, not_applicable, of_comparison
from bench.defense import gradient_name
from bench.losses import LOSSES, margin, towards
from bench.randomness import Query, RandomnessModel
from bench.results.arrays import Bools
from bench.results.audit import AuditCheck
from bench.results.comparisons import beats
from bench.searches import margin_steps
from bench.threat import ThreatModel

_UNBOUNDED = {"linf": lambda pixels: 1.0, "l2": math.sqrt, "l1": float}


def one_step(row: AuditedRow) -> Iterator[AuditCheck]:
    """S1: one step of full length breaks no more than the row's attack."""
    changes: dict[str, object] = {"random_start": False, "restarts": 1}

    def search(rows: Rows) -> Tensor:
        if row.variant(steps=1, **changes) is not None:
            return row.own(rows, steps=1, changes=changes)
        return row.ascent(rows, margin, steps=1)

    comparison = row.compare("S1", search)
    yield of_comparison(row, "S1", "one step", comparison, fails=True, silent=ONE_STEP_ONLY)


def longer(row: AuditedRow) -> Iterator[AuditCheck]:
    """S2: twice the steps, again and again while that helps."""
    steps, comparison = row.steps, None
    for _ in range(row.scale.doublings):
        steps *= 2
        if comparison is not None and steps > MOST_STEPS:
            break
        last, search = comparison, partial(row.own, steps=steps)
        comparison = row.compare("S2", search, most=row.scale.repeated)
        if not comparison.beats or (last and len(comparison.rows) <= len(last.rows)):
            break
    if comparison is not None:
        told = f"the attack with {steps} steps"
        yield of_comparison(row, "S2", told, comparison, fails=False)


def restarts(row: AuditedRow) -> Iterator[AuditCheck]:
    """S3: the row's attack from more starts."""
    now = getattr(row.evaluation.attack.plugin.params, "restarts", None)
    more = row.scale.restarts + (now if isinstance(now, int) else 0)
    attack = row.variant(restarts=more)
    if now is None or attack is None:
        yield not_applicable("S3", "the attack has no restarts")
        return
    comparison = row.compare("S3", partial(row.run, attack), most=row.scale.repeated)
    yield of_comparison(row, "S3", f"the attack with {more} starts", comparison, fails=False)


def larger_eps(row: AuditedRow) -> Iterator[AuditCheck]:
    """S4: the row's attack under other eps. A larger ball holds the smaller one."""
    most = _UNBOUNDED[row.threat.norm](row.images[0].numel())
    every = np.arange(len(row))
    broken: dict[float, Bools] = {1.0: row.share <= 0.5}
    for factor in row.scale.eps:
        eps = min(factor * row.threat.eps, most)
        points = row.own(every, threat=ThreatModel(row.threat.norm, eps))
        judged = row.judged(points, every).mean(1)
        if factor < 1:
            row.offer("S4", points, every)
        broken[factor] = judged <= 0.5
    order = sorted(broken)
    shares = ", ".join(f"{100 * (1 - broken[f].mean()):.1f} at {f:g} eps" for f in order)
    for smaller, larger in pairwise(order):
        if beats(broken[smaller], broken[larger]):
            only = np.flatnonzero(broken[smaller] & ~broken[larger])
            told = f"left of the audited images: {shares}; the smaller ball is broken more often"
            yield checked("S4", "fail", told, value=float(len(only)), images=row.ids_at(only))
            return
    at, wide = 1 - broken[1.0].mean(), 1 - broken[order[-1]].mean()
    fall = float(at - wide)
    flat = order[-1] > 1 and at > FLAT_ABOVE and fall < FLAT
    # Where next to nothing is broken, a tiny eps looks the same as a hidden gradient.
    bites = at < 1 - FLAT_BELOW
    told = f"left of the audited images: {shares}"
    yield checked("S4", graded(fail=flat and bites, warn=flat), told, value=fall, threshold=FLAT)


def unbounded(row: AuditedRow) -> Iterator[AuditCheck]:
    """S5: where all of the box is allowed, every image can become any other."""
    ball = ThreatModel(row.threat.norm, _UNBOUNDED[row.threat.norm](row.images[0].numel()))
    every = row.sample(np.arange(len(row)), row.scale.repeated)
    changes: dict[str, object] = {"random_start": False}
    start = changes if row.variant(**changes) is not None else None
    points = row.own(every, threat=ball, changes=start)
    stays = every[row.judged(points, every).mean(1) > 0.5]
    own = len(stays) / len(every)
    if len(stays):
        asked = row.victim(stays)
        at = torch.as_tensor(stays, device=row.images.device)
        rows = torch.arange(len(stays), device=row.images.device)
        done = margin_steps(
            asked, row.images[at], row.labels[at], rows, ball, steps=row.scale.margin
        )
        stays = stays[row.judged(done.points, stays).mean(1) > 0.5]
    share, classes = len(stays) / len(every), row.record.outcomes.num_classes
    # A constant answer is right on one image in K.
    constant = 1 / classes
    limit = constant + 3 * math.sqrt(constant * (1 - constant) / len(every))
    told = (
        f"without a bound the row's attack leaves {100 * own:.1f} % of {len(every)} images, steps "
        f"on the margin {100 * share:.1f} %; a constant answer {100 * constant:.1f} %"
    )
    verdict = graded(fail=share > limit, warn=share > 0)
    yield checked("S5", verdict, told, value=share, threshold=limit, images=row.ids_at(stays))


def more_draws(row: AuditedRow) -> Iterator[AuditCheck]:
    """S10: more draws a step, and one draw a step with as many gradients."""
    randomness = row.evaluation.randomness
    if not row.defended.stochastic or randomness.has_fixed_noise:
        yield not_applicable("S10", "the attack draws nothing afresh")
        return
    k = max(2 * randomness.k, 20)
    eot = RandomnessModel("eot", k, randomness.average)
    comparison = row.compare("S10", partial(row.own, randomness=eot), most=row.scale.searched)
    told = f"the attack with {k} draws a step"
    yield of_comparison(row, "S10", told, comparison, fails=False)


def other_gradients(row: AuditedRow) -> Iterator[AuditCheck]:
    """S12: the row's attack with each other gradient that the defense offers."""
    used = gradient_name(row.evaluation.gradient)
    others = [name for name in row.defended.gradients if name != used]
    if not others:
        yield not_applicable("S12", "the defense offers no other gradient")
        return
    best: tuple[str, Comparison] | None = None
    for name in others:
        found = row.compare("S12", partial(row.own, gradient=name), most=row.scale.repeated)
        if best is None or len(found.rows) > len(best[1].rows):
            best = name, found
    assert best is not None
    told = f"the attack with gradient {best[0]}"
    yield of_comparison(row, "S12", told, best[1], fails=used == "full")


def _one_after_another(
    row: AuditedRow, searches: Sequence[Callable[[Rows], Tensor]], rows: Rows
) -> Tensor:
    """Points (m, C, H, W) of rows (m,): each search works on what the earlier ones left, and the
    image itself stands where none broke it.
    """
    points, open_ = row.images[rows].clone(), np.arange(len(rows))
    for search in searches:
        if not len(open_):
            break
        candidates = search(rows[open_])
        broken = row.judged(candidates, rows[open_]).mean(1) <= 0.5
        points[open_[broken]] = candidates[broken]
        open_ = open_[~broken]
    return points


def other_losses(row: AuditedRow) -> Iterator[AuditCheck]:
    """S13: plain ascent on each loss, and on the margins of the likeliest wrong classes."""
    searches = {
        name: partial(row.ascent, loss=loss, steps=row.steps) for name, loss in LOSSES.items()
    }

    tried = [*searches.values(), *_aimed(row, min(3, row.scale.targets))]
    search = partial(_one_after_another, row, tried)
    comparison = row.compare("S13", search, most=row.scale.repeated)
    told = f"ascent on {', '.join(searches)} and on the margins of three classes"
    yield of_comparison(row, "S13", told, comparison, fails=False, gain=MASKED_GAIN)


def every_target(row: AuditedRow) -> Iterator[AuditCheck]:
    """S18: aimed at each wrong class in turn."""
    aimed = _aimed(row, row.scale.targets)

    search = partial(_one_after_another, row, aimed)
    comparison = row.compare("S18", search, most=row.scale.repeated)
    told = f"ascent towards {len(aimed)} classes"
    yield of_comparison(row, "S18", told, comparison, fails=False)


def _aimed(row: AuditedRow, targets: int) -> list[partial[Tensor]]:
    """A search towards each of an image's likeliest wrong classes."""
    every = np.arange(len(row))
    rows = torch.arange(len(row), device=row.images.device)
    logits = row.victim(every).logits(row.images, rows, Query()).mean(1)
    wrong = logits.scatter(1, row.labels[:, None], -torch.inf)
    order = wrong.argsort(1, descending=True)
    count = min(targets, logits.shape[1] - 1)
    loss = towards(margin)
    return [
        partial(row.ascent, loss=loss, steps=row.steps, targets=order[:, place])
        for place in range(count)
    ]
