"""How the shipped source detector was made; `python -m bench_defenses.testtime.detector_recipe
OUT.safetensors` makes it again.

Fashion-MNIST is read below the data root (`BENCH_DATA_ROOT`, or /usr/share/datasets with Debian's
dataset-fashion-mnist). Its training images alone train the classifier and the detector; 1,000 test
images measure what came out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bench.access.pool import attack
from bench.data.dataset import ImageSet
from bench.models.classifier import Classifier
from bench.models.recipes import RECIPES
from bench.models.training import clean_accuracy, train
from bench.noise import Noise, Stream
from bench.plugins.create import DATASETS, create
from bench.spec import parse
from bench.storage.files import write_whole
from bench.threat import ThreatModel
from bench_defenses.testtime.detector import Detector, train_source

DATASET, ARCH, SEED = "fashion-mnist", "cnn", 0
CLASSIFIER = replace(RECIPES[DATASET, ""], epochs=4)
IMAGES, STEPS, EPS = 6000, 20, 0.1
EPOCHS, BATCH, RATE = 40, 100, 5e-4
TEST_IMAGES = 1000


def main(out: Path) -> None:
    """Train classifier and detector, measure, and write weights and card."""
    data = create(DATASETS, parse(DATASET)).plugin
    classifier = train(
        data, ARCH, CLASSIFIER, trained_on=f"{DATASET}/train", seed=SEED, progress=_say
    ).classifier
    clean, adversarial = _logits(classifier, data.train().first(IMAGES))
    detector = train_source(clean, adversarial, epochs=EPOCHS, batch=BATCH, rate=RATE, seed=SEED)
    test = data.test().first(TEST_IMAGES)
    measured = {
        "classifier_accuracy": clean_accuracy(classifier, test),
        **_rates(detector, *_logits(classifier, test)),
    }
    state = {
        key: value.contiguous()
        for key, value in detector.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    content = safetensors.torch.save(state)
    write_whole(out, content)
    card = {**_card(), "measured": measured, "sha256": hashlib.sha256(content).hexdigest()}
    write_whole(
        out.with_suffix(".json"), f"{json.dumps(card, indent=1, sort_keys=True)}\n".encode()
    )


def _card() -> dict[str, Any]:
    return {
        "dataset": DATASET,
        "classes": 10,
        "classifier": {"arch": ARCH, "seed": SEED, **asdict(CLASSIFIER)},
        "images": {
            "clean": IMAGES,
            "adversarial": IMAGES,
            "attack": f"PGD-{STEPS}, linf {EPS}, true labels",
        },
        "detector": {
            "epochs": EPOCHS,
            "batch": BATCH,
            "optimiser": "RMSprop",
            "rate": RATE,
            "seed": SEED,
        },
        "recipe": "python -m bench_defenses.testtime.detector_recipe",
    }


def _logits(classifier: Classifier, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Logits (n, K) of the images and of their adversarial versions."""
    noise = Noise.of(SEED, Stream.BUILD, images.ids).at("source")
    clean = images.pixels()
    points = attack(classifier, clean, ThreatModel("linf", EPS), noise, images.labels, STEPS)
    with torch.no_grad():
        parts = [
            torch.cat([classifier(x, noise) for x in pixels.split(500)])
            for pixels in (clean, points)
        ]
    return parts[0], parts[1]


def _rates(detector: Detector, clean: Tensor, adversarial: Tensor) -> dict[str, float]:
    with torch.no_grad():
        flagged = [
            float((detector(logits).argmax(1) == 1).float().mean())
            for logits in (clean, adversarial)
        ]
    return {"false_positive_rate": flagged[0], "true_positive_rate": flagged[1]}


def _say(epoch: object) -> None:
    print(epoch, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
