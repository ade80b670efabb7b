"""CROWN: exact where there is nothing to relax, never above the truth, and never loose by much."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.api import load_classifier
from bench.certify import network
from bench.certify.crown import Crown
from bench.certify.lines import Lines, backward, is_piecewise_affine, relu_inputs
from bench.certify.network import certifiable
from bench.certify.segments import Segment, lines_of, segment, through
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import isolated
from bench.threat import ThreatModel

SHAPE = (1, 4, 4)


class Residual(nn.Module):
    """Convolutions with BatchNorm, average pooling and two residual adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(i, 3, 3, padding=1) for i in (1, 3))
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = nn.functional.relu(self.second(y) + y + x)
        return self.head(nn.functional.avg_pool2d(y, 2).flatten(1)).relu() @ torch.eye(3).double()


def _net(kind: str, seed: int = 0) -> nn.Module:
    with isolated(seed):
        if kind == "residual":
            net: nn.Module = Residual()
            for part in net.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_()  # type: ignore[union-attr, operator]
                    part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
        else:
            net = nn.Sequential(
                nn.Flatten(), nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(),
                nn.Linear(8, 3),
            )  # fmt: skip
    return net.double().eval()


def _images(n: int = 6) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    true = logits.gather(1, labels[:, None])[:, 0]
    return true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def _inside(images: Tensor, threat: ThreatModel, draws: int) -> Tensor:
    """Points of each image's region, corners among them: (draws, n, C, H, W)."""
    generator = torch.Generator().manual_seed(2)
    moves = 2 * torch.rand(draws, *images.shape, generator=generator).double() - 1
    moves[::2] = moves[::2].sign()
    if threat.norm == "l2":
        moves = moves / moves.flatten(2).norm(dim=2)[..., None, None, None]
    return (images + threat.eps * moves).clamp(0, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["dense", "residual"])
@pytest.mark.parametrize("steps", [0, 5])
def test_no_point_of_the_region_lies_below_the_bound(kind: str, norm: str, steps: int) -> None:
    for seed, eps in product(range(3), (0.02, 0.2)):
        net, images, threat = _net(kind, seed), _images(), ThreatModel(norm, eps)  # type: ignore[arg-type]
        labels = net(images).argmax(1)
        bounds = Crown(net, threat, 3).margins(images, labels, steps=steps)
        points = _inside(images, threat, 400)
        with torch.no_grad():
            seen = torch.stack([_margins(net(one), labels) for one in points]).amin(0)
        assert (bounds <= seen).all()
        if eps < 0.1:
            assert (bounds > 0).any()


def test_exact_where_no_neuron_is_unstable() -> None:
    """On a linear model the least margin over ball and box is known: an image at the bound of the
    box moves on one side only.
    """
    with isolated(0):
        linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    net = nn.Sequential(linear, nn.ReLU()).double()
    with torch.no_grad():
        linear[1].bias += 100  # type: ignore[operator]
    images = _images()
    images[0] = 0
    labels = net(images).argmax(1)
    threat = ThreatModel("linf", 0.05)
    W = linear[1].weight.detach()
    low, high = ((images.flatten(1) + s * threat.eps).clamp(0, 1) for s in (-1, 1))  # type: ignore[operator]
    exact = []
    for x_low, x_high, y in zip(low, high, labels, strict=True):
        rows = W[y] - W[[j for j in range(3) if j != y]]  # type: ignore[index]
        bias = linear[1].bias[y] - linear[1].bias[[j for j in range(3) if j != y]]  # type: ignore[index]
        exact.append((rows.clamp(min=0) @ x_low + rows.clamp(max=0) @ x_high + bias).min())
    bounds = Crown(net, threat, 3).margins(images, labels)
    torch.testing.assert_close(bounds, torch.stack(exact).detach(), rtol=1e-7, atol=1e-7)


def test_one_unstable_neuron_is_enclosed_by_its_chord() -> None:
    """z_0 - z_1 = 1 - relu(x) with x in [-0.1, 0.3] (as x - 0.2 of [0.1, 0.5]): the chord above
    relu touches it at the end, so the bound is exact, 0.7.
    """
    with isolated(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        net[1].weight.fill_(1), net[1].bias.fill_(-0.2)  # type: ignore[operator]
        net[3].weight.copy_(torch.tensor([[0.0], [1.0]])), net[3].bias.copy_(torch.tensor([1.0, 0]))  # type: ignore[operator]
    image = torch.full((1, 1, 1, 1), 0.3).double()
    bound = Crown(net, ThreatModel("linf", 0.2), 2).margins(image, torch.tensor([0]))
    assert bound.item() == pytest.approx(0.7, abs=1e-7)


def test_alpha_is_never_looser_and_sometimes_tighter() -> None:
    net, images = _net("dense", 1), _images(20)
    labels = net(images).argmax(1)
    crown = Crown(net, ThreatModel("linf", 0.3), 3)
    plain, ascended = (crown.margins(images, labels, steps=steps) for steps in (0, 30))
    assert (ascended >= plain - 1e-12).all()
    assert (ascended > plain + 1e-3).any()


def test_a_network_that_is_too_wide_is_refused_before_anything_is_computed(monkeypatch) -> None:
    """Dense layers of 16, 8 and 8: the widest matrix has 16 x 8 entries."""
    classifier = Classifier(_net("dense").float(), 3)
    assert certifiable(classifier, SHAPE)(_images()).dtype == torch.float64
    monkeypatch.setattr(network, "WIDEST", 127)
    with pytest.raises(BadInput, match="too wide"):
        certifiable(classifier, SHAPE)


def test_the_shipped_network_fits() -> None:
    classifier = load_classifier("zoo:mnist5k-cnn")
    logits = certifiable(classifier, (1, 28, 28))(torch.zeros(1, 1, 28, 28).double())
    assert logits.shape == (1, 10)


def test_what_is_not_affine_but_for_relu_is_told() -> None:
    assert is_piecewise_affine(_net("residual"), SHAPE)
    for other in (nn.GELU(), nn.MaxPool2d(2), nn.LeakyReLU()):
        with isolated(0):
            net = nn.Sequential(other, nn.Flatten(), nn.LazyLinear(3)).double()
            net(_images())
        assert not is_piecewise_affine(net, SHAPE)


class Deep(nn.Module):
    """Convolutions whose matrices are sparse, a residual add, and layers that are dense."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.third, self.head = nn.Linear(100, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y = (self.second(y) + y).relu()
        return self.head(self.third(y.flatten(1)).relu())


DEEP_SHAPE = (1, 6, 6)


def _deep() -> tuple[nn.Module, list[tuple[int, ...]], list[Segment]]:
    with isolated(4):
        net = Deep().double()
    inputs = relu_inputs(net, torch.zeros(1, *DEEP_SHAPE, dtype=torch.float64))[:-1]
    shapes = [tuple(z.shape[1:]) for z in inputs]
    segments = [segment(net, DEEP_SHAPE, shapes[: k + 1], 5) for k in range(len(shapes))]
    return net, shapes, segments


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("parallel", [False, True])
def test_matrices_give_the_bounds_that_the_network_itself_gives(sign: int, parallel: bool) -> None:
    net, shapes, segments = _deep()
    generator = torch.Generator().manual_seed(3)
    for target in range(3):
        lines = []
        for shape in shapes[:target]:
            centre, radius = torch.randn(2, 1, *shape, generator=generator).double()
            one = Lines.between(centre - radius.abs(), centre + radius.abs())
            lines.append(one.parallel() if parallel else one)
        width = torch.Size(shapes[target]).numel()
        aims = sign * torch.eye(width).double().reshape(width, *shapes[target])
        rows = torch.zeros(width, dtype=torch.long)
        whole = backward(net, DEEP_SHAPE, [one.rows(rows) for one in lines], aims)
        ours = through(
            segments[: target + 1],
            [lines_of(one, 0) for one in lines],
            torch.arange(width),
            DEEP_SHAPE,
            sign,
        )
        for name in ("coefficients", "below", *(["above"] if parallel else [])):
            torch.testing.assert_close(getattr(ours, name), getattr(whole, name))
        assert (ours.size >= ours.below.abs() - 1e-9).all()


def test_the_first_matrices_are_sparse_and_the_last_dense() -> None:
    _, _, (first, second, third) = _deep()
    assert first.matrices[-1].nnz == 100 * 4
    assert set(second.matrices) == {0} and second.matrices[0].nnz < 100 * 10
    assert isinstance(third.matrices[1], np.ndarray) and third.matrices[1].shape == (7, 100)


def test_intervals_hold_and_are_attained_by_a_single_layer() -> None:
    net, _, segments = _deep()
    images = torch.rand(3, *DEEP_SHAPE, generator=torch.Generator().manual_seed(1)).double()
    low, high = ({-1: (images + s * 0.1).flatten(1)} for s in (-1, 1))
    least, greatest = segments[0].interval(low, high)
    weights = net.first.weight.detach().abs().sum((1, 2, 3))  # type: ignore[union-attr, operator]
    width = (greatest - least).reshape(3, 4, 5, 5)
    torch.testing.assert_close(width, 0.2 * weights[None, :, None, None].expand_as(width))
    middle = relu_inputs(net, images)[0].flatten(1)
    torch.testing.assert_close((least + greatest) / 2, middle)
    assert (least < middle).all() and (middle < greatest).all()
    # Of a single image the bounds lie apart by what rounding may lose, and by no more.
    point = {-1: images.flatten(1)}
    least, greatest = segments[0].interval(point, point)
    assert (least < greatest).all() and (greatest - least < 1e-9).all()
