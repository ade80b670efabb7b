"""The script that makes the pictures of the pages runs, and what is committed is small."""

import importlib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES = ("purification", "synthesis", "masked", "curve", "naive-and-fitting")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["purification", "synthesis", "masked", "curve", "naive-and-fitting"]
)
def test_a_picture_is_made_again(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(ROOT / "docs")
    assert importlib.import_module("pictures").main([name, "--tiny", "--out", str(tmp_path)]) == 0
    assert Image.open(tmp_path / f"{name}.png").width > 100


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures and all(path.stat().st_size < 150_000 for path in pictures)
