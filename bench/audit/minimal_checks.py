"""The check by nearest broken points."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.audit.limits import MASKED_GAIN, OPTIMAL
from bench.audit.row import AuditedRow, Rows
from bench.audit.verdicts import checked, of_comparison
from bench.results.arrays import Floats
from bench.results.audit import AuditCheck
from bench.searches import NearestResult, nearest

_RESTART = (1 << 14) + (1 << 10)


def nearest_points(row: AuditedRow) -> Iterator[AuditCheck]:
    """S14: no image that the row's attack left has a broken point within eps; and where the row's
    attack measured distances, none is much too long.
    """
    searched: dict[int, float] = {}
    search = partial(_inside, row, searched)
    comparison = row.compare("S14", search, most=row.scale.repeated)
    told = f"a search for the nearest broken point, {row.scale.minimal} steps,"
    check = of_comparison(row, "S14", told, comparison, fails=False, gain=MASKED_GAIN)
    if row.record.distances is None or check.verdict == "fail":
        yield check
        return
    broken = row.sample(row.broken, row.scale.repeated)
    missing = np.setdiff1d(broken, np.array(sorted(searched), dtype=np.int64))
    if len(missing):
        row.offer("S14", search(missing), missing)
    yield _compared(row, searched, check)


def _inside(row: AuditedRow, searched: dict[int, float], rows: Rows) -> Tensor:
    """Points of the ball (m, C, H, W); distances are entered by row."""
    found = _nearest(row, rows)
    searched.update(zip(rows.tolist(), found.distances.tolist(), strict=True))
    return found.inside


def _nearest(row: AuditedRow, rows: Rows) -> NearestResult:
    asked, at = row.victim(rows), torch.as_tensor(rows, device=row.images.device)
    return nearest(
        asked,
        row.images[at],
        row.labels[at],
        torch.arange(len(rows), device=row.images.device),
        row.threat,
        steps=row.scale.minimal,
        classes=row.scale.targets,
        restart=_RESTART,
    )


def _compared(row: AuditedRow, searched: dict[int, float], check: AuditCheck) -> AuditCheck:
    """The check, or a warning where the distances of the record are too long."""
    assert row.record.distances is not None
    rows = np.array(sorted(searched), dtype=np.int64)
    own = row.record.distances.array()[row.positions[rows]]
    best = np.minimum(own, np.array([searched[int(one)] for one in rows]))
    value = local_optimality(own, best)
    if value is None or value >= OPTIMAL:
        return check
    told = (
        f"the distances that the row's attack measured on {len(rows)} images have a local "
        f"optimality of {value:.2f} beside the least that is known"
    )
    nearer = rows[own > 1.01 * best]
    return checked("S14", "warn", told, value=value, threshold=OPTIMAL, images=row.ids_at(nearer))


def local_optimality(own: Floats, best: Floats) -> float | None:
    """How near distances (n,) come to the best that are known, (n,): 1 where they are these, 0
    where nothing was found (Cina et al. 2024, arXiv 2404.19460).

    It compares the areas under the two curves of robust accuracy over eps, up to the largest
    distance D of the best that is finite: 1 - (A - A*) / (r D - A*), with A the mean of the smaller
    of a distance and D, A* that of the best, and r the share of images that are right without an
    attack. None where no image can be broken.
    """
    finite = best[np.isfinite(best)]
    if not len(finite) or finite.max() <= 0:
        return None
    most = finite.max()
    area, least = np.minimum(own, most).mean(), np.minimum(best, most).mean()
    worst = (best > 0).mean() * most
    return 1.0 if worst <= least else float(1 - (area - least) / (worst - least))
