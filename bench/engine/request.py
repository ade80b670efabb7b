"""A request: which defenses face which attacks, on which images. The one place for its options.

The command line, a suite file, `bench.evaluate`, `bench verify` and studies all make a `Request`.
A new option is one field here and the line that uses it.

A suite file is a TOML matrix of the same options as `bench run`:

    dataset = "mnist5k"
    eps = 0.2
    attack = ["pgd", "bpda"]

    [[run]]
    defense = ["undefended", "bit-depth:bits=3"]

    [[run]]
    defense = ["random-resize"]
    attack = ["pgd", "pgd+replay"]

Each `[[run]]` inherits the keys above it; a file without one is a single run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from bench.errors import BadInput, one_line
from bench.spec import Number, nearest


def _not_bool(value: object) -> object:
    if isinstance(value, bool) or (
        isinstance(value, tuple | list) and any(isinstance(item, bool) for item in value)
    ):
        raise ValueError("true and false mean nothing here")
    if value == "" or (isinstance(value, tuple | list) and "" in value):
        raise ValueError("it is empty; leave it out for the default")
    return value


def _as_tuple(value: object) -> object:
    return _not_bool((value,) if isinstance(value, str | int | float) else value)


_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Seeds = Annotated[Annotated[tuple[_Seed, ...], Field(min_length=1)], BeforeValidator(_as_tuple)]
_Specs = Annotated[Annotated[tuple[str, ...], Field(min_length=1)], BeforeValidator(_as_tuple)]
_Numbers = Annotated[Annotated[tuple[Number, ...], Field(min_length=1)], BeforeValidator(_as_tuple)]
_Text = Annotated[str, BeforeValidator(_not_bool)]


class SetupRequest(NamedTuple):
    """Which images, classifier and threat model; None stands for the data set's own."""

    dataset: str
    classifier: str | None
    norm: str | None
    eps: float | None
    n: int | None


class Request(BaseModel):
    """A matrix of defenses, attacks, seeds, data sets, classifiers, norms and eps.

    None and an empty tuple stand for the default: the data set's own classifier and threat model,
    its first 1,000 images, and whatever an attack's spec says of gradient and randomness (else
    `full` and `fresh`). Fields are named as in Python; the alias is the word of the command line
    and of suite files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    defenses: _Specs = Field(
        default=(), validation_alias="defense", description="defense spec; may be repeated"
    )
    attacks: _Specs = Field(
        default=(),
        validation_alias="attack",
        description="attack spec, such as pgd+replay:steps=40; may be repeated",
    )
    seeds: _Seeds = Field(
        default=(0,),
        validation_alias="seed",
        description="attack seed; may be repeated [default: 0]",
    )
    build_seed: Annotated[_Seed, BeforeValidator(_not_bool)] = Field(
        default=0, description="seed of the defense's construction [default: 0]"
    )
    datasets: _Specs = Field(
        default=("mnist5k",),
        validation_alias="dataset",
        description="data set spec; may be repeated [default: mnist5k]",
    )
    classifiers: _Specs = Field(
        default=(),
        validation_alias="classifier",
        description="classifier spec; may be repeated [default: the data set's own]",
    )
    norms: _Specs = Field(
        default=(),
        validation_alias="norm",
        description="linf, l2 or l1; may be repeated [default: the data set's own]",
    )
    epsilons: _Numbers = Field(
        default=(),
        validation_alias="eps",
        description="in units of [0,1] pixels, such as 8/255; may be repeated",
    )
    n: Annotated[int | None, BeforeValidator(_not_bool)] = Field(
        default=None, description="how many images, in evaluation order [default: 1000 or all]"
    )
    randomness: _Text | None = Field(
        default=None,
        description="the attack's randomness model: fresh, eot:k=20, replay, replay-set:k=5 or "
        "common [default: fresh]",
    )
    gradient: _Text | None = Field(
        default=None, description="full, or another that the defense offers, such as bpda"
    )

    def over(self, other: Request) -> Request:
        """These options, and those of `other` where these are not given."""
        return other.model_copy(
            update={name: getattr(self, name) for name in self.model_fields_set}
        )

    def setups(self) -> Iterator[SetupRequest]:
        """Every combination of data set, classifier, norm and eps."""
        for dataset, classifier, norm, eps in product(
            self.datasets,
            self.classifiers or (None,),
            self.norms or (None,),
            self.epsilons or (None,),
        ):
            yield SetupRequest(dataset, classifier, norm, eps, self.n)

    def one_setup(self, where: str) -> SetupRequest:
        """The only combination. Raises `BadInput` naming `where` one is expected and more came."""
        for name in ("datasets", "classifiers", "norms", "epsilons"):
            if len(getattr(self, name)) > 1:
                word = option_name(name, Request.model_fields[name])
                raise BadInput(f"{where} takes one --{word}: give it once")
        return next(self.setups())

    def given(self) -> list[str]:
        """The words of the options that differ from their default, defenses and attacks apart."""
        return [
            option_name(name, field)
            for name, field in Request.model_fields.items()
            if name not in ("defenses", "attacks") and getattr(self, name) != field.default
        ]


def option_name(name: str, field: FieldInfo) -> str:
    """The word for a field of `Request` on the command line, underscores for hyphens."""
    return str(field.validation_alias or name)


def read_request(values: Mapping[str, Any], where: str) -> Request:
    """Check options by name and type; None means not given.

    Args:
        values: by the field's name or its alias.
        where: where they stand, for the message.

    Raises:
        BadInput: naming `where` and the option.
    """
    known = {option_name(name, field) for name, field in Request.model_fields.items()}
    for key in values:
        if key not in known and key not in Request.model_fields:
            raise BadInput(f"{where}: unknown option {key!r}.{nearest(key, known)}")
    try:
        return Request.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = problem["msg"].removeprefix("Value error, ")
        option, got = problem["loc"][0], problem.get("input")
        if isinstance(got, list) and problem["type"].endswith("_type"):
            message = "it takes one value; write a [[run]] for each"
        raise BadInput(f"{where}: option {option!s} got {got!r}: {message}") from None


# The parser takes time that grows with the square of what is nested.
_LONGEST_LINE = 10_000
_LONGEST_SUITE = 1_000_000


def read_suite(path: Path) -> list[Request]:
    """The requests of a suite file. Raises `BadInput` where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"cannot read the suite {path} ({error.strerror}): check the path"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path} is not TOML ({error}): correct it") from error
    longest = max(map(len, text.splitlines()), default=0)
    if longest > _LONGEST_LINE or len(text) > _LONGEST_SUITE:
        raise BadInput(
            f"{path} is no suite: it has {len(text)} characters, {longest} in one line; write "
            f"lines of at most {_LONGEST_LINE}"
        )
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not TOML ({one_line(error)}): correct it") from error
    runs = content.pop("run", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise BadInput(f"{path}: `run` must be tables: write [[run]]")
    common = read_request(content, str(path))
    return [read_request(run, f"{path}, run {i}").over(common) for i, run in enumerate(runs, 1)]
