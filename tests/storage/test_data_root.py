"""The folder of published data: where it is, and how it is set for a while."""

import pytest

from bench.errors import BadInput
from bench.storage.data_root import data_root, rooted


def test_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("BENCH_DATA_ROOT", raising=False)
    assert data_root() == tmp_path / ".cache" / "bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(data_root()) == "/elsewhere/bench"
    monkeypatch.setenv("BENCH_DATA_ROOT", "~/data")
    assert data_root() == tmp_path / "data"
    with rooted("/given"):
        assert str(data_root()) == "/given"
    with rooted(None):
        assert data_root() == tmp_path / "data"


def test_a_root_that_is_a_file_is_refused_and_another_one_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"), rooted(tmp_path / "file"):
        pass
    with pytest.raises(KeyError), rooted("/given"):
        raise KeyError
    assert data_root() == tmp_path
