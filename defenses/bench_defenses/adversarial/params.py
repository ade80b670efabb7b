"""Parameters that all adversarially trained defenses share, and the scales they come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bench.noise import Noise
from bench.spec import Params, read_number
from bench.threat import ThreatModel
from bench_defenses.adversarial.objectives import Objective
from bench_defenses.adversarial.tagged_images import TaggedImages, split
from bench_defenses.adversarial.trainer import Schedule, StudentTraining

ATTACKS = (
    "pgd",
    "ensemble:standard",
    "pgd:loss=margin,steps=100,restarts=3",
    "kl:to=each",
    "latent",
    "transfer:base",
)
"""What fits a trained, deterministic network; the first two break most of what can be broken."""

HELD_OUT = 0.1
"""Share of the images that is held out, or made in addition, where such images choose the epoch."""


@dataclass(frozen=True)
class TrainingScale:
    """How much is trained on: at most so many images (0: all), so many epochs, batches of
    so many.
    """

    images: int
    epochs: int
    batch: int


SCALES = {
    "smoke": TrainingScale(200, 2, 50),
    "quick": TrainingScale(4_000, 12, 100),
    "medium": TrainingScale(10_000, 40, 100),
    "gpu-half": TrainingScale(30_000, 60, 200),
    "full": TrainingScale(0, 200, 200),
}
"""Adversarial training by scale.

The names are those of all defenses that have scales, and mean the same effort everywhere: `smoke`
takes seconds; `quick`, the default, minutes on two cores; `small` and `medium` hours there;
`gpu-half` has half of the published images, for a GPU; `full` is the published scale. How many
images and epochs that buys depends on the defense.
"""

ScaleName = Literal["smoke", "quick", "medium", "gpu-half", "full"]


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

    scale: ScaleName = Field(
        "quick", description="how much is computed: images, epochs, and images a batch"
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the images; the scale's by default"
    )
    batch: int | None = Field(None, ge=1, description="images a batch; the scale's by default")
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
        "cosine", description="schedule of the learning rate"
    )
    clip: float = Field(1.0, ge=0, description="largest gradient norm of a batch; 0 = no limit")
    group: int = Field(
        1,
        ge=1,
        le=32_767,
        description="batches behind one step, joined by GradRefine; 1 = plain descent",
    )
    threshold: float = Field(
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
    def sizes(self) -> TrainingScale:
        """Those of the scale."""
        return SCALES[self.scale]

    def training_schedule(self) -> Schedule:
        """The schedule, with what was given in the place of the scale's numbers."""
        values = {
            name: getattr(self, name)
            for name in Schedule.__dataclass_fields__
            if name in type(self).model_fields
        }
        values["epochs"] = self.epochs or self.sizes.epochs
        values["batch"] = self.batch or self.sizes.batch
        return Schedule(**values)

    def ball(self, announced: ThreatModel) -> ThreatModel:
        """The training ball, in the announced norm."""
        return training_ball(self.eps, announced)

    def student_training(
        self, images: TaggedImages, objective: Objective, announced: ThreatModel, noise: Noise
    ) -> StudentTraining:
        """What the student is trained on, and how; `noise` is one row of the construction
        stream.
        """
        held_out = None
        if self.checkpoint == "best":
            images, held_out = split(images, HELD_OUT, noise)
        return StudentTraining(
            images=images,
            objective=objective,
            schedule=self.training_schedule(),
            threat=self.ball(announced),
            held_out=held_out,
            from_scratch=self.from_scratch,
        )
