"""Philox 4x64-10 in int64 arithmetic, on any device that torch knows: the words that NumPy's
`Philox` makes, bit for bit.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3 and table 2.
torch has no 64-bit unsigned arithmetic; sums and products of int64 wrap around, and so have the
same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def halves(key: tuple[int, int], images: Tensor, draws: Tensor, count: int) -> Tensor:
    """The 32-bit halves of `count` words for each row, the lower half of a word first.

    Args:
        key: two 64-bit words.
        images, draws: the second and third word of each row's counter, int64 (n,).
        count: words a row.

    Returns:
        int64 (n, 2 count) in [0, 2^32), where `images` lie.
    """
    blocks = torch.arange(-(-count // 4), device=images.device)
    shape = (len(images), len(blocks))
    # A round multiplies the first and the third word of the counter, both at once here.
    factors = torch.stack([blocks.expand(shape), draws[:, None].expand(shape)])
    others = torch.stack([images[:, None].expand(shape), blocks.new_zeros(shape)])
    constants = torch.tensor(_CONSTANTS, device=images.device)[:, :, None, None]
    for number in range(_ROUNDS):
        keys = [_signed(word + number * step) for word, step in zip(key, _WEYL, strict=True)]
        high, low = _product(constants, factors)
        others ^= torch.tensor(keys, device=images.device)[:, None, None]
        factors, others = high.flip(0) ^ others, low.flip(0)
    state = [factors[0], others[0], factors[1], others[1]]
    words = torch.stack(state, -1).flatten(1)[:, :count]
    return torch.stack([words & _LOW, _upper(words)], -1).flatten(1)


def uniform(halves: Tensor) -> Tensor:
    """Float32 in [0, 1), multiples of 2^-24, one from each half."""
    return (halves >> 8).float() * 2.0**-24


def normal(halves: Tensor) -> Tensor:
    """Standard normal float32 by Box and Muller's transform, two from two halves, computed in
    float64: those of another library's `log` and `cos` differ by a last digit once in 2^28.
    """
    radius = (-2 * ((halves[:, 0::2] + 1).double() * 2.0**-32).log()).sqrt()
    angle = halves[:, 1::2].double() * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1).float()


def _product(constants: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 64 bits of two constants times x (2, n, blocks), by products of 32-bit
    halves, none of which overflows 64 bits; the constants as `_CONSTANTS`.
    """
    upper, lower, whole = constants
    first, second = _upper(x), x & _LOW
    carried = upper * second + _upper(lower * second)
    crossed = lower * first + (carried & _LOW)
    high = upper * first + _upper(carried) + _upper(crossed)
    return high, x * whole


def _upper(x: Tensor) -> Tensor:
    # The shift of a signed number fills up with its sign.
    return (x >> 32) & _LOW


def _signed(word: int) -> int:
    """The int64 with the bits of a word, taken modulo 2^64."""
    word %= 1 << 64
    return word - (1 << 64) if word >> 63 else word


_CONSTANTS = [
    [constant >> 32 for constant in _MULTIPLIERS],
    [constant & _LOW for constant in _MULTIPLIERS],
    [_signed(constant) for constant in _MULTIPLIERS],
]
"""Upper and lower halves of the multipliers, and the multipliers."""
