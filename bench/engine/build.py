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
    """The door to the data that a cell's defense declared; what must be computed for it is computed
    on `device`.
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
    """Build a cell's defended classifier: on `device`, in evaluation mode, the global generators as
    found.

    `access` stands in for the cell's own door to its data.
    """
    setup, defense = evaluation.setup, evaluation.defense.plugin
    noise = Noise.of(evaluation.build_seed, Stream.BUILD, [0])
    access = access or data_access(evaluation, device)
    classifier = _copy(setup.classifier).to(device).requires_grad_(True)
    random = [] if classifier.training else [part for part in classifier.modules() if part.training]
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
        # Parts of a classifier in evaluation mode that are in training mode on purpose: dropout at
        # test time.
        for part in random:
            part.training = True
    return defended.to(device)


def _copy(classifier: DefendedClassifier) -> DefendedClassifier:
    """A copy of the classifier, so that a defense that trains it in place spoils no other cell."""
    try:
        return copy.deepcopy(classifier)
    except Exception as error:
        name = type(getattr(classifier, "network", classifier)).__name__
        raise BadInput(
            f"{name} cannot be copied ({error}), and each cell needs its own: mend its __deepcopy__"
        ) from error


def _check_declared(evaluation: Evaluation, defended: DefendedClassifier) -> None:
    """The class decided which attacks make sense before anything was built; what it built must
    agree.
    """
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
