"""Boards as a page: three tables, notes, links, and no more columns than a page holds."""

import re
from pathlib import Path

from bench.report.boards.make import boards
from bench.report.boards.markdown import page
from bench.results.findings import Finding
from bench.results.record import Failure
from tests.report.helpers import FIXED_25, HALF, LESS, RIGHT, record


def told(records, failures=(), folder=Path("/"), **changes):
    return page(boards(records, **changes), failures, folder=folder)


def first_table(text):
    return text.split("| rank ")[1].split("\n\n")[0]


def test_what_crashed_is_an_error_and_not_a_number():
    one = record("a", HALF)
    failure = Failure(id="0", title=one.title, error="it crashed", traceback="", finished="")
    text = told([one], [failure])
    assert text.startswith("# mnist5k under linf 0.2\n")
    assert "## Errors\n\n- a x pgd on mnist5k" in text and "error (it crashed)" in text
    assert "## Errors" not in told([one])


def test_notes_stand_below_with_their_reasons_and_builds():
    doubt = Finding(name="zero-gradient", verdict="warn", message="no gradient at all")
    doubted = record("a", LESS, build=1).model_copy(update={"findings": [doubt]})
    text = told([record("a", HALF), doubted])
    assert "| incomplete (a), zero-gradient in 1 of 2 builds (b) |" in first_table(text)
    assert "- (b) zero-gradient (build 1 of 2): no gradient at all" in text
    assert "- (a) incomplete: not ranked, as it lacks any attack on fresh noise" not in text
    assert "any attack (eot) and any attack (replay)" in text
    assert "a, 2 builds | " in first_table(text)
    assert "45.0 [" in first_table(text) and "builds 40.0 to 50.0 |" in first_table(text)


def test_an_interval_is_not_broken_and_a_long_name_is_told_below():
    name = "a:" + ",".join(f"setting{at}={at}" for at in range(9))
    text = told([record(name, RIGHT)])
    assert "100.0 [96.3,\N{NO-BREAK SPACE}100.0]" in first_table(text)
    assert (
        "| a: setting0=0, setting1=1, 7 more settings, see below |" in first_table(text)
        and "a: setting0=0, setting1" in text
    )


def test_links_lead_from_the_page_to_pages_and_records(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "glossary.md").write_text("")
    one = record("a", HALF)
    path = tmp_path / "boards" / "records of mine" / f"a--{one.id}.json"
    text = told([one], folder=tmp_path / "boards", paths={one.id: path})
    assert f"[{one.id[:7]}](records%20of%20mine/a--{one.id}.json)" in text
    assert "[not audited](../docs/howto/audit.md)" in text
    assert "[incomplete](../docs/glossary.md#protocol-of-a-board) (a)" in text


def test_commands_are_whole_and_cut_before_options():
    text = told([record("a", HALF)])
    block = text.split("```bash\n")[1].split("\n```")[0]
    assert all(len(line) <= 98 for line in block.splitlines())
    assert re.sub(r" \\\n +", " ", block).startswith("bench run --defense a --attack pgd")


def test_the_overview_names_the_defenses_and_what_known_noise_leaves():
    """Mutations: the replayed share left out; an incomplete row shown as the best."""
    alone = record("alone", HALF)
    threat = {**alone.identity["threat"], "eps": 0.1}
    moved = alone.model_copy(update={"identity": {**alone.identity, "threat": threat}})
    first = [
        record("purifier", HALF),
        record("purifier", HALF, randomness="eot:k=2"),
        record("purifier", LESS, replayed=FIXED_25, randomness="replay"),
        record("other", LESS),
    ]
    glance = told([*first, moved]).split("\n\n")[1]
    assert "| defenses | most robust | robust | noise known |" in glance
    assert "purifier, other" in glance and "25.0 [" in glance
    assert "alone, the only row, not ranked" in glance
