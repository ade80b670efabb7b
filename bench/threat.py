"""Threat models: Linf and L2 balls around an image, intersected with the box [0, 1].

Images are float tensors of shape (n, ...), pixels in [0, 1]; `eps` is in the same units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bench.errors import BadInput
from bench.spec import show_number

Norm = Literal["linf", "l2"]

# Rounding to float32 moves a point by this much at most; a check that is stricter would reject
# exact projections.
LINF_SLACK = 1e-6
L2_SLACK = 1e-5


@dataclass(frozen=True)
class ThreatModel:
    """All images in [0, 1] within `eps` of the original in the given norm."""

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise BadInput(f"unknown norm {self.norm!r}: use linf or l2")
        if not math.isfinite(self.eps) or self.eps <= 0:
            raise BadInput(
                f"eps is {self.eps}: it must be a positive number in units of [0,1] pixels, such "
                "as 8/255"
            )
        if self.norm == "linf" and self.eps > 1:
            hint = f"; did you mean {self.eps:g}/255?" if self.eps <= 255 else ""
            raise BadInput(
                f"eps is {self.eps:g} under linf, but pixels lie in [0,1]: give at most 1{hint}"
            )

    def __str__(self) -> str:
        return f"{self.norm} {show_number(self.eps)}"

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise where eps exceeds the diameter of the box, which no L2 perturbation can reach."""
        diameter = math.sqrt(math.prod(shape))
        if self.norm == "l2" and self.eps > diameter:
            raise BadInput(
                f"eps is {self.eps:g} under l2, more than any two images of shape {shape} differ: "
                "lower it"
            )

    def project(self, x: Tensor, origin: Tensor) -> Tensor:
        """The point of ball and box nearest to `x` in L2 (for Linf also in Linf); shapes
        (n, ...).
        """
        if self.norm == "linf":
            return torch.clamp(torch.clamp(x, origin - self.eps, origin + self.eps), 0.0, 1.0)
        return _project_l2(x, origin, self.eps)

    def random(self, origin: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """A random point of the ball, clipped to the box.

        Args:
            origin: images, (n, ...).
            uniform: numbers in [0, 1): shape of `origin` for Linf, (n, 1) is enough for L2's
                radius.
            normal: standard normal numbers of the shape of `origin`; used by L2 for the direction.
        """
        if self.norm == "linf":
            return torch.clamp(origin + self.eps * (2 * uniform - 1), 0.0, 1.0)
        radius = uniform.flatten(1)[:, :1] ** (1 / origin[0].numel())
        return self.project(origin + _like(self.eps * radius, origin) * _unit(normal), origin)

    def ascend(self, x: Tensor, gradient: Tensor, size: float, origin: Tensor) -> Tensor:
        """One steepest-ascent step of length `size` in the norm (sign, or normalised gradient),
        then `project`.
        """
        direction = gradient.sign() if self.norm == "linf" else _unit(gradient)
        return self.project(x + size * direction, origin)

    def distance(self, x: Tensor, origin: Tensor) -> Tensor:
        """Distance of each image from its original, in float64; shape (n,)."""
        delta = (x.double() - origin.double()).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def contains(self, x: Tensor, origin: Tensor) -> Tensor:
        """Which images are finite and lie in ball and box, up to float32 rounding; bool (n,)."""
        flat = x.flatten(1)
        limit = self.eps + LINF_SLACK if self.norm == "linf" else self.eps * (1 + L2_SLACK)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1) & torch.isfinite(flat).all(1)
        return inside & (self.distance(x, origin) <= limit)


_NORM_NAMES: dict[str, Norm] = {"linf": "linf", "inf": "linf", "l_inf": "linf", "l2": "l2"}


def read_norm(text: str) -> Norm:
    """A norm by its name in any case; `inf` is `linf`. Raises `BadInput` for anything else."""
    norm = _NORM_NAMES.get(text.strip().lower())
    if norm is None:
        raise BadInput(f"unknown norm {text!r}: use {' or '.join(get_args(Norm))}")
    return norm


def _like(per_image: Tensor, images: Tensor) -> Tensor:
    return per_image.reshape(-1, *[1] * (images.dim() - 1))


def _length(x: Tensor) -> Tensor:
    length: Tensor = x.flatten(1).norm(dim=1)
    return length


def _unit(x: Tensor) -> Tensor:
    norm = _length(x)
    unit: Tensor = x / _like(torch.where(norm > 0, norm, torch.ones_like(norm)), x)
    return unit


def _project_l2(x: Tensor, origin: Tensor, eps: float) -> Tensor:
    """Nearest point of {|z - origin|_2 <= eps} and [0,1]: z(s) = clip(origin + s (x - origin)), s
    in [0, 1].

    By the KKT conditions of min |z - x|^2 the multiplier of the ball enters only through s, and the
    distance of z(s) from the origin grows with s, so bisection finds the s that meets eps. Clipping
    after an ordinary projection is not optimal.
    """
    delta = x - origin

    def point(s: Tensor) -> Tensor:
        return torch.clamp(origin + _like(s, x) * delta, 0.0, 1.0)

    def length(s: Tensor) -> Tensor:
        return _length(point(s) - origin)

    low = torch.zeros(len(x), device=x.device, dtype=x.dtype)
    high = torch.ones_like(low)
    free = length(high) <= eps
    if bool(free.all()):
        return point(high)
    for _ in range(30):
        middle = (low + high) / 2
        short = length(middle) <= eps
        low = torch.where(short, middle, low)
        high = torch.where(short, high, middle)
    return point(torch.where(free, torch.ones_like(low), low))
