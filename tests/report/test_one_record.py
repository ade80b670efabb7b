"""`bench show` of one committed record."""

import pytest

from bench.report.boards.make import boards
from bench.report.boards.markdown import page as board_page
from bench.report.one_record import render, under_every_rule
from bench.results.store import read_record
from tests.helpers import call
from tests.report.helpers import BIT_DEPTH, HALF, RECORDS, REPLAY, UNDEFENDED, made, stored


def test_rules_agree_with_the_metrics_of_a_record():
    record = read_record(REPLAY)
    shown = under_every_rule(record)
    for shares, judged in (
        (shown.clean, record.metrics.clean),
        (shown.attacked, record.metrics.adversarial),
    ):
        for rule, share in (
            ("mean of 20", judged.mean),
            ("any of 20 wrong", judged.all_draws),
            ("majority of 20", judged.majority),
        ):
            assert (
                shares[rule].value,
                shares[rule].low,
                shares[rule].high,
            ) == pytest.approx((share.value, share.low, share.high))
    assert (
        record.metrics.replayed
        and shown.replayed["replayed"].value == record.metrics.replayed.mean.value
    )


def test_show_one_record(capsys):
    code, text, _ = call(capsys, "show", str(REPLAY))
    assert (
        code == 0
        and "reduced" not in text
        and "findings: none" in text
        and "data access: none" in text
    )
    for row in (
        "one draw        | 97.2 [96.0, 98.1] | 16.6",
        "any of 20 wrong | 93.2 [91.5, 94.6] | 3.9 [2.9, 5.3]",
    ):
        assert f"| {row}" in text
    assert "| rule " in text
    assert "| replayed        |                   | 0.0 [0.0, 0.4]    |" in text
    assert (
        "own fixed noise;" in text
        and "torch 2.15.0; commit 2348234" in text
        and "passes/prediction: 1.0" in text
    )


def test_show_one_deterministic_record_says_nothing_of_draws(capsys):
    _, text, _ = call(capsys, "show", str(UNDEFENDED))
    assert "| one answer | 98.2" in text and "draw" not in text and "majority" not in text


def test_show_stages_findings_and_scale(capsys, tmp_path):
    _, text, _ = call(capsys, "show", str(next(RECORDS.glob("*bit-depth--autoattack*.json"))))
    assert "clean 97.9, apgd-ce 0.0" in text
    _, text, _ = call(capsys, "show", str(BIT_DEPTH))
    assert "- warn zero-gradient: " in text
    _, text, _ = call(capsys, "show", *stored(tmp_path, made(HALF)))
    assert "100 of 1000 images (reduced)" in text


def test_passes_through_a_diffusion_model_are_shown_where_there_is_one():
    record = read_record(REPLAY)
    assert record.inference
    purifying = record.inference.model_copy(update={"denoiser_passes": 10.0})
    counted = record.model_copy(update={"inference": purifying})
    shown, plain = (render(under_every_rule(one)) for one in (counted, record))
    assert "passes/prediction: 1.0 (10.0 through the diffusion model); meets" in shown
    assert "diffusion model" not in plain
    page, plain_page = (board_page(boards([one])) for one in (counted, record))
    assert "denoiser passes" in page and "`denoiser passes`" in page
    assert "denoiser passes" not in plain_page
