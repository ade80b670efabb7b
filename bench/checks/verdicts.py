"""From facts image by image to findings, and to points that join the worst case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.checks.again import Cause
from bench.checks.shard import BASE, CAUSES, COPIED, GAPS, MOVED, NOT_JUDGED
from bench.results.arrays import Bools, Ints
from bench.results.comparisons import beats
from bench.results.extra import BASE_POINTS, ExtraPoints
from bench.results.findings import Finding, ids_of
from bench.results.outcomes import Outcomes

NON_FINITE, FLAT = "non-finite-gradient", "flat-gradient"
BATCH, REMEMBERS, HIDDEN, ROUNDING = (
    "batch-dependence",
    "remembers",
    "hidden-randomness",
    "rounding",
)
MOVES, NO_COPY, BASE_BREAKS, LOOP = "state-moved", "no-fresh-copy", "base-points", "loop"
"""Names of findings."""

FLAT_SHARE = 0.1
"""More gradients of an attack than this that are zero everywhere are a warning."""

_SHOWN = 60


@dataclass(frozen=True)
class RowFacts:
    """A row after its attack.

    Attributes:
        outcomes: what the defense answered.
        slopes: by name what became of the attack's gradients, int64 (n,) each; see
            `bench.victim.Slopes`.
        checks: the arrays of `bench.checks.shard`, of all images; empty where nothing was checked.
        loops: whether the forward pass runs an optimisation loop.
        known: names of findings that failed before the attack, which need no second telling.
    """

    outcomes: Outcomes
    slopes: Mapping[str, Ints]
    checks: Mapping[str, Any] = field(default_factory=dict)
    loops: bool = False
    known: frozenset[str] = frozenset()

    @property
    def left(self) -> Bools:
        """Which images the attack left: right in most draws, under its fixed noise where it had
        some.
        """
        return left(self.outcomes)

    def named(self, where: Bools) -> str:
        """The ids of these images, folded."""
        return ids_of(self.outcomes.image_ids()[where])


def left(outcomes: Outcomes) -> Bools:
    """Which images an attack left, bool (n,): right in most draws, under its fixed noise where it
    had some.
    """
    correct = outcomes.correct("replayed" if outcomes.replayed else "adversarial")
    right = correct.mean(1) > 0.5
    return np.asarray(right & (outcomes.correct("clean").mean(1) > 0.5))


def flat_share(slopes: Mapping[str, Ints]) -> float:
    """Of the gradients that an attack asked for, the share that is zero everywhere."""
    asked = int(slopes["asked"].sum())
    return float(slopes["zero"].sum()) / asked if asked else 0.0


def findings(row: RowFacts) -> Iterator[Finding]:
    """All that the facts say, in the order of the checks."""
    yield from _gradients(row)
    if row.checks:
        yield from _second_answers(row)
        yield from _state(row)
        yield from _base(row)
    if row.loops:
        yield Finding(
            name=LOOP,
            verdict="warn",
            message="the forward pass runs an optimisation loop, whose gradient may mislead an "
            "attack: attack it with points of other defenses and with searches that need no "
            "gradient",
            advice="run transfer points and a search without gradients",
            source="RobustBench, third condition",
        )


def _gradients(row: RowFacts) -> Iterator[Finding]:
    lost, partial = row.slopes["lost"] > 0, row.slopes["partial"] > 0
    blind = lost & row.left
    advice = "find what makes NaN or infinity, such as a square root or a logarithm at 0"
    if blind.any():
        yield Finding(
            name=NON_FINITE,
            verdict="fail",
            message=f"{_many(blind)} were left after gradients without any finite entry "
            f"({_shown(row.named(blind))}): the attack was blind there; {advice}",
            value=float(blind.mean()),
            threshold=0.0,
            images=row.named(blind),
            advice=advice,
        )
    elif (lost | partial).any():
        some = lost | partial
        yield Finding(
            name=NON_FINITE,
            verdict="warn",
            message=f"gradients of {_many(some)} had entries that are not finite, which the search "
            f"took for 0 ({_shown(row.named(some))}): {advice}",
            value=float(some.mean()),
            threshold=0.0,
            images=row.named(some),
            advice=advice,
        )
    share = flat_share(row.slopes)
    if share > FLAT_SHARE:
        flat = row.slopes["zero"] > 0
        advice = "attack with another loss, another gradient such as bpda, or none at all"
        yield Finding(
            name=FLAT,
            verdict="warn",
            message=f"{share:.0%} of the attack's gradients were zero everywhere: this is no "
            f"evidence of robustness; {advice}",
            value=share,
            threshold=FLAT_SHARE,
            images=row.named(flat),
            advice=advice,
            source="Carlini et al. 2019, arXiv 1902.06705, section 3.2",
        )


_WHY: dict[Cause, tuple[str, str, str]] = {
    Cause.BATCH: (
        BATCH,
        "depend on who stands beside the image",
        "let each row of a batch be answered by itself",
    ),
    Cause.REMEMBERS: (
        REMEMBERS,
        "depend on what the defense saw before: a copy that has seen no image answers otherwise",
        "keep no state from one pass to the next",
    ),
    Cause.HIDDEN: (
        HIDDEN,
        "differ from one pass to the next: randomness outside of the noise",
        "take every random number from the noise",
    ),
}


def _second_answers(row: RowFacts) -> Iterator[Finding]:
    if not int(row.checks[COPIED].min()):
        yield Finding(
            name=NO_COPY,
            verdict="warn",
            message="the defense can neither be copied nor built a second time: whether it "
            "remembers what it saw was not checked; let copy.deepcopy copy it",
            advice="let copy.deepcopy copy it",
        )
    causes, gaps = row.checks[CAUSES], row.checks[GAPS]
    for cause, (name, what, advice) in _WHY.items():
        seen = causes == cause
        if seen.any() and name not in row.known:
            yield Finding(
                name=name,
                verdict="fail",
                message=f"answers to {_many(seen)} under attack {what} "
                f"({_shown(row.named(seen))}): {advice}",
                value=_largest(gaps[seen]),
                threshold=1.0,
                images=row.named(seen),
                advice=advice,
            )
    hanging = causes == Cause.ROUNDING
    if hanging.any():
        yield Finding(
            name=ROUNDING,
            verdict="note",
            message=f"answers to {_many(hanging)} under attack hang on the last digits of the "
            "input: another machine may answer otherwise there",
            value=_largest(gaps[hanging]),
            threshold=1.0,
            images=row.named(hanging),
        )


def _largest(gaps: Any) -> float:
    """Infinity has no place in a record."""
    return float(np.nan_to_num(gaps, posinf=1e9).max())


def _state(row: RowFacts) -> Iterator[Finding]:
    names = sorted(set(row.checks[MOVED].tolist()))
    if not names:
        return
    told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    advice = "keep what a forward pass learns or counts out of the module"
    yield Finding(
        name=MOVES,
        verdict="fail",
        message=f"the attack moved {told} of the defense, which then is no fixed function: "
        f"{advice}",
        value=float(len(names)),
        threshold=0.0,
        advice=advice,
    )


def broken_by_base(outcomes: Outcomes, answers: Ints) -> tuple[Bools, Bools]:
    """Which images the base's points break, and which the attack itself, bool (n,) twice.

    An image counts as broken where it is wrong in all draws under which both were judged though it
    is right there without an attack, or wrong under the attack's own fixed noise.

    Args:
        outcomes: the row's.
        answers: predictions on the base's points, (n, draws); `NOT_JUDGED` where there is none.
    """
    draws = answers.shape[1]
    clean = outcomes.correct("clean")[:, :draws].all(1)
    wrong = (answers != outcomes.true_labels()[:, None]) & (answers != NOT_JUDGED)
    own = ~outcomes.correct("adversarial")[:, :draws].any(1)
    if outcomes.replayed:
        own |= ~outcomes.correct("replayed").any(1)
    return np.asarray(wrong.all(1) & clean), np.asarray(own & clean)


def _base(row: RowFacts) -> Iterator[Finding]:
    by_base, own = broken_by_base(row.outcomes, row.checks[BASE])
    more = by_base & ~own
    if not beats(by_base, own):
        return
    advice = "its gradient leads the attack astray: attack with transfer points or another gradient"
    yield Finding(
        name=BASE_BREAKS,
        verdict="fail",
        message=f"points made on the undefended base break {_many(more)} that the attack on the "
        f"defense itself left ({_shown(row.named(more))}): {advice}",
        value=float(more.sum()),
        threshold=float((own & ~by_base).sum()),
        images=row.named(more),
        advice=advice,
        source="Carlini et al. 2019, arXiv 1902.06705, section 5.1",
    )


def base_extra(row: RowFacts) -> ExtraPoints | None:
    """What the defense answers on the base's points; None where there are none."""
    answers = row.checks.get(BASE)
    if answers is None:
        return None
    there = (answers != NOT_JUDGED).all(1)
    if not there.any():
        return None
    ids = row.outcomes.image_ids()[there]
    return ExtraPoints.of(BASE_POINTS, row.outcomes.num_classes, ids, answers[there])


def _many(where: Bools) -> str:
    n = int(where.sum())
    return f"{n} of {len(where)} images"


def _shown(ids: str) -> str:
    """Ids for a sentence, cut where they are many."""
    word = "image" if ids.isdigit() else "images"
    if len(ids) > _SHOWN:
        ids = f"{ids[:_SHOWN].rpartition(',')[0] or ids[:_SHOWN]}, ..."
    return f"{word} {ids}"
