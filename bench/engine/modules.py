"""Plain modules where a defended classifier is expected: wrapped, and named as defenses."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

from torch import Tensor, nn

from bench.defense import (
    Card,
    DataAccess,
    DefendedClassifier,
    Defense,
    NoParams,
    declares,
)
from bench.engine.preflight import probe
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, Noise
from bench.spec import parse


class NoiseModule(DefendedClassifier):
    """A plain module with `forward(images, noise)`: (n, C, H, W) in [0, 1] to logits (n, K)."""

    def __init__(self, module: nn.Module, num_classes: int, *, stochastic: bool) -> None:
        super().__init__()
        self.module = module
        self.training = module.training
        self.num_classes = num_classes
        self.stochastic = stochastic

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """Logits (n, num_classes)."""
        logits: Tensor = self.module(images, noise)
        return logits


def takes_noise(module: nn.Module) -> bool:
    """Whether a module is called as `module(images, noise)`: it requires a second argument."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        one
        for one in parameters
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) == 2


def wrapped(
    module: nn.Module, num_classes: int, images: Tensor, *, stochastic: bool
) -> DefendedClassifier:
    """A module with `forward(images)` or `forward(images, noise)` as a defended classifier.

    Args:
        module: to logits (n, num_classes); one that keeps the contract already stays as it is.
        images: a few to try it on, (n, C, H, W) in [0, 1].
        stochastic: whether its maker says that it draws random numbers. Of a module that takes no
            noise it is also found out: where it reads a global generator, each row runs under a
            generator of its own.

    Raises:
        BadInput: where it does not run on these images.
    """
    if isinstance(module, DefendedClassifier):
        return module
    if takes_noise(module):
        return NoiseModule(module, num_classes, stochastic=stochastic)
    classifier = Classifier(module, num_classes)
    probe(classifier, images)
    classifier.stochastic = classifier.stochastic or stochastic
    return classifier


def follow(defense: Defense[Any], defended: DefendedClassifier, gradients: tuple[str, ...]) -> None:
    """Give a built module what its defense declares and its own class leaves open.

    Args:
        defense: what built it.
        defended: the module.
        gradients: all that the defended classifier is to offer.
    """
    kind = type(defended)
    if (
        defense.stochastic
        and declares(type(defense), "stochastic")
        and not declares(kind, "stochastic")
        and not defended.stochastic
    ):
        defended.stochastic = True
    inside = getattr(defended, "classifier", None)
    default = {*kind.gradients, *getattr(inside, "gradients", ())}
    if (
        set(defended.gradients) == default != set(gradients)
        and declares(type(defense), "gradients")
        and not declares(kind, "gradients")
    ):
        defended.gradients = gradients


class ModuleDefense(Defense[NoParams]):
    """A module of one's own as a defense, under a name of one's own.

    It is evaluated as it is. Its base is the model given beside it; without one it has none.

    Args:
        module: from images (n, C, H, W) in [0, 1] to logits (n, K): any `nn.Module` with
            `forward(images)` or `forward(images, noise)`, or a `DefendedClassifier`.
        name: of its rows, such as `mine`.
        stochastic: whether it draws random numbers. By default it is found out; a module that
            takes noise is expected to use it.

    Raises:
        BadInput: where `module` is none, or the name cannot stand in a spec.
    """

    encloses: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    card = Card(note="a module given from Python")

    def __init__(self, module: nn.Module, name: str, *, stochastic: bool | None = None) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise BadInput(
                f"ModuleDefense got {type(module).__name__}, not a torch.nn.Module: give the "
                "module itself"
            )
        if not isinstance(name, str) or parse(name).name != name or "@" in name:
            raise BadInput(f"{str(name)[:80]!r} cannot name a defense: use a word such as mine")
        self.module, self.name = module, name
        self.has_base = True  # type: ignore[misc]
        if isinstance(module, DefendedClassifier):
            self.gradients = module.gradients  # type: ignore[misc]
            stochastic = module.stochastic
        elif stochastic is None and takes_noise(module):
            stochastic = True
        self._stochastic = stochastic

    @property
    def stochastic(self) -> bool:
        return bool(self._stochastic)

    def look(self, num_classes: int, images: Tensor) -> None:
        """Find out whether it draws random numbers, on a few images (n, C, H, W) in [0, 1], where
        nobody said so. Raises `BadInput` where it does not run on them.
        """
        if self._stochastic is None:
            self._stochastic = self._wrapped(num_classes, images).stochastic

    def alone(self) -> ModuleDefense:
        """The same without a base."""
        other = copy.copy(self)
        other.has_base = False  # type: ignore[misc]
        return other

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The module, wrapped where it is a plain one."""
        images = noise.at("look").uniform("pixels", (1, *access.shape))[0].repeat(2, 1, 1, 1)
        built = self._wrapped(classifier.num_classes, images)
        base = (
            "its base is the model given beside it"
            if self.has_base
            else "no base, as no model was given beside it"
        )
        built.notes = (*built.notes, f"a module given from Python; {base}")
        return built

    def _wrapped(self, num_classes: int, images: Tensor) -> DefendedClassifier:
        try:
            module = copy.deepcopy(self.module)
        except Exception:
            module = self.module
        if module.training and not isinstance(module, DefendedClassifier):
            module.eval()
        return wrapped(module, num_classes, images, stochastic=self.stochastic)
