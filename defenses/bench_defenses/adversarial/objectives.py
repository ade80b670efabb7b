"""Student objectives: what the inner attack maximises and what training minimises. One table serves
images of every source.

T is the frozen teacher, which only ever labels clean images; S is the student, x an image and x'
its adversarial point. KL divergences are sums over classes and means over the batch, unless
`reduction` says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from bench.errors import BadInput
from bench.losses import kl
from bench.spec import Params, canonical, nearest, nested, parse, read_params, unnest

Inner = Literal["label", "student", "teacher"]
"""What x' is driven away from: CE(S(x'), y), KL(S(x) || S(x')), or KL(T(x) || S(x'))."""

Reduction = Literal["batchmean", "element_mean"]
"""Mean over the batch, or over batch and classes: 1/K of it."""


@dataclass(frozen=True)
class StudentOutputs:
    """Logits (n, K) of a batch, and its labels (n,).

    Attributes:
        clean, attacked: S(x) and S(x'), with gradient; without rows where the objective's
            `clean_pass` or `attacked_pass` is False.
        teacher: T(x), without gradient.
        labels: the given labels, or the teacher's answers.
    """

    clean: Tensor
    attacked: Tensor
    teacher: Tensor
    labels: Tensor


class Objective(Params):
    """What a student minimises, and what the inner attack maximises; parameters are its fields."""

    @property
    def inner(self) -> Inner:
        """What the inner attack maximises."""
        return "label"

    @property
    def start(self) -> Literal["gaussian", "uniform"]:
        """Where the inner attack starts: at x + 0.001 N(0, 1), for KL(S(x) || S(x')) is flat at x;
        or anywhere in the ball.
        """
        return "gaussian"

    @property
    def clean_pass(self) -> bool:
        """Whether the loss reads S(x)."""
        return True

    @property
    def attacked_pass(self) -> bool:
        """Whether the loss reads S(x'); without it there is no attack."""
        return True

    def loss(self, outputs: StudentOutputs) -> Tensor:
        """What training minimises, a scalar."""
        raise NotImplementedError


def divergence(
    target: Tensor, logits: Tensor, temperature: float = 1.0, reduction: Reduction = "batchmean"
) -> Tensor:
    """tau^2 KL(softmax(target / tau) || softmax(logits / tau)), reduced; tau is the temperature
    (Hinton et al. 2015, arXiv 1503.02531, section 2).
    """
    value = temperature**2 * kl(target / temperature, logits / temperature).mean()
    return value / logits.shape[1] if reduction == "element_mean" else value


class PgdAt(Objective):
    """CE(S(x'), y) (Madry et al. 2018, arXiv 1706.06083, eq. 2.1)."""

    @property
    def start(self) -> Literal["gaussian", "uniform"]:
        """Anywhere in the ball."""
        return "uniform"

    @property
    def clean_pass(self) -> bool:
        """It never looks at clean images."""
        return False

    def loss(self, outputs: StudentOutputs) -> Tensor:
        """CE(S(x'), y)."""
        # Madry et al. 2018, eq. 2.1; the inner maximum is the attack's point x'.
        return F.cross_entropy(outputs.attacked, outputs.labels)


class Trades(Objective):
    """CE(S(x), y) + beta KL(S(x) || S(x')), the gradient through both (Zhang et al. 2019, arXiv
    1901.08573, eq. 5).
    """

    beta: float = Field(6.0, ge=0, description="weight of the robust term")

    @property
    def inner(self) -> Inner:
        """KL(S(x) || S(x'))."""
        return "student"

    def loss(self, outputs: StudentOutputs) -> Tensor:
        """Natural error and boundary error."""
        # Zhang et al. 2019, eq. 5.
        return F.cross_entropy(outputs.clean, outputs.labels) + self.beta * divergence(
            outputs.clean, outputs.attacked
        )


class Mart(Objective):
    """BCE(S(x'), y) + beta mean (1 - p_y(x)) KL(S(x) || S(x')) (Wang et al. 2020, ICLR, openreview
    rklOg6EFwS).
    """

    beta: float = Field(5.0, ge=0, description="weight of the robust term")

    def loss(self, outputs: StudentOutputs) -> Tensor:
        """BCE is CE(S(x'), y) - log(1.0001 - the largest wrong probability at x')."""
        # Wang et al. 2020: 1 - p_y(x) weighs the divergence of each image.
        doubt = 1 - outputs.clean.softmax(1).gather(1, outputs.labels[:, None]).squeeze(1)
        return (
            boosted_cross_entropy(outputs.attacked, outputs.labels)
            + self.beta * (doubt * kl(outputs.clean, outputs.attacked)).mean()
        )


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and -log(1.0001 - the largest wrong probability), means over the batch."""
    wrong = logits.softmax(1).scatter(1, labels[:, None], 0.0).amax(1)
    return F.cross_entropy(logits, labels) - torch.log(1.0001 - wrong).mean()


class Ard(Objective):
    """alpha tau^2 KL_tau(T(x) || S(x')) + (1 - alpha) CE(S(x), y) (Goldblum et al. 2020, arXiv
    1905.09747).
    """

    alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of the teacher's term; the rest goes to clean cross-entropy",
    )
    temperature: float = Field(30.0, gt=0, description="temperature of the teacher's term")
    reduction: Reduction = Field(
        "batchmean",
        description="mean over the batch, or element_mean: over classes too, as published",
    )

    @property
    def start(self) -> Literal["gaussian", "uniform"]:
        """Anywhere in the ball."""
        return "uniform"

    @property
    def clean_pass(self) -> bool:
        """Only where the clean term has a weight."""
        return self.alpha < 1

    def loss(self, outputs: StudentOutputs) -> Tensor:
        """The teacher's clean answers, softened, at the student's adversarial points."""
        robust = divergence(outputs.teacher, outputs.attacked, self.temperature, self.reduction)
        if not self.clean_pass:
            return robust
        return self.alpha * robust + (1 - self.alpha) * F.cross_entropy(
            outputs.clean, outputs.labels
        )


class Match(Objective):
    """adversarial m(T(x), S(x')) + clean m(T(x), S(x)): m measures how far the student is from the
    teacher. Reads no label.
    """

    adversarial: float = Field(
        1.0, ge=0, description="weight of the term at the adversarial point; 0: no attack"
    )
    clean: float = Field(0.0, ge=0, description="weight of the term at the clean image")

    @model_validator(mode="after")
    def _something_is_left(self) -> Match:
        if not self.adversarial and not self.clean:
            raise ValueError(
                "adversarial and clean are both 0, so that nothing is learnt: give one a weight"
            )
        return self

    @property
    def clean_pass(self) -> bool:
        """Only where the clean term has a weight."""
        return self.clean > 0

    @property
    def attacked_pass(self) -> bool:
        """Only where the adversarial term has a weight."""
        return self.adversarial > 0

    def match(self, teacher: Tensor, logits: Tensor) -> Tensor:
        """m of a batch's logits (n, K), a scalar."""
        raise NotImplementedError

    def loss(self, outputs: StudentOutputs) -> Tensor:
        """The measure at both points."""
        loss = outputs.teacher.new_zeros(())
        if self.attacked_pass:
            loss = loss + self.adversarial * self.match(outputs.teacher, outputs.attacked)
        if self.clean_pass:
            loss = loss + self.clean * self.match(outputs.teacher, outputs.clean)
        return loss


class Rslad(Match):
    """m is KL(T(x) || S) (Zi et al. 2021, arXiv 2108.07969)."""

    adversarial: float = Field(
        5 / 6, ge=0, description="weight of the term at the adversarial point; 0: no attack"
    )
    clean: float = Field(1 / 6, ge=0, description="weight of the term at the clean image")
    reduction: Reduction = Field(
        "batchmean",
        description="mean over the batch, or element_mean: over classes too, as published",
    )

    @property
    def inner(self) -> Inner:
        """KL(T(x) || S(x'))."""
        return "teacher"

    def match(self, teacher: Tensor, logits: Tensor) -> Tensor:
        """The teacher's clean probabilities are the target."""
        return divergence(teacher, logits, reduction=self.reduction)


class Dast(Match):
    """m is CE(S, argmax T(x)) + beta MSE(softmax S, softmax T(x)) (Zhou et al. 2020, arXiv
    2003.12703).
    """

    beta: float = Field(
        0.1,
        ge=0,
        description="weight of the squared distance of probabilities, a mean over images and "
        "classes",
    )

    def match(self, teacher: Tensor, logits: Tensor) -> Tensor:
        """The teacher's answer, and its probabilities."""
        hard = F.cross_entropy(logits, teacher.argmax(1))
        return hard + self.beta * F.mse_loss(logits.softmax(1), teacher.softmax(1))


class Dfme(Match):
    """m is the mean of |S - v| over images and classes (Truong et al. 2021, arXiv 2011.14779); v:
    T's logits minus their mean.
    """

    def match(self, teacher: Tensor, logits: Tensor) -> Tensor:
        """The student is not centred."""
        return l1_centred(teacher, logits).mean()


def l1_centred(teacher: Tensor, logits: Tensor) -> Tensor:
    """Mean over classes of |S - v|, one value an image: logits (n, K) twice to (n,).

    v = T - mean T is the mean-free logarithm of the teacher's probabilities, so that probabilities
    are enough to know it.
    """
    return (logits - (teacher - teacher.mean(1, keepdim=True))).abs().mean(1)


class Ait(Match):
    """m is tau^2 KL_tau(T(x) || S), and no cross-entropy (Choi et al. 2022, arXiv 2203.17008)."""

    temperature: float = Field(20.0, gt=0, description="of both softmaxes")
    reduction: Reduction = Field(
        "element_mean", description="mean over batch and classes, as published, or batchmean"
    )

    @property
    def inner(self) -> Inner:
        """KL(T(x) || S(x'))."""
        return "teacher"

    def match(self, teacher: Tensor, logits: Tensor) -> Tensor:
        """The teacher's softened probabilities are the target."""
        return divergence(teacher, logits, self.temperature, self.reduction)


class Dfard(Rslad):
    """RSLAD with tau^2 KL_tau(T(x) || S): a stand-in for DFARD's loss (AAAI 2024, arXiv
    2303.11611), not read here.
    """

    temperature: float = Field(1.0, gt=0, description="of both softmaxes")

    def match(self, teacher: Tensor, logits: Tensor) -> Tensor:
        """The teacher's softened probabilities are the target."""
        return divergence(teacher, logits, self.temperature, self.reduction)


class DataFreeShield(Objective):
    """clean KL_tau(T(x) || S(x)) + adv_teacher KL(T(x) || S(x')) + smooth KL(S(x) || S(x')); the
    last one's gradient flows into both (Lee et al. 2024, ICML, L_DFShield). Reads no label, unless
    attack=ce.
    """

    clean: float = Field(1.0, ge=0, description="weight of KL(T(x) || S(x))")
    adv_teacher: float = Field(1.0, ge=0, description="weight of KL(T(x) || S(x'))")
    smooth: float = Field(1.0, ge=0, description="weight of KL(S(x) || S(x'))")
    temperature: float = Field(20.0, gt=0, description="temperature of the clean term")
    reduction: Reduction = Field(
        "element_mean", description="of the clean term: over batch and classes, or batchmean"
    )
    attack: Literal["kl", "ce"] = Field(
        "kl", description="the inner attack maximises KL(S(x) || S(x')), or CE(S(x'), y)"
    )

    @property
    def inner(self) -> Inner:
        """The student's own clean answer, or the label."""
        return "student" if self.attack == "kl" else "label"

    def loss(self, outputs: StudentOutputs) -> Tensor:
        """The three terms, weighted."""
        # Lee et al. 2024, L_DFShield.
        clean, robust, smooth = self.terms(outputs)
        return self.clean * clean + self.adv_teacher * robust + self.smooth * smooth

    def terms(self, outputs: StudentOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """Clean accuracy, robustness, smoothness; without their weights."""
        clean = divergence(outputs.teacher, outputs.clean, self.temperature, self.reduction)
        robust = divergence(outputs.teacher, outputs.attacked)
        return clean, robust, divergence(outputs.clean, outputs.attacked)


OBJECTIVES: dict[str, type[Objective]] = {
    "ait": Ait,
    "ard": Ard,
    "dast": Dast,
    "datafreeshield": DataFreeShield,
    "dfard": Dfard,
    "dfme": Dfme,
    "mart": Mart,
    "pgd-at": PgdAt,
    "rslad": Rslad,
    "trades": Trades,
}
"""Objectives by name."""


def read_objective(text: str) -> Objective:
    """`trades`, `(trades:beta=3)`. Raises `BadInput` for unknown names and parameters."""
    spec = parse(unnest(text))
    if spec.name not in OBJECTIVES:
        raise BadInput(f"unknown objective {spec.name!r}.{nearest(spec.name, OBJECTIVES)}")
    return read_params(OBJECTIVES[spec.name], spec, f"objective {spec.name!r}")


def objective_name(objective: Objective) -> str:
    """Its name in the table."""
    return next(name for name, kind in OBJECTIVES.items() if type(objective) is kind)


def _canonical(text: str) -> str:
    objective = read_objective(text)
    return nested(canonical(objective_name(objective), objective))


ObjectiveSpec = Annotated[str, Field(min_length=1), AfterValidator(_canonical)]
"""An objective with its parameters, as a parameter of a defense."""
