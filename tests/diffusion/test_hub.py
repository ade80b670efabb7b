"""Diffusion models on the Hugging Face hub."""

import sys

import pytest
import torch

from bench.diffusion.hub import Hf, HfParams
from tests.diffusion.helpers import Z, output, written
from tests.toys import message


@pytest.fixture
def hub(network, tmp_path, monkeypatch):
    """A stand-in for the hub's client: a folder, and the files asked for."""
    package = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repo, file, *, revision, local_files_only):
        asked.append((repo, file, revision, local_files_only))
        if not (tmp_path / repo / file).is_file():
            raise package.errors.EntryNotFoundError("404")
        return str(tmp_path / repo / file)

    monkeypatch.delenv("BENCH_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(package, "hf_hub_download", download)
    return asked


def test_a_repository_of_the_hub(network, tmp_path, hub):
    repo = "google/ddpm-cifar10-32"
    written(tmp_path / repo, network, save="bin")
    model = Hf(HfParams(repo=repo, revision="abc")).load()
    assert torch.equal(model(Z, 7).epsilon, output(network)) and model.trained_on == (
        "cifar10/train",
    )
    names = [
        "config.json",
        "scheduler_config.json",
        "bench.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ]
    assert hub == [(repo, name, "abc", False) for name in names]
    written(tmp_path / "me/net", network, home="unet", scheduler="scheduler")
    assert Hf(HfParams(repo="me/net")).load().trained_on == ()
    # safetensors are there, so nothing else is asked for.
    assert hub[-1] == ("me/net", "unet/diffusion_pytorch_model.safetensors", None, False)


def test_the_hub_offline_and_out_of_reach(tmp_path, hub, monkeypatch):
    package = sys.modules["huggingface_hub"]

    def unreachable(*_, **__):
        raise package.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(package, "hf_hub_download", unreachable)
    load = lambda: message(lambda: Hf(HfParams(repo="me/net")).load())  # noqa: E731
    assert "LocalEntryNotFoundError: no connection" in load()
    assert "give folder:PATH with a copy of https://huggingface.co/me/net" in load()
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    assert (
        "BENCH_OFFLINE is set; go online, or give folder:PATH with a copy of "
        "https://huggingface.co/me/net" in load()
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install" in load()
