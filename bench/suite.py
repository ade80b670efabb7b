"""Suite files: a TOML matrix of the same options as `bench run`.

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
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bench.errors import BadInput
from bench.spec import Number, nearest


def _no_truth(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, tuple | list) and any(isinstance(item, bool) for item in value)):
        raise ValueError("true and false mean nothing here")
    if value == "" or (isinstance(value, tuple | list) and "" in value):
        raise ValueError("it is empty; leave it out for the default")
    return value


def _listed(value: object) -> object:
    return _no_truth((value,) if isinstance(value, str | int) else value)


_Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[Annotated[tuple[_Seed, ...], Field(min_length=1)] | None, BeforeValidator(_listed)]
Seed = Annotated[_Seed | None, BeforeValidator(_no_truth)]
Specs = Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, BeforeValidator(_listed)]
Text = Annotated[str | None, BeforeValidator(_no_truth)]


class RunOptions(BaseModel):
    """The options of one run, named as on the command line. None: not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defense: Specs = None
    attack: Specs = None
    seed: Seeds = None
    build_seed: Seed = None
    dataset: Text = None
    classifier: Text = None
    norm: Text = None
    eps: Annotated[Number | None, BeforeValidator(_no_truth)] = None
    n: Annotated[int | None, BeforeValidator(_no_truth)] = None
    randomness: Text = None
    gradient: Text = None

    def over(self, other: RunOptions) -> RunOptions:
        """These options, and those of `other` where these are not given."""
        return other.model_copy(update=self.model_dump(exclude_none=True))


def read_options(values: dict[str, Any], where: str) -> RunOptions:
    """Check options by name and type. Raises `BadInput` naming `where` they stand."""
    for key in values:
        if key not in RunOptions.model_fields:
            raise BadInput(f"{where}: unknown option {key!r}.{nearest(key, RunOptions.model_fields)}")
    try:
        return RunOptions.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = problem["msg"].removeprefix("Value error, ")
        raise BadInput(f"{where}: option {problem['loc'][0]!s} got {problem.get('input')!r}: {message}") from None


def read_suite(path: Path) -> list[RunOptions]:
    """The runs of a suite file. Raises `BadInput` where it is none."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read the suite {path} ({error.strerror}): check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML ({error}): mend it") from error
    runs = content.pop("run", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise BadInput(f"{path}: `run` must be tables: write [[run]]")
    common = read_options(content, str(path))
    return [read_options(run, f"{path}, run {i}").over(common) for i, run in enumerate(runs, 1)]
