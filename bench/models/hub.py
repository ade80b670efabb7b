"""`timm:NAME` and `hf:REPO`: networks that the package timm builds, with weights from a file, a
folder or the Hugging Face hub.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from bench.errors import BadInput, Missing, one_line
from bench.models.checkpoint import read_states
from bench.models.classifier import Classifier
from bench.models.file import check_normalisation, fill, frozen
from bench.models.nets import wrong_channels, wrong_classes
from bench.models.source import ClassifierSource
from bench.noise import isolated
from bench.plugins.registry import existing_file
from bench.spec import Numbers, Params, nearest
from bench.storage.download import offline

_WEIGHTS = "model.safetensors"
# What a stranger's config.json must not hand to timm's factory: it says where weights come from.
_RESERVED = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "num_classes",
    "in_chans",
}


class TimmParams(Params):
    name: str = Field(description="model name in timm, such as resnet18 or resnet18.a1_in1k")
    weights: str = Field(
        "", description="safetensors or a checkpoint of torch.save; published weights where empty"
    )
    mean: Numbers = Field((), description="mean of each channel; timm's where empty")
    std: Numbers = Field((), description="standard deviation of each channel; timm's where empty")
    in_chans: int = Field(
        0,
        ge=0,
        description="channels that the network takes, where not those of the images: grey images "
        "are repeated in each",
    )


class Timm(ClassifierSource[TimmParams]):
    """A model of timm with weights of yours, or with those that timm publishes on the Hugging Face
    hub.
    """

    Params: ClassVar[type[Params]] = TimmParams
    positional: ClassVar[str | None] = "name"

    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, frozen, in evaluation mode, normalised as timm says.

        Raises `BadInput` for an unknown name, an unfit data set, a package that is missing, or
        weights that are.
        """
        name, asked = self.params.name, self.params
        about = _published(name)
        takes = asked.in_chans or channels
        if takes != channels and channels != 1:
            raise BadInput(wrong_channels(takes, channels))
        if asked.weights:
            path = existing_file(asked.weights, "timm:NAME,weights=PATH")
        else:
            _check_fit(about.num_classes, about.input_size[0], num_classes, takes)
            if not about.hf_hub_id:
                raise BadInput(
                    f"timm publishes no weights for {name!r} on the hub: give weights=PATH"
                )
            path = from_hub(
                about.hf_hub_id, about.hf_hub_filename or _WEIGHTS, None, "weights=PATH"
            )
        mean, std = self._normalisation(about, takes)
        network = _build(name, num_classes, takes, {})
        # Grey images become as many channels as the mean has.
        return _assembled(network, path, mean, std, num_classes, takes)

    def architecture(self, num_classes: int, channels: int) -> nn.Module:
        """The network that timm builds for the name. Raises `BadInput` like `load`."""
        return _build(self.params.name, num_classes, self.params.in_chans or channels, {})

    def _normalisation(
        self, about: Any, channels: int
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        asked = self.params
        if bool(asked.mean) != bool(asked.std):
            raise BadInput("mean= and std= belong together: give both, or neither for timm's own")
        mean, std = asked.mean or _floats(about.mean), asked.std or _floats(about.std)
        if len(mean) != channels:
            raise BadInput(
                f"the mean of timm:{self.params.name} has {len(mean)} numbers, but the network "
                f"takes {channels} channels: give mean= and std= with {channels} each"
            )
        return mean, std


class HfParams(Params):
    repo: str = Field(
        description="OWNER/NAME on the Hugging Face hub, or a local folder of the same layout"
    )
    file: str = Field(
        _WEIGHTS, description="weights in it: .safetensors, or .pt/.pth with a state dict"
    )
    revision: str = Field("", description="commit or tag; the newest where empty")


class Hf(ClassifierSource[HfParams]):
    """A repository in timm's layout (config.json and model.safetensors), on the Hugging Face hub or
    in a folder.
    """

    Params: ClassVar[type[Params]] = HfParams
    positional: ClassVar[str | None] = "repo"

    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, frozen, in evaluation mode, normalised as config.json says.

        Raises `BadInput` for an unfit data set, a repository of another layout, or one that cannot
        be reached.
        """
        config = self._config()
        about = config.get("pretrained_cfg") or config
        try:
            name, mean, std = (
                str(config["architecture"]),
                _floats(about["mean"]),
                _floats(about["std"]),
            )
            classes, made_for = (
                int(config.get("num_classes") or about["num_classes"]),
                int(about["input_size"][0]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"config.json of {self.params.repo} is not in timm's layout"
            raise BadInput(f"{what} ({one_line(error)}): export the model with timm") from error
        _check_fit(classes, made_for, num_classes, channels)
        network = _build(name, num_classes, channels, config.get("model_args") or {})
        return _assembled(network, self._file(self.params.file), mean, std, num_classes, channels)

    def _config(self) -> dict[str, Any]:
        path = self._file("config.json")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{path} is not readable JSON ({one_line(error)}): get it again"
            ) from error
        if not isinstance(config, dict):
            raise BadInput(f"{path} is not in timm's layout: export the model with timm")
        return config

    def _file(self, name: str) -> Path:
        folder = Path(self.params.repo).expanduser()
        if folder.is_dir():
            return existing_file(str(folder / name), "hf:FOLDER")
        return from_hub(
            self.params.repo, name, self.params.revision or None, "a local folder, hf:FOLDER"
        )


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _package(name: str, what: str) -> ModuleType:
    try:
        with isolated(0), warnings.catch_warnings():
            # timm and robustbench use what torch is about to drop.
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(
            f"{what} need the package {name} ({one_line(error)}): pip install "
            "'adversarial-bench[zoo]'"
        ) from error


def _timm() -> ModuleType:
    return _package("timm", "timm: and hf: classifiers")


def _known(name: str) -> None:
    timm = _timm()
    if not timm.is_model(name):
        raise BadInput(f"unknown timm model {name!r}.{nearest(name, timm.list_models())[:200]}")


def _published(name: str) -> Any:
    _known(name)
    about = _timm().models.get_pretrained_cfg(name)
    if about is None:
        raise BadInput(
            f"timm has no description of {name!r}, not even its normalisation: choose another tag "
            "of this model"
        )
    return about


def _build(name: str, num_classes: int, channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    _known(name)
    if refused := sorted(_RESERVED & set(arguments)):
        raise BadInput(
            f"config.json sets {refused[0]!r} in model_args, which is not its to say: remove it"
        )
    try:
        with isolated(0):
            network: nn.Module = _timm().create_model(
                name, pretrained=False, num_classes=num_classes, in_chans=channels, **arguments
            )
    except Exception as error:
        raise BadInput(
            f"timm cannot build {name!r} ({one_line(error)}): check the name and model_args"
        ) from error
    return network


def _check_fit(classes: int, made_for: int, num_classes: int, channels: int) -> None:
    if classes != num_classes:
        raise BadInput(wrong_classes(classes, num_classes))
    if made_for != channels:
        raise BadInput(wrong_channels(made_for, channels))


def from_hub(repo: str, file: str, revision: str | None, instead: str) -> Path:
    """A file of a repository, from the hub or from its cache; nothing but the cache is asked where
    downloads are forbidden.
    """
    try:
        return _downloaded(repo, file, revision)
    except BadInput:
        raise
    except Exception as error:
        # The hub's client raises its own kinds, those of its HTTP library and plain OSError.
        raise Missing(_unreachable(repo, file, instead, error)) from error


def find_on_hub(repo: str, file: str, revision: str | None, instead: str) -> Path | None:
    """A file of a repository; None where the repository, or offline the hub's cache, does not have
    it.

    Raises `BadInput` where the hub cannot be asked; `instead` says what else can be given.
    """
    try:
        return _downloaded(repo, file, revision)
    except BadInput:
        raise
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "EntryNotFoundError" in kinds and (offline() or "LocalEntryNotFoundError" not in kinds):
            return None
        raise Missing(_unreachable(repo, file, instead, error)) from error


def _downloaded(repo: str, file: str, revision: str | None) -> Path:
    hub = _package("huggingface_hub", "weights from the Hugging Face hub")
    return Path(
        hub.hf_hub_download(repo, file, revision=revision, local_files_only=bool(offline()))
    )


def _unreachable(repo: str, file: str, instead: str, error: Exception) -> str:
    why = f"{offline()} is set" if offline() else one_line(error)
    return (
        f"cannot get {file} of {repo} from the Hugging Face hub ({why}): go online, or give "
        f"{instead}"
    )


def _assembled(
    network: nn.Module,
    path: Path,
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int,
    channels: int,
) -> Classifier:
    check_normalisation(path, mean, channels)
    fill(network, read_states(path, path.read_bytes()), path)
    return frozen(Classifier(network, num_classes, mean=mean, std=std))
