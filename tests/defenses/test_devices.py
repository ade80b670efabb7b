"""Forward passes on a GPU that is not there: torch's fake tensors raise where devices mix."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.defense import DefendedClassifier
from bench.engine.build import build
from bench.engine.plan import plan
from bench.noise import Noise, Stream
from tests.helpers import toy_request


def on_a_gpu(defended: DefendedClassifier, shape: tuple[int, ...]) -> torch.Tensor:
    """The logits of four images, inside a fake mode; parameters and buffers are made anew there."""
    for part in defended.modules():
        for name, one in part.named_parameters(recurse=False):
            moved = torch.empty(one.shape, dtype=one.dtype, device="cuda")
            setattr(part, name, torch.nn.Parameter(moved, requires_grad=False))
        for name, one in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(one.shape, dtype=one.dtype, device="cuda"))
    images = torch.empty(4, *shape, device="cuda")
    with torch.no_grad():
        return defended(images, Noise.of(0, Stream.EVAL, range(4), device=images.device))


# Defenses whose shapes hang on random numbers, or that use NumPy, cannot run without numbers.
@pytest.mark.parametrize(
    "defense",
    ["undefended", "bit-depth", "smoothing", "gaussian-noise", "tvm"],
)
def test_a_forward_pass_stays_on_its_device(defense):
    evaluation = plan(toy_request(defenses=(defense,), attacks=("null",), n=4))[-1]
    defended = build(evaluation, torch.device("cpu"))
    with FakeTensorMode():
        logits = on_a_gpu(defended, tuple(evaluation.setup.images.images.shape[1:]))
    assert logits.device.type == "cuda" and logits.shape == (4, 3)


def test_a_tensor_that_stays_behind_is_met():
    class Shifted(DefendedClassifier):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.shift = torch.ones(3)

        def forward(self, images, noise):
            return images.flatten(1)[:, :3] + self.shift

    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="device"):
        on_a_gpu(Shifted(), (1, 2, 2))
