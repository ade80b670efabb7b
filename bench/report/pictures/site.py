"""A folder of results as pages: the boards, a list of records, a page a record, and pictures.

Every page and picture has one path, whether it is served or written: nothing else is ever read for
a path than what a record here names.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from bench.errors import BadInput
from bench.report.escape import html
from bench.report.grouping import by_defense, by_setup
from bench.report.page.document import document
from bench.report.pictures.levels import png, sheet, tiles_of
from bench.report.pictures.record_page import Answers, record_page
from bench.report.pictures.seen import WHICH, Images, Seen
from bench.report.words import attack_label, defense_label, failure_label, flags, heading
from bench.results.record import Failure, Record
from bench.results.store import files_below, is_failure, read_failure, read_record, to_json

_SHEET = re.compile(rf"records/([0-9a-f]{{16}})/({'|'.join(WHICH)})-(0|[1-9][0-9]{{0,5}})\.png")
_RECORD = re.compile(r"records/([0-9a-f]{16})(\.html|/record\.json)")
_KEPT = 4
_STYLE = ".whole { white-space: nowrap; }"

HTML, JSON, PNG = "text/html; charset=utf-8", "application/json", "image/png"


@dataclass(frozen=True)
class Results:
    """What lies in a folder.

    Attributes:
        records: by id, each with its file.
        failures: evaluations that crashed.
    """

    records: dict[str, tuple[Record, Path]]
    failures: list[Failure]

    def all(self) -> list[Record]:
        """The records alone."""
        return [record for record, _ in self.records.values()]


def read_results(folder: Path) -> Results:
    """All records and failures below a folder. Raises `BadInput` where there is none of them, or
    one is damaged.
    """
    if not folder.is_dir():
        raise BadInput(f"no such folder: {str(folder)[:300]}: name the folder that holds records")
    records: dict[str, tuple[Record, Path]] = {}
    failures: dict[str, Failure] = {}
    for path in files_below(folder):
        if is_failure(path):
            failure = read_failure(path)
            failures.setdefault(failure.id, failure)
        else:
            record = read_record(path)
            records.setdefault(record.id, (record, path))
    if not records and not failures:
        raise BadInput(f"no records in {folder}: run something first")
    return Results(records, [one for one in failures.values() if one.id not in records])


class Site:
    """Pages and pictures of a folder of results, by their paths.

    Args:
        results: what lies there.
        images: where clean images come from.
        boards: HTML of the page of boards; empty where there is none.
        answers: what is known of a record's defense beyond the record.
    """

    def __init__(
        self,
        results: Results,
        images: Images,
        boards: str,
        answers: Callable[[Record], Answers],
    ) -> None:
        self.results = results
        self._images, self._answers = images, answers
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._lock = RLock()
        listed = records_page(results).encode()
        self._fixed = {"index.html": boards.encode() or listed, "records.html": listed}
        self._rows: dict[str, list[Record]] = {}
        for group in by_setup(results.all()):
            for row in by_defense(group):
                self._rows |= {record.id: row for record in row}

    def paths(self) -> Iterator[str]:
        """All paths, in an order in which a record's pictures stand together."""
        yield from self._fixed
        for record in self.results.all():
            yield f"records/{record.id}.html"
            yield f"records/{record.id}/record.json"
            seen = self.seen(record.id)
            for which in seen.which:
                for number in range(-(-record.metrics.n // tiles_of(seen.shape))):
                    yield f"records/{record.id}/{which}-{number}.png"

    def read(self, path: str) -> tuple[str, bytes] | None:
        """Media type and content of a path, without a leading slash; None where there is none."""
        if path in self._fixed:
            return HTML, self._fixed[path]
        asked = _RECORD.fullmatch(path)
        if asked and asked[1] in self.results.records:
            record, _ = self.results.records[asked[1]]
            if asked[2] == "/record.json":
                return JSON, to_json(record)
            seen, answers = self.seen(record.id), self._answers(record)
            return HTML, record_page(record, self._rows[record.id], seen, answers).encode()
        asked = _SHEET.fullmatch(path)
        if asked and asked[1] in self.results.records:
            return self._sheet(asked[1], asked[2], int(asked[3]))
        return None

    def seen(self, record: str) -> Seen:
        """What can be seen of a record; that of the last few is kept."""
        with self._lock:
            if record not in self._seen:
                what, path = self.results.records[record]
                self._seen[record] = self._images.seen(what, path.parent)
                if len(self._seen) > _KEPT:
                    self._seen.popitem(last=False)
            self._seen.move_to_end(record)
            return self._seen[record]

    def _sheet(self, record: str, which: str, number: int) -> tuple[str, bytes] | None:
        seen = self.seen(record)
        if which not in seen.which:
            return None
        tiles = tiles_of(seen.shape)
        levels = seen.levels(which, number * tiles, (number + 1) * tiles)
        return (PNG, png(sheet(levels))) if len(levels) else None


def records_page(results: Results) -> str:
    """HTML of the list of all records, each with a link to its page."""
    body = ['<nav><a href="index.html">Boards</a></nav>', "<main>", "<h1>All records</h1>"]
    for group in by_setup(results.all()):
        body += _table(heading(group[0]), sorted(group, key=_place))
    if results.failures:
        failed = [f"<li>{html(failure_label(one))}</li>" for one in results.failures]
        body += ["<h2>What crashed</h2>", "<ul>", *failed, "</ul>"]
    return document("All records", "\n".join([*body, "</main>"]), styles=[_STYLE], beside=True)


def _place(record: Record) -> tuple[str, str, int]:
    return defense_label(record), attack_label(record), int(record.title["seed"])


def _table(caption: str, records: Sequence[Record]) -> list[str]:
    names = ("defense", "attack", "seed", "clean", "under attack", "notes")
    head = "".join(f'<th scope="col" class="whole">{name}</th>' for name in names)
    rows = [f"<tr>{_cells(record)}</tr>" for record in records]
    return [
        '<div class="scroll" tabindex="0">',
        f"<table><caption>{html(caption)}</caption><thead><tr>{head}</tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
    ]


def _cells(record: Record) -> str:
    link = f'<a href="records/{record.id}.html">{html(defense_label(record))}</a>'
    numbers = (
        record.title["seed"],
        str(record.metrics.clean.mean),
        str(record.metrics.adversarial.mean),
    )
    return "".join(
        [
            f"<td>{link}</td><td>{html(attack_label(record))}</td>",
            *(f'<td class="whole">{html(one)}</td>' for one in numbers),
            f"<td>{html(', '.join(flags([record])))}</td>",
        ]
    )
