"""From arrays to the record: which findings it holds."""

import numpy as np
import torch
from torch import nn

import bench
from tests import toy_model, toy_plugins  # noqa: F401


def test_evaluation_without_gradients_says_so():
    class Opaque(nn.Module):
        def forward(self, images):
            return torch.from_numpy(
                np.stack([images.detach().numpy().sum((1, 2, 3))] * 3, 1) * np.arange(3)
            )

    (record,) = bench.evaluate(
        Opaque(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu"
    ).records
    assert {"zero-gradient", "no-gradient"} <= {f.name for f in record.findings}


def test_a_missing_gradient_does_not_matter_to_an_attack_without(tmp_path):
    class Blocked(nn.Module):
        def forward(self, images):
            return toy_model.make_model()((images * 8).round() / 8)

    report = bench.evaluate(
        Blocked(), dataset="toy:n=20", attacks=["null", "pgd:steps=2"], device="cpu"
    )
    assert [("zero-gradient" in {f.name for f in r.findings}) for r in report.records] == [
        False,
        True,
    ]
