"""The packages beside a user's own folders of the same names."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import attacks, defenses, tests
import bench

assert all(module.__file__.startswith({here!r}) for module in (attacks, defenses, tests))
report = bench.evaluate(defenses="bit-depth", attacks="pgd:steps=1", n=2, device="cpu")
assert len(report.records) == 2
"""


@pytest.fixture
def research(tmp_path: Path) -> Path:
    """A research repository with folders `attacks/`, `defenses/` and `tests/` of its own."""
    for name in ("attacks", "defenses", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "script.py").write_text(SCRIPT.format(here=str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "script.py"],
        [sys.executable, "-m", "bench", "info", "bpda"],
        [str(Path(sys.executable).parent / "bench"), "doctor"],
    ],
    ids=["script", "module", "command"],
)
def test_a_users_folders_of_the_same_names_do_no_harm(research, command):
    done = subprocess.run(command, cwd=research, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be imported" not in done.stdout, done.stdout
