"""A folder of records."""

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluations
from bench.results.store import Store, read_record
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
