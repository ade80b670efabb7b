"""The forms in which boards are written, by their names and by a file's ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BadInput
from bench.report import escape
from bench.report.boards import exchange, latex, markdown, terminal
from bench.report.boards.model import Board
from bench.report.page import board as html
from bench.report.reference import Reference
from bench.results.record import Failure

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Made:
    """What a form is made of.

    Attributes:
        boards: of any setups.
        failures: evaluations that crashed.
        folder: where the file will lie; links lead from there.
        title: of the whole; empty where it has none.
        references: published numbers that may stand beside rows.
    """

    boards: Sequence[Board]
    failures: Sequence[Failure]
    folder: Path
    title: str
    references: Sequence[Reference] = ()


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        endings: of files that have it; the first form of an ending is its default.
        write: what makes it.
    """

    endings: tuple[str, ...]
    write: Callable[[Made], str | bytes]


def _markdown(made: Made) -> str:
    return markdown.page(made.boards, made.failures, folder=made.folder, title=made.title)


def _html(made: Made) -> str:
    return html.page(
        made.boards,
        made.failures,
        folder=made.folder,
        title=made.title,
        references=made.references,
    )


def _tidy_csv(made: Made) -> str:
    return _csv([board.frame() for board in made.boards])


def _wide_csv(made: Made) -> str:
    return _csv([board.wide() for board in made.boards])


def _csv(frames: Sequence[pd.DataFrame]) -> str:
    import pandas as pd

    if not frames:
        return ""
    table = pd.concat(frames, ignore_index=True)
    table.columns = pd.Index([escape.csv(name) for name in table.columns])
    return str(table.map(escape.csv).to_csv(index=False))


def _json(made: Made) -> str:
    return _dumped({"title": made.title, "boards": [board.as_dict() for board in made.boards]})


def _tidy_json(made: Made) -> str:
    return _dumped([line for board in made.boards for line in _lines(board.frame())])


def _wide_json(made: Made) -> str:
    return _dumped([line for board in made.boards for line in _lines(board.wide())])


def _lines(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    # pandas writes JSON to ten digits: what is read back would be another number.
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _dumped(content: object) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _parquet(made: Made) -> bytes:
    import io

    import pandas as pd

    table = pd.concat([board.frame() for board in made.boards], ignore_index=True)
    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, index=False)
    except ImportError:
        raise BadInput(
            "parquet needs pyarrow: pip install 'adversarial-bench[parquet]', or use --format csv"
        ) from None
    return buffer.getvalue()


def _text(made: Made) -> str:
    return terminal.text(made.boards, made.failures, made.title)


def _bibtex(made: Made) -> str:
    return "\n".join(row.citation for board in made.boards for row in board.rows)


FORMS = {
    "text": Form((".txt",), _text),
    "md": Form((".md",), _markdown),
    "html": Form((".html", ".htm"), _html),
    "csv": Form((".csv",), _tidy_csv),
    "csv-wide": Form((".csv",), _wide_csv),
    "json": Form((".json",), _json),
    "json-tidy": Form((".json",), _tidy_json),
    "json-wide": Form((".json",), _wide_json),
    "parquet": Form((".parquet",), _parquet),
    "latex": Form((".tex",), lambda made: latex.tables(made.boards)),
    "bibtex": Form((".bib",), _bibtex),
    "robustbench": Form((".json",), lambda made: _dumped(exchange.robustbench(made.boards))),
    "model-index": Form((".yaml", ".yml"), lambda made: exchange.model_index(made.boards)),
    "eval-results": Form((".yaml", ".yml"), lambda made: exchange.eval_results(made.boards)),
}


def form_of(name: str | None, out: Path | None) -> Form:
    """The form of this name, or of a file's ending where none is named; text where neither is.

    Raises:
        BadInput: for an unknown name or ending, and where the two clash.
    """
    if name is not None and name not in FORMS:
        raise BadInput(f"unknown format {name!r}: use {', '.join(FORMS)}")
    if out is None or (name is not None and not out.suffix):
        return FORMS[name or "text"]
    fitting = [one for one, form in FORMS.items() if out.suffix.lower() in form.endings]
    if name is None:
        if not fitting:
            raise BadInput(f"no format ends in {out.suffix or out.name!r}: name one with --format")
        return FORMS[fitting[0]]
    if name not in fitting:
        endings = " or ".join(FORMS[name].endings)
        raise BadInput(f"{out.name} and --format {name} clash: let the file end in {endings}")
    return FORMS[name]
