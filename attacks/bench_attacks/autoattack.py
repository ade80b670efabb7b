"""AutoAttack by its reference implementation, and its four attacks alone.

The attacks are pyautoattack's; what is done around them is done here: which images go into one
call, the seed, the randomness of the defense, few classes, and what becomes of the library's
warnings.
"""

from __future__ import annotations

import logging
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pyautoattack import AutoAttack as Suite
from pyautoattack import checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pydantic import Field
from torch import Tensor

from bench.attack import Attack, AttackOutput, Passes
from bench.defense import Card, Setting
from bench.errors import BadInput
from bench.losses import misclassified, reached
from bench.noise import isolated, seed_of
from bench.results.findings import Finding
from bench.results.outcomes import NO_STAGE, NO_TARGET, WRONG_BEFORE
from bench.spec import Params
from bench.threat import ThreatModel
from bench.victim import Victim
from bench_attacks.targets import EACH, TARGET_HELP, Target, check_target, target_classes

DEFAULT_CHUNK = 100
SQUARE_GAIN = 0.002
"""Square may lower robust accuracy by this share before the gradient-based stages are in doubt (the
library's own threshold).
"""

SQUARE_SIDE = 5
"""Pixels a side that Square needs in L2 and L1; in smaller images its squares are of size 0."""

_LOGGER = "auto-attack"
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}

Function = Callable[[Tensor], Tensor]


class LibraryParams(Params):
    """Parameters of all attacks that the library runs."""

    chunk: int = Field(
        0,
        ge=0,
        le=100_000,
        description=f"images a call; 0 = 1 for a stochastic defense, else {DEFAULT_CHUNK}",
    )
    force: bool = Field(
        False,
        description="run it against fresh random draws although its verdict on them means little",
    )


P = TypeVar("P", bound=LibraryParams)


class LibraryAttack(Attack[P]):
    """A cascade of the library's attacks: each stage attacks what the earlier ones left.

    An image's points depend on the others in its call, so the images that go into one are
    part of the result's identity: `chunk` images along the evaluation order. With chunk=1, which is
    the rule for stochastic defenses, each image has its own call and its own seed.
    """

    randomised: ClassVar[bool] = False

    @abstractmethod
    def suite(
        self, model: Function, threat: ThreatModel, num_classes: int, seed: int, device: str
    ) -> Suite:
        """The library's suite, set up; its `attacks_to_run` are the stages."""

    def unit(self, stochastic: bool) -> int:
        """`chunk`; by default one image of a stochastic defense, else 100."""
        return self.params.chunk or (1 if stochastic else DEFAULT_CHUNK)

    def check(self, setting: Setting) -> None:
        """Refuse what the library would misjudge: fresh draws for attacks that trust single ones,
        and batches of random draws; and images that are too small for Square.
        """
        small = min(setting.shape[1:]) < SQUARE_SIDE
        if small and setting.threat.norm != "linf" and "square" in self.stages:
            raise BadInput(
                f"square takes images of at least {SQUARE_SIDE} pixels a side under "
                f"{setting.threat.norm}, these are {setting.shape}: use apgd-ce, apgd-t or fab-t"
            )
        if setting.stochastic and self.params.chunk > 1:
            raise BadInput(
                f"chunk={self.params.chunk} mixes the draws of a stochastic defense: leave chunk "
                "out, or give chunk=1"
            )
        if (
            setting.stochastic
            and not setting.randomness.fixed
            and not (self.is_randomised or self.params.force)
        ):
            raise BadInput(
                f"{self.name} trusts single draws, so its number on a stochastic defense under "
                f"{setting.randomness.name} randomness means "
                "little: use --randomness replay, autoattack:version=rand, or force=true (which "
                "marks the row)"
            )

    @property
    def name(self) -> str:
        """The attack's name in messages."""
        return "+".join(self.stages)

    @property
    def is_randomised(self) -> bool:
        """Whether this is the version made for randomised defenses."""
        return False

    def review(self, left: dict[str, float]) -> list[Finding]:
        """The library's own doubt: Square, which sees no gradient, gained where the others had
        ended.
        """
        names = list(left)
        if "square" not in names or len(names) < 3:
            return []
        gain = left[names[names.index("square") - 1]] - left["square"]
        if gain <= SQUARE_GAIN:
            return []
        message = (
            f"Square broke another {gain:.1%} of the images after the gradient-based stages: "
            "their gradients may mislead"
        )
        return [
            Finding(
                name="square-gains",
                verdict="warn",
                message=f"{message}; try bpda or a fitting attack",
            )
        ]

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """The point of the first stage that broke an image, else the image itself."""
        images = images.contiguous()
        seed = seed_of(victim.random(torch.zeros(1, dtype=torch.int64)), "library")
        heard: list[str] = []
        with isolated(seed), torch.no_grad(), _listening(heard):
            model = victim.as_function(images)
            suite = self.suite(model, threat, victim.num_classes, seed, str(images.device))
            _fit_to_classes(suite, victim.num_classes)
            _check(suite, images, labels, randomised=self.is_randomised)
            classes = self.classes(victim, images, labels)
            points, stages = _cascade(suite, model.expect, images, labels, classes)
        return AttackOutput(
            points,
            stages,
            (*_findings(heard), *self._remarks(victim)),
            classes[0] if self.targeted else None,
        )

    def classes(self, victim: Victim, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Classes that images are to become, one after the other, (n,) each; none where any wrong
        class will do.
        """
        return []

    def _remarks(self, victim: Victim) -> Iterator[Finding]:
        if victim.num_classes < 4:
            yield Finding(
                name="few-classes",
                verdict="note",
                message=f"with {victim.num_classes} classes there is no (targeted) DLR loss: the "
                "margin took its place",
            )
        if not victim.fixed:
            yield Finding(
                name="single-draw-attack",
                verdict="note" if self.is_randomised else "warn",
                message="the library ends an image's attack at its first lucky draw; the verdict "
                "here rests on fresh draws",
            )


class AutoAttackParams(LibraryParams):
    """Parameters of `autoattack`."""

    version: Literal["standard", "plus", "rand"] = Field(
        "standard", description="standard, plus, or rand for stochastic defenses"
    )


class AutoAttack(LibraryAttack[AutoAttackParams]):
    """AutoAttack: APGD-CE, targeted APGD, targeted FAB and Square, parameter-free; the reference
    implementation.
    """

    Params = AutoAttackParams
    card = Card(
        paper="Croce and Hein, ICML 2020, arXiv 2003.01690; pyautoattack",
        note="at most min(9, K-1) targets; 7 of the forward passes are the library's checks of the "
        "model",
    )

    @property
    def stages(self) -> tuple[str, ...]:
        """The version's attacks."""
        return _STAGES[self.params.version]

    @property
    def name(self) -> str:
        """With the version."""
        return f"autoattack ({self.params.version})"

    def passes(self, num_classes: int = 10) -> Passes | None:
        """Every stage of the version, in Linf and L2."""
        if self.params.version == "rand":
            draws, stages = 20, self.stages
            query = Passes(1) + Passes(101, 101) * draws
            return around_passes(len(stages), randomised=True) + query * len(stages)
        several = ("apgd-ce", "apgd-dlr", "fab") if self.params.version == "plus" else ()
        total = around_passes(len(self.stages))
        for name in self.stages:
            total += stage_passes(name, num_classes, restarts=5 if name in several else 1)
        return total

    @property
    def is_randomised(self) -> bool:
        """Version `rand`: APGD-CE and APGD-DLR on gradients averaged over 20 draws."""
        return self.params.version == "rand"

    def suite(
        self, model: Function, threat: ThreatModel, num_classes: int, seed: int, device: str
    ) -> Suite:
        """The library's own version."""
        version = self.params.version
        return Suite(
            model,
            norm=_NORMS[threat.norm],
            eps=threat.eps,
            seed=seed,
            version=version,
            device=device,
        )


_STAGES = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


class LibraryStage(LibraryAttack[P]):
    """One of the library's attacks, with a budget of its own."""

    stage: ClassVar[str]

    @property
    def stages(self) -> tuple[str, ...]:
        return (self.stage,)

    def suite(
        self, model: Function, threat: ThreatModel, num_classes: int, seed: int, device: str
    ) -> Suite:
        suite = Suite(
            model,
            norm=_NORMS[threat.norm],
            eps=threat.eps,
            seed=seed,
            version="custom",
            attacks=[self.stage],
            device=device,
        )
        self.set_budget(suite)
        return suite

    @abstractmethod
    def set_budget(self, suite: Suite) -> None:
        """Enter the parameters into the suite."""

    def passes(self, num_classes: int = 10) -> Passes | None:
        """The stage with its budget."""
        budget = self.params.model_dump(include={"steps", "restarts", "targets", "queries"})
        return around_passes(1) + stage_passes(self.stage, num_classes, **budget)


class ApgdParams(LibraryParams):
    """Parameters of `apgd-ce` and `apgd-dlr`."""

    steps: int = Field(100, ge=1, le=100_000, description="gradient steps a restart")
    restarts: int = Field(1, ge=1, le=10_000, description="independent starts")
    targeted: Target = Field(None, description=TARGET_HELP)


class ApgdCe(LibraryStage[ApgdParams]):
    """Auto-PGD on the cross-entropy, the first stage of AutoAttack; or towards a target class."""

    Params = ApgdParams
    stage = "apgd-ce"
    card = Card(paper="Croce and Hein, ICML 2020, arXiv 2003.01690, algorithm 1")

    @property
    def targeted(self) -> bool:
        """Whether each image has one class to become; under `each` any wrong class will do."""
        return self.params.targeted not in (None, EACH)

    def check(self, setting: Setting) -> None:
        """Refuse a class that is not there, too."""
        super().check(setting)
        check_target(self.params.targeted, setting)

    def passes(self, num_classes: int = 10) -> Passes | None:
        """Towards classes: each start with a look at its two points."""
        if self.params.targeted is None:
            return super().passes(num_classes)
        order = int(self.params.targeted in (EACH, "least-likely"))
        classes = num_classes - 1 if self.params.targeted == EACH else 1
        start = apgd_passes(self.params.steps) + Passes(2)
        return around_passes(1) + Passes(order) + start * (classes * self.params.restarts)

    def classes(self, victim: Victim, images: Tensor, labels: Tensor) -> list[Tensor]:
        """The targets."""
        if self.params.targeted is None:
            return []
        return target_classes(self.params.targeted, victim, images, labels)

    def set_budget(self, suite: Suite) -> None:
        """Steps and restarts; the same for the library's targeted version of the loss."""
        suite.apgd = _apgd(APGDAttack, suite, self.params.steps)
        suite.apgd.n_restarts = self.params.restarts
        suite.apgd_targeted = _apgd(APGDAttack_targeted, suite, self.params.steps)
        suite.apgd_targeted.loss = f"{self.stage.removeprefix('apgd-')}-targeted"
        suite.apgd_targeted.n_restarts = self.params.restarts


class ApgdDlr(ApgdCe):
    """Auto-PGD on the difference of logits ratio; or on its targeted version."""

    stage = "apgd-dlr"


class TargetedParams(LibraryParams):
    """Parameters of `apgd-t` and `fab-t`."""

    steps: int = Field(100, ge=1, le=100_000, description="gradient steps a target")
    targets: int = Field(
        9, ge=1, le=100_000, description="most likely wrong classes to aim at, at most K-1"
    )


class ApgdT(LibraryStage[TargetedParams]):
    """Auto-PGD on the targeted difference of logits ratio: the second stage of AutoAttack."""

    Params = TargetedParams
    stage = "apgd-t"
    card = Card(paper="Croce and Hein, ICML 2020, arXiv 2003.01690, section 5")

    def set_budget(self, suite: Suite) -> None:
        """Steps and targets."""
        suite.apgd_targeted = _apgd(APGDAttack_targeted, suite, self.params.steps)
        suite.apgd_targeted.n_target_classes = self.params.targets


class FabT(LibraryStage[TargetedParams]):
    """Fast adaptive boundary attack, targeted: the third stage of AutoAttack."""

    Params = TargetedParams
    stage = "fab-t"
    card = Card(paper="Croce and Hein, ICML 2020, arXiv 1907.02044")

    def set_budget(self, suite: Suite) -> None:
        """Iterations and targets."""
        suite.fab.n_iter = self.params.steps
        suite.fab.n_target_classes = self.params.targets


class SquareParams(LibraryParams):
    """Parameters of `square`."""

    queries: int = Field(5000, ge=1, le=10_000_000, description="queries a restart")
    restarts: int = Field(1, ge=1, le=10_000, description="independent starts")


class Square(LibraryStage[SquareParams]):
    """Square Attack, which uses no gradient: the last stage of AutoAttack."""

    Params = SquareParams
    stage = "square"
    card = Card(paper="Andriushchenko et al., ECCV 2020, arXiv 1912.00049")

    def set_budget(self, suite: Suite) -> None:
        """Queries and restarts."""
        suite.square.n_queries = self.params.queries
        suite.square.n_restarts = self.params.restarts


# What the library costs ---------------------------------------------------------------------------


def around_passes(stages: int, *, randomised: bool = False) -> Passes:
    """The library's checks of a model, and looks at the images before and after each stage."""
    return Passes((2 if randomised else 7) + 1 + stages)


def apgd_passes(steps: int) -> Passes:
    """One start of APGD."""
    return Passes(steps + 1, steps + 1)


def stage_passes(
    name: str,
    num_classes: int,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    queries: int = 5000,
) -> Passes:
    """What one of the library's attacks spends on an image that it does not break."""
    aims = min(targets, num_classes - 1)
    # Untargeted FAB differentiates every logit.
    fab = Passes(2 * steps + 2, steps * num_classes) * restarts
    searches = {
        "apgd-ce": apgd_passes(steps) * restarts,
        "apgd-dlr": apgd_passes(steps) * restarts,
        "apgd-t": (Passes(1) + apgd_passes(steps)) * aims,
        "fab": fab,
        "fab-t": Passes(2 * steps + 3, steps) * aims,
        "square": Passes(queries + 2) * restarts,
    }
    return Passes(1) + searches[name]


# Around the library -------------------------------------------------------------------------------


def _apgd(kind: type[APGDAttack], suite: Suite, steps: int) -> Any:
    """An APGD of the suite's setting with another number of steps, on which its checkpoints
    depend; in L1 it begins in larger balls, as in the suite.
    """
    return kind(
        suite.model,
        n_iter=steps,
        norm=suite.norm,
        eps=suite.epsilon,
        seed=suite.seed,
        device=suite.device,
        use_largereps=suite.norm == "L1" and steps > 1,
        logger=suite.logger,
    )


def _fit_to_classes(suite: Suite, num_classes: int) -> None:
    """No more targets than other classes; the margin where DLR would divide by a logit that does
    not exist.
    """
    for attack in (suite.apgd_targeted, suite.fab):
        attack.n_target_classes = min(attack.n_target_classes, num_classes - 1)
    if num_classes < 4:
        targeted = suite.apgd_targeted
        targeted.dlr_loss_targeted = lambda logits, labels: _gap(logits, labels, targeted.y_target)
    if num_classes < 3:
        suite.apgd.dlr_loss = lambda logits, labels: _gap(logits, labels, 1 - labels)


def _gap(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The target's logit minus the true one, (n,)."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)


def _check(suite: Suite, images: Tensor, labels: Tensor, *, randomised: bool) -> None:
    """The library's checks of a model, in its order; they warn through its logger."""
    if not randomised:
        checks.check_randomized(suite.model, images, labels, bs=len(images), logger=suite.logger)
    checks.check_range_output(suite.model, images, logger=suite.logger)
    # The library never resets its count of gradient calls, and ends whatever traced the program
    # before.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    tracer = sys.gettrace()
    try:
        checks.check_dynamic(suite.model, images, logger=suite.logger)
    finally:
        sys.settrace(tracer)


def _cascade(
    suite: Suite,
    expect: Callable[[Tensor], None],
    images: Tensor,
    labels: Tensor,
    classes: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Points (n, ...) and the stage that broke each image (n,); towards these classes in turn,
    where there are any.

    As the library's own harness does it, but a success ends an image's attack only where no
    rounding turns it around.
    """
    points = images.clone()
    wrong = misclassified(suite.model(images), labels)
    stages = torch.where(wrong, WRONG_BEFORE, NO_STAGE)
    for index, name in enumerate(suite.attacks_to_run):
        rows = (stages == NO_STAGE).nonzero().squeeze(1)
        if not len(rows):
            break
        expect(rows)
        if classes:
            targets = [each[rows] for each in classes]
            told = partial(_expect_of, expect, rows)
            candidates = _perturb_towards(suite, told, images[rows], labels[rows], targets)
            expect(rows)
        else:
            candidates = perturb(suite, name, images[rows], labels[rows])
        logits = suite.model(candidates)
        fooled = logits.argmax(1) != labels[rows]
        points[rows[fooled]] = candidates[fooled]
        stages[rows[misclassified(logits, labels[rows])]] = index
    return points, stages


def perturb(suite: Suite, name: str, images: Tensor, labels: Tensor) -> Tensor:
    """One attack of the suite on clones, since the library reshapes its inputs in place."""
    kinds = {
        "apgd-t": suite.apgd_targeted,
        "fab": suite.fab,
        "fab-t": suite.fab,
        "square": suite.square,
    }
    attack = kinds.get(name, suite.apgd)
    if name in ("apgd-ce", "apgd-dlr"):
        attack.loss = name.removeprefix("apgd-")
    if name in ("fab", "fab-t"):
        attack.targeted = name == "fab-t"
    if name == "fab-t":
        attack.n_restarts = 1
    points: Tensor = attack.perturb(images.clone(), labels.clone())
    return points.detach()


def _expect_of(expect: Callable[[Tensor], None], rows: Tensor, some: Tensor) -> None:
    """Expect some of these rows."""
    expect(rows[some])


def _perturb_towards(
    suite: Suite,
    expect: Callable[[Tensor], None],
    images: Tensor,
    labels: Tensor,
    classes: Sequence[Tensor],
) -> Tensor:
    """The library's targeted APGD towards given classes, where its own harness aims at the most
    likely ones.

    The point that reached its class, else one that is wrong otherwise, else the image. With several
    classes any wrong answer ends an image's attack.
    """
    attack = suite.apgd_targeted
    points, enough = images.clone(), 1 if len(classes) > 1 else 2
    rank = torch.zeros_like(labels)
    attack.init_hyperparam(images)
    for targets in (each for each in classes for _ in range(attack.n_restarts)):
        rows = ((rank < enough) & (targets != NO_TARGET)).nonzero().squeeze(1)
        if not len(rows):
            continue
        attack.y_target = targets[rows]
        expect(rows)
        largest, _, _, wrong = _single_run(attack, images[rows].clone(), labels[rows].clone())
        for candidates in (largest, wrong):
            logits = suite.model(candidates)
            is_wrong = misclassified(logits, labels[rows]).long()
            value = is_wrong + reached(logits, targets[rows])
            better = value > rank[rows]
            points[rows[better]] = candidates[better].detach()
            rank[rows[better]] = value[better]
    return points


def _single_run(attack: Any, images: Tensor, labels: Tensor) -> Any:
    """One start: the point of largest loss, whether all were right, that loss, a wrong point."""
    if not attack.use_largereps:
        return attack.attack_single_run(images, labels)
    steps = attack.n_iter_orig
    first = ceil(0.3 * steps)
    radii = [factor * attack.eps_orig for factor in (3.0, 2.0, 1.0)]
    return attack.decr_eps_pgd(images, labels, radii, [first, first, steps - 2 * first])


@contextmanager
def _listening(heard: list[str]) -> Iterator[None]:
    """Collect the library's warnings instead of printing them."""
    logger = logging.getLogger(_LOGGER)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    propagate, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


# What the library's warnings say, by a word that tells them apart.
_WARNINGS = {
    "randomized": ("library-randomised", "the library saw a randomised defense"),
    "probability": (
        "library-probabilities",
        "the library saw probabilities where logits were expected",
    ),
    "zero gradient": (
        "library-zero-gradient",
        "the library met points with zero gradient; use bpda or a fitting attack",
    ),
    "dynamic": (
        "library-dynamic",
        "the library saw gradients taken inside the forward pass: its attacks may be too weak",
    ),
}


def _findings(heard: list[str]) -> Iterator[Finding]:
    for text in dict.fromkeys(heard):
        known = next(
            (value for word, value in _WARNINGS.items() if word in text), ("library-warning", text)
        )
        yield Finding(name=known[0], verdict="warn", message=known[1])
