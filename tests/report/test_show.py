"""`bench show`: what it reads, refuses and prints."""

import json
import textwrap
from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.report.show import read
from bench.results.record import Failure
from bench.results.store import read_record, to_json
from tests.helpers import ROOT, call, refused
from tests.report.helpers import EOT, FRESH, HALF, REPLAY, UNDEFENDED, made, stored


def test_show_several_records_and_json(capsys):
    code, text, _ = call(capsys, "show", *map(str, (FRESH, EOT, REPLAY, REPLAY)))
    assert code == 0 and text.count("| pgd (replay)") == 1, "a record given twice counts once"
    assert (
        "| no attack" in text
        and "lowest single attack: pgd (eot:k=20)" in text
        and "cannot be told from chance" in text
    )
    _, text, _ = call(capsys, "show", *map(str, (FRESH, REPLAY)), "--json")
    printed = json.loads(text)
    assert [one["title"]["randomness"] for one in printed["records"]] == ["fresh", "replay"]
    assert printed["records"][1]["rules"]["attacked"]["mean of 20"]["value"] == pytest.approx(
        0.1608
    )
    assert printed["comparison"]["secrecy"]["fresh"]["value"] == pytest.approx(0.0024, abs=3e-4)
    assert json.loads(call(capsys, "show", str(FRESH), "--json")[1])["comparison"] is None


def test_records_that_do_not_go_together_are_refused(capsys, tmp_path):
    assert "differ in defense and judged_draws" in refused(
        capsys, tmp_path, "show", str(FRESH), str(UNDEFENDED)
    )
    first = made(HALF)
    for other, what in [
        (made(HALF, threat={"norm": "l2", "eps": 0.1}), "threat"),
        (made(HALF, classifier={"sha256": "0"}), "classifier"),
        (made(HALF, seeds={"build": 1, "attack": 0}), "build seed"),
        (made(HALF[:50]), "dataset and images"),
    ]:
        with pytest.raises(BadInput, match=f"differ in {what}:"):
            read([Path(path) for path in stored(tmp_path, first, other)])


def test_a_folder_is_shown_in_groups_that_go_together(capsys, tmp_path):
    first, second = made(HALF), made(HALF, seed=1)
    other = made(HALF, threat={"norm": "linf", "eps": 0.1})
    stored(tmp_path, first, second, other)
    assert sorted(map(len, read([tmp_path]))) == [1, 2]
    code, text, _ = call(capsys, "show", str(tmp_path))
    assert code == 0 and text.count("Shares of images in percent") == 2
    printed = json.loads(call(capsys, "show", str(tmp_path), "--json")[1])
    assert sorted(len(group["records"]) for group in printed) == [1, 2]


def test_what_is_no_record_is_refused(capsys, tmp_path):
    assert "cannot read the record" in refused(
        capsys, tmp_path, "show", str(tmp_path / "none.json")
    )
    assert "no records in" in refused(capsys, tmp_path, "show", str(tmp_path))
    (tmp_path / "other.txt").write_text("{}")
    assert "is no record" in refused(capsys, tmp_path, "show", str(tmp_path / "other.txt"))
    base = read_record(FRESH)
    failure = Failure(
        id=base.id,
        title=base.title,
        error="RuntimeError: out of memory",
        traceback="...",
        finished="now",
    )
    path = tmp_path / "a--b.error.json"
    path.write_bytes(to_json(failure))
    code, _, said = call(capsys, "show", str(path))
    assert (
        code == 2
        and "is a failure" in said
        and "RuntimeError: out of memory" in said
        and said.count("\n") == 1
    )


def test_the_page_on_randomness_shows_real_output(capsys):
    page = (ROOT / "docs" / "explanation" / "randomness.md").read_text()
    one, several = (
        call(capsys, "show", *map(str, paths))[1].split("\n\n")
        for paths in ([REPLAY], [FRESH, REPLAY])
    )
    for paragraph in (*one, *several[:2], several[3]):
        assert "\n".join(map(wrapped, paragraph.strip().splitlines())) in page


def wrapped(line: str) -> str:
    """As the pages print it: rows of tables whole, all else in lines of at most 99 characters."""
    return line if line.startswith("|") else "\n".join(textwrap.wrap(line, 99))
