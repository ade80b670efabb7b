"""Tables made from records: one row a cell, and the board with the worst case per image over
attacks.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from tabulate import tabulate

from bench.results.estimate import Estimate
from bench.results.inference import Inference
from bench.results.record import Failure, Record, without_folders
from bench.results.statistics import worst_case
from bench.results.store import read, read_folder
from bench.results.verdicts import share
from bench.results.views import any_right, detection

_NOTE = (
    "Shares in percent with 95 % intervals (Wilson). Robust accuracy is an upper bound: a stronger "
    "attack may lower it. Clean-wrong images count as broken. `base`: the undefended classifier "
    "under the same attack."
)
_STOCHASTIC_NOTE = (
    " Stochastic defenses are judged on fresh draws after the attack has ended; `all draws` counts "
    "images right in every one, clean -> attacked, so that luck shows; `replayed` is judged on the "
    "attack's own tapes. An answer counts as robust if it was right on the clean image under the "
    "same draw."
)


_SCORES_NOTE = (
    " `any view`: some scored view (see `bench show`) is right without and under attack; no choice "
    "among them can exceed it on these points. `detector`: attacked images flagged, clean images "
    "flagged, area under the ROC curve."
)
_INFERENCE_NOTE = (
    " `passes/prediction`: through the classifier, on clean images. `RobustBench`: which of its "
    "three conditions for admission "
    "(gradients not zero, nothing random, no optimisation loop) the defense fails."
)
_BUILT = "How these were built:"

T = TypeVar("T")


def note(records: Sequence[Record]) -> str:
    """What the columns mean."""
    stochastic, scored = (
        any(record.stochastic for record in records),
        any(record.views for record in records),
    )
    return _NOTE + _STOCHASTIC_NOTE * stochastic + _SCORES_NOTE * scored


def heading(record: Record) -> str:
    """Data set, classifier, threat model and number of images."""
    title, scale = record.title, record.scale
    names = f"{without_folders(title['dataset'])}, {without_folders(title['classifier'])}"
    return f"{names}, {title['threat']}, {scale['n']} of {scale['available']} images"


def attack_label(record: Record) -> str:
    """Attack with the settings that differ from plain: `pgd (bpda, eot:k=20)`."""
    title = record.title
    extra = [title["gradient"]] * (title["gradient"] != "full")
    extra += [title["randomness"]] * (title["randomness"] not in ("none", "fresh"))
    return title["attack"] + (f" ({', '.join(extra)})" if extra else "")


def flags(records: Iterable[Record]) -> str:
    """What a reader must know: collapse, findings, reduced scale."""
    found: dict[str, None] = {}
    for record in records:
        if record.metrics.collapsed:
            found["COLLAPSED"] = None
        if record.scale["reduced"]:
            found[f"n={record.scale['n']} of {record.scale['available']}"] = None
        for finding in record.findings:
            if finding.verdict != "note":
                found[finding.name] = None
    return ", ".join(found)


def rows_table(records: Sequence[Record], failures: Sequence[Failure] = ()) -> str:
    """One row a record in Markdown, a table for each subject; failures below, as errors and not as
    numbers.
    """
    bases = {record.id: record for record in records}
    several = len({record.title["seed"] for record in records}) > 1
    parts = []
    for group in by_setup(records):
        entries = _entries(group)
        known = dict(zip(entries, _names(list(entries.values())), strict=True))
        names = [known[_defense(record)] for record in group]
        rows = [
            {"defense": _struck(n, [r]), **_row(r, bases.get(r.base), several)}
            for n, r in zip(names, group, strict=True)
        ]
        constant = f"a constant answer gets {100 * group[0].metrics.constant_accuracy:.1f}"
        parts.append(
            f"{heading(group[0])}, {constant}\n\n{_markdown(_without_empty_columns(rows))}"
        )
        staged = [
            stages_line(record)
            for record in group
            if record.stages and len(record.stages.names) > 1
        ]
        parts += (
            ["Left standing by each stage, in the attack's own view:\n" + "\n".join(staged)]
            if staged
            else []
        )
        built = built_lines(zip(names, group, strict=True))
        parts += [_BUILT + "\n" + "\n".join(built)] if built else []
    parts += [f"{_what(failure)}: error ({failure.error})" for failure in failures]
    return "\n\n".join([*parts, note(records)])


def built_lines(named: Iterable[tuple[str, Record]]) -> list[str]:
    """What is to be known of how each row's defense was built, as a list; rows of which the same is
    said share a line.
    """
    rows: dict[str, dict[str, None]] = defaultdict(dict)
    for name, record in named:
        for message in _built(record):
            rows[message][name] = None
    said: dict[str, list[str]] = defaultdict(list)
    for message, names in rows.items():
        said[", ".join(names)].append(message)
    return [f"- {names}: {'; '.join(messages)}" for names, messages in said.items()]


def _built(record: Record) -> list[str]:
    return [finding.message for finding in record.findings if finding.name == "built"]


def stages_line(record: Record) -> str:
    """What each stage of an attack left standing, in percent; `record.stages` must be there."""
    assert record.stages is not None
    left = ", ".join(f"{name} {100 * share:.1f}" for name, share in record.stages.left().items())
    return f"- {record.title['defense']}, {attack_label(record)}: {left}"


def _without_empty_columns(rows: Sequence[dict[str, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows).fillna("").astype(str)
    return table.loc[:, (table != "").any()]


def _row(record: Record, base: Record | None, with_seed: bool) -> dict[str, str]:
    metrics = record.metrics
    stochastic = record.stochastic
    luck = (
        f"{100 * metrics.clean.all_draws.value:.1f} -> "
        f"{100 * metrics.adversarial.all_draws.value:.1f}"
    )
    return {
        "attack": attack_label(record),
        "seed": record.title["seed"] if with_seed else "",
        "clean": str(metrics.clean.mean),
        "robust": str(metrics.adversarial.mean),
        "replayed": str(metrics.replayed.mean) if metrics.replayed else "",
        "all draws": luck if stochastic else "",
        "base": f"{100 * base.metrics.adversarial.mean.value:.1f}" if base else "",
        "any view": str(_any_view([record]) or ""),
        "detector": detector_cell(record),
        "macro-F1": f"{100 * metrics.clean.macro_f1.value:.1f} -> "
        f"{100 * metrics.adversarial.macro_f1.value:.1f}",
        "passes/image": f"{record.cost.attack_forwards:.1f}F {record.cost.attack_backwards:.1f}B",
        "flags": flags([record]),
    }


def detector_cell(record: Record) -> str:
    """A detector's true and false positive rate in percent, and its AUROC; empty without one."""
    found = detection(record.views) if record.views else None
    if found is None:
        return ""
    true = "-" if found.true_positive_rate is None else f"{100 * found.true_positive_rate:.0f}"
    area = "-" if found.auroc is None else f"{found.auroc:.2f}"
    return f"TPR {true} FPR {100 * found.false_positive_rate:.0f} AUROC {area}"


def _any_view(records: Sequence[Record]) -> Estimate | None:
    """Images on which some scored view is right under each attack; None where none is scored."""
    found = [any_right(record.views, record.outcomes) for record in records if record.views]
    return share(np.min(found, axis=0)) if found else None


def _inference(entry: Entry, tell: Callable[[Inference], T]) -> T | Literal[""]:
    """Of the newest record that has it."""
    found = [record.inference for record in entry.records if record.inference]
    return tell(found[-1]) if found else ""


def _struck(name: str, records: Iterable[Record]) -> str:
    """The name, struck through where an audit failed: shown, not hidden."""
    failed = any(
        r.metrics.collapsed or any(f.verdict == "fail" for f in r.findings) for r in records
    )
    return f"~~{name}~~" if failed else name


def _markdown(table: pd.DataFrame) -> str:
    return tabulate(
        table,  # type: ignore[arg-type]
        headers="keys",
        tablefmt="github",
        showindex=False,
        disable_numparse=True,
    )


# The board ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """All records of one defense on one subject."""

    records: list[Record]

    @property
    def first(self) -> Record:
        """Any of them."""
        return self.records[0]

    def flags(self) -> str:
        """What a reader must know; a missing gradient only where no attack without that flaw went
        lower.
        """
        lowest = min(self.records, key=lambda record: record.metrics.adversarial.mean.value)
        found = flags(self.records).split(", ")
        return ", ".join(
            flag for flag in found if flag != "zero-gradient" or flag in flags([lowest]).split(", ")
        )

    def worst(self) -> Estimate:
        """Worst case per image over all attacks and attack seeds, with its interval; see
        `statistics.worst_case`.
        """
        values = worst_case([record.outcomes.correct("adversarial") for record in self.records])
        return share(values)

    def replayed(self) -> Estimate | None:
        """Worst case per image over the attacks that ran wholly on the image's own tapes, each on
        its tapes.
        """
        shares = [
            r.outcomes.correct("replayed").mean(1) for r in self.records if _on_own_fixed_noise(r)
        ]
        return share(np.min(shares, axis=0)) if shares else None

    def all_draws(self, which: str) -> Estimate:
        """Images right in every judged draw under every attack and seed, `clean` or
        `adversarial`.
        """
        return share(np.min([r.outcomes.correct(which).all(1) for r in self.records], axis=0))


def _on_own_fixed_noise(record: Record) -> bool:
    """Not `common`, nor a replay of some stages alone: those are other threats."""
    randomness = record.title["randomness"]
    return randomness == "replay" or randomness.startswith("replay-set")


def newest(records: Iterable[Record]) -> list[Record]:
    """One record for each defense, attack and seed: of an attack's versions the last that ran."""
    kept: dict[tuple[str, ...], Record] = {}
    for record in sorted(records, key=lambda record: record.finished):
        kept[(_defense(record), attack_label(record), record.title["seed"])] = record
    return list(kept.values())


def by_setup(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each subject: those on the same images, classifier and threat."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[_setup(record)].append(record)
    return list(groups.values())


def _setup(record: Record) -> tuple[str, ...]:
    identity = record.identity
    dataset, threat = identity["dataset"], identity["threat"]
    weights = identity["classifier"]["sha256"]
    return (
        dataset["sha256"],
        str(dataset["n"]),
        weights,
        threat["norm"],
        str(threat["eps"]),
        str(identity["protocol"]),
    )


def _defense(record: Record) -> str:
    """All that makes two rows different defenses: an edited plugin is another one under the same
    name.
    """
    identity = record.identity
    parts = [
        identity["defense"],
        identity["data"],
        identity["seeds"]["build"],
        identity["judged_draws"],
    ]
    return json.dumps(parts, sort_keys=True)


def _entries(records: Iterable[Record]) -> dict[str, Entry]:
    """The records of each defense, by what makes it a defense of its own."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[_defense(record)].append(record)
    return {defense: Entry(of) for defense, of in found.items()}


@dataclass(frozen=True)
class Board:
    """The leaderboard of one subject: data set, classifier, threat model and images.

    Attributes:
        heading: the subject in words.
        note: what the columns mean.
        table: one row a defense, best worst case first; every share in percent as text.
        numbers: the same rows with plain numbers, for CSV.
        built: see `built_lines`.
    """

    heading: str
    note: str
    table: pd.DataFrame
    numbers: pd.DataFrame
    built: tuple[str, ...] = ()


def boards(records: Sequence[Record]) -> list[Board]:
    """One board a subject."""
    return [_board(group, records) for group in by_setup(records)]


def _board(group: list[Record], everything: Sequence[Record]) -> Board:
    columns = list(dict.fromkeys(attack_label(record) for record in group))
    by_evaluation = {record.id: record for record in everything}
    entries = list(_entries(newest(group)).values())
    entries.sort(
        key=lambda entry: (
            entry.first.metrics.collapsed,
            -entry.worst().value,
            entry.first.title["defense"],
        )
    )
    first = group[0]
    named = list(zip(_names(entries), entries, strict=True))
    texts = [
        {"defense": _struck(name, entry.records), **_text_row(entry, columns, by_evaluation)}
        for name, entry in named
    ]
    built = built_lines((name, record) for name, entry in named for record in entry.records)
    numbers = [{"setup": heading(first), **_number_row(entry, by_evaluation)} for entry in entries]
    told = note(group) + _INFERENCE_NOTE * any(record.inference for record in group)
    return Board(
        heading(first), told, _without_empty_columns(texts), pd.DataFrame(numbers), tuple(built)
    )


def _names(entries: Sequence[Entry]) -> list[str]:
    """Names of the rows; where two share one, with the build seed, or (an edited plugin) the start
    of their identity's hash.
    """
    names = [entry.first.title["defense"] for entry in entries]
    for tell in (_build_of, _hash_of):
        names = [
            name if names.count(name) == 1 else f"{name} {tell(entry)}"
            for name, entry in zip(names, entries, strict=True)
        ]
    return names


def _build_of(entry: Entry) -> str:
    return f"(build {entry.first.identity['seeds']['build']})"


def _hash_of(entry: Entry) -> str:
    return f"#{hashlib.sha256(_defense(entry.first).encode()).hexdigest()[:6]}"


def _base_of(entry: Entry, by_evaluation: dict[str, Record]) -> Entry | None:
    bases = {
        record.base: by_evaluation[record.base]
        for record in entry.records
        if record.base in by_evaluation
    }
    return Entry(list(bases.values())) if bases else None


def _text_row(entry: Entry, columns: list[str], by_evaluation: dict[str, Record]) -> dict[str, str]:
    metrics, base, replayed = entry.first.metrics, _base_of(entry, by_evaluation), entry.replayed()
    draws = metrics.adversarial.draws
    return {
        "clean": str(metrics.clean.mean),
        **{column: _attack_evaluation(entry, column) for column in columns},
        "worst case": str(entry.worst()),
        "replayed": str(replayed) if replayed else "",
        "all draws": f"{100 * entry.all_draws('clean').value:.1f} -> "
        f"{100 * entry.all_draws('adversarial').value:.1f}"
        if draws > 1
        else "",
        "base": f"{100 * base.worst().value:.1f}" if base else "",
        "any view": str(_any_view(entry.records) or ""),
        "macro-F1": f"{100 * metrics.clean.macro_f1.value:.1f} -> {100 * _lowest_f1(entry):.1f}",
        "constant": f"{100 * metrics.constant_accuracy:.1f}",
        "data access": ", ".join(entry.first.access) or "none",
        "passes/image": f"{_passes(entry):.0f}",
        "passes/prediction": _inference(entry, lambda found: f"{found.passes:.1f}"),
        "RobustBench": _inference(entry, lambda found: ", ".join(found.obstacles()) or "admits"),
        "flags": entry.flags(),
    }


def _attack_evaluation(entry: Entry, column: str) -> str:
    values = [
        100 * r.metrics.adversarial.mean.value for r in entry.records if attack_label(r) == column
    ]
    if not values:
        return ""
    mean = float(np.mean(values))
    return (
        f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f}-{max(values):.1f})"
    )


def _lowest_f1(entry: Entry) -> float:
    return min(record.metrics.adversarial.macro_f1.value for record in entry.records)


def _passes(entry: Entry) -> float:
    return sum(
        record.cost.attack_forwards + record.cost.attack_backwards for record in entry.records
    )


def _number_row(entry: Entry, by_evaluation: dict[str, Record]) -> dict[str, object]:
    metrics, worst, base, replayed = (
        entry.first.metrics,
        entry.worst(),
        _base_of(entry, by_evaluation),
        entry.replayed(),
    )
    return {
        "defense": entry.first.title["defense"],
        "build_seed": entry.first.identity["seeds"]["build"],
        "n": metrics.n,
        "clean": metrics.clean.mean.value,
        "clean_low": metrics.clean.mean.low,
        "clean_high": metrics.clean.mean.high,
        "worst_case": worst.value,
        "worst_case_low": worst.low,
        "worst_case_high": worst.high,
        "replayed": replayed.value if replayed else None,
        "any_view": best.value if (best := _any_view(entry.records)) else None,
        "base_worst_case": base.worst().value if base else None,
        "clean_macro_f1": metrics.clean.macro_f1.value,
        "lowest_macro_f1": _lowest_f1(entry),
        "constant_accuracy": metrics.constant_accuracy,
        "collapsed": any(record.metrics.collapsed for record in entry.records),
        "data_access": ", ".join(entry.first.access) or "none",
        "passes_per_image": _passes(entry),
        "passes_per_prediction": _inference(entry, lambda found: found.passes),
        "robustbench": _inference(entry, lambda found: ", ".join(found.obstacles()) or "admits"),
        "flags": entry.flags(),
        "attacks": "; ".join(sorted({attack_label(record) for record in entry.records})),
        "seeds": "+".join(sorted({record.title["seed"] for record in entry.records})),
        "built": "; ".join(_built(entry.first)),
    }


def load(places: Iterable[Path]) -> tuple[list[Record], list[Failure]]:
    """All records and failures in these files and below these folders, each cell once."""
    records: dict[str, Record] = {}
    failures: dict[str, Failure] = {}
    for place in places:
        for found in [read(place)] if place.is_file() else read_folder(place):
            if isinstance(found, Record):
                records.setdefault(found.id, found)
            else:
                failures.setdefault(found.id, found)
    done = [record.title for record in records.values()]
    return list(records.values()), [
        failure for failure in failures.values() if failure.title not in done
    ]


def markdown(found: Sequence[Board], failures: Sequence[Failure] = ()) -> str:
    """All boards as one Markdown page, and the cells that crashed, as errors and not as numbers."""
    sections = [_section(board) for board in found]
    if failures:
        lines = [f"- {_what(failure)}: error ({failure.error})" for failure in failures]
        sections.append("## Errors\n\n" + "\n".join(lines) + "\n")
    return "\n".join(["# Leaderboard\n", *sections])


def _section(board: Board) -> str:
    parts = [f"## {board.heading}", _markdown(board.table), board.note]
    parts += [_BUILT, "\n".join(board.built)] if board.built else []
    return "\n\n".join(parts) + "\n"


def _what(failure: Failure) -> str:
    title = failure.title
    return (
        f"{title['defense']} x {title['attack']} on {title['dataset']}, {title['threat']}, "
        f"n={title['n']}"
    )


def table(made: Sequence[Board]) -> pd.DataFrame:
    """All boards as one table with plain numbers."""
    return (
        pd.concat([board.numbers for board in made], ignore_index=True) if made else pd.DataFrame()
    )


def csv(made: Sequence[Board]) -> str:
    """All boards as one CSV table with plain numbers."""
    return str(table(made).to_csv(index=False)) if made else ""
