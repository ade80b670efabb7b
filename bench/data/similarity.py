"""How alike two images are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_K1, _K2 = 0.01, 0.03
_WINDOW = 7
_SIDE, _SIGMA = 11, 1.5


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images (n, C, H, W) in [0, 1], uniform windows of
    7 pixels: (n,).
    """
    return _map(a, b, lambda x: F.avg_pool2d(x, _WINDOW, 1), _K1**2, _K2**2).flatten(1).mean(1)


def gaussian_ssim(a: Tensor, b: Tensor, data_range: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images (n, C, H, W) whose pixels span
    `data_range` (n,): (n,).

    Gaussian windows of 11 pixels (fewer where the image is smaller), sigma 1.5, inside the image
    only; a channel's mean below 0 counts as 0.
    """
    side = min(_SIDE, *((size - 1) // 2 * 2 + 1 for size in a.shape[2:]))
    line = torch.exp(-(torch.arange(side, device=a.device) - side // 2).square() / (2 * _SIGMA**2))
    line, channels = line / line.sum(), a.shape[1]

    def smooth(x: Tensor) -> Tensor:
        rows = F.conv2d(x, line.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(rows, line.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    span = data_range.reshape(-1, 1, 1, 1)
    return (
        _map(a, b, smooth, (_K1 * span) ** 2, (_K2 * span) ** 2).flatten(2).mean(2).relu().mean(1)
    )


def _map(
    a: Tensor, b: Tensor, smooth: Callable[[Tensor], Tensor], c1: Tensor | float, c2: Tensor | float
) -> Tensor:
    """The similarity around each pixel; c1 and c2 keep the quotients finite."""
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    # (2 m_a m_b + c1) (2 cov + c2) / ((m_a^2 + m_b^2 + c1) (var_a + var_b + c2))
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return top / below
