"""Points made elsewhere: formats, matching, ball and box, identity."""

import numpy as np
import pytest
import torch
from bench_attacks.transfer import Transfer
from safetensors.torch import load_file, save_file

from bench.defense import DefendedClassifier, Setting
from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluation
from bench.plugins.create import create_attack
from bench.randomness import RandomnessModel
from bench.results.store import Store
from bench.threat import ThreatModel
from bench.victim import Victim, frozen
from tests.helpers import toy_request
from tests.toy_plugins import Toy
from tests.toys import classifier, exact_distance, linear_problem, message

N, EPS = 80, 0.1


def images():
    return Toy(Toy.Params(n=150)).test().first(N)


def points():
    """Inside the ball, different for every image."""
    generator = torch.Generator().manual_seed(0)
    origin = images().pixels()
    return (origin + EPS * (2 * torch.rand(origin.shape, generator=generator) - 1)).clamp(0, 1)


def planned(path, *, n=N, **options):
    more = "".join(f",{key}={value}" for key, value in options.items())
    request = toy_request(
        defenses=("undefended",), attacks=(f'transfer:"{path}"{more}',), eps=EPS, n=n
    )
    return plan(request)[-1]


def judged(path, tmp_path, **options):
    """The record, and the points that were judged where the clean image was right."""
    store = Store(tmp_path / "out")
    record = run_evaluation(planned(path, **options), store, Execution(batch_size=64))
    return record, load_file(store.folder / record.points.file)["points"]


def write(path, made):
    channels_last = made.permute(0, 2, 3, 1)
    writers = {
        "nchw.npz": lambda p: np.savez(p, points=made.numpy()),
        "nhwc.npz": lambda p: np.savez(p, x_adv=channels_last.numpy()),
        "grey.npz": lambda p: np.savez(p, adversarial=made[:, 0].numpy()),
        "points.safetensors": lambda p: save_file({"points": made.contiguous()}, p),
        "bare.pt": lambda p: torch.save(made, p),
        "autoattack.pt": lambda p: torch.save({"adv_complete": made.double()}, p),
    }
    writers[path.name](path)
    return path


@pytest.mark.parametrize(
    "name",
    ["nchw.npz", "nhwc.npz", "grey.npz", "points.safetensors", "bare.pt", "autoattack.pt"],
)
def test_every_form_is_judged_as_the_points_are(tmp_path, name):
    record, kept = judged(write(tmp_path / name, points()), tmp_path)
    right = record.outcomes.correct("clean")[:, 0]
    assert right.sum() > 40
    assert torch.equal(kept[right], points()[right])
    (finding,) = record.findings
    assert finding.name == "transfer" and name in finding.message
    assert record.cost.attack_backwards == 0


def test_ids_decide_where_there_are_any(tmp_path):
    order = np.random.default_rng(0).permutation(150)
    everything = Toy(Toy.Params(n=150)).test()
    made = everything.pixels().clone()
    made[:N] = points()
    np.savez(tmp_path / "p.npz", points=made[order].numpy(), ids=everything.ids[order])
    record, kept = judged(tmp_path / "p.npz", tmp_path)
    right = record.outcomes.correct("clean")[:, 0]
    assert torch.equal(kept[right], points()[right])
    np.savez(tmp_path / "q.npz", points=made[:40].numpy(), ids=everything.ids[:40])
    assert "lacks the points of 40 images" in message(lambda: planned(tmp_path / "q.npz"))
    np.savez(tmp_path / "r.npz", points=made[:40].numpy(), ids=np.zeros(40, dtype=int))
    assert "ids" in message(lambda: planned(tmp_path / "r.npz"))


def test_eight_bits_are_read_as_levels(tmp_path):
    levels = (images().pixels() * 255).round().to(torch.uint8)
    np.savez(tmp_path / "p.npz", points=levels.numpy())
    record, kept = judged(tmp_path / "p.npz", tmp_path)
    right = record.outcomes.correct("clean")[:, 0]
    assert torch.equal(kept[right], levels[right].float() / 255)


def test_points_outside_are_refused_or_projected_and_told(tmp_path):
    made = points()
    made[:7] = (images().pixels()[:7] - 0.2).clamp(0, 1)
    path = write(tmp_path / "bare.pt", made)
    line = message(lambda: planned(path))
    assert "7 of 80" in line and "0.2" in line and "projected=true" in line
    noted = []
    request = toy_request(
        defenses=("undefended",), attacks=(f'transfer:"{path}",projected=true',), eps=EPS, n=N
    )
    plan(request, note=noted.append)
    assert any("7 of 80" in note for note in noted)
    record, kept = judged(path, tmp_path, projected="true")
    right = record.outcomes.correct("clean")[:, 0]
    (told,) = [one for one in record.findings if one.name == "reprojected"]
    assert told.message.startswith(f"{right[:7].sum()} points")
    assert float((kept - images().pixels()).abs().max()) <= EPS + 1e-6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda p: p.write_bytes(b"nothing"), "cannot be read"),
        (lambda p: np.savez(p, images=points().numpy()), "name the points"),
        (lambda p: np.savez(p, points=points()[:9].numpy()), "--n 9"),
        (lambda p: np.savez(p, points=points()[..., :3].numpy()), "shape"),
        (lambda p: np.savez(p, points=(points() * 255).long().numpy()), "int64"),
        (lambda p: np.savez(p, points=np.full((N, 1, 4, 4), np.nan)), "not finite"),
        (lambda p: np.savez(p, points=np.array([{}] * N)), "cannot be read"),
    ],
)
def test_a_file_without_usable_points_is_refused_before_anything_runs(tmp_path, content, words):
    content(tmp_path / "p.npz")
    assert words in message(lambda: planned(tmp_path / "p.npz"))


def test_nothing_is_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    torch.save({"points": Harmful()}, tmp_path / "p.pt")
    assert "cannot be read" in message(lambda: planned(tmp_path / "p.pt"))
    assert not (tmp_path / "ran").exists()


def test_the_file_enters_the_identity_by_its_content(tmp_path):
    first = planned(write(tmp_path / "bare.pt", points()))
    (tmp_path / "elsewhere").mkdir()
    moved = planned((tmp_path / "bare.pt").rename(tmp_path / "elsewhere" / "other.pt"))
    assert first.id == moved.id
    changed = points()
    changed[0] = images().pixels()[0]
    assert planned(write(tmp_path / "bare.pt", changed)).id != first.id
    assert Transfer.Params(points="x").projected is False


# From the base, from records ----------------------------------------------------------------------


class Shifted(DefendedClassifier):
    """The base's logits, the first of them raised by 1; counts its images."""

    num_classes = 4

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, images, noise):
        self.calls.append(len(images))
        return self.inner(images, noise) + torch.tensor([1.0, 0.0, 0.0, 0.0])


def on_base(attack, model, base, pixels, labels, eps):
    with frozen(model), frozen(base):
        victim = Victim(model, np.arange(len(pixels)), base=lambda: base)
        return attack(victim, pixels, labels, ThreatModel("linf", eps)), victim


def test_points_of_the_base_are_made_without_a_look_at_the_defense():
    inner, pixels, labels = linear_problem(4, 30, active_box=False)
    base = classifier(inner, 4)
    model = Shifted(base)
    distance = exact_distance(inner, pixels, labels, "linf")
    attack = Transfer(points="base", steps=6, restarts=2)
    found, victim = on_base(attack, model, base, pixels, labels, 0.01)
    # One look at each start's points, and the engine's last one.
    assert len(model.calls) == 3 and model.calls[0] == 30
    survives = found.predictions[:, 0] == labels
    assert (victim.forwards[survives] == 2 * (7 + 1) + 1).all()
    assert (victim.backwards[survives] == 2 * 6).all()
    assert (attack.passes().forward, attack.passes().backward) == (16, 12)
    assert ((~survives).numpy() >= (distance < 0.009) * (labels != 0).numpy()).all()
    assert found.findings[0].name == "transfer"


def test_on_the_base_itself_it_breaks_what_can_be_broken():
    inner, pixels, labels = linear_problem(4, 40, active_box=False)
    base = classifier(inner, 4)
    distance = exact_distance(inner, pixels, labels, "linf")
    eps = float(np.median(distance))
    found, _ = on_base(Transfer(points="base"), base, base, pixels, labels, eps)
    broken = (found.predictions[:, 0] != labels).numpy()
    clear = abs(distance / eps - 1) > 0.02
    assert (broken == (distance < eps))[clear].all() and 0 < broken.sum() < 40


def test_what_does_not_fit_the_source_is_refused():
    assert "transfer:base" in message(lambda: create_attack("transfer:points.npz,steps=9"))
    assert "projected" in message(lambda: create_attack("transfer:base,projected=true"))
    alone = Setting(
        False, RandomnessModel(), ThreatModel("linf", 0.1), 4, (1, 4, 4), has_base=False
    )
    assert "undefended classifier" in message(lambda: Transfer(points="base").check(alone))


def attacked_row(tmp_path):
    store = Store(tmp_path / "rows")
    request = toy_request(defenses=("undefended",), attacks=("pgd:steps=3",), eps=EPS, n=N)
    return run_evaluation(plan(request)[-1], store, Execution(batch_size=64)), store.folder


def test_a_record_stands_for_its_points_and_their_ids(tmp_path):
    made, folder = attacked_row(tmp_path)
    own = load_file(folder / made.points.file)["points"]
    for name in (f"{made.stem}.json", made.stem, made.id):
        evaluation = planned(folder / name)
        record, kept = judged(folder / name, tmp_path / name)
        right = record.outcomes.correct("clean")[:, 0]
        assert torch.equal(kept[right], own[right]) and right.sum() > 40
        assert record.outcomes.adversarial == made.outcomes.adversarial
    # By id, so that fewer images find their own; by content, so that the folder does not matter.
    record, kept = judged_few(folder / made.stem, tmp_path, 9)
    right = record.outcomes.correct("clean")[:, 0]
    assert torch.equal(kept[right], own[:9][right])
    folder.rename(tmp_path / "moved")
    assert planned(tmp_path / "moved" / made.stem).id == evaluation.id


def judged_few(path, tmp_path, n):
    store = Store(tmp_path / "few")
    record = run_evaluation(planned(path, n=n), store, Execution(batch_size=64))
    return record, load_file(store.folder / record.points.file)["points"]


def test_a_record_whose_points_are_lost_or_changed_is_refused(tmp_path):
    made, folder = attacked_row(tmp_path)
    file = folder / made.points.file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "not what its record says" in message(lambda: planned(folder / made.stem))
    file.unlink()
    assert "no points lie beside" in message(lambda: planned(folder / made.stem))
    (folder / "x.json").write_text("{}")
    assert "no record" in message(lambda: planned(folder / "x.json"))
