"""Measure adversarial robustness of defenses that other benchmarks refuse: randomised, purifying,
test-time, data-free.

    import bench
    print(bench.evaluate(model, dataset="mnist5k", attacks=["pgd", "pgd+replay"], eps=0.1))

Everything that a user or the author of a plugin needs is imported from here. Importing `bench` is
cheap; torch is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bench.errors import BadInput
from bench.plugins.create import ATTACKS, CLASSIFIERS, DATASETS, DEFENSES

if TYPE_CHECKING:
    from bench.api import (
        Report,
        eps_curve,
        evaluate,
        leaderboard,
        load_classifier,
        load_dataset,
        read_record,
        read_records,
        smallest_eps,
    )
    from bench.attack import Attack, AttackOutput
    from bench.data.dataset import Dataset, ImageSet
    from bench.defense import (
        Card,
        DataAccess,
        DefendedClassifier,
        Defense,
        Forward,
        GaussianVote,
        InputTransform,
        Need,
        Setting,
        Wrapper,
        straight_through,
    )
    from bench.engine.modules import ModuleDefense
    from bench.engine.request import Request
    from bench.losses import cross_entropy, dlr, kl, margin
    from bench.maximise import ascend
    from bench.models.classifier import Classifier
    from bench.noise import BuildNoise, Noise, Stream
    from bench.randomness import Query, RandomnessModel
    from bench.results.audit import AuditCheck, AuditReport
    from bench.results.estimate import Estimate
    from bench.results.findings import Finding
    from bench.results.record import Failure, Record
    from bench.spec import Number, Numbers, Params
    from bench.testing import AttackContract, DefenseContract
    from bench.threat import ThreatModel
    from bench.victim import Victim

__all__ = [
    "ATTACKS",
    "CLASSIFIERS",
    "DATASETS",
    "DEFENSES",
    "BadInput",
    "Attack",
    "AttackContract",
    "AttackOutput",
    "AuditCheck",
    "AuditReport",
    "BuildNoise",
    "Card",
    "Classifier",
    "DataAccess",
    "Dataset",
    "DefendedClassifier",
    "Defense",
    "DefenseContract",
    "Estimate",
    "Failure",
    "Finding",
    "Forward",
    "GaussianVote",
    "ImageSet",
    "InputTransform",
    "ModuleDefense",
    "Need",
    "Noise",
    "Number",
    "Numbers",
    "Params",
    "Query",
    "RandomnessModel",
    "Record",
    "Report",
    "Request",
    "Setting",
    "Stream",
    "ThreatModel",
    "Victim",
    "Wrapper",
    "ascend",
    "cross_entropy",
    "dlr",
    "eps_curve",
    "evaluate",
    "kl",
    "leaderboard",
    "load_classifier",
    "load_dataset",
    "margin",
    "read_record",
    "read_records",
    "smallest_eps",
    "straight_through",
]

_HOMES = {
    "bench.api": (
        "Report",
        "eps_curve",
        "evaluate",
        "leaderboard",
        "load_classifier",
        "load_dataset",
        "read_record",
        "read_records",
        "smallest_eps",
    ),
    "bench.attack": (
        "Attack",
        "AttackOutput",
    ),
    "bench.data.dataset": (
        "Dataset",
        "ImageSet",
    ),
    "bench.defense": (
        "Card",
        "DataAccess",
        "DefendedClassifier",
        "Defense",
        "Forward",
        "GaussianVote",
        "InputTransform",
        "Need",
        "Setting",
        "Wrapper",
        "straight_through",
    ),
    "bench.engine.modules": ("ModuleDefense",),
    "bench.engine.request": ("Request",),
    "bench.losses": (
        "cross_entropy",
        "dlr",
        "kl",
        "margin",
    ),
    "bench.maximise": ("ascend",),
    "bench.models.classifier": ("Classifier",),
    "bench.noise": (
        "BuildNoise",
        "Noise",
        "Stream",
    ),
    "bench.randomness": (
        "Query",
        "RandomnessModel",
    ),
    "bench.results.audit": (
        "AuditCheck",
        "AuditReport",
    ),
    "bench.results.estimate": ("Estimate",),
    "bench.results.findings": ("Finding",),
    "bench.results.record": (
        "Failure",
        "Record",
    ),
    "bench.spec": (
        "Number",
        "Numbers",
        "Params",
    ),
    "bench.testing": (
        "AttackContract",
        "DefenseContract",
    ),
    "bench.threat": ("ThreatModel",),
    "bench.victim": ("Victim",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
