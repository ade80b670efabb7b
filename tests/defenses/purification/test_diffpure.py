"""DiffPure: t is a count."""

from bench_defenses.purification.purifier import (
    Round,
)

from tests.defenses.purification.helpers import built


def test_t_is_a_count_so_the_image_is_noised_to_the_index_before_it():
    assert built("diffpure:model=(gaussian:side=8)").how.rounds == (Round(200, 10, 199),)
    assert (
        built("diffpure:model=(gaussian:side=8),t=30,steps=3,start_index=30,rounds=2").how.rounds
        == (Round(30, 3, 30),) * 2
    )
    assert built("revpure:model=(gaussian:side=8),t=30,steps=3").how.rounds == (Round(30, 3, None),)
