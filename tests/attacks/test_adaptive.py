"""`adaptive`: the card's attacks under one row's randomness, and the worst case of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bench_attacks.adaptive import DEFAULT, Adaptive
from bench_attacks.best import Best
from bench_attacks.pgd import PGD

from bench.attack import Attack, AttackOutput
from bench.commands.verify import verify
from bench.contract.toys import Quantised
from bench.defense import Card, NoParams, Setting
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluation
from bench.plugins.create import ATTACKS, DEFENSES, create, create_attack
from bench.randomness import RandomnessModel, read_randomness
from bench.results.findings import Finding
from bench.results.outcomes import NO_STAGE
from bench.results.store import Store, read_record
from bench.spec import parse
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.helpers import toy_request
from tests.toy_plugins import Jitter
from tests.toys import NoisyLinear, classifier, linear_problem, message

SETTING = Setting(False, RandomnessModel(), ThreatModel("linf", 0.1), 10, (1, 28, 28))


class Half(Attack[NoParams]):
    """PGD on images whose id leaves a given rest; the others stay as they are."""

    rest = 0

    def run(self, victim, images, labels, threat):
        points = PGD(steps=5).run(victim, images, labels, threat)
        mine = torch.from_numpy(victim.ids % 2 == self.rest)
        note = Finding(name="half", verdict="note", message=f"rest {self.rest}")
        return AttackOutput(torch.where(mine[:, None, None, None], points, images), None, (note,))


@ATTACKS.register("toy-even")
class Even(Half):
    """Even images."""


@ATTACKS.register("toy-odd")
class Odd(Half):
    """Odd images."""

    rest = 1


def adaptive(*parts, **more):
    return Adaptive(parts=parts, **more)


def attacked(attack, model, images, labels, eps, **options):
    with frozen(model):
        victim = Victim(model, np.arange(len(images)), **options)
        return attack(victim, images, labels, ThreatModel("linf", eps)), victim


def problem(n=24):
    model, images, labels = linear_problem(4, n, active_box=False)
    return classifier(model, 4), images, labels


# Every defense ------------------------------------------------------------------------------------


def _settings(name):
    """The card, and each attack of it with a setting in which it applies."""
    given = {"public-at": "public-at:images=fashion-mnist"}.get(name, name)
    plugin = create(DEFENSES, parse(given)).plugin
    for text in plugin.card.attacks:
        choice = create_attack(text)
        asked = read_randomness(choice.randomness or "fresh")
        for randomness in (asked, RandomnessModel("replay")):
            yield (
                plugin,
                choice,
                replace(
                    SETTING,
                    stochastic=plugin.stochastic,
                    randomness=randomness,
                    has_base=plugin.has_base,
                    gradients=plugin.gradients,
                    attacks=plugin.card.attacks,
                ),
            )


@pytest.mark.parametrize("name", [one for one in DEFENSES.names() if not one.startswith("toy")])
def test_every_card_names_attacks_that_run_on_its_defense(name):
    cases = list(_settings(name))
    assert cases
    for plugin, choice, setting in cases:
        assert choice.gradient is None or choice.gradient in plugin.gradients
        choice.attack.plugin.check(setting)
        fitted = Adaptive().fitted(setting)
        fitted.check(setting)
        assert not fitted._left_out or setting.randomness.name != "replay"
        assert any(part.name == "pgd" for part in fitted.parts)


# The worst case -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("toy-even", "toy-odd"), ("toy-odd", "toy-even")])
def test_what_any_part_breaks_alone_is_broken_and_told(order):
    model, images, labels = problem()
    alone = [
        attacked(create_attack(one).attack.plugin, model, images, labels, 0.006)[0] for one in order
    ]
    both, _ = attacked(adaptive(*order), model, images, labels, 0.006)
    broken = [(one.predictions[:, 0] != labels) for one in alone]
    assert broken[0].any() and broken[1].any() and not (broken[0] & broken[1]).any()
    found = both.predictions[:, 0] != labels
    assert torch.equal(found, broken[0] | broken[1])
    assert torch.equal(both.stages == 0, broken[0]) and torch.equal(both.stages == 1, broken[1])
    assert torch.equal(both.points[broken[1]], alone[1].points[broken[1]])
    assert {one.message for one in both.findings} == {
        f"{order[0]}: rest {int('odd' in order[0])}",
        f"{order[1]}: rest {int('odd' in order[1])}",
    }


def test_a_broken_image_costs_nothing_more_and_all_passes_are_counted():
    model, images, labels = problem()
    part, _ = attacked(PGD(steps=3), model, images, labels, 0.006)
    broken = part.predictions[:, 0] != labels
    assert 0 < broken.sum() < len(labels)
    found, victim = attacked(
        adaptive("pgd:steps=3", "pgd:steps=4,loss=margin"), model, images, labels, 0.006
    )
    # Each part: a forward pass more than steps, a look at its points; at the end one at the last.
    spent = (3 + 1 + 1) + (4 + 1 + 1) + 1
    survives = found.predictions[:, 0] == labels
    assert (victim.forwards[survives] == spent).all() and (victim.backwards[survives] == 7).all()
    assert (victim.forwards[broken] <= 3 + 1 + 1 + 1).all()
    assert (victim.slopes.asked[survives] == 7).all()
    told = adaptive("pgd:steps=3", "pgd:steps=4,loss=margin").passes()
    assert (told.forward, told.backward) == (spent - 1, 7)


def test_a_part_has_its_own_gradient_and_the_others_keep_the_rows():
    inner, images, labels = problem()
    model = Quantised(inner)
    found, victim = attacked(
        adaptive("pgd:steps=5,random_start=false", "bpda:steps=5").fitted(
            replace(SETTING, gradients=("full", "bpda"))
        ),
        model,
        images,
        labels,
        0.1,
    )
    assert (found.stages == 1).any() and not (found.stages == 0).any()
    assert not victim.gradient_blocked
    _, blind = attacked(adaptive("pgd:steps=5"), model, images, labels, 0.1)
    _, seeing = attacked(adaptive("pgd:steps=5"), model, images, labels, 0.1, gradient="bpda")
    assert (seeing.slopes.zero == 0).all() and (blind.slopes.zero[blind.backwards > 0] > 0).all()


# Random defenses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("randomness", ["fresh", "eot:k=2", "replay-set:k=3"])
def test_on_random_defenses_the_better_point_is_kept_in_any_order(randomness):
    inner, images, labels = linear_problem(3, 16, active_box=False)
    model, law = NoisyLinear(inner, 0.05), read_randomness(randomness)
    weak, strong = "noise", "pgd:steps=8"
    one, _ = attacked(adaptive(weak, strong), model, images, labels, 0.004, randomness=law)
    two, _ = attacked(adaptive(strong, weak), model, images, labels, 0.004, randomness=law)
    assert torch.equal(one.points, two.points)
    assert (one.stages == 1).sum() > (one.stages == 0).sum()
    assert torch.equal(one.stages == NO_STAGE, two.stages == NO_STAGE)


def test_points_are_compared_on_draws_that_no_search_and_no_verdict_used():
    seen = []

    class Spy(NoisyLinear):
        def forward(self, images, noise):
            seen.append(noise.normal("gauss", tuple(images.shape[1:])).flatten(1).sum(1))
            return super().forward(images, noise)

    inner, images, labels = linear_problem(3, 1, active_box=False)
    victim = Victim(Spy(inner, 0.1), np.arange(1))
    rows = torch.arange(1)
    victim.score(images, rows, labels, lambda logits, labels: logits[:, 0], 20)
    searching = torch.cat(seen)
    seen.clear()
    Best(victim, images, labels).offer(rows, images, 0)
    merging = torch.cat(seen)
    assert len(searching) == len(merging) == 20
    assert not set(searching.tolist()) & set(merging.tolist())


@pytest.mark.parametrize("randomness", ["replay", "eot:k=2"])
def test_verdicts_do_not_depend_on_the_batch(tmp_path, randomness):
    request = toy_request(
        attacks=(
            f"adaptive:parts=(pgd:steps=4)+(em:steps=3,draws=2)+(transfer:base,steps=4),randomness=({randomness})",
        ),
        n=14,
    )
    (evaluation,) = [one for one in plan(request) if one.defense.name == "toy-jitter"]
    records = [
        run_evaluation(evaluation, Store(tmp_path / str(size)), Execution(batch_size=size))
        for size in (1, 7, 64)
    ]
    assert records[0].outcomes == records[1].outcomes == records[2].outcomes
    assert records[0].stages == records[1].stages == records[2].stages
    assert records[0].stages.names == ["pgd:steps=4", "em:draws=2,steps=3", "transfer:base,steps=4"]


# The engine ---------------------------------------------------------------------------------------


def _planned(monkeypatch, *attacks, **changes):
    monkeypatch.setattr(Jitter, "card", Card(note="toy", attacks=attacks))
    request = {"attacks": ("adaptive+replay",), "n": 20, **changes}
    return plan(toy_request(**request))


def test_the_card_decides_what_runs_and_enters_the_identity(monkeypatch, tmp_path):
    base, one = _planned(monkeypatch, "pgd:steps=3", "bpda+eot:steps=3", "pgd+replay:steps=3")
    assert one.attack.plugin.stages == ("pgd:steps=3", "pgd:gradient=bpda,steps=3")
    assert one.title["attack"] == "adaptive" and one.randomness.name == "replay"
    undefended = create(DEFENSES, parse("undefended")).plugin.card.attacks
    assert [part.name for part in base.attack.plugin.parts] == list(undefended)
    other_base, two = _planned(monkeypatch, "pgd:steps=4")
    assert one.id != two.id and base.id == other_base.id
    (again,) = [
        one_ for one_ in _planned(monkeypatch, "pgd:steps=3", "bpda+eot:steps=3") if one_.asked
    ]
    assert again.id == one.id


def test_a_record_tells_the_parts_and_is_verified(tmp_path):
    store = Store(tmp_path)
    base, one = plan(toy_request(attacks=("adaptive+replay:parts=(pgd:steps=3)+noise",), n=20))
    for evaluation in (base, one):
        record = run_evaluation(evaluation, store, Execution(batch_size=64))
    assert record.stages.names == ["pgd:steps=3", "noise"]
    path = next(tmp_path.glob(f"*--{one.id}.json"))
    assert read_record(path).id == one.id
    assert all(check.held for check in verify(path, Execution(batch_size=7)))


def test_a_card_without_attacks_gets_the_default(monkeypatch):
    fitted = Adaptive().fitted(SETTING)
    assert fitted.stages == DEFAULT and fitted.passes().total > 484
    assert Adaptive().passes() is None


def test_parts_that_refuse_are_left_out_and_told():
    noted = []
    request = toy_request(attacks=("adaptive:parts=(latent:steps=2)+(pgd:steps=2)",), n=10)
    _, one = plan(request, note=noted.append)
    assert one.attack.plugin.stages == ("pgd:steps=2",)
    assert any("leaves out latent:steps=2" in note and "replay" in note for note in noted)
    assert any("runs pgd:steps=2" in note and "passes" in note for note in noted)


@pytest.mark.parametrize(
    ("parts", "told"), [(("square:queries=2",), True), (("square:queries=2", "pgd"), False)]
)
def test_a_card_whose_attacks_follow_no_gradient_is_told(parts, told):
    model, images, labels = problem()
    found, victim = attacked(adaptive(*parts), model, images, labels, 0.001)
    assert [one.name for one in found.findings] == ["parts"] * told
    assert bool(victim.backwards.sum()) != told


def test_nothing_is_told_where_every_image_broke():
    model, images, labels = problem()
    found, victim = attacked(adaptive("square:queries=50"), model, images, labels, 0.9)
    assert not victim.backwards.sum() and not found.findings


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("pdg", "unknown attack 'pdg'"),
        ("adaptive", "part of itself"),
        ("latent", "none of the parts"),
        ("+".join(f"(pgd:steps={i + 1})" for i in range(37)), "36"),
    ],
)
def test_parts_that_cannot_run_are_refused_before_anything_runs(parts, words):
    assert words in message(lambda: plan(toy_request(attacks=(f"adaptive:parts={parts}",))))


def test_calls_hold_what_each_part_needs():
    parts = adaptive("apgd-ce:chunk=4", "apgd-dlr:chunk=6", "pgd")
    assert parts.unit(False) == 12 and adaptive("pgd").unit(False) is None
    model, images, labels = problem(12)
    found, _ = attacked(adaptive("apgd-ce:chunk=4,steps=3"), model, images, labels, 0.006)
    blocks = []
    for rows in torch.arange(12).split(4):
        with frozen(model):
            victim = Victim(model, rows.numpy())
            plugin = create_attack("apgd-ce:chunk=4,steps=3").attack.plugin
            blocks.append(plugin(victim, images[rows], labels[rows], ThreatModel("linf", 0.006)))
    assert torch.equal(found.predictions, torch.cat([one.predictions for one in blocks]))
