"""From outcomes to metrics: pure functions, so that a record can be checked against itself."""

from __future__ import annotations

import numpy as np

from bench.results.collapse import collapsed
from bench.results.intervals import class_estimates, share, wilson
from bench.results.outcomes import Outcomes
from bench.results.record import Accuracy, Metrics


def measure(outcomes: Outcomes, *, by_gradient: bool) -> Metrics:
    """All metrics of an evaluation.

    Args:
        outcomes: predictions on clean and attacked images.
        by_gradient: whether the attack is meant to succeed and took gradients. The collapse verdict
            ignores any other: that a weak search breaks nothing says nothing about the classifier.
    """
    clean = outcomes.predictions("clean")
    adversarial = accuracy(outcomes, "adversarial")
    collapse = collapsed(
        outcomes.true_labels(),
        clean,
        outcomes.num_classes,
        adversarial.mean.value if by_gradient else None,
    )
    return Metrics(
        n=len(clean),
        clean=accuracy(outcomes, "clean"),
        adversarial=adversarial,
        replayed=accuracy(outcomes, "replayed") if outcomes.replayed else None,
        constant_accuracy=collapse.constant_accuracy,
        balanced_accuracy=collapse.balanced_accuracy,
        largest_predicted_share=collapse.largest_predicted_share,
        collapsed=collapse.verdict,
        collapse_reason=collapse.reason,
    )


def accuracy(outcomes: Outcomes, which: str) -> Accuracy:
    """Accuracy of the draws `clean`, `adversarial` or `replayed`. Raises `ValueError` where there
    are none.
    """
    correct, predictions = outcomes.correct(which), outcomes.predictions(which)
    n, draws = correct.shape
    if not draws:
        raise ValueError(f"no {which} draws: an accuracy needs at least one an image")
    right = correct.sum(axis=1)
    labels = outcomes.true_labels()
    # A prediction on a point that counts as broken regardless (clean-wrong) is no right answer for
    # F1 either.
    credited = np.where(correct | (predictions != labels[:, None]), predictions, -1)
    return Accuracy(
        mean=share(right / draws),
        all_draws=wilson(int((right == draws).sum()), n),
        majority=wilson(int((2 * right > draws).sum()), n),
        macro_f1=class_estimates(labels, credited, outcomes.num_classes)[1],
        draws=draws,
    )
