"""Checks the pages: length, tables, links, anchors, words, glossary, list of modules, menus.

    python docs/check.py

prints one line for each fault and ends with exit code 1 where there is one. Only the standard
library is used.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PACKAGES = ("bench", "defenses/bench_defenses", "attacks/bench_attacks")
LINE, CELL = 100, 80

TEXTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md",
         "examples/**/*.md")  # fmt: skip
"""What is checked. Boards are made by a command and are not."""

FORBIDDEN = {
    r"tapes?": "fixed noise",
    r"luck(y|ily)?": "chance, chance hits",
    r"twins?": "forward pass with another gradient",
    r"artists?": "generator optimiser",
    r"lessons?": "training step",
    r"courses?": "schedule",
    r"image-visits?|visit to (a|one) batch": "training step",
    r"clean students?": "student trained without adversarial examples",
    r"mend(s|ed|ing)?": "fix",
    r"laws? of judging": "aggregation rule",
    r"(randomness|normal|gaussian) laws?": "randomness model, distribution",
    r"doors?": "accessor",
    r"facing": "BatchNorm mode",
    r"climb(s|ed|ing)?": "search, ascend, rise",
    r"cells? x|(ordinary|base|stored|unfinished) cells?": "evaluation",
    r"gradient-free subject|the subject|subjects": "setup",
}
"""Words that the glossary replaces, as patterns, with what to write instead."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_FENCE = re.compile(r"\s*(```|~~~)")


def pages() -> list[Path]:
    return sorted({path for pattern in TEXTS for path in ROOT.glob(pattern)})


def lines_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line number, line, and whether it lies inside a fenced block."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            yield number, line, True
            fenced = not fenced
        else:
            yield number, line, fenced


def visible(text: str) -> str:
    """The text that a reader sees: links by their text, without marks of code and emphasis."""
    return re.sub(r"[`*]", "", _LINK.sub(r"\2", text)).strip()


def anchors_of(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MkDocs both make them."""
    found: set[str] = set()
    for _, line, fenced in lines_of(path):
        if not fenced and (heading := re.match(r"#+\s+(.*)", line)):
            text = unicodedata.normalize("NFKD", visible(heading[1])).lower()
            found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip()))
    return found


def too_long(path: Path) -> Iterator[tuple[int, str]]:
    for number, line, _ in lines_of(path):
        if line.lstrip("> ").startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")):
                if len(visible(cell)) > CELL and set(cell.strip()) - set("-: "):
                    yield number, f"table cell of {len(visible(cell))} characters"
        elif len(line) > LINE and not _LINK.fullmatch(line.strip(" -.,")):
            yield number, f"line of {len(line)} characters"


def dead_links(path: Path) -> Iterator[tuple[int, str]]:
    prose = "\n".join("" if fenced else line for _, line, fenced in lines_of(path))
    prose = re.sub(r"`[^`\n]*`", "", prose)
    for match in _LINK.finditer(prose):
        number = prose.count("\n", 0, match.start()) + 1
        target, _, anchor = match[3].partition("#")
        if re.match(r"[a-z]+:", match[3]):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            yield number, f"dead link {match[3]}"
        elif anchor and file.suffix == ".md" and anchor not in anchors_of(file):
            yield number, f"dead anchor {match[3]}"


def forbidden_words(path: Path) -> Iterator[tuple[int, str]]:
    quoted = False
    for number, line, fenced in lines_of(path):
        if line.startswith(("<!-- result:", "<!-- end")):
            quoted = line.startswith("<!-- result:")
        if quoted or fenced:
            continue
        prose = _LINK.sub(r"\2", re.sub(r"`[^`]*`", "", line))
        for pattern, instead in FORBIDDEN.items():
            if word := re.search(rf"\b(?:{pattern})\b", prose, re.IGNORECASE):
                yield number, f"the word {word[0]!r}: write {instead}"


def not_linked(path: Path) -> Iterator[tuple[int, str]]:
    inside = path.is_relative_to(ROOT / "docs") and path != GLOSSARY
    if inside and "glossary.md" not in path.read_text(encoding="utf-8"):
        yield 1, "no link to the glossary"


def unreachable() -> Iterator[str]:
    """Every page stands on the home page and in the site's menu."""
    home = ROOT / "docs" / "index.md"
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = {match[3].partition("#")[0] for match in _LINK.finditer(home.read_text("utf-8"))}
    for path in sorted(set(home.parent.rglob("*.md")) - {home}):
        name = path.relative_to(home.parent).as_posix()
        if name not in listed:
            yield f"docs/{name}: docs/index.md has no link to it"
        if f": {name}" not in menu:
            yield f"docs/{name}: is not in the nav of mkdocs.yml"


def unused_terms(texts: list[Path]) -> Iterator[tuple[int, str]]:
    others = " ".join(
        " ".join(path.read_text(encoding="utf-8").split()) for path in texts if path != GLOSSARY
    ).lower()
    for number, line, fenced in lines_of(GLOSSARY):
        if not fenced and line.startswith("### ") and line[4:].strip().lower() not in others:
            yield number, f"no page uses the term {line[4:]!r}"


def wrong_modules() -> Iterator[str]:
    """The page on architecture has a line for each module, and names no other."""
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    listed = set(re.findall(r"^- `([\w/]+\.py)`:", ARCHITECTURE.read_text("utf-8"), re.MULTILINE))
    yield from (f"{name}: has no line in architecture.md" for name in sorted(there - listed))
    gone = {name for name in listed - there if not (ROOT / name).exists()}
    yield from (f"{name}: is listed in architecture.md and does not exist" for name in sorted(gone))


def faults() -> Iterator[str]:
    texts = pages()
    for path in texts:
        for check in (too_long, dead_links, forbidden_words, not_linked):
            for number, fault in check(path):
                yield f"{path.relative_to(ROOT)}:{number}: {fault}"
    for number, fault in unused_terms(texts):
        yield f"{GLOSSARY.relative_to(ROOT)}:{number}: {fault}"
    yield from wrong_modules()
    yield from unreachable()


def main() -> int:
    found = list(faults())
    print("\n".join(found) if found else f"{len(pages())} pages, no fault")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
