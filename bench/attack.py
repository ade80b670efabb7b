"""The contract of an attack: it knows a Victim, labels and a threat model, and returns points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Self, TypeVar, final

import torch
from torch import Tensor

from bench.defense import Card, NoParams, Setting
from bench.results.findings import Finding
from bench.results.outcomes import NO_STAGE
from bench.spec import Params, own_params
from bench.threat import ThreatModel
from bench.victim import Images, Victim

P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of one image, one draw a query."""

    forward: int
    backward: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Passes:
        return Passes(times * self.forward, times * self.backward)

    @property
    def total(self) -> int:
        return self.forward + self.backward


@dataclass(frozen=True)
class AttackOutput:
    """What `Attack.run` returns where points alone do not tell all.

    Attributes:
        points: (n, C, H, W).
        stages: which of the attack's stages broke each image in its own view, int64 (n,);
            `NO_STAGE` where none did, `WRONG_BEFORE` where the image was wrong before the first.
        findings: what a reader of the number must know.
        targets: the class that each image was to become, int64 (n,); `NO_TARGET` where none. None
            for an attack that aims at no class in particular.
        distances: how far the nearest point lies that breaks the image in the attack's own view,
            float64 (n,); infinite where it found none. That point may lie outside the ball;
            `points` may not. None for an attack that does not look for it.
    """

    points: Tensor
    stages: Tensor | None = None
    findings: tuple[Finding, ...] = ()
    targets: Tensor | None = None
    distances: Tensor | None = None


@dataclass(frozen=True)
class AttackResult:
    """What an attack achieved.

    Attributes:
        points: float32 (n, C, H, W), inside ball and box.
        predictions: predicted labels of the points re-evaluated in float32 on the native forward
            pass; int64 (n, draws). One column for a deterministic defense, one for each
            fixed noise under replay,
            none under fresh randomness, where the judge decides.
        reprojected: how many points the attack had left outside ball or box.
        stages, findings, targets, distances: as the attack returned them; see `AttackOutput`.
    """

    points: Tensor
    predictions: Tensor
    reprojected: int
    stages: Tensor
    findings: tuple[Finding, ...] = ()
    targets: Tensor | None = None
    distances: Tensor | None = None


class Attack(ABC, Generic[P]):
    """Subclasses set the class attributes and write `run`; callers use the instance as a function.

    Parameters are given by keyword, `MyAttack(steps=5)`, or as their model.

    Attributes:
        Params: the parameter model.
        version: raise it when the points may change; it enters the identity of every result.
        card: paper and note.
        stages: names of the attacks that run one after the other on what the earlier ones left;
            empty for a single attack.
    """

    Params: ClassVar[type[Params]] = NoParams
    version: ClassVar[int] = 1
    card: ClassVar[Card] = Card()

    def __init__(self, params: P | None = None, /, **parameters: Any) -> None:
        self.params: P = own_params(self, params, parameters)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""
        return ()

    @property
    def targeted(self) -> bool:
        """Whether it says in `AttackOutput.targets` which class each image was to become."""
        return False

    @property
    def measures(self) -> bool:
        """Whether it says in `AttackOutput.distances` how far what breaks an image lies."""
        return False

    def unit(self, stochastic: bool) -> int | None:
        """How many images, counted along the evaluation order, are attacked in one call.

        None where an image's points do not depend on the others in its call; the engine then
        chooses.
        """
        return None

    def passes(self, num_classes: int = 10) -> Passes | None:
        """What an image costs at most that is right and is not broken: one draw a query, without
        the pass that looks at its point again.

        None where that is not known before the attack runs; the card's note then says on what it
        depends.
        """
        return None

    def fitted(self, setting: Setting) -> Self:
        """The attack as it runs in this setting: itself, unless the setting says what it is made
        of. Its stages, contents and checks are then those of the attack that is returned.

        Raises `BadInput` where the setting names what there is not.
        """
        return self

    def check(self, setting: Setting) -> None:
        """Raise `BadInput` where the attack makes no sense in this setting; nothing has been
        computed yet.
        """

    def remarks(self, setting: Setting) -> Iterable[str]:
        """What a user should know of these parameters in this setting before it runs."""
        return ()

    def look(self, images: Images, threat: ThreatModel) -> Iterable[str]:
        """What a user should know of these parameters on the images that will be attacked.

        Raises `BadInput` where they do not fit; nothing has been computed yet.
        """
        return ()

    @property
    def contents(self) -> Mapping[str, Any]:
        """By parameter: what stands in an identity in its place, such as a file's SHA-256 instead
        of its name.
        """
        return {}

    def review(self, left: dict[str, float]) -> list[Finding]:
        """Findings on a whole evaluation from the share of images that survived each stage, in the
        order of the stages.
        """
        return []

    @abstractmethod
    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> Tensor | AttackOutput:
        """Adversarial points of the shape of `images` (n, C, H, W); row i belongs to the victim's
        row i.
        """

    @final
    def found(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> tuple[AttackOutput, int]:
        """What `run` returns, its points float32 inside ball and box, and how many of them it had
        left outside.
        """
        output = self.run(victim, images, labels, threat)
        if isinstance(output, Tensor):
            output = AttackOutput(output)
        points = output.points.detach().float()
        if points.shape != images.shape or not bool(torch.isfinite(points).all()):
            raise RuntimeError(
                f"{type(self).__name__} returned points of shape {tuple(points.shape)} or not "
                "finite ones"
            )
        outside = ~threat.contains(points, images)
        if bool(outside.any()):
            points = points.clone()
            points[outside] = threat.project(points[outside], images[outside])
        return replace(output, points=points), int(outside.sum())

    @final
    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackResult:
        """Run the attack, put its points into ball and box, and re-evaluate them."""
        output, outside = self.found(victim, images, labels, threat)
        points = output.points
        stages = (
            torch.full((len(points),), NO_STAGE) if output.stages is None else output.stages.cpu()
        )
        return AttackResult(
            points,
            victim.verify(points),
            outside,
            stages,
            output.findings,
            output.targets,
            output.distances,
        )
