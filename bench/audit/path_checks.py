"""S11: the way that the row's attack takes, from the values that its search read anyway."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench.audit.limits import (
    OTHER_LABEL,
    UNCONVERGED,
    UNCONVERGED_SHARE,
    UNSTABLE,
    UNSTABLE_SHARE,
)
from bench.audit.row import AuditedRow, Rows
from bench.audit.verdicts import checked, graded, not_applicable
from bench.defense import gradient_name
from bench.losses import margin
from bench.maximise import Trace
from bench.randomness import Query
from bench.results.audit import AuditCheck
from bench.victim import predict

_LAST = 10
_DRAWS = 20
_LEAST = 8
"""Of fewer images a share says nothing."""


def paths(row: AuditedRow) -> Iterator[AuditCheck]:
    """S11a, S11c: no success is passed over, and the values no longer rise at the end."""
    rows = row.sample(row.left, row.scale.searched)
    if not len(rows):
        for check in ("S11a", "S11c"):
            yield not_applicable(check, "the row's attack left nothing")
        return
    trace = Trace()
    # One call, so that the trace's rows are these.
    plugin = row.evaluation.attack.plugin
    unit = plugin.unit(row.defended.stochastic)
    if unit is not None and unit < len(rows):
        rows = rows[:unit]
    points = row.run(plugin, rows, trace=trace)
    left = row.judged(points, rows).mean(1) > 0.5
    seen = trace.succeeded()
    silent = [int(rows[place]) for place in sorted(seen) if left[place]]
    told = f"the search passed over a success on {len(silent)} of {len(rows)} images"
    if not row.victim(rows[:0]).deterministic:
        yield not_applicable("S11a", "a success under one draw proves nothing")
    else:
        verdict = graded(fail=bool(silent))
        yield checked("S11a", verdict, told, value=float(len(silent)), images=row.ids_at(silent))
    yield _converged(row, trace, rows)


def _converged(row: AuditedRow, trace: Trace, rows: Rows) -> AuditCheck:
    """S11c: of a path scaled to [0, 1], the best value so far rises by at most UNCONVERGED in the
    last ten steps. Of a path of fewer than a hundred steps the last tenth counts: ten of twenty are
    half of the way, and must rise.
    """
    rising, long = [], 0
    for place, values in trace.paths().items():
        if len(values) <= _LAST or place in trace.succeeded():
            continue
        last = max(1, min(_LAST, len(values) // 10))
        best = np.maximum.accumulate(np.nan_to_num(np.array(values), neginf=-1e30))
        span = best[-1] - min(values)
        long += 1
        if span > 0 and (best[-1] - best[-last - 1]) / span > UNCONVERGED:
            rising.append(int(rows[place]))
    if long < _LEAST:
        return not_applicable("S11c", f"{long} paths of more than {_LAST} steps ended unbroken")
    share = len(rising) / long
    told = f"{len(rising)} of {long} paths still rise at their end"
    verdict = graded(fail=False, warn=share > UNCONVERGED_SHARE)
    return checked(
        "S11c",
        verdict,
        told,
        value=share,
        threshold=UNCONVERGED_SHARE,
        images=row.ids_at(rising),
    )


def unstable(row: AuditedRow) -> Iterator[AuditCheck]:
    """S11b: the margin hardly moves under noise of half of eps."""
    rows = row.sample(row.left, row.scale.searched)
    if len(rows) < _LEAST or row.defended.stochastic:
        why = "the defense is random" if row.defended.stochastic else "too few images are left"
        yield not_applicable("S11b", why)
        return
    asked, at = row.victim(rows, gradient="full"), torch.as_tensor(rows, device=row.images.device)
    images, labels = row.images[at], row.labels[at]
    places = torch.arange(len(rows), device=images.device)

    def margins(x: torch.Tensor) -> torch.Tensor:
        return margin(asked.logits(x, places, Query())[:, 0], labels)

    there, moves = margins(images), []
    uniform = asked.random(places).uniform("unstable", (_DRAWS, *images.shape[1:]))
    normal = asked.random(places).normal("unstable", (_DRAWS, *images.shape[1:]))
    for draw in range(_DRAWS):
        moved = row.threat.random(images, uniform[:, draw], normal[:, draw])
        # Half of the way to a random point of the ball.
        values = margins(images + (moved - images) / 2)
        change = (values - there).abs() / there.abs().clamp_min(1e-12)
        moves.append(change.nan_to_num(nan=1.0, posinf=1.0).clamp_max(1))
    jumps = (torch.stack(moves).mean(0) > UNSTABLE).cpu().numpy()
    share = float(jumps.mean())
    told = (
        f"on {100 * share:.0f} % of {len(rows)} images noise of eps / 2 moves the margin by more "
    )
    told += f"than {100 * UNSTABLE:.0f} %"
    yield checked(
        "S11b",
        graded(fail=False, warn=share > UNSTABLE_SHARE),
        told,
        value=share,
        threshold=UNSTABLE_SHARE,
        images=row.ids_at(rows[jumps]),
    )


def other_function(row: AuditedRow) -> Iterator[AuditCheck]:
    """S11d: the attacked function answers the returned points as the deployed defense does."""
    if gradient_name(row.evaluation.gradient) not in row.defended.transfers:
        yield not_applicable("S11d", "the attack sees the deployed defense itself")
        return
    every = np.arange(len(row))
    asked = row.victim(every)
    places = torch.arange(len(row), device=row.images.device)
    surrogate = predict(asked.logits(row.points, places, Query()))[:, 0]
    deployed = predict(row.victim(every, gradient="full").logits(row.points, places, Query()))[:, 0]
    differ = (surrogate != deployed).cpu().numpy()
    share = float(differ.mean())
    told = f"the attacked function answers {100 * share:.1f} % of the points otherwise"
    yield checked(
        "S11d",
        graded(fail=False, warn=share > OTHER_LABEL),
        told,
        value=share,
        threshold=OTHER_LABEL,
        images=row.ids_at(every[differ]),
    )
