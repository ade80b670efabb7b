"""Reading a randomness law from its spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bench.errors import BadInput
from bench.noise import Law
from bench.spec import Params, nearest, parse, read_params


def _read_stages(value: object) -> object:
    return tuple(sorted({stage for stage in value.split("+") if stage})) if isinstance(value, str) else value


class _NoOptions(Params):
    pass


class _EOT(Params):
    k: int = Field(20, ge=1, le=100_000)
    average: Literal["loss", "logits"] = "loss"


class _ReplaySet(Params):
    k: int = Field(5, ge=2, le=100_000)
    average: Literal["loss", "logits"] = "loss"


class _Replay(Params):
    freeze: Annotated[tuple[str, ...], BeforeValidator(_read_stages)] = ()


_LAWS: dict[str, type[Params]] = {
    "fresh": _NoOptions,
    "eot": _EOT,
    "replay": _Replay,
    "replay-set": _ReplaySet,
    "common": _NoOptions,
}


def read_law(text: str) -> Law:
    """`fresh`, `eot:k=20[,average=logits]`, `replay[:freeze=forward+reverse]`, `replay-set:k=5[,average=logits]`, `common`."""
    spec = parse(text)
    if spec.name not in _LAWS:
        raise BadInput(f"unknown randomness {spec.name!r}.{nearest(spec.name, _LAWS)}")
    params = read_params(_LAWS[spec.name], spec, f"randomness {spec.name!r}")
    return Law(spec.name, **params.model_dump())
