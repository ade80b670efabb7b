"""`file:PATH`: weights from a file, with what must be known to use them."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from bench.errors import BadInput, one_line
from bench.models.classifier import Classifier
from bench.models.nets import build, wrong_channels, wrong_classes
from bench.models.source import ClassifierSource
from bench.plugins.registry import existing_file
from bench.spec import Numbers, Params

_MANIFEST = "MANIFEST.json"
_TRAINED_ON = {"mnist": ("mnist/train",), "cifar": ("cifar10/train",)}
_EXPORT = "export the state dict to safetensors (safetensors.torch.save_file)"


M = TypeVar("M", bound=nn.Module)
B = TypeVar("B", bound=BaseModel)


class Description(BaseModel):
    """What must be known of weights: the content of PATH.json, or of an entry of MANIFEST.json;
    other keys are ignored.

    Attributes:
        arch: a name in `bench.models.nets.ARCHITECTURES`, or a list of layers.
        mean, std: one number a channel; both empty where images are not normalised.
        trained_on: names of image sets, such as `mnist/train`.
        dataset: a manifest's short word for the same, `mnist` or `cifar`.
        sha256: of the weights file; empty where it is not known.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    arch: str | list[list[str | int]]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    trained_on: tuple[str, ...] = ()
    dataset: str = ""
    sha256: str = ""


class FileParams(Params):
    path: str = Field(description="weights: .safetensors, or .pt/.pth with a state dict")
    arch: str = Field("", description="architecture, where no JSON file beside the weights says it")
    mean: Numbers = Field(
        (), description="mean of each channel; without it images are not normalised"
    )
    std: Numbers = Field((), description="standard deviation of each channel")


class File(ClassifierSource[FileParams]):
    """Weights from a file. PATH.json says how to use them, else MANIFEST.json beside it, else
    arch=, mean= and std=.
    """

    Params: ClassVar[type[Params]] = FileParams
    positional: ClassVar[str | None] = "path"

    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, frozen, in evaluation mode. Raises `BadInput` where the file cannot be
        used.
        """
        path = existing_file(self.params.path, "file:PATH")
        return read_classifier(path, self._description(path), num_classes, channels)

    def _description(self, path: Path) -> Description:
        described = describe(path)
        given = [key for key in ("arch", "mean", "std") if getattr(self.params, key)]
        if described is not None and given:
            raise BadInput(
                f"a JSON file beside {path} describes it, but {given[0]}= was given: drop one of "
                "them"
            )
        if described is not None:
            return described
        if not self.params.arch:
            raise BadInput(
                f"nothing says the architecture of {path}: add arch=NAME or {path.name}.json "
                "beside it"
            )
        return Description(arch=self.params.arch, mean=self.params.mean, std=self.params.std)


def describe(path: Path) -> Description | None:
    """The description in PATH.json, else in MANIFEST.json of the same folder, else None."""
    beside = path.with_name(f"{path.name}.json")
    if beside.is_file():
        return validated(Description, read_json(beside), str(beside))
    manifest = path.with_name(_MANIFEST)
    entries = read_json(manifest) if manifest.is_file() else []
    if not isinstance(entries, list):
        raise BadInput(
            f"{manifest} is not a list of entries: write one JSON object for each weights file"
        )
    mine = [
        entry for entry in entries if isinstance(entry, dict) and entry.get("file") == path.name
    ]
    return (
        validated(Description, mine[0], f"the entry of {path.name} in {manifest}") if mine else None
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `BadInput` where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} is not readable JSON ({one_line(error)}): repair or remove it"
        ) from error


def validated(kind: type[B], content: Any, what: str) -> B:
    """Content read from JSON as a model of pydantic. Raises `BadInput` with its first problem;
    `what` names the content.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = str(problem["loc"][0]) if problem["loc"] else "content"
        raise BadInput(
            f"{what} cannot be used: {where}: {problem['msg'].lower()}; correct it"
        ) from None


def read_classifier(path: Path, about: Description, num_classes: int, channels: int) -> Classifier:
    """The classifier whose weights lie in `path`, frozen, in evaluation mode.

    Raises `BadInput` where the file is damaged, is not the one described, or does not fit
    architecture or data set.
    """
    return assemble(path, read_verified(path, about.sha256), about, num_classes, channels)


def read_verified(path: Path, sha256: str) -> dict[str, Tensor]:
    """The state dict in a weights file. Raises `BadInput` where its SHA-256 is another one; an
    empty one is not compared.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256.lower():
        raise BadInput(
            f"{path} has SHA-256 {digest}, but its description says {sha256}: get the right file"
        )
    return read_state(path, content)


def assemble(
    path: Path, state: dict[str, Tensor], about: Description, num_classes: int, channels: int
) -> Classifier:
    """The described classifier with this state, frozen, in evaluation mode; `path` is where the
    state came from.

    Raises `BadInput` where the state does not fit architecture or data set.
    """
    network = build(about.arch, num_classes, channels)
    fill(network, state, path)
    check_normalisation(path, about.mean, channels)
    trained_on = about.trained_on or _TRAINED_ON.get(about.dataset, ())
    return frozen(
        Classifier(
            network,
            num_classes,
            mean=about.mean or None,
            std=about.std or None,
            trained_on=trained_on,
        )
    )


def frozen(module: M) -> M:
    """The module in evaluation mode, with weights that take no gradient."""
    return module.eval().requires_grad_(False)


def fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """`fill_exactly` for a classifier, with a clearer message where it was made for other channels
    or classes.
    """
    _check_ends(path, _expected(network), state)
    fill_exactly(network, state, path)


def fill_exactly(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state into a network. Raises `BadInput` for a tensor that is missing, surplus or of
    another shape.
    """
    _check_state(path, network, state)
    network.load_state_dict(state, strict=False)


def check_normalisation(path: Path, mean: Sequence[float], channels: int) -> None:
    """Raise `BadInput` unless the mean is empty or has one number a channel."""
    if mean and len(mean) != channels:
        counts = f"the mean has {len(mean)} numbers, but the images have {channels} channels"
        raise BadInput(f"{path}: {counts}: give one each")


def read_state(path: Path, content: bytes) -> dict[str, Tensor]:
    """The state dict in a weights file, by the file's suffix. Raises `BadInput` where it holds
    anything else.
    """
    readers = {
        ".safetensors": _read_safetensors,
        ".pt": _read_torch,
        ".pth": _read_torch,
        ".bin": _read_torch,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise BadInput(f"{path} is neither .safetensors nor .pt nor .pth nor .bin: {_EXPORT}")
    return reader(path, content)


def _read_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadInput(
            f"{path} is not complete safetensors ({one_line(error)}): get or write it again"
        ) from error
    return state


def read_torch(path: Path, content: bytes) -> Any:
    """What a file of torch.save holds, tensors and plain containers. Raises `BadInput` where it
    holds other objects.
    """
    try:
        with warnings.catch_warnings():
            # Of another pickle protocol; what follows says what to do.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many kinds, among them the pickle module's, for damaged files and for refused
        # objects alike.
        raise BadInput(
            f"{path} is damaged or a pickled object, which is never unpickled: {_EXPORT}"
        ) from error


def _read_torch(path: Path, content: bytes) -> dict[str, Tensor]:
    state = read_torch(path, content)
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise BadInput(f"{path} holds more than a state dict of tensors: {_EXPORT}")
    return dict(state)


def _expected(network: nn.Module) -> dict[str, Tensor]:
    # A counter of training batches changes nothing here, and exporters differ in whether they keep
    # it.
    return {
        key: value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def _check_state(path: Path, network: nn.Module, state: dict[str, Tensor]) -> None:
    expected = _expected(network)
    missing = sorted(set(expected) - set(state))
    if missing:
        raise BadInput(
            f"{path} lacks the tensor {missing[0]!r} ({len(missing)} in all): check the "
            "architecture"
        )
    unexpected = sorted(set(state) - set(network.state_dict()))
    if unexpected:
        surplus = f"{unexpected[0]!r} ({len(unexpected)} in all)"
        raise BadInput(f"{path} has a surplus tensor {surplus}: check the architecture")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)}, not {tuple(value.shape)}"
            raise BadInput(
                f"the tensor {key!r} in {path} has shape {shapes}: check the architecture"
            )


def _check_ends(path: Path, expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """The first and the last weight show the channels and classes that the network was made for."""
    weights = [key for key, value in expected.items() if value.dim() >= 2]
    first, last = weights[0], weights[-1]
    if (
        first in state
        and state[first].dim() == 4
        and state[first].shape[1] != expected[first].shape[1]
    ):
        raise BadInput(f"{path}: {wrong_channels(state[first].shape[1], expected[first].shape[1])}")
    if last in state and state[last].dim() == 2 and state[last].shape[0] != expected[last].shape[0]:
        raise BadInput(f"{path}: {wrong_classes(state[last].shape[0], expected[last].shape[0])}")
