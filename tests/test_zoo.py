"""Published classifiers: pytorchcv without the package, and files whose download has no
checksum.
"""

import hashlib
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import torch

from bench.models import pytorchcv
from bench.models.file import assemble
from bench.models.nets import build
from bench.models.published import trusted, unzipped
from bench.models.pytorchcv import Pytorchcv, PytorchcvParams, renamed
from bench.noise import Noise
from tests.toys import message


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty data root."""
    monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("BENCH_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "root"


def zipped(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return folder / f"{name}.zip"


def sha(algorithm, content):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


# Zips around a file with a checksum ---------------------------------------------------------------


def test_a_zip_is_downloaded_unpacked_and_verified(tmp_path, root):
    url = zipped(tmp_path / "web", "a.pth", b"weights").as_uri()
    checksum = sha("sha1", b"weights")
    assert unzipped("x/a.pth", url, checksum).read_bytes() == b"weights"
    assert [path.name for path in (root / "x").iterdir()] == ["a.pth"]
    assert unzipped("x/a.pth", "file:///nowhere.zip", checksum) == root / "x" / "a.pth"


def test_a_zip_or_a_file_put_there_is_taken(root):
    checksum = sha("sha1", b"weights")
    zipped(root / "x", "a.pth", b"weights")
    assert unzipped("x/a.pth", "file:///nowhere.zip", checksum).read_bytes() == b"weights"
    (root / "x" / "b.pth").write_bytes(b"weights")
    assert unzipped("x/b.pth", "file:///nowhere.zip", checksum) == root / "x" / "b.pth"


def test_a_damaged_zip_is_refused_in_one_line(root):
    archive = zipped(root / "x", "a.pth", bytes(range(256)) * 400)
    content = bytearray(archive.read_bytes())
    content[45:51] = bytes(6)
    archive.write_bytes(content)
    assert "get it again" in message(lambda: unzipped("x/a.pth", "", sha("sha1", b"weights")))


def test_a_download_that_breaks_off_is_not_trusted(root):
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.pt"
        assert "4 of 1000 bytes" in message(lambda: trusted("x/a.pt", url, "the page"))
    assert not list((root / "x").iterdir())


def test_a_zip_with_other_content_is_refused(root):
    zipped(root / "x", "a.pth", b"other")
    for _ in range(2):
        assert sha("sha1", b"other") in message(
            lambda: unzipped("x/a.pth", "", sha("sha1", b"weights"))
        )
    zipped(root / "x", "c.pth", b"other").rename(root / "x" / "b.pth.zip")
    assert "no zip that holds b.pth" in message(
        lambda: unzipped("x/b.pth", "", sha("sha1", b"weights"))
    )
    (root / "x" / "d.pth.zip").write_bytes(b"no zip")
    assert "no zip that holds d.pth" in message(
        lambda: unzipped("x/d.pth", "", sha("sha1", b"weights"))
    )
    assert not (root / "x" / "d.pth").exists()


def test_what_is_missing_offline_is_said(root, monkeypatch):
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    text = message(lambda: unzipped("x/a.pth", "https://host/a.pth.zip", sha("sha1", b"weights")))
    for word in (
        "BENCH_OFFLINE",
        str(root / "x" / "a.pth"),
        "https://host/a.pth.zip",
        sha("sha1", b"weights"),
    ):
        assert word in text
    text = message(lambda: trusted("x/a.pt", "https://host/raw", "https://host/page"))
    for word in ("BENCH_OFFLINE", str(root / "x" / "a.pt"), "https://host/page"):
        assert word in text


def test_a_host_that_does_not_answer_is_said(tmp_path):
    text = message(
        lambda: unzipped("x/a.pth", (tmp_path / "none.zip").as_uri(), sha("sha1", b"weights"))
    )
    assert "cannot be downloaded" in text and "none.zip" in text


# Files trusted on first use -----------------------------------------------------------------------


def test_a_file_is_held_to_what_it_was_first(tmp_path, root):
    source = tmp_path / "a.pt"
    source.write_bytes(b"weights")
    path = trusted("x/a.pt", source.as_uri(), "page")
    assert path.read_bytes() == b"weights"
    note = root / "x" / "a.pt.sha256"
    assert note.read_text().strip() == hashlib.sha256(b"weights").hexdigest()
    assert trusted("x/a.pt", "file:///nowhere", "page") == path
    path.write_bytes(b"others")
    text = message(lambda: trusted("x/a.pt", "file:///nowhere", "page"))
    assert (
        hashlib.sha256(b"weights").hexdigest() in text
        and hashlib.sha256(b"others").hexdigest() in text
    )
    note.unlink()
    assert trusted("x/a.pt", "file:///nowhere", "page") == path


def test_a_web_page_is_no_weights(tmp_path, root):
    source = tmp_path / "a.pt"
    source.write_bytes(b"\n<!DOCTYPE html><html>quota exceeded")
    assert "a web page came instead" in message(lambda: trusted("x/a.pt", source.as_uri(), "page"))
    assert list((root / "x").iterdir()) == []


# pytorchcv ----------------------------------------------------------------------------------------


def theirs(key):
    """Our name of a ResNet's tensor under pytorchcv's."""
    if key.startswith("layer"):
        stage, unit, part, rest = key.split(".", 3)
        place = f"features.stage{stage[-1]}.unit{int(unit) + 1}"
        if part == "shortcut":
            number, tail = rest.split(".")
            return f"{place}.identity_conv.{('conv', 'bn')[int(number)]}.{tail}"
        return f"{place}.body.conv{part[-1]}.{part[:-1]}.{rest}"
    return (
        key.replace("conv1.", "features.init_block.conv.")
        .replace("bn1.", "features.init_block.bn.")
        .replace("linear.", "output.")
    )


def test_a_pytorchcv_zip_becomes_a_classifier(tmp_path, root, monkeypatch):
    network = build("resnet20-projection", 10, 3, seed=4).eval()
    torch.save({theirs(key): value for key, value in network.state_dict().items()}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    sha1 = hashlib.sha1(content).hexdigest()
    monkeypatch.setitem(pytorchcv._NETWORKS, "resnet20_svhn", ("0343", sha1, "v0.0.265"))
    zipped(root / "pytorchcv", f"resnet20_svhn-0343-{sha1[:8]}.pth", content)
    classifier = Pytorchcv(PytorchcvParams(name="resnet20_svhn")).load(10, 3)
    assert classifier.trained_on == ("svhn/train",)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1)
        for values in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201))
    )
    assert torch.equal(
        classifier(images, Noise.of(0, "eval", range(2))), network((images - mean) / std)
    )


def test_pytorchcv_refuses_names_data_sets_and_damage(root, monkeypatch):
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    assert "Did you mean 'resnet20_cifar10'" in message(
        lambda: Pytorchcv(PytorchcvParams(name="resnet20-cifar10")).load(10, 3)
    )
    text = message(lambda: Pytorchcv(PytorchcvParams(name="wrn28_10_cifar10")).load(10, 3))
    assert "releases/download/v0.0.166/wrn28_10_cifar10-0239-fe97dcd6.pth.zip" in text
    assert str(root / "pytorchcv" / "wrn28_10_cifar10-0239-fe97dcd6.pth") in text


def test_pytorchcv_names_in_full():
    for name, (error, sha1, release) in pytorchcv._NETWORKS.items():
        assert (len(error), len(sha1), release[:4]) == (4, 40, "v0.0")
        about = pytorchcv._description(name)
        assert about.trained_on == (f"{name.rpartition('_')[2]}/train",)


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet20_cifar100", "wrn16_10_svhn"])
def test_parity_with_the_package(name, tmp_path):
    package = pytest.importorskip("pytorchcv.model_provider")
    store = pytest.importorskip("pytorchcv.models.common.model_store")
    with torch.random.fork_rng():
        peer = package.get_model(name).eval()
    classes = 100 if name.endswith("100") else 10
    about = pytorchcv._description(name)
    ours = assemble(
        tmp_path,
        renamed(peer.state_dict()),
        about.model_copy(update={"mean": (), "std": ()}),
        classes,
        3,
    )
    count, *facts = store.get_model_metainfo(name)
    assert tuple(facts) == pytorchcv._NETWORKS[name]
    assert sum(p.numel() for p in ours.network.parameters()) == count
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(
            ours(images, Noise.of(0, "eval", range(4))), expected, rtol=1e-4, atol=1e-4
        )
