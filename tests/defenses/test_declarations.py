"""What defenses declare."""

import numpy as np
import pytest
import torch

from bench.defense import AccessDenied, DataAccess, Need
from bench.errors import BadInput
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from tests.defenses.helpers import SHAPE, THREAT, around_sum, noise


def test_data_access_is_enforced():
    asked = []
    sources = {Need.TRAINING_DATA: lambda: asked.append(1) or (torch.zeros(1), torch.zeros(1))}
    closed = DataAccess(frozenset(), sources, "thief", THREAT, SHAPE)
    with pytest.raises(AccessDenied, match="without declaring"):
        closed.training_data()
    assert not asked
    opened = DataAccess(frozenset({Need.TRAINING_DATA}), sources, "honest", THREAT, SHAPE)
    opened.training_data()
    assert asked == [1]
    with pytest.raises(BadInput, match="does not offer"):
        DataAccess(frozenset({Need.TRAINING_DATA}), {}, "poor", THREAT, SHAPE).training_data()


def test_declared_properties_agree_with_what_is_built():
    # Those of the gallery need a network with activations, those that purify a generator, those
    # that train images or BatchNorm: tests of their own folders build them.
    elsewhere = {"gallery", "purification", "adversarial", "datafree", "generators"}
    for name in DEFENSES.names():
        plugin = DEFENSES.get(name)
        if name.startswith("toy-") or plugin.needs or elsewhere & set(plugin.__module__.split(".")):
            continue
        named = create(DEFENSES, parse(name))
        built = around_sum(name)
        assert built.stochastic == named.plugin.stochastic
        assert tuple(built.gradients) == tuple(named.plugin.gradients)
        for gradient in built.gradients:
            for view in built.views():
                assert (
                    len(
                        built.forward_pass(gradient, view)(
                            torch.full((2, 1, 28, 28), 0.5), noise(2)
                        )
                    )
                    == 2
                )
        assert np.isfinite(built(torch.full((2, 1, 28, 28), 0.5), noise(2)).detach().numpy()).all()
