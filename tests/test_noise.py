"""Noise: golden values, purity, and the scope that may touch global generators."""

import copy
import random

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from bench import philox
from bench.defense import DefendedClassifier
from bench.errors import BadInput
from bench.losses import margin
from bench.noise import BuildNoise, Noise, Stream, generators, isolated, pack_draw, seed_of
from bench.randomness import Query, RandomnessModel, judging, read_randomness
from bench.victim import Victim


def noise(ids=range(4), draws=0, root=7, stream=Stream.FIXED):
    return Noise.of(root, stream, ids, draws)


def test_the_bits_are_philox_as_published():
    """Known answers of Random123: philox4x64-10 at counter 0 with key 0, and at all ones."""
    words = np.random.Philox(
        key=np.zeros(2, np.uint64), counter=np.full(4, 2**64 - 1, np.uint64)
    ).random_raw(4)
    assert [hex(w) for w in words] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]


def test_golden_values():
    """Written down once; a change of key, counter or transform changes every stored result."""
    rows = noise(ids=[0, 1, 2**40], draws=[0, 3, pack_draw(1, 2, 3)]).at("layer")
    assert [round(v, 6) for v in rows.uniform("u").tolist()] == GOLDEN_UNIFORM
    assert [round(v, 5) for v in rows.normal("n", (3,)).flatten().tolist()] == GOLDEN_NORMAL


GOLDEN_UNIFORM = [0.623231, 0.556012, 0.765187]
GOLDEN_NORMAL = [0.20548, -1.40003, -1.01335, 1.30797, 0.59084, 1.40059, 1.94295, 1.61689, 0.45366]


def test_a_row_is_a_pure_function_of_its_key():
    whole = noise(ids=range(10)).normal("x", (3, 5))
    assert torch.equal(noise(ids=[7]).normal("x", (3, 5))[0], whole[7])
    assert torch.equal(noise(ids=[7, 2, 7]).normal("x", (3, 5)), whole[[7, 2, 7]])
    assert torch.equal(noise(ids=range(10)).rows(slice(4, 6)).normal("x", (3, 5)), whole[4:6])
    assert torch.equal(noise(ids=range(10)).rows(np.arange(10) > 7).normal("x", (3, 5)), whole[8:])


def test_everything_in_the_key_matters():
    base = noise().normal("x", (64,))
    others = [
        noise(root=8).normal("x", (64,)),
        noise(stream=Stream.EVAL).normal("x", (64,)),
        noise(ids=range(4, 8)).normal("x", (64,)),
        noise(draws=1).normal("x", (64,)),
        noise().normal("y", (64,)),
        noise().at("x").normal("x", (64,)),
    ]
    for other in others:
        assert abs(np.corrcoef(base.flatten(), other.flatten())[0, 1]) < 0.25
        assert not torch.equal(base, other)


def test_neighbouring_keys_do_not_overlap():
    """Counters of (image, draw) pairs lie apart, image 0 and draw 0 included."""
    blocks = [noise(ids=[i], draws=d).uniform("x", (512,)) for i in (0, 1, 2) for d in (0, 1, 2)]
    together = torch.cat(blocks).flatten()
    assert len(together.unique()) > len(together) - 5


def test_distributions():
    assert kstest(noise(range(200)).normal("x", (500,)).flatten().numpy(), "norm").pvalue > 1e-3
    assert kstest(noise(range(200)).uniform("x", (500,)).flatten().numpy(), "uniform").pvalue > 1e-3
    values = noise(range(3000)).integers("x", 5, 9)
    assert sorted(values.unique().tolist()) == [5, 6, 7, 8]
    assert (torch.bincount(values, minlength=9)[5:] > 650).all()
    high = torch.tensor([1, 2, 100])
    assert (noise(range(3)).integers("x", 0, high) < high).all()
    with pytest.raises(ValueError, match="no integer"):
        noise().integers("x", 3, 3)


def test_odd_sizes_are_prefixes_of_even_ones():
    assert torch.equal(noise().normal("x", (5,)), noise().normal("x", (6,))[:, :5])
    assert noise().uniform("x").shape == (4,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_fixed_noise_is_the_same_on_a_gpu():
    far = Noise.of(7, Stream.FIXED, range(4), device="cuda")
    assert torch.equal(far.uniform("x", (9,)).cpu(), noise().uniform("x", (9,)))
    check_last_digits(far.normal("x", (99_999,)).cpu(), noise().normal("x", (99_999,)))


def check_last_digits(one, other):
    """Equal, but for one unit in the last place, and that seldom."""
    gaps = (one.view(torch.int32) - other.view(torch.int32)).abs()
    assert int(gaps.max()) <= 1 and int((gaps > 0).sum()) <= 2


def test_what_a_gpu_computes_are_the_same_words_and_numbers():
    """The int64 arithmetic that runs on a GPU, run here: whatever the counter holds."""
    ids, draws = [0, 3, 2**62, 12345], np.array([0, 2**63 + 5, 1, 2**64 - 1], dtype=np.uint64)
    key = Noise.of(7, Stream.ATTACK, ids, draws).at("a")._key
    for count in (1, 4, 9):
        words = key.words("normal", "x", count).view(np.uint32).astype(np.int64)
        assert torch.equal(key.halves("normal", "x", count), torch.from_numpy(words))
    shape = (100_000,)
    handle = Noise.of(7, Stream.FIXED, range(4))
    halves = handle._key.halves("uniform", "x", 50_000)
    assert torch.equal(philox.uniform(halves), handle.uniform("x", shape))
    halves = handle._key.halves("normal", "x", 50_000)
    check_last_digits(philox.normal(halves), handle.normal("x", shape))


# What a forward pass sees -------------------------------------------------------------------------

SHOWN = {"normal", "uniform", "integers", "at", "stage", "rows", "shared", "device"}


def test_a_handle_shows_numbers_and_nothing_else():
    """Neither which images these are nor who asks, at whatever depth."""
    whole = Noise.of(7, Stream.ATTACK, range(4), 3, frozen=("first",))
    inner = (whole.at("a"), whole.stage("first"), whole.rows(slice(2)), whole.shared())
    for handle in (whole, *inner):
        assert type(handle) is Noise and not hasattr(handle, "__dict__")
        assert {name for name in dir(handle) if not name.startswith("_")} == SHOWN
    assert len(inner[2]) == 2 and "ATTACK" not in repr(whole)


class Curious(DefendedClassifier):
    """Keeps what its forward pass is given."""

    num_classes, stochastic = 2, True

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, images, noise):
        self.given.append(noise)
        return noise.normal("logits", (2,)) + 0 * images.flatten(1)[:, :2]


@pytest.mark.parametrize("randomness", ["fresh", "replay", "replay:freeze=a", "common"])
def test_attack_and_judge_hand_over_nothing_more(randomness):
    model, images, rows = Curious(), torch.zeros(3, 1, 4, 4), torch.arange(3)
    for who in (read_randomness(randomness), judging(2)):
        victim = Victim(model, np.arange(3), randomness=who)
        victim.logits(images, rows, Query())
        victim.objective(rows % 2, margin)(images, rows, 0, True)
        victim.verify(images)
    assert len(model.given) >= 4 and {type(handle) for handle in model.given} == {Noise}
    with pytest.raises(AttributeError, match="who asks"):
        _ = model.given[0].stream
    twin = copy.deepcopy(model.given[0])
    assert torch.equal(twin.normal("logits"), model.given[0].normal("logits"))


def test_different_paths_give_different_numbers():
    """A slash inside a name is no step; a name without one keeps its number."""
    paths = [("a", "b/c"), ("a/b", "c"), ("a", "b", "c"), ("a/b/c",), ("a/", "b", "c"), ("/a/b/c",)]
    drawn = []
    for *places, name in paths:
        handle = noise()
        for place in places:
            handle = handle.at(place)
        drawn.append(handle.normal(name, (8,)))
    assert len(torch.stack(drawn).flatten(1).unique(dim=0)) == len(paths)
    for bad in ("", "a\x01b", "a\x00b", "line\n"):
        for ask in (noise().at, noise().stage, noise().uniform):
            with pytest.raises(ValueError, match="names no place"):
                ask(bad)


def test_shared_numbers_belong_to_the_draw():
    rows = noise(ids=[5, 9, 5, 0], draws=[0, 0, 1, 1])
    first = rows.at("x").shared().normal("n", (3,))
    assert torch.equal(first[0], first[1]) and torch.equal(first[2], first[3])
    assert not torch.equal(first[0], first[2])
    assert torch.equal(rows.rows(slice(2, 4)).shared().at("x").normal("n", (3,)), first[2:])


@pytest.mark.parametrize("shared_first", [True, False])
def test_shared_and_own_numbers_cannot_be_compared(shared_first):
    """Else the row whose own numbers are the shared ones would be image 0."""
    whole = Noise.of(7, Stream.ATTACK, range(4), frozen=("first",))
    for place in (whole.at("x"), whole.stage("first"), whole.rows(slice(0, 2))):
        asks = [place.shared(), place.rows(slice(1, 2))]
        first, second = asks if shared_first else asks[::-1]
        first.normal("n", (3,))
        with pytest.raises(ValueError, match="own and for shared"):
            second.uniform("n")
        first.normal("n")
        second.normal("m")


def test_frozen_stages_take_the_fixed_noise():
    numbers = pack_draw(0, 5)
    handle = Noise.of(7, Stream.ATTACK, range(4), numbers, frozen=("first",)).at("forward")
    fixed, fresh = noise().at("forward"), noise(draws=numbers, stream=Stream.ATTACK).at("forward")
    assert torch.equal(handle.stage("first").normal("x"), fixed.at("first").normal("x"))
    assert torch.equal(handle.stage("second").normal("x"), fresh.at("second").normal("x"))
    part = handle.rows(slice(1, 3)).stage("first").normal("x")
    assert torch.equal(part, fixed.at("first").normal("x")[1:3])


# What builds a defense draws ----------------------------------------------------------------------


SEED, GOLDEN_ROWS = 2377628179646959140, [0.661552, 0.75228, 0.926782]


def test_a_build_derives_seeds_rows_and_an_identity():
    """The very numbers of earlier versions, so that what is in a cache is found again."""
    build = BuildNoise(7).at("synthesis")
    assert build.identity == [7, "build", "/synthesis"]
    assert build.seed("x") == seed_of(build, "x") == SEED and build.seed("y") != SEED
    rows = build.numbered("image", [3, 0, 3], [0, 0, 2])
    assert type(rows) is Noise
    assert rows.uniform("u").tolist() == pytest.approx(GOLDEN_ROWS, abs=1e-6)
    assert torch.equal(build.numbered("image", [0]).uniform("u"), rows.uniform("u")[1:2])
    assert not torch.equal(build.at("image").uniform("u"), rows.uniform("u")[1:2])
    assert torch.equal(build.to("cpu").normal("n"), build.normal("n"))
    assert BuildNoise(7, 1).seed("x") != BuildNoise(7).seed("x")
    with pytest.raises(ValueError, match="one row"):
        seed_of(rows, "x")


# Draws and models ---------------------------------------------------------------------------------


def test_draws_are_packed_without_collision():
    seen = {
        pack_draw(r, i, j)
        for r in (0, 1, 65535)
        for i in (0, 1, 2**24 - 1)
        for j in (0, 1, 2**24 - 1)
    }
    assert len(seen) == 27
    assert max(seen) < 2**64
    for bad in ((-1, 0, 0), (0, 2**24, 0), (65536, 0, 0)):
        with pytest.raises(ValueError, match="out of range"):
            pack_draw(*bad)


def test_randomness_models_choose_draws():
    first, second = Query(0, 1), Query(0, 2)
    for randomness in ("fresh", "eot:k=3"):
        assert not set(read_randomness(randomness).draws(first)[1]) & set(
            read_randomness(randomness).draws(second)[1]
        )
        assert read_randomness(randomness).draws(first)[0] == Stream.ATTACK
    for randomness in ("replay", "replay-set:k=3"):
        assert read_randomness(randomness).draws(first) == read_randomness(randomness).draws(second)
        assert read_randomness(randomness).draws(first)[0] == Stream.FIXED
    assert judging(5).draws(first) == (Stream.EVAL, [0, 1, 2, 3, 4])
    assert [str(read_randomness(t)) for t in ("eot", "replay-set", "eot:average=logits,k=2")] == [
        "eot:k=20",
        "replay-set:k=5",
        "eot:average=logits,k=2",
    ]
    assert read_randomness("fresh") == RandomnessModel()
    for bad in ("eott", "eot:k=0", "eot:q=1", "replay:k=2", "replay-set:k=1", "judge"):
        with pytest.raises(BadInput):
            read_randomness(bad)


def test_isolated_seeds_and_leaves_as_found():
    before = generators()
    with isolated(3):
        first = torch.rand(2), np.random.rand(2), random.random()
    with isolated(3):
        second = torch.rand(2), np.random.rand(2), random.random()
    assert generators() == before
    assert (
        torch.equal(first[0], second[0]) and (first[1] == second[1]).all() and first[2] == second[2]
    )
    with pytest.raises(RuntimeError), isolated(3):
        raise RuntimeError
    assert generators() == before
