"""Public images: which ones, in what form, and that they are not the evaluated ones."""

import numpy as np
import pytest
import torch

from bench.access.public import PublicImages, check_foreign, fitted, load_public
from bench.data.mnist5k import Mnist5k
from bench.defense import AccessDenied, DataAccess, Need
from bench.plugins.create import DATASETS, Named, create
from bench.spec import Params, parse
from bench.threat import ThreatModel
from tests.toys import message

EVALUATED = create(DATASETS, parse("mnist5k"))


def test_grey_and_colour_become_each_other():
    grey = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fitted(grey, (1, 4, 4)), grey)
    colour = fitted(grey, (3, 4, 4))
    assert colour.shape == (2, 3, 4, 4) and all(
        torch.equal(colour[:, c : c + 1], grey) for c in range(3)
    )
    assert torch.allclose(fitted(colour, (1, 4, 4)), grey)
    pixel = torch.tensor([1.0, 0.5, 0.25]).reshape(1, 3, 1, 1)
    assert fitted(pixel, (1, 1, 1)).item() == pytest.approx(0.299 + 0.587 / 2 + 0.114 / 4)
    assert "2 channels cannot become images of 1" in message(
        lambda: fitted(torch.zeros(1, 2, 4, 4), (1, 4, 4))
    )


def test_sizes_change_bilinearly():
    ramp = torch.arange(8.0).reshape(1, 1, 1, 8).expand(1, 1, 8, 8) / 8
    larger = fitted(ramp, (1, 16, 16))
    assert torch.allclose(larger[0, 0, 5, 1:-1], (torch.arange(1.0, 15) / 2 - 0.25) / 8, atol=1e-6)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert torch.allclose(
        fitted(board[None, None].float(), (1, 2, 2)), torch.tensor(0.5), atol=0.02
    ), "shrinking averages"
    assert torch.allclose(fitted(torch.ones(1, 3, 7, 5), (1, 28, 28)), torch.tensor(1.0))


@pytest.fixture
def archive(tmp_path):
    def write(name, **parts):
        arrays = {f"x_{split}": images for split, images in parts.items()}
        np.savez(
            tmp_path / name,
            **arrays,
            **{f"y_{split}": np.arange(len(images)) % 2 for split, images in parts.items()},
        )
        return f"npz:{tmp_path / name}"

    return write


def some(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def test_the_training_split_or_all_where_there_is_none(archive):
    both, one = (
        archive("both.npz", train=some(6), test=some(4, 1)),
        archive("one.npz", test=some(4, 1)),
    )
    assert len(load_public(both).images) == 6 and len(load_public(one).images) == 4
    first = load_public(f"({both},n=2)").images
    assert torch.equal(first.images, load_public(both).images.images[:2])
    assert load_public("mnist5k:n=7").images.sha256 == Mnist5k(Params()).train().first(7).sha256
    for n in ("0", "7", "-1", "many", "1.5"):
        assert "no number of public images: give 1 to 6" in message(
            lambda n=n: load_public(f"{both},n={n}")
        )
    assert "unknown" in message(lambda: load_public("no-such-set:n=3"))


def test_a_missing_training_file_does_not_open_the_test_split(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.setattr("bench.data.idx.data_root", lambda: tmp_path)
    monkeypatch.setattr(
        "bench.data.idx.FashionMnist.test", lambda self: pytest.fail("took the test images")
    )
    assert "train-images-idx3-ubyte.gz" in message(lambda: load_public("fashion-mnist:n=3"))


class Split(Mnist5k):
    """Another data set, whose training images hold those of mnist5k."""


def test_the_evaluated_data_set_is_not_public(archive):
    evaluated = EVALUATED.plugin.test().first(5)

    def refused(public):
        return message(lambda: check_foreign(public, EVALUATED, evaluated))

    assert "is the data set under evaluation" in refused(load_public("mnist5k:n=3"))
    foreign = load_public(archive("foreign.npz", test=some(5)))
    check_foreign(foreign, EVALUATED, evaluated)
    superset = PublicImages(Named("mnist", "mnist", Split(Params()), ()), foreign.images)
    assert "hold images of mnist5k that are evaluated" in refused(superset)
    leaking = np.concatenate([some(5), evaluated.images[4:, 0].numpy()])
    assert "hold images of mnist5k that are evaluated" in refused(
        load_public(archive("leak.npz", test=leaking))
    )
    floats = archive("floats.npz", test=(leaking / np.float32(255)).astype(np.float32))
    assert "hold images of mnist5k that are evaluated" in refused(load_public(floats))


def test_two_files_are_two_data_sets_and_one_is_itself(archive):
    one, other = (
        archive(f"{seed}.npz", train=some(5, seed), test=some(5, 10 + seed)) for seed in (0, 1)
    )
    evaluated = create(DATASETS, parse(one))
    check_foreign(load_public(other), evaluated, evaluated.plugin.test())
    refusal = message(
        lambda: check_foreign(load_public(f"{one},n=2"), evaluated, evaluated.plugin.test())
    )
    assert "is the data set under evaluation" in refusal


def test_the_accessor_serves_whoever_declared_the_need():
    threat = ThreatModel("linf", 0.1)
    sources = {Need.PUBLIC_IMAGES: lambda: torch.zeros(2, 1, 4, 4)}
    with pytest.raises(AccessDenied, match="asked for public images without declaring it"):
        DataAccess(
            frozenset({Need.TRAINING_DATA}), sources, "thief", threat, (1, 4, 4)
        ).public_images()
    access = DataAccess(frozenset({Need.PUBLIC_IMAGES}), sources, "honest", threat, (1, 4, 4))
    assert (
        access.public_images().shape == (2, 1, 4, 4)
        and access.threat == threat
        and access.shape == (1, 4, 4)
    )
