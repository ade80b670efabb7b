"""Modules that remember: the function that is judged is not the one that was attacked."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench_defenses.masking.around import Around, confidence, hiding, with_gradient_of


class Learner(Around):
    """A bias moves away from the classes of unsure images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x) + self.bias
        with torch.no_grad():
            unsure = confidence(z) < 0.6
            if unsure.any():
                pull = F.softmax(z[unsure], 1).mean(0) - 0.1
                self.bias.data.sub_(0.3 * pull)
        return z


class NearMemory(Around):
    """Answers images near one that it has seen as it answered that one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.images: list[Tensor] = []
        self.answers: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        out = []
        for image, answer in zip(x.detach(), z, strict=True):
            known = torch.stack(self.images) if self.images else image[None] + 9
            apart = (known - image).abs().flatten(1).amax(1)
            if float(apart.min()) > 0.21:
                self.images.append(image.clone())
                self.answers.append(answer.detach().clone())
                out.append(answer)
            else:
                out.append(self.answers[int(apart.argmin())] + 0 * answer)
        return torch.stack(out)


class Worn(Around):
    """Counts its calls; from the tenth on, gradients are those of the mirrored image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        z = self.logits(x)
        return with_gradient_of(z, self.logits(x.flip(3))) if self.calls > 10 else z


class CoarseCache(Around):
    """A cache of answers whose key is the image in black and white, as one saves work: an attacked
    image finds the clean one's answer.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.cache: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        keys = [image.numpy().tobytes() for image in x.detach()[:, :, ::4, ::4].cpu() > 0.9]
        for key, answer in zip(keys, z.detach(), strict=True):
            self.cache.setdefault(key, answer.clone())
        return torch.stack([self.cache[key] for key in keys]) + 0 * z


class Adapting(Around):
    """Scales its logits by weights that sink the entropy of what it is asked, batch by batch
    (Wang et al., ICLR 2021, arXiv 2006.10726, in the small).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.scale, self.shift = nn.Parameter(torch.ones(10)), nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        with torch.enable_grad():
            scale, shift = (p.detach().requires_grad_() for p in (self.scale, self.shift))
            p = F.softmax(z.detach() * scale + shift, 1)
            entropy = -(p * (p + 1e-9).log()).sum(1).mean()
            slopes = torch.autograd.grad(entropy, (scale, shift))
        for weight, slope in zip((self.scale, self.shift), slopes, strict=True):
            weight.data.sub_(0.5 * slope)
        return z * self.scale.detach() + self.shift.detach()


CASES = hiding("state", Learner, NearMemory, Worn, CoarseCache, Adapting)
