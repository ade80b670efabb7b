"""The command `bench train`."""

import json

import pytest
import torch

from bench.commands.train import train_and_save
from bench.models import training
from bench.models.file import File, FileParams
from bench.models.recipes import recipe_for
from bench.models.training import score
from bench.spec import Params
from tests.models.helpers import Digits, Killed, fit
from tests.toys import message


def test_train_writes_weights_and_sidecar(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    said = train_and_save("toy-digits", "cnn", out, seed=3, epochs=2, device="cpu")
    assert "on 50 test images" in said and "macro-F1" in said
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(word in lines[0] for word in ("epoch 1/2", "loss", "validation", "macro-F1", "ETA"))
    sidecar = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert sidecar["trained_on"] == ["toy-digits/train"]
    assert sidecar["chosen"] == "epoch 2 of 2, the last one"
    assert (sidecar["validation"]["images"], sidecar["validation"]["n"]) == ("toy-digits/val", 100)
    assert (sidecar["measured"]["images"], sidecar["measured"]["n"]) == ("toy-digits/test", 50)
    assert sidecar["recipe"]["seed"] == 3 and sidecar["recipe"]["epochs"] == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "net.safetensors",
        "net.safetensors.json",
    ]
    read = File(FileParams(path=str(out))).load(10, 1)
    assert score(read, Digits(Params()).test()).accuracy == sidecar["measured"]["clean"]
    again = fit(
        Digits, epochs=2, recipe=recipe_for("toy-digits", "cnn", (1, 28, 28)), seed=3
    ).classifier
    assert torch.equal(read.network.linear.weight, again.network.linear.weight)


def test_train_overwrites_nothing_and_chooses_by_name(tmp_path):
    out = tmp_path / "net.safetensors"
    train_and_save("toy-digits", "cnn", out, seed=3, epochs=2, device="cpu", choose="best")
    assert (
        "best by accuracy on the validation split"
        in json.loads((tmp_path / "net.safetensors.json").read_text())["chosen"]
    )
    before = out.read_bytes()
    assert "is there already" in message(
        lambda: train_and_save("toy-digits", "cnn", out, seed=4, epochs=1, device="cpu")
    )
    assert out.read_bytes() == before
    other = tmp_path / "other.safetensors"
    said = message(
        lambda: train_and_save(
            "toy-digits", "cnn", other, seed=4, epochs=1, device="cpu", choose="first"
        )
    )
    assert "use last, or best" in said


def test_train_resumes_beside_its_output(tmp_path, monkeypatch):
    out = tmp_path / "net.safetensors"
    keep = training.TrainingRun.store

    def store_and_die(run, path):
        keep(run, path)
        raise Killed

    monkeypatch.setattr(training.TrainingRun, "store", store_and_die)
    with pytest.raises(Killed):
        train_and_save("toy-digits", "cnn", out, seed=0, epochs=2, device="cpu")
    assert (tmp_path / "net.safetensors.checkpoint").exists() and not out.exists()
    monkeypatch.undo()
    train_and_save("toy-digits", "cnn", out, seed=0, epochs=2, device="cpu")
    train_and_save(
        "toy-digits", "cnn", tmp_path / "whole.safetensors", seed=0, epochs=2, device="cpu"
    )
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
