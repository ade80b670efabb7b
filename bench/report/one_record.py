"""One record under every aggregation rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.report import escape
from bench.report.tables import markdown, without_empty_columns
from bench.report.words import (
    attack_label,
    defense_label,
    denoiser_passes,
    detector_rates,
    has_failed,
    heading,
    median_distance,
    stages_line,
    struck_through,
)
from bench.results.aggregation import replayed_verdicts, verdicts
from bench.results.arrays import Floats
from bench.results.distances import STEPS, Distances
from bench.results.estimate import Estimate
from bench.results.intervals import share
from bench.results.record import Record
from bench.results.views import any_right, right
from bench.results.worst_case import attacked, worst_case
from bench.spec import show_number

Shares = dict[str, Estimate]
"""Accuracies by the name of their aggregation rule."""

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


@dataclass(frozen=True)
class Shown:
    """One record's accuracies: without attack, under attack on fresh draws, and under the attack's
    own fixed noise (empty where it had none).
    """

    record: Record
    clean: Shares
    attacked: Shares
    replayed: Shares


def under_every_rule(record: Record) -> Shown:
    """All that follows from a record's outcomes under every aggregation rule."""
    clean, attacked = (
        shares(verdicts(record.outcomes.correct(which))) for which in ("clean", "adversarial")
    )
    return Shown(record, clean, attacked, shares(replayed_scores(record)))


def replayed_scores(record: Record) -> dict[str, Floats]:
    """Scores (n,) under the attack's own fixed noise, by rule; empty where it had none."""
    outcomes = record.outcomes
    return replayed_verdicts(outcomes.correct("replayed")) if outcomes.replayed else {}


def shares(scores: Mapping[str, Floats]) -> Shares:
    return {rule: share(values) for rule, values in scores.items()}


def render(shown: Shown) -> str:
    """Plain text."""
    attacked = {**shown.attacked, **shown.replayed}
    rows = [
        {"rule": rule, "clean": str(shown.clean.get(rule, "")), "attacked": str(value)}
        for rule, value in attacked.items()
    ]
    table = markdown(without_empty_columns(rows))
    return "\n\n".join(
        ["\n".join(map(escape.terminal, _facts(shown.record))), table, rules_note([shown.record])]
    )


def rules_note(records: Sequence[Record]) -> str:
    """What the rules mean that these records know."""
    fixed_draws = {len(record.outcomes.replayed) for record in records}
    draws = _DRAWS if any(record.stochastic for record in records) else "."
    return _NOTE + draws + _FIXED * (1 in fixed_draws) + _FIXED_DRAWS * bool(fixed_draws - {0, 1})


def setup_line(record: Record) -> str:
    return heading(record) + (" (reduced)" if record.scale["reduced"] else "")


def _facts(record: Record) -> list[str]:
    stages = [
        "left unbroken by each stage, in the attack's own view:",
        stages_line(record) if record.stages else "",
    ]
    name = struck_through(defense_label(record), has_failed([record]))
    return [
        f"{name} under {attack_label(record)}, seed {record.title['seed']}",
        setup_line(record),
        f"made by {_environment(record.environment)}",
        f"data access: {', '.join(record.access) or 'none'}; replay level: {record.replay_level}",
        _cost(record),
        *_inference(record),
        *_scored_views(record),
        *_with_extra(record),
        *_distances(record),
        *(stages if record.stages else []),
        *_findings(record),
        *_audit(record),
    ]


def _environment(environment: Mapping[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {environment['versions'].get(name, '?')}"
        for name in ("adversarial-bench", "python", "torch")
    )
    changed = " (changed)" if environment.get("dirty") else ""
    return (
        f"{versions}; commit {str(environment.get('commit'))[:7]}{changed}; "
        f"{environment.get('device')}, threads {environment.get('threads')}"
    )


def _cost(record: Record) -> str:
    cost = record.cost
    most = f"at most {cost.max_attack_forwards}F {cost.max_attack_backwards}B"
    attack = f"{cost.attack_forwards:.1f}F {cost.attack_backwards:.1f}B ({most})"
    checks = f"checks {cost.check_forwards:.1f}F {cost.check_backwards:.1f}B"
    checks = f", {checks}" if cost.check_forwards or cost.check_backwards else ""
    judge = f"judge {cost.judge_forwards:.0f}F{checks}; {cost.seconds:.0f} s"
    return f"passes/image: attack {attack}, {judge}"


def _inference(record: Record) -> list[str]:
    if not record.inference:
        return []
    obstacles = record.inference.obstacles()
    admission = f"no ({', '.join(obstacles)})" if obstacles else "yes"
    denoiser = denoiser_passes(record.inference)
    through = f" ({denoiser} through the diffusion model)" if denoiser else ""
    return [
        f"passes/prediction: {record.inference.passes:.1f}{through}; meets RobustBench's three "
        f"conditions: {admission}"
    ]


def _scored_views(record: Record) -> list[str]:
    """What the scored views say; no choice among them can do better than `any of them`."""
    if not record.views:
        return []
    views, outcomes = record.views, record.outcomes
    lines = []
    for view in views.answers:
        clean, attacked = (
            share(right(views, outcomes, view, which).astype(float))
            for which in ("clean", "adversarial")
        )
        lines.append(f"view {view}: {clean} -> {attacked}")
    either = any_right(views, outcomes)
    not_attacked = 100 * float((either & ~views.moved()).mean())
    lines.append(
        f"any of them, clean and attacked: {share(either.astype(float))}, of which "
        f"{not_attacked:.1f} not attacked"
    )
    return [*lines, *([f"detector: {detector_rates(record)}"] if views.detector else [])]


def _with_extra(record: Record) -> list[str]:
    """What is left where points count that something else than the attack found."""
    if len(attacked(record)) == 1:
        return []
    names = ", ".join(extra.name for extra in record.extra)
    return [f"worst case with {names}: {share(worst_case(attacked(record)))}"]


def _distances(record: Record) -> list[str]:
    """How far what breaks the images lies, and what that leaves at other eps than the row's."""
    if record.distances is None:
        return []
    found, own = record.distances, float(record.identity["threat"]["eps"])
    every = [factor * own for factor in STEPS]
    shares = zip(every, found.curve(every), strict=True)
    left = ", ".join(f"{100 * one.value:.1f} at {show_number(eps)}" for eps, one in shares)
    return [
        f"distance of the nearest broken point: median {median_distance(record)}, found for "
        f"{found.found} of {len(found.values)} images; left at an eps: {left}"
    ]


def _findings(record: Record) -> list[str]:
    lines = [f"- COLLAPSED: {record.metrics.collapse_reason}"] * record.metrics.collapsed
    lines += [f"- {one.verdict} {one.name}: {one.message}" for one in record.findings]
    return ["findings:", *lines] if lines else ["findings: none"]


def _audit(record: Record) -> list[str]:
    """The verdict of the record's audit, and the checks that speak."""
    report = record.audit
    if report is None:
        return []
    checks = [*report.failed, *report.warned]
    return [
        f"audit ({report.profile}): {report.verdict}",
        *(f"- {one.verdict} {one.id}: {one.message}" for one in checks),
    ]


def as_json(shown: Shown) -> dict[str, Any]:
    """With plain numbers; shares in [0, 1]."""
    kept = {
        "id",
        "title",
        "scale",
        "environment",
        "access",
        "replay_level",
        "findings",
        "extra",
        "cost",
        "finished",
    }
    distances = shown.record.distances
    stages = shown.record.stages
    return {
        **shown.record.model_dump(mode="json", include=kept),
        "audit": shown.record.audit and shown.record.audit.model_dump(mode="json"),
        "collapsed": shown.record.metrics.collapsed,
        "worst_case": asdict(share(worst_case(attacked(shown.record)))),
        "stages": stages and stages.left(),
        "distances": distances and _plain_distances(distances),
        "rules": {
            which: plain(getattr(shown, which)) for which in ("clean", "attacked", "replayed")
        },
    }


def _plain_distances(distances: Distances) -> dict[str, Any]:
    """With None for what is infinite."""
    median = distances.median
    return {
        "median": median if math.isfinite(median) else None,
        "values": list(distances.values),
    }


def plain(by_rule: Shares) -> dict[str, dict[str, float]]:
    return {rule: asdict(estimate) for rule, estimate in by_rule.items()}
