"""Teacher, images and setup of these tests."""

import copy

import pytest
from bench_defenses.adversarial.objectives import (
    read_objective,
)
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages
from bench_defenses.adversarial.trainer import (
    StudentTraining,
    train_student,
)

from bench.contract.toys import CLASSES, SmallNet, gratings
from bench.defense import Need
from bench.engine.request import Request
from bench.engine.setup import load_setup
from bench.models.classifier import Classifier
from tests.defenses.adversarial.helpers import ONCE, THREAT, noise


@pytest.fixture(scope="module")
def teacher():
    return Classifier(SmallNet(gratings(96, first=1000)), CLASSES).eval()


@pytest.fixture(scope="module")
def source():
    images = gratings(48, first=500)
    return TaggedImages(images.pixels(), images.labels, Tag.TRAINING)


@pytest.fixture
def learn(teacher, source):
    """Trains a copy of the teacher."""

    def train(schedule=ONCE, objective="trades", images=source, seed=0, **options):
        student = options.pop("student", None) or copy.deepcopy(teacher)
        training = StudentTraining(
            images,
            read_objective(objective),
            schedule,
            THREAT,
            held_out=options.pop("held_out", None),
        )
        options = {"needs": {Need.TRAINING_DATA}, **options}
        return train_student(student, teacher, training, noise(seed), **options)

    return train


@pytest.fixture(scope="module")
def setup():
    return load_setup(Request(n=8).one_setup("test"))
