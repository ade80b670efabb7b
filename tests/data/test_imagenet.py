"""The data set `imagenet:PATH`."""

import numpy as np
import pytest

from bench.data.imagenet import ImageNet, read_lines, robustbench_list
from bench.errors import BadInput
from bench.plugins.create import DATASETS, create
from bench.spec import parse
from tests.data.helpers import folder_of, random_images
from tests.toys import message


def test_a_blank_line_among_labels_is_refused(tmp_path):
    """Synsets alone belong to pictures by their line."""
    file = tmp_path / "labels.txt"
    file.write_text("n01\n\nn02\n")
    assert "blank line 2" in message(lambda: read_lines(str(file), "labels"))
    file.write_text("n01\nn02\n\n")
    assert read_lines(str(file), "labels") == ["n01", "n02"]
    file.write_text("\n \n")
    assert "is empty" in message(lambda: read_lines(str(file), "labels"))


class Three(ImageNet):
    synsets = 3


SYNSETS = ["n01440764", "n02823750", "n09472597"]


def imagenet(root, **params) -> Three:
    return Three(ImageNet.Params(path=str(root), **params))


def photos(root, pillow, flat: bool) -> np.ndarray:
    """Six small photos, the i-th of class i % 3."""
    pixels = random_images(6, 300, 280, 3)
    names = [
        f"{'' if flat else SYNSETS[i % 3] + '/'}ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(6)
    ]
    folder_of(root / "val", pillow, dict(zip(names, pixels, strict=True)))
    return pixels


LABEL_FILES = {
    "synsets in order": [SYNSETS[i % 3] for i in range(6)],
    "names and classes": [f"ILSVRC2012_val_{i + 1:08d}.JPEG {i % 3}" for i in reversed(range(6))],
    "Kaggle": [
        f"ILSVRC2012_val_{i + 1:08d},{SYNSETS[i % 3]} 85 1 499 272" for i in reversed(range(6))
    ],
}


def test_imagenet_layouts_agree(tmp_path, pillow):
    photos(tmp_path / "folders", pillow, flat=False)
    photos(tmp_path / "flat", pillow, flat=True)
    expected = imagenet(tmp_path / "folders" / "val").test()
    assert expected.ids.tolist() == list(range(6)) and expected.labels.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]
    assert expected.first(1).images.shape == (1, 3, 224, 224)
    for lines in LABEL_FILES.values():
        (tmp_path / "labels.txt").write_text("\n".join(lines))
        test = imagenet(tmp_path / "flat" / "val", labels=str(tmp_path / "labels.txt")).test()
        assert test.sha256 == expected.sha256


def test_imagenet_list(tmp_path, pillow):
    photos(tmp_path, pillow, flat=False)
    (tmp_path / "list.txt").write_text(
        "x/ILSVRC2012_val_00000003.JPEG\nx/ILSVRC2012_val_00000001.JPEG\n"
    )
    test = imagenet(tmp_path / "val", list=str(tmp_path / "list.txt")).test()
    assert test.ids.tolist() == [2, 0] and test.labels.tolist() == [2, 0]
    for text, expected in (
        ("ILSVRC2012_val_00000009.JPEG", "lacks ILSVRC2012_val_00000009.JPEG"),
        ("ILSVRC2012_val_00000001.JPEG\n" * 2, "does not name another"),
        ("cat.jpg", "does not name another"),
        ("\n", "is empty"),
    ):
        (tmp_path / "list.txt").write_text(text)
        assert expected in message(imagenet(tmp_path / "val", list=str(tmp_path / "list.txt")).test)


def test_imagenet_robustbench_list(tmp_path, pillow):
    try:
        assert len(set(robustbench_list().read_text().split())) == 5000
    except BadInput as error:
        pytest.skip(str(error))
    photos(tmp_path, pillow, flat=False)
    assert "lacks ILSVRC2012_val_00015253" in message(
        imagenet(tmp_path / "val", list="robustbench").test
    )


def test_imagenet_refuses(tmp_path, pillow):
    photos(tmp_path / "flat", pillow, flat=True)
    flat, labels = tmp_path / "flat" / "val", tmp_path / "labels.txt"
    assert "add labels=FILE" in message(imagenet(flat).test)
    for lines, expected in (
        (["1", "2", "3"] * 2, "neither a synset nor"),
        (
            [f"ILSVRC2012_val_{i + 1:08d}.JPEG {i % 3 + 1}" for i in range(6)],
            "3 classes up to 3 where 3 from 0 are expected",
        ),
        ([SYNSETS[i % 2] for i in range(6)], "2 classes"),
        (SYNSETS, "has no label of ILSVRC2012_val_00000004.JPEG"),
    ):
        labels.write_text("\n".join(lines))
        assert expected in message(imagenet(flat, labels=str(labels)).test)
    labels.write_bytes(b"\xff\xfe\x00")
    assert "no text file" in message(imagenet(flat, labels=str(labels)).test)
    (tmp_path / "empty").mkdir()
    labels.write_text("\n".join(LABEL_FILES["synsets in order"]))
    assert "lacks any" in message(imagenet(tmp_path / "empty", labels=str(labels)).test)
    folder_of(
        tmp_path / "two",
        pillow,
        {f"{name}/x.png": random_images(1, 4, 4)[0] for name in SYNSETS[:2]},
    )
    assert "2 folders where 3 synsets are expected" in message(imagenet(tmp_path / "two").test)
    folder_of(tmp_path / "two", pillow, {f"{SYNSETS[2]}/x.png": random_images(1, 4, 4)[0]})
    assert "use imagefolder:PATH" in message(imagenet(tmp_path / "two").test)
    assert "use imagefolder:PATH" in message(imagenet(flat).train)
    assert "is smaller than size=300" in message(
        lambda: create(DATASETS, parse(f"imagenet:{flat},size=300"))
    )
