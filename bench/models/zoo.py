"""`zoo:NAME`: classifiers that come with the suite."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.models.file import describe, read_classifier
from bench.models.source import ClassifierSource
from bench.spec import Params, nearest

WEIGHTS = Path(__file__).parent / "weights"


class ZooParams(Params):
    name: str = Field(description="name of a shipped classifier")


class Zoo(ClassifierSource[ZooParams]):
    """A classifier that comes with the suite, trained by `bench train`; its sidecar has recipe
    and accuracy.
    """

    Params: ClassVar[type[Params]] = ZooParams
    positional: ClassVar[str | None] = "name"

    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, frozen, in evaluation mode. Raises `BadInput` for an unknown name or an
        unfit data set.
        """
        name = self.params.name
        if name not in names():
            raise BadInput(f"unknown zoo classifier {name!r}.{nearest(name, names())}")
        path = WEIGHTS / f"{name}.safetensors"
        about = describe(path)
        if about is None:
            raise BadInput(f"{path} has no description beside it: reinstall the suite")
        return read_classifier(path, about, num_classes, channels)


def names() -> list[str]:
    """Names of the shipped classifiers, sorted."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
