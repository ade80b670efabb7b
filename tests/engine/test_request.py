"""The one request: its options, and what they are called."""

from bench.engine.request import Request, read_request
from tests.toys import message


def test_a_single_setup_is_asked_for_where_only_one_can_be():
    request = read_request({"eps": ["0.1", "0.2"]}, "test")
    assert message(lambda: request.one_setup("a study")) == "a study takes one --eps: give it once"


def test_given_lists_the_options_by_their_words():
    request = Request(epsilons=(0.1,), seeds=(1,), attacks=("pgd",))
    assert request.given() == ["seed", "eps"]
