"""What a generator wants: one table of terms, each a scalar to minimise, over a context that runs a
network only when asked.

x is a batch of generated images, y the classes that the generator was told to make, T the
classifier, S the student. Both are frozen and in evaluation mode, but for the BatchNorm layers of a
student that the plan shows with the batch's statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.defense import DefendedClassifier
from bench.losses import kl
from bench.noise import Noise, Stream
from bench_defenses.adversarial.objectives import Match, l1_centred
from bench_defenses.adversarial.visits import answers
from bench_defenses.datafree.synthesis import gaps, statistics_gap
from bench_defenses.generators.nets import pixels

Distance = Callable[[Tensor, Tensor], Tensor]
"""(T(x), S(x)), logits (n, K) both, to one value an image (n,)."""

Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(inputs (n, C, ...) of a BatchNorm layer, its running mean (C,) and variance (C,)) to a scalar.
"""


@dataclass(frozen=True)
class ZerothOrder:
    """A gradient estimated from values alone: finite differences in random directions (Truong et
    al. 2021, arXiv 2011.14779).

    g = (d / m) sum of (l(a + step u) - l(a)) / step u over m directions u, uniform on the unit
    sphere; a are the d logits of an image's pixels.

    Attributes:
        m: directions.
        step: length of the difference.
    """

    m: int
    step: float

    def gradient(
        self, value: Callable[[Tensor], Tensor], at: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Values (n,) at `at` (n, ...), and the estimated gradient of each; `noise` has a row an
        image.
        """
        dimensions = at[0].numel()
        base = value(at)
        total = torch.zeros_like(at)
        for number in range(self.m):
            normal = noise.normal(f"direction{number}", tuple(at.shape[1:]))
            unit = normal / normal.flatten(1).norm(dim=1).reshape(-1, *[1] * (at.dim() - 1))
            slope = (value(at + self.step * unit) - base) / self.step
            total += slope.reshape(-1, *[1] * (at.dim() - 1)) * unit
        return base, total * (dimensions / self.m)


@dataclass
class Made:
    """A batch as a generator made it.

    Attributes:
        logits: of the pixels, (n, C, H, W), with the generator's graph.
        labels: the classes that it was told, (n,).
        noise: the batch's, a row an image.
        teacher: T(x) (n, K) without gradient, once it is known.
    """

    logits: Tensor
    labels: Tensor
    noise: Noise
    teacher: Tensor | None = None

    @cached_property
    def images(self) -> Tensor:
        """(n, C, H, W) in [0, 1], with the generator's graph."""
        return pixels(self.logits)


@dataclass
class Context:
    """What the terms may read of a batch. Each network runs once, and only when asked for, so that
    its passes count what is needed.

    Attributes:
        made: the batch.
        classifier, learner: T and S, frozen.
        objective: the student's; some generators work against its measure.
        measure: of BatchNorm's inputs; None where no term reads them.
        estimator: takes the place of the gradient through T and S in `compare`; None for the
            gradient itself.
    """

    made: Made
    classifier: DefendedClassifier
    learner: DefendedClassifier
    objective: Match
    measure: Measure | None = None
    estimator: ZerothOrder | None = None
    gaps: list[Tensor] = field(default_factory=list)

    @cached_property
    def teacher(self) -> Tensor:
        """T(x) with gradient; on the way `gaps` gets the measure of each BatchNorm layer."""
        if self.measure is None:
            logits: Tensor = self.classifier(self.made.images, self._silent)
        else:
            with gaps(self.classifier, self.measure) as found:
                logits = self.classifier(self.made.images, self._silent)
            self.gaps += found
        self.made.teacher = logits.detach()
        return logits

    @cached_property
    def student(self) -> Tensor:
        """S(x) with gradient."""
        logits: Tensor = self.learner(self.made.images, self._silent)
        return logits

    @property
    def answers(self) -> Tensor:
        """T(x) without gradient."""
        if self.made.teacher is None:
            self.made.teacher = answers(self.classifier, self.made.images.detach())
        return self.made.teacher

    def compare(self, distance: Distance) -> Tensor:
        """The mean distance between T(x) and S(x), with its gradient to the images or the estimate
        of it.
        """
        if self.estimator is None:
            return distance(self.teacher, self.student).mean()
        return self._estimated(distance, self.estimator)

    def _estimated(self, distance: Distance, estimator: ZerothOrder) -> Tensor:
        def value(logits: Tensor) -> Tensor:
            images = pixels(logits)
            return distance(answers(self.classifier, images), answers(self.learner, images))

        at = self.made.logits
        with torch.no_grad():
            values, gradient = estimator.gradient(value, at.detach(), self.made.noise)
        # A function of the pixels' logits with this value and this gradient.
        tangent = (gradient * (at - at.detach())).flatten(1).sum(1)
        return (values + tangent).mean()

    @property
    def _silent(self) -> Noise:
        """Deterministic networks ignore their noise."""
        return Noise.of(
            0, Stream.BUILD, range(len(self.made.labels)), device=self.made.logits.device
        )


def squared_gap(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Mean over channels of (m - M)^2 and of (v - V)^2, added: GDFQ's measure; v is biased."""
    v, m = torch.var_mean(inputs, (0, *range(2, inputs.dim())), correction=0)
    return F.mse_loss(m, mean) + F.mse_loss(v, variance)


MEASURES: dict[str, Measure] = {"bn_l2": statistics_gap, "bn_mse": squared_gap}
"""The terms that read BatchNorm's inputs, and how they measure a layer."""


def _agreement(context: Context) -> Tensor:
    """exp(-m(T(x), S(x))) of the student's own measure, in (0, 1]; the gradient flows through S
    alone.
    """
    return torch.exp(-context.objective.match(context.answers, context.student))


def _student_class(context: Context) -> Tensor:
    """CE(S(x), y)."""
    return F.cross_entropy(context.student, context.made.labels)


def _teacher_class(context: Context) -> Tensor:
    """CE(T(x), y)."""
    return F.cross_entropy(context.teacher, context.made.labels)


def _closeness_l1(context: Context) -> Tensor:
    """-mean |S(x) - v(x)|."""
    return -context.compare(l1_centred)


def _closeness_kl(context: Context) -> Tensor:
    """-KL(T(x) || S(x))."""
    return -context.compare(kl)


def _layers_sum(context: Context) -> Tensor:
    """Sum over BatchNorm layers of |m - M| + |v - V|."""
    assert len(context.teacher)
    return torch.stack(context.gaps).sum()


def _layers_mean(context: Context) -> Tensor:
    """Mean over BatchNorm layers of their squared gaps."""
    assert len(context.teacher)
    return torch.stack(context.gaps).mean()


TERMS: dict[str, Callable[[Context], Tensor]] = {
    "agreement": _agreement,
    "student_class": _student_class,
    "teacher_class": _teacher_class,
    "closeness_l1": _closeness_l1,
    "closeness_kl": _closeness_kl,
    "bn_l2": _layers_sum,
    "bn_mse": _layers_mean,
}
"""The table."""


def measure_of(terms: Mapping[str, float]) -> Measure | None:
    """How these terms measure BatchNorm's inputs."""
    return next((MEASURES[name] for name in terms if name in MEASURES), None)
