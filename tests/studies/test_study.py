"""The contract of a study."""

import re

from bench.engine.request import Request
from bench.studies.study import StudySetting
from tests.helpers import MODEL, ROOT, call


def test_the_guide_runs(capsys, tmp_path):
    guide = (ROOT / "docs" / "reference" / "studies.md").read_text()
    (block,) = re.findall(r'```python title="counting.py"\n(.*?)```', guide, re.DOTALL)
    (tmp_path / "counting.py").write_text(block)
    arguments = [
        "study",
        f"{tmp_path / 'counting.py'}@Counting",
        "--dataset",
        "toy:n=20",
        "--classifier",
        MODEL,
        "--n",
        "9",
    ]
    code, stdout, _ = call(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert code == 0 and stdout.startswith("9 images.")


def test_a_study_takes_fewer_images_where_none_are_asked_for():
    assert len(StudySetting(default_n=7).setup.images) == 7
    assert len(StudySetting(Request(n=9), default_n=7).setup.images) == 9
    assert len(StudySetting(default_n=10**6).setup.images) == 1000
