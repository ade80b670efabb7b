"""`hf:OWNER/NAME`: diffusion models on the Hugging Face hub."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from bench.diffusion.layout import Place, Which, read_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.source import DiffusionSource
from bench.models.hub import find_on_hub
from bench.spec import Params
from bench.storage.download import offline

_TRAINED_ON = {
    "google/ddpm-cifar10-32": ("cifar10/train",),
    "google/ddpm-ema-cifar10-32": ("cifar10/train",),
}


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


def _place(repo: str, revision: str) -> Place:
    page = f"https://huggingface.co/{repo}"
    instead = f"folder:PATH with a copy of {page}"
    why = (
        f"{offline()} is set; go online, or give"
        if offline()
        else "give a model that diffusers saved with its scheduler, or"
    )
    find = partial(find_on_hub, repo, revision=revision or None, instead=instead)
    return Place(f"{repo} on the Hugging Face hub", find, f"{why} {instead}")
