"""A network whose weights are not there: its structure is known, so its operations are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.noise import isolated
from bench.storage.missing import DECLARED

_COUNTED: ContextVar[list[float] | None] = ContextVar("operations", default=None)


@contextmanager
def operations() -> Iterator[list[float]]:
    """Filled, during the block, with the operations of each pass through a sketch."""
    counted: list[float] = []
    token = _COUNTED.set(counted)
    try:
        yield counted
    finally:
        _COUNTED.reset(token)


class Sketch(nn.Module):
    """Takes what a network takes, and answers zeros in the shape of its answer.

    Args:
        make: makes the network. Its weights take no memory where torch can do without.
        name: what it stands for, such as a spec.
    """

    version = 1

    def __init__(self, make: Callable[[], nn.Module], name: str) -> None:
        super().__init__()
        self._make = make
        self.network = _without_numbers(make).eval()
        self._known: dict[tuple[int, ...], tuple[tuple[int, ...], float]] = {}
        self.stands_for = f"{DECLARED}{name}"

    def forward(self, images: Tensor, *more: Any) -> Tensor:
        """Zeros for images (n, C, H, W), tied to them so that a gradient can be asked for.

        Raises `RuntimeError` where the network does not take images of this shape.
        """
        shape = tuple(images.shape[1:])
        if shape not in self._known:
            self._known[shape] = self._counted(shape, more)
        answer, flops = self._known[shape]
        counted = _COUNTED.get()
        if counted is not None:
            counted.append(flops * len(images))
        tie = images.flatten(1)[:, :1].mul(0).reshape(-1, *[1] * len(answer))
        return tie.float().expand(-1, *answer)

    def features(self, images: Tensor) -> Tensor:
        """Zeros (n, 1) in place of the features: a pass costs as much."""
        return self.forward(images)[:, :1]

    def _apply(self, *_: Any, **__: Any) -> Sketch:
        """Nothing is moved: there are no numbers."""
        return self

    def _counted(
        self, shape: tuple[int, ...], more: tuple[Any, ...]
    ) -> tuple[tuple[int, ...], float]:
        """The shape of the answer to one image, and the operations of a forward pass."""
        with isolated(0):
            try:
                return _passed(self.network, shape, more, "meta")
            # Some networks read a number while they run.
            except Exception:
                return _passed(self._make().eval(), shape, more, "cpu")


def _passed(
    network: nn.Module, shape: tuple[int, ...], more: tuple[Any, ...], device: str
) -> tuple[tuple[int, ...], float]:
    """See `Sketch._counted`, of a network on this device."""
    from torch.utils.flop_counter import FlopCounterMode

    rest = [one[:1].to(device) if isinstance(one, Tensor) else one for one in more]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = network(torch.zeros(1, *shape, device=device), *rest)
    # diffusers packs its tensor.
    answer: Tensor = output if isinstance(output, Tensor) else output.sample
    return tuple(answer.shape[1:]), float(counter.get_total_flops())


class _NoDraws(TorchFunctionMode):
    """Weights are not drawn: on the meta device that does nothing, and torch imports its compiler
    for it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        drawn = getattr(func, "__name__", "") in ("normal_", "uniform_", "erfinv_")
        # Functions of this name that are no methods call the method.
        if drawn and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _without_numbers(make: Callable[[], nn.Module]) -> nn.Module:
    with isolated(0):
        try:
            with torch.device("meta"), _NoDraws():
                return make()
        # Some networks read a number while they are built.
        except Exception:
            return make().to("meta")


def sketches(module: nn.Module) -> list[Sketch]:
    """The sketches inside `module`."""
    return [part for part in module.modules() if isinstance(part, Sketch)]
