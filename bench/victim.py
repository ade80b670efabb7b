"""The Victim: all that an attack may see of a defense.

It owns the gradient mode and the randomness, counts forward and backward passes per image, and says
when a success is one that stays. An attack asks it for logits, views and objectives; it never meets
the defense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.defense import DefendedClassifier, Forward, gradient_name
from bench.errors import BadInput
from bench.losses import Loss, RowLoss, misclassified, reached, value_of
from bench.maximise import Objective, Reading, Trace
from bench.noise import Noise, Stream, pack_draw, renew
from bench.randomness import Draws, Query, RandomnessModel

# Scoring draws live in a restart of their own, so that they never meet the draws of a search.
_SCORING_RESTART = 2**16 - 1
# More than a sum of losses, and little enough for float32 to tell such sums apart: a point that
# breaks the answer ranks above those that do not.
_RANK = 1e4
BASE_VIEW = "base"
"""The view that reads the undefended classifier T in the defense's place. A defense may offer a
view of this name itself.
"""
SEARCHING, _VERDICT, MERGING = range(3)
"""What scoring draws are for: to choose among the points of one search; a replayed verdict; to
choose among the points of several searches.
"""
_ONE_DRAW = Draws(Stream.ATTACK, [0])
VERDICT_DRAWS = 20
"""Draws of the stages that are not frozen, when the frozen ones are replayed for the verdict."""


MOST_VALUES = 5_000_000
"""Pixel values in one forward pass on a CPU, whatever the batch size: 33 images of 3 x 224 x 224,
whose activations take gigabytes. More at once are no faster there.
"""


class Form(AbstractContextManager[None], Protocol):
    """Inside this block a classifier computes the same up to rounding, and faster.

    Attributes:
        rounding: by how much of the largest logit others may differ beside those of the classifier
            itself where that decides about a success; 0 where as little as between kernels.
    """

    @property
    def rounding(self) -> float:
        """See above."""
        ...


class Images(Protocol):
    """The images of an evaluation, in their order; see `bench.ImageSet`."""

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Their ids, (n,)."""
        ...

    @property
    def labels(self) -> Tensor:
        """Their labels, int64 (n,)."""
        ...

    def __len__(self) -> int: ...

    def pixels(self) -> Tensor:
        """Float32 (n, C, H, W) in [0, 1]."""
        ...


@dataclass(frozen=True)
class _Aim:
    """What a search maximises.

    Attributes:
        labels: true labels of all the victim's images, int64 (n,).
        losses: a loss for each view; their sum is maximised.
        until_all_err: whether a success needs an error of every view, not of the answer alone.
        targets: what the losses are given in place of the labels, and what a success answers.
        any_wrong: whether, with targets, any wrong answer is a success.
        beyond: whether gradients are asked for at successes too.
    """

    labels: Tensor
    losses: Mapping[str, Loss | RowLoss]
    until_all_err: bool = False
    targets: Tensor | None = None
    any_wrong: bool = False
    beyond: bool = False


@dataclass(frozen=True)
class DrawReading:
    """What one query tells of each image under each of its draws.

    Attributes:
        values: the loss, (n, draws).
        gradients: its gradient to the image under each draw, (n, draws, C, H, W); None where it was
            not asked for.
        success: as in `Reading`, bool (n,).
    """

    values: Tensor
    gradients: Tensor | None
    success: Tensor


class Slopes:
    """How many gradients an attack asked for, and what became of them, by image: int64 (n,) each.

    An image that had succeeded at a query needs no gradient and is not counted there. The gradients
    of one query are averaged over its draws and count once; those of `draw_by_draw` count each.

    Attributes:
        asked: gradients that the attack asked for.
        partial: those with some entries that are not finite; the search takes 0 for these.
        lost: those without any finite entry: the search had no direction.
        zero: those that are 0 everywhere, or do not exist.
    """

    def __init__(self, n: int, device: str | torch.device) -> None:
        self.asked = torch.zeros(n, dtype=torch.int64, device=device)
        self.partial, self.lost, self.zero = (torch.zeros_like(self.asked) for _ in range(3))

    def count(self, slope: Tensor, rows: Tensor, needed: Tensor) -> Tensor:
        """Count the gradients (m, ...) of these rows where they are needed, bool or 0 and 1 (m,);
        returns them with 0 in place of what is not finite.
        """
        one = needed.to(torch.int64)
        self.asked.index_add_(0, rows, one)
        if not len(slope):
            return slope
        # Nearly always a sum tells enough: NaN and infinity pass through, and zeros sum to zero.
        least, most = slope.flatten(1).sum(1).abs().aminmax()
        if float(least) > 0 and float(most) < torch.inf:
            return slope
        largest = slope.flatten(1).abs().amax(1)
        finite = torch.isfinite(largest)
        self.zero.index_add_(0, rows, one * (largest == 0))
        if bool(finite.all()):
            return slope
        lost = ~torch.isfinite(slope).flatten(1).any(1)
        self.lost.index_add_(0, rows, one * lost)
        self.partial.index_add_(0, rows, one * (~finite & ~lost))
        return torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)

    def count_missing(self, rows: Tensor, needed: Tensor) -> None:
        """Count gradients that do not exist."""
        one = needed.to(torch.int64)
        self.asked.index_add_(0, rows, one)
        self.zero.index_add_(0, rows, one)

    def add(self, other: Slopes, rows: Tensor) -> None:
        """Count what another one counted of images that are these rows here, int64 (m,)."""
        for name, counts in other.by_name().items():
            getattr(self, name).index_add_(0, rows, counts)

    def by_name(self) -> dict[str, Tensor]:
        """The counts by their names."""
        return {name: getattr(self, name) for name in SLOPE_COUNTS}


SLOPE_COUNTS = ("asked", "partial", "lost", "zero")


@dataclass
class FoldUse:
    """What a search read under a fold.

    Attributes:
        queries: how often.
        successes: images that succeeded there, of which the classifier itself was asked.
        refuted: those that it answers otherwise.
    """

    queries: int = 0
    successes: int = 0
    refuted: int = 0


class _Known:
    """The last point of each of n images about which the classifier itself was asked."""

    def __init__(self, n: int, like: Tensor, logits: Tensor) -> None:
        self.points = like.new_full((n, *like.shape[1:]), torch.nan)
        self.logits = logits.new_zeros((n, 1, logits.shape[1]))

    def unlike(self, points: Tensor) -> Tensor:
        """Places of the images whose point it is not, int64 (m,)."""
        return (points != self.points).flatten(1).any(1).nonzero().squeeze(1)


class Victim:
    """A defended classifier under attack, for one batch of images.

    Args:
        classifier: the defended classifier, on `device`, frozen (see `frozen`).
        ids: image id of each row, (n,).
        randomness: how queries draw the randomness of the defense.
        gradient: which backward pass attacks get: `full`, or another one that the classifier
            offers.
        root: root seed of the attack.
        batch_size: most rows (images x draws) in one forward pass, where one image's draws fit.
        device: where images lie.
        base: loads the undefended classifier, on `device` and frozen, for the view `base`; None
            where the defense has none.
        fold: a quicker form of the classifier. Slopes are read there; answers, and all that makes a
            success final, never.

    Attributes:
        ids: as given.
        places: place of each row in the evaluation order, int64 (n,); the engine sets it.
        evaluated: all images of the evaluation, whatever batch this victim has, in their order; the
            engine sets it. None where nobody did.
        forwards, backwards: passes per image so far, int64 (n,); those through the base count like
            those through the defense.
        slopes: what became of the gradients that were asked for.
        trace: where objectives enter what they read, step by step; nowhere by default.
        verified: the logits (n, draws, K) behind the last answer of `verify`; None before.
        fold_use: what was read under `fold`.
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
        base: Callable[[], DefendedClassifier] | None = None,
        fold: Form | None = None,
    ) -> None:
        self.ids = ids
        self.places = np.arange(len(ids))
        self.evaluated: Images | None = None
        self.trace: Trace | None = None
        self.num_classes = classifier.num_classes
        self.stochastic = classifier.stochastic
        self.randomness = randomness or RandomnessModel()
        self.forwards = torch.zeros(len(ids), dtype=torch.int64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self._blocked = False
        self._parts_blocked: list[bool] = []
        self._numbers: dict[tuple[int, int], Tensor] = {}
        self.slopes = Slopes(len(ids), device)
        self.verified: Tensor | None = None
        self.views = classifier.views()
        self._classifier = classifier
        self._gradient = gradient
        self._transfer = gradient_name(gradient) in classifier.transfers
        self._root = root
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._base = base
        self._fold = fold
        self._still: tuple[Tensor, Noise] | None = None
        self._known: _Known | None = None
        self.fold_use = FoldUse()

    @property
    def gradient_blocked(self) -> bool:
        """Whether some gradient did not exist at all (no path from the objective to the image); of
        several attacks in one, whether that holds of each that asked for any.
        """
        return self._blocked or (bool(self._parts_blocked) and all(self._parts_blocked))

    @contextmanager
    def part(
        self, rows: Tensor, gradient: str | None = None, *, of_base: bool = False
    ) -> Iterator[Victim]:
        """The victim of some of its images, for an attack inside an attack.

            with victim.part(rows, "bpda") as seen:
                points = attack.run(seen, images[rows], labels[rows], threat)

        Randomness and seeds are the same; passes and slopes are counted here too once the block
        ends.

        Args:
            rows: which images, int64 (m,).
            gradient: another one that the classifier offers; the same by default.
            of_base: the undefended classifier in the defense's place. As with a gradient of another
                function, no success there is final.

        Raises `BadInput` for the base of a defense that has none.
        """
        places = rows.cpu().numpy()
        seen = Victim(
            self._base_classifier() if of_base else self._classifier,
            self.ids[places],
            randomness=self.randomness,
            gradient="full" if of_base else gradient or self._gradient,
            root=self._root,
            batch_size=self._batch_size,
            device=self._device,
            base=self._base,
            fold=None if of_base else self._fold,
        )
        seen.places, seen.evaluated = self.places[places], self.evaluated
        seen.fold_use = self.fold_use
        seen._transfer |= of_base
        if self.trace is not None:
            seen.trace = self.trace.part(rows, len(self._parts_blocked))
        yield seen
        self.forwards.index_add_(0, rows, seen.forwards)
        self.backwards.index_add_(0, rows, seen.backwards)
        self.slopes.add(seen.slopes, rows)
        if seen.gradient_blocked or bool(seen.backwards.any()):
            self._parts_blocked.append(seen.gradient_blocked)

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
        return self._noise(rows, Draws(Stream.ATTACK, [pack_draw(restart, 0)])).at("attacker")

    def logits(self, x: Tensor, rows: Tensor, query: Query, view: str = "logits") -> Tensor:
        """Outputs for the draws of one query, without gradient: (n, draws, ...).

        Where the gradient belongs to another function (`transfers`), they are that function's.

        Args:
            x: images (n, C, H, W).
            rows: which of the victim's images these are, int64 (n,).
            query: names the draws.
            view: which output; one of `views`, or `base`: the logits of the undefended classifier.

        Raises `BadInput` for the view `base` of a defense that has none.
        """
        return self._outputs(x, rows, self._draws(query), view)

    def searched_logits(self, x: Tensor, rows: Tensor, query: Query, labels: Tensor) -> Tensor:
        """As `logits`, for a search that looks for wrong answers.

        They may come from a quick form of the classifier, but for those that are wrong there, or
        may be: these are the classifier's own.

        Args:
            x, rows, query: as for `logits`.
            labels: true labels of all the victim's images, int64 (n,).
        """
        draws = self._draws(query)
        if not self.deterministic or len(draws.numbers) > 1 or self._fold is None:
            return self._outputs(x, rows, draws, "logits")
        with self._folded(gradient=True):
            logits = self._outputs(x, rows, draws, "logits")
        classes = labels[rows]
        wrong = misclassified(logits[:, 0], classes)
        wrong = self._or_near(wrong, logits[:, 0], classes, misclassified)
        asked = wrong.nonzero().squeeze(1)
        if len(asked):
            own = self._outputs(x[asked], rows[asked], draws, "logits")
            stands = misclassified(own[:, 0], classes[asked])
            self._remember(x[asked], rows[asked], own[:, 0])
            self.fold_use.successes += len(asked)
            self.fold_use.refuted += int((~stands).sum())
            logits[asked] = own
        return logits

    def objective(
        self,
        labels: Tensor,
        loss: Loss | RowLoss,
        *,
        rows: Tensor | None = None,
        restart: int = 0,
        view: str = "logits",
        targets: Tensor | None = None,
        any_wrong: bool = False,
    ) -> Objective:
        """The mean of `loss(output, labels)` over a query's draws, to be maximised by `ascend`.

        Under `average=logits` the loss of the mean output instead. A success is final only where
        the function is deterministic given its key; elsewhere one draw proves nothing.

        Args:
            labels: true labels of all the victim's images, int64 (n,).
            loss: takes the view's output and the labels; a `RowLoss` the rows as well.
            rows: the images to work on; all by default.
            restart: number of the restart, part of the key of every draw.
            view: the output that `loss` reads. Success is always read off the logits.
            targets: classes that all the victim's images are to become, int64 (n,). `loss` is given
                them in place of the labels, and a success is an image that is answered with its
                target. A point that is wrong otherwise ranks above all where the answer is right,
                but the search goes on, unless `any_wrong`.
            any_wrong: whether, with targets, any wrong answer is a success.
        """
        return self.joint(
            labels, {view: loss}, rows=rows, restart=restart, targets=targets, any_wrong=any_wrong
        )

    def joint(
        self,
        labels: Tensor,
        aims: Mapping[str, Loss | RowLoss],
        *,
        rows: Tensor | None = None,
        restart: int = 0,
        until_all_err: bool = False,
        targets: Tensor | None = None,
        any_wrong: bool = False,
    ) -> Objective:
        """The sum of losses over several views, each as in `objective`.

        Args:
            labels, rows, restart, targets, any_wrong: as in `objective`.
            aims: a loss for each view; the view `base` is that of the undefended classifier at the
                attacked image, of which no success is asked.
            until_all_err: a success is an image that every view and the answer get wrong, so that
                the search goes on where the answer alone is wrong; such a point still ranks above
                all where the answer is right. The views must be logits.
        """
        return self._reading(_Aim(labels, aims, until_all_err, targets, any_wrong), rows, restart)

    def objective_beyond(
        self,
        labels: Tensor,
        loss: Loss | RowLoss,
        *,
        rows: Tensor | None = None,
        restart: int = 0,
    ) -> Objective:
        """As `objective`, for a search that goes on behind its successes: they have gradients too.

        Elsewhere the gradient of an image that has succeeded is 0 or not, as its batch happens to
        be.
        """
        return self._reading(_Aim(labels, {"logits": loss}, beyond=True), rows, restart)

    def _reading(self, aim: _Aim, rows: Tensor | None, restart: int) -> Objective:
        """What a search reads of these rows; all by default."""
        chosen = torch.arange(len(self.ids), device=self._device) if rows is None else rows

        def read(x: Tensor, rows: Tensor, iteration: int, gradient: bool) -> Reading:
            draws, own = self._draws(Query(restart, iteration)), chosen[rows]
            size = self._chunk(draws, x)
            if len(x) <= size:
                joined = self._read(x, own, draws, aim, gradient)
            else:
                chunks = zip(x.split(size), own.split(size), strict=True)
                joined = _join([self._read(*chunk, draws, aim, gradient) for chunk in chunks])
            if self.trace is not None:
                self.trace.add(restart, own, joined)
            return joined

        return read

    def _chunk(self, draws: Draws, x: Tensor) -> int:
        """How many of the images x go into one forward pass, each under all draws of a query."""
        rows = self._batch_size
        if self._device.type == "cpu" and len(x):
            rows = min(rows, MOST_VALUES // x[0].numel())
        return max(1, rows // len(draws.numbers))

    def draw_by_draw(
        self,
        x: Tensor,
        rows: Tensor,
        labels: Tensor,
        loss: Loss,
        query: Query,
        *,
        draws: int,
        gradient: bool = True,
    ) -> DrawReading:
        """A loss and its gradient under every draw of a query, not averaged.

        Args:
            x: images (n, C, H, W).
            rows: which of the victim's images these are, int64 (n,).
            labels: true labels of all the victim's images, int64 (n,).
            loss: of the logits.
            query: names the draws.
            draws: how many, under fresh randomness; elsewhere the randomness model says it, and a
                deterministic defense has one.
            gradient: whether gradients are wanted.
        """
        drawn = self._draws(query)
        if self.stochastic and not self.randomness.fixed and self.randomness.k == 1:
            numbers = [pack_draw(query.restart, query.iteration, j) for j in range(draws)]
            drawn = Draws(Stream.ATTACK, numbers)
        size = self._chunk(drawn, x)
        readings = [
            self._read_draws(x_chunk, row_chunk, labels, loss, drawn, gradient)
            for x_chunk, row_chunk in zip(x.split(size), rows.split(size), strict=True)
        ]
        slopes = [one.gradients for one in readings if one.gradients is not None]
        return DrawReading(
            torch.cat([one.values for one in readings]),
            torch.cat(slopes) if slopes else None,
            torch.cat([one.success for one in readings]),
        )

    def _read_draws(
        self, x: Tensor, rows: Tensor, labels: Tensor, loss: Loss, draws: Draws, gradient: bool
    ) -> DrawReading:
        """One chunk of `draw_by_draw`."""
        n, k = len(x), len(draws.numbers)
        every = rows.repeat_interleave(k)
        leaf = x.detach().repeat_interleave(k, 0).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            forward = self._pass(self._gradient, "logits")
            with self._folded(gradient):
                output = forward(leaf, self._noise(rows, draws)).float()
            self.forwards.index_add_(0, rows, self._filled(rows, k))
            values = loss(output, labels[every])
        success = torch.zeros(n, dtype=torch.bool, device=x.device)
        if self.deterministic:
            logits = output.detach()
            success = misclassified(logits, labels[rows])
            if gradient:
                success = self._or_near(success, logits, labels[rows], misclassified)
                success = self._confirmed(success, x, rows, draws, labels, misclassified)
        slopes = None
        if gradient:
            slope = self._differentiate(values, leaf, every, ~success.repeat_interleave(k))
            if slope is not None:
                self._count_backward(rows, k)
            slope = torch.zeros_like(leaf) if slope is None else slope
            slopes = slope.reshape(n, k, *x.shape[1:])
        return DrawReading(values.detach().reshape(n, k), slopes, success)

    def score(
        self,
        x: Tensor,
        rows: Tensor,
        labels: Tensor,
        loss: Loss,
        draws: int,
        *,
        purpose: int = SEARCHING,
    ) -> Tensor:
        """Mean loss over `draws` fresh draws, the same for every candidate; (n,).

        To choose between candidates under fresh randomness, where the losses seen during a search
        favour chance hits. Draws of another `purpose` are others.
        """
        numbers = [pack_draw(_SCORING_RESTART, purpose, j) for j in range(draws)]
        outputs = self._outputs(x, rows, Draws(Stream.ATTACK, numbers), "logits")
        flat = loss(outputs.flatten(0, 1), labels[rows].repeat_interleave(draws))
        return flat.reshape(len(x), draws).mean(1)

    def verify(self, points: Tensor) -> Tensor:
        """Predicted labels of the final points on the native forward pass, int64 (n, draws).

        Under fresh randomness there is nothing to repeat: the result is of shape (n, 0).
        """
        if self.stochastic and not self.randomness.has_fixed_noise:
            return torch.empty(len(points), 0, dtype=torch.int64, device=points.device)
        rows = torch.arange(len(points), device=self._device)
        asked = rows if self._known is None else self._known.unlike(points)
        outputs = self._outputs(points[asked], asked, self._verdict_draws(), "logits", native=True)
        if self._known is not None:
            outputs = self._known.logits.index_copy(0, asked, outputs)
        self.verified = outputs
        return predict(self.verified)

    def as_function(self, images: Tensor) -> PlainFunction:
        """The victim as a plain differentiable function, (m, C, H, W) to logits (m, K), for attacks
        of other libraries.

        Such an attack does not say which images it asks about: they are recognised by the clean
        one that is near, among `images` (n, C, H, W), the victim's, for the counters alone. Each
        call is one query; under several draws it returns their mean logits.
        Raises `RuntimeError` for a stochastic victim of several images, whose draws are keyed by
        image.
        """
        if self.stochastic and len(images) > 1:
            raise RuntimeError(
                "a stochastic victim is a function of one image: hand it over image by image"
            )
        calls, recognised = count(), _Recognised(images)
        forward = self._pass(self._gradient, "logits")
        rows, noise = torch.empty(0, dtype=torch.int64), None

        def answer(x: Tensor, draws: Draws) -> Tensor:
            outputs = self._forward(forward, x, rows, draws, noise)
            return outputs[:, 0] if len(draws.numbers) == 1 else outputs.mean(1)

        def function(x: Tensor) -> Tensor:
            nonlocal rows, noise
            draws = self._draws(Query(0, next(calls))) if self.stochastic else _ONE_DRAW
            before, rows = rows, recognised(x)
            if noise is None or rows is not before or not self.fixed:
                noise = self._noise(rows, draws)
            else:
                renew(noise)
            if not (torch.is_grad_enabled() and x.requires_grad):
                return answer(x, draws)
            seen, zero = _Meter.apply(x, partial(self._metered, rows, len(draws.numbers)))
            output = answer(seen, draws)
            self._blocked |= not output.requires_grad
            joined: Tensor = output + zero
            return joined

        return PlainFunction(function, recognised)

    def _metered(self, rows: Tensor, draws: int, slope: Tensor) -> Tensor:
        """Count a backward pass that another library ran, and what came of it."""
        self._count_backward(rows, draws)
        # Such a library tells no successes.
        return self.slopes.count(slope, rows, self._filled(rows, 1))

    def _count_backward(self, rows: Tensor, draws: int) -> None:
        self.backwards.index_add_(0, rows, self._filled(rows, draws))

    def _filled(self, rows: Tensor, value: int) -> Tensor:
        """A number for each row, int64 (n,); made once, since libraries ask thousands of times."""
        known = self._numbers.get((len(rows), value))
        if known is None:
            known = self._numbers[len(rows), value] = torch.full_like(rows, value)
        return known

    def _draws(self, query: Query) -> Draws:
        return self.randomness.draws(query) if self.stochastic else _ONE_DRAW

    def _verdict_draws(self) -> Draws:
        """The fixed noise; for stages that are not frozen, draws that no search has seen."""
        if self.stochastic and self.randomness.freeze:
            numbers = [pack_draw(_SCORING_RESTART, _VERDICT, j) for j in range(VERDICT_DRAWS)]
            return Draws(Stream.ATTACK, numbers)
        return self._draws(Query())

    def _noise(self, rows: Tensor, draws: Draws) -> Noise:
        """One row for each image under each draw."""
        if draws is not _ONE_DRAW:
            return self._drawn(rows, draws)
        # A search asks a deterministic defense about the same images again and again.
        if self._still is None or not torch.equal(self._still[0], rows):
            self._still = rows, self._drawn(rows, draws)
        renew(self._still[1])
        return self._still[1]

    def _drawn(self, rows: Tensor, draws: Draws) -> Noise:
        ids = np.repeat(self.ids[rows.cpu().numpy()], len(draws.numbers))
        if self.randomness.name == "common" and draws.stream is Stream.FIXED:
            ids = np.zeros_like(ids)
        numbers = np.tile(np.asarray(draws.numbers, dtype=np.uint64), len(rows))
        stages = self.randomness.freeze if draws.stream is Stream.ATTACK else ()
        noise = Noise.of(self._root, draws.stream, ids, numbers, self._device, stages)
        return noise.at("forward")

    def _pass(self, gradient: str, view: str) -> Forward:
        """The defense's forward pass to a view, or the base's to its logits."""
        if view != BASE_VIEW or view in self.views:
            return self._classifier.forward_pass(gradient, view)
        base = self._base_classifier()
        # The base is a function of its own: a gradient that the defense alone offers is not its.
        return base.forward_pass(gradient if gradient_name(gradient) in base.gradients else "full")

    def _base_classifier(self) -> DefendedClassifier:
        if self._base is None:
            raise BadInput(
                "the view 'base' reads the undefended classifier, and this defense has none: use "
                "another view"
            )
        return self._base()

    def _outputs(
        self, x: Tensor, rows: Tensor, draws: Draws, view: str, *, native: bool = False
    ) -> Tensor:
        """Outputs without gradient, (n, draws, ...)."""
        if not len(x) and view == "logits":
            # Not every defense takes an empty batch.
            return x.new_zeros(0, len(draws.numbers), self.num_classes)
        gradient = self._gradient if self._transfer and not native else "full"
        forward, size = self._pass(gradient, view), self._chunk(draws, x)
        with torch.no_grad():
            if len(x) <= size:
                return self._forward(forward, x, rows, draws)
            outputs = [
                self._forward(forward, x_chunk, row_chunk, draws)
                for x_chunk, row_chunk in zip(x.split(size), rows.split(size), strict=True)
            ]
        return torch.cat(outputs)

    def _forward(
        self, forward: Forward, x: Tensor, rows: Tensor, draws: Draws, noise: Noise | None = None
    ) -> Tensor:
        """One counted forward pass of every image under every draw: (n, draws, ...)."""
        k = len(draws.numbers)
        repeated = x.repeat_interleave(k, 0) if k > 1 else x
        output = forward(repeated, self._noise(rows, draws) if noise is None else noise).float()
        self.forwards.index_add_(0, rows, self._filled(rows, k))
        return output.reshape(len(x), k, *output.shape[1:])

    def _read(self, x: Tensor, rows: Tensor, draws: Draws, aim: _Aim, gradient: bool) -> Reading:
        """Value, gradient and success at `x`; `rows` are places among all the victim's images."""
        leaf = x.detach().requires_grad_(gradient)
        labels = (aim.labels if aim.targets is None else aim.targets)[rows]
        with torch.set_grad_enabled(gradient):
            passes = {v: self._pass(self._gradient, v) for v in aim.losses}
            with self._folded(gradient):
                outputs = {v: self._forward(p, leaf, rows, draws) for v, p in passes.items()}
            losses = [
                self._mean_loss(outputs[v], labels, rows, loss) for v, loss in aim.losses.items()
            ]
            values = losses[0] if len(losses) == 1 else torch.stack(losses).sum(0)
        success, rank = self._successes(x, rows, draws, aim, outputs, gradient)
        slope = None
        if gradient:
            slope = self._differentiate(values, leaf, rows, ~success | aim.beyond)
            if slope is None:
                slope = torch.zeros_like(leaf)
            else:
                self._count_backward(rows, len(draws.numbers) * len(aim.losses))
        return Reading(values.detach() + rank, slope, success)

    def _successes(
        self,
        x: Tensor,
        rows: Tensor,
        draws: Draws,
        aim: _Aim,
        outputs: Mapping[str, Tensor],
        gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """Which images need no further step (n,), and what a point gains in rank (n,); outputs are
        those of passes whose gradient is asked, or not.

        A point gains rank by an error of the answer that is not yet one of all views, or not yet
        the target.
        """
        none = torch.zeros(len(x), device=x.device)
        if not self.deterministic:
            return none.bool(), none
        logits = outputs.get("logits")
        if logits is None:
            logits, gradient = self._outputs(x, rows, draws, "logits"), False
        labels, rank = aim.labels[rows], none
        wrong = misclassified(logits.detach()[:, 0], labels)
        decided: Loss = misclassified
        classes, success = aim.labels, wrong
        if aim.targets is not None and not aim.any_wrong:
            decided, classes, rank = reached, aim.targets, _RANK * wrong
            success = reached(logits.detach()[:, 0], classes[rows])
        if gradient:
            success = self._or_near(success, logits.detach()[:, 0], classes[rows], decided)
        if decided is misclassified and aim.until_all_err:
            asked = [o for view, o in outputs.items() if view != BASE_VIEW or view in self.views]
            views = [misclassified(output.detach()[:, 0], labels) for output in asked]
            success, rank = torch.stack([success, *views]).all(0), _RANK * wrong
        if gradient:
            success = self._confirmed(success, x, rows, draws, classes, decided)
        return success, rank

    def _or_near(self, success: Tensor, logits: Tensor, classes: Tensor, decided: Loss) -> Tensor:
        """These successes (n,), and those whose logits (n, K), read in a quicker form, leave open
        what the classifier itself says.
        """
        unit = self._fold.rounding if self._fold is not None else 0.0
        if not unit:
            return success
        slack = unit * logits.abs().amax(1, keepdim=True)
        moved = slack if decided is reached else -slack
        return success | decided(logits.scatter_add(1, classes[:, None], moved), classes)

    def _folded(self, gradient: bool) -> AbstractContextManager[None]:
        """Where outputs are computed of which gradients are asked, or not."""
        if not gradient or self._fold is None:
            return nullcontext()
        self.fold_use.queries += 1
        return self._fold

    def _confirmed(
        self,
        success: Tensor,
        x: Tensor,
        rows: Tensor,
        draws: Draws,
        classes: Tensor,
        decided: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Those of these successes (n,) that the classifier itself confirms, by one counted forward
        pass each; all where nothing was folded.
        """
        if self._fold is None or not bool(success.any()):
            return success
        chosen = success.nonzero().squeeze(1)
        logits = self._outputs(x[chosen], rows[chosen], draws, "logits")[:, 0]
        stands = decided(logits, classes[rows[chosen]])
        self._remember(x[chosen], rows[chosen], logits)
        self.fold_use.successes += len(chosen)
        self.fold_use.refuted += int((~stands).sum())
        success = success.clone()
        success[chosen] = stands
        return success

    def _remember(self, x: Tensor, rows: Tensor, logits: Tensor) -> None:
        """That a deterministic defense answered these points (n, C, H, W) with these logits (n, K),
        which a later question about the same points need not ask again. Of several points of an
        image that are told at once the first counts.
        """
        if self.stochastic or self._transfer:
            return
        first = _first_of_each(rows, len(self.ids))
        x, rows, logits = x[first], rows[first], logits[first]
        if self._known is None:
            self._known = _Known(len(self.ids), x, logits)
        self._known.points[rows], self._known.logits[rows, 0] = x.detach(), logits

    def _mean_loss(
        self, outputs: Tensor, labels: Tensor, rows: Tensor, loss: Loss | RowLoss
    ) -> Tensor:
        """The loss of outputs (n, k, ...) averaged over k draws, or of the averaged output:
        (n,).
        """
        n, k = outputs.shape[:2]
        if k == 1:
            return value_of(loss, outputs[:, 0], labels, rows)
        if self.randomness.average == "logits":
            return value_of(loss, outputs.mean(1), labels, rows)
        every = (one.repeat_interleave(k) for one in (labels, rows))
        return value_of(loss, outputs.flatten(0, 1), *every).reshape(n, k).mean(1)

    def _differentiate(
        self, values: Tensor, leaf: Tensor, rows: Tensor, needed: Tensor
    ) -> Tensor | None:
        """The gradient of the values to the images; None where no backward pass was run."""
        if not bool(needed.any()):
            return None
        if not values.requires_grad:
            self._blocked = True
            self.slopes.count_missing(rows, needed)
            return None
        # Of the sum: for a gradient of several values torch loads its algebra of symbols first.
        (slope,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        if slope is None:
            self._blocked = True
            self.slopes.count_missing(rows, needed)
            return torch.zeros_like(leaf)
        return self.slopes.count(slope, rows, needed)


def _first_of_each(rows: Tensor, n: int) -> Tensor:
    """Where each of these rows of n stands first, int64 (m,): writing to a row twice at once leaves
    open which of the two is there afterwards.
    """
    places = torch.arange(len(rows), device=rows.device)
    first = torch.full((n,), len(rows), device=rows.device)
    first.scatter_reduce_(0, rows, places, "amin")
    return (first[rows] == places).nonzero().squeeze(1)


class _Meter(torch.autograd.Function):
    """The identity, which reports each backward pass through it and lets through what the report
    makes of it.

    Its second output is a zero. What is added to it has a gradient, of zero where a defense blocks
    all others, so that autograd does not refuse it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, report: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        ctx.report, ctx.shape = report, x.shape
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None, zero: Tensor) -> tuple[Tensor, None]:
        if slope is None:
            return zero.new_zeros(ctx.shape), None
        return ctx.report(slope.contiguous()), None


class PlainFunction:
    """What `Victim.as_function` returns: (m, C, H, W) to logits (m, K)."""

    def __init__(self, function: Callable[[Tensor], Tensor], recognised: _Recognised) -> None:
        self._function, self._recognised = function, recognised

    def __call__(self, x: Tensor) -> Tensor:
        return self._function(x)

    def expect(self, rows: Tensor) -> None:
        """Say that until the next word all points are made of these images, int64 (m,), in their
        order, and of fewer and fewer of them: then nobody needs to look whose they are.
        """
        self._recognised.expect(rows)


_SAMPLE = 64
"""Pixels by which images are told apart."""


class _Recognised:
    """Which of `images` (n, ...) each of some points is made of, for the counters alone.

    To look whether points are those of the call before costs next to nothing: in the pixels that
    differ most between the images, a point that is nearer to its image than half way to the next
    one is no other's. Elsewhere the nearest in L2 counts.
    """

    def __init__(self, images: Tensor) -> None:
        self._flat = images.flatten(1)
        self._all = torch.arange(len(images), device=images.device)
        self._expects = False
        self._rows = self._group = self._all

    def expect(self, rows: Tensor) -> None:
        """See `PlainFunction.expect`."""
        self._rows = self._group = rows
        self._expects = True

    @cached_property
    def _sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Some pixels, the images there (n, s), and half the way from each to the next, (n,)."""
        spread = self._flat.amax(0) - self._flat.amin(0)
        pixels = spread.argsort(descending=True, stable=True)[:_SAMPLE]
        values = self._flat[:, pixels]
        gaps = torch.stack([(values - one).abs().amax(1) for one in values])
        return pixels, values, gaps.fill_diagonal_(torch.inf).amin(1) / 2

    def __call__(self, x: Tensor) -> Tensor:
        """Indices of the images, int64 (m,); the same object where they are those of the call
        before.
        """
        if len(x) == len(self._group):
            self._rows = self._group
        elif len(x) != len(self._rows) or not (self._expects or self._are_near(x.detach())):
            group = self._group
            nearest = torch.cdist(x.detach().flatten(1), self._flat[group]).argmin(1)
            self._rows = group[nearest]
        return self._rows

    def _are_near(self, x: Tensor) -> bool:
        pixels, values, reach = self._sample
        far = (x.flatten(1)[:, pixels] - values[self._rows]).abs().amax(1)
        return bool((far < reach[self._rows]).all())


def _join(readings: list[Reading]) -> Reading:
    slopes = [one.gradient for one in readings if one.gradient is not None]
    return Reading(
        torch.cat([one.value for one in readings]),
        torch.cat(slopes) if slopes else None,
        torch.cat([one.success for one in readings]),
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
        now = dict(module.named_buffers())
        changed = [n for n, b in before.items() if n not in now or not _same(now[n], b)]
        for name in changed:
            _put_back(module, name, before[name])
    if changed:
        raise RuntimeError(
            f"the forward pass changed the buffer {changed[0]!r}: put the model into evaluation "
            "mode"
        )


def _put_back(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a buffer the value it had, whatever became of it."""
    owner, _, leaf = name.rpartition(".")
    buffers = module.get_submodule(owner)._buffers
    now = buffers.get(leaf)
    if now is None or now.shape != value.shape:
        buffers[leaf] = value
    else:
        now.copy_(value)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
