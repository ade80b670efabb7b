"""From facts to findings, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.checks.again import Cause
from bench.checks.fresh import fresh_copies
from bench.checks.shard import BASE, CAUSES, COPIED, GAPS, MOVED, NOT_JUDGED
from bench.checks.verdicts import (
    BASE_BREAKS,
    BATCH,
    FLAT,
    LOOP,
    MOVES,
    NO_COPY,
    NON_FINITE,
    ROUNDING,
    RowFacts,
    base_extra,
    findings,
    flat_share,
    left,
)
from bench.results.outcomes import Outcomes
from bench.victim import SLOPE_COUNTS
from tests.toys import classifier

N = 20
LABELS = np.zeros(N, dtype=np.int64)


def outcomes(broken: int, draws: int = 1, replayed: int | None = None) -> Outcomes:
    """The first images are broken, in all draws; `replayed` of them under fixed noise."""
    clean = np.zeros((N, draws), dtype=np.int64)
    attacked = clean.copy()
    attacked[:broken] = 1
    own = clean[:, :0]
    if replayed is not None:
        own = (np.arange(N) < replayed).astype(np.int64)[:, None]
    return Outcomes.of(2, np.arange(10, 10 + N), LABELS, clean, attacked, own)


def facts(row=None, base=None, **changes) -> RowFacts:
    row = row or outcomes(5)
    counts = {name: np.zeros(N, dtype=np.int64) for name in SLOPE_COUNTS}
    counts["asked"][:] = 10
    checks = {
        CAUSES: np.zeros(N, dtype=np.int64),
        GAPS: np.zeros(N, dtype=np.float32),
        MOVED: np.array([], dtype=np.str_),
        BASE: np.full((N, 1), NOT_JUDGED) if base is None else base,
        COPIED: np.ones(1, dtype=np.int64),
    }
    for name, value in changes.items():
        (counts if name in counts else checks)[name.replace("_", "/")] = value
    return RowFacts(row, counts, checks)


def by_name(row: RowFacts):
    return {finding.name: finding for finding in findings(row)}


def at(*images: int, value: int = 1):
    return np.where(np.isin(np.arange(N), images), value, 0)


def test_nothing_is_said_of_a_row_without_a_fault():
    assert by_name(facts()) == {}


def test_a_lost_gradient_fails_the_row_only_where_the_image_was_left():
    assert by_name(facts(lost=at(0, 1)))[NON_FINITE].verdict == "warn"
    one = by_name(facts(lost=at(0, 6, 7)))[NON_FINITE]
    assert one.verdict == "fail" and one.images == "16-17" and one.value == 0.1
    assert "images 16-17" in one.message
    assert by_name(facts(partial=at(7)))[NON_FINITE].verdict == "warn"


def test_a_tenth_of_the_gradients_may_be_zero():
    assert flat_share(facts(zero=at(*range(N))).slopes) == 0.1
    assert FLAT not in by_name(facts(zero=at(*range(N))))
    assert by_name(facts(zero=at(*range(N), value=2)))[FLAT].value == pytest.approx(0.2)
    none = facts(asked=at(), zero=at())
    assert flat_share(none.slopes) == 0


def test_what_was_left_is_right_in_most_draws_or_under_the_fixed_noise():
    assert left(outcomes(5)).sum() == N - 5
    assert left(outcomes(5, replayed=8)).sum() == N - 8


def test_causes_name_their_images_and_are_told_once():
    row = facts(check_causes=at(2, value=Cause.BATCH), check_gaps=at(2) * np.float32(9))
    assert by_name(row)[BATCH].images == "12" and by_name(row)[BATCH].value == 9
    assert "image 12)" in by_name(row)[BATCH].message
    known = RowFacts(row.outcomes, row.slopes, row.checks, known=frozenset({BATCH}))
    assert by_name(known) == {}
    infinite = facts(check_causes=at(2, value=Cause.ROUNDING), check_gaps=np.full(N, np.inf))
    assert by_name(infinite)[ROUNDING].verdict == "note"


@pytest.mark.parametrize(("more", "fails"), [(6, False), (7, True)])
def test_the_base_s_points_must_beat_the_attack(more, fails):
    row = facts(base=(np.arange(N) < 5 + more).astype(int)[:, None])
    assert (BASE_BREAKS in by_name(row)) == fails
    extra = base_extra(row)
    assert (~extra.correct(row.outcomes)[:, 0]).sum() == 5 + more
    if fails:
        assert by_name(row)[BASE_BREAKS].images == "15-21"


def test_under_replay_the_attack_s_own_noise_counts_for_it():
    base = (np.arange(N) < 12).astype(int)[:, None].repeat(2, 1)
    assert BASE_BREAKS in by_name(facts(outcomes(0, draws=4, replayed=0), base=base))
    assert BASE_BREAKS not in by_name(facts(outcomes(0, draws=4, replayed=10), base=base))
    # One wrong draw of two breaks nothing.
    base[:, 1] = 0
    assert BASE_BREAKS not in by_name(facts(outcomes(0, draws=4, replayed=0), base=base))


def test_without_points_of_the_base_there_is_no_extra_set():
    assert base_extra(facts()) is None
    some = np.full((N, 1), NOT_JUDGED)
    some[3] = 1
    assert base_extra(facts(base=some)).ids == "13"


def test_what_moved_is_named_once_and_fails():
    one = by_name(facts(check_moved=np.array(["seen", "bias", "seen"])))[MOVES]
    assert one.verdict == "fail" and "moved bias, seen of" in one.message and one.value == 2


def test_a_missing_copy_and_a_loop_are_warnings():
    assert by_name(facts(check_copied=np.zeros(1)))[NO_COPY].verdict == "warn"
    row = facts()
    loop = RowFacts(row.outcomes, row.slopes, row.checks, loops=True)
    assert by_name(loop)[LOOP].verdict == "warn"


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def __deepcopy__(self, memo):
        raise TypeError("no copy")

    def forward(self, x):
        return x.flatten(1)[:, :2]


def test_copies_are_made_before_anything_is_seen_or_built_anew_or_not_at_all():
    plain = classifier(nn.Sequential(nn.Flatten()), 4)
    plain.seen = 0
    copies = fresh_copies(plain, lambda: None)
    plain.seen = 5
    first, second = copies.make(), copies.make()
    first.seen = 7
    assert (first.seen, second.seen, copies.make().seen) == (7, 0, 0)
    stubborn = classifier(Stubborn(), 2)
    again = fresh_copies(stubborn, lambda: classifier(Stubborn(), 2))
    assert again.make() is not stubborn and again.make() is not again.make()
    shared = fresh_copies(stubborn, lambda: stubborn)
    assert shared.make is None and "shares" in shared.reason

    def fails():
        raise ValueError("no build")

    assert "no build" in fresh_copies(stubborn, fails).reason
