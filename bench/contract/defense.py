"""The contract of a defense, check by check.

Every check works on a copy of the defense as the engine builds it, so that none depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.contract.check import (
    Broken,
    Check,
    Unbuilt,
    check_bad_parameters,
    check_description,
    check_engine,
    check_generators,
    check_round_trip,
    demand,
)
from bench.contract.defense_case import CPU, DefenseCase, output
from bench.defense import DefendedClassifier, Forward
from bench.engine.build import build
from bench.errors import BadInput
from bench.losses import cross_entropy
from bench.noise import isolated
from bench.plugins.create import AttackChoice, create_attack

_TOLERANCE = 1e-3
_DRAWS = 4


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float(
        (one - other).abs().nan_to_num(0).max() / (1 + other.abs().nan_to_num(0, 0, 0).max())
    )


def builds(case: DefenseCase) -> None:
    """It can be built, and what is built has the declared `stochastic` and `gradients`."""
    try:
        case.defended()
    except Unbuilt as error:
        raise Broken(f"it cannot be built: {error}") from error


def shape(case: DefenseCase) -> None:
    """Logits are floating point, (n, num_classes), for any number of images."""
    defended = case.defended()
    for n in (len(case.images), 1):
        logits = output(defended, case.images[:n], case.noise().rows(slice(0, n)))
        expected = (n, case.setup.classifier.num_classes)
        is_tensor = isinstance(logits, Tensor)
        returned = tuple(logits.shape) if is_tensor else type(logits).__name__
        demand(
            is_tensor and logits.is_floating_point() and returned == expected,
            f"forward returned {returned} for {n} images: return one row of K logits an image, "
            f"here {expected}",
        )


def finite(case: DefenseCase) -> None:
    """Logits are finite on the images, on black, on white and on random ones."""
    defended, shape = case.defended(), tuple(case.images.shape[1:])
    random = case.noise().at("random images").uniform("pixels", shape)
    odd = {
        "black": torch.zeros_like(case.images),
        "white": torch.ones_like(case.images),
        "random": random,
    }
    for name, images in {"given": case.images, **odd}.items():
        logits = output(defended, images, case.noise())
        # A class that is ruled out may have the logit -inf.
        bad = torch.isnan(logits) | (logits == torch.inf)
        demand(
            not bool(bad.any()),
            f"logits are NaN or infinite on {name} images: attacks come there; guard divisions and "
            "logarithms",
        )


def same_noise_same_logits(case: DefenseCase) -> None:
    """Two passes with the same noise are equal, bit for bit."""
    defended = case.defended()
    first, second = (output(defended, case.images, case.noise()) for _ in range(2))
    demand(
        torch.equal(first, second),
        "two passes with the same noise differ, so nothing can be replayed: take every number from "
        "`noise`, keep no state",
    )


def stochastic_as_declared(case: DefenseCase) -> None:
    """Fresh draws change the logits if the defense says that it is stochastic, and only then."""
    defended = case.defended()
    first, *others = (output(defended, case.images, case.noise(draw)) for draw in range(_DRAWS))
    differ = any(not torch.equal(first, other) for other in others)
    if defended.stochastic:
        demand(
            differ,
            "it says stochastic=True, but fresh draws change nothing: draw from `noise` in "
            "forward, or say False",
        )
    else:
        demand(
            not differ,
            "its logits change with the noise, but it says stochastic=False: set stochastic on "
            "the defense",
        )


def rows_stand_alone(case: DefenseCase) -> None:
    """An image's logits depend neither on its batch nor on its place in it."""
    defended = case.defended()
    together = output(defended, case.images, case.noise())
    backwards = np.arange(len(case.images))[::-1].copy()
    turned = output(
        defended, case.images[torch.from_numpy(backwards)], case.noise().rows(backwards)
    )
    gap = _gap(turned, together[torch.from_numpy(backwards)])
    for i in range(min(3, len(case.images))):
        alone = output(defended, case.images[i : i + 1], case.noise().rows(slice(i, i + 1)))
        gap = max(gap, _gap(alone, together[i : i + 1]))
    demand(
        gap <= _TOLERANCE,
        f"an image's logits change by {gap:.1e} (relative) with its batch: compute row by row, and "
        "use row i's noise for image i",
    )


def generators_untouched(case: DefenseCase) -> None:
    """The forward pass neither reads nor moves a global random generator."""
    defended = case.defended()

    def run() -> Tensor:
        with torch.no_grad():
            logits: Tensor = defended(case.images, case.noise())
        return logits

    check_generators(run, "the forward pass")


def gradients_as_declared(case: DefenseCase) -> None:
    """Every gradient but a replaced `full` exists, is finite, and is zero on no image."""
    defended = case.defended()
    names = [name for name in case.plugin.gradients if name != "full"] or ["full"]
    for name in names:
        slope = _slope(defended.forward_pass(name), case)
        fix = (
            "offer another: derive from InputTransform with gradients = ('full', 'bpda') on the "
            "defense"
            if name == "full"
            else "its proxy must depend on the image"
        )
        demand(
            slope is not None,
            f"it declares the gradient {name!r}, but none reaches the image: {fix}",
        )
        if slope is not None:
            demand(
                bool(torch.isfinite(slope).all()),
                f"the gradient {name!r} is not finite: guard square roots, logarithms, divisions",
            )
            dead = int((slope.flatten(1).abs().amax(1) == 0).sum())
            demand(
                dead == 0, f"the gradient {name!r} is zero on {dead} of {len(slope)} images: {fix}"
            )


def _slope(forward: Forward, case: DefenseCase) -> Tensor | None:
    with isolated(0):
        leaf = case.images.clone().requires_grad_(True)
        loss = cross_entropy(forward(leaf, case.noise()), case.labels).sum()
        return torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None


def forward_passes_agree(case: DefenseCase) -> None:
    """Forward passes with another gradient have the outputs of the native one, bit for bit, in
    every view, but for declared `transfers`.
    """
    defended = case.defended()
    for view in defended.views():
        native = output(
            defended if view == "logits" else defended.forward_pass("full", view),
            case.images,
            case.noise(),
        )
        for gradient in set(defended.gradients) - set(defended.transfers):
            with isolated(0):
                leaf = case.images.clone().requires_grad_(True)
                forward_pass = defended.forward_pass(gradient, view)(leaf, case.noise()).detach()
            demand(
                torch.equal(forward_pass, native),
                f"forward_pass({gradient!r}, {view!r}) has other outputs than the native pass, so "
                "attacks would aim elsewhere: use straight_through(value, proxy), or list it in "
                "`transfers`",
            )


def views_work(case: DefenseCase) -> None:
    """Every view has one row an image; unknown views and gradients are refused by `BadInput`."""
    defended = case.defended()
    views = defended.views()
    demand("logits" in views, f"views() is {views}: it must list 'logits'")
    for view in views:
        rows = len(output(defended.forward_pass("full", view), case.images, case.noise()))
        demand(
            rows == len(case.images),
            f"the view {view!r} has {rows} rows for {len(case.images)} images: give one row an "
            "image",
        )
    for arguments in (("no-such-gradient", "logits"), ("full", "no-such-view")):
        demand(
            _refuses(defended, *arguments),
            f"forward_pass{arguments} is not refused: raise BadInput for names that it "
            "does not offer",
        )


def _refuses(defended: DefendedClassifier, gradient: str, view: str) -> bool:
    try:
        defended.forward_pass(gradient, view)
    except BadInput:
        return True
    return False


def data_as_declared(case: DefenseCase) -> None:
    """`build` asks for no data that `needs` does not declare."""
    case.defended()
    undeclared = sorted(case.witness.asked - {str(need) for need in case.plugin.needs})
    demand(
        not undeclared,
        f"it asks for {', '.join(undeclared)} without declaring it and hides the refusal: add it "
        "to `needs`",
    )


def build_is_reproducible(case: DefenseCase) -> None:
    """Built twice from the same noise it gives the same logits."""
    one, other = case.defended(), build(case.evaluation, CPU)
    same = torch.equal(
        output(one, case.images, case.noise()), output(other, case.images, case.noise())
    )
    demand(
        same,
        "two builds from the same noise differ: take numbers from the `noise` given to build, keep "
        "nothing between builds",
    )


def classifier_left_alone(case: DefenseCase) -> None:
    """Building and running it does not change the classifier of the undefended base."""
    output(case.defended(), case.images, case.noise())
    before, now = case.undefended_now()
    demand(
        torch.equal(before, now),
        "the undefended classifier changed when the defense was built: change only the copy given "
        "to build, no class or global",
    )


def no_state_between_calls(case: DefenseCase) -> None:
    """A pass leaves parameters, buffers and training flags alone and does not change later
    passes.
    """
    defended = case.defended()
    state = {name: tensor.clone() for name, tensor in defended.state_dict(keep_vars=False).items()}
    flags = [module.training for module in defended.modules()]
    before = output(defended, case.images, case.noise())
    for others in (1 - case.images, torch.ones_like(case.images)):
        output(defended, others, case.noise(1))
    _slope(defended, case)
    changed = [
        name
        for name, tensor in defended.state_dict().items()
        if not torch.equal(tensor, state[name])
    ]
    demand(
        not changed,
        f"a forward pass changed {changed[:1]}: put layers that learn into evaluation mode; keep "
        "no state",
    )
    demand(
        flags == [module.training for module in defended.modules()],
        "a forward pass switches training mode: leave it",
    )
    after = output(defended, case.images, case.noise())
    demand(
        torch.equal(before, after),
        "logits depend on the images that came before: keep nothing from one call to the next",
    )


def card_names_fitting_attacks(case: DefenseCase) -> None:
    """Docstring, paper or note, version; the card's attacks exist and fit what the defense does."""
    check_description(case.plugin)
    name = type(case.plugin).__name__
    attacks = case.plugin.card.attacks
    demand(
        bool(attacks),
        f"{name}.card.attacks is empty: name the attacks that fit, such as attacks=('pgd', 'bpda')",
    )
    choices = [_choice(text) for text in attacks]
    if len(case.plugin.gradients) > 1:
        used = {choice.gradient for choice in choices} & set(case.plugin.gradients) - {"full"}
        demand(
            bool(used),
            f"{name} offers {', '.join(case.plugin.gradients)}, but no attack of its card uses it: "
            "add 'bpda' or such",
        )
    if case.plugin.stochastic:
        models = {choice.randomness for choice in choices} - {None, "fresh"}
        demand(
            bool(models),
            f"{name} is stochastic, but no attack of its card is made for that: add 'pgd+eot' and "
            "'pgd+replay'",
        )


def _choice(text: str) -> AttackChoice:
    try:
        return create_attack(text)
    except BadInput as error:
        raise Broken(
            f"the card's attack {text!r} cannot be used ({error}): name a registered one"
        ) from error


def parameters_survive_their_spec(case: DefenseCase) -> None:
    """Parameters come out of their printed spec again."""
    check_round_trip(case.plugin, getattr(case.plugin, "positional", None))


def bad_parameters_are_refused(case: DefenseCase) -> None:
    """Unknown parameters and senseless values are refused by `BadInput`."""
    check_bad_parameters(case.plugin, getattr(case.plugin, "positional", None))


def engine_runs_it(case: DefenseCase) -> None:
    """The engine attacks it on a few images and stores a record that can be read again."""
    case.defended()
    check_engine(case.evaluation)


DEFENSE_CHECKS: Sequence[Check[DefenseCase]] = (
    builds,
    shape,
    finite,
    same_noise_same_logits,
    stochastic_as_declared,
    rows_stand_alone,
    generators_untouched,
    gradients_as_declared,
    forward_passes_agree,
    views_work,
    data_as_declared,
    build_is_reproducible,
    classifier_left_alone,
    no_state_between_calls,
    card_names_fitting_attacks,
    parameters_survive_their_spec,
    bad_parameters_are_refused,
    engine_runs_it,
)
