"""What `bench doctor` finds."""

from __future__ import annotations

import os
from typing import Any

import torch

from bench.engine.environment import environment, package_version
from bench.errors import BadInput

_OPTIONAL = ("torchvision", "timm", "robustbench", "pyautoattack", "diffusers", "medmnist")


def examine(registries: dict[str, Any]) -> dict[str, Any]:
    """Versions, devices, optional packages and plugins that fail to load."""
    broken = {}
    for kind, registry in registries.items():
        for name in registry.names():
            try:
                registry.get(name)
            except BadInput as error:
                broken[f"{kind}/{name}"] = str(error)
            except Exception as error:
                broken[f"{kind}/{name}"] = f"{type(error).__name__}: {error}"
    return {
        **environment(torch.device("cpu")),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "optional": {name: package_version(name) for name in _OPTIONAL},
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
        "real data": os.environ.get("BENCH_REAL_DATA", "not set (tests on real data skip)"),
        "broken": broken,
    }


def render(facts: dict[str, Any]) -> str:
    """Plain text."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines.append(f"{key}:{' none' if not value else ''}")
            lines += [f"  {name}: {item}" for name, item in value.items()]
        else:
            lines.append(
                f"{key}: {', '.join(value) or 'none' if isinstance(value, list) else value}"
            )
    return "\n".join(lines)
