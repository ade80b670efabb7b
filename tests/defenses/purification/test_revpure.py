"""RevPure: the reverse chain alone."""

import torch
from bench_defenses.purification.purifier import (
    Round,
)

from tests.defenses.purification.helpers import gaussian, images, noise, purified


def test_the_input_scale_is_applied():
    model = gaussian()
    plain = purified(model, Round(200, 1, None)).purify(images(), noise())
    scaled = purified(model, Round(200, 1, None, 0.8)).purify(images(), noise())
    same = purified(model, Round(200, 1, None)).purify((0.8 * (2 * images() - 1) + 1) / 2, noise())
    assert torch.allclose(scaled, same, atol=1e-6)
    assert not torch.allclose(scaled, plain, atol=1e-2)
