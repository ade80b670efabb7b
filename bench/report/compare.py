"""Defenses against each other on the same images: means over builds, paired differences, and
McNemar's test of each build.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import BadInput
from bench.plugins.create import BASE
from bench.report import escape
from bench.report.grouping import by_setup, newest
from bench.report.tables import markdown, without_empty_columns
from bench.report.words import attack_label, has_failed, heading
from bench.results.aggregation import majority, mean_of_draws
from bench.results.arrays import Bools, Floats
from bench.results.comparisons import gap, gap_over_builds, holm, mcnemar, mean_over_builds
from bench.results.estimate import Estimate
from bench.results.intervals import share
from bench.results.outcomes import Outcomes
from bench.results.record import Record
from bench.results.worst_case import attacked, worst_case
from bench.spec import nearest

SIGNIFICANT = 0.05

_NOTE = (
    "Means over builds and images in percent, differences in points, with 95 % intervals that "
    "count both; of a single build there is none, as it says nothing of others. Robust: the worst "
    "case over the attacks named. The second table is of single networks, with intervals over "
    "images: gain, robust accuracy minus that of the first defense's network; lost and won, images "
    "robust under that network and not under this one, and the other way round; p, McNemar's exact "
    "test of the two networks, not of the two methods: builds of one method differ, too; Holm: p "
    "adjusted for the number of tests in the table."
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
        failed: whether a check of one of its records failed, so that its number is not to be
            believed.
    """

    defense: str
    attacks: tuple[str, ...]
    seeds: tuple[int, ...]
    clean: Floats
    robust: Floats
    right: Bools
    collapsed: list[bool]
    failed: bool = False


def build_scores(
    defense: str,
    attacks: Iterable[str],
    builds: Mapping[int, Sequence[Outcomes]],
    collapsed: Sequence[bool],
    extra: Mapping[int, Sequence[Bools]] | None = None,
) -> BuildScores:
    """The verdicts of a defense.

    Args:
        defense: its canonical spec.
        attacks: their names.
        builds: by build seed the outcomes of all attacks.
        collapsed: of each build, whether it collapsed.
        extra: by build seed the verdicts on points that stand beside the attacks', (n, draws).
    """
    outcomes = list(builds.values())
    beside = [(extra or {}).get(seed, []) for seed in builds]
    own = [[one.correct("adversarial") for one in build] for build in outcomes]
    points = [[*ours, *others] for ours, others in zip(own, beside, strict=True)]
    return BuildScores(
        defense=defense,
        attacks=tuple(attacks),
        seeds=tuple(builds),
        clean=np.stack([mean_of_draws(build[0].correct("clean")) for build in outcomes]),
        robust=np.stack([worst_case(build) for build in points]),
        right=np.stack(
            [np.all([_survives(one, build[0]) for one in build], axis=0) for build in points]
        ),
        collapsed=list(collapsed),
    )


def _survives(correct: Bools, own: Bools) -> Bools:
    """Right in most draws; on points with fewer draws than the attack's own, in any: a tie of few
    is no evidence.
    """
    fewer = correct.shape[1] < own.shape[1]
    return np.asarray(correct.any(axis=1) if fewer else majority(correct) > 0)


# Tables -------------------------------------------------------------------------------------------


def comparison(defenses: Sequence[BuildScores]) -> pd.DataFrame:
    """A row a defense: means over builds and images, and the paired difference to the first one,
    with their intervals.

    `lower` and `higher` count the pairs of networks that McNemar's test calls so at the 5 % level.
    """
    return pd.DataFrame([_row(one, defenses[0]) for one in defenses])


def _row(one: BuildScores, first: BuildScores) -> dict[str, object]:
    row: dict[str, object] = {
        "defense": one.defense,
        **_columns("clean", mean_over_builds(one.clean)),
        **_columns("robust", mean_over_builds(one.robust)),
        "collapsed": sum(one.collapsed),
    }
    if one is not first:
        significant = [test for test in _tests(one, first) if test["p"] < SIGNIFICANT]
        ours, theirs = map(list, zip(*_pairing(one, first), strict=True))
        row |= _columns("difference", gap_over_builds(one.robust[ours], first.robust[theirs]))
        row |= {
            "lower": sum(test["lost"] > test["won"] for test in significant),
            "higher": sum(test["won"] > test["lost"] for test in significant),
        }
    return row


def _columns(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def by_build(defenses: Sequence[BuildScores]) -> pd.DataFrame:
    """A row a build: accuracies and, against the first defense, the gain in robust accuracy, each
    with its interval over images; the images lost and won, McNemar's p for these two networks, and
    p by Holm's method.
    """
    rows = [row for one in defenses for row in _by_build(one, defenses[0])]
    tested = [row["p"] for row in rows if "p" in row]
    adjusted = iter(holm(tested))
    return pd.DataFrame([{**row, "p_holm": next(adjusted)} if "p" in row else row for row in rows])


def _by_build(one: BuildScores, first: BuildScores) -> Iterator[dict[str, Any]]:
    tests = [{} for _ in one.seeds] if one is first else _tests(one, first)
    builds = range(len(one.seeds)) if one is first else [ours for ours, _ in _pairing(one, first)]
    for build, test in zip(builds, tests, strict=True):
        yield {
            "defense": one.defense,
            "build": one.seeds[build],
            **_columns("clean", share(one.clean[build])),
            **_columns("robust", share(one.robust[build])),
            "collapsed": one.collapsed[build],
            **test,
        }


def _pairing(one: BuildScores, first: BuildScores) -> list[tuple[int, int]]:
    """Which builds are compared, as places in `one.seeds` and `first.seeds`: those of one seed; a
    defense of one build with every build of the other.
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


def _tests(one: BuildScores, first: BuildScores) -> list[dict[str, float]]:
    """The difference and McNemar's test of each pair of networks."""
    tests = []
    for ours, theirs in _pairing(one, first):
        a, b = one.right[ours], first.right[theirs]
        tests.append(
            {
                **_columns("gain", gap(one.robust[ours], first.robust[theirs])),
                "lost": int((b & ~a).sum()),
                "won": int((a & ~b).sum()),
                "p": mcnemar(a, b),
            }
        )
    return tests


def with_interval(row: dict[Any, Any], name: str) -> str:
    """`41.3 [38.0, 44.9]`: a value of a row with its interval, times 100; without one, `41.3`."""
    return str(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]))


# Records ------------------------------------------------------------------------------------------


def compare(records: Sequence[Record], first: str | None = None) -> dict[str, list[BuildScores]]:
    """For each setup in the records, in words, its defenses; `first`, or the undefended classifier,
    or the first by name, leads.

    Raises `BadInput` where no setup has two defenses, or `first` is not there.
    """
    by_heading = {
        heading(group[0]): _led(_defenses(group), first)
        for group in by_setup(records)
        if len({record.title["defense"] for record in group}) > 1
    }
    if not by_heading:
        raise BadInput(
            "no two of these records are of different defenses on the same images, classifier and "
            "threat: give such records"
        )
    return by_heading


def _defenses(records: Sequence[Record]) -> list[BuildScores]:
    by_name: dict[str, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in newest(records):
        by_name[record.title["defense"]][record.identity["seeds"]["build"]].append(record)
    return [_scores_of_records(name, builds) for name, builds in sorted(by_name.items())]


def _scores_of_records(name: str, builds: dict[int, list[Record]]) -> BuildScores:
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
    extra = {
        seed: [points for record in records for points in attacked(record)[1:]]
        for seed, records in builds.items()
    }
    scores = build_scores(name, attacks, outcomes, collapsed, extra)
    return replace(scores, failed=any(has_failed(records) for records in builds.values()))


def _led(defenses: list[BuildScores], first: str | None) -> list[BuildScores]:
    names = [one.defense for one in defenses]
    if first is not None and first not in names:
        raise BadInput(f"no record of the defense {first!r} here.{nearest(first, names)}")
    lead = first or (BASE if BASE in names else names[0])
    return sorted(defenses, key=lambda one: one.defense != lead)


def as_json(compared: dict[str, list[BuildScores]]) -> list[dict[str, Any]]:
    """Both tables of each setup with plain numbers; shares in [0, 1], None where nothing is
    compared. `failed` names the defenses whose numbers a check struck out.
    """
    return [
        {
            "setup": setup,
            "means": _plain(comparison(defenses)),
            "builds": _plain(by_build(defenses)),
            "failed": [one.defense for one in defenses if one.failed],
        }
        for setup, defenses in compared.items()
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


def render(compared: dict[str, list[BuildScores]]) -> str:
    """Two tables a setup, as Markdown."""
    paragraphs = []
    for setup, defenses in compared.items():
        tables = _means(defenses), _builds(by_build(defenses))
        paragraphs += [
            escape.markdown(setup),
            *(markdown(without_empty_columns(_struck_out(rows, defenses))) for rows in tables),
        ]
    return "\n\n".join([*paragraphs, _NOTE])


def _struck_out(
    rows: list[dict[str, object]], defenses: Sequence[BuildScores]
) -> list[dict[str, object]]:
    failed = {one.defense for one in defenses if one.failed}
    return [
        {**row, "defense": f"~~{row['defense']}~~"} if row["defense"] in failed else row
        for row in rows
    ]


def _means(defenses: Sequence[BuildScores]) -> list[dict[str, object]]:
    return [
        {
            "defense": row["defense"],
            "attacks": ", ".join(one.attacks),
            "builds": len(one.seeds),
            "clean": with_interval(row, "clean"),
            "robust": with_interval(row, "robust"),
            "difference": with_interval(row, "difference")
            if row["difference"] == row["difference"]
            else "",
        }
        for row, one in zip(comparison(defenses).to_dict("records"), defenses, strict=True)
    ]


def _builds(table: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for row in table.to_dict("records"):
        shown = {"defense": row["defense"], "build": row["build"]}
        shown |= {name: with_interval(row, name) for name in ("clean", "robust")}
        shown["collapsed"] = "yes" if row["collapsed"] else ""
        tested = row["p"] == row["p"]
        shown["gain"] = with_interval(row, "gain") if tested else ""
        shown |= {name: f"{row[name]:.0f}" if tested else "" for name in ("lost", "won")}
        shown |= {
            label: _p(row[name]) if tested else ""
            for name, label in (("p", "p (two networks)"), ("p_holm", "Holm"))
        }
        rows.append(shown)
    return rows


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
