"""Images out of a frozen classifier: from noise, through its class loss, its BatchNorm statistics
and total variation.

DataFreeShield (Lee et al., ICML 2024), whose synthesis is DeepInversion's (Yin et al., CVPR 2020)
with coefficients drawn anew for each batch. A batch is a pure function of classifier, recipe, seed
and its number, so batches can be made in any order and place.

An image's variable is its network input, a pixel or a logit of a pixel (`SynthesisRecipe.space`).
The losses are always those of the network input: the pixels minus the classifier's mean, over its
standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bench.defense import DefendedClassifier
from bench.errors import BadInput, one_line
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, Noise, Stream

TV_WEIGHT, TV_BATCH = 2.5e-5, 250
"""The weight of L_tv (a_tv), for batches of this size: L_tv grows with the root of the size. Class
loss and BatchNorm statistics weigh 1 (a_cls = a_bn = 1).
"""

PUBLISHED_STEP = 0.1
"""Adam's step size on the network input, as published."""

UNSTATED_SPREAD = 0.2
"""The deviation of pixels, about that of CIFAR-10, where a classifier does not say by what it
divides them.
"""

Coefficient = Literal["fixed", "dss", "linear"]
Targets = Literal["per_batch", "balanced", "uniform"]
Space = Literal["normalised", "pixels", "sigmoid"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class SynthesisRecipe:
    """How images are made; every field changes them.

    Attributes:
        images, batch, iterations: how many, how many at once, Adam's steps on a batch.
        rate: Adam's step size in the units of `space`, constant; None: the first of `step_sizes`.
        coefficients: of class loss and BatchNorm statistics. `fixed`: 1 each. `dss` (diversified
            sample synthesis): two numbers, uniform in [0, 1), drawn once a batch. `linear`: such a
            number, and 1 minus it.
        tv_random: whether total variation's coefficient is multiplied by a number in [0, 1) as
            well, as in the paper; the released code leaves it.
        targets: one class a batch in turn, all classes in turn within each batch, or a class at
            random for each image.
        space: what Adam moves. `normalised`: the network input, free, clamped to pixels in [0, 1]
            once at the end (as released). `pixels`: pixels, clamped after every step. `sigmoid`:
            logits of pixels.
        jitter: each iteration rolls the batch by up to so many pixels, up or down and left or
            right.
        keep: the iterate that is kept: the last one, or the one of the smallest loss without
            jitter.
        every: iterations between two readings of that loss.
    """

    images: int
    batch: int
    iterations: int
    rate: float | None = None
    coefficients: Coefficient = "dss"
    tv_random: bool = False
    targets: Targets = "per_batch"
    space: Space = "normalised"
    jitter: int = 2
    keep: Keep = "best"
    every: int = 50

    @property
    def batches(self) -> int:
        """Number of batches; the last one may be smaller."""
        return -(-self.images // self.batch)

    def rows(self, number: int) -> range:
        """The numbers of the images in a batch."""
        return range(number * self.batch, min((number + 1) * self.batch, self.images))


@dataclass(frozen=True)
class Coefficients:
    """Of one batch: of class loss, BatchNorm statistics and total variation."""

    cls: float
    bn: float
    tv: float


@dataclass(frozen=True)
class Losses:
    """The three terms before their coefficients, and the weighted sum."""

    cls: float
    bn: float
    tv: float
    total: float


@dataclass(frozen=True)
class SynthesisedBatch:
    """A batch of images that a classifier made.

    Attributes:
        images, labels, logits: (n, C, H, W) in [0, 1], the target classes (n,), and the
            classifier's answers (n, K) to the images.
        coefficients: that it was made with.
        losses: of the kept iterate, without jitter and before it was clamped.
        iteration: Adam's steps that led to it.
        clamped: share of the pixels that lay outside [0, 1].
        right_before, right_after: images of which the classifier gives the target, before and after
            clamping.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    coefficients: Coefficients
    losses: Losses
    iteration: int
    clamped: float
    right_before: int
    right_after: int


# Losses -------------------------------------------------------------------------------------------


def total_variation(images: Tensor) -> Tensor:
    """L_tv of a batch (n, C, H, W): the sum of the L2 norms, over the whole batch, of four
    differences between neighbours.

    The neighbours to the right, below, and on both diagonals. A channel [[1, 2], [3, 5]] has
    sqrt(5) + sqrt(13) + 1 + 4.
    """
    differences = (
        images[..., :, :-1] - images[..., :, 1:],
        images[..., :-1, :] - images[..., 1:, :],
        images[..., 1:, :-1] - images[..., :-1, 1:],
        images[..., :-1, :-1] - images[..., 1:, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(one) for one in differences]).sum()


def norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and layer.running_var is not None
    ]


class _Gap(torch.autograd.Function):
    """`statistics_gap` with its gradient written out: autograd's variance took more time than the
    convolutions.
    """

    @staticmethod
    def forward(context: Any, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        across, along = (1, -1, *(1,) * (inputs.dim() - 2)), (0, *range(2, inputs.dim()))
        count = inputs.numel() // inputs.shape[1]
        # About M, so that the difference of the two moments does not cancel.
        centred = inputs - mean.view(across)
        shift = centred.mean(along)
        excess = centred.square_().mean(along) - shift.square() - variance
        far, off = torch.linalg.vector_norm(excess), torch.linalg.vector_norm(shift)
        slope = 2 * _unit(excess, far) / count
        constant = _unit(shift, off) / count - slope * (mean + shift)
        context.save_for_backward(inputs, slope.view(across), constant.view(across))
        gap: Tensor = far + off
        return gap

    @staticmethod
    @once_differentiable
    def backward(context: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        inputs, slope, constant = context.saved_tensors
        return torch.addcmul(above[0] * constant, above[0] * slope, inputs), None, None


def _unit(vector: Tensor, length: Tensor) -> Tensor:
    """The gradient of a vector's length: 0 where the length is."""
    return vector / torch.where(length > 0, length, 1)


def statistics_gap(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """One layer's term of L_bn: |v - V|_2 + |m - M|_2, not squared.

    Args:
        inputs: of the layer, (n, C, ...).
        mean, variance: M and V, its running statistics (C,). m and v are those of `inputs` by
            channel, v biased.
    """
    gap: Tensor = _Gap.apply(inputs, mean, variance)
    return gap


@contextmanager
def gaps(
    network: nn.Module, measure: Callable[[Tensor, Tensor, Tensor], Tensor] = statistics_gap
) -> Iterator[list[Tensor]]:
    """A list that every forward pass inside the block fills with one term of L_bn, or another
    measure, a BatchNorm layer.

    Clear it between passes.
    """
    terms: list[Tensor] = []

    def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        terms.append(measure(inputs[0], layer.running_mean, layer.running_var))

    handles = [layer.register_forward_pre_hook(hook) for layer in norm_layers(network)]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()


# What is drawn ------------------------------------------------------------------------------------


def draw_coefficients(recipe: SynthesisRecipe, noise: Noise, size: int) -> Coefficients:
    """The coefficients of one batch of `size` images; `noise` is the batch's, one row."""
    tv = TV_WEIGHT * (TV_BATCH / size) ** 0.5
    if recipe.tv_random:
        tv *= float(noise.uniform("tv"))
    if recipe.coefficients == "fixed":
        return Coefficients(1.0, 1.0, tv)
    # Lee et al. 2024, eq. 8: every coefficient ~ U(0, 1), drawn anew for each batch.
    cls = float(noise.uniform("cls"))
    if recipe.coefficients == "linear":
        return Coefficients(cls, 1 - cls, tv)
    return Coefficients(cls, float(noise.uniform("bn")), tv)


def draw_targets(recipe: SynthesisRecipe, classes: int, number: int, rows: Noise) -> Tensor:
    """The classes (n,) that a batch aims at; `rows` is its images' noise."""
    if recipe.targets == "per_batch":
        return torch.full((len(rows),), number % classes, device=rows.device)
    if recipe.targets == "balanced":
        return torch.tensor(recipe.rows(number), device=rows.device) % classes
    return rows.integers("target", 0, classes)


def all_targets(recipe: SynthesisRecipe, classes: int, noise: BuildNoise) -> Tensor:
    """The target classes of all images (n,), on the CPU."""
    parts = [
        draw_targets(recipe, classes, k, noise.numbered("image", recipe.rows(k)))
        for k in range(recipe.batches)
    ]
    return torch.cat(parts).cpu()


def jitter_offsets(recipe: SynthesisRecipe, noise: BuildNoise, number: int) -> list[list[int]]:
    """By how many rows and columns each iteration rolls the batch."""
    steps = range(recipe.iterations)
    draws = noise.numbered("jitter", [number] * len(steps), steps)
    return (
        (draws.uniform("offset", (2,)) * (2 * recipe.jitter + 1))
        .floor()
        .int()
        .sub(recipe.jitter)
        .tolist()
    )


# One batch ----------------------------------------------------------------------------------------


class Inversion:
    """The losses of a batch under synthesis. The variable is `z`, of the shape of the images."""

    def __init__(
        self,
        classifier: DefendedClassifier,
        gap_terms: list[Tensor],
        coefficients: Coefficients,
        labels: Tensor,
    ) -> None:
        self.classifier, self.gap_terms, self.labels = classifier, gap_terms, labels
        self.coefficients = coefficients
        self.mean, self.std = normalisation(classifier)
        # A deterministic classifier ignores its noise.
        self.unused = Noise.of(0, Stream.EVAL, range(len(labels)), device=labels.device)

    def terms(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_cls (n,), L_bn and L_tv of a batch of images."""
        self.gap_terms.clear()
        each = F.cross_entropy(self.classifier(pixels, self.unused), self.labels, reduction="none")
        # TV is of the network input u = (x - mean) / std, as are the losses of Lee et al. 2024.
        variation = total_variation((pixels - self.mean) / self.std)
        return each, torch.stack(self.gap_terms).sum(), variation

    def total(self, terms: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Their weighted sum."""
        each, gap, variation = terms
        weight = self.coefficients
        # L_synth = a_cls L_cls + a_bn L_bn + a_tv L_tv (Lee et al. 2024).
        return (weight.cls * each).mean() + weight.bn * gap + weight.tv * variation

    def losses(self, pixels: Tensor) -> Losses:
        """Of a batch of images, without gradient."""
        with torch.no_grad():
            each, gap, variation = self.terms(pixels)
            total = self.total((each, gap, variation))
        return Losses(float(each.mean()), float(gap), float(variation), float(total))

    def right(self, logits: Tensor) -> int:
        """Images of which the classifier gives the target."""
        return int((logits.argmax(1) == self.labels).sum())

    def logits(self, pixels: Tensor) -> Tensor:
        """The classifier's answers."""
        with torch.no_grad():
            logits: Tensor = self.classifier(pixels, self.unused)
        return logits


def synthesise(
    classifier: DefendedClassifier,
    shape: tuple[int, ...],
    recipe: SynthesisRecipe,
    number: int,
    noise: BuildNoise,
) -> SynthesisedBatch:
    """One batch.

    Args:
        classifier: deterministic, frozen, in evaluation mode, with BatchNorm layers; see
            `check_classifier`.
        shape: of an image, (C, H, W).
        recipe: how.
        number: of the batch, from 0.
        noise: of the synthesis, on the classifier's device.
    """
    rows = noise.numbered("image", recipe.rows(number))
    coefficients = draw_coefficients(recipe, noise.numbered("batch", [number]), len(rows))
    labels = draw_targets(recipe, classifier.num_classes, number, rows)
    with gaps(classifier) as gap_terms:
        inversion = Inversion(classifier, gap_terms, coefficients, labels)
        start = starting_point(recipe, rows, shape, inversion.mean, inversion.std)
        offsets = jitter_offsets(recipe, noise, number)
        z, losses, iteration = _descend(inversion, recipe, start, offsets)
        pixels = decoded(z, recipe.space, inversion.mean, inversion.std)
        return _finished(inversion, pixels, losses, iteration)


def _descend(
    inversion: Inversion, recipe: SynthesisRecipe, start: Tensor, offsets: list[list[int]]
) -> tuple[Tensor, Losses, int]:
    """Adam on the variable; the kept iterate, its losses, and how many steps led to it."""
    z = start.requires_grad_(True)
    rate = recipe.rate or step_sizes(recipe.space, inversion.std)[0]
    optimiser = torch.optim.Adam([z], lr=rate)
    kept: tuple[Tensor, Losses, int] | None = None
    for step, offset in enumerate(offsets, 1):
        pixels = decoded(torch.roll(z, offset, (2, 3)), recipe.space, inversion.mean, inversion.std)
        (z.grad,) = torch.autograd.grad(inversion.total(inversion.terms(pixels)), z)
        optimiser.step()
        if recipe.space == "pixels":
            z.data.clamp_(0, 1)
        if step == recipe.iterations or (recipe.keep == "best" and step % recipe.every == 0):
            losses = inversion.losses(
                decoded(z.detach(), recipe.space, inversion.mean, inversion.std)
            )
            if kept is None or recipe.keep == "last" or losses.total < kept[1].total:
                kept = z.detach().clone(), losses, step
    assert kept is not None
    return kept


def _finished(
    inversion: Inversion,
    pixels: Tensor,
    losses: Losses,
    iteration: int,
) -> SynthesisedBatch:
    images = pixels.clamp(0, 1)
    logits = inversion.logits(images)
    return SynthesisedBatch(
        images=images,
        labels=inversion.labels,
        logits=logits,
        coefficients=inversion.coefficients,
        losses=losses,
        iteration=iteration,
        clamped=float((pixels != images).float().mean()),
        right_before=inversion.right(inversion.logits(pixels)),
        right_after=inversion.right(logits),
    )


def starting_point(
    recipe: SynthesisRecipe, rows: Noise, shape: tuple[int, ...], mean: Tensor, std: Tensor
) -> Tensor:
    """The variable (n, C, H, W) at the start, one row of noise an image: N(0, 1) in the network
    input.

    Its pixels are clamped where they must lie in [0, 1]; the variable itself is N(0, 1) under
    `sigmoid`.
    """
    z = rows.normal("start", shape)
    return (z * std + mean).clamp(0, 1) if recipe.space == "pixels" else z


def decoded(z: Tensor, space: Space, mean: Tensor, std: Tensor) -> Tensor:
    """The pixels of a variable; under `normalised` they may lie outside [0, 1]."""
    if space == "normalised":
        return z * std + mean
    return z.sigmoid() if space == "sigmoid" else z


def step_sizes(space: Space, std: Tensor) -> tuple[float, ...]:
    """Adam's step sizes to choose from, in the units of `space`; the first one moves the network
    input by the published step.

    Args:
        space: what Adam moves. Of `sigmoid` it is 0.1 as well: a logit's step moves its pixel by a
            quarter of that at most.
        std: that the classifier divides pixels by, (1, C, 1, 1); all 1 where it does not say.
    """
    if space != "pixels":
        return (PUBLISHED_STEP,)
    # u = (x - mean) / std: a step of 0.1 in u is one of 0.1 std in x.
    spread = UNSTATED_SPREAD if bool((std == 1).all()) else float(std.mean())
    return PUBLISHED_STEP * spread, PUBLISHED_STEP


def normalisation(classifier: DefendedClassifier) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, C, 1, 1) with which a classifier normalises its images; 0 and
    1 where it does not say.
    """
    if isinstance(classifier, Classifier):
        return classifier.mean, classifier.std
    like = next(classifier.parameters())
    return like.new_zeros(1, 1, 1, 1), like.new_ones(1, 1, 1, 1)


def check_classifier(classifier: DefendedClassifier, shape: tuple[int, ...], noise: Noise) -> None:
    """Raise `BadInput` where images cannot be made out of this classifier."""
    if classifier.stochastic:
        raise BadInput(
            "images are made out of a deterministic classifier, but this one draws random numbers: "
            "give another"
        )
    if not norm_layers(classifier):
        raise BadInput(
            "images are made out of a classifier's BatchNorm statistics, but this one has no "
            "BatchNorm layer that keeps them: "
            "give a classifier with BatchNorm"
        )
    _check_shape(classifier, shape, noise)


def check_classes(recipe: SynthesisRecipe, classes: int, noise: BuildNoise) -> None:
    """Raise `BadInput` where a recipe would leave out a class."""
    counts = torch.bincount(all_targets(recipe, classes, noise), minlength=classes)
    if bool((counts == 0).any()):
        raise BadInput(
            f"class {int(counts.argmin())} would get no image ({recipe.images} images in batches "
            f"of {recipe.batch}, targets={recipe.targets}): give more images, smaller batches, or "
            "targets=balanced"
        )


def _check_shape(classifier: DefendedClassifier, shape: tuple[int, ...], noise: Noise) -> None:
    channels = normalisation(classifier)[0].shape[1]
    try:
        if channels not in (1, shape[0]):
            raise RuntimeError(f"it normalises {channels} channels")
        with torch.no_grad():
            classifier(torch.zeros(1, *shape, device=noise.device), noise)
    except Exception as error:
        raise BadInput(
            f"the classifier does not run on images of shape {shape} ({one_line(error)}): give one "
            "made for such images"
        ) from error
