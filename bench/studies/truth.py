"""The truth about a case: an upper bound of its robust accuracy, by an attack that sees through
what hides it.
"""

from __future__ import annotations

import copy
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.engine.fingerprint import fingerprint
from bench.engine.setup import Setup
from bench.losses import margin
from bench.noise import Noise, Stream, isolated
from bench.storage.artifacts import artifact
from bench.storage.files import write_whole
from bench.threat import ThreatModel

VERSION = 1
"""Raise it where the points change: they are kept."""

STARTS = 4
STEPS = 40
_FILE = "points.safetensors"
_ROOT = 20_000_000_019
"""Apart from the seeds of users, so that no search meets the attack's random starts."""


def upper_bound(module: nn.Module, setup: Setup, *, alone: bool = False, draws: int = 1) -> float:
    """Share of the setup's images that a module still answers rightly, at most.

    Points of a margin PGD on what the module names as its inside (`see_through`, else itself) are
    answered by a copy of the module that has seen nothing.

    Args:
        module: images (n, C, H, W) in [0, 1] to logits (n, K), in evaluation mode.
        alone: whether each image is answered by itself.
        draws: where above 1, answers are random: the worst of the points is chosen on as many
            draws, and judged on as many others.
    """
    labels = setup.images.labels
    inside = getattr(module, "see_through", lambda: module)()
    points = [setup.images.pixels(), *_points(copy.deepcopy(inside), setup)]
    right = torch.stack(
        [_rates(module, one, labels, alone, range(draws)) for one in points]
    )  # (starts + 1, n)
    if draws == 1:
        return float(right.amin(0).mean())
    others = range(draws, 2 * draws)
    judged = torch.stack([_rates(module, one, labels, alone, others) for one in points])
    return float(judged.gather(0, right.argmin(0)[None]).mean())


def _points(inside: nn.Module, setup: Setup) -> list[Tensor]:
    """Points (n, C, H, W) of each start; kept, as most cases hide the same network."""
    threat = setup.threat
    identity = {
        "version": VERSION,
        "inside": fingerprint(inside),
        "images": setup.images.sha256,
        "threat": [threat.norm, threat.eps],
        "search": [STARTS, STEPS],
    }

    def make(folder: Path) -> None:
        images, labels = setup.images.pixels(), setup.images.labels
        starts = range(STARTS)
        points = {str(s): search(inside, images, labels, threat, s) for s in starts}
        write_whole(folder / _FILE, safetensors.torch.save(points))

    kept = safetensors.torch.load((artifact("masking-points", identity, make) / _FILE).read_bytes())
    return [kept[str(start)] for start in range(STARTS)]


def search(
    module: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, start: int
) -> Tensor:
    """Points (n, C, H, W) after ascent of the margin by sign steps of eps / 10, from a random
    point; each image's point of largest margin.
    """
    noise = Noise.of(_ROOT, Stream.ATTACK, range(len(images)), start)
    shape = tuple(images.shape[1:])
    x = threat.random(images, noise.uniform("start", shape), noise.normal("start", shape))
    best, largest = x.clone(), torch.full((len(x),), -torch.inf)
    with isolated(_ROOT + start):
        for _ in range(STEPS):
            leaf = x.detach().requires_grad_(True)
            values = margin(module(leaf), labels)
            better = values.detach() > largest
            largest = torch.where(better, values.detach(), largest)
            best[better] = leaf.detach()[better]
            (slope,) = torch.autograd.grad(values.sum(), leaf)
            moved = leaf.detach() + threat.eps / 10 * torch.nan_to_num(slope).sign()
            x = threat.project(moved, images)
    return best


def _rates(module: nn.Module, points: Tensor, labels: Tensor, alone: bool, draws: range) -> Tensor:
    """How often each point (n,) is answered rightly, by a copy that has seen nothing."""
    right = []
    for draw in draws:
        fresh = copy.deepcopy(module)
        with torch.no_grad(), isolated(_ROOT + draw):
            parts = points.split(1 if alone else len(points))
            logits = torch.cat([fresh(part) for part in parts])
        right.append((logits.argmax(1) == labels) & ~logits.isnan().any(1))
    return torch.stack(right).double().mean(0)
