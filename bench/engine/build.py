"""Builds the defended classifier of an evaluation, through the accessor to its declared data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.access.pool import fill
from bench.access.public import fitted
from bench.defense import DataAccess, DefendedClassifier, Need
from bench.engine.evaluation import Evaluation
from bench.engine.fingerprint import fingerprint
from bench.engine.modules import follow, wrapped
from bench.errors import BadInput, one_line
from bench.models.foreign import allow_gradients, copied, is_training, set_training
from bench.noise import BuildNoise, isolated

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
    noise = BuildNoise(evaluation.build_seed)
    access = access or data_access(evaluation, device)
    classifier, shared = own_copy(evaluation.setup.classifier)
    classifier = classifier.to(device)
    allow_gradients(classifier)
    random = [] if classifier.training else [m for m in classifier.modules() if is_training(m)]
    with isolated(evaluation.build_seed), _unchanged(evaluation, classifier, shared):
        built = evaluation.defense.plugin.build(classifier, access, noise)
    module = _module(evaluation, built)
    if module.training:
        set_training(module, False)
        # Modules of a classifier in evaluation mode that train on purpose: dropout at test time.
        for part in random:
            part.training = True
    return as_declared(evaluation, module.to(device), device)


def as_declared(
    evaluation: Evaluation, module: nn.Module, device: torch.device
) -> DefendedClassifier:
    """What a defense built, with what the defense declares. Raises `BadInput` where it is not what
    was declared.
    """
    defended = _defended(evaluation, module, device)
    _check_declared(evaluation, defended)
    return defended


def own_copy(classifier: DefendedClassifier) -> tuple[DefendedClassifier, str]:
    """A copy of the classifier, so that a defense that trains it in place spoils no other.

    Where it cannot be copied, the classifier itself and the reason. An empty reason means a copy.
    """
    try:
        return copied(classifier), ""
    except Exception as error:
        name = type(getattr(classifier, "network", classifier)).__name__
        return classifier, f"{name} cannot be copied ({one_line(error)})"


@contextmanager
def _unchanged(
    evaluation: Evaluation, classifier: DefendedClassifier, shared: str
) -> Iterator[None]:
    """Raise where a defense changes a classifier that all evaluations share, and put it back."""
    if not shared:
        yield
        return
    state = {key: value.clone() for key, value in _tensors(classifier).items()}
    content = [(part, _plain(part)) for part in classifier.modules()]
    before = fingerprint(classifier)
    try:
        yield
    finally:
        changed = fingerprint(classifier) != before
        if changed:
            for part, kept in content:
                vars(part).clear()
                vars(part).update(kept)
            with torch.no_grad():
                for key, value in _tensors(classifier).items():
                    value.copy_(state[key])
    if changed:
        raise BadInput(
            f"defense {evaluation.defense.name!r} changes the classifier, and {shared}: give a "
            "network that copy.deepcopy can copy"
        )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _plain(part: nn.Module) -> dict[str, Any]:
    return {k: v.copy() if isinstance(v, dict) else v for k, v in vars(part).items()}


def _module(evaluation: Evaluation, built: object) -> nn.Module:
    if isinstance(built, nn.Module):
        return built
    raise BadInput(
        f"defense {evaluation.defense.name!r} built {type(built).__name__}: return a "
        "DefendedClassifier, or a torch.nn.Module with forward(images) or forward(images, noise)"
    )


def _defended(
    evaluation: Evaluation, module: nn.Module, device: torch.device
) -> DefendedClassifier:
    """What a defense built, with what the defense declares; a plain module is wrapped."""
    setup, plugin = evaluation.setup, evaluation.defense.plugin
    if isinstance(module, DefendedClassifier):
        follow(plugin, module, evaluation.gradients)
        return module
    images = setup.images.first(min(4, len(setup.images))).pixels()
    return wrapped(
        module,
        setup.classifier.num_classes,
        images.to(device),
        stochastic=evaluation.stochastic,
    )


def _check_declared(evaluation: Evaluation, defended: DefendedClassifier) -> None:
    """Raise where the built module differs from what was known before it was built."""
    name, kind = evaluation.defense.name, type(defended).__name__
    if defended.stochastic != evaluation.stochastic:
        raise BadInput(
            f"defense {name!r} has stochastic={evaluation.stochastic}, but builds {kind} with "
            f"{defended.stochastic}: write stochastic = {defended.stochastic} on the defense, or "
            f"builds = {kind}"
        )
    if set(defended.gradients) != set(evaluation.gradients):
        raise BadInput(
            f"defense {name!r} has gradients={evaluation.gradients}, but builds {kind} with "
            f"{tuple(defended.gradients)}: write the right ones on the defense, or builds = {kind}"
        )


def _sources(evaluation: Evaluation, device: torch.device) -> dict[Need, Callable[[], Any]]:
    def training_data() -> tuple[Tensor, Tensor]:
        images = evaluation.setup.dataset.plugin.train()
        return images.pixels(), images.labels

    def pool(n: int, adversarial: float) -> Tensor:
        setup = evaluation.setup
        classifier = own_copy(setup.classifier)[0].to(device)
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
