"""Randomness models: which draws of a stochastic defense an attack sees.

    --randomness fresh                     a new draw for every query
    --randomness eot:k=20                  20 new draws for every query, averaged
    --randomness replay                    the same fixed noise in every query

A randomness model belongs to the attack. The judge has one of its own, `judging`, which no attack
can choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from bench.errors import BadInput
from bench.noise import Stream, pack_draw
from bench.spec import Params, nearest, parse, read_params


@dataclass(frozen=True)
class Query:
    """Where an attack stands: numbers that name its next query of the defense."""

    restart: int = 0
    iteration: int = 0


class Draws(NamedTuple):
    """The draws of one query: a stream, and the draw numbers in it."""

    stream: Stream
    numbers: list[int]


@dataclass(frozen=True)
class RandomnessModel:
    """How the queries of an attack draw the randomness of a defense.

    fresh      one new draw a query
    eot        k new draws a query, averaged (Athalye et al. 2018, arXiv 1707.07397, section 2)
    replay     one fixed noise an image, the same in every query; the attack is judged on it too
    replay-set k fixed noises an image, averaged
    common     one fixed noise for all images

    Under replay, `freeze` names the stages of the defense whose noise is fixed; the other stages
    draw freshly. Empty means all stages.
    """

    name: str = "fresh"
    k: int = 1
    average: str = "loss"
    freeze: tuple[str, ...] = ()

    @property
    def has_fixed_noise(self) -> bool:
        """Whether some draws are the same in every query, so that the judge can repeat them."""
        return self.name in ("replay", "replay-set", "common")

    @property
    def fixed(self) -> bool:
        """Whether all queries read the same function."""
        return self.has_fixed_noise and not self.freeze

    @property
    def deterministic(self) -> bool:
        """Whether the attacked function of one image is fixed, so that a success stays one."""
        return self.fixed and self.k == 1

    def draws(self, query: Query) -> Draws:
        """The draws of one query."""
        if self.name == _JUDGE:
            return Draws(Stream.EVAL, list(range(self.k)))
        if self.fixed:
            return Draws(Stream.FIXED, list(range(self.k)))
        numbers = [pack_draw(query.restart, query.iteration, j) for j in range(self.k)]
        return Draws(Stream.ATTACK, numbers)

    def __str__(self) -> str:
        options = [f"average={self.average}"] if self.average != "loss" else []
        options += [f"freeze={'+'.join(self.freeze)}"] if self.freeze else []
        options += [f"k={self.k}"] if self.name in ("eot", "replay-set") else []
        return f"{self.name}:{','.join(options)}" if options else self.name


_JUDGE = "judge"


def judging(draws: int) -> RandomnessModel:
    """The judge's own model: draws of the evaluation stream, which no attack ever sees."""
    return RandomnessModel(_JUDGE, draws)


def _read_stages(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(sorted({stage for stage in value.split("+") if stage}))


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


_MODELS: dict[str, type[Params]] = {
    "fresh": _NoOptions,
    "eot": _EOT,
    "replay": _Replay,
    "replay-set": _ReplaySet,
    "common": _NoOptions,
}


def options_of(name: str) -> frozenset[str]:
    """What may be set of the randomness model of this name; nothing of another name."""
    return frozenset(_MODELS.get(name, _NoOptions).model_fields)


def read_randomness(text: str) -> RandomnessModel:
    """A randomness model from its spec.

    `fresh`, `eot:k=20[,average=logits]`, `replay[:freeze=forward+reverse]`,
    `replay-set:k=5[,average=logits]` or `common`. Raises `BadInput` for anything else.
    """
    spec = parse(text)
    if spec.name not in _MODELS:
        raise BadInput(f"unknown randomness {spec.name!r}.{nearest(spec.name, _MODELS)}")
    params = read_params(_MODELS[spec.name], spec, f"randomness {spec.name!r}")
    return RandomnessModel(spec.name, **params.model_dump())
