"""`public-at`: adversarial training on images of another data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, Need
from bench.noise import Noise
from bench.spec import nested, parse, unnest
from bench_defenses.adversarial.objectives import ObjectiveSpec, read_objective
from bench_defenses.adversarial.params import ATTACKS, TrainingParams
from bench_defenses.adversarial.source import Source, Tag
from bench_defenses.adversarial.students import taught

ImagesSpec = Annotated[str, Field(min_length=1), AfterValidator(nested)]


class PublicAtParams(TrainingParams):
    """Parameters of `public-at`."""

    images: ImagesSpec = Field(
        description="the public data set, such as (fashion-mnist:n=1000); without n, as many "
        "images as the profile says"
    )
    objective: ObjectiveSpec = Field(
        "(rslad:adversarial=1,clean=0)",
        description="pgd-at, trades, mart, ard, rslad or datafreeshield, with its parameters",
    )


class PublicAt(Defense[PublicAtParams]):
    """Adversarial training on public images of another data set, labelled by the classifier."""

    Params = PublicAtParams
    needs = frozenset({Need.PUBLIC_IMAGES})
    card = Card(
        paper="the preliminary study of DataFreeShield: Lee et al., ICML 2024",
        note="the default objective is KL(T(x) || S(x')), for the label spaces differ; the "
        "others take the classifier's answers",
        attacks=ATTACKS,
    )

    @property
    def asks(self) -> Mapping[Need, str]:
        """The data set named by `images`."""
        return {Need.PUBLIC_IMAGES: self.params.images}

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: Noise
    ) -> DefendedClassifier:
        """The trained student."""
        images = access.public_images()
        source = Source(images, None, Tag.PUBLIC)
        if "n" not in parse(unnest(self.params.images)).options:
            source = source.first(self.params.scale.images or len(images))
        lesson = self.params.lesson(
            source, read_objective(self.params.objective), access.threat, noise
        )
        return taught(classifier, lesson, noise, self.needs)
