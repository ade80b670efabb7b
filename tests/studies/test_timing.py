"""The study `time`: its counts, and that nothing comes from the cache."""

import math

import pytest
import torch
from bench_defenses.adversarial.objectives import OBJECTIVES
from bench_defenses.adversarial.trainer import Schedule, passes

from bench.models.classifier import Classifier
from bench.noise import Noise, isolated
from bench.studies import timing
from tests.studies.helpers import QUICK, STAGED, study
from tests.toys import message


def test_passes_are_counted_by_kind():
    noise = Noise.of(0, "build", range(3))
    with isolated(0):
        net, images = Classifier(torch.nn.Linear(2, 2), 2), noise.uniform("images", (2,))
    with timing.counted(Classifier) as passed:
        net(images[:1], noise.rows(slice(0, 1)))
        net(images, noise).sum().backward()
        torch.autograd.grad(net(images.requires_grad_(), noise).sum(), images)
        with torch.no_grad():
            net(images, noise)
    net(images, noise)
    assert (passed.forwards, passed.input_backwards, passed.weight_backwards) == (
        10,
        3,
        3,
    ) and passed.seconds > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("recipe", ["honest", "repo-general"])
def test_training_takes_the_claimed_passes(setting, objective, recipe):
    """Beyond them the teacher answers each image once, and one image goes through to see that it
    can.
    """
    spec = f"datafreeshield:{QUICK},objective={objective},recipe={recipe},targets=balanced,steps=3"
    synthesis, training = timing.stages(setting, spec)
    for stage in (synthesis, training):
        assert stage["input_backwards"] == stage["input_backwards_claimed"]
        assert stage["weight_backwards"] == stage["weight_backwards_claimed"]
    # Ten iterations, one look at the kept one, its answers before and after clamping.
    assert synthesis["forwards"] * 10 == pytest.approx(10 + 1 + 2 + 1 / 30)
    assert training["forwards"] * 2 == pytest.approx(2 * training["forwards_claimed"] + 1 + 1 / 30)


def test_an_epoch_takes_thirteen_forwards_an_image():
    counts = passes(OBJECTIVES["datafreeshield"](), Schedule(epochs=1, batch=1))
    assert counts == {"forwards": 13, "input_backwards": 10, "weight_backwards": 2}
    assert passes(OBJECTIVES["pgd-at"](), Schedule(epochs=1, batch=1))["forwards"] == 11


def test_the_study_of_time_measures_anew(setting):
    texts = f"(datafreeshield:{QUICK})+(datafreeshield:{QUICK},epochs=1)".replace(
        ",epochs=2,batch=10,group=1,synthesis_rate=0.1,epochs=1",
        ",epochs=1,batch=10,synthesis_rate=0.1",
    )
    results = [study(f"time:defenses={texts}").run(setting) for _ in range(2)]
    for result in results:
        table = result.tables["time"]
        assert table["stage"].tolist() == ["synthesis", "training"] * 2 and table[
            "iterations"
        ].tolist() == [10, 2, 10, 1]
        assert (table["forwards"] >= table["forwards_claimed"]).all() and (
            table["seconds"] > 0
        ).all()
    assert "synthesis of " in results[0].sentence and "10000 images" in results[0].sentence


@pytest.mark.parametrize(
    ("spec", "what"),
    [("bit-depth", "trains on no images of its own making"), ("dfme", "give mode=staged")],
)
def test_time_is_for_defenses_that_make_images(setting, spec, what):
    assert what in message(lambda: study(f"time:defenses={spec}").run(setting))


def test_a_baseline_claims_nothing_and_is_measured_an_image(setting):
    result = study(f"time:defenses=(dfme:{STAGED})").run(setting)
    synthesis, training = result.tables["time"].to_dict("records")
    assert (synthesis["iterations"], synthesis["images"]) == (1, 30)
    # Each of ten updates of a throw-away student, whose batches are of six.
    assert synthesis["forwards"] > 10 * 6 / 30 and training["forwards"] > 0
    assert math.isnan(synthesis["forwards_claimed"]) and "nan" not in result.sentence
