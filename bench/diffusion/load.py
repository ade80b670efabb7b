"""From a spec to a diffusion model, once a process."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from bench.diffusion.model import DiffusionModel
from bench.diffusion.source import DiffusionSource
from bench.errors import Missing
from bench.models.file import frozen
from bench.plugins.create import DIFFUSION_MODELS, create
from bench.spec import parse, unnest
from bench.storage.missing import stand_in


def load_model(spec: str) -> DiffusionModel:
    """The model that a spec names, such as `zoo:mnist5k-ddpm`: on the CPU, frozen, in evaluation
    mode.

    Shared by all callers, who must not change it. Raises `BadInput` where it cannot be loaded.
    While a plan is made, its structure stands for a file that is missing.
    """
    try:
        return _loaded(spec)
    except Missing as error:
        # The name is bound to this block alone.
        missing = error
    return stand_in(f"diffusion model {spec}", missing, lambda: _structure(spec, missing))


@lru_cache(maxsize=8)
def _loaded(spec: str) -> DiffusionModel:
    return _source(spec).load()


def _structure(spec: str, error: Missing) -> DiffusionModel:
    model = _source(spec).architecture()
    if model is None:
        raise error
    return frozen(model)


def _source(spec: str) -> DiffusionSource[Any]:
    source: DiffusionSource[Any] = create(DIFFUSION_MODELS, parse(unnest(spec))).plugin
    return source
