"""The images and models that contracts are checked on."""

import torch

from bench.contract.attack import ATTACK_CHECKS
from bench.contract.attack_case import AttackCase
from bench.contract.toys import linear_problem
from tests.contract.helpers import failures
from tests.contract.test_attack import Honest


def test_the_linear_problem_knows_its_own_distances():
    problem = linear_problem(24)
    assert not failures(ATTACK_CHECKS, AttackCase(Honest))
    with torch.no_grad():
        logits = problem.model(problem.images.images)
    score = (logits[:, 0] - logits[:, 1]) / 2 / problem.model.weight.abs().sum()
    assert torch.allclose(
        torch.where(problem.images.labels == 0, score, -score), problem.distance, atol=1e-6
    )
    assert problem.images.images.min() > 0.05 and problem.images.images.max() < 0.95
