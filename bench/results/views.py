"""What a defense's views say of clean and attacked images, beside its answer: branches that are
right, a detector's rates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from bench.results.arrays import Bools, Floats
from bench.results.outcomes import Labels, Outcomes, decode, encode

DETECTOR = "detector"
"""The view that is scored as a detector: two logits, clean and adversarial."""

_PAIR = ("clean", "adversarial")


class ViewScores(BaseModel):
    """What the views said of each image, clean and attacked.

    Attributes:
        answers: for each scored view but the detector its predictions under `clean` and
            `adversarial`, encoded as in `Outcomes`.
        detector: the detector's logit of adversarial minus that of clean, under `clean` and
            `adversarial`; empty without one.
        attacked: 1 for each image whose point differs from it: what was wrong without attack is not
            attacked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers: dict[str, dict[str, str]]
    detector: dict[str, list[float]]
    attacked: str

    def check(self, n: int, num_classes: int) -> None:
        """Raise `ValueError` unless these are the views of n images."""
        pairs = [set(pair) for pair in self.answers.values()]
        pairs += [set(self.detector)] if self.detector else []
        if any(pair != set(_PAIR) for pair in pairs):
            raise ValueError("a view is not of clean and adversarial images")
        texts = [text for pair in self.answers.values() for text in pair.values()]
        lengths = [len(decode(text, num_classes)) for text in texts]
        lengths += [len(scores) for scores in self.detector.values()]
        if {*lengths, len(self.attacked)} != {n} or not set(self.attacked) <= {"0", "1"}:
            raise ValueError("views and images differ in number")

    def moved(self) -> Bools:
        """Which images were attacked, (n,)."""
        return np.array([digit == "1" for digit in self.attacked])


class Detection(BaseModel):
    """How a detector tells attacked images from clean ones, in [0, 1].

    Attributes:
        n: how many images were attacked; the clean ones are all.
        true_positive_rate: attacked images that it flags; None where none was attacked, as is
            `auroc`.
        false_positive_rate: clean images that it flags.
        auroc: share of pairs (attacked, clean) that its score puts in order, ties by half.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    true_positive_rate: float | None
    false_positive_rate: float
    auroc: float | None


def view_scores(
    arrays: Mapping[str, npt.NDArray[np.generic]], num_classes: int
) -> ViewScores | None:
    """From arrays named `score/VIEW/clean` and `score/VIEW/adversarial` (n,) and `moved` (n,); None
    where there are none.
    """
    views = dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("score/"))
    if not views:
        return None
    columns = {view: {which: arrays[f"score/{view}/{which}"] for which in _PAIR} for view in views}
    return ViewScores(
        answers={
            view: {
                which: encode(column.astype(np.int64), num_classes)
                for which, column in pair.items()
            }
            for view, pair in columns.items()
            if view != DETECTOR
        },
        detector={
            which: [float(f"{x:.4g}") for x in column.astype(float)]
            for which, column in columns.get(DETECTOR, {}).items()
        },
        attacked="".join("1" if moved else "0" for moved in arrays["moved"]),
    )


def detection(scores: ViewScores) -> Detection | None:
    """The detector's rates; None without one."""
    if not scores.detector:
        return None
    clean, attacked = (np.array(scores.detector[which]) for which in _PAIR)
    attacked = attacked[scores.moved()]
    flagged = [float((values > 0).mean()) if len(values) else None for values in (attacked, clean)]
    return Detection(
        n=len(attacked),
        true_positive_rate=flagged[0],
        false_positive_rate=flagged[1] or 0.0,
        auroc=auroc(attacked, clean) if len(attacked) else None,
    )


def auroc(positive: Floats, negative: Floats) -> float:
    """Area under the ROC curve: P(positive > negative) + P(equal) / 2."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / 2 / len(negative))


def right(scores: ViewScores, outcomes: Outcomes, view: str, which: str) -> Bools:
    """Whether a view is right on each image, (n,)."""
    labels: Labels = outcomes.true_labels()
    return np.asarray(decode(scores.answers[view][which], outcomes.num_classes) == labels)


def any_right(scores: ViewScores, outcomes: Outcomes) -> Bools:
    """Whether some scored view is right on an image both without and under attack, (n,).

    No choice among these views, whatever detector makes it, can be right on more of these points.
    """
    both = [[right(scores, outcomes, view, which) for view in scores.answers] for which in _PAIR]
    return np.asarray(np.all(np.any(both, axis=1), axis=0))
