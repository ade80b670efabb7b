"""Controls: noise that is declared and averaged over."""

from __future__ import annotations

from bench.studies.cases import Case

CASES = tuple(
    Case(
        name, "honest-noise", "see the gallery", False, defense=spec, attack=attack, fitting=attack
    )
    for name, spec, attack in (
        ("gaussian-noise", "gaussian-noise:sigma=0.1", "pgd:randomness=(eot:k=4)"),
        ("crop-ensemble", "crop-ensemble:crops=5", "pgd"),
        ("random-resize", "random-resize", "pgd:randomness=(eot:k=4)"),
        ("sap", "sap", "pgd:randomness=(eot:k=4)"),
    )
)
