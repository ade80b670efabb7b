"""Diffusion purification: the chain against closed forms and diffusers, tapes, exact gradients,
stages, refusals.
"""

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
from torch import nn

from bench.contract.check import setup_in_memory
from bench.data.dataset import ImageSet
from bench.data.similarity import ssim
from bench.defense import DefendedClassifier, InputTransform
from bench.diffusion.backward import run_checkpointed
from bench.diffusion.chain import Sampler, indices, links, noised, reverse_step, run, sample
from bench.diffusion.gaussian import GaussianDenoiser
from bench.diffusion.model import DiffusionModel, linear_alpha_bar
from bench.diffusion.unet import build_unet
from bench.engine.build import build
from bench.engine.memory import SavedBytes, limited, read_size
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.errors import BadInput
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, generators
from bench.plugins.create import DEFENSES, create
from bench.randomness import read_randomness
from bench.spec import parse
from bench.victim import Victim, frozen

SIDE = 8
ABAR = linear_alpha_bar()


def tiny_unet(out: int = 1, seed: int = 0) -> DiffusionModel:
    pytest.importorskip("diffusers")
    config = {
        "sample_size": SIDE,
        "in_channels": 1,
        "out_channels": out,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    network = build_unet(config, seed).eval().requires_grad_(False)
    return DiffusionModel(network, ABAR, (1, SIDE, SIDE)).eval()


def gaussian(mean: float = 0.2, std: float = 0.5, side: int = SIDE) -> DiffusionModel:
    return DiffusionModel(GaussianDenoiser(ABAR, mean, std), ABAR, (1, side, side)).eval()


class Linear(nn.Module):
    def __init__(self, classes: int = 4, side: int = SIDE) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(classes, side * side, generator=generator))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def purified(
    model: DiffusionModel, *rounds: Round, sampler: Sampler | None = None, **how
) -> Purified:
    classifier = Classifier(Linear(side=model.shape[1]), 4).eval().requires_grad_(False)
    return Purified(classifier, model, Purification(rounds, sampler or Sampler(), **how)).eval()


def diffpure(model: DiffusionModel, t: int = 100, steps: int = 5, **how) -> Purified:
    return purified(model, Round(t, steps, t - 1), **how)


def images(n: int = 6, side: int = SIDE) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))


def noise(n: int = 6, root: int = 0, draw: int = 0) -> Noise:
    return Noise.of(root, Stream.FIXED, range(n), draw)


# The schedule and one step ------------------------------------------------------------------------


def test_levels_are_those_of_the_published_schedule():
    expected = {36: 0.98398, 100: 0.89702, 150: 0.78832, 200: 0.65904, 500: 0.07859}
    for t, level in expected.items():
        assert gaussian().level(t - 1) == pytest.approx(level, abs=6e-6)
    assert gaussian().level(-1) == 1.0


def test_indices_stride_evenly_and_end_at_the_first():
    assert indices(200, 10) == [199, 179, 159, 139, 119, 99, 79, 59, 39, 19]
    assert indices(5, 5) == [4, 3, 2, 1, 0]
    assert indices(7, 3) == [6, 3, 1]


def test_forward_stage_has_the_mean_and_variance_of_its_level():
    model, t = gaussian(side=32), 200
    z = torch.full((64, 1, 32, 32), 0.6)
    state = noised(model, z, t - 1, noise(64))
    level = model.level(t - 1)
    count = state.numel()
    assert state.mean().item() == pytest.approx(
        np.sqrt(level) * 0.6, abs=4 * np.sqrt((1 - level) / count)
    )
    assert state.var().item() == pytest.approx(1 - level, rel=4 * np.sqrt(2 / count))


def test_forward_stage_shrinks_a_perturbation_by_exactly_the_root_of_its_level():
    model = gaussian()
    z, a = images() * 2 - 1, 0.1 * (images(12)[6:] - 0.5)
    gap = noised(model, z + a, 199, noise()) - noised(model, z, 199, noise())
    assert torch.allclose(gap, np.sqrt(model.level(199)) * a, atol=1e-6)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("index", [0, 1, 39, 199, 999])
def test_ancestral_step_is_that_of_diffusers(index, clip):
    diffusers = pytest.importorskip("diffusers")
    model, z = tiny_unet(), 2 * images() - 1
    w = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    scheduler = diffusers.DDPMScheduler(1000, clip_sample=clip, variance_type="fixed_small")
    epsilon = model(z, index).epsilon
    ours = reverse_step(model, z, index, index - 1, Sampler(clip=clip), _handing_noise(w))
    # Their levels are float32, which costs the first indices digits of 1 - abar.
    for levels, tolerance in ((scheduler.alphas_cumprod, 1e-4), (ABAR, 1e-5)):
        scheduler.alphas_cumprod = levels
        theirs = scheduler.step(epsilon, index, z, generator=_handing(w)).prev_sample
        assert torch.allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("t", "steps"), [(200, 10), (1000, 50)])
def test_strided_ddim_step_is_that_of_diffusers(t, steps, eta):
    diffusers = pytest.importorskip("diffusers")
    model, z = tiny_unet(), 2 * images() - 1
    w = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    scheduler = diffusers.DDIMScheduler(1000, clip_sample=False, set_alpha_to_one=True)
    scheduler.num_inference_steps = 1000 * steps // t
    visited = indices(t, steps)
    for index, previous in zip(visited, [*visited[1:], -1], strict=True):
        epsilon = model(z, index).epsilon
        theirs = scheduler.step(
            epsilon, index, z, eta=eta, variance_noise=w if eta else None
        ).prev_sample
        ours = reverse_step(model, z, index, previous, Sampler("ddim", eta), _handing_noise(w))
        assert torch.allclose(ours, theirs, atol=1e-5), index


@pytest.mark.parametrize("index", [1, 19, 199])
def test_ddim_with_eta_one_is_the_ancestral_step(index):
    model, z, before = tiny_unet(), 2 * images() - 1, index // 2
    one = reverse_step(model, z, index, before, Sampler("ddim", 1.0), noise())
    other = reverse_step(model, z, index, before, Sampler(), noise())
    assert torch.allclose(one, other, atol=1e-5)


def test_learned_variance_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    model, z = tiny_unet(out=2), 2 * images() - 1
    w = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    scheduler = diffusers.DDPMScheduler(1000, clip_sample=False, variance_type="learned_range")
    told = model(z, 150)
    theirs = scheduler.step(
        torch.cat([told.epsilon, told.log_variance], 1), 150, z, generator=_handing(w)
    ).prev_sample
    ours = reverse_step(model, z, 150, 149, Sampler(variance="learned"), _handing_noise(w))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_last_step_adds_no_noise(variance):
    model, z = tiny_unet(out=2), 2 * images() - 1
    ends = [
        reverse_step(model, z, 19, -1, Sampler(variance=variance), noise(draw=d)) for d in (0, 1)
    ]
    assert torch.equal(*ends)


class _Handed(Noise):
    """Noise that hands out one given tensor."""

    def normal(self, site, shape=()):
        return self.handed


def _handing_noise(w):
    found = _Handed(0, Stream.FIXED, np.arange(len(w)), np.zeros(len(w), np.uint64))
    object.__setattr__(found, "handed", w)
    return found


def _handing(w):
    """A stand-in for a generator, by which diffusers' ancestral step can be given its noise."""
    import diffusers.schedulers.scheduling_ddpm as module

    class Generator:
        pass

    module.randn_tensor = lambda shape, generator=None, device=None, dtype=None: w
    return Generator()


@pytest.fixture(autouse=True)
def diffusers_as_found():
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    before = module.randn_tensor
    yield
    module.randn_tensor = before


# The whole chain against its closed form ----------------------------------------------------------


def closed_form(t: int, steps: int, mean: float, std: float) -> tuple[float, float, float]:
    """(slope, offset, variance) of the purified z as a function of the clean z, for the exact
    Gaussian denoiser.
    """
    abar = ABAR.numpy()
    slope, offset, variance = np.sqrt(abar[t - 1]), 0.0, 1 - abar[t - 1]
    visited = indices(t, steps)
    for i, p in zip(visited, [*visited[1:], -1], strict=True):
        a, before = abar[i], abar[p] if p >= 0 else 1.0
        # The posterior mean of z_p given z_i and z_0 is linear in both; z_0 is replaced by its
        # expectation given z_i.
        kept = a / before
        of_z0, of_zi = (
            np.sqrt(before) * (1 - kept) / (1 - a),
            np.sqrt(kept) * (1 - before) / (1 - a),
        )
        gain = np.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        step, shift = of_z0 * gain + of_zi, of_z0 * (mean - gain * np.sqrt(a) * mean)
        spread = (1 - kept) * (1 - before) / (1 - a)
        slope, offset, variance = slope * step, offset * step + shift, variance * step**2 + spread
    return slope, offset, variance


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


def test_a_chain_from_pure_noise_samples_the_data():
    model = gaussian(0.2, 0.5, side=16)
    drawn = sample(model, Sampler(), 1000, noise(64))
    assert drawn.mean().item() == pytest.approx(0.2, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)


def test_the_input_scale_is_applied():
    model = gaussian()
    plain = purified(model, Round(200, 1, None)).purify(images(), noise())
    scaled = purified(model, Round(200, 1, None, 0.8)).purify(images(), noise())
    same = purified(model, Round(200, 1, None)).purify((0.8 * (2 * images() - 1) + 1) / 2, noise())
    assert torch.allclose(scaled, same, atol=1e-6)
    assert not torch.allclose(scaled, plain, atol=1e-2)


# Tapes --------------------------------------------------------------------------------------------


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
    """Every request of noise: (stream, draw, path)."""

    def __init__(self, monkeypatch):
        self.seen: list[tuple[str, int, str]] = []
        plain = Noise._words

        def words(this, kind, site, shape):
            self.seen.append((str(this.stream), int(this.draws[0]), f"{this.site}/{site}"))
            return plain(this, kind, site, shape)

        monkeypatch.setattr(Noise, "_words", words)

    def count(self, part: str) -> int:
        return sum(part in path for *_, path in self.seen)


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
    assert len(log.seen) == len(set(log.seen)) == 2 * (forward + steps - 1)


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
def test_a_law_freezes_the_stages_that_it_names(monkeypatch, randomness, fixed_noise, attack):
    defended = diffpure(tiny_unet())
    with frozen(defended):
        under = victim(defended, randomness)
        log = Log(monkeypatch)
        first, second = read(under, 0), read(under, 1)
    stages = {
        s: {path.split("/")[3] for stream, _, path in log.seen if stream == s}
        for s in ("tape", "attack")
    }
    assert stages["tape"] == fixed_noise and stages["attack"] == attack
    assert torch.equal(first.value, second.value) == (not attack), (
        "queries repeat exactly where nothing is fresh"
    )


def test_the_common_law_gives_all_images_one_tape():
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


# Gradients ----------------------------------------------------------------------------------------


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
        assert defended._memory_plan(images().requires_grad_()).rebuild is False
    with limited(str(8 * defended._bytes)):
        assert defended._memory_plan(images().requires_grad_()).rebuild is True
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


def test_a_success_on_a_stand_in_is_no_success():
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


def test_a_generator_with_state_inside_a_checkpointed_step_is_rejected():
    generator = torch.Generator().manual_seed(0)
    steps = [lambda z, origin: z + torch.randn(z.shape, generator=generator)] * 3
    leaf = images().requires_grad_()
    output = run_checkpointed(steps, leaf, leaf)
    with pytest.raises(RuntimeError, match="came out otherwise"):
        torch.autograd.grad(output.sum(), leaf)


def saved(steps: int) -> int:
    model, z = tiny_unet(), images(1)
    leaf = (2 * z - 1).requires_grad_()
    chain = links(model, indices(steps, steps), Sampler(), noise(1))
    with SavedBytes(model.parameters()) as counter:
        run_checkpointed(chain, leaf, leaf)
    return counter.total


def test_checkpointing_saves_at_most_two_states_a_step():
    state = SIDE * SIDE * 4
    assert saved(100) - saved(10) <= 2 * state * 90
    model, leaf = tiny_unet(), images(1).requires_grad_()
    with SavedBytes(model.parameters()) as plain:
        run(links(model, indices(10, 10), Sampler(), noise(1)), leaf, leaf)
    assert plain.total > 10 * saved(10), "plain backpropagation keeps every activation"


def test_all_ballots_of_a_vote_share_the_budget():
    one, four = diffpure(tiny_unet(), 60, 2), diffpure(tiny_unet(), 60, 2, vote="hard", votes=4)
    z = images().requires_grad_()
    with limited("1G"):
        one._memory_plan(z)
    with limited(str(6 * 2 * one._bytes)):
        assert [defended._memory_plan(z).rebuild for defended in (one, four)] == [False, True]


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


# Votes, guidance, refusals ------------------------------------------------------------------------


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


def test_ssim_is_one_for_equal_images_and_falls():
    x = images(4, 16)
    assert torch.allclose(ssim(x, x), torch.ones(4), atol=1e-5)
    near, far = (
        x + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        for s in (0.05, 0.3)
    )
    assert bool((ssim(x, near) > ssim(x, far)).all())


@pytest.mark.parametrize("guidance", ["mse", "ssim"])
def test_guidance_draws_the_chain_towards_its_input(guidance):
    base = "model=(gaussian:side=8,mean=0.9,std=0.1),t=36,steps=36,rounds=1"
    gap = {}
    for scale in ("1", "1000" if guidance == "mse" else "100"):
        defended = built(f"gdmp:{base},guidance={guidance},scale={scale}")
        gap[scale] = (
            (defended.forward_pass("full", "purified")(images(), noise()) - images())
            .square()
            .mean()
            .item()
        )
    assert gap[scale] < 0.9 * gap["1"]


@pytest.mark.parametrize("guidance", ["mse", "ssim"])
def test_gradients_through_guidance_meet_finite_differences(guidance):
    defended = built(
        f"gdmp:model=(gaussian:side=8),t=36,steps=4,rounds=1,clip=false,guidance={guidance},scale="
        "100"
    )
    x, u = images(), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(4))

    def value(at):
        return defended.forward_pass("full", "purified")(at, noise()).double().square().sum()

    leaf = x.clone().requires_grad_()
    for limit in ("1G", "1K"):
        with limited(limit):
            (slope,) = torch.autograd.grad(value(leaf), leaf)
        numeric = (value(x + 1e-2 * u) - value(x - 1e-2 * u)) / 2e-2
        assert (slope * u).sum().item() == pytest.approx(numeric.item(), rel=5e-3)


def test_the_guide_is_the_input_in_all_rounds():
    # As in the code of Wang et al.: its conditioning reads the given image, while the rounds pass
    # on what they purify.
    seen = []

    def guide(z, origin, index, noise):
        seen.append(origin)
        return torch.zeros_like(z)

    purified(gaussian(), *[Round(60, 2, 60)] * 3, guide=guide).purify(images(), noise())
    assert len(seen) == 6 and all(torch.equal(origin, 2 * images() - 1) for origin in seen)


def test_a_guided_step_has_the_published_size():
    # One step to the end: mean + variance x scale(i) x gradient, with scale(i) and m as in the code
    # of Wang et al.
    defended = built(
        "gdmp:model=(gaussian:side=8),t=36,start_index=35,steps=1,rounds=1,clip=false,scale=600"
    )
    plain = diffpure(defended.model, 36, 1)
    level, m = ABAR[35].item(), 2 * 8 / (255 * 3 * 600)
    z = noised(defended.model, 2 * images() - 1, 35, noise().at("vote0").at("forward").at("round0"))
    fresh = noise().at("vote0").at("guidance").at("round0").at("step35").normal("noise", (1, 8, 8))
    guide = np.sqrt(level) * (2 * images() - 1) + np.sqrt(1 - level) * fresh
    push = (1 - level) * np.sqrt((1 - level) / level) / m * -2 * (z - guide) / 64
    expected = plain.forward_pass("full", "purified")(images(), noise()) + push / 2
    assert torch.allclose(
        defended.forward_pass("full", "purified")(images(), noise()), expected, atol=1e-5
    )
    assert push.abs().max() > 0.05


def test_t_is_a_count_so_the_image_is_noised_to_the_index_before_it():
    assert built("diffpure:model=(gaussian:side=8)").how.rounds == (Round(200, 10, 199),)
    assert (
        built("diffpure:model=(gaussian:side=8),t=30,steps=3,start_index=30,rounds=2").how.rounds
        == (Round(30, 3, 30),) * 2
    )
    assert built("revpure:model=(gaussian:side=8),t=30,steps=3").how.rounds == (Round(30, 3, None),)


def test_the_defaults_of_gdmp_are_the_published_ones():
    how = built("gdmp:model=(gaussian:side=8)").how
    assert how.rounds == (Round(36, 36, 36),) * 4 and how.sampler == Sampler(
        variance="large", clip=True
    )


def built(spec: str, generator: str = "") -> Purified:
    setup = setup_in_memory(
        Classifier(Linear(), 4).eval(),
        *[ImageSet(images(), torch.zeros(6).long(), np.arange(6))] * 2,
    )
    setup.dataset.plugin.default_generator = generator
    return build(plan(Request(defenses=(spec,), attacks=("pgd",)), setup)[-1], torch.device("cpu"))


MODEL = "model=(gaussian:side=8)"


@pytest.mark.parametrize(
    "spec",
    [
        "diffpure:t=20,steps=2",
        "revpure:t=20,steps=2",
        "gdmp:t=9,steps=3,rounds=2",
        "gradual:t=9+12,steps=2",
    ],
)
def test_declared_properties_agree_with_what_is_built(spec):
    defense = create(DEFENSES, parse(spec)).plugin
    defended = built(f"{spec}{',' if ':' in spec else ':'}{MODEL}")
    assert defended.stochastic == defense.stochastic and tuple(defended.gradients) == tuple(
        defense.gradients
    )
    for gradient in defended.gradients:
        for view in set(defended.views()) - ({"states", "times"} if gradient == "blind" else set()):
            seen = defended.forward_pass(gradient, view)(images(), noise())
            assert len(seen) == 6 and torch.isfinite(seen).all()
    states, times = (
        defended.forward_pass("full", view)(images(), noise()) for view in ("states", "times")
    )
    assert states.shape[:2] == times.shape


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("diffpure:t=10,steps=11", "has only t=10 indices"),
        ("diffpure:" + MODEL + ",t=1001", "schedule of 1000 steps: give a smaller t$"),
        (
            "diffpure:" + MODEL + ",t=10,start_index=1000",
            "index 1000 lies beyond .* give a smaller start_index$",
        ),
        (
            "gdmp:" + MODEL + ",sampler=ddim,variance=small",
            "the step's variance, which is 0 here: add eta=1",
        ),
        ("gdmp:" + MODEL + ",steps=1,variance=small", "0 in the last one: give steps=2 or more"),
        ("diffpure:" + MODEL + ",variance=learned", "has not learned its variance"),
        ("diffpure:" + MODEL + ",eta=0.5", "eta is DDIM's"),
        ("diffpure:" + MODEL + ",votes=3", "vote and votes go together"),
        ("diffpure:model=nowhere", "unknown diffusion model 'nowhere'"),
        ("diffpure", "has no diffusion model of its own"),
        ("gradual:t=30+50,steps=40", "at most 30 steps"),
        ("gradual:t=30+50,steps=1+2+3", "2 rounds, but 3 numbers"),
        ("gradual:t=30+0", "greater than or equal to 1"),
    ],
)
def test_bad_parameters_get_one_clear_line(spec, message):
    with pytest.raises(BadInput, match=message) as caught:
        built(spec)
    assert "\n" not in str(caught.value)


def test_a_model_for_other_images_is_refused_and_resize_helps():
    x = images(4, 16)
    small = gaussian(side=8)
    classifier = Classifier(Linear(side=16), 4).eval()
    how = Purification((Round(50, 5, 49),), Sampler())
    with pytest.raises(BadInput, match="8 x 8 pixels, not 16 x 16"):
        Purified(classifier, small, how)(x, noise(4))
    resizing = Purified(
        classifier, small, Purification((Round(50, 5, 49),), Sampler(), resize=True)
    )
    assert resizing.forward_pass("full", "purified")(x, noise(4)).shape == x.shape
    with pytest.raises(BadInput, match="1 channels, the images have 3"):
        resizing(x.repeat(1, 3, 1, 1), noise(4))


def test_t_beyond_the_trained_range_is_refused(monkeypatch):
    from bench.diffusion.gaussian import Gaussian

    def short(self):
        return DiffusionModel(GaussianDenoiser(ABAR, 0, 1), ABAR, (1, 8, 8), trained_steps=400)

    monkeypatch.setattr(Gaussian, "load", short)
    with pytest.raises(BadInput, match="trained below 400 only"):
        built("revpure:model=(gaussian:side=8,mean=0.31),t=401")


def test_nan_in_the_chain_is_one_clear_line():
    model = gaussian()
    model.network.std = float("nan")
    with pytest.raises(BadInput, match="ended in NaN or infinite pixels \\(5 steps from t=100\\)"):
        diffpure(model)(images(), noise())


def test_states_tell_the_whole_way():
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


@pytest.mark.parametrize("name", ["diffpure", "revpure", "gradual", "gdmp"])
def test_the_contract_holds(name):
    from bench.contract.check import examine
    from bench.contract.defense import DEFENSE_CHECKS, DefenseCase

    small = {"gradual": "t=20+40,steps=4", "gdmp": "t=8,steps=4,rounds=2"}.get(
        name, "t=100,steps=4"
    )
    failed = [
        v for v in examine(DEFENSE_CHECKS, DefenseCase(f"{name}:{small}")) if v.outcome != "ok"
    ]
    assert not failed, failed
