"""The contract of an attack: it knows a Victim, labels and a threat model, and returns points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, final

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
class AttackOutput:
    """What `Attack.run` returns where points alone do not tell all.

    Attributes:
        points: (n, C, H, W).
        stages: which of the attack's stages broke each image in its own view, int64 (n,);
            `NO_STAGE` where none did, `WRONG_BEFORE` where the image was wrong before the first.
        findings: what a reader of the number must know.
        targets: the class that each image was to become, int64 (n,); `NO_TARGET` where none. None
            for an attack that aims at no class in particular.
    """

    points: Tensor
    stages: Tensor | None = None
    findings: tuple[Finding, ...] = ()
    targets: Tensor | None = None


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
        stages, findings, targets: as the attack returned them; see `AttackOutput`.
    """

    points: Tensor
    predictions: Tensor
    reprojected: int
    stages: Tensor
    findings: tuple[Finding, ...] = ()
    targets: Tensor | None = None


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

    def unit(self, stochastic: bool) -> int | None:
        """How many images, counted along the evaluation order, are attacked in one call.

        None where an image's points do not depend on the others in its call; the engine then
        chooses.
        """
        return None

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
    def contents(self) -> Mapping[str, str]:
        """By parameter: what stands in an identity in place of the name of a file, its SHA-256."""
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
    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackResult:
        """Run the attack, put its points into ball and box, and re-evaluate them."""
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
        stages = (
            torch.full((len(points),), NO_STAGE) if output.stages is None else output.stages.cpu()
        )
        return AttackResult(
            points,
            victim.verify(points),
            int(outside.sum()),
            stages,
            output.findings,
            output.targets,
        )
