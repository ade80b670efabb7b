"""`robustbench:NAME`: RobustBench's model zoo, of which only the architectures and the addresses of
the weights are used.

Its own loader unpickles what Google Drive sends. Here weights are read with `weights_only=True`,
and a file without a published checksum is trusted when it is first used and held to that from then
on.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from bench.errors import BadInput, one_line
from bench.models.checkpoint import read_torch
from bench.models.classifier import Classifier
from bench.models.file import fill, frozen
from bench.models.nets import wrong_channels, wrong_classes
from bench.models.published import trusted
from bench.models.source import ClassifierSource
from bench.noise import isolated
from bench.spec import Params, nearest

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}

# Normalisation that the architecture sets by itself and that some checkpoints leave out.
_CONSTANTS = ("mean", "std", "mu", "sigma")
# Tensors that some checkpoints carry from training and that the architecture does not have.
_LEFTOVERS = ("model_preact_hl1", "scores")


class RobustbenchParams(Params):
    name: str = Field(description="model name on RobustBench, such as Wong2020Fast")
    threat: Literal["Linf", "L2", "corruptions"] = Field(
        "Linf", description="the board that the model is on"
    )
    dataset: Literal["cifar10", "cifar100", "imagenet"] = Field(
        "cifar10", description="the board's data set"
    )


class Robustbench(ClassifierSource[RobustbenchParams]):
    """A model of RobustBench (arXiv 2010.09670); weights from its Google Drive, or from below the
    data root.
    """

    Params: ClassVar[type[Params]] = RobustbenchParams
    positional: ClassVar[str | None] = "name"

    def load(self, num_classes: int, channels: int) -> Classifier:
        """The classifier, frozen, in evaluation mode; it normalises by itself.

        Raises `BadInput` for an unknown name, an unfit data set, a package that is missing, or
        weights that are.
        """
        asked = self.params
        self._check_fit(num_classes, channels)
        entry = self._entry()
        path = self._weights(entry["gdrive_id"])
        network = build_network(asked.name, entry)
        fill(
            network,
            {"": fitted(checkpoint_state(read_torch(path, path.read_bytes()), path), network)},
            path,
        )
        return frozen(Classifier(network, num_classes, trained_on=(f"{asked.dataset}/train",)))

    def architecture(self, num_classes: int, channels: int) -> nn.Module:
        """The network that RobustBench builds for the name. Raises `BadInput` like `load`."""
        self._check_fit(num_classes, channels)
        return build_network(self.params.name, self._entry())

    def _check_fit(self, num_classes: int, channels: int) -> None:
        made_for = _CLASSES[self.params.dataset]
        if made_for != num_classes:
            raise BadInput(wrong_classes(made_for, num_classes))
        if channels != 3:
            raise BadInput(wrong_channels(3, channels))

    def _entry(self) -> Mapping[str, Any]:
        models = board(self.params.dataset, self.params.threat)
        if self.params.name not in models:
            where = f"{self.params.dataset}, {self.params.threat}"
            raise BadInput(
                f"unknown robustbench model {self.params.name!r} "
                f"({where}).{nearest(self.params.name, models)}"
            )
        entry: Mapping[str, Any] = models[self.params.name]
        return entry

    def _weights(self, drive: object) -> Path:
        if not isinstance(drive, str):
            kind = "several files" if isinstance(drive, list) else "timm's hub"
            raise BadInput(
                f"the weights of {self.params.name} come from {kind}, which is not supported: "
                "choose another model"
            )
        name = f"robustbench/{self.params.dataset}/{self.params.threat}/{self.params.name}.pt"
        url = f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t"
        return trusted(name, url, f"https://drive.google.com/file/d/{drive}/view")


def board(dataset: str, threat: str) -> Mapping[str, Any]:
    """RobustBench's table of one board: names to builders and addresses; empty where there is no
    such board.
    """
    for key, boards in model_zoo().items():
        if key.value == dataset:
            return next((models for kind, models in boards.items() if kind.value == threat), {})
    return {}


@cache
def model_zoo() -> Mapping[Any, Any]:
    """`robustbench.model_zoo.model_dicts`, imported past the package's own `__init__`.

    That one imports the attack library under a module name that no release on PyPI provides, and
    Google Drive's client; the zoo needs neither.
    """
    package = importlib.util.find_spec("robustbench")
    if package is None:
        raise BadInput(
            "robustbench: models need the package robustbench: pip install 'adversarial-bench[zoo]'"
        )
    bare = "robustbench" not in sys.modules
    if bare:
        sys.modules["robustbench"] = importlib.util.module_from_spec(package)
    try:
        with isolated(0), _quiet():
            module = importlib.import_module("robustbench.model_zoo")
    except ImportError as error:
        raise BadInput(
            f"robustbench cannot be imported ({one_line(error)}): pip install "
            "'adversarial-bench[zoo]'"
        ) from error
    finally:
        if bare:
            del sys.modules["robustbench"]
    zoo: Mapping[Any, Any] = module.model_dicts
    return zoo


@contextlib.contextmanager
def _quiet() -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def build_network(name: str, entry: Mapping[str, Any]) -> nn.Module:
    """The architecture of a table's entry with fresh weights. Raises `BadInput` where it cannot be
    built on this machine.
    """
    try:
        with isolated(0), _quiet():
            network: nn.Module = entry["model"]()
    except Exception as error:
        raise BadInput(
            f"robustbench cannot build {name} here ({one_line(error)}): choose another model"
        ) from error
    return network


def checkpoint_state(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint: plain, under `state_dict`, or under `last` where several are
    kept.
    """
    for key in ("last", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise BadInput(
            f"{path} holds no state dict of tensors: get the file that RobustBench publishes"
        )
    return content


def fitted(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state under the network's names: wrappers' prefixes off (or on), leftovers out, missing
    constants from the network.
    """
    own = network.state_dict()
    candidates = [state, _without("module.", state)]
    candidates += [
        _without("model.", candidates[1]),
        {f"model.{key}": value for key, value in candidates[1].items()},
    ]
    best = max(candidates, key=lambda candidate: len(set(candidate) & set(own)))
    kept = {
        key: value
        for key, value in best.items()
        if key in own or not any(leftover in key for leftover in _LEFTOVERS)
    }
    constants = {key: value for key, value in own.items() if key.rpartition(".")[2] in _CONSTANTS}
    return {**constants, **kept}


def _without(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}
