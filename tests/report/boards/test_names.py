"""Short names tell the rows of a board apart."""

from bench.report.boards.make import boards
from bench.report.boards.markdown import page
from bench.report.boards.names import own_settings
from bench.report.boards.protocol import BoardFile, Protocol
from tests.report.helpers import HALF, RIGHT, record

PUBLIC = "public-at:epochs=40,images=({}:n=500),optimiser=adam,steps=5"


def test_a_setting_that_not_every_row_has_is_its_own():
    names = ["a:x=1,y=(b:z=2,w=3)", "a:x=1,y=(b:z=3)", "a", "b:x=1"]
    assert own_settings(names) == [("x=1", "y=(b:z=2,w=3)"), ("x=1", "y=(b:z=3)"), (), ()]


def test_rows_that_differ_in_a_long_setting_are_told_apart_everywhere():
    """Mutation: the shortest settings alone, which are the same in both."""
    both = [record(PUBLIC.format("fashion"), RIGHT), record(PUBLIC.format("letters"), HALF)]
    text = page(boards(both))
    for own in ("images=(fashion: n=500)", "images=(letters: n=500)"):
        # Ranks, attacks, costs and how it was built.
        assert text.count(f"public-at: {own}, steps=5, 2 more settings, see below") == 4
    (board,) = boards(both, BoardFile(protocol=Protocol(stochastic=("pgd",))))
    assert "public-at:images=(fashion:n=500)" in board.sentences[1]
