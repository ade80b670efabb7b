"""Gradients through a diffusion chain: rebuilt step by step against plain backpropagation and
torch.utils.checkpoint, in one run.

    pytest benchmarks/test_chain_gradients.py -s

Times are medians of five on the 280,177-parameter network of mnist5k; bytes are what autograd
keeps, counted by saved-tensor hooks on the network of google/ddpm-cifar10-32 (fresh weights, 3 x 32
x 32).
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bench.diffusion.backward import run_checkpointed
from bench.diffusion.chain import Sampler, indices, links, run
from bench.diffusion.load import load_model
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.unet import build_unet
from bench.engine.memory import SavedBytes
from bench.noise import Noise, Stream

ROWS, STEPS = 16, 10

CIFAR = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def library_checkpoint(steps, z, origin):
    for step in steps:
        z = checkpoint(step, z, origin, use_reentrant=False, preserve_rng_state=False)
    return z


def gradient(runner):
    model = load_model("zoo:mnist5k-ddpm")
    noise = Noise.of(0, Stream.FIXED, range(ROWS))
    leaf = noise.uniform("image", (1, 28, 28)).mul(2).sub(1).requires_grad_()
    output = runner(links(model, indices(200, STEPS), Sampler(), noise), leaf, leaf)
    return torch.autograd.grad(output.square().sum(), leaf)[0]


@pytest.mark.parametrize(
    "runner",
    [run, run_checkpointed, library_checkpoint],
    ids=["plain", "rebuilt", "torch.utils.checkpoint"],
)
def test_time(benchmark, runner):
    torch.set_num_threads(1)
    benchmark.group = f"gradient of {STEPS} steps, {ROWS} images"
    slope = benchmark.pedantic(gradient, args=(runner,), rounds=5, warmup_rounds=1)
    assert torch.equal(slope, gradient(run))


def test_bytes():
    network = build_unet(CIFAR).eval().requires_grad_(False)
    model = DiffusionModel(network, linear_alpha_bar(), (3, 32, 32))
    noise, state = Noise.of(0, Stream.FIXED, [0]), 3 * 32 * 32 * 4
    saved = {}
    for count in (10, 100):
        leaf = noise.uniform("image", model.shape).requires_grad_()
        with SavedBytes(model.parameters()) as states:
            run_checkpointed(links(model, indices(count, count), Sampler(), noise), leaf, leaf)
        saved[count] = states.total
    leaf = noise.uniform("image", model.shape).requires_grad_()
    with SavedBytes(model.parameters()) as one:
        run(links(model, [0], Sampler(), noise), leaf, leaf)
    peak = {count: kept + one.total for count, kept in saved.items()}
    kept = f"states of 10 steps {saved[10] / 2**10:.0f} KiB, of 100 {saved[100] / 2**10:.0f} KiB"
    print(
        f"\none step keeps {one.total / 2**20:.1f} MiB; {kept}; the peak grows by "
        f"{peak[100] / peak[10] - 1:.2%}"
    )
    assert saved[100] - saved[10] <= 2 * state * 90
    assert peak[100] <= 1.05 * peak[10]
