"""The published gallery under plain PGD, with the attack that fits each; see its modules."""

from __future__ import annotations

from bench.studies.cases import Case

_FITTING = {
    "bit-depth": "bpda",
    "gradient-killer": "bpda",
    "jpeg": "bpda",
    "k-wta": "pgd:loss=margin,restarts=5",
    "one-hot": "bpda",
    "shattered-gradient": "bpda",
    "temperature": "pgd:loss=margin",
    "thermometer": "bpda",
    "tvm": "bpda:randomness=(eot:k=5)",
}

CASES = tuple(
    Case(name, "published", "see the gallery", True, defense=name, fitting=fitting)
    for name, fitting in _FITTING.items()
)
