"""What `bench run --dry-run` tells: which evaluations there are, which are stored, and what the
others will cost at most; of what is declared, where files are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.engine.cost import GPU_FLOPS, Cost, Pace, cost, paces
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.results.durations import duration
from bench.results.store import Store
from bench.storage.missing import DECLARED

Row = dict[str, Any]


def rows(evaluations: Sequence[Evaluation], store: Store, execution: Execution) -> list[Row]:
    """One an evaluation, with what it costs where it is not stored."""
    stored = {one.id for one in evaluations if store.find(one.id) is not None}
    timed = paces([one for one in evaluations if one.id not in stored], execution)
    return [_row(one, one.id in stored, timed.get(one.id)) for one in evaluations]


def _row(evaluation: Evaluation, stored: bool, pace: Pace | None) -> Row:
    told = cost(evaluation, pace)
    # What an evaluation is called follows from images and weights, so that those must be there.
    name = None if DECLARED in str(evaluation.identity) else evaluation.id
    known: Row = {"id": name, "stored": stored, **evaluation.title}
    return {**known, "cost": None if stored else _as_json(told)}


def _as_json(told: Cost) -> Row | None:
    if told.each is None or told.total is None:
        return None
    return {
        "forwards_per_image": told.each.forward,
        "backwards_per_image": told.each.backward,
        "passes": told.total.total,
        "seconds": told.seconds,
        "gpu_hours": told.gpu_hours,
        "defense_timed": told.built,
    }


def render(
    evaluations: Sequence[Evaluation], rows: Sequence[Row], execution: Execution
) -> list[str]:
    """A line an evaluation, and what all of them cost together."""
    lines = [
        f"{row['id'] or 'files missing':16}  {'stored' if row['stored'] else 'to run'}  "
        f"{evaluation}  "
        f"[{row['dataset']}, {row['threat']}, n={row['n']}, seed {row['seed']}]{_priced(row)}"
        for row, evaluation in zip(rows, evaluations, strict=True)
    ]
    waiting = [row for row in rows if not row["stored"]]
    lines.append(f"{len(rows)} evaluations, {len(waiting)} to run")
    return lines + _together(waiting, execution)


def _priced(row: Row) -> str:
    if row["stored"]:
        return ""
    told = row["cost"]
    if told is None:
        return "  cost unknown before it runs"
    each = f"{told['forwards_per_image']:,}F {told['backwards_per_image']:,}B an image"
    star = "" if told["defense_timed"] else " *"
    if told["seconds"] is not None:
        return f"  at most {each}, {duration(told['seconds'])}{star}"
    hours = told["gpu_hours"]
    length = "not timed" if hours is None else f"{_number(hours)} GPU-hours"
    return f"  at most {each}, {length}{star}"


def _number(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _together(waiting: Sequence[Row], execution: Execution) -> list[str]:
    costs = [row["cost"] for row in waiting if row["cost"] is not None]
    if not costs:
        return []
    passes = sum(one["passes"] for one in costs)
    timed = [one["seconds"] for one in costs if one["seconds"] is not None]
    left_out = f" for {len(timed)} of {len(costs)} of them" if len(timed) < len(costs) else ""
    clock = (
        f", {duration(sum(timed))}{left_out} in one process on {execution.device}, as a "
        "calibration of some seconds tells"
        if timed
        else ""
    )
    lines = [f"at most {passes:,} passes{clock}; an image that breaks early costs less"]
    hours = [one["gpu_hours"] for one in costs if one["gpu_hours"] is not None]
    # Of a few seconds' plan on a CPU alone, hours of some of them are of no use.
    if len(hours) == len(costs) or len(timed) < len(costs):
        lines.append(_gpu(hours, len(costs)))
    if not all(one["defense_timed"] for one in costs):
        lines.append(
            "* the classifier was timed or counted in its place: to build this defense is work of "
            "its own, which is not counted"
        )
    return lines


def _gpu(hours: Sequence[float], count: int) -> str:
    of_some = f" for {len(hours)} of {count} of them" if len(hours) < count else ""
    return (
        f"at most {_number(sum(hours))} hours{of_some} of a GPU that does {GPU_FLOPS / 1e12:g}e12 "
        "operations a second, 30 % of an H100 in float32 (operations counted, a backward pass as "
        "many as a forward pass; the pace assumed, not measured; a small network keeps it less "
        "busy)"
    )
