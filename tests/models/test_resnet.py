"""Residual networks, block by block."""

import pytest
import torch

from bench.models.nets import build


def test_projection_keys():
    extra = set(build("resnet20-projection", 10, 3).state_dict()) - set(
        build("resnet20", 10, 3).state_dict()
    )
    assert {key.rpartition(".")[0] for key in extra} == {
        "layer2.0.shortcut.0",
        "layer2.0.shortcut.1",
        "layer3.0.shortcut.0",
        "layer3.0.shortcut.1",
    }


def test_padded_shortcut_by_hand():
    shortcut = build("resnet20", 10, 3).layer2[0].shortcut
    x = torch.arange(16 * 4 * 4, dtype=torch.float32).reshape(1, 16, 4, 4)
    out = shortcut(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[0, 8:24], x[0, :, ::2, ::2])
    assert not out[0, :8].any()
    assert not out[0, 24:].any()


@pytest.mark.parametrize(
    ("arch", "sides"),
    [("resnet18", (28, 14, 7, 4)), ("wrn16-4", (28, 14, 7)), ("resnet20", (28, 14, 7))],
)
def test_stages_halve_the_maps_and_the_stem_does_not(arch, sides):
    network = build(arch, 10, 1).eval()
    seen = []
    for stage in range(len(sides)):
        network.get_submodule(f"layer{stage + 1}").register_forward_hook(
            lambda *call: seen.append(call[2].shape[3])
        )
    network(torch.zeros(1, 1, 28, 28))
    assert tuple(seen) == sides


def test_wide_block_by_hand():
    block = build("wrn16-4", 10, 3).layer2[0].eval()
    x = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    # Fresh batch norms divide by the square root of 1 + 1e-5, and that alone.
    active = (x / (1 + 1e-5) ** 0.5).relu()
    inner = block.conv2((block.conv1(active) / (1 + 1e-5) ** 0.5).relu())
    assert torch.allclose(block(x), inner + block.shortcut(active), atol=1e-5)
    same = build("wrn16-4", 10, 3).layer2[1].eval()
    assert same.shortcut is None
