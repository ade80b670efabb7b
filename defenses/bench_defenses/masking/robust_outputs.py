"""Controls: around a certified network, where a number near the clean accuracy is right, outputs
and inputs that look like masking.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.engine.setup import Setup
from bench.studies.cases import Case, Place
from bench_defenses.masking.around import Honest, bare

_CERTIFIED = Place("npz:data/mnist.npz", "file:models/mnist_kw_0.1.safetensors", 0.1, 64)


class CertifiedSoftmax(Honest):
    """Probabilities of a certified network."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.logits(x), 1)


class CertifiedClamp(Honest):
    """A certified network that clamps its input to the box."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.clamp(0, 1))


class CertifiedRounding(Honest):
    """A certified network behind rounding without a slope: no gradient at all, and robust."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits((x * 255).round() / 255)


class CertifiedSigmoid(Honest):
    """A certified network behind a steep sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(4 * self.logits(x))


def _case(module: type[Honest]) -> Case:
    def make(setup: Setup) -> Honest:
        return module(bare(setup)).eval()

    name = module.__name__.replace("Certified", "certified-").lower()
    hides = " ".join((module.__doc__ or "").split())
    return Case(name, "robust-output", hides, False, make=make, place=_CERTIFIED)


CASES = tuple(
    _case(module)
    for module in (CertifiedSoftmax, CertifiedClamp, CertifiedRounding, CertifiedSigmoid)
)
