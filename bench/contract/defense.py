"""The contract of a defense, check by check.

Every check works on a copy of the defense as the engine builds it, so that none depends on another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.attack import Attack
from bench.contract.check import (
    IMAGES,
    Broken,
    Check,
    Unbuilt,
    built_in_setup,
    check_bad_parameters,
    check_description,
    check_engine,
    check_generators,
    check_round_trip,
    demand,
    setup_in_memory,
)
from bench.contract.toys import labelled
from bench.defense import DataAccess, DefendedClassifier, Defense, Forward, NoParams
from bench.engine.build import build, data_access
from bench.engine.evaluation import Evaluation
from bench.engine.request import Request
from bench.engine.setup import Setup, load_setup
from bench.errors import BadInput, one_line
from bench.losses import cross_entropy, margin
from bench.models.classifier import Classifier
from bench.noise import Noise, Stream, isolated
from bench.plugins.create import DEFENSES, AttackChoice, Named, create, create_attack
from bench.randomness import RandomnessModel
from bench.spec import Spec, canonical, parse, read_params
from bench.threat import ThreatModel
from bench.victim import Victim

_TOLERANCE = 1e-3
_DRAWS = 4
_CPU = torch.device("cpu")


class Witness(DataAccess):
    """A door to data that remembers what was asked of it."""

    def __init__(self, door: DataAccess) -> None:
        self.__dict__.update(vars(door))
        self.asked: set[str] = set()

    def _get(self, need: Any, *arguments: Any, **options: Any) -> Any:
        self.asked.add(str(need))
        return super()._get(need, *arguments, **options)


class OneStep(Attack[NoParams]):
    """One full step up the margin's gradient: the least that an attack does with a defense."""

    def run(self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """The images after one step of length eps."""
        rows = torch.arange(len(images), device=images.device)
        slope = victim.objective(labels, margin)(images, rows, 0, True).gradient
        return images if slope is None else threat.ascend(images, slope, threat.eps, images)


class DefenseCase:
    """A defense to check, on a few images and a classifier.

    Args:
        defense: a spec such as `my_defense.py@MyDefense:sigma=0.1`, or the class, which then takes
            its default parameters.
        dataset: a data set's spec; built-in images of shape (3, 16, 16) by default.
        classifier: a classifier's spec or a module; the data set's own by default.
        images: images (n, C, H, W) in [0, 1] and labels (n,) instead of a data set; they need a
            module as classifier.
    """

    def __init__(
        self,
        defense: str | type[Defense[Any]],
        dataset: str = "",
        classifier: str | nn.Module | None = None,
        images: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.defense = named_defense(defense)
        self.plugin: Defense[Any] = self.defense.plugin
        self.setup = setup_for(dataset, classifier, images)
        self.images, self.labels = self.setup.images.pixels(), self.setup.images.labels
        self.witness = Witness(data_access(self.evaluation))
        self._base = output(self.setup.classifier, self.images, self.noise())

    @cached_property
    def evaluation(self) -> Evaluation:
        """The cell that the engine runs: one step along the gradient that fits the defense, on a
        tape.
        """
        offered = [gradient for gradient in self.plugin.gradients if gradient != "full"]
        step: Named[Attack[Any]] = Named("one-step", "one-step", OneStep(NoParams()), ())
        randomness = (
            RandomnessModel("replay")
            if self.plugin.stochastic or self.setup.classifier.stochastic
            else RandomnessModel()
        )
        return Evaluation(
            self.setup,
            self.defense,
            step,
            offered[0] if offered else "full",
            randomness,
            seed=0,
            build_seed=0,
        )

    @cached_property
    def _built(self) -> DefendedClassifier | Exception:
        try:
            return build(self.evaluation, _CPU, self.witness)
        except Exception as error:
            return error

    def defended(self) -> DefendedClassifier:
        """A copy of the built defense. Raises `Unbuilt` where it cannot be built."""
        if isinstance(self._built, Exception):
            raise Unbuilt(one_line(self._built)) from self._built
        try:
            return copy.deepcopy(self._built)
        except Exception:
            return self._built

    def noise(self, draw: int = 0) -> Noise:
        """The judge's numbers of one draw, one row an image."""
        return Noise.of(0, Stream.EVAL, self.setup.images.ids, draw)

    def undefended_now(self) -> tuple[Tensor, Tensor]:
        """Logits of the classifier that was given to the defense: before it was built, and now."""
        return self._base, output(self.setup.classifier, self.images, self.noise())


def named_defense(defense: str | type[Defense[Any]]) -> Named[Defense[Any]]:
    """A defense from its spec or its class."""
    if isinstance(defense, str):
        return create(DEFENSES, parse(defense))
    DEFENSES.check(defense, getattr(defense, "__name__", str(defense)))
    params = read_params(defense.Params, Spec(defense.__name__), f"defense {defense.__name__!r}")
    return Named(defense.__name__, canonical(defense.__name__, params), defense(params), ())


def setup_for(
    dataset: str, classifier: str | nn.Module | None, images: tuple[Tensor, Tensor] | None
) -> Setup:
    """What to check a defense on. Raises `BadInput` where images and classifier do not go
    together.
    """
    module = classifier if isinstance(classifier, nn.Module) else None
    if images is not None:
        if module is None:
            raise BadInput(
                "images are given without a module that classifies them: set classifier as well"
            )
        own = labelled(*images)
        given = (
            module
            if isinstance(module, DefendedClassifier)
            else Classifier(module.eval(), _classes(module, own.pixels()))
        )
        return setup_in_memory(given, own, own)
    if dataset:
        spec = classifier if isinstance(classifier, str) else None
        return load_setup(Request(dataset=dataset, classifier=spec, n=IMAGES), module)
    if classifier is not None:
        raise BadInput(
            "a classifier is given without images that fit it: set dataset, or images, as well"
        )
    return built_in_setup()


def _classes(module: nn.Module, images: Tensor) -> int:
    with isolated(0), torch.no_grad():
        return int(module(images[:1]).shape[1])


def output(forward: Forward, images: Tensor, noise: Noise) -> Tensor:
    """What a forward pass returns, without gradient, the global generators seeded alike and left as
    found.
    """
    with isolated(0), torch.no_grad():
        found: Tensor = forward(images, noise)
    return found


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float(
        (one - other).abs().nan_to_num(0).max() / (1 + other.abs().nan_to_num(0, 0, 0).max())
    )


# The checks ---------------------------------------------------------------------------------------


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
        got = output(defended, case.images[:n], case.noise().rows(slice(0, n)))
        due = (n, case.setup.classifier.num_classes)
        right = isinstance(got, Tensor) and got.is_floating_point() and tuple(got.shape) == due
        seen = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        demand(
            right,
            f"forward returned {seen} for {n} images: return one row of K logits an image, here "
            f"{due}",
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
            "both classes",
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
        mend = (
            "offer another: derive from InputTransform with gradients = ('full', 'bpda') on both "
            "classes"
            if name == "full"
            else "its proxy must depend on the image"
        )
        demand(
            slope is not None,
            f"it declares the gradient {name!r}, but none reaches the image: {mend}",
        )
        if slope is not None:
            demand(
                bool(torch.isfinite(slope).all()),
                f"the gradient {name!r} is not finite: guard square roots, logarithms, divisions",
            )
            dead = int((slope.flatten(1).abs().amax(1) == 0).sum())
            demand(
                dead == 0, f"the gradient {name!r} is zero on {dead} of {len(slope)} images: {mend}"
            )


def _slope(forward: Forward, case: DefenseCase) -> Tensor | None:
    with isolated(0):
        leaf = case.images.clone().requires_grad_(True)
        loss = cross_entropy(forward(leaf, case.noise()), case.labels).sum()
        return torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None


def twins_agree(case: DefenseCase) -> None:
    """Twins have the outputs of the native forward pass, bit for bit, in every view, but for
    declared `transfers`.
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
            f"twin{arguments} is not refused: raise BadInput for names that it does not offer",
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
    one, other = case.defended(), build(case.evaluation, _CPU)
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
        laws = {choice.randomness for choice in choices} - {None, "fresh"}
        demand(
            bool(laws),
            f"{name} is stochastic, but no attack of its card minds that: add 'pgd+eot' and "
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
    twins_agree,
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
