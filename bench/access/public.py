"""Public images: those of another data set, made to fit a classifier, without their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bench.data.dataset import Dataset, DeclaredImages, ImageSet
from bench.errors import BadInput
from bench.plugins.create import DATASETS, Named, create
from bench.spec import parse, unnest


@dataclass(frozen=True)
class PublicImages:
    """A data set and those of its images that are used: the first ones of its training split, or of
    all where it has none.
    """

    dataset: Named[Dataset[Any]]
    images: ImageSet


def load_public(spec: str) -> PublicImages:
    """What `fashion-mnist:n=1000` or `npz:FILE` names; `n` is how many images are used, all by
    default.

    Shared by all callers, who must not change it. Raises `BadInput` where it cannot be loaded.
    """
    public = _loaded(spec)
    if isinstance(public.images, DeclaredImages):
        # A run that follows the plan must look for the files anew.
        _loaded.cache_clear()
    return public


@lru_cache(maxsize=4)
def _loaded(spec: str) -> PublicImages:
    asked = parse(unnest(spec))
    options = dict(asked.options)
    count = options.pop("n", None)
    dataset = create(DATASETS, replace(asked, options=options))
    images = _training_or_all(dataset.plugin)
    return PublicImages(
        dataset, images if count is None else images.first(_count(count, len(images), spec))
    )


def _training_or_all(dataset: Dataset[Any]) -> ImageSet:
    if "train" in dataset.splits:
        # A file that is missing is no reason to take the test images.
        return dataset.train()
    try:
        return dataset.train()
    except BadInput:
        return dataset.test()


def _count(text: str, available: int, spec: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= available:
        raise BadInput(f"n={text} in {spec!r} is no number of public images: give 1 to {available}")
    return int(text)


def check_foreign(public: PublicImages, dataset: Named[Dataset[Any]], evaluated: ImageSet) -> None:
    """Raise `BadInput` where the public images are the evaluated data set's own, or hold evaluated
    images.
    """
    name = public.dataset.name
    if isinstance(public.images, DeclaredImages) or isinstance(evaluated, DeclaredImages):
        return
    if _origin(public.dataset) == _origin(dataset):
        raise BadInput(
            f"{name} is the data set under evaluation, and its images are not public: name another "
            "one"
        )
    if f"{name}/train" in dataset.plugin.drawn_from or _overlap(public.images, evaluated):
        raise BadInput(
            f"the public images of {name} hold images of {dataset.name} that are evaluated: name "
            "another data set"
        )


def _origin(dataset: Named[Dataset[Any]]) -> tuple[str, object]:
    """The data set's name, and the path that it is read from where it has one."""
    positional = type(dataset.plugin).positional
    return dataset.name, getattr(dataset.plugin.params, positional) if positional else None


def _overlap(one: ImageSet, other: ImageSet) -> bool:
    if one.images.shape[1:] != other.images.shape[1:]:
        return False
    known = {image.numpy().tobytes() for image in other.pixels()}
    return any(image.numpy().tobytes() in known for image in one.pixels())


def fitted(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (n, C, H, W) in [0, 1] as images of `shape` (C, H, W).

    Grey becomes three equal channels; colour becomes its luma (ITU-R BT.601); the size changes
    bilinearly, averaging where it shrinks. Raises `BadInput` for other numbers of channels.
    """
    if images.shape[1] != shape[0]:
        images = _recoloured(images, shape[0])
    if tuple(images.shape[2:]) != tuple(shape[1:]):
        images = F.interpolate(
            images, tuple(shape[1:]), mode="bilinear", align_corners=False, antialias=True
        ).clamp(0, 1)
    return images


def _recoloured(images: Tensor, channels: int) -> Tensor:
    if {images.shape[1], channels} != {1, 3}:
        raise BadInput(
            f"public images of {images.shape[1]} channels cannot become images of {channels}: give "
            "grey or colour ones"
        )
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    weights = images.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)
