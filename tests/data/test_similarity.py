"""Structural similarity."""

import numpy as np
import torch

from bench.data.similarity import gaussian_ssim, ssim
from tests.defenses.purification.helpers import images
from tests.defenses.testtime.helpers import pixels, slow_ssim


def test_ssim_is_one_for_equal_images_and_less_for_others():
    x = images(4, 16)
    assert torch.allclose(ssim(x, x), torch.ones(4), atol=1e-5)
    near, far = (
        x + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        for s in (0.05, 0.3)
    )
    assert bool((ssim(x, near) > ssim(x, far)).all())


def test_gaussian_ssim_window_by_window():
    a, b, span = pixels(3, 2, 14, 13), pixels(3, 2, 14, 13, seed=1), torch.tensor([1.0, 0.5, 0.2])
    b[1] = 0.8 * a[1] + 0.1
    expected = [slow_ssim(a[i], b[i], float(span[i])) for i in range(3)]
    assert np.allclose(gaussian_ssim(a, b, span).numpy(), expected, atol=1e-4)
    assert float(gaussian_ssim(a, 1 - a, span)[0]) == 0
    assert torch.allclose(
        gaussian_ssim(pixels(1, 1, 5, 5), pixels(1, 1, 5, 5), span[:1]), torch.ones(1)
    )
