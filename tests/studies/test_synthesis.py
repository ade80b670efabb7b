"""The study `synthesis`."""

import pytest
import torch

from bench.studies import synthesis, synthetic
from bench.studies.synthesis import mosaic as synthetic_mosaic
from tests.studies.helpers import SELF_MADE, answer


def test_the_study_of_synthesis_asks_the_classifier(setting, monkeypatch):
    test = setting.setup.images
    black = torch.zeros(3, 3, 16, 16)
    sets_of = [
        synthetic.Made("d:right=1", test.pixels(), test.labels),
        synthetic.Made("d:black=1", black, torch.tensor([0, 1, 2])),
    ]
    monkeypatch.setattr(synthesis, "make", lambda *_: sets_of)
    result = answer(f"synthesis:defenses={SELF_MADE}", setting)
    right, dark = result.tables["synthesis"].to_dict("records")
    assert right["as_meant"] == 1 and right["n"] == 30 and dark["as_meant"] == pytest.approx(1 / 3)
    assert (
        dark["extreme_pixels"] == 1
        and right["extreme_pixels"] < 0.1
        and set(result.figures) == {"sheet"}
    )
    assert (
        result.sentence
        == "The classifier gives the class aimed at on 100.0 % of 30 (right=1), 33.3 % of 3 "
        "(black=1)."
    )


def test_a_mosaic_has_a_row_a_class():
    picture = synthetic_mosaic(torch.zeros(3, 1, 4, 4), torch.tensor([1, 0, 1]))
    assert (
        picture.shape == (12, 60)
        and picture[:6, 6:].min() == 1
        and picture[6:, :12].min() == 0
        and picture[6:, 12:].min() == 1
    )
