"""Pictures of records: which of the two is drawn, and from which numbers."""

import pytest

from bench.commands.figures import picture
from bench.errors import BadInput
from tests.report.helpers import HALF, LESS, RIGHT, record


def lines(made):
    """By label the heights of the points."""
    (panel,) = made.figure.axes
    handles, labels = panel.get_legend_handles_labels()
    return {
        label: [round(float(one), 1) for one in handle.lines[0].get_ydata()]
        for handle, label in zip(handles, labels, strict=True)
    }


def test_several_eps_make_a_curve_and_one_a_scatter():
    low = record("a", RIGHT, threat={"norm": "linf", "eps": 0.1})
    high = record("a", HALF, threat={"norm": "linf", "eps": 0.2})
    curve = picture([high, low, record("b", LESS, threat={"norm": "linf", "eps": 0.1})])
    assert lines(curve) == {"a, pgd": [100.0, 50.0], "b, pgd": [40.0]}
    assert curve._repr_png_().startswith(b"\x89PNG")
    scatter = picture([high, record("$b$", LESS, threat={"norm": "linf", "eps": 0.2})])
    assert lines(scatter) == {"a": [50.0], r"\$b\$": [40.0]}


def test_what_cannot_be_drawn_together_is_told():
    other = record("a", HALF, dataset={"name": "x", "sha256": "0" * 64})
    with pytest.raises(BadInput, match="several data sets"):
        picture([record("a", HALF), other])
    with pytest.raises(BadInput, match="no record"):
        picture([])
