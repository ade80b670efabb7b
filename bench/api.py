"""The Python interface: evaluate, load data and classifiers, read records back."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from bench.attack import Attack
from bench.commands.audit_records import AuditRequest, audit_results
from bench.data.arrays import Arrays
from bench.data.dataset import Dataset, ImageSet
from bench.defense import DefendedClassifier, Defense
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, Progress, read_execution
from bench.engine.fingerprint import fingerprint
from bench.engine.modules import ModuleDefense
from bench.engine.plan import plan
from bench.engine.preflight import check_probabilities
from bench.engine.progress import Reporter, in_notebook
from bench.engine.request import Request, read_request
from bench.engine.run import Result
from bench.engine.setup import classifier_of
from bench.errors import BadInput
from bench.execution.executor import items_of
from bench.execution.local import Team, given_workers, run_in_processes
from bench.models.foreign import set_training, unwrapped
from bench.plugins.create import ATTACKS, DATASETS, DEFENSES, Named, create, named
from bench.plugins.registry import Registry
from bench.report import curve
from bench.report.boards.make import boards
from bench.report.rows import rows_table
from bench.report.tables import percent
from bench.report.words import attack_label, failure_label, flags
from bench.results import store
from bench.results.audit import read_profile
from bench.results.record import Failure, Record
from bench.spec import parse
from bench.storage.data_root import rooted

if TYPE_CHECKING:
    import pandas

    from bench.commands.figures import Picture
    from bench.report.boards.model import Board
    from bench.report.pictures.contact import ContactSheet

_Attack: TypeAlias = str | Attack[Any] | type[Attack[Any]]
_Defense: TypeAlias = str | Defense[Any] | type[Defense[Any]]


@dataclass(frozen=True)
class _Kept:
    """What a report needs to show images.

    Attributes:
        folder: where the points lie.
        data_root: as given.
        sets: data sets that no spec names, with the evaluated images, by the hash of these.
    """

    folder: Path
    data_root: str | Path | None
    sets: Mapping[str, tuple[Dataset[Any], ImageSet]]


@dataclass(frozen=True, repr=False)
class Report:
    """Records of one `evaluate` call; printing it shows the table, as a notebook does."""

    records: list[Record]
    failures: list[Failure]
    _kept: _Kept | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return rows_table(self.records, self.failures)

    def __repr__(self) -> str:
        lines = [
            f"{record.title['defense'][:60]} x {attack_label(record)[:60]}: clean "
            f"{percent(record.metrics.clean.mean.value)}, robust "
            f"{percent(record.metrics.adversarial.mean.value)}"
            for record in self.records
        ]
        lines += [failure_label(failure)[:160] for failure in self.failures]
        more = [f"  ... {len(lines) - _SHOWN} more"] * (len(lines) > _SHOWN)
        told = [f"  {line}" for line in lines[:_SHOWN]] + more
        return "\n".join([f"<Report: {len(lines)} rows>", *told])

    def _repr_html_(self) -> str:
        from bench.report.notebook import table

        return table(self.records, self.failures)

    def board(self) -> Board:
        """The leaderboard of the records, under the default protocol: its rows with ranks, builds,
        attacks and notes; `frame()` and `wide()` make tables of it.

        Raises:
            BadInput: where the records are of several setups, or of none.
        """
        made = boards(self.records)
        if len(made) != 1:
            raise BadInput(
                f"the records make {len(made)} boards: give those of one setup (data set, "
                "classifier, threat, images)"
            )
        return made[0]

    def plot(self) -> Picture:
        """Robust accuracy over eps where the records are of several eps; else clean against robust
        accuracy. A notebook shows it; `plot().figure.savefig("x.png")` writes it.

        Raises:
            BadInput: where there is no record, or the setups differ in more than eps.
        """
        from bench.commands.figures import picture

        return picture(self.records)

    def images(self, record: Record | None = None) -> ContactSheet:
        """Images of a record: of what broke, of what survived and of what was wrong before, the
        first eight each; clean, attacked, and the change. A notebook shows it;
        `images().save("x.png")` writes it.

        Args:
            record: one of `records`; the last by default.

        Raises:
            BadInput: where there is no record, its points are gone, or its images may not be shown.
        """
        from bench.report.pictures.contact import contact_sheet
        from bench.report.pictures.seen import Images

        if not self.records or self._kept is None:
            raise BadInput("there are no images to show: every evaluation failed")
        chosen = self.records[-1] if record is None else record
        with rooted(self._kept.data_root):
            images = Images(lambda record: None, self._kept.sets)
            return contact_sheet(chosen, images.seen(chosen, self._kept.folder))

    def frame(self) -> pandas.DataFrame:
        """One row a record; failures are left out.

        Columns: the title (defense, attack, gradient, randomness, dataset, classifier, threat, n,
        seed); the accuracies `clean`, `robust` and, where the attack had fixed noise, `replayed`,
        as shares in [0, 1], each with the bounds `_low` and `_high` of its 95 % interval; `base`,
        the robust accuracy of the undefended classifier; `flags`; `id`.
        """
        import pandas

        robust = {record.id: record.metrics.adversarial.mean.value for record in self.records}
        return pandas.DataFrame([_row(record, robust.get(record.base)) for record in self.records])


_SHOWN = 8
"""So many rows are in a report's repr."""


def _row(record: Record, base: float | None) -> dict[str, Any]:
    metrics, row = record.metrics, dict[str, Any](record.title)
    row.update(n=int(row["n"]), seed=int(row["seed"]))
    accuracies = {
        "clean": metrics.clean,
        "robust": metrics.adversarial,
        "replayed": metrics.replayed,
    }
    for name, accuracy in accuracies.items():
        row[name] = accuracy.mean.value if accuracy else None
        row[f"{name}_low"] = accuracy.mean.low if accuracy else None
        row[f"{name}_high"] = accuracy.mean.high if accuracy else None
    return {**row, "base": base, "flags": ", ".join(flags([record])), "id": record.id}


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
    dataset: str | Sequence[str] | tuple[Any, Any] = "mnist5k",
    attacks: _Attack | Sequence[_Attack] = ("pgd",),
    defenses: _Defense | Sequence[_Defense] = ("undefended",),
    eps: float | str | Sequence[float | str] | None = None,
    norm: str | Sequence[str] | None = None,
    n: int | None = None,
    randomness: str | None = None,
    gradient: str | None = None,
    seeds: Sequence[int] = (0,),
    build_seed: int = 0,
    classifier: str | Sequence[str] | None = None,
    classes: int | None = None,
    output: str = "logits",
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    compile: str = "auto",
    progress: Progress | None = None,
    audit: str | None = None,
) -> Report:
    """Evaluate a model, or registered defenses, under attacks.

    Args:
        model: any `nn.Module` from float32 images (n, C, H, W) in [0, 1] to logits (n, K),
            normalisation inside; it is put into evaluation mode. A stochastic one (dropout in its
            forward pass, say) is detected and its randomness controlled row by row. A
            `DefendedClassifier` takes its randomness as an argument. None evaluates `classifier`,
            or the data set's own.
        dataset, classifier, attacks, defenses: specs as on the command line; of several, every
            combination is evaluated. `dataset` may also be arrays `(images, labels)`: images
            (n, H, W), (n, H, W, C) or (n, C, H, W), uint8 or floats in [0, 1], labels (n,), of
            NumPy or torch; eps must then be given. Attacks and defenses may also be instances such
            as `Jitter(sigma=0.1)`, classes, and a `ModuleDefense`, whose base is `model`.
        randomness, gradient: as on the command line.
        eps, norm: the threat model, or several; eps in pixel units of [0, 1], a number or a
            fraction such as `8/255`.
        n: how many images, in evaluation order; the first 1,000 by default.
        seeds, build_seed: attack seeds, and the seed of the defense's construction.
        classes: number of classes K of arrays; the largest label plus one by default.
        output: `logits`, or `probabilities` to take their logarithm.
        out: folder for records; by default they are kept with the report alone.
        data_root: folder of published data and weights; BENCH_DATA_ROOT or ~/.cache/bench by
            default.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: most rows in one forward pass; 128 by default, 1024 on a GPU.
        workers: processes that compute together; BENCH_WORKERS, else this one alone, by default.
            On CPUs they are copies of this process, which must not compute in other threads
            meanwhile.
        compile: `auto`: searches read the network with its batch normalisations folded, where that
            is the same function up to rounding; all answers stay the network's own. `on`: they
            read it in bfloat16 too, which is faster where the processor or GPU has units for it.
            `off`: they read the network.
        progress: called at the beginning of each evaluation and for each finished shard; a
            notebook shows a line by default.
        audit: `quick`, `standard` or `full`: look for masking in every row, as `bench audit` does;
            the records then have an `audit`. None looks for nothing beyond the checks of the run.

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
    objects: dict[str, Named[Any]] = {}
    notes: list[str] = []
    request = read_request(
        {
            "defenses": _texts(defenses, "defenses", DEFENSES, objects),
            "attacks": _texts(attacks, "attacks", ATTACKS, objects),
            "seeds": tuple(seeds) if isinstance(seeds, Iterable) else seeds,
            "build_seed": build_seed,
            "dataset": _data(dataset, classes, objects),
            "classifier": classifier,
            "norm": norm,
            "eps": eps,
            "n": n,
            "randomness": randomness,
            "gradient": gradient,
        },
        "evaluate",
    )
    profile = read_profile(audit) if audit is not None else None
    execution = read_execution(device, batch_size, progress, compile)
    scratch = None if out is not None else Path(tempfile.mkdtemp(prefix="bench-"))
    folder = Path(out) if out is not None else cast(Path, scratch)
    try:
        with rooted(data_root):
            evaluations = [
                evaluation
                for one, beside, given in _plans(request, model, objects)
                for evaluation in plan(one, model=beside, note=notes.append, objects=given)
            ]
            for text in dict.fromkeys(notes):
                warnings.warn(text, stacklevel=2)
            requests = None if model is not None or objects else [request]
            results = _run(evaluations, requests, folder, execution, given_workers(workers) or 1)
            records = [result.record for result in results if result.record]
            if profile:
                records = _with_audits(results, AuditRequest(profile, execution))
    except BaseException:
        _remove(scratch)
        raise
    failures = [result.failure for result in results if result.failure]
    report = Report(records, failures, _Kept(folder, data_root, _of_arrays(evaluations)))
    # Kept nowhere means as long as somebody may look at the images.
    weakref.finalize(report, _remove, scratch)
    return report


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _of_arrays(
    evaluations: Sequence[Evaluation],
) -> dict[str, tuple[Dataset[Any], ImageSet]]:
    """Of data sets that the program gave as arrays the evaluated images, by their hash."""
    setups = [one.setup for one in evaluations if one.setup.sources["dataset"] == ARRAYS]
    return {one.images.sha256: (one.dataset.plugin, one.images) for one in setups}


def _run(
    evaluations: Sequence[Evaluation],
    requests: Sequence[Request] | None,
    out: Path,
    execution: Execution,
    workers: int,
) -> list[Result]:
    folder = store.Store(out)
    folder.check_writable()
    told: list[str] = []
    with _shown(execution.progress, evaluations, folder) as shown:
        running = replace(execution, progress=shown)
        results = list(
            run_in_processes(evaluations, requests, folder, running, Team(workers), told.append)
        )
    for text in told:
        warnings.warn(text, stacklevel=3)
    for result in results:
        if result.rejected:
            raise result.rejected
    return results


@contextmanager
def _shown(
    progress: Progress | None, evaluations: Sequence[Evaluation], folder: store.Store
) -> Iterator[Progress | None]:
    """What is told of progress: in a notebook there is a line that changes."""
    if progress is not None or not in_notebook():
        yield progress
        return
    with Reporter(items_of(evaluations, folder)) as reporter:
        yield reporter


def _with_audits(results: Sequence[Result], request: AuditRequest) -> list[Record]:
    records = []
    for one in audit_results(results, request):
        if one.refused:
            raise one.refused
        if one.record:
            records.append(one.record.with_audit(one.report))
    return records


ARRAYS = "python:arrays"
"""What stands for arrays in a request, and says in a record that no file holds its images."""


def _data(
    dataset: str | Sequence[str] | tuple[Any, Any],
    classes: int | None,
    objects: dict[str, Named[Any]],
) -> object:
    """The data set as a request names it; arrays are entered into `objects`."""
    texts: Any = [dataset] if isinstance(dataset, str) else dataset
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        if classes is not None:
            raise BadInput("classes belongs to arrays: write npz:FILE,classes=K for a file")
        return dataset
    if not isinstance(texts, list | tuple) or len(texts) != 2:
        raise BadInput(
            f"dataset is a {type(dataset).__name__}: give a spec such as mnist5k, or arrays "
            "(images, labels)"
        )
    objects[ARRAYS] = Named("arrays", "arrays", Arrays(texts[0], texts[1], classes), ())
    return ARRAYS


def _texts(
    given: object, what: str, registry: Registry[Any], objects: dict[str, Named[Any]]
) -> object:
    """Specs as a request takes them; instances and classes are entered into `objects`."""
    several = isinstance(given, Iterable) and not isinstance(given, str | nn.Module)
    texts: list[str | None] = []
    for one in cast(Iterable[object], given) if several else (given,):
        if isinstance(one, str) or one is None:
            texts.append(one)
            continue
        named_one = _named(one, what, registry)
        known = objects.setdefault(named_one.spec, named_one)
        if known is not named_one and known.identity != named_one.identity:
            raise BadInput(f"two {what} are called {named_one.spec!r}: rename one")
        texts.append(named_one.spec)
    return texts


def _named(one: object, what: str, registry: Registry[Any]) -> Named[Any]:
    if isinstance(one, ModuleDefense):
        return Named(one.name, one.name, one, (), fingerprint(one.module))
    if isinstance(one, nn.Module):
        raise BadInput(
            f"{type(one).__name__} among the {what} is a module without a name: give "
            "bench.ModuleDefense(module, name='mine')"
        )
    if not registry.holds(one if isinstance(one, type) else type(one)):
        raise BadInput(
            f"{what} holds a {type(one).__name__}: give specs such as 'pgd', or instances or "
            f"classes of bench.{registry.kind.title()}"
        )
    return named(registry, one)


def _plans(
    request: Request, model: nn.Module | None, objects: dict[str, Named[Any]]
) -> Iterator[tuple[Request, nn.Module | None, dict[str, Named[Any]]]]:
    """What to plan: all in one, but for modules without a model beside them, which stand alone."""
    modules = {
        text: one.plugin for text, one in objects.items() if isinstance(one.plugin, ModuleDefense)
    }
    if model is not None or request.classifiers or not modules:
        yield request, model, objects
        return
    others = tuple(text for text in request.defenses if text not in modules)
    if others:
        yield request.model_copy(update={"defenses": others}), None, objects
    for text, plugin in modules.items():
        alone = {**objects, text: replace(objects[text], plugin=plugin.alone())}
        yield request.model_copy(update={"defenses": (text,)}), plugin.module, alone


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
        named = create(DATASETS, parse(dataset))
        return classifier_of(named, named.plugin.test(), spec)[0]


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


def eps_curve(records: Sequence[Record], eps: Sequence[float] = ()) -> pandas.DataFrame:
    """Robust accuracy over eps, from records that differ in eps alone, or from one record whose
    attack measured distances (`fmn`): one row an eps, shares in [0, 1].

    Columns: `clean`, `robust` with its interval `low` and `high`, and `nested`, the share of images
    that neither this eps nor a smaller one broke.

    Args:
        records: one an eps, or a single one.
        eps: of a single record, where its curve is read; by default from a quarter of its own eps
            to four times that.

    Raises:
        BadInput: where the records differ in more than eps, or where a single one measured no
            distances.
    """
    if len(records) == 1:
        return curve.measured_frame(records[0], eps)
    return curve.frame(curve.curve(records))


def smallest_eps(records: Sequence[Record]) -> pandas.Series[float]:
    """Per image id the smallest eps that broke it: 0 where it is wrong without an attack, infinite
    where none did. Of a single record the distance of the nearest point that its attack found.

    Raises:
        BadInput: as `eps_curve`.
    """
    if len(records) == 1:
        return curve.measured_series(records[0])
    return curve.series(curve.curve(records))


def leaderboard(records: Sequence[Record]) -> pandas.DataFrame:
    """The boards of these records as one table: a line a row and build, shares in [0, 1], with
    ranks under the default protocol.
    """
    import pandas

    frames = [board.wide() for board in boards(records)]
    return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
