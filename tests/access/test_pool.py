"""The pool of unlabelled test images."""

import pytest
import torch

from bench.access.pool import attack, fill, outside
from bench.contract.toys import gratings, labelled
from bench.defense import AccessDenied, DataAccess, Need
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluation
from bench.errors import BadInput
from bench.results.store import Store
from tests.defenses.testtime.helpers import THREAT, network, noise, pixels


def pool_of(everything, evaluated, classifier, **options):
    return fill(
        outside(everything, evaluated),
        evaluated,
        classifier,
        THREAT,
        0,
        **{"n": 20, "adversarial": 0.4, **options},
    )


def test_the_pool_holds_no_evaluated_image_and_no_label():
    shape = (3, 16, 16)
    everything, classifier = gratings(40), network(3, shape)
    evaluated = everything.first(10)
    pool = pool_of(everything, evaluated, classifier)
    others = everything.pixels()[10:30]
    near = [int(((image - others).abs().flatten(1).amax(1)).argmin()) for image in pool]
    assert sorted(near) == list(range(20)), "the first twenty free images, each once"
    gaps = (pool - others[near]).abs().flatten(1).amax(1)
    assert int((gaps > 0).sum()) == 8 and float(gaps.max()) <= THREAT.eps + 1e-6
    assert sorted(near) != near and not torch.equal(
        (gaps > 0).float().sort().values, (gaps > 0).float()
    ), "mixed"
    mislabelled = labelled(everything.images, torch.zeros_like(everything.labels))
    assert torch.equal(pool, pool_of(mislabelled, mislabelled.first(10), classifier))
    attacked = gaps > 0
    fooled = classifier(pool, noise(20)).argmax(1) != classifier(others[near], noise(20)).argmax(1)
    assert fooled[attacked].float().mean() > 0.7 and not fooled[~attacked].any()


def test_evaluated_images_in_the_pool_are_forbidden():
    everything, classifier = gratings(40), network(3, (3, 16, 16))
    with pytest.raises(ValueError, match="no defense may adapt"):
        fill(everything, everything.first(1), classifier, THREAT, 0, n=20, adversarial=0)
    with pytest.raises(
        BadInput,
        match="pool of 31 unlabelled test images was asked for, but 30 are left beside the 10",
    ):
        pool_of(everything, everything.first(10), classifier, n=31)
    with pytest.raises(BadInput, match="give 0 to 1"):
        pool_of(everything, everything.first(10), classifier, adversarial=1.5)


def test_pool_attack_takes_given_labels_or_predictions():
    images, classifier = pixels(8, 1, 10, 10), network(4, (1, 10, 10))
    predicted = classifier(images, noise(8)).argmax(1)
    free = attack(classifier, images, THREAT, noise(8))
    assert torch.equal(free, attack(classifier, images, THREAT, noise(8), predicted))
    assert not torch.equal(free, attack(classifier, images, THREAT, noise(8), (predicted + 1) % 4))


def test_the_pool_is_a_declared_need():
    access = DataAccess(
        frozenset(),
        {Need.UNLABELLED_TEST: lambda: lambda n, share: torch.zeros(n)},
        "thief",
        THREAT,
        (1, 8, 8),
    )
    with pytest.raises(AccessDenied, match="unlabelled test images"):
        access.unlabelled_pool(3)
    assert access.pool is None


def test_too_few_images_are_said_before_anything_is_attacked(tmp_path):
    evaluation = plan(Request(defenses=("dad",), attacks=("pgd",), n=700))[-1]
    with pytest.raises(
        BadInput, match="400 unlabelled test images was asked for, but 300 are left beside the 700"
    ):
        run_evaluation(evaluation, Store(tmp_path), Execution())
