"""Points that were found beside the attack's: an attack of their own for the worst case."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.results.arrays import Bools
from bench.results.outcomes import (
    Labels,
    Outcomes,
    check_ids,
    count_ids,
    decode,
    decode_ids,
    encode,
    encode_ids,
)

BASE_POINTS, CHECKS = "base points", "checks"
"""Names of extra points: those of the base under the same attack, and those of the checks."""

UNBROKEN = "-"


class ExtraPoints(BaseModel):
    """What the defense answers on points that something else than the row's attack found.

    Attributes:
        name: who found them: `base points`, `checks`, or the id of an audit's check.
        ids: of which images, runs folded; a subset of the row's, in the row's order.
        adversarial: predictions on these images, encoded as in `Outcomes`, one string a judged
            draw; at most as many draws as the row has, and the same ones.
        by: which search broke each image, separated by commas, `-` where none did; empty where
            nobody noted it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    ids: str
    adversarial: list[str] = Field(min_length=1)
    by: str = ""

    @model_validator(mode="after")
    def _is_of_one_set_of_images(self) -> ExtraPoints:
        n = count_ids(self.ids)
        if n > len(self.adversarial[0]):
            # Before anything of their size is made.
            raise ValueError(f"ids are of {n} images, predictions of fewer")
        check_ids(self.ids, n)
        if self.by and len(self.by.split(",")) != n:
            raise ValueError("ids and searches differ in number")
        return self

    @classmethod
    def of(
        cls, name: str, k: int, ids: Labels, adversarial: Labels, by: list[str] | None = None
    ) -> ExtraPoints:
        """From arrays: ids (m,), predictions (m, draws) of k classes, and the search of each."""
        strings = [encode(column, k) for column in adversarial.T]
        return cls(name=name, ids=encode_ids(ids), adversarial=strings, by=",".join(by or []))

    def image_ids(self) -> Labels:
        """Image ids (m,)."""
        return decode_ids(self.ids)

    def searches(self) -> list[str]:
        """Which search broke each image (m,), empty where none did or nobody noted it."""
        if not self.by:
            return [""] * len(self.image_ids())
        return [name if name != UNBROKEN else "" for name in self.by.split(",")]

    def places(self, outcomes: Outcomes) -> Labels:
        """Where these images stand among those of the outcomes, (m,). Raises `ValueError` where
        they are not all there in their order.
        """
        place = {int(i): at for at, i in enumerate(outcomes.image_ids())}
        try:
            places = np.array([place[int(i)] for i in self.image_ids()], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"image {error} of {self.name!r} is not among the row's") from None
        if (np.diff(places) <= 0).any():
            raise ValueError(f"images of {self.name!r} are not in the row's order")
        return places

    def predictions(self, num_classes: int) -> Labels:
        """Predictions (m, draws)."""
        return np.stack([decode(text, num_classes) for text in self.adversarial], axis=1)

    def check(self, outcomes: Outcomes) -> None:
        """Raise `ValueError` unless these are points of an evaluation with these outcomes."""
        m = len(self.places(outcomes))
        if len(self.adversarial) > len(outcomes.adversarial):
            raise ValueError(f"{self.name!r} has more draws than the row")
        if any(len(decode(text, outcomes.num_classes)) != m for text in self.adversarial):
            raise ValueError(f"ids and predictions of {self.name!r} differ in length")

    def correct(self, outcomes: Outcomes) -> Bools:
        """Whether each answer is right, bool (n, draws), by the rule of `Outcomes.correct`; the
        row's own verdict where an image has no point here.
        """
        predictions = self.predictions(outcomes.num_classes)
        draws, places = predictions.shape[1], self.places(outcomes)
        correct = outcomes.correct("adversarial")[:, :draws].copy()
        right = predictions == outcomes.true_labels()[places, None]
        correct[places] = right & outcomes.correct("clean")[places, :draws]
        return correct
