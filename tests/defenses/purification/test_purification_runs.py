"""Purifying defenses through the command, on the shipped model."""

import json
import subprocess
import sys

import pytest
import torch

from bench.cli import execute
from bench.engine.execution import Execution
from bench.engine.memory import limited
from bench.engine.plan import plan
from bench.engine.request import Request
from bench.engine.run import compute_outcomes
from bench.engine.setup import load_setup
from bench.results.metrics import measure
from bench.results.store import read_record

pytest.importorskip("diffusers")

SMALL = ["--eps", "0.2", "--n", "2", "--device", "cpu"]


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """The command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = execute(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_replayed_verdict_comes_out_of_its_record_in_a_new_process(bench, tmp_path):
    attacks = [
        "--attack",
        "pgd+replay:steps=2",
        "--attack",
        "pgd:steps=1,randomness=(replay:freeze=reverse)",
    ]
    code, _, err = bench("run", "--defense", "diffpure:t=60,steps=2", *attacks, *SMALL)
    assert code == 0, err
    paths = sorted((tmp_path / "results").glob("*--diffpure*.json"))
    records = {len(read_record(path).outcomes.replayed): path for path in paths}
    assert set(records) == {1, 20}
    again = [
        sys.executable,
        "-m",
        "bench",
        "verify",
        str(records[1]),
        "--batch-size",
        "1",
        "--memory",
        "1M",
    ]
    checked = subprocess.run(again, capture_output=True, text=True, timeout=280, check=False)
    assert (
        checked.returncode == 0
        and "replayed: re-scoring the stored points: predictions of 0 of 2 images" in checked.stdout
    )
    assert bench("verify", str(records[20]))[0] == 0
    for record in map(read_record, paths):
        assert record.access == ["pretrained generator"] and record.replay_level == "exact"
        assert any(
            "mnist5k/train" in finding.message
            for finding in record.findings
            if finding.name == "generator"
        )
        assert set(record.identity["data"]) == {"pretrained generator"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["diffpure", "--randomness", "replay:freeze=left"],
            "no stage 'left' to freeze: its stages are forward and reverse",
        ),
        (
            ["revpure", "--randomness", "replay:freeze=forward"],
            "no stage 'forward' to freeze: its stages are reverse",
        ),
        (
            ["random-resize", "--randomness", "replay:freeze=forward"],
            "none of its randomness can be frozen alone",
        ),
        (["diffpure", "--gradient", "surrogate:steps=99"], "more steps than the defense"),
        (
            ["diffpure", "--gradient", "adjoint"],
            "no gradient 'adjoint': use full or bpda or surrogate or blind",
        ),
        (["diffpure:t=1001,steps=1"], "beyond the diffusion model's schedule of 1000"),
        (["diffpure:t=5,steps=6"], "has only t=5 indices to visit"),
        (["diffpure:model=(gaussian:side=32)"], "32 x 32 pixels, not 28 x 28"),
        (["diffpure:model=(folder:/nowhere)"], "/nowhere"),
        (
            ["diffpure:model=(zoo:mnist5k-ddpm,step=7)"],
            "has no weights after 7 steps: it keeps 75, 150",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_record(bench, tmp_path, arguments, message):
    code, _, err = bench(
        "run", "--defense", arguments[0], "--attack", "null", *arguments[1:], *SMALL
    )
    lines = [line for line in err.splitlines() if line.startswith("bench: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
    assert not list((tmp_path / "results").glob(f"*--{arguments[0][:7]}*.json"))


def evaluation(defense: str, attack: str, n: int = 4, **request):
    return plan(Request(defenses=(defense,), attacks=(attack,), eps=0.2, n=n, **request))[-1]


def test_memory_is_in_no_identity_and_changes_no_outcome():
    one = evaluation("diffpure:t=60,steps=3", "pgd+replay:steps=2", n=2)
    with limited("4G"):
        plenty = compute_outcomes(one, Execution(batch_size=8))
    with limited("1M"):
        little = compute_outcomes(one, Execution(batch_size=8))
    assert plenty == little and "memory" not in json.dumps(one.identity)


def test_the_weights_of_the_diffusion_model_are_in_the_identity():
    specs = (
        "diffpure",
        "diffpure:model=(zoo:mnist5k-ddpm)",
        "diffpure:model=(zoo:mnist5k-ddpm,weights=raw)",
    )
    own, named, raw = (
        evaluation(spec, "pgd").identity["data"]["pretrained generator"] for spec in specs
    )
    assert own == named != raw


def test_freezing_all_stages_is_replay():
    whole, both = (
        evaluation("diffpure", "pgd", randomness=randomness)
        for randomness in ("replay", "replay:freeze=forward+reverse")
    )
    assert whole.id == both.id
    assert (
        evaluation("revpure", "pgd", randomness="replay:freeze=reverse").id
        == evaluation("revpure", "pgd", randomness="replay").id
    )
    assert (
        evaluation("undefended", "pgd", randomness="replay:freeze=forward").title["randomness"]
        == "none"
    )


def test_no_fixed_noise_is_behind_the_base_of_a_random_classifier():
    setup = load_setup(Request(n=4).one_setup("test"))
    setup.classifier.stochastic = True
    request = Request(defenses=("diffpure",), attacks=("pgd",), randomness="replay:freeze=forward")
    base, row = plan(request, setup)
    assert (base.title["randomness"], row.title["randomness"]) == ("fresh", "replay:freeze=forward")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "attack", "fresh", "replayed"),
    [
        ("diffpure:steps=5", "pgd+replay:steps=10", 0.680, 0.30),
        ("diffpure:steps=5", "pgd:steps=10", 0.450, None),
        ("diffpure:steps=5", "bpda+replay:steps=10", 0.801, 0.59),
        ("revpure:steps=5", "pgd+replay:steps=10", 0.866, 0.73),
    ],
)
def test_regression_anchors(defense, attack, fresh, replayed):
    torch.set_num_threads(1)
    metrics = measure(
        compute_outcomes(evaluation(defense, attack, n=100), Execution()), by_gradient=True
    )
    assert metrics.adversarial.mean.value == pytest.approx(fresh, abs=0.06)
    assert metrics.replayed is None or metrics.replayed.mean.value == pytest.approx(
        replayed, abs=0.06
    )
