"""Total variation minimisation."""

import pytest
import torch
from bench_defenses.gallery.tvm import adjoint, differences, objective, reconstruct

from tests.defenses.gallery.helpers import build, noise, pixels


def test_total_variation_reaches_its_minimum():
    images, kept = pixels(3, 2, 10, 9), (pixels(3, 1, 10, 9, seed=5) > 0.5).float()
    start = objective(images * kept, images, kept, 0.03)
    reached = objective(reconstruct(images, kept, 0.03, 100), images, kept, 0.03)
    lowest = objective(reconstruct(images.double(), kept.double(), 0.03, 5000), images, kept, 0.03)
    assert (
        (reached < 0.8 * start).all()
        and (reached < 1.02 * lowest).all()
        and (reached > 0.999 * lowest).all()
    )
    z, field = (
        pixels(3, 2, 10, 9, seed=2),
        torch.rand(2, 3, 2, 10, 9, generator=torch.Generator().manual_seed(3)),
    )
    assert (differences(z) * field).sum() == pytest.approx(
        float((z * adjoint(field)).sum()), rel=1e-4
    )
    # No small change of the answer lowers the objective any further.
    best = reconstruct(images.double(), kept.double(), 0.03, 5000)
    for seed in range(20):
        moved = best + 0.01 * (pixels(3, 2, 10, 9, seed=seed) - 0.5)
        assert (objective(moved, images, kept, 0.03) > lowest).all()


def test_total_variation_drops_the_share_of_pixels_in_all_channels():
    images = torch.ones(50, 2, 12, 12)
    defended = build("tvm:steps=1,drop=0.3,weight=1e-6")
    outputs = defended.transform(images, noise(50))
    dropped = outputs < 0.5
    assert (
        torch.equal(dropped[:, 0], dropped[:, 1])
        and abs(float(dropped.float().mean()) - 0.3) < 0.03
    )
