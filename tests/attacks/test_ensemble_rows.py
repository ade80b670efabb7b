"""Rows of the ensemble on a defense that draws random numbers, through the engine."""

import pytest

from bench.commands.verify import verify
from bench.engine.execution import Execution
from bench.engine.shards import shards_of
from tests.helpers import run_toys

N = 20
REPLAY = "ensemble+replay:fast"
EOT = pytest.param("ensemble:fast,randomness=(eot:k=2)", marks=pytest.mark.slow)


def row(folder, attack, batch_size=128, shards=None):
    return run_toys(folder, batch_size, shards, attacks=(attack,), dataset=f"toy:n={N}")[-1]


@pytest.mark.parametrize("attack", [REPLAY, EOT])
def test_verdicts_are_the_same_in_any_batch_and_any_order_of_shards(attack, tmp_path):
    """Mutation: a start drawn by its place in the batch."""
    whole = row(tmp_path / "whole", attack)
    backwards = list(reversed(shards_of(N, 7)))
    again = {
        1: row(tmp_path / "1", attack, 1),
        7: row(tmp_path / "7", attack, 7, backwards),
        64: row(tmp_path / "64", attack, 64),
    }
    assert 0 < whole.metrics.adversarial.mean.value < whole.metrics.clean.mean.value
    for record in again.values():
        assert record.outcomes == whole.outcomes
        assert record.stages == whole.stages
        assert record.id == whole.id


@pytest.mark.parametrize("attack", [REPLAY, EOT])
def test_verify_runs_it_again(attack, tmp_path):
    """Without the points, from the record alone."""
    record = row(tmp_path, attack)
    (tmp_path / record.points.file).unlink()
    checks = verify(tmp_path / f"{record.stem}.json", Execution())
    assert len(checks) > 3 and all(check.held for check in checks)
