"""Adds the committed boards to the site, so that links of the pages to leaderboards/ hold there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = (
    "leaderboards/*.md",
    "leaderboards/reference/*.md",
    "leaderboards/suites/*.toml",
    "leaderboards/records/*/*.json",
)


def on_files(files: Files, config: Any) -> Files:
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """In the repository the boards lie beside docs/, on the site below its root."""
    if page.file.src_uri.startswith("leaderboards/"):
        return re.sub(r"\]\((\.\./)+docs/", "](../", markdown)
    return re.sub(r"\]\(\.\./((?:\.\./)*leaderboards/)", r"](\1", markdown)
