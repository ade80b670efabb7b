"""timm:, hf: and robustbench:, with weights made here; skipped where the packages are missing."""

import importlib.util
import json
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from bench.errors import BadInput
from bench.models import hub
from bench.models import robustbench as rb
from bench.models.hub import Hf, HfParams, Timm, TimmParams
from bench.models.robustbench import Robustbench, RobustbenchParams
from bench.noise import Noise, isolated
from tests.toys import message

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty data root and no network."""
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("BENCH_OFFLINE", "1")


def noise(n=2):
    return Noise.of(0, "eval", range(n))


# Without the packages -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Timm(TimmParams(name="resnet18")), Hf(HfParams(repo="me/net"))])
def test_a_missing_package_is_said(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'adversarial-bench[zoo]'" in message(lambda: source.load(10, 3))


def test_missing_robustbench_is_said(monkeypatch):
    rb._zoo.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = Robustbench(RobustbenchParams(name="Wong2020Fast"))
    assert "pip install 'adversarial-bench[zoo]'" in message(lambda: source.load(10, 3))


# timm and hf --------------------------------------------------------------------------------------

NAME = "test_efficientnet"


@pytest.fixture(scope="module")
def timm():
    with isolated(0):
        return pytest.importorskip("timm")


@pytest.fixture
def made(timm):
    with isolated(1):
        return timm.create_model(NAME, num_classes=10, in_chans=3).eval()


def folder(path, network, **changes):
    path.mkdir()
    safetensors.torch.save_file(network.state_dict(), path / "model.safetensors")
    cfg = {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.25, 0.5],
        "std": [0.5, 0.5, 0.25],
        "num_classes": 10,
    }
    config = {"architecture": NAME, "num_classes": 10, "pretrained_cfg": cfg, **changes}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_timm_with_weights_of_yours(made, tmp_path):
    for name, write in (("w.safetensors", safetensors.torch.save_file), ("w.pt", torch.save)):
        write(made.state_dict(), tmp_path / name)
        classifier = Timm(TimmParams(name=NAME, weights=str(tmp_path / name))).load(10, 3)
        cfg = made.pretrained_cfg
        mean, std = (torch.tensor(cfg[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        assert torch.equal(classifier(IMAGES, noise()), made((IMAGES - mean) / std))
        assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())


def test_timm_refuses(made, tmp_path):
    assert "unknown timm model" in message(lambda: Timm(TimmParams(name="resnet_18")).load(10, 3))
    assert "no such file" in message(
        lambda: Timm(TimmParams(name=NAME, weights="none.pt")).load(10, 3)
    )
    # Published weights have a head of their own; another one would be untrained.
    assert "has 1000 classes" in message(lambda: Timm(TimmParams(name="resnet18")).load(10, 3))
    assert "takes 3 channels" in message(lambda: Timm(TimmParams(name="resnet18")).load(1000, 1))
    pytest.importorskip("huggingface_hub")
    text = message(lambda: Timm(TimmParams(name="resnet18")).load(1000, 3))
    assert "BENCH_OFFLINE is set" in text and "weights=PATH" in text


def test_a_local_repository(made, tmp_path):
    classifier = Hf(HfParams(repo=folder(tmp_path / "r", made))).load(10, 3)
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in ((0.5, 0.25, 0.5), (0.5, 0.5, 0.25))
    )
    assert torch.equal(classifier(IMAGES, noise()), made((IMAGES - mean) / std))


def test_a_repository_of_the_hub(made, tmp_path, monkeypatch):
    package = pytest.importorskip("huggingface_hub")
    place = folder(tmp_path / "r", made)
    asked = []

    def download(repo, file, *, revision, local_files_only):
        asked.append((repo, file, revision, local_files_only))
        return f"{place}/{file}"

    monkeypatch.setattr(package, "hf_hub_download", download)
    Hf(HfParams(repo="me/net", revision="abc")).load(10, 3)
    assert asked == [("me/net", file, "abc", True) for file in ("config.json", "model.safetensors")]


def test_hf_refuses(made, tmp_path):
    place = folder(tmp_path / "r", made)
    assert "has 10 classes" in message(lambda: Hf(HfParams(repo=place)).load(2, 3))
    assert "takes 3 channels" in message(lambda: Hf(HfParams(repo=place)).load(10, 1))
    assert "no such file" in message(
        lambda: Hf(HfParams(repo=place, file="none.safetensors")).load(10, 3)
    )
    reserved = folder(tmp_path / "s", made, model_args={"checkpoint_path": "evil.pt"})
    assert "'checkpoint_path'" in message(lambda: Hf(HfParams(repo=reserved)).load(10, 3))
    hidden = folder(tmp_path / "h", made, architecture="hf-hub:other/net")
    assert "unknown timm model" in message(lambda: Hf(HfParams(repo=hidden)).load(10, 3))
    other = folder(tmp_path / "o", made, pretrained_cfg={"mean": [0.5]})
    assert "not in timm's layout" in message(lambda: Hf(HfParams(repo=other)).load(10, 3))
    (tmp_path / "o" / "config.json").write_text("[")
    assert "not readable JSON" in message(lambda: Hf(HfParams(repo=other)).load(10, 3))
    pytest.importorskip("huggingface_hub")
    assert "BENCH_OFFLINE is set" in message(
        lambda: Hf(HfParams(repo="nobody/nothing")).load(10, 3)
    )


def test_hub_failures_are_one_line(monkeypatch):
    package = pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("BENCH_OFFLINE")

    def fail(*_, **__):
        raise OSError("no route\nmuch more")

    monkeypatch.setattr(package, "hf_hub_download", fail)
    assert "(OSError: no route)" in message(
        lambda: hub._from_hub("a/b", "model.safetensors", None, "weights=PATH")
    )


# RobustBench: states, without the package ---------------------------------------------------------


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
    found = rb.fitted(prefixed(prefix), network)
    assert set(found) == set(network.state_dict())
    network.load_state_dict(found)
    assert torch.equal(
        found[next(key for key in found if key.endswith("conv.bias"))], STATE["conv.bias"]
    )
    assert float(found[next(key for key in found if key.endswith("mu"))].mean()) == 0.5


def test_leftovers_of_training_go_and_other_surplus_stays():
    found = rb.fitted({**STATE, "conv.scores": torch.ones(1), "more": torch.ones(1)}, PLAIN)
    assert "conv.scores" not in found and "more" in found


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


# RobustBench: the package -------------------------------------------------------------------------


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
