"""Defenses that change the logits and nothing else."""

from __future__ import annotations

from torch import Tensor

from bench.defense import Forward, Wrapper, straight_through


class OutputTransform(Wrapper):
    """A classifier whose logits go through `transform`.

    The gradient `bpda` keeps the transform forward and takes the logits' own gradient backward.
    """

    gradients: tuple[str, ...] = ("full", "bpda")

    def transform(self, logits: Tensor) -> Tensor:
        """Logits (n, num_classes) to what is returned in their place, of the same shape."""
        raise NotImplementedError

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The gradients in `gradients`; one that the classifier offers too reaches through
        to it.
        """
        inner = self.inner(gradient, view)
        if view != "logits":
            return inner
        if gradient == "bpda" and "bpda" in type(self).gradients:
            return lambda images, noise: self._bpda(inner(images, noise))
        return lambda images, noise: self.transform(inner(images, noise))

    def _bpda(self, logits: Tensor) -> Tensor:
        return straight_through(self.transform(logits.detach()), logits)
