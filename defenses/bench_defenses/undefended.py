"""The base of every comparison: the classifier as it is."""

from __future__ import annotations

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, NoParams
from bench.noise import BuildNoise


class Undefended(Defense[NoParams]):
    """No defense: the classifier as it is."""

    seeded = False
    card = Card(
        note="the base that every other row is compared with",
        attacks=("pgd", "pgd:loss=margin,restarts=5", "ensemble:fast"),
    )

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The classifier itself."""
        return classifier
