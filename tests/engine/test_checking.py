"""What every run checks, from end to end: a small module for each kind of fault, and honest ones
beside them.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import bench
from bench.checks.probed import BEATEN, SLOPES, WEAK
from bench.checks.probes import ENOUGH, MOST_PROBED
from bench.checks.verdicts import (
    BASE_BREAKS,
    BATCH,
    FLAT,
    HIDDEN,
    LOOP,
    MOVES,
    NO_COPY,
    NON_FINITE,
    REMEMBERS,
)
from bench.defense import Defense
from bench.engine import probing
from bench.engine.checking import base_points
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import compute_outcomes, run_evaluation, run_evaluations
from bench.engine.shards import Workspace
from bench.noise import isolated
from bench.plugins.create import DEFENSES
from bench.report import compare, show
from bench.report.boards.make import boards
from bench.report.boards.markdown import page
from bench.report.rows import rows_table
from bench.results.extra import BASE_POINTS, CHECKS
from bench.results.findings import Finding
from bench.results.store import Store
from bench.storage.place import Place
from tests import toy_model
from tests.helpers import toy_request
from tests.toy_plugins import Jitter, Toy

N, EPS = 60, 0.008


class Around(nn.Module):
    """Around the linear model of the toy data set."""

    def __init__(self):
        super().__init__()
        self.net = toy_model.make_model()
        self.clean = Toy(Toy.Params(n=N)).test().images.flatten(1)

    def forward(self, x):
        return self.net(x)

    def moved(self, x):
        """Which images are none of the clean ones, (n, 1)."""
        distance = (x.detach().flatten(1)[:, None] - self.clean).abs().amax(2)
        return distance.amin(1, keepdim=True) > 1e-5


class NaNGradient(Around):
    """A penalty whose square root is 0 inside the box."""

    def forward(self, x):
        outside = ((x - x.clamp(0, 1)) ** 2).flatten(1).sum(1)
        return self.net(x) - outside.sqrt()[:, None]


class SomeNaN(Around):
    """The same for one pixel: the search uses the others."""

    def forward(self, x):
        first = x[:, :, 0, 0]
        return self.net(x) - ((first - first.clamp(0, 1)) ** 2).sum(1).sqrt()[:, None]


class Flat(Around):
    """No gradient off the clean images."""

    def forward(self, x):
        return self.net(torch.where(self.moved(x)[..., None, None], x.detach() + 0 * x, x))


class Unsure(Around):
    """Random off the clean images."""

    def forward(self, x):
        z, moved = self.net(x), self.moved(x)
        return torch.where(moved, z + torch.randn_like(z), z) if moved.any() else z


class Neighbours(Around):
    """Rows see each other off the clean images."""

    def forward(self, x):
        z = self.net(x)
        return z + 0.3 * (self.moved(x) * z).sum(0) / len(z)


class Learns(Around):
    """Moves a parameter under attack, and back again before it is judged."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        z = self.net(x)
        if x.requires_grad:
            with torch.no_grad():
                self.bias.data.add_(1)
        return z


class Memory(Around):
    """Answers what lies near an image seen before as it answered that one."""

    def __init__(self):
        super().__init__()
        self.seen, self.said = [], []

    def forward(self, x):
        z, out = self.net(x), []
        for image, answer in zip(x.detach(), z, strict=True):
            known = zip(self.seen, self.said, strict=True)
            near = [s for m, s in known if (m - image).abs().max() <= EPS + 1e-4]
            if not near:
                self.seen.append(image.clone())
                self.said.append(answer.detach().clone())
            out.append(near[0] + 0 * answer if near else answer)
        return torch.stack(out)


class SomeTurned(Around):
    """The gradient of a part of the images points backwards; the values are those of the net."""

    def forward(self, x):
        z = self.net(x)
        some = (x.detach().flatten(1).mean(1, keepdim=True) * 50).floor() % 8 == 0
        return torch.where(some, 2 * z.detach() - z, z)


class Loop(Around):
    """Five gradient steps inside."""

    def forward(self, x):
        with torch.enable_grad():
            y = x.detach().clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.net(y).logsumexp(1).sum(), y)
        return self.net(x + 1e-4 * slope.sign())


class Honest(Around):
    """Caches by shape, keeps its last answer, and reads a counter that stands still."""

    def __init__(self):
        super().__init__()
        self.cache, self.last, self.count = {}, None, 3

    def forward(self, x):
        zero = self.cache.setdefault(tuple(x.shape), torch.zeros(x.shape[1:]))
        self.last = self.net(x + zero) * self.count
        return self.last


def row(kind, **changes):
    """The one record of a module on the toy data set."""
    settings = {"attacks": "pgd:steps=10", "norm": "linf", "eps": EPS, "device": "cpu", **changes}
    settings = {"dataset": f"toy:n={N}", **settings}
    with isolated(0):
        report = bench.evaluate(kind(), **settings)
    assert not report.failures, report.failures
    return report.records[-1]


def names(record, verdict):
    return {finding.name for finding in record.findings if finding.verdict == verdict}


def finding(record, name):
    (one,) = [one for one in record.findings if one.name == name]
    return one


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (NaNGradient, NON_FINITE),
        (Unsure, HIDDEN),
        (Neighbours, BATCH),
        (Learns, MOVES),
        (Memory, REMEMBERS),
    ],
)
def test_each_kind_fails_for_its_own_reason_alone(kind, name):
    record = row(kind)
    assert names(record, "fail") == {name}
    one = finding(record, name)
    assert one.advice in one.message and one.threshold is not None and one.value > one.threshold
    assert "\n" not in one.message and len(one.message) < 300
    assert "~~undefended~~" in rows_table([record]) and name in rows_table([record])
    (board,) = boards([record])
    assert "~~undefended~~" in page([board])


@pytest.mark.parametrize(("kind", "name"), [(SomeNaN, NON_FINITE), (Flat, FLAT), (Loop, LOOP)])
def test_what_is_to_be_doubted_is_a_warning(kind, name):
    record = row(kind)
    assert name in names(record, "warn") and name not in names(record, "fail")


@pytest.mark.parametrize("kind", [Around, Honest])
def test_an_honest_module_passes(kind):
    record = row(kind)
    assert not names(record, "fail") and not names(record, "warn")
    assert 0.1 < record.metrics.adversarial.mean.value < 0.9


def test_findings_name_the_images_that_were_left():
    record = row(NaNGradient)
    one = finding(record, NON_FINITE)
    left = record.outcomes.correct("adversarial")[:, 0]
    assert one.image_ids() == record.outcomes.image_ids()[left].tolist()
    assert one.value == pytest.approx(left.mean())
    # It searched with what was finite: broken images are no failure.
    some = finding(row(SomeNaN), NON_FINITE)
    assert len(some.image_ids()) > N / 2 and "took for 0" in some.message


@pytest.mark.parametrize("randomness", [None, "replay"])
def test_the_checks_cost_at_most_eight_passes_an_image_and_are_counted(randomness):
    record = row(Honest) if randomness is None else row_of_jitter(randomness)
    assert 1 <= record.cost.check_forwards + record.cost.check_backwards <= 8


def row_of_jitter(randomness):
    report = bench.evaluate(
        toy_model.make_model(),
        defenses=[Jitter],
        dataset=f"toy:n={N}",
        attacks="pgd:steps=10",
        randomness=randomness,
        norm="linf",
        eps=EPS,
        device="cpu",
    )
    assert not report.failures, report.failures
    return report.records[-1]


# The base's points -------------------------------------------------------------------------------


class Decoy(nn.Module):
    """The value of the classifier, the gradient of another function."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        decoy = self.inner(x.flip(2).transpose(2, 3))
        return self.inner(x.detach()) + decoy - decoy.detach()


class Astray(Defense):
    """Leads a search astray."""

    def build(self, classifier, access, noise):
        return Decoy(classifier.network)


@pytest.fixture
def astray():
    DEFENSES.register("toy-astray")(Astray)
    yield
    DEFENSES._entries.pop("toy-astray", None)


def rows_of(folder, defense, **changes):
    settings = {"attacks": ("pgd:steps=10",), "eps": EPS, **changes}
    request = toy_request(defenses=(defense,), **settings)
    results = list(run_evaluations(plan(request), Store(folder), Execution(batch_size=64)))
    assert all(result.record for result in results), results[-1].failure
    return [result.record for result in results]


def test_points_of_the_base_break_a_defense_that_leads_the_attack_astray(tmp_path):
    report = bench.evaluate(
        toy_model.make_model(),
        defenses=[Astray],
        dataset=f"toy:n={N}",
        attacks="pgd:steps=10",
        norm="linf",
        eps=EPS,
        device="cpu",
        out=tmp_path,
    )
    base, record = report.records
    assert BASE_BREAKS in names(record, "fail")
    assert BASE_POINTS not in base.extra_correct()
    (extra,) = [one for one in record.extra if one.name == BASE_POINTS]
    # The function is the base's own: its points break exactly what they broke there.
    assert np.array_equal(record.extra_correct()[BASE_POINTS], base.outcomes.correct("adversarial"))
    one = finding(record, BASE_BREAKS)
    more = record.outcomes.correct("adversarial") & ~base.outcomes.correct("adversarial")
    assert set(one.image_ids()) == set(record.outcomes.image_ids()[more[:, 0]])
    assert extra.ids == record.outcomes.ids


def test_controls_and_rows_without_a_base_have_no_base_points(tmp_path):
    records = rows_of(tmp_path, "toy-jitter", dataset=f"toy:n={N}")
    extra = {one.name: one for one in records[1].extra}
    assert len(extra[BASE_POINTS].adversarial) == 2
    assert not names(records[1], "fail")
    request = toy_request(attacks=("null",), eps=EPS, dataset=f"toy:n={N}")
    for evaluation in plan(request):
        assert run_evaluation(evaluation, Store(tmp_path), Execution()).extra == []
        assert base_points(evaluation, Store(tmp_path)) is None


@pytest.mark.parametrize("harm", ["gone", "changed", "shape", "outside", "record"])
def test_damaged_points_of_the_base_are_not_used(tmp_path, harm):
    base, _ = rows_of(tmp_path, "toy-jitter", dataset=f"toy:n={N}")
    evaluation = plan(toy_request(attacks=("pgd:steps=10",), eps=EPS, dataset=f"toy:n={N}"))[-1]
    store, file = Store(tmp_path), tmp_path / base.points.file
    assert base_points(evaluation, store).shape == (N, 1, 4, 4)
    points = load_file(file)["points"]
    if harm == "gone":
        file.unlink()
    elif harm == "changed":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "record":
        (tmp_path / f"{base.stem}.json").unlink()
    else:
        save_file({"points": points[:-1] if harm == "shape" else 1 - points}, file)
        _say_hash(tmp_path / f"{base.stem}.json", file)
    assert base_points(evaluation, store) is None


def _say_hash(path, file):
    import hashlib

    record = json.loads(path.read_text())
    record["points"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    path.write_text(json.dumps(record))


def test_a_module_that_can_be_copied_by_no_one_is_a_warning():
    class Stubborn(Around):
        def __deepcopy__(self, memo):
            raise TypeError("no copy")

        def forward(self, x):
            return self.net(x)

    record = row(Stubborn)
    assert NO_COPY in names(record, "warn") and not names(record, "fail")
    assert record.cost.check_forwards < 1 + record.cost.attack_forwards


def test_the_checks_leave_outcomes_and_attack_passes_as_they_are(tmp_path):
    evaluation = plan(toy_request(dataset=f"toy:n={N}"))[-1]
    record = run_evaluation(evaluation, Store(tmp_path), Execution())
    assert compute_outcomes(evaluation, Execution()) == record.outcomes


def failing(record):
    """The record with a finding that fails."""
    told = Finding(name=BATCH, verdict="fail", message="seen")
    return record.model_copy(update={"findings": [told]})


def test_a_failed_finding_strikes_the_row_out_wherever_it_is_printed(tmp_path):
    plain, jitter = rows_of(tmp_path, "toy-jitter", dataset=f"toy:n={N}")
    other = failing(rows_of(tmp_path, "toy-jitter", dataset=f"toy:n={N}", seeds=(1,))[-1])
    curve = rows_of(tmp_path, "toy-jitter", dataset=f"toy:n={N}", eps=0.02)[-1]
    struck = "~~toy-jitter~~"
    pages = {
        "run": lambda one: rows_table([plain, one]),
        "show": lambda one: show.render([one]),
        "show, attacks": lambda one: show.render([jitter, one]),
        "show, curve": lambda one: show.render([one, curve]),
        "leaderboard": lambda one: page(boards([plain, one])),
        "compare": lambda one: compare.render(compare.compare([plain, one])),
    }
    for name, printed in pages.items():
        good = jitter if "attacks" not in name else rows_seed_one(tmp_path)
        bad = other if "attacks" in name else failing(jitter)
        assert struck not in printed(good), name
        assert struck in printed(bad), name
    (compared,) = compare.as_json(compare.compare([plain, failing(jitter)]))
    assert compared["failed"] == ["toy-jitter"]
    assert BATCH in show.render([failing(jitter), curve])
    assert f", checks {jitter.cost.check_forwards:.1f}F" in show.render([jitter])


def rows_seed_one(folder):
    return rows_of(folder, "toy-jitter", dataset=f"toy:n={N}", seeds=(1,))[-1]


# Probes ------------------------------------------------------------------------------------------


def test_what_the_probes_break_fails_the_row_and_joins_the_worst_case(tmp_path):
    record = row(Flat, eps=0.03, out=tmp_path)
    assert names(record, "fail") == {BEATEN} and {FLAT, SLOPES} <= names(record, "warn")
    # The gradient is zero, so no sign tells which images were looked at.
    assert finding(record, SLOPES).images
    (extra,) = [one for one in record.extra if one.name == CHECKS]
    assert extra.ids == finding(record, BEATEN).images and all(extra.searches())
    points = load_file(tmp_path / record.points.file)["extra"]
    rows = extra.places(record.outcomes)
    images = Toy(Toy.Params(n=N)).test()
    assert (abs(points - images.images.numpy()[rows]) <= 0.03 + 1e-6).all()
    answers = toy_model.make_model()(torch.from_numpy(points)).argmax(1).numpy()
    assert (answers == extra.predictions(3)[:, 0]).all()
    assert (answers != record.outcomes.true_labels()[rows]).all()
    assert not record.extra_correct()[CHECKS][rows].any()
    # Found where the attack left the image, and nowhere else.
    assert record.outcomes.correct("adversarial")[rows].all()


@pytest.mark.parametrize("n", [18, 5])
def test_a_small_row_is_decided_on_more_images_than_its_budget_probes(n):
    """Three of 18 images may be probed, none of five; the decision takes all that are left."""
    record = row(Flat, eps=0.03, dataset=f"toy:n={n}")
    (extra,) = [one for one in record.extra if one.name == CHECKS]
    assert len(extra.image_ids()) > max(3, n // 3)
    assert (BEATEN in names(record, "fail")) == (n == 18)
    order = [record.outcomes.image_ids().tolist().index(i) for i in extra.image_ids()]
    assert order == sorted(order)


def test_what_hides_a_part_of_the_images_is_searched_on_all_that_are_left(monkeypatch):
    """Four of sixteen break: no decision; of all that the attack left there are enough."""
    record = row(SomeTurned, dataset="toy:n=240")
    assert names(record, "fail") == {BEATEN}
    (extra,) = [one for one in record.extra if one.name == CHECKS]
    assert len(extra.image_ids()) > ENOUGH
    monkeypatch.setattr(probing, "SOME", MOST_PROBED)
    assert not names(row(SomeTurned, dataset="toy:n=240"), "fail")


def test_an_honest_small_row_costs_no_more():
    record = row(Around, dataset="toy:n=18")
    assert record.cost.check_forwards + record.cost.check_backwards <= 8


def test_a_control_and_a_search_without_gradients_are_not_probed():
    for attack in ("null", "noise:tries=2"):
        record = row(Flat, eps=0.03, attacks=attack)
        assert not record.extra and record.cost.check_forwards == 1
        assert not names(record, "fail")


def test_a_weak_attack_is_told_from_one_that_is_misled():
    """One short step leaves what a few margin steps break, but no gradient lies."""
    record = row(Around, eps=0.03, attacks="pgd:steps=1,step=0.001,random_start=false")
    assert WEAK in names(record, "warn") and not names(record, "fail")


def test_damaged_probes_are_run_again(tmp_path, capsys):
    request = toy_request(attacks=("pgd:steps=10",), eps=0.03, dataset=f"toy:n={N}")
    evaluation = plan(request)[-1]
    kept = {}
    save = Workspace.save

    def keep(work, shard, arrays):
        save(work, shard, arrays)
        folder = work.place.folder
        kept[folder.name] = folder.relative_to(tmp_path), shard, dict(arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "save", keep)
        record = run_evaluation(evaluation, Store(tmp_path), Execution())
    folder, shard, arrays = kept["probes"]
    harms = {
        "ids": lambda one: one[:-1],
        "points": lambda one: one + 2,
        "by": lambda one: one[:-1],
        "judged": lambda one: one[:, :-1],
        "sign": lambda one: one[:-1],
        "seconds": lambda one: one * np.inf,
    }
    for name, harm in harms.items():
        (tmp_path / f"{record.stem}.json").unlink()
        broken = {**arrays, f"probe/{name}": harm(arrays[f"probe/{name}"])}
        Workspace(Place(tmp_path / folder)).save(shard, broken)
        again = run_evaluation(evaluation, Store(tmp_path), Execution())
        assert again.findings == record.findings and again.extra == record.extra
        assert "probes" in (told := capsys.readouterr().err) and "is damaged" in told, name
