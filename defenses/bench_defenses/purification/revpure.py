"""RevPure: the reverse chain alone."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bench.defense import Card
from bench.diffusion.model import DiffusionModel
from bench_defenses.purification.purifier import ATTACKS, ChainParams, PurifyingDefense, Round


class RevPureParams(ChainParams):
    """Parameters of `revpure`."""

    input_scale: Literal["none", "sqrt_ab"] = Field(
        "none", description="the image enters as it is, or multiplied by sqrt(abar) of index t-1"
    )


class RevPure(PurifyingDefense[RevPureParams]):
    """Reverse-only purification: the image enters the reverse chain at time t without added
    noise.
    """

    Params = RevPureParams
    card = Card(
        paper="RevPure, ICLR 2024 submission (forum Lxc4nBkJuq); Liu and Wei 2025, arXiv "
        "2505.22839",
        note="the papers do not say whether the image is scaled on entry; DensePure scales it "
        "(input_scale=sqrt_ab)",
        attacks=ATTACKS,
    )

    def rounds(self, model: DiffusionModel | None) -> list[Round]:
        """One round without noising."""
        params = self.params
        scaled = params.input_scale == "sqrt_ab" and model is not None and params.t <= model.steps
        scale = math.sqrt(model.level(params.t - 1)) if scaled and model else 1.0
        return [Round(params.t, params.steps, None, scale)]
