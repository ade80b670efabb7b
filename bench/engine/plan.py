"""From a request to the evaluations that answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from torch import nn

from bench.attack import Attack
from bench.defense import Defense, gradient_name
from bench.engine.evaluation import Evaluation, settled
from bench.engine.modules import ModuleDefense
from bench.engine.request import Request
from bench.engine.setup import OWN_RANDOMNESS, Setup, load_setups
from bench.errors import BadInput
from bench.models.sketch import sketches
from bench.plugins.create import BASE, DEFENSES, AttackChoice, Named, create, create_attack
from bench.randomness import RandomnessModel, read_randomness
from bench.spec import parse


def _ignore(_: str) -> None:
    pass


def plan(
    request: Request,
    setup: Setup | None = None,
    model: nn.Module | None = None,
    note: Callable[[str], None] = _ignore,
    objects: Mapping[str, Named[Any]] = MappingProxyType({}),
) -> list[Evaluation]:
    """All evaluations of a request, each base before the first row that needs it, none twice.

    Args:
        request: a matrix of defenses, attacks and seeds.
        setup: images, classifier and threat model; loaded from the request by default.
        model: the user's own network in place of a classifier.
        note: called with what a user should know: where a gradient is not
            offered, a default was taken, a step is too long; each once.
        objects: defenses, attacks and data sets that Python gave, by the text that stands for them
            in the request.

    Raises:
        BadInput: for anything that cannot work, before anything is computed.
    """
    if not request.defenses or not request.attacks:
        raise BadInput(
            "no defense or no attack given: add --defense NAME and --attack NAME (see `bench list`)"
        )
    defenses: list[Named[Defense[Any]]] = [
        objects.get(text) or create(DEFENSES, parse(text)) for text in request.defenses
    ]
    note = _once(note)
    choices = [_chosen(text, request, note, objects) for text in request.attacks]
    evaluations: dict[str, Evaluation] = {}
    for one_setup in [setup] if setup else load_setups(request, model, objects):
        _look(one_setup, defenses, note)
        for seed, defense, choice in product(request.seeds, defenses, choices):
            evaluation = _evaluation(one_setup, defense, choice, seed, request.build_seed, note)
            for one in filter(None, (evaluation.base(), evaluation)):
                known = evaluations.get(one.id)
                if known is None or one.asked:
                    evaluations[one.id] = one
    return list(evaluations.values())


def plan_all(
    requests: Iterable[Request], note: Callable[[str], None] = _ignore
) -> list[Evaluation]:
    """The evaluations of several requests, none twice; see `plan`."""
    evaluations: dict[str, Evaluation] = {}
    note = _once(note)
    for request in requests:
        for one in plan(request, note=note):
            if one.id not in evaluations or one.asked:
                evaluations[one.id] = one
    return list(evaluations.values())


def _look(
    setup: Setup, defenses: Sequence[Named[Defense[Any]]], note: Callable[[str], None]
) -> None:
    """What is to be known of images, model and modules before their evaluations are planned."""
    for text in setup.images.notes:
        note(text)
    for defense in defenses:
        if isinstance(defense.plugin, ModuleDefense):
            sample = setup.images.first(min(4, len(setup.images)))
            defense.plugin.look(setup.classifier.num_classes, sample.pixels())
    if setup.has_own_randomness and any(defense.name == BASE for defense in defenses):
        note(OWN_RANDOMNESS)


@dataclass(frozen=True)
class _Choice:
    """An attack with its gradient and randomness model."""

    attack: Named[Attack[Any]]
    gradient: str
    randomness: RandomnessModel


def _evaluation(
    setup: Setup,
    defense: Named[Defense[Any]],
    choice: _Choice,
    seed: int,
    build_seed: int,
    note: Callable[[str], None],
) -> Evaluation:
    """One evaluation, checked and settled."""
    evaluation = Evaluation(
        setup, defense, choice.attack, choice.gradient, choice.randomness, seed, build_seed
    )
    _check_gradient(evaluation)
    _check_stages(evaluation)
    if gradient_name(evaluation.gradient) not in evaluation.gradients:
        note(
            f"{defense.spec} offers no gradient {evaluation.gradient!r}; it runs with its native "
            f"one, as {choice.attack.spec}"
        )
    evaluation = settled(evaluation)
    _check_defense(evaluation, note)
    choice.attack.plugin.check(evaluation.setting)
    plugin = choice.attack.plugin
    for remark in (*plugin.remarks(evaluation.setting), *plugin.look(setup.images, setup.threat)):
        note(f"{choice.attack.spec}: {remark}")
    return evaluation


def _check_defense(evaluation: Evaluation, note: Callable[[str], None]) -> None:
    """Let the defense refuse the setting. Nothing can be told of a network without its weights."""
    try:
        evaluation.defense.plugin.check(evaluation.build_setting)
    except Exception:
        if not sketches(evaluation.setup.classifier):
            raise
        note(f"{evaluation.defense.spec} is checked once the classifier's weights are there")


def _once(note: Callable[[str], None]) -> Callable[[str], None]:
    """The same, each text once."""
    noted: set[str] = set()

    def note_once(text: str) -> None:
        if text not in noted:
            noted.add(text)
            note(text)

    return note_once


def _chosen(
    text: str, request: Request, note: Callable[[str], None], objects: Mapping[str, Named[Any]]
) -> _Choice:
    """The attack of a spec; its settings and the request's must not contradict each other."""
    own = objects.get(text)
    choice = AttackChoice(own, None, None) if own else create_attack(text)
    gradient, randomness = _settings(choice, text, request)
    asked = parse(request.randomness or choice.randomness or "fresh")
    if asked.name in ("eot", "replay-set") and "k" not in asked.options:
        note(f"{asked.name} without k takes its default, {randomness}")
    return _Choice(choice.attack, gradient, randomness)


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
