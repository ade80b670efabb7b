"""`adaptive`: the attacks that a defense's own card names, and the worst case of them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import Field
from torch import Tensor

from bench.attack import Attack, AttackOutput, Passes
from bench.defense import Card, Setting, gradient_name
from bench.errors import BadInput
from bench.plugins.create import Named, create_attack
from bench.results.findings import Finding
from bench.spec import Params, Specs, parse
from bench.threat import ThreatModel
from bench.victim import Images, Victim
from bench_attacks.best import Best

DEFAULT = ("pgd", "pgd:loss=margin,restarts=5", "ensemble:fast")
"""What runs on a defense whose card names no attack."""

_MOST = 36


class AdaptiveParams(Params):
    """Parameters of `adaptive`."""

    parts: Specs = Field(
        (), description="attacks that take the place of the card's, joined by +: pgd+(kl:steps=40)"
    )
    also: Specs = Field((), description="attacks that run after these, such as transfer:FILE")


@dataclass(frozen=True)
class Part:
    """One of the attacks that run.

    Attributes:
        attack: the attack.
        gradient: the backward pass that its spec asks for; None for the row's own.
    """

    attack: Named[Attack[Any]]
    gradient: str | None

    @property
    def name(self) -> str:
        """Its spec, with the gradient."""
        if self.gradient is None:
            return self.attack.spec
        spec = parse(self.attack.spec)
        return str(replace(spec, options={**spec.options, "gradient": self.gradient}))

    @property
    def identity(self) -> dict[str, Any]:
        """What an identity tells of it."""
        return {**self.attack.identity, "gradient": self.gradient}


class Adaptive(Attack[AdaptiveParams]):
    """The attacks that the defense's card names, one after the other on what is left.

        for each of `Card.attacks` that takes this setting:
            run it under its own gradient and the row's randomness
            where the attacked function is fixed, an image leaves at its first success
        elsewhere each image keeps the point that is wrong in most of 20 draws of their own

    A part has the same random numbers as alone, so where the attacked function is fixed, what any
    part breaks alone is broken.
    """

    Params = AdaptiveParams
    card = Card(
        paper="Tramer et al., NeurIPS 2020, arXiv 2002.08347",
        note="costs the passes of all its parts, and one more for each (20 under fresh draws); "
        "which part broke an image is in the record's stages",
    )

    def __init__(self, params: AdaptiveParams | None = None, /, **parameters: Any) -> None:
        super().__init__(params, **parameters)
        self._setting: Setting | None = None
        self._parts: tuple[Part, ...] = ()
        self._left_out: dict[str, str] = {}

    def fitted(self, setting: Setting) -> Self:
        """With the parts that the card names, as far as they take this setting.

        Raises `BadInput` for a part that there is not.
        """
        fitted = type(self)(self.params)
        chosen: dict[str, Part] = {}
        for text in (*(self.params.parts or setting.attacks or DEFAULT), *self.params.also):
            part = _read(text, setting)
            try:
                part.attack.plugin.check(setting)
            except BadInput as refusal:
                fitted._left_out[part.name] = str(refusal)
            else:
                chosen.setdefault(part.name, part)
        fitted._setting, fitted._parts = setting, tuple(chosen.values())
        return fitted

    @property
    def parts(self) -> tuple[Part, ...]:
        """What runs, in its order; outside of any setting all that the parameters name."""
        if self._setting is not None:
            return self._parts
        texts = (*(self.params.parts or DEFAULT), *self.params.also)
        return tuple({part.name: part for part in map(_read, texts)}.values())

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts' names."""
        return tuple(part.name for part in self.parts)

    @property
    def contents(self) -> Mapping[str, Any]:
        """The parts with their versions and parameters."""
        return {"parts": [part.identity for part in self.parts], "also": []}

    def unit(self, stochastic: bool) -> int | None:
        """The smallest number of images into which the parts' calls divide."""
        units = [part.attack.plugin.unit(stochastic) for part in self.parts]
        known = [unit for unit in units if unit]
        return math.lcm(*known) if known else None

    def passes(self, num_classes: int = 10) -> Passes | None:
        """Those of all parts, and a look at each part's points; None without a card."""
        if self._setting is None and not self.params.parts:
            return None
        each = [part.attack.plugin.passes(num_classes) for part in self.parts]
        known = [passes for passes in each if passes is not None]
        if len(known) < len(each):
            return None
        return sum((passes + Passes(1) for passes in known), Passes(0))

    def check(self, setting: Setting) -> None:
        """Refuse where no part takes the setting, and more parts than a record can tell apart."""
        fitted = self.fitted(setting)
        if not fitted.parts:
            told = next(iter(fitted._left_out.values()))
            raise BadInput(f"none of the parts of adaptive runs here: {told}")
        if len(fitted.parts) > _MOST:
            raise BadInput(
                f"adaptive has {len(fitted.parts)} parts, and a record tells {_MOST} apart: name "
                "fewer"
            )

    def remarks(self, setting: Setting) -> Iterator[str]:
        """What runs at which price, what is left out, and what the parts remark."""
        fitted = self.fitted(setting)
        passes = fitted.passes(setting.num_classes)
        price = f", at most {passes.total:,} passes a survivor and draw" if passes else ""
        yield f"runs {', '.join(fitted.stages)}{price}"
        for name, reason in fitted._left_out.items():
            yield f"leaves out {name}: {reason}"
        for part in fitted.parts:
            for remark in part.attack.plugin.remarks(setting):
                yield f"{part.name}: {remark}"

    def look(self, images: Images, threat: ThreatModel) -> Iterable[str]:
        """What the parts say of the images."""
        for part in self.parts:
            for remark in part.attack.plugin.look(images, threat):
                yield f"{part.name}: {remark}"

    def run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> AttackOutput:
        """Each image's first success, else its point that is wrong most often."""
        best, findings, before = Best(victim, images, labels), [], victim.backwards.sum()
        for number, part in enumerate(self.parts):
            for rows in _calls(part.attack.plugin, victim, best.open):
                with victim.part(rows, part.gradient) as seen:
                    found, _ = part.attack.plugin.found(seen, images[rows], labels[rows], threat)
                best.offer(rows, found.points, number)
                findings += [_of_part(part.name, finding) for finding in found.findings]
        if len(best.open) and victim.backwards.sum() == before:
            findings.append(_NO_GRADIENT)
        return AttackOutput(best.points, best.stages, tuple(dict.fromkeys(findings)))


_NO_GRADIENT = Finding(
    name="parts",
    verdict="warn",
    message="no part of adaptive followed a gradient, so that nothing adapted to this defense: "
    "name such attacks on the card, or give adaptive:also=pgd",
)


def _read(text: str, setting: Setting | None = None) -> Part:
    """A part from its spec. Its randomness is the row's, whatever the spec says; a gradient that
    is not offered is the row's, too.
    """
    try:
        choice = create_attack(text)
    except BadInput as problem:
        raise BadInput(f"the part {text!r} of adaptive: {problem}") from None
    if isinstance(choice.attack.plugin, Adaptive):
        raise BadInput("adaptive cannot be a part of itself: name other attacks")
    attack, gradient = choice.attack, choice.gradient
    if setting is not None:
        attack = replace(attack, plugin=attack.plugin.fitted(setting))
        offered = gradient is not None and gradient_name(gradient) in setting.gradients
        gradient = gradient if offered else None
    return Part(attack, gradient)


def _calls(attack: Attack[Any], victim: Victim, rows: Tensor) -> Iterator[Tensor]:
    """The images (m,) that go into each call of a part, whatever its unit is."""
    unit = attack.unit(victim.stochastic)
    if unit is None:
        if len(rows):
            yield rows
        return
    blocks = victim.places[rows.cpu().numpy()] // unit
    for block in sorted(set(blocks.tolist())):
        yield rows[[i for i, own in enumerate(blocks.tolist()) if own == block]]


def _of_part(name: str, finding: Finding) -> Finding:
    """A part's finding, which says whose it is."""
    return finding.model_copy(update={"message": f"{name}: {finding.message}"})
