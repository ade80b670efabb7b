"""`latent`: towards the features of an image of another class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench.attack import AttackOutput, Passes
from bench.defense import Card, Setting
from bench.errors import BadInput
from bench.losses import Loss, RowLoss, margin
from bench.maximise import Ascent, Objective
from bench.randomness import Query
from bench.results.findings import Finding
from bench.results.outcomes import NO_TARGET
from bench.threat import ThreatModel
from bench.victim import BASE_VIEW, Victim
from bench_attacks.lbfgs import minimise
from bench_attacks.pgd import SCORING_DRAWS, Attempt, Search, SearchParams

FEATURES = "features"
_LOGITS = "logits"


class LatentParams(SearchParams):
    """Parameters of `latent`."""

    steps: int = Field(50, ge=1, le=100_000, description="points asked about for each guide")
    random_start: bool = Field(
        False, description="start at a random point of the ball, else at the image"
    )
    restarts: int = Field(1, ge=1, le=10_000, description="independent starts for each guide")
    guides: int = Field(3, ge=1, le=1000, description="images of other classes, taken in turn")
    view: str = Field(FEATURES, min_length=1, description="view whose outputs are to be the same")
    optimiser: Literal["lbfgs", "pgd"] = Field(
        "lbfgs", description="L-BFGS between bounds, for linf; or projected gradient steps"
    )


class Latent(Search[LatentParams]):
    """Features as those of a guide, an image of another class: L-BFGS inside ball and box.

        for each guide g of the image:
            minimise |f(x') - f(g)|^2 / 2 over ball and box, from x' = the image
            stop at the first x' that breaks the image
        keep the first success, else the x' of the largest margin

    f is the input of the last layer. The guides are drawn by image and seed from all evaluated
    images of other classes, spread over the classes.
    """

    Params = LatentParams
    card = Card(
        paper="Sabour et al., ICLR 2016, arXiv 1511.05122, eq. 1; L-BFGS: Nocedal and Wright "
        "2006, algorithm 7.4",
        note="no label is aimed at: weaker than PGD as an attack on the answer; the paper's bound "
        "is --eps 10/255",
    )

    @property
    def loss(self) -> Loss:
        """The margin, by which points of different guides are compared."""
        return margin

    def check(self, setting: Setting) -> None:
        """Refuse balls without bounds for L-BFGS, line searches on a changing function, and starts
        that are the same.
        """
        _check_ball(self.params, setting.threat)
        fixed = not setting.stochastic or setting.randomness.fixed
        if self.params.optimiser == "lbfgs" and not fixed:
            raise BadInput(
                "latent searches along lines, and under fresh draws no two points of a line "
                "compare: give latent+replay, or optimiser=pgd"
            )
        if self.params.restarts > 1 and not self.params.random_start:
            raise BadInput(
                f"restarts={self.params.restarts} from the image itself are one search: give "
                "random_start=true, or more guides"
            )

    def passes(self, num_classes: int = 10) -> Passes | None:
        """A look at each guide, its queries, each of features and answer, and one at its point."""
        del num_classes
        pgd = self.params.optimiser == "pgd"
        queries, searches = self.params.steps + int(pgd), self.params.guides * self.params.restarts
        looks = 1 + int(searches > 1)
        return Passes(2 * queries + looks, self.params.steps) * searches

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> Tensor | AttackOutput:
        """Each image's first success, else its point of largest margin over all guides."""
        _check_ball(self.params, threat)
        view, findings = _view(victim, self.params.view)
        guides, has_any = choose_guides(victim, images, labels, self.params.guides)
        classes = labels.where(has_any, torch.full_like(labels, NO_TARGET))
        attempts = []
        for number in range(self.params.guides * self.params.restarts):
            wanted = guide_outputs(victim, guides[:, number // self.params.restarts], view, number)
            objective = partial(_objective, victim, labels, view, wanted, number)
            # Images without a guide are left out by their class alone.
            attempts.append(Attempt(objective, classes, margin, comparable=False))
        return AttackOutput(self.best(victim, images, threat, attempts), findings=findings)

    def ascend(
        self, objective: Objective, start: Tensor, images: Tensor, threat: ThreatModel
    ) -> Ascent:
        """By L-BFGS between the bounds of ball and box, or as `Search` does."""
        if self.params.optimiser == "pgd":
            return super().ascend(objective, start, images, threat)
        low, high = (images - threat.eps).clamp(min=0), (images + threat.eps).clamp(max=1)

        def function(flat: Tensor, rows: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
            reading = objective(flat.reshape(-1, *images.shape[1:]), rows, number, True)
            if reading.gradient is None:
                raise RuntimeError("the objective gave no gradient")
            return -reading.value, -reading.gradient.flatten(1), reading.success

        bounds = (start.flatten(1), low.flatten(1), high.flatten(1))
        minimum = minimise(function, *bounds, queries=self.params.steps)
        points = minimum.points.reshape(images.shape)
        return Ascent(points, -minimum.values, minimum.done, points)


def _check_ball(params: LatentParams, threat: ThreatModel) -> None:
    if params.optimiser == "lbfgs" and threat.norm != "linf":
        raise BadInput(
            f"L-BFGS searches between bounds, and {threat} has none for each pixel: give "
            "optimiser=pgd, or --norm linf"
        )


def _view(victim: Victim, wanted: str) -> tuple[str, tuple[Finding, ...]]:
    """The view to match, and what is to be told of it. Raises `BadInput` for one not offered."""
    if wanted in victim.views or wanted == BASE_VIEW:
        return wanted, ()
    if wanted != FEATURES:
        raise BadInput(f"this defense offers no view {wanted!r}: use {', '.join(victim.views)}")
    told = "this defense offers no view of its features: latent matched logits"
    return _LOGITS, (Finding(name="latent-logits", verdict="note", message=told),)


def _objective(
    victim: Victim, labels: Tensor, view: str, wanted: Tensor, number: int, rows: Tensor
) -> Objective:
    loss = RowLoss(partial(closeness, wanted))
    return victim.objective(labels, loss, rows=rows, restart=number, view=view)


def closeness(wanted: Tensor, outputs: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Minus half the squared distance of outputs (m, ...) to those of the guides of images `rows`
    (m,), wanted (n, draws, d): (m,). Sabour et al. 2016, eq. 1.

    Draw after draw of each image where there are several.
    """
    draw = torch.arange(len(rows), device=rows.device) % wanted.shape[1]
    gap = outputs.flatten(1).double() - wanted[rows, draw].double()
    return (-gap.square().sum(1) / 2).to(outputs.dtype)


def guide_outputs(victim: Victim, guides: Tensor, view: str, restart: int) -> Tensor:
    """A view's outputs on one guide of each image (n, draws, d), under the image's randomness.

    Where all queries read the same function, draw by draw; elsewhere one mean over draws.
    """
    rows = torch.arange(len(guides), device=guides.device)
    if victim.fixed:
        outputs = victim.logits(guides, rows, Query(restart), view).flatten(2)
        return outputs.mean(1, keepdim=True) if victim.randomness.average == "logits" else outputs
    queries = [Query(restart, _BEYOND + number) for number in range(SCORING_DRAWS)]
    outputs = torch.cat([victim.logits(guides, rows, query, view) for query in queries], 1)
    return outputs.flatten(2).mean(1, keepdim=True)


_BEYOND = 200_000
"""Above the numbers of a search's steps."""


def choose_guides(
    victim: Victim, images: Tensor, labels: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """`count` guides of each image (n, count, C, H, W), and which images have any, bool (n,).

    They are evaluated images of other classes, in the order of their classes at equal distances
    from a random first one, so that they spread over the classes. An image's guides depend neither
    on its batch nor on the order of the images. An image without any is its own.
    """
    pool, order, classes = _pool(victim, images, labels)
    rows = torch.arange(len(images), device=images.device)
    first = victim.random(rows).uniform("guides", (1,))[:, 0].cpu().numpy()
    guides, own = images[:, None].repeat(1, count, 1, 1, 1), labels.cpu().numpy()
    has_any = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    others_of: dict[int, np.ndarray] = {
        int(label): order[classes[order] != label] for label in np.unique(own)
    }
    for row, label in enumerate(own):
        others = others_of[int(label)]
        if len(others):
            share = (first[row] + np.arange(count) / count) % 1.0
            chosen = others[(share * len(others)).astype(np.int64).clip(max=len(others) - 1)]
            guides[row], has_any[row] = pool(chosen).to(images), True
    return guides, has_any


def _pool(
    victim: Victim, images: Tensor, labels: Tensor
) -> tuple[Callable[[np.ndarray], Tensor], np.ndarray, np.ndarray]:
    """Images by place, places in the order of class and id, and the classes by place.

    Without an evaluation around it the victim's own images are the pool.
    """
    everything = victim.evaluated
    if everything is None:
        classes, ids, pixels = labels.cpu().numpy(), victim.ids, images
    else:
        classes, ids, pixels = everything.labels.cpu().numpy(), everything.ids, everything.pixels()
    return lambda places: pixels[torch.from_numpy(places)], np.lexsort((ids, classes)), classes
