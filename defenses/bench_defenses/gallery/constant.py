"""The same answer for every image."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, Setting
from bench.errors import BadInput
from bench.noise import BuildNoise, Noise
from bench.spec import Params


class ConstantParams(Params):
    """Parameters of `constant`."""

    label: int = Field(0, ge=0, description="the class that is always answered")


class ConstantClass(DefendedClassifier):
    """Logit 1 for one class, 0 for the others, whatever the image."""

    def __init__(self, num_classes: int, label: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label = label

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """The same logits for each of n images: (n, num_classes)."""
        logits = torch.zeros(len(images), self.num_classes, device=images.device)
        logits[:, self.label] = 1
        return logits


class Constant(Defense[ConstantParams]):
    """One class for every image: perfectly robust and useless."""

    Params = ConstantParams
    card = Card(
        note="its robust accuracy is the class's share, on which no attack has any effect; "
        "macro-F1 and the collapse check show it",
        truth="the class's share of the labels, exactly",
        expected="share",
        attacks=("pgd",),
    )

    def check(self, setting: Setting) -> None:
        """Raise `BadInput` for a class that there is not."""
        if self.params.label >= setting.num_classes:
            raise BadInput(
                f"constant: label={self.params.label}, but there are {setting.num_classes} "
                f"classes: give 0 to {setting.num_classes - 1}"
            )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """A classifier that does not look."""
        return ConstantClass(classifier.num_classes, self.params.label)
