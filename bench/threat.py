"""Threat models: Linf, L2 and L1 balls around an image, intersected with the box [0, 1].

Images are float tensors of shape (n, ...), pixels in [0, 1]; `eps` is in the same units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from bench.errors import BadInput
from bench.spec import show_number

Norm = Literal["linf", "l2", "l1"]

# Rounding to float32 moves a point by this much at most; a check that is stricter would reject
# exact projections.
LINF_SLACK = 1e-6
L2_SLACK = 1e-5
# Of eps, and for each pixel that moves: L1 adds up the rounding of all of them, half a unit in the
# last place each.
L1_SLACK = 1e-5
L1_PIXEL_SLACK = 2.0**-25

# Share of the pixels into which a step in L1 goes (Tramer and Boneh 2019, arXiv 1904.13000, keep
# the gradient's upper percentile).
L1_STEP_SHARE = 0.01


@dataclass(frozen=True)
class ThreatModel:
    """All images in [0, 1] within `eps` of the original in the given norm."""

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise BadInput(f"unknown norm {self.norm!r}: use {_NORMS}")
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
        """Raise where eps exceeds the diameter of the box, which no perturbation can reach."""
        pixels = math.prod(shape)
        diameter = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": pixels}[self.norm]
        if self.eps > diameter:
            raise BadInput(
                f"eps is {self.eps:g} under {self.norm}, more than any two images of shape {shape} "
                "differ: lower it"
            )

    def project(self, x: Tensor, origin: Tensor) -> Tensor:
        """The point of ball and box nearest to `x` in L2 (for Linf also in Linf); shapes
        (n, ...).
        """
        if self.norm == "linf":
            return torch.clamp(torch.clamp(x, origin - self.eps, origin + self.eps), 0.0, 1.0)
        project = _project_l2 if self.norm == "l2" else _project_l1
        return project(x, origin, self.eps)

    def project_within(self, x: Tensor, origin: Tensor, radius: Tensor) -> Tensor:
        """As `project`, onto a ball of its own for each image: radii of 0 or more, float64 (n,)."""
        if self.norm == "linf":
            around = _like(radius, x)
            low, high = (origin - around).to(x.dtype), (origin + around).to(x.dtype)
            return torch.clamp(torch.minimum(torch.maximum(x, low), high), 0.0, 1.0)
        project = _project_l2 if self.norm == "l2" else _project_l1
        return project(x, origin, radius)

    def random(self, origin: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """A random point of the ball, clipped to the box.

        Args:
            origin: images, (n, ...).
            uniform: numbers in [0, 1): shape of `origin` for Linf, (n, 1) is enough for the
                radius in L2 and L1.
            normal: standard normal numbers of the shape of `origin`; used by L2 and L1 for the
                direction.
        """
        if self.norm == "linf":
            return torch.clamp(origin + self.eps * (2 * uniform - 1), 0.0, 1.0)
        radius = uniform.flatten(1)[:, :1] ** (1 / origin[0].numel())
        direction = _unit(normal) if self.norm == "l2" else _unit_l1(normal)
        return self.project(origin + _like(self.eps * radius, origin) * direction, origin)

    def ascend(self, x: Tensor, gradient: Tensor, size: float, origin: Tensor) -> Tensor:
        """One steepest-ascent step of length `size` in the norm (sign, normalised gradient, or the
        pixels of largest gradient), then `project`.
        """
        if self.norm == "linf":
            return self.project(x + size * gradient.sign(), origin)
        if self.norm == "l2":
            return self.project(x + size * _unit(gradient), origin)
        return self.project(x + _step_l1(x, gradient, size), origin)

    def around(self, origin: Tensor) -> Ball:
        """Ball and box around these images (n, ...), for many steps."""
        low = high = origin
        if self.norm == "linf":
            low = (origin - self.eps).clamp_(0.0, 1.0)
            high = (origin + self.eps).clamp_(0.0, 1.0)
        return Ball(self, origin, low, high)

    def distance(self, x: Tensor, origin: Tensor) -> Tensor:
        """Distance of each image from its original, in float64; shape (n,)."""
        delta = (x.double() - origin.double()).flatten(1)
        if self.norm == "linf":
            return delta.abs().amax(1)
        distance: Tensor = delta.norm(p=1 if self.norm == "l1" else 2, dim=1)
        return distance

    def contains(self, x: Tensor, origin: Tensor) -> Tensor:
        """Which images are finite and lie in ball and box, up to float32 rounding; bool (n,)."""
        flat = x.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1) & torch.isfinite(flat).all(1)
        return inside & (self.distance(x, origin) <= self._limit(x, origin))

    def _limit(self, x: Tensor, origin: Tensor) -> float | Tensor:
        """eps, and what rounding to float32 may add."""
        if self.norm == "linf":
            return self.eps + LINF_SLACK
        if self.norm == "l2":
            return self.eps * (1 + L2_SLACK)
        moved = (x != origin).flatten(1).sum(1)
        return self.eps * (1 + L1_SLACK) + moved * L1_PIXEL_SLACK


@dataclass(frozen=True)
class Ball:
    """Ball and box around some images: `ThreatModel.project` and `ascend`, bit for bit, with what
    many steps share computed once.

    Attributes:
        threat: norm and radius.
        origin: the images, (n, ...).
        low, high: under Linf the least and the largest value of each pixel, (n, ...).
    """

    threat: ThreatModel
    origin: Tensor
    low: Tensor
    high: Tensor

    def rows(self, index: Tensor) -> Ball:
        """That of some of the images, int64 (m,)."""
        origin = self.origin.index_select(0, index)
        if self.threat.norm != "linf":
            return replace(self, origin=origin, low=origin, high=origin)
        low, high = self.low.index_select(0, index), self.high.index_select(0, index)
        return replace(self, origin=origin, low=low, high=high)

    def project(self, x: Tensor) -> Tensor:
        """As `ThreatModel.project`."""
        if self.threat.norm == "linf":
            return torch.clamp(x, self.low, self.high)
        return self.threat.project(x, self.origin)

    def ascend(self, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        """As `ThreatModel.ascend`."""
        if self.threat.norm != "linf":
            return self.threat.ascend(x, gradient, size, self.origin)
        # Each line is one walk over memory, which is what a step costs beside its network.
        stepped = torch.add(x, gradient.sign(), alpha=size)
        return stepped.clamp_(self.low, self.high)


_NORMS = "linf, l2 or l1"
_NORM_NAMES: dict[str, Norm] = {
    "linf": "linf",
    "inf": "linf",
    "l_inf": "linf",
    "l2": "l2",
    "l1": "l1",
}


def read_norm(text: str) -> Norm:
    """A norm by its name in any case; `inf` is `linf`. Raises `BadInput` for anything else."""
    norm = _NORM_NAMES.get(text.strip().lower())
    if norm is None:
        raise BadInput(f"unknown norm {text!r}: use {_NORMS}")
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


def _project_l2(x: Tensor, origin: Tensor, eps: float | Tensor) -> Tensor:
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


# L1 -----------------------------------------------------------------------------------------------


def _unit_l1(normal: Tensor) -> Tensor:
    """Directions uniform on the L1 sphere, from standard normal numbers of the same shape.

    Exponential numbers with random signs, divided by their sum; -log(2 Phi(-|g|)) of a normal
    number g is exponential.
    """
    size = -torch.special.log_ndtr(-normal.double().abs()) - math.log(2)
    whole = size.flatten(1).sum(1)
    unit: Tensor = (normal.sign() * size.reshape(normal.shape) / _like(whole, normal)).to(
        normal.dtype
    )
    return unit


def _step_l1(x: Tensor, gradient: Tensor, size: float) -> Tensor:
    """The step that raises a linear function most, of L1 length `size`, inside the box.

    It goes into the pixels of largest gradient. A pixel takes no more than its room in the box
    (Croce and Hein 2021, arXiv 2103.01208, section 2: without it the step is wasted on pixels at
    their bound) and an equal part of the step, so that at least L1_STEP_SHARE of all pixels move
    (Tramer and Boneh 2019, arXiv 1904.13000, section 3).
    """
    slope, flat = gradient.flatten(1), x.flatten(1)
    part = size / math.ceil(L1_STEP_SHARE * slope.shape[1])
    room = torch.where(slope > 0, 1 - flat, flat).clamp(0, part) * (slope != 0)
    order = slope.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order)
    left = (size - (sorted_room.cumsum(1) - sorted_room)).clamp_min(0)
    taken = torch.zeros_like(room).scatter(1, order, torch.minimum(sorted_room, left))
    return (slope.sign() * taken).reshape(x.shape)


def _project_l1(x: Tensor, origin: Tensor, eps: float | Tensor) -> Tensor:
    """Nearest point of {|z - origin|_1 <= eps} and [0,1]: every pixel moves by t(m) = clip(|x -
    origin| - m, 0, its room in the box).

    By the KKT conditions of min |z - x|^2 the ball's multiplier m >= 0 is one number an image, and
    the sum of t(m) falls as m grows (Croce and Hein 2021, arXiv 2103.01208, section 2.2, who sort
    instead). Bisection finds the linear piece, on which m follows exactly.
    """
    # In float64, since a sum of many small moves does not survive the rounding of float32.
    limit = torch.as_tensor(eps, dtype=torch.float64, device=x.device).reshape(-1, 1)
    flat = origin.double().flatten(1)
    delta = x.double().flatten(1) - flat
    size, room = delta.abs(), torch.where(delta > 0, 1 - flat, flat)

    def moved(m: Tensor) -> Tensor:
        """The length that is moved, (n, 1)."""
        return per_pixel(m).sum(1, keepdim=True)

    def per_pixel(m: Tensor) -> Tensor:
        return torch.minimum((size - m).clamp_min(0), room)

    inside = torch.clamp(x, 0.0, 1.0)
    low = torch.zeros_like(size[:, :1])
    free = (moved(low) <= limit)[:, 0]
    if bool(free.all()):
        return inside
    high = size.amax(1, keepdim=True)
    for _ in range(30):
        middle = (low + high) / 2
        short = moved(middle) <= limit
        low, high = torch.where(short, low, middle), torch.where(short, middle, high)
    sliding = ((size > high) & (size - high < room)).sum(1, keepdim=True).clamp_min(1)
    m = torch.maximum(low, high - (limit - moved(high)) / sliding)
    point = (flat + delta.sign() * per_pixel(m)).reshape(x.shape).to(x.dtype).clamp(0.0, 1.0)
    return torch.where(_like(free, x), inside, point)
