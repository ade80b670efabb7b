"""What is seen of a defense's inference."""

import pytest
import torch

from bench.defense import DefendedClassifier
from bench.engine.inference import inspect
from bench.models.classifier import Classifier
from bench.noise import isolated
from bench.victim import frozen
from tests.defenses.testtime.helpers import build, network, pixels


class Optimising(DefendedClassifier):
    """Takes a gradient of its own in the forward pass."""

    num_classes = 3

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images, noise):
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            step = torch.autograd.grad(self.classifier(leaf, noise).amax(1).sum(), leaf)[0]
        return self.classifier(images + 0.01 * step.sign(), noise)


@pytest.mark.parametrize(
    ("text", "passes", "obstacles"),
    [
        ("undefended", 1, []),
        ("tte", 10, []),
        ("tte:mode=as_released", 4, []),
        ("bit-depth", 1, ["zero gradient"]),
        ("random-resize:grow=0,shrink=2,ensemble=3", 3, ["random"]),
    ],
)
def test_passes_and_conditions(text, passes, obstacles):
    defended = build(text, network(3, (1, 12, 12)), (1, 12, 12))
    with frozen(defended):
        inference = inspect(
            defended, pixels(4, 1, 12, 12), torch.arange(4) % 3, defended.stochastic
        )
    assert (inference.passes, inference.obstacles()) == (passes, obstacles)


def test_an_optimisation_loop_is_seen():
    inference = inspect(
        Optimising(network(3, (1, 12, 12))), pixels(4, 1, 12, 12), torch.arange(4) % 3, False
    )
    assert (inference.passes, inference.obstacles()) == (2, ["optimisation loop"])


class Pieces(torch.nn.Module):
    """Cuts each image in two pieces, and weighs them by a table that it calls by keyword."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(72, 3)
        self.table = torch.nn.Embedding(2, 3)

    def forward(self, images):
        pieces = self.inner(images.reshape(-1, 72)).reshape(-1, 2, 3)
        return (pieces * self.table(input=torch.arange(2))).sum(1)


class Features(DefendedClassifier):
    """Asks the classifier's layers and never the classifier."""

    num_classes = 3

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images, noise):
        return sum(self.classifier.network(image) for image in (images, 1 - images))


def test_passes_of_layers_that_see_more_or_less_than_the_images():
    images, labels = pixels(4, 1, 12, 12), torch.arange(4) % 3
    with isolated(0):
        pieces = Classifier(Pieces().eval(), 3)
    # The least used layer sees two rows; the classifier as a whole every image once.
    assert inspect(pieces, images, labels, False).passes == 1
    assert inspect(Features(network(3, (1, 12, 12))), images, labels, False).passes == 2
