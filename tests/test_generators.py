"""Data-free baselines: the terms by hand, who moves when and who does not, exact counters, the
defenses.
"""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_defenses.adversarial.objectives import (
    Ait,
    Dast,
    Dfard,
    Dfme,
    Rslad,
    StudentOutputs,
    divergence,
    l1_centred,
)
from bench_defenses.adversarial.training_step import Descent, logits_of
from bench_defenses.datafree.synthesis import norm_layers
from bench_defenses.generators import loop
from bench_defenses.generators.adaptation import BalancedTerms, LabelWeight, NoAdaptation
from bench_defenses.generators.inundation import MOST, Inundation, bracketed, lengthen, weights
from bench_defenses.generators.loop import PairSchedule, Plan, distance, spread, train_pair
from bench_defenses.generators.methods import METHODS
from bench_defenses.generators.nets import GeneratorSpec, pixels, squashed
from bench_defenses.generators.terms import (
    TERMS,
    GeneratedBatch,
    TermInputs,
    ZerothOrder,
    measure_of,
    squared_gap,
)
from torch import nn

from bench.contract.toys import CLASSES, SmallNet, gratings
from bench.defense import DataAccess
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, generators, isolated
from bench.plugins.create import DEFENSES, create
from bench.results.collapse import collapsed
from bench.spec import parse
from bench.testing import DefenseContract
from bench.threat import ThreatModel
from tests.toys import message

SHAPE = (3, 16, 16)
THREAT = ThreatModel("linf", 0.05)
SMALL = {"size": 8, "width": 8}


def noise(seed=0, rows=1):
    return Noise.of(seed, Stream.BUILD, range(rows))


@pytest.fixture(scope="module")
def teacher():
    net = Classifier(SmallNet(gratings(96, first=1000)), CLASSES, mean=(0.5,) * 3, std=(0.1,) * 3)
    return net.eval().requires_grad_(False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))


def plan_of(name, *, adversarial=None, steps=2, descent=None, schedule=None, **changes):
    method = METHODS[name]
    weights = {} if adversarial is None else {"adversarial": adversarial, "clean": 1.0}
    plan = Plan(
        generator=replace(method.generator, **SMALL),
        terms=method.terms,
        objective=method.objective(**weights),
        descent=replace(descent or Descent(rate=0.01), steps=steps),
        schedule=replace(
            PairSchedule(10, 6, method.ratio, method.shared, warmup=2, momentum=method.momentum),
            **(schedule or {}),
        ),
        threat=THREAT,
        shape=SHAPE,
        batchnorm_mode=method.batchnorm_mode,
    )
    return replace(plan, **changes)


def train(teacher, name, plan=None, student=None, seed=0, **options):
    student = student or copy.deepcopy(teacher)
    plan = plan or plan_of(name)
    return train_pair(
        student, teacher, plan, METHODS[name].adaptation(plan.terms), noise(seed), **options
    )


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Measures and terms by hand -----------------------------------------------------------------------

TEACHER = torch.tensor([[3.0, -1.0, 0.0], [-0.5, 0.8, 0.6]], dtype=torch.float64)
STUDENT = torch.tensor([[2.0, 0.5, -1.0], [0.1, 1.2, 0.3]], dtype=torch.float64)
OTHER = torch.tensor([[0.4, 0.9, -0.2], [1.5, 0.2, -0.7]], dtype=torch.float64)


def p(logits, tau=1.0):
    e = np.exp(logits.numpy() / tau)
    return e / e.sum(1, keepdims=True)


def kl_by_hand(tau):
    return (p(TEACHER, tau) * np.log(p(TEACHER, tau) / p(STUDENT, tau))).sum(1)


def test_centred_logarithms_of_probabilities_are_centred_logits():
    logs = TEACHER.softmax(1).log()
    centred = TEACHER - TEACHER.mean(1, keepdim=True)
    assert torch.allclose(logs - logs.mean(1, keepdim=True), centred, atol=1e-12)
    assert torch.equal(l1_centred(TEACHER, centred), torch.zeros(2))
    assert torch.allclose(l1_centred(TEACHER + 7, STUDENT), l1_centred(TEACHER, STUDENT)), (
        "the teacher's mean is not known"
    )
    assert not torch.allclose(l1_centred(TEACHER, STUDENT + 7), l1_centred(TEACHER, STUDENT)), (
        "the student is not centred"
    )


MATCHES = {
    "dast": (
        Dast(beta=0.3),
        lambda: (
            -np.log(p(STUDENT)[[0, 1], [0, 1]]).mean()
            + 0.3 * ((p(STUDENT) - p(TEACHER)) ** 2).mean()
        ),
    ),
    "dfme": (
        Dfme(),
        lambda: (STUDENT - (TEACHER - TEACHER.mean(1, keepdim=True))).abs().mean().item(),
    ),
    "ait": (Ait(temperature=3), lambda: 9 * kl_by_hand(3).sum() / 6),
    "dfard": (Dfard(temperature=3), lambda: 9 * kl_by_hand(3).mean()),
}


@pytest.mark.parametrize("name", MATCHES)
def test_measures_by_hand(name):
    objective, by_hand = MATCHES[name]
    assert objective.match(TEACHER, STUDENT).item() == pytest.approx(by_hand(), rel=1e-9)
    seen = StudentOutputs(STUDENT, OTHER, TEACHER, torch.zeros(2))
    both = objective.model_copy(update={"adversarial": 2.0, "clean": 5.0}).loss(seen)
    assert both.item() == pytest.approx(2 * objective.match(TEACHER, OTHER).item() + 5 * by_hand())
    clean = objective.model_copy(update={"adversarial": 0.0, "clean": 1.0})
    assert (
        clean.clean_pass
        and not clean.attacked_pass
        and clean.loss(seen).item() == pytest.approx(by_hand())
    )
    with pytest.raises(ValueError, match="nothing is learnt"):
        type(objective)(adversarial=0, clean=0)


def test_dfard_at_temperature_one_is_rslad():
    seen = StudentOutputs(STUDENT, OTHER, TEACHER, torch.zeros(2))
    assert Dfard().loss(seen) == Rslad().loss(seen)
    assert Dfard(temperature=3).loss(seen).item() == pytest.approx(
        (5 / 6 * divergence(TEACHER, OTHER, 3) + 1 / 6 * divergence(TEACHER, STUDENT, 3)).item()
    )


def test_gdfqs_measure_of_a_layer_by_hand():
    inputs = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]])
    mean, variance = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 8 / 3])
    assert squared_gap(inputs, mean, variance).item() == pytest.approx(
        (1**2 + 0) / 2 + ((8 / 3 - 1) ** 2 + 0) / 2, rel=1e-5
    )


def term_inputs(teacher, student, name, batch=None, **changes):
    method = METHODS[name]
    if batch is None:
        rows = noise(3, 6)
        generator = replace(method.generator, **SMALL).build(
            SHAPE, CLASSES, 1, torch.tensor([0.5]), torch.tensor([0.1])
        )
        spec = replace(method.generator, **SMALL)
        labels = spec.classes(rows, CLASSES)
        logits = generator(spec.draw(rows), labels).detach().requires_grad_(True)
        batch = GeneratedBatch(logits, labels, rows)
    return TermInputs(
        batch, teacher, student, method.objective(), measure_of(method.terms), **changes
    )


def other_student(teacher):
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.network.head.weight += 0.1 * torch.randn(
            student.network.head.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    return student.requires_grad_(False)


def test_which_networks_each_term_reads(teacher):
    student, read = other_student(teacher), {}
    for name, method in METHODS.items():
        for term in method.terms:
            here = term_inputs(teacher, student, name)
            value = TERMS[term](here)
            (slope,) = torch.autograd.grad(value, here.batch.logits)
            read[term] = sorted({"teacher_logits", "student_logits"} & here.__dict__.keys())
            assert value.shape == () and slope.abs().sum() > 0, term
    assert read == {
        "agreement": ["student_logits"],
        "student_class": ["student_logits"],
        "closeness_l1": ["student_logits", "teacher_logits"],
        "teacher_class": ["teacher_logits"],
        "bn_mse": ["teacher_logits"],
        "bn_l2": ["teacher_logits"],
        "closeness_kl": ["student_logits", "teacher_logits"],
    }


def test_terms_by_hand(teacher):
    student = other_student(teacher)
    here = term_inputs(teacher, student, "dast")
    images, labels = here.batch.images.detach(), here.batch.labels
    t, s = logits_of(teacher, images), logits_of(student, images)
    expected = {
        "agreement": math.exp(-Dast().match(t, s)),
        "student_class": nn.functional.cross_entropy(s, labels),
        "teacher_class": nn.functional.cross_entropy(t, labels),
        "closeness_l1": -l1_centred(t, s).mean(),
        "closeness_kl": -divergence(t, s),
    }
    for term, value in expected.items():
        assert TERMS[term](here).item() == pytest.approx(float(value), rel=1e-5), term


def test_aits_generator_does_not_know_the_student(teacher):
    slopes = []
    for student in (teacher, other_student(teacher)):
        here = term_inputs(teacher, student, "ait")
        loss = sum(weight * TERMS[term](here) for term, weight in METHODS["ait"].terms.items())
        slopes.append(torch.autograd.grad(loss, here.batch.logits)[0])
    assert torch.equal(*slopes)


# The estimator ------------------------------------------------------------------------------------


def test_the_estimate_approaches_the_exact_gradient():
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])
    at = torch.zeros(2, 6, dtype=torch.float64)
    value = lambda a: a @ weight.double() + 0.1 * a.square().sum(1)  # noqa: E731
    cosines = []
    for m in (1, 400):
        values, estimate = ZerothOrder(m, 1e-4).gradient(
            value, at, Noise.of(0, Stream.BUILD, [0, 1])
        )
        cosines.append(
            nn.functional.cosine_similarity(estimate, weight.double()[None]).min().item()
        )
    assert torch.equal(values, value(at)) and cosines[1] > 0.97 > cosines[0]
    # Neither 1/K nor 1/d of it.
    assert torch.allclose(estimate, weight.double().expand(2, 6), atol=0.5)


def test_the_estimate_flows_through_the_same_terms(teacher):
    student = other_student(teacher)
    exact = term_inputs(teacher, student, "dfme")
    estimated = term_inputs(
        teacher, student, "dfme", batch=exact.batch, estimator=ZerothOrder(60, 1e-2)
    )
    slopes = []
    for here in (exact, estimated):
        value = TERMS["closeness_l1"](here)
        slopes.append(
            torch.autograd.grad(value, exact.batch.logits, retain_graph=True)[0].flatten()
        )
        assert value.item() == pytest.approx(TERMS["closeness_l1"](exact).item(), rel=1e-5)
    # d = 768 and 60 directions: a cosine of about sqrt(m / (m + d)).
    assert nn.functional.cosine_similarity(*slopes, dim=0) == pytest.approx(
        math.sqrt(60 / 828), rel=0.25
    )
    assert slopes[1].norm() / slopes[0].norm() == pytest.approx(math.sqrt(1 + 768 / 60), rel=0.25)
    assert not {"teacher_logits", "student_logits"} & estimated.__dict__.keys()


# Generators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["none", "embed_mul", "branch"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 12)])
def test_generators_make_pixels_of_any_size(conditioning, shape):
    spec = GeneratorSpec(size=8, width=6, conditioning=conditioning)
    before = generators()
    generator = spec.build(shape, 4, 0, torch.tensor([0.3]), torch.tensor([0.2]))
    rows = noise(0, 9)
    labels = spec.classes(rows, 4)
    images = pixels(generator(spec.draw(rows), labels))
    assert (
        images.shape == (9, *shape)
        and images.min() >= 0
        and images.max() <= 1
        and generators() == before
    )
    assert images.mean().item() == pytest.approx(
        0.3, abs=0.05
    ) and images.std().item() == pytest.approx(0.2, abs=0.05)
    assert labels.tolist() == (
        [0, 0, 0, 1, 1, 2, 2, 3, 3] if conditioning == "branch" else labels.tolist()
    )
    assert labels.min() >= 0 and labels.max() < 4


def test_branch_k_gets_label_k():
    stem = (
        GeneratorSpec(size=8, width=6, conditioning="branch")
        .build((1, 8, 8), 3, 0, torch.ones(1), torch.ones(1))
        .stem
    )
    latent, labels = (
        torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([2, 0, 1, 2, 0]),
    )
    maps = stem(latent, labels)
    for row, label in enumerate(labels):
        alone = stem.branches[label](latent[row : row + 1])[0]
        assert torch.allclose(maps[row], alone, atol=1e-6)
    assert not torch.allclose(stem.branches[0](latent), stem.branches[1](latent))


def test_dasts_own_generator_fits_28_and_32_pixels():
    for side in (28, 32):
        spec = GeneratorSpec(size=4, conditioning="branch", decoder="dast_paper")
        generator = spec.build((1, side, side), 2, 0, torch.ones(1), torch.ones(1))
        with torch.no_grad():
            assert generator(torch.ones(4, 4), torch.tensor([0, 1, 1, 0])).shape == (
                4,
                1,
                side,
                side,
            )
    published = GeneratorSpec(size=128, conditioning="branch", decoder="dast_paper").build(
        (3, 32, 32), 1, 0, *[torch.ones(3)] * 2
    )
    count = [
        sum(one.numel() for one in part.parameters())
        for part in (published.stem, published.decoder)
    ]
    assert count == pytest.approx([1.46e6, 3.03e6], rel=0.01)
    shared = GeneratorSpec(affine=False).build((3, 32, 32), 10, 0, *[torch.ones(3)] * 2)
    assert sum(one.numel() for one in shared.parameters()) == pytest.approx(2.33e6, rel=0.01)


def test_what_generators_refuse():
    assert "4 divides" in message(lambda: GeneratorSpec().check((1, 30, 28), 3, 6))
    assert "28 or 32" in message(
        lambda: GeneratorSpec(decoder="dast_paper").check((1, 16, 16), 3, 6)
    )
    paper = GeneratorSpec(decoder="dast_paper", conditioning="branch")
    assert "give at least 20" in message(lambda: paper.check((1, 28, 28), 10, 19))
    assert "give at least 10" in message(
        lambda: GeneratorSpec(conditioning="branch").check((1, 28, 28), 10, 6)
    )
    assert "multiple of 5" in message(lambda: PairSchedule(401, 50, 5))
    assert "shared by" in message(lambda: PairSchedule(400, 50, 5, "student-first"))


def test_the_sigmoid_begins_where_the_classifier_expects_pixels():
    u = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for mean, std in ((0.49, 0.25), (0.2, 0.15)):
        scale, shift = squashed(mean, std)
        made = (scale * u + shift).sigmoid()
        assert made.mean().item() == pytest.approx(
            mean, abs=0.005
        ) and made.std().item() == pytest.approx(std, abs=0.005)
    assert squashed(0.13, 0.31)[0] == pytest.approx(6, abs=1e-3), (
        "nearly black and white: no steeper, or no gradient is left"
    )


# The loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_generator_step_moves_the_generator_and_nothing_else(teacher, name):
    student = other_student(teacher)
    plan = plan_of(name)
    run = loop.PairRun(student, teacher, plan, METHODS[name].adaptation(plan.terms), 0)
    before = [copy.deepcopy(one) for one in (run.generator, student, teacher)]
    for _ in range(3):
        run.update_generator(run.draw())
    moved = dict(before[0].named_parameters())
    still = [
        key for key, value in run.generator.named_parameters() if torch.equal(value, moved[key])
    ]
    assert not still, "the released CIFAR-10 script of DaST never steps its generator"
    assert same(student, before[1]) and same(teacher, before[2])
    assert not student.training and all(
        one.requires_grad and one.grad is None for one in student.parameters()
    )


def test_dasts_generator_meets_the_batch_statistics_of_the_student(teacher, monkeypatch):
    def measured(batchnorm_mode):
        student = other_student(teacher)
        plan = plan_of("dast", batchnorm_mode=batchnorm_mode)
        run = loop.PairRun(student, teacher, plan, METHODS["dast"].adaptation(plan.terms), 0)
        layers, kept = norm_layers(student), []
        hook = layers[0].register_forward_hook(
            lambda layer, inputs, output: kept.append((inputs[0], output))
        )
        before = copy.deepcopy(student)
        run.update_generator(run.draw())
        hook.remove()
        assert (
            layers
            and same(student, before)
            and not any(layer.training for layer in student.modules())
        )
        assert all(layer.track_running_stats for layer in layers)
        ((inputs, output),) = kept
        return (output - layers[0].bias[:, None, None]).mean((0, 2, 3)).abs().max().item(), inputs

    (batch, inputs), (running, same_inputs) = measured("batch"), measured("running")
    assert batch < 1e-5 < 1e-2 < running and torch.equal(inputs, same_inputs), (
        "a batch normalised by itself has mean 0"
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_whole_run(teacher, name):
    before, global_state = copy.deepcopy(teacher), generators()
    done = train(teacher, name)
    assert same(teacher, before) and not same(done.student, before) and generators() == global_state
    assert not done.student.training and not any(
        one.requires_grad for one in done.student.parameters()
    )
    assert not teacher.network._forward_hooks and not teacher._forward_hooks
    again, other = train(teacher, name), train(teacher, name, seed=1)
    assert same(again.student, done.student) and same(again.generator, done.generator)
    assert not same(other.student, done.student)


# Unit f: one pass of the classifier; a backward pass to the image costs 1, to the weights 2.
COSTS = {"dast": (26, 3), "ait": (25, 3), "dfme": (124, 8), "dfard": (139, 8)}


@pytest.mark.parametrize("name", METHODS)
def test_an_iteration_costs_what_was_worked_out(teacher, name):
    ratio = METHODS[name].ratio
    plan = plan_of(name, steps=10, schedule={"updates": 2 * ratio, "warmup": 0})
    passes, images = train(teacher, name, plan).passes, 2 * plan.schedule.batch

    def cost(network):
        get = lambda what: passes.get(f"{network} {what}", 0)  # noqa: E731
        return (get("forwards") + get("input backwards") + 2 * get("weight backwards")) / images

    f, g = COSTS[name]
    assert cost("teacher") + cost("student") == f and cost("generator") == g
    assert (
        passes["generator weight backwards"] == images and "generator input backwards" not in passes
    )
    assert passes["attacked images"] == ratio * images
    assert passes["student weight backwards"] == (2 if name == "dfard" else 1) * ratio * images
    assert passes["images"] == (images if METHODS[name].shared != "no" else (1 + ratio) * images)
    assert passes["generator steps"] == 2 and "teacher weight backwards" not in passes


def test_zeroth_order_queries_are_counted(teacher):
    m, plan = (
        3,
        plan_of("dfme", schedule={"updates": 10, "warmup": 0}, estimator=ZerothOrder(3, 1e-3)),
    )
    passes = train(teacher, "dfme", plan).passes
    assert passes["teacher forwards"] == 2 * plan.schedule.batch * ((m + 1) + 5), (
        "B (n_G (m + 1) + n_S) an iteration"
    )
    assert "teacher input backwards" not in passes


def test_a_student_without_an_adversarial_term_is_never_attacked(teacher, monkeypatch):
    monkeypatch.setattr(
        "bench_defenses.adversarial.training_step.search", lambda *_: pytest.fail("attacked")
    )
    passes = train(teacher, "dfme", plan_of("dfme", adversarial=0.0, schedule={"warmup": 0})).passes
    images = 10 * 6
    assert passes["attacked images"] == 0 and passes["student weight backwards"] == images
    assert passes["student forwards"] == images + images // 5


def test_the_students_points_lie_in_ball_and_box(teacher, monkeypatch):
    kept = []
    real = loop.adversarial_points
    monkeypatch.setattr(
        loop,
        "adversarial_points",
        lambda s, batch, o, t, k: kept.append((batch, t, real(s, batch, o, t, k))) or kept[-1][2],
    )
    train(teacher, "ait", plan_of("ait", descent=Descent(rate=0.01, warmup=0.5)))
    assert [threat.eps for _, threat, _ in kept] == pytest.approx(
        [0.01, 0.02, 0.03, 0.04] + [0.05] * 6
    )
    for batch, threat, points in kept:
        assert threat.contains(points, batch.images).all() and not batch.images.requires_grad
        assert not torch.equal(points, batch.images) and torch.equal(
            batch.labels, batch.teacher.argmax(1)
        )
        assert torch.allclose(batch.teacher, logits_of(teacher, batch.images), atol=1e-5)


def watch(monkeypatch):
    """Notes a letter for each step of generator and student."""
    updates = []

    def noted(letter, real):
        return lambda self, batch: updates.append(letter) or real(self, batch)

    for letter, method in (("G", "update_generator"), ("S", "update_student")):
        monkeypatch.setattr(loop.PairRun, method, noted(letter, getattr(loop.PairRun, method)))
    return updates


def test_the_order_of_updates(teacher, monkeypatch):
    for name, expected in (
        ("dast", "GG" + "SG" * 10),
        ("ait", "GG" + "GS" * 10),
        ("dfme", "GG" + "GSSSSS" * 2),
    ):
        updates = watch(monkeypatch)
        train(teacher, name)
        monkeypatch.undo()
        assert "".join(updates) == expected


def test_all_rates_drop_at_the_milestones(teacher, monkeypatch):
    rates = []
    real = loop.apply_gradients
    monkeypatch.setattr(
        loop,
        "apply_gradients",
        lambda o, g, rate: rates.append((type(o).__name__, rate)) or real(o, g, rate),
    )
    train(
        teacher,
        "ait",
        plan_of(
            "ait",
            schedule={
                "updates": 4,
                "warmup": 0,
                "rate": 1e-3,
                "milestones": (0.25, 0.5),
                "drop": 0.1,
            },
        ),
    )
    of = lambda kind: [rate for name, rate in rates if name == kind]  # noqa: E731
    assert of("Adam") == pytest.approx([1e-3, 1e-4, 1e-5, 1e-5]) and of("SGD") == pytest.approx(
        [1e-2, 1e-3, 1e-4, 1e-4]
    )


@pytest.mark.parametrize("name", ["dast", "dfard"])
def test_an_interrupted_run_ends_in_the_same_bits(teacher, tmp_path, monkeypatch, name):
    monkeypatch.setattr(loop, "ROUNDS", 3)
    whole, reported = train(teacher, name), []

    def stop(done):
        reported.append(done.step)
        raise KeyboardInterrupt

    ends = [done.step for done in whole.rounds]
    for step in ends[:-1]:
        with pytest.raises(KeyboardInterrupt):
            train(teacher, name, folder=tmp_path, report=stop)
        assert loop.steps_done(tmp_path) == step
    resumed = train(teacher, name, folder=tmp_path)
    assert reported == ends[:-1] and len(ends) >= 2
    assert same(whole.student, resumed.student) and same(whole.generator, resumed.generator)
    assert whole.rounds == resumed.rounds and whole.passes == resumed.passes
    (tmp_path / loop.STATE).write_bytes(b"nonsense")
    assert "remove it" in message(lambda: train(teacher, name, folder=tmp_path))


def test_a_diverging_run_is_refused(teacher):
    plan = plan_of("dfme", descent=Descent(rate=1e30, decay=1.0))
    assert "not finite" in message(lambda: train(teacher, "dfme", plan))


# The log ------------------------------------------------------------------------------------------


def test_spread_and_distance_by_hand():
    assert spread(torch.tensor([0, 1, 2, 3]), 4) == pytest.approx((1.0, 0.25))
    assert spread(torch.tensor([1, 1, 1]), 4) == (0.0, 1.0)
    assert spread(torch.tensor([0, 0, 0, 1]), 2)[0] == pytest.approx(
        (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    )
    images = torch.zeros(3, 1, 2, 2)
    images[2] = 0.5
    assert distance(images) == pytest.approx(2 / 3 * 0.5) and distance(images[:1]) == 0


def test_a_constant_predictor_is_flagged():
    counts = [66, 103, 220, 23, 223, 1341, 29]
    labels = np.repeat(np.arange(7), counts)
    assert len(labels) == 2005
    for guess, accuracy in ((4, 0.1112), (5, 0.6688)):
        check = collapsed(labels, np.full((2005, 1), guess), 7, accuracy)
        assert check.verdict and (labels == guess).mean() == pytest.approx(accuracy, abs=5e-5)


# What is adapted ----------------------------------------------------------------------------------


def test_dasts_label_weight_decreases_and_stays():
    adaptation = LabelWeight({"agreement": 1.0, "student_class": 0.2})
    weights = []
    for value in (0.5, 0.08, 0.3, 0.02, 0.09):
        adaptation.generator_updated({"agreement": 1.0, "student_class": value})
        weights.append(adaptation.weights()["student_class"])
    assert weights == [0.2, 0.08, 0.08, 0.02, 0.09] and adaptation.weights()["agreement"] == 1


def test_balanced_weights_pull_alike():
    adaptation = BalancedTerms({"a": 1.0, "b": 1.0, "c": 1.0})
    assert adaptation.weights() == {"a": 1.0, "b": 1.0, "c": 1.0}
    adaptation.generator_updated({"a": 2.0, "b": -4.0, "c": 1.0})
    balanced = adaptation.weights()
    assert balanced == pytest.approx({"a": 6 / 7, "b": 3 / 7, "c": 12 / 7}) and sum(
        balanced.values()
    ) == pytest.approx(3)
    for _ in range(200):
        adaptation.generator_updated({"a": 2.0, "b": 1000.0, "c": 0.0})
    assert adaptation.weights()["b"] == 0.1 and adaptation.weights()["c"] <= 10


def test_the_temperature_ascends_the_students_loss():
    adaptation = BalancedTerms({"a": 1.0})
    assert adaptation.temperature == 11
    outputs = StudentOutputs(STUDENT, OTHER, TEACHER, torch.zeros(2))
    objective = adaptation.objective(Dfard())
    assert objective.temperature == 11 and Dfard().temperature == 1
    adaptation.student_updated(objective, outputs, 0.0)
    assert adaptation.temperature == 11, "the rate rises from 0"
    before = objective.loss(outputs)
    adaptation.student_updated(objective, outputs, 1.0)
    assert adaptation.temperature != 11 and adaptation.objective(Dfard()).loss(outputs) > before


# Gradient inundation ------------------------------------------------------------------------------


def test_the_bracket_reaches_its_share():
    for knee in (0.3, 1.0, 1.5, 7.0, 60.0):
        changed = lambda length, knee=knee: min(1.0, 0.01 * length / knee)  # noqa: E731
        length = bracketed(changed, 0.01)
        assert length == 1 if knee <= 1 else length == pytest.approx(knee, rel=0.04)
        assert changed(length) >= 0.01 * 0.99
    assert bracketed(lambda length: 0.0, 0.01) == MOST


def test_steps_are_lengthened_until_the_grid_notices(teacher):
    flood, weight = Inundation(4), torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    step = 1e-4 * torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    assert flood.codes(weight).amin() == 0 and flood.codes(weight).amax() == 15
    assert torch.equal(flood.codes(2 * weight + 1), flood.codes(weight)), (
        "asymmetric, the range taken anew"
    )
    assert flood.changed(weight, step, 0.0) == 0 and flood.changed(
        weight, step, 1.0
    ) < flood.share <= flood.changed(weight, step, 100.0)
    length = flood.length(weight, step)
    assert 1 < length <= MOST and flood.changed(weight, step, length) >= flood.share * 0.99
    student = copy.deepcopy(teacher)
    before = [one.clone() for one in weights(student)]
    with torch.no_grad():
        for one in weights(student):
            one.add_(1e-5)
    bias = student.network.head.bias.clone()
    lengthen(before, student, flood)
    for old, new in zip(before, weights(student), strict=True):
        assert torch.allclose(new - old, torch.full_like(old, 1e-3), rtol=1e-2), (
            "a shift of all weights moves no code: the cap"
        )
    assert torch.equal(student.network.head.bias, bias)


def test_inundation_changes_only_how_far_the_student_steps(teacher):
    plain, flooded = (
        train(teacher, "ait"),
        train(teacher, "ait", plan_of("ait", inundation=Inundation(4))),
    )
    assert not same(plain.student, flooded.student) and same(plain.generator, flooded.generator)
    assert plain.passes == flooded.passes


# The defenses -------------------------------------------------------------------------------------

TINY = "updates=10,batch=6,width=4,generator_warmup=1,steps=1"


def built(teacher, spec, seed=0):
    access = DataAccess(frozenset(), {}, "test", THREAT, SHAPE)
    return create(DEFENSES, parse(spec)).plugin.build(teacher, access, noise(seed))


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


def test_no_adaptation_adapts_nothing():
    adaptation = NoAdaptation({"a": 2.0})
    adaptation.generator_updated({"a": 1.0})
    assert (
        adaptation.weights() == {"a": 2.0}
        and adaptation.state == {}
        and adaptation.objective(Dfme()) == Dfme()
    )
