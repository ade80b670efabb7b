"""`bench train`: run a data set's recipe, measure once, write weights and sidecar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench.data.dataset import Dataset
from bench.errors import BadInput
from bench.evaluation import read_device
from bench.models.training import clean_accuracy, recipe_record, save, train
from bench.plugins import DATASETS, create
from bench.provenance import commit
from bench.spec import parse


def train_and_save(dataset: str, arch: str, out: Path, *, seed: int, epochs: int | None, device: str) -> str:
    """Train `arch` on the data set's training images and write it to `out`; returns what to tell the user.

    The test images are used once, after training, for the accuracy in the sidecar.
    """
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise BadInput(f"cannot write weights to {out}: name a .safetensors file in a folder that exists")
    source: Dataset[Any] = create(DATASETS, parse(dataset)).plugin
    classifier = train(source, arch, epochs=epochs, seed=seed, device=read_device(device), progress=_log)
    accuracy = clean_accuracy(classifier, source.test())
    about = {
        "arch": arch,
        "recipe": recipe_record(source, epochs, seed),
        "measured": {"clean": accuracy, "n": len(source.test()), "images": f"{dataset}/test"},
        "commit": commit()[0],
    }
    save(classifier, out, about)
    return f"{out}: clean accuracy {100 * accuracy:.1f} % on {len(source.test())} test images\nuse it: --classifier file:{out}"


def _log(done: int, total: int, loss: float) -> None:
    print(f"epoch {done}/{total}, mean loss {loss:.4f}", file=sys.stderr, flush=True)
