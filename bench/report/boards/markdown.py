"""Boards as a Markdown page that fits 900 pixels: who is best, under what, how sure, audited."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from urllib.parse import quote

from bench.report import escape
from bench.report.boards.model import Attacked, Board, Build, Note, Row
from bench.report.boards.names import split
from bench.report.boards.ranking import COLLAPSED, FAILED, INCOMPLETE
from bench.report.boards.sentences import counted
from bench.report.notes import RANK
from bench.report.tables import percent
from bench.report.words import failure_label
from bench.results.estimate import Estimate
from bench.results.record import Failure

_NAME = 48
"""The longest name that stands in the first table; of a longer one the settings stand below."""

_WIDE = 96

_NAMED = 5
"""The most names of defenses in a cell."""

_PROTOCOL = "glossary.md#protocol-of-a-board"
_PAGES = {"COLLAPSED": "glossary.md#collapsed", INCOMPLETE: _PROTOCOL}
_FINDINGS = "reference/record.md#findings"

Cells = Sequence[str]


@dataclass(frozen=True)
class Links:
    """From a page to what it speaks of.

    Attributes:
        folder: where the page lies.
        docs: the folder of these pages; None where there is none near.
    """

    folder: Path
    docs: Path | None

    @classmethod
    def of(cls, folder: Path) -> Links:
        """For a page in this folder."""
        above = [folder.absolute(), *folder.absolute().parents]
        near = (one / "docs" for one in above if (one / "docs" / "glossary.md").is_file())
        return cls(folder, next(near, None))

    def page(self, text: str, page: str) -> str:
        """The text with a link to a page such as `glossary.md#collapsed`; plain where that is not
        near.
        """
        if self.docs is None:
            return escape.markdown(text)
        return f"[{escape.markdown(text)}]({self._to(self.docs)}/{page})"

    def file(self, text: str, path: str) -> str:
        """The text with a link to a file; plain where the path is empty."""
        return f"[{escape.markdown(text)}]({self._to(Path(path))})" if path else text

    def _to(self, path: Path) -> str:
        return quote(Path(os.path.relpath(path.absolute(), self.folder.absolute())).as_posix())


def page(
    boards: Sequence[Board],
    failures: Sequence[Failure] = (),
    *,
    folder: Path = Path(),
    title: str = "",
) -> str:
    """All boards as one page, and what crashed, as errors and not as numbers.

    Args:
        boards: of any setups.
        failures: evaluations that crashed.
        folder: where the page will lie; its links lead from there.
        title: of the page; the first board's by default.
    """
    links = Links.of(folder)
    name = title or (boards[0].title if boards else "Board")
    parts = [f"# {escape.markdown(name)}"]
    parts += [_glance(boards)] if len(boards) > 1 else []
    for board in boards:
        parts += _section(board, links, several=len(boards) > 1)
    if failures:
        crashed = [f"- {escape.markdown(failure_label(failure))}" for failure in failures]
        parts += ["## Errors", "\n".join(crashed)]
    return "\n\n".join(parts) + "\n"


def _glance(boards: Sequence[Board]) -> str:
    """What each board says first."""
    header = ["board", "defenses", "most robust", "robust", "noise known", "certified"]
    rows = []
    for board in boards:
        setup = str(board.setup)
        name, row = _most_robust(board)
        known = _unbroken(row.extras.replayed) if row and row.extras.replayed else ""
        numbers = [_robust(row), known, _certified(row)] if row else [""] * 3
        constant = percent(max(row.constant for row in board.rows))
        rows.append(
            [
                f"[{escape.markdown(setup)}](#{_anchor(setup)})",
                _names(board.rows),
                name,
                *numbers,
                constant,
                _audits(board, row),
            ]
        )
    return _table([*header, "constant answer", "audit"], rows)


def _names(rows: Sequence[Row]) -> str:
    """Of the defenses, without their settings."""
    names = list(dict.fromkeys(row.defense.partition(":")[0] for row in rows if not row.base))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return escape.markdown(", ".join(names[:_NAMED])) + more or "none"


def _most_robust(board: Board) -> tuple[str, Row | None]:
    """In words, and the row whose numbers stand beside them."""
    best = board.rows[0]
    if len(board.rows) == 1:
        return f"{_shown(best)}, the only row" + ", not ranked" * (best.rank is None), best
    placed = [row for row in board.rows if row.rank is not None]
    if all(row.base for row in placed):
        return "no defense is ranked", None
    leading = next((row for row in placed if row.leads), None)
    if leading is not None:
        return _shown(leading), leading
    tied = next((row for row in placed if row.base and row.rank == 1), None)
    if tied is not None:
        return "none above undefended", tied
    name = _shown(best)
    if best.robust.low > best.constant:
        return name, best
    below = "below" if best.robust.high < best.constant else "not clearly above"
    return f"{name}, {below} a constant answer", best


def _audits(board: Board, shown: Row | None) -> str:
    """Of the row that is shown; of all that share the first rank where none is the best."""
    if shown is None or not shown.base:
        return shown.audit.state if shown else ""
    first = [row for row in board.rows if row.rank == 1] or [shown]
    return ", ".join(dict.fromkeys(row.audit.state for row in first))


def _section(board: Board, links: Links, *, several: bool) -> list[str]:
    noted = _Notes()
    rows = [_first_row(row, noted, links) for row in board.rows]
    heading = [f"## {escape.markdown(str(board.setup))}"] if several else []
    level = "###" if several else "##"
    parts = [
        *heading,
        *map(escape.markdown, board.sentences),
        _table(_FIRST, rows),
        *([noted.lines()] if noted.known else []),
        _reading(board, links),
        f"{level} Attacks",
        _attacks(board, links),
        f"{level} Cost and conditions",
        _costs(board),
        escape.markdown(board.more),
        f"{level} How it was built, and how to make it again",
        *_built(board),
    ]
    return [part for part in parts if part]


# The first table ----------------------------------------------------------------------------------

_FIRST = (
    "rank",
    "defense",
    "clean",
    "robust",
    "certified",
    "macro-F1",
    "data access",
    "audit",
    "notes",
)


class _Notes:
    """Letters for what is said below a table."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def letter(self, text: str) -> str:
        at = len(self.known)
        own = ascii_lowercase[at % 26] * (1 + at // 26)
        return self.known.setdefault(text, own)

    def lines(self) -> str:
        return "\n".join(f"- ({letter}) {text}" for text, letter in self.known.items())


def _first_row(row: Row, noted: _Notes, links: Links) -> list[str]:
    name = _shown(row)
    builds = f", {row.counted}" if row.counted else ""
    mark = "~~" if row.unranked in (COLLAPSED, FAILED) else "**" if row.leads else ""
    return [
        row.place.replace("-", "\N{NON-BREAKING HYPHEN}") or "-",
        f"{mark}{name}{mark}{builds}",
        _unbroken(row.clean),
        _robust(row),
        _certified(row),
        _macro_f1(row),
        ", ".join(map(escape.markdown, row.access)) or "none",
        _audit(row, noted, links),
        _noted(row, noted, links),
    ]


def _robust(row: Row) -> str:
    if not row.attacked:
        return "not attacked"
    spread = f", builds {percent(row.spread[0])} to {percent(row.spread[1])}" if row.spread else ""
    return f"{_unbroken(row.robust)}{spread}"


def _macro_f1(row: Row) -> str:
    clean, attacked = map(percent, row.macro_f1)
    return f"{clean} -> {attacked}" if row.attacked else clean


def _certified(row: Row) -> str:
    extras = row.extras
    vote = "" if extras.alpha is None else f" (vote, alpha={extras.alpha:g})"
    return f"{_unbroken(extras.certified)}{vote}" if extras.certified else ""


def _audit(row: Row, noted: _Notes, links: Links) -> str:
    state = links.page(row.audit.state, "howto/audit.md")
    letters = [
        noted.letter(escape.markdown(f"{one.id} {one.verdict}: {one.message}"))
        for one in row.audit.spoke
    ]
    return state + (f" ({', '.join(letters)})" if letters else "")


def _noted(row: Row, noted: _Notes, links: Links) -> str:
    notes = list(row.notes)
    if row.unranked.startswith(INCOMPLETE):
        word, _, reason = row.unranked.partition(": ")
        notes.insert(0, Note(word, f"not ranked, as it {reason}"))
    cells = []
    for note in notes:
        letter = noted.letter(_reason(note, row))
        some = f" in {len(note.builds)} of {len(row.builds)} builds" if note.builds else ""
        link = links.page(note.flag, _PAGES.get(note.flag, _FINDINGS))
        cells.append(f"{link}{some} ({letter})")
    return ", ".join(cells)


def _reason(note: Note, row: Row) -> str:
    builds = f" (build {', '.join(map(str, note.builds))} of {len(row.builds)})"
    return escape.markdown(f"{note.flag}{builds if note.builds else ''}: {note.reason}")


def _reading(board: Board, links: Links) -> str:
    """How to read the first table."""
    asked = "; ".join(map(escape.markdown, board.protocol))
    constant = max(row.constant for row in board.rows)
    rule = (
        f"{RANK} {links.page('Ranked', _PROTOCOL)} is who faced: {asked}. "
        f"A constant answer gets {percent(constant)}. Bold: first, without notes, and clearly "
        f"better than that and, on the same images, than the undefended classifier."
    )
    return f"{escape.markdown(board.note)} {rule}"


# The other tables ---------------------------------------------------------------------------------


def _attacks(board: Board, links: Links) -> str:
    """A line a build and attack."""
    rows = [
        _attack_row(row, build, attack, links)
        for row in board.rows
        for build in row.builds
        for attack in build.attacks
    ]
    header = ["defense", "build", "attack", "robust", "replayed", "passes/image", "record"]
    return _table(header, _told_once(rows))


def _attack_row(row: Row, build: Build, attack: Attacked, links: Links) -> list[str]:
    budget = attack.budget
    name = _breakable(attack.attack) + " (control)" * attack.control
    records = [links.file(source.id[:7], source.path) for source in attack.sources]
    return [
        _shown(row),
        str(build.seed) if row.spread else "",
        escape.markdown(name),
        _with_range(attack),
        _unbroken(attack.replayed) if attack.replayed else "",
        f"{budget.passes:.0f} (at most {budget.most})",
        ", ".join(records),
    ]


def _with_range(attack: Attacked) -> str:
    robust = _unbroken(attack.robust)
    if len(attack.seeds) == 1:
        return robust
    lowest, highest = percent(attack.lowest), percent(attack.highest)
    return f"{robust}, seeds {lowest} to {highest}"


def _told_once(rows: Sequence[Cells]) -> list[Cells]:
    """Without the name and the build where they are those of the line above."""
    told: list[Cells] = []
    for before, row in zip([["", ""], *rows], rows, strict=False):
        same = [row[0] == before[0], list(row[:2]) == list(before[:2])]
        told.append(["" if again else cell for again, cell in zip(same, row, strict=False)])
        told[-1] = [*told[-1], *row[2:]]
    return told


def _costs(board: Board) -> str:
    header = [
        "defense",
        "passes of all attacks/image",
        "passes/prediction",
        "denoiser passes",
        "replayed",
        "all draws",
        "any view",
        "RobustBench",
    ]
    return _table(header, [_cost_row(row) for row in board.rows])


def _cost_row(row: Row) -> list[str]:
    extras = row.extras
    draws = extras.all_draws and " -> ".join(map(percent, extras.all_draws))
    replays = f"{counted(len(extras.replays), 'replay')}, {extras.replay_passes:.0f} passes/image"
    replayed = f"{_unbroken(extras.replayed)} ({replays})" if extras.replayed else ""
    obstacles = None if extras.obstacles is None else ", ".join(extras.obstacles) or "admits"
    return [
        _shown(row),
        f"{row.passes:.0f}",
        _number(extras.passes),
        _number(extras.denoiser_passes),
        replayed,
        draws or "",
        _unbroken(extras.any_view) if extras.any_view else "",
        obstacles or "",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _built(board: Board) -> list[str]:
    rows = [
        [_shown(row), escape.markdown(_breakable(row.spec)), escape.markdown(_how(row))]
        for row in board.rows
    ]
    commands = "\n".join(line for row in board.rows for line in _commands(row))
    return [_table(["defense", "spec", "how it was built"], rows), f"```bash\n{commands}\n```"]


def _how(row: Row) -> str:
    """What all builds say once, and what only some say with their seeds."""
    said: dict[str, list[int]] = {}
    for build in row.builds:
        for message in build.built:
            said.setdefault(message, []).append(build.seed)
    return "; ".join(
        message
        if len(seeds) == len(row.builds)
        else f"build {', '.join(map(str, seeds))}: {message}"
        for message, seeds in said.items()
    )


def _commands(row: Row) -> list[str]:
    """One command a build, in lines that fit."""
    return [line for build in row.builds for line in _wrapped(escape.terminal(build.command))]


def _wrapped(command: str) -> list[str]:
    """Cut before options; a shell reads the lines as one command."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > _WIDE:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines


# Words --------------------------------------------------------------------------------------------


def _shown(row: Row) -> str:
    """A defense's name for a cell: it breaks where a cell is narrow. Of a long one the settings
    that tell it from other rows stand there, else the shortest; the others stand below.
    """
    name, each = split(row.defense)
    if len(row.defense) <= _NAME or not each:
        return escape.markdown(_breakable(row.defense))
    short = sorted((one for one in each if len(one) <= _SHORT), key=len)
    short = [one for one in short if one not in row.own][: max(0, 2 - len(row.own))]
    kept = [one for one in each if one in short or one in row.own]
    left = counted(len(each) - len(kept), "more setting" if kept else "setting")
    told = [*kept, f"{left}, see below"] if len(kept) < len(each) else kept
    return escape.markdown(f"{name}: {', '.join(map(_breakable, told))}")


_SHORT = 12
"""Letters of a setting that still has room in a cell."""


def _unbroken(value: Estimate) -> str:
    """The interval in one piece, which a narrow cell would break."""
    return str(value).replace(", ", ",\N{NO-BREAK SPACE}")


def _breakable(text: str) -> str:
    return re.sub(r"([,:])(?=[^\s/])", r"\1 ", text)


def _anchor(heading: str) -> str:
    return quote(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())))


def _table(header: Cells, rows: Iterable[Cells]) -> str:
    """Without the columns that are empty in every row; the cells are escaped already."""
    lines = [list(row) for row in rows]
    kept = [at for at in range(len(header)) if any(row[at] for row in lines)]
    table = [[header[at] for at in kept], ["---"] * len(kept)]
    table += [[row[at] for at in kept] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)
