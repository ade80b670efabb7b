"""The U-Net of the package diffusers, from its configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from bench.errors import BadInput, one_line
from bench.noise import isolated


def build_unet(config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """An `UNet2DModel` with fresh weights.

    Args:
        config: its arguments, as in a published config.json; keys that begin with an underscore are
            ignored.
        seed: of the fresh weights.

    Raises `BadInput` where diffusers is missing or does not take this configuration.
    """
    kind = _unet_class()
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with isolated(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            network = kind(**arguments)
    except Exception as error:
        raise BadInput(
            f"diffusers builds no UNet2DModel from this configuration ({one_line(error)}): check "
            "config.json"
        ) from error
    return cast(nn.Module, network)


def _unet_class() -> Any:
    try:
        # Importing it draws random numbers.
        with isolated(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers import UNet2DModel
    except ImportError as error:
        why = f"diffusion models need the package diffusers ({one_line(error)})"
        raise BadInput(f"{why}: pip install 'adversarial-bench[diffusion]'") from error
    return UNet2DModel
