"""The page of claims says what committed records, studies and tables say, and no more."""

import re
from collections import Counter

import pytest

from tests.claims import RECORDS, ROOT, figures

PAGE = ROOT / "docs" / "results" / "claims.md"

VERDICTS = {
    "holds here": "hold here",
    "does not hold here": "do not hold here",
    "cannot be told": "cannot be told",
    "not testable here": "are not testable here",
}
"""As a row says it, and as the sum of all rows does."""

NAME = re.compile(r"\b[DORTP]\d+\b")
NO_FIGURE = re.compile(
    r"`[^`]*`|\]\([^)]*\)|mnist5k|CIFAR-100?|ResNet-\d+|macro-F1|L2|95 % interval|" + NAME.pattern
)
INTERVAL = re.compile(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]")


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row that has a name."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [cells for cells in rows if cells and NAME.fullmatch(cells[0])]


def claims(text: str) -> dict[str, list[str]]:
    """The rows with a verdict, by name."""
    return {cells[0]: cells for cells in table_rows(text) if not cells[0].startswith("P")}


def verdict(cells: list[str]) -> str:
    return re.sub(r" \([a-z]\)$", "", cells[4])


def blocks(text: str) -> list[str]:
    """Paragraphs, items of lists and rows of tables."""
    text = re.sub(r"\n(?=- |\| |#)", "\n\n", text)
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]


def unproven(block: str, known: dict[str, list[str]]) -> str:
    """A block without the figures of the rows that it names, where that has a digit left."""
    allowed = {text for name in NAME.findall(block) for text in known.get(name, [])}
    for text in sorted(allowed, key=len, reverse=True):
        block = re.sub(rf"(?<![\d.,-]){re.escape(text)}(?![\d.]*\d)", "", block)
    rest = NO_FIGURE.sub("", block)
    return rest if re.search(r"\d", rest) else ""


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_every_figure_follows_from_what_is_committed(page):
    total = summary(page)
    assert total in " ".join(page.split())
    rest = [block for block in blocks(page) if total not in block]
    assert [left for block in rest if (left := unproven(block, figures()))] == []


def summary(page: str) -> str:
    """The sentence that counts the verdicts."""
    counts = Counter(map(verdict, claims(page).values()))
    parts = [f"{counts[one]} {words}" for one, words in VERDICTS.items()]
    return f"Of {counts.total()} rows {', '.join(parts)}."


def test_a_figure_that_is_not_the_row_s_is_seen():
    known = {"D1": ["51.0 [39.0, 62.9]", "3 builds"], "D2": ["7.5 [6.0, 9.3]"]}
    assert not unproven("| D1 | 3 builds | 51.0 [39.0, 62.9] |", known)
    for wrong in (
        "51.1 [39.0, 62.9]",
        "151.0 [39.0, 62.9]",
        "-51.0 [39.0, 62.9]",
        "7.5 [6.0, 9.3]",
    ):
        assert unproven(f"| D1 | {wrong} |", known), wrong
    assert unproven("It keeps 51.0 [39.0, 62.9] %.", known)


def test_rows_are_settled_only_by_an_interval_or_a_count(page):
    rows = claims(page)
    assert list(rows) == sorted(rows, key=lambda name: ("DRTO".index(name[0]), int(name[1:])))
    for name, cells in rows.items():
        assert verdict(cells) in VERDICTS, name
        measured = INTERVAL.search(cells[3]) or "counted" in " ".join(cells) or "of 225" in cells[3]
        assert cells[3], name
        assert measured or "hold" not in verdict(cells), name


def test_links_of_rows_lead_somewhere_and_footnotes_are_there(page):
    for cells in claims(page).values():
        assert re.fullmatch(r"\[[^\]]+\]\([^)]+\)", cells[5]), cells
        for mark in re.findall(r"\(([a-z])\)$", cells[4]):
            assert f"\n- ({mark}) " in page


def test_what_the_page_misses_is_still_missing(page):
    boards = set(re.findall(r"leaderboards/([\w-]+)\.md", page)) - {
        "cifar10-attack-order",
        "cifar10",
        "mnist5k-families",
        "pneumoniamnist",
    }
    names = [path.name for board in boards for path in (RECORDS / board).glob("*.json")]
    assert len(boards) == 4 and names
    missed = re.compile(r"--(latent|kl|em|ensemble)\b|\.audit\.json$")
    found = [name for name in names if missed.search(name)]
    # Of O16, and its base.
    assert {name.split("--")[1] for name in found} == {"diffpure", "undefended"}
    assert all("--em--" in name for name in found) and len(found) == 2
