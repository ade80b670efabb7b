"""Logits of one function, up to rounding."""

import torch

from bench.checks.alike import alike, differing, rounding


def test_differences_are_counted_in_units_of_what_rounding_explains():
    z = torch.tensor([[0.0, 10.0, 5.0], [0.0, 10.0, 5.0], [1.0, 1.0, 1.0]])
    unit = 2.0**-23
    other = z.clone()
    other[0, 0] += 1e-3
    other[1, 0] += 1e-2
    other[2, 0] += 5e-4
    gaps = differing(other, z, unit)
    # A spread of 10 explains 1e-3; a flat row takes that of most rows.
    assert 0.9 < gaps[0] < 1 and 9 < gaps[1] < 10 and 0.4 < gaps[2] < 0.5
    assert differing(z, z, unit).eq(0).all()
    assert alike(z, other[:1].expand(3, -1), unit) is False
    half = torch.finfo(torch.float16).eps
    assert (differing(other, z, half) < 1).all()
    weights = torch.nn.ParameterList([torch.zeros(1)])
    assert rounding(weights.half()) == half and rounding(weights.double()) == unit


def test_a_ruled_out_class_excuses_no_difference_of_the_others():
    """Mutation: the spread over all finite logits."""
    z = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    other = z.flip(1).clone()
    z[:, 9] = other[:, 9] = -1e5
    assert not alike(other, z, 2.0**-23)
    assert (differing(other, z, 2.0**-23) > 1).all()


def test_infinite_against_finite_differs_and_equal_ones_do_not():
    z = torch.tensor([[0.0, -torch.inf, 5.0], [torch.nan, 1.0, 2.0], [0.0, 1.0, 2.0]])
    other = z.clone()
    assert differing(other, z, 1e-7).tolist() == [0, 0, 0]
    other[0, 1], other[2, 0] = -1e9, torch.nan
    assert differing(other, z, 1e-7).tolist() == [torch.inf, 0, torch.inf]
