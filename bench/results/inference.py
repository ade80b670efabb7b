"""The cost of one prediction, and RobustBench's three conditions on a defense."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Inference(BaseModel):
    """Measured on a few clean images.

    The three conditions are those on which RobustBench admits a model (README of
    RobustBench/robustbench): gradients that are not zero in general, a deterministic forward pass,
    no optimisation loop.

    Attributes:
        passes: how often an image goes through the classifier for one prediction, on average.
        zero_gradient: whether over a tenth of the images have no native gradient at all.
        randomised: whether the forward pass draws random numbers.
        optimises: whether it takes gradients or says that it runs an optimisation loop.
        denoiser_passes: how often an image goes through a diffusion model for one prediction, on
            average; None without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    passes: float = Field(ge=0, allow_inf_nan=False)
    zero_gradient: bool
    randomised: bool
    optimises: bool
    denoiser_passes: float | None = Field(None, ge=0, allow_inf_nan=False)

    def obstacles(self) -> list[str]:
        """Why RobustBench would not admit the defense; empty where it would."""
        violated = {
            "zero gradient": self.zero_gradient,
            "random": self.randomised,
            "optimisation loop": self.optimises,
        }
        return [name for name, is_violated in violated.items() if is_violated]
