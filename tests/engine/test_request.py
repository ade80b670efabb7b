"""The one request: its options, and what they are called."""

import pytest

from bench.engine.request import Request, read_request, read_suite
from tests.toys import message


def test_a_single_setup_is_asked_for_where_only_one_can_be():
    request = read_request({"eps": ["0.1", "0.2"]}, "test")
    assert message(lambda: request.one_setup("a study")) == "a study takes one --eps: give it once"


def test_given_lists_the_options_by_their_words():
    request = Request(epsilons=(0.1,), seeds=(1,), attacks=("pgd",))
    assert request.given() == ["seed", "eps"]


def test_a_run_of_a_suite_inherits_the_keys_above_it(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(
        'attack = "pgd"\neps = "1/20"\n[[run]]\ndefense = ["a", "b"]\n'
        '[[run]]\ndefense = "c"\nattack = ["fgsm", "null"]\n'
    )
    first, second = read_suite(path)
    assert (first.defenses, first.attacks, first.epsilons) == (("a", "b"), ("pgd",), (0.05,))
    assert (second.defenses, second.attacks, second.epsilons) == (("c",), ("fgsm", "null"), (0.05,))


@pytest.mark.parametrize(
    ("text", "words"),
    [("run = 3", "[[run]]"), ("epz = 1", "Did you mean 'eps'"), ("= 3", "not TOML")],
)
def test_a_suite_that_is_none_is_refused_by_its_path(tmp_path, text, words):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    said = message(lambda: read_suite(path))
    assert words in said and str(path) in said
