"""Run cells: build, attack, judge, record."""

from __future__ import annotations

import copy
import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from bench.audit import Finding
from bench.data.dataset import ImageSet
from bench.defense import DataAccess, DefendedClassifier, Need, PoolUse
from bench.errors import BadInput
from bench.fingerprint import weights_sha256
from bench.inference import Inference, inspect
from bench.metrics import measure
from bench.noise import Law, Noise, Query, Stream, isolated, judging
from bench.outcomes import WRONG_BEFORE, Outcomes, Stages
from bench.plan import Cell
from bench.pool import fill
from bench.preflight import check, replay_level
from bench.provenance import environment
from bench.public import fitted
from bench.record import Cost, Failure, Points, Record, Store, file_stem, write_whole
from bench.scores import DETECTOR, scores
from bench.victim import VERDICT_DRAWS, Victim, frozen, predict
from bench.work import Arrays, Part, Workspace, complete, parts_of

PREFLIGHT_IMAGES = 8

_CPU = torch.device("cpu")

Progress = Callable[[Cell, int, int, float], None]
"""Called with no image when work on a part begins, then for each finished part: (cell, images of the part, images of the cell,
share of the part's images that are right under attack)."""


@dataclass(frozen=True)
class Options:
    """How to run, never what: none of this can change an outcome.

    Attributes:
        device: where to compute.
        batch_size: most rows in one forward pass.
        progress: told of each cell's beginning and of each finished part.
    """

    device: torch.device = torch.device("cpu")
    batch_size: int = 128
    progress: Progress | None = None


@dataclass(frozen=True)
class Result:
    """What became of one cell: a record, a failure, or bad input that only building it could show (which leaves no file)."""

    cell: Cell
    record: Record | None = None
    failure: Failure | None = None
    rejected: BadInput | None = None
    path: Path | None = None
    computed: bool = True


def read_device(text: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises `BadInput` where there is no such device."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise BadInput(f"unknown device {text!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {text!r} is not supported: use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"no such GPU {text!r}: torch sees {torch.cuda.device_count()} of them; use --device cpu")
    return device


def default_batch_size(device: torch.device) -> int:
    """Rows that keep a device busy without filling its memory."""
    return 1024 if device.type == "cuda" else 128


def check_batch_size(batch_size: int) -> int:
    """The batch size, if it is one."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise BadInput(f"batch size is {batch_size}: give at least 1")
    return batch_size


def run_cells(cells: Sequence[Cell], store: Store, options: Options) -> Iterator[Result]:
    """Run cells one after the other. A stored cell is not computed again; one that crashes becomes a `Failure`."""
    for cell in cells:
        stored = store.find(cell.id)
        if stored is not None:
            Workspace(store.work(cell.id)).remove()
            yield Result(cell, record=stored, path=store.folder / f"{stored.stem}.json", computed=False)
            continue
        try:
            record = run_cell(cell, store, options)
            yield Result(cell, record=record, path=store.folder / f"{record.stem}.json")
        except BadInput as error:
            yield Result(cell, rejected=error)
        except Exception as error:
            finished = store.find(cell.id)
            if finished is not None:
                yield Result(cell, record=finished, path=store.folder / f"{finished.stem}.json")
                continue
            failure = _failure(cell, error)
            yield Result(cell, failure=failure, path=store.save_failure(failure))


def _failure(cell: Cell, error: Exception) -> Failure:
    return Failure(
        cell=cell.id,
        title=cell.title,
        error=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
        finished=_now(),
    )


def run_cell(cell: Cell, store: Store, options: Options, parts: Sequence[Part] | None = None) -> Record:
    """Compute one cell together with any other process that works on it, and store its record.

    Args:
        parts: the order in which to take parts; ascending by default.
    """
    order = list(parts) if parts is not None else _parts(cell, options)
    with exact_float32(options.device):
        access = data_access(cell, options.device)
        defended = build(cell, options.device, access)
        weights = weights_sha256(defended)
        # A defense that trains when it is built comes out otherwise on another device or number of threads: never mix the two.
        work = Workspace(store.work(cell.id) / weights[:16])
        seen = _preflight(cell, defended, access, options.device)
        with frozen(defended):
            compute = _Compute(cell, defended, options)
            done = complete(work, order, compute, lambda: store.find(cell.id) is not None, compute.report)
    if done is None:
        found = store.find(cell.id)
        if found is None:
            raise RuntimeError(f"the record of cell {cell.id} vanished while it was being finished")
        return found
    made_with = {**environment(options.device), "weights": weights}
    record = _record(cell, _merge(done), seen, store, made_with)
    store.save(record)
    Workspace(store.work(cell.id)).remove()
    return record


def compute_cell(cell: Cell, options: Options) -> Outcomes:
    """Compute one cell's outcomes here and now, keeping nothing."""
    with exact_float32(options.device):
        defended = build(cell, options.device)
        with frozen(defended):
            compute = _Compute(cell, defended, options)
            return _outcomes(cell, _merge({part: compute(part) for part in _parts(cell, options)}))


def _parts(cell: Cell, options: Options) -> list[Part]:
    return parts_of(len(cell.subject.images), options.batch_size, cell.attack.plugin.unit(cell.stochastic))


def data_access(cell: Cell, device: torch.device = _CPU) -> DataAccess:
    """The door to the data that a cell's defense declared; what must be computed for it is computed on `device`."""
    shape = tuple(cell.subject.images.images.shape[1:])
    return DataAccess(frozenset(cell.defense.plugin.needs), _sources(cell, device), cell.defense.name, cell.subject.threat, shape)


def build(cell: Cell, device: torch.device, access: DataAccess | None = None) -> DefendedClassifier:
    """Build a cell's defended classifier: on `device`, in evaluation mode, the global generators as found.

    `access` stands in for the cell's own door to its data.
    """
    subject, defense = cell.subject, cell.defense.plugin
    noise = Noise.of(cell.build_seed, Stream.BUILD, [0])
    access = access or data_access(cell, device)
    classifier = _copy(subject.classifier).to(device).requires_grad_(True)
    random = [] if classifier.training else [part for part in classifier.modules() if part.training]
    with isolated(cell.build_seed):
        defended = defense.build(classifier, access, noise)
    if not isinstance(defended, DefendedClassifier):
        raise BadInput(f"defense {cell.defense.name!r} built {type(defended).__name__}: return a DefendedClassifier")
    _check_declared(cell, defended)
    if defended.training:
        defended.eval()
        # Parts of a classifier in evaluation mode that are in training mode on purpose: dropout at test time.
        for part in random:
            part.training = True
    return defended.to(device)


def _copy(classifier: DefendedClassifier) -> DefendedClassifier:
    """A copy of the classifier, so that a defense that trains it in place spoils no other cell."""
    try:
        return copy.deepcopy(classifier)
    except Exception as error:
        name = type(getattr(classifier, "network", classifier)).__name__
        raise BadInput(f"{name} cannot be copied ({error}), and each cell needs its own: mend its __deepcopy__") from error


def _check_declared(cell: Cell, defended: DefendedClassifier) -> None:
    """The class decided which attacks make sense before anything was built; what it built must agree."""
    name = cell.defense.name
    if defended.stochastic != cell.stochastic:
        raise BadInput(
            f"defense {name!r} has stochastic={cell.stochastic}, but the module it builds has {defended.stochastic}: set both alike"
        )
    if set(defended.gradients) != set(cell.gradients):
        built = tuple(defended.gradients)
        raise BadInput(f"defense {name!r} has gradients={cell.gradients}, but the module it builds has {built}: set both alike")


def _sources(cell: Cell, device: torch.device) -> dict[Need, Callable[[], Any]]:
    def training_data() -> tuple[Tensor, Tensor]:
        images = cell.subject.dataset.plugin.train()
        return images.pixels(), images.labels

    def pool(n: int, adversarial: float) -> Tensor:
        subject = cell.subject
        classifier = _copy(subject.classifier).to(device)
        return fill(cell.free_images(), subject.images, classifier, subject.threat, cell.build_seed, n=n, adversarial=adversarial)

    def public_images() -> Tensor:
        return fitted(cell.public_images().images.pixels(), tuple(cell.subject.images.images.shape[1:]))

    return {
        Need.TRAINING_DATA: training_data,
        Need.PUBLIC_IMAGES: public_images,
        Need.UNLABELLED_TEST: lambda: pool,
        Need.GENERATOR: lambda: copy.deepcopy(cell.generator()),
    }


@dataclass(frozen=True)
class _Seen:
    """What is known of a defended classifier before it is attacked."""

    findings: list[Finding]
    level: str
    inference: Inference
    pool: PoolUse | None


def _preflight(cell: Cell, defended: DefendedClassifier, access: DataAccess, device: torch.device) -> _Seen:
    sample = cell.subject.images.first(min(PREFLIGHT_IMAGES, len(cell.subject.images)))
    pixels, labels = sample.pixels().to(device), sample.labels.to(device)
    with frozen(defended):
        findings = check(defended, pixels, labels, cell.gradient)
        level = replay_level(defended, pixels)
        with isolated(cell.build_seed):
            inference = inspect(defended, pixels, labels, defended.stochastic or level == "none")
    notes = [Finding(name="built", verdict="note", message=note) for note in defended.notes]
    return _Seen([*findings, *_trained_on(cell), *_transductive(access.pool), *notes], level, inference, access.pool)


def _transductive(pool: PoolUse | None) -> Iterator[Finding]:
    if pool:
        message = (
            f"transductive: it adapted on {pool.images} unlabelled test images other than the evaluated ones, "
            f"{pool.adversarial:.0%} of them attacked"
        )
        yield Finding(name="transductive", verdict="note", message=message)


def _trained_on(cell: Cell) -> Iterator[Finding]:
    subject = cell.subject
    yield from _seen(cell, "classifier", getattr(subject.classifier, "trained_on", ()))
    if Need.GENERATOR in cell.defense.plugin.needs:
        trained = cell.generator().trained_on
        yield from _seen(cell, "diffusion model", trained)
        message = f"the diffusion model was trained on {', '.join(trained) or 'images that nothing names'}"
        yield Finding(name="generator", verdict="note", message=message)
    if Need.PUBLIC_IMAGES in cell.defense.plugin.needs:
        public = cell.public_images()
        message = f"the public images are {len(public.images)} of {public.dataset.spec}"
        yield Finding(name="public-images", verdict="note", message=message)


def _seen(cell: Cell, what: str, trained: Sequence[str]) -> Iterator[Finding]:
    seen = sorted(set(trained) & set(cell.subject.dataset.plugin.drawn_from))
    if seen:
        yield Finding(
            name="trained-on-test",
            verdict="warn",
            message=f"the {what} was trained on {', '.join(seen)}, which holds the evaluated images: accuracies flatter it",
        )


def _report(options: Options, cell: Cell, images: int, right: float) -> None:
    if options.progress:
        options.progress(cell, images, len(cell.subject.images), right)


@dataclass(frozen=True)
class _Compute:
    """Attacks and judges one part of a cell."""

    cell: Cell
    defended: DefendedClassifier
    options: Options

    def report(self, part: Part, arrays: Arrays) -> None:
        """Tell the progress callback of a finished part."""
        labels = self.cell.subject.images.at(np.arange(*part)).labels.numpy()[:, None]
        right = float(((arrays["adversarial"] == labels) & (arrays["clean"] == labels)).mean())
        _report(self.options, self.cell, part[1] - part[0], right)

    def __call__(self, part: Part) -> Arrays:
        """Arrays of a finished part, images along the first axis."""
        _report(self.options, self.cell, 0, 0.0)
        began = time.perf_counter()
        subset = self.cell.subject.images.at(np.arange(*part))
        arrays = self._attack(subset)
        arrays["seconds"] = np.array([time.perf_counter() - began])
        return arrays

    def _attack(self, subset: ImageSet) -> Arrays:
        images = subset.pixels().to(self.options.device)
        labels = subset.labels.to(self.options.device)
        clean = self._judge(images, subset.ids)
        fixed = self._fixed(images, subset.ids, clean)
        # Where the attacked function is fixed and wrong on the clean image, the image is broken already.
        chosen = torch.ones(len(images), dtype=torch.bool) if fixed is None else fixed == subset.labels
        arrays = self._untouched(images, fixed)
        for block in torch.arange(len(subset)).split(self.cell.attack.plugin.unit(self.cell.stochastic) or len(subset)):
            here = block[chosen[block]]
            if len(here):
                self._attack_block(images, labels, subset.ids, here, arrays)
        answers = arrays.pop("answers")
        stochastic = self.defended.stochastic
        points = torch.from_numpy(arrays["points"])
        return {
            **arrays,
            **self._scores(images, points, subset.ids),
            "clean": clean.numpy(),
            "adversarial": self._judge(points, subset.ids).numpy() if stochastic else answers,
            "replayed": answers if stochastic else answers[:, :0],
        }

    def _scores(self, images: Tensor, points: Tensor, ids: Any) -> dict[str, Any]:
        """What the scored views say of clean images and of points, under the judge's first draw."""
        if not self.defended.scored:
            return {}
        observer = self._observer(ids)
        rows = torch.arange(len(images), device=images.device)
        found: dict[str, Any] = {"moved": (points != images.cpu()).flatten(1).any(1).numpy()}
        for view in self.defended.scored:
            for which, pixels in (("clean", images), ("adversarial", points.to(images.device))):
                output = observer.logits(pixels, rows, Query(), view)[:, 0]
                value = output[:, 1] - output[:, 0] if view == DETECTOR else predict(output)
                found[f"score/{view}/{which}"] = value.cpu().numpy()
        return found

    def _untouched(self, images: Tensor, fixed: Tensor | None) -> dict[str, Any]:
        """What is known of a part before any of its images is attacked; images along the first axis."""
        n = len(images)
        tapes = _tapes(self.cell.law) if self.defended.stochastic else 0
        return {
            "points": images.cpu().numpy().copy(),
            "answers": np.zeros((n, tapes), dtype=np.int64) if fixed is None else fixed.numpy()[:, None].copy(),
            "stages": np.full(n, WRONG_BEFORE, dtype=np.int64),
            "forwards": np.zeros(n, dtype=np.int64),
            "backwards": np.zeros(n, dtype=np.int64),
            "reprojected": np.zeros(1, dtype=np.int64),
            "blocked": np.zeros(1, dtype=np.int64),
            "findings": np.array([], dtype=np.str_),
        }

    def _attack_block(self, images: Tensor, labels: Tensor, ids: Any, here: Tensor, arrays: dict[str, Any]) -> None:
        """Attack the images at positions `here` in one call and enter what came of it."""
        victim = self._victim(ids[here.numpy()])
        there = here.to(images.device)
        attacked = self.cell.attack.plugin(victim, images[there], labels[there], self.cell.subject.threat)
        found = {
            "points": attacked.points,
            "answers": attacked.predictions,
            "stages": attacked.stages,
            "forwards": victim.forwards,
            "backwards": victim.backwards,
        }
        for name, tensor in found.items():
            arrays[name][here.numpy()] = tensor.cpu().numpy()
        arrays["reprojected"] += attacked.reprojected
        arrays["blocked"] += victim.gradient_blocked
        texts = [finding.model_dump_json() for finding in attacked.findings]
        arrays["findings"] = np.unique(np.array([*arrays["findings"], *texts], dtype=np.str_))

    def _fixed(self, images: Tensor, ids: Any, clean: Tensor) -> Tensor | None:
        """Predictions (n,) of the attacked function on the clean images where that function is fixed, else None."""
        if not self.defended.stochastic:
            return clean[:, 0]
        return self._victim(ids).verify(images)[:, 0].cpu() if self.cell.law.deterministic else None

    def _victim(self, ids: Any) -> Victim:
        return Victim(
            self.defended,
            ids,
            law=self.cell.law,
            gradient=self.cell.gradient,
            root=self.cell.seed,
            batch_size=self.options.batch_size,
            device=self.options.device,
        )

    def _observer(self, ids: Any) -> Victim:
        size, device = self.options.batch_size, self.options.device
        return Victim(self.defended, ids, law=judging(1), root=self.cell.seed, batch_size=size, device=device)

    def _judge(self, images: Tensor, ids: Any) -> Tensor:
        return judge(self.defended, images, ids, self.cell, self.options)


def _tapes(law: Law) -> int:
    """Predictions an image that a replayed verdict rests on."""
    if not law.taped:
        return 0
    return VERDICT_DRAWS if law.freeze else law.k


def judge(defended: DefendedClassifier, images: Tensor, ids: Any, cell: Cell, options: Options) -> Tensor:
    """Predictions of the deployed defense on fresh draws of the evaluation stream: int64 (n, draws), on the CPU."""
    images = images.to(options.device)
    observer = Victim(
        defended,
        ids,
        law=judging(cell.judged_draws),
        root=cell.seed,
        batch_size=options.batch_size,
        device=options.device,
    )
    rows = torch.arange(len(images), device=options.device)
    return predict(observer.logits(images, rows, Query())).cpu()


def _merge(parts: dict[Part, Arrays]) -> Arrays:
    ordered = [parts[part] for part in sorted(parts)]
    return {name: np.concatenate([arrays[name] for arrays in ordered]) for name in ordered[0]}


def _record(cell: Cell, arrays: Arrays, seen: _Seen, store: Store, made_with: dict[str, object]) -> Record:
    subject = cell.subject
    outcomes, cost = _outcomes(cell, arrays), _cost(cell, arrays)
    base = cell.base()
    stem = file_stem(cell.title, cell.id)
    return Record(
        cell=cell.id,
        title=cell.title,
        sources=subject.sources,
        identity=cell.identity,
        given={**subject.given, "defense": list(cell.defense.given), "attack": list(cell.attack.given)},
        access=sorted(str(need) for need in cell.defense.plugin.needs),
        stochastic=cell.stochastic,
        replay_level=cast(Any, seen.level),
        transductive=seen.pool is not None,
        pool=seen.pool,
        inference=seen.inference,
        base=base.id if base else "",
        scale={"n": len(subject.images), "available": subject.available, "reduced": len(subject.images) < subject.available},
        outcomes=outcomes,
        stages=_stages(cell, arrays),
        scores=scores(cast(Any, arrays), subject.classifier.num_classes),
        metrics=measure(outcomes, by_gradient=cost.attack_backwards > 0 and not cell.attack.plugin.card.control),
        findings=[*_that_matter(seen.findings, arrays), *_attack_findings(cell, arrays)],
        cost=cost,
        points=_save_points(store, stem, arrays),
        environment=made_with,
        finished=_now(),
    )


def _outcomes(cell: Cell, arrays: Arrays) -> Outcomes:
    images = cell.subject.images
    return Outcomes.of(
        cell.subject.classifier.num_classes,
        images.ids,
        images.labels.numpy(),
        *(cast(Any, arrays[name]) for name in ("clean", "adversarial", "replayed")),
    )


def _stages(cell: Cell, arrays: Arrays) -> Stages | None:
    names = cell.attack.plugin.stages
    if not names:
        return None
    return Stages.of(names, cast(Any, arrays["stages"]))


def _that_matter(findings: list[Finding], arrays: Arrays) -> list[Finding]:
    """Without the missing gradient where the attack asked for none."""
    used = bool(cast(Any, arrays["backwards"]).any()) or bool(cast(Any, arrays["blocked"]).any())
    return [finding for finding in findings if used or finding.name != "zero-gradient"]


def _attack_findings(cell: Cell, arrays: Arrays) -> Iterator[Finding]:
    for text in np.unique(arrays["findings"]):
        yield Finding.model_validate_json(str(text))
    stages = _stages(cell, arrays)
    if stages:
        yield from cell.attack.plugin.review(stages.left())
    outside = int(cast(Any, arrays["reprojected"]).sum())
    if outside:
        yield Finding(
            name="reprojected",
            verdict="warn",
            message=f"{outside} points lay outside ball or box when the attack returned them; they were projected",
        )
    if bool(cast(Any, arrays["blocked"]).any()):
        yield Finding(
            name="no-gradient",
            verdict="warn",
            message="no gradient reaches the image at all: the attack was a blind search, no evidence of robustness",
        )


def _cost(cell: Cell, arrays: Arrays) -> Cost:
    forwards, backwards = cast(Any, arrays["forwards"]), cast(Any, arrays["backwards"])
    judged = 2 * cell.judged_draws + cell.law.deterministic if cell.stochastic else 1
    return Cost(
        attack_forwards=float(forwards.mean()),
        attack_backwards=float(backwards.mean()),
        max_attack_forwards=int(forwards.max()),
        max_attack_backwards=int(backwards.max()),
        judge_forwards=float(judged),
        seconds=float(cast(Any, arrays["seconds"]).sum()),
    )


def _save_points(store: Store, stem: str, arrays: Arrays) -> Points:
    data = save({"points": np.ascontiguousarray(arrays["points"])})
    digest = hashlib.sha256(data).hexdigest()
    # Two processes that finish at once with other batch sizes write two files; each record names its own.
    name = f"{stem}.{digest[:8]}.points.safetensors"
    write_whole(store.folder / name, data)
    return Points(file=name, sha256=digest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Full float32 and repeatable kernels on a GPU: TF32 convolutions would decide near ties otherwise."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
