import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tests share the cores already; those of several processes ask for them.
os.environ["BENCH_WORKERS"] = "1"

from pathlib import Path

import pytest
import torch

# rich draws from Python's global generator when it is imported: before the first test, not within
# one.
import bench.engine.progress  # noqa: F401
from bench.engine import cost
from bench.noise import generators

torch.set_num_threads(1)
# Without AVX-512, MKL multiplies otherwise by the number of rows, in the last digits; here answers
# are compared between batches, bit by bit.
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
# What a dry run tells of seconds need not be right to a tenth here.
cost.CALIBRATION_SECONDS, cost._LEAST_SECONDS, cost._MOST_SECONDS = 0.1, 0.05, 5.0


@pytest.fixture(autouse=True)
def global_generators_stay_as_found(request):
    """Every test doubles as a check that no public call moves the global generators."""
    # rich, which draws the command's progress bar, numbers its styles with Python's global
    # generator.
    commands = ("test_cli", "tests/commands/", "test_purification_runs")
    kept = slice(0, 2) if any(name in request.node.nodeid for name in commands) else slice(None)
    before = generators()
    yield
    assert generators()[kept] == before[kept], "a global generator was moved"


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("BENCH_REAL_DATA")
    if not folder:
        pytest.skip("BENCH_REAL_DATA is not set: it names a folder with data/ and models/")
    return Path(folder)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Artifacts of tests go nowhere else; processes that tests start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
