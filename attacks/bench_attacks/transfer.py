"""`transfer`: points that were made elsewhere, judged here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench.attack import Attack, AttackOutput, Passes
from bench.defense import Card, Setting
from bench.errors import BadInput
from bench.results.findings import Finding
from bench.searches import margin_steps
from bench.spec import IfGiven, Params
from bench.threat import ThreatModel
from bench.victim import BASE_VIEW, Images, Victim
from bench_attacks.best import Best
from bench_attacks.pgd import random_point
from bench_attacks.points import PointFile, as_pixels, channels_first, read_source, sha256_of

STEPS, RESTARTS = 20, 3


class TransferParams(Params):
    """Parameters of `transfer`."""

    points: str = Field(
        description="base: made here, on the undefended classifier; a record, FOLDER/STEM or "
        "FOLDER/ID, whose points lie beside it; or a file of points: .npz, .safetensors or .pt",
        min_length=1,
    )
    projected: bool = Field(
        False, description="project points that lie outside ball or box, instead of refusing them"
    )
    steps: Annotated[int, IfGiven()] = Field(
        STEPS, ge=1, le=100_000, description="of base: gradient steps a start"
    )
    restarts: Annotated[int, IfGiven()] = Field(
        RESTARTS, ge=1, le=10_000, description="of base: starts, whose points are all judged"
    )

    @property
    def of_base(self) -> bool:
        """Whether the points are made here."""
        return self.points == BASE_VIEW

    @model_validator(mode="after")
    def _says_what_matters(self) -> TransferParams:
        if not self.of_base and (self.steps, self.restarts) != (STEPS, RESTARTS):
            raise ValueError("steps and restarts belong to transfer:base: points are read as made")
        if self.of_base and self.projected:
            raise ValueError("the points of transfer:base lie in the ball: drop projected")
        return self


class Transfer(Attack[TransferParams]):
    """Points that were made elsewhere, judged here: on the undefended classifier, in another row,
    or by another program.

    `base` searches on the undefended classifier without a look at the defense: steps on the margin
    to its end, from the image and from random points. The points of all starts are judged.

    A file holds points (n, C, H, W) or (n, H, W, C), uint8 or float in [0, 1], and may hold the
    ids of their images. With ids they are matched by id, else by the evaluation order. They must
    lie in ball and box.
    """

    Params = TransferParams
    positional: ClassVar[str | None] = "points"
    card = Card(
        paper="Papernot et al. 2016, arXiv 1605.07277",
        note="points of a file or a record cost no passes; points of another source say nothing of "
        "an attack on this defense itself",
    )

    @cached_property
    def _file(self) -> PointFile:
        return read_source(self.params.points)

    @property
    def contents(self) -> Mapping[str, Any]:
        """The points by their content, wherever they lie."""
        return {} if self.params.of_base else {"points": f"sha256:{sha256_of(self.params.points)}"}

    def passes(self, num_classes: int = 10) -> Passes | None:
        """Each start through the base, and a look at its point."""
        del num_classes
        if not self.params.of_base:
            return Passes(0)
        return Passes(self.params.steps + 2, self.params.steps) * self.params.restarts

    def check(self, setting: Setting) -> None:
        """Refuse points of the undefended classifier where there is none."""
        if self.params.of_base and not setting.has_base:
            raise BadInput(
                "transfer:base attacks the undefended classifier, and there is none beside this "
                "defense: give a file of points"
            )

    def look(self, images: Images, threat: ThreatModel) -> Iterable[str]:
        """Refuse points that are of other images, or that lie outside ball or box."""
        if self.params.of_base:
            return
        origin = images.pixels()
        points = self._matched(images.ids, np.arange(len(images)), tuple(origin.shape[1:]))
        outside = ~threat.contains(points, origin)
        if not bool(outside.any()):
            return
        far = float(threat.distance(points[outside], origin[outside]).max())
        told = (
            f"{int(outside.sum())} of {len(points)} points lie outside {threat} or [0, 1], the "
            f"farthest at {far:.4g}"
        )
        if not self.params.projected:
            raise BadInput(
                f"{told}: give their eps, or projected=true to project them; points in another "
                "order than the images look like this, too"
            )
        yield f"{told}: they are projected"

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """The points of these images; the engine projects those that lie outside."""
        if self.params.of_base:
            return self._from_base(victim, images, labels, threat)
        points = self._matched(victim.ids, victim.places, tuple(images.shape[1:]))
        name = Path(self.params.points).name
        message = f"the points of {name} were made elsewhere: no attack was run on this defense"
        return AttackOutput(
            points.to(images.device),
            findings=(Finding(name="transfer", verdict="note", message=message),),
        )

    def _from_base(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """Each image's first point that breaks the defense, else the one that comes nearest."""
        best = Best(victim, images, labels)
        for restart in range(self.params.restarts):
            rows = best.open
            if not len(rows):
                break
            with victim.part(rows, of_base=True) as base:
                everything = torch.arange(len(rows), device=images.device)
                start = images[rows]
                if restart:
                    start = random_point(base, start, everything, threat, restart)
                found = margin_steps(
                    base,
                    images[rows],
                    labels[rows],
                    everything,
                    threat,
                    steps=self.params.steps,
                    start=start,
                    restart=restart,
                )
            best.offer(rows, found.points, 0)
        message = "the points were made on the undefended classifier: a transfer attack"
        return AttackOutput(
            best.points, findings=(Finding(name="transfer", verdict="note", message=message),)
        )

    def _matched(
        self, ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64], shape: tuple[int, ...]
    ) -> Tensor:
        """The points of the images with these ids, at these places of the evaluation order."""
        file = self._file
        points = channels_first(file.points, shape, self.params.points)
        if file.ids is None:
            if len(places) and int(places.max()) >= len(points):
                raise BadInput(
                    f"{self.params.points} holds {len(points)} points, fewer than the images: give "
                    f"--n {len(points)}, or a file with ids"
                )
            return as_pixels(points[torch.from_numpy(places)])
        order = np.argsort(file.ids)
        at = np.searchsorted(file.ids, ids, sorter=order).clip(max=len(order) - 1)
        rows = order[at]
        missing = ids[file.ids[rows] != ids]
        if len(missing):
            raise BadInput(
                f"{self.params.points} lacks the points of {len(missing)} images, the first of id "
                f"{missing[0]}: give --n, or a file with all of them"
            )
        return as_pixels(points[torch.from_numpy(rows)])
