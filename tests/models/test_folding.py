"""Batch normalisation folded into convolutions: which pairs, the same function, and no trace."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from bench.models.folding import Folding, candidates, find_pairs
from bench.noise import isolated


class Net(nn.Sequential):
    """Two convolutions with batch normalisations that do something, and a head."""

    def __init__(self, *, affine: bool = True) -> None:
        with isolated(1):
            super().__init__(
                nn.Conv2d(1, 4, 3, padding=1, bias=not affine),
                nn.BatchNorm2d(4, affine=affine),
                nn.ReLU(inplace=True),
                nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="reflect"),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(96, 3),
            )
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.2, 3)
                    if part.affine:
                        nn.init.uniform_(part.weight, -2, 2)
                        nn.init.normal_(part.bias)
        self.eval().requires_grad_(False)
        # So that every class is some image's.
        self[7].bias -= self(images()).mean(0)


class Firm(Net):
    """Its features tell images apart in a few digits: both normalisations do what they are for."""

    def __init__(self) -> None:
        super().__init__()
        features = images()
        for part in self:
            if isinstance(part, nn.BatchNorm2d):
                part.running_var, part.running_mean = torch.var_mean(features, (0, 2, 3))
            if part is self[7]:
                part.bias -= part(features).mean(0)
            features = part(features)


def images() -> torch.Tensor:
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def slope(net, x):
    leaf = x.clone().requires_grad_()
    output = net(leaf)
    return output.detach(), lambda: torch.autograd.grad(output[:, 0].sum(), leaf)[0]


@pytest.mark.parametrize("affine", [True, False])
def test_a_fold_is_the_same_function_and_leaves_no_trace(affine):
    net, x = Net(affine=affine), images()
    pairs = find_pairs(net, lambda: net(x))
    assert pairs == [("0", "1"), ("3", "4")]
    folding, parameters = Folding(net, pairs), dict(net.named_parameters())
    plain, of_plain = slope(net, x)
    with folding:
        calls = []
        handle = net[1].register_forward_hook(
            lambda _, inputs, output: calls.append(inputs[0] is output)
        )
        folded, of_folded = slope(net, x)
        handle.remove()
    assert calls == [True], "the normalisation still computes something"
    assert not torch.equal(folded, plain) and torch.allclose(folded, plain, rtol=1e-5, atol=1e-5)
    assert torch.allclose(of_folded(), of_plain(), rtol=1e-4, atol=1e-5)
    assert torch.equal(net(x), plain)
    after = dict(net.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in after)
    assert "forward" not in vars(net[1])


def test_what_comes_out_of_images_of_one_channel_lies_like_the_kernels():
    net, x = Net(), images()
    pairs = find_pairs(net, lambda: net(x))
    for layout in (torch.channels_last, torch.contiguous_format):
        with Folding(net, pairs, layout):
            assert net[0](x).is_contiguous(memory_format=layout)


class Twice(nn.Module):
    """Reads the convolution's output in place, beside, or under two normalisations."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.net, self.other = how, Net(), nn.BatchNorm2d(4).eval()

    def forward(self, x):
        conv, norm = self.net[0], self.net[1]
        out = conv(x)
        if self.how == "in place":
            out.mul_(2)
        if self.how == "again":
            return norm(norm(out))
        if self.how == "two":
            return norm(out) + self.other(out)
        if self.how == "alone":
            return norm(out) + norm(x.expand(-1, 4, -1, -1))
        if self.how == "calls":
            return norm(out) + conv(x)
        return norm(out)


@pytest.mark.parametrize("how", ["in place", "again", "two", "alone", "calls"])
def test_a_normalisation_that_reads_anything_else_is_no_pair(how):
    module = Twice(how).eval()
    assert find_pairs(module, lambda: module(images())) == []


def test_what_somebody_hung_on_a_part_is_kept():
    changes = {
        "trains": lambda net: net[1].train(),
        "hook": lambda net: net[1].register_forward_hook(lambda *_: None),
        "parametrised": lambda net: register_parametrization(net[0], "weight", nn.Identity()),
        "own forward": lambda net: vars(net[0]).update(forward=net[0]._conv_forward),
        "other numbers": lambda net: net[0].double(),
        "batch statistics": lambda net: vars(net[1])["_buffers"].update(running_mean=None),
    }
    for name, change in changes.items():
        net = Net()
        change(net)
        parts = list(net)
        first, rest = nn.Sequential(*parts[:2]), nn.Sequential(*parts[3:])
        x = images().expand(-1, 4, -1, -1)
        assert find_pairs(rest, partial(rest, x)) == [("0", "1")]
        assert not candidates(first), name
    assert candidates(Net()) and not candidates(nn.Sequential(nn.ReLU()))
