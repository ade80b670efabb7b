"""What is found out about a model before it is attacked."""

import pytest
import torch
from torch import nn

import bench
from bench.engine.preflight import check, check_probabilities
from bench.models.classifier import Classifier
from tests import toy_model, toy_plugins  # noqa: F401
from tests.toys import linear_problem, message


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


class OtherUnderGradient(nn.Module):
    """Another function where the attack looks than where the judge does."""

    def __init__(self, inner, change) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, images):
        logits = self.inner(images)
        return self.change(logits) if images.requires_grad else logits


class Scaled(nn.Module):
    def __init__(self, inner, scale, offset) -> None:
        super().__init__()
        self.inner, self.scale, self.offset = inner, scale, offset

    def forward(self, images):
        return self.scale * (self.inner(images) + self.offset)


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0), (1, 0), (1e6, 0), (1, 100), (1e-3, 100)])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda z, spread: z + 1e-6 * spread * torch.eye(3)[0], False),
        (lambda z, spread: z * (1 + 2e-7), False),
        (lambda z, spread: z + 1e-2 * spread * torch.eye(3)[0], True),
        (lambda z, spread: -z, True),
        (lambda z, spread: torch.where(torch.eye(3)[0].bool(), -torch.inf, z), True),
    ],
)
def test_another_function_under_gradient_is_told_from_rounding(change, found, scale, offset):
    inner, images, labels = linear_problem(3, 16, active_box=True)

    def changed(z):
        return change(z, (z - z.mean()).abs().max())

    model = OtherUnderGradient(Scaled(inner, scale, offset), changed)
    findings = check(Classifier(model, 3).eval(), images, labels, "full")
    assert ("forward-pass" in [f.name for f in findings]) == found


class Shifted(nn.Module):
    """Logits, whatever it is said to return."""

    def __init__(self, change) -> None:
        super().__init__()
        self.inner, self.change = toy_model.make_model(), change

    def forward(self, images):
        return self.change(self.inner(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z: z - 5, "values from"),
        (lambda z: z.softmax(1) / 2, "sum to 0.5"),
        (lambda z: torch.sigmoid(z) * 0 + 0.9, "sum to 2.7"),
        (lambda z: z * torch.nan, "values from nan"),
        (lambda z: z.log_softmax(1), "values from"),
    ],
)
def test_what_is_said_to_be_probabilities_is_checked(change, words, monkeypatch):
    monkeypatch.setattr("bench.api.run_in_processes", None)
    asked = {"dataset": "toy:n=20", "device": "cpu", "output": "probabilities"}
    text = message(lambda: bench.evaluate(Shifted(change), **asked))
    assert words in text and "output='probabilities' was given" in text and "\n" not in text


def test_probabilities_up_to_rounding_are_taken():
    ones = {torch.float32: 1.0, torch.float16: 0.999, torch.bfloat16: 0.98}
    for kind, total in ones.items():
        check_probabilities(torch.tensor([[0.25, total - 0.25], [1.0, 0.0]], dtype=kind))
    half = Shifted(lambda z: z.softmax(1)).half()
    asked = {"dataset": "toy:n=20", "device": "cpu", "output": "probabilities"}
    (record,) = bench.evaluate(half, **asked, attacks="null").records
    assert record.metrics.clean.mean.value == 1
