"""What is found out about a model before it is attacked."""

import torch
from torch import nn

import bench
from bench.engine.preflight import check
from bench.models.classifier import Classifier
from tests import toy_model, toy_plugins  # noqa: F401
from tests.toys import linear_problem


def test_evaluate_finds_models_that_cannot_be_trusted():
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = toy_model.make_model(), 0

        def forward(self, images):
            self.calls += 1
            return self.inner(images) + 0.001 * self.calls * torch.arange(3)

    class BatchDependent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            return self.inner(images - images.mean(0, keepdim=True))

    class NoGradient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            return self.inner(images.detach())

    class Softmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            return self.inner(images).softmax(1)

    expected = {
        Stateful: "hidden-randomness",
        BatchDependent: "batch-dependence",
        NoGradient: "zero-gradient",
        Softmax: "probabilities",
    }
    for model, name in expected.items():
        (record,) = bench.evaluate(
            model(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu"
        ).records
        assert name in [f.name for f in record.findings], name
    (clean,) = bench.evaluate(
        toy_model.make_model(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu"
    ).records
    assert clean.findings == []
    (corrected,) = bench.evaluate(
        Softmax(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu", output="probabilities"
    ).records
    assert "probabilities" not in [f.name for f in corrected.findings]
    assert corrected.outcomes == clean.outcomes


class Clamped(nn.Module):
    """Clamps its input with slope 0 at the bounds, as torch's clamp does in some versions."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        inside = (images > 0) & (images < 1)
        return self.inner(torch.where(inside, images, images.detach()))


def test_a_model_that_clamps_its_input_is_found():
    inner, images, labels = linear_problem(3, 16, active_box=True)
    assert int(((images == 0) | (images == 1)).sum()) > 100
    for model, expected in ((Clamped(inner), ["clamped-input"]), (inner, [])):
        assert [
            f.name for f in check(Classifier(model, 3).eval(), images, labels, "full")
        ] == expected
    assert (
        list(check(Classifier(Clamped(inner), 3).eval(), 0.2 + 0.5 * images, labels, "full")) == []
    )
