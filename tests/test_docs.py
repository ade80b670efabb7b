"""Every command of README and docs runs as written, page by page, in a folder of its own.

A block after `<!-- slow -->` runs only with `-m slow`; one after `<!-- not run: ... -->` says why
it cannot run here.
"""

import glob
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.audit.limits import STANDARD
from bench.cli import execute

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<mark>slow|not run: [^>]+) -->\n)?"
    r"^[ ]*```bash\n(?P<text>.*?)^[ ]*```",
    re.MULTILINE | re.DOTALL,
)
ELSEWHERE = ("pip ", "pytest", "mkdocs", "ruff", "mypy", "lint-imports", "vulture", "git ")
"""What CI itself runs, or what is no command of ours."""


@dataclass(frozen=True)
class Block:
    """Commands of one fenced block, and the mark before it."""

    mark: str
    commands: list[str]


def blocks(page: Path) -> list[Block]:
    """The bash blocks of a page, each line of a command joined."""
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        text = re.sub(r"\\\n\s*", "", match["text"])
        lines = [re.sub(r"\s+#.*$", "", line).strip() for line in text.splitlines()]
        parts = [part.strip() for line in lines for part in line.split("&&")]
        commands = [part for part in parts if part and not part.startswith(("#", *ELSEWHERE))]
        found.append(Block(match["mark"] or "", commands))
    return found


MAY_FAIL = " || test $? -eq 1"
"""After a command whose exit code tells what it found."""

IMAGES = 50
"""Where a command leaves `--n` out: its thousand images would show nothing more."""


def call(command: str) -> None:
    """Run one command in this process where it is ours, with the shell's quotes and patterns."""
    codes = (0, 1) if command.endswith(MAY_FAIL) else (0,)
    if len(codes) > 1:
        command = command.removesuffix(MAY_FAIL).replace("python -m bench ", "bench ", 1)
    command, _, to = command.partition(" > ") if command.startswith("bench ") else (command, "", "")
    # A new plugin's name must be free, and other tests of this process may have taken it.
    if not command.startswith("bench ") or command.startswith("bench new "):
        command = re.sub(r"^bench ", "python -m bench ", command)
        command = command.replace("python ", f"{sys.executable} ", 1)
        subprocess.run(command, shell=True, check=True)
        return
    words = []
    for word in shlex.split(command)[1:]:
        words += sorted(glob.glob(word)) if "*" in word and glob.glob(word) else [word]
    with redirected(to):
        code = execute(words)
    assert code in codes, f"{command} ends with {code}"


@contextmanager
def redirected(to: str):
    """Standard output into a file, where one is named."""
    if not to:
        yield
        return
    with open(to, "w", encoding="utf-8") as file, redirect_stdout(file):
        yield


def cases(slow: bool) -> list:
    """Pages with something to run; for slow runs those with a slow block."""
    chosen = []
    for page in PAGES:
        marks = [block.mark for block in blocks(page) if block.commands]
        if ("slow" in marks) if slow else ("" in marks):
            chosen.append(pytest.param(page, id=page.relative_to(ROOT).as_posix()))
    return chosen


def run_page(page: Path, folder: Path, *, slow: bool) -> None:
    for name in ("leaderboards", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for block in blocks(page):
        if block.mark == "" or (slow and block.mark == "slow"):
            for command in block.commands:
                call(command)


@pytest.fixture
def short_searches(monkeypatch):
    """Checks and audits look in the same ways, and for less time."""
    monkeypatch.setattr("bench.checks.probes.CHEAP", 1e-3)
    short = replace(STANDARD, queries=60, points=20, smoothing=5, answers=500, inner=60)
    monkeypatch.setattr("bench.audit.audit.STANDARD", short)


@pytest.mark.parametrize("page", cases(slow=False))
@pytest.mark.usefixtures("short_searches")
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.engine.setup.DEFAULT_N", IMAGES)
    run_page(page, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", cases(slow=True))
def test_the_slow_commands_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path, slow=True)


def test_pages_have_commands():
    """The reader of blocks must not go blind."""
    assert sum(len(block.commands) for page in PAGES for block in blocks(page)) > 40
