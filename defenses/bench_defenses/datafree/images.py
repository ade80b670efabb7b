"""Synthetic images of a classifier as an artifact: made once, shared by every loss that a student
is trained with.

- `images.safetensors`: images float32 (n, C, H, W) in [0, 1], labels int64 (n,), logits float32
  (n, K) of the classifier
- `synthesis.json`: the recipe, and how it went, for the whole set and batch by batch
- `sheet.png`: a few images of each class
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bench.defense import DefendedClassifier
from bench.engine.fingerprint import fingerprint
from bench.engine.progress import Steps
from bench.errors import BadInput
from bench.models.training import device_of
from bench.noise import BuildNoise
from bench.storage.artifacts import POLL_SECONDS, artifact
from bench.storage.claims import claimed
from bench.storage.files import write_whole
from bench.victim import frozen
from bench_defenses.datafree.fields import FieldRecipe, Population, draw_population
from bench_defenses.datafree.sheet import contact_sheet
from bench_defenses.datafree.synthesis import (
    SynthesisedBatch,
    SynthesisRecipe,
    check_classes,
    check_classifier,
    normalisation,
    step_sizes,
    synthesise,
)

VERSION = 1
"""Of the code that makes images; raise it when they may change."""

IMAGES, ABOUT, SHEET = "images.safetensors", "synthesis.json", "sheet.png"
STEP = "step.json"
"""Of the artifact that holds the step size chosen for a recipe that names none, and the losses."""


@dataclass(frozen=True)
class SyntheticImages:
    """Images that a classifier made.

    Attributes:
        images, labels, logits: (n, C, H, W) in [0, 1], the classes aimed at or, of random fields,
            the classifier's (n,), the classifier's answers (n, K); on the CPU.
        about: `synthesis.json`.
        folder: the artifact.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    about: Mapping[str, Any]
    folder: Path


def synthetic_images(
    classifier: DefendedClassifier,
    shape: tuple[int, ...],
    recipe: SynthesisRecipe | FieldRecipe,
    noise: BuildNoise,
) -> SyntheticImages:
    """The classifier's images, made now unless they are in the cache.

    Args:
        classifier: in evaluation mode; left as it was.
        shape: of an image, (C, H, W).
        recipe: how.
        noise: only its identity matters.

    Raises `BadInput` for a classifier without BatchNorm, one that draws random numbers or takes
    other images, or a class that would get no image.
    """
    device = device_of(classifier)
    noise = noise.to(device).at("synthesis")
    check_classifier(classifier, shape, noise)
    if isinstance(recipe, SynthesisRecipe):
        check_classes(recipe, classifier.num_classes, noise)
        recipe = with_step(classifier, shape, recipe, noise)
    identity = {
        "classifier": fingerprint(classifier),
        "shape": list(shape),
        "recipe": asdict(recipe),
        "noise": noise.identity,
        "version": VERSION,
    }

    if isinstance(recipe, FieldRecipe):
        return _read(
            artifact("synthetic-images", identity, partial(_draw, classifier, shape, recipe, noise))
        )
    job = _Job(classifier, shape, recipe, noise)
    return _read(artifact("synthetic-images", identity, job.make, job.assist))


def with_step(
    classifier: DefendedClassifier,
    shape: tuple[int, ...],
    recipe: SynthesisRecipe,
    noise: BuildNoise,
) -> SynthesisRecipe:
    """The recipe with a step size: its own, else the one of `step_sizes` that ends the first batch
    at the smaller loss, under fixed coefficients.

    Small steps need many iterations, and which are too many depends on the images: within 150 of
    them a step of 0.1 of a pixel goes further on digits, and never comes near on colour images.
    """
    steps = step_sizes(recipe.space, normalisation(classifier)[1])
    if recipe.rate is not None or len(steps) == 1:
        return recipe if recipe.rate is not None else replace(recipe, rate=steps[0])
    trial = replace(
        recipe,
        images=min(recipe.images, recipe.batch),
        coefficients="fixed",
        tv_random=False,
        rate=None,
    )
    identity = {
        "classifier": fingerprint(classifier),
        "shape": list(shape),
        "recipe": asdict(trial),
        "steps": list(steps),
        "noise": noise.identity,
        "version": VERSION,
    }

    def make(work: Path) -> None:
        losses = {}
        with frozen(classifier):
            for step in steps:
                one = replace(trial, rate=step)
                losses[step] = synthesise(classifier, shape, one, 0, noise).losses.total
        chosen = {"rate": min(losses, key=lambda step: losses[step]), "losses": losses}
        write_whole(work / STEP, json.dumps(chosen, indent=1).encode())

    folder = artifact("synthesis-steps", identity, make)
    return replace(recipe, rate=json.loads((folder / STEP).read_bytes())["rate"])


@dataclass(frozen=True)
class _Job:
    """The batches of one artifact, each kept in a file until all are there. Any number of processes
    may make them, one each.
    """

    classifier: DefendedClassifier
    shape: tuple[int, ...]
    recipe: SynthesisRecipe
    noise: BuildNoise

    def make(self, work: Path) -> None:
        """Make all batches, together with whoever assists, and put them together."""
        for file in self._files(work):
            if file.exists() and _kept(file) is None:
                file.unlink()
        self.assist(work)
        _finish(work, self._files(work), self.recipe)

    def assist(self, work: Path) -> None:
        """Make batches that nobody else makes until all are there."""
        with (
            frozen(self.classifier),
            Steps("synthetic images", self.recipe.images, self._there(work)) as steps,
        ):
            while missing := self._missing(work):
                if not any(self._one(work, number, steps) for number in missing):
                    time.sleep(POLL_SECONDS)

    def _one(self, work: Path, number: int, steps: Steps) -> bool:
        """One batch, unless somebody makes it or has made it; whether it was made here."""
        # Outside the work folder, which holds nothing but the artifact's files.
        with claimed(work.with_name(f"{work.name}-batch-{number:05d}")) as ours:
            if not ours or number not in self._missing(work):
                return False
            batch = synthesise(self.classifier, self.shape, self.recipe, number, self.noise)
            write_whole(self._files(work)[number], _packed(batch))
        steps(
            self._there(work),
            f"classified as meant {100 * batch.right_after / len(batch.labels):.0f} %",
        )
        return True

    def _files(self, work: Path) -> list[Path]:
        return [work / f"batch-{number:05d}.safetensors" for number in range(self.recipe.batches)]

    def _there(self, work: Path) -> int:
        """Images in batches that are there."""
        return self.recipe.images - sum(
            len(self.recipe.rows(number)) for number in self._missing(work)
        )

    def _missing(self, work: Path) -> list[int]:
        """Batches that are not there yet; a finished set has its images, and no batches any
        more.
        """
        if not work.exists() or (work / IMAGES).exists():
            return []
        return [number for number, file in enumerate(self._files(work)) if not file.exists()]


def _finish(work: Path, files: list[Path], recipe: SynthesisRecipe) -> None:
    """One file of all batches, what is to be known of them, and a contact sheet."""
    kept = [_kept(file) for file in files]
    tensors = {
        name: torch.cat([parts[name] for parts, _ in filter(None, kept)])
        for name in ("images", "labels", "logits")
    }
    _write(work, tensors, summary(recipe, [facts for _, facts in filter(None, kept)]))
    for file in files:
        file.unlink()


def _write(work: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    write_whole(work / IMAGES, safetensors.torch.save(tensors))
    write_whole(work / ABOUT, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    write_whole(work / SHEET, contact_sheet(tensors["images"], tensors["labels"]))


def _draw(
    classifier: DefendedClassifier,
    shape: tuple[int, ...],
    recipe: FieldRecipe,
    noise: BuildNoise,
    work: Path,
) -> None:
    """Random fields take seconds, so that an interrupted drawing starts anew."""
    with frozen(classifier), Steps("random fields", recipe.rounds, 0) as steps:
        population = draw_population(
            classifier, shape, recipe, noise, lambda number: steps(number, "")
        )
    labels = population.logits.argmax(1).cpu()
    shares = torch.bincount(labels, minlength=classifier.num_classes) / len(labels)
    if not bool(shares.all()):
        raise BadInput(
            f"the classifier sees class {int(shares.argmin())} in none of {recipe.images} random "
            "fields: give more images, or synthesis=inversion"
        )
    tensors = {
        "images": population.images.cpu().contiguous(),
        "labels": labels,
        "logits": population.logits.cpu(),
    }
    _write(work, tensors, _population_summary(recipe, population, shares))


def _population_summary(
    recipe: FieldRecipe, population: Population, shares: Tensor
) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        "class_shares": shares.tolist(),
        "effective": list(population.effective),
        "gap_first": population.gap_first,
        "gap_last": population.gap_last,
    }


def _packed(batch: SynthesisedBatch) -> bytes:
    values = asdict(batch)
    tensors = {name: values.pop(name).cpu().contiguous() for name in ("images", "labels", "logits")}
    return safetensors.torch.save(tensors, {"facts": json.dumps(values)})


def _kept(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A batch; None where the file is damaged."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            # Not a mapping: it has keys, but cannot be iterated.
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            return tensors, json.loads(content.metadata()["facts"])
    except (OSError, SafetensorError):
        return None


def summary(recipe: SynthesisRecipe, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The recipe, the whole set's share of clamped pixels and accuracies, and the facts of each
    batch.
    """
    sizes = [len(recipe.rows(number)) for number in range(recipe.batches)]
    total = sum(sizes)
    return {
        "recipe": asdict(recipe),
        "clamped_pixels": sum(
            size * one["clamped"] for size, one in zip(sizes, batches, strict=True)
        )
        / total,
        "accuracy_before_clamping": sum(one["right_before"] for one in batches) / total,
        "accuracy": sum(one["right_after"] for one in batches) / total,
        "batches": list(_numbered(sizes, batches)),
    }


def _numbered(sizes: list[int], batches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, (size, facts) in enumerate(zip(sizes, batches, strict=True)):
        yield {"number": number, "images": size, **facts}


def _read(folder: Path) -> SyntheticImages:
    tensors = safetensors.torch.load_file(folder / IMAGES)
    about = json.loads((folder / ABOUT).read_bytes())
    return SyntheticImages(tensors["images"], tensors["labels"], tensors["logits"], about, folder)
