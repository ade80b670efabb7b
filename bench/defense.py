"""The contracts between classifier, defense and engine.

A *defended classifier* is a module with `forward(images, noise) -> logits`. A *defense* builds one
from a classifier, touching only the data that it declared. Neither knows what attacks there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from bench.errors import AccessDenied, BadInput
from bench.noise import BuildNoise, Noise
from bench.randomness import RandomnessModel
from bench.spec import Params, own_params
from bench.threat import ThreatModel

if TYPE_CHECKING:
    from bench.diffusion.model import DiffusionModel

Forward = Callable[[Tensor, Noise], Tensor]
"""(images (n, C, H, W) in [0, 1], noise with n rows) to an output with n rows."""


class Need(StrEnum):
    """What a defense may use beyond the classifier's weights. No defense ever gets test labels."""

    PUBLIC_IMAGES = "public images"
    GENERATOR = "pretrained generator"
    UNLABELLED_TEST = "unlabelled test images"
    TRAINING_DATA = "training data"


class PoolUse(BaseModel):
    """What of the unlabelled test images a defense adapted on: how many, and what share of them was
    attacked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=0)
    adversarial: float = Field(ge=0, le=1)


class DataAccess:
    """The accessor through which a defense gets data, and the only one.

    Asking for what was not declared raises `AccessDenied`.

    Args:
        needs: what the defense declared.
        sources: a loader for each need that the evaluator can serve.
        defense: the defense's name, for messages.
        threat: the threat model that the evaluation announces; a defense may train for it.
        shape: (C, H, W) of the images that the classifier takes.

    Attributes:
        pool: the unlabelled pool that was handed out; None where none was.
    """

    def __init__(
        self,
        needs: frozenset[Need],
        sources: Mapping[Need, Callable[[], Any]],
        defense: str,
        threat: ThreatModel,
        shape: tuple[int, ...],
    ) -> None:
        self._needs = needs
        self._sources = sources
        self._defense = defense
        self.pool: PoolUse | None = None
        self.threat = threat
        self.shape = shape

    def training_data(self) -> tuple[Tensor, Tensor]:
        """Training images (n, C, H, W) in [0, 1] and labels (n,) of the data set under
        evaluation.
        """
        images: tuple[Tensor, Tensor] = self._get(Need.TRAINING_DATA)
        return images

    def public_images(self) -> Tensor:
        """Images (n, C, H, W) in [0, 1] of the data set that `Defense.asks` names, made to fit the
        classifier; without labels.
        """
        images: Tensor = self._get(Need.PUBLIC_IMAGES)
        return images

    def unlabelled_pool(self, n: int, adversarial: float = 0.0) -> Tensor:
        """Test images (n, C, H, W) in [0, 1] other than the evaluated ones, mixed, without labels.

        Args:
            n: how many.
            adversarial: share of them that is attacked on the undefended classifier, away from what
                it predicts.

        Raises `BadInput` where fewer are left.
        """
        images: Tensor = self._get(Need.UNLABELLED_TEST)(n, adversarial)
        self.pool = PoolUse(images=n, adversarial=adversarial)
        return images

    def generator(self) -> DiffusionModel:
        """The diffusion model that `Defense.asks` names, else the data set's own; a copy, frozen,
        in evaluation mode.
        """
        model: DiffusionModel = self._get(Need.GENERATOR)
        return model

    def _get(self, need: Need) -> Any:
        if need not in self._needs:
            raise AccessDenied(
                f"defense {self._defense!r} asked for {need} without declaring it: add it to "
                "`needs`"
            )
        if need not in self._sources:
            raise BadInput(
                f"defense {self._defense!r} needs {need}, which this data set does not offer: use "
                "another"
            )
        return self._sources[need]()


@dataclass(frozen=True)
class GaussianVote:
    """What a classifier votes over: what `base` says of the image under Gaussian noise.

    Attributes:
        sigma: standard deviation of the noise, independent for each entry, in units of [0, 1]
            pixels.
        base: images (n, C, H, W) with that noise, not clipped, to the logits of one draw; its own
            noise, where it takes any, is independent of the image's.
    """

    sigma: float
    base: Forward


class DefendedClassifier(nn.Module):
    """A classifier as it is deployed: `forward(images, noise) -> logits`.

    Images are float32 (n, C, H, W) in [0, 1]; logits are (n, num_classes). All randomness comes
    from `noise`, whose rows belong to the images' rows, so that the same noise gives the same
    logits.

    Attributes:
        num_classes: number of classes K.
        stochastic: whether the logits depend on `noise`.
        gradients: the names that `forward_pass` accepts.
        transfers: those of `gradients` whose forward pass computes another function. An attack on
            it is a transfer attack: it never sees the defense itself, and a success on the other
            function proves nothing.
        tunable: those of `gradients` that take parameters, as in `surrogate:steps=5`.
        notes: what a reader of its numbers must know of how it was built, one line each; they
            become findings of the record and lines below every table with its rows.
        optimises: whether its forward pass runs an optimisation loop that takes no gradient from
            autograd (those that do are seen).
        scored: those of `views` that are scored beside the answer, on clean and on attacked images:
            `detector` (2 logits: clean, adversarial) as a detector, others as answers.
    """

    num_classes: int
    stochastic: bool = False
    gradients: tuple[str, ...] = ("full",)
    transfers: tuple[str, ...] = ()
    tunable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    optimises: bool = False
    scored: tuple[str, ...] = ()

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """Logits (n, num_classes)."""
        raise NotImplementedError

    def views(self) -> tuple[str, ...]:
        """Names of the outputs that an attack may aim at; `logits` always, and others such as
        `features` or `transformed`.
        """
        return ("logits",)

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """A forward pass to `view` with the gradient of this name; `full` is the native one.

            classifier.forward_pass("bpda", "logits")(images, noise)

        The passes to one view have bit-equal outputs, but for `transfers`; only their backward
        passes differ. A defense with parts that block gradients overrides this.

        Raises:
            BadInput: for a gradient or a view that is not offered.
        """
        if gradient != "full":
            raise BadInput(f"this defense offers no gradient {gradient!r}: use --gradient full")
        if view != "logits":
            raise BadInput(
                f"unknown view {view!r}: this classifier offers {', '.join(self.views())}"
            )
        return self

    def gaussian_vote(self) -> GaussianVote | None:
        """What it votes over, where its answer is the class that most draws of Gaussian noise on
        the image are given; None for all others.

        `bench certify` then bounds the vote of infinitely many draws, drawing the noise itself.
        """
        return None


def gradient_name(gradient: str) -> str:
    """The name in a gradient's spec: `surrogate` of `surrogate:steps=5`."""
    return gradient.partition(":")[0]


def straight_through(value: Tensor, proxy: Tensor) -> Tensor:
    """`value` in the forward pass (bit for bit), the gradient of `proxy` in the backward pass.

    Backward pass differentiable approximation: Athalye, Carlini, Wagner 2018, arXiv 1802.00420,
    section 4.1.
    """
    return value.detach() + (proxy - proxy.detach())


class Wrapper(DefendedClassifier):
    """A defense around a classifier. Subclasses write `forward_pass`, on top of `inner`.

    A gradient is offered where the class or the classifier offers it.
    """

    def __init__(self, classifier: DefendedClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = classifier.num_classes
        self.stochastic = type(self).stochastic or classifier.stochastic
        self.gradients = tuple(dict.fromkeys((*type(self).gradients, *classifier.gradients)))
        self.transfers = tuple(dict.fromkeys((*type(self).transfers, *classifier.transfers)))
        self.tunable = tuple(dict.fromkeys((*type(self).tunable, *classifier.tunable)))

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """Logits (n, num_classes)."""
        return self.forward_pass()(images, noise)

    def views(self) -> tuple[str, ...]:
        """The classifier's own."""
        return self.classifier.views()

    def inner(self, gradient: str, view: str) -> Forward:
        """The classifier's forward pass, its native one where it does not offer this gradient.

        Raises:
            BadInput: where neither the wrapper nor the classifier offers it.
        """
        self.check_gradient(gradient)
        return self.classifier.forward_pass(
            gradient if gradient_name(gradient) in self.classifier.gradients else "full", view
        )

    def check_gradient(self, gradient: str) -> None:
        """Raise `BadInput` for a gradient that is not offered, or that takes no parameters."""
        name = gradient_name(gradient)
        if name not in self.gradients:
            raise BadInput(
                f"this defense offers no gradient {gradient!r}: use {' or '.join(self.gradients)}"
            )
        if gradient != name and name not in self.tunable:
            raise BadInput(
                f"gradient {name!r} takes no parameters: drop what follows the colon in "
                f"{gradient!r}"
            )


class InputTransform(Wrapper):
    """A defense that transforms the image and then classifies it.

    Subclasses write `transform`. The gradient `bpda` keeps the transform forward and replaces its
    backward by that of `surrogate`, the identity unless the defense names a better one.
    """

    gradients: tuple[str, ...] = ("full", "bpda")

    def transform(self, images: Tensor, noise: Noise) -> Tensor:
        """The image that the classifier sees; any shape that the classifier accepts."""
        raise NotImplementedError

    def surrogate(self, images: Tensor, noise: Noise) -> Tensor:
        """A differentiable stand-in for `transform`, of the same shape; its output is used in the
        backward pass only.
        """
        return images

    def views(self) -> tuple[str, ...]:
        """`transformed`, the image that the classifier sees, and the classifier's own views."""
        return ("transformed", *self.classifier.views())

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """As `DefendedClassifier.forward_pass`; the classifier's own gradients work as well."""
        self.check_gradient(gradient)
        replaced = gradient == "bpda" and "bpda" in type(self).gradients
        front = self._transform_bpda if replaced else self.transform
        if view == "transformed":
            return front
        inner = self.inner(gradient, view)
        return lambda images, noise: inner(front(images, noise), noise.at("classifier"))

    def _transform_bpda(self, images: Tensor, noise: Noise) -> Tensor:
        return straight_through(
            self.transform(images.detach(), noise), self.surrogate(images, noise)
        )


@dataclass(frozen=True)
class Card:
    """What a reader must know of a plugin.

    Attributes:
        paper: authors, venue or arXiv number.
        note: one sentence on what it is or hides.
        truth: its documented true robustness with the source; empty where none is known (defenses
            only).
        expected: what accuracy the first of `attacks` leaves: `base`, the undefended classifier's
            under the same attack; `share`, a constant class's share; `unknown`, where it is known
            to be broken but not how far here. Empty for a defense without a known answer (defenses
            only).
        surrogate: what replaces its parts without gradient in the backward pass `bpda` (defenses
            only).
        attacks: specs of the attacks that fit it, the one that breaks it first; the attack
            `adaptive` runs them all (defenses only).
        control: whether an attack is a control that is not meant to succeed (attacks only).
        stand_in: whether a defense stands in for a published one whose code or details are missing;
            boards say so behind its name (defenses only).
    """

    paper: str = ""
    note: str = ""
    truth: str = ""
    expected: Literal["base", "share", "unknown", ""] = ""
    surrogate: str = ""
    attacks: tuple[str, ...] = ()
    control: bool = False
    stand_in: bool = False


@dataclass(frozen=True)
class Setting:
    """Where an attack is to run, and a defense to be built.

    Attributes:
        stochastic: whether the defended classifier draws random numbers.
        randomness: how queries draw them.
        threat: the threat model.
        num_classes: number of classes K.
        shape: (C, H, W) of the images.
        has_base: whether attacks may ask the undefended classifier.
        gradients: the backward passes that attacks may ask for.
        attacks: specs of attacks that the defense's card names.
    """

    stochastic: bool
    randomness: RandomnessModel
    threat: ThreatModel
    num_classes: int
    shape: tuple[int, ...]
    has_base: bool = field(default=True, kw_only=True)
    gradients: tuple[str, ...] = field(default=("full",), kw_only=True)
    attacks: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class BuildSetting(Setting):
    """Where a defense is to be built; an attack never sees this.

    Attributes:
        classifier: what `build` gets a copy of; to look at, not to change.
        generator: loads the diffusion model that the defense asks for. Raises `BadInput` where
            there is none.
    """

    classifier: DefendedClassifier
    generator: Callable[[], DiffusionModel]


class NoParams(Params):
    """No parameters."""


P = TypeVar("P", bound=Params)


def declares(kind: type, name: str) -> bool:
    """Whether a plugin's class, or one that it derives from outside this module, sets `name`."""
    return any(name in vars(one) for one in kind.__mro__ if one.__module__ != __name__)


class Defense(ABC, Generic[P]):
    """How to build a defended classifier. Subclasses set the class attributes and write `build`.

    Parameters are given by keyword, `Jitter(sigma=0.1)`, or as their model.

    `stochastic` and `gradients` decide, before anything is built, which attacks make sense. One
    place is enough: either this class, which the built module then follows, or the module's class,
    which `builds` names. What `build` returns is checked against it.

    Attributes:
        Params: the parameter model; `name:key=value` fills it.
        version: raise it when the numbers may change; it enters the identity of every result.
        seeded: whether `build` draws anything. Otherwise the build seed is no part of a row's
            identity.
        needs: the data that `build` may ask for.
        builds: class of the module that `build` returns; `stochastic` and `gradients` are then
            taken from it.
        gradients: the names that the result's `forward_pass` accepts, beside those of the
            classifier given to it. `("full",)` says that nothing in it blocks gradients.
        encloses: whether the result is made of the classifier given to it, whose randomness and
            gradients then count as well.
        has_base: whether rows are compared with the undefended classifier.
        card: paper, note, fitting attacks.
    """

    Params: ClassVar[type[Params]] = NoParams
    version: ClassVar[int] = 1
    seeded: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    builds: ClassVar[type[DefendedClassifier] | None] = None
    gradients: ClassVar[tuple[str, ...]] = ("full",)
    encloses: ClassVar[bool] = True
    has_base: ClassVar[bool] = True
    card: ClassVar[Card] = Card()

    def __init__(self, params: P | None = None, /, **parameters: Any) -> None:
        self.params: P = own_params(self, params, parameters)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("stochastic", "gradients"):
            if cls.builds is not None and not declares(cls, name):
                setattr(cls, name, getattr(cls.builds, name))

    @property
    def stochastic(self) -> bool:
        """Whether the built classifier draws random numbers (beyond those of the classifier given
        to it).
        """
        return False

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of its randomness; `replay:freeze=NAME` fixes one alone.

        Together they are all of it; see `Noise.stage`.
        """
        return ()

    @property
    def asks(self) -> Mapping[Need, str]:
        """Which of several sources `build` asks for, as specs, by need; an empty spec is the data
        set's own.
        """
        return {}

    def check(self, setting: BuildSetting) -> None:
        """Raise `BadInput` where the parameters make no sense here, for this classifier or this
        diffusion model; nothing has been computed.
        """

    @abstractmethod
    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> nn.Module:
        """The defended classifier: a `DefendedClassifier`, or any module with `forward(images)` or
        `forward(images, noise)`, which the engine wraps.

        Args:
            classifier: the undefended one, in evaluation mode; a copy of its own, which it may
                change or train (its weights take gradients). As a function it takes noise with one
                row an image; a deterministic one ignores it.
            access: the accessor to the declared data.
            noise: the build's random numbers; see `BuildNoise`.
        """
