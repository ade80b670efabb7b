"""DAD and DAD++: detect adversarial images by a classifier's logits, answer on their low
frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.data.similarity import gaussian_ssim
from bench.defense import (
    BuildSetting,
    Card,
    DataAccess,
    DefendedClassifier,
    Defense,
    Forward,
    Need,
    Wrapper,
)
from bench.errors import BadInput
from bench.models.training import device_of
from bench.noise import BuildNoise, Noise, isolated
from bench.spec import Integers, Params
from bench_defenses.testtime.detector import Adaptation, Detector, adapt, shipped_detector

SMALLEST = 4
"""The radius where none is allowed."""

_BATCH = 256
_ATTACKS = (
    "views:base+branch",
    "pgd",
    "evade",
    "views:corrected",
    "pgd:gradient=blind",
    "ensemble:standard",
)


class DADParams(Params):
    """Parameters of `dad`."""

    pool: int = Field(
        400, ge=4, le=1_000_000, description="unlabelled test images to adapt the detector on"
    )
    adversarial: float = Field(0.5, ge=0, le=1, description="share of the pool that is attacked")
    mode: Literal["paper", "as_released"] = Field(
        "paper", description="pseudo-labels of the images, or of others as released"
    )
    epochs: int = Field(20, ge=0, le=100_000, description="passes over the pool")
    batch: int = Field(64, ge=2, le=1_000_000, description="images a step")
    rate: float = Field(0.01, gt=0, le=10, description="learning rate of plain SGD")
    cls: float = Field(0.3, ge=0, le=1000, description="weight of the pseudo-labels' cross-entropy")
    ent: float = Field(0.8, ge=0, le=1000, description="weight of certain and balanced answers")
    dropout: float = Field(
        0.65,
        ge=0,
        lt=1,
        description="share of features dropped before the last layer, for the radius alone",
    )
    passes: int = Field(10, ge=1, le=10_000, description="dropout masks, drawn once")
    radii: Integers = Field(
        (2, 4, 6, 8, 10, 12, 14),
        description="radii tried, ascending, in frequencies of the image",
        min_length=1,
    )


class DADPlusParams(DADParams):
    """Parameters of `dadpp`."""

    epochs: int = Field(10, ge=0, le=100_000, description="passes over the pool")
    rate: float = Field(0.005, gt=0, le=10, description="learning rate of plain SGD")
    dropout: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="share of features dropped before the last layer, for the radius alone",
    )
    radii: Integers = Field(
        (2, 4, 6, 8, 10, 12, 14, 16),
        description="radii tried, ascending, in frequencies of the image",
        min_length=1,
    )


def kept_frequencies(height: int, width: int, radius: Tensor) -> Tensor:
    """Which coefficients of `torch.fft.rfft2` lie nearer to frequency 0 than `radius` (n,): bool
    (n, 1, H, W // 2 + 1).
    """
    rows = torch.fft.fftfreq(height, 1 / height, device=radius.device)[:, None]
    columns = torch.fft.rfftfreq(width, 1 / width, device=radius.device)[None, :]
    kept: Tensor = (rows.square() + columns.square()).sqrt() < radius.reshape(-1, 1, 1, 1)
    return kept


def low_pass(images: Tensor, radius: Tensor) -> Tensor:
    """Images (n, C, H, W) with the frequencies below `radius` (n,) alone; linear, exact, not
    clipped to [0, 1].
    """
    height, width = images.shape[2:]
    spectrum = torch.fft.rfft2(images) * kept_frequencies(height, width, radius)
    filtered: Tensor = torch.fft.irfft2(spectrum, (height, width))
    return filtered


class Corrected(Wrapper):
    """A classifier that answers on the low frequencies of what its detector takes for adversarial.

    Gradients: `full`, through the branch that answers, the radius and the decision held as they
    are; `blind`, the classifier alone.

    Args:
        classifier: the undefended one.
        detector: of its logits.
        head: path of its last linear layer.
        masks: (passes, d), what each feature is multiplied by.
        radii: tried in this order.
        soft: DAD++: every image is filtered, at a radius that grows with the probability that it is
            clean.
    """

    gradients = ("full", "blind")
    transfers = ("blind",)
    scored = ("base", "corrected", "detector")
    masks: Tensor

    def __init__(
        self,
        classifier: DefendedClassifier,
        detector: Detector,
        head: str,
        masks: Tensor,
        radii: tuple[int, ...],
        soft: bool,
    ) -> None:
        super().__init__(classifier)
        self.detector = detector
        self.head = head
        self.radii = radii
        self.soft = soft
        self.register_buffer("masks", masks)

    def views(self) -> tuple[str, ...]:
        """The answer; `base` and `corrected`, the classifier on the image and on its low
        frequencies at the chosen radius; `branch:R`, at radius R; `detector` (n, 2), clean and
        adversarial.
        """
        return (
            "logits",
            "base",
            "detector",
            "corrected",
            *(f"branch:{radius}" for radius in self._branches()),
        )

    def _branches(self) -> list[int]:
        """The radii that an answer may come from; under DAD++ any other one may be, too."""
        return sorted({SMALLEST, *self.radii})

    def forward_pass(self, gradient: str = "full", view: str = "logits") -> Forward:
        """The gradients in `gradients`, for each view."""
        self.check_gradient(gradient)
        blind = gradient == "blind"
        inner = self._at_classifier(self.inner("full" if blind else gradient, "logits"))
        if view == "base" or (blind and view == "logits"):
            return inner
        name, _, radius = view.partition(":")
        if name == "branch" and view in self.views():
            return lambda images, noise: inner(
                low_pass(images, torch.full((len(images),), float(radius)).to(images)), noise
            )
        if view == "detector":
            return lambda images, noise: self.detector(inner(images, noise))
        if view == "corrected":
            return partial(self._corrected, inner)
        return (
            partial(self._soft if self.soft else self._hard, inner)
            if view == "logits"
            else super().forward_pass(gradient, view)
        )

    @staticmethod
    def _at_classifier(inner: Forward) -> Forward:
        return lambda images, noise: inner(images, noise.at("classifier"))

    def _corrected(self, inner: Forward, images: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            radius = self.radius(inner, images, inner(images, noise).argmax(1), noise)
        return inner(low_pass(images, radius), noise)

    def _hard(self, inner: Forward, images: Tensor, noise: Noise) -> Tensor:
        """DAD: corrected where the detector says adversarial."""
        base = inner(images, noise)
        with torch.no_grad():
            flagged = self.detector(base).argmax(1).nonzero()[:, 0]
        if not len(flagged):
            return base
        corrected = self._corrected(inner, images[flagged], noise.rows(flagged.cpu().numpy()))
        return base.index_copy(0, flagged, corrected)

    def _soft(self, inner: Forward, images: Tensor, noise: Noise) -> Tensor:
        """DAD++: filtered at max(floor(side P(clean)), 4, the rule's radius); from side / sqrt 2 on
        that is the image itself.
        """
        with torch.no_grad():
            base = inner(images, noise)
            clean = (max(images.shape[2:]) * self.detector(base).softmax(1)[:, 0]).floor()
            ruled = self.radius(inner, images, base.argmax(1), noise)
            radius = torch.maximum(clean, ruled).clamp(min=SMALLEST)
        return inner(low_pass(images, radius), noise)

    @torch.no_grad()
    def radius(self, inner: Forward, images: Tensor, answers: Tensor, noise: Noise) -> Tensor:
        """The largest radius before the first at which the image resembles itself no more than its
        answer stays: float32 (n,).

        At each radius, SSIM of image and filtered image is compared with the share of dropout
        passes on the latter that give the classifier's answer on the image (n,).
        """
        chosen = torch.full((len(images),), float(SMALLEST), device=images.device)
        alive = torch.arange(len(images), device=images.device)
        span = images.flatten(1).amax(1).clamp(min=1 / 255)
        for radius in self.radii:
            if not len(alive):
                break
            filtered = low_pass(images[alive], torch.full((len(alive),), float(radius)).to(images))
            stays = self._stays(inner, filtered, answers[alive], noise.rows(alive.cpu().numpy()))
            alive = alive[gaussian_ssim(images[alive], filtered, span[alive]) > stays]
            chosen[alive] = float(radius)
        return chosen

    def _stays(self, inner: Forward, images: Tensor, answers: Tensor, noise: Noise) -> Tensor:
        """Share of dropout passes that give these answers, (n,)."""
        head = self.classifier.get_submodule(self.head)
        with _inputs_of(head) as features:
            inner(images, noise)
        dropped = torch.cat(features)[None] * self.masks[:, None]
        same: Tensor = head(dropped).argmax(-1) == answers
        return same.float().mean(0)


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer is given inside the block."""
    received: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    try:
        yield received
    finally:
        handle.remove()


@torch.no_grad()
def pool_logits(classifier: DefendedClassifier, images: Tensor, noise: BuildNoise) -> Tensor:
    """Logits (n, K) of many images, on the CPU."""
    everyone = noise.to(images.device).numbered("pool", range(len(images)))
    parts = range(0, len(images), _BATCH)
    return torch.cat(
        [classifier(images[i : i + _BATCH], everyone.rows(slice(i, i + _BATCH))) for i in parts]
    ).cpu()


@torch.no_grad()
def last_layer(classifier: DefendedClassifier, images: Tensor, noise: Noise) -> tuple[str, int]:
    """Path and width of the linear layer whose output the logits are. Raises `BadInput` where there
    is none.
    """
    called: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: called.append((name, output)))
        for name, module in classifier.named_modules()
        if isinstance(module, nn.Linear)
    ]
    logits = classifier(images, noise)
    for handle in handles:
        handle.remove()
    if not called or not torch.equal(called[-1][1], logits):
        raise BadInput(
            "dad drops features before a last linear layer, and this classifier does not end in "
            "one: give another"
        )
    layer = classifier.get_submodule(called[-1][0])
    return called[-1][0], int(layer.in_features)  # type: ignore[arg-type]


P = TypeVar("P", bound=DADParams)


class _Detecting(Defense[P]):
    """What DAD and DAD++ share: the adapted detector, and the dropout masks drawn once."""

    needs = frozenset({Need.UNLABELLED_TEST})
    gradients = ("full", "blind")
    soft: ClassVar[bool]

    def check(self, setting: BuildSetting) -> None:
        """Raise `BadInput` for a classifier that does not end in a linear layer."""
        one = BuildNoise(0, device=device_of(setting.classifier))
        images = one.uniform("dad", (1, *setting.shape))[0]
        with isolated(0):
            last_layer(setting.classifier, images, one)

    def build(
        self, classifier: DefendedClassifier, access: DataAccess, noise: BuildNoise
    ) -> DefendedClassifier:
        """The shipped source detector, adapted to the pool, and the correction."""
        params = self.params
        pool = access.unlabelled_pool(params.pool, params.adversarial).to(noise.device)
        place = device_of(classifier)
        logits = pool_logits(classifier, pool.to(place), noise)
        detector, fresh = shipped_detector(classifier.num_classes, noise.seed("detector"))
        adaptation = Adaptation(
            epochs=params.epochs,
            batch=params.batch,
            rate=params.rate,
            cls=params.cls,
            ent=params.ent,
            aligned=params.mode == "paper",
        )
        adapt(detector, logits, adaptation, noise.seed("adaptation"))
        head, width = last_layer(classifier, pool[:1].to(place), noise.to(place))
        kept = noise.uniform("dropout", (params.passes, width))[0] >= params.dropout
        masks = kept.float() / (1 - params.dropout)
        defended = Corrected(
            classifier,
            detector.to(place),
            head,
            masks.to(place),
            tuple(sorted(params.radii)),
            self.soft,
        )
        defended.notes = _notes(classifier.num_classes, fresh)
        return defended


def _notes(num_classes: int, fresh: bool) -> tuple[str, ...]:
    note = (
        f"the source detector knows 10 classes, not {num_classes}: its first layer began with "
        "fresh weights"
    )
    return (note,) * fresh


_RELEASED = (
    "mode=as_released gives each image another one's pseudo-label, as the released code does by "
    "accident; its choice of the epoch "
    "by true labels of the test pool cannot be had here, as no label reaches a defense"
)


class DAD(_Detecting[DADParams]):
    """DAD: what a detector takes for adversarial is answered on its low frequencies;
    deterministic.
    """

    Params = DADParams
    soft = False
    card = Card(
        paper="Nayak et al., WACV 2022, arXiv 2204.01568",
        note="published numbers are of stored points crafted on the undefended classifier; "
        f"{_RELEASED}",
        attacks=_ATTACKS,
    )


class DADPlus(_Detecting[DADPlusParams]):
    """DAD++: every image is filtered, the less the more certainly the detector takes it for clean;
    deterministic.
    """

    Params = DADPlusParams
    soft = True
    card = Card(
        paper="DAD++, extending Nayak et al., WACV 2022, arXiv 2204.01568; released code",
        note="its attacks on the detector aim at detector and classifier one after the other, "
        f"never at both; {_RELEASED}",
        attacks=_ATTACKS,
    )
