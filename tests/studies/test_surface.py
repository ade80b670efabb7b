"""The study `surface`, on a linear model of two classes, whose loss along a line is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from bench.errors import BadInput
from bench.studies import surface
from bench.threat import ThreatModel
from tests.studies.helpers import QUICK, TwoClasses, linear_setup, purifier_setting, study

POINTS = 3


def test_the_rise_of_a_linear_model_is_its_formula():
    """CE = softplus(m), m the wrong logit minus the true one; along the signs of its gradient m
    rises by the length of the weights' difference in L1, and inside the box nothing is clipped.
    """
    setting = purifier_setting(linear_setup())
    setup = setting.setup
    result = study(f"surface:defenses=undefended,builds=2,points={POINTS}").run(setting)
    table = result.tables["surface"].set_index(["direction", "share of eps"])
    model, labels = TwoClasses().requires_grad_(False), setup.images.labels
    logits = model(setup.images.pixels())
    margins = (logits[:, 1] - logits[:, 0]) * (1 - 2 * labels)
    length = float((model.weight[1] - model.weight[0]).abs().sum())
    for share in (0.5, 1.0):
        expected = softplus(margins + share * setup.threat.eps * length) - softplus(margins)
        row = table.loc[("adversarial", share)]
        assert row["rise"] == pytest.approx(float(expected.mean()), rel=1e-4)
        assert row["rise_low"] == pytest.approx(row["rise"]) and row["difference"] == 0
        assert abs(table.loc[("random", share)]["rise"]) < row["rise"] / 5
    assert len(table) == 4 and result.scale == "2 builds of 1 defenses, 6 images"
    assert set(result.figures) == {"surface"}


def test_the_way_goes_on_where_the_image_is_wrong_already():
    setting = purifier_setting(linear_setup())
    labels = setting.setup.images.labels
    labels[:] = 1 - (TwoClasses()(setting.setup.images.pixels()).argmax(1))
    table = study("surface:defenses=undefended,builds=1,points=2").run(setting).tables["surface"]
    assert table["rise"].iloc[0] > 0.1 and np.isnan(table["rise_low"].iloc[0])


def test_builds_differ_and_are_compared_with_the_first(setting):
    one, other = f"(datafreeshield:{QUICK})", "undefended"
    result = study(f"surface:defenses={one}+{other},builds=2,points=2").run(setting)
    table = result.tables["surface"]
    trained, plain = table[::2].iloc[0], table[::2].iloc[1]
    assert trained["rise_low"] < trained["rise"] < trained["rise_high"]
    assert plain["difference"] == pytest.approx(plain["rise"] - trained["rise"])
    assert "undefended, adversarial" in result.sentence and "to the first" in result.sentence


def test_rows_of_known_rises():
    made = np.zeros((2, 2, 2, 2))
    made[0, :, 0, 1], made[1, :, 0, 1] = (1.0, 3.0), (2.0, 5.0)
    rows = surface.surface_table(["a", "b"], made).to_dict("records")
    assert [row["rise"] for row in rows] == [2, 0, 3.5, 0]
    assert rows[2]["difference"] == 1.5 and rows[2]["difference_low"] < 0
    assert torch.tensor([row["share of eps"] for row in rows]).eq(1).all()


class HalfBlind(TwoClasses):
    """Without a gradient for every second image."""

    def forward(self, images):
        seen = torch.arange(len(images)) % 2 == 0
        return super().forward(torch.where(seen[:, None, None, None], images, images.detach()))


def test_what_has_no_gradient_is_not_called_flat(setting):
    with pytest.raises(BadInput, match=r"bit-depth.* images without a gradient"):
        study("surface:defenses=bit-depth,builds=1").run(setting)
    half = purifier_setting(linear_setup())
    half.setup.classifier.network = HalfBlind()
    with pytest.raises(BadInput, match=r"undefended.* images without a gradient"):
        study("surface:defenses=undefended,builds=1").run(half)


def test_other_balls_are_refused(setting):
    round_one = purifier_setting(replace(setting.setup, threat=ThreatModel("l2", 0.5)))
    with pytest.raises(BadInput, match="linf"):
        study("surface:defenses=undefended,builds=1").run(round_one)
