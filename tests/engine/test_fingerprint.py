"""What a module is, as a hash."""

import copy
import importlib
import logging
import os
import pkgutil
import subprocess
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import bench_attacks
import bench_defenses
import numpy as np
import pytest
import torch
from torch import nn

import bench
from bench.diffusion.gaussian import Gaussian
from bench.diffusion.unet import build_unet
from bench.engine.fingerprint import fingerprint, weights_sha256
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.models.classifier import Classifier
from bench.models.nets import FlatCNN, SmallCNN, build
from bench.noise import isolated
from bench.results.store import read_folder
from tests import toy_model, toy_plugins  # noqa: F401
from tests.helpers import ROOT

# Classes of ours: by name and version -------------------------------------------------------------


def networks_of(*packages):
    """Every class of a network that these packages define."""
    for package in packages:
        for place in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if place.name.endswith("__main__"):
                continue
            module = importlib.import_module(place.name)
            for kind in vars(module).values():
                is_network = isinstance(kind, type) and issubclass(kind, nn.Module)
                if is_network and kind.__module__ == place.name:
                    yield kind


@pytest.mark.parametrize("home", ["bench.models.elsewhere", "bench_defenses.networks"])
def test_moving_a_class_of_ours_keeps_the_fingerprint(monkeypatch, home):
    network = build("cnn", 10, 1)
    before = fingerprint(network)
    monkeypatch.setattr(SmallCNN, "__module__", home)
    assert fingerprint(network) == before


def test_a_class_of_ours_is_known_by_its_name_and_version(monkeypatch):
    network, generator = build("cnn", 10, 1), Gaussian(Gaussian.Params()).load()
    before, before_generator = fingerprint(network), fingerprint(generator)
    monkeypatch.setattr(SmallCNN, "version", 2)
    assert fingerprint(network) != before
    monkeypatch.setattr(SmallCNN, "version", 1)
    assert fingerprint(network) == before
    monkeypatch.setattr(type(generator), "version", 2)
    assert fingerprint(generator) != before_generator
    network.__class__ = type("LargeCNN", (SmallCNN,), {"__module__": SmallCNN.__module__})
    assert fingerprint(network) != before


def test_the_code_of_a_class_of_ours_is_not_read(monkeypatch):
    network = build("cnn", 10, 1)
    before = fingerprint(network)
    monkeypatch.setattr(SmallCNN, "forward", FlatCNN.forward)
    assert fingerprint(network) == before


def test_no_two_classes_of_ours_share_a_name():
    kinds = list(networks_of(bench, bench_defenses, bench_attacks))
    names = [kind.__qualname__ for kind in kinds]
    assert len(names) > 40 and len(set(names)) == len(names)


def test_every_architecture_says_its_version():
    from bench import diffusion, models

    kinds = list(networks_of(models, diffusion))
    assert SmallCNN in kinds and len(kinds) == 15
    assert all(vars(kind)["version"] == 1 for kind in kinds)


# Classes of a user: by their code -----------------------------------------------------------------

SOURCE = """
from torch import nn


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, images):
        return {}self.linear(images.flatten(1))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A function that writes a user's file and returns its network, with the same weights."""

    def load(folder, sign="", name="user_model"):
        path = tmp_path / folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SOURCE.format(sign))
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        with isolated(0):
            return module.Mine()

    return load


def test_a_users_class_is_hashed_by_its_code(mine):
    one = mine("a")
    prints = [fingerprint(one), fingerprint(mine("b")), fingerprint(mine("c", "-"))]
    assert prints[0] == prints[1] != prints[2]


def test_a_version_of_a_users_class_does_not_hide_other_code(mine):
    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    outputs, prints = [], []
    for folder, sign in (("a", ""), ("b", "-")):
        network = mine(folder, sign)
        type(network).version = 1
        outputs.append(network(images))
        prints.append(fingerprint(network))
    assert torch.equal(outputs[0], -outputs[1]) and prints[0] != prints[1]


def test_a_users_subclass_of_ours_is_the_users():
    class Smaller(SmallCNN):
        """In a module of the user's."""

    assert not Smaller.__module__.startswith("bench")
    ours, users = build("cnn", 10, 1), build("cnn", 10, 1)
    users.__class__ = Smaller
    assert fingerprint(ours) != fingerprint(users)


# Networks of diffusers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusion():
    """The small network in the layout of diffusers; skips where the package is missing."""
    return importlib.import_module("tests.diffusion.helpers")


@pytest.fixture(scope="module")
def network(diffusion):
    return build_unet(diffusion.CONFIG, seed=1).eval()


def test_a_fingerprint_is_the_model(network, diffusion, tmp_path):
    folder = diffusion.written(tmp_path / "m", network, card={"trained_steps": 90})
    one = fingerprint(diffusion.loaded(folder))
    assert one == fingerprint(diffusion.loaded(folder))
    variants = {
        "weights": diffusion.written(
            tmp_path / "w", build_unet(diffusion.CONFIG, seed=2), card={"trained_steps": 90}
        ),
        "schedule": diffusion.written(
            tmp_path / "s", network, schedule={"beta_end": 0.051}, card={"trained_steps": 90}
        ),
        "trained range": diffusion.written(tmp_path / "r", network, card={"trained_steps": 91}),
        "what the weights do": diffusion.written(
            tmp_path / "c", network, config={"flip_sin_to_cos": False}, card={"trained_steps": 90}
        ),
    }
    others = {fingerprint(diffusion.loaded(folder)) for folder in variants.values()}
    assert len({one, *others}) == 1 + len(variants)


def test_a_fingerprint_outlives_a_version_of_diffusers(network, monkeypatch):
    one = fingerprint(network)
    for module in network.modules():
        if type(module).__module__.startswith("diffusers"):
            monkeypatch.setattr(module, "a_new_attribute", 3, raising=False)
    # An older version without the parameters that were added since.
    older = {
        key: value
        for key, value in network.config.items()
        if key not in ("num_train_timesteps", "add_attention")
    }
    other = {
        **older,
        "_diffusers_version": "9.9",
        "_use_default_values": ["dropout"],
        "sample_size": (8, 8),
    }
    monkeypatch.setattr(
        network, "_internal_dict", type(network.config)({**other, "sample_size": 8})
    )
    monkeypatch.setattr("inspect.getsource", lambda kind: "another source")
    assert fingerprint(network) == one
    monkeypatch.setattr(network, "_internal_dict", type(network.config)(other))
    assert fingerprint(network) != one


def test_a_fingerprint_sees_what_others_put_into_the_network(network):
    class Processor:
        def __call__(self, attention, states, *_, **__):
            return states

    one, attention = fingerprint(network), network.mid_block.attentions[0]
    before = attention.processor
    attention.set_processor(Processor())
    two = fingerprint(network)
    attention.set_processor(before)
    handle = network.mid_block.register_forward_hook(lambda module, inputs, output: 2 * output)
    three = fingerprint(network)
    handle.remove()
    assert len({one, two, three}) == 3 and fingerprint(network) == one


# What any model holds -----------------------------------------------------------------------------


def test_the_shipped_classifiers_fingerprint_is_the_one_in_stored_records():
    (evaluation,) = plan(Request(defenses=("undefended",), attacks=("pgd",), n=1))
    stored = [
        r
        for r in read_folder(ROOT / "leaderboards/records")
        if r.title["classifier"] == "zoo:mnist5k-cnn"
    ]
    assert {record.identity["classifier"]["sha256"] for record in stored} == {
        evaluation.setup.classifier_sha
    }


def test_plain_attributes_and_closures_are_part_of_a_models_identity(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, factor) -> None:
            super().__init__()
            self.inner, self.factor = toy_model.make_model(), factor

        def forward(self, images):
            return self.inner(images) * self.factor

    kept = {"dataset": "toy:n=20", "attacks": "null", "device": "cpu", "out": tmp_path}
    values = [
        bench.evaluate(Scaled(f), **kept).records[0].metrics.clean.mean.value for f in (1.0, -1.0)
    ]
    assert values == [1.0, 0.0]
    with isolated(0):
        net = nn.Linear(1, 1)
    net.pick = lambda x: x * 2
    other = copy.deepcopy(net)
    other.pick = lambda x: x * 3
    assert fingerprint(net) != fingerprint(other)
    assert fingerprint(net) == fingerprint(copy.deepcopy(net))


def closure(factor):
    return lambda x: [y * factor for y in (lambda: x)()]


@pytest.mark.parametrize(
    "held",
    [
        torch.tensor,
        np.array,
        lambda value: {"scale": value},
        lambda value: [torch.tensor(value)],
        lambda value: partial(torch.clamp, min=value),
        lambda value: SimpleNamespace(scale=value, logger=logging.getLogger()),
        lambda value: [
            nn.Linear(1, 1)
            .requires_grad_(False)
            .apply(lambda net: net.weight.fill_(value) + net.bias.fill_(0))
        ],
        closure,
    ],
    ids=["tensor", "array", "dict", "list", "partial", "object", "net", "closure"],
)
@pytest.mark.parametrize("name", ["scale", "_scale"])
def test_whatever_a_model_holds_is_part_of_its_identity(held, name):
    def made(value):
        with isolated(0):
            net = toy_model.make_model()
            setattr(net, name, held(value))
            net.me = [net]
        return fingerprint(net)

    assert made(1.0) == made(1.0) != made(2.0)


def test_a_models_hooks_are_part_of_its_identity():
    def made(factor):
        net = toy_model.make_model()
        net.register_forward_hook(lambda module, inputs, output: output * factor)
        return fingerprint(net)

    assert made(1.0) == made(1.0) != made(2.0)


def scripted(scale=1.0, weight=0.0):
    with isolated(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = nn.Linear(3, 2)
        with torch.no_grad():
            inner.bias += weight
        return torch.jit.script(Scaled(inner, scale).eval())


class Scaled(nn.Module):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.inner(x) * self.scale


class ScaledOtherwise(Scaled):
    def forward(self, x):
        return self.inner(x) + self.scale


def frozen(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(module)


@pytest.mark.parametrize("kind", [lambda m: m, frozen, lambda m: nn.Sequential(m)])
def test_torchscript_by_code_constants_and_attributes(kind):
    """Weights of a frozen module are constants, a scale is an attribute: neither is a parameter."""
    one = fingerprint(kind(scripted()))
    assert one == fingerprint(kind(scripted()))
    assert one != fingerprint(kind(scripted(scale=2.0)))
    assert one != fingerprint(kind(scripted(weight=1.0)))
    with isolated(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = torch.jit.script(ScaledOtherwise(nn.Linear(3, 2), 1.0).eval())
    assert one != fingerprint(kind(other))


def test_exported_graphs_by_their_code():
    def exported(kind):
        with isolated(0):
            module = kind(nn.Linear(3, 2), 2.0).eval()
        return torch.export.export(module, (torch.ones(2, 3),)).module()

    assert fingerprint(exported(Scaled)) == fingerprint(exported(Scaled))
    assert fingerprint(exported(Scaled)) != fingerprint(exported(ScaledOtherwise))


def test_quantised_layers_by_their_weights():
    def quantised(shift):
        with isolated(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = nn.Sequential(nn.Linear(3, 2)).eval()
            with torch.no_grad():
                module[0].weight += shift
            return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)

    assert fingerprint(quantised(0)) == fingerprint(quantised(0))
    assert fingerprint(quantised(0)) != fingerprint(quantised(1.0))
    assert weights_sha256(quantised(0)) != weights_sha256(quantised(1.0))


def test_how_a_network_is_run_leaves_no_trace_where_nothing_is_said():
    """Rows of plain float32 networks keep their identity."""
    with isolated(0):
        classifier = Classifier(nn.Linear(3, 2), 2)
    assert not {"takes", "doubles_one", "alone"} & set(vars(classifier))


def test_torchscript_has_one_fingerprint_in_every_process():
    code = (
        "import torch, warnings; from torch import nn; warnings.simplefilter('ignore')\n"
        "from bench.engine.fingerprint import fingerprint\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())\n"
        "print(fingerprint(torch.jit.script(net.eval())))"
    )
    # torch keeps a module's constants in a set.
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
