"""What `bench info` tells of an attack's cost, against what it spends."""

import numpy as np
import pytest
import torch

from bench.attack import Attack, Passes
from bench.commands.info import describe
from bench.errors import BadInput
from bench.plugins.create import ATTACKS, create_attack
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import Unbreakable, classifier

# Other tests register toys in this process.
INSTALLED = [one.name for one in ATTACKS.entries() if one.provider != "this process"]
# Of the attacks that must be given something: what.
REQUIRED = {"views": "views:logits"}
SMALLER = {
    "autoattack": "apgd-t:steps=5",
    "ensemble": "ensemble:fast",
    "square": "square:queries=50",
}
"""Cheaper budgets of the same formula."""

MORE = (
    "pgd:steps=5,restarts=3",
    "pgd:steps=3,targeted=each",
    "pgd:steps=3,targeted=least-likely,restarts=2",
    "kl:steps=3,to=sum,restarts=2",
    "kl:steps=3,to=self,direction=forward",
    "latent:steps=3,optimiser=pgd,random_start=true,restarts=2",
    "apgd-ce:steps=5,restarts=2",
    "apgd-ce:steps=5,targeted=each,restarts=2",
    "apgd-dlr:steps=5,targeted=1",
    "fab-t:steps=5,targets=2",
    "square:queries=20,restarts=2",
)
EXACT = ("pgd", "kl", "apgd", "fab", "square", "noise", "null")
"""Whose told passes are spent to the last; the others may find nothing more to do."""


def spent(spec, classes=4):
    attack = create_attack(spec).attack.plugin
    # The last one is wrong and stands for the images of other classes.
    images = torch.tensor([0.3, 0.5, 0.7]).reshape(3, 1, 1, 1).expand(3, 1, 6, 6).contiguous()
    labels = torch.tensor([0, 0, 1])
    model = classifier(Unbreakable(classes), classes)
    with frozen(model):
        victim = Victim(model, np.arange(3), base=lambda: model)
        attack.run(victim, images, labels, ThreatModel("linf", 0.1))
    told = attack.passes(classes)
    assert told is not None
    return told, Passes(int(victim.forwards[:2].max()), int(victim.backwards[:2].max()))


@pytest.mark.parametrize("name", INSTALLED)
def test_info_tells_what_a_survivor_costs(name):
    """Every registered attack: by its parameters, or its note says on what it depends."""
    described = describe(REQUIRED.get(name, name), {"attacks": ATTACKS})
    told = described.get("passes of a survivor", "")
    assert told.startswith("at most ") or "passes" in described["note"]


@pytest.mark.parametrize("name", [*INSTALLED, *MORE])
def test_nothing_costs_more_than_was_told(name):
    """On images that nothing breaks. Mutations: a restart, a target or a look left out."""
    spec = SMALLER.get(name, REQUIRED.get(name, name))
    try:
        attack = create_attack(spec).attack.plugin
    except BadInput:
        pytest.skip("it must be given what only a user has")
    if attack.passes() is None:
        pytest.skip("its note says on what its cost depends")
    told, real = spent(spec)
    assert real.forward <= told.forward and real.backward <= told.backward
    if name.startswith(EXACT):
        assert real == told


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["autoattack", "autoattack:version=plus", "autoattack:version=rand"]
)
def test_autoattack_costs_what_was_told(spec):
    told, real = spent(spec)
    assert real == told


def test_parameters_change_what_is_told():
    def told(name):
        return describe(name, {"attacks": ATTACKS}).get("passes of a survivor")

    assert told("pgd:steps=5,restarts=2").startswith("at most 22 = 12 forward + 10 backward")
    assert told("fgsm").startswith("at most 3 =")
    assert told("bpda+eot:steps=2").startswith("at most 5 =")
    assert told("ensemble:strong") != told("ensemble")
    with pytest.raises(BadInput, match="stepz"):
        told("pgd:stepz=5")


class Silent(Attack):
    def run(self, victim, images, labels, threat):
        return images


def test_an_attack_that_says_nothing_is_described():
    assert Silent().passes() is None
    assert Passes(1, 2) + Passes(3, 4) * 2 == Passes(7, 10)
