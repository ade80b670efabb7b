"""Published numbers: figures of papers, repositories and threads, to stand beside ours and never
among them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from bench.errors import BadInput
from bench.report.tables import markdown, without_empty_columns
from bench.spec import nearest, read_number

BADGES = {
    "approximate": "the source rounds, or gives a bound",
    "by-its-authors": "the defense's authors attacked it themselves",
    "collapsed?": "at the share of one class: a constant answer would score it",
    "conflict": "another source gives another figure for the same case",
    "eps-unconfirmed": "the source does not state the size of the ball, or its code does",
    "secondary": "read where somebody else quotes it",
    "static-transfer": "attacked without the defense: an upper bound that an adaptive attack "
    "lowers",
    "suspect": "damaged, swapped, or contradicted in its source",
    "unverified": "written down from memory, not read again in its source",
}
"""What is wrong with a number, and what that means."""

UNITS = {
    "clean accuracy": "percent",
    "clean accuracy (all draws)": "percent",
    "clean accuracy (mean of draws)": "percent",
    "clean accuracy lost": "points",
    "robust accuracy": "percent",
    "robust accuracy (all draws)": "percent",
    "robust accuracy (majority)": "percent",
    "robust accuracy (mean of draws)": "percent",
    "robust accuracy at 5 % false positives": "percent",
    "robust accuracy gained": "points",
    "robust accuracy lost by replay": "points",
    "accuracy on static adversarials": "percent",
    "attack success rate": "percent",
    "detection rate": "percent",
    "mean correlation of initial perturbations": "ratio",
    "mean correlation of purified directions": "ratio",
    "coverage": "ratio",
    "blue of 1,024 points in the red class": "count",
    "red of 1,024 points in the blue class": "count",
    "time for 10,000 synthetic images": "hours",
}
"""Every metric and its unit."""


def _split(value: object) -> object:
    return tuple(filter(None, value.split("+"))) if isinstance(value, str) else value


Badges = Annotated[tuple[str, ...], BeforeValidator(_split), PlainSerializer(list)]


class Reference(BaseModel):
    """One published number.

    Attributes:
        source, table: who printed it, and where.
        dataset, architecture, defense: as the field calls them; empty where the source does not
            say.
        attack: `none` for a clean number; empty where no attack is in play.
        protocol: how randomness was drawn in attack and judgement; empty for deterministic ones and
            where unstated.
        norm, eps: the ball, eps in pixel units of [0, 1] such as `8/255`; empty where unstated.
        metric, unit, value: one of `UNITS`; shares in percent, 0 to 100.
        badges: see `BADGES`.
        note: what else a reader must know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    table: str
    dataset: str
    architecture: str
    defense: str
    attack: str
    protocol: str
    norm: Literal["", "linf", "l2", "lpips"]
    eps: str
    metric: str
    unit: str
    value: float
    badges: Badges
    note: str

    @field_validator("source", "defense")
    @classmethod
    def _is_given(cls, text: str) -> str:
        if not text:
            raise ValueError("it is empty")
        return text

    @field_validator("eps")
    @classmethod
    def _is_a_number(cls, eps: str) -> str:
        number = read_number(eps)
        if eps and not 0 < float(number) < float("inf"):  # type: ignore[arg-type]
            raise ValueError(
                "write a positive number such as 8/255, or nothing where it is not stated"
            )
        return eps

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str) -> str:
        if metric not in UNITS:
            raise ValueError(f"unknown metric.{nearest(metric, UNITS)}")
        return metric

    @field_validator("badges")
    @classmethod
    def _are_known(cls, badges: tuple[str, ...]) -> tuple[str, ...]:
        for badge in badges:
            if badge not in BADGES:
                raise ValueError(f"unknown badge {badge!r}.{nearest(badge, BADGES)}")
        return badges

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Reference:
        if self.unit != UNITS[self.metric]:
            raise ValueError(f"column 'unit': {self.metric} is in {UNITS[self.metric]}")
        if self.unit == "percent" and not 0 <= self.value <= 100:
            raise ValueError("column 'value': percent lie between 0 and 100")
        if self.eps and not self.norm:
            raise ValueError("column 'norm': an eps means nothing without its norm")
        if (
            self.attack not in ("", "none")
            and not self.eps
            and "eps-unconfirmed" not in self.badges
        ):
            raise ValueError("column 'badges': no eps is stated, so add eps-unconfirmed")
        return self


@dataclass(frozen=True)
class Line:
    """A published number where it stands.

    Attributes:
        file, number: the file, and its line, from 1.
        reference: what it says.
        printed: the value as it is written there, with its digits: `53.90`.
    """

    file: Path
    number: int
    reference: Reference
    printed: str


def read_references(path: Path) -> list[Reference]:
    """All rows of a CSV file, or of the CSV files in a folder. Raises `BadInput` naming file, line
    and column.
    """
    return [line.reference for line in read_lines(path)]


def read_lines(path: Path) -> list[Line]:
    """The rows of `read_references` with the place of each and the digits of its value. Raises
    `BadInput` like it.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise BadInput(
            f"no CSV files in {path}: name the folder or file that holds published numbers"
        )
    return [line for file in files for line in _lines(file)]


def _lines(file: Path) -> Iterator[Line]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, restkey="(beyond the last column)", strict=True)
            _check_header(file, reader.fieldnames or ())
            for values in reader:
                number = reader.line_num
                row = _row(f"{file}, line {number}", values)
                yield Line(file, number, row, values["value"].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"cannot read {file} ({reason}): give a CSV file of published numbers"
        ) from error


def _check_header(file: Path, columns: Sequence[str]) -> None:
    expected = list(Reference.model_fields)
    if list(columns) != expected:
        raise BadInput(
            f"{file}, line 1: the columns are {', '.join(columns) or 'none'}: write "
            f"{','.join(expected)}"
        )


def _row(where: str, values: dict[str, Any]) -> Reference:
    try:
        return Reference.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = problem["msg"].removeprefix("Value error, ")
        column = (
            f"column {problem['loc'][0]!r} got {problem['input']!r}: " if problem["loc"] else ""
        )
        raise BadInput(f"{where}: {column}{message}") from None


def select(
    references: Sequence[Reference], dataset: str = "", defense: str = ""
) -> list[Reference]:
    """The rows whose data set and defense contain these words, in any case; what one source printed
    twice only once.

    Raises `BadInput` where there are none.
    """
    chosen = [r for r in references if _within(dataset, r.dataset) and _within(defense, r.defense)]
    if not chosen:
        of_dataset = any(_within(dataset, r.dataset) for r in references)
        known = {r.defense if of_dataset else r.dataset for r in references}
        word = dataset if dataset and not defense else defense
        raise BadInput(f"no published number matches.{nearest(word, known - {''})}")
    once = {r.model_dump_json(exclude={"table", "note"}): r for r in reversed(chosen)}
    return list(once.values())[::-1]


def _within(word: str, text: str) -> bool:
    return word.lower() in text.lower()


def render(references: Sequence[Reference]) -> str:
    """A Markdown table under a heading that says whose numbers they are, and the meaning of every
    badge in it.
    """
    table = without_empty_columns([_shown(reference) for reference in references])
    text = markdown(table)
    badges = sorted({badge for reference in references for badge in reference.badges})
    legend = "".join(f"\n- {badge}: {BADGES[badge]}" for badge in badges)
    return f"Published numbers, not measured here; they enter no rank.\n\n{text}\n{legend}".rstrip()


def _shown(reference: Reference) -> dict[str, str]:
    ball = f"{reference.norm} {reference.eps}".strip()
    unit = {"percent": " %", "count": "", "ratio": ""}.get(reference.unit, f" {reference.unit}")
    return {
        "dataset": reference.dataset,
        "architecture": reference.architecture,
        "defense": reference.defense,
        "attack": reference.attack,
        "protocol": reference.protocol,
        "ball": ball,
        "metric": reference.metric,
        "value": f"{reference.value:g}{unit}",
        "badges": ", ".join(reference.badges),
        "source": ", ".join(filter(None, [reference.source, reference.table])),
        "note": reference.note,
    }
