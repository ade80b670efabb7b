"""`bench audit`: what can be said against numbers, each kind of place by its own audit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.audit.published import as_csv, as_json, as_markdown, audit_tables
from bench.errors import BadInput
from bench.results.store import files_below


@dataclass(frozen=True)
class Audited:
    """What an audit prints, and whether anything failed."""

    text: str
    failed: bool


def audit(places: Sequence[Path], form: str) -> Audited:
    """Audit places that are all of one kind.

    Args:
        places: CSV files of published numbers, or folders of them.
        form: a format of that kind, such as `md`.

    Raises:
        BadInput: where a place is missing or of no kind, kinds are mixed, what it holds does not
            fit, or the format is unknown.
    """
    for accepts, run in _AUDITS:
        if all(map(accepts, places)):
            return run(places, form)
    for place in places:
        if not any(accepts(place) for accepts, _ in _AUDITS):
            raise BadInput(
                f"{place} {_wrong_with(place)}: give a record, a CSV file of published numbers, or "
                "a folder of one kind"
            )
    raise BadInput("these places are of different kinds: audit them one by one")


def _wrong_with(place: Path) -> str:
    return "holds nothing to audit" if place.exists() else "is not there"


def _holds_tables(place: Path) -> bool:
    if place.is_dir():
        return any(place.glob("*.csv")) and not holds_records(place)
    return place.suffix == ".csv"


def holds_records(place: Path) -> bool:
    """Whether a place is a record's file, or a folder with some below it."""
    return bool(files_below(place)) if place.is_dir() else place.suffix == ".json"


def _audit_tables(places: Sequence[Path], form: str) -> Audited:
    formats = {"md": as_markdown, "json": as_json, "csv": as_csv}
    if form not in formats:
        raise BadInput(f"unknown format {form!r}: use {', '.join(formats)}")
    done = audit_tables(places)
    return Audited(formats[form](done), done.failed)


_AUDITS: tuple[tuple[Callable[[Path], bool], Callable[[Sequence[Path], str], Audited]], ...] = (
    (_holds_tables, _audit_tables),
)
