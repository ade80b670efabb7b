"""Several attacks on one defense: seeds folded, and what an attacker gains who knows the draws."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from bench.report import escape
from bench.report.one_record import (
    Shares,
    plain,
    replayed_scores,
    rules_note,
    setup_line,
    shares,
)
from bench.report.tables import markdown, without_empty_columns
from bench.report.words import (
    attack_label,
    defense_label,
    flags,
    has_failed,
    struck_through,
)
from bench.results.aggregation import mean_over_seeds, one_draw, verdicts, worst_of
from bench.results.arrays import Bools, Floats
from bench.results.comparisons import gap, ratio
from bench.results.estimate import Estimate
from bench.results.intervals import share
from bench.results.record import Record
from bench.results.worst_case import attacked, best_fresh, extra_verdicts, worst_case

ATTACK_KEYS = ("attack", "gradient", "randomness")
"""What of a record's identity is the attack's."""

_NO_GAP = (
    "No gap between fresh draws and replay: that takes an attack of each (`fresh` or `eot`, "
    "and `replay`) with a seed in common."
)
_KNOWING_HELPS = (
    "An attacker who knows the draws in advance breaks more. That is another threat model and "
    "proves no fresh number wrong:\n"
    "the gap holds what secret draws are worth and what the fresh attacks failed to find, and "
    "cannot tell them apart."
)
_REPLAY_IS_WEAK = (
    "Knowing the draws in advance cannot hurt an attacker, yet the replay attacks break less than "
    "the others: they are too weak,\n"
    "and the gap says nothing about what secret draws are worth."
)
_MAY_BE_CHANCE = (
    "On these images it cannot be told from chance whether an attacker who knows the draws in "
    "advance breaks more:\n"
    "no worth of secret draws is shown under these attacks."
)


@dataclass(frozen=True)
class Line:
    """One row of a comparison: an attack with one seed, with the points that others found beside it
    (`worst case`), or with all its seeds folded (`mean of 3`, `worst of 3`).
    """

    attack: str
    seed: str
    shares: Shares
    flags: str


@dataclass(frozen=True)
class Secrecy:
    """What knowing the draws is worth to an attacker; every number is the mean over `seeds`.

    Attributes:
        seeds: those that every attack ran with.
        lowest: the attack with the lowest mean over fresh draws.
        fresh: under the worst attack for each image, on fresh draws; see
            `bench.results.worst_case.best_fresh`.
        replayed: under the worst replay attack for each image, under its own fixed noise.
        gap: `fresh` minus `replayed`.
        ratio: `replayed` over `fresh`; None where nothing survives on fresh draws.
    """

    seeds: list[str]
    lowest: str
    fresh: Estimate
    replayed: Estimate
    gap: Estimate
    ratio: Estimate | None

    @property
    def meaning(self) -> str:
        """What the gap says, in words."""
        if self.gap.low > 0:
            return _KNOWING_HELPS
        return _REPLAY_IS_WEAK if self.gap.high < 0 else _MAY_BE_CHANCE


@dataclass(frozen=True)
class Comparison:
    """Several attacks on one defense.

    Attributes:
        records: one an attack and seed.
        clean: the null attack, as mean over seeds.
        lines: a row for each record, and folded ones behind an attack of several seeds.
        secrecy: None where replay and fresh attacks do not stand side by side.
    """

    records: Sequence[Record]
    clean: Shares
    lines: list[Line]
    secrecy: Secrecy | None


def compare_attacks(records: Sequence[Record]) -> Comparison:
    """Fold the seeds of each attack and set replay beside fresh randomness. The records must be of
    one defense on one setup.
    """
    groups = _by_attack(records)
    clean = {
        record.title["seed"]: verdicts(record.outcomes.correct("clean"), ()) for record in records
    }
    lines = [line for group in groups for line in _lines(group)]
    return Comparison(records, shares(_mean_by_rule(list(clean.values()))), lines, _secrecy(groups))


def _by_attack(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        identity = [record.identity[key] for key in ATTACK_KEYS]
        groups[json.dumps(identity, sort_keys=True)].append(record)
    return [
        sorted(group, key=lambda record: int(record.title["seed"])) for group in groups.values()
    ]


def _lines(group: Sequence[Record]) -> list[Line]:
    """One attack's rows; the worst case counts extra points, such as those of the checks."""
    scores = [
        {**verdicts(record.outcomes.correct("adversarial"), ()), **replayed_scores(record)}
        for record in group
    ]
    label, size = attack_label(group[0]), len(group)
    lines = [
        Line(label, record.title["seed"], shares(by_rule), ", ".join(flags([record])))
        for record, by_rule in zip(group, scores, strict=True)
    ]
    folded = {f"mean of {size}": _mean_by_rule(scores)} if size > 1 else {}
    if size > 1 or any(len(attacked(record)) > 1 for record in group):
        folded[f"worst of {size}" if size > 1 else "worst case"] = _worst(group, scores)
    all_flags = ", ".join(flags(group))
    return [
        *lines,
        *(Line(label, seeds, shares(by_rule), all_flags) for seeds, by_rule in folded.items()),
    ]


def _mean_by_rule(scores: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {rule: mean_over_seeds([one[rule] for one in scores]) for rule in scores[0]}


def _worst(group: Sequence[Record], scores: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Each image under its worst seed and its extra points: robust under all. The lowest of several
    means over fresh draws would be low by chance.
    """
    points = [attacked(record) for record in group]
    beside = [extra_verdicts(one, ours[0].shape[1]) for ours in points for one in ours[1:]]
    worst = {
        rule: worst_of([one[rule] for one in [*scores, *beside] if rule in one])
        for rule in scores[0]
    }
    mean = f"mean of {points[0][0].shape[1]}"
    every = [one for ours in points for one in ours]
    return {**worst, mean: worst_case(every)} if mean in worst else worst


def _secrecy(groups: Sequence[Sequence[Record]]) -> Secrecy | None:
    # One fixed draw for all images, or some stages left fresh, are other threats.
    replayed_groups = [group for group in groups if group[0].title["randomness"] == "replay"]
    fresh_groups = [group for group in groups if not group[0].outcomes.replayed]
    common = set.intersection(*({record.title["seed"] for record in group} for group in groups))
    seeds = sorted(common, key=int)
    if not replayed_groups or not fresh_groups or not seeds:
        return None
    fresh = best_fresh([_correct(groups, "adversarial", seed) for seed in seeds])
    replayed = mean_over_seeds(
        [
            worst_of([one_draw(matrix) for matrix in _correct(replayed_groups, "replayed", seed)])
            for seed in seeds
        ]
    )
    return Secrecy(
        seeds=seeds,
        lowest=_lowest(groups, seeds),
        fresh=share(fresh),
        replayed=share(replayed),
        gap=gap(fresh, replayed),
        ratio=ratio(replayed, fresh),
    )


def _correct(groups: Iterable[Sequence[Record]], which: str, seed: str) -> list[Bools]:
    """Of each attack, which draws were right (n, N), under one seed; under fresh draws those of its
    extra points, too.
    """
    return [
        correct
        for group in groups
        for record in group
        if record.title["seed"] == seed
        for correct in (
            attacked(record) if which == "adversarial" else [record.outcomes.correct(which)]
        )
    ]


def _lowest(groups: Iterable[Sequence[Record]], seeds: Sequence[str]) -> str:
    def total(group: Sequence[Record]) -> float:
        return sum(
            record.metrics.adversarial.mean.value
            for record in group
            if record.title["seed"] in seeds
        )

    return attack_label(min(groups, key=total)[0])


def render(comparison: Comparison) -> str:
    """Plain text."""
    records, first = comparison.records, comparison.records[0]
    lines = [Line("no attack", "", comparison.clean, ""), *comparison.lines]
    rules = list(dict.fromkeys(rule for line in lines for rule in line.shares))
    name = struck_through(defense_label(first), has_failed(records))
    title = escape.terminal(f"{name} on {setup_line(first)}")
    table = markdown(without_empty_columns([_row(line, rules) for line in lines]))
    paragraphs = [title, table, rules_note(records)]
    if comparison.secrecy:
        paragraphs.append(_secrecy_lines(comparison.secrecy))
    elif any(record.outcomes.replayed for record in records):
        paragraphs.append(_NO_GAP)
    return "\n\n".join(paragraphs)


def _row(line: Line, rules: Iterable[str]) -> dict[str, str]:
    by_rule = {rule: str(line.shares.get(rule, "")) for rule in rules}
    return {"attack": line.attack, "seed": line.seed, **by_rule, "flags": line.flags}


def _secrecy_lines(secrecy: Secrecy) -> str:
    lowest = escape.terminal(secrecy.lowest)
    several = ", mean over seeds" if len(secrecy.seeds) > 1 else ", seed"
    ratio = (
        secrecy.ratio.scaled(1, 2) if secrecy.ratio else "none, as nothing survives on fresh draws"
    )
    return "\n".join(
        [
            f"Worst attack for each image{several} {', '.join(secrecy.seeds)}:",
            f"- fresh draws: {secrecy.fresh} (the lowest single attack: {lowest})",
            f"- replayed: {secrecy.replayed}",
            f"- gap, fresh - replayed: {secrecy.gap.scaled(100, 1)} points",
            f"- ratio, replayed / fresh: {ratio}",
            secrecy.meaning,
        ]
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """With plain numbers; shares in [0, 1], and None where a ratio has no upper bound."""
    lines = [
        {
            "attack": line.attack,
            "seed": line.seed,
            "flags": line.flags,
            "rules": plain(line.shares),
        }
        for line in comparison.lines
    ]
    return {
        "clean": plain(comparison.clean),
        "attacks": lines,
        "secrecy": comparison.secrecy and _secrecy_json(comparison.secrecy),
    }


def _secrecy_json(secrecy: Secrecy) -> dict[str, Any]:
    content = {**asdict(secrecy), "meaning": secrecy.meaning.replace("\n", " ")}
    if secrecy.ratio and not isfinite(secrecy.ratio.high):
        content["ratio"]["high"] = None
    return content
