"""The names of `bench`."""

import subprocess
import sys

import pytest

import bench
from tests.helpers import ROOT


def test_the_public_names_are_there_and_cost_nothing_until_used():
    assert all(getattr(bench, name) is not None for name in bench.__all__)
    code = "import sys, bench\nassert not {'torch', 'pytest'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bench.no_such_name
