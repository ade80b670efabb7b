"""The Python interface: evaluate, load data and classifiers, read records back."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.data.dataset import Dataset
from bench.defense import DefendedClassifier
from bench.engine.execution import Progress, read_execution
from bench.engine.plan import plan
from bench.engine.preflight import check_probabilities
from bench.engine.request import SetupRequest, read_request
from bench.engine.run import run_evaluations
from bench.engine.setup import load_setup
from bench.errors import BadInput
from bench.models.foreign import set_training, unwrapped
from bench.plugins.create import DATASETS, create
from bench.report.leaderboard import boards, table
from bench.report.rows import rows_table
from bench.results import store
from bench.results.record import Failure, Record
from bench.spec import parse
from bench.storage.data_root import rooted

if TYPE_CHECKING:
    import pandas


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

    def check_output(self, images: Tensor) -> None:
        """Raise `BadInput` where the model does not return probabilities."""
        check_probabilities(self.model(images))


def evaluate(
    model: nn.Module | None = None,
    *,
    dataset: str | Sequence[str] = "mnist5k",
    attacks: str | Sequence[str] = ("pgd",),
    defenses: str | Sequence[str] = ("undefended",),
    eps: float | str | Sequence[float | str] | None = None,
    norm: str | Sequence[str] | None = None,
    n: int | None = None,
    randomness: str | None = None,
    gradient: str | None = None,
    seeds: Sequence[int] = (0,),
    build_seed: int = 0,
    classifier: str | Sequence[str] | None = None,
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
        dataset, classifier, attacks, defenses: specs as on the command line; of several, every
            combination is evaluated.
        randomness, gradient: as on the command line.
        eps, norm: the threat model, or several; eps in pixel units of [0, 1], a number or a
            fraction such as `8/255`.
        n: how many images, in evaluation order; the first 1,000 by default.
        seeds, build_seed: attack seeds, and the seed of the defense's construction.
        output: `logits`, or `probabilities` to take their logarithm.
        out: folder for records; kept nowhere by default.
        data_root: folder of published data and weights; BENCH_DATA_ROOT or ~/.cache/bench by
            default.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: most rows in one forward pass; 128 by default, 1024 on a GPU.
        progress: called at the beginning of each evaluation and for each finished shard.

    Returns:
        A report with one record an evaluation, the undefended base's included.

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
        model = _Probabilities(unwrapped(model))
        set_training(model, False)
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
        evaluations = plan(request, model=model, note=warnings.warn)
        folder = store.Store(Path(out) if out is not None else Path(scratch))
        folder.check_writable()
        results = list(run_evaluations(evaluations, folder, execution))
    for result in results:
        if result.rejected:
            raise result.rejected
    return Report(
        [r.record for r in results if r.record], [r.failure for r in results if r.failure]
    )


def load_dataset(spec: str, data_root: str | Path | None = None) -> Dataset[Any]:
    """A data set by its spec, such as `mnist5k` or `npz:FILE`.

    Its methods `test()` and `train()` return an `ImageSet`: images (n, C, H, W), labels (n,) and
    ids (n,), the test images in evaluation order.

    Args:
        spec: as on the command line.
        data_root: folder of published data; BENCH_DATA_ROOT or ~/.cache/bench by default.

    Raises:
        BadInput: where there is no such data set; its files are read when asked for images.
    """
    with rooted(data_root):
        return create(DATASETS, parse(spec)).plugin


def load_classifier(
    spec: str | None = None, dataset: str = "mnist5k", data_root: str | Path | None = None
) -> DefendedClassifier:
    """A classifier by its spec, on the CPU and in evaluation mode.

    It is called as `classifier(images, noise)`: images (n, C, H, W) in [0, 1] to logits (n, K). A
    deterministic one ignores `noise`.

    Args:
        spec: as on the command line; the data set's own by default.
        dataset: spec of the data set whose images it takes.
        data_root: folder of published data and weights; BENCH_DATA_ROOT or ~/.cache/bench by
            default.

    Raises:
        BadInput: where there is no such classifier, or it does not run on these images.
    """
    with rooted(data_root):
        return load_setup(SetupRequest(dataset, spec, None, None, 1)).classifier


def read_record(path: str | Path) -> Record:
    """The record in a JSON file. Raises `BadInput` where it is none."""
    return store.read_record(Path(path))


def read_records(*places: str | Path) -> list[Record]:
    """The records in these files and below these folders, each evaluation once.

    Failures are left out.

    Raises:
        BadInput: where there is no such file or folder, or a file in it is no record.
    """
    return store.read_all([Path(place) for place in places])[0]


def leaderboard(records: Sequence[Record]) -> pandas.DataFrame:
    """The board of these records: one row a defense, shares in [0, 1]."""
    return table(boards(records))
