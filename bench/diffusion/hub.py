"""`hf:OWNER/NAME`: diffusion models on the Hugging Face hub."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from bench.diffusion.layout import Place, Which, read_model
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.source import DiffusionSource
from bench.diffusion.unet import build_unet
from bench.models.hub import find_on_hub
from bench.models.sketch import Sketch
from bench.spec import Params
from bench.storage.download import offline

_TRAINED_ON = {
    "google/ddpm-cifar10-32": ("cifar10/train",),
    "google/ddpm-ema-cifar10-32": ("cifar10/train",),
}


_CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
"""What config.json of the models in `_TRAINED_ON` says, for plans made without it."""


class HfParams(Params):
    repo: str = Field(
        description="OWNER/NAME on the Hugging Face hub, such as google/ddpm-ema-cifar10-32"
    )
    revision: str = Field("", description="commit or tag; the newest where empty")


class Hf(DiffusionSource[HfParams]):
    """A repository of the Hugging Face hub in the layout of diffusers; only the files in use are
    downloaded.
    """

    Params: ClassVar[type[Params]] = HfParams
    positional: ClassVar[str | None] = "repo"

    def load(self) -> DiffusionModel:
        """The model on the CPU, frozen, in evaluation mode.

        Raises `BadInput` where the repository has another layout or cannot be reached, or a package
        is missing.
        """
        return read_model(
            _place(self.params.repo, self.params.revision),
            Which(),
            trained_on=_TRAINED_ON.get(self.params.repo, ()),
        )

    def architecture(self) -> DiffusionModel | None:
        """The model, where it is one whose configuration is known here."""
        repo = self.params.repo
        if repo not in _TRAINED_ON:
            return None
        network = Sketch(lambda: build_unet(_CIFAR10), f"hf:{repo}")
        return DiffusionModel(
            network, linear_alpha_bar(), (3, 32, 32), trained_on=_TRAINED_ON[repo]
        )


def _place(repo: str, revision: str) -> Place:
    page = f"https://huggingface.co/{repo}"
    instead = f"folder:PATH with a copy of {page}"
    why = (
        f"it comes from {page}, and {offline()} is set; go online, or give"
        if offline()
        else "give a model that diffusers saved with its scheduler, or"
    )
    find = partial(find_on_hub, repo, revision=revision or None, instead=instead)
    return Place(f"{repo} on the Hugging Face hub", find, f"{why} {instead}")
