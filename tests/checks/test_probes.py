"""Probes: slopes with known answers, honest networks, modules that mask, the cost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.checks import probes, slopes
from bench.checks.probes import CHEAP, ENOUGH, SEARCHES, Probed, ProbeSetting, probe, quota
from bench.checks.slopes import Slopes, judge, measure, unit
from bench.losses import cross_entropy
from bench.maximise import ascend
from bench.noise import Noise
from bench.randomness import RandomnessModel, read_randomness
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.toys import Around, Linear, NoisyLinear, classifier, exact_distance, linear_problem

PASSES = 36
REPLAY = read_randomness("replay")
FLOAT32 = float(torch.finfo(torch.float32).eps)
N = 40


def defended(module, classes=3):
    return module if isinstance(module, NoisyLinear) else classifier(module, classes)


def makes(module, classes=3):
    built = defended(module, classes)

    def make(ids, randomness, gradient):
        return Victim(built, ids, randomness=randomness, gradient=gradient)

    return make


@pytest.fixture(scope="module")
def problem():
    """A linear model, images that all have an adversarial example well inside eps, labels."""
    model, images, labels = linear_problem(3, 3 * N, active_box=True)
    distance = exact_distance(model, images, labels, "linf")
    order = np.argsort(distance)[:N]
    return model, images[order], labels[order], ThreatModel("linf", 1.5 * distance[order].max())


def attacked(module, images, labels, threat):
    """Points and survivors of plain PGD."""
    victim = makes(module)(np.arange(len(images)), REPLAY, "full")
    objective = victim.objective(labels, cross_entropy)
    with frozen(victim._classifier):
        ascent = ascend(objective, images, images, threat, steps=20, size=threat.eps / 8)
        left = victim.verify(ascent.points)[:, 0] == labels
    return ascent.points, left.nonzero().squeeze(1)


def probed(module, images, labels, points, threat, **setting):
    ids = np.arange(len(images))
    settled = {"randomness": RandomnessModel(), **setting}
    with frozen(defended(module)):
        return probe(
            makes(module), Probed(ids, images, labels, points), ProbeSetting(threat, **settled)
        )


def slopes_of(module, images, labels, threat, rounding=FLOAT32, classes=3):
    victim = makes(module, classes)(np.arange(len(images)), REPLAY, "full")
    with frozen(victim._classifier):
        return measure(victim, labels, images, threat, rounding), victim


# Modules around a network ------------------------------------------------------------------------


def ste(value, proxy):
    return value.detach() + (proxy - proxy.detach())


def pixels(flags):
    return flags.reshape(-1, 1, 1, 1)


def off_grid(x):
    return pixels((x * 255 - (x * 255).round()).abs().flatten(1).amax(1) > 1e-3)


def near(z, gap=3.0):
    return z.topk(2).values.diff().abs() < gap


def other(net):
    """Another network of the same kind."""
    return Linear(net.weight.detach().roll(5, 1), net.bias.detach())


def hashed(x):
    return torch.sin(1e4 * x + 13 * torch.arange(x[0].numel()).reshape(x[0].shape))


def bait(net, x):
    z = net(x).detach()
    lowest = torch.zeros_like(z).scatter(1, z.argmin(1, keepdim=True), 1.0)
    return z + lowest * (x - x.detach()).flatten(1).sum(1, keepdim=True)


def infinite(net, x):
    z = net(x)
    top = (z == z.amax(1, keepdim=True)) & (z.topk(2).values.diff().abs() > 0.5)
    return torch.where(top, torch.inf, z)


def one_hot(net, x):
    z = net(x)
    return z + 200.0 * torch.zeros_like(z).scatter(1, z.argmax(1, keepdim=True), 1.0)


def penalty(net, x):
    """A square root at 0, whose gradient is NaN."""
    return net(x) - ((x - x.clamp(0, 1)) ** 2).flatten(1).sum(1).sqrt()[:, None]


def sees_gradients(net, x):
    return other(net)(x) if x.requires_grad else net(x)


MASKED = {
    "nan": penalty,
    "zero": lambda net, x: net(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True),
    "zero off the grid": lambda net, x: net(torch.where(off_grid(x), x.detach() + 0 * x, x)),
    "turned off the grid": lambda net, x: net(torch.where(off_grid(x), ste(x, -x), x)),
    "zero at the boundary": lambda net, x: torch.where(
        near(net(x)), net(x).detach() + 0 * net(x), net(x)
    ),
    "turned at the boundary": lambda net, x: torch.where(
        near(net(x)), ste(net(x), -net(x)), net(x)
    ),
    "noise at the boundary": lambda net, x: torch.where(
        near(net(x)), ste(net(x), net(hashed(x))), net(x)
    ),
    "another function under gradients": sees_gradients,
    "turned": lambda net, x: ste(net(x), -net(x)),
    "noise": lambda net, x: ste(net(x), net(hashed(x))),
    "decoy": lambda net, x: ste(net(x), net(x.flip(2).transpose(2, 3))),
    "gradient of another network": lambda net, x: ste(net(x), other(net)(x)),
    "steep decoy": lambda net, x: ste(net(x), 1e4 * other(net)(x)),
    "faint decoy": lambda net, x: ste(net(x), 1e-4 * other(net)(x)),
    "bait class": bait,
    "a few pixels": lambda net, x: net(torch.cat([x[:, :, :1], x[:, :, 1:].detach()], 2)),
    "staircase with a ramp": lambda net, x: net(ste((x * 64).floor() / 64, -x)),
    "coarse staircase with a ramp": lambda net, x: net(ste((x * 12).round() / 12, x.flip(3))),
    "stairs of logits": lambda net, x: ste((net(x) * 2).round() / 2, other(net)(x)),
    "stairs without a ramp": lambda net, x: (net(x) * 8).round() / 8,
    "fast ripple": lambda net, x: net(x + 0.005 * torch.sin(3e4 * x)),
    "slow ripple": lambda net, x: net(x + 0.03 * torch.sin(600 * x)),
    "infinite logits": infinite,
    "one-hot and logits": one_hot,
    "temperature": lambda net, x: net(x) * 1e3,
}


class Gelu(nn.Module):
    """Smooth, curved, and close to the linear model."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        z = self.inner(x)
        return nn.functional.gelu(z / 4) * 4 + 0.1 * z


HONEST = {
    "linear": lambda net, x: net(x),
    "gelu": lambda net, x: Gelu(net)(x),
    "leaky": lambda net, x: nn.functional.leaky_relu(net(x), 0.3),
    "log-softmax": lambda net, x: net(x).log_softmax(1),
    "clamped": lambda net, x: net(x.clamp(0, 1)),
    "offset": lambda net, x: net(x) + 1e4,
    "small logits": lambda net, x: net(x) * 1e-6,
    "8 bit": lambda net, x: net(ste((x * 255).round() / 255, x)),
    "half": lambda net, x: net(x.half().float()).half().float(),
}


# Slopes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_function_has_the_slope_of_its_gradient(norm):
    model, images, labels = linear_problem(2, N, active_box=True)
    threat = ThreatModel(norm, 0.3)
    (measured, zero, logits), victim = slopes_of(model, images, labels, threat, classes=2)
    torch.testing.assert_close(measured.sign.nan_to_num(1.0), torch.ones(N, 3, 2))
    assert not measured.ratio.isnan().any() and measured.ratio.abs().max() < 0.02
    assert measured.mismatch.nan_to_num(0.0).max() < 0.05
    assert not zero.any() and logits.shape == (N, 2)
    assert victim.forwards.tolist() == [14] * N and victim.backwards.tolist() == [1] * N
    assert not judge(measured).fired


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_direction_has_length_one_and_gains_most(norm):
    threat = ThreatModel(norm, 0.1)
    gradient = torch.randn(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    direction = unit(gradient, threat)
    length = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    norms = direction.flatten(1).norm(p=length, dim=1)
    torch.testing.assert_close(norms, torch.ones(5))
    moved = threat.ascend(torch.full_like(gradient, 0.5), gradient, 0.01, gradient * 0 + 0.5) - 0.5
    torch.testing.assert_close(moved, 0.01 * direction, atol=1e-6, rtol=1e-3)
    assert not unit(torch.zeros(1, 3, 4, 4), threat).any()


def test_no_step_leaves_the_box(problem):
    model, images, labels, threat = problem
    seen = []

    def watch(net, x):
        seen.append((float(x.detach().min()), float(x.detach().max())))
        return net(x)

    edge = torch.where(images > 0.5, 1.0, 0.0)
    for norm, eps in (("linf", 0.3), ("l2", 2.0), ("l1", 6.0)):
        slopes_of(Around(model, watch), edge, labels, ThreatModel(norm, eps))
    assert min(low for low, _ in seen) >= 0 and max(high for _, high in seen) <= 1


@pytest.mark.parametrize("name", HONEST)
def test_slopes_of_honest_modules_are_quiet(problem, name):
    model, images, labels, threat = problem
    rounding = float(torch.finfo(torch.float16).eps) if name == "half" else FLOAT32
    (measured, _, _), _ = slopes_of(
        Around(model, HONEST[name]), images, labels, threat, rounding=rounding
    )
    assert not judge(measured).fired


QUIET = {"infinite logits", "one-hot and logits", "temperature"}
"""What has the right gradient of the margin."""


@pytest.mark.parametrize("name", sorted(MASKED.keys() - QUIET))
def test_slopes_tell_another_gradient(problem, name):
    model, images, labels, threat = problem
    module = Around(model, MASKED[name])
    points, left = attacked(module, images, labels, threat)
    (measured, _, _), _ = slopes_of(module, points[left][:16], labels[left][:16], threat)
    assert judge(measured).fired


def test_what_lies_below_the_rounding_has_no_vote(problem):
    model, images, labels, threat = problem
    flat = Around(model, lambda net, x: 1e5 + 1e-4 * net(x))
    (measured, _, _), _ = slopes_of(flat, images, labels, threat)
    assert measured.sign.isnan().all() and measured.ratio.isnan().all()
    assert not judge(measured).fired


def table(sign=1.0, ratio=0.0, mismatch=0.0, m=8):
    """Slopes by step length: numbers, or one number for both."""

    def filled(values):
        return torch.tensor(values, dtype=torch.float32).expand(m, 3, 2).clone()

    return Slopes(filled(sign), filled(ratio), filled(mismatch))


@pytest.mark.parametrize(
    ("slope", "fired"),
    [
        (table(), False),
        (table(sign=0.7), True),
        (table(sign=[0.0, 1.0]), False),
        (table(sign=[1.0, 0.7]), False),
        (table(sign=[1.0, 0.4]), True),
        (table(ratio=[-3.0, 0.0]), False),
        (table(ratio=[0.0, -1.1]), True),
        (table(ratio=[0.0, 1.1]), True),
        (table(mismatch=[0.9, 0.3]), False),
        (table(mismatch=[0.4, 0.4]), True),
        (table(mismatch=[0.0, 1.5]), False),
        (table(sign=[0.7, 1.0], mismatch=[0.0, 0.4]), True),
        (table(sign=[1.0, 0.7], ratio=[-3.0, 0.0]), True),
        (table(sign=math.nan, ratio=math.nan, mismatch=math.nan), False),
        (table(sign=0.0, ratio=3.0, mismatch=2.0, m=1), False),
    ],
)
def test_slopes_are_judged_at_both_lengths(slope, fired):
    assert judge(slope).fired is fired


def test_slopes_of_shards_are_joined_in_order():
    whole = slopes.joined([table(m=2), table(sign=0.0, m=3)])
    assert whole.sign[:, 0, 0].tolist() == [1, 1, 0, 0, 0]
    assert slopes.unmeasured(4).sign.isnan().all()


# Probes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threat", "lengths"),
    [
        (ThreatModel("linf", 0.1), (0.001, 0.01)),
        (ThreatModel("linf", 4 / 255), (0.04 / 255, 1 / 255)),
        (ThreatModel("linf", 2 / 255), (0.02 / 255, 0.5 / 255)),
        (ThreatModel("l2", 0.01), (0.0001, 0.001)),
    ],
)
def test_the_longer_step_reaches_the_next_grey_level(threat, lengths):
    assert slopes.step_lengths(threat) == pytest.approx(lengths)


def test_a_gradient_is_measured_where_its_own_pass_answers_wrong(problem):
    """A victim runs no backward pass where all images have succeeded."""
    model, images, labels, threat = problem
    module = Around(model, lambda net, x: net(x).roll(1, 1) if x.requires_grad else net(x))
    (measured, zero, _), victim = slopes_of(module, images, labels, threat)
    assert not zero.any() and victim.backwards.tolist() == [1] * N
    assert judge(measured).fired


@pytest.mark.parametrize(
    ("logits", "saturated"),
    [
        ([5.0, 1.0, 0.0], False),
        ([80.0, 1.0, 0.0], True),
        ([1.0, 1.0, 0.0], True),
        ([1e4, 1e4 - 0.05, 0.0], True),
        ([math.inf, 1.0, 0.0], True),
        ([0.0, -math.inf, -math.inf], True),
        ([0.0, 5.0, 1.0], False),
    ],
)
def test_logits_that_tell_a_loss_nothing(logits, saturated):
    seen = probes._saturated(torch.tensor([logits]), torch.tensor([0]))
    assert seen.tolist() == [saturated]


def test_a_flat_answer_calls_for_the_decision(problem):
    """A sigmoid so steep that values and gradients are constant: slopes have nothing to tell."""
    model, images, labels, threat = problem
    steep = Around(
        model, lambda net, x: torch.sigmoid(1e4 * net(x)) + torch.tensor([0.0, 0.1, 0.2])
    )
    result = probed(steep, images[:8], steep(images[:8]).argmax(1), images[:8], threat)
    assert result.saturated.all() and result.decided
    assert not judge(result.slopes).fired


@pytest.mark.parametrize(("n", "images"), [(100, 16), (96, 16), (5000, 16), (30, 5), (5, 0)])
def test_sixteen_images_of_a_row_are_probed(n, images):
    assert quota(n) == images


@pytest.mark.parametrize("name", HONEST)
def test_honest_modules_are_not_suspicious(problem, name):
    model, images, labels, threat = problem
    small = replace(threat, eps=threat.eps / 4)
    rounding = float(torch.finfo(torch.float16).eps) if name == "half" else FLOAT32
    module = Around(model, HONEST[name])
    points, left = attacked(module, images, labels, small)
    left = left[:16]
    result = probed(module, images[left], labels[left], points[left], small, rounding=rounding)
    assert not result.decided
    # A clamp stops gradients at the ends of the box, and the attack leaves what the network inside
    # does not.
    assert len(left) >= 8 and sum(map(bool, result.by)) <= (5 if name == "clamped" else 1)
    assert int((result.forwards + result.backwards).max()) <= PASSES


@pytest.mark.parametrize("name", MASKED)
def test_what_masks_is_suspected_and_falls(problem, name):
    model, images, labels, threat = problem
    module = Around(model, MASKED[name])
    points, left = attacked(module, images, labels, threat)
    left = left[:16]
    assert len(left) >= ENOUGH, "the attack is not masked"
    result = probed(module, images[left], labels[left], points[left], threat)
    broken = torch.tensor([bool(by) for by in result.by])
    assert result.decided and int(broken.sum()) >= ENOUGH
    assert set(result.by) <= {"", *SEARCHES}
    with torch.no_grad():
        answers = module(result.points).argmax(1)
    assert (answers[broken] != labels[left][broken]).all()
    assert torch.equal(result.points[~broken], points[left][~broken])
    assert threat.contains(result.points, images[left]).all()
    assert int(result.forwards.max()) <= 2700 + PASSES


def nearly_equal(net, x):
    """The answer of the network, and logits that follow those of another one within a hair."""
    z = net(x)
    top = z.amax(1, keepdim=True)
    return torch.where(z == top, top, top - 5 - 0.01 * torch.tanh(other(net)(x)))


def large_batches(net, x):
    """The gradient of another function in batches as large as the attack's."""
    return ste(net(x), other(net)(x)) if len(x) > 16 else net(x)


@pytest.mark.parametrize("module", [nearly_equal, large_batches])
def test_what_no_slope_tells_falls_to_a_few_steps(problem, module):
    """The gradient is that of the function, where it is looked at."""
    model, images, labels, threat = problem
    module = Around(model, module)
    points, left = attacked(module, images, labels, threat)
    left = left[:16]
    assert len(left) >= ENOUGH
    result = probed(module, images[left], labels[left], points[left], threat)
    assert not result.decided and sum(map(bool, result.by)) >= ENOUGH
    assert set(result.by) <= {"", "few margin steps", "few steps on the network inside"}
    assert int((result.forwards + result.backwards).max()) <= PASSES


def test_a_success_of_another_function_is_none(problem):
    """Where gradients are on, everything is wrong; nothing is in truth."""
    model, images, labels, threat = problem
    module = Around(model, lambda net, x: -net(x) if x.requires_grad else net(x))
    tiny = replace(threat, eps=1e-4)
    result = probed(module, images[:8], labels[:8], images[:8], tiny, suspicious=True)
    assert result.decided and not any(result.by)
    assert torch.equal(result.points, images[:8])


def test_the_decision_ends_when_enough_is_broken(problem, monkeypatch):
    model, images, labels, threat = problem
    module = Around(model, MASKED["temperature"])
    ran = []
    run = probes._Found._run
    monkeypatch.setattr(
        probes._Found, "_run", lambda self, name, *more: (ran.append(name), run(self, name, *more))
    )
    result = probed(module, images[:16], labels[:16], images[:16], threat)
    assert result.decided and ran == ["few margin steps"]
    # One is enough: though some are left, no other search is run.
    ran.clear()
    with monkeypatch.context() as patch:
        patch.setattr(probes, "ENOUGH", 1)
        some = replace(threat, eps=threat.eps / 2)
        result = probed(model, images[-16:], labels[-16:], images[-16:], some, suspicious=True)
    assert any(result.by) and not all(result.by) and ran == ["few margin steps"]
    # Under tiny eps nothing breaks, and all searches run.
    ran.clear()
    tiny = replace(threat, eps=1e-4)
    result = probed(module, images[:8], labels[:8], images[:8], tiny, suspicious=True)
    assert ran == list(SEARCHES) and not any(result.by)
    assert int(result.forwards.max()) <= 2700 + PASSES


def test_a_declared_gradient_is_not_compared(problem):
    model, images, labels, threat = problem
    module = Around(model, MASKED["turned"])
    result = probed(module, images[:8], labels[:8], images[:8], threat, declared=True)
    assert result.slopes.sign.isnan().all() and not result.decided
    more = probed(
        module, images[:8], labels[:8], images[:8], threat, declared=True, suspicious=True
    )
    assert more.decided and sum(map(bool, more.by)) >= ENOUGH


def test_gradients_of_another_forward_pass_are_not_followed(problem):
    model, images, labels, threat = problem
    result = probed(
        model,
        images[:8],
        labels[:8],
        images[:8],
        threat,
        declared=True,
        transfers=True,
        suspicious=True,
    )
    assert not result.backwards.any() and not {"few margin steps", "margin steps"} & {*result.by}
    assert sum(map(bool, result.by)) >= ENOUGH


@pytest.mark.parametrize("randomness", ["fresh", "eot:k=4", "replay"])
def test_random_defenses(problem, randomness):
    """A point counts where it is wrong on the mean of draws that no search has seen."""
    model, images, labels, threat = problem
    noisy = NoisyLinear(model, 0.05)
    setting = {"randomness": read_randomness(randomness)}
    result = probed(noisy, images[:8], labels[:8], images[:8], threat, suspicious=True, **setting)
    assert not judge(result.slopes).fired
    assert sum(map(bool, result.by)) >= ENOUGH
    broken = [row for row, by in enumerate(result.by) if by]
    noise = Noise.of(5, "eval", np.repeat(broken, 20), np.tile(np.arange(20), len(broken)))
    with torch.no_grad():
        logits = noisy(result.points[broken].repeat_interleave(20, 0), noise)
    wrong = (logits.argmax(1) != labels[broken].repeat_interleave(20)).reshape(-1, 20)
    if randomness != "replay":
        assert (wrong.float().mean(1) > 0.5).float().mean() > 0.8


def test_an_image_is_probed_alone_as_in_company(problem):
    model, images, labels, threat = problem
    module = Around(model, MASKED["fast ripple"])
    (together, _, _), _ = slopes_of(module, images[:4], labels[:4], threat)
    victim = makes(module)(np.array([2]), REPLAY, "full")
    with frozen(victim._classifier):
        alone, _, _ = measure(victim, labels[2:3], images[2:3], threat, FLOAT32)
    torch.testing.assert_close(alone.ratio[0], together.ratio[2], equal_nan=True, rtol=0, atol=0.05)


def test_a_dear_prediction_makes_the_decision_short(problem):
    """Nothing can be broken in so small a ball: the decision runs to its end."""
    model, images, labels, _ = problem
    spent = [
        int(
            probed(
                model,
                images[:4],
                labels[:4],
                images[:4],
                ThreatModel("linf", 1e-6),
                suspicious=True,
                prediction=prediction,
            ).forwards.max()
        )
        for prediction in (1.0, CHEAP, 1000.0)
    ]
    assert spent[0] == spent[1] > 2000 and spent[2] < 250, spent
