"""What tests of several rooms share: the command as a user types it, and evaluations of toys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

from bench.cli import execute
from bench.defense import Defense
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluation
from bench.plugins.create import Named
from bench.results.record import Record
from bench.results.store import Store
from tests import toy_plugins  # noqa: F401

ROOT = Path(__file__).parents[1]
MODEL = f"{ROOT}/tests/toy_model.py@make_model"


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line."""
    code = execute(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, out: Path, *arguments: str) -> str:
    """Run; expect exit code 2, one line, and no record. Returns the line."""
    code, stdout, stderr = call(capsys, *arguments)
    assert code == 2, (stdout, stderr)
    assert stdout == ""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("bench: ") and len(lines[0]) > 30
    assert not list(out.rglob("*.json"))
    return lines[0]


def toy_request(**changes) -> Request:
    defaults = {
        "defenses": ("toy-jitter",),
        "attacks": ("pgd+replay:steps=5",),
        "dataset": "toy:n=150",
        "classifier": MODEL,
    }
    return Request(**{**defaults, **changes})


def run_toys(folder: Path, batch_size: int = 128, shards=None, **changes) -> list[Record]:
    """Run what a `toy_request` plans, into a folder of records."""
    store = Store(folder)
    return [
        run_evaluation(evaluation, store, Execution(batch_size=batch_size), shards)
        for evaluation in plan(toy_request(**changes))
    ]


class Drifting(Defense):
    """Comes out of `build` otherwise from time to time, as training does on another device or
    number of threads: a test sets `factor`.
    """

    factor: ClassVar = 1.0

    def build(self, classifier, access, noise):
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.mul_(self.factor)
        return classifier


def drifting_evaluation() -> Evaluation:
    evaluation = plan(toy_request(defenses=("undefended",), attacks=("null",), n=150))[0]
    return replace(
        evaluation, defense=Named("drifting", "drifting", Drifting(Drifting.Params()), ())
    )
