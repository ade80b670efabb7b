"""Points made elsewhere: formats, matching, ball and box, identity."""

import numpy as np
import pytest
import torch
from bench_attacks.transfer import Transfer
from safetensors.torch import load_file, save_file

from bench.engine.execution import Execution
from bench.engine.plan import plan
from bench.engine.run import run_evaluation
from bench.results.store import Store
from tests.helpers import toy_request
from tests.toy_plugins import Toy
from tests.toys import message

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
