"""The layouts in which trainers leave weights: which load, and what is said of the others."""

import argparse
import contextlib
import io
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from bench.errors import BadInput
from bench.models.nets import build
from bench.noise import isolated
from tests.models.helpers import load, noise
from tests.toys import message


def net():
    return build("cnn", 10, 1, seed=5)


STATE = net().state_dict()
OTHER = build("cnn", 10, 1, seed=6).state_dict()


def under(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def cast(kind):
    return {k: v.to(kind) if v.is_floating_point() else v for k, v in STATE.items()}


def averaged():
    model = torch.optim.swa_utils.AveragedModel(net())
    model.update_parameters(net())
    return model.state_dict()


def sgd():
    network = net()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(2, 1, 28, 28)).sum().backward()
    optimiser.step()
    return optimiser.state_dict()


LIGHTNING = {
    "epoch": 3,
    "global_step": 12,
    "pytorch-lightning_version": "2.5",
    "state_dict": under("model."),
    "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    "optimizer_states": [sgd()],
    "lr_schedulers": [],
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.1},
}
MEAN, STD = torch.tensor([0.25]), torch.tensor([0.5])

# Name of the layout, name of the file, what is saved.
LAYOUTS = [
    ("plain .pt", "net.pt", STATE),
    ("plain .pth", "net.pth", STATE),
    ("OrderedDict", "net.pt", OrderedDict(STATE)),
    ("no suffix", "net", STATE),
    (".PT", "net.PT", STATE),
    (".pkl", "net.pkl", STATE),
    (".model", "net.model", STATE),
    (".tar", "net.tar", STATE),
    (".ckpt", "net.ckpt", STATE),
    (".th", "net.th", STATE),
    ("module.", "net.pt", under("module.")),
    ("model.", "net.pt", under("model.")),
    ("net.", "net.pt", under("net.")),
    ("_orig_mod.", "net.pt", under("_orig_mod.")),
    ("module._orig_mod.", "net.pt", under("module._orig_mod.")),
    ("AveragedModel", "net.pt", averaged()),
    ("nest state_dict", "net.pt", {"state_dict": STATE, "epoch": 3}),
    ("nest model", "net.pt", {"model": STATE, "epoch": 3}),
    ("nest net", "net.pt", {"net": under("module."), "acc": 91.2, "epoch": 3}),
    ("nest model_state_dict", "net.pt", {"model_state_dict": STATE, "optimizer": sgd()}),
    ("Lightning", "epoch=3.ckpt", LIGHTNING),
    (
        "ImageNet example",
        "checkpoint.pth.tar",
        {
            "epoch": 90,
            "arch": "resnet18",
            "state_dict": under("module."),
            "best_acc1": torch.tensor(69.8),
            "optimizer": sgd(),
        },
    ),
    ("numpy scalar", "net.pt", {"state_dict": STATE, "acc": np.float64(91.2)}),
    ("Namespace", "net.pt", {"model": STATE, "args": argparse.Namespace(lr=0.1, arch="cnn")}),
    ("half", "net.pt", cast(torch.float16)),
    ("bfloat16", "net.pt", cast(torch.bfloat16)),
    ("double", "net.pt", cast(torch.float64)),
    (
        "non-contiguous",
        "net.pt",
        {k: v.transpose(0, 1).contiguous().transpose(0, 1) if v.dim() > 1 else v
         for k, v in STATE.items()},
    ),
    (
        "nn.Parameter",
        "net.pt",
        {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in STATE.items()},
    ),
    ("normalisation first", "net.pt", {"0.mean": MEAN, "0.std": STD, **under("1.")}),
    (
        "normalisation as buffers",
        "net.pt",
        {"mean": MEAN.reshape(1, 1, 1, 1), "std": STD.reshape(1, 1, 1, 1), **under("net.")},
    ),
    ("auxiliary head", "net.pt", {**STATE, "aux_head.weight": torch.zeros(10, 64)}),
    (
        "no counters",
        "net.pt",
        {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")},
    ),
]  # fmt: skip

# And what one line says of them.
REFUSED = [
    ("model + ema", "net.pt", {"model": STATE, "ema": OTHER}, ["model and ema", "key=model"]),
    ("whole model", "net.pt", net(), ["SmallCNN", "never unpickled", "state_dict()"]),
    (
        "NaN in a bias",
        "net.pt",
        {**STATE, "linear.bias": torch.full((10,), torch.nan)},
        ["'linear.bias'", "NaN"],
    ),
]


def answers(path, **params):
    classifier = load(str(path), arch="cnn", **params)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return classifier(images, noise(2)), images


def right(images, state=STATE):
    network = build("cnn", 10, 1)
    network.load_state_dict(state)
    return network.eval()(images)


@pytest.mark.parametrize(("layout", "name", "content"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_layout_loads(tmp_path, layout, name, content):
    torch.save(content, tmp_path / name)
    logits, images = answers(tmp_path / name)
    if "normalisation" in layout:
        images = (images - 0.25) / 0.5
    tolerance = {"half": 1e-2, "bfloat16": 1e-1}.get(layout, 0)
    expected = right(images)
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


def test_legacy_file_loads(tmp_path):
    torch.save(STATE, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    logits, images = answers(tmp_path / "net.pth")
    assert torch.equal(logits, right(images))


@pytest.mark.parametrize(
    ("layout", "name", "content", "words"), REFUSED, ids=[row[0] for row in REFUSED]
)
def test_layout_is_refused_in_one_line(tmp_path, layout, name, content, words):
    torch.save(content, tmp_path / name)
    text = message(lambda: answers(tmp_path / name))
    assert "\n" not in text
    assert all(word in text for word in [*words, str(tmp_path / name)]), text


def test_the_families_are_all_there():
    assert len(LAYOUTS) + 1 >= 30
    assert len(LAYOUTS) + 1 + len(REFUSED) >= 34


@pytest.mark.parametrize(
    ("content", "key", "state"),
    [
        ({"model": STATE, "ema": OTHER}, "model", STATE),
        ({"model": STATE, "ema": OTHER}, "ema", OTHER),
        ({"state_dict": {**under("model."), **under("teacher.", OTHER)}}, "teacher", OTHER),
        (
            {"state_dict": {**under("model."), **under("teacher.", OTHER)}},
            "state_dict/model",
            STATE,
        ),
    ],
)
def test_key_says_which(tmp_path, content, key, state):
    torch.save(content, tmp_path / "net.pt")
    logits, images = answers(tmp_path / "net.pt", key=key)
    assert torch.equal(logits, right(images, state))
    assert "say which with key=" in message(lambda: answers(tmp_path / "net.pt"))
    assert "no weights named 'gen'" in message(lambda: answers(tmp_path / "net.pt", key="gen"))


def test_a_part_that_was_compiled_alone(tmp_path):
    state = {key.replace("body.", "body._orig_mod."): value for key, value in STATE.items()}
    torch.save(state, tmp_path / "net.pt")
    logits, images = answers(tmp_path / "net.pt")
    assert torch.equal(logits, right(images))


def test_the_state_of_an_optimiser_is_no_network(tmp_path):
    """Some keep a tensor for each weight, by the same names."""
    torch.save({"net": STATE, "optimizer": {"momentum": OTHER}}, tmp_path / "net.pt")
    logits, images = answers(tmp_path / "net.pt")
    assert torch.equal(logits, right(images))


def test_two_names_of_the_same_weights_are_one(tmp_path):
    torch.save({"model": STATE, "best": {**STATE}}, tmp_path / "net.pt")
    logits, images = answers(tmp_path / "net.pt")
    assert torch.equal(logits, right(images))


def test_what_may_take_part_in_the_answer_is_not_left_out(tmp_path):
    """A denoiser before the network, a temperature behind it, a shortcut that the architecture
    lacks.
    """
    for beside in ("0.denoiser.weight", "2.temperature", "1.body.3.shortcut.weight"):
        torch.save({**under("1."), beside: torch.zeros(3)}, tmp_path / "net.pt")
        assert "surplus tensor" in message(lambda: answers(tmp_path / "net.pt"))
    torch.save({**under("model."), "criterion.weight": torch.ones(10)}, tmp_path / "net.pt")
    logits, images = answers(tmp_path / "net.pt")
    assert torch.equal(logits, right(images))


def test_the_message_names_prefix_and_keys(tmp_path):
    state = under("module.")
    state["module.head.bias"] = state.pop("module.linear.bias")
    torch.save(state, tmp_path / "net.pt")
    text = message(lambda: answers(tmp_path / "net.pt"))
    assert all(word in text for word in ("'linear.bias'", "prefix 'module.'", "'head.bias'")), text


def test_normalisation_must_agree(tmp_path):
    torch.save({"0.mean": MEAN, "0.std": STD, **under("1.")}, tmp_path / "net.pt")
    logits, images = answers(tmp_path / "net.pt", mean=(0.25,), std=(0.5,))
    assert torch.equal(logits, right((images - 0.25) / 0.5))
    assert "drop one" in message(lambda: answers(tmp_path / "net.pt", mean=(0.3,), std=(0.5,)))
    torch.save({"0.mean": 255 * MEAN, "0.std": 255 * STD, **under("1.")}, tmp_path / "net.pt")
    assert "not of pixels in [0, 1]" in message(lambda: answers(tmp_path / "net.pt"))


BIAS = torch.zeros(10)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (BIAS.int(), "int32"),
        (BIAS.bool(), "bool"),
        (BIAS.to(torch.complex64), "complex64"),
        (BIAS.to_sparse(), "sparse"),
        (torch.zeros(10, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(BIAS, 0.1, 0, torch.qint8), "quantised"),
        (torch.full((10,), torch.inf), "infinite"),
        (torch.zeros(1).expand(10**12), "has shape (1000000000000,)"),
    ],
)
def test_weights_that_are_no_numbers(tmp_path, value, word):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = value() if callable(value) else value
        torch.save({**STATE, "linear.bias": content}, tmp_path / "net.pt")
    text = message(lambda: answers(tmp_path / "net.pt"))
    assert word in text and "'linear.bias'" in text and "\n" not in text


class Opaque:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    torch.save({"state_dict": STATE, "x": Opaque(tmp_path / "made")}, tmp_path / "net.pt")
    assert "never unpickled" in message(lambda: answers(tmp_path / "net.pt"))
    assert not (tmp_path / "made").exists()


def test_torchscript_is_named(tmp_path):
    with isolated(0), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), tmp_path / "net.pt")
    assert "TorchScript archive" in message(lambda: answers(tmp_path / "net.pt"))


def test_other_names_of_the_cifar_resnets(tmp_path):
    state = build("resnet8-projection", 10, 3, seed=5).state_dict()
    renamed = {
        k.replace("linear.", "fc.").replace(".shortcut.", ".downsample."): v
        for k, v in state.items()
    }
    torch.save({"state_dict": under("module.", renamed)}, tmp_path / "net.pt")
    loaded = load(str(tmp_path / "net.pt"), channels=3, arch="resnet8-projection").network
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_real_weights_in_the_layout_of_the_imagenet_example(real_data, tmp_path):
    plain = str(real_data / "models" / "cifar_resnet20.safetensors")
    state = safetensors.torch.load_file(plain)
    renamed = {f"module.{key.replace('linear.', 'fc.')}": value for key, value in state.items()}
    content = {"epoch": 200, "state_dict": renamed, "best_prec1": np.float64(91.6)}
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    normalised = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    path = str(tmp_path / "checkpoint.pth.tar")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = (
        load(plain, channels=3),
        load(path, channels=3, arch="resnet20", **normalised),
    )
    assert torch.equal(one(images, noise(4)), other(images, noise(4)))


def saved(**options):
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE, "acc": np.float64(1)}, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("net.pt", saved()),
        ("legacy.pth", saved(_use_new_zipfile_serialization=False)),
        ("net.safetensors", safetensors.torch.save(STATE)),
        ("net", safetensors.torch.save(STATE)),
    ],
)
def test_mangled_files_load_or_are_refused(tmp_path, name, content):
    generator = np.random.default_rng(0)
    for _ in range(60):
        mangled = bytearray(content)
        reach = min(len(mangled), int(generator.choice([200, 3000, 10**9])))
        for place in generator.integers(0, reach, size=int(generator.choice([1, 20]))):
            mangled[place] = int(generator.integers(256))
        if generator.random() < 0.3:
            del mangled[int(generator.integers(len(mangled))) :]
        (tmp_path / name).write_bytes(mangled)
        with contextlib.suppress(BadInput):
            answers(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        None,
        3,
        [STATE],
        {},
        {1: torch.zeros(2)},
        {"": torch.zeros(1)},
        {key: torch.tensor(0.0) for key in STATE},
        {"0.mean": torch.zeros(1), "0.std": torch.zeros(1), **under("1.")},
        {"0.mean": torch.zeros(1).to_sparse(), "0.std": torch.ones(1), **under("1.")},
        {"0.mean": torch.zeros(1, device="meta"), "0.std": torch.ones(1), **under("1.")},
        {"mean": torch.zeros(0), "std": torch.zeros(0), **STATE},
        {**STATE, "a\nb": torch.zeros(1)},
        {f"p{place}.{key}": value for place in range(40) for key, value in STATE.items()},
    ],
)
def test_odd_contents_are_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    assert "\n" not in message(lambda: answers(tmp_path / "net.pt"))


def test_a_zip_that_unpacks_to_more_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**8)
    assert "would unpack to 100,000,000 bytes" in message(lambda: answers(tmp_path / "net.pt"))
