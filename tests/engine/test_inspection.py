"""What is known of a defended classifier before it is attacked."""

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluation
from bench.results.store import Store
from tests.helpers import toy_request


def test_a_classifier_judged_on_its_training_images_is_flagged(tmp_path):
    evaluation = plan(toy_request(defenses=("undefended",)))[0]
    evaluation.setup.classifier.trained_on = ("toy/test",)
    record = run_evaluation(evaluation, Store(tmp_path), Execution())
    assert "trained-on-test" in [f.name for f in record.findings]
