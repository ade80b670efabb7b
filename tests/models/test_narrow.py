"""bfloat16 for a while: nearly the same function, its gradients, and no trace."""

import pytest
import torch
from torch import nn

from bench.models.folding import Folding, find_pairs
from bench.models.narrow import Narrow
from bench.noise import isolated
from tests.models.test_folding import Firm, Net, images, slope


@pytest.mark.parametrize("folded", [False, True])
def test_it_is_nearly_the_same_function_and_leaves_no_trace(folded):
    net, x = Firm(), images()
    folding = Folding(net, find_pairs(net, lambda: net(x))) if folded else None
    narrow, parameters = Narrow(net, "cpu", folding), dict(net.named_parameters())
    (plain, of_plain), outputs = slope(net, x), []
    handle = net[0].register_forward_hook(lambda part, _, output: outputs.append(output))
    with narrow:
        quick, of_quick = slope(net, x)
        assert ("forward" in vars(net[1])) == folded
    handle.remove()
    (output,) = outputs
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    largest = float(plain.abs().max())
    assert 1e-6 * largest < float((quick - plain).abs().max()) < 0.03 * largest
    # A block that is over leaves its gradients, in float32.
    one, other = of_plain(), of_quick()
    assert other.dtype == torch.float32
    assert float((one - other).norm()) < 0.3 * float(one.norm())
    assert torch.equal(net(x), plain) and "forward" not in vars(net[1])
    assert all(parameters[name] is part for name, part in net.named_parameters())
    assert not torch.is_autocast_enabled("cpu")


def test_an_error_inside_leaves_no_trace():
    net, x = Net(), images()
    narrow, plain = Narrow(net, "cpu"), net(x)
    with pytest.raises(ZeroDivisionError), narrow:
        raise ZeroDivisionError
    assert torch.equal(net(x), plain) and not torch.is_autocast_enabled("cpu")


def test_layers_that_may_compute_anything_keep_their_weights():
    class Other(nn.Linear):
        pass

    with isolated(0):
        net = nn.Sequential(Other(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).double()).eval()
    net[1].register_forward_pre_hook(lambda part, inputs: None)
    with Narrow(net, "cpu"):
        assert [one.weight.dtype for one in net] == [torch.float32, torch.float32, torch.float64]
