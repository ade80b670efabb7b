"""What one prediction costs, and RobustBench's three conditions on a defense."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier
from bench.diffusion.model import denoised_rows, denoisers
from bench.losses import cross_entropy
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream
from bench.results.inference import Inference

_ZERO_SHARE = 0.1


def inspect(
    classifier: DefendedClassifier, images: Tensor, labels: Tensor, randomised: bool
) -> Inference:
    """One pass of images (n, C, H, W) with labels (n,), watched."""
    leaf = images.clone().requires_grad_(True)
    noise = Noise.of(0, Stream.EVAL, range(len(images)), device=images.device)
    with (
        _counted(classifier) as counts,
        denoised_rows(classifier) as denoised,
        _watched() as called,
    ):
        logits = classifier(leaf, noise)
    slope = None
    if logits.requires_grad:
        (slope,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), leaf, allow_unused=True)
    zero = 1.0 if slope is None else float((slope.flatten(1).abs().amax(1) == 0).float().mean())
    declared = any(
        isinstance(part, DefendedClassifier) and part.optimises for part in classifier.modules()
    )
    return Inference(
        passes=counts.passes() / len(images),
        zero_gradient=zero > _ZERO_SHARE,
        randomised=randomised,
        optimises=bool(called) or declared,
        denoiser_passes=sum(denoised) / len(images) if denoisers(classifier) else None,
    )


@dataclass
class _Counts:
    """Rows that went through the classifier inside.

    Attributes:
        whole: through the classifier as such.
        layers: through each of its layers with weights, whoever called it.
    """

    whole: int = 0
    layers: Counter[str] = field(default_factory=Counter)

    def passes(self) -> int:
        """Through the classifier as such, or through its least used layer where that is more: a
        defense may call layers without the classifier, and a classifier may cut an image in pieces.
        A layer may also see less than its images, a shared embedding for example.
        """
        return max(self.whole, min(self.layers.values(), default=0))


@contextmanager
def _counted(classifier: DefendedClassifier) -> Iterator[_Counts]:
    counts = _Counts()
    handles = []
    for part in _inside(classifier):

        def count_whole(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            counts.whole += _rows((inputs, keywords)) or 0

        handles.append(part.register_forward_pre_hook(count_whole, with_kwargs=True))
        for name, layer in _layers(part.network):

            def count(
                _: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], name: str = name
            ) -> None:
                rows = _rows((inputs, keywords))
                if rows is not None:
                    counts.layers[name] += rows

            handles.append(layer.register_forward_pre_hook(count, with_kwargs=True))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _inside(classifier: DefendedClassifier) -> list[Classifier]:
    return [part for part in classifier.modules() if isinstance(part, Classifier)][:1]


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in network.named_modules():
        # TorchScript takes no hooks, and calls its inner layers unseen.
        scripted = isinstance(layer, torch.jit.ScriptModule)
        if not scripted and next(layer.parameters(recurse=False), None) is not None:
            yield name, layer


def _rows(given: object) -> int | None:
    """The length of the first tensor among a layer's arguments; None where there is none."""
    if isinstance(given, Tensor):
        return len(given) if given.dim() else None
    values: Iterable[object] = ()
    if isinstance(given, Mapping | list | tuple):
        values = given.values() if isinstance(given, Mapping) else given
    return next((rows for rows in map(_rows, values) if rows is not None), None)


@contextmanager
def _watched() -> Iterator[list[str]]:
    """The backward passes that autograd runs inside the block, by whatever name Python code
    has it.
    """
    seen: list[str] = []

    def watch(_: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and getattr(argument, "__name__", "") == "run_backward":
            seen.append("run_backward")

    # A profiler that is at work already cannot be put back as it was: it stays, and nothing is
    # seen.
    free = sys.getprofile() is None
    if free:
        sys.setprofile(watch)
    try:
        yield seen
    finally:
        if free:
            sys.setprofile(None)
