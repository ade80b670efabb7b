"""How alike two images are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

_C1, _C2, _WINDOW = 0.01, 0.03, 7


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images (n, C, H, W) in [0, 1], uniform windows of 7 pixels: (n,)."""
    mean_a, mean_b = (F.avg_pool2d(x, _WINDOW, 1) for x in (a, b))
    var_a = F.avg_pool2d(a * a, _WINDOW, 1) - mean_a**2
    var_b = F.avg_pool2d(b * b, _WINDOW, 1) - mean_b**2
    both = F.avg_pool2d(a * b, _WINDOW, 1) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1**2) * (2 * both + _C2**2)
    below = (mean_a**2 + mean_b**2 + _C1**2) * (var_a + var_b + _C2**2)
    return (top / below).flatten(1).mean(1)
