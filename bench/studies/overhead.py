"""The study `overhead`: what a purifying defense costs, for its user and for who attacks it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor, nn

from bench.engine.memory import limited
from bench.losses import cross_entropy
from bench.maximise import Objective
from bench.randomness import Query
from bench.studies import plots
from bench.studies.deployed import (
    DefensesParams,
    DefenseStudy,
    Deployed,
    deploy,
    diffusion_model,
    diffusion_models,
)
from bench.studies.study import EVERYTHING, StudyResult, StudySetting
from bench.victim import frozen

CHECKPOINTED = "full, checkpointed"
"""The exact gradient where the activations of all steps do not fit the memory: each step is
computed again.
"""

_PLENTY, _NONE = "1000000G", "1"


class OverheadParams(DefensesParams):
    repeats: int = Field(
        5, ge=1, le=1000, description="timings of each figure; their median counts"
    )


@dataclass
class Calls:
    """Images that went through the diffusion network, forwards and backwards."""

    forwards: int = 0
    backwards: int = 0


class Overhead(DefenseStudy[OverheadParams]):
    """What does a purifying defense cost: network evaluations and seconds an image, and
    forward-equivalents of each gradient?

    Network evaluations are counted, an image's pass through the diffusion network being one; a
    backward pass to the image counts as one forward-equivalent more, since the weights take no
    gradient. Seconds are medians on this machine, in one batch, and repeat no better than its load
    allows.
    """

    Params = OverheadParams
    uses = EVERYTHING - {"norm", "eps"}
    default_n = 32

    def run(self, setting: StudySetting) -> StudyResult:
        deployed = deploy(setting, self.params.defenses, ["purified", "times"])
        schedules = [diffusion_model(defense).steps for defense in deployed]
        classify = _classifier_seconds(deployed[0], self.params.repeats)
        costs = pd.DataFrame(
            [
                inference(defense, steps, classify, self.params.repeats)
                for defense, steps in zip(deployed, schedules, strict=True)
            ]
        )
        gradients = pd.DataFrame(
            [row for defense in deployed for row in gradient_rows(defense, self.params.repeats)]
        )
        return StudyResult(
            tables={"inference": costs, "gradients": gradients},
            figures={"gradients": overhead_figure(gradients)},
            sentence=sentence(costs, gradients),
            scale=f"medians of {self.params.repeats} timings, batches of {_batch(setting)}",
        )


def _batch(setting: StudySetting) -> int:
    return min(setting.batch_size, len(setting.setup.images))


def _classifier_seconds(defense: Deployed, repeats: int) -> float:
    """Seconds an image of the classifier alone. They are short, so that more of them are taken."""
    plain = copy.deepcopy(defense.setup.classifier).to(defense.images.device)
    batch = _batch(defense.setting)
    noise = defense.victim().random(defense.rows[:batch])
    with torch.no_grad():
        return (
            _seconds(
                lambda: plain(defense.images[:batch], noise), 10 * repeats, defense.images.device
            )
            / batch
        )


def inference(defense: Deployed, steps: int, classify: float, repeats: int) -> dict[str, object]:
    """Network evaluations and seconds an image, without gradient.

    Args:
        steps: length T of the diffusion model's schedule.
        classify: seconds that the classifier takes for an image.
    """
    defense.setting.progress(f"{defense.spec}: purification")
    batch = _batch(defense.setting)
    x, rows, victim = defense.images[:batch], defense.rows[:batch], defense.victim()
    with frozen(defense.classifier):
        purify = (
            _seconds(lambda: victim.logits(x, rows, Query(), "purified"), repeats, x.device) / batch
        )
        with counted(defense.classifier) as calls:
            victim.logits(x[:1], rows[:1], Query(), "purified")
        times = victim.logits(x[:1], rows[:1], Query(), "times")[0, 0]
    return {
        "defense": defense.spec,
        "evaluations": calls.forwards,
        "share_of_generation": _reversed(times) / steps,
        "batch": batch,
        "classifier_seconds": classify,
        "purification_seconds": purify,
        "latency_ratio": (purify + classify) / classify,
    }


def _reversed(times: Tensor) -> int:
    """How many steps of the schedule are reversed: the sum of all drops of the time index."""
    return int((times[:-1] - times[1:]).clamp(min=0).sum())


def gradient_rows(defense: Deployed, repeats: int) -> Iterator[dict[str, object]]:
    """The cost of one gradient of one image for each backward pass that the defense offers; seconds
    are those in a batch.

    The checkpointed one is not timed: how many images it takes at once, and so its time, depends on
    the memory.
    """
    for gradient in defense.classifier.gradients:
        defense.setting.progress(f"{defense.spec}: gradient {gradient}")
        objective = defense.victim(gradient=gradient).objective(defense.labels, cross_entropy)
        with frozen(defense.classifier):
            counts = _count(defense, objective, _PLENTY)
            seconds = _time(defense, objective, repeats)
            yield {"defense": defense.spec, "gradient": gradient, **counts, "seconds": seconds}
            if gradient == "full":
                counts = _count(defense, objective, _NONE)
                about = {"defense": defense.spec, "gradient": CHECKPOINTED}
                yield {**about, **counts, "seconds": math.nan}


def _count(defense: Deployed, objective: Objective, memory: str) -> dict[str, int]:
    def gradient() -> None:
        objective(defense.images[:1], defense.rows[:1], 0, True)

    with limited(memory):
        # The first pass measures what a step keeps, which is no cost of the gradient.
        gradient()
        with counted(defense.classifier) as calls:
            gradient()
    both = calls.forwards + calls.backwards
    return {"forwards": calls.forwards, "backwards": calls.backwards, "forward_equivalents": both}


def _time(defense: Deployed, objective: Objective, repeats: int) -> float:
    batch = _batch(defense.setting)
    x, rows = defense.images[:batch], defense.rows[:batch]
    return _seconds(lambda: objective(x, rows, 0, True), repeats, x.device) / batch


def _seconds(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall time after one pass to warm up."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


class Passed(torch.autograd.Function):
    """The identity, which reports the backward pass through it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, report: Callable[[], None]) -> Tensor:
        ctx.report = report
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.report()
        return gradient, None


@contextmanager
def counted(classifier: nn.Module) -> Iterator[Calls]:
    """Count what goes through the diffusion networks of a defense inside the block."""
    calls = Calls()

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        z, *rest = inputs
        calls.forwards += len(z)

        def report() -> None:
            calls.backwards += len(z)

        return (Passed.apply(z, report), *rest)

    handles = [
        model.network.register_forward_pre_hook(enter) for model in diffusion_models(classifier)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


# What is shown ------------------------------------------------------------------------------------


def sentence(costs: pd.DataFrame, gradients: pd.DataFrame) -> str:
    """What each defense costs."""
    return "; ".join(_about(row, gradients) for row in costs.to_dict("records")) + "."


def _about(row: dict[Any, Any], gradients: pd.DataFrame) -> str:
    own = gradients[gradients["defense"] == row["defense"]].to_dict("records")
    counts = ", ".join(f"{cost['forward_equivalents']} ({cost['gradient']})" for cost in own)
    return (
        f"{row['defense']} takes {row['evaluations']} network evaluations and "
        f"{1000 * row['purification_seconds']:.2f} ms an image, the classifier "
        f"{1000 * row['classifier_seconds']:.3f} ms (latency x {row['latency_ratio']:.0f}; "
        f"{row['share_of_generation']:.0%} of a full generation's schedule); a gradient costs "
        f"forward-equivalents {counts}"
    )


def overhead_figure(gradients: pd.DataFrame) -> Figure:
    """Forward-equivalents and seconds of each gradient."""
    figure, both = plots.panels(
        "What one gradient of a purifying defense costs an attack",
        [
            ("network passes an image", "", "counted"),
            ("milliseconds an image", "", "timed on this machine"),
        ],
    )
    defenses, names = list(gradients["defense"].unique()), list(gradients["gradient"].unique())
    height = 0.8 / len(defenses)
    for place, (defense, colour) in enumerate(zip(defenses, plots.COLOURS, strict=False)):
        rows = gradients[gradients["defense"] == defense].set_index("gradient").reindex(names)
        at = [index + (place - (len(defenses) - 1) / 2) * height for index in range(len(names))]
        both[0].barh(at, rows["forwards"], height, color=colour, label=f"{defense}: forward")
        behind = {"left": rows["forwards"], "alpha": 0.45}
        both[0].barh(
            at, rows["backwards"], height, color=colour, label=f"{defense}: backward", **behind
        )
        both[1].barh(at, 1000 * rows["seconds"], height, color=colour, label=defense)
    for axes in both:
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        plots.legend(axes, loc="lower right")
    both[1].tick_params(labelleft=False)
    return figure
