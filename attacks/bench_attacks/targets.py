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

from bench.defense import Setting
from bench.errors import BadInput
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
