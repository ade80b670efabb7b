"""Training recipes: what decides a run besides data, architecture and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.errors import BadInput


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum; the learning rate rises linearly over the first `warmup` share of
    all steps and then sinks linearly towards 0.

    Attributes:
        epochs: passes over the training images.
        batch: images a step; an incomplete last batch is left out.
        rate: peak learning rate.
        warmup: share of the steps in which the rate rises.
        momentum, decay: of SGD; decay applies to all parameters.
        shift: each image is moved by up to so many pixels in each direction.
        flip: each image is mirrored left to right with probability one half.
        choose: the weights that are kept: those of the `last` epoch, or of the `best` one by
            accuracy on the official validation split (the later one of equals). Test images choose
            nothing.
    """

    epochs: int
    batch: int
    rate: float
    warmup: float = 0.2
    momentum: float = 0.9
    decay: float = 5e-4
    shift: int = 2
    flip: bool = False
    choose: Literal["last", "best"] = "last"


_DIGITS = Recipe(epochs=15, batch=128, rate=0.1)
_GREY = Recipe(epochs=30, batch=128, rate=0.1)
_COLOUR = Recipe(epochs=60, batch=128, rate=0.1, shift=4)
_NATURAL = Recipe(epochs=60, batch=128, rate=0.1, shift=4, flip=True)
# On PneumoniaMNIST's validation split, `cnn` reaches 95.9 % in 20 epochs and 97.4 % in 40 (means of
# two seeds).
_MEDICAL = Recipe(epochs=40, batch=128, rate=0.05, flip=True)
# For data sets of more than 50,000 images.
_MANY_MEDICAL = replace(_MEDICAL, epochs=20)
# Half of the 200 epochs that Zagoruyko and Komodakis 2016 train wide networks for.
_LONG = Recipe(epochs=100, batch=128, rate=0.1, shift=4, flip=True)

_WIDE = ("wrn16-10", "wrn28-10", "wrn34-10", "wrn40-8")

RECIPES: dict[tuple[str, str], Recipe] = {
    # The length of mnist5k's: on 400 training images held out, 8, 14, 30 and 60 epochs give 96.6,
    # 97.4, 98.0 and 98.6 % (mean of two seeds); 30 is what trains within a minute on one core.
    ("mnist5k", ""): Recipe(epochs=30, batch=64, rate=0.1),
    # Shifts would teach it to overlook places, and seeing places is what makes it another student
    # than `cnn` (docs/reference/data-free-baselines.md).
    ("mnist5k", "flat"): Recipe(epochs=30, batch=64, rate=0.1, shift=0),
    ("mnist", ""): _DIGITS,
    ("fashion-mnist", ""): Recipe(epochs=30, batch=128, rate=0.1, flip=True),
    ("svhn", ""): Recipe(epochs=30, batch=128, rate=0.05, shift=4),
    **{(name, ""): _NATURAL for name in ("cifar10", "cifar100")},
    **{(name, arch): _LONG for name in ("cifar10", "cifar100") for arch in _WIDE},
    **{(f"{organ}mnist", ""): _MEDICAL for organ in ("blood", "breast", "derma", "pneumonia")},
    # Mirrored, a left kidney is a right one.
    ("organcmnist", ""): replace(_MEDICAL, flip=False),
    **{(f"{organ}mnist", ""): _MANY_MEDICAL for organ in ("path", "tissue")},
}
"""Recipes by registered name of the data set and architecture; an empty architecture means all
others.
"""

_SMALLEST, _LARGEST = 8, 64


def recipe_for(dataset: str, arch: str, shape: Sequence[int]) -> Recipe:
    """The recipe of a data set and architecture, else that of the data set, else one for such
    images.

    Args:
        dataset: registered name of the data set.
        arch: a name in `bench.models.nets.ARCHITECTURES`.
        shape: (C, H, W) of the images.

    Raises `BadInput` for images that no recipe is meant for.
    """
    sides = tuple(shape[1:])
    if not all(_SMALLEST <= side <= _LARGEST for side in sides):
        size = " x ".join(map(str, sides))
        bounds = f"{_SMALLEST} to {_LARGEST} pixels a side"
        raise BadInput(
            f"there is no training recipe for images of {size} pixels, only for {bounds}: bring "
            "weights (--classifier)"
        )
    fallback = _GREY if shape[0] == 1 else _COLOUR
    return RECIPES.get((dataset, arch)) or RECIPES.get((dataset, "")) or fallback
