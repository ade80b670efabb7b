"""The pool of unlabelled test images that a defense may adapt on: which images, and how some of
them are attacked.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.data.dataset import ImageSet
from bench.defense import DefendedClassifier
from bench.errors import BadInput
from bench.losses import cross_entropy
from bench.maximise import Objective, Reading, ascend
from bench.models.training import device_of
from bench.noise import Noise, Stream
from bench.threat import ThreatModel
from bench.victim import frozen, predict

POOL_VERSION = 1
"""Raise it when the same test images may give another pool; it enters the identity of every result
that rests on one.
"""

STEPS = 20
_BATCH = 128


def outside(everything: ImageSet, evaluated: ImageSet) -> ImageSet:
    """The images of `everything` whose ids are not evaluated, in their order."""
    return everything.at(np.flatnonzero(~np.isin(everything.ids, evaluated.ids)))


def fill(
    free: ImageSet,
    evaluated: ImageSet,
    classifier: DefendedClassifier,
    threat: ThreatModel,
    seed: int,
    *,
    n: int,
    adversarial: float,
) -> Tensor:
    """The first `n` of the free test images, some of them attacked, in an order that does not show
    which: (n, C, H, W).

    The attacked ones are other images than the clean ones. They are attacked on the undefended
    classifier away from what it predicts on them, so that no label is used, by PGD of 20 steps that
    does not stop at a success.

    Args:
        free: test images that are not evaluated.
        evaluated: those that are.
        classifier: the undefended one.
        threat: the ball that the attacked images lie in.
        seed: root seed of starts and order.
        n: how many images.
        adversarial: share of them that is attacked, in [0, 1].

    Raises `BadInput` where there are too few images, and `ValueError` where an evaluated one is
    among the free.
    """
    if len(np.intersect1d(free.ids, evaluated.ids)):
        raise ValueError(
            "an evaluated image is among those for the pool: no defense may adapt on it"
        )
    if not 0 <= adversarial <= 1:
        raise BadInput(f"the adversarial share of the pool is {adversarial}: give 0 to 1")
    if not 1 <= n <= len(free):
        raise BadInput(
            f"a pool of {n} unlabelled test images was asked for, but {len(free)} are left beside "
            f"the {len(evaluated)} evaluated "
            "ones: evaluate fewer (--n), or ask for a smaller pool"
        )
    chosen = free.first(n)
    noise = Noise.of(seed, Stream.BUILD, chosen.ids, device=device_of(classifier)).at("pool")
    pixels, attacked = chosen.pixels(), round(adversarial * n)
    pixels = torch.cat(
        [
            attack(classifier, pixels[:attacked], threat, noise.rows(slice(0, attacked))),
            pixels[attacked:],
        ]
    )
    return pixels[noise.uniform("order").argsort(stable=True).to(pixels.device)]


def attack(
    classifier: DefendedClassifier,
    images: Tensor,
    threat: ThreatModel,
    noise: Noise,
    labels: Tensor | None = None,
    steps: int = STEPS,
) -> Tensor:
    """PGD on the cross-entropy of a classifier, all steps for every image: points (n, C, H, W) on
    the images' device.

    Args:
        classifier: in evaluation mode.
        images: (n, C, H, W).
        threat: ball and box.
        noise: one row an image, on the classifier's device.
        labels: int64 (n,); by default what the classifier predicts.
        steps: each of length 2.5 eps / steps, from a random point of the ball.
    """
    place = device_of(classifier)
    with frozen(classifier):
        batches = [
            _attack(
                classifier,
                images[i : i + _BATCH].to(place),
                threat,
                noise.rows(slice(i, i + _BATCH)),
                None if labels is None else labels[i : i + _BATCH].to(place),
                steps,
            )
            for i in range(0, len(images), _BATCH)
        ]
    return torch.cat([images[:0], *(points.to(images.device) for points in batches)])


def _attack(
    classifier: DefendedClassifier,
    images: Tensor,
    threat: ThreatModel,
    noise: Noise,
    labels: Tensor | None,
    steps: int,
) -> Tensor:
    if labels is None:
        with torch.no_grad():
            labels = predict(classifier(images, noise))
    shape = tuple(images.shape[1:])
    start = threat.random(images, noise.uniform("start", shape), noise.normal("start", shape))
    return ascend(
        _away_from(classifier, labels, noise),
        start,
        images,
        threat,
        steps=steps,
        size=2.5 * threat.eps / steps,
    ).points


def _away_from(classifier: DefendedClassifier, labels: Tensor, noise: Noise) -> Objective:
    """The cross-entropy of these labels. No success ends the search: a point just across the
    boundary would be easy to recognise.
    """

    def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
        leaf = x.detach().requires_grad_(gradient)
        index = rows.cpu().numpy()
        with torch.set_grad_enabled(gradient):
            values = cross_entropy(
                classifier(leaf, noise.rows(index).at("step").at(str(iteration))), labels[rows]
            )
        slopes = torch.autograd.grad(values.sum(), leaf)[0] if gradient else None
        return Reading(
            values.detach(), slopes, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        )

    return read
