"""Controls against a model whose robust accuracy is known exactly."""

from bench_attacks.controls import Null, RandomNoise

from tests.attacks.test_pgd import case
from tests.toys import attack_robust, classifier


def test_a_random_search_stays_above_the_exact_answer():
    model, images, labels, threat, distance = case("linf", True, 3)
    for attack in (Null(Null.Params()), RandomNoise(RandomNoise.Params(tries=20))):
        robust = attack_robust(classifier(model, 3), images, labels, attack, threat)
        assert not (~robust & (distance > 1.01 * threat.eps)).any()
        assert robust.mean() > (distance > threat.eps).mean() + 0.05
