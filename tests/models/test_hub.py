"""`timm:` and `hf:`, with weights made here; skipped where the packages are missing."""

import json
import sys

import pytest
import safetensors.torch
import torch

from bench.models import hub
from bench.models.hub import Hf, HfParams, Timm, TimmParams
from bench.noise import isolated
from tests.models.helpers import IMAGES, noise
from tests.toys import message


@pytest.mark.parametrize("source", [Timm(TimmParams(name="resnet18")), Hf(HfParams(repo="me/net"))])
def test_a_missing_package_is_said(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'adversarial-bench[zoo]'" in message(lambda: source.load(10, 3))


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
        lambda: hub.from_hub("a/b", "model.safetensors", None, "weights=PATH")
    )


def test_timm_takes_a_normalisation_of_yours(made, tmp_path):
    torch.save({"state_dict": made.state_dict()}, tmp_path / "w.tar")
    own = {"weights": str(tmp_path / "w.tar"), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    classifier = Timm(TimmParams(name=NAME, **own)).load(10, 3)
    mean, std = (torch.tensor(own[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(classifier(IMAGES, noise()), made((IMAGES - mean) / std))
    del own["std"]
    assert "belong together" in message(lambda: Timm(TimmParams(name=NAME, **own)).load(10, 3))


def test_timm_on_grey_images(timm, made, tmp_path):
    with isolated(1):
        grey = timm.create_model(NAME, num_classes=10, in_chans=1).eval()
    torch.save(grey.state_dict(), tmp_path / "grey.pt")
    torch.save(made.state_dict(), tmp_path / "colour.pt")
    images = IMAGES[:, :1]
    params = {"name": NAME, "weights": str(tmp_path / "grey.pt")}
    text = message(lambda: Timm(TimmParams(**params)).load(10, 1))
    assert "give mean= and std= with 1" in text
    one = Timm(TimmParams(**params, mean=(0.5,), std=(0.25,))).load(10, 1)
    assert torch.equal(one(images, noise()), grey((images - 0.5) / 0.25))
    # A network of colour images sees a grey one in each of its channels.
    params["weights"] = str(tmp_path / "colour.pt")
    three = Timm(TimmParams(**params, in_chans=3)).load(10, 1)
    cfg = made.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(three(images, noise()), made((images.expand(-1, 3, -1, -1) - mean) / std))
    assert "takes 1 channels, but the images have 3" in message(
        lambda: Timm(TimmParams(**params, in_chans=1)).load(10, 3)
    )
