"""A record in words: names, flags and lines that every table and page of records uses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from bench.defense import Card, Defense
from bench.plugins.create import DEFENSES
from bench.plugins.registry import Alias
from bench.report.doubts import doubts
from bench.report.tables import percent
from bench.results.audit import AuditReport
from bench.results.inference import Inference
from bench.results.outcomes import NO_TARGET, decode
from bench.results.record import Failure, Record, without_folders
from bench.results.targets import share_reached
from bench.results.views import detection

BUILT = "How these were built:"
"""Stands over the lines of `built_lines`."""


def heading(record: Record) -> str:
    """Data set, classifier, threat model and number of images."""
    title, scale = record.title, record.scale
    names = f"{without_folders(title['dataset'])}, {without_folders(title['classifier'])}"
    return f"{names}, {title['threat']}, {scale['n']} of {scale['available']} images"


def defense_label(record: Record) -> str:
    """The defense's spec; behind it `(stand-in)` where its card says that it is one."""
    return record.title["defense"] + " (stand-in)" * stands_in(record)


def stands_in(record: Record) -> bool:
    """Whether its defense stands in for a published one whose code or details are missing."""
    card = card_of(record)
    return bool(card and card.stand_in)


def card_of(record: Record) -> Card | None:
    """The card of a record's defense.

    Records do not hold cards, and may have been made where other plugins were installed: what is
    not installed here, or cannot be loaded, has none.
    """
    plugin = _plugin_of(record)
    return plugin.card if plugin else None


def family_of(record: Record) -> str:
    """The folder in which a defense's plugin lies among its siblings, such as `testtime`; empty
    where it lies beside all of them, or is not installed here.
    """
    plugin = _plugin_of(record)
    rooms = plugin.__module__.split(".")[1:-1] if plugin else []
    return rooms[0] if rooms else ""


def _plugin_of(record: Record) -> type[Defense[Any]] | None:
    defense = record.identity["defense"]
    # A file's plugin is not registered: its name says nothing of a card, and to look would run it.
    if "source" in defense or "@" in str(defense["name"]):
        return None
    try:
        plugin = DEFENSES.get(str(defense["name"]))
    except Exception:
        return None
    return None if isinstance(plugin, Alias) else plugin


def attack_label(record: Record) -> str:
    """Attack with the settings that differ from plain: `pgd (bpda, eot:k=20)`."""
    title = record.title
    extra = [title["gradient"]] * (title["gradient"] != "full")
    extra += [title["randomness"]] * (title["randomness"] not in ("none", "fresh"))
    return without_folders(title["attack"]) + (f" ({', '.join(extra)})" if extra else "")


def denoiser_passes(inference: Inference | None) -> str:
    """Passes through a diffusion model for one prediction; empty where none is known."""
    passes = inference.denoiser_passes if inference else None
    return "" if passes is None else f"{passes:.1f}"


def failure_label(failure: Failure) -> str:
    """What crashed, and with which error: never a number."""
    title = failure.title
    return (
        f"{title['defense']} x {title['attack']} on {title['dataset']}, {title['threat']}, "
        f"n={title['n']}: error ({failure.error})"
    )


def flags(records: Iterable[Record], *, with_scale: bool = True) -> list[str]:
    """What a reader must know: collapse, reduced scale, findings that are more than a note."""
    names: dict[str, None] = {}
    for record in records:
        if record.metrics.collapsed:
            names["COLLAPSED"] = None
        if with_scale and record.scale["reduced"]:
            names[f"n={record.scale['n']} of {record.scale['available']}"] = None
        for finding in record.findings:
            if finding.verdict != "note":
                names[finding.name] = None
    return list(names)


def audit_of(records: Sequence[Record]) -> AuditReport | None:
    """The audit of the strongest attack of a defense, of several any that was audited: of a weaker
    one it says that it is weak.
    """

    def order(record: Record) -> tuple[float, bool]:
        return record.metrics.adversarial.mean.value, record.audit is None

    return min(records, key=order).audit


def has_failed(records: Sequence[Record]) -> bool:
    """Whether one of the records of one build of a defense on one setup collapsed or failed a check
    that no other one answers, or the audit of its strongest attack failed.
    """
    audit = audit_of(records)
    return (
        bool(audit and audit.failed)
        or any(record.metrics.collapsed for record in records)
        or any(doubt.verdict == "fail" for doubt in doubts(records))
    )


def struck_through(name: str, failed: bool) -> str:
    """The name of what failed is struck through: shown, not hidden."""
    return f"~~{name}~~" if failed else name


def data_access(record: Record) -> str:
    """The data that the defense declared; `none` for weights alone."""
    return ", ".join(record.access) or "none"


def detector_rates(record: Record) -> str:
    """A detector's true and false positive rate in percent, and its AUROC; empty without one."""
    rates = detection(record.views) if record.views else None
    if rates is None:
        return ""
    true = "-" if rates.true_positive_rate is None else f"{100 * rates.true_positive_rate:.0f}"
    area = "-" if rates.auroc is None else f"{rates.auroc:.2f}"
    return f"TPR {true} FPR {100 * rates.false_positive_rate:.0f} AUROC {area}"


def targets_reached(record: Record) -> str:
    """Share of the attacked images that are answered with their target; empty where there is
    none.
    """
    if record.targets is None:
        return ""
    targets = decode(record.targets, record.outcomes.num_classes)
    aimed = bool((targets != NO_TARGET).any())
    return str(share_reached(targets, record.outcomes)) if aimed else "-"


def median_distance(record: Record) -> str:
    """Of the nearest points that a minimal-norm attack found to break the images; empty for other
    attacks.
    """
    if record.distances is None:
        return ""
    median = record.distances.median
    return f"{median:.4g}" if math.isfinite(median) else "infinite"


def stages_line(record: Record) -> str:
    """What each stage of an attack left unbroken, in percent; `record.stages` must be there."""
    assert record.stages is not None
    left = ", ".join(f"{name} {percent(share)}" for name, share in record.stages.left().items())
    return f"- {defense_label(record)}, {attack_label(record)}: {left}"


def built_messages(record: Record) -> list[str]:
    """What is to be known of how the defense was built."""
    return [finding.message for finding in record.findings if finding.name == "built"]


def built_lines(named: Iterable[tuple[str, Record]]) -> list[str]:
    """What is to be known of how each row's defense was built, as a list; rows of which the same is
    said share a line.
    """
    rows_of: dict[str, dict[str, None]] = defaultdict(dict)
    for name, record in named:
        for message in built_messages(record):
            rows_of[message][name] = None
    messages_of: dict[str, list[str]] = defaultdict(list)
    for message, names in rows_of.items():
        messages_of[", ".join(names)].append(message)
    return [f"- {names}: {'; '.join(messages)}" for names, messages in messages_of.items()]
