"""The known answers: each defense against a slow oracle of its own, and the gallery that holds the
attacks to them.
"""

import io

import numpy as np
import pytest
import torch
from bench_defenses.gallery.crop_ensemble import crop
from bench_defenses.gallery.k_wta import winners
from bench_defenses.gallery.sap import prune
from bench_defenses.gallery.tvm import _adjoint, _differences, objective, reconstruct
from PIL import Image
from torch import nn
from torch.nn import functional as F

from bench.commands.gallery import Row, evaluations_of, exhibits, rows
from bench.commands.info import EXPECTED, describe
from bench.defense import Card, DataAccess, Defense, Need
from bench.engine.execution import Execution
from bench.engine.request import Request
from bench.engine.run import run_evaluations
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, isolated
from bench.plugins.create import DEFENSES, create
from bench.results.store import Store
from bench.spec import parse
from bench.threat import ThreatModel

NAMES = sorted(
    name
    for name in DEFENSES.names()
    if not name.startswith("toy-") and DEFENSES.get(name).card.expected
)
QUICK = {"thermometer": "thermometer:epochs=1", "k-wta": "k-wta:epochs=1"}


class Net(nn.Module):
    """A small network with activations as modules, in place, and as functions."""

    def __init__(self, channels=1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(channels, 8, 3)
        self.second = nn.Linear(8, 10)
        self.relu = nn.ReLU(inplace=True)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, x):
        maps = F.relu(self.relu(self.first(x)) - 0.1)
        return self.second(maps.mean((2, 3)).relu())


def net(channels=1):
    with isolated(0):
        return Net(channels)


def linear(*sizes):
    with isolated(0):
        return nn.Linear(*sizes)


def pixels(n, *shape, seed=0):
    return torch.rand(n, *(shape or (1, 12, 12)), generator=torch.Generator().manual_seed(seed))


def noise(n, draw=0):
    return Noise.of(0, Stream.EVAL, range(n), draw)


def build(text, network=None, channels=1):
    defense = create(DEFENSES, parse(text)).plugin
    images = pixels(20, channels, 12, 12)
    sources = {Need.TRAINING_DATA: lambda: (images, torch.arange(20) % 10)}
    access = DataAccess(
        frozenset(defense.needs), sources, text, ThreatModel("linf", 0.1), tuple(images.shape[1:])
    )
    classifier = Classifier(network or net(channels), 10).eval()
    return defense.build(classifier, access, Noise.of(0, Stream.BUILD, [0])).eval()


def slope(defended, images, gradient):
    leaf = images.clone().requires_grad_(True)
    output = defended.forward_pass(gradient)(leaf, noise(len(images)))
    if not output.requires_grad:
        return torch.zeros_like(images)
    found = torch.autograd.grad((output * torch.arange(10.0)).sum(), leaf, allow_unused=True)[0]
    return torch.zeros_like(images) if found is None else found


# Each forward pass against an oracle --------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillow_byte_for_byte(channels):
    images = pixels(5, channels, 17, 23)
    seen = build("jpeg:quality=60", channels=channels).transform(images, noise(5))
    for image, coded in zip(images, seen, strict=True):
        levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(levels.squeeze()).save(buffer, format="JPEG", quality=60)
        expected = np.asarray(Image.open(buffer)).reshape(17, 23, channels)
        assert (coded * 255).round().byte().permute(1, 2, 0).numpy().tobytes() == expected.tobytes()
    assert (seen - images).abs().mean() < 0.2 and not torch.equal(seen, images)


def test_jpeg_names_the_channels_that_it_cannot_code():
    with pytest.raises(BadInput, match="2 channels"):
        build("jpeg").transform(pixels(1, 2, 8, 8), noise(1))


def test_thermometer_by_loops():
    images = torch.tensor([0.0, 1 / 8, 0.125001, 0.5, 0.99, 1.0, 0.26, 0.74]).reshape(2, 2, 1, 2)
    defended = build("thermometer:levels=4,epochs=1", channels=2)
    seen, smooth = defended.transform(images, noise(2)), defended.surrogate(images, noise(2))
    assert seen.shape == smooth.shape == (2, 8, 1, 2)
    for i, c, level, x in np.ndindex(2, 2, 4, 2):
        value = float(images[i, c, 0, x])
        assert seen[i, c * 4 + level, 0, x] == (1 if value > level / 4 else 0)
        assert smooth[i, c * 4 + level, 0, x] == pytest.approx(
            min(max(value - level / 4, 0), 1), abs=1e-6
        )


def test_winners_by_sorting():
    values = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    seen = winners(values, 0.1)
    for row, kept in zip(values.flatten(1), seen.flatten(1), strict=True):
        best = set(row.sort(descending=True).indices[:6].tolist())
        assert kept.tolist() == [float(v) if i in best else 0 for i, v in enumerate(row)]


def test_pruning_keeps_with_the_published_probability_and_is_unbiased():
    activations = torch.tensor([[0.0, 1.0, 2.0, 5.0, 0.5], [0, 0, 0, 0, 0]]).repeat(4000, 1)
    draws = 4
    pruned = prune(activations, draws, Noise.of(0, Stream.EVAL, range(8000)))
    share = activations[0] / activations[0].sum()
    expected = 1 - (1 - share) ** draws
    kept = (pruned[0::2] > 0).float().mean(0)
    assert (kept - expected).abs().max() < 0.04
    assert torch.allclose(pruned[0::2].mean(0), activations[0], rtol=0.08)
    assert (pruned[1::2] == 0).all()


def test_total_variation_falls_to_its_minimum():
    images, kept = pixels(3, 2, 10, 9), (pixels(3, 1, 10, 9, seed=5) > 0.5).float()
    start = objective(images * kept, images, kept, 0.03)
    found = objective(reconstruct(images, kept, 0.03, 100), images, kept, 0.03)
    lowest = objective(reconstruct(images.double(), kept.double(), 0.03, 5000), images, kept, 0.03)
    assert (
        (found < 0.8 * start).all()
        and (found < 1.02 * lowest).all()
        and (found > 0.999 * lowest).all()
    )
    z, field = (
        pixels(3, 2, 10, 9, seed=2),
        torch.rand(2, 3, 2, 10, 9, generator=torch.Generator().manual_seed(3)),
    )
    assert (_differences(z) * field).sum() == pytest.approx(
        float((z * _adjoint(field)).sum()), rel=1e-4
    )
    # No small change of the answer lowers the objective any further.
    best = reconstruct(images.double(), kept.double(), 0.03, 5000)
    for seed in range(20):
        moved = best + 0.01 * (pixels(3, 2, 10, 9, seed=seed) - 0.5)
        assert (objective(moved, images, kept, 0.03) > lowest).all()


def test_total_variation_drops_the_share_of_pixels_in_all_channels():
    images = torch.ones(50, 2, 12, 12)
    defended = build("tvm:steps=1,drop=0.3,weight=1e-6")
    seen = defended.transform(images, noise(50))
    dropped = seen < 0.5
    assert (
        torch.equal(dropped[:, 0], dropped[:, 1])
        and abs(float(dropped.float().mean()) - 0.3) < 0.03
    )


def test_crops_by_slicing_and_their_answer_by_a_loop():
    images, rows_of = pixels(6, 2, 12, 10), noise(6)
    seen = crop(images, 0.7, rows_of)
    top, left = rows_of.integers("top", 0, 5), rows_of.integers("left", 0, 4)
    for i in range(6):
        part = images[i : i + 1, :, top[i] : top[i] + 8, left[i] : left[i] + 7]
        assert torch.allclose(
            seen[i : i + 1], F.interpolate(part, size=(12, 10), mode="bilinear"), atol=1e-6
        )
    defended = build("crop-ensemble:crops=3", channels=2)
    parts = [
        defended.classifier.classifier(crop(images, 0.9, rows_of.at(f"crop/{i}")), rows_of).softmax(
            1
        )
        for i in range(3)
    ]
    assert torch.allclose(defended(images, rows_of), torch.stack(parts).mean(0).log(), atol=1e-5)


def test_the_plain_ones():
    images = pixels(4)
    base = Classifier(net(), 10).eval()(images, noise(4))
    assert torch.equal(build("gradient-killer")(images, noise(4)), base)
    assert torch.allclose(build("temperature:t=50")(images, noise(4)), 50 * base)
    assert torch.equal(build("one-hot")(images, noise(4)), torch.eye(10)[base.argmax(1)])
    assert build("constant:label=7")(images, noise(4)).argmax(1).tolist() == [7] * 4
    with pytest.raises(BadInput, match="10 classes"):
        build("constant:label=10")
    rippled = build("shattered-gradient:amplitude=0.2,frequency=30").transform(images, noise(4))
    assert torch.allclose(rippled, images + 0.2 * torch.sin(30 * images))
    many = torch.zeros(500, 1, 12, 12)
    added = build("gaussian-noise:sigma=0.3").transform(many, noise(500))
    assert abs(float(added.mean())) < 0.01 and float(added.std()) == pytest.approx(0.3, rel=0.02)


# Activations inside any network -------------------------------------------------------------------


def test_every_kind_of_activation_is_met_and_left_alone_afterwards():
    images = pixels(3)
    network = net()
    plain = Classifier(network, 10).eval()
    before = plain(images, noise(3))
    one = build("k-wta:gamma=1,epochs=0", network)
    by_hand = network.second((network.first(images) - 0.1).mean((2, 3)))
    assert torch.allclose(one(images, noise(3)), by_hand, atol=1e-5), (
        "all winners: no activation at all is left"
    )
    assert torch.equal(plain(images, noise(3)), before)


class Sites(nn.Module):
    def forward(self, x):
        x = x.flatten(1)[:, :10]
        return (
            torch.relu(x + 1)
            + F.leaky_relu(x + 2, 0.2)
            + F.gelu(x + 3)
            + nn.SiLU()(x + 4)
            + nn.ELU()(x + 5)
        )


def test_functions_of_every_name_are_replaced():
    images = pixels(2)
    expected = 5 * images.flatten(1)[:, :10] + 15
    assert torch.allclose(
        build("k-wta:gamma=1,epochs=0", Sites())(images, noise(2)), expected, atol=1e-5
    )


@pytest.mark.parametrize("name", ["sap", "k-wta:epochs=0"])
def test_a_network_without_activations_is_bad_input(name):
    network = nn.Sequential(nn.Flatten(), linear(144, 10))
    with pytest.raises(BadInput, match="no activation was met"):
        build(name, network)(pixels(2), noise(2))


def test_layers_draw_apart():
    class Twice(nn.Module):
        def forward(self, x):
            return torch.stack([F.relu(x.flatten(1)), F.relu(x.flatten(1))], 1).flatten(1)[:, :288]

    defended = build("sap:samples=0.5", Twice())
    seen = defended(pixels(2), noise(2)).reshape(2, 2, 144)
    assert not torch.equal(seen[:, 0], seen[:, 1])


# What all of them promise -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_promises(name):
    declared = create(DEFENSES, parse(name)).plugin
    card = declared.card
    defended = build(QUICK.get(name, name))
    assert (defended.stochastic, tuple(defended.gradients)) == (
        declared.stochastic,
        tuple(declared.gradients),
    )
    images = pixels(8)
    with torch.no_grad():
        answer = defended(images, noise(8))
        assert torch.isfinite(answer).all()
        for gradient in defended.gradients:
            assert torch.equal(defended.forward_pass(gradient)(images, noise(8)), answer), (
                f"the {gradient} twin is another function"
            )
            assert all(
                len(defended.forward_pass(gradient, view)(images, noise(8))) == 8
                for view in defended.views()
            )
        assert torch.equal(defended(images, noise(8, 1)), answer) == (not defended.stochastic)
        order = np.array([6, 2, 5])
        assert torch.allclose(
            defended(images[order], noise(8).rows(order)), answer[order], atol=1e-4, rtol=1e-4
        )
    assert ("bpda" in defended.gradients) == bool(card.surrogate)
    assert card.attacks and card.truth and EXPECTED[card.expected]
    if card.surrogate:
        assert (slope(defended, images, "bpda").flatten(1).abs().amax(1) > 0).all()
    if name in (
        "jpeg",
        "tvm",
        "gradient-killer",
        "one-hot",
        "thermometer",
        "bit-depth",
        "constant",
    ):
        assert (slope(defended, images, "full") == 0).all()
    elif name != "temperature":
        assert (slope(defended, images, "full") != 0).any()


def test_no_defense_offers_an_unknown_gradient_or_view():
    for name in ("one-hot", "k-wta:epochs=0"):
        with pytest.raises(BadInput, match="no gradient 'smooth'"):
            build(name).forward_pass("smooth")
    with pytest.raises(BadInput, match="unknown view"):
        build("crop-ensemble").forward_pass("full", "features")


def test_the_surrogate_of_winners_is_the_activation():
    images = pixels(4)
    single = nn.Sequential(nn.Flatten(), linear(144, 10), nn.ReLU())
    with torch.no_grad():
        single[1].weight.copy_(pixels(10, 144, seed=4).reshape(10, 144) - 0.5)
    plain = slope(Classifier(single, 10), images, "full")
    assert torch.allclose(slope(build("k-wta:gamma=0.2,epochs=0", single), images, "bpda"), plain)
    assert not torch.allclose(
        slope(build("k-wta:gamma=0.2,epochs=0", single), images, "full"), plain
    )


def test_info_shows_the_answer():
    described = describe("jpeg", {"defenses": DEFENSES})
    assert described["surrogate"] == "the identity" and described["fitting attacks"] == "bpda"
    assert (
        described["documented robustness"].startswith("0 %") and "falls to" in described["expected"]
    )
    assert "expected" not in describe("undefended", {"defenses": DEFENSES})


# The gallery --------------------------------------------------------------------------------------


def shown(tmp_path, *names, n=20, naive="pgd"):
    found = exhibits(Request(defense=names, n=n), naive)
    results = list(run_evaluations(evaluations_of(found), Store(tmp_path), Execution()))
    return {row.defense: row for row in rows(found, results)}


def test_masked_defenses_look_robust_and_fall(tmp_path):
    names = ("bit-depth", "gradient-killer", "jpeg", "one-hot", "shattered-gradient", "temperature")
    table = shown(tmp_path, *names)
    for name in names:
        row = table[name]
        assert row.verdict == "falls" and row.held
        assert float(row.naive) >= float(row.naive_base) + 5, (
            f"{name} masks nothing from the naive attack"
        )
        assert float(row.fitting) <= float(row.base) + 5
    assert all("zero-gradient" in table[name].audit for name in set(names) - {"shattered-gradient"})


def test_a_constant_class_keeps_its_share(tmp_path):
    row = shown(tmp_path, "constant", n=100)["constant"]
    assert (row.clean, row.naive, row.fitting, row.verdict) == ("10.0", "10.0", "10.0", "falls")
    assert "COLLAPSED" in row.audit


class Overrated(Defense):
    """Says that an attack breaks it that does nothing."""

    card = Card(expected="base", truth="none", attacks=("fgsm",))
    gradients = ("full", "bpda")

    def build(self, classifier, access, noise):
        return create(DEFENSES, parse("gradient-killer")).plugin.build(classifier, access, noise)


class Unfinished(Overrated):
    """Cannot be built."""

    def build(self, classifier, access, noise):
        raise BadInput("not here")


class Untrue(Overrated):
    """Its BPDA twin is another function, so that the attack aims past the defense."""

    card = Card(expected="base", truth="none", attacks=("bpda",))

    def build(self, classifier, access, noise):
        defended = super().build(classifier, access, noise)
        defended._transform_bpda = lambda images, noise: 0.9 * images
        return defended


def test_a_defense_that_stands_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(DEFENSES._local, "toy-overrated", Overrated)
    monkeypatch.setitem(DEFENSES._local, "toy-unfinished", Unfinished)
    monkeypatch.setitem(DEFENSES._local, "toy-untrue", Untrue)
    table = shown(tmp_path, "toy-overrated", "toy-unfinished", "toy-untrue", n=10)
    assert table["toy-untrue"].verdict == "no number: twin failed" and not table["toy-untrue"].held
    assert table["toy-overrated"].verdict.startswith("stands: ") and not table["toy-overrated"].held
    assert (
        table["toy-unfinished"].verdict == "not measured: not here"
        and not table["toy-unfinished"].held
    )


@pytest.mark.parametrize("verdict", ["not measured: it crashed", "no number: twin failed"])
def test_what_was_not_measured_has_not_held(verdict):
    assert not any(
        Row("it", expected=expected, verdict=verdict).held
        for expected in ("base", "share", "unknown")
    )
    assert Row("it", expected="unknown").held


@pytest.mark.parametrize(
    ("options", "naive", "said"),
    [
        ({"norm": "l2"}, "pgd", "no default eps under l2"),
        ({"n": 0}, "pgd", "n is 0"),
        ({}, "no-such-attack", "unknown attack"),
    ],
)
def test_what_would_prove_nothing_is_refused(options, naive, said):
    with pytest.raises(BadInput, match=said):
        exhibits(Request(defense=("jpeg",), **options), naive)


def test_only_known_answers_are_shown():
    assert "undefended" not in NAMES and {"jpeg", "random-resize", "k-wta", "constant"} <= set(
        NAMES
    )
    with pytest.raises(BadInput, match="has no known answer"):
        exhibits(Request(defense=("undefended",)), "pgd")


@pytest.mark.slow
def test_the_whole_gallery_falls(tmp_path):
    table = shown(tmp_path, *NAMES, n=100)
    assert {name: row.verdict for name, row in table.items() if not row.held} == {}
    assert [name for name, row in table.items() if not row.verdict] == ["k-wta", "thermometer"]
