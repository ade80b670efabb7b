"""Measure adversarial robustness of defenses that other benchmarks refuse: randomised, purifying, test-time, data-free.

    import bench
    print(bench.evaluate(model, dataset="mnist5k", attacks=["pgd", "pgd+replay"], eps=0.1))

Importing `bench` is cheap; torch is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.errors import BadInput
from bench.plugins import ATTACKS, CLASSIFIERS, DATASETS, DEFENSES

if TYPE_CHECKING:
    from bench.api import Report, evaluate

__all__ = ["ATTACKS", "CLASSIFIERS", "DATASETS", "DEFENSES", "BadInput", "Report", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "Report"):
        from bench import api

        return getattr(api, name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
