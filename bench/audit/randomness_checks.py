"""Checks of stochastic rows: what fixed noise changes, and what chance alone breaks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.audit.row import AuditedRow
from bench.audit.verdicts import checked, graded, not_applicable
from bench.randomness import RandomnessModel
from bench.results.arrays import Bools
from bench.results.audit import AuditCheck
from bench.results.comparisons import beats


def fixed_noise(row: AuditedRow) -> Iterator[AuditCheck]:
    """S9: the row's attack on one noise an image, judged on that noise."""
    if not row.defended.stochastic:
        for check in ("S9a", "S9b"):
            yield not_applicable(check, "the defense draws no random numbers")
        return
    if row.record.replay_level == "none":
        for check in ("S9a", "S9b"):
            yield not_applicable(check, "the defense's draws cannot be repeated")
        return
    replayed, fresh = _broken_on_fixed_noise(row), row.share <= 0.5
    left = 1 - replayed.mean()
    told = (
        f"under fixed noise the attack leaves {100 * left:.1f} % of the audited images, under "
        f"fresh draws {100 * (1 - fresh.mean()):.1f} %"
    )
    only = np.flatnonzero(fresh & ~replayed)
    worse = beats(fresh, replayed)
    yield checked("S9a", graded(fail=worse), told, value=float(left), images=row.ids_at(only))
    if row.base is None:
        yield not_applicable("S9b", "the row has no base")
        return
    base = row.base[1]
    above = beats(base, replayed)
    told = (
        f"under fixed noise the attack leaves {100 * left:.1f} % of the audited images, of its "
        f"base {100 * (1 - base.mean()):.1f} %"
    )
    told += ": the defense takes away a part of the attack by itself" * above
    yield checked(
        "S9b", graded(fail=False, warn=above), told, value=float(left - (1 - base.mean()))
    )


def _broken_on_fixed_noise(row: AuditedRow) -> Bools:
    """Which audited images the row's attack breaks on their own fixed noise, bool (m,)."""
    every, replay = np.arange(len(row)), RandomnessModel("replay")
    if row.evaluation.randomness == replay:
        return np.asarray(~row.record.outcomes.correct("replayed")[row.positions][:, 0])
    points = row.own(every, randomness=replay)
    answers = row.victim(every, randomness=replay).verify(points)[:, 0].cpu().numpy()
    return np.asarray(answers != row.true)


def chance(row: AuditedRow) -> Iterator[AuditCheck]:
    """S17: what the judge's draws break without any attack."""
    if not row.defended.stochastic:
        yield not_applicable("S17", "the defense draws no random numbers")
        return
    clean, attacked = (row.record.outcomes.correct(which) for which in ("clean", "adversarial"))
    null = float(1 - clean.all(1).mean())
    share = float(1 - attacked.all(1).mean())
    told = (
        f"some of {clean.shape[1]} draws is wrong on {100 * null:.1f} % of the images without an "
        f"attack, on {100 * share:.1f} % under it: {100 * (share - null):.1f} points are the "
        "attack's"
    )
    yield checked("S17", "pass", told, value=null)
