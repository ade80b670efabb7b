"""Defenses that Python gives as objects: instances, classes and plain modules."""

import pytest
import torch
from pydantic import Field
from torch import nn

import bench
from bench import Card, Defense, InputTransform, ModuleDefense, Number, Params
from bench.plugins.create import DEFENSES, named
from tests import toy_model, toy_plugins
from tests.toys import message

ATTACK = "pgd:steps=2"


def evaluate(defenses, model=None, **changes):
    given = {"dataset": "toy:n=12", "attacks": ATTACK, "device": "cpu", **changes}
    return bench.evaluate(model or toy_model.make_model(), defenses=defenses, **given).records


class SigmaParams(Params):
    sigma: Number = Field(0.05, gt=0)


class Shaking(InputTransform):
    """Says nothing of itself."""

    sigma = 0.05

    def transform(self, images, noise):
        return images + self.sigma * noise.normal("jitter", tuple(images.shape[1:]))


class Shake(Defense[SigmaParams]):
    """Gaussian noise; declared on the defense alone."""

    Params = SigmaParams
    stochastic = True
    gradients = ("full",)
    card = Card(note="a test", attacks=("pgd",))

    def build(self, classifier, access, noise):
        built = Shaking(classifier)
        built.sigma = self.params.sigma
        return built


class Declared(Shaking):
    stochastic = True
    gradients = ("full", "bpda")


class ShakeByItsModule(Defense):
    """Declared on the module alone."""

    builds = Declared
    card = Card(note="a test", attacks=("pgd",))

    def build(self, classifier, access, noise):
        return Declared(classifier)


def test_stochastic_and_gradients_are_declared_once():
    assert ShakeByItsModule.stochastic is True
    assert ShakeByItsModule.gradients == ("full", "bpda")
    (_, record) = evaluate([ShakeByItsModule], attacks="bpda:steps=2")
    assert record.stochastic and record.title["gradient"] == "bpda"
    (_, record) = evaluate([Shake])
    assert record.stochastic and len(record.outcomes.adversarial) == 20
    assert Shaking.gradients == ("full", "bpda"), "the class itself stays as it is"


def test_classes_instances_and_specs_are_named_by_their_parameters():
    records = evaluate([Shake, Shake(sigma=0.1), Shake(sigma="1/10"), "toy-jitter"])
    titles = [record.title["defense"] for record in records]
    assert titles == ["undefended", "Shake", "Shake:sigma=0.1", "toy-jitter"]
    assert "source" in records[1].identity["defense"]
    assert records[2].given["defense"] == ["sigma"]


def test_a_registered_class_is_the_registered_plugin():
    given = named(DEFENSES, toy_plugins.Jitter(sigma=0.1))
    assert given.spec == "toy-jitter:sigma=0.1" and not given.source


def test_the_code_of_a_class_enters_its_identity():
    def kind(factor):
        class Scaled(Defense):
            """Scales."""

            def build(self, classifier, access, noise):
                return Scale(classifier, factor)

        return Scaled

    sources = [named(DEFENSES, kind(factor)).source for factor in (1, 2, 1)]
    assert sources[0] == sources[2] != sources[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Shake(sigma=-1), "greater than 0"),
        (lambda: Shake(sigm=1), "Did you mean 'sigma'"),
        (lambda: Shake(0.1), "by keyword, such as Shake(sigma=...)"),
        (lambda: Shake(SigmaParams(), sigma=0.1), "by keyword"),
        (lambda: ModuleDefense(3, "three"), "give the module itself"),
        (lambda: ModuleDefense(nn.Identity(), "a:b=1"), "cannot name a defense"),
        (lambda: ModuleDefense(nn.Identity(), ""), "cannot read the spec"),
        (lambda: evaluate([nn.Identity()]), "bench.ModuleDefense(module, name='mine')"),
        (lambda: evaluate([3]), "instances or classes of bench.Defense"),
        (lambda: evaluate(Shake, attacks=[Shake]), "instances or classes of bench.Attack"),
        (
            lambda: evaluate([ModuleDefense(nn.Identity(), "a"), ModuleDefense(nn.ReLU(), "a")]),
            "two defenses are called 'a'",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(make, words):
    assert words in message(make)


class Scale(nn.Module):
    """A plain module around the classifier, without noise."""

    def __init__(self, classifier, factor=0.9):
        super().__init__()
        self.classifier, self.factor = classifier, factor

    def forward(self, images):
        return self.classifier(images * self.factor)


class Noisy(nn.Module):
    """A plain module that takes noise."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images, noise):
        shift = 0.05 * noise.normal("shift", tuple(images.shape[1:]))
        return self.classifier(images + shift, noise)


class Opaque(nn.Module):
    """A plain module that draws from the global generator."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images):
        return self.classifier(images + 0.05 * torch.randn_like(images))


def builder(module, declared=False):
    class Built(Defense):
        """Builds a plain module."""

        stochastic = declared

        def build(self, classifier, access, noise):
            return module(classifier)

    return Built


@pytest.mark.parametrize(
    ("module", "declared", "level"),
    [(Scale, False, "exact"), (Noisy, True, "exact"), (Opaque, True, "process")],
)
def test_build_may_return_a_plain_module(module, declared, level):
    _, record = evaluate([builder(module, declared)])
    assert record.stochastic is declared and record.replay_level == level
    assert not [finding for finding in record.findings if finding.verdict == "fail"]


def test_an_undeclared_random_module_is_refused_with_what_to_write():
    text = message(lambda: evaluate([builder(Opaque)]))
    assert "write stochastic = True on the defense" in text
    text = message(lambda: evaluate([builder(lambda classifier: 3)]))
    assert "torch.nn.Module with forward(images)" in text


@pytest.mark.parametrize(
    ("module", "stochastic"), [(Scale, False), (Opaque, True), (Noisy, True), (None, False)]
)
def test_a_module_is_a_defense_beside_its_base(module, stochastic):
    model = toy_model.make_model()
    inside = bench.Classifier(model.eval(), 3) if module is Noisy else model
    defense = ModuleDefense(inside if module is None else module(inside), "mine")
    base, record = evaluate([defense], model)
    assert record.title["defense"] == "mine" and record.base == base.id
    assert record.stochastic is stochastic and not base.stochastic
    assert any("its base is the model given beside it" in f.message for f in record.findings)
    if module is None:
        assert record.outcomes == base.outcomes


def test_a_module_without_a_model_has_no_base():
    modules = [ModuleDefense(toy_model.make_model(), name) for name in ("one", "two")]
    records = bench.evaluate(
        dataset="toy:n=12", defenses=modules, attacks=ATTACK, device="cpu"
    ).records
    assert [record.title["defense"] for record in records] == ["one", "two"]
    assert all(record.base == "" for record in records)
    assert all("no base" in record.findings[-1].message for record in records)


def test_the_row_of_an_own_random_model_says_how_to_name_it():
    with pytest.warns(UserWarning, match=r"bench.ModuleDefense\(model, name='mine'\)"):
        (record,) = evaluate("undefended", Opaque(toy_model.make_model()))
    (found,) = [f for f in record.findings if f.name == "own-randomness"]
    assert found.verdict == "note" and "undefended" in found.message
