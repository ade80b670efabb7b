"""The Python interface."""

import numpy as np
import pytest
import torch
from torch import nn

import bench
from bench.commands.verify import verify
from bench.engine.execution import Execution
from bench.noise import generators
from tests import toy_model, toy_plugins
from tests.helpers import MODEL


class Dropout(nn.Module):
    """An opaque stochastic model: dropout in its forward pass, drawn from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy_model.make_model()

    def forward(self, images):
        return self.inner(nn.functional.dropout(images, 0.3, training=True))


def test_evaluate_controls_an_opaque_stochastic_model():
    before = generators()
    attacks = ["pgd:steps=3", "pgd+replay:steps=3"]
    reports = [
        bench.evaluate(
            Dropout(), dataset="toy:n=30", attacks=attacks, device="cpu", batch_size=size, seeds=[5]
        )
        for size in (7, 64)
    ]
    assert generators() == before
    first, second = (report.records for report in reports)
    assert [r.replay_level for r in first] == ["process", "process"]
    assert all(r.stochastic and len(r.outcomes.adversarial) == 20 for r in first)
    assert [r.outcomes for r in first] == [r.outcomes for r in second]
    assert first[1].outcomes.replayed
    assert len(set(first[0].outcomes.clean)) > 10, "draws differ"
    assert "replayed" in str(reports[0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"eps": "1/0"},
        {"eps": True},
        {"seeds": 5.5},
        {"seeds": [-1]},
        {"seeds": [2**70]},
        {"seeds": []},
        {"n": 2.5},
        {"attacks": [None]},
        {"attacks": []},
        {"batch_size": "x"},
        {"output": "x"},
        {"gradient": ""},
        {"device": "tpu"},
    ],
)
def test_evaluate_refuses_what_the_command_refuses(arguments):
    with pytest.raises(bench.BadInput) as error:
        bench.evaluate(
            toy_model.make_model(),
            **{"dataset": "toy:n=5", "attacks": "null", "device": "cpu", **arguments},
        )
    assert "\n" not in str(error.value)


def test_evaluate_wants_a_module():
    with pytest.raises(bench.BadInput, match="give the module itself"):
        bench.evaluate(toy_model.make_model, dataset="toy:n=5")


def arrays(n: int = 12):
    test = toy_plugins.Toy(n=n).test()
    return test.images.numpy(), test.labels.numpy()


def test_arrays_are_a_data_set(tmp_path):
    images, labels = arrays()
    options = {"eps": "1/20", "attacks": "pgd:steps=2", "device": "cpu", "out": tmp_path}
    (first,) = bench.evaluate(toy_model.make_model(), dataset=(images, labels), **options).records
    assert first.title["dataset"] == "arrays" and first.scale["n"] == 12
    tensors = (torch.tensor(images).permute(0, 2, 3, 1), torch.tensor(labels)[:, None])
    (again,) = bench.evaluate(toy_model.make_model(), dataset=tensors, **options).records
    assert again.id == first.id, "the hash of the images is the identity"
    images[0] = 0.5
    (other,) = bench.evaluate(toy_model.make_model(), dataset=(images, labels), **options).records
    assert other.id != first.id
    with pytest.raises(bench.BadInput, match="from Python"):
        verify(next(tmp_path.glob(f"*{first.id}.json")), Execution())


def test_arrays_may_lack_a_class():
    images, labels = arrays()
    few = (images[labels < 2], labels[labels < 2])
    options = {"eps": 0.05, "attacks": "null", "device": "cpu"}
    with pytest.raises(bench.BadInput):
        bench.evaluate(toy_model.make_model(), dataset=few, **options)
    report = bench.evaluate(toy_model.make_model(), dataset=few, classes=3, **options)
    assert report.records[0].outcomes.num_classes == 3


def test_pixels_clipped_by_rounding_are_told():
    images, labels = arrays()
    images[0, 0, 0, 0] = 1.0000002
    with pytest.warns(UserWarning, match="by rounding"):
        (record,) = bench.evaluate(
            toy_model.make_model(), dataset=(images, labels), eps=0.05, attacks="null", device="cpu"
        ).records
    assert any(finding.name == "images" for finding in record.findings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": arrays()[0]}, "arrays (images, labels)"),
        ({"dataset": (1, 2, 3)}, "arrays (images, labels)"),
        ({"dataset": arrays(), "eps": None}, "eps='8/255'"),
        ({"dataset": (arrays()[0], torch.eye(3)[arrays()[1]])}, "it is one-hot"),
        ({"dataset": "toy:n=5", "classes": 3}, "npz:FILE,classes=K"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_short_line(change, words):
    with pytest.raises(bench.BadInput) as error:
        bench.evaluate(toy_model.make_model(), **{"eps": 0.05, "attacks": "null", **change})
    assert words in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 250, "no array is dumped"


def test_a_report_is_short_and_a_frame(monkeypatch):
    report = bench.evaluate(
        toy_model.make_model(),
        dataset="toy:n=12",
        attacks=["null", "pgd+replay:steps=2"],
        defenses=["toy-jitter"],
        device="cpu",
    )
    lines = repr(report).splitlines()
    assert lines[0] == "<Report: 4 rows>" and len(lines) == 5
    assert all(len(line) < 200 for line in lines)
    assert report._repr_html_().count("<tr>") == 1 + len(report.records)
    assert [row.defense for row in report.board().rows]
    assert report.plot()._repr_png_().startswith(b"\x89PNG")
    frame = report.frame()
    assert frame.defense.tolist() == [r.title["defense"] for r in report.records]
    row = frame[(frame.defense == "toy-jitter") & (frame.randomness == "replay")].iloc[0]
    record = next(record for record in report.records if record.id == row.id)
    assert row.robust == record.metrics.adversarial.mean.value
    assert row.robust_low <= row.robust <= row.robust_high and 0 <= row.replayed <= 1
    base = next(one for one in report.records if one.id == record.base)
    assert row.base == base.metrics.adversarial.mean.value and row.n == 12
    assert frame.replayed.isna().sum() == 3


def test_a_record_of_a_class_from_python_says_so_when_it_is_verified(tmp_path):
    class Plain(bench.Defense):
        """Nothing."""

        def build(self, classifier, access, noise):
            return classifier

    options = {"dataset": "toy:n=6", "attacks": "null", "device": "cpu", "out": tmp_path}
    bench.evaluate(classifier=MODEL, defenses=[Plain], **options)
    path = next(tmp_path.glob("*Plain*.json"))
    with pytest.raises(bench.BadInput, match="from Python"):
        verify(path, Execution())


def test_data_and_classifiers_are_loaded_by_their_specs(tmp_path):
    """An npz file has no threat model of its own, and none is needed to load a classifier."""
    images = np.zeros((20, 28, 28), np.uint8)
    np.savez(tmp_path / "own.npz", x_test=images, y_test=np.arange(20) % 10)
    spec = f"npz:{tmp_path / 'own.npz'}"
    assert len(bench.load_dataset(spec).test()) == 20
    classifier = bench.load_classifier("zoo:mnist5k-cnn", spec)
    assert classifier.num_classes == 10
    assert bench.load_classifier().num_classes == 10


def test_evaluate_audits():
    report = bench.evaluate(
        toy_model.make_model(),
        dataset="toy:n=20",
        attacks="pgd:steps=5",
        eps=0.01,
        audit="quick",
    )
    assert [record.audit.verdict for record in report.records] == ["no-evidence-found"]
    with pytest.raises(bench.BadInput, match="unknown profile"):
        bench.evaluate(dataset="toy", audit="deep")
