"""Workers that reach no folder of the driver's: the records are those of one process."""

import json

import pytest

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.errors import BadInput
from bench.execution.driver import Driver, Served
from bench.execution.job import Job
from bench.execution.remote import message, read_message
from bench.results.store import Store
from tests.execution.crew import ProcessCrew
from tests.execution.test_local import alone, records
from tests.helpers import toy_request

REQUEST = toy_request(defenses=("toy-jitter", "toy-trainer"), attacks=("pgd:steps=3",))


def job_of(request, evaluations, out):
    ids = tuple(one.id for one in evaluations)
    return Job(requests=(request,), out=out, device="cpu", batch_size=64, threads=1, ids=ids)


def driven(folder, request, size=2, progress=None, kills=lambda worker, text: False):
    """The results, and what was noted."""
    evaluations, notes = plan(request), []
    crew = ProcessCrew(job_of(request, evaluations, "/nowhere"), kills)
    execution = Execution(batch_size=64, progress=progress)
    driver = Driver(evaluations, Store(folder), execution, crew, notes.append)
    return driver.run(size), notes


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return alone(tmp_path_factory.mktemp("alone"), plan(REQUEST))


def test_workers_without_the_folder_make_the_records_of_one_process(tmp_path, expected):
    seen = []

    def progress(evaluation, images, total, right):
        seen.append((evaluation.id, images))

    results, notes = driven(tmp_path, REQUEST, progress=progress)
    assert records(tmp_path) == expected and notes == []
    assert [one.record is not None and one.computed for one in results] == [True] * 3
    told = {name: sum(n for one, n in seen if one == name) for name in expected}
    assert set(told.values()) == {150}, "each image of each evaluation once"
    again, _ = driven(tmp_path, REQUEST)
    assert not any(one.computed for one in again)
    assert not list((tmp_path / ".work").iterdir())


def test_what_a_lost_worker_had_claimed_is_done_by_another_one(tmp_path, expected):
    """Each of the first four dies once it has claimed a shard, or before it has handed one in."""

    def kills(worker, text):
        word, *_ = read_message(text)[0]
        return worker <= 4 and word == ("held" if worker % 2 else "write")

    results, _ = driven(tmp_path, REQUEST, kills=kills)
    assert records(tmp_path) == expected and all(one.record for one in results)


def test_workers_that_die_one_after_the_other_end_the_job(tmp_path):
    with pytest.raises(BadInput, match=r"4 workers ended one after the other \(it was killed\)"):
        driven(tmp_path, REQUEST, size=1, kills=lambda worker, text: True)
    assert not list(tmp_path.glob("*.json"))


def test_a_crash_and_what_cannot_be_built_are_told(tmp_path):
    request = toy_request(defenses=("toy-crash", "toy-thief"), attacks=("pgd:steps=3",))
    results, _ = driven(tmp_path, request)
    by_name = {one.evaluation.defense.name: one for one in results}
    assert by_name["toy-crash"].failure and by_name["toy-crash"].path.exists()
    assert by_name["toy-thief"].rejected and by_name["undefended"].record


def test_a_worker_with_other_data_is_no_help(tmp_path):
    evaluations = plan(REQUEST)
    job = job_of(REQUEST, evaluations[:1], tmp_path)
    driver = Driver(evaluations, Store(tmp_path), Execution(), ProcessCrew(job), lambda _: None)
    with pytest.raises(BadInput, match="data, weights or code of this machine are not those"):
        driver.run(2)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b", "/etc/passwd"])
def test_no_message_reaches_outside_the_folder(tmp_path, name):
    served = Served(Store(tmp_path / "out"), *[lambda *_: None] * 3)
    for words in (("file", name), ("points", name, "e"), ("read", "e/w", name), ("find", name)):
        with pytest.raises(ValueError, match="no file's name"):
            served.answer(message(*words, data=b"x"))
    for folder in ("e", "../w", "e/../w", "/e/w", "a/b/c/d"):
        with pytest.raises(ValueError, match=r"no file.s name|no folder of an"):
            served.answer(message("write", folder, "f", data=b"x"))
    assert [one.name for one in tmp_path.rglob("*")] in ([], ["out"])


def test_a_message_comes_as_it_went():
    words, data = read_message(message("write", "a\nb", 3, True, data=b"\n{\x00"))
    assert words == ["write", "a\nb", 3, True] and data == b"\n{\x00"
    with pytest.raises(ValueError, match="no message"):
        read_message(json.dumps({"a": 1}).encode())
