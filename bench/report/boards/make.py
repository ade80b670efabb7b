"""From records to boards: one a setup, one row a method."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bench.report.boards import citing, ranking
from bench.report.boards.entry import Entry
from bench.report.boards.model import (
    Attacked,
    Audit,
    AuditedCheck,
    Board,
    Budget,
    Build,
    Extras,
    Kind,
    Note,
    OfClass,
    Row,
    Setup,
    Source,
)
from bench.report.boards.names import own_settings
from bench.report.boards.protocol import BoardFile, faces, is_control, is_transfer, listed
from bench.report.boards.sentences import sentences
from bench.report.doubts import doubts
from bench.report.grouping import by_defense, by_setup, defense_key, newest
from bench.report.notes import board_note, more_note
from bench.report.words import (
    attack_label,
    audit_of,
    built_messages,
    card_of,
    defense_label,
    family_of,
)
from bench.results.aggregation import mean_of_draws, mean_over_seeds
from bench.results.arrays import Floats, Ints
from bench.results.audit import AuditReport
from bench.results.comparisons import MIN_BUILDS, gap, gap_over_builds, mean_over_builds
from bench.results.estimate import Estimate
from bench.results.intervals import share
from bench.results.record import Record, without_folders

BASE = "undefended"


def boards(
    records: Sequence[Record],
    about: BoardFile | None = None,
    paths: Mapping[str, Path] | None = None,
) -> list[Board]:
    """One board a setup; those in which nothing is ranked come last.

    Args:
        records: of any setups and defenses.
        about: title and protocol; by default a board has the default protocol.
        paths: by id, the records' files.

    Raises:
        Contradiction: where a record breaks an image that another one's certificate proves.
    """
    context = _Context(records, about or BoardFile(), paths or {})
    made = [context.board(group) for group in by_setup(records)]
    return sorted(made, key=lambda board: all(row.rank is None for row in board.rows))


class _Context:
    """What all boards share."""

    def __init__(
        self, records: Sequence[Record], about: BoardFile, paths: Mapping[str, Path]
    ) -> None:
        self.by_id = {record.id: record for record in records}
        self.about = about
        self.paths = paths

    def board(self, group: list[Record]) -> Board:
        methods = _by_method(newest(group))
        names = _names([builds[0].first for builds in methods])
        base = next((builds[0] for builds in methods if _is_base(builds[0])), None)
        rows = ranking.ranked(
            [
                self.row(name, own, builds, base)
                for name, own, builds in zip(names, own_settings(names), methods, strict=True)
            ]
        )
        setup, protocol = _setup(group[0]), self.about.protocol
        kinds = sorted({row.kind for row in rows})
        defenses = sorted({str(builds[0].first.identity["defense"]["name"]) for builds in methods})
        return Board(
            title=self.about.title or f"{setup.dataset} under {setup.threat}",
            setup=setup,
            sentences=sentences(setup, rows),
            protocol=protocol.lines(kinds, defenses),
            note=board_note(group),
            more=more_note(group),
            rows=rows,
        )

    def row(self, name: str, own: tuple[str, ...], entries: list[Entry], base: Entry | None) -> Row:
        """All builds of one method as a row without its rank; `own` tells its name from others,
        `base` is the undefended classifier's.
        """
        builds = tuple(self.build(entry) for entry in entries)
        records = [record for entry in entries for record in entry.records]
        first, several = entries[0].first, len(entries) > 1
        card = card_of(first)
        attacked = not all(map(is_control, records))
        scores = np.stack([entry.worst_scores() for entry in entries])
        clean = np.stack([_clean(entry) for entry in entries])
        values = [build.robust.value for build in builds]
        return Row(
            rank=None,
            unranked=self.unranked(entries, builds, attacked),
            defense=name,
            own=own,
            spec=first.title["defense"],
            kind=_kind(records),
            family=family_of(first),
            base=_is_base(entries[0]),
            attacked=attacked,
            clean=_mean(clean) if several else first.metrics.clean.mean,
            robust=_mean(scores),
            spread=(min(values), max(values)) if several else None,
            macro_f1=(
                float(np.mean([build.macro_f1[0] for build in builds])),
                float(np.mean([build.macro_f1[1] for build in builds])),
            ),
            constant=first.metrics.constant_accuracy,
            access=tuple(first.access),
            audit=min((build.audit for build in builds), key=_trust),
            notes=_notes(entries),
            attacks=self.attacks(records),
            builds=builds,
            passes=float(np.mean([build.passes for build in builds])),
            paper=card.paper if card else "",
            citation=citing.bibtex(first, [record.id for record in records]),
            extras=self.extras(entries[0]),
            classes=_classes(first.outcomes.true_labels(), clean, scores),
            gain=None if base is None or _is_base(entries[0]) else _gain(scores, base),
        )

    def unranked(self, entries: Sequence[Entry], builds: Sequence[Build], attacked: bool) -> str:
        """Why a row has no rank; empty where it has one."""
        if not attacked:
            return ranking.NOT_ATTACKED
        if any(build.failed for build in builds):
            return ranking.FAILED
        if 2 * sum(build.collapsed for build in builds) >= len(builds):
            return ranking.COLLAPSED
        kind = _kind(record for entry in entries for record in entry.records)
        missing = dict.fromkeys(
            one for entry in entries for one in self.about.protocol.missing(kind, entry.records)
        )
        return f"{ranking.INCOMPLETE}: lacks {listed(list(missing))}" if missing else ""

    def build(self, entry: Entry) -> Build:
        """One build of a method."""
        report = audit_of(entry.records)
        failed = any(doubt.verdict == "fail" for doubt in doubts(entry.records))
        return Build(
            seed=entry.first.identity["seeds"]["build"],
            clean=entry.first.metrics.clean.mean,
            robust=entry.worst(),
            macro_f1=(entry.first.metrics.clean.macro_f1.value, entry.lowest_f1()),
            collapsed=any(record.metrics.collapsed for record in entry.records),
            failed=failed or bool(report and report.failed),
            passes=entry.passes(),
            audit=_audit(report),
            attacks=self.attacks(entry.records),
            built=tuple(built_messages(entry.first)),
            command=citing.command(entry.records),
        )

    def attacks(self, records: Iterable[Record]) -> tuple[Attacked, ...]:
        """One an attack, with the records of all its seeds and builds."""
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            groups[attack_label(record)].append(record)
        return tuple(self.attacked(label, group) for label, group in groups.items())

    def attacked(self, label: str, records: Sequence[Record]) -> Attacked:
        first, protocol = records[0], self.about.protocol
        required = protocol.required(_kind(records), str(first.identity["defense"]["name"]))
        values = [record.metrics.adversarial.mean.value for record in records]
        replayed = [record for record in records if record.outcomes.replayed]
        return Attacked(
            attack=label,
            gradient=first.title["gradient"],
            randomness=first.title["randomness"],
            control=is_control(first),
            transfer=is_transfer(first),
            required=any(faces(one, first) for one in required),
            robust=_over_builds(records, "adversarial"),
            lowest=min(values),
            highest=max(values),
            replayed=_over_builds(replayed, "replayed") if replayed else None,
            budget=_budget(records),
            n=first.metrics.n,
            draws=first.metrics.adversarial.draws,
            seeds=tuple(sorted({int(record.title["seed"]) for record in records})),
            sources=tuple(map(self.source, records)),
        )

    def source(self, record: Record) -> Source:
        path = self.paths.get(record.id)
        return Source(
            id=record.id,
            path=path.as_posix() if path else "",
            command=citing.command([record]),
            commit=str(record.environment.get("commit") or ""),
            finished=record.finished,
        )

    def extras(self, entry: Entry) -> Extras:
        base, inference, vote = entry.base(self.by_id), entry.inference(), entry.vote()
        stochastic = entry.first.metrics.adversarial.draws > 1
        draws = (entry.all_draws("clean").value, entry.all_draws("adversarial").value)
        return Extras(
            certified=entry.certified(),
            alpha=vote.alpha if vote else None,
            replayed=entry.replayed(),
            replays=tuple(map(attack_label, entry.replays())),
            replay_passes=sum(map(_passes, entry.replays())),
            all_draws=draws if stochastic else None,
            any_view=entry.any_view(),
            base=base.worst().value if base else None,
            passes=inference.passes if inference else None,
            denoiser_passes=inference.denoiser_passes if inference else None,
            obstacles=tuple(inference.obstacles()) if inference else None,
        )


def _by_method(records: Sequence[Record]) -> list[list[Entry]]:
    """The builds of each method, by their seeds."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for build in by_defense(records):
        groups[_method(build[0])].append(Entry(build))
    return [
        sorted(builds, key=lambda entry: int(entry.first.identity["seeds"]["build"]))
        for builds in groups.values()
    ]


def _method(record: Record) -> str:
    """What its builds share."""
    identity = record.identity
    of_all = [identity["defense"], identity["data"], identity["judged_draws"]]
    return json.dumps(of_all, sort_keys=True)


def _names(firsts: Sequence[Record]) -> list[str]:
    """A name for each method: its spec, and where two share one, the start of a hash."""
    names = [defense_label(record) for record in firsts]
    return [
        name if names.count(name) == 1 else f"{name} #{citing.short(defense_key(record))}"
        for name, record in zip(names, firsts, strict=True)
    ]


def _kind(records: Iterable[Record]) -> Kind:
    return "stochastic" if any(record.stochastic for record in records) else "deterministic"


def _setup(record: Record) -> Setup:
    title, threat = record.title, record.identity["threat"]
    return Setup(
        dataset=without_folders(title["dataset"]),
        classifier=without_folders(title["classifier"]),
        threat=title["threat"],
        norm=str(threat["norm"]),
        eps=float(threat["eps"]),
        n=record.scale["n"],
        available=record.scale["available"],
    )


def _mean(scores: Floats) -> Estimate:
    """Of scores (builds, n); of one build with an interval over images alone."""
    return share(scores[0]) if len(scores) < MIN_BUILDS else mean_over_builds(scores)


def _is_base(entry: Entry) -> bool:
    return bool(entry.first.title["defense"] == BASE)


def _gain(scores: Floats, base: Entry) -> Estimate:
    """Scores (builds, n) minus the undefended classifier's, image by image."""
    others = np.stack([base.worst_scores()] * len(scores))
    return gap(scores[0], others[0]) if len(scores) == 1 else gap_over_builds(scores, others)


def _classes(labels: Ints, clean: Floats, robust: Floats) -> tuple[OfClass, ...]:
    """Of labels (n,) and scores (builds, n)."""
    clean, robust = mean_over_seeds(list(clean)), mean_over_seeds(list(robust))
    return tuple(
        OfClass(int(one), int(own.sum()), share(clean[own]), share(robust[own]))
        for one in np.unique(labels)
        for own in [labels == one]
    )


def _clean(entry: Entry) -> Floats:
    return mean_of_draws(entry.first.outcomes.correct("clean"))


def _over_builds(records: Sequence[Record], which: str) -> Estimate:
    """Of one attack: the mean over seeds of each build, and over builds."""
    if len(records) == 1:
        metrics = records[0].metrics
        only = metrics.replayed if which == "replayed" else metrics.adversarial
        assert only is not None
        return only.mean
    builds: dict[int, list[Floats]] = defaultdict(list)
    for record in records:
        scores = mean_of_draws(record.outcomes.correct(which))
        builds[record.identity["seeds"]["build"]].append(scores)
    return _mean(np.stack([mean_over_seeds(seeds) for seeds in builds.values()]))


def _budget(records: Sequence[Record]) -> Budget:
    costs = [record.cost for record in records]
    mean = partial(np.mean, dtype=np.float64)
    return Budget(
        forwards=float(mean([cost.attack_forwards for cost in costs])),
        backwards=float(mean([cost.attack_backwards for cost in costs])),
        most=max(cost.max_attack_forwards + cost.max_attack_backwards for cost in costs),
        seconds=float(sum(cost.seconds for cost in costs)),
    )


def _passes(record: Record) -> float:
    return record.cost.attack_forwards + record.cost.attack_backwards


def _audit(report: AuditReport | None) -> Audit:
    if report is None:
        return Audit("not audited")
    checks = [*report.failed, *report.warned]
    spoke = tuple(
        AuditedCheck(one.id, one.name, one.verdict, one.message, one.advice) for one in checks
    )
    return Audit(report.verdict, report.profile, spoke, len(report.checks) - len(checks))


def _trust(audit: Audit) -> int:
    """The worst verdict first, and none before a good one."""
    order = ["masking-evidence", "inconclusive", "not audited", "no-evidence-found"]
    return order.index(audit.state)


def _notes(entries: Sequence[Entry]) -> tuple[Note, ...]:
    """Flags with their reasons, and the builds that each is said of where not of all."""
    reasons: dict[str, str] = {}
    builds: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        for flag, reason in entry.reasons():
            reasons.setdefault(flag, reason)
            builds[flag].append(entry.first.identity["seeds"]["build"])
    return tuple(
        Note(flag, reason, tuple(builds[flag]) if len(builds[flag]) < len(entries) else ())
        for flag, reason in reasons.items()
    )
