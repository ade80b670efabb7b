"""How much an audit computes, and from where on a check speaks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How much is computed under a profile.

    Attributes:
        images: most audited images: correctly classified ones, spread over the classes.
        repeated: of those that the row's attack left, most on which a gradient search runs again.
        searched: likewise for a search of many function values.
        queries: of the search with squares.
        points: random points an image.
        smoothing: steps along the smoothed gradient.
        margin: steps on the margin.
        minimal: steps of the search for the nearest broken point; a third towards each class.
        answers: queries of the search that reads answers alone; 0 for none.
        restarts: further starts of the row's attack.
        doublings: how often the steps of the row's attack are doubled while that helps.
        eps: factors of eps under which the row's attack runs again.
        targets: wrong classes aimed at one by one, the most likely ones first.
        binarised: images of the binarization test.
        inner: inner points of each.
        thorough: whether the checks that only `full` has run too.
    """

    images: int
    repeated: int
    searched: int
    queries: int
    points: int
    smoothing: int
    margin: int
    minimal: int
    answers: int
    restarts: int
    doublings: int
    eps: tuple[float, ...]
    targets: int
    binarised: int
    inner: int
    thorough: bool = False


STANDARD = Scale(
    images=96,
    repeated=32,
    searched=20,
    queries=600,
    points=200,
    smoothing=20,
    margin=100,
    minimal=30,
    answers=2000,
    restarts=2,
    doublings=1,
    eps=(0.5, 2, 4),
    targets=3,
    binarised=12,
    inner=300,
)
FULL = Scale(
    images=512,
    repeated=512,
    searched=128,
    queries=5000,
    points=10_000,
    smoothing=100,
    margin=100,
    minimal=100,
    answers=5000,
    restarts=10,
    doublings=5,
    eps=(0.25, 0.5, 2, 4),
    targets=9,
    binarised=64,
    inner=999,
    thorough=True,
)

MOST_STEPS = 1000
"""No search of the row's own is made longer than this by doubling."""

MOST_PASSES = 3000
"""Passes of a survivor up to which a suite of attacks is run again in other balls."""

MASKED_GAIN = 0.1
"""Share of the audited images that a stronger gradient search must win for a failure: a number that
is wrong by so much is not believed, one that is wrong by less is doubted."""

ONE_STEP_ONLY = 0.01
FLAT = 0.01
FLAT_ABOVE = 0.05
FLAT_BELOW = 0.05
"""Of the audited images: how many must be broken at eps for a flat curve to fail the row."""
SILENT_SQUARE = 0.002
LEAST_ANSWERS = 500
"""Fewer queries than this hold too few rounds of the search by answers."""
OPTIMAL = 0.9
"""Local optimality below which measured distances are doubted (Cina et al. 2024)."""
NOISE_IMAGES = 3
ELSEWHERE_IMAGES = 2
"""One image may lie where another process rounds otherwise."""
UNCONVERGED = 0.05
UNCONVERGED_SHARE = 0.25
UNSTABLE = 0.1
UNSTABLE_SHARE = 0.25
OTHER_LABEL = 0.01
BINARIZED = 0.95
BINARIZED_FAIL = 0.1
"""A certified network of wide bounds solves a quarter (study `masking`, half `settled`)."""
EASY = 0.5
"""Where random points find more of the planted ones than this, the test says nothing."""
LEAST_BINARIZED = 6
"""Fewer binary tasks than this say nothing."""

DECISIVE_DROP = 0.25
"""By how much one attack's share of right draws must lie below another's for it to win an image of
a stochastic defense: of 20 draws, less is chance."""
