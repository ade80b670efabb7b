"""Training by recipe: repeatable, resumable, and blind to the test images."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.dataset import Dataset, ImageSet
from bench.defense import DefendedClassifier
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.models.nets import build
from bench.models.recipes import Recipe
from bench.noise import BuildNoise, Noise, Stream
from bench.results.class_scores import macro_f1, tally
from bench.storage.files import write_whole
from bench.storage.training_state import ResumableRun, Stateful

MOST_EPOCHS = 1_000_000
"""No run takes more epochs; a larger number is a slip."""


@dataclass(frozen=True)
class Score:
    """How a classifier does on labelled images; macro-F1 is that of
    `bench.results.class_scores.macro_f1`.
    """

    accuracy: float
    macro_f1: float
    n: int


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch: how many are done, of how many in total, the mean training
    loss, and the score on the validation split where there is one.
    """

    done: int
    total: int
    loss: float
    validation: Score | None


@dataclass(frozen=True)
class Trained:
    """A trained classifier on the CPU, frozen, in evaluation mode, and the epoch (from 1) that its
    weights are of.
    """

    classifier: Classifier
    epoch: Epoch


def train(
    dataset: Dataset[Any],
    arch: str,
    recipe: Recipe,
    *,
    trained_on: str,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train on the data set's training images in one go: a `TrainingRun`, whose arguments these
    are. `progress` is called after each epoch.
    """
    run = TrainingRun(dataset, arch, recipe, trained_on=trained_on, seed=seed, device=device)
    run.finish(report=progress)
    return run.trained()


def _validation(dataset: Dataset[Any]) -> ImageSet | None:
    try:
        return dataset.validation()
    except BadInput:
        return None


def fit(
    model: DefendedClassifier, images: Tensor, labels: Tensor, recipe: Recipe, *, seed: int
) -> None:
    """Train all of a model's weights, in place; it is left frozen, in evaluation mode.

    Args:
        model: on the images' device.
        images, labels: float32 (n, C, H, W) in [0, 1] and int64 (n,).
        recipe: how; the last epoch's weights stay.
        seed: decides order and augmentation.
    """
    descent = _Descent(model.requires_grad_(True), images, labels, recipe, seed)
    while descent.done < recipe.epochs:
        descent.epoch()
    model.eval().requires_grad_(False)


class _Descent:
    """Epochs of a recipe on a model, in place. `done` counts them."""

    def __init__(
        self, model: DefendedClassifier, images: Tensor, labels: Tensor, recipe: Recipe, seed: int
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.recipe, self.seed = recipe, seed
        self.optimiser = torch.optim.SGD(
            model.parameters(),
            lr=recipe.rate,
            momentum=recipe.momentum,
            weight_decay=recipe.decay,
            nesterov=True,
        )
        self.size = min(recipe.batch, len(images))
        self.done = 0

    def epoch(self) -> float:
        """Train one epoch; the mean loss."""
        self.model.train()
        noise = Noise.of(self.seed, Stream.BUILD, [0], self.done)
        count, device = len(self.images), self.images.device
        order = noise.uniform("order", (count,))[0].argsort(stable=True).to(device)
        offsets = (
            (noise.uniform("shift", (count, 2))[0] * (2 * self.recipe.shift + 1)).long().to(device)
        )
        flips = (noise.uniform("flip", (count,))[0] < 0.5 * self.recipe.flip).to(device)
        losses = []
        for place, start in enumerate(range(0, count - self.size + 1, self.size)):
            batch = order[start : start + self.size]
            changed = mirrored(
                shifted(self.images[batch], offsets[batch], self.recipe.shift), flips[batch]
            )
            losses.append(self._step(changed, self.labels[batch], noise, place))
        self.done += 1
        return float(torch.stack(losses).mean())

    def _step(self, images: Tensor, labels: Tensor, noise: Noise, place: int) -> Tensor:
        each = len(self.images) // self.size
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(
                self.recipe, self.done * each + place + 1, self.recipe.epochs * each
            )
        loss = F.cross_entropy(self.model(images, noise), labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()


class TrainingRun(ResumableRun[Epoch]):
    """A training on the data set's training images, an epoch at a time; `finish` takes all of them.

    Args:
        dataset: its test images are not touched; its official validation split, where it has one,
            is scored after each epoch.
        arch: a name in `bench.models.nets.ARCHITECTURES`.
        recipe: everything else.
        trained_on: name of the training images, such as `mnist/train`.
        seed: decides initialisation, order and augmentation; on one CPU thread, the same seed gives
            the same bits, whether or not the run was interrupted.
        device: where to train.

    Raises `BadInput` for an unknown architecture, epochs below 1, or weights to be chosen on a
    validation split that is not there.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        arch: str,
        recipe: Recipe,
        *,
        trained_on: str,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if recipe.epochs < 1:
            raise BadInput(f"epochs={recipe.epochs} trains nothing: give at least 1")
        if recipe.epochs > MOST_EPOCHS:
            raise BadInput(f"epochs={recipe.epochs} never ends: give at most {MOST_EPOCHS}")
        self.held_out = _validation(dataset)
        if recipe.choose == "best" and self.held_out is None:
            raise BadInput(
                "the recipe chooses the best epoch on a validation split, but the data set has "
                "none: choose the last"
            )
        data = dataset.train()
        images, place = data.pixels(), torch.device(device)
        self.recipe, self.device = recipe, place
        self.identity = json.dumps([asdict(recipe), arch, seed, data.sha256, dataset.num_classes])
        self.classifier = _fresh(images, arch, dataset.num_classes, seed, trained_on).to(place)
        if place.type == "cuda":
            self.classifier.to(memory_format=torch.channels_last)
        self.descent = _Descent(
            self.classifier, images.to(place), data.labels.to(place), recipe, seed
        )
        # The weights that would be returned now, with their epoch.
        self.kept: tuple[Epoch, dict[str, Tensor]] | None = None

    @property
    def done(self) -> int:
        return self.descent.done

    @property
    def finished(self) -> bool:
        return self.done >= self.recipe.epochs

    def advance(self) -> Epoch:
        """Train one epoch and score it."""
        loss = self.descent.epoch()
        held_out = self.held_out
        validation = None if held_out is None else score(self.classifier.eval(), held_out)
        epoch = Epoch(self.done, self.recipe.epochs, loss, validation)
        if self._is_kept(epoch):
            self.kept = epoch, copy.deepcopy(self.classifier.network.state_dict())
        return epoch

    def trained(self) -> Trained:
        """The kept weights in a classifier on the CPU, frozen, in evaluation mode."""
        assert self.kept is not None
        epoch, state = self.kept
        self.classifier.network.load_state_dict(state)
        return Trained(self.classifier.cpu().eval().requires_grad_(False), epoch)

    def _is_kept(self, epoch: Epoch) -> bool:
        if self.recipe.choose == "last" or self.kept is None:
            return True
        before = self.kept[0].validation
        return (
            before is None
            or epoch.validation is None
            or epoch.validation.accuracy >= before.accuracy
        )

    def parts(self) -> Mapping[str, Stateful]:
        return {"network": self.classifier.network, "optimiser": self.descent.optimiser}

    def counters(self) -> dict[str, Any]:
        """Epochs so far, and the kept weights where they are not the present ones."""
        assert self.kept is not None
        epoch, state = self.kept
        return {
            "done": self.done,
            "kept": (asdict(epoch), {} if epoch.done == self.done else state),
        }

    def take_up(self, counters: dict[str, Any]) -> None:
        self.descent.done = counters["done"]
        about, state = counters["kept"]
        validation = about.pop("validation")
        epoch = Epoch(**about, validation=None if validation is None else Score(**validation))
        self.kept = epoch, state or copy.deepcopy(self.classifier.network.state_dict())


def rate_at(recipe: Recipe, step: int, total: int) -> float:
    """Learning rate of a step, counted from 1 to `total`."""
    rise = max(1, round(recipe.warmup * total))
    return recipe.rate * min(step / rise, (total - step + 1) / (total - rise + 1))


def _fresh(images: Tensor, arch: str, num_classes: int, seed: int, trained_on: str) -> Classifier:
    network = build(arch, num_classes, images.shape[1], BuildNoise(seed).seed("network"))
    mean = [round(value, 4) for value in images.mean((0, 2, 3)).tolist()]
    std = [round(value, 4) for value in images.std((0, 2, 3)).tolist()]
    return Classifier(network, num_classes, mean=mean, std=std, trained_on=(trained_on,))


def shifted(images: Tensor, offsets: Tensor, margin: int) -> Tensor:
    """Images (n, C, H, W) moved by `margin` minus their offsets (n, 2), in 0..2 margin, with zeros
    coming in.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (margin,) * 4)
    rows = offsets[:, 0, None] + torch.arange(height, device=images.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=images.device)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def mirrored(images: Tensor, which: Tensor) -> Tensor:
    """Images (n, C, H, W), those marked in `which` (n,) mirrored left to right."""
    return torch.where(which[:, None, None, None], images.flip(3), images)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors lie; the CPU where it has none."""
    return next(
        (tensor.device for tensor in chain(module.parameters(), module.buffers())),
        torch.device("cpu"),
    )


def predicted(classifier: Classifier, images: ImageSet, batch: int = 500) -> Tensor:
    """Predicted classes (n,) of a classifier in evaluation mode, on the CPU."""
    classes, device = [], classifier.mean.device
    with torch.no_grad():
        for start in range(0, len(images), batch):
            rows = images.at(np.arange(start, min(start + batch, len(images))))
            noise = Noise.of(0, Stream.EVAL, rows.ids, device=device)
            classes.append(classifier(rows.pixels().to(device), noise).argmax(1).cpu())
    return torch.cat(classes)


def score(classifier: Classifier, images: ImageSet) -> Score:
    """Accuracy and macro-F1 of a classifier in evaluation mode."""
    labels, answers = images.labels.numpy(), predicted(classifier, images).numpy()
    table = tally(labels, answers, classifier.num_classes)
    return Score(float((labels == answers).mean()), float(macro_f1(table)), len(labels))


def clean_accuracy(classifier: Classifier, images: ImageSet) -> float:
    """Share of the images that the classifier gets right."""
    return score(classifier, images).accuracy


def save(classifier: Classifier, path: str | Path, about: dict[str, Any]) -> None:
    """Write the weights to PATH and what `file:PATH` must know to PATH.json; each file appears
    whole or not at all.

    Args:
        classifier: a classifier with normalisation.
        path: ends in .safetensors.
        about: the rest of the sidecar: `arch`, and for the reader `recipe` and what was measured.
    """
    target = Path(path).expanduser()
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise BadInput(
            f"cannot write weights to {path}: name a .safetensors file in a folder that exists"
        )
    # A counter of training batches changes nothing in evaluation mode.
    everything = classifier.network.state_dict().items()
    state = {
        key: value.contiguous()
        for key, value in everything
        if not key.endswith("num_batches_tracked")
    }
    content = safetensors.torch.save(state)
    mean, std = (_shortest(buffer) for buffer in (classifier.mean, classifier.std))
    known = {"num_classes": classifier.num_classes, "channels": len(mean), "mean": mean, "std": std}
    digest = hashlib.sha256(content).hexdigest()
    sidecar = {**known, "trained_on": list(classifier.trained_on), "sha256": digest, **about}
    # The weights come last: where they are, all is there.
    write_whole(
        target.with_name(f"{target.name}.json"),
        f"{json.dumps(sidecar, indent=1, sort_keys=True)}\n".encode(),
    )
    write_whole(target, content)


def _shortest(values: Tensor) -> list[float]:
    """The shortest decimals that read back to the same float32."""
    return [float(str(value)) for value in values.flatten().numpy()]
