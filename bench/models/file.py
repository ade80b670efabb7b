"""`file:PATH`: weights from a file, with what must be known to use them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from bench.errors import BadInput, Missing, one_line
from bench.models.checkpoint import State, read_state, read_states
from bench.models.classifier import Classifier
from bench.models.fitting import (
    check_surplus,
    check_values,
    expected_state,
    find,
    normalisation,
    surplus_message,
)
from bench.models.nets import build
from bench.models.source import ClassifierSource
from bench.plugins.registry import existing_file
from bench.spec import Numbers, Params

_MANIFEST = "MANIFEST.json"
_TRAINED_ON = {"mnist": ("mnist/train",), "cifar": ("cifar10/train",)}
_LARGEST_MEAN = 2.0
"""No mean of pixels in [0, 1] is larger; those of pixels up to 255 are."""

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
    path: str = Field(description="weights: safetensors, or a checkpoint of torch.save")
    arch: str = Field("", description="architecture, where no JSON file beside the weights says it")
    mean: Numbers = Field(
        (),
        description="mean of each channel; the file's own where empty, else none is subtracted",
    )
    std: Numbers = Field((), description="standard deviation of each channel")
    key: str = Field(
        "", description="which weights, where the file holds several for the network, such as ema"
    )


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
        try:
            path = existing_file(self.params.path, "file:PATH")
        except Missing as error:
            raise Missing(f"{error}, or make it with `bench train`") from None
        about = self._description(path)
        return read_classifier(path, about, num_classes, channels, self.params.key)

    def architecture(self, num_classes: int, channels: int) -> nn.Module | None:
        """What arch= names, where it is given."""
        return build(self.params.arch, num_classes, channels) if self.params.arch else None

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


def read_classifier(
    path: Path, about: Description, num_classes: int, channels: int, key: str = ""
) -> Classifier:
    """The classifier whose weights lie in `path`, frozen, in evaluation mode; `key` says which of
    several weights.

    Raises `BadInput` where the file is damaged, is not the one described, or does not fit
    architecture or data set.
    """
    states = read_states(path, verified_content(path, about.sha256))
    return assemble(path, states, about, num_classes, channels, key)


def verified_content(path: Path, sha256: str) -> bytes:
    """The bytes of a file. Raises `BadInput` where their SHA-256 is another one; an empty one is
    not compared.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256.lower():
        raise BadInput(
            f"{path} has SHA-256 {digest}, but its description says {sha256}: get the right file"
        )
    return content


def read_verified(path: Path, sha256: str) -> State:
    """The state dict in a weights file, once its SHA-256 is compared."""
    return read_state(path, verified_content(path, sha256))


def assemble(
    path: Path,
    states: Mapping[str, State],
    about: Description,
    num_classes: int,
    channels: int,
    key: str = "",
) -> Classifier:
    """The described classifier with the fitting one of these states, frozen, in evaluation mode;
    `path` is where they came from.

    Raises `BadInput` where no state fits architecture and data set.
    """
    network = build(about.arch, num_classes, channels)
    brought, surplus = normalisation(load(network, states, path, key))
    check_surplus(path, surplus)
    mean, std = _settled(path, about, brought, channels)
    check_normalisation(path, mean, channels)
    trained_on = about.trained_on or _TRAINED_ON.get(about.dataset, ())
    return frozen(
        Classifier(network, num_classes, mean=mean or None, std=std or None, trained_on=trained_on)
    )


def _settled(
    path: Path, about: Description, brought: Mapping[str, Tensor], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std as described, or as the checkpoint brings them. Both must agree."""
    if not brought:
        return about.mean, about.std
    mean, std = (
        tuple(brought[name].double().expand(channels).tolist())
        if brought[name].numel() == 1
        else tuple(brought[name].double().tolist())
        for name in ("mean", "std")
    )
    told = f"{path} brings a normalisation with mean {_rounded(mean)} and std {_rounded(std)}"
    if about.mean or about.std:
        given = torch.tensor([*about.mean, *about.std])
        own = torch.tensor([*mean, *std])
        if given.shape != own.shape or not torch.allclose(given, own, atol=1e-4):
            raise BadInput(
                f"{told}, but mean={_rounded(about.mean)}, std={_rounded(about.std)} was given: "
                "drop one of them"
            )
        return about.mean, about.std
    if max(mean) > _LARGEST_MEAN:
        raise BadInput(
            f"{told}, which is not of pixels in [0, 1]: make its first layer take [0, 1]"
        )
    return mean, std


def _rounded(values: Sequence[float]) -> str:
    return "+".join(f"{value:.4g}" for value in values) or "none"


def frozen(module: M) -> M:
    """The module in evaluation mode, with weights that take no gradient."""
    return module.eval().requires_grad_(False)


def fill(network: nn.Module, states: Mapping[str, State], path: Path) -> None:
    """Load the fitting one of these states into a network. Raises `BadInput` where none fits, with
    a message of its own where it was made for other channels or classes.
    """
    check_surplus(path, load(network, states, path))


def load(network: nn.Module, states: Mapping[str, State], path: Path, key: str = "") -> State:
    """The same; returns the tensors that came beside, which the caller must account for."""
    state, surplus = find(network, states, path, key)
    check_values(path, expected_state(network), state)
    network.load_state_dict(state, strict=False)
    return surplus


def fill_exactly(network: nn.Module, state: State, path: Path) -> None:
    """Load a state into a network. Raises `BadInput` for a tensor that is missing, surplus or of
    another shape or kind.
    """
    expected = expected_state(network)
    missing = sorted(set(expected) - set(state))
    if missing:
        raise BadInput(
            f"{path} lacks the tensor {missing[0]!r} ({len(missing)} in all): check the "
            "architecture"
        )
    if surplus := sorted(set(state) - set(network.state_dict())):
        raise BadInput(surplus_message(path, surplus))
    check_values(path, expected, state)
    network.load_state_dict(state, strict=False)


def check_normalisation(path: Path, mean: Sequence[float], channels: int) -> None:
    """Raise `BadInput` unless the mean is empty or has one number a channel."""
    if mean and len(mean) != channels:
        counts = f"the mean has {len(mean)} numbers, but the images have {channels} channels"
        raise BadInput(f"{path}: {counts}: give one each")
