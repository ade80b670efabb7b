"""The contract of an attack: it knows a Victim, labels and a threat model, and returns points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, final

import torch
from torch import Tensor

from bench.defense import Card, NoParams
from bench.spec import Params
from bench.threat import ThreatModel
from bench.victim import Victim

P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Attacked:
    """What an attack achieved.

    Attributes:
        points: float32 (n, C, H, W), inside ball and box.
        predictions: predicted labels of the points re-evaluated in float32 on the native forward pass; int64 (n, draws). One
            column for a deterministic defense, one a tape under replay, none under fresh randomness, where the judge decides.
        reprojected: how many points the attack had left outside ball or box.
    """

    points: Tensor
    predictions: Tensor
    reprojected: int


class Attack(ABC, Generic[P]):
    """Subclasses set the class attributes and write `run`; callers use the instance as a function.

    Attributes:
        Params: the parameter model.
        version: raise it when the points may change; it enters the identity of every result.
        card: paper and note.
    """

    Params: ClassVar[type[Params]] = NoParams
    version: ClassVar[int] = 1
    card: ClassVar[Card] = Card()

    def __init__(self, params: P) -> None:
        self.params = params

    @abstractmethod
    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """Adversarial points of the shape of `images` (n, C, H, W); row i belongs to the victim's row i."""

    @final
    def __call__(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Attacked:
        """Run the attack, put its points into ball and box, and re-evaluate them."""
        points = self.run(victim, images, labels, threat).detach().float()
        if points.shape != images.shape or not bool(torch.isfinite(points).all()):
            raise RuntimeError(f"{type(self).__name__} returned points of shape {tuple(points.shape)} or not finite ones")
        outside = ~threat.contains(points, images)
        if bool(outside.any()):
            points = points.clone()
            points[outside] = threat.project(points[outside], images[outside])
        return Attacked(points, victim.verify(points), int(outside.sum()))
