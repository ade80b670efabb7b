"""The images that a defense makes itself."""

import torch

from bench.studies import synthetic
from tests.studies.helpers import SELF_MADE
from tests.toys import message


def test_the_images_are_those_that_the_defense_trains_on(setting):
    (made,) = synthetic.make(setting, (SELF_MADE[1:-1],))
    assert made.images.shape == (30, 3, 16, 16) and torch.bincount(made.labels).tolist() == [10] * 3
    (again,) = synthetic.make(setting, (SELF_MADE[1:-1],))
    assert torch.equal(made.images, again.images)
    assert "trains on no images of its own making" in message(
        lambda: list(synthetic.make(setting, ("bit-depth",)))
    )


def test_specs_are_named_by_what_differs():
    assert synthetic.short_names(["d:a=1,b=2", "d:a=1,b=3"]) == {
        "d:a=1,b=2": "b=2",
        "d:a=1,b=3": "b=3",
    }
    assert synthetic.short_names(["d", "d:b=3"]) == {"d": "d", "d:b=3": "b=3"}
    assert synthetic.short_names(["d:a=1"]) == {"d:a=1": "d, a=1"}


def test_short_names_keep_nested_specs_whole():
    specs = ["d:a=1,objective=(o:x=1,y=2)", "d:a=1,objective=(o:x=1,y=3)"]
    assert list(synthetic.short_names(specs).values()) == [
        "objective=(o:x=1,y=2)",
        "objective=(o:x=1,y=3)",
    ]
