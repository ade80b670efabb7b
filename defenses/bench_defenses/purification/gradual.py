"""The gradual noise schedule of Lee and Kim: several rounds of rising length."""

from __future__ import annotations

from pydantic import Field, field_validator

from bench.defense import Card
from bench.diffusion.model import DiffusionModel
from bench.spec import Integers
from bench_defenses.purification.purifier import ATTACKS, PurifyingDefense, PurifyParams, Round


class GradualParams(PurifyParams):
    """Parameters of `gradual`."""

    t: Integers = Field(
        (30, 30, 30, 30, 50, 50, 125, 125), description="of each round, such as 30+50+125"
    )
    steps: Integers = Field(
        (), description="steps of each round, or one number for all; every index where empty"
    )

    def pairs(self) -> list[tuple[int, int]]:
        """(t, steps) of each round."""
        steps = self.steps or self.t
        return list(zip(self.t, steps * len(self.t) if len(steps) == 1 else steps, strict=True))

    @field_validator("steps")
    @classmethod
    def _fit(cls, steps: tuple[int, ...], info: object) -> tuple[int, ...]:
        t: tuple[int, ...] = getattr(info, "data", {}).get("t", ())
        if len(steps) not in (0, 1, len(t)):
            raise ValueError(
                f"there are {len(t)} rounds, but {len(steps)} numbers of steps: give one for each, "
                "or one for all"
            )
        for most, count in zip(t, steps * len(t) if len(steps) == 1 else steps, strict=False):
            if count > most:
                raise ValueError(
                    f"a round of t={most} has only so many indices to visit: give at most {most} "
                    "steps"
                )
        return steps


class Gradual(PurifyingDefense[GradualParams]):
    """Diffusion purification in several rounds of rising length (gradual noise schedule)."""

    Params = GradualParams
    card = Card(
        paper="Lee and Kim, ICCV 2023, arXiv 2303.09051, section 5",
        note="defaults are the paper's for CIFAR-10 without its vote; its test takes "
        "votes=10,vote=hard",
        attacks=ATTACKS,
    )

    def rounds(self, model: DiffusionModel | None) -> list[Round]:
        """Rounds of rising t, each noised to its t-1."""
        return [Round(t, steps, t - 1) for t, steps in self.params.pairs()]
