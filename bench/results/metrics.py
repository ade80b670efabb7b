"""From outcomes to metrics: pure functions, so that a record can be checked against itself."""

from __future__ import annotations

import numpy as np

from bench.results import statistics
from bench.results.outcomes import Outcomes
from bench.results.record import Accuracy, Metrics


def measure(outcomes: Outcomes, *, by_gradient: bool) -> Metrics:
    """All metrics of a cell.

    Args:
        outcomes: predictions on clean and attacked images.
        by_gradient: whether the attack is meant to succeed and took gradients. The collapse verdict
            ignores any other: that a weak search breaks nothing says nothing about the classifier.
    """
    clean = outcomes.predictions("clean")
    adversarial = _judged(outcomes, "adversarial")
    collapse = statistics.collapsed(
        outcomes.true_labels(),
        clean,
        outcomes.num_classes,
        adversarial.mean.value if by_gradient else None,
    )
    return Metrics(
        n=len(clean),
        clean=_judged(outcomes, "clean"),
        adversarial=adversarial,
        replayed=_judged(outcomes, "replayed") if outcomes.replayed else None,
        constant_accuracy=collapse.constant_accuracy,
        balanced_accuracy=collapse.balanced_accuracy,
        largest_predicted_share=collapse.largest_predicted_share,
        collapsed=collapse.verdict,
        collapse_reason=collapse.reason,
    )


def _judged(outcomes: Outcomes, which: str) -> Accuracy:
    correct = outcomes.correct(which)
    judged = statistics.judge(correct)
    # A prediction on a point that counts as broken regardless (clean-wrong) is no right answer for
    # F1 either.
    predictions = np.where(
        correct | (outcomes.predictions(which) != outcomes.true_labels()[:, None]),
        outcomes.predictions(which),
        -1,
    )
    f1 = statistics.cluster_bootstrap(
        outcomes.true_labels(), predictions, outcomes.num_classes, statistics.macro_f1
    )
    return Accuracy(
        mean=judged.mean,
        all_draws=judged.all_draws,
        majority=judged.majority,
        macro_f1=f1,
        draws=correct.shape[1],
    )
