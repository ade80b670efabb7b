"""Controls: other architectures, trained here on the data set's training images."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.mnist5k import Mnist5k
from bench.engine.setup import Setup
from bench.models.foreign import copied
from bench.noise import isolated
from bench.studies.cases import Case

EPOCHS = 6


class RowReader(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x[:, 0])[0].mean(1))
        return logits


class RowTransformer(nn.Module):
    """A TransformerEncoder over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.embed, self.place = nn.Linear(28, 32), nn.Parameter(torch.randn(28, 32) / 5)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x[:, 0]) + self.place
        logits: Tensor = self.head(self.encoder(rows).mean(1))
        return logits


class PatchTransformer(nn.Module):
    """A vision transformer of one block on patches of 7 x 7 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 7, 7)
        self.place = nn.Parameter(torch.randn(16, 32) / 5)
        self.norm, self.attend = nn.LayerNorm(32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.mix = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.place
        z = self.norm(y)
        y = y + self.attend(z, z, z, need_weights=False)[0]
        logits: Tensor = self.head((y + self.mix(y)).mean(1))
        return logits


class GeluNet(nn.Sequential):
    """Two convolutions with GELU and instance normalisation."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, 2, 2),
            nn.InstanceNorm2d(16, affine=True),
            nn.GELU(),
            nn.Conv2d(16, 32, 5, 2, 2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * 49, 10),
        )


class Residual(nn.Module):
    """Two residual steps with max pooling between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, 2, 1)
        self.steps = nn.ModuleList([nn.Conv2d(16, 16, 3, 1, 1) for _ in range(2)])
        self.head = nn.Linear(16 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y = F.max_pool2d(y + self.steps[0](y).relu(), 2)
        logits: Tensor = self.head((y + self.steps[1](y).relu()).flatten(1))
        return logits


@cache
def trained(kind: type[nn.Module], epochs: int = EPOCHS) -> nn.Module:
    """A network of this kind, trained on mnist5k's training images with Adam (Kingma and Ba 2015),
    in evaluation mode; the same each time on one thread.
    """
    train = Mnist5k().train()
    images, labels = train.pixels(), train.labels
    with isolated(11):
        network = kind()
        adam = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(64):
                adam.zero_grad()
                F.cross_entropy(network(images[batch]), labels[batch]).backward()
                adam.step()
    return network.eval().requires_grad_(False)


def _case(kind: type[nn.Module], name: str) -> Case:
    def make(setup: Setup) -> nn.Module:
        return copied(trained(kind))  # type: ignore[arg-type]

    return Case(name, "architecture", " ".join((kind.__doc__ or "").split()), False, make=make)


CASES = (
    _case(RowReader, "lstm"),
    _case(RowTransformer, "transformer-encoder"),
    _case(PatchTransformer, "vit"),
    _case(GeluNet, "gelu"),
    _case(Residual, "residual"),
)
