"""What `bench run --dry-run` tells: which evaluations there are, which are stored, and what the
others will cost at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.engine.cost import GPU_FLOPS, Cost, Pace, cost, paces
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.results.durations import duration
from bench.results.store import Store

Row = dict[str, Any]


def rows(evaluations: Sequence[Evaluation], store: Store, execution: Execution) -> list[Row]:
    """One an evaluation, with what it costs where it is not stored."""
    stored = {one.id for one in evaluations if store.find(one.id) is not None}
    timed = paces([one for one in evaluations if one.id not in stored], execution)
    return [_row(one, one.id in stored, timed.get(one.id)) for one in evaluations]


def _row(evaluation: Evaluation, stored: bool, pace: Pace | None) -> Row:
    told = cost(evaluation, pace)
    known: Row = {"id": evaluation.id, "stored": stored, **evaluation.title}
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
        f"{row['id']}  {'stored' if row['stored'] else 'to run'}  {evaluation}  "
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
    if told["seconds"] is None:
        return f"  at most {each}, not timed"
    return f"  at most {each}, {duration(told['seconds'])}{'' if told['defense_timed'] else ' *'}"


def _together(waiting: Sequence[Row], execution: Execution) -> list[str]:
    costs = [row["cost"] for row in waiting if row["cost"] is not None]
    if not costs:
        return []
    passes = sum(one["passes"] for one in costs)
    timed = [one["seconds"] for one in costs if one["seconds"] is not None]
    left_out = f" for {len(timed)} of {len(costs)} of them" if len(timed) < len(costs) else ""
    lines = [
        f"at most {passes:,} passes, {duration(sum(timed))}{left_out} in one process on "
        f"{execution.device}, as a calibration of some seconds tells; an image that breaks early "
        "costs less"
    ]
    hours = [one["gpu_hours"] for one in costs]
    if all(hour is not None for hour in hours):
        lines.append(
            f"at most {sum(hours):.2g} hours of a GPU that does {GPU_FLOPS / 1e12:g}e12 operations "
            "a second, 30 % of an H100 in float32 (computed, not measured; a small network keeps "
            "it less busy)"
        )
    if not all(one["defense_timed"] for one in costs):
        lines.append(
            "* the classifier was timed in its place: to build this defense is work of its own, "
            "which is not counted"
        )
    return lines
