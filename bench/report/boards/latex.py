"""Boards as tables for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.report.boards.model import Board, Row
from bench.report.notes import RANK
from bench.report.tables import percent
from bench.results.estimate import Estimate

_MARKS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """Text of strangers, as LaTeX prints it: nothing in it is a command, and what a common font
    does not have is left out.
    """
    printable = re.sub(r"[^\x20-\x7e]", " ", text)
    return "".join(_MARKS.get(char, char) for char in printable)


def tables(boards: Sequence[Board]) -> str:
    """A table a board, for a document that loads booktabs: the leading rows bold, rows without
    a rank below a line with the reason, a dagger where no audit was made or a check spoke.
    """
    return "% \\usepackage{booktabs}\n" + "\n".join(map(_table, boards))


def _table(board: Board) -> str:
    certified = any(row.extras.certified for row in board.rows)
    ranked = [row for row in board.rows if row.rank is not None]
    others = [row for row in board.rows if row.rank is None]
    header = ["", "Defense", "Clean", "Robust", *["Certified"] * certified, "Macro-F1", "Data"]
    lines = [_line(header), r"\midrule", *(_row(row, certified) for row in ranked)]
    if others:
        lines += [r"\midrule"] * bool(ranked) + [_row(row, certified) for row in others]
    body = "\n".join(lines)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_caption(board)}}}\n"
        f"\\begin{{tabular}}{{@{{}}rlrr{'r' * certified}rl@{{}}}}\n\\toprule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def _caption(board: Board) -> str:
    said = [
        f"{escaped(board.title)}: {escaped(board.sentences[0])}",
        r"Clean and robust accuracy (worst case over the attacks, an upper bound) in \%, with 95\% "
        "intervals over images; macro-F1 without and under attack.",
        RANK,
    ]
    if any(row.unranked for row in board.rows):
        reasons = dict.fromkeys(row.unranked for row in board.rows if row.unranked)
        said.append(f"Not ranked: {escaped('; '.join(reasons))}.")
    if any(_doubted(row) for row in board.rows):
        said.append(r"$\dagger$: not audited, or a check spoke.")
    return " ".join(said)


def _doubted(row: Row) -> bool:
    return row.audit.state != "no-evidence-found"


def _row(row: Row, certified: bool) -> str:
    builds = f" ({row.counted})" if row.counted else ""
    name = escaped(row.defense + builds)
    bold = row.leads
    robust = _estimate(row.robust, bold) if row.attacked else "not attacked"
    of_it = _estimate(row.extras.certified) if row.extras.certified else "--"
    f1 = f"${percent(row.macro_f1[0])} \\to {percent(row.macro_f1[1])}$"
    return _line(
        [
            row.place.replace("-", "--") or "--",
            (f"\\textbf{{{name}}}" if bold else name) + r"$^\dagger$" * _doubted(row),
            _estimate(row.clean),
            robust,
            *[of_it] * certified,
            f1,
            escaped(", ".join(row.access) or "none"),
        ]
    )


def _estimate(value: Estimate, bold: bool = False) -> str:
    number = f"\\textbf{{{percent(value.value)}}}" if bold else percent(value.value)
    return f"{number} {{\\footnotesize [{percent(value.low)}, {percent(value.high)}]}}"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
