"""DAD's detector of adversarial images: a small network on a classifier's logits, trained on one
data set, adapted to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.noise import isolated

WIDTH = 128
_DROPOUT = 0.25
SHIPPED = Path(__file__).parent / "weights" / "source-detector.safetensors"


class Detector(nn.Module):
    """Logits (n, K) of a classifier to logits (n, 2): clean, adversarial.

    Linear, ReLU, dropout, linear, ReLU, batch norm, dropout, and a last layer w_c = s_c v_c / |v_c|
    (weight normalisation, Salimans and Kingma 2016, eq. 2). In training mode dropout draws from
    `generator`, which must then be set.
    """

    def __init__(self, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        with isolated(seed):
            self.first = nn.Linear(num_classes, WIDTH)
            self.second = nn.Linear(WIDTH, WIDTH)
            last = nn.Linear(WIDTH, 2)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.direction = nn.Parameter(last.weight.detach().clone())
        self.scale = nn.Parameter(last.weight.detach().norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(last.bias.detach().clone())
        self.generator: torch.Generator | None = None

    def features(self, logits: Tensor) -> Tensor:
        """What the last layer sees, (n, 128)."""
        hidden = self._dropped(F.relu(self.first(logits)))
        return self._dropped(self.norm(F.relu(self.second(hidden))))

    def last(self, features: Tensor) -> Tensor:
        """The last layer alone."""
        # Salimans and Kingma 2016, eq. 2: w = g v / |v|.
        return F.linear(features, self.scale * F.normalize(self.direction, dim=1), self.bias)

    def forward(self, logits: Tensor) -> Tensor:
        """(n, K) to (n, 2)."""
        return self.last(self.features(logits))

    def _dropped(self, hidden: Tensor) -> Tensor:
        if not self.training:
            return hidden
        # Drawn on the CPU, so that every device adapts alike.
        kept = torch.rand(hidden.shape, generator=self.generator) >= _DROPOUT
        return hidden * kept.to(hidden) / (1 - _DROPOUT)


def shipped_detector(num_classes: int, seed: int) -> tuple[Detector, bool]:
    """The source detector that comes with the suite, and whether its first layer is a fresh one
    because K differs.
    """
    state = safetensors.torch.load_file(SHIPPED)
    fresh = state["first.weight"].shape[1] != num_classes
    detector = Detector(num_classes, seed)
    if fresh:
        state = {key: value for key, value in state.items() if not key.startswith("first.")}
    detector.load_state_dict(state, strict=False)
    return detector.eval(), fresh


def train_source(
    clean: Tensor, adversarial: Tensor, *, epochs: int, batch: int, rate: float, seed: int
) -> Detector:
    """A detector from the logits (n, K) of clean and of adversarial images, by cross-entropy and
    RMSprop; last epoch's weights.
    """
    inputs = torch.cat([clean, adversarial])
    labels = torch.arange(2).repeat_interleave(torch.tensor([len(clean), len(adversarial)]))
    detector = Detector(inputs.shape[1], seed).train()
    detector.generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.RMSprop(detector.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in _batches(len(inputs), batch, detector.generator):
            loss = F.cross_entropy(detector(inputs[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return detector.eval()


@dataclass(frozen=True)
class Adaptation:
    """How a detector is adapted.

    Attributes:
        epochs, batch, rate: of SGD.
        cls, ent: weights of the two terms of the loss.
        aligned: whether each row is trained on its own pseudo-label; otherwise on that of another
            row, as the released code does.
    """

    epochs: int
    batch: int
    rate: float
    cls: float
    ent: float
    aligned: bool = True


def adapt(detector: Detector, logits: Tensor, how: Adaptation, seed: int) -> None:
    """Adapt a detector in place to unlabelled logits (n, K), clean and adversarial ones mixed; the
    last epoch's weights stay.

    The last layer stays as it is; the others follow `adaptation_loss` by plain SGD. Pseudo-labels
    are taken anew each epoch.

    Args:
        detector: trained on another data set.
        logits: of the classifier to be defended, on the CPU.
        how: for how long, and on which loss.
        seed: decides order and dropout.
    """
    generator = torch.Generator().manual_seed(seed)
    detector.generator = generator
    trained = [
        p for name, p in detector.named_parameters() if name not in ("direction", "scale", "bias")
    ]
    optimiser = torch.optim.SGD(trained, lr=how.rate)
    for _ in range(how.epochs):
        labels = pseudo_labels(detector.eval(), logits)
        if not how.aligned:
            labels = labels[torch.randperm(len(labels), generator=generator)]
        detector.train()
        for rows in _batches(len(logits), how.batch, generator):
            loss = adaptation_loss(detector(logits[rows]), labels[rows], how.cls, how.ent)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    detector.eval().generator = None


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """All rows in random order, without a last batch of one, of which batch norm can learn
    nothing.
    """
    return [
        rows for rows in torch.randperm(count, generator=generator).split(size) if len(rows) > 1
    ]


def adaptation_loss(outputs: Tensor, labels: Tensor, cls: float, ent: float) -> Tensor:
    """cls CE(outputs, labels) + ent [mean_i H(p_i) - H(mean_i p_i)] over outputs (n, 2), p =
    softmax.

    The bracket asks for answers that are certain one by one and balanced together (SHOT, Liang et
    al. 2020, arXiv 2002.08546, eqs. 3 and 4).
    """
    p = outputs.softmax(1)
    # Liang et al. 2020, eqs. 3 and 4: each answer certain, all together balanced.
    balance = _entropy(p).mean() - _entropy(p.mean(0, keepdim=True))[0]
    return cls * F.cross_entropy(outputs, labels) + ent * balance


def _entropy(p: Tensor) -> Tensor:
    return -(p * (p + 1e-5).log()).sum(1)


@torch.no_grad()
def pseudo_labels(detector: Detector, logits: Tensor) -> Tensor:
    """Nearest class centre of each row's features, int64 (n,) (SHOT, Liang et al. 2020, section
    3.3).

    Features get a constant 1 and length 1. Centres are means weighted by the detector's
    probabilities, then, once, means of the classes so labelled; distance is the cosine's.
    """
    features = detector.features(logits)
    weights = detector.last(features).softmax(1)
    rows = F.normalize(torch.cat([features, torch.ones(len(features), 1)], 1), dim=1)
    labels = _nearest(rows, weights)
    return _nearest(rows, F.one_hot(labels, 2).to(rows))


def _nearest(rows: Tensor, weights: Tensor) -> Tensor:
    """Index of the centre with the largest cosine, over centres that some row belongs to."""
    centres = weights.T @ rows / (weights.sum(0)[:, None] + 1e-8)
    cosine = rows @ F.normalize(centres, dim=1).T
    return cosine.masked_fill(weights.sum(0) == 0, -torch.inf).argmax(1)
