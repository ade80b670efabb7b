"""What a record does not store, computed when somebody asks: logits, what the defense makes of an
image, and the path of the attack's loss.
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.commands.verify import built, rebuild
from bench.defense import DefendedClassifier
from bench.engine.build import own_copy
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.engine.fingerprint import weights_sha256
from bench.errors import BadInput, one_line
from bench.maximise import Trace
from bench.noise import Stream
from bench.plugins.create import BASE
from bench.randomness import Draws, Query, RandomnessModel
from bench.report.pictures.levels import is_picture, picture, png, to_levels
from bench.results.points import read_points
from bench.results.record import Record
from bench.victim import Victim, frozen, predict

VIEWS = ("transformed", "purified")
"""Views of a defense that are the image that its classifier sees."""

_KEPT, _MOST_CLASSES, _MOST_PATHS = 2, 10, 40


@dataclass(frozen=True)
class _OneDraw(RandomnessModel):
    """One draw of the judge, by its number."""

    number: int = 0

    def draws(self, query: Query) -> Draws:
        return Draws(Stream.EVAL, [self.number])


@dataclass(frozen=True)
class _Built:
    evaluation: Evaluation
    defended: DefendedClassifier
    notes: tuple[str, ...]


class Asker:
    """Builds the defenses of records, and asks them; one question at a time.

    Args:
        execution: how to compute.
        check: raises `BadInput` where a record names code that may not be run.
    """

    def __init__(self, execution: Execution, check: Callable[[Record], None]) -> None:
        self._execution, self._check = execution, check
        self._built: OrderedDict[str, _Built] = OrderedDict()
        self._lock = Lock()

    def answers(
        self, record: Record, folder: Path, places: Sequence[int], draw: int, *, pictures: bool
    ) -> list[dict[str, Any]]:
        """Logits and pictures of what the classifier sees, before and after the attack.

        Args:
            record: its points lie in `folder`.
            folder: of the record.
            places: which images, by their place in the record.
            draw: which of the judge's draws, from 0.
            pictures: whether pictures may be shown.

        Returns:
            For each image what its page shows, with plain numbers.

        Raises:
            BadInput: where the defense cannot be built again.
        """
        points = torch.from_numpy(read_points(record, folder)[list(places)])
        with self._lock:
            found = self._of(record, folder)
            subset = found.evaluation.setup.images.at(np.asarray(places, dtype=np.int64))
            victim = self._victim(found, subset.ids, _OneDraw("judge", 1, number=draw))
            with exact_float32(self._execution.device), frozen(found.defended):
                asked = {
                    # The attacked points first, as `bench verify` asks.
                    "attacked": self._outputs(victim, points, pictures=pictures),
                    "clean": self._outputs(victim, subset.pixels(), pictures=pictures),
                }
        draws = f", draw {draw + 1}" if record.stochastic else ""
        return [
            {
                "views": list(_views(asked, at)),
                "classes": _classes(asked, at, int(subset.labels[at])),
                "caption": f"Logits{draws}",
                "notes": [*found.notes, *_differs(record, asked, at, place, draw)],
            }
            for at, place in enumerate(places)
        ]

    def path(self, record: Record, folder: Path, place: int) -> dict[str, Any]:
        """The attack of a record, run again on one image: what it maximised, search by search.

        Raises:
            BadInput: where the evaluation cannot be made again.
        """
        with self._lock:
            found = self._of(record, folder)
            evaluation, device = found.evaluation, self._execution.device
            subset = evaluation.setup.images.at(np.array([place]))
            victim = self._victim(found, subset.ids, evaluation.randomness, evaluation.gradient)
            victim.places, victim.evaluated = np.array([place]), evaluation.setup.images
            victim.trace = trace = Trace()
            with exact_float32(device), frozen(found.defended):
                result = evaluation.attack.plugin(
                    victim,
                    subset.pixels().to(device),
                    subset.labels.to(device),
                    evaluation.setup.threat,
                )
        paths = [trace.paths(number).get(0, []) for number in trace.restarts()]
        finite = [[value for value in one if math.isfinite(value)] for one in paths]
        shown = [one for one in finite if one][:_MOST_PATHS]
        passes = f"{int(victim.forwards.sum())} forward, {int(victim.backwards.sum())} backward"
        notes = [
            "What the attack maximises, step by step, a line a search."
            if shown
            else "This attack tells no path: it asks the defense as a plain function, or not."
        ]
        notes += [f"The first {_MOST_PATHS} of {len(finite)}."] * (len(finite) > _MOST_PATHS)
        ends = _ends(record, folder, place, result.points)
        notes.append(f"It ran again on this image: {passes} passes. {ends}")
        return {"paths": shown, "notes": [*found.notes, *notes]}

    def _of(self, record: Record, folder: Path) -> _Built:
        if record.id not in self._built:
            self._check(record)
            evaluation = rebuild(record)
            with exact_float32(self._execution.device):
                path = folder / f"{record.stem}.json"
                defended, _, _ = built(record, evaluation, path, self._execution.device)
            stored = record.environment.get("weights")
            notes = ["The defense built here has other weights than the one attacked."]
            same = stored is None or stored == weights_sha256(defended)
            self._built[record.id] = _Built(evaluation, defended, () if same else tuple(notes))
            if len(self._built) > _KEPT:
                self._built.popitem(last=False)
        self._built.move_to_end(record.id)
        return self._built[record.id]

    def _victim(
        self, built: _Built, ids: Any, randomness: RandomnessModel, gradient: str = "full"
    ) -> Victim:
        evaluation, device = built.evaluation, self._execution.device

        def base() -> DefendedClassifier:
            classifier = own_copy(evaluation.setup.classifier)[0].to(device)
            return classifier.requires_grad_(False)

        has_base = evaluation.defense.name == BASE or evaluation.base() is not None
        return Victim(
            built.defended,
            ids,
            randomness=randomness,
            gradient=gradient,
            root=evaluation.seed,
            batch_size=self._execution.batch_size,
            device=device,
            base=base if has_base else None,
        )

    def _outputs(self, victim: Victim, pixels: Tensor, *, pictures: bool) -> dict[str, Tensor]:
        """By view, what comes out for images (n, C, H, W): (n, ...)."""
        names = ["logits", *(one for one in VIEWS if pictures and one in victim.views)]
        x = pixels.to(self._execution.device)
        rows = torch.arange(len(x), device=x.device)
        return {name: victim.logits(x, rows, Query(), name)[:, 0].cpu() for name in names}


def _views(asked: dict[str, dict[str, Tensor]], at: int) -> Iterator[dict[str, str]]:
    for name in asked["clean"]:
        shown = {which: outputs[name][at] for which, outputs in asked.items()}
        if name != "logits" and all(is_picture(tuple(one.shape)) for one in shown.values()):
            yield {"name": name, **{which: _as_url(one) for which, one in shown.items()}}


def _as_url(pixels: Tensor) -> str:
    content = png(picture(to_levels(pixels.numpy())))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _classes(asked: dict[str, dict[str, Tensor]], at: int, label: int) -> list[dict[str, Any]]:
    """The logits of the classes that count, the largest attacked one first."""
    clean, attacked = (asked[which]["logits"][at].tolist() for which in ("clean", "attacked"))
    order = sorted(range(len(clean)), key=lambda one: -_ranked(attacked[one]))
    most = sorted(range(len(clean)), key=lambda one: -_ranked(clean[one]))[: _MOST_CLASSES // 2]
    shown = order
    if len(order) > _MOST_CLASSES:
        wanted = {*order[: _MOST_CLASSES // 2], *most, label}
        shown = [one for one in order if one in wanted]
    return [
        {"label": one, "clean": _finite(clean[one]), "attacked": _finite(attacked[one])}
        for one in shown
    ]


def _ranked(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _differs(
    record: Record, asked: dict[str, dict[str, Tensor]], at: int, place: int, draw: int
) -> list[str]:
    """A line where the defense answers otherwise than the record says."""
    stored = {"clean": record.outcomes.clean, "attacked": record.outcomes.adversarial}
    names = {"clean": "clean", "attacked": "adversarial"}
    differing = []
    for which in stored:
        now = int(predict(asked[which]["logits"][at]))
        then = int(record.outcomes.predictions(names[which])[place, draw])
        if now != then:
            differing.append(f"{which}: {now} here, {then} in the record")
    if not differing:
        return ["It answers as in the record."]
    return [
        f"It answers otherwise than in the record ({'; '.join(differing)}): see `bench verify`."
    ]


def _ends(record: Record, folder: Path, place: int, points: Tensor) -> str:
    try:
        stored = read_points(record, folder)[place]
    except BadInput:
        return "The stored point is not there to compare with."
    far = float(np.abs(points[0].cpu().numpy() - stored).max())
    if far == 0:
        return "It ends at the stored point."
    return f"It ends {far:.2g} away from the stored point, in the largest pixel."


def told(error: Exception) -> str:
    """An error as one line for a page."""
    return str(error) if isinstance(error, BadInput) else one_line(error)
