"""The study `time`: what it takes to build a defense that trains on images of its own making."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bench.engine.build import build
from bench.spec import Specs
from bench.storage.artifacts import empty_cache
from bench.studies.deployed import DefenseStudy, evaluation_of
from bench.studies.overhead import Passed
from bench.studies.study import EVERYTHING, StudyResult, StudySetting
from bench.studies.synthetic import MadeParams, check_maker, images_of, short_names

TEN_THOUSAND = 10_000
_PASSES = ("forwards", "input_backwards", "weight_backwards")


@runtime_checkable
class Claims(Protocol):
    """A defense that says what its method costs."""

    def claimed_passes(self) -> Mapping[str, Mapping[str, int]]:
        """For `synthesis` and `training`: how many `iterations` use each image, and the forwards,
        input_backwards and weight_backwards of one.
        """


class TimingParams(MadeParams):
    defenses: Specs = Field(
        (
            "datafreeshield:images=200,iterations=150,synthesis_batch=50,synthesis_rate=0.1,"
            "epochs=5,batch=50,group=2",
        ),
        min_length=1,
        description="defenses that train on images of their own making, joined by +, in "
        "parentheses where they hold commas",
    )


@dataclass
class Passes:
    """Images that went through a classifier and its copies: forwards, and backwards to the image or
    to the weights alone.
    """

    forwards: int = 0
    input_backwards: int = 0
    weight_backwards: int = 0
    seconds: float = 0.0


class Timing(DefenseStudy[TimingParams]):
    """What does it take to build a defense that trains on images of its own making: passes through
    the network, and seconds?

    Passes are counted, for each image and iteration (of the synthesis; of the training an epoch),
    beside those that the method claims; of a defense that claims none, such as a baseline in two
    stages, for each image in all. Seconds are wall time for 10,000 images, on this
    machine and under its load. Nothing comes from the cache.
    """

    Params = TimingParams
    uses = EVERYTHING - {"n"}

    def run(self, setting: StudySetting) -> StudyResult:
        for spec in self.params.defenses:
            check_maker(evaluation_of(setting, spec).defense.plugin, spec)
        table = pd.DataFrame(
            [row for spec in self.params.defenses for row in stages(setting, spec)]
        )
        return StudyResult(
            tables={"time": table},
            sentence=sentence(table),
            scale=f"{', '.join(map(str, table['images']))} images",
        )


def stages(setting: StudySetting, spec: str) -> Iterator[dict[str, object]]:
    """The costs of a defense's images, and of its training on them."""
    evaluation = evaluation_of(setting, spec)
    plugin = check_maker(evaluation.defense.plugin, spec)
    claims = plugin.claimed_passes() if isinstance(plugin, Claims) else {}
    kind = type(evaluation.setup.classifier)
    with empty_cache():
        setting.progress(f"{evaluation.defense.spec}: synthesis")
        with counted(kind) as synthesis:
            count = len(images_of(evaluation, setting.device).images)
        setting.progress(f"{evaluation.defense.spec}: training")
        with counted(kind) as training:
            build(evaluation, setting.device)
    for stage, passes in (("synthesis", synthesis), ("training", training)):
        yield {
            "defense": evaluation.defense.spec,
            "stage": stage,
            "images": count,
            **_row(passes, count, claims.get(stage)),
        }


def _row(passes: Passes, images: int, claimed: Mapping[str, int] | None) -> dict[str, float]:
    iterations = claimed["iterations"] if claimed else 1
    row: dict[str, float] = {"iterations": iterations}
    for name in _PASSES:
        measured = getattr(passes, name) / images / iterations
        row |= {name: measured, f"{name}_claimed": claimed[name] if claimed else math.nan}
    return {**row, "seconds": passes.seconds * TEN_THOUSAND / images}


@contextmanager
def counted(kind: type[nn.Module]) -> Iterator[Passes]:
    """Count and time what goes through any module of this class inside the block, copies that are
    made there included.

    A backward pass counts as one to the image where the image asked for its gradient in the forward
    pass.
    """
    passes, began = Passes(), time.perf_counter()

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if type(module) is not kind:
            return None
        passes.forwards += len(output)
        name = "input_backwards" if inputs[0].requires_grad else "weight_backwards"

        def report() -> None:
            setattr(passes, name, getattr(passes, name) + len(output))

        metered: Tensor = Passed.apply(output, report)
        return metered

    # What the hook returns takes the output's place.
    handle = register_module_forward_hook(leave)  # type: ignore[arg-type]
    try:
        yield passes
    finally:
        handle.remove()
        passes.seconds = time.perf_counter() - began


def sentence(table: pd.DataFrame) -> str:
    """Passes and seconds of each stage."""
    names = short_names(list(table["defense"].unique()))
    stages = [
        f"{row['stage']} of {names[row['defense']]}: {_about(row)}"
        for row in table.to_dict("records")
    ]
    return f"Passes an image and iteration, measured (claimed): {'; '.join(stages)}."


def _claim(claimed: float) -> str:
    return "" if math.isnan(claimed) else f" ({claimed:.0f})"


def _about(row: dict[Any, Any]) -> str:
    words = ("F", "B to the image", "B to the weights")
    counts = [
        f"{row[key]:.4g} {word}" + _claim(row[f"{key}_claimed"])
        for key, word in zip(_PASSES, words, strict=True)
        if row[key]
    ]
    return (
        f"{', '.join(counts)}, {row['seconds']:.0f} s for 10000 images and "
        f"{row['iterations']} iterations each"
    )
