"""One build of a defense on one setup, with all that follows from its records together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.report.doubts import OF_A_SEARCH, doubts
from bench.report.words import flags
from bench.results.arrays import Floats
from bench.results.certificate import Certificate, check_certified
from bench.results.estimate import Estimate
from bench.results.inference import Inference
from bench.results.intervals import share, wilson
from bench.results.record import Record
from bench.results.views import any_right
from bench.results.worst_case import attacked, worst_case

_OF_A_GRADIENT = ("zero-gradient", "no-gradient", "flat-gradient", "slopes")
"""Names of findings that say why an attack that reads gradients left much."""


@dataclass(frozen=True)
class Entry:
    """All records of one build of a defense on one setup."""

    records: Sequence[Record]

    @property
    def first(self) -> Record:
        """Any of them."""
        return self.records[0]

    def reasons(self) -> list[tuple[str, str]]:
        """Flags that a reader must know, each with its reason; a missing or misleading gradient
        only where no attack without that flaw went lower.
        """
        lowest = min(self.records, key=lambda record: record.metrics.adversarial.mean.value)
        of_lowest = flags([lowest], with_scale=False)
        standing = {doubt.name for doubt in doubts(self.records)}
        return [
            (flag, self._reason(flag))
            for flag in flags(self.records, with_scale=False)
            if (flag not in _OF_A_GRADIENT or flag in of_lowest)
            and (flag not in OF_A_SEARCH or flag in standing)
        ]

    def _reason(self, flag: str) -> str:
        said = [finding.message for finding in doubts(self.records) if finding.name == flag]
        collapsed = [record.metrics.collapse_reason for record in self.records]
        return [*filter(None, collapsed if flag == "COLLAPSED" else []), *said][0]

    def worst_scores(self) -> Floats:
        """Worst case per image (n,) over all attacks and attack seeds, and over the points that
        stand beside them; see `bench.results.worst_case`.
        """
        return worst_case([correct for one in self.records for correct in attacked(one)])

    def worst(self) -> Estimate:
        """The mean of `worst_scores`, with its interval over images."""
        return share(self.worst_scores())

    def replays(self) -> list[Record]:
        """Those whose attack ran wholly on the image's own fixed noise."""
        return [one for one in self.records if _on_own_fixed_noise(one)]

    def replayed(self) -> Estimate | None:
        """Worst case per image over the attacks of `replays`, each under its own noise; None where
        there is none.
        """
        shares = [one.outcomes.correct("replayed").mean(1) for one in self.replays()]
        return share(np.min(shares, axis=0)) if shares else None

    def all_draws(self, which: str) -> Estimate:
        """Images right in every judged draw under every attack and seed, `clean` or
        `adversarial`.
        """
        verdicts = [
            attacked(one) if which == "adversarial" else [one.outcomes.correct(which)]
            for one in self.records
        ]
        right = [matrix.all(1) for matrices in verdicts for matrix in matrices]
        return share(np.min(right, axis=0))

    def any_view(self) -> Estimate | None:
        """Images on which some scored view is right under each attack; None where none is
        scored.
        """
        right = [any_right(one.views, one.outcomes) for one in self.records if one.views]
        return share(np.min(right, axis=0)) if right else None

    def certified(self) -> Estimate | None:
        """Images that no attack can break, by the certificates of its records; of a vote over
        noise, those on which it is certified, by the certificate of the most draws. None without
        one.

        Raises:
            Contradiction: where one of its records breaks an image that a proof certifies.
        """
        vote, n = self.vote(), self.first.metrics.n
        if vote:
            return vote.share(n)
        proofs = [one.certificate for one in self.records if one.certificate]
        if not proofs:
            return None
        ids = np.unique(np.concatenate([proof.ids() for proof in proofs]))
        for record in self.records:
            check_certified(ids, record.outcomes, f"record {record.id}")
        return wilson(len(ids), n)

    def vote(self) -> Certificate | None:
        """The probabilistic certificate of the most draws among those of its records. Joining
        several would err more often than each.
        """
        proofs = [one.certificate for one in self.records if one.certificate]
        votes = [one for one in proofs if one.kind == "probabilistic"]
        return max(votes, key=lambda one: one.n or 0) if votes else None

    def lowest_f1(self) -> float:
        return min(record.metrics.adversarial.macro_f1.value for record in self.records)

    def passes(self) -> float:
        """Of all attacks together, forward and backward, mean per image."""
        return sum(one.cost.attack_forwards + one.cost.attack_backwards for one in self.records)

    def inference(self) -> Inference | None:
        """Of the last record that has it."""
        measured = [record.inference for record in self.records if record.inference]
        return measured[-1] if measured else None

    def base(self, records: Mapping[str, Record]) -> Entry | None:
        """The undefended classifier under the same attacks; `records` are by id."""
        bases = {one.base: records[one.base] for one in self.records if one.base in records}
        return Entry(list(bases.values())) if bases else None


def _on_own_fixed_noise(record: Record) -> bool:
    """Not `common`, nor a replay of some stages alone: those are other threats."""
    randomness = record.title["randomness"]
    return randomness == "replay" or randomness.startswith("replay-set")
