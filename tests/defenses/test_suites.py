"""Suites that need downloads: with what ships in their place, all their rows can be planned."""

import re
from urllib.error import URLError

import pytest

from tests.helpers import ROOT, call

SUITES = ROOT / "leaderboards" / "suites"
SHIPPED = {
    '"cifar10"': '"mnist5k"',
    r"pytorchcv:\w+_cifar10": "zoo:mnist5k-cnn",
    r"hf:google/[a-z0-9-]*": "zoo:mnist5k-ddpm",
    r"t=150,steps=150": "t=140,steps=140",
}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("cifar10-datafree", 0),
        ("cifar10-datafreeshield", 6),
        # Its chains are timed, which takes most of a minute.
        pytest.param("cifar10-purification", 27, marks=pytest.mark.slow),
        ("mnist5k-clean-term", 9),
    ],
)
def test_a_suite_can_be_planned(capsys, tmp_path, monkeypatch, name, rows):
    monkeypatch.chdir(tmp_path)
    text = (SUITES / f"{name}.toml").read_text()
    for there, here in SHIPPED.items():
        text = re.sub(there, here, text)
    (tmp_path / "suite.toml").write_text(text)
    code, out, err = call(capsys, "run", "--suite", "suite.toml", "--dry-run")
    assert code == 0, err
    if rows:
        assert f"{rows} evaluations, {rows} to run" in out + err


@pytest.mark.parametrize("name", ["cifar10-datafreeshield", "cifar10-purification"])
def test_without_the_files_it_says_what_is_missing(capsys, tmp_path, monkeypatch, name):
    def offline(*_, **__):
        raise URLError("offline")

    for module in ("bench.models.published", "bench.storage.download"):
        monkeypatch.setattr(f"{module}.urlopen", offline)
    suite = str(SUITES / f"{name}.toml")
    code, _, err = call(capsys, "run", "--suite", suite, "--data-root", str(tmp_path))
    assert code == 2 and "cifar-10-binary.tar.gz" in err.splitlines()[-1]
