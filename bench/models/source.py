"""The contract of a classifier source: where a trained network comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from bench.models.classifier import Classifier
from bench.spec import Params

P = TypeVar("P", bound=Params)


class ClassifierSource(ABC, Generic[P]):
    """A source of trained classifiers. Subclasses set the class attributes and write `load`.

    Attributes:
        Params: the parameter model.
        positional: the parameter that a spec's item without key fills.
        version: raise it when the same spec may give another classifier.
    """

    Params: ClassVar[type[Params]] = Params
    positional: ClassVar[str | None] = None
    version: ClassVar[int] = 1

    def __init__(self, params: P) -> None:
        self.params = params

    @abstractmethod
    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, weights frozen, in evaluation mode.

        Args:
            num_classes: number of classes of the data set.
            channels: channels of its images.

        Raises `BadInput` where the classifier cannot be read or does not fit the data set.
        """
