"""From a spec to a diffusion model, once a process."""

from __future__ import annotations

from functools import lru_cache

from bench.diffusion.model import DiffusionModel
from bench.plugins.create import DIFFUSION_MODELS, create
from bench.spec import parse, unnest


@lru_cache(maxsize=8)
def load_model(spec: str) -> DiffusionModel:
    """The model that a spec names, such as `zoo:mnist5k-ddpm`: on the CPU, frozen, in evaluation
    mode.

    Shared by all callers, who must not change it. Raises `BadInput` where it cannot be loaded.
    """
    return create(DIFFUSION_MODELS, parse(unnest(spec))).plugin.load()
