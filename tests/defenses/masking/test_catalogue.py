"""The catalogue of modules with known answers."""

from collections import Counter

import pytest
import torch
from bench_defenses.masking import architectures
from bench_defenses.masking.catalogue import Masking

from bench.engine.request import Request
from bench.engine.setup import load_setup
from bench.noise import isolated
from bench.studies.cases import HALVES, MNIST5K, halves
from tests.helpers import ROOT

CASES = Masking().cases()
MODULES = [case for case in CASES if case.make and not case.published]
QUICK = [case for case in MODULES if case.kind != "architecture"]


@pytest.fixture(scope="module")
def setup():
    return load_setup(Request(epsilons=(MNIST5K.eps,), n=6).one_setup("a test"))


def test_there_are_enough_cases_of_enough_kinds():
    hiding = [case for case in CASES if case.masked]
    controls = [case for case in CASES if not case.masked]
    assert len(CASES) >= 60 and len({case.name for case in CASES}) == len(CASES)
    assert len(hiding) >= 44 and len({case.kind for case in hiding}) >= 12
    assert len(controls) >= 24 and all(case.hides for case in CASES)


def test_kinds_are_split_evenly_and_not_cases():
    half_of = halves(CASES)
    for masked in (True, False):
        kinds = Counter(half_of[kind] for kind in {c.kind for c in CASES if c.masked is masked})
        assert abs(kinds[HALVES[0]] - kinds[HALVES[1]]) <= 1
        cases = Counter(half_of[case.kind] for case in CASES if case.masked is masked)
        assert min(cases.values()) >= 10


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_every_module_answers_and_comes_out_the_same_each_time(case, setup):
    images = setup.images.pixels()
    answers = []
    for _ in range(2):
        module = case.make(setup)
        with isolated(0), torch.no_grad():
            answers.append(module(images))
        assert not module.training
    assert answers[0].shape == (6, 10) and not answers[0].isnan().any()
    assert torch.equal(answers[0].argmax(1), answers[1].argmax(1))


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_no_module_changes_the_decisions_on_most_clean_images(case, setup):
    with isolated(0), torch.no_grad():
        module = case.make(setup)
        # Six images of six classes are no batch to lean on.
        answers = torch.cat([module(image[None]) for image in setup.images.pixels()])
    assert (answers.argmax(1) == setup.images.labels).sum() >= 4


@pytest.mark.parametrize(
    "kind", [architectures.RowReader, architectures.PatchTransformer, architectures.GeluNet]
)
def test_an_architecture_trains_and_comes_out_the_same_each_time(kind, setup):
    first = architectures.trained(kind, epochs=1)
    again = architectures.trained.__wrapped__(kind, epochs=1)
    images = setup.images.pixels()
    with torch.no_grad():
        assert torch.equal(first(images), again(images)) and not first.training


def test_the_page_lists_every_kind():
    page = (ROOT / "docs" / "reference" / "masking.md").read_text(encoding="utf-8")
    assert all(f"`{case.kind}`" in page for case in CASES)
