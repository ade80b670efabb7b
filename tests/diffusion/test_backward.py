"""Steps that are computed again on the way back."""

import pytest
import torch

from bench.diffusion.backward import run_checkpointed
from bench.diffusion.chain import Sampler, indices, links, run
from bench.engine.memory import SavedBytes
from bench.models.narrow import Narrow
from tests.defenses.purification.helpers import SIDE, images, noise, tiny_unet


def test_a_generator_with_state_inside_a_checkpointed_step_is_rejected():
    generator = torch.Generator().manual_seed(0)
    steps = [lambda z, origin: z + torch.randn(z.shape, generator=generator)] * 3
    leaf = images().requires_grad_()
    output = run_checkpointed(steps, leaf, leaf)
    with pytest.raises(RuntimeError, match="came out otherwise"):
        torch.autograd.grad(output.sum(), leaf)


def saved(steps: int) -> int:
    model, z = tiny_unet(), images(1)
    leaf = (2 * z - 1).requires_grad_()
    chain = links(model, indices(steps, steps), Sampler(), noise(1))
    with SavedBytes(model.parameters()) as counter:
        run_checkpointed(chain, leaf, leaf)
    return counter.total


def test_checkpointing_saves_at_most_two_states_a_step():
    state = SIDE * SIDE * 4
    assert saved(100) - saved(10) <= 2 * state * 90
    model, leaf = tiny_unet(), images(1).requires_grad_()
    with SavedBytes(model.parameters()) as plain:
        run(links(model, indices(10, 10), Sampler(), noise(1)), leaf, leaf)
    assert plain.total > 10 * saved(10), "plain backpropagation keeps every activation"


def test_steps_in_bfloat16_are_computed_again_in_bfloat16():
    model, kinds = tiny_unet().eval(), []
    model.register_forward_hook(
        lambda part, _, output: kinds.append(torch.is_autocast_enabled("cpu"))
    )
    slopes = []
    for runner in (run, run_checkpointed):
        leaf = (2 * images() - 1).requires_grad_()
        chain = links(model, indices(3, 3), Sampler(), noise())
        with Narrow(model, "cpu"):
            output = runner(chain, leaf, leaf)
        slopes.append(torch.autograd.grad(output.sum(), leaf)[0])
    assert kinds == [True] * 9
    plain, rebuilt = slopes
    assert 0 < float((plain - rebuilt).norm()) < 0.05 * float(plain.norm())
