"""`em`: a search over random draws that follows those draws which can be broken together."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from bench.attack import Passes
from bench.defense import Card, Setting
from bench.errors import BadInput
from bench.losses import Loss, margin
from bench.maximise import Objective, Reading
from bench.randomness import Query
from bench.threat import ThreatModel
from bench.victim import Victim
from bench_attacks.best import wrong_share
from bench_attacks.pgd import Attempt, Search, SearchParams

ROUNDS = 5
"""Times that weights and direction are computed from each other."""

SLOPE = 5.0
"""How sharply draws that the direction breaks are told from those that it does not."""


class EMParams(SearchParams):
    """Parameters of `em`."""

    draws: int = Field(
        8, ge=1, le=1000, description="draws a step under fresh randomness; under eot its k"
    )


class EM(Search[EMParams]):
    """Gradient ascent along a direction that the draws agree on which it breaks, for stochastic
    defenses.

        at each step, for draws i of the defense: margin l_i and gradient g_i
        r = the gradient of the largest margin
        five times: w_i = sigmoid(5 (l_i + d(r) . g_i)), r = sum_i w_i g_i / sum_i w_i
        x = project(x + step * d(r)), where d(r) is r's steepest direction, of length 1

    The mean gradient of EOT follows draws that cannot be broken together as much as the others, and
    so may follow none. Under one fixed noise there is one draw, and this is `pgd:loss=margin`.
    """

    Params = EMParams
    card = Card(
        paper="DiffHammer: Wang et al., NeurIPS 2024, openreview ZJ2ONmSgCS",
        note="a step costs one forward and one backward pass a draw: under fresh randomness "
        "draws=8 times what pgd costs, under eot k times, under replay as much as pgd",
    )

    @property
    def loss(self) -> Loss:
        """How often a point is wrong: what is to grow is the share of draws, not their mean."""
        return wrong_share

    def check(self, setting: Setting) -> None:
        """Refuse defenses without randomness, and averaged answers."""
        if not setting.stochastic:
            raise BadInput(
                "em searches over random draws, and this defense draws none: use pgd:loss=margin"
            )
        if setting.randomness.average == "logits":
            raise BadInput(
                f"em weighs each draw by its own margin, and {setting.randomness} averages their "
                "logits: drop average=logits"
            )

    def passes(self, num_classes: int = 10) -> Passes | None:
        """All draws of each step, as under fresh randomness."""
        del num_classes
        search = Passes(self.params.steps + 1, self.params.steps) * self.params.draws
        return search * self.params.restarts

    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """Each image's first success where it is final, else its best point over all restarts."""
        attempts = [
            Attempt(partial(self._over_draws, victim, labels, threat, number), labels, self.loss)
            for number in range(self.params.restarts)
        ]
        return self.best(victim, images, threat, attempts)

    def _over_draws(
        self, victim: Victim, labels: Tensor, threat: ThreatModel, restart: int, searched: Tensor
    ) -> Objective:
        """The expected share of broken draws, on a logarithmic scale, with the direction in place
        of its gradient.
        """

        def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
            seen = victim.draw_by_draw(
                x,
                searched[rows],
                labels,
                margin,
                Query(restart, iteration),
                draws=self.params.draws,
                gradient=gradient,
            )
            slope = seen.gradients
            if slope is not None:
                slope = common_direction(seen.values, slope, threat)
            share = torch.nn.functional.logsigmoid(SLOPE * seen.values).logsumexp(1)
            return Reading(share, slope, seen.success)

        return read


def common_direction(values: Tensor, gradients: Tensor, threat: ThreatModel) -> Tensor:
    """The weighted mean gradient r (n, ...) of draws with margins (n, k) and gradients (n, k, ...).

    DiffHammer's expectation step weighs a draw by how surely a step along r breaks it, its
    maximisation step is the mean under these weights.
    """
    flat = gradients.flatten(2)
    rows = torch.arange(len(flat), device=flat.device)
    r = flat[rows, values.argmax(1)]
    for _ in range(ROUNDS):
        gains = torch.einsum("nd,nkd->nk", steepest(r, threat), flat)
        weights = torch.sigmoid(SLOPE * (values + gains))
        total = weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        r = torch.einsum("nk,nkd->nd", weights / total, flat)
    return r.reshape(gradients.shape[0], *gradients.shape[2:])


def steepest(r: Tensor, threat: ThreatModel) -> Tensor:
    """Along which direction of length 1 in the threat's norm r . d is largest, for r (n, d)."""
    if threat.norm == "linf":
        return r.sign()
    if threat.norm == "l2":
        length: Tensor = r.norm(dim=1, keepdim=True)
        return r / length.clamp_min(torch.finfo(r.dtype).tiny)
    largest = r.abs().argmax(1, keepdim=True)
    return torch.zeros_like(r).scatter(1, largest, r.gather(1, largest).sign())
