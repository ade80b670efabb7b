"""What modules around a network share, and how they become cases."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.engine.setup import Setup
from bench.models.foreign import copied
from bench.studies.cases import Case


class Around(nn.Module):
    """Around a network with its normalisation inside: images (n, C, H, W) in [0, 1] to logits.

    Attributes:
        alone: whether the truth is that of an image by itself.
        draws: how often an image is asked for the truth; more than once where the answer is random.
    """

    alone = False
    draws = 1

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def logits(self, images: Tensor) -> Tensor:
        """The network's logits (n, K)."""
        answer: Tensor = self.net(images)
        return answer

    def see_through(self) -> nn.Module:
        """What is attacked to learn the truth: the network without what hides it."""
        return self.net


class Honest(Around):
    """A module that hides nothing: its own gradient tells the truth."""

    def see_through(self) -> nn.Module:
        """Itself."""
        return self


def bare(setup: Setup) -> nn.Module:
    """A copy of the setup's classifier, normalisation inside."""
    return copied(setup.classifier).eval()


def _case(kind: str, module: type[Around], masked: bool) -> Case:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", module.__name__).lower()
    hides = " ".join((module.__doc__ or "").split())

    def make(setup: Setup) -> nn.Module:
        return module(bare(setup)).eval()

    return Case(words, kind, hides, masked, make=make, alone=module.alone, draws=module.draws)


def hiding(kind: str, *modules: type[Around]) -> tuple[Case, ...]:
    """Cases of modules that hide, named by their classes, on the default images."""
    return tuple(_case(kind, module, True) for module in modules)


def honest(kind: str, *modules: type[Around]) -> tuple[Case, ...]:
    """Controls, named by their classes, on the default images."""
    return tuple(_case(kind, module, False) for module in modules)


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """The value of the first tensor, the gradient of the second one; same shape."""
    return value.detach() + other - other.detach()


def confidence(logits: Tensor) -> Tensor:
    """Largest probability of each row, (n,)."""
    return F.softmax(logits, 1).amax(1)


def gap(logits: Tensor) -> Tensor:
    """Largest logit minus the second one, (n,)."""
    top = logits.topk(2, 1).values
    return top[:, 0] - top[:, 1]


def rows(mask: Tensor, like: Tensor) -> Tensor:
    """A mask (n,) in the shape (n, 1, ...) that spreads over `like`."""
    return mask.reshape(-1, *[1] * (like.dim() - 1))


def off_grid(images: Tensor) -> Tensor:
    """Which images (n,) hold a pixel that is no whole grey level n/255."""
    levels = images.detach() * 255
    return ((levels - levels.round()).abs() > 1e-3).flatten(1).any(1)


def blurred(images: Tensor) -> Tensor:
    """Images (n, C, H, W) averaged over 3 x 3 pixels."""
    return F.avg_pool2d(images, 3, 1, 1)


def no_gradient(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`function(images)` as a constant."""
    with torch.no_grad():
        return function(images)
