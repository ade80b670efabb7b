"""Adds the committed boards to the site, so that links of the pages to leaderboards/ hold there,
and makes each as a page to sort and filter, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from bench.commands.leaderboard import made_of
from bench.report.boards.forms import FORMS

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = (
    "leaderboards/*.md",
    "leaderboards/reference/*.md",
    "leaderboards/suites/*.toml",
    "leaderboards/records/*/*.json",
)
PAGES = "leaderboards/pages"


def on_files(files: Files, config: Any) -> Files:
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for file in sorted(ROOT.glob("leaderboards/records/*/board.toml")):
        name = f"{PAGES}/{file.parent.name}.html"
        # Links lead from there to records/, as on the site.
        content = FORMS["html"].write(made_of([file.parent], ROOT / name))
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """In the repository the boards lie beside docs/, on the site below its root."""
    name = page.file.src_uri
    if not name.startswith("leaderboards/"):
        return re.sub(r"\]\(\.\./((?:\.\./)*leaderboards/)", r"](\1", markdown)
    board = Path(name).stem
    if (ROOT / "leaderboards" / "records" / board / "board.toml").is_file():
        told = f"[Sort, filter, compare: this board as a page](pages/{board}.html)"
        markdown = markdown.replace("\n\n", f"\n\n{told}\n\n", 1)
    return re.sub(r"\]\((\.\./)+docs/", "](../", markdown)
