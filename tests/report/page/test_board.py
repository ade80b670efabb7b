"""The page of a board: what a reader does with it in a browser, and what a stranger's record may
not do.
"""

import csv
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.report.boards.make import boards
from bench.report.page import board
from bench.report.page.document import document
from bench.report.page.published import beside
from bench.report.reference import Reference
from bench.results.findings import Finding
from tests.report.helpers import FIXED_25, HALF, LESS, RIGHT, record
from tests.results.helpers import matrix

HOSTILE = "=1+1,<script>hurt=1</script>\"' onload='hurt=1' \u202e\u05d0\u05d1 javascript:hurt=1"
"""As a name: a formula, markup, an attribute, another direction."""

SHOWN = HOSTILE.replace("\u202e", "\\u202e")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


def hostile():
    one = record(HOSTILE, LESS)
    # A setup of its own, whose names are the record's.
    threat = {**one.identity["threat"], "eps": 0.1}
    one = one.model_copy(update={"identity": {**one.identity, "threat": threat}})
    title = dict.fromkeys(one.title, HOSTILE) | {"n": "100", "seed": "0", "threat": "linf 0.1"}
    told = [Finding(name=HOSTILE, verdict="warn", message=HOSTILE)]
    environment = {"commit": HOSTILE, "versions": {"adversarial-bench": HOSTILE}}
    return one.model_copy(
        update={
            "title": title,
            "findings": told,
            "access": [HOSTILE],
            "environment": environment,
            "finished": HOSTILE,
            "sources": dict.fromkeys(one.sources, HOSTILE),
        }
    )


FEW = matrix(*["1111"] * 20, *["0000"] * 80)

RECORDS = [
    record("weaker", LESS),
    record("stronger", RIGHT),
    record("stronger", HALF, attack="fgsm"),
    record("replayed", FEW, replayed=FIXED_25),
    hostile(),
]


def page(**options):
    return board.page(boards(RECORDS), folder=Path("/tmp/x"), title=HOSTILE, **options)


class Loaded(HTMLParser):
    """Addresses that a browser would fetch by itself."""

    def __init__(self, text):
        super().__init__()
        self.found, self.styles, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        if tag in ("link", "iframe", "object", "embed", "base", "form", "img"):
            self.found.append((tag, dict(attrs)))
        self.found += [(tag, name) for name, _ in attrs if name in ("src", "srcset", "background")]
        self.found += [(tag, name) for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data):
        self.styles += [data] if self.inside == "style" else []


def test_a_page_asks_for_nothing_from_outside():
    loaded = Loaded(page())
    assert loaded.found == []
    assert loaded.styles and not re.search("url\\(|@import", "".join(loaded.styles))
    assert len(page().encode()) < 1_500_000


def test_without_scripts_all_of_a_row_stands_in_the_html():
    text = re.sub(r"<script.*?</script>", "", page(), flags=re.DOTALL)
    (line,) = re.findall(r'<tr id="(\w+)">(?:(?!</tr>).)*stronger.*?</tr>', text, re.DOTALL)
    section = text[text.index(f'id="d-{line}"') :].partition("</section>")[0]
    for told in ("fgsm", "50.0", "bench run --defense stronger", "@misc{bench-", "not audited"):
        assert told in section
    assert text.count('scope="row"') > len(RECORDS)


def test_an_address_is_never_taken_from_a_record():
    paths = {one.id: Path("javascript:hurt=1") for one in RECORDS}
    text = board.page(boards(RECORDS, paths=paths), folder=Path())
    addresses = re.findall(r'href="([^"]*)"', text)
    assert "javascript%3Ahurt%3D1" in addresses
    assert all(
        one.startswith(("#", "https://arxiv.org/abs/", "javascript%3A")) for one in addresses
    )


def published(**changes):
    whole = {
        "source": "a paper",
        "table": "1",
        "dataset": "MNIST-5k",
        "architecture": "mnist5k-cnn",
        "defense": "DAD++",
        "attack": "PGD-CE",
        "protocol": "",
        "norm": "linf",
        "eps": "0.2",
        "metric": "robust accuracy",
        "unit": "percent",
        "value": 40.0,
        "badges": "",
        "note": "",
    }
    return Reference.model_validate({**whole, **changes})


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, []),
        ({"eps": "0.1"}, ["ball: linf 0.1"]),
        ({"architecture": "ResNet-18"}, ["network: ResNet-18"]),
        ({"attack": "AutoAttack"}, ["attack: AutoAttack"]),
        ({"defense": "DAD++ (small)"}, ["their variant: (small)"]),
        ({"dataset": "MNIST"}, None),
        ({"defense": "DAD"}, None),
        ({"metric": "detection rate"}, None),
    ],
)
def test_published_numbers_stand_beside_ours_with_what_differs(changes, differs):
    (made_board,) = boards([record("dadpp", HALF)])
    found = beside(made_board, made_board.rows[0], [published(**changes)])
    if differs is None:
        assert found == []
    else:
        (one,) = found
        assert [told for told in one.differs if not told.startswith("images")] == differs
        assert one.measured == ("worst case" if differs[:1] == ["attack: AutoAttack"] else "pgd")


# In a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the hook has seen; the browser starts once."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    folder = tmp_path_factory.mktemp("page")
    hook = (Path(__file__).parent / "hook.js").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            board,
            "document",
            lambda *args, scripts, **rest: document(*args, scripts=[hook, *scripts], **rest),
        )
        (folder / "board.html").write_text(page())
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1280,900",
    ]
    command += [f"--user-data-dir={folder}/profile", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--virtual-time-budget=20000", "--dump-dom", f"file://{folder}/board.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    (text,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(text))


def test_nothing_is_refused_and_nothing_fails(told):
    assert told["refused"] == [] and told["errors"] == []


def test_it_sorts_and_rows_of_one_setup_stay_together(told):
    down, up = told["sorts"]["down"], told["sorts"]["up"]
    assert down["rows"] == ["stronger", "weaker", "replayed", SHOWN]
    assert up["rows"] == ["replayed", "weaker", "stronger", SHOWN]
    assert (down["sort"], up["sort"], down["focusable"]) == ("descending", "ascending", 0)


def test_it_filters_by_text_and_by_attack(told):
    found = told["filters"]
    assert found == {"found": ["stronger"], "faced": ["stronger"], "status": "1 of 4 rows"}


def test_a_link_brings_a_view_back(told):
    before, reset = told["link"]["before"], told["link"]["reset"]
    assert before == {"rows": ["stronger"], "open": 1, "column": True, "sort": "ascending"}
    assert told["link"]["again"] == before
    assert len(reset.pop("rows")) == 4
    assert reset == {"open": 0, "column": False, "sort": None, "hash": ""}


def test_the_csv_is_what_is_shown_and_computes_nothing(told):
    lines = list(csv.DictReader(io.StringIO(told["csv"])))
    assert [line["defense"] for line in lines] == ["stronger", "weaker", "replayed", f"'{SHOWN}"]
    assert float(lines[0]["robust"]) == 0.5 < float(lines[0]["robust high"])
    assert lines[0]["rank"] == "" and "attacks" not in lines[0]


def test_rows_open_by_buttons_and_escape_closes_a_menu(told):
    assert told["keyboard"] == {
        "open": False,
        "focus": "SUMMARY",
        "button": "BUTTON",
        "name": "Details of stronger",
        "expanded": "false",
    }


def test_charts_are_drawn_and_named(told):
    assert told["charts"]["named"]
    assert told["charts"]["titles"] == [
        "Clean against robust",
        "Cost of the attacks against robust",
        "Replay against fresh",
        "Class by class",
    ]


def test_a_hostile_record_is_text(told):
    harm = told["harm"]
    assert (harm["ran"], harm["handlers"], harm["fetched"]) == (False, 0, [])
    assert set(harm["links"]) == {"file:"} and harm["isolated"]
    assert harm["text"].count(SHOWN) >= 3
