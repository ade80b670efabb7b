"""`folder:PATH`: a diffusion model in a folder of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bench.diffusion.layout import Place, Which, in_folder, kept_weights, read_model
from bench.diffusion.model import DiffusionModel
from bench.diffusion.source import DiffusionSource
from bench.spec import Params


class FolderParams(Which):
    path: str = Field(
        description="a folder in the layout of diffusers, such as bench train-diffusion writes"
    )
    subfolder: str = Field(
        "", description="where the network lies in it; the folder itself or unet where empty"
    )


class Folder(DiffusionSource[FolderParams]):
    """A folder in the layout of diffusers: config.json, weights, scheduler_config.json, and
    bench.json where there is one.
    """

    Params: ClassVar[type[Params]] = FolderParams
    positional: ClassVar[str | None] = "path"

    def load(self) -> DiffusionModel:
        """The model on the CPU, frozen, in evaluation mode. Raises `BadInput` where the folder
        cannot be used.
        """
        return read_model(self._place, self.params, subfolder=self.params.subfolder)

    def kept(self) -> list[tuple[int, str]]:
        return kept_weights(self._place, self.params.subfolder)

    @property
    def _place(self) -> Place:
        return in_folder(Path(self.params.path).expanduser())
