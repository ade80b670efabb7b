"""Generators: shapes, branches, the pixels that they begin with."""

import pytest
import torch
from bench_defenses.generators.loop import PairSchedule
from bench_defenses.generators.nets import GeneratorSpec, pixels, squashed

from bench.noise import generators
from tests.defenses.generators.helpers import noise
from tests.toys import message


@pytest.mark.parametrize("conditioning", ["none", "embed_mul", "branch"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 12)])
def test_generators_make_pixels_of_any_size(conditioning, shape):
    spec = GeneratorSpec(size=8, width=6, conditioning=conditioning)
    before = generators()
    generator = spec.build(shape, 4, 0, torch.tensor([0.3]), torch.tensor([0.2]))
    rows = noise(0, 9)
    labels = spec.classes(rows, 4)
    images = pixels(generator(spec.draw(rows), labels))
    assert (
        images.shape == (9, *shape)
        and images.min() >= 0
        and images.max() <= 1
        and generators() == before
    )
    assert images.mean().item() == pytest.approx(
        0.3, abs=0.05
    ) and images.std().item() == pytest.approx(0.2, abs=0.05)
    assert labels.tolist() == (
        [0, 0, 0, 1, 1, 2, 2, 3, 3] if conditioning == "branch" else labels.tolist()
    )
    assert labels.min() >= 0 and labels.max() < 4


def test_branch_k_gets_label_k():
    stem = (
        GeneratorSpec(size=8, width=6, conditioning="branch")
        .build((1, 8, 8), 3, 0, torch.ones(1), torch.ones(1))
        .stem
    )
    latent, labels = (
        torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([2, 0, 1, 2, 0]),
    )
    maps = stem(latent, labels)
    for row, label in enumerate(labels):
        alone = stem.branches[label](latent[row : row + 1])[0]
        assert torch.allclose(maps[row], alone, atol=1e-6)
    assert not torch.allclose(stem.branches[0](latent), stem.branches[1](latent))


def test_dasts_own_generator_fits_28_and_32_pixels():
    for side in (28, 32):
        spec = GeneratorSpec(size=4, conditioning="branch", decoder="dast_paper")
        generator = spec.build((1, side, side), 2, 0, torch.ones(1), torch.ones(1))
        with torch.no_grad():
            assert generator(torch.ones(4, 4), torch.tensor([0, 1, 1, 0])).shape == (
                4,
                1,
                side,
                side,
            )
    published = GeneratorSpec(size=128, conditioning="branch", decoder="dast_paper").build(
        (3, 32, 32), 1, 0, *[torch.ones(3)] * 2
    )
    count = [
        sum(one.numel() for one in part.parameters())
        for part in (published.stem, published.decoder)
    ]
    assert count == pytest.approx([1.46e6, 3.03e6], rel=0.01)
    shared = GeneratorSpec(affine=False).build((3, 32, 32), 10, 0, *[torch.ones(3)] * 2)
    assert sum(one.numel() for one in shared.parameters()) == pytest.approx(2.33e6, rel=0.01)


def test_what_generators_refuse():
    assert "4 divides" in message(lambda: GeneratorSpec().check((1, 30, 28), 3, 6))
    assert "28 or 32" in message(
        lambda: GeneratorSpec(decoder="dast_paper").check((1, 16, 16), 3, 6)
    )
    paper = GeneratorSpec(decoder="dast_paper", conditioning="branch")
    assert "give at least 20" in message(lambda: paper.check((1, 28, 28), 10, 19))
    assert "give at least 10" in message(
        lambda: GeneratorSpec(conditioning="branch").check((1, 28, 28), 10, 6)
    )
    assert "multiple of 5" in message(lambda: PairSchedule(401, 50, 5))
    assert "shared by" in message(lambda: PairSchedule(400, 50, 5, "student-first"))


def test_the_sigmoid_begins_where_the_classifier_expects_pixels():
    u = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for mean, std in ((0.49, 0.25), (0.2, 0.15)):
        scale, shift = squashed(mean, std)
        made = (scale * u + shift).sigmoid()
        assert made.mean().item() == pytest.approx(
            mean, abs=0.005
        ) and made.std().item() == pytest.approx(std, abs=0.005)
    assert squashed(0.13, 0.31)[0] == pytest.approx(6, abs=1e-3), (
        "nearly black and white: no steeper, or no gradient is left"
    )
