import pytest


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty data root and no network."""
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("BENCH_OFFLINE", "1")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The empty data root, with downloads allowed."""
    monkeypatch.delenv("BENCH_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "root"
