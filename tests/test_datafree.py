import copy
import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import bench_defenses.datafree.images as images_module
import pytest
import safetensors.torch
import torch
from bench_defenses.datafree import synthesis
from bench_defenses.datafree.datafreeshield import SCALES, DataFreeShield, DataFreeShieldParams
from bench_defenses.datafree.images import summary, synthetic_images
from bench_defenses.datafree.sheet import contact_sheet
from bench_defenses.datafree.synthesis import (
    Coefficients,
    SynthesisRecipe,
    gaps,
    norm_layers,
    statistics_gap,
    synthesise,
    total_variation,
)
from torch import nn

from bench.contract.defense_case import DefenseCase
from bench.contract.toys import SmallNet, gratings
from bench.defense import DataAccess
from bench.engine.execution import Execution
from bench.engine.run import run_evaluation
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, isolated
from bench.plugins.create import DEFENSES, create
from bench.results.store import Store
from bench.spec import parse
from bench.testing import DefenseContract
from bench.threat import ThreatModel
from tests.toys import message

SHAPE = (3, 16, 16)
NOISE = Noise.of(0, Stream.BUILD, [0])


@pytest.fixture(scope="module")
def net():
    classifier = Classifier(
        SmallNet(gratings(60)), 3, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.1)
    ).eval()
    return classifier.requires_grad_(False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))


RECIPE = SynthesisRecipe(images=15, batch=5, iterations=12, every=4)


def make(net, number=0, noise=NOISE, **changes):
    return synthesise(net, SHAPE, replace(RECIPE, **changes), number, noise)


def same(a, b):
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.logits, b.logits)
        and dataclasses.replace(a, images=b.images, labels=b.labels, logits=b.logits) == b
        and torch.equal(a.labels, b.labels)
    )


# Losses


def test_total_variation_of_the_worked_example():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]])
    assert total_variation(image) == pytest.approx(math.sqrt(5) + math.sqrt(13) + 1 + 4)
    assert total_variation(image) == pytest.approx(10.8416, abs=1e-4)
    # The norm is over the whole batch, so it grows with its root.
    assert total_variation(image.repeat(4, 1, 1, 1)) == pytest.approx(2 * 10.8416, abs=1e-3)


def test_the_statistics_term_is_zero_on_the_images_that_the_running_statistics_come_from(net):
    with gaps(net) as terms:
        net(gratings(60).pixels(), NOISE)
    # SmallNet keeps the unbiased variance of its training images, seen without normalisation.
    assert len(terms) == 1
    layer, inputs = (
        nn.BatchNorm2d(2),
        torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0)),
    )
    variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    assert float(statistics_gap(inputs, mean, variance)) == pytest.approx(0, abs=1e-5)
    layer.running_mean, layer.running_var = mean, variance
    with gaps(layer.eval()) as terms:
        layer(inputs), layer(inputs)
    assert len(terms) == 2 and float(terms[0]) == pytest.approx(0, abs=1e-5)
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (9, 2)])
def test_the_statistics_term_and_its_gradient_are_those_of_autograd(shape):
    generator = torch.Generator().manual_seed(0)
    inputs = (3 + torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    mean, variance = torch.tensor([3.0, 2.0]).double(), torch.tensor([1.0, 4.0]).double()
    ours = statistics_gap(inputs, mean, variance)
    v, m = torch.var_mean(inputs, [0, *range(2, len(shape))], correction=0)
    plain = (v - variance).square().sum().sqrt() + (m - mean).square().sum().sqrt()
    assert float(ours.detach()) == pytest.approx(float(plain.detach()))
    assert torch.allclose(
        torch.autograd.grad(2 * ours, inputs)[0], 2 * torch.autograd.grad(plain, inputs)[0]
    )


def test_the_gradient_at_equal_statistics_is_zero_and_no_nan():
    inputs = torch.tensor([[1.0], [3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        statistics_gap(inputs, torch.tensor([2.0]), torch.tensor([1.0])), inputs
    )
    assert gradient.tolist() == [[0.0], [0.0]]


# Coefficients and targets


def coefficients(number=0, **changes):
    recipe = replace(RECIPE, images=5_000, **changes)
    noise = synthesis.numbered(NOISE, [number], "batch")
    return synthesis.draw_coefficients(recipe, noise, len(recipe.rows(number)))


def test_each_batch_draws_its_coefficients_once():
    drawn = [coefficients(k, coefficients="dss") for k in range(200)]
    cls, bn = torch.tensor([one.cls for one in drawn]), torch.tensor([one.bn for one in drawn])
    for factor in (cls, bn):
        assert 0 <= float(factor.min()) < 0.05 and 0.95 < float(factor.max()) < 1
    assert abs(float(torch.corrcoef(torch.stack([cls, bn]))[0, 1])) < 0.2, "two numbers, not one"
    assert len({one.tv for one in drawn}) == 1
    assert drawn[7] == coefficients(7, coefficients="dss")


def test_the_kinds_of_coefficients():
    tv = 2.5e-5 * math.sqrt(250 / 5)
    assert coefficients(coefficients="fixed") == Coefficients(1.0, 1.0, pytest.approx(tv))
    linear = [coefficients(k, coefficients="linear") for k in range(20)]
    assert all(one.cls + one.bn == pytest.approx(1) and 0 <= one.cls < 1 for one in linear)
    assert len({one.cls for one in linear}) == 20
    drawn = [coefficients(k, tv_random=True).tv / tv for k in range(100)]
    assert 0 <= min(drawn) < 0.1 and 0.9 < max(drawn) < 1
    assert coefficients(batch=250).tv == pytest.approx(2.5e-5)


def test_targets():
    def targets(kind, images=14):
        return synthesis.all_targets(
            replace(RECIPE, images=images, targets=kind), 3, NOISE
        ).tolist()

    assert targets("per_batch") == [0] * 5 + [1] * 5 + [2] * 4
    assert targets("balanced", 7) == [0, 1, 2, 0, 1, 2, 0]
    uniform = torch.bincount(torch.tensor(targets("uniform", 600)))
    assert len(uniform) == 3 and int(uniform.min()) > 150


# Batches


@pytest.mark.parametrize("space", ["normalised", "pixels", "sigmoid"])
def test_synthesis_lowers_the_loss_and_gives_images(net, space):
    begin, end = make(net, space=space, iterations=1), make(net, space=space, iterations=40)
    assert end.losses.total < 0.8 * begin.losses.total
    assert (
        end.images.shape == (5, *SHAPE)
        and float(end.images.min()) >= 0
        and float(end.images.max()) <= 1
    )
    assert end.clamped == 0 if space != "normalised" else 0 < begin.clamped < 1
    assert torch.equal(end.logits, net(end.images, NOISE)) and end.labels.tolist() == [0] * 5
    assert end.right_after == int((end.logits.argmax(1) == 0).sum())


def test_a_batch_depends_on_its_number_and_seed_alone(net):
    again = make(net, 1)
    make(net, 0)
    assert same(make(net, 1), again)
    assert not torch.equal(make(net, 2).images, again.images)
    assert not torch.equal(make(net, 1, Noise.of(1, Stream.BUILD, [0])).images, again.images)
    assert not torch.equal(make(net, 1, NOISE.at("other")).images, again.images)


def test_the_jitter_reaches_as_far_as_it_says():
    offsets = torch.tensor(synthesis.jitter_offsets(replace(RECIPE, iterations=500), NOISE, 0))
    assert offsets.min(0).values.tolist() == [-2, -2] and offsets.max(0).values.tolist() == [2, 2]
    assert int((offsets[:, 0] != offsets[:, 1]).sum()) > 300
    assert not torch.tensor(synthesis.jitter_offsets(replace(RECIPE, jitter=0), NOISE, 0)).any()
    assert synthesis.jitter_offsets(RECIPE, NOISE, 0) != synthesis.jitter_offsets(RECIPE, NOISE, 1)


class Scripted(synthesis.Inversion):
    """Its losses without jitter come from a list."""

    script = (5.0, 1.0, 3.0)

    def losses(self, pixels):
        self.iterates = [*getattr(self, "iterates", []), pixels.clone()]
        return synthesis.Losses(0, 0, 0, self.script[len(self.iterates) - 1])


def test_the_best_iterate_is_kept_as_it_was(net, monkeypatch):
    made = []

    def scripted(*arguments):
        made.append(Scripted(*arguments))
        return made[-1]

    monkeypatch.setattr(synthesis, "Inversion", scripted)
    best = make(net, space="pixels")
    assert best.iteration == 8 and best.losses.total == 1.0
    first = made[0].iterates
    assert torch.equal(best.images, first[1]), "not the live tensor, which went on"
    assert not torch.equal(first[1], first[2])
    last = make(net, space="pixels", keep="last")
    assert last.iteration == 12 and len(made[1].iterates) == 1
    assert torch.equal(last.images, first[2])


def test_the_last_step_may_be_kept_too(net):
    assert make(net, iterations=7, every=50).iteration == 7


def test_released_space_is_clamped_only_at_the_end(net):
    # Pixels are six times as far from the mean as under the usual deviation.
    wide = Classifier(net.network, 3, mean=(0.5,) * 3, std=(0.6, 1.2, 0.6)).eval()
    batch = make(wide.requires_grad_(False), space="normalised", iterations=1, keep="last")
    assert batch.clamped > 0.3 and set(batch.images.unique()[[0, -1]].tolist()) == {0.0, 1.0}


# The artifact


def test_images_are_made_once(net, cache, monkeypatch):
    first = synthetic_images(net, SHAPE, RECIPE, NOISE)
    monkeypatch.setattr(images_module, "synthesise", None)
    again = synthetic_images(net, SHAPE, RECIPE, NOISE)
    assert torch.equal(first.images, again.images) and torch.allclose(
        first.logits, net(first.images, NOISE), atol=1e-4
    )
    assert first.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "identity.json",
        "images.safetensors",
        "sheet.png",
        "synthesis.json",
    ]
    assert [one["images"] for one in first.about["batches"]] == [5, 5, 5]
    assert len({one["coefficients"]["cls"] for one in first.about["batches"]}) == 3
    assert first.about["accuracy"] == pytest.approx(
        float((first.logits.argmax(1) == first.labels).float().mean())
    )
    assert not any(layer._forward_pre_hooks for layer in norm_layers(net))


@pytest.mark.parametrize("change", [{"rate": 0.2}, {"space": "sigmoid"}, {"keep": "last"}])
def test_another_recipe_makes_other_images(net, cache, change):
    first = synthetic_images(net, SHAPE, replace(RECIPE, iterations=2), NOISE)
    other = synthetic_images(net, SHAPE, replace(RECIPE, iterations=2, **change), NOISE)
    assert other.folder != first.folder
    assert (
        synthetic_images(net, SHAPE, replace(RECIPE, iterations=2), NOISE.at("x")).folder
        != first.folder
    )


def test_an_interrupted_synthesis_goes_on_bit_for_bit(net, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "whole"))
    whole = synthetic_images(net, SHAPE, RECIPE, NOISE)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "halved"))
    asked = []

    def interrupted(*arguments):
        asked.append(arguments[3])
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return synthesise(*arguments)

    monkeypatch.setattr(images_module, "synthesise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_images(net, SHAPE, RECIPE, NOISE)
    (work,) = (tmp_path / "halved" / "synthetic-images").glob(".work-*")
    (work / "batch-00002.safetensors").write_bytes(b"cut off")
    resumed = synthetic_images(net, SHAPE, RECIPE, NOISE)
    assert asked == [0, 1, 1, 2]
    for name in ("images", "labels", "logits"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert resumed.about == whole.about


def test_two_workers_share_the_batches(net, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "alone"))
    alone = synthetic_images(net, SHAPE, RECIPE, NOISE)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "shared"))
    asked, both = [], threading.Barrier(2, timeout=30)

    def meeting(*arguments):
        asked.append((arguments[3], threading.get_ident()))
        if len(asked) <= 2:
            both.wait()
        return synthesise(*arguments)

    monkeypatch.setattr(images_module, "synthesise", meeting)
    with ThreadPoolExecutor(2) as pool:
        results = list(
            pool.map(
                lambda one: synthetic_images(one, SHAPE, RECIPE, NOISE), [net, copy.deepcopy(net)]
            )
        )
    assert (
        sorted(number for number, _ in asked) == [0, 1, 2]
        and len({worker for _, worker in asked}) == 2
    )
    for one in results:
        assert (
            one.folder == results[0].folder
            and torch.equal(one.images, alone.images)
            and one.about == alone.about
        )
    assert [path.name for path in results[0].folder.parent.iterdir()] == [results[0].folder.name], (
        "no claim and no work is left"
    )


def test_the_summary_weighs_batches_by_their_images():
    facts = [
        {"clamped": 0.5, "right_before": 4, "right_after": 2},
        {"clamped": 0.0, "right_before": 1, "right_after": 1},
    ]
    about = summary(replace(RECIPE, images=6, batch=4), facts)
    assert about["clamped_pixels"] == pytest.approx(0.5 * 4 / 6)
    assert about["accuracy_before_clamping"] == pytest.approx(5 / 6) and about[
        "accuracy"
    ] == pytest.approx(3 / 6)


class Plain(nn.Module):
    def __init__(self, track):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(3, track_running_stats=False) if track else nn.Identity(), nn.Flatten()
        )
        self.head = nn.Linear(768, 3)

    def forward(self, x):
        return self.head(self.layers(x))


def test_what_cannot_be_made_is_refused_in_one_line(net):
    def refused(classifier=net, **changes):
        return message(
            lambda: synthetic_images(classifier, SHAPE, replace(RECIPE, **changes), NOISE)
        )

    with isolated(0):
        without = [Plain(True), Plain(False)]
    for network in without:
        assert "no BatchNorm" in refused(Classifier(network, 3))
    assert "class 2 would get no image (10 images in batches of 5, targets=per_batch)" in refused(
        images=10
    )
    assert "class 1 would get no image" in refused(images=1, targets="balanced")
    noisy = Classifier(SmallNet(gratings(60)), 3).eval()
    noisy.stochastic = True
    assert "deterministic" in refused(noisy)


def test_images_of_another_shape_are_refused_in_one_line(net):
    text = message(lambda: synthetic_images(net, (1, 16, 16), RECIPE, NOISE))
    assert "shape (1, 16, 16) (RuntimeError: it normalises 3 channels)" in text
    plain = Classifier(net.network, 3)
    assert "does not run on images of shape (4, 16, 16)" in message(
        lambda: synthetic_images(plain, (4, 16, 16), RECIPE, NOISE)
    )


def test_the_contact_sheet_has_a_row_a_class():
    from io import BytesIO

    from PIL import Image

    images = torch.stack([torch.full((1, 28, 28), value) for value in (0.0, 0.25, 0.5)])
    picture = Image.open(BytesIO(contact_sheet(images, torch.tensor([4, 1, 4]))))
    assert picture.size == (12 * 58, 2 * 58) and picture.mode == "RGB"
    corners = [picture.getpixel(at)[0] for at in ((0, 0), (0, 58), (58, 58), (58, 0), (57, 0))]
    assert corners == [64, 0, 128, 255, 255]


# The defense


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
def test_the_learning_rate_spends_the_published_budget(scale):
    params = DataFreeShieldParams(scale=scale)
    batches = params.sizes.epochs * (params.sizes.images // params.sizes.batch)
    assert params.training_params().rate * batches == pytest.approx(6.0)


def test_the_record_says_how_it_was_built(cache, tmp_path):
    case = DefenseCase("datafreeshield:scale=smoke,images=30,iterations=2,batch=10")
    record = run_evaluation(case.evaluation, Store(tmp_path / "out"), Execution())
    finding = next(one for one in record.findings if one.name == "built")
    assert (
        finding.verdict == "note"
        and "trained on 30 images that the classifier made itself, 2 iterations" in finding.message
    )
