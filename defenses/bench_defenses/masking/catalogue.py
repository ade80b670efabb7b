"""All cases, kind by kind."""

from __future__ import annotations

from bench.studies.cases import Case, Catalogue
from bench_defenses.masking import (
    architectures,
    batch,
    boundary,
    context,
    discrete,
    ensembles,
    grid,
    hidden_noise,
    honest_noise,
    inner_loop,
    inputs,
    nets,
    non_finite,
    outputs,
    partial,
    precision,
    published,
    robust_outputs,
    saturated,
    shattered,
    state,
    switch,
    wrong_gradient,
)

_KINDS = (
    batch,
    boundary,
    context,
    discrete,
    grid,
    hidden_noise,
    inner_loop,
    non_finite,
    partial,
    published,
    saturated,
    shattered,
    state,
    switch,
    wrong_gradient,
    architectures,
    ensembles,
    honest_noise,
    inputs,
    nets,
    outputs,
    precision,
    robust_outputs,
)


class Masking(Catalogue):
    """Modules that hide from an attack or from the judge, and honest ones beside them."""

    def cases(self) -> tuple[Case, ...]:
        return tuple(case for kind in _KINDS for case in kind.CASES)
