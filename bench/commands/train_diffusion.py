"""`bench train-diffusion`: run a recipe, measure once, write a folder that diffusers reads
as well.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bench.commands.train import check_new, check_resumable
from bench.data.dataset import Dataset, ImageSet
from bench.diffusion.layout import (
    CARD,
    CONFIG,
    MAIN,
    RAW,
    SCHEDULER,
    Which,
    in_folder,
    read_model,
    weights_name,
)
from bench.diffusion.model import FIRST_BETA, LAST_BETA, DiffusionModel
from bench.diffusion.recipe import MOST_STEPS, DiffusionRecipe, read_recipe, recipe_for
from bench.diffusion.training import (
    REPORT_EVERY,
    STORE_EVERY,
    DiffusionRun,
    Progress,
    Weights,
    denoising_loss,
)
from bench.diffusion.unet import build_unet
from bench.engine.environment import commit
from bench.engine.execution import read_device
from bench.engine.progress import LOG_SECONDS
from bench.errors import BadInput
from bench.models.file import frozen
from bench.noise import Noise, Stream
from bench.plugins.create import DATASETS, create
from bench.spec import parse
from bench.storage.files import clear_unfinished, write_folder

MEASURED_AT = (20, 50, 100, 200, 300, 500, 800)
"""Time indices at which the denoising error on the test images is measured."""

MEASURED_IMAGES = 1000


def train_and_save(
    dataset: str,
    out: Path,
    *,
    seed: int,
    steps: int | None,
    device: str,
    recipe_file: Path | None = None,
    start: Path | None = None,
    half: bool = False,
) -> str:
    """Train on the data set's training images and write the folder `out`; returns what to print for
    the user.

    Args:
        dataset: its spec.
        out: a new folder.
        seed: of everything random.
        steps: optimiser steps; the recipe's by default.
        device: where to train.
        recipe_file: a recipe in TOML; the data set's own by default.
        start: a folder of an earlier run, whose averaged weights it begins with; fresh ones by
            default.
        half: write the last averaged weights alone, rounded to half precision: a quarter of the
            size or less.

    A run that was interrupted goes on from OUT.checkpoint. The test images are used once, after
    training, for the error in the card, and choose nothing.
    """
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    _check(out, seed, steps)
    check_new(out, checkpoint)
    named = create(DATASETS, parse(dataset))
    source: Dataset[Any] = named.plugin
    # A data set read from a path has no name of its own.
    name = named.spec if parse(dataset).positional else named.name
    images = source.train()
    shape = tuple(images.images.shape[1:])
    whole = read_recipe(recipe_file, shape) if recipe_file else recipe_for(named.name, shape)
    recipe = shortened(whole, steps)
    begun = _begun(start, recipe, shape) if start else None
    run = DiffusionRun(
        images.pixels(), recipe, seed, read_device(device), begun.weights if begun else None
    )
    check_resumable(run, out, checkpoint)
    complete(run, checkpoint, _reporter())
    if half:
        run.kept = _halved(run)
    content = files(run, half=half)
    error = measured(run, source.test())
    trained_on = [*(begun.trained_on if begun else ()), f"{name}/train"]
    card = {
        "trained_on": list(dict.fromkeys(trained_on)),
        **({"start": begun.sha256} if begun else {}),
        "measured": {**error, "images": f"{name}/test"},
        **_about(run, content),
    }
    scratch = out.with_name(f".{out.name}.unfinished")
    if out.exists():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        write_folder(out, {**content, CARD: _json(card)}, scratch)
    clear_unfinished(checkpoint)
    checkpoint.unlink(missing_ok=True)
    return f"{out}: {_shown(error)}\nuse it: folder:{out}"


@dataclass(frozen=True)
class Begun:
    """The model that a run begins with: its weights, their SHA-256, and what it was trained on."""

    weights: dict[str, Tensor]
    sha256: str
    trained_on: tuple[str, ...]


def _halved(run: DiffusionRun) -> Weights:
    """The last averaged weights alone, rounded to half precision."""
    last = run.kept.average[run.done]
    return Weights(average={run.done: {key: value.half().float() for key, value in last.items()}})


def _about(run: DiffusionRun, content: dict[str, bytes]) -> dict[str, Any]:
    """What a card says of a finished run and of its files."""
    return {
        "trained_steps": run.recipe.trained_steps,
        "steps": sorted(run.kept.average),
        "recipe": {**asdict(run.recipe), "seed": run.seed},
        "commit": commit()[0],
        "sha256": {
            file: hashlib.sha256(data).hexdigest()
            for file, data in content.items()
            if file.endswith(".safetensors")
        },
    }


def _begun(start: Path, recipe: DiffusionRecipe, shape: tuple[int, ...]) -> Begun:
    place = in_folder(start)
    path = place.need(MAIN)[1]
    model = read_model(place, Which())
    expected = build_unet(recipe.config(shape)).state_dict()
    weights = dict(model.network.state_dict())
    if {key: value.shape for key, value in weights.items()} != {
        key: value.shape for key, value in expected.items()
    }:
        raise BadInput(
            f"{start} is another network than the recipe's: give the recipe it was trained by"
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Begun(weights, sha256, model.trained_on)


def _check(out: Path, seed: int, steps: int | None) -> None:
    if not out.parent.is_dir() or not out.name:
        raise BadInput(f"cannot write the folder {out}: name one in a folder that exists")
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed is {seed}: give 0 to 2^63 - 1")
    if steps is not None and steps < 1:
        raise BadInput(f"steps={steps} trains nothing: give 1 or more")
    if steps is not None and steps > MOST_STEPS:
        raise BadInput(f"steps={steps} never ends: give at most {MOST_STEPS}")


def shortened(recipe: DiffusionRecipe, steps: int | None) -> DiffusionRecipe:
    """The recipe with another number of optimiser steps; None changes nothing."""
    if steps is None:
        return recipe
    return replace(recipe, steps=steps, kept=tuple(step for step in recipe.kept if step < steps))


def complete(run: DiffusionRun, checkpoint: Path, report: Callable[[Progress], object]) -> None:
    """Take all steps that are left, from the checkpoint on where there is one; it is written every
    `STORE_EVERY` steps.
    """
    if checkpoint.exists():
        run.restore(checkpoint)
    while not run.finished:
        report(run.advance())
        if run.done % STORE_EVERY == 0 or run.done == run.recipe.steps:
            run.store(checkpoint)


def files(run: DiffusionRun, *, half: bool = False) -> dict[str, bytes]:
    """The files of a finished run by name, in the layout of `bench.diffusion.layout`, without the
    card; `half`: the main one in half precision.
    """
    config = {"_class_name": "UNet2DModel", **run.recipe.config(run.model.shape)}
    last = run.recipe.steps
    earlier = {
        weights_name(weights, step): _half(state)
        for weights, states in (("ema", run.kept.average), ("raw", run.kept.raw))
        for step, state in states.items()
        if step != last
    }
    main = run.kept.average[last]
    raw = {RAW: run.kept.raw[last]} if last in run.kept.raw else {}
    states = {MAIN: _half(main) if half else main, **raw, **earlier}
    weights = {
        name: safetensors.torch.save(state, metadata={"format": "pt"})
        for name, state in states.items()
    }
    return {CONFIG: _json(config), SCHEDULER: _json(_scheduler(run.recipe)), **weights}


def _scheduler(recipe: DiffusionRecipe) -> dict[str, Any]:
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": recipe.schedule,
        "beta_schedule": "linear",
        "beta_start": FIRST_BETA,
        "beta_end": LAST_BETA,
        "prediction_type": "epsilon",
        "variance_type": "fixed_small",
    }


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half() for name, value in state.items()}


def _json(content: object) -> bytes:
    return f"{json.dumps(content, indent=1)}\n".encode()


def measured(run: DiffusionRun, images: ImageSet) -> dict[str, Any]:
    """Mean squared error of each predicted noise value on images that were not trained on, by
    weights and time index.
    """
    images = images.first(min(MEASURED_IMAGES, len(images)))
    errors: dict[str, dict[str, float]] = {}
    for weights, states in (("ema", run.kept.average), ("raw", run.kept.raw)):
        if run.done not in states:
            continue
        state = states[run.done]
        run.network.load_state_dict(state)
        model = frozen(run.model)
        errors[weights] = {
            str(index): denoising_error(model, images, index)
            for index in MEASURED_AT
            if index < run.recipe.trained_steps
        }
    return {"noise_error": errors, "n": len(images)}


def denoising_error(model: DiffusionModel, images: ImageSet, index: int, batch: int = 250) -> float:
    """Mean squared error of the predicted noise at one time index, over images and values; noise is
    keyed by image and index.
    """
    total, device = 0.0, model.alpha_bar.device
    with torch.no_grad():
        for ids in torch.arange(len(images)).split(batch):
            batch_images = images.at(ids.numpy())
            noise = Noise.of(0, Stream.EVAL, batch_images.ids, index, device).normal(
                "denoising-error", model.shape
            )
            times = torch.full((len(ids),), index, device=device)
            pixels = batch_images.pixels().to(device)
            total += float(denoising_loss(model, 2 * pixels - 1, times, noise)) * len(ids)
    return total / len(images)


def _shown(error: dict[str, Any]) -> str:
    numbers = ", ".join(
        f"{value:.4f} at {index}" for index, value in error["noise_error"]["ema"].items()
    )
    return f"error of the predicted noise on {error['n']} test images {numbers}"


def _reporter() -> Callable[[Progress], None]:
    """Prints a line at each tenth of the run or every half minute; the estimate rests on the steps
    of this process.
    """
    start = shown = time.monotonic()
    reports = last = 0

    def report(progress: Progress) -> None:
        nonlocal reports, last, shown
        reports, now = reports + 1, time.monotonic()
        if (
            progress.done < progress.total
            and 10 * (progress.done - last) < progress.total
            and now - shown < LOG_SECONDS
        ):
            return
        last, shown = progress.done, now
        left = (now - start) / reports * (progress.total - progress.done) / REPORT_EVERY
        print(
            f"step {progress.done}/{progress.total}, mean loss {progress.loss:.4f}, "
            f"ETA {left:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    return report
