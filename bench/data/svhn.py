"""`svhn`: the official cropped digits in MATLAB files."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bench.data.official import Bytes, Official
from bench.data.order import Integers
from bench.errors import BadInput, one_line
from bench.spec import Params
from bench.storage.download import fetch

_SITE = "http://ufldl.stanford.edu/housenumbers"


class Svhn(Official[Params]):
    """SVHN: cropped house numbers, 73,257 training and 26,032 test images, 32 x 32 colour.

    `train_32x32.mat` and `test_32x32.mat` in the folder `svhn` below the data root. The file's
    label 10 is the digit 0. The 531,131 extra images are not read.
    """

    name: ClassVar[str] = "svhn"
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    image_shape: ClassVar[tuple[int, int, int] | None] = (3, 32, 32)
    splits: ClassVar[dict[str, int]] = {"test": 26_032, "train": 73_257}
    test_counts: ClassVar[tuple[int, ...]] = (
        1_744,
        5_099,
        4_149,
        2_882,
        2_523,
        2_384,
        1_977,
        2_019,
        1_660,
        1_595,
    )
    default_eps: ClassVar[float] = 8 / 255
    licence: ClassVar[str] = "non-commercial use only"
    source: ClassVar[str] = _SITE
    checksums: ClassVar[dict[str, str]] = {
        "test": "md5:eb5a983be6a315427106f1b164d9cef3",
        "train": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
    }

    def read(self, split: str) -> tuple[Bytes, Integers]:
        file = f"{split}_32x32.mat"
        path = str(fetch(f"svhn/{file}", [f"{_SITE}/{file}"], self.checksums[split]))
        images, labels = _variables(path)
        if images.ndim != 4 or labels.dtype.kind not in "iu":
            raise BadInput(
                f"{path} has X {images.shape} and y of {labels.dtype}, not (32, 32, 3, n) and "
                "integers: get the published file"
            )
        digits = labels.reshape(-1).astype(np.int64)
        return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), np.where(digits == 10, 0, digits)


def _variables(path: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """X and y of a MATLAB file."""
    from scipy.io import loadmat

    try:
        variables = loadmat(path, variable_names=["X", "y"])
        return variables["X"], variables["y"]
    except Exception as error:
        raise BadInput(
            f"{path} cannot be read ({one_line(error)}): it is damaged; remove it to download it "
            "again"
        ) from error
