"""The record of an evaluation."""

import pytest

from bench.results.store import read_record
from tests.helpers import run_toys


def test_record_round_trip_and_self_consistency(tmp_path):
    record = run_toys(tmp_path)[-1]
    path = tmp_path / f"{record.stem}.json"
    assert read_record(path) == record
    assert len(path.read_bytes()) < 60_000
    metrics = record.metrics
    right = [
        record.outcomes.predictions(w) == record.outcomes.true_labels()[:, None]
        for w in ("adversarial", "clean")
    ]
    correct = right[0] & right[1]
    assert metrics.adversarial.mean.value == pytest.approx(correct.mean())
    assert metrics.adversarial.all_draws.value == pytest.approx(correct.all(1).mean())
    assert metrics.replayed.mean.value <= metrics.clean.mean.value
    assert record.given["attack"] == ["steps"] and "sigma" not in record.given["defense"]
    assert record.scale == {"n": 150, "available": 150, "reduced": False}
    assert record.environment["versions"]["torch"]
