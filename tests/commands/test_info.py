"""What `bench info` says of a known answer."""

from bench.commands.info import describe
from bench.plugins.create import DEFENSES


def test_info_shows_the_answer():
    described = describe("jpeg", {"defenses": DEFENSES})
    assert described["surrogate"] == "the identity"
    assert described["fitting attacks"].startswith("bpda, ")
    assert described["documented robustness"].startswith("0 %") and described[
        "expected"
    ].startswith("broken: ")
    assert "expected" not in describe("undefended", {"defenses": DEFENSES})
