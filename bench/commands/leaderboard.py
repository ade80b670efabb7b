"""`bench leaderboard`: boards from folders of records, written in a form, or checked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BadInput
from bench.report.boards.forms import Form, Made, form_of
from bench.report.boards.make import boards
from bench.report.boards.protocol import FILE, BoardFile, read_board_file
from bench.report.reference import read_references
from bench.results.store import files_below, read_all
from bench.storage.files import write_whole


def made_of(places: Sequence[Path], out: Path | None) -> Made:
    """The boards of these records, as a form is made of them.

    Args:
        places: folders of records, or files of them. One folder alone may have a `board.toml`.
        out: the file that will be written; None for the terminal.

    Raises:
        BadInput: where there is nothing, or a file is damaged.
    """
    records, failures = read_all(places)
    if not records and not failures:
        raise BadInput(f"no records in {', '.join(map(str, places))}: run something first")
    alone = len(places) == 1 and places[0].is_dir()
    about = read_board_file(places[0]) if alone else BoardFile()
    folder = out.parent if out else Path()
    return Made(
        boards(records, about, _paths(places)),
        failures,
        folder,
        about.title,
        read_references(places[0] / about.reference) if about.reference else (),
    )


def _paths(places: Sequence[Path]) -> dict[str, Path]:
    """The files of records by id, which ends their names."""
    files = [path for one in places for path in (files_below(one) if one.is_dir() else [one])]
    return {path.stem.rpartition("--")[2]: path for path in reversed(files)}


def write(form: Form, made: Made, out: Path) -> None:
    """Write a form of boards whole. Raises `BadInput` where that fails."""
    content = form.write(made)
    try:
        write_whole(out, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise BadInput(f"cannot write {out} ({error.strerror}): give another file") from error


@dataclass(frozen=True)
class Checked:
    """A committed page beside the one that its records make.

    Attributes:
        folder: of the records.
        page: the committed file.
        differs: the first line that differs, as committed and as made; empty where none does.
    """

    folder: Path
    page: Path
    differs: str

    def __str__(self) -> str:
        if not self.differs:
            return f"{self.page}: follows from {self.folder}"
        return f"{self.page}: {self.differs}; bench leaderboard {self.folder} --out {self.page}"


def check(places: Sequence[Path]) -> Iterator[Checked]:
    """Every board below these folders whose `board.toml` names a page.

    Raises:
        BadInput: where there is none, or a file is damaged.
    """
    found = False
    for path in sorted({path for place in places for path in place.rglob(FILE)}):
        about = read_board_file(path.parent)
        if about.page:
            found = True
            yield _checked(path.parent, path.parent / about.page)
    if not found:
        raise BadInput(
            f"no {FILE} below {', '.join(map(str, places))} names a page: see publish-a-row.md"
        )


def _checked(folder: Path, page: Path) -> Checked:
    page = Path(os.path.normpath(page))
    content = form_of(None, page).write(made_of([folder], page))
    try:
        committed = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return Checked(folder, page, "is not there")
    text = content if isinstance(content, str) else content.decode()
    lines = difflib.unified_diff(committed.splitlines(), text.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    first = f"has {len(changed)} other lines, first {changed[0][:80]!r}" if changed else ""
    return Checked(folder, page, first or ("ends otherwise" if committed != text else ""))
