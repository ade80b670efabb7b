"""What a number was made with: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

DISTRIBUTION = "adversarial-bench"
_LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "pydantic",
    "safetensors",
    "mlxtend",
    "pillow",
    "pyautoattack",
    "diffusers",
)
_PACKAGES = (DISTRIBUTION, *_LIBRARIES)


def package_version(name: str) -> str:
    """Installed version of a distribution, or `absent`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


@cache
def commit() -> tuple[str, bool | None]:
    """Commit of the source tree this code runs from and whether it is dirty; ("", None) outside a
    checkout.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head, bool(_git(root, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return "", None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def environment(device: torch.device) -> dict[str, object]:
    """Versions, commit, dirty flag and device, for a record."""
    head, dirty = commit()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in _PACKAGES},
        },
        "commit": head,
        "dirty": dirty,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "platform": f"{sys.platform} {platform.machine()}",
    }


def device_name(device: torch.device) -> str:
    """`cpu` with its model where it can be read, or the GPU's name."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor()
    return f"cpu {model} ({os.cpu_count()} cores)".replace("  ", " ")
