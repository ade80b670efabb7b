"""Published numbers: whole, consistent, and refused by line and column where they are not."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from bench.cli import execute
from bench.report.reference import BADGES, Reference, read_references, render, select
from tests.toys import message

FOLDER = Path(__file__).parents[2] / "leaderboards" / "reference"
COLUMNS = ",".join(Reference.model_fields)
GOOD = (
    "A paper,Table 1,CIFAR-10,ResNet-18,TTE,PGD,,linf,8/255,robust "
    "accuracy,percent,12.5,secondary+suspect,a note"
)


def file(folder: Path, *rows: str, header: str = COLUMNS) -> Path:
    path = folder / "numbers.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_every_committed_number_is_read():
    counts = {path.stem: len(read_references(path)) for path in FOLDER.glob("*.csv")}
    assert counts == {
        "datafreeshield": 178,
        "purification": 195,
        "robustbench": 75,
        "testtime": 103,
    }
    assert sum(counts.values()) == len(read_references(FOLDER))


@pytest.mark.parametrize(
    ("given", "value"),
    [
        # Figures that are known from elsewhere, one a file.
        (
            {
                "dataset": "CIFAR-10",
                "architecture": "WRN-28-10",
                "defense": "DataFreeShield",
                "attack": "AutoAttack",
            },
            43.73,
        ),
        ({"defense": "k-WTA+AT", "attack": "AutoAttack", "eps": "0.031"}, 18.50),
        (
            {"defense": "Wong2020Fast", "attack": "AutoAttack", "eps": "8/255", "norm": "linf"},
            43.21,
        ),
        (
            {
                "architecture": "WRN-70-16",
                "defense": "DiffPure",
                "attack": "DiffHammer",
                "metric": "robust accuracy (all draws)",
            },
            22.66,
        ),
    ],
)
def test_known_figures(given, value):
    assert value in [
        r.value
        for r in read_references(FOLDER)
        if all(getattr(r, key) == wanted for key, wanted in given.items())
    ]


def test_doubts_are_badged():
    rows = read_references(FOLDER)
    used = Counter(badge for row in rows for badge in row.badges)
    assert set(used) == set(BADGES)
    derma = [
        r
        for r in rows
        if r.dataset == "DermaMNIST" and r.defense == "DataFreeShield" and r.unit == "percent"
    ]
    assert derma and all("collapsed?" in r.badges for r in derma)
    assert all("secondary" in r.badges for r in rows if "notes by others" in r.source)


def test_the_readme_explains_every_badge_alike():
    explained = dict(
        re.findall(r"^\| `([^`]+)` \| (.*) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    )
    assert {badge: explained[badge] for badge in BADGES} == BADGES
    assert {path.name for path in FOLDER.glob("*.csv")} <= set(explained)


def test_a_row_survives_reading_and_printing(tmp_path):
    (row,) = read_references(file(tmp_path, GOOD))
    assert row.badges == ("secondary", "suspect") and row.value == 12.5 and row.eps == "8/255"
    text = render([row])
    assert text.startswith("Published numbers, not measured here")
    assert "| linf 8/255 | robust accuracy | 12.5 % | secondary, suspect |" in " ".join(
        text.split()
    )
    assert r"PGD-KL(S(x')\|\|S(x))" in render(
        [row.model_copy(update={"attack": "PGD-KL(S(x')||S(x))"})]
    )
    assert "- suspect: " in text and "- conflict" not in text and "protocol" not in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("linf", "l1", "column 'norm' got 'l1'"),
        ("8/255", "eight", "column 'eps' got 'eight'"),
        ("8/255", "-1", "column 'eps'"),
        ("8/255", "", "column 'badges': no eps is stated"),
        ("linf,", ",", "column 'norm': an eps means nothing"),
        ("robust accuracy", "robust acc", "Did you mean 'robust accuracy'"),
        ("percent", "ratio", "column 'unit': robust accuracy is in percent"),
        ("12.5", "125", "column 'value': percent lie between 0 and 100"),
        ("12.5", "nan", "column 'value' got 'nan'"),
        ("12.5", "", "column 'value' got ''"),
        ("suspect", "suspicious", "unknown badge 'suspicious'. Did you mean 'suspect'"),
        ("A paper", "", "column 'source' got ''"),
        ("a note", "a note,more", "beyond the last column"),
        (",a note", "", "column 'note'"),
    ],
)
def test_what_does_not_fit_is_named_by_line_and_column(tmp_path, old, new, said):
    text = message(lambda: read_references(file(tmp_path, GOOD, GOOD.replace(old, new, 1))))
    assert "numbers.csv, line 3: " in text and said in text


def test_other_files_are_refused_in_one_line(tmp_path):
    assert "line 1: the columns are" in message(
        lambda: read_references(file(tmp_path, GOOD, header="a,b"))
    )
    assert "cannot read" in message(lambda: read_references(tmp_path / "none.csv"))
    assert "no CSV files" in message(lambda: read_references(FOLDER.parent / "suites"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot read" in message(lambda: read_references(tmp_path / "binary.csv"))


def test_selection_is_by_words():
    rows = read_references(FOLDER)
    chosen = select(rows, "cifar-10", "diffpure")
    assert chosen and {r.defense.lower()[:8] for r in chosen} == {"diffpure"}
    twice = [
        r
        for r in rows
        if (r.dataset, r.defense, r.attack, r.value)
        == ("TissueMNIST", "DataFreeShield", "PGD-CE", 31.93)
    ]
    assert len(twice) == 3 and select(twice) == twice[:1]
    assert "Did you mean" in message(lambda: select(rows, defense="DifPure"))
    assert "Did you mean" in message(lambda: select(rows, dataset="CIFR-10"))


def test_the_command_prints_tables_and_json(capsys, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    assert execute(["reference", "--dataset", "MNIST", "--defense", "Madry"]) == 0
    assert "| AutoAttack | linf 0.3 | robust accuracy | 88.5 %" in " ".join(
        capsys.readouterr().out.split()
    )
    assert execute(["reference", str(FOLDER / "testtime.csv"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    with (FOLDER / "testtime.csv").open(newline="") as stream:
        assert {row["note"] for row in printed} == {row["note"] for row in csv.DictReader(stream)}
    assert execute(["reference", "/no/such/place"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
