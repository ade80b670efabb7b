import pytest


@pytest.fixture(autouse=True)
def offline_root(tmp_path, monkeypatch):
    """An empty data root and no network."""
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image", reason="pip install pillow")
