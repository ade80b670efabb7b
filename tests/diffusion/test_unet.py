"""The U-Net of diffusers."""

import sys

from tests.diffusion.helpers import loaded, written
from tests.toys import message


def test_without_diffusers(network, tmp_path, monkeypatch):
    folder = written(tmp_path / "m", network)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'adversarial-bench[diffusion]'" in message(lambda: loaded(folder))
