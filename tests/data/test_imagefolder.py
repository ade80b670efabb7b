"""The data set `imagefolder:PATH`."""

import numpy as np
import pytest

from bench.data.order import evaluation_order, interleaved
from bench.plugins.create import DATASETS, create
from bench.spec import parse
from tests.data.helpers import folder_of, image_folder, random_images
from tests.toys import message


def test_imagefolder_known_answer(tmp_path, pillow):
    pixels = random_images(6, 5, 4, 3)
    names = [
        f"{split}{name}/{i}.png"
        for split in ("test/", "train/")
        for name, i in (("b", 0), ("a", 2), ("a", 1))
    ]
    folder_of(tmp_path, pillow, dict(zip(names, pixels, strict=True)))
    (tmp_path / "test" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "test" / ".hidden").mkdir()
    data = image_folder(tmp_path, drawn_from="mine/test")
    test = data.test()
    labels = np.array([0, 0, 1])
    assert data.num_classes == 2 and data.drawn_from == ("mine/test",)
    assert test.ids.tolist() == evaluation_order(labels).tolist()
    assert test.labels.tolist() == labels[test.ids].tolist()
    assert (test.images.numpy().transpose(0, 2, 3, 1) == pixels[[2, 1, 0]][test.ids]).all()
    assert len(data.train()) == 3
    assert "has no val pictures" in message(data.validation)
    assert image_folder(tmp_path, grey=True).test().images.shape == (3, 1, 5, 4)
    assert image_folder(tmp_path, size=8).test().images.shape == (3, 3, 8, 8)


def test_imagefolder_resizes_before_it_crops(tmp_path, pillow):
    """resize=256, size=224 in small: the whole picture to 8, then the middle 4 of it."""
    pixels = random_images(2, 16, 16, 3)
    folder_of(tmp_path, pillow, {"a/1.png": pixels[0], "b/1.png": pixels[1]})
    cropped = image_folder(tmp_path, size=4, resize=8).test()
    whole = image_folder(tmp_path, size=8).test()
    assert (cropped.images == whole.images[:, :, 2:6, 2:6]).all()
    assert not (cropped.images == image_folder(tmp_path, size=4).test().images).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [("resize=8", "needs size=N"), ("size=8,resize=4", "no square"), ("resize=-1", "greater")],
)
def test_imagefolder_refuses_a_resize_that_makes_no_sense(tmp_path, options, words):
    spec = parse(f"imagefolder:{tmp_path},{options}")
    assert words in message(lambda: create(DATASETS, spec))


def test_classes_say_what_the_folder_lacks(tmp_path, pillow):
    """Classes c and a of a classifier that knows c, b, a in this order."""
    pixels = random_images(2, 4, 4, 3)
    folder_of(tmp_path / "x", pillow, {"a/1.png": pixels[0], "c/1.png": pixels[1]})
    (tmp_path / "names.txt").write_text("c\nb\n\na\n")
    for classes in ("c+b+a", str(tmp_path / "names.txt")):
        data = image_folder(tmp_path / "x", classes=classes)
        test = data.test()
        by_id = test.labels[np.argsort(test.ids)]
        assert data.num_classes == 3 and by_id.tolist() == [0, 2]
        assert (test.images.numpy()[np.argsort(test.ids)[1]].transpose(1, 2, 0) == pixels[0]).all()
    for classes, words in (("a+b", "folder 'c'"), ("a+c+a", "each class once"), ("a", "two")):
        assert words in message(image_folder(tmp_path / "x", classes=classes).test)


def test_imagefolder_lets_the_classes_take_turns(tmp_path, pillow):
    pixels = np.arange(24, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    folder_of(
        tmp_path,
        pillow,
        {f"{name}/{i}.png": pixels[4 * k + i] for k, name in enumerate("ABCxyz") for i in range(4)},
    )
    everything = image_folder(tmp_path, grey=True).test()
    order = interleaved(np.repeat(np.arange(6), 4))
    assert everything.ids.tolist() == order.tolist()
    for chosen in (everything, everything.at(np.array([7, 2, 11]))):
        assert chosen.images[:, 0, 0, 0].tolist() == chosen.ids.tolist()
        assert chosen.labels.tolist() == (chosen.ids // 4).tolist()


def test_imagefolder_without_splits(tmp_path, pillow):
    folder_of(
        tmp_path,
        pillow,
        {"x/1.png": random_images(1, 4, 4)[0], "y/1.png": random_images(2, 4, 4)[1]},
    )
    data = image_folder(tmp_path, grey=True)
    assert len(data.test()) == 2
    assert "has no train pictures" in message(data.train)


def test_imagefolder_refuses(tmp_path, pillow, monkeypatch):
    assert "cannot list the folder" in message(image_folder(tmp_path / "none").test)
    assert "has no pictures in class folders" in message(image_folder(tmp_path).test)
    folder_of(
        tmp_path,
        pillow,
        {"a/1.png": random_images(1, 4, 4)[0], "b/1.png": random_images(1, 5, 4)[0]},
    )
    assert "size=N" in message(lambda: image_folder(tmp_path).test().first(2))
