"""What a record says against itself, without any computation: the profile `quick`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from bench.audit.verdicts import checked, graded, not_applicable
from bench.results.audit import AuditCheck, CheckVerdict
from bench.results.comparisons import beats
from bench.results.findings import Finding
from bench.results.record import Record

_WORST: dict[str, int] = {"note": 0, "warn": 1, "fail": 2}


def own_findings(record: Record) -> Iterator[AuditCheck]:
    """The findings of the run itself that are more than a note, one check a name."""
    by_name: dict[str, list[Finding]] = defaultdict(list)
    for finding in record.findings:
        if finding.verdict != "note":
            by_name[finding.name].append(finding)
    for name, findings in by_name.items():
        worst = max(findings, key=lambda one: _WORST[one.verdict])
        verdict: CheckVerdict = "fail" if worst.verdict == "fail" else "warn"
        yield AuditCheck(
            id=name,
            name="finding of the run",
            verdict=verdict,
            message="; ".join(dict.fromkeys(one.message for one in findings)),
            value=worst.value,
            threshold=worst.threshold,
            images=worst.images,
            advice=worst.advice,
            source=worst.source,
        )


def collapse(record: Record) -> Iterator[AuditCheck]:
    """P8: the collapse rule."""
    metrics = record.metrics
    told = metrics.collapse_reason or (
        f"the most predicted class has {100 * metrics.largest_predicted_share:.1f} % of the clean "
        "answers"
    )
    yield checked(
        "P8",
        graded(fail=metrics.collapsed),
        told,
        value=metrics.largest_predicted_share,
    )


def order(record: Record, others: Sequence[Record]) -> Iterator[AuditCheck]:
    """S16: an attack that is the same with more passes, or one of several stages, is beaten by
    none that is less.

    Args:
        record: the audited one, as the one that should be stronger.
        others: records of other attacks on the same defense and setup.
    """
    weaker = [one for one in others if _is_weaker(one, record)]
    if not weaker:
        yield not_applicable("S16", "no record of a weaker attack on the same defense is at hand")
        return
    ours = record.outcomes.correct("adversarial").mean(1) <= 0.5
    for one in weaker:
        theirs = one.outcomes.correct("adversarial").mean(1) <= 0.5
        if beats(theirs, ours):
            only = np.flatnonzero(theirs & ~ours)
            told = f"{one.title['attack']} breaks {len(only)} images that {record.title['attack']}"
            told += " leaves, though it is the weaker attack"
            yield checked("S16", "fail", told, value=float(len(only)))
            return
    yield checked("S16", "pass", f"no weaker attack of {len(weaker)} breaks more")


def _is_weaker(one: Record, record: Record) -> bool:
    """Whether it is the same attack with fewer passes, or a single attack beside one of stages."""
    same = ("gradient", "randomness")
    if any(one.identity[key] != record.identity[key] for key in same) or one.id == record.id:
        return False
    if one.targets is not None or record.targets is not None:
        return False
    passes = [r.cost.max_attack_forwards + r.cost.max_attack_backwards for r in (one, record)]
    if passes[0] >= passes[1]:
        return False
    if _but_for_its_length(one) == _but_for_its_length(record):
        return True
    return record.stages is not None and one.stages is None


def _but_for_its_length(record: Record) -> dict[str, object]:
    """The identity of the attack without steps and starts."""
    attack = record.identity["attack"]
    params = dict(attack.get("params", {}))
    return {**attack, "params": {k: v for k, v in params.items() if k not in _LENGTHS}}


_LENGTHS = ("steps", "restarts")
