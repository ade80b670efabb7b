"""What some methods adapt on the way: DaST the weight of its label term, DFARD its weights and its
temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from bench_defenses.adversarial.objectives import Dfard, Match, StudentOutputs

State = dict[str, float]
"""All that is adapted, by name; a checkpoint and the log keep it."""


class NoAdaptation:
    """Nothing is adapted. Base of the others.

    Args:
        terms: the generator's terms and their weights as the method has them.
    """

    def __init__(self, terms: Mapping[str, float]) -> None:
        self.terms = dict(terms)
        self.state: State = {}

    def weights(self) -> Mapping[str, float]:
        """Of the generator's terms in its next step."""
        return self.terms

    def generator_updated(self, values: Mapping[str, float]) -> None:
        """Learn from the terms' values in the generator's step just taken."""

    def objective(self, objective: Match) -> Match:
        """The student's objective in its next step."""
        return objective

    def student_updated(self, objective: Match, outputs: StudentOutputs, share: float) -> None:
        """Learn from the student's update just taken, when `share` of the training is done."""


class LabelWeight(NoAdaptation):
    """DaST: where the label term is at most `floor`, its value becomes its weight and stays until
    the next such one.
    """

    floor = 0.1

    def __init__(self, terms: Mapping[str, float]) -> None:
        super().__init__(terms)
        self.state = {"alpha": terms["student_class"]}

    def weights(self) -> Mapping[str, float]:
        """alpha for the label term."""
        return {**self.terms, "student_class": self.state["alpha"]}

    def generator_updated(self, values: Mapping[str, float]) -> None:
        """The published rule."""
        # Zhou et al. 2020, released code: the weight alpha is overwritten by the term's value.
        if values["student_class"] <= self.floor:
            self.state["alpha"] = values["student_class"]


class BalancedTerms(NoAdaptation):
    """DFARD's two modules, as stand-ins: their equations are not known here.

    Weights: c / (running mean of the term's magnitude), c such that they add up to as many as there
    are terms, then between 0.1 and 10; so the terms pull alike whatever their scale, up to the ends
    of that range, and nothing is tuned. Where the student starts as a copy of the classifier, their
    KL is 0 until the student moves: till then the two others have 0.1 each. Temperature: 1 + 20
    sigmoid(theta); theta ascends the student's loss while the student descends it, at a rate that
    rises along half a cosine over the first twentieth of the training (the global temperature of
    CTKD, Li et al., AAAI 2023, arXiv 2211.16231).
    """

    memory, lowest, highest = 0.9, 0.1, 10.0
    coldest, span, rate, rise = 1.0, 20.0, 0.05, 0.05

    def __init__(self, terms: Mapping[str, float]) -> None:
        super().__init__(terms)
        self.state = {"theta": 0.0}

    def weights(self) -> Mapping[str, float]:
        """Those of the method in the first step, then the balanced ones."""
        sizes = {name: max(self.state.get(f"mean {name}", 0.0), 1e-6) for name in self.terms}
        if "theta" in self.state and len(self.state) == 1:
            return self.terms
        scale = len(sizes) / sum(1 / size for size in sizes.values())
        return {
            name: min(self.highest, max(self.lowest, scale / size)) for name, size in sizes.items()
        }

    def generator_updated(self, values: Mapping[str, float]) -> None:
        """Running means of the magnitudes."""
        for name, value in values.items():
            before = self.state.get(f"mean {name}", abs(value))
            self.state[f"mean {name}"] = self.memory * before + (1 - self.memory) * abs(value)

    def objective(self, objective: Match) -> Match:
        """At the present temperature."""
        return objective.model_copy(update={"temperature": self.temperature})

    @property
    def temperature(self) -> float:
        """Between 1 and 21."""
        return self.coldest + self.span / (1 + math.exp(-self.state["theta"]))

    def student_updated(self, objective: Match, outputs: StudentOutputs, share: float) -> None:
        """One step of ascent on theta, from the logits alone."""
        assert isinstance(objective, Dfard)
        theta = torch.tensor(self.state["theta"], dtype=torch.float64, requires_grad=True)
        temperature = self.coldest + self.span * theta.sigmoid()
        loss = objective.model_copy(update={"temperature": temperature}).loss(outputs)
        (slope,) = torch.autograd.grad(loss, theta)
        ramp = (1 - math.cos(math.pi * min(1.0, share / self.rise))) / 2
        self.state["theta"] += self.rate * ramp * float(slope)
