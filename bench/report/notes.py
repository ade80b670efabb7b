"""What the columns of rows and boards mean."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.words import stands_in
from bench.results.record import Record

RANK = (
    "Rank: 1 + the rows whose interval lies wholly above; 1-3 where the intervals allow any of "
    "these places."
)

_SHARES = (
    "Shares in percent with 95 % intervals over images. Robust accuracy is an upper bound: a "
    "stronger attack may lower it. Clean-wrong images count as broken. `base`: the undefended "
    "classifier under the same attack."
)
_STOCHASTIC = (
    " Stochastic defenses are judged on fresh draws after the attack has ended; `all draws` counts "
    "images right in every one, clean -> attacked, so that chance hits show; `replayed` is judged "
    "under the attack's own fixed noise. An answer counts as robust if it was right on the clean "
    "image under the same draw."
)
_TARGETED = (
    " `target reached`: attacked images that are answered with the class they were to become; "
    "`robust` counts every wrong answer."
)
_VIEWS = (
    " `any view`: some scored view (see `bench show`) is right without and under attack; no choice "
    "among them can exceed it on these points. `detector`: attacked images flagged, clean images "
    "flagged, area under the ROC curve."
)
_PREDICTION = (
    " `passes/prediction`: through the classifier, on clean images. `RobustBench`: which of its "
    "three conditions for admission "
    "(gradients not zero, nothing random, no optimisation loop) the defense fails; `admits` where "
    "none."
)


_DENOISER = (
    " `denoiser passes`: through the diffusion model, for one prediction; a backward pass to the "
    "image goes through as many."
)


_ROBUST = (
    "Shares in percent with 95 % intervals over images. `robust`: for each image the attack that "
    "is worst for it, an upper bound, as a stronger attack may lower it; images that are wrong "
    "without attack count as broken."
)
_BUILDS = (
    " Of several builds: their mean, with an interval over builds and images, and the range; a row "
    "that tells no number of builds has nothing to train."
)
_CHOSEN = (
    " Of a random defense `robust` is measured, not picked: an attacker tries the attacks' points "
    "on all draws but one, submits for each image the worst, and is judged on the draw that is "
    "left. Where his choices err, it lies a little above the lowest attack."
)
_STAND_IN = " (stand-in): built here in place of a method of which code or equations are not known."
_DRAWS = (
    " Stochastic defenses are judged on fresh draws after the attack has ended; `all draws` counts "
    "images right in every one, without attack -> under all; `replayed` is judged under the "
    "attack's own fixed noise."
)
_BOARD_VIEWS = (
    " `any view`: some scored view is right without and under attack; no choice among them can "
    "exceed it on these points."
)
_CERTIFIED = (
    " `certified`: images of which a proof says that no attack in the ball breaks them, so that "
    "certified <= truth <= robust; where both are equal, that is the truth."
)

_VOTED = (
    " `certified` (vote, alpha): images on which the most frequent answer under Gaussian noise is "
    "right all over the ball, each with probability 1 - alpha (abstaining counts as wrong). That "
    "holds for the vote of infinitely many draws alone: the vote of few may be broken there."
)
_DISTANCES = (
    " `median distance`: of the nearest points that the attack found to break the images, whether "
    "they lie in the ball or not; an upper bound, as every robust accuracy is."
)
_AUDIT = (
    " `audit`: the verdict of `bench audit` and the checks behind it, of the strongest attack "
    "where there are several. no-evidence-found, its best: nothing says that the number is too "
    "high, which is no proof."
)


def column_notes(records: Sequence[Record]) -> str:
    """What the columns of these records mean, without those that they leave empty."""
    stochastic = any(record.stochastic for record in records)
    with_views = any(record.views for record in records)
    targeted = any(record.targets is not None for record in records)
    audited = any(record.audit for record in records)
    measured = any(record.distances for record in records)
    notes = _SHARES + _STOCHASTIC * stochastic + _TARGETED * targeted + _VIEWS * with_views
    notes += _DISTANCES * measured
    return notes + _AUDIT * audited


def board_note(records: Sequence[Record]) -> str:
    """What the columns of a board's first table mean."""
    kinds = {record.certificate.kind for record in records if record.certificate}
    audited = any(record.audit for record in records)
    several = len({record.identity["seeds"]["build"] for record in records}) > 1
    chosen = any(record.stochastic for record in records)
    notes = _ROBUST + _CHOSEN * chosen + _BUILDS * several + _AUDIT * audited
    notes += _STAND_IN * any(stands_in(record) for record in records)
    return notes + _CERTIFIED * ("deterministic" in kinds) + _VOTED * ("probabilistic" in kinds)


def more_note(records: Sequence[Record]) -> str:
    """What a board's other numbers mean."""
    measured = [record.inference for record in records if record.inference]
    purified = any(inference.denoiser_passes is not None for inference in measured)
    notes = _DRAWS * any(record.stochastic for record in records)
    notes += _BOARD_VIEWS * any(record.views for record in records)
    return (notes + _PREDICTION * bool(measured) + _DENOISER * purified).strip()
