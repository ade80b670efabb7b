"""Training by recipe: it repeats, goes on after an interruption, and looks at no test image."""

import hashlib
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from bench.data.dataset import ImageSet
from bench.data.mnist5k import Mnist5k
from bench.errors import BadInput
from bench.models import training
from bench.models.classifier import Classifier
from bench.models.file import File, FileParams
from bench.models.nets import build
from bench.models.training import clean_accuracy, rate_at, save, score
from bench.noise import Noise
from bench.spec import Params
from tests.models.helpers import MNIST5K, Few, Killed, Split, fit


class Fewer(Few):
    """The first 129."""

    def train(self):
        return super().train().first(129)


def weights(trained):
    return trained.classifier.network.state_dict()


def same(one, other):
    return all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())


def test_training_repeats_and_depends_on_its_seed():
    one, again, other = (fit(seed=seed) for seed in (0, 0, 1))
    assert same(one, again)
    assert not same(one, other)


def test_training_learns_and_reports():
    seen = []
    trained = fit(epochs=20, progress=seen.append)
    assert [(epoch.done, epoch.total, epoch.validation) for epoch in seen] == [
        (epoch, 20, None) for epoch in range(1, 21)
    ]
    assert seen[-1].loss < seen[0].loss
    assert trained.epoch == seen[-1]
    classifier = trained.classifier
    assert classifier.trained_on == ("mnist5k/train",)
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert clean_accuracy(classifier, Mnist5k(Params()).test().first(200)) > 0.3


def test_training_refuses_what_it_cannot_do():
    with pytest.raises(BadInput, match="epochs=0 trains nothing"):
        fit(epochs=0)
    with pytest.raises(BadInput, match="unknown architecture"):
        fit(arch="cnm")
    with pytest.raises(BadInput, match="but the data set has none"):
        fit(recipe=replace(MNIST5K, choose="best"))


def test_the_validation_split_is_scored_and_changes_no_weight():
    seen = []
    assert same(fit(Split, epochs=2, progress=seen.append), fit(epochs=2))
    assert [epoch.validation.n for epoch in seen] == [100, 100]


def test_the_best_epoch_is_chosen_on_the_validation_split():
    seen = []
    # Rates that grow with the epoch spoil the later ones.
    recipe = replace(MNIST5K, choose="best", rate=3.0, warmup=1.0)
    trained = fit(Split, epochs=8, recipe=recipe, progress=seen.append)
    best = max(seen, key=lambda epoch: (epoch.validation.accuracy, epoch.done))
    assert best.done < 8
    assert trained.epoch == best
    assert score(trained.classifier, Split(Params()).validation()) == best.validation


def scoring(monkeypatch, *accuracies):
    """Make validation return these accuracies, one an epoch."""
    scores = iter(accuracies)
    monkeypatch.setattr(training, "score", lambda *_: training.Score(next(scores), 0.0, 1))


def test_of_equal_epochs_the_later_one_is_kept(monkeypatch):
    scoring(monkeypatch, 0.2, 0.5, 0.5, 0.4)
    assert fit(Split, epochs=4, recipe=replace(MNIST5K, choose="best")).epoch.done == 3


class Constant(torch.nn.Module):
    def forward(self, images):
        return torch.tensor([0.0, 1.0]).expand(len(images), 2)


def test_score_of_the_constant_predictor():
    labels = torch.tensor([1] * 5 + [0] * 3)
    images = ImageSet(torch.zeros(8, 1, 2, 2), labels, torch.arange(8).numpy())
    measured = score(Classifier(Constant(), 2), images)
    assert (measured.accuracy, measured.n) == (0.625, 8)
    # One class has F1 0, the other 2 * 5 / (5 + 8).
    assert measured.macro_f1 == pytest.approx(5 / 13)


def kill_after(epochs):
    def progress(epoch):
        if epoch.done == epochs:
            raise Killed

    return progress


@pytest.mark.parametrize(
    "recipe", [replace(MNIST5K, flip=True), replace(MNIST5K, choose="best", rate=3.0, warmup=1.0)]
)
def test_a_resumed_run_gives_the_same_bits(tmp_path, recipe):
    path = tmp_path / "net.checkpoint"
    for epochs in (2, 3):
        with pytest.raises(Killed):
            fit(Split, epochs=5, recipe=recipe, checkpoint=path, progress=kill_after(epochs))
    seen = []
    resumed = fit(Split, epochs=5, recipe=recipe, checkpoint=path, progress=seen.append)
    assert [epoch.done for epoch in seen] == [4, 5]
    whole = fit(Split, epochs=5, recipe=recipe)
    assert same(resumed, whole)
    assert resumed.epoch == whole.epoch


def test_weights_kept_before_the_kill_are_kept_after_it(tmp_path, monkeypatch):
    path, recipe = tmp_path / "net.checkpoint", replace(MNIST5K, choose="best")
    scoring(monkeypatch, 0.9, 0.8, 0.7)
    with pytest.raises(Killed):
        fit(Split, epochs=3, recipe=recipe, checkpoint=path, progress=kill_after(2))
    resumed = fit(Split, epochs=3, recipe=recipe, checkpoint=path)
    scoring(monkeypatch, 0.9, 0.8, 0.7)
    assert same(resumed, fit(Split, epochs=3, recipe=recipe))
    assert resumed.epoch.done == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "net.checkpoint"
    fit(checkpoint=path)
    for options in (
        {"seed": 1},
        {"epochs": 2},
        {"arch": "resnet20"},
        {"dataset": Fewer},
        {"recipe": replace(MNIST5K, decay=0.0)},
    ):
        with pytest.raises(BadInput, match="of a run with another"):
            fit(checkpoint=path, **options)
    path.write_bytes(b"?")
    with pytest.raises(BadInput, match="no checkpoint"):
        fit(checkpoint=path)


def test_shift_moves_by_whole_pixels():
    image = torch.zeros(3, 1, 5, 5)
    image[:, 0, 2, 2] = 1
    moved = training.shifted(image, torch.tensor([[2, 2], [0, 4], [1, 2]]), 2)
    assert [tuple(place.tolist()) for place in moved[:, 0].nonzero()] == [
        (0, 2, 2),
        (1, 4, 0),
        (2, 3, 2),
    ]


def test_mirror_by_hand():
    images = torch.arange(12.0).reshape(2, 1, 2, 3)
    mirrored = training.mirrored(images, torch.tensor([False, True]))
    assert torch.equal(mirrored[0], images[0])
    assert mirrored[1, 0].tolist() == [[8, 7, 6], [11, 10, 9]]


def test_about_half_of_the_images_are_mirrored_where_the_recipe_says_so(monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "mirrored", lambda images, which: seen.append(tuple(which.tolist())) or images
    )
    fit(recipe=MNIST5K)
    assert not any(map(any, seen))
    seen.clear()
    fit(epochs=4, recipe=replace(MNIST5K, flip=True))
    assert sum(map(sum, seen)) / sum(map(len, seen)) == pytest.approx(0.5, abs=0.1)
    # Two batches in each of four epochs: no epoch repeats another.
    assert len(set(seen)) == len(seen) == 8


def test_learning_rate_rises_and_falls():
    rates = [rate_at(MNIST5K, step, 10) for step in range(1, 11)]
    assert rates == pytest.approx([0.05] + [0.1 * k / 9 for k in range(9, 0, -1)])


def test_every_step_has_its_rate(monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self: (seen.append(self.param_groups[0]["lr"]), step(self))[1],
    )
    fit(epochs=5)
    assert seen == [rate_at(replace(MNIST5K, epochs=5), number, 10) for number in range(1, 11)]


def test_saved_weights_read_back(tmp_path):
    network = build("cnn", 10, 1, seed=2)
    classifier = Classifier(network, 10, mean=[0.1307], std=[0.3081], trained_on=["a/train"]).eval()
    path = tmp_path / "net.safetensors"
    save(classifier, path, {"arch": "cnn", "recipe": {"epochs": 3}})
    sidecar = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert set(sidecar) == {
        "arch",
        "channels",
        "mean",
        "num_classes",
        "recipe",
        "sha256",
        "std",
        "trained_on",
    }
    assert sidecar["mean"] == [0.1307]
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["recipe"]["epochs"] == 3
    assert {value.dtype for value in safetensors.torch.load_file(path).values()} == {torch.float32}
    read = File(FileParams(path=str(path))).load(10, 1)
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    noise = Noise.of(0, "eval", range(4))
    assert torch.equal(read(images, noise), classifier(images, noise))
    assert read.trained_on == ("a/train",)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "net.safetensors",
        "net.safetensors.json",
    ]


def test_save_refuses_bad_places(tmp_path):
    classifier = Classifier(build("cnn", 10, 1), 10, mean=[0.5], std=[0.5])
    for path in (tmp_path / "net.pt", tmp_path / "none" / "net.safetensors"):
        with pytest.raises(BadInput, match=r"name a \.safetensors file"):
            save(classifier, path, {})
