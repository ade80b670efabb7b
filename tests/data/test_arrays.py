"""Arrays of any layout as images and labels: what is read, what is refused, and how."""

import numpy as np
import pytest
import torch

from bench.data.arrays import Arrays, read_images, read_labels
from tests.data.helpers import random_images
from tests.toys import message

LABELS = np.array([0, 1, 2, 0, 1, 2])
COLOUR = random_images(6, 5, 4, 3)


@pytest.mark.parametrize(
    "give",
    [
        lambda x: x,
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).permute(0, 3, 1, 2),
        lambda x: x.tolist(),
    ],
)
def test_the_same_images_in_any_layout_are_the_same_data(give):
    expected = Arrays(COLOUR, LABELS).test()
    values = give(COLOUR)
    if isinstance(values, list):
        values = np.asarray(values, dtype=np.uint8)
    data = Arrays(values, LABELS)
    assert data.test().sha256 == expected.sha256 and data.num_classes == 3
    assert tuple(data.test().images.shape) == (6, 3, 5, 4)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, torch.float32, torch.float64, torch.bfloat16]
)
def test_floats_become_float32(dtype):
    pixels = COLOUR / 255
    given = (
        torch.tensor(pixels).to(dtype).requires_grad_(True)
        if isinstance(dtype, torch.dtype)
        else pixels.astype(dtype)
    )
    images, notes = read_images("images", given)
    assert images.dtype == torch.float32 and notes == ()
    assert (images.permute(0, 2, 3, 1) - torch.tensor(pixels)).abs().max() < 0.005


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], torch.tensor(LABELS), LABELS.tolist()])
def test_labels(labels):
    assert read_labels("labels", labels).tolist() == LABELS.tolist()


@pytest.mark.parametrize("beyond", [1.0000002, -1e-8, 1.000009])
def test_pixels_beyond_the_box_by_rounding_are_clipped_and_noted(beyond):
    pixels = (COLOUR / 255).astype(np.float32)
    pixels[0, 0, 0, 0] = beyond
    test = Arrays(pixels, LABELS).test()
    assert float(test.images.min()) >= 0 and float(test.images.max()) <= 1
    (note,) = test.first(2).notes
    assert "1 pixels beyond [0, 1] by rounding" in note and "clipped" in note


BAD_IMAGES = {
    "0 to 255": (COLOUR.astype(np.float32), "divide by 255"),
    "16 bits": (COLOUR.astype(np.float64) * 257, "divide by 65535"),
    "-1 to 1": (COLOUR / 127.5 - 1, "(images + 1) / 2"),
    "normalised": (COLOUR / 60 - 2, "images * std + mean"),
    "little more than rounding": (COLOUR / 254, "not in [0, 1]"),
    "infinite": (np.full(COLOUR.shape, np.inf), "bring them to [0, 1]"),
    "NaN": (np.full(COLOUR.shape, np.nan), "NaN pixels"),
    "whole numbers": (COLOUR.astype(np.int64), ".astype('uint8')"),
    "negative whole numbers": (COLOUR.astype(np.int64) - 1, "store uint8"),
    "complex": (COLOUR.astype(complex), "store uint8"),
    "two axes": (COLOUR[:, :, 0, 0], "give (n, H, W)"),
    "four channels": (np.zeros((6, 8, 8, 4), np.uint8), "C 1 or 3"),
    "none": (COLOUR[:0], "is empty"),
    "objects": (np.array([{}] * 6), "no plain numbers"),
    "a dictionary": ({"x": 1}, "no plain numbers"),
    "ragged": ([[1, 2], [3]], "cannot be made an array"),
    "text": ("images.npy", "has shape ()"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_that_cannot_be_used(case):
    images, words = BAD_IMAGES[case]
    text = message(lambda: read_images("images", images))
    assert words in text
    assert len(text) < 250, "no array is dumped"


MANY = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
BAD_LABELS = {
    "one-hot": (np.eye(3)[LABELS], "it is one-hot"),
    "one-hot tensor": (torch.eye(3)[LABELS], "labels.argmax(1)"),
    "multi-label": (MANY, "it is multi-label"),
    "multi-label booleans": (MANY.astype(bool), "it is multi-label"),
    "probabilities": (np.full((6, 3), 1 / 3), "labels.argmax(1)"),
    "floats": (LABELS + 0.5, "must be integers"),
    "booleans": (LABELS > 0, ".astype('int64')"),
    "names": (np.array(["cat", "dog", "cow"] * 2), "numpy.unique"),
    "negative": (LABELS - 1, "number the classes from 0"),
    "huge": (LABELS + 10**9, "number the classes from 0"),
    "none": (LABELS[:0], "is empty"),
    "a number": (3, "is empty"),
    "three axes": (LABELS.reshape(6, 1, 1), "(n,)"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_cannot_be_used(case):
    labels, words = BAD_LABELS[case]
    text = message(lambda: read_labels("labels", labels))
    assert words in text and len(text) < 250


def test_images_and_labels_that_do_not_go_together():
    assert "6 images but 5 labels" in message(lambda: Arrays(COLOUR, LABELS[:5]))
    assert "swapped" in message(lambda: Arrays(LABELS, COLOUR))
    assert "no training images" in message(Arrays(COLOUR, LABELS).train)


def test_classes_may_be_more_than_the_labels_show():
    assert Arrays(COLOUR, LABELS, 10).num_classes == 10
    assert Arrays(COLOUR, LABELS * 0).num_classes == 2
    assert "classes=2 allows 0 to 1" in message(lambda: Arrays(COLOUR, LABELS, 2))
    for wrong in (1, 0, -3, 10**6, True, 2.5):
        assert "give a whole number" in message(lambda wrong=wrong: Arrays(COLOUR, LABELS, wrong))
