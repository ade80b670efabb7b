"""The classifiers that come with the suite."""

import pytest

from bench.data.medmnist import PneumoniaMnist
from bench.data.mnist5k import Mnist5k
from bench.models import zoo
from bench.models.training import clean_accuracy, score, train
from bench.models.zoo import Zoo, ZooParams
from bench.spec import Params
from bench.storage.data_root import rooted
from tests.models.helpers import MNIST5K, write
from tests.toys import message


def test_zoo_refuses_unknown_names():
    assert "Did you mean 'mnist5k-cnn'" in message(
        lambda: Zoo(ZooParams(name="mnist5k_cnn")).load(10, 1)
    )
    assert "unknown zoo classifier" in message(
        lambda: Zoo(ZooParams(name="../weights/mnist5k-cnn")).load(10, 1)
    )


def test_zoo_refuses_other_data_sets():
    assert "has 10 classes" in message(lambda: Zoo(ZooParams(name="mnist5k-cnn")).load(2, 1))
    assert "takes 1 channels" in message(lambda: Zoo(ZooParams(name="mnist5k-cnn")).load(10, 3))


def test_zoo_without_a_sidecar(tmp_path, monkeypatch):
    write(tmp_path, "lost.safetensors")
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    assert "reinstall" in message(lambda: Zoo(ZooParams(name="lost")).load(10, 1))


def shipped():
    return Zoo(ZooParams(name="mnist5k-cnn")).load(10, 1)


def test_shipped_classifier_has_its_stated_accuracy():
    assert shipped().trained_on == ("mnist5k/train",)
    assert round(clean_accuracy(shipped(), Mnist5k(Params()).test()) * 1000) == pytest.approx(
        982, abs=1
    )


@pytest.mark.slow
def test_recipe_gives_the_shipped_classifier_again():
    again = train(Mnist5k(Params()), "cnn", MNIST5K, trained_on="mnist5k/train").classifier
    test = Mnist5k(Params()).test()
    assert clean_accuracy(again, test) == pytest.approx(clean_accuracy(shipped(), test), abs=0.006)


def test_the_shipped_pneumonia_classifier_is_as_good_as_its_sidecar_says(real_data):
    """86.5 %, where the constant answer gets 62.5."""
    with rooted(real_data / "data"):
        data = PneumoniaMnist(PneumoniaMnist.Params())
        measured = score(Zoo(ZooParams(name="pneumoniamnist-cnn")).load(2, 1), data.test())
        assert measured.n == 624 and measured.accuracy == pytest.approx(0.8654, abs=1e-4)
        assert measured.macro_f1 == pytest.approx(0.8434, abs=1e-4)
        assert (data.test().labels == 1).float().mean() == 0.625
