"""`bench export`: files that hold what was attacked, inside the ball, and judge as told."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import bench
from bench.commands.export import export, round_points, to_levels
from bench.engine.execution import Execution
from bench.threat import ThreatModel
from tests.helpers import MODEL, call, run_toys
from tests.toys import message

UNDEFENDED = {"defenses": ("undefended",), "attacks": ("pgd:steps=10",), "eps": 0.01}


def recorded(folder, **changes):
    record = run_toys(folder, **{**UNDEFENDED, **changes})[-1]
    return record, folder / f"{record.stem}.json", load_file(folder / record.points.file)["points"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_null_run_on_the_npz_gives_the_told_number(tmp_path, capsys, norm):
    eps = {"linf": 0.01, "l2": 0.04, "l1": 0.1}[norm]
    record, path, points = recorded(tmp_path, norms=(norm,), eps=eps)
    out = tmp_path / "images.npz"
    code, text, _ = call(capsys, "export", str(path), "--out", str(out), "--json")
    told = json.loads(text)
    assert code == 0 and told["images"] == 150
    assert told["robust"] == record.metrics.adversarial.mean.value
    again = bench.evaluate(
        dataset=f"npz:{out}", classifier=MODEL, attacks="null", norm=norm, eps=eps, n=150
    ).records[-1]
    assert again.metrics.adversarial.mean.value == told["exported"]
    with np.load(out) as file:
        levels, original = (
            torch.from_numpy(file[key]).permute(0, 3, 1, 2) for key in ("x_test", "original")
        )
        assert (file["ids"] == record.outcomes.image_ids()).all()
        assert (file["y_test"] == record.outcomes.true_labels()).all()
    centre = original.float() / 255
    assert ThreatModel(norm, eps).contains(levels.float() / 255, centre).all()
    assert (levels.float() / 255 - points).abs().max() <= 1.6 / 255
    # Verdicts near the boundary turn, and as many as are told.
    right = _answers(levels.float() / 255) == record.outcomes.true_labels()
    right &= record.outcomes.correct("clean")[:, 0]
    assert told["changed"] == (right != record.outcomes.correct("adversarial")[:, 0]).sum()


def _answers(pixels):
    from tests.toy_model import make_model

    return make_model()(pixels).argmax(1).numpy()


def test_the_transferred_file_is_judged_alike(tmp_path, capsys):
    _, path, _ = recorded(tmp_path)
    out = tmp_path / "images.npz"
    told = export(path, "npz", out, Execution())
    judged = bench.evaluate(
        dataset="toy:n=150",
        classifier=MODEL,
        attacks=f'transfer:"{out}",projected=true',
        eps=0.01 + 1 / 255,
    ).records[-1]
    assert judged.metrics.adversarial.mean.value == pytest.approx(told.exported, abs=1e-9)


def test_mnist_goes_the_whole_way(tmp_path, real_data, capsys):
    root = ("--data-root", str(real_data))
    run = ("run", "--defense", "undefended", "--eps", "0.05", "--n", "40", "--out", str(tmp_path))
    assert call(capsys, *run, "--attack", "pgd:steps=5", *root)[0] == 0
    (path,) = tmp_path.glob("*.json")
    out = tmp_path / "images.npz"
    code, text, _ = call(capsys, "export", str(path), "--out", str(out), *root)
    assert code == 0 and "verdicts changed" in text
    told = float(text.split("robust accuracy ")[1].split()[0])
    command = text.split("judge it again: bench ")[1].strip().replace("'", "").split(" ")
    assert call(capsys, *command, "--out", str(tmp_path / "again"), *root)[0] == 0
    (again,) = (tmp_path / "again").glob("*.json")
    assert 100 * bench.read_record(again).metrics.adversarial.mean.value == pytest.approx(
        told, abs=0.05
    )


def test_png_holds_the_same_pixels(tmp_path):
    record, path, _ = recorded(tmp_path)
    export(path, "npz", tmp_path / "i.npz", Execution())
    export(path, "png", tmp_path / "png", Execution())
    with np.load(tmp_path / "i.npz") as file:
        levels = dict(zip(file["ids"].tolist(), file["x_test"][..., 0], strict=True))
    files = list((tmp_path / "png" / "adversarial").rglob("*.png"))
    labels = dict(
        zip(
            record.outcomes.image_ids().tolist(),
            record.outcomes.true_labels().tolist(),
            strict=True,
        )
    )
    assert len(files) == 150
    assert len(list((tmp_path / "png" / "original").rglob("*.png"))) == 150
    for file in files:
        assert (np.array(PIL.Image.open(file)) == levels[int(file.stem)]).all()
        assert int(file.parent.name) == labels[int(file.stem)]


def test_pt_is_the_points_as_they_are(tmp_path):
    record, path, points = recorded(tmp_path)
    told = export(path, "pt", tmp_path / "pt", Execution())
    assert told.exported == told.robust == record.metrics.adversarial.mean.value
    loaded = {
        name: torch.load(tmp_path / "pt" / f"{name}.pt", weights_only=True)
        for name in ("adversarial", "original", "labels", "ids")
    }
    assert torch.equal(loaded["adversarial"], points) and loaded["adversarial"].is_contiguous()
    assert (loaded["labels"].numpy() == record.outcomes.true_labels()).all()
    assert (loaded["ids"].numpy() == record.outcomes.image_ids()).all()
    assert ThreatModel("linf", 0.01).contains(points, loaded["original"]).all()


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path):
    record, path, _ = recorded(tmp_path)
    assert "npz, png or pt" in message(lambda: export(path, "gif", tmp_path / "x", Execution()))
    assert "is a folder" in message(lambda: export(path, "npz", tmp_path, Execution()))
    assert "there already" in message(lambda: export(path, "png", tmp_path, Execution()))
    file = tmp_path / record.points.file
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + b"x")
    assert "does not hold" in message(lambda: export(path, "npz", tmp_path / "x", Execution()))
    file.unlink()
    line = message(lambda: export(path, "npz", tmp_path / "x", Execution()))
    assert "missing" in line and "bench verify" in line and "run the evaluation again" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 8 / 255), ("linf", 7.7 / 255), ("l2", 0.5), ("l1", 3.0)]
)
@pytest.mark.parametrize("exact", [True, False])
def test_rounding_stays_in_the_ball_around_the_written_original(norm, eps, exact):
    generator = torch.Generator().manual_seed(0)
    origin = torch.rand(40, 3, 6, 6, generator=generator)
    origin = to_levels(origin).float() / 255 if exact else origin
    threat = ThreatModel(norm, eps)
    uniform = torch.full_like(origin, 0.999)
    uniform[:, :, ::2] = 0.0005
    points = threat.random(origin, uniform, torch.randn(origin.shape, generator=generator))
    levels = to_levels(origin)
    rounded = round_points(points, levels, threat).float() / 255
    centre = levels.float() / 255
    assert threat.contains(rounded, centre).all()
    # Of a ball of 8 levels not one is lost to rounding; of 7.7 there are 7.
    if norm == "linf" and exact:
        assert float(threat.distance(rounded, centre).max()) == pytest.approx(
            int(255 * eps + 1e-3) / 255, abs=1e-6
        )
    assert float((rounded - points).abs().max()) <= 1.6 / 255
