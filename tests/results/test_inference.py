"""RobustBench's three conditions."""

from bench.results.inference import Inference


def test_each_condition_that_a_defense_fails_is_named():
    fails = {"zero_gradient": "zero gradient", "randomised": "random"}
    fails["optimises"] = "optimisation loop"
    for field, name in fails.items():
        conditions = {other: other == field for other in fails}
        assert Inference(passes=1, **conditions).obstacles() == [name]
    assert Inference(passes=1, **dict.fromkeys(fails, False)).obstacles() == []
