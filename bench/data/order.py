"""The order in which images are evaluated: the official one where its labels are mixed, else a
fixed permutation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.noise import Noise, Stream

Integers = npt.NDArray[np.int64]

_ROOT = 5_000


def is_mixed(labels: Integers) -> bool:
    """Whether labels (n,) change along the order at least half as often as they would in a random
    one.

    A random order of classes with shares p changes its label (n - 1) * (1 - sum p^2) times on
    average.
    """
    shares = np.bincount(labels) / len(labels)
    expected = (len(labels) - 1) * (1 - float((shares**2).sum()))
    return int(np.count_nonzero(np.diff(labels))) >= expected / 2


def evaluation_order(labels: Integers) -> Integers:
    """Positions (n,) in the order in which images with these labels are evaluated."""
    return np.arange(len(labels)) if is_mixed(labels) else interleaved(labels)


def interleaved(labels: Integers) -> Integers:
    """A fixed permutation (n,) of positions that mixes labels (n,).

    Each class is shuffled and its j-th of m images placed at (j + 1/2) / m, so that every prefix
    holds each class in its share; balanced classes take turns, and no prefix's class counts differ
    by more than one.
    """
    uniform = Noise.of(_ROOT, Stream.BUILD, [0]).uniform("order", (len(labels),)).numpy()[0]
    by_class = np.lexsort((uniform, labels))
    sizes = np.bincount(labels)
    start = np.cumsum(sizes) - sizes
    classes = labels[by_class]
    turn = (np.arange(len(labels)) - start[classes] + 0.5) / sizes[classes]
    return by_class[np.lexsort((classes, turn))]
