"""Defenses against each other on the same images: means over builds, paired differences, and
McNemar's test of each build.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from bench.errors import BadInput
from bench.plugins.create import BASE
from bench.report.leaderboard import attack_label, by_setup, heading, newest
from bench.results.estimate import Estimate
from bench.results.outcomes import Outcomes
from bench.results.record import Record
from bench.results.statistics import Bools, Floats, worst_case
from bench.results.verdicts import (
    gap_over_builds,
    holm,
    majority,
    mcnemar,
    mean_of_draws,
    mean_over_builds,
)
from bench.spec import nearest

SIGNIFICANT = 0.05

_NOTE = (
    "Means over builds and images in percent, differences in points, with 95 % intervals that "
    "count both (one build: images "
    "alone). Robust: the worst case over the attacks named. Lost and won: images robust under the "
    "first defense and not under this "
    "one, and the other way round; p: McNemar's exact test of the two; Holm: p adjusted for the "
    "number of tests in the table."
)


@dataclass(frozen=True)
class BuildScores:
    """A defense's builds under attack.

    Attributes:
        defense: its canonical spec.
        attacks: their names.
        seeds: of the builds.
        clean, robust: share of right draws (builds, n) without and under attack; a build in each
            row, an image in each column.
        right: whether an image is robust in most draws, bool (builds, n).
        collapsed: of each build, whether it answers one class whatever it sees.
    """

    defense: str
    attacks: tuple[str, ...]
    seeds: tuple[int, ...]
    clean: Floats
    robust: Floats
    right: Bools
    collapsed: list[bool]


def gathered(
    defense: str,
    attacks: Iterable[str],
    builds: Mapping[int, Sequence[Outcomes]],
    collapsed: Sequence[bool],
) -> BuildScores:
    """The verdicts of a defense: by build seed the outcomes of all attacks, and of each build
    whether it collapsed.
    """
    outcomes = list(builds.values())
    attacked = [[one.correct("adversarial") for one in build] for build in outcomes]
    return BuildScores(
        defense=defense,
        attacks=tuple(attacks),
        seeds=tuple(builds),
        clean=np.stack([mean_of_draws(build[0].correct("clean")) for build in outcomes]),
        robust=np.stack([worst_case(build) for build in attacked]),
        right=np.stack(
            [np.all([majority(one) > 0 for one in build], axis=0) for build in attacked]
        ),
        collapsed=list(collapsed),
    )


# Tables -------------------------------------------------------------------------------------------


def comparison(found: Sequence[BuildScores]) -> pd.DataFrame:
    """A row a defense: means over builds and images, and the paired difference to the first one,
    with their intervals.

    `lower` and `higher` count the pairs of builds that McNemar's test calls so at the 5 % level.
    """
    return pd.DataFrame([_row(one, found[0]) for one in found])


def _row(one: BuildScores, first: BuildScores) -> dict[str, object]:
    row: dict[str, object] = {
        "defense": one.defense,
        **_columns("clean", mean_over_builds(one.clean)),
        **_columns("robust", mean_over_builds(one.robust)),
        "collapsed": sum(one.collapsed),
    }
    if one is not first:
        pairs = [pair for pair in _pairs(one, first) if pair["p"] < SIGNIFICANT]
        ours, theirs = map(list, zip(*_pairing(one, first), strict=True))
        row |= _columns("difference", gap_over_builds(one.robust[ours], first.robust[theirs]))
        row |= {
            "lower": sum(pair["lost"] > pair["won"] for pair in pairs),
            "higher": sum(p["won"] > p["lost"] for p in pairs),
        }
    return row


def _columns(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def by_build(found: Sequence[BuildScores]) -> pd.DataFrame:
    """A row a build: accuracies, and against the first defense the images lost and won, McNemar's
    p, and p by Holm's method.
    """
    rows = [row for one in found for row in _by_build(one, found[0])]
    tested = [row["p"] for row in rows if "p" in row]
    adjusted = iter(holm(tested))
    return pd.DataFrame([{**row, "p_holm": next(adjusted)} if "p" in row else row for row in rows])


def _by_build(one: BuildScores, first: BuildScores) -> Iterator[dict[str, Any]]:
    pairs = [{} for _ in one.seeds] if one is first else _pairs(one, first)
    places = range(len(one.seeds)) if one is first else [ours for ours, _ in _pairing(one, first)]
    for place, pair in zip(places, pairs, strict=True):
        accuracies = {
            "clean": one.clean[place].mean(),
            "robust": one.robust[place].mean(),
            "collapsed": one.collapsed[place],
        }
        yield {"defense": one.defense, "build": one.seeds[place], **accuracies, **pair}


def _pairing(one: BuildScores, first: BuildScores) -> list[tuple[int, int]]:
    """Which builds stand against each other: those of one seed; a defense of one build stands
    against every build of the other.
    """
    if len(first.seeds) == 1 or len(one.seeds) == 1:
        return [
            (ours, theirs) for ours in range(len(one.seeds)) for theirs in range(len(first.seeds))
        ]
    pairs = [
        (one.seeds.index(seed), first.seeds.index(seed))
        for seed in one.seeds
        if seed in first.seeds
    ]
    if not pairs:
        raise BadInput(
            f"{one.defense} and {first.defense} have no build seed in common: run both under the "
            "same --build-seed"
        )
    return pairs


def _pairs(one: BuildScores, first: BuildScores) -> list[dict[str, float]]:
    found = [(one.right[ours], first.right[theirs]) for ours, theirs in _pairing(one, first)]
    return [
        {"lost": int((b & ~a).sum()), "won": int((a & ~b).sum()), "p": mcnemar(a, b)}
        for a, b in found
    ]


def percent(row: dict[Any, Any], name: str) -> str:
    """`41.3 [38.0, 44.9]`: a value of a row with its interval, times 100."""
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


# Records ------------------------------------------------------------------------------------------


def compare(records: Sequence[Record], first: str | None = None) -> dict[str, list[BuildScores]]:
    """For each subject in the records, in words, its defenses; `first`, or the undefended
    classifier, or the first by name, leads.

    Raises `BadInput` where no subject has two defenses, or `first` is not there.
    """
    found = {
        heading(group[0]): _led(_defenses(group), first)
        for group in by_setup(records)
        if len(_names(group)) > 1
    }
    if not found:
        raise BadInput(
            "no two of these records are of different defenses on the same images, classifier and "
            "threat: give such records"
        )
    return found


def _names(records: Iterable[Record]) -> set[str]:
    return {record.title["defense"] for record in records}


def _defenses(records: Sequence[Record]) -> list[BuildScores]:
    by_name: dict[str, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in newest(records):
        by_name[record.title["defense"]][record.identity["seeds"]["build"]].append(record)
    return [_attacked(name, builds) for name, builds in sorted(by_name.items())]


def _attacked(name: str, builds: dict[int, list[Record]]) -> BuildScores:
    several = {str(record.identity["defense"]) for records in builds.values() for record in records}
    if len(several) > 1:
        raise BadInput(
            f"these records hold {len(several)} versions of {name}: leave the old ones out"
        )
    attacks = sorted({attack_label(record) for records in builds.values() for record in records})
    collapsed = [
        any(record.metrics.collapsed for record in records) for _, records in sorted(builds.items())
    ]
    outcomes = {
        seed: [record.outcomes for record in records] for seed, records in sorted(builds.items())
    }
    return gathered(name, attacks, outcomes, collapsed)


def _led(defenses: list[BuildScores], first: str | None) -> list[BuildScores]:
    names = [one.defense for one in defenses]
    if first is not None and first not in names:
        raise BadInput(f"no record of the defense {first!r} here.{nearest(first, names)}")
    lead = first or (BASE if BASE in names else names[0])
    return sorted(defenses, key=lambda one: one.defense != lead)


def as_json(found: dict[str, list[BuildScores]]) -> list[dict[str, Any]]:
    """Both tables of each subject with plain numbers; shares in [0, 1], None where nothing is
    compared.
    """
    tables = {
        setup: {"means": comparison(defenses), "builds": by_build(defenses)}
        for setup, defenses in found.items()
    }
    return [
        {"setup": setup, **{name: _plain(table) for name, table in both.items()}}
        for setup, both in tables.items()
    ]


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    # Without what is missing, and with Python's own numbers.
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        {
            str(key): value.item() if isinstance(value, np.generic) else value
            for key, value in row.items()
        }
        for row in rows
    ]


def render(found: dict[str, list[BuildScores]]) -> str:
    """Two tables a subject, as Markdown."""
    parts = []
    for setup, defenses in found.items():
        parts += [setup, _markdown(_means(defenses)), _markdown(_builds(by_build(defenses)))]
    return "\n\n".join([*parts, _NOTE])


def _means(defenses: Sequence[BuildScores]) -> pd.DataFrame:
    rows = [
        {
            "defense": row["defense"],
            "attacks": ", ".join(one.attacks),
            "builds": len(one.seeds),
            "clean": percent(row, "clean"),
            "robust": percent(row, "robust"),
            "difference": percent(row, "difference")
            if row["difference"] == row["difference"]
            else "",
        }
        for row, one in zip(comparison(defenses).to_dict("records"), defenses, strict=True)
    ]
    return pd.DataFrame(rows)


def _builds(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in table.to_dict("records"):
        shown = {"defense": row["defense"], "build": row["build"]}
        shown |= {name: f"{100 * row[name]:.1f}" for name in ("clean", "robust")}
        shown["collapsed"] = "yes" if row["collapsed"] else ""
        tested = row["p"] == row["p"]
        shown |= {name: f"{row[name]:.0f}" if tested else "" for name in ("lost", "won")}
        shown |= {
            label: _p(row[name]) if tested else ""
            for name, label in (("p", "p"), ("p_holm", "Holm"))
        }
        rows.append(shown)
    return pd.DataFrame(rows)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _markdown(table: pd.DataFrame) -> str:
    columns = [name for name in table.columns if (table[name] != "").any()]
    return tabulate(
        table[columns],  # type: ignore[arg-type]
        headers="keys",
        tablefmt="github",
        showindex=False,
        disable_numparse=True,
    )
