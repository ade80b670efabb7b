"""Parameters of adversarial training."""

import pytest
from bench_defenses.adversarial.params import TrainingParams
from bench_defenses.adversarial.public_at import PublicAtParams

from bench.threat import ThreatModel
from tests.defenses.adversarial.helpers import THREAT


def test_parameters():
    params = TrainingParams(scale="medium", epochs=3, eps="8/255")
    assert (params.training_schedule().epochs, params.training_schedule().batch) == (3, 100)
    assert params.ball(ThreatModel("l2", 1.0)) == ThreatModel("l2", 8 / 255)
    assert TrainingParams().ball(THREAT) == THREAT
    for wrong in ("0", "-1", "much", "1/0"):
        with pytest.raises(ValueError, match=r"write auto, or a positive number|not a fraction"):
            TrainingParams(eps=wrong)
    assert (
        PublicAtParams(images="mnist5k:n=5").images == "(mnist5k:n=5)"
        and PublicAtParams(images="(mnist5k)").images == "mnist5k"
    )
    assert PublicAtParams(images="mnist5k", objective="(trades:beta=6)").objective == "trades"
    assert (
        PublicAtParams(images="mnist5k", objective="(trades:beta=3.0)").objective
        == "(trades:beta=3)"
    )
