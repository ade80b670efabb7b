"""The defenses `dast`, `dfme`, `ait` and `dfard`."""

import json

import pytest
from bench_defenses.generators.methods import METHODS
from torch import nn

from bench.defense import DataAccess
from bench.models.classifier import Classifier
from bench.noise import BuildNoise, isolated
from bench.plugins.create import DEFENSES, create
from bench.spec import parse
from bench.testing import DefenseContract
from tests.defenses.generators.helpers import (
    SHAPE,
    THREAT,
    same,
)
from tests.toys import message


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))


TINY = "updates=10,batch=6,width=4,generator_warmup=1,steps=1"


def built(teacher, spec, seed=0):
    access = DataAccess(frozenset(), {}, "test", THREAT, SHAPE)
    return create(DEFENSES, parse(spec)).plugin.build(teacher, access, BuildNoise(seed))


@pytest.mark.parametrize("name", METHODS)
def test_the_defense_builds_once_and_says_what_it_is(teacher, cache, tmp_path, monkeypatch, name):
    student = built(teacher, f"{name}:{TINY}")
    monkeypatch.setattr(
        "bench_defenses.generators.trained_pair.train_pair",
        lambda *_, **__: pytest.fail("trained again"),
    )
    assert same(student, built(teacher, f"{name}:{TINY}")) and not same(student, teacher)
    (folder,) = (
        path
        for path in (tmp_path / "generator-students").iterdir()
        if not path.name.startswith(".")
    )
    assert {path.name for path in folder.iterdir()} == {
        "student.safetensors",
        "generator.safetensors",
        "training.json",
        "sheet.png",
        "identity.json",
    }
    rounds = json.loads((folder / "training.json").read_text())["rounds"]
    assert {"entropy", "largest_share", "distance", "terms", "loss"} <= rounds[-1].keys()
    fidelity, budget, answered, unseen = student.notes
    # Ten updates of six images of 60,000 of 200.
    assert budget.startswith("scale quick, 0.0005 % of the training at the full one, mode online")
    assert fidelity.startswith("fidelity approximate" if name == "dfard" else "fidelity adapted")
    assert "10 updates of 6" in budget and "60 adversarial images" in budget and "n/a" in budget
    assert "class entropy" in answered and "no test" in unseen


def test_quick_scales_have_the_same_budget():
    from bench_defenses.datafree.datafreeshield import SCALES

    access = DataAccess(frozenset(), {}, "test", THREAT, (1, 28, 28))
    quick, budgets = SCALES["quick"], set()
    for name in METHODS:
        plan = create(DEFENSES, parse(name)).plugin.plan(access)
        budgets.add(
            (plan.schedule.updates * plan.schedule.batch, plan.descent.steps, plan.schedule.batch)
        )
        assert plan.schedule.warmup == (100 if name in ("ait", "dfard") else 0)
    assert budgets == {(quick.images * quick.epochs, 10, quick.batch)} == {(20_000, 10, 50)}


def test_batchnorm_modes_and_schedules():
    access = DataAccess(frozenset(), {}, "test", THREAT, (1, 28, 28))
    plan = lambda text: create(DEFENSES, parse(text)).plugin.plan(access)  # noqa: E731
    modes = {name: plan(name).batchnorm_mode for name in METHODS}
    assert modes == {"dast": "batch", "dfme": "running", "ait": "running", "dfard": "running"}
    assert plan("dast:bn=frozen").batchnorm_mode == "running", (
        "one that takes no batch statistics shows none"
    )
    clean, robust = plan("dast:adversarial=off"), plan("dast")
    assert (clean.descent.optimiser, clean.schedule.milestones) == (
        "adam",
        (0.8,),
    ) and robust.descent.optimiser == "sgd"
    assert plan("dfme:adversarial=off").schedule.milestones == (0.1, 0.3, 0.5)
    published = plan("dast:adversarial=off,recipe=paper")
    assert (published.descent.rate, published.schedule.milestones, published.generator.decoder) == (
        1e-4,
        (),
        "dast_paper",
    )
    ait = plan("ait:mode=staged")
    assert (ait.schedule.warmup, ait.schedule.milestones, ait.descent.clip) == (100, (), 1.0)


def test_two_stages_end_in_the_ordinary_trainer(teacher, cache):
    student = built(teacher, f"dast:mode=staged,{TINY},images=12,epochs=2,objective=trades")
    assert any(
        "trained by trades" in note and "synthetic images: 12" in note for note in student.notes
    )
    assert "0 adversarial images" in student.notes[1]


def test_options_of_the_four(teacher, cache):
    notes = built(teacher, f"dfme:{TINY},gradient=zeroth_order:m=2").notes
    # A warm-up step and two iterations, B (m + 1) each, and ten updates.
    assert "zeroth-order gradient, m=2" in notes[0] and f"black box: {6 * (3 * 3 + 10)}" in notes[1]
    assert "virtual grid" in built(teacher, f"ait:{TINY},inundation=virtual:bits=3").notes[0]
    off = built(
        teacher, "dfme:adversarial=off,updates=10,batch=6,width=4,generator_warmup=0"
    ).notes[1]
    assert "fresh weights" in off and "0 adversarial" in off


BAD = {
    "dast:mode=staged,adversarial=off": "belongs to mode=online",
    "dast:images=5": "belongs to mode=staged",
    "dfme:adversarial=off,steps=3": "belongs to adversarial=on",
    "ait:mode=staged,clean_weight=1": "belongs to mode=online",
    "dfme:gradient=first_order": "zeroth_order:m=1",
    "dfme:gradient=zeroth_order:m=0": "m",
    "ait:inundation=virtual:bits=0": "bits",
    "ait:gradient=exact": "no parameter",
    "dfard:updates=401": "multiple of 5",
    "dast:batch=2": "give at least 3",
    "dast:decoder=dast_paper": "28 or 32",
    "dast:recipe=paper,width=8": "'dast': width belongs to decoder=shared: drop it",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_parameters_get_one_line(teacher, cache, spec):
    text = message(lambda: built(teacher, spec))
    assert BAD[spec] in text and "\n" not in text


def test_what_the_methods_ask_of_a_classifier(cache):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(768, 3)

        def forward(self, x):
            return self.linear(x.flatten(1))

    with isolated(0):
        plain = Classifier(Plain(), 3).eval()
    for name in ("ait", "dfard"):
        assert "BatchNorm" in message(lambda name=name: built(plain, f"{name}:{TINY}"))
    assert built(plain, f"dfme:{TINY}").notes


class TestDast(DefenseContract):
    defense = f"dast:{TINY}"


class TestDfard(DefenseContract):
    defense = f"dfard:{TINY}"
