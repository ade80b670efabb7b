"""`Classifier`: a trained network as the suite sees it, images in [0, 1] to logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier, Forward
from bench.errors import BadInput
from bench.models.foreign import (
    as_logits,
    is_training,
    remember_torchscript,
    set_training,
    unwrapped,
)
from bench.noise import Noise, isolated, seed_of


class Classifier(DefendedClassifier):
    """A network with its normalisation inside: float32 images (n, C, H, W) in [0, 1] to logits (n,
    num_classes).

    Attributes:
        network: the module that takes normalised images.
        mean, std: buffers (1, C, 1, 1); `mean=None` leaves the images as they are.
        trained_on: names of the image sets it was trained on, such as `mnist/train`; empty where
            unknown.
        stochastic: set by `bench.engine.preflight` where the network reads global generators. Its
            rows are then run one by one, each under a generator seeded by the row's noise, so that
            even an opaque module replays exactly.
        takes: the numbers that the network takes where it does not take float32, such as half.
        doubles_one: whether a single image runs beside its copy: for networks that squeeze a batch
            of one away.
        alone: whether images run one by one, because the network mixes those of a batch.

    The last three are set by `bench.engine.preflight` too, and only where a network needs them.
    """

    version: ClassVar[int] = 1  # part of the fingerprint: raise it when the outputs change

    takes: torch.dtype | None = None
    doubles_one: bool = False
    alone: bool = False

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        trained_on: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = unwrapped(network)
        self.training = is_training(self.network)
        self.num_classes = num_classes
        self.trained_on = tuple(trained_on)
        self.normalised = mean is not None or std is not None
        if self.normalised and (
            mean is None or std is None or len(mean) != len(std) or min(std) <= 0
        ):
            raise BadInput(
                f"normalisation mean={mean}, std={std}: give both, one positive std a channel"
            )
        self.register_buffer(
            "mean", torch.tensor(mean or (0.0,)).reshape(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std or (1.0,)).reshape(1, -1, 1, 1), persistent=False
        )

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (n, num_classes).

        Without noise a stochastic one draws from the global generator: a module around it that
        takes no noise runs under one of its own.
        """
        return self._run(self.network, images, noise)

    def __deepcopy__(self, memo: dict[int, Any]) -> Classifier:
        fresh = type(self).__new__(type(self))
        memo[id(self)] = fresh
        remember_torchscript(self, memo)
        fresh.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return fresh

    def views(self) -> tuple[str, ...]:
        """`logits`, and `features` (n, d): what the network's method of this name returns, else
        what its last linear layer with one output a class is given, where there is one.
        """
        own = _features_method(self.network) is not None
        return ("logits", "features") if own or self._heads() else ("logits",)

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """Gradient `full`; views as listed by `views`."""
        if view == "features" and gradient == "full" and "features" in self.views():
            features = _features_method(self.network) or self._input_of_head
            return lambda images, noise: self._run(features, images, noise)
        return super().forward_pass(gradient, view)

    def _heads(self) -> list[nn.Linear]:
        """The linear layers whose output may be the logits."""
        outputs = {self.num_classes, 1} if self.num_classes == 2 else {self.num_classes}
        layers = (part for part in self.network.modules() if isinstance(part, nn.Linear))
        return [layer for layer in layers if layer.out_features in outputs]

    def _input_of_head(self, images: Tensor) -> Tensor:
        """Network inputs (n, C, H, W) to what the last of the heads that runs is given (n, d).

        Raises `BadInput` where none runs, or not on one row an image.
        """
        given: list[Tensor] = []
        handles = [
            head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
            for head in self._heads()
        ]
        try:
            self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        if not given or len(given[-1]) != len(images):
            raise BadInput(
                "the network's features cannot be found: its last linear layer does not run on one "
                "row an image; give it a method `features`"
            )
        return given[-1].flatten(1)

    def train(self, mode: bool = True) -> Classifier:
        """As `nn.Module.train`; graphs of torch.export stay as they were made."""
        self.training = mode
        for part in self.children():
            set_training(part, mode)
        return self

    def _run(self, network: Callable[[Tensor], Any], images: Tensor, noise: Noise | None) -> Tensor:
        if self.normalised:
            images = (images - self.mean).div_(self.std)
        if not self.stochastic or noise is None:
            if not self.alone:
                return self._answer(network, images)
            return torch.cat([self._answer(network, image[None]) for image in images])
        outputs = []
        for row in range(len(images)):
            with isolated(seed_of(noise.rows(slice(row, row + 1)), "opaque")):
                outputs.append(self._answer(network, images[row : row + 1]))
        return torch.cat(outputs)

    def _answer(self, network: Callable[[Tensor], Any], images: Tensor) -> Tensor:
        beside_copy = self.doubles_one and len(images) == 1
        if beside_copy:
            images = torch.cat([images, images])
        if self.takes is not None:
            images = images.to(self.takes)
        output = network(images)
        if network is self.network:
            output = as_logits(output, len(images), self.num_classes)
        elif isinstance(output, Tensor):
            output = output.float()
        answer: Tensor = output[:1] if beside_copy else output
        return answer


def _features_method(network: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The network's method `features`; a part of this name, such as VGG's, is none."""
    method = getattr(network, "features", None)
    if callable(method) and not isinstance(method, nn.Module):
        return cast(Callable[[Tensor], Tensor], method)
    return None
