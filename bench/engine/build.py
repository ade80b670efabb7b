"""Builds the defended classifier of an evaluation, through the accessor to its declared data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.access.pool import fill
from bench.access.public import fitted
from bench.defense import DataAccess, DefendedClassifier, Need
from bench.engine.evaluation import Evaluation
from bench.errors import BadInput
from bench.noise import Noise, Stream, isolated

_CPU = torch.device("cpu")


def data_access(evaluation: Evaluation, device: torch.device = _CPU) -> DataAccess:
    """The accessor to the data that the defense declared.

    Attacked images of an unlabelled pool are computed on `device`.
    """
    shape = tuple(evaluation.setup.images.images.shape[1:])
    return DataAccess(
        frozenset(evaluation.defense.plugin.needs),
        _sources(evaluation, device),
        evaluation.defense.name,
        evaluation.setup.threat,
        shape,
    )


def build(
    evaluation: Evaluation, device: torch.device, access: DataAccess | None = None
) -> DefendedClassifier:
    """Build the defended classifier: on `device`, in evaluation mode.

    Global generators are seeded by the build seed meanwhile, and are left as they were.

    Args:
        evaluation: names defense, classifier and build seed.
        device: where the result lies.
        access: another accessor than `data_access(evaluation)`.

    Raises:
        BadInput: where the defense cannot be built, or is not what it declared.
    """
    setup, defense = evaluation.setup, evaluation.defense.plugin
    noise = Noise.of(evaluation.build_seed, Stream.BUILD, [0])
    access = access or data_access(evaluation, device)
    classifier = _copy(setup.classifier).to(device).requires_grad_(True)
    random = [] if classifier.training else [m for m in classifier.modules() if m.training]
    with isolated(evaluation.build_seed):
        defended = defense.build(classifier, access, noise)
    if not isinstance(defended, DefendedClassifier):
        raise BadInput(
            f"defense {evaluation.defense.name!r} built {type(defended).__name__}: return a "
            "DefendedClassifier"
        )
    _check_declared(evaluation, defended)
    if defended.training:
        defended.eval()
        # Modules of a classifier in evaluation mode that train on purpose: dropout at test time.
        for module in random:
            module.training = True
    return defended.to(device)


def _copy(classifier: DefendedClassifier) -> DefendedClassifier:
    """A copy of the classifier, so that a defense that trains it in place spoils no other."""
    try:
        return copy.deepcopy(classifier)
    except Exception as error:
        name = type(getattr(classifier, "network", classifier)).__name__
        raise BadInput(
            f"{name} cannot be copied ({error}), and each evaluation needs its own: "
            "fix its __deepcopy__"
        ) from error


def _check_declared(evaluation: Evaluation, defended: DefendedClassifier) -> None:
    """Raise where the built module differs from what the class declared before it was built."""
    name = evaluation.defense.name
    if defended.stochastic != evaluation.stochastic:
        raise BadInput(
            f"defense {name!r} has stochastic={evaluation.stochastic}, but the module it builds "
            f"has {defended.stochastic}: set both alike"
        )
    if set(defended.gradients) != set(evaluation.gradients):
        built = tuple(defended.gradients)
        raise BadInput(
            f"defense {name!r} has gradients={evaluation.gradients}, but the module it builds has "
            f"{built}: set both alike"
        )


def _sources(evaluation: Evaluation, device: torch.device) -> dict[Need, Callable[[], Any]]:
    def training_data() -> tuple[Tensor, Tensor]:
        images = evaluation.setup.dataset.plugin.train()
        return images.pixels(), images.labels

    def pool(n: int, adversarial: float) -> Tensor:
        setup = evaluation.setup
        classifier = _copy(setup.classifier).to(device)
        return fill(
            evaluation.free_images(),
            setup.images,
            classifier,
            setup.threat,
            evaluation.build_seed,
            n=n,
            adversarial=adversarial,
        )

    def public_images() -> Tensor:
        return fitted(
            evaluation.public_images().images.pixels(),
            tuple(evaluation.setup.images.images.shape[1:]),
        )

    return {
        Need.TRAINING_DATA: training_data,
        Need.PUBLIC_IMAGES: public_images,
        Need.UNLABELLED_TEST: lambda: pool,
        Need.GENERATOR: lambda: copy.deepcopy(evaluation.generator()),
    }
