"""Test-time defenses against hand-made oracles: TTE, DAD, random resize, the pool, the views that
attacks aim at.
"""

import hashlib
import math

import numpy as np
import pytest
import torch
from bench_attacks.views import Views, ViewsParams, _quiet, capped_margin, named
from bench_defenses.testtime import dad as dad_module
from bench_defenses.testtime import detector as detector_module
from bench_defenses.testtime.dad import Corrected, kept_frequencies, low_pass
from bench_defenses.testtime.detector import (
    Detector,
    adapt,
    adaptation_loss,
    pseudo_labels,
    shipped_card,
    shipped_detector,
    train_source,
)
from bench_defenses.testtime.tte import TTEParams, blurred, cropped, terms_of
from torch import nn

from bench.access.pool import attack, fill, outside
from bench.contract.toys import gratings, labelled
from bench.data.similarity import gaussian_ssim
from bench.defense import AccessDenied, DataAccess, DefendedClassifier, Need
from bench.engine.execution import Execution
from bench.engine.inference import inspect
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluation
from bench.errors import BadInput
from bench.losses import margin
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, isolated
from bench.plugins.create import DEFENSES, create
from bench.randomness import Query
from bench.report.leaderboard import boards
from bench.report.show import render, show
from bench.results.outcomes import Outcomes
from bench.results.store import Store, read_record
from bench.results.views import any_right, auroc, detection, view_scores
from bench.spec import parse
from bench.testing import AttackContract, DefenseContract
from bench.threat import ThreatModel
from bench.victim import Victim, frozen

THREAT = ThreatModel("linf", 0.1)


class TestTTEContract(DefenseContract):
    defense = "tte:crops=2"


class TestDADContract(DefenseContract):
    defense = "dad:epochs=1,pool=12"


class TestDADPlusContract(DefenseContract):
    defense = "dadpp:epochs=1,pool=12,radii=2+8"


class TestViewsContract(AttackContract):
    attack = "views:base"


class TestEvadeContract(AttackContract):
    attack = "evade:steps=10"


def pixels(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def noise(n, draw=0):
    return Noise.of(0, Stream.EVAL, range(n), draw)


def network(classes, shape, seed=0, width=24):
    """Weights of unit scale on average, so that answers differ between images."""
    generator = torch.Generator().manual_seed(seed)
    with isolated(0):
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), width), nn.Tanh(), nn.Linear(width, classes)
        )
    for parameter in net.parameters():
        parameter.data = (
            torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5 * 3
        )
    return Classifier(net, classes).eval()


def build(text, classifier, shape, pool=None):
    defense = create(DEFENSES, parse(text)).plugin
    sources = {} if pool is None else {Need.UNLABELLED_TEST: lambda: lambda n, share: pool[:n]}
    access = DataAccess(frozenset(defense.needs), sources, text, THREAT, shape)
    return defense.build(classifier, access, Noise.of(0, Stream.BUILD, [0])).eval()


# TTE ----------------------------------------------------------------------------------------------


def shifted(images, top, left):
    """Each image moved so that what was at (top, left) of its padded version comes to the corner,
    by loops.
    """
    n, channels, height, width = images.shape
    out = torch.zeros_like(images)
    for y in range(height):
        for x in range(width):
            if 0 <= y + top < height and 0 <= x + left < width:
                out[:, :, y, x] = images[:, :, y + top, x + left]
    return out


@pytest.mark.parametrize(
    ("shape", "pad"), [((1, 28, 28), 4), ((3, 16, 16), 2), ((1, 12, 20), None)]
)
def test_tte_is_the_average_written_by_hand(shape, pad):
    classifier, images = network(5, shape), pixels(6, *shape)
    defended = build("tte:crops=3", classifier, shape)
    pads = (pad or 2, pad or 2)
    views = [images, images.flip(3)]
    for source in (images, images.flip(3)):
        for i in range(3):
            at = Noise.of(0, Stream.BUILD, [0]).at(f"crop/{i}")
            top, left = (
                int(at.integers(name, 0, 2 * p))
                for name, p in zip(("top", "left"), pads, strict=True)
            )
            views.append(shifted(source, top - pads[0], left - pads[1]))
    expected = torch.stack([classifier(view, noise(6)) for view in views]).mean(0)
    assert torch.allclose(defended(images, noise(6)), expected, atol=1e-5)


def test_as_released_has_four_views_with_the_weights_of_ten():
    origins = [(1, 2), (3, 4), (5, 6), (7, 0)]
    terms = terms_of(TTEParams(mode="as_released"), origins, (4, 4))
    assert [(term.name, round(term.weight, 6)) for term in terms] == [
        ("image", 0.1),
        ("flip", 0.1),
        ("crop3", 0.4),
        ("flip-crop3", 0.4),
    ]
    assert [round(term.weight, 6) for term in terms_of(TTEParams(), origins, (4, 4))] == [0.1] * 10
    image = pixels(1, 1, 32, 32)
    assert torch.equal(terms[2].transform(image), shifted(image, 3, -4))


def test_tte_views_average_to_the_answer_and_blind_sees_the_classifier():
    classifier, images = network(4, (1, 8, 8)), pixels(3, 1, 8, 8)
    defended = build("tte:crops=2,blur=1", classifier, (1, 8, 8))
    single = [view for view in defended.views() if view.startswith("single:")]
    assert len(single) == 7
    mean = torch.stack(
        [defended.forward_pass("full", view)(images, noise(3)) for view in single]
    ).mean(0)
    assert torch.allclose(defended(images, noise(3)), mean, atol=1e-6)
    for forward in (defended.forward_pass("blind"), defended.forward_pass("full", "base")):
        assert torch.equal(forward(images, noise(3)), classifier(images, noise(3)))
    with pytest.raises(BadInput, match="unknown view"):
        defended.forward_pass("full", "single:crop9")


def test_crop_origin_pad_is_the_identity_and_blur_keeps_constants():
    image = pixels(2, 3, 10, 10)
    assert torch.equal(cropped(image, (3, 2), (3, 2)), image)
    assert torch.allclose(
        blurred(torch.full((1, 3, 9, 9), 0.3), 1.0), torch.full((1, 3, 9, 9), 0.3), atol=1e-6
    )
    spot = torch.zeros(1, 1, 9, 9)
    spot[0, 0, 4, 4] = 1
    line = np.exp(-(np.arange(-2, 3) ** 2) / 8)
    expected = np.outer(line, line) / line.sum() ** 2
    assert np.allclose(blurred(spot, 2.0)[0, 0, 2:7, 2:7].numpy(), expected, atol=1e-6)


def test_tte_refuses_to_average_nothing():
    with pytest.raises(BadInput, match="only view"):
        create(DEFENSES, parse("tte:flip=false,crops=0"))


# Low pass and radius ------------------------------------------------------------------------------


def test_kept_coefficients_at_32_pixels():
    found = []
    for radius in range(2, 17, 2):
        half = kept_frequencies(32, 32, torch.tensor([float(radius)]))[0, 0]
        # Columns 1 to 15 of the half plane stand for two of the whole.
        found.append(int(half.sum() + half[:, 1:16].sum()))
    assert found == [9, 45, 109, 193, 305, 437, 609, 793]


@pytest.mark.parametrize("side", [32, 28, 9])
def test_low_pass_is_the_masked_spectrum(side):
    images = pixels(2, 3, side, side)
    for radius in (2.0, 5.0):
        spectrum = np.fft.fftshift(np.fft.fft2(images.numpy()), axes=(2, 3))
        i, j = np.mgrid[:side, :side] - side // 2
        expected = np.fft.ifft2(
            np.fft.ifftshift(spectrum * (np.sqrt(i**2 + j**2) < radius), axes=(2, 3))
        ).real
        assert np.allclose(
            low_pass(images, torch.tensor([radius] * 2)).numpy(), expected, atol=1e-5
        )


def test_low_pass_is_linear_idempotent_and_not_clipped():
    a, b, radius = (
        pixels(3, 1, 32, 32),
        pixels(3, 1, 32, 32, seed=1),
        torch.tensor([4.0, 9.0, 14.0]),
    )
    once = low_pass(a, radius)
    assert torch.allclose(low_pass(2 * a - b, radius), 2 * once - low_pass(b, radius), atol=1e-5)
    assert torch.allclose(low_pass(once, radius), once, atol=1e-5)
    assert torch.allclose(low_pass(a, torch.full((3,), 23.0)), a, atol=1e-5)
    step = torch.zeros(1, 1, 32, 32)
    step[..., 8:24] = 1
    seen = low_pass(step, torch.tensor([4.0]))
    assert (round(float(seen.min()), 3), round(float(seen.max()), 3)) == (-0.094, 1.094)


def slow_ssim(a, b, span):
    """One image (C, H, W), window by window."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    channels = []
    for x, y in zip(a.numpy().astype(float), b.numpy().astype(float), strict=True):
        values = []
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, both = (
                    (w * p * p).sum() - mp**2,
                    (w * q * q).sum() - mq**2,
                    (w * p * q).sum() - mp * mq,
                )
                values.append(
                    (2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                )
        channels.append(max(0.0, float(np.mean(values))))
    return float(np.mean(channels))


def test_gaussian_ssim_window_by_window():
    a, b, span = pixels(3, 2, 14, 13), pixels(3, 2, 14, 13, seed=1), torch.tensor([1.0, 0.5, 0.2])
    b[1] = 0.8 * a[1] + 0.1
    expected = [slow_ssim(a[i], b[i], float(span[i])) for i in range(3)]
    assert np.allclose(gaussian_ssim(a, b, span).numpy(), expected, atol=1e-4)
    assert float(gaussian_ssim(a, 1 - a, span)[0]) == 0
    assert torch.allclose(
        gaussian_ssim(pixels(1, 1, 5, 5), pixels(1, 1, 5, 5), span[:1]), torch.ones(1)
    )


def corrected(shape, dropout=0.5, soft=False, radii=(2, 4, 6, 8), classes=6, seed=0):
    classifier = network(classes, shape, seed)
    masks = (pixels(10, 24, seed=3) >= dropout).float() / (1 - dropout)
    return Corrected(classifier, Detector(classes).eval(), "network.3", masks, radii, soft).eval()


def smooth(n, shape, rough=0.2):
    """Images whose spectrum falls off, at several contrasts."""
    images = low_pass(pixels(n, *shape), torch.full((n,), 5.0)) + rough * pixels(n, *shape, seed=2)
    images = (images - images.amin()) / (images.amax() - images.amin())
    return images * torch.linspace(0.2, 1, n).reshape(-1, 1, 1, 1)


def test_radius_rule_image_by_image():
    shape = (1, 16, 16)
    defended, images = corrected(shape, dropout=0.05, classes=30), smooth(24, shape, rough=1.0)
    net = defended.classifier.network
    answers = net(images).argmax(1)
    found = defended.radius(defended.forward_pass("full", "base"), images, answers, noise(24))
    expected = []
    for image, answer in zip(images, answers, strict=True):
        chosen = 4.0
        for radius in (2, 4, 6, 8):
            filtered = low_pass(image[None], torch.tensor([float(radius)]))
            features = net[:3](filtered)
            stays = np.mean(
                [int(net[3](features * mask).argmax()) == int(answer) for mask in defended.masks]
            )
            if slow_ssim(image, filtered[0], float(image.max())) - stays <= 0:
                break
            chosen = float(radius)
        expected.append(chosen)
    assert found.tolist() == expected
    assert len(set(expected)) >= 3, "the images take several ways through the rule"


def test_only_flagged_images_are_corrected():
    shape = (1, 16, 16)
    defended, images = corrected(shape), smooth(24, shape)
    base, fixed, alarm, answer = (
        defended.forward_pass("full", v)(images, noise(24))
        for v in ("base", "corrected", "detector", "logits")
    )
    flagged = alarm.argmax(1) == 1
    assert 0 < int(flagged.sum()) < 24
    assert torch.equal(answer[~flagged], base[~flagged])
    assert torch.allclose(answer[flagged], fixed[flagged], atol=1e-5) and not torch.allclose(
        answer[flagged], base[flagged]
    )
    radius = defended.radius(
        defended.forward_pass("full", "base"), images, base.argmax(1), noise(24)
    )
    chosen = torch.stack(
        [
            defended.forward_pass("full", f"branch:{int(r)}")(images[i : i + 1], noise(1))[0]
            for i, r in enumerate(radius)
        ]
    )
    assert torch.allclose(fixed, chosen, atol=1e-5)


def test_soft_detection_takes_the_larger_radius():
    shape = (1, 16, 16)
    defended, images = corrected(shape, dropout=0.3, classes=30, soft=True), smooth(24, shape)
    base = defended.forward_pass("full", "base")(images, noise(24))
    ruled = defended.radius(
        defended.forward_pass("full", "base"), images, base.argmax(1), noise(24)
    )
    clean = (16 * defended.detector(base).softmax(1)[:, 0]).floor()
    radius = torch.stack([clean, ruled, torch.full((24,), 4.0)]).amax(0)
    assert (clean > ruled).any() and (clean < ruled).any()
    expected = defended.classifier(low_pass(images, radius), noise(24))
    assert torch.allclose(defended(images, noise(24)), expected, atol=1e-5)


def test_corrected_view_has_the_gradient_of_its_branch():
    shape = (1, 16, 16)
    defended, images = corrected(shape), smooth(4, shape).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 3])
    base = defended.forward_pass("full", "base")
    radius = defended.radius(base, images.detach(), base(images, noise(4)).argmax(1), noise(4))
    slopes = []
    for output in (
        defended.forward_pass("full", "corrected")(images, noise(4)),
        base(low_pass(images, radius), noise(4)),
    ):
        slopes.append(torch.autograd.grad(margin(output, labels).sum(), images)[0])
    assert torch.allclose(*slopes, atol=1e-6) and float(slopes[0].abs().amax()) > 0


# Detector -----------------------------------------------------------------------------------------


def test_adaptation_loss_by_hand():
    outputs = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    p = np.array([[0.25, 0.75], [0.8, 0.2]])
    entropy = lambda q: float(-(q * np.log(q + 1e-5)).sum())  # noqa: E731
    cls = -(math.log(0.75) + math.log(0.2)) / 2
    ent = (entropy(p[0]) + entropy(p[1])) / 2 - entropy(p.mean(0))
    found = adaptation_loss(outputs, torch.tensor([1, 1]), 0.3, 0.8)
    assert float(found) == pytest.approx(0.3 * cls + 0.8 * ent, abs=1e-5)


def two_groups(n, classes=10, seed=0):
    """Logits of two kinds, told apart by their size."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(n) % 2
    return torch.randn(n, classes, generator=generator) * torch.where(truth == 1, 6.0, 1.0)[
        :, None
    ], truth


def test_a_source_detector_learns_and_the_pool_gets_its_labels():
    logits, truth = two_groups(400)
    detector = train_source(
        logits[truth == 0], logits[truth == 1], epochs=15, batch=50, rate=1e-3, seed=0
    )
    fresh, answer = two_groups(400, seed=1)
    assert float((detector(fresh).argmax(1) == answer).float().mean()) > 0.95
    assert float((pseudo_labels(detector, fresh) == answer).float().mean()) > 0.95


@pytest.mark.parametrize("aligned", [True, False])
def test_released_pseudo_labels_belong_to_other_images(monkeypatch, aligned):
    logits, truth = two_groups(600)
    monkeypatch.setattr(detector_module, "pseudo_labels", lambda *_: truth)
    detector = Detector(10, seed=1)
    last = {name: getattr(detector, name).clone() for name in ("direction", "scale", "bias")}
    before = detector.first.weight.clone()
    adapt(detector, logits, epochs=12, batch=64, rate=0.3, cls=1, ent=0, aligned=aligned, seed=0)
    right = float((detector(logits).argmax(1) == truth).float().mean())
    assert right > 0.9 if aligned else right < 0.75
    assert all(torch.equal(getattr(detector, name), value) for name, value in last.items()), (
        "the last layer is frozen"
    )
    assert not torch.equal(detector.first.weight, before) and not detector.training


def test_the_shipped_detector_is_what_its_card_says():
    detector, fresh = shipped_detector(10, 0)
    assert not fresh and not detector.training
    assert shipped_card()["measured"]["true_positive_rate"] > 0.9
    digest = hashlib.sha256(detector_module._SHIPPED.read_bytes()).hexdigest()
    assert digest == shipped_card()["sha256"]
    other, fresh = shipped_detector(7, 0)
    assert fresh and other.first.weight.shape == (128, 7)
    assert torch.equal(other.second.weight, detector.second.weight) and torch.equal(
        other.direction, detector.direction
    )


@pytest.mark.parametrize("classes", [2, 7, 8, 10, 11])
def test_dad_takes_any_number_of_classes(classes):
    shape, pool = (1, 14, 14), pixels(40, 1, 14, 14, seed=5)
    defended = build("dad:epochs=2,pool=40,radii=2+6", network(classes, shape), shape, pool)
    images = pixels(5, *shape).requires_grad_(True)
    output = defended(images, noise(5))
    assert output.shape == (5, classes)
    assert torch.autograd.grad(output.sum(), images)[0].abs().amax() > 0
    assert bool(defended.notes) == (classes != 10)
    assert defended.views() == (
        "logits",
        "base",
        "detector",
        "corrected",
        "branch:2",
        "branch:4",
        "branch:6",
    )


def test_dad_needs_a_last_linear_layer():
    class Sum(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10]

        weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(BadInput, match="last linear layer"):
        build(
            "dad:epochs=0,pool=4", Classifier(Sum(), 10).eval(), (1, 14, 14), pixels(4, 1, 14, 14)
        )


# The pool -----------------------------------------------------------------------------------------


def pool_of(everything, evaluated, classifier, **options):
    return fill(
        outside(everything, evaluated),
        evaluated,
        classifier,
        THREAT,
        0,
        **{"n": 20, "adversarial": 0.4, **options},
    )


def test_the_pool_holds_no_evaluated_image_and_no_label():
    shape = (3, 16, 16)
    everything, classifier = gratings(40), network(3, shape)
    evaluated = everything.first(10)
    found = pool_of(everything, evaluated, classifier)
    others = everything.pixels()[10:30]
    near = [int(((image - others).abs().flatten(1).amax(1)).argmin()) for image in found]
    assert sorted(near) == list(range(20)), "the first twenty free images, each once"
    gaps = (found - others[near]).abs().flatten(1).amax(1)
    assert int((gaps > 0).sum()) == 8 and float(gaps.max()) <= THREAT.eps + 1e-6
    assert sorted(near) != near and not torch.equal(
        (gaps > 0).float().sort().values, (gaps > 0).float()
    ), "mixed"
    mislabelled = labelled(everything.images, torch.zeros_like(everything.labels))
    assert torch.equal(found, pool_of(mislabelled, mislabelled.first(10), classifier))
    attacked = gaps > 0
    fooled = classifier(found, noise(20)).argmax(1) != classifier(others[near], noise(20)).argmax(1)
    assert fooled[attacked].float().mean() > 0.7 and not fooled[~attacked].any()


def test_evaluated_images_in_the_pool_are_forbidden():
    everything, classifier = gratings(40), network(3, (3, 16, 16))
    with pytest.raises(ValueError, match="no defense may adapt"):
        fill(everything, everything.first(1), classifier, THREAT, 0, n=20, adversarial=0)
    with pytest.raises(
        BadInput,
        match="pool of 31 unlabelled test images was asked for, but 30 are left beside the 10",
    ):
        pool_of(everything, everything.first(10), classifier, n=31)
    with pytest.raises(BadInput, match="give 0 to 1"):
        pool_of(everything, everything.first(10), classifier, adversarial=1.5)


def test_pool_attack_takes_given_labels_or_predictions():
    images, classifier = pixels(8, 1, 10, 10), network(4, (1, 10, 10))
    predicted = classifier(images, noise(8)).argmax(1)
    free = attack(classifier, images, THREAT, noise(8))
    assert torch.equal(free, attack(classifier, images, THREAT, noise(8), predicted))
    assert not torch.equal(free, attack(classifier, images, THREAT, noise(8), (predicted + 1) % 4))


def test_the_pool_is_a_declared_need():
    access = DataAccess(
        frozenset(),
        {Need.UNLABELLED_TEST: lambda: lambda n, share: torch.zeros(n)},
        "thief",
        THREAT,
        (1, 8, 8),
    )
    with pytest.raises(AccessDenied, match="unlabelled test images"):
        access.unlabelled_pool(3)
    assert access.pool is None


# Attacks on views ---------------------------------------------------------------------------------


class Branches(DefendedClassifier):
    """Two linear branches; the first answers."""

    num_classes = 2

    def __init__(self, first, second):
        super().__init__()
        self.weights = nn.Parameter(torch.stack([first, second]))

    def views(self):
        return ("logits", "base", "branch:1", "branch:2")

    def forward_pass(self, gradient="full", view="logits"):
        row = 1 if view == "branch:2" else 0
        return lambda images, noise: (lambda s: torch.stack([s, -s], 1))(
            (images - 0.5).flatten(1) @ self.weights[row]
        )

    def forward(self, images, noise):
        return self.forward_pass()(images, noise)


def test_views_goes_on_until_all_views_err():
    first, second = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0])
    model = Branches(first, second)
    images = torch.full((3, 1, 2, 2), 0.5)
    images[:, 0, 0] += torch.tensor([[0.02, 0.02], [0.02, 0.3], [0.3, 0.02]])
    labels = torch.zeros(3, dtype=torch.int64)
    with frozen(model):
        victim = Victim(model, np.arange(3))
        found = Views(ViewsParams(at="base+branch", steps=10))(
            victim, images, labels, THREAT
        ).points
        sums = [
            model.forward_pass("full", view)(found, noise(3))[:, 0]
            for view in ("branch:1", "branch:2")
        ]
    assert [bool(s < 0) for s in sums[0]] == [True, True, False]
    assert [bool(s < 0) for s in sums[1]] == [True, False, True]
    assert int(victim.forwards[0]) < int(victim.forwards[1]), "an image stops where all views err"


def test_a_point_that_breaks_the_answer_outranks_a_larger_sum():
    model = Branches(torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 50.0, 0, 0]))
    image, labels = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    with frozen(model):
        objective = Victim(model, np.arange(1)).joint(
            labels, dict.fromkeys(("branch:1", "branch:2"), capped_margin), until_all_err=True
        )
        broken, close = image.clone(), image.clone()
        broken[0, 0, 0] += torch.tensor([-0.01, 0.3])
        close[0, 0, 0] += torch.tensor([0.01, -0.3])
        values = [objective(x, torch.arange(1), 0, True) for x in (broken, close)]
    assert values[0].value > values[1].value and not values[0].success.any()
    assert values[0].gradient[0, 0, 0, 1] == -100


def test_names_of_views():
    offered = ("logits", "base", "detector", "branch:2", "branch:4")
    assert named(offered, ("base", "branch")) == ["base", "branch:2", "branch:4"]
    assert named(("logits", "features"), ("base", "branch")) == ["logits"]
    with pytest.raises(BadInput, match="no view 'brunch'"):
        named(offered, ("brunch",))


# Random resize ------------------------------------------------------------------------------------


def test_random_resize_draws_once_a_batch_and_averages_softmaxes():
    images = torch.ones(6, 1, 12, 12)
    once = build("random-resize:draw=batch", network(3, (1, 16, 16)), (1, 12, 12))
    seen = once.transform(images, noise(6))
    assert torch.equal(seen, seen[:1].expand_as(seen)) and torch.equal(
        seen[4:5], once.transform(images[:1], noise(6).rows(slice(4, 5)))
    )
    assert any(not torch.equal(seen, once.transform(images, noise(6, draw))) for draw in (1, 2))
    images = pixels(6, 1, 12, 12)
    single, many = (
        build(f"random-resize:ensemble={k}", network(3, (1, 16, 16)), (1, 12, 12)) for k in (1, 4)
    )
    mean = torch.stack(
        [single(images, noise(6).at(f"draw/{i}")).softmax(1) for i in range(4)]
    ).mean(0)
    assert torch.allclose(many(images, noise(6)).exp(), mean, atol=1e-6)


# What the evaluator measures ----------------------------------------------------------------------


def test_auroc_and_rates_by_hand():
    assert auroc(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == (1 + 1 + 0 + 0.5) / 4
    arrays = {
        "score/detector/clean": np.array([-1.0, 2.0, -3.0]),
        "score/detector/adversarial": np.array([1.0, 2.0, -2.0]),
        "score/base/clean": np.array([0, 1, 1]),
        "score/base/adversarial": np.array([1, 1, 0]),
        "score/corrected/clean": np.array([0, 0, 1]),
        "score/corrected/adversarial": np.array([0, 0, 0]),
        "moved": np.array([True, False, True]),
    }
    found = view_scores(arrays, 2)
    rates = detection(found)
    assert (rates.n, rates.true_positive_rate, rates.false_positive_rate) == (
        2,
        0.5,
        pytest.approx(1 / 3),
    )
    assert rates.auroc == pytest.approx((2 + 1) / 6 + 0)
    column = np.zeros((3, 1), dtype=np.int64)
    outcomes = Outcomes.of(2, np.arange(3), np.array([0, 1, 1]), column, column, column[:, :0])
    assert any_right(found, outcomes).tolist() == [True, True, False]
    assert view_scores({"points": np.zeros(3)}, 2) is None


class Optimising(DefendedClassifier):
    """Takes a gradient of its own in the forward pass."""

    num_classes = 3

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images, noise):
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            step = torch.autograd.grad(self.classifier(leaf, noise).amax(1).sum(), leaf)[0]
        return self.classifier(images + 0.01 * step.sign(), noise)


@pytest.mark.parametrize(
    ("text", "passes", "obstacles"),
    [
        ("undefended", 1, []),
        ("tte", 10, []),
        ("tte:mode=as_released", 4, []),
        ("bit-depth", 1, ["zero gradient"]),
        ("random-resize:grow=0,shrink=2,ensemble=3", 3, ["random"]),
    ],
)
def test_passes_and_conditions(text, passes, obstacles):
    defended = build(text, network(3, (1, 12, 12)), (1, 12, 12))
    with frozen(defended):
        found = inspect(defended, pixels(4, 1, 12, 12), torch.arange(4) % 3, defended.stochastic)
    assert (found.passes, found.obstacles()) == (passes, obstacles)


def test_an_optimisation_loop_is_seen():
    found = inspect(
        Optimising(network(3, (1, 12, 12))), pixels(4, 1, 12, 12), torch.arange(4) % 3, False
    )
    assert (found.passes, found.obstacles()) == (2, ["optimisation loop"])


def test_a_dad_row_end_to_end(tmp_path):
    request = Request(
        defenses=("dad:pool=24,epochs=1",),
        attacks=("views:base+branch,steps=4", "pgd:gradient=blind,steps=4"),
        n=6,
        eps=0.2,
    )
    store = Store(tmp_path)
    evaluations = plan(request)
    records = [run_evaluation(evaluation, store, Execution()) for evaluation in evaluations]
    row = next(
        record for record in records if record.title["attack"].startswith("views") and record.base
    )
    assert row == read_record(tmp_path / f"{row.stem}.json")
    assert row.pool.images == 24 and row.pool.adversarial == 0.5
    assert set(row.views.answers) == {"base", "corrected"} and len(row.views.detector["clean"]) == 6
    free = next(evaluation for evaluation in evaluations if evaluation.id == row.id).free_images()
    assert not set(free.ids) & set(row.outcomes.image_ids().tolist()) and len(free) == 994
    text = render(show(row))
    assert (
        "view corrected" in text
        and "detector: TPR" in text
        and "adapted on 24 unlabelled test images" in text
    )
    board = boards(records)[0].table
    assert {"any view", "passes/prediction", "RobustBench"} <= set(board.columns)
    assert dad_module.SMALLEST == 4


def test_too_few_images_are_said_before_anything_is_attacked(tmp_path):
    evaluation = plan(Request(defenses=("dad",), attacks=("pgd",), n=700))[-1]
    with pytest.raises(
        BadInput, match="400 unlabelled test images was asked for, but 300 are left beside the 700"
    ):
        run_evaluation(evaluation, Store(tmp_path), Execution())


# Real images --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tte_on_resnet20(real_data):
    request = Request(
        ("tte",),
        ("null",),
        dataset=f"npz:{real_data}/data/cifar10_exact.npz",
        classifier=f"file:{real_data}/models/cifar_resnet20.safetensors",
        eps=8 / 255,
        n=1017,
    )
    setup = plan(request)[-1].setup
    classifier, images = setup.classifier, setup.images
    defended = build("tte", classifier, (3, 32, 32))
    with frozen(defended):
        logits = Victim(defended, images.ids).logits(images.pixels(), torch.arange(1017), Query())[
            :, 0
        ]
    assert 949 <= int((logits.argmax(1) == images.labels).sum()) <= 957


def test_what_the_attacks_on_views_climb():
    """By hand: margins 5 (capped at 1) and -5; the alarm s = 2 with the slack of 1 weighs 3, a
    silent detector nothing.
    """
    logits = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    assert capped_margin(logits, torch.tensor([1, 0])).tolist() == [1.0, -5.0]
    alarms = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert _quiet(0.5, alarms, torch.zeros(2, dtype=torch.long)).tolist() == [-1.5, 0.0]
