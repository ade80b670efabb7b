"""Checks of a classifier or defense before it is attacked; each looks at a few images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from bench.checks.alike import alike, rounding
from bench.defense import DefendedClassifier, gradient_name
from bench.errors import BadInput, one_line
from bench.losses import cross_entropy
from bench.models.classifier import Classifier
from bench.models.foreign import copied, dtypes, mixes_images
from bench.models.nets import wrong_classes
from bench.noise import Noise, Stream, generators, isolated
from bench.results.findings import Finding

_PROBE_SEED = 20_000_000_003
_BATCH_TOLERANCE = 1e-3
_SUM_TOLERANCE = 1e-3
_BOUNDARY_PIXELS = 100


def probe(classifier: Classifier, images: Tensor) -> None:
    """Find out how a network wants to be run, and set that on the classifier.

    - `stochastic`, where its forward pass reads a global generator (an opaque stochastic model);
    - `takes`, where it takes other numbers than float32;
    - `doubles_one`, where it cannot answer a single image;
    - `alone`, where it mixes the images of a batch by design.

    The passes are those of a copy where one can be made: a network that remembers images has then
    seen none.

    Raises `BadInput` where it does not run at all, or does not return one row of K logits an image.
    """
    tried = _copy(classifier)
    _find_out(tried, images)
    for name in {"alone", "takes", "doubles_one", "stochastic"} & set(vars(tried)):
        setattr(classifier, name, getattr(tried, name))


def _copy(classifier: Classifier) -> Classifier:
    """A copy, or the classifier itself: where it cannot be copied, and where its weights are only
    made in its first pass.
    """
    if any(isinstance(one, UninitializedParameter) for one in classifier.parameters()):
        return classifier
    try:
        return copied(classifier)
    except Exception:
        return classifier


def _find_out(classifier: Classifier, images: Tensor) -> None:
    network = classifier.network
    if mixes_images(network):
        classifier.alone = True
    others = [kind for kind in dtypes(network) if kind != torch.float32]
    errors = []
    for takes, doubled in product([None, *others], [False, True]):
        if takes is not None:
            classifier.takes = takes
        if doubled:
            classifier.doubles_one = True
        try:
            return _try(classifier, images)
        except BadInput as error:
            errors.append(error)
        # On the instance they would enter its fingerprint.
        for name in {"takes", "doubles_one"} & set(vars(classifier)):
            delattr(classifier, name)
    # Of two images or more, in the numbers that the network takes.
    raise errors[-2]


def _try(classifier: Classifier, images: Tensor) -> None:
    """Run a few images, and one of them alone."""
    check_output = getattr(classifier.network, "check_output", None)
    try:
        with isolated(_PROBE_SEED), torch.no_grad():
            before = generators()
            output = classifier(images, _noise(images))
            stochastic = classifier.stochastic or generators() != before
            alone = classifier(images[:1], _noise(images[:1]))
            if callable(check_output):
                check_output(images if classifier.takes is None else images.to(classifier.takes))
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(_does_not_run(classifier, images, error)) from error
    _check_shape(classifier, output, len(images))
    _check_shape(classifier, alone, 1)
    classifier.stochastic = stochastic


def check_probabilities(output: Tensor) -> None:
    """Raise `BadInput` unless each row (n, K) lies in [0, 1] and sums to 1, up to rounding."""
    slack = max(_SUM_TOLERANCE, 8 * torch.finfo(output.dtype).eps)
    low, high = float(output.min()), float(output.max())
    sums = output.float().flatten(1).sum(1)
    if not (low >= -slack and high <= 1 + slack):
        what = f"values from {low:.3g} to {high:.3g}"
    elif float((sums - 1).abs().max()) > slack:
        what = f"rows that sum to {float(sums.min()):.3g} up to {float(sums.max()):.3g}"
    else:
        return
    raise BadInput(
        f"output='probabilities' was given, but the model returns {what}: return softmax "
        "probabilities of every class, or leave output out for logits"
    )


def replay_level(classifier: DefendedClassifier, images: Tensor) -> str:
    """How well a draw can be repeated.

    `exact`: every random number is keyed by image and draw. `process`: an opaque model, reseeded
    for every row, repeats as long
    as its libraries draw alike. `none`: two passes with the same noise differ.
    """
    if _repeats(classifier, images):
        opaque = any(isinstance(m, Classifier) and m.stochastic for m in classifier.modules())
        return "process" if opaque else "exact"
    return "none"


def check(
    classifier: DefendedClassifier, images: Tensor, labels: Tensor, gradient: str
) -> list[Finding]:
    """Look at a defended classifier; images (n, C, H, W), labels (n,). Raises `BadInput` where it
    cannot be evaluated.
    """
    _check_output(classifier, images)
    return [
        *_check_outputs_are_logits(classifier, images),
        *_check_randomness(classifier, images),
        *_check_rows(classifier, images),
        *_check_gradient(classifier, images, labels, gradient),
    ]


def _noise(images: Tensor, draw: int = 0) -> Noise:
    return Noise.of(_PROBE_SEED, Stream.EVAL, range(len(images)), draw, images.device)


def _logits(classifier: DefendedClassifier, images: Tensor, noise: Noise | None = None) -> Tensor:
    with torch.no_grad():
        output: Tensor = classifier(images, noise or _noise(images))
    return output


def _does_not_run(classifier: DefendedClassifier, images: Tensor, error: Exception) -> str:
    name = type(getattr(classifier, "network", classifier)).__name__
    reason = one_line(error)[:300]
    shape = tuple(images.shape[1:])
    return (
        f"{name} does not run on images of shape {shape} ({reason}): give a classifier made for "
        "this data set"
    )


def _check_output(classifier: DefendedClassifier, images: Tensor) -> None:
    try:
        with isolated(_PROBE_SEED):
            output = _logits(classifier, images)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(_does_not_run(classifier, images, error)) from error
    _check_shape(classifier, output, len(images))
    # A class that is ruled out may have the logit -inf: the log of a mean of softmaxes.
    if bool((torch.isnan(output) | (output == torch.inf)).any()):
        raise BadInput(
            "the classifier returned NaN or infinite logits on clean images: check its weights and "
            "normalisation"
        )


def _check_shape(classifier: DefendedClassifier, output: object, n: int) -> None:
    expected = (n, classifier.num_classes)
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got == expected:
        return
    todo = "return one row of K logits an image"
    if isinstance(got, tuple) and len(got) == 2 and got[0] == n:
        todo = wrong_classes(got[1], classifier.num_classes).partition(": ")[2]
    raise BadInput(f"the classifier returned {got} where logits {expected} were expected: {todo}")


def _check_outputs_are_logits(classifier: DefendedClassifier, images: Tensor) -> Iterator[Finding]:
    output = _logits(classifier, images)
    if bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() < 1e-4).all()):
        yield Finding(
            name="probabilities",
            verdict="warn",
            message="outputs look like probabilities: a second softmax weakens gradients; return "
            "logits, or output='probabilities'",
        )


def _repeats(classifier: DefendedClassifier, images: Tensor) -> bool:
    with isolated(_PROBE_SEED):
        first = _logits(classifier, images)
    with isolated(_PROBE_SEED):
        second = _logits(classifier, images)
    return torch.equal(first, second)


def _check_randomness(classifier: DefendedClassifier, images: Tensor) -> Iterator[Finding]:
    if not _repeats(classifier, images):
        yield Finding(
            name="hidden-randomness",
            verdict="fail",
            message="two passes with the same noise differ: the model holds state or a private "
            "generator; nothing can be replayed",
        )
        return
    with isolated(_PROBE_SEED):
        before = generators()
        first = _logits(classifier, images)
        reads = generators() != before
    with isolated(_PROBE_SEED + 1):
        reseeded = _logits(classifier, images)
    if reads or not torch.equal(first, reseeded):
        yield Finding(
            name="global-generator",
            verdict="fail",
            message="the forward pass draws from a global generator beside its noise: take every "
            "number from `noise`",
        )
    if not classifier.stochastic and not torch.equal(
        first, _logits(classifier, images, _noise(images, 1))
    ):
        yield Finding(
            name="undeclared-randomness",
            verdict="fail",
            message="logits change with the noise, but the defense declares itself deterministic: "
            "set `stochastic`",
        )


def _check_rows(classifier: DefendedClassifier, images: Tensor) -> Iterator[Finding]:
    together = _logits(classifier, images)
    alone = _logits(classifier, images[:1], _noise(images).rows(slice(0, 1)))
    gap = float((together[:1] - alone).abs().max() / (1 + together.abs().max()))
    if gap > max(_BATCH_TOLERANCE, 4 * rounding(classifier)):
        yield Finding(
            name="batch-dependence",
            verdict="fail",
            message=f"an image's logits change by {gap:.1e} (relative) with its batch: verdicts "
            "depend on who stands beside it",
        )


def _check_gradient(
    classifier: DefendedClassifier, images: Tensor, labels: Tensor, gradient: str
) -> Iterator[Finding]:
    leaf = images.clone().requires_grad_(True)
    output = classifier.forward_pass(gradient)(leaf, _noise(images))
    transfer = gradient_name(gradient) in classifier.transfers
    if transfer:
        yield Finding(
            name="transfer",
            verdict="note",
            message=f"the attack sees another function (gradient {gradient}) and its points are "
            "judged on the defense: a stronger "
            "attack would see the defense itself",
        )
    if not transfer and not alike(
        output.detach(), _logits(classifier, images), rounding(classifier)
    ):
        yield Finding(
            name="forward-pass",
            verdict="fail",
            message=f"the {gradient} forward pass has other logits than the defense: attacks would "
            "aim at "
            "another function",
        )
    slope = None
    if output.requires_grad:
        (slope,) = torch.autograd.grad(cross_entropy(output, labels).sum(), leaf, allow_unused=True)
    blocked = 1.0 if slope is None else float((slope.flatten(1).abs().amax(1) == 0).float().mean())
    others = [name for name in classifier.gradients if name != gradient]
    way_out = (
        f"attack with gradient {others[0]}"
        if others
        else "put what blocks it into an InputTransform, which offers bpda"
    )
    if blocked > 0.1:
        yield Finding(
            name="zero-gradient",
            verdict="warn",
            message=f"{blocked:.0%} of probed images have no {gradient} gradient: this is no "
            f"evidence of robustness; {way_out}",
        )
    if slope is not None and _stops_at_the_bounds(images, slope):
        yield Finding(
            name="clamped-input",
            verdict="warn",
            message="no pixel at 0 or 1 has a gradient, though others have: does the model clamp "
            "its input? leave that out, points lie in [0, 1] anyway",
        )


def _stops_at_the_bounds(images: Tensor, slope: Tensor) -> bool:
    """Whether pixels exactly at 0 or 1 have no gradient at all while others have; torch's clamp
    does that from some version on.
    """
    bound = (images == 0) | (images == 1)
    enough = int(bound.sum()) >= _BOUNDARY_PIXELS
    return enough and not bool((slope[bound] != 0).any()) and bool((slope[~bound] != 0).any())
