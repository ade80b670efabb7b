"""What studies share that build defenses several times, attack each build alike and compare them on
the same images.

A defense that is trained comes out otherwise under each build seed. A difference between two
defenses counts only beside what two builds of one defense differ by, so builds are resampled like
images (`bench.results.comparisons`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import compute_outcomes
from bench.execution.local import several
from bench.plugins.create import DEFENSES, create, create_attack
from bench.report.compare import BuildScores, build_scores
from bench.results.metrics import measure
from bench.results.outcomes import Outcomes
from bench.spec import Params, parse, unnest
from bench.studies.deployed import defense_identities
from bench.studies.study import EVERYTHING, Study, StudyResult, StudySetting

SEEDS_APART = 1_000
"""Build seeds of a study begin at its own seed times this, so that two seeds share no build."""

SpecText = Annotated[str, Field(min_length=1), AfterValidator(unnest)]
"""One spec, in parentheses where it holds commas."""


class BuildCount(Params):
    """How often each defense is built."""

    builds: int = Field(
        3, ge=1, le=SEEDS_APART, description="builds of each defense, under seeds of their own"
    )


class BuildsParams(BuildCount):
    """How often each defense is built, and what attacks it."""

    attack: SpecText = Field(
        "pgd:steps=20", description="attack on each build, in parentheses where it holds commas"
    )


P = TypeVar("P", bound=BuildsParams)


class BuildsStudy(Study[P]):
    """Base of these studies; the identity holds the defenses, the attack and the data that the
    defenses get.
    """

    uses = EVERYTHING | {"workers"}

    @abstractmethod
    def specs(self) -> tuple[str, ...]:
        """The defenses; all are compared with the first."""

    def plugins(self) -> dict[str, Any]:
        """The defenses by spec, and the attack."""
        attack = create_attack(self.params.attack).attack
        return {"attack": attack.identity, **defense_identities(self.specs())}

    def sources(self, setting: StudySetting) -> dict[str, str]:
        """Hashes of the data that the defenses declare."""
        return declared(planned(setting, self.specs(), self.params.attack, 0))

    def run(self, setting: StudySetting) -> StudyResult:
        scores = list(attacked(setting, self.specs(), self.params))
        builds, n = scores[0].robust.shape
        return self.answer(
            scores, f"{builds} builds of {len(scores)} defenses, {n} images, {self.params.attack}"
        )

    @abstractmethod
    def answer(self, scores: list[BuildScores], scale: str) -> StudyResult:
        """Tables, figures and the sentence; `scale` says how much was computed."""


def declared(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Hashes of the data that these evaluations' defenses declare, by defense and need."""
    return {
        f"{evaluation.defense.spec}: {need}": sha
        for evaluation in evaluations
        for need, sha in evaluation.identity["data"].items()
    }


def planned(
    setting: StudySetting, specs: Sequence[str], attack: str, build: int
) -> list[Evaluation]:
    """The evaluations of one build, a defense each. Raises `BadInput` for anything that cannot
    work.
    """
    request = Request(
        defenses=tuple(specs),
        attacks=(attack,),
        seeds=(setting.seed,),
        build_seed=SEEDS_APART * setting.seed + build,
    )
    evaluations = {
        evaluation.defense.spec: evaluation
        for evaluation in plan(request, setting.setup, note=setting.progress)
    }
    return [evaluations[create(DEFENSES, parse(spec)).spec] for spec in specs]


def attacked(
    setting: StudySetting, specs: Sequence[str], params: BuildsParams
) -> Iterator[BuildScores]:
    """Build, attack and judge each defense under each build seed, in the order of `specs`."""
    execution = Execution(setting.device, setting.batch_size)
    by_build = [planned(setting, specs, params.attack, build) for build in range(params.builds)]
    ordered = [one for same in zip(*by_build, strict=True) for one in same]

    def compute(place: int) -> bytes:
        evaluation, build = ordered[place], place % params.builds
        setting.progress(f"{evaluation.defense.spec}: build {build + 1} of {params.builds}")
        return compute_outcomes(evaluation, execution).model_dump_json().encode()

    made = several(len(ordered), compute, setting.device, setting.workers, setting.progress)
    outcomes = [Outcomes.model_validate_json(one) for one in made]
    for first in range(0, len(ordered), params.builds):
        yield scored(ordered[first], outcomes[first : first + params.builds])


def scored(evaluation: Evaluation, outcomes: Sequence[Outcomes]) -> BuildScores:
    """The scores of a defense from the outcomes of its builds, in their order."""
    by_gradient = not evaluation.attack.plugin.card.control
    collapsed = [measure(outcome, by_gradient=by_gradient).collapsed for outcome in outcomes]
    builds = {build: [outcome] for build, outcome in enumerate(outcomes)}
    return build_scores(evaluation.defense.spec, [evaluation.attack.spec], builds, collapsed)
