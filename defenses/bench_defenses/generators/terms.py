"""The terms of a generator's loss: one table, each a scalar to minimise, over inputs that run a
network only when asked.

x is a batch of generated images, y the classes that the generator is asked for, T the classifier, S
the student. Both are frozen and in evaluation mode, but for the BatchNorm layers of a student that
the plan gives the batch's statistics.
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
from bench.noise import Noise
from bench_defenses.adversarial.objectives import Match, l1_centred
from bench_defenses.adversarial.training_step import logits_of, unused_noise
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
            # Truong et al. 2021: a forward difference along a random unit direction.
            slope = (value(at + self.step * unit) - base) / self.step
            total += slope.reshape(-1, *[1] * (at.dim() - 1)) * unit
        return base, total * (dimensions / self.m)


@dataclass
class GeneratedBatch:
    """A batch as a generator made it.

    Attributes:
        logits: of the pixels, (n, C, H, W), with the generator's graph.
        labels: the classes that it was asked for, (n,).
        noise: the batch's, a row an image.
        teacher_logits: T(x) (n, K) without gradient, once it is known.
    """

    logits: Tensor
    labels: Tensor
    noise: Noise
    teacher_logits: Tensor | None = None

    @cached_property
    def images(self) -> Tensor:
        """(n, C, H, W) in [0, 1], with the generator's graph."""
        return pixels(self.logits)


@dataclass
class TermInputs:
    """What the terms read of a batch. Each network runs once, and only when asked for, so that its
    passes count what is needed.

    Attributes:
        batch: the generated one.
        classifier, student: T and S, frozen.
        objective: the student's; some generators work against its measure.
        measure: of BatchNorm's inputs; None where no term reads them.
        estimator: takes the place of the gradient through T and S in `compare`; None for the
            gradient itself.
    """

    batch: GeneratedBatch
    classifier: DefendedClassifier
    student: DefendedClassifier
    objective: Match
    measure: Measure | None = None
    estimator: ZerothOrder | None = None
    gaps: list[Tensor] = field(default_factory=list)

    @cached_property
    def teacher_logits(self) -> Tensor:
        """T(x) with gradient; on the way `gaps` gets the measure of each BatchNorm layer."""
        images = self.batch.images
        if self.measure is None:
            logits: Tensor = self.classifier(images, unused_noise(images))
        else:
            with gaps(self.classifier, self.measure) as layer_gaps:
                logits = self.classifier(images, unused_noise(images))
            self.gaps += layer_gaps
        self.batch.teacher_logits = logits.detach()
        return logits

    @cached_property
    def student_logits(self) -> Tensor:
        """S(x) with gradient."""
        images = self.batch.images
        logits: Tensor = self.student(images, unused_noise(images))
        return logits

    @property
    def constant_teacher_logits(self) -> Tensor:
        """T(x) without gradient."""
        if self.batch.teacher_logits is None:
            self.batch.teacher_logits = logits_of(self.classifier, self.batch.images.detach())
        return self.batch.teacher_logits

    def compare(self, distance: Distance) -> Tensor:
        """The mean distance between T(x) and S(x), with its gradient to the images or the estimate
        of it.
        """
        if self.estimator is None:
            return distance(self.teacher_logits, self.student_logits).mean()
        return self._estimated(distance, self.estimator)

    def _estimated(self, distance: Distance, estimator: ZerothOrder) -> Tensor:
        def value(logits: Tensor) -> Tensor:
            images = pixels(logits)
            return distance(logits_of(self.classifier, images), logits_of(self.student, images))

        at = self.batch.logits
        with torch.no_grad():
            values, gradient = estimator.gradient(value, at.detach(), self.batch.noise)
        # A function of the pixels' logits with this value and this gradient.
        tangent = (gradient * (at - at.detach())).flatten(1).sum(1)
        return (values + tangent).mean()


def squared_gap(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Mean over channels of (m - M)^2 and of (v - V)^2, added: GDFQ's measure; v is biased."""
    v, m = torch.var_mean(inputs, (0, *range(2, inputs.dim())), correction=0)
    return F.mse_loss(m, mean) + F.mse_loss(v, variance)


MEASURES: dict[str, Measure] = {"bn_l2": statistics_gap, "bn_mse": squared_gap}
"""The terms that read BatchNorm's inputs, and how they measure a layer."""


def _agreement(inputs: TermInputs) -> Tensor:
    """exp(-m(T(x), S(x))) of the student's own measure, in (0, 1]; the gradient flows through S
    alone.
    """
    return torch.exp(-inputs.objective.match(inputs.constant_teacher_logits, inputs.student_logits))


def _student_class(inputs: TermInputs) -> Tensor:
    """CE(S(x), y)."""
    return F.cross_entropy(inputs.student_logits, inputs.batch.labels)


def _teacher_class(inputs: TermInputs) -> Tensor:
    """CE(T(x), y)."""
    return F.cross_entropy(inputs.teacher_logits, inputs.batch.labels)


def _closeness_l1(inputs: TermInputs) -> Tensor:
    """-mean |S(x) - v(x)| (DFME, Truong et al. 2021)."""
    return -inputs.compare(l1_centred)


def _closeness_kl(inputs: TermInputs) -> Tensor:
    """-KL(T(x) || S(x))."""
    return -inputs.compare(kl)


def _layers_sum(inputs: TermInputs) -> Tensor:
    """Sum over BatchNorm layers of |m - M| + |v - V|."""
    assert len(inputs.teacher_logits)
    return torch.stack(inputs.gaps).sum()


def _layers_mean(inputs: TermInputs) -> Tensor:
    """Mean over BatchNorm layers of their squared gaps."""
    assert len(inputs.teacher_logits)
    return torch.stack(inputs.gaps).mean()


TERMS: dict[str, Callable[[TermInputs], Tensor]] = {
    "agreement": _agreement,
    "student_class": _student_class,
    "teacher_class": _teacher_class,
    "closeness_l1": _closeness_l1,
    "closeness_kl": _closeness_kl,
    "bn_l2": _layers_sum,
    "bn_mse": _layers_mean,
}
"""Terms by name."""


def measure_of(terms: Mapping[str, float]) -> Measure | None:
    """How these terms measure BatchNorm's inputs."""
    return next((MEASURES[name] for name in terms if name in MEASURES), None)
