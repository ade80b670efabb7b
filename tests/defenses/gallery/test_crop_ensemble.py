"""Random crops."""

import torch
from bench_defenses.gallery.crop_ensemble import crop
from torch.nn import functional as F

from tests.defenses.gallery.helpers import build, noise, pixels


def test_crops_by_slicing_and_their_answer_by_a_loop():
    images, rows_of = pixels(6, 2, 12, 10), noise(6)
    outputs = crop(images, 0.7, rows_of)
    top, left = rows_of.integers("top", 0, 5), rows_of.integers("left", 0, 4)
    for i in range(6):
        part = images[i : i + 1, :, top[i] : top[i] + 8, left[i] : left[i] + 7]
        assert torch.allclose(
            outputs[i : i + 1], F.interpolate(part, size=(12, 10), mode="bilinear"), atol=1e-6
        )
    defended = build("crop-ensemble:crops=3", channels=2)
    inner, places = (
        defended.classifier.classifier,
        [rows_of.at("crop").at(str(i)) for i in range(3)],
    )
    parts = [inner(crop(images, 0.9, place), rows_of).softmax(1) for place in places]
    assert torch.allclose(defended(images, rows_of), torch.stack(parts).mean(0).log(), atol=1e-5)
