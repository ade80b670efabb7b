"""How long a page of many rows takes: made here, sorted and filtered in Chromium.

    python -m benchmarks.board_page --rows 2000

prints a line a step: the median of ten rounds in milliseconds, with layout, and the fastest, which
counts where other work is on the machine.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from bench.commands.leaderboard import made_of
from bench.report.boards.model import Board
from bench.report.page import board
from bench.report.page.document import document

RECORDS = Path(__file__).parents[1] / "leaderboards" / "records" / "mnist5k"

# Before the page has loaded, so that what is printed holds it; one task, so nothing is waited for.
MEASURE = """
addEventListener("DOMContentLoaded", () => {
  const rounds = { "start of the page": [[performance.now(), performance.now()]] };
  const timed = (name, act) => {
    document.body.offsetHeight;
    const start = performance.now();
    act();
    const computed = performance.now() - start;
    document.body.offsetHeight;
    (rounds[name] ??= []).push([computed, performance.now() - start]);
  };
  const one = (selector) => document.querySelector(selector);
  // A click does the same a moment later.
  const view = new DataTable.Api("#table");
  const heads = [...document.querySelectorAll("#table thead th")].map((head) => head.dataset.key);
  for (let round = 0; round < 10; round++) {
    for (const key of ["robust", "defense", "clean"]) {
      const way = round % 2 ? "asc" : "desc";
      timed(`sort by ${key}`, () => view.order([[heads.indexOf(key), way]]).draw());
    }
    timed("a facet", () => one("#facets input").click());
    timed("a row opened or closed", () => one(".expand").click());
  }
  const place = document.createElement("pre");
  place.id = "measured";
  place.textContent = JSON.stringify(rounds);
  document.body.append(place);
});
"""


def many(rows: int) -> Board:
    """A board of real rows, again and again under other names."""
    (one,) = made_of([RECORDS], None).boards
    copies = [
        replace(row, defense=f"{row.defense}:copy={at}", robust=_moved(row.robust, at))
        for at in range(rows)
        for row in [one.rows[at % len(one.rows)]]
    ]
    return replace(one, rows=tuple(copies))


def _moved(estimate: Any, at: int) -> Any:
    value = (at * 7919 % 1000) / 1000
    return replace(estimate, value=value, low=max(0.0, value - 0.02), high=min(1.0, value + 0.02))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    rows = parser.parse_args().rows
    chromium = shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        sys.exit("no chromium here")
    made = many(rows)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        measuring = mock.patch.object(board, "document", _with_measure)
        with measuring:
            text = board.page([made], folder=Path(folder))
        print(f"made: {1000 * (time.perf_counter() - start):.0f} ms, {len(text) / 1e6:.1f} MB")
        path = Path(folder) / "board.html"
        path.write_text(text)
        command = [chromium, "--headless=new", "--no-sandbox", "--dump-dom"]
        command += [f"--user-data-dir={folder}/profile"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True)
    (found,) = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    for name, rounds in json.loads(html.unescape(found)).items():
        laid = [with_layout for _, with_layout in rounds]
        print(f"{name}: {statistics.median(laid):.0f} ms, fastest {min(laid):.0f}")


def _with_measure(*args: Any, scripts: list[str], **rest: Any) -> str:
    return document(*args, scripts=[*scripts, MEASURE], **rest)


if __name__ == "__main__":
    main()
