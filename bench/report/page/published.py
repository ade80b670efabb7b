"""Published numbers beside the rows of a board, each with what differs between the two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.boards.model import Attacked, Board, Row
from bench.report.reference import Reference
from bench.results.estimate import Estimate
from bench.spec import read_number

_MOST = 4
"""Published numbers shown beside a row; those that differ in least come first."""


@dataclass(frozen=True)
class Beside:
    """A published number and ours.

    Attributes:
        reference: the published one, in percent.
        ours: a share.
        measured: what ours is: `clean`, `worst case`, or the attack.
        differs: in what the two are unlike, in words.
    """

    reference: Reference
    ours: Estimate
    measured: str
    differs: tuple[str, ...]


def beside(board: Board, row: Row, references: Sequence[Reference]) -> list[Beside]:
    """The published accuracies of this row's defense on its data set, nearest first; none for the
    undefended classifier, whose number says more of the network than of a defense.
    """
    if row.base or not row.attacked:
        return []
    name = _plain(row.spec.partition(":")[0])
    made = [
        _beside(board, row, one)
        for one in references
        if _plain(one.defense.split()[0]) == name and _is_of(one, board) and _is_accuracy(one)
    ]
    return sorted(made, key=lambda one: len(one.differs))[:_MOST]


def _is_accuracy(reference: Reference) -> bool:
    return reference.metric.startswith(("clean accuracy", "robust accuracy")) and (
        reference.unit == "percent" and " at " not in reference.metric
    )


def _is_of(reference: Reference, board: Board) -> bool:
    name, _, file = board.setup.dataset.partition(":")
    # `npz:cifar10_exact.npz` is a file whose name says what it holds.
    ours = map(_plain, re.split("[^A-Za-z0-9]", file)) if file else [_plain(name)]
    return bool(reference.dataset) and _plain(reference.dataset) in ours


def _beside(board: Board, row: Row, reference: Reference) -> Beside:
    clean = reference.metric.startswith("clean")
    attack = None if clean else _same_attack(row, reference.attack)
    ours = row.clean if clean else attack.robust if attack else row.robust
    measured = "clean" if clean else attack.attack if attack else "worst case"
    told = [
        *_network(board, reference),
        *([] if clean else _ball(board, reference)),
        *([] if clean or attack else [f"attack: {reference.attack or 'not stated'}"]),
        *([f"protocol: {reference.protocol}"] if reference.protocol else []),
        *_variant(row, reference),
        f"images: {board.setup.n} of {board.setup.available} here",
    ]
    return Beside(reference, ours, measured, tuple(told))


def _same_attack(row: Row, name: str) -> Attacked | None:
    """Ours of that name, with the defense's own gradient where there are several."""
    wanted = _plain(name).removesuffix("ce")
    fitting = [one for one in row.attacks if _plain(re.split("[ :]", one.attack)[0]) == wanted]
    return next((one for one in fitting if not one.transfer), None) if wanted else None


def _network(board: Board, reference: Reference) -> list[str]:
    known = _plain(reference.architecture)
    if known and known in _plain(board.setup.classifier):
        return []
    return [f"network: {reference.architecture or 'not stated'}"]


def _ball(board: Board, reference: Reference) -> list[str]:
    if not reference.eps:
        return ["ball: not stated"]
    same = abs(float(read_number(reference.eps)) - board.setup.eps) < 1e-9  # type: ignore[arg-type]
    alike = same and reference.norm == board.setup.norm
    return [] if alike else [f"ball: {reference.norm} {reference.eps}"]


def _variant(row: Row, reference: Reference) -> list[str]:
    theirs, ours = reference.defense.partition(" ")[2], row.spec.partition(":")[2]
    told = [f"their variant: {theirs}"] if theirs else []
    told += [f"our settings: {ours}"] if ours else []
    return told + (["ours is a stand-in"] if row.defense.endswith("(stand-in)") else [])


def _plain(text: str) -> str:
    """`DAD++` is dadpp, `CIFAR-10` is cifar10."""
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("+", "p"))
