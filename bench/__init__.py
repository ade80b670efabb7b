"""Measure adversarial robustness of defenses that other benchmarks refuse: randomised, purifying,
test-time, data-free.

    import bench
    print(bench.evaluate(model, dataset="mnist5k", attacks=["pgd", "pgd+replay"], eps=0.1))

Importing `bench` is cheap; torch is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bench.errors import BadInput
from bench.plugins.create import ATTACKS, CLASSIFIERS, DATASETS, DEFENSES

if TYPE_CHECKING:
    from bench.api import Report, evaluate
    from bench.attack import Attack
    from bench.defense import (
        Card,
        DataAccess,
        DefendedClassifier,
        Defense,
        InputTransform,
        Need,
        Wrapper,
        straight_through,
    )
    from bench.maximise import ascend
    from bench.noise import Noise, Stream
    from bench.randomness import Query
    from bench.spec import Number, Numbers, Params
    from bench.threat import ThreatModel
    from bench.victim import Victim


__all__ = [
    "ATTACKS",
    "CLASSIFIERS",
    "DATASETS",
    "DEFENSES",
    "BadInput",
    "Report",
    "evaluate",
    # What the author of a plugin needs.
    "Attack",
    "Card",
    "DataAccess",
    "DefendedClassifier",
    "Defense",
    "InputTransform",
    "Need",
    "Noise",
    "Number",
    "Numbers",
    "Params",
    "Query",
    "Stream",
    "ThreatModel",
    "Victim",
    "Wrapper",
    "ascend",
    "straight_through",
]


_HOMES = {
    "bench.api": ("Report", "evaluate"),
    "bench.attack": ("Attack",),
    "bench.defense": (
        "Card",
        "DataAccess",
        "DefendedClassifier",
        "Defense",
        "InputTransform",
        "Need",
        "Wrapper",
        "straight_through",
    ),
    "bench.maximise": ("ascend",),
    "bench.noise": ("Noise", "Query", "Stream"),
    "bench.spec": ("Number", "Numbers", "Params"),
    "bench.threat": ("ThreatModel",),
    "bench.victim": ("Victim",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
