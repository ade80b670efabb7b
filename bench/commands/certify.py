"""`bench certify`: of which images a record's attack left no attack can break."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.certify.crown import Crown
from bench.certify.lines import Network
from bench.certify.network import certifiable
from bench.commands.trust import check_trusted
from bench.commands.verify import rebuild
from bench.engine.build import build
from bench.engine.evaluation import Evaluation
from bench.engine.recording import now
from bench.errors import BadInput
from bench.losses import SUCCESS_SLACK
from bench.results.arrays import Bools
from bench.results.certificate import Certificate, Contradiction
from bench.results.outcomes import Labels, count_ids, encode_ids
from bench.results.record import Record
from bench.results.store import Store, read_record

TRIED = 64
"""Broken images on which the proof is tried as a check of itself, at most."""

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
        n, proof = self.record.metrics.n, self.certificate
        left = self.record.metrics.adversarial.all_draws
        undecided = count_ids(proof.undecided) if proof.undecided else 0
        return (
            f"{self.record.title['defense']} under {self.record.title['threat']}: certified "
            f"{proof.share(n)} <= truth <= attacked {left} ({proof.method}, {undecided} of {n} "
            f"undecided, {proof.seconds:.0f} s)"
        )

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "record": str(self.path),
            "certificate": self.certificate.model_dump() if self.certificate else None,
            "refused": str(self.refused) if self.refused else None,
        }


def certify_all(paths: Iterable[Path], steps: int, *, trust: bool = False) -> Iterator[Certified]:
    """Certify records one after the other; one that cannot be certified holds up no other."""
    for path in paths:
        try:
            yield certify(path, steps, trust=trust)
        except Contradiction:
            raise
        except BadInput as error:
            yield Certified(path, refused=error)


def certify(path: Path, steps: int, *, trust: bool = False) -> Certified:
    """Prove what can be proved of a record, and store it beside the record.

    Args:
        path: the record.
        steps: of the ascent on the lower slopes; 0 for plain CROWN.
        trust: run `FILE.py@NAME` of the record wherever that file is.

    Raises:
        BadInput: where the record cannot be rebuilt, or its defense not be certified.
        Contradiction: where an image is certified that the record's attack broke.
    """
    record = read_record(path)
    if not trust:
        check_trusted(record)
    evaluation = rebuild(record)
    threat = evaluation.setup.threat
    if threat.norm not in ("linf", "l2"):
        raise BadInput(f"the threat is {threat}: CROWN bounds balls of linf and l2")
    began = time.perf_counter()
    clean, attacked = (record.outcomes.correct(w).all(axis=1) for w in ("clean", "adversarial"))
    left, broken = np.flatnonzero(attacked), np.flatnonzero(clean & ~attacked)[:TRIED]
    prover = _Prover.of(evaluation, steps)
    refuted = broken[prover.proves(broken)]
    ids = record.outcomes.image_ids()
    if len(refuted):
        raise Contradiction(
            f"image {ids[refuted[0]]} of {path} is broken by the attack, and a proof says that no "
            "attack can: one of the two is wrong; please report the record"
        )
    holds = prover.proves(left)
    certificate = Certificate(
        record=record.id,
        method="alpha-crown" if steps else "crown",
        steps=steps,
        certified=encode_ids(ids[left[holds]]),
        undecided=encode_ids(ids[left[~holds]]),
        tried=encode_ids(ids[broken]),
        seconds=time.perf_counter() - began,
        finished=now(),
    )
    Store(path.parent).save_certificate(certificate, record)
    return Certified(path, record, certificate)


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
    def of(cls, evaluation: Evaluation, steps: int) -> _Prover:
        """Raises `BadInput` where the defense cannot be certified."""
        setup = evaluation.setup
        defended = build(evaluation, torch.device("cpu"))
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
