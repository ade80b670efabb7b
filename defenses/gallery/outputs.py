"""Defenses that change the logits and nothing else."""

from __future__ import annotations

from torch import Tensor

from bench.defense import DefendedClassifier, Forward, straight_through
from bench.errors import BadInput
from bench.noise import Noise


class OutputTransform(DefendedClassifier):
    """A classifier whose logits go through `transform`.

    The gradient `bpda` keeps the transform forward and takes the logits' own gradient backward.
    """

    gradients: tuple[str, ...] = ("full", "bpda")

    def __init__(self, classifier: DefendedClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = classifier.num_classes
        self.stochastic = classifier.stochastic
        self.gradients = tuple(dict.fromkeys((*type(self).gradients, *classifier.gradients)))

    def transform(self, logits: Tensor) -> Tensor:
        """Logits (n, num_classes) to what is returned in their place, of the same shape."""
        raise NotImplementedError

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """The transformed logits."""
        return self.twin()(images, noise)

    def views(self) -> tuple[str, ...]:
        """The classifier's own; `logits` are the transformed ones."""
        return self.classifier.views()

    def twin(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The gradients in `gradients`; one that the classifier offers too reaches through to it."""
        if gradient not in self.gradients:
            raise BadInput(f"this defense offers no gradient {gradient!r}: use {' or '.join(self.gradients)}")
        inner = self.classifier.twin(gradient if gradient in self.classifier.gradients else "full", view)
        if view != "logits":
            return inner
        if gradient == "bpda" and "bpda" in type(self).gradients:
            return lambda images, noise: self._bpda(inner(images, noise))
        return lambda images, noise: self.transform(inner(images, noise))

    def _bpda(self, logits: Tensor) -> Tensor:
        return straight_through(self.transform(logits.detach()), logits)
