"""Parameters that all adversarially trained defenses share, and the scales they come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bench.noise import Noise
from bench.spec import Params, read_number
from bench.threat import ThreatModel
from bench_defenses.adversarial.objectives import Objective
from bench_defenses.adversarial.source import Source, split
from bench_defenses.adversarial.students import Lesson
from bench_defenses.adversarial.trainer import Schedule

ATTACKS = ("autoattack", "pgd:steps=100,restarts=5", "pgd")
"""What fits a trained, deterministic network; the hardest first."""

HELD_OUT = 0.1
"""Share of the images that is held out where one of them chooses the epoch."""


@dataclass(frozen=True)
class Scale:
    """How much is trained on: at most so many images (0: all), so many epochs, batches of
    so many.
    """

    images: int
    epochs: int
    batch: int


PROFILES = {
    "smoke": Scale(200, 2, 50),
    "small": Scale(4_000, 12, 100),
    "medium": Scale(10_000, 40, 100),
    "gpu-half": Scale(30_000, 60, 200),
    "full": Scale(0, 200, 200),
}

Profile = Literal["smoke", "small", "medium", "gpu-half", "full"]


def _check_eps(text: str) -> str:
    if text != "auto":
        number = read_number(text)
        try:
            ThreatModel("l2", float(number))  # type: ignore[arg-type]
        except ValueError:
            raise ValueError("write auto, or a positive number such as 8/255") from None
    return text


def training_ball(eps: str, announced: ThreatModel) -> ThreatModel:
    """The ball of radius `eps`, a `TrainingEps`, in the announced norm."""
    return announced if eps == "auto" else ThreatModel(announced.norm, float(read_number(eps)))  # type: ignore[arg-type]


TrainingEps = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_eps)]
"""The training ball's radius: `auto` (the announced threat's), or a number in pixel units."""


class TrainingParams(Params):
    """Parameters of every adversarially trained defense."""

    profile: Profile = Field(
        "small", description="scale: how many images, epochs, and images a batch"
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the images; the profile's by default"
    )
    batch: int | None = Field(None, ge=1, description="images a batch; the profile's by default")
    eps: TrainingEps = Field(
        "auto", description="radius of the training ball; auto = the announced threat's"
    )
    steps: int = Field(
        10, ge=1, le=1000, description="steps of the inner attack, of length 2.5 eps/steps each"
    )
    warmup: float = Field(
        0.25, ge=0, le=1, description="share of the training in which eps rises to its value"
    )
    optimiser: Literal["sgd", "adam"] = Field(
        "sgd", description="SGD with Nesterov momentum 0.9, or Adam"
    )
    rate: float = Field(0.05, gt=0, description="learning rate of the first step")
    decay: float = Field(2e-4, ge=0, description="weight decay")
    schedule: Literal["const", "cosine"] = Field(
        "cosine", description="course of the learning rate"
    )
    clip: float = Field(1.0, ge=0, description="largest gradient norm of a batch; 0 = no limit")
    group: int = Field(
        1,
        ge=1,
        le=32_767,
        description="batches behind one step, joined by GradRefine; 1 = plain descent",
    )
    agreement: float = Field(
        0.5,
        ge=0,
        le=1,
        description="GradRefine's threshold: by how much one sign must outweigh the other",
    )
    bn: Literal["train", "frozen"] = Field(
        "train", description="BatchNorm learns from the batches, or stays as it came"
    )
    checkpoint: Literal["last", "best"] = Field(
        "last", description="the last epoch, or the best on held-out training images"
    )
    from_scratch: bool = Field(
        False, description="start from fresh weights instead of the classifier's"
    )

    @property
    def scale(self) -> Scale:
        """The profile's."""
        return PROFILES[self.profile]

    def course(self) -> Schedule:
        """The schedule."""
        return Schedule(
            epochs=self.epochs or self.scale.epochs,
            batch=self.batch or self.scale.batch,
            optimiser=self.optimiser,
            rate=self.rate,
            decay=self.decay,
            schedule=self.schedule,
            warmup=self.warmup,
            clip=self.clip,
            group=self.group,
            agreement=self.agreement,
            steps=self.steps,
            bn=self.bn,
            checkpoint=self.checkpoint,
        )

    def ball(self, announced: ThreatModel) -> ThreatModel:
        """The training ball, in the announced norm."""
        return training_ball(self.eps, announced)

    def lesson(
        self, images: Source, objective: Objective, announced: ThreatModel, noise: Noise
    ) -> Lesson:
        """What the student learns from these images; `noise` is one row of the construction
        stream.
        """
        held_out = None
        if self.checkpoint == "best":
            images, held_out = split(images, HELD_OUT, noise)
        return Lesson(
            images, held_out, objective, self.course(), self.ball(announced), self.from_scratch
        )
