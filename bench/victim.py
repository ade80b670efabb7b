"""The Victim: all that an attack may see of a defense.

It owns the gradient mode and the randomness, counts forward and backward passes per image, and says
when a success is one that stays. An attack asks it for logits, views and objectives; it never meets
the defense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier, Forward, gradient_name
from bench.losses import Loss, misclassified
from bench.maximise import Objective, Reading
from bench.noise import Noise, Stream, pack_draw
from bench.randomness import Query, RandomnessModel

# Scoring draws live in a restart of their own, so that they never meet the draws of a search.
_SCORING_RESTART = 2**16 - 1
# More than a sum of losses, and little enough for float32 to tell such sums apart: a point that
# breaks the answer ranks above those that do not.
_RANK = 1e4
VERDICT_DRAWS = 20
"""Draws of the stages that a law leaves fresh, when the frozen ones are replayed for the verdict.
"""


class Victim:
    """A defended classifier under attack, for one batch of images.

    Args:
        classifier: the defended classifier, on `device`, frozen (see `frozen`).
        ids: image id of each row, (n,).
        law: how queries draw the defense's randomness.
        gradient: which backward pass attacks get: `full`, or another one that the classifier
            offers.
        root: root seed of the attack.
        batch_size: most rows (images x draws) in one forward pass, where one image's draws fit.
        device: where images lie.

    Attributes:
        forwards, backwards: passes per image so far, int64 (n,).
        gradient_blocked: whether some gradient did not exist at all (no path from the objective to
            the image).
    """

    def __init__(
        self,
        classifier: DefendedClassifier,
        ids: npt.NDArray[np.int64],
        *,
        randomness: RandomnessModel | None = None,
        gradient: str = "full",
        root: int = 0,
        batch_size: int = 128,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_classes = classifier.num_classes
        self.stochastic = classifier.stochastic
        self.randomness = randomness or RandomnessModel()
        self.forwards = torch.zeros(len(ids), dtype=torch.int64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self.gradient_blocked = False
        self.views = classifier.views()
        self._classifier = classifier
        self._gradient = gradient
        self._transfer = gradient_name(gradient) in classifier.transfers
        self._ids = ids
        self._root = root
        self._batch_size = batch_size
        self._device = torch.device(device)

    @property
    def deterministic(self) -> bool:
        """Whether the attacked function of an image is the defense and is fixed, so that its first
        success is final.
        """
        return not self._transfer and (not self.stochastic or self.randomness.deterministic)

    @property
    def fixed(self) -> bool:
        """Whether all queries of an image read the same function, so that the values they tell can
        be compared.
        """
        return not self.stochastic or self.randomness.fixed

    def random(self, rows: Tensor, restart: int = 0) -> Noise:
        """Random numbers for the attack's own use, apart from all that the defense draws."""
        return self._noise(rows, Stream.ATTACK, [pack_draw(restart, 0)]).at("attacker")

    def logits(self, x: Tensor, rows: Tensor, query: Query, view: str = "logits") -> Tensor:
        """Outputs for the draws of one query, without gradient: (n, draws, ...). Of the twin, where
        that is another function.

        Args:
            x: images (n, C, H, W).
            rows: which of the victim's images these are, int64 (n,).
            query: names the draws.
            view: which output; one of `views`.
        """
        return self._outputs(x, rows, *self._draws(query), view)

    def objective(
        self,
        labels: Tensor,
        loss: Loss,
        *,
        rows: Tensor | None = None,
        restart: int = 0,
        view: str = "logits",
    ) -> Objective:
        """The mean over the law's draws of `loss(output, labels)`, to be maximised by `ascend`.

        Under `average=logits` the loss of the mean output instead. A success is final only where
        the function is deterministic given its key; elsewhere a lucky draw is none.

        Args:
            labels: true labels of all the victim's images, int64 (n,).
            loss: takes the view's output and the labels.
            rows: the images to work on; all by default.
            restart: number of the restart, part of the key of every draw.
            view: the output that `loss` reads. Success is always read off the logits.
        """
        return self.joint(labels, {view: loss}, rows=rows, restart=restart)

    def joint(
        self,
        labels: Tensor,
        aims: Mapping[str, Loss],
        *,
        rows: Tensor | None = None,
        restart: int = 0,
        until_all_err: bool = False,
    ) -> Objective:
        """The sum of losses over several views, each as in `objective`.

        Args:
            labels, rows, restart: as in `objective`.
            aims: a loss for each view.
            until_all_err: a success is an image that every view and the answer get wrong, so that
                the search goes on where the answer alone is wrong; such a point still ranks above
                all where the answer is right. The views must be logits.
        """
        chosen = torch.arange(len(self._ids), device=self._device) if rows is None else rows

        def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
            here = chosen[rows]
            stream, draws = self._draws(Query(restart, iteration))
            per_chunk = max(1, self._batch_size // len(draws))
            parts = [
                self._read(
                    x_part,
                    here_part,
                    labels[here_part],
                    stream,
                    draws,
                    aims,
                    until_all_err,
                    gradient,
                )
                for x_part, here_part in zip(x.split(per_chunk), here.split(per_chunk), strict=True)
            ]
            return parts[0] if len(parts) == 1 else _join(parts)

        return read

    def score(self, x: Tensor, rows: Tensor, labels: Tensor, loss: Loss, draws: int) -> Tensor:
        """Mean loss over `draws` fresh draws, the same for every candidate; (n,).

        To choose between candidates under fresh randomness, where the losses seen during a search
        flatter the lucky ones.
        """
        numbers = [pack_draw(_SCORING_RESTART, 0, j) for j in range(draws)]
        outputs = self._outputs(x, rows, Stream.ATTACK, numbers, "logits")
        flat = loss(outputs.flatten(0, 1), labels[rows].repeat_interleave(draws))
        return flat.reshape(len(x), draws).mean(1)

    def verify(self, points: Tensor) -> Tensor:
        """Predicted labels of the final points on the native forward pass, where the law fixes the
        draws: (n, draws).
        """
        if self.stochastic and not self.randomness.has_fixed_noise:
            return torch.empty(len(points), 0, dtype=torch.int64, device=points.device)
        rows = torch.arange(len(points), device=self._device)
        return predict(self._outputs(points, rows, *self._verdict_draws(), "logits", native=True))

    def as_function(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The victim as a plain differentiable function, (m, C, H, W) to logits (m, K), for attacks
        of other libraries.

        Such an attack does not say which images it asks about: they are recognised as the nearest
        of `images` (n, C, H, W), the victim's clean ones, for the counters alone. Each call is one
        query; under several draws it returns their mean logits.
        Raises `RuntimeError` for a stochastic victim of several images, whose draws are keyed by
        image.
        """
        if self.stochastic and len(images) > 1:
            raise RuntimeError(
                "a stochastic victim is a function of one image: hand it over image by image"
            )
        calls = count()

        def function(x: Tensor) -> Tensor:
            rows = _nearest(x, images)
            stream, draws = self._draws(Query(0, next(calls)))
            metered: Tensor = _Meter.apply(x, lambda: self._count_backward(rows, len(draws)))
            forward = self._classifier.forward_pass(self._gradient, "logits")
            output = self._forward(forward, metered, rows, stream, draws).mean(1)
            if not (torch.is_grad_enabled() and x.requires_grad):
                return output
            self.gradient_blocked |= not output.requires_grad
            # A path of gradient zero, so that autograd does not refuse a defense that blocks all
            # others.
            return output + 0 * x.flatten(1).sum(1, keepdim=True)

        return function

    def _count_backward(self, rows: Tensor, draws: int) -> None:
        self.backwards.index_add_(0, rows, torch.full_like(rows, draws))

    def _draws(self, query: Query) -> tuple[Stream, list[int]]:
        return self.randomness.draws(query) if self.stochastic else (Stream.ATTACK, [0])

    def _verdict_draws(self) -> tuple[Stream, list[int]]:
        """The tapes; where the law leaves some stages fresh, draws of those that no search has
        seen.
        """
        if self.stochastic and self.randomness.freeze:
            return Stream.ATTACK, [pack_draw(_SCORING_RESTART, 1, j) for j in range(VERDICT_DRAWS)]
        return self._draws(Query())

    def _noise(self, rows: Tensor, stream: Stream, draws: list[int]) -> Noise:
        ids = np.repeat(self._ids[rows.cpu().numpy()], len(draws))
        if self.randomness.name == "common" and stream is Stream.FIXED:
            ids = np.zeros_like(ids)
        numbers = np.tile(np.asarray(draws, dtype=np.uint64), len(rows))
        noise = Noise.of(self._root, stream, ids, numbers, self._device)
        if self.randomness.freeze and stream is Stream.ATTACK:
            noise = noise.freeze(
                self.randomness.freeze, Noise.of(self._root, Stream.FIXED, ids, 0, self._device)
            )
        return noise.at("forward")

    def _outputs(
        self,
        x: Tensor,
        rows: Tensor,
        stream: Stream,
        draws: list[int],
        view: str,
        *,
        native: bool = False,
    ) -> Tensor:
        per_chunk = max(1, self._batch_size // len(draws))
        forward = self._classifier.forward_pass(
            self._gradient if self._transfer and not native else "full", view
        )
        with torch.no_grad():
            parts = [
                self._forward(forward, x_part, rows_part, stream, draws)
                for x_part, rows_part in zip(x.split(per_chunk), rows.split(per_chunk), strict=True)
            ]
        return torch.cat(parts)

    def _forward(
        self, forward: Forward, x: Tensor, rows: Tensor, stream: Stream, draws: list[int]
    ) -> Tensor:
        """One counted forward pass of every image under every draw: (n, draws, ...)."""
        k = len(draws)
        output = forward(
            x.repeat_interleave(k, 0) if k > 1 else x, self._noise(rows, stream, draws)
        ).float()
        self.forwards.index_add_(0, rows, torch.full_like(rows, k))
        return output.reshape(len(x), k, *output.shape[1:])

    def _read(
        self,
        x: Tensor,
        rows: Tensor,
        labels: Tensor,
        stream: Stream,
        draws: list[int],
        aims: Mapping[str, Loss],
        until_all_err: bool,
        gradient: bool,
    ) -> Reading:
        leaf = x.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            passes_by_view = {
                view: self._classifier.forward_pass(self._gradient, view) for view in aims
            }
            outputs = {
                view: self._forward(forward_pass, leaf, rows, stream, draws)
                for view, forward_pass in passes_by_view.items()
            }
            values = torch.stack(
                [self._average(outputs[view], labels, loss) for view, loss in aims.items()]
            ).sum(0)
        success, rank = self._successes(x, rows, labels, stream, draws, outputs, until_all_err)
        slope = (
            self._differentiate(values, leaf, rows, len(draws) * len(aims), success)
            if gradient
            else None
        )
        return Reading(values.detach() + rank, slope, success)

    def _successes(
        self,
        x: Tensor,
        rows: Tensor,
        labels: Tensor,
        stream: Stream,
        draws: list[int],
        outputs: Mapping[str, Tensor],
        until_all_err: bool,
    ) -> tuple[Tensor, Tensor]:
        """Which images need no further step (n,), and what a point gains in rank by a success that
        is not yet one of all views.
        """
        none = torch.zeros(len(x), device=x.device)
        if not self.deterministic:
            return none.bool(), none
        logits = (
            outputs["logits"]
            if "logits" in outputs
            else self._outputs(x, rows, stream, draws, "logits")
        )
        wrong = misclassified(logits.detach()[:, 0], labels)
        if not until_all_err:
            return wrong, none
        views = [misclassified(output.detach()[:, 0], labels) for output in outputs.values()]
        return torch.stack([wrong, *views]).all(0), _RANK * wrong

    def _average(self, outputs: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        n, k = outputs.shape[:2]
        if self.randomness.average == "logits":
            return loss(outputs.mean(1), labels)
        return loss(outputs.flatten(0, 1), labels.repeat_interleave(k)).reshape(n, k).mean(1)

    def _differentiate(
        self, values: Tensor, leaf: Tensor, rows: Tensor, k: int, success: Tensor
    ) -> Tensor:
        if bool(success.all()):
            return torch.zeros_like(leaf)
        if not values.requires_grad:
            self.gradient_blocked = True
            return torch.zeros_like(leaf)
        (slope,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        self._count_backward(rows, k)
        if slope is None:
            self.gradient_blocked = True
            return torch.zeros_like(leaf)
        return torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)


class _Meter(torch.autograd.Function):
    """The identity, which reports each backward pass through it and lets no NaN out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, report: Callable[[], None]) -> Tensor:
        ctx.report = report
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        ctx.report()
        return torch.nan_to_num(slope.contiguous(), nan=0.0, posinf=0.0, neginf=0.0), None


def _nearest(x: Tensor, images: Tensor) -> Tensor:
    """Of each of x (m, ...) the index of the nearest of images (n, ...) in L2; int64 (m,)."""
    if len(x) == len(images):
        return torch.arange(len(x), device=x.device)
    with torch.no_grad():
        return torch.cdist(x.detach().flatten(1), images.flatten(1)).argmin(1)


def _join(parts: list[Reading]) -> Reading:
    slopes = [part.gradient for part in parts if part.gradient is not None]
    return Reading(
        torch.cat([part.value for part in parts]),
        torch.cat(slopes) if slopes else None,
        torch.cat([part.success for part in parts]),
    )


def predict(logits: Tensor) -> Tensor:
    """Predicted labels, int64 (...,); -1 where a logit is NaN, which is never right."""
    labels = logits.argmax(-1)
    return torch.where(torch.isnan(logits).any(-1), torch.full_like(labels, -1), labels)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient for weights inside the block, and buffers as they were after it.

    Gradients to the weights would double the cost of a backward pass. Raises `RuntimeError` if a
    forward pass changed a buffer, after putting it back: a defense that learns while it is attacked
    has no fixed function to judge.
    """
    flags = [(p, p.requires_grad) for p in module.parameters()]
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        changed = [n for n, b in module.named_buffers() if n in before and not _same(b, before[n])]
        for name in changed:
            module.get_buffer(name).copy_(before[name])
    if changed:
        raise RuntimeError(
            f"the forward pass changed the buffer {changed[0]!r}: put the model into evaluation "
            "mode"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
