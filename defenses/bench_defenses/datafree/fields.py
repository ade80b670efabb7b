"""Images out of a frozen classifier without gradients: random fields, drawn again and again towards
its BatchNorm statistics.

An extension, not the synthesis of DataFreeShield. The images come from a procedural distribution: a
smooth Gaussian field, cut at a level or to a band, inside an elliptical window, between two random
colours. Of all distributions of images under which the inputs of the BatchNorm layers have the
moments of the running statistics, and all classes are equally frequent, the one nearest to the
procedural one (in relative entropy) weighs each image by exp(-features . multipliers) (Csiszar
1975, Annals of Probability 3, theorem 3.1). A population is weighted so, drawn anew by its weights
and moved a little, several times over (population Monte Carlo, Cappe et al. 2004, Journal of
Computational and Graphical Statistics 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bench.defense import DefendedClassifier
from bench.noise import BuildNoise, Noise, Stream
from bench_defenses.datafree.synthesis import gaps, norm_layers

SHARED = 10
"""Traits of an image beside its two colours."""

_PART = 500
_MARGIN = 12
_FARTHEST = 20.0
_RIDGES = [300 / 3**power for power in range(10)]


@dataclass(frozen=True)
class FieldRecipe:
    """How images are made; every field changes them.

    Attributes:
        images: size of the population, all of which is kept.
        rounds: how often it is drawn; after the last time it is neither weighted nor moved.
        persistence: correlation of a field with the one that it comes from; after the first round
            fields are drawn afresh.
        move: standard deviation of the change of a trait in [0, 1]; each changes with probability
            1/2.
        effective: the weights' effective sample size, sum(w)^2 / sum(w^2), is at least this share
            of the population.
    """

    images: int
    rounds: int = 9
    persistence: float = 0.9
    move: float = 0.12
    effective: float = 0.1


@dataclass(frozen=True)
class Population:
    """The images of the last round.

    Attributes:
        images, logits: (n, C, H, W) in [0, 1] and the classifier's answers (n, K), on the
            classifier's device.
        effective: effective sample size in each round but the last, as a share.
        gap_first, gap_last: L_bn of the first and the last population, in batches of 500: the
            layers' sums of |v - V| + |m - M|.
    """

    images: Tensor
    logits: Tensor
    effective: tuple[float, ...]
    gap_first: float
    gap_last: float


def draw_population(
    classifier: DefendedClassifier,
    shape: tuple[int, ...],
    recipe: FieldRecipe,
    noise: BuildNoise,
    report: Callable[[int], None],
) -> Population:
    """The images of a classifier.

    Args:
        classifier: deterministic, frozen, in evaluation mode, with BatchNorm layers.
        shape: of an image, (C, H, W).
        recipe: how.
        noise: only its identity matters.
        report: called after each round, numbered from 1.
    """
    reader = _Reader(classifier)
    first = _round_noise(recipe, noise, 0)
    traits, white = (
        first.uniform("traits", (SHARED + 2 * shape[0],)),
        first.normal("white", canvas(shape)),
    )
    effective: list[float] = []
    gap: list[float] = []
    for number in range(1, recipe.rounds):
        weights = tilt(reader.features(traits, white, shape), recipe.effective * recipe.images)
        gap.append(reader.gap)
        effective.append(float(1 / weights.square().sum()) / recipe.images)
        draws = _round_noise(recipe, noise, number)
        chosen = resampled(weights, float(draws.uniform("comb")[0]))
        traits, white = moved(traits[chosen], white[chosen], recipe, draws, fresh=number == 1)
        report(number)
    images, logits = reader.look(traits, white, shape)
    gap.append(reader.gap)
    report(recipe.rounds)
    return Population(images, logits, tuple(effective), gap[0], gap[-1])


def _round_noise(recipe: FieldRecipe, noise: BuildNoise, number: int) -> Noise:
    return noise.numbered("population", range(recipe.images), number)


# Images -------------------------------------------------------------------------------------------


def canvas(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the white noise behind an image (C, H, W): a periodic field shows its
    wrapping within an image's size.
    """
    return shape[1] + _MARGIN, shape[2] + _MARGIN


def rendered(traits: Tensor, white: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (n, C, H, W) in [0, 1] of traits (n, 10 + 2C) in [0, 1] and white noise (n,
    *canvas(shape)).

    Traits: smoothness; slope and level of the cut; width and centre of the band; which of the two;
    centre and radii of the window; the two colours. A colour's channel is 0 and 1 with probability
    1/4 each.
    """
    channels, height, width = shape
    unit = traits[:, :, None, None].unbind(1)
    field = smoothed(white, _between(unit[0], 1 / 28, 4 / 28, log=True) * min(height, width))[
        :, :height, :width
    ]
    field = (field - field.mean((1, 2), keepdim=True)) / (field.std((1, 2), keepdim=True) + 1e-6)
    slope = _between(unit[1], 1, 8, log=True)
    cut = slope * (field - _between(unit[2], -0.5, 2)) + 0.5
    band = slope * (_between(unit[3], 0.1, 0.8) - (field - _between(unit[4], -1, 1)).abs()) + 0.5
    figure = torch.where(unit[5] < 0.5, cut, band).clamp(0, 1) * _window(
        unit[6:SHARED], height, width
    )
    ground, ink = (
        _between(part, -0.5, 1.5).clamp(0, 1)[:, :, None, None]
        for part in traits[:, SHARED:].split(channels, 1)
    )
    return ground + (ink - ground) * figure[:, None]


def smoothed(white: Tensor, sigma: Tensor) -> Tensor:
    """Periodic Gaussian blur of (n, h, w) by sigma pixels (n, 1, 1)."""
    height, width = white.shape[1:]
    down, across = (
        torch.fft.fftfreq(height, device=white.device),
        torch.fft.rfftfreq(width, device=white.device),
    )
    gain = torch.exp(-2 * math.pi**2 * sigma**2 * (down[:, None] ** 2 + across[None] ** 2))
    blurred: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(height, width))
    return blurred


def _between(unit: Tensor, low: float, high: float, log: bool = False) -> Tensor:
    if log:
        return torch.exp(_between(unit, math.log(low), math.log(high)))
    return low + (high - low) * unit


def _window(unit: tuple[Tensor, ...], height: int, width: int) -> Tensor:
    """1 inside an ellipse, 0 outside, (n, H, W); radii up to 1.5 times the image, so that some
    windows cover all of it.
    """
    y, x = (torch.linspace(-1, 1, size, device=unit[0].device) for size in (height, width))
    down = (y[None, :, None] - _between(unit[0], -0.2, 0.2)) / _between(unit[2], 0.3, 3, log=True)
    across = (x[None, None] - _between(unit[1], -0.2, 0.2)) / _between(unit[3], 0.3, 3, log=True)
    return ((1 - (down**2 + across**2).sqrt()) * 6 + 0.5).clamp(0, 1)


# Weights ------------------------------------------------------------------------------------------


def tilt(features: Tensor, wanted: float) -> Tensor:
    """Weights (n,), sum 1, next to equal ones in relative entropy, under which the mean of
    `features` (n, d) is about 0.

    w ~ exp(-features . multipliers), the multipliers minimising log mean exp(-features .
    multipliers) + ridge/100 |multipliers|^2; of a decreasing row of ridges the last one whose
    effective sample size is at least `wanted`, or the first.
    """
    multipliers = features.new_zeros(features.shape[1])
    weights = None
    for ridge in _RIDGES:
        multipliers = _dual(features, multipliers, ridge / 100)
        # Csiszar 1975, theorem 3.1: w ~ exp(-features . multipliers).
        tilted = torch.softmax(-(features @ multipliers), 0)
        # 1 / sum w^2 is the effective sample size.
        if weights is not None and 1 / tilted.square().sum() < wanted:
            break
        weights = tilted
    assert weights is not None
    return weights


def _dual(features: Tensor, start: Tensor, ridge: float) -> Tensor:
    point = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [point], max_iter=40, history_size=10, line_search_fn="strong_wolfe"
    )

    def close() -> Tensor:
        value = torch.logsumexp(-(features @ point), 0) + ridge * point.square().sum()
        (point.grad,) = torch.autograd.grad(value, point)
        return value

    optimiser.step(close)
    return point.detach()


def resampled(weights: Tensor, offset: float) -> Tensor:
    """Indices (n,) drawn by weights (n,): each n times its weight, to below 1.

    They are read off the cumulated weights by a comb of n teeth, the first at `offset` / n, offset
    in [0, 1).
    """
    count = len(weights)
    teeth = (torch.arange(count, dtype=torch.float64, device=weights.device) + offset) / count
    return torch.searchsorted(weights.double().cumsum(0), teeth, right=True).clamp_max(count - 1)


def moved(
    traits: Tensor, white: Tensor, recipe: FieldRecipe, noise: Noise, fresh: bool
) -> tuple[Tensor, Tensor]:
    """Traits changed a little, reflected at 0 and 1; fields partly redrawn, under which white noise
    stays white noise.
    """
    size = tuple(traits.shape[1:])
    change = recipe.move * noise.normal("change", size) * (noise.uniform("whether", size) < 0.5)
    kept = 0.0 if fresh else recipe.persistence
    # A Gaussian autoregression: variance kept^2 + (1 - kept^2) = 1.
    redrawn = kept * white + math.sqrt(1 - kept**2) * noise.normal("white", tuple(white.shape[1:]))
    return 1 - (1 - (traits + change).abs()).abs(), redrawn


# The classifier -----------------------------------------------------------------------------------


class _Reader:
    """What a classifier makes of images."""

    def __init__(self, classifier: DefendedClassifier) -> None:
        self.classifier, self.layers = classifier, norm_layers(classifier)
        self.gap = 0.0
        means, variances = ([_running(layer)[part] for layer in self.layers] for part in (0, 1))
        self.target = torch.cat(
            [torch.cat([m, v + m**2]) for m, v in zip(means, variances, strict=True)]
        )
        self.scale = (
            torch.cat(
                [torch.cat([v.sqrt(), v + m**2]) for m, v in zip(means, variances, strict=True)]
            )
            + 1e-12
        )

    def features(self, traits: Tensor, white: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(n, d): first and second moment of each channel that enters a BatchNorm layer, minus the
        running statistics', in units of their size; and twice the classifier's probabilities minus
        1/K.
        """
        parts: list[Tensor] = []
        with _Moments(self.layers) as moments:
            for _, logits in self._parts(traits, white, shape):
                far = ((moments.taken() - self.target) / self.scale).clamp(-_FARTHEST, _FARTHEST)
                parts.append(torch.cat([far, 2 * (logits.softmax(1) - 1 / logits.shape[1])], 1))
        return torch.cat(parts)

    def look(self, traits: Tensor, white: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Images and the classifier's logits."""
        images, logits = zip(*self._parts(traits, white, shape), strict=True)
        return torch.cat(images), torch.cat(logits)

    def _parts(
        self, traits: Tensor, white: Tensor, shape: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and logits part by part; the whole population's L_bn ends up in `gap`."""
        gap = 0.0
        with gaps(self.classifier) as terms, torch.no_grad():
            for part in torch.arange(len(traits), device=traits.device).split(_PART):
                terms.clear()
                images = rendered(traits[part], white[part], shape)
                logits = self._logits(images)
                gap += float(torch.stack(terms).sum()) * len(part) / len(traits)
                yield images, logits
        self.gap = gap

    def _logits(self, images: Tensor) -> Tensor:
        unused = Noise.of(0, Stream.EVAL, range(len(images)), device=images.device)
        logits: Tensor = self.classifier(images, unused)
        return logits


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var


class _Moments:
    """Inside the block: the moments by image of what enters the layers."""

    def __init__(self, layers: list[_BatchNorm]) -> None:
        self.layers = layers
        self.parts: list[Tensor] = []

    def __enter__(self) -> _Moments:
        self.handles = [layer.register_forward_pre_hook(self._hook) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, _: object, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].flatten(2) if inputs[0].dim() > 2 else inputs[0][:, :, None]
        self.parts.append(torch.cat([flat.mean(2), flat.square().mean(2)], 1))

    def taken(self) -> Tensor:
        """(n, d) of the last forward pass."""
        moments = torch.cat(self.parts, 1)
        self.parts.clear()
        return moments
