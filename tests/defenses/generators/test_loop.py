"""The loop: who is updated when, what it costs, what it logs."""

import copy
import math

import pytest
import torch
from bench_defenses.adversarial.training_step import Descent, logits_of
from bench_defenses.datafree.synthesis import norm_layers
from bench_defenses.generators import loop
from bench_defenses.generators.loop import distance, spread
from bench_defenses.generators.methods import METHODS
from bench_defenses.generators.terms import (
    ZerothOrder,
)

from bench.noise import generators
from tests.defenses.generators.helpers import (
    other_student,
    plan_of,
    same,
    train,
)
from tests.toys import message


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


def test_spread_and_distance_by_hand():
    assert spread(torch.tensor([0, 1, 2, 3]), 4) == pytest.approx((1.0, 0.25))
    assert spread(torch.tensor([1, 1, 1]), 4) == (0.0, 1.0)
    assert spread(torch.tensor([0, 0, 0, 1]), 2)[0] == pytest.approx(
        (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    )
    images = torch.zeros(3, 1, 2, 2)
    images[2] = 0.5
    assert distance(images) == pytest.approx(2 / 3 * 0.5) and distance(images[:1]) == 0
