"""Pictures that are decoded when they are asked for."""

import numpy as np
import pytest

from bench.data.pictures import View
from tests.data.helpers import folder_of, image_folder, random_images
from tests.toys import message


def test_pictures_are_decoded_only_when_asked_for(tmp_path, pillow):
    folder_of(
        tmp_path,
        pillow,
        {f"{c}/{i}.png": random_images(1, 4, 4, 3)[0] for c in "ab" for i in range(3)},
    )
    everything = image_folder(tmp_path).test()
    last = everything.files[-1]
    last.write_bytes(last.read_bytes()[:40])
    assert len(everything) == 6
    assert everything.first(5).images.shape == (5, 3, 4, 4)
    assert str(last) in message(lambda: everything.images) and "cannot be decoded" in message(
        lambda: everything.sha256
    )
    last.write_bytes(b"text")
    assert "cannot be decoded" in message(lambda: everything.first(6))


def test_pictures_of_more_than_8_bits_are_refused(tmp_path, pillow):
    deep = np.linspace(0, 65535, 16).reshape(4, 4)
    for name, pixels in {
        "16.png": deep.astype(np.uint16),
        "32.tif": deep.astype(np.int32),
        "f.tif": deep.astype(np.float32),
    }.items():
        pillow.fromarray(pixels).save(tmp_path / name)
        assert "more than 8 bits" in message(lambda name=name: View(True)(tmp_path / name))


@pytest.mark.parametrize(
    "size", [(300, 280), (280, 301), (256, 256), (225, 700), (100, 57), (270, 355)]
)
def test_imagenet_view_is_torchvisions(tmp_path, pillow, size):
    transforms = pytest.importorskip("torchvision.transforms", reason="pip install torchvision")

    pixels = random_images(1, *size, 3)[0]
    folder_of(tmp_path, pillow, {"x.png": pixels})
    theirs = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    )
    assert (View(False, 256, 224)(tmp_path / "x.png") == theirs(pillow.fromarray(pixels))).all()
