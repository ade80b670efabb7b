"""DAD's detector: its loss, its adaptation, the shipped one."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from bench_defenses.testtime import detector as detector_module
from bench_defenses.testtime.detector import (
    SHIPPED,
    Adaptation,
    Detector,
    adapt,
    adaptation_loss,
    pseudo_labels,
    shipped_detector,
    train_source,
)


def test_adaptation_loss_by_hand():
    outputs = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    p = np.array([[0.25, 0.75], [0.8, 0.2]])
    entropy = lambda q: float(-(q * np.log(q + 1e-5)).sum())  # noqa: E731
    cls = -(math.log(0.75) + math.log(0.2)) / 2
    ent = (entropy(p[0]) + entropy(p[1])) / 2 - entropy(p.mean(0))
    loss = adaptation_loss(outputs, torch.tensor([1, 1]), 0.3, 0.8)
    assert float(loss) == pytest.approx(0.3 * cls + 0.8 * ent, abs=1e-5)


def two_groups(n, classes=10, seed=0):
    """Logits of two kinds, which differ in their size."""
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
    how = Adaptation(epochs=12, batch=64, rate=0.3, cls=1, ent=0, aligned=aligned)
    adapt(detector, logits, how, seed=0)
    right = float((detector(logits).argmax(1) == truth).float().mean())
    assert right > 0.9 if aligned else right < 0.75
    assert all(torch.equal(getattr(detector, name), value) for name, value in last.items()), (
        "the last layer is frozen"
    )
    assert not torch.equal(detector.first.weight, before) and not detector.training


def test_the_shipped_detector_is_what_its_card_says():
    detector, fresh = shipped_detector(10, 0)
    assert not fresh and not detector.training
    card = json.loads(SHIPPED.with_suffix(".json").read_bytes())
    assert card["measured"]["true_positive_rate"] > 0.9
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == card["sha256"]
    other, fresh = shipped_detector(7, 0)
    assert fresh and other.first.weight.shape == (128, 7)
    assert torch.equal(other.second.weight, detector.second.weight) and torch.equal(
        other.direction, detector.direction
    )
