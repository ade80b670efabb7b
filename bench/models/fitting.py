"""Finds a network's weights in what a file holds: wrappers' prefixes, nests, what lies beside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from bench.models.checkpoint import State
from bench.models.nets import wrong_channels, wrong_classes

_MOST_PREFIXES = 16
_COMPILED = "_orig_mod."
# Names of others for the layers of the CIFAR ResNets.
_OTHER_NAMES = ((r"(^|\.)fc\.(?=\w+$)", r"\1linear."), (r"\.downsample\.", ".shortcut."))
_MEANS = {"mean": "std", "_mean": "_std", "mu": "sigma", "new_mean": "new_std"}
_REAL = torch.zeros(())
_NORMALISING = {*_MEANS, *_MEANS.values()}
_BESIDE = re.compile(r"^(n_averaged|(criterion|loss\w*|\w*metrics?)\..*)$")
"""Tensors that do not take part in an answer: a counter of averages, losses' and metrics' own."""


@dataclass(frozen=True)
class Fit:
    """A network's weights in a file, under the network's names.

    Attributes:
        label: where they lie, as `key=` takes it.
        prefix: what stands before the network's names there.
        state: tensors by the network's names, and others of the same prefix.
        beside: tensors of the same state dict outside the prefix, by their full names.
    """

    label: str
    prefix: str
    state: State
    beside: State

    @property
    def where(self) -> str:
        """For messages."""
        return f" under the prefix {self.prefix!r}" if self.prefix else ""


def find(
    network: nn.Module, states: Mapping[str, State], path: Path, key: str = ""
) -> tuple[State, State]:
    """The network's weights among the state dicts of a file, and the tensors that come beside.

    Args:
        network: says names and shapes.
        states: as `bench.models.checkpoint.read_states` returns them.
        path: for messages.
        key: which of several, by its place or its prefix; empty where there is one.

    Raises `BadInput` where none fits, several do, or something is left over that may take part in
    the answer.
    """
    expected = expected_state(network)
    fits = [fit for place, state in states.items() for fit in _fits(place, state, set(expected))]
    if key:
        named = [fit for fit in fits if key in (fit.label, *fit.label.split("/"))]
        if not named:
            labels = ", ".join(sorted({repr(fit.label) for fit in fits if fit.label})) or "none"
            raise BadInput(f"{path} has no weights named {key!r}, only {labels}: correct key=")
        fits = named
    whole = _distinct([fit for fit in fits if not set(expected) - set(fit.state)])
    if len(whole) > 1:
        labels = " and ".join(fit.label or "its top" for fit in whole)
        raise BadInput(
            f"{path} holds weights for this network under {labels}: say which with "
            f"key={whole[0].label or whole[1].label}"
        )
    best = whole[0] if whole else _best(fits, expected)
    _check_ends(path, expected, best.state)
    _check_missing(path, set(expected), best, network)
    own = set(network.state_dict())
    surplus = {name: value for name, value in best.state.items() if name not in own}
    surplus |= {
        name: value
        for name, value in best.beside.items()
        if not key or name.rpartition(".")[2] in _NORMALISING
    }
    return {name: best.state[name] for name in own & set(best.state)}, surplus


def check_surplus(path: Path, surplus: State) -> None:
    """Raise `BadInput` for tensors that may take part in the answer. An auxiliary head, counters
    and losses do not.
    """
    left = sorted(
        name
        for name in surplus
        if not _BESIDE.match(name)
        and not any("aux" in part.lower() for part in name.split(".")[:2])
    )
    if left:
        raise BadInput(surplus_message(path, left))


def surplus_message(path: Path, names: Sequence[str]) -> str:
    """The message for tensors that the network has no place for."""
    return f"{path} has a surplus tensor {names[0]!r} ({len(names)} in all): check the architecture"


def normalisation(surplus: State) -> tuple[dict[str, Tensor], State]:
    """The mean and std that a checkpoint brings with it, as first layer or as buffers (empty where
    it brings none or several), and what is left over.
    """
    pairs = []
    for name, value in surplus.items():
        home, _, leaf = name.rpartition(".")
        if leaf in _MEANS:
            other = f"{home}.{_MEANS[leaf]}".removeprefix(".")
            if other in surplus and _are_numbers(value, surplus[other]):
                pairs.append((name, other))
    if len(pairs) != 1:
        return {}, dict(surplus)
    mean, std = pairs[0]
    left = {name: value for name, value in surplus.items() if name not in (mean, std)}
    return {"mean": surplus[mean].flatten(), "std": surplus[std].flatten()}, left


def _are_numbers(mean: Tensor, std: Tensor) -> bool:
    """Whether these can normalise: as many finite numbers each, and no std of 0."""
    if mean.numel() != std.numel() or not mean.numel() or _unfit(mean, _REAL) or _unfit(std, _REAL):
        return False
    values = torch.stack([mean.flatten().double(), std.flatten().double()])
    return bool(torch.isfinite(values).all()) and bool((values[1] > 0).all())


def expected_state(network: nn.Module) -> State:
    """The tensors that a network needs.

    A counter of training batches changes nothing here, and exporters differ in whether they keep
    it.
    """
    return {
        key: value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def check_values(path: Path, expected: State, state: State) -> None:
    """Raise `BadInput` for tensors of another shape or kind, and for numbers that are none."""
    for key, value in expected.items():
        given = state[key]
        if given.shape != value.shape:
            shapes = f"{tuple(given.shape)}, not {tuple(value.shape)}"
            raise BadInput(
                f"the tensor {key!r} in {path} has shape {shapes}: check the architecture"
            )
        if kind := _unfit(given, value):
            raise BadInput(
                f"the tensor {key!r} in {path} is {kind}: save the weights as plain floating-point "
                "tensors"
            )
        # Eight-bit floats cannot be asked themselves.
        if value.is_floating_point() and not bool(torch.isfinite(given.to(value.dtype)).all()):
            raise BadInput(
                f"the tensor {key!r} in {path} holds NaN or infinite numbers, as a training that "
                "diverged leaves them: take an earlier checkpoint"
            )


def _unfit(given: Tensor, value: Tensor) -> str:
    if given.device.type == "meta":
        return "on the meta device, without numbers"
    if given.layout != torch.strided:
        return "sparse"
    if given.is_quantized:
        return f"quantised ({given.dtype})"
    if value.is_floating_point() and not given.is_floating_point():
        return str(given.dtype).removeprefix("torch.")
    return ""


def _fits(place: str, state: State, expected: set[str]) -> Iterator[Fit]:
    """The state under every prefix at which the network may begin, and the best of other names."""
    for names in _spellings(state, expected):
        for prefix in _prefixes(names, expected):
            inside = {
                name.removeprefix(prefix): value
                for name, value in names.items()
                if name.startswith(prefix)
            }
            beside = {name: value for name, value in names.items() if not name.startswith(prefix)}
            label = "/".join(filter(None, (place, prefix.removesuffix("."))))
            yield Fit(label, prefix, inside, beside)


def _spellings(state: State, expected: set[str]) -> Iterator[State]:
    plain = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    if len(plain) != len(state) or any(_COMPILED in name for name in expected):
        plain = state
    yield plain
    other = {_other_name(name): value for name, value in plain.items()}
    if len(other) == len(plain) and set(other) != set(plain):
        yield other


def _other_name(name: str) -> str:
    for pattern, replacement in _OTHER_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _prefixes(state: State, expected: set[str]) -> list[str]:
    """Where the network may begin: before the last of its names that end a name of the state."""
    ends = {name: len(name) for name in sorted(expected)[:1] + sorted(expected)[-1:]}
    prefixes = {
        key[:-length]
        for key in state
        for end, length in ends.items()
        if key == end or key.endswith(f".{end}")
    }
    return sorted({"", *sorted(prefixes)[:_MOST_PREFIXES]})


def _distinct(fits: list[Fit]) -> list[Fit]:
    """Without those whose names and numbers another one has."""
    kept: list[Fit] = []
    for fit in fits:
        if not any(_same(fit.state, other.state) for other in kept):
            kept.append(fit)
    return kept


def _same(one: State, other: State) -> bool:
    return set(one) == set(other) and all(
        one[name] is other[name]
        or (
            one[name].shape == other[name].shape
            and one[name].layout == other[name].layout == torch.strided
            and one[name].device.type == other[name].device.type == "cpu"
            and torch.equal(one[name], other[name])
        )
        for name in one
    )


def _best(fits: list[Fit], expected: State) -> Fit:
    return max(fits, key=lambda fit: len(set(fit.state) & set(expected)))


def _check_missing(path: Path, expected: set[str], fit: Fit, network: nn.Module) -> None:
    missing = sorted(expected - set(fit.state))
    if not missing:
        return
    unknown = sorted(set(fit.state) - set(network.state_dict()))
    other = f", and has {unknown[0]!r} ({len(unknown)} in all) instead" if unknown else ""
    raise BadInput(
        f"{path} lacks the tensor {missing[0]!r} ({len(missing)} in all){fit.where}{other}: check "
        "the architecture"
    )


def _check_ends(path: Path, expected: State, state: State) -> None:
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
