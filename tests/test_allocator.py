"""Memory that a process frees and takes again is not cleared by the kernel each time."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from bench.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def cycle():
    blocks = [bytearray(8 * 2**20) for _ in range(6)]
for _ in range(3):
    cycle()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    cycle()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def ran(code: str, *arguments: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such rule")
def test_blocks_that_come_again_cost_no_page_faults():
    freed, kept = int(ran(FAULTS, "freed")), int(ran(FAULTS, "kept"))
    assert freed > 10_000 and kept < freed / 20


def test_what_the_user_set_stays():
    code = "from bench.allocator import keep_freed_memory; print(keep_freed_memory())"
    assert ran(code, MALLOC_TRIM_THRESHOLD_="1000000") == "False"
    assert ran(code, GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000000") == "False"
    if platform.libc_ver()[0] == "glibc":
        assert ran(code, GLIBC_TUNABLES="glibc.pthread.rseq=0") == "True"
