"""The contract of an attack, check by check, on small models whose exact robustness is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.contract.attack_case import EPS, AttackCase
from bench.contract.check import (
    Broken,
    Check,
    check_bad_parameters,
    check_description,
    check_engine,
    check_generators,
    check_round_trip,
    demand,
)
from bench.contract.toys import Jittered, LinearProblem, Quantised, linear_problem
from bench.defense import Setting
from bench.errors import BadInput, one_line
from bench.models.classifier import Classifier
from bench.noise import isolated
from bench.randomness import RandomnessModel
from bench.threat import ThreatModel
from bench.victim import Victim, frozen

_MODELS = (
    RandomnessModel(),
    RandomnessModel("eot", 2),
    RandomnessModel("replay"),
    RandomnessModel("replay-set", 2),
)
_POINT_TOLERANCE = 1e-4


def points_in_ball_and_box(case: AttackCase) -> None:
    """Points lie in ball and box as they are returned, under every norm that the attack takes."""
    demand(
        bool(case.points_by_norm),
        "it raises BadInput under linf, l2 and l1: take at least one of them",
    )
    for norm, attacked in case.points_by_norm.items():
        out = attacked.reprojected
        demand(
            out == 0,
            f"{out} of {len(attacked.points)} points lie outside ball or box under {norm}: end "
            "with threat.project",
        )


def inputs_left_alone(case: AttackCase) -> None:
    """Images and labels that it was given stay as they are."""
    images, labels = case.images.pixels().clone(), case.images.labels.clone()
    with isolated(0), frozen(case.setup.classifier):
        victim = Victim(case.setup.classifier, case.images.ids, base=lambda: case.setup.classifier)
        case.plugin(victim, images, labels, case.threat)
    same = torch.equal(images, case.images.pixels()) and torch.equal(labels, case.images.labels)
    demand(same, "it changes the images or labels that it was given: work on a clone")


def nothing_in_a_tiny_ball(case: AttackCase) -> None:
    """In a ball of radius 1e-9 it runs, and no image that is right is broken."""
    attacked = case.run(case.setup.classifier, case.images, ThreatModel(case.norm, 1e-9))
    broken = int((attacked.predictions[:, 0] != case.images.labels).sum())
    demand(
        broken == 0,
        f"{broken} images are broken in a ball of radius 1e-9: scale every step by threat.eps",
    )


def same_points_again(case: AttackCase) -> None:
    """Run twice it returns the same points."""
    first, second = (
        case.run(case.setup.classifier, case.images, case.threat).points for _ in range(2)
    )
    demand(
        torch.equal(first, second),
        "two runs differ: keep no state, and take every number from `victim.random(rows)`",
    )


def generators_untouched(case: AttackCase) -> None:
    """It neither reads nor moves a global random generator."""
    check_generators(
        lambda: case.run_openly(case.setup.classifier, case.images, case.threat).points,
        "the attack",
    )


def rows_stand_alone(case: AttackCase) -> None:
    """An image's verdict and point depend neither on its batch nor on its place in it, unless the
    attack declares a unit.
    """
    if (case.plugin.unit(stochastic=False) or 1) > 1:
        return
    classifier = case.setup.classifier
    together = case.run(classifier, case.images, case.threat)
    order = np.arange(len(case.images))[::-1].copy()
    everything = case.images
    turned = case.run(classifier, everything.at(order), case.threat, evaluated=everything)
    alone = [
        case.run(classifier, everything.at(np.array([i])), case.threat, evaluated=everything)
        for i in range(len(everything))
    ]
    for name, points, predictions in (
        ("place", turned.points.flip(0), turned.predictions.flip(0)),
        (
            "batch",
            torch.cat([one.points for one in alone]),
            torch.cat([one.predictions for one in alone]),
        ),
    ):
        # A gradient that is zero up to rounding may change its sign with the batch size; a few
        # points may differ by that.
        moved = (
            ((points - together.points).abs().flatten(1).amax(1) > _POINT_TOLERANCE).float().mean()
        )
        same = torch.equal(predictions, together.predictions) and float(moved) <= 0.25
        demand(
            same,
            f"points change with an image's {name}: take no means over the batch, and numbers from "
            "`victim.random(rows)`",
        )


def sound_on_a_linear_model(case: AttackCase) -> None:
    """It breaks no image of a linear model that cannot be broken."""
    problem, broken = _on_a_linear_model(case)
    wrong = int((broken & (problem.distance > 1.01 * EPS["linf"])).sum())
    demand(
        wrong == 0,
        f"{wrong} images are broken that no attack can break: let the victim's model and the "
        "labels alone",
    )


def finds_something(case: AttackCase) -> None:
    """Unless its card says that it is a control, it breaks images of a linear model that can be
    broken.
    """
    problem, broken = _on_a_linear_model(case)
    breakable = int((problem.distance < 0.99 * EPS["linf"]).sum())
    demand(
        bool(broken.any()) or case.plugin.card.control,
        f"it breaks none of {breakable} images of a linear model that can be broken: maximise the "
        "loss or set Card(control=True)",
    )


def _on_a_linear_model(case: AttackCase) -> tuple[LinearProblem, Tensor]:
    """The problem, and which of its images the attack breaks under Linf; none where it takes no
    Linf ball.
    """
    problem = linear_problem(24)
    if "linf" not in case.points_by_norm:
        return problem, torch.zeros(24, dtype=torch.bool)
    attacked = case.run(
        Classifier(problem.model, 2).eval(), problem.images, ThreatModel("linf", EPS["linf"])
    )
    return problem, attacked.predictions[:, 0] != problem.images.labels


def works_on_random_defenses(case: AttackCase) -> None:
    """It runs on a stochastic defense under every randomness model that it does not refuse, and
    refuses not all.
    """
    accepted = [randomness for randomness in _MODELS if _accepts(case, randomness)]
    demand(
        bool(accepted),
        "it refuses stochastic defenses under every randomness model: let `check` accept at least "
        "replay",
    )
    for randomness in accepted:
        try:
            case.run(Jittered(case.setup.classifier), case.images, case.threat, randomness)
        except Exception as error:
            raise Broken(
                f"it fails on a stochastic defense under {randomness} ({one_line(error)}): logits "
                "are (n, draws, K)"
            ) from error


def _accepts(case: AttackCase, randomness: RandomnessModel) -> bool:
    try:
        setup = case.setup
        shape = tuple(setup.images.images.shape[1:])
        classes = setup.classifier.num_classes
        case.plugin.check(Setting(True, randomness, case.threat, classes, shape))
    except BadInput:
        return False
    return True


def works_without_gradients(case: AttackCase) -> None:
    """It runs on a defense that has no gradient."""
    try:
        case.run(Quantised(case.setup.classifier), case.images, case.threat)
    except Exception as error:
        raise Broken(
            f"it fails where there is no gradient ({one_line(error)}): gradients may be zero; "
            "guard divisions"
        ) from error


def describes_itself(case: AttackCase) -> None:
    """Docstring, paper or note, version."""
    check_description(case.plugin)


def parameters_survive_their_spec(case: AttackCase) -> None:
    """Parameters come out of their printed spec again."""
    check_round_trip(case.plugin, getattr(case.plugin, "positional", None))


def bad_parameters_are_refused(case: AttackCase) -> None:
    """Unknown parameters and senseless values are refused by `BadInput`."""
    check_bad_parameters(case.plugin, getattr(case.plugin, "positional", None))


def engine_runs_it(case: AttackCase) -> None:
    """The engine runs it on a few images and stores a record that can be read again."""
    check_engine(case.evaluation)


ATTACK_CHECKS: Sequence[Check[AttackCase]] = (
    points_in_ball_and_box,
    inputs_left_alone,
    nothing_in_a_tiny_ball,
    same_points_again,
    generators_untouched,
    rows_stand_alone,
    sound_on_a_linear_model,
    finds_something,
    works_on_random_defenses,
    works_without_gradients,
    describes_itself,
    parameters_survive_their_spec,
    bad_parameters_are_refused,
    engine_runs_it,
)
