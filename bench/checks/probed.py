"""What the probes of a row found, as arrays, as findings, and as points for the worst case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.checks.probes import ENOUGH, ProbeResult
from bench.checks.slopes import AGREEMENT, Slopes, Verdict, judge
from bench.checks.verdicts import left
from bench.results.arrays import Bools, Ints
from bench.results.comparisons import beats
from bench.results.extra import CHECKS, UNBROKEN, ExtraPoints
from bench.results.findings import Finding, ids_of
from bench.results.outcomes import Labels, Outcomes

SLOPES, BEATEN, WEAK = "slopes", "beaten", "weak-attack"
"""Names of findings."""

_PATIENT, MANY = 10, 0.1
"""An attack that took so many gradients of an image and still leaves this share of all images to a
few steps was misled; one of fewer steps is weak.
"""

_PREFIX = "probe/"
_TENSORS = ("saturated", "points", "forwards", "backwards")
_SLOPES = ("sign", "ratio", "mismatch")

Arrays = Mapping[str, Any]


def arrays_of(
    ids: Labels, result: ProbeResult | None, judged: Labels, asked: Ints
) -> dict[str, Any]:
    """Arrays to store.

    Args:
        ids: the probed images, (m,).
        result: what the probes say; None where no image was probed.
        judged: the judge's predictions on the points found, (f, draws); those of images that some
            search broke, in their order.
        asked: how many gradients the attack asked for of each, (m,).
    """
    arrays: dict[str, Any] = {
        "ids": ids,
        "judged": judged,
        "asked": asked,
        "probed": np.array([result is not None]),
    }
    if result is not None:
        arrays |= {name: getattr(result, name).cpu().numpy() for name in _TENSORS}
        arrays |= {name: getattr(result.slopes, name).cpu().numpy() for name in _SLOPES}
        arrays["by"] = np.array(result.by, dtype=np.str_)
        arrays["decided"] = np.array([result.decided])
    return {f"{_PREFIX}{name}": value for name, value in arrays.items()}


def was_probed(arrays: Arrays) -> bool:
    """Whether these arrays hold probes of some image."""
    return bool(arrays.get(f"{_PREFIX}probed", np.array([False])).any())


def problem(arrays: Arrays, num_classes: int, draws: int, shape: tuple[int, ...]) -> str:
    """What is wrong with stored arrays; empty where nothing is.

    Args:
        arrays: as `arrays_of` makes them.
        num_classes, draws: of the judge's predictions.
        shape: (C, H, W) of the images.
    """
    if not was_probed(arrays):
        return "" if f"{_PREFIX}ids" in arrays else f"{_PREFIX}ids is missing"
    needed = ("ids", "by", "judged", "asked", "decided", *_TENSORS, *_SLOPES)
    missing = [name for name in needed if f"{_PREFIX}{name}" not in arrays]
    if missing:
        return f"{_PREFIX}{missing[0]} is missing"
    get = _Reader(arrays)
    m, found = len(get("ids")), int((get("by") != "").sum())
    shapes = dict.fromkeys(("ids", "by", "saturated", "asked", "forwards", "backwards"), (m,))
    expected = {**shapes, "points": (m, *shape), "judged": (found, draws), "decided": (1,)}
    for name, size in expected.items():
        if get(name).shape != size:
            return f"{_PREFIX}{name} is {get(name).shape}, not {size}"
    if any(get(name).shape[:1] != (m,) or get(name).ndim != 3 for name in _SLOPES):
        return "slopes are of other images"
    judged, points = get("judged"), get("points")
    if not np.isfinite(points).all() or not ((points >= 0) & (points <= 1)).all():
        return "probed points lie outside of [0, 1]"
    if judged.dtype.kind != "i" or not ((judged >= -1) & (judged < num_classes)).all():
        return "answers on probed points are no classes"
    return ""


class _Reader:
    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def __call__(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self._arrays[f"{_PREFIX}{name}"]
        return array


def points_found(arrays: Arrays) -> npt.NDArray[np.float32] | None:
    """The points that searches of the checks found, (f, C, H, W); None where there are none."""
    if not was_probed(arrays):
        return None
    get = _Reader(arrays)
    found = get("by") != ""
    return get("points")[found] if found.any() else None


def passes(arrays: Arrays) -> tuple[int, int]:
    """Forward and backward passes of all images together, judging among them."""
    if not was_probed(arrays):
        return 0, 0
    get = _Reader(arrays)
    return int(get("forwards").sum()) + get("judged").size, int(get("backwards").sum())


def probe_extra(arrays: Arrays, outcomes: Outcomes) -> ExtraPoints | None:
    """What the defense answers on the points that the checks found; None where there are none."""
    if points_found(arrays) is None:
        return None
    get = _Reader(arrays)
    found = get("by") != ""
    by = [str(name) or UNBROKEN for name in get("by")[found]]
    return ExtraPoints.of(CHECKS, outcomes.num_classes, get("ids")[found], get("judged"), by)


def _broken(arrays: Arrays, outcomes: Outcomes) -> Bools:
    """Which of the probed images the checks broke, bool (m,): wrong in most of the judge's draws,
    or under the attack's own fixed noise where the row has one.
    """
    get = _Reader(arrays)
    found = get("by") != ""
    if outcomes.replayed:
        return np.asarray(found)
    extra = probe_extra(arrays, outcomes)
    broken = found.copy()
    if extra is not None:
        right = extra.correct(outcomes)[extra.places(outcomes)]
        broken[found] = right.mean(1) <= 0.5
    return np.asarray(broken)


def _lost(broken: Bools, outcomes: Outcomes) -> float:
    """The share of all images that would break, were those that the attack left as those probed."""
    return float(broken.mean()) * float(left(outcomes).mean())


def findings(arrays: Arrays, outcomes: Outcomes) -> Iterator[Finding]:
    """What the probes say of the row."""
    if not was_probed(arrays):
        return
    get = _Reader(arrays)
    ids: Ints = get("ids")
    verdict = judge(Slopes(*(torch.from_numpy(get(name)) for name in _SLOPES)))
    if verdict.fired:
        # Where the gradient is zero there is no sign to compare.
        silent = [np.isnan(get(name)).all(axis=(1, 2)) for name in ("sign", "mismatch")]
        yield _slopes(verdict, ids[~(silent[0] & silent[1])])
    broken = _broken(arrays, outcomes)
    if not beats(broken, np.zeros_like(broken)):
        return
    by = sorted(set(get("by")[broken].tolist()))
    many, searches = f"{int(broken.sum())} of {len(ids)} images", " and ".join(by)
    hidden = np.median(get("asked")) >= _PATIENT and _lost(broken, outcomes) >= MANY
    fails = hidden or bool(get("decided").any())
    advice = (
        "do not believe this number: attack with searches that need no gradient"
        if fails
        else "give the attack more steps, or another loss"
    )
    section = "3.2" if fails else "5.2"
    yield Finding(
        name=BEATEN if fails else WEAK,
        verdict="fail" if fails else "warn",
        message=f"{many} that the attack left are broken by {searches}: {advice}",
        value=float(broken.sum()),
        threshold=float(ENOUGH),
        images=ids_of(ids[broken]),
        advice=advice,
        source=f"Carlini et al. 2019, arXiv 1902.06705, section {section}",
    )


def _slopes(verdict: Verdict, ids: Ints) -> Finding:
    agreement = min((a for a in verdict.agreement if not math.isnan(a)), default=math.nan)
    seen = "" if math.isnan(agreement) else f" (signs agree in {agreement:.0%})"
    advice = "attack with another gradient, such as bpda, or with none"
    return Finding(
        name=SLOPES,
        verdict="warn",
        message=f"the gradient is not that of the function around {len(ids)} points that the "
        f"attack left{seen}: {advice}",
        value=None if math.isnan(agreement) else agreement,
        threshold=AGREEMENT,
        images=ids_of(ids),
        advice=advice,
    )
