"""What one prediction costs, and RobustBench's three conditions on a defense."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier
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
    with _counted(classifier) as rows, _watched() as called:
        logits = classifier(leaf, noise)
    slope = None
    if logits.requires_grad:
        (slope,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), leaf, allow_unused=True)
    zero = 1.0 if slope is None else float((slope.flatten(1).abs().amax(1) == 0).float().mean())
    declared = any(
        isinstance(part, DefendedClassifier) and part.optimises for part in classifier.modules()
    )
    return Inference(
        passes=min(rows.values(), default=0) / len(images),
        zero_gradient=zero > _ZERO_SHARE,
        randomised=randomised,
        optimises=bool(called) or declared,
    )


@contextmanager
def _counted(classifier: DefendedClassifier) -> Iterator[Counter[str]]:
    """Rows that go through each layer with weights of the classifier inside; those of a layer that
    is used less count as passes.
    """
    rows: Counter[str] = Counter()
    handles = []
    for name, layer in _layers(classifier):

        def count(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            rows[name] += len(inputs[0])

        handles.append(layer.register_forward_pre_hook(count))
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _layers(classifier: DefendedClassifier) -> Iterator[tuple[str, nn.Module]]:
    inside = [part.network for part in classifier.modules() if isinstance(part, Classifier)]
    for network in inside[:1]:
        for name, layer in network.named_modules():
            if next(layer.parameters(recurse=False), None) is not None:
                yield name, layer


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
