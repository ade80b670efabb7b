"""Which records belong together, and what they are called."""

import random

from bench.report.grouping import by_defense, by_setup, defense_names, newest
from tests.report.helpers import HALF, RIGHT, WRONG, record

DAYS = [f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3)]


def finished(one, day):
    return one.model_copy(update={"finished": DAYS[day], "id": f"{day:016d}"})


def test_of_several_records_of_one_thing_the_newest_stays():
    """Three versions of one attack, each with another verdict, in any order."""
    versions = [finished(record("a", HALF), 0), finished(record("a", WRONG), 2)]
    versions.insert(1, finished(record("a", RIGHT), 1))
    shuffled = random.Random(0)
    for _ in range(6):
        shuffled.shuffle(versions)
        (kept,) = newest(versions)
        assert kept.finished == DAYS[2] and kept.metrics.adversarial.mean.value == 0


def test_other_attacks_seeds_and_builds_are_no_older_versions():
    records = [
        finished(record("a", HALF), 0),
        finished(record("a", HALF, attack="null"), 1),
        finished(record("a", HALF, seed=1), 2),
        finished(record("a", HALF, build=1), 0),
        finished(record("a", HALF, randomness="eot:k=20"), 1),
    ]
    assert len(newest(records)) == 5


def test_setups_are_told_apart_by_images_classifier_and_threat():
    first = record("a", HALF)
    others = [
        record("a", HALF, threat={"norm": "linf", "eps": 0.1}),
        record("a", HALF, threat={"norm": "l2", "eps": first.identity["threat"]["eps"]}),
        record("a", HALF, classifier={"sha256": "0"}),
        record("a", HALF[:50]),
    ]
    assert [len(group) for group in by_setup([first, *others, record("b", RIGHT)])] == [
        2,
        1,
        1,
        1,
        1,
    ]


def test_names_tell_builds_and_versions_apart_and_nothing_else():
    edited = record("c", HALF)
    identity = {**edited.identity, "defense": {"name": "c", "version": 2}}
    records = [
        record("a", HALF),
        record("a", HALF, attack="null"),
        record("b", HALF),
        record("b", HALF, build=1),
        record("c", HALF),
        edited.model_copy(update={"identity": identity}),
    ]
    names = defense_names(by_defense(records))
    assert names[:3] == ["a", "b (build 0)", "b (build 1)"]
    assert [name[:13] for name in names[3:]] == ["c (build 0) #"] * 2 and names[3] != names[4]
