"""One defense under one attack at several eps: robust accuracy over eps, and per image the smallest
eps that broke it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import BadInput
from bench.report.escape import terminal
from bench.report.tables import markdown, without_empty_columns
from bench.report.words import (
    attack_label,
    defense_label,
    flags,
    has_failed,
    struck_through,
)
from bench.results.arrays import Bools, Floats, Ints
from bench.results.distances import STEPS, Distances
from bench.results.estimate import Estimate
from bench.results.intervals import share
from bench.results.record import Record, without_folders
from bench.results.worst_case import attacked, worst_case
from bench.spec import show_number

_NOTE = (
    "robust: the number of each row. nested: the worst case over it and all smaller eps; a ball "
    "holds the smaller ones, so where it lies below robust, the attack at that eps missed points."
)


@dataclass(frozen=True)
class Curve:
    """Robust accuracy over eps.

    Attributes:
        records: one an eps, in rising order.
        smallest: per image the smallest eps that broke it, (n,), so that at most half of its draws
            are right; 0 where it is wrong without an attack, infinite where none did.
    """

    records: Sequence[Record]
    smallest: Floats

    @property
    def eps(self) -> list[float]:
        return [eps_of(record) for record in self.records]

    @property
    def ids(self) -> Ints:
        """Image ids (n,), in the order of `smallest`."""
        return self.records[0].outcomes.image_ids()

    def nested(self) -> list[Estimate]:
        """At each eps the worst case over its attack, those at smaller ones, and the points that
        stand beside them; see `bench.results.worst_case`.
        """
        found = [attacked(record) for record in self.records]
        return [
            share(worst_case([one for smaller in found[: at + 1] for one in smaller]))
            for at in range(len(found))
        ]


def eps_of(record: Record) -> float:
    return float(record.identity["threat"]["eps"])


def is_curve(records: Sequence[Record]) -> bool:
    """Whether these records differ in eps, and in nothing else."""
    return (
        len(records) > 1
        and len(records) == len({eps_of(record) for record in records})
        and (len({_rest(record) for record in records}) == 1)
    )


def _rest(record: Record) -> str:
    identity = record.identity
    rest = {**identity, "threat": identity["threat"]["norm"]}
    return json.dumps([rest, record.outcomes.ids, record.outcomes.labels], sort_keys=True)


def curve(records: Sequence[Record]) -> Curve:
    """The curve of these records.

    Raises:
        BadInput: where they differ in more than eps, or are fewer than two.
    """
    if not is_curve(records):
        raise BadInput(
            "an eps curve takes records of one defense under one attack that differ in eps alone, "
            "at least two: run with --eps given several times"
        )
    ordered = sorted(records, key=eps_of)
    smallest = np.full(len(ordered[0].outcomes.image_ids()), np.inf)
    for record in reversed(ordered):
        own, *extra = attacked(record)
        smallest[_broken(own)] = eps_of(record)
        for points in extra:
            # In fewer draws than the attack's own, one right answer keeps the image.
            fewer = points.shape[1] < own.shape[1]
            smallest[~points.any(1) if fewer else _broken(points)] = eps_of(record)
    smallest[_broken(ordered[0].outcomes.correct("clean"))] = 0.0
    return Curve(ordered, smallest)


def _broken(correct: Bools) -> Bools:
    return np.asarray(correct.mean(1) <= 0.5)


def frame(made: Curve) -> pd.DataFrame:
    """One row an eps, shares in [0, 1]."""
    rows = []
    for record, nested in zip(made.records, made.nested(), strict=True):
        robust = record.metrics.adversarial.mean
        rows.append(
            {
                "eps": eps_of(record),
                "clean": record.metrics.clean.mean.value,
                "robust": robust.value,
                "low": robust.low,
                "high": robust.high,
                "nested": nested.value,
            }
        )
    return pd.DataFrame(rows).set_index("eps")


def series(made: Curve) -> pd.Series[float]:
    """Per image id the smallest eps that broke it."""
    return pd.Series(made.smallest, index=made.ids, name="smallest eps")


def measured_frame(record: Record, eps: Sequence[float] = ()) -> pd.DataFrame:
    """As `frame`, of one record whose attack measured distances; at these eps, by default at a
    quarter of its own to four times that.
    """
    found = _distances(record)
    every = sorted(eps) or [factor * eps_of(record) for factor in STEPS]
    shares = found.curve(every)
    columns = {
        "clean": record.metrics.clean.mean.value,
        "robust": [one.value for one in shares],
        "low": [one.low for one in shares],
        "high": [one.high for one in shares],
        # No point that breaks an image is lost at a larger eps.
        "nested": [one.value for one in shares],
    }
    return pd.DataFrame(columns, index=pd.Index(every, name="eps"))


def measured_series(record: Record) -> pd.Series[float]:
    """Per image id the distance of the nearest point that was found to break it."""
    ids = record.outcomes.image_ids()
    return pd.Series(_distances(record).array(), index=ids, name="smallest eps")


def _distances(record: Record) -> Distances:
    if record.distances is None:
        raise BadInput(
            "an eps curve takes records that differ in eps alone, or one whose attack measured "
            "distances (fmn): run with --eps given several times"
        )
    return record.distances


def render(made: Curve) -> str:
    """Plain text."""
    first = made.records[0]
    title, rows = first.title, []
    for record, nested in zip(made.records, made.nested(), strict=True):
        metrics = record.metrics
        rows.append(
            {
                "eps": show_number(eps_of(record)),
                "clean": str(metrics.clean.mean),
                "robust": str(metrics.adversarial.mean),
                "nested": str(nested),
                "flags": ", ".join(flags([record], with_scale=False)),
            }
        )
    where = f"{title['dataset']}, {title['classifier']}, {first.identity['threat']['norm']}"
    # What breaks an image at one eps answers no doubt at a smaller one.
    failed = any(has_failed([record]) for record in made.records)
    heads = [
        f"{struck_through(defense_label(first), failed)} under {attack_label(first)}, "
        f"seed {title['seed']}",
        f"{without_folders(where)}, {first.scale['n']} of {first.scale['available']} images",
    ]
    return "\n\n".join(
        ["\n".join(map(terminal, heads)), markdown(without_empty_columns(rows)), _NOTE]
    )


def as_json(made: Curve) -> dict[str, Any]:
    """With plain numbers: the curve, and per image the smallest eps that broke it (None where none
    did).
    """
    points = [
        {
            "eps": eps_of(record),
            "id": record.id,
            "clean": asdict(record.metrics.clean.mean),
            "robust": asdict(record.metrics.adversarial.mean),
            "nested": asdict(nested),
        }
        for record, nested in zip(made.records, made.nested(), strict=True)
    ]
    smallest = {
        int(image): None if np.isinf(eps) else float(eps)
        for image, eps in zip(made.ids, made.smallest, strict=True)
    }
    return {"points": points, "smallest_eps": smallest}
