"""What studies share that build defenses several times, attack each build alike and compare them on the same images.

A defense that is trained comes out otherwise under each build seed. A difference between two defenses counts only beside what two
builds of one defense differ by, so builds are resampled like images (`bench.protocols`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from bench.evaluation import Options, compute_cell
from bench.metrics import measure
from bench.outcomes import Outcomes
from bench.plan import Cell, Request, plan
from bench.plugins import DEFENSES, create, create_attack
from bench.protocols import Contrast, gap_over_builds, majority, mcnemar, mean_of_draws, mean_over_builds
from bench.spec import Params, parse, unnest
from bench.statistics import Bools, Floats
from bench.studies.study import Study, StudyResult, StudySetting

SEEDS_APART = 1_000
"""Build seeds of a study begin at its own seed times this, so that two seeds share no build."""

SIGNIFICANT = 0.05

SpecText = Annotated[str, Field(min_length=1), AfterValidator(unnest)]
"""One spec, in parentheses where it holds commas."""


class BuildsParams(Params):
    """How often each defense is built, and what attacks it."""

    builds: int = Field(3, ge=1, le=SEEDS_APART, description="builds of each defense, under seeds of their own")
    attack: SpecText = Field("pgd:steps=20", description="attack on each build, in parentheses where it holds commas")


@dataclass(frozen=True)
class Attacked:
    """A defense's builds under attack.

    Attributes:
        defense: its canonical spec.
        clean, robust: share of right draws (builds, n) without and under attack; a build in each row, an image in each column.
        right: whether an image is robust in most draws, bool (builds, n).
        collapsed: of each build, whether it answers one class whatever it sees.
    """

    defense: str
    clean: Floats
    robust: Floats
    right: Bools
    collapsed: list[bool]


P = TypeVar("P", bound=BuildsParams)


class BuildsStudy(Study[P]):
    """Base of these studies; the identity holds the defenses, the attack and the data that the defenses get."""

    @abstractmethod
    def specs(self) -> tuple[str, ...]:
        """The defenses; all are compared with the first."""

    def plugins(self) -> dict[str, Any]:
        """The defenses by spec, and the attack."""
        named = [create(DEFENSES, parse(spec)) for spec in self.specs()]
        return {"attack": create_attack(self.params.attack).attack.identity, **{one.spec: one.identity for one in named}}

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """Hashes of the data that the defenses declare."""
        cells = planned(setting, self.specs(), self.params.attack, 0)
        return {f"{cell.defense.spec}: {need}": sha for cell in cells for need, sha in cell.identity["data"].items()}

    def run(self, setting: StudySetting) -> StudyResult:
        """Attack all builds, and compare."""
        found = list(attacked(setting, self.specs(), self.params))
        builds, n = found[0].robust.shape
        return self.answer(found, f"{builds} builds of {len(found)} defenses, {n} images, {self.params.attack}")

    @abstractmethod
    def answer(self, found: list[Attacked], scale: str) -> StudyResult:
        """Tables, figures and the sentence of what was found; `scale` says how much was computed."""


def planned(setting: StudySetting, specs: Sequence[str], attack: str, build: int) -> list[Cell]:
    """The cells of one build, a defense each. Raises `BadInput` for anything that cannot work."""
    request = Request(tuple(specs), (attack,), seeds=(setting.seed,), build_seed=SEEDS_APART * setting.seed + build)
    cells = {cell.defense.spec: cell for cell in plan(request, setting.subject(), setting.progress)}
    return [cells[create(DEFENSES, parse(spec)).spec] for spec in specs]


def attacked(setting: StudySetting, specs: Sequence[str], params: BuildsParams) -> Iterator[Attacked]:
    """Build, attack and judge each defense under each build seed, in the order of `specs`."""
    options = Options(setting.device, setting.batch_size)
    by_build = [planned(setting, specs, params.attack, build) for build in range(params.builds)]
    for cells in zip(*by_build, strict=True):
        outcomes = []
        for build, cell in enumerate(cells):
            setting.progress(f"{cell.defense.spec}: build {build + 1} of {params.builds}")
            outcomes.append(compute_cell(cell, options))
        yield gathered(cells[0], outcomes)


def gathered(cell: Cell, outcomes: Sequence[Outcomes]) -> Attacked:
    """One defense's verdicts, a build in each row."""
    clean, robust = ([one.correct(which) for one in outcomes] for which in ("clean", "adversarial"))
    by_gradient = not cell.attack.plugin.card.control
    return Attacked(
        defense=cell.defense.spec,
        clean=np.stack([mean_of_draws(one) for one in clean]),
        robust=np.stack([mean_of_draws(one) for one in robust]),
        right=np.stack([majority(one) for one in robust]) > 0,
        collapsed=[measure(one, by_gradient=by_gradient).collapsed for one in outcomes],
    )


# Tables ----------------------------------------------------------------------------------------------------------------


def comparison(found: Sequence[Attacked]) -> pd.DataFrame:
    """A row a defense: means over builds and images, and the paired difference to the first one, with their intervals.

    `lower` and `higher` count the builds that McNemar's test calls lower or higher than the same build of the first, at the 5 %
    level.
    """
    return pd.DataFrame([_row(one, found[0]) for one in found])


def _row(one: Attacked, first: Attacked) -> dict[str, object]:
    row: dict[str, object] = {
        "defense": one.defense,
        **_columns("clean", mean_over_builds(one.clean)),
        **_columns("robust", mean_over_builds(one.robust)),
        "collapsed": sum(one.collapsed),
    }
    if one is not first:
        pairs = [pair for pair in _pairs(one, first) if pair["p"] < SIGNIFICANT]
        row |= _columns("difference", gap_over_builds(one.robust, first.robust))
        row |= {"lower": sum(pair["lost"] > pair["won"] for pair in pairs), "higher": sum(p["won"] > p["lost"] for p in pairs)}
    return row


def _columns(name: str, value: Contrast) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def by_build(found: Sequence[Attacked]) -> pd.DataFrame:
    """A row a build: accuracies, and against the same build of the first defense the images lost and won, and McNemar's p."""
    rows = []
    for one in found:
        for build, pair in enumerate(_pairs(one, found[0])):
            accuracies = {"clean": one.clean[build].mean(), "robust": one.robust[build].mean(), "collapsed": one.collapsed[build]}
            rows.append({"defense": one.defense, "build": build, **accuracies, **pair})
    return pd.DataFrame(rows)


def _pairs(one: Attacked, first: Attacked) -> list[dict[str, float]]:
    return [
        {"lost": int((b & ~a).sum()), "won": int((a & ~b).sum()), "p": mcnemar(a, b)}
        for a, b in zip(one.right, first.right, strict=True)
    ]


def percent(row: dict[Any, Any], name: str) -> str:
    """`41.3 [38.0, 44.9]`: a value of a row with its interval, times 100."""
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
