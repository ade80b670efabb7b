"""Speed beside named peers: one table, made by one command.

    pip install foolbox; pip install --no-deps torchattacks     # whose pins would downgrade
    BENCH_REAL_DATA=/path/with/data/and/models python -m benchmarks

A row that is in the file of results already is not measured again, so that a run may be broken off.
The page docs/results/speed.md is written from that file; `--page` writes it and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from bench.allocator import keep_freed_memory
from benchmarks.measure import Absent, Measured, Row, measure
from benchmarks.page import machine, now, page
from benchmarks.rows import chosen, table

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "speed.json", HERE.parent / "docs" / "results" / "speed.md"


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure [default: all]")
    parser.add_argument("--rounds", type=int, help="times each side is measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--to", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    parser.add_argument(
        "--tiny", action="store_true", help="see that it runs; numbers mean nothing"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # As the command does; the peers of the same process have it too.
    keep_freed_memory()
    done = read(asked.results)
    if not asked.page:
        try:
            rows = chosen(asked.rows, asked.tiny)
        except Absent as error:
            sys.exit(str(error))
        for row in rows:
            if row.key in done and not asked.again:
                continue
            measured = measure(row, asked.rounds)
            measured.when, measured.machine = now(), machine()
            print(summary(measured), flush=True)
            # What was measured before stays where a peer is missing now.
            if not (measured.absent and row.key in done):
                done[row.key] = measured
                write(asked.results, done)
    asked.to.write_text(page([done.get(row.key) or unmeasured(row) for row in table()]))
    print(f"written: {asked.to}", file=sys.stderr)


def unmeasured(row: Row) -> Measured:
    """A row of the page that tells that it has no numbers."""
    return Measured(row.key, row.title, row.unit, {}, {}, {}, {}, absent="never run")


def read(file: Path) -> dict[str, Measured]:
    """The rows that were measured, by key."""
    if not file.exists():
        return {}
    rows = json.loads(file.read_text())["rows"]
    return {one["key"]: Measured(**one) for one in rows}


def write(file: Path, done: dict[str, Measured]) -> None:
    content = {"rows": [one.as_json() for one in done.values()]}
    file.write_text(json.dumps(content, indent=1) + "\n")


def summary(row: Measured) -> str:
    """One line for the terminal."""
    if row.absent:
        return f"{row.key}: not measured, {row.absent}"
    sides = ", ".join(f"{name} {row.median(name):.2f} {row.unit}" for name in row.values)
    return f"{row.key}: {sides}"


if __name__ == "__main__":
    main()
