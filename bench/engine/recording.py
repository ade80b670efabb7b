"""From the arrays of all shards to the record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from safetensors.numpy import save

from bench.checks import probed
from bench.checks.shard import BACKWARDS, BASE, CAUSES, COPIED, FORWARDS, GAPS, MOVED
from bench.checks.verdicts import RowFacts, base_extra
from bench.checks.verdicts import findings as check_findings
from bench.engine.compute import FOLDED, FORM, NARROW, SLOPES
from bench.engine.evaluation import Evaluation
from bench.engine.inspection import Inspection
from bench.engine.shards import Arrays
from bench.results.distances import Distances
from bench.results.extra import ExtraPoints
from bench.results.findings import Finding
from bench.results.metrics import measure
from bench.results.outcomes import Labels, Outcomes, Stages, encode
from bench.results.record import Cost, Points, Record, file_stem
from bench.results.store import Store
from bench.results.targets import targets_finding
from bench.results.views import view_scores
from bench.victim import SLOPE_COUNTS

EXTRA = "extra"
"""In the file of points, beside `points`: those that the checks found, (m, C, H, W)."""

PROBE_SECONDS = "probe/seconds"

NO_GRADIENT, REPROJECTED = "no-gradient", "reprojected"
"""Findings that only the attack itself can make."""


def make_record(
    evaluation: Evaluation,
    arrays: Arrays,
    inspection: Inspection,
    store: Store,
    made_with: dict[str, object],
) -> Record:
    """The record of an evaluation; its points are written beside it.

    Args:
        evaluation: what was evaluated.
        arrays: as `compute.ShardComputer` describes them, of all shards.
        inspection: what was known before the attack.
        store: where record and points go.
        made_with: versions, device and hash of the weights.
    """
    setup = evaluation.setup
    outcomes, cost = outcomes_of(evaluation, arrays), cost_of(evaluation, arrays)
    stem = file_stem(evaluation.title, evaluation.id)
    return Record(
        id=evaluation.id,
        sources=setup.sources,
        identity=evaluation.identity,
        given={
            **setup.given,
            "defense": list(evaluation.defense.given),
            "attack": list(evaluation.attack.given),
        },
        **declared(evaluation, inspection),
        outcomes=outcomes,
        stages=stages_of(evaluation, arrays),
        targets=encoded_targets(evaluation, arrays),
        distances=distances_of(evaluation, arrays),
        views=view_scores(cast(Any, arrays), setup.classifier.num_classes),
        metrics=measure(outcomes, by_gradient=by_gradient(evaluation, cost)),
        findings=findings_of(evaluation, arrays, inspection),
        extra=extra_of(evaluation, arrays),
        cost=cost,
        points=_save_points(store, stem, evaluation.id, arrays),
        environment=made_with,
        finished=now(),
    )


def declared(evaluation: Evaluation, inspection: Inspection) -> dict[str, Any]:
    """The fields of a record that are known before the attack, by name."""
    setup, base = evaluation.setup, evaluation.base()
    return {
        "title": evaluation.title,
        "access": sorted(str(need) for need in evaluation.defense.plugin.needs),
        "stochastic": evaluation.stochastic,
        "replay_level": inspection.level,
        "pool": inspection.pool,
        "inference": inspection.inference,
        "base": base.id if base else "",
        "scale": {
            "n": len(setup.images),
            "available": setup.available,
            "reduced": len(setup.images) < setup.available,
        },
    }


COMPILE = "compile"
"""In a record's environment: what the search read in the defense's place; absent for nothing."""

BFLOAT16 = "bfloat16"
"""There: for how many images in bfloat16."""


def searched_with(arrays: Arrays) -> dict[str, object]:
    """For a record's environment: for how many images the search read folded passes, and such in
    bfloat16.
    """
    forms = cast(Any, arrays[FORM])
    counts = {"folded": int((forms == FOLDED).sum()), BFLOAT16: int((forms == NARROW).sum())}
    told = {name: count for name, count in counts.items() if count}
    return {COMPILE: told} if told else {}


def outcomes_of(evaluation: Evaluation, arrays: Arrays) -> Outcomes:
    images = evaluation.setup.images
    return Outcomes.of(
        evaluation.setup.classifier.num_classes,
        images.ids,
        images.labels.numpy(),
        *(cast(Any, arrays[name]) for name in ("clean", "adversarial", "replayed")),
    )


def by_gradient(evaluation: Evaluation, cost: Cost) -> bool:
    """Whether the attack is meant to succeed and took gradients."""
    return cost.attack_backwards > 0 and not evaluation.attack.plugin.card.control


def findings_of(evaluation: Evaluation, arrays: Arrays, inspection: Inspection) -> list[Finding]:
    """What was found before the attack, as far as it matters to it, by the attack, and by the
    checks of the run.
    """
    used = bool(cast(Any, arrays["backwards"]).any()) or bool(cast(Any, arrays["blocked"]).any())
    found = relevant(inspection.findings, asked_gradients=used)
    failed = frozenset(one.name for one in found if one.verdict == "fail")
    loops = _was_checked(arrays) and inspection.inference.optimises
    facts = _facts(evaluation, arrays, loops=loops, known=failed)
    return [
        *found,
        *_attack_findings(evaluation, arrays),
        *check_findings(facts),
        *probed.findings(cast(Any, arrays), facts.outcomes),
    ]


_CHECKED = (CAUSES, GAPS, MOVED, BASE, COPIED)


def _was_checked(arrays: Arrays) -> bool:
    return CAUSES in arrays


def _facts(
    evaluation: Evaluation,
    arrays: Arrays,
    *,
    loops: bool = False,
    known: frozenset[str] = frozenset(),
) -> RowFacts:
    return RowFacts(
        outcomes_of(evaluation, arrays),
        {name: cast(Any, arrays[f"{SLOPES}{name}"]) for name in SLOPE_COUNTS},
        {name: arrays[name] for name in _CHECKED} if _was_checked(arrays) else {},
        loops,
        known,
    )


def extra_of(evaluation: Evaluation, arrays: Arrays) -> list[ExtraPoints]:
    """Points found beside the attack's."""
    facts = _facts(evaluation, arrays)
    both = [base_extra(facts), probed.probe_extra(cast(Any, arrays), facts.outcomes)]
    return [one for one in both if one is not None]


def stages_of(evaluation: Evaluation, arrays: Arrays) -> Stages | None:
    """Which stage broke each image; None for an attack without stages."""
    names = evaluation.attack.plugin.stages
    if not names:
        return None
    return Stages.of(names, cast(Any, arrays["stages"]))


def _targets(evaluation: Evaluation, arrays: Arrays) -> Labels | None:
    """The class that each image was to become; None where the attack aims at none."""
    if not evaluation.attack.plugin.targeted:
        return None
    return cast(Labels, arrays["targets"])


def encoded_targets(evaluation: Evaluation, arrays: Arrays) -> str | None:
    """The class that each image was to become, as labels are encoded; None without targets."""
    targets = _targets(evaluation, arrays)
    return None if targets is None else encode(targets, evaluation.setup.classifier.num_classes)


def distances_of(evaluation: Evaluation, arrays: Arrays) -> Distances | None:
    """How far what breaks each image lies; None for an attack that does not look for it."""
    if not evaluation.attack.plugin.measures:
        return None
    return Distances.of(cast(Any, arrays["distances"]), evaluation.setup.threat.eps)


def relevant(findings: list[Finding], *, asked_gradients: bool) -> list[Finding]:
    """Without the missing gradient where the attack asked for none."""
    return [one for one in findings if asked_gradients or one.name != "zero-gradient"]


def _attack_findings(evaluation: Evaluation, arrays: Arrays) -> Iterator[Finding]:
    for text in np.unique(arrays["findings"]):
        yield Finding.model_validate_json(str(text))
    stages = stages_of(evaluation, arrays)
    if stages:
        yield from evaluation.attack.plugin.review(stages.left())
    targets = _targets(evaluation, arrays)
    if targets is not None:
        yield targets_finding(targets, outcomes_of(evaluation, arrays))
    outside = int(cast(Any, arrays["reprojected"]).sum())
    if outside:
        yield Finding(
            name=REPROJECTED,
            verdict="warn",
            message=f"{outside} points lay outside ball or box when the attack returned them; they "
            "were projected",
        )
    if bool(cast(Any, arrays["blocked"]).any()):
        yield Finding(
            name=NO_GRADIENT,
            verdict="warn",
            message="no gradient reaches the image at all: the attack was a blind search, no "
            "evidence of robustness",
        )


def judge_forwards(evaluation: Evaluation) -> float:
    """Passes of the judge, an image."""
    if not evaluation.stochastic:
        return 1.0
    return float(2 * evaluation.judged_draws + evaluation.randomness.deterministic)


def cost_of(evaluation: Evaluation, arrays: Arrays) -> Cost:
    """Passes an image and seconds, of all shards."""
    forwards, backwards = cast(Any, arrays["forwards"]), cast(Any, arrays["backwards"])
    probe_forwards, probe_backwards = probed.passes(cast(Any, arrays))
    return Cost(
        attack_forwards=float(forwards.mean()),
        attack_backwards=float(backwards.mean()),
        max_attack_forwards=int(forwards.max()),
        max_attack_backwards=int(backwards.max()),
        judge_forwards=judge_forwards(evaluation),
        check_forwards=_total(arrays, FORWARDS, probe_forwards) / len(forwards),
        check_backwards=_total(arrays, BACKWARDS, probe_backwards) / len(forwards),
        seconds=_total(arrays, "seconds", 0) + _total(arrays, PROBE_SECONDS, 0),
    )


def _total(arrays: Arrays, name: str, more: float) -> float:
    return more + (float(cast(Any, arrays[name]).sum()) if name in arrays else 0.0)


def _save_points(store: Store, stem: str, evaluation: str, arrays: Arrays) -> Points:
    tensors = {"points": np.ascontiguousarray(arrays["points"])}
    found = probed.points_found(cast(Any, arrays))
    if found is not None:
        tensors[EXTRA] = np.ascontiguousarray(found)
    data = save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    # Two processes that finish at once with other batch sizes write two files; each record names
    # its own.
    name = f"{stem}.{digest[:8]}.points.safetensors"
    store.write(name, data, evaluation)
    return Points(file=name, sha256=digest)


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
