"""`bench merge`: folders of records into one, refused where they contradict each other."""

import json
import shutil

import pytest

from bench.commands.merge import merge
from bench.errors import BadInput
from bench.results.store import Store, read_folder
from tests.helpers import call, run_toys, toy_request


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base and a row, and one with the same base and another row."""
    folder = tmp_path_factory.mktemp("made")
    run_toys(folder / "a", attacks=("null",), dataset="toy:n=64")
    run_toys(folder / "b", attacks=("null",), dataset="toy:n=64", defenses=("toy-trainer",))
    return folder


@pytest.fixture
def folders(made, tmp_path):
    for name in "ab":
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*--*")}


def test_two_folders_become_one_and_again_nothing_changes(folders):
    done = merge([folders / "a", folders / "b"], folders / "c")
    assert (done.records, done.failures, done.unfinished) == (3, 0, 0)
    union = content(folders / "b") | content(folders / "a")
    assert content(folders / "c") == union and done.files == len(union)
    assert merge([folders / "b", folders / "a"], folders / "c").files == 0
    into = merge([folders / "b"], folders / "a")
    assert into.records == 3 and content(folders / "a") == union, "also into one of them"


def test_a_contradiction_is_refused_and_nothing_is_written(folders, capsys):
    (path,) = (one for one in (folders / "b").glob("*undefended*.json"))
    changed = json.loads(path.read_bytes())
    (twin,) = (folders / "a").glob(path.name)
    first = changed["outcomes"]["adversarial"]
    key = next(iter(first)) if isinstance(first, dict) else 0
    text = first[key] if isinstance(first, dict | list) else first
    other = text[:-1] + ("0" if text[-1] != "0" else "1")
    changed["outcomes"]["adversarial"] = (
        {**first, key: other} if isinstance(first, dict) else [other, *first[1:]]
    )
    path.write_text(json.dumps(changed))
    words = ["merge", str(folders / "a"), str(folders / "b"), "--out", str(folders / "c")]
    code, out, told = call(capsys, *words)
    assert code == 2 and out == "" and len(told.splitlines()) == 1
    assert f"{twin} and {path} are two records of one evaluation with different outcomes" in told
    assert not (folders / "c").exists()


def test_time_and_machine_are_no_contradiction(folders):
    (path,) = (folders / "b").glob("*undefended*.json")
    changed = json.loads(path.read_bytes())
    changed["environment"]["python"] = "another"
    path.write_text(json.dumps(changed))
    assert merge([folders / "a", folders / "b"], folders / "c").records == 3
    assert (folders / "c" / path.name).read_bytes() == (folders / "a" / path.name).read_bytes()


def test_failures_come_along_where_there_is_no_record(folders):
    run_failing(folders / "d")
    done = merge([folders / "a", folders / "d"], folders / "c")
    assert (done.records, done.failures) == (2, 1)
    (failure,) = (folders / "c").glob("*.error.json")
    assert failure.read_bytes() == (folders / "d" / failure.name).read_bytes()
    assert len(list(read_folder(folders / "c"))) == 3


def run_failing(folder):
    from bench.engine.execution import Execution
    from bench.engine.plan import plan
    from bench.engine.run import run_evaluations

    request = toy_request(defenses=("toy-crash",), attacks=("null",), dataset="toy:n=64")
    list(run_evaluations(plan(request), Store(folder), Execution()))


def test_damaged_points_and_missing_folders_are_told(folders):
    with pytest.raises(BadInput, match="no such folder"):
        merge([folders / "a", folders / "nothing"], folders / "c")
    points = next((folders / "a").glob("*.safetensors"))
    points.write_bytes(points.read_bytes()[:-1])
    with pytest.raises(BadInput, match=rf"{points.name} is damaged"):
        merge([folders / "a"], folders / "c")
    assert not (folders / "c").exists()
