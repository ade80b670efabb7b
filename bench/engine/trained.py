"""Weights of trained defenses beside their records: who has them verifies without training.

Only of a defense that is its classifier with other weights. What the file says is not believed: its
weights must have the SHA-256 that the record names.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.defense import DefendedClassifier
from bench.engine.build import as_declared, build, own_copy
from bench.engine.evaluation import Evaluation
from bench.engine.fingerprint import fingerprint, weights_sha256
from bench.errors import BadInput, one_line
from bench.storage.artifacts import NotStored, empty_cache, only_stored

_NOTES = "notes"
_CPU = torch.device("cpu")


def pack(evaluation: Evaluation, weights: str) -> bytes | None:
    """The file of an evaluation's defense out of the cache; None where it is anything but its
    classifier with other weights, needs no cache, is not in it, or has other weights than the
    SHA-256 says.
    """
    with empty_cache():
        if _stored(evaluation) is not None:
            return None
    defended = _stored(evaluation)
    if defended is None:
        return None
    own = weights_sha256(evaluation.setup.classifier)
    if weights == own or weights_sha256(defended) != weights:
        return None
    state = {key: value.clone().contiguous() for key, value in defended.state_dict().items()}
    made = _filled(evaluation, state, defended.notes)
    if made is None or fingerprint(made) != fingerprint(defended):
        return None
    return safetensors.torch.save(state, {_NOTES: json.dumps(defended.notes)})


def _stored(evaluation: Evaluation) -> DefendedClassifier | None:
    """The defense as far as nothing must be made for it; else None."""
    try:
        with only_stored():
            return build(evaluation, _CPU)
    except NotStored:
        return None


def read_trained(
    evaluation: Evaluation, path: Path, weights: str, device: torch.device
) -> DefendedClassifier | None:
    """The defense whose weights lie in the file `path`, as `bench.engine.build.build` returns it;
    None where there is no such file.

    Raises `BadInput` where it holds other weights than the SHA-256 `weights` says.
    """
    if not path.is_file():
        return None
    try:
        state = safetensors.torch.load(path.read_bytes())
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {}).get(_NOTES, "[]"))
        defended = _filled(evaluation, state, tuple(map(str, notes)))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"{path} holds no weights ({one_line(error)}): {_REMOVE}") from error
    if defended is None or weights_sha256(defended) != weights:
        raise BadInput(f"{path} holds other weights than the record names: {_REMOVE}")
    return as_declared(evaluation, defended.to(device), device)


_REMOVE = "remove it, and the defense is trained anew"


def _filled(
    evaluation: Evaluation, state: dict[str, Tensor], notes: tuple[str, ...]
) -> DefendedClassifier | None:
    """The classifier with other weights; None where they do not fit, or it cannot be copied."""
    classifier, shared = own_copy(evaluation.setup.classifier)
    if shared or classifier.state_dict().keys() != state.keys():
        return None
    classifier.load_state_dict(state)
    if notes:
        classifier.notes = notes
    return classifier.eval().requires_grad_(False)
