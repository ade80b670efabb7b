"""What a defense is checked on: a few images, a classifier, and the defense as the engine builds
it.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.attack import Attack
from bench.contract.check import IMAGES, Unbuilt
from bench.contract.setups import built_in_setup, setup_in_memory
from bench.contract.toys import labelled
from bench.defense import DataAccess, DefendedClassifier, Defense, Forward, NoParams
from bench.engine.build import build, data_access
from bench.engine.evaluation import Evaluation
from bench.engine.request import SetupRequest
from bench.engine.setup import Setup, load_setup
from bench.errors import BadInput, one_line
from bench.losses import margin
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, isolated
from bench.plugins.create import DEFENSES, Named, create
from bench.randomness import RandomnessModel
from bench.spec import Spec, canonical, parse, read_params
from bench.threat import ThreatModel
from bench.victim import Victim

CPU = torch.device("cpu")


class Witness(DataAccess):
    """Access to data that remembers what was asked of it."""

    def __init__(self, access: DataAccess) -> None:
        self.__dict__.update(vars(access))
        self.asked: set[str] = set()

    def _get(self, need: Any, *arguments: Any, **options: Any) -> Any:
        self.asked.add(str(need))
        return super()._get(need, *arguments, **options)


class OneStep(Attack[NoParams]):
    """One full step up the margin's gradient: the least that an attack does with a defense."""

    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """The images after one step of length eps."""
        rows = torch.arange(len(images), device=images.device)
        slope = victim.objective(labels, margin)(images, rows, 0, True).gradient
        return images if slope is None else threat.ascend(images, slope, threat.eps, images)


class DefenseCase:
    """A defense to check, on a few images and a classifier.

    Args:
        defense: a spec such as `my_defense.py@MyDefense:sigma=0.1`, or the class, which then takes
            its default parameters.
        dataset: a data set's spec; built-in images of shape (3, 16, 16) by default.
        classifier: a classifier's spec or a module; the data set's own by default.
        images: images (n, C, H, W) in [0, 1] and labels (n,) instead of a data set; they need a
            module as classifier.
    """

    def __init__(
        self,
        defense: str | type[Defense[Any]],
        dataset: str = "",
        classifier: str | nn.Module | None = None,
        images: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.defense = named_defense(defense)
        self.plugin: Defense[Any] = self.defense.plugin
        self.setup = setup_for(dataset, classifier, images)
        self.images, self.labels = self.setup.images.pixels(), self.setup.images.labels
        self.witness = Witness(data_access(self.evaluation))
        self._base = output(self.setup.classifier, self.images, self.noise())

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation that the engine runs: one step along the gradient that fits the defense,
        under fixed noise.
        """
        offered = [gradient for gradient in self.plugin.gradients if gradient != "full"]
        step: Named[Attack[Any]] = Named("one-step", "one-step", OneStep(NoParams()), ())
        randomness = (
            RandomnessModel("replay")
            if self.plugin.stochastic or self.setup.classifier.stochastic
            else RandomnessModel()
        )
        return Evaluation(
            self.setup,
            self.defense,
            step,
            offered[0] if offered else "full",
            randomness,
            seed=0,
            build_seed=0,
        )

    @cached_property
    def _built(self) -> DefendedClassifier | Exception:
        try:
            return build(self.evaluation, CPU, self.witness)
        except Exception as error:
            return error

    def defended(self) -> DefendedClassifier:
        """A copy of the built defense. Raises `Unbuilt` where it cannot be built."""
        if isinstance(self._built, Exception):
            raise Unbuilt(one_line(self._built)) from self._built
        try:
            return copy.deepcopy(self._built)
        except Exception:
            return self._built

    def noise(self, draw: int = 0) -> Noise:
        """The judge's numbers of one draw, one row an image."""
        return Noise.of(0, Stream.EVAL, self.setup.images.ids, draw)

    def undefended_now(self) -> tuple[Tensor, Tensor]:
        """Logits of the classifier that was given to the defense: before it was built, and now."""
        return self._base, output(self.setup.classifier, self.images, self.noise())


def named_defense(defense: str | type[Defense[Any]]) -> Named[Defense[Any]]:
    """A defense from its spec or its class."""
    if isinstance(defense, str):
        return create(DEFENSES, parse(defense))
    DEFENSES.check(defense, getattr(defense, "__name__", str(defense)))
    params = read_params(defense.Params, Spec(defense.__name__), f"defense {defense.__name__!r}")
    return Named(defense.__name__, canonical(defense.__name__, params), defense(params), ())


def setup_for(
    dataset: str, classifier: str | nn.Module | None, images: tuple[Tensor, Tensor] | None
) -> Setup:
    """What to check a defense on. Raises `BadInput` where images and classifier do not go
    together.
    """
    module = classifier if isinstance(classifier, nn.Module) else None
    if images is not None:
        if module is None:
            raise BadInput(
                "images are given without a module that classifies them: set classifier as well"
            )
        own = labelled(*images)
        given = (
            module
            if isinstance(module, DefendedClassifier)
            else Classifier(module.eval(), _classes(module, own.pixels()))
        )
        return setup_in_memory(given, own, own)
    if dataset:
        spec = classifier if isinstance(classifier, str) else None
        return load_setup(SetupRequest(dataset, spec, None, None, IMAGES), module)
    if classifier is not None:
        raise BadInput(
            "a classifier is given without images that fit it: set dataset, or images, as well"
        )
    return built_in_setup()


def _classes(module: nn.Module, images: Tensor) -> int:
    with isolated(0), torch.no_grad():
        return int(module(images[:1]).shape[1])


def output(forward: Forward, images: Tensor, noise: Noise) -> Tensor:
    """What a forward pass returns, without gradient, the global generators seeded alike and left as
    found.
    """
    with isolated(0), torch.no_grad():
        outputs: Tensor = forward(images, noise)
    return outputs
