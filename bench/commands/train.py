"""`bench train`: run a recipe, measure once, write weights and sidecar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from bench.data.dataset import Dataset
from bench.engine.environment import commit
from bench.engine.execution import read_device
from bench.errors import BadInput
from bench.models.recipes import recipe_for
from bench.models.training import Epoch, Score, TrainingRun, save, score
from bench.plugins.create import DATASETS, create
from bench.spec import parse
from bench.storage.files import check_folder, clear_unfinished, writing
from bench.storage.training_state import ResumableRun


def train_and_save(
    dataset: str,
    arch: str,
    out: Path,
    *,
    seed: int,
    epochs: int | None,
    device: str,
    choose: str | None = None,
) -> str:
    """Train `arch` on the data set's training images and write it to `out`; returns what to print
    for the user.

    A run that was interrupted goes on from OUT.checkpoint. The official validation split is scored
    after each epoch; the test images are used once, after training, for the accuracy in the
    sidecar.
    """
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise BadInput(
            f"cannot write weights to {out}: name a .safetensors file in a folder that exists"
        )
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    check_new(out, checkpoint)
    named = create(DATASETS, parse(dataset))
    source: Dataset[Any] = named.plugin
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed is {seed}: give 0 to 2^63 - 1")
    # A data set read from a path has no name of its own.
    name = named.spec if parse(dataset).positional else named.name
    recipe = recipe_for(named.name, arch, source.train().images.shape[1:])
    given = {"epochs": epochs, "choose": _choice(choose)}
    recipe = replace(
        recipe, **cast(Any, {key: value for key, value in given.items() if value is not None})
    )
    run = TrainingRun(
        source, arch, recipe, trained_on=f"{name}/train", seed=seed, device=read_device(device)
    )
    check_resumable(run, out, checkpoint)
    run.finish(checkpoint, _reporter())
    done = run.trained()
    measured = score(done.classifier, source.test())
    about = {
        "arch": arch,
        "recipe": {**asdict(recipe), "seed": seed},
        "chosen": _chosen(recipe.choose, done.epoch),
        "validation": _entry(done.epoch.validation, f"{name}/val"),
        "measured": _entry(measured, f"{name}/test"),
        "commit": commit()[0],
    }
    save(done.classifier, out, about)
    sidecar = out.with_name(f"{out.name}.json")
    for path in (out, sidecar, checkpoint):
        clear_unfinished(path)
    checkpoint.unlink(missing_ok=True)
    return f"{out}: {_shown(measured)} on {measured.n} test images\nuse it: --classifier file:{out}"


def check_new(out: Path, checkpoint: Path) -> None:
    """Raise `BadInput` where the result is there already or nothing can be written beside it.

    A checkpoint beside a result says that the run was killed just before it was removed: it is
    taken up, and changes nothing.
    """
    if out.exists() and not checkpoint.exists():
        raise BadInput(f"{out} is there already: remove it, or give another --out")
    with writing(out.parent):
        check_folder(out.parent)


def check_resumable(run: ResumableRun[Any], out: Path, checkpoint: Path) -> None:
    """Raise `BadInput` where a result is there that this run has not written: its checkpoint is of
    another one, or says that it never came so far.
    """
    if out.exists():
        run.restore(checkpoint)
        if not run.finished:
            raise BadInput(
                f"{out} is there already, and {checkpoint} is of an unfinished run: remove one"
            )


def _choice(text: str | None) -> str | None:
    if text not in (None, "last", "best"):
        raise BadInput(
            f"choose is {text!r}: use last, or best (by accuracy on the official validation split)"
        )
    return text


def _chosen(choose: str, epoch: Epoch) -> str:
    which = "the last one" if choose == "last" else "the best by accuracy on the validation split"
    return f"epoch {epoch.done} of {epoch.total}, {which}"


def _entry(score: Score | None, images: str) -> dict[str, Any] | None:
    return (
        {"clean": score.accuracy, "macro_f1": score.macro_f1, "n": score.n, "images": images}
        if score
        else None
    )


def _shown(score: Score) -> str:
    return f"clean accuracy {100 * score.accuracy:.1f} %, macro-F1 {100 * score.macro_f1:.1f}"


def _reporter() -> Callable[[Epoch], None]:
    """Prints a line an epoch; the estimate rests on the epochs of this process."""
    start = time.monotonic()
    reports = 0

    def report(epoch: Epoch) -> None:
        nonlocal reports
        reports += 1
        left = (time.monotonic() - start) / reports * (epoch.total - epoch.done)
        scored = f", validation {_shown(epoch.validation)}" if epoch.validation else ""
        line = (
            f"epoch {epoch.done}/{epoch.total}, mean loss {epoch.loss:.4f}{scored}, ETA "
            f"{left:.0f} s"
        )
        print(line, file=sys.stderr, flush=True)

    return report
