"""What is known of a defended classifier before it is attacked: checks, costs, and training
data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.defense import DataAccess, DefendedClassifier, Need, PoolUse
from bench.engine.evaluation import Evaluation
from bench.engine.inference import inspect
from bench.engine.preflight import check, replay_level
from bench.engine.setup import OWN_RANDOMNESS
from bench.noise import isolated
from bench.plugins.create import BASE
from bench.results.findings import Finding
from bench.results.inference import Inference
from bench.victim import frozen

PREFLIGHT_IMAGES = 8


@dataclass(frozen=True)
class Inspection:
    """What is known of a defended classifier before it is attacked.

    Attributes:
        findings: of the checks, of its training data, and its own notes.
        level: how well a draw can be repeated; see `preflight.replay_level`.
        inference: cost of a prediction, and RobustBench's conditions.
        pool: the test images on which it adapted; None where it did not.
    """

    findings: list[Finding]
    level: str
    inference: Inference
    pool: PoolUse | None


def inspect_defended(
    evaluation: Evaluation, defended: DefendedClassifier, access: DataAccess, device: torch.device
) -> Inspection:
    """Check a defended classifier on the first few images of its evaluation."""
    sample = evaluation.setup.images.first(min(PREFLIGHT_IMAGES, len(evaluation.setup.images)))
    pixels, labels = sample.pixels().to(device), sample.labels.to(device)
    with frozen(defended):
        findings = check(defended, pixels, labels, evaluation.gradient)
        level = replay_level(defended, pixels)
        with isolated(evaluation.build_seed):
            inference = inspect(defended, pixels, labels, defended.stochastic or level == "none")
    notes = [Finding(name="built", verdict="note", message=note) for note in defended.notes]
    notes += _given_from_python(evaluation)
    return Inspection(
        [*findings, *_trained_on(evaluation), *_transductive(access.pool), *notes],
        level,
        inference,
        access.pool,
    )


def _given_from_python(evaluation: Evaluation) -> Iterator[Finding]:
    setup = evaluation.setup
    for note in setup.images.notes:
        yield Finding(name="images", verdict="note", message=note)
    if evaluation.defense.name == BASE and setup.has_own_randomness:
        yield Finding(name="own-randomness", verdict="note", message=OWN_RANDOMNESS)


def _transductive(pool: PoolUse | None) -> Iterator[Finding]:
    if pool:
        message = (
            f"transductive: it adapted on {pool.images} unlabelled test images other than the "
            f"evaluated ones, {pool.adversarial:.0%} of them attacked"
        )
        yield Finding(name="transductive", verdict="note", message=message)


def _trained_on(evaluation: Evaluation) -> Iterator[Finding]:
    setup = evaluation.setup
    yield from _trained_on_evaluated(
        evaluation, "classifier", getattr(setup.classifier, "trained_on", ())
    )
    if Need.GENERATOR in evaluation.defense.plugin.needs:
        trained = evaluation.generator().trained_on
        yield from _trained_on_evaluated(evaluation, "diffusion model", trained)
        message = (
            "the diffusion model was trained on "
            f"{', '.join(trained) or 'images that nothing names'}"
        )
        yield Finding(name="generator", verdict="note", message=message)
    if Need.PUBLIC_IMAGES in evaluation.defense.plugin.needs:
        public = evaluation.public_images()
        message = f"the public images are {len(public.images)} of {public.dataset.spec}"
        yield Finding(name="public-images", verdict="note", message=message)


def _trained_on_evaluated(
    evaluation: Evaluation, what: str, trained: Sequence[str]
) -> Iterator[Finding]:
    overlap = sorted(set(trained) & set(evaluation.setup.dataset.plugin.drawn_from))
    if overlap:
        yield Finding(
            name="trained-on-test",
            verdict="warn",
            message=f"the {what} was trained on {', '.join(overlap)}, which holds the evaluated "
            "images: accuracies flatter it",
        )
