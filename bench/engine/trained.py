"""Weights of trained defenses beside their records: who has them verifies without training.

Only of a defense that is its classifier with other weights. What the file says is not believed: its
weights must have the SHA-256 that the record names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.defense import DefendedClassifier
from bench.engine.build import as_declared, build, own_copy
from bench.engine.evaluation import Evaluation
from bench.engine.fingerprint import fingerprint, weights_sha256
from bench.errors import BadInput, one_line
from bench.results.store import files_below, is_failure, read_bare_record
from bench.results.weights import file_of_weights, weights_of
from bench.storage.artifacts import NotStored, empty_cache, only_stored
from bench.storage.identity import identity_hash

_NOTES = "notes"
_CPU = torch.device("cpu")


def pack(evaluation: Evaluation, weights: str) -> bytes | None:
    """The file of an evaluation's defense out of the cache; None where it is anything but its
    classifier with other weights, needs no cache, is not in it, or has other weights than the
    SHA-256 says.
    """
    defended = _stored(evaluation) if is_trained(evaluation) else None
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


def is_trained(evaluation: Evaluation) -> bool:
    """Whether something must be made for a defense that no cache holds."""
    with empty_cache():
        return _stored(evaluation) is None


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


def published_file(evaluation: Evaluation, folder: Path) -> tuple[Path, str] | None:
    """The weights of an evaluation's defense that lie beside a record of the folder, whatever the
    record's attack, and their SHA-256; None where there are none, or the defense is not trained.

    Raises `BadInput` as `published` does.
    """
    found = _published(folder).get(_build_of(evaluation.identity))
    return found if found and is_trained(evaluation) else None


def published(evaluations: Sequence[Evaluation], folder: Path) -> list[str]:
    """Which defenses the folder holds weights of, by their specs, in the order of the evaluations.

    Raises `BadInput` where there is no such folder, it holds weights of none of them, or two
    different ones of one build.
    """
    builds = {_build_of(one.identity): one for one in evaluations}
    asked = dict.fromkeys(
        str(one.defense.spec) for one in builds.values() if published_file(one, folder)
    )
    if not asked:
        raise BadInput(
            f"{folder} holds no weights of a defense that is asked for, as it is asked for: give a "
            "folder of records with weights/ beside them, and the defense, data set, classifier, "
            "eps and build seed of one of them"
        )
    return list(asked)


@cache
def _published(folder: Path) -> Mapping[str, tuple[Path, str]]:
    """By what they were built as: files of weights, and the SHA-256 that their records name."""
    if not folder.is_dir():
        raise BadInput(f"no such folder: {folder}: give one that holds records, with --weights")
    found: dict[str, tuple[Path, str]] = {}
    for path in files_below(folder):
        if is_failure(path):
            continue
        record = read_bare_record(path)
        file, named = path.parent / file_of_weights(record), weights_of(record)
        if not (named and file.is_file()):
            continue
        other = found.setdefault(_build_of(record.identity), (file, named))
        if other[1] != named:
            raise BadInput(
                f"{folder} holds two builds of one defense, {other[0]} and {file}: give a folder "
                "with one of them"
            )
    return found


def _build_of(identity: Mapping[str, Any]) -> str:
    """What a defense follows from; nothing of an attack, nor of the attacked images."""
    build = {key: identity.get(key) for key in ("defense", "classifier", "threat", "data")}
    dataset, seeds = identity.get("dataset", {}), identity.get("seeds", {})
    return identity_hash({**build, "dataset": dataset.get("name"), "seed": seeds.get("build")})


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
