"""Reading a randomness law from its spec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.errors import BadInput
from bench.noise import Law
from bench.spec import Params, nearest, parse, read_params


class _NoOptions(Params):
    pass


class _EOT(Params):
    k: int = Field(20, ge=1, le=100_000)
    average: Literal["loss", "logits"] = "loss"


class _ReplaySet(Params):
    k: int = Field(5, ge=2, le=100_000)
    average: Literal["loss", "logits"] = "loss"


_LAWS: dict[str, type[Params]] = {"fresh": _NoOptions, "eot": _EOT, "replay": _NoOptions, "replay-set": _ReplaySet}


def read_law(text: str) -> Law:
    """`fresh`, `eot:k=20[,average=logits]`, `replay`, `replay-set:k=5[,average=logits]`."""
    spec = parse(text)
    if spec.name not in _LAWS:
        raise BadInput(f"unknown randomness {spec.name!r}.{nearest(spec.name, _LAWS)}")
    params = read_params(_LAWS[spec.name], spec, f"randomness {spec.name!r}")
    return Law(spec.name, **params.model_dump())
