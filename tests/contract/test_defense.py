"""The contract of a defense: ours pass it, and each check alone catches what it is there for."""

import numpy as np
import pytest
import torch
from pydantic import ConfigDict, field_validator
from torch import nn

from bench.contract.check import examine
from bench.contract.defense import DEFENSE_CHECKS
from bench.contract.defense_case import DefenseCase
from bench.contract.toys import SmallNet, gratings
from bench.defense import Card, Defense, InputTransform, Need
from bench.errors import AccessDenied
from bench.noise import isolated
from bench.spec import Params
from bench.testing import DefenseContract
from tests import toy_plugins  # noqa: F401
from tests.contract.helpers import failures
from tests.helpers import ROOT
from tests.toys import message

MODEL = f"{ROOT}/tests/toy_model.py@make_model"


CARD = Card(paper="a paper", attacks=("pgd", "pgd+eot"))


class TestUndefended(DefenseContract):
    defense = "undefended"


class TestBitDepth(DefenseContract):
    defense = "bit-depth:bits=2"


class TestRandomResize(DefenseContract):
    defense = "random-resize:grow=3,mode=bilinear"


class Front(InputTransform):
    """An honest transform to break."""

    gradients = ("full",)

    def transform(self, images, noise):
        return images


def defense(front=Front, **attributes):
    """A defense class around a transform, with the attributes of a whole one unless given."""

    def build(self, classifier, access, noise):
        return front(classifier)

    body = {
        "__doc__": "A toy.",
        "card": CARD,
        "build": build,
        "stochastic": front.stochastic,
        "gradients": front.gradients,
    }
    return type("Toy", (Defense,), {**body, **attributes})


def transform(function, **attributes):
    return defense(type("Broken", (Front,), {"transform": function, **attributes}))


def forward(function, **attributes):
    return defense(type("Broken", (Front,), {"forward": function, **attributes}))


def unbuildable():
    def build(self, classifier, access, noise):
        raise OSError("no weights here")

    return defense(build=build)


def misdeclared():
    return defense(type("Broken", (Front,), {"gradients": ("full", "bpda")}), gradients=("full",))


def squeezes():
    def squeezed(self, images, noise):
        logits = self.forward_pass()(images, noise)
        return logits[0] if len(logits) == 1 else logits

    return forward(squeezed)


def divides_by_the_spread():
    return transform(lambda self, x, noise: x / x.flatten(1).amax(1).reshape(-1, 1, 1, 1))


def private_generator():
    rng = np.random.default_rng(0)

    def jitter(self, x, noise):
        return x + 0.001 * float(rng.normal())

    return transform(jitter)


def draws_nothing():
    return transform(lambda self, x, noise: x, stochastic=True)


def draws_in_secret():
    return transform(lambda self, x, noise: x + 0.01 * noise.normal("secret", tuple(x.shape[1:])))


def batch_mean():
    return transform(lambda self, x, noise: x + 0.3 * x.mean(0, keepdim=True))


def one_draw_a_batch():
    def jitter(self, x, noise):
        return x + 0.05 * noise.rows(slice(0, 1)).normal("all", tuple(x.shape[1:]))

    return transform(jitter, stochastic=True)


def moves_torch():
    def draw(self, x, noise):
        torch.rand(1)
        return x

    return transform(draw)


def moves_numpy():
    def draw(self, x, noise):
        np.random.rand()
        return x

    return transform(draw)


def rounds():
    return transform(lambda self, x, noise: (x * 16).round() / 16)


def detaches():
    return transform(lambda self, x, noise: x.detach())


def dead_proxy():
    body = {"gradients": ("full", "bpda"), "surrogate": lambda self, x, noise: x * 0}
    return defense(type("Broken", (Front,), body), card=Card(paper="a paper", attacks=("bpda",)))


def other_forward_pass():
    class Other(Front):
        gradients = ("full", "bpda")

        def forward_pass(self, gradient="full", view="logits"):
            native = super().forward_pass(gradient, view)
            if gradient != "bpda":
                return native
            return lambda images, noise: native(images * 0.999, noise)

    return defense(Other, card=Card(paper="a paper", attacks=("bpda",)))


def accepts_any_view():
    class Careless(Front):
        def forward_pass(self, gradient="full", view="logits"):
            return super().forward_pass("full", view)

    return defense(Careless)


def hidden_thief():
    def build(self, classifier, access, noise):
        try:
            access.training_data()
        except AccessDenied:
            return Front(classifier)

    return defense(build=build)


def private_build():
    rng = np.random.default_rng(0)

    def build(self, classifier, access, noise):
        front = Front(classifier)
        with torch.no_grad():
            next(classifier.parameters()).add_(0.01 * float(rng.normal()))
        return front

    return defense(build=build)


class Scaled(nn.Module):
    scale = 1.0

    def __init__(self):
        super().__init__()
        self.net = SmallNet(gratings(48, first=1000))

    def forward(self, images):
        return self.scale * self.net(images)


def patches_a_class():
    def build(self, classifier, access, noise):
        Scaled.scale = 2.0
        return Front(classifier)

    return defense(build=build)


def remembers():
    def grow(self, x, noise):
        self.largest = max(getattr(self, "largest", 0.0), float(x.detach().max()))
        return x / self.largest

    return transform(grow)


def no_card():
    return defense(card=Card(paper="a paper"))


def unknown_attack():
    return defense(card=Card(paper="a paper", attacks=("no-such-attack",)))


def unfit_attack():
    return defense(type("Broken", (Front,), {"gradients": ("full", "bpda")}))


def unread_parameters():
    class Sizes(Params):
        sizes: tuple[int, int] = (3, 5)

    return defense(Params=Sizes)


def loose_parameters():
    class Loose(Params):
        model_config = ConfigDict(extra="ignore")

    return defense(Params=Loose)


def crashing_parameters():
    class Crashing(Params):
        sigma: float = 0.1

        @field_validator("sigma", mode="before")
        @classmethod
        def halve(cls, value):
            return len(value) / None if value == "(no sense" else value

    return defense(Params=Crashing)


def adapts_its_weights():
    def adapt(self, x, noise):
        with torch.enable_grad():
            loss = self.classifier(x.detach(), noise).sum()
            torch.autograd.grad(loss, list(self.classifier.parameters()))
        return x

    return transform(adapt)


BROKEN = {
    unbuildable: "builds",
    misdeclared: "builds",
    squeezes: "shape",
    divides_by_the_spread: "finite",
    draws_nothing: "stochastic as declared",
    draws_in_secret: "stochastic as declared",
    batch_mean: "rows stand alone",
    one_draw_a_batch: "rows stand alone",
    moves_torch: "generators untouched",
    moves_numpy: "generators untouched",
    rounds: "gradients as declared",
    detaches: "gradients as declared",
    dead_proxy: "gradients as declared",
    other_forward_pass: "forward passes agree",
    accepts_any_view: "views work",
    hidden_thief: "data as declared",
    private_build: "build is reproducible",
    patches_a_class: "classifier left alone",
    remembers: "no state between calls",
    no_card: "card names fitting attacks",
    unknown_attack: "card names fitting attacks",
    unfit_attack: "card names fitting attacks",
    unread_parameters: "parameters survive their spec",
    loose_parameters: "bad parameters are refused",
    crashing_parameters: "bad parameters are refused",
    adapts_its_weights: "engine runs it",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_each_broken_defense_fails_its_check_and_no_other(broken):
    options = {}
    if broken is patches_a_class:
        Scaled.scale = 1.0
        options = {"classifier": Scaled(), "images": (gratings(12).pixels(), gratings(12).labels)}
    failed = failures(DEFENSE_CHECKS, DefenseCase(broken(), **options))
    assert set(failed) == {BROKEN[broken]}
    assert all(": " in text and "\n" not in text for text in failed.values()), (
        "what is wrong: how to fix it"
    )


class Counting(Front):
    def __init__(self, classifier):
        super().__init__(classifier)
        self.register_buffer("seen", torch.zeros(1))

    def transform(self, images, noise):
        self.seen += len(images)
        return images


def test_a_private_generator_and_a_counting_buffer_are_seen_from_several_sides():
    assert "same noise same logits" in failures(DEFENSE_CHECKS, DefenseCase(private_generator()))
    assert set(failures(DEFENSE_CHECKS, DefenseCase(defense(Counting)))) == {
        "no state between calls",
        "engine runs it",
    }


def test_an_honest_defense_passes_and_one_that_cannot_be_built_is_not_judged_further():
    assert not failures(DEFENSE_CHECKS, DefenseCase(defense()))
    outcomes = {
        verdict.outcome for verdict in examine(DEFENSE_CHECKS[1:12], DefenseCase(unbuildable()))
    }
    assert outcomes == {"skip"}


def test_a_declared_need_is_served_and_an_undeclared_one_is_named():
    def build(self, classifier, access, noise):
        images, labels = access.training_data()
        assert len(images) == len(labels) == 96
        return Front(classifier)

    assert not failures(
        DEFENSE_CHECKS, DefenseCase(defense(build=build, needs=frozenset({Need.TRAINING_DATA})))
    )
    failed = failures(DEFENSE_CHECKS, DefenseCase(defense(build=build)))
    assert "without declaring it: add it to `needs`" in failed["builds"]


def test_a_defense_is_checked_on_the_authors_own_images_and_data_sets():
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with isolated(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    case = DefenseCase(
        "random-resize:grow=0,shrink=2",
        classifier=Padded(model),
        images=(images, torch.tensor([0, 1, 2, 3, 0])),
    )
    assert case.setup.classifier.num_classes == 4 and not failures(DEFENSE_CHECKS, case)
    case = DefenseCase("bit-depth", dataset="toy:n=20", classifier=MODEL)
    assert len(case.images) == 12 and not failures(DEFENSE_CHECKS, case)
    assert "set dataset, or images" in message(lambda: DefenseCase("bit-depth", classifier=model))
    assert "set classifier" in message(
        lambda: DefenseCase("bit-depth", images=(images, torch.zeros(5).long()))
    )


class Padded(nn.Module):
    """Takes images of up to 8 x 8."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(
            nn.functional.pad(images, (0, 8 - images.shape[-1], 0, 8 - images.shape[-2]))
        )


def test_a_class_with_required_parameters_needs_a_spec():
    class Required(Params):
        sigma: float

    assert "'sigma' is required" in message(lambda: DefenseCase(defense(Params=Required)))
