"""The order of evaluation."""

import numpy as np
import pytest

from bench.data.order import interleaved, is_mixed


def test_interleaved_is_a_permutation_whose_prefixes_are_balanced():
    labels = np.repeat(np.arange(7), 30)
    order = interleaved(labels)
    assert sorted(order) == list(range(210))
    counts = np.cumsum(np.eye(7, dtype=int)[labels[order]], axis=0)
    assert int((counts.max(1) - counts.min(1)).max()) == 1


def test_interleaved_keeps_shares_of_unbalanced_classes():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    counts = np.cumsum(np.eye(3)[labels[interleaved(labels)]], axis=0)
    expected = np.arange(1, 1001)[:, None] * np.array([0.6, 0.3, 0.1])
    assert float(np.abs(counts - expected).max()) <= 1.5


def test_interleaved_shuffles_within_a_class_and_is_fixed():
    labels = np.zeros(8, dtype=np.int64)
    order = interleaved(labels)
    assert list(order) != list(range(8))
    assert list(order) == [7, 0, 5, 6, 4, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "mixed"),
    [
        ([0, 1] * 20, True),
        ([0] * 20 + [1] * 20, False),
        ([0] * 9, True),
        ([0], True),
        ([0, 0, 1, 0, 1, 1, 0, 1], True),
    ],
)
def test_is_mixed(labels, mixed):
    assert is_mixed(np.array(labels)) is mixed
