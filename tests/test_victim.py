"""The Victim: exact counts, gradient modes, views, retirement, frozen weights."""

import numpy as np
import pytest
import torch
from bench_attacks.pgd import PGD, SCORING_DRAWS, PGDParams
from torch import nn

from bench.defense import DefendedClassifier, InputTransform, straight_through
from bench.errors import BadInput
from bench.losses import RowLoss, cross_entropy, dlr, kl, margin, misclassified
from bench.maximise import Trace
from bench.noise import Noise, Stream, isolated
from bench.randomness import Query, read_randomness
from bench.threat import ThreatModel
from bench.victim import VERDICT_DRAWS, Victim, frozen, predict
from tests.toys import Linear, NoisyLinear, classifier, linear_problem

LINF = ThreatModel("linf", 1e-4)


@pytest.fixture(scope="module")
def problem():
    return linear_problem(3, 10, active_box=False)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_counts_are_exact(problem, batch_size):
    """Nothing is breakable at this eps: steps + 1 forwards and steps backwards a start, and one
    forward to verify.
    """
    model, images, labels = problem
    victim = Victim(classifier(model, 3), np.arange(10), batch_size=batch_size)
    PGD(PGDParams(steps=7, restarts=2))(victim, images, labels, LINF)
    assert (victim.forwards == 2 * 8 + 1).all()
    assert (victim.backwards == 2 * 7).all()


@pytest.mark.parametrize(
    ("randomness", "k", "verify"),
    [("fresh", 1, 0), ("eot:k=4", 4, 0), ("replay", 1, 1), ("replay-set:k=3", 3, 3)],
)
def test_counts_of_stochastic_defenses(problem, randomness, k, verify):
    model, images, labels = problem
    victim = Victim(
        NoisyLinear(model, 1e-6),
        np.arange(10),
        randomness=read_randomness(randomness),
        batch_size=5,
    )
    PGD(PGDParams(steps=7))(victim, images, labels, LINF)
    scoring = 0 if victim.fixed else 2 * SCORING_DRAWS
    assert (victim.forwards == 8 * k + verify + scoring).all()
    assert (victim.backwards == 7 * k).all()


def test_retired_images_cost_nothing_more(problem):
    model, images, labels = problem
    victim = Victim(classifier(model, 3), np.arange(10))
    points = PGD(PGDParams(steps=50))(victim, images, labels, ThreatModel("linf", 0.5)).points
    assert (predict(model(points)) != labels).all()
    assert victim.backwards.max() < 10


def test_batch_size_changes_no_number(problem):
    model, images, labels = problem
    results = []
    for batch_size in (1, 7, 64):
        victim = Victim(
            NoisyLinear(model, 0.1),
            np.arange(10),
            randomness=read_randomness("eot:k=5"),
            batch_size=batch_size,
        )
        objective = victim.objective(labels, cross_entropy)
        reading = objective(images, torch.arange(10), 3, True)
        results.append((reading.value, reading.gradient))
    for value, gradient in results[1:]:
        assert torch.allclose(value, results[0][0], rtol=1e-5)
        assert torch.allclose(gradient, results[0][1], rtol=1e-4, atol=1e-4)


def test_averages_of_losses_and_of_logits_differ_as_defined(problem):
    model, images, labels = problem
    stochastic = NoisyLinear(model, 0.3)
    readings = {}
    for average in ("loss", "logits"):
        victim = Victim(
            stochastic, np.arange(10), randomness=read_randomness(f"eot:k=6,average={average}")
        )
        outputs = victim.logits(images, torch.arange(10), Query(0, 2))
        readings[average] = victim.objective(labels, cross_entropy)(
            images, torch.arange(10), 2, False
        ).value
    by_loss = (
        cross_entropy(outputs.flatten(0, 1), labels.repeat_interleave(6)).reshape(10, 6).mean(1)
    )
    assert torch.allclose(readings["loss"], by_loss, rtol=1e-5)
    assert torch.allclose(readings["logits"], cross_entropy(outputs.mean(1), labels), rtol=1e-5)
    assert (readings["loss"] >= readings["logits"] - 1e-5).all()


class Blocked(InputTransform):
    def transform(self, images, noise):
        return images.detach().round()


def test_gradient_modes(problem):
    model, images, labels = problem
    blocked = Blocked(classifier(model, 3))
    full = Victim(blocked, np.arange(10))
    reading = full.objective(labels, margin)(images, torch.arange(10), 0, True)
    assert full.gradient_blocked
    assert not reading.gradient.any()
    bpda = Victim(blocked, np.arange(10), gradient="bpda")
    assert bpda.objective(labels, margin)(images, torch.arange(10), 0, True).gradient.any()
    assert not bpda.gradient_blocked
    noise = Noise.of(0, "eval", range(10))
    assert torch.equal(blocked.forward_pass("bpda")(images, noise), blocked(images, noise))
    with pytest.raises(BadInput, match="no gradient"):
        blocked.forward_pass("surrogate")


def test_views(problem):
    model, images, labels = problem
    blocked = Blocked(classifier(model, 3))
    assert blocked.views() == ("transformed", "logits")
    victim = Victim(blocked, np.arange(10), gradient="bpda")
    seen = victim.logits(images, torch.arange(10), Query(), view="transformed")
    assert torch.equal(seen[:, 0], images.round())
    objective = victim.objective(labels, lambda out, _: out.flatten(1).sum(1), view="transformed")
    reading = objective(images, torch.arange(10), 0, True)
    assert torch.allclose(reading.gradient, torch.ones_like(images))
    assert torch.equal(reading.success, misclassified(model(images.round()), labels))


def test_straight_through_is_exact_forward():
    x = torch.linspace(-3, 3, 11, requires_grad=True)
    y = straight_through(x.round(), 2 * x)
    assert torch.equal(y, x.round())
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 2))


def test_weights_are_frozen_and_buffers_put_back():
    with isolated(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="evaluation mode"), frozen(net):
        assert not any(p.requires_grad for p in net.parameters())
        net(torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_losses():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 4.0]])
    labels = torch.tensor([0, 1])
    assert torch.allclose(margin(logits, labels), torch.tensor([-2.0, 2.0]))
    assert torch.allclose(dlr(logits, labels), torch.tensor([-2 / 3, 2 / 3]), atol=1e-5)
    for k in (2, 3):
        assert torch.equal(
            dlr(logits[:, :k], torch.tensor([0, 0])), margin(logits[:, :k], torch.tensor([0, 0]))
        )
    assert misclassified(logits, labels).tolist() == [False, True]
    tie = torch.tensor([[1.0, 1.0 + 1e-7]])
    assert not misclassified(tie, torch.tensor([0])).any(), "a success must survive rounding"
    nan = torch.tensor([[float("nan"), 1.0]])
    assert misclassified(nan, torch.tensor([1])).all() and predict(nan).tolist() == [-1]


def test_cross_entropy_keeps_its_gradient_on_confident_images():
    """In float32 the true class's term of the gradient is lost from a margin of about 17
    nats on.
    """
    logits = torch.tensor([[30.0, 5.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([0])).sum(), logits)
    expected = torch.tensor(
        [[-(np.exp(-25) + np.exp(-30)), np.exp(-25), np.exp(-30)]], dtype=torch.float32
    )
    assert torch.allclose(slope, expected, rtol=1e-4, atol=0)


def test_an_attack_that_leaves_the_ball_is_projected_and_counted(problem):
    model, images, labels = problem

    class Rogue(PGD):
        def run(self, victim, images, labels, threat):
            return images + 3

    attacked = Rogue(PGDParams())(
        Victim(classifier(model, 3), np.arange(10)), images, labels, ThreatModel("linf", 0.1)
    )
    assert attacked.reprojected == 10
    assert ThreatModel("linf", 0.1).contains(attacked.points, images).all()

    class Broken(PGD):
        def run(self, victim, images, labels, threat):
            return images * float("nan")

    with pytest.raises(RuntimeError, match="not finite"):
        Broken(PGDParams())(Victim(classifier(model, 3), np.arange(10)), images, labels, LINF)


def test_the_first_success_is_returned_not_the_last_iterate():
    """A model that is wrong only in a thin shell: later iterates are right again."""

    class Shell(nn.Module):
        def forward(self, images):
            distance = (images - 0.5).flatten(1).amax(1)
            bump = torch.relu(0.02 - (distance - 0.05).abs())
            return torch.stack([torch.full_like(distance, 0.01) - distance * 1e-3, bump], 1)

    images, labels = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
    attacked = PGD(PGDParams(steps=20, step="eps/10", random_start=False))(
        Victim(classifier(Shell(), 2), np.arange(1)), images, labels, ThreatModel("linf", 0.1)
    )
    assert attacked.predictions.tolist() == [[1]]


def test_a_search_behind_its_successes_has_their_gradients_in_every_batch(problem):
    """`objective` gives a success the gradient that its batch happens to ask for, or none."""
    model, images, labels = problem
    wrong = (labels + (torch.arange(10) < 5)) % 3
    for beyond in (True, False):
        victim = Victim(classifier(model, 3), np.arange(10))
        make = victim.objective_beyond if beyond else victim.objective
        together = make(wrong, margin)(images, torch.arange(10), 0, True)
        alone = make(wrong, margin, rows=torch.tensor([0]))(images[:1], torch.tensor([0]), 0, True)
        assert together.success.tolist() == [True] * 5 + [False] * 5 and alone.success.all()
        assert torch.equal(alone.gradient[0], together.gradient[0]) == beyond
        assert victim.backwards.tolist() == [1 + beyond] + [1] * 9


def test_linear_is_what_it_says():
    model = Linear(torch.eye(2, 16), torch.zeros(2))
    assert model(torch.ones(1, 1, 4, 4)).tolist() == [[1.0, 1.0]]


class Watching(InputTransform):
    """Gaussian input noise in two stages; keeps the draws of each stage and the rows of a pass."""

    stochastic = True

    def __init__(self, inner):
        super().__init__(inner)
        self.rows, self.first, self.second = [], [], []

    def transform(self, images, noise):
        self.rows.append(len(images))
        for stage, draws in (("first", self.first), ("second", self.second)):
            here = noise.stage(stage)._key
            draws += [
                (str(here.stream), int(i), int(d))
                for i, d in zip(here.ids, here.draws, strict=True)
            ]
        return images + 1e-6 * noise.stage("second").normal("gauss", tuple(images.shape[1:]))


def watched(problem, randomness, batch_size):
    model, images, labels = problem
    defended = Watching(classifier(model, 3))
    victim = Victim(
        defended, np.arange(10), randomness=read_randomness(randomness), batch_size=batch_size
    )
    return defended, victim, images, labels


@pytest.mark.parametrize(("randomness", "k"), [("eot:k=4", 4), ("replay-set:k=3", 3)])
@pytest.mark.parametrize("batch_size", [2, 8, 13])
def test_no_forward_pass_has_more_rows_than_the_batch_size(problem, randomness, k, batch_size):
    """Rows are images times draws; one image's draws always go together."""
    defended, victim, images, labels = watched(problem, randomness, batch_size)
    PGD(PGDParams(steps=2))(victim, images, labels, LINF)
    victim.logits(images, torch.arange(10), Query(5))
    assert set(defended.rows) <= {*range(k, max(k, batch_size) + 1), 1, SCORING_DRAWS}
    assert max(defended.rows) == max(k, batch_size // k * k, SCORING_DRAWS * (not victim.fixed))


def test_the_replayed_verdict_rests_on_draws_that_no_search_has_seen(problem):
    """Of the stages that are not frozen; the frozen one is the same in search and verdict."""
    defended, victim, images, labels = watched(problem, "replay:freeze=first", 64)
    PGD(PGDParams(steps=4, restarts=2)).run(victim, images, labels, LINF)
    searched = set(defended.second)
    defended.second.clear()
    assert victim.verify(images).shape == (10, VERDICT_DRAWS)
    assert len(set(defended.second)) == 10 * VERDICT_DRAWS
    assert not set(defended.second) & searched
    assert {draw[:2] for draw in defended.first} == {(Stream.FIXED, i) for i in range(10)}


@pytest.mark.parametrize("average", ["loss", "logits"])
def test_a_loss_may_know_its_images(problem, average):
    model, images, labels = problem
    randomness = read_randomness(f"eot:k=3,average={average}")
    seen = []

    def towards(output, labels, rows):
        seen.append((rows.tolist(), torch.equal(labels, truth[rows])))
        return -(output - guides[rows]).square().sum(1)

    truth, guides = labels, torch.randn(10, 3, generator=torch.Generator().manual_seed(5))
    victim = Victim(NoisyLinear(model, 0.3), np.arange(10), randomness=randomness, batch_size=6)
    rows = torch.tensor([7, 2, 4])
    reading = victim.joint(labels, {"logits": RowLoss(towards)}, rows=rows)(
        images[rows], torch.arange(3), 1, True
    )
    outputs = victim.logits(images[rows], rows, Query(0, 1))
    errors = (outputs - guides[rows][:, None]).square().sum(2)
    if average == "logits":
        errors = (outputs.mean(1) - guides[rows]).square().sum(1, keepdim=True)
    assert torch.allclose(reading.value, -errors.mean(1), rtol=1e-5)
    draws = 3 if average == "loss" else 1
    assert seen == [([7] * draws + [2] * draws, True), ([4] * draws, True)]
    assert reading.gradient.abs().amax((1, 2, 3)).min() > 0


def test_the_base_is_read_beside_the_defense(problem):
    """KL(S(x') || T(x)) against the clean answers of the base, by hand; both are counted."""
    model, images, labels = problem
    defended = Shift(classifier(model, 3))
    seen = Victim(defended, np.arange(10), base=lambda: classifier(model, 3), batch_size=4)
    rows = torch.arange(10)
    known = seen.logits(images, rows, Query(), view="base")[:, 0]
    assert torch.equal(known, model(images).detach()) and (seen.forwards == 1).all()
    away = RowLoss(lambda output, _, rows: kl(output, known[rows]))
    x = (images + 0.01).clamp(0, 1)[4:]
    reading = seen.joint(labels, {"logits": away}, rows=rows[4:])(x, rows[:6], 0, True)
    ours = model((x + 0.01).clamp(0, 1)).double().softmax(1)
    by_hand = (ours * (ours / known[4:].double().softmax(1)).log()).sum(1)
    assert torch.allclose(reading.value.double(), by_hand, rtol=1e-5)
    assert seen.forwards.tolist() == [1] * 4 + [2] * 6
    assert seen.backwards.tolist() == [0] * 4 + [1] * 6


def test_the_gradient_flows_through_the_base_and_no_success_is_asked_of_it(problem):
    model, images, labels = problem
    rows = torch.arange(10)
    wrong = nn.Sequential(model, Turn())
    seen = Victim(classifier(wrong, 3), np.arange(10), base=lambda: classifier(model, 3))
    reading = seen.joint(labels, {"base": margin}, until_all_err=True)(images, rows, 0, True)
    assert reading.success.all() and not reading.gradient.any()
    right = Victim(classifier(model, 3), np.arange(10), base=lambda: classifier(wrong, 3))
    reading = right.joint(labels, {"base": margin})(images, rows, 0, True)
    x = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(margin(wrong(x), labels).sum(), x)
    assert torch.allclose(reading.gradient, slope, rtol=1e-5) and slope.any()
    assert torch.allclose(reading.value, margin(wrong(images), labels).detach())
    # The pass through the base, and one that says whether the defense is broken.
    assert (right.forwards == 2).all() and (right.backwards == 1).all()
    assert "base" not in right.views


def test_a_defense_without_a_base_offers_no_view_of_it(problem):
    model, images, labels = problem
    with pytest.raises(BadInput, match="has none"):
        Victim(classifier(model, 3), np.arange(10)).logits(
            images, torch.arange(10), Query(), view="base"
        )


class Shift(InputTransform):
    """Adds 0.01."""

    def transform(self, images, noise):
        return (images + 0.01).clamp(0, 1)


class Turn(nn.Module):
    """Gives each class the logit of the next one."""

    def forward(self, logits):
        return logits.roll(1, 1)


class Spoiled(nn.Module):
    """A linear model whose gradient is spoiled by the first pixel: above 1 everywhere, above 0.5
    in some entries, below 0 it is zero.
    """

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        first = x[:, 0, 0, 0].detach()

        def spoil(slope):
            slope = slope.clone()
            slope[first > 1] = float("nan")
            slope[(first > 0.5) & (first <= 1), 0, 0, 1] = float("inf")
            slope[first < 0] = 0
            return slope

        x = x.clone()
        if x.requires_grad:
            x.register_hook(spoil)
        return self.inner(x)


def test_no_gradient_is_lost_without_being_counted():
    model, images, labels = linear_problem(3, 4, active_box=False)
    images = images.clone()
    images[:, 0, 0, 0] = torch.tensor([0.2, 0.7, 2.0, -1.0])
    for success in (None, 2):
        victim = Victim(classifier(Spoiled(model), 3), np.arange(4), batch_size=3)
        answers = predict(model(images))
        if success is not None:
            answers[success] = (answers[success] + 1) % 3
        objective = victim.objective(answers, margin)
        for iteration in range(2):
            reading = objective(images, torch.arange(4), iteration, True)
        asked = torch.tensor([2, 2, 2, 2])
        lost = torch.tensor([0, 0, 2, 0])
        if success is not None:
            asked[success] = lost[success] = 0
        counts = victim.slopes.by_name()
        assert counts["asked"].equal(asked) and counts["lost"].equal(lost)
        assert counts["partial"].tolist() == [0, 2, 0, 0]
        assert counts["zero"].tolist() == [0, 0, 0, 2]
        # What is finite is used.
        assert torch.isfinite(reading.gradient).all()
        assert reading.gradient[1].abs().sum() > 0 and reading.gradient[1, 0, 0, 1] == 0


def test_gradients_that_another_library_takes_are_counted_too():
    model, images, labels = linear_problem(3, 4, active_box=False)
    images = images.clone()
    images[:, 0, 0, 0] = torch.tensor([0.2, 0.7, 2.0, -1.0])
    victim = Victim(classifier(Spoiled(model), 3), np.arange(4))
    x = images.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(victim.as_function(images)(x).sum(), x)
    assert torch.isfinite(slope).all()
    counts = victim.slopes.by_name()
    assert counts["asked"].tolist() == [1, 1, 1, 1] and counts["lost"].tolist() == [0, 0, 1, 0]
    assert counts["partial"].tolist() == [0, 1, 0, 0] and counts["zero"].tolist() == [0, 0, 0, 1]


def test_a_gradient_that_does_not_exist_counts_as_zero():
    model, images, labels = linear_problem(3, 4, active_box=False)

    class Blind(nn.Module):
        def forward(self, x):
            return model(x.detach())

    victim = Victim(classifier(Blind(), 3), np.arange(4))
    victim.objective(labels, margin)(images, torch.arange(4), 0, True)
    assert victim.gradient_blocked
    assert victim.slopes.zero.tolist() == victim.slopes.asked.tolist() == [1, 1, 1, 1]


def test_a_buffer_that_changed_its_shape_or_went_away_is_put_back():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("grows", torch.zeros(2))
            self.register_buffer("goes", torch.ones(2))

        def forward(self, x):
            self.grows = torch.zeros(3)
            self.goes = None
            return x

    net = Fickle()
    with pytest.raises(RuntimeError, match="changed the buffer"), frozen(net):
        net(torch.zeros(1))
    assert net.grows.tolist() == [0, 0] and net.goes.tolist() == [1, 1]


def test_a_trace_holds_what_a_search_read_and_changes_nothing(problem):
    model, images, labels = problem
    threat, points = ThreatModel("linf", 0.005), []
    for trace in (None, Trace()):
        victim = Victim(classifier(model, 3), np.arange(10))
        victim.trace = trace
        attack = PGD(PGDParams(steps=6, restarts=2))
        points.append(attack(victim, images, labels, threat).points)
        forwards = victim.forwards
    assert torch.equal(*points)
    first, second = trace.paths(0), trace.paths(1)
    broken = {int(row) for row in (predict(model(points[1])) != labels).nonzero()}
    assert trace.succeeded() == broken and 0 < len(broken) < 10
    assert set(first) == set(range(10)) and broken <= set(first)
    assert all(len(path) == 7 for row, path in first.items() if row not in broken)
    lengths = [len(first[row]) + len(second.get(row, [])) + 1 for row in range(10)]
    assert lengths == forwards.tolist()


def test_a_view_of_that_name_that_a_defense_offers_stays_its_own(problem):
    model, images, labels = problem

    class Offers(Shift):
        """Wrong everywhere, with a view `base` that is right."""

        def views(self):
            return ("base", *super().views())

        def forward_pass(self, gradient="full", view="logits"):
            own = super().forward_pass(gradient, "logits")
            return (lambda x, _: model(x)) if view == "base" else own

    wrong = classifier(nn.Sequential(model, Turn()), 3)
    seen = Victim(Offers(wrong), np.arange(10), base=lambda: pytest.fail("asked"))
    own = seen.logits(images, torch.arange(10), Query(), view="base")[:, 0]
    assert torch.equal(own, model(images))
    for until_all_err in (False, True):
        objective = seen.joint(labels, {"base": margin}, until_all_err=until_all_err)
        success = objective(images, torch.arange(10), 0, False).success
        assert bool(success.any()) != until_all_err


def test_large_images_go_in_few_rows_whatever_the_batch_size(problem, monkeypatch):
    model, images, labels = problem
    seen = []
    network = Linear(model.weight.data, model.bias.data)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr("bench.victim.MOST_VALUES", 3 * images[0].numel() + 1)
    victim = Victim(classifier(network, 3), np.arange(10))
    rows = torch.arange(10)
    victim.logits(images, rows, Query())
    victim.objective(labels, margin)(images, rows, 0, True)
    assert seen == 2 * [3, 3, 3, 1]


def test_a_defense_is_not_asked_about_no_images():
    class Refuses(DefendedClassifier):
        num_classes = 3

        def forward(self, images, noise):
            assert len(images), "an empty batch"
            return images.flatten(1)[:, :3]

    victim = Victim(Refuses(), np.arange(4))
    images, none = torch.rand(4, 1, 2, 2, generator=torch.Generator()), torch.arange(0)
    assert victim.logits(images[:0], none, Query()).shape == (0, 1, 3)
    assert victim.logits(images, torch.arange(4), Query()).shape == (4, 1, 3)
    assert victim.forwards.tolist() == [1] * 4
