"""Boards as others read them: RobustBench's fields, the Hugging Face hub's YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bench.report import escape
from bench.report.boards.model import Attacked, Board, Row
from bench.report.tables import percent

_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")
_DATA = ("training data", "public images", "pretrained generator")


def robustbench(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """One dictionary an attacked row, with the fields of RobustBench's `model_info`.

    `autoattack_acc` is the accuracy under AutoAttack with the defense's own gradient and fresh
    draws, None where that did not run; `external` the worst case over all attacks, where it is
    lower. `unreliable` is whether one of RobustBench's conditions fails, or a check.
    """
    return [_entry(board, row) for board in boards for row in board.rows if row.attacked]


def _entry(board: Board, row: Row) -> dict[str, Any]:
    setup, extras = board.setup, row.extras
    standard = next((one for one in row.attacks if _is_standard(one)), None)
    worst = percent(row.robust.value)
    arxiv = _ARXIV.search(row.paper)
    lower = standard is None or row.robust.value < standard.robust.value
    passes = None if extras.passes is None else max(1, round(extras.passes))
    doubted = bool(row.extras.obstacles) or row.kind == "stochastic" or row.audit.failed
    return {
        "link": f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else None,
        "name": row.defense,
        "authors": None,
        "additional_data": any(access in _DATA for access in row.access),
        "number_forward_passes": passes,
        "dataset": setup.dataset,
        "venue": row.paper or None,
        "architecture": setup.classifier,
        "eps": setup.threat.partition(" ")[2],
        "clean_acc": percent(row.clean.value),
        "reported": None,
        "autoattack_acc": percent(standard.robust.value) if standard else None,
        "external": worst if lower else None,
        "footnote": f"{board.sentences[0]} {row.unranked}".strip(),
        "unreliable": doubted or bool(row.unranked),
    }


def _is_standard(attack: Attacked) -> bool:
    return attack.attack == "autoattack" and not attack.transfer


def model_index(boards: Sequence[Board]) -> str:
    """`model-index` of a model card: an entry an attacked row, with clean and robust accuracy in
    percent. Each metric names its row, since the hub's own library joins entries.
    """
    index = [
        {
            "name": row.defense,
            "results": [
                {
                    "task": {"type": "image-classification", "name": "Adversarial robustness"},
                    "dataset": {
                        "type": board.setup.dataset,
                        "name": f"{board.setup.dataset}, {board.setup.n} images",
                    },
                    "metrics": _metrics(board, row),
                }
            ],
        }
        for board, row in _measured(boards)
    ]
    return _yaml({"model-index": index})


def eval_results(boards: Sequence[Board]) -> str:
    """Entries of `.eval_results/*.yaml`: robust accuracy in percent of each attacked row."""
    entries = [
        {
            "dataset": {"id": board.setup.dataset, "task_id": f"robust {board.setup.threat}"},
            "value": _percent(row.robust.value),
            "date": max(source.finished for source in row.sources)[:10],
            "notes": f"{row.defense} of {board.setup.classifier}, {board.setup.n} images, worst "
            f"case over {len(row.attacks)} attacks, 95 % interval {row.robust}; "
            f"{row.unranked or 'ranked'}; {row.audit.state}",
        }
        for board, row in _measured(boards)
    ]
    return _yaml(entries)


def _measured(boards: Sequence[Board]) -> Iterator[tuple[Board, Row]]:
    return ((board, row) for board in boards for row in board.rows if row.attacked)


def _metrics(board: Board, row: Row) -> list[dict[str, Any]]:
    attacks = f"{board.setup.threat}, worst case over {len(row.attacks)} attacks"
    named = {
        f"clean accuracy of {row.defense}": row.clean,
        f"robust accuracy of {row.defense}, {attacks}": row.robust,
    }
    if row.extras.certified:
        name = f"certified accuracy of {row.defense}, {board.setup.threat}"
        named[name] = row.extras.certified
    return [
        {"type": "accuracy", "name": name, "value": _percent(one.value)}
        for name, one in named.items()
    ]


def _percent(value: float) -> float:
    return round(100 * value, 2)


def _yaml(value: object, indent: str = "") -> str:
    """Block style; every scalar as JSON has it, which YAML reads alike."""
    if isinstance(value, dict):
        return "".join(f"{indent}{key}:{_inside(one, indent)}" for key, one in value.items())
    if isinstance(value, list):
        items = (_yaml(one, f"{indent}  ").removeprefix(f"{indent}  ") for one in value)
        return "".join(f"{indent}- {item}" for item in items) or f"{indent}[]\n"
    text = escape.terminal(value) if isinstance(value, str) else value
    return f"{indent}{json.dumps(text, ensure_ascii=False)}\n"


def _inside(value: object, indent: str) -> str:
    nested = isinstance(value, dict | list)
    return f"\n{_yaml(value, indent + '  ')}" if nested and value else f" {_yaml(value)}"
