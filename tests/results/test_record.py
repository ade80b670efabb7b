"""The record of an evaluation."""

import pytest

from bench.results.record import without_folders
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


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("imagefolder:/data/sample,size=224", "imagefolder:sample,size=224"),
        ("imagefolder:data/x/sample,size=224", "imagefolder:sample,size=224"),
        ("imagefolder:/data/sample/", "imagefolder:sample"),
        ("npz:/data/x.npz,split=test", "npz:x.npz,split=test"),
        ("timm:net,weights=/a/b.pth,mean=0.5", "timm:net,weights=b.pth,mean=0.5"),
        ("at:images=(imagefolder:/a/b,size=3)", "at:images=(imagefolder:b,size=3)"),
        ("hf:organisation/model", "hf:organisation/model"),
        ("pgd:step=2/255", "pgd:step=2/255"),
    ],
)
def test_headings_and_names_have_no_folders(spec, short):
    assert without_folders(spec) == short
