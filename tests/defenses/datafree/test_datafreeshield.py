"""The defense `datafreeshield`: its images, its recipes, its record."""

import json

import pytest
import safetensors.torch
import torch
from bench_defenses.datafree.datafreeshield import SCALES, DataFreeShield, DataFreeShieldParams
from bench_defenses.datafree.synthesis import (
    SynthesisRecipe,
)

from bench.contract.defense_case import DefenseCase
from bench.defense import DataAccess
from bench.engine.execution import Execution
from bench.engine.run import run_evaluation
from bench.plugins.create import DEFENSES, create
from bench.results.store import Store
from bench.spec import parse
from bench.testing import DefenseContract
from bench.threat import ThreatModel
from tests.defenses.datafree.helpers import NOISE, SHAPE


def built(spec, net):
    threat = ThreatModel("linf", 8 / 255)
    plugin = create(DEFENSES, parse(spec)).plugin
    return plugin.build(net, DataAccess(frozenset(plugin.needs), {}, spec, threat, SHAPE), NOISE)


class TestSmoke(DefenseContract):
    defense = "datafreeshield:scale=smoke,images=30,iterations=5,batch=10"


def test_it_needs_no_data():
    assert DataFreeShield.needs == frozenset()


def test_two_losses_share_one_set_of_images(net, cache, tmp_path):
    spec = "datafreeshield:scale=smoke,images=15,synthesis_batch=5,iterations=5,batch=5"
    first, second = built(spec, net), built(f"{spec},objective=trades", net)
    assert (
        len(list((tmp_path / "synthetic-images").iterdir())) == 1
        and len(list((tmp_path / "students").iterdir())) == 2
    )
    assert not torch.equal(first.network.head.weight, second.network.head.weight)
    assert "made itself" in first.notes[0] and "scale smoke" in first.notes[0]


def test_held_out_images_are_of_other_batches(net, cache, tmp_path):
    spec = "datafreeshield:scale=smoke,images=15,synthesis_batch=5,iterations=5,batch=5"
    built(f"{spec},checkpoint=best,targets=per_batch", net)
    sets = [
        safetensors.torch.load_file(path)
        for path in (tmp_path / "synthetic-images").glob("*/images.safetensors")
    ]
    first, second = (one["images"] for one in sets)
    assert len(first) == len(second) == 15 and not torch.equal(first, second)
    assert torch.cdist(first.flatten(1), second.flatten(1)).min() > 0


def test_the_images_do_not_depend_on_threat_or_training(net):
    base = DataFreeShieldParams(scale="smoke")
    other = DataFreeShieldParams(scale="smoke", objective="mart", epochs=9, eps="1/255", clip=0)
    assert other.synthesis_recipe() == base.synthesis_recipe()
    sigmoid = DataFreeShieldParams(scale="smoke", space="sigmoid")
    assert sigmoid.training_params() == base.training_params()


def test_recipes_are_the_published_ones():
    general = DataFreeShieldParams(scale="full", recipe="repo-general")
    assert general.synthesis_recipe() == SynthesisRecipe(
        60_000, 250, 2_000, space="normalised", keep="last"
    )
    schedule = general.training_params().training_schedule()
    assert (schedule.epochs, schedule.batch, schedule.group, schedule.threshold) == (
        200,
        200,
        20,
        0.5,
    )
    assert (schedule.rate, schedule.decay, schedule.schedule, schedule.warmup, schedule.clip) == (
        1e-4,
        1e-4,
        "const",
        0,
        0,
    )
    medical = DataFreeShieldParams(scale="full", recipe="repo-medical")
    assert medical.synthesis_recipe().targets == "uniform"
    assert (medical.sizes.epochs, medical.sizes.batch) == (100, 128)
    icml = DataFreeShieldParams(scale="full", recipe="icml")
    assert icml.synthesis_recipe().tv_random and icml.synthesis_recipe().batch == 200
    assert icml.sizes.epochs == 100
    honest = DataFreeShieldParams(scale="full")
    assert honest.synthesis_recipe().keep == "best"
    assert honest.training_params().rate == pytest.approx(1e-4)


def test_what_is_given_wins_over_recipe_and_scale():
    given = DataFreeShieldParams(
        scale="full",
        recipe="repo-general",
        images=20,
        rate=1.0,
        space="sigmoid",
        group=1,
        warmup=0,
    )
    recipe, training = given.synthesis_recipe(), given.training_params()
    assert (recipe.images, recipe.space) == (20, "sigmoid")
    assert (training.rate, training.group, training.warmup) == (1.0, 1, 0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("recipe", "product"),
    [("honest", 6.0), ("repo-general", 6.0), ("repo-medical", 4.68), ("icml", 3.0)],
)
def test_the_learning_rate_spends_the_published_budget(scale, recipe, product):
    params = DataFreeShieldParams(scale=scale, recipe=recipe)
    batches = params.sizes.epochs * (params.sizes.images // params.sizes.batch)
    assert params.training_params().rate * batches == pytest.approx(product)


@pytest.mark.parametrize("recipe", ["repo-general", "repo-medical", "icml"])
def test_the_published_scale_has_the_published_rate(recipe):
    assert DataFreeShieldParams(scale="full", recipe=recipe).training_params().rate == 1e-4


def test_a_scale_says_its_share_of_the_published_budget():
    meaning = DataFreeShieldParams.model_fields["scale"].description
    assert "gpu-half 25 % and 15 %" in meaning and "full 100 % and 100 %" in meaning
    half = DataFreeShieldParams(scale="gpu-half", epochs=120)
    assert half.sizes.shares_of(half.training_recipe.whole) == (0.25, 0.3)


@pytest.mark.parametrize(
    ("recipe", "step"),
    [
        ("honest,synthesis_rate=0.07", 0.07),
        ("honest,space=sigmoid", 0.1),
        ("repo-general", 0.1),
    ],
)
def test_the_step_on_images(net, cache, tmp_path, recipe, step):
    spec = "datafreeshield:scale=smoke,images=15,synthesis_batch=5,iterations=1,batch=5"
    student = built(f"{spec},recipe={recipe}", net)
    (about,) = (tmp_path / "synthetic-images").glob("*/synthesis.json")
    assert json.loads(about.read_text())["recipe"]["rate"] == step
    assert f"iterations of step {step:.3g} each" in student.notes[0]
    assert not (tmp_path / "synthesis-steps").exists()


def test_the_record_says_how_it_was_built(cache, tmp_path):
    case = DefenseCase("datafreeshield:scale=smoke,images=30,iterations=2,batch=10")
    record = run_evaluation(case.evaluation, Store(tmp_path / "out"), Execution())
    finding = next(one for one in record.findings if one.name == "built")
    assert (
        finding.verdict == "note"
        and "trained on 30 images that the classifier made itself, 2 iterations" in finding.message
    )
