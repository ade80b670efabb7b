"""A document holds all that it needs, and nothing in it runs but what it names."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from bench.report import page as vendored
from bench.report.page.document import document

HOSTILE = "</script><script>alert(1)</script>\u2028<!-- &amp;"


def test_data_come_back_as_they_were_and_end_no_element():
    page = document("t", "<main></main>", data={"name": HOSTILE})
    (text,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(text) == {"name": HOSTILE}
    assert text.isascii() and not re.search("[<>&]", text)


def test_the_title_is_text():
    assert "<title>&lt;/title&gt;</title>" in document("</title>", "")


def test_the_policy_names_each_script_and_style_and_nothing_else():
    page = document("t", "", scripts=["let a = 'ö';"], styles=["p { margin: 0 }"])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in inside]
        assert directives.pop(directive) == " ".join(f"'sha256-{one.decode()}'" for one in hashes)
        assert len(inside) == 2
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


@pytest.mark.parametrize("script", ["'</SCRIPT>'", "x <!--y", "a\r\nb"])
def test_a_script_that_html_would_cut_is_refused(script):
    with pytest.raises(ValueError, match="may not hold"):
        document("t", "", scripts=[script])


def test_libraries_are_those_that_the_list_names_each_with_its_licence():
    folder = Path(vendored.__file__).parent / "vendor"
    listed = re.findall(r"\| `(\S+)` \|.*`([0-9a-f]{64})` \|", (folder / "README.md").read_text())
    found = {path.name: hashlib.sha256(path.read_bytes()) for path in folder.glob("*.js")}
    assert dict(listed) == {name: one.hexdigest() for name, one in found.items()}
    for name in found:
        licence = (folder / name.replace(".min.js", ".LICENSE.txt")).read_text()
        assert "ermission" in licence and "opyright" in licence
