"""Targeted attacks: how many images were answered with the class that they were to become.

The row's number stays the share of right answers: an image that reaches its target is wrong, and
one that is wrong otherwise counts as broken, too.
"""

from __future__ import annotations

import numpy as np

from bench.results.estimate import Estimate
from bench.results.findings import Finding
from bench.results.intervals import share
from bench.results.outcomes import NO_TARGET, Labels, Outcomes, decode


def check_targets(text: str, outcomes: Outcomes) -> None:
    """Raise `ValueError` unless a text is one target an image, none of them the true class."""
    targets, labels = decode(text, outcomes.num_classes), outcomes.true_labels()
    if len(targets) != len(labels):
        raise ValueError("targets and images differ in number")
    if (targets == labels).any():
        raise ValueError("an image's target is its true class")


def share_reached(targets: Labels, outcomes: Outcomes, which: str = "adversarial") -> Estimate:
    """Of the images that have a target, the mean share of draws that answer with it.

    Args:
        targets: int64 (n,), `NO_TARGET` where none; at least one image must have one.
        outcomes: the answers.
        which: `adversarial`, or `replayed`.
    """
    aimed = targets != NO_TARGET
    answers = outcomes.predictions(which)[aimed]
    return share((answers == targets[aimed, None]).mean(1).astype(np.float64))


def targets_finding(targets: Labels, outcomes: Outcomes) -> Finding:
    """What the row does not say: how many targets were reached."""
    aimed = int((targets != NO_TARGET).sum())
    if not aimed:
        told = "no image was attacked towards a target"
    else:
        told = f"{share_reached(targets, outcomes)} of {aimed} attacked images are answered with "
        told += "their target"
        if outcomes.replayed:
            own = share_reached(targets, outcomes, "replayed")
            told += f", {own} under the attack's own fixed noise"
    message = f"{told}; the row's number counts every wrong answer"
    return Finding(name="targets", verdict="note", message=message)
