"""What an evaluation will cost, before it runs: passes from the attack's own count, seconds from a
short calibration of the defense that will be attacked.

All is counted as if every image survived. An image that breaks early costs less, so what is told is
the most that is to be expected, and not what a weak defense will take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from bench.attack import Passes
from bench.defense import DefendedClassifier, Need
from bench.engine.build import build
from bench.engine.evaluation import Evaluation
from bench.engine.execution import Execution, exact_float32
from bench.models.sketch import operations, sketches
from bench.noise import Noise, Stream, isolated
from bench.storage.artifacts import only_stored
from bench.storage.missing import DECLARED
from bench.victim import frozen

CALIBRATION_SECONDS = 2.0
_LEAST_SECONDS = 0.25
_COLD_SECONDS = 2.0
"""A first pass is taken again where it took no longer."""
_MOST_SECONDS = 10.0
"""No defense is begun to be timed after that."""
_COUNTED_WITHIN = 0.1
"""Operations are counted where one image's forward pass takes so many seconds at most."""

GPU_FLOPS = 20e12
"""Operations a second that a GPU of the H100 class is taken to reach in float32: 30 % of the 67e12
that its maker names. Said wherever a number rests on it.
"""


@dataclass(frozen=True)
class Pace:
    """How fast one image goes through a defense under one draw.

    Attributes:
        forward: seconds of a forward pass; None where weights are missing, so that none can be
            timed.
        backward: seconds that its backward pass to the image takes beside it; 0 where there is no
            gradient, None like `forward`.
        flops: operations of a forward pass; None where torch could not count them or
            it would take long. A backward pass to the image takes as many: each layer's gradient to
            its input is a product of the same size.
        built: whether the defense itself was timed, and not the classifier that it protects.
    """

    forward: float | None
    backward: float | None
    flops: float | None = None
    built: bool = True

    def seconds(self, passes: Passes) -> float | None:
        """Of so many passes."""
        if self.forward is None or self.backward is None:
            return None
        return passes.forward * self.forward + passes.backward * self.backward

    def gpu_hours(self, passes: Passes) -> float | None:
        """Of so many passes, on one GPU that reaches `GPU_FLOPS`."""
        return None if self.flops is None else passes.total * self.flops / GPU_FLOPS / 3600


@dataclass(frozen=True)
class Cost:
    """What an evaluation costs where every image survives.

    Attributes:
        each: passes of one image; None where the attack does not know before it runs.
        total: of all images.
        seconds: on the calibrated device, in one process.
        gpu_hours: see `Pace.gpu_hours`.
        built: see `Pace`.
    """

    each: Passes | None
    total: Passes | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    built: bool = True


def cost(evaluation: Evaluation, pace: Pace | None = None) -> Cost:
    """What an evaluation costs, at this pace."""
    each = passes_of(evaluation)
    if each is None:
        return Cost(None)
    total = each * len(evaluation.setup.images)
    if pace is None:
        return Cost(each, total)
    return Cost(each, total, pace.seconds(total), pace.gpu_hours(total), pace.built)


def passes_of(evaluation: Evaluation) -> Passes | None:
    """Passes of one image that survives: the attack's under the draws of each query, the judge's
    and that of the check; None where the attack does not know them before it runs.
    """
    attack = evaluation.attack.plugin.passes(evaluation.setup.classifier.num_classes)
    if attack is None:
        return None
    draws = evaluation.randomness.k if evaluation.stochastic else 1
    # Clean image and point are judged; a copy that has seen nothing answers the point once more.
    return attack * draws + Passes(2 * evaluation.judged_draws + 1)


def paces(evaluations: Sequence[Evaluation], execution: Execution) -> dict[str, Pace]:
    """By id, the pace of each evaluation; each defense is timed once, all of them together within
    some seconds. Those that there is no time for are left out. Where weights are missing, the
    operations of their networks are counted, and nothing is timed.

    A defense is built for it, unless it must train for that or look at test images: then the
    classifier that it protects is timed in its place.
    """
    measured = _counted([one for one in evaluations if DECLARED in str(one.identity)], execution)
    of: dict[tuple[object, ...], list[Evaluation]] = {}
    for one in evaluations:
        if one.id in measured:
            continue
        key = (one.setup.classifier_sha, one.setup.images.sha256, one.defense.spec, one.gradient)
        of.setdefault((*key, one.build_seed), []).append(one)
    each = max(_LEAST_SECONDS, CALIBRATION_SECONDS / max(1, len(of)))
    ends = perf_counter() + _MOST_SECONDS
    for same in of.values():
        if perf_counter() > ends:
            break
        pace = _pace(same[0], execution, each)
        measured.update({one.id: pace for one in same})
    return measured


def _counted(evaluations: Sequence[Evaluation], execution: Execution) -> dict[str, Pace]:
    """By id, the paces of those evaluations that pass through a network without its weights."""
    # A forward pass has as many operations whatever the gradient, the seed and the ball.
    known: dict[tuple[object, ...], Pace | None] = {}
    paces = {}
    for one in evaluations:
        key = (one.setup.classifier_sha, tuple(one.setup.images.images.shape[1:]), one.defense.spec)
        if key not in known:
            defended, built = _built(one, execution.device)
            pixels = one.setup.images.first(1).pixels().to(execution.device)
            passes = _Passes(defended, pixels, "full") if sketches(defended) else None
            known[key] = Pace(None, None, passes.flops(), built) if passes else None
        pace = known[key]
        if pace is not None:
            paces[one.id] = pace
    return paces


def _pace(evaluation: Evaluation, execution: Execution, seconds: float) -> Pace:
    images = evaluation.setup.images.first(min(execution.batch_size, len(evaluation.setup.images)))
    pixels = images.pixels().to(execution.device)
    defended, built = _built(evaluation, execution.device)
    gradient = evaluation.gradient if built else "full"
    return calibrate(defended, pixels, gradient, seconds=seconds, built=built)


def _built(evaluation: Evaluation, device: torch.device) -> tuple[DefendedClassifier, bool]:
    """The defense, or the classifier where building it is work of its own; and which it is."""
    needs, classifier = evaluation.defense.plugin.needs, evaluation.setup.classifier
    # A network without its weights cannot be trained on either.
    trains = Need.TRAINING_DATA in needs and sketches(classifier)
    if Need.UNLABELLED_TEST not in needs and not trains:
        try:
            with only_stored():
                return build(evaluation, device), True
        # Whatever goes wrong is told when the evaluation runs.
        except Exception:
            pass
    return classifier.to(device), False


def calibrate(
    defended: DefendedClassifier,
    images: Tensor,
    gradient: str = "full",
    *,
    seconds: float = CALIBRATION_SECONDS,
    built: bool = True,
) -> Pace:
    """Time a defense on these images (n, C, H, W), in batches that grow up to all of them.

    The fastest batch counts: what else the machine does only adds. It sees images, so give a copy
    of what will be attacked where it might remember them.
    """
    run = _Passes(defended, images, gradient)
    with frozen(defended), isolated(0), exact_float32(images.device):
        ends = perf_counter() + seconds
        timed = run.timed(1)
        if sum(timed) <= _COLD_SECONDS:
            # What a process does for the first time takes many times as long.
            timed = run.timed(1)
        fastest = timed
        # Counting makes each operation many times as long: not through a chain of networks.
        flops = run.flops() if timed[0] <= _COUNTED_WITHIN else None
        rows = 1
        while True:
            left = ends - perf_counter()
            more = min(2 * rows, len(images))
            if left < rows * sum(timed) or (more == rows and left < seconds / 2):
                break
            # A larger batch only where there is time for it.
            rows = more if left > more * sum(timed) else rows
            timed = run.timed(rows)
            fastest = min(fastest[0], timed[0]), min(fastest[1], timed[1])
    forward, both = fastest
    return Pace(forward, max(0.0, both - forward), flops, built)


class _Passes:
    """Passes of the first few of some images."""

    def __init__(self, defended: DefendedClassifier, images: Tensor, gradient: str) -> None:
        self._defended, self._images, self._gradient = defended, images, gradient

    def timed(self, rows: int) -> tuple[float, float]:
        """Seconds an image of a forward pass, and of a forward and a backward pass."""
        return self._clock(self._forward, rows) / rows, self._clock(self._both, rows) / rows

    def flops(self) -> float | None:
        """Operations of the forward pass of one image; None where torch cannot count them."""
        from torch.utils.flop_counter import FlopCounterMode

        try:
            with operations() as sketched:
                if all(part.is_meta for part in self._defended.parameters()):
                    self._forward(1)
                    return sum(sketched)
                # The first pass through a sketch is one through its structure.
                self._forward(1)
                sketched.clear()
                with FlopCounterMode(display=False) as counter:
                    self._forward(1)
        except Exception:
            return None
        return float(counter.get_total_flops()) + sum(sketched)

    def _clock(self, run: Callable[[int], object], rows: int) -> float:
        self._wait()
        began = perf_counter()
        run(rows)
        self._wait()
        return perf_counter() - began

    def _wait(self) -> None:
        if self._images.is_cuda:
            torch.cuda.synchronize(self._images.device)

    def _noise(self, rows: int) -> Noise:
        return Noise.of(0, Stream.ATTACK, range(rows), device=self._images.device)

    def _forward(self, rows: int) -> None:
        with torch.no_grad():
            self._defended(self._images[:rows], self._noise(rows))

    def _both(self, rows: int) -> None:
        leaf = self._images[:rows].clone().requires_grad_(True)
        output = self._defended.forward_pass(self._gradient)(leaf, self._noise(rows))
        if output.requires_grad:
            torch.autograd.grad(output.sum(), leaf, allow_unused=True)
