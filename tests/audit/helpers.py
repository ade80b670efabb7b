"""Rows to audit: small modules around a linear model, attacked and judged."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bench.audit.limits import STANDARD
from bench.audit.row import AuditedRow
from bench.engine.build import build
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluation
from bench.results.store import Store
from bench.victim import frozen
from tests.helpers import toy_request
from tests.toys import Linear, linear_problem

EPS = 0.01
N = 60
SCALE = replace(STANDARD, queries=300, points=100, smoothing=15, margin=20, inner=60, binarised=8)


def linear() -> Linear:
    """The linear model of the toy data set."""
    return linear_problem(3, 1, active_box=False)[0]


def toy_images(n: int = N):
    return linear_problem(3, n, active_box=False)[1:]


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = linear()


class Hidden(Around):
    """The value of the network without its gradient."""

    def forward(self, x):
        return self.net(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True)


def run(model=None, scale=SCALE, **changes):
    """Evaluation and record of the last row of a toy request, and its points."""
    asked = {
        "defenses": ("undefended",),
        "attacks": ("pgd:steps=10",),
        "dataset": f"toy:n={N}",
        "eps": EPS,
        **changes,
    }
    if model is not None:
        asked["classifier"] = None
    request = toy_request(**{k: v for k, v in asked.items() if v is not None})
    if model is not None:
        request = request.model_copy(update={"classifiers": ()})
    evaluation = plan(request, model=model)[-1]
    with tempfile.TemporaryDirectory() as folder:
        record = run_evaluation(evaluation, Store(Path(folder)), Execution())
    return evaluation, record


@contextmanager
def audited(model=None, scale=SCALE, **changes):
    """A row under audit, its defense frozen."""
    evaluation, record = run(model, **changes)
    defended = build(evaluation, torch.device("cpu"))
    with frozen(defended):
        yield AuditedRow(evaluation, defended, record, Execution(), scale)


def verdicts(check, model=None, **changes):
    """What a check says of a row, by id."""
    with audited(model, **changes) as row:
        return {one.id: one for one in check(row)}
