"""Models whose robust accuracy is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from bench.defense import DefendedClassifier
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import Noise
from bench.victim import Victim, frozen

SIDE = 4
DIMENSIONS = SIDE * SIDE


class Linear(nn.Module):
    """logits = W x + b on flattened images."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


class NoisyLinear(DefendedClassifier):
    """A linear model behind Gaussian input noise of scale sigma (no clipping)."""

    stochastic = True

    def __init__(self, inner: Linear, sigma: float) -> None:
        super().__init__()
        self.inner, self.sigma = inner, sigma
        self.num_classes = len(inner.bias)

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        return self.inner(images + self.sigma * noise.normal("gauss", tuple(images.shape[1:])))


def linear_problem(
    classes: int, n: int, *, active_box: bool, seed: int = 0
) -> tuple[Linear, Tensor, Tensor]:
    """A random linear model, images that hug the box (or stay far from it), and the labels it
    predicts.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    # Steep logits: the cross-entropy of flat ones can rise by spreading mass while the margin
    # falls.
    weight = torch.tensor(8 * rng.normal(size=(classes, DIMENSIONS)), dtype=torch.float32)
    raw = rng.uniform(size=(n, 1, SIDE, SIDE))
    pixels = (
        np.where(raw < 0.35, 0.0, np.where(raw > 0.65, 1.0, raw)) if active_box else 0.4 + 0.2 * raw
    )
    images = torch.tensor(pixels, dtype=torch.float32)
    model = Linear(weight, -(weight.sum(1) / 2))
    return model, images, model(images).argmax(1)


def _best_margin(
    model: Linear, images: Tensor, labels: Tensor, norm: str, eps: np.ndarray
) -> np.ndarray:
    """max over ball and box of max_j (z_j - z_y) for each image under its own eps: exact, in
    float64.
    """
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    x, y = images.flatten(1).double().numpy()[:, None, :], labels.numpy()
    c = weight[None] - weight[y][:, None]
    z = _maximiser(c, x, norm, eps[:, None, None])
    margins = (c * z).sum(-1) + bias[None] - bias[y][:, None]
    margins[np.arange(len(y)), y] = -np.inf
    return margins.max(1)


def _maximiser(c: np.ndarray, x: np.ndarray, norm: str, eps: np.ndarray) -> np.ndarray:
    """argmax of c . z over the ball of radius eps around x and [0, 1]."""
    if norm == "linf":
        return np.where(c > 0, np.minimum(x + eps, 1), np.maximum(x - eps, 0))
    if norm == "l1":
        return x + _spent(c, x, eps)
    # KKT: z = clip(x + c / mu); the distance falls as mu grows.
    low, high = np.full((*c.shape[:2], 1), 1e-6), np.full((*c.shape[:2], 1), 1e6)
    for _ in range(60):
        mu = np.sqrt(low * high)
        outside = np.linalg.norm(np.clip(x + c / mu, 0, 1) - x, axis=-1, keepdims=True) > eps
        low, high = np.where(outside, mu, low), np.where(outside, high, mu)
    return np.clip(x + c / high, 0, 1)


def _spent(c: np.ndarray, x: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The linear programme max c . d over |d|_1 <= eps and 0 <= x + d <= 1: its optimum spends eps
    on the pixels of largest gain |c|, each up to its room.
    """
    room = np.where(c > 0, 1 - x, np.broadcast_to(x, c.shape))
    order = np.argsort(-abs(c), axis=-1)
    sorted_room = np.take_along_axis(room, order, -1)
    before = np.cumsum(sorted_room, -1) - sorted_room
    step = np.zeros_like(c)
    np.put_along_axis(step, order, np.clip(eps - before, 0, sorted_room), -1)
    return np.sign(c) * step


def exact_distance(model: Linear, images: Tensor, labels: Tensor, norm: str) -> np.ndarray:
    """Distance of each image to the nearest misclassified image inside the box (8, in L1 16, where
    there is none).
    """
    return _bisected(
        lambda eps: _best_margin(model, images, labels, norm, eps) > 0, len(images), norm
    )


def exact_target_distance(model: Linear, images: Tensor, targets: Tensor, norm: str) -> np.ndarray:
    """Distance in Linf or L1 of each image to the nearest one inside the box that is classified as
    its target: a linear programme, solved exactly (infinite where there is none).
    """
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    x = images.flatten(1).double().numpy()
    return np.array(
        [_nearest(weight, bias, row, int(t), norm) for row, t in zip(x, targets, strict=True)]
    )


def _nearest(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, target: int, norm: str) -> float:
    """The least eps such that x + up - down is in the box and its target's logit is the largest."""
    d, others = len(x), np.arange(len(bias)) != target
    gap = weight[target] - weight[others]
    wins = np.hstack([-gap, gap, np.zeros((others.sum(), 1))])
    slack = gap @ x + (bias[target] - bias[others])
    both = np.hstack([np.eye(d), np.eye(d)]) if norm == "linf" else np.ones((1, 2 * d))
    length = np.hstack([both, -np.ones((len(both), 1))])
    done = linprog(
        np.append(np.zeros(2 * d), 1.0),
        A_ub=np.vstack([wins, length]),
        b_ub=np.append(slack, np.zeros(len(both))),
        bounds=[(0, room) for room in (*(1 - x), *x)] + [(0, None)],
    )
    return float(done.fun) if done.status == 0 else np.inf


def _bisected(broken_at, count: int, norm: str) -> np.ndarray:
    low, high = np.zeros(count), np.full(count, 16.0 if norm == "l1" else 8.0)
    for _ in range(40):
        middle = (low + high) / 2
        broken = broken_at(middle)
        low, high = np.where(broken, low, middle), np.where(broken, middle, high)
    return high


def attack_robust(
    model: DefendedClassifier, images: Tensor, labels: Tensor, attack, threat, **victim
) -> np.ndarray:
    """Which points survive an attack on a deterministic model."""
    with frozen(model):
        result = attack(Victim(model, np.arange(len(images)), **victim), images, labels, threat)
    assert bool(threat.contains(result.points, images).all())
    return (result.predictions[:, 0] == labels).numpy()


def classifier(model: nn.Module, classes: int) -> Classifier:
    return Classifier(model, classes).eval()


def message(call) -> str:
    """The message of the `BadInput` that a call raises, one line."""
    with pytest.raises(BadInput) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


class Unbreakable(nn.Module):
    """Always class 0, with a gradient."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        flat = images.flatten(1)
        return torch.cat([10 + flat[:, :1], flat[:, 1 : self.classes]], 1)


class Around(nn.Module):
    """A module around a network: `answer(network, images)`."""

    def __init__(self, inner, answer):
        super().__init__()
        self.inner, self.answer = inner, answer

    def forward(self, x):
        return self.answer(self.inner, x)
