"""Points found beside the attack's, by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from bench.results.extra import ExtraPoints
from bench.results.findings import Finding, ids_of
from bench.results.outcomes import Outcomes
from bench.results.record import Cost, Record
from bench.results.store import read_record, to_json
from tests.helpers import run_toys

LABELS = np.array([0, 1, 1, 0])


def outcomes(clean: list[list[int]], adversarial: list[list[int]]) -> Outcomes:
    none = np.empty((4, 0), dtype=np.int64)
    ids = np.array([3, 5, 6, 9])
    return Outcomes.of(2, ids, LABELS, np.array(clean), np.array(adversarial), none)


def test_an_extra_point_is_judged_by_the_row_s_rule_and_other_images_keep_their_verdict():
    row = outcomes([[0], [1], [0], [0]], [[0], [0], [1], [0]])
    extra = ExtraPoints.of(
        "base points", 2, np.array([3, 6, 9]), np.array([[1], [1], [0]]), ["pgd", "-", "-"]
    )
    extra.check(row)
    # Image 3 is broken by it, 5 has no point and was broken, 6 is wrong without an attack, 9 holds.
    assert extra.correct(row)[:, 0].tolist() == [False, False, False, True]
    assert extra.searches() == ["pgd", "", ""]


def test_fewer_draws_than_the_row_are_its_first_ones():
    draws = [[0, 0, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0]]
    row = outcomes(draws, draws)
    extra = ExtraPoints.of("checks", 2, np.array([6]), np.array([[1, 1]]))
    assert extra.correct(row).tolist() == [[True, True], [True, True], [True, False], [True, True]]


@pytest.mark.parametrize(
    ("ids", "adversarial", "why"),
    [
        ("3-4", ["00"], "is not among"),
        ("9,3", ["00"], "order"),
        ("3,5", ["000"], "differ in length"),
        ("3,5", ["00", "00"], "more draws"),
        ("3,5", ["0z"], "class"),
        ("3-9999999999", ["00"], "predictions of fewer"),
        ("3-5", ["0"], "predictions of fewer"),
        ("three", ["0"], "form"),
        ("3,3", ["00"], "twice|folded"),
    ],
)
def test_points_of_other_images_are_refused(ids, adversarial, why):
    row = outcomes([[0], [1], [0], [0]], [[0], [0], [1], [0]])
    with pytest.raises(ValueError, match=why):
        ExtraPoints(name="checks", ids=ids, adversarial=adversarial).check(row)


def test_a_record_holds_extra_points_and_one_without_still_reads(tmp_path):
    record = run_toys(tmp_path, attacks=("null",), dataset="toy:n=12")[-1]
    old = record.model_dump(mode="json", exclude={"extra"})
    for finding in old["findings"]:
        for name in ("value", "threshold", "images", "advice", "source"):
            del finding[name]
    again = Record.model_validate(old)
    assert again.extra == [] and again.extra_correct() == {}
    for name in ("check_forwards", "check_backwards"):
        less = {key: value for key, value in old["cost"].items() if key != name}
        with pytest.raises(ValidationError, match=name):
            Record.model_validate({**old, "cost": less})
    ids = record.outcomes.image_ids()[:3]
    wrong = 1 - record.outcomes.true_labels()[:3, None]
    extra = ExtraPoints.of("checks", record.outcomes.num_classes, ids, np.abs(wrong))
    more = Record.model_validate({**old, "extra": [extra.model_dump()]})
    path = tmp_path / f"{more.stem}.json"
    path.write_bytes(to_json(more))
    assert read_record(path) == more
    assert not more.extra_correct()["checks"][:3].any()
    with pytest.raises(ValidationError, match="one name"):
        Record.model_validate({**old, "extra": [extra.model_dump()] * 2})


def test_the_data_of_a_finding():
    finding = Finding(name="a", verdict="warn", message="b", images=ids_of([5, 1, 2]), value=0.5)
    assert finding.images == "1-2,5" and finding.image_ids() == [1, 2, 5]
    with pytest.raises(ValidationError):
        Finding(name="a", verdict="warn", message="b", images="x")
    with pytest.raises(ValidationError):
        Finding(name="a", verdict="warn", message="b", value=float("nan"))


def test_passes_of_checks_are_no_negative_number():
    with pytest.raises(ValidationError):
        Cost(
            attack_forwards=0,
            attack_backwards=0,
            max_attack_forwards=0,
            max_attack_backwards=0,
            judge_forwards=1,
            check_forwards=-1,
            check_backwards=0,
            seconds=0,
        )
