"""Search that reads answers alone, no logits and no gradients: along the boundary towards the
image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.searches.search import (
    DRAWS,
    NearestResult,
    decider,
    per_image,
    settled,
    shortened,
)
from bench.threat import ThreatModel
from bench.victim import Victim

NOISE_STARTS, GUIDES = 3, 3
"""Starts of each image: images of random pixels, and images of other classes."""
_FIRST_PROBES = 100
"""Probes of the first round; in round t so many times the root of t (algorithm 2)."""
_PROBE = 0.01
"""Length of a probe, in lengths of the perturbation. The paper's are shorter by far, which asks for
a point closer to the boundary and more bisection.
"""
_STEPS = 8
"""How often the step of a round is halved before the round is given up."""
_HALVINGS = 12
_AT_ONCE = 1 << 25
"""Pixels of probes that lie in memory at once."""


class _Round(NamedTuple):
    """A round of the search: its number from 1 on, and how many probes it takes."""

    number: int
    probes: int


def _rounds(queries: int) -> Iterator[_Round]:
    """The rounds that fit into so many queries; a larger budget begins with the same ones."""
    left, number = queries - start_queries(), 1
    while True:
        probes = math.ceil(_FIRST_PROBES * math.sqrt(number))
        left -= probes + _STEPS + _HALVINGS
        if left < 0:
            return
        yield _Round(number, probes)
        number += 1


def start_queries() -> int:
    """Queries of an image before the first round, at most."""
    return (NOISE_STARTS + GUIDES) * (1 + _HALVINGS)


def most_queries(queries: int) -> int:
    """Queries of an image that a budget comes to, at most: whole rounds."""
    every = [one.probes + _STEPS + _HALVINGS for one in _rounds(queries)]
    return start_queries() + sum(every)


def by_answers(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 5000,
    until_inside: bool = True,
    restart: int = 0,
    draws: int = DRAWS,
) -> NearestResult:
    """HopSkipJump (Chen, Jordan and Wainwright 2020, arXiv 1904.02144), in our own words.

        x = the nearest of several broken images, moved to the boundary by bisection
        for t = 1, 2, ...:
            which of 100 sqrt(t) short probes around x are broken gives the boundary's slope, with
            their mean as a baseline
            step along the slope (Linf: along its signs) by distance / sqrt(t), halved until the
            point is broken
            x = the point at which a bisection towards the image ends

    Only whether an answer is right is read, so that nothing that hides gradients, or logits, can
    stop it. The nearest x is returned, so distances never grow with the budget: a larger one begins
    with the rounds of a smaller one. Starts are random images and evaluated images of other
    classes.

    Args:
        victim: whose answers are read; under fresh randomness the majority of a fixed sample of
            draws (see `decider`).
        images, labels: all the victim's images (n, C, H, W) and true labels, int64 (n,).
        rows: the images to search, int64 (m,).
        threat: norm, Linf or L2, and box; `eps` says which points are `inside`.
        queries: most points that are asked about for each image; rounds that do not fit are not
            begun.
        until_inside: whether an image leaves at its first point inside the ball, where the victim
            is `deterministic`; else the search goes on for the smallest distance.
        restart: part of the key of every random number.
        draws: draws a query under fresh randomness.

    Raises:
        ValueError: for another norm.
    """
    if threat.norm not in ("linf", "l2"):
        raise ValueError(f"a search by answers knows linf and l2, not {threat.norm}")
    search = _Search(victim, images, labels, rows, threat, restart, draws)
    search.start(_starts(victim, images, labels, rows, restart))
    for one in _rounds(queries):
        open_ = search.unfinished(until_inside)
        if not len(open_):
            break
        search.round(one, open_)
    return settled(victim, threat, images[rows], search.points, search.least)


class _Search:
    """The nearest broken point so far of each image that is searched.

    Attributes:
        points: these points, the images where none was found, (m, C, H, W).
        least: their distances, infinite where none was found, float64 (m,).
    """

    def __init__(
        self,
        victim: Victim,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        threat: ThreatModel,
        restart: int,
        draws: int,
    ) -> None:
        self._victim, self._rows, self._threat, self._restart = victim, rows, threat, restart
        self._decide = decider(victim, labels, restart, draws)
        self._origin = images[rows]
        self.points = self._origin.clone()
        self._now = self.points.clone()
        self.least = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)

    def unfinished(self, until_inside: bool) -> Tensor:
        """Places of the images that are searched on, int64 (a,)."""
        open_ = torch.isfinite(self.least) & (self.least > 0)
        if until_inside and self._victim.deterministic:
            open_ &= ~self._threat.contains(self.points, self._origin)
        return open_.nonzero().squeeze(1)

    def start(self, candidates: Tensor) -> None:
        """From the nearest of the boundary points of (m, s, C, H, W) candidates that are broken."""
        for number in range(candidates.shape[1]):
            broken = self._decide(candidates[:, number], self._rows).nonzero().squeeze(1)
            self._approach(candidates[broken, number], broken)
        self._now = self.points.clone()

    def round(self, one: _Round, open_: Tensor) -> None:
        """One round for the images at places `open_` (a,)."""
        slope = self._slope(one, open_)
        if self._threat.norm == "linf":
            slope = slope.sign()
        here = self._now[open_]
        size = self._threat.distance(here, self._origin[open_]) / math.sqrt(one.number)
        stepped, broken = here.clone(), torch.zeros_like(open_, dtype=torch.bool)
        for _ in range(_STEPS):
            at = (~broken).nonzero().squeeze(1)
            if not len(at):
                break
            moved = here[at] + per_image(size[at], slope) * slope[at]
            moved = moved.to(stepped.dtype).clamp(0.0, 1.0)
            hit = self._decide(moved, self._rows[open_[at]])
            stepped[at[hit]], broken[at[hit]] = moved[hit], True
            size[at] = size[at] / 2
        self._approach(stepped[broken], open_[broken])

    def _approach(self, points: Tensor, at: Tensor) -> None:
        """Go on from broken points (a, C, H, W) of the images at places `at` (a,), moved towards
        these; keep those that come nearer than what is known.
        """
        if not len(at):
            return
        origin = self._origin[at]
        ends = shortened(
            self._decide, self._rows[at], origin, points, self._threat, halvings=_HALVINGS
        )
        away = self._threat.distance(ends, origin)
        nearer = away < self.least[at]
        self._now[at] = ends
        self.points[at[nearer]], self.least[at[nearer]] = ends[nearer], away[nearer]

    def _slope(self, one: _Round, open_: Tensor) -> Tensor:
        """Unit vectors (a, C, H, W) along which more of the probes are broken."""
        size = max(_AT_ONCE // (one.probes * self._origin[0].numel()), 1)
        return torch.cat([self._slope_at(one, part) for part in open_.split(size)])

    def _slope_at(self, one: _Round, at: Tensor) -> Tensor:
        x, rows, shape = self._now[at], self._rows[at], tuple(self._origin.shape[1:])
        noise = self._victim.random(rows, self._restart).at(f"answers-{one.number}")
        if self._threat.norm == "linf":
            # Algorithm 1 takes any distribution on the sphere; the authors' own is this one.
            probes = 2 * noise.uniform("probes", (one.probes, *shape)) - 1
        else:
            probes = noise.normal("probes", (one.probes, *shape))
        length = (x - self._origin[at]).flatten(1).norm(dim=1) * _PROBE
        probes = probes / probes.flatten(2).norm(dim=2).reshape(len(at), -1, 1, 1, 1)
        reach = length.reshape(-1, 1, 1, 1, 1)
        asked = (x[:, None] + reach * probes).clamp(0.0, 1.0)
        moved = (asked - x[:, None]) / reach
        every = rows.repeat_interleave(one.probes)
        broken = self._decide(asked.flatten(0, 1), every).reshape(len(at), -1).to(x.dtype)
        sign = 2 * broken - 1
        mean = sign.mean(1, keepdim=True)
        # Probes that all fall to one side have no other weight than their own.
        weight = torch.where(mean.abs() < 1, sign - mean, sign)
        slope = (weight.reshape(len(at), -1, 1, 1, 1) * moved).sum(1)
        unit: Tensor = slope / per_image(slope.flatten(1).norm(dim=1).clamp_min(1e-12), slope)
        return unit


def _starts(victim: Victim, images: Tensor, labels: Tensor, rows: Tensor, restart: int) -> Tensor:
    """Images that may be answered otherwise, (m, s, C, H, W): of random pixels, and evaluated
    images of other classes, the same for an image in whatever batch it comes.
    """
    noise, shape = victim.random(rows, restart).at("answers"), tuple(images.shape[1:])
    random = noise.uniform("pixels", (NOISE_STARTS, *shape))
    guides = images[rows][:, None].repeat(1, GUIDES, 1, 1, 1)
    everything = victim.evaluated
    if everything is not None:
        classes = everything.labels.cpu().numpy()
        order, pixels = np.lexsort((everything.ids, classes)), everything.pixels()
        first = noise.uniform("guides", (1,))[:, 0].cpu().numpy()
        for place, label in enumerate(labels[rows].cpu().numpy()):
            others = order[classes[order] != label]
            if len(others):
                # At equal distances in the order of classes, so that they are of several.
                share = (first[place] + np.arange(GUIDES) / GUIDES) % 1.0
                chosen = others[(share * len(others)).astype(np.int64).clip(max=len(others) - 1)]
                guides[place] = pixels[torch.from_numpy(chosen)].to(images)
    return torch.cat([random, guides], 1)
