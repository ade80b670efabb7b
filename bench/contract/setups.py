"""Evaluation setups in memory: images, a classifier and a threat, without a data set or a
download.
"""

from __future__ import annotations

from bench.contract.check import IMAGES
from bench.contract.toys import CLASSES, InMemory, SmallNet, gratings
from bench.data.dataset import ImageSet
from bench.defense import DefendedClassifier
from bench.engine.fingerprint import fingerprint
from bench.engine.setup import Setup
from bench.models.classifier import Classifier
from bench.plugins.create import Named
from bench.threat import ThreatModel

_SPARE = 400


def built_in_setup() -> Setup:
    """Twelve gratings and a small network that is right on all of them; see
    `bench.contract.toys`.
    """
    training = gratings(96, first=1000)
    return setup_in_memory(
        Classifier(SmallNet(training), CLASSES).eval(),
        gratings(IMAGES),
        training,
        gratings(_SPARE, first=5000),
    )


def setup_in_memory(
    classifier: DefendedClassifier,
    images: ImageSet,
    training: ImageSet,
    spare: ImageSet | None = None,
) -> Setup:
    """A setup of what is at hand; `spare` are test images that are not evaluated."""
    dataset = InMemory(images, training, classifier.num_classes, spare)
    return Setup(
        dataset=Named("contract", "contract", dataset, ()),
        images=images,
        available=len(images),
        threat=ThreatModel("linf", dataset.default_eps),
        classifier=classifier,
        classifier_spec="contract",
        classifier_sha=fingerprint(classifier),
        sources={"dataset": "contract", "classifier": "contract"},
    )
