"""`bench certify`: of which images a record's attack left no attack can break; of a vote over
Gaussian noise, on which images it is right all over the ball.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.certify.crown import Crown
from bench.certify.lines import Network
from bench.certify.network import certifiable
from bench.certify.vote import Confidence, SmoothedVote, needed_radius, radius_of, refutes
from bench.commands.rescoring import read_sidecar
from bench.commands.trust import check_trusted
from bench.commands.verify import attacked, rebuild
from bench.defense import DefendedClassifier, GaussianVote
from bench.engine.evaluation import Evaluation
from bench.engine.recording import now
from bench.errors import BadInput
from bench.losses import SUCCESS_SLACK
from bench.results.arrays import Bools
from bench.results.certificate import Certificate, Contradiction
from bench.results.outcomes import Labels, count_ids, encode_ids
from bench.results.record import Record
from bench.results.store import Store, read_record
from bench.victim import frozen

TRIED = 64
"""Broken images on which the proof is tried as a check of itself, at most."""

_CONFIDENCE = Confidence()

_CHUNK = 32
"""Images that are worked on at once."""


@dataclass(frozen=True)
class Certified:
    """What became of one record: its certificate, or why there is none."""

    path: Path
    record: Record | None = None
    certificate: Certificate | None = None
    refused: BadInput | None = None

    def __str__(self) -> str:
        if self.record is None or self.certificate is None:
            return f"{self.path.name}: not certified ({self.refused})"
        title, n, proof = self.record.title, self.record.metrics.n, self.certificate
        left = self.record.metrics.adversarial.all_draws
        row = f"{title['defense']} under {title['threat']}"
        if proof.kind == "probabilistic":
            return f"{row}: {self._voted(proof)}"
        undecided = count_ids(proof.undecided) if proof.undecided else 0
        return (
            f"{row}: certified {proof.share(n)} <= truth <= attacked {left} ({proof.method}, "
            f"{undecided} of {n} undecided, {proof.seconds:.0f} s)"
        )

    def _voted(self, proof: Certificate) -> str:
        assert self.record is not None
        abstained, wrong, tried, refuted = (
            count_ids(ids) if ids else 0
            for ids in (proof.abstained, proof.wrong, proof.tried, proof.refuted)
        )
        attacked = self.record.metrics.adversarial.mean
        broken = len(proof.broken(self.record.outcomes)) + refuted
        return (
            f"certified {proof.share(self.record.metrics.n)} for the vote of infinitely many draws "
            f"alone (smoothing, sigma {proof.sigma:g}; probabilistic: each image errs with "
            f"probability {proof.alpha:g} at most, n0={proof.n0}, n={proof.n}); {abstained} "
            f"abstained and {wrong} voted wrong, both count as wrong. The deployed vote of few "
            f"draws: attacked {attacked}; {broken} certified images are wrong in some draw, and of "
            f"{tried} such points the vote of {proof.n} is surely wrong on {refuted} "
            f"({proof.seconds:.0f} s)"
        )

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "record": str(self.path),
            "certificate": self.certificate.model_dump() if self.certificate else None,
            "refused": str(self.refused) if self.refused else None,
        }


def certify_all(
    paths: Iterable[Path],
    steps: int,
    confidence: Confidence = _CONFIDENCE,
    *,
    trust: bool = False,
) -> Iterator[Certified]:
    """Certify records one after the other; one that cannot be certified holds up no other."""
    for path in paths:
        try:
            yield certify(path, steps, confidence, trust=trust)
        except Contradiction:
            raise
        except BadInput as error:
            yield Certified(path, refused=error)


def certify(
    path: Path, steps: int, confidence: Confidence = _CONFIDENCE, *, trust: bool = False
) -> Certified:
    """Certify what can be certified of a record, and store it beside the record.

    Args:
        path: the record.
        steps: of the ascent on the lower slopes; 0 for plain CROWN.
        confidence: of a vote over Gaussian noise.
        trust: run `FILE.py@NAME` of the record wherever that file is.

    Raises:
        BadInput: where the record cannot be rebuilt, or its defense not be certified.
        Contradiction: where an image is proved that the record's attack broke, or where a vote is
            refuted on more images than its probability of error explains.
    """
    record = read_record(path)
    if not trust:
        check_trusted(record)
    evaluation = rebuild(record)
    began = time.perf_counter()
    # A bound of another network would say nothing of this record.
    defended = attacked(record, evaluation, path, torch.device("cpu"))
    vote = defended.gaussian_vote()
    if vote is None:
        found = _proved(path, record, evaluation, defended, steps)
    else:
        with frozen(defended):
            found = _voted(path, record, evaluation, vote, confidence)
    certificate = Certificate(
        record=record.id, seconds=time.perf_counter() - began, finished=now(), **found
    )
    Store(path.parent).save_certificate(certificate, record)
    return Certified(path, record, certificate)


def _proved(
    path: Path, record: Record, evaluation: Evaluation, defended: DefendedClassifier, steps: int
) -> dict[str, Any]:
    """The fields of a certificate by proofs."""
    threat = evaluation.setup.threat
    if threat.norm not in ("linf", "l2"):
        raise BadInput(f"the threat is {threat}: CROWN bounds balls of linf and l2")
    clean, attacked = (record.outcomes.correct(w).all(axis=1) for w in ("clean", "adversarial"))
    left, broken = np.flatnonzero(attacked), np.flatnonzero(clean & ~attacked)[:TRIED]
    prover = _Prover.of(evaluation, defended, steps)
    refuted = broken[prover.proves(broken)]
    ids = record.outcomes.image_ids()
    if len(refuted):
        raise Contradiction(
            f"image {ids[refuted[0]]} of {path} is broken by the attack, and a proof says that no "
            "attack can: one of the two is wrong; please report the record"
        )
    holds = prover.proves(left)
    return {
        "method": "alpha-crown" if steps else "crown",
        "steps": steps,
        "certified": encode_ids(ids[left[holds]]),
        "undecided": encode_ids(ids[left[~holds]]),
        "tried": encode_ids(ids[broken]),
    }


def _voted(
    path: Path,
    record: Record,
    evaluation: Evaluation,
    vote: GaussianVote,
    confidence: Confidence,
) -> dict[str, Any]:
    """The fields of a certificate of a vote: of all images, since the vote of few draws that the
    attack met is another one.
    """
    images, threat = evaluation.setup.images, evaluation.setup.threat
    needed = needed_radius(threat, tuple(images.images.shape[1:]))
    largest = radius_of(confidence.surest, vote.sigma)
    if largest <= needed:
        raise BadInput(
            f"{confidence.n} draws certify an L2 radius of {largest:.3g} at most, and {threat} "
            f"needs {needed:.3g}: give more --draws, a smaller eps, or the defense more noise"
        )
    sidecar = read_sidecar(record, evaluation, Store(path.parent))
    judge = SmoothedVote(vote, confidence, evaluation.setup.classifier.num_classes, evaluation.seed)
    ids, labels = record.outcomes.image_ids(), record.outcomes.true_labels()
    found = [
        judge.certify(images.at(np.array([place])).pixels()[0], int(ids[place]), int(label))
        for place, label in enumerate(labels)
    ]
    radii = np.array([one.radius for one in found])
    right = np.array([one.chosen for one in found]) == labels
    holds = right & (radii > needed)
    points = sidecar.points if sidecar else None
    tried, refuted = _refuted(record, judge, holds, points)
    holds[refuted] = False
    return {
        "kind": "probabilistic",
        "method": "smoothing",
        "sigma": vote.sigma,
        **asdict(confidence),
        "certified": encode_ids(ids[holds]),
        "undecided": encode_ids(ids[right & (radii > 0) & ~holds]),
        "abstained": encode_ids(ids[right & (radii == 0)]),
        "wrong": encode_ids(ids[~right]),
        "tried": encode_ids(ids[tried]),
        "refuted": encode_ids(ids[refuted]),
        "radii": tuple((np.floor(radii * 1e4) / 1e4 * right).tolist()),
    }


def _refuted(
    record: Record, judge: SmoothedVote, holds: Bools, points: Tensor | None
) -> tuple[Labels, Labels]:
    """Certified images whose attacked point is put to the vote, since some draw answers it wrongly;
    and those of them where the vote is surely wrong. None where the points are missing.

    Raises:
        Contradiction: where these are more than the vote's probability of error explains.
    """
    if points is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    wrong = ~record.outcomes.correct("adversarial").all(axis=1)
    tried = np.flatnonzero(holds & wrong)[:TRIED]
    ids, labels = record.outcomes.image_ids(), record.outcomes.true_labels()
    sure = [judge.is_wrong(points[one], int(ids[one]), int(labels[one])) for one in tried]
    refuted = tried[np.array(sure, dtype=bool)]
    if refutes(len(refuted), len(tried), judge.confidence.alpha):
        raise Contradiction(
            f"of {len(tried)} certified images that the attack of record {record.id} broke, the "
            f"vote is wrong at the attacked point of {len(refuted)}: more than an error of "
            f"probability {judge.confidence.alpha:g} explains; is the noise what the defense says "
            "that it is?"
        )
    return tried, refuted


@dataclass(frozen=True)
class _Prover:
    """Tries to prove images of an evaluation.

    Attributes:
        evaluation: has the images.
        network: in float64.
        crown: bounds of its margins.
        steps: of the ascent on the lower slopes.
    """

    evaluation: Evaluation
    network: Network
    crown: Crown
    steps: int

    @classmethod
    def of(cls, evaluation: Evaluation, defended: DefendedClassifier, steps: int) -> _Prover:
        """Raises `BadInput` where the defense cannot be certified."""
        setup = evaluation.setup
        network = certifiable(defended, tuple(setup.images.images.shape[1:]))
        crown = Crown(network, setup.threat, defended.num_classes)
        return cls(evaluation, network, crown, steps)

    def proves(self, places: Labels) -> Bools:
        """Whether each of these images, by its place, is answered alike all over its ball: (m,)."""
        chunks = [self._chunk(places[at : at + _CHUNK]) for at in range(0, len(places), _CHUNK)]
        return np.concatenate([np.zeros(0, dtype=bool), *chunks])

    def _chunk(self, places: Labels) -> Bools:
        images = self.evaluation.setup.images.at(places)
        pixels = images.pixels().double()
        with torch.no_grad():
            size = self.network(pixels).abs().amax(1)
        bounds = self.crown.margins(pixels, images.labels, steps=self.steps)
        # What is deployed rounds to float32, and no attack's success is smaller than this.
        return np.asarray((bounds > SUCCESS_SLACK * size).numpy())
