"""No defense."""

from bench.models.classifier import Classifier
from tests.defenses.helpers import around_sum


def test_undefended_is_the_classifier_itself():
    assert isinstance(around_sum("undefended"), Classifier)
