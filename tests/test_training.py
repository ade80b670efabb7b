import hashlib
import json

import pytest
import safetensors.torch
import torch

from bench.data.mnist5k import Mnist5k
from bench.data.npz import Npz, NpzParams
from bench.errors import BadInput
from bench.models import training
from bench.models.classifier import Classifier
from bench.models.file import File, FileParams
from bench.models.nets import build
from bench.models.training import clean_accuracy, recipe_of, recipe_record, save, train
from bench.models.zoo import Zoo, ZooParams
from bench.noise import Noise
from bench.spec import Params


class Few(Mnist5k):
    """The first 130 training images; its test images must not be touched."""

    def train(self):
        return super().train().first(130)

    def test(self):
        raise AssertionError("training looked at test images")


def weights(classifier):
    return classifier.network.state_dict()


def same(one, other):
    return all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())


def test_training_repeats_and_depends_on_its_seed():
    one, again, other = (train(Few(Params()), "cnn", epochs=1, seed=seed) for seed in (0, 0, 1))
    assert same(one, again)
    assert not same(one, other)


def test_training_learns_and_reports():
    seen = []
    classifier = train(Few(Params()), "cnn", epochs=20, progress=lambda *report: seen.append(report))
    assert [report[:2] for report in seen] == [(epoch, 20) for epoch in range(1, 21)]
    assert seen[-1][2] < seen[0][2]
    assert classifier.trained_on == ("mnist5k/train",)
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert clean_accuracy(classifier, Mnist5k(Params()).test().first(200)) > 0.3


def test_training_refuses_what_it_cannot_do():
    with pytest.raises(BadInput, match="epochs=0 trains nothing"):
        train(Few(Params()), "cnn", epochs=0)
    with pytest.raises(BadInput, match="unknown architecture"):
        train(Few(Params()), "cnm", epochs=1)
    with pytest.raises(BadInput, match="no training recipe for npz"):
        train(Npz(NpzParams(path="any.npz")), "cnn", epochs=1)


def test_shift_moves_by_whole_pixels():
    image = torch.zeros(3, 1, 5, 5)
    image[:, 0, 2, 2] = 1
    moved = training._shifted(image, torch.tensor([[2, 2], [0, 4], [1, 2]]), 2)
    assert [tuple(place.tolist()) for place in moved[:, 0].nonzero()] == [(0, 2, 2), (1, 4, 0), (2, 3, 2)]


def test_learning_rate_rises_and_falls():
    network = build("cnn", 10, 1)
    rates = []
    steps = training._steps(network, recipe_of(Few(Params())), 10)
    for step in steps:
        optimiser = step.__closure__[[*step.__code__.co_freevars].index("optimiser")].cell_contents
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05] + [0.1 * k / 9 for k in range(9, 0, -1)])


def test_saved_weights_read_back(tmp_path):
    network = build("cnn", 10, 1, seed=2)
    classifier = Classifier(network, 10, mean=[0.1307], std=[0.3081], trained_on=["a/train"]).eval()
    path = tmp_path / "net.safetensors"
    save(classifier, path, {"arch": "cnn", "recipe": recipe_record(Few(Params()), 3, 4)})
    sidecar = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert set(sidecar) == {"arch", "channels", "mean", "num_classes", "recipe", "sha256", "std", "trained_on"}
    assert sidecar["mean"] == [0.1307]
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["recipe"]["epochs"] == 3
    assert {value.dtype for value in safetensors.torch.load_file(path).values()} == {torch.float32}
    read = File(FileParams(path=str(path))).load(10, 1)
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    noise = Noise.of(0, "eval", range(4))
    assert torch.equal(read(images, noise), classifier(images, noise))
    assert read.trained_on == ("a/train",)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.safetensors", "net.safetensors.json"]


def test_save_refuses_bad_places(tmp_path):
    classifier = Classifier(build("cnn", 10, 1), 10, mean=[0.5], std=[0.5])
    for path in (tmp_path / "net.pt", tmp_path / "none" / "net.safetensors"):
        with pytest.raises(BadInput, match=r"name a \.safetensors file"):
            save(classifier, path, {})


# The shipped classifier -----------------------------------------------------------------------------------------------


def shipped():
    return Zoo(ZooParams(name="mnist5k-cnn")).load(10, 1)


def test_shipped_classifier_has_its_stated_accuracy():
    assert shipped().trained_on == ("mnist5k/train",)
    assert round(clean_accuracy(shipped(), Mnist5k(Params()).test()) * 1000) == pytest.approx(982, abs=1)


@pytest.mark.slow
def test_recipe_gives_the_shipped_classifier_again():
    again = train(Mnist5k(Params()), "cnn")
    test = Mnist5k(Params()).test()
    assert clean_accuracy(again, test) == pytest.approx(clean_accuracy(shipped(), test), abs=0.006)
