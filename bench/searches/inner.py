"""Ascent along the gradient of the networks inside a defense, past all that surrounds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from bench.losses import margin, misclassified
from bench.maximise import half_cosine
from bench.noise import isolated
from bench.randomness import Query
from bench.searches.search import SearchResult, per_image
from bench.threat import ThreatModel
from bench.victim import Victim

_AGREEING, _NEARLY = 0.6, 0.1
"""A call speaks for the defense where it answers as the defense does on this share of images, and
on little less than the one that agrees best.
"""
_MOMENTUM = 0.5


@dataclass(frozen=True)
class _Call:
    """One call of a network inside: what it was given, what it answered."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    logits: Tensor


def inner_steps(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 40,
    most_calls: int = 4,
) -> SearchResult:
    """Steepest ascent on the margins of the networks that run inside a defense's forward pass.

    A network inside is an innermost module that is given images and answers with logits, and whose
    answers are mostly those of the defense. The gradient of its margin at what it was given stands
    for that at the image: what comes before it counts as the identity (Athalye et al. 2018, arXiv
    1802.00420, section 4.1), what comes after it as order-preserving. So nothing that is done to
    inputs, logits or gradients around the network stops this search. Success is read off the
    defense itself. Steps fall by a cosine from eps.

    Where there is no such network it ends after one step. A survivor costs steps + 1 forward
    passes, and for each step up to `most_calls` more through the networks inside, and back. The
    victim must be `fixed`, with one draw.

    Args:
        victim: the defense that is searched.
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: ball, box and step direction.
        steps: number of steps.
        most_calls: calls of networks inside one forward pass whose gradients are averaged.
    """
    origin, active = images[rows], torch.arange(len(rows), device=rows.device)
    points, x = origin.clone(), origin.clone()
    margins = torch.full((len(rows),), -torch.inf, device=images.device)
    success = torch.zeros(len(rows), dtype=torch.bool, device=images.device)
    mean_slope = torch.zeros_like(x)
    for step in range(steps + 1):
        with _recorded(victim.num_classes) as calls:
            logits = victim.logits(x[active], rows[active], Query())[:, 0]
        values = margin(logits, labels[rows[active]])
        wrong = misclassified(logits, labels[rows[active]])
        better = wrong | (values > margins[active])
        kept = active[better]
        points[kept], margins[kept] = x[kept], values[better]
        success[active] = wrong
        if step == steps or bool(wrong.all()):
            break
        speaking = _speaking(calls, logits, most_calls)
        if not speaking:
            break
        slope = _slope(speaking, labels[rows[active]], x[active])
        victim.forwards.index_add_(0, rows[active], torch.full_like(active, len(speaking)))
        victim.backwards.index_add_(0, rows[active], torch.full_like(active, len(speaking)))
        active, slope = active[~wrong], slope[~wrong]
        mean_slope[active] = _MOMENTUM * mean_slope[active] + slope
        size = threat.eps * max(half_cosine(step, steps), 0.02)
        x[active] = threat.ascend(x[active], mean_slope[active], size, origin[active])
    return SearchResult(points, margins, success)


@dataclass
class _Recorder:
    """Records the innermost calls that are given images and answer with logits."""

    num_classes: int
    calls: list[_Call] = field(default_factory=list)
    _begun: list[int] = field(default_factory=list)

    def enter(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._begun.append(len(self.calls))

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self._begun or self._begun.pop() != len(self.calls):
            return
        given = args[0] if args else None
        if not (isinstance(given, Tensor) and isinstance(output, Tensor)):
            return
        if given.dim() == 4 and output.shape == (len(given), self.num_classes):
            first = given.detach()
            self.calls.append(_Call(module, (first, *args[1:]), kwargs, output.detach()))


@contextmanager
def _recorded(num_classes: int) -> Iterator[list[_Call]]:
    recorder = _Recorder(num_classes)
    handles = [
        register_module_forward_pre_hook(recorder.enter),
        register_module_forward_hook(recorder.leave, with_kwargs=True),
    ]
    try:
        yield recorder.calls
    finally:
        for handle in handles:
            handle.remove()


def _speaking(calls: list[_Call], logits: Tensor, most: int) -> list[_Call]:
    """The calls that answer as the defense does, at most so many, those that agree best and the
    last ones first.
    """
    answers = logits.argmax(1)
    whole = [call for call in calls if len(call.logits) == len(logits)]
    agreement = [float((call.logits.argmax(1) == answers).float().mean()) for call in whole]
    least = max(_AGREEING, max(agreement, default=0.0) - _NEARLY)
    order = sorted(range(len(whole)), key=lambda at: (-agreement[at], -at))
    return [whole[at] for at in order if agreement[at] >= least][:most]


def _slope(calls: list[_Call], labels: Tensor, x: Tensor) -> Tensor:
    """The mean of the calls' directions, of length 1 an image, in the shape of `x`."""
    total = torch.zeros_like(x)
    for call in calls:
        given = call.args[0].clone().requires_grad_(True)
        with torch.enable_grad(), isolated(0):
            logits = call.module(given, *call.args[1:], **call.kwargs).float()
            if not logits.requires_grad:
                continue
            value = margin(logits, labels).sum()
            (slope,) = torch.autograd.grad(value, given, allow_unused=True)
        if slope is None or slope.shape[1] != x.shape[1]:
            continue
        slope = slope.detach().float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if slope.shape != x.shape:
            slope = F.interpolate(slope, x.shape[2:], mode="bilinear", align_corners=False)
        length = slope.flatten(1).norm(dim=1)
        total += slope / per_image(torch.where(length > 0, length, torch.ones_like(length)), slope)
    return total
