"""What can be seen of a record, and why not."""

import numpy as np
import pytest

from bench.data.imagefolder import ImageFolder, ImageFolderParams
from bench.data.imagenet import ImageNet, ImageNetParams
from bench.data.npz import Npz, NpzParams
from bench.errors import BadInput
from bench.report.pictures.contact import contact_sheet
from bench.report.pictures.levels import change_levels, to_levels
from bench.report.pictures.seen import NOT_SHOWN, Images
from bench.report.pictures.verdicts import kinds
from bench.results.points import read_points
from tests.helpers import run_toys
from tests.toy_plugins import Toy


def anything(record):
    """Every record may run what it names."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    (record,) = run_toys(
        folder, defenses=("undefended",), attacks=("pgd:steps=3",), dataset="toy:n=30"
    )
    return record, folder


def test_the_pictures_are_the_points_and_the_images(toys):
    record, folder = toys
    seen = Images(anything).seen(record, folder)
    points = read_points(record, folder)
    assert seen.which == ("clean", "attacked", "change") and seen.notes == ()
    clean = Toy(Toy.Params(n=30)).test().pixels().numpy()
    assert (seen.levels("clean") == to_levels(clean)).all()
    assert (seen.levels("attacked", 3, 9) == to_levels(points[3:9])).all()
    assert (seen.levels("change") == change_levels(points - clean, seen.factor)).all()


def test_a_licence_that_forbids_it_leaves_no_pixel(toys, monkeypatch):
    record, folder = toys
    monkeypatch.setattr(Toy, "may_be_shown", False)
    seen = Images(anything).seen(record, folder)
    assert (seen.which, seen.clean, seen.points, seen.notes) == ((), None, None, (NOT_SHOWN,))
    with pytest.raises(BadInput, match="licence of this data set"):
        contact_sheet(record, seen)


def test_images_of_imagenet_may_not_be_shown_however_they_are_read(tmp_path):
    assert not ImageNet(ImageNetParams(path="/nowhere")).may_be_shown
    assert not Npz(NpzParams(path="x.npz", drawn_from="imagenet/val")).may_be_shown
    assert Npz(NpzParams(path="x.npz", drawn_from="mine/val")).may_be_shown
    folder = ImageFolder(ImageFolderParams(path=str(tmp_path)))
    # Of an empty folder nobody can tell.
    with pytest.raises(BadInput, match="no class folders"):
        _ = folder.may_be_shown
    (tmp_path / "cat").mkdir()
    assert folder.may_be_shown
    (tmp_path / "n01440764").mkdir()
    assert not folder.may_be_shown


def test_each_reason_why_something_is_missing_is_told(toys, tmp_path):
    record, folder = toys
    name = record.points.file
    seen = Images(anything).seen(record, tmp_path)
    assert seen.which == ("clean",) and "are missing" in seen.notes[0]
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:-1] + b"x")
    seen = Images(anything).seen(record, tmp_path)
    assert seen.which == ("clean",) and "does not hold the points" in seen.notes[0]
    sources = {**record.sources, "dataset": "toy:n=40"}
    seen = Images(anything).seen(record.model_copy(update={"sources": sources}), folder)
    assert seen.which == ("clean", "attacked", "change")
    sources = {**record.sources, "dataset": "toy:n=30,classes=4"}
    seen = Images(anything).seen(record.model_copy(update={"sources": sources}), folder)
    assert seen.which == ("attacked",) and "they have changed" in seen.notes[0]
    sources = {**record.sources, "dataset": "python:arrays"}
    seen = Images(anything).seen(record.model_copy(update={"sources": sources}), folder)
    assert seen.which == ("attacked",) and "Python program" in seen.notes[0]


def test_code_that_may_not_run_is_not_loaded(toys):
    record, folder = toys

    def refuse(record):
        raise BadInput("look at it first")

    seen = Images(refuse).seen(record, folder)
    assert seen.which == () and seen.notes == ("No images are shown: look at it first.",)


def test_a_contact_sheet_shows_the_points_enlarged_by_a_whole_number(toys):
    record, folder = toys
    seen = Images(anything).seen(record, folder)
    sheet = contact_sheet(record, seen)
    assert sheet._repr_png_().startswith(b"\x89PNG")
    pixels, left = np.asarray(sheet.image)[..., 0], 104
    first = int(np.flatnonzero(np.array(kinds(record)) == "broken")[0])
    one = seen.levels("attacked", first, first + 1)[0, 0]
    scale = max(1, round(96 / one.shape[1]))
    wanted = one.repeat(scale, 0).repeat(scale, 1)
    height, width = wanted.shape
    column = pixels[:, left : left + width]
    assert any((column[y : y + height] == wanted).all() for y in range(len(column) - height))
