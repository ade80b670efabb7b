"""S15: the binarization test (Zimmermann et al. 2022, arXiv 2206.13991), in our own words.

    for each image:
        inner points: the image plus noise; one boundary point: a random corner of the ball
        a linear head on the defense's features separates the two kinds
        so the corner is an adversarial example, by construction
        the row's own attack is run on the binary classifier: it has to find one, too

An attack that misses points that are known to be there says little where it finds none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.audit.limits import BINARIZED, BINARIZED_FAIL, EASY, LEAST_BINARIZED
from bench.audit.row import AuditedRow
from bench.audit.verdicts import checked, graded, not_applicable
from bench.defense import DefendedClassifier, Forward, gradient_name
from bench.engine.compute import judge
from bench.errors import BadInput
from bench.noise import Noise
from bench.randomness import Query
from bench.results.audit import AuditCheck
from bench.searches import random_points
from bench.victim import Victim

FEATURES = "features"
_INNER = 0.95
"""Radius of the inner points, in eps."""
_DRAWS = 4
"""Draws of each point where the defense is stochastic."""
_RANDOM_POINTS = 200


class _BinaryHead(DefendedClassifier):
    """A defense whose answer is a linear function of one of its views: 2 logits.

    Args:
        defended: the defense.
        view: which output is read.
        weight, bias: of the score, (d,) and a number; positive means the second class.
    """

    num_classes = 2
    weight: Tensor

    def __init__(
        self, defended: DefendedClassifier, view: str, weight: Tensor, bias: float
    ) -> None:
        super().__init__()
        self.defended, self.view, self.bias = defended, view, bias
        self.register_buffer("weight", weight)
        self.stochastic, self.gradients = defended.stochastic, defended.gradients
        self.tunable = defended.tunable

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """Logits (n, 2)."""
        return self.forward_pass()(images, noise)

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The score behind the defense's own gradient."""
        inner = self.defended.forward_pass(gradient, self.view)

        def forward(images: Tensor, noise: Noise) -> Tensor:
            score = inner(images, noise).flatten(1).float() @ self.weight + self.bias
            return torch.stack([-score / 2, score / 2], 1)

        return forward


@dataclass(frozen=True)
class _Task:
    """One image's binary classifier."""

    head: _BinaryHead
    place: int


def binarization(row: AuditedRow) -> Iterator[AuditCheck]:
    """S15: success of the row's own attack, and of random points, on planted tasks."""
    if gradient_name(row.evaluation.gradient) in row.defended.transfers:
        yield not_applicable("S15", "the attack sees another function than the defense")
        return
    rows = row.sample(np.arange(len(row)), row.scale.binarised)
    attacked = chance = tasks = 0
    missed: list[int] = []
    try:
        _check_setting(row)
        for place in rows:
            task = _task(row, int(place))
            if task is None:
                continue
            tasks += 1
            succeeded = _attacked(row, task)
            attacked += succeeded
            chance += _by_chance(row, task)
            if not succeeded:
                missed.append(int(place))
    except BadInput as error:
        yield not_applicable("S15", f"the attack takes no two classes ({error})")
        return
    if tasks < LEAST_BINARIZED:
        yield not_applicable("S15", f"a linear head separates the points of {tasks} images only")
        return
    share, by_chance = attacked / tasks, chance / tasks
    told = (
        f"of {tasks} planted adversarial points the attack finds {100 * share:.0f} %, "
        f"{_RANDOM_POINTS} random points {100 * by_chance:.0f} %"
    )
    if by_chance > EASY:
        yield not_applicable("S15", f"{told}: the tasks are too easy to tell")
        return
    verdict = graded(fail=share < BINARIZED_FAIL, warn=share < BINARIZED)
    yield checked("S15", verdict, told, value=share, threshold=BINARIZED, images=row.ids_at(missed))


def _check_setting(row: AuditedRow) -> None:
    """Raise `BadInput` where the row's attack refuses two classes."""
    # No base answers the planted question.
    two = replace(row.evaluation.setting, num_classes=2, has_base=False)
    row.evaluation.attack.plugin.check(two)


def _task(row: AuditedRow, place: int) -> _Task | None:
    """The binary classifier of one image; None where no linear head separates its points."""
    here = np.array([place])
    asked = row.victim(here, gradient="full")
    view = FEATURES if FEATURES in asked.views else "logits"
    image, inner = row.images[place : place + 1], row.scale.inner
    noise = asked.random(torch.zeros(1, dtype=torch.int64, device=image.device)).at("binarization")
    points = torch.cat([_points(row, image, noise, inner), _corner(row, image, noise)])
    features = _features(asked, points, view)
    solution = _separated(features.cpu().numpy().astype(np.float64))
    if solution is None:
        return None
    weight, bias = solution
    tensor = torch.as_tensor(weight, dtype=torch.float32, device=image.device)
    return _Task(_BinaryHead(row.defended, view, tensor, bias).eval(), place)


def _points(row: AuditedRow, image: Tensor, noise: Noise, count: int) -> Tensor:
    """Inner points: in the ball of radius _INNER eps, clipped to the box; half of them uniform,
    half at its corners, so that it is no mere length that tells the planted point from them.
    """
    shape = (count, *image.shape[1:])
    images = image.expand(shape)
    uniform, normal = noise.uniform("inner", shape)[0], noise.normal("inner", shape)[0]
    corner = (torch.arange(count, device=image.device) % 2).bool().reshape(-1, 1, 1, 1)
    outer = (uniform >= 0.5).to(uniform.dtype) if row.threat.norm == "linf" else 1.0
    moved = row.threat.random(images, torch.where(corner, outer, uniform), normal)
    return images + _INNER * (moved - images)


def _corner(row: AuditedRow, image: Tensor, noise: Noise) -> Tensor:
    """The boundary point: a random corner of the ball, at distance eps where the box allows."""
    shape = tuple(image.shape[1:])
    signs = (noise.uniform("corner", shape) >= 0.5).to(image.dtype)
    radius = signs if row.threat.norm == "linf" else torch.ones_like(signs)
    return row.threat.random(image, radius, noise.normal("corner", shape))


def _features(asked: Victim, points: Tensor, view: str) -> Tensor:
    """Features of the points, (points, draws, d), under several draws where the defense is
    stochastic.
    """
    rows = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    queries = _DRAWS if asked.stochastic and not asked.fixed else 1
    drawn = [asked.logits(points, rows, Query(0, draw), view) for draw in range(queries)]
    return torch.cat(drawn, 1).flatten(2)


def _separated(
    features: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], float] | None:
    """Weight and bias of a logistic regression that tells the last of the points (n, draws, d) from
    all others, scaled so that its scores span 1; None where it makes an error.

    The boundary lies close before the planted point: halfway, other corners of the ball would lie
    behind it as well, and random points would find them.
    """
    from scipy.optimize import minimize

    n, draws, d = features.shape
    flat = features.reshape(-1, d)
    if not np.isfinite(flat).all():
        return None
    mean, spread = flat.mean(0), flat.std(0)
    spread = np.where(spread > _SPREAD * max(float(spread.max()), 1e-30), spread, np.inf)
    scaled = (flat - mean) / spread
    side = np.repeat(np.where(np.arange(n) == n - 1, 1.0, -1.0), draws)
    # Both kinds weigh alike, though one is a single point.
    weigh = np.where(side > 0, 0.5 / draws, 0.5 / (draws * (n - 1)))

    def loss(solution: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weight, bias = solution[:-1], solution[-1]
        margins = side * (scaled @ weight + bias)
        slope = -weigh * side / (1 + np.exp(np.clip(margins, -500, 500)))
        value = float((weigh * np.logaddexp(0, -margins)).sum() + _RIDGE * weight @ weight)
        return value, np.append(slope @ scaled + 2 * _RIDGE * weight, slope.sum())

    done = minimize(loss, np.zeros(d + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    scores = scaled @ done.x[:-1]
    span = float(scores.max() - scores.min())
    inner, planted = float(scores[side < 0].max()), float(scores[side > 0].min())
    if span == 0 or inner >= planted:
        return None
    boundary = inner + _CLOSE * (planted - inner)
    weight = done.x[:-1] / spread / span
    return weight, float(-boundary / span - weight @ mean)


_SPREAD, _RIDGE = 1e-6, 1e-6
_CLOSE = 0.9
"""How far the boundary lies on the way from the inner points to the planted one."""


def _attacked(row: AuditedRow, task: _Task) -> bool:
    """Whether the row's own attack leaves the image wrong on most of the judge's draws."""
    here = np.array([task.place])
    asked = row.victim(here, defended=task.head)
    image = row.images[task.place : task.place + 1]
    label = torch.zeros(1, dtype=torch.int64, device=image.device)
    points = row.evaluation.attack.plugin(asked, image, label, row.threat).points
    answers = judge(task.head, points, row.ids[here], row.evaluation, row.execution)
    return bool((answers != 0).double().mean() >= 0.5)


def _by_chance(row: AuditedRow, task: _Task) -> bool:
    """Whether one of some random points of the ball is wrong."""
    asked = row.victim(np.array([task.place]), defended=task.head, gradient="full")
    image = row.images[task.place : task.place + 1]
    label, first = (torch.zeros(1, dtype=torch.int64, device=image.device) for _ in range(2))
    done = random_points(asked, image, label, first, row.threat, points=_RANDOM_POINTS)
    return bool(done.success[0])
