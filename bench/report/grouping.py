"""Which records belong together: on one setup, of one defense, the newest of several."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from bench.report.words import attack_label, defense_label
from bench.results.record import Record


def by_setup(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each setup: those on the same images, classifier and threat."""
    return _grouped(records, _setup)


def by_defense(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each defense. An edited plugin is another defense under the same name, and so
    is another build.
    """
    return _grouped(records, defense_key)


def newest(records: Iterable[Record]) -> list[Record]:
    """One record for each defense, attack and seed: of an attack's versions the last that ran."""
    kept: dict[tuple[str, ...], Record] = {}
    for record in sorted(records, key=lambda record: record.finished):
        kept[(defense_key(record), attack_label(record), record.title["seed"])] = record
    return list(kept.values())


def defense_names(groups: Sequence[Sequence[Record]]) -> list[str]:
    """A name for each group of `by_defense`: its spec; where two share one, with the build seed, or
    (an edited plugin) the start of their identity's hash.
    """
    names = [defense_label(group[0]) for group in groups]
    for difference in (_build, _hash):
        names = [
            name if names.count(name) == 1 else f"{name} {difference(group[0])}"
            for name, group in zip(names, groups, strict=True)
        ]
    return names


def defense_key(record: Record) -> str:
    """All that makes two rows different defenses."""
    identity = record.identity
    return json.dumps(
        [
            identity["defense"],
            identity["data"],
            identity["seeds"]["build"],
            identity["judged_draws"],
        ],
        sort_keys=True,
    )


def _setup(record: Record) -> Hashable:
    identity = record.identity
    dataset, threat = identity["dataset"], identity["threat"]
    return (
        dataset["sha256"],
        dataset["n"],
        identity["classifier"]["sha256"],
        threat["norm"],
        str(threat["eps"]),
        str(identity["protocol"]),
    )


def _grouped(records: Iterable[Record], key: Callable[[Record], Hashable]) -> list[list[Record]]:
    groups: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return list(groups.values())


def _build(record: Record) -> str:
    return f"(build {record.identity['seeds']['build']})"


def _hash(record: Record) -> str:
    return f"#{hashlib.sha256(defense_key(record).encode()).hexdigest()[:6]}"
