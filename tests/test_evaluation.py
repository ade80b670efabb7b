"""The engine end to end on toys: invariance, resuming, failures, identity."""

import copy
import json
import logging
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import bench
import bench.engine.compute
import bench.engine.shards
import bench.storage.claims
from bench.engine.build import build
from bench.engine.execution import Execution
from bench.engine.fingerprint import fingerprint
from bench.engine.plan import plan
from bench.engine.preflight import check
from bench.engine.request import Request
from bench.engine.run import run_evaluation, run_evaluations
from bench.engine.shards import MIN_SHARD_IMAGES, shards_of
from bench.losses import misclassified
from bench.models.classifier import Classifier
from bench.noise import generators, isolated
from bench.report.leaderboard import boards, page
from bench.report.rows import rows_table
from bench.results.store import Store, read_folder
from tests import toy_model, toy_plugins
from tests.helpers import Drifting, drifting_evaluation
from tests.toy_plugins import Toy
from tests.toys import linear_problem

ROOT = Path(__file__).parents[1]
MODEL = f"{ROOT}/tests/toy_model.py@make_model"


def request(**changes) -> Request:
    defaults = {
        "defenses": ("toy-jitter",),
        "attacks": ("pgd+replay:steps=5",),
        "dataset": "toy:n=150",
        "classifier": MODEL,
    }
    return Request(**{**defaults, **changes})


def run(folder: Path, batch_size: int = 128, parts=None, **changes):
    evaluations = plan(request(**changes))
    store = Store(folder)
    return [
        run_evaluation(evaluation, store, Execution(batch_size=batch_size), parts)
        for evaluation in evaluations
    ]


@pytest.mark.parametrize(
    "attack",
    ["pgd:steps=5", "pgd+eot:randomness=(eot:k=3),steps=5", "pgd+replay:steps=5", "noise:tries=3"],
)
def test_outcomes_do_not_depend_on_batch_size_or_order(tmp_path, attack):
    backwards = list(reversed(shards_of(150, 7)))
    runs = {
        "one": run(tmp_path / "1", 1, attacks=(attack,)),
        "seven": run(tmp_path / "7", 7, attacks=(attack,)),
        "sixty-four": run(tmp_path / "64", 64, attacks=(attack,)),
        "backwards": run(tmp_path / "b", 7, parts=backwards, attacks=(attack,)),
    }
    for name, records in runs.items():
        for record, reference in zip(records, runs["seven"], strict=True):
            assert record.id == reference.id
            assert record.outcomes == reference.outcomes, name
            assert record.metrics == reference.metrics
    assert all(
        r.points.sha256 == s.points.sha256
        for r, s in zip(runs["backwards"], runs["seven"], strict=True)
    )


@pytest.mark.parametrize(
    ("defense", "attack", "eps"),
    [
        ("undefended", "pgd", 0.05),
        ("bit-depth", "bpda", 0.12),
        ("random-resize", "pgd", 0.05),
        ("random-resize", "pgd+replay", 0.03),
    ],
)
def test_a_real_net_gives_the_same_outcomes_at_any_batch_size(tmp_path, defense, attack, eps):
    """Floating-point sums differ by batch; outcomes do not, and at most 2 % of the points do."""
    (evaluation,) = plan(Request(defenses=(defense,), attacks=(attack,), eps=eps, n=100))[-1:]
    found = {}
    for size in (1, 7, 64):
        record = run_evaluation(evaluation, Store(tmp_path / str(size)), Execution(batch_size=size))
        found[size] = (
            record.outcomes,
            load_file(tmp_path / str(size) / record.points.file)["points"],
        )
    assert 0.05 < record.metrics.adversarial.mean.value < 0.95, (
        "a verdict that is all one tells nothing"
    )
    for size in (1, 7):
        assert found[size][0] == found[64][0]
        assert (found[size][1] == found[64][1]).all((1, 2, 3)).mean() >= 0.98


KILLED = """
import tests.toy_plugins
from bench.cli import main
main(["run", "--defense", "undefended", "--attack", "toy-kill:at={at}", "--dataset", "toy:n=150",
      "--classifier", "{model}", "--out", "{out}", "--device", "cpu", "--batch-size", "64",
      "--json"])
"""


def start(out: Path, at: int, kill: bool) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if kill:
        environment["TOY_KILL"] = "1"
    code = KILLED.format(at=at, model=MODEL, out=out)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, **pipes)


def killable(out: Path, at: int, kill: bool) -> subprocess.CompletedProcess:
    process = start(out, at, kill)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def test_two_workers_share_a_cell(tmp_path):
    """Two processes start the same command at once: one record, as one process alone would
    make it.
    """
    commands = [start(tmp_path / "both", 0, kill=False) for _ in range(2)]
    outputs = [process.communicate() for process in commands]
    assert [process.returncode for process in commands] == [0, 0], outputs
    one, two = (json.loads(text)[0] for text, _ in outputs)
    assert one["outcomes"] == two["outcomes"]
    assert len(list((tmp_path / "both").glob("*.json"))) == 1
    assert not list((tmp_path / "both" / ".work").glob("*/*"))
    alone = json.loads(killable(tmp_path / "alone", 0, kill=False).stdout)[0]
    assert (
        alone["outcomes"] == one["outcomes"]
        and alone["points"]["sha256"] == one["points"]["sha256"]
    )


@pytest.mark.parametrize("at", [0, 70, 149])
def test_a_killed_run_resumes(tmp_path, at):
    killed = killable(tmp_path / "a", at, kill=True)
    assert killed.returncode == -9
    assert not list((tmp_path / "a").glob("*.json")), "a killed run leaves no record"
    saved = sorted((tmp_path / "a" / ".work").rglob("shard-*"))
    assert len(saved) == at // MIN_SHARD_IMAGES
    resumed = killable(tmp_path / "a", at, kill=False)
    assert resumed.returncode == 0, resumed.stderr
    straight = killable(tmp_path / "b", at, kill=False)
    one, two = (json.loads(p.stdout)[0] for p in (resumed, straight))
    assert one["outcomes"] == two["outcomes"]
    assert one["points"]["sha256"] == two["points"]["sha256"]
    again = killable(tmp_path / "a", at, kill=False)
    assert json.loads(again.stdout)[0]["finished"] == one["finished"]


def test_a_stored_cell_is_not_computed_again(tmp_path):
    evaluations = plan(request())
    first = list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    second = list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    assert [r.computed for r in first] == [True, True]
    assert [r.computed for r in second] == [False, False]
    assert [r.record for r in first] == [r.record for r in second]


def test_a_crash_is_an_error_and_takes_nothing_down(tmp_path):
    evaluations = plan(request(defenses=("toy-crash", "toy-jitter"), attacks=("pgd:steps=3",)))
    results = {
        r.evaluation.defense.name: r
        for r in run_evaluations(evaluations, Store(tmp_path), Execution())
    }
    assert results["toy-jitter"].record and results["undefended"].record
    assert results["toy-crash"].record is None
    assert "crashes on larger batches" in results["toy-crash"].failure.error
    found = list(read_folder(tmp_path))
    failures = [f for f in found if hasattr(f, "traceback")]
    assert len(found) == 3 and len(failures) == 1
    text = page(boards([f for f in found if not hasattr(f, "traceback")]), failures)
    assert "toy-crash x pgd:steps=3 on toy:n=150, linf 0.05, n=150: error" in text


def test_undeclared_data_is_refused_and_leaves_no_record(tmp_path):
    evaluations = plan(request(defenses=("toy-thief",), attacks=("pgd",)))
    results = list(run_evaluations(evaluations, Store(tmp_path), Execution()))
    assert "without declaring" in str(results[-1].rejected)
    assert len(list(tmp_path.glob("*.json"))) == 1, "only the base's record"


def test_the_base_stands_beside_every_row(tmp_path):
    evaluations = plan(
        request(defenses=("toy-jitter", "undefended"), attacks=("pgd", "pgd+eot", "bpda"))
    )
    assert [str(c) for c in evaluations if c.defense.name == "undefended"] == [
        "undefended x pgd"
    ], "one base serves all laws"
    records = run(tmp_path)
    assert records[1].base == records[0].id
    assert "base" in rows_table(records)


def test_settings_that_cannot_matter_do_not_split_cells():
    plain, *rest = plan(
        request(defenses=("undefended",), attacks=("pgd", "pgd+replay", "bpda", "bpda+eot"))
    )
    assert not rest
    assert plain.gradient == "full" and str(plain.randomness) == "fresh"


def test_a_build_seed_counts_where_something_is_drawn():
    first, second = (
        plan(request(defenses=("undefended", "toy-jitter"), build_seed=seed)) for seed in (0, 1)
    )
    assert first[0].id == second[0].id and first[-1].id != second[-1].id
    assert plan(request(build_seed=1))[0].id == first[0].id, "nor does it make another base"


@pytest.mark.parametrize(
    "change",
    [
        {"attacks": ("pgd+replay:steps=6",)},
        {"eps": 0.06},
        {"n": 149},
        {"seeds": (1,)},
        {"build_seed": 1},
        {"norm": "l2", "eps": 0.05},
        {"defenses": ("toy-jitter:sigma=0.06",)},
        {"dataset": "toy:n=151"},
        {"attacks": ("pgd+eot:steps=5",)},
        {"gradient": "bpda"},
    ],
)
def test_everything_that_can_matter_changes_the_identity(change):
    assert plan(request(**change))[-1].id != plan(request())[-1].id


class KeptDropout(nn.Module):
    """Its dropout stays on while all else is in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.dropout, self.inner = nn.Dropout(0.5), toy_model.make_model()

    def forward(self, images):
        return self.inner(self.dropout(images))


@pytest.mark.parametrize("defense", ["undefended", "toy-jitter"])
def test_dropout_at_test_time_stays_on_behind_a_defense(defense):
    network = KeptDropout().eval()
    network.dropout.train()
    asked = request(defenses=(defense,), n=4)
    built = build(plan(asked, model=network)[-1], torch.device("cpu"))
    assert [part.training for part in built.modules() if isinstance(part, nn.Dropout)] == [True]


class Dropout(nn.Module):
    """An opaque stochastic model: dropout in its forward pass, drawn from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy_model.make_model()

    def forward(self, images):
        return self.inner(nn.functional.dropout(images, 0.3, training=True))


def test_evaluate_controls_an_opaque_stochastic_model():
    before = generators()
    attacks = ["pgd:steps=3", "pgd+replay:steps=3"]
    reports = [
        bench.evaluate(
            Dropout(), dataset="toy:n=30", attacks=attacks, device="cpu", batch_size=size, seeds=[5]
        )
        for size in (7, 64)
    ]
    assert generators() == before
    first, second = (report.records for report in reports)
    assert [r.replay_level for r in first] == ["process", "process"]
    assert all(r.stochastic and len(r.outcomes.adversarial) == 20 for r in first)
    assert [r.outcomes for r in first] == [r.outcomes for r in second]
    assert first[1].outcomes.replayed
    assert len(set(first[0].outcomes.clean)) > 10, "draws differ"
    assert "replayed" in str(reports[0])


def test_evaluate_finds_models_that_cannot_be_trusted():
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = toy_model.make_model(), 0

        def forward(self, images):
            self.calls += 1
            return self.inner(images) + 0.001 * self.calls * torch.arange(3)

    class BatchDependent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            return self.inner(images - images.mean(0, keepdim=True))

    class NoGradient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            return self.inner(images.detach())

    class Softmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            return self.inner(images).softmax(1)

    expected = {
        Stateful: "hidden-randomness",
        BatchDependent: "batch-dependence",
        NoGradient: "zero-gradient",
        Softmax: "probabilities",
    }
    for model, name in expected.items():
        (record,) = bench.evaluate(
            model(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu"
        ).records
        assert name in [f.name for f in record.findings], name
    (clean,) = bench.evaluate(
        toy_model.make_model(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu"
    ).records
    assert clean.findings == []
    (mended,) = bench.evaluate(
        Softmax(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu", output="probabilities"
    ).records
    assert "probabilities" not in [f.name for f in mended.findings]
    assert mended.outcomes == clean.outcomes


class Clamped(nn.Module):
    """Clamps its input with slope 0 at the bounds, as torch's clamp does in some versions."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        inside = (images > 0) & (images < 1)
        return self.inner(torch.where(inside, images, images.detach()))


def test_a_model_that_clamps_its_input_is_found():
    inner, images, labels = linear_problem(3, 16, active_box=True)
    assert int(((images == 0) | (images == 1)).sum()) > 100
    for model, expected in ((Clamped(inner), ["clamped-input"]), (inner, [])):
        assert [
            f.name for f in check(Classifier(model, 3).eval(), images, labels, "full")
        ] == expected
    assert (
        list(check(Classifier(Clamped(inner), 3).eval(), 0.2 + 0.5 * images, labels, "full")) == []
    )


def test_evaluation_without_gradients_says_so():
    class Opaque(nn.Module):
        def forward(self, images):
            return torch.from_numpy(
                np.stack([images.detach().numpy().sum((1, 2, 3))] * 3, 1) * np.arange(3)
            )

    (record,) = bench.evaluate(
        Opaque(), dataset="toy:n=20", attacks="pgd:steps=2", device="cpu"
    ).records
    assert {"zero-gradient", "no-gradient"} <= {f.name for f in record.findings}


def test_a_classifier_judged_on_its_training_images_is_flagged(tmp_path):
    evaluation = plan(request(defenses=("undefended",)))[0]
    evaluation.setup.classifier.trained_on = ("toy/test",)
    record = run_evaluation(evaluation, Store(tmp_path), Execution())
    assert "trained-on-test" in [f.name for f in record.findings]


# Found by reviewers who tried to break the engine -------------------------------------------------


def test_a_defense_that_trains_in_place_spoils_no_other_cell(tmp_path):
    records = {
        r.title["defense"]: r
        for r in run(tmp_path, defenses=("toy-vandal", "toy-jitter"), attacks=("null",))
    }
    assert records["undefended"].metrics.clean.mean.value == 1
    assert records["toy-vandal"].metrics.clean.mean.value < 0.5
    assert records["toy-jitter"].metrics.clean.mean.value > 0.6
    assert records["toy-vandal"].metrics.collapsed


def test_what_a_defense_says_and_what_it_builds_must_agree(tmp_path):
    for name, words in (("toy-secret", "stochastic"), ("toy-rounding", "gradients")):
        evaluations = plan(request(defenses=(name,), attacks=("bpda",)))
        rejected = list(run_evaluations(evaluations, Store(tmp_path), Execution()))[-1].rejected
        assert words in str(rejected)


def test_bpda_reaches_through_a_wrapper_to_the_classifier():
    inner = toy_plugins.Rounded(Classifier(toy_model.make_model(), 3).eval())
    outer = toy_plugins.Jittered(inner, 0.0)
    outer.stochastic = False
    (report,) = [
        bench.evaluate(outer, dataset="toy:n=60", attacks=["bpda:steps=10"], eps=0.3, device="cpu")
    ]
    (naive,) = [
        bench.evaluate(
            outer,
            dataset="toy:n=60",
            attacks=["pgd:steps=10,random_start=false"],
            eps=0.3,
            device="cpu",
        )
    ]
    assert report.records[0].metrics.adversarial.mean.value == 0
    assert report.records[0].title["gradient"] == "bpda"
    assert "zero-gradient" not in {f.name for f in report.records[0].findings}
    assert {"zero-gradient"} <= {f.name for f in naive.records[0].findings}


def test_training_data_is_part_of_the_identity_where_it_is_declared(tmp_path):
    _, images, labels = linear_problem(3, 20, active_box=False)
    ids = []
    for shift in (0.0, 0.01):
        arrays = {
            "x_test": images[:, 0].numpy(),
            "y_test": labels.numpy(),
            "y_train": labels.numpy(),
        }
        np.savez(tmp_path / "a.npz", x_train=images[:, 0].numpy() + shift, **arrays)
        dataset = f"npz:{tmp_path}/a.npz"
        ids.append(
            [
                plan(request(defenses=(d,), dataset=dataset, eps=0.1))[-1].id
                for d in ("toy-honest", "toy-jitter")
            ]
        )
    assert ids[0][0] != ids[1][0] and ids[0][1] == ids[1][1]


def test_plain_attributes_and_closures_are_part_of_a_models_identity(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, factor) -> None:
            super().__init__()
            self.inner, self.factor = toy_model.make_model(), factor

        def forward(self, images):
            return self.inner(images) * self.factor

    kept = {"dataset": "toy:n=20", "attacks": "null", "device": "cpu", "out": tmp_path}
    values = [
        bench.evaluate(Scaled(f), **kept).records[0].metrics.clean.mean.value for f in (1.0, -1.0)
    ]
    assert values == [1.0, 0.0]
    with isolated(0):
        net = nn.Linear(1, 1)
    net.pick = lambda x: x * 2
    other = copy.deepcopy(net)
    other.pick = lambda x: x * 3
    assert fingerprint(net) != fingerprint(other)
    assert fingerprint(net) == fingerprint(copy.deepcopy(net))


def _closure(factor):
    return lambda x: [y * factor for y in (lambda: x)()]


@pytest.mark.parametrize(
    "held",
    [
        torch.tensor,
        np.array,
        lambda value: {"scale": value},
        lambda value: [torch.tensor(value)],
        lambda value: partial(torch.clamp, min=value),
        lambda value: SimpleNamespace(scale=value, logger=logging.getLogger()),
        lambda value: [
            nn.Linear(1, 1)
            .requires_grad_(False)
            .apply(lambda net: net.weight.fill_(value) + net.bias.fill_(0))
        ],
        _closure,
    ],
    ids=["tensor", "array", "dict", "list", "partial", "object", "net", "closure"],
)
@pytest.mark.parametrize("name", ["scale", "_scale"])
def test_whatever_a_model_holds_is_part_of_its_identity(held, name):
    def made(value):
        with isolated(0):
            net = toy_model.make_model()
            setattr(net, name, held(value))
            net.me = [net]
        return fingerprint(net)

    assert made(1.0) == made(1.0) != made(2.0)


def test_a_models_hooks_are_part_of_its_identity():
    def made(factor):
        net = toy_model.make_model()
        net.register_forward_hook(lambda module, inputs, output: output * factor)
        return fingerprint(net)

    assert made(1.0) == made(1.0) != made(2.0)


def test_the_shipped_classifiers_fingerprint_is_the_one_in_stored_records():
    (evaluation,) = plan(Request(defenses=("undefended",), attacks=("pgd",), n=1))
    stored = [
        r
        for r in read_folder(ROOT / "leaderboards/records")
        if r.title["classifier"] == "zoo:mnist5k-cnn"
    ]
    assert {record.identity["classifier"]["sha256"] for record in stored} == {
        evaluation.setup.classifier_sha
    }


def test_masked_classes_do_not_hide_success():
    logits = torch.tensor(
        [[0.0, 1.0, -1e9], [0.0, 1.0, -torch.inf], [1.0, 0.0, -torch.inf], [-torch.inf, 1.0, 0.0]]
    )
    assert misclassified(logits, torch.zeros(4, dtype=torch.int64)).tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_a_log_of_mean_softmax_may_rule_classes_out():
    class Ruled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model.make_model()

        def forward(self, images):
            logits = self.inner(images)
            return torch.where(logits < logits.amax(1, keepdim=True) - 15, -torch.inf, logits)

    (record,) = bench.evaluate(
        Ruled(), dataset="toy:n=20", attacks="pgd:steps=5,loss=margin", eps=0.3, device="cpu"
    ).records
    assert record.metrics.clean.mean.value == 1
    assert record.metrics.adversarial.mean.value == 0


def test_a_part_without_a_right_image_is_not_attacked():
    class Wrong(nn.Module):
        def forward(self, images):
            return -toy_model.make_model()(images.view(images.size(0), 1, 4, 4))

    for attack in ("pgd", "noise"):
        (record,) = bench.evaluate(
            Wrong(), dataset="toy:n=3", attacks=attack, norm="l2", eps=0.1, device="cpu"
        ).records
        assert record.cost.attack_forwards == 0 and record.metrics.adversarial.mean.value == 0


def test_a_worker_that_loses_the_race_is_no_failure(tmp_path, monkeypatch):
    """Another process stores the record and drops the work folder while this one is about
    to claim.
    """
    evaluation = plan(request(attacks=("null",)))[-1]
    store = Store(tmp_path)
    right = bench.engine.shards.claimed

    def lose(folder):
        monkeypatch.setattr(bench.engine.shards, "claimed", right)
        run_evaluation(evaluation, store, Execution())
        return right(folder)

    monkeypatch.setattr(bench.engine.shards, "claimed", lose)
    (result,) = run_evaluations([evaluation], store, Execution())
    assert result.record is not None and result.failure is None
    assert not list(tmp_path.glob("*.error.json"))


def test_saved_parts_are_not_computed_again(tmp_path):
    work = bench.engine.shards.Workspace(tmp_path / "w")
    work.folder.mkdir()
    work.save((0, 64), {"x": np.arange(3)})
    computed, reported = [], []

    def compute(part):
        computed.append(part)
        return {"x": np.arange(5)}

    parts = [(0, 64), (64, 100)]
    found = bench.engine.shards.complete(
        work, parts, compute, lambda: False, lambda part, arrays: reported.append(part)
    )
    assert computed == [(64, 100)] and reported == parts
    assert [len(found[part]["x"]) for part in parts] == [3, 5]


def test_parts_of_another_build_are_not_taken_for_this_one(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    drifting = drifting_evaluation()
    store, options = Store(tmp_path), Execution(batch_size=64)
    with monkeypatch.context() as patch:
        patch.setattr(bench.engine.compute.ShardComputer, "report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(drifting, store, options)
    monkeypatch.setattr(Drifting, "factor", -1.0)
    record = run_evaluation(drifting, store, options)
    assert not record.outcomes.correct("clean").any(), "the first part is that of the build before"
    assert not list((tmp_path / ".work").iterdir())


def test_a_stale_claim_is_taken_over(tmp_path):
    work = bench.engine.shards.Workspace(tmp_path / "w")
    claim = tmp_path / "w" / "claim-0000000-0000064"
    claim.mkdir(parents=True)
    (claim / "owner.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with work.claim((0, 64)) as ours:
        assert not ours, "a fresh claim of another host stands"
    old = time.time() - 2 * bench.storage.claims.STALE_SECONDS
    os.utime(claim, (old, old))
    with work.claim((0, 64)) as ours, work.claim((0, 64)) as twice:
        assert ours and not twice
    assert not claim.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"eps": "1/0"},
        {"eps": True},
        {"seeds": 5.5},
        {"seeds": [-1]},
        {"seeds": [2**70]},
        {"seeds": []},
        {"n": 2.5},
        {"attacks": [None]},
        {"attacks": []},
        {"batch_size": "x"},
        {"output": "x"},
        {"gradient": ""},
        {"device": "tpu"},
    ],
)
def test_evaluate_refuses_what_the_command_refuses(arguments):
    with pytest.raises(bench.BadInput) as error:
        bench.evaluate(
            toy_model.make_model(),
            **{"dataset": "toy:n=5", "attacks": "null", "device": "cpu", **arguments},
        )
    assert "\n" not in str(error.value)


def test_a_defense_may_train_its_copy(tmp_path):
    records = {
        r.title["defense"]: r
        for r in run(tmp_path, defenses=("toy-trainer",), attacks=("pgd:steps=2",))
    }
    assert records["toy-trainer"].metrics.clean.mean.value > 0.5
    assert records["toy-trainer"].access == ["training data"]
    assert records["undefended"].metrics.clean.mean.value == 1


def test_a_gradient_that_is_not_offered_is_said():
    said = []
    plan(request(defenses=("undefended",), attacks=("bpda",)), note=said.append)
    assert len(said) == 1 and "offers no gradient 'bpda'" in said[0]
    said.clear()
    plan(request(defenses=("toy-jitter",), attacks=("bpda", "pgd")), note=said.append)
    assert said == [], "the base under a defense's attack is no request of the user"


def test_a_missing_gradient_does_not_matter_to_an_attack_without(tmp_path):
    class Blocked(nn.Module):
        def forward(self, images):
            return toy_model.make_model()((images * 8).round() / 8)

    report = bench.evaluate(
        Blocked(), dataset="toy:n=20", attacks=["null", "pgd:steps=2"], device="cpu"
    )
    assert [("zero-gradient" in {f.name for f in r.findings}) for r in report.records] == [
        False,
        True,
    ]


def test_evaluate_wants_a_module():
    with pytest.raises(bench.BadInput, match="give the module itself"):
        bench.evaluate(toy_model.make_model, dataset="toy:n=5")


def test_an_image_that_is_wrong_on_its_tape_stays_broken_under_replay(tmp_path):
    """Whatever the attack makes of it: the attacked function is fixed, so the deterministic rule
    holds.
    """
    record = run(tmp_path, attacks=("toy-mend+replay",), eps=0.3)[-1]
    null = run(tmp_path, attacks=("null+replay",), eps=0.3)[-1]
    wrong_on_fixed_noise = ~null.outcomes.correct("replayed")[:, 0]
    assert 5 < wrong_on_fixed_noise.sum() < 100
    assert not record.outcomes.correct("replayed")[wrong_on_fixed_noise].any()
    assert record.metrics.replayed.mean.value <= null.metrics.replayed.mean.value
    points = load_file(tmp_path / record.points.file)["points"]
    assert (
        points[wrong_on_fixed_noise]
        == Toy(Toy.Params(n=150)).test().images.numpy()[wrong_on_fixed_noise]
    ).all()
