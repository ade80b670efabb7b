"""The contract of a classifier source: where a trained network comes from."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from bench.models.classifier import Classifier
from bench.plugins.plugin import P, Plugin


class ClassifierSource(Plugin[P]):
    """A source of trained classifiers. Subclasses set the class attributes and write `load`."""

    @abstractmethod
    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, weights frozen, in evaluation mode.

        Args:
            num_classes: number of classes of the data set.
            channels: channels of its images.

        Raises `BadInput` where the classifier cannot be read or does not fit the data set, and
        `Missing` where its file is not there.
        """

    def architecture(self, num_classes: int, channels: int) -> nn.Module | None:
        """The bare network, whatever its weights: what a plan counts where their file is missing.
        None where only the file says what it is.

        Raises `BadInput` where it cannot be built or does not fit the data set.
        """
        return None
