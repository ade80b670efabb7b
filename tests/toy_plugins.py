"""A toy data set and toy defenses for tests of the engine; importing this registers them for the
process.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import torch
from pydantic import Field

from bench.attack import Attack
from bench.data.dataset import Dataset, ImageSet
from bench.defense import Defense, InputTransform, Need, NoParams
from bench.losses import margin
from bench.plugins.create import ATTACKS, DATASETS, DEFENSES
from bench.spec import Params
from tests.toys import linear_problem


class ToyParams(Params):
    n: int = Field(40, ge=1)
    classes: int = Field(3, ge=2)


@DATASETS.register("toy")
class Toy(Dataset[ToyParams]):
    """Images of a linear problem."""

    Params = ToyParams
    default_norm, default_eps = "linf", 0.05

    @property
    def num_classes(self) -> int:
        return self.params.classes

    @property
    def drawn_from(self) -> tuple[str, ...]:
        return ("toy/test",)

    def test(self) -> ImageSet:
        _, images, labels = linear_problem(self.params.classes, self.params.n, active_box=False)
        return ImageSet(images, labels, np.arange(self.params.n, dtype=np.int64))

    def train(self) -> ImageSet:
        return self.test()


class Jittered(InputTransform):
    def __init__(self, classifier, sigma):
        super().__init__(classifier)
        self.sigma, self.stochastic = sigma, True

    def transform(self, images, noise):
        return images + self.sigma * noise.normal("jitter", tuple(images.shape[1:]))


class JitterParams(Params):
    sigma: float = 0.05


@DEFENSES.register("toy-jitter")
class Jitter(Defense[JitterParams]):
    """Gaussian input noise."""

    Params = JitterParams
    gradients = ("full", "bpda")

    @property
    def stochastic(self) -> bool:
        return True

    def build(self, classifier, access, noise):
        return Jittered(classifier, self.params.sigma)


@DEFENSES.register("toy-crash")
class Crash(Defense[NoParams]):
    """Crashes when attacked."""

    gradients = ("full", "bpda")

    def build(self, classifier, access, noise):
        class Crashing(InputTransform):
            def transform(self, images, noise):
                if len(images) > 8:
                    raise ValueError("this defense crashes on larger batches")
                return images

        return Crashing(classifier)


@DEFENSES.register("toy-thief")
class Thief(Defense[NoParams]):
    """Asks for training data that it did not declare."""

    def build(self, classifier, access, noise):
        access.training_data()
        return classifier


class KillParams(Params):
    at: int = 0


@ATTACKS.register("toy-kill")
class Kill(Attack[KillParams]):
    """PGD that kills its own process at a given image while the environment says so."""

    Params = KillParams

    def run(self, victim, images, labels, threat):
        from bench_attacks.pgd import PGD, PGDParams

        ids = victim.ids
        if os.environ.get("TOY_KILL") and self.params.at in ids:
            os.kill(os.getpid(), signal.SIGKILL)
        return PGD(PGDParams(steps=5)).run(victim, images, labels, threat)


@DEFENSES.register("toy-vandal")
class Vandal(Defense[NoParams]):
    """Destroys the classifier's weights in place."""

    def build(self, classifier, access, noise):
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.zero_()
        return classifier


@DEFENSES.register("toy-secret")
class Secret(Defense[NoParams]):
    """Builds something stochastic without saying so."""

    gradients = ("full", "bpda")

    def build(self, classifier, access, noise):
        return Jittered(classifier, 0.1)


class Rounded(InputTransform):
    """Blocks gradients."""

    def transform(self, images, noise):
        return (images * 8).round() / 8


@DEFENSES.register("toy-rounding")
class Rounding(Defense[NoParams]):
    """Offers bpda without saying so."""

    def build(self, classifier, access, noise):
        return Rounded(classifier)


@DEFENSES.register("toy-honest")
class Honest(Defense[NoParams]):
    """Declares training data and asks for it."""

    needs = frozenset({Need.TRAINING_DATA})

    def build(self, classifier, access, noise):
        images, labels = access.training_data()
        assert len(images) == len(labels)
        return classifier


@DEFENSES.register("toy-trainer")
class Trainer(Defense[NoParams]):
    """Takes one step of ordinary training on the training images."""

    needs = frozenset({Need.TRAINING_DATA})

    def build(self, classifier, access, noise):
        images, labels = access.training_data()
        optimiser = torch.optim.SGD(classifier.parameters(), lr=1e-4)
        torch.nn.functional.cross_entropy(classifier(images, noise), labels).backward()
        optimiser.step()
        return classifier


@ATTACKS.register("toy-lower")
class Lower(Attack[NoParams]):
    """Lowers the loss instead of raising it: an attack that corrects what was wrong."""

    def run(self, victim, images, labels, threat):
        rows = torch.arange(len(images))
        slope = victim.objective(labels, margin)(images, rows, 0, True).gradient
        return threat.ascend(images, -slope, threat.eps, images)


class StagedTransform(InputTransform):
    """Gaussian input noise in two stages."""

    stochastic = True

    def transform(self, images, noise):
        shape = tuple(images.shape[1:])
        first = noise.stage("first").normal("a", shape)
        return images + 0.01 * (first + noise.stage("second").normal("b", shape))


@DEFENSES.register("toy-stages")
class Staged(Defense[NoParams]):
    """Gaussian input noise in two stages that can be frozen alone."""

    gradients = ("full", "bpda")

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def stages(self) -> tuple[str, ...]:
        return ("first", "second")

    def build(self, classifier, access, noise):
        return StagedTransform(classifier)
