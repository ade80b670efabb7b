"""Losses and verdicts where classes are ruled out."""

import torch
from torch import nn

import bench
from bench.losses import margin_and_error, misclassified
from tests import toy_model, toy_plugins  # noqa: F401


def test_masked_classes_do_not_hide_success():
    logits = torch.tensor(
        [[0.0, 1.0, -1e9], [0.0, 1.0, -torch.inf], [1.0, 0.0, -torch.inf], [-torch.inf, 1.0, 0.0]]
    )
    assert misclassified(logits, torch.zeros(4, dtype=torch.int64)).tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_what_is_no_number_is_wrong_among_right_answers():
    logits = torch.tensor(
        [[1.0, 0.0], [torch.nan, 0.0], [0.0, torch.nan], [-torch.inf, -torch.inf]]
    )
    gaps, wrong = margin_and_error(logits, torch.zeros(4, dtype=torch.int64))
    assert wrong.tolist() == [False, True, True, False] and gaps[0] == -1


def test_a_log_of_mean_softmax_may_rule_classes_out():
    class Ruled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            logits = self.inner(images)
            return torch.where(logits < logits.amax(1, keepdim=True) - 15, -torch.inf, logits)

    (record,) = bench.evaluate(
        Ruled(), dataset="toy:n=20", attacks="pgd:steps=5,loss=margin", eps=0.3, device="cpu"
    ).records
    assert record.metrics.clean.mean.value == 1
    assert record.metrics.adversarial.mean.value == 0
