"""What `bench show` tells of records: the verdict under every law, and what several attacks on one
defense say together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.errors import BadInput
from bench.report.leaderboard import attack_label, detector_cell, flags, heading, stages_line
from bench.results import verdicts as protocols
from bench.results.estimate import Estimate
from bench.results.record import Record
from bench.results.statistics import Bools, Floats, worst_case
from bench.results.store import is_failure, read_failure, read_record
from bench.results.verdicts import share
from bench.results.views import any_right, right

Shares = dict[str, Estimate]
"""Verdicts by the name of their law."""

_ATTACK = ("attack", "gradient", "randomness")
_NOTE = (
    "Shares of images in percent with 95 % intervals. An attacked answer is right only if the "
    "clean one was right"
)
_DRAWS = (
    " under the same draw.\n"
    "clean: the same rule without attack. one draw: the first. any of m wrong: an attacker with m "
    "tries, one success is enough.\n"
    "majority: a tie is wrong."
)
_FIXED = (
    "\nreplayed: under the attack's own fixed noise; an image that is wrong there without attack "
    "is broken."
)
_FIXED_DRAWS = (
    "\nreplayed, ...: under the attack's own fixed noises; the clean answers under them are not in "
    "the record and do not count."
)
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
_NOT_TOLD = (
    "On these images it cannot be told from chance whether an attacker who knows the draws in "
    "advance breaks more:\n"
    "no worth of secret draws is shown under these attacks."
)


# Reading ------------------------------------------------------------------------------------------


def read(paths: Sequence[Path]) -> list[Record]:
    """The records in these files, each cell once.

    Raises `BadInput` where a file is no record, or where the records are not of the same defense on
    the same subject.
    """
    records = list({record.id: record for record in map(_read, paths)}.values())
    for record in records[1:]:
        _check_together(records[0], record)
    return records


def _read(path: Path) -> Record:
    if is_failure(path):
        raise BadInput(
            f"{path} is a failure and has no verdict ({read_failure(path).error}): run the cell "
            "again"
        )
    return read_record(path)


def _check_together(first: Record, other: Record) -> None:
    ours, theirs = _common(first), _common(other)
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    if differing:
        raise BadInput(
            f"{first.id} and {other.id} differ in {' and '.join(differing)}: give "
            "records of one defense on the same images, "
            "classifier and threat, under any attacks"
        )


def _common(record: Record) -> dict[str, Any]:
    """All of a record's identity that is not the attack's, and the images themselves."""
    identity = {
        key: value for key, value in record.identity.items() if key not in (*_ATTACK, "seeds")
    }
    build = record.identity["seeds"]["build"]
    return {
        **identity,
        "build seed": build,
        "images": (record.outcomes.ids, record.outcomes.labels),
    }


# One record ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One record's verdicts: without attack, under attack on fresh draws, and on the attack's own
    tapes (empty without one).
    """

    record: Record
    clean: Shares
    attacked: Shares
    replayed: Shares


def show(record: Record) -> Shown:
    """All that follows from a record's outcomes under every law."""
    clean, attacked = (
        protocols.verdicts(record.outcomes.correct(which)) for which in ("clean", "adversarial")
    )
    return Shown(record, _shares(clean), _shares(attacked), _shares(_replayed(record)))


def _replayed(record: Record) -> dict[str, Floats]:
    return (
        protocols.replayed_verdicts(record.outcomes.correct("replayed"))
        if record.outcomes.replayed
        else {}
    )


def _shares(scores: Mapping[str, Floats]) -> Shares:
    return {randomness: share(values) for randomness, values in scores.items()}


# Several records ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One row of a comparison: an attack with one seed, or with all its seeds folded (`mean of 3`,
    `worst of 3`).
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
        fresh: under the worst attack for each image, on fresh draws; see `protocols.best_fresh`.
        replayed: under the worst replay attack for each image, on its tape.
        gap: `fresh` minus `replayed`.
        ratio: `replayed` over `fresh`; None where nothing stands on fresh draws.
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
        return _REPLAY_IS_WEAK if self.gap.high < 0 else _NOT_TOLD


@dataclass(frozen=True)
class Comparison:
    """Several attacks on one defense.

    Attributes:
        clean: the null, as mean over seeds.
        lines: a row for each record, and folded ones behind an attack of several seeds.
        secrecy: None where replay and fresh attacks do not stand side by side.
    """

    clean: Shares
    lines: list[Line]
    secrecy: Secrecy | None


def compare(records: Sequence[Record]) -> Comparison:
    """Fold the seeds of each attack and set replay beside fresh randomness. The records must go
    together, as `read` sees to.
    """
    groups = _by_attack(records)
    clean = {
        record.title["seed"]: protocols.verdicts(record.outcomes.correct("clean"), ())
        for record in records
    }
    lines = [line for group in groups for line in _lines(group)]
    return Comparison(_shares(_folded(list(clean.values()))), lines, _secrecy(groups))


def _by_attack(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[json.dumps([record.identity[key] for key in _ATTACK], sort_keys=True)].append(record)
    return [
        sorted(group, key=lambda record: int(record.title["seed"])) for group in groups.values()
    ]


def _lines(group: Sequence[Record]) -> list[Line]:
    """One attack's rows."""
    scores = [
        {**protocols.verdicts(record.outcomes.correct("adversarial"), ()), **_replayed(record)}
        for record in group
    ]
    label, size = attack_label(group[0]), len(group)
    lines = [
        Line(label, record.title["seed"], _shares(one), flags([record]))
        for record, one in zip(group, scores, strict=True)
    ]
    if size == 1:
        return lines
    folded = {f"mean of {size}": _folded(scores), f"worst of {size}": _worst(group, scores)}
    return [
        *lines,
        *(Line(label, seeds, _shares(one), flags(group)) for seeds, one in folded.items()),
    ]


def _folded(scores: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {
        randomness: protocols.mean_over_seeds([one[randomness] for one in scores])
        for randomness in scores[0]
    }


def _worst(group: Sequence[Record], scores: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Each image under its worst seed: robust for all seeds. The lowest of several means over fresh
    draws would be low by luck.
    """
    worst = {
        randomness: protocols.worst_of([one[randomness] for one in scores])
        for randomness in scores[0]
    }
    correct = [record.outcomes.correct("adversarial") for record in group]
    mean = f"mean of {correct[0].shape[1]}"
    return {**worst, mean: worst_case(correct)} if mean in worst else worst


def _secrecy(groups: Sequence[Sequence[Record]]) -> Secrecy | None:
    # One tape for all images, or some stages left fresh, are other threats.
    has_fixed_noise = [group for group in groups if group[0].title["randomness"] == "replay"]
    untaped = [group for group in groups if not group[0].outcomes.replayed]
    seeds = sorted(
        set.intersection(*({record.title["seed"] for record in group} for group in groups)), key=int
    )
    if not has_fixed_noise or not untaped or not seeds:
        return None
    robust = protocols.best_fresh([_matrices(groups, "adversarial", seed) for seed in seeds])
    fixed_draws = [
        [protocols.one_draw(matrix) for matrix in _matrices(has_fixed_noise, "replayed", seed)]
        for seed in seeds
    ]
    replayed = protocols.mean_over_seeds([protocols.worst_of(scores) for scores in fixed_draws])
    gap, ratio = protocols.gap(robust, replayed), protocols.ratio(replayed, robust)
    return Secrecy(seeds, _lowest(groups, seeds), share(robust), share(replayed), gap, ratio)


def _matrices(groups: Iterable[Sequence[Record]], which: str, seed: str) -> list[Bools]:
    return [
        record.outcomes.correct(which)
        for group in groups
        for record in group
        if record.title["seed"] == seed
    ]


def _lowest(groups: Iterable[Sequence[Record]], seeds: Sequence[str]) -> str:
    def total(group: Sequence[Record]) -> float:
        return sum(
            record.metrics.adversarial.mean.value
            for record in group
            if record.title["seed"] in seeds
        )

    return attack_label(min(groups, key=total)[0])


# Rendering ----------------------------------------------------------------------------------------


def render(shown: Shown) -> str:
    """One record as plain text."""
    attacked = {**shown.attacked, **shown.replayed}
    rows = [
        {
            "law": randomness,
            "clean": _percent(shown.clean.get(randomness)),
            "attacked": _percent(attacked[randomness]),
        }
        for randomness in attacked
    ]
    return "\n\n".join(["\n".join(_facts(shown.record)), _table(rows), _note([shown.record])])


def render_comparison(records: Sequence[Record], comparison: Comparison) -> str:
    """Several records as plain text."""
    lines = [Line("no attack", "", comparison.clean, ""), *comparison.lines]
    laws = list(dict.fromkeys(randomness for line in lines for randomness in line.shares))
    title = f"{records[0].title['defense']} on {heading(records[0])}{_reduced(records[0])}"
    parts = [title, _table([_row(line, laws) for line in lines]), _note(records)]
    if comparison.secrecy:
        parts.append(_of_secrecy(comparison.secrecy))
    elif any(record.outcomes.replayed for record in records):
        parts.append(_NO_GAP)
    return "\n\n".join(parts)


def _facts(record: Record) -> list[str]:
    return [
        f"{record.title['defense']} under {attack_label(record)}, seed {record.title['seed']}",
        f"{heading(record)}{_reduced(record)}",
        f"made by {_environment(record.environment)}",
        f"data access: {', '.join(record.access) or 'none'}; replay level: {record.replay_level}",
        _cost(record),
        *_inference(record),
        *_scores(record),
        *(
            ["left standing by each stage, in the attack's own view:", stages_line(record)]
            if record.stages
            else []
        ),
        *_findings(record),
    ]


def _reduced(record: Record) -> str:
    return " (reduced)" if record.scale["reduced"] else ""


def _environment(environment: Mapping[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {environment['versions'][name]}"
        for name in ("adversarial-bench", "python", "torch")
    )
    commit = (
        f"{str(environment.get('commit'))[:7]}{' (changed)' if environment.get('dirty') else ''}"
    )
    return (
        f"{versions}; commit {commit}; {environment.get('device')}, threads "
        f"{environment.get('threads')}"
    )


def _cost(record: Record) -> str:
    cost = record.cost
    most = f"at most {cost.max_attack_forwards}F {cost.max_attack_backwards}B"
    attack = f"{cost.attack_forwards:.1f}F {cost.attack_backwards:.1f}B ({most})"
    return f"passes/image: attack {attack}, judge {cost.judge_forwards:.0f}F; {cost.seconds:.0f} s"


def _inference(record: Record) -> list[str]:
    if not record.inference:
        return []
    obstacles = record.inference.obstacles()
    admission = f"no ({', '.join(obstacles)})" if obstacles else "yes"
    return [
        f"passes/prediction: {record.inference.passes:.1f}; meets RobustBench's three conditions: "
        f"{admission}"
    ]


def _scores(record: Record) -> list[str]:
    """What the scored views say; no choice among them can do better than `any of them`."""
    if not record.views:
        return []
    found, outcomes = record.views, record.outcomes
    told = {
        view: [
            _percent(share(right(found, outcomes, view, which).astype(float)))
            for which in ("clean", "adversarial")
        ]
        for view in found.answers
    }
    either = any_right(found, outcomes)
    spared = f"{100 * float((either & ~found.moved()).mean()):.1f} not attacked"
    return [
        *(f"view {view}: {clean} -> {attacked}" for view, (clean, attacked) in told.items()),
        f"any of them, clean and attacked: {_percent(share(either.astype(float)))}, of which "
        f"{spared}",
        *([f"detector: {detector_cell(record)}"] if found.detector else []),
    ]


def _findings(record: Record) -> list[str]:
    lines = [f"- COLLAPSED: {record.metrics.collapse_reason}"] * record.metrics.collapsed
    lines += [f"- {found.verdict} {found.name}: {found.message}" for found in record.findings]
    return ["findings:", *lines] if lines else ["findings: none"]


def _row(line: Line, laws: Iterable[str]) -> dict[str, str]:
    shares = {randomness: _percent(line.shares.get(randomness)) for randomness in laws}
    return {"attack": line.attack, "seed": line.seed, **shares, "flags": line.flags}


def _percent(interval: Estimate | None) -> str:
    return str(interval) if interval else ""


def _table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown, without the columns that are empty in every row."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    texts = [[row[column] for column in columns] for row in rows]
    return tabulate(texts, headers=columns, tablefmt="github", disable_numparse=True)


def _note(records: Sequence[Record]) -> str:
    fixed_draws = {len(record.outcomes.replayed) for record in records}
    laws = _DRAWS if any(record.stochastic for record in records) else "."
    return _NOTE + laws + _FIXED * (1 in fixed_draws) + _FIXED_DRAWS * bool(fixed_draws - {0, 1})


def _of_secrecy(secrecy: Secrecy) -> str:
    seeds = (
        f"{', mean over seeds' if len(secrecy.seeds) > 1 else ', seed'} {', '.join(secrecy.seeds)}"
    )
    ratio = (
        secrecy.ratio.scaled(1, 2) if secrecy.ratio else "none, as nothing stands on fresh draws"
    )
    return "\n".join(
        [
            f"Worst attack for each image{seeds}:",
            f"- fresh draws: {_percent(secrecy.fresh)} (the lowest single attack: "
            f"{secrecy.lowest})",
            f"- replayed: {_percent(secrecy.replayed)}",
            f"- gap, fresh - replayed: {secrecy.gap.scaled(100, 1)} points",
            f"- ratio, replayed / fresh: {ratio}",
            secrecy.meaning,
        ]
    )


# JSON ---------------------------------------------------------------------------------------------


def as_json(shown: Sequence[Shown], comparison: Comparison | None) -> dict[str, Any]:
    """Everything with plain numbers; shares in [0, 1], and None where a ratio has no upper
    bound.
    """
    return {
        "records": [_json(one) for one in shown],
        "comparison": comparison and _json_comparison(comparison),
    }


def _json(shown: Shown) -> dict[str, Any]:
    kept = {
        "id",
        "title",
        "scale",
        "environment",
        "access",
        "replay_level",
        "findings",
        "cost",
        "finished",
    }
    stages = shown.record.stages
    return {
        **shown.record.model_dump(mode="json", include=kept),
        "collapsed": shown.record.metrics.collapsed,
        "stages": stages and stages.left(),
        "laws": {
            which: _plain(getattr(shown, which)) for which in ("clean", "attacked", "replayed")
        },
    }


def _json_comparison(comparison: Comparison) -> dict[str, Any]:
    lines = [
        {"attack": line.attack, "seed": line.seed, "flags": line.flags, "laws": _plain(line.shares)}
        for line in comparison.lines
    ]
    return {
        "clean": _plain(comparison.clean),
        "attacks": lines,
        "secrecy": comparison.secrecy and _json_secrecy(comparison.secrecy),
    }


def _json_secrecy(secrecy: Secrecy) -> dict[str, Any]:
    found = {**asdict(secrecy), "meaning": secrecy.meaning.replace("\n", " ")}
    if secrecy.ratio and not isfinite(secrecy.ratio.high):
        found["ratio"]["high"] = None
    return found


def _plain(shares: Shares) -> dict[str, dict[str, float]]:
    return {randomness: asdict(interval) for randomness, interval in shares.items()}
