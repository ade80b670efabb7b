"""The study `leakage`."""

import torch

from bench.studies import leakage, synthetic
from tests.studies.helpers import SELF_MADE, answer


def test_the_study_of_leakage_sees_stolen_images(setting, monkeypatch):
    train = setting.setup.dataset.plugin.train().pixels()[:30]
    stolen = [
        synthetic.Made("stolen", train, torch.zeros(30)),
        synthetic.Made("own", 1 - train, torch.zeros(30)),
    ]
    monkeypatch.setattr(leakage, "make", lambda *_: stolen)
    result = answer(f"leakage:defenses={SELF_MADE}", setting)
    rows = result.tables["membership"].set_index("score")
    assert (
        rows.loc["stolen", "auc"] == 1
        and rows.loc["own", "auc_low"] < 0.5 < rows.loc["own", "auc_high"]
    )
    distances = result.tables["distances"].set_index("images")
    assert (
        distances.loc["stolen", "nearer_to_training"] == 1
        and distances.loc["stolen", "median_ratio"] < 1e-5
    )
    assert len(rows) == 3 and rows["n"].eq(30).all() and "Membership AUC" in result.sentence
