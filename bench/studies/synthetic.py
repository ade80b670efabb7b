"""What studies of synthetic images share: getting the images that a defense trains on, without
training it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from bench.defense import DataAccess, DefendedClassifier
from bench.engine.build import data_access
from bench.engine.evaluation import Evaluation
from bench.errors import BadInput
from bench.noise import BuildNoise, isolated
from bench.spec import Specs, parse
from bench.studies.deployed import DefensesParams, DefenseStudy, evaluation_of, features
from bench.studies.sets import Floats
from bench.studies.study import IMAGES, StudySetting


@runtime_checkable
class ImageMaker(Protocol):
    """A defense that trains on images of its own making, and gives them away.

    One that does so under some of its parameters only has an attribute `makes_images` that says
    whether it does now.
    """

    def training_images(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) in [0, 1] and labels (n,), on the CPU; takes what `Defense.build`
        takes and draws the same.
        """


class MadeParams(DefensesParams):
    """Parameters of a study of images that defenses make themselves."""

    defenses: Specs = Field(
        (
            "datafreeshield:images=1000,iterations=200,synthesis_batch=50,coefficients=fixed",
            "datafreeshield:images=1000,iterations=200,synthesis_batch=50",
        ),
        min_length=1,
        description="defenses that train on images of their own making, joined by +, in "
        "parentheses where they hold commas",
    )


Embedding = Literal["features", "pixels"]


class ComparedParams(MadeParams):
    """Parameters of a study that compares such images with real ones."""

    n_real: int = Field(2_000, ge=10, le=100_000, description="training images, the first ones")


P = TypeVar("P", bound=ComparedParams)


class ComparedStudy(DefenseStudy[P]):
    """Base of the studies that compare synthetic images with training images."""

    uses: ClassVar[frozenset[str]] = IMAGES | {"seed", "device", "batch_size"}

    def sources(self, setting: StudySetting) -> dict[str, str]:
        return {"training images": setting.setup.dataset.plugin.train().sha256}


def short_names(specs: Sequence[str]) -> dict[str, str]:
    """Each spec by how it differs from the others: its items that not all of them have, or its name
    where there are none.
    """
    items = {spec: _items(spec) for spec in specs}
    shared = set.intersection(*map(set, items.values())) if len(items) > 1 else set()
    return {
        spec: ", ".join(item for item in own if item not in shared) or own[0]
        for spec, own in items.items()
    }


def _items(text: str) -> list[str]:
    """Its name, its positional item and its options, nested specs whole."""
    spec = parse(text)
    return [
        spec.name,
        *([spec.positional] if spec.positional else []),
        *(f"{key}={value}" for key, value in spec.options.items()),
    ]


@dataclass(frozen=True)
class Made:
    """Images that a defense trains on, on the CPU: (n, C, H, W) in [0, 1] and labels (n,)."""

    defense: str
    images: Tensor
    labels: Tensor


def make(setting: StudySetting, specs: tuple[str, ...]) -> Iterator[Made]:
    """The images of each defense, as it would be built. Raises `BadInput` for a defense that gives
    none away.
    """
    evaluations = [evaluation_of(setting, spec) for spec in specs]
    for evaluation in evaluations:
        check_maker(evaluation.defense.plugin, evaluation.defense.spec)
    for evaluation in evaluations:
        setting.progress(f"images of {evaluation.defense.spec}")
        yield images_of(evaluation, setting.device)


def check_maker(plugin: object, spec: str) -> ImageMaker:
    """Raise `BadInput` for a defense that has no images of its own making."""
    if not isinstance(plugin, ImageMaker):
        raise BadInput(
            f"defense {spec!r} trains on no images of its own making, which this study looks at: "
            "leave it out"
        )
    if not getattr(plugin, "makes_images", True):
        raise BadInput(
            f"defense {spec!r} trains on no fixed set of images, which this study looks at: give "
            "mode=staged"
        )
    return plugin


def images_of(evaluation: Evaluation, device: torch.device) -> Made:
    """The images of an evaluation's defense."""
    classifier = copy.deepcopy(evaluation.setup.classifier).to(device)
    noise = BuildNoise(evaluation.build_seed)
    with isolated(evaluation.build_seed):
        images, labels = check_maker(
            evaluation.defense.plugin, evaluation.defense.spec
        ).training_images(classifier, data_access(evaluation), noise)
    return Made(evaluation.defense.spec, images.cpu(), labels.cpu())


def embedded(setting: StudySetting, images: Tensor, embedding: Embedding) -> Floats:
    """Points (n, d): the classifier's features before its last layer, or pixels."""
    if embedding == "features":
        return features(setting, images)
    return images.flatten(1).double().numpy()


def training_points(setting: StudySetting, n: int, embedding: Embedding) -> tuple[Floats, Tensor]:
    """Points and labels of the first n training images in the evaluation's order of images."""
    train = setting.setup.dataset.plugin.train()
    chosen = train.first(min(n, len(train)))
    return embedded(setting, chosen.pixels(), embedding), chosen.labels
