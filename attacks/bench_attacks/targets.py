"""`targeted=`: which class an image is to become.

--attack pgd:targeted=3              class 3, for every image of another class
--attack pgd:targeted=random         another class, drawn by image and seed
--attack pgd:targeted=least-likely   the class of the smallest logit on the clean image
--attack pgd:targeted=each           all other classes in turn, the most likely first
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from bench.defense import Setting, straight_through
from bench.errors import BadInput
from bench.losses import Loss, margin
from bench.randomness import Query
from bench.results.outcomes import NO_TARGET
from bench.spec import IfGiven
from bench.victim import Victim

EACH = "each"
_KINDS = ("random", "least-likely", EACH)


def _read_target(text: str) -> str:
    name = text.strip().lower().replace("_", "-")
    if name in _KINDS:
        return name
    if name.isascii() and name.isdigit() and len(name) <= 6:
        return str(int(name))
    raise ValueError(f"write a class number, {', '.join(_KINDS[:-1])} or {_KINDS[-1]}")


Target = Annotated[
    Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_read_target)] | None,
    IfGiven(),
]
"""Which class images are to become; None for any wrong one."""

TARGET_HELP = "class to reach: a number, random, least-likely or each [default: any wrong class]"


def check_target(target: str | None, setting: Setting) -> None:
    """Raise `BadInput` where there is no such class."""
    if target is not None and target.isdigit() and int(target) >= setting.num_classes:
        raise BadInput(
            f"targeted={target}, but the classes are numbered from 0 to "
            f"{setting.num_classes - 1}: give one of them, or "
            f"{', '.join(_KINDS[:-1])} or {_KINDS[-1]}"
        )


def target_classes(target: str, victim: Victim, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The classes that each image is to become, one after the other: int64 (n,) each.

    One class an image, except for `each`: all K - 1 others. `NO_TARGET` where an image has the
    class already. An image's target does not depend on the batch that it comes in.
    """
    rows = torch.arange(len(images), device=images.device)
    if target.isdigit():
        chosen = torch.full_like(labels, int(target))
        return [torch.where(chosen == labels, NO_TARGET, chosen)]
    if target == "random":
        step = victim.random(rows).integers("target", 1, victim.num_classes)
        return [(labels + step) % victim.num_classes]
    logits = torch.nan_to_num(victim.logits(images, rows, Query()).mean(1))
    others = logits.scatter(1, labels[:, None], torch.inf).argsort(dim=1, stable=True)[:, :-1]
    return list(others.flip(1).T) if target == EACH else [others[:, 0]]


WIDEST, NARROWEST = 1.0, 0.01
"""Temperature of the soft minimum at the begin and the end of a search, in units of the spread of
the logits.
"""


def annealed_margin(progress: float) -> Loss:
    """The target's logit minus the best other one, to be maximised, with a smoothed gradient.

    The margin over K - 1 other classes is a minimum of K - 1 functions. Where several of them tie,
    its gradient follows one and loses on the others, so that an ascent stalls at a kink. The
    gradient here is that of the soft minimum -T log sum_j exp(-m_j / T) of the margins m_j, which
    weighs them by softmax(-m / T). T falls geometrically (graduated smoothing: Nesterov 2005,
    Math. Program. 103, section 4). The value is the margin itself, so that the points of a search
    compare.

    Args:
        progress: how much of the search is done, 0 to 1.
    """
    share = WIDEST * (NARROWEST / WIDEST) ** progress

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        target = targets[:, None]
        gaps = logits.gather(1, target) - logits
        above = (gaps - gaps.scatter(1, target, torch.inf).amin(1, keepdim=True)).detach()
        above = above.scatter(1, target, torch.inf)
        # The median distance from the smallest margin, which a masked class does not move.
        spread = above.sort(1).values[:, (logits.shape[1] - 1) // 2, None]
        weights = (-above / (share * spread).clamp(min=torch.finfo(spread.dtype).tiny)).softmax(1)
        # A class masked by -inf has weight 0 and an infinite margin.
        soft = torch.where(weights > 0, weights * gaps, 0).sum(1)
        return straight_through(-margin(logits, targets), soft)

    return loss
