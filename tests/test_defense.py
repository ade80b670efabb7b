"""The defended classifier: its forward passes for other gradients."""

import bench
from bench.models.classifier import Classifier
from tests import toy_model, toy_plugins


def test_bpda_reaches_through_a_wrapper_to_the_classifier():
    inner = toy_plugins.Rounded(Classifier(toy_model.make_model(), 3).eval())
    outer = toy_plugins.Jittered(inner, 0.0)
    outer.stochastic = False
    (report,) = [
        bench.evaluate(outer, dataset="toy:n=60", attacks=["bpda:steps=10"], eps=0.3, device="cpu")
    ]
    (naive,) = [
        bench.evaluate(
            outer,
            dataset="toy:n=60",
            attacks=["pgd:steps=10,random_start=false"],
            eps=0.3,
            device="cpu",
        )
    ]
    assert report.records[0].metrics.adversarial.mean.value == 0
    assert report.records[0].title["gradient"] == "bpda"
    assert "zero-gradient" not in {f.name for f in report.records[0].findings}
    assert {"zero-gradient"} <= {f.name for f in naive.records[0].findings}
