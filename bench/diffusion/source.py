"""The contract of a diffusion source: where a trained diffusion model comes from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from bench.diffusion.model import DiffusionModel
from bench.plugins.plugin import P, Plugin


class DiffusionSource(Plugin[P]):
    """A source of diffusion models. Subclasses set the class attributes and write `load`."""

    @abstractmethod
    def load(self) -> DiffusionModel:
        """The model on the CPU, weights frozen, in evaluation mode. Raises `BadInput` where it
        cannot be read.
        """

    def architecture(self) -> DiffusionModel | None:
        """The model, whatever its weights: what a plan counts where their file is missing. Its
        network is a `bench.models.sketch.Sketch`. None where only the file says what it is.
        """
        return None

    def kept(self) -> Sequence[tuple[int, str]]:
        """The weights that are kept of a training: (steps taken, `ema` or `raw`), rising; the
        parameters `step` and `weights` choose among them. Empty where there is one set alone.
        """
        return ()
