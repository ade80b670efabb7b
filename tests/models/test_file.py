"""Weights from a file: what is read, and what is refused."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from bench.data.npz import Npz, NpzParams
from bench.models.file import FileParams
from bench.models.nets import build
from bench.models.training import clean_accuracy
from bench.spec import canonical, parse, read_params
from tests.models.helpers import LAYERS, count, load, noise, write
from tests.toys import message


def test_file_spec_round_trip():
    text = "file:w.pt,arch=resnet20,mean=0.49+0.48+0.45,std=0.23+0.22+0.21"
    params = read_params(FileParams, parse(text), "classifier", "path")
    assert params.mean == (0.49, 0.48, 0.45)
    assert canonical("file", params, "path") == text


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.pth"])
def test_file_reads_each_format(tmp_path, name):
    path, state = write(tmp_path, name)
    classifier = load(path, arch="cnn")
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not classifier.normalised
    assert classifier.trained_on == ()
    assert all(
        torch.equal(value, state[key]) for key, value in classifier.network.state_dict().items()
    )


def test_file_needs_no_batch_counters(tmp_path):
    path, state = write(tmp_path)
    kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    safetensors.torch.save_file(kept, path)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    network = build("cnn", 10, 1)
    network.load_state_dict(state)
    assert torch.equal(load(path, arch="cnn")(images, noise(2)), network.eval()(images))


def test_file_normalises(tmp_path):
    path, _ = write(tmp_path)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    classifier = load(path, arch="cnn", mean=(0.25,), std=(0.5,))
    assert torch.equal(classifier(images, noise(2)), classifier.network((images - 0.25) / 0.5))


def test_file_sidecar_comes_first(tmp_path):
    sidecar = {"arch": "cnn", "mean": [0.5], "std": [0.25], "trained_on": ["a/train"], "other": 1}
    path, _ = write(tmp_path, sidecar=sidecar)
    (tmp_path / "MANIFEST.json").write_text(
        json.dumps([{"file": "net.safetensors", "arch": "resnet20"}])
    )
    classifier = load(path)
    assert classifier.trained_on == ("a/train",)
    assert classifier.mean.flatten().tolist() == [0.5]


def test_file_manifest_with_layers(tmp_path):
    entry = {
        "file": "net.safetensors",
        "arch": LAYERS,
        "dataset": "mnist",
        "mean": [0.0],
        "std": [1.0],
    }
    path, _ = write(tmp_path, arch=LAYERS, classes=3)
    (tmp_path / "MANIFEST.json").write_text(json.dumps([{"file": "another"}, entry]))
    assert load(path, classes=3).trained_on == ("mnist/train",)


def test_file_without_file(tmp_path):
    assert "no such file" in message(lambda: load(str(tmp_path / "none.pt"), arch="cnn"))


def test_file_without_description(tmp_path):
    path, _ = write(tmp_path)
    assert "nothing says the architecture" in message(lambda: load(path))
    (tmp_path / "MANIFEST.json").write_text("[]")
    assert "nothing says the architecture" in message(lambda: load(path))


def test_file_with_two_descriptions(tmp_path):
    path, _ = write(tmp_path, sidecar={"arch": "cnn"})
    assert "mean= was given" in message(lambda: load(path, mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not readable JSON"),
        ("[]", "cannot be used: content"),
        ("{}", "arch: field required"),
        ('{"arch": 3}', "cannot be used: arch"),
        ('{"arch": "cnn", "mean": ["x"]}', "cannot be used: mean"),
        ('{"arch": "cnn", "mean": [NaN], "std": [1]}', "cannot be used: mean"),
        ('{"arch": "cnn", "mean": [0.5]}', "give both"),
        ('{"arch": "cnn", "mean": [0.5], "std": [0]}', "positive std"),
        (
            '{"arch": "cnn", "mean": [0, 0, 0], "std": [1, 1, 1]}',
            "3 numbers, but the images have 1 channels",
        ),
        ('{"arch": "unet"}', "unknown architecture 'unet'"),
        ('{"arch": "cnn", "sha256": "00ff"}', "has SHA-256"),
    ],
)
def test_file_with_bad_sidecar(tmp_path, content, expected):
    path, _ = write(tmp_path)
    (tmp_path / "net.safetensors.json").write_text(content)
    assert expected in message(lambda: load(path))


def test_file_names_both_digests(tmp_path):
    path, _ = write(tmp_path, sidecar={"arch": "cnn", "sha256": "0" * 64})
    text = message(lambda: load(path))
    assert "0" * 64 in text
    assert path in text


def test_file_with_bad_manifest(tmp_path):
    path, _ = write(tmp_path)
    (tmp_path / "MANIFEST.json").write_text("{}")
    assert "not a list of entries" in message(lambda: load(path))
    (tmp_path / "MANIFEST.json").write_text('[{"file": "net.safetensors"}]')
    assert "MANIFEST.json cannot be used: arch" in message(lambda: load(path))


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, -1])
def test_file_truncated(tmp_path, name, keep):
    path, _ = write(tmp_path, name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(
        content[: int(keep * len(content)) if isinstance(keep, float) else keep]
    )
    assert path in message(lambda: load(path, arch="cnn"))


class Opaque(nn.Linear):
    pass


@pytest.mark.parametrize(
    "content", [Opaque(2, 2), {"state_dict": OrderedDict(), "epoch": 3}, [torch.zeros(2)], 7]
)
def test_file_never_unpickles(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    assert "export the state dict to safetensors" in message(
        lambda: load(str(tmp_path / "net.pt"), arch="cnn")
    )


def test_file_of_unknown_format(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"0")
    assert "neither .safetensors nor .pt" in message(
        lambda: load(str(tmp_path / "net.onnx"), arch="cnn")
    )


def test_file_with_other_tensors(tmp_path):
    path, state = write(tmp_path)
    cases = {
        "lacks the tensor 'body.1.bias' (1 in all)": {
            k: v for k, v in state.items() if k != "body.1.bias"
        },
        "surplus tensor 'extra' (1 in all)": {**state, "extra": torch.zeros(1)},
        "'body.3.weight'": {**state, "body.3.weight": torch.zeros(32, 16, 5, 5)},
    }
    for expected, content in cases.items():
        safetensors.torch.save_file(content, path)
        assert expected in message(lambda: load(path, arch="cnn"))


def test_file_for_another_data_set(tmp_path):
    path, _ = write(tmp_path)
    assert "takes 1 channels, but the images have 3" in message(
        lambda: load(path, channels=3, arch="cnn")
    )
    assert "has 10 classes, but the data set has 7" in message(
        lambda: load(path, classes=7, arch="cnn")
    )
    assert "lacks the tensor" in message(lambda: load(path, arch="resnet20"))


@pytest.mark.parametrize(
    ("name", "data", "right"),
    [
        ("cifar_resnet20", "cifar10_exact", 932),
        ("cifar_kw_wide", "cifar10_exact", 647),
        ("cifar_cnn_a_adv", "cifar10_exact", 678),
        ("mnist_kw_0.1", "mnist", 9820),
    ],
)
def test_published_accuracy(real_data, name, data, right):
    images = Npz(NpzParams(path=str(real_data / "data" / f"{data}.npz"))).test()
    classifier = load(
        str(real_data / "models" / f"{name}.safetensors"), channels=images.images.shape[1]
    )
    assert round(clean_accuracy(classifier, images) * len(images)) == right
    assert classifier.trained_on == (("mnist/train",) if data == "mnist" else ("cifar10/train",))


def test_published_resnet20_has_our_keys_and_size(real_data):
    state = safetensors.torch.load_file(real_data / "models" / "cifar_resnet20.safetensors")
    network = build("resnet20", 10, 3)
    expected = {
        key: value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert set(state) == set(expected)
    running = sum(int(np.prod(value.shape)) for key, value in state.items() if "running" in key)
    assert sum(value.numel() for value in state.values()) - running == count(network) == 269_722


def test_published_generator_is_no_classifier(real_data):
    path = str(real_data / "models" / "mnist_ddpm_franfee.safetensors")
    assert "unknown architecture 'unet'" in message(lambda: load(path))
