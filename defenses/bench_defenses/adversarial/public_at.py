"""`public-at`: adversarial training on images of another data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from bench.defense import Card, DataAccess, DefendedClassifier, Defense, Need
from bench.noise import BuildNoise
from bench.spec import nested, parse, unnest
from bench_defenses.adversarial.objectives import ObjectiveSpec, read_objective
from bench_defenses.adversarial.params import ATTACKS, TrainingParams
from bench_defenses.adversarial.students import trained_student
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages

ImagesSpec = Annotated[str, Field(min_length=1), AfterValidator(nested)]


class PublicAtParams(TrainingParams):
    """Parameters of `public-at`."""

    images: ImagesSpec = Field(
        description="the public data set, such as (fashion-mnist:n=1000); without n, as many "
        "images as the scale says"
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
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The trained student."""
        images = access.public_images()
        tagged = TaggedImages(images, None, Tag.PUBLIC)
        if "n" not in parse(unnest(self.params.images)).options:
            tagged = tagged.first(self.params.sizes.images or len(images))
        objective = read_objective(self.params.objective)
        training = self.params.student_training(tagged, objective, access.threat, noise)
        return trained_student(classifier, training, noise, self.needs)
