"""Losses that an attack maximises, one value an image: logits (n, K) and labels (n,) to (n,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (n, K), labels (n,)) to one value an image (n,); larger is worse for the defense."""

RowFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""As `Loss`, with the rows (n,) behind the labels: which of the victim's images these are, once for
each draw.
"""


@dataclass(frozen=True)
class RowLoss:
    """A loss that needs to know its images, for guides of their own or for answers known of them.

        base = victim.logits(images, everything, Query(), view="base")[:, 0]
        away = RowLoss(lambda output, labels, rows: kl(base[rows], output))
        victim.joint(labels, {"logits": away})

    Attributes:
        of: (outputs (n, ...), labels (n,), rows (n,)) to one value an image (n,).
    """

    of: RowFunction


def value_of(loss: Loss | RowLoss, output: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """The loss of each output (n,)."""
    return loss.of(output, labels, rows) if isinstance(loss, RowLoss) else loss(output, labels)


# Success must survive the rounding by which sums differ between batch sizes; float32 convolutions
# differ by a few 1e-6.
SUCCESS_SLACK = 1e-5


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the true class, in nats.

    Taken in float64: from a margin of 17 nats on, the true class's probability rounds to 1 in
    float32, its term drops out of the gradient, and the attack walks astray on a confident image.
    """
    return F.cross_entropy(logits.double(), labels, reduction="none").to(logits.dtype)


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)) of each row, in nats: logits (n, K) twice to (n,),
    summed over classes.

    The gradient flows into both. Taken in log space, so that a class of probability 0 costs
    nothing, and in float64 for the reason that `cross_entropy` gives. A paper that averages over
    classes as well divides this by K.
    """
    p, q = target.double().log_softmax(1), logits.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1).to(logits.dtype)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus true logit; positive where the image is misclassified (Carlini and
    Wagner 2017, f6).
    """
    true, best_wrong = _deciding(logits, labels)
    return best_wrong - true


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690, eq. 6): the margin over
    z_pi1 - z_pi3.

    With two or three classes the denominator is the margin itself or spans all logits, and
    ascending the ratio no longer means ascending the margin; the margin takes its place there.
    """
    if logits.shape[1] < 4:
        return margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def towards(loss: Loss) -> Loss:
    """The loss to maximise so that images are answered with their target: minus the loss of the
    target in the label's place.
    """
    return lambda logits, targets: -loss(logits, targets)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Which rows are wrong by a margin that no rounding turns around; bool (n,).

    The slack scales with the two logits that decide, so that a masked class (-1e9, -inf) does not
    swallow it.
    """
    return margin_and_error(logits, labels)[1]


def margin_and_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`margin`, and which rows are `misclassified`; (n,) each."""
    true, best_wrong = _deciding(logits, labels)
    gap = best_wrong - true
    none = gap <= 0
    if bool(none.all()):
        # What a search asks nearly always; NaN is not among it.
        return gap, none.logical_not_()
    return gap, (gap > _slack(true, best_wrong)) | torch.isnan(logits).any(1)


def reached(logits: Tensor, targets: Tensor) -> Tensor:
    """Which rows answer their target by a margin that no rounding turns around; bool (n,)."""
    target, best_other = _deciding(logits, targets)
    return (target - best_other > _slack(target, best_other)) & ~torch.isnan(logits).any(1)


def _deciding(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit and the largest other one, (n,) each."""
    label = logits.gather(1, labels[:, None]).squeeze(1)
    return label, logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def _slack(label: Tensor, best_other: Tensor) -> Tensor:
    """0 where one of them is infinite."""
    scale = SUCCESS_SLACK * torch.maximum(label.abs(), best_other.abs())
    return scale.nan_to_num_(nan=0.0, posinf=0.0)
