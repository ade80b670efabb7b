"""Records in words: stand-ins, flags, attacks."""

import pytest

from bench.defense import Card, Defense
from bench.plugins.create import DEFENSES
from bench.report.boards.make import boards
from bench.report.rows import rows_table
from bench.report.words import attack_label, defense_label, flags
from tests.report.helpers import HALF, RIGHT, made, record


@DEFENSES.register("toy-stand-in")
class StandIn(Defense):
    """Stands in for a defense whose code is missing."""

    card = Card(note="a toy", stand_in=True)

    def build(self, classifier, access, noise):
        return classifier


def named(name, spec, verdicts=HALF, **defense):
    one = record(name, verdicts)
    identity = {**one.identity, "defense": {"name": name, **defense}}
    return one.model_copy(update={"identity": identity, "title": {**one.title, "defense": spec}})


def test_a_stand_in_says_so_in_its_name():
    records = [named("toy-stand-in", "toy-stand-in:steps=2"), named("undefended", "undefended")]
    (board,) = boards(records)
    expected = ["toy-stand-in:steps=2 (stand-in)", "undefended"]
    assert sorted(row.defense for row in board.rows) == expected
    assert "| toy-stand-in:steps=2 (stand-in) | pgd" in rows_table(records)


def test_builds_of_a_stand_in_are_told_apart_behind_it():
    one = named("toy-stand-in", "toy-stand-in")
    seeds = {**one.identity["seeds"], "build": 1}
    other = one.model_copy(update={"identity": {**one.identity, "seeds": seeds}, "id": "0" * 16})
    (board,) = boards([one, other])
    (row,) = board.rows
    assert row.defense == "toy-stand-in (stand-in)" and [one.seed for one in row.builds] == [0, 1]
    assert "toy-stand-in (stand-in) (build 1)" in rows_table([one, other])


@pytest.mark.parametrize("name", ["undefended", "not-installed", "", "no/such@thing"])
def test_what_is_no_stand_in_or_not_installed_is_none(name):
    assert defense_label(named(name, name)) == name


def test_a_plugin_that_cannot_be_loaded_is_no_stand_in(monkeypatch):
    def broken(name):
        raise RuntimeError("it needs what is not here")

    monkeypatch.setattr(DEFENSES, "get", broken)
    assert defense_label(named("toy-stand-in", "toy-stand-in")) == "toy-stand-in"


def test_a_plugin_from_a_file_takes_no_registered_card():
    assert defense_label(named("toy-stand-in", "x.py@toy-stand-in", source="0")) == (
        "x.py@toy-stand-in"
    )


def test_flags_name_each_doubt_once_and_leave_notes_out():
    first = made(HALF)
    assert flags([first, first]) == ["n=100 of 1000"] and flags([first], with_scale=False) == []
    collapsed = first.model_copy(
        update={"metrics": first.metrics.model_copy(update={"collapsed": True})}
    )
    assert flags([collapsed]) == ["COLLAPSED", "n=100 of 1000"]


def test_an_attack_is_named_with_what_differs_from_plain():
    assert attack_label(made(RIGHT)) == "pgd"
    assert attack_label(made(RIGHT, randomness="eot:k=20")) == "pgd (eot:k=20)"
