"""DiffPure: noise the image, then denoise it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bench.defense import Card
from bench.diffusion.model import DiffusionModel
from bench_defenses.purification.purifier import (
    ATTACKS,
    ChainParams,
    PurifyingDefense,
    Round,
    expanded,
)

RECIPES: dict[str, dict[str, Any]] = {
    # Euler steps of the reverse SDE, whose noise is sqrt(beta) w: the `large` variance, no clip.
    "cifar10": {"t": 100, "steps": 100, "variance": "large"},
    "imagenet": {"t": 150, "steps": 150, "variance": "large", "resize": True},
    "imagenet-ddpm": {
        "t": 150,
        "steps": 150,
        "variance": "learned",
        "clip": True,
        "resize": True,
    },
}
"""Published settings: of the SDE on CIFAR-10 (8/255) and on ImageNet (4/255), in discrete steps,
and of the guided DDPM in the same code.
"""


class DiffPureParams(ChainParams):
    """Parameters of `diffpure`."""

    start_index: int | None = Field(
        None, ge=0, description="time index that the image is noised to; t-1 where not given"
    )
    rounds: int = Field(1, ge=1, le=100, description="noise and denoise so often")
    recipe: Literal["", "cifar10", "imagenet", "imagenet-ddpm"] = Field(
        "",
        exclude=True,
        description="published settings, for what is not given: of CIFAR-10 (8/255), of ImageNet "
        "(4/255), or of the guided DDPM there",
    )

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, values: Any) -> Any:
        return expanded(values, RECIPES)


class DiffPure(PurifyingDefense[DiffPureParams]):
    """Diffusion purification: forward noise to time t, then the reverse chain; discrete, with exact
    gradients.
    """

    Params = DiffPureParams
    card = Card(
        paper="Nie et al., ICML 2022, arXiv 2205.07460, equations 5 and 6, in the discrete form "
        "of Ho et al. 2020",
        note="t is a count of steps: the image is noised to index t-1; defaults are for "
        "mnist5k, the paper has t=100 on CIFAR-10",
        attacks=ATTACKS,
    )

    def rounds(self, model: DiffusionModel | None) -> list[Round]:
        """Equal rounds, each noised anew."""
        params = self.params
        # Nie et al. 2022, eq. 5 (noise to level), then eq. 6 (the reverse chain), discretised.
        level = params.t - 1 if params.start_index is None else params.start_index
        return [Round(params.t, params.steps, level)] * params.rounds
