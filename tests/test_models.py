import json
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from bench.data.npz import Npz, NpzParams
from bench.models import zoo
from bench.models.file import File, FileParams
from bench.models.nets import ARCHITECTURES, build
from bench.models.training import clean_accuracy
from bench.models.zoo import Zoo, ZooParams
from bench.noise import Noise
from bench.spec import canonical, parse, read_params
from tests.toys import message

LAYERS = [["conv", 1, 2, 4, 2, 1], ["relu"], ["flat"], ["lin", 32, 5], ["relu"], ["lin", 5, 3]]


def noise(n):
    return Noise.of(0, "eval", range(n))


# Networks -----------------------------------------------------------------------------------------


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet20-projection", 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        ("resnet56", 853_018),
        ("resnet56-projection", 853_018 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        ("cnn", 33_338 + 2 * 16 * 9),
        ("resnet18", 11_173_962),
        ("resnet50", 23_520_842),
        ("resnet110-projection", 1_730_714),
        ("wrn16-10", 17_116_634),
        ("wrn28-10", 36_479_194),
        ("wrn40-8", 35_748_314),
    ],
)
def test_parameter_counts(arch, parameters):
    assert count(build(arch, 10, 3)) == parameters


def test_projection_keys():
    extra = set(build("resnet20-projection", 10, 3).state_dict()) - set(
        build("resnet20", 10, 3).state_dict()
    )
    assert {key.rpartition(".")[0] for key in extra} == {
        "layer2.0.shortcut.0",
        "layer2.0.shortcut.1",
        "layer3.0.shortcut.0",
        "layer3.0.shortcut.1",
    }


@pytest.mark.parametrize(
    ("arch", "width"),
    [
        ("cnn", 64),
        ("resnet20", 64),
        ("resnet20-projection", 64),
        ("resnet18", 512),
        ("resnet50", 2048),
        ("wrn16-4", 256),
    ],
)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 9, 14)])
def test_features_and_logits(arch, width, shape):
    network = build(arch, 7, shape[0]).eval()
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    assert network.features(images).shape == (2, width)
    assert torch.equal(network(images), network.linear(network.features(images)))
    assert network(images).shape == (2, 7)


def test_padded_shortcut_by_hand():
    shortcut = build("resnet20", 10, 3).layer2[0].shortcut
    x = torch.arange(16 * 4 * 4, dtype=torch.float32).reshape(1, 16, 4, 4)
    out = shortcut(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[0, 8:24], x[0, :, ::2, ::2])
    assert not out[0, :8].any()
    assert not out[0, 24:].any()


@pytest.mark.parametrize(
    ("arch", "sides"),
    [("resnet18", (28, 14, 7, 4)), ("wrn16-4", (28, 14, 7)), ("resnet20", (28, 14, 7))],
)
def test_stages_halve_the_maps_and_the_stem_does_not(arch, sides):
    network = build(arch, 10, 1).eval()
    seen = []
    for stage in range(len(sides)):
        network.get_submodule(f"layer{stage + 1}").register_forward_hook(
            lambda *call: seen.append(call[2].shape[3])
        )
    network(torch.zeros(1, 1, 28, 28))
    assert tuple(seen) == sides


def test_wide_block_by_hand():
    block = build("wrn16-4", 10, 3).layer2[0].eval()
    x = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    # Fresh batch norms divide by the square root of 1 + 1e-5, and that alone.
    active = (x / (1 + 1e-5) ** 0.5).relu()
    inner = block.conv2((block.conv1(active) / (1 + 1e-5) ** 0.5).relu())
    assert torch.allclose(block(x), inner + block.shortcut(active), atol=1e-5)
    same = build("wrn16-4", 10, 3).layer2[1].eval()
    assert same.shortcut is None


def test_layer_list():
    network = build(LAYERS, 3, 1)
    assert sorted(network.state_dict()) == [
        f"{i}.{kind}" for i in (0, 3, 5) for kind in ("bias", "weight")
    ]
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert network.features(images).shape == (2, 5)
    assert torch.equal(network(images), network[5](network.features(images)))


def test_build_depends_on_its_seed_only():
    one, same, other = (build("cnn", 10, 1, seed).linear.weight for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_bad_architectures():
    assert "resnet20" in message(lambda: build("resnet-20", 10, 3))
    assert "unknown kind 'pool'" in message(lambda: build([["pool", 2]], 3, 1))
    assert "layer 0" in message(lambda: build([[]], 3, 1))
    assert "conv takes 5 sizes" in message(lambda: build([["conv", 1, 2]], 3, 1))
    assert "lin takes 2 sizes" in message(lambda: build([["lin", -1, 3]], 3, 1))
    assert "lin takes 2 sizes" in message(lambda: build([["lin", "1", 3]], 3, 1))
    assert "does not end in a linear layer" in message(lambda: build([["relu"]], 3, 1))
    assert "does not end in a linear layer" in message(lambda: build([], 3, 1))
    assert "takes 1 channels, but the images have 3" in message(lambda: build(LAYERS, 3, 3))
    assert "has 3 classes, but the data set has 10" in message(lambda: build(LAYERS, 10, 1))


def test_the_flat_network_knows_places():
    network = build("flat", 10, 3).eval()
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 16:24, 16:24] = images[1, :, 32:40, 32:40] = 1
    averages = network.body(images).mean((2, 3))
    assert torch.allclose(averages[0], averages[1], atol=1e-6), (
        "a global average forgets where the square is"
    )
    features = network.features(images)
    assert features.shape == (2, 64) and not torch.allclose(features[0], features[1], atol=1e-3)
    assert all(network(torch.zeros(1, 3, side, side)).shape == (1, 10) for side in (12, 25, 28, 32))


def test_all_architectures_are_built_without_moving_generators():
    # The autouse fixture of conftest.py compares the global generators before and after.
    for arch in ARCHITECTURES:
        build(arch, 2, 1)


# file: what is read -------------------------------------------------------------------------------


def write(tmp_path, name="net.safetensors", sidecar=None, arch="cnn", classes=10, channels=1):
    """A weights file of a fresh network; returns its path and state."""
    state = build(arch, classes, channels, seed=5).state_dict()
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    if sidecar is not None:
        (tmp_path / f"{name}.json").write_text(json.dumps(sidecar))
    return str(path), state


def load(path, classes=10, channels=1, **params):
    return File(FileParams(path=path, **params)).load(classes, channels)


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


# file: what is refused ----------------------------------------------------------------------------


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


# zoo ----------------------------------------------------------------------------------------------


def test_zoo_refuses_unknown_names():
    assert "Did you mean 'mnist5k-cnn'" in message(
        lambda: Zoo(ZooParams(name="mnist5k_cnn")).load(10, 1)
    )
    assert "unknown zoo classifier" in message(
        lambda: Zoo(ZooParams(name="../weights/mnist5k-cnn")).load(10, 1)
    )


def test_zoo_refuses_other_data_sets():
    assert "has 10 classes" in message(lambda: Zoo(ZooParams(name="mnist5k-cnn")).load(2, 1))
    assert "takes 1 channels" in message(lambda: Zoo(ZooParams(name="mnist5k-cnn")).load(10, 3))


def test_zoo_without_a_sidecar(tmp_path, monkeypatch):
    write(tmp_path, "lost.safetensors")
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    assert "reinstall" in message(lambda: Zoo(ZooParams(name="lost")).load(10, 1))


# Published networks -------------------------------------------------------------------------------


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
