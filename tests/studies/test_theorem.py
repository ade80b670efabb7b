"""The study `theorem`, end to end."""

import numpy as np
import pytest

from bench.studies.study import StudySetting
from bench.studies.theorem import Theorem, TheoremParams


def test_the_study_end_to_end():
    params = TheoremParams(trials=100, dimensions=(2, 8), draws=(1, 3))
    messages = []
    result = Theorem(params).run(StudySetting(progress=messages.append))
    points = result.tables["points"]
    assert list(result.tables) == ["success", "models", "points"] and set(result.figures) == {
        "success",
        "phase",
        "budget",
    }
    assert (
        result.held is True
        and f"{len(points)} of {len(points)}" in result.sentence
        and "ball, n = 8" in messages
    )
    assert list(result.tables["success"].columns) == [
        "n",
        "fresh, k=1",
        "eot, k=3",
        "ideal eot",
        "replay",
        "replay-set, k=3",
    ]
    assert result.tables["models"]["points"].sum() == len(points)
    bars = points["standard_error"]
    assert bars.to_numpy() == pytest.approx(
        np.sqrt(points["formula"] * (1 - points["formula"]) / points["trials"])
    )
