"""A contact sheet: a few images of each class, side by side, to look at."""

from __future__ import annotations

import io

import torch
from torch import Tensor
from torch.nn import functional as F

COLUMNS = 12
MOST_ROWS = 20
SMALLEST_SIDE = 56
"""Smaller images are shown with pixels so many times as large that they reach this."""

_GAP = 2


def contact_sheet(images: Tensor, labels: Tensor) -> bytes:
    """A PNG file: one row a class, in order, at most 20 classes of up to 12 images, from the
    beginning, the middle and the end.

    Args:
        images: (n, C, H, W) in [0, 1], one or three channels; of another number the first is shown.
        labels: (n,).
    """
    factor = max(1, -(-SMALLEST_SIDE // max(images.shape[2:])))
    rows = [_row(images[labels == label], factor) for label in labels.unique()[:MOST_ROWS]]
    return _png(torch.cat(rows, 1))


def _row(images: Tensor, factor: int) -> Tensor:
    """Images of one class as one picture (C, H, W), on white."""
    chosen = torch.linspace(0, len(images) - 1, min(COLUMNS, len(images))).round().long()
    large = images[chosen].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    framed = F.pad(large, (0, _GAP, 0, _GAP), value=1.0)
    strip = torch.cat(list(framed), 2)
    return F.pad(strip, (0, (COLUMNS - len(chosen)) * framed.shape[3]), value=1.0)


def _png(picture: Tensor) -> bytes:
    from PIL import Image

    colours = picture if picture.shape[0] == 3 else picture[:1].expand(3, -1, -1)
    buffer = io.BytesIO()
    Image.fromarray((colours.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(
        buffer, "PNG"
    )
    return buffer.getvalue()
