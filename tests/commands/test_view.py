"""`bench view`: pages and pictures of results, served to this machine alone, or written."""

import http.client
import io
import json
import re
import shutil
import subprocess
from threading import Thread

import numpy as np
import PIL.Image
import pytest

import bench
from bench.commands import view
from bench.engine.execution import Execution
from bench.report.pictures.levels import columns_of, tiles_of, to_levels
from bench.results.findings import Finding
from bench.results.points import read_points
from bench.results.store import to_json
from tests.helpers import call, refused, run_toys
from tests.toys import linear_problem

TOYS = {"dataset": "toy:n=30", "eps": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("results")
    run_toys(where, defenses=("toy-jitter",), attacks=("pgd+replay:steps=3", "pgd:steps=2"), **TOYS)
    return where


@pytest.fixture(scope="module")
def records(folder):
    return bench.read_records(folder)


@pytest.fixture(scope="module")
def server(folder):
    shown = view.prepare(folder, Execution(), trust=False, served=True)
    with view.serving(shown, 0) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def answer(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def asked(server, path):
    while True:
        status, _, content = answer(server, path, X_Bench="view")
        said = json.loads(content)
        assert status == 200
        if "working" not in said:
            return said


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_what_is_written_are_the_points_pixel_by_pixel(tmp_path, capsys, folder, records):
    out = tmp_path / "site"
    code, told, _ = call(capsys, "view", str(folder), "--out", str(out))
    assert code == 0 and f"open {out}/index.html" in told
    assert f"records/{records[0].id}.html" in (out / "index.html").read_text()
    assert f"records/{records[0].id}.html" in (out / "records.html").read_text()
    for record in records:
        page = data_of((out / "records" / f"{record.id}.html").read_text())
        assert page["ids"] == record.outcomes.image_ids().tolist()
        assert np.array(page["adversarial"]).T.tolist() == (
            record.outcomes.predictions("adversarial").tolist()
        )
        with PIL.Image.open(out / "records" / record.id / "attacked-0.png") as image:
            pixels = np.asarray(image)
        wanted = to_levels(read_points(record, folder))
        height, width = wanted.shape[2:]
        columns = columns_of(tiles_of(wanted.shape[1:]))
        for at, one in enumerate(wanted):
            row, column = divmod(at, columns)
            place = pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert (place == one[0]).all()
    assert "there already" in refused(
        capsys, tmp_path / "none", *("view", str(folder)), f"--out={out}"
    )


def test_only_what_the_records_name_is_served(server, records):
    record = records[0]
    for path in (
        "/",
        "/records.html",
        f"/records/{record.id}.html",
        f"/records/{record.id}/clean-0.png",
    ):
        status, headers, content = answer(server, path)
        assert status == 200 and content
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert answer(server, path, "HEAD")[2] == b""
    status, _, content = answer(server, f"/records/{record.id}/record.json")
    assert content == to_json(record)
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        f"/records/{record.id}/../../x",
        f"/records/{record.points.file}",
        f"/records/{record.id}/clean-1.png",
        f"/records/{record.id}/secret-0.png",
        f"/records/{'0' * 16}.html",
        f"/records/{'0' * 16}/ask-0-0.json",
        f"/records/{record.id}/ask-30-0.json",
        f"/records/{record.id}/ask-0-20.json",
    ):
        assert answer(server, path, X_Bench="view")[0] == 404
    assert answer(server, "/", "POST")[0] == 501


def test_pages_of_elsewhere_get_nothing(server, records):
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
        assert answer(server, "/", Host=host)[0] == 421
    assert answer(server, "/", Host=f"localhost:{server.server_port}")[0] == 200
    # Without the header that no other page can send, nothing is computed.
    assert answer(server, f"/records/{records[0].id}/ask-0-0.json")[0] == 403
    assert server.server_address[0] == "127.0.0.1"


def test_what_is_asked_is_what_the_judge_saw(server, folder, records):
    record = next(one for one in records if one.stochastic)
    stored = {
        which: record.outcomes.predictions(name)
        for which, name in (("clean", "clean"), ("attacked", "adversarial"))
    }
    for place, draw in ((0, 0), (7, 19)):
        said = asked(server, f"/records/{record.id}/ask-{place}-{draw}.json")
        assert said["notes"] == ["It answers as in the record."]
        for which, predictions in stored.items():
            best = max(said["classes"], key=lambda one: one[which])
            assert best["label"] == predictions[place, draw]
        (transformed,) = said["views"]
        assert transformed["name"] == "transformed"
        assert transformed["clean"].startswith("data:image/png;base64,")
    with_replay = next(one for one in records if one.outcomes.replayed)
    said = asked(server, f"/records/{with_replay.id}/path-3.json")
    assert [len(one) for one in said["paths"]] and "It ends at the stored point." in said["notes"][
        -1
    ]


def test_pages_say_what_cannot_be_had(tmp_path, folder, records):
    record = records[0]
    sources = {**record.sources, "classifier": "/tmp/elsewhere.py@make"}
    other = record.model_copy(update={"sources": sources})
    (tmp_path / f"{record.stem}.json").write_bytes(to_json(other))
    shown = view.prepare(tmp_path, Execution(), trust=False, served=True)
    _, content = shown.site.read(f"records/{record.id}.html")
    assert "No images are shown: the record would run" in content.decode()
    assert data_of(content.decode())["served"] is False


def test_what_a_record_says_is_text(tmp_path, folder, records):
    record = records[0]
    hostile = '"><script>alert(1)</script>'
    title = {**record.title, "defense": hostile, "attack": f"{hostile}\u202e", "dataset": hostile}
    doubt = Finding(name="odd", verdict="warn", message=f"too good: {hostile}")
    known = Finding(name="told", verdict="note", message="only to know")
    (tmp_path / f"{record.stem}.json").write_bytes(
        to_json(record.model_copy(update={"title": title, "findings": [doubt, known]}))
    )
    shown = view.prepare(tmp_path, Execution(), trust=False, served=True)
    page = shown.site.read(f"records/{record.id}.html")[1].decode().split("<summary>")[0]
    assert "odd: too good" in page and "only to know" not in page
    for path in ("index.html", "records.html", f"records/{record.id}.html"):
        _, content = shown.site.read(path)
        assert "<script>alert" not in content.decode()
        assert "\u202e" not in re.sub(r"<script.*?</script>", "", content.decode(), flags=re.DOTALL)


def test_bad_input_is_one_line(tmp_path, capsys, folder, server):
    def line(*arguments):
        return refused(capsys, tmp_path / "none", *arguments)

    assert "no such folder" in line("view", str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    assert "no records in" in line("view", str(tmp_path / "empty"))
    assert "drop --compute" in line("view", str(folder), "--compute", "3")
    assert "drop --port" in line("view", str(folder), "--out", str(tmp_path / "x"), "--port", "1")
    assert "--port 0" in line("view", str(folder), "--port", str(server.server_port))
    assert "one record" in line("show", str(folder), "--images", str(tmp_path / "x.png"))


def test_computed_beforehand_they_stand_in_the_page(tmp_path, capsys, folder, records):
    out = tmp_path / "site"
    code, _, told = call(capsys, "view", str(folder), "--out", str(out), "--compute", "2")
    assert code == 0 and "asking toy-jitter" in told
    page = data_of((out / "records" / f"{records[0].id}.html").read_text())
    assert set(page["asked"]) == {"0", "1"} and page["asked"]["1"]["classes"]


def test_a_sheet_in_the_terminal_and_from_python(tmp_path, capsys, folder, records):
    record = records[0]
    out = tmp_path / "out.png"
    code, told, _ = call(capsys, "show", str(folder / f"{record.stem}.json"), "--images", str(out))
    assert code == 0 and "findings" in told
    _, images, labels = linear_problem(3, 20, active_box=False)
    report = bench.evaluate(
        dataset=(images, labels),
        classifier=record.sources["classifier"],
        eps=0.05,
        attacks="pgd:steps=2",
    )
    sheet = report.images()
    with PIL.Image.open(io.BytesIO(sheet._repr_png_())) as shown, PIL.Image.open(out) as written:
        assert shown.format == written.format == "PNG" and shown.mode == written.mode == "RGB"
    place = report._kept.folder
    assert place.is_dir()
    del report
    assert not place.exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_the_page_of_a_record_works_from_a_file(tmp_path, capsys, folder, records):
    out = tmp_path / "site"
    assert call(capsys, "view", str(folder), "--out", str(out), "--compute", "3")[0] == 0
    record, image = records[0], records[0].outcomes.image_ids()[2]
    page = out / "records" / f"{record.id}.html"
    # What the browser refuses or fails at stands in its log.
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path}/profile"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000"]
    command += ["--dump-dom", f"file://{page}#{image}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shown = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    assert "CONSOLE" not in done.stderr
    assert "30 of 30 images" in shown
    cards, window = shown.split("<dialog")
    assert cards.count('class="card ') == 30
    assert cards.count(f"{record.id}/attacked-0.png") >= 30
    assert f"Image {image}:" in window and "Every draw of the judge" in window
    assert window.count("<td class=") >= 2 * len(record.outcomes.clean)
    # The logits and pictures that were computed beforehand.
    assert "(true)" in window and window.count("data:image/png") == 2
