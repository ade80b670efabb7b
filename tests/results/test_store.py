"""A folder of records."""

import json

import pytest

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluations
from bench.errors import BadInput
from bench.results.record import Failure
from bench.results.store import Store, is_failure, read, read_all, read_folder, read_record
from tests.helpers import run_toys, toy_request


def test_a_damaged_record_is_replaced(tmp_path):
    record = run_toys(tmp_path, attacks=("null",))[-1]
    path = tmp_path / f"{record.stem}.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    (again,) = run_evaluations(
        plan(toy_request(attacks=("null",)))[1:], Store(tmp_path), Execution()
    )
    assert again.computed and again.record.outcomes == record.outcomes
    assert read_record(path).outcomes == record.outcomes


@pytest.fixture
def record(tmp_path):
    return run_toys(tmp_path / "made", attacks=("null",), dataset="toy:n=20")[-1]


def failure_of(record, **changes):
    content = {"id": record.id, "title": record.title, "error": "it crashed"}
    return Failure(**{**content, "traceback": "...", "finished": "now", **changes})


def test_what_was_saved_is_found_and_a_success_drops_the_failure(tmp_path, record):
    store = Store(tmp_path / "store")
    crash = store.save_failure(failure_of(record))
    assert store.find(record.id) is None and is_failure(crash)
    assert read(crash) == failure_of(record)
    path = store.save(record)
    assert store.find(record.id) == read_record(path) == read(path) == record
    assert [left for left in store.folder.rglob("*") if left.name != ".work"] == [path]


def test_files_and_folders_are_read_once_and_a_failure_only_without_a_record(tmp_path, record):
    store = Store(tmp_path / "store")
    path = store.save(record)
    store.save_failure(failure_of(record))
    other = failure_of(record, id="0" * 16, title={**record.title, "seed": "9"})
    store.save_failure(other)
    assert read_all([path, store.folder, path]) == ([record], [other])


def test_hidden_folders_are_passed_over(tmp_path, record):
    Store(tmp_path / "store" / "deep").save(record)
    Store(tmp_path / "store" / ".work").save(record)
    assert list(read_folder(tmp_path / "store")) == [record]
    with pytest.raises(BadInput, match="no such folder"):
        list(read_folder(tmp_path / "none"))


def test_a_record_whose_id_is_not_its_identitys_is_refused(tmp_path, record):
    path = tmp_path / "a--b.json"
    for change in ({"id": "0" * 16}, {"schema_version": 1}):
        path.write_text(json.dumps({**record.model_dump(mode="json"), **change}))
        with pytest.raises(BadInput, match="is no record of schema 2"):
            read_record(path)
