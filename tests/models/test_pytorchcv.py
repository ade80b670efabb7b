"""`pytorchcv:NAME` without the package."""

import hashlib

import pytest
import torch

from bench.models import pytorchcv
from bench.models.file import assemble
from bench.models.nets import build
from bench.models.pytorchcv import Pytorchcv, PytorchcvParams, renamed
from bench.noise import Noise
from tests.models.helpers import zipped
from tests.toys import message

pytestmark = pytest.mark.usefixtures("root")


def theirs(key):
    """Our name of a ResNet's tensor under pytorchcv's."""
    if key.startswith("layer"):
        stage, unit, part, rest = key.split(".", 3)
        place = f"features.stage{stage[-1]}.unit{int(unit) + 1}"
        if part == "shortcut":
            number, tail = rest.split(".")
            return f"{place}.identity_conv.{('conv', 'bn')[int(number)]}.{tail}"
        return f"{place}.body.conv{part[-1]}.{part[:-1]}.{rest}"
    return (
        key.replace("conv1.", "features.init_block.conv.")
        .replace("bn1.", "features.init_block.bn.")
        .replace("linear.", "output.")
    )


def test_a_pytorchcv_zip_becomes_a_classifier(tmp_path, root, monkeypatch):
    network = build("resnet20-projection", 10, 3, seed=4).eval()
    torch.save({theirs(key): value for key, value in network.state_dict().items()}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    sha1 = hashlib.sha1(content).hexdigest()
    monkeypatch.setitem(pytorchcv.NETWORKS, "resnet20_svhn", ("0343", sha1, "v0.0.265"))
    zipped(root / "pytorchcv", f"resnet20_svhn-0343-{sha1[:8]}.pth", content)
    classifier = Pytorchcv(PytorchcvParams(name="resnet20_svhn")).load(10, 3)
    assert classifier.trained_on == ("svhn/train",)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1)
        for values in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201))
    )
    assert torch.equal(
        classifier(images, Noise.of(0, "eval", range(2))), network((images - mean) / std)
    )


def test_pytorchcv_refuses_names_data_sets_and_damage(root, monkeypatch):
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    assert "Did you mean 'resnet20_cifar10'" in message(
        lambda: Pytorchcv(PytorchcvParams(name="resnet20-cifar10")).load(10, 3)
    )
    text = message(lambda: Pytorchcv(PytorchcvParams(name="wrn28_10_cifar10")).load(10, 3))
    assert "releases/download/v0.0.166/wrn28_10_cifar10-0239-fe97dcd6.pth.zip" in text
    assert str(root / "pytorchcv" / "wrn28_10_cifar10-0239-fe97dcd6.pth") in text


def test_pytorchcv_names_in_full():
    for name, (error, sha1, release) in pytorchcv.NETWORKS.items():
        assert (len(error), len(sha1), release[:4]) == (4, 40, "v0.0")
        about = pytorchcv.description(name)
        assert about.trained_on == (f"{name.rpartition('_')[2]}/train",)


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet20_cifar100", "wrn16_10_svhn"])
def test_parity_with_the_package(name, tmp_path):
    package = pytest.importorskip("pytorchcv.model_provider")
    store = pytest.importorskip("pytorchcv.models.common.model_store")
    with torch.random.fork_rng():
        peer = package.get_model(name).eval()
    classes = 100 if name.endswith("100") else 10
    about = pytorchcv.description(name)
    ours = assemble(
        tmp_path,
        renamed(peer.state_dict()),
        about.model_copy(update={"mean": (), "std": ()}),
        classes,
        3,
    )
    count, *facts = store.get_model_metainfo(name)
    assert tuple(facts) == pytorchcv.NETWORKS[name]
    assert sum(p.numel() for p in ours.network.parameters()) == count
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(
            ours(images, Noise.of(0, "eval", range(4))), expected, rtol=1e-4, atol=1e-4
        )
