"""`guided:PATH`: the unconditional ImageNet model of guided diffusion.

Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021, arXiv
2105.05233; their code is under the MIT licence. The network is a `UNet2DModel` of diffusers under
other names: residual blocks that scale and shift by time and that also halve and double the
resolution, and attention whose queries, keys and values lie together, head by head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.source import DiffusionSource
from bench.diffusion.unet import build_unet
from bench.errors import BadInput, Missing
from bench.models.checkpoint import read_state
from bench.models.file import fill_exactly, frozen
from bench.models.sketch import Sketch
from bench.plugins.registry import existing_file
from bench.spec import Integers, Params

URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt"
_COLOURS = 3
_GROUPS = 32

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


class GuidedParams(Params):
    """Parameters of `guided`; the defaults are those of 256x256_diffusion_uncond.pt."""

    path: str = Field(
        description="256x256_diffusion_uncond.pt, or a state dict of a network of this kind"
    )
    size: int = Field(default=256, ge=1, description="side of its images")
    channels: Integers = Field(
        default=(256, 256, 512, 512, 1024, 1024),
        min_length=1,
        description="at each resolution, multiples of 32",
    )
    layers: int = Field(default=2, ge=1, description="residual blocks at each resolution")
    attention: Integers = Field(default=(32, 16, 8), description="resolutions with attention")
    head: int = Field(default=64, ge=1, description="channels of an attention head")


class Guided(DiffusionSource[GuidedParams]):
    """The 256 x 256 unconditional ImageNet model of guided diffusion (arXiv 2105.05233), which
    learned its variance.
    """

    Params: ClassVar[type[Params]] = GuidedParams
    positional: ClassVar[str | None] = "path"

    def load(self) -> DiffusionModel:
        """The model on the CPU, frozen, in evaluation mode. Raises `BadInput` where the file is
        missing or does not fit.
        """
        asked = self.params
        _check(asked)
        path = _existing(asked.path)
        # Before the network: building it takes a minute.
        state = dict(converted(read_state(path, path.read_bytes()), asked, path))
        network = build_unet(configuration(asked))
        fill_exactly(network, state, path)
        return frozen(self._around(network))

    def architecture(self) -> DiffusionModel:
        """The model that the parameters describe."""
        asked = self.params
        _check(asked)
        return self._around(Sketch(lambda: build_unet(configuration(asked)), f"guided:{asked}"))

    def _around(self, network: nn.Module) -> DiffusionModel:
        asked = self.params
        published = asked == GuidedParams(path=asked.path)
        trained_on = ("imagenet/train",) if published else ()
        shape = (_COLOURS, asked.size, asked.size)
        return DiffusionModel(network, linear_alpha_bar(), shape, trained_on=trained_on)


def _existing(path: str) -> Path:
    try:
        return existing_file(path, "guided:PATH")
    except Missing as error:
        raise Missing(f"{error}; the published file is {URL}") from None


def configuration(asked: GuidedParams) -> dict[str, Any]:
    """The network's configuration for diffusers."""
    attends = _attends(asked)
    down = ["AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attends]
    up = ["AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attends)]
    return {
        "sample_size": asked.size,
        "in_channels": _COLOURS,
        "out_channels": 2 * _COLOURS,
        "block_out_channels": list(asked.channels),
        "layers_per_block": asked.layers,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": asked.head,
        "norm_num_groups": _GROUPS,
        "attn_norm_num_groups": _GROUPS,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def converted(
    state: dict[str, Tensor], asked: GuidedParams, path: Path
) -> Iterator[tuple[str, Tensor]]:
    """The state under diffusers' names; a tensor that this network does not have keeps its own.

    Raises `BadInput` for queries, keys and values that do not split into heads.
    """
    names = dict(layer_names(asked))
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        name = names.get(module, module)
        if name.endswith(".qkv"):
            yield from _split(f"{path}: {key}", value, name.removesuffix("qkv"), leaf, asked.head)
        else:
            # Attention is a convolution of length 1 there and a linear layer here.
            yield (
                f"{name}.{leaf}",
                value.squeeze(-1) if name.endswith("to_out.0") and value.dim() == 3 else value,
            )


def _split(
    what: str, value: Tensor, home: str, leaf: str, head: int
) -> Iterator[tuple[str, Tensor]]:
    if value.dim() == 0 or len(value) % (3 * head):
        raise BadInput(
            f"{what} has shape {tuple(value.shape)}, which {head} channels a head do not divide: "
            "check head="
        )
    queries_keys_values = value.reshape(-1, 3, head, *value.shape[1:2]).unbind(1)
    for letter, weights in zip("qkv", queries_keys_values, strict=True):
        yield f"{home}to_{letter}.{leaf}", weights.flatten(0, 1)


def layer_names(asked: GuidedParams) -> Iterator[tuple[str, str]]:
    """Pairs of names of layers, theirs and ours."""
    yield from _ENDS.items()
    for theirs, ours in [*_middle(), *_downwards(asked), *_upwards(asked)]:
        for inner, name in (_ATTENTION if ".attentions." in ours else _RESIDUAL).items():
            yield f"{theirs}.{inner}", f"{ours}.{name}"


def _middle() -> Iterator[tuple[str, str]]:
    blocks = ("resnets.0", "attentions.0", "resnets.1")
    return ((f"middle_block.{place}", f"mid_block.{block}") for place, block in enumerate(blocks))


def _downwards(asked: GuidedParams) -> Iterator[tuple[str, str]]:
    count = itertools.count(1)
    for level, attends in enumerate(_attends(asked)):
        home = f"down_blocks.{level}"
        for layer in range(asked.layers):
            place = f"input_blocks.{next(count)}"
            yield f"{place}.0", f"{home}.resnets.{layer}"
            if attends:
                yield f"{place}.1", f"{home}.attentions.{layer}"
        if level < len(asked.channels) - 1:
            yield f"input_blocks.{next(count)}.0", f"{home}.downsamplers.0"


def _upwards(asked: GuidedParams) -> Iterator[tuple[str, str]]:
    count = itertools.count()
    for level, attends in enumerate(reversed(_attends(asked))):
        home = f"up_blocks.{level}"
        for layer in range(asked.layers + 1):
            place = f"output_blocks.{next(count)}"
            yield f"{place}.0", f"{home}.resnets.{layer}"
            if attends:
                yield f"{place}.1", f"{home}.attentions.{layer}"
        if level < len(asked.channels) - 1:
            yield f"{place}.{1 + attends}", f"{home}.upsamplers.0"


def _attends(asked: GuidedParams) -> list[bool]:
    """Whether each resolution, finest first, has attention."""
    return [asked.size // 2**level in asked.attention for level in range(len(asked.channels))]


def _check(asked: GuidedParams) -> None:
    halvings = 2 ** (len(asked.channels) - 1)
    if asked.size % halvings:
        raise BadInput(
            f"images of side {asked.size} cannot be halved {len(asked.channels) - 1} times: check "
            "size= and channels="
        )
    if any(number < 1 or number % _GROUPS for number in asked.channels):
        raise BadInput(
            f"channels={'+'.join(map(str, asked.channels))}: each must be a multiple of {_GROUPS}"
        )
    # diffusers would round the number of heads down.
    attending = [
        number for number, here in zip(asked.channels, _attends(asked), strict=True) if here
    ]
    if any(number % asked.head for number in (*attending, asked.channels[-1])):
        raise BadInput(
            f"heads of {asked.head} channels do not divide the channels where there is attention: "
            "check head="
        )
