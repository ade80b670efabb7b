"""Forms of boards: the ending chooses, what clashes is told, what is written reads back."""

import json
from pathlib import Path

import pandas as pd
import pytest

from bench.errors import BadInput
from bench.report.boards.forms import FORMS, Made, form_of
from bench.report.boards.make import boards
from bench.results.estimate import Estimate
from bench.results.findings import Finding
from tests.report.helpers import HALF, LESS, RIGHT, made, record

yaml = pytest.importorskip("yaml")

HOSTILE = 'a_%{\\input{/etc/passwd}}: "x"\n- y: |\x1b[0m'


def written(form, records):
    return FORMS[form].write(Made(boards(records), [], Path(), ""))


def hostile():
    one = made(HALF)
    title = {**one.title, "defense": HOSTILE, "dataset": HOSTILE, "attack": HOSTILE}
    told = [Finding(name=HOSTILE, verdict="warn", message=HOSTILE)]
    return one.model_copy(update={"title": title, "findings": told})


@pytest.mark.parametrize(
    ("name", "out", "form"),
    [
        (None, None, "text"),
        (None, "x.md", "md"),
        (None, "x.html", "html"),
        (None, "x.JSON", "json"),
        ("csv-wide", "x.csv", "csv-wide"),
        ("robustbench", None, "robustbench"),
        ("latex", "x", "latex"),
        (None, "x.bib", "bibtex"),
    ],
)
def test_the_ending_chooses_where_no_form_is_named(name, out, form):
    assert form_of(name, out and Path(out)) is FORMS[form]


@pytest.mark.parametrize(
    ("name", "out", "told"),
    [
        ("pdf", None, "unknown format 'pdf'"),
        (None, "x.xls", "no format ends in '.xls'"),
        ("csv", "x.md", "x.md and --format csv clash"),
    ],
)
def test_what_clashes_is_told_in_a_line(name, out, told):
    with pytest.raises(BadInput, match=told):
        form_of(name, out and Path(out))


def test_every_form_of_every_number_is_that_of_the_board():
    records = [record("a", HALF), record("a", LESS, build=1), record("b", RIGHT)]
    (board,) = boards(records)
    values = {row.defense: row.robust.value for row in board.rows}
    nested = json.loads(written("json", records))["boards"][0]["rows"]
    assert {row["defense"]: row["robust"]["value"] for row in nested} == values
    for form in ("json-tidy", "json-wide"):
        lines = json.loads(written(form, records))
        assert {line["defense"]: line["worst_case"] for line in lines} == values
    index = yaml.safe_load(written("model-index", records))["model-index"]
    assert {one["name"]: one["results"][0]["metrics"][1]["value"] for one in index} == {
        name: 100 * value for name, value in values.items()
    }
    entries = yaml.safe_load(written("eval-results", records))
    assert sorted(one["value"] for one in entries) == sorted(100 * one for one in values.values())
    external = {one["name"]: one["external"] for one in json.loads(written("robustbench", records))}
    assert external == {name: f"{100 * value:.1f}" for name, value in values.items()}


@pytest.mark.parametrize("form", ["json-tidy", "parquet"])
def test_a_frame_holds_the_board(form, tmp_path):
    """Ranks follow from the intervals of what is read back, and nothing is lost on the way."""
    records = [
        record("a", HALF),
        record("a", LESS, build=1),
        record("b", RIGHT, attack="autoattack"),
    ]
    (board,) = boards(records)
    content = written_bytes(form, records)
    (tmp_path / "x").write_bytes(content)
    if form == "parquet":
        again = pd.read_parquet(tmp_path / "x")
    else:
        again = pd.DataFrame(json.loads(content))
    pd.testing.assert_frame_equal(again, board.frame(), check_dtype=False, check_exact=True)
    rows = again.drop_duplicates("defense").to_dict("records")
    compared = [one for one in rows if not one["unranked"]]
    for one, row in zip(rows, board.rows, strict=True):
        robust = Estimate(*(one[f"worst_case{end}"] for end in ("", "_low", "_high")))
        assert (one["defense"], robust) == (row.defense, row.robust)
        above = sum(other["worst_case_low"] > robust.high for other in compared)
        assert one["unranked"] == row.unranked and row.rank in (None, 1 + above)
    lines = again[["defense", "build", "attack", "robust"]].itertuples(index=False)
    assert [tuple(line) for line in lines] == [
        (row.defense, build.seed, attack.attack, attack.robust.value)
        for row in board.rows
        for build in row.builds
        for attack in build.attacks
    ]


def written_bytes(form, records):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    content = written(form, records)
    return content if isinstance(content, bytes) else content.encode()


def test_the_hub_reads_its_forms():
    """By the parsers of its own library, which joins the entries of a model index."""
    cards = pytest.importorskip("huggingface_hub.repocard_data")
    records = [record("a", HALF), record("b", RIGHT)]
    index = yaml.safe_load(written("model-index", records))["model-index"]
    _, results = cards.model_index_to_eval_results(index)
    values = {one.metric_name.partition(",")[0]: one.metric_value for one in results}
    assert values["robust accuracy of a"] == 50.0 and values["clean accuracy of b"] == 100.0
    assert len(values) == 4 and {one.dataset_type for one in results} == {"mnist5k"}
    entries = pytest.importorskip("huggingface_hub._eval_results")
    read = entries.parse_eval_result_entries(yaml.safe_load(written("eval-results", records)))
    assert sorted(one.value for one in read) == [50.0, 100.0]


def test_autoattack_has_its_own_field():
    (one,) = json.loads(written("robustbench", [record("a", HALF, attack="autoattack")]))
    assert (one["autoattack_acc"], one["external"], one["unreliable"]) == ("50.0", None, True)
    assert (one["dataset"], one["eps"]) == ("mnist5k", "0.2")


@pytest.mark.parametrize("form", ["latex", "bibtex", "model-index", "eval-results", "text"])
def test_what_strangers_wrote_stays_text(form):
    text = written(form, [hostile()])
    assert "\x1b" not in text
    if form == "latex":
        assert "\\input" not in text and "\\_\\%\\{\\textbackslash{}input" in text
    if form == "bibtex":
        assert text.count("{") == text.count("}") and text.count("\n@") == 0
    if form in ("model-index", "eval-results"):
        assert len(yaml.safe_load(text)) == 1, "no key and no item more"


def test_latex_says_what_is_measured_and_who_is_not_ranked():
    text = written("latex", [record("a", HALF), record("b", RIGHT)])
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 1
    caption = next(line for line in text.splitlines() if line.startswith("\\caption"))
    for words in ("95\\% intervals", "Not ranked: incomplete", "$\\dagger$: not audited"):
        assert words in caption
    assert "a$^\\dagger$ & 100.0 " in text


def test_text_fits_the_columns_of_the_terminal(monkeypatch):
    name = "a:" + ",".join(f"setting{at}={at}" for at in range(12))
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = written("text", [record(name, HALF), record("b", RIGHT)])
        assert max(map(len, text.splitlines())) <= columns
        assert ("macro-F1" in text) == (columns == 120) and "incomplete" in text
