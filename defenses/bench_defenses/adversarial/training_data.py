"""Adversarial training on the training images: `pgd-at`, `trades`, `mart`, `ard`, `rslad`, and
`dfshield-at` with DataFreeShield's loss.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

from pydantic import Field

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, Need
from bench.noise import BuildNoise
from bench_defenses.adversarial.objectives import (
    Ard,
    DataFreeShield,
    Mart,
    Objective,
    PgdAt,
    Rslad,
    Trades,
)
from bench_defenses.adversarial.params import ATTACKS, TrainingParams
from bench_defenses.adversarial.students import trained_student
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages


class OwnDataParams(TrainingParams):
    """Parameters of adversarial training on the training images."""

    n: int | None = Field(
        None, ge=1, description="how many training images; the scale's number by default"
    )


P = TypeVar("P", bound=OwnDataParams)


class AdversarialTraining(Defense[P]):
    """Base of the defenses that train on the training images.

    Attributes:
        objective: what the student minimises.
    """

    needs = frozenset({Need.TRAINING_DATA})
    objective: ClassVar[type[Objective]]

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The trained student."""
        images, labels = access.training_data()
        tagged = TaggedImages(images, labels, Tag.TRAINING).first(
            self.params.n or self.params.sizes.images or len(images)
        )
        objective = self.objective(
            **{name: getattr(self.params, name) for name in self.objective.model_fields}
        )
        training = self.params.student_training(tagged, objective, access.threat, noise)
        return trained_student(classifier, training, noise, self.needs)


class PgdAtParams(OwnDataParams, PgdAt):
    """Parameters of `pgd-at`."""


class PgdAtDefense(AdversarialTraining[PgdAtParams]):
    """Adversarial training: cross-entropy at PGD points of the training images."""

    Params = PgdAtParams
    objective = PgdAt
    card = Card(paper="Madry et al., ICLR 2018, arXiv 1706.06083, section 2.1", attacks=ATTACKS)


class TradesParams(OwnDataParams, Trades):
    """Parameters of `trades`."""


class TradesDefense(AdversarialTraining[TradesParams]):
    """TRADES: clean cross-entropy, and the divergence between clean and attacked answers."""

    Params = TradesParams
    objective = Trades
    card = Card(paper="Zhang et al., ICML 2019, arXiv 1901.08573, eq. 5", attacks=ATTACKS)


class MartParams(OwnDataParams, Mart):
    """Parameters of `mart`."""


class MartDefense(AdversarialTraining[MartParams]):
    """MART: boosted cross-entropy at PGD points; misclassified images weigh more in the
    divergence.
    """

    Params = MartParams
    objective = Mart
    card = Card(paper="Wang et al., ICLR 2020, openreview rklOg6EFwS", attacks=ATTACKS)


class ArdParams(OwnDataParams, Ard):
    """Parameters of `ard`."""


class ArdDefense(AdversarialTraining[ArdParams]):
    """ARD: the student gives the teacher's softened clean answers at PGD points."""

    Params = ArdParams
    objective = Ard
    card = Card(
        paper="Goldblum et al., AAAI 2020, arXiv 1905.09747",
        note="the paper's teacher is robust; here it is the undefended classifier, asked on "
        "clean images only",
        attacks=ATTACKS,
    )


class RsladParams(OwnDataParams, Rslad):
    """Parameters of `rslad`."""


class RsladDefense(AdversarialTraining[RsladParams]):
    """RSLAD: the teacher's clean probabilities take the place of labels, in the attack too."""

    Params = RsladParams
    objective = Rslad
    card = Card(
        paper="Zi et al., ICCV 2021, arXiv 2108.07969",
        note="the paper's teacher is robust; here it is the undefended classifier, asked on "
        "clean images only",
        attacks=ATTACKS,
    )


class DfShieldAtParams(OwnDataParams, DataFreeShield):
    """Parameters of `dfshield-at`."""


class DfShieldAtDefense(AdversarialTraining[DfShieldAtParams]):
    """DataFreeShield's loss on the training images, to compare it with losses made for them."""

    Params = DfShieldAtParams
    objective = DataFreeShield
    card = Card(
        paper="Lee et al., ICML 2024, L_DFShield",
        note="the paper's images are synthetic; these are the training images, without GradRefine "
        "unless group is more than 1",
        attacks=ATTACKS,
    )
