"""The study `diversity`."""

from bench.studies import diversity
from tests.studies.helpers import SELF_MADE, answer
from tests.studies.test_sets import CLOUD


def test_the_study_of_diversity_ranks_real_above_noise(setting):
    result = answer(f"diversity:defenses={SELF_MADE},embedding=pixels,bins=10", setting)
    table = result.tables["diversity"].set_index("images")
    assert table.loc["test images", "coverage"] > 0.5 > table.loc[SELF_MADE[1:-1], "coverage"]
    assert table["n"].tolist() == [30, 30] and set(result.figures) == {"map"}
    assert (
        result.sentence.startswith("Of the training images (pixels, k = 5)") and result.held is None
    )


def test_the_study_of_diversity_needs_features_where_asked(setting):
    assert {"coverage", "ndb"} <= set(
        answer(f"diversity:defenses={SELF_MADE}", setting).tables["diversity"]
    )


def test_the_measures_need_no_features_of_one_set():
    values = diversity.measures(CLOUD, CLOUD, diversity.DiversityParams(), 3, 0)
    assert values["coverage"] == values["recall"] == 1 and values["ndb"] == values["jsd"] == 0
