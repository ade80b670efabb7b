"""The tables of the study `masking`: recall and false alarms of checks and profiles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.results.intervals import wilson
from bench.studies import plots
from bench.studies.cases import HALVES, Case

ABOVE = 0.1
"""A number is masked where it exceeds the truth by so much."""

RECALL = 0.95
"""The least share of masked cases that must be found on the unseen half."""

_SLACK = 1e-9
_BLIND = ("flat-gradient", "no-gradient")
"""Findings of a run whose attack got no gradient."""
_NOBODY = Case("", "", "", masked=False)


@dataclass(frozen=True)
class Signal:
    """What a check said of a case.

    Attributes:
        profile: the cheapest profile that holds the check.
        check: its name.
        verdict: as in findings, or `pass`.
        value, threshold: where the check measures a number.
    """

    profile: str
    check: str
    verdict: str
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Measured:
    """A case with its numbers, shares of its images.

    Attributes:
        half: of its kind.
        truth: upper bound of the robust accuracy.
        clean, robust: as reported; NaN where the suite refused to give a number.
        refused: why it did.
        signals: what the checks said.
        attack_passes: forward and backward passes of the attack, an image.
        passes: of each profile's own checks, an image.
    """

    case: Case
    half: str
    truth: float
    clean: float
    robust: float
    refused: str
    signals: tuple[Signal, ...]
    attack_passes: float
    passes: dict[str, float]

    def to_json(self) -> str:
        """All but the case itself, which holds code."""
        return json.dumps({**asdict(replace(self, case=_NOBODY)), "case": None})

    @classmethod
    def from_json(cls, text: str, case: Case) -> Measured:
        """What `to_json` wrote of this case."""
        told = json.loads(text)
        signals = tuple(Signal(**one) for one in told["signals"])
        return cls(**{**told, "case": case, "signals": signals})

    @property
    def masked(self) -> bool:
        """Whether a number was given that is too high."""
        return not self.refused and self.robust >= self.truth + ABOVE - _SLACK

    @property
    def measured(self) -> str:
        """`masked`, `ok`, `refused`, or `void`: not masked, but the attack had no gradient, so that
        it shows nothing. A failed check is right there, and none is asked for.
        """
        if self.refused:
            return "refused"
        if self.masked:
            return "masked"
        blind = any(one.check in _BLIND and one.verdict != "pass" for one in self.signals)
        return "void" if blind else "ok"

    def found(self, profile: str) -> bool:
        """Whether a check of this profile or a cheaper one failed."""
        within = PROFILES[: PROFILES.index(profile) + 1]
        return any(one.verdict == "fail" and one.profile in within for one in self.signals)


PROFILES = ("quick", "standard")
"""From the cheapest one on; each holds the ones before it."""


# What is counted ----------------------------------------------------------------------------------


def _halves_of(measured: Sequence[Measured]) -> Iterator[tuple[str, list[Measured]]]:
    """Each half that is there, and both."""
    for half in HALVES:
        own = [one for one in measured if one.half == half]
        if own:
            yield half, own
    if len({one.half for one in measured}) > 1:
        yield "both", list(measured)


def profile_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """Recall and false alarms of each profile on each half, with Wilson's 95 % intervals, and its
    passes over those of the attack (median over cases).
    """
    rows = []
    for profile in _profiles(measured):
        for half, own in _halves_of(measured):
            row: dict[str, object] = {"profile": profile, "half": half}
            row |= _counts(own, [one.found(profile) for one in own])
            row["passes"] = _median(
                sum(one.passes.get(p, 0.0) for p in _upto(profile)) for one in own
            )
            row["attack_passes"] = _median(one.attack_passes for one in own)
            rows.append(row)
    return pd.DataFrame(rows)


def _profiles(measured: Sequence[Measured]) -> tuple[str, ...]:
    """The profiles that were run."""
    return tuple(
        p for p in PROFILES if p == PROFILES[0] or any(p in one.passes for one in measured)
    )


def _upto(profile: str) -> tuple[str, ...]:
    return PROFILES[: PROFILES.index(profile) + 1]


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _counts(own: Sequence[Measured], flagged: Sequence[bool]) -> dict[str, object]:
    """Of the masked ones how many are flagged, and of the others."""
    row: dict[str, object] = {}
    for name, kind in (("recall", "masked"), ("false_alarms", "ok")):
        hits = [flag for one, flag in zip(own, flagged, strict=True) if one.measured == kind]
        found, count = sum(hits), len(hits)
        row[f"{name}_of"] = count
        row[f"{name}_count"] = found
        estimate = wilson(found, count) if count else None
        row[name] = estimate.value if estimate else np.nan
        row[f"{name}_low"] = estimate.low if estimate else np.nan
        row[f"{name}_high"] = estimate.high if estimate else np.nan
    return row


def check_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """Of each check that spoke anywhere: masked cases and others on which it failed, and on which
    it warned or failed.
    """
    names = sorted({(one.profile, one.check) for case in measured for one in case.signals})
    rows = []
    for half, own in _halves_of(measured):
        for profile, check in names:
            row: dict[str, object] = {"profile": profile, "check": check, "half": half}
            for word, verdicts in (("fails", ("fail",)), ("speaks", ("fail", "warn"))):
                flagged = [_says(one, profile, check, verdicts) for one in own]
                counts = _counts(own, flagged)
                row[f"{word}_masked"] = counts["recall_count"]
                row[f"{word}_others"] = counts["false_alarms_count"]
            row["masked"], row["others"] = counts["recall_of"], counts["false_alarms_of"]
            rows.append(row)
    return pd.DataFrame(rows)


def _says(one: Measured, profile: str, check: str, verdicts: Sequence[str]) -> bool:
    return any(
        (signal.profile, signal.check) == (profile, check) and signal.verdict in verdicts
        for signal in one.signals
    )


def roc_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """Of each check that measures a number, what every threshold would flag.

    One row a threshold: the share of masked cases and of others on its side, among those whose
    number is known. `default` marks the check's own threshold and what it spoke of. Which side is
    suspicious is read off the cases that it spoke of; a check that spoke of none is left out.
    """
    rows = []
    keys = sorted({(s.profile, s.check) for one in measured for s in one.signals})
    for profile, check in keys:
        signals = [
            (one, signal)
            for one in measured
            for signal in one.signals
            if (signal.profile, signal.check) == (profile, check)
            and signal.value is not None
            and one.measured in ("masked", "ok")
        ]
        side = _side([signal for _, signal in signals])
        if not side:
            continue
        for half in sorted({one.half for one, _ in signals}):
            own = [(one, s) for one, s in signals if one.half == half]
            labels = {"profile": profile, "check": check, "half": half}
            rows += [{**labels, **row} for row in _thresholds(own, side)]
    columns = [
        "profile",
        "check",
        "half",
        "threshold",
        "default",
        "recall",
        "false_alarms",
        "masked",
    ]
    return pd.DataFrame(rows, columns=[*columns, "others"])


def _thresholds(own: Sequence[tuple[Measured, Signal]], side: int) -> Iterator[dict[str, object]]:
    """What the check's own threshold flagged, and what every other one would."""
    kinds = [one.masked for one, _ in own]
    values = [side * float(signal.value or 0) for _, signal in own]
    spoke = [signal.verdict in ("warn", "fail") for _, signal in own]
    default = next((s.threshold for _, s in own if s.threshold is not None), None)
    flags = {side * value: [one >= value for one in values] for value in sorted(values)[::-1]}
    for threshold, flagged, is_default in (
        (default, spoke, True),
        *((threshold, flagged, False) for threshold, flagged in flags.items()),
    ):
        shares = {
            name: [flag for kind, flag in zip(kinds, flagged, strict=True) if kind is masked]
            for name, masked in (("recall", True), ("false_alarms", False))
        }
        yield {
            "threshold": threshold,
            "default": is_default,
            **{name: float(np.mean(one)) if one else np.nan for name, one in shares.items()},
            "masked": len(shares["recall"]),
            "others": len(shares["false_alarms"]),
        }


def _side(signals: Sequence[Signal]) -> int:
    """1 where large numbers are suspicious, -1 where small ones are, 0 where nobody knows."""
    told = [
        (signal.value or 0) - signal.threshold
        for signal in signals
        if signal.threshold is not None and signal.verdict in ("warn", "fail")
    ]
    above, below = sum(one > 0 for one in told), sum(one < 0 for one in told)
    return 0 if above == below else 1 if above > below else -1


def case_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row a case."""
    return pd.DataFrame([_case_row(one) for one in measured])


def _case_row(one: Measured) -> dict[str, object]:
    case = one.case
    row: dict[str, object] = {
        "case": case.name,
        "kind": case.kind,
        "half": one.half,
        "meant": "masked" if case.masked else "control",
        "measured": one.measured,
        "clean": one.clean,
        "robust": one.robust,
        "truth": one.truth,
    }
    for profile in PROFILES:
        for verdict in ("fail", "warn"):
            names = {
                signal.check
                for signal in one.signals
                if signal.profile == profile and signal.verdict == verdict
            }
            row[f"{profile}_{verdict}"] = " ".join(sorted(names))
        row[f"{profile}_passes"] = one.passes.get(profile, np.nan)
    return {**row, "attack_passes": one.attack_passes, "hides": case.hides, "refused": one.refused}


def signal_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """All that the checks said: one row a case and check."""
    return pd.DataFrame(
        [{"case": one.case.name, **asdict(signal)} for one in measured for signal in one.signals],
        columns=["case", "profile", "check", "verdict", "value", "threshold"],
    )


# What is shown ------------------------------------------------------------------------------------


def held(measured: Sequence[Measured]) -> bool | None:
    """Whether the unseen half is found and nobody is accused; None where it is not there."""
    profile = _profiles(measured)[-1]
    unseen = [one.found(profile) for one in measured if one.half == HALVES[1] and one.masked]
    accused = [one for one in measured if one.measured == "ok" and one.found(profile)]
    return bool(np.mean(unseen) >= RECALL and not accused) if unseen else None


def sentence(measured: Sequence[Measured]) -> str:
    """Recall and false alarms of each profile on each half, and who was missed or accused."""
    parts = []
    for row in profile_table(measured).to_dict("records"):
        parts.append(
            f"{row['profile']} on {row['half']}: {row['recall_count']} of {row['recall_of']} "
            f"masked found, {row['false_alarms_count']} of {row['false_alarms_of']} others accused"
        )
    profile = _profiles(measured)[-1]
    missed = [one.case.name for one in measured if one.masked and not one.found(profile)]
    accused = [one.case.name for one in measured if one.measured == "ok" and one.found(profile)]
    void = [one.case.name for one in measured if one.measured == "void"]
    refused = [one.case.name for one in measured if one.refused]
    lists = {"missed": missed, "accused": accused, "void": void, "refused a number": refused}
    for word, names in lists.items():
        parts += [f"{word}: {', '.join(names)}"] if names else []
    return "; ".join(parts) + "."


def profile_figure(table: pd.DataFrame) -> Figure:
    """Recall and false alarms of each profile, a bar a half, with intervals."""
    panels = [("", "share of cases", "masked cases found"), ("", "", "others accused")]
    figure, axes = plots.panels("What the checks find, and whom they accuse", panels)
    labels = list(dict.fromkeys(table["profile"]))
    sides = list(dict.fromkeys(table["half"]))
    for panel, name in zip(axes, ("recall", "false_alarms"), strict=True):
        for place, (half, colour) in enumerate(zip(sides, plots.COLOURS, strict=False)):
            own = table[table["half"] == half]
            bars = np.clip([own[name] - own[f"{name}_low"], own[f"{name}_high"] - own[name]], 0, 1)
            at = np.arange(len(own)) + 0.8 * (place - (len(sides) - 1) / 2) / len(sides)
            panel.bar(at, own[name], 0.7 / len(sides), yerr=bars, color=colour, label=half)
        panel.set_xticks(range(len(labels)), labels)
        panel.set_ylim(0, 1.02)
    plots.legend(axes[1])
    return figure
