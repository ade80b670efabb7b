"""The contact sheet."""

import torch
from bench_defenses.datafree.sheet import contact_sheet


def test_the_contact_sheet_has_a_row_a_class():
    from io import BytesIO

    from PIL import Image

    images = torch.stack([torch.full((1, 28, 28), value) for value in (0.0, 0.25, 0.5)])
    picture = Image.open(BytesIO(contact_sheet(images, torch.tensor([4, 1, 4]))))
    assert picture.size == (12 * 58, 2 * 58) and picture.mode == "RGB"
    corners = [picture.getpixel(at)[0] for at in ((0, 0), (0, 58), (58, 58), (58, 0), (57, 0))]
    assert corners == [64, 0, 128, 255, 255]
