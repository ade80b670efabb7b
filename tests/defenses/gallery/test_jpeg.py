"""JPEG coding."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import BadInput
from tests.defenses.gallery.helpers import build, noise, pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillow_byte_for_byte(channels):
    images = pixels(5, channels, 17, 23)
    outputs = build("jpeg:quality=60", channels=channels).transform(images, noise(5))
    for image, coded in zip(images, outputs, strict=True):
        levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(levels.squeeze()).save(buffer, format="JPEG", quality=60)
        expected = np.asarray(Image.open(buffer)).reshape(17, 23, channels)
        assert (coded * 255).round().byte().permute(1, 2, 0).numpy().tobytes() == expected.tobytes()
    assert (outputs - images).abs().mean() < 0.2 and not torch.equal(outputs, images)


def test_jpeg_names_the_channels_that_it_cannot_code():
    with pytest.raises(BadInput, match="2 channels"):
        build("jpeg").transform(pixels(1, 2, 8, 8), noise(1))
