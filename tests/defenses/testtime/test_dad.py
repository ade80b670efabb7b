"""DAD and DAD++: low pass, radius, correction."""

import numpy as np
import pytest
import torch
from bench_defenses.testtime import dad as dad_module
from bench_defenses.testtime.dad import Corrected, kept_frequencies, low_pass
from bench_defenses.testtime.detector import (
    Detector,
)
from torch import nn

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluation
from bench.errors import BadInput
from bench.losses import margin
from bench.models.classifier import Classifier
from bench.report.boards.make import boards
from bench.report.show import render
from bench.results.store import Store, read_record
from bench.testing import DefenseContract
from tests.defenses.testtime.helpers import build, network, noise, pixels, slow_ssim


class TestDADContract(DefenseContract):
    defense = "dad:epochs=1,pool=12"


class TestDADPlusContract(DefenseContract):
    defense = "dadpp:epochs=1,pool=12,radii=2+8"


def test_kept_coefficients_at_32_pixels():
    counts = []
    for radius in range(2, 17, 2):
        half = kept_frequencies(32, 32, torch.tensor([float(radius)]))[0, 0]
        # Columns 1 to 15 of the half plane stand for two of the whole.
        counts.append(int(half.sum() + half[:, 1:16].sum()))
    assert counts == [9, 45, 109, 193, 305, 437, 609, 793]


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
    filtered = low_pass(step, torch.tensor([4.0]))
    assert (round(float(filtered.min()), 3), round(float(filtered.max()), 3)) == (-0.094, 1.094)


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
    radii = defended.radius(defended.forward_pass("full", "base"), images, answers, noise(24))
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
    assert radii.tolist() == expected
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
    text = render([row])
    assert (
        "view corrected" in text
        and "detector: TPR" in text
        and "adapted on 24 unlabelled test images" in text
    )
    extras = next(one.extras for one in boards(records)[0].rows if not one.base)
    assert None not in (extras.any_view, extras.passes, extras.obstacles)
    assert dad_module.SMALLEST == 4
