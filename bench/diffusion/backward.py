"""Exact gradients through a chain in the memory of one step.

The states between the steps are kept, and each step is computed once more on the way back: three
passes a step in place of two, and the same numbers as plain backpropagation, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.diffusion.chain import Link

_TOLERANCE = 1e-4
_NARROW_TOLERANCE = 0.05
"""In bfloat16, whose rounding differs with the layout of weights."""


def run_checkpointed(steps: Sequence[Link], z: Tensor, origin: Tensor) -> Tensor:
    """As `run`, but its backward pass rebuilds one step at a time.

    The states (n, C, H, W) are all that is kept. No gradient reaches weights, and there is no
    second derivative. Raises `RuntimeError` in the backward pass where a step that is computed
    again comes out otherwise, as with a generator with state.
    """
    output: Tensor = _Chain.apply(z, origin, steps)
    return output


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, origin: Tensor, steps: Sequence[Link]) -> Tensor:
        states = [z]
        for step in steps:
            states.append(step(states[-1], origin))
        ctx.steps = steps
        ctx.narrow = torch.is_autocast_enabled(z.device.type)
        ctx.save_for_backward(origin, *states)
        return states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        origin, *states = ctx.saved_tensors
        # dL/dz_s = (dz_{s+1}/dz_s)^T dL/dz_{s+1}, from the last state to the first; where steps
        # read the image that the chain began with, its gradients add up.
        total: Tensor | None = None
        for step, before, after in zip(
            reversed(ctx.steps), reversed(states[:-1]), reversed(states[1:]), strict=True
        ):
            gradient, extra = _through(step, before, after, origin, gradient, ctx.narrow)
            if extra is not None:
                total = extra if total is None else total + extra
        return gradient, total, None


def _through(
    step: Link, before: Tensor, after: Tensor, origin: Tensor, gradient: Tensor, narrow: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient at a step's input, and at the chain's image where the step reads it."""
    # As it was computed: the block that asked for bfloat16 is over by now.
    with torch.enable_grad(), torch.autocast(before.device.type, torch.bfloat16, enabled=narrow):
        z, start = before.detach().requires_grad_(), origin.detach().requires_grad_()
        again = step(z, start)
    _check_same(again.detach(), after, narrow)
    earlier, extra = torch.autograd.grad(again, (z, start), gradient, allow_unused=True)
    return torch.zeros_like(z) if earlier is None else earlier, extra


def _check_same(again: Tensor, before: Tensor, narrow: bool) -> None:
    # A GPU may choose another kernel; fresh random numbers would differ by far more.
    tolerance = 0.0 if again.device.type == "cpu" else _TOLERANCE
    if narrow:
        tolerance = _NARROW_TOLERANCE
    if not torch.allclose(again, before, rtol=0.0, atol=tolerance, equal_nan=True):
        gap = float((again - before).abs().max())
        raise RuntimeError(
            "a step of the chain came out otherwise when it was computed again (by up to "
            f"{gap:.1e}): its randomness must come "
            "from the noise argument, not from a generator with state"
        )
