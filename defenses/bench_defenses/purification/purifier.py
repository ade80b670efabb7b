"""What the purifying defenses share: rounds of noising and denoising in front of a classifier.

The chain's gradients are exact. Where the activations of all steps do not fit the memory, each step
is computed again on the way back (`bench.diffusion.backward`), with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from bench.defense import (
    BuildSetting,
    DataAccess,
    DefendedClassifier,
    Defense,
    Forward,
    Need,
    Wrapper,
    gradient_name,
    straight_through,
)
from bench.diffusion.backward import run_checkpointed
from bench.diffusion.chain import Guide, Link, Sampler, indices, links, noised, run
from bench.diffusion.model import DiffusionModel
from bench.engine.memory import SavedBytes, budget
from bench.errors import BadInput
from bench.noise import BuildNoise, Noise
from bench.spec import Params, parse, read_params

FORWARD, REVERSE, GUIDANCE = "forward", "reverse", "guidance"

ATTACKS = (
    "pgd+replay",
    "pgd",
    "pgd+eot",
    "em",
    "ensemble:fast",
    "bpda+eot",
    "pgd:gradient=blind",
)
"""What fits every purifying defense; the first one is the hardest on it."""


@dataclass(frozen=True)
class Round:
    """One pass of noising and denoising.

    Attributes:
        t: the chain visits time indices below t; so many steps of the schedule are reversed.
        steps: how many indices it visits.
        level: index that the image is noised to; None where the image enters as it is.
        scale: what the image is multiplied by where it is not noised.
    """

    t: int
    steps: int
    level: int | None
    scale: float = 1.0


@dataclass(frozen=True)
class Purification:
    """How an image is purified; every field changes the function.

    Attributes:
        rounds: one after the other; each begins with the image that the last one left.
        sampler: how a reverse step is taken.
        guide: a push on each step's mean; None for none.
        clamp: whether the purified image is clamped to [0, 1].
        resize: whether images of another size than the model's are resized to it and back,
            bilinearly.
        vote, votes: how the classifier's answers on `votes` purified copies become one.
    """

    rounds: tuple[Round, ...]
    sampler: Sampler
    guide: Guide | None = None
    clamp: bool = False
    resize: bool = False
    vote: Literal["none", "hard", "logit-mean", "softmax-mean"] = "none"
    votes: int = 1


class SurrogateParams(Params):
    """Parameters of the gradient `surrogate`."""

    steps: int = Field(
        0,
        ge=0,
        description="steps of the chain that the attack sees in each round; 0 = half of the "
        "defense's",
    )


class Purified(Wrapper):
    """A classifier that sees purified images.

    Gradients: `full`, exact; `bpda`, the identity in the backward pass of the chain;
    `surrogate:steps=K`, the attack sees a chain of fewer steps in both directions (Lee and Kim
    2023); `blind`, it sees the classifier alone.
    """

    gradients = ("full", "bpda", "surrogate", "blind")
    transfers = ("surrogate", "blind")
    tunable = ("surrogate",)

    def __init__(
        self, classifier: DefendedClassifier, model: DiffusionModel, how: Purification
    ) -> None:
        super().__init__(classifier)
        self.model = model
        self.how = how
        self.stochastic = classifier.stochastic or bool(drawing_stages(how))
        self.step_bytes = 0

    def views(self) -> tuple[str, ...]:
        """`purified`, the image that the classifier sees; `states`, all states of the chain;
        `times`, the time index of each of them; and the classifier's own.
        """
        return ("purified", "states", "times", *self.classifier.views())

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The gradients in `gradients`, for each view; those of several votes are the first one's,
        but for the logits.
        """
        self.check_gradient(gradient)
        if view in ("states", "times"):
            attacked = self._attacked(gradient)
            return attacked.states if view == "states" else attacked.times
        front = self._front(gradient)
        if view == "purified":
            return lambda images, noise: front(images, noise.at("vote0"))
        inner = self.inner(gradient, view)
        if view != "logits" or self.how.votes == 1:
            return lambda images, noise: inner(
                front(images, noise.at("vote0")), noise.at("classifier")
            )
        return partial(self._voted, front, inner)

    def _front(self, gradient: str) -> Forward:
        name = gradient_name(gradient)
        if name == "blind":
            return lambda images, noise: images
        if name == "bpda":
            return self._purify_bpda
        return self._attacked(gradient).purify

    def _attacked(self, gradient: str) -> Purified:
        """The purifier whose chain an attack may look into."""
        name = gradient_name(gradient)
        if name == "blind":
            raise BadInput(
                "gradient 'blind' sees the classifier alone and no states of the chain: use "
                "another gradient or view"
            )
        if name != "surrogate":
            return self
        other = Purified(self.classifier, self.model, self._fewer_steps(gradient))
        other.step_bytes = self.step_bytes
        return other

    def _fewer_steps(self, gradient: str) -> Purification:
        asked = read_params(SurrogateParams, parse(gradient), f"gradient {gradient!r}").steps
        rounds = [replace(one, steps=asked or max(1, one.steps // 2)) for one in self.how.rounds]
        for one, whole in zip(rounds, self.how.rounds, strict=True):
            if one.steps > whole.steps:
                raise BadInput(
                    f"gradient {gradient!r} takes more steps than the defense, {whole.steps}: give "
                    "fewer"
                )
        return replace(self.how, rounds=tuple(rounds))

    def _voted(self, front: Forward, inner: Forward, images: Tensor, noise: Noise) -> Tensor:
        ballots = [
            inner(
                front(images, noise.at(f"vote{vote}")),
                noise.at(f"classifier{vote}" if vote else "classifier"),
            )
            for vote in range(self.how.votes)
        ]
        return count_votes(torch.stack(ballots, 1), self.how.vote)

    def _purify_bpda(self, images: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            purified = self.purify(images, noise)
        return straight_through(purified, images)

    def purify(self, images: Tensor, noise: Noise) -> Tensor:
        """Purified images (n, C, H, W) in about [0, 1], as many rows at once as the memory allows.

        Raises `BadInput` where the model is for other images, or the chain ends in NaN.
        """
        self._check_shape(images)
        z = 2 * self._resized(images, self.model.shape[1:]) - 1
        plan = self.plan_memory(z)
        runner = run_checkpointed if plan.rebuild else run
        parts = [
            runner(self._chain(noise.rows(rows)), z[rows], z[rows])
            for rows in (
                slice(start, start + plan.rows) for start in range(0, max(1, len(z)), plan.rows)
            )
        ]
        purified = (self._resized(torch.cat(parts), images.shape[2:]) + 1) / 2
        if not bool(torch.isfinite(purified).all()):
            raise BadInput(
                f"the chain ended in NaN or infinite pixels ({self._described()}): check the "
                "model's weights, or set clip=true"
            )
        return purified.clamp(0, 1) if self.how.clamp else purified

    def _described(self) -> str:
        return ", ".join(f"{one.steps} steps from t={one.t}" for one in self.how.rounds)

    def states(self, images: Tensor, noise: Noise) -> Tensor:
        """All states of the chain without gradient, in [-1, 1] diffusion space: (n, states, C, H,
        W).

        The image where the first round noises it; then for each round the state that its chain
        begins with, and the one after each step.
        """
        self._check_shape(images)
        with torch.no_grad():
            z = 2 * self._resized(images, self.model.shape[1:]) - 1
            states = [z]
            for step in self._chain(noise.at("vote0")):
                states.append(step(states[-1], z))
        scaled = self.how.rounds[0].scale != 1
        return torch.stack(states[scaled:], 1)

    def times(self, images: Tensor, noise: Noise) -> Tensor:
        """The time index of each of the `states`, -1 for a clean image: (n, states)."""
        times = [-1] if self.how.rounds[0].level is not None else []
        for one in self.how.rounds:
            first, *later = indices(one.t, one.steps)
            times += [first if one.level is None else one.level, *later, -1]
        return torch.tensor(times, device=images.device).expand(len(images), -1)

    def _chain(self, noise: Noise) -> list[Link]:
        return [
            link
            for number, one in enumerate(self.how.rounds)
            for link in self._round(one, noise, f"round{number}")
        ]

    def _round(self, one: Round, noise: Noise, here: str) -> list[Link]:
        reverse = noise.stage(REVERSE).at(here)
        steps = links(
            self.model,
            indices(one.t, one.steps),
            self.how.sampler,
            reverse,
            self._guide(noise, here),
        )
        return [*self._entry(one, noise.stage(FORWARD).at(here)), *steps]

    def _entry(self, one: Round, noise: Noise) -> list[Link]:
        level = one.level
        if level is not None:
            return [lambda z, _: noised(self.model, z, level, noise)]
        return [lambda z, _: one.scale * z] if one.scale != 1 else []

    def _guide(self, noise: Noise, here: str) -> Guide | None:
        guide = self.how.guide
        if guide is None:
            return None
        # A stage of its own: its draws are neither the noising's nor the chain's.
        own = noise.stage(GUIDANCE).at(here)
        return lambda z, origin, index, _: guide(z, origin, index, own.at(f"step{index}"))

    def _check_shape(self, images: Tensor) -> None:
        _check_shape(self.model, tuple(images.shape[1:]), resize=self.how.resize)

    def _resized(self, images: Tensor, size: Sequence[int]) -> Tensor:
        if tuple(images.shape[2:]) == tuple(size):
            return images
        return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False)

    def plan_memory(self, z: Tensor) -> MemoryPlan:
        """How images z (n, C, H, W) go through the chain with the memory that is allowed."""
        self.step_bytes = self.step_bytes or _bytes_of_a_step(self, z)
        if not (torch.is_grad_enabled() and z.requires_grad):
            return replace(memory_plan(len(z), 1, self.step_bytes, budget(z.device)), rebuild=False)
        # The ballots of a vote wait for their backward pass together.
        steps = self.how.votes * sum(one.steps for one in self.how.rounds)
        return memory_plan(len(z), steps, self.step_bytes, budget(z.device))


@dataclass(frozen=True)
class MemoryPlan:
    """How many rows go through the chain at once, and whether its steps are computed again in the
    backward pass.
    """

    rows: int
    rebuild: bool


def memory_plan(rows: int, steps: int, each: int, allowed: int) -> MemoryPlan:
    """Plain backpropagation where `rows` x `steps` x `each` bytes are allowed, else step by step,
    in as many rows as fit one.
    """
    if rows * steps * each <= allowed:
        return MemoryPlan(max(1, rows), False)
    return MemoryPlan(max(1, min(rows, allowed // each)), True)


def _bytes_of_a_step(purified: Purified, z: Tensor) -> int:
    """Bytes that one step of one image keeps for its backward pass."""
    known = [*purified.model.parameters(), *purified.model.buffers()]
    with torch.enable_grad(), SavedBytes(known) as saved:
        # Not called as a module: this pass belongs to no prediction, so no hook counts it.
        purified.model.forward(z.new_zeros(1, *z.shape[1:]).requires_grad_(), 0)
    return max(1, saved.total)


def drawing_stages(how: Purification) -> tuple[str, ...]:
    """The stages in which a purification draws random numbers; the last step of a chain
    draws none.
    """
    draws = {
        FORWARD: any(one.level is not None for one in how.rounds),
        REVERSE: how.sampler.draws and any(one.steps > 1 for one in how.rounds),
        GUIDANCE: how.guide is not None,
    }
    return tuple(stage for stage, drawn in draws.items() if drawn)


def count_votes(ballots: Tensor, vote: str) -> Tensor:
    """Logits (n, K) of an election from the ballots' logits (n, votes, K).

    `hard` counts predicted labels, ties broken by the mean softmax; its gradient is that of
    `softmax-mean`, which is the log of the mean softmax. `logit-mean` averages logits.
    """
    if vote == "logit-mean":
        return ballots.mean(1)
    shares = ballots.softmax(-1).mean(1).clamp_min(1e-30)
    mean = shares.log()
    if vote == "softmax-mean":
        return mean
    counts = F.one_hot(ballots.argmax(-1), ballots.shape[-1]).sum(1)
    # Half a vote is less than any lead.
    return straight_through((counts + 0.5 * shares).log(), mean)


class PurifyParams(Params):
    """Parameters of all purifying defenses."""

    model: str = Field(
        "",
        description="diffusion model spec, such as zoo:mnist5k-ddpm; the data set's own where "
        "empty",
    )
    sampler: Literal["ddpm", "ddim"] = Field("ddpm", description="ancestral steps, or DDIM")
    eta: float = Field(
        0.0, ge=0, le=1, description="randomness of DDIM: 0 none, 1 that of small ancestral steps"
    )
    variance: Literal["small", "large", "learned"] = Field(
        "small", description="of ancestral steps"
    )
    clip: bool = Field(False, description="clip the clean image that each step foresees to [-1, 1]")
    clamp: bool = Field(False, description="clamp the purified image to [0, 1]; cuts gradients")
    resize: bool = Field(False, description="resize images to the model's size and back")
    vote: Literal["none", "hard", "logit-mean", "softmax-mean"] = Field(
        "none", description="how several purifications vote"
    )
    votes: int = Field(1, ge=1, le=1000, description="purifications of one image")

    @model_validator(mode="after")
    def _agree(self) -> PurifyParams:
        if (self.vote == "none") != (self.votes == 1):
            raise ValueError("vote and votes go together: votes=10,vote=hard")
        if self.sampler == "ddpm" and self.eta:
            raise ValueError("eta is DDIM's: add sampler=ddim")
        if self.sampler == "ddim" and self.variance != "small":
            raise ValueError(
                "the variance of DDIM is small: give variance=small, or use sampler=ddpm"
            )
        return self

    def how(self, rounds: Sequence[Round], guide: Guide | None = None) -> Purification:
        """The purification with these rounds."""
        sampler = Sampler(self.sampler, self.eta, self.variance, self.clip)
        return Purification(
            tuple(rounds), sampler, guide, self.clamp, self.resize, self.vote, self.votes
        )


def expanded(values: Any, recipes: Mapping[str, Mapping[str, Any]]) -> Any:
    """What was given, and beside it what the recipe named there sets; the name itself goes.

    So a row under a recipe is the row of the settings that it stands for. A name that is none of
    `recipes` is left for its field to refuse.
    """
    if not isinstance(values, Mapping) or values.get("recipe") not in recipes:
        return values
    given = {key: value for key, value in values.items() if key != "recipe"}
    return {**recipes[values["recipe"]], **given}


class ChainParams(PurifyParams):
    """Parameters of purifying defenses with rounds of one length."""

    t: int = Field(200, ge=1, description="steps of the schedule that are reversed, of 1000")
    steps: int = Field(10, ge=1, description="steps of the chain; fewer than t skip evenly")

    @field_validator("steps")
    @classmethod
    def _not_more_than_t(cls, steps: int, info: ValidationInfo) -> int:
        t = info.data.get("t")
        if t is not None and steps > t:
            raise ValueError(f"the chain has only t={t} indices to visit: give at most {t}")
        return steps


P = TypeVar("P", bound=PurifyParams)


class PurifyingDefense(Defense[P]):
    """Base of the purifying defenses; subclasses write `rounds`."""

    needs = frozenset({Need.GENERATOR})
    gradients = Purified.gradients

    @property
    def asks(self) -> dict[Need, str]:
        """The diffusion model."""
        return {Need.GENERATOR: self.params.model}

    @property
    def stochastic(self) -> bool:
        """Whether the purification draws anything."""
        return bool(self.stages)

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of noising, reverse chain and guidance that draw."""
        return drawing_stages(self.purification(None))

    def rounds(self, model: DiffusionModel | None) -> list[Round]:
        """The rounds; `model` is None before anything is built, when levels that need the schedule
        do not matter.
        """
        raise NotImplementedError

    def purification(self, model: DiffusionModel | None) -> Purification:
        """Everything about how an image is purified."""
        return self.params.how(self.rounds(model))

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The purifier in front of the classifier. Raises `BadInput` where the model does not reach
        as far as the chain.
        """
        model = access.generator()
        return Purified(classifier, model, self._checked(model, access.shape))

    def check(self, setting: BuildSetting) -> None:
        """Raise `BadInput` for a model of other images, of too few steps, or without the variance
        that is asked for.
        """
        self._checked(setting.generator(), setting.shape)

    def _checked(self, model: DiffusionModel, shape: tuple[int, ...]) -> Purification:
        how = self.purification(model)
        _check_shape(model, shape, resize=how.resize)
        for one in how.rounds:
            _check_reach(model, one)
        if (
            how.sampler.kind == "ddpm"
            and (how.sampler.variance == "learned")
            and not _learned(model)
        ):
            raise BadInput(
                "this diffusion model has not learned its variance: use variance=small or large"
            )
        return how


def _check_shape(model: DiffusionModel, shape: tuple[int, ...], *, resize: bool) -> None:
    """Raise `BadInput` where the model is for other images than (C, H, W)."""
    made = model.shape
    if shape[0] != made[0]:
        raise BadInput(
            f"the diffusion model is for {made[0]} channels, the images have {shape[0]}: give "
            "another model"
        )
    if tuple(shape) != tuple(made) and not resize:
        raise BadInput(
            f"the diffusion model is for images of {made[1]} x {made[2]} pixels, not "
            f"{shape[1]} x {shape[2]}: give another model, or resize=true"
        )


def _check_reach(model: DiffusionModel, one: Round) -> None:
    highest = max(one.t - 1, one.level or 0)
    what = "t" if one.t >= highest else "start_index"
    if highest >= model.steps:
        raise BadInput(
            f"index {highest} lies beyond the diffusion model's schedule of {model.steps} steps: "
            f"give a smaller {what}"
        )
    if highest >= model.trained_steps:
        raise BadInput(
            f"index {highest}, but the diffusion model was trained below {model.trained_steps} "
            f"only: give a smaller {what}"
        )


def _learned(model: DiffusionModel) -> bool:
    with torch.no_grad():
        probe = torch.zeros(1, *model.shape, device=model.alpha_bar.device)
        return model(probe, 0).log_variance is not None
