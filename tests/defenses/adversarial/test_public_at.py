"""`public-at`: images of another data set."""

import json

import numpy as np

from bench.engine.execution import Execution
from bench.engine.run import run_evaluations
from bench.results.store import Store
from bench.testing import DefenseContract
from tests.defenses.adversarial.helpers import QUICK, evaluations


class TestPublicAt(DefenseContract):
    defense = f"public-at:images=(mnist5k:n=40),objective=(trades:beta=3),{QUICK}"


def test_a_row_of_public_at_says_what_it_used(tmp_path, setup):
    archive = tmp_path / "public.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
    np.savez(archive, x_test=pixels, y_test=np.arange(30) % 4)
    (evaluation,) = evaluations(setup, f"public-at:images=(npz:{archive},n=20),{QUICK}")
    (result,) = run_evaluations([evaluation], Store(tmp_path / "results"), Execution())
    record = result.record
    assert (
        record is not None
        and record.access == ["public images"]
        and f"npz:{archive},n=20" in record.title["defense"]
    )
    assert (
        set(record.identity["data"]) == {"public images"}
        and len(record.identity["data"]["public images"]) == 64
    )
    notes = [finding.message for finding in record.findings if finding.name == "built"]
    assert notes == ["trained by rslad inside linf 0.1; public images: 20, epochs: 1"]
    assert [f.message for f in record.findings if f.name == "public-images"] == [
        f"the public images are 20 of npz:{archive}"
    ]
    (fewer,) = evaluations(setup, f"public-at:images=(npz:{archive},n=19),{QUICK}")
    assert fewer.identity["data"] != evaluation.identity["data"]
    json.dumps(record.identity)
