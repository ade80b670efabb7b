"""From what a check saw to its verdict."""

from __future__ import annotations

from bench.audit.catalogue import CHECKS
from bench.audit.limits import MASKED_GAIN
from bench.audit.row import AuditedRow, Comparison
from bench.results.audit import AuditCheck, CheckVerdict


def checked(
    check: str,
    verdict: CheckVerdict,
    message: str,
    *,
    value: float | None = None,
    threshold: float | None = None,
    images: str = "",
) -> AuditCheck:
    """A check with what the catalogue knows of it."""
    entry = CHECKS[check]
    return AuditCheck(
        id=check,
        name=entry.name,
        verdict=verdict,
        message=message,
        value=value,
        threshold=threshold,
        images=images,
        advice=entry.advice if verdict in ("fail", "warn") else "",
        source=entry.source,
    )


def graded(*, fail: bool, warn: bool = False) -> CheckVerdict:
    """The worst that holds."""
    return "fail" if fail else "warn" if warn else "pass"


def not_applicable(check: str, why: str) -> AuditCheck:
    return checked(check, "na", why)


def of_comparison(
    row: AuditedRow,
    check: str,
    what: str,
    comparison: Comparison,
    *,
    fails: bool,
    gain: float = MASKED_GAIN,
    silent: float | None = None,
) -> AuditCheck:
    """The verdict of a search beside the row's attack.

    Args:
        row, check: what was audited, and the check's id.
        what: the search in words, such as `random search with squares`.
        comparison: what it broke.
        fails: whether beating the row's attack on both kinds of images fails the row (a search that
            should be the weaker one). Elsewhere it is doubted, and fails only for a gain of `gain`.
        gain: see there.
        silent: warn where the search lowers robust accuracy by more than this.
    """
    told = (
        f"{what} broke {comparison.only_search} images that the row's attack left, of "
        f"{comparison.n} that were right before either"
    )
    if comparison.complete and comparison.only_row:
        told += f", and left about {comparison.only_row} that it broke"
    share, threshold = max(comparison.gain, 0.0), 0.0 if fails else gain
    fail = comparison.beats and comparison.complete and (fails or comparison.gain >= gain)
    quietly = silent is not None and comparison.only_search > silent * comparison.n
    verdict = graded(fail=fail, warn=comparison.beats or quietly)
    images = row.ids_at(comparison.rows)
    return checked(check, verdict, told, value=share, threshold=threshold, images=images)
