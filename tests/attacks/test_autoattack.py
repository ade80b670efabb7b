"""AutoAttack through the Victim: the library's own verdicts, its cost, few classes, and randomness
under control.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_attacks import autoattack as module
from bench_attacks.autoattack import ApgdCe, ApgdDlr, ApgdT, AutoAttack, FabT, Square
from pyautoattack import AutoAttack as Library
from pyautoattack import checks
from torch import nn

from bench.commands.verify import verify
from bench.defense import Setting
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import run_evaluation
from bench.engine.shards import shards_of
from bench.noise import generators, isolated, seed_of
from bench.randomness import RandomnessModel
from bench.report.rows import rows_table
from bench.results.store import Store, read_record
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests import toy_plugins  # noqa: F401 (registers the toys)
from tests.toys import (
    NoisyLinear,
    attack_robust,
    classifier,
    exact_distance,
    linear_problem,
    message,
)


def make(kind, **params):
    return kind(kind.Params(**params))


def run(model, images, labels, attack, threat, **victim):
    """The attack's own findings and the victim, all images in one call."""
    with frozen(model):
        seen = Victim(model, np.arange(len(images)), **victim)
        return attack.run(seen, images, labels, threat), seen


def problem(classes, n, norm="linf", surviving=0.5):
    """A linear problem whose eps leaves about this share unbroken, and which images those are."""
    model, images, labels = linear_problem(classes, n, active_box=False)
    distance = exact_distance(model, images, labels, norm)
    eps = float(np.quantile(distance, 1 - surviving))
    return classifier(model, classes), images, labels, ThreatModel(norm, eps), distance


class Short(AutoAttack):
    """AutoAttack with 60 queries, to see all four stages soon."""

    def suite(self, *args):
        suite = super().suite(*args)
        suite.square.n_queries = 60
        return suite


# The library's own answer -------------------------------------------------------------------------


def test_points_are_bit_equal_to_the_librarys_own_harness():
    model, images, labels, threat, _ = problem(10, 12)
    attack = make(Short)
    found, _ = run(model, images, labels, attack, threat)
    victim = Victim(model, np.arange(12))
    seed = seed_of(victim.random(torch.zeros(1, dtype=torch.int64)), "library")
    with frozen(model), isolated(0):
        library = Library(model.network, norm="Linf", eps=threat.eps, seed=seed)
        library.square.n_queries = 60
        points, answers = library.run_standard_evaluation(images, labels, batch_size=12)
    assert torch.equal(found.points, points)
    assert torch.equal(found.stages == -1, answers == labels)
    assert 0 < (found.stages == -1).sum() < 12


@pytest.mark.parametrize(
    ("kind", "params"),
    [(ApgdCe, {}), (ApgdDlr, {}), (ApgdT, {}), (FabT, {}), (Square, {"queries": 40})],
)
def test_each_attack_alone_is_the_librarys(kind, params):
    model, images, labels, threat, _ = problem(10, 8, surviving=0.3)
    found, _ = run(model, images, labels, make(kind, **params), threat)
    victim = Victim(model, np.arange(8))
    seed = seed_of(victim.random(torch.zeros(1, dtype=torch.int64)), "library")
    with frozen(model), isolated(0):
        library = Library(
            model.network,
            norm="Linf",
            eps=threat.eps,
            seed=seed,
            version="custom",
            attacks=[kind.stage],
        )
        library.apgd.n_restarts, library.square.n_queries = 1, 40
        points, _ = library.run_standard_evaluation(images, labels, batch_size=8)
    assert torch.equal(found.points, points)
    assert not torch.equal(points, images)


@pytest.mark.parametrize("active_box", [False, True])
@pytest.mark.parametrize("kind", [FabT, ApgdCe])
def test_l1_is_close_to_the_exact_robust_accuracy(kind, active_box):
    model, images, labels = linear_problem(10, 120, active_box=active_box)
    distance = exact_distance(model, images, labels, "l1")
    threat = ThreatModel("l1", float(np.median(distance)))
    attack = make(kind, **({"restarts": 5} if kind is ApgdCe else {}))
    robust = attack_robust(classifier(model, 10), images, labels, attack, threat)
    assert abs(robust.mean() - (distance > threat.eps).mean()) <= 0.02
    clear = abs(distance / threat.eps - 1) > 0.01
    assert ((robust != (distance > threat.eps)) & clear).mean() <= 0.02
    assert not (~robust & (distance > 1.001 * threat.eps)).any()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_images_that_are_too_small_for_square_are_refused(norm):
    small = Setting(False, RandomnessModel(), ThreatModel(norm, 0.5), 10, (1, 4, 4))
    for kind in (AutoAttack, Square):
        assert "5 pixels" in message(lambda kind=kind: make(kind).check(small))
    make(FabT).check(small)
    make(Square).check(replace(small, threat=ThreatModel("linf", 0.5)))
    make(Square).check(replace(small, shape=(1, 5, 5)))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_steps_in_l1_run(steps):
    model, images, labels, threat, _ = problem(4, 8, "l1")
    for targeted in (None, "each"):
        found, _ = run(model, images, labels, make(ApgdCe, steps=steps, targeted=targeted), threat)
        assert threat.contains(found.points, images).all()


class Unbreakable(nn.Module):
    """Always class 0, with a gradient."""

    def forward(self, images):
        return torch.cat([10 + images.flatten(1)[:, :1], images.flatten(1)[:, 1:10]], 1)


def test_a_survivor_costs_the_documented_budget():
    """Counted by hand from the library: 1 clean pass, 102 + 919 + 1,828 + 5,003 in the stages, one
    more after each; 7 checks.
    """
    model = classifier(Unbreakable(), 10)
    images = torch.full((1, 1, 4, 4), 0.5)
    found, victim = run(
        model, images, torch.zeros(1, dtype=torch.int64), make(AutoAttack), ThreatModel("linf", 0.1)
    )
    assert victim.forwards.tolist() == [7857 + 7]
    assert victim.backwards.tolist() == [1910]
    assert found.stages.tolist() == [-1]


@pytest.mark.parametrize(("kind", "passes"), [(ApgdCe, 102), (ApgdT, 919), (FabT, 1828)])
def test_each_stage_alone_costs_what_it_costs_in_the_whole(kind, passes):
    """One start each: the library's default for its own class of FAB is five."""
    model, images = classifier(Unbreakable(), 10), torch.full((1, 1, 4, 4), 0.5)
    labels = torch.zeros(1, dtype=torch.int64)
    _, victim = run(model, images, labels, make(kind), ThreatModel("linf", 0.1))
    assert victim.forwards.tolist() == [1 + passes + 1 + 7]


def test_passes_are_counted_for_the_right_images():
    """APGD-CE breaks two images, one survives: each pays its own passes although they share
    calls.
    """
    model, images, labels, threat, distance = problem(10, 3, surviving=1 / 3)
    _, victim = run(model, images, labels, make(ApgdCe), threat)
    assert victim.forwards.tolist() == [1 + 102 + 1 + 7] * 3
    _, victim = run(model, images, labels, make(Short), threat)
    survivor = int(np.argmax(distance))
    assert victim.backwards.argmax() == survivor and victim.forwards.argmax() == survivor
    cheap = [i for i in range(3) if i != survivor]
    assert (victim.backwards[cheap] <= 2 * 101).all() and victim.backwards[
        survivor
    ] == 101 + 909 + 900


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 7, 8, 10])
def test_it_is_exact_on_linear_models_of_few_classes(norm, classes):
    model, images, labels, threat, distance = problem(classes, 30, norm)
    surviving = distance > threat.eps
    clear = abs(distance / threat.eps - 1) > 0.02
    for attack in (make(ApgdT, steps=50), make(FabT, steps=40)):
        found = attack_robust(model, images, labels, attack, threat)
        assert (found == surviving)[clear].all(), attack.stage
    if norm == "l2":
        return  # the library's Square divides these small images into no squares
    soft = attack_robust(model, images, labels, make(Square, queries=100), threat)
    assert soft[surviving & clear].all()
    assert soft.mean() < 1


@pytest.mark.parametrize("classes", [2, 3, 7, 8])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_every_version_runs_on_few_classes(classes, version, monkeypatch):
    monkeypatch.setattr(module, "perturb", shortened(module.perturb))
    model, images, labels, threat, distance = problem(classes, 6)
    attack = make(AutoAttack, version=version)
    found, _ = run(model, images, labels, attack, threat)
    surviving = distance > threat.eps
    assert (found.stages[surviving] == -1).all() and (found.stages[~surviving] >= 0).any()
    assert (classes < 4) == any(finding.name == "few-classes" for finding in found.findings)


def shortened(perturb):
    def short(suite, name, images, labels):
        suite.square.n_queries, suite.fab.n_iter, suite.apgd.n_restarts, suite.fab.n_restarts = (
            20,
            10,
            1,
            1,
        )
        suite.apgd.eot_iter = 1
        return perturb(suite, name, images, labels)

    return short


# Order, chunks, seeds -----------------------------------------------------------------------------


def test_one_image_a_call_does_not_depend_on_its_place():
    model, images, labels, threat, _ = problem(4, 6)
    attack = make(Short)

    def alone(order):
        points = {}
        for i in order:
            victim = Victim(model, np.array([i]))
            with frozen(model):
                points[i] = attack.run(victim, images[i : i + 1], labels[i : i + 1], threat).points
        return torch.cat([points[i] for i in range(6)])

    assert torch.equal(alone(range(6)), alone([3, 0, 5, 1, 4, 2]))


def test_the_seed_reaches_the_library():
    model, images, labels, threat, _ = problem(10, 4)
    first, again, other = (
        run(model, images, labels, make(Square, queries=5), threat, root=r)[0].points
        for r in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_units_are_chunks_and_single_images_for_random_defenses():
    assert make(AutoAttack).unit(stochastic=False) == 100
    assert make(AutoAttack, chunk=32).unit(stochastic=False) == 32
    assert make(AutoAttack).unit(stochastic=True) == 1


# Randomness ---------------------------------------------------------------------------------------


def setting(randomness="fresh", stochastic=True):
    return Setting(stochastic, RandomnessModel(randomness), ThreatModel("linf", 0.1), 10, (1, 4, 4))


def test_what_trusts_single_draws_is_refused_under_fresh_randomness():
    assert "autoattack (standard)" in message(lambda: make(AutoAttack).check(setting()))
    assert "force=true" in message(lambda: make(Square).check(setting("eot")))
    make(AutoAttack).check(setting("replay"))
    make(AutoAttack).check(setting(stochastic=False))
    make(AutoAttack, version="rand").check(setting())
    make(AutoAttack, force=True).check(setting())
    assert "chunk" in message(lambda: make(AutoAttack, version="rand", chunk=8).check(setting()))


def noisy(n, classes=4, sigma=0.05):
    inner, images, labels = linear_problem(classes, n, active_box=False)
    return NoisyLinear(inner, sigma), images, labels


def test_forced_runs_are_marked_and_replay_is_not():
    model, images, labels = noisy(1)
    threat = ThreatModel("linf", 1e-3)
    forced, _ = run(model, images, labels, make(ApgdCe, steps=2, force=True), threat)
    assert {f.name: f.verdict for f in forced.findings}["single-draw-attack"] == "warn"
    assert "library-randomised" in {f.name for f in forced.findings}
    replayed, _ = run(
        model, images, labels, make(ApgdCe, steps=2), threat, randomness=RandomnessModel("replay")
    )
    assert replayed.findings == ()


def test_fixed_noise_is_the_same_in_every_call_and_fresh_draws_differ():
    model, images, _ = noisy(1)
    outputs = {}
    for randomness in ("replay", "fresh"):
        function = Victim(model, np.array([7]), randomness=RandomnessModel(randomness)).as_function(
            images
        )
        outputs[randomness] = [function(images) for _ in range(3)]
    assert torch.equal(outputs["replay"][0], outputs["replay"][2])
    assert not torch.equal(outputs["fresh"][0], outputs["fresh"][1])
    again = Victim(model, np.array([7]), randomness=RandomnessModel("fresh")).as_function(images)
    assert torch.equal(again(images), outputs["fresh"][0]), "a draw is named by image and query"


def test_several_draws_give_their_mean_logits_and_are_counted():
    model, images, _ = noisy(1)
    victim = Victim(model, np.array([0]), randomness=RandomnessModel("eot", 64))
    mean = victim.as_function(images)(images)
    assert victim.forwards.tolist() == [64]
    assert (mean - model.inner(images)).abs().max() < 0.35 * 8 * 0.05 * 4
    with pytest.raises(RuntimeError, match="image by image"):
        Victim(model, np.arange(2)).as_function(images.expand(2, -1, -1, -1))


def test_the_librarys_seeding_stays_inside():
    model, images, labels, threat, _ = problem(10, 2)
    before = generators()
    run(model, images, labels, make(ApgdCe, steps=3), threat)
    assert generators() == before


# The library's quirks -----------------------------------------------------------------------------


class Detached(nn.Module):
    """A linear model behind a cut gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images.detach())


def test_a_cut_gradient_is_found_and_not_a_crash():
    inner, images, labels = linear_problem(4, 2, active_box=False)
    model = classifier(Detached(inner), 4)
    found, victim = run(model, images, labels, make(ApgdT, steps=3), ThreatModel("linf", 1e-3))
    assert victim.gradient_blocked and not victim.backwards.any()
    assert "library-zero-gradient" in {f.name for f in found.findings}


def test_warnings_become_findings_and_the_logger_is_left_as_found(capsys):
    logger = logging.getLogger("auto-attack")
    before = logger.handlers[:], logger.propagate, logger.level
    inner, images, labels = linear_problem(4, 2, active_box=False)
    run(
        classifier(Detached(inner), 4),
        images,
        labels,
        make(ApgdT, steps=2),
        ThreatModel("linf", 1e-3),
    )
    assert (logger.handlers, logger.propagate, logger.level) == before
    assert capsys.readouterr().err == ""


def test_the_check_for_dynamic_models_forgets_and_leaves_tracers_alone():
    model, images, labels, threat, _ = problem(4, 2)
    checks.funcs["grad"] = 5

    def tracer(*_):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        found, _ = run(model, images, labels, make(ApgdCe, steps=2), threat)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert found.findings == ()


def test_square_alone_gaining_is_a_finding():
    attack = make(AutoAttack)
    left = {"clean": 1.0, "apgd-ce": 0.5, "apgd-t": 0.5, "fab-t": 0.5, "square": 0.49}
    assert [f.name for f in attack.review(left)] == ["square-gains"]
    assert attack.review({**left, "square": 0.4985}) == []
    assert make(Square).review({"clean": 1.0, "square": 0.0}) == []


# Through the engine -------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def evaluation_of(attack, **changes):
    defaults = {
        "dataset": "toy:n=40,classes=4",
        "classifier": f"{ROOT}/tests/toy_model.py@make_four",
        "defenses": ("undefended",),
    }
    return plan(Request(**{**defaults, "attacks": (attack,), **changes}))[-1]


def record_of(folder, evaluation, batch_size=128, shards=None):
    return run_evaluation(evaluation, Store(folder), Execution(batch_size=batch_size), shards)


def test_outcomes_and_points_do_not_depend_on_the_engines_batches(tmp_path):
    """The library's calls are cut by chunk and not by what the engine computes at once."""
    many = "toy:n=150,classes=4"
    evaluation = evaluation_of("square:queries=5,chunk=12", dataset=many)
    records = [record_of(tmp_path / str(size), evaluation, size) for size in (5, 100)]
    assert records[0].outcomes == records[1].outcomes
    assert records[0].points.sha256 == records[1].points.sha256
    other = record_of(tmp_path / "o", evaluation_of("square:queries=5,chunk=40", dataset=many))
    assert other.id != records[0].id and other.points.sha256 != records[0].points.sha256


@pytest.mark.parametrize("defense", ["undefended", "toy-jitter"])
def test_one_image_a_call_gives_the_same_outcomes_in_any_order(tmp_path, defense):
    evaluation = evaluation_of("autoattack:version=rand,chunk=1", defenses=(defense,), n=6)
    shards = shards_of(6, 128, unit=2)
    one, two = (
        record_of(tmp_path / str(i), evaluation, shards=order)
        for i, order in enumerate((shards, shards[::-1]))
    )
    assert one.outcomes == two.outcomes and one.stages == two.stages
    assert one.points.sha256 == two.points.sha256


def test_stages_are_kept_and_add_up_to_the_verdict(tmp_path):
    record = record_of(tmp_path, evaluation_of("autoattack:version=rand"))
    left = list(record.stages.left().values())
    assert list(record.stages.left()) == ["clean", "apgd-ce", "apgd-dlr"]
    assert left == sorted(left, reverse=True) and left[0] > left[-1]
    assert left[-1] == record.metrics.adversarial.mean.value
    again = read_record(tmp_path / f"{record.stem}.json")
    assert again.stages == record.stages
    assert "- undefended, autoattack:version=rand: clean 100.0, apgd-ce" in rows_table([record])


def test_replay_takes_the_whole_suite_to_a_stochastic_defense(tmp_path):
    record = record_of(tmp_path, evaluation_of("apgd-ce+replay:steps=10", defenses=("toy-jitter",)))
    assert record.title["randomness"] == "replay"
    assert record.metrics.replayed.mean.value <= record.metrics.adversarial.mean.value
    surviving = record.stages.left()["apgd-ce"]
    assert surviving == pytest.approx(record.metrics.replayed.mean.value)
    assert all(check.held for check in verify(tmp_path / f"{record.stem}.json", Execution()))


def test_refusals_come_before_anything_is_computed():
    assert "force=true" in message(lambda: evaluation_of("autoattack", defenses=("toy-jitter",)))
    assert (
        evaluation_of("autoattack:force=true", defenses=("toy-jitter",)).attack.spec
        == "autoattack:force=true"
    )
    assert "chunk" in message(
        lambda: evaluation_of("square+replay:chunk=5", defenses=("toy-jitter",))
    )
