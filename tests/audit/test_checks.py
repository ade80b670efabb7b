"""Each check of an audit: what it must find, and an honest model on which it must stay silent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.attack import Attack
from bench.audit import (
    attack_checks,
    binarization,
    minimal_checks,
    path_checks,
    place_checks,
    randomness_checks,
    record_checks,
    search_checks,
)
from bench.audit.limits import STANDARD
from bench.defense import DefendedClassifier, Defense, InputTransform
from bench.errors import BadInput
from bench.losses import cross_entropy
from bench.maximise import ascend
from bench.plugins.create import ATTACKS, DEFENSES
from bench.threat import ThreatModel
from tests.audit.helpers import (
    EPS,
    SCALE,
    Around,
    Hidden,
    audited,
    linear,
    run,
    toy_images,
    verdicts,
)
from tests.toys import exact_distance

HONEST = [
    (attack_checks.one_step, "S1"),
    (attack_checks.longer, "S2"),
    (attack_checks.restarts, "S3"),
    (attack_checks.larger_eps, "S4"),
    (attack_checks.unbounded, "S5"),
    (attack_checks.other_losses, "S13"),
    (attack_checks.every_target, "S18"),
    (search_checks.squares, "S6"),
    (search_checks.noise, "S7"),
    (search_checks.on_the_margin, "margin"),
    (search_checks.along_values, "smoothed"),
    (minimal_checks.nearest_points, "S14"),
    (path_checks.paths, "S11a"),
]


@pytest.mark.parametrize(("check", "name"), HONEST)
def test_an_honest_model_passes(check, name):
    """A linear model under an attack that solves it: nothing is left to find."""
    seen = verdicts(check, linear())[name]
    assert seen.verdict in ("pass", "na"), seen.message


class OnlyAtImages(Around):
    """The gradient exists on the clean images alone: one step from them tells more than many."""

    def __init__(self):
        super().__init__()
        self.register_buffer("images", toy_images()[0])

    def forward(self, x):
        clean = (torch.cdist(x.flatten(1), self.images.flatten(1)).amin(1) < 1e-6)[:, None]
        return torch.where(clean, self.net(x), self.net(x.detach()))


def test_s1_a_single_step_that_beats_many():
    seen = verdicts(attack_checks.one_step, OnlyAtImages())["S1"]
    assert seen.verdict == "fail" and seen.images


SHORT = ("pgd:steps=5,step=eps/10,random_start=false",)


def test_s2_more_steps_break_more():
    seen = verdicts(attack_checks.longer, linear(), attacks=SHORT)["S2"]
    assert seen.verdict == "fail" and seen.value >= 0.1


def test_s3_more_starts_break_more():
    attack = ("pgd:steps=1,step=eps/1000",)
    seen = verdicts(attack_checks.restarts, linear(), attacks=attack, eps=0.03)["S3"]
    assert seen.verdict in ("warn", "fail") and seen.images


class Fenced(Around):
    """Far from the clean image it answers as that image was answered."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.register_buffer("images", toy_images()[0])

    def forward(self, x):
        distance = torch.cdist(x.flatten(1), self.images.flatten(1), p=torch.inf)
        far = (distance.amin(1) > self.limit)[:, None]
        return torch.where(far, self.net(self.images[distance.argmin(1)]), self.net(x))


def test_s4_a_smaller_ball_is_broken_more_often():
    seen = verdicts(attack_checks.larger_eps, Fenced(0.6 * EPS))["S4"]
    assert seen.verdict == "fail" and "smaller ball" in seen.message


class HalfHidden(Around):
    """The gradient is there for images that are dark in one corner."""

    def forward(self, x):
        shown = x.flatten(1)[:, :1] < 0.5
        return torch.where(shown, self.net(x), self.net(x.detach()))


def test_s4_a_curve_that_does_not_fall():
    attack = ("pgd:steps=10,random_start=false",)
    model = HalfHidden()
    seen = verdicts(attack_checks.larger_eps, model, attacks=attack, eps=0.045)["S4"]
    assert seen.verdict == "fail" and seen.value < 0.01
    # Where nothing is broken at all, eps may be tiny.
    for model, eps in ((Hidden(), 0.01), (linear(), 1e-5)):
        seen = verdicts(attack_checks.larger_eps, model, attacks=attack, eps=eps)["S4"]
        assert seen.verdict == "warn"


def test_s5_no_bound_and_yet_unbroken():
    seen = verdicts(attack_checks.unbounded, Hidden())["S5"]
    assert seen.verdict == "fail" and seen.value == 1


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (search_checks.squares, "S6"),
        (search_checks.along_values, "smoothed"),
        (search_checks.noise, "S7"),
    ],
)
def test_function_values_break_what_a_hidden_gradient_saves(check, name):
    with audited(Hidden(), attacks=("pgd:steps=10,random_start=false",), eps=0.03) as row:
        seen = {one.id: one for one in check(row)}[name]
        extra = row.extra()
    assert seen.verdict == "fail" and seen.images
    # What was found joins the extra points, as what the deployed defense answers.
    assert set(extra[0].searches()) == {name}
    assert not extra[0].correct(row.record.outcomes)[extra[0].places(row.record.outcomes)].any()


class Answers(Around):
    """The answer, and nothing of the logits behind it."""

    def forward(self, x):
        answers = self.net(x.detach()).argmax(1)
        return nn.functional.one_hot(answers, 3).float() + 0 * x.flatten(1).sum(1, keepdim=True)


def test_s6_answers_alone_break_what_flat_values_hide():
    """Squares that walk where nothing is told break less than a search along the boundary."""
    asked = {"attacks": ("pgd:steps=10,random_start=false",), "norm": "l2", "eps": 0.05}
    seen = {
        answers: verdicts(
            search_checks.squares, Answers(), scale=replace(SCALE, answers=answers), **asked
        )["S6"]
        for answers in (0, 2000)
    }
    assert "squares" in seen[0].message and "answers alone" in seen[2000].message
    assert seen[2000].value > seen[0].value + 0.2
    assert seen[2000].verdict == "fail"


class Confident(Around):
    """One network decides, and a smooth function beside it sets the confidence: margins lead along
    that function, with or without gradients.
    """

    def forward(self, x):
        beside = torch.tanh(torch.linspace(-1, 1, 3) * x.flatten(1).sum(1, keepdim=True))
        return 1.6 * (200 * self.net(x)).softmax(1) + 0.5 * beside


def test_s6_of_the_standard_profile_asks_answers_alone():
    """Squares that read the confidence break next to nothing; what asks answers alone does."""
    asked = {"attacks": ("pgd:steps=10,random_start=false",), "norm": "l2", "eps": 0.05}
    seen = {
        name: verdicts(
            search_checks.squares, Confident(), scale=replace(SCALE, answers=answers), **asked
        )["S6"]
        for name, answers in (("squares", 0), ("all", STANDARD.answers))
    }
    assert "answers alone" in seen["all"].message and seen["all"].verdict == "fail"
    assert seen["all"].value > seen["squares"].value + 0.1


WEAK = ("pgd:steps=1,step=eps/10,random_start=false",)


def test_s14_nearer_points_than_the_attack_found():
    with audited(linear(), attacks=WEAK, eps=0.02) as row:
        (seen,) = minimal_checks.nearest_points(row)
        extra, left, eps = row.extra()[0], len(row.left), row.threat.eps
        exact = exact_distance(linear(), row.images, row.labels, "linf")
    assert seen.verdict == "fail" and seen.value > 0.1
    places = extra.places(row.record.outcomes)
    broken = np.isin(row.positions, places)
    assert left > 20 and set(extra.searches()) == {"S14"}
    # Of the sample of what the attack left, all and only what lies within eps.
    sample = row.sample(row.left, SCALE.repeated)
    assert (broken[sample] == (exact[sample] <= eps)).mean() > 0.95


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (1.02, "pass"), (3.0, "warn")])
def test_s14_measured_distances_that_are_too_long(factor, verdict):
    with audited(linear(), attacks=("fmn:steps=30",), eps=0.005) as row:
        far = [factor * one for one in row.record.distances.values]
        distances = row.record.distances.model_copy(update={"values": tuple(far)})
        row.record = row.record.model_copy(update={"distances": distances})
        (seen,) = minimal_checks.nearest_points(row)
    assert seen.verdict == verdict
    if verdict == "warn":
        assert seen.value < 0.9 == seen.threshold and seen.images


def test_local_optimality_is_the_area_between_the_curves():
    optimality = minimal_checks.local_optimality
    best, none = np.array([0.1, 0.2, 0.4, np.inf]), np.full(4, np.inf)
    assert optimality(best, best) == 1
    assert optimality(none, best) == 0
    # A = (0.2 + 0.2 + 0.4 + 0.4) / 4, A* = (0.1 + 0.2 + 0.4 + 0.4) / 4, r D = 0.4.
    far = np.array([0.2, 0.2, np.inf, np.inf])
    assert optimality(far, best) == pytest.approx(1 - (0.3 - 0.275) / (0.4 - 0.275))
    assert optimality(none, none) is None and optimality(np.zeros(2), np.zeros(2)) is None


class Steep(Around):
    """Logits so large that the cross-entropy's gradient underflows."""

    def forward(self, x):
        return 1e6 * self.net(x)


@pytest.mark.parametrize(
    ("check", "name"),
    [(attack_checks.other_losses, "S13"), (search_checks.on_the_margin, "margin")],
)
def test_another_loss_breaks_what_a_saturated_one_leaves(check, name):
    attack = ("pgd:steps=10,random_start=false",)
    seen = verdicts(check, Steep(), attacks=attack)[name]
    assert seen.verdict == "fail" and seen.value >= 0.1


class Blocking(InputTransform):
    """Blocks the gradient of the image; `bpda` passes it on."""

    def transform(self, images, noise):
        return images.detach() + 0 * images


@DEFENSES.register("toy-blocking")
class BlockingDefense(Defense):
    """Blocks gradients."""

    builds = Blocking

    def build(self, classifier, access, noise):
        return Blocking(classifier)


def test_s8_points_of_the_base_break_more():
    attack = ("pgd:steps=10,random_start=false",)
    seen = verdicts(search_checks.transfer, defenses=("toy-blocking",), attacks=attack)["S8"]
    assert seen.verdict == "fail"


class OffFiles(InputTransform):
    """Off the values that files hold it answers for the nearest clean image."""

    def __init__(self, inner):
        super().__init__(inner)
        self.register_buffer("images", toy_images()[0])

    def transform(self, x, noise):
        whole = ((x * 255).round() / 255 == x).flatten(1).all(1)
        near = torch.cdist(x.detach().flatten(1), self.images.flatten(1)).argmin(1)
        return torch.where(whole[:, None, None, None], x, self.images[near] + 0 * x)


@DEFENSES.register("toy-off-files")
class OffFilesDefense(Defense):
    """Two functions."""

    builds = OffFiles

    def build(self, classifier, access, noise):
        return OffFiles(classifier)


def test_s19_another_function_on_the_values_that_files_hold():
    """Mutation: points that are not rounded."""
    with audited(defenses=("toy-off-files",), eps=0.05) as row:
        (none,) = place_checks.whole_pixels(row)
        assert none.verdict == "na"
        row.images = (row.images * 255).round() / 255
        (seen,) = place_checks.whole_pixels(row)
    assert seen.verdict == "fail" and seen.images
    with audited(eps=0.05) as row:
        row.images = (row.images * 255).round() / 255
        (honest,) = place_checks.whole_pixels(row)
    assert honest.verdict == "pass"


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "pass"), (1, "warn"), (2, "fail")])
def test_s20_a_new_process_that_answers_otherwise(wrong, verdict):
    with audited(Hidden()) as row:
        assert [one.verdict for one in place_checks.new_process(row)] == ["na"]
        told = []

        def elsewhere(points, ids):
            told.append(len(points))
            answers = [row.true[:, None].repeat(1, 1) for _ in points]
            answers[0][:wrong] += 1
            return answers

        row.elsewhere = elsewhere
        (seen,) = place_checks.new_process(row)
    assert seen.verdict == verdict and seen.value == wrong and told == [1]


def test_s20_tells_a_process_that_fails():
    def broken(points, ids):
        raise BadInput("no weights")

    with audited(Hidden()) as row:
        row.elsewhere = broken
        (seen,) = place_checks.new_process(row)
    assert seen.verdict == "warn" and "no weights" in seen.message


def test_s8_needs_a_base():
    assert verdicts(search_checks.transfer)["S8"].verdict == "na"


def test_s12_the_defense_s_other_gradient_breaks_more():
    attack = ("pgd:steps=10,random_start=false",)
    seen = verdicts(attack_checks.other_gradients, defenses=("toy-blocking",), attacks=attack)
    assert seen["S12"].verdict == "fail"
    assert verdicts(attack_checks.other_gradients)["S12"].verdict == "na"


class Purified(InputTransform):
    """Gives back the clean image that is nearest, with noise that changes no answer."""

    stochastic = True

    def __init__(self, classifier):
        super().__init__(classifier)
        self.register_buffer("clean", toy_images()[0])

    def transform(self, images, noise):
        nearest = torch.cdist(images.flatten(1), self.clean.flatten(1)).argmin(1)
        gone = self.clean[nearest] + 1e-6 * noise.normal("noise", tuple(images.shape[1:]))
        return gone + 0 * images


@DEFENSES.register("toy-purified")
class PurifiedDefense(Defense):
    """Knows all images."""

    builds = Purified

    def build(self, classifier, access, noise):
        return Purified(classifier)


def test_s9b_warns_where_a_purifier_takes_the_attack_away():
    seen = verdicts(randomness_checks.fixed_noise, defenses=("toy-purified",))
    assert seen["S9b"].verdict == "warn" and "takes away" in seen["S9b"].message
    assert seen["S9a"].verdict == "pass"


def test_s9_of_honest_noise_passes(monkeypatch):
    seen = verdicts(randomness_checks.fixed_noise, defenses=("toy-jitter:sigma=0.001",))
    assert {one.verdict for one in seen.values()} == {"pass"}
    nothing = lambda row: np.zeros(len(row), dtype=bool)  # noqa: E731
    monkeypatch.setattr(randomness_checks, "_broken_on_fixed_noise", nothing)
    seen = verdicts(randomness_checks.fixed_noise, defenses=("toy-jitter:sigma=0.001",))
    assert seen["S9a"].verdict == "fail"


def test_s17_tells_what_chance_breaks():
    seen = verdicts(randomness_checks.chance, defenses=("toy-jitter:sigma=0.02",))["S17"]
    _, record = run(defenses=("toy-jitter:sigma=0.02",))
    assert seen.value == pytest.approx(1 - record.outcomes.correct("clean").all(1).mean())
    assert seen.value > 0 and seen.verdict == "pass"
    assert verdicts(randomness_checks.chance)["S17"].verdict == "na"


def test_s10_more_draws_a_step():
    with audited(defenses=("toy-jitter:sigma=0.001",)) as row:
        assert next(iter(attack_checks.more_draws(row))).verdict == "pass"
    assert verdicts(attack_checks.more_draws)["S10"].verdict == "na"


@ATTACKS.register("toy-forgetful")
class Forgetful(Attack):
    """Searches, and returns the images."""

    def run(self, victim, images, labels, threat):
        objective = victim.objective(labels, cross_entropy)
        ascend(objective, images, images, threat, steps=12, size=threat.eps / 6)
        return images


def test_s11a_a_success_that_is_not_returned():
    seen = verdicts(path_checks.paths, attacks=("toy-forgetful",))["S11a"]
    assert seen.verdict == "fail" and seen.images


def test_an_attack_without_steps_is_replaced_by_ascent():
    """In the ball that is asked for: without a bound, everything falls."""
    with audited(linear(), attacks=("toy-forgetful",)) as row:
        assert len(row.left) == len(row)
        points = row.own(row.left, steps=20, threat=ThreatModel("linf", 1.0))
        assert not row.judged(points, row.left).any()
        compared = row.compare("S2", lambda rows: row.own(rows, steps=20))
        assert compared.beats and len(compared.rows) < len(row)


@pytest.mark.parametrize(("attack", "verdict"), [("eps/40", "warn"), ("eps", "pass")])
def test_s11c_a_search_that_still_rises(attack, verdict):
    attacks = (f"pgd:steps=20,step={attack},random_start=false",)
    assert verdicts(path_checks.paths, attacks=attacks, eps=0.004)["S11c"].verdict == verdict


class Rippled(Around):
    """A ripple that is as high as the margins."""

    def forward(self, x):
        wave = 3 * torch.sin(4000 * x.flatten(1)[:, :1])
        return self.net(x) + torch.cat([wave, -wave, 0 * wave], 1)


def test_s11b_a_margin_that_jumps():
    attack = ("pgd:steps=1,step=eps/1000,random_start=false",)
    for model, verdict in ((Rippled(), "warn"), (linear(), "pass")):
        seen = verdicts(path_checks.unstable, model, attacks=attack, eps=0.001)
        assert seen["S11b"].verdict == verdict, seen["S11b"].message


class Featured(DefendedClassifier):
    """The linear model, whose pixels are its features; `blocked` hides their gradient."""

    num_classes = 3

    def __init__(self, blocked):
        super().__init__()
        self.net, self.blocked = linear(), blocked

    def views(self):
        return ("logits", "features")

    def forward(self, images, noise):
        return self.forward_pass()(images, noise)

    def forward_pass(self, gradient="full", view="logits"):
        def forward(images, noise):
            seen = images.detach() + 0 * images if self.blocked else images
            return seen.flatten(1) if view == "features" else self.net(seen)

        return forward


@pytest.mark.parametrize(("blocked", "verdict"), [(False, "pass"), (True, "fail")])
def test_s15_planted_points_are_found_or_not(blocked, verdict):
    attack = ("pgd:steps=20,random_start=false",)
    seen = verdicts(binarization.binarization, Featured(blocked), attacks=attack)["S15"]
    assert seen.verdict == verdict, seen.message
    assert seen.value == (0 if blocked else 1)
    # Random points find few of them, so that the test is one of the attack.
    chance = float(seen.message.partition("random points ")[2].removesuffix(" %"))
    assert chance <= 40


def test_s15_says_nothing_where_no_head_separates():
    """Three logits are too few."""
    assert verdicts(binarization.binarization, linear())["S15"].verdict == "na"


def test_p8_a_constant_answer():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0, 0]) + 0 * x.flatten(1)[:, :3]

    _, record = run(Constant())
    assert next(record_checks.collapse(record)).verdict == "fail"
    _, record = run()
    assert next(record_checks.collapse(record)).verdict == "pass"


def test_s16_a_longer_search_that_breaks_less():
    _, short = run(attacks=("pgd:steps=5",))
    _, long = run(attacks=("pgd:steps=10",))
    assert next(record_checks.order(long, [short])).verdict == "pass"
    assert next(record_checks.order(short, [long])).verdict == "na"
    nothing = long.outcomes.model_copy(update={"adversarial": long.outcomes.clean})
    worse = long.model_copy(update={"outcomes": nothing})
    seen = next(record_checks.order(worse, [short]))
    assert seen.verdict == "fail" and seen.value >= 7
    _, other = run(attacks=("pgd:steps=5,loss=margin",))
    assert next(record_checks.order(worse, [other])).verdict == "na"


def test_a_stronger_search_must_be_shown_to_be_stronger():
    """One that breaks survivors, and fails where the row's attack succeeds, proves nothing."""
    with audited(linear(), attacks=SHORT) as row:
        assert len(row.left) > 7 and len(row.broken) > 7

        def only_survivors(rows):
            points = row.images[rows].clone()
            here = np.isin(rows, row.left)
            points[here] = row.own(rows[here], steps=20)
            return points

        one_sided = row.compare("S6", only_survivors)
        both = row.compare("S6", lambda rows: row.own(rows, steps=20))
        assert len(one_sided.rows) == len(both.rows) >= 7
        assert one_sided.only_row == len(row.broken) and not one_sided.beats
        assert both.only_row == 0 and both.complete and both.beats
        sampled = row.compare("S6", only_survivors, most=8)
        assert sampled.n == 8 + round(len(row.broken) * 8 / len(row.left))


def test_what_many_searches_break_counts_together():
    """Each breaks too little to say much, and together they show that the number is wrong."""
    with audited(linear(), attacks=SHORT) as row:
        points = row.own(row.left, steps=20)
        can = row.left[row.judged(points, row.left)[:, 0] == 0][:8]
        for name, some in (("S6", can[:4]), ("S7", can[3:])):
            row.offer(name, row.own(some, steps=20), some)
        seen = next(search_checks.together(row))
        assert len(row.extra()[0].image_ids()) == 8
        assert seen.verdict == "fail" and seen.value == pytest.approx(8 / len(row))
        assert set(row.extra()[0].searches()) == {"S6", "S7"}
    assert verdicts(search_checks.together, linear())["together"].verdict == "pass"


def test_images_are_spread_over_the_classes():
    scale = replace(SCALE, images=12)
    with audited(linear(), scale=scale, eps=1e-4) as row:
        counts = np.bincount(row.true, minlength=3)
        assert len(row) == 12 and counts.max() - counts.min() <= 1


def test_few_survivors_are_all_looked_at():
    """And those that were broken weigh as they do in the record."""
    eps = 0.02
    with audited(linear(), eps=eps) as row:
        survivors = set(row.positions[row.left])
        broken = len(row.broken)
    assert 3 < len(survivors) < 16
    with audited(linear(), scale=replace(SCALE, images=20), eps=eps) as row:
        assert survivors == set(row.positions[row.left]) and len(row) == 20
        compared = row.compare("S6", lambda rows: row.images[rows])
        assert compared.n == len(survivors) + broken


def test_a_suite_is_run_again_with_the_gradients_that_it_knows():
    """Mutation: plain ascent in its place, whose gradient is 0 behind rounded pixels."""
    changes = {
        "defenses": ("bit-depth",),
        "attacks": ("adaptive",),
        "dataset": "mnist5k",
        "classifier": "zoo:mnist5k-cnn",
        "n": 12,
        "eps": 0.3,
    }
    with audited(**changes) as row:
        (wider,) = attack_checks.larger_eps(row)
        (unbounded,) = attack_checks.unbounded(row)
        points, broken = row.base
    assert (wider.verdict, unbounded.verdict) == ("pass", "pass"), (wider, unbounded)
    assert broken.all() and len(points) == len(row)
