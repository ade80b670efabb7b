"""From a request to the evaluations that answer it."""

from __future__ import annotations

from collections.abc import Callable

from bench.defense import gradient_name
from bench.engine.evaluation import Evaluation, settled
from bench.engine.request import Request
from bench.engine.setup import Setup, load_setup
from bench.errors import BadInput
from bench.plugins.create import DEFENSES, AttackChoice, create, create_attack
from bench.randomness import RandomnessModel, read_randomness
from bench.spec import parse


def _ignore(_: str) -> None:
    pass


def plan(
    request: Request, setup: Setup | None = None, note: Callable[[str], None] = _ignore
) -> list[Evaluation]:
    """All evaluations of a request, each base before the first row that needs it, none twice.

    Args:
        request: a matrix of defenses, attacks and seeds.
        setup: images, classifier and threat model; loaded from the request by default.
        note: called where a requested gradient is not offered and the native one takes its place.

    Raises:
        BadInput: for anything that cannot work, before anything is computed.
    """
    if not request.defenses or not request.attacks:
        raise BadInput(
            "no defense or no attack given: add --defense NAME and --attack NAME (see `bench list`)"
        )
    defenses = [create(DEFENSES, parse(text)) for text in request.defenses]
    attacks = [(create_attack(text), text) for text in request.attacks]
    settings = [_settings(choice, text, request) for choice, text in attacks]
    setup = setup or load_setup(request)
    evaluations: dict[str, Evaluation] = {}
    for seed in request.seeds:
        for defense in defenses:
            for (choice, _), (gradient, randomness) in zip(attacks, settings, strict=True):
                evaluation = Evaluation(
                    setup, defense, choice.attack, gradient, randomness, seed, request.build_seed
                )
                _check_gradient(evaluation)
                _check_stages(evaluation)
                if gradient_name(evaluation.gradient) not in evaluation.gradients:
                    note(
                        f"{defense.spec} offers no gradient {evaluation.gradient!r}; it runs with "
                        f"its native one, as {choice.attack.spec}"
                    )
                evaluation = settled(evaluation)
                choice.attack.plugin.check(evaluation.setting)
                for one in filter(None, (evaluation.base(), evaluation)):
                    evaluations.setdefault(one.id, one)
    return list(evaluations.values())


def _settings(choice: AttackChoice, text: str, request: Request) -> tuple[str, RandomnessModel]:
    if choice.gradient and request.gradient and choice.gradient != request.gradient:
        raise BadInput(
            f"attack {text!r} means gradient {choice.gradient}, but --gradient {request.gradient}: "
            "keep one"
        )
    randomness = read_randomness(choice.randomness or request.randomness or "fresh")
    if choice.randomness and request.randomness:
        asked = read_randomness(request.randomness)
        detailed = parse(choice.randomness).options
        if asked.name != randomness.name or (detailed and asked != randomness):
            raise BadInput(
                f"attack {text!r} means randomness {randomness}, but --randomness {asked}: keep one"
            )
        randomness = asked
    return choice.gradient or request.gradient or "full", randomness


def _check_gradient(evaluation: Evaluation) -> None:
    offered = evaluation.gradients
    if gradient_name(evaluation.gradient) not in offered and evaluation.gradient != "bpda":
        raise BadInput(
            f"defense {evaluation.defense.name!r} offers no gradient {evaluation.gradient!r}: use "
            f"{' or '.join(offered)}"
        )


def _check_stages(evaluation: Evaluation) -> None:
    stages = evaluation.defense.plugin.stages
    unknown = [stage for stage in evaluation.randomness.freeze if stage not in stages]
    if evaluation.stochastic and unknown:
        has = (
            f"its stages are {' and '.join(stages)}"
            if stages
            else "none of its randomness can be frozen alone: use replay"
        )
        raise BadInput(
            f"defense {evaluation.defense.name!r} has no stage {unknown[0]!r} to freeze: {has}"
        )
