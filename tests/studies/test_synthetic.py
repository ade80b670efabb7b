"""The images that a defense makes itself."""

import torch
from bench_defenses.generators import baselines

from bench.engine.build import build
from bench.noise import Noise, Stream
from bench.studies import synthetic
from bench.studies.deployed import evaluation_of
from tests.studies.helpers import SELF_MADE, STAGED
from tests.toys import message


def test_the_images_are_those_that_the_defense_trains_on(setting):
    (made,) = synthetic.make(setting, (SELF_MADE[1:-1],))
    assert made.images.shape == (30, 3, 16, 16) and torch.bincount(made.labels).tolist() == [10] * 3
    (again,) = synthetic.make(setting, (SELF_MADE[1:-1],))
    assert torch.equal(made.images, again.images)
    assert "trains on no images of its own making" in message(
        lambda: list(synthetic.make(setting, ("bit-depth",)))
    )


def test_the_images_of_a_baseline_in_two_stages(setting, monkeypatch):
    (made,) = synthetic.make(setting, (f"dfme:{STAGED}",))
    seen, train = [], baselines.trained_student

    def spy(classifier, training, *rest):
        seen.append(training)
        return train(classifier, training, *rest)

    monkeypatch.setattr(baselines, "trained_student", spy)
    build(evaluation_of(setting, f"dfme:{STAGED}"), setting.device)
    assert torch.equal(made.images, seen[0].images.images)
    answers = setting.setup.classifier(made.images, Noise.of(0, Stream.EVAL, range(30)))
    assert torch.equal(made.labels, answers.argmax(1))


def test_a_baseline_that_meets_new_images_in_every_batch_has_no_set_to_look_at(setting):
    specs = (SELF_MADE[1:-1], "dfme")
    assert "give mode=staged" in message(lambda: next(synthetic.make(setting, specs)))


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
