"""A purified classifier: noise, gradients, memory, votes."""

import numpy as np
import pytest
import torch
from bench_defenses.purification.purifier import (
    Purification,
    Purified,
    Round,
    count_votes,
    memory_plan,
)

from bench.defense import DefendedClassifier, InputTransform
from bench.diffusion.chain import Sampler, noised
from bench.engine.inference import inspect
from bench.engine.memory import limited, read_size
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import Noise, generators
from bench.randomness import read_randomness
from bench.victim import Victim, frozen
from tests.defenses.purification.helpers import (
    SIDE,
    Linear,
    closed_form,
    diffpure,
    gaussian,
    images,
    noise,
    purified,
    tiny_unet,
)


@pytest.mark.parametrize(("t", "steps"), [(200, 10), (200, 200), (50, 1)])
def test_purified_gaussian_images_have_their_closed_form(t, steps):
    mean, std, n = 0.2, 0.5, 256
    defended = diffpure(gaussian(mean, std, side=16), t, steps)
    x = torch.full((n, 1, 16, 16), 0.9)
    z = 2 * defended.purify(x, noise(n)) - 1
    slope, offset, variance = closed_form(t, steps, mean, std)
    assert z.mean().item() == pytest.approx(
        slope * 0.8 + offset, abs=4 * np.sqrt(variance / z.numel())
    )
    assert z.var().item() == pytest.approx(variance, rel=4 * np.sqrt(2 / z.numel()))
    leaf = x[:4].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(defended.purify(leaf, noise(4)).sum(), leaf)
    assert torch.allclose(gradient, torch.full_like(gradient, slope), rtol=1e-4)


def test_outputs_do_not_depend_on_batch_order_or_threads():
    defended, x = diffpure(tiny_unet()), images(64)
    whole = defended(x, noise(64))
    for size in (7, 1):
        parts = [
            defended(x[i : i + size], noise(64).rows(slice(i, i + size)))
            for i in range(0, 64, size)
        ]
        assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
        assert torch.equal(torch.cat(parts).argmax(1), whole.argmax(1))
    order = np.random.default_rng(0).permutation(64)
    shuffled = defended(x[torch.from_numpy(order)], noise(64).rows(order))
    assert torch.allclose(shuffled, whole[torch.from_numpy(order)], atol=1e-5)
    torch.set_num_threads(2)
    try:
        assert torch.allclose(defended(x, noise(64)), whole, atol=1e-5)
    finally:
        torch.set_num_threads(1)


class Log:
    """Every request of random numbers: (stream, draw, site)."""

    def __init__(self, monkeypatch):
        self.requests: list[tuple[str, int, str]] = []
        for kind in ("uniform", "normal"):
            monkeypatch.setattr(Noise, kind, self._noting(getattr(Noise, kind)))

    def _noting(self, plain):
        def noting(noise, site, *shape):
            key = noise._key
            self.requests.append((str(key.stream), int(key.draws[0]), f"{key.site}/{site}"))
            return plain(noise, site, *shape)

        return noting

    def count(self, part: str) -> int:
        return sum(part in path for *_, path in self.requests)


@pytest.mark.parametrize(("kind", "steps", "forward"), [("diffpure", 5, 1), ("revpure", 5, 0)])
def test_draws_are_one_a_round_forward_and_one_less_than_the_steps_in_reverse(
    monkeypatch, kind, steps, forward
):
    level = 99 if forward else None
    defended = purified(tiny_unet(), *[Round(100, steps, level)] * 2)
    log = Log(monkeypatch)
    defended(images(), noise())
    assert log.count("/forward/") == 2 * forward
    assert log.count("/reverse/") == 2 * (steps - 1)
    assert len(log.requests) == len(set(log.requests)) == 2 * (forward + steps - 1)


def test_ddim_without_eta_draws_nothing_in_reverse(monkeypatch):
    defended = diffpure(tiny_unet(), sampler=Sampler("ddim"))
    log = Log(monkeypatch)
    defended(images(), noise())
    assert log.count("/reverse/") == 0 and log.count("/forward/") == 1
    assert not purified(tiny_unet(), Round(100, 5, None), sampler=Sampler("ddim")).stochastic


def victim(defended: DefendedClassifier, randomness: str, gradient: str = "full") -> Victim:
    return Victim(defended, np.arange(6), randomness=read_randomness(randomness), gradient=gradient)


def read(under: Victim, iteration: int, x: torch.Tensor | None = None):
    from bench.losses import margin

    labels = torch.zeros(6, dtype=torch.int64)
    return under.objective(labels, margin)(
        images() if x is None else x, torch.arange(6), iteration, True
    )


@pytest.mark.parametrize(
    ("randomness", "fixed_noise", "attack"),
    [
        ("fresh", set(), {"forward", "reverse"}),
        ("replay", {"forward", "reverse"}, set()),
        ("common", {"forward", "reverse"}, set()),
        ("replay:freeze=forward", {"forward"}, {"reverse"}),
        ("replay:freeze=reverse", {"reverse"}, {"forward"}),
    ],
)
def test_a_randomness_model_freezes_the_stages_that_it_names(
    monkeypatch, randomness, fixed_noise, attack
):
    defended = diffpure(tiny_unet())
    with frozen(defended):
        under = victim(defended, randomness)
        log = Log(monkeypatch)
        first, second = read(under, 0), read(under, 1)
    stages = {
        s: {path.split("/")[3] for stream, _, path in log.requests if stream == s}
        for s in ("tape", "attack")
    }
    assert stages["tape"] == fixed_noise and stages["attack"] == attack
    assert torch.equal(first.value, second.value) == (not attack), (
        "queries repeat exactly where nothing is fresh"
    )


def test_common_randomness_gives_all_images_the_same_noise():
    defended = diffpure(tiny_unet())
    with frozen(defended):
        x = images()[:1].repeat(6, 1, 1, 1)
        own, common = read(victim(defended, "replay"), 0, x), read(victim(defended, "common"), 0, x)
    assert torch.allclose(common.value, common.value[:1].expand(6), atol=1e-4)
    assert own.value.unique().numel() == 6


def test_a_partly_frozen_verdict_draws_the_rest_afresh():
    defended = diffpure(tiny_unet())
    with frozen(defended):
        under = victim(defended, "replay:freeze=forward")
        assert not under.deterministic and not under.fixed
        assert under.verify(images()).shape == (6, 20)
        assert victim(defended, "replay").verify(images()).shape == (6, 1)


def test_the_global_generators_are_never_read():
    before = generators()
    diffpure(tiny_unet())(images(), noise())
    assert generators() == before


def slopes(
    defended: Purified, gradient: str = "full", x: torch.Tensor | None = None
) -> torch.Tensor:
    leaf = (images() if x is None else x).clone().requires_grad_()
    with frozen(defended):
        output = defended.forward_pass(gradient)(leaf, noise())
        return torch.autograd.grad(output.square().sum(), leaf)[0]


@pytest.mark.parametrize("how", ["diffpure", "revpure", "gdmp"])
def test_checkpointed_gradients_are_bit_equal_to_plain_ones(how):
    model = tiny_unet()
    guide = None
    if how == "gdmp":

        def guide(z, origin, index, noise):
            return -0.5 * (z - noised(model, origin, index, noise))

    defended = purified(model, *[Round(60, 6, 59 if how != "revpure" else None)] * 2, guide=guide)
    with limited("1G"):
        plain = slopes(defended)
        assert defended.plan_memory(images().requires_grad_()).rebuild is False
    with limited(str(8 * defended.step_bytes)):
        assert defended.plan_memory(images().requires_grad_()).rebuild is True
        rebuilt = slopes(defended)
    assert torch.equal(plain, rebuilt)


def test_gradients_meet_finite_differences():
    defended = diffpure(tiny_unet().double(), 60, 6)
    defended.classifier.double()
    x, generator = images().double(), torch.Generator().manual_seed(5)

    def value(at):
        with torch.no_grad():
            return defended.classifier.network(defended.purify(at, noise())).square().sum()

    for limit in ("1G", "1K"):
        with limited(limit), frozen(defended):
            leaf = x.clone().requires_grad_()
            output = defended.classifier.network(defended.purify(leaf, noise())).square().sum()
            (slope,) = torch.autograd.grad(output, leaf)
        for _ in range(3):
            u = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            numeric = (value(x + 1e-5 * u) - value(x - 1e-5 * u)) / 2e-5
            assert (slope * u).sum().item() == pytest.approx(numeric.item(), rel=1e-4)


def test_bpda_is_the_gradient_at_the_purified_point():
    defended = diffpure(tiny_unet())
    with frozen(defended):
        point = (
            defended.forward_pass("full", "purified")(images(), noise()).detach().requires_grad_()
        )
        (expected,) = torch.autograd.grad(defended.classifier(point, noise()).square().sum(), point)
    assert torch.allclose(slopes(defended, "bpda"), expected, atol=1e-6)
    assert torch.equal(
        defended.forward_pass("bpda")(images(), noise()), defended(images(), noise())
    )


def test_blind_sees_the_classifier_alone_and_surrogate_a_shorter_chain():
    defended, short = diffpure(tiny_unet(), 100, 10), diffpure(tiny_unet(), 100, 5)
    assert torch.equal(
        defended.forward_pass("blind")(images(), noise()), defended.classifier(images(), noise())
    )
    assert torch.equal(
        defended.forward_pass("surrogate:steps=5")(images(), noise()), short(images(), noise())
    )
    assert torch.equal(slopes(defended, "surrogate"), slopes(short))
    with pytest.raises(BadInput, match="more steps than the defense"):
        defended.forward_pass("surrogate:steps=11")
    with pytest.raises(BadInput, match="no parameter 'step'"):
        defended.forward_pass("surrogate:step=5")


def test_a_gradient_without_parameters_takes_none():
    defended = diffpure(tiny_unet())
    for gradient in ("bpda:x=1", "blind:7", "full:k=2"):
        with pytest.raises(BadInput, match="takes no parameters"):
            defended.forward_pass(gradient)
    with pytest.raises(BadInput, match="takes no parameters"):
        Blocking(defended.classifier).forward_pass("bpda:x=1")


class Blocking(InputTransform):
    """Passes the image on, and no gradient but under bpda."""

    def transform(self, images, noise):
        return images.detach()


def test_bpda_reaches_through_to_a_classifier_that_needs_it():
    inner = Blocking(diffpure(tiny_unet()).classifier)
    defended = Purified(inner, tiny_unet(), Purification((Round(50, 2, 49),), Sampler())).eval()
    assert slopes(defended, "bpda").abs().max() > 0


def test_a_success_on_another_function_is_no_success():
    defended = diffpure(tiny_unet())
    wrong = (defended.classifier(images(), noise()).argmax(1) + 1) % 4
    with frozen(defended):
        for gradient in ("blind", "surrogate"):
            under = victim(defended, "replay", gradient)
            assert not under.deterministic
            from bench.losses import margin

            assert not under.objective(wrong, margin)(
                images(), torch.arange(6), 0, True
            ).success.any()
        assert torch.equal(
            victim(defended, "replay", "blind").verify(images()),
            victim(defended, "replay").verify(images()),
        )


def test_all_ballots_of_a_vote_share_the_budget():
    one, four = diffpure(tiny_unet(), 60, 2), diffpure(tiny_unet(), 60, 2, vote="hard", votes=4)
    z = images().requires_grad_()
    with limited("1G"):
        one.plan_memory(z)
    with limited(str(6 * 2 * one.step_bytes)):
        assert [defended.plan_memory(z).rebuild for defended in (one, four)] == [False, True]


def test_the_memory_plan_takes_plain_backpropagation_where_it_fits():
    assert memory_plan(10, 5, 100, 5000) == memory_plan(10, 5, 100, 10**9)
    assert memory_plan(10, 5, 100, 5000).rebuild is False
    assert (memory_plan(10, 5, 100, 4999).rows, memory_plan(10, 5, 100, 4999).rebuild) == (10, True)
    assert memory_plan(10, 5, 100, 350).rows == 3
    assert memory_plan(10, 5, 100, 1).rows == 1
    assert diffpure(gaussian()).purify(images(0), noise(0)).shape == (0, 1, SIDE, SIDE)
    assert read_size("2G") == 2 * 2**30 and read_size("1.5 MiB") == 3 * 2**19
    for text in ("lots", "0", "9" * 400):
        with pytest.raises(BadInput, match="500M or 4G"):
            read_size(text)


def test_votes_are_counted():
    ballots = torch.tensor(
        [
            [[3.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.1, 0.0]],
            [[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]],
        ]
    )
    assert count_votes(ballots, "hard").argmax(1).tolist() == [1, 0], (
        "a majority of labels; a tie goes to the larger mean softmax"
    )
    assert count_votes(ballots, "logit-mean").argmax(1).tolist() == [0, 0]
    assert torch.allclose(
        count_votes(ballots, "softmax-mean").exp(), ballots.softmax(-1).mean(1), atol=1e-6
    )
    leaf = ballots.clone().requires_grad_()
    (hard,) = torch.autograd.grad(count_votes(leaf, "hard")[:, 0].sum(), leaf)
    (soft,) = torch.autograd.grad(count_votes(leaf, "softmax-mean")[:, 0].sum(), leaf)
    assert torch.allclose(hard, soft)


def test_a_hard_vote_has_finite_logits_where_a_share_is_zero():
    ballots = torch.tensor([[[200.0, 0.0, -200.0]]]).repeat(1, 3, 1)
    assert torch.isfinite(count_votes(ballots, "hard")).all()


def test_each_vote_draws_on_its_own_and_one_vote_is_the_plain_defense():
    one, three = diffpure(tiny_unet()), diffpure(tiny_unet(), vote="logit-mean", votes=3)
    ballots = [one(images(), noise())]
    front, inner = one.purify, one.classifier
    for vote in (1, 2):
        ballots.append(inner(front(images(), noise().at(f"vote{vote}")), noise()))
    assert torch.allclose(three(images(), noise()), torch.stack(ballots).mean(0), atol=1e-5)
    assert not torch.allclose(ballots[0], ballots[1], atol=1e-3)


def test_nan_in_the_chain_is_one_clear_line():
    model = gaussian()
    model.network.std = float("nan")
    with pytest.raises(BadInput, match="ended in NaN or infinite pixels \\(5 steps from t=100\\)"):
        diffpure(model)(images(), noise())


def test_states_are_the_whole_chain():
    defended = purified(tiny_unet(), Round(100, 5, 99), Round(50, 2, 49))
    states = defended.forward_pass("full", "states")(images(), noise())
    assert states.shape == (6, 1 + 6 + 3, 1, SIDE, SIDE)
    assert torch.allclose(states[:, 0], 2 * images() - 1)
    assert torch.equal(
        defended.forward_pass("surrogate", "states")(images(), noise())[:, 0], states[:, 0]
    )
    assert defended.forward_pass("surrogate", "states")(images(), noise()).shape[1] == 1 + 3 + 2, (
        "a transfer attack sees its own chain only"
    )
    with pytest.raises(BadInput, match="no states of the chain"):
        defended.forward_pass("blind", "states")
    end = defended.forward_pass("full", "purified")(images(), noise())
    assert torch.allclose((states[:, -1] + 1) / 2, end, atol=1e-6)
    scaled = purified(tiny_unet(), Round(100, 5, None, 0.8)).states(images(), noise())
    assert scaled.shape[1] == 6 and torch.allclose(scaled[:, 0], 0.8 * (2 * images() - 1))


@pytest.mark.parametrize("limit", ["1G", "1K"])
def test_passes_through_the_denoiser_are_counted_beside_those_of_the_classifier(limit):
    defended = diffpure(tiny_unet(), t=50, steps=5, vote="hard", votes=3)
    with limited(limit):
        inference = inspect(defended, images(), torch.zeros(6).long(), randomised=True)
    assert (inference.passes, inference.denoiser_passes) == (3, 15)


def test_a_defense_without_a_denoiser_has_no_such_passes():
    plain = Classifier(Linear(), 4).eval()
    inference = inspect(plain, images(), torch.zeros(6).long(), randomised=False)
    assert inference.denoiser_passes is None
