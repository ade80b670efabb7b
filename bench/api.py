"""The Python interface: `bench.evaluate`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.engine.execution import Progress, read_execution
from bench.engine.plan import plan
from bench.engine.request import read_request
from bench.engine.run import run_evaluations
from bench.engine.setup import load_setup
from bench.errors import BadInput
from bench.report.leaderboard import rows_table
from bench.results.record import Failure, Record
from bench.results.store import Store
from bench.storage.download import rooted


@dataclass(frozen=True)
class Report:
    """Records of one `evaluate` call; printing it shows the table."""

    records: list[Record]
    failures: list[Failure]

    def __str__(self) -> str:
        return rows_table(self.records, self.failures)


class _Probabilities(nn.Module):
    """Turns a model's probabilities into logits by the logarithm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (n, K)."""
        probabilities: Tensor = self.model(images)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def evaluate(
    model: nn.Module | None = None,
    *,
    dataset: str = "mnist5k",
    attacks: str | Sequence[str] = ("pgd",),
    defenses: str | Sequence[str] = ("undefended",),
    eps: float | str | None = None,
    norm: str | None = None,
    n: int | None = None,
    randomness: str | None = None,
    gradient: str | None = None,
    seeds: Sequence[int] = (0,),
    build_seed: int = 0,
    classifier: str | None = None,
    output: str = "logits",
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a model, or registered defenses, under attacks.

    Args:
        model: any `nn.Module` from float32 images (n, C, H, W) in [0, 1] to logits (n, K),
            normalisation inside; it is put into evaluation mode. A stochastic one (dropout in its
            forward pass, say) is detected and its randomness controlled row by row. A
            `DefendedClassifier` takes its randomness as an argument. None evaluates `classifier`,
            or the data set's own.
        dataset, attacks, defenses, classifier, randomness, gradient: specs as on the command line.
        eps, norm: the threat model; eps in pixel units of [0, 1], a number or a fraction such as
            `8/255`.
        n: how many images, in evaluation order; the first 1,000 by default.
        seeds, build_seed: attack seeds, and the seed of the defense's construction.
        output: `logits`, or `probabilities` to take their logarithm.
        out: folder for records; kept nowhere by default.
        data_root: folder of published data and weights; BENCH_DATA_ROOT or ~/.cache/bench by
            default.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: most rows in one forward pass; 128 by default, 1024 on a GPU.
        progress: told of each cell's beginning and of each finished part.

    Returns:
        A report with one record a cell, the undefended base's included.

    Raises:
        BadInput: for anything that cannot work, before anything is computed.
    """
    if output not in ("logits", "probabilities"):
        raise BadInput(f"output is {output!r}: use logits or probabilities")
    if model is not None and not isinstance(model, nn.Module):
        raise BadInput(
            f"model is {type(model).__name__}, not a torch.nn.Module: give the module itself, not "
            "what makes it"
        )
    if model is not None and classifier is not None:
        raise BadInput("both model and classifier are given: keep one")
    if model is not None and output == "probabilities":
        model = _Probabilities(model.eval() if model.training else model).eval()
    request = read_request(
        {
            "defenses": defenses,
            "attacks": attacks,
            "seeds": tuple(seeds) if isinstance(seeds, Iterable) else seeds,
            "build_seed": build_seed,
            "dataset": dataset,
            "classifier": classifier,
            "norm": norm,
            "eps": eps,
            "n": n,
            "randomness": randomness,
            "gradient": gradient,
        },
        "evaluate",
    )
    execution = read_execution(device, batch_size, progress)
    with rooted(data_root), tempfile.TemporaryDirectory() as scratch:
        evaluations = plan(request, load_setup(request, model), note=warnings.warn)
        store = Store(Path(out) if out is not None else Path(scratch))
        store.check_writable()
        results = list(run_evaluations(evaluations, store, execution))
    for result in results:
        if result.rejected:
            raise result.rejected
    return Report(
        [r.record for r in results if r.record], [r.failure for r in results if r.failure]
    )
