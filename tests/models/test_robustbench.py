"""`robustbench:`: its states without the package, its models where it is installed."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from bench.errors import BadInput
from bench.models import robustbench as rb
from bench.models.robustbench import Robustbench, RobustbenchParams
from bench.noise import isolated
from tests.models.helpers import IMAGES, noise
from tests.toys import message


def test_missing_robustbench_is_said(monkeypatch):
    rb.model_zoo.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = Robustbench(RobustbenchParams(name="Wong2020Fast"))
    assert "pip install 'adversarial-bench[zoo]'" in message(lambda: source.load(10, 3))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Net()


with isolated(0):
    PLAIN, WRAPPED = Net(), Wrapped()


STATE = {"conv.weight": torch.ones(2, 3, 3, 3), "conv.bias": torch.ones(2)}


def prefixed(prefix):
    return {prefix + key: value for key, value in STATE.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("network", [PLAIN, WRAPPED])
def test_prefixes_are_fitted_and_missing_constants_kept(network, prefix):
    state = rb.fitted(prefixed(prefix), network)
    assert set(state) == set(network.state_dict())
    network.load_state_dict(state)
    assert torch.equal(
        state[next(key for key in state if key.endswith("conv.bias"))], STATE["conv.bias"]
    )
    assert float(state[next(key for key in state if key.endswith("mu"))].mean()) == 0.5


def test_leftovers_of_training_go_and_other_surplus_stays():
    state = rb.fitted({**STATE, "conv.scores": torch.ones(1), "more": torch.ones(1)}, PLAIN)
    assert "conv.scores" not in state and "more" in state


def test_constants_of_the_checkpoint_come_first():
    assert float(rb.fitted({**STATE, "mu": torch.zeros(1, 3, 1, 1)}, PLAIN)["mu"].sum()) == 0


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"last": s, "best": {}}],
)
def test_checkpoint_forms(wrap, tmp_path):
    assert rb.checkpoint_state(wrap(STATE), tmp_path) == STATE


@pytest.mark.parametrize("content", [[], {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_other_checkpoints_are_refused(content, tmp_path):
    with pytest.raises(BadInput, match="no state dict"):
        rb.checkpoint_state(content, tmp_path)


@pytest.fixture(scope="module")
def board():
    for package in ("robustbench", "timm", "torchvision"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return rb.board("cifar10", "Linf")


def test_the_package_is_left_as_if_never_imported(board):
    assert "robustbench" not in sys.modules
    assert len(board) > 50


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3}],
)
def test_a_robustbench_model_from_the_data_root(board, tmp_path, wrap):
    network = rb.build_network("Wong2020Fast", board["Wong2020Fast"]).eval()
    with isolated(2):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.05)
    path = tmp_path / "root" / "robustbench" / "cifar10" / "Linf" / "Wong2020Fast.pt"
    path.parent.mkdir(parents=True)
    # The published file lacks the normalisation.
    torch.save(
        wrap(
            {
                key: value
                for key, value in network.state_dict().items()
                if key not in ("mu", "sigma")
            }
        ),
        path,
    )
    classifier = Robustbench(RobustbenchParams(name="Wong2020Fast")).load(10, 3)
    assert torch.equal(classifier(IMAGES, noise()), network(IMAGES))
    assert classifier.trained_on == ("cifar10/train",)
    path.write_bytes(path.read_bytes() + b" ")
    assert "when it was first used" in message(
        lambda: Robustbench(RobustbenchParams(name="Wong2020Fast")).load(10, 3)
    )


def test_robustbench_refuses(board, tmp_path):
    def load(name, classes=10, channels=3, **params):
        return message(
            lambda: Robustbench(RobustbenchParams(name=name, **params)).load(classes, channels)
        )

    assert "Did you mean 'Wong2020Fast'" in load("Wong2020")
    assert "unknown robustbench model" in load(
        "Wong2020Fast", dataset="imagenet", threat="L2", classes=1000
    )
    assert "has 10 classes" in load("Wong2020Fast", classes=100)
    assert "takes 3 channels" in load("Wong2020Fast", channels=1)
    assert "several files" in load("Bai2024MixedNUTS")
    text = load("Wong2020Fast")
    assert str(tmp_path / "root" / "robustbench" / "cifar10" / "Linf" / "Wong2020Fast.pt") in text
    assert board["Wong2020Fast"]["gdrive_id"] in text and "BENCH_OFFLINE" in text


@pytest.mark.slow
def test_most_architectures_build(board):
    built = 0
    for name, entry in board.items():
        try:
            rb.build_network(name, entry)
        except BadInput as refused:
            print(refused)
        else:
            built += 1
    print(f"{built} of {len(board)} cifar10 Linf architectures build")
    assert built >= 70
